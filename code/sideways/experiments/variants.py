"""What the experiments benchmark: a model, with ever fewer launches, and its rivals.

No experiment itself. Every function here makes something that computes the same as the
model it is given, within rounding; `recorder` checks that before it times it. `kernels` is
imported where two launches are made: it imports Triton, whose interpreter can only be
chosen before.
"""

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from hfusion import models, timing
from hfusion.folding.fold import fold_batchnorm
from hfusion.fusing.lowering import lower
from hfusion.fusing.planning import plan
from hfusion.timing.eager import FORMATS

from ..recorder import Unavailable, noting
from .guards import on_cuda, tried, what_it_lacks
from .one_call import in_one_call, one_call

DTYPES = ("float32", "float16", "bfloat16")
# How far from float64 one layer may be, as a share of its largest output.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}

# What is used: float32 in PyTorch's own layout, float16 in that of the tensor cores.
USUAL = {"float16": "NHWC", "float32": "NCHW"}


WRITTEN, FOLDED = "as written", "folded"
STACKED, HOISTED = "folded, stacked", "folded, stacked, hoisted"
ONE_CALL = "folded, stacked, one call"
STREAMS, PARALLEL = "streams", "graph, streams"
TWO = "two launches"
# In two launches, and what `two_launches.convert` is told besides the module.
OURS: dict[str, dict[str, Any]] = {
    TWO: {},
    "two launches, split": {"splits": "natural"},
    "two launches, dependent": {"dependent": True},
    "two launches, split, dependent": {"splits": "natural", "dependent": True},
}
# How often in a row a stage or a module is in a graph: one alone is over before the host
# has begun the next replay.
TIMES = 20
# What torch.compile is told: what the variants are called, and which variants it gets.
# max-autotune makes a CUDA graph by itself, with some work for the host at every call;
# "graph, max-autotune" is what it compiles, in a graph like all others.
MODES = {
    "default": ("compile", (WRITTEN, FOLDED, HOISTED)),
    "max-autotune": ("max-autotune", (FOLDED, HOISTED)),
    "max-autotune-no-cudagraphs": ("graph, max-autotune", (FOLDED, HOISTED)),
}


def with_graphs(device, ways):
    """Variants of functions: each as it is, and TIMES times in a CUDA graph."""
    eager = {name: lambda way=way: way for name, way in ways.items()}
    return eager | {
        f"graph, {name}": partial(on_cuda, device, timing.graphed, way, TIMES)
        for name, way in ways.items()
    }


def inception(row, batch, dtype, device, layout="NCHW"):
    """(a module of the paper's table, an input for it), both random."""
    model = models.randomise(models.Inception.from_table(row)).eval()
    c_in, size, *_ = models.TABLE[row]
    x = torch.randn(batch, c_in, size, size)
    return placed(model, x, dtype, device, layout)


def placed(model, x, dtype, device, layout):
    """A model and its images in one dtype, on one device, in one memory layout."""
    kind, form = getattr(torch, dtype), FORMATS[layout]
    return (thing.to(device, kind, memory_format=form) for thing in (model, x))


def doubled(thing):
    """A model or a tensor, copied in float64; on the CPU where it lies on a device that
    has no float64: MPS has none, and neither have some of Intel's GPUs."""
    tensor = isinstance(thing, torch.Tensor)
    lies = thing.device if tensor else next(thing.parameters()).device
    twin = thing if tensor else copy.deepcopy(thing)
    return (twin.cpu() if lies.type in ("mps", "xpu") else twin).double()


def exact(model, x):
    """What a model computes, in float64: a tuple of one tensor."""
    with torch.no_grad():
        return (doubled(model)(doubled(x)),)


def eager(model):
    """{variant: network}, from the model as written to one call for conv, bias and ReLU.

    STACKED has one ReLU for each branch and HOISTED one for all, whatever the layout. Both
    are graphs with stacked layers, so that compilers and exporters see what eager PyTorch
    runs.
    """
    folded = fold_batchnorm(model)
    planned = plan(folded)
    return {
        WRITTEN: model,
        FOLDED: folded,
        STACKED: lower(planned, once=False),
        HOISTED: lower(planned, once=True),
        ONE_CALL: one_call(lower(planned, once=True)),
    }


