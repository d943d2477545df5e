"""*Your case*: what stacking should bring for sizes that the reader sets, in the page.

`webgpu/case.js` does in the page what this file does for the case that one sees first.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from html import escape

from hfusion import models
from hfusion.timing import cost, quartiles
from hfusion.timing.eager import DTYPES

from .. import estimates
from ..experiments.ceilings import limits
from ..experiments.projections import PROJECTIONS
from ..figures import BRANCHES
from ..records import NotRecorded, Record
from .lab import _text
from .svg import drawing, image, text

WAYS = ("separate", "stacked", "copied")
EAGER, GRAPH = "eager", "as a graph"
COLOURS = (*BRANCHES, "#E69F00", "#8B4513")  # there may be six siblings
SIDE, TOP, LABEL, LINE = 116, 26, 140, 18  # of the drawing: its matrix, and the labels
TOKENS = 64  # of the projections that are offered
# estimates.RULES in words, and how times combine on such a machine.
RULES_SAID = {
    "cpu": "all times added up, with the copies that oneDNN makes inside a convolution",
    "cuda": "the roofline, with each bias in a kernel of its own",
    "mps": "the roofline, which has not been tried on such a GPU",
    "xpu": "the roofline, which has not been tried on such a GPU",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """The tool: machines and presets, as `webgpu/case.js` takes them."""

    machines: tuple
    presets: tuple

    def _first(self):
        """The case that one sees first: (machine, Siblings, mode)."""
        machine, preset = self.machines[0], self.presets[0]
        dtype = next(dtype for dtype in DTYPES if dtype in machine["ceilings"])
        given: dict = {name: preset[name] for name in ("c_in", "height", "width")}
        given |= {name: tuple(preset[name]) for name in ("sizes", "copied")}
        return machine, estimates.Siblings(**given, dtype=dtype), EAGER

    def _repr_html_(self):
        first = self._first()
        (call, doubt), drawn = verdict(*first), image(picture(first[1]), 270)
        content = {**dataclasses.asdict(self), "colours": COLOURS}
        data = json.dumps(
            content, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        # A "<" could end the script that holds it.
        data = data.replace("<", "\\u003c")
        style, script = "\n".join(map(_text, STYLES)), "\n".join(map(_text, SCRIPTS))
        return (
            '<div class="fs-lab fs-case" data-case>\n'
            f'<p class="fs-lab-title">Your case</p>\n<p>{escape(_said(*first))}</p>\n'
            f'<p class="fs-lab-large">{escape(call)}</p>\n<p>{escape(doubt)}</p>\n'
            f'<div class="fs-case-shown">{drawn}\n{_table(rows(*first))}</div>\n'
            '<p class="fs-lab-note">Where scripts run, you can set every number; '
            "in a notebook, run the cells first.</p>\n"
            f'<script type="application/json">{data}</script>\n</div>\n'
            f"<style>\n{style}</style>\n"
            f'<script>\n(() => {{\n"use strict";\n{script}}})();\n</script>'
        )

    def __repr__(self):
        first = self._first()
        lines = [f"{name:14}" + "".join(f"{cell:>21}" for cell in cells)
                 for name, *cells in [("way", *WAYS), *rows(*first)]]  # fmt: skip
        return "\n".join([_said(*first), *verdict(*first), *lines])


STYLES, SCRIPTS = ("lab.css", "case.css"), ("chart.js", "cost.js", "case.js")


def case(stage: dict[str, Record], ceilings: dict[str, Record]) -> Case:
    """The tool *your case*: what stacking should bring, for sizes that the reader sets.

    It shows the stacked matrix, what each way launches, computes and moves, the estimate
    with its recorded error, and what was recorded of the very case. stage, ceilings:
    {machine: Record} of these experiments, as `experiments.results` gives them; {} where
    nothing is recorded. Offered are the machines that have both, then those of cost.SHEETS.

    >>> print(repr(case({}, {})).splitlines()[1])
    On NVIDIA H200 SXM (calculated), stacking should gain: about 3.00 times as fast as
    separate.
    """
    machines = {}  # by what they are called: two may have one device's name
    for folder in (folder for folder in stage if folder in ceilings):
        machine = _recorded(stage[folder], ceilings[folder])
        if machine["name"] in machines:
            machine["name"] += f" ({folder})"
        if machine["ceilings"]:
            machines[machine["name"]] = machine
    sheets = (_calculated(*sheet) for sheet in cost.SHEETS.items())
    return Case((*machines.values(), *sheets), tuple(_presets()))


def _presets():
    """Sizes to begin with: GoogLeNet's modules and projections of a language model."""
    for module in models.TABLE:
        given = dataclasses.asdict(estimates.siblings(module))
        names = ("c_in", "sizes", "height", "width", "copied")
        yield {"name": f"module {module}", **{name: given[name] for name in names}}
    for name, siblings in (("q, k, v", "Q, K, V"), ("gate, up", "gate, up")):
        c_in, sizes = PROJECTIONS[name]
        row = {"height": 1, "width": TOKENS, "batch": 1, "layout": "NHWC", "copied": ()}
        yield {"name": f"{siblings}, {TOKENS} tokens", "c_in": c_in, "sizes": sizes, **row}


