"""The choice of tiles for an Inception module in two launches, by timing them all."""

import copy
import statistics
from collections.abc import Callable
from functools import partial

import torch

from .. import timing
from .two_launches import TILES, Tile, TwoLaunches

try:
    from triton.runtime.errors import OutOfResources, PTXASError
except ImportError:
    OutOfResources = PTXASError = ()


def tune(two: TwoLaunches, x: torch.Tensor, rounds: int = 20) -> list[dict[Tile, float]]:
    """Choose the tiles of a module in two launches for inputs like x, in place.

    All tiles of launch 1 are timed, then those of launch 2, then once more those of
    launch 1. Where two.splits is "natural", each tile is split as suits it. A tile for
    which a multiprocessor has not enough memory is left out.

    Parameters
    ----------
    two : TwoLaunches
        Its `tiles` are set.
    x : Tensor
        [N, c_in, H, W] in channels_last.
    rounds : int
        How often each tile is timed.

    Returns
    -------
    list of dict
        {tile: median µs}, one for each of the three benchmarks.
    """
    tables = []
    for launch in (1, 2, 1):
        samples = timing.benchmark(_variants(two, x, launch), x.device, rounds)
        table = {tile: statistics.median(times) for tile, times in samples.items()}
        two.tiles = _replaced(two.tiles, launch, min(table, key=table.__getitem__))
        tables.append(table)
    return tables


def _variants(two: TwoLaunches, x: torch.Tensor, launch: int) -> dict[Tile, Callable]:
    """{tile: two(x) with this tile for this launch}, of those that the device can run."""
    variants: dict[Tile, Callable] = {}
    for tile in TILES:
        one = copy.copy(two)
        one.tiles = _replaced(two.tiles, launch, tile)
        call = partial(one, x)
        try:
            # As a graph, and many times: launching takes the same time for every tile.
            variants[tile] = timing.graphed(call, times=20) if x.is_cuda else call
            variants[tile]()
        except (OutOfResources, PTXASError):
            variants.pop(tile, None)
    return variants


def _replaced(tiles: tuple[Tile, Tile], launch: int, tile: Tile) -> tuple[Tile, Tile]:
    return (tile, tiles[1]) if launch == 1 else (tiles[0], tile)
