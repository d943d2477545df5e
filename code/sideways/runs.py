"""A run of several experiments: its records, and a report. No torch.

They replace older ones together, at its end, or not at all; `places` says which ones.
"""

import dataclasses
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from .places import NotSaved, choose, exchange, hold, let_go, mend
from .records import (
    EVERY,
    FAILED,
    LATE,
    WRONG,
    Adapter,
    Machine,
    NotRecorded,
    Record,
    RecordError,
    load,
    nothing,
    write,
)

# What a page reads at least: (experiment, parameters of a case, variants it must have).
WRITTEN, HOISTED = "as written", "folded, stacked, hoisted"  # as `variants` names them
TWO_IN_A_GRAPH = "graph, two launches"
FULL, HALF = {"dtype": "float32"}, {"dtype": "float16"}
STEPS = [
    ("ceilings", {"what": "empty", "operator": name, "way": "eager"}, ("10", "100"))
    for name in ("abs", "conv")
]
LIMITS = [
    ("ceilings", {"what": "copy"}, ()),
    ("ceilings", {"what": "matmul"} | FULL, ()),
    STEPS[1],
]
READERS: dict[str, list[tuple[str, dict, tuple[str, ...]]]] = {
    "chapter 6": [
        ("module_ladder", {"module": "3a", "batch": 1} | FULL, (WRITTEN, HOISTED)),
        ("timeline", {"rung": WRITTEN}, ()),
        ("stopwatches", {"module": "3a"}, ()),
    ],
    "chapter 8": [
        ("stopwatches", {"module": "3a"}, ()),
        ("launch_overhead", {"way": "eager"}, ("1", "1000")),
        *STEPS,
        ("timeline", {"rung": WRITTEN}, ()),
        ("timeline", {"rung": HOISTED}, ()),
        ("module_ladder", {"batch": 1} | FULL, ("folded", HOISTED)),
    ],
    "chapter 9": [
        ("stage", {"module": "3a", "batch": 1} | FULL, ("separate", "stacked", "copied")),
        *LIMITS,
        ("module_ladder", {"batch": 1} | FULL, ("folded", HOISTED)),
        ("network", {"network": "GoogLeNet", "batch": 1} | FULL, ("folded", HOISTED)),
    ],
    "chapter 11": [
        ("ceilings", {"what": "empty", "operator": "abs", "way": "graph"}, ()),
        ("module_ladder", {"module": "3a", "batch": 1} | HALF, (TWO_IN_A_GRAPH,)),
        ("network", {"batch": 1} | HALF, (TWO_IN_A_GRAPH,)),
    ],
    "chapter 12": [("embedding", FULL, ("separate", "embedded")), *LIMITS],
    "chapter 13": [("projections", FULL, ("separate", "stacked", "copied"))],
    "The field": [("leftover", {}, ())],
    "What the model misses": [
        ("stage", {"module": "3a", "batch": 1} | FULL, ("separate", "stacked")),
        *LIMITS,
        ("memory", {"memory": "kept"}, ("separate", "stacked")),
    ],
}


LOG_BYTES = 2**20  # of the log, the last so many go into a pack


