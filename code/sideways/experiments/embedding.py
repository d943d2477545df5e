"""When does it pay to embed small windows in a large one?

Siblings with as many channels out as in: a 1×1 beside a 3×3, a 3×3 beside a 5×5, all
three, and a 1×7 beside a 7×1; one by one, and stacked in one window. Few channels and
small images save a launch cheaply, many of either pay for it with multiply-adds. On a CPU
once more with PyTorch's own convolutions only: oneDNN gets some windows and not others.
"""

from functools import partial

import torch
from torch import nn

from hfusion import models, stacking
from hfusion.timing import one_window

from ..recorder import Benchmark, Unavailable
from . import variants

QUESTION = "When does it pay to embed small windows in a large one?"
ROUNDS = 30
WINDOWS = {
    "1×1, 3×3": ((1, 1), (3, 3)),
    "3×3, 5×5": ((3, 3), (5, 5)),
    "1×1, 3×3, 5×5": ((1, 1), (3, 3), (5, 5)),
    "1×7, 7×1": ((1, 7), (7, 1)),
}


def cases(device):
    on_gpu = device != "cpu"
    return [
        {"windows": name, "channels": channels, "side": side, "batch": 1, "dtype": dtype}
        for dtype in (("float32", "float16") if on_gpu else ("float32",))
        for name in WINDOWS
        for channels in ((16, 32, 64, 128, 256) if on_gpu else (4, 8, 16, 32, 64))
        for side in (7, 14, 28)
    ]


def ways(windows, channels, side, batch, dtype):
    """A case's kernels, as `one_window.embedded` counts them."""
    shapes = WINDOWS[windows]
    item_bytes = getattr(torch, dtype).itemsize
    sizes = [channels] * len(shapes)
    return one_window.embedded(sizes, shapes, channels, batch * side * side, item_bytes)


def without_onednn(device, fn):
    """A variant that is not allowed oneDNN."""
    if device != "cpu":
        raise Unavailable("oneDNN is for CPUs")

    def call():
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        try:
            return fn()
        finally:
            torch.backends.mkldnn.enabled = True  # type: ignore[assignment]

    return call


def benchmark(device, windows, channels, side, batch, dtype):
    x = torch.randn(batch, channels, side, side)
    convs = [
        nn.Conv2d(channels, channels, (h, w), padding=(h // 2, w // 2))
        for h, w in WINDOWS[windows]
    ]
    convs = [models.randomise(conv, seed) for seed, conv in enumerate(convs)]
    whole, x = variants.placed(
        nn.ModuleList(convs), x, dtype, device, variants.USUAL[dtype]
    )
    stacked = stacking.stack(whole, embed=True)
    fns = {
        "separate": lambda: [conv(x) for conv in whole],
        "embedded": partial(stacked, x),
    }
    makers = variants.with_graphs(device, fns)
    for name, fn in fns.items():
        makers[f"{name}, no oneDNN"] = partial(without_onednn, device, fn)
    with torch.no_grad():
        expected = tuple(variants.doubled(conv)(variants.doubled(x)) for conv in whole)
    return Benchmark(
        makers, expected, variants.TOLERANCE[dtype], repeats=variants.repeats(makers)
    )
