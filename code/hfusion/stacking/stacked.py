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
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import FusionError
from . import _memory, _state, rules, windows


def stack(
    layers: rules.Layers,
    activation: nn.Module | None = None,
    embed: bool = False,
    hoist: bool = False,
) -> "Stacked":
    """One layer that computes what several siblings compute.

    Source: Lei Mao, "Neural Network 1x1 Convolution Horizontal Fusion".

    Parameters
    ----------
    layers : list or dict of nn.Module
        Conv1d, Conv2d, Conv3d or Linear that agree in everything but their number of
        outputs; some biases may be missing. They are left as they are, because the weights
        are copied. Values are not checked: a NaN stays in the rows of its own branch.
    activation : nn.Module, optional
        Applied to each output: a module of a class in POINTWISE, all of which treat each
        number alone, as ReLU does. Applied once where each branch is in one piece, else to
        each of them (see `Stacked`).
    embed : bool
        Whether to embed small windows in the largest one, which takes more multiply-adds
        (see `windows`).
    hoist : bool
        Whether to apply the activation once in any case.

    Raises
    ------
    FusionError
        The layers do not fit together (see `unstackable`), or it is another activation.

    Examples
    --------
    >>> stacked = stack([nn.Conv2d(192, 64, 1), nn.Conv2d(192, 96, 1)])
    >>> [tuple(y.shape) for y in stacked(torch.zeros(8, 192, 28, 28))]
    [(8, 64, 28, 28), (8, 96, 28, 28)]
    """
    named = rules.by_name(layers)
    if reason := rules.unstackable(named, embed):
        raise FusionError(reason)
    if activation is not None and type(activation) not in rules.POINTWISE:
        known = ", ".join(kind.__name__ for kind in rules.POINTWISE)
        raise FusionError(
            f"activation: expected a module that treats each number alone ({known}), got "
            f"{activation!r}"
        )
    return Stacked(named, activation, hoist)


def unstack(stacked: "Stacked") -> dict[str, nn.Module]:
    """The separate layers again, with the current weights: {name: layer}.

    Layers that had no bias get none back. Raises FusionError for anything but a Stacked.

    Examples
    --------
    >>> unstack(stack([nn.Linear(4, 2), nn.Linear(4, 3)]))["1"]
    Linear(in_features=4, out_features=3, bias=True)
    """
    if not isinstance(stacked, Stacked):
        raise FusionError(f"stacked: expected a Stacked, got type {type(stacked).__name__}")
    return stacked.unstack()


def split(y: torch.Tensor, sizes: Iterable[int], dim: int) -> tuple[torch.Tensor, ...]:
    """Cut `y` along `dim` into parts of the given sizes, in order: views of `y`.

    Raises FusionError where the sizes do not add up to the size of `dim`.

    Examples
    --------
    >>> [tuple(part.shape) for part in split(torch.zeros(8, 5), (2, 3), dim=1)]
    [(8, 2), (8, 3)]
    """
    if type(dim) is not int or not -y.ndim <= dim < y.ndim:
        raise FusionError(f"dim: expected one of the {y.ndim} dimensions of y, got {dim!r}")
    sizes = list(sizes) if isinstance(sizes, Iterable) else sizes
    listed = isinstance(sizes, list) and all(type(size) is int for size in sizes)
    if not listed or not sizes or min(sizes) < 0 or sum(sizes) != y.shape[dim]:
        raise FusionError(
            f"sizes: expected ints of at least 0 with the sum {y.shape[dim]}, got {sizes}"
        )
    return _views(y, sizes, dim)


def _views(y: torch.Tensor, sizes: Sequence[int], dim: int) -> tuple[torch.Tensor, ...]:
    """`split` without a look at the sizes, so that a tracer can follow it too."""
    ends = itertools.accumulate(sizes)
    return tuple(y.narrow(dim, e - size, size) for size, e in zip(sizes, ends, strict=True))


