"""The table of `compiled`, made by Triton for a GPU that is not there.

    python -m hfusion.kernels.compiling    compile all for sm_90, and write the table

Triton brings along NVIDIA's assembler, ptxas, and its disassembler, so no device is needed.
"""

import ast
import collections
import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .compiled import FOLDER, LAUNCHES, MULTIPLIES, NOW, Row, Rows, read

DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
# Launches as they can be asked for; those with a comma are for few pixels and in float16.
VARIANTS: dict[str, dict[str, Any]] = {kernel: {} for kernel in LAUNCHES.values()} | {
    "_first, dependent": {"DEPENDENT": True},
    "_second, dependent": {"DEPENDENT": True},
    "_second, in 4 parts": {"SPLITS": 4},
    "both, cooperative": {"COOPERATIVE": True},  # of cooperative.py, which nothing launches
}
Instruction = tuple[int, str, str]  # address, name with its modifiers, operands
FEW = 4  # so many rows of two_launches.TILES are for few pixels


def compile_all(
    wanted: Iterable[Row] | None = None,
) -> tuple[dict[str, str], Rows]:
    """The table, compiled now.

    It is compiled in a process of its own, because Triton's interpreter, once it is on,
    stays on.

    Parameters
    ----------
    wanted : iterable, optional
        (kernel, dtype, tile) of the rows to compile; without it all of them.

    Returns
    -------
    tuple of dict
        As `compiled.read` returns it.

    Raises
    ------
    RuntimeError
        With what that process wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.json")
        settings = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": folder}
        command = [sys.executable, "-W", "ignore", "-m", __name__, str(path)]
        asked = None if wanted is None else json.dumps(list(wanted))
        done = subprocess.run(
            command,
            env=os.environ | settings,
            input=asked or "",
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return read(path)


def sources(*paths: str | Path) -> str:
    """A hash of the functions that Triton compiles, whatever else is in their files."""
    paths = paths or (FOLDER / "programs.py", FOLDER / "cooperative.py")
    texts = [Path(path).read_text(encoding="utf-8") for path in paths]
    functions = [
        ast.get_source_segment(text, node) or ""
        for text in texts
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    return hashlib.sha256("\n".join(functions).encode()).hexdigest()[:16]


def _rows() -> list[Row]:
    from .two_launches import TILES

    kernels = [*LAUNCHES.values()]
    rows: list[Row] = [
        (kernel, dtype, tile) for kernel in kernels for dtype in DTYPES for tile in TILES
    ]
    more = [name for name in VARIANTS if name not in kernels]
    return rows + [(name, "float16", tile) for name in more for tile in TILES[:FEW]]


def _compiled(variant: str, dtype: str, tile: tuple[int, ...]) -> dict[str, Any]:
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
    found = re.findall(r"local_alloc.*?memdesc<(\d+)x\d+x\d+x", done.asm["ttgir"])
    (buffers,) = set(map(int, found)) or {0}
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
    kernel: Any, dtype: str, tile: tuple[int, ...],
    SPLITS: int = 1, DEPENDENT: bool = False, COOPERATIVE: bool = False,
) -> Any:  # fmt: skip
    """What Triton makes of a kernel for a GPU that is not there."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    rows, columns, depth, warps, stages = tile
    fixed: dict[str, Any] = {
        "BM": rows,
        "BN": columns,
        "BK": depth,
        "WIDEN": False,
        "UNIT": 8,
    }
    fixed |= {"SPLITS": SPLITS, "DEPENDENT": DEPENDENT}
    memory = {"parts": "*fp32", "arrived": "*i32", "reached": "*i32"}
    if SPLITS == 1:
        fixed |= {"parts": None, "arrived": None}
    signature: dict[str, str] = {}
    constants, aligned = {}, {}
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


def _instructions(code: str) -> list[Instruction]:
    """The lines of what cuobjdump prints."""
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)([^;]*);")
    return [(int(at, 16), name, rest) for at, name, rest in line.findall(code)]


def _counted(instructions: Sequence[Instruction]) -> dict[str, Any]:
    """What the rows of the table say of a kernel's instructions."""
    names = collections.Counter(name for _, name, _ in instructions)
    bases = _bases(instructions)
    kind = next(kind for kind in MULTIPLIES if bases[kind])
    multiply = max((n for n in names if n.split(".")[0] == kind), key=names.__getitem__)
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


def _bases(instructions: Iterable[Instruction]) -> collections.Counter[str]:
    return collections.Counter(name.split(".")[0] for _, name, _ in instructions)


def _by_bytes(names: collections.Counter[str], base: str) -> dict[int, int]:
    """{bytes that one thread's instruction carries: instructions}."""
    found = collections.Counter[int]()
    for name, times in names.items():
        first, *modifiers = name.split(".")
        if first == base:
            sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
            found[next((sizes[m] for m in modifiers if m in sizes), 4)] += times
    return dict(sorted(found.items()))


def _loops(instructions: Sequence[Instruction], kind: str) -> list[list[Instruction]]:
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


def _tool(name: str, *arguments: str) -> str:
    """What a program of NVIDIA's that Triton brings along writes."""
    from triton.backends import nvidia

    command = [str(Path(nvidia.__path__[0], "bin", name)), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(path: str | Path | None = None, wanted: str = "") -> None:
    """Compile, and write the table; `wanted`: JSON of the rows, for some of them only."""
    rows = json.loads(wanted) if wanted else _rows()
    from triton import __version__

    about = {
        "target": "sm_90",
        "triton": __version__,
        "ptxas": re.findall(r"V([\d.]+)", _tool("ptxas", "--version"))[0],
        "date": datetime.date.today().isoformat(),
        "kernels": sources(),
    }
    lines = ",\n".join(json.dumps(_compiled(*row)) for row in rows)
    text = json.dumps(about)[:-1] + ', "rows": [\n' + lines + "\n]}\n"
    Path(path or NOW).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "0"
    main(*sys.argv[1:2], *([sys.stdin.read()] if len(sys.argv) > 1 else []))
