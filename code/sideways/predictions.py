"""What an H200 should show, worked out before any CUDA device had been measured.

Four experiments, each case with the time of its variants, with gains, and with kernels. The
kernels are counted by `eager`, ours are as `compiled` knows them, the rest is `arithmetic`.

    python -m sideways.predictions FILE    writes them all; replaces no file
"""

import argparse
import dataclasses
import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfusion import models
from hfusion.kernels import compiled, two_launches
from hfusion.timing import eager

from . import arithmetic, estimates
from .arithmetic import At, Work, device_us, host_us
from .experiments import launch_overhead, network, stage, variants

Case = dict  # {parameter: value}, as in a record
DEVICE = "NVIDIA H200"  # what the SXM part calls itself
FORMAT = 1
COUNTS = ["kernels", "convolutions", "norms", "others", "more", "small", "pools", "moved"]
INDEX = 8  # bytes of a pooling's index, of which it writes one for each number

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


# A program as numbers, in dicts that go into the file.


def work(operators: list[eager.Operator], item_bytes: int, turned: bool = False) -> Work:
    """Operators of `eager.operators` as numbers: a dict.

    kernels: how many. convolutions, norms, others: operators of each kind; more: further
    kernels in them. small: kernels without a product; pools: how many of these pool; moved:
    their bytes. products: (positions, c_out, depth, bytes) of each convolution. turned:
    whether cuDNN turns input and output round inside, as in NCHW where the tensor cores
    want NHWC.

    >>> conv = eager.operators(nn.Conv2d(3, 4, 1), "float32", "NCHW", 1)
    >>> found = work(conv, item_bytes=4)
    >>> found["kernels"], found["more"], found["small"], found["products"]
    (2, 1, 1, [[784, 4, 3, 22016]])
    """
    found: Work = dict.fromkeys(COUNTS, 0) | {"products": []}
    for each in operators:
        found["kernels"] += len(each.kernels)
        found["more"] += len(each.kernels) - 1
        found[_what(each)] += 1
        through = (each.read + each.written) * item_bytes
        if not each.product:
            pools = "pool" in each.kernels
            found["small"] += len(each.kernels)
            found["pools"] += pools
            found["moved"] += through + pools * each.written * INDEX
            continue
        found["products"].append([*each.product, through])
        copies = each.kernels.count("copy")
        biases = len(each.kernels) - 1 - copies
        found["small"] += copies + biases + 2 * turned
        numbers = 2 * each.written * biases + 2 * each.read * copies
        found["moved"] += numbers * item_bytes + 2 * through * turned
    return found


def _what(operator):
    """Which of COUNTS an operator is one of."""
    if operator.product:
        return "convolutions"
    return "norms" if operator.name == "native_batch_norm" else "others"


def _works(nets, parameters, image, splits=0):
    """{name: work} of networks; those that stack have so many splits, for the host."""
    dtype, layout, batch = (parameters[name] for name in ("dtype", "layout", "batch"))
    turned = layout == "NCHW" and dtype != "float32"
    found = {}
    for name, net in nets.items():
        operators = eager.operators(net, dtype, layout, batch, image)
        found[name] = work(operators, _item_bytes(dtype), turned)
        if name in (variants.STACKED, variants.HOISTED, variants.ONE_CALL):
            found[name]["others"] += splits
    return found


def _item_bytes(dtype):
    return getattr(torch, dtype).itemsize


def _more(program, **numbers):
    """A program with more of some things in it."""
    return program | {name: program[name] + number for name, number in numbers.items()}


def _sum(programs):
    """Several programs, one after the other."""
    first, *others = programs
    for program in others:
        first = _more(first, **program)
    return first


def _without(whole, parts):
    """A program less some that are in it."""
    rest = {k: v - sum(p[k] for p in parts) for k, v in whole.items() if k != "products"}
    rest["products"] = list(whole["products"])
    for part in parts:
        for product in part["products"]:
            rest["products"].remove(product)
    return rest


# Each experiment: the programs of a case, and the times of its variants.


def ladder(parameters: Case) -> dict[str, Work]:
    """A case of `module_ladder` as programs: {rung: work}."""
    model = models.randomise(models.Inception.from_table(parameters["module"])).eval()
    c_in, size, *_ = models.TABLE[parameters["module"]]
    return _works(variants.eager(model), parameters, (c_in, size, size), splits=1)


def ladder_us(parameters: Case, works: dict[str, Work], at: At) -> dict[str, float]:
    """{variant: µs} of a case of `module_ladder`."""
    dtype, batch = parameters["dtype"], parameters["batch"]
    times = _variants(works, dtype, at)
    folded = works[variants.FOLDED]
    on_streams = host_us(folded, at) + at.streams
    times["streams"] = max(on_streams, device_us(folded, dtype, at))
    widths, positions = _sizes(parameters["module"], batch)
    times |= _compiled(works, widths[0] * positions, dtype, at)
    if dtype == "float16":
        # With many images no sum is cut: there are tiles enough.
        ours = [name for name, given in variants.OURS.items() if "splits" not in given]
        times |= _two([(widths, positions)], at, variants.OURS if batch == 1 else ours)
    return times