def stack_parameters(
    weights: Iterable[torch.Tensor], biases: Iterable[torch.Tensor | None]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(weight, bias) of the stacked layer: those of the branches, one after the other.

    Parameters
    ----------
    weights : list of Tensor [K_i, …]
        Of one dtype and device, and one shape but for K_i.
    biases : list of Tensor [K_i] or None
        A missing one becomes zeros where a sibling has one.

    Returns
    -------
    weight : Tensor [ΣK_i, …]
    bias : Tensor [ΣK_i] or None
        Copies, which require a gradient where those of the branches do.

    Raises
    ------
    FusionError
        They do not fit together.

    Examples
    --------
    >>> one, two = torch.ones(1, 2), torch.ones(2, 2)
    >>> stack_parameters([one, two], [torch.ones(1), None])[1]
    tensor([1., 0., 0.])
    """
    weights, biases = list(weights), list(biases)
    if not weights or len(biases) != len(weights):
        raise FusionError(
            f"biases: expected one, or None, for each of at least one weight, got "
            f"{len(biases)} for {len(weights)}"
        )
    kinds = {(str(w.dtype), str(w.device), tuple(w.shape[1:])) for w in weights}
    if len(kinds) > 1:
        raise FusionError(
            f"weights: expected one dtype, device and shape [K_i, …], got {sorted(kinds)}"
        )
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        if b is not None and (b.shape != w.shape[:1] or b.dtype != w.dtype):
            raise FusionError(
                f"biases[{i}]: expected {w.dtype} {[len(w)]}, got {b.dtype} {list(b.shape)}"
            )
    # Not torch.cat alone: by the strides of its weight a convolution chooses a layout.
    weight = torch.cat([w.detach() for w in weights], out=_memory.room(weights))
    weight.requires_grad_(weights[0].requires_grad)
    present = [b for b in biases if b is not None]
    if not present:
        return weight, None
    pairs = zip(weights, biases, strict=True)
    full = [w.new_zeros(len(w)) if b is None else b for w, b in pairs]
    return weight, torch.cat(full).detach().requires_grad_(present[0].requires_grad)


class Stacked(nn.Module):
    """Siblings as one layer; use `stack` to make one.

    forward: x -> a tuple with the output of each branch, in order. Without an activation
    these are views of one tensor. With one they are views where each branch is in one piece
    (one image in NCHW, one row of a Linear). Otherwise a branch is a strided part, which a
    consumer may copy to make it contiguous; there the activation is applied to each branch,
    and returns dense tensors unless it works in place. With hoist it is applied once in any
    case.

    Its state_dict is that of the separate layers in an nn.ModuleDict, and each loads that
    of the other. If only some siblings have a bias, a mask keeps the zero biases of the
    others at zero, at the price of one small operator. While gradients are recorded, a mask
    does the same for the zeros around embedded windows.

    Attributes
    ----------
    layer : nn.Module
        The layer that computes all branches.
    names : tuple of str
    sizes : tuple of int
        K_i, the number of outputs of each branch.
    dim : int
        The dimension of the output along which the branches lie.
    """

    layer: Any  # one of `rules.KINDS`
    missing_bias_mask: torch.Tensor | None
    margin_mask: torch.Tensor | None

    def __init__(
        self,
        layers: dict[str, Any],
        activation: nn.Module | None = None,
        hoist: bool = False,
    ) -> None:
        super().__init__()
        self.activation, self.hoist = activation, hoist
        first = next(iter(layers.values()))
        self.names = tuple(layers)
        self.sizes = tuple(m.weight.shape[0] for m in layers.values())
        self.has_bias = tuple(m.bias is not None for m in layers.values())
        # Channels lie before the pixels, the features of a Linear after all else.
        self.dim = 1 - first.weight.ndim
        members = list(layers.values())
        self.windows = tuple(windows.window(m) for m in members)
        window = self.windows[0]
        self.places_in_window: tuple[tuple[slice, ...], ...] = ((),) * len(members)
        weights = [m.weight for m in members]
        if windows.mixed(members):
            window = windows.common(members)
            self.places_in_window = tuple((slice(None), *window.place(m)) for m in members)
            grad = weights[0].requires_grad
            weights = [window.embed(m).requires_grad_(grad) for m in members]
        weight, bias = stack_parameters(weights, [m.bias for m in members])
        self.layer = _like(first, weight, bias, window)
        self.register_buffer("missing_bias_mask", None, persistent=False)
        self.register_buffer("margin_mask", None, persistent=False)
        self.set_masks(weight.device)
        self.register_state_dict_post_hook(_state.after_state_dict)
        self.register_load_state_dict_pre_hook(_state.before_load)
        self.train(first.training)

    def set_masks(self, device: torch.device) -> None:
        """Mark what belongs to no branch: missing biases, zeros around small windows."""
        if any(self.has_bias) and not all(self.has_bias):
            rows = zip(self.sizes, self.has_bias, strict=True)
            flags = [not has for size, has in rows for _ in range(size)]
            self.missing_bias_mask = torch.tensor(flags, device=device)  # [K]
        if any(self.places_in_window):
            weight = self.layer.weight
            shape = (len(weight), 1, *weight.shape[2:])
            self.margin_mask = torch.ones(shape, dtype=torch.bool, device=device)
            for place in _state.places(self):
                self.margin_mask[place] = False

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x -> the outputs of all branches in one tensor, along `dim`."""
        learns = self.margin_mask is not None and torch.is_grad_enabled()
        if self.missing_bias_mask is None and not learns:
            return self.layer(x)
        weight, bias = self.layer.weight, self.layer.bias
        if learns:
            weight = weight.masked_fill(self.margin_mask, 0)
        if self.missing_bias_mask is not None:
            bias = bias.masked_fill(self.missing_bias_mask, 0)
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.product(x)
        if self.activation is not None and (self.hoist or self._in_one_piece(y)):
            # It may keep its result for the gradient, which has to learn of it when a
            # branch is changed in place: proper views.
            return _views(self.activation(y), self.sizes, self.dim)
        # Not split: autograd forbids changing its views in place, as nn.ReLU(True) does.
        # It is safe: the parts do not overlap, and nothing else has a reference to y.
        parts = y.unsafe_split_with_sizes(self.sizes, self.dim)
        if self.activation is None:
            return parts
        return tuple(self.activation(parts[i]) for i in range(len(self.sizes)))

    def _in_one_piece(self, y: torch.Tensor) -> bool:
        """Whether each branch is contiguous as a part of y: one image in NCHW, one row."""
        if isinstance(y, torch.fx.Proxy) or torch.jit.is_tracing():
            return False  # a tracer writes down one program for all inputs
        return math.prod(y.shape[: self.dim]) == 1 and y.is_contiguous()

    def unstack(self) -> dict[str, nn.Module]:
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

    def extra_repr(self) -> str:
        return ", ".join(f"{n}: {s}" for n, s in zip(self.names, self.sizes, strict=True))


def _like(
    layer: Any, weight: torch.Tensor, bias: torch.Tensor | None,
    window: windows.Window | None,
) -> nn.Module:  # fmt: skip
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
