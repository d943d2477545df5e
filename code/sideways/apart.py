"""An experiment in a process of its own: what hangs or crashes there stops no other.

A kernel that reads where it may not leaves its process without a device, and what waits
for a device for ever hears no alarm. The process then ends or is ended, and a new one goes
on after the case that was known last, without the variant that was at it.
"""

import multiprocessing
import os
import signal
import time
from typing import Any

from . import experiments, recorder
from .records import EVERY, FAILED, LATE, Record

STILL_S = 60  # a process of which nothing is heard for so long hangs …
PREPARES_S = (
    240  # … but where a CPU computes in float64 what variants must give, for so long
)
LATE_S = 20  # so much later than its limit it may end
STARTS = 12  # of one experiment, at most
HANDOVER = 20  # handing a record over takes at most one in so many seconds
# A server that has imported what is needed, and no device, forks what is fast to begin.
METHOD = "forkserver" if hasattr(os, "fork") else "spawn"


def run(
    name, device, limit_s, progress=iter, keep=None, say=recorder.silent,
    known=None, again=False, log=os.devnull, measure=experiments.run,
):  # fmt: skip
    """The Record of an experiment; the arguments are those of `experiments.run`.

    log: a file that gets what the experiment's process writes. measure: what is called
    there. Raises RuntimeError if it ends before there is a record.
    """
    ends = time.monotonic() + limit_s
    so_far: list[Record | None] = [known]
    lost: list[tuple[dict, str, str]] = []

    def hear(record):
        so_far.append(record)
        if keep:
            keep(record)

    for _ in range(STARTS):
        given = name, device, ends - time.monotonic(), so_far[-1], again, tuple(lost)
        told = _Told(progress, say, hear)
        why = _attempt(told, (measure, given, log), ends)
        if why is None or told.case is None or ends < time.monotonic():
            break
        lost.append((told.case, told.variant, why))
    if so_far[-1] is None:
        raise RuntimeError(why)
    return so_far[-1]


class _Told:
    """What a process has said of its work."""

    def __init__(self, progress, say, keep):
        self.progress, self.say, self.keep = progress, say, keep
        self.case, self.variant, self.cases = None, "", iter(())

    def plan(self, cases):
        self.cases = iter(self.progress(cases))

    def begin(self):
        self.case, self.variant = next(self.cases, None), ""

    def now(self, words, every_s):
        self.variant = self.variant if words is None else words
        self.say(words, every_s)

    def lost(self, variant, reason):
        self.variant = variant if variant != EVERY else self.variant
        raise _Ended(reason)

    def broken(self, reason):
        raise RuntimeError(reason)


class _Ended(Exception):
    """A process cannot go on; the message says why."""


def _attempt(told, work, ends):
    """Run one process until it is done: None, or why it was not."""
    context: Any = multiprocessing.get_context(METHOD)
    if METHOD == "forkserver":
        context.set_forkserver_preload([experiments.__name__])
    here, there = context.Pipe(duplex=False)
    _, (_, device, *_), _ = work
    process = context.Process(target=_work, args=(there, *work), daemon=False)
    process.start()
    there.close()
    try:
        while True:
            left_s = ends + LATE_S - time.monotonic()
            still_s = _still_s(told.variant, device)
            if not here.poll(max(0, min(still_s, left_s))):
                late = left_s <= still_s
                return f"{LATE} in time" if late else f"{FAILED}it hangs"
            what, *more = here.recv()
            if what == "done":
                return None
            getattr(told, what)(*more)
    except EOFError:
        process.join(LATE_S)
        return f"{FAILED}its process ended with status {process.exitcode}"
    except _Ended as error:
        return str(error)
    finally:
        getattr(told.cases, "close", int)()
        _end(process)


def _still_s(variant, device):
    """For how many seconds nothing need be heard of a process that is at this variant."""
    return STILL_S if variant or device == "cuda" else PREPARES_S


def _end(process):
    """With all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):  # not its own session
        process.kill()
    process.join()


def _work(pipe, measure, given, log):
    """In the new process: measure, and say what is done."""
    _quiet(log)
    name, device, limit_s, known, again, lost = given
    next_s = [0.0]

    def tell(*message):
        pipe.send(message)

    def progress(cases):
        tell("plan", cases)
        for case in cases:
            tell("begin")
            yield case
        tell("begin")

    def keep(record):
        began = time.monotonic()
        if began >= next_s[0]:
            tell("keep", record)
            next_s[0] = began + (1 + HANDOVER) * (time.monotonic() - began)

    def say(words=None, every_s=0):
        tell("now", words, every_s)

    try:
        tell("keep", measure(
            name, device, limit_s, progress, keep, say, known, again, lost
        ))  # fmt: skip
        tell("done")
    except recorder.Lost as error:
        tell("lost", error.variant, error.reason)
    except Exception as error:
        tell("broken", f"{type(error).__name__}: {error}")
    finally:
        pipe.close()


def _quiet(log):
    """A session of its own, so that Ctrl-C asks the other process; words go into a file."""
    if hasattr(os, "setsid"):
        os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
