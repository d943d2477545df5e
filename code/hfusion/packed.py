"""Siblings side by side in memory, each still itself: what a fused model does at a call.

    layer 0   weight ─┐ ┌───────┐            x ──► whole ──►  y ──► part 0, now
    layer 1   weight ─┼►│ whole │                                 part 1, when layer 1 is
    layer 2   weight ─┘ └───────┘                                 part 2, … called with x

Each layer keeps its own Parameter at its own path; only their numbers are neighbours in
memory, as those of nn.LSTM are after `flatten_parameters`. The first sibling that is called
computes for all of them. Each other one takes its part if everything is still as it was:
the same tensor, not written to since, the same weights, the same modes. Otherwise, and
always while gradients are recorded, a layer computes for itself, as it would without us. So
the answer never depends on whether a guess was right; only the time does.
"""

import itertools
import logging
import threading
import weakref

import torch
import torch.nn.functional as F
from torch import nn

from . import layers

logger = logging.getLogger("hfusion")

WASTED = (
    8  # so many rounds in a row whose parts nobody fetched, and a group is switched off
)
SETTLED = 8  # so many good rounds, and a group may be packed again …
PACKED_AGAIN = 4  # … else it may be, so many times
_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the dimensions of the weight
_ROUTED = ("forward", "_replicate_for_data_parallel")  # what `route` sets in a layer
_GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode")


def route(members, names, window=None, dense=()):
    """Let siblings compute together, in place: each call of one of them asks their group.

    members: modules that `layers.refusal` finds no fault with, in the order in which they
    are called; names: their paths, for messages. window: for all, where theirs differ
    (see `embedding`). dense: the indices of those whose readers need a contiguous part.
    """
    group = Group(members, names, window, dense)
    with group._lock:
        group._pack()
    for index, layer in enumerate(members):
        member = Member(group, index, layer)
        layer.forward = member.forward
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
        self.group, self.index, self.layer = group, index, layer

    def forward(self, input):
        part = self.group.part(self.index, input)
        return type(self.layer).forward(self.layer, input) if part is None else part

    def replica(self):
        """For nn.DataParallel: the layer's copy on another device, on its own there."""
        replica = type(self.layer)._replicate_for_data_parallel(self.layer)
        for name in _ROUTED:
            vars(replica).pop(name, None)
        return replica


class _Row:
    """What a member was when the group was packed."""

    __slots__ = ("bias", "geometry", "kind", "layer", "places", "shape", "stride", "weight")

    def __init__(self, layer):
        self.layer, self.kind = weakref.ref(layer), type(layer)
        self.weight, self.bias = layer._parameters["weight"], layer._parameters["bias"]
        self.places = _places_of(self.weight, self.bias)
        self.shape = self.weight.shape
        self.stride = None if self.weight.is_contiguous() else self.weight.stride()
        self.geometry = None if self.kind is nn.Linear else _geometry(vars(layer))

    def versions(self):
        """How often the weights were written to; None if they are not where they were."""
        layer = self.layer()
        if type(layer) is not self.kind:
            return None
        own, weight, bias = layer.__dict__, self.weight, self.bias
        parameters = own["_parameters"]
        if parameters.get("weight") is not weight or parameters.get("bias") is not bias:
            return None
        if _places_of(weight, bias) != self.places or weight.shape != self.shape:
            return None
        if weight.stride() != self.stride if self.stride else not weight.is_contiguous():
            return None
        if self.geometry is not None and _geometry(own) != self.geometry:
            return None
        return weight._version, bias is not None and bias._version


def _places_of(weight, bias):
    return weight.data_ptr(), bias is not None and bias.data_ptr()


def _geometry(own):
    return [own.get(name) for name in _GEOMETRY]


