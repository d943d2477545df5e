"""Functions timed against one another, taking turns."""

import contextlib
import time

import torch

from ._devices import synchronise


def wall(call, calls, device):
    """A stopwatch: µs a call until the work is done, the mean of `calls` in a row."""
    synchronise(device)
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    synchronise(device)
    return (time.perf_counter_ns() - start) / 1000 / calls


def host(call, calls, device):
    """A stopwatch: µs until a call returns, its work done or not.

    The device is waited for between calls, so that its queue never fills up. On a GPU
    this is what the host needs to launch; on a CPU it is no other time than `wall`'s.
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
    arms, device="cpu", rounds=30, warm_up=5, calls=10,
    watches=None, late=None,
):  # fmt: skip
    """Race functions against each other: raw samples in µs a call.

    arms: dict from names to functions without arguments. Each is warmed up;
    then in every round each arm has one turn of `calls` calls, and every round
    starts with another arm. A turn begins with one call more, which is not timed: what
    the arm before has left in the caches is not charged to this one. calls: a number, or
    {name: number}. watches: for some arms another stopwatch than `wall`. late: asked
    before every turn and every call of the warm-up; once it says True, the race is over,
    and the samples are those of the rounds that were complete, perhaps of none. Check
    that the arms agree before you race them. What an arm raises has its name as the
    attribute `arm`. Returns {name: [µs of round 0, …]}.

    >>> sorted(benchmark({"a": lambda: 1, "b": lambda: 2}, rounds=3))
    ['a', 'b']
    """
    watches = dict.fromkeys(arms, wall) | (watches or {})
    each = calls if isinstance(calls, dict) else dict.fromkeys(arms, calls)
    late = late or (lambda: False)
    _refuse_bad(arms, watches, each, rounds=rounds, warm_up=warm_up)
    names = list(arms)
    samples = {name: [] for name in names}
    with torch.no_grad():
        for name in names:
            for _ in range(warm_up):
                if late():
                    return samples
                with named(name):
                    arms[name]()
        for turn in range(rounds):
            for place in range(len(names)):
                if late():
                    return {n: times[:turn] for n, times in samples.items()}
                name = names[(turn + place) % len(names)]
                with named(name):
                    arms[name]()
                    us = watches[name](arms[name], each[name], device)
                samples[name].append(us)
    return samples


@contextlib.contextmanager
def named(arm):
    """What is raised inside gets the attribute `arm`, the name of who raised it."""
    try:
        yield
    except Exception as error:
        error.arm = arm
        raise


def _refuse_bad(arms, watches, calls, **numbers):
    if not arms:
        raise ValueError("arms is empty; at least one function fits")
    if set(calls) != set(arms):
        raise ValueError(f"calls: expected a number for each arm, got {sorted(calls)}")
    checked = [*numbers.items(), *(("calls", number) for number in calls.values())]
    for name, value in checked:
        least = 0 if name == "warm_up" else 1
        if type(value) is not int or value < least:
            raise ValueError(f"{name} was {value!r}; a whole number from {least} fits")
    if strange := set(watches) - set(arms):
        raise ValueError(f"watches has {sorted(strange)}; names of arms fit")
