"""Fold batch norms into the convolutions before them, in a copy of a model. torch.

    x ──► conv W, b ──► bn γ, β, μ, σ² ──►     =     x ──► conv W', b' ──►

    W' = γ/σ · W          b' = γ/σ · (b - μ) + β          (chapter 5)

That is vertical fusion. It comes first, because after stacking one convolution has
the norms of several branches after it.

The model's forward stays its own. Its graph (torch.fx) is only read: it shows that the
norm alone reads the output of the convolution.
"""

import logging
from typing import NamedTuple

import torch
from torch import fx, nn

from ..errors import FusionError
from ..finding import aliasing
from ..finding._aside import copy_model
from ..finding.reading import Reading, same_calls
from ..stacking import _memory, rules
from . import _guards, _norms

logger = logging.getLogger("hfusion")


class Folded(nn.Module):
    """What stands where a batch norm stood that was folded: it passes its input on.

    steps: what the norm called after it had normalised, such as an activation. eval_only:
    whether the norm would have done something else in training mode.
    """

    folded = True

    def __init__(self, steps: dict[str, nn.Module], eval_only: bool, training: bool):
        super().__init__()
        for name, module in steps.items():
            self.add_module(name, module)
        vars(self).update(eval_only=eval_only, training=training)

    def __setattr__(self, name, value):
        if name == "training" and value and vars(self).get("eval_only"):
            raise FusionError(_guards.REFUSAL)
        super().__setattr__(name, value)

    def forward(self, x):
        for module in self._modules.values():
            x = module(x)
        return x


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of a model without the batch norms that follow a convolution, in eval mode.

    model: an nn.Module that torch.fx can trace, with its batch norms in eval mode; it is
    left as it was. The copy is of the same class, with the same attributes. Its forward()
    returns the same within rounding; folding itself is computed in float32 at least.
    Modules that compute what a batch norm does are folded, too: subclasses, frozen norms,
    and timm's, whose activation remains.

    A norm stays if something else reads the convolution's output, calls or shares one of
    the two modules, or has hooks on them. The reasons are logged ("hfusion": INFO, or
    WARNING where every norm stays), and `unfolded` returns them. The keys of folded norms
    are gone from the state_dict(), and each folded convolution has a bias.

    Raises FusionError if a batch norm is in training mode, where its statistics are those
    of the batch. If one was folded, train() of the copy raises it, and so does a call
    with another value for an argument of forward() that is None or a bool by default.
    Only forward() in eval mode was followed. Another method, a part of the model called
    alone, a module in training mode, or a forward that asks for an attribute or a mode of
    torch, such as no_grad, may use a convolution without its norm.
    Source: Ioffe and Szegedy 2015; torch.nn.utils.fusion.

    >>> from hfusion import models
    >>> folded = fold_batchnorm(models.GoogLeNet().eval())
    >>> norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    >>> type(folded).__name__, len(norms)
    ('GoogLeNet', 0)
    """
    study = _study(model)
    _tell(study)
    if not study.pairs:
        return study.model
    places = {}
    for pair in study.pairs:
        norm, conv = pair.norm, pair.conv
        _norms.put(conv, *pair.weights)
        folded = Folded(_norms.steps(norm), pair.eval_only, norm.training)
        parent, _, name = pair.path.rpartition(".")
        study.model.get_submodule(parent)._modules[name] = folded
        places[pair.path] = folded
    _refuse_another_way(study, places.values())
    switches = {} if isinstance(model, fx.GraphModule) else _guards.switches(model)
    eval_only = [path for path, folded in places.items() if folded.eval_only]
    _guards.hold(study.model, eval_only, switches)
    return study.model


def unfolded(model: nn.Module) -> dict[str, str]:
    """{path: why it would stay} of the norms of a model that `fold_batchnorm` leaves.

    model: as for `fold_batchnorm`, and raises the same errors.

    >>> unfolded(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)).eval())
    {'0': 'it follows input, not a convolution'}
    """
    return _study(model).reasons


class _Pair(NamedTuple):
    """A norm at a path, the one call of it, and the convolution that it reads."""

    reading: Reading
    path: str
    norm: nn.Module
    node: fx.Node | None  # the call of the norm
    before: fx.Node | None  # what the norm reads
    conv: nn.Module | None  # which may be no convolution
    weights: tuple = ()  # of the folded convolution
    eval_only: bool = True


class _Study(NamedTuple):
    """A copy of a model, what of it can be folded, and why the rest stays."""

    model: nn.Module
    reading: Reading
    pairs: list[_Pair]
    reasons: dict[str, str]


def _study(model):
    if not isinstance(model, nn.Module):
        raise FusionError(f"model: expected an nn.Module, got a {type(model).__name__}")
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise FusionError(
                f"{path or 'model'} was in training mode; call model.eval() before folding"
            )
    double = copy_model(model)
    found = {
        path: module for path, module in double.named_modules() if _norms.is_norm(module)
    }
    reading = _read(double, found.values())
    pairs, reasons = [], {}
    nodes = {
        id(reading.modules[n.target]): n for n in reading.graph.find_nodes(op="call_module")
    }
    for path, norm in found.items():
        pair = _pair(reading, path, norm, nodes.get(id(norm)))
        reason = next(filter(None, (rule(pair) for rule in RULES)), "")
        if reason:
            reasons[path] = reason
        else:
            pairs.append(_weighed(pair))
    return _Study(double, reading, pairs, reasons)


def _read(model, whole):
    """What forward does, where these modules are called whole."""
    return Reading(model, exact=True, whole=whole)


def _pair(reading, path, norm, node):
    given = [*node.args, *node.kwargs.values()] if node else []
    before = given[0] if len(given) == 1 and isinstance(given[0], fx.Node) else None
    called = before is not None and before.op == "call_module"
    conv = reading.modules[before.target] if called else None
    return _Pair(reading, path, norm, node, before, conv)


def _weighed(pair):
    eval_only = _norms.depends_on_mode(pair.norm) or not _norms.proven(
        pair.conv, pair.norm, training=True
    )
    return pair._replace(weights=_norms.weights(pair.conv, pair.norm), eval_only=eval_only)


# Why a norm stays. Each rule: pair -> reason, or something false.


def _holds_more(pair, module):
    if rules.hooks(module) or "forward" in vars(module):
        return "has hooks, or a forward() on the instance"
    own = _norms.strange(module)
    return f"has {', '.join(own)} of its own" if own else ""


def _norm_holds_more(pair):
    held = _holds_more(pair, pair.norm)
    return held and f"it {held}, which folding would lose"


def _without_statistics(pair):
    mean, var = pair.norm.running_mean, pair.norm.running_var
    if mean is None or var is None:
        return "it has no running statistics, and normalises by those of its input"
    lazy = any(map(nn.parameter.is_lazy, _norms.floats(pair.norm)))
    return lazy and "it has no statistics yet; run the model once"


def _not_called(pair):
    return pair.node is None and "forward() does not call it"


def _follows_no_convolution(pair):
    if isinstance(pair.conv, _norms.CONVS):
        return ""
    if pair.before is None:
        return "it is called with more than one tensor"
    if pair.before.op == "placeholder":
        return f"it follows {pair.before.target}, not a convolution"
    called = aliasing.name(pair.before, pair.reading.modules)
    return f"it follows {pair.before} (`{called}`), not a convolution"


def _convolution_holds_more(pair):
    held = _holds_more(pair, pair.conv)
    return held and f"{pair.before.target} {held}, which folding would not respect"


def _called_again(pair):
    for node in (pair.before, pair.node):
        module, calls = pair.reading.modules[node.target], pair.reading.calls_of
        if (count := calls(module)) > 1:
            return f"{node.target} is called {count} times"
    return ""


def _known_to_others(pair):
    """A module with two names, or within one that the graph calls whole."""
    modules = pair.reading.modules
    called = {node.target for node in pair.reading.graph.find_nodes(op="call_module")}
    for path in (pair.before.target, pair.node.target):
        names = [name for name, module in modules.items() if module is modules[path]]
        if len(names) > 1:
            return f"{names[0]} is also {names[1]}"
        above = {path[:at] for at, letter in enumerate(path) if letter == "."}
        if whole := next(iter(above & called), ""):
            return f"{path} may be called by {whole}, which the graph calls whole"
    return ""


def _shared_tensors(pair):
    read = {node.target for node in pair.reading.graph.find_nodes(op="get_attr")}
    for path in (pair.before.target, pair.node.target):
        module = pair.reading.modules[path]
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if f"{path}.{name}" in read:
                return f"forward reads {path}.{name} itself"
            if len(pair.reading.owners[_memory.storage(tensor)]) > 1:
                return f"{path}.{name} shares memory with another tensor"
    return ""


def _read_by_others(pair):
    others = [str(node) for node in pair.before.users if node is not pair.node]
    path = pair.before.target
    return others and f"the output of {path} is also read by {', '.join(others)}"


def _another_mode(pair):
    mode = pair.reading.memory.mode
    changes = mode(pair.before) != mode(pair.node)
    return changes and f"a mode, such as no_grad, changes after {pair.before.target}"


def _unlike_tensors(pair):
    conv, norm = _norms.floats(pair.conv), _norms.floats(pair.norm)
    if len({tensor.device for tensor in conv + norm}) > 1:
        return f"it is not on the device of {pair.before.target}"
    (kind, *others), kinds = {t.dtype for t in conv}, {t.dtype for t in norm}
    half = kind in (torch.float16, torch.bfloat16) and kinds == {torch.float32}
    if others or not (half or kinds == {kind}):
        return f"it has another dtype than {pair.before.target}, and is not in float32"
    channels = pair.conv.out_channels
    wrong = any(tensor.shape != (channels,) for tensor in norm)
    return wrong and f"it is not for the {channels} channels of {pair.before.target}"


def _does_something_else(pair):
    if _norms.PAIRS.get(type(pair.norm)) is type(pair.conv):
        return ""
    what = f"{type(pair.conv).__name__} and {type(pair.norm).__name__}"
    tried = f"{what} were tried beside a folded convolution"
    return not _norms.proven(pair.conv, pair.norm) and f"{tried}, and gave something else"


def _overflows(pair):
    weights = _norms.weights(pair.conv, pair.norm)
    if weights[0].is_meta or all(tensor.isfinite().all() for tensor in weights):
        return ""
    dtype = str(pair.conv.weight.dtype).removeprefix("torch.")
    return f"the folded weights of {pair.before.target} are not finite in {dtype}"


RULES = (
    *(_norm_holds_more, _without_statistics, _not_called, _follows_no_convolution),
    *(_convolution_holds_more, _called_again, _known_to_others, _shared_tensors),
    *(_read_by_others, _another_mode),
    *(_unlike_tensors, _does_something_else, _overflows),
)


def _refuse_another_way(study, folded):
    """Raise FusionError if forward goes another way where norms are folded.

    It does if it asks for more of a norm than its output, such as its eps or its class.
    """
    if isinstance(study.model, fx.GraphModule):
        return
    left = [study.reading.modules[path] for path in study.reasons]
    try:
        again = _read(study.model, [*left, *folded])
        same = same_calls(again.graph, study.reading.graph)
        error = None
    except FusionError as why:
        same, error = False, why
    if not same:
        raise FusionError(
            "model cannot be folded: forward goes another way once its batch norms are "
            "folded, perhaps because it reads an attribute of one; it may only call them"
        ) from error


def _tell(study):
    count = len(study.pairs) + len(study.reasons)
    if count:
        level = logging.INFO if study.pairs else logging.WARNING
        told = [f"folded {len(study.pairs)} of {count} batch norms"]
        told += [f"{path}: {reason}" for path, reason in study.reasons.items()]
        logger.log(level, "\n".join(told))
