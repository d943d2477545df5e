"""What is each step of fusion worth, in a whole Inception module?

Step by step, from the module as written to convolution, bias and ReLU in one call, and
to two launches of Triton's and their variants; beside CUDA graphs, branches on streams of
their own, in a graph as well, and torch.compile.
"""

from hfusion import models

from ..recorder import Benchmark
from . import guards, streams, variants

QUESTION = "What is each step of fusion worth, in a whole Inception module?"


def cases(device):
    if device == "cpu":
        return [*nine(1, "float32"), *nine(8, "float32")[:1]]
    full, half = nine(1, "float32"), nine(1, "float16")
    large = [nine(32, dtype)[0] for dtype in variants.USUAL]
    crossed = [half[0] | {"layout": "NCHW"}, full[0] | {"layout": "NHWC"}]
    # Pages read 3a at least; of the others, float16 is what a GPU is for.
    return [full[0], half[0], *half[1:], *full[1:], *large, *crossed]


def again(device):
    """What is compiled, if there is time: 3a, then those whose tiles are autotuned."""
    if device == "cpu":
        return []
    every, pages = cases(device), ("3a", "5b")
    first = [c for c in every[: 2 + len(models.TABLE)] if c["module"] in pages]
    return [*first, *(case for case in every if case not in first)]


def nine(batch, dtype):
    """All modules of the paper's table, in the layout that goes with the dtype."""
    same = {"batch": batch, "dtype": dtype, "layout": variants.USUAL[dtype]}
    return [{"module": module, **same} for module in models.TABLE]


def benchmark(device, module, batch, dtype, layout):
    model, x = variants.inception(module, batch, dtype, device, layout)
    nets = variants.eager(model)
    # Where max-autotune may take its time: the cases that the book compares with it.
    thorough = device == "cpu" or (dtype, layout) == ("float16", "NHWC")
    modes = variants.MODES if thorough else ["default"]
    makers = variants.every(nets, x, device, modes, variants.TIMES, variants.OURS)
    folded = nets[variants.FOLDED]
    makers[variants.STREAMS] = lambda: guards.on_cuda(device, streams.on_streams, folded, x)
    makers[variants.PARALLEL] = lambda: streams.in_parallel(folded, x, device)
    return Benchmark(
        makers,
        variants.exact(model, x),
        2 * variants.TOLERANCE[dtype],
        opaque=variants.opaque(makers),
        repeats=variants.repeats(makers),
        slow=variants.slow(makers),
    )
