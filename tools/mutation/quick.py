"""Laid beside the mutants: what makes ten thousand runs of the tests bearable."""

import gc
import itertools
import json
import os
from pathlib import Path

SECONDS = float(os.environ.get("HFUSION_SECONDS", "10"))


def pytest_collection_modifyitems(items):
    """The quickest tests first, and of those that reach a mutant as many as take 10 s."""
    known = Path("mutmut-stats.json")
    if known.exists():
        seconds = json.loads(known.read_text(encoding="utf-8"))["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0))
        so_far = itertools.accumulate(seconds.get(item.nodeid, 0) for item in items)
        if os.environ.get("MUTANT_UNDER_TEST", "").count("__mutmut_"):
            items[:] = [
                i for i, s in zip(items, so_far, strict=True) if s < SECONDS
            ] or items[:1]


def pytest_collection_finish():
    """What is there is no garbage: looking through all of torch takes half a second."""
    gc.collect()
    gc.freeze()
