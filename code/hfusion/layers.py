"""Sibling layers as one layer, and the way back. torch, no graphs.

Siblings are layers of one kind that read the same input: their weights differ
in one size only, the number of output channels. So they stack:

    x ──► layer 0 ──► y0              x ──► [layer 0]     ┌► y0
    x ──► layer 1 ──► y1      =             [layer 1] ──► ├► y1
    x ──► layer 2 ──► y2                    [layer 2]     └► y2
       three launches                   one launch, three views

`stack` gives the right-hand side, `unstack` the left-hand side again, bit for
bit. In between, state_dict() has the keys and shapes of the left-hand side.
"""

from collections.abc import Mapping

import torch
from torch import nn

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class FusionError(ValueError):
    """Layers that cannot be stacked, or a state_dict that does not fit them."""


def _settings(layer, name):
    """The settings that a layer's parameters have for `name`, as a sorted list."""
    return sorted({str(getattr(p, name)) for p in layer.parameters()})


def _has_hooks(layer):
    kinds = ("_forward", "_forward_pre", "_backward", "_backward_pre")
    return any(getattr(layer, f"{kind}_hooks") for kind in kinds)


# Why one layer cannot be stacked: (name, what it is, does it fit, what fits).
ALONE = (
    ("type", lambda m: type(m).__name__, lambda m: type(m) in KINDS,
     "Conv1d, Conv2d, Conv3d or Linear itself, no subclass"),
    ("groups", lambda m: m.groups, lambda m: getattr(m, "groups", 1) == 1, "1"),
    ("hooks", lambda m: "set", lambda m: not _has_hooks(m),
     "no hooks, since they would not be called"),
    ("dtype", lambda m: _settings(m, "dtype"), lambda m: len(_settings(m, "dtype")) == 1,
     "one dtype for weight and bias"),
    ("requires_grad", lambda m: _settings(m, "requires_grad"),
     lambda m: len(_settings(m, "requires_grad")) == 1, "one setting for weight and bias"),
)  # fmt: skip

# What siblings must have in common: (name, how to read it).
TOGETHER = (
    ("type", lambda m: type(m).__name__),
    ("in_channels", lambda m: getattr(m, "in_channels", None)),
    ("in_features", lambda m: getattr(m, "in_features", None)),
    ("kernel_size", lambda m: getattr(m, "kernel_size", None)),
    ("stride", lambda m: getattr(m, "stride", None)),
    ("padding", lambda m: getattr(m, "padding", None)),
    ("padding_mode", lambda m: getattr(m, "padding_mode", None)),
    ("dilation", lambda m: getattr(m, "dilation", None)),
    ("dtype", lambda m: str(m.weight.dtype)),
    ("device", lambda m: str(m.weight.device)),
    ("requires_grad", lambda m: m.weight.requires_grad),
    ("training", lambda m: m.training),
)


def refusal(layers):
    """Why these layers cannot be stacked, in a sentence; "" if they can.

    layers: a list of modules, or a dict from names to modules.
    """
    named = _named(layers)
    if not named:
        return "layers is empty; one layer or more fits"
    for key, layer in named.items():
        for name, show, fits, wanted in ALONE:
            if not fits(layer):
                return f"{name} of layers[{key}] was {show(layer)}; {wanted} fits"
    for name, read in TOGETHER:
        values = {key: read(layer) for key, layer in named.items()}
        if len({repr(value) for value in values.values()}) > 1:
            listed = ", ".join(f"layers[{key}] {value}" for key, value in values.items())
            return f"{name} differs: {listed}; siblings have one {name}"
    parameters = [p for layer in named.values() for p in layer.parameters()]
    if len({id(p) for p in parameters}) < len(parameters):
        return "layers share a parameter; separate layers with tensors of their own fit"
    return ""


def stack(layers):
    """One layer that computes what several siblings compute.

    layers: a list (or a dict, or nn.ModuleList / ModuleDict) of Conv1d, Conv2d,
    Conv3d or Linear that agree in everything but their number of outputs, some
    biases possibly missing. They are left as they were; the weights are copied.
    Values are not looked at: a NaN stays in the rows of its own branch.
    Raises FusionError where they do not fit together.
    Source: Lei Mao, "Neural Network 1x1 Convolution Horizontal Fusion".

    >>> stacked = stack([nn.Conv2d(192, 64, 1), nn.Conv2d(192, 96, 1)])
    >>> [tuple(y.shape) for y in stacked(torch.zeros(8, 192, 28, 28))]
    [(8, 64, 28, 28), (8, 96, 28, 28)]
    """
    reason = refusal(layers)
    if reason:
        raise FusionError(reason)
    return Stacked(_named(layers))


