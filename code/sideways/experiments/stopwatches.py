"""How wrong can a stopwatch be?

One Inception module, called a thousand times from the very first call on, each call
timed: when it returned, and when its work was done.
"""

import time

from hfusion import timing

from ..recorder.benchmark import Benchmark, Event
from . import variants

QUESTION = "How much do a thousand calls of one and the same module differ?"
CALLS = 1000


def cases(device):
    return [{"module": "3a", "batch": 1, "calls": CALLS}]


def benchmark(device, module, batch, calls):
    model, x = variants.inception(module, batch, "float32", device)
    events: list[Event] = []
    began = time.perf_counter_ns()
    for _ in range(calls):
        timing.synchronise(device)
        start = time.perf_counter_ns()
        model(x)
        returned = time.perf_counter_ns()
        timing.synchronise(device)
        ends = {"host": returned, "device": time.perf_counter_ns()}
        for lane in ends if device != "cpu" else ["host"]:
            begin, end = (round((t - began) / 1000, 1) for t in (start, ends[lane]))
            events.append((lane, "call", begin, end))
    makers = {variants.WRITTEN: lambda: lambda: model(x)}
    return Benchmark(
        makers,
        variants.exact(model, x),
        variants.TOLERANCE["float32"],
        events=tuple(events),
    )
