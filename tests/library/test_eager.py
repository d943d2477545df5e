"""eager.py and cost.kernels: counted by hand, each rule in the smallest module."""

import copy

import pytest
import torch
from torch import nn

from hfusion import models
from hfusion.timing import cost, eager
from sideways.experiments import variants

HALF = ("float16", "NHWC", 1)


@pytest.fixture(scope="module")
def ladder():
    model = models.randomise(models.Inception.from_table("3a")).eval()
    return variants.eager(model)


# As written: 6 convolutions, norms and ReLUs, a pooling, a concatenation. Folded: a bias
# for each norm. Stacked: 4 convolutions and biases, 6 ReLUs; hoisted: 4 ReLUs. One call: 4.
# In half a norm is 3. Strided parts: 2 convolutions copy; in channels_last each of the 4
# branches is copied into the concatenation, instead of one kernel for all.
LADDER = {
    ("float32", "NCHW", 1): (20, 20, 16, 14, 6),
    ("float16", "NHWC", 1): (32, 20, 16, 16 + 3, 8 + 3),
    ("float32", "NCHW", 8): (20, 20, 16, 16, 8),
    ("float32", "NHWC", 1): (20, 20, 16, 16 + 3, 8 + 3),
    ("float16", "NCHW", 1): (32, 20, 16, 14, 6),
    ("bfloat16", "NHWC", 8): (32, 20, 16, 16 + 3, 8 + 3),
}


@pytest.mark.parametrize("case", LADDER)
def test_the_rungs_of_a_module(ladder, case):
    counted = [cost.kernels(network, *case) for network in ladder.values()]
    assert tuple(counted) == LADDER[case]
    assert {type(count) for count in counted} == {int}


@pytest.mark.parametrize("row", models.TABLE)
def test_all_modules_of_the_table_are_alike(row):
    nets = variants.eager(models.Inception.from_table(row).eval())
    counted = [cost.kernels(network, "float32", "NCHW", 1) for network in nets.values()]
    assert tuple(counted) == LADDER["float32", "NCHW", 1]


@pytest.mark.parametrize("variant", [variants.WRITTEN, variants.HOISTED])
def test_the_module_is_left_as_it_was(ladder, variant):
    network = copy.deepcopy(ladder[variant])
    network.training = True
    before = copy.deepcopy(network.state_dict())
    cost.kernels(network, *HALF)
    assert network.training
    assert network.state_dict().keys() == before.keys()
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key])
        assert tensor.stride() == before[key].stride()


