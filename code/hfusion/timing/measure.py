"""Agree, then count, then time. torch; returns results, never saves or prints.

The order is the rule of the book: two ways of computing something are compared
with a reference first (`agree`), their launches counted (`count_launches`), and
only then raced (`time_arms`), taking turns so that a machine which slows down
slows them all.
"""

import contextlib
import dataclasses
import os
import platform
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

try:
    import resource
except ImportError:  # Windows
    resource = None


# What lies in a graph's outputs before its first replay, as no right result does. Not NaN:
# cuDNN may multiply by zero what lies there.
UNPLAYED = -(2.0**14)
QUIET = "KINETO_LOG_LEVEL", "99"  # else the profiler writes of its start and stop


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
    Values are compared, in float64: 0.0 and -0.0 are equal, and the dtype may differ.
    NaN and infinity never pass. Returns an Agreement; raises Disagreement, which
    says how many entries differ, where the first one is and what it was.

    >>> print(agree(np.array([1.0, 2.0]), np.array([1.0, 2.0])))
    exactly equal: 2 entries
    >>> agree([0.0, 0.5], np.float16([-0.0, 0.5])).entries
    2
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


def near(actual, expected, share):
    """`agree` for large results: compared on the device that they lie on.

    actual, expected: tensors of one shape. share: how far apart two entries may be, as
    a share of the largest expected one. NaN and infinity never pass.

    >>> print(near(torch.tensor([1.0, 99.9]), torch.tensor([1.0, 100.0]), 1e-2))
    equal within rounding: 2 entries, bound 1.0e+00
    """
    if not 0 <= share < float("inf"):
        raise ValueError(f"share was {share!r}; a finite number from 0 fits")
    numbers = actual.is_floating_point() and expected.is_floating_point()
    if not numbers or actual.shape != expected.shape or not expected.numel():
        largest = np.max(np.abs(_numbers(expected)), initial=0.0)
        return agree(actual, expected, share * largest)
    wanted = expected.detach().double()
    actual = actual.detach().to(wanted.device)  # which has float64, as not each GPU has
    bound = share * wanted.abs().max().item()
    if not bound < float("inf"):
        return agree(actual, expected)  # which refuses NaN and infinity by their place
    apart = (actual.double() - wanted).abs()
    if bool((apart <= bound).all()):  # NaN is not below anything
        return Agreement(apart.numel(), bound)
    return agree(actual, expected, bound)  # which says where they differ


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
    >>> differ(np.nextafter(1.0, 2.0), 1.0)  # the last bit
    'it is 1.0000000000000002, not 1.0'
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
_FREE = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty"}
_FREE |= {"new_empty_strided"}
# Operators that make views, though their schemas do not say so.
_FREE |= {"_unsafe_view", "as_strided_", "unsafe_split", "unsafe_split_with_sizes"}


def computes(operator):
    """Whether an operator computes something: it makes no view, by its schema, and more
    than memory without numbers."""
    returns = operator._schema.returns
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return not view and operator.overloadpacket.__name__ not in _FREE


