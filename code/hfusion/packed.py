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

What nobody can notice: x or a weight written to between the calls of two siblings in a way
that autograd does not see either, through `.data` or a NumPy array of the same memory.
"""

import itertools
import logging
import threading
import weakref

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from . import layers, operators, placing
from .operators import FORWARD

logger = logging.getLogger("hfusion")

WASTED = 8  # so many rounds in a row that served nobody, and a group is switched off
SETTLED = 8  # so many good rounds, and a group may be packed again …
PACKED_AGAIN = 4  # … else it may be, so many times
_ROUTED = ("forward", "_apply", "_replicate_for_data_parallel")  # what is set in a layer
_GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode")
_GEOMETRY += ("_reversed_padding_repeated_twice",)
# How many tensors know a memory. Up to torch 2.8, those for CPUs cannot tell …
_count = getattr(torch._C, "_storage_Use_Count", None)


def route(members, names, dense=()):
    """Let siblings compute together, in place: each call of one of them asks their group.

    members: modules that `layers.refusal` finds no fault with, in the order in which they
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
        layer._replicate_for_data_parallel = member.replica
    return group


def member_of(layer):
    """The Member that a layer's calls go to; None for a layer that is on its own."""
    member = getattr(vars(layer).get("forward"), "__self__", None)
    return member if isinstance(member, Member) else None


def release(layer):
    """Let a layer compute for itself, with a weight in memory of its own, in place."""
    for name in _ROUTED:
        vars(layer).pop(name, None)
    for parameter in layer._parameters.values():
        if parameter is not None:
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


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

    def forward(self, input):
        part = self.group.part(self.index, input)
        layer = self._layer()
        return type(layer).forward(layer, input) if part is None else part

    def apply(self, fn, recurse=True):
        """For `.to()` and its like: memory that the weights have left is not kept."""
        layer = self._layer()
        result = type(layer)._apply(layer, fn, recurse)
        self.group.look()
        return result

    def replica(self):
        """For nn.DataParallel: the layer's copy on another device, on its own there."""
        layer = self._layer()
        replica = type(layer)._replicate_for_data_parallel(layer)
        for name in _ROUTED:
            vars(replica).pop(name, None)
        return replica


class _Row:
    """What a member was when the group was packed."""

    __slots__ = ("bias", "geometry", "kind", "layer", "memory", "weight")

    def __init__(self, layer):
        self.layer, self.kind = weakref.ref(layer), type(layer)
        self.weight, self.bias = layer._parameters["weight"], layer._parameters["bias"]
        self.memory = _memory(self.weight), self.bias is not None and _memory(self.bias)
        self.geometry = None if self.kind is nn.Linear else _geometry(vars(layer))

    def versions(self):
        """How often the weights were written to; None if a member is not what it was."""
        layer = self.layer()
        if type(layer) is not self.kind or self.kind.forward is not FORWARD[self.kind]:
            return None
        own, weight, bias = layer.__dict__, self.weight, self.bias
        parameters = own["_parameters"]
        if parameters.get("weight") is not weight or parameters.get("bias") is not bias:
            return None
        if "weight" in own or "bias" in own or "_conv_forward" in own:
            return None
        if (_memory(weight), bias is not None and _memory(bias)) != self.memory:
            return None
        if self.geometry is not None and _geometry(own) != self.geometry:
            return None
        return weight._version, bias is not None and bias._version


def _memory(tensor):
    """Where a tensor's numbers are, and how they are read there."""
    return tensor.data_ptr(), tensor.dtype, tensor.stride(), tensor.numel()


def _geometry(own):
    return [own.get(name) for name in _GEOMETRY]


def _margins(layer):
    """What a convolution really pads with where it does not pad with zeros."""
    if getattr(layer, "padding_mode", "zeros") == "zeros":
        return None
    return tuple(layer._reversed_padding_repeated_twice)


