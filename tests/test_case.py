"""The tool *your case*: the formulas in two languages, and what it shows, in Chromium."""

import dataclasses
import importlib
import itertools
import math
import shutil

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from hfusion import cost

labs = importlib.import_module("hfusion.show.lab")  # `show.lab` is the function


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


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
    "the product's bias is dropped": (" + c_out * positions;\n    const", ";\n    const"),
    "the bias is not read": ("+ c_out + c_out * positions", "+ c_out * positions"),
    "weights are forgotten": ("+ c_out * c_in +", "+"),
    "a bias is added in place": ("2 * c_out * positions + c_out;", "c_out * positions;"),
    "a reorder only reads": ("2 * numbers * item_bytes, 0", "numbers * item_bytes, 0"),
    "a reorder is a launch": ("numbers * item_bytes, 0)", "numbers * item_bytes)"),
    "a reorder of other parts": ('["input", "weight"', '["weight", "input"'),
    "a copy only reads": ("2 * channels", "channels"),
    "one copy for all": ("copied.map(", "copied.slice(0, 1).map("),
    "the bias is counted twice": ("whole.flops - bias.flops", "whole.flops"),
    "its bytes as well": ("whole.bytes - c_out * item_bytes", "whole.bytes"),
    "the widest decides": ("convolution(sum(sizes))", "convolution(Math.max(...sizes))"),
    "nothing overlaps": ("(ceilings.overlaps ?", "(false ?"),
    "everything overlaps": ("(ceilings.overlaps ?", "(true ?"),
    "no least kernel": ("Math.max(ceilings.kernel_s,", "Math.max(0,"),
    "a graph is launched": ("graph ? device_s :", "false ? device_s :"),
    "a loss is a gain": ("seconds(before", "1 / seconds(before"),
    "in 32 bits": ("2 * c_out * c_in * positions", "((2 * c_out * c_in * positions) | 0)"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_wrong_formula_is_noticed(browser, edit):
    old, new = EDITS[edit]
    assert FORMULAS.count(old) == 1
    assert disagreements(browser, drawn(100), FORMULAS.replace(old, new))
