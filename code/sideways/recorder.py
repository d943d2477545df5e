"""One experiment on one machine: check, time, count, and a Record. Never saves.

An experiment is a module with three names:

    QUESTION                   what its record answers, one sentence
    cases(device)              [{parameter: value, …}, …], one dict per benchmark
    benchmark(device, **case)  a Benchmark: the variants, and what each must compute
    ROUNDS                     if it wants others than this module's
    COUNTED                    if its benchmarks count something else than launches
    again(device)              if some of its cases have slow variants: these cases, to be
                               measured once more, whole, when all else has been measured

A variant that cannot run here (no such library, no such device), for which there is not
enough memory, or whose turn did not come in time, is skipped, and the record says why. So
is one whose result is wrong or that raises anything else; the others go on.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

from hfusion import timing

from .records import EVERY, FAILED, LATE, WRONG, Case, Machine, Record

CODE = Path(__file__).parents[1]  # of both packages
ROUNDS, WARM_UP = 20, 3
LEAST_ROUNDS = 5  # so many are kept, if there was no time for more
TURN_US = 2000  # each variant has so many calls that its turn takes about this long
TICK_S = 1  # so often what takes long to make shows that it lives
STOPPED = f"{LATE} before the run was stopped"
AGAIN = f"{LATE}: it takes long to make, and comes when all else is measured"
SLACK = (
    0.05  # of the limit: what is interrupted may be late, and then what is ready benchmarks
)
# Words of errors that mean that there was not enough memory.
NO_MEMORY = ("DefaultCPUAllocator", "backend out of memory", "OUT_OF_DEVICE_MEMORY")


class Unavailable(RuntimeError):
    """Raised by what makes a variant: this machine lacks something for it."""


class Lost(BaseException):
    """Raised when a device fails at everything from now on, in this process.

    variant: who was at it. Another process may have the device.
    """

    def __init__(self, variant, reason):
        super().__init__(f"{variant}: {reason}")
        self.variant, self.reason = variant, reason


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What one case benchmarks."""

    variants: dict  # {name: a function that makes the function to time}
    expected: tuple  # tensors in float64, which every arm must give …
    tolerance: float  # … to within this share of the largest number
    watches: dict = dataclasses.field(default_factory=dict)  # {name: stopwatch}
    calls: int | None = None  # in a turn; as many as make it about TURN_US long
    opaque: tuple = ()  # names of variants in which a CPU's operators cannot be counted
    repeats: dict = dataclasses.field(default_factory=dict)  # {name: how often in a call}
    slow: tuple = ()  # names of variants that take long to make, for `again`
    timeline: Callable | None = None  # takes a timeline: the events, after the benchmark
    events: tuple = ()  # one that was taken before
    count: Callable | None = None  # of a variant: what COUNTED says, in place of launches
    tolerances: dict = dataclasses.field(default_factory=dict)  # {name: another}


def silent(words=None, every_s=0):
    """Says nothing."""


def run(
    experiment, device="cpu", limit_s=math.inf, progress=iter, keep=None,
    say=silent, known=None, again=None, lost=(),
):  # fmt: skip
    """Run an experiment, a module, and return its Record.

    limit_s: what does not get its turn within so many seconds is skipped; within a case
    as well, where fewer rounds are kept, if they are LEAST_ROUNDS. progress: is
    given the list of cases and passes them on, as tqdm does. keep: called after each case
    with the Record so far. say: called with what is done now, in words, and each second
    without. known: a Record; its cases that are not `unfinished` are not measured again.
    again: whether the experiment's `again` cases are measured once more, with their slow
    variants; True: nothing else is. A case that then lacks what it had stays as it was.
    lost: (parameters, variant, why not), variants that are left out; all of the case, if it
    has none of that name.
    float32 means float32, also in convolutions on a GPU, where cuDNN tries out its
    algorithms.
    """
    deadline = Deadline(limit_s, say)
    made = partial(Record, **_circumstances(experiment, device))
    planned = list(experiment.cases(device))
    there = [case for case in (known.cases if known else ()) if not unfinished(case)]
    cases = {_key(case.parameters): case for case in there}

    def so_far(reason):
        rest = {_key(p): Case(p, {}, calls={}, skipped={EVERY: reason}) for p in planned}
        return made(cases=tuple((rest | cases).values()), missing=_missing(cases.values()))

    todo = _todo(experiment, device, planned, cases, again)
    wholes = iter([whole for _, whole in todo])
    with _full_float32():
        for parameters in progress([p for p, _ in todo]):
            if deadline.late():
                break
            key, whole = _key(parameters), next(wholes)
            gone = {variant: why for p, variant, why in lost if _key(p) == key}
            found = _case(experiment, device, parameters, deadline, whole, gone)
            cases[key] = _fuller(cases.get(key), found)
            if keep:
                keep(so_far(STOPPED))
    return so_far(deadline.reason)


