"""The calls that the graph of a model shows.

Two calls that read the same node read the same numbers, unless something has written to
them in between: `aliasing` says what may have. A graph holds for all inputs that take the
path that was followed. So a fused model checks each call.
"""

import copy
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import fx, nn

from ..errors import FusionError
from ..stacking import rules
from . import aliasing
from ._tracing import trace
from .calls import Call, Calls, Followers


class Reading(Calls):
    """The calls that the graph of a model shows.

    Parameters
    ----------
    model : nn.Module
        A model that torch.fx can trace, or a GraphModule; it is left as it was.
    exact : bool, optional
        Whether the graph must do all that the model does, with its hooks and side effects.
    whole : collection of nn.Module, optional
        Modules of the model that the graph calls as one.

    Attributes
    ----------
    graph : fx.Graph
        What forward does.
    memory : aliasing.Memory
        Which nodes of the graph share memory.
    nodes : dict from str to list of fx.Node
        The calls of each layer, by its path.

    Raises
    ------
    FusionError
        If the model cannot be traced or, with exact, if its graph would do less.

    Examples
    --------
    >>> class Pair(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 3)
    ...     def forward(self, x):
    ...         return self.a(x), self.b(x)
    >>> Reading(Pair()).families()
    [('a', 'b')]
    """

    found = "reading"
    advice = "; give example_inputs, and a run shows whether it does"

    def __init__(
        self, model: nn.Module, exact: bool = False, whole: Collection[nn.Module] = ()
    ):
        self.trace = trace(model, exact, whole)
        self.graph, self.modules = self.trace.graph, self.trace.modules
        self.memory = aliasing.Memory(self.graph, self.modules, self.trace.constants)
        named = {id(module): path for path, module in model.named_modules()}
        self.nodes: dict[str, list[fx.Node]] = defaultdict(list)
        seen: dict[str, list[Call]] = defaultdict(list)
        for node in self.graph.nodes:
            given = [*node.args, *node.kwargs.values()]
            module = self.modules.get(node.target) if node.op == "call_module" else None
            one = len(given) == 1 and isinstance(given[0], fx.Node)
            if rules.kind_of(module) and one:
                path, turn = named[id(module)], self.memory.place[node]
                self.nodes[path].append(node)
                counts = node.meta.get("counts", True)
                version = self.memory.version(given[0], node) if counts else None
                seen[path].append(Call(given[0], version, turn))
        super().__init__(model, dict(seen))
        if exact:
            self._refuse_written_constants()

    def _refuse_written_constants(self) -> None:
        """A graph keeps a tensor that forward makes anew at each call."""
        for node in self.graph.find_nodes(op="get_attr"):
            if node.target in self.trace.constants and self.memory.writes(node):
                write = self.memory.writes(node)[0]
                raise FusionError(
                    "model cannot be traced: forward makes a tensor and writes to it "
                    f"(`{write}`), and a graph would not make it again; make it from the "
                    "input, as torch.zeros_like(x) does"
                )

    def calls_of(self, module: nn.Module) -> int:
        """How many calls of a module the graph has, by any of its paths."""
        called = self.graph.find_nodes(op="call_module")
        return sum(self.modules[node.target] is module for node in called)

    def layout_readers(self, groups: Sequence[Sequence[str]]) -> dict[str, str]:
        """See `Calls`. A view may refuse a strided part; only a run can tell."""
        found = {}
        for path in (path for paths in groups for path in paths):
            for node in self.nodes[path]:
                views = self.memory.views(node)
                reader = self.memory.counts_on_layout(node) or (views and views[0])
                if reader:
                    found[path] = f"`{aliasing.name(reader, self.modules)}` ({reader})"
        return found

    def followers(self, paths: Sequence[str]) -> Followers | None:
        """See `Calls`. Only modules that work out of place can be called once for all."""
        calls = [self.nodes[path] for path in paths]
        if any(len(nodes) > 1 for nodes in calls):
            return None
        activation, ends = common_activation(self, [nodes[0] for nodes in calls])
        paths = [str(end.target) for end in ends]
        in_place = any(getattr(self.modules.get(path), "inplace", False) for path in paths)
        if activation is None or in_place or any(end.op != "call_module" for end in ends):
            return None
        strict = any(self.memory.counts_on_layout(e) or self.memory.views(e) for e in ends)
        hoist = not strict and count_copies(self, ends) < len(ends) - 1
        return Followers(activation, tuple(paths), hoist)

    def change(self, paths: Sequence[str]) -> str:
        """See `Calls`."""
        versions = zip(*map(self.versions, paths), strict=True)
        turn = next(turn for turn, found in enumerate(versions) if len({*found}) > 1)
        calls = {self.nodes[path][turn]: path for path in paths}
        first, *_, last = sorted(calls, key=self.memory.place.__getitem__)
        change = self.memory.between(first.all_input_nodes[0], first, last)
        called = f"`{aliasing.name(change, self.modules)}` ({change})"
        if change.op == "call_module":
            hooks = rules.hooks(aliasing.module_of(change, self.modules))
            called = f"a hook of {change.target}" if hooks else called
        between = f"between {calls[first]} and {calls[last]}"
        return f"{called} may change their input {between}"