class Run:
    """The records of one run, beside those that there are until `finish`."""

    def __init__(
        self,
        folder: str | Path,
        machine: Machine | Adapter,
        names: Sequence[str],
        pack: str | Path | None = None,
    ) -> None:
        """pack: a file that gets all records, too, whenever one has changed."""
        self.pack = Path(pack) if pack else None
        self.place, self.passed = choose(Path(folder), machine, names)
        self.staging = self.place.with_name(f".{self.place.name}.unfinished")
        self.complete: list[Record] = []
        self.broken: dict[str, str] = {}  # {experiment: why there is no record}
        self.log = self.place.with_name(f".{self.place.name}.log")
        self.handle, self.next_s, self.placed = None, 0.0, False

    def begin(self):
        """An empty folder for what will be complete; what another run left there goes."""
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            self.handle = hold(self.place)
            mend(self.place)
            if self.staging.exists():
                shutil.rmtree(self.staging)
            self.staging.mkdir()
            self.log.unlink(missing_ok=True)
        except OSError as error:
            raise NotSaved(f"{self.staging} cannot be made: {error.strerror}") from error

    def so_far(self, record):
        """Write what there is of a record; seldom enough to cost little of the time."""
        began = time.monotonic()
        if began >= self.next_s:
            self._write(record)
            ended = time.monotonic()
            self.next_s = ended + 20 * (ended - began)

    def keep(self, record):
        """Write a complete record. One that only says why nothing was measured replaces
        none, and is none where there was no time."""
        measured = any(case.samples for case in record.cases)
        reasons = [why for case in record.cases for why in case.skipped.values()]
        late = any(why.startswith(LATE) for why in reasons)
        if measured or not (late or (self.place / f"{record.experiment}.json").exists()):
            others = [r for r in self.complete if r.experiment != record.experiment]
            self.complete = [*others, self._write(record)]
        else:
            self.lose(record.experiment, f"{LATE} in time" if late else reasons[0])

    def known(self, name):
        """The complete record of an experiment, or None."""
        return next((r for r in self.complete if r.experiment == name), None)

    def lose(self, name, reason):
        """There is no new record of an experiment; one that there was stays."""
        self.broken[name] = reason
        if known := self.known(name):  # only more of it was tried
            self._write(known)
            return
        (self.staging / f"{name}.json").unlink(missing_ok=True)

    def packed(self):
        """One file with all records so far, for who can carry one file away; whole."""
        if self.pack is None:
            return
        unfinished = self.pack.with_name(f"{self.pack.name}.unfinished")
        try:
            with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(self.staging.glob("*.json")):
                    archive.write(path, path.name)
                if self.log.exists():
                    archive.writestr("log.txt", self.log.read_bytes()[-LOG_BYTES:])
            os.replace(unfinished, self.pack)
        except OSError as error:
            raise NotSaved(f"{self.pack} cannot be written: {error}") from error

    def _write(self, record):
        machine = dataclasses.replace(record.machine, name=self.place.name)
        record = dataclasses.replace(record, machine=machine)
        try:
            write(record, self.staging)
        except OSError as error:
            raise NotSaved(f"{record.experiment} cannot be saved: {error}") from error
        self.packed()
        return record

    def finish(self):
        """Put all records in place, in one step."""
        try:
            if self.complete and self.place.exists():
                for path in self.place.iterdir():
                    if not (self.staging / path.name).exists():
                        copy = shutil.copytree if path.is_dir() else shutil.copy2
                        copy(path, self.staging / path.name)
                exchange(self.staging, self.place)
            elif self.complete:
                os.rename(self.staging, self.place)
            self.placed = bool(self.complete)
        except OSError as error:
            raise NotSaved(f"{self.place} cannot be replaced: {error}") from error
        shutil.rmtree(self.staging, ignore_errors=True)
        if self.status() != 1:
            self.log.unlink(missing_ok=True)
        let_go(self.handle)

    def left(self):
        """Let go of the run; what it leaves, in words."""
        let_go(self.handle)
        if self.placed:
            shutil.rmtree(self.staging, ignore_errors=True)
            return f"all records are in {self.place}"
        if not list(self.staging.glob("*.json")):
            shutil.rmtree(self.staging, ignore_errors=True)
            return "no record was changed, and nothing new was complete"
        return (
            f"no record was changed; what is new, {len(self.complete)} whole, stays in "
            f"{self.staging} until the next run"
        )

    def status(self):
        """3 if not all was reached in time; 1 if something was wrong or failed; else 0."""
        reasons = self._reasons()
        if any(reason.startswith((WRONG, FAILED)) for reason in reasons):
            return 1
        return 3 if any(reason.startswith(LATE) for reason in reasons) else 0

    def _reasons(self):
        """Why what was not measured was not."""
        cases = (case for record in self.complete for case in record.cases)
        return [*self.broken.values(), *(why for c in cases for why in c.skipped.values())]

    def report(self):
        """What was measured, what was not and why, and who reads it: text."""
        lines = [f"{'measured':18} {'cases':>12} {'variants':>9}"]
        for record in self.complete:
            measured = sum(bool(case.samples) for case in record.cases)
            variants = {name for case in record.cases for name in case.samples}
            cases = f"{measured} of {len(record.cases)}"
            lines.append(f"  {record.experiment:16} {cases:>12} {len(variants):>9}")
        lines += ["", "skipped"]
        lines += [f"  {name}: {_short(reason)}" for name, reason in self.broken.items()]
        lines += [line for record in self.complete for line in _skipped(record)]
        lines += ["  nothing"] if lines[-1] == "skipped" else []
        if self.complete:
            lines += ["", "who reads it", *readers(self.place), "", *self._where()]
        else:
            lines += ["", "no record was changed"]
        if self.log.exists():
            lines += [f"what was written on the way: {self.log}"]
        if any(reason.startswith(LATE) for reason in self._reasons()):
            lines += ["to reach the rest: --minutes 30, or make record MINUTES=30"]
        return "\n".join(lines)

    def _where(self):
        """Where the records are, and how to undo it."""
        yield from self.passed
        yield f"written: {self.place}"
        yield f"to see it in the book: make run MACHINE={self.place.name}"
        yield f"to undo it: delete {self.place}; after make run also"
        yield "    git checkout records chapters back _static README.md"


