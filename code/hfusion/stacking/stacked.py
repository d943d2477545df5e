"""Sibling layers as one layer, and the way back. torch, no graphs.

    x ──► layer 0 ──► y0              x ──► [layer 0]     ┌► y0
    x ──► layer 1 ──► y1      =             [layer 1] ──► ├► y1
    x ──► layer 2 ──► y2                    [layer 2]     └► y2
       three launches                   one launch, three views

`stack` gives the right-hand side, `unstack` the left-hand side again, bit for
bit. In between, state_dict() has the keys and shapes of the left-hand side.
"""

import itertools
import math
from collections.abc import Iterable

import torch
from torch import nn

from ..errors import FusionError
from . import _state, rules, windows


def stack(layers, activation=None, embed=False, hoist=False):
    """One layer that computes what several siblings compute.

    layers: a list (or a dict, or nn.ModuleList / ModuleDict) of Conv1d, Conv2d,
    Conv3d or Linear that agree in everything but their number of outputs, some
    biases possibly missing. They are left as they were; the weights are copied.
    Values are not looked at: a NaN stays in the rows of its own branch.
    activation: a module of one of the classes in POINTWISE, which treat each number alone,
    as ReLU does; applied once where the branches lie in one piece each, else to each of
    them (see `Stacked`). hoist: apply it once in any case. embed: embed small windows in
    the largest (see `windows`), which takes more multiply-adds. Raises FusionError where
    they do not fit together, and for any other activation.
    Source: Lei Mao, "Neural Network 1x1 Convolution Horizontal Fusion".

    >>> stacked = stack([nn.Conv2d(192, 64, 1), nn.Conv2d(192, 96, 1)])
    >>> [tuple(y.shape) for y in stacked(torch.zeros(8, 192, 28, 28))]
    [(8, 64, 28, 28), (8, 96, 28, 28)]
    """
    named = rules.by_name(layers)
    reason = rules.refusal(named, embed)
    if reason:
        raise FusionError(reason)
    if activation is not None and type(activation) not in rules.POINTWISE:
        known = ", ".join(kind.__name__ for kind in rules.POINTWISE)
        raise FusionError(
            f"activation: expected a module that treats each number alone ({known}), got "
            f"{activation!r}"
        )
    return Stacked(named, activation, hoist)


def unstack(stacked):
    """The separate layers again, with the current weights: a dict by name.

    Layers that had no bias get none back.

    >>> list(unstack(stack([nn.Linear(4, 2), nn.Linear(4, 3)])))
    ['0', '1']
    """
    if not isinstance(stacked, Stacked):
        raise FusionError(f"stacked was a {type(stacked).__name__}; a Stacked fits")
    return stacked.unstack()


def split(y, sizes, dim):
    """Cut `y` along `dim` into parts of the given sizes, in order: views of `y`.

    >>> [tuple(part.shape) for part in split(torch.zeros(8, 5), (2, 3), dim=1)]
    [(8, 2), (8, 3)]
    """
    if type(dim) is not int or not -y.ndim <= dim < y.ndim:
        raise ValueError(f"dim was {dim!r}; a dimension of y, which has {y.ndim}, fits")
    sizes = list(sizes) if isinstance(sizes, Iterable) else sizes
    fits = isinstance(sizes, list) and all(type(size) is int for size in sizes)
    if not fits or not sizes or min(sizes) < 0 or sum(sizes) != y.shape[dim]:
        raise ValueError(
            f"sizes was {sizes}; whole numbers from 0 with the sum {y.shape[dim]} fit"
        )
    ends = itertools.accumulate(sizes)
    return tuple(y.narrow(dim, e - size, size) for size, e in zip(sizes, ends, strict=True))


def stack_parameters(weights, biases):
    """(weight, bias) of the stacked layer: the branches', one after the other.

    weights: tensors [K_i, …] of one dtype; biases: tensors [K_i], some or all
    None. A missing bias becomes zeros where a sibling has one. The results are
    copies, and require a gradient where the branches' do.

    >>> one, two = torch.ones(1, 2), torch.ones(2, 2)
    >>> stack_parameters([one, two], [torch.ones(1), None])[1]
    tensor([1., 0., 0.])
    """
    weights, biases = list(weights), list(biases)
    if not weights or len(biases) != len(weights):
        raise ValueError(
            f"biases has {len(biases)} entries and weights {len(weights)}; as many of "
            "each, at least one, fit (None for a bias that is missing)"
        )
    kinds = {(str(w.dtype), str(w.device), tuple(w.shape[1:])) for w in weights}
    if len(kinds) > 1:
        raise ValueError(
            f"weights are {sorted(kinds)}; one dtype, device and [K_i, …] fits"
        )
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        if b is not None and (b.shape != w.shape[:1] or b.dtype != w.dtype):
            raise ValueError(
                f"biases[{i}] was {b.dtype} {list(b.shape)}; {w.dtype} {[len(w)]} fits"
            )
    weight = _one_below_the_other(weights).requires_grad_(weights[0].requires_grad)
    present = [b for b in biases if b is not None]
    if not present:
        return weight, None
    pairs = zip(weights, biases, strict=True)
    full = [w.new_zeros(len(w)) if b is None else b for w, b in pairs]
    return weight, torch.cat(full).detach().requires_grad_(present[0].requires_grad)


def _one_below_the_other(weights):
    """torch.cat that keeps the strides, by which convolutions choose a layout."""
    first, rows = weights[0].detach(), sum(len(w) for w in weights)
    if first.stride(0) != first[:1].numel():  # rows do not lie one after the other
        return torch.cat(weights).detach()
    whole = first.new_empty_strided((rows, *first.shape[1:]), first.stride())
    return torch.cat([w.detach() for w in weights], out=whole)


