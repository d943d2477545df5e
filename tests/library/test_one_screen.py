"""The smallest fuser against torch's own layers, and what it must leave alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from hfusion import models, one_screen
from hfusion.timing import Disagreement, agree


def convolutions(model):
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


@pytest.fixture(scope="module")
def googlenet():
    """With random statistics, in float64; an input; and what it computes layer by layer."""
    model = models.randomise(models.GoogLeNet(classes=10)).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        return model, x, model(x)


def test_googlenet_has_39_convolutions_instead_of_57_and_equal_outputs(googlenet):
    model, x, expected = googlenet
    state = copy.deepcopy(model.state_dict())
    fused = one_screen.fuse(model)
    assert (convolutions(model), convolutions(fused)) == (57, 39)
    assert fused.meta["refused"] == {}
    with torch.no_grad():
        agree(fused(x), expected, 1e-9 * expected.abs().max())
        agree(model(x), expected)  # the original is left as it was
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def in_reverse(split):
    return lambda y, sizes, dim: split(y, sizes[::-1], dim)[::-1]


def without_bias(cat):
    return lambda tensors, dim=0: cat(tensors, dim) * (tensors[0].ndim > 1)


@pytest.mark.parametrize(
    ("home", "name", "mistake"),
    [(torch.Tensor, "unsafe_split_with_sizes", in_reverse), (torch, "cat", without_bias)],
)
def test_a_wrong_edit_would_be_noticed(home, name, mistake, monkeypatch):
    model = models.randomise(models.Inception((3, 4, 5, 6, 2, 3, 3), batch_norm=False))
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    with monkeypatch.context() as patch:
        patch.setattr(home, name, mistake(getattr(home, name)))
        fused = one_screen.fuse(model)
        got = fused(x) if home is torch.Tensor else None
    with pytest.raises((Disagreement, RuntimeError)):
        agree(fused(x) if got is None else got, expected, 1e-4)


class Two(nn.Module):
    """Two siblings, something between them, and something after them."""

    def __init__(self, between=lambda net, x, y: y, a=None, b=None):
        super().__init__()
        self.a, self.b = a or nn.Linear(4, 4), b or nn.Linear(4, 3)
        self.relu, self.between = nn.ReLU(inplace=True), between

    def forward(self, x):
        x = x * 2
        y = self.between(self, x, self.a(x))
        return y, self.b(x)


def check(model, x, refused):
    fused = one_screen.fuse(model.eval())
    assert len(fused.meta["refused"]) == refused
    with torch.no_grad():
        for got, expected in zip(fused(x.clone()), model(x.clone()), strict=True):
            agree(got, expected, 1e-4)
    return fused


def add_in_place(net, x, y):
    h = x.view(-1)
    h += 1
    return y


def set_item(net, x, y):
    x[0] = 1
    return y


def write(x):
    return x.add_(1)


fx.wrap("write")
LIBRARY = torch.library.Library("hfusion_one_screen", "DEF")
LIBRARY.define("scale(Tensor(a!) x) -> Tensor(a!)")
LIBRARY.impl("scale", lambda x: x.mul_(2), "CompositeExplicitAutograd")
# With numbers that ReLU changes.
INPUT = torch.tensor([[0.5, -1.0, 2.0, -0.25], [-1.5, 1.0, -0.5, 3.0]])
WRITES = {
    "method": lambda net, x, y: (x.add_(1), y)[1],
    "of a view": lambda net, x, y: (x.view(-1).mul_(2), y)[1],
    "operator": add_in_place,
    "item": set_item,
    "function": lambda net, x, y: (torch.relu_(x), y)[1],
    "inplace": lambda net, x, y: (F.relu(x, inplace=True), y)[1],
    "by position": lambda net, x, y: (F.relu(x, True), y)[1],
    "out": lambda net, x, y: (torch.add(x, 1, out=x), y)[1],
    "module": lambda net, x, y: (net.relu(x), y)[1],
    "unknown": lambda net, x, y: (write(x), y)[1],
    "custom": lambda net, x, y: (torch.ops.hfusion_one_screen.scale(x), y)[1],
    "weight": lambda net, x, y: (net.b.weight.mul_(2), y)[1],
}


@pytest.mark.parametrize("name", WRITES)
def test_siblings_with_a_write_between_them_stay_apart(name):
    model, x = Two(WRITES[name]).requires_grad_(False), INPUT
    fused = one_screen.fuse(copy.deepcopy(model))
    (reason,) = fused.meta["refused"].values()
    assert "may write in place before b" in reason or "of b is read directly" in reason
    expected = copy.deepcopy(model)(x.clone())
    for got, want in zip(fused(x.clone()), expected, strict=True):
        agree(got, want, 1e-4)


@pytest.mark.parametrize("name", [name for name in WRITES if name != "weight"])
def test_fusing_them_anyway_would_be_wrong(name, monkeypatch):
    model, x = Two(WRITES[name]).requires_grad_(False), INPUT
    monkeypatch.setattr(one_screen, "writes", lambda network, node: False)
    fused = one_screen.fuse(model)
    with pytest.raises(Disagreement):
        agree(fused(x.clone())[1], model(x.clone())[1], 1e-4)


READ_ONLY = {
    "nothing": lambda net, x, y: y,
    "method": lambda net, x, y: y.view(-1),
    "function": lambda net, x, y: F.relu(torch.flatten(y)),
    "operator": lambda net, x, y: (y + 1)[0],
    "attribute": lambda net, x, y: y.T,
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_what_only_reads_does_not_keep_siblings_apart(name):
    fused = check(Two(READ_ONLY[name]), torch.randn(1, 4), refused=0)
    assert sum(isinstance(module, nn.Linear) for module in fused.modules()) == 1
    assert fused.get_submodule("a_and_siblings").out_features == 7


def test_a_layer_that_is_called_twice_stays_apart():
    fused = check(Two(lambda net, x, y: net.b(y)), torch.randn(2, 4), refused=1)
    assert "called more than once" in next(iter(fused.meta["refused"].values()))


def doubled(layer):
    layer.register_forward_hook(lambda module, args, y: 2 * y)
    return layer


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def own_forward(layer):
    layer.forward = lambda x: 2 * F.linear(x, layer.weight, layer.bias)
    return layer


NO_SIBLINGS = {
    "hook": lambda: (None, doubled(nn.Linear(4, 3))),
    "subclass": lambda: (None, Doubling(4, 3)),
    "bias": lambda: (None, nn.Linear(4, 3, bias=False)),
    "groups": lambda: (nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 1, groups=4)),
    "stride": lambda: (nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, stride=2)),
    "padding": lambda: (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1)),
    "padding_mode": lambda: (
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ),
    "dilation": lambda: (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, dilation=2)),
    "kernel_size": lambda: (nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, (1, 3))),
}


@pytest.mark.parametrize("name", NO_SIBLINGS)
def test_layers_that_are_not_alike_are_no_siblings(name):
    a, b = NO_SIBLINGS[name]()
    x = torch.randn(1, 4, 6, 6) if isinstance(a, nn.Conv2d) else torch.randn(2, 4)
    fused = check(Two(a=a, b=b), x, refused=0)
    assert not any("and_siblings" in path for path, _ in fused.named_modules())


def test_own_forward_is_no_sibling():
    fused = one_screen.fuse(Two(b=own_forward(nn.Linear(4, 3))))
    assert not any("and_siblings" in path for path, _ in fused.named_modules())


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (3, 5, 5)])
def test_with_and_without_a_batch(shape):
    a, b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
    fused = check(Two(a=a, b=b), torch.randn(shape), refused=0)
    assert convolutions(fused) == 1


class Trained(Two):
    def forward(self, x):
        self.b.weight.mul_(2)
        return super().forward(x)


def test_a_layer_whose_weight_is_read_directly_stays_apart():
    """Of a copy, the write would miss the stacked weight."""
    model, x = Trained().requires_grad_(False), torch.randn(2, 4)
    fused, expected = one_screen.fuse(copy.deepcopy(model)), model(x)
    assert "of b is read directly" in next(iter(fused.meta["refused"].values()))
    agree(fused(x)[1], expected[1], 1e-4)


def test_parts_may_be_written_to_while_gradients_are_recorded():
    """Views of a `split` may not: they come from a function with several outputs."""

    class InPlace(Two):
        def forward(self, x):
            y, z = super().forward(x)
            return torch.relu_(y), z.mul_(2)

    model = InPlace()
    fused, x = one_screen.fuse(model), torch.randn(2, 4)
    assert "a_and_siblings" in dict(fused.named_modules())
    for got, expected in zip(fused(x), model(x), strict=True):
        agree(got, expected, 1e-4)
    sum(y.sum() for y in fused(x)).backward()
