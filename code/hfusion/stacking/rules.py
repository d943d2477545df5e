"""Which layers can be stacked: tables of rules, and the reason where one is broken. torch.

Siblings are layers of one kind that read the same input. Their weights differ in one
size only, the number of output channels. `ALONE` lists what a single layer must satisfy,
`TOGETHER` what siblings must have in common.
"""

from collections.abc import Iterable, Mapping

from torch import nn

from ..errors import FusionError
from . import windows

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

# … and what a layer may keep where its weight lies beside others' (see `packed`).
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
        return tuple(windows.dilation(layer, axis) for axis in range(len(value)))
    if name == "padding" and value is not None and windows.even(layer):
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
EMBEDDED = (*(row for row in TOGETHER if row[0] not in WINDOW), *windows.TOGETHER)


def refusal(layers, embed=False, kept=()):
    """Why these layers cannot be stacked, in a sentence; "" if they can.

    layers: a list of modules, or a dict from names to modules. embed: whether small
    windows may be embedded in larger ones. kept: what need not be looked at, names of rows.

    >>> print(refusal([nn.Linear(4, 2), nn.Linear(5, 2)]))
    in_features differs: layers[0] 4, layers[1] 5; siblings have one in_features
    """
    try:
        named = by_name(layers)
    except FusionError as error:
        return str(error)
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
    if embed and windows.mixed(labelled.values()):
        rows = EMBEDDED
        for label, layer in labelled.items():
            if reason := _first_misfit(label, layer, windows.ALONE):
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


def by_name(layers):
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
