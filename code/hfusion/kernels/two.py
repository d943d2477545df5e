"""An Inception module in two launches, in Triton.

The module is two dependent steps, and what is in one step can run side by side:

    launch 1   x ─► stacked 1×1, bias, ReLU ─┬► y[:, b1]  (its place in y)
                                             ├► r3        (scratch)
                                             └► r5        (scratch)
               x ─► 3×3 max pool ────────────► pooled     (scratch)
    launch 2   r3 ─► 3×3, bias, ReLU ────────► y[:, b3]
               r5 ─► 5×5, bias, ReLU ────────► y[:, b5]
               pooled ─► 1×1, bias, ReLU ────► y[:, pool_proj]

No copy and no concatenation: each branch is written to where it belongs. Activations are
channels_last, a pixel's channels next to each other: then X is a matrix [N·H·W, C] with
contiguous rows, a 1×1 convolution is X · W, and each tap of a larger window reads rows of
the same matrix, shifted (an implicit GEMM: im2col's matrix is never written).
"""

import copy
import math
import os
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import models
from ..errors import FusionError
from ..timing import measure

try:
    import triton
    import triton.language as tl
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
    from triton.runtime.errors import OutOfResources, PTXASError
except ImportError:
    triton = tl = None
constexpr = tl.constexpr if triton else None

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# A program computes rows × columns numbers, so many products deep at a time, with so many
# warps, in a pipeline of so many stages: rows, columns, depth, warps, stages. On sm_90 the
# buffers of tiles of 64 rows and more hold as many steps as stages, smaller ones one less.
TILES = (
    (32, 32, 128, 4, 3),  # few pixels: small tiles, so that every multiprocessor has one,
    (16, 32, 256, 4, 2),  # and deep steps, so that there are few of them
    (16, 64, 128, 4, 3),
    (32, 32, 256, 4, 2),
    (32, 64, 128, 4, 3),
    (64, 32, 128, 4, 3),
    (64, 64, 64, 4, 4),
    (128, 64, 64, 4, 3),  # many pixels: large tiles, so that less is read again
    (128, 128, 32, 8, 3),
)

MOST_SPLITS = 16  # the last part adds that many without a loop
COUNTERS = 4096  # a launch of more tiles than these fills any GPU, and is not split


def _jit(function):
    """triton.jit; one compilation does for images and branches of all sizes."""
    channels = ["c_in", "k1", "k3", "k5", "c3", "c5", "cp", "kp", "y_stride"]
    sizes = [*channels, "height", "wide", "positions"]
    return triton.jit(function, do_not_specialize=sizes) if triton else function


@_jit
def _window(rows, side, height, wide, positions):
    """Which taps of a pixel's window are in the image: bit t of an int32 for tap t.

    side: 1, 3 or 5, so that 25 bits are enough. A row beyond the last has none.
    """
    half = side // 2
    line, column = rows // wide % height, rows % wide
    left, right = tl.maximum(half - column, 0), tl.minimum(half + wide - column, side)
    above, below = tl.maximum(half - line, 0), tl.minimum(half + height - line, side)
    # The taps of one line, from left up to right; and the first tap of each line.
    across = (1 << right) - (1 << left)
    firsts = tl.where(side == 5, 0b100001000010000100001, tl.where(side == 3, 0b1001001, 1))
    firsts &= (1 << below * side) - (1 << above * side)
    return tl.where(rows < positions, across * firsts, 0)


