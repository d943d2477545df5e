"""How wrong can a stopwatch be?

One Inception module, called a thousand times from the very first call on, each call
timed: when it returned, and when its work was done.
"""

import time

from hfusion import timing

from ..recording import Race
from . import rungs

QUESTION = "How much do a thousand calls of one and the same module differ?"
CALLS = 1000


def cases(device):
    return [{"module": "3a", "batch": 1, "calls": CALLS}]


def race(device, module, batch, calls):
    model, x = rungs.inception(module, batch, "float32", device)
    events, began = [], time.perf_counter_ns()
    for _ in range(calls):
        timing.synchronise(device)
        start = time.perf_counter_ns()
        model(x)
        returned = time.perf_counter_ns()
        timing.synchronise(device)
        ends = {"host": returned, "device": time.perf_counter_ns()}
        for lane in ends if device != "cpu" else ["host"]:
            times = [round((t - began) / 1000, 1) for t in (start, ends[lane])]
            events.append((lane, "call", *times))
    arms = {rungs.WRITTEN: lambda: lambda: model(x)}
    return Race(arms, rungs.exact(model, x), rungs.SHARE["float32"], events=tuple(events))
