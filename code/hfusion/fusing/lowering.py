"""A planned network as one graph, for exporters and compilers. torch.fx.

    x ──► a ──► relu ──► …            x ──► stacked ──► [0] ──► …
    x ──► b ──► relu ──► …     =                    └─► [1] ──► …

A fused model looks at its siblings' inputs at each call. An exporter cannot, nor can a
compiler that wants one program. What they get is a snapshot, in which each group of
siblings is one layer with weights of its own.
"""

import copy
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from .. import stacking
from ..errors import FusionError
from ..finding import reading
from ..finding._aside import counting
from ..finding.reading import Reading
from ..stacking import rules
from ._table import common_start
from .planning import FusionPlan
from .siblings import Group


@counting()
def lower(plan: FusionPlan, once: bool | None = None) -> fx.GraphModule:
    """The planned network as one graph, in which each group of siblings is one layer.

    Use it for exporters and compilers, which cannot look at addresses at each call, and
    `plan.apply()` for everything else. Siblings stay separate if they cannot be one layer
    in a graph: if they have several calls or hooks, if the graph itself reads their
    weights, or if a consumer relies on the layout of memory or takes a view under another
    mode.

    Parameters
    ----------
    plan
        A plan of a model in eval mode, made by reading, so without example_inputs.
    once
        Whether an activation that all members of a group have is applied to all branches at
        once (True) or to each (False). None: at once where a branch is in one piece, or
        where consumers copy less than that saves.

    Returns
    -------
    torch.fx.GraphModule
        In eval mode. It takes what the model's forward takes and returns the same within
        rounding; each fused group is a `stacking.Stacked` in it. It is a snapshot: its
        weights are copies, its keys are those of torch.fx, and only what the graph calls is
        there.

    Raises
    ------
    FusionError
        For a plan found by running, a model in training mode or changed since it was
        planned, and one that does more than a graph can say.

    Examples
    --------
    >>> from hfusion import models, plan
    >>> network = lower(plan(models.Inception.from_table("3a").eval()))
    >>> print(network.stacked)
    Stacked(
      b1.conv: 64, b3_reduce.conv: 96, b5_reduce.conv: 16
      (layer): Conv2d(192, 176, kernel_size=(1, 1), stride=(1, 1), bias=False)
    )
    >>> x = torch.zeros(1, 192, 28, 28)
    >>> torch.export.export(network, (x,)).module()(x).shape
    torch.Size([1, 256, 28, 28])
    """
    now = _read(plan)
    graph = copy.deepcopy(now.graph)
    where = dict(zip(now.graph.nodes, graph.nodes, strict=True))
    stacked = {}
    for group in filter(lambda group: group.fused, plan.groups):
        nodes = [node for path in group.members for node in now.nodes[path]]
        activation, ends = reading.common_activation(now, nodes)
        if once is False:
            activation, ends = None, tuple(nodes)
        if not _one_layer(now, group, ends):
            continue
        hoist = bool(once or reading.count_copies(now, ends) < len(ends) - 1)
        embed, path = group.window is not None, _free_path(graph, group.members)
        stacked[path] = stacking.stack(group.layers, activation, embed, hoist)
        there = ([where[node] for node in found] for found in (nodes, ends))
        _call_stacked(graph, path, *there)
    if stacked:
        _let_views_copy(now, where)
    parts = _copies(plan.model, graph, now.trace.constants, stacked)
    network = fx.GraphModule(parts, graph, type(plan.model).__name__)
    _keep_out_of_state(network, parts.keys() - plan.model.state_dict().keys())
    network.graph.lint()
    return network.eval()


def _read(plan: FusionPlan) -> Reading:
    """The model as it is read now. FusionError where that is not what was planned."""
    if not isinstance(plan, FusionPlan) or not isinstance(plan.found, Reading):
        kind = type(plan).__name__
        got = "one found by running" if isinstance(plan, FusionPlan) else f"a {kind}"
        raise FusionError(
            f"plan: expected one found by reading, without example_inputs, got {got}"
        )
    for path, module in plan.model.named_modules():
        if module.training:
            raise FusionError(
                f"model: expected eval mode, got {path or 'model'} in training mode; call "
                "model.eval() and plan again"
            )
    now = Reading(plan.model, exact=True)
    if not reading.same_calls(now.graph, plan.found.graph):
        raise FusionError("model has changed since it was planned; plan it again")
    return now


