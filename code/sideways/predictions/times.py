"""How long the variants of a case take: arithmetic on their programs."""

from hfusion import models

from .. import arithmetic
from ..arithmetic import At, Work, device_us, host_us
from ..experiments import variants
from . import programs
from .works import Case

# Kernels that torch.compile leaves: convolutions, and others, by Inductor's source in
# torch 2.13. A convolution's bias is taken off it (kernel/conv.py), and joins the pointwise
# kernel after it. Those of the four last units are one kernel, the concatenation
# (lowering.py, pointwise_cat); the two reductions have one each; and there is the pooling.
# float32 in NCHW is turned to NHWC: the input, and two weights that are no 1×1 (graph.py).
COMPILED = {variants.WRITTEN: (6, 4), variants.FOLDED: (6, 4), variants.HOISTED: (4, 4)}
TURNED = 3
# max-autotune: bias and ReLU go into the products that it generates, where these are the
# fastest. The pooling and the concatenation are left, and one for what does not fit.
TUNED = {variants.FOLDED: 3, variants.HOISTED: 3}


def ladder_us(parameters: Case, works: dict[str, Work], at: At) -> dict[str, float]:
    """{variant: µs} of a case of `module_ladder`."""
    dtype, batch = parameters["dtype"], parameters["batch"]
    times = variants_us(works, dtype, at)
    folded = works[variants.FOLDED]
    on_streams = host_us(folded, at) + at.streams
    times["streams"] = max(on_streams, device_us(folded, dtype, at))
    widths, positions = sizes(parameters["module"], batch)
    times |= compiled_us(works, widths[0] * positions, dtype, at)
    if dtype == "float16":
        # With many images no sum is cut: there are tiles enough.
        ours = [name for name, given in variants.OURS.items() if "splits" not in given]
        times |= two_us([(widths, positions)], at, variants.OURS if batch == 1 else ours)
    return times


def siblings_us(parameters: Case, works: dict[str, Work], at: At) -> dict[str, float]:
    """{variant: µs} of a case of `stage`."""
    return variants_us(works, parameters["dtype"], at)


def chains_us(parameters: Case, works: dict[str, int], at: At) -> dict[str, float]:
    """{n: µs} of a case of `launch_overhead`: a hinge, or a line."""
    if parameters["way"] == "graph":
        return {name: arithmetic.hinge_us(n, at) for name, n in works.items()}
    wait = at.wait if parameters["way"] == "eager" else 0
    return {name: wait + at.abs * n for name, n in works.items()}


def whole_us(parameters: Case, works: dict[str, Work], at: At) -> dict[str, float]:
    """{variant: µs} of a case of `network`; torch.compile's variants are not predicted."""
    dtype, batch = parameters["dtype"], parameters["batch"]
    steps = {name: program for name, program in works.items() if name != "outside"}
    times = variants_us(steps, dtype, at, at.between)
    if dtype == "float16":
        rest = host_us(works["outside"], at), device_us(works["outside"], dtype, at)
        modules = [sizes(row, batch) for row in models.TABLE]
        times |= two_us(modules, at, (variants.TWO,), *rest, at.between)
    return times


def sizes(module, batch):
    """(widths as of a models.Inception, pixels of all images)."""
    c_in, size, *widths = models.TABLE[module]
    return (c_in, *widths), batch * size * size


def variants_us(works, dtype, at, between=0):
    """Each variant, eager and as a graph. between: what follows each replay, in µs."""
    times = {}
    for name, program in works.items():
        on_device = device_us(program, dtype, at)
        times[name] = max(host_us(program, at), on_device)
        times[f"graph, {name}"] = on_device + between
    return times


def compiled_us(works, pooled, dtype, at):
    """torch.compile's variants: the products of each, and what Inductor makes of the rest.

    pooled: how many numbers the pooling reads. For max-autotune a product is as fast as
    the faster of cuDNN's and Triton's, which begins as ours do.
    """
    times = {}
    for name, (convolutions, others) in COMPILED.items():
        others += TURNED * (dtype == "float32")
        host = at.compiled + convolutions * at.compiled_conv + others * at.compiled_kernel
        products = works[name]["products"]
        written = sum(positions * c_out for positions, c_out, *_ in products)
        moved = 2 * programs.item_bytes(dtype) * (pooled + written)
        program = {"products": products, "small": others, "moved": moved, "pools": 0}
        times[f"compile, {name}"] = max(host, device_us(program, dtype, at))
        if dtype == "float16" and name in TUNED:
            program["small"] = TUNED[name]
            on_device = device_us(program, dtype, at, start=0)
            times[f"graph, max-autotune, {name}"] = on_device
            times[f"max-autotune, {name}"] = max(at.autotune, on_device)
    return times


def two_us(modules, at, ours=(variants.TWO,), host=0, device=0, between=0):
    """Modules in two launches each, and what else there is for host and device, in µs.

    ours: which of variants.OURS.
    """
    times = {}
    host += len(modules) * (at.two + 2 * at.triton)
    for name in ours:
        how = variants.OURS[name]
        each = [arithmetic.two_us(w, p, at, **how) for w, p in modules]
        on_device = device + sum(each)
        times[name] = max(host, on_device)
        times[f"graph, {name}"] = on_device + between
    return times
