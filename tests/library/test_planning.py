"""A plan is made without a look at the numbers of the weights."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hfusion import models, plan
from hfusion.stacking import _memory

SPEC = (4, 8, 6, 8, 3, 8, 4)


class Readers(TorchDispatchMode):
    """Counts the operators that get a weight of a model, or a view of one."""

    def __init__(self, model):
        super().__init__()
        self.memory = {_memory.storage(p) for p in model.parameters()}
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = filter(torch.is_tensor, pytree.tree_leaves((args, kwargs)))
        if any(_memory.storage(tensor) in self.memory for tensor in tensors):
            self.seen[str(function)] += 1
        return function(*args, **kwargs or {})


def fused(found):
    return [group.members for group in found.groups if group.fused]


def test_weights_without_numbers_are_planned_by_reading():
    with torch.device("meta"):
        without = models.GoogLeNet(classes=3)
    expected = fused(plan(models.GoogLeNet(classes=3)))
    assert len(expected) == 9
    assert fused(plan(without)) == expected


def test_reading_calls_no_operator_with_a_weight():
    model = models.Inception(SPEC)
    readers = Readers(model)
    with readers:
        found = plan(model, embed=True)
    assert fused(found)
    assert not readers.seen
    with readers, torch.no_grad():
        model(torch.zeros(1, 4, 5, 5))
    assert readers.seen.total() > 6  # they do notice


def test_running_calls_those_operators_that_forward_calls_twice():
    """Once to see who is whose sibling, once with strided parts."""
    model, x = models.Inception(SPEC).eval(), torch.zeros(1, 4, 5, 5)
    forward, planning = Readers(model), Readers(model)
    with forward, torch.no_grad():
        model(x)
    with planning:
        found = plan(model, x)
    assert fused(found)
    assert planning.seen == forward.seen + forward.seen


def test_without_siblings_a_model_runs_once():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), torch.ones(1, 3)
    forward, planning = Readers(model), Readers(model)
    with forward, torch.no_grad():
        model(x)
    with planning:
        assert not plan(model, x).groups
    assert planning.seen == forward.seen


@pytest.mark.parametrize("inputs", [(), (torch.zeros(1, 4, 5, 5),)], ids=["read", "run"])
def test_the_weights_stay_where_they_are(inputs):
    model = models.Inception(SPEC)
    before = {key: (id(p), p.data_ptr(), p._version) for key, p in model.named_parameters()}
    plan(model, *inputs)
    after = {key: (id(p), p.data_ptr(), p._version) for key, p in model.named_parameters()}
    assert after == before
