"""Running an experiment: which cases are measured, and the Record of what came."""

import contextlib
import dataclasses
import datetime
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import ModuleType

import torch

from hfusion import timing

from ..records import EVERY, LATE, Case, Record
from . import machines, measuring
from .deadlines import Deadline, silent
from .measuring import measure_case

STOPPED = f"{LATE} before the run was stopped"


def run(
    experiment: ModuleType,
    device: str = "cpu",
    limit_s: float = math.inf,
    progress: Callable[[list[dict]], Iterable[dict]] = iter,
    keep: Callable[[Record], object] | None = None,
    say: Callable[..., None] = silent,
    known: Record | None = None,
    again: bool | None = None,
    lost: Sequence[tuple[dict, str, str]] = (),
) -> Record:
    """Run an experiment, a module as `sideways.recorder` describes it, to its Record.

    device: "cpu", "cuda", "mps" or "xpu". limit_s: what does not get its turn in so many
    seconds is skipped; a case may have fewer rounds. progress: passes the cases on, as tqdm
    does. keep: called after each case with the Record so far. say: called with what is done
    now, in words, and each second without. known: a Record; its cases that are not
    `unfinished` are not measured again. again: whether those of the experiment's `again`
    are, with slow variants, and kept where they lack nothing they had; True: no others.
    lost: (parameters, variant, why not), left out; the whole case, if it has no such one.
    """
    deadline = Deadline(limit_s, say)
    made = partial(Record, **_circumstances(experiment, device))
    planned = list(experiment.cases(device))
    there = [case for case in (known.cases if known else ()) if not unfinished(case)]
    cases = {_key(case.parameters): case for case in there}
    so_far = partial(_so_far, made, planned, cases)
    todo = _todo(experiment, device, planned, cases, again)
    wholes = iter([whole for _, whole in todo])
    with _full_float32():
        for parameters in progress([p for p, _ in todo]):
            if deadline.late():
                break
            key, whole = _key(parameters), next(wholes)
            gone = {variant: why for p, variant, why in lost if _key(p) == key}
            found = measure_case(experiment, device, parameters, deadline, whole, gone)
            cases[key] = _fuller(cases.get(key), found)
            if keep:
                keep(so_far(STOPPED))
    return so_far(deadline.reason)


def _so_far(made, planned, cases, reason):
    """A Record of what there is; reason: why there is not the rest of what was planned."""
    rest = {_key(p): Case(p, {}, calls={}, skipped={EVERY: reason}) for p in planned}
    return made(cases=tuple((rest | cases).values()), missing=_missing(cases.values()))


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


def unfinished(case: Case) -> bool:
    """Whether a case was not reached: nothing was measured, for want of time."""
    return _late(case) and not case.samples


def _circumstances(experiment, device):
    """What a Record says beside its cases."""
    rounds = measuring.rounds_of(experiment)
    launches = "kernels" if device == "cuda" else "operators"
    return {
        "experiment": experiment.__name__.rpartition(".")[2],
        "question": experiment.QUESTION,
        "machine": machines.machine(device),
        "date": datetime.date.today().isoformat(),
        "commit": machines.commit() or "unknown",
        "sources": machines.sources(),
        "counted": getattr(experiment, "COUNTED", launches),
        "protocol": {
            "order": "arms take turns, and each round begins with the next arm",
            "turn": "one call that is not timed, then the arm's calls in a row",
            "rounds": rounds,
            "least_rounds": min(rounds, measuring.LEAST_ROUNDS),
            "warm_up": measuring.WARM_UP,
            "turn_us": measuring.TURN_US,
            "inputs": "random, the same for all arms of a case",
            "checked": "each arm against float64, before any timing",
            "cudnn_benchmark": True,
        },
    }


def _missing(cases):
    """{variant: reason} for variants that ran in no case."""
    ran = set(itertools.chain.from_iterable(case.samples for case in cases))
    reasons = itertools.chain.from_iterable(case.skipped.items() for case in cases)
    return {name: reason for name, reason in reasons if name not in {EVERY, *ran}}
