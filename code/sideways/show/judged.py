"""Predictions beside what was recorded: the score, then misses, then hits.

The predictions are in `records/predicted-h200-sxm.json`, written once, before there was a
record to look at; `sideways.predictions` has made them.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from ..records import NotRecorded, Record, load_all
from ..shipped import SHIPPED

FILE = Path("records", "predicted-h200-sxm.json")
# What is predicted of a variant: what it is counted in, and what it is called.
KINDS = {"kernels": "kernels", "us": "µs", "gains": "times"}
CALLED = {"kernels": "kernels", "us": "times", "gains": "gains"}


@dataclasses.dataclass(frozen=True)
class Judged:
    """One prediction, and what was recorded."""

    kind: str  # of KINDS
    name: str  # of the case and of the variant
    said: tuple  # low, middle, high
    was: float

    @property
    def variant(self):
        """What comes after the case in its name."""
        return self.name.rpartition(": ")[2]

    @property
    def missed(self):
        """How far outside its range: the logarithm of the ratio, 0 inside."""
        low, _, high = self.said
        return max(0.0, math.log(low / self.was), math.log(self.was / high))


@dataclasses.dataclass(frozen=True)
class Score:
    """How good predictions of one kind were.

    inside: how many of `count` lie in their ranges. off: the median of |middle ÷ recorded
    − 1|. constant: the same for a guess that does not look at the case: always the median
    of what was recorded, which takes having seen it. of_variants: the same for a guess that
    looks at the variant only: always the median of what was recorded of it.
    """

    count: int
    inside: int
    off: float
    constant: float
    of_variants: float


def read(root: str | Path = "..") -> dict:
    """The predictions, as their file has them. root: of the book.

    Raises NotRecorded where there is no such file.
    """
    for path in (Path(root) / FILE, SHIPPED / FILE):
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
    raise NotRecorded("predicted: nothing yet")


def chosen(
    content: dict,
    experiment: str,
    variants: Sequence[str] | None = None,
    **parameters: int | str,
) -> list[dict]:
    """The predicted cases with these parameters; only these variants, if any are named."""
    cases = [
        case
        for case in content["experiments"][experiment]
        if parameters.items() <= case["parameters"].items()
    ]
    if not cases:
        raise ValueError(f"parameters: nothing is predicted of {experiment}, {parameters}")

    def wanted(name):
        return variants is None or set(name.split(" / ")) <= set(variants)

    def kept(part):
        return {name: said for name, said in part.items() if wanted(name)}

    return [case | {kind: kept(case[kind]) for kind in KINDS} for case in cases]


def judged(cases: list[dict], record: Record) -> tuple[list[Judged], int]:
    """What a record says of predicted cases: ([Judged, …], how many it does not say)."""
    found, lacking = [], 0
    for predicted in cases:
        matching = [c for c in record.cases if c.parameters == predicted["parameters"]]
        for kind in KINDS:
            for name, said in predicted[kind].items():
                was = _recorded(matching, kind, name)
                if was is None:
                    lacking += 1
                else:
                    label = f"{_label(predicted['parameters'])}: {name}"
                    found.append(Judged(kind, label, tuple(said), was))
    return found, lacking


def _recorded(matching, kind, name):
    """What was recorded, or None."""
    for case in matching:
        variant, _, base = name.partition(" / ")
        if kind == "kernels" and name in case.launches:
            return case.launches[name]
        if kind == "us" and name in case.samples:
            return case.median(name)
        if kind == "gains" and {variant, base} <= set(case.samples):
            return case.gain(variant, base)[1]
    return None


def score(rows: list[Judged]) -> Score:
    """The Score of Judged of one kind."""
    middle = statistics.median(row.was for row in rows)
    recorded: dict[str, list[float]] = {}
    for row in rows:
        recorded.setdefault(row.variant, []).append(row.was)
    middles = {name: statistics.median(each) for name, each in recorded.items()}
    return Score(
        len(rows),
        sum(not row.missed for row in rows),
        statistics.median(abs(row.said[1] / row.was - 1) for row in rows),
        statistics.median(abs(middle / row.was - 1) for row in rows),
        statistics.median(abs(middles[row.variant] / row.was - 1) for row in rows),
    )


def predicted(
    experiment: str,
    root: str | Path = "..",
    variants: Sequence[str] | None = None,
    most: int = 12,
    **parameters: int | str,
) -> str:
    """What was predicted of an experiment's cases, beside the record: text.

    root: of the book, with predictions and records. variants: only these, and gains between
    them. most: how many hits are listed. parameters: of the cases, as for Record.select.
    Where no machine of the predicted kind has a record, a few numbers, called predicted.
    """
    try:
        content = read(root)
    except NotRecorded as error:
        return str(error)
    cases = chosen(content, experiment, variants, **parameters)
    record = _recorded_on(content["device"], experiment, root)
    when = f"predicted on {content['date']} for an {content['device']}"
    if record is None:
        return "\n".join([f"{when}, not recorded yet:", *_few(experiment, cases, content)])
    return "\n".join([when, record.label, *_beside(cases, record, most)])


def scored(root: str | Path = "..") -> str:
    """For each predicted experiment, how good the predictions were, or that there is no
    record: text."""
    content = read(root)
    lines = []
    for experiment, cases in content["experiments"].items():
        record = _recorded_on(content["device"], experiment, root)
        if record is None:
            lines.append(f"{experiment}: {len(cases)} cases predicted, not recorded yet")
        else:
            rows, lacking = judged(cases, record)
            lines += [f"{experiment}, {record.label}", *_scores(rows)]
            lines.append(f"    predicted, and not in the record: {lacking}")
    return "\n".join(lines)


def _recorded_on(device, experiment, root):
    """The record of a device, or None."""
    records = load_all(Path(root) / "records", experiment).values()
    return next((r for r in records if r.machine.device == device), None)


def _scores(rows):
    """A line for each kind."""
    lines = []
    for kind, called in CALLED.items():
        of_kind = [row for row in rows if row.kind == kind]
        if of_kind:
            s = score(of_kind)
            lines.append(
                f"    {called}: {s.inside} of {s.count} in their range; "
                f"off by {s.off:.0%}, always the median by {s.constant:.0%}, "
                f"each variant's median by {s.of_variants:.0%}"
            )
    return lines


def _beside(cases, record, most):
    """Lines: the score of each kind, the misses, the hits."""
    rows, lacking = judged(cases, record)
    lines = _scores(rows)
    misses = sorted((row for row in rows if row.missed), key=lambda row: -row.missed)
    hits = [row for row in rows if not row.missed]
    lines += ["misses:", *map(_line, misses)] if misses else ["no misses"]
    lines += ["in their range:", *map(_line, hits[:most])] if hits else ["no hits"]
    if len(hits) > most:
        lines.append(f"  and {len(hits) - most} more")
    return lines + ([f"predicted, and not in the record: {lacking}"] if lacking else [])


def _line(row):
    low, middle, high = (f"{number:,.3g}" for number in row.said)
    said = f"predicted {middle} ({low} to {high}), was {row.was:,.3g} {KINDS[row.kind]}"
    return f"  {row.name}\n      {said}"


def _label(parameters):
    """Of a case, in words; a number with its name."""
    return ", ".join(
        f"{name} {value}" if isinstance(value, int) else value
        for name, value in parameters.items()
    )


# Without a record.


def _few(experiment, cases, content):
    """The few numbers that a chapter shows where there is no record."""
    if experiment == "launch_overhead":
        return _hinge(content["inputs"])
    if experiment == "stage":
        return _losses(cases)
    lines = []
    for case in cases:
        lines.append(_label(case["parameters"]))
        for kind in ("us", "gains"):
            for name, said in case[kind].items():
                lines += _said(name, _range(said, KINDS[kind]))
    return lines


def _said(name, said):
    """A number of one variant, or how it compares with another's: lines."""
    first, _, base = name.partition(" / ")
    if not base:
        return [f"  {said:30} {name}"]
    return [f"  {first}:", f"    {said} as fast as", f"    '{base}'"]


def _range(said, unit):
    low, middle, high = (f"{number:,.3g}" for number in said)
    return f"{middle} {unit} ({low} to {high})"


def _hinge(inputs):
    """t = max(a, c + b n)."""
    names = {"a": "replay", "c": "between", "b": "node"}
    parts = []
    for letter, name in names.items():
        given = inputs[name]
        said = given["low"], given["middle"], given["high"]
        parts.append(f"  {letter} = {_range(said, 'µs')}")
    return ["a graph of n kernels takes max(a, c + b n), with", *parts]


def _losses(cases):
    """How many cases lose, and which."""
    lines = []
    for name in dict.fromkeys(name for case in cases for name in case["gains"]):
        gains = {_label(c["parameters"]): c["gains"][name] for c in cases}
        sure = sum(high < 1 for _, _, high in gains.values())
        below = sum(middle < 1 for _, middle, _ in gains.values())
        least = min(gains, key=lambda label: gains[label][1])
        lines += [
            f"{name}: {below} of {len(gains)} cases lose, {sure} of them surely",
            f"  the least: {_range(gains[least], KINDS['gains'])}, {least}",
        ]
    return lines
