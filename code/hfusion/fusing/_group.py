"""Siblings that compute together, each still itself: what a fused model does at a call.

    layer 0  weight ─┐ ┌───────┐
    layer 1  weight ─┼►│ whole │    x ──► whole ──► y ──► part 0, now
    layer 2  weight ─┘ └───────┘      part 1, when layer 1 is called with x

The weights lie side by side in memory (`_packing`). The first sibling that is called
computes for all of them. Each other one takes its part if everything is still as it was:
the same tensor, not written to since, the same weights, the same modes (`_checks`).
Otherwise, and always while gradients are recorded, a layer computes for itself, as it would
without us. So a wrong guess costs time, and not a wrong answer, but for what follows.

Between the calls of two siblings, two things go unnoticed: a write to x or to a weight that
autograd does not count either, through `.data` or a NumPy array of the same memory; and a
change of how exactly torch computes, such as TF32.

On a path that was not planned, a reader may count on a part without gaps. Then `.view`
fails. `reshape` and `contiguous` copy, so a later write to one no longer reaches the other.
All parts share one memory: `torch.save` saves it whole, and `resize_` may reach the next
part.

What an activation or a convolution makes of a part may have its axes in another order,
above all if the layer has one output channel. This shows only where memory is read by
strides, as by `as_strided`, and where `.view` fails because of it. A plan made with
example_inputs sees the failing `.view` and avoids it.

A packed weight cannot be resized in place. `copy.copy` of a single layer computes with the
layer that it was copied from; use `copy.deepcopy`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..stacking import _memory, windows
from . import _checks, _members, _operators
from ._followers import Then
from ._packing import GONE, Packing, Together

logger = logging.getLogger("hfusion")

WASTED = 8  # so many rounds in a row that served nobody, and a group is switched off
SETTLED = 8  # so many good rounds, and a group may be packed again …
PACKED_AGAIN = 4  # … else it may be, so many times


def route(
    layers: Sequence[Any], names: Sequence[str], dense: Iterable[int] = ()
) -> FusedGroup:
    """Let siblings compute together, in place: each call of one of them asks their group.

    layers: modules that `rules.unstackable` finds no fault with, in the order in which they
    are called; names: their paths, for messages. dense: the indices of those whose readers
    need a contiguous part.
    """
    group = FusedGroup(layers, names, dense)
    with group.packing.gate.lock:
        group.packed(group.packing.move(fresh=True))
    for index, layer in enumerate(layers):
        _members.join(layer, group, index)
    return group


class _Here(threading.local):
    """The round that a thread is at."""

    turn: _checks.Round | None = None


class FusedGroup:
    """Layers that compute together; made by `route`, shared by its members.

    off: why it computes no longer together, in words; "" while it does.
    rounds: how often one product served all, at this group and its copies.
    then: the activation that follows all members, see `_followers`; None if there is none.
    """

    then: Then | None = None

    def __init__(
        self, layers: Sequence[Any], names: Sequence[str], dense: Iterable[int] = ()
    ):
        self.names, self.dense = tuple(names), frozenset(dense)
        self.sizes = tuple(len(layer.weight) for layer in layers)
        self.dim = 1 - layers[0].weight.ndim  # of the output, counted from its end
        # Filters of several sizes lie in zeros, in the largest one's window.
        self.window = windows.common(layers) if windows.mixed(layers) else None
        self.off, self.rounds = "", 0
        self._start([weakref.ref(layer) for layer in layers])

    def _start(self, references: list[Any]) -> None:
        """What no copy takes along."""
        self.packing = Packing(references, self.names, self.sizes, self.window)
        self._moved = False  # whether one of the weights may have left
        self._packings = self._wasted = self._settled = 0
        self._traced: tuple | None = None  # the round that torch.compile is at
        self._apart = False  # whether compiled code is to call each layer
        self._here = _Here()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("names", "dense", "sizes", "dim", "window", "off", "rounds", "then")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start([_members.gone] * len(self.sizes))  # those that are not will say so

    def part(self, index: int, x: Any) -> torch.Tensor | None:
        """What a member's call returns; None where it has to compute for itself."""
        if torch.compiler.is_dynamo_compiling():
            return self._traced_part(index, x)
        here = self._here
        if index == 0 and here.turn is not None:
            self._waste(here)
        turn = here.turn
        if self.off or not (_checks.plain(x) if index == 0 else turn and turn.of(x)):
            return None
        mode = _checks.mode(self.packing.device)
        if mode is None:
            return None
        if mode[0] and self._learns(x):
            self.packing.close_gaps()
            return None
        if turn is None:
            return self._begin(x, mode, here)
        part = turn.take(index, x, mode)
        if part is None:
            self._moved = True
        elif not turn.left:
            here.turn = None
            self.rounds += 1
            self._settled, self._wasted = self._settled + 1, 0
        return part

    def _begin(self, x: torch.Tensor, mode: tuple, here: _Here) -> torch.Tensor | None:
        """One product for all: the first one's part."""
        together = self._whole()
        if together is None:
            return None
        rows, weight, bias = together
        counts = [row.count() for row in rows]
        try:
            y = self._product(x, weight, bias)
        except RuntimeError:  # the layer will say it in its own words
            return None
        parts: Any = _memory.cut(y, self.sizes, self.dim)
        whole = self.then.whole(self, y, parts, mode) if self.then else None
        for index in self.dense:
            parts[index] = _memory.dense(parts[index], y)
        first, parts[0] = parts[0], None
        here.turn = _checks.Round(x, mode, rows, counts, parts, whole)
        if whole is not None:
            whole.mark(0, first)
        return first

    def _whole(self) -> Together | None:
        """Weights side by side; None where that cannot be.

        Only the first member is looked at here: the others are before they take their
        parts, and if one of them does not, at the next call all are.
        """
        packing = self.packing
        together = packing.together
        if together is not None and not self._moved and together[0][0].first():
            return together
        with packing.gate.lock:
            if not packing.in_place() and not self._packs():
                return None
            self._moved = False
            return packing.together

    def _learns(self, x: torch.Tensor) -> bool:
        """Whether a gradient of x or of a parameter will be wanted."""
        if x.requires_grad:
            return True
        members = [m for m in self.packing.members() if m is not None]
        parameters = [p for m in members for p in m._parameters.values()]
        return any(p is not None and p.requires_grad for p in parameters)

    def _product(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        first = self.packing.layers[0]()
        if weight.ndim == 2:
            return F.linear(x, weight, bias)
        if self.window is not None:
            by = self.window.padding, self.window.dilation
            return _operators.CONVOLUTIONS[weight.ndim](x, weight, bias, first.stride, *by)
        return type(first)._conv_forward(first, x, weight, bias)

    def _packs(self) -> bool:
        """Whether the weights could be moved side by side once more."""
        if self._settled >= SETTLED:
            self._packings = 0
        if self._packings == PACKED_AGAIN:
            self._switch_off("their weights keep moving in memory")
        if self.off:
            return False
        reason = self.packing.pack()
        self.packed(reason)
        return not reason

    def packed(self, reason: str) -> None:
        """The weights were moved, or could not be, for a reason."""
        if not reason:
            self._packings, self._settled = self._packings + 1, 0
        elif reason == GONE:
            self._switch_off(reason)
        else:
            self._in_vain(reason)

    def _waste(self, here: _Here) -> None:
        """Some parts of the last round were not fetched."""
        here.turn, self._moved = None, True
        self._in_vain(f"{WASTED} times in a row they were not called together")

    def _in_vain(self, reason: str) -> None:
        self._wasted += 1
        if self._wasted == WASTED:
            self._switch_off(reason)

    def _switch_off(self, reason: str) -> None:
        self.off = f"{', '.join(self.names)} compute separately from now on: {reason}"
        self.packing.together = None
        logger.warning(self.off)

    def _traced_part(self, index: int, x: Any) -> torch.Tensor | None:
        """What `part` does where torch.compile writes down what happens.

        Here no address can be looked at. The operator `product` does so when it runs, and
        `written` asks how often x and the weights were written to.
        """
        packing, layers = self.packing, self.packing.members()
        if self.off or self._apart or self.dense or self.window:
            return None
        if not _operators.traceable(layers, self.sizes, x):
            return None
        if torch.is_grad_enabled() and self._learns(x):
            return None
        weights = [layer.weight for layer in layers]
        biases = [layer.bias for layer in layers]
        if tuple(bias is not None for bias in biases) != packing.biased:
            return None
        tensors = [x, *weights, *biases]
        written = torch.ops.hfusion.written(tensors)
        if written.shape[0] == 0:
            return None
        turn, self._traced = self._traced, None
        if index == 0 and turn is None:
            whole = packing.together[1:] if packing.together else (None, None)
            settings: Any = _operators.settings_of(layers[0])
            y = torch.ops.hfusion.product(x, weights, biases, *whole, *settings)
            turn = tensors, written, list(y.split(self.sizes, self.dim))
        elif turn is None:
            return None
        elif index == 0 or not _operators.still(turn, tensors, written):
            self._apart = True
            return None
        part, turn[2][index] = turn[2][index], None
        if index < len(self.sizes) - 1:
            self._traced = turn
        return part
