"""From a module to a graph, and to a copy of the module that runs one. torch.fx.

`torch.fx` writes down what a module's forward does with a stand-in for its input.
It keeps what the graph needs, and drops the rest without a word: modules that are
not called, hooks of modules that it looks into, what `forward` does on the side.
`trace` says so instead, and `Network` keeps everything.
"""

import copy
import dataclasses
import functools
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

from . import layers, modes
from .layers import FusionError

# What stops a trace, by a part of torch's message, and what to do about it.
ADVICE = (
    ("cannot be iterated", "take the parts by index: part = x[0]"),
    ("control flow", "let torch.where decide, or decide in __init__"),
    ("'len' is not supported", "use x.shape[0] or x.size(0)"),
    ("interpreted as an integer", "keep sizes as they are, without int() or range()"),
    ("a mode is on", "switch it outside of forward, around the call of the model"),
    ("training flag", "switch modules outside of forward, before the call of the model"),
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
# Integers of the same size, by the bytes of a number.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclasses.dataclass(frozen=True)
class Trace:
    """A graph, and what it needs besides the modules of the model."""

    graph: fx.Graph
    modules: dict  # by path, the model itself as ""
    constants: dict  # tensors that forward makes, by the name that the graph reads
    flags: dict  # the training flags of the modules, by path, as they were
    # Of the flags that forward looks at: with which values the graph is right, {path:
    # flag} each, the first as they were; None if with any.
    traced_in: tuple | None


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

    def trace(self, root):
        named = [*root.named_buffers(), *root.named_parameters()]
        self._paths = {id(tensor): path for path, tensor in named}
        self._modes, self.used = _modes(), []
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
        if kind.startswith("call_") and _modes() != self._modes:
            raise ValueError("a mode is on, such as no_grad or autocast")
        return super().create_node(kind, *args, **kwargs)

    def proxy(self, node):
        return _Proxy(node, self)

    def is_leaf_module(self, module, path):
        ours = isinstance(module, (layers.Stacked, *layers.KINDS))
        return (
            ours or "called_whole" in vars(module) or super().is_leaf_module(module, path)
        )

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
            self.used.append((value, _fingerprint(value)))
        return super().create_arg(value)


def _is_switch(value):
    return value is None or isinstance(value, bool)


def _modes():
    """What a graph does not remember: is it recording gradients, is it autocasting?"""
    cast = [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), cast


def trace(model):
    """The graph of a model, as a Trace; the model is left as it was.

    model: an nn.Module, or a GraphModule, whose graph is taken as it is. Control
    flow in Python is followed once, as torch.fx does it. Raises FusionError where
    the trace stops, with the line of the model that stops it, and where a graph
    would forget something: hooks, what forward changes on the side, or a train() of
    somebody's own. (A forward that writes to the .data of its parameters does so here
    too: they are not copied.)
    """
    if not isinstance(model, nn.Module):
        raise FusionError(f"model was a {type(model).__name__}; an nn.Module fits")
    modules = dict(model.named_modules(remove_duplicate=False))
    is_graph, tracer = isinstance(model, fx.GraphModule), _Tracer()
    for path, module in modules.items():
        if not path or not (is_graph or tracer.is_leaf_module(module, path)):
            _refuse_hooks(path, module)
    own_call = not is_graph and type(model).__call__ is not nn.Module.__call__
    if own_call or "forward" in vars(model):
        raise FusionError(
            "model has a forward() on the instance, or a __call__() of its own, which "
            "torch.fx does not look at; a forward() in its class fits"
        )
    found = _Followed(model.graph, {}, set()) if is_graph else _follow(model)
    calls = found.graph.find_nodes(op="call_module")
    modes.refuse_own(modules, {node.target for node in calls})
    flags = {path: module.training for path, module in modules.items()}
    if isinstance(model, Network):
        model.check_flags()
        traced_in = model._hfusion["traced_in"]
    else:
        traced_in = None if is_graph else _traced_in(model, flags, found)
    return Trace(found.graph, modules, found.constants, flags, traced_in)


def _refuse_hooks(path, module):
    for kind in _HOOKS if path else _HOOKS + _STATE_HOOKS:
        hooks = (getattr(module, kind, None) or {}).values()
        if any(path or not getattr(hook, "keeps", False) for hook in hooks):
            raise FusionError(
                f"{path or 'model'} has {kind.strip('_').replace('_', ' ')}, which a graph "
                "would not call; none fit: register them on the result instead"
            )


@dataclasses.dataclass(frozen=True)
class _Followed:
    """What was found by following forward once."""

    graph: fx.Graph
    constants: dict  # tensors that forward makes, by name
    looked_at: set  # the paths of the modules at whose training flags it looks


def _follow(model, mode=None):
    """What a model does, found on a copy that shares its parameters: a _Followed.

    mode: a value for all training flags; None leaves them as they are.
    """
    try:
        double = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    except Exception as error:
        raise FusionError(f"model cannot be copied: {error}") from error
    for module in double.modules() if mode is not None else ():
        if not getattr(module, "eval_only", False):
            module.training = mode
    before, chance, own = _state(double), _chance(), set(vars(double))
    try:
        tracer = _Tracer()
        with modes.noted() as looked_at:
            graph = tracer.trace(double)
    except Exception as error:
        raise FusionError(_explain(error)) from error
    finally:
        drawn = pickle.dumps(_chance()) != pickle.dumps(chance)
        torch.set_rng_state(torch.from_numpy(chance[0]))
        random.setstate(chance[1])
        np.random.set_state(chance[2])
    after = _state(double)
    changed = [name for name, seen in before.items() if after.get(name) != seen]
    if any(_fingerprint(tensor) != seen for tensor, seen in tracer.used):
        changed.append("a tensor that it has used")
    if changed or drawn:
        what = f"changes {changed[0]}" if changed else "draws random numbers"
        raise FusionError(
            f"model cannot be traced: forward {what} on the side, and torch.fx does not "
            "write that down; do it outside of forward"
        )
    made = {k: v for k, v in vars(double).items() if k not in own and torch.is_tensor(v)}
    return _Followed(graph, made, _paths(double, looked_at))


def _paths(model, looked_at):
    """The paths of modules at whose flags forward looks."""
    paths = {path for path, module in model.named_modules() if id(module) in looked_at}
    if len(paths) < len(looked_at):
        raise FusionError(
            "model cannot be traced: forward looks at the training flag of a module that "
            "is not among model.modules(); make it a part of the model"
        )
    return paths


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
        name: value if isinstance(value, PLAIN) else (id(value), _fingerprint(value))
        for name, value in named.items()
    }


