"""The tool *your case*: the formulas in two languages, and what it shows, in Chromium."""

import dataclasses
import importlib
import itertools
import json
import math
import re
import statistics
from pathlib import Path

import chromium
import numpy as np
import pytest
import torch

from hfusion import stacking
from hfusion.timing import cost
from sideways import estimates, records, show

ROOT = Path(__file__).resolve().parents[2]
labs = importlib.import_module("sideways.show.lab")  # `show.lab` is the function


# Both languages have the same formulas

FORMULAS = (labs.FOLDER / "cost.js").read_text(encoding="utf-8")
EVALUATE = """
    given.map(({ c_in, positions, item_bytes, sizes, ceilings, graph, ...options }) => {
        const ways = cost.stage(sizes, c_in, positions, item_bytes, options);
        const seconds = (way) => cost.seconds(ways[way], ceilings, graph);
        const gain = (way) => cost.gain(ways.separate, ways[way], ceilings, graph);
        const names = Object.keys(ways);
        return { ways, times: [...names.map(seconds), ...names.map(gain)] };
    })
"""


def drawn(number, seed=5):
    """As many random inputs of `stage`, `seconds` and `gain`; all counts below 2**53."""
    random = np.random.default_rng(seed)

    def spread(low, high):
        return float(np.exp(random.uniform(np.log(low), np.log(high))))

    def some(of):
        return [one for one in of if random.random() < 0.5]

    cases = []
    while len(cases) < number:
        sizes = [round(spread(1, 2**16)) for _ in range(random.integers(2, 7))]
        case = {
            "sizes": sizes,
            "c_in": round(spread(1, 2**16)),
            "positions": round(spread(1, 2**32)),
            "item_bytes": int(random.choice([1, 2, 4, 8])),
            "reordered": some(cost.PARTS),
            "copied": some(sizes),
            "bias_apart": bool(random.random() < 0.5),
            "graph": bool(random.random() < 0.5),
            "ceilings": {
                "flops_per_s": spread(1e6, 1e16),
                "bytes_per_s": spread(1e6, 1e14),
                "launch_s": random.choice([0.0, spread(1e-9, 1e-2)]),
                "kernel_s": random.choice([0.0, spread(1e-9, 1e-2)]),
                "overlaps": bool(random.random() < 0.5),
            },
        }
        kernels = itertools.chain(*calculated(case)[0].values())
        if all(max(kernel.flops, kernel.bytes) < 2**53 for kernel in kernels):
            cases.append(case)
    return cases


def calculated(case):
    """A case by the library: {way: kernels}, and seconds and gain of each way in a row."""
    options = {name: case[name] for name in ("reordered", "copied", "bias_apart")}
    shape = (case["sizes"], case["c_in"], case["positions"], case["item_bytes"])
    ways = cost.stage(*shape, **options)
    limits = cost.Ceilings(**case["ceilings"]), case["graph"]
    times = [cost.seconds(way, *limits) for way in ways.values()]
    gains = [cost.gain(ways["separate"], way, *limits) for way in ways.values()]
    return ways, [*times, *gains]


def disagreements(browser, cases, formulas=FORMULAS):
    """The cases in which JavaScript finds other numbers than the library."""
    page = browser.new_page()
    found = page.evaluate(f"(given) => {{ {formulas}\nreturn ({EVALUATE}); }}", cases)
    page.close()
    wrong = []
    for case, said in zip(cases, found, strict=True):
        ways, wanted = calculated(case)
        counted = {way: list(map(dataclasses.asdict, k)) for way, k in ways.items()}
        pairs = zip(said["times"], wanted, strict=True)
        close = all(math.isclose(one, other, rel_tol=1e-12) for one, other in pairs)
        if said["ways"] != counted or not close:
            wrong.append(case)
    return wrong


def test_a_thousand_random_cases_agree(browser):
    cases = drawn(1000)
    assert max(case["positions"] for case in cases) > 2**31  # more than 32 bits hold
    assert min(case["positions"] for case in cases) < 10
    assert disagreements(browser, cases) == []


