"""Siblings side by side in memory, each still itself: what a fused model does at a call.

    layer 0  weight ─┐ ┌───────┐
    layer 1  weight ─┼►│ whole │    x ──► whole ──► y ──► part 0, now
    layer 2  weight ─┘ └───────┘      part 1, when layer 1 is called with x

Each layer keeps its own Parameter at its own path; only their numbers are neighbours in
memory, as those of nn.LSTM are after `flatten_parameters`. The first sibling that is called
computes for all of them. Each other one takes its part if everything is still as it was:
the same tensor, not written to since, the same weights, the same modes. Otherwise, and
always while gradients are recorded, a layer computes for itself, as it would without us. So
the answer never depends on whether a guess was right; only the time does.

What is not noticed, between the calls of two siblings: a write to x or to a weight that
autograd does not count either, through `.data` or a NumPy array of the same memory; and a
change of how exactly torch computes, such as TF32.

On a path that was not planned, a reader may count on a part without gaps. Then `.view`
fails. `reshape` and `contiguous` copy, and a later write to one is none to the other. All
parts share one memory: `torch.save` saves it whole, and `resize_` may reach the next part.
A convolution that reads a part may lay out its output in another order of axes; only who
reads memory by strides, as `as_strided` does, sees that.

The first call after weights have moved moves them again. Calls in other threads wait for
it; whoever reads or writes weights in another way must not do so meanwhile. A packed weight
cannot be resized in place. `copy.copy` of a single layer computes with the layer that it
was copied from; use `copy.deepcopy`.
"""

import contextlib
import functools
import itertools
import logging
import threading
import time
import weakref

import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..stacking import _memory, rules, windows
from . import _checks, _operators

logger = logging.getLogger("hfusion")

WASTED = 8  # so many rounds in a row that served nobody, and a group is switched off
SETTLED = 8  # so many good rounds, and a group may be packed again …
PACKED_AGAIN = 4  # … else it may be, so many times
PATIENCE = 100  # ms to wait for other threads before weights move
# What is set in a layer.
_ROUTED = ("forward", "_apply", "_load_from_state_dict", "_replicate_for_data_parallel")


def route(members, names, dense=()):
    """Let siblings compute together, in place: each call of one of them asks their group.

    members: modules that `rules.refusal` finds no fault with, in the order in which they
    are called; names: their paths, for messages. dense: the indices of those whose readers
    need a contiguous part.
    """
    group = Group(members, names, dense)
    with group._lock:
        group._pack(fresh=True)
    for index, layer in enumerate(members):
        member = Member(group, index, layer)
        layer.forward = member.forward
        layer._apply = member.apply
        layer._load_from_state_dict = member.load
        layer._replicate_for_data_parallel = member.replica
    return group


def member_of(layer):
    """The Member that a layer's calls go to; None for a layer that is on its own."""
    member = getattr(vars(layer).get("forward"), "__self__", None)
    return member if isinstance(member, Member) else None


def release(layer):
    """Let a layer compute for itself, with a weight in memory of its own, in place."""
    if member_of(layer) is None:
        return
    for name in _ROUTED:
        vars(layer).pop(name, None)
    for parameter in layer._parameters.values():
        if parameter is not None:
            parameter.data = parameter.data.clone()


