"""The module on the reader's GPU: numbers, kernels, labs, in Chromium's software adapter.

HFUSION_MODULES=all python -m pytest tests/library/test_webgpu.py
runs all nine modules and plants all faults; else 5a and a small one, and four faults.
"""

import dataclasses
import importlib
import json
import os
import re
import signal
import statistics
from pathlib import Path

import chromium
import jsonschema
import numpy as np
import pytest
import torch
from torch.nn import functional

from hfusion import FusionError, models
from hfusion.__main__ import main
from hfusion.timing import cost
from hfusion.webgpu import generator
from sideways import records, show

labs = importlib.import_module("sideways.show.lab")  # `show.lab` is the function
ROOT = Path(__file__).resolve().parents[2]
ROWS = [*models.TABLE, "ragged"]
ALL = os.environ.get("HFUSION_MODULES") == "all"
SEEN = ["ragged", *(models.TABLE if ALL else ["5a"])]
SCHEMA = json.loads((ROOT / "records" / "schema.json").read_text(encoding="utf-8"))
COUNTS = {
    "as written": 20,
    "folded": 14,
    "folded, stacked": 12,
    "folded, stacked, hoisted": 10,
    "folded, stacked, one call": 6,
    "two launches": 2,
}
CANONICAL = [
    None,
    True,
    5,
    1.5,
    0.001,
    12345.678,
    10**15,
    'µ\u2028\x7f\n"\\',
    {"b": [], "a": {}},
]
PURE = ("exact", "statistics", "ladder", "gpu", "measure", "record")

# Numbers from a seed


def test_the_finaliser_is_murmurs():
    """By whole numbers of Python's, which do not overflow."""

    def mixed(h):
        h = ((h ^ h >> 16) * 0x85EBCA6B) % 2**32
        h = ((h ^ h >> 13) * 0xC2B2AE35) % 2**32
        return h ^ h >> 16

    given = [0, 1, 12345, 2**31, 2**32 - 1]
    assert generator.mix(given).tolist() == [mixed(h) for h in given]


def test_numbers_are_drawn_evenly_from_low_to_high():
    values, counts = np.unique(generator.draw(7, 90_000, -4, 4), return_counts=True)
    assert values.tolist() == list(range(-4, 5))
    assert np.all(np.abs(counts - 10_000) < 500)
    assert not np.array_equal(generator.draw(7, 50, -4, 4), generator.draw(8, 50, -4, 4))


def test_a_larger_batch_repeats_five_images():
    images = generator.images("ragged", 7)
    assert torch.equal(images[:1], generator.images("ragged"))
    assert torch.equal(images[5:], images[:2])
    assert len({generator.digest(image) for image in images}) == 5


def sums(row):
    """What a module adds up, as (largest part of a sum, largest result) of both levels.

    In units of 1/2 and 1/4. A part of a sum is at most the sum of its terms' sizes.
    """
    module, x = generator.module(row), generator.images(row)
    largest = {1: 0.0, 2: 0.0}
    with torch.no_grad():
        inner = {"b3": module.b3_reduce(x), "b5": module.b5_reduce(x)}
        for name in generator.UNITS:
            given = inner.get(name, x)
            conv, bn = getattr(module, name).conv, getattr(module, name).bn
            terms = functional.conv2d(given.abs(), conv.weight.abs(), None, 1, conv.padding)
            after = bn(conv(given))
            level, unit = (2, 4) if name in inner else (1, 2)
            assert torch.equal(unit * after, (unit * after).round())
            digits = unit * bn.weight.abs().reshape(
                1, -1, 1, 1
            )  # folded, or after the norm
            worst = (
                (terms * digits + unit * bn.bias.abs().reshape(1, -1, 1, 1)).max().item()
            )
            largest[level] = max(largest[level], worst, (unit / 2 * terms).max().item())
    return largest[1], largest[2]


@pytest.mark.parametrize("row", ROWS)
def test_no_sum_leaves_what_float32_holds_exactly(row):
    first, second = generator.bound(row)
    true_first, true_second = sums(row)
    assert true_first <= first < 2**24
    assert true_second <= second < 2**24
    assert true_first > first / 4  # no bound that says nothing
    x = generator.images(row)
    with torch.no_grad():  # PyTorch's own kernels, in float32, in whatever order
        single = generator.module(row).float()(x.float())[0].permute(1, 2, 0)
    np.testing.assert_array_equal(single.numpy(), generator.expected(row))


def test_larger_weights_would_leave_it(monkeypatch):
    monkeypatch.setattr(generator, "WEIGHT", 2)
    assert generator.bound("5b")[1] > generator.EXACT


def test_a_row_or_a_value_that_does_not_fit_is_refused():
    with pytest.raises(FusionError, match=r"row: expected one of 3a, .*, ragged, got '6a'"):
        generator.table("6a")
    with pytest.raises(FusionError, match="values: expected multiples of 1/4"):
        generator.digest([0.125])
    with pytest.raises(ValueError, match=r"end: .* a later line, got 'nothing'"):
        labs.kernel("product", "acc +=", "nothing")
    kinds = "ladder, launches, pays, two"
    with pytest.raises(ValueError, match=f"kind: expected one of {kinds}, got 'x'"):
        labs.lab("x")


# The text of a lab


@pytest.mark.parametrize(("kind", "most"), [("ladder", 120_000), ("pays", 135_000)])
def test_a_lab_is_one_small_text_and_the_same_every_time(kind, most):
    text = labs.lab(kind).html
    assert text == labs.lab(kind)._repr_html_()
    assert len(text.encode()) < most
    assert text.count("</script>") == 2  # none ends early
    assert not re.search(
        r"https?://(?!www\.w3\.org/2000/svg)|import\(|fetch\(|XMLHttp", text
    )
    names = (*labs.KERNELS, *labs.OWN.get(kind, ((), ()))[1])
    kernels = [labs._text(f"{name}.wgsl") for name in names]
    assert not any("`" in kernel or "${" in kernel for kernel in kernels)
    assert "takes a browser with WebGPU" in text.split("<script")[0]
    assert re.search("[0-9a-f]{16}", labs.sources(kind))
    assert ("paysLab" in text) == (kind == "pays")  # carried only where it is used


# In Chromium

WITH = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]


@pytest.fixture(scope="module")
def launch():
    """Starts a Chromium with WebGPU in software."""
    with chromium.launching(*WITH) as launching:
        yield launching


@pytest.fixture(scope="module")
def browser(launch):
    running = launch()
    yield running
    running.close()


@pytest.fixture
def another(launch):
    """A browser of its own, for what ends its GPU process."""
    running = launch()
    yield running
    running.close()


@pytest.fixture
def pure(browser):
    """Calls an expression of JavaScript that sees the parts that need no GPU."""
    page = browser.new_page()
    code = "\n".join(labs._text(f"{name}.js") for name in PURE)
    yield lambda expression, given=None: page.evaluate(
        f"async (given) => {{ {code}\nreturn ({expression}); }}", given
    )
    page.close()


def page_of(*made):
    body = "\n".join(lab._repr_html_() for lab in made)
    style = "body { max-width: 46rem; margin: auto; background: #fff }"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Labs</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head><body><main><h1>Labs</h1>\n{body}</main></body></html>"
    )


# Before any script: what is asked of WebGPU is written down.
WATCH = """
window.seen = { asked: 0, dispatched: 0, created: 0, destroyed: 0, passes: [] };
const count = (kind, method, name) => {
    const real = kind.prototype[method];
    kind.prototype[method] = function (...given) {
        seen[name]++;
        if (name === "begun") seen.passes.push(0);
        if (name === "dispatched") seen.passes[seen.passes.length - 1]++;
        return real.apply(this, given);
    };
};
if (window.GPU) {
    count(GPU, "requestAdapter", "asked");
    count(GPUCommandEncoder, "beginComputePass", "begun");
    count(GPUComputePassEncoder, "dispatchWorkgroups", "dispatched");
    count(GPUAdapter, "requestDevice", "created");
    count(GPUDevice, "destroy", "destroyed");
}
"""


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of labs from a file, in quick mode; `before` runs before its scripts."""
    contexts = []

    def visit(html, before="", width=1000, url=None, using=browser):
        context = using.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(WATCH + before)
        page.requests_made, page.complaints = [], []
        page.on("request", lambda request: page.requests_made.append(request.url))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        path = tmp_path / f"labs-{len(contexts)}.html"
        path.write_text(html, encoding="utf-8")
        page.goto(f"{url or path.as_uri()}?lab=quick")
        return page

    yield visit
    for context in contexts:
        context.close()


def ended(page, kind, row=None, seconds=90):
    """Runs a lab to its end; returns its element."""
    lab = page.locator(f"[data-lab={kind}]")
    if row:
        lab.locator("select[name=module]").select_option(row)
    lab.locator("[data-lab-run]").click()
    return over(page, kind, seconds)


def over(page, kind, seconds=90):
    lab = page.locator(f"[data-lab={kind}]")
    page.wait_for_function(
        "lab => lab.dataset.labState !== 'running'",
        arg=lab.element_handle(),
        timeout=1000 * seconds,
    )
    return lab


def record_in(lab):
    return json.loads(lab.locator("script[data-lab-record]").text_content())


def says(lab):
    return lab.get_by_role("status").inner_text()


# Both languages have the same numbers


@pytest.mark.parametrize("row", ["ragged", "3a"])
def test_the_page_draws_the_notebooks_numbers(pure, row):
    widths, size = generator.table(row)
    found = pure(
        """await (async ({ widths, size }) => {
            const units = parameters(widths), x = images(widths[0], size, 7);
            const of = (values) => digest([...values]);
            return {
                x: of(x), y: digest(await reference(widths, size, 1, units, x, () => 0)),
                b3: of(units.b3.weight), scale: of(units.b5.scale),
                shift: of(units.b1.shift),
            };
        })(given)""",
        {"widths": widths, "size": size},
    )
    module, x = generator.module(row), generator.images(row, 7)
    weight = module.b3.conv.weight.permute(2, 3, 1, 0)
    expected = {
        "x": x.permute(0, 2, 3, 1),
        "y": generator.expected(row),
        "b3": weight,
        "scale": module.b5.bn.weight,
        "shift": module.b1.bn.bias,
    }
    wanted = {k: generator.digest(torch.as_tensor(v).detach()) for k, v in expected.items()}
    assert found == wanted


def test_a_repeated_image_has_a_repeated_result(pure):
    widths, size = generator.table("ragged")
    same = pure(
        """await (async ({ widths, size }) => {
            const units = parameters(widths), x = images(widths[0], size, 6);
            const y = await reference(widths, size, 6, units, x, () => 0);
            const one = y.length / 6;
            const nth = (n) => digest(y.subarray(n * one, (n + 1) * one));
            return [nth(0) === nth(5), nth(0) === nth(1)];
        })(given)""",
        {"widths": widths, "size": size},
    )
    assert same == [True, False]


# The estimators, on clocks of which the truth is known


def test_quartiles_and_gains_are_those_of_python(pure):
    random = np.random.default_rng(3)
    base, other = random.uniform(1, 9, 11).tolist(), random.uniform(1, 9, 11).tolist()
    ratios = [b / o for b, o in zip(base, other, strict=True)]
    wanted = statistics.quantiles(ratios, n=4, method="inclusive")
    assert pure("gains(given[0], given[1])", [base, other]) == pytest.approx(wanted)
    assert pure("quartiles([5])") == [5, 5, 5]


def test_a_line_is_found_again(pure):
    ns = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    exact = [7 + 1.5 * n for n in ns]
    assert pure("fit(given[0], given[1])", [ns, exact]) == pytest.approx([7, 1.5])
    random = np.random.default_rng(8)
    noisy = [(t * random.uniform(0.97, 1.03, 15)).tolist() for t in exact]
    found = pure("lines(given[0], given[1])", [ns, noisy])
    assert found["a"][1] == pytest.approx(7, rel=0.05)
    assert found["b"][1] == pytest.approx(1.5, rel=0.03)
    assert found["b"][0] < found["b"][1] < found["b"][2]


# A clock that moves in steps, a wake-up that is late, a machine that slows down meanwhile.
MADE_UP = """
    let us = 0;
    const step = given.step_ms * 1000, now = () => Math.floor(us / step) * step / 1000;
    const turn = (cost, calls) => {
        const begin = now();
        us += calls * cost * (1 + given.drift * us / 1e6) + given.wake_ms * 1000;
        return now() - begin;
    };
