"""Networks of other libraries, fused: a table of what `make zoo` has stored."""

import json
import textwrap
from pathlib import Path

from ..shipped import shipped

FILE = Path("records", "zoo.json")
ROW = "{:<14} {:>6} {:>15} {:>7}   {:<15} {:>5}"
HEADER = ROW.format("", "models", "with siblings", "fused", "calls of layers", "wrong")


def others(root: str | Path = "..") -> str:
    """A row for each library, one for all; who had siblings in vain; where and when.

    root: of the book.

    >>> others(".").split()[:3]
    ['models', 'with', 'siblings']
    """
    path = shipped(Path(root) / FILE.parent) / FILE.name
    if not path.exists():
        return "not examined yet; `make zoo` stores this table"
    found = json.loads(path.read_text(encoding="utf-8"))
    models = found["models"]
    packages = dict.fromkeys(model["package"] for model in models)
    rows = [_row(name, [m for m in models if m["package"] == name]) for name in packages]
    vain = [model["name"] for model in _related(models) if not model["fused"]]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join(
        [
            HEADER,
            *rows,
            _row("all", models),
            "",
            *textwrap.wrap(f"siblings, and none fused: {', '.join(vain) or 'none'}", 76),
            *textwrap.wrap(f"examined on {found['date']} with {versions}", 76),
        ]
    )


def _related(models):
    return [model for model in models if model["fused"] or model["refused"]]


def _row(name, models):
    """A row of the table."""
    related = _related(models)
    counts = [count for model in models for count in model["calls"].values()]
    before, after = map(sum, zip(*counts, strict=True))
    fused = sum(bool(model["fused"]) for model in related)
    wrong = sum(bool(model["wrong"]) for model in models)
    return ROW.format(
        name, len(models), len(related), fused, f"{before:,} -> {after:,}", wrong
    )
