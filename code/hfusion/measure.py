"""Agree, then count, then time. torch; returns results, never saves or prints.

The order is the rule of the book: two ways of computing something are compared
with a reference first (`agree`), their launches counted (`count_launches`), and
only then raced (`time_arms`), taking turns so that a machine which slows down
slows them all.
"""

import dataclasses
import platform
import statistics
import time
from collections import Counter

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Disagreement(AssertionError):
    """Two results that had to be equal are not."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What `agree` found: how many entries, and how far apart they may be."""

    entries: int
    bound: float

    def __str__(self):
        entries = "1 entry" if self.entries == 1 else f"{self.entries} entries"
        if self.bound == 0:
            return f"exactly equal: {entries}"
        return f"equal within rounding: {entries}, bound {self.bound:.1e}"


def _numbers(value):
    """As an array in float64, without loss."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"a result has dtype {array.dtype}; real numbers fit")
    if array.dtype.kind in "iu" and array.size:
        largest = max(int(array.max()), -int(array.min()))
        if largest > 2**53:
            raise ValueError(f"a result has {largest}; whole numbers up to 2**53 fit")
    return array.astype(np.float64)


def agree(actual, expected, bound=0.0):
    """Refuse to go on unless two results are equal.

    actual, expected: tensors or arrays of one shape. bound: how far apart two
    entries may be, a number or an array of that shape; 0 means exactly equal.
    NaN and infinity never pass. Returns an Agreement; raises Disagreement, which
    says how many entries differ, where the first one is and what it was.

    >>> print(agree(np.array([1.0, 2.0]), np.array([1.0, 2.0])))
    exactly equal: 2 entries
    """
    a, e, limit = _numbers(actual), _numbers(expected), _numbers(bound)
    if a.shape != e.shape:
        raise Disagreement(f"the shape is {list(a.shape)}, not {list(e.shape)}")
    if a.size == 0:
        raise ValueError("actual is empty; nothing would be compared")
    if limit.shape not in ((), a.shape) or not np.all((limit >= 0) & (limit < np.inf)):
        raise ValueError(
            f"bound was {bound!s:.40}; one finite number from 0, or one an entry, fits"
        )
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and NaN is refused
        wrong = ~(np.abs(a - e) <= limit)
    if np.any(wrong):
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        was, wanted = f"{a[where]:.4g}", f"{e[where]:.4g}"
        if was == wanted:  # they differ in a later digit: show them all
            was, wanted = f"{a[where]!s}", f"{e[where]!s}"
        if a.ndim == 0:
            raise Disagreement(f"it is {was}, not {wanted}")
        raise Disagreement(
            f"{np.count_nonzero(wrong)} of {a.size} entries differ; "
            f"at {where} it is {was}, not {wanted}"
        )
    return Agreement(a.size, float(np.max(limit)))


def refusal(call, *args, **kwargs):
    """The message with which a call refuses its arguments.

    For showing that a check can fail: raises if the call goes through.

    >>> refusal(agree, [1.0], [2.0])
    '1 of 1 entries differ; at (0,) it is 1, not 2'
    """
    try:
        call(*args, **kwargs)
    except (AssertionError, ValueError, RuntimeError) as error:
        return str(error)
    raise Disagreement("the call went through, and should have been refused")


def differ(actual, expected, bound=0.0):
    """The opposite of `agree`: says how two results differ, raises if they do not.

    For showing that a check can fail.

    >>> differ([1.0, 2.0], [1.0, 2.5])
    '1 of 2 entries differ; at (1,) it is 2, not 2.5'
    """
    try:
        agree(actual, expected, bound)
    except Disagreement as found:
        return str(found)
    raise Disagreement("the results are equal, and should differ")


@dataclasses.dataclass(frozen=True)
class Launches:
    """What one call of a function launched: names in order, and what they are."""

    kind: str  # "kernels" on a GPU, "operators" on a CPU
    names: tuple

    @property
    def count(self):
        return len(self.names)

    def __str__(self):
        tally = [f"{count:4} {name}" for name, count in Counter(self.names).items()]
        return "\n".join([f"{self.count:4} {self.kind}:", *tally])


# Operators that set aside memory or read metadata, and compute nothing.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty"}
# Operators that make views, though their schemas do not say so.
_FREE |= {"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes"}


def _makes_a_view(operator):
    """Whether an operator's schema says that it only makes another description."""
    returns = operator._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


