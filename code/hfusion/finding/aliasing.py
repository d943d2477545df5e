"""Which values of a graph may share memory, and who writes to it. torch.fx.

A graph names values, and memory is not its business: after `r = x.relu_()` the
names r and x mean the same numbers. Whoever moves a reader of x across that line
changes the answer. So before a call is moved, two questions are asked:

    who may write to this memory, and when?      written, Memory.version
    does somebody count on how it is laid out?   Memory.counts_on_layout

The answers err on one side: a call that is not known to be harmless is taken to
write to everything it reads, and to return a part of it.
"""

import bisect
import inspect
import types
from collections import defaultdict

import torch

from ..stacking import layers


def _words(text):
    return frozenset(text.split())


# Functions and methods of torch whose result is always new memory …
NEW = _words("""
    add sub mul div truediv neg pow sqrt rsqrt exp abs clamp matmul mm bmm baddbmm linear
    conv1d conv2d conv3d cat concat concatenate stack clone mean sum relu relu6 leaky_relu
    elu gelu silu mish sigmoid tanh softplus hardswish hardsigmoid softmax log_softmax
    layer_norm group_norm batch_norm scaled_dot_product_attention max_pool1d max_pool2d
    max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d zeros_like ones_like full_like rand_like randn_like
""")
# … or no tensor at all, but a fact about one.
FACTS = _words("""
    size dim numel ndimension nelement element_size is_floating_point
    shape dtype device ndim requires_grad itemsize is_cuda
""")
# The modules among torch.nn with new results: how their names begin.
NEW_MODULES = tuple(
    _words("""
    Conv Linear BatchNorm LayerNorm GroupNorm InstanceNorm MaxPool AvgPool AdaptiveAvgPool
    ReLU LeakyReLU ELU GELU SiLU Mish Sigmoid Tanh Softmax LogSoftmax Softplus Hardswish
    Hardsigmoid
""")
)
# Given tuples, these put them together, and the parts are the old ones.
PUT_TOGETHER = _words("add mul concat iadd imul iconcat")
TUPLES = _words(
    "chunk split split_with_sizes tensor_split unbind unsafe_chunk unsafe_split"
)
# They write to the statistics or the table given to them, not to their first input.
WRITE_THE_REST = _words("batch_norm instance_norm embedding embedding_bag")
# The operators +=, -= and so on, as functions.
IN_PLACE = _words("""
    iadd iand iconcat ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv
    ixor setitem __setitem__
""")
# They treat each number alone: they read a strided part as it lies, and copy nothing.
ELEMENTWISE = _words("""
    add sub mul div truediv neg pow sqrt rsqrt exp abs clamp relu relu6 leaky_relu elu gelu
    silu mish sigmoid tanh softplus hardswish hardsigmoid ReLU ReLU6 LeakyReLU ELU GELU SiLU
    Mish Sigmoid Tanh Softplus Hardswish Hardsigmoid
""")
# After them a graph computes in another mode, as after `with torch.no_grad()`.
MODES = _words("_set_grad_enabled _enter_autocast _exit_autocast")
# Whether the result is a part of the input or a copy depends on the input's layout.
MAY_COPY = _words("reshape reshape_as flatten ravel contiguous to view Flatten")
# These fail, or say something else, where memory is laid out in another way.
LAYOUT = _words("""
    as_strided stride storage_offset is_contiguous data_ptr storage untyped_storage set_
    resize_ resize_as_ view_as view_as_complex numpy is_set_to
""")
# Not a torch.jit.ScriptFunction, whose home is torch though somebody has written it.
PLAIN = (types.FunctionType, types.BuiltinFunctionType, type)
PLAIN += (torch._ops.OpOverload, torch._ops.OpOverloadPacket)

# Whose functions do what their names say: torch's, and what Python's operators are.
_TORCH = ("torch", "_operator", "builtins", "math")


def name(node, modules):
    """What a node calls: the name of a function, a method or a module's type.

    `getattr(x, "shape")` is called "shape".
    """
    if node.op == "call_module":
        return type(modules[node.target]).__name__
    if node.op == "call_function" and node.target is getattr:
        return str(node.args[1])
    if isinstance(node.target, torch._ops.OpOverload):  # aten::view.dtype is a view
        return node.target.overloadpacket.__name__
    return getattr(node.target, "__name__", str(node.target))


