"""Time limits: a clock to look at, and an alarm for what cannot look."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from ..records import LATE
from .benchmark import Unavailable

TICK_S = 1  # so often what takes long to make shows that it lives
Name = TypeVar("Name")


def silent(words: str | None = None, every_s: float = 0) -> None:
    """Says nothing."""


class TooLate(BaseException):
    """Raised inside what takes too long; no Exception, so that it is not mistaken."""


class Deadline:
    """`limit_s` seconds from when it was made. The clock is looked at; what cannot look
    is interrupted by an alarm, where the system has one and this is its main thread.
    say: as for `run`; the alarm calls it, too.
    """

    def __init__(self, limit_s: float, say: Callable[..., None] = silent) -> None:
        self.limit_s, self.began, self.say = limit_s, time.monotonic(), say
        self.reason = f"{LATE} within {limit_s:.3g} s"

    def left(self) -> float:
        """The seconds that are left; below 0 once it is late."""
        return self.limit_s - (time.monotonic() - self.began)

    def late(self) -> bool:
        """Whether the time is over."""
        return self.left() < 0

    def check(self, reserve_s: float = 0) -> None:
        """Raise Unavailable if there is less left than `reserve_s`."""
        if self.left() < reserve_s:
            raise Unavailable(self.reason)

    @contextlib.contextmanager
    def alarm(self, reserve_s: float = 0) -> Iterator[None]:
        """What is inside ends `reserve_s` before the deadline, by TooLate if need be."""
        main = threading.current_thread() is threading.main_thread()
        if not (main and hasattr(signal, "setitimer") and self.left() < math.inf):
            yield
            return
        rings: list[int] = []
        inside = True

        def wait():
            # Again each second: who is inside may have caught it.
            first_s = min(TICK_S, max(1e-3, self.left() - reserve_s))
            signal.setitimer(signal.ITIMER_REAL, first_s, TICK_S)

        def ring(*_):
            if not inside:
                return
            if not rings and self.left() > reserve_s:
                wait()
                self.say()
                return
            rings.append(1)
            raise TooLate

        before = signal.signal(signal.SIGALRM, ring)
        try:
            try:
                wait()
                yield
            except Exception as error:  # also what somebody made of a TooLate
                if rings:
                    raise TooLate from error
                raise
            finally:
                inside = False
        finally:  # apart, so that a last ring in the finally above cannot skip it
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def lost_in_silence() -> Iterator[None]:
    """In a finalizer Python drops a TooLate and says so, though the alarm rings again."""
    heard = sys.unraisablehook
    sys.unraisablehook = lambda lost: lost.exc_type is TooLate or heard(lost)
    try:
        yield
    finally:
        sys.unraisablehook = heard


def shared(shares: Mapping[Name, float], limit_s: float) -> Iterator[tuple[Name, float]]:
    """(name, the seconds that it may take), in turn: what one leaves of its time goes to
    those that follow.

    shares: {name: its share of `limit_s`}; they need not add up to 1.
    """
    names, began = list(shares), time.monotonic()
    for place, name in enumerate(names):
        left_s = max(0, limit_s - (time.monotonic() - began))
        yield name, left_s * shares[name] / sum(shares[n] for n in names[place:])
