"""Agree, count, time, in this order.

Compare two ways of computing something with a reference first (`agree`), count what they
launch (`count_launches`), and only then time them (`benchmark`), taking turns, so that a
machine which slows down slows them all. Nothing here saves or prints.

`_agreement` says whether results are equal, `_launches` counts what a call launches,
`_graphs` replays it as a CUDA graph, `_benchmark` times it, `_summary` computes quartiles
of the samples, and `_devices` has a device's name and how it rounds. Import four modules by
name: `cost`, the least that a program costs; `one_window`, what a window for all siblings
costs; `traffic`, what an Inception module in two launches moves; `eager`, what PyTorch
launches on CUDA.
"""

from ..errors import Disagreement
from ._agreement import Agreement, agree, differ, near, refusal, tensors
from ._benchmark import benchmark, host, named, wall
from ._devices import device_name, processor_name, synchronise, tf32, unit
from ._graphs import UNPLAYED, graphed
from ._launches import (
    Launches,
    computes,
    count_bytes,
    count_faults,
    count_launches,
    timeline,
)
from ._summary import gains, median_interval, quartiles

__all__ = ["UNPLAYED", "Agreement", "Disagreement", "Launches", "agree", "benchmark"]
__all__ += ["computes", "count_bytes", "count_faults", "count_launches", "device_name"]
__all__ += ["differ", "gains", "graphed", "host", "median_interval", "named", "near"]
__all__ += ["processor_name", "quartiles", "refusal", "synchronise", "tensors", "tf32"]
__all__ += ["timeline", "unit", "wall"]
