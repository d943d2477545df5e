"""Which layers can be stacked: tables of rules, and the reason where one is broken. torch.

Siblings are layers of one kind that read the same input. Their weights differ in one
size only, the number of output channels. `ALONE` lists what each layer must satisfy by
itself, `TOGETHER` what siblings must have in common.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import FusionError
from . import windows

# A list or a dict of layers, as users have them.
Layers = Iterable[nn.Module] | Mapping[str, nn.Module] | nn.ModuleDict
Kind = type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d] | type[nn.Linear]
KINDS: tuple[Kind, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

# Activations that treat each number alone, so that they commute with the split:
# the module, and what functions and methods with the same result are called.
POINTWISE: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.LeakyReLU: "leaky_relu", nn.ELU: "elu",
    nn.GELU: "gelu", nn.SiLU: "silu", nn.Mish: "mish", nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh", nn.Softplus: "softplus", nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
}  # fmt: skip


def kind_of(module: object) -> Kind | None:
    """Which of KINDS a module is, or claims to be; None for all others.

    Quantised layers have the names of those that they replace.
    """
    named = {kind.__name__: kind for kind in KINDS}
    kinds = (kind for kind in KINDS if isinstance(module, kind))
    return next(kinds, named.get(type(module).__name__))


def _kind_in_words(layer: nn.Module) -> str:
    """A layer's class; with its module where the name alone is that of one of KINDS."""
    kind = type(layer)
    alike = kind.__name__ in {known.__name__ for known in KINDS} and kind not in KINDS
    return f"{kind.__module__}.{kind.__name__}" if alike else kind.__name__


_HOOKS = ("forward", "forward_pre", "backward", "backward_pre", "state_dict",
          "state_dict_pre", "load_state_dict_pre", "load_state_dict_post")  # fmt: skip
_METHODS = ("forward", "_conv_forward", "train", "eval")


def _settings(layer: nn.Module, name: str) -> list[str]:
    """What a layer's parameters have for `name`: one entry if they agree."""
    return sorted({str(getattr(p, name)) for p in layer.parameters()})


def hooks(layer: nn.Module) -> list[str]:
    """The hooks that stacking would lose: of the layer and of its parameters."""
    found = [kind for kind in _HOOKS if getattr(layer, f"_{kind}_hooks", None)]
    tensors = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return found + [
        "tensor" for p in layer.parameters() if any(getattr(p, name) for name in tensors)
    ]


def _axes(layer: nn.Module) -> int:
    """How many axes a layer's weight has: rows, inputs, and those of a window."""
    return 2 + len(getattr(layer, "kernel_size", ()))


def ours(layer: nn.Module, name: str) -> bool:
    """Whether a fused model has put this method there."""
    return bool(getattr(getattr(vars(layer)[name], "__self__", None), "routes", False))


def _extras(layer: nn.Module) -> list[str]:
    """What users have added to a layer: methods of its own, buffers, modules."""
    # What a fused model puts there goes back to what the class does.
    methods = [name for name in _METHODS if name in vars(layer) and not ours(layer, name)]
    parameters = [name for name in layer._parameters if name not in ("weight", "bias")]
    return [*methods, *parameters, *layer._buffers, *layer._modules]


_PLAIN = {"weight": (nn.Parameter,), "bias": (nn.Parameter, type(None))}


def odd(layer: nn.Module) -> dict[str, str]:
    """What a layer has for weight and bias where that is no plain Parameter.

    torchao puts tensors of its own classes there, others put plain tensors.

    >>> layer = nn.Linear(2, 2)
    >>> del layer.weight
    >>> layer.weight = torch.ones(2, 2)
    >>> odd(layer)
    {'weight': 'Tensor'}
    """
    own: dict[str, Any] = layer._parameters
    found = {}
    for name, kinds in _PLAIN.items():
        value: Any = getattr(layer, name, "missing")
        if type(value) not in kinds or own.get(name, "") is not value:
            found[name] = value if isinstance(value, str) else type(value).__name__
        elif value is not None and value.layout != torch.strided:
            found[name] = str(value.layout)
    return found


