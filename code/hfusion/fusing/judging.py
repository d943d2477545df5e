"""Faster here, or left alone: a judge of groups that can be trusted. torch.

    burst 1             burst 2             … burst 8    then the model
    group a  s f  f s   group a  s f  f s   … group a    s f  f s  …
    group b  s f  f s   group b  s f  f s   … group b

A slow second of the machine slows the rounds that fall into it, all of them: they are no
independent answers. A burst is one answer, and the next comes later, with all layers made
anew in other memory. Its gain is the lower quartile of the times without fusing, divided by
that with it: on a busy machine half of all turns are interrupted, and show what interrupts.
Were fusing no faster, each burst would be above the threshold by a chance of one half at
most, and all but one of eight by 9/256. So many have to be: with fewer the group is left
alone, clearly not faster or undecided.
"""

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..errors import FusionError, check_int
from ..finding import running
from ..finding._aside import undisturbed
from ..timing import benchmark, graphed, quartiles, wall
from ._variants import inputs_like, together, variants
from .siblings import Group

CHANCE = 0.05  # so often, at most, what is no faster is taken to be
TURN_US = 300  # a turn of a variant ends after so long, or after `calls` calls
BURST_S = 0.5  # a burst of a group ends after so long, or after `rounds` rounds …
LEAST = 3  # … but not before so many

Variants = dict[str, Callable[[], Any]]
Answer = bool | str  # True, or a reason


def faster(
    example_inputs: Any, margin: float = 0.02, *, bursts: int = 8, rounds: int = 25,
    calls: int = 10, apart: float = 0.25, whole: bool = True, graph: bool = False,
) -> "Judge":  # fmt: skip
    """A judge for `hfusion.plan(…, accept=…)`: is it faster here, on this device?

    Each group is timed without gradients, with inputs of the sizes that it gets: its layers
    one by one, and its layers together with each call's checks and the copies that
    consumers may need. A group is accepted if all bursts but `allowed(bursts)` have a gain
    above 1 + margin; otherwise it is left alone, as "not faster" or "undecided".

    The bursts of all groups take turns, so judging takes at least 2 · bursts · apart
    seconds. Copies of the model run 14 · bursts times or more; the state of the random
    numbers is restored afterwards.

    Parameters
    ----------
    example_inputs
        What the model is called with, as for `plan`: a tensor, a tuple or a dict.
    margin
        By how much fusing must be faster, as a share of the fused time.
    bursts
        How many answers each group gives.
    rounds, calls
        Rounds per burst, and calls per turn; fewer where they are slow.
    apart
        Seconds from the start of one burst to the next, at least.
    whole
        Whether to time the whole model at the end: as it is, and with the accepted groups
        fused. Unless fusing is faster in as many bursts, all groups are left alone.
    graph
        Whether to time CUDA graphs, as a deployed model runs.

    Returns
    -------
    Judge

    Raises
    ------
    FusionError
        For a wrong argument; for graph=True when it is asked about layers on a CPU.

    Examples
    --------
    >>> from hfusion import models, plan
    >>> x = torch.zeros(1, 192, 28, 28)
    >>> judge = faster(x, margin=1e6, bursts=5, rounds=1, calls=1, apart=0)
    >>> plan(models.Inception.from_table("3a"), x, accept=judge).groups[0].fused
    False
    """
    for name, least, value in (
        ("bursts", 5, bursts), ("rounds", 1, rounds), ("calls", 1, calls),
    ):  # fmt: skip
        check_int(name, value, least)
    for name, share in (("margin", margin), ("apart", apart)):
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 <= share < math.inf:
            raise FusionError(f"{name}: expected a number of at least 0, got {share!r}")
    for name, flag in (("whole", whole), ("graph", graph)):
        if type(flag) is not bool:
            raise FusionError(f"{name}: expected True or False, got {flag!r}")
    running.arguments(example_inputs)
    return Judge(example_inputs, margin, bursts, rounds, calls, apart, whole, graph)


def allowed(bursts: int) -> int:
    """How many bursts may miss the threshold: if each were a coin, the others would all
    be above it with a chance of `CHANCE` at most.

    >>> [allowed(bursts) for bursts in (5, 8, 11, 13)]
    [0, 1, 2, 3]
    """
    misses = 0
    while sum(math.comb(bursts, n) for n in range(misses + 2)) <= CHANCE * 2**bursts:
        misses += 1
    return misses


def gain_of(samples: dict[str, list[float]]) -> float:
    """How many times as fast a burst was, from the times of its turns.

    >>> gain_of({"separate": [3.0, 3.0, 9.0], "fused": [2.0, 8.0, 2.0]})
    1.5
    """
    low = {name: quartiles(times)[0] for name, times in samples.items()}
    return low["separate"] / low["fused"]


