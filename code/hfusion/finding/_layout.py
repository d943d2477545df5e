"""Notes, in a run, which readers of strided parts need them contiguous."""

import contextlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..stacking import _memory
from . import _names

# Calls that depend on how memory is laid out: they get a contiguous part …
_ASKS = _names.LAYOUT | {"is_contiguous"}
# … and these do so unless their result shares the part's memory: they copy, or fail.
_TRIES = _names.MAY_COPY | {"view_as_complex"}


class _Part(NamedTuple):
    """The output of a layer, as a part of a tensor for all siblings."""

    path: str
    rows: torch.Size  # the sizes before the axis of the cut
    whole: torch.Tensor  # keeps the memory, by which the part is known


class _View(NamedTuple):
    """A view of a part, which for another batch may be a copy, and then miss a write."""

    path: str
    name: str
    view: torch.Tensor
    version: int


def strided(
    watch: "Watch", path: str, sizes: Sequence[int], index: int, dim: int
) -> Callable[[nn.Module, tuple, torch.Tensor], torch.Tensor]:
    """A forward hook that makes a layer's output a part of a tensor for all siblings.

    sizes: channels of each sibling. index: which of them the layer is. dim: the axis of
    the channels, counted from the end.
    """

    def hand_on(module: nn.Module, given: tuple, y: torch.Tensor) -> torch.Tensor:
        # The strides of one channel do not say where that axis lies. Of several with
        # another channel's stride, it lies innermost.
        axes = sorted(range(y.ndim), key=lambda axis: axis == dim % y.ndim)
        order = sorted(axes, key=y.stride, reverse=True)
        shape = list(y.shape)
        shape[dim] = sum(sizes)
        whole = torch.empty_permuted(shape, order, dtype=y.dtype, device=y.device)
        part = whole.unsafe_split_with_sizes(sizes, dim)[index].copy_(y)
        watch.parts[_memory.storage(part)] = _Part(path, part.shape[:dim], whole)
        return part

    return hand_on


class Watch(TorchFunctionMode):
    """Notes the layers whose parts have a reader that depends on their layout.

    parts: by their memory. asking: {path of a layer: what the reader is called}.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[Hashable, _Part] = {}
        self.asking: dict[str, str] = {}
        self._views: list[_View] = []

    def written(self) -> dict[str, str]:
        """The layers whose parts were written to after a call that views or copies them."""
        changed = (one for one in self._views if one.view._version != one.version)
        return {one.path: f"`{one.name}`" for one in changed if one.path not in self.asking}

    def __torch_function__(
        self,
        function: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        packet = getattr(function, "overloadpacket", function)  # aten.view.default
        name = getattr(packet, "__name__", "")
        part, tensor = None, args[0] if args else None
        if (name in _ASKS or name in _TRIES) and isinstance(tensor, torch.Tensor):
            part = self.parts.get(_memory.storage(tensor))

        def call(x: torch.Tensor) -> Any:
            return function(x, *args[1:], **kwargs or {})

        if part is None or tensor is None:
            return function(*args, **kwargs or {})
        if _memory.is_dense(tensor):
            return self._read_dense(part, name, tensor, call)
        return self._read_strided(part, name, tensor, call)

    def _read_dense(
        self, part: _Part, name: str, tensor: torch.Tensor, call: Callable
    ) -> Any:
        """A call that reads a part which happens to be in one piece, or a view of it."""
        result = call(tensor)
        rows = part.rows
        # One row or image is in one piece by chance: of more, such a view cannot be.
        if name == "view" and result.shape[: len(rows)] != rows and rows.numel() == 1:
            self.asking.setdefault(part.path, f"`{name}`")
        self._keep(part, name, tensor, result)
        return result

    def _read_strided(
        self, part: _Part, name: str, tensor: torch.Tensor, call: Callable
    ) -> Any:
        """A call that reads a strided part, or a view of it."""
        alone = _memory.dense(tensor, tensor)  # as the layer's own output would lie there
        if name in _TRIES:
            with contextlib.suppress(RuntimeError):  # a view that cannot be
                result = call(tensor)
                if _memory.storage(result) == _memory.storage(tensor):
                    self._keep(part, name, tensor, result)
                    return result
                if _memory.storage(call(alone)) != _memory.storage(alone):
                    return result  # it copies either way
        # A copy costs as much here as there, and then it is plain what shares memory.
        self.asking.setdefault(part.path, f"`{name}`")
        return call(alone)

    def _keep(self, part: _Part, name: str, tensor: torch.Tensor, result: Any) -> None:
        """Remember a result that shares the memory of a part."""
        shares = torch.is_tensor(result)
        shares = shares and _memory.storage(result) == _memory.storage(tensor)
        if name in _TRIES and shares and not result.is_inference():
            self._views.append(_View(part.path, name, result, result._version))
