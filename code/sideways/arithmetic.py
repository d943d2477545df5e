"""How long kernels should take on an H200, by a sum: inputs, formulas, ranges.

Inputs are a data sheet, what others have published, and judgements. Each has a low, a
middle and a high value, and says where it comes from. A range comes from moving one input
at a time, and adding up what that does as independent errors add up: the root of the sum of
the squares, of logarithms. `predictions` applies all this to the experiments.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace as At
from typing import Any

from hfusion.kernels import compiled, two_launches
from hfusion.timing import traffic

Work = dict[str, Any]  # of predictions.programs.work


@dataclasses.dataclass(frozen=True)
class Input:
    """A number that predictions are made from."""

    low: float
    middle: float
    high: float
    unit: str
    what: str
    source: str = "judgement"


def _fixed(value, unit, what, source):
    return Input(value, value, value, unit, what, source)


SHEET = "https://www.nvidia.com/en-us/data-center/h200/"
H100 = "https://chipsandcheese.com/p/nvidias-h100-funny-l2-and-tons-of-bandwidth"
CLOCK = (
    f"{H100}, a PCIe card's 1755; "
    "https://hmc-tech.com/gpu/nvidia-h100-vs-nvidia-h200-sxm-vs-nvidia-gb200, 1980 on SXM; "
    "judgement"
)
GRAPH = (
    "https://cuda.juliagpu.org/dev/usage/graphs/, 0.88 for small broadcasts; "
    "https://github.com/ahrefs/ocannl/issues/488, 0.58 for empty kernels on a laptop; "
    "judgement"
)
TRITON = "https://github.com/vllm-project/vllm/pull/34838, 8.68 beside a GB200; judgement"
INPUTS = {
    # The device.
    "flops_float16": _fixed(989e12, "FLOP/s", "tensor cores, no sparsity", SHEET),
    "flops_float32": _fixed(67e12, "FLOP/s", "without tensor cores", SHEET),
    "memory": _fixed(4.8e12, "byte/s", "memory bandwidth", SHEET),
    "multiprocessors": _fixed(132, "", "multiprocessors, as of an H100 SXM", H100),
    "cache": _fixed(50e6, "byte", "L2 cache, as of an H100", H100),
    "cache_speed": Input(3.5e12, 5e12, 7e12, "byte/s", "of what fits into the L2 cache"),
    "memory_share": Input(0.7, 0.85, 0.92, "", "of the bandwidth, for what does not"),
    "clock": Input(1500, 1755, 1980, "MHz", "of the multiprocessors", CLOCK),
    "node": Input(
        0.8, 1.2, 1.7, "µs", "from the end of a tiny kernel to the next's", GRAPH
    ),
    "fill": Input(0.2, 0.5, 0.9, "µs", "more in a kernel of many programs"),
    "pool": Input(
        0.3, 1.5, 4, "µs", "more in PyTorch's pooling, which also writes indices"
    ),
    "start": Input(0.5, 1.0, 1.8, "µs", "a product's beginning and end, beside its steps"),
    # cuDNN's kernels, which we have not seen.
    "cudnn_start": Input(0.0, 0.5, 1.5, "µs", "more than our kernels' beginning and end"),
    "cudnn_float16": Input(0.35, 0.55, 0.75, "", "of the peak, in a busy multiprocessor"),
    "cudnn_float32": Input(0.4, 0.65, 1.0, "", "the same; Winograd's algorithm saves some"),
    "cudnn_step": Input(0.15, 0.25, 0.4, "µs", "a step 128 deep of a program by itself"),
    # Ours, of which the compiled code is known.
    "stall": Input(1.2, 1.8, 3.0, "cycles", "for an instruction of a warp by itself"),
    "issue": Input(1.1, 1.5, 2.8, "cycles", "the same where other warps fill in"),
    "tensor": Input(0.35, 0.5, 0.7, "", "of the tensor cores' peak, in a busy one"),
    "arrive": Input(0.2, 0.35, 0.6, "µs", "until the numbers of a step are there"),
    "dependent": Input(0.2, 0.8, 1.3, "µs", "what a dependent launch hides"),
    "reduce": Input(0.8, 1.5, 2.5, "µs", "adding up the parts of a sum that was split"),
    # The host.
    "replay": Input(4, 6, 10, "µs", "handing over a graph: a of the hinge"),
    "between": Input(1, 3, 6, "µs", "from one replay to the next: c of the hinge"),
    "wait": Input(0.3, 1, 2, "µs", "waiting at the end of a turn, for each of ten calls"),
    "abs": Input(2.5, 3.5, 5.5, "µs", "torch.abs with out="),
    "conv": Input(13, 20, 32, "µs", "nn.Conv2d without a bias"),
    "norm": Input(9, 15, 25, "µs", "nn.BatchNorm2d"),
    "operator": Input(4, 6, 9, "µs", "any other operator"),
    "kernel": Input(2.5, 3.5, 5, "µs", "each further kernel of an operator"),
    "streams": Input(30, 55, 100, "µs", "events, waits and contexts of four streams"),
    "two": Input(12, 22, 40, "µs", "checks and memory in a call of TwoLaunches"),
    "triton": Input(7, 10, 18, "µs", "a launch of Triton's from Python", TRITON),
    "compiled": Input(12, 20, 40, "µs", "a call of torch.compile's, before its kernels"),
    "compiled_conv": Input(8, 12, 18, "µs", "a convolution in it"),
    "compiled_kernel": Input(3, 5, 8, "µs", "a kernel of Inductor's"),
    "autotune": Input(25, 45, 90, "µs", "a call of max-autotune's, with its graph"),
}
# What the formulas leave out, as a ratio: of a time, and of a gain, in which some of it
# cancels. Judgements.
LEFT_OUT = {"us": 1.1, "gains": 1.07}

# Tiles of cuDNN's kernels, as far as their names tell: rows, columns, depth of a step. The
# fastest is taken, because the recorder has cuDNN try them.
CUDNN = {
    "float16": ((64, 64, 64), (128, 64, 64), (128, 128, 64), (256, 128, 64)),
    "float32": ((64, 32, 32), (64, 64, 32), (128, 64, 32), (128, 128, 32)),
}
RESIDENT = 2  # of cuDNN's programs on a multiprocessor
_, CODE = compiled.read()


def bytes_us(moved: float, at: At) -> float:
    """How long so many bytes take; what fits into the L2 cache comes from there.

    at: one value of each input, as attributes.

    >>> at = At(cache=50e6, cache_speed=5e12)
    >>> at.memory, at.memory_share = 4e12, 0.5
    >>> bytes_us(10e6, at), bytes_us(100e6, at)
    (2.0, 50.0)
    """
    speed = at.cache_speed if moved <= at.cache else at.memory * at.memory_share
    return 1e6 * moved / speed


def tiled(
    products: Sequence[Sequence[float]],
    tile: Sequence[int],
    resident: int,
    at: At,
    idle: int = 0,
    parts: int = 1,
) -> tuple[int, float]:
    """Products that run side by side, cut into tiles of one size: (how many steps follow
    each other in the longest chain, how many the busiest multiprocessor does in all).

    products: [(positions, c_out, depth), …]. tile: rows, columns, depth of a step.
    resident: how many programs a multiprocessor holds. idle: programs without a product.
    parts: into how many each sum is cut.

    By hand: 784 pixels are 25 tiles of 32, and 128 channels 4, so 100 programs, of which
    each multiprocessor has one at most. A sum of 864 has 7 steps of 128.

    >>> at = At(multiprocessors=132)
    >>> tiled([(784, 128, 864)], (32, 32, 128), 6, at)
    (7, 7.0)
    """
    rows, columns, deep = tile
    cut = [
        (math.ceil(p / rows) * math.ceil(k / columns) * parts, math.ceil(d / deep / parts))
        for p, k, d in products
    ]
    programs = idle + sum(count for count, _ in cut)
    waves = math.ceil(programs / (at.multiprocessors * resident))
    longest = waves * max(steps for _, steps in cut)
    each = sum(count * steps for count, steps in cut) / programs  # in the mean
    return longest, math.ceil(programs / at.multiprocessors) * each


def product_us(
    product: Sequence[float], dtype: str, at: At, start: float | None = None
) -> float:
    """A convolution of cuDNN's in a kernel of its own, in µs.

    product: (positions, c_out, depth, bytes). start: in place of cuDNN's own. Of a step by
    itself half the time goes with its depth.
    """
    *sizes, moved = product
    kind = "float32" if dtype == "float32" else "float16"
    rate = getattr(at, f"flops_{kind}") * getattr(at, f"cudnn_{kind}") / at.multiprocessors

    def computes_us(tile):
        rows, columns, deep = tile
        chain, steps = tiled([sizes], tile, RESIDENT, at)
        busy_us = 1e6 * 2 * rows * columns * deep / rate
        return max(chain * at.cudnn_step * (0.5 + deep / 256), steps * busy_us)

    longest_us = max(min(map(computes_us, CUDNN[kind])), bytes_us(moved, at))
    start_us = at.start + (at.cudnn_start if start is None else start)
    return at.node + at.fill + start_us + longest_us


def device_us(work: Work, dtype: str, at: At, start: float | None = None) -> float:
    """A program as the device runs it, kernel after kernel, in µs.

    work: {"small": kernels without a product, "moved": their bytes, "pools": how many of
    them are poolings, "products": […]}.
    """
    small = work["small"]
    each = bytes_us(work["moved"] / small, at) if small else 0
    products = sum(product_us(product, dtype, at, start) for product in work["products"])
    return products + small * (at.node + at.fill + each) + work["pools"] * at.pool


def host_us(work: Work, at: At) -> float:
    """What the host needs to launch a program eagerly, in µs.

    work: {"convolutions": how many, "norms": …, "others": …, "more": further kernels}.
    """
    return (
        work["convolutions"] * at.conv
        + work["norms"] * at.norm
        + work["others"] * at.operator
        + work["more"] * at.kernel
    )


def two_us(
    widths: Sequence[int],
    positions: int,
    at: At,
    splits: int | str = 1,
    dependent: bool = False,
) -> float:
    """An Inception module in our two launches, in float16, each with the tile that is the
    fastest by this arithmetic: µs.

    widths: as of a models.Inception. positions: pixels of all images. splits, dependent: as
    of two_launches.TwoLaunches.
    """
    times = (
        min(
            launch_us(launch, tile, widths, positions, at, splits if launch else 1)
            for tile in two_launches.TILES
        )
        for launch in (0, 1)
    )
    return sum(times) - at.dependent * dependent


def launch_us(
    launch: int,
    tile: Sequence[int],
    widths: Sequence[int],
    positions: int,
    at: At,
    splits: int | str = 1,
) -> float:
    """One of our launches with one row of TILES, by what it was compiled to, in µs.

    A program by itself waits for its instructions one by one, and for its numbers where
    its buffers do not reach far enough ahead. A busy multiprocessor issues instructions of
    four warps at a time, or multiplies at a share of the peak, whichever takes longer.
    """
    products, pooled = _parts(launch, widths, positions)
    rows, columns, _, warps, _ = tile
    if isinstance(splits, str):  # "natural"
        _, sizes, depths = zip(*products, strict=True)
        splits = two_launches.natural_splits(
            depths, sizes, positions, tile, int(at.multiprocessors)
        )
    code = CODE["_second" if launch else "_first", "float16", tuple(tile)]
    pools = math.ceil(positions / rows) * math.ceil(pooled / columns)
    chain, steps = tiled(products, tile[:3], code.resident, at, pools, splits)
    alone_us = code.issued * at.stall / at.clock
    waits_us = max(0, at.arrive - (code.buffers - 1) * alone_us)
    cycles = max(code.issued * at.issue, code.multiplying / at.tensor) * warps / 4
    moved = traffic.in_two(widths, positions, item_bytes=2)[launch].bytes
    longest_us = max(
        chain * (alone_us + waits_us), steps * cycles / at.clock, bytes_us(moved, at)
    )
    summed_us = at.reduce if splits > 1 else 0
    return at.node + at.fill + at.start + summed_us + longest_us


def _parts(launch, widths, positions):
    """([(positions, c_out, depth), …] of a launch, how many channels it pools)."""
    c_in, k1, c3, k3, c5, k5, kp = widths
    if launch == 0:
        return [(positions, k, c_in) for k in (k1, c3, c5)], c_in
    sizes = (k3, 9 * c3), (k5, 25 * c5), (kp, c_in)
    return [(positions, k, depth) for k, depth in sizes], 0


def hinge_us(n: int, at: At) -> float:
    """A graph of n kernels that do next to nothing: max(a, c + b n), in µs.

    >>> hinge_us(2, At(replay=6, between=3, node=1))
    6
    """
    return max(at.replay, at.between + at.node * n)


def ranges(
    evaluate: Callable[[At], dict], inputs: dict[str, Input] | None = None
) -> dict[tuple, tuple[float, float, float]]:
    """{key: (low, middle, high)} of a function of the inputs that gives {key: number}.

    Each input is moved to its low and its high value, the others in the middle. What that
    does to a number is taken as a ratio; ratios up and ratios down add up as independent
    errors do, and so does LEFT_OUT, by the first part of the key.
    """
    inputs = INPUTS if inputs is None else inputs
    middles = {name: given.middle for name, given in inputs.items()}
    middle = evaluate(At(**middles))
    squares = {key: [math.log(LEFT_OUT[key[0]]) ** 2] * 2 for key in middle}
    for name, given in inputs.items():
        ends = {given.low, given.high} - {given.middle}
        moved = [evaluate(At(**middles | {name: end})) for end in ends]
        for key, number in middle.items():
            logs = [math.log(each[key] / number) for each in moved]
            squares[key][0] += min(0.0, 0.0, *logs) ** 2
            squares[key][1] += max(0.0, 0.0, *logs) ** 2
    return {key: _range(number, *squares[key]) for key, number in middle.items()}


def _range(number, down, up):
    return (
        number / math.exp(math.sqrt(down)),
        number,
        number * math.exp(math.sqrt(up)),
    )
