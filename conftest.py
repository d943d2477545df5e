"""What cannot run here, nbval leaves out and says so; and no home is no reason to fail."""

import importlib.util
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

REASONS = {}


def release(package):
    """(major, minor) of an installed package."""
    return tuple(map(int, version(package).split(".")[:2]))


if not importlib.util.find_spec("triton"):
    REASONS["chapters/10-two-launches.ipynb"] = "for want of Triton"
elif release("triton") < (3, 7) and release("numpy") >= (2, 4):
    # It makes a number of an array of one (Triton's issue 9171): TypeError.
    REASONS["chapters/10-two-launches.ipynb"] = (
        "since Triton's interpreter before 3.7 fails with NumPy 2.4 or newer"
    )
if " " in sys.prefix:
    REASONS["back/the-field.ipynb"] = "Inductor does not take a path with a space"
collect_ignore = list(REASONS)

# Where Matplotlib cannot write to the user's home it says so, on every page.
if not os.access(Path.home(), os.W_OK):
    CACHE = tempfile.TemporaryDirectory()
    os.environ.setdefault("MPLCONFIGDIR", CACHE.name)


def pytest_report_header():
    """Say so."""
    return [f"left out: {name}, {reason}" for name, reason in REASONS.items()]
