"""What may have happened to a record: it ends early, lacks a variant, or is not there.

HFUSION_ALL_CUTS=1 cuts after every case and takes away every variant.
"""

import dataclasses
import os
from pathlib import Path

from sideways import records

ALL = os.environ.get("HFUSION_ALL_CUTS") == "1"
BOOK = Path(__file__).resolve().parents[2] / "records"


def machines():
    """The folders of the book's records, the one with the most first; others have what it
    lacks."""
    return sorted(BOOK.glob("*/"), key=lambda place: -len(list(place.iterdir())))


def cuts(record):
    """(what was done to it, a Record or None) for whatever may have happened to one."""
    yield "not there", None
    n = len(record.cases)
    some = sorted({0, 1, 2, n // 2, n - 1} & set(range(n)))
    for k in range(n) if ALL else some:
        late = {records.EVERY: "not reached within 1 s"}
        skipped = tuple(
            records.Case(c.parameters, {}, skipped=late) for c in record.cases[k:]
        )
        done = dataclasses.replace(record, cases=(*record.cases[:k], *skipped))
        yield f"late after {k} of {n} cases", done
        if ALL or k == some[len(some) // 2]:
            short = dataclasses.replace(record, cases=record.cases[:k])
            yield f"ends after {k} of {n} cases", short
    every = list(dict.fromkeys(name for case in record.cases for name in case.samples))
    for variant in every if ALL else every[:1] + every[-1:] if len(every) > 1 else ():
        yield f"without {variant!r}", without(record, variant)


def without(record, variant):
    """A record in which a variant has failed in every case."""
    cases = tuple(
        dataclasses.replace(
            case,
            samples={k: v for k, v in case.samples.items() if k != variant},
            launches={k: v for k, v in case.launches.items() if k != variant},
            faults={k: v for k, v in case.faults.items() if k != variant},
            skipped=case.skipped | {variant: "failed: ValueError: no"},
        )
        for case in record.cases
    )
    return dataclasses.replace(record, cases=cases)