def _sizes(module, batch):
    """(widths as of a models.Inception, pixels of all images)."""
    c_in, size, *widths = models.TABLE[module]
    return (c_in, *widths), batch * size * size


def _variants(works, dtype, at, between=0):
    """Each rung, eager and as a graph. between: what follows each replay, in µs."""
    times = {}
    for rung, program in works.items():
        on_device = device_us(program, dtype, at)
        times[rung] = max(host_us(program, at), on_device)
        times[f"graph, {rung}"] = on_device + between
    return times


def _compiled(works, pooled, dtype, at):
    """torch.compile's variants: the rung's products, and what Inductor makes of the rest.

    pooled: how many numbers the pooling reads. For max-autotune a product is as fast as
    the faster of cuDNN's and Triton's, which begins as ours do.
    """
    times = {}
    for rung, (convolutions, others) in COMPILED.items():
        others += TURNED * (dtype == "float32")
        host = at.compiled + convolutions * at.compiled_conv + others * at.compiled_kernel
        products = works[rung]["products"]
        written = sum(positions * c_out for positions, c_out, *_ in products)
        moved = 2 * _item_bytes(dtype) * (pooled + written)
        program = {"products": products, "small": others, "moved": moved, "pools": 0}
        times[f"compile, {rung}"] = max(host, device_us(program, dtype, at))
        if dtype == "float16" and rung in TUNED:
            program["small"] = TUNED[rung]
            on_device = device_us(program, dtype, at, start=0)
            times[f"graph, max-autotune, {rung}"] = on_device
            times[f"max-autotune, {rung}"] = max(at.autotune, on_device)
    return times


def _two(modules, at, ours=(variants.TWO,), host=0, device=0, between=0):
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


def siblings(parameters: Case) -> dict[str, Work]:
    """A case of `stage` as programs: {way: work}."""
    given = estimates.siblings(**parameters)
    sizes = dict(enumerate(given.sizes)) | {"stacked": sum(given.sizes)}
    convs = {name: nn.Conv2d(given.c_in, width, 1) for name, width in sizes.items()}
    single = _works(convs, parameters, (given.c_in, given.height, given.width))
    stacked = _more(single.pop("stacked"), others=1)  # the split
    numbers = 2 * sum(given.copies) * given.batch * given.height * given.width
    moved, copies = numbers * _item_bytes(given.dtype), len(given.copies)
    copied = _more(stacked, kernels=copies, others=copies, small=copies, moved=moved)
    return {"separate": _sum(single.values()), "stacked": stacked, "copied": copied}


def siblings_us(parameters: Case, works: dict[str, Work], at: At) -> dict[str, float]:
    """{variant: µs} of a case of `stage`."""
    return _variants(works, parameters["dtype"], at)


def chains(parameters: Case) -> dict[str, int]:
    """A case of `launch_overhead`: {n: n}."""
    return {str(n): n for n in launch_overhead.CHAINS}


def chains_us(parameters: Case, works: dict[str, int], at: At) -> dict[str, float]:
    """{n: µs} of a case of `launch_overhead`: a hinge, or a line."""
    if parameters["way"] == "graph":
        return {name: arithmetic.hinge_us(n, at) for name, n in works.items()}
    wait = at.wait if parameters["way"] == "eager" else 0
    return {name: wait + at.abs * n for name, n in works.items()}


def whole(parameters: Case) -> dict[str, Work]:
    """A case of `network` as programs: {rung: work}, and what is outside of the modules."""
    model = models.randomise(models.GoogLeNet()).eval()
    model.head = nn.Identity().eval()  # type: ignore[assignment]  # a mean and a small product, added here
    works = _works(variants.eager(model), parameters, (3, 224, 224), len(models.TABLE))
    works = {
        rung: _more(program, kernels=2, others=2, small=2)
        for rung, program in works.items()
    }
    modules = [
        _works(
            {"": variants.eager(module)[variants.FOLDED]}, parameters, (c_in, size, size)
        )[""]
        for row, module in model.inception.items()
        for c_in, size, *_ in [models.TABLE[row]]
    ]
    return works | {"outside": _without(works[variants.FOLDED], modules)}


