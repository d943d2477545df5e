"""One experiment on one machine: agree, count, race, and a Record. Never saves.

An experiment is a module with three names:

    QUESTION             what its record answers, one sentence
    cases(device)        [{parameter: value, …}, …], what is raced, one dict a race
    race(device, **one)  a Race: the arms, and what each of them must compute
    ROUNDS               if it wants others than this module's
    COUNTED              if its races count something else than launches

An arm that cannot run here (no such library, no such device) or for which there is not
enough memory is skipped, and the record says why. A wrong result stops everything.
"""

import dataclasses
import datetime
import hashlib
import itertools
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

from . import measure
from .records import EVERY, Case, Machine, Record

PACKAGE = Path(__file__).parent
ROUNDS, WARM_UP = 20, 3
TURN_US = 2000  # a turn has so many calls that the fastest arm takes about this long


class Unavailable(RuntimeError):
    """Raised by what makes an arm: this machine lacks something for it."""


@dataclasses.dataclass(frozen=True)
class Race:
    """What one case races."""

    arms: dict  # {name: a function that makes the function to time}
    expected: tuple  # tensors in float64, which every arm must give …
    share: float  # … to within this share of the largest number
    watches: dict = dataclasses.field(default_factory=dict)  # {name: stopwatch}
    calls: int | None = None  # in a turn; as many as make it about TURN_US long
    opaque: tuple = ()  # names of arms in which a CPU's operators cannot be counted
    repeats: dict = dataclasses.field(default_factory=dict)  # {name: how often in a call}
    events: tuple = ()  # a timeline, if one was taken
    count: Callable | None = None  # of an arm: what COUNTED says, in place of launches


def record(experiment, device="cpu", limit_s=math.inf, progress=iter):
    """Run an experiment, a module, and return its Record.

    limit_s: cases and arms that would begin later than this are skipped. progress: is
    given the list of cases and passes them on, as tqdm does. float32 means float32, also
    in convolutions on a GPU, where cuDNN tries out its algorithms. Raises
    measure.Disagreement where an arm is wrong.
    """
    rounds = getattr(experiment, "ROUNDS", ROUNDS)
    code = {"commit": commit() or "unknown", "sources": sources()}  # before they change
    deadline = Deadline(limit_s)
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = False, True  # it chooses, as its rivals may
    try:
        cases = [
            _case(experiment, device, parameters, rounds, deadline)
            for parameters in progress(experiment.cases(device))
        ]
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before
    return Record(
        experiment=experiment.__name__.rpartition(".")[2],
        question=experiment.QUESTION,
        machine=machine(device),
        date=datetime.date.today().isoformat(),
        **code,
        counted=getattr(
            experiment, "COUNTED", "kernels" if device == "cuda" else "operators"
        ),
        protocol={
            "order": "arms take turns, and each round begins with the next arm",
            "turn": "one call that is not timed, then the case's calls in a row",
            "rounds": rounds,
            "warm_up": WARM_UP,
            "turn_us": TURN_US,
            "inputs": "random, the same for all arms of a case",
            "checked": "each arm against float64, before any timing",
            "cudnn_benchmark": True,
        },
        cases=tuple(cases),
        missing=_missing(cases),
    )


class Deadline:
    """Raises Unavailable when `limit_s` seconds have passed since it was made."""

    def __init__(self, limit_s):
        self.limit_s, self.began = limit_s, time.monotonic()

    def check(self):
        if time.monotonic() - self.began > self.limit_s:
            raise Unavailable(f"not reached within {self.limit_s:g} s")


def _case(experiment, device, parameters, rounds, deadline):
    """Check, count and race the arms of one case."""
    race, skipped = _made(deadline, lambda: experiment.race(device, **parameters))
    if race is None:
        return Case(parameters, {}, skipped={EVERY: skipped})
    arms, skips = {}, {}
    for name, make in race.arms.items():
        arms[name], skips[name] = _made(deadline, partial(_checked, make, race, name))
    arms = {name: arm for name, arm in arms.items() if arm is not None}
    found = None
    if arms:
        found, skips[EVERY] = _made(None, partial(_raced, race, arms, device, rounds))
    return Case(
        parameters,
        **(found or {"samples": {}}),
        skipped={name: reason for name, reason in skips.items() if reason},
        events=race.events,
    )


