"""Small models with two siblings, for the tests of tracing and of modes."""

import torch
import torch.nn.functional as F
from torch import nn


def net(forward, **members):
    """A module with these members, and with two siblings, q and k."""
    model = type("Net", (nn.Module,), {"forward": forward})()
    model.q, model.k = nn.Linear(3, 4), nn.Linear(3, 2)
    for name, member in members.items():
        setattr(model, name, member)
    return model


def siblings(self, x):
    return self.q(x), self.k(x)


# Forwards that look at the training flag.


def drops(self, x):
    return F.dropout(self.q(x), 0.5, training=self.training), self.k(x)


def decides(self, x):
    return (self.q(x) * 2 if self.training else self.q(x)), self.k(x)


def constant_decides(self, x):
    return self.q(x) + torch.full((4,), 1.0 if self.training else 2.0), self.k(x)