"""


@pytest.mark.parametrize("cost_us", [0.5, 40, 3000, 400_000])
@pytest.mark.parametrize("step_ms", [0.005, 0.1, 1])
def test_a_turn_is_long_against_the_clock(pure, cost_us, step_ms):
    given = {"cost": cost_us, "step_ms": step_ms, "wake_ms": 1.2, "drift": 0}
    calls = pure(
        f"await (async () => {{ {MADE_UP}"
        "return calibrate(async (calls) => turn(given.cost, calls), 50, 1e6); })()",
        given,
    )
    if cost_us > 50_000:
        assert calls == 1
    else:
        assert 40_000 < calls * cost_us < 60_000


def test_a_line_survives_clock_wake_up_and_drift(pure):
    """a = 20, b = 2, by a clock with steps of 1 ms, while the machine slows down."""
    found = pure(
        f"""await (async () => {{ {MADE_UP}
            const ns = [1, 10, 100, 1000], cost = (n) => 20 + 2 * n, calls = {{}};
            for (const n of ns) {{
                calls[n] = await calibrate(async (c) => turn(cost(n), c), 50, 1e6);
            }}
            const samples = await race(ns.map(String), async (n) =>
                1000 * turn(cost(Number(n)), calls[n]) / calls[n], (round) => round < 20);
            return lines(ns, ns.map((n) => samples[n]));
        }})()""",
        {"step_ms": 1, "wake_ms": 0.2, "drift": 0.02},
    )
    assert found["a"][1] == pytest.approx(20, rel=0.15)
    assert found["b"][1] == pytest.approx(2, rel=0.15)


def test_turns_take_a_drift_out_of_the_gain(pure):
    """The machine gets slower by half; one arm after the other, the gain would be wrong."""
    gain, in_order = pure(
        f"""await (async () => {{ {MADE_UP}
            const cost = {{ a: 300, b: 200 }}, sample = (arm) => turn(cost[arm], 100);
            const turns = await race(["a", "b"], async (arm) => sample(arm), (r) => r < 40);
            us = 0;
            const a = Array.from({{ length: 40 }}, () => sample("a"));
            const b = Array.from({{ length: 40 }}, () => sample("b"));
            return [gains(turns.a, turns.b)[1], gains(a, b)[1]];
        }})()""",
        {"step_ms": 0.005, "wake_ms": 0, "drift": 0.3},
    )
    assert gain == pytest.approx(1.5, rel=0.01)
    assert abs(in_order / 1.5 - 1) > 0.1


def test_each_round_begins_with_the_next_arm(pure):
    order = pure(
        """await (async () => {
            const taken = [];
            const measure = async (arm) => { taken.push(arm); return 1; };
            await race(["a", "b", "c"], measure, (round) => round < 3);
            return taken.join("");
        })()"""
    )
    assert order == "abcbcacab"


def test_the_digest_is_that_of_python(pure):
    content = {"z": CANONICAL, "a": {}}
    assert pure("canonical(given)", content) == json.dumps(content, sort_keys=True)


def test_parameters_lie_side_by_side(pure):
    """A row of the stacked matrix is a row of b1, of b3_reduce and of b5_reduce."""
    widths = [8, 8, 4, 4, 4, 4, 4]
    found = pure(
        """(() => {
            const units = parameters(given), { values, places } = packed(units);
            const list = (unit) => ({ weight: [...unit.weight], scale: [...unit.scale] });
            const lists = UNITS.map((name) => [name, list(units[name])]);
            return { values: [...values], places, ...Object.fromEntries(lists) };
        })()""",
        widths,
    )
    values, places = np.array(found["values"]), found["places"]
    stacked = values[: 8 * 16].reshape(8, 16)
    folded = 4 * places["b1"]["folded"]
    at = 0
    for name, k in (("b1", 8), ("b3_reduce", 4), ("b5_reduce", 4)):
        weight = np.array(found[name]["weight"]).reshape(8, k)
        scale = np.array(found[name]["scale"])
        np.testing.assert_array_equal(stacked[:, at : at + k], weight)
        assert places[name]["plain"] * 4 == at
        part = values[folded : folded + 8 * 16].reshape(8, 16)[:, at : at + k]
        np.testing.assert_array_equal(part, weight * scale)
        at += k


# The labs


@pytest.fixture
def server(tmp_path):
    with chromium.served(tmp_path) as address:
        yield f"{address}/labs-1.html"


RAGGED = labs.lab("ladder", ["ragged"])
LAUNCHES = labs.lab("launches")


@pytest.mark.parametrize("row", SEEN)
def test_the_ladder_is_right_and_is_counted(opened, row):
    page = opened(page_of(labs.lab("ladder", [row])))
    page.wait_for_timeout(300)
    assert page.evaluate("seen.asked") == 0  # nothing starts by itself
    lab = ended(page, "ladder", row)
    assert lab.get_attribute("data-lab-state") == "done", says(lab)
    assert lab.get_attribute("data-lab-differ") == "0"
    entries = generator.expected(row).size
    assert lab.get_attribute("data-lab-entries") == str(6 * entries)
    cases = record_in(lab)["cases"]
    assert {case["parameters"]["clock"] for case in cases} == {"wall", "device"}
    for case in cases:
        assert case["launches"] == COUNTS
        assert set(map(len, case["samples"].values())) == {2}
    # The same by what the browser is told, and the device is given back.
    passes, wanted = page.evaluate("seen.passes"), list(COUNTS.values())
    assert wanted in [passes[i : i + 6] for i in range(len(passes))]
    assert page.evaluate("[seen.created, seen.destroyed]") == [1, 1]
    assert page.complaints == []


def test_both_labs_run_on_a_served_page_by_themselves(opened, server):
    page = opened(page_of(RAGGED, LAUNCHES), url=server)
    ladder = ended(page, "ladder")
    launches = ended(page, "launches")
    for lab in (ladder, launches):
        assert lab.get_attribute("data-lab-state") == "done", says(lab)
        assert lab.get_attribute("data-lab-differ") == "0"
        assert "the times say nothing about GPUs" in lab.inner_text()
        assert "gain" not in lab.locator("table").inner_text()
    asked = [url for url in page.requests_made if not url.startswith("data:")]
    assert asked == [f"{server}?lab=quick"]
    assert page.complaints == []


def test_a_launches_record_has_each_way_and_n(opened):
    page = opened(page_of(LAUNCHES))
    record = record_in(ended(page, "launches"))
    by_gpu = [c for c in record["cases"] if c["parameters"]["clock"] == "device"]
    ways = ("one submit", "a submit each")
    found = {case["parameters"]["n"]: case["launches"] for case in by_gpu}
    assert found == {n: dict.fromkeys(ways, n) for n in (1, 10, 100)}
    assert all(set(case["samples"]) == set(case["calls"]) == set(ways) for case in by_gpu)


def test_a_batch_is_verified_whole(opened):
    page = opened(page_of(RAGGED))
    page.locator("select[name=batch]").select_option("2")
    lab = ended(page, "ladder")
    assert lab.get_attribute("data-lab-differ") == "0"
    assert int(lab.get_attribute("data-lab-entries")) == 6 * 2 * 81 * 100


# Planted faults: each must be seen

FAULTS = {
    "a wrong weight": ("weight[i] * (folded", "(weight[i] + (i === 77)) * (folded"),
    "a forgotten norm": ("scale[i % own] : 1", "1 : 1"),
    "taps in the other order": ("vec2i(i32(tap % job.side), i32(tap / job.side))",
        "vec2i(i32(tap / job.side), i32(tap % job.side))"),
    "no barrier after loading": ("workgroupBarrier(); // the pieces are there", ""),
    "no barrier before loading": ("workgroupBarrier(); // and no longer needed", ""),
    "branches swapped": ('z(r3), into(w1 + w3), true, RELU), product("b3", z(0), into(w1)',
        'z(r3), into(w1), true, RELU), product("b3", z(0), into(w1 + w5)'),
    "parts swapped": ("view(name, k, w1), view(name, k, w1 + r3)]",
                      "view(name, k, w1 + r5), view(name, k, w1)]"),
    "a split one too early": ("true, RELU), cut: w1,", "true, RELU), cut: w1 - 1,"),
    "no bias": ("if (job.epilogue > 0u)", "if (job.epilogue > 9u)"),
    "no ReLU": ("job.epilogue > 1u", "job.epilogue > 9u"),
    "rows that wrap around": ("&& all(place < size)", "&& place.y < size.y"),
    "a pooling of eight": ("var tap = 0; tap < 9", "var tap = 0; tap < 8"),
    "a tile that nobody computes": ("ceil(pixels / 32) *", "floor(pixels / 32) *"),
    "a concatenation out of order": ("case 1u: { y[id.x] = b3", "case 1u: { y[id.x] = b5"),
}  # fmt: skip


PLANTED = [  # a kernel that is wrong takes a compilation of its own
    "a wrong weight",
    "taps in the other order",
    "no barrier after loading",
    "branches swapped",
]


@pytest.mark.parametrize("fault", FAULTS if ALL else PLANTED)
def test_a_planted_fault_is_seen(opened, fault):
    right, wrong = FAULTS[fault]
    html = page_of(RAGGED)
    assert html.count(right) == 1
    lab = ended(opened(html.replace(right, wrong)), "ladder")
    assert lab.get_attribute("data-lab-state") == "failed"
    assert int(lab.get_attribute("data-lab-differ")) > 0
    assert "entries differ" in says(lab)
    assert lab.locator("table, a[download]").count() == 0  # nothing was timed


# Of a lab: what is in its script, what is there instead, and what it then says.
OUT_OF_ORDER = {
    "the reference is wrong, and the notebook's float64 is asked first": (
        RAGGED,
        "c, k, side,\n      weight: draw(3 * place + 1",
        "c, k, side,\n      weight: draw(3 * place + 4",
        "the notebook's PyTorch had",
    ),
    "a launch is lost": (
        LAUNCHES,
        "j < (apart ? 1 : n); j++) launch(pass)",
        "j < (apart ? 1 : n - 1); j++) launch(pass)",
        "launches, one submit",
    ),
}


@pytest.mark.parametrize("fault", OUT_OF_ORDER)
def test_a_lab_out_of_order_says_so(opened, fault):
    made, right, wrong, said = OUT_OF_ORDER[fault]
    html = page_of(made)
    assert right in html
    lab = ended(opened(html.replace(right, wrong)), made.kind)
    assert lab.get_attribute("data-lab-state") == "failed"
    assert said in says(lab)


# What can go wrong, and what is said then


def fails(page, kind="ladder", seconds=60):
    lab = ended(page, kind, seconds=seconds)
    return lab.get_attribute("data-lab-state"), says(lab)


def test_without_webgpu_it_says_so_at_once(opened):
    gone = 'Object.defineProperty(Navigator.prototype, "gpu", { get: () => undefined });'
    page = opened(page_of(RAGGED, LAUNCHES), gone)
    lab = page.locator("[data-lab=launches]")
    page.wait_for_function("document.querySelector('[data-lab-state=unsupported]')")
    assert "This browser has no WebGPU" in says(lab)
    assert fails(page, "launches")[0] == "unsupported"


def test_paper_has_a_sentence_in_place_of_a_lab_that_has_not_run(opened):
    page = opened(page_of(LAUNCHES))
    lab, paper = page.locator("[data-lab]"), page.locator(".fs-lab-paper")
    assert not paper.is_visible()
    keys = "data-lm-suppress-shortcuts"  # JupyterLab leaves their keys alone
    controls = lab.locator(":is(button, select, input)").all()
    assert {control.get_attribute(keys) for control in controls} == {"true"}
    page.emulate_media(media="print")
    assert paper.is_visible()
    assert paper.inner_text().startswith("Here the page can measure what a launch costs")
    assert lab.locator(":is(button, select, input, .fs-lab-says):visible").count() == 0
    page.emulate_media(media="screen")
    lab = ended(page, "launches")
    page.emulate_media(media="print")
    assert not paper.is_visible()
    assert lab.locator("tbody tr").first.is_visible()
    assert lab.locator(".fs-lab-says").is_visible()


@pytest.mark.parametrize(
    ("before", "state", "sentence"),
    [
        ("GPU.prototype.requestAdapter = async () => null;",
         "unsupported", "no GPU that it would use"),
        ('Object.defineProperty(GPUSupportedLimits.prototype,'
         ' "maxComputeWorkgroupStorageSize", { get: () => 4096 });',
         "unsupported", "maxComputeWorkgroupStorageSize is 4096, and this lab needs 8320."),
        ('Object.defineProperty(GPUSupportedLimits.prototype,'
         ' "maxBufferSize", { get: () => 2 ** 20 });',
         "unsupported", "needs 16777216 for this choice. Take a smaller batch."),
        ("GPUAdapter.prototype.requestDevice = async () => { throw new Error('no'); };",
         "failed", "no"),
        ("GPUQueue.prototype.onSubmittedWorkDone = () =>"
         " Promise.reject(new DOMException('gone', 'OperationError'));",
         "failed", "The GPU was lost"),
        ("const real = GPUAdapter.prototype.requestDevice;"
         "GPUAdapter.prototype.requestDevice = async function (...given) {"
         "  const device = await real.apply(this, given);"
         "  const error = new GPUOutOfMemoryError('full');"
         "  setTimeout(() => device.dispatchEvent("
         "    new GPUUncapturedErrorEvent('uncapturederror', { error })), 50);"
         "  return device; };",
         "failed", "choose a smaller batch"),
    ],
    ids=["no adapter", "small limits", "small buffers", "refused", "wait rejected",
         "out of memory"],
)  # fmt: skip
def test_each_failure_has_its_sentence(opened, before, state, sentence):
    found, said = fails(opened(page_of(RAGGED), before))
    assert found == state
    assert sentence in said


def test_a_kernel_that_does_not_compile_is_named(opened):
    html = page_of(RAGGED).replace(
        "let radius = i32(job.side / 2u);", "let radius = nothing;"
    )
    state, said = fails(opened(html))
    assert state == "failed"
    assert re.search(r"compiler refuses the kernel single.wgsl: line \d+: .*nothing", said)


def test_a_clock_that_runs_backwards_is_not_used(opened):
    html = page_of(LAUNCHES).replace("return end > begin ?", "return begin > end ?")
    lab = ended(opened(html), "launches")
    assert lab.get_attribute("data-lab-state") == "done"
    assert {case["parameters"]["clock"] for case in record_in(lab)["cases"]} == {"wall"}
    assert "by the page's clock" in lab.inner_text()


def test_without_timestamps_the_pages_clock_does(opened):
    html = page_of(LAUNCHES).replace('has("timestamp-query")', 'has("nothing")')
    lab = ended(opened(html), "launches")
    assert lab.get_attribute("data-lab-state") == "done"
    assert {case["parameters"]["clock"] for case in record_in(lab)["cases"]} == {"wall"}


def test_cancel_works_at_any_time_and_a_new_run_after_it(opened):
    page = opened(page_of(RAGGED, LAUNCHES))
    for after_ms in (0, 50, 700):
        cancelled(page, after_ms)
    assert ended(page, "launches").get_attribute("data-lab-state") == "done"
    page.wait_for_timeout(100)
    assert page.evaluate("seen.created === seen.destroyed")  # the first may come too late


def cancelled(page, after_ms):
    page.evaluate(
        """(ms) => {
            document.querySelector("[data-lab=ladder] [data-lab-run]").click();
            const cancel = document.querySelector("[data-lab=ladder] [data-lab-cancel]");
            setTimeout(() => cancel.click(), ms);
        }""",
        after_ms,
    )
    lab = over(page, "ladder")
    assert lab.get_attribute("data-lab-state") == "cancelled"
    assert says(lab).startswith("Cancelled")


def test_cancel_keeps_the_rounds_that_were_complete(opened):
    page = opened(page_of(LAUNCHES).replace("least: 2, most: 2", "least: 999, most: 999"))
    lab = page.locator("[data-lab]")
    lab.locator("[data-lab-run]").click()
    told = re.compile(r"Measuring, round ([3-9]|\d\d), about \d+ (seconds|minutes) left")
    lab.get_by_text(told).wait_for()
    lab.locator("[data-lab-cancel]").click()
    assert over(page, "launches").get_attribute("data-lab-state") == "cancelled"
    assert says(lab).startswith("Cancelled. The GPU's memory has been given back.")
    record = record_in(lab)
    assert record["protocol"]["rounds"] >= 2
    lengths = {len(s) for case in record["cases"] for s in case["samples"].values()}
    assert lengths == {record["protocol"]["rounds"]}
    jsonschema.validate(record, SCHEMA)
    assert lab.locator("table").count() == 1


HIDE = """(hidden) => {
    const getter = { configurable: true, get: () => hidden };
    Object.defineProperty(document, "hidden", getter);
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_out_of_sight_nothing_is_measured_and_no_time_passes(opened):
    page = opened(page_of(LAUNCHES))
    page.clock.install()
    page.evaluate(HIDE, True)
    lab = page.locator("[data-lab]")
    lab.locator("[data-lab-run]").click()
    page.wait_for_function("document.body.innerText.includes('in the background')")
    page.clock.fast_forward("01:00:00")
    page.wait_for_timeout(100)
    assert lab.get_attribute("data-lab-state") == "running"
    assert page.evaluate("seen.dispatched") == 0
    page.evaluate(HIDE, False)
    assert over(page, "launches").get_attribute("data-lab-state") == "done"


def test_out_of_sight_in_the_middle_no_wait_is_given_up(opened):
    page = opened(page_of(RAGGED))
    page.clock.install()
    lab = page.locator("[data-lab]")
    lab.locator("[data-lab-run]").click()
    page.wait_for_function("seen.dispatched > 20")
    page.evaluate(HIDE, True)
    page.clock.fast_forward("01:00:00")
    page.evaluate(HIDE, False)
    assert over(page, "ladder").get_attribute("data-lab-state") == "done", says(lab)


def test_in_sight_a_run_has_an_end(opened):
    """As if each turn had to be taken again."""
    page = opened(page_of(LAUNCHES).replace("if (!hidden) return sample;", ""))
    page.clock.install()
    lab = page.locator("[data-lab]")
    lab.locator("[data-lab-run]").click()
    page.wait_for_function("document.body.innerText.includes('Measuring')")
    page.clock.fast_forward("00:04:01")
    assert over(page, "launches").get_attribute("data-lab-state") == "failed"
    assert "Stopped after 240 seconds" in says(lab) or "given up" in says(lab)


def test_what_takes_long_is_told_beforehand_and_asked_for(opened):
    """As if each call took 100 seconds."""
    page = opened(page_of(RAGGED).replace("* (flops / (2 * n ** 3))", "* 0 + 1e5"))
    page.clock.install()
    lab, go = page.locator("[data-lab]"), page.locator("[data-lab-go]")
    assert go.is_hidden()
    for answer in ("cancelled", "done"):
        lab.locator("[data-lab-run]").click()
        go.wait_for()
        assert "a run takes about 51 minutes here." in says(lab)
        assert page.evaluate("seen.dispatched") < 50  # rates, and not a rung
        page.clock.fast_forward("00:10:00")  # the reader may think
        assert lab.get_attribute("data-lab-state") == "running"
        (lab.locator("[data-lab-cancel]") if answer == "cancelled" else go).click()
        assert over(page, "ladder").get_attribute("data-lab-state") == answer, says(lab)
        assert go.is_hidden()


@pytest.mark.parametrize("call_ms", [1, 300, 800, 2000, 4000])
def test_a_run_stays_within_its_minute_with_fewer_rounds(pure, call_ms):
    found = pure(
        """await (async () => {
            let now = 5000;
            const asked = [], run = new Run(60000, async (text) => { asked.push(text); });
            run.elapsed = () => now;
            await run.afford(30 * given);
            now += 6 * given; // the check
            await run.afford(24 * given);
            run.breathe = async () => {};
            const call = async () => { now += 2 * given; return { device: 1, wall: 1 }; };
            const arms = Object.fromEntries(RUNGS.map((rung) => [rung, call]));
            const taken = await rounds({ run }, arms, PACE.minute, () => {});
            const { due, limit } = run;
            return { asked, now, due, limit, rounds: taken["two launches"].length };
        })()""",
        call_ms,
    )
    wanted = {1: 20, 300: 7, 800: 4, 2000: 2, 4000: 2}
    assert found["rounds"] == wanted[call_ms]
    assert found["now"] < found["due"]
    assert found["due"] == 60000 if call_ms < 2000 else found["due"] > 60000
    told = {2000: "70 seconds", 4000: "3 minutes"}.get(call_ms)
    assert [told in text for text in found["asked"]] == ([True] if told else [])


@pytest.mark.parametrize(("turn_ms", "wanted"), [(1, 2), (300, 1), (600, 0)])
def test_the_record_says_how_much_warming_up_there_was(pure, turn_ms, wanted):
    found = pure(
        """await (async () => {
            let now = 0;
            const run = { elapsed: () => now, breathe: async () => {} };
            const turn = async () => { now += given; };
            const arms = Object.fromEntries(RUNGS.map((rung) => [rung, turn]));
            return warmedUp({ run }, arms, PACE.minute.warmUp);
        })()""",
        turn_ms,
    )
    assert found == wanted


@pytest.mark.parametrize("row", models.TABLE)
def test_a_batch_of_32_keeps_to_what_webgpu_promises(pure, row):
    widths, size = generator.table(row)
    largest, weights, groups = pure(
        """(() => {
            const { widths, size } = given, units = parameters(widths);
            const { values, places } = packed(units);
            const rungs = ladder(widths, size, 32, places);
            const groups = Object.values(rungs).flat().map((dispatch) => dispatch.groups);
            return [bytesOf(widths, size, 32), values.byteLength, Math.max(...groups)];
        })()""",
        {"widths": widths, "size": size},
    )
    widest = max(widths[0] + widths[2] + widths[4], sum(widths[i] for i in (1, 3, 5, 6)))
    assert 4 * widest * size * size * 32 <= largest <= 2**27  # a binding's size, promised
    assert weights <= largest
    assert groups <= 65535


ADAPTERS = [
    ({"vendor": "google", "architecture": "swiftshader"}, True),
    ({"description": "llvmpipe (LLVM 15.0.6, 256 bits)"}, True),
    ({"description": "Microsoft Basic Render Driver"}, True),
    ({"description": "Software Rasterizer"}, True),
    ({"vendor": "nvidia", "architecture": "lovelace", "isFallbackAdapter": False}, False),
    ({"vendor": "apple", "architecture": "metal-3"}, False),
    ({"isFallbackAdapter": True}, True),
    ({}, False),
]


def test_a_software_adapter_is_known_by_its_name(pure):
    given = [info for info, _ in ADAPTERS]
    found = pure("given.map((info) => machineOf({ info }, true))", given)
    assert [one["software"] for one in found] == [software for _, software in ADAPTERS]
    assert found[4]["name"] == "webgpu-nvidia-lovelace"
    assert found[-1]["name"] == "webgpu-unnamed"
    assert pure("machineOf({ isFallbackAdapter: true }, true).software")  # as it was once


def test_one_lab_at_a_time(opened):
    page = opened(page_of(RAGGED, LAUNCHES))
    page.locator("[data-lab=ladder] [data-lab-run]").click()
    page.locator("[data-lab=launches] [data-lab-run]").click()
    assert "One at a time" in says(page.locator("[data-lab=launches]"))
    page.locator("[data-lab=ladder] [data-lab-cancel]").click()
    assert ended(page, "launches").get_attribute("data-lab-state") == "done"


def test_five_runs_give_back_what_they_took(opened):
    page = opened(page_of(LAUNCHES))
    for _ in range(5):
        assert ended(page, "launches").get_attribute("data-lab-state") == "done"
    assert page.evaluate("[seen.created, seen.destroyed]") == [5, 5]


# The page


def test_a_record_opens_again_and_another_file_is_refused(opened, saved, tmp_path):
    table = saved["table"]
    record = json.loads(saved["ladder"].read_text(encoding="utf-8"))
    fresh = opened(page_of(RAGGED))
    again = fresh.locator("[data-lab]")
    choose = again.locator("input[type=file]")
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    choose.set_input_files(path)
    again.locator("table").wait_for()
    assert again.locator("table").inner_text() == table
    assert "From the file" in again.inner_text()
    edited = json.dumps(record | {"date": "2001-01-01"})
    record["cases"][0]["samples"]["folded"][0] = -1
    for text, why in (
        (edited, "digest does not fit"),
        ("{", "not JSON"),
        ("[]", "not a record"),
        (json.dumps(record), "cases are not complete"),
        (json.dumps(record | {"machine": {}}), "where it comes from"),
    ):
        path.write_text(text, encoding="utf-8")
        choose.set_input_files(path)
        fresh.wait_for_function("why => document.body.innerText.includes(why)", arg=why)


def signed(content):
    """A record with the digest that fits."""
    content = {name: value for name, value in content.items() if name != "digest"}
    return content | {"digest": records.digest(content)}


def open_gpus_record(lab, path, gflops=500, **machine):
    """Made up, of a GPU on which each launch costs 9 µs and the rest 30 µs."""
    samples = {rung: [30 + 9 * n] * 4 for rung, n in COUNTS.items()}
    parameters = {"module": "ragged", "batch": 1, "clock": "device"}
    record = {
        "schema": 1,
        "experiment": "webgpu_ladder",
        "date": "2026-11-22",
        "machine": {"kind": "webgpu", "device": "a GPU", "vendor": "v", "software": False}
        | machine,
        "protocol": {"rounds": 4, "entries": 48600, "differ": 0, "large_product":
                     {"n": 1024, "calls": 1, "device": [2 * 1024**3 / gflops / 1000]}},
        "cases": [{"parameters": parameters, "samples": samples, "launches": COUNTS}],
    }  # fmt: skip
    path.write_text(json.dumps(signed(record)), encoding="utf-8")
    lab.locator("input[type=file]").set_input_files(path)
    lab.page.wait_for_function("document.body.innerText.includes('From the file')")


def test_a_gpus_record_shows_its_gains(opened, tmp_path):
    page = opened(page_of(RAGGED))
    lab = page.locator("[data-lab]")
    open_gpus_record(lab, tmp_path / "gpu.json")
    rows = [row.inner_text().split("\t") for row in lab.locator("tbody tr").all()]
    for row, (rung, n) in zip(rows, COUNTS.items(), strict=True):
        gain = f"{210 / (30 + 9 * n):.2f}"
        assert row[:4] == [rung, str(n), str(30 + 9 * n), f"{gain} ({gain} to {gain})"]
    c, b1, r3, b3, r5, b5, proj = generator.table("ragged")[0]
    macs = c * (b1 + r3 + r5 + proj) + 9 * r3 * b3 + 25 * r5 * b5
    share = 100 * 2 * macs * 81 / 48e-6 / 1e9 / 500
    assert rows[-1][4] == f"{share:.0f}%"
    assert "20 launches became 2" in lab.inner_text()
    assert "500 GFLOP/s" in lab.inner_text()
    assert lab.locator(".fs-lab-bars").count() == 1


@pytest.mark.parametrize(
    ("vendor", "gflops", "doubted"), [("", 5, True), ("", 500, False), ("v", 5, False)]
)
def test_the_rate_tells_software_only_without_a_name(
    opened, tmp_path, vendor, gflops, doubted
):
    lab = opened(page_of(RAGGED)).locator("[data-lab]")
    open_gpus_record(lab, tmp_path / "gpu.json", gflops, vendor=vendor)
    assert ("This looks like a software adapter" in lab.inner_text()) == doubted
    assert ("gain" in lab.locator("table").inner_text()) != doubted


@pytest.fixture(scope="module")
def saved(browser, tmp_path_factory):
    """Files as readers save them: {lab: path}, and the "table" of the ladder."""
    folder, found = tmp_path_factory.mktemp("saved"), {}
    path = folder / "labs.html"
    path.write_text(page_of(RAGGED, LAUNCHES), encoding="utf-8")
    page = browser.new_page()
    page.goto(f"{path.as_uri()}?lab=quick")
    for kind in ("ladder", "launches"):
        lab = ended(page, kind)
        with page.expect_download() as saving:
            lab.locator("a[download]").click()
        assert saving.value.suggested_filename.startswith(f"webgpu_{kind}-webgpu-")
        found[kind] = folder / f"{kind}.json"
        saving.value.save_as(found[kind])
        content = json.loads(found[kind].read_text(encoding="utf-8"))
        assert content == record_in(lab)
        if kind == "ladder":
            found["table"] = lab.locator("table").inner_text()
    page.close()
    return found


@pytest.mark.parametrize("kind", ["ladder", "launches"])
def test_a_readers_record_is_added_once_and_replaces_none(saved, tmp_path, kind):
    content = json.loads(saved[kind].read_text(encoding="utf-8"))
    jsonschema.validate(content, SCHEMA)
    assert content == signed(content)
    path = records.adopt(saved[kind], tmp_path)
    assert path == tmp_path / "webgpu-google-swiftshader" / f"webgpu_{kind}.json"
    jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), SCHEMA)
    record = records.load(path)
    assert record.label.startswith("recorded on google swiftshader, 2")
    assert record.cases[0].launches == content["cases"][0]["launches"]
    with pytest.raises(records.RecordError, match="is there already"):
        records.adopt(saved[kind], tmp_path)
    del content["digest"]  # what has none gets one
    content["date"] = "2000-01-01"
    (tmp_path / "other.json").write_text(json.dumps(content), encoding="utf-8")
    again = records.adopt(tmp_path / "other.json", tmp_path)
    assert again.parent.name == "webgpu-google-swiftshader-2"
    assert records.load(path) == record


