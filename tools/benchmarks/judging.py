"""With hfusion.faster nothing gets slower: .venv/bin/python tools/benchmarks/judging.py

    judging.py                              all cases, printed: four minutes on two cores
    judging.py GoogLeNet                    those with this in their names
    judging.py "" records/judging.json      and stored, for chapter 9

A block as in Llama, whose forward looks at sizes, so that no graph can hold it, and
GoogLeNet, at several sizes, siblings found by running, and where it says so by reading.
For each: how many groups `faster` accepts, how long that takes, and then, in bursts of
their own later, how many times as fast the model is with all groups fused, with those that
were accepted, and as a copy of itself, "the same": what is within its brackets is noise. In
brackets the lowest and the highest of eight bursts. At last what it said of the rest.
What is stored is the last run on a quiet machine, whatever it says.
"""

import copy
import sys
import time

import torch
import torch.nn.functional as F
from stored import about, store
from torch import nn

import hfusion
from hfusion import models, timing
from hfusion.timing import quartiles


class Block(nn.Module):
    """Attention with fewer keys and values than queries, then a gated MLP."""

    def __init__(self, width, hidden, heads=8, shared=2):
        super().__init__()
        self.heads, self.size = heads, width // heads
        narrow = width // shared
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, narrow, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        y, tokens = self.before(x), x.shape[1]
        q, k, v = (
            part.view(*part.shape[:2], -1, self.size).transpose(1, 2)
            for part in (self.q(y), self.k(y), self.v(y))
        )
        causal = bool(tokens > 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(x.shape))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Adapters(nn.Module):
    """Many small siblings: here launches are most of the time, and fusing pays on a CPU."""

    def __init__(self, width=256, rank=8, number=16):
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, rank) for _ in range(number))

    def forward(self, x):
        return sum(F.relu(down(x)) for down in self.down)


def cases():
    for tokens in (1, 64):
        yield f"16 adapters, {tokens} tokens", Adapters(), (tokens, 256), True
    for width, hidden in ((128, 352), (512, 1376)):
        for tokens in (1, 8, 64):
            blocks = nn.Sequential(*(Block(width, hidden) for _ in range(2)))
            yield f"2 blocks of {width}, {tokens} tokens", blocks, (1, tokens, width), True
    for size, images in ((64, 1), (224, 1), (64, 8)):
        for run in (True, False):
            name = f"GoogLeNet, {images} of {size}²" + ", read" * (not run)
            yield name, models.GoogLeNet(), (images, 3, size, size), run


def timed(model, others, x, bursts=8, rounds=15):
    """{name: (median, lowest, highest) of the bursts' gains} against the model."""
    variants = {name: lambda m=m: m(x) for name, m in ({"model": model} | others).items()}
    found = {name: [] for name in others}
    for _ in range(bursts):
        samples = timing.benchmark(variants, rounds=rounds, warm_up=1, calls=1)
        low = {name: quartiles(times)[0] for name, times in samples.items()}
        for name in others:
            found[name].append(low["model"] / low[name])
        time.sleep(0.2)
    return {n: (quartiles(g)[1], min(g), max(g)) for n, g in found.items()}


def judged(name, model, shape, run):
    """What `faster` makes of a model, and how fast the models are then."""
    model, x = model.eval().requires_grad_(False), torch.randn(shape)
    start = time.perf_counter()
    example = x if run else None  # else the graph is read
    plan = hfusion.plan(model, example, accept=hfusion.faster(x))
    seconds = time.perf_counter() - start
    others = {"all": hfusion.fuse(model, example), "judged": plan.apply()}
    others["same"] = copy.deepcopy(model)
    for network in others.values():
        torch.testing.assert_close(network(x), model(x), rtol=1e-3, atol=1e-4)
    return {
        "case": name,
        "groups": len(plan.groups),
        "accepted": sum(group.fused for group in plan.groups),
        "seconds": round(seconds, 1),
        "gains": timed(model, others, x),
        "reasons": [*dict.fromkeys(g.reason for g in plan.groups if g.reason)],
    }


def row(found):
    accepted = f"{found['accepted']} of {found['groups']}"
    gains = found["gains"].values()
    columns = [f"{m:.2f} ({low:.2f} to {high:.2f})" for m, low, high in gains]
    first = f"{found['case']:26} {accepted:>8} {found['seconds']:7.0f} s "
    return "\n    ".join([" ".join([first, *columns]), *found["reasons"]])


def main(wanted="", path=None):
    print(", ".join(about().values()))
    print(
        f"{'':26} {'accepted':>8} {'judged in':>9}  {'all fused':17} {'judged':17} the same"
    )
    found = []
    for case in cases():
        if wanted in case[0]:
            found.append(judged(*case))
            print(row(found[-1]), flush=True)
    if path:
        store(path, cases=found)


if __name__ == "__main__":
    main(*sys.argv[1:])
