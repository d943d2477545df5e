"""A device: its name, how it rounds, and waiting for it."""

import platform
import subprocess
import sys
from typing import Any

import torch

Place = str | torch.device


def synchronise(device: Place) -> None:
    """Wait until `device` has done what it was given; a CPU always has."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind in ("mps", "xpu"):
        torch.get_device_module(kind).synchronize()  # that of MPS takes no device


def unit(x: torch.Tensor) -> float:
    """The relative error of a product with `x`; on a GPU float32 may run as TF32.

    Examples
    --------
    >>> unit(torch.ones(1)) == 2**-23
    True
    """
    settings = (torch.backends.cudnn, torch.backends.cuda.matmul)
    if x.is_cuda and x.dtype == torch.float32 and any(map(tf32, settings)):
        return 2**-10
    return torch.finfo(x.dtype).eps


def tf32(settings: Any) -> bool:
    """Whether a backend of torch may multiply float32 as TF32; True if it cannot say."""
    try:
        return settings.allow_tf32
    except RuntimeError:  # the newer setting, fp32_precision, is in use
        return True


def device_name(device: Place = "cpu") -> str:
    """What the device calls itself, for labels; a CPU with its number of threads."""
    kind = torch.device(device).type
    if kind in ("cuda", "xpu"):
        return torch.get_device_module(kind).get_device_name(device)
    if kind == "mps":
        return f"{processor_name()} GPU"
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def processor_name() -> str:
    """What the processor calls itself; where it does not, its architecture."""
    try:
        if sys.platform == "darwin":
            asked = ("sysctl", "-n", "machdep.cpu.brand_string")
            answer = subprocess.run(asked, capture_output=True, text=True, timeout=20)
            return answer.stdout.strip() or platform.machine()
        with open("/proc/cpuinfo") as lines:
            models = [line for line in lines if line.startswith("model name")]
    except (OSError, subprocess.SubprocessError):  # another system
        models = []
    return models[0].split(":")[1].strip() if models else platform.machine()
