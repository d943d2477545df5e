"""An Inception module as two launches: its weights, its tiles, and its launches.

What the launches compute, and in which order, is in `programs`. `tuning` chooses the tiles.
"""

import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import models
from ..errors import FusionError
from . import programs

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Layer = tuple[torch.Tensor, torch.Tensor]  # weight, bias
Tile = tuple[int, int, int, int, int]
Splits = int | Literal["natural"]

# A program computes rows × columns numbers, so many products deep at a time, with so many
# warps, in a pipeline of so many stages: rows, columns, depth, warps, stages. On sm_90 the
# buffers of tiles of 64 rows and more hold as many steps as stages, smaller ones one less.
TILES: tuple[Tile, ...] = (
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


def convert(
    module: nn.Module, splits: Splits = 1, dependent: bool = False
) -> "TwoLaunches":
    """Make an Inception module run in two launches.

    Parameters
    ----------
    module : models.Inception
        In eval mode, its norms folded or not, on any device, in one of `DTYPES`. It is
        left as it was: its weights are copied.
    splits : int or "natural"
        Of `TwoLaunches`.
    dependent : bool
        Of `TwoLaunches`.

    Returns
    -------
    TwoLaunches

    Raises
    ------
    FusionError
        For any other module, and where Triton is missing.

    Examples
    --------
    >>> module = models.Inception.from_table("3a").eval()
    >>> two = convert(module)  # doctest: +SKIP
    >>> x = torch.zeros(1, 192, 28, 28).to(memory_format=torch.channels_last)
    >>> two(x).shape  # doctest: +SKIP
    torch.Size([1, 256, 28, 28])
    """
    if programs.triton is None:
        raise FusionError(
            "triton: expected version 3.6 or newer, got none; "
            "pip install triton (Linux only)"
        )
    if not isinstance(module, models.Inception):
        raise FusionError(
            f"module: expected a models.Inception, got a {type(module).__name__}"
        )
    if module.training:
        raise FusionError(
            "module: expected eval mode, got training mode; call module.eval() first"
        )
    dtype = module.b1.conv.weight.dtype
    if dtype not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        raise FusionError(f"module: expected weights in one of {known}, got {dtype}")
    units = ("b1", "b3_reduce", "b5_reduce", "b3", "b5", "pool_proj")
    folded = [_folded(getattr(module, name)) for name in units]
    return TwoLaunches(*folded, splits=splits, dependent=dependent)


def natural_splits(
    depths: Sequence[int], widths: Sequence[int], pixels: int, tile: Sequence[int],
    processors: int,
) -> int:  # fmt: skip
    """Into how many parts to cut the depth of launch 2, so that no multiprocessor is idle.

    As many parts as make two programs for each multiprocessor, if a part of the deepest
    branch then has two steps or more. It is a rule of thumb and has not been measured.

    Parameters
    ----------
    depths, widths : sequence of int
        Inputs times taps, and output channels, of each branch.
    pixels : int
        Of all images together.
    tile : sequence of int
        A row of `TILES`.
    processors : int
        Multiprocessors of the GPU.

    Returns
    -------
    int

    Examples
    --------
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


def _tiles(pixels: int, widths: Sequence[int], tile: Sequence[int]) -> int:
    rows, columns, *_ = tile
    return -(-pixels // rows) * sum(-(-width // columns) for width in widths)


def _folded(unit: models.ConvUnit) -> Layer:
    """(weight, bias) of a ConvUnit's convolution, its norm folded in."""
    conv = unit.conv
    if isinstance(unit.bn, nn.BatchNorm2d):
        conv = fuse_conv_bn_eval(conv, unit.bn)
    bias = conv.bias if conv.bias is not None else conv.weight.new_zeros(len(conv.weight))
    return conv.weight.detach(), bias.detach()


def _by_taps(weight: torch.Tensor) -> torch.Tensor:
    """[K, C, k, k] -> [k · k · C, K]: for each tap a matrix, as the kernels read it."""
    taps = weight.permute(2, 3, 1, 0).reshape(-1, len(weight))
    return taps.clone(memory_format=torch.contiguous_format)


class TwoLaunches(nn.Module):
    """An Inception module that runs in two launches; `convert` makes one.

    x [N, c_in, H, W] in channels_last, on a CUDA device (on any under
    TRITON_INTERPRET=1) -> y [N, b1 + b3 + b5 + pool_proj, H, W] in channels_last.

    Attributes
    ----------
    tiles : pair of rows of `TILES`
        For the first launch and for the second.
    splits : int or "natural"
        Into how many parts launch 2 cuts the depth of a tile, each a program of its own: 1
        to `MOST_SPLITS`, or "natural" for `natural_splits`. With more than one it counts in
        memory of its own, so two calls must not run at the same time on two streams.
    dependent : bool
        Launch 2 starts while launch 1 still runs, and waits before it reads (programmatic
        dependent launch). It needs compute capability 9.0 or more.
    """

    first_weight: torch.Tensor
    first_bias: torch.Tensor
    b3_weight: torch.Tensor
    b3_bias: torch.Tensor
    b5_weight: torch.Tensor
    b5_bias: torch.Tensor
    proj_weight: torch.Tensor
    proj_bias: torch.Tensor
    arrived: torch.Tensor

    def __init__(
        self, b1: Layer, b3_reduce: Layer, b5_reduce: Layer, b3: Layer, b5: Layer,
        proj: Layer, *, splits: Splits = 1, dependent: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tiles: tuple[Tile, Tile] = TILES[0], TILES[0]
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check(x)
        n, _, height, width = x.shape
        image = height, width, n * height * width
        y = x.new_empty((n, height, width, sum(self.widths)))
        c_in, (c3, c5), (k1, k3, k5, kp) = self.c_in, self.reduced, self.widths
        scratch = [x.new_empty((image[-1], c)) for c in (c3, c5, c_in)]
        r3, r5, pooled = scratch
        grid, sizes = self._sized(1, x, (k1, c3, c5, c_in))
        programs._first[grid](
            x, self.first_weight, self.first_bias, y, r3, r5, pooled,
            *self._units(c_in, k1, c3, c5, sum(self.widths)),
            *image, **sizes,
        )  # fmt: skip
        grid, sizes = self._sized(2, x, (k3, k5, kp))
        parted, split = self._split(x, grid)
        programs._second[parted](
            r3, self.b3_weight, self.b3_bias, r5, self.b5_weight, self.b5_bias,
            pooled, self.proj_weight, self.proj_bias, y,
            *self._units(c3, k3, c5, k5, c_in, kp, k1, sum(self.widths)),
            *image, **split, **sizes,
        )  # fmt: skip
        return y.permute(0, 3, 1, 2)

    def _units(self, *widths: int) -> list[int]:
        return [width // self.unit for width in widths]

    def _sized(
        self, launch: int, x: torch.Tensor, widths: Sequence[int]
    ) -> tuple[tuple[int, int], dict[str, Any]]:
        """(the grid, what the kernel is compiled for) of a launch over these branches."""
        BM, BN, BK, warps, stages = self.tiles[launch - 1]
        pixels = x.numel() // self.c_in
        grid = -(-pixels // BM), sum(-(-width // BN) for width in widths)
        sizes: dict[str, Any] = {"BM": BM, "BN": BN, "BK": BK, "UNIT": self.unit}
        # The interpreter multiplies bfloat16 as if it were whole numbers.
        sizes["WIDEN"] = x.dtype == torch.bfloat16 and x.device.type != "cuda"
        # What has been Triton's default, and is no longer to be: a · b + c rounded once.
        sizes["enable_fp_fusion"] = True
        sizes["DEPENDENT"] = self.dependent
        if self.dependent and launch == 2:
            sizes["launch_pdl"] = True
        return grid, sizes | {"num_warps": warps, "num_stages": stages}

    def _split(
        self, x: torch.Tensor, grid: tuple[int, int]
    ) -> tuple[tuple[int, int, int], dict[str, Any]]:
        """(the grid, what the kernel is given) of launch 2, its depth cut into parts."""
        splits, tiles = self.splits_for(x), math.prod(grid)
        parts = arrived = None
        if splits > 1:
            rows, columns, *_ = self.tiles[1]
            parts = x.new_empty((tiles, splits, rows, columns), dtype=torch.float32)
            arrived = self.arrived
        return (*grid, splits), {"SPLITS": splits, "parts": parts, "arrived": arrived}

    def splits_for(self, x: torch.Tensor) -> int:
        """Into how many parts launch 2 cuts the depth of a tile for an input like x.

        Parameters
        ----------
        x : Tensor
            [N, c_in, H, W].

        Returns
        -------
        int
        """
        (c3, c5), (_, *widths) = self.reduced, self.widths
        pixels, tile = x.numel() // self.c_in, self.tiles[1]
        if _tiles(pixels, widths, tile) > COUNTERS:
            return 1
        if self.splits != "natural":
            return self.splits
        depths = 9 * c3, 25 * c5, self.c_in
        return natural_splits(depths, widths, pixels, tile, _processors(x.device))

    @property
    def splits(self) -> Splits:
        return self._parts

    @splits.setter
    def splits(self, splits: Splits) -> None:
        whole = type(splits) is int and 1 <= splits <= MOST_SPLITS
        if not whole and splits != "natural":
            expected = f"an int from 1 to {MOST_SPLITS} or 'natural'"
            raise FusionError(f"splits: expected {expected}, got {splits!r}")
        self._parts = splits

    def _check(self, x: torch.Tensor) -> None:
        """Refuse an input that the kernels would misread."""
        weight = self.first_weight
        right = x.ndim == 4 and x.shape[1] == self.c_in and x.numel() > 0
        right = right and x.dtype == weight.dtype
        if not right or not x.is_contiguous(memory_format=torch.channels_last):
            raise FusionError(
                f"x: expected [N, {self.c_in}, H, W] of {weight.dtype} in channels_last, "
                f"got {list(x.shape)} of {x.dtype} with strides {x.stride()}"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise FusionError(
                "x: expected a tensor without a gradient, got one that requires it; "
                "call under torch.no_grad()"
            )
        if x.device != weight.device:
            raise FusionError(
                f"x: expected the device of the weights, {weight.device}, got {x.device}"
            )
        if x.is_cuda and x.device.index != torch.cuda.current_device():
            raise FusionError(
                f"x: expected the current CUDA device, got {x.device}; "
                "call under torch.cuda.device(x.device)"
            )
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if x.device.type != "cuda" and not interpreted:
            raise FusionError(
                f"x: expected a CUDA device, got {x.device}; to interpret the kernels, set "
                "TRITON_INTERPRET=1 before Python starts"
            )
        if self.dependent and (interpreted or not _starts_early(x.device)):
            raise FusionError(
                "dependent: expected x on a CUDA device of compute capability 9.0 or more, "
                f"without Triton's interpreter, got {x.device}"
            )


def _processors(device: torch.device) -> int:
    """How many multiprocessors a CUDA device has; anything else counts as one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _starts_early(device: torch.device) -> bool:
    """Whether a device can start a launch before the one before it is done."""
    return torch.cuda.get_device_capability(device) >= (9, 0)
