"""What the experiments benchmark: a model on its way down, rung by rung, and its rivals.

No experiment itself. Every function here makes something that computes the same as the
model it is given, within rounding; `recorder` checks that before it times it. `kernels` is
imported where two launches are made: it imports Triton, whose interpreter can only be
chosen before.
"""

import contextlib
import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from hfusion import models, stacking, timing
from hfusion.folding.fold import fold_batchnorm
from hfusion.fusing.lowering import lower
from hfusion.fusing.planning import plan
from hfusion.timing.eager import FORMATS

from ..recorder import Unavailable, noting

DTYPES = ("float32", "float16", "bfloat16")
# How far from float64 one layer may be, as a share of its largest output.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}

# What is used: float32 in PyTorch's own layout, float16 in that of the tensor cores.
USUAL = {"float16": "NHWC", "float32": "NCHW"}

EMPTY = ("abs", "conv")  # operators of which `chains` can make chains
# The same, without a kernel: a module that hands its input on, and an operator of PyTorch
# that has nothing to compute. They take only the host's time: Python's, the dispatcher's.
NO_KERNEL = ("module", "abs of none")

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


def need_cuda(device):
    """Unavailable anywhere else than on a CUDA device."""
    if device != "cuda":
        raise Unavailable("needs a CUDA device")


def on_cuda(device, make, *args):
    """`make(*args)` on a CUDA device, else Unavailable."""
    need_cuda(device)
    return make(*args)


def with_graphs(device, ways):
    """Variants of functions: each as it is, and TIMES times in a CUDA graph."""
    eager = {name: lambda way=way: way for name, way in ways.items()}
    return eager | {
        f"graph, {name}": partial(on_cuda, device, timing.graphed, way, TIMES)
        for name, way in ways.items()
    }


# How a chain is run: as it is, handed over and not waited for, or as a CUDA graph.
WAYS = {"eager": lambda fn: fn, "host": lambda fn: fn, "graph": timing.graphed}


def chains(operator, way, lengths, device):
    """What a Benchmark of chains needs: n times next to nothing in a row, for each n."""
    if way == "graph" or (way == "host" and device == "cpu"):
        need_cuda(device)
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
    """{rung: network}, from the model as written to one call for conv, bias and ReLU.

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


class ConvReLU(nn.Module):
    """A convolution with its bias and ReLU, in one call of cuDNN or oneDNN."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.refused = conv, False

    def forward(self, x):
        """Where the library refuses this layer, in two calls, from then on."""
        if not self.refused:
            try:
                return self.called(x)
            except torch.OutOfMemoryError:
                raise
            except (NotImplementedError, RuntimeError):
                self.refused = True
        return self.conv(x).relu()

    def called(self, x):
        c = self.conv
        if x.is_cuda or x.is_meta:  # on "meta" as on CUDA: `cost.kernels` counts there
            return torch.cudnn_convolution_relu(
                x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups
            )
        return torch.ops.mkldnn._convolution_pointwise(
            x, c.weight, c.bias, c.padding, c.stride, c.dilation, c.groups, "relu", [], ""
        )


def one_call(network):
    """In a lowered network, in place: each convolution and its ReLU as a ConvReLU."""
    modules = dict(network.named_modules())
    for node in list(network.graph.nodes):
        module = modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, stacking.Stacked) and isinstance(module.activation, nn.ReLU):
            module.layer, module.activation = ConvReLU(module.layer), None
        elif isinstance(module, nn.Conv2d) and len(node.users) == 1:
            (user,) = node.users
            if user.op == "call_module" and isinstance(modules[user.target], nn.ReLU):
                network.set_submodule(node.target, ConvReLU(module))
                network.set_submodule(user.target, nn.Identity())
    return network


def in_one_call(net, x):
    """A variant of `one_call`; its note says in how many layers it is one call.

    Unavailable where it is in none.
    """
    call = tried(partial(net, x))
    layers = [m for m in net.modules() if isinstance(m, ConvReLU)]
    done = sum(not layer.refused for layer in layers)
    if not done:
        raise Unavailable("no layer could be convolution, bias and ReLU in one call")
    call.note = lambda: f"one call in {done} of {len(layers)} layers"
    return call


def every(nets, x, device, modes=MODES, times=1, ours=(TWO,)):
    """The variants of a ladder: each rung eager and as a CUDA graph, and compiled.

    times: how often in a row a graph has what it is made of. ours: of OURS.
    """
    torch.compiler.reset()  # after some compilations of one `forward` it gives up on it
    calls: dict[str, Callable] = {
        rung: partial(tried, partial(net, x)) for rung, net in nets.items()
    }
    calls[ONE_CALL] = partial(in_one_call, nets[ONE_CALL], x)
    for name in ours:
        two = partial(on_cuda, device, in_two, nets[FOLDED], x, OURS[name])
        calls[name] = cache(two)
    made = dict(calls)
    for rung, call in calls.items():
        made[f"graph, {rung}"] = partial(on_cuda, device, in_graph, call, times)
    for mode in modes:
        name, compiles = MODES[mode]
        for rung in compiles:
            made[f"{name}, {rung}"] = call = partial(compiled, nets[rung], x, mode)
            if name.startswith("graph"):
                made[f"{name}, {rung}"] = partial(on_cuda, device, in_graph, call, times)
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


def tried(call):
    """A call that went well once; if this build of torch cannot do it, Unavailable."""
    try:
        call()
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        raise Unavailable(str(error).partition("\n")[0]) from error
    return call


def compiled(net, x, mode):
    """torch.compile, for this one shape."""
    call = partial(torch.compile(net, mode=mode, dynamic=False), x)
    with what_it_lacks():
        call()
    return call


@contextlib.contextmanager
def what_it_lacks():
    """Whatever a compiler raises, as Unavailable: no C++, no memory on the chip, …"""
    try:
        yield
    except (torch.OutOfMemoryError, Unavailable):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise Unavailable(reason) from error


def on_streams(folded, x):
    """A folded Inception module with each branch on a CUDA stream of its own."""
    streams = [torch.cuda.Stream() for _ in range(4)]

    def forward():
        main = torch.cuda.current_stream()
        parts = []
        for stream, branch in zip(streams, branches(folded), strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                parts.append(branch(x))
        for stream in streams:
            main.wait_stream(stream)
        return torch.cat(parts, dim=1)

    return forward


def in_parallel(folded, x, device, times=TIMES):
    """A variant: the branches on streams of their own, side by side in a CUDA graph."""
    return on_cuda(device, in_graph, partial(on_streams, folded, x), times)


def branches(folded):
    """The four branches of an Inception module whose norms are gone: functions of x."""

    def unit(module, x):
        return module.relu(module.conv(x))

    return (
        lambda x: unit(folded.b1, x),
        lambda x: unit(folded.b3, unit(folded.b3_reduce, x)),
        lambda x: unit(folded.b5, unit(folded.b5_reduce, x)),
        lambda x: unit(folded.pool_proj, folded.pool(x)),
    )
