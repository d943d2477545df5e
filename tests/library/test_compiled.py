"""compiled.py, compiling.py: what Triton and ptxas make of the kernels now."""

import dataclasses
import hashlib
import math
import os

import pytest
import torch

from hfusion import models
from hfusion.kernels import compiled, compiling, programs, two_launches

triton = pytest.importorskip("triton", reason="Triton, which is for Linux, is missing")

ABOUT, ROWS = compiled.read()
BEFORE, OLD = compiled.read(compiled.BEFORE)
AGAIN = "make it again: python -m hfusion.kernels.compiling"


@pytest.fixture(scope="module")
def compiled_again():
    """All of it, compiled now."""
    return compiling.compile_all()


def test_the_table_has_every_tile_in_every_dtype_and_each_variant():
    launches = {
        (kernel, dtype)
        for kernel in compiled.LAUNCHES.values()
        for dtype in compiling.DTYPES
    }
    wanted = {(*each, tile) for each in launches for tile in two_launches.TILES}
    more = set(compiling.VARIANTS) - set(compiled.LAUNCHES.values())
    few = two_launches.TILES[: compiling.FEW]
    assert set(ROWS) == wanted | {(name, "float16", tile) for name in more for tile in few}


def test_the_table_is_of_the_kernels_as_they_are():
    assert ABOUT["kernels"] == compiling.sources(), AGAIN


def test_the_hash_is_of_what_is_compiled_and_of_nothing_else(tmp_path):
    paths = [compiled.FOLDER / "programs.py", compiled.FOLDER / "cooperative.py"]
    text = paths[0].read_text(encoding="utf-8")
    copy = tmp_path / "programs.py"
    for old, new, same in (
        # Where Triton is missing.
        ("triton = tl = constexpr = None", "tl = triton = constexpr = None", True),
        ("acc = tl.zeros((BM, BN)", "acc = tl.zeros((BN, BM)", False),
    ):
        assert text.count(old) == 1
        copy.write_text(text.replace(old, new), encoding="utf-8")
        assert (compiling.sources(copy, paths[1]) == ABOUT["kernels"]) is same
    assert compiling.sources(paths[0]) != ABOUT["kernels"]


def test_compiled_again_it_is_the_same(compiled_again):
    about, rows = compiled_again
    tools = {name: (ABOUT[name], about[name]) for name in ("triton", "ptxas")}
    if other := [f"{name} {now}, not {then}" for name, (then, now) in tools.items()
                 if now != then]:  # fmt: skip
        pytest.skip(f"here is {', '.join(other)}, so the code is another")
    different = [row for row in ROWS if rows[row] != ROWS[row]]
    assert different == [], AGAIN


