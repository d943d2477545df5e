"""The smallest honest fuser: find siblings in a torch.fx graph, judge, stack, split."""

import operator
from copy import deepcopy

from torch import cat, nn
from torch.fx import GraphModule, Node, symbolic_trace

AXIS = {nn.Conv2d: -3, nn.Linear: -1}  # where the output has its channels
GEOMETRY = ("kernel_size", "stride", "padding", "padding_mode", "dilation")
OPERATORS = {getattr(operator, name) for name in operator.__all__} - {operator.getitem}


def fuse(model: nn.Module) -> GraphModule:
    """A copy for inference; `meta` says why siblings stay apart, "" where they do not."""
    odd = [k for m in model.modules() for k, v in vars(m).items() if "forward" in k and v]
    net = symbolic_trace(deepcopy(model))
    # torch.fx drops hooks, and reads x += y as x + y; a weight that is read may change.
    odd += [n for n in net.graph.nodes if n.target in OPERATORS or n.op == "get_attr"]
    if odd:
        raise ValueError(f"model: expected calls of layers and functions, got {odd}")
    for siblings in find(net):
        net.meta[f"{siblings}"] = reason = judge(net, siblings)
        if not reason:
            split(net, siblings, stack(net, siblings))
    net.recompile()  # writes forward from the graph
    net.delete_all_unused_submodules()
    return net


def find(net: GraphModule) -> list[list[Node]]:
    """Calls of layers that read one node and are alike, two or more together."""
    groups: dict[object, list[Node]] = {}
    for n in net.graph.find_nodes(op="call_module"):
        layer = net.get_submodule(n.target)
        if type(layer) in AXIS and getattr(layer, "groups", 1) == 1:
            # Alike: one input, one kind, all with a bias or none.
            own = [getattr(layer, name, None) for name in GEOMETRY]
            key = *n.all_input_nodes, type(layer), layer.bias is None, *own
            groups.setdefault(key, []).append(n)
    # A layer by itself has no siblings.
    return [siblings for siblings in groups.values() if len(siblings) > 1]


def judge(net: GraphModule, siblings: list[Node]) -> str:
    """Why these layers stay apart; "" if no call between them can write to their input."""
    layers, n = dict(net.named_modules()), siblings[0]
    while (n := n.next) is not siblings[-1]:
        called = n.op == "call_module" and layers[str(n.target)]
        if not called or getattr(called, "inplace", False):
            return f"{n} may write in place before {siblings[-1]} is called"
    return ""


def stack(net: GraphModule, siblings: list[Node]) -> nn.Module:
    """One layer with the weights of all siblings, one below the other."""
    layers = [deepcopy(net.get_submodule(str(n.target))) for n in siblings]
    for name in dict(layers[0].named_parameters()):
        weights = [getattr(layer, name) for layer in layers]
        setattr(layers[0], name, nn.Parameter(cat(weights)))
    return layers[0]


def split(net: GraphModule, siblings: list[Node], layer: nn.Module) -> None:
    """Call the stacked layer where the first sibling was; each sibling becomes a part."""
    sizes = [len(net.get_parameter(f"{n.target}.weight")) for n in siblings]
    net.add_submodule(path := f"{siblings[0]}_and_siblings", layer)
    with net.graph.inserting_before(siblings[0]):
        y = net.graph.call_module(path, siblings[0].args)
        cut = net.graph.call_method("split", (y, sizes, AXIS[type(layer)]))
    for i, n in enumerate(siblings):
        n.op, n.target, n.args = "call_function", operator.getitem, (cut, i)
