"""What is fusion worth where its rivals are at their best, or its caches at their worst?

`batch`: a whole module, from one image to 64, beside its branches in parallel in a CUDA
graph. `tf32`: products of float32 rounded to TF32, as PyTorch has it for convolutions,
beside those that are not. `cold`: weights and inputs come from memory, since each call has
others, together more than the cache holds. The last two are for CUDA devices.
"""

import itertools
from functools import partial
from typing import Any

from ..recorder import Benchmark
from . import circumstances, guards, streams, variants

QUESTION = "What is fusion worth with TF32, with cold caches, and for larger batches?"
ROUNDS = 10
BATCHES = (1, 8, 64, 2, 4, 16, 32)
SHOWN = (
    variants.WRITTEN,
    variants.FOLDED,
    variants.HOISTED,
    variants.ONE_CALL,
    variants.TWO,
)


def cases(device):
    dtypes = ("float32",) if device == "cpu" else ("float16", "float32")
    kinds: list[dict[str, Any]] = [
        {"dtype": dtype, "layout": variants.USUAL[dtype]} for dtype in dtypes
    ]
    batch = [{"module": "3a", "batch": batch} | kind for batch in BATCHES for kind in kinds]
    cold = [{"module": m, "batch": 1} | kind for m in ("3a", "5b") for kind in kinds]
    full: dict[str, Any] = {"module": "3a", "batch": 1, "dtype": "float32"}
    tf32 = [full | {"layout": layout} for layout in variants.FORMATS]
    each: dict[str, list] = {"batch": batch, "cold": cold, "tf32": tf32}
    named = [[{"what": what} | case for case in each[what]] for what in BENCHMARKS]
    in_turn = itertools.zip_longest(*named)  # one of each first
    return [case for turn in in_turn for case in turn if case]


def benchmark(device, what, module, batch, dtype, layout):
    if what != "batch":
        guards.need_cuda(device)
    model, x = variants.inception(module, batch, dtype, device, layout)
    makers, settings = BENCHMARKS[what](model, x, device)
    settings = {"repeats": variants.repeats(makers)} | settings
    expected, tolerance = variants.exact(model, x), 2 * variants.TOLERANCE[dtype]
    return Benchmark(
        makers, expected, tolerance, opaque=variants.opaque(makers), **settings
    )


def shown(model, x, device):
    """(variants of what is shown here, eager and in a graph; the folded model)."""
    nets = variants.eager(model)
    every = variants.every(nets, x, device, (), variants.TIMES)
    graphs = [f"graph, {variant}" for variant in SHOWN]
    return {name: every[name] for name in (*SHOWN, *graphs)}, nets[variants.FOLDED]


def batch(model, x, device):
    makers, folded = shown(model, x, device)
    return makers | {variants.PARALLEL: lambda: streams.in_parallel(folded, x, device)}, {}


def tf32(model, x, device):
    """Where a library refuses a layer in float32, it may not in TF32: other networks."""
    makers, rounded = (shown(model, x, device)[0] for _ in range(2))
    more = {
        f"{name}, TF32": partial(circumstances.in_tf32, make)
        for name, make in rounded.items()
    }
    return makers | more, {
        "tolerances": dict.fromkeys(more, 2 * variants.TOLERANCE["float16"])
    }


def cold(model, x, device):
    """Each variant hot and cold, eager and in a graph: one of all copies, in turn."""
    number = circumstances.copies(model, x, device)
    makers, _ = shown(model, x, device)
    colds, graphs = {}, {}
    for variant in SHOWN:
        colds[f"{variant}, cold"] = partial(circumstances.rotated, makers[variant], number)
        make = partial(variants.in_graph, colds[f"{variant}, cold"], number)
        graphs[f"graph, {variant}, cold"] = partial(guards.on_cuda, device, make)
    repeats = variants.repeats(makers) | dict.fromkeys(graphs, number)
    return makers | colds | graphs, {"repeats": repeats}


BENCHMARKS = {"batch": batch, "cold": cold, "tf32": tf32}
