"""Which kernels run in one call of an Inception module, and for how long each?

The profiler's events of module 3a, one image, of what `timeline` leaves out: float16, one
call for convolution, bias and ReLU, and two launches. On CUDA devices only.
"""

from hfusion import timing

from ..recording import Race
from . import rungs

QUESTION = "Which kernels run in one call of an Inception module, and for how long each?"
ROUNDS = 5
SHOWN = (rungs.WRITTEN, rungs.FOLDED, rungs.HOISTED, rungs.ONE_CALL)


def cases(device):
    half = [(rung, "float16") for rung in (*SHOWN, rungs.TWO)]
    return [
        {"module": "3a", "rung": rung, "dtype": dtype, "layout": rungs.USUAL[dtype]}
        for rung, dtype in (*half, (rungs.ONE_CALL, "float32"))
    ]


def race(device, module, rung, dtype, layout):
    rungs.need_cuda(device)
    model, x = rungs.inception(module, 1, dtype, device, layout)
    make = rungs.arms(rungs.eager(model), x, device, modes=())[rung]
    return Race(
        {rung: make},
        rungs.exact(model, x),
        2 * rungs.SHARE[dtype],
        timeline=lambda: timing.timeline(make(), device),
    )
