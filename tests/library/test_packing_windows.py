"""Windows of different sizes side by side, each weight a view into zeros (embed=True)."""

import copy
import io

import pytest
import torch
from copied import saved
from torch import nn

import hfusion
from hfusion.fusing import _group, _members

WINDOWS = {  # kernel_size, padding and dilation of each sibling
    "1 and 3": (nn.Conv2d, [(1, 0, 1), (3, 1, 1)]),
    "3 and 1": (nn.Conv2d, [(3, 1, 1), (1, 0, 1)]),
    "1, 3, 5, 1": (nn.Conv2d, [(1, 0, 1), (3, 1, 1), (5, 2, 1), (1, 0, 1)]),
    "rows and columns": (nn.Conv2d, [((1, 3), (0, 1), 1), ((3, 1), (1, 0), 1)]),
    "dilated": (nn.Conv2d, [(1, 0, 3), (3, 2, 2)]),
    "one axis": (nn.Conv1d, [(1, 0, 1), (7, 3, 1)]),
    "three axes": (nn.Conv3d, [(1, 0, 1), (3, 1, 1)]),
}


class Net(nn.Module):
    def __init__(self, name):
        super().__init__()
        kind, windows = WINDOWS[name]
        self.branches = nn.ModuleList(
            kind(3, 2 + i, size, padding=padding, dilation=dilation, bias=i != 1)
            for i, (size, padding, dilation) in enumerate(windows)
        )

    def forward(self, x):
        return [branch(x) for branch in self.branches]


def pair(name="1, 3, 5, 1", by_running=False):
    """(a model, it fused, its group, an input)."""
    torch.manual_seed(0)
    model = Net(name)
    x = torch.randn(2, 3, *[7] * (model.branches[0].weight.ndim - 2))
    fused = hfusion.plan(model, x if by_running else None, embed=True).apply()
    return model, fused, _members.member_of(fused.branches[0]).group, x


def same(model, fused, x, tolerance=1e-5):
    """Whether they give the same, by one product."""
    group = _members.member_of(fused.branches[0]).group
    before = group.rounds
    with torch.no_grad():
        returned, expected = fused(x), model(x)
    assert group.rounds == before + 1
    return all(
        torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)
        for mine, theirs in zip(returned, expected, strict=True)
    )


def around(fused):
    """The numbers that belong to no branch, of a group that is packed."""
    group = _members.member_of(fused.branches[0]).group
    whole = group.packing.together[1].detach()
    kept = torch.zeros_like(whole, dtype=torch.bool)
    parts = zip(kept.split(group.sizes), whole.split(group.sizes), strict=True)
    for (inside, part), layer in zip(parts, fused.branches, strict=True):
        place = (slice(None), slice(None), *group.window.place(layer))
        inside[place] = True
        assert part[place].equal(layer.weight)
        assert part[place].data_ptr() == layer.weight.data_ptr()
    return whole[~kept]


