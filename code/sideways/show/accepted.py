"""What `hfusion.faster` accepted: a table of what `tools/benchmarks/judging.py` stored."""

import json
from pathlib import Path

from ..shipped import shipped

FILE = Path("records", "judging.json")
ROW = "{:<27} {:>8}   {:<19} {}"


def accepted(root: str | Path = "..") -> str:
    """A row for each model; how fast a copy of it was; where and when.

    root: of the book.

    >>> accepted(".").splitlines()[0].split()
    ['accepted', 'all', 'groups', 'fused', 'accepted', 'groups', 'only']
    """
    path = shipped(Path(root) / FILE.parent) / FILE.name
    if not path.exists():
        return "not measured yet; tools/benchmarks/judging.py stores this table"
    found = json.loads(path.read_text(encoding="utf-8"))
    cases = found["cases"]
    copies = [gain for case in cases for gain in case["gains"]["same"]]
    slower = [case["case"] for case in cases if _is_slower(case["gains"])]
    return "\n".join(
        [
            ROW.format("", "accepted", "all groups fused", "accepted groups only"),
            *map(_row, cases),
            "",
            f"a copy of the same model: {min(copies):.2f} to {max(copies):.2f}",
            f"slower than the slowest copy: {'; '.join(slower) or 'none'}",
            f"measured on {found['device']}, {found['date']}, PyTorch {found['torch']}",
        ]
    )


def _is_slower(gains):
    """Whether the accepted groups cost more, in the median, than noise may."""
    (median, _, _), (_, slowest, _) = gains["judged"], gains["same"]
    return median < slowest


def _row(case):
    gains = [case["gains"][name] for name in ("all", "judged")]
    columns = [f"{median:.2f} ({low:.2f} to {high:.2f})" for median, low, high in gains]
    return ROW.format(case["case"], f"{case['accepted']} of {case['groups']}", *columns)
