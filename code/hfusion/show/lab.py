"""A lab: the reader's own GPU, measured in the page by WebGPU. `webgpu/` has its parts."""

import dataclasses
import hashlib
import json
from functools import cache
from pathlib import Path

from IPython.display import Markdown

from .. import models
from ..webgpu import generator
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
OWN = {}
QUICK = "5a"  # of the nine modules the one with the least arithmetic

SAYS = {
    "ladder": "Here the page can run the Inception module on your own GPU, rung by rung",
    "launches": "Here the page can measure what a launch costs on your own GPU",
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


def lab(kind, rows=None, small=False):
    """A lab as HTML: text, style and script in one, with no request to anywhere.

    kind: "ladder", the module's six rungs, or "launches", what one launch costs.
    rows: the modules that "ladder" offers, of models.TABLE or "ragged"; else all nine.
    small: "launches" with three sizes in place of ten. Without JavaScript, or in a notebook
    that is not trusted, a sentence stands there. Raises ValueError for another kind or row.

    >>> lab("launches")
    Here the page can measure what a launch costs on your own GPU.
    """
    if kind not in SAYS:
        raise ValueError(f"kind: expected one of {', '.join(SAYS)}, got {kind!r}")
    rows = tuple(models.TABLE) if rows is None else tuple(rows)
    setup = {"sources": sources(kind), "small": small, "modules": {}, "digests": {}}
    if kind == "ladder":
        setup["quick"] = QUICK if QUICK in rows else rows[0]
        for row in rows:
            widths, size = generator.table(row)
            setup["modules"][row] = {"widths": widths, "size": size}
            setup["digests"][row] = _digest(row)
    data = json.dumps(setup, separators=(",", ":"))
    return Lab(
        kind,
        f'<div class="fs-lab" data-lab="{kind}">\n<p>{SAYS[kind]}. That takes a browser '
        "with WebGPU, JavaScript and, in a notebook, that it is trusted.</p>\n"
        f'<script type="application/json">{data}</script>\n</div>\n'
        f"<style>\n{_text('lab.css')}</style>\n<script>\n{script(kind)}</script>",
    )


def kernel(name, begin="", end=None):
    """A kernel's WGSL as a code block, or a part of it, as `excerpt` cuts it.

    name: of its file, as "product". Raises ValueError where there is no such line.

    >>> kernel("tick", "y[thread]", "}").data
    '```wgsl\\ny[thread] += 1.0;\\n```'
    """
    return Markdown(f"```wgsl\n{excerpt(_text(f'{name}.wgsl'), begin, end)}\n```")


def script(kind):
    """The scripts of a lab as one, in a block of its own: run twice, nothing clashes."""
    scripts, own = OWN.get(kind, ((), ()))
    kernels = {name: _text(f"{name}.wgsl") for name in (*KERNELS, *own)}
    parts = "\n".join(_text(f"{name}.js") for name in (*SCRIPTS, *scripts, "lab"))
    return f'(() => {{\n"use strict";\nconst WGSL = {_literals(kernels)};\n{parts}}})();\n'


def sources(kind):
    """A hash of the lab's files, for its records: 16 hexadecimal digits."""
    return hashlib.sha256((script(kind) + _text("lab.css")).encode()).hexdigest()[:16]


@cache
def _digest(row):
    return generator.digest(generator.expected(row))


@cache
def _text(name):
    return (FOLDER / name).read_text(encoding="utf-8")


def _literals(texts):
    """{name: text} in JavaScript, each text as it is, line by line."""
    quoted = (f"{name}: String.raw`{text}`" for name, text in texts.items())
    return "{\n" + ",\n".join(quoted) + "}"
