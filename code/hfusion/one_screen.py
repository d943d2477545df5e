"""The smallest honest fuser: siblings in a torch.fx graph become one layer. torch only.

        ┌─► a ─► …
    x ──┤              becomes       x ──► [a; b] ──► split ──► …
        └─► b ─► …

Find siblings, judge them, stack their weights, split the output. The result is for
inference: it has copies of the weights and the mode in which the model was read. Siblings
stay apart, with the reason in `meta["refused"]`, where a layer is called twice, where its
weight is read directly, and where anything between them may write in place. Subclasses and
layers with groups, hooks or methods of their own are no siblings of any other.

`hfusion.fuse` takes the same steps. It also keeps the class, methods, hooks, training and
state_dict of the model, finds siblings by running where a graph cannot be read, knows which
memory a write can reach, serves consumers that need contiguous tensors, and stacks unequal
biases, activations and windows.
"""

import copy
import operator
from collections import defaultdict
from typing import Any

import torch
from torch import fx, nn

# What siblings have in common, besides the type, dtype and device of their weights.
GEOMETRY = ("kernel_size", "stride", "padding", "padding_mode", "dilation")
IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul",
            "iand", "ior", "ixor", "ilshift", "irshift", "setitem")  # fmt: skip


def fuse(model: nn.Module) -> fx.GraphModule:
    """A copy of the model in which siblings are one layer; see the top of this file.

    Raises what torch.fx raises for a model that it cannot read.

    >>> from hfusion.models import Inception
    >>> fused = fuse(Inception.from_table("3a").eval())
    >>> sum(isinstance(m, nn.Conv2d) for m in fused.modules())  # of six
    4
    """
    tracer = _Tracer()
    graph = tracer.trace(copy.deepcopy(model))
    network = fx.GraphModule(tracer.root, graph)
    network.meta["refused"] = {}
    for siblings in find(network):
        if reason := refusal(network, siblings):
            members = tuple(node.target for node in siblings)
            network.meta["refused"][members] = reason
        else:
            replace(network, siblings)
    network.delete_all_unused_submodules()
    network.recompile()
    return network


def find(network: fx.GraphModule) -> list[list[fx.Node]]:
    """Calls of layers that read one value and are alike, two or more together."""
    groups = defaultdict(list)
    for node in network.graph.nodes:
        layer = module_of(network, node)
        if type(layer) in (nn.Conv2d, nn.Linear) and not altered(layer):
            geometry = [getattr(layer, name, None) for name in GEOMETRY]
            weight = layer.weight
            tensor = weight.dtype, weight.device, layer.bias is None
            if getattr(layer, "groups", 1) == 1:
                source = node.all_input_nodes[0]
                alike = source, type(layer), *geometry, *tensor
                groups[alike].append(node)
    return [siblings for siblings in groups.values() if len(siblings) > 1]


def refusal(network: fx.GraphModule, siblings: list[fx.Node]) -> str:
    """Why these layers stay apart; "" if they may be one."""
    nodes = list(network.graph.nodes)
    read = [str(node.target) for node in nodes if node.op == "get_attr"]
    names = [node.target for node in siblings]
    for name in names:
        if [node.target for node in nodes].count(name) > 1:
            return f"{name} is called more than once"
        if any(path.startswith(f"{name}.") for path in read):
            return f"a parameter of {name} is read directly"
    first, last = siblings[0], siblings[-1]
    for node in nodes[nodes.index(first) : nodes.index(last)]:
        if writes(network, node):
            return f"{node} may write in place before {names[-1]} is called"
    return ""


def replace(network: fx.GraphModule, siblings: list[fx.Node]) -> None:
    """Stack the weights of the siblings in one layer, and split its output."""
    layers = [module_of(network, node) for node in siblings]
    sizes = [len(layer.weight) for layer in layers]
    stacked = copy.deepcopy(layers[0])
    for name, _ in list(stacked.named_parameters()):
        values = torch.cat([getattr(layer, name) for layer in layers])
        setattr(stacked, name, nn.Parameter(values.detach()))
    linear = isinstance(stacked, nn.Linear)
    width = "out_features" if linear else "out_channels"
    setattr(stacked, width, sum(sizes))
    path = f"{siblings[0].target}_and_siblings"
    network.add_submodule(path, stacked)
    graph = network.graph
    with graph.inserting_before(siblings[0]):
        y = graph.call_module(path, (siblings[0].all_input_nodes[0],))
        cut = (y, sizes, -1 if linear else -3)
        parts = graph.call_method("unsafe_split_with_sizes", cut)
        for index, node in enumerate(siblings):
            part = graph.call_function(operator.getitem, (parts, index))
            node.replace_all_uses_with(part)
    for node in siblings:
        graph.erase_node(node)


def module_of(network: fx.GraphModule, node: fx.Node) -> Any:
    """The module that a node calls; None for other nodes."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def altered(module: nn.Module) -> bool:
    """Whether a module does more than its class: it has hooks, or a forward of its own."""
    hooks = [value for name, value in vars(module).items() if name.endswith("_hooks")]
    return "forward" in vars(module) or any(hooks)


def writes(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call may write in place, by its name and arguments; what is unknown may."""
    if module := module_of(network, node):
        return getattr(module, "inplace", False) or altered(module)
    if node.op not in ("call_function", "call_method"):
        return False
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    home = getattr(node.target, "__module__", "torch")
    known = home.partition(".")[0] in ("torch", "builtins", "_operator")
    known = known and name not in IN_PLACE and not home.startswith("torch._ops")
    told = bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    return told or not known or name.endswith("_")


class _Proxy(fx.Proxy):
    """Lets x += y and x[0] = y be read as writes; torch.fx reads x + y, or stops."""


for _name in IN_PLACE:
    _write = getattr(operator, _name)
    _call = lambda self, *args, to=_write: self.tracer.create_proxy(
        "call_function", to, (self, *args), {}
    )
    setattr(_Proxy, f"__{_name}__", _call)


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)