def whole_us(parameters: Case, works: dict[str, Work], at: At) -> dict[str, float]:
    """{variant: µs} of a case of `network`; torch.compile's variants are not predicted."""
    dtype, batch = parameters["dtype"], parameters["batch"]
    steps = {rung: program for rung, program in works.items() if rung != "outside"}
    times = _variants(steps, dtype, at, at.between)
    if dtype == "float16":
        rest = host_us(works["outside"], at), device_us(works["outside"], dtype, at)
        modules = [_sizes(row, batch) for row in models.TABLE]
        times |= _two(modules, at, (variants.TWO,), *rest, at.between)
    return times


EXPERIMENTS: dict[str, tuple[Callable, Callable]] = {
    "module_ladder": (ladder, ladder_us),
    "stage": (siblings, siblings_us),
    "launch_overhead": (chains, chains_us),
    "network": (whole, whole_us),
}
STEPS = (variants.FOLDED, variants.STACKED, variants.HOISTED, variants.ONE_CALL)
LAST = f"graph, {variants.TWO}"
# Of which variants a gain is predicted, and over which.
GAINS = [
    *((rung, variants.WRITTEN) for rung in STEPS),
    *((f"graph, {rung}", f"graph, {variants.WRITTEN}") for rung in STEPS),
    (variants.HOISTED, variants.FOLDED),
    (f"graph, {variants.HOISTED}", f"graph, {variants.FOLDED}"),
    *((LAST, f"graph, {rung}") for rung in (variants.WRITTEN, variants.ONE_CALL)),
    *((LAST, f"graph, max-autotune, {rung}") for rung in TUNED),
    *((f"graph, {name}", LAST) for name in variants.OURS if name != variants.TWO),
    *(
        (f"{g}{way}", f"{g}separate")
        for g in ("", "graph, ")
        for way in ("stacked", "copied")
    ),
]


def cases() -> dict[str, list[Case]]:
    """{experiment: the parameters of each case that is predicted}.

    Of `module_ladder` not float16 in NCHW and float32 in NHWC; of `stage` not bfloat16,
    which would be the same as float16; of `network` not torchvision's.
    """
    ladders = [
        {"module": module, "batch": batch, "dtype": dtype, "layout": layout}
        for dtype, layout in variants.USUAL.items()
        for module, batch in (*((row, 1) for row in models.TABLE), ("3a", 32))
    ]
    return {
        "module_ladder": ladders,
        "stage": [c for c in stage.cases("cuda") if c["dtype"] != "bfloat16"],
        "launch_overhead": launch_overhead.cases("cuda"),
        "network": [c for c in network.cases("cuda") if c["network"] == "GoogLeNet"],
    }