class Rule(NamedTuple):
    """What each layer must satisfy, and the words for it where one does not."""

    name: str
    found: Callable[[Any], object]
    fits: Callable[[Any], bool]
    expected: str


ALONE = (
    Rule("type", _kind_in_words, lambda m: type(m) in KINDS,
         "Conv1d, Conv2d, Conv3d or Linear itself, no subclass"),
    Rule("groups", lambda m: m.groups, lambda m: getattr(m, "groups", 1) == 1, "1"),
    Rule("hooks", hooks, lambda m: not hooks(m), "none, since they would not be called"),
    Rule("extras", _extras, lambda m: not _extras(m), "none, since they would be lost"),
    Rule("parameters", odd, lambda m: not odd(m), "a plain nn.Parameter each, or no bias"),
    Rule("dtype", lambda m: _settings(m, "dtype"),
         lambda m: len(_settings(m, "dtype")) == 1, "the same for weight and bias"),
    Rule("device", lambda m: _settings(m, "device"),
         lambda m: len(_settings(m, "device")) == 1, "the same for weight and bias"),
    Rule("size of weight", lambda m: tuple(m.weight.shape),
         lambda m: m.weight.ndim == _axes(m), "one with the axes of its kind"),
    Rule("size of bias", lambda m: tuple(m.bias.shape),
         lambda m: m.bias is None or m.bias.shape == m.weight.shape[:1],
         "one number for each row of weight"),
)  # fmt: skip

# What embedding a small window in a larger one needs of each layer besides …
EMBEDDABLE = (
    Rule("padding_mode", lambda m: repr(m.padding_mode),
         lambda m: m.padding_mode == "zeros", "'zeros', for a larger window"),
    Rule("padding", lambda m: "different ones", windows.even,
         "the same on both sides, for a larger window"),
)  # fmt: skip

# What decides which numbers a layer computes from its input, besides its weights …
GEOMETRY = ("in_channels", "in_features", "kernel_size", "stride", "padding",
            "padding_mode", "dilation")  # fmt: skip
# … and what of it may differ if a smaller window is embedded in a larger one.
WINDOW = ("kernel_size", "padding", "dilation", "size of weight", "strides of weight")

# What a layer may keep where it stays a layer, and only its weight moves beside others'.
KEPT = ("hooks", "requires_grad of weight", "requires_grad of bias",
        "requires_grad of output", "training")  # fmt: skip


