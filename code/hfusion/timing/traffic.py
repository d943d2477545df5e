"""What an Inception module in two launches moves, at least and as its programs ask."""

import math
from collections.abc import Sequence

from .cost import Kernel, merged, product


def in_two(widths: Sequence[int], positions: int, item_bytes: int) -> tuple[Kernel, Kernel]:
    """An Inception module in two launches, each reading or writing a number once.

    Parameters
    ----------
    widths : sequence of int
        A row of the paper's table: channels in, 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5,
        pool proj.
    positions : int
        Pixels of all images together.
    item_bytes : int
        Of one number.

    Returns
    -------
    tuple of Kernel

    Examples
    --------
    >>> widths = (192, 64, 96, 128, 16, 32, 32)
    >>> first, second = in_two(widths, 28 * 28, item_bytes=2)
    >>> first.bytes, second.bytes
    (946016, 1037184)
    """
    c_in, k1, c3, k3, c5, k5, kp = widths
    stacked = product(k1 + c3 + c5, c_in, positions, item_bytes)
    pooled = Kernel(0, c_in * positions * item_bytes)  # of its input, which is read already
    parts = (
        product(k3, c3, positions, item_bytes, (3, 3)),
        product(k5, c5, positions, item_bytes, (5, 5)),
        product(kp, c_in, positions, item_bytes),
    )
    return merged(stacked, pooled), merged(*parts)


def least(widths: Sequence[int], positions: int, item_bytes: int) -> Kernel:
    """An Inception module, if only its input, weights, biases and output were moved.

    Its arguments are those of `in_two`.

    >>> least((192, 64, 96, 128, 16, 32, 32), 28 * 28, item_bytes=2).bytes
    1029856
    """
    whole = merged(*in_two(widths, positions, item_bytes))
    c_in, _, c3, _, c5, *_ = widths
    passed_on = 2 * (c3 + c5 + c_in) * positions * item_bytes
    return Kernel(whole.flops, whole.bytes - passed_on)


def asked(
    widths: Sequence[int], image: tuple[int, int], item_bytes: int,
    tile: Sequence[int], batch: int = 1,
) -> int:  # fmt: skip
    """Bytes that the programs of an Inception module in two launches load and store.

    A number counts each time a program asks for it, wherever it then comes from; what is
    outside of the image is not asked for. `in_two` counts it once for each launch.

    Parameters
    ----------
    widths, item_bytes
        As for `in_two`.
    image : (int, int)
        Height and width.
    tile : sequence of int
        First the rows (pixels) and columns (channels) of a program, as in
        `two_launches.TILES`.
    batch : int
        Images.

    Returns
    -------
    int

    Examples
    --------
    >>> widths = (192, 64, 96, 128, 16, 32, 32)
    >>> asked(widths, (28, 28), item_bytes=4, tile=(32, 32))
    38981824
    """
    c_in, k1, c3, k3, c5, k5, kp = widths
    rows, columns, *_ = tile
    pixels = batch * math.prod(image)

    def looks(side: int) -> int:  # of all windows, at pixels of the image
        return batch * math.prod(_inside(length, side) for length in image)

    numbers = c_in * (looks(3) + pixels)  # the pooling
    siblings = [(c_in, width, 1) for width in (k1, c3, c5)]
    for depth, width, side in (*siblings, (c3, k3, 3), (c5, k5, 5), (c_in, kp, 1)):
        numbers += -(-width // columns) * depth * looks(side)
        numbers += -(-pixels // rows) * (side * side * depth + 1) * width  # and the bias
        numbers += width * pixels
    return numbers * item_bytes


def _inside(length: int, side: int) -> int:
    """How many taps of a line's windows lie on the line, window by window."""
    half = side // 2
    return sum(max(length - abs(shift), 0) for shift in range(-half, half + 1))
