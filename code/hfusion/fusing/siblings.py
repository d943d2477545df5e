"""Judge families of layers: which are siblings, and what speaks against it. torch.

`calls` knows which layers read the same values. That is not enough: somebody may have
written to them in between, a layer may be a convolution in groups, or share its weights
with somebody. Each such condition is a rule here; it returns "" or the reason, and the
reason is what the user reads. What cannot be shown to be safe is refused.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import FusionError
from ..finding.calls import Calls, Followers
from ..stacking import _memory, rules, windows
from . import _members


@dataclasses.dataclass(frozen=True)
class Group:
    """Siblings that were found, and what was decided about them.

    Attributes
    ----------
    members : tuple of str
        Paths of the layers in the model, in the order of their calls.
    kind : str
        "Conv2d", "Linear", …
    c_out : tuple of int
        Output channels of each member; 0 where not known yet.
    fused : bool
    reason : str
        Why it was refused, in words; else "".
    found : str
        "reading" or "running".
    activation : torch.nn.Module or None
        What follows every member.
    followers : tuple of str
        The activation modules, if one of them is called for all members at once.
    hoist : bool
        Whether it is called at once even where the branches are strided parts.
    launches_saved, saved_in_one_piece : int
        How many operators eager PyTorch saves in every layout, and how many further ones
        where each branch lies in one piece.
    split_bytes : int
        Bytes moved for each pixel (for a Linear: each row) if consumers copy all strided
        branches.
    window : stacking.windows.Window or None
        The window for all members, if theirs differ.
    extra_macs : int
        Additional multiply-adds for each pixel of the output, if so.
    calls : int
        How often each member is called.
    dense : tuple of int
        Indices of the members whose outputs are copied for their readers.
    """

    members: tuple[str, ...]
    kind: str
    c_out: tuple[int, ...]
    fused: bool
    reason: str = ""
    found: str = ""
    activation: nn.Module | None = None
    followers: tuple[str, ...] = ()
    hoist: bool = False
    launches_saved: int = 0
    saved_in_one_piece: int = 0
    split_bytes: int = 0
    window: windows.Window | None = None
    extra_macs: int = 0
    calls: int = 1
    dense: tuple[int, ...] = ()
    model: nn.Module | None = dataclasses.field(default=None, repr=False)

    @property
    def layers(self) -> dict[str, Any]:
        """The members themselves: {path: layer}, as they are in the model now."""
        return layers_at(self.model, self.members)


LastWord = Callable[[Group], Group]  # says of a group whether it is fused


def layers_at(model: Any, paths: Sequence[str]) -> dict[str, Any]:
    """{path: module}; FusionError where there is none any more."""
    try:
        return {path: model.get_submodule(path) for path in paths}
    except AttributeError as error:
        raise FusionError(f"model has changed since it was planned: {error}") from error


# Why a layer cannot be fused, whatever its siblings. Each rule: (calls, path) -> reason.


def unfit(calls: Calls, path: str) -> str:
    """Layers that only look like one of KINDS, or carry something that would be lost."""
    return rules.unfit(path, calls.layer(path), rules.KEPT)


def fused_already(calls: Calls, path: str) -> str:
    """What has siblings by now."""
    return f"{path} is fused already" if _members.member_of(calls.layer(path)) else ""


def uncounted(calls: Calls, path: str) -> str:
    """Layers that forward calls under inference mode, where no write is counted."""
    if None not in calls.versions(path):
        return ""
    return (
        f"forward calls {path} under torch.inference_mode, where writes are not counted; "
        "let it use torch.no_grad"
    )


def shared_memory(calls: Calls, path: str) -> str:
    """Weights in the memory of another tensor, which would not move along."""
    return memory_of_others(calls.owners, path, calls.layer(path))


def memory_of_others(
    owners: dict[Hashable, set[tuple[int, str]]], path: str, layer: nn.Module
) -> str:
    """Which weights of a layer share memory with other tensors, in a sentence, or ""."""
    for name, tensor in layer.named_parameters():
        sharing = owners[_memory.storage(tensor)]
        if len({tensor for tensor, _ in sharing}) > 1:
            others = {owner or "the model" for _, owner in sharing} - {path}
            where = ", ".join(sorted(others)) or "another tensor of it"
            return f"{name} of {path} shares memory with {where}; give it a copy"
    return ""


RULES = (unfit, fused_already, uncounted, shared_memory)


def find(
    calls: Calls,
    min_siblings: int = 2,
    embed: bool = False,
    last_word: LastWord = lambda group: group,
) -> list[Group]:
    """All groups among the calls of a model, fusable or refused, in order.

    embed: whether siblings may have windows of different sizes. Where such a group is
    refused, its members of one size are groups again. last_word: of each group, whether it
    is fused.
    """
    groups = []
    for paths, group in _grouped(calls, calls.families((), embed), min_siblings, embed):
        groups.append(last_word(group))
        if embed and not groups[-1].fused:
            parts = [part for part in calls.families(paths) if len(part) < len(paths)]
            groups += [last_word(g) for _, g in _grouped(calls, parts, min_siblings)]
    return sorted(groups, key=lambda group: calls.seen[group.members[0]][0].turn)


def _grouped(
    calls: Calls, families: Iterable[Sequence[str]], min_siblings: int, embed: bool = False
) -> list[tuple[tuple[str, ...], Group]]:
    """(paths, their Group) for each part of these families that is judged by itself."""
    judged = [
        found for family in families for found in judge(calls, family, min_siblings, embed)
    ]
    asking = calls.layout_readers([paths for paths, reason in judged if not reason])
    return [(paths, _group(calls, paths, reason, asking)) for paths, reason in judged]


def judge(
    calls: Calls, family: Sequence[str], min_siblings: int, embed: bool = False
) -> Iterator[tuple[tuple[str, ...], str]]:
    """(paths, why they cannot be fused or ""), for layers that read the same values."""
    fit: list[str] = []
    alone: list[str] = []
    parts: dict[tuple, list[str]] = defaultdict(list)
    for path in family:
        reason = next(filter(None, (rule(calls, path) for rule in RULES)), "")
        if reason:
            yield (path,), reason
        else:
            fit.append(path)
    for path in fit:
        weight = calls.layer(path).weight
        parts[calls.versions(path), weight.dtype, weight.device].append(path)
    for part in map(tuple, parts.values()):
        if len(part) < min_siblings:
            alone += part
        elif reason := _unlike(calls, part, embed):
            yield part, reason
        else:
            yield part, "" if calls.in_turn(part) else _NOT_IN_TURN
    if alone:
        yield tuple(alone), _why_alone(calls, fit, alone, min_siblings, embed)


_NOT_IN_TURN = "they do not take turns: one is called with several inputs before another"


def _unlike(calls: Calls, paths: Sequence[str], embed: bool) -> str:
    labelled = {path: calls.layer(path) for path in paths}
    return rules.unlike(labelled, embed, rules.KEPT) or rules.tied(labelled)


def _why_alone(
    calls: Calls, fit: Sequence[str], alone: Sequence[str], min_siblings: int, embed: bool
) -> str:
    """Why members that could be fused have nobody to be fused with."""
    if len(fit) == 1:
        return "no other layer that reads its input can be fused"
    if len({calls.versions(path) for path in fit}) > 1:
        return calls.change(fit)
    if len(fit) > len(alone) or len(fit) >= min_siblings:
        return _unlike(calls, fit, embed)
    return f"{len(alone)} siblings; min_siblings is {min_siblings}"


def _group(
    calls: Calls, paths: Sequence[str], reason: str, asking: dict[str, str]
) -> Group:
    """What these layers are and, if there is no reason not to, what fusing them saves."""
    members: list[Any] = [calls.layer(path) for path in paths]
    sizes = [getattr(m, "out_channels", getattr(m, "out_features", 0)) for m in members]
    kind: Any = rules.kind_of(members[0])
    group = Group(
        members=tuple(paths), kind=kind.__name__, c_out=tuple(sizes), fused=False,
        reason=reason, found=calls.found, calls=len(calls.seen[paths[0]]),
        model=calls.model,
    )  # fmt: skip
    if reason:
        return group
    dense = tuple(index for index, path in enumerate(paths) if path in asking)
    saved = (len(paths) - 1 - len(dense)) * group.calls
    if saved <= 0:
        reader = asking[paths[dense[0]]]
        reason = (
            f"at least as many copies as saved launches: {reader} may want the output of "
            f"{paths[dense[0]]} contiguous{calls.advice}"
        )
        return dataclasses.replace(group, reason=reason)
    window = windows.common(members) if windows.mixed(members) else None
    group = dataclasses.replace(
        group, fused=True, dense=dense, launches_saved=saved,
        split_bytes=2 * sum(sizes) * members[0].weight.element_size(),
        window=window, extra_macs=_extra_macs(members, window) if window else 0,
    )  # fmt: skip
    after = calls.followers(paths)
    return _followed(group, after, members[0].weight.device) if after else group


def _followed(group: Group, after: Followers, device: torch.device) -> Group:
    """The same group with the activation that follows all members.

    Applied to each part it returns dense branches; applied once it leaves strided parts,
    which consumers may copy. So it is applied once only where that saves more launches
    than copies may cost, or where the parts lie in one piece.
    """
    once = len(group.members) - 1 if _pays(device) else 0
    hoist = after.hoist and once > 0
    return dataclasses.replace(
        group, activation=after.activation, followers=after.modules if once else (),
        hoist=hoist, launches_saved=group.launches_saved + once * hoist,
        saved_in_one_piece=once * (not hoist), split_bytes=group.split_bytes * hoist,
    )  # fmt: skip


def _pays(device: torch.device) -> bool:
    """Whether to call an activation once for all: what is checked for it takes some µs.

    On a CPU that is more than the calls that it saves (`tools/benchmarks/followers.py`).
    """
    return device.type != "cpu"


def _extra_macs(members: Sequence[Any], window: windows.Window) -> int:
    """For each pixel of the output a convolution multiplies with each of its weights."""
    taps = math.prod(window.kernel_size)
    whole = sum(m.out_channels * m.in_channels * taps for m in members)
    return whole - sum(m.weight.numel() for m in members)
