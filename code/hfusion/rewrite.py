"""Plan, fuse and undo: siblings in a whole network. torch.fx.

    model ──trace──► graph ──find──► groups ──judge──► plan ──apply──► fused
                                                        │
                                          print(plan): each group, fused
                                          or refused, and the reason

A plan changes nothing and can be printed; `apply` builds a new network beside the
model. Which layers are siblings, and what speaks against fusing them, is decided
in `siblings`.
"""

import copy
import dataclasses
import itertools
import operator
import textwrap
from collections import Counter
from functools import partial

import torch
from torch import nn

from . import layers, modes, observe, packed, siblings
from .layers import FusionError
from .tracing import Network, Trace, copied, put, trace


def plan(model, example_inputs=None, *, min_siblings=2, accept=None, embed=False):
    """Find every group of siblings in a model, and decide about each: a FusionPlan.

    model: an nn.Module, left as it was. example_inputs: a tensor, a tuple of positional
    arguments or a dict of keywords. With them the model runs once (twice where there are
    siblings), and layers that get the same tensor are siblings, whatever control flow led
    there; `apply` then returns the same model, with siblings side by side (see `packed`).
    Without them torch.fx reads the model, which has to be traceable, or a GraphModule, and
    `apply` returns a graph. min_siblings: smaller groups are refused. accept: is asked
    about every group that could be fused, and returns True or a reason, a string; or it is
    a judge of all of them together, as `hfusion.faster(…)` makes one. embed: let
    convolutions with smaller windows join siblings with larger ones (see `embedding`): more
    multiply-adds, which the plan tells, and for finite inputs only; not together with
    example_inputs. What is changed in the model before `apply`, such as its mode, is looked
    at again there. Raises FusionError for arguments that do not fit and for models that can
    be neither traced nor run.

    >>> from hfusion import models
    >>> print(plan(models.Inception.from_table("3a")))
    members                      c_out   then saved   B/px
    {b1,b3_reduce,b5_reduce}.conv 64+96+16  2  1,408
    1 of 1 groups fused; Conv2d 6 -> 4 calls

    >>> import torch
    >>> class Attention(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
    ...     def forward(self, x):
    ...         if len(x) > 1:  # here torch.fx stops
    ...             x = x / len(x)
    ...         return self.q(x) @ self.k(x).mT
    >>> fused = plan(Attention(), torch.zeros(2, 8)).apply()
    >>> type(fused).__name__, list(fused.state_dict())
    ('Attention', ['q.weight', 'q.bias', 'k.weight', 'k.bias'])
    """
    if type(min_siblings) is not int or min_siblings < 2:
        raise FusionError(f"min_siblings was {min_siblings!r}; a whole number from 2 fits")
    if accept is not None and not callable(accept):
        raise FusionError(f"accept was {accept!r}; a function of a group fits")
    if type(embed) is not bool:
        raise FusionError(f"embed was {embed!r}; True or False fits")
    _refuse_wrapper(model)
    if example_inputs is not None:
        if embed:
            raise FusionError("embed: expected False with example_inputs, got True")
        groups, kinds = _observed(model, example_inputs, min_siblings)
        return _judged(
            lambda asked: FusionPlan(tuple(map(asked, groups)), model, None, {}, kinds),
            accept,
        )
    try:
        traced = trace(model)
    except FusionError as error:
        run = _OR_RUN if "cannot be traced" in str(error) else ""
        raise FusionError(f"{error}{run}") from error
    sought = {"min_siblings": min_siblings, "embed": embed}
    scene = siblings.Scene(model, traced)

    def found(asked):
        groups = siblings.find(scene, **sought, asked=asked)
        return FusionPlan(tuple(groups), model, traced, sought)

    return _judged(found, accept)