REFUSED = {
    "differs": (lambda c: c["protocol"].update(differ=1), "not found to be right"),
    "unchecked": (lambda c: c["protocol"].pop("differ"), "not found to be right"),
    "leads elsewhere": (lambda c: c["machine"].update(name="webgpu-/../x"), "no record of"),
    "names a file": (lambda c: c.update(experiment="../webgpu_x"), "no record of"),
    "digest": (lambda c: c.update(digest="0" * 64), "its digest does not fit"),
    "no time": (lambda c: c["cases"][0]["samples"].update(folded=[0, 0]), "times above 0"),
    "no browser": (lambda c: c["machine"].pop("browser"), "Adapter lacks or adds browser"),
    "of a CPU": (lambda c: c["machine"].update(kind="cpu"), "Machine lacks or adds"),
    "no machine": (lambda c: c.update(machine=None), "Machine: expected a dict, got None"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_file_that_is_no_readers_record_is_refused(saved, tmp_path, fault):
    change, reason = REFUSED[fault]
    content = json.loads(saved["ladder"].read_text(encoding="utf-8"))
    del content["digest"]
    change(content)
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(records.RecordError, match=reason):
        records.adopt(path, tmp_path)
    assert [path] == list(tmp_path.rglob("*.json"))


def test_the_command_line_adds_it(saved, tmp_path, capsys):
    arguments = ["record", "--folder", str(tmp_path), "--from"]
    assert main([*arguments, str(saved["launches"])]) == 0
    assert "webgpu_launches.json: recorded on google swiftshader" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "nothing.json")]) == 1
    assert "nothing.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("width", [1000, 390])
