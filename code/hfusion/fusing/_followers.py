"""One activation for siblings that compute together, in a model that stays as it is. torch.

    y ──► part 0 ──► relu called ──► relu(y), once ──► its part 0, now
          part 1 ──► relu called ─────────────────────► its part 1
          part 2 ──► something else reads it: it is what layer 2 computed

The first activation that is called with a part is applied to all of them. The other parts
get their share of the result when an activation with the same settings is called with
exactly that tensor, not written to since its layer returned it. Otherwise an activation
computes for itself, as it would without us.
"""

import logging
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import FusionError
from ..stacking import _memory, rules
from . import _checks

logger = logging.getLogger("hfusion")

WASTED = 8  # so many unwanted results in a row, and a group makes no more
FORWARD: dict[Any, Any] = {kind: kind.forward for kind in rules.POINTWISE}
_SETTINGS = {kind: tuple(getattr(kind, "__constants__", ())) for kind in FORWARD}


class Followed(Protocol):
    """What is asked of a group, a `_group.FusedGroup`."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    dense: frozenset[int]
    dim: int
    packing: Any
    then: "Then | None"


def route(group: Followed, modules: Sequence[nn.Module], hoist: bool = False) -> None:
    """Let the activations that follow a group's members be applied at once, in place.

    modules: the activation after each member, in order, perhaps
    one module several times. hoist: also where the parts have gaps in memory; then the
    results have gaps too, and `.view` may fail. Raises FusionError, see `unfit`.
    """
    if reason := unfit(modules):
        raise FusionError(f"modules: {reason}")
    for module in modules:
        if follower_of(module) is None:
            vars(module)["forward"] = Follower(module).forward
    group.then = Then(_key(modules[0]), hoist)


def unfit(modules: Sequence[nn.Module]) -> str:
    """Why these cannot be applied at once, in words; "" if they can.

    >>> unfit([torch.nn.ReLU(), torch.nn.SiLU()])
    'expected one kind and one setting, got ReLU() and SiLU()'
    """
    for module in modules:
        if type(module) not in FORWARD or getattr(module, "inplace", False):
            return f"expected pointwise activations, not in place, got {module}"
        if follower_of(module) is None and "forward" in vars(module):
            return f"expected the forward of its class, got a {module} with its own"
        if _key(module) != _key(modules[0]):
            return f"expected one kind and one setting, got {modules[0]} and {module}"
    return ""


def follower_of(module: nn.Module) -> "Follower | None":
    """The Follower that an activation's calls go to; None if there is none."""
    follower = getattr(vars(module).get("forward"), "__self__", None)
    return follower if isinstance(follower, Follower) else None


def release(module: nn.Module) -> None:
    """Let an activation compute for itself again, in place; whatever else stays."""
    if follower_of(module):
        del vars(module)["forward"]


def _key(module: nn.Module) -> tuple[type, list]:
    """What decides, besides its input, what an activation returns."""
    kind, own = type(module), module.__dict__
    return kind, [own.get(name) for name in _SETTINGS.get(kind, ())]


class Follower:
    """An activation's `forward`, whichever groups it follows: the tensor knows that."""

    routes = True  # see `_members.Member`

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self._module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Follower.__init__(self, **state)

    def forward(self, input: Any, *more: Any, **named: Any) -> Any:
        module: Any = self._module()
        if not (more or named or torch.compiler.is_dynamo_compiling()):
            mark: Any = _here.marks.get(id(input))
            if mark is not None and mark() is input:
                result = mark.take(input, module)
                if result is not None:
                    return result
        return type(module).forward(module, input, *more, **named)


class Then:
    """What follows all members of a group; a copied group has a copy.

    off: why it is applied to each part from now on, in words; "" while it is not.
    """

    def __init__(self, key: tuple[type, list], hoist: bool):
        self.key, self.hoist, self.off, self.wasted = key, hoist, "", 0

    def whole(
        self, group: Followed, y: torch.Tensor, parts: list[Any], mode: tuple
    ) -> "Whole | None":
        """A Whole for one round; None where results would have gaps and must not."""
        in_one_piece = parts[0].is_contiguous()  # then the others are too
        if self.off or not (in_one_piece or (self.hoist and not group.dense)):
            return None
        return Whole(self, group, y, mode)

    def waste(self, names: Sequence[str]) -> None:
        """A result was not wanted."""
        self.wasted += 1
        if self.wasted == WASTED:
            self.off = (
                f"what follows {', '.join(names)} is applied to each from now on: "
                f"{WASTED} results in a row were not wanted"
            )
            logger.warning(self.off)


class Whole:
    """One round: what all layers computed; later, what the activation makes of it."""

    __slots__ = ("group", "left", "mode", "results", "then", "y")

    def __init__(self, then: Then, group: Followed, y: torch.Tensor, mode: tuple):
        self.then, self.group, self.mode = then, group, mode
        self.y: torch.Tensor | None = y
        self.results: list[Any] | None = None
        self.left = len(group.sizes)

    def mark(self, index: int, part: torch.Tensor) -> None:
        """Remember, in this thread, whose part a tensor is, as long as it lives."""
        mark = _Mark(part, _forget)
        mark.whole, mark.index, mark.key, mark.marks = self, index, id(part), _here.marks
        mark.was = part._version, _checks.place_of(part)
        mark.marks[mark.key] = mark

    def end(self) -> None:
        """No more parts will be asked for: let go of everything."""
        self.y = self.results = None

    def compute(self, module: nn.Module) -> list[Any] | None:
        """Apply an activation to all parts; the results, or None where y is gone."""
        y, self.y, group = self.y, None, self.group
        if y is not None:
            y = FORWARD[type(module)](module, y)
            self.results = _memory.cut(y, group.sizes, group.dim)
        return self.results


class _Mark(weakref.ref):
    """Whose part a tensor is, and what it was when its layer returned it."""

    __slots__ = ("index", "key", "marks", "was", "whole")
    index: int
    key: int
    marks: "dict[int, _Mark]"
    was: tuple
    whole: Whole

    def take(self, part: torch.Tensor, module: nn.Module) -> torch.Tensor | None:
        """The part's result, once; None if anything is not as it was."""
        whole, index = self.whole, self.index
        if (part._version, _checks.place_of(part)) != self.was or part.requires_grad:
            return None
        kind = type(module)
        if _key(module) != whole.then.key or kind.forward is not FORWARD[kind]:
            return None
        if _checks.mode(whole.group.packing.device) != whole.mode:
            return None
        results = whole.results or whole.compute(module)
        if results is None:
            return None
        del self.marks[self.key]
        result, results[index] = results[index], None
        whole.left -= 1
        if not whole.left:
            whole.then.wasted = 0
        return result


def _forget(mark: Any) -> None:
    """A part is gone, so its result cannot be asked for any more."""
    mark.marks.pop(mark.key, None)
    results = mark.whole.results
    if results is not None:
        results[mark.index] = None
        mark.whole.then.waste(mark.whole.group.names)


class _Here(threading.local):
    """The parts that a thread knows: {id: mark}."""

    def __init__(self) -> None:
        self.marks: dict[int, _Mark] = {}


_here = _Here()
