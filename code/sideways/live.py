"""Experiments that a page measures while its reader waits: in time, and seen to move.

What is measured stays in this process, so a cell that is run again, after it was stopped
or ran out of time, measures only what is missing.
"""

import contextlib
import importlib.util
import sys

from hfusion import timing

from . import records
from .progress import Bar
from .recorder import shared, unfinished

KNOWN: dict[
    tuple[str, str], records.Record
] = {}  # {(experiment, device): what this session has measured}
LACKS = "It has no CUDA graphs, and kernels cannot be counted there: operators are. "
AGAIN = "Run this cell again to measure the rest"


class Measured(records.Record):
    """A Record of this session, which nobody has saved."""

    @property
    def label(self):
        return super().label.replace("recorded", "measured", 1)


def measured(shares, device, minutes, run):
    """{experiment: Record} of experiments, measured now on `device` where they are not
    known already.

    shares: {experiment: its share of the time}. minutes: for all of them. run: as
    `experiments.run`. KeyboardInterrupt, as a notebook's stop button sends it, ends the
    measuring and keeps what there is; a second one is not caught.
    """
    todo = {n: share for n, share in shares.items() if _lacking(n, device)}
    if todo:
        print(_opening(device, minutes), flush=True)
        try:
            for name, limit_s in shared(todo, 60 * minutes):
                _measure(name, device, limit_s, run)
            end = "The time is over", f"{AGAIN}, or set LIVE_MINUTES higher"
        except KeyboardInterrupt:
            end = "Stopped", AGAIN
        if any(_lacking(name, device) for name in todo):
            has = ", ".join(_has(name, device) for name in shares)
            print(f"{end[0]}. Measured: {has}. The page goes on with that. {end[1]}.")
    return {name: KNOWN[name, device] for name in shares if (name, device) in KNOWN}


def _measure(name, device, limit_s, run):
    """Measure what is missing of an experiment; a case is known as soon as it is done."""

    def keep(record):
        KNOWN[name, device] = Measured(**vars(record))

    known = KNOWN.get((name, device))
    with contextlib.ExitStack() as bars:
        if importlib.util.find_spec("tqdm"):
            bar = bars.enter_context(Bar(name, limit_s, sys.stdout))
            hears = {"progress": bar.cases, "say": bar.say}
        else:
            hears = {}
        keep(run(name, device, limit_s, keep=keep, known=known, **hears))


def _lacking(name, device):
    """How many cases of an experiment have not been measured; all, as 1, if none has."""
    record = KNOWN.get((name, device))
    return 1 if record is None else sum(map(unfinished, record.cases))


def _has(name, device):
    """How much of an experiment there is, in words."""
    record = KNOWN.get((name, device))
    if record is None:
        return f"{name} no case"
    cases = len(record.cases)
    return f"{name} {cases - _lacking(name, device)} of {cases} cases"


def _opening(device, minutes):
    """What a reader has to know before it begins."""
    lacks = "" if device in ("cpu", "cuda") else LACKS
    bar = "" if importlib.util.find_spec("tqdm") else "(pip install tqdm shows a bar.) "
    many = "1 minute" if minutes == 1 else f"{minutes:g} minutes"
    return (
        f"Measuring on {timing.device_name(device)}, {many} at most. {lacks}{bar}"
        "The stop button ends it earlier and keeps what is measured."
    )
