"""What cannot run here, nbval leaves out and says so; and no home is no reason to fail."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

REASONS = {}
if not importlib.util.find_spec("triton"):
    REASONS["chapters/10-two-launches.ipynb"] = "for want of Triton"
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
