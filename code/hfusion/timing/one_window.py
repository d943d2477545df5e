"""What it costs to give siblings of several windows one window that holds them all."""

import math
from collections.abc import Sequence

from ..errors import FusionError
from .cost import Ceilings, Kernel, product

Windows = Sequence[tuple[int, int]]


def inflation(sizes: Sequence[int], windows: Windows) -> float:
    """How many times the multiply-adds, if siblings get one window that holds them all.

        w Σ K_i / Σ w_i K_i

    Parameters
    ----------
    sizes : sequence of int
        Output channels K_i of each sibling.
    windows : sequence of (int, int)
        Height and width of each sibling's window, which has w_i taps; the one that holds
        all has w.

    Returns
    -------
    float

    Raises
    ------
    FusionError
        Unless there is one window for each size.

    Examples
    --------
    >>> inflation((64, 64), ((1, 1), (3, 3)))
    1.8
    >>> inflation((1, 1), ((1, 7), (7, 1)))
    7.0
    """
    _as_many(sizes, windows)
    separate = sum(
        size * math.prod(sides) for size, sides in zip(sizes, windows, strict=True)
    )
    return sum(sizes) * math.prod(common(windows)) / separate


def common(windows: Windows) -> tuple[int, ...]:
    """The smallest window that holds all of these: the largest side along each axis.

    >>> common(((1, 7), (7, 1)))
    (7, 7)
    """
    return tuple(map(max, zip(*windows, strict=True)))


def embedded(
    sizes: Sequence[int], windows: Windows,
    c_in: int, positions: int, item_bytes: int,
) -> dict[str, list[Kernel]]:  # fmt: skip
    """Siblings with windows of their own, and all in one window.

    Parameters
    ----------
    sizes, windows
        As for `inflation`.
    c_in, positions, item_bytes
        As for `cost.product`.

    Returns
    -------
    dict
        {"separate" or "embedded": list of Kernel}.

    Examples
    --------
    >>> ways = embedded((8, 8), ((1, 1), (3, 3)), 16, 784, 4)
    >>> [kernel.flops for kernel in ways["separate"] + ways["embedded"]]
    [206976, 1812608, 3625216]
    """
    _as_many(sizes, windows)
    each = zip(sizes, windows, strict=True)
    return {
        "separate": [
            product(size, c_in, positions, item_bytes, sides) for size, sides in each
        ],
        "embedded": [product(sum(sizes), c_in, positions, item_bytes, common(windows))],
    }


def break_even(
    sizes: Sequence[int], windows: Windows, c_in: int, ceilings: Ceilings
) -> float:
    """Up to how many positions embedding pays, where launches and arithmetic add up.

    Nothing else counts: the launches saved take as long as the extra multiply-adds.

        positions = (B − 1) ℓ · rate / (2 C (w Σ K_i − Σ w_i K_i))

    Parameters
    ----------
    sizes, windows, c_in
        As for `embedded`.
    ceilings : Ceilings
        Of the machine.

    Returns
    -------
    float
        Pixels of all images together; inf where no multiply-adds are added.

    Raises
    ------
    FusionError
        For a machine on which launches and arithmetic overlap.

    Examples
    --------
    >>> slow = Ceilings(1e9, 1e9, launch_s=1e-6, kernel_s=0, overlaps=False)
    >>> break_even((1, 1), ((1, 1), (3, 3)), 1, slow)  # 1000 FLOPs, 16 each
    62.5
    """
    if ceilings.overlaps:
        raise FusionError("ceilings: expected a machine where times add up, got overlaps")
    ways = embedded(sizes, windows, c_in, 1, 1)
    flops = {way: sum(kernel.flops for kernel in ways[way]) for way in ways}
    extra = flops["embedded"] - flops["separate"]
    saved_s = (len(sizes) - 1) * ceilings.launch_s
    return saved_s * ceilings.flops_per_s / extra if extra else math.inf


def _as_many(sizes: Sequence[int], windows: Windows) -> None:
    if not sizes or len(sizes) != len(windows):
        raise FusionError(
            f"windows: expected one for each of {len(sizes)} sizes, got {len(windows)}"
        )