def known(node, modules):
    """Whether a node calls torch's own code, so that its name says what it does."""
    if node.op == "call_module":
        parts = modules[node.target].modules()
        return all(_known_module(part) for part in parts)
    if node.op == "call_function":
        home = getattr(node.target, "__module__", None) or ""
        if home.startswith("torch._ops."):  # where others may add operators
            return home == "torch._ops.aten"
        ours = home.split(".")[0] in _TORCH
        return ours and isinstance(node.target, PLAIN)
    # A method of somebody's object, such as a cache, may do anything.
    return node.op != "call_method" or hasattr(torch.Tensor, node.target)


def _known_module(module):
    own = type(module).__module__.startswith("torch.nn.modules.")
    hooks = module._forward_hooks or module._forward_pre_hooks
    changed = hooks or ("forward" in vars(module) and not layers.ours(module, "forward"))
    return (own or isinstance(module, layers.Stacked)) and not changed


def written(node, modules):
    """The inputs of a node to whose memory it may write: a list of nodes.

    >>> from torch import nn
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
        parts = modules[node.target].modules()
        in_place = any(getattr(part, "inplace", False) for part in parts)
        return inputs[:1] if in_place else []
    if called in WRITE_THE_REST:  # batch_norm(x, mean, var) leaves x alone
        return [source for source in inputs if source not in node.args[:1]]
    if node.kwargs.get("out") is not None or called.startswith("_foreach"):
        return inputs
    underscore = called.endswith("_") and not called.endswith("__")
    if underscore or called in IN_PLACE or called.startswith("__i"):
        return inputs[:1]
    return inputs[:1] if _asks_for_inplace(node) else []


def _written_by_schema(node):
    """What an operator that has a schema writes to: the schema says so."""
    arguments = node.target._schema.arguments
    given = dict(zip((a.name for a in arguments), node.args, strict=False)) | node.kwargs
    changed = []
    for argument in arguments:
        if argument.alias_info and argument.alias_info.is_write:
            torch.fx.map_arg(given.get(argument.name), changed.append)
    return changed


def _asks_for_inplace(node):
    """Whether a function is given inplace=True, by name or by place."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # a method's name, or a builtin without a signature
        return bool(node.kwargs.get("inplace"))
    return bool(bound.arguments.get("inplace"))


def _sources(node, modules):
    """Whose memory the result of a node may be, or be a part of."""
    if node.op in ("placeholder", "get_attr"):
        return ["outside"]
    if node.op == "output":
        return []
    inputs, called = node.all_input_nodes, name(node, modules)
    if not known(node, modules):
        return inputs
    to_inputs = written(node, modules)
    together = node.op == "call_function" and called in PUT_TOGETHER
    if together and not any(_is_tensor(source, modules) for source in inputs):
        return inputs  # they may be tuples, and the parts are the old ones
    if to_inputs and called not in WRITE_THE_REST:
        return to_inputs
    if node.op == "call_module":
        return [] if called.startswith(NEW_MODULES) else inputs
    return [] if called in NEW or called in FACTS else inputs


def _is_tensor(node, modules):
    """Whether a node is surely a tensor, and no tuple of tensors."""
    called, inputs = name(node, modules), node.all_input_nodes
    if node.op == "get_attr" or called in FACTS:
        return True
    if not node.op.startswith("call_") or not known(node, modules):
        return False
    if node.op == "call_module":
        return called.startswith(NEW_MODULES)
    if called in PUT_TOGETHER:
        return any(_is_tensor(source, modules) for source in inputs)
    if called == "getitem" and isinstance(node.args[1], int):
        whole = node.args[0]
        return isinstance(whole, torch.fx.Node) and name(whole, modules) in TUPLES
    return called in NEW


def may_copy(node, modules):
    """Whether a node may copy an input that is a strided part, to make it contiguous.

    A convolution does, and so may whoever gets what a graph returns.

    >>> graph = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU())).graph
    >>> [may_copy(node, {"0": torch.nn.ReLU()}) for node in graph.nodes][1:]
    [False, True]
    """
    called = name(node, modules)
    harmless = called in ELEMENTWISE or called in FACTS
    return not (node.op.startswith("call_") and known(node, modules) and harmless)


