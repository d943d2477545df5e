"""What can be known of the kernels without running them: what a GPU's code consists of.

    python -m hfusion.kernels.compiled    compile all for sm_90, and write the table

Triton brings along NVIDIA's assembler, ptxas, and its disassembler, so no device is needed.
A row of the table is one launch of `kernels` with one tile in one dtype: the registers of a
thread, the shared memory of a program, and the instructions, counted by name. They are
counts of compiled code and no measurement. What follows from them is in `occupancy`.
"""

import ast
import collections
import dataclasses
import datetime
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import models
from . import occupancy

FOLDER = Path(__file__).parent
NOW, BEFORE = FOLDER / "sm_90.json", FOLDER / "sm_90_before.json"
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
LAUNCHES = ("_first", "_second")
# Launches as they can be asked for; those with a comma are for few pixels and in float16.
VARIANTS = {launch: {} for launch in LAUNCHES} | {
    "_first, dependent": {"DEPENDENT": True},
    "_second, dependent": {"DEPENDENT": True},
    "_second, in 4 parts": {"SPLITS": 4},
    "both, cooperative": {"COOPERATIVE": True},  # of cooperative.py, which nothing launches
}
FEW = 4  # so many rows of two_launches.TILES are for few pixels
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

    registers: of a thread. shared_bytes: of a program. stack_bytes: of a thread; spills:
    instructions that write registers to memory or read them back, for want of room.
    multiply: the instruction that multiplies. copies, loads: {bytes that one thread's
    instruction carries: instructions}, to shared memory and to registers. buffers: steps
    that the shared memory holds. loops: of each loop that multiplies, {instruction:
    how many} of one step; instructions: in the whole kernel. signals: instructions that
    let the next launch begin, or wait for the one before.
    """

    kernel: str  # of VARIANTS
    dtype: str
    tile: tuple  # a row of two_launches.TILES
    registers: int
    shared_bytes: int
    stack_bytes: int
    spills: int
    multiply: str
    copies: dict
    loads: dict
    buffers: int
    instructions: int
    loops: list
    signals: int = 0

    @property
    def warps(self) -> int:
        """Of a program."""
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
        """{what for: how many} of a step's instructions: products; moving numbers and
        waiting for them; and the rest, which finds out where they are, and whether.
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
        """{what: cycles}, the least in which a multiprocessor can issue a program's step,
        hand over its operands, and multiply them.
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


def read(path: str | Path | None = None) -> tuple[dict, dict[tuple, Compiled]]:
    """(What the table says about itself, {(kernel, dtype, tile): Compiled}).

    path: of a table; without it, that of the kernels as they are. BEFORE has them as they
    first were.

    >>> about, rows = read()
    >>> row = rows["_first", "float16", (32, 32, 128, 4, 3)]
    >>> about["target"], row.warps, row.resident
    ('sm_90', 4, 6)
    """
    table = json.loads(Path(path or NOW).read_text(encoding="utf-8"))
    rows = [_row(row) for row in table.pop("rows")]
    return table, {(row.kernel, row.dtype, row.tile): row for row in rows}


def _row(row):
    widths = {
        name: {int(n): k for n, k in row[name].items()} for name in ("copies", "loads")
    }
    return Compiled(**row | widths | {"tile": tuple(row["tile"])})


def widths(module: str, launch: int) -> tuple[int, ...]:
    """Of a row of models.TABLE, what a launch's branches are wide: its tiles' columns.

    >>> widths("3a", 0), widths("3a", 1)
    ((64, 96, 16, 192), (128, 32, 32))
    """
    c_in, _, k1, c3, k3, c5, k5, kp = models.TABLE[module]
    return ((k1, c3, c5, c_in), (k3, k5, kp))[launch]


def depths(module: str, launch: int) -> tuple[int, ...]:
    """How many products each number of a launch's branches adds up; of the pooling, none.

    >>> depths("3a", 0), depths("3a", 1)
    ((192, 192, 192, 0), (864, 400, 192))
    """
    c_in, _, _, c3, _, c5, *_ = models.TABLE[module]
    return ((c_in, c_in, c_in, 0), (9 * c3, 25 * c5, c_in))[launch]


def steps(module: str, launch: int, tile: Sequence[int], parts: int = 1) -> int:
    """How many steps the longest program of a launch takes.

    parts: so many programs share the depth of a tile.

    >>> steps("3a", 1, (32, 32, 128, 4, 3))  # 864 products, 128 at a time
    7
    >>> steps("3a", 1, (32, 32, 128, 4, 3), parts=2)
    4
    """
    return -(-max(depths(module, launch)) // (tile[2] * parts))


def programs(
    module: str, batch: int, launch: int, tile: Sequence[int], parts: int = 1
) -> int:
    """How many programs a launch of a module is.

    By hand: 3a has 28² = 784 pixels, 25 tiles of 32; its first launch 64, 96, 16 and 192
    columns, which are 2, 3, 1 and 6 tiles.

    >>> programs("3a", 1, 0, (32, 32, 128, 4, 3))
    300
    """
    rows, columns, *_ = tile
    pixels = batch * models.TABLE[module][1] ** 2
    across = sum(-(-width // columns) for width in widths(module, launch))
    return -(-pixels // rows) * across * parts


def _products(instruction):
    """Multiply-adds of one instruction: HMMA.16816.F32, HGMMA.64x32x16.F32 or FFMA.

    >>> _products("HMMA.16816.F32"), _products("HGMMA.64x32x16.F32"), _products("FFMA")
    (2048, 32768, 32)
    """
    if instruction == "FFMA":
        return 32  # one of each thread
    return math.prod(_shape(instruction))


def _shape(instruction):
    """Rows, columns and depth of a tensor core's instruction.

    >>> _shape("HMMA.16816.F32"), _shape("HGMMA.64x32x16.F32")
    ((16, 8, 16), (64, 32, 16))
    """
    kind, shape, *_ = instruction.split(".")
    return (16, 8, 16) if kind == "HMMA" else tuple(map(int, shape.split("x")))


# From here on with Triton, out of its interpreter.


def compile_all(
    wanted: Iterable[tuple] | None = None,
) -> tuple[dict, dict[tuple, Compiled]]:
    """The table, compiled now, as `read` returns it.

    wanted: (kernel, dtype, tile) of the rows to compile; without it all of them. Needs
    Triton, and runs in a process of its own, because Triton's interpreter, once it is on,
    stays on. Raises RuntimeError with what that process wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.json")
        said = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": folder}
        command = [sys.executable, "-W", "ignore", "-m", __name__, str(path)]
        asked = None if wanted is None else json.dumps(list(wanted))
        done = subprocess.run(
            command,
            env=os.environ | said,
            input=asked or "",
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return read(path)


def sources(*paths: str | Path) -> str:
    """A hash of the functions that Triton compiles, whatever else is in their files."""
    paths = paths or [FOLDER / "programs.py", FOLDER / "cooperative.py"]
    texts = [Path(path).read_text(encoding="utf-8") for path in paths]
    functions = [
        ast.get_source_segment(text, node)
        for text in texts
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    return hashlib.sha256("\n".join(functions).encode()).hexdigest()[:16]


def _rows():
    from .two_launches import TILES

    rows = [
        (launch, dtype, tile) for launch in LAUNCHES for dtype in DTYPES for tile in TILES
    ]
    more = [name for name in VARIANTS if name not in LAUNCHES]
    return rows + [(name, "float16", tile) for name in more for tile in TILES[:FEW]]


def _compiled(variant, dtype, tile):
    """One row, as the file has it."""
    from . import cooperative, programs

    name = variant.partition(",")[0]
    kernel = getattr(programs, name, None) or getattr(cooperative, name)
    done = _by_triton(kernel, dtype, tile, **VARIANTS[variant])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(done.asm["cubin"])
        code = _tool("cuobjdump", "-sass", "-res-usage", str(path))
    resources = {name: int(n) for name, n in re.findall(r"(REG|STACK):(\d+)", code)}
    buffers = re.findall(r"local_alloc.*?memdesc<(\d+)x\d+x\d+x", done.asm["ttgir"])
    (buffers,) = set(map(int, buffers)) or {0}
    return {
        "kernel": variant,
        "dtype": dtype,
        "tile": tile,
        "registers": resources["REG"],
        "shared_bytes": done.metadata.shared,
        "stack_bytes": resources["STACK"],
        **_counted(_instructions(code)),
        "buffers": buffers,
    }


def _by_triton(
    kernel, dtype, tile, SPLITS=1, DEPENDENT=False, COOPERATIVE=False
):  # fmt: skip
    """What Triton makes of a kernel for a GPU that is not there."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    rows, columns, depth, warps, stages = tile
    fixed = {"BM": rows, "BN": columns, "BK": depth, "WIDEN": False, "UNIT": 8}
    fixed |= {"SPLITS": SPLITS, "DEPENDENT": DEPENDENT}
    memory = {"parts": "*fp32", "arrived": "*i32", "reached": "*i32"}
    if SPLITS == 1:
        fixed |= {"parts": None, "arrived": None}
    signature, constants, aligned = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in fixed:
            signature[name], constants[(place,)] = "constexpr", fixed[name]
        elif name in kernel.do_not_specialize:
            signature[name] = "i32"
        else:  # PyTorch's memory begins at a multiple of 16 bytes, and more
            signature[name] = memory.get(name, f"*{DTYPES[dtype]}")
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    options |= {"launch_pdl": DEPENDENT, "launch_cooperative_grid": COOPERATIVE}
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def _instructions(code):
    """[(address, name with its modifiers, operands)] of what cuobjdump prints."""
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)([^;]*);")
    return [(int(at, 16), name, rest) for at, name, rest in line.findall(code)]


def _counted(instructions):
    """What the rows of the table say of a kernel's instructions."""
    names = collections.Counter(name for _, name, _ in instructions)
    bases = _bases(instructions)
    kind = next(kind for kind in MULTIPLIES if bases[kind])
    multiply = max((n for n in names if n.split(".")[0] == kind), key=names.get)
    if kind == "FFMA":
        multiply = kind
    if other := [n for n in names if n.startswith("LDSM") and not n.endswith("88.4")]:
        raise ValueError(f"expected LDSM of four matrices only, got {', '.join(other)}")
    return {
        "spills": bases["STL"] + bases["LDL"],
        "multiply": multiply,
        "copies": _by_bytes(names, "LDGSTS"),
        "loads": _by_bytes(names, "LDG"),
        "instructions": len(instructions),
        "signals": bases["PREEXIT"] + bases["ACQBULK"],
        "loops": [dict(_bases(loop).most_common()) for loop in _loops(instructions, kind)],
    }


def _bases(instructions):
    return collections.Counter(name.split(".")[0] for _, name, _ in instructions)


def _by_bytes(names, base):
    """{bytes that one thread's instruction carries: instructions}."""
    found = collections.Counter()
    for name, times in names.items():
        first, *modifiers = name.split(".")
        if first == base:
            sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
            found[next((sizes[m] for m in modifiers if m in sizes), 4)] += times
    return dict(sorted(found.items()))


def _loops(instructions, kind):
    """The innermost loops with an instruction of this kind, each as its instructions: what
    lies between a jump backwards and where it goes.
    """
    spans = []
    for at, name, rest in instructions:
        if name.startswith("BRA") and (to := re.search(r"0x([0-9a-f]+)", rest)):
            spans.append((int(to[1], 16), at))
    loops = {
        (first, last): [i for i in instructions if first <= i[0] <= last]
        for first, last in spans
        if first <= last
    }
    loops = {span: body for span, body in loops.items() if _bases(body)[kind]}
    return [
        body
        for (first, last), body in sorted(loops.items(), key=lambda item: item[0])
        if not any(
            first <= start and end <= last and (start, end) != (first, last)
            for start, end in loops
        )
    ]


def _tool(name, *arguments):
    """What a program of NVIDIA's that Triton brings along writes."""
    from triton.backends import nvidia

    command = [str(Path(nvidia.__path__[0], "bin", name)), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(path: str | Path | None = None, wanted: str = "") -> None:
    """Compile, and write the table; `wanted` as JSON for some of its rows only."""
    rows = json.loads(wanted) if wanted else _rows()
    from triton import __version__

    about = {
        "target": "sm_90",
        "triton": __version__,
        "ptxas": re.search(r"V([\d.]+)", _tool("ptxas", "--version"))[1],
        "date": datetime.date.today().isoformat(),
        "kernels": sources(),
    }
    lines = ",\n".join(json.dumps(_compiled(*row)) for row in rows)
    text = json.dumps(about)[:-1] + ', "rows": [\n' + lines + "\n]}\n"
    Path(path or NOW).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "0"
    main(*sys.argv[1:2], *([sys.stdin.read()] if len(sys.argv) > 1 else []))