def every(nets, x, device, modes=MODES, times=1, ours=(TWO,)):
    """The variants of a ladder: each network eager and as a CUDA graph, and compiled.

    times: how often in a row a graph has what it is made of. ours: of OURS.
    """
    torch.compiler.reset()  # after some compilations of one `forward` it gives up on it
    calls: dict[str, Callable] = {
        variant: partial(tried, partial(net, x)) for variant, net in nets.items()
    }
    calls[ONE_CALL] = partial(in_one_call, nets[ONE_CALL], x)
    for name in ours:
        two = partial(on_cuda, device, in_two, nets[FOLDED], x, OURS[name])
        calls[name] = cache(two)
    made = dict(calls)
    for variant, call in calls.items():
        made[f"graph, {variant}"] = partial(on_cuda, device, in_graph, call, times)
    for mode in modes:
        name, compiles = MODES[mode]
        for variant in compiles:
            made[f"{name}, {variant}"] = call = partial(compiled, nets[variant], x, mode)
            if name.startswith("graph"):
                made[f"{name}, {variant}"] = partial(on_cuda, device, in_graph, call, times)
    return made


def in_graph(make, times):
    """What `make` makes, so often in a row in one CUDA graph."""
    return timing.graphed(make(), times)


def slow(names):
    """For a Benchmark: the variants that a compiler makes."""
    return tuple(name for name in names if "compile" in name or "autotune" in name)


def repeats(names):
    """For a Benchmark: how often variants in a graph do in a call what is timed."""
    return {name: TIMES for name in names if name.startswith("graph")}


class Tuned(nn.Module):
    """Two launches whose tiles are chosen for the first input.

    Unavailable where splits are asked for and the fastest tile has none.
    """

    def __init__(self, two):
        super().__init__()
        self.two, self.chosen = two, False

    def note(self):
        """The tiles of both launches, and into how many parts the second is cut."""
        first, second = ("×".join(map(str, tile)) for tile in self.two.tiles)
        return f"tiles {first} and {second}, splits {self.two.splits}"

    def forward(self, x):
        if not self.chosen:
            from hfusion.kernels import tuning

            tuning.tune(self.two, x)
            if self.two.splits != 1 and self.two.splits_for(x) == 1:
                raise Unavailable("launch 2 is fastest with a tile that is not split")
            self.chosen = True
        return self.two(x)


def in_two(model, x, options=OURS[TWO]):
    """A model with each of its Inception modules in two launches, on x.

    options: of `two_launches.convert`.
    """
    from hfusion.kernels import two_launches

    if not x.is_contiguous(memory_format=torch.channels_last):
        raise Unavailable("the kernels want channels_last")
    whole = nn.Sequential(copy.deepcopy(model))  # may be such a module itself
    found = [name for name, m in whole.named_modules() if isinstance(m, models.Inception)]
    if not found:
        raise Unavailable("there is no Inception module of this book in it")
    call = partial(whole, x)
    with what_it_lacks():
        for name in found:
            two = two_launches.convert(whole.get_submodule(name), **options)
            whole.set_submodule(name, Tuned(two))
        call()
    tuned = [m for m in whole.modules() if isinstance(m, Tuned)]
    return noting(call, note=lambda: "; ".join(dict.fromkeys(m.note() for m in tuned)))


def opaque(names):
    """The variants in which no operator of PyTorch is called, or none that one sees."""
    seen = ("as written", "folded", "streams")
    return tuple(name for name in names if not name.startswith(seen))


def compiled(net, x, mode):
    """torch.compile, for this one shape."""
    call = partial(torch.compile(net, mode=mode, dynamic=False), x)
    with what_it_lacks():
        call()
    return call