def _machine(name, how, kind, at, **more):
    """A machine as the page takes it. at: {dtype: Ceilings}."""
    rule = estimates.RULES[kind]
    return {
        "name": name,
        "how": f"{how} Estimated by {RULES_SAID[kind]}.",
        "rule": {"reordered": rule.reordered, "bias_apart": rule.bias_apart},
        "layouts": ("NCHW", "NHWC"),
        "modes": (EAGER, GRAPH) if kind == "cuda" else (EAGER,),
        "ceilings": {dtype: dataclasses.asdict(limit) for dtype, limit in at.items()},
        "errors": {},
        "recorded": {},
        **more,
    }


def _calculated(name, at):
    how = (
        "Calculated from a data sheet and published times of launches, not measured; what "
        "PyTorch itself costs is left out, so the book's predictions differ."
    )
    return _machine(f"{name} (calculated)", how, "cuda", at)


def _recorded(stage, ceilings):
    """A machine with records of both experiments, as far as they go together."""
    at, errors = {}, {}
    for dtype in DTYPES:
        with contextlib.suppress(NotRecorded):
            at[dtype] = limits(ceilings, dtype)
    cases = tuple(case for case in stage.cases if case.parameters["dtype"] in at)
    made = estimates.made(dataclasses.replace(stage, cases=cases), ceilings)
    for dtype in at:
        for graph, mode in enumerate((EAGER, GRAPH)):
            group = [one for one in made if one.graph == graph]
            group = [
                one for one in group if one.case and one.case.parameters["dtype"] == dtype
            ]
            if error := estimates.error(group):
                errors[f"{dtype}, {mode}"] = dataclasses.asdict(error)
    recorded = {
        key(estimates.siblings(**case.parameters)): _quartiles(case)
        for case in cases
        if case.samples
    }
    how = f"{stage.label[0].upper()}{stage.label[1:]}."
    kind, name = stage.machine.kind, stage.machine.device
    return _machine(name, how, kind, at, errors=errors, recorded=recorded)


def key(siblings: estimates.Siblings) -> str:
    """What a recorded case is found by."""
    s = siblings
    sizes = ",".join(map(str, s.sizes))
    return f"{s.c_in} {sizes} {s.height}x{s.width} {s.batch} {s.dtype} {s.layout}"


def _quartiles(case):
    """{way: (µs, gain)} of a recorded case, as texts: the median, and the quartiles."""
    found = {}
    for way, samples in case.samples.items():
        base = estimates.base(way)
        if base in case.samples:
            low, us, high = quartiles(samples)
            times = spread(us, low, high, number)
            low, gain, high = case.gain(way, base)
            gains = spread(gain, low, high, ratio) if way != base else "1.00"
            found[way] = times, gains
    return found


def spread(middle: float, low: float, high: float, shown: Callable[[float], str]) -> str:
    """A median with its quartiles, which stay on one line."""
    return f"{shown(middle)} ({shown(low)}\u00a0to\u00a0{shown(high)})"


def number(value: float) -> str:
    """Three digits, as in 1,234 and 12.3 and 0.123: `number` of `webgpu/chart.js`.

    >>> number(1234.5), number(12.04), number(16.25), number(0.12345)
    ('1,235', '12', '16.3', '0.123')
    """
    places = min(max(0, 2 - math.floor(math.log10(abs(value) or 1))), 3)
    shown = f"{_rounded(Decimal(repr(value)), places):,f}"
    return shown.rstrip("0").rstrip(".") if places else shown


def ratio(value: float) -> str:
    """Two digits after the point, halves up: `ratio` of `webgpu/chart.js`.

    >>> ratio(1.125), ratio(3)
    ('1.13', '3.00')
    """
    return f"{_rounded(Decimal(value), 2)}"


def _rounded(value, places):
    """As a page's scripts round; Python rounds a half to the even digit."""
    return value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)


def _calculation(machine, siblings):
    """(kernels of each way, Ceilings)."""
    rule = estimates.Rule(**machine["rule"])
    return siblings.kernels(rule), cost.Ceilings(**machine["ceilings"][siblings.dtype])


def rows(machine: dict, siblings: estimates.Siblings, mode: str) -> list[tuple[str, ...]]:
    """The table: a name, and a text for each of WAYS."""
    kernels, at = _calculation(machine, siblings)
    graph = mode == GRAPH

    def each(function):
        return [function(kernels[way]) for way in WAYS]

    def total(what):
        return each(lambda way: f"{sum(getattr(kernel, what) for kernel in way):,}")

    found = [
        ("launches", *total("launches")),
        ("copies", "0", "0", str(len(siblings.copies))),
        ("FLOPs", *total("flops")),
        ("bytes", *total("bytes")),
        ("estimated µs", *each(lambda way: number(1e6 * cost.seconds(way, at, graph)))),
        ("estimated gain", *each(
            lambda way: ratio(cost.gain(kernels["separate"], way, at, graph)))),
    ]  # fmt: skip
    was = [recorded(machine, siblings, mode, way) for way in WAYS]
    if any(was):
        for place, name in enumerate(("recorded µs", "recorded gain")):
            found.append((name, *(one[place] if one else "–" for one in was)))
    return found