@contextlib.contextmanager
def _full_float32():
    """No TF32 in convolutions; cuDNN tries out its algorithms, as its rivals may."""
    cudnn = torch.backends.cudnn
    before = timing.tf32(cudnn), cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = False, True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before


def _todo(experiment, device, planned, cases, again):
    """[(parameters, whether with slow variants), …] of what `cases`, those known, lack."""
    slow = list(getattr(experiment, "again", lambda device: ())(device))
    todo = [(p, p not in slow) for p in planned if _key(p) not in cases and not again]
    if again is not False:
        known = {key: case for key, case in cases.items() if not _late(case)}
        todo += [(p, True) for p in slow if _key(p) not in known]
    return todo


def _late(case):
    """Whether a case lacks something for want of time."""
    return any(reason.startswith(LATE) for reason in case.skipped.values())


def _fuller(before, now):
    """Which of two Cases of one benchmark is kept: the later, if it has all variants."""
    if before is None or set(before.samples) <= set(now.samples):
        return now
    why = {n: reason for n, reason in now.skipped.items() if n not in before.samples}
    return dataclasses.replace(before, skipped=before.skipped | why)


def _key(parameters):
    return tuple(parameters.items())


def unfinished(case):
    """Whether a case was not reached: nothing was measured, for want of time."""
    return _late(case) and not case.samples


def shared(shares, limit_s):
    """(name, the seconds that it may take), in turn: what one leaves of its time goes to
    those that follow.

    shares: {name: its share of `limit_s`}; they need not add up to 1.
    """
    names, began = list(shares), time.monotonic()
    for place, name in enumerate(names):
        left_s = max(0, limit_s - (time.monotonic() - began))
        yield name, left_s * shares[name] / sum(shares[n] for n in names[place:])


def _circumstances(experiment, device):
    """What a Record says beside its cases."""
    rounds = getattr(experiment, "ROUNDS", ROUNDS)
    launches = "kernels" if device == "cuda" else "operators"
    return {
        "experiment": experiment.__name__.rpartition(".")[2],
        "question": experiment.QUESTION,
        "machine": machine(device),
        "date": datetime.date.today().isoformat(),
        "commit": commit() or "unknown",
        "sources": sources(),
        "counted": getattr(experiment, "COUNTED", launches),
        "protocol": {
            "order": "arms take turns, and each round begins with the next arm",
            "turn": "one call that is not timed, then the arm's calls in a row",
            "rounds": rounds,
            "least_rounds": min(rounds, LEAST_ROUNDS),
            "warm_up": WARM_UP,
            "turn_us": TURN_US,
            "inputs": "random, the same for all arms of a case",
            "checked": "each arm against float64, before any timing",
            "cudnn_benchmark": True,
        },
    }


class TooLate(BaseException):
    """Raised inside what takes too long; no Exception, so that it is not mistaken."""


@contextlib.contextmanager
def _lost_in_silence():
    """In a finalizer Python drops a TooLate and says so, though the alarm rings again."""
    heard = sys.unraisablehook
    sys.unraisablehook = lambda lost: lost.exc_type is TooLate or heard(lost)
    try:
        yield
    finally:
        sys.unraisablehook = heard


