"""The experiments: one question a file, one record a machine.

>>> list(SHARES)  # doctest: +ELLIPSIS
['ceilings', 'stopwatches', 'launch_overhead', 'timeline', 'stage', ...]
"""

import importlib
import os
from pathlib import Path

import torch

from .. import records
from ..recording import record
from ..shipped import shipped

# Of the time for all of them, what each may have.
SHARES = {
    "ceilings": 0.05,
    "stopwatches": 0.03,
    "launch_overhead": 0.03,
    "timeline": 0.02,
    "stage": 0.25,
    "embedding": 0.06,
    "projections": 0.04,
    "module_ladder": 0.33,
    "network": 0.14,
    "leftover": 0.03,
    "memory": 0.02,  # last: it changes how this process gets its memory
}


def here():
    """The device at hand: "cuda" if there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(name, device, limit_s=float("inf"), progress=iter, keep=None):
    """The Record of one experiment, measured now; see `recording.record`."""
    experiment = importlib.import_module(f".{name}", __package__)
    return record(experiment, device, limit_s, progress, keep)


def results(name, folder, live=False):
    """What is known about an experiment: {machine: Record}, GPUs first.

    From the records in `folder`, or those of the wheel where there is none. Or, if `live`
    or the environment's HFUSION_LIVE=1 says so, measured now on the device at hand, and not
    saved. The machine that the environment's HFUSION_MACHINE names goes first. Raises
    records.NotRecorded if no machine has a record of it.
    """
    if live or os.environ.get("HFUSION_LIVE") == "1":
        measured = run(name, here())
        return {measured.machine.name: measured}
    folder = shipped(folder)
    found = records.load_all(folder, name)
    if not found:
        raise records.NotRecorded(
            f"{folder} has no record of {name}: `LIVE = True` in the first cell that says "
            "LIVE measures here; `python -m hfusion record` makes a record"
        )
    chosen = os.environ.get("HFUSION_MACHINE")
    if chosen and not (Path(folder) / chosen).is_dir():
        fits = ", ".join(sorted(path.name for path in Path(folder).glob("*/")))
        raise records.RecordError(
            f"HFUSION_MACHINE: expected a folder in {folder} ({fits}), got {chosen}"
        )
    return dict(sorted(found.items(), key=lambda item: item[0] != chosen))


def result(name, folder, live=False, kind=None):
    """The Record that a page reads: the first of `results`.

    kind: "cpu" or "cuda", where only machines of that kind fit. Where there is no such
    record, one without cases, labelled "not recorded", whose `select` raises
    records.NotRecorded; see `show.recorded`.
    """
    try:
        found = results(name, folder, live).values()
    except records.NotRecorded:
        found = ()
    fits = (record for record in found if kind in (None, record.machine.kind))
    return next(fits, records.nothing(name))
