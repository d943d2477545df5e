"""How one case is measured: each variant made and checked, then timed, then counted."""

import contextlib
import statistics
import time
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType, ModuleType

import torch

from hfusion import timing

from ..records import EVERY, FAILED, LATE, WRONG, Case
from .benchmark import Lost, Unavailable, Variant
from .deadlines import TICK_S, Deadline, TooLate, lost_in_silence

ROUNDS, WARM_UP = 20, 3
LEAST_ROUNDS = 5  # so many are kept, if there was no time for more
TURN_US = 2000  # each variant has so many calls that its turn takes about this long
AGAIN = f"{LATE}: it takes long to make, and comes when all else is measured"
SLACK = 0.05  # of the limit: an interruption may come late, and what is ready needs a turn
# Words of errors that mean that there was not enough memory.
NO_MEMORY = ("DefaultCPUAllocator", "backend out of memory", "OUT_OF_DEVICE_MEMORY")


def rounds_of(experiment: ModuleType) -> int:
    """How many rounds an experiment's variants take turns in."""
    return getattr(experiment, "ROUNDS", ROUNDS)


def measure_case(
    experiment: ModuleType,
    device: str,
    parameters: dict,
    deadline: Deadline,
    whole: bool = True,
    gone: Mapping[str, str] = MappingProxyType({}),
) -> Case:
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
    return _case(parameters, benchmark, device, rounds_of(experiment), deadline, left_out)


def _case(parameters, benchmark, device, rounds, deadline, left_out):
    """The Case of a benchmark, without the variants that are `left_out`, {name: why}."""
    variants, skips = _ready(benchmark, device, deadline, left_out)
    if variants:
        deadline.say(f"{len(variants)} in turns")
    samples, calls, why = _measured(benchmark, variants, device, rounds, deadline)
    skips |= why
    variants = {name: variants[name] for name in samples}
    if samples:
        deadline.say("counting")
    launches, faults, why = _counted(benchmark, variants, device)
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
        notes=_notes(variants),
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
    variants: dict[str, Variant] = {}
    skips, reserve_s = dict(left_out), 0.0
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

    If one fails on the way, the others are timed again.
    """
    skips: dict[str, str] = {}

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
    launches: dict[str, int] = {}
    faults: dict[str, int] = {}
    skips: dict[str, str] = {}
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
        with torch.no_grad(), lost_in_silence(), alarm:
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
