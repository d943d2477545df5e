"""What one activation for all siblings costs: python tools/benchmarks/followers.py

Layers side by side that compute together, each followed by an activation, with and without
`followers`, one thread, taking turns; the median of the ratio of each round, and its
quartiles. Above 1, it does not pay.
"""

import statistics
import sys
import time

import torch
from torch import nn

from hfusion.fusing import _followers, _group

CASES = {
    "Inception 3a, one image": (nn.Conv2d, 192, (64, 96, 16), (1, 192, 28, 28)),
    "Inception 5a, one image": (nn.Conv2d, 832, (256, 160, 32), (1, 832, 7, 7)),
    "three of 512, one row": (nn.Linear, 512, (512, 512, 512), (1, 512)),
    "three of 64, one row": (nn.Linear, 64, (64, 64, 64), (1, 64)),
}


def network(kind, c_in, sizes, once):
    """A function of x: layers side by side, and a ReLU after each."""
    torch.manual_seed(0)
    options = {} if kind is nn.Linear else {"kernel_size": 1}
    members = [kind(c_in, size, **options) for size in sizes]
    relus = [nn.ReLU() for _ in sizes]
    group = _group.route(members, [str(size) for size in sizes])
    if once:
        _followers.route(group, relus)
    pairs = [*zip(members, relus, strict=True)]
    return lambda x: [relu(member(x)) for member, relu in pairs]


def microseconds(call, x, times):
    start = time.perf_counter()
    for _ in range(times):
        call(x)
    return (time.perf_counter() - start) / times * 1e6


@torch.no_grad()
def main(rounds=60):
    torch.set_num_threads(1)
    for name, (kind, c_in, sizes, shape) in CASES.items():
        x = torch.randn(shape)
        each, once = (network(kind, c_in, sizes, once) for once in (False, True))
        times = max(3, int(3000 / microseconds(each, x, 20)))
        microseconds(once, x, times)
        ratios = []
        for index in range(rounds):
            order = (each, once) if index % 2 else (once, each)
            us = {call: microseconds(call, x, times) for call in order}
            ratios.append(us[once] / us[each])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:<26} {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