class Memory:
    """Which nodes of a graph may share memory, and what happens to it.

    graph: a torch.fx.Graph. modules: the modules that it calls, by path, the
    model itself as "". constants: names of tensors that forward makes. Nodes that
    may share memory are put into one class (union-find), so that all questions
    together cost about one walk over the graph. What comes from outside, inputs
    and the model's own tensors, counts as one memory: a caller may pass one twice.
    """

    def __init__(self, graph, modules, constants=()):
        self._parent, self._modules = {}, modules
        self.place = {node: place for place, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            made = node.op == "get_attr" and node.target in constants
            for source in [node.target] if made else _sources(node, modules):
                self._parent[self._find(node)] = self._find(source)
        self._modes = [node for node in graph.nodes if name(node, modules) in MODES]
        self._writes, self._views = defaultdict(list), defaultdict(list)
        self._strict, self._copying = {}, {}
        owned = _tensors_read(graph, modules)
        for node in graph.nodes:
            changed = [*written(node, modules), *owned.get(node, ())]
            for memory in {self._find(source) for source in changed}:
                self._writes[memory].append(node)
            for memory in {self._find(source) for source in node.all_input_nodes}:
                self._note_reader(memory, node)

    def _note_reader(self, memory, node):
        """What a node that reads some memory expects of its layout."""
        called = name(node, self._modules)
        given = [*node.args, *node.kwargs.values()]
        as_dtype = any(isinstance(argument, torch.dtype) for argument in given)
        method = node.op == "call_method"
        strict = called in LAYOUT or (called == "view" and (as_dtype or not method))
        if node.op != "output" and (strict or not known(node, self._modules)):
            self._strict.setdefault(memory, node)
        elif called in MAY_COPY or called == "Sequential":
            self._copying.setdefault(memory, node)
        if method and called == "view":
            self._views[memory].append(node)

    def _find(self, node):
        root = node
        while (above := self._parent.get(root, root)) is not root:
            root = above
        while node is not root:  # shorten the way for whoever asks next
            self._parent[node], node = root, self._parent[node]
        return root

    def writes(self, node):
        """The nodes that may write to the memory of `node`, in order."""
        return self._writes[self._find(node)]

    def mode(self, node):
        """How often a mode, such as autocast, has been switched before `node`."""
        return bisect.bisect_left(self._modes, self.place[node], key=self.place.get)

    def version(self, node, reader):
        """Which numbers `reader` finds in `node`: equal versions, equal numbers.

        How often they may have been written to before, and the mode.
        """
        before = self.place[reader]
        writes = bisect.bisect_left(self.writes(node), before, key=self.place.get)
        return writes, self.mode(reader)

    def between(self, node, first, last):
        """What first changes `node`, or the mode, from one reader of it to another."""
        start, end = self.place[first], self.place[last]
        changes = {*self.writes(node), *self._modes}
        inside = [change for change in changes if start <= self.place[change] < end]
        return min(inside, key=self.place.get)

    def counts_on_layout(self, node):
        """Who may fail or answer otherwise if `node` becomes strided: a node, or None."""
        memory = self._find(node)
        # A copy in place of a view is the same, until somebody writes to one of them.
        copying = self._copying.get(memory) if self._writes[memory] else None
        return self._strict.get(memory, copying)

    def views(self, node):
        """The calls of `.view` that read the memory of `node`: they refuse to copy."""
        return self._views[self._find(node)]


def _tensors_read(graph, modules):
    """For each call of a module: the nodes that read a tensor which it owns.

    A batch norm writes to its statistics, and a graph may read them.
    """
    reads = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            path, _, attribute = node.target.rpartition(".")
            reads[id(getattr(modules.get(path), attribute, None))] = node
    owned = {}
    for node in graph.nodes if reads else ():
        if node.op == "call_module" and _writes_own(node, modules):
            tensors = [*modules[node.target].parameters(), *modules[node.target].buffers()]
            owned[node] = [reads[id(t)] for t in tensors if id(t) in reads]
    return owned


def _writes_own(node, modules):
    """Whether a module may write to its own tensors: statistics, a table, who knows.

    Statistics in training mode only, but the graph may be switched to it.
    """
    parts = [*modules[node.target].modules()]
    statistics = any(getattr(part, "track_running_stats", False) for part in parts)
    table = any(getattr(part, "max_norm", None) is not None for part in parts)
    return statistics or table or not known(node, modules)
