"""What is fusion worth where its rivals are at their best, or its caches at their worst?

`batch`: a whole module, from one image to 64, beside its branches in parallel in a CUDA
graph. `tf32`: products of float32 rounded to TF32, as PyTorch has it for convolutions,
beside those that are not. `cold`: weights and inputs come from memory, since each call has
others, together more than the cache holds. The last two are for CUDA devices.
"""

import itertools
from functools import partial

from ..recording import Race
from . import circumstances, rungs

QUESTION = "What is fusion worth with TF32, with cold caches, and for larger batches?"
ROUNDS = 10
BATCHES = (1, 8, 64, 2, 4, 16, 32)
SHOWN = (rungs.WRITTEN, rungs.FOLDED, rungs.HOISTED, rungs.ONE_CALL, rungs.TWO)


def cases(device):
    dtypes = ("float32",) if device == "cpu" else ("float16", "float32")
    kinds = [{"dtype": dtype, "layout": rungs.USUAL[dtype]} for dtype in dtypes]
    batch = [{"module": "3a", "batch": batch} | kind for batch in BATCHES for kind in kinds]
    cold = [{"module": m, "batch": 1} | kind for m in ("3a", "5b") for kind in kinds]
    full = {"module": "3a", "batch": 1, "dtype": "float32"}
    tf32 = [full | {"layout": layout} for layout in rungs.FORMATS]
    each = {"batch": batch, "cold": cold, "tf32": tf32}
    named = [[{"what": what} | case for case in each[what]] for what in RACES]
    in_turn = itertools.zip_longest(*named)  # one of each first
    return [case for turn in in_turn for case in turn if case]


def race(device, what, module, batch, dtype, layout):
    if what != "batch":
        rungs.need_cuda(device)
    model, x = rungs.inception(module, batch, dtype, device, layout)
    arms, settings = RACES[what](model, x, device)
    settings = {"repeats": rungs.repeats(arms)} | settings
    expected, share = rungs.exact(model, x), 2 * rungs.SHARE[dtype]
    return Race(arms, expected, share, opaque=rungs.opaque(arms), **settings)


def shown(model, x, device):
    """(arms of what is shown here, eager and in a graph; the folded model)."""
    nets = rungs.eager(model)
    every = rungs.arms(nets, x, device, (), rungs.TIMES)
    graphs = [f"graph, {rung}" for rung in SHOWN]
    return {name: every[name] for name in (*SHOWN, *graphs)}, nets[rungs.FOLDED]


def batch(model, x, device):
    arms, folded = shown(model, x, device)
    return arms | {rungs.PARALLEL: lambda: rungs.in_parallel(folded, x, device)}, {}


def tf32(model, x, device):
    """Where a library refuses a layer in float32, it may not in TF32: other networks."""
    arms, rounded = (shown(model, x, device)[0] for _ in range(2))
    more = {
        f"{name}, TF32": partial(circumstances.in_tf32, make)
        for name, make in rounded.items()
    }
    return arms | more, {"shares": dict.fromkeys(more, 2 * rungs.SHARE["float16"])}


def cold(model, x, device):
    """Each rung hot and cold, eager and in a graph: one of all copies, in turn."""
    number = circumstances.copies(model, x, device)
    arms, _ = shown(model, x, device)
    colds, graphs = {}, {}
    for rung in SHOWN:
        colds[f"{rung}, cold"] = partial(circumstances.rotated, arms[rung], number)
        make = partial(rungs.in_graph, colds[f"{rung}, cold"], number)
        graphs[f"graph, {rung}, cold"] = partial(rungs.on_cuda, device, make)
    repeats = rungs.repeats(arms) | dict.fromkeys(graphs, number)
    return arms | colds | graphs, {"repeats": repeats}


RACES = {"batch": batch, "cold": cold, "tf32": tf32}
