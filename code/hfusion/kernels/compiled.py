"""What is known of the kernels without running them: a table of their compiled code.

A row of the table is one launch of `programs` with one tile in one dtype: the registers of
a thread, the shared memory of a program, and the instructions, counted by name. They are
counts of compiled code, not measurements. `compiling` writes the table, and `occupancy`
says what follows from it. Nothing here needs Triton.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import models
from . import occupancy

FOLDER = Path(__file__).parent
NOW, BEFORE = FOLDER / "sm_90.json", FOLDER / "sm_90_before.json"
LAUNCHES = {1: "_first", 2: "_second"}  # the kernel of each
MULTIPLIES = ("HGMMA", "HMMA", "FFMA")  # of a group of four warps, of a warp, of a thread
# To shared memory and from there, barriers, and waiting for what is under way.
MOVES = {"LDGSTS", "LDG", "LDS", "LDSM", "STS", "BAR", "DEPBAR", "LDGDEPBAR", "WARPSYNC"}
MOVES |= {"WARPGROUP", "FENCE", "MEMBAR", "SYNCS", "UTMALDG"}
# Products of two float16 that one tensor core of an H100 adds up in a cycle: an A100's are
# 256, and these are twice as fast (NVIDIA, Ampere and Hopper Architecture In-Depth).
PRODUCTS = {"HGMMA": 4 * 512, "HMMA": 512, "FFMA": 32}
LDSM_BYTES = 4 * 8 * 8 * 2  # to a warp: four matrices of 8 by 8 halves


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One launch, compiled for one tile and dtype.

    Attributes
    ----------
    kernel : str
        One of `compiling.VARIANTS`.
    dtype : str
        "float32", "float16" or "bfloat16".
    tile : tuple of int
        A row of `two_launches.TILES`: rows, columns, depth, warps, stages.
    registers, stack_bytes : int
        What each thread takes.
    shared_bytes : int
        What each program takes.
    spills : int
        Instructions that write registers to memory, or read them back, for lack of room.
    multiply : str
        The instruction that multiplies.
    copies, loads : dict
        {bytes that one thread's instruction carries: instructions}, to shared memory and
        to registers.
    buffers : int
        How many steps' numbers the shared memory holds.
    instructions : int
        How many the whole kernel has.
    loops : list of dict
        For each loop that multiplies, {instruction: how many} of one step.
    signals : int
        Instructions that let the next launch begin, or wait for the one before.
    """

    kernel: str
    dtype: str
    tile: tuple[int, ...]
    registers: int
    shared_bytes: int
    stack_bytes: int
    spills: int
    multiply: str
    copies: dict[int, int]
    loads: dict[int, int]
    buffers: int
    instructions: int
    loops: list[dict[str, int]]
    signals: int = 0

    @property
    def warps(self) -> int:
        """How many warps a program has."""
        return self.tile[3]

    @property
    def fitting(self) -> dict[str, int]:
        """How many programs a multiprocessor holds, by each resource."""
        return occupancy.fitting(self.registers, self.shared_bytes, self.warps)

    @property
    def resident(self) -> int:
        """How many programs a multiprocessor holds."""
        return min(self.fitting.values())

    @property
    def step(self) -> dict[str, int]:
        """{instruction: how many} of one step of the loop that takes longest."""
        return max(self.loops, key=lambda loop: sum(loop.values()))

    @property
    def issued(self) -> int:
        """Instructions of a warp in one step, each of which takes a cycle to issue."""
        return sum(self.step.values())

    @property
    def kinds(self) -> dict[str, int]:
        """{purpose: how many} of a step's instructions: those that multiply; those that
        move numbers and wait for them; and the rest, which computes addresses and masks.
        """
        found = dict.fromkeys(("multiply", "move and wait", "where and whether"), 0)
        for name, times in self.step.items():
            kind = "multiply" if name in MULTIPLIES else "where and whether"
            found["move and wait" if name in MOVES else kind] += times
        return found

    @property
    def multiplying(self) -> int:
        """Cycles in which the products of a warp's step could be done, at the peak rate."""
        kind = self.multiply.split(".")[0]
        return self.step[kind] * _products(self.multiply) // PRODUCTS[kind]

    @property
    def shared_read(self) -> int:
        """Bytes that the tensor cores get from a program's shared memory in one step, at
        least: by LDSM; or by HGMMA itself, if it reads each of its operands once. Not
        counted: what the copies write, and what float32 reads.
        """
        by_ldsm = self.step.get("LDSM", 0) * LDSM_BYTES * self.warps
        if "HGMMA" not in self.multiply:
            return by_ldsm
        m, n, k = _shape(self.multiply)
        return by_ldsm + self.step["HGMMA"] * (m + n) * k * 2 * (self.warps // 4)

    @property
    def bounds(self) -> dict[str, int]:
        """{bound: cycles}, the least time in which a multiprocessor can issue a program's
        step, deliver its operands, and multiply them.
        """
        in_a_part = -(-self.warps // occupancy.H200.parts)  # warps
        return {
            "issue": self.issued * in_a_part,
            "shared memory": -(-self.shared_read // occupancy.H200.shared_rate),
            "product": self.multiplying * in_a_part,
        }

    @property
    def cycles(self) -> int:
        """The least that a program's step takes on a multiprocessor: the largest bound."""
        return max(self.bounds.values())


Row = tuple[str, str, tuple[int, ...]]  # kernel, dtype, tile
Rows = dict[Row, Compiled]


def read(path: str | Path | None = None) -> tuple[dict[str, str], Rows]:
    """Read the table.

    Parameters
    ----------
    path : str or Path, optional
        Of a table; without it, that of the kernels as they are. `BEFORE` has them as they
        first were.

    Returns
    -------
    dict
        What the table says about itself: target, versions of the tools, date, hash.
    dict
        {(kernel, dtype, tile): Compiled}.

    Examples
    --------
    >>> about, rows = read()
    >>> row = rows["_first", "float16", (32, 32, 128, 4, 3)]
    >>> about["target"], row.warps, row.resident
    ('sm_90', 4, 6)
    """
    table = json.loads(Path(path or NOW).read_text(encoding="utf-8"))
    rows = [_row(row) for row in table.pop("rows")]
    return table, {(row.kernel, row.dtype, row.tile): row for row in rows}


def _row(row: dict[str, Any]) -> Compiled:
    by_bytes = {
        name: {int(n): k for n, k in row[name].items()} for name in ("copies", "loads")
    }
    return Compiled(**row | by_bytes | {"tile": tuple(row["tile"])})


def widths(module: str, launch: int) -> tuple[int, ...]:
    """How many columns each branch of a launch has, of a row of models.TABLE.

    Parameters
    ----------
    module : str
        A row of models.TABLE.
    launch : int
        1 or 2.

    Returns
    -------
    tuple of int
        Output channels of each branch.

    Examples
    --------
    >>> widths("3a", 1), widths("3a", 2)
    ((64, 96, 16, 192), (128, 32, 32))
    """
    c_in, _, k1, c3, k3, c5, k5, kp = models.TABLE[module]
    return {1: (k1, c3, c5, c_in), 2: (k3, k5, kp)}[launch]


def depths(module: str, launch: int) -> tuple[int, ...]:
    """How many products each output of a branch adds up; the pooling adds up none.

    The arguments are those of `widths`.

    >>> depths("3a", 1), depths("3a", 2)
    ((192, 192, 192, 0), (864, 400, 192))
    """
    c_in, _, _, c3, _, c5, *_ = models.TABLE[module]
    return {1: (c_in, c_in, c_in, 0), 2: (9 * c3, 25 * c5, c_in)}[launch]


def steps(module: str, launch: int, tile: Sequence[int], parts: int = 1) -> int:
    """How many steps the longest program of a launch takes.

    Parameters
    ----------
    module, launch
        As for `widths`.
    tile : sequence of int
        A row of `two_launches.TILES`.
    parts : int
        How many programs share the depth of a tile.

    Returns
    -------
    int

    Examples
    --------
    >>> steps("3a", 2, (32, 32, 128, 4, 3))  # 864 products, 128 at a time
    7
    >>> steps("3a", 2, (32, 32, 128, 4, 3), parts=2)
    4
    """
    return -(-max(depths(module, launch)) // (tile[2] * parts))


def programs(
    module: str, batch: int, launch: int, tile: Sequence[int], parts: int = 1
) -> int:
    """How many programs a launch of a module is.

    Parameters
    ----------
    module, launch, tile, parts
        As for `steps`.
    batch : int
        Images.

    Returns
    -------
    int

    Examples
    --------
    3a has 28² = 784 pixels, 25 tiles of 32; its first launch has 64, 96, 16 and 192
    columns, which are 2, 3, 1 and 6 tiles.

    >>> programs("3a", 1, 1, (32, 32, 128, 4, 3))
    300
    """
    rows, columns, *_ = tile
    pixels = batch * models.TABLE[module][1] ** 2
    across = sum(-(-width // columns) for width in widths(module, launch))
    return -(-pixels // rows) * across * parts


def _products(instruction: str) -> int:
    """Multiply-adds of one instruction: HMMA.16816.F32, HGMMA.64x32x16.F32 or FFMA.

    >>> _products("HMMA.16816.F32"), _products("HGMMA.64x32x16.F32"), _products("FFMA")
    (2048, 32768, 32)
    """
    if instruction == "FFMA":
        return 32  # one of each thread
    return math.prod(_shape(instruction))


def _shape(instruction: str) -> tuple[int, ...]:
    """Rows, columns and depth of a tensor core's instruction.

    >>> _shape("HMMA.16816.F32"), _shape("HGMMA.64x32x16.F32")
    ((16, 8, 16), (64, 32, 16))
    """
    kind, shape, *_ = instruction.split(".")
    return (16, 8, 16) if kind == "HMMA" else tuple(map(int, shape.split("x")))
