"""Training a stack and training its branches: under which optimisers they stay one.

Chapter 3 says: as long as the optimiser treats each number by itself and every branch
is in the loss at every step. Both conditions are shown to be needed.
"""

import pytest
import torch
from torch import nn

from hfusion import stacking

STEPS = 6
ALONE = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}
WHOLE = {"Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1)}
if hasattr(torch.optim, "Muon"):  # from 2.9
    WHOLE["Muon"] = lambda p: torch.optim.Muon(p, lr=0.1)


def trained(forward, parameters, optimiser, used, clip):
    """The numbers after some steps; used: whether the last branch counts in a step."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimiser = optimiser(parameters)
    for step in range(STEPS):
        optimiser.zero_grad()
        *others, last = forward(x)
        counted = [*others, last] if used(step) else others
        sum(part.tanh().square().mean() for part in counted).backward()
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
    return torch.cat([p.detach() for p in parameters])


def apart(optimiser, used=lambda step: True, clip=None):
    """The largest difference between separate and stacked training, in float64."""
    torch.manual_seed(2)
    small = [nn.Linear(4, width, bias=False).double() for width in (3, 1, 2)]
    stacked = stacking.stack(small)
    separate = [linear.weight for linear in small]
    one_by_one = trained(
        lambda x: [linear(x) for linear in small], separate, optimiser, used, clip
    )
    at_once = trained(stacked, list(stacked.parameters()), optimiser, used, clip)
    return (at_once - one_by_one).abs().max().item()


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("optimiser", ALONE.values(), ids=ALONE)
def test_what_treats_each_number_alone_trains_a_stack_as_its_branches(optimiser, clip):
    assert apart(optimiser, clip=clip) < 1e-12


@pytest.mark.parametrize("optimiser", WHOLE.values(), ids=WHOLE)
def test_what_looks_at_a_whole_matrix_does_not(optimiser):
    assert apart(optimiser) > 1e-3


@pytest.mark.parametrize("name", ALONE)
def test_a_branch_outside_the_loss_is_skipped_alone_and_moved_in_a_stack(name):
    difference = apart(ALONE[name], used=lambda step: step % 2)
    if name in ("SGD", "Adagrad"):  # a zero gradient moves nothing there
        assert difference < 1e-12
    else:
        assert difference > 1e-3


def test_an_optimisers_state_goes_by_position_and_does_not_load():
    small = [nn.Linear(4, width) for width in (3, 1, 2)]
    stacked = stacking.stack(small)
    state = torch.optim.Adam([p for linear in small for p in linear.parameters()])
    with pytest.raises(ValueError, match="parameter group"):
        torch.optim.Adam(stacked.parameters()).load_state_dict(state.state_dict())
    assert [n for n, _ in stacked.named_parameters()] == ["layer.weight", "layer.bias"]
    assert next(iter(stacked.state_dict())) == "0.weight"
