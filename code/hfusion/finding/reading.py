"""Find siblings by reading what forward does, and who reads their outputs. torch.fx.

Two calls of a graph that read the same node read the same numbers, unless something has
written to them in between: `aliasing` says what may have. A run sees one example; a graph
holds for all inputs, but for the path that was followed. So each call checks here, too.
"""

import copy
from collections import defaultdict

from torch import fx

from ..errors import FusionError
from ..stacking import rules
from . import aliasing
from ._tracing import trace
from .calls import Call, Calls, Followers


class Reading(Calls):
    """The calls that the graph of a model shows.

    model: an nn.Module that torch.fx can trace, or a GraphModule; left as it was. exact:
    see `_tracing.trace`. Raises FusionError where it cannot be traced.
    """

    found = "reading"
    advice = "; give example_inputs, and a run shows whether it does"

    def __init__(self, model, exact=False):
        self.trace = trace(model, exact)
        self.graph, self.modules = self.trace.graph, self.trace.modules
        self.memory = aliasing.Memory(self.graph, self.modules, self.trace.constants)
        named = {id(module): path for path, module in model.named_modules()}
        self.nodes, seen = defaultdict(list), defaultdict(list)
        for node in self.graph.nodes:
            given = [*node.args, *node.kwargs.values()]
            module = self.modules.get(node.target) if node.op == "call_module" else None
            one = len(given) == 1 and isinstance(given[0], fx.Node)
            if rules.kind_of(module) and one:
                path, turn = named[id(module)], self.memory.place[node]
                self.nodes[path].append(node)
                version = self.memory.version(given[0], node)
                seen[path].append(Call(given[0], version, turn))
        super().__init__(model, dict(seen))
        if exact:
            self._refuse_written_constants()

    def _refuse_written_constants(self):
        """A tensor that forward makes is made once for a graph, not at each call."""
        for node in self.graph.find_nodes(op="get_attr"):
            if node.target in self.trace.constants and self.memory.writes(node):
                write = self.memory.writes(node)[0]
                raise FusionError(
                    "model cannot be traced: forward makes a tensor and writes to it "
                    f"(`{write}`), and a graph would not make it again; make it from the "
                    "input, as torch.zeros_like(x) does"
                )

    def calls_of(self, module):
        """How many calls of a module the graph has, by whatever path."""
        called = self.graph.find_nodes(op="call_module")
        return sum(self.modules[node.target] is module for node in called)

    def asking(self, groups):
        """See `Calls`. A view may refuse a strided part, and only a run can tell."""
        found = {}
        for path in (path for paths in groups for path in paths):
            for node in self.nodes[path]:
                views = self.memory.views(node)
                reader = self.memory.counts_on_layout(node) or (views and views[0])
                if reader:
                    found[path] = f"`{aliasing.name(reader, self.modules)}` ({reader})"
        return found

    def followers(self, paths):
        """See `Calls`. Only modules that work out of place can be called once for all."""
        calls = [self.nodes[path] for path in paths]
        if any(len(nodes) > 1 for nodes in calls):
            return None
        activation, ends = once(self, [nodes[0] for nodes in calls])
        modules = [self.modules.get(end.target) for end in ends]
        in_place = any(getattr(module, "inplace", False) for module in modules)
        if activation is None or in_place or any(end.op != "call_module" for end in ends):
            return None
        asked = any(self.memory.counts_on_layout(e) or self.memory.views(e) for e in ends)
        hoist = not asked and copies(self, ends) < len(ends) - 1
        return Followers(activation, tuple(end.target for end in ends), hoist)

    def change(self, paths):
        """See `Calls`."""
        first, last = self.nodes[paths[0]][0], self.nodes[paths[-1]][0]
        change = self.memory.between(first.all_input_nodes[0], first, last)
        called = f"`{aliasing.name(change, self.modules)}` ({change})"
        if change.op == "call_module" and rules.hooks(self.modules[change.target]):
            called = f"a hook of {change.target}"
        between = f"between {paths[0]} and {paths[-1]}"
        return f"{called} may change their input {between}"


def same_calls(graph, other):
    """Whether two graphs call the same with the same, in the same order."""
    return _calls(graph) == _calls(other)


def _calls(graph):
    return [(n.op, n.target, str(n.args), str(n.kwargs)) for n in graph.nodes]


def once(reading, nodes):
    """(an activation that all of these calls have, what follows each of them).

    (None, the calls themselves) where they have none in common.
    """
    found = [follower(reading, node) for node in nodes]
    # A write to one part of a tensor counts as a write to what the activation has kept of
    # all of them for their gradients.
    changed = any({*reading.memory.writes(user)} - {user} for user, _ in found if user)
    if changed or len({repr(activation) for _, activation in found}) > 1:
        return None, tuple(nodes)
    users = [user for user, _ in found]
    return (found[0][1], tuple(users)) if users[0] else (None, tuple(nodes))


def copies(reading, ends):
    """How often readers may copy these values where they are strided parts."""
    readers = [reader for end in ends for reader in end.users]
    return sum(aliasing.may_copy(reader, reading.modules) for reader in readers)


def settings_of(call):
    """The keywords of a call, less its input."""
    return {k: v for k, v in call.kwargs.items() if not isinstance(v, fx.Node)}


def follower(reading, node):
    """(the call of a pointwise activation, its module) if it alone reads `node`.

    Else (None, None). The module is a new one, not in place.
    """
    user = next(iter(node.users), None)
    if len(node.users) != 1 or not user.op.startswith("call_"):
        return None, None
    given = [*user.args[:1], *user.kwargs.values()]
    alone = user.all_input_nodes == [node] and given.count(node) == 1
    one_mode = reading.memory.mode(user) == reading.memory.mode(node)
    if not (alone and one_mode and aliasing.known(user, reading.modules)):
        return None, None
    activation = _activation(reading, user)
    return (user, activation) if activation else (None, None)


def _activation(reading, call):
    """The module of rules.POINTWISE that does what a call does; None if there is none."""
    activation = None
    if call.op == "call_module":
        module = reading.modules[call.target]
        if type(module) in rules.POINTWISE and not rules.hooks(module):
            activation = copy.deepcopy(module)
    else:
        named = {name: kind for kind, name in rules.POINTWISE.items()}
        kind = named.get(aliasing.name(call, reading.modules).rstrip("_"))
        try:
            activation = kind(*call.args[1:], **settings_of(call)) if kind else None
        except TypeError:  # arguments that the module does not have
            return None
    if not isinstance(getattr(activation, "inplace", False), bool):
        return None  # elu_(y, alpha, scale) has other arguments than its module
    if hasattr(activation, "inplace"):
        activation.inplace = False
    return activation
