"""Fold batch norms into the convolutions before them, in a copy of a model.

    x ──► conv W, b ──► bn γ, β, μ, σ² ──►     =     x ──► conv W', b' ──►

    W' = γ/σ · W          b' = γ/σ · (b - μ) + β          (chapter 5)

That is vertical fusion. It comes first, because after stacking one convolution has
the norms of several branches after it.

The model keeps its own forward. Its graph (torch.fx) only shows which norms alone read
the output of a convolution.
"""

import logging
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ..errors import FusionError
from ..finding._aside import copy_model, counting
from ..finding.reading import Reading, same_calls
from . import _guards, _norms
from ._rules import Pair, judge

logger = logging.getLogger("hfusion")


class Folded(nn.Module):
    """What takes the place of a folded batch norm: it returns its input.

    Parameters
    ----------
    steps : dict from str to nn.Module
        What the norm called after it had normalised, such as an activation.
    eval_only : bool
        Whether the norm would have done something else in training mode.
    training : bool
        The mode of the norm.
    """

    def __init__(self, steps: dict[str, nn.Module], eval_only: bool, training: bool):
        super().__init__()
        for name, module in steps.items():
            self.add_module(name, module)
        vars(self).update(eval_only=eval_only, training=training)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training" and value and vars(self).get("eval_only"):
            raise FusionError(_guards.REFUSAL)
        super().__setattr__(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            x = module(x)
        return x


@counting()
def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it, in a copy of a model.

    Modules that compute what a batch norm does are folded too: subclasses, frozen norms,
    and the norms of timm, whose activation remains. A norm stays if something else reads
    the convolution's output, calls or shares one of the two modules, or has hooks on them.

    The logger "hfusion" gets one message that says what was folded and why the rest stays,
    at level INFO, or as a warning if nothing was folded. `unfolded` returns the reasons.

    Parameters
    ----------
    model : nn.Module
        A model that torch.fx can trace, with its batch norms in eval mode. It is left
        as it was.

    Returns
    -------
    nn.Module
        A copy of the same class, with the same attributes, whose forward() returns the
        same within rounding. Folding computes in float32 at least. The keys of folded
        norms are gone from its state_dict(), and each folded convolution has a bias.

    Raises
    ------
    FusionError
        If a batch norm is in training mode, where it uses the statistics of the batch.
        If any norm was folded, the copy raises it at train(), and at a call that changes
        an argument of forward() whose default is None or a bool.

    Notes
    -----
    Only forward() in eval mode was followed. A convolution may be used without its norm by
    another method, by a part of the model that is called alone, by a module in training
    mode, or by a forward that asks for an attribute or a mode of torch, such as no_grad.
    Source: Ioffe and Szegedy 2015; torch.nn.utils.fusion.

    Examples
    --------
    >>> from hfusion import models
    >>> folded = fold_batchnorm(models.GoogLeNet().eval())
    >>> norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    >>> type(folded).__name__, len(norms)
    ('GoogLeNet', 0)
    """
    study = _study(model)
    _log(study)
    if not study.pairs:
        return study.model
    places = {}
    for pair in study.pairs:
        steps, training = _norms.steps(pair.norm), pair.norm.training
        folded = Folded(steps, pair.eval_only, training)
        _norms.put(pair.conv, *pair.weights)
        parent, _, name = pair.path.rpartition(".")
        study.model.get_submodule(parent)._modules[name] = folded
        places[pair.path] = folded
    _refuse_another_way(study, places.values())
    switches = {} if isinstance(model, fx.GraphModule) else _guards.switches(model)
    eval_only = [path for path, folded in places.items() if folded.eval_only]
    _guards.hold(study.model, eval_only, switches)
    return study.model


def unfolded(model: nn.Module) -> dict[str, str]:
    """The batch norms that `fold_batchnorm` leaves, and why.

    Parameters
    ----------
    model : nn.Module
        As for `fold_batchnorm`.

    Returns
    -------
    dict from str to str
        The reason by the path of each norm that stays.

    Raises
    ------
    FusionError
        As `fold_batchnorm`.

    Examples
    --------
    >>> unfolded(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)).eval())
    {'0': 'it follows input, not a convolution'}
    """
    return _study(model).reasons


class _Study(NamedTuple):
    """A copy of a model, what of it can be folded, and why the rest stays."""

    model: nn.Module
    reading: Reading
    pairs: list[Pair]
    reasons: dict[str, str]


def _study(model: nn.Module) -> _Study:
    if not isinstance(model, nn.Module):
        raise FusionError(f"model: expected an nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise FusionError(
                f"{path or 'model'}: expected eval mode, got training mode; call "
                "model.eval() before folding"
            )
    copied = copy_model(model)
    found = {path: one for path, one in copied.named_modules() if _norms.is_norm(one)}
    reading = Reading(copied, exact=True, whole=found.values())
    calls = reading.graph.find_nodes(op="call_module")
    nodes = {id(reading.modules[node.target]): node for node in calls}
    judged = {
        path: judge(reading, path, norm, nodes.get(id(norm)))
        for path, norm in found.items()
    }
    pairs = [pair for pair in judged.values() if isinstance(pair, Pair)]
    reasons = {path: why for path, why in judged.items() if isinstance(why, str)}
    return _Study(copied, reading, pairs, reasons)


def _refuse_another_way(study: _Study, folded: Collection[nn.Module]) -> None:
    """Raise FusionError if forward goes another way where norms are folded.

    It does if it asks for more of a norm than its output, such as its eps or its class.
    """
    if isinstance(study.model, fx.GraphModule):
        return
    left = [study.reading.modules[path] for path in study.reasons]
    try:
        again = Reading(study.model, exact=True, whole=[*left, *folded])
        same = same_calls(again.graph, study.reading.graph)
        error = None
    except FusionError as why:
        same, error = False, why
    if not same:
        raise FusionError(
            "model cannot be folded: forward goes another way once its batch norms are "
            "folded, perhaps because it reads an attribute of one; it may only call them"
        ) from error


def _log(study: _Study) -> None:
    count = len(study.pairs) + len(study.reasons)
    lines = [f"folded {len(study.pairs)} of {count} batch norms"]
    lines += [f"{path}: {reason}" for path, reason in study.reasons.items()]
    level = logging.INFO if study.pairs else logging.WARNING
    logger.log(level, "\n".join(lines))