def same_calls(graph: fx.Graph, other: fx.Graph) -> bool:
    """Whether two graphs have the same calls with the same arguments, in the same order."""
    return _calls(graph) == _calls(other)


def _calls(graph: fx.Graph) -> list[tuple]:
    return [(n.op, n.target, str(n.args), str(n.kwargs)) for n in graph.nodes]


def common_activation(
    reading: Reading, nodes: Sequence[fx.Node]
) -> tuple[nn.Module | None, tuple[fx.Node, ...]]:
    """The activation that follows all of these calls, and its calls.

    (None, the calls themselves) if they have none in common.
    """
    found = [_follower(reading, node) for node in nodes]
    users = tuple(user for user, _ in found if user)
    # A write to one part of a tensor counts as a write to what the activation has kept of
    # all of them for their gradients.
    changed = any({*reading.memory.writes(user)} - {user} for user in users)
    one = len({repr(activation) for _, activation in found}) == 1
    return (found[0][1], users) if users and one and not changed else (None, tuple(nodes))


def count_copies(reading: Reading, ends: Iterable[fx.Node]) -> int:
    """How often readers may copy these values if they are strided parts."""
    readers = [reader for end in ends for reader in end.users]
    return sum(aliasing.may_copy(reader, reading.modules) for reader in readers)


def _follower(
    reading: Reading, node: fx.Node
) -> tuple[fx.Node, nn.Module] | tuple[None, None]:
    """The only reader of `node` and its module, if it is a pointwise activation.

    The module is a new one, not in place.
    """
    user = next(iter(node.users), None)
    if user is None or len(node.users) != 1 or not user.op.startswith("call_"):
        return None, None
    given = [*user.args[:1], *user.kwargs.values()]
    alone = user.all_input_nodes == [node] and given.count(node) == 1
    one_mode = reading.memory.mode(user) == reading.memory.mode(node)
    if not (alone and one_mode and aliasing.known(user, reading.modules)):
        return None, None
    activation = _activation(reading, user)
    return (user, activation) if activation else (None, None)


def _activation(reading: Reading, call: fx.Node) -> nn.Module | None:
    """The module of rules.POINTWISE that does what a call does, if there is one."""
    activation: Any = None
    if call.op == "call_module":
        module = aliasing.module_of(call, reading.modules)
        if type(module) in rules.POINTWISE and not rules.hooks(module):
            activation = copy.deepcopy(module)
    else:
        named = {name: kind for kind, name in rules.POINTWISE.items()}
        kind = named.get(aliasing.name(call, reading.modules).rstrip("_"))
        settings = {k: v for k, v in call.kwargs.items() if not isinstance(v, fx.Node)}
        try:
            activation = kind(*call.args[1:], **settings) if kind else None
        except TypeError:  # arguments that the module does not have
            return None
    if not isinstance(getattr(activation, "inplace", False), bool):
        return None  # elu_(y, alpha, scale) has other arguments than its module
    if hasattr(activation, "inplace"):
        activation.inplace = False
    return activation
