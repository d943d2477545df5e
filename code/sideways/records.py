"""What was measured, where and how: dataclasses to JSON and back. No torch.

A record is one experiment on one machine. It keeps raw samples and whatever is needed
to doubt them: versions, date, commit, a hash of the sources that were timed, and how the
variants took turns. It is written whole or not at all. Nobody edits it: it carries a
digest of its own content, and reading it checks that.

    records/<machine>/<experiment>.json   described by records/schema.json
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from hfusion.timing import gains, median_interval

from .shipped import shipped

SCHEMA = 1  # what this file writes and reads; others are refused, not guessed at
LATER = {"notes"}  # fields that records of before do not have
UNIT = "us"  # of every sample: microseconds for one call
WEBGPU = "webgpu"  # the kind of an Adapter
EVERY = "every arm"  # in place of a name, where a whole case is skipped
# How reasons begin that are no property of the machine.
WRONG, FAILED, LATE = "wrong result: ", "failed: ", "not reached"


class RecordError(ValueError):
    """A record that cannot be read or trusted; the message begins with its file."""


class NotRecorded(RecordError, LookupError):
    """What was asked for is in no record: an experiment, a case, or a variant of a case."""


class _Variants(dict):
    """{variant: …} of a case; looking up one that did not run raises NotRecorded."""

    skipped: Mapping[str, str] = MappingProxyType({})  # each case sets its own

    def __missing__(self, name):
        reason = self.skipped.get(name) or self.skipped.get(EVERY) or "no reason given"
        raise NotRecorded(f"{name!r} did not run ({reason})")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a record comes from; None for what a machine does not have."""

    name: str  # of its folder: "nvidia-h200"
    kind: str  # "cuda", "mps", "xpu" or "cpu"
    device: str  # what the device calls itself
    processor: str
    threads: int
    python: str
    torch: str
    cuda: str | None = None
    cudnn: int | None = None
    driver: str | None = None
    triton: str | None = None


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Where a record of a page's lab comes from: a GPU, as the browser names it."""

    name: str  # of its folder: "webgpu-nvidia-lovelace"
    kind: str  # "webgpu"
    device: str  # its description, or vendor and architecture, or that it has no name
    vendor: str
    architecture: str
    description: str
    browser: str
    software: bool  # computed on a processor: its times say nothing about GPUs
    timestamps: bool  # the GPU's own clock could be read


@dataclasses.dataclass(frozen=True)
class Case:
    """One benchmark: its variants had the same inputs and gave the same outputs."""

    parameters: dict  # what was measured: {"module": "3a", "batch": 1, …}
    samples: dict  # {variant: (one sample a round)}
    unit: str = UNIT
    calls: int | dict = 1  # of which a sample is the mean; {variant: how many}
    launches: dict = dataclasses.field(default_factory=dict)  # {variant: how many}
    faults: dict = dataclasses.field(default_factory=dict)  # {variant: page faults}
    skipped: dict = dataclasses.field(default_factory=dict)  # {variant: why}
    events: tuple = ()  # [lane, name, begin, end] in µs, where a timeline was taken
    notes: dict = dataclasses.field(default_factory=dict)  # {variant: what it chose}

    def __post_init__(self):
        for name in ("samples", "launches", "faults"):
            variants = _Variants(getattr(self, name))
            variants.skipped = self.skipped
            object.__setattr__(self, name, variants)

    def median(self, name: str) -> float:
        """The median of a variant's samples, in µs. Raises NotRecorded."""
        return statistics.median(self.samples[name])

    def gain(self, name: str, base: str) -> tuple[float, float, float]:
        """How much faster than `base`: quartiles of the ratio per round.

        Raises NotRecorded if either did not run.
        """
        return gains({k: self.samples[k] for k in (base, name)}, base)[name]

    def interval(self, name: str, base: str) -> tuple[float, float]:
        """Of the median of that ratio: `timing.median_interval`, which misses it in 5%.

        Raises NotRecorded if either did not run.
        """
        pairs = zip(self.samples[name], self.samples[base], strict=True)
        return median_interval([theirs / mine for mine, theirs in pairs])

    def more(self, name: str, base: str) -> float:
        """How much longer than `base` in µs: the median of the difference per round.

        Raises NotRecorded if either did not run.
        """
        pairs = zip(self.samples[name], self.samples[base], strict=True)
        return statistics.median(one - other for one, other in pairs)