def test_the_page_is_accessible_and_fits(opened, tmp_path, width):
    page = opened(page_of(RAGGED, LAUNCHES), width=width)
    assert chromium.violations(page) == []
    open_gpus_record(page.locator("[data-lab=ladder]"), tmp_path / "gpu.json")
    ended(page, "launches")
    assert chromium.violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_is_run_by_keyboard(opened):
    page = opened(page_of(RAGGED))
    for _ in range(3):  # module, batch, Run
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('[data-lab-run]')")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.matches('[data-lab-cancel]')")
    page.keyboard.press("Enter")
    assert over(page, "ladder").get_attribute("data-lab-state") == "cancelled"
    assert page.evaluate("document.activeElement.matches('[data-lab-run]')")


def test_a_cell_may_be_run_twice(opened):
    page = opened(page_of(LAUNCHES, LAUNCHES))
    assert page.locator("[data-lab-run]").count() == 2
    page.locator("[data-lab-run]").last.click()
    page.wait_for_function(
        "document.querySelectorAll('[data-lab-state=done]').length === 1"
    )
    assert page.complaints == []


def test_a_kernel_without_end_is_given_up(another, opened):
    endless = "while (y[thread] >= 0.0) { y[thread] += 1.0; }"
    html = page_of(LAUNCHES).replace("y[thread] += 1.0;", endless)
    page = opened(html.replace("PATIENCE_S = 15", "PATIENCE_S = 2"), using=another)
    state, said = fails(page, "launches", seconds=20)
    assert state == "failed"
    assert "did not end within 2 seconds" in said


