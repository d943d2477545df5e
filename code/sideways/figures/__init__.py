"""The book's drawings and plots: data in, matplotlib figure out.

One style and one palette. A branch keeps its colour in every picture, and a
stacked thing is drawn in the colours of its branches. Nothing here computes a
result or measures a time: a figure shows what it is given.
"""

from .drawings import fusion_kinds, graph, inception, launches, sharded, waves
from .matrices import blocks, gemm, memory, neighbours, taps, unroll, windows
from .plots import bars, errors, gallery, ranges, spread, stacked_bars
from .recorded import calls, fitted, hinge, outcomes, predicted, tradeoff
from .style import BRANCHES, DASHED, FAINT, INK, INPUT, OTHERS, tint, use_style

__all__ = [
    "BRANCHES",
    "DASHED",
    "FAINT",
    "INK",
    "INPUT",
    "OTHERS",
    "bars",
    "blocks",
    "calls",
    "errors",
    "fitted",
    "fusion_kinds",
    "gallery",
    "gemm",
    "graph",
    "hinge",
    "inception",
    "launches",
    "memory",
    "neighbours",
    "outcomes",
    "predicted",
    "ranges",
    "sharded",
    "spread",
    "stacked_bars",
    "taps",
    "tint",
    "tradeoff",
    "unroll",
    "use_style",
    "waves",
    "windows",
]
