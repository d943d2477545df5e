"""The machine that a record comes from, and the sources that were measured."""

import hashlib
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

import torch

from hfusion import timing

from ..records import Machine

CODE = Path(__file__).parents[2]  # of both packages


def machine(device: str = "cpu") -> Machine:
    """The Machine that this program runs on."""
    name, gpu = timing.device_name(device), {}
    if device == "cuda":
        asked = ("--query-gpu=driver_version", "--format=csv,noheader")
        gpu = {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _output("nvidia-smi", *asked),
            "triton": _triton(),
        }
    return Machine(
        name=re.sub("[^a-z0-9]+", "-", name.lower()).strip("-"),
        kind=device,
        device=name,
        processor=timing.processor_name(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        **gpu,
    )


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


@cache
def commit() -> str | None:
    """The commit of the sources, with "+" if files were changed since; None if unknown.

    Where git is not at hand, the environment's HFUSION_COMMIT says it.
    """
    head = _output("git", "rev-parse", "HEAD") or os.environ.get("HFUSION_COMMIT")
    changed = _output("git", "status", "--porcelain", "--", ".")
    return head and head + ("+" if changed else "")


def _output(*command: str) -> str | None:
    """The first line that a command prints; None where it fails or is not installed."""
    try:
        done = subprocess.run(
            command, cwd=CODE, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


@cache
def sources() -> str:
    """A hash of the files of both packages: the same for the same code."""
    whole = hashlib.sha256()
    packages = (CODE / "hfusion", CODE / "sideways")
    for path in sorted(file for package in packages for file in package.rglob("*.py")):
        whole.update(path.relative_to(CODE).as_posix().encode() + b"\0")
        whole.update(path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]
