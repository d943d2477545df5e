"""Who works when in one call of an Inception module?

The profiler's events of module 3a, as written and fused, one image in float32.
"""

from functools import partial

from hfusion import timing

from ..recording import Race
from . import rungs

QUESTION = "Who works when, host and device, in one call of an Inception module?"


def cases(device):
    return [{"module": "3a", "rung": rung} for rung in (rungs.WRITTEN, rungs.HOISTED)]


def race(device, module, rung):
    model, x = rungs.inception(module, 1, "float32", device)
    call = partial(rungs.eager(model)[rung], x)
    return Race(
        {rung: lambda: call},
        rungs.exact(model, x),
        rungs.SHARE["float32"],
        timeline=partial(timing.timeline, call, device),
    )