def _judged(found, accept):
    """The plan that `found` makes with who has the last word on a group.

    A judge of all of them has two methods. groups(groups) returns an answer for each; it
    is asked again about parts of those that it refused. whole(model, fused) is asked at
    the end, and with another answer than True no group is fused.
    """
    if not all(callable(getattr(accept, name, None)) for name in ("groups", "whole")):
        return found(partial(_asked, accept))
    answers = {}

    def so_far(group):
        return _answered(group, answers.get(group.members, True))

    while True:
        plan = found(so_far)
        fused = [group for group in plan.groups if group.fused]
        asked = [group for group in fused if group.members not in answers]
        if not asked:
            break
        paths = [group.members for group in asked]
        answers |= zip(paths, accept.groups(asked), strict=True)
    answer = accept.whole(plan.model, plan.apply()) if fused else True
    groups = [_answered(g, answer) if g.fused else g for g in plan.groups]
    return dataclasses.replace(plan, groups=tuple(groups))


_OR_RUN = "; or give example_inputs, and the model is run instead"
# What holds a model, by the name of its class: where the model itself is.
_WRAPPERS = {
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "FullyShardedDataParallel": "model.module",
    "OptimizedModule": "model._orig_mod",  # of torch.compile
}


def _refuse_wrapper(model):
    """Raise FusionError for what is no model but holds one, or cannot be looked into."""
    kind = type(model).__name__
    if kind in _WRAPPERS and type(model).__module__.startswith("torch."):
        inner = _WRAPPERS[kind]
        raise FusionError(f"model: expected the inner module, got a {kind}; give {inner}")
    if isinstance(model, torch.jit.ScriptModule):
        raise FusionError(
            "model: expected an nn.Module in Python, got a ScriptModule; give the module "
            "that it was made from"
        )


def _observed(model, example_inputs, min_siblings):
    """The groups that a run has shown, and how often layers of each kind were called."""
    run = observe.Run(model, example_inputs)
    candidates = [family for paths in run.families for family in _fit(model, paths)]
    fusable = [paths for paths, reason in candidates if not reason]
    asking = run.asking(fusable) if fusable else set()
    groups = []
    for paths, reason in candidates:
        if not reason and len(paths) < min_siblings:
            reason = f"{len(paths)} siblings; min_siblings is {min_siblings}"
        if not reason and not run.in_turn(paths):
            reason = (
                "they do not take turns: one is called with several inputs before another"
            )
        dense = [index for index, path in enumerate(paths) if path in asking]
        about = siblings.about_run(model, paths, run.calls[paths[0]], dense)
        if not reason and about["launches_saved"] <= 0:
            reason = (
                "as many copies as launches: readers of their outputs want contiguous ones"
            )
        groups.append(siblings.Group(reason=reason, fused=not reason, **about))
    return groups, dict(run.kinds)


def _fit(model, paths):
    """(paths, why they cannot be fused or "") of layers that read the same tensors."""
    named = {path: model.get_submodule(path) for path in paths}
    fit = {}
    for path, layer in named.items():
        reason = layers.unfit(path, layer, layers.KEPT)
        if packed.member_of(layer):
            reason = f"{path} is fused already"
        if reason:
            yield (path,), reason
        else:
            fit[path] = layer
    if len(fit) > 1:
        yield tuple(fit), layers.refusal(fit, kept=layers.KEPT)


def _asked(accept, group):
    return _answered(group, accept(group) if accept and group.fused else True)


def _answered(group, answer):
    """A group as it is to be, with what was answered about it."""
    if answer is True:
        return group
    if not isinstance(answer, str) or not answer:
        raise FusionError(f"accept returned {answer!r}; True or a reason, a string, fits")
    return dataclasses.replace(group, fused=False, reason=answer)


def fuse(model, example_inputs=None):
    """`plan(model, example_inputs).apply()`: the fused model, beside the model."""
    found = plan(model, example_inputs)
    if found.trace is None:
        return found.apply()
    return _fused(model, found.trace, found.groups)


