"""What is kept of many samples: medians with quartiles, and ratios per round. No torch."""

import statistics
from collections.abc import Sequence


def gains(samples, base):
    """How many times faster than `base` each arm is: quartiles of the ratio per round.

    samples: {name: times}, as many for each. Returns {name: (lower quartile, median,
    upper quartile)}; above 1 the arm wins.

    >>> gains({"old": [4.0, 4.0, 4.0], "new": [2.0, 2.0, 1.0]}, "old")["new"]
    (2.0, 2.0, 3.0)
    """
    if base not in samples:
        raise ValueError(f"base was {base!r}; one of {', '.join(samples)} fits")
    rounds = {name: len(times) for name, times in samples.items()}
    if len(set(rounds.values())) > 1 or not rounds[base]:
        raise ValueError(f"samples have {rounds} rounds; one number above 0 for all fits")
    if any(not time > 0 for times in samples.values() for time in times):
        raise ValueError("samples have a time that is not above 0; times in µs fit")
    result = {}
    for name, times in samples.items():
        ratios = [b / t for b, t in zip(samples[base], times, strict=True)]
        result[name] = quartiles(ratios)
    return result


def quartiles(numbers: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile), all of them the number where it is one.

    >>> quartiles([1.0, 2.0, 4.0]), quartiles([3.0])
    ((1.5, 2.0, 3.0), (3.0, 3.0, 3.0))
    """
    several = numbers if len(numbers) > 1 else 2 * numbers
    return tuple(statistics.quantiles(several, n=4, method="inclusive"))