def in_effect(layer: nn.Module, name: str, default: object = None) -> Any:
    """A setting of GEOMETRY by its effect; None where it has none or does not exist.

    >>> in_effect(nn.Conv2d(1, 1, 3, padding="same"), "padding")
    (1, 1)
    >>> in_effect(nn.Conv2d(1, 1, 1, dilation=2), "dilation")
    (None, None)
    """
    value: Any = getattr(layer, name, default)
    if name == "dilation" and value is not None:
        return tuple(windows.dilation(layer, axis) for axis in range(len(value)))
    if name == "padding" and value is not None and windows.even(layer):
        return {
            "same": tuple(span // 2 for span in windows.spans(layer)),
            "valid": (0,) * len(windows.spans(layer)),
        }.get(value, value)
    if name == "padding_mode" and not any(in_effect(layer, "padding") or ()):
        return None
    return value


class Alike(NamedTuple):
    """What siblings must have in common; a layer for which it is None may have any."""

    name: str
    read: Callable[[Any], object]


TOGETHER = (
    Alike("type", lambda m: type(m).__name__),
    *(Alike(name, functools.partial(in_effect, name=name)) for name in GEOMETRY),
    Alike("dtype", lambda m: str(m.weight.dtype)),
    Alike("device", lambda m: str(m.weight.device)),
    Alike("size of weight", lambda m: tuple(m.weight.shape[1:])),
    Alike("strides of weight", lambda m: m.weight.stride()[1:]),
    Alike("requires_grad of weight", lambda m: m.weight.requires_grad),
    Alike("requires_grad of bias",
           lambda m: None if m.bias is None else m.bias.requires_grad),
    Alike("requires_grad of output",
           lambda m: any(p.requires_grad for p in m.parameters())),
    Alike("training", lambda m: m.training),
)  # fmt: skip
# The same where windows of different sizes are embedded in one.
EMBEDDED = (
    *(row for row in TOGETHER if row.name not in WINDOW),
    Alike("growth", windows.growth),
    *(Alike(f"dilation along axis {axis}", functools.partial(windows.dilation, axis=axis))
      for axis in range(3)),
    Alike("parity of kernel_size", lambda m: tuple(side % 2 for side in m.kernel_size)),
    Alike("order of weight in memory", windows.order),
)  # fmt: skip


def unstackable(layers: Layers, embed: bool = False, kept: Iterable[str] = ()) -> str:
    """Why layers cannot be stacked, in a sentence; "" if they can.

    Parameters
    ----------
    layers : list or dict of nn.Module
        The layers, or {name: layer}. The sentence names them `layers[name]`.
    embed : bool
        Whether small windows may be embedded in larger ones.
    kept : iterable of str
        Names of rules that need not hold.

    Examples
    --------
    >>> print(unstackable([nn.Linear(4, 2), nn.Linear(5, 2)]))
    in_features differs: layers[0] 4, layers[1] 5; siblings have one in_features
    """
    try:
        named = by_name(layers)
    except FusionError as error:
        return str(error)
    if not named:
        return "layers: expected at least one, got none"
    labelled = {f"layers[{name}]": layer for name, layer in named.items()}
    alone = (unfit(label, layer, kept) for label, layer in labelled.items())
    return next(filter(None, alone), "") or unlike(labelled, embed, kept) or tied(labelled)


def by_name(layers: Layers) -> dict[str, nn.Module]:
    """The layers by name, in order; a list's names are its indices."""
    if isinstance(layers, Mapping | nn.ModuleDict):
        named = dict(layers.items())
    elif isinstance(layers, Iterable):
        named = {str(index): layer for index, layer in enumerate(layers)}
    else:
        raise FusionError(
            f"layers: expected a list or dict of layers, got type {type(layers).__name__}"
        )
    for name in named:
        if not isinstance(name, str) or not name:
            raise FusionError(
                f"layers: expected a string that is not empty, got the name {name!r}"
            )
    return named


def tied(labelled: Mapping[str, nn.Module]) -> str:
    """Whether layers share a parameter, in a sentence; "" if not.

    >>> one = nn.Linear(4, 4)
    >>> tied({"one": one, "the same": one})
    'one and the same share a parameter: expected separate layers with tensors of their own'
    """
    owners: dict[int, str] = {}
    for label, layer in labelled.items():
        for p in layer.parameters():
            # On "meta" there is no address.
            owner = owners.setdefault(p.data_ptr() or id(p), label)
            if owner != label:
                return (
                    f"{owner} and {label} share a parameter: expected separate layers with "
                    "tensors of their own"
                )
    return ""


def unfit(label: str, layer: nn.Module, kept: Iterable[str] = ()) -> str:
    """Why a layer cannot be stacked with any other, in a sentence; "" if it can.

    >>> unfit("depthwise", nn.Conv2d(4, 4, 3, groups=4))
    'groups of depthwise: expected 1, got 4'
    """
    return _first_misfit(label, layer, [row for row in ALONE if row.name not in kept])


def _first_misfit(label: str, layer: nn.Module, rules: Iterable[Rule]) -> str:
    for rule in rules:
        if not rule.fits(layer):
            found = rule.found(layer)
            return f"{rule.name} of {label}: expected {rule.expected}, got {found}"
    return ""


def unlike(
    labelled: Mapping[str, nn.Module], embed: bool = False, kept: Iterable[str] = ()
) -> str:
    """How layers differ where siblings must not, in a sentence; "" if nowhere.

    embed: whether small windows may be embedded in larger ones.
    """
    rows = TOGETHER
    if embed and windows.mixed(labelled.values()):
        rows = EMBEDDED
        for label, layer in labelled.items():
            if reason := _first_misfit(label, layer, EMBEDDABLE):
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