class _Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name not in _FREE and not _makes_a_view(operator):
            self.names.append(name)
        return operator(*args, **(kwargs or {}))


def count_launches(fn, device="cpu"):
    """What one call of `fn` launches.

    On a CUDA device: the kernels the profiler saw (copies and fills included).
    On a CPU there are no launches; counted are the operators that PyTorch
    dispatches and that compute something, the nearest thing to a launch there.
    Views (split, transpose) count nothing, and what an operator does inside, such
    as copying a strided input, is not seen. No gradients are recorded.

    >>> x = torch.ones(4)
    >>> print(count_launches(lambda: (x + x).relu().view(2, 2)))
       2 operators:
       1 add
       1 relu
    """
    with torch.no_grad():
        fn()  # once before, so that nothing of the first call is counted
        if torch.device(device).type == "cpu":
            with _Operators() as counter:
                fn()
            return Launches("operators", tuple(counter.names))
        activities = [torch.profiler.ProfilerActivity.CUDA]
        synchronise(device)
        with torch.profiler.profile(activities=activities) as profile:
            fn()
            synchronise(device)
    events = sorted(profile.events(), key=lambda event: event.time_range.start)
    on_device = [e.name for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    return Launches("kernels", tuple(on_device))


def synchronise(device):
    """Wait until `device` has done what it was given; a CPU always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def time_arms(arms, device="cpu", rounds=30, warm_up=5, calls=10):
    """Race functions against each other: raw samples in µs a call.

    arms: dict from names to functions without arguments. Each is warmed up;
    then in every round each arm has one turn of `calls` calls between two
    synchronisations, and every round starts with another arm. Check that the
    arms agree before you race them. Returns {name: [µs of round 0, …]}.

    >>> sorted(time_arms({"a": lambda: 1, "b": lambda: 2}, rounds=3))
    ['a', 'b']
    """
    if not arms:
        raise ValueError("arms is empty; at least one function fits")
    for name, value, least in (
        ("rounds", rounds, 1), ("warm_up", warm_up, 0), ("calls", calls, 1)
    ):  # fmt: skip
        if type(value) is not int or value < least:
            raise ValueError(f"{name} was {value!r}; a whole number from {least} fits")
    names = list(arms)
    samples = {name: [] for name in names}
    with torch.no_grad():
        for name in names:
            for _ in range(warm_up):
                arms[name]()
        for turn in range(rounds):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                synchronise(device)
                start = time.perf_counter_ns()
                for _ in range(calls):
                    arms[name]()
                synchronise(device)
                elapsed_us = (time.perf_counter_ns() - start) / 1000
                samples[name].append(elapsed_us / calls)
    return samples


def gains(samples, base):
    """How many times faster than `base` each arm is: quartiles of the ratio per round.

    Returns {name: (lower quartile, median, upper quartile)}; above 1 the arm wins.

    >>> gains({"old": [4.0, 4.0, 4.0], "new": [2.0, 2.0, 1.0]}, "old")["new"]
    (2.0, 2.0, 3.0)
    """
    if base not in samples:
        raise ValueError(f"base was {base!r}; one of {', '.join(samples)} fits")
    rounds = {name: len(times) for name, times in samples.items()}
    if len(set(rounds.values())) > 1 or not rounds[base]:
        raise ValueError(f"samples have {rounds} rounds; one number above 0 for all fits")
    if any(not time > 0 for times in samples.values() for time in times):
        raise ValueError("samples have a time that is not above 0; times in µs fit")
    result = {}
    for name, times in samples.items():
        ratios = [b / t for b, t in zip(samples[base], times, strict=True)]
        if len(ratios) == 1:
            ratios *= 2
        result[name] = tuple(statistics.quantiles(ratios, n=4, method="inclusive"))
    return result


def device_name(device="cpu"):
    """What the device calls itself, for labels."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as lines:
            models = [line for line in lines if line.startswith("model name")]
    except OSError:  # not Linux
        models = []
    name = models[0].split(":")[1].strip() if models else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
