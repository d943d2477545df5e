"""One experiment on one machine: check, time, count, and a Record. Never saves.

    running      which cases are measured, and the Record: `run`
    measuring    how one case is measured
    benchmark    what an experiment hands over: `Benchmark`, or `Unavailable`
    deadlines    limits of time
    machines     the machine that it runs on, and its sources

An experiment is a module with three names, and with three more where it needs them:

    QUESTION                   what its record answers, one sentence
    cases(device)              [{parameter: value, …}, …], one dict per benchmark
    benchmark(device, **case)  a Benchmark: the variants, and what each must compute
    ROUNDS                     if it wants others than `measuring.ROUNDS`
    COUNTED                    if its benchmarks count something else than launches
    again(device)              if some of its cases have slow variants: these cases, to be
                               measured once more, whole, when all else has been measured

A variant that cannot run here (no such library, no such device), for which there is not
enough memory, or whose turn did not come in time, is skipped, and the record says why. So
is one whose result is wrong or that raises anything else; the others go on.
"""

from .benchmark import Benchmark, Lost, Unavailable, noting
from .deadlines import Deadline, TooLate, shared, silent
from .machines import machine
from .measuring import AGAIN
from .running import STOPPED, run, unfinished

__all__ = [
    "AGAIN",
    "STOPPED",
    "Benchmark",
    "Deadline",
    "Lost",
    "TooLate",
    "Unavailable",
    "machine",
    "noting",
    "run",
    "shared",
    "silent",
    "unfinished",
]
