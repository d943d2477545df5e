"""The smallest fuser: eval mode, under no_grad, models that torch.fx reads faithfully."""

import operator
from copy import deepcopy
from unittest.mock import patch

from torch import autocast, cat, nn
from torch.fx import GraphModule, Node, symbolic_trace

AXIS = {nn.Conv2d: -3, nn.Linear: -1}  # where the output has its channels
OUTPUTS = {nn.Conv2d: "out_channels", nn.Linear: "out_features"}
GEOMETRY = ("kernel_size", "stride", "padding", "padding_mode", "dilation")
OPERATORS = {getattr(operator, name) for name in operator.__all__} - {operator.getitem}


def fuse(model: nn.Module) -> GraphModule:
    """A copy for inference; `meta` says why siblings stay apart, "" where they do not."""
    if any(m.training for m in model.modules()):
        raise ValueError("model: expected eval mode, got training; call model.eval() first")
    odd = [k for m in model.modules() for k, v in vars(m).items() if "forward" in k and v]
    # torch.fx drops autocast and hooks, and reads x += y as x + y; a weight may change.
    error = ValueError("model: expected no autocast inside forward; switch it outside")
    with patch.object(autocast, "__enter__", side_effect=error):
        net = symbolic_trace(deepcopy(model))
    odd += [n for n in net.graph.nodes if n.target in OPERATORS or n.op == "get_attr"]
    if odd:
        raise ValueError(f"model: expected calls of layers and functions, got {odd}")
    judged = [(siblings, judge(net, siblings)) for siblings in find(net)]
    for siblings, reason in judged:  # all of them before the first edit
        net.meta[f"{siblings}"] = reason
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
    """Why these layers stay apart; "" if all calls between them leave their input alone."""
    layers, n = dict(net.named_modules()), siblings[0]
    while (n := n.next) is not siblings[-1]:
        called = n.op == "call_module"
        for part in layers[str(n.target)].modules() if called else [n]:
            known = type(part).__module__.startswith("torch.nn.modules.")
            if not known or getattr(part, "inplace", False):
                return f"{n} is not known to leave its input alone"
    return ""


def stack(net: GraphModule, siblings: list[Node]) -> nn.Module:
    """One layer with the weights of all siblings, one below the other."""
    layers = [deepcopy(net.get_submodule(str(n.target))) for n in siblings]
    for name in dict(layers[0].named_parameters()):
        weights = cat([getattr(layer, name) for layer in layers])
        setattr(layers[0], name, nn.Parameter(weights))
        setattr(layers[0], OUTPUTS[type(layers[0])], len(weights))
    return layers[0]


def split(net: GraphModule, siblings: list[Node], layer: nn.Module) -> None:
    """Call the stacked layer where the first sibling was; each sibling becomes a part."""
    sizes = [len(net.get_parameter(f"{n.target}.weight")) for n in siblings]
    net.add_submodule(path := f"{siblings[0]}_and_siblings", layer)
    with net.graph.inserting_before(siblings[0]):
        given = siblings[0].args, siblings[0].kwargs
        y = net.graph.call_module(path, *given)
        cut = net.graph.call_method("split", (y, sizes, AXIS[type(layer)]))
    for i, n in enumerate(siblings):
        n.op, n.target = "call_function", operator.getitem
        n.args, n.kwargs = (cut, i), {}