def unpack(pack: str | Path, folder: str | Path) -> Run:
    """A Run whose records are those of a pack, each of them checked; to be finished.

    Raises RecordError, which names the file, where one was changed or they are of
    several machines.
    """
    found = []
    with tempfile.TemporaryDirectory() as place:
        try:
            with zipfile.ZipFile(pack) as archive:
                names = [n for n in archive.namelist() if re.fullmatch(r"[a-z_]+\.json", n)]
                for name in names:
                    found.append(load(archive.extract(name, place)))
        except (OSError, zipfile.BadZipFile) as error:
            raise RecordError(f"{pack} cannot be read: {error}") from error
    machines = {record.machine for record in found}
    if len(machines) != 1 or [f"{r.experiment}.json" for r in found] != names:
        raise RecordError(f"{pack}: expected records of one machine, each by its name")
    (machine,) = machines
    run = Run(folder, machine, [record.experiment for record in found])
    run.begin()
    for record in found:
        run.keep(record)
    return run


def _skipped(record):
    """The reasons of one record, each with what it was the reason for."""
    cases: Counter[str] = Counter()
    variants: dict[str, dict[str, None]] = {}
    for case in record.cases:
        for name, reason in case.skipped.items():
            if name == EVERY:
                cases[reason] += 1
            else:
                variants.setdefault(reason, {})[name] = None
    for reason, count in cases.items():
        of = len(record.cases)
        yield f"  {record.experiment}: {_short(reason)}: {count} of {of} cases"
    for reason, names in variants.items():
        more = f" and {len(names) - 2} more variants" if len(names) > 2 else ""
        named = "; ".join(list(names)[:2])
        yield f"  {record.experiment}: {_short(reason)}: {named}{more}"


def _short(reason):
    reason = " ".join(reason.split())
    return reason if len(reason) <= 100 else reason[:99] + "…"


def readers(place: Path) -> Iterator[str]:
    """Which pages find what they read at least in the records of a folder: lines."""
    known = {path.stem: load(path) for path in place.glob("*.json")}
    for page, needs in READERS.items():
        lacks: dict[str, None] = {}  # ordered
        for name, parameters, variants in needs:
            try:
                (known.get(name) or nothing(name)).measured(*variants, **parameters)
            except NotRecorded:
                lacks[name] = None
        lacking = f"lacks {', '.join(lacks)}" if lacks else "has what it needs"
        yield f"  {page:21} {lacking}"
