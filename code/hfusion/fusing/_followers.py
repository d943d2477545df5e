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

import torch

from ..errors import FusionError
from ..stacking import _memory, rules
from . import _checks

logger = logging.getLogger("hfusion")

WASTED = 8  # so many results in a row that nobody wanted, and a group makes no more
FORWARD = {kind: kind.forward for kind in rules.POINTWISE}
_SETTINGS = {kind: tuple(getattr(kind, "__constants__", ())) for kind in FORWARD}


def route(group, modules, hoist=False):
    """Let the activations that follow a group's members be applied at once, in place.

    group: a `_packing.Group`. modules: the activation after each member, in order, perhaps
    one module several times. hoist: also where the parts have gaps in memory; then the
    results have gaps too, and `.view` may fail. Raises FusionError, see `refusal`.
    """
    if reason := refusal(modules):
        raise FusionError(f"modules: {reason}")
    for module in modules:
        if follower_of(module) is None:
            module.forward = Follower(module).forward
    group.then = Then(_key(modules[0]), hoist)


def refusal(modules):
    """Why these cannot be applied at once, in words; "" if they can.

    >>> refusal([torch.nn.ReLU(), torch.nn.SiLU()])
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


def follower_of(module):
    """The Follower that an activation's calls go to; None if there is none."""
    follower = getattr(vars(module).get("forward"), "__self__", None)
    return follower if isinstance(follower, Follower) else None


def release(module):
    """Let an activation compute for itself again, in place; whatever else stays."""
    if follower_of(module):
        del module.forward


def _key(module):
    """What decides, besides its input, what an activation returns."""
    kind, own = type(module), module.__dict__
    return kind, [own.get(name) for name in _SETTINGS.get(kind, ())]


class Follower:
    """An activation's `forward`, whichever groups it follows: the tensor knows that."""

    routes = True  # see `_packing.Member`

    def __init__(self, module):
        self._module = weakref.ref(module)

    def __getstate__(self):
        return {"module": self._module()}

    def __setstate__(self, state):
        self.__init__(**state)

    def forward(self, input, *more, **named):
        module = self._module()
        if not (more or named or torch.compiler.is_dynamo_compiling()):
            mark = _here.marks.get(id(input))
            if mark is not None and mark() is input:
                result = mark.take(input, module)
                if result is not None:
                    return result
        return type(module).forward(module, input, *more, **named)


class Then:
    """What follows all members of a group; a copied group has a copy.

    off: why it is applied to each part from now on, in words; "" while it is not.
    """

    def __init__(self, key, hoist):
        self.key, self.hoist, self.off, self.wasted = key, hoist, "", 0

    def whole(self, group, y, parts, mode):
        """A _Whole for one round; None where results would have gaps and must not."""
        in_one_piece = parts[0].is_contiguous()  # then the others are too
        if self.off or not (in_one_piece or (self.hoist and not group.dense)):
            return None
        return _Whole(self, group, y, mode)

    def waste(self, names):
        """Nobody wanted a result."""
        self.wasted += 1
        if self.wasted == WASTED:
            self.off = (
                f"what follows {', '.join(names)} is applied to each from now on: "
                f"{WASTED} results in a row were not wanted"
            )
            logger.warning(self.off)


class _Whole:
    """One round: what all layers computed; later, what the activation makes of it."""

    __slots__ = ("group", "left", "mode", "results", "then", "y")

    def __init__(self, then, group, y, mode):
        self.then, self.group, self.y, self.mode = then, group, y, mode
        self.left, self.results = len(group.sizes), None

    def mark(self, index, part):
        """Remember, in this thread, whose part a tensor is, as long as it lives."""
        mark = _Mark(part, _forget)
        mark.whole, mark.index, mark.key, mark.marks = self, index, id(part), _here.marks
        mark.was = part._version, _checks._place(part)
        mark.marks[mark.key] = mark

    def end(self):
        """No more parts will be asked for: let go of everything."""
        self.y = self.results = None

    def compute(self, module):
        """Apply an activation to all parts; whether that could be."""
        y, self.y, group = self.y, None, self.group
        if y is None:
            return False
        y = FORWARD[type(module)](module, y)
        self.results = _memory.cut(y, group.sizes, group.dim)
        return True


class _Mark(weakref.ref):
    """Whose part a tensor is, and what it was when its layer returned it."""

    __slots__ = ("index", "key", "marks", "was", "whole")

    def take(self, part, module):
        """The part's result, once; None if anything is not as it was."""
        whole, index = self.whole, self.index
        if (part._version, _checks._place(part)) != self.was or part.requires_grad:
            return None
        kind = type(module)
        if _key(module) != whole.then.key or kind.forward is not FORWARD[kind]:
            return None
        if _checks.mode(whole.group.device) != whole.mode:
            return None
        if whole.results is None and not whole.compute(module):
            return None
        del self.marks[self.key]
        result, whole.results[index] = whole.results[index], None
        whole.left -= 1
        if not whole.left:
            whole.then.wasted = 0
        return result


def _forget(mark):
    """A part is gone, and nobody can ask for its result any more."""
    mark.marks.pop(mark.key, None)
    results = mark.whole.results
    if results is not None:
        results[mark.index] = None
        mark.whole.then.waste(mark.whole.group.names)


class _Here(threading.local):
    """The parts that a thread knows: {id: mark}."""

    def __init__(self):
        self.marks = {}


_here = _Here()