@dataclasses.dataclass(frozen=True)
class FusionPlan:
    """What will be fused, what will not, and why. Print it; `apply` it.

    In the table, `then` is the activation that all members have. `saved` counts the
    operators that are launched less than before; copies inside of consumers are none of
    them. "2 to 4" means 4 where the activation is applied once, which it is where each
    branch lies in one piece (one image in NCHW, one row of a Linear). Elsewhere it means
    2: the branches are strided parts, which consumers may copy, and the activation is
    applied to each of them, since its results are dense. A single number holds in any
    layout. `B/px` is what consumers move if they make all strided branches contiguous,
    bytes read and written for each pixel (for a Linear: each row). The split itself moves
    nothing. Where windows are embedded, a line says in which, and the multiply-adds for
    each pixel before and after.
    """

    groups: tuple
    model: nn.Module = dataclasses.field(repr=False)
    trace: Trace = dataclasses.field(repr=False)
    sought: dict = dataclasses.field(repr=False)  # the arguments of `plan`, less accept
    kinds: dict | None = dataclasses.field(default=None, repr=False)  # calls, as run

    @property
    def calls(self):
        """How often layers of each kind are called: {kind: (before, after)}."""
        kinds = self.kinds if self.trace is None else self._traced_kinds()
        saved = Counter()
        for group in self.groups:
            saved[group.kind] += (len(group.members) - 1) * group.calls * group.fused
        return {kind: (count, count - saved[kind]) for kind, count in sorted(kinds.items())}

    def _traced_kinds(self):
        modules = self.trace.modules
        called = [
            modules[n.target] for n in self.trace.graph.nodes if n.op == "call_module"
        ]
        return Counter(k.__name__ for m in called if (k := layers.kind_of(m)))

    def __str__(self):
        lines = [line for group in self.groups for line in _rows(group)]
        if lines:
            lines.insert(0, _ROW.format("members", "c_out", "then", "saved", "B/px"))
        fused = sum(group.fused for group in self.groups)
        groups = f"{fused} of {len(self.groups)} groups fused" if lines else "no siblings"
        calls = [f"{kind} {old} -> {new} calls" for kind, (old, new) in self.calls.items()]
        return "\n".join([*lines, "; ".join([groups, *calls])])

    def apply(self):
        """The fused network: a torch.fx.GraphModule with the model's outputs.

        It does what the model does now: what has changed since it was planned, such as
        its weights or its mode, is looked at again. Where a group of the plan cannot be
        fused any more, that is a FusionError.

        train() and eval() switch the fused network as they switch the model. Where forward
        itself looks at `training`, and does something else then, the network stays in
        the mode that the model is in, and says so by a FusionError when it is switched,
        or when it is called after one of its modules was.

        Exact equality is not promised: a matrix product of another size may add in
        another order. Each output then differs by rounding, for one layer by at most
        `algebra.rounding_bound`, under the conditions that it names (TF32 off, no
        underflow, no Winograd); that error travels on through the network.
        The keys of its state_dict() are the model's. The weights are copied, those
        of the model are left alone; the model may be deleted.
        """
        if self.trace is None:
            return _side_by_side(self.model, self.groups)
        planned = {group.members: group for group in self.groups if group.fused}
        try:
            traced = trace(self.model)
            scene = siblings.Scene(self.model, traced)
        except FusionError as error:
            raise FusionError(f"{self._changed()}: {error}") from error
        groups = siblings.find(scene, **self.sought, asked=partial(_as_planned, planned))
        found = {group.members for group in groups if group.fused}
        if missing := [members for members in planned if members not in found]:
            reason = _why_not(missing[0], groups)
            raise FusionError(f"{self._changed()}: {reason}; plan it again")
        return _fused(self.model, traced, groups)

    def _changed(self):
        """That the model is not what was planned, in words."""
        now = {p: m.training for p, m in self.model.named_modules(remove_duplicate=False)}
        was, now = (modes.word(flags.values()) for flags in (self.trace.flags, now))
        if was != now:
            return f"model was planned in {was} mode and is in {now} mode now"
        return "model has changed since it was planned"


def _as_planned(planned, group):
    """A group as it was decided about: `planned` are those that are to be fused."""
    decided = planned.get(group.members)
    if decided is None or not group.fused:
        return dataclasses.replace(group, fused=False)
    if decided.activation is None:
        group = dataclasses.replace(group, activation=None, ends=group.nodes)
    return dataclasses.replace(group, hoist=decided.hoist)


def _why_not(members, groups):
    """Why members of a planned group are in none that can be fused."""
    reasons = [g.reason for g in groups if g.reason and {*members} & {*g.members}]
    return reasons[0] if reasons else f"{_short(members)} are no siblings any more"


