"""From a module to a graph, and to a copy of the module that runs one. torch.fx.

`torch.fx` writes down what a module's forward does with a stand-in for its input.
It keeps what the graph needs, and drops the rest without a word: modules that are
not called, hooks of modules that it looks into, what `forward` does on the side.
`trace` says so instead, and `Network` keeps everything.
"""

import copy
import dataclasses
import traceback
from pathlib import Path

import torch
from torch import fx, nn

from . import layers
from .layers import FusionError

# What stops a trace, by a part of torch's message, and what to do about it.
ADVICE = (
    ("control flow", "let torch.where decide, or decide in __init__"),
    ("cannot be iterated", "take the parts by index: part = x[0]"),
    ("'len' is not supported", "use x.shape[0] or x.size(0)"),
    ("interpreted as an integer", "keep sizes as they are, without int() or range()"),
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


@dataclasses.dataclass(frozen=True)
class Trace:
    """A graph, and what it needs besides the modules of the model."""

    graph: fx.Graph
    modules: dict  # by path, the model itself as ""
    constants: dict  # tensors that forward makes, by the name that the graph reads
    mode: bool | None  # the training flag that the graph depends on, None if on neither


class _Tracer(fx.Tracer):
    """Looks into everything but torch's own modules and those that we stack.

    torch.fx looks for the name of a tensor among all names of the model, each time
    that forward mentions one; here they are looked up, and the trace is linear.
    """

    def trace(self, root):
        named = [*root.named_buffers(), *root.named_parameters()]
        self._paths = {id(tensor): path for path, tensor in named}
        return super().trace(root)

    def is_leaf_module(self, module, path):
        ours = isinstance(module, (layers.Stacked, *layers.KINDS))
        return ours or super().is_leaf_module(module, path)

    def getattr(self, name, value, proxies):
        path = self._paths.get(id(value)) if isinstance(value, nn.Parameter) else None
        if path is None:
            return value
        if path not in proxies:
            proxies[path] = self.create_proxy("get_attr", path, (), {})
        return proxies[path]

    def create_arg(self, value):
        path = self._paths.get(id(value)) if isinstance(value, torch.Tensor) else None
        if path is None:
            return super().create_arg(value)
        return self.create_node("get_attr", path, (), {})


def trace(model):
    """The graph of a model, as a Trace; the model is left as it was.

    model: an nn.Module, or a GraphModule, whose graph is taken as it is. Control
    flow in Python is followed once, as torch.fx does it. Raises FusionError where
    the trace stops, with the line of the model that stops it, and where a graph
    would forget something: hooks, or tensors that forward changes on its own.
    """
    if not isinstance(model, nn.Module):
        raise FusionError(f"model was a {type(model).__name__}; an nn.Module fits")
    modules = dict(model.named_modules(remove_duplicate=False))
    is_graph, tracer = isinstance(model, fx.GraphModule), _Tracer()
    for path, module in modules.items():
        if not path or not (is_graph or tracer.is_leaf_module(module, path)):
            _refuse_hooks(path, module)
    if is_graph:
        return Trace(
            model.graph, modules, {}, getattr(model, "_hfusion", {}).get("traced_in")
        )
    graph, constants = _follow(model)
    mode = None if _same_either_way(model, graph) else model.training
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
    before = _tensors(double)
    own = set(vars(double))
    try:
        graph = _Tracer().trace(double)
    except Exception as error:
        raise FusionError(_explain(error)) from error
    for name, seen in _tensors(double).items():
        if before.get(name) != seen:
            raise FusionError(
                f"model cannot be traced: forward changes {name} on the side, and torch.fx "
                "does not write that down; call eval() first, if it does so in training "
                "only, or change it outside of forward"
            )
    return graph, {
        k: v for k, v in vars(double).items() if k not in own and torch.is_tensor(v)
    }


def _tensors(model):
    """Which tensors a model has, and how often they have been written to."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {n: (id(t), None if t.is_inference() else t._version) for n, t in named}


def _same_either_way(model, graph):
    """Whether the graph is the same with every training flag turned over."""
    try:
        other, _ = _follow(model, other_mode=True)
    except FusionError:
        return False
    return _signature(graph) == _signature(other)


def _signature(graph):
    return [(n.op, n.target, str(n.args), str(n.kwargs)) for n in graph.nodes]


def _explain(error):
    """Which line of whose code stopped the trace, and what to do, in one sentence."""
    ours = {Path(torch.__file__).parent, Path(__file__).parent}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
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


def put(model, path, module):
    """Set the module at a path of a model; None leaves the place empty."""
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


class Network(fx.GraphModule):
    """A module that runs a graph and has everything that the traced model has.

    model: a module of which nobody else makes use: its parts become this one's.
    A plain GraphModule keeps only what the graph calls, also when it is copied; here
    the modules that it does not call stay, under their paths, so that state_dict()
    has the same keys. Where the graph depends on the training flag, the flag is
    held: train() and eval() raise FusionError instead of computing the other mode's
    answer.
    """

    # All that is our own has one name, which no model's module is likely to have.
    def __init__(self, model, graph, constants, traced_in):
        for key, tensor in constants.items():
            model.register_buffer(key, tensor, persistent=False)
        super().__init__(model, graph, type(model).__name__.removesuffix("Impl"))
        self._adopt(vars(model))
        self._hfusion = {"traced_in": traced_in}

    def _adopt(self, theirs):
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[table] = theirs[table]

    def __deepcopy__(self, memo):
        double = super().__deepcopy__(memo)
        double._adopt(copy.deepcopy(vars(self), memo))
        double._hfusion = copy.deepcopy(self._hfusion, memo)
        return double

    def __reduce__(self):
        make, (state, imports) = super().__reduce__()
        return _revive, (type(self).__mro__[1], make, state, imports)

    def train(self, mode=True):
        traced_in = self._hfusion["traced_in"]
        if traced_in is not None and mode != traced_in:
            was = "training" if traced_in else "eval"
            raise FusionError(
                f"mode was {mode}; the forward of this model does something else in "
                f"{was} mode, in which it was traced: switch the original, fuse it again"
            )
        return super().train(mode)


def _revive(kind, make, state, imports):
    """A pickled Network again: torch.fx rebuilds its graph from source code."""
    plain = make(dict(state), imports)
    network = kind.__new__(kind)
    fx.GraphModule.__init__(network, plain, plain.graph, plain._get_name())
    network._adopt(state)
    network._hfusion = state["_hfusion"]
    return network.train(state["training"])
