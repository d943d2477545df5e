"""What is kept of many samples: medians with quartiles, and ratios per round. No torch."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import FusionError

Quartiles = tuple[float, float, float]


def gains(samples: Mapping[Any, Sequence[float]], base: object) -> dict[Any, Quartiles]:
    """How many times faster than `base` each variant is: quartiles of the ratio per round.

    Parameters
    ----------
    samples : dict
        {name: times}, as many for each, all above 0; as `benchmark` returns them.
    base : name
        The variant with which the others are compared.

    Returns
    -------
    dict
        {name: (lower quartile, median, upper quartile)}; above 1 the variant wins.

    Raises
    ------
    FusionError
        For an unknown base, unequal numbers of rounds, or a time that is not above 0.

    Examples
    --------
    >>> gains({"old": [4.0, 4.0, 4.0], "new": [2.0, 2.0, 1.0]}, "old")["new"]
    (2.0, 2.0, 3.0)
    """
    if base not in samples:
        raise FusionError(f"base: expected one of {', '.join(samples)}, got {base!r}")
    rounds = {name: len(times) for name, times in samples.items()}
    if len(set(rounds.values())) > 1 or not rounds[base]:
        raise FusionError(f"samples: expected as many rounds of each, got {rounds}")
    for name, times in samples.items():
        if wrong := [time for time in times if not time > 0]:
            raise FusionError(f"samples: expected times above 0, got {wrong[0]} of {name}")
    return {
        name: quartiles([b / t for b, t in zip(samples[base], times, strict=True)])
        for name, times in samples.items()
    }


def quartiles(numbers: Sequence[float]) -> Quartiles:
    """(lower quartile, median, upper quartile), all of them the number where it is one.

    Examples
    --------
    >>> quartiles([1.0, 2.0, 4.0]), quartiles([3.0])
    ((1.5, 2.0, 3.0), (3.0, 3.0, 3.0))
    """
    several = numbers if len(numbers) > 1 else [*numbers, *numbers]
    low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
    return low, middle, high


def median_interval(samples: Sequence[float], missed: float = 0.05) -> tuple[float, float]:
    """Two of the samples, between which their true median lies, almost surely.

    Of n independent samples, as many are below the median as a coin tossed n times shows
    heads. So it is missed on each side with a probability of at most missed / 2, if there
    are samples enough; if not, these are the smallest and the largest.

    Parameters
    ----------
    samples
        At least one.
    missed
        How probable it may be that the median lies outside.

    Examples
    --------
    >>> median_interval(range(1, 21))
    (6, 15)
    """
    if not 0 < missed < 1:
        raise FusionError(f"missed: expected a probability between 0 and 1, got {missed!r}")
    ordered, n = sorted(samples), len(samples)
    below = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n))
    cut = max(sum(p <= missed / 2 for p in below) - 1, 0)
    return ordered[cut], ordered[n - 1 - cut]
