"""Whole numbers from a seed, and an Inception module that computes with them exactly.

float32 holds every whole number up to 2^24. Where no sum can leave that range, nothing
is ever rounded, and all GPUs must give the same bits, in whatever order they add. Here
input, weights and norms are small whole numbers, or halves, chosen so that this holds
from the first product to the last norm; `bound` proves it, row by row. `exact.js` draws
the same numbers in a page.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional

from .. import models
from ..errors import FusionError

# Channels that fill no tile, pixels that fill none either: for tests.
RAGGED: dict[str, tuple[int, ...]] = {"ragged": (40, 9, 36, 8, 44, 4, 12, 8)}
IMAGES = 5  # so many are different; a larger batch repeats them
# Three siblings of no module, which make more channels than they read: [c_in, widths].
WIDENING: dict[str, tuple[int, ...]] = {"widening": (64, 128, 128, 128)}
UNITS = ("b1", "b3_reduce", "b3", "b5_reduce", "b5", "pool_proj")
INPUT, WEIGHT, SHIFT = 4, 1, 8  # the largest of each, and the smallest with a minus
EXACT = 2**24


def mix(h: ArrayLike) -> NDArray[np.uint32]:
    """The finaliser of MurmurHash3 (Appleby 2011), entry by entry.

    Parameters
    ----------
    h : array of uint32
        Any shape; a scalar counts as one entry.

    Returns
    -------
    array of uint32

    Examples
    --------
    >>> [int(h) for h in mix(np.array([0, 1, 2]))]
    [0, 1364076727, 821347078]
    """
    x = np.array(h, np.uint32, ndmin=1)  # of a scalar NumPy would report the overflow
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def draw(stream: int, count: int, low: int, high: int) -> NDArray[np.int64]:
    """Whole numbers, the same for the same stream.

    Parameters
    ----------
    stream : int
        Which sequence of numbers.
    count : int
        How many.
    low, high : int
        The smallest and the largest that may come.

    Returns
    -------
    array of int64
        [count].

    Examples
    --------
    >>> draw(1, 8, -4, 4).tolist()
    [2, -3, -3, -1, -3, -4, 2, -1]
    """
    key = mix(stream + 1)
    h = mix(np.arange(count, dtype=np.uint32) + key).astype(np.uint64)
    return low + ((h * np.uint64(high - low + 1)) >> np.uint64(32)).astype(np.int64)


def table(row: str) -> tuple[tuple[int, ...], int]:
    """(widths, size) of a row of models.TABLE, or of the ragged module for tests."""
    rows = models.TABLE | RAGGED
    if row not in rows:
        raise FusionError(f"row: expected one of {', '.join(rows)}, got {row!r}")
    c_in, size, *widths = rows[row]
    return (c_in, *widths), size


def module(row: str) -> models.Inception:
    """The row's models.Inception in float64, in eval mode, all its numbers drawn.

    A weight is -1, 0 or 1. A norm multiplies by 1 or 1/2 and adds -8 to 8; its own mean is
    0, its variance 1 and its epsilon 0.
    """
    inception = models.Inception(table(row)[0]).double().eval()
    with torch.no_grad():
        for place, name in enumerate(UNITS):
            conv, bn = getattr(inception, name).conv, getattr(inception, name).bn
            k, c, side, _ = conv.weight.shape
            streams = range(3 * place + 1, 3 * place + 4)
            weight = draw(streams[0], side * side * c * k, -WEIGHT, WEIGHT)
            weight = weight.reshape(side, side, c, k)  # as it lies in WGSL's memory
            conv.weight.copy_(torch.from_numpy(weight).permute(3, 2, 0, 1))
            bn.weight.copy_(torch.from_numpy((1 + draw(streams[1], k, 0, 1)) / 2))
            bn.bias.copy_(torch.from_numpy(draw(streams[2], k, -SHIFT, SHIFT)))
            bn.eps = 0.0
    return inception


def images(row: str, batch: int = 1) -> torch.Tensor:
    """Input for `module(row)`: [N, C, H, W] in float64, whole numbers from -4 to 4."""
    (c, *_), size = table(row)
    count = min(batch, IMAGES) * size * size * c
    x = torch.from_numpy(draw(0, count, -INPUT, INPUT)).double()
    x = x.reshape(-1, size, size, c).permute(0, 3, 1, 2)  # [min(N, 5), C, H, W]
    return x[torch.arange(batch) % IMAGES].contiguous()


def bound(row: str) -> tuple[int, int]:
    """How large a sum, or a part of one, can become.

    Parameters
    ----------
    row : str
        Of models.TABLE, or "ragged".

    Returns
    -------
    tuple of int
        For the first 1×1s, and for 3×3 and 5×5, in units of a number's last binary digit:
        1/2 after one norm, 1/4 after two. Below 2^24 a sum is exact in float32, in any
        order, folded or not.

    Notes
    -----
    By hand:

        1×1   C products of at most 4 · 1, times at most 1, plus 8: at most 4C + 8
        3×3   9 R products with at most that; a norm of 1/2 makes quarters of the same
              number of digits, a norm of 1 leaves halves; plus 8 is plus 32 quarters

    The pooled 1×1 is like the other 1×1s, since a maximum is one of the inputs.

    Examples
    --------
    >>> bound("3a"), bound("5b")
    ((1552, 1340960), (6672, 11529248))
    """
    (c, _, r3, _, r5, _, _), _ = table(row)
    first = 2 * (c * INPUT * WEIGHT + SHIFT)
    return first, max(9 * r3, 25 * r5) * WEIGHT * first + 4 * SHIFT


def expected(row: str) -> NDArray[np.float64]:
    """The module's result for one image, by PyTorch in float64: [H, W, K] as NumPy."""
    with torch.no_grad():
        return module(row)(images(row))[0].permute(1, 2, 0).contiguous().numpy()


