"""Chapter 10 needs Triton, which is for Linux: nbval leaves it out elsewhere."""

import importlib.util

collect_ignore = []
if not importlib.util.find_spec("triton"):
    collect_ignore.append("10-two-launches.ipynb")


def pytest_report_header():
    """Say so."""
    return [f"left out, for want of Triton: {name}" for name in collect_ignore]
