"""The experiments: one question per file, one record per machine.

>>> list(SHARES)  # doctest: +ELLIPSIS
['ceilings', 'stopwatches', 'launch_overhead', 'timeline', 'embedding', ...]
"""

import importlib
import os

import torch

from .. import recorder, records
from ..live import measured
from ..shipped import shipped

# Of the time for all of them, what each may have. What most pages read comes first, and
# `stage`, which takes all that it is given, late.
SHARES = {
    "ceilings": 0.05,
    "stopwatches": 0.03,
    "launch_overhead": 0.03,
    "timeline": 0.02,
    "embedding": 0.06,
    "projections": 0.04,
    "module_ladder": 0.27,
    "network": 0.13,
    "checks": 0.03,
    "leftover": 0.03,
    "stage": 0.13,
    "memory": 0.02,
    "kernel_times": 0.02,
    "rivals": 0.05,
}
# What their slow variants may have, at the end.
AGAIN = {"module_ladder": 0.06, "network": 0.03}


MINUTES = 3  # that a page may measure, unless it says otherwise
ACCELERATORS = ("cuda", "mps", "xpu")  # NVIDIA's and AMD's, a Mac's, Intel's


def here() -> str:
    """The device at hand: "cuda", "mps" or "xpu" if torch finds a GPU, else "cpu"."""
    accelerator = torch.accelerator
    found = accelerator.current_accelerator() if accelerator.is_available() else None
    return found.type if found and found.type in ACCELERATORS else "cpu"


def run(
    name, device, limit_s=float("inf"), progress=iter, keep=None,
    say=recorder.silent, known=None, again=None, lost=(),
):  # fmt: skip
    """The Record of one experiment, measured now; see `recorder.run`."""
    experiment = importlib.import_module(f".{name}", __package__)
    return recorder.run(
        experiment, device, limit_s, progress, keep, say, known, again, lost
    )


def again(name, device) -> bool:
    """Whether an experiment has slow variants on this device, measured last."""
    experiment = importlib.import_module(f".{name}", __package__)
    return bool(getattr(experiment, "again", lambda device: ())(device))


def several(names, folder, live=False, minutes=MINUTES, kind=None) -> dict:
    """What is known about experiments: {name: {machine: Record}}, GPUs first, and {} for
    an experiment of which there is no record.

    It reads the records in `folder`, or those of the wheel if there is no such folder. The
    machine that the environment's HFUSION_MACHINE names comes first. If `live` is True, or
    the environment has HFUSION_LIVE=1, the experiments are measured now on the device at
    hand, in at most `minutes` for all of them (or HFUSION_LIVE_MINUTES), and nothing is
    saved; see `live.measured`. kind: "cpu", "cuda", …, if only devices of that kind fit;
    without such a device nothing is measured, and a line says so.
    """
    if live or os.environ.get("HFUSION_LIVE") == "1":
        device, made = kind or here(), {}
        if device in ("cpu", here()):
            shares = {name: SHARES[name] for name in names}
            made = measured(shares, device, _minutes(minutes), run)
        else:
            print(f"Nothing is measured: that takes a {kind} device, and torch finds none.")
        found = {n: {r.machine.name: r} for n, r in made.items()}
        return {name: {} for name in names} | found
    chosen, place = os.environ.get("HFUSION_MACHINE"), shipped(folder)
    if chosen and not (place / chosen).is_dir():
        fits = ", ".join(sorted(path.name for path in place.glob("*/")))
        raise records.RecordError(
            f"HFUSION_MACHINE: expected a folder in {folder} ({fits}), got {chosen}"
        )
    found = {}
    for name in names:
        every = sorted(records.load_all(place, name).items(), key=lambda r: r[0] != chosen)
        found[name] = {m: r for m, r in every if kind in (None, r.machine.kind)}
    return found


def _minutes(given):
    """How many minutes a page may measure."""
    said = os.environ.get("HFUSION_LIVE_MINUTES")
    try:
        minutes = float(said or given)
    except (TypeError, ValueError):
        minutes = 0
    if not 0 < minutes < float("inf"):
        name = "HFUSION_LIVE_MINUTES" if said else "minutes"
        raise ValueError(f"{name}: expected a number above 0, got {said or given!r}")
    return minutes


def results(name, folder, live=False, minutes=MINUTES) -> dict:
    """What is known about one experiment: {machine: Record}; see `several`.

    Raises records.NotRecorded if no machine has a record of it.
    """
    found = several((name,), folder, live, minutes)[name]
    if not found and (live or os.environ.get("HFUSION_LIVE") == "1"):
        raise records.NotRecorded(f"no case of {name} was measured; run the cell again")
    if not found:
        raise records.NotRecorded(
            f"{shipped(folder)} has no record of {name}: `LIVE = True` in the first cell "
            "that says LIVE measures here; `python -m hfusion record` makes a record"
        )
    return found


def first(found, name):
    """The Record of an experiment that a page reads, from what `several` has found.

    If nothing was found, it is a Record without cases, labelled "not recorded", whose
    `select` raises records.NotRecorded; see `show.recorded`.
    """
    return next(iter(found[name].values()), records.nothing(name))


def result(name, folder, live=False, kind=None, minutes=MINUTES):
    """The Record that a page reads: the `first` of one experiment."""
    return first(several((name,), folder, live, minutes, kind), name)