def test_a_lost_device_is_told_and_a_new_run_works(another, opened):
    page = opened(page_of(labs.lab("ladder", ["3a"]), LAUNCHES), using=another)
    page.locator("[data-lab=ladder] [data-lab-run]").click()
    page.wait_for_function("seen.dispatched > 20")
    session = another.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    (gpu,) = [process["id"] for process in processes if process["type"] == "GPU"]
    os.kill(gpu, signal.SIGKILL)
    lab = over(page, "ladder")
    assert lab.get_attribute("data-lab-state") == "failed"
    assert "The GPU was lost" in says(lab)
    assert ended(page, "launches").get_attribute("data-lab-state") == "done"


# When stacking pays


PAYS = labs.lab("pays", ["ragged", "widening"])
THREE_WAYS = {"separate": 3, "stacked": 1, "copied": 4}


@pytest.fixture
def payer(browser):
    """As `pure`, with the parts of the lab "pays"."""
    page = browser.new_page()
    names = (*PURE, "chart", "view", *labs.OWN["pays"][0])
    code = "\n".join(labs._text(f"{name}.js") for name in names)
    yield lambda expression, given=None: page.evaluate(
        f"async (given) => {{ {code}\nreturn ({expression}); }}", given
    )
    page.close()


@pytest.mark.parametrize(("row", "side"), [("ragged", 9), ("widening", 7), ("5a", 14)])
def test_the_siblings_are_the_notebooks_and_exact(payer, row, side):
    found = payer(
        """await (async ({ widths, side }) => {
            const stack = stackOf(widths), x = images(widths[0], side, 1);
            return digest(await stageExpected(widths, stack, x, async () => 0));
        })(given)""",
        {"widths": generator.siblings(row), "side": side},
    )
    c, *sizes = generator.siblings(row)
    x = generator.draw(0, side * side * c, -4, 4).reshape(side * side, c)
    made = [
        x @ generator.draw(3 * i + 1, c * k, -1, 1).reshape(c, k)
        + generator.draw(3 * i + 3, k, -8, 8)
        for i, k in enumerate(sizes)
    ]
    by_hand = np.concatenate(made, 1)  # whole numbers of NumPy
    assert np.abs(by_hand).max() <= 4 * c + 8 < generator.EXACT
    stage = generator.stage(row, side)
    np.testing.assert_array_equal(stage.reshape(side * side, -1), by_hand)
    assert found == generator.digest(stage)


def test_a_pace_covers_widths_pixels_and_batches(payer):
    html = labs.lab("pays").html
    setup = json.loads(re.search(r"application/json\">(.*?)</script>", html)[1])
    assert setup["rows"] == [*models.TABLE, "widening"]
    found = {
        p: payer(f"planned(given, '{p}')", setup) for p in ("quick", "minute", "minutes")
    }
    assert {name: len(cases) for name, cases in found.items()} == {
        "quick": 4, "minute": 3 * (9 + 3), "minutes": 10 * 3 * 3,
    }  # fmt: skip
    for one in found["minute"]:
        assert one["row"] == "widening" or one["side"] == models.TABLE[one["row"]][1]
    biggest = payer(
        "given.flatMap(([one, widths]) => Object.values("
        "stageBuffers(widths, positionsOf(one))).map((floats) => 4 * floats))",
        [(one, setup["siblings"][one["row"]]) for one in found["minutes"]],
    )
    assert max(biggest) <= 2**27  # a binding's size, promised
    groups = payer(
        "given.flatMap(([one, widths]) => Object.values(stagePrograms(widths, positionsOf("
        "one))).flat().map((dispatch) => dispatch.groups))",
        [(one, setup["siblings"][one["row"]]) for one in found["minutes"]],
    )
    assert max(groups) <= 65535


def measured_ceilings(protocol, clock):
    """By NumPy: the median of the slopes, each of one round's least squares."""
    ticks, product = protocol["ticks"], protocol["large_product"]
    n, slopes = np.array(ticks["n"]), []
    for times in zip(*ticks[clock], strict=True):
        t = np.array(times)
        slopes.append(np.linalg.lstsq(np.stack([1 / t, n / t], 1), t / t, rcond=None)[0][1])
    launch_s = max(statistics.median(slopes), 0.001) * 1e-6
    return cost.Ceilings(
        2 * product["n"] ** 3 / (statistics.median(product[clock]) * 1e-6),
        2 * protocol["large_copy"]["bytes"]
        / (statistics.median(protocol["large_copy"][clock]) * 1e-6),
        launch_s, launch_s, overlaps=True,
    )  # fmt: skip


def recount(record):
    """What the estimate said and what was, of one clock: {(case, way): (s, gain, gain)}."""
    clock = record["cases"][0]["parameters"]["clock"]
    ceilings, found = measured_ceilings(record["protocol"], clock), {}
    for case in record["cases"]:
        p, samples = case["parameters"], case["samples"]
        if p["clock"] != clock:
            continue
        sizes = (p["first"], p["second"], p["third"])
        positions = p["side"] ** 2 * p["batch"]
        ways = cost.stage(sizes, p["c_in"], positions, 4, copied=sizes)
        for way in ("stacked", "copied"):
            pairs = zip(samples["separate"], samples[way], strict=True)
            found[f"{p['siblings']}, {p['side']}×{p['side']}, batch {p['batch']}", way] = (
                cost.seconds(ways[way], ceilings, graph=True),
                cost.gain(ways["separate"], ways[way], ceilings, graph=True),
                statistics.median(before / after for before, after in pairs),
            )
    return found


def score(found):
    """(sides taken, signs right, off) of a recount, and of its median gain."""
    pairs = [(said, was) for _, said, was in found.values()]
    middle = statistics.median(was for _, was in pairs)
    called = [(said, was) for said, was in pairs if abs(said - 1) > 1e-6]
    return (
        len(called),
        sum((said > 1) == (was > 1) for said, was in called),
        statistics.median(abs(said / was - 1) for said, was in pairs),
        sum((middle > 1) == (was > 1) for _, was in called),
        statistics.median(abs(middle / was - 1) for _, was in pairs),
    )


def test_signs_are_counted_by_medians_and_no_side_is_not_right(payer):
    """By hand: two right, one wrong, one that takes no side; the median gain is 1."""
    pairs = [(1.2, [0.9, 1.1, 1.2]), (0.9, [0.7, 0.8, 1.1]), (1.1, [0.8, 0.9, 1.3]),
             (1, [1.1, 1.2, 1.3])]  # fmt: skip
    off = [1.2 / 1.1 - 1, 0.9 / 0.8 - 1, 1.1 / 0.9 - 1, 1 - 1 / 1.2]
    middle_off = [1 - 1 / 1.1, 1 / 0.8 - 1, 1 / 0.9 - 1, 1 - 1 / 1.2]
    ways = [{"said": said, "was": was} for said, was in pairs]
    rows = [dict(zip(("stacked", "copied"), ways[i : i + 2], strict=True)) for i in (0, 2)]
    found = payer("score(given)", rows)
    assert found == pytest.approx({
        "cases": 4, "called": 3, "middle": 1.0, "right": 2, "middle_right": 2,
        "off": statistics.median(off), "middle_off": statistics.median(middle_off),
    })  # fmt: skip
    text = payer("waysSaid(given)", rows)
    assert (
        "Stacked: clearly faster than separate in 0 of 2 cases, clearly slower in 0" in text
    )
    assert (
        "Copied: clearly faster than separate in 1 of 2 cases, clearly slower in 0" in text
    )


