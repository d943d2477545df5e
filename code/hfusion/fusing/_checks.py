"""What each call checks before siblings compute together. torch.

All of it is asked at every call, so it is written to be quick: `make bench` prints what it
costs, the price of never relying on a guess.
"""

import functools
import logging
import operator
import weakref
from collections import Counter
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..stacking import _memory, rules
from . import _operators

logger = logging.getLogger("hfusion")

_geometry = operator.itemgetter(
    "stride", "padding", "dilation", "groups", "padding_mode",
    "_reversed_padding_repeated_twice",
)  # fmt: skip
# How many tensors know a memory. Up to torch 2.8, those for CPUs cannot tell …
_count: Any = getattr(torch._C, "_storage_Use_Count", None)


class Row:
    """What a member was when its group was packed.

    place, bias_place: where its numbers were moved to, tensors. By now another thread may
    have moved them on; then the row says so.
    """

    __slots__ = (
        "_bias", "_bias_place", "_complex", "_geometry", "_kind", "_layer", "_place",
        "_weight",
    )  # fmt: skip

    def __init__(self, layer: Any, place: torch.Tensor, bias_place: torch.Tensor | None):
        # Weakly, so that a deleted model is gone at once.
        self._layer, self._kind = weakref.ref(layer), type(layer)
        self._weight, self._bias = layer._parameters["weight"], layer._parameters["bias"]
        self._place = place_of(place)
        self._bias_place = None if bias_place is None else place_of(bias_place)
        self._complex = self._weight.is_complex()
        self._geometry = None if self._kind is nn.Linear else _geometry(vars(layer))

    def count(self) -> int:
        """How often the weights were written to: a number that only grows."""
        bias = self._bias
        return self._weight._version + (0 if bias is None else bias._version)

    def same(self) -> bool:
        """Whether the member is what it was, whatever was written to its weights."""
        layer, weight, bias = self._layer(), self._weight, self._bias
        if type(layer) is not self._kind:
            return False
        own = layer.__dict__
        parameters = own["_parameters"]
        return (
            parameters.get("weight") is weight
            and parameters.get("bias") is bias
            and place_of(weight) == self._place
            and (bias is None or place_of(bias) == self._bias_place)
            and (self._geometry is None or _geometry(own) == self._geometry)
            and not (self._complex and (_negates(weight) or _negates(bias)))
            and "weight" not in own and "bias" not in own and "_conv_forward" not in own
        )  # fmt: skip

    def first(self) -> bool:
        """The same, of the first member in a round: its class is as torch made it, too."""
        return _operators.as_torch_made_it(self._kind) and self.same()


def place_of(tensor: torch.Tensor) -> tuple:
    """Where a tensor's numbers lie, and how."""
    return tensor.data_ptr(), tensor.dtype, tensor.stride(), tensor.shape


def _negates(tensor: torch.Tensor | None) -> bool:
    """Whether a tensor's numbers are other ones than those in its memory."""
    return tensor is not None and (tensor.is_conj() or tensor.is_neg())


class Follows(Protocol):
    """What follows all members of a group in one round, see `_followers`."""

    def mark(self, index: int, part: torch.Tensor) -> None: ...

    def end(self) -> None: ...


