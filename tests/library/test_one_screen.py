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
    assert not any(fused.meta.values())
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
    [(torch.Tensor, "split", in_reverse), (one_screen, "cat", without_bias)],
)
def test_a_wrong_edit_would_be_noticed(home, name, mistake, monkeypatch):
    module = models.Inception((3, 4, 5, 6, 2, 3, 3), batch_norm=False)
    model = models.randomise(module).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    with monkeypatch.context() as patch:
        patch.setattr(home, name, mistake(getattr(home, name)))
        fused = one_screen.fuse(model)
        got = fused(x) if home is torch.Tensor else None
    with pytest.raises((Disagreement, RuntimeError)):
        agree(fused(x) if got is None else got, expected, 1e-4)


class Adding(nn.Module):
    def forward(self, x):
        return x.add_(1)


class Two(nn.Module):
    """Two siblings, something between them, and something after them."""

    def __init__(self, between=lambda net, x, y: y, a=None, b=None):
        super().__init__()
        self.a, self.b = a or nn.Linear(4, 4), b or nn.Linear(4, 3)
        self.relu, self.plain = nn.ReLU(inplace=True), nn.ReLU()
        # torch.fx looks into neither.
        self.wrapped = nn.DataParallel(self.relu)
        self.parallel = nn.DataParallel(Adding())
        self.between = between

    def forward(self, x):
        x = x.clone()
        y = self.between(self, x, self.a(x))
        return y, self.b(x)


def check(model, x, refused):
    fused = one_screen.fuse(model.eval())
    assert sum(bool(reason) for reason in fused.meta.values()) == refused
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
    "function": lambda net, x, y: (torch.relu_(x), y)[1],
    "inplace": lambda net, x, y: (F.relu(x, inplace=True), y)[1],
    "by position": lambda net, x, y: (F.relu(x, True), y)[1],
    "out": lambda net, x, y: (torch.add(x, 1, out=x), y)[1],
    "module": lambda net, x, y: (net.relu(x), y)[1],
    "module of a module": lambda net, x, y: (net.wrapped(x), y)[1],
    "module with user code": lambda net, x, y: (net.parallel(x), y)[1],
    "unknown": lambda net, x, y: (write(x), y)[1],
    "custom": lambda net, x, y: (torch.ops.hfusion_one_screen.scale(x), y)[1],
}


@pytest.mark.parametrize("name", WRITES)
def test_siblings_with_a_write_between_them_stay_apart(name):
    model, x = Two(WRITES[name]).requires_grad_(False).eval(), INPUT
    fused = one_screen.fuse(copy.deepcopy(model))
    ((siblings, reason),) = fused.meta.items()
    assert siblings == "[a, b]"
    assert "is not known to leave its input alone" in reason
    expected = copy.deepcopy(model)(x.clone())
    for got, want in zip(fused(x.clone()), expected, strict=True):
        agree(got, want, 1e-4)


@pytest.mark.parametrize("name", WRITES)
def test_fusing_them_anyway_would_be_wrong(name, monkeypatch):
    model, x = Two(WRITES[name]).requires_grad_(False).eval(), INPUT
    monkeypatch.setattr(one_screen, "judge", lambda network, siblings: "")
    fused = one_screen.fuse(model)
    with pytest.raises(Disagreement):
        agree(fused(x.clone())[1], model(x.clone())[1], 1e-4)


def doubled(layer):
    layer.register_forward_hook(lambda module, args, y: 2 * y)
    return layer


class Doubling(nn.Linear):
    def forward(self, x):
        return torch.mul(super().forward(x), 2)


def own_forward(layer):
    layer.forward = lambda x: torch.mul(F.linear(x, layer.weight, layer.bias), 2)
    return layer


def stepped_before(net, x, y):
    net.b.weight.mul_(2)
    return y


# What torch.fx reads as something else, or leaves out of a graph.
MISREAD = {
    "operator": (lambda: Two(add_in_place), "add"),
    "sum": (lambda: Two(lambda net, x, y: y + 1), "add"),
    "weight": (lambda: Two(stepped_before), "b_weight"),
    "hook": (lambda: Two(b=doubled(nn.Linear(4, 3))), "_forward_hooks"),
    "hook of the model": (lambda: doubled(Two()), "_forward_hooks"),
    "forward": (lambda: Two(b=own_forward(nn.Linear(4, 3))), "forward"),
    "forward of the model": (lambda: own_forward(nn.Linear(4, 3)), "forward"),
    "subclass": (lambda: Two(b=Doubling(4, 3)), "b_weight"),
}


