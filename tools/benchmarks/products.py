"""Is it the product that loses, or the layer? .venv/bin/python tools/benchmarks/products.py

    products.py                             printed: a minute on two cores
    products.py records/products.json       and stored, for chapter 13

The projections of the experiment `projections`, three ways in turn: one by one; as the
stacked layer; and as one product of all weights, without a layer and without a split.
Gains are medians of the ratio per round, with `timing.median_interval`. "Beside it" is the
median of how much longer the layer takes than the product in a round. What is stored is the
last run on a quiet machine, whatever it says.
"""

import statistics
import sys

import torch
import torch.nn.functional as F
from stored import about, store
from torch import nn

from hfusion import stacking, timing
from sideways.experiments.projections import PROJECTIONS

TOKENS = 1, 8, 16, 64, 512


def raced(name, features, sizes, tokens):
    """One row: how fast each way is, on these tokens."""
    x = torch.randn(tokens, features)
    linears = [nn.Linear(features, size, bias=False) for size in sizes]
    layer = stacking.stack(linears)
    weight = torch.cat([linear.weight for linear in linears])
    variants = {
        "separate": lambda: [linear(x) for linear in linears],
        "product": lambda: F.linear(x, weight),
        "stacked": lambda: layer(x),
    }
    timing.agree(torch.cat(layer(x), -1), F.linear(x, weight), 1e-4)
    us = timing.benchmark(variants, rounds=30)
    ratios = zip(us["separate"], us["product"], strict=True)
    beside = map(float.__sub__, us["stacked"], us["product"])
    return {
        "projections": name,
        "tokens": tokens,
        "separate_us": statistics.median(us["separate"]),
        "product": timing.gains(us, "separate")["product"][1],
        "interval": timing.median_interval([old / new for old, new in ratios]),
        "stacked": timing.gains(us, "separate")["stacked"][1],
        "beside_us": statistics.median(beside),
    }


def main(path=None):
    print(", ".join(about().values()))
    print(f"{'':20} tokens  separate  one product          stacked  beside it")
    found = []
    with torch.no_grad():
        for tokens in TOKENS:
            for name, (features, sizes) in PROJECTIONS.items():
                row = raced(name, features, sizes, tokens)
                found.append(row)
                low, high = row["interval"]
                gain = f"{row['product']:.2f} ({low:.2f} to {high:.2f})"
                print(
                    f"{name:20} {tokens:6} {row['separate_us']:6,.0f} µs  {gain:20} "
                    f"{row['stacked']:.2f} {row['beside_us']:8.1f} µs",
                    flush=True,
                )
    if path:
        store(path, rows=found)


if __name__ == "__main__":
    main(*sys.argv[1:])
