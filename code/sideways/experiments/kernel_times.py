"""Which kernels run in one call of an Inception module, and for how long each?

The profiler's events of module 3a, one image, of what `timeline` leaves out: float16, one
call for convolution, bias and ReLU, and two launches. On CUDA devices only.
"""

from hfusion import timing

from ..recorder import Benchmark
from . import guards, variants

QUESTION = "Which kernels run in one call of an Inception module, and for how long each?"
ROUNDS = 5
SHOWN = (variants.WRITTEN, variants.FOLDED, variants.HOISTED, variants.ONE_CALL)


def cases(device):
    half = [(name, "float16") for name in (*SHOWN, variants.TWO)]
    return [
        {"module": "3a", "rung": name, "dtype": dtype, "layout": variants.USUAL[dtype]}
        for name, dtype in (*half, (variants.ONE_CALL, "float32"))
    ]


def benchmark(device, module, rung, dtype, layout):
    guards.need_cuda(device)
    model, x = variants.inception(module, 1, dtype, device, layout)
    make = variants.every(variants.eager(model), x, device, modes=())[rung]
    return Benchmark(
        {rung: make},
        variants.exact(model, x),
        2 * variants.TOLERANCE[dtype],
        timeline=lambda: timing.timeline(make(), device),
    )