@pytest.mark.parametrize("name", MISREAD)
def test_what_torch_fx_would_misread_is_refused_whole(name):
    model, culprit = MISREAD[name]
    with pytest.raises(
        ValueError, match=rf"calls of layers and functions, got \[.*{culprit}"
    ):
        one_screen.fuse(model().eval())


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_inside_forward_is_refused(enabled):
    def between(net, x, y):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return net.plain(y)

    model = Two(between).eval()
    with pytest.raises(ValueError, match="expected no autocast inside forward"):
        one_screen.fuse(model)
    with torch.autocast("cpu", torch.bfloat16):  # around the call it is followed
        fused = check(Two(), INPUT, refused=0)
        assert fused(INPUT)[1].dtype == torch.bfloat16
    model(INPUT)  # and works as before


@pytest.mark.parametrize("part", [lambda net: net, lambda net: net.plain])
def test_a_flag_of_training_would_be_frozen(part):
    model = Two(lambda net, x, y: F.dropout(y, 0.5, net.training)).eval()
    part(model).train()
    with pytest.raises(ValueError, match=r"got training; call model\.eval\(\) first"):
        one_screen.fuse(model)


def test_items_cannot_be_set_in_a_graph():
    with pytest.raises(TypeError, match="does not support item assignment"):
        one_screen.fuse(Two(set_item).eval())


READ_ONLY = {
    "nothing": lambda net, x, y: y,
    "a layer": lambda net, x, y: net.plain(y),
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_a_layer_that_only_reads_does_not_keep_siblings_apart(name):
    fused = check(Two(READ_ONLY[name]), torch.randn(1, 4), refused=0)
    assert sum(isinstance(module, nn.Linear) for module in fused.modules()) == 1
    assert len(fused.get_submodule("a_and_siblings").weight) == 7


def test_a_function_between_them_may_write_for_all_that_a_graph_says():
    fused = check(Two(lambda net, x, y: torch.flatten(y)), torch.randn(1, 4), refused=1)
    assert fused.meta == {"[a, b]": "flatten is not known to leave its input alone"}


def test_a_layer_that_is_called_twice_is_still_called_where_it_has_no_sibling():
    model = Two(lambda net, x, y: y, a=nn.Linear(4, 4), b=nn.Linear(4, 4))

    class Again(Two):
        def forward(self, x):
            y, z = super().forward(x)
            return y, self.b(z), self.a(y)

    again = Again(a=model.a, b=model.b)
    fused = check(again, torch.randn(2, 4), refused=0)
    assert sum(isinstance(module, nn.Linear) for module in fused.modules()) == 3


def test_one_layer_in_two_groups():
    class Both(Two):
        def forward(self, x):
            y, z = super().forward(x)
            return y, z, self.a(y), self.b(y)

    fused = check(Both(), torch.randn(2, 4), refused=0)
    stacked = [path for path, _ in fused.named_modules() if "and_siblings" in path]
    assert len(stacked) == 2


NO_SIBLINGS = {
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


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (3, 5, 5)])
def test_with_and_without_a_batch(shape):
    a, b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
    fused = check(Two(a=a, b=b), torch.randn(shape), refused=0)
    assert convolutions(fused) == 1


def test_parts_may_be_written_to():
    """Where gradients are recorded, PyTorch refuses: the result is for inference."""

    class InPlace(Two):
        def forward(self, x):
            y, z = super().forward(x)
            return torch.relu_(y), z.mul_(2)

    fused = check(InPlace(), INPUT, refused=0)
    assert "a_and_siblings" in dict(fused.named_modules())
    with pytest.raises(RuntimeError, match="modified inplace"):
        fused(INPUT)


@pytest.mark.parametrize("names", ["abcd", "acbd", "abdc"])
def test_the_order_of_two_groups_does_not_matter(names):
    class Four(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1)
            self.b, self.d = (nn.Conv2d(3, 2, 3, padding=1) for _ in range(2))

        def forward(self, x):
            return [getattr(self, name)(x) for name in names]

    fused = check(Four(), torch.randn(2, 3, 5, 5), refused=0)
    assert convolutions(fused) == 2


def test_an_input_by_keyword():
    class Keyword(Two):
        def forward(self, x):
            return self.a(input=x), self.b(x)

    fused = check(Keyword(), INPUT, refused=0)
    assert "a_and_siblings" in dict(fused.named_modules())


@pytest.mark.parametrize(
    ("a", "b", "x", "shown"),
    [
        (nn.Linear(4, 4), nn.Linear(4, 3), INPUT, "out_features=7"),
        (nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1), torch.randn(1, 3, 4, 4), "3, 9"),
    ],
)
def test_a_stacked_layer_says_how_many_outputs_it_has(a, b, x, shown):
    fused = check(Two(a=a, b=b), x, refused=0)
    assert shown in repr(fused.get_submodule("a_and_siblings"))
