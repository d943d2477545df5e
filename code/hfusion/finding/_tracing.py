"""Read what forward does: from a module to a graph. torch.fx.

`torch.fx` writes down what a module's forward does with a stand-in for its input. It
follows control flow once, and forgets without a word what is no call: hooks of modules
that it looks into, what `forward` does on the side. A graph that is only looked at need
not know that. Where one takes the place of the model, `trace(model, exact=True)` refuses
what it would forget.
"""

import dataclasses
import importlib
import inspect
import operator
import pickle
import random
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import fx, nn

from .. import stacking
from ..errors import FusionError
from ..stacking import rules
from ._aside import double, undisturbed

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
# What a graph does not call: in any module that it looks into, and in the model itself.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks")
_STATE_HOOKS += ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
PLAIN = (bool, int, float, str, type(None))


@dataclasses.dataclass(frozen=True)
class Trace:
    """A graph, and what it needs besides the modules of the model."""

    graph: fx.Graph
    constants: dict  # tensors that forward makes, by the name that the graph reads
    modules: dict  # by path, the model itself as ""


class _InPlace:
    """What Python's x += 1 and x[0] = 1 are for a stand-in: changes of x.

    torch.fx takes the first for an addition, whose result is another tensor, and
    refuses the second.
    """

    def __setitem__(self, key, value):
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __getattr__(self, attribute):
        return _Attribute(self, attribute)

    def __setattr__(self, attribute, value):
        if hasattr(torch.Tensor, attribute):  # such as x.data = y
            raise ValueError(f"forward sets {attribute} of a tensor")
        super().__setattr__(attribute, value)


def _augmented(function):
    def record(self, other):
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


