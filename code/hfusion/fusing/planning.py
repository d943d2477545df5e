"""Plan, fuse and undo: siblings in a whole network. torch.

    model ──read it, or run it──► calls ──judge──► plan ──apply──► fused
                                                    │
                                      print(plan): each group, fused
                                      or refused, and the reason

A plan changes nothing and can be printed; `apply` makes a copy of the model whose siblings
compute together (`_group`). Which layers are siblings, and what speaks against fusing them,
is decided in `siblings`.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import FusionError, check_int
from ..finding import running
from ..finding._aside import copy_model, counting
from ..finding.calls import Calls, owners
from ..finding.reading import Reading
from ..stacking import rules
from . import _followers, _group, _members, siblings
from ._table import table
from .siblings import Group, LastWord

logger = logging.getLogger("hfusion")


@counting()
def plan(
    model: nn.Module, example_inputs: Any = None, *, min_siblings: int = 2,
    accept: Callable | None = None, embed: bool = False,
) -> "FusionPlan":  # fmt: skip
    """Find every group of siblings in a model, and decide about each.

    Parameters
    ----------
    model
        It is left as it was.
    example_inputs
        What the model is called with: a tensor, a tuple of positional arguments or a dict
        of keywords. The model then runs once (twice where there are siblings), and layers
        that get the same tensor are siblings, whatever control flow led there. Without
        them torch.fx reads the model, which must be traceable, or a GraphModule; reading
        also tells why layers are not siblings.
    min_siblings
        Smaller groups are refused.
    accept
        A function that is asked about every group that could be fused, and returns True or
        a reason, a string. Or a judge of all groups together, such as `hfusion.faster(…)`
        makes.
    embed
        Let convolutions with smaller windows join siblings with larger ones (see
        `stacking.windows`). That costs multiply-adds, which the plan lists, and is right
        for finite inputs only.

    Returns
    -------
    FusionPlan
        Print it to see each group and each reason; `apply` it.

    Raises
    ------
    FusionError
        For a wrong argument, and for a model that can be neither traced nor run.

    Examples
    --------
    >>> from hfusion import models
    >>> print(plan(models.Inception.from_table("3a")))
    members                      c_out   then saved   B/px
    {b1,b3_reduce,b5_reduce}.conv 64+96+16  2  1,408
    1 of 1 groups fused; Conv2d 6 -> 4 calls; found by reading
        proved from the graph; checked again at each call

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
    check_int("min_siblings", min_siblings, least=2)
    if accept is not None and not callable(accept):
        raise FusionError(f"accept: expected a function of a group, got {accept!r}")
    if type(embed) is not bool:
        raise FusionError(f"embed: expected True or False, got {embed!r}")
    _refuse_tensor_mode()
    _refuse_wrapper(model)
    calls = _read(model) if example_inputs is None else running.Run(model, example_inputs)

    def found(last_word: LastWord) -> FusionPlan:
        groups = siblings.find(calls, min_siblings, embed, last_word)
        return FusionPlan(tuple(groups), model, calls)

    return _judged(found, accept)


def _refuse_tensor_mode() -> None:
    """Planning compares tensors by their memory, and fakes have none."""
    kind = type(torch.empty(0))
    if kind is not torch.Tensor:
        raise FusionError(
            f"plan: expected to be called outside of a mode that makes each new tensor a "
            f'{kind.__name__}; plan before it, or a model on torch.device("meta")'
        )


def _read(model: nn.Module) -> Reading:
    try:
        return Reading(model)
    except FusionError as error:
        if "cannot be traced" not in str(error):
            raise
        advice = "or give example_inputs, and the model is run instead"
        raise FusionError(f"{error}; {advice}") from error


def _judged(found: Callable[[LastWord], "FusionPlan"], accept: Any) -> "FusionPlan":
    """The plan that `found` makes where `accept` has the last word on each group.

    A judge of all of them has two methods. groups(groups) returns an answer for each; it
    is asked again about parts of those that it refused. whole(model, fused) is asked at
    the end, and with another answer than True no group is fused.
    """
    if not all(callable(getattr(accept, name, None)) for name in ("groups", "whole")):
        return found(partial(_asked, accept))
    answers: dict[tuple[str, ...], Any] = {}

    def so_far(group: Group) -> Group:
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


# What holds a model, by the name of its class: where the model itself is.
_WRAPPERS = {
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "FullyShardedDataParallel": "model.module",
    "OptimizedModule": "model._orig_mod",  # of torch.compile
}


def _refuse_wrapper(model: nn.Module) -> None:
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


def _asked(accept: Callable | None, group: Group) -> Group:
    return _answered(group, accept(group) if accept and group.fused else True)


def _answered(group: Group, answer: Any) -> Group:
    """A group as it is to be, with what was answered about it."""
    if answer is True:
        return group
    if not isinstance(answer, str) or not answer:
        raise FusionError(
            f"accept: expected it to return True or a reason, a string, got {answer!r}"
        )
    return dataclasses.replace(group, fused=False, reason=answer)


