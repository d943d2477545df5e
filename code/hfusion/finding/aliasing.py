"""Which values of a graph may share memory, and which calls write to it.

A graph names values, not memory: after `r = x.relu_()` the names r and x stand for the
same numbers. Moving a reader of x across that line changes the answer. So two questions
come before every move:

    which calls may write to this memory, and when?    written, Memory.version
    does a reader depend on the layout of the memory?  Memory.counts_on_layout

The answers err on one side: a call that is not known to be harmless is assumed to write
to everything it reads, and to return a part of it.
"""

import bisect
import contextlib
import inspect
import types
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence

import torch
from torch import fx, nn

from .. import stacking
from ..stacking import rules
from . import _names

# No torch.jit.ScriptFunction: its __module__ is torch, but a user wrote what it does.
FUNCTIONS: tuple[type, ...] = (
    *(types.FunctionType, types.BuiltinFunctionType, type),
    *(torch._ops.OpOverload, torch._ops.OpOverloadPacket),
)

# Packages whose functions do what their names say: torch and Python's operators.
_TORCH = ("torch", "_operator", "builtins", "math")


def module_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module:
    """The module that a node calls."""
    return modules[str(node.target)]


def name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """What a node calls: the name of a function, a method or a module's class.

    `getattr(x, "shape")` is called "shape".
    """
    if node.op == "call_module":
        return type(module_of(node, modules)).__name__
    if node.op == "call_function" and node.target is getattr:
        return str(node.args[1])
    if isinstance(node.target, torch._ops.OpOverload):  # aten::view.dtype is a view
        return node.target.overloadpacket.__name__
    return getattr(node.target, "__name__", str(node.target))


