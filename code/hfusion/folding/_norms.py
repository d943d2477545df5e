"""What a batch norm computes, and what remains of one that was folded.

A class says little: a subclass of a batch norm may do something else, and another class
may do the same. So whatever is not torch's own is run on small random tensors in float64,
beside the folded convolution.
"""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

PAIRS: dict[type[nn.Module], type[_ConvNd]] = {
    nn.BatchNorm1d: nn.Conv1d,
    nn.BatchNorm2d: nn.Conv2d,
    nn.BatchNorm3d: nn.Conv3d,
}
CONVS = tuple(PAIRS.values())
NUMBERS = ("weight", "bias", "running_mean", "running_var")
# What timm's norms call after they have normalised, in this order; it remains.
STEPS = ("drop", "act")
BOUND = 1e-9  # of the largest output, in float64


def is_norm(module: nn.Module) -> bool:
    """Whether a module has the numbers of a batch norm, whatever it does with them.

    >>> is_norm(nn.BatchNorm2d(3)), is_norm(nn.LayerNorm(3))
    (True, False)
    """
    torchs = isinstance(module, nn.modules.batchnorm._NormBase)
    return torchs or all(hasattr(module, name) for name in (*NUMBERS, "eps"))


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a norm is one of torch's kind, with other statistics in training mode."""
    return isinstance(module, nn.modules.batchnorm._NormBase)


def steps(norm: nn.Module) -> dict[str, nn.Module]:
    """What a norm calls after it has normalised, by name, except nn.Identity."""
    found = {name: norm._modules.get(name) for name in STEPS}
    return {k: m for k, m in found.items() if m is not None and type(m) is not nn.Identity}


def strange(module: nn.Module) -> list[str]:
    """Parameters, buffers and modules that a norm or convolution does not have."""
    known = {*NUMBERS, "num_batches_tracked"}
    parts = () if isinstance(module, CONVS) else STEPS
    own = [name for name in (*module._parameters, *module._buffers) if name not in known]
    return own + [name for name in module._modules if name not in parts]


def numbers(module: nn.Module) -> list[torch.Tensor]:
    """The tensors that a norm or a convolution computes with."""
    found = [getattr(module, name, None) for name in NUMBERS]
    return [tensor for tensor in found if tensor is not None]


def weights(conv: _ConvNd, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight and bias of a convolution with the norm after it folded in.

    They are computed in float32 at least, and rounded once, to the convolution's dtype.
    """
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)

    def promoted(module: nn.Module, name: str) -> Any:
        tensor = getattr(module, name)
        return None if tensor is None else tensor.detach().to(dtype)

    weight, bias = fuse_conv_bn_weights(
        *(promoted(conv, "weight"), promoted(conv, "bias")),
        *(promoted(norm, "running_mean"), promoted(norm, "running_var")),
        norm.eps,
        *(promoted(norm, "weight"), promoted(norm, "bias")),
    )
    return weight.detach().to(conv.weight.dtype), bias.detach().to(conv.weight.dtype)


def put(conv: _ConvNd, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give a convolution these numbers; the bias is trained if the weight is."""
    trained = conv.weight.requires_grad
    conv.weight = nn.Parameter(weight, trained)
    conv.bias = nn.Parameter(bias, trained)


class _Mark(nn.Module):
    """A step that changes the numbers in a way that can be recognised."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor + 1


def proven(conv: _ConvNd, norm: nn.Module, training: bool = False) -> bool:
    """Whether a convolution and the norm after it do what the folded convolution does.

    Copies of both run on the CPU; a small convolution stands in for one of torch's own.
    training: the mode of the norm; the convolution is tried in both.

    >>> proven(nn.Conv2d(2, 3, 1), nn.SyncBatchNorm(3).eval())
    True
    >>> proven(nn.Conv2d(2, 3, 1), nn.SyncBatchNorm(3), training=True)
    False
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _keeps_dtype(conv, norm) and _same(conv, norm, training)
    except Exception:  # whatever the user's forward raises
        return False


def _alone(module: Any, dtype: torch.dtype | None = None) -> Any:
    return copy.deepcopy(module).to("cpu", dtype)


def _keeps_dtype(conv: _ConvNd, norm: Any) -> bool:
    """Whether a norm of float32 gives what a norm in the convolution's dtype would."""
    dtype, axes = conv.weight.dtype, conv.weight.dim() - 2
    x = torch.ones(2, norm.running_mean.numel(), *[3] * axes, dtype=dtype)
    return _alone(norm)(x).dtype == dtype


def _same(conv: Any, norm: Any, training: bool) -> bool:
    """Whether both give the same, and change nothing of themselves."""
    if type(conv) in CONVS:
        conv = type(conv)(1, conv.out_channels, 1, bias=conv.bias is not None)
    conv, norm = _alone(conv, torch.float64), _alone(norm, torch.float64)
    marks = [_Mark(-2), _Mark(3)]
    for name, mark in zip(STEPS, marks, strict=True):
        if name in norm._modules:
            norm._modules[name] = mark
    after = nn.Sequential(*[mark for mark in marks if mark in norm._modules.values()])
    norm.training = training
    folded = copy.deepcopy(conv)
    put(folded, *weights(conv, norm))
    mode, before = conv.training, [_seen(conv), _seen(norm)]
    for x, trains in itertools.product(_inputs(conv), (False, True)):
        conv.training = folded.training = trains
        wanted, found = norm(conv(x)), after(folded(x))
        same = wanted.dtype == found.dtype and wanted.shape == found.shape
        if not same or (wanted - found).abs().max() > BOUND * wanted.abs().max():
            return False
    conv.training = mode
    return str(before) == str([_seen(conv), _seen(norm)])


def _inputs(conv: _ConvNd) -> Iterator[torch.Tensor]:
    """Random images, small and large, of odd and even sides that the window fits in."""
    window = zip(conv.kernel_size, conv.dilation, strict=True)
    spans = [1 + dilation * (size - 1) for size, dilation in window]
    for extra, scale in ((2, 1.0), (3, 1e3), (4, 1e-3)):
        sides = [span + extra for span in spans]
        yield scale * torch.randn(2, conv.in_channels, *sides, dtype=torch.float64)


def _seen(module: nn.Module) -> tuple[dict[str, object], dict[str, float]]:
    """What a call of a module could change: numbers, strings and flags, and tensors."""
    plain: dict[str, object] = {
        k: v
        for k, v in vars(module).items()
        if isinstance(v, (int, float, str, type(None)))
    }
    return plain, {k: v.double().sum().item() for k, v in module.state_dict().items()}
