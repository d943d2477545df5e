"""Why does one large product sometimes lose on a CPU?

Modules and batches at which `stage` loses, twice: with the system's memory allocator as
it comes, which hands large pieces back and has to ask for them anew, a page at a time; and
told to keep them. (On a GPU PyTorch keeps memory itself.)
"""

import ctypes

from ..recorder import Benchmark, Unavailable
from . import stage

QUESTION = "Is it the memory that makes one large product lose on a CPU?"
LARGE = (("3b", 32, "NCHW"), ("3a", 128, "NHWC"), ("4e", 128, "NHWC"))
# Of glibc's mallopt: the numbers of its settings, and what switches handing back off.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, NEVER = -1, -3, 2**30


def cases(device):
    # Keeping cannot be switched off again: last.
    return [
        {"memory": memory, "module": module, "batch": batch, "layout": layout}
        for memory in ("as it comes", "kept")
        for module, batch, layout in LARGE
    ]


def benchmark(device, memory, module, batch, layout):
    if device != "cpu":
        raise Unavailable("PyTorch keeps a GPU's memory itself")
    if memory == "kept":
        keep()
    whole = stage.benchmark(device, module, batch, "float32", layout)
    makers = {name: whole.variants[name] for name in ("separate", "stacked", "copied")}
    return Benchmark(makers, whole.expected, whole.tolerance)


def keep():
    """Have glibc keep what is freed, from now on, in this process."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError) as error:  # another system, or another C library
        raise Unavailable("needs glibc") from error
    if not (mallopt(M_MMAP_THRESHOLD, NEVER) and mallopt(M_TRIM_THRESHOLD, NEVER)):
        raise Unavailable("glibc refused the setting")
