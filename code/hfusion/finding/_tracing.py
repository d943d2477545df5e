"""From a module to a graph of what its forward does.

`torch.fx` calls forward with a stand-in for its input and records the calls. It follows
control flow once. It silently forgets whatever is not a call: hooks of the modules that it
follows, and side effects of forward. A graph that is only looked at may lack these. A
graph that replaces the model may not: `trace(model, exact=True)` refuses such a model.
"""

import dataclasses
import importlib
import pickle
import random
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ..errors import FusionError
from ._aside import copy_model, undisturbed
from ._tracer import Tracer, version

# What stops a trace, by a part of torch's message, and what to do about it.
ADVICE = (
    ("cannot be iterated", "take the parts by index: part = x[0]"),
    ("control flow", "let torch.where decide, or decide in __init__"),
    ("'len' is not supported", "use x.shape[0] or x.size(0)"),
    ("interpreted as an integer", "keep sizes as they are, without int() or range()"),
    ("autocast is switched", "switch it outside of forward, around the call of the model"),
    ("float() argument", "keep the value a tensor, without float() or math"),
    ("must be real number", "keep the value a tensor, without float() or math"),
)  # fmt: skip
OTHERWISE = (
    "move the line into a module of its own, trace with an fx.Tracer whose "
    "is_leaf_module returns True for it, and give the GraphModule"
)
# Hooks that a graph does not call: of any module that it follows, and of the model itself.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STATE_HOOKS = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
VALUES = (bool, int, float, str, type(None))


@dataclasses.dataclass(frozen=True)
class Trace:
    """A graph, and what it needs besides the modules of the model."""

    graph: fx.Graph
    constants: dict[str, torch.Tensor]  # made by forward, by the name the graph reads
    modules: dict[str, nn.Module]  # by path, the model itself as ""


def trace(
    model: nn.Module, exact: bool = False, whole: Collection[nn.Module] = ()
) -> Trace:
    """The graph of a model, which is left as it was.

    The graph of a GraphModule is taken as it is. exact: whether the graph must do all
    that the model does. whole: modules that the graph calls as one. Raises FusionError
    where the trace stops, with the line of the model that stops it, and, if exact, where
    the graph would forget something. (A forward that writes to its parameters does so
    here too: they are not copied.)
    """
    if not isinstance(model, nn.Module):
        raise FusionError(f"model: expected an nn.Module, got {type(model).__name__}")
    try:
        modules = dict(model.named_modules(remove_duplicate=False))
    except RecursionError as error:
        raise FusionError("model cannot be traced: a module in it holds itself") from error
    ids = {id(module) for module in whole}
    paths = {path for path, module in modules.items() if id(module) in ids}
    is_graph, tracer = isinstance(model, fx.GraphModule), Tracer(exact, paths)
    for path, module in modules.items() if exact else ():
        if not path or not (is_graph or tracer.is_leaf_module(module, path)):
            _refuse_hooks(path, module)
    if isinstance(model, fx.GraphModule):
        return Trace(model.graph, {}, modules)
    _refuse_own_call(model)
    graph, made = _follow(model, tracer)
    return Trace(graph, made, modules)


def _refuse_own_call(model: nn.Module) -> None:
    own = [name for name in ("forward", "__call__") if name in vars(model)]
    if type(model).__call__ is not nn.Module.__call__:
        own.append("__call__")
    if own:
        raise FusionError(
            f"model: expected a forward() in its class, got a {own[0]}() of its own, which "
            "torch.fx does not follow; define forward() in the class"
        )


def _refuse_hooks(path: str, module: nn.Module) -> None:
    for kind in _HOOKS if path else _HOOKS + _STATE_HOOKS:
        hooks = (getattr(module, kind, None) or {}).values()
        if any(path or not getattr(hook, "keeps", False) for hook in hooks):
            raise FusionError(
                f"{path or 'model'}: expected no {kind.strip('_').replace('_', ' ')}, got "
                "some, which a graph would not call; register them on the result instead"
            )


def _follow(model: nn.Module, tracer: Tracer) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
    """The graph of a model and the tensors that forward makes.

    What runs is a copy that shares the parameters.
    """
    copied = copy_model(model, {id(p): p for p in model.parameters()})
    for module in copied.modules():  # hooks of gradients cannot be called with stand-ins
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    before = _state(copied) if tracer.exact else {}
    own, random_state = set(vars(copied)), _random_state()
    with undisturbed(model):
        try:
            graph = tracer.trace(copied)
        except Exception as error:
            raise FusionError(_explain(error)) from error
        drawn = pickle.dumps(_random_state()) != pickle.dumps(random_state)
    after = _state(copied) if tracer.exact else {}
    changed = [name for name, seen in before.items() if after.get(name) != seen]
    if any(version(tensor) != seen for tensor, seen in tracer.used):
        changed.append("a tensor that it has used")
    if tracer.exact and (changed or drawn):
        what = f"changes {changed[0]}" if changed else "draws random numbers"
        raise FusionError(
            f"model cannot be traced: forward {what}, and torch.fx does not record that; "
            "do it outside of forward"
        )
    made = {k: v for k, v in vars(copied).items() if k not in own and torch.is_tensor(v)}
    return graph, made


def _random_state() -> tuple:
    return torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()


def _state(model: nn.Module) -> dict[str, object]:
    """What forward could change: tensors, numbers, strings and flags."""
    named: dict[str, Any] = dict([*model.named_parameters(), *model.named_buffers()])
    for path, module in model.named_modules():
        plain = {f"{path}.{key}".strip("."): value for key, value in vars(module).items()}
        named |= {k: v for k, v in plain.items() if isinstance(v, (torch.Tensor, *VALUES))}
    return {
        name: value if isinstance(value, VALUES) else (id(value), version(value))
        for name, value in named.items()
    }


def _explain(error: Exception) -> str:
    """The line that stopped the trace, and what to do about it."""
    message = str(error).split("\n")[0].rstrip(".")
    advice = next((then for part, then in ADVICE if part in str(error)), OTHERWISE)
    return f"model cannot be traced: tracing stops{stopped_at(error)} ({message}); {advice}"


def stopped_at(error: BaseException) -> str:
    """The user's line that led to an error, as " at net.py:7, `x = y`", or "".

    Lines of torch, of this library and of imports are not the user's.
    """
    ours = {Path(torch.__file__).parent, Path(importlib.__file__).parent}
    ours.add(Path(__file__).parents[1])
    # Not extract_tb: it fails on the code that torch.fx patched until torch 2.6.
    calls = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__))
    frames = [
        frame
        for frame in calls
        if not ours & set(Path(frame.filename).parents) and "<" not in frame.filename
    ]
    if not frames:
        return ""
    last = frames[-1]
    in_notebook = "ipykernel" in last.filename  # its cells have numbers for names
    file = f"{Path(last.filename).name}:{last.lineno}"
    place = f"line {last.lineno} of the cell" if in_notebook else file
    return f" at {place}, `{last.line}`"