def recorded(
    machine: dict, siblings: estimates.Siblings, mode: str, way: str
) -> tuple[str, str] | None:
    """(µs, gain) of this very case, as texts; None where it was not recorded."""
    variants = machine["recorded"].get(key(siblings), {})
    same = siblings.contiguous or set(siblings.copied) == {1, 2}  # as the record copies
    if way == "copied" and not same:
        return None
    return variants.get(estimates.GRAPH * (mode == GRAPH) + way)


def verdict(machine: dict, siblings: estimates.Siblings, mode: str) -> tuple[str, str]:
    """What to expect and what was recorded; and how far off such estimates were."""
    kernels, at = _calculation(machine, siblings)
    parts = len(siblings.copies)
    way = "copied" if parts else "stacked"
    gain = cost.gain(kernels["separate"], kernels[way], at, mode == GRAPH)
    error = machine["errors"].get(f"{siblings.dtype}, {mode}")
    what = "stacking" + f" with {parts} part{'s' * (parts > 1)} copied" * (parts > 0)
    shown = ratio(gain)
    said = f"the estimated gain is {shown}"
    if error and abs(gain - 1) <= error["off"]:
        call = f"{what} is too close to call: {said}, within the estimates' error of 1."
    elif shown == "1.00":
        call = f"{what} should make no difference: {said}."
    else:
        word = "gain" if gain > 1 else "lose"
        call = f"{what} should {word}: about {shown} times as fast as separate."
    was = recorded(machine, siblings, mode, way)
    last = f" Recorded: {was[1]}." if was else ""
    where = f"On {machine['name']}{', as a graph' * (mode == GRAPH)}, "
    return f"{where}{call}{last}", _doubt(machine, error, was)


def _doubt(machine, error, was):
    """How far off such estimates were, as far as that is known."""
    found = "No record says how far off such an estimate is."
    if error:
        percent = _rounded(Decimal(100 * error["off"]), 1)
        found = (
            f"Such estimates were off by {percent}% in the median of "
            f"{error['cases']} recorded gains, and right about gain or loss in "
            f"{error['right']}."
        )
        if "gained" in error:  # a lab in the page does not say
            found += f" A guess that always says “gain” is right in {error['gained']}"
            blind = error["right"] <= error["gained"]
            found += ", so the estimate cannot tell a gain from a loss." if blind else "."
    unknown = machine["recorded"] and not was
    return found + " This case itself was not recorded." * bool(unknown)


def _said(machine, siblings, mode):
    """The case in words."""
    s = siblings
    sizes = ", ".join(map(str, s.sizes))
    return (
        f"{s.c_in} channels to siblings of {sizes}; {s.height} × {s.width} pixels, batch "
        f"{s.batch}, {s.dtype}, {s.layout}, {mode}. {machine['how']}"
    )


def picture(siblings: estimates.Siblings) -> str:
    """The stacked matrix to scale, as SVG: a row an output, a column an input."""
    sizes, c_in = siblings.sizes, siblings.c_in
    total = sum(sizes)
    scale = SIDE / max(total, c_in)
    height = max(total * scale, LINE * len(sizes))
    y = TOP + (height - total * scale) / 2
    title = f"W, stacked: {total:,} × {c_in:,}"
    parts, names = [text(0, 14, title, text_anchor="start")], []
    for place, (size, colour) in enumerate(zip(sizes, COLOURS, strict=False)):
        copied = place in siblings.copied and bool(siblings.copies)
        names.append(f"{size:,} rows{', copied' * copied}")
        at = TOP + (place + 0.5) * height / len(sizes)
        middle, right = y + size * scale / 2, c_in * scale
        parts += [
            f'<rect x="0" y="{y:.1f}" width="{right:.1f}" height="{size * scale:.1f}" '
            f'fill="{colour}" stroke="{colour}" stroke-width="0.75"/>',
            f'<path d="M{right + 4:.1f} {middle:.1f}L{LABEL - 6} {at:.1f}" '
            'stroke="currentColor" stroke-width="0.75"/>',
            text(LABEL, f"{at + 4:.1f}", names[-1], text_anchor="start"),
        ]
        y += size * scale
    label = f"The stacked matrix, {total:,} by {c_in:,}, to scale: {'; '.join(names)}."
    return drawing(270, math.ceil(TOP + height + 6), parts, label)


def _table(rows):
    """For where no script runs."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("way", *WAYS))
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return (
        '<div class="fs-lab-wide" tabindex="0" role="group" '
        'aria-label="What each way needs">'
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
