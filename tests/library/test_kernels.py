"""hfusion.kernels in Triton's interpreter: two launches, and every number in its place.

conftest.py switches the interpreter on where there is no CUDA device.
"""

import itertools
import os
import subprocess
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfusion import models, timing
from hfusion.errors import FusionError
from hfusion.kernels import programs, tuning, two_launches
from hfusion.timing import traffic

triton = pytest.importorskip("triton", reason="Triton, which is for Linux, is missing")
tl = triton.language

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# How far from float64 a result of two layers may be, as a share of the largest.
SHARE = {torch.float32: 2e-6, torch.float16: 8e-3, torch.bfloat16: 6e-2}
TILE = (32, 32, 32, 4, 2)


@pytest.fixture(autouse=True)
def poisoned():
    """What nobody has written to is NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def module_of(widths, dtype=torch.float32, batch_norm=True, seed=0):
    module = models.Inception(widths, batch_norm)
    return models.randomise(module, seed).eval().to(DEVICE, dtype)


def image(n, c_in, height, wide, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c_in, height, wide, generator=generator).to(DEVICE, dtype)
    return x.to(memory_format=torch.channels_last)


def check(widths, shape, dtype=torch.float32, tiles=(TILE, TILE), splits=1, **more):
    """Against the module itself, in float64 from the same rounded weights."""
    module, x = (
        module_of(widths, dtype, **more),
        image(shape[0], widths[0], *shape[1:], dtype),
    )
    with torch.no_grad():
        two = two_launches.convert(module, splits)
        two.tiles = tiles
        y = two(x)
        assert not two.arrived.any()
        expected = module.double()(x.double())
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    timing.near(y, expected, SHARE[dtype])
    return y, expected


# (c_in, b1, b3_reduce, b3, b5_reduce, b5, pool_proj), (N, H, W)
CASES = [
    ((1, 1, 1, 1, 1, 1, 1), (1, 1, 1)),  # as small as can be
    ((1, 1, 1, 1, 1, 1, 1), (3, 4, 5)),
    ((16, 16, 16, 16, 16, 16, 16), (1, 4, 4)),  # whole tiles
    ((17, 15, 33, 31, 1, 2, 47), (1, 3, 5)),  # ragged ones
    ((40, 7, 65, 9, 33, 70, 5), (2, 6, 3)),  # wider than a tile
    ((24, 8, 16, 40, 24, 8, 32), (2, 3, 4)),  # counted in eights, not in sixteens
    ((8, 4, 4, 4, 4, 4, 4), (1, 1, 9)),  # an image of one line
    ((8, 4, 4, 4, 4, 4, 4), (1, 9, 1)),
    ((8, 4, 4, 4, 4, 4, 4), (5, 2, 2)),  # windows wider than the image
    ((8, 4, 4, 4, 4, 4, 4), (2, 11, 13)),
]
PLACES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize(("widths", "shape"), CASES)
def test_shapes_by_hand(widths, shape, kind):
    check(widths, shape, PLACES[kind])


@pytest.mark.parametrize("row", models.TABLE)
def test_the_nine_modules(row):
    c_in, _, *widths = models.TABLE[row]
    check((c_in, *widths), (1, 3, 4), tiles=((16, 64, 64, 4, 2), (16, 32, 128, 4, 2)))


@pytest.mark.parametrize("tile", two_launches.TILES)
def test_every_tile_of_the_table(tile):
    widths, shape = (20, 9, 18, 7, 5, 17, 11), (2, 5, 7)
    check(widths, shape, tiles=(tile, TILE))
    check(widths, shape, tiles=(TILE, tile))


width = st.integers(1, 12)
side = st.integers(1, 7)


@settings(max_examples=25 if os.environ.get("HFUSION_TESTS") == "all" else 6)
@given(
    widths=st.tuples(*[width] * 7),
    times=st.sampled_from((1, 2, 8)),
    shape=st.tuples(st.integers(1, 3), side, side),
    dtype=st.sampled_from(list(SHARE)),
    batch_norm=st.booleans(),
    splits=st.sampled_from((1, 2, 3, 5)),
)
def test_any_shape(widths, times, shape, dtype, batch_norm, splits):
    widths = [times * width for width in widths]
    check(widths, shape, dtype, batch_norm=batch_norm, splits=splits)


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy, of the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_goes_where_it_goes_in_the_module(value):
    module, x = module_of((6, 5, 4, 5, 3, 5, 5)), image(2, 6, 5, 5)
    x[0, 2, 1, 1] = value
    with torch.no_grad():
        y = two_launches.convert(module)(x).cpu()
        expected = module.cpu()(x.cpu())  # cuDNN's algorithms may spread what is infinite
    for same in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(same(y), same(expected))
    assert not expected[0].isfinite().all()
    assert expected[1].isfinite().all()


@pytest.mark.parametrize("place", range(7))
def test_one_width_that_is_no_multiple_of_eight(place):
    widths = [16] * 7
    widths[place] = 20
    check(widths, (1, 2, 3))


# A window, tap by tap.


@triton.jit
def window_of(at, shifts, side, height, wide, positions):
    rows, taps = tl.arange(0, 128), tl.arange(0, 2**13)
    tl.store(at + rows, programs._window(rows, side, height, wide, positions))
    tl.store(shifts + taps, programs._shifted(taps, side, wide))


@pytest.mark.skipif(DEVICE == "cuda", reason="only the interpreter can be asked")
@pytest.mark.parametrize(("widths", "shape"), CASES)
def test_the_bytes_asked_for_are_those_that_the_programs_ask_for(
    widths, shape, monkeypatch
):
    """Every load and store of the interpreter, less what a mask keeps out."""
    from triton.runtime.interpreter import InterpreterBuilder

    asked = []

    def watch(name, at):
        original = getattr(InterpreterBuilder, name)

        def watched(self, *arguments):
            asked.append(arguments[at].data.sum())
            return original(self, *arguments)

        monkeypatch.setattr(InterpreterBuilder, name, watched)

    watch("create_masked_load", 1)
    watch("create_masked_store", 2)
    two = two_launches.convert(module_of(widths))
    tile = (32, 16, 32, 4, 2)
    two.tiles = tile, tile
    n, *sides = shape
    with torch.no_grad():
        two(image(n, widths[0], *sides))
    assert 4 * sum(asked) == traffic.asked(widths, sides, 4, tile, batch=n)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 1, 6), (3, 6, 1), (2, 7, 9), (9, 2, 3)])
@pytest.mark.parametrize("side", [1, 3, 5])
def test_a_window_has_the_taps_that_lie_in_the_image(side, size):
    n, height, wide = size
    at = torch.zeros(128, dtype=torch.int32, device=DEVICE)
    shifts = torch.zeros(2**13, dtype=torch.int32, device=DEVICE)
    window_of[(1,)](at, shifts, side, height, wide, n * height * wide)
    half, found = side // 2, at.tolist()
    # Also beyond the last tap: a step may go further than the depth.
    for tap, shift in enumerate(shifts.tolist()):
        down, across = divmod(tap, side)
        assert shift == (down - half) * wide + across - half
    for row, bits in enumerate(found):
        line, column = row // wide % height, row % wide
        inside = [
            0 <= line + tap // side - half < height
            and 0 <= column + tap % side - half < wide
            for tap in range(side * side)
        ]
        fits = row < n * height * wide
        assert bits == sum(1 << tap for tap in range(side * side) if inside[tap] and fits)


# The depth of launch 2, cut into parts.


def in_parts():
    """Every case in 2, 3 and 5 parts; the two largest take long."""
    for case, splits in itertools.product(range(len(CASES)), (2, 3, 5)):
        large = case in (4, 9) and splits != 3
        yield pytest.param(case, splits, marks=[pytest.mark.slow] * large)


@pytest.mark.parametrize(("case", "splits"), [*in_parts()])
def test_in_parts(case, splits):
    kind = list(SHARE)[(case + splits) % 3]
    check(*CASES[case], kind, ((16, 16, 16, 1, 1), (16, 16, 16, 1, 1)), splits)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("splits", [1, 2, 3, 5, 16])
def test_in_parts_of_every_dtype(kind, splits):
    """The 3×3 has 6 steps of 32, the 5×5 has 4, and the pooled 1×1 only one."""
    check((17, 9, 19, 18, 5, 33, 6), (2, 3, 5), PLACES[kind], splits=splits)


@pytest.mark.parametrize("tile", two_launches.TILES)
def test_every_tile_in_parts(tile):
    check((20, 9, 18, 7, 25, 17, 11), (2, 5, 7), tiles=(TILE, tile), splits=3)


def test_one_call_leaves_nothing_to_the_next():
    """Calls in a row, with more and fewer tiles and parts in between."""
    module = module_of((17, 9, 19, 18, 5, 33, 6))
    two = two_launches.convert(module, splits=3)
    two.tiles = TILE, TILE
    small, large = image(1, 17, 3, 4), image(3, 17, 6, 5, seed=1)
    first = two(small), two(large)
    assert torch.equal(two(small), first[0])
    two.splits = 5
    timing.near(two(large), module.double()(large.double()), 2e-6)
    two.splits = 3
    assert torch.equal(two(large), first[1])
    assert torch.equal(two(small), first[0])
    assert not two.arrived.any()


@triton.jit
def one_part(x, w, bias, y, part, parts, arrived, SPLITS: tl.constexpr):
    programs._conv(
        x, w, bias, y, tl.program_id(1), 1, 48, 32, 32, 32, 1, 32, 32, 16, 16, 16,
        False, 1, part, parts, arrived, SPLITS,
    )  # fmt: skip


def parts_run(order):
    """(y, parts, arrived) of 2 · 2 tiles, after some of their three parts, one after the
    other for all tiles: the sums of a row are ±10⁸ and then a number of its own.
    """
    x = torch.zeros(32, 48, device=DEVICE)
    x[:, 0], x[:, 16], x[:, 32] = 1e8, -1e8, torch.arange(32.0)
    w, bias = torch.ones(48, 32, device=DEVICE), torch.arange(32.0, device=DEVICE)
    y, parts = torch.empty(32, 32, device=DEVICE), torch.empty(4, 3, 256, device=DEVICE)
    arrived = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    for part in order:
        one_part[(2, 2)](x, w, bias, y, part, parts, arrived, 3)
    return y, parts, arrived.tolist()


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_parts_are_added_in_one_order_whichever_is_last(order):
    """10⁸ - 10⁸ + 1 is 1; from the other end 1 - 10⁸ + 10⁸ is 0, in float32."""
    y, _, arrived = parts_run(order)
    number = torch.arange(32.0, device=DEVICE)
    assert torch.equal(y, number[:, None] + number)
    assert arrived == [0] * 4


@pytest.mark.parametrize("order", [(0,), (2,), (0, 1), (2, 1)])
def test_nothing_is_written_before_the_last_part(order):
    y, parts, arrived = parts_run(order)
    for part in range(3):
        assert parts[:, part].isnan().all().item() is (part not in order)
    assert arrived == [len(order)] * 4
    assert y.isnan().all()


PROCESSORS = 132  # of an H200


@pytest.mark.parametrize("tile", two_launches.TILES)
@pytest.mark.parametrize("row", models.TABLE)
def test_natural_splits_fill_a_gpu_and_no_more(row, tile):
    c_in, size, _, c3, k3, c5, k5, kp = models.TABLE[row]
    depths, widths = (9 * c3, 25 * c5, c_in), (k3, k5, kp)
    steps = -(-max(depths) // tile[2])
    for pixels in (1, size**2, 8 * size**2, 32 * size**2):
        tiles = -(-pixels // tile[0]) * sum(-(-width // tile[1]) for width in widths)
        splits = two_launches.natural_splits(depths, widths, pixels, tile, PROCESSORS)
        assert splits == 1 or splits * tiles <= 2 * PROCESSORS
        assert 1 <= splits <= two_launches.MOST_SPLITS
        share = -(-steps // splits)
        assert share >= min(2, steps)
        assert (splits - 1) * share < steps  # the last part has a step
        # One step fewer a part would be too many programs, or parts of one step.
        more = -(-steps // max(share - 1, 1))
        assert share <= 2 or more > 16 or more * tiles > 2 * PROCESSORS


def launches_of(monkeypatch, two, x):
    """[(grid, what is given by name)] of a call, without computing."""
    launched = []

    class Noted:
        def __getitem__(self, grid):
            return lambda *args, **given: launched.append((grid, given))

    monkeypatch.setattr(programs, "_first", Noted())
    monkeypatch.setattr(programs, "_second", Noted())
    two(x)
    return launched


def test_natural_splits_are_those_of_the_device(monkeypatch):
    """5a, as natural_splits works it out by hand."""
    module, x = models.Inception.from_table("5a").eval().to(DEVICE), image(1, 832, 7, 7)
    two = two_launches.convert(module, "natural")
    assert two_launches._processors(x.device) == 1 or DEVICE == "cuda"
    monkeypatch.setattr(two_launches, "_processors", lambda device: PROCESSORS)
    _, (grid, given) = launches_of(monkeypatch, two, x)
    assert (grid, given["SPLITS"]) == ((2, 18, 6), 6)
    assert given["parts"].shape == (36, 6, 32, 32)
    assert given["parts"].dtype == torch.float32
    assert given["arrived"] is two.arrived


def test_where_nothing_is_split_nothing_is_set_aside(monkeypatch):
    two = two_launches.convert(module_of((6, 5, 4, 5, 3, 5, 5)))
    _, (grid, given) = launches_of(monkeypatch, two, image(1, 6, 4, 5))
    assert grid[2] == given["SPLITS"] == 1
    assert given["parts"] is given["arrived"] is None


@pytest.mark.parametrize(("counters", "splits"), [(6, 3), (5, 1)])
def test_more_tiles_than_counters_are_not_split(monkeypatch, counters, splits):
    """20 pixels are 2 tiles of 16, and 5, 5, 5 columns 3."""
    monkeypatch.setattr(two_launches, "COUNTERS", counters)
    two = two_launches.convert(module_of((6, 5, 4, 5, 3, 5, 5)), splits=3)
    two.tiles = TILE, (16, 16, 16, 1, 1)
    _, (grid, _) = launches_of(monkeypatch, two, image(1, 6, 4, 5))
    assert grid == (2, 3, splits)


@pytest.mark.parametrize("splits", [0, 17, True, 2.0, "none", None])
def test_splits_that_do_not_fit_are_refused(splits):
    module = module_of((6, 5, 4, 5, 3, 5, 5))
    with pytest.raises(FusionError, match="splits: expected an int from 1 to 16 or 'natur"):
        two_launches.convert(module, splits)
    two = two_launches.convert(module, 2)
    with pytest.raises(FusionError, match="splits: expected an int"):
        two.splits = splits
    assert two.splits == 2


# Launch 2 before launch 1 is done.


@pytest.mark.parametrize("dependent", [False, True])
def test_only_launch_2_is_dependent_and_only_if_asked(monkeypatch, dependent):
    module = module_of((6, 5, 4, 5, 3, 5, 5))
    two = two_launches.convert(module, dependent=dependent)
    monkeypatch.setattr(two, "_check", lambda x: None)
    launched = launches_of(monkeypatch, two, image(1, 6, 4, 5))
    assert [given["DEPENDENT"] for _, given in launched] == [dependent] * 2
    assert [given.get("launch_pdl", False) for _, given in launched] == [False, dependent]


@pytest.mark.parametrize("device", [(8, 9), (9, 0), (10, 0)])
def test_a_device_that_cannot_start_early_is_refused(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: device)
    assert two_launches._starts_early(torch.device("cuda")) is (device >= (9, 0))
    two = two_launches.convert(module_of((6, 5, 4, 5, 3, 5, 5)), dependent=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(FusionError, match="dependent: expected x on a CUDA device of comp"):
        two(image(1, 6, 4, 5))


# Numbers beyond the 2**31st; memory that nobody touches costs nothing.


@pytest.fixture
def unfilled():
    """Memory as it comes: gigabytes that are set aside, and not written."""
    torch.use_deterministic_algorithms(False)


@triton.jit
def conv_far(x, w, bias, y, first, stride, c_in, BM: tl.constexpr, BK: tl.constexpr):
    if tl.program_id(0) == first // BM:
        programs._conv(
            x, w, bias, y, 0, 1, c_in, 16, 16, stride, 1, first + 3, first + 3,
            BM, 16, BK, False, 1,
        )  # fmt: skip


@triton.jit
def pool_far(x, y, channels):
    programs._pool(x, y, 0, channels, 1, 3, 3, 16, 16)


def halves(*shape):
    return torch.empty(shape, dtype=torch.float16, device=DEVICE)


def test_a_convolution_writes_far_away(unfilled):
    stride = 2**30 + 32  # the third row begins beyond
    x = torch.arange(3.0, device=DEVICE)[:, None].expand(3, 16).half().contiguous()
    y, bias = halves(2 * stride + 16), torch.ones(16, device=DEVICE)
    w = torch.eye(16, dtype=torch.float16, device=DEVICE)
    conv_far[(1,)](x, w, bias, y, 0, stride, 16, BM=16, BK=16)
    for row in range(3):
        assert y[row * stride :][:16].tolist() == [row + 1.0] * 16


def test_a_convolution_reads_far_away(unfilled):
    c_in, first = 4096, 2**19
    size = 512 if DEVICE == "cpu" else 64  # few programs for the interpreter
    x, y = halves(first + 3, c_in), halves(first + 3, 16)
    x[first:] = torch.arange(3.0)[:, None]
    w = torch.full((c_in, 16), 2.0**-12, dtype=torch.float16, device=DEVICE)
    bias = torch.ones(16, device=DEVICE)
    grid = (first // size + 1,)
    conv_far[grid](x, w, bias, y, first, 16, c_in, BM=size, BK=size)
    for row in range(3):
        assert y[first + row].tolist() == [row + 1.0] * 16


def test_a_pooling_reads_and_writes_far_away(unfilled):
    channels = 2**30 + 32
    x, y = halves(3, channels), halves(3, channels)
    x[:, :16] = torch.arange(3.0)[:, None]
    pool_far[(1,)](x, y, channels)
    assert y[:, :16].tolist() == [[1.0] * 16, [2.0] * 16, [2.0] * 16]


def test_the_check_sees_a_branch_in_the_wrong_place():
    y, expected = check((6, 5, 4, 5, 3, 5, 5), (1, 3, 3))
    for a, b in itertools.combinations(range(0, 20, 5), 2):
        swapped = y.clone()
        swapped[:, a : a + 5], swapped[:, b : b + 5] = y[:, b : b + 5], y[:, a : a + 5]
        with pytest.raises(timing.Disagreement):
            timing.near(swapped, expected, SHARE[torch.float32])


# Two launches, counted.


class Spy:
    """In place of a kernel: notes its launches and computes nothing."""

    def __init__(self, launched):
        self.launched = launched

    def __getitem__(self, grid):
        return lambda *args, **sizes: self.launched.append(grid)


def test_two_launches_and_no_other_operator(monkeypatch):
    launched = []
    two, x = two_launches.convert(module_of((6, 5, 4, 5, 3, 5, 5))), image(2, 6, 5, 5)
    for name in ("_first", "_second"):
        monkeypatch.setattr(programs, name, Spy(launched))
    two.tiles = (16, 16, 16, 1, 1), (32, 16, 16, 1, 1)
    two(x)
    # 50 pixels are 4 or 2 tiles; 5, 4, 3 channels and 6 pooled are 4; 5, 5, 5 are 3.
    assert launched == [(4, 4), (2, 3, 1)]
    torch.use_deterministic_algorithms(False)  # whose poison is an operator
    assert timing.count_launches(lambda: two(x)).count == 0


# The choice of tiles.


def test_the_fastest_tile_of_each_launch_is_kept(monkeypatch):
    """Nothing is timed: the time of a variant is made up from its tiles."""
    best = two_launches.TILES[3], two_launches.TILES[1]

    def made_up(variants, device, rounds):
        return {
            tile: [float(one.func.tiles[0] != best[0]) + (one.func.tiles[1] != best[1])]
            for tile, one in variants.items()
        }

    monkeypatch.setattr(timing, "benchmark", made_up)
    two, x = two_launches.convert(module_of((6, 5, 4, 5, 3, 5, 5))), image(1, 6, 3, 3)
    if DEVICE == "cuda":
        monkeypatch.setattr(timing, "graphed", lambda call, times: call)
    tables = tuning.tune(two, x)
    assert two.tiles == best
    assert [list(table) for table in tables] == [list(two_launches.TILES)] * 3
    assert tables[0] == {tile: 1.0 + (tile != best[0]) for tile in two_launches.TILES}
    assert tables[1] == {tile: float(tile != best[1]) for tile in two_launches.TILES}
    assert tables[2] == {tile: float(tile != best[0]) for tile in two_launches.TILES}


def test_a_tile_that_does_not_fit_the_device_is_left_out(monkeypatch):
    forward = two_launches.TwoLaunches.forward

    def small(self, x):
        if any(tile[0] == 128 for tile in self.tiles):
            raise tuning.OutOfResources(2**18, 2**17, "shared memory")
        return forward(self, x)

    monkeypatch.setattr(two_launches.TwoLaunches, "forward", small)
    monkeypatch.setattr(timing, "benchmark", lambda calls, *_: dict.fromkeys(calls, (1.0,)))
    two, x = two_launches.convert(module_of((6, 5, 4, 5, 3, 5, 5))), image(1, 6, 3, 3)
    fit = [tile for tile in two_launches.TILES if tile[0] != 128]
    tables = tuning.tune(two, x)
    assert [list(table) for table in tables] == [fit] * 3


def test_a_tile_that_does_not_even_become_a_graph_is_left_out(monkeypatch):
    """Of a device that is only said to be one: graphs are made, and never launched."""

    def graphed(call, times):
        if call.func.tiles[1][0] == 128:
            raise tuning.OutOfResources(2**18, 2**17, "shared memory")
        return lambda: times

    monkeypatch.setattr(timing, "graphed", graphed)
    two = two_launches.convert(module_of((6, 5, 4, 5, 3, 5, 5)))
    variants = tuning._variants(two, types.SimpleNamespace(is_cuda=True), 2)
    assert list(variants) == [tile for tile in two_launches.TILES if tile[0] != 128]


def test_each_tile_is_timed_with_the_splits_that_suit_it(monkeypatch):
    """Of a device that is only said to be one: graphs are made, and never launched."""
    monkeypatch.setattr(timing, "graphed", lambda call, times: call)
    monkeypatch.setattr(two_launches.TwoLaunches, "forward", lambda self, x: x)
    monkeypatch.setattr(two_launches, "_processors", lambda device: PROCESSORS)
    two = two_launches.convert(models.Inception.from_table("5a").eval(), "natural")
    x = types.SimpleNamespace(is_cuda=True, device="cuda", numel=lambda: 832 * 49)
    variants = tuning._variants(two, x, 2)
    splits = {tile: one.func.splits_for(x) for tile, one in variants.items()}
    depths, widths = (9 * 160, 25 * 32, 832), (320, 128, 128)
    for tile in two_launches.TILES:
        natural = two_launches.natural_splits(depths, widths, 49, tile, PROCESSORS)
        assert splits[tile] == natural
    assert len(set(splits.values())) > 2


# One compilation for all sizes.

MEMORY = {"x", "y", "weight", "bias", "r3", "w3", "b3", "r5", "w5", "b5"} | {
    "pooled", "wp", "bp", "parts", "arrived",
}  # fmt: skip
CONSTANTS = {"BM", "BN", "BK", "WIDEN", "UNIT", "SPLITS", "DEPENDENT"}


def test_nothing_is_compiled_anew_for_another_size(monkeypatch):
    """What a kernel is given and is neither memory nor constant is a size."""
    given = {*programs._first.arg_names, *programs._second.arg_names}
    monkeypatch.setattr(
        programs, "triton", types.SimpleNamespace(jit=lambda f, **more: (f, more))
    )
    function, options = programs._jit(image)
    assert function is image
    assert set(options) == {"do_not_specialize"}
    assert set(options["do_not_specialize"]) == given - MEMORY - CONSTANTS


def test_without_triton_a_kernel_is_the_function_it_was(monkeypatch):
    monkeypatch.setattr(programs, "triton", None)
    assert programs._jit(image) is image


# What does not fit.


def test_the_module_is_left_as_it_was():
    module = module_of((6, 5, 4, 5, 3, 5, 5))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    two = two_launches.convert(module)
    for buffer in two.buffers():
        buffer.zero_()
    for name, value in module.state_dict().items():
        timing.agree(value, before[name])


MODULES = {
    "module: expected a models.Inception, got a Linear": lambda: torch.nn.Linear(2, 2),
    "module: expected eval mode, got training mode": lambda: models.Inception(
        (6, 5, 4, 5, 3, 5, 5)
    ),
    "module: expected weights in one of .*, got torch.float64": lambda: module_of(
        (6, 5, 4, 5, 3, 5, 5), torch.float64
    ),
}


@pytest.mark.parametrize("message", MODULES)
def test_a_module_that_does_not_fit_is_refused(message):
    with pytest.raises(FusionError, match=message):
        two_launches.convert(MODULES[message]())


INPUTS = {
    "x: expected a tensor without a gradient": lambda: image(1, 6, 4, 5).requires_grad_(),
    "got .3, 6, 5. of": lambda: torch.ones(3, 6, 5),
    "x: expected .N, 6, H, W. of torch.float32 in .*, got .1, 7, 4, 5. of": lambda: image(
        1, 7, 4, 5
    ),
    "got .2, 6, 4, 5. of torch.float32 with strides": lambda: torch.ones(2, 6, 4, 5),
    "got .1, 6, 4, 5. of torch.float16": lambda: image(1, 6, 4, 5, torch.float16),
    "got .0, 6, 4, 5. of": lambda: image(0, 6, 4, 5),
    "x: expected the device of the weights, .*, got meta": lambda: image(1, 6, 4, 5).to(
        "meta"
    ),
}


@pytest.mark.parametrize("message", INPUTS)
def test_an_input_that_does_not_fit_is_refused(message):
    two = two_launches.convert(module_of((6, 5, 4, 5, 3, 5, 5)))
    with pytest.raises(FusionError, match=message):
        two(INPUTS[message]())


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a device")
def test_without_a_device_and_an_interpreter_it_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    two = two_launches.convert(module_of((6, 5, 4, 5, 3, 5, 5)))
    with pytest.raises(
        FusionError, match="x: expected a CUDA device, got cpu; to interpret"
    ):
        two(image(1, 6, 4, 5))


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(programs, "triton", None)
    with pytest.raises(FusionError, match=r"triton: expected version 3\.6 or newer"):
        two_launches.convert(module_of((6, 5, 4, 5, 3, 5, 5)))


# On a GPU.


ORDERS = """
import re
from hfusion.kernels import compiling, programs, two_launches
for kernel in (programs._first, programs._second):
    done = compiling._by_triton(kernel, "float16", two_launches.TILES[0], 2, True)
    names = r"griddepcontrol[.a-z_]+|cp.async.cg|st.global|bar.sync|atom[.a-z_0-9]+"
    print(*re.findall(names, done.asm["ptx"]))
"""


def test_what_must_come_first_comes_first():
    """In code for sm_90: nothing of launch 1 is read before it is done; and a part of a
    sum is written, by all threads, before it is counted."""
    outside = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", "-c", ORDERS]
    done = subprocess.run(command, env=outside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first[0] == "griddepcontrol.launch_dependents"
    assert second[0] == "griddepcontrol.wait"
    assert sum("griddep" in name for name in first + second) == 2
    at = second.index("atom.global.gpu.acq_rel.add.u32")
    assert second[at - 1] == "bar.sync"
    written = [i for i, name in enumerate(second) if name == "st.global"]
    assert "bar.sync" in second[max(i for i in written if i < at) : at]
    assert max(written) > at  # y


def test_triton_has_what_chapter_10_names():
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")
    cuda = pytest.importorskip("triton.language.extra.cuda")
    options = compiler.CUDAOptions.__dataclass_fields__
    assert {"launch_cooperative_grid", "launch_pdl"} <= set(options)
    assert callable(cuda.gdc_wait)
    assert callable(cuda.gdc_launch_dependents)
