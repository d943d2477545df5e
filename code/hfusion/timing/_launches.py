"""What one call of a function launches, reads and writes, and when: counted, not timed."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ._devices import Place, synchronise
from ._graphs import launched

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

QUIET = "KINETO_LOG_LEVEL", "99"  # else the profiler writes of its start and stop


@dataclasses.dataclass(frozen=True)
class Launches:
    """What one call of a function launched: names in order, and what they are."""

    kind: str  # "kernels" on a GPU, "operators" on a CPU
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many."""
        return len(self.names)

    def __str__(self) -> str:
        tally = [f"{count:4} {name}" for name, count in Counter(self.names).items()]
        return "\n".join([f"{self.count:4} {self.kind}:", *tally])


# Operators that set aside memory or read metadata, and compute nothing.
_FREE = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty"}
_FREE |= {"new_empty_strided"}
# Operators that make views, though their schemas do not say so.
_FREE |= {"_unsafe_view", "as_strided_", "unsafe_split", "unsafe_split_with_sizes"}


def computes(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator computes something: by its schema it makes no view, and it does
    more than allocate memory."""
    returns = operator._schema.returns
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return not view and operator.overloadpacket.__name__ not in _FREE


class _Operators(TorchDispatchMode):
    only_counts = True  # so that siblings compute together meanwhile, see `fusing`

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        outputs = operator(*args, **(kwargs or {}))
        if computes(operator):
            self.names.append(operator.overloadpacket.__name__)
            for value in tree_leaves((args, kwargs, outputs)):
                if isinstance(value, torch.Tensor):
                    self.bytes += value.numel() * value.itemsize
        return outputs


def count_launches(fn: Callable[[], Any], device: Place = "cpu") -> Launches:
    """What one call of `fn` launches.

    On a CUDA device these are kernels, copies and fills: those of a CUDA graph if the call
    can be captured, otherwise those that the profiler saw, which slows down later launches.
    A CPU launches nothing, and no profiler sees what other GPUs launch. On these devices
    the operators that PyTorch dispatches and that compute something are counted instead.
    Views (split, transpose) do not count, and internal work, such as copying a strided
    input, is not seen.

    Parameters
    ----------
    fn : function
        Without arguments; called twice, without gradients.
    device : str or torch.device
        Where it works.

    Examples
    --------
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
        if nodes := launched(fn):
            return Launches("kernels", tuple(nodes))
        events = _profiled(fn, device, [torch.profiler.ProfilerActivity.CUDA])
    events = sorted(events, key=lambda event: event.time_range.start)
    on_device = [e.name for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    return Launches("kernels", tuple(on_device))


def _profiled(
    fn: Callable[[], Any], device: Place, activities: list[torch.profiler.ProfilerActivity]
) -> Any:
    """The events of one call of `fn`, until its work is done."""
    synchronise(device)
    os.environ.setdefault(*QUIET)
    with torch.profiler.profile(activities=activities) as profile:
        fn()
        synchronise(device)
    return profile.events()


def count_bytes(fn: Callable[[], Any]) -> int:
    """How many bytes the operators of one call of `fn` read and write: the sizes of their
    inputs and outputs. Internal traffic is not counted.

    Examples
    --------
    >>> x = torch.ones(4)
    >>> count_bytes(lambda: (x + x).relu())  # five tensors of four float32
    80
    """
    with torch.no_grad():
        fn()
        with _Operators() as counter:
            fn()
    return counter.bytes


def count_faults(fn: Callable[[], Any]) -> int | None:
    """How many pages of memory one call of `fn` has to ask the system for; None if the
    system does not say.

    Asking is slow: the system zeroes each fresh page.
    """
    if resource is None:
        return None
    with torch.no_grad():
        fn()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        fn()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def timeline(
    fn: Callable[[], Any], device: Place = "cpu"
) -> list[tuple[str, str, float, float]]:
    """When host and device worked in one call of `fn`: [(lane, name, begin, end), …].

    Times are in µs since the first event, by PyTorch's profiler, which slows the host down
    a little. The lane is "host" for the outermost operators of the call, and "device" for
    kernels on a GPU. Between two events the host runs Python.
    """
    activity = torch.profiler.ProfilerActivity
    on_gpu = torch.device(device).type == "cuda"
    with torch.no_grad():
        for _ in range(3):
            fn()
        activities = [activity.CPU, activity.CUDA] if on_gpu else [activity.CPU]
        seen = _profiled(fn, device, activities)
    events = []
    for event in seen:
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