AUGMENTED = ("add", "and", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow")
AUGMENTED += ("rshift", "sub", "truediv", "xor")
for _name in AUGMENTED:
    setattr(_InPlace, f"__i{_name}__", _augmented(getattr(operator, f"i{_name}")))


class _Proxy(_InPlace, fx.Proxy):
    """A stand-in for a value."""


class _Attribute(_InPlace, fx.proxy.Attribute):
    """A stand-in for an attribute of a value, such as its shape."""


class _Tracer(fx.Tracer):
    """Looks into everything but torch's own modules and those that we stack.

    torch.fx looks for the name of a tensor among all names of the model, each time
    that forward mentions one; here they are looked up, and the trace is linear.
    """

    def __init__(self, exact=False):
        super().__init__()
        self.exact = exact

    def trace(self, root):
        named = [*root.named_buffers(), *root.named_parameters()]
        self._paths = {id(tensor): path for path, tensor in named}
        self.used, self._casts = [], _casts()
        # A stand-in is neither None nor True nor False. What forward decides by such an
        # argument is decided by its default, and the graph asserts that it has it.
        arguments = inspect.signature(root.forward).parameters.values()
        fixed = {a.name: a.default for a in arguments if _is_switch(a.default)}
        graph = super().trace(root, fixed or None)
        for node in graph.find_nodes(op="placeholder"):
            name, _, number = node.target.rpartition("_")
            if name in fixed and number == "1":  # torch.fx has numbered it
                node.target = name
        return graph

    def create_node(self, kind, *args, **kwargs):
        if self.exact and kind.startswith("call_") and _casts() != self._casts:
            raise ValueError("autocast is switched")
        return super().create_node(kind, *args, **kwargs)

    def proxy(self, node):
        return _Proxy(node, self)

    def is_leaf_module(self, module, path):
        ours = isinstance(module, (stacking.Stacked, *rules.KINDS))
        ours = ours or "called_whole" in vars(module)
        return ours or super().is_leaf_module(module, path)

    def getattr(self, name, value, proxies):
        path = self._paths.get(id(value))
        if path is None:
            return value
        if path not in proxies:
            proxies[path] = self.create_proxy("get_attr", path, (), {})
        return proxies[path]

    def create_arg(self, value):
        path = self._paths.get(id(value))
        if path is not None:
            return self.create_node("get_attr", path, (), {})
        if isinstance(value, torch.Tensor):
            self.used.append((value, _version(value)))
        return super().create_arg(value)


def _is_switch(value):
    return value is None or isinstance(value, bool)


def _casts():
    """What a graph does not remember: is it autocasting?"""
    return [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]


def trace(model, exact=False):
    """The graph of a model, as a Trace; the model is left as it was.

    model: an nn.Module, or a GraphModule, whose graph is taken as it is. Control flow in
    Python is followed once, as torch.fx does it. exact: whether the graph has to do all
    that the model does. Raises FusionError where the trace stops, with the line of the
    model that stops it, and, if exact, where the graph would forget something: hooks, or
    what `forward` changes on the side. (A forward that writes to its parameters does so
    here too: they are not copied.)
    """
    if not isinstance(model, nn.Module):
        raise FusionError(f"model was a {type(model).__name__}; an nn.Module fits")
    try:
        modules = dict(model.named_modules(remove_duplicate=False))
    except RecursionError as error:
        raise FusionError("model cannot be traced: a module in it holds itself") from error
    is_graph, tracer = isinstance(model, fx.GraphModule), _Tracer(exact)
    for path, module in modules.items() if exact else ():
        if not path or not (is_graph or tracer.is_leaf_module(module, path)):
            _refuse_hooks(path, module)
    own_call = not is_graph and type(model).__call__ is not nn.Module.__call__
    if own_call or "forward" in vars(model):
        raise FusionError(
            "model has a forward() on the instance, or a __call__() of its own, which "
            "torch.fx does not look at; a forward() in its class fits"
        )
    if is_graph:
        return Trace(model.graph, {}, modules)
    return Trace(*_follow(model, tracer), modules)


def _refuse_hooks(path, module):
    for kind in _HOOKS if path else _HOOKS + _STATE_HOOKS:
        hooks = (getattr(module, kind, None) or {}).values()
        if any(path or not getattr(hook, "keeps", False) for hook in hooks):
            raise FusionError(
                f"{path or 'model'} has {kind.strip('_').replace('_', ' ')}, which a graph "
                "would not call; none fit: register them on the result instead"
            )


def _follow(model, tracer):
    """(the graph of a model, tensors that forward makes), from a copy that shares its
    parameters."""
    on = double(model, {id(p): p for p in model.parameters()})
    for module in on.modules():  # those of gradients cannot be called with stand-ins
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    before, own, chance = _state(on) if tracer.exact else {}, set(vars(on)), _chance()
    with undisturbed(model):
        try:
            graph = tracer.trace(on)
        except Exception as error:
            raise FusionError(_explain(error)) from error
        drawn = pickle.dumps(_chance()) != pickle.dumps(chance)
    after = _state(on) if tracer.exact else {}
    changed = [name for name, seen in before.items() if after.get(name) != seen]
    if any(_version(tensor) != seen for tensor, seen in tracer.used):
        changed.append("a tensor that it has used")
    if tracer.exact and (changed or drawn):
        what = f"changes {changed[0]}" if changed else "draws random numbers"
        raise FusionError(
            f"model cannot be traced: forward {what} on the side, and torch.fx does not "
            "write that down; do it outside of forward"
        )
    made = {k: v for k, v in vars(on).items() if k not in own and torch.is_tensor(v)}
    return graph, made


def _chance():
    """Where the generators of random numbers stand."""
    return torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()


def _state(model):
    """What forward could change on the side: tensors, and numbers, words and flags."""
    named = dict([*model.named_parameters(), *model.named_buffers()])
    for path, module in model.named_modules():
        plain = {f"{path}.{key}".strip("."): value for key, value in vars(module).items()}
        named |= {k: v for k, v in plain.items() if isinstance(v, (torch.Tensor, *PLAIN))}
    return {
        name: value if isinstance(value, PLAIN) else (id(value), _version(value))
        for name, value in named.items()
    }


def _version(tensor):
    """How often a tensor was written to, as far as autograd knows."""
    counts = isinstance(tensor, torch.Tensor) and not tensor.is_inference()
    return tensor._version if counts else None  # else, say, a stand-in


def _explain(error):
    """Which line of whose code stopped the trace, and what to do, in one sentence."""
    message = str(error).split("\n")[0].rstrip(".")
    advice = next((then for part, then in ADVICE if part in str(error)), OTHERWISE)
    return f"model cannot be traced: it stops{stopped_at(error)} ({message}); {advice}"


def stopped_at(error: BaseException) -> str:
    """The last line before an error that is not torch's, the library's or of an import.

    " at net.py:7, `x = y`", or "" where there is none.
    """
    ours = {Path(package.__file__).parent for package in (torch, importlib)}
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
    file = "the cell" if in_notebook else Path(last.filename).name
    return f" at {file}:{last.lineno}, `{last.line}`"