def _fingerprint(tensor):
    """Autograd's count of changes; and a sum, since it counts no change of .data."""
    if not torch.is_tensor(tensor) or nn.parameter.is_lazy(tensor) or tensor.is_inference():
        return None
    dense = tensor.is_floating_point() and tensor.layout == torch.strided
    if not dense or tensor.is_meta:
        return tensor._version
    if tensor.is_cpu and type(tensor) in (torch.Tensor, nn.Parameter):  # ten times faster
        bits = tensor.detach().view(_BITS[tensor.element_size()])
        return tensor._version, int(bits.numpy(force=True).sum())
    return tensor._version, str(tensor.detach().sum(dtype=torch.float64).item())


def _traced_in(model, flags, found):
    """With which values of the flags that forward looks at the graph is right.

    Other flags do not matter: forward goes the same way. It is followed with all flags on
    and with all off, too. If that gives the same graph, it is right so as well.
    """
    looked_at = set(found.looked_at)
    for mode in (True, False):
        if {*flags.values()} == {mode}:  # so it was followed already
            continue
        try:
            other = _follow(model, mode)
        except FusionError:
            other = None
        if other is None or not _same(found, other):
            return ({path: flags[path] for path in found.looked_at or flags},)
        looked_at |= other.looked_at
    states = [{path: flags[path] for path in looked_at}]
    states += [dict.fromkeys(looked_at, mode) for mode in (True, False)]
    return tuple(states) if looked_at else None


def _same(found, other):
    """Whether two graphs and their constants are the same."""
    mine, others = found.constants, other.constants
    return mine.keys() == others.keys() and (
        all(torch.equal(mine[key], others[key]) for key in mine)
        and _calls(found.graph) == _calls(other.graph)
    )


def _calls(graph):
    return [(n.op, n.target, str(n.args), str(n.kwargs)) for n in graph.nodes]


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
    ours.add(Path(__file__).parent)
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