class _Round:
    """What the first sibling left for the others, and under which conditions it holds."""

    __slots__ = ("left", "memory", "mode", "parts", "rows", "version", "versions", "x")

    def __init__(self, x, mode, rows, versions, parts):
        # When x is gone, nobody can ask for the parts any more.
        self.x = weakref.ref(x, lambda _: parts.clear())
        self.version, self.memory, self.mode = x._version, (_memory(x), x.shape), mode
        self.rows, self.versions = rows, versions
        self.parts, self.left = parts, len(parts)

    def take(self, index, x, mode):
        """A part, once; None if it is gone, or if anything is not as it was."""
        if self.x() is not x or x._version != self.version or self.mode != mode:
            return None
        if (_memory(x), x.shape) != self.memory:
            return None
        if self.rows[index].versions() != self.versions[index]:
            return None
        part, self.parts[index] = self.parts[index], None
        self.left -= part is not None
        return part


class _Here(threading.local):
    """The round that a thread is at."""

    turn = None


class Group:
    """Layers that compute together; made by `route`, shared by its members.

    off: why it computes no longer together, in words; "" while it does.
    rounds: how often one product served all, at this group and its copies.
    """

    def __init__(self, layers, names, dense=()):
        self.names, self.dense = tuple(names), frozenset(dense)
        self.sizes = tuple(len(layer.weight) for layer in layers)
        self.dim = 1 - layers[0].weight.ndim  # of the output, counted from its end
        self.off, self.rounds = "", 0
        self._start([weakref.ref(layer) for layer in layers])

    def _start(self, layers):
        """What no copy takes along."""
        self._layers = layers
        self._rows = self._weight = self._bias = None
        self._packed = self._wasted = self._settled = 0
        self._biased = ()  # which ones have a bias, for torch.compile
        self._traced = None  # the round that torch.compile is at
        self._apart = False  # whether compiled code is to call each layer
        self._here, self._lock = _Here(), threading.Lock()

    def __getstate__(self):
        kept = ("names", "dense", "sizes", "dim", "off", "rounds")
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
        if self.off or not _plain(x) or (torch.is_grad_enabled() and self._learns(x)):
            return None
        if index == 0:
            return self._begin(x, here)
        turn = here.turn
        if turn is None:
            return None
        part = turn.take(index, x, self._mode())
        if part is not None and not turn.left:
            here.turn = None
            self.rounds += 1
            self._settled, self._wasted = self._settled + 1, 0
        return part

    def _begin(self, x, here):
        """One product for all: the first one's part."""
        rows, versions, weight, bias = self._whole()
        if None in versions:
            return None
        try:
            y = self._product(x, weight, bias)
        except RuntimeError:  # the layer will say it in its own words
            return None
        # Not split: autograd and versions would count a write to one part as one to all.
        # It is safe: the parts do not overlap, and nobody else has seen y.
        parts = list(y.unsafe_split_with_sizes(self.sizes, self.dim))
        for index in self.dense:
            parts[index] = placing.dense(parts[index], y)
        first, parts[0] = parts[0], None
        here.turn = turn = _Round(x, self._mode(), rows, versions, parts)
        turn.left -= 1
        return first

    def _whole(self):
        """(rows, their versions, weight, bias), packed again if weights have moved."""
        with self._lock:
            versions = self._versions()
            if None in versions and self._may_pack() and self._pack():
                versions = self._versions()
            return self._rows, versions, self._weight, self._bias

    def _versions(self):
        return [row.versions() for row in self._rows] if self._rows else [None]

    def _mode(self):
        """What decides, besides x and the weights, which numbers a layer returns."""
        cast = torch.is_autocast_enabled(self._device)
        return torch.is_grad_enabled(), cast and torch.get_autocast_dtype(self._device)

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
        return type(first)._conv_forward(first, x, weight, bias)

    def _waste(self, here):
        """Some parts of the last round were not fetched."""
        here.turn = None
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
        self._rows = self._weight = self._bias = None
        logger.warning(self.off)

    def look(self):
        """Let go of memory that the weights have left."""
        with self._lock:
            if None in self._versions():
                self._rows = self._weight = self._bias = None

    def _pack(self, fresh=False):
        """Move the members' numbers side by side; whether that could be.

        fresh: nobody else can know yet where the numbers were.
        """
        members = [reference() for reference in self._layers]
        self._rows = self._weight = self._bias = None
        if None in members:
            _part(members)
            self._switch_off("one of them is gone")
            return False
        if not fresh and any(map(_shared, members)):
            self._in_vain("other tensors share the memory of their weights")
            return False
        if reason := self._unfit(members):
            self._in_vain(reason)
            return False
        with torch.inference_mode(False), torch.no_grad():
            self._weight = placing.whole([m.weight for m in members])
            self._bias = placing.whole_bias(
                [m.bias for m in members], self.sizes, self._weight
            )
        self._rows, self._device = [_Row(m) for m in members], self._weight.device.type
        self._biased = tuple(m.bias is not None for m in members)
        self._packed, self._settled = self._packed + 1, 0
        return True

    def _unfit(self, members):
        """Why members cannot lie side by side (now), in words; "" if they can."""
        named = dict(zip(self.names, members, strict=True))
        # First of all: whoever reads a parametrised weight may change it.
        if reason := next(filter(None, itertools.starmap(_unmovable, named.items())), ""):
            return reason
        if tuple(len(layer.weight) for layer in members) != self.sizes:
            return "their sizes have changed"
        if len({_margins(layer) for layer in members}) > 1:
            return "their paddings differ"
        return layers.refusal(named, kept=layers.KEPT)

    def _traced_part(self, index, x):
        """What `part` does where torch.compile writes down what happens.

        Here no address can be looked at. The operator `product` does so when it runs, and
        `written` asks how often x and the weights were written to.
        """
        layers = [reference() for reference in self._layers]
        if self.off or self._apart or self.dense:
            return None
        if not operators.traceable(layers, self.sizes, x):
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
            y = torch.ops.hfusion.product(
                x,
                weights,
                biases,
                self._weight,
                self._bias,
                *operators.settings_of(layers[0]),
            )
            turn = tensors, written, list(y.split(self.sizes, self.dim))
        elif turn is None:
            return None
        elif index == 0 or not operators.still(turn, tensors, written):
            self._apart = True
            return None
        part, turn[2][index] = turn[2][index], None
        if index < len(self.sizes) - 1:
            self._traced = turn
        return part