@dataclasses.dataclass(frozen=True)
class Record:
    """One experiment on one machine."""

    experiment: str
    question: str
    machine: Machine | Adapter
    date: str  # "2026-11-22"
    commit: str  # of the sources; ends in "+" if files had been changed since
    sources: str  # the hash of the Python files of both packages
    counted: str  # what `launches` counts: "kernels" on a GPU, "operators" on a CPU, …
    protocol: dict  # {"order": …, "rounds": …, …}
    cases: tuple
    missing: dict = dataclasses.field(default_factory=dict)  # {variant: why nowhere}

    @property
    def label(self) -> str:
        """For every figure and table: "recorded on NVIDIA H200, 2026-11-22"."""
        return f"recorded on {self.machine.device}, {self.date}" if self.date else NOTHING

    def select(self, **parameters: object) -> list[Case]:
        """The cases with these parameters, in order, skipped ones as well.

        Raises NotRecorded if there is none: a table of nothing would look like a result.
        """
        wanted = parameters.items()
        found = [case for case in self.cases if wanted <= case.parameters.items()]
        if not found:
            raise self._lacks(f"has no case {_said(parameters)}")
        return found

    def measured(self, *variants: str, **parameters: object) -> list[Case]:
        """The cases with these parameters in which all of these variants have samples, in
        order; without variants, those in which any has.

        Raises NotRecorded if there is none, and says why the first was skipped.
        """
        cases = self.select(**parameters)
        found = [c for c in cases if c.samples and set(variants) <= set(c.samples)]
        if not found:
            skipped = cases[0].skipped
            (reason, *_) = [
                skipped[variant]
                for variant in (EVERY, *variants, *skipped)
                if variant in skipped
            ] or ["no reason given"]
            what = " with " + ", ".join(map(repr, variants)) if variants else ""
            raise self._lacks(f"has no measured case {_said(parameters)}{what} ({reason})")
        return found

    def _lacks(self, what):
        if not self.date:
            return NotRecorded(f"there is no record of {self.experiment}")
        return NotRecorded(f"{self.experiment} ({self.label}) {what}")


NOTHING = "not recorded"


def nothing(experiment: str) -> Record:
    """The Record of an experiment that no machine has run: no cases, label "not recorded".

    >>> nothing("stage").label
    'not recorded'
    """
    nowhere = Machine("none", "cpu", "no machine", "none", 1, "none", "none")
    return Record(experiment, "", nowhere, "", "", "", "", {"rounds": 0}, cases=())


def _said(parameters):
    return ", ".join(f"{name} {value}" for name, value in parameters.items()) or "at all"


def digest(content: dict) -> str:
    """A hash of a record's content: the same for the same numbers, however laid out."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def save(record: Record, folder: str | Path) -> Path:
    """Write a record below `folder`, whole or not at all; returns its path."""
    return write(record, Path(folder) / record.machine.name)


def write(record: Record, folder: str | Path) -> Path:
    """Write a record into `folder` itself, whole or not at all; returns its path."""
    content = {"schema": SCHEMA, **dataclasses.asdict(record)}
    content = json.loads(json.dumps(content))  # as it will be read: tuples are lists
    path = Path(folder) / f"{record.experiment}.json"
    _check(content, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    content["digest"] = digest(content)
    unfinished.write_text(_text(content), encoding="utf-8")
    os.replace(unfinished, path)
    return path


def _text(content):
    """JSON with one line a case, so that a page of it can be read and compared."""
    cases = content.pop("cases")
    head = json.dumps(content, indent=1, ensure_ascii=False)
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    return f'{head[:-2]},\n "cases": [\n{lines}\n ]\n}}\n'


def load(path: str | Path) -> Record:
    """The record in a file. Raises RecordError, which names the file."""
    content = _read(path)
    if content.pop("digest", None) != digest(content):
        raise RecordError(f"{path} was edited or damaged: its digest does not fit")
    return _made(content, path)


def adopt(path: str | Path, folder: str | Path) -> Path:
    """Add a record that a page's lab has saved to `folder`, with its digest.

    Returns its path. Where the machine has a record of this experiment already, it gets
    the folder <machine>-2, …: none is replaced. Raises RecordError, which names the file.
    """
    content = _read(path)
    if content.pop("digest", None) not in (None, digest(content)):
        raise RecordError(f"{path} was edited or damaged: its digest does not fit")
    record = _made(content, path)
    machine, protocol = record.machine, record.protocol
    for text, pattern in (
        (record.experiment, "webgpu_[a-z]+"),
        (machine.name, "webgpu-[a-z0-9-]+"),
    ):
        if machine.kind != WEBGPU or not re.fullmatch(pattern, text):  # they become a path
            raise RecordError(f"{path} is no record of a page's lab")
    if protocol.get("differ") != 0 or not protocol.get("entries"):
        raise RecordError(f"{path}: its results were not found to be right")
    place = 0
    while True:
        place += 1
        name = machine.name if place == 1 else f"{machine.name}-{place}"
        own = dataclasses.replace(record, machine=dataclasses.replace(machine, name=name))
        there = Path(folder) / name / f"{record.experiment}.json"
        if not there.exists():
            return save(own, folder)
        if load(there) == own:
            raise RecordError(f"{path} is there already, as {there}")


def _read(path):
    """The content of a file, a dict of a schema that this hfusion reads."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_refuse)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise RecordError(f"{path} is no record: it has no schema number")
    if content["schema"] != SCHEMA:
        raise RecordError(
            f"{path} has schema {content['schema']}, and this hfusion reads {SCHEMA}"
        )
    return content


