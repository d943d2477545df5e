"""How long planning and fusing take, and the checks of each call: make bench.

First on GoogLeNet, beside the first call of torch.compile on the same module; then on
chains of generated modules of growing length, where the time for each node shows
whether the pass is linear in the graph. Then stacks of transformer-like layers, read and
run: more weights must not cost more, and twice the layers twice as much. Then three Linears
that read one tensor: one by one, side by side (`fusing._group`), and the product and its
split alone; what is between the last two, round by round, is the price of the checks.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import hfusion
from hfusion import timing
from hfusion.fusing import _group
from hfusion.models import GoogLeNet


class Block(nn.Module):
    """Three sibling convolutions, one that is none, and their sum: 10 nodes of a graph."""

    def __init__(self, width=4):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.d = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        branches = [self.relu(layer(x)) for layer in (self.a, self.b, self.c)]
        return branches[0] + branches[1] + branches[2] + self.d(x)


class Layer(nn.Module):
    """What a transformer repeats, less its softmax: 12 width² weights in 7 Linears."""

    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, 8 * width // 3) for _ in range(2))
        self.down = nn.Linear(8 * width // 3, width)
        self.act = nn.SiLU()

    def forward(self, x):
        x = x + self.o(self.q(x) * self.k(x) * self.v(x))
        return x + self.down(self.act(self.gate(x)) * self.up(x))


def seconds(call):
    """(what the call returns, how long it took)."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def measure(model, rounds):
    """Median seconds of plan and of apply, and the number of nodes and groups."""
    plans, applies = [], []
    for _ in range(rounds):
        plan, plan_s = seconds(lambda: hfusion.plan(model))
        fused, apply_s = seconds(plan.apply)
        plans.append(plan_s)
        applies.append(apply_s)
        del fused
    nodes = len(plan.found.graph.nodes)
    return statistics.median(plans), statistics.median(applies), nodes, len(plan.groups)


def cpu_seconds(call):
    """How long the processor works on a call, whoever else wants it."""
    start = time.process_time()
    call()
    return time.process_time() - start


def weights_do_not_count(cases=((1024, 16), (64, 16), (64, 32), (64, 64), (64, 128))):
    """CPU seconds to plan stacks of layers: reading, and running less its two forwards."""
    print(f"\n{'width':>6} {'layers':>7} {'weights':>12} {'read s':>7} {'run s':>7}")
    for width, count in cases:
        model = nn.Sequential(*(Layer(width) for _ in range(count))).eval()
        x, weights = torch.zeros(1, width), sum(p.numel() for p in model.parameters())
        reads, runs, forwards = [], [], []
        for _ in range(5):
            reads.append(cpu_seconds(lambda model=model: hfusion.plan(model)))
            runs.append(cpu_seconds(lambda model=model, x=x: hfusion.plan(model, x)))
            with torch.no_grad():
                forwards.append(cpu_seconds(lambda model=model, x=x: model(x)))
        read, run, forward = map(statistics.median, (reads, runs, forwards))
        print(f"{width:6,} {count:7,} {weights:12,} {read:7.2f} {run - 2 * forward:7.2f}")


def checks(features, rows, bursts=7, rounds=7, calls=50):
    """µs of a call of three Linears: {way: median of the bursts' medians}."""
    found = {"separate": [], "packed": [], "product": [], "checks": []}
    for _ in range(bursts):
        layers = [nn.Linear(features, features).requires_grad_(False) for _ in range(3)]
        side_by_side = [
            nn.Linear(features, features).requires_grad_(False) for _ in range(3)
        ]
        _group.route(side_by_side, ["a", "b", "c"])
        weight = torch.cat([layer.weight for layer in layers])
        bias, sizes = torch.cat([layer.bias for layer in layers]), [features] * 3
        x = torch.randn(rows, features)

        def product(x=x, weight=weight, bias=bias, sizes=sizes):
            return F.linear(x, weight, bias).unsafe_split_with_sizes(sizes, -1)

        variants = {
            "separate": lambda x=x, layers=layers: [layer(x) for layer in layers],
            "packed": lambda x=x, layers=side_by_side: [layer(x) for layer in layers],
            "product": product,
        }
        samples = timing.benchmark(variants, rounds=rounds, calls=calls)
        pairs = zip(samples["packed"], samples["product"], strict=True)
        samples["checks"] = [whole - alone for whole, alone in pairs]
        for name, times in samples.items():
            found[name].append(statistics.median(times))
        time.sleep(0.1)  # the next burst is apart in time
    return {name: statistics.median(medians) for name, medians in found.items()}


def price_of_checks(cases=((64, 1), (64, 16), (256, 1), (256, 16), (768, 1), (768, 16))):
    print(f"\nThree Linears, µs a call, {torch.get_num_threads()} threads")
    print("features  rows  separate    packed   product  the checks")
    for features, rows in cases:
        us = checks(features, rows)
        print(f"{features:8} {rows:5}", *(f"{us[name]:9.1f}" for name in us))


def main(lengths=(1_000, 3_000, 10_000, 30_000)):
    model, x = GoogLeNet().eval(), torch.zeros(1, 3, 224, 224)
    hfusion.fuse(model)  # what is imported on first use is not counted
    plan_s, apply_s, nodes, groups = measure(model, rounds=5)
    torch.compiler.reset()
    with torch.no_grad():
        _, compile_s = seconds(lambda: torch.compile(model)(x))
    print(f"GoogLeNet, {nodes} nodes, {groups} groups, on a CPU")
    print(f"  plan {plan_s:.2f} s, apply {apply_s:.2f} s")
    print(f"  torch.compile, first call: {compile_s:.1f} s,", end=" ")
    print(f"{compile_s / (plan_s + apply_s):.0f} times as long")
    print(f"\n{'nodes':>7} {'groups':>7} {'plan s':>7} {'apply s':>8} {'µs a node':>10}")
    for length in lengths:
        model = nn.Sequential(*(Block() for _ in range(length // 10)))
        plan_s, apply_s, nodes, groups = measure(model, rounds=3 if length < 10_000 else 1)
        each_us = (plan_s + apply_s) / nodes * 1e6
        print(f"{nodes:7,} {groups:7,} {plan_s:7.2f} {apply_s:8.2f} {each_us:10.0f}")
    weights_do_not_count()
    price_of_checks()


if __name__ == "__main__":
    main(*(tuple(map(int, sys.argv[1:])),) if sys.argv[1:] else ())
