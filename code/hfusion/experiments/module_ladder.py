"""What is each step of fusion worth, in a whole Inception module?

Rung by rung, from the module as written to convolution, bias and ReLU in one call, and
to two launches of Triton's and their variants; beside CUDA graphs, branches on streams of
their own, and torch.compile.
"""

from .. import models
from ..recording import Race
from . import rungs

QUESTION = "What is each step of fusion worth, in a whole Inception module?"


def cases(device):
    if device == "cpu":
        return [*nine(1, "float32"), *nine(8, "float32")[:1]]
    first = [case for dtype in rungs.USUAL for case in nine(1, dtype)]
    large = [nine(32, dtype)[0] for dtype in rungs.USUAL]
    crossed = [first[0] | {"layout": "NCHW"}, nine(1, "float32")[0] | {"layout": "NHWC"}]
    return [*first, *large, *crossed]


def nine(batch, dtype):
    """All modules of the paper's table, in the layout that goes with the dtype."""
    same = {"batch": batch, "dtype": dtype, "layout": rungs.USUAL[dtype]}
    return [{"module": module, **same} for module in models.TABLE]


def race(device, module, batch, dtype, layout):
    model, x = rungs.inception(module, batch, dtype, device, layout)
    nets = rungs.eager(model)
    # Where max-autotune may take its time: the cases that the book compares with it.
    thorough = device == "cpu" or (dtype, layout) == ("float16", "NHWC")
    modes = rungs.MODES if thorough else ["default"]
    arms = rungs.arms(nets, x, device, modes, rungs.TIMES, rungs.OURS)
    arms["streams"] = lambda: rungs.on_cuda(device, rungs.on_streams, nets[rungs.FOLDED], x)
    return Race(
        arms,
        rungs.exact(model, x),
        2 * rungs.SHARE[dtype],
        opaque=rungs.opaque(arms),
        repeats=rungs.repeats(arms),
    )