class Member:
    """One layer's place in its group; `layer.forward` is its `forward`."""

    routes = True  # for `layers`, which knows nothing of this file

    def __init__(self, group, index, layer):
        vars(self).update(group=group, index=index)
        self._layer = weakref.ref(layer)  # so that a deleted model is gone at once

    def __getstate__(self):
        return {"group": self.group, "index": self.index, "layer": self._layer()}

    def __setstate__(self, state):
        """A copy's group learns of those members that were copied with it."""
        self.__init__(**state)
        self.group._layers[self.index] = self._layer

    def forward(self, input, *more, **named):
        # Somebody may give a layer a class whose forward takes more.
        part = None if more or named else self.group.part(self.index, input)
        if part is not None:
            return part
        layer = self._layer()
        if torch.compiler.is_dynamo_compiling():
            return type(layer).forward(layer, input, *more, **named)
        group, me = self.group, object()
        group.enter(me)
        try:
            return type(layer).forward(layer, input, *more, **named)
        finally:
            del group.inside[me]

    def apply(self, fn, recurse=True):
        """For `.to()` and its like: memory that the weights have left is not kept."""
        layer = self._layer()
        result = type(layer)._apply(layer, fn, recurse)
        self.group.look()
        return result

    def load(self, *given, **named):
        """For `load_state_dict(…, assign=True)`: the same."""
        layer = self._layer()
        type(layer)._load_from_state_dict(layer, *given, **named)
        self.group.look()

    def replica(self):
        """For nn.DataParallel: the layer's copy on another device, on its own there."""
        layer = self._layer()
        replica = type(layer)._replicate_for_data_parallel(layer)
        for name in _ROUTED:
            vars(replica).pop(name, None)
        return replica


def _margins(layer):
    """What a convolution really pads with where it does not pad with zeros, if at all."""
    if getattr(layer, "padding_mode", "zeros") == "zeros":
        return None
    margins = tuple(layer._reversed_padding_repeated_twice)
    return margins if any(margins) else None


class _Here(threading.local):
    """The round that a thread is at."""

    turn = None


