"""nbval leaves out what cannot run here: chapter 10 needs Triton, which is for Linux."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("triton") else ["10-two-launches.ipynb"]


def pytest_report_header():
    """Say so."""
    return [f"left out, for want of Triton: {name}" for name in collect_ignore]