def _side_by_side(model, groups):
    """A copy of the model whose siblings lie side by side, see `packed`."""
    try:
        double = copy.deepcopy(model)
    except Exception as error:
        raise FusionError(f"model cannot be copied: {error}") from error
    for group in groups:
        if not group.fused:
            continue
        try:
            members = [double.get_submodule(path) for path in group.members]
        except AttributeError as error:
            raise FusionError(f"model has changed since it was planned: {error}") from error
        named = dict(zip(group.members, members, strict=True))
        if reason := layers.refusal(named, kept=layers.KEPT):
            raise FusionError(f"model has changed since it was planned: {reason}")
        packed.route(members, group.members, dense=group.dense)
    return double


def _fused(model, traced, groups):
    """A network with these groups fused, beside the model."""
    fused = [group for group in groups if group.fused]
    # Members are not copied here, since stacking copies their weights.
    members = [layer for group in fused for layer in group.layers.values()]
    memo = {id(layer): Moved().train(layer.training) for layer in members}
    try:
        double = copy.deepcopy(model, memo)
    except Exception as error:
        raise FusionError(f"model cannot be copied: {error}") from error
    graph, where = copied(traced.graph)
    for group in fused:
        _stack_calls(double, graph, group, where)
    keys = tuple(model.state_dict())
    return Fused(double, graph, traced.constants, traced.traced_in, keys)


class Siblings(layers.Stacked):
    """A stacked layer in a network; its names are the members' paths there."""

    def __init__(self, members, activation, followers, hoist):
        super().__init__(members, activation, hoist)
        self.followers = followers  # what followed each member: (op, target, args, …)

    def _keep_keys(self):
        """The network does, which knows where the members were."""


class Moved(nn.Module):
    """What stands where a fused layer stood: its weights are in a stacked layer."""

    def forward(self, *args):
        raise FusionError("this layer was fused with its siblings; call unfuse() first")


class Fused(Network):
    """A network whose siblings are stacked; its states are the original's."""

    def __init__(self, model, graph, constants, traced_in, keys):
        super().__init__(model, graph, constants, traced_in)
        self._hfusion["keys"] = keys
        if differ := set(keys) ^ set(self.state_dict()):
            raise FusionError(
                f"model has a state_dict() of its own making, with {sorted(differ)[0]}; "
                "keys that are the paths of its tensors fit"
            )

    def state_dict(self, *args, prefix="", **kwargs):
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        for path, stacked in _stacked_of(self).items():
            layers.split_state(stacked, state, f"{prefix}{path}.", prefix)
        for key in self._hfusion["keys"]:  # in the original's order
            if prefix + key in state:
                state[prefix + key] = state.pop(prefix + key)
        return state

    def _load_from_state_dict(
        self, state, prefix, metadata, strict, missing, unexpected, errors
    ):
        assign = metadata.get("assign_to_params_buffers", False)
        for path, stacked in _stacked_of(self).items():
            at = f"{prefix}{path}."
            lacking, unfitting = layers.stack_state(stacked, state, at, prefix, assign)
            missing += lacking
            errors += unfitting
        super()._load_from_state_dict(
            state, prefix, metadata, strict, missing, unexpected, errors
        )


def _stack_calls(model, graph, group, where):
    """In `model` and its `graph`: one call of a stacked layer in place of a group's."""
    nodes, ends = ([where[n] for n in each] for each in (group.nodes, group.ends))
    members = group.layers
    reason = layers.refusal(members, embed=group.window is not None)
    if reason:
        raise FusionError(f"model has changed since it was planned: {reason}")
    path = _free_path(model, group.members)
    followers = [
        (end.op, end.target, end.args[1:], siblings.settings_of(end)) for end in ends
    ]
    activation = copy.deepcopy(group.activation)
    stacked = Siblings(members, activation, followers if activation else [], group.hoist)
    setattr(model, path, stacked)
    with graph.inserting_before(nodes[0]):
        whole = graph.call_module(path, (nodes[0].all_input_nodes[0],))
        parts = [
            graph.call_function(operator.getitem, (whole, i)) for i in range(len(nodes))
        ]
    for view in group.views:  # a branch may be strided, and then only reshape can copy
        where[view].target = "reshape"
        if "size" in where[view].kwargs:  # else another group has done it
            where[view].kwargs = {"shape": where[view].kwargs["size"]}
    for node, end, part in zip(nodes, ends, parts, strict=True):
        end.replace_all_uses_with(part)
        for old in dict.fromkeys((end, node)):
            graph.erase_node(old)


