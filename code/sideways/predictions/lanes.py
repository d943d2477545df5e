"""Who works when: host and device, in one call."""

from hfusion.timing import eager

from .. import arithmetic
from ..arithmetic import At, device_us, host_us
from . import programs

SHOWN = {  # what the profiler calls an operator
    "convolution": "conv2d",
    "native_batch_norm": "batch_norm",
    "max_pool2d_with_indices": "max_pool2d",
}


def timeline(
    operators: list[eager.Operator],
    dtype: str,
    graph: bool = False,
    at: At | None = None,
    split: int | None = None,
) -> list[tuple[str, str, float, float]]:
    """When host and device should work in one call: [(lane, name, begin, end), …], in µs.

    A kernel begins once the host has handed it over and the kernel before it has ended. Its
    time includes the device's step (`node`); a launch has no latency. graph: whether all is
    handed over as one CUDA graph. at: one value of each input; the middle ones if None.
    split: after how many operators the host splits.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU())
    >>> found = eager.operators(net, "float32", "NCHW", 1, (1, 1, 1))
    >>> for lane, name, begin, end in timeline(found, "float32"):
    ...     print(f"{lane:6} {name:6} {begin:5.1f} to {end:.1f}")
    host   conv2d   0.0 to 20.0
    device conv2d  20.0 to 23.6
    host   relu    20.0 to 26.0
    device relu    26.0 to 27.7
    """
    at = at or At(**{name: given.middle for name, given in arithmetic.INPUTS.items()})
    events, handed, free = [], at.replay * graph, 0.0
    if graph:
        events.append(("host", "replay", 0.0, handed))
    for place, each in enumerate(operators):
        name = SHOWN.get(each.name, each.name)
        program = programs.work([each], programs.item_bytes(dtype))
        hosts = [("split", at.operator)] * (place == split) + [(name, host_us(program, at))]
        for what, us in hosts if not graph else ():
            events.append(("host", what, handed, handed + us))
            handed += us
        found = _kernels_us(program, dtype, at)
        for left, (kernel, us) in zip(range(len(found))[::-1], found, strict=True):
            begun = max(handed - left * at.kernel * (not graph), free)
            free = begun + us
            events.append(("device", kernel or name, begun, free))
    return events


def _kernels_us(program, dtype, at):
    """The kernels of one operator: [(name, or "" for the operator's, µs), …]."""
    none = program | {"products": [], "small": 0, "moved": 0, "pools": 0}
    products = program["products"]
    found = [("", device_us(none | {"products": [each]}, dtype, at)) for each in products]
    small = program["small"]
    if small:
        us = device_us(program | {"products": []}, dtype, at) / small
        found += [("bias" if products else "", us)] * small
    return found
