"""Small models with siblings, and how fused ones are held to them.

The reference is always the model as it was, in float64. Without gradients the siblings
compute together, which their groups count; with gradients each computes for itself, and
every bit is the model's.
"""

import copy
import pickle

import copied
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree

from hfusion import models, plan
from hfusion.fusing import _members
from hfusion.timing import agree, count_launches


def conv(c_out=4, kernel=1, c_in=3, kind=nn.Conv2d, **options):
    return kind(c_in, c_out, kernel, **options)


def linear(c_out=4, c_in=3, **options):
    return nn.Linear(c_in, c_out, **options)


def bn(channels):
    return models.randomise(nn.BatchNorm2d(channels))


def net(forward, **members):
    """A module with this forward and these members."""
    model = type("Net", (nn.Module,), {"forward": forward})()
    for name, member in members.items():
        setattr(model, name, member)
    return model


def ab(self, x):
    return self.a(x), self.b(x)


def abc(self, x):
    return self.a(x), self.b(x), self.c(x)


def pair(**options):
    """Two siblings, a and b, and nothing else."""
    return net(ab, a=conv(4, **options), b=conv(5, **options))


def three(**others):
    """Three siblings, and what a forward may want besides."""
    return net(abc, a=conv(4), b=conv(4), c=conv(2), **others)


def image(*shape):
    return torch.randn(shape or (2, 3, 4, 5))


def run(model, *inputs):
    """What the model makes of its inputs, which it may change in place."""
    torch.manual_seed(0)
    return model(*copy.deepcopy(inputs))


def together(model, *inputs):
    """The same without gradients, so that siblings may compute together."""
    with torch.no_grad():
        return run(model, *inputs)


def check_same(actual, expected, bound=1e-12):
    """Hold two results, tensors in whatever tuples and dicts, to each other."""
    actual, expected = _pytree.tree_flatten(actual), _pytree.tree_flatten(expected)
    assert actual[1] == expected[1]
    assert expected[0]
    for a, e in zip(actual[0], expected[0], strict=True):
        assert a.dtype == e.dtype
        if e.is_floating_point():
            agree(a, e, bound * (1 + e.detach().abs().max().item()))
        else:
            assert torch.equal(a, e)


def exact(actual, expected):
    """Whether two results are equal bit for bit."""
    actual, expected = _pytree.tree_flatten(actual), _pytree.tree_flatten(expected)
    return actual[1] == expected[1] and all(
        a.dtype == e.dtype and torch.equal(a, e)
        for a, e in zip(actual[0], expected[0], strict=True)
    )


def same_state(a, b):
    """Whether two states have the same keys in the same order, and the same bits."""
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and exact(list(a.values()), list(b.values()))


def gradients(model, *inputs):
    """Of the weights, by key, and of the first input."""
    model.zero_grad()
    torch.manual_seed(0)
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = _pytree.tree_leaves(model(*(x * 1 for x in inputs)))
    sum((y.double() ** 2).sum() for y in outputs if y.requires_grad).backward()
    found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return dict(sorted(found.items())) | {"x": inputs[0].grad}


def groups_of(model):
    """The groups that compute together in a fused model."""
    members = filter(None, map(_members.member_of, model.modules()))
    return list({id(member.group): member.group for member in members}.values())


def rounds(model):
    """How often each group has computed together."""
    return [group.rounds for group in groups_of(model)]


def fused_members(found):
    return [set(group.members) for group in found.groups if group.fused]


def check(fused, model, *inputs, rounds_each=1):
    """A fused model gives what the model gives, with gradients and without.

    rounds_each: how often each group has to compute together meanwhile.
    """
    before = rounds(fused)
    check_same(together(fused, *inputs), together(model, *inputs))
    assert [now - then for now, then in zip(rounds(fused), before, strict=True)] == [
        rounds_each
    ] * len(before)
    for look in (run, gradients):
        got, wanted = answer(look, fused, *inputs), answer(look, model, *inputs)
        assert got == wanted if isinstance(wanted, str) else exact(got, wanted)


def answer(look, model, *inputs):
    """What one sees of a model; the name of the error if it gives none."""
    try:
        return look(model, *inputs)
    except RuntimeError as error:
        return type(error).__name__


FOUND = ("reading", "running")
by_found = pytest.mark.parametrize("found", FOUND)


def planned(model, x, found, **options):
    return plan(model, *([x] if found == "running" else []), **options)


def double_output(module, args, output):
    return 2 * output


class Doubling(nn.Conv2d):
    """A convolution, doubled."""

    def forward(self, x):
        return 2 * super().forward(x)


class Double(nn.Module):
    """For parametrize: twice the tensor."""

    def forward(self, weight):
        return 2 * weight


def parametrised(model):
    parametrize.register_parametrization(model.a, "weight", Double())


def by_levels(self, x):
    return [layer(level) for level in (x, x * 2) for layer in (self.a, self.b, self.c)]


def count(model, x):
    with torch.no_grad():
        return count_launches(lambda: model(x))


def copies(model):
    """A model copied, pickled, and saved by torch."""
    # Classes that are made here cannot be pickled, so their instances are copied.
    try:
        return [tool(model) for tool in copied.TOOLS.values()]
    except (pickle.PicklingError, AttributeError):
        return [copy.deepcopy(model), copy.deepcopy(copy.deepcopy(model))]