def unstack(stacked):
    """The separate layers again, with the current weights: a ModuleDict by name.

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
    if not -y.ndim <= dim < y.ndim:
        raise ValueError(f"dim was {dim}; y has {y.ndim} dimensions")
    if any(size < 0 for size in sizes) or sum(sizes) != y.shape[dim]:
        raise ValueError(
            f"sizes was {list(sizes)}, in all {sum(sizes)}; no negative size, "
            f"in all {y.shape[dim]} fits (dim {dim} of y {list(y.shape)})"
        )
    return torch.split(y, list(sizes), dim=dim)


class Stacked(nn.Module):
    """Siblings as one layer; use `stack` to make one.

    forward: x -> a tuple with each branch's output, in order, all views of one
    tensor. Its state_dict is that of the separate layers in an nn.ModuleDict,
    and each loads the other's.
    """

    def __init__(self, layers):
        super().__init__()
        first = next(iter(layers.values()))
        self.names = tuple(layers)
        self.sizes = tuple(m.weight.shape[0] for m in layers.values())
        self.has_bias = tuple(m.bias is not None for m in layers.values())
        # Channels lie in front of the pixels; a Linear has none behind it.
        self.dim = -1 if isinstance(first, nn.Linear) else 1 - first.weight.ndim
        self.layer = _resized(first, sum(self.sizes), any(self.has_bias))
        with torch.no_grad():
            # A new Parameter, not copy_: it keeps the siblings' memory format.
            weight = torch.cat([m.weight for m in layers.values()])
            self.layer.weight = nn.Parameter(weight, first.weight.requires_grad)
            if any(self.has_bias):
                self.layer.bias.copy_(
                    torch.cat([_bias_or_zeros(m) for m in layers.values()])
                )
        keep = None
        if any(self.has_bias) and not all(self.has_bias):
            keep = torch.cat(
                [
                    torch.full_like(self.layer.bias[:size], has).detach()
                    for size, has in zip(self.sizes, self.has_bias, strict=True)
                ]
            )
        self.register_buffer("keep", keep, persistent=False)
        self.register_state_dict_post_hook(_split_state)
        self.register_load_state_dict_pre_hook(_stack_state)

    def forward(self, x):
        if self.keep is None or not torch.is_grad_enabled():
            y = self.layer(x)
        else:
            # A bias that was missing must not learn: its gradient is masked.
            bias = self.layer.bias * self.keep
            y = torch.func.functional_call(self.layer, {"bias": bias}, (x,))
        return torch.split(y, list(self.sizes), dim=self.dim)

    def unstack(self):
        """See `hfusion.layers.unstack`."""
        layers = nn.ModuleDict()
        for name, size, has in zip(self.names, self.sizes, self.has_bias, strict=True):
            layers[name] = _resized(self.layer, size, has)
        layers.load_state_dict(self.state_dict())
        return layers

    def extra_repr(self):
        return ", ".join(f"{n}: {s}" for n, s in zip(self.names, self.sizes, strict=True))


def _named(layers):
    """The layers by name, in order; a list's names are its indices."""
    if isinstance(layers, Mapping | nn.ModuleDict):
        return {str(key): layer for key, layer in layers.items()}
    try:
        named = {str(index): layer for index, layer in enumerate(layers)}
    except TypeError:
        raise FusionError(
            f"layers was a {type(layers).__name__}; a list or dict of layers fits"
        ) from None
    return named


def _bias_or_zeros(layer):
    c_out = layer.weight.shape[0]
    return layer.weight.new_zeros(c_out) if layer.bias is None else layer.bias


def _resized(layer, width, bias):
    """A layer like `layer` with `width` outputs, its values not yet set."""
    weight = layer.weight
    if isinstance(layer, nn.Linear):
        sizes, settings = (layer.in_features, width), {}
    else:
        sizes = (layer.in_channels, width, layer.kernel_size)
        names = ("stride", "padding", "dilation", "padding_mode")
        settings = {name: getattr(layer, name) for name in names}
    new = nn.utils.skip_init(
        type(layer), *sizes, bias=bias, device=weight.device, dtype=weight.dtype, **settings
    )
    return new.requires_grad_(weight.requires_grad).train(layer.training)


def _pieces(module, prefix):
    """(parameter of the stacked layer, [(key of the branch's part, start, end), …])."""
    every = [True] * len(module.sizes)
    for parameter, present in (("weight", every), ("bias", module.has_bias)):
        pieces, start = [], 0
        for name, size, has in zip(module.names, module.sizes, present, strict=True):
            key = f"{prefix}{name}.{parameter}" if has else None
            pieces.append((key, start, start + size))
            start += size
        if any(present):
            yield parameter, pieces


def _split_state(module, state_dict, prefix, local_metadata):
    """After state_dict(): the stacked tensors become the branches' own, as views."""
    parts = {}
    for parameter, pieces in _pieces(module, prefix):
        whole = state_dict.pop(f"{prefix}layer.{parameter}")
        parts.update({key: whole[start:end] for key, start, end in pieces if key})
    for name in module.names:  # the order of separate layers: a weight, then its bias
        for key in (f"{prefix}{name}.weight", f"{prefix}{name}.bias"):
            if key in parts:
                state_dict[key] = parts[key]


def _stack_state(module, state_dict, prefix, metadata, strict, missing, unexpected, errors):
    """Before load_state_dict(): the branches' tensors become the stacked ones."""
    for parameter, pieces in _pieces(module, prefix):
        whole = getattr(module.layer, parameter).detach().clone()
        for key, start, end in pieces:
            if key is None:  # this branch has no bias
                continue
            part, place = state_dict.pop(key, None), whole[start:end]
            if part is None:
                missing.append(key)
            elif part.shape != place.shape:
                errors.append(f"{key} was {list(part.shape)}; {list(place.shape)} fits")
            else:
                place.copy_(part)
        state_dict[f"{prefix}layer.{parameter}"] = whole