class Round:
    """What the first sibling left for the others, and under which conditions it holds.

    x: what it read; mode: how (`mode`); rows: of the members, with what they counted;
    parts: one for each, the first taken; whole: see `_followers`, or None.
    """

    __slots__ = (
        "_counts", "_mode", "_place", "_rows", "_version", "left", "parts", "whole", "x",
    )  # fmt: skip

    def __init__(
        self, x: torch.Tensor, mode: tuple, rows: list[Row], counts: list[int],
        parts: list[torch.Tensor | None], whole: Follows | None,
    ):  # fmt: skip
        def end(_: Any) -> None:
            parts.clear()
            if whole is not None:
                whole.end()

        # When x is gone, nobody can ask for the parts any more.
        self.x = weakref.ref(x, end)
        self._version, self._place, self._mode = x._version, place_of(x), mode
        self._rows, self._counts, self.whole = rows, counts, whole
        self.parts, self.left = parts, len(parts) - 1

    def of(self, x: Any) -> bool:
        """Whether it is about this very tensor."""
        return self.x() is x

    def take(self, index: int, x: torch.Tensor, mode: tuple) -> torch.Tensor | None:
        """A part, once, for its x; None if it is gone, or anything is not as it was."""
        if x._version != self._version or place_of(x) != self._place:
            return None
        row = self._rows[index]
        if mode != self._mode or row.count() != self._counts[index] or not row.same():
            return None
        part, self.parts[index] = self.parts[index], None
        if part is not None:
            self.left -= 1
            if self.whole is not None:
                self.whole.mark(index, part)
        return part


def mode(device: torch.device) -> tuple | None:
    """What decides, besides x and the weights, which numbers a layer returns, and when.

    device: where the weights are. None where a mode watches what is done to
    tensors, or records it.
    """
    if torch.is_inference_mode_enabled():
        _warn_of_inference_mode()
        return None
    if _operators.differentiates() or torch._C._is_tracing() or _watched():
        return None
    kind, cast = device.type, None
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(kind):
        cast = torch.get_autocast_dtype(kind)
    return torch.is_grad_enabled(), cast, None if kind == "cpu" else _stream(device)


def _stream(device: torch.device) -> Any:
    """The queue that a device's work goes to now: another may be ahead, or behind."""
    if device.type == "cuda":
        return torch._C._cuda_getCurrentRawStream(device.index)
    return torch.accelerator.current_stream(device) if device.type == "xpu" else None


@functools.cache  # once
def _warn_of_inference_mode() -> None:
    logger.warning(
        "under torch.inference_mode() fused layers compute separately, because its tensors "
        "do not count how often they are written to; use torch.no_grad() instead"
    )


def plain(x: Any) -> bool:
    """Whether what is done to x can be noticed."""
    if type(x) is not torch.Tensor or x.layout is not torch.strided or x.is_nested:
        return False
    if x.is_inference():
        _warn_of_inference_mode()
    return not (x.is_meta or x.is_inference())


def _watched() -> bool:
    """Whether a mode sees each function, or each operator, that is called."""
    if torch._C._len_torch_dispatch_stack():
        modes = _get_current_dispatch_mode_stack()
        if not all(getattr(mode, "only_counts", False) for mode in modes):
            return True
    if not torch._C._len_torch_function_stack():
        return False
    return any(type(m) is not DeviceContext for m in _get_current_function_mode_stack())


def unmovable(name: str, layer: nn.Module) -> str:
    """Why a layer's numbers must stay where they are, in words; "" if they may move."""
    if "forward" in vars(layer) and not rules.ours(layer, "forward"):
        return f"{name} has a forward of its own"
    if not _operators.as_torch_made_it(type(layer)):
        return f"{name} is a {type(layer).__name__} with another forward"
    if odd := rules.odd(layer):
        return f"{name} has no plain Parameters, but {odd}"
    for p in layer.parameters():
        if p.is_meta or p.is_inference():
            return f"a weight of {name} has no numbers, or is an inference tensor"
        if _negates(p):
            return f"a weight of {name} is a conjugate that was not computed"
        if p.is_cpu and p.is_shared():
            return f"other processes know a weight of {name} where it is"
    return ""


def known_to_others(*layers: nn.Module) -> bool:
    """Whether anything but these layers has the memory of their weights, or may have it."""
    if _count is None:
        return True
    parameters = [p for m in layers for p in m._parameters.values() if torch.is_tensor(p)]
    known = Counter(map(_memory.storage, parameters))
    return any(_uses(p) - _ALONE >= known[_memory.storage(p)] for p in parameters)


def _uses(tensor: torch.Tensor) -> int:
    return _count(tensor.untyped_storage()._cdata)


_ALONE: Any = _count and _uses(torch.empty(1))
