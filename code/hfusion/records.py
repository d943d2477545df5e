"""What was measured, on which machine, and how: dataclasses to JSON and back. No torch.

A record is one experiment on one machine. It keeps raw samples, and everything that is
needed to doubt them: versions, date, the commit and a hash of the sources that were
timed, in which order the competitors took their turns. It is written whole or not at
all, and never edited: it carries a digest of itself, and reading checks it.

    records/<machine>/<experiment>.json
"""

import dataclasses
import hashlib
import json
import math
import os
import statistics
from pathlib import Path

SCHEMA = 1  # of what this file writes; newer ones are refused, not guessed at
UNITS = ("us", "bytes/s", "flop/s")


class RecordError(ValueError):
    """A record that cannot be trusted or read; the message begins with the file."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a record comes from; None where a machine does not have such a thing."""

    name: str  # of its folder: "h200", "cpu-2"
    kind: str  # "cuda" or "cpu"
    device: str  # what the device calls itself
    processor: str
    threads: int
    python: str
    torch: str
    cuda: str | None = None
    driver: str | None = None
    triton: str | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """Competitors in one race: all had the same inputs and gave the same outputs."""

    parameters: dict  # what was raced: {"module": "3a", "batch": 1, …}
    unit: str  # of all samples
    samples: dict  # {competitor: [one sample a round]}
    launches: dict = dataclasses.field(default_factory=dict)  # {competitor: how many}
    skipped: dict = dataclasses.field(default_factory=dict)  # {competitor: why}

    def median(self, name):
        return statistics.median(self.samples[name])

    def gain(self, name, base):
        """How many times faster than `base`: quartiles of the ratio per round."""
        pairs = zip(self.samples[base], self.samples[name], strict=True)
        ratios = [b / n for b, n in pairs]
        return tuple(statistics.quantiles(ratios, n=4, method="inclusive"))


@dataclasses.dataclass(frozen=True)
class Record:
    """One experiment on one machine."""

    experiment: str
    question: str
    machine: Machine
    date: str  # "2026-11-22"
    commit: str  # of the sources, with "+" if they had been changed since
    sources: str  # a hash of the package's files
    protocol: dict  # {"order": …, "rounds": …, "warm_up": …}
    cases: tuple
    missing: dict = dataclasses.field(default_factory=dict)  # {peer: why it did not race}
    launch_kind: str = "operators"  # what `launches` counts: kernels on a GPU

    def label(self):
        """For figures and tables: "recorded on NVIDIA H200, 2026-11-22"."""
        return f"recorded on {self.machine.device}, {self.date}"

    def select(self, **parameters):
        """The cases that have these parameters, in order."""
        wanted = parameters.items()
        return [case for case in self.cases if wanted <= case.parameters.items()]


def digest(content):
    """Of a record's content, a dict: the same for the same numbers, however written."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def save(record, folder):
    """Write a record below `folder`, whole or not at all; returns its path."""
    content = {"schema": SCHEMA, **dataclasses.asdict(record)}
    content = json.loads(json.dumps(content, allow_nan=False))
    _check(content, "record")
    path = Path(folder) / record.machine.name / f"{record.experiment}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    text = json.dumps({**content, "digest": digest(content)}, indent=1, ensure_ascii=False)
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def load(path):
    """The record in a file. Raises RecordError, which names the file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise RecordError(f"{path} is no record: it has no schema number")
    if content["schema"] != SCHEMA:
        raise RecordError(
            f"{path} has schema {content['schema']}; {SCHEMA} fits: update hfusion"
        )
    wanted = content.pop("digest", None)
    if wanted != digest(content):
        raise RecordError(f"{path} has been edited or damaged: its digest does not fit")
    _check(content, path)
    del content["schema"]
    content["machine"] = Machine(**content["machine"])
    content["cases"] = tuple(Case(**case) for case in content["cases"])
    return Record(**content)


def load_all(folder, experiment):
    """{machine: record} of one experiment, machines with a GPU first."""
    found = [load(path) for path in sorted(Path(folder).glob(f"*/{experiment}.json"))]
    found.sort(key=lambda record: (record.machine.kind != "cuda", record.machine.name))
    return {record.machine.name: record for record in found}


def _check(content, path):
    """Refuse a record's content if a field, a unit or a sample is not what it must be."""
    for kind, given in ((Record, content), (Machine, content.get("machine", {}))):
        known = {field.name for field in dataclasses.fields(kind)}
        strange = set(given) - known - {"schema"}
        needed = {f.name for f in dataclasses.fields(kind) if _required(f)}
        if strange or needed - set(given):
            which = ", ".join(sorted(strange | (needed - set(given))))
            raise RecordError(f"{path}: unknown or missing in {kind.__name__}: {which}")
    for case in content["cases"]:
        where = f"{path}, case {case.get('parameters')}"
        if case.get("unit") not in UNITS:
            raise RecordError(f"{where}: unit was {case.get('unit')!r}; {UNITS} fit")
        rounds = {len(samples) for samples in case["samples"].values()}
        if len(rounds) > 1 or 0 in rounds:
            raise RecordError(
                f"{where}: competitors have {sorted(rounds)} samples; as many each"
            )
        for name, samples in case["samples"].items():
            if not all(
                isinstance(s, float) and math.isfinite(s) and s > 0 for s in samples
            ):
                raise RecordError(f"{where}: {name} has a sample that is no number above 0")


def _required(field):
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing
