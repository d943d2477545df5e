"""An Inception module as two launches: its weights, its launches, and the choice of tiles.

What the launches compute, and in which order, is in `programs`.
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

from .. import models, timing
from ..errors import FusionError
from . import programs

try:
    from triton.runtime.errors import OutOfResources, PTXASError
except ImportError:
    OutOfResources = PTXASError = ()

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


def convert(module, splits=1, dependent=False):
    """An Inception module as two launches: a TwoLaunches, the module left as it was.

    module: a models.Inception in eval mode, its norms folded or not, on any device, in
    one of DTYPES. Its weights are copied. Raises FusionError for anything else, and
    where Triton is missing. splits, dependent: of TwoLaunches.

    >>> module = models.Inception.from_table("3a").eval()
    >>> two = convert(module)  # doctest: +SKIP
    >>> x = torch.zeros(1, 192, 28, 28).to(memory_format=torch.channels_last)
    >>> two(x).shape  # doctest: +SKIP
    torch.Size([1, 256, 28, 28])
    """
    if programs.triton is None:
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
    """An Inception module that runs in two launches; `convert` makes one.

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
        programs._first[grid](
            x, self.first_weight, self.first_bias, y, r3, r5, pooled,
            *self._units(c_in, k1, c3, c5, sum(self.widths)),
            *image, **sizes,
        )  # fmt: skip
        grid, sizes = self._sized(1, x, (k3, k5, kp))
        grid, split = self._split(x, grid)
        programs._second[grid](
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
        grid = -(-pixels // BM), sum(-(-width // BN) for width in widths)
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
        samples = timing.benchmark(_choices(two, x, launch), x.device, rounds)
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
            arms[tile] = timing.graphed(call, times=20) if x.is_cuda else call
            arms[tile]()
        except (OutOfResources, PTXASError):
            arms.pop(tile, None)
    return arms


def _replaced(tiles, launch, tile):
    return (tile, tiles[1]) if launch == 0 else (tiles[0], tile)