def siblings(row: str) -> tuple[int, ...]:
    """The three 1×1 convolutions that read the row's input.

    Parameters
    ----------
    row : str
        Of models.TABLE, "ragged", or "widening", whose convolutions each have twice as many
        channels as they read.

    Returns
    -------
    tuple of int
        (c_in, *widths).

    Raises
    ------
    FusionError
        For another row.

    Examples
    --------
    >>> siblings("3a"), siblings("widening")
    ((192, 64, 96, 16), (64, 128, 128, 128))
    """
    if row in WIDENING:
        return WIDENING[row]
    (c, b1, r3, _, r5, *_), _ = table(row)
    return c, b1, r3, r5


def stage(row: str, side: int) -> NDArray[np.float64]:
    """What `siblings(row)` make of one image, by PyTorch in float64.

    The numbers are drawn as for `module`, without norms: a bias is -8 to 8.

    Parameters
    ----------
    row : str
        As for `siblings`, which also says what is refused.
    side : int
        Height and width of the image.

    Returns
    -------
    array
        [side, side, sum of widths].

    Examples
    --------
    >>> stage("widening", 7)[0, 0, :4].tolist()
    [10.0, 10.0, -40.0, -26.0]
    """
    c, *sizes = siblings(row)
    x = torch.from_numpy(draw(0, side * side * c, -INPUT, INPUT)).double()
    x = x.reshape(1, side, side, c).permute(0, 3, 1, 2)
    parts = []
    for place, k in enumerate(sizes):
        drawn = draw(3 * place + 1, c * k, -WEIGHT, WEIGHT).reshape(c, k).T
        bias = draw(3 * place + 3, k, -SHIFT, SHIFT)
        weight = torch.from_numpy(drawn).double().reshape(k, c, 1, 1)
        parts.append(functional.conv2d(x, weight, torch.from_numpy(bias).double()))
    return torch.cat(parts, 1)[0].permute(1, 2, 0).contiguous().numpy()


def digest(values: ArrayLike) -> str:
    """Eight hexadecimal digits that change with any entry, or with two that are swapped.

    Parameters
    ----------
    values : array
        Quarters at the finest, in the order of memory.

    Returns
    -------
    str

    Raises
    ------
    FusionError
        For an entry that is no quarter.

    Examples
    --------
    >>> digest(np.array([1.0, 2.25])), digest(np.array([2.25, 1.0]))
    ('a9426e44', '42f1aaed')
    """
    quarters = 4 * np.asarray(values, np.float64).ravel()
    if not np.all(quarters == np.round(quarters)):
        raise FusionError("values: expected multiples of 1/4, got an entry that is none")
    place = np.arange(quarters.size, dtype=np.uint32)
    h = mix(mix(place) ^ quarters.astype(np.int64).astype(np.uint32))
    return f"{int(h.sum(dtype=np.uint64)) % 2**32:08x}"
