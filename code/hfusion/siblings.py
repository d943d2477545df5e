"""Find the siblings in a graph, and judge them. torch.fx; changes nothing.

Siblings are layers of one kind and geometry that read the same numbers. That two
calls read the same node of a graph is not enough: somebody may have written to it
in between, one of them may be called again elsewhere, or have hooks. Each such
condition is a function here; it returns "" or the reason, and the reason is what
the user reads. What cannot be shown to be safe is refused.
"""

import copy
import dataclasses
import math
from collections import Counter, defaultdict

import torch
from torch import fx, nn

from . import effects, embedding, layers, placing
from .layers import FusionError

# Activations that treat each number alone, so that they commute with the split:
# the module, and what functions and methods with the same result are called.
POINTWISE = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.LeakyReLU: "leaky_relu", nn.ELU: "elu",
    nn.GELU: "gelu", nn.SiLU: "silu", nn.Mish: "mish", nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh", nn.Softplus: "softplus", nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Group:
    """Siblings that were found, and what was decided about them."""

    members: tuple  # paths of the layers in the model, in graph order
    kind: str  # "Conv2d", "Linear", …
    c_out: tuple  # output channels of each member; 0 where they are not known yet
    fused: bool
    reason: str = ""  # why it was refused, in words
    activation: nn.Module | None = None  # follows every member
    hoist: bool = False  # it is applied once, also where the branches are strided parts
    launches_saved: int = 0  # operators less, in eager PyTorch, whatever the layout
    saved_in_one_piece: int = 0  # and so many more where each branch lies in one piece
    split_bytes: int = 0  # for each pixel (row), if consumers copy all strided branches
    window: embedding.Window | None = None  # for all members, where theirs differ
    extra_macs: int = 0  # multiply-adds more for each pixel of the output, if so
    calls: int = 1  # how often each member is called in a run
    dense: tuple = ()  # the indices of members whose outputs are copied for their readers
    model: nn.Module | None = dataclasses.field(default=None, repr=False)
    nodes: tuple = dataclasses.field(default=(), repr=False)  # the calls
    ends: tuple = dataclasses.field(default=(), repr=False)  # the calls, or what follows
    views: tuple = dataclasses.field(default=(), repr=False)  # `.view` of a branch

    @property
    def layers(self):
        """The members themselves: {path: layer}, as they are in the model now."""
        try:
            return {path: self.model.get_submodule(path) for path in self.members}
        except AttributeError as error:
            raise FusionError(f"model has changed since it was planned: {error}") from error

    def stacked(self):
        """The members as one layer with their activation, beside the model: a Stacked."""
        embed = self.window is not None
        activation = copy.deepcopy(self.activation)
        return layers.stack(self.layers, activation, embed, self.hoist)


class Scene:
    """A traced model, and what the rules ask about it."""

    def __init__(self, model, trace):
        self.model, self.graph, self.modules = model, trace.graph, trace.modules
        self.memory = effects.Memory(trace.graph, trace.modules, trace.constants)
        for node in self.graph.find_nodes(op="get_attr"):
            if node.target in trace.constants and self.memory.writes(node):
                write = self.memory.writes(node)[0]
                raise FusionError(
                    "model cannot be traced: forward makes a tensor and writes to it "
                    f"({write}), and a graph would keep it from call to call; make it "
                    "from the input, as x.new_zeros(...) does"
                )
        called = [node.target for node in self.graph.nodes if node.op == "call_module"]
        self.calls = Counter(id(self.modules[path]) for path in called)
        self.called = set(called)
        self.read = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        self.paths, self.owners = defaultdict(list), defaultdict(dict)
        for path, module in self.modules.items():
            self.paths[id(module)].append(path)
            for tensor in _own_tensors(module):
                self.owners[placing.memory(tensor)][id(tensor), id(module)] = path


def _own_tensors(module):
    tensors = [*module._parameters.values(), *module._buffers.values()]
    tensors += [value for value in vars(module).values() if torch.is_tensor(value)]
    return [t for t in tensors if t is not None and not nn.parameter.is_lazy(t)]


# Why a call cannot be fused, whatever its siblings. Each rule: (scene, node) -> reason.


def unfit(scene, node):
    """Layers that only look like one of KINDS, or carry something that would be lost."""
    return layers.unfit(node.target, scene.modules[node.target])


def called_again(scene, node):
    """A layer with two inputs: its weights would have to stay where they are."""
    calls = scene.calls[id(scene.modules[node.target])]
    if calls > 1:
        return f"{node.target} is called {calls} times; 1 fits"
    return ""


def known_elsewhere(scene, node):
    """A layer with two names, or one that a module calls which torch.fx cannot see into."""
    module = scene.modules[node.target]
    others = [path for path in scene.paths[id(module)] if path != node.target]
    if others:
        return f"{node.target} is also {others[0]}; a layer of its own fits"
    steps = node.target.split(".")
    for end in range(1, len(steps)):
        path = ".".join(steps[:end])
        if path in scene.called:
            return f"{node.target} may be called by {path}, which the graph calls whole"
    return ""


