"""The weights of siblings, side by side in one memory. torch.

Each layer keeps its own Parameter at its own path; only their numbers are neighbours in
memory, as those of nn.LSTM are after `flatten_parameters`. The first call after weights
have moved away moves them again. Calls in other threads wait for it; other readers and
writers of weights must not run meanwhile.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..stacking import _memory, rules, windows
from . import _checks, _members
from ._gate import Gate

Together = tuple[list[_checks.Row], torch.Tensor, torch.Tensor | None]
GONE = "one of them is gone"


class Packing:
    """The memory that a group's weights share.

    layers: weak references to the members. window: the one in which filters of several
    sizes lie, in zeros; None where all have one size. together: each member's row, the
    whole weight and the whole bias; None where the weights do not lie side by side.
    """

    def __init__(
        self, references: list[Callable[[], Any]], names: Sequence[str],
        sizes: tuple[int, ...], window: windows.Window | None,
    ):  # fmt: skip
        self.layers, self.names, self.sizes, self.window = references, names, sizes, window
        self.together: Together | None = None
        self.biased: tuple[bool, ...] = ()  # which ones have a bias, for torch.compile
        self.device = torch.device("cpu")
        self.gate = Gate()
        self._gaps = window is not None  # whether weights may lie in zeros
        if self._gaps:
            _watch_steps()
            _in_windows.add(self)

    def members(self) -> list[Any]:
        """The layers; None for each that is gone."""
        return [reference() for reference in self.layers]

    def in_place(self) -> bool:
        """Whether all weights lie where they were moved to."""
        return self.together is not None and all(row.first() for row in self.together[0])

    def look(self) -> None:
        """Let go of memory that the weights have left."""
        with self.gate.lock:
            if not self.in_place():
                self.together = None

    def pack(self) -> str:
        """Move the weights side by side; why that could not be, or "". Under the lock."""
        try:
            with self.gate.closed() as alone:
                if alone:
                    return self.move()
            return "other threads keep computing with their weights"
        except RuntimeError as error:  # there may be no memory left for it
            return f"they cannot be moved: {error}"

    def move(self, fresh: bool = False) -> str:
        """The same, with nobody to wait for.

        fresh: nobody else can know yet where the numbers were.
        """
        members = self.members()
        self.together = None
        if None in members:
            _disband(members)
            return GONE
        if reason := self._unfit(members):
            return reason
        if not fresh and _checks.known_to_others(*members):
            return "other tensors share the memory of their weights"
        with torch.inference_mode(False), torch.no_grad():
            whole, places = self._side_by_side(members)
            bias = _memory.whole_bias([m.bias for m in members], self.sizes, whole)
        own = [None] * len(places) if bias is None else bias.split(self.sizes)
        self.device, self._gaps = whole.device, self.window is not None
        self.together = [*map(_checks.Row, members, places, own)], whole, bias
        self.biased = tuple(m.bias is not None for m in members)
        return ""

    def _side_by_side(self, members: list[Any]) -> tuple[torch.Tensor, Sequence[Any]]:
        """(the whole, the place of each weight in it)."""
        weights = [layer.weight for layer in members]
        if self.window is None:
            whole = _memory.room(weights)
            places = whole.split(self.sizes)
        else:
            whole, places = windows.room(members, self.window)
        _memory.move(weights, places)
        return whole, places

    def _unfit(self, members: list[Any]) -> str:
        """Why members cannot lie side by side (now), in words; "" if they can."""
        named = dict(zip(self.names, members, strict=True))
        # First of all: reading a parametrised weight may change it.
        reasons = itertools.starmap(_checks.unmovable, named.items())
        if reason := next(filter(None, reasons), ""):
            return reason
        if tuple(len(layer.weight) for layer in members) != self.sizes:
            return "their sizes have changed"
        if len({_margins(layer) for layer in members}) > 1:
            return "their paddings differ"
        if self.window is not None and windows.common(members) != self.window:
            return "their windows have changed"
        if self.window is not None and any(m.weight.grad is not None for m in members):
            return "their weights have gradients, so they may be trained"
        return rules.unstackable(named, self.window is not None, rules.KEPT)

    def close_gaps(self, steps: set[int] | None = None) -> None:
        """Give weights in zeros memory of their own before they are trained: torch's fused
        optimisers write to the memory of a weight as if it had no gaps.

        steps: the ids of what an optimiser is about to change; else what learns.
        """
        if not self._gaps:
            return
        with self.gate.lock, torch.no_grad():
            weights = [m and m._parameters.get("weight") for m in self.members()]
            weights = [weight for weight in weights if weight is not None]
            if any(id(w) in steps if steps else w.requires_grad for w in weights):
                self.together, self._gaps = None, False
                with self.gate.closed():
                    for weight in weights:
                        _memory.close(weight)


def _margins(layer: Any) -> tuple[int, ...] | None:
    """What a convolution really pads with where it does not pad with zeros, if at all."""
    if getattr(layer, "padding_mode", "zeros") == "zeros":
        return None
    margins = tuple(layer._reversed_padding_repeated_twice)
    return margins if any(margins) else None


def _disband(members: list[nn.Module | None]) -> None:
    """Move what is left of a group out of the memory of those that are gone."""
    for layer in members:
        if layer is None or _members.member_of(layer) is None:
            continue
        if not _checks.known_to_others(layer) and not _checks.unmovable("", layer):
            _members.release(layer)


_in_windows: weakref.WeakSet[Packing] = weakref.WeakSet()  # weights may lie in zeros


def _before_step(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """A hook of all optimisers: forward is not always asked, so gaps may still be there."""
    if not torch.compiler.is_dynamo_compiling():
        steps = {id(p) for group in optimiser.param_groups for p in group["params"]}
        for packing in [*_in_windows]:
            packing.close_gaps(steps)


@functools.cache  # once
def _watch_steps() -> None:
    register_optimizer_step_pre_hook(_before_step)