def predicted(
    experiment: str,
    parameters: Case,
    works: dict,
    inputs: dict[str, arithmetic.Input] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """What is predicted of a case: {"us": {variant: (low, middle, high)}, "gains":
    {"variant / base": …}, "kernels": {variant: …}}.

    works: its programs. inputs: in place of arithmetic.INPUTS.
    """
    _, times = EXPERIMENTS[experiment]

    def evaluate(at):
        us = times(parameters, works, at)
        gains = {
            ("gains", f"{variant} / {base}"): us[base] / us[variant]
            for variant, base in GAINS
            if {variant, base} <= set(us)
        }
        return {("us", variant): time for variant, time in us.items()} | gains

    found: dict[str, dict] = {"us": {}, "gains": {}, "kernels": {}}
    for (kind, name), numbers in arithmetic.ranges(evaluate, inputs).items():
        found[kind][name] = [float(f"{number:.3g}") for number in numbers]
    known = counts(works, experiment, parameters)
    found["kernels"] = {
        variant: known[variant] for variant in found["us"] if variant in known
    }
    return found


def counts(works: dict, experiment: str, parameters: Case) -> dict[str, list[int]]:
    """{variant: (least, expected, most)}: how many kernels. cuDNN may need one more for
    each convolution; Inductor one less, or one more for each.
    """
    if experiment == "launch_overhead":
        return {name: [n, n, n] for name, n in works.items()}
    found = {}

    def note(variant, least, expected, most):
        found[variant] = found[f"graph, {variant}"] = [least, expected, most]

    for rung, program in works.items():
        n = program["kernels"]
        note(rung, n, n, n + len(program["products"]))
    for table, way in ((COMPILED, "compile"), (TUNED, "max-autotune")):
        for rung in table if experiment == "module_ladder" else ():
            convolutions, n = COMPILED[rung]
            n = table[rung] if way == "max-autotune" else n
            n += convolutions + TURNED * (parameters["dtype"] == "float32")
            note(f"{way}, {rung}", n - 1, n, n + convolutions)
    for name in variants.OURS if experiment == "module_ladder" else ():
        note(name, 2, 2, 2)
    return found


# Who works when.

SHOWN = {  # what the profiler calls an operator
    "convolution": "conv2d",
    "native_batch_norm": "batch_norm",
    "max_pool2d_with_indices": "max_pool2d",
}


def timeline(
    operators: list[eager.Operator],
    dtype: str,
    graph: bool = False,
    at: At | None = None,
    split: int | None = None,
) -> list[tuple[str, str, float, float]]:
    """When host and device should work in one call: [(lane, name, begin, end), …], in µs.

    Like `timing.timeline`, but from the sum and not from a clock. A kernel begins one gap
    (`node`) after the host has handed it over and the kernel before it has ended.

    graph: whether all is handed over as one CUDA graph. at: one value of each input of
    arithmetic.INPUTS; the middle ones if None. split: after how many operators the host
    splits a stacked product, which `eager.operators` leaves out: views have no kernel.

    >>> net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU())
    >>> found = eager.operators(net, "float32", "NCHW", 1, (1, 1, 1))
    >>> for lane, name, begin, end in timeline(found, "float32"):
    ...     print(f"{lane:6} {name:6} {begin:5.1f} to {end:.1f}")
    host   conv2d   0.0 to 20.0
    device conv2d  21.2 to 23.6
    host   relu    20.0 to 26.0
    device relu    27.2 to 27.7
    """
    at = at or At(**{name: given.middle for name, given in arithmetic.INPUTS.items()})
    events, handed, free = [], 0.0, 0.0
    if graph:
        handed = at.replay
        events.append(("host", "replay", 0.0, handed))
    for place, each in enumerate(operators):
        if place == split and not graph:
            begun, handed = handed, handed + at.operator
            events.append(("host", "split", begun, handed))
        name = SHOWN.get(each.name, each.name)
        program = work([each], _item_bytes(dtype))
        if not graph:
            begun, handed = handed, handed + host_us(program, at)
            events.append(("host", name, begun, handed))
        found = _kernels_us(program, dtype, at)
        for left, (kernel, us) in zip(range(len(found))[::-1], found, strict=True):
            begun = max(handed - left * at.kernel * (not graph), free)
            free = begun + us
            events.append(("device", kernel or name, begun + at.node, free))
    return events


def _kernels_us(program, dtype, at):
    """The kernels of one operator: [(name, or "" for the operator's, µs), …]."""
    none = program | {"products": [], "small": 0, "moved": 0, "pools": 0}
    products = program["products"]
    found = [("", device_us(none | {"products": [each]}, dtype, at)) for each in products]
    small = program["small"]
    if small:
        us = device_us(program | {"products": []}, dtype, at) / small
        found += [("bias" if products else "", us)] * small
    return found


# The file.


def made(commit: str, listed: dict[str, list[Case]] | None = None) -> dict:
    """All predictions, as the file has them.

    commit: of the kernels that they are about. listed: in place of `cases`.
    """
    about, _ = compiled.read()
    code = [
        [launch, tile, row.issued, row.multiplying, row.buffers, row.resident]
        for (launch, dtype, tile), row in arithmetic.CODE.items()
        if dtype == "float16" and tile in two_launches.TILES
    ]
    found = {
        experiment: [
            {"parameters": case, "works": works} | predicted(experiment, case, works)
            for case in each
            for works in [EXPERIMENTS[experiment][0](case)]
        ]
        for experiment, each in (listed or cases()).items()
    }
    given = {name: dataclasses.asdict(one) for name, one in arithmetic.INPUTS.items()}
    return {
        "format": FORMAT,
        "device": DEVICE,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "compiled": about,
        "code": code,
        "inputs": given,
        "left_out": arithmetic.LEFT_OUT,
        "experiments": found,
    }


def text(content: dict) -> str:
    """The file: JSON with one line for an input and for a case."""
    short: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}

    def lines(part, indent):
        if isinstance(part, list):
            rows = [json.dumps(row, **short) for row in part]
        else:
            rows = [f"{json.dumps(k)}: {json.dumps(v, **short)}" for k, v in part.items()]
        return (",\n" + indent).join(["", *rows])[2:]

    head = {k: v for k, v in content.items() if k not in ("inputs", "experiments")}
    parts = ",\n".join(
        f' "{name}": [\n{lines(rows, "  ")}\n ]'
        for name, rows in content["experiments"].items()
    )
    return (
        f"{{\n{lines(head, '')},\n"
        f'"inputs": {{\n{lines(content["inputs"], " ")}\n}},\n'
        f'"experiments": {{\n{parts}\n}}\n}}\n'
    )


def last_change(path: str) -> str:
    """The commit that changed a file last."""
    command = ["git", "log", "-1", "--format=%H", "--", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """Write the file; 2 if it is there already."""
    parser = argparse.ArgumentParser(prog="python -m sideways.predictions")
    parser.add_argument("file", type=Path)
    path = parser.parse_args(arguments).file
    if path.exists():
        print(f"{path} is there already: predictions are made once")
        return 2
    content = text(made(last_change(str(Path(two_launches.__file__).parent))))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