def known(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node calls torch's own code, so that its name says what it does."""
    if node.op == "call_module":
        parts = module_of(node, modules).modules()
        return all(_known_module(part) for part in parts)
    if node.op == "call_function":
        home = getattr(node.target, "__module__", None) or ""
        if home.startswith("torch._ops."):  # where others may add operators
            return home == "torch._ops.aten"
        ours = home.split(".")[0] in _TORCH
        return ours and isinstance(node.target, FUNCTIONS)
    # A method of another object, such as a cache, may do anything.
    method = node.op == "call_method"
    return not method or hasattr(torch.Tensor, str(node.target))


def _known_module(module: nn.Module) -> bool:
    own = type(module).__module__.startswith("torch.nn.modules.")
    hooks = bool(module._forward_hooks or module._forward_pre_hooks)
    changed = hooks or ("forward" in vars(module) and not rules.ours(module, "forward"))
    return (own or isinstance(module, stacking.Stacked)) and not changed


def written(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[fx.Node]:
    """The inputs of a node to whose memory it may write.

    Parameters
    ----------
    node : fx.Node
        A node of a graph.
    modules : mapping from str to nn.Module
        The modules that the graph calls, by path.

    Examples
    --------
    >>> network = nn.Sequential(nn.ReLU(), nn.ReLU(inplace=True))
    >>> graph = torch.fx.symbolic_trace(network).graph
    >>> [written(node, dict(network.named_modules())) for node in graph.nodes]
    [[], [], [_0], []]
    """
    inputs = node.all_input_nodes
    if not node.op.startswith("call_"):
        return []
    if isinstance(node.target, torch._ops.OpOverload):
        return _written_by_schema(node)
    if not known(node, modules):
        return inputs
    called = name(node, modules)
    if node.op == "call_module":
        parts = module_of(node, modules).modules()
        in_place = any(getattr(part, "inplace", False) for part in parts)
        return inputs[:1] if in_place else []
    if called in _names.WRITE_THE_REST:  # batch_norm(x, mean, var) leaves x alone
        return [source for source in inputs if source not in node.args[:1]]
    if node.kwargs.get("out") is not None or called.startswith("_foreach"):
        return inputs
    underscore = called.endswith("_") and not called.endswith("__")
    if underscore or called in _names.IN_PLACE or called.startswith("__i"):
        return inputs[:1]
    return inputs[:1] if _asks_for_inplace(node) else []


def _written_by_schema(node: fx.Node) -> list[fx.Node]:
    """What an operator with a schema writes to, by its schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = node.target._schema.arguments
    given = dict(zip((a.name for a in arguments), node.args, strict=False)) | node.kwargs
    changed: list[fx.Node] = []
    for argument in arguments:
        if argument.alias_info and argument.alias_info.is_write:
            fx.map_arg(given.get(argument.name), changed.append)
    return changed


def _asks_for_inplace(node: fx.Node) -> bool:
    """Whether a function is given inplace=True, by name or by position."""
    if callable(node.target):
        with contextlib.suppress(TypeError, ValueError):  # a builtin without a signature
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            return bool(bound.arguments.get("inplace"))
    return bool(node.kwargs.get("inplace"))


def _sources(node: fx.Node, modules: Mapping[str, nn.Module]) -> Sequence[Hashable]:
    """The nodes whose memory the result of a node may share."""
    if node.op in ("placeholder", "get_attr"):
        return ["outside"]
    if node.op == "output":
        return []
    inputs, called = node.all_input_nodes, name(node, modules)
    if not known(node, modules):
        return inputs
    to_inputs = written(node, modules)
    together = node.op == "call_function" and called in _names.PUT_TOGETHER
    if together and not any(_is_tensor(source, modules) for source in inputs):
        return inputs  # they may be tuples, and the parts are the old ones
    if to_inputs and called not in _names.WRITE_THE_REST:
        return to_inputs
    if node.op == "call_module":
        return [] if called.startswith(_names.NEW_MODULES) else inputs
    return [] if called in _names.NEW or called in _names.FACTS else inputs


def _is_tensor(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is certainly a tensor, not a tuple of tensors."""
    called, inputs = name(node, modules), node.all_input_nodes
    if node.op == "get_attr":
        return True
    if not node.op.startswith("call_") or not known(node, modules):
        return False
    if node.op == "call_module":
        return called.startswith(_names.NEW_MODULES)
    if called in _names.PUT_TOGETHER:
        return any(_is_tensor(source, modules) for source in inputs)
    if called == "getitem" and isinstance(node.args[1], int):
        whole = node.args[0]
        return isinstance(whole, torch.fx.Node) and name(whole, modules) in _names.TUPLES
    return called in _names.NEW


def may_copy(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node may copy a strided input to make it contiguous.

    A convolution does, and the caller may, who gets the output of the graph.

    >>> graph = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU())).graph
    >>> [may_copy(node, {"0": torch.nn.ReLU()}) for node in graph.nodes][1:]
    [False, True]
    """
    called = name(node, modules)
    harmless = called in _names.ELEMENTWISE or called in _names.FACTS
    return not (node.op.startswith("call_") and known(node, modules) and harmless)


class Memory:
    """Which nodes of a graph may share memory, and which calls write to it.

    Nodes that may share memory form one class (union-find), so that all questions
    together cost about one walk over the graph. What comes from outside, inputs and the
    model's own tensors, counts as one memory: a caller may pass one tensor twice.

    Parameters
    ----------
    graph : fx.Graph
        The graph of a model.
    modules : mapping from str to nn.Module
        The modules that the graph calls, by path, with the model itself as "".
    constants : collection of str, optional
        Names of tensors that forward makes.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    >>> graph = torch.fx.symbolic_trace(network).graph
    >>> memory = Memory(graph, dict(network.named_modules()))
    >>> memory.writes(graph.find_nodes(op="call_module", target="0")[0])
    [_1]
    """

    def __init__(
        self,
        graph: fx.Graph,
        modules: Mapping[str, nn.Module],
        constants: Collection[str] = (),
    ):
        self._modules = modules
        self._parent: dict[Hashable, Hashable] = {}
        self.place = {node: place for place, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            made = node.op == "get_attr" and node.target in constants
            for source in [node.target] if made else _sources(node, modules):
                self._parent[self._find(node)] = self._find(source)
        self._modes = [node for node in graph.nodes if name(node, modules) in _names.MODES]
        self._writes: dict[Hashable, list[fx.Node]] = defaultdict(list)
        self._views: dict[Hashable, list[fx.Node]] = defaultdict(list)
        self._strict: dict[Hashable, fx.Node] = {}
        self._copying: dict[Hashable, list[fx.Node]] = defaultdict(list)
        owned = _tensors_read(graph, modules)
        for node in graph.nodes:
            changed = [*written(node, modules), *owned.get(node, ())]
            for memory in {self._find(source) for source in changed}:
                self._writes[memory].append(node)
            for memory in {self._find(source) for source in node.all_input_nodes}:
                self._note_reader(memory, node)

    def _note_reader(self, memory: Hashable, node: fx.Node) -> None:
        """What a node that reads a memory expects of its layout."""
        called = name(node, self._modules)
        given = [*node.args, *node.kwargs.values()]
        as_dtype = any(isinstance(argument, torch.dtype) for argument in given)
        method = node.op == "call_method"
        strict = called in _names.LAYOUT or (called == "view" and (as_dtype or not method))
        if strict or not known(node, self._modules):
            self._strict.setdefault(memory, node)
        elif called in _names.MAY_COPY or called == "Sequential":
            self._copying[memory].append(node)
        if method and called == "view":
            self._views[memory].append(node)

    def _find(self, node: Hashable) -> Hashable:
        """The representative of all nodes that may share memory with one."""
        root = node
        while (above := self._parent.get(root, root)) is not root:
            root = above
        while node is not root:  # shorten the way for the next question
            self._parent[node], node = root, self._parent[node]
        return root

    def writes(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that may write to the memory of `node`, in order."""
        return self._writes[self._find(node)]

    def mode(self, node: fx.Node) -> int:
        """How often a mode, such as autocast, has been switched before `node`."""
        return bisect.bisect_left(self._modes, self.place[node], key=self.place.__getitem__)

    def version(self, node: fx.Node, reader: fx.Node) -> tuple[int, int]:
        """Which numbers `reader` finds in `node`: equal versions mean equal numbers.

        A version is how often the memory may have been written to before, and the mode.
        """
        before = self.place[reader]
        writes = bisect.bisect_left(self.writes(node), before, key=self.place.__getitem__)
        return writes, self.mode(reader)

    def between(self, node: fx.Node, first: fx.Node, last: fx.Node) -> fx.Node:
        """The first call from one reader to another that changes `node` or the mode."""
        start, end = self.place[first], self.place[last]
        changes = {*self.writes(node), *self._modes}
        inside = [change for change in changes if start <= self.place[change] < end]
        return min(inside, key=self.place.__getitem__)

    def counts_on_layout(self, node: fx.Node) -> fx.Node | None:
        """A reader that may fail or answer otherwise if `node` becomes strided."""
        memory = self._find(node)
        # A copy in place of a view is the same until one of them is written to.
        copying = self._copying[memory] if self._writes[memory] else ()
        return self._strict.get(memory, next(iter(copying), None))

    def viewed_in_another_mode(self, node: fx.Node) -> bool:
        """Whether a view of `node` may be taken after a switch of modes, such as no_grad.

        There a view still requires gradients if `node` does; a copy does not.
        """
        readers = self._copying[self._find(node)]
        return any(self.mode(reader) != self.mode(node) for reader in readers)

    def views(self, node: fx.Node) -> list[fx.Node]:
        """The calls of `.view` that read the memory of `node`: they refuse to copy."""
        return self._views[self._find(node)]


def _tensors_read(
    graph: fx.Graph, modules: Mapping[str, nn.Module]
) -> dict[fx.Node, list[fx.Node]]:
    """For each call of a module, the nodes that read a tensor which the module owns.

    A batch norm writes to its statistics, and a graph may read them.
    """
    reads = {}
    for node in graph.find_nodes(op="get_attr"):
        path, _, attribute = node.target.rpartition(".")
        reads[id(getattr(modules.get(path), attribute, None))] = node
    owned = {}
    for node in graph.find_nodes(op="call_module") if reads else ():
        module = modules[node.target]
        if _writes_own(module, known(node, modules)):
            tensors = [*module.parameters(), *module.buffers()]
            owned[node] = [reads[id(t)] for t in tensors if id(t) in reads]
    return owned


def _writes_own(module: nn.Module, known: bool) -> bool:
    """Whether a module may write to its own tensors, such as statistics or a table.

    Statistics change in training mode only, but the graph may be switched to it.
    """
    parts = [*module.modules()]
    statistics = any(getattr(part, "track_running_stats", False) for part in parts)
    table = any(getattr(part, "max_norm", None) is not None for part in parts)
    return statistics or table or not known