class _Round:
    """What the first sibling left for the others, and under which conditions it holds."""

    __slots__ = ("left", "mode", "parts", "rows", "version", "versions", "x")

    def __init__(self, x, mode, rows, versions, parts):
        self.x, self.version, self.mode = weakref.ref(x), x._version, mode
        self.rows, self.versions = rows, versions
        self.parts, self.left = parts, len(parts)

    def take(self, index, x, mode):
        """A part, once; None if it is gone, or if anything is not as it was."""
        if self.x() is not x or x._version != self.version or self.mode != mode:
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

    def __init__(self, layers, names, window=None, dense=()):
        self.names, self.window, self.dense = tuple(names), window, frozenset(dense)
        self.sizes = tuple(len(layer.weight) for layer in layers)
        self.dim = 1 - layers[0].weight.ndim  # of the output, counted from its end
        self.off, self.rounds = "", 0
        self._layers = [weakref.ref(layer) for layer in layers]
        self._start()

    def _start(self):
        """What no copy takes along."""
        self._rows = self._weight = self._bias = None
        self._packed = self._wasted = self._settled = 0
        self._traced = None  # the round that torch.compile is at
        self._here, self._lock = _Here(), threading.Lock()

    def __getstate__(self):
        kept = ("names", "window", "dense", "sizes", "dim", "off", "rounds")
        layers = [reference() for reference in self._layers]
        return {"layers": layers} | {name: getattr(self, name) for name in kept}

    def __setstate__(self, state):
        layers = state.pop("layers")
        vars(self).update(state)
        # Whoever copies one sibling alone lets go of the others here.
        self._layers = [
            weakref.ref(layer) if layer is not None else _gone for layer in layers
        ]
        self._start()

    def part(self, index, x):
        """What a member's call returns; None where it has to compute for itself."""
        if torch.compiler.is_dynamo_compiling():
            return self._traced_part(index, x)
        here = self._here
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
        if here.turn is not None:
            self._waste(here)
        if self.off or type(x) is not torch.Tensor or not _plain(x):
            return None
        if torch.is_grad_enabled() and self._learns(x):
            return None
        versions = self._versions()
        if None in versions:  # weights have moved
            if not self._pack_again():
                return None
            versions = self._versions()
        try:
            y = self._product(x, self._weight, self._bias)
        except RuntimeError:  # the layer will say it in its own words
            return None
        # Not split: autograd and versions would count a write to one part as one to all.
        # It is safe: the parts do not overlap, and nobody else has seen y.
        parts = list(y.unsafe_split_with_sizes(self.sizes, self.dim))
        for index in self.dense:
            parts[index] = dense(parts[index], y)
        first, parts[0] = parts[0], None
        here.turn = turn = _Round(x, self._mode(), self._rows, versions, parts)
        turn.left -= 1
        return first

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
        if self.window is None:
            return type(first)._conv_forward(first, x, weight, bias)
        convolution = _CONVOLUTIONS[weight.ndim]
        settings = (self.window.padding, self.window.dilation)
        return convolution(x, weight, bias, first.stride, *settings)

    def _waste(self, here):
        """Some parts of the last round were not fetched."""
        here.turn = None
        self._wasted += 1
        if self._wasted == WASTED:
            self._switch_off(f"{WASTED} times in a row they were not called together")

    def _pack_again(self):
        if self._settled >= SETTLED:
            self._packed = 0
        if self._packed == PACKED_AGAIN:
            self._switch_off("their weights keep moving in memory")
            return False
        with self._lock:
            return self._pack()

    def _switch_off(self, reason):
        self.off = f"{', '.join(self.names)} compute separately from now on: {reason}"
        self._rows = self._weight = self._bias = None
        logger.warning(self.off)

    def _pack(self):
        """Move the members' numbers side by side; whether that could be."""
        members = [reference() for reference in self._layers]
        if None in members:
            self._switch_off("one of them is gone")
            return False
        if not _fit(members, self.sizes, self.window is not None):
            return False
        with torch.inference_mode(False), torch.no_grad():
            places = _places(self.sizes, members, self.window)
            whole = _whole([m.weight for m in members], places, self.window)
            self._weight, self._device = whole, whole.device.type
            self._bias = _whole_bias([m.bias for m in members], self.sizes, whole)
        self._rows = [_Row(m) for m in members]
        self._packed, self._settled = self._packed + 1, 0
        return True

    def _traced_part(self, index, x):
        """What `part` does where torch.compile writes down what happens.

        Here no address can be looked at. The operator `product` does so when it runs, and
        `written` asks how often x was written to.
        """
        layers = [reference() for reference in self._layers]
        if self.off or self.window is not None or self.dense or not _traceable(layers, x):
            return None
        if torch.is_autocast_enabled(x.device.type):  # which knows no operators of ours
            return None
        if torch.is_grad_enabled() and self._learns(x):
            return None
        written = torch.ops.hfusion.written(x).shape[0]
        if index == 0:
            weights = [layer.weight for layer in layers]
            biases = [layer.bias for layer in layers]
            geometry = _traced_geometry(layers[0])
            y = torch.ops.hfusion.product(
                x, weights, biases, self._weight, self._bias, *geometry
            )
            parts = list(y.split(self.sizes, self.dim))
            self._traced = (x, written, parts)
        turn = self._traced
        if turn is None or turn[0] is not x or turn[1] != written:
            self._traced = None
            return None
        part, turn[2][index] = turn[2][index], None
        if index == len(self.sizes) - 1:
            self._traced = None
        return part


def dense(part, whole):
    """The part without gaps in memory, its axes in the order of the whole's."""
    if is_dense(part):
        return part
    order = sorted(range(whole.ndim), key=lambda axis: -whole.stride(axis))
    empty = torch.empty_permuted(part.shape, order, dtype=part.dtype, device=part.device)
    return empty.copy_(part)


def is_dense(part):
    """Whether a tensor's numbers lie side by side, whatever the order of its axes.

    >>> is_dense(torch.zeros(2, 3).t()), is_dense(torch.zeros(2, 3)[:, :2])
    (True, False)
    """
    axes = sorted(zip(part.stride(), part.shape, strict=True))
    expected = 1
    for stride, size in axes:
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _gone():
    """A reference to a layer that is gone."""