TOLD = """window.told = [];
document.addEventListener("fs-ceilings", ({ detail }) => told.push(detail));"""


def test_the_sweep_is_right_and_counted_and_told(opened, payer):
    page = opened(page_of(PAYS), TOLD)
    page.wait_for_timeout(300)
    assert page.evaluate("seen.asked") == 0
    lab = ended(page, "pays")
    assert lab.get_attribute("data-lab-state") == "done", says(lab)
    assert lab.get_attribute("data-lab-differ") == "0"
    entries = 3 * (2 * 81 * 48 + (1 + 8) * 49 * (48 + 384)) + 64
    assert lab.get_attribute("data-lab-entries") == str(entries)
    record = record_in(lab)
    jsonschema.validate(record, SCHEMA)
    assert record == signed(record)
    assert len(record["cases"]) == 2 * 4
    for case in record["cases"]:
        assert case["launches"] == THREE_WAYS
        assert set(map(len, case["samples"].values())) == {2}
    passes, wanted = page.evaluate("seen.passes"), list(THREE_WAYS.values())
    assert sum(passes[i : i + 3] == wanted for i in range(len(passes))) == 1 + 4
    assert page.evaluate("[seen.created, seen.destroyed]") == [1, 1]
    assert "the times say nothing about GPUs" in lab.inner_text()
    assert "gain" not in lab.locator("table").inner_text()
    first, last = page.evaluate("told")
    ceilings = measured_ceilings(record["protocol"], "device")
    assert first == pytest.approx(
        {"device": "google swiftshader, software", "error": None}
        | dataclasses.asdict(ceilings)
    )
    _, right, off, *_ = score(recount(record))
    assert last == first | {
        "error": {"cases": 8, "right": right, "off": pytest.approx(off)}
    }
    estimated = payer("verdicts(given.cases, given.protocol)", record)
    for row in estimated[:4]:
        for way in ("stacked", "copied"):
            seconds, said, was = recount(record)[row["name"], way]
            assert row["estimated_us"][way] == pytest.approx(1e6 * seconds, rel=1e-12)
            assert row[way]["said"] == pytest.approx(said, rel=1e-12)
            assert row[way]["was"][1] == pytest.approx(was, rel=1e-12)
    assert page.complaints == []


def test_your_case_takes_the_ceilings_that_the_sweep_measured(opened):
    page = opened(page_of(show.case({}, {}), PAYS))
    machines = page.locator("[data-case] select[name=machine]")
    before = machines.locator("option").count()
    assert ended(page, "pays").get_attribute("data-lab-state") == "done"
    machines.select_option(index=before)
    text = page.locator("[data-case]").inner_text()
    assert "this page's GPU: google swiftshader, software" in text
    assert "in the median of 8" in text
    assert page.complaints == []


SWEEP_FAULTS = {
    "a copy from elsewhere": ("x[job.x_offset + p * job.x_stride + k]);\n  }\n}\n`",
                              "x[p * job.x_stride + k]);\n  }\n}\n`"),
    "a copy that forgets the last": ("(positions * width) / 256)",
                                     "(positions * width) / 256) - 1"),
    "columns swapped": ("w_offset: begin / 4", "w_offset: (begin && begin - 1) / 4"),
    "a product that drops a row": ("if (4u * step + r < 4u * depth",
                                   "if (4u * step + r + 1u < 4u * depth"),
    "no bias": ("epilogue: BIAS,", "epilogue: 0,"),
    "an image that is not repeated": ("(n * each) % few.length, each", "0, each"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SWEEP_FAULTS)
def test_a_fault_in_the_sweep_is_seen(opened, fault):
    right, wrong = SWEEP_FAULTS[fault]
    html = page_of(PAYS)
    assert html.count(right) == 1
    page = opened(html.replace(right, wrong), TOLD)
    lab = ended(page, "pays")
    assert lab.get_attribute("data-lab-state") == "failed", says(lab)
    assert int(lab.get_attribute("data-lab-differ")) > 0
    assert "entries differ, in: ragged, 9×9, batch 2, " in says(lab)
    assert lab.locator("table, a[download]").count() == 0
    assert page.evaluate("told.length") == 0  # nothing was timed


def test_a_case_that_alone_is_wrong_shows_no_time(opened):
    """Right for the widths that are checked first, wrong for others."""
    html = page_of(PAYS).replace(
        "begin / 4, x_stride: k / 4", "(k > 48 ? 0 : begin) / 4, x_stride: k / 4"
    )
    page = opened(html)
    lab = ended(page, "pays")
    assert lab.get_attribute("data-lab-state") == "failed", says(lab)
    assert "differ, in: widening, 7×7, batch 1, copied." in says(lab)
    assert page.evaluate("seen.passes.slice(-3)") == [3, 1, 4]  # no turn after the check
    assert lab.locator("table, a[download]").count() == 0


def test_a_sweep_whose_reference_is_wrong_checks_nothing(opened):
    wrong = page_of(PAYS).replace("sum.set(bias);", "sum.set(bias); sum[3] += p === 5;")
    lab = ended(opened(wrong), "pays")
    assert lab.get_attribute("data-lab-state") == "failed"
    assert "the notebook's PyTorch had" in says(lab)


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        ("const roomOf = ({ device: { limits } }) =>", "const roomOf = () => 2 ** 20 ||",
         "offers buffers of 1048576 bytes, and this lab needs 16777216."),
        ("return 17 * ms + 200;", "return 1e6;",
         "too slow or too small for this lab: no case was measured. The first, ragged, "
         "7×7, batch 1, would take 17 minutes, and the time was over."),
        ("put(job, p, k, x[job.x_offset + p * job.x_stride + k]);", "put(nothing);",
         "compiler refuses the kernel single.wgsl: line"),
    ],
    ids=["small buffers", "too slow", "does not compile"],
)  # fmt: skip
def test_a_sweep_that_cannot_be_says_why(opened, right, wrong, sentence):
    html = page_of(PAYS)
    assert html.count(right) >= 1
    place = html.rindex(right)
    lab = ended(opened(html[:place] + html[place:].replace(right, wrong)), "pays")
    assert lab.get_attribute("data-lab-state") in ("failed", "unsupported")
    assert sentence in says(lab)


def test_cases_that_do_not_fit_are_left_out_and_named(opened):
    html = page_of(PAYS)
    html = html.replace("return [1, 8].flatMap", "return [1, 4096].flatMap")
    html = html.replace(
        "return 17 * ms + 200;", "return widths[0] === 40 && one.batch > 1 ? 1e6 : 1;"
    )
    lab = ended(opened(html), "pays")
    assert lab.get_attribute("data-lab-state") == "done", says(lab)
    protocol = record_in(lab)["protocol"]
    assert protocol["planned"] == 4
    assert protocol["left_out"] == {
        "ragged, 7×7, batch 4096": "would take 17 minutes, and the time was over",
        "widening, 7×7, batch 4096": "needs a buffer of 308281344 bytes, "
        "and this GPU has 134217728",
    }
    assert "2 of 4 cases were measured. The first left out, ragged" in lab.inner_text()


def test_without_webgpu_the_sweep_says_so(opened):
    gone = 'Object.defineProperty(Navigator.prototype, "gpu", { get: () => undefined });'
    page = opened(page_of(PAYS), gone)
    page.wait_for_function("document.querySelector('[data-lab-state=unsupported]')")
    assert "This browser has no WebGPU" in says(page.locator("[data-lab=pays]"))
    none = "GPU.prototype.requestAdapter = async () => null;"
    assert "no GPU that it would use" in fails(opened(page_of(PAYS), none), "pays")[1]


def test_cancel_keeps_the_cases_that_were_done(opened):
    html = page_of(PAYS).replace(
        "return [1, 8].flatMap", "return [1, 2, 3, 4, 6, 8, 12, 16].flatMap"
    )
    page = opened(html, TOLD)
    lab = page.locator("[data-lab]")
    lab.locator("[data-lab-run]").click()
    page.wait_for_function(
        r"/Case [4-9] of 16: .*, about \d+ (seconds|minutes) left/"
        ".test(document.body.innerText)"
    )
    lab.locator("[data-lab-cancel]").click()
    assert over(page, "pays").get_attribute("data-lab-state") == "cancelled"
    assert says(lab).startswith("Cancelled")
    record = record_in(lab)
    jsonschema.validate(record, SCHEMA)
    done = len(record["cases"]) // 2
    assert 3 <= done < 16
    assert f"{done} of 16 cases were measured." in lab.inner_text()
    page.wait_for_function("told.length === 2")
    assert page.evaluate("told[1].error.cases") in (2 * done, 2 * done - 2)
    page.wait_for_function("seen.created === seen.destroyed")
    cancel_early(page, lab)


def cancel_early(page, lab):
    """Before any case there is nothing to keep."""
    page.evaluate("""new MutationObserver(() => {
        if (document.body.innerText.includes("ceilings: launches")) {
            document.querySelector("[data-lab-cancel]").click();
        }
    }).observe(document.querySelector("[role=status]"), { childList: true })""")
    lab.locator("[data-lab-run]").click()
    assert over(page, "pays").get_attribute("data-lab-state") == "cancelled"
    assert lab.locator("table").count() == 0


def test_a_lost_device_ends_the_sweep(another, opened):
    page = opened(page_of(PAYS), using=another)
    page.locator("[data-lab-run]").click()
    page.wait_for_function("seen.dispatched > 20")
    session = another.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    (gpu,) = [process["id"] for process in processes if process["type"] == "GPU"]
    os.kill(gpu, signal.SIGKILL)
    lab = over(page, "pays")
    assert lab.get_attribute("data-lab-state") == "failed"
    assert "The GPU was lost" in says(lab)


def whole_or(value):
    """As JSON of JavaScript has it: no 7.0."""
    return int(value) if value == int(value) else value


