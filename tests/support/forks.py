"""Small models with two siblings, for the tests of tracing."""

import fusing
from torch import nn


def net(forward, **members):
    """A module with these members, and with two siblings, q and k."""
    return fusing.net(forward, q=nn.Linear(3, 4), k=nn.Linear(3, 2), **members)


def siblings(self, x):
    return self.q(x), self.k(x)
