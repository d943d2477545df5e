"""Plan, fuse and undo: siblings in a whole network. torch.

    model ──read it, or run it──► calls ──judge──► plan ──apply──► fused
                                                    │
                                      print(plan): each group, fused
                                      or refused, and the reason

A plan changes nothing and can be printed; `apply` makes a copy of the model whose siblings
compute together (`_group`). Which layers are siblings, and what speaks against
fusing them, is decided in `siblings`.
"""

import dataclasses
import itertools
import logging
import textwrap
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import FusionError
from ..finding import running
from ..finding._aside import copy_model
from ..finding.calls import Calls, owners
from ..finding.reading import Reading
from ..stacking import rules
from . import _followers, _group, _members, siblings

logger = logging.getLogger("hfusion")


def plan(
    model: nn.Module, example_inputs: Any = None, *, min_siblings: int = 2,
    accept: Callable | None = None, embed: bool = False,
) -> "FusionPlan":  # fmt: skip
    """Find every group of siblings in a model, and decide about each: a FusionPlan.

    model: an nn.Module, left as it was. example_inputs: a tensor, a tuple of positional
    arguments or a dict of keywords. With them the model runs once (twice where there are
    siblings), and layers that get the same tensor are siblings, whatever control flow led
    there. Without them torch.fx reads the model, which has to be traceable, or a
    GraphModule; that also tells why layers are no siblings. min_siblings: smaller groups
    are refused. accept: is asked about every group that could be fused, and returns True or
    a reason, a string; or it is a judge of all of them together, as `hfusion.faster(…)`
    makes one. embed: let convolutions with smaller windows join siblings with larger ones
    (see `embedding`): more multiply-adds, which the plan tells, and for finite inputs only.
    Raises FusionError for arguments that do not fit and for models that can be neither
    traced nor run.

    >>> from hfusion import models
    >>> print(plan(models.Inception.from_table("3a")))
    members                      c_out   then saved   B/px
    {b1,b3_reduce,b5_reduce}.conv 64+96+16  2  1,408
    1 of 1 groups fused; Conv2d 6 -> 4 calls; found by reading

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
    calls = _read(model) if example_inputs is None else running.Run(model, example_inputs)

    def found(asked):
        groups = siblings.find(calls, min_siblings, embed, asked)
        return FusionPlan(tuple(groups), model, calls)

    return _judged(found, accept)


def _read(model):
    try:
        return Reading(model)
    except FusionError as error:
        run = _OR_RUN if "cannot be traced" in str(error) else ""
        raise FusionError(f"{error}{run}") from error


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


def _asked(accept, group):
    return _answered(group, accept(group) if accept and group.fused else True)


def _answered(group, answer):
    """A group as it is to be, with what was answered about it."""
    if answer is True:
        return group
    if not isinstance(answer, str) or not answer:
        raise FusionError(f"accept returned {answer!r}; True or a reason, a string, fits")
    return dataclasses.replace(group, fused=False, reason=answer)


def fuse(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """`plan(model, example_inputs).apply()`: the fused model, beside the model.

    Where nothing can be fused, a warning of the logger "hfusion" holds the plan.
    """
    found = plan(model, example_inputs)
    if not any(group.fused for group in found.groups):
        logger.warning("nothing is fused:\n%s", found)
    return found.apply()


@dataclasses.dataclass(frozen=True)
class FusionPlan:
    """What will be fused, what will not, and why. Print it; `apply` it.

    In the table, `then` is the activation, a module, that follows every member. `saved`
    counts the operators that are launched less than before; copies inside of consumers are
    none of them. "2 to 4", on a GPU, means 4 where the activation is called once for all,
    which it is where each branch lies in one piece (one image in NCHW, one row of a
    Linear). Elsewhere it means 2: the branches are strided parts, which consumers may copy,
    and the activation is called with each of them, since its results are dense. On a CPU
    it is called with each in any case, since that is quicker there. `B/px` is what
    consumers move if they make all strided branches contiguous, bytes read and written for
    each pixel (for a Linear: each row). The split itself moves nothing. Where windows are
    embedded, a line says in which, and the multiply-adds for each pixel before and after.

    Reading shows that no input between two siblings' calls is written to, on the path that
    was read; running shows it for one input. Each call checks again, either way.
    """

    groups: tuple[siblings.Group, ...]
    model: nn.Module = dataclasses.field(repr=False)
    found: Calls = dataclasses.field(repr=False)

    @property
    def calls(self) -> dict[str, tuple[int, int]]:
        """How often layers of each kind are called: {kind: (before, after)}."""
        saved = Counter()
        for group in self.groups:
            saved[group.kind] += (len(group.members) - 1) * group.calls * group.fused
        kinds = sorted(self.found.kinds.items())
        return {kind: (count, count - saved[kind]) for kind, count in kinds}

    def __str__(self) -> str:
        lines = [line for group in self.groups for line in _rows(group)]
        if lines:
            lines.insert(0, _ROW.format("members", "c_out", "then", "saved", "B/px"))
        fused = sum(group.fused for group in self.groups)
        groups = f"{fused} of {len(self.groups)} groups fused" if lines else "no siblings"
        calls = [f"{kind} {old} -> {new} calls" for kind, (old, new) in self.calls.items()]
        how = f"found by {self.found.found}"
        return "\n".join([*lines, *_unseen(self.found), "; ".join([groups, *calls, how])])

    def apply(self) -> nn.Module:
        """The fused model: a copy of the model, whose siblings compute together.

        It is what the model is: an instance of its class, with its methods, hooks, modes
        and containers, and each weight a Parameter at its own path. It takes over what the
        model is now. Where a group of the plan cannot be fused any more, that is a
        FusionError. Nothing is stored twice, and nothing is shared with the model.

        A call computes together what the plan says if all is as it was planned: the same
        tensor, not written to in between, the same weights, the same modes. Otherwise, and
        while gradients are recorded, each layer computes as it would without us.

        Not noticed are writes between two siblings' calls that autograd does not count
        either (through `.data` or NumPy), and a change of precision there, such as TF32.
        On a path that was not planned, a reader may count on a part without gaps: `.view`
        fails, and after `reshape` or `contiguous`, which copy, a later write to one is none
        to the other. `fusing._group` names the rest.

        Exact equality is not promised: a matrix product of another size may add in another
        order. Each output then differs by rounding, for one layer by at most
        `algebra.rounding_bound`, under the conditions that it names (TF32 off, no
        underflow, no Winograd); that error travels on through the network.
        """
        fused = copy_model(self.model)
        owned = owners(fused)
        for group in filter(lambda group: group.fused, self.groups):
            members = siblings.layers_at(fused, group.members)
            embed = group.window is not None
            reasons = [siblings.shared(owned, *member) for member in members.items()]
            reasons.append(rules.refusal(members, embed, rules.KEPT))
            if reason := next(filter(None, reasons), ""):
                raise FusionError(f"model has changed since it was planned: {reason}")
            side_by_side = _group.route([*members.values()], group.members, group.dense)
            if group.followers:
                after = siblings.layers_at(fused, group.followers).values()
                _followers.route(side_by_side, [*after], group.hoist)
        return fused


def unfuse(fused: nn.Module) -> nn.Module:
    """The model with separate layers again, with the current weights, beside `fused`.

    fused: what `fuse` or `FusionPlan.apply` made. Raises FusionError for anything else.
    """
    if not isinstance(fused, nn.Module) or not any(
        map(_members.member_of, fused.modules())
    ):
        raise FusionError(
            f"fused was a {type(fused).__name__} without fused layers; what fuse() "
            "returned fits"
        )
    apart = copy_model(fused)
    for layer in apart.modules():
        _members.release(layer)
        _followers.release(layer)
    return apart


def _unseen(calls):
    """A line about layers that no call was seen of."""
    unseen = calls.unseen()
    if not unseen:
        return []
    paths = [*unseen][:3] + ["…"] * (len(unseen) > 3)
    why = _UNSEEN[calls.found]
    return textwrap.wrap(f"not called: {', '.join(paths)} ({why})", 76)


# Why a layer may not have been called, by how the others were found.
_UNSEEN = {
    "reading": "forward takes their weights, goes another way, or a module of torch calls "
    "them: then example_inputs may show more",
    "running": "forward takes their weights, or goes another way with these inputs",
}


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
