"""Functions timed against one another, taking turns."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..errors import FusionError, check_int
from ._devices import Place, synchronise

Call = Callable[[], Any]
Stopwatch = Callable[[Call, int, Any], float]  # (call, calls, device) -> µs per call


def wall(call: Call, calls: int, device: Place) -> float:
    """A stopwatch: µs per call until the work is done, the mean of `calls` in a row."""
    synchronise(device)
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    synchronise(device)
    return (time.perf_counter_ns() - start) / 1000 / calls


def host(call: Call, calls: int, device: Place) -> float:
    """A stopwatch: µs until a call returns, its work done or not.

    The device is waited for between calls, so that its queue never fills up. On a GPU
    this is what the host needs to launch; on a CPU it is the same as `wall`.
    """
    elapsed_ns = 0
    for _ in range(calls):
        synchronise(device)
        start = time.perf_counter_ns()
        call()
        elapsed_ns += time.perf_counter_ns() - start
    synchronise(device)
    return elapsed_ns / 1000 / calls


def benchmark(
    variants: Mapping[Any, Call], device: Place = "cpu", rounds: int = 30,
    warm_up: int = 5, calls: int | Mapping[Any, int] = 10,
    watches: Mapping[Any, Stopwatch] | None = None,
    late: Callable[[], bool] | None = None,
) -> dict[Any, list[float]]:  # fmt: skip
    """Time functions against one another: raw samples in µs per call.

    Each variant is warmed up. Then it has one turn in every round, and every round
    starts with another variant, so that a machine which slows down slows them all. A turn
    begins with one untimed call, so that it does not pay for what the variant before has
    left in the caches. Check with `agree` first that the variants agree.

    Parameters
    ----------
    variants : dict
        {name: function without arguments}.
    device : str or torch.device
        Where they work; the benchmark waits for it.
    rounds, warm_up : int
        Turns of each variant, and calls of each before its first turn.
    calls : int or dict
        Timed calls per turn, for all variants or for each.
    watches : dict
        {name: stopwatch} for variants that need another one than `wall`.
    late : function
        Asked before every call of the warm-up and every turn. Once it says True, the
        benchmark is over.

    Returns
    -------
    dict
        {name: [µs of round 0, …]}, of the rounds that were complete, perhaps of none.

    Raises
    ------
    FusionError
        For an argument that is not as above. What a variant itself raises gets its name
        as the attribute `variant`.

    Examples
    --------
    >>> sorted(benchmark({"a": lambda: 1, "b": lambda: 2}, rounds=3))
    ['a', 'b']
    """
    watches = dict.fromkeys(variants, wall) | dict(watches or {})
    if not isinstance(calls, Mapping):
        calls = dict.fromkeys(variants, calls)
    late = late or (lambda: False)
    _refuse_bad(variants, watches, calls, rounds=rounds, warm_up=warm_up)
    names = list(variants)
    samples: dict[Any, list[float]] = {name: [] for name in names}
    with torch.no_grad():
        for name in names:
            for _ in range(warm_up):
                if late():
                    return samples
                with named(name):
                    variants[name]()
        for turn in range(rounds):
            for place in range(len(names)):
                if late():
                    return {n: times[:turn] for n, times in samples.items()}
                name = names[(turn + place) % len(names)]
                with named(name):
                    variants[name]()
                    us = watches[name](variants[name], calls[name], device)
                samples[name].append(us)
    return samples


@contextlib.contextmanager
def named(variant: object) -> Iterator[None]:
    """What is raised inside gets the attribute `variant`: whose call raised it."""
    try:
        yield
    except Exception as error:
        error.variant = variant  # type: ignore[attr-defined]
        raise


def _refuse_bad(variants: Mapping, watches: dict, calls: Mapping, **numbers: int) -> None:
    if not variants:
        raise FusionError("variants: expected at least one function, got none")
    if set(calls) != set(variants):
        raise FusionError(f"calls: expected a number for each variant, got {sorted(calls)}")
    checked = [*numbers.items(), *(("calls", number) for number in calls.values())]
    for name, value in checked:
        check_int(name, value, least=0 if name == "warm_up" else 1)
    if strange := set(watches) - set(variants):
        raise FusionError(f"watches: expected names of variants, got {sorted(strange)}")
