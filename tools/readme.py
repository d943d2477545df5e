"""The numbers of README and index, written from where they come: python tools/readme.py

What stands between `<!-- counted -->` and `<!-- /counted -->` is counted here; what stands
between `measured`, or `headline`, is read from the records. `make run` writes all anew.
"""

import contextlib
import statistics
import textwrap
from functools import cache, partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from hfusion import models, timing
from hfusion.fusing import lowering, planning
from hfusion.timing import cost
from sideways import outcomes, records
from sideways.experiments import variants

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
INDEX = ROOT / "index.md"

# A column of the table: the variant with fused siblings, and the one without. The norms of
# both are folded; the two runtimes fold them by themselves. Eager, a ReLU follows each
# branch, as `fuse` leaves it on a CPU; compilers were measured with one for all.
WAYS = {
    "eager": (variants.STACKED, variants.FOLDED),
    "CUDA graph": (f"graph, {variants.HOISTED}", f"graph, {variants.FOLDED}"),
    "torch.compile": (f"compile, {variants.HOISTED}", f"compile, {variants.FOLDED}"),
    "max-autotune": (
        f"max-autotune, {variants.HOISTED}",
        f"max-autotune, {variants.FOLDED}",
    ),
    "ONNX Runtime": (
        f"ONNX Runtime, {variants.HOISTED}",
        f"ONNX Runtime, {variants.WRITTEN}",
    ),
    "OpenVINO": (f"OpenVINO, {variants.HOISTED}", f"OpenVINO, {variants.WRITTEN}"),
}
NO_GPU = "No GPU has been recorded yet."


@cache
def counted():
    """The README's figure in words, and what it shows."""
    module, x = variants.inception("3a", 1, "float32", "cpu")
    stacked = lowering.lower(planning.plan(module))
    nets = variants.eager(module) | {"stacked only": stacked}
    shown = (
        variants.WRITTEN,
        "stacked only",
        variants.FOLDED,
        variants.STACKED,
        variants.HOISTED,
    )
    count = {name: timing.count_launches(partial(nets[name], x)).count for name in shown}
    rows = "; ".join(f"{name} {number}" for name, number in count.items())
    written, folded, stacked, hoisted = (count[shown[place]] for place in (0, 2, 3, 4))
    before, after = (
        cost.kernels(nets[name], "float32", "NCHW", 1)
        for name in (variants.WRITTEN, variants.HOISTED)
    )
    steps = (
        f"On a CPU, PyTorch runs {written} operators (steps such as a convolution or a "
        "ReLU) for 3a, GoogLeNet's first Inception module. Merging the batch norms into "
        f"the convolutions (*folding*), as many tools do, leaves {folded}. Stacking leaves "
        f"{stacked}, which is what `hfusion` gives on a CPU. One ReLU for all branches "
        f"(*hoisting*) leaves {hoisted}. The answers agree within rounding."
    )
    return (
        f"![Operators of an Inception module, step by step: {rows}.]"
        "(_static/launches.png)\n\n"
        f"{textwrap.fill(steps, 96, break_on_hyphens=False)}\n\n"
        "On a GPU an operator may launch several kernels. These are counted in PyTorch's "
        f"source:\nfor one image in float32, in PyTorch's usual memory layout, the module "
        f"as written launches\nat least {before} kernels, and after all three steps "
        f"at least {after}."
    )


def measured(folder):
    """For each machine with a record of whole networks, what fusing was worth in them."""
    found = list(records.load_all(folder, "network").values())
    parts = [part for record in found if (part := _of_a_machine(record))]
    if not parts:
        return "No network has been recorded yet."
    if all(record.machine.kind != "cuda" for record in found):
        parts.append(NO_GPU)
    return "\n\n".join(parts)


def _of_a_machine(record):
    """A table with a row for each case and a column for each way, or "" for want of one."""
    measured = {_titled(case): _gains(case) for case in record.cases}
    rows = {title: gains for title, gains in measured.items() if gains}
    if not rows:
        return ""
    ways = [way for way in WAYS if any(way in gains for gains in rows.values())]
    lines = [["", *ways], ["---"] * (len(ways) + 1)]
    for title, gains in rows.items():
        lines.append([title, *(_cell(gains[w]) if w in gains else "–" for w in ways)])
    every, faster, slower = _clear(rows.values())
    said = (
        f"{record.label[0].upper()}{record.label[1:]}, PyTorch {record.machine.torch}. Of "
        f"{every} gains {faster} are\nclearly above 1, {slower} clearly below, and "
        f"{every - faster - slower} are neither."
    )
    if absent := [title for title in measured if title not in rows]:
        said += f"\nNot measured there: {'; '.join(absent)}."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{said}"


def _titled(case):
    about = case.parameters
    torchvisions = about["network"] == "torchvision"
    network = "torchvision's GoogLeNet" if torchvisions else about["network"]
    images = "1 image" if about["batch"] == 1 else f"{about['batch']} images"
    return f"{network}, {images}, {about['dtype']}"


