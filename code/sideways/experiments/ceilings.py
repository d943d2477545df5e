"""How fast is this machine at its best: copying, multiplying, doing nothing?

The other experiments are held against these. A copy reads and writes every byte once.
What does next to nothing is the absolute value of a single number, and a 1×1 convolution
of one: n in a row show what one more costs, launched by the host or replayed as a CUDA
graph. What has no kernel at all shows the host's parts: Python's and the dispatcher's.
"""

from collections.abc import Callable

import torch

from hfusion import models
from hfusion.timing import cost, traffic

from ..recorder import Benchmark
from . import chains, variants

QUESTION = (
    "How fast can this machine copy, multiply, and launch a kernel that does nothing?"
)
ROUNDS = 60
CHAIN = (1, 10, 100)  # how many in a row


def cases(device):
    side, largest = (8192, 30) if device != "cpu" else (1024, 28)
    dtypes = variants.DTYPES if device != "cpu" else ("float32", "bfloat16")
    return [
        *({"what": "copy", "bytes": 2**power} for power in range(16, largest + 1, 2)),
        *({"what": "matmul", "dtype": dtype, "side": side} for dtype in dtypes),
        *(
            {"what": "empty", "operator": operator, "way": way}
            for operator in chains.EMPTY
            for way in ("eager", "graph")
        ),
        *(
            {"what": "empty", "operator": operator, "way": "eager"}
            for operator in chains.NO_KERNEL
        ),
    ]


def benchmark(device, what, **parameters):
    return BENCHMARKS[what](device, **parameters)


def copy(device, bytes):
    # Half of the bytes are read and half are written; random, since zeros may be faster.
    x = torch.randn(bytes // 8, device=device)
    y = torch.empty_like(x)
    return Benchmark({"copy": lambda: lambda: y.copy_(x)}, (variants.doubled(x),), 0)


def matmul(device, dtype, side):
    a, b = torch.randn(2, side, side, device=device).to(getattr(torch, dtype))
    expected = (variants.doubled(a) @ variants.doubled(b),)
    return Benchmark({"matmul": lambda: lambda: a @ b}, expected, variants.TOLERANCE[dtype])


def empty(device, operator, way):
    return Benchmark(**chains.chains(operator, way, CHAIN, device), calls=10)


BENCHMARKS: dict[str, Callable] = {"copy": copy, "matmul": matmul, "empty": empty}


def limits(record, dtype):
    """A record of this experiment as `cost.Ceilings` for one dtype."""
    (multiplied,) = record.select(what="matmul", dtype=dtype)
    flops = 2 * multiplied.parameters["side"] ** 3
    copied = max(record.select(what="copy"), key=lambda case: case.parameters["bytes"])
    kind = record.machine.kind
    return cost.Ceilings(
        flops_per_s=flops / multiplied.median("matmul") * 1e6,
        bytes_per_s=copied.parameters["bytes"] / copied.median("copy") * 1e6,
        launch_s=_one_more(record, "conv", "eager"),
        kernel_s=_one_more(record, "abs", "graph") if kind == "cuda" else 0,
        overlaps=kind != "cpu",
    )


def module_us(record, module, batch, dtype, **_):
    """The limit of an Inception module in two launches, in µs: `cost.limit`, with what a
    record of this experiment says. The arguments are those of a case of `module_ladder`.
    """
    c_in, size, *widths = models.TABLE[module]
    item_bytes = getattr(torch, dtype).itemsize
    work = traffic.least((c_in, *widths), batch * size * size, item_bytes)
    return 1e6 * cost.limit(work, limits(record, dtype), launches=2)


def _one_more(record, operator, way):
    """What one more link of a chain costs, in seconds."""
    first, *_, last = map(str, CHAIN)
    (case,) = record.measured(first, last, what="empty", operator=operator, way=way)
    return (case.median(last) - case.median(first)) / (int(last) - int(first)) / 1e6