def _refuse(constant):
    """Python reads NaN and Infinity in JSON, which has neither."""
    raise ValueError(f"{constant} is no number of JSON")


def _made(content, path):
    """The Record that the content of a file stands for."""
    _check(content, path)
    del content["schema"]
    content["machine"] = _place(content["machine"])(**content["machine"])
    content["cases"] = tuple(Case(**case) for case in content["cases"])
    return Record(**content)


def load_all(folder: str | Path, experiment: str) -> dict[str, Record]:
    """All records of one experiment: {machine: record}, machines with a GPU first.

    Folders whose names begin with a dot are left out: runs that did not end. Where there
    is no such folder, those that the wheel brings along.
    """
    paths = sorted(shipped(folder).glob(f"*/{experiment}.json"))
    found = [load(path) for path in paths if path.parent.name[0] != "."]
    found.sort(key=lambda record: record.machine.kind == "cpu")
    return {record.machine.name: record for record in found}


def first(folder: str | Path, experiment: str) -> Record:
    """The first of `load_all`; where no machine has a record of it, `nothing`."""
    return next(iter(load_all(folder, experiment).values()), nothing(experiment))


def _check(content, path):
    """Refuse a record whose fields, units or samples are not what they must be."""
    _check_fields(Record, content, {"schema"}, path)
    _check_fields(_place(content["machine"]), content["machine"], set(), path)
    for case in content["cases"]:
        _check_fields(Case, case, set(), path)
        where = f"{path}, case {case['parameters']}"
        if case["unit"] != UNIT:
            raise RecordError(f"{where}: unit: expected {UNIT!r}, got {case['unit']!r}")
        if len({len(samples) for samples in case["samples"].values()}) > 1:
            raise RecordError(f"{where}: samples: expected as many of each variant")
        for name, samples in case["samples"].items():
            if not samples or not all(map(_is_time, samples)):
                raise RecordError(f"{where}: samples of {name}: expected times above 0")


def _place(machine):
    """The dataclass of which a record's machine is: a dict, or whatever stands there."""
    webgpu = isinstance(machine, dict) and machine.get("kind") == WEBGPU
    return Adapter if webgpu else Machine


def _is_time(sample):
    number = isinstance(sample, float | int) and not isinstance(sample, bool)
    return number and math.isfinite(sample) and sample > 0


def _check_fields(kind, given, more, path):
    """Whether a dict has all fields of a dataclass, and no other."""
    if not isinstance(given, dict):
        raise RecordError(f"{path}: {kind.__name__}: expected a dict, got {given!r:.40}")
    wanted = {field.name for field in dataclasses.fields(kind)} | more
    if wrong := sorted((wanted ^ set(given)) - (LATER & wanted)):
        raise RecordError(f"{path}: a {kind.__name__} lacks or adds {', '.join(wrong)}")