def _gains(case):
    """{way: quartiles of its gain}, of the ways measured both with and without."""
    return {
        way: case.gain(fused, base)
        for way, (fused, base) in WAYS.items()
        if fused in case.samples and base in case.samples
    }


def _clear(rows):
    """How many gains there are, how many are clearly above 1, and clearly below."""
    every = [gain for gains in rows for gain in gains.values()]
    return len(every), *outcomes.clear(every)


def _cell(gain):
    """Quartiles in words, with a third digit where two would hide the side of 1."""
    low, _, high = gain
    hidden = any(end != 1 and f"{end:.2f}" == "1.00" for end in (low, high))
    low, middle, high = (f"{one:.{3 if hidden else 2}f}" for one in gain)
    said = f"{middle} ({low} to {high})"
    return f"**{said}**" if gain[-1] < 1 else said


USUAL = {"batch": 1, "dtype": "float32", "layout": "NCHW"}
FUSED, UNFUSED = variants.STACKED, variants.FOLDED


def headline(folder):
    """What came out, in sentences, each of the first machine that has measured it."""
    stage, siblings = _first(folder, "stage", "separate", "stacked")
    network, whole = _first(folder, "network", FUSED, UNFUSED, network="GoogLeNet")
    same = stage and network and stage.label == network.label
    said = [
        stage and _of_siblings(stage, siblings) + ("." if same else f" ({stage.label})."),
        stage and f"These convolutions are {_share():.0%} of the network's multiply-adds.",
        network
        and _of_googlenet(network, *whole, "Once" if same else f"{_device(network)}once"),
        _price(folder),
        "" if stage and stage.machine.kind == "cuda" else NO_GPU,
    ]
    text = " ".join(sentence for sentence in said if sentence)
    return textwrap.fill(text, 96, break_long_words=False, break_on_hyphens=False)


def _first(folder, experiment, *names, **parameters):
    """(the first machine's record that has these variants for one image in float32, the
    cases), or (None, [])."""
    for record in records.load_all(folder, experiment).values():
        with contextlib.suppress(records.NotRecorded):
            return record, record.measured(*names, **USUAL, **parameters)
    return None, []


def _device(record):
    return "On a GPU, " if record.machine.kind == "cuda" else "On a CPU, "


def _of_siblings(record, cases):
    gain = statistics.median(case.gain("stacked", "separate")[1] for case in cases)
    return (
        f"{_device(record)}stacked, the three 1×1 convolutions of a GoogLeNet module run "
        f"{gain:.2f} times as fast as separately (the median of {len(cases)} modules)"
    )


@cache
def _share():
    """What part of GoogLeNet's multiply-adds these convolutions of its modules are."""
    network = models.GoogLeNet().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 224, 224))
    siblings = sum(
        2 * (w1 + r3 + r5) * c_in * size**2
        for c_in, size, w1, r3, _, r5, *_ in models.TABLE.values()
    )
    return siblings / counter.get_total_flops()


def _of_googlenet(record, case, once):
    every, faster, slower = _clear(map(_gains, record.cases))
    return (
        f"{once} its batch norms are merged into its convolutions, the whole of GoogLeNet "
        f"runs {case.gain(FUSED, UNFUSED)[1]:.2f} times as fast when it is also fused "
        f"sideways ({record.label}; one image, float32). Fusing does not always win: of "
        f"{every} comparisons of the whole network in PyTorch and in other runtimes, it "
        f"is clearly faster in {faster} (both quartiles of the gain above 1), clearly "
        f"slower in {slower}, and undecided in {every - faster - slower}."
    )


def _price(folder):
    """What the checks of a call cost that none of these networks makes, if recorded."""
    record = records.first(folder, "checks")
    try:
        (tiny,) = record.measured("fused", "lowered", network="three linear")
        (whole,) = record.measured("fused", "lowered", "separate", network="GoogLeNet")
    except records.NotRecorded:
        return ""
    low, middle, high = whole.gain("fused", "separate")
    return (
        "These times are without checks. A model from `fuse` checks each group at every "
        f"call, which costs {tiny.more('fused', 'lowered'):.0f} µs per group. So checked, "
        f"GoogLeNet runs {middle:.2f} times as fast ({low:.2f} to {high:.2f}), and without "
        f"checks {whole.gain('lowered', 'separate')[1]:.2f} times ({record.label})."
    )


BLOCKS = {
    "counted": lambda folder: counted(),
    "measured": measured,
    "headline": headline,
}
FILES = {README: ("headline", "counted", "measured"), INDEX: ("headline", "counted")}


def filled(text, folder=ROOT / "records", names=FILES[README]):
    """A text with its blocks as they must be. Raises ValueError where one is missing."""
    for name in names:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if (text.count(begin), text.count(end)) != (1, 1):
            raise ValueError(f"expected one {begin} and one {end}")
        before, after = text.partition(begin)[0], text.partition(end)[2]
        text = f"{before}{begin}\n\n{BLOCKS[name](folder)}\n\n{end}{after}"
    return text


def write():
    for path, names in FILES.items():
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text, names=names), encoding="utf-8")


if __name__ == "__main__":
    write()
