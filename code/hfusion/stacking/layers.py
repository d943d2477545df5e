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

import itertools
import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ..errors import FusionError
from . import embedding

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

# Activations that treat each number alone, so that they commute with the split:
# the module, and what functions and methods with the same result are called.
POINTWISE = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.LeakyReLU: "leaky_relu", nn.ELU: "elu",
    nn.GELU: "gelu", nn.SiLU: "silu", nn.Mish: "mish", nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh", nn.Softplus: "softplus", nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
}  # fmt: skip


def kind_of(module):
    """Which of KINDS a module is, or claims to be; None for all others.

    Quantised layers have the names of those that they replace.
    """
    named = {kind.__name__: kind for kind in KINDS}
    kinds = (kind for kind in KINDS if isinstance(module, kind))
    return next(kinds, named.get(type(module).__name__))


def _settings(layer, name):
    """What a layer's parameters have for `name`: one entry if they agree."""
    return sorted({str(getattr(p, name)) for p in layer.parameters()})


def hooks(layer):
    """The hooks that stacking would lose: of the layer and of its parameters."""
    kinds = ("forward", "forward_pre", "backward", "backward_pre", "state_dict")
    kinds += ("state_dict_pre", "load_state_dict_pre", "load_state_dict_post")
    found = [kind for kind in kinds if getattr(layer, f"_{kind}_hooks", None)]
    tensors = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return found + [
        "tensor" for p in layer.parameters() if any(getattr(p, name) for name in tensors)
    ]


def _axes(layer):
    """How many axes a layer's weight has: rows, inputs, and those of a window."""
    return 2 + len(getattr(layer, "kernel_size", ()))


_METHODS = ("forward", "_conv_forward", "train", "eval")


def ours(layer, name):
    """Whether a fused model has put this method there."""
    return getattr(getattr(vars(layer)[name], "__self__", None), "routes", False)


def _extras(layer):
    """What somebody has added to a layer: methods of its own, buffers, modules."""
    # What a fused model puts there goes back to what the class does.
    methods = [name for name in _METHODS if name in vars(layer) and not ours(layer, name)]
    parameters = [name for name in layer._parameters if name not in ("weight", "bias")]
    return [*methods, *parameters, *layer._buffers, *layer._modules]


# Why one layer cannot be stacked: (name, what it is, does it fit, what fits).
ALONE = (
    ("type", lambda m: type(m).__name__, lambda m: type(m) in KINDS,
     "Conv1d, Conv2d, Conv3d or Linear itself, no subclass"),
    ("groups", lambda m: m.groups, lambda m: getattr(m, "groups", 1) == 1, "1"),
    ("hooks", hooks, lambda m: not hooks(m), "none, since they would not be called,"),
    ("extras", _extras, lambda m: not _extras(m), "none, since they would be lost,"),
    ("dtype", lambda m: _settings(m, "dtype"), lambda m: len(_settings(m, "dtype")) == 1,
     "one for weight and bias"),
    ("device", lambda m: _settings(m, "device"), lambda m: len(_settings(m, "device")) == 1,
     "one for weight and bias"),
    ("size of weight", lambda m: tuple(m.weight.shape), lambda m: m.weight.ndim == _axes(m),
     "one with the axes of its kind"),
    ("size of bias", lambda m: tuple(m.bias.shape),
     lambda m: m.bias is None or m.bias.shape == m.weight.shape[:1],
     "one number for each row of weight"),
)  # fmt: skip

# What decides which numbers a layer computes from its input, besides its weights …
GEOMETRY = ("in_channels", "in_features", "kernel_size", "stride", "padding")
GEOMETRY += ("padding_mode", "dilation")
# … and what of it may differ if a smaller window is embedded in a larger one.
WINDOW = ("kernel_size", "padding", "dilation", "size of weight", "strides of weight")

# … and what a layer may keep where its weight lies beside others' (see `fusing`).
KEPT = ("hooks", "requires_grad of weight", "requires_grad of bias")
KEPT += ("requires_grad of output", "training")