def verdict(gains: list[float], threshold: float) -> Answer:
    """True, or why not, from the gain of each burst.

    >>> verdict([1.1, 1.2, 1.1, 0.9, 1.1, 1.1, 1.1, 1.1], 1.02)
    True
    >>> print(verdict([1.1, 1.0, 1.1, 0.9, 1.1, 1.1, 1.1, 1.1], 1.02))
    undecided: 1.10 times as fast (8 bursts, 0.90 to 1.10), 6 above 1.02, 7 needed
    """
    wanted = len(gains) - allowed(len(gains))
    above = sum(gain > threshold for gain in gains)
    if above >= wanted:
        return True
    word = "not faster" if len(gains) - above >= wanted else "undecided"
    _, middle, _ = quartiles(gains)
    return (
        f"{word}: {middle:.2f} times as fast ({len(gains)} bursts, {min(gains):.2f} to "
        f"{max(gains):.2f}), {above} above {threshold:g}, {wanted} needed"
    )


@dataclasses.dataclass(frozen=True)
class Judge:
    """What `faster` makes, with that function's parameters for attributes.

    `plan` asks `groups` about all groups at once, and then `whole`; called with one group,
    it answers for that alone.
    """

    example_inputs: Any = dataclasses.field(repr=False)
    margin: float
    bursts: int
    rounds: int
    calls: int
    apart: float
    end_to_end: bool
    graph: bool

    def __call__(self, group: Group) -> Answer:
        return self.groups([group])[0]

    def groups(self, groups: list[Group]) -> list[Answer]:
        """For each of these groups of one model: True, or why it is left alone."""
        model: Any = groups[0].model
        got = running.Run(model, self.example_inputs).inputs
        inputs = [inputs_like(got.get(group.members[0], ())) for group in groups]
        answers: list[Answer] = [
            together(group, xs) for group, xs in zip(groups, inputs, strict=True)
        ]
        timed = [index for index, answer in enumerate(answers) if answer is True]
        makers = [partial(variants, groups[index], inputs[index]) for index in timed]
        devices = [inputs[index][0].device for index in timed]
        for index, gains in zip(timed, self._gains(makers, devices), strict=True):
            answers[index] = verdict(gains, 1 + self.margin)
        return answers

    def whole(self, model: nn.Module, fused: nn.Module) -> Answer:
        """Of the accepted groups together, end to end: True, or why none is fused."""
        if not self.end_to_end:
            return True
        alone = running.Run(model, self.example_inputs).copy
        device = next((p.device for p in model.parameters()), torch.device("cpu"))

        def networks() -> Variants:
            made: Variants = {}
            for name, network in (("separate", alone), ("fused", fused)):
                args, kwargs = running.arguments(copy.deepcopy(self.example_inputs))
                made[name] = partial(network, *args, **kwargs)
            return made

        with undisturbed(model):
            (gains,) = self._gains([networks], [device])
        answer = verdict(gains, 1)
        return answer if answer is True else f"the whole model: {answer}"

    def _gains(
        self, makers: Sequence[Callable[[], Variants]], devices: Sequence[torch.device]
    ) -> list[list[float]]:
        """For each maker of variants, which makes them anew for each burst, all gains."""
        gains: list[list[float]] = [[] for _ in makers]
        begun = -math.inf
        for _ in range(self.bursts if makers else 0):
            time.sleep(max(0.0, begun + self.apart - time.monotonic()))
            begun = time.monotonic()
            for found, make, device in zip(gains, makers, devices, strict=True):
                with torch.no_grad():
                    made = _as_graphs(make(), device) if self.graph else make()
                    samples = benchmark(
                        made, device, self.rounds, warm_up=1, calls=self.calls,
                        watches=dict.fromkeys(made, _watch), late=_late(),
                    )  # fmt: skip
                found.append(gain_of(samples))
        return gains


def _late() -> Callable[[], bool]:
    """Whether a burst has lasted long enough; asked before each turn of a variant."""
    end, asked = time.monotonic() + BURST_S, itertools.count()
    return lambda: next(asked) >= 2 * (1 + LEAST) and time.monotonic() > end


def _watch(call: Callable[[], Any], calls: int, device: torch.device) -> float:
    """A stopwatch as `wall`, of fewer calls where one takes long."""
    first = wall(call, 1, device)
    more = min(calls, int(TURN_US / first)) - 1
    return (first + more * wall(call, more, device)) / (more + 1) if more > 0 else first


def _as_graphs(variants: Variants, device: torch.device) -> Variants:
    if device.type != "cuda":
        raise FusionError(
            f"graph: expected False for layers on {device}, got True; only a CUDA device "
            "replays graphs"
        )

    def outputs(call: Callable[[], Any]) -> list[torch.Tensor]:
        return [t for t in tree_leaves(call()) if torch.is_tensor(t)]

    return {name: graphed(partial(outputs, call)) for name, call in variants.items()}