def _free_path(model, members):
    """A name for the stacked layer, after what its members have in common."""
    common = _common_start([member.split(".") for member in members])
    name = wanted = "_".join([*common, "stacked"])
    count = 0
    while hasattr(model, name) or hasattr(Fused, name):
        count += 1
        name = f"{wanted}_{count}"
    return name


def _stacked_of(network):
    """The stacked layers of a fused network, by path."""
    return {path: m for path, m in network._modules.items() if isinstance(m, Siblings)}


def unfuse(fused):
    """Separate layers again, with the current weights: a model beside `fused`.

    fused: what `fuse` or `FusionPlan.apply` made. The layers get their old paths
    back, and the weights are copied bit for bit. Raises FusionError for anything
    else.
    """
    if isinstance(fused, nn.Module) and any(map(packed.member_of, fused.modules())):
        double = copy.deepcopy(fused)
        for layer in double.modules():
            if packed.member_of(layer):
                packed.release(layer)
        return double
    if not isinstance(fused, Fused):
        raise FusionError(f"fused was a {type(fused).__name__}; what fuse() returned fits")
    stacked = _stacked_of(fused)
    double = copy.deepcopy(fused, {id(module): module for module in stacked.values()})
    graph = double.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target in stacked:
            _separate_call(double, graph, node, stacked[node.target])
    for path in stacked:
        del double._modules[path]
    return Network(double, graph, {}, fused._hfusion["traced_in"])


def _separate_call(model, graph, node, stacked):
    """The way back from `_stack_calls`, for one call."""
    for path, layer in stacked.unstack().items():
        put(model, path, layer)
    parts = {user.args[1]: user for user in node.users}
    with graph.inserting_before(node):
        for index, path in enumerate(stacked.names):
            value = graph.call_module(path, node.args)
            if stacked.followers:
                op, target, args, kwargs = stacked.followers[index]
                value = graph.create_node(op, target, (value, *args), kwargs)
            if index in parts:
                parts[index].replace_all_uses_with(value)
                graph.erase_node(parts[index])
    graph.erase_node(node)


_ROW = "{:<41} {:>13} {:>6} {:>6} {:>6}"


def _rows(group):
    """The lines of a table for one group."""
    sizes = "+".join(str(size) for size in group.c_out)
    then = type(group.activation).__name__ if group.activation else ""
    saved, moved = "0", ""
    if group.fused:
        saved, moved = str(group.launches_saved), f"{group.split_bytes:,}"
        if group.saved_in_one_piece:
            saved += f" to {group.launches_saved + group.saved_in_one_piece}"
    yield _ROW.format(_short(group.members), sizes, then, saved, moved).rstrip()
    if group.window:
        before = sum(layer.weight.numel() for layer in group.layers.values())
        after = before + group.extra_macs
        yield (
            f"    embedded in {group.window}: {before:,} -> {after:,} multiply-adds a pixel"
        )
    if group.reason:
        reason = f"    refused: {group.reason}"
        yield from textwrap.wrap(reason, 76, subsequent_indent="    ")


def _short(members):
    """Several paths as one: a.{b,c}.conv.

    >>> _short(["inception.3a.b1.conv", "inception.3a.b3.conv"])
    'inception.3a.{b1,b3}.conv'
    """
    steps = [member.split(".") for member in members]
    if len(steps) == 1:
        return members[0]
    head = _common_start(steps)
    tail = _common_start([step[len(head) :][::-1] for step in steps])
    middle = [".".join(step[len(head) : len(step) - len(tail)]) for step in steps]
    return ".".join([*head, "{" + ",".join(middle) + "}", *tail[::-1]])


def _common_start(lists):
    columns = zip(*lists, strict=False)
    return [c[0] for c in itertools.takewhile(lambda c: len(set(c)) == 1, columns)]