def fuse(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """Plan with the defaults, and apply: `plan(model, example_inputs).apply()`.

    Call the fused model under `torch.no_grad`: it computes siblings together only while no
    gradients are recorded. The logger "hfusion" gets the plan, once: what was fused, what
    was refused, and why, at level INFO, or as a warning if nothing could be fused.

    Parameters
    ----------
    model, example_inputs
        As for `plan`.

    Returns
    -------
    torch.nn.Module
        A fused copy, see `FusionPlan.apply`.

    Raises
    ------
    FusionError
        As `plan` does.

    Examples
    --------
    >>> from hfusion import models
    >>> fused = fuse(models.Inception.from_table("3a"))
    >>> type(fused).__name__
    'Inception'
    """
    found = plan(model, example_inputs)
    if any(group.fused for group in found.groups):
        logger.info("fused:\n%s", found)
    else:
        logger.warning("nothing is fused:\n%s", found)
    return found.apply()


@dataclasses.dataclass(frozen=True)
class FusionPlan:
    """What will be fused, what will not, and why. Print it; `apply` it.

    In the table, `then` is the activation, a module, that follows every member.

    `saved` is how many fewer operators are called than before, not counting copies inside
    consumers. On a GPU "2 to 4" means 4 if each branch lies in one piece (one image in
    NCHW, one row of a Linear), because the activation is then called once for all.
    Otherwise it means 2: the branches are strided parts, which consumers may copy, and the
    activation is called for each, because its results are dense. On a CPU it is always
    called for each, which is quicker there.

    `B/px` is the bytes that consumers read and write for each pixel (for a Linear: each
    row) if they make all strided branches contiguous. The split itself moves nothing. Where
    windows are embedded, a line names the larger window, and the multiply-adds for each
    pixel before and after.

    Reading shows, for the path that was read, that nothing writes to the input between two
    siblings' calls; running shows it for one input. Either way each call checks again.

    Attributes
    ----------
    groups : tuple of Group
        All siblings that were found, fused or refused.
    model : torch.nn.Module
        The model that was planned for; `apply` leaves it as it is.
    """

    groups: tuple[Group, ...]
    model: nn.Module = dataclasses.field(repr=False)
    found: Calls = dataclasses.field(repr=False)

    @property
    def calls(self) -> dict[str, tuple[int, int]]:
        """How often layers of each kind are called: {kind: (before, after)}."""
        saved: Counter[str] = Counter()
        for group in self.groups:
            saved[group.kind] += (len(group.members) - 1) * group.calls * group.fused
        kinds = sorted(self.found.kinds.items())
        return {kind: (count, count - saved[kind]) for kind, count in kinds}

    def __str__(self) -> str:
        return table(self.groups, self.found, self.calls)

    def apply(self) -> nn.Module:
        """The fused model: a copy of the model whose siblings compute together.

        A call computes siblings together if all is as it was planned: the same tensor, not
        written to in between, the same weights, the same modes. Otherwise, and while
        gradients are recorded, each layer computes by itself, as in the model. So it does
        under `torch.inference_mode`, whose tensors do not count writes: use
        `torch.no_grad`. A group that is never called together, or whose weights keep
        moving, is switched off for good, and the logger "hfusion" warns.

        Two changes between two siblings' calls go unnoticed: a write that autograd does not
        count (through `.data` or NumPy), and a change of precision, such as TF32. On a path
        that was not planned, a consumer may rely on a part without gaps: then `.view`
        fails, and `reshape` or `contiguous` copies, so a later write to the part no longer
        reaches the copy. `fusing._group` names the rest.

        A matrix product of another size may add in another order, so outputs differ by
        rounding: for one layer by at most `algebra.rounding_bound`, under the conditions
        that it names (TF32 off, no underflow, no Winograd). Later layers carry that error
        on.

        Returns
        -------
        torch.nn.Module
            An instance of the model's class, with its methods, hooks, modes and containers,
            as they are now, and each weight a Parameter at its own path. Nothing is stored
            twice, and nothing is shared with the model. Two Parameters of the model that
            share memory have their own in any copy, also in one of `copy.deepcopy`.

        Raises
        ------
        FusionError
            Where a group of the plan cannot be fused any more.
        """
        fused = copy_model(self.model)
        owned = owners(fused)
        for group in filter(lambda group: group.fused, self.groups):
            members = siblings.layers_at(fused, group.members)
            embed = group.window is not None
            reasons = [siblings.memory_of_others(owned, *one) for one in members.items()]
            reasons.append(rules.unstackable(members, embed, rules.KEPT))
            if reason := next(filter(None, reasons), ""):
                raise FusionError(f"model has changed since it was planned: {reason}")
            side_by_side = _group.route([*members.values()], group.members, group.dense)
            if group.followers:
                after = siblings.layers_at(fused, group.followers).values()
                _followers.route(side_by_side, [*after], group.hoist)
        return fused


def unfuse(fused: nn.Module) -> nn.Module:
    """The model with separate layers again, and with the current weights.

    Parameters
    ----------
    fused
        What `fuse` or `FusionPlan.apply` returned; left as it was.

    Returns
    -------
    torch.nn.Module
        A copy, of the same class.

    Raises
    ------
    FusionError
        Where no layer of `fused` is fused.

    Examples
    --------
    >>> from hfusion import models
    >>> module = models.Inception.from_table("3a")
    >>> list(unfuse(fuse(module)).state_dict()) == list(module.state_dict())
    True
    """
    layers = fused.modules() if isinstance(fused, nn.Module) else ()
    if not any(map(_members.member_of, layers)):
        raise FusionError(
            "fused: expected a model that fuse() returned, got a "
            f"{type(fused).__name__} without fused layers"
        )
    apart = copy_model(fused)
    for layer in apart.modules():
        _members.release(layer)
        _followers.release(layer)
    return apart
