"""A layer of a fused model: each of its calls asks its group first. torch."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

# What is set in a layer: its member's methods of the same names.
ROUTED = ("forward", "_apply", "_load_from_state_dict", "_replicate_for_data_parallel")


class Asked(Protocol):
    """What a member needs of its group, a `_group.FusedGroup`."""

    packing: Any

    def part(self, index: int, x: Any) -> torch.Tensor | None: ...


class Member:
    """One layer's place in its group."""

    routes = True  # for `stacking`, which knows nothing of this file

    def __init__(self, group: Asked, index: int, layer: nn.Module | None):
        self.group, self.index = group, index
        # Weakly, so that a deleted model is gone at once.
        self._layer: Callable[[], Any] = gone if layer is None else weakref.ref(layer)

    def __getstate__(self) -> dict[str, Any]:
        return {"group": self.group, "index": self.index, "layer": self._layer()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's group learns of those members that were copied with it."""
        Member.__init__(self, **state)
        self.group.packing.layers[self.index] = self._layer

    def forward(self, input: Any, *more: Any, **named: Any) -> Any:
        # The layer may have been given a class whose forward takes more.
        part = None if more or named else self.group.part(self.index, input)
        if part is not None:
            return part
        layer = self._layer()
        if torch.compiler.is_dynamo_compiling():
            return type(layer).forward(layer, input, *more, **named)
        gate, me = self.group.packing.gate, object()
        gate.enter(me)
        try:
            return type(layer).forward(layer, input, *more, **named)
        finally:
            del gate.inside[me]

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """For `.to()` and its like: memory that the weights have left is not kept."""
        layer = self._layer()
        result = type(layer)._apply(layer, fn, recurse)
        self.group.packing.look()
        return result

    def _load_from_state_dict(self, *given: Any, **named: Any) -> None:
        """For `load_state_dict(…, assign=True)`: the same."""
        layer = self._layer()
        type(layer)._load_from_state_dict(layer, *given, **named)
        self.group.packing.look()

    def _replicate_for_data_parallel(self) -> nn.Module:
        """For nn.DataParallel: the layer's copy on another device, on its own there."""
        layer = self._layer()
        replica = type(layer)._replicate_for_data_parallel(layer)
        _forget(replica)
        return replica


def gone() -> None:
    """A reference to a layer that is gone."""


def join(layer: nn.Module, group: Asked, index: int) -> None:
    """Let a layer's calls ask a group, in place."""
    member = Member(group, index, layer)
    for name in ROUTED:
        setattr(layer, name, getattr(member, name))


def member_of(layer: nn.Module) -> Member | None:
    """The Member that a layer's calls go to; None for a layer that is on its own."""
    member = getattr(vars(layer).get("forward"), "__self__", None)
    return member if isinstance(member, Member) else None


def release(layer: nn.Module) -> None:
    """Let a layer compute for itself, with a weight in memory of its own, in place."""
    if member_of(layer) is None:
        return
    _forget(layer)
    for parameter in layer._parameters.values():
        if parameter is not None:
            parameter.data = parameter.data.clone()


def _forget(layer: nn.Module) -> None:
    for name in ROUTED:
        vars(layer).pop(name, None)