def copied(graph):
    """(a copy of a graph, {node: its copy})."""
    double = copy.deepcopy(graph)
    return double, dict(zip(graph.nodes, double.nodes, strict=True))


def put(model, path, module):
    """Set the module at a path of a model."""
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


# What makes a module, apart from its class: tensors, modules, hooks.
_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_TABLES += tuple(key for key in vars(nn.Module()) if "hooks" in key)


class Network(fx.GraphModule):
    """A module that runs a graph and has everything that the traced model has.

    model: a module of which nobody else makes use: its parts become this one's.
    A plain GraphModule keeps only what the graph calls, also when it is copied; here
    the modules that it does not call stay, under their paths, so that state_dict()
    has the same keys. Where the graph depends on training flags (see `Trace`), a call
    raises FusionError while they are set otherwise, and so do train() and eval() that
    would set them so, instead of computing another mode's answer.
    """

    def __init__(self, model, graph, constants, traced_in):
        for node in graph.find_nodes(op="get_attr"):
            found = constants.get(node.target, vars(model).get(node.target))
            if torch.is_tensor(found):  # made by forward, or no buffer: to() moves it now
                vars(model).pop(node.target, None)
                model.register_buffer(node.target, found.clone(), persistent=False)
        super().__init__(model, graph, type(model).__name__.removesuffix("Impl"))
        self._adopt(vars(model))
        # All that is our own has one name, which no model's module is likely to have.
        self._hfusion = {"traced_in": traced_in}
        self._check_first()

    def _adopt(self, theirs):
        for table in _TABLES:
            self.__dict__[table] = theirs[table]

    def __deepcopy__(self, memo):
        double = super().__deepcopy__(memo)
        double._adopt(copy.deepcopy(vars(self), memo))
        double._hfusion = copy.deepcopy(self._hfusion, memo)
        double._check_first()
        type(double).__name__ = type(self).__name__
        return double

    def __copy__(self):
        return _again(type(self).__mro__[1], self, self.graph, vars(self))

    def __reduce__(self):
        make, (state, imports) = super().__reduce__()
        return _revive, (type(self).__mro__[1], make, state, imports)

    def train(self, mode=True):
        traced_in = self._hfusion["traced_in"]
        if traced_in is not None and dict.fromkeys(traced_in[0], mode) not in traced_in:
            was = modes.word(traced_in[0].values())
            raise FusionError(
                f"mode was {mode}; this graph was traced in {was} mode, and forward does "
                "something else in another: switch the original, and fuse it again"
            )
        return super().train(mode)

    def check_flags(self):
        """Raise FusionError where the training flags are not as in any of the traces."""
        traced_in = self._hfusion["traced_in"]
        if traced_in is None:
            return
        now = {path: _at(self, path).training for path in traced_in[0]}
        if now not in traced_in:
            was = traced_in[0]
            path = next(path for path in now if now[path] != was[path])
            raise FusionError(
                f"{path or 'model'} was in {modes.word([was[path]])} mode when this graph "
                f"was traced, and is in {modes.word([now[path]])} mode now, where forward "
                "may do something else: switch it back, or switch the original, and fuse "
                "it again"
            )

    def recompile(self):
        code = super().recompile()
        self._check_first()
        return code

    def _check_first(self):
        """Let forward check the flags first, if any matter; under a microsecond each."""
        if vars(self).get("_hfusion", {}).get("traced_in"):
            type(self).forward = _checked(type(self).forward)


def _checked(run):
    @functools.wraps(run)
    def forward(self, *args, **kwargs):
        self.check_flags()
        return run(self, *args, **kwargs)

    return forward


def _at(model, path):
    """What get_submodule returns, sooner."""
    for name in path.split(".") if path else ():
        model = model._modules[name]
    return model


def _revive(kind, make, state, imports):
    """A pickled Network again: torch.fx rebuilds its graph from source code."""
    plain = make(dict(state), imports)
    return _again(kind, plain, plain.graph, state)


def _again(kind, plain, graph, state):
    """A Network of some kind that runs a graph, with the state of another."""
    network = kind.__new__(kind)
    fx.GraphModule.__init__(network, plain, graph, plain._get_name())
    network._adopt(state)
    network._hfusion = state["_hfusion"]
    network.training = state["training"]
    network._check_first()
    return network