@pytest.mark.parametrize("by_running", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_one_product_for_all(name, by_running):
    model, fused, group, x = pair(name, by_running)
    assert same(model, fused, x)
    assert len(around(fused)) > 0
    assert not around(fused).any()
    taps = torch.Size(group.window.kernel_size).numel()
    assert group.packing.together[1].numel() == 3 * taps * sum(group.sizes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_its_neighbours(value):
    """0 · ∞ is NaN: the price that the docstrings of plan and embedding name."""
    model, fused, _, x = pair("1 and 3")
    x[0, 0, 3, 3] = value
    with torch.no_grad():
        (one, _), (mine, _) = model(x), fused(x)
    assert (~one[0, 0].isfinite()).nonzero().tolist() == [[3, 3]]
    rows = (~mine[0, 0].isfinite()).nonzero().tolist()
    assert rows == [[i, j] for i in (2, 3, 4) for j in (2, 3, 4)]
    assert torch.allclose(one[1], mine[1], atol=1e-5)  # the other image
    assert "for finite inputs only" in " ".join(hfusion.plan.__doc__.split())
    assert "reaches its neighbours" in " ".join(hfusion.stacking.windows.__doc__.split())


OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "one tensor at a time": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps_of_optimisers_leave_the_zeros(name):
    model, fused, _, x = pair()
    for network in (model, fused):
        optimiser = OPTIMISERS[name](network.parameters())

        def loss(network=network, optimiser=optimiser):
            optimiser.zero_grad()
            total = sum(y.square().mean() for y in network(x))
            total.backward()
            return total

        for _ in range(3):
            optimiser.step(loss)
        network.zero_grad()
    for mine, theirs in zip(fused.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert same(model, fused, x)
    assert not around(fused).any()


def test_weights_are_trained_without_gaps():
    """2026-11-30: AdamW(fused=True) wrote to the zeros of a weight that had gaps.

    Neither between backward and step, where somebody may look at the model.
    """
    model, fused, group, x = pair()
    for network in (model, fused):
        optimiser = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
        with torch.no_grad():
            network(x)
        sum(y.square().mean() for y in network(x)).backward()
        assert all(p.is_contiguous() for p in network.parameters())
        with torch.no_grad():
            network(x)
        optimiser.step()
    assert group.rounds == 1
    for mine, theirs in zip(fused.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    fused.zero_grad()
    assert same(model, fused, x)


def compiled(network, x):
    return torch.compile(network, backend="eager")(x)


def counted(network, x):
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        return network(x)


def alone(network, x):
    """Until the group is switched off, its weights still side by side."""
    with torch.no_grad():
        for _ in range(_group.WASTED + 1):
            network.branches[0](x.clone())
    return network(x)


HOWEVER = {  # a model's outputs are made, for a loss
    "compiled": compiled,
    "counted": counted,
    "switched off": alone,
    "of the weights": lambda network, x: network.parameters(),
    "by hand": lambda network, x: [
        torch.nn.functional.conv2d(x, network.branches[0].weight)
    ],
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", HOWEVER)
def test_fused_optimisers_leave_the_zeros_however_gradients_are_made(name, last):
    """2026-11-30: gaps were closed only where a layer was asked, and learnt."""
    model, fused, _, x = pair()
    for network in (model, fused):
        if last:
            network.to(memory_format=torch.channels_last)
        with torch.no_grad():
            network(x)
        optimiser = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimiser.zero_grad()
            sum(y.square().mean() for y in HOWEVER[name](network, x)).backward()
            optimiser.step()
    for mine, theirs in zip(fused.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_optimisers_of_others_close_no_gaps():
    _, fused, _, _ = pair()
    other = nn.Linear(2, 2)
    other.weight.grad = torch.ones(2, 2)
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert _members.member_of(fused.branches[0]).group.packing.in_place()


def test_gradients_of_the_input_alone_move_no_weight():
    _, fused, group, x = pair()
    fused.requires_grad_(False)
    memory = group.packing.together[1].data_ptr()
    sum(y.sum() for y in fused(x.requires_grad_())).backward()
    assert group.packing.together[1].data_ptr() == memory


def test_states():
    model, fused, _, x = pair()
    numbers = {name: torch.randn_like(p) for name, p in model.state_dict().items()}
    for assign in (False, True):
        for network in (model, fused):
            network.load_state_dict(copy.deepcopy(numbers), assign=assign)
        assert same(model, fused, x)
        assert not around(fused).any()
        assert all(t.equal(numbers[name]) for name, t in fused.state_dict().items())


def test_torch_save_keeps_the_zeros_once():
    """A view is saved with the whole memory that it looks into, and that only once."""
    model, fused, group, x = pair()
    file = io.BytesIO()
    torch.save(fused.state_dict(), file)
    whole = 4 * (group.packing.together[1].numel() + sum(group.sizes))
    assert whole < file.tell() < whole + 8_000
    file.seek(0)
    other = Net("1, 3, 5, 1")
    other.load_state_dict(torch.load(file))
    assert all(map(torch.equal, other(x), model(x)))


def test_a_fused_model_is_saved_whole():
    model, fused, _, x = pair()
    assert same(model, saved(fused), x)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, fused, _, x = pair()
    file = tmp_path / "fused.safetensors"
    with pytest.raises((RuntimeError, ValueError)):  # as of any weight that has gaps
        safetensors.save_file(fused.state_dict(), file)
    safetensors.save_file({k: t.contiguous() for k, t in fused.state_dict().items()}, file)
    other = Net("1, 3, 5, 1")
    other.load_state_dict(safetensors.load_file(file))
    assert all(map(torch.equal, other(x), model(x)))
    for tool in (safetensors.save_model, safetensors.load_model):
        with pytest.raises(RuntimeError):
            tool(fused, file)
    safetensors.save_model(hfusion.unfuse(fused), file)
    fused.load_state_dict(safetensors.load_file(file))
    assert same(model, fused, x)


CHANGES = {
    "deepcopy": copy.deepcopy,
    "half": lambda network: network.half(),
    "double": lambda network: network.double(),
    "channels_last": lambda network: network.to(memory_format=torch.channels_last),
    "cpu": lambda network: network.cpu(),
    "eval": lambda network: network.eval(),
    "requires_grad_": lambda network: network.requires_grad_(False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_the_whole_model(name):
    model, fused, _, x = pair()
    model, fused = CHANGES[name](model), CHANGES[name](fused)
    x = x.to(model.branches[0].weight.dtype)
    assert same(model, fused, x, 1e-2 if name == "half" else 1e-5)
    assert not around(fused).any()


def test_unfused_layers_are_contiguous_again():
    model, fused, _, x = pair()
    apart = hfusion.unfuse(fused)
    assert all(p.is_contiguous() for p in apart.parameters())
    assert all(map(torch.equal, apart(x), model(x)))


def test_gradients_are_the_models_bit_for_bit():
    model, fused, _, x = pair()
    for network in (model, fused):
        sum(y.square().sum() for y in network(x)).backward()
    for mine, theirs in zip(fused.parameters(), model.parameters(), strict=True):
        assert mine.grad.equal(theirs.grad)


def test_a_window_that_changes_is_computed_by_itself():
    model, fused, group, x = pair("1 and 3")
    for network in (model, fused):
        network.branches[1] = nn.Conv2d(3, 3, 5, padding=2)
    fused.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert all(map(torch.equal, fused(x), model(x)))
    assert group.rounds == 0