def _plain(x):
    """Whether x can be watched, and nobody else watches what is done to it."""
    return not (
        x.is_inference()  # such a tensor does not count how often it is written to
        or torch.is_inference_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _fit(members, sizes, embed):
    """Whether members are as they were when the group was made, memory apart."""
    for layer in members:
        tensors = [p for p in layer._parameters.values() if p is not None]
        if member_of(layer) is None and "forward" in vars(layer):
            return False
        if any(type(p) is not nn.Parameter or p.layout != torch.strided for p in tensors):
            return False  # such as the weights that torchao or FSDP put in their place
        if any(p.is_cpu and p.is_shared() for p in tensors):
            return False  # other processes know them where they are
    if tuple(len(layer.weight) for layer in members) != sizes:
        return False
    return not layers.refusal(members, embed, layers.KEPT)


def _places(sizes, members, window):
    """Where each member's weight lies in the whole: its rows, and its window in theirs."""
    ends = itertools.accumulate(sizes)
    inside = [window.place(layer) if window else () for layer in members]
    pairs = zip(sizes, ends, inside, strict=True)
    return [
        (slice(e - size, e), *((slice(None), *at) if at else ())) for size, e, at in pairs
    ]


def _whole(weights, places, window):
    """One tensor with all weights' numbers, and each weight's own moved into it."""
    first, rows = weights[0], sum(len(weight) for weight in weights)
    shape, strides = (rows, *first.shape[1:]), first.stride()
    if window is not None:
        whole = first.new_zeros((rows, first.shape[1], *window.kernel_size))
    elif strides[0] == first[:1].numel():
        whole = first.new_empty_strided(shape, strides)
    else:  # rows do not lie one after the other
        whole = first.new_empty(shape)
    for weight, place in zip(weights, places, strict=True):
        _move(weight, whole[place])
    return whole


def _whole_bias(biases, sizes, whole):
    """One tensor with all biases' numbers, zeros for missing ones; None if all are."""
    if not any(bias is not None for bias in biases):
        return None
    together = whole.new_zeros(len(whole))
    for bias, part in zip(biases, together.split(sizes), strict=True):
        if bias is not None:
            _move(bias, part)
    return together


def _move(parameter, place):
    """Put a parameter's numbers at a place in another tensor, and the parameter there."""
    place.copy_(parameter)
    parameter.data = _alone(place) if place.is_contiguous() else place


def _alone(place):
    """The same numbers, in the same memory, as a tensor that seems to have it to itself.

    Its storage ends where the tensor does, so that nobody who saves or counts storages has
    to know of the neighbours. DLPack makes such a tensor; not on "meta", for instance.
    """
    try:
        alone = torch.from_dlpack(place)
    except (BufferError, RuntimeError, TypeError, ValueError):
        return place
    return (
        alone
        if alone.stride() == place.stride()
        else alone.as_strided(place.shape, place.stride())
    )


def _traceable(layers, x):
    """Whether these layers are plain ones, as `product` knows them."""
    if torch.compiler.is_exporting() or type(x) is not torch.Tensor:
        return False
    for layer in layers:
        if layer is None or "weight" not in layer._parameters:
            return False
        if "_conv_forward" in vars(layer) or _traced_geometry(layer) is None:
            return False
    return True


def _traced_geometry(layer):
    """A layer's settings as `product` takes them; None where it does not."""
    if type(layer) is nn.Linear:
        return [], [], []
    plain = layer.padding_mode == "zeros" and type(layer.padding) is tuple
    return (
        (list(layer.stride), list(layer.padding), list(layer.dilation)) if plain else None
    )


@torch.library.custom_op("hfusion::written", mutates_args=())
def _written(x: torch.Tensor) -> torch.Tensor:
    """A tensor whose size says how often x was written to; while tracing only."""
    return x.new_empty(0)


@_written.register_fake
def _(x):
    return x.new_empty(x._version)


@torch.library.custom_op("hfusion::product", mutates_args=())
def _product(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor | None],
    whole: torch.Tensor | None,
    whole_bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """All siblings at once: from the whole if they still lie in it, else from a copy."""
    if not _in(weights, weights, whole):
        whole = torch.cat(weights)
    if any(bias is not None for bias in biases) and not _in(biases, weights, whole_bias):
        pairs = zip(weights, biases, strict=True)
        whole_bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in pairs])
    return _apply(x, whole, whole_bias, stride, padding, dilation)


@_product.register_fake
def _(x, weights, biases, whole, whole_bias, stride, padding, dilation):
    bias = next((b for b in biases if b is not None), None)
    rows = sum(w.shape[0] for w in weights)
    whole = weights[0].new_empty((rows, *weights[0].shape[1:]))
    return _apply(
        x, whole, bias if bias is None else bias.new_empty(rows), stride, padding, dilation
    )


def _in(parts, weights, whole):
    """Whether tensors, some perhaps None, lie in another one: one for each of weights."""
    if whole is None:
        return False
    place, row = whole.data_ptr(), whole.stride(0) * whole.element_size()
    for part, weight in zip(parts, weights, strict=True):
        if part is not None and part.data_ptr() != place:
            return False
        place += len(weight) * row
    return True


def _apply(x, weight, bias, stride, padding, dilation):
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    return _CONVOLUTIONS[weight.ndim](x, weight, bias, stride, padding, dilation)
