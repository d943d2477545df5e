"""Laid beside the mutants: what makes ten thousand runs of the tests bearable."""

import gc
import json
from pathlib import Path


def pytest_collection_modifyitems(items):
    """The quickest tests first: one of them is enough to notice a mutant."""
    known = Path("mutmut-stats.json")
    if known.exists():
        seconds = json.loads(known.read_text(encoding="utf-8"))["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0))


def pytest_collection_finish():
    """What is there is no garbage: looking through all of torch takes half a second."""
    gc.collect()
    gc.freeze()
