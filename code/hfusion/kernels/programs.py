"""The two launches of an Inception module, written in Triton.

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

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:
    triton = tl = constexpr = None


def _jit(function: Callable) -> Any:
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
