"""A plan as a table: each group, fused or refused, and the reason."""

import itertools
import textwrap
from collections.abc import Iterator, Sequence

from ..finding.calls import Calls
from .siblings import Group

_ROW = "{:<41} {:>13} {:>6} {:>6} {:>6}"
# Why a layer may not have been called, by how the others were found.
_UNSEEN = {
    "reading": "forward takes their weights, goes another way, or a module of torch calls "
    "them: then example_inputs may show more",
    "running": "forward takes their weights, or goes another way with these inputs",
}
# What is known of fused groups, by how they were found.
_HOLDS = {
    "reading": "    proved from the graph; checked again at each call",
    "running": "    seen in one run; checked at each call",
}


def table(groups: Sequence[Group], found: Calls, calls: dict[str, tuple[int, int]]) -> str:
    """The groups of a plan, layers without a call, a line that sums up, and what holds.

    calls: {kind: (calls before, calls after)}.
    """
    lines = [line for group in groups for line in _rows(group)]
    if lines:
        lines.insert(0, _ROW.format("members", "c_out", "then", "saved", "B/px"))
    fused = sum(group.fused for group in groups)
    summary = [f"{fused} of {len(groups)} groups fused" if lines else "no siblings"]
    summary += [f"{kind} {old} -> {new} calls" for kind, (old, new) in calls.items()]
    summary += [f"found by {found.found}"]
    holds = [_HOLDS[found.found]] if fused else []
    return "\n".join([*lines, *_unseen(found), "; ".join(summary), *holds])


def _rows(group: Group) -> Iterator[str]:
    """The lines for one group."""
    sizes = "+".join(str(size) for size in group.c_out)
    then = type(group.activation).__name__ if group.activation else ""
    saved, moved = "0", ""
    if group.fused:
        saved, moved = str(group.launches_saved), f"{group.split_bytes:,}"
        if group.saved_in_one_piece:
            saved += f" to {group.launches_saved + group.saved_in_one_piece}"
    yield _ROW.format(short(group.members), sizes, then, saved, moved).rstrip()
    if group.window:
        before = sum(layer.weight.numel() for layer in group.layers.values())
        after = before + group.extra_macs
        yield (
            f"    embedded in {group.window}: {before:,} -> {after:,} multiply-adds a pixel"
        )
    if group.reason:
        reason = f"    refused: {group.reason}"
        yield from textwrap.wrap(reason, 76, subsequent_indent="    ")


def _unseen(calls: Calls) -> list[str]:
    """A line about layers without a call."""
    unseen = calls.unseen()
    if not unseen:
        return []
    paths = [*unseen][:3] + ["…"] * (len(unseen) > 3)
    why = _UNSEEN[calls.found]
    return textwrap.wrap(f"not called: {', '.join(paths)} ({why})", 76)


def short(members: Sequence[str]) -> str:
    """Several paths as one: a.{b,c}.conv.

    >>> short(["inception.3a.b1.conv", "inception.3a.b3.conv"])
    'inception.3a.{b1,b3}.conv'
    """
    steps = [member.split(".") for member in members]
    if len(steps) == 1:
        return members[0]
    head = common_start(steps)
    tail = common_start([step[len(head) :][::-1] for step in steps])
    middle = [".".join(step[len(head) : len(step) - len(tail)]) for step in steps]
    return ".".join([*head, "{" + ",".join(middle) + "}", *tail[::-1]])


def common_start(lists: Sequence[Sequence[str]]) -> list[str]:
    """The steps with which all of these lists begin."""
    columns = zip(*lists, strict=False)
    return [c[0] for c in itertools.takewhile(lambda c: len(set(c)) == 1, columns)]