def _one_layer(now: Reading, group: Group, ends: Sequence[fx.Node]) -> bool:
    """Whether a group's calls can become one call of one layer, in a graph."""
    members, embed = group.layers, group.window is not None
    if reason := rules.unstackable(members, embed, rules.KEPT):
        raise FusionError(f"model has changed since it was planned: {reason}")
    if group.calls > 1 or rules.unstackable(members, embed) or _read_by_graph(now, members):
        return False
    memory = now.memory
    return not any(
        memory.counts_on_layout(end) or memory.viewed_in_another_mode(end) for end in ends
    )


def _read_by_graph(now: Reading, members: Mapping[str, nn.Module]) -> bool:
    """Whether a graph reads weights of these layers itself; it may write to them, too."""
    nodes = now.graph.find_nodes(op="get_attr")
    paths = {node.target for node in nodes} - now.trace.constants.keys()
    read = {id(_at(now.model, path)) for path in paths}
    return any(id(p) in read for layer in members.values() for p in layer.parameters())


def _let_views_copy(now: Reading, where: Mapping[fx.Node, fx.Node]) -> None:
    """Make each call of `.view` one of `.reshape` where a copy would do as well.

    A part may be strided, and a convolution that reads it may lay out its output otherwise.
    """
    for node in now.graph.find_nodes(op="call_method", target="view"):
        memory, view = now.memory, where[node]
        if memory.counts_on_layout(node) or memory.viewed_in_another_mode(node):
            continue
        view.target = "reshape"
        if "size" in view.kwargs:
            view.kwargs = {"shape": view.kwargs["size"]}


def _call_stacked(
    graph: fx.Graph, path: str, nodes: Sequence[fx.Node], ends: Sequence[fx.Node]
) -> None:
    """In a graph: one call of the stacked layer at `path` in place of a group's calls."""
    with graph.inserting_before(nodes[0]):
        whole = graph.call_module(path, (nodes[0].all_input_nodes[0],))
        parts = [
            graph.call_function(operator.getitem, (whole, i)) for i in range(len(nodes))
        ]
    for node, end, part in zip(nodes, ends, parts, strict=True):
        end.replace_all_uses_with(part)
        for old in dict.fromkeys((end, node)):
            graph.erase_node(old)


def _free_path(graph: fx.Graph, members: Sequence[str]) -> str:
    """A name for the stacked layer, after what its members have in common."""
    alike = common_start([member.split(".") for member in members])
    wanted = "_".join([*alike, "stacked"])
    taken = {str(node.target).partition(".")[0] for node in graph.nodes}
    names = (f"{wanted}_{count}" if count else wanted for count in itertools.count())
    return next(name for name in names if name not in taken)


def _copies(
    model: nn.Module, graph: fx.Graph, constants: Mapping[str, Any],
    stacked: Mapping[str, nn.Module],
) -> dict[str, Any]:  # fmt: skip
    """{path: a copy} of what a graph calls or reads, less the stacked layers' members."""
    found = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and node.target not in stacked:
            known = constants.get(node.target)
            found[node.target] = _at(model, node.target) if known is None else known
    try:
        return {**copy.deepcopy(found), **stacked}  # at once: what is shared stays so
    except Exception as error:
        raise FusionError(f"model cannot be copied: {error}") from error


def _at(model: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(model)


def _keep_out_of_state(network: fx.GraphModule, paths: Iterable[str]) -> None:
    """Tensors that no state of the model has, such as those that forward makes."""
    for path in paths:
        if torch.is_tensor(tensor := _at(network, path)):
            parent, _, name = path.rpartition(".")
            network.get_submodule(parent).register_buffer(name, tensor, persistent=False)
