"""Siblings at once as one operator, for torch.compile. torch, no graphs.

Compiled code is written down once, with stand-ins that have no address and no count of
writes. So the question whether weights still lie side by side is asked by an operator of
our own, `product`, when it runs; and how often a tensor was written to is told by the size
of what another one, `written`, would return, which is known while the code is written.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..stacking import rules

# By the dimensions of the weight.
CONVOLUTIONS: dict[int, Any] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}

Tensors = Sequence[Any]  # some may be None

# What a product stands for.
FORWARD = {kind: kind.forward for kind in rules.KINDS}
_CONV_FORWARD = {kind: getattr(kind, "_conv_forward", None) for kind in rules.KINDS}


def as_torch_made_it(kind: Any) -> bool:
    """Whether a class is one of rules.KINDS, with the methods that torch gave it."""
    if kind not in FORWARD or kind.forward is not FORWARD[kind]:
        return False
    return getattr(kind, "_conv_forward", None) is _CONV_FORWARD[kind]


# torch 2.6 cannot tell an export from torch.compile.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: True)


def still(turn: tuple, tensors: Sequence, written: torch.Tensor) -> bool:
    """Whether a compiled round's tensors are the same ones, not written to since.

    What an earlier graph has left is of no use: its `written` has size 0 by now.
    """
    same = all(a is b for a, b in zip(turn[0], tensors, strict=True))
    return same and turn[1].shape[0] == written.shape[0]


def differentiates() -> bool:
    """Whether torch.func or forward differentiation is at work."""
    level = torch.autograd.forward_ad._current_level
    return level >= 0 or torch._C._are_functorch_transforms_active()


def traceable(layers: Sequence[Any], sizes: tuple[int, ...], x: Any) -> bool:
    """Whether x and these layers are plain ones, as `product` knows them."""
    if _is_exporting() or type(x) is not torch.Tensor:
        return False
    # These know no operators of ours.
    if torch.is_autocast_enabled(x.device.type) or differentiates():
        return False
    kinds = {None if layer is None else _traced_kind(layer) for layer in layers}
    if None in kinds or len(kinds) > 1:
        return False
    return tuple(layer.weight.shape[0] for layer in layers) == sizes


def _traced_kind(layer: Any) -> tuple | None:
    """What siblings have in common, for a layer that `product` can stand for, or None."""
    own, kind = vars(layer), type(layer)
    getattr(layer, "_conv_forward", None)  # so that compiled code looks whether it is there
    if not as_torch_made_it(kind) or "_conv_forward" in own:
        return None
    if {*layer._parameters} != _TENSORS or rules.odd(layer):
        return None
    if (geometry := settings_of(layer)) is None:
        return None
    shape, settings = layer.weight.shape[1:], tuple(map(tuple, geometry))
    return kind.__name__, settings, tuple(shape), layer.weight.dtype


_TENSORS = {"weight", "bias"}


def settings_of(layer: Any) -> tuple[list[int], list[int], list[int]] | None:
    """A layer's settings as `product` takes them; None where it does not."""
    if type(layer) is nn.Linear:
        return [], [], []
    plain = layer.padding_mode == "zeros" and type(layer.padding) is tuple
    if not plain or layer.groups != 1:
        return None
    return list(layer.stride), list(layer.padding), list(layer.dilation)


@torch.library.custom_op(
    "hfusion::written", mutates_args=(), schema="(Tensor?[] tensors) -> Tensor"
)
def _written(tensors: list[Any]) -> torch.Tensor:
    """A tensor whose size says how often these were written to; while tracing only."""
    return tensors[0].new_empty(0)


@_written.register_fake
def _(tensors: list[Any]) -> torch.Tensor:
    tensors = [t for t in tensors if t is not None]
    if any(t.is_inference() for t in tensors):  # such tensors do not count
        return tensors[0].new_empty(0)
    return tensors[0].new_empty(1 + sum(t._version for t in tensors))


@torch.library.custom_op(
    "hfusion::product",
    mutates_args=(),
    schema="(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor? whole, "
    "Tensor? whole_bias, int[] stride, int[] padding, int[] dilation) -> Tensor",
)
def _product(
    x: torch.Tensor, weights: Tensors, biases: Tensors, whole: torch.Tensor | None,
    whole_bias: torch.Tensor | None, *geometry: Any,
) -> torch.Tensor:  # fmt: skip
    """All siblings at once if they still lie in the whole, else one after the other."""
    with_bias = any(bias is not None for bias in biases)
    if _in(weights, weights, whole) and (not with_bias or _in(biases, weights, whole_bias)):
        return _apply(x, whole, whole_bias if with_bias else None, *geometry)
    pairs = zip(weights, biases, strict=True)
    return torch.cat([_apply(x, w, b, *geometry) for w, b in pairs], 1 - weights[0].ndim)


@_product.register_fake
def _(
    x: torch.Tensor, weights: Tensors, biases: Tensors, whole: torch.Tensor | None,
    whole_bias: torch.Tensor | None, *geometry: Any,
) -> torch.Tensor:  # fmt: skip
    bias = next((b for b in biases if b is not None), None)
    rows = sum(w.shape[0] for w in weights)
    whole = weights[0].new_empty((rows, *weights[0].shape[1:]))
    return _apply(x, whole, bias if bias is None else bias.new_empty(rows), *geometry)


def _in(parts: Tensors, weights: Tensors, whole: torch.Tensor | None) -> bool:
    """Whether tensors, some perhaps None, lie in another one: one for each of weights."""
    if whole is None:
        return False
    place, row = whole.data_ptr(), whole.stride(0) * whole.element_size()
    for part, weight in zip(parts, weights, strict=True):
        if part is not None:
            if part.data_ptr() != place or part.dtype != whole.dtype:
                return False
            if part.shape[1:] != whole.shape[1:] or part.stride() != whole.stride():
                return False
        place += len(weight) * row
    return True


def _apply(
    x: torch.Tensor, weight: Any, bias: torch.Tensor | None, *geometry: Any
) -> torch.Tensor:
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    return CONVOLUTIONS[weight.ndim](x, weight, bias, *geometry)
