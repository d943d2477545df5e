"""When is one stacked 1×1 convolution faster than three separate ones?

The three siblings of each of GoogLeNet's nine modules, nothing else: separate, stacked,
and stacked with the copies that the convolutions after it make of the parts they read,
where these are not contiguous: where the ReLU between has been hoisted. (The first part
goes into the concatenation, which writes it to another place in any case.)
"""

from functools import partial

import torch

from hfusion import models, stacking

from ..recorder import Benchmark
from . import variants

QUESTION = "When is one stacked 1×1 convolution faster than three separate ones?"
ROUNDS = 15
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


# On a GPU first: large, middle and small images, in the layouts that are used.
FIRST = ("3a", "4c", "5b")


def cases(device):
    on_gpu = device != "cpu"
    every = [
        {"module": module, "batch": batch, "dtype": dtype, "layout": layout}
        for batch in (BATCHES if on_gpu else (1, 2, 4, 8, 32, 128))
        for dtype in (variants.DTYPES if on_gpu else ("float32",))
        for layout in variants.FORMATS
        for module in models.TABLE
    ]
    return sorted(every, key=lambda case: on_gpu and not _first(case))


def _first(case):
    usual = variants.USUAL.get(case["dtype"]) == case["layout"]
    return usual and case["module"] in FIRST


def benchmark(device, module, batch, dtype, layout):
    c_in, size, w1, r3, _, r5, *_ = models.TABLE[module]
    kind, form = getattr(torch, dtype), variants.FORMATS[layout]
    convs = [torch.nn.Conv2d(c_in, width, 1) for width in (w1, r3, r5)]
    convs = [models.randomise(conv, seed) for seed, conv in enumerate(convs)]
    for conv in convs:
        conv.to(device, kind, memory_format=form)  # type: ignore[call-overload]  # torch lacks it
    x = torch.randn(batch, c_in, size, size).to(device, kind, memory_format=form)
    stacked = stacking.stack(convs)

    def separate():
        return [conv(x) for conv in convs]

    def copied():
        first, *others = stacked(x)
        return [first, *(part.contiguous(memory_format=form) for part in others)]

    ways = {"separate": separate, "stacked": partial(stacked, x), "copied": copied}
    makers = variants.with_graphs(device, ways)
    with torch.no_grad():
        expected = tuple(variants.doubled(conv)(variants.doubled(x)) for conv in convs)
    return Benchmark(
        makers, expected, variants.TOLERANCE[dtype], repeats=variants.repeats(makers)
    )
