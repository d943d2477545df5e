"""From a module to a graph, and to a copy of the module that runs one. torch.fx.

`torch.fx` writes down what a module's forward does with a stand-in for its input.
It keeps what the graph needs, and drops the rest without a word: modules that are
not called, hooks of modules that it looks into, what `forward` does on the side.
`trace` says so instead, and `Network` keeps everything.
"""

import copy
import dataclasses
import inspect
import operator
import pickle
import random
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import fx, nn

from . import layers
from .layers import FusionError

# What stops a trace, by a part of torch's message, and what to do about it.
ADVICE = (
    ("cannot be iterated", "take the parts by index: part = x[0]"),
    ("control flow", "let torch.where decide, or decide in __init__"),
    ("'len' is not supported", "use x.shape[0] or x.size(0)"),
    ("interpreted as an integer", "keep sizes as they are, without int() or range()"),
    ("a mode is on", "switch it outside of forward, around the call of the model"),
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
    modules: dict  # by path, the model itself as ""
    constants: dict  # tensors that forward makes, by the name that the graph reads
    mode: bool | str | None  # the training flag it depends on; "mixed"; None if on none


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
    would forget something: hooks, or what forward changes on the side. (A forward
    that writes to the .data of its parameters does so here too: they are not copied.)
    """
    if not isinstance(model, nn.Module):
        raise FusionError(f"model was a {type(model).__name__}; an nn.Module fits")
    modules = dict(model.named_modules(remove_duplicate=False))
    is_graph, tracer = isinstance(model, fx.GraphModule), _Tracer()
    if not is_graph and type(model).train is not nn.Module.train:
        raise FusionError(
            "model has a train() of its own, which the graph would not have; a module "
            "that holds the model fits, such as nn.Sequential(model)"
        )
    for path, module in modules.items():
        if not path or not (is_graph or tracer.is_leaf_module(module, path)):
            _refuse_hooks(path, module)
    if is_graph:
        return Trace(
            model.graph, modules, {}, getattr(model, "_hfusion", {}).get("traced_in")
        )
    graph, constants = _follow(model)
    mode = None
    if not _same_either_way(model, graph, constants):
        flags = {module.training for module in modules.values()}
        mode = model.training if len(flags) == 1 else "mixed"
    return Trace(graph, modules, constants, mode)


def _refuse_hooks(path, module):
    for kind in _HOOKS if path else _HOOKS + _STATE_HOOKS:
        if getattr(module, kind, None):
            raise FusionError(
                f"{path or 'model'} has {kind.strip('_').replace('_', ' ')}, which a graph "
                "would not call; none fit: register them on the result instead"
            )


def _follow(model, other_mode=False):
    """(graph, constants) of a model, found on a copy that shares its parameters."""
    try:
        double = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    except Exception as error:
        raise FusionError(f"model cannot be copied: {error}") from error
    for module in double.modules() if other_mode else ():
        module.training = not module.training
    before, chance, own = _state(double), _chance(), set(vars(double))
    try:
        tracer = _Tracer()
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
    return tensor._version, str(tensor.detach().sum(dtype=torch.float64).item())


def _same_either_way(model, graph, constants):
    """Whether the trace is the same with every training flag turned over."""
    try:
        other_graph, others = _follow(model, other_mode=True)
    except FusionError:
        return False
    same = len(constants) == len(others) and all(
        torch.equal(constants[key], others[key]) for key in constants if key in others
    )
    return same and _calls(graph) == _calls(other_graph)


def _calls(graph):
    return [(n.op, n.target, str(n.args), str(n.kwargs)) for n in graph.nodes]


def _explain(error):
    """Which line of whose code stopped the trace, and what to do, in one sentence."""
    ours = {Path(torch.__file__).parent, Path(__file__).parent}
    # Not extract_tb: it fails on the code that torch.fx patched until torch 2.6.
    calls = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__))
    frames = [
        frame
        for frame in calls
        if not ours & set(Path(frame.filename).parents) and "<" not in frame.filename
    ]
    message = str(error).split("\n")[0].rstrip(".")
    advice = next((then for part, then in ADVICE if part in str(error)), OTHERWISE)
    where = ""
    if frames:
        last = frames[-1]
        in_notebook = "ipykernel" in last.filename  # its cells have numbers for names
        file = "the cell" if in_notebook else Path(last.filename).name
        where = f" at {file}:{last.lineno}, `{last.line}`"
    return f"model cannot be traced: it stops{where} ({message}); {advice}"


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
    has the same keys. Where the graph depends on the training flag, the flag is
    held: train() and eval() raise FusionError instead of computing the other mode's
    answer.
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

    def _adopt(self, theirs):
        for table in _TABLES:
            self.__dict__[table] = theirs[table]

    def __deepcopy__(self, memo):
        double = super().__deepcopy__(memo)
        double._adopt(copy.deepcopy(vars(self), memo))
        double._hfusion = copy.deepcopy(self._hfusion, memo)
        type(double).__name__ = type(self).__name__
        return double

    def __copy__(self):
        return _again(type(self).__mro__[1], self, self.graph, vars(self))

    def __reduce__(self):
        make, (state, imports) = super().__reduce__()
        return _revive, (type(self).__mro__[1], make, state, imports)

    def train(self, mode=True):
        traced_in = self._hfusion["traced_in"]
        if traced_in is not None and mode != traced_in:
            was = {True: "training", False: "eval"}.get(traced_in, "a mixed")
            raise FusionError(
                f"mode was {mode}; this graph was traced in {was} mode, and forward does "
                "something else in another: switch the original, and fuse it again"
            )
        return super().train(mode)


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
    return network