def _gone():
    """A reference to a layer that is gone."""


def _plain(x):
    """Whether x can be watched, and nobody else watches what is done to it."""
    if type(x) is not torch.Tensor or x.layout is not torch.strided or x.is_nested:
        return False
    return not (
        x.is_meta
        or x.is_inference()  # such a tensor does not count how often it is written to
        or torch.is_inference_mode_enabled()
        or operators.differentiates()
        or _watched()
        or torch.jit.is_tracing()
    )


def _watched():
    """Whether somebody sees each function, or each operator, that is called."""
    if torch._C._len_torch_dispatch_stack():
        modes = _get_current_dispatch_mode_stack()
        if not all(getattr(mode, "only_counts", False) for mode in modes):
            return True
    if not torch._C._len_torch_function_stack():
        return False
    return any(type(m) is not DeviceContext for m in _get_current_function_mode_stack())


def _unmovable(name, layer):
    """Why a layer's numbers must stay where they are, in words; "" if they may move."""
    if member_of(layer) is None and "forward" in vars(layer):
        return f"{name} has a forward of its own"
    if type(layer).forward is not FORWARD.get(type(layer)):
        return f"{name} is a {type(layer).__name__} with another forward"
    for p in layer.parameters():
        # Such as the weights that torchao or FSDP put in their place.
        if type(p) is not nn.Parameter or p.layout != torch.strided:
            return f"a weight of {name} is no plain Parameter"
        if p.is_meta or p.is_inference():
            return f"a weight of {name} has no numbers, or is an inference tensor"
        if p.is_cpu and p.is_shared():
            return f"other processes know a weight of {name} where it is"
    return ""


def _shared(layer):
    """Whether other tensors know the memory of a layer's weights, or may know it."""
    if _count is None:
        return True
    parameters = filter(torch.is_tensor, layer._parameters.values())
    return any(_uses(p) > _ALONE for p in parameters)


def _uses(tensor):
    return _count(tensor.untyped_storage()._cdata)


_ALONE = _count and _uses(torch.empty(1))


def _part(members):
    """Move what is left of a group out of the memory of those that are gone."""
    for layer in filter(None, members):
        if member_of(layer) and not _shared(layer) and not _unmovable("", layer):
            release(layer)