def shared_tensors(scene, node):
    """Weights that are, or overlap, somebody else's, or that the graph reads itself."""
    module = scene.modules[node.target]
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if f"{node.target}.{name}" in scene.read:
            return f"{name} of {node.target} is read by the graph; a layer only called fits"
        owners = scene.owners[placing.memory(tensor)]
        if len(owners) > 1:
            others = {path or "the model" for path in owners.values()} - {node.target}
            where = ", ".join(sorted(others)) or "another tensor of it"
            return f"{name} of {node.target} shares memory with {where}; its own fits"
    return ""


def layout_matters(scene, node):
    """A branch whose consumer would notice that it is a part of a larger tensor."""
    for value in dict.fromkeys((node, follower(scene, node)[0] or node)):
        reader = scene.memory.counts_on_layout(value)
        if reader is not None:
            called = effects.name(reader, scene.modules)
            return (
                f"the output of {node.target} goes to `{called}` ({reader}), which may "
                "count on its memory layout"
            )
    return ""


RULES = (unfit, called_again, known_elsewhere, shared_tensors, layout_matters)


def settings_of(call):
    """The keywords of a call, less its input."""
    return {k: v for k, v in call.kwargs.items() if not isinstance(v, fx.Node)}


def follower(scene, node):
    """(the call of a pointwise activation, its module) if it alone reads `node`.

    Else (None, None). The module is a new one, not in place.
    """
    user = next(iter(node.users), None)
    if len(node.users) != 1 or not user.op.startswith("call_"):
        return None, None
    given = [*user.args[:1], *user.kwargs.values()]
    alone = user.all_input_nodes == [node] and given.count(node) == 1
    one_mode = scene.memory.mode(user) == scene.memory.mode(node)
    if not (alone and one_mode and effects.known(user, scene.modules)):
        return None, None
    activation = _activation(scene, user)
    return (user, activation) if activation else (None, None)


def _activation(scene, call):
    """The module of POINTWISE that does what a call does; None if there is none."""
    activation = None
    if call.op == "call_module":
        module = scene.modules[call.target]
        if type(module) in POINTWISE and not layers.hooks(module):
            activation = copy.deepcopy(module)
    else:
        named = {name: kind for kind, name in POINTWISE.items()}
        kind = named.get(effects.name(call, scene.modules).rstrip("_"))
        try:
            activation = kind(*call.args[1:], **settings_of(call)) if kind else None
        except TypeError:  # arguments that the module does not have
            return None
    if not isinstance(getattr(activation, "inplace", False), bool):
        return None  # elu_(y, alpha, scale) has other arguments than its module
    if hasattr(activation, "inplace"):
        activation.inplace = False
    return activation


def find(scene, min_siblings, embed=False, asked=lambda group: group):
    """All groups in a scene, fusable or refused, in graph order.

    embed: whether siblings may have windows of different sizes. Where such a group is
    refused, its members of one size are groups again. asked: has the last word on a group.
    """
    calls = []
    for node in scene.graph.nodes:
        given = [*node.args, *node.kwargs.values()]
        module = scene.modules.get(node.target) if node.op == "call_module" else None
        if layers.kind_of(module) and len(given) == 1 and isinstance(given[0], fx.Node):
            calls.append(node)
    groups = []
    for family in families(scene, calls, embed):
        for group in map(asked, judge(scene, family, min_siblings, embed)):
            groups.append(group)
            parts = families(scene, group.nodes) if embed and not group.fused else []
            for part in parts:
                if len(part) < len(group.nodes):  # else it was judged as it is
                    groups += map(asked, judge(scene, part, min_siblings))
    return sorted(groups, key=lambda group: scene.memory.place[group.nodes[0]])


def families(scene, calls, embed=False):
    """Calls of layers that read one value and have one geometry: lists of two or more."""
    found = defaultdict(list)
    names = [name for name in layers.GEOMETRY if not (embed and name in layers.WINDOW)]
    for node in calls:
        module = scene.modules[node.target]
        read = getattr if embed else layers.in_effect
        geometry = [str(read(module, name, None)) for name in names]
        if embed and isinstance(module, layers.KINDS):  # others only have the name of one
            geometry.append(str(embedding.growth(module)))
        found[node.all_input_nodes[0], layers.kind_of(module), *geometry].append(node)
    return [family for family in found.values() if len(family) > 1]