@_jit
def _shifted(tap, side, wide):
    """How many rows further the neighbour lies that is under a tap of a window."""
    down = tap * (65536 // side + 1) >> 16  # tap // side, of fewer than 2**13 taps
    return down * (wide - side) + tap - side // 2 * (wide + 1)


@_jit
def _products(
    x, weight, rows, columns, fits, side, c_in, part, weight_stride, height, wide,
    positions, BM: constexpr, BN: constexpr, BK: constexpr, WIDEN: constexpr,
    SPLITS: constexpr, DEPENDENT: constexpr,
):  # fmt: skip
    """The sums of a tile's products, in float32: of its whole depth, or of one part."""
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    total = side * side * c_in
    first, last = 0, total
    if SPLITS > 1:
        share = tl.cdiv(total, BK * SPLITS) * BK  # whole steps
        first, last = part * share, tl.minimum((part + 1) * share, total)
    window = _window(rows, side, height, wide, positions)
    x_rows = x + rows.to(tl.int64) * c_in
    steps = tl.arange(0, BK)
    w_rows = weight + (steps[:, None] * weight_stride + columns)
    ends = tl.where(fits, total, 0)
    # Dividing takes longer than multiplying matrices: the next step's tap and channel
    # come from the last one's, by a carry.
    tap, channel = (first + steps) // c_in, (first + steps) % c_in
    taps, channels = BK // c_in, BK % c_in
    if DEPENDENT:
        gdc_wait()  # x is another launch's
    for start in range(first, last, BK):
        x_at = x_rows + (_shifted(tap, side, wide) * c_in + channel)[None, :]
        inside = (window >> tl.minimum(tap, 31)[None, :]) & 1
        x_part = tl.load(x_at, inside != 0, other=0.0)
        w_at = w_rows + start * weight_stride
        w_part = tl.load(w_at, start + steps[:, None] < ends, other=0.0)
        if WIDEN:
            x_part, w_part = x_part.to(tl.float32), w_part.to(tl.float32)
        # "ieee": float32 is not rounded for the tensor cores.
        acc = tl.dot(x_part, w_part, acc, input_precision="ieee")
        channel += channels
        carry = channel >= c_in
        channel = tl.where(carry, channel - c_in, channel)
        tap += tl.where(carry, taps + 1, taps)
    return acc


@_jit
def _summed(acc, part, parts, arrived, BM: constexpr, BN: constexpr, SPLITS: constexpr):
    """(The sum of a tile's parts, whether it is known): the last part to arrive knows it.

    Each part leaves its sums in parts [tiles, SPLITS, BM, BN] and counts itself in
    arrived [tiles], which is 0 again afterwards. They are added in one order whichever
    is last, so that the same numbers give the same sum.
    """
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    rows, columns = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
    at = parts + program * (SPLITS * BM * BN) + rows * BN + columns
    tl.store(at + part * (BM * BN), acc)
    tl.debug_barrier()  # all threads have written before one of them says so
    last = tl.atomic_add(arrived + program, 1, sem="acq_rel") == SPLITS - 1
    acc = tl.zeros_like(acc)
    wanted = rows < tl.where(last, BM, 0)
    for each in tl.static_range(SPLITS):
        # ".cg": what other multiprocessors wrote is in the L2 cache, not in the L1.
        acc += tl.load(at + each * (BM * BN), wanted, other=0.0, cache_modifier=".cg")
    tl.store(arrived + program, 0, last)
    return acc, last


@_jit
def _conv(
    x, weight, bias, y, tile, side, c_in, c_out,
    weight_stride, y_stride, height, wide, positions,
    BM: constexpr, BN: constexpr, BK: constexpr,
    WIDEN: constexpr, UNIT: constexpr,
    part=0, parts=None, arrived=None, SPLITS: constexpr = 1, DEPENDENT: constexpr = False,
):  # fmt: skip
    """One tile of relu(convolution + bias): BM pixels, the tile-th BN output channels.

    x [positions, c_in]; weight [side · side · c_in, c_out], one tap below the other; the
    rows of y lie y_stride apart. A step is BK rows of weight. c_in counts in UNIT
    channels: seeing what divides it, Triton loads 16 bytes at a time.
    """
    c_in *= UNIT  # here, since what a branch knew is forgotten after it
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    columns = tile * BN + tl.arange(0, BN)[None, :]
    fits = columns < c_out
    b = tl.load(bias + columns, fits, other=0.0)  # it arrives meanwhile
    acc = _products(
        x, weight, rows, columns, fits, side, c_in, part, weight_stride, height, wide,
        positions, BM, BN, BK, WIDEN, SPLITS, DEPENDENT,
    )  # fmt: skip
    if SPLITS > 1:
        acc, known = _summed(acc, part, parts, arrived, BM, BN, SPLITS)
        positions = tl.where(known, positions, 0)
    acc = tl.maximum(acc + b, 0.0, propagate_nan=tl.PropagateNan.ALL)
    y_at = y + rows.to(tl.int64) * y_stride + columns
    tl.store(y_at, acc.to(y.dtype.element_ty), (rows < positions) & fits)


@_jit
def _pool(
    x, y, tile, channels, height, wide, positions,
    BM: constexpr, BN: constexpr,
):  # fmt: skip
    """One tile of a 3×3 max pool of stride 1: what is outside of the image never wins.

    A part of the rows at a time, or it would need more registers than a convolution.
    """
    columns = tile * BN + tl.arange(0, BN)[None, :]
    fits = columns < channels
    outside = float("-inf")
    PART: constexpr = min(BM, max(16, 1024 // BN))
    for start in range(0, BM, PART):
        rows = tl.program_id(0) * BM + start + tl.arange(0, PART)[:, None]
        window = _window(rows, 3, height, wide, positions)
        at = rows.to(tl.int64) * channels + columns
        most = tl.full((PART, BN), outside, dtype=tl.float32)
        for tap in tl.static_range(9):
            inside = (window >> tap) & 1
            x_at = x + at + _shifted(tap, 3, wide) * channels
            part = tl.load(x_at, (inside != 0) & fits, other=outside).to(tl.float32)
            most = tl.maximum(most, part, propagate_nan=tl.PropagateNan.ALL)
        tl.store(y + at, most.to(y.dtype.element_ty), (rows < positions) & fits)


@_jit
def _first(
    x, weight, bias, y, r3, r5, pooled, c_in, k1, k3, k5, y_stride,
    height, wide, positions, BM: constexpr, BN: constexpr, BK: constexpr,
    WIDEN: constexpr, UNIT: constexpr, DEPENDENT: constexpr,
):  # fmt: skip
    """Launch 1: a tile of one of the three siblings, or of the pooling.

    A tile belongs to one branch, so that all of it goes to one place. Widths count in
    UNIT channels. DEPENDENT: launch 2 may start as soon as all of these programs have.
    """
    if DEPENDENT:
        gdc_launch_dependents()
    k1, k3, k5, y_stride = k1 * UNIT, k3 * UNIT, k5 * UNIT, y_stride * UNIT
    tiles1, tiles3 = tl.cdiv(k1, BN), tl.cdiv(k3, BN)
    tiles5 = tl.cdiv(k5, BN)
    tile = tl.program_id(1)
    if tile < tiles1 + tiles3 + tiles5:
        if tile < tiles1:
            first, size, place, stride = 0, k1, y, y_stride
        elif tile < tiles1 + tiles3:
            first, size, place, stride = k1, k3, r3, k3
            tile -= tiles1
        else:
            first, size, place, stride = k1 + k3, k5, r5, k5
            tile -= tiles1 + tiles3
        _conv(
            x, weight + first, bias + first, place, tile, 1, c_in, size,
            k1 + k3 + k5, stride, height, wide, positions,
            BM, BN, BK, WIDEN, UNIT,
        )  # fmt: skip
    else:
        tile -= tiles1 + tiles3 + tiles5
        _pool(x, pooled, tile, c_in * UNIT, height, wide, positions, BM, BN)


@_jit
def _second(
    r3, w3, b3, r5, w5, b5, pooled, wp, bp, y,
    c3, k3, c5, k5, cp, kp, k1, y_stride,
    height, wide, positions, parts, arrived,
    BM: constexpr, BN: constexpr, BK: constexpr,
    WIDEN: constexpr, UNIT: constexpr, SPLITS: constexpr, DEPENDENT: constexpr,
):  # fmt: skip
    """Launch 2: a tile of the 3×3, of the 5×5, or of the pooled 1×1.

    SPLITS: each of so many programs does a part of a tile's depth. DEPENDENT: they start
    before launch 1 is done, and wait before they read.
    """
    k1, k3, k5, kp = k1 * UNIT, k3 * UNIT, k5 * UNIT, kp * UNIT
    y_stride *= UNIT
    tiles3, tiles5 = tl.cdiv(k3, BN), tl.cdiv(k5, BN)
    tile = tl.program_id(1)
    if tile < tiles3:
        x, weight, bias, side, c_in, size = r3, w3, b3, 3, c3, k3
        first = k1
    elif tile < tiles3 + tiles5:
        x, weight, bias, side, c_in, size = r5, w5, b5, 5, c5, k5
        first = k1 + k3
        tile -= tiles3
    else:
        x, weight, bias, side, c_in, size = pooled, wp, bp, 1, cp, kp
        first = k1 + k3 + k5
        tile -= tiles3 + tiles5
    _conv(
        x, weight, bias, y + first, tile, side, c_in, size, size, y_stride,
        height, wide, positions, BM, BN, BK, WIDEN, UNIT,
        tl.program_id(2), parts, arrived, SPLITS, DEPENDENT,
    )  # fmt: skip


def two_launches(module, splits=1, dependent=False):
    """An Inception module as two launches: a TwoLaunches, the module left as it was.

    module: a models.Inception in eval mode, its norms folded or not, on any device, in
    one of DTYPES. Its weights are copied. Raises FusionError for anything else, and
    where Triton is missing. splits, dependent: of TwoLaunches.

    >>> module = models.Inception.from_table("3a").eval()
    >>> two = two_launches(module)  # doctest: +SKIP
    >>> x = torch.zeros(1, 192, 28, 28).to(memory_format=torch.channels_last)
    >>> two(x).shape  # doctest: +SKIP
    torch.Size([1, 256, 28, 28])
    """
    if triton is None:
        raise FusionError(
            "Triton 3.6 or newer is not there; pip install triton (Linux only)"
        )
    if not isinstance(module, models.Inception):
        raise FusionError(f"module was a {type(module).__name__}; an Inception fits")
    if module.training:
        raise FusionError("module is in training mode; eval() fits")
    dtype = module.b1.conv.weight.dtype
    if dtype not in DTYPES:
        raise FusionError(f"module is in {dtype}; one of {DTYPES} fits")
    units = ("b1", "b3_reduce", "b5_reduce", "b3", "b5", "pool_proj")
    folded = [_folded(getattr(module, name)) for name in units]
    return TwoLaunches(*folded, splits=splits, dependent=dependent)


def natural_splits(
    depths: Sequence[int],
    widths: Sequence[int],
    pixels: int,
    tile: Sequence[int],
    processors: int,
) -> int:
    """Into how many parts to cut the depth of launch 2, so that no multiprocessor is idle.

    depths, widths: inputs times taps, and output channels, of each branch. tile: a row of
    TILES. processors: multiprocessors of the GPU. As many parts as make two programs for
    each multiprocessor, if a part of the deepest branch then has two steps or more. It is
    a rule of thumb and has not been measured.

    In 5a one image has 49 pixels, 2 tiles of 32, times 10 + 4 + 4 tiles of 32 columns: 36
    programs for 132 multiprocessors. Its deepest branch has 9 · 160 inputs, 12 steps of
    128: 6 parts of 2 steps.

    >>> widths, tile = (320, 128, 128), (32, 32, 128, 4, 3)
    >>> natural_splits((9 * 160, 25 * 32, 832), widths, 49, tile, 132)
    6
    >>> natural_splits((9 * 160, 25 * 32, 832), widths, 32 * 49, tile, 132)
    1
    """
    steps = -(-max(depths) // tile[2])
    most = min(2 * processors // _tiles(pixels, widths, tile), MOST_SPLITS)
    share = max(-(-steps // max(most, 1)), 2)
    return -(-steps // share)


def _tiles(pixels, widths, tile):
    rows, columns, *_ = tile
    return -(-pixels // rows) * sum(-(-width // columns) for width in widths)


def _folded(unit):
    """(weight, bias) of a ConvUnit's convolution, its norm folded in."""
    conv = unit.conv
    if isinstance(unit.bn, nn.BatchNorm2d):
        conv = fuse_conv_bn_eval(conv, unit.bn)
    bias = conv.bias if conv.bias is not None else conv.weight.new_zeros(len(conv.weight))
    return conv.weight.detach(), bias.detach()


def _by_taps(weight):
    """[K, C, k, k] -> [k · k · C, K]: for each tap a matrix, as the kernels read it."""
    taps = weight.permute(2, 3, 1, 0).reshape(-1, len(weight))
    return taps.clone(memory_format=torch.contiguous_format)


class TwoLaunches(nn.Module):
    """An Inception module that runs in two launches; `two_launches` makes one.

    x [N, c_in, H, W] in channels_last, on a CUDA device (on any under
    TRITON_INTERPRET=1) -> y [N, b1 + b3 + b5 + pool_proj, H, W] in channels_last.

    Attributes to set:
    tiles: a pair of rows of TILES, for the first launch and for the second.
    splits: into how many parts launch 2 cuts the depth of a tile, each a program of its
    own: 1 to MOST_SPLITS, or "natural" for `natural_splits`. With more than one it counts
    in memory of its own, so two calls must not run at the same time on two streams.
    dependent: launch 2 starts while launch 1 still runs, and waits before it reads
    (programmatic dependent launch): compute capability 9.0 or more.
    """

    def __init__(self, b1, b3_reduce, b5_reduce, b3, b5, proj, splits=1, dependent=False):
        super().__init__()
        self.tiles = TILES[0], TILES[0]
        self.splits, self.dependent = splits, dependent
        self.c_in = b1[0].shape[1]
        self.reduced = len(b3_reduce[0]), len(b5_reduce[0])
        self.widths = len(b1[0]), len(b3[0]), len(b5[0]), len(proj[0])
        self.unit = math.gcd(8, self.c_in, *self.reduced, *self.widths)
        siblings = (b1, b3_reduce, b5_reduce)
        first = [torch.cat(parts) for parts in zip(*siblings, strict=True)]
        for name, (weight, bias) in zip(
            ("first", "b3", "b5", "proj"), (first, b3, b5, proj), strict=True
        ):
            self.register_buffer(f"{name}_weight", _by_taps(weight))
            self.register_buffer(f"{name}_bias", bias.clone())
        arrived = torch.zeros(COUNTERS, dtype=torch.int32, device=b1[0].device)
        self.register_buffer("arrived", arrived, persistent=False)

    def forward(self, x):
        self._refuse_unfit(x)
        n, _, height, wide = x.shape
        image = height, wide, n * height * wide
        y = x.new_empty((n, height, wide, sum(self.widths)))
        c_in, (c3, c5), (k1, k3, k5, kp) = self.c_in, self.reduced, self.widths
        scratch = [x.new_empty((image[-1], c)) for c in (c3, c5, c_in)]
        r3, r5, pooled = scratch
        grid, sizes = self._sized(0, x, (k1, c3, c5, c_in))
        _first[grid](
            x, self.first_weight, self.first_bias, y, r3, r5, pooled,
            *self._units(c_in, k1, c3, c5, sum(self.widths)),
            *image, **sizes,
        )  # fmt: skip
        grid, sizes = self._sized(1, x, (k3, k5, kp))
        grid, split = self._split(x, grid)
        _second[grid](
            r3, self.b3_weight, self.b3_bias, r5, self.b5_weight, self.b5_bias,
            pooled, self.proj_weight, self.proj_bias, y,
            *self._units(c3, k3, c5, k5, c_in, kp, k1, sum(self.widths)),
            *image, **split, **sizes,
        )  # fmt: skip
        return y.permute(0, 3, 1, 2)

    def _units(self, *widths):
        return [width // self.unit for width in widths]

    def _sized(self, launch, x, widths):
        """(the grid, what the kernel is compiled for) of a launch over branches so wide."""
        BM, BN, BK, warps, stages = self.tiles[launch]
        pixels = x.numel() // self.c_in
        grid = triton.cdiv(pixels, BM), sum(triton.cdiv(width, BN) for width in widths)
        sizes = {"BM": BM, "BN": BN, "BK": BK, "UNIT": self.unit}
        # The interpreter multiplies bfloat16 as if it were whole numbers.
        sizes["WIDEN"] = x.dtype == torch.bfloat16 and x.device.type != "cuda"
        # What has been Triton's default, and is no longer to be: a · b + c rounded once.
        sizes["enable_fp_fusion"] = True
        sizes["DEPENDENT"] = self.dependent
        if self.dependent and launch == 1:
            sizes["launch_pdl"] = True
        return grid, sizes | {"num_warps": warps, "num_stages": stages}

    def _split(self, x, grid):
        """(the grid, what the kernel is given) of launch 2, its depth cut into parts."""
        splits, tiles = self.splits_for(x), math.prod(grid)
        parts = arrived = None
        if splits > 1:
            rows, columns, *_ = self.tiles[1]
            parts = x.new_empty((tiles, splits, rows, columns), dtype=torch.float32)
            arrived = self.arrived
        return (*grid, splits), {"SPLITS": splits, "parts": parts, "arrived": arrived}

    def splits_for(self, x: torch.Tensor) -> int:
        """Into how many parts launch 2 cuts the depth of a tile for an input like x."""
        (c3, c5), (_, *widths) = self.reduced, self.widths
        pixels, tile = x.numel() // self.c_in, self.tiles[1]
        if _tiles(pixels, widths, tile) > COUNTERS:
            return 1
        if self.splits != "natural":
            return self.splits
        depths = 9 * c3, 25 * c5, self.c_in
        return natural_splits(depths, widths, pixels, tile, _processors(x.device))

    @property
    def splits(self):
        return self._parts

    @splits.setter
    def splits(self, splits):
        whole = type(splits) is int and 1 <= splits <= MOST_SPLITS
        if not whole and splits != "natural":
            expected = f"an int from 1 to {MOST_SPLITS} or 'natural'"
            raise FusionError(f"splits: expected {expected}, got {splits!r}")
        self._parts = splits

    def _refuse_unfit(self, x):
        weight = self.first_weight
        fits = x.ndim == 4 and x.shape[1] == self.c_in and x.numel()
        fits = fits and x.dtype == weight.dtype
        if not fits or not x.is_contiguous(memory_format=torch.channels_last):
            raise FusionError(
                f"x was {list(x.shape)} of {x.dtype} with strides {x.stride()}; "
                f"[N, {self.c_in}, H, W] of {weight.dtype}, channels_last, fits"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise FusionError("x requires a gradient; torch.no_grad() fits")
        if x.device != weight.device:
            raise FusionError(
                f"x is on {x.device}; {weight.device}, where the weights are, fits"
            )
        if x.is_cuda and x.device.index != torch.cuda.current_device():
            raise FusionError(
                f"x is on {x.device}; the current device fits (torch.cuda.device)"
            )
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if x.device.type != "cuda" and not interpreted:
            raise FusionError(
                f"x is on {x.device}; a CUDA device fits, or TRITON_INTERPRET=1 set before "
                "Python starts"
            )
        if self.dependent and (interpreted or not _starts_early(x.device)):
            raise FusionError(
                "dependent: expected x on a CUDA device of compute capability 9.0 or more, "
                f"out of Triton's interpreter, got {x.device}"
            )


def _processors(device):
    """How many multiprocessors a CUDA device has; anything else counts as one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _starts_early(device):
    """Whether a device can start a launch before the one before it is done."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


def tune(two, x, rounds=20):
    """Choose the tiles of a TwoLaunches for inputs like x, in place: by racing them all.

    First those of launch 1, then those of launch 2, then once more those of launch 1.
    Where two.splits is "natural", each tile is split as suits it. A tile for which a
    multiprocessor has not enough memory is left out. Returns [{tile: median µs of a
    race's arm}, …], a dict a race.
    """
    tables = []
    for launch in (0, 1, 0):
        samples = measure.time_arms(_choices(two, x, launch), x.device, rounds)
        table = {tile: statistics.median(times) for tile, times in samples.items()}
        two.tiles = _replaced(two.tiles, launch, min(table, key=table.get))
        tables.append(table)
    return tables


def _choices(two, x, launch):
    """{tile: two(x) with this tile for this launch}, of those that fit the device."""
    arms = {}
    for tile in TILES:
        one = copy.copy(two)
        one.tiles = _replaced(two.tiles, launch, tile)
        call = partial(one, x)
        try:
            # As a graph, and many times: launching takes the same time for every tile.
            arms[tile] = measure.graphed(call, times=20) if x.is_cuda else call
            arms[tile]()
        except (OutOfResources, PTXASError):
            arms.pop(tile, None)
    return arms


def _replaced(tiles, launch, tile):
    return (tile, tiles[1]) if launch == 0 else (tiles[0], tile)
