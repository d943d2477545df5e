"""What is each step of fusion worth, in a whole Inception module?

Rung by rung, from the module as written to convolution, bias and ReLU in one call;
beside CUDA graphs, branches on streams of their own, and torch.compile.
"""

from .. import models
from ..recording import Race
from . import rungs

QUESTION = "What is each step of fusion worth, in a whole Inception module?"


def cases(device):
    small = [
        {"module": module, "batch": 1, "dtype": dtype}
        for dtype in (("float16", "float32") if device == "cuda" else ("float32",))
        for module in models.TABLE
    ]
    large = 32 if device == "cuda" else 8
    return [*small, *(case | {"batch": large} for case in small if case["module"] == "3a")]


def race(device, module, batch, dtype):
    model, x = rungs.inception(module, batch, dtype, device)
    nets = rungs.eager(model)
    arms = rungs.arms(nets, x, device)
    arms["streams"] = lambda: rungs.on_cuda(device, rungs.on_streams, nets[rungs.FOLDED], x)
    return Race(
        arms, rungs.exact(model, x), 2 * rungs.SHARE[dtype], opaque=rungs.opaque(arms)
    )