class _Operators(TorchDispatchMode):
    only_counts = True  # so that siblings compute together meanwhile, see `fusing`

    def __init__(self):
        super().__init__()
        self.names, self.bytes = [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        outputs = operator(*args, **(kwargs or {}))
        if computes(operator):
            self.names.append(operator.overloadpacket.__name__)
            for value in tree_leaves((args, kwargs, outputs)):
                if isinstance(value, torch.Tensor):
                    self.bytes += value.numel() * value.itemsize
        return outputs


def count_launches(fn, device="cpu"):
    """What one call of `fn` launches.

    On a CUDA device: kernels, copies and fills, those of a CUDA graph if one can be made
    of the call, else those that the profiler saw, which slows down what comes after it.
    On a CPU there are no launches, and on other GPUs no profiler that sees them; counted
    are the operators that PyTorch dispatches and that compute something, the nearest thing.
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
        if torch.device(device).type != "cuda":
            with _Operators() as counter:
                fn()
            return Launches("operators", tuple(counter.names))
        if nodes := _in_a_graph(fn):
            return Launches("kernels", tuple(nodes))
        activities = [torch.profiler.ProfilerActivity.CUDA]
        synchronise(device)
        os.environ.setdefault(*QUIET)
        with torch.profiler.profile(activities=activities) as profile:
            fn()
            synchronise(device)
    events = sorted(profile.events(), key=lambda event: event.time_range.start)
    on_device = [e.name for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    return Launches("kernels", tuple(on_device))


def count_bytes(fn):
    """How many bytes the operators of one call of `fn` read and write: the sizes of their
    inputs and outputs. What they move beside that, in their inside, is not seen.

    >>> x = torch.ones(4)
    >>> count_bytes(lambda: (x + x).relu())  # five tensors of four float32
    80
    """
    with torch.no_grad():
        fn()
        with _Operators() as counter:
            fn()
    return counter.bytes


def count_faults(fn):
    """How many pages of memory one call of `fn` has to ask the system for; None if the
    system does not say.

    Memory that was handed back after the call before and is set aside anew is slow.
    """
    if resource is None:
        return None
    with torch.no_grad():
        fn()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        fn()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def synchronise(device):
    """Wait until `device` has done what it was given; a CPU always has."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind in ("mps", "xpu"):
        torch.get_device_module(kind).synchronize()  # that of MPS takes no device


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


def time_arms(
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

    >>> sorted(time_arms({"a": lambda: 1, "b": lambda: 2}, rounds=3))
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


def graphed(fn, times=1):
    """A function that replays what `fn` launched, as one CUDA graph.

    fn: without arguments; it must launch the same each time and return tensors that it
    makes anew. They are the replay's outputs too, and where they are floating point they
    hold UNPLAYED until it has run for the first time. times: how often it is in the graph,
    one after the other: starting a replay takes the host some µs, and hides shorter work.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):  # whatever is chosen or set aside at first use
            fn()
    torch.cuda.current_stream().wait_stream(side)
    graph, outputs = _captured(fn, times)
    for tensor in tensors(outputs):
        if tensor.is_floating_point():
            tensor.fill_(UNPLAYED)

    def replay():
        graph.replay()
        return outputs

    replay.fn = fn  # the graph reads tensors that only fn may keep alive
    replay.graph = graph
    return replay


def _captured(fn, times=1):
    """(a CUDA graph of so many calls, what the last one returned)."""
    try:
        graph = torch.cuda.CUDAGraph(keep_graph=True)  # so that it can be looked at
    except TypeError:  # torch before 2.8
        graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        for _ in range(times):
            outputs = fn()
    return graph, outputs


def _nodes(graph):
    """What a CUDA graph launches, by CUDA's own functions: ["kernel", "copy", …]."""
    from cuda.bindings import runtime

    def ask(function, *given):
        error, *found = function(*given)
        if error != runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"{function.__name__}: {error}")
        return found

    kinds = runtime.cudaGraphNodeType
    names = {
        kinds.cudaGraphNodeTypeKernel: "kernel",
        kinds.cudaGraphNodeTypeMemcpy: "copy",
        kinds.cudaGraphNodeTypeMemset: "fill",
    }
    _, number = ask(runtime.cudaGraphGetNodes, graph)
    nodes, _ = ask(runtime.cudaGraphGetNodes, graph, number)
    found = []
    for node in nodes[:number]:
        (kind,) = ask(runtime.cudaGraphNodeGetType, node)
        if kind == kinds.cudaGraphNodeTypeGraph:
            found += _nodes(*ask(runtime.cudaGraphChildGraphNodeGetGraph, node))
        elif kind in names:
            found.append(names[kind])
    return found


def _in_a_graph(fn):
    """What one call of `fn` launches, as nodes of a CUDA graph; None if that cannot be
    said: no bindings of CUDA, a torch that keeps no graph, or work that fits into none.
    """
    try:
        from cuda.bindings import runtime

        graph = fn.graph if hasattr(fn, "graph") else _captured(fn)[0]
        return _nodes(runtime.cudaGraph_t(graph.raw_cuda_graph()))
    except torch.OutOfMemoryError:
        raise
    except (ImportError, AttributeError, RuntimeError):
        return None


def tensors(outputs):
    """What a function returned, a tensor or several, as a list.

    >>> tensors((torch.ones(1), torch.zeros(1)))
    [tensor([1.]), tensor([0.])]
    """
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def timeline(fn, device="cpu"):
    """When host and device worked in one call of `fn`: [(lane, name, begin, end), …].

    In µs since the first event, by PyTorch's profiler, which slows the host down a
    little. lane: "host" for the operators that the call came upon, from the outside;
    "device" for kernels on a GPU. Time of the host between two events is Python's.
    """
    activity = torch.profiler.ProfilerActivity
    on_gpu = torch.device(device).type == "cuda"
    with torch.no_grad():
        for _ in range(3):
            fn()
        synchronise(device)
        activities = [activity.CPU, activity.CUDA] if on_gpu else [activity.CPU]
        os.environ.setdefault(*QUIET)
        with torch.profiler.profile(activities=activities) as profile:
            fn()
            synchronise(device)
    events = []
    for event in profile.events():
        times = (event.time_range.start, event.time_range.end)
        if event.device_type == torch.autograd.DeviceType.CUDA:
            events.append(("device", event.name, *times))
        elif event.cpu_parent is None and event.name.startswith("aten::"):
            events.append(("host", event.name.removeprefix("aten::"), *times))
    first = min((begin for _, _, begin, _ in events), default=0)
    events.sort(key=lambda event: event[2])
    return [
        (lane, name, round(begin - first, 3), round(end - first, 3))
        for lane, name, begin, end in events
    ]


def unit(x):
    """What a product with `x` may round by: float32 may be multiplied as TF32 on a GPU."""
    settings = (torch.backends.cudnn, torch.backends.cuda.matmul)
    if x.is_cuda and x.dtype == torch.float32 and any(map(tf32, settings)):
        return 2**-10
    return torch.finfo(x.dtype).eps


def tf32(settings):
    """Whether a backend of torch may multiply float32 as TF32; True if it cannot say."""
    try:
        return settings.allow_tf32
    except RuntimeError:  # somebody used the newer setting, fp32_precision
        return True


def device_name(device="cpu"):
    """What the device calls itself, for labels."""
    kind = torch.device(device).type
    if kind in ("cuda", "xpu"):
        return torch.get_device_module(kind).get_device_name(device)
    if kind == "mps":
        return f"{processor_name()} GPU"
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def processor_name():
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
