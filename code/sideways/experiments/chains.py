"""Chains of operators that do next to nothing, or nothing at all: what a launch costs."""

from functools import partial

import torch
from torch import nn

from hfusion import timing

from . import guards
from .variants import doubled

EMPTY = ("abs", "conv")  # operators of which `chains` can make chains
# The same, without a kernel: a module that hands its input on, and an operator of PyTorch
# that has nothing to compute. They take only the host's time: Python's, the dispatcher's.
NO_KERNEL = ("module", "abs of none")
# How a chain is run: as it is, handed over and not waited for, or as a CUDA graph.
WAYS = {"eager": lambda fn: fn, "host": lambda fn: fn, "graph": timing.graphed}


def chains(operator, way, lengths, device):
    """What a Benchmark of chains needs: n times next to nothing in a row, for each n."""
    if way == "graph" or (way == "host" and device == "cpu"):
        guards.need_cuda(device)
    x = torch.ones(1, 1, 1, 1, device=device)
    conv = nn.Conv2d(1, 1, 1, bias=False).to(device)
    nn.init.ones_(conv.weight)
    steps = {
        "abs": partial(torch.abs, x, out=torch.empty_like(x)),
        "conv": partial(conv, x),
        "module": partial(nn.Identity(), x),
        "abs of none": partial(torch.abs, x[:0], out=torch.empty_like(x[:0])),
    }
    step, idle = steps[operator], operator in NO_KERNEL

    def run(n):
        for _ in range(n):
            y = step()
        return x if idle else y  # an empty tensor could not be checked

    links = {str(n): partial(run, n) for n in lengths}
    return {
        "variants": {n: partial(WAYS[way], link) for n, link in links.items()},
        "expected": (doubled(x),),
        "tolerance": 0,
        "watches": dict.fromkeys(links, timing.host) if way == "host" else {},
    }