def gpus_sweep():
    """Made up, of a GPU whose times are not what the estimate says."""
    random = np.random.default_rng(19)

    def times(us, size=5):
        return [whole_or(round(us * v, 3)) for v in random.uniform(0.97, 1.05, size)]

    cases = []
    for batch in (1, 8, 32):
        for row in (*models.TABLE, "widening"):
            c, *sizes = generator.siblings(row)
            side = models.TABLE[row][1] if row in models.TABLE else 14
            ways = cost.stage(sizes, c, side * side * batch, 4, copied=sizes)
            at = cost.Ceilings(3e12, 4e11, 2e-6, 2e-6, overlaps=True)
            cases.append({
                "parameters": {"siblings": row, "c_in": c, "first": sizes[0],
                               "second": sizes[1], "third": sizes[2], "side": side,
                               "batch": batch, "clock": "device"},
                "samples": {way: times(1e6 * cost.seconds(kernels, at, graph=True)
                                       * random.uniform(0.85, 1.25))
                            for way, kernels in ways.items()},
                "unit": "us", "calls": 50, "launches": THREE_WAYS, "faults": {},
                "skipped": {}, "events": [],
            })  # fmt: skip
    both = {}
    for clock in ("device", "wall"):
        both[clock] = {
            "large_product": times(2 * 2048**3 / 3e6),
            "large_copy": times(2 * 60 * 2**20 / 4e5),
            "ticks": [times(7 + 2 * n) for n in (100, 400, 1600)],
        }
    extra = {"large_product": {"n": 2048}, "large_copy": {"bytes": 60 * 2**20},
             "ticks": {"n": [100, 400, 1600]}}  # fmt: skip
    chosen = {
        what: extra[what] | {clock: both[clock][what] for clock in both} for what in extra
    }
    return signed({
        "schema": 1, "experiment": "webgpu_pays", "date": "2026-11-30",
        "machine": {"kind": "webgpu", "device": "a GPU", "vendor": "v", "software": False},
        "protocol": {"rounds": 5, "entries": 48600, "differ": 0, "planned": 30, **chosen},
        "cases": cases,
    })  # fmt: skip


STAGE_RECORDS = sorted((ROOT / "records").glob("*/stage.json"))


@pytest.fixture
def sweep_opened(opened, tmp_path):
    """A page of the lab with the book's records; opens a file's text there."""
    book = [records.load(path) for path in STAGE_RECORDS]

    def visit(width=1000):
        page = opened(page_of(labs.lab("pays", ["5a", "widening"], book=book)), width=width)

        def choose(text):
            path = tmp_path / "sweep.json"
            path.write_text(text, encoding="utf-8")
            page.locator("input[type=file]").set_input_files(path)

        return page, choose

    return visit


def rows_of(table):
    rows = [row.inner_text().split("\t") for row in table.locator("tbody tr").all()]
    return {row[0].replace("\xa0", " ").replace(" · ", ", batch "): row[1:] for row in rows}


def test_a_gpus_sweep_shows_estimate_time_and_losses(sweep_opened):
    page, choose = sweep_opened()
    record = gpus_sweep()
    choose(json.dumps(record))
    lab = page.locator("[data-lab]")
    lab.locator("svg").wait_for()
    found, text = recount(record), lab.inner_text()
    called, right, off, middle_right, middle_off = score(found)
    assert 0 < right < called < len(found)
    assert (
        f"a side in {called} of {len(found)} gains and had the sign right in {right}"
        in text
    )
    assert f"it is off by {100 * off:.3g}%" in text
    assert f"is right in {middle_right} of the same {called}" in text
    assert f"and off by {100 * middle_off:.3g}%." in text
    rows = rows_of(lab.locator("table").first)
    assert len(rows) == 30
    for (name, way), (seconds, said, was) in found.items():
        cells = rows[name]
        column = {"stacked": 1, "copied": 2}[way]
        assert f"({1e6 * seconds:.3g})" in cells[column].replace(",", "") or seconds > 1e-3
        gain, estimate = cells[2 * column + 1 : 2 * column + 3]
        assert gain.startswith(f"{was:.2f} (")
        assert gain.endswith("loses") == (was < 1)
        assert estimate == f"{said:.2f}"
    assert lab.locator("svg circle").count() == 2 * 30 + 2
    assert lab.locator("svg rect").count() == 2 * 30 + 2


@pytest.mark.skipif(not STAGE_RECORDS, reason="nothing has been recorded")
def test_a_readers_gains_stand_beside_the_books(sweep_opened):
    page, choose = sweep_opened()
    choose(json.dumps(gpus_sweep()))
    page.locator("[data-lab] svg").wait_for()
    record = records.load(STAGE_RECORDS[0])
    beside = rows_of(page.locator("table").nth(1))
    assert record.label in page.locator("[data-lab]").inner_text()
    assert {name.split(",")[0] for name in beside} == set(models.TABLE)
    mode = "graph, " if record.machine.kind == "cuda" else ""
    for name, cells in beside.items():
        module, _, batch = name.split(", ")
        (case,) = record.select(
            module=module, batch=int(batch.split()[1]), layout="NHWC", dtype="float32"
        )
        for place, way in ((1, "stacked"), (3, "copied")):
            low, median, high = case.gain(mode + way, f"{mode}separate")
            assert cells[place] == f"{median:.2f} ({low:.2f} to {high:.2f})"


def test_a_broken_sweep_is_refused(sweep_opened):
    page, choose = sweep_opened()
    record = gpus_sweep()

    def broken(change):
        content = json.loads(json.dumps(record))
        change(content)
        return json.dumps(signed(content))

    for text, why in (
        (json.dumps(record | {"date": "2001-01-01"}), "digest does not fit"),
        (broken(lambda c: c["protocol"].pop("ticks")), "its ceilings are not complete"),
        (
            broken(lambda c: c["protocol"]["ticks"]["device"][1].pop()),
            "its ceilings are not complete",
        ),
        (
            broken(lambda c: c["protocol"]["large_copy"].update(bytes="many")),
            "its ceilings are not complete",
        ),
        (
            broken(lambda c: c["cases"][3]["samples"].pop("copied")),
            "its cases are not complete",
        ),
        (
            broken(lambda c: c["cases"][3]["samples"]["copied"].pop()),
            "its cases are not complete",
        ),
        (
            broken(lambda c: c["cases"][3]["parameters"].pop("side")),
            "its cases are not complete",
        ),
        (broken(lambda c: c.update(protocol=None)), "its ceilings are not complete"),
    ):
        page.locator("[role=status]").evaluate("(p) => { p.textContent = ''; }")
        choose(text)
        page.wait_for_function("why => document.body.innerText.includes(why)", arg=why)
        assert page.locator("table").count() == 0
    assert page.complaints == []


@pytest.mark.parametrize("width", [1000, 390])
def test_the_sweep_is_accessible_and_fits(sweep_opened, width):
    page, choose = sweep_opened(width)
    choose(json.dumps(gpus_sweep()))
    page.locator("[data-lab] svg").wait_for()
    assert chromium.violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# Two launches

TWO = labs.lab("two", ["ragged"])
HANDED = {  # submits, passes, dispatches
    "a submit per branch": (4, 4, 7),
    "a pass per dispatch": (1, 7, 7),
    "one pass": (1, 1, 7),
    "two launches": (1, 1, 2),
}
# What WebGPU is told, letter by letter: a pass begins, a dispatch, a submit.
TAPE = """
window.tape = "";
for (const [kind, method, letter] of [[GPUCommandEncoder, "beginComputePass", "p"],
    [GPUComputePassEncoder, "dispatchWorkgroups", "d"], [GPUQueue, "submit", "s"]]) {
    const real = kind.prototype[method];
    kind.prototype[method] = function (...given) {
        tape += letter;
        return real.apply(this, given);
    };
}
"""
BRANCHES = ["pdspddspddspdds", 7 * "pd" + "s", "p" + 7 * "d" + "s", "pdds"]


@pytest.mark.parametrize("row", SEEN if ALL else ["ragged"])
def test_two_launches_are_right_and_what_is_handed_over_is_counted(opened, row):
    page = opened(page_of(labs.lab("two", [row])), TAPE)
    page.wait_for_timeout(300)
    assert page.evaluate("seen.asked") == 0
    lab = ended(page, "two", row)
    assert lab.get_attribute("data-lab-state") == "done", says(lab)
    assert lab.get_attribute("data-lab-differ") == "0"
    assert lab.get_attribute("data-lab-entries") == str(4 * generator.expected(row).size)
    record = record_in(lab)
    counted = {
        arm: tuple(n.values()) for arm, n in record["protocol"]["handed_over"].items()
    }
    assert counted == HANDED
    for case in record["cases"]:
        assert case["launches"] == {arm: n for arm, (_, _, n) in HANDED.items()}
        assert case["calls"] % case["parameters"]["in_a_row"] == 0
    clocks = {case["parameters"]["clock"] for case in record["cases"]}
    assert clocks == {"wall", "device"}
    # The same by what the browser is told: the check, with a copy read after each arm; the
    # wrong way; then in each turn what was checked, and never again the wrong way.
    tape = page.evaluate("tape")
    told = {
        arm: tuple(map(b.count, "spd")) for arm, b in zip(HANDED, BRANCHES, strict=True)
    }
    assert told == HANDED
    begin = tape.index("s".join([*BRANCHES, ""]) + 5 * "pdss")
    timed = tape[begin + len("".join(BRANCHES)) + 4 + 5 * 4 :]
    assert re.fullmatch(f"(?:{'|'.join(BRANCHES)}|s)+", timed)
    *others, two = (re.findall(f"{'|'.join(BRANCHES)}", timed).count(b) for b in BRANCHES)
    # As often as each other; two launches to calibrate, too, but where one is slow enough.
    assert len({*others}) == 1
    in_a_row = {case["parameters"]["in_a_row"] for case in record["cases"]}
    assert others[0] >= 2 * sum(1 + n for n in in_a_row)
    slow = all(case["calls"] == case["parameters"]["in_a_row"] for case in record["cases"])
    assert two > others[0] or (slow and two == others[0])
    assert page.evaluate("[seen.created, seen.destroyed]") == [1, 1]
    assert page.complaints == []
    rows = rows_of(lab.locator("table").first)
    assert rows == {arm: [str(n) for n in counts] for arm, counts in HANDED.items()}
    assert "/ two launches" not in lab.inner_text()  # software: no gain


