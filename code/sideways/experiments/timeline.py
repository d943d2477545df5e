"""Who works when in one call of an Inception module?

The profiler's events of module 3a, as written and fused, one image in float32.
"""

from functools import partial

from hfusion import timing

from ..recorder import Benchmark
from . import variants

QUESTION = "Who works when, host and device, in one call of an Inception module?"


def cases(device):
    return [{"module": "3a", "rung": name} for name in (variants.WRITTEN, variants.HOISTED)]


def benchmark(device, module, rung):
    model, x = variants.inception(module, 1, "float32", device)
    call = partial(variants.eager(model)[rung], x)
    return Benchmark(
        {rung: lambda: call},
        variants.exact(model, x),
        variants.TOLERANCE["float32"],
        timeline=partial(timing.timeline, call, device),
    )