EDITS = {
    "weights are forgotten": ("+ c_out * c_in +", "+"),
    "a reorder is a launch": ("numbers * item_bytes, 0)", "numbers * item_bytes)"),
    "one copy for all": ("copied.map(", "copied.slice(0, 1).map("),
    "the bias is counted twice": ("whole.flops - bias.flops", "whole.flops"),
    "the widest decides": ("convolution(sum(sizes))", "convolution(Math.max(...sizes))"),
    "nothing overlaps": ("(ceilings.overlaps ?", "(false ?"),
    "a loss is a gain": ("seconds(before", "1 / seconds(before"),
    "in 32 bits": ("2 * c_out * c_in * positions", "((2 * c_out * c_in * positions) | 0)"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_wrong_formula_is_noticed(browser, edit):
    old, new = EDITS[edit]
    assert FORMULAS.count(old) == 1
    assert disagreements(browser, drawn(100), FORMULAS.replace(old, new))


# The tool

module = importlib.import_module("sideways.show.case")  # `show.case` is the function
RECORDS = {name: records.load_all(ROOT / "records", name) for name in ("stage", "ceilings")}
EAGER, GRAPH = "eager", "as a graph"
H200 = "NVIDIA H200 SXM (calculated)"


def gpu_record(experiment, cases, counted="kernels"):
    """Made up, of a GPU."""
    machine = records.Machine("gpu", "cuda", "A <GPU>", "p", 1, "3", "2")
    texts = dict.fromkeys(("question", "commit", "sources"), "made up")
    return records.Record(
        experiment,
        machine=machine,
        date="2026-11-22",
        counted=counted,
        protocol={"rounds": 3},
        cases=tuple(cases),
        **texts,
    )


def gpu_ceilings():
    """500 TFLOP/s in float16, 1 TB/s, 4 µs for a launch, 0.1 µs for a kernel."""
    half = {"what": "matmul", "dtype": "float16", "side": 1000}
    empty = {"what": "empty", "operator": "conv", "way": "eager"}
    least = {"what": "empty", "operator": "abs", "way": "graph"}
    case = records.Case
    return gpu_record(
        "ceilings",
        [
            case(half, {"matmul": [4.0]}),
            case({"what": "copy", "bytes": 10**6}, {"copy": [1.0]}),
            case(empty, {"1": [4.0], "10": [40.0], "100": [400.0]}),
            case(least, {"1": [0.1], "10": [1.0], "100": [10.0]}),
        ],
    )


def gpu_stage():
    """Module 3a on that GPU, one case in NHWC and one in NCHW."""
    ways = {"separate": [24.0, 26.0, 28.0], "stacked": [8.0, 9.0, 10.0],
            "copied": [16.0, 17.0, 20.0]}  # fmt: skip
    ways |= {"graph, separate": [12.0, 13.0, 14.0], "graph, stacked": [4.0, 5.0, 6.0],
             "graph, copied": [8.0, 8.0, 8.0]}  # fmt: skip
    shape = {"module": "3a", "batch": 1, "dtype": "float16"}
    return gpu_record(
        "stage",
        [
            records.Case({**shape, "layout": "NHWC"}, ways),
            records.Case({**shape, "layout": "NCHW"}, ways),
            records.Case({**shape, "layout": "NCHW", "dtype": "float32"}, ways),
        ],
    )


@pytest.fixture(scope="module")
def tool():
    """With the committed records, and a GPU that is made up."""
    stage = {**RECORDS["stage"], "gpu": gpu_stage()}
    return show.case(stage, {**RECORDS["ceilings"], "gpu": gpu_ceilings()})


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of tools from a file."""
    contexts = []

    def visit(*tools, width=1000, theme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.requests_made, page.complaints = [], []
        page.on("request", lambda request: page.requests_made.append(request.url))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        body = "\n".join(tool._repr_html_() for tool in tools)
        css = (ROOT / "_static/book.css").read_text(encoding="utf-8")
        path = tmp_path / "page.html"
        path.write_text(
            f'<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8">'
            '<title>t</title><meta name="viewport" content="width=device-width">'
            f'<link rel="icon" href="data:,"><style>{css}\n'
            "html { --pst-color-background: #fff }"
            "body { background: var(--pst-color-background) }</style>"
            f'<body><main class="bd-article"><h1>t</h1>{body}</main></body></html>',
            encoding="utf-8",
        )
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()


def put(page, place=0, copied=None, **values):
    """Sets fields of a tool, as if typed or chosen; the machine first of all."""
    page.evaluate(
        """({ place, copied, values }) => {
            const root = document.querySelectorAll("[data-case]")[place];
            const typed = new Event("input", { bubbles: true });
            for (const [name, value] of Object.entries(values)) {
                const field = root.querySelector(`[name=${name}]`);
                field.value = value;
                if (field.value !== String(value)) throw new Error(`no ${name} ${value}`);
                field.dispatchEvent(typed);
            }
            for (const box of copied ? root.querySelectorAll("[type=checkbox]") : []) {
                if (box.checked !== copied.includes(Number(box.value))) box.click();
            }
        }""",
        {"place": place, "copied": copied, "values": values},
    )


def seen(page, place=0):
    """What a tool shows: (sentences, rows of its table)."""
    root = page.locator("[data-case]").nth(place)
    table = root.locator("tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return root.locator("[role=status] p").all_text_contents(), table


def fields(machine, siblings, mode):
    """What to put for a case."""
    values = {"machine": machine["name"], "mode": mode, "c_in": siblings.c_in}
    values["sizes"] = ", ".join(map(str, siblings.sizes))
    names = ("height", "width", "batch", "dtype", "layout")
    values |= {name: getattr(siblings, name) for name in names}
    return values | {"copied": list(siblings.copied)}


def random_cases(tool, number, seed=2):
    """(machine, Siblings, mode) of any kind."""
    random = np.random.default_rng(seed)
    for _ in range(number):
        machine = tool.machines[random.integers(len(tool.machines))]
        wide = [int(2 ** random.uniform(0, 9)) for _ in range(random.integers(2, 7))]
        height, width, c_in = (int(2 ** random.uniform(0, 9)) for _ in range(3))
        siblings = estimates.Siblings(
            c_in, tuple(wide), height, width,
            batch=int(random.choice([1, 2, 32])),
            dtype=str(random.choice(list(machine["ceilings"]))),
            layout=str(random.choice(machine["layouts"])),
            copied=tuple(i for i in range(len(wide)) if random.random() < 0.5),
        )  # fmt: skip
        yield machine, siblings, str(random.choice(machine["modes"]))


def recorded_cases(tool):
    """Of each machine with records: the first case, one in the middle and the last."""
    for machine in tool.machines:
        found = list(machine["recorded"])
        for place in (0, len(found) // 2, -1) if found else ():
            c_in, sizes, shape, batch, dtype, layout = found[place].split()
            height, width = map(int, shape.split("x"))
            siblings = estimates.Siblings(
                int(c_in), tuple(map(int, sizes.split(","))), height, width,
                batch=int(batch), dtype=dtype, layout=layout, copied=(1, 2),
            )  # fmt: skip
            for mode in machine["modes"]:
                yield machine, siblings, mode


def test_what_the_page_shows_is_what_the_library_says(opened, tool):
    """Sentences, numbers and the picture."""
    page = opened(tool)
    draw = {"batch": 2, "dtype": "bfloat16", "copied": (0, 1)}  # two launches for two
    nothing = (tool.machines[-1], estimates.Siblings(8, (8, 8), 1, 1, **draw), EAGER)
    cases = [*recorded_cases(tool), *random_cases(tool, 60), nothing]
    assert len(cases) > 65
    calls = set()
    for case in cases:
        put(page, **fields(*case))
        sentences, table = seen(page)
        assert sentences == list(module.verdict(*case)), case
        assert table == [list(row) for row in module.rows(*case)], case
        assert shapes(page) == shapes(page, module.picture(case[1])), case
        calls |= set(re.findall("gain:|lose:|too close|no difference", sentences[0]))
    assert len(calls) == 4  # each kind of sentence
    assert page.complaints == []


SHAPES = """(svg) => [svg.getAttribute("viewBox"), svg.getAttribute("aria-label"),
    ...[...svg.children].map((one) => [one.tagName, one.textContent,
        one.getAttribute("fill"), one.getAttribute("stroke"),
        ...["x", "y", "width", "height"].map((n) => Math.round(10 * one.getAttribute(n)))])]
"""


def shapes(page, svg=None):
    """What a drawing consists of: that of the tool, or of a text."""
    if svg is None:
        found = page.locator("[data-case] svg").evaluate(SHAPES)
    else:
        parse = "new DOMParser().parseFromString(svg, 'image/svg+xml').documentElement"
        found = page.evaluate(f"(svg) => ({SHAPES})({parse})", svg)
    for shape in found[2:]:
        if shape[0] == "text":
            shape[2] = "currentColor"  # in the page by its style
    return found


# By hand: other ways to the same numbers


def test_bytes_and_flops_are_those_of_a_sum_by_hand(opened, tool):
    """Of one image of module 3a in NHWC on a CPU, where oneDNN reorders the weights."""
    page = opened(tool)
    put(page, batch=1, layout="NHWC", mode=EAGER)
    _, table = seen(page)
    pixels, c_in, sizes, copied = 28 * 28, 192, (64, 96, 16), 96 + 16
    separate = sum(4 * (c_in * pixels + 3 * k * c_in + k + k * pixels) for k in sizes)
    total = sum(sizes)
    stacked = 4 * (c_in * pixels + 3 * total * c_in + total + total * pixels)
    flops = f"{(2 * c_in + 1) * total * pixels:,}"
    assert table[:4] == [
        ["launches", "3", "1", "3"],
        ["copies", "0", "0", "2"],
        ["FLOPs", flops, flops, flops],
        ["bytes", *(f"{b:,}" for b in (separate, stacked, stacked + 8 * copied * pixels))],
    ]


class Ways(torch.nn.Module):
    """Siblings with two of three parts copied."""

    def __init__(self, way):
        super().__init__()
        convs = [torch.nn.Conv2d(192, width, 1) for width in (64, 96, 16)]
        self.stacked = None if way == "separate" else stacking.stack(convs)
        self.convs = torch.nn.ModuleList(convs)
        self.copies = way == "copied"

    def forward(self, x):
        if self.stacked is None:
            return [conv(x) for conv in self.convs]
        first, *others = self.stacked(x)
        return [first, *(part.clone() if self.copies else part for part in others)]


def test_launches_on_a_gpu_are_the_kernels_of_pytorchs_source(opened, tool):
    page = opened(tool)
    put(page, machine=H200)
    put(page, batch=1, dtype="bfloat16", layout="NHWC", copied=[1, 2])
    wanted = [str(cost.kernels(Ways(way), "bfloat16", "NHWC", 1)) for way in module.WAYS]
    assert wanted == ["6", "2", "4"]
    assert seen(page)[1][0] == ["launches", *wanted]


def test_the_data_sheet_is_that_of_the_constants():
    text = (ROOT / "back" / "constants.md").read_text(encoding="utf-8")
    at = cost.SHEETS["NVIDIA H200 SXM"]["bfloat16"]
    assert "| 4.8 TB/s | memory bandwidth of an NVIDIA H200 SXM; " in text
    assert "989 teraFLOP/s from there, its peak in bfloat16" in text
    assert "| 260 µs, 70 µs | ten steps of a Runge–Kutta method, 80 small" in text
    assert (at.flops_per_s, at.bytes_per_s) == (989e12, 4.8e12)
    assert [at.launch_s, at.kernel_s] == pytest.approx([260e-6 / 80, 70e-6 / 80])
    assert at.overlaps


def test_a_recorded_case_shows_its_quartiles(opened, tool):
    """Of the first committed record, and of the made up GPU as a graph."""
    page = opened(tool)
    record = next(iter(RECORDS["stage"].values()))
    case = record.select(module="4b", batch=8, layout="NHWC", dtype="float32")[0]
    put(page, preset="module 4b")
    put(page, machine=record.machine.device, batch=8, layout="NHWC")
    sentences, table = seen(page)
    gain = "{1:.2f} ({0:.2f}\u00a0to\u00a0{2:.2f})".format(*case.gain("copied", "separate"))
    assert sentences[0].endswith(f"Recorded: {gain}.")
    assert table[-1][3] == gain
    assert table[-2][1].split()[0] == f"{case.median('separate'):,.0f}"
    put(page, preset="module 3a")
    put(page, machine="A <GPU>", dtype="float16", layout="NHWC", batch=1)
    put(page, mode=GRAPH)
    sentences, table = seen(page)
    assert sentences[0].startswith("On A <GPU>, as a graph, stacking with 2 parts copied")
    separate, *_, copied = (cell.replace("\u00a0", " ") for cell in table[-2][1:])
    assert (separate, copied) == ("13 (12.5 to 13.5)", "8 (8 to 8)")
    assert table[-1][3] == "1.63 (1.56\u00a0to\u00a01.69)"


def test_the_record_is_shown_only_for_what_it_copied(opened, tool):
    page = opened(tool)
    put(page, batch=8, layout="NHWC", copied=[0, 1, 2])
    sentences, table = seen(page)
    assert sentences[1].endswith("This case itself was not recorded.")
    assert table[-1][0] == "recorded gain"
    assert [cell == "–" for cell in table[-1][1:]] == [False, False, True]
    put(page, copied=[])
    sentences, table = seen(page)
    assert sentences[0].endswith(f"Recorded: {table[-1][2]}.")
    assert table[-1][3] == "–"
    put(page, c_in=193)
    assert seen(page)[1][-1][0] == "estimated gain"


# Sentences

CALLS = {  # what is changed of the ceilings, what is copied, the error, and the sentence
    # 3 launches become 1.
    "gains": ({"launch_s": 1e-6}, [], None,
              "stacking should gain: about 3.00 times as fast as separate."),
    # 48 bytes become 40, and 24 of copies.
    "loses": ({"bytes_per_s": 1e6}, [0, 1, 2], None,
              "stacking with 3 parts copied should lose: about 0.75 times as fast as "
              "separate."),
    # 3 launches become 3.
    "is none": ({"launch_s": 1.0}, [1, 2], None,
                "stacking with 2 parts copied should make no difference: the estimated "
                "gain is 1.00."),
    # 3 launches become 2.
    "is near": ({"launch_s": 1.0}, [2], 0.51,
                "stacking with 1 part copied is too close to call: the estimated gain is "
                "1.50, within the estimates' error of 1."),
    "is just far": ({"launch_s": 1.0}, [2], 0.49,
                    "stacking with 1 part copied should gain: about 1.50 times as fast as "
                    "separate."),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_the_verdict_is_a_sentence(opened, tool, call):
    """Of three siblings of one channel on one pixel; of a GPU that a lab has measured."""
    changed, copied, off, wanted = CALLS[call]
    page = opened(tool)
    error = None if off is None else {"off": off, "right": 7, "cases": 9}
    measured(page, error=error, **{"launch_s": 0, **changed})
    put(page, machine=OWN)
    put(page, c_in=1, sizes="1 1 1", height=1, width=1, layout="NHWC", copied=copied)
    (verdict, doubt), _ = seen(page)
    assert verdict == f"On {OWN}, {wanted}"
    assert doubt == (
        f"Such estimates were off by {100 * off:.1f}% in the median of 9 recorded gains, "
        "and right about gain or loss in 7."
        if error
        else "No record says how far off such an estimate is."
    )


def test_the_errors_are_those_of_the_record(opened, tool):
    page = opened(tool)
    for name, record in RECORDS["stage"].items():
        made = estimates.made(record, RECORDS["ceilings"][name])
        group = [e for e in made if e.case.parameters["dtype"] == "float32" and not e.graph]
        off = [abs(e.said / e.was[1] - 1) for e in group]
        right = sum((e.said > 1) == (e.was[1] > 1) for e in group)
        gained = sum(e.was[1] > 1 for e in group)
        put(page, machine=record.machine.device, dtype="float32", mode=EAGER)
        assert seen(page)[0][1].startswith(
            f"Such estimates were off by {100 * statistics.median(off):.1f}% in the median "
            f"of {len(group)} recorded gains, and right about gain or loss in {right}. "
            f"A guess that always says “gain” is right in {gained}"
            + (
                ", so the estimate cannot tell a gain from a loss." * (right <= gained)
                or "."
            )
        )


# The ceilings that a lab of the page has measured

OWN = "this page's GPU: A <b>GPU</b>"
CEILINGS = {"flops_per_s": 1e12, "bytes_per_s": 1e12, "launch_s": 1e-6, "kernel_s": 0.0}


def measured(page, error=None, **changed):
    detail = {"device": "A <b>GPU</b>", "overlaps": False, "error": error}
    page.evaluate(
        "detail => document.dispatchEvent(new CustomEvent('fs-ceilings', { detail }))",
        detail | CEILINGS | changed,
    )


def test_a_gpu_measured_in_the_page_can_be_chosen(opened, tool):
    page = opened(tool, tool)
    before, chosen = seen(page), page.locator("select[name=machine]").first
    measured(page)
    assert seen(page) == before  # until it is chosen
    assert "list of machines has this page's GPU" in page.locator("main").inner_text()
    put(page, machine=OWN)
    note = page.locator("[data-case]").first.locator(".fs-lab-note").first
    assert note.inner_text().endswith("by its lab. Estimated by all times added up.")
    offered = page.locator("[data-case]").first.locator("select[name=layout] option")
    assert offered.all_text_contents() == ["NHWC"]
    at = cost.Ceilings(overlaps=False, **CEILINGS)
    ways = estimates.siblings("3a", layout="NHWC").kernels(estimates.RULES["webgpu"])
    wanted = [module.number(1e6 * cost.seconds(way, at)) for way in ways.values()]
    assert seen(page)[1][4] == ["estimated µs", *wanted]
    assert seen(page, 1) == before  # the other tool is left alone
    measured(page, launch_s=1.0, error={"off": 0.25, "right": 3, "cases": 4})
    assert chosen.input_value() == OWN
    assert chosen.locator("option").all_text_contents().count(OWN) == 1
    assert "off by 25.0% in the median of 4 recorded gains" in seen(page)[0][1]
    assert seen(page)[1][4][1].startswith("3,000,0")  # three seconds


@pytest.mark.parametrize(
    "changed",
    [
        {"flops_per_s": 0},
        {"bytes_per_s": None},
        {"launch_s": -1},
        {"kernel_s": "1"},
        {"error": {"off": None, "right": 1, "cases": 1}},
        {"error": {"off": 0.1}},
        {"device": None},
    ],
)
def test_ceilings_that_are_none_are_not_offered(opened, tool, changed):
    page = opened(tool)
    measured(page, **changed)
    page.evaluate("document.dispatchEvent(new CustomEvent('fs-ceilings'))")
    names = page.locator("select[name=machine] option").all_text_contents()
    assert not [name for name in names if "this page" in name]
    assert page.complaints == []


# Input that does not fit

LARGE = "9,007,199,254,740,992"
ODD = [
    ("c_in", "", "C: expected a whole number of at least 1, got nothing."),
    ("c_in", "0", "C: expected a whole number of at least 1, got 0."),
    ("c_in", "1.5", "C: expected a whole number of at least 1, got 1.5."),
    ("height", "-3", "H: expected a whole number of at least 1, got -3."),
    ("width", "1e3", "W: expected a whole number of at least 1, got 1e3."),
    ("batch", "<b>x</b>", "batch: expected a whole number of at least 1, got <b>x</b>."),
    ("batch", "９", "batch: expected a whole number of at least 1, got ９."),
    ("batch", "9" * 50, f"batch: expected a whole number below {LARGE}, got {'9' * 39}…."),
    ("sizes", "64", "widths: expected 2 to 6 whole numbers of at least 1, got 64."),
    ("sizes", "64, 0", "widths: expected 2 to 6 whole numbers of at least 1, got 64, 0."),
    ("sizes", "1 2 3 4 5 6 7",
     "widths: expected 2 to 6 whole numbers of at least 1, got 1 2 3 4 5 6 7."),
    ("sizes", "1,a", "widths: expected 2 to 6 whole numbers of at least 1, got 1,a."),
    ("sizes", " , ", "widths: expected 2 to 6 whole numbers of at least 1, got  , ."),
    ("sizes", f"1 {'9' * 20}",
     f"widths: expected 2 to 6 whole numbers below {LARGE}, got 1 {'9' * 20}."),
    ("height", "9007199254740991",
     f"C, widths, H, W, batch: expected fewer than {LARGE} FLOPs and bytes, got 1.7e+22."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "sentence"), ODD)
def test_odd_input_is_answered_by_a_sentence(opened, tool, name, text, sentence):
    page = opened(tool)
    before = seen(page)
    old = page.locator(f"[name={name}]").input_value()
    page.locator(f"[name={name}]").fill(text)
    assert seen(page) == ([sentence, ""], [])
    assert page.locator(f"[name={name}]").get_attribute("aria-invalid") == "true"
    assert page.locator(".fs-case-shown *").count() == 0  # no number of before
    page.locator(f"[name={name}]").fill(old)
    assert seen(page) == before
    assert page.locator("[aria-invalid=true]").count() == 0
    assert page.complaints == []


def test_extreme_sizes_are_counted(opened, tool):
    page = opened(tool)
    put(page, c_in=1, sizes="1 99999999", height=99999, width=1)
    _, table = seen(page)
    flops = 3 * 100_000_000 * 99999
    assert table[2] == ["FLOPs", *[f"{flops:,}"] * 3]
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000


# The page


def test_a_reader_chooses_and_types(opened, tool):
    """With a mouse, by keyboard; what belongs together follows."""
    page = opened(tool)
    root = page.locator("[data-case]")
    boxes = root.locator("[type=checkbox]")
    assert [box.is_checked() for box in boxes.all()] == [False, True, True]
    root.get_by_label("begin with").select_option("gate, up, 64 tokens")
    assert root.get_by_label("widths").input_value() == "1376, 1376"
    assert root.get_by_label("layout").input_value() == "NHWC"
    assert [box.is_checked() for box in boxes.all()] == [False, False]
    assert root.get_by_label("begin with").input_value() == "gate, up, 64 tokens"
    root.get_by_label("begin with").select_option("module 5b")
    wanted = estimates.siblings("5b")
    assert root.get_by_label("widths").input_value() == "384, 192, 48"
    assert root.get_by_label("C, channels in").input_value() == str(wanted.c_in)
    root.get_by_label("widths").press("End")
    page.keyboard.type(", 8")
    assert boxes.count() == 4
    assert root.get_by_label("begin with").input_value() == "your own"
    assert "; 8 rows" in root.locator("svg").get_attribute("aria-label")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "height"
    for _ in range(6):
        page.keyboard.press("Tab")
    before = seen(page)
    page.keyboard.press("Space")  # the first sibling's box
    assert boxes.first.is_checked()
    assert seen(page) != before
    root.get_by_label("begin with").select_option("module 3a")
    assert root.get_by_label("widths").input_value() == "64, 96, 16"


def test_a_dtype_the_machine_lacks_gives_way(opened, tool):
    page = opened(tool)
    put(page, machine=H200)
    assert page.locator("select[name=dtype]").input_value() == "bfloat16"
    assert page.locator("select[name=mode] option").all_text_contents() == [EAGER, GRAPH]
    put(page, mode=GRAPH)
    put(page, machine=tool.machines[0]["name"])
    assert page.locator("select[name=mode]").input_value() in tool.machines[0]["modes"]


def test_two_tools_do_not_meet_and_a_cell_may_run_twice(opened, tool):
    page = opened(tool, tool)
    before = seen(page, 1)
    put(page, batch=32)
    assert seen(page, 1) == before != seen(page, 0)
    assert page.locator("[data-case] [id]").count() == 0
    page.evaluate(
        "document.querySelectorAll('script').forEach((s) => eval(s.type ? '' : s.text))"
    )
    assert page.locator("[name=batch]").first.input_value() == "32"
    assert page.locator("[name=batch]").count() == 2
    assert page.complaints == []


def test_without_scripts_one_case_stands_there(opened, tool):
    page = opened(tool, java_script_enabled=False)
    root = page.locator("[data-case]")
    machine, siblings, mode = tool._first()
    assert siblings == estimates.siblings("3a")
    wanted = module.rows(machine, siblings, mode)
    shown = [
        row.locator("th, td").all_text_contents() for row in root.locator("tbody tr").all()
    ]
    assert shown == [list(row) for row in wanted]
    picture = root.locator("img")
    assert picture.get_attribute("alt").startswith("The stacked matrix, 176 by 192")
    assert picture.bounding_box()["width"] == 270
    assert module.verdict(machine, siblings, mode)[0] in root.inner_text()
    assert root.locator("select").count() == 0


def test_paper_says_the_case_in_words_and_has_no_controls(opened, tool):
    page = opened(tool, show.lab("launches"))  # whose style comes after
    root, paper = page.locator("[data-case]"), page.locator("[data-case] .fs-lab-paper")
    assert not paper.is_visible()
    page.emulate_media(media="print")
    assert root.locator(":is(select, input):visible").count() == 0
    assert paper.is_visible()
    assert module._said(*tool._first()).startswith(paper.inner_text())
    assert paper.inner_text().endswith("NCHW, eager.")
    assert root.locator("tbody tr").first.is_visible()
    put(page, batch="seven")
    assert paper.inner_text() == ""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 390])
def test_it_is_accessible_and_fits(opened, tool, theme, width):
    page = opened(tool, tool, width=width, theme=theme)
    small = """() => Math.min(...[...document.querySelectorAll("[data-case] *")]
        .filter((one) => one.checkVisibility() && one.textContent.trim())
        .map((one) => {
            const box = one.ownerSVGElement?.getBoundingClientRect();
            const scale = box ? box.width / one.ownerSVGElement.viewBox.baseVal.width : 1;
            return scale * parseFloat(getComputedStyle(one).fontSize);
        }))"""
    for changed in (
        {"batch": 8, "layout": "NHWC"},
        {"sizes": "64, 0"},
        {"sizes": "8192, 8192, 8192, 8192, 8192, 65536", "batch": 2048, "c_in": 4096},
    ):
        put(page, **changed)
        assert chromium.violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(small) >= 9


def test_the_picture_is_to_scale(opened, tool):
    page = opened(tool)
    put(page, c_in=100, sizes="100 50 25 20 4 1")
    sizes = page.locator("svg rect").evaluate_all(
        "rects => rects.map((r) => [r.getBBox().width, r.getBBox().height])"
    )
    assert [height / sizes[0][0] for _, height in sizes] == pytest.approx(
        [1, 0.5, 0.25, 0.2, 0.04, 0.01], abs=0.002
    )
    assert (
        len(
            set(
                page.locator("svg rect").evaluate_all(
                    "r => r.map((r) => r.getAttribute('fill'))"
                )
            )
        )
        == 6
    )


# The text of it


def test_the_tool_is_one_small_text_that_ends_no_script_early(tool):
    html = tool._repr_html_()
    assert html == tool._repr_html_()
    assert len(html.encode()) < 90_000
    assert html.count("</script>") == 2
    assert html.count("<style>") == html.count("data-case>") == 1
    assert not re.search(
        r"https?://(?!www\.w3\.org/2000/svg)|import\(|fetch\(|XMLHttp", html
    )
    data = json.loads(re.search(r'json">(.*)</script>', html)[1])
    assert [machine["name"] for machine in data["machines"]][-2:] == ["A <GPU>", H200]
    assert "A <GPU>" not in html


def test_the_terminal_has_words_and_a_table(tool):
    lines = repr(tool).splitlines()
    assert lines[0].startswith("192 channels to siblings of 64, 96, 16; 28 × 28 pixels")
    assert lines[3].split() == ["way", "separate", "stacked", "copied"]
    assert lines[4].split() == ["launches", "3", "1", "1"]


def test_what_records_lack_is_left_out():
    """Ceilings in one dtype only; a machine with one of the records; none at all."""
    gpu = {"gpu": gpu_stage()}, {"gpu": gpu_ceilings()}
    names = [machine["name"] for machine in show.case(*gpu).machines]
    assert names == ["A <GPU>", H200]
    first = show.case(*gpu).machines[0]
    assert list(first["ceilings"]) == ["float16"]
    assert len(first["recorded"]) == 2
    assert set(first["errors"]) == {f"float16, {EAGER}", f"float16, {GRAPH}"}
    for stage, ceilings in (({}, {}), (gpu[0], {}), ({}, gpu[1])):
        assert [m["name"] for m in show.case(stage, ceilings).machines] == [H200]
    none = {"gpu": records.nothing("ceilings")}
    assert [m["name"] for m in show.case(gpu[0], none).machines] == [H200]


def test_one_round_has_three_quartiles_alike_and_a_skipped_case_none():
    shape = {"module": "3a", "batch": 1, "dtype": "float16", "layout": "NCHW"}
    ran = records.Case(shape, {"separate": [6.0], "stacked": [2.0]})
    record = gpu_record("stage", [ran, records.Case({**shape, "batch": 2}, {})])
    machine, _ = show.case({"gpu": record}, {"gpu": gpu_ceilings()}).machines
    ways = {
        "separate": ("6 (6\u00a0to\u00a06)", "1.00"),
        "stacked": ("2 (2\u00a0to\u00a02)", "3.00 (3.00\u00a0to\u00a03.00)"),
    }
    assert machine["recorded"] == {module.key(estimates.siblings(**shape)): ways}


def test_two_machines_of_one_name_are_told_apart():
    stage, ceilings = gpu_stage(), gpu_ceilings()
    both = [{"gpu": record, "gpu-2": record} for record in (stage, ceilings)]
    names = [machine["name"] for machine in show.case(*both).machines]
    assert names == ["A <GPU>", "A <GPU> (gpu-2)", H200]


# Estimates


def test_estimates_go_by_the_rule_of_the_machine():
    """24 µs of launches, 8 and 16 µs: eager CUDA counts each bias. A graph: the bytes."""
    single = {"what": "matmul", "dtype": "float32", "side": 1000}
    cases = (*gpu_ceilings().cases, records.Case(single, {"matmul": [4.0]}))
    made = estimates.made(gpu_stage(), dataclasses.replace(gpu_ceilings(), cases=cases))
    eager = [(one.way, one.said, one.was[1]) for one in made if not one.graph]
    assert eager[:4] == [
        ("stacked", 3.0, pytest.approx(26 / 9)),
        ("copied", 1.5, pytest.approx(1.5)),
        ("stacked", 3.0, pytest.approx(26 / 9)),
        ("copied", 3.0, pytest.approx(1.5)),  # one image in NCHW: nothing is copied
    ]
    assert [one.graph for one in made] == [False, False, True, True] * 3

    def moved(k):  # of a product, and of its bias, of which each takes 0.1 µs at least
        return 2 * (192 * 784 + 192 * k + 784 * k) + max(2 * (2 * 784 * k + k), 1e5)

    graph = (moved(64) + moved(96) + moved(16)) / moved(176)
    assert made[2].said == pytest.approx(graph)
    assert [one.was[1] for one in made[2:4]] == pytest.approx([13 / 5, 13 / 8])
    assert made[2].case is made[0].case


def test_another_rule_gives_other_estimates():
    name, stage = next(iter(RECORDS["stage"].items()))
    ceilings = RECORDS["ceilings"][name]
    usual = estimates.made(stage, ceilings)
    assert usual == estimates.made(stage, ceilings, estimates.RULES[stage.machine.kind])
    for rule in (
        dataclasses.replace(estimates.RULES["cpu"], overlaps=True),
        estimates.Rule({}, bias_apart=False),
        estimates.Rule(estimates.RULES["cpu"].reordered, bias_apart=True),
    ):
        other = estimates.made(stage, ceilings, rule)
        assert [one.was for one in other] == [one.was for one in usual]
        assert [one.said for one in other] != [one.said for one in usual]


def test_an_estimate_of_one_is_never_right():
    def said(gain, was):
        return estimates.Estimate(None, "stacked", gain, (was, was, was))

    assert estimates.error([]) is None
    assert estimates.error([said(1.0, 2.0)]) == estimates.Error(0.5, 0, 1, 1)
    assert estimates.error([said(1.0, 0.8)]).right == 0
    assert estimates.error([said(0.9, 0.5), said(1.1, 0.5), said(1.1, 2)]).right == 2