TWO_FAULTS = {
    "a pooling that forgets": ("const POOLED = 8u;", "const POOLED = 6u;",
        {"two launches"}),
    "no ReLU": ("job.epilogue > 1u", "job.epilogue > 9u", set(HANDED)),
    "a branch in another's place": ("own.b5_reduce, into(w1 + w3))",
        "own.b5_reduce, into(w1))", set(HANDED) - {"two launches"}),
    "a dispatch left out": ("[branches.flat().map((one) => [one])]",
        "[branches.flat().slice(1).map((one) => [one])]", {"a pass per dispatch"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", TWO_FAULTS)
def test_an_arm_that_is_wrong_is_named_and_nothing_is_timed(opened, fault):
    right, wrong, arms = TWO_FAULTS[fault]
    html = page_of(TWO)
    assert html.count(right) == 1
    page = opened(html.replace(right, wrong), TAPE)
    lab = ended(page, "two")
    assert lab.get_attribute("data-lab-state") == "failed"
    assert int(lab.get_attribute("data-lab-differ")) > 0
    named = re.search("entries differ, in: (.*)[.] Either", says(lab)).group(1)
    assert set(named.split("; ")) == arms
    assert lab.locator("table, a[download]").count() == 0
    assert page.evaluate("tape").count("pdds") < 5


RIGHTLY = (  # one workgroup does all tiles, so its barrier orders all there is
    ("if (group.x < table[0].until) {\n    product_tile(table[0], group.x,",
     "for (var t = 0u; t < table[0].until; t++) {\n    product_tile(table[0], t,"),
    ("if (group.x < table[1].until) {\n    product_tile(table[1], group.x,",
     "for (var t = 0u; t < table[1].until; t++) {\n    product_tile(table[1], t,"),
    ("groups: Math.max(tiles(r3), tiles(w3)), ", "groups: 1, "),
)  # fmt: skip
LATE = tuple(  # first all that reads, then all that is read
    (old, new.replace(f"[{i}]", f"[{1 - i}]")) for i, (old, new) in enumerate(RIGHTLY)
)
WITHOUT = (("if (group.x < table[0].until)", "if (group.x < 0u)"),)  # nothing to read


@pytest.mark.parametrize(
    ("changes", "wrong"), [((), None), (RIGHTLY, 0), (LATE, 81 * 44), (WITHOUT, 81 * 44)]
)
def test_the_wrong_way_is_compared_entry_by_entry(opened, changes, wrong):
    html = page_of(TWO)
    for old, new in changes:
        assert html.count(old) == 1
        html = html.replace(old, new)
    lab = ended(opened(html), "two")
    assert lab.get_attribute("data-lab-state") == "done", says(lab)
    found = record_in(lab)["protocol"]["unordered"]
    assert found["entries"] == 81 * 44
    assert len(found["differ"]) == 5
    assert all(0 <= n <= 81 * 44 for n in found["differ"])
    said = lab.locator("[data-lab-unordered]").inner_text()
    if wrong is not None:
        assert found["differ"] == [wrong] * 5
    if any(found["differ"]):
        counts = ", ".join(f"{n:,}" for n in found["differ"])
        assert f"entries were wrong: {counts} of 3,564." in said
    else:
        assert "In 5 runs all 3,564 entries came out right, by luck." in said
    assert "unordered" not in {arm for c in record_in(lab)["cases"] for arm in c["samples"]}


def test_two_launches_fail_in_sentences(opened):
    gone = (
        "GPUQueue.prototype.onSubmittedWorkDone = () =>"
        " Promise.reject(new DOMException('gone', 'OperationError'));"
    )
    assert "The GPU was lost" in fails(opened(page_of(TWO), gone), "two")[1]
    none = "GPU.prototype.requestAdapter = async () => null;"
    state, said = fails(opened(page_of(TWO), none), "two")
    assert state == "unsupported"
    assert "no GPU that it would use" in said
    html = page_of(TWO).replace("storageBarrier();", "nothing();")
    assert "refuses the kernel unordered.wgsl: line" in fails(opened(html), "two")[1]
    wrong = page_of(TWO).replace('"digests":{"ragged":"', '"digests":{"ragged":"0')
    assert "the notebook's PyTorch had" in fails(opened(wrong), "two")[1]


def test_two_launches_without_timestamps(opened):
    html = page_of(TWO).replace('has("timestamp-query")', 'has("nothing")')
    lab = ended(opened(html), "two")
    assert lab.get_attribute("data-lab-state") == "done", says(lab)
    assert {case["parameters"]["clock"] for case in record_in(lab)["cases"]} == {"wall"}


def test_two_launches_cancelled_keep_whole_rounds(opened):
    page = opened(page_of(TWO).replace("least: 2, most: 2", "least: 999, most: 999"))
    lab = page.locator("[data-lab]")
    for after_ms in (0, 300):
        page.evaluate(
            """(ms) => {
                document.querySelector("[data-lab-run]").click();
                const cancel = document.querySelector("[data-lab-cancel]");
                setTimeout(() => cancel.click(), ms);
            }""",
            after_ms,
        )
        assert over(page, "two").get_attribute("data-lab-state") == "cancelled"
        assert lab.locator("table").count() == 0
    lab.locator("[data-lab-run]").click()
    told = re.compile(r"Measuring, round ([3-9]|\d\d), about \d+ (seconds|minutes) left")
    lab.get_by_text(told).wait_for(timeout=60_000)
    lab.locator("[data-lab-cancel]").click()
    assert over(page, "two").get_attribute("data-lab-state") == "cancelled"
    record = record_in(lab)
    jsonschema.validate(record, SCHEMA)
    assert record["protocol"]["rounds"] >= 2
    assert lab.locator("table").count() == 3
    page.wait_for_timeout(100)
    assert page.evaluate("seen.created === seen.destroyed")


def test_a_readers_two_launches_are_added_and_open_again(opened, tmp_path):
    page = opened(page_of(TWO))
    lab = ended(page, "two")
    with page.expect_download() as saving:
        lab.locator("a[download]").click()
    path = tmp_path / "two.json"
    saving.value.save_as(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(record, SCHEMA)
    assert record == signed(record) == record_in(lab)
    adopted = records.adopt(path, tmp_path)
    assert adopted.name == "webgpu_two.json"
    in_a_row = {case.parameters["in_a_row"] for case in records.load(adopted).cases}
    assert min(in_a_row) == 1 < max(in_a_row) <= 20
    texts = lab.locator("table").all_inner_texts()
    fresh = opened(page_of(TWO))
    fresh.locator("input[type=file]").set_input_files(path)
    fresh.wait_for_function("document.querySelectorAll('table').length === 3")
    assert fresh.locator("table").all_inner_texts() == texts


def test_a_slow_adapter_hands_fewer_over_in_a_row(racer):
    rows = racer("[0.05, 49, 100, 340, 4000].map(rowsFor)")
    assert rows == [[1, 20], [1, 20], [1, 10], [1, 2], [1, 2]]


@pytest.fixture
def racer(browser):
    page = browser.new_page()
    names = (*PURE, "chart", "view", *labs.OWN["two"][0])
    code = "\n".join(labs._text(f"{name}.js") for name in names)
    yield lambda expression: page.evaluate(
        f"async () => {{ {code}\nreturn ({expression}); }}"
    )
    page.close()


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ([5, 9, 10, 17], 11),
        ([0, 100, 200, 200], 100),  # a clock with steps
        ([5, 5, 7, 7], None),
        ([5, 9, 17, 10], None),
    ],
)
def test_a_coarse_clock_counts_and_a_backward_one_does_not(racer, times, wanted):
    big = ", ".join(f"{time}n" for time in times)
    assert racer(f"spent(BigUint64Array.of({big}))") == wanted


def gpus_two(**machine):
    """Made up, of a GPU: two launches win alone, and in a row win, lose, and neither."""
    alone = dict(zip(HANDED, ([90] * 4, [60] * 4, [55] * 4, [40] * 4), strict=True))
    row = dict(zip(HANDED, ([50] * 4, [40, 48, 32, 40], [30] * 4, [40] * 4), strict=True))
    launches = {arm: n for arm, (_, _, n) in HANDED.items()}
    return signed({
        "schema": 1, "experiment": "webgpu_two", "date": "2026-11-30",
        "machine": {"kind": "webgpu", "device": "a GPU", "vendor": "v", "software": False}
        | machine,
        "protocol": {
            "rounds": 4, "entries": 32400, "differ": 0,
            "handed_over": {
                arm: {"submits": submits, "passes": passes, "dispatches": dispatches}
                for arm, (submits, passes, dispatches) in HANDED.items()
            },
            "unordered": {"entries": 3564, "differ": [0, 0, 7, 0, 0]},
        },
        "cases": [
            {"parameters": {"module": "ragged", "batch": 1, "clock": clock, "in_a_row": n},
             "samples": {arm: [us + late for us in of] for arm, of in samples.items()},
             "launches": launches}
            for clock, late in (("device", 0), ("wall", 20))
            for n, samples in ((1, alone), (20, row))
        ],
    })  # fmt: skip


@pytest.mark.parametrize("width", [1000, 390])
def test_a_gpus_two_launches_show_wins_and_losses_alike(opened, tmp_path, width):
    page = opened(page_of(TWO), width=width)
    assert chromium.violations(page) == []
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(gpus_two()), encoding="utf-8")
    page.locator("input[type=file]").set_input_files(path)
    page.wait_for_function("document.body.innerText.includes('From the file')")
    text = page.locator("[data-lab]").inner_text()
    for sentence in (
        "“a submit per branch” takes 2.25 times as long as two launches (2.25 to 2.25)",
        "Two launches lose to “one pass”: they take 1.33 times as long (1.33 to 1.33).",
        "Between “a pass per dispatch” and two launches the rounds do not decide "
        "(0.95 to 1.05).",
        "In 1 of 5 runs entries were wrong: 0, 0, 7, 0, 0 of 3,564.",
    ):
        assert sentence in text
    rows = rows_of(page.locator("table").nth(1))
    assert rows["one pass"] == ["55 (55 to 55)", "75", "1.38 (1.38 to 1.38)"]
    rows = rows_of(page.locator("table").nth(2))
    assert rows["one pass"] == ["30 (30 to 30)", "50", "0.75 (0.75 to 0.75)"]
    assert chromium.violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# In Firefox


def test_labs_run_in_firefox_from_a_file(fox, tmp_path):
    path = tmp_path / "labs.html"
    path.write_text(page_of(RAGGED, LAUNCHES, TWO, PAYS), encoding="utf-8")
    fox.go(f"{path.as_uri()}?lab=quick")
    for kind in ("launches", "ladder", "two", "pays"):
        lab = f"document.querySelector('[data-lab={kind}]')"
        fox.run(f"{lab}.querySelector('[data-lab-run]').click()")
        fox.until(f"{lab}.dataset.labState !== 'running'", 90)
        state, differ, entries, said = fox.run(
            f"const {{ dataset, innerText }} = {lab};"
            "return [dataset.labState, dataset.labDiffer, dataset.labEntries, innerText];"
        )
        if "no GPU that it would use" in said:
            pytest.skip("Firefox finds no Vulkan")
        assert (state, differ) == ("done", "0"), said
        text = fox.run(f"return {lab}.querySelector('[data-lab-record]').textContent;")
        record = json.loads(text)
        jsonschema.validate(record, SCHEMA)
        assert record == signed(record)
        if kind == "ladder":
            assert entries == str(6 * 81 * 100)
            assert "Firefox" in record["machine"]["browser"]
            assert all(case["launches"] == COUNTS for case in record["cases"])