class Fn(nn.Module):
    """A function as a module, perhaps with a layer that it calls."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x):
        return self.function(x) if self.layer is None else self.function(self.layer, x)


def norm(**options):
    return nn.BatchNorm2d(4, **options)


def cut(x):
    return x[:, 1:3]


def one_call(x):
    weight = torch.empty(5, x.shape[1], 1, 1, dtype=x.dtype, device=x.device)
    return torch.cudnn_convolution_relu(x, weight, None, (1, 1), (0, 0), (1, 1), 1)


MASK = torch.ones(1, dtype=torch.bool, device="meta")
CONVS = ["convolution"]
# (module, dtype, layout, batch) -> kernels, for images of 4 channels.
SMALLEST = {
    "a convolution": (nn.Conv2d(4, 3, 1, bias=False), *HALF, CONVS),
    "its bias": (nn.Conv2d(4, 3, 1), *HALF, [*CONVS, "add_ (bias)"]),
    "a part, one image": (Fn(lambda conv, x: conv(cut(x)), nn.Conv2d(2, 3, 1, bias=False)),
        "float32", "NCHW", 1, CONVS),
    "a part, two images": (Fn(lambda conv, x: conv(cut(x)), nn.Conv2d(2, 3, 1, bias=False)),
        "float32", "NCHW", 2, ["copy", *CONVS]),
    "a part, channels_last": (
        Fn(lambda conv, x: conv(cut(x)), nn.Conv2d(2, 3, 1, bias=False)),
        "float32", "NHWC", 1, ["copy", *CONVS],
    ),
    "a part with a ReLU": (
        Fn(lambda conv, x: conv(cut(x).relu()), nn.Conv2d(2, 3, 1, bias=False)),
        "float32", "NHWC", 2, ["relu", *CONVS],
    ),
    "weights that lie otherwise": (
        Fn(lambda conv, x: conv(x.contiguous()), nn.Conv2d(4, 3, 3, bias=False)),
        "float32", "NHWC", 1, ["clone", "copy", *CONVS],
    ),
    "convolution and ReLU": (Fn(one_call), *HALF,
        ["zeros (bias)", "convolution with ReLU"]),
    "a norm": (norm(), "float32", "NCHW", 2, ["batch_norm"]),
    "a norm in half": (norm(), *HALF, ["copy (mean)", "invstd", "batch_norm"]),
    "a norm in bfloat16": (norm(), "bfloat16", "NCHW", 1,
        ["copy (mean)", "invstd", "batch_norm"]),
    "a norm that learns nothing": (norm(affine=False), "float32", "NCHW", 1,
        ["copy (mean)", "invstd", "batch_norm"]),
    "half with a norm in float32": (Fn(lambda layer, x: layer.float()(x), norm()), *HALF,
        ["_to_copy"] * 4 + ["batch_norm"]),
    "a norm of a part": (Fn(lambda layer, x: layer(cut(x)), nn.BatchNorm2d(2)), "float32",
        "NCHW", 2, ["copy", "batch_norm"]),
    "pooling": (nn.MaxPool2d(3), *HALF, ["pool"]),
    "pooling of a part": (Fn(lambda x: nn.functional.avg_pool2d(cut(x), 2)), *HALF,
                          ["copy", "pool"]),
    "a concatenation": (Fn(lambda x: torch.cat([x, x], 1)), *HALF, ["cat"]),
    "of parts": (Fn(lambda x: torch.cat([cut(x), x], 1)), "float32", "NCHW", 2, ["cat"]),
    "of parts, channels_last": (Fn(lambda x: torch.cat([cut(x), x, x], 1)), *HALF,
        ["copy (cat)"] * 3),
    "of both layouts": (Fn(lambda x: torch.cat([cut(x), x.contiguous()], 1)), *HALF,
        ["clone", "cat"]),
    "of five dimensions": (Fn(lambda x: torch.cat([x[..., None], x[..., None]], 1)), *HALF,
        ["copy (cat)"] * 2),
    "views": (Fn(lambda x: x.split(2, 1)[0].transpose(1, 2)[:, None]), *HALF, []),
    "in place": (Fn(lambda x: cut(x).relu_()), *HALF, ["relu"]),
    "masked": (Fn(lambda x: x.masked_fill(MASK, 0)), *HALF, ["clone", "masked_fill_"]),
}  # fmt: skip


def counted(module, dtype, layout, batch):
    return list(eager.launches(module, dtype, layout, batch, (4, 6, 6)).names)


@pytest.mark.parametrize("name", SMALLEST)
def test_each_rule_by_hand(name):
    *case, expected = SMALLEST[name]
    assert counted(*case) == expected


@pytest.mark.parametrize("name", eager.RULES)
def test_each_rule_is_needed(name, monkeypatch):
    """Without its row, an operator is an error that names it."""
    monkeypatch.delitem(eager.RULES, name)
    module = {
        "convolution": nn.Conv2d(4, 3, 1),
        "cudnn_convolution_relu": Fn(one_call),
        "native_batch_norm": norm(),
        "max_pool2d_with_indices": nn.MaxPool2d(2),
        "avg_pool2d": nn.AvgPool2d(2),
        "cat": Fn(lambda x: torch.cat([x, x])),
        "masked_fill": Fn(lambda x: x.masked_fill(MASK, 0)),
    }.get(name)
    if module is not None:
        with pytest.raises(ValueError, match=rf"got aten\.{name}\.\w+ of \["):
            counted(module, *HALF)


BROKEN = {  # a rule, what it would be, and a case that then differs
    "convolution": (lambda *_: ("convolution",), "its bias"),
    "native_batch_norm": (lambda *_: ("batch_norm",), "a norm in half"),
    "cat": (lambda *_: ("cat",), "of parts, channels_last"),
    "max_pool2d_with_indices": (lambda *_: ("copy", "pool"), "pooling"),
    "cudnn_convolution_relu": (lambda *_: ("convolution",), "convolution and ReLU"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_noticed(name, monkeypatch):
    rule, case = BROKEN[name]
    monkeypatch.setitem(eager.RULES, name, rule)
    *case, expected = SMALLEST[case]
    assert counted(*case) != expected


UNKNOWN = {
    "aten.addmm": nn.Sequential(nn.Flatten(), nn.Linear(144, 2)),
    "aten.convolution": nn.Conv2d(4, 4, 1, groups=4),
    "aten.convolution.default": nn.ConvTranspose2d(4, 4, 1),
    "aten.cumsum": Fn(lambda x: x.cumsum(1)),
}


@pytest.mark.parametrize("operator", UNKNOWN)
def test_an_operator_that_is_not_known_is_named(operator):
    with pytest.raises(ValueError, match=f"module: expected .*, got {operator}"):
        counted(UNKNOWN[operator], *HALF)


WRONG = [
    ("dtype: expected one of float32, .*, got float64", ("float64", "NCHW", 1)),
    ("layout: expected NCHW or NHWC, got 'CHWN'", ("float32", "CHWN", 1)),
    ("batch: expected an int of at least 1, got 0", ("float32", "NCHW", 0)),
    ("batch: expected an int of at least 1, got True", ("float32", "NCHW", True)),
]


@pytest.mark.parametrize(("message", "case"), WRONG)
def test_arguments_that_do_not_fit_are_named(message, case):
    with pytest.raises(ValueError, match=message):
        cost.kernels(nn.Conv2d(4, 3, 1), *case)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Sequential(norm(), nn.Conv2d(4, 3, 1))])
def test_an_image_is_asked_for_where_channels_are_not_known(module):
    with pytest.raises(ValueError, match=r"image: expected \(channels, height, width\)"):
        cost.kernels(module, *HALF)
    assert cost.kernels(module, *HALF, image=(4, 5, 5)) > 0


def test_dtypes_have_two_names():
    conv = nn.Conv2d(4, 3, 1)
    assert cost.kernels(conv, torch.float16, "NHWC", 1) == 2


def test_this_torch_adds_a_bias_in_a_kernel_of_its_own():
    """Pull request 192838 of PyTorch would add it inside cuDNN, with a new operator."""
    assert not hasattr(torch.ops.aten, "cudnn_convolution_bias")
