"""The smallest honest fuser: find siblings in a torch.fx graph, judge, stack and split.

The result is a copy, for inference; its `meta` says which siblings stay apart, and why.
"""

import copy
import operator

from torch import cat, fx, nn

GEOMETRY = ("kernel_size", "stride", "padding", "padding_mode", "dilation")
OPERATORS = {getattr(operator, name) for name in operator.__all__} - {operator.getitem}


def fuse(model: nn.Module) -> fx.GraphModule:
    """Stack siblings in a copy. Raises ValueError for what torch.fx would misread."""
    odd = [k for m in model.modules() for k, v in vars(m).items() if "forward" in k and v]
    network = fx.symbolic_trace(copy.deepcopy(model))  # x += y is read as x + y
    odd += [n for n in network.graph.nodes if n.target in OPERATORS or n.op == "get_attr"]
    if odd:  # hooks, operators, weights that may be written to
        raise ValueError(f"model: expected calls of layers and functions, got {odd}")
    for siblings in find(network):
        if reason := judge(network, siblings):
            network.meta[f"{siblings}"] = reason
        else:
            split(network, siblings, stack(network, siblings))
    network.recompile()  # writes forward from the graph
    network.delete_all_unused_submodules()
    return network


def find(network: fx.GraphModule) -> list[list[fx.Node]]:
    """Calls of layers that read one node and are alike, two or more together."""
    groups: dict[object, list[fx.Node]] = {}
    for node in network.graph.find_nodes(op="call_module"):
        layer = network.get_submodule(str(node.target))
        if type(layer) in (nn.Conv2d, nn.Linear) and getattr(layer, "groups", 1) == 1:
            shape = [getattr(layer, name, None) for name in GEOMETRY]
            alike = node.all_input_nodes[0], type(layer), layer.bias is None, *shape
            groups.setdefault(alike, []).append(node)
    return [siblings for siblings in groups.values() if len(siblings) > 1]


def judge(network: fx.GraphModule, siblings: list[fx.Node]) -> str:
    """Why these layers stay apart; "" if no call between them can write to their input."""
    layers, node = dict(network.named_modules()), siblings[0]
    while (node := node.next) is not siblings[-1]:
        if node.op != "call_module" or getattr(layers[str(node.target)], "inplace", False):
            return f"{node} may write in place before {siblings[-1].target} is called"
    return ""


def stack(network: fx.GraphModule, siblings: list[fx.Node]) -> nn.Module:
    """One layer with the weights of all siblings, one below the other."""
    layers = [copy.deepcopy(network.get_submodule(str(node.target))) for node in siblings]
    for name in dict(layers[0].named_parameters()):
        setattr(layers[0], name, nn.Parameter(cat([getattr(m, name) for m in layers])))
    return layers[0]


def split(network: fx.GraphModule, siblings: list[fx.Node], stacked: nn.Module) -> None:
    """Call the stacked layer where the first sibling was; each sibling becomes a part."""
    sizes = [len(network.get_parameter(f"{node.target}.weight")) for node in siblings]
    network.add_submodule(path := f"{siblings[0]}_and_siblings", stacked)
    with network.graph.inserting_before(siblings[0]):
        y = network.graph.call_module(path, siblings[0].args, siblings[0].kwargs)
        cut = (y, sizes, -3 if isinstance(stacked, nn.Conv2d) else -1)  # their channels
        parts = network.graph.call_method("split", cut)
    for i, node in enumerate(siblings):
        node.op, node.target, node.args = "call_function", operator.getitem, (parts, i)