def in_effect(layer, name, default=None):
    """A setting of GEOMETRY by what it does; None where it does nothing, or is not there.

    >>> in_effect(nn.Conv2d(1, 1, 3, padding="same"), "padding")
    (1, 1)
    >>> in_effect(nn.Conv2d(1, 1, 1, dilation=2), "dilation")
    (None, None)
    """
    value = getattr(layer, name, default)
    if name == "dilation" and value is not None:
        return tuple(embedding.dilation(layer, axis) for axis in range(len(value)))
    if name == "padding" and value is not None and embedding.even(layer):
        spans = zip(layer.dilation, layer.kernel_size, strict=True)
        return {
            "same": tuple(step * (side - 1) // 2 for step, side in spans),
            "valid": (0,) * len(layer.kernel_size),
        }.get(value, value)
    if name == "padding_mode" and not any(in_effect(layer, "padding") or ()):
        return None
    return value


# What siblings must have in common: (name, how to read it; None where it has none).
TOGETHER = (
    ("type", lambda m: type(m).__name__),
    *((name, lambda m, name=name: in_effect(m, name)) for name in GEOMETRY),
    ("dtype", lambda m: str(m.weight.dtype)),
    ("device", lambda m: str(m.weight.device)),
    ("size of weight", lambda m: tuple(m.weight.shape[1:])),
    ("strides of weight", lambda m: m.weight.stride()[1:]),
    ("requires_grad of weight", lambda m: m.weight.requires_grad),
    ("requires_grad of bias", lambda m: None if m.bias is None else m.bias.requires_grad),
    ("requires_grad of output", lambda m: any(p.requires_grad for p in m.parameters())),
    ("training", lambda m: m.training),
)
EMBEDDED = (*(row for row in TOGETHER if row[0] not in WINDOW), *embedding.TOGETHER)


def refusal(layers, embed=False, kept=()):
    """Why these layers cannot be stacked, in a sentence; "" if they can.

    layers: a list of modules, or a dict from names to modules. embed: whether small
    windows may be embedded in larger ones. kept: what need not be looked at, names of rows.

    >>> print(refusal([nn.Linear(4, 2), nn.Linear(5, 2)]))
    in_features differs: layers[0] 4, layers[1] 5; siblings have one in_features
    """
    try:
        named = _named(layers)
    except FusionError as error:
        return str(error)
    return _refusal(named, embed, kept)


def _refusal(named, embed, kept=()):
    if not named:
        return "layers is empty; one layer or more fits"
    labelled = {f"layers[{name}]": layer for name, layer in named.items()}
    alone = (unfit(label, layer, kept) for label, layer in labelled.items())
    return next(filter(None, alone), "") or unlike(labelled, embed, kept) or tied(labelled)


def tied(labelled):
    """Whether layers share a parameter, in a sentence; "" if not.

    >>> one = nn.Linear(4, 4)
    >>> tied({"one": one, "the same": one})[:31]
    'one and the same share a parame'
    """
    owners = {}
    for label, layer in labelled.items():
        for p in layer.parameters():
            # On "meta" there is no address.
            owner = owners.setdefault(p.data_ptr() or id(p), label)
            if owner != label:
                return (
                    f"{owner} and {label} share a parameter; separate layers with tensors "
                    "of their own fit"
                )
    return ""


def unfit(label, layer, kept=()):
    """Why a layer cannot be stacked with any other, in a sentence; "" if it can.

    >>> unfit("depthwise", nn.Conv2d(4, 4, 3, groups=4))
    'groups of depthwise was 4; 1 fits'
    """
    return _first_misfit(label, layer, [row for row in ALONE if row[0] not in kept])


def _first_misfit(label, layer, rows):
    for name, show, fits, wanted in rows:
        if not fits(layer):
            return f"{name} of {label} was {show(layer)}; {wanted} fits"
    return ""


def unlike(labelled, embed=False, kept=()):
    """In what labelled layers differ though siblings must not; "" if in nothing.

    embed: whether small windows may be embedded in larger ones.
    """
    rows = TOGETHER
    if embed and embedding.mixed(labelled.values()):
        rows = EMBEDDED
        for label, layer in labelled.items():
            if reason := _first_misfit(label, layer, embedding.ALONE):
                return reason
    for name, read in rows:
        if name in kept:
            continue
        values = {label: read(layer) for label, layer in labelled.items()}
        values = {label: value for label, value in values.items() if value is not None}
        if len({repr(value) for value in values.values()}) > 1:
            listed = ", ".join(f"{label} {value}" for label, value in values.items())
            return f"{name} differs: {listed}; siblings have one {name}"
    return ""


def stack(layers, activation=None, embed=False, hoist=False):
    """One layer that computes what several siblings compute.

    layers: a list (or a dict, or nn.ModuleList / ModuleDict) of Conv1d, Conv2d,
    Conv3d or Linear that agree in everything but their number of outputs, some
    biases possibly missing. They are left as they were; the weights are copied.
    Values are not looked at: a NaN stays in the rows of its own branch.
    activation: a module of one of the classes in POINTWISE, which treat each number alone,
    as ReLU does; applied once where the branches lie in one piece each, else to each of
    them (see `Stacked`). hoist: apply it once in any case. embed: embed small windows in
    the largest (see `embedding`), which takes more multiply-adds. Raises FusionError where
    they do not fit together, and for any other activation.
    Source: Lei Mao, "Neural Network 1x1 Convolution Horizontal Fusion".

    >>> stacked = stack([nn.Conv2d(192, 64, 1), nn.Conv2d(192, 96, 1)])
    >>> [tuple(y.shape) for y in stacked(torch.zeros(8, 192, 28, 28))]
    [(8, 64, 28, 28), (8, 96, 28, 28)]
    """
    named = _named(layers)
    reason = _refusal(named, embed)
    if reason:
        raise FusionError(reason)
    if activation is not None and type(activation) not in POINTWISE:
        known = ", ".join(kind.__name__ for kind in POINTWISE)
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
        self.windows = tuple(embedding.window(m) for m in members)
        window, self.inside = self.windows[0], ((),) * len(members)
        weights = [m.weight for m in members]
        if embedding.mixed(members):
            window = embedding.common(members)
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
        self.register_state_dict_post_hook(_after_state_dict)
        self.register_load_state_dict_pre_hook(_before_load)

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
            for place in places(self):
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
        """See `hfusion.stacking.layers.unstack`."""
        weight, bias = self.layer.weight, self.layer.bias
        branches = zip(self.names, places(self), self.has_bias, self.windows, strict=True)
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


def _named(layers):
    """The layers by name, in order; a list's names are its indices."""
    if isinstance(layers, Mapping | nn.ModuleDict):
        named = dict(layers.items())
    elif isinstance(layers, Iterable):
        named = {str(index): layer for index, layer in enumerate(layers)}
    else:
        raise FusionError(f"layers was a {type(layers).__name__}; a list or dict fits")
    for name in named:
        if not isinstance(name, str) or not name:
            raise FusionError(
                f"layers has the name {name!r}; a string that is not empty fits"
            )
    return named


def places(stacked):
    """Where each branch lies in the stacked weight: its rows, and its window in theirs.

    >>> places(stack([nn.Linear(4, 2), nn.Linear(4, 3)]))
    [(slice(0, 2, None),), (slice(2, 5, None),)]
    """
    ends = itertools.accumulate(stacked.sizes)
    branches = zip(stacked.sizes, ends, stacked.inside, strict=True)
    return [(slice(end - size, end), *inside) for size, end, inside in branches]


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


def _pieces(stacked, prefix):
    """(parameter of the stacked layer, [(key of a branch's part, its place), …])."""
    branches = [*zip(stacked.names, places(stacked), stacked.has_bias, strict=True)]
    yield "weight", [(f"{prefix}{name}.weight", place) for name, place, _ in branches]
    biases = [(f"{prefix}{name}.bias", place[:1]) for name, place, has in branches if has]
    if biases:
        yield "bias", biases


def split_state(stacked, state, at, to):
    """In a state: the tensors of a Stacked, below `at`, become its branches', below `to`.

    state: a dict by key, changed in place; the branches' tensors are views. at, to:
    the beginning of the keys, with a dot at the end, or "".
    """
    parts = {}
    for parameter, pieces in _pieces(stacked, to):
        whole = state.pop(f"{at}layer.{parameter}")
        parts |= {key: whole[place] for key, place in pieces}
    for name in stacked.names:  # in the order of separate layers
        for key in (f"{to}{name}.weight", f"{to}{name}.bias"):
            if key in parts:
                state[key] = parts[key]


def stack_state(stacked, state, at, to, assign=False):
    """The way back: the branches' tensors below `to` become the stacked ones below `at`.

    assign: take dtype and device from the state, not from the layer. Returns
    (missing keys, sentences about tensors that do not fit); what is missing or does
    not fit stays as it is.
    """
    missing, errors = [], []
    for parameter, pieces in _pieces(stacked, to):
        now, found = getattr(stacked.layer, parameter).detach(), []
        for key, place in pieces:
            part, fits = state.pop(key, None), now[place].shape
            if part is None:
                missing.append(key)
            elif getattr(part, "shape", None) != fits:
                was = list(getattr(part, "shape", [])) or type(part).__name__
                errors.append(f"{key} was {was}; a tensor {list(fits)} fits")
            else:
                found.append((place, torch.as_tensor(part)))
        if len(found) == len(pieces):
            like = found[0][1] if assign else now
            whole = torch.zeros_like(now, dtype=like.dtype, device=like.device)
        else:
            whole = now.clone()
        for place, part in found:
            whole[place] = part
        state[f"{at}layer.{parameter}"] = whole
    # The masks are in no state, so after to_empty() they are still unset.
    stacked._set_masks(whole.device)
    return missing, errors


def _after_state_dict(module, state_dict, prefix, metadata):
    split_state(module, state_dict, prefix, prefix)


def _before_load(module, state_dict, prefix, metadata, strict, missing, unexpected, errors):
    branches = {key for _, pieces in _pieces(module, prefix) for key, _ in pieces}
    own = {f"{prefix}layer.weight", f"{prefix}layer.bias"} - branches
    unexpected += sorted(own & set(state_dict))
    assign = metadata.get("assign_to_params_buffers", False)
    lacking, unfitting = stack_state(module, state_dict, prefix, prefix, assign)
    missing += lacking
    errors += unfitting
