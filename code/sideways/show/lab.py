"""A lab: the reader's own GPU, measured in the page by WebGPU. `webgpu/` has its parts."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from IPython.display import Markdown

from hfusion import models
from hfusion.webgpu import generator

from ..records import Record
from .text import excerpt

FOLDER = Path(generator.__file__).parent
KERNELS = ("job", "product", "pool", "single", "concat", "routed", "tick")
SCRIPTS = (
    "exact",
    "statistics",
    "ladder",
    "gpu",
    "measure",
    "record",
    "chart",
    "view",
)
# What only one kind of lab carries: its (scripts, kernels).
OWN = {
    "pays": (("cost", "siblings", "pays", "verdict"), ("copy",)),
    "two": (("two",), ("unordered",)),
}
SIDES, BATCHES = (28, 14, 7), (1, 8, 32)  # of "pays"
QUICK = "5a"  # of the nine modules the one with the least arithmetic

SAYS = {
    "ladder": "Here the page can run the variants of the Inception module on your own GPU",
    "launches": "Here the page can measure what a launch costs on your own GPU",
    "pays": "Here the page can measure when stacking pays on your own GPU",
    "two": "Here the page can race two launches against one per convolution, on your GPU",
}


@dataclasses.dataclass(frozen=True)
class Lab:
    """Something to run in the page: its kind, and the HTML that has all it needs."""

    kind: str
    html: str

    def _repr_html_(self):
        return self.html

    def __repr__(self):
        return f"{SAYS[self.kind]}."


def lab(
    kind: str,
    rows: Iterable[str] | None = None,
    small: bool = False,
    book: Iterable[Record] = (),
) -> Lab:
    """A lab as HTML: text, style and script in one, with no request to anywhere.

    kind: "ladder", the module's six variants; "launches", what one launch costs; "pays",
    siblings separate, stacked, and copied, with the estimate of `cost` beside each time; or
    "two", two launches beside a dispatch per convolution, and the wrong way.
    rows: the modules that "ladder" and "two" offer or "pays" measures, of models.TABLE or
    "ragged", for "pays" also "widening"; else all but "ragged".
    small: "launches" with three sizes in place of ten. book: records of `stage`: "pays"
    shows their gains beside the page's. Without JavaScript, or in a notebook whose cells
    have not run, a sentence stands there. Raises ValueError for another kind or row.

    >>> lab("launches")
    Here the page can measure what a launch costs on your own GPU.
    """
    if kind not in SAYS:
        raise ValueError(f"kind: expected one of {', '.join(SAYS)}, got {kind!r}")
    setup = {"sources": sources(kind), "small": small, "modules": {}, "digests": {}}
    if kind in ("ladder", "two"):
        setup |= _modules(tuple(models.TABLE) if rows is None else tuple(rows))
    if kind == "pays":
        every = (*models.TABLE, *generator.WIDENING)
        setup |= _pays(every if rows is None else tuple(rows), book)
    data = json.dumps(setup, separators=(",", ":"))
    return Lab(
        kind,
        f'<div class="fs-lab" data-lab="{kind}">\n<p>{SAYS[kind]}. That takes a browser '
        "with WebGPU and JavaScript; in a notebook, run the cells first.</p>\n"
        f'<script type="application/json">{data}</script>\n</div>\n'
        f"<style>\n{_text('lab.css')}</style>\n<script>\n{script(kind)}</script>",
    )


def _modules(rows):
    tables = {row: generator.table(row) for row in rows}
    return {
        "quick": QUICK if QUICK in rows else rows[0],
        "modules": {row: {"widths": w, "size": size} for row, (w, size) in tables.items()},
        "digests": {row: _digest(row) for row in rows},
    }


def _pays(rows, book):
    """What "pays" is told: rows, their siblings, sides, digests, and the book's gains."""
    sides = {row: generator.table(row)[1] for row in rows if row in models.TABLE}
    check = {("ragged", 9)}  # before anything is timed
    wanted = {(row, side) for row in rows for side in SIDES} | check
    return {
        "quick": QUICK if QUICK in rows else rows[0],
        "rows": rows,
        "siblings": {row: generator.siblings(row) for row, _ in sorted(wanted)},
        "sides": sides,
        "digests": {
            f"{row} {side}": _stage_digest(row, side) for row, side in sorted(wanted)
        },
        "book": [_gains_of(record) for record in book],
    }


def _gains_of(record):
    """A record of `stage` as "pays" shows it: {label, copies, gains}.

    Cases in NHWC and float32, as the page has them, of the batches that it measures; as a
    CUDA graph where there is one, since the page hands over all launches at once. gains:
    {case: {way: quartiles}}.
    """
    ways = ("separate", "stacked", "copied")
    mode = "graph, " if record.machine.kind == "cuda" else ""
    found = {}
    for case in record.cases:
        p = case.parameters
        there = all(mode + way in case.samples for way in ways)
        same = (p["layout"], p["dtype"]) == ("NHWC", "float32")
        if there and same and p["batch"] in BATCHES:
            side = models.TABLE[p["module"]][1]
            name = f"{p['module']}, {side}×{side}, batch {p['batch']}"
            found[name] = {
                way: case.gain(mode + way, f"{mode}separate") for way in ways[1:]
            }
    copies = "There two of the three branches are copied, those before a 3×3 and a 5×5."
    as_a = " as CUDA graphs" if mode else ""
    return {"label": f"PyTorch{as_a}, {record.label}", "copies": copies, "gains": found}


def kernel(name: str, begin: str = "", end: str | None = None) -> Markdown:
    """A kernel's WGSL as a code block, or a part of it, as `excerpt` cuts it.

    name: of its file, as "product". Raises ValueError where there is no such line.

    >>> kernel("tick", "y[thread]", "}").data
    '```wgsl\\ny[thread] += 1.0;\\n```'
    """
    return Markdown(f"```wgsl\n{excerpt(_text(f'{name}.wgsl'), begin, end)}\n```")


def script(kind: str) -> str:
    """The scripts of a lab as one, in a block of its own: run twice, nothing clashes."""
    scripts, own = OWN.get(kind, ((), ()))
    kernels = {name: _text(f"{name}.wgsl") for name in (*KERNELS, *own)}
    parts = "\n".join(_text(f"{name}.js") for name in (*SCRIPTS, *scripts, "lab"))
    return f'(() => {{\n"use strict";\nconst WGSL = {_literals(kernels)};\n{parts}}})();\n'


def sources(kind: str) -> str:
    """A hash of the lab's files, for its records: 16 hexadecimal digits."""
    return hashlib.sha256((script(kind) + _text("lab.css")).encode()).hexdigest()[:16]


@cache
def _digest(row):
    return generator.digest(generator.expected(row))


@cache
def _stage_digest(row, side):
    return generator.digest(generator.stage(row, side))


@cache
def _text(name):
    return (FOLDER / name).read_text(encoding="utf-8")


def _literals(texts):
    """{name: text} in JavaScript, each text as it is, line by line."""
    quoted = (f"{name}: String.raw`{text}`" for name, text in texts.items())
    return "{\n" + ",\n".join(quoted) + "}"
