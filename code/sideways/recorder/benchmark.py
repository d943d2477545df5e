"""What an experiment hands to the recorder, and what it raises if it cannot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Variant = Callable[[], Any]  # what is timed; it returns a tensor, or several
Event = tuple[str, str, float, float]  # lane, name, begin and end in µs


class Unavailable(RuntimeError):
    """Raised by what makes a variant: this machine lacks something for it."""


class Lost(BaseException):
    """Raised when a device fails at everything from now on, in this process.

    variant: who was at it. Another process may have the device.
    """

    def __init__(self, variant: str, reason: str) -> None:
        super().__init__(f"{variant}: {reason}")
        self.variant, self.reason = variant, reason


@dataclass(frozen=True)
class Benchmark:
    """What one case of an experiment times.

    Parameters
    ----------
    variants
        {name: a function that makes the function to time}.
    expected
        Tensors in float64, which every variant must give.
    tolerance
        How far an entry may be off, relative to the largest number expected.
    watches
        {name: a stopwatch}, for variants that are not timed until the device is done.
    calls
        How many a turn has; by default as many as take about `measuring.TURN_US`.
    opaque
        Variants in which a CPU's operators cannot be counted.
    repeats
        {name: how often one call does what is timed}, as a CUDA graph may.
    slow
        Variants that take long to make, left for the experiment's `again`.
    timeline
        Takes a timeline, after the timing.
    events
        A timeline that was taken before.
    count
        Counts what the experiment's COUNTED names, in place of launches.
    tolerances
        {name: a tolerance of its own}.
    """

    variants: Mapping[str, Callable[[], Variant]]
    expected: Sequence[Tensor]
    tolerance: float
    watches: Mapping[str, Callable[..., float]] = field(default_factory=dict)
    calls: int | None = None
    opaque: Sequence[str] = ()
    repeats: Mapping[str, int] = field(default_factory=dict)
    slow: Sequence[str] = ()
    timeline: Callable[[], Sequence[Event]] | None = None
    events: Sequence[Event] = ()
    count: Callable[[Variant], int] | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)


def noting(call: Callable[[], Any], **facts: Any) -> Callable[[], Any]:
    """A call with facts that are asked for later, as attributes.

    note: a function that says more of it, for the record; convolutions: how many it has.

    >>> noting(lambda: 1, convolutions=57).convolutions
    57
    """
    for name, fact in facts.items():
        setattr(call, name, fact)
    return call
