"""Small models with two siblings, for the tests of tracing."""

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