def _raced(race, arms, device, rounds):
    """What a Case keeps of arms that agree: launches, samples, page faults."""
    counted = [name for name in arms if device == "cuda" or name not in race.opaque]
    count = race.count or (lambda arm: measure.count_launches(arm, device).count)
    launches = {name: count(arms[name]) // race.repeats.get(name, 1) for name in counted}
    watches = {name: race.watches[name] for name in arms if name in race.watches}
    calls = race.calls or _calls(arms, device)
    samples = measure.time_arms(arms, device, rounds, WARM_UP, calls, watches)
    faults = {name: measure.count_faults(arm) for name, arm in arms.items()}
    return {
        "samples": {
            name: [round(us / race.repeats.get(name, 1), 3) for us in times]
            for name, times in samples.items()
        },
        "calls": calls,
        "launches": launches,
        "faults": {name: count for name, count in faults.items() if count is not None},
    }


def _made(deadline, make):
    """(what `make` makes, "") or (None, why this machine cannot, or not in time)."""
    try:
        if deadline:
            deadline.check()
        with torch.no_grad():
            return make(), ""
    except torch.OutOfMemoryError:
        return None, "out of memory"
    except Unavailable as error:
        return None, str(error)


def _checked(make, race, name):
    """An arm, made, called, and found to compute what it must.

    Raises Disagreement if it does not: a fast wrong answer is worth nothing.
    """
    arm = make()
    outputs, expected = measure.tensors(arm()), race.expected
    if len(outputs) != len(expected):
        reason = f"{len(outputs)} outputs, not {len(expected)}"
        raise measure.Disagreement(f"{name}: {reason}")
    for output, wanted in zip(outputs, expected, strict=True):
        try:
            measure.near(output, wanted, race.share)
        except measure.Disagreement as error:
            raise measure.Disagreement(f"{name}: {error}") from error
    return arm


def _calls(arms, device):
    """How many calls a turn has, so that the fastest arm's is about TURN_US long."""
    with torch.no_grad():
        fastest = min(
            statistics.median(measure.wall(arm, 1, device) for _ in range(3))
            for arm in arms.values()
        )
    return min(100, max(1, round(TURN_US / fastest)))


def _missing(cases):
    """{arm: reason} for arms that ran in no case."""
    ran = set(itertools.chain.from_iterable(case.samples for case in cases))
    reasons = itertools.chain.from_iterable(case.skipped.items() for case in cases)
    return {name: reason for name, reason in reasons if name not in {EVERY, *ran}}


def machine(device="cpu"):
    """The Machine that this program runs on."""
    name, gpu = measure.device_name(device), {}
    if device == "cuda":
        asked = ("--query-gpu=driver_version", "--format=csv,noheader")
        gpu = {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _output("nvidia-smi", *asked),
            "triton": _triton(),
        }
    return Machine(
        name=re.sub("[^a-z0-9]+", "-", name.lower()).strip("-"),
        kind=device,
        device=name,
        processor=measure.processor_name(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        **gpu,
    )


def _triton():
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


@cache
def commit():
    """The commit of the sources, with "+" if files were changed since; None if unknown."""
    head = _output("git", "rev-parse", "HEAD")
    changed = _output("git", "status", "--porcelain", "--", ".")
    return head and head + ("+" if changed else "")


def _output(*command):
    """The first line that a command prints; None where it fails or is not installed."""
    try:
        done = subprocess.run(
            command, cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


@cache
def sources():
    """A hash of the package's files: the same for the same code."""
    whole = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        whole.update(str(path.relative_to(PACKAGE)).replace(os.sep, "/").encode() + b"\0")
        whole.update(path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]
