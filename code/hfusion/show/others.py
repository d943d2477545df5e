"""Networks of other libraries, fused: a table of what `make zoo` has stored."""

import json
import textwrap
from pathlib import Path

from IPython.display import Markdown

from ..shipped import shipped

FILE = Path("records", "zoo.json")
HEADER = "| library | models | with siblings | of them fused | layer calls | wrong |\n"
HEADER += "|---|---|---|---|---|---|\n"


def others(root: str | Path = "..") -> Markdown:
    """A row for each library, one for all, where and when; and who had siblings in vain.

    root: of the book.

    >>> others().data.splitlines()[0]
    '| library | models | with siblings | of them fused | layer calls | wrong |'
    """
    path = shipped(Path(root) / FILE.parent) / FILE.name
    if not path.exists():
        return Markdown("Not examined yet: `make zoo` stores this table.")
    found = json.loads(path.read_text(encoding="utf-8"))
    models = found["models"]
    packages = dict.fromkeys(model["package"] for model in models)
    rows = [_row(name, [m for m in models if m["package"] == name]) for name in packages]
    rows.append(_row("all", models))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    vain = [model["name"] for model in _related(models) if not model["fused"]]
    none = f" No group of {', '.join(vain)} is fused." if vain else ""
    label = textwrap.fill(f"Examined on {found['date']} with {versions}.{none}", 76)
    return Markdown(HEADER + "\n".join(rows) + f"\n\n{label}")


def _related(models):
    return [model for model in models if model["fused"] or model["refused"]]


def _row(name, models):
    """A row of the table."""
    related = _related(models)
    counts = [count for model in models for count in model["calls"].values()]
    before, after = map(sum, zip(*counts, strict=True))
    fused = sum(bool(model["fused"]) for model in related)
    wrong = sum(bool(model["wrong"]) for model in models)
    calls = f"{before:,} → {after:,}"
    return f"| {name} | {len(models)} | {len(related)} | {fused} | {calls} | {wrong} |"