class Stacked(nn.Module):
    """Siblings as one layer; use `stack` to make one.

    forward: x -> a tuple with each branch's output, in order. Without an activation they
    are views of one tensor, and so they are with one where each branch lies in one piece:
    one image in NCHW, one row of a Linear. Otherwise a branch is a strided part, which a
    consumer may copy to make it contiguous; there the activation is applied to each branch,
    and what it returns is dense, unless it works in place. With hoist it is applied once in
    any case.

    Its state_dict is that of the separate layers in an nn.ModuleDict, and each loads the
    other's. Where only some siblings have a bias, the zeros of the others are kept zero by
    a mask, at the price of one small operator. So are the zeros around embedded windows,
    while gradients are recorded.
    """

    def __init__(self, layers, activation=None, hoist=False):
        super().__init__()
        self.activation, self.hoist = activation, hoist
        first = next(iter(layers.values()))
        self.names = tuple(layers)
        self.sizes = tuple(m.weight.shape[0] for m in layers.values())
        self.has_bias = tuple(m.bias is not None for m in layers.values())
        # Channels lie in front of the pixels, a Linear's features behind all else.
        self.dim = 1 - first.weight.ndim
        members = list(layers.values())
        self.windows = tuple(windows.window(m) for m in members)
        window, self.inside = self.windows[0], ((),) * len(members)
        weights = [m.weight for m in members]
        if windows.mixed(members):
            window = windows.common(members)
            self.inside = tuple((slice(None), *window.place(m)) for m in members)
            grad = weights[0].requires_grad
            weights = [window.embed(m).requires_grad_(grad) for m in members]
        weight, bias = stack_parameters(weights, [m.bias for m in members])
        self.layer = _like(first, weight, bias, window)
        self.register_buffer("absent", None, persistent=False)
        self.register_buffer("around", None, persistent=False)
        self._set_masks(weight.device)
        self._keep_keys()
        self.train(first.training)

    def _keep_keys(self):
        """Let state_dict() and load_state_dict() speak of the branches."""
        self.register_state_dict_post_hook(_state.after_state_dict)
        self.register_load_state_dict_pre_hook(_state.before_load)

    def _set_masks(self, device):
        """What belongs to no branch: missing biases, and zeros around small windows."""
        if any(self.has_bias) and not all(self.has_bias):
            rows = zip(self.sizes, self.has_bias, strict=True)
            flags = [not has for size, has in rows for _ in range(size)]
            self.absent = torch.tensor(flags, device=device)  # [K]
        if any(self.inside):
            weight = self.layer.weight
            shape = (len(weight), 1, *weight.shape[2:])
            self.around = torch.ones(shape, dtype=torch.bool, device=device)
            for place in _state.places(self):
                self.around[place] = False

    def product(self, x):
        """x -> every branch's output in one tensor, along `dim`."""
        learns = self.around is not None and torch.is_grad_enabled()
        if self.absent is None and not learns:
            return self.layer(x)
        weight, bias = self.layer.weight, self.layer.bias
        if learns:
            weight = weight.masked_fill(self.around, 0)
        if self.absent is not None:
            bias = bias.masked_fill(self.absent, 0)
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)

    def forward(self, x):
        y = self.product(x)
        if self.activation is not None and (self.hoist or self._in_one_piece(y)):
            # It may keep its result for the gradient, which has to learn of it when a
            # branch is changed in place: proper views.
            ends = list(itertools.accumulate(self.sizes))
            y = self.activation(y)
            return tuple(
                y.narrow(self.dim, e - s, s) for s, e in zip(self.sizes, ends, strict=True)
            )
        # Not split: autograd forbids to change its views in place, as nn.ReLU(True) does.
        # It is safe: the parts do not overlap, and nobody else has seen y.
        parts = y.unsafe_split_with_sizes(self.sizes, self.dim)
        if self.activation is None:
            return parts
        return tuple(self.activation(parts[i]) for i in range(len(self.sizes)))

    def _in_one_piece(self, y):
        """Whether each branch is contiguous as a part of y: one image in NCHW, one row."""
        if isinstance(y, torch.fx.Proxy) or torch.jit.is_tracing():
            return False  # a tracer writes down one program for all inputs
        return math.prod(y.shape[: self.dim]) == 1 and y.is_contiguous()

    def unstack(self):
        """See `hfusion.stacking.unstack`."""
        weight, bias = self.layer.weight, self.layer.bias
        branches = zip(
            self.names, _state.places(self), self.has_bias, self.windows, strict=True
        )
        return {
            name: _like(
                self.layer,
                weight[place].clone(),
                bias[place[0]].clone() if has else None,
                window,
            )
            for name, place, has, window in branches
        }

    def extra_repr(self):
        return ", ".join(f"{n}: {s}" for n, s in zip(self.names, self.sizes, strict=True))


def _like(layer, weight, bias, window):
    """A layer with this window, the other settings of `layer`, and these parameters."""
    if window is None:
        sizes, settings = (layer.in_features, len(weight)), {}
    else:
        sizes = (layer.in_channels, len(weight))
        settings = {name: getattr(layer, name) for name in ("stride", "padding_mode")}
        settings |= vars(window)
    # On "meta" nothing is set aside or drawn that would be thrown away at once.
    new = type(layer)(*sizes, bias=bias is not None, device="meta", **settings)
    new.weight = nn.Parameter(weight.detach(), weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach(), bias.requires_grad)
    return new.train(layer.training)
