"""An Inception module in two launches, in Triton.

The module is two dependent steps, and what is in one step can run side by side:

    launch 1   x ─► stacked 1×1, bias, ReLU ─┬► y[:, b1]  (its place in the output)
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

import os

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import models
from .layers import FusionError

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None
constexpr = tl.constexpr if triton else None

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Rows, columns and depth of a tile, warps, stages: what one can choose from.
TILES = (
    (16, 16, 32, 1, 2),
    (32, 32, 32, 2, 3),
    (32, 64, 32, 4, 3),
    (64, 32, 32, 4, 3),
    (64, 64, 32, 4, 4),
    (64, 64, 64, 4, 3),
    (128, 64, 32, 4, 4),
)


def _jit(function):
    return triton.jit(function) if triton else function


@_jit
def _multiply(
    acc, x_rows, inside, w_rows, columns, fits, c_in, width,
    BK: constexpr, WIDEN: constexpr,
):  # fmt: skip
    """acc + X · W; x_rows and w_rows are where the rows of X, and W, begin."""
    for k in range(0, c_in, BK):
        depth = k + tl.arange(0, BK)
        deep = depth < c_in
        x = tl.load(
            x_rows[:, None] + depth[None, :], inside[:, None] & deep[None, :], other=0.0
        )
        w = tl.load(
            w_rows + depth[:, None] * width + columns[None, :],
            deep[:, None] & fits[None, :],
            other=0.0,
        )
        if WIDEN:
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision="ieee")  # float32 stays float32
    return acc


@_jit
def _finish(acc, bias, y, rows, live, columns, fits, stride):
    """Bias, ReLU, and each number to its place."""
    b = tl.load(bias + columns, fits, other=0.0).to(tl.float32)
    acc = tl.maximum(acc + b[None, :], 0.0)
    place = y + rows[:, None] * stride + columns[None, :]
    tl.store(place, acc.to(y.dtype.element_ty), live[:, None] & fits[None, :])


@_jit
def _first(
    x, w, bias, y, r3, r5, pooled, positions, height, wide, c_in, k1, k3, k5, stride,
    BM: constexpr, BN: constexpr, BK: constexpr, WIDEN: constexpr,
):  # fmt: skip
    """Launch 1: a tile of the stacked product, or a tile of the pooling."""
    tiles1, tiles3, tiles5 = tl.cdiv(k1, BN), tl.cdiv(k3, BN), tl.cdiv(k5, BN)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live = rows < positions
    tile = tl.program_id(1)
    if tile < tiles1 + tiles3 + tiles5:
        # A tile belongs to one branch, so that it is written to one place.
        if tile < tiles1:
            first, size, local, place, step = 0, k1, tile, y, stride
        elif tile < tiles1 + tiles3:
            first, size, local, place, step = k1, k3, tile - tiles1, r3, k3
        else:
            first, size, local, place, step = k1 + k3, k5, tile - tiles1 - tiles3, r5, k5
        columns = local * BN + tl.arange(0, BN)
        fits = columns < size
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        whole = k1 + k3 + k5
        acc = _multiply(
            acc, x + rows * c_in, live, w + first, columns, fits, c_in, whole, BK, WIDEN
        )
        _finish(acc, bias + first, place, rows, live, columns, fits, step)
    else:
        columns = (tile - tiles1 - tiles3 - tiles5) * BN + tl.arange(0, BN)
        fits = columns < c_in
        column, line = rows % wide, rows // wide % height
        most = tl.full((BM, BN), float("-inf"), dtype=tl.float32)
        for tap in range(9):
            dy, dx = tap // 3 - 1, tap % 3 - 1
            inside = live & (line + dy >= 0) & (line + dy < height)
            inside = inside & (column + dx >= 0) & (column + dx < wide)
            at = x + (rows + dy * wide + dx)[:, None] * c_in + columns[None, :]
            value = tl.load(at, inside[:, None] & fits[None, :], other=float("-inf"))
            most = tl.maximum(most, value.to(tl.float32))
        target = pooled + rows[:, None] * c_in + columns[None, :]
        tl.store(target, most.to(pooled.dtype.element_ty), live[:, None] & fits[None, :])


@_jit
def _second(
    r3, w3, b3, r5, w5, b5, pooled, wp, bp, y, positions, height, wide,
    c3, k3, c5, k5, cp, kp, k1, stride,
    BM: constexpr, BN: constexpr, BK: constexpr, WIDEN: constexpr,
):  # fmt: skip
    """Launch 2: a tile of the 3×3, of the 5×5, or of the pooled 1×1."""
    tiles5, tiles3 = tl.cdiv(k5, BN), tl.cdiv(k3, BN)
    tile = tl.program_id(1)
    if tile < tiles5:  # the longest programs first
        src, w, bias, side, c_in, size = r5, w5, b5, 5, c5, k5
        local, first = tile, k1 + k3
    elif tile < tiles5 + tiles3:
        src, w, bias, side, c_in, size = r3, w3, b3, 3, c3, k3
        local, first = tile - tiles5, k1
    else:
        src, w, bias, side, c_in, size = pooled, wp, bp, 1, cp, kp
        local, first = tile - tiles5 - tiles3, k1 + k3 + k5
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live = rows < positions
    column, line = rows % wide, rows // wide % height
    columns = local * BN + tl.arange(0, BN)
    fits = columns < size
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for tap in range(side * side):
        dy, dx = tap // side - side // 2, tap % side - side // 2
        inside = live & (line + dy >= 0) & (line + dy < height)
        inside = inside & (column + dx >= 0) & (column + dx < wide)
        start = src + (rows + dy * wide + dx) * c_in
        taps = w + tap * c_in * size
        acc = _multiply(acc, start, inside, taps, columns, fits, c_in, size, BK, WIDEN)
    _finish(acc, bias, y + first, rows, live, columns, fits, stride)


def two_launches(module):
    """An Inception module as two launches: a TwoLaunches, the module left as it was.

    module: a models.Inception in eval mode, its norms folded or not, on any device, in
    one of DTYPES. Its weights are copied. Raises FusionError for anything else, and
    where Triton is missing.

    >>> two = two_launches(models.Inception.from_table("3a").eval())  # doctest: +SKIP
    >>> x = torch.zeros(1, 192, 28, 28).to(memory_format=torch.channels_last)
    >>> two(x).shape  # doctest: +SKIP
    torch.Size([1, 256, 28, 28])
    """
    if triton is None:
        raise FusionError("Triton is not installed; pip install triton (Linux only)")
    if not isinstance(module, models.Inception):
        raise FusionError(f"module was a {type(module).__name__}; an Inception fits")
    if module.training:
        raise FusionError("module is in training mode; eval() fits")
    dtype = module.b1.conv.weight.dtype
    if dtype not in DTYPES:
        raise FusionError(f"module is in {dtype}; one of {DTYPES} fits")
    units = ("b1", "b3_reduce", "b5_reduce", "b3", "b5", "pool_proj")
    folded = [_folded(getattr(module, name)) for name in units]
    return TwoLaunches(*folded)


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
    """

    def __init__(self, b1, b3_reduce, b5_reduce, b3, b5, proj):
        super().__init__()
        self.c_in = b1[0].shape[1]
        self.reduced = len(b1[0]), len(b3_reduce[0]), len(b5_reduce[0])
        self.widths = len(b1[0]), len(b3[0]), len(b5[0]), len(proj[0])
        siblings = (b1, b3_reduce, b5_reduce)
        first = [torch.cat(parts) for parts in zip(*siblings, strict=True)]
        for name, (weight, bias) in zip(
            ("first", "b3", "b5", "proj"), (first, b3, b5, proj), strict=True
        ):
            self.register_buffer(f"{name}_weight", _by_taps(weight))
            self.register_buffer(f"{name}_bias", bias.clone())

    def forward(self, x, tile=None):
        self._refuse_unfit(x)
        n, _, height, wide = x.shape
        positions, (k1, k3, k5, kp) = n * height * wide, self.widths
        _, c3, c5 = self.reduced
        y = x.new_empty((n, height, wide, sum(self.widths)))
        r3, r5, pooled = (x.new_empty((positions, c)) for c in (c3, c5, self.c_in))
        BM, BN, BK, warps, stages = tile or TILES[0]
        sizes = {"BM": BM, "BN": BN, "BK": BK, "num_warps": warps, "num_stages": stages}
        # The interpreter multiplies bfloat16 as if it were whole numbers.
        sizes["WIDEN"] = x.dtype == torch.bfloat16 and x.device.type != "cuda"
        rows = triton.cdiv(positions, BM)
        tiles = [sum(triton.cdiv(c, BN) for c in each) for each in (
            (*self.reduced, self.c_in), (k3, k5, kp))]  # fmt: skip
        _first[rows, tiles[0]](
            x, self.first_weight, self.first_bias, y, r3, r5, pooled,
            positions, height, wide, self.c_in, k1, c3, c5, sum(self.widths), **sizes,
        )  # fmt: skip
        _second[rows, tiles[1]](
            r3, self.b3_weight, self.b3_bias, r5, self.b5_weight, self.b5_bias,
            pooled, self.proj_weight, self.proj_bias, y, positions, height, wide,
            c3, k3, c5, k5, self.c_in, kp, k1, sum(self.widths), **sizes,
        )  # fmt: skip
        return y.permute(0, 3, 1, 2)

    def _refuse_unfit(self, x):
        weight = self.first_weight
        fits = x.ndim == 4 and x.shape[1] == self.c_in and x.numel()
        fits = fits and x.dtype == weight.dtype
        if not fits or not x.is_contiguous(memory_format=torch.channels_last):
            raise FusionError(
                f"x was {list(x.shape)} of {x.dtype} with strides {x.stride()}; "
                f"[N, {self.c_in}, H, W] of {weight.dtype}, channels_last, fits"
            )
        if x.device != weight.device:
            raise FusionError(
                f"x is on {x.device}; {weight.device}, where the weights are, fits"
            )
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if x.device.type != "cuda" and not interpreted:
            raise FusionError(
                f"x is on {x.device}; a CUDA device fits, or TRITON_INTERPRET=1 set before "
                "Python starts"
            )