def judge(scene, family, min_siblings, embed=False):
    """The groups of one family: calls of layers of one geometry, with one input."""
    source, fit = family[0].all_input_nodes[0], []
    for node in family:
        reason = next(filter(None, (rule(scene, node) for rule in RULES)), "")
        if reason:
            yield refused(scene, [node], reason)
        else:
            fit.append(node)
    parts = defaultdict(list)
    for node in fit:
        weight = scene.modules[node.target].weight
        settings = (weight.dtype, weight.device, weight.requires_grad)
        parts[scene.memory.version(source, node), settings].append(node)
    alone = []
    for part in parts.values():
        if len(part) < min_siblings:
            alone += part
        elif reason := layers.unlike(_labelled(scene, part), embed):
            yield refused(scene, part, reason)
        else:
            yield fusable(scene, part)
    if alone:
        reason = _why_alone(scene, source, fit, alone, min_siblings, embed)
        yield refused(scene, alone, reason)


def _labelled(scene, nodes):
    return {node.target: scene.modules[node.target] for node in nodes}


def _why_alone(scene, source, fit, alone, min_siblings, embed):
    """Why members that could be fused have nobody to be fused with."""
    if len(fit) == 1:
        return "no other layer that reads its input can be fused"
    if len({scene.memory.version(source, node) for node in fit}) > 1:
        change = scene.memory.between(source, fit[0], fit[-1])
        called = effects.name(change, scene.modules)
        first, last = fit[0].target, fit[-1].target
        return f"`{called}` ({change}) may change their input between {first} and {last}"
    if len(fit) > len(alone) or len(fit) >= min_siblings:
        return layers.unlike(_labelled(scene, fit), embed)
    return f"{len(alone)} siblings; min_siblings is {min_siblings}"


def refused(scene, nodes, reason):
    """A group that stays as it is."""
    return Group(reason=reason, fused=False, **_about(scene, nodes))


def fusable(scene, nodes):
    """A group that can be fused, with the activation that all of its members have.

    Applying it once to all leaves strided parts, which consumers may copy; applied to each
    part it returns dense branches. So it is applied once only where that saves more
    launches than copies may cost, or where the parts lie in one piece (`layers.Stacked`).
    """
    found = [follower(scene, node) for node in nodes]
    same = len({repr(activation) for _, activation in found}) == 1
    # Parts of one tensor share autograd's count of changes: who changes one of them would
    # be taken to have changed what the activation keeps for the gradients of all.
    changed = any(set(scene.memory.writes(user)) - {user} for user, _ in found if user)
    activation = found[0][1] if same and not changed else None
    biases = {scene.modules[node.target].bias is None for node in nodes}
    about = _about(scene, nodes)
    ends = [
        n if activation is None else user for n, (user, _) in zip(nodes, found, strict=True)
    ]
    views = [view for end in ends for view in scene.memory.views(end)]
    members = [scene.modules[node.target] for node in nodes]
    item_bytes = members[0].weight.element_size()
    once = (len(nodes) - 1) * (activation is not None)  # saved where it is applied once
    hoist = _copies(scene, ends) < once
    window = embedding.common(members) if embedding.mixed(members) else None
    return Group(
        fused=True,
        activation=activation,
        hoist=hoist,
        # Where only some have a bias, the others' zeros are kept zero by an operator.
        launches_saved=len(nodes) - 1 + once * hoist - (len(biases) - 1),
        saved_in_one_piece=once * (not hoist),
        # An activation that is applied to each branch leaves none strided.
        split_bytes=2 * sum(about["c_out"]) * item_bytes * (hoist or activation is None),
        window=window,
        extra_macs=_extra_macs(members, window) if window else 0,
        ends=tuple(ends),
        views=tuple(dict.fromkeys(views)),
        **about,
    )


def _copies(scene, ends):
    """How often readers may copy these values where they are strided parts."""
    readers = [reader for end in ends for reader in end.users]
    return sum(effects.may_copy(reader, scene.modules) for reader in readers)


def _extra_macs(members, window):
    """For each pixel of the output a convolution multiplies with each of its weights."""
    taps = math.prod(window.kernel_size)
    whole = sum(m.out_channels * m.in_channels * taps for m in members)
    return whole - sum(m.weight.numel() for m in members)


def about_run(model, paths, calls, dense):
    """What a group is that a run has shown, fused or not; `dense` are indices."""
    members = [model.get_submodule(path) for path in paths]
    sizes = _sizes(members)
    item_bytes = members[0].weight.element_size()
    return {
        "members": tuple(paths),
        "kind": layers.kind_of(members[0]).__name__,
        "c_out": sizes,
        "launches_saved": (len(paths) - 1 - len(dense)) * calls,
        "split_bytes": 2 * sum(sizes[index] for index in dense) * item_bytes,
        "calls": calls,
        "dense": tuple(dense),
        "model": model,
    }


def _sizes(members):
    return tuple(getattr(m, "out_channels", getattr(m, "out_features", 0)) for m in members)


def _about(scene, nodes):
    """What a group is, fused or not."""
    members = [scene.modules[node.target] for node in nodes]
    sizes = _sizes(members)
    return {
        "members": tuple(node.target for node in nodes),
        "kind": layers.kind_of(members[0]).__name__,
        "c_out": tuple(sizes),
        "model": scene.model,
        "nodes": tuple(nodes),
    }