def test_numbers_arrive_sixteen_bytes_at_a_time_and_without_waiting(compiled_again):
    """All of x and weight, under way before they are needed, with any version of Triton."""
    for (_, dtype, tile), row in compiled_again[1].items():
        rows, columns, depth, warps, stages = tile
        item_bytes = getattr(torch, dtype).itemsize
        step = (rows + columns) * depth * item_bytes // (32 * warps)  # bytes of a thread
        loops = len(row.loops)  # one of each launch
        assert row.copies == {16: loops * stages * step // 16}, row


def test_tensor_cores_multiply_halves_and_buffers_are_as_chapter_10_says(compiled_again):
    for (_, dtype, tile), row in compiled_again[1].items():
        kind, stages = row.multiply.split(".")[0], tile[-1]
        if dtype == "float32":
            assert kind == "FFMA"
        else:
            assert kind == ("HMMA" if tile[0] < 64 else "HGMMA")
            assert row.buffers == (stages - 1 if kind == "HMMA" else stages)
            assert (row.stack_bytes, row.spills) == (0, 0), row


def test_each_step_multiplies_all_of_its_tile(compiled_again):
    """Products of all warps in a step, by hand: rows · columns · depth, in one loop."""
    for (_, _, (rows, columns, depth, warps, _)), row in compiled_again[1].items():
        kind = row.multiply.split(".")[0]
        of_an_instruction = compiled._products(row.multiply)
        by_a_warp = row.step[kind] * of_an_instruction // (4 if kind == "HGMMA" else 1)
        assert by_a_warp * warps == rows * columns * depth, row


def test_nothing_is_divided_in_a_step(compiled_again):
    """A division by a number that is not known is some 20 instructions; IABS is one."""
    assert all(row.step.get("IABS", 0) > 2 for row in OLD.values())
    assert not any(
        "IABS" in loop for row in compiled_again[1].values() for loop in row.loops
    )


def test_a_dependent_launch_signals_and_waits_and_no_other_does(compiled_again):
    for (name, _, _), row in compiled_again[1].items():
        assert bool(row.signals) is name.endswith("dependent"), row


def test_one_cooperative_launch_needs_what_the_hungrier_launch_does_or_more(compiled_again):
    """So the places of the two launches bound how many of its programs could reside."""
    for name, dtype, tile in compiled_again[1]:
        if name == "both, cooperative":
            kernels = compiled.LAUNCHES.values()
            two = [compiled_again[1][kernel, dtype, tile] for kernel in kernels]
            one = compiled_again[1][name, dtype, tile]
            assert one.shared_bytes >= max(row.shared_bytes for row in two)
            assert one.registers >= max(row.registers for row in two) - 8, tile
            assert len(one.loops) == 2


def test_a_part_of_a_sum_has_steps_hardly_longer_than_the_whole(compiled_again):
    """Splitting adds what comes after the loop, and at most a fifth to a step."""
    for name, dtype, tile in compiled_again[1]:
        if name == "_second, in 4 parts":
            part, whole = (
                compiled_again[1][each, dtype, tile] for each in (name, "_second")
            )
            assert part.issued <= 1.2 * whole.issued, tile
            assert part.instructions > whole.instructions
            assert (part.spills, part.stack_bytes) == (0, 0)


def test_operands_come_from_shared_memory_as_often_as_the_warps_are_laid_out(
    compiled_again,
):
    """By hand: a warp multiplies 16 rows by some columns at a time, so n warps beside each
    other read the rows n times, and n below each other the columns.
    """
    for (_, dtype, tile), row in compiled_again[1].items():
        if dtype == "float32":
            assert row.shared_read == 0
        elif row.multiply.startswith("HMMA"):
            rows, columns, depth, *_ = tile
            below = min(rows // 16, 2)
            beside = 4 // below
            assert row.shared_read == (rows * beside + columns * below) * depth * 2, row


def test_the_kernels_as_they_first_were_read_as_much_from_shared_memory():
    """Their listings are gone; their tiles and their LDSM are those of the kernels now."""
    for key, row in OLD.items():
        assert row.shared_read == ROWS[key].shared_read, key


def test_only_some_rows_can_be_asked_for():
    wanted = ("_second", "float16", two_launches.TILES[1])
    _, rows = compiling.compile_all([wanted])
    assert list(rows) == [wanted]


def test_what_does_not_compile_is_said():
    with pytest.raises(RuntimeError, match="no_such_kernel"):
        compiling.compile_all([("no_such_kernel", "float16", two_launches.TILES[0])])


def test_the_table_before_is_never_edited():
    """It says what the kernels were; the chapter compares with it."""
    content = compiled.BEFORE.read_bytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "90abb1e1c1627d93"
    assert BEFORE["triton"] == ABOUT["triton"], "before and after differ by Triton, too"
    assert len(OLD) == 54


# Programs, as the kernels launch them.


@pytest.mark.parametrize("module", models.TABLE)
@pytest.mark.parametrize("tile", [two_launches.TILES[0], two_launches.TILES[-1]])
@pytest.mark.parametrize("parts", [1, 3])
def test_programs_are_as_many_as_are_launched(module, tile, parts, monkeypatch):
    launched = []

    class Spy:
        def __getitem__(self, grid):
            return lambda *args, **sizes: launched.append(math.prod(grid))

    for name in compiled.LAUNCHES.values():
        monkeypatch.setattr(programs, name, Spy())
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    c_in, size, *_ = models.TABLE[module]
    inception = models.Inception.from_table(module).eval()
    two = two_launches.convert(inception, splits=parts)
    two.tiles = tile, tile
    x = torch.zeros(2, c_in, size, size).to(memory_format=torch.channels_last)
    two(x)
    found = [
        compiled.programs(module, 2, 1, tile),
        compiled.programs(module, 2, 2, tile, parts),
    ]
    assert launched == found


@pytest.mark.parametrize("module", models.TABLE)
def test_a_sum_is_as_deep_as_the_weights_that_the_kernels_read(module):
    two = two_launches.convert(models.Inception.from_table(module).eval())
    first = [len(two.first_weight)] * 3 + [0]
    second = [len(two.b3_weight), len(two.b5_weight), len(two.proj_weight)]
    assert [list(compiled.depths(module, launch)) for launch in (1, 2)] == [first, second]
    for parts in (1, 3):
        whole = len(range(0, max(second), 128 * parts))
        assert compiled.steps(module, 2, two_launches.TILES[0], parts) == whole


# What is read in NVIDIA's listings.

LISTING = """
    /*0000*/                   LDG.E R1, desc[UR4][R2.64] ;       /* 0x1 */
                                                                  /* 0x2 */
    /*0010*/              @!P4 LDG.E.128.CONSTANT R4, [R2.64+0x20] ; /* 0x1 */
    /*0020*/                   LDG.E.U16 R4, [R2.64] ;
    /*0030*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR4][R6.64], P1 ;
    /*0040*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
    /*0050*/                   STL [R1], R4 ;
    /*0060*/              @!P0 BRA 0x60 ;
    /*0070*/               @P0 BRA 0x30 ;
    /*0080*/               @P1 BRA 0x10 ;
    /*0090*/                   LDL.LU R4, [R1] ;
    /*00a0*/                   BRA 0xa0;
"""


def test_a_listing_is_read():
    instructions = compiling._instructions(LISTING)
    assert [at for at, _, _ in instructions] == list(range(0, 0xB0, 16))
    assert compiling._counted(instructions) == {
        "spills": 2,
        "multiply": "HMMA.16816.F32",
        "copies": {16: 1},
        "loads": {2: 1, 4: 1, 16: 1},
        "instructions": 11,
        "signals": 0,
        "loops": [{"BRA": 2, "LDGSTS": 1, "HMMA": 1, "STL": 1}],
    }


def test_two_loops_are_both_read_and_the_longer_one_is_the_step():
    listing = LISTING.replace("LDL.LU R4, [R1]", "HMMA.16816.F32 R4, R8, R10, R4")
    listing = listing.replace("@P1 BRA 0x10", "@P1 BRA 0x80").replace(
        "BRA 0xa0", "BRA 0x90"
    )
    loops = compiling._counted(compiling._instructions(listing))["loops"]
    assert loops[1] == {"HMMA": 1, "BRA": 1}
    row = dataclasses.replace(next(iter(ROWS.values())), loops=loops[::-1])
    assert row.step == loops[0]
    assert (row.issued, row.multiplying) == (5, 4)
    kinds = {"multiply": 1, "move and wait": 1, "where and whether": 3}
    assert row.kinds == kinds  # the store of a spilled register counts as neither


@pytest.mark.parametrize("name", ["LDSM.16.M88.2", "LDSM.16.MT88"])
def test_a_load_of_fewer_matrices_is_not_counted_as_one_of_four(name):
    listing = LISTING.replace("LDG.E.U16 R4, [R2.64]", f"{name} R4, [R2]")
    with pytest.raises(ValueError, match=f"four matrices only, got {name}$"):
        compiling._counted(compiling._instructions(listing))
    four = listing.replace(name, "LDSM.16.MT88.4")
    assert compiling._counted(compiling._instructions(four))["loops"][0]["HMMA"] == 1


def test_bounds_worked_by_hand():
    row = ROWS["_second", "float16", (32, 32, 128, 4, 3)]
    assert row.shared_read == 16 * 512 * 4
    assert row.bounds == {"issue": 130, "shared memory": 256, "product": 64}
    assert row.cycles == 256
    # HGMMA reads 64 · 16 and 16 · 128 halves, for each of two groups of four warps.
    large = ROWS["_second", "float16", (128, 128, 32, 8, 3)]
    assert large.shared_read == 2 * (2 * (64 + 128) * 16 * 2)
    assert large.bounds == {"issue": 2 * 88, "shared memory": 192, "product": 256}


def test_worked_by_hand():
    """A step of 32 · 32 · 128 products is 64 cycles of four tensor cores with 512 each."""
    row = ROWS["_first", "float16", (32, 32, 128, 4, 3)]
    assert row.multiplying == 32 * 32 * 128 // (4 * 512)
    assert row.warps == 4
    # HGMMA keeps four tensor cores busy at once; without them, 128 lanes multiply.
    assert ROWS["_first", "float16", (64, 64, 64, 4, 4)].multiplying == 64**3 // (4 * 512)
    plain = ROWS["_first", "float32", (32, 32, 128, 4, 3)]
    assert plain.multiplying == 32 * 32 * 128 // 128
    assert row.resident == min(row.fitting.values()) == row.fitting["shared memory"] == 6