class Deadline:
    """`limit_s` seconds from when it was made. The clock is looked at; what cannot look
    is interrupted by an alarm, where the system has one and this is its main thread.
    say: as for `record`; the alarm calls it, too.
    """

    def __init__(self, limit_s, say=silent):
        self.limit_s, self.began, self.say = limit_s, time.monotonic(), say
        self.reason = f"{LATE} within {limit_s:.3g} s"

    def left(self):
        return self.limit_s - (time.monotonic() - self.began)

    def late(self):
        return self.left() < 0

    def check(self, reserve_s=0):
        """Raise Unavailable if there is less left than `reserve_s`."""
        if self.left() < reserve_s:
            raise Unavailable(self.reason)

    @contextlib.contextmanager
    def alarm(self, reserve_s=0):
        """What is inside ends `reserve_s` before the deadline, by TooLate if need be."""
        main = threading.current_thread() is threading.main_thread()
        if not (main and hasattr(signal, "setitimer") and self.left() < math.inf):
            yield
            return
        rings, inside = [], True

        def wait():
            # Again each second: who is inside may have caught it.
            first_s = min(TICK_S, max(1e-3, self.left() - reserve_s))
            signal.setitimer(signal.ITIMER_REAL, first_s, TICK_S)

        def ring(*_):
            if not inside:
                return
            if not rings and self.left() > reserve_s:
                wait()
                self.say()
                return
            rings.append(1)
            raise TooLate

        before = signal.signal(signal.SIGALRM, ring)
        try:
            try:
                wait()
                yield
            except Exception as error:  # also what somebody made of a TooLate
                if rings:
                    raise TooLate from error
                raise
            finally:
                inside = False
        finally:  # apart, so that a last ring in the finally above cannot skip it
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _case(experiment, device, parameters, deadline, whole=True, gone=()):
    """Check, time and count the variants of one case: without its slow ones unless it is
    `whole`, and without those that are `gone`, {variant: why}."""

    def prepared():
        if "" in gone:  # whoever tried before, was lost here
            return None
        _need(device, parameters.get("dtype", "float32"))
        made = experiment.benchmark(device, **parameters)
        return made if set(gone) <= set(made.variants) else None

    benchmark, skips = _made(deadline, prepared)
    if benchmark is None:
        why = skips or {EVERY: next(iter(gone.values()))}
        return Case(parameters, {}, calls={}, skipped=why)
    left_out = dict(gone) | ({} if whole else dict.fromkeys(benchmark.slow, AGAIN))
    variants, skips = _ready(benchmark, device, deadline, left_out)
    rounds = getattr(experiment, "ROUNDS", ROUNDS)
    if variants:
        deadline.say(f"{len(variants)} in turns")
    samples, calls, why = _measured(benchmark, variants, device, rounds, deadline)
    skips |= why
    if samples:
        deadline.say("counting")
    launches, faults, why = _counted(benchmark, {n: variants[n] for n in samples}, device)
    skips |= why
    events, why = benchmark.events, {}
    if benchmark.timeline and samples:  # last: a profiler makes what comes after it slower
        events, why = _made(deadline, benchmark.timeline, "timeline")
    once = {name: benchmark.repeats.get(name, 1) for name in samples}
    return Case(
        parameters,
        {n: [round(us / once[n], 3) for us in times] for n, times in samples.items()},
        calls=calls,
        launches={name: count // once[name] for name, count in launches.items()},
        faults=faults,
        skipped=skips | why,
        events=tuple(events or ()),
        notes=_notes({name: variants[name] for name in samples}),
    )


def _notes(variants):
    """{variant: what it says of itself}; that of a graph is what it was made of."""
    notes = {}
    for name, variant in variants.items():
        note = getattr(getattr(variant, "fn", variant), "note", None)
        if note and (said := note()):
            notes[name] = said
    return notes


def _ready(benchmark, device, deadline, left_out):
    """({variant: it, made and checked}, {variant: why not}), with those `left_out`."""
    variants, skips, reserve_s = {}, dict(left_out), 0
    for name, make in benchmark.variants.items():
        if name in left_out:
            continue
        deadline.say(name)
        check = partial(_checked, make, benchmark, device, name)
        found, why = _made(deadline, check, name, reserve_s)
        skips |= why
        if found:
            reserve_s += _benchmark_s(found[1]) + (
                0 if variants else SLACK * deadline.limit_s
            )
            variants[name], _ = found
    return variants, skips


def _need(device, dtype):
    """Unavailable where a device has no such numbers."""
    try:
        torch.zeros(1, device=device).to(getattr(torch, dtype))
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise Unavailable(f"{device} has no {dtype}") from error


def _benchmark_s(call_s):
    """What the least benchmark adds for a variant whose call takes `call_s`, in seconds."""
    turn_s = call_s + max(call_s, TURN_US / 1e6)
    return LEAST_ROUNDS * turn_s + 10 * call_s  # warming up, finding `calls`, counting


def _measured(benchmark, variants, device, rounds, deadline):
    """(samples, calls of each variant, {variant: why not}) of variants that agree.

    If one fails on the way, the others benchmark again.
    """
    skips = {}

    def late():
        deadline.say(every_s=TICK_S)
        return deadline.late()

    def attempt():
        watches = {
            name: benchmark.watches[name] for name in variants if name in benchmark.watches
        }
        if benchmark.calls:
            calls = dict.fromkeys(variants, benchmark.calls)
        else:
            calls = _calls(variants, device, deadline)
        samples = timing.benchmark(variants, device, rounds, WARM_UP, calls, watches, late)
        if min(map(len, samples.values())) < min(rounds, LEAST_ROUNDS):
            raise Unavailable(deadline.reason)
        return samples, calls

    while variants:
        found, why = _made(deadline, attempt, interrupts=False)
        skips |= why
        if found:
            return *found, skips
        alone = set(why) <= set(variants)  # else it was all of them
        variants = {
            name: variant for name, variant in variants.items() if alone and name not in why
        }
    return {}, {}, skips


def _counted(benchmark, variants, device):
    """(launches, page faults, {what: why not}), after the timing: a profiler slows it."""
    count = benchmark.count or (
        lambda variant: timing.count_launches(variant, device).count
    )
    launches, faults, skips = {}, {}, {}
    for name, variant in variants.items():
        opaque = device != "cuda" and name in benchmark.opaque
        for counts, counter in (
            (launches, None if opaque else count),
            (faults, timing.count_faults),
        ):
            if counter:
                found, why = _made(None, partial(counter, variant), f"{name}, counting")
                skips |= why
                if found is not None:
                    counts[name] = found
    return launches, faults, skips


def _made(deadline, make, variant=EVERY, reserve_s=0, interrupts=True):
    """(what `make` makes, {}) or (None, {variant: why not}), whatever it raises."""
    alarm = contextlib.nullcontext()
    try:
        if deadline:
            deadline.check(reserve_s)
            alarm = deadline.alarm(reserve_s) if interrupts else alarm
        with torch.no_grad(), _lost_in_silence(), alarm:
            return make(), {}
    except TooLate:
        return None, {variant: deadline.reason}
    except Exception as error:
        who = getattr(error, "variant", variant) if variant == EVERY else variant
        reason = _reason(error)
        if not _answers():
            raise Lost(who, reason) from error
        return None, {who: reason}


def _answers():
    """Whether the GPU that this process uses still does what it is told."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _reason(error):
    """Why something was skipped, in one line."""
    text = str(error).partition("\n")[0].strip()
    lacks_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if lacks_memory or any(words in text for words in NO_MEMORY):
        return "out of memory"
    if isinstance(error, Unavailable | NotImplementedError):
        return text or "unavailable"
    if isinstance(error, timing.Disagreement):
        return WRONG + text
    return f"{FAILED}{type(error).__name__}: {text}"


def _checked(make, benchmark, device, name=None):
    """(a variant, made, called, and found to compute what it must; the seconds of a call).

    Raises Disagreement if it does not: a fast wrong answer is worth nothing.
    """
    variant = make()
    began = time.monotonic()
    outputs, expected = timing.tensors(variant()), benchmark.expected
    timing.synchronise(device)
    call_s = time.monotonic() - began
    if len(outputs) != len(expected):
        raise timing.Disagreement(f"{len(outputs)} outputs, not {len(expected)}")
    tolerance = benchmark.tolerances.get(name, benchmark.tolerance)
    for output, wanted in zip(outputs, expected, strict=True):
        timing.near(output, wanted, tolerance)
    return variant, call_s


def _calls(variants, device, deadline):
    """{variant: how many calls a turn has, so that it is about TURN_US long}."""
    calls = {}
    with torch.no_grad():
        for name, variant in variants.items():
            deadline.check()
            with timing.named(name):
                us = statistics.median(timing.wall(variant, 1, device) for _ in range(3))
            calls[name] = min(100, max(1, round(TURN_US / us)))
    return calls


def _missing(cases):
    """{variant: reason} for variants that ran in no case."""
    ran = set(itertools.chain.from_iterable(case.samples for case in cases))
    reasons = itertools.chain.from_iterable(case.skipped.items() for case in cases)
    return {name: reason for name, reason in reasons if name not in {EVERY, *ran}}


def machine(device="cpu"):
    """The Machine that this program runs on."""
    name, gpu = timing.device_name(device), {}
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
        processor=timing.processor_name(),
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
    """The commit of the sources, with "+" if files were changed since; None if unknown.

    Where git is not at hand, the environment's HFUSION_COMMIT says it.
    """
    head = _output("git", "rev-parse", "HEAD") or os.environ.get("HFUSION_COMMIT")
    changed = _output("git", "status", "--porcelain", "--", ".")
    return head and head + ("+" if changed else "")


def _output(*command):
    """The first line that a command prints; None where it fails or is not installed."""
    try:
        done = subprocess.run(
            command, cwd=CODE, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


@cache
def sources():
    """A hash of the files of both packages: the same for the same code."""
    whole = hashlib.sha256()
    packages = (CODE / "hfusion", CODE / "sideways")
    for path in sorted(file for package in packages for file in package.rglob("*.py")):
        whole.update(path.relative_to(CODE).as_posix().encode() + b"\0")
        whole.update(path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]