class Group:
    """Layers that compute together; made by `route`, shared by its members.

    off: why it computes no longer together, in words; "" while it does.
    rounds: how often one product served all, at this group and its copies.
    then: the activation that follows all members, see `followers`; None if there is none.
    """

    then = None

    def __init__(self, layers, names, dense=()):
        self.names, self.dense = tuple(names), frozenset(dense)
        self.sizes = tuple(len(layer.weight) for layer in layers)
        self.dim = 1 - layers[0].weight.ndim  # of the output, counted from its end
        # Filters of several sizes lie in zeros, in the largest one's window.
        self.window = windows.common(layers) if windows.mixed(layers) else None
        self.off, self.rounds = "", 0
        self._start([weakref.ref(layer) for layer in layers])

    def _start(self, layers):
        """What no copy takes along."""
        self._layers = layers
        self._together = None  # (rows, weight, bias), where they lie side by side
        self._moved = False  # whether one of the weights may have left
        self._packed = self._wasted = self._settled = 0
        self._biased = ()  # which ones have a bias, for torch.compile
        self._traced = None  # the round that torch.compile is at
        self._apart = False  # whether compiled code is to call each layer
        self.device = torch.device("cpu")
        self._here, self._lock = _Here(), threading.RLock()
        self.inside = {}  # who computes with a weight now, and in which thread
        self._moving = False  # whether nobody may begin to
        self._gaps = self.window is not None  # whether weights may lie in zeros
        if self._gaps:
            _watch_steps()
            _in_windows.add(self)

    def __getstate__(self):
        kept = ("names", "dense", "sizes", "dim", "window", "off", "rounds", "then")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state):
        vars(self).update(state)
        self._start([_gone] * len(self.sizes))  # those that are not will say so

    def part(self, index, x):
        """What a member's call returns; None where it has to compute for itself."""
        if torch.compiler.is_dynamo_compiling():
            return self._traced_part(index, x)
        here = self._here
        if index == 0 and here.turn is not None:
            self._waste(here)
        turn = here.turn
        if self.off or not (_checks.plain(x) if index == 0 else turn and turn.of(x)):
            return None
        mode = _checks.mode(self.device)
        if mode is None:
            return None
        if mode[0] and self._learns(x):
            self.close_gaps()
            return None
        if index == 0:
            return self._begin(x, mode, here)
        part = turn.take(index, x, mode)
        if part is None:
            self._moved = True
        elif not turn.left:
            here.turn = None
            self.rounds += 1
            self._settled, self._wasted = self._settled + 1, 0
        return part

    def enter(self, me):
        """Where a layer computes for itself: its weight does not move meanwhile."""
        self.inside[me] = threading.get_ident()
        if self._moving:
            del self.inside[me]
            with self._lock:  # until they have moved
                self.inside[me] = threading.get_ident()

    @contextlib.contextmanager
    def _quiet(self):
        """Weights may move in it if it yields True; who wants to compute waits."""
        self._moving = True
        try:
            yield self._alone()
        finally:
            self._moving = False

    def _alone(self):
        """Wait until no other thread computes with a weight; whether that is so by now."""
        me = threading.get_ident()
        for _ in range(PATIENCE):
            if not {*self.inside.copy().values()} - {me}:
                return True
            time.sleep(0.001)
        return False

    def _begin(self, x, mode, here):
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
        parts = _memory.cut(y, self.sizes, self.dim)
        whole = self.then and self.then.whole(self, y, parts, mode)
        for index in self.dense:
            parts[index] = _memory.dense(parts[index], y)
        first, parts[0] = parts[0], None
        here.turn = _checks.Round(x, mode, rows, counts, parts, whole)
        if whole is not None:
            whole.mark(0, first)
        return first

    def _whole(self):
        """(rows, weight, bias); None where the weights cannot lie side by side.

        Only the first member is looked at here: the others are before they take their
        parts, and if one of them does not, at the next call all are.
        """
        together = self._together
        if together is not None and not self._moved and together[0][0].first():
            return together
        with self._lock:
            if not self._in_place() and not (self._may_pack() and self._pack_if_it_fits()):
                return None
            self._moved = False
            return self._together

    def _in_place(self):
        return self._together is not None and all(row.first() for row in self._together[0])

    def _learns(self, x):
        """Whether a gradient of x or of a parameter will be wanted."""
        if x.requires_grad:
            return True
        members = [reference() for reference in self._layers]
        parameters = [p for m in members if m is not None for p in m._parameters.values()]
        return any(p is not None and p.requires_grad for p in parameters)

    def _product(self, x, weight, bias):
        first = self._layers[0]()
        if weight.ndim == 2:
            return F.linear(x, weight, bias)
        if self.window is not None:
            by = self.window.padding, self.window.dilation
            return _operators.CONVOLUTIONS[weight.ndim](x, weight, bias, first.stride, *by)
        return type(first)._conv_forward(first, x, weight, bias)

    def _waste(self, here):
        """Some parts of the last round were not fetched."""
        here.turn, self._moved = None, True
        self._in_vain(f"{WASTED} times in a row they were not called together")

    def _in_vain(self, reason):
        self._wasted += 1
        if self._wasted == WASTED:
            self._switch_off(reason)

    def _may_pack(self):
        if self._settled >= SETTLED:
            self._packed = 0
        if self._packed == PACKED_AGAIN:
            self._switch_off("their weights keep moving in memory")
        return not self.off

    def _switch_off(self, reason):
        self.off = f"{', '.join(self.names)} compute separately from now on: {reason}"
        self._together = None
        logger.warning(self.off)

    def close_gaps(self, steps=None):
        """Windows in zeros are not trained there: torch's fused optimisers write to the
        memory of a weight as if it had no gaps.

        steps: the ids of what an optimiser is about to change; else what learns.
        """
        if not self._gaps:
            return
        with self._lock, torch.no_grad():
            members = [reference() for reference in self._layers]
            weights = [m and m._parameters.get("weight") for m in members]
            weights = [weight for weight in weights if weight is not None]
            if any(id(w) in steps if steps else w.requires_grad for w in weights):
                self._together, self._gaps = None, False
                with self._quiet():
                    for weight in weights:
                        _memory.close(weight)

    def look(self):
        """Let go of memory that the weights have left."""
        with self._lock:
            if not self._in_place():
                self._together = None

    def _pack_if_it_fits(self):
        try:
            with self._quiet() as alone:
                if alone:
                    return self._pack()
            self._in_vain("other threads keep computing with their weights")
        except RuntimeError as error:  # there may be no memory left for it
            self._in_vain(f"they cannot be moved: {error}")
        return False

    def _pack(self, fresh=False):
        """Move the members' numbers side by side; whether that could be.

        fresh: nobody else can know yet where the numbers were.
        """
        members = [reference() for reference in self._layers]
        self._together = None
        if None in members:
            _part(members)
            self._switch_off("one of them is gone")
            return False
        if not fresh and _checks.shared(*members):
            self._in_vain("other tensors share the memory of their weights")
            return False
        if reason := self._unfit(members):
            self._in_vain(reason)
            return False
        with torch.inference_mode(False), torch.no_grad():
            whole, places = self._side_by_side(members)
            bias = _memory.whole_bias([m.bias for m in members], self.sizes, whole)
        own = [None] * len(places) if bias is None else bias.split(self.sizes)
        self.device, self._gaps = whole.device, self.window is not None
        self._together = [*map(_checks.Row, members, places, own)], whole, bias
        self._biased = tuple(m.bias is not None for m in members)
        self._packed, self._settled = self._packed + 1, 0
        return True

    def _side_by_side(self, members):
        """(the whole, the place of each weight in it)."""
        weights = [layer.weight for layer in members]
        if self.window is None:
            whole = _memory.room(weights)
            places = whole.split(self.sizes)
        else:
            whole, places = windows.room(members, self.window)
        _memory.move(weights, places)
        return whole, places

    def _unfit(self, members):
        """Why members cannot lie side by side (now), in words; "" if they can."""
        named = dict(zip(self.names, members, strict=True))
        # First of all: whoever reads a parametrised weight may change it.
        if reason := next(
            filter(None, itertools.starmap(_checks.unmovable, named.items())), ""
        ):
            return reason
        if tuple(len(layer.weight) for layer in members) != self.sizes:
            return "their sizes have changed"
        if len({_margins(layer) for layer in members}) > 1:
            return "their paddings differ"
        if self.window is not None and windows.common(members) != self.window:
            return "their windows have changed"
        if self.window is not None and any(m.weight.grad is not None for m in members):
            return "their weights have gradients, so they may be trained"
        return rules.refusal(named, self.window is not None, rules.KEPT)

    def _traced_part(self, index, x):
        """What `part` does where torch.compile writes down what happens.

        Here no address can be looked at. The operator `product` does so when it runs, and
        `written` asks how often x and the weights were written to.
        """
        layers = [reference() for reference in self._layers]
        if self.off or self._apart or self.dense or self.window:
            return None
        if not _operators.traceable(layers, self.sizes, x):
            return None
        if torch.is_grad_enabled() and self._learns(x):
            return None
        weights = [layer.weight for layer in layers]
        biases = [layer.bias for layer in layers]
        if tuple(bias is not None for bias in biases) != self._biased:
            return None
        tensors = [x, *weights, *biases]
        written = torch.ops.hfusion.written(tensors)
        if written.shape[0] == 0:
            return None
        turn, self._traced = self._traced, None
        if index == 0 and turn is None:
            whole = self._together[1:] if self._together else (None, None)
            y = torch.ops.hfusion.product(
                x,
                weights,
                biases,
                *whole,
                *_operators.settings_of(layers[0]),
            )
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


_in_windows = weakref.WeakSet()  # groups whose weights may lie in zeros


def _before_step(optimiser, args, kwargs):
    """A hook of all optimisers: forward is not always asked, so gaps may still be there."""
    if not torch.compiler.is_dynamo_compiling():
        steps = {id(p) for group in optimiser.param_groups for p in group["params"]}
        for group in [*_in_windows]:
            group.close_gaps(steps)


@functools.cache  # once
def _watch_steps():
    register_optimizer_step_pre_hook(_before_step)


def _gone():
    """A reference to a layer that is gone."""


def _part(members):
    """Move what is left of a group out of the memory of those that are gone."""
    for layer in filter(None, members):
        if (
            member_of(layer)
            and not _checks.shared(layer)
            and not _checks.unmovable("", layer)
        ):
            release(layer)
