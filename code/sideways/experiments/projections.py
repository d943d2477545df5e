"""What is stacking worth in attention, in a gated MLP and with adapters?

The linear siblings of small language models, on few tokens and on many: one by one, and
stacked. Queries, keys and values; the same with fewer keys and values than queries; gate
and up; and a layer with four adapters of unequal ranks.
"""

from functools import partial

import torch
from torch import nn

from hfusion import models, stacking

from ..recorder import Benchmark
from . import variants

QUESTION = "What is stacking worth in attention, in a gated MLP and with adapters?"
ROUNDS = 30
# Features in, and features out of each sibling.
PROJECTIONS = {
    "q, k, v": (512, (512, 512, 512)),
    "q, k, v, grouped": (512, (512, 128, 128)),
    "gate, up": (512, (1376, 1376)),
    "layer, four adapters": (512, (512, 4, 8, 8, 16)),
}


def cases(device):
    first, *others = PROJECTIONS
    tokens = 1, 8, 64, 512
    # So that a run that ends early has one projection whole, and something of each.
    pairs = [(first, n) for n in tokens] + [(name, n) for n in tokens for name in others]
    return [
        {"projections": name, "tokens": n, "dtype": dtype}
        for dtype in (("float32",) if device == "cpu" else ("float32", "float16"))
        for name, n in pairs
    ]


def benchmark(device, projections, tokens, dtype):
    features, sizes = PROJECTIONS[projections]
    kind = getattr(torch, dtype)
    x = torch.randn(tokens, features).to(device, kind)
    linears = [nn.Linear(features, size, bias=False) for size in sizes]
    linears = [models.randomise(m, seed).to(device, kind) for seed, m in enumerate(linears)]
    stacked = stacking.stack(linears)
    ways = {
        "separate": lambda: [linear(x) for linear in linears],
        "stacked": partial(stacked, x),
        "copied": lambda: [part.contiguous() for part in stacked(x)],
    }
    makers = variants.with_graphs(device, ways)
    with torch.no_grad():
        expected = tuple(
            variants.doubled(linear)(variants.doubled(x)) for linear in linears
        )
    return Benchmark(
        makers, expected, variants.TOLERANCE[dtype], repeats=variants.repeats(makers)
    )
