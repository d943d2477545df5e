"""experiments: each gives cases and benchmarks in which all variants agree."""

import contextlib
import copy
import ctypes
import dataclasses
import importlib
import inspect
import io
import itertools
import platform
import sys
import time
import tokenize
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stand_ins import raising
from torch import nn

from hfusion import models, timing
from hfusion.kernels import programs, tuning, two_launches
from hfusion.timing import cost
from sideways import experiments, live, records, runs
from sideways.experiments import (
    ceilings,
    chains,
    checks,
    circumstances,
    embedding,
    guards,
    leftover,
    memory,
    network,
    one_call,
    peers,
    stage,
    streams,
    variants,
)
from sideways.recorder import Unavailable, measuring

MODULES = {
    name: importlib.import_module(f"sideways.experiments.{name}")
    for name in experiments.SHARES
}
HELPERS = {"__init__", "chains", "circumstances", "guards", "one_call", "peers", "streams",
           "variants"}  # fmt: skip


def test_every_experiment_has_a_share_of_the_time():
    files = {path.stem for path in Path(experiments.__file__).parent.glob("*.py")}
    assert files - HELPERS == set(experiments.SHARES)
    shares = experiments.SHARES, experiments.AGAIN
    assert sum(sum(share.values()) for share in shares) == pytest.approx(1)
    assert set(experiments.AGAIN) <= set(experiments.SHARES)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_what_is_measured_again_are_cases_of_the_experiment(name):
    assert not experiments.again(name, "cpu")  # there nothing comes before compilers
    for device in experiments.ACCELERATORS:
        every = MODULES[name].cases(device)
        later = getattr(MODULES[name], "again", lambda device: [])(device)
        assert all(case in every for case in later)
        assert len({str(case) for case in later}) == len(later)
        assert not later or name in experiments.AGAIN


def test_first_what_pages_compare_is_compiled():
    first = MODULES["module_ladder"].again("cuda")[:3]
    assert [(c["module"], c["dtype"]) for c in first] == [
        ("3a", "float32"), ("3a", "float16"), ("5b", "float16"),
    ]  # fmt: skip
    cases = stage.cases("cuda")
    usual = [case for case in cases if stage._first(case)]
    assert cases[: len(usual)] == usual


@pytest.mark.parametrize("name", MODULES)
def test_an_experiment_is_one_question_in_few_lines(name):
    module = MODULES[name]
    assert module.QUESTION.endswith("?")
    assert module.__doc__.splitlines()[0].endswith("?")
    source = inspect.getsource(module)
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type
        not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.STRING)
        for line in range(token.start[0], token.end[0] + 1)
    }
    assert len(lines) <= 75


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", MODULES)
def test_cases_are_parameters_of_the_benchmark(name, device):
    cases = MODULES[name].cases(device)
    assert len({str(case) for case in cases}) == len(cases) > 0
    for case in cases:
        inspect.signature(MODULES[name].benchmark).bind(device, **case)
        assert all(isinstance(value, str | int) for value in case.values())


# What is measured on each kind of machine; see also `test_predictions`, for GPUs.

ROOT = Path(__file__).resolve().parents[2]
RECORDED = {path.parent.name + " " + path.stem: path for path in ROOT.glob("records/*/*")}
WINDOWS = ("1×1, 3×3", "3×3, 5×5", "1×1, 3×3, 5×5", "1×7, 7×1")
PROJECTIONS = ("q, k, v", "q, k, v, grouped", "gate, up", "layer, four adapters")


@pytest.mark.parametrize("name", RECORDED)
def test_what_was_recorded_is_measured_again(name):
    record = records.load(RECORDED[name])
    if record.machine.kind != records.WEBGPU:
        cases = MODULES[record.experiment].cases(record.machine.kind)
        assert [c.parameters for c in record.cases if c.parameters not in cases] == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("page", runs.READERS)
def test_what_a_page_reads_is_measured(page, device):
    """On a CPU what it has: neither half precision nor graphs."""
    for name, wanted, _ in runs.READERS[page]:
        if device == "cuda" or wanted.get("dtype") != "float16" != wanted.get("way"):
            cases = MODULES[name].cases(device)
            assert any(wanted.items() <= case.items() for case in cases)


# One small case of each experiment, run whole; what takes long is left out.
# fmt: off
SMALL = {
    "ceilings": {"what": "copy", "bytes": 2**16},
    "stopwatches": {"module": "5b", "batch": 1, "calls": 3},
    "launch_overhead": {"operator": "abs", "way": "eager"},
    "timeline": {"module": "5b", "rung": variants.HOISTED},
    "stage": {"module": "5b", "batch": 2, "dtype": "float32", "layout": "NHWC"},
    "embedding": {"windows": "1×7, 7×1", "channels": 4, "side": 7, "batch": 1,
                  "dtype": "float32"},
    "projections": {"projections": "layer, four adapters", "tokens": 3,
                    "dtype": "float32"},
    "module_ladder": {"module": "5b", "batch": 1, "dtype": "float32", "layout": "NCHW"},
    "checks": {"network": "three linear", "groups": 1},
    "leftover": {"network": "GoogLeNet", "batch": 1},
    "memory": {"memory": "as it comes", "module": "5b", "batch": 1, "layout": "NCHW"},
}
# fmt: on


@pytest.mark.parametrize("name", SMALL)
def test_a_small_case_makes_a_record(name, tmp_path, monkeypatch):
    module = MODULES[name]
    monkeypatch.setattr(module, "cases", lambda device: [SMALL[name]])
    monkeypatch.setattr(module, "ROUNDS", 2, raising=False)
    monkeypatch.setattr(variants, "compiled", unavailable)
    monkeypatch.setattr(peers, "inductor", unavailable)
    made = experiments.run(name, "cpu")
    assert made.cases[0].samples
    reasons = made.cases[0].skipped.values()
    assert not [why for why in reasons if why.startswith((records.WRONG, records.FAILED))]
    again = records.load(records.save(made, tmp_path))
    assert again.cases[0].parameters == SMALL[name]


def unavailable(*args, **options):
    raise Unavailable("left out")


def test_the_whole_network_agrees_on_every_step():
    benchmark = MODULES["network"].benchmark("cpu", "GoogLeNet", 1, "float32", "NCHW")
    with torch.no_grad():
        for name in benchmark.variants:
            if name in STEPS:
                measuring._checked(benchmark.variants[name], benchmark, "cpu")


STEPS = [
    variants.WRITTEN,
    variants.FOLDED,
    variants.STACKED,
    variants.HOISTED,
    variants.ONE_CALL,
]


@pytest.fixture(scope="module")
def ladder():
    model = models.randomise(models.Inception.from_table("3a")).eval()
    x = torch.randn(2, 192, 28, 28, generator=torch.Generator().manual_seed(0))
    return variants.eager(model), x, variants.exact(model, x)[0]


def test_each_step_has_fewer_operators_and_the_same_result(ladder):
    nets, x, exact = ladder
    assert list(nets) == STEPS
    counts = [timing.count_launches(lambda net=net: net(x)).count for net in nets.values()]
    assert counts == [20, 14, 12, 10, 6]
    with torch.no_grad():
        for net in nets.values():
            timing.near(net(x), exact, 1e-5)


def test_the_last_step_leaves_no_relu_of_its_own(ladder):
    nets, x, _ = ladder
    names = timing.count_launches(lambda: nets[variants.ONE_CALL](x)).names
    assert "relu" not in names


def test_branches_by_hand_are_the_module(ladder):
    nets, x, exact = ladder
    with torch.no_grad():
        parts = [branch(x) for branch in streams.branches(nets[variants.FOLDED])]
        timing.near(torch.cat(parts, dim=1), exact, 1e-5)
        swapped = torch.cat([parts[1], parts[0], *parts[2:]], dim=1)
    with pytest.raises(timing.Disagreement):
        timing.near(swapped, exact, 1e-5)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_the_shares_are_wide_enough_for_small_numbers_and_not_for_mistakes(kind):
    dtype = getattr(torch, kind)
    model = models.randomise(models.Inception.from_table("5b")).eval().to(dtype)
    x = torch.randn(1, 832, 7, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    (exact,) = variants.exact(model, x)
    share = 2 * variants.TOLERANCE[kind]
    with torch.no_grad():
        nets = variants.eager(model)
        for variant in (variants.WRITTEN, variants.FOLDED, variants.HOISTED):
            timing.near(nets[variant](x), exact, share)
        wrong = model(x).roll(1, dims=1)
    with pytest.raises(timing.Disagreement):
        timing.near(wrong, exact, share)


def test_variants_in_a_graph_say_how_often_they_repeat(ladder):
    nets, x, _ = ladder
    names = variants.every(nets, x, "cpu", times=variants.TIMES)
    in_graphs = {name for name in names if name.startswith("graph")}
    assert variants.repeats(names) == dict.fromkeys(in_graphs, variants.TIMES)
    assert {f"graph, {variant}" for variant in (*nets, variants.TWO)} < in_graphs
    assert f"graph, max-autotune, {variants.FOLDED}" in in_graphs


# In two launches; the choice of tiles is tested in test_kernels.py.


@pytest.fixture
def tuned(monkeypatch):
    """Which modules had their tiles chosen, and for which shapes; nothing is measured."""
    pytest.importorskip("triton")
    chosen = []
    monkeypatch.setattr(tuning, "tune", lambda two, x: chosen.append((two, x.shape)))
    return chosen


def test_in_two_launches_a_network_computes_the_same(tuned):
    model = models.Digits.trained()
    x = torch.randn(2, 1, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        call = variants.in_two(model, x)
        for _ in range(2):
            timing.near(call(), variants.exact(model, x)[0], 1e-5)
    assert [list(shape) for _, shape in tuned] == [[2, 16, 8, 8], [2, 64, 4, 4]]
    assert all(isinstance(two, two_launches.TwoLaunches) for two, _ in tuned)
    assert not any(isinstance(m, two_launches.TwoLaunches) for m in model.modules())


def test_in_two_launches_a_module_computes_the_same(tuned):
    model = models.randomise(models.Inception((6, 5, 4, 5, 3, 5, 5))).eval()
    x = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last)
    with torch.no_grad():
        timing.near(variants.in_two(model, x)(), variants.exact(model, x)[0], 1e-5)
    assert len(tuned) == 1


@pytest.mark.parametrize(("processors", "split"), [(132, True), (1, False)])
def test_two_launches_that_are_not_split_are_no_variant_of_their_own(
    tuned, monkeypatch, processors, split
):
    model = models.randomise(models.Inception((6, 5, 16, 5, 3, 5, 5))).eval()
    x = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last)
    monkeypatch.setattr(two_launches, "TILES", ((16, 16, 16, 1, 1),))
    monkeypatch.setattr(two_launches, "_processors", lambda device: processors)
    options = variants.OURS["two launches, split"]
    with torch.no_grad():
        if split:
            call = variants.in_two(model, x, options)
            timing.near(call(), variants.exact(model, x)[0], 1e-5)
        else:
            with pytest.raises(Unavailable, match=r"^launch 2 is fastest with a tile that"):
                variants.in_two(model, x, options)
    ((two, _),) = tuned
    assert two.splits_for(x) == (5 if split else 1)


def test_the_variants_of_two_launches_are_told_apart(monkeypatch):
    told = []
    monkeypatch.setattr(
        variants, "on_cuda", lambda device, make, *args: told.append(args[2])
    )
    x = torch.zeros(1)
    nets = dict.fromkeys(STEPS, torch.nn.Identity())
    timed = variants.every(nets, x, "cuda", [], 1, variants.OURS)
    for name in variants.OURS:
        timed[name]()
        assert f"graph, {name}" in timed
    assert told == list(variants.OURS.values())
    assert (told[0], told[-1]) == ({}, {"splits": "natural", "dependent": True})
    assert not set(variants.OURS) - {variants.TWO} & set(
        variants.every(nets, x, "cuda", [])
    )


def test_a_launch_that_cannot_be_dependent_is_unavailable(tuned):
    model = models.randomise(models.Inception((6, 5, 4, 5, 3, 5, 5))).eval()
    x = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last)
    with pytest.raises(Unavailable, match="dependent: expected x on a CUDA device of com"):
        variants.in_two(model, x, variants.OURS["two launches, dependent"])


def test_what_cannot_be_in_two_launches_is_unavailable(monkeypatch):
    model, x = models.Digits.trained(), torch.randn(2, 1, 8, 8)
    rows = x.new_empty(2, 3, 8, 8)
    with pytest.raises(Unavailable, match="want channels_last"):
        variants.in_two(model, rows)
    with pytest.raises(Unavailable, match="no Inception module"):
        variants.in_two(torch.nn.ReLU(), x)
    monkeypatch.setattr(programs, "triton", None)
    with pytest.raises(Unavailable, match=r"triton: expected version 3\.6 or newer"):
        variants.in_two(model, x)


@pytest.mark.parametrize("way", ["host", "graph"])
def test_what_only_a_gpu_can_is_unavailable_elsewhere(way):
    with pytest.raises(Unavailable, match="needs a CUDA device"):
        chains.chains("abs", way, (1,), "cpu")


def test_a_library_that_cannot_do_it_makes_a_variant_unavailable():
    def refuses():
        raise RuntimeError("cuDNN says no\nand\na long trace")

    with pytest.raises(Unavailable, match=r"^cuDNN says no$"):
        guards.tried(refuses)
    with pytest.raises(torch.OutOfMemoryError):
        guards.tried(raising(torch.OutOfMemoryError("full")))
    with pytest.raises(TypeError):  # a mistake of ours is no lack of the machine's
        guards.tried(raising(TypeError("oops")))


def test_a_compiler_that_is_missing_makes_a_variant_unavailable(monkeypatch):
    def compile_later(net, mode, dynamic):
        return raising(RuntimeError("no C++ compiler\nlong advice"))

    monkeypatch.setattr(torch, "compile", compile_later)
    with pytest.raises(Unavailable, match=r"^RuntimeError: no C\+\+ compiler$"):
        variants.compiled(torch.nn.ReLU(), torch.ones(1), "default")


def test_the_stage_copies_what_its_consumers_would():
    benchmark = stage.benchmark("cpu", "5b", 2, "float32", "NCHW")
    timed = {name: benchmark.variants[name]() for name in ("separate", "stacked", "copied")}
    with torch.no_grad():
        first, *others = timed["copied"]()
        assert not first.is_contiguous()
        assert all(part.is_contiguous() for part in others)
        assert not any(part.is_contiguous() for part in timed["stacked"]())


# Benchmarks of a module with few channels: against a reference, as a GPU would have them,
# and on another device than the CPU ("meta", which has shapes and no numbers).

TINY = (6, 4, 5, 4, 3, 2, 3, 4)  # a row of models.TABLE: channels in, size, widths
SHARES = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


@pytest.fixture
def drawn(monkeypatch):
    """A small row of the table, and the random inputs that were drawn since."""
    inputs, randn = [], torch.randn
    monkeypatch.setitem(models.TABLE, "tiny", TINY)
    monkeypatch.setattr(
        torch,
        "randn",
        lambda *size, **more: inputs.append(randn(*size, **more)) or inputs[-1],
    )
    return inputs


@pytest.fixture
def gpu(monkeypatch):
    """The CPU passes for a GPU: what would be in a CUDA graph is called, and says how
    often it would be in there."""

    def need_cuda(device):
        if device != "cpu":
            raise Unavailable("needs a CUDA device")

    def graphed(fn, times=1):
        replay = partial(fn)
        replay.times = replay.graph = times
        return replay

    monkeypatch.setattr(guards, "need_cuda", need_cuda)
    monkeypatch.setattr(timing, "graphed", graphed)
    monkeypatch.setitem(chains.WAYS, "graph", graphed)


@pytest.fixture
def uncompiled(monkeypatch):
    """Nothing is compiled, by torch or by Triton."""
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(variants, "compiled", lambda net, x, mode: partial(net, x))
    monkeypatch.setattr(variants, "in_two", lambda model, x, options: partial(model, x))


def agreed(benchmark, device="cpu"):
    """The variants of a benchmark, each of which computes what it must."""
    with torch.no_grad():
        return {
            name: measuring._checked(make, benchmark, device)[0]
            for name, make in benchmark.variants.items()
        }


def check(benchmark):
    """All variants agree; returns how often they are in a graph, those that are in one."""
    timed = agreed(benchmark)
    times = {
        name: variant.times for name, variant in timed.items() if hasattr(variant, "times")
    }
    assert benchmark.repeats == {name: n for name, n in times.items() if n > 1}
    assert set(times) == {name for name in timed if name.startswith("graph")}
    return set(times.values())


def siblings(*layers):
    """(weight, bias) in float64 of layers with random values, each with its own."""
    layers = [models.randomise(layer, seed).double() for seed, layer in enumerate(layers)]
    return [(layer.weight.detach(), layer.bias) for layer in layers]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_stage_is_the_three_siblings(layout, drawn, gpu):
    benchmark = stage.benchmark("cpu", "tiny", 2, "float32", layout)
    (x,) = drawn
    assert x.shape == (2, 6, 4, 4)
    for found, (weight, bias) in zip(
        benchmark.expected,
        siblings(*(nn.Conv2d(6, width, 1) for width in (5, 4, 2))),
        strict=True,
    ):
        product = torch.einsum("kc,nchw->nkhw", weight[:, :, 0, 0], x.double())
        timing.near(found, product + bias[:, None, None], 1e-12)
    assert benchmark.tolerance == 1e-5
    assert check(benchmark) == {20}
    ways = {"separate", "stacked", "copied"}
    assert set(benchmark.variants) == ways | {f"graph, {way}" for way in ways}


def test_the_stage_stacks_once_and_copies_in_its_own_layout(drawn):
    benchmark = stage.benchmark("cpu", "tiny", 2, "float32", "NHWC")
    timed = {name: benchmark.variants[name]() for name in ("separate", "stacked", "copied")}
    launches = {
        name: timing.count_launches(variant).count for name, variant in timed.items()
    }
    assert launches == {"separate": 3, "stacked": 1, "copied": 3}
    dense = partial(torch.Tensor.is_contiguous, memory_format=torch.channels_last)
    with torch.no_grad():
        assert [dense(part) for part in timed["copied"]()] == [False, True, True]


@pytest.mark.parametrize("windows", WINDOWS)
def test_embedding_is_each_window_with_an_edge_of_zeros(windows, drawn, gpu):
    benchmark = embedding.benchmark("cpu", windows, 3, 9, 2, "float32")
    (x,) = drawn
    assert x.shape == (2, 3, 9, 9)
    shapes = [tuple(map(int, name.split("×"))) for name in windows.split(", ")]
    layers = siblings(*(nn.Conv2d(3, 3, shape) for shape in shapes))
    for found, (weight, bias) in zip(benchmark.expected, layers, strict=True):
        timing.near(found, F.conv2d(x.double(), weight, bias, padding="same"), 1e-12)
    assert benchmark.tolerance == 1e-5
    assert check(benchmark) == {20}
    ways = {"separate", "embedded"}
    assert set(benchmark.variants) == {
        way for one in ways for way in (one, f"graph, {one}", f"{one}, no oneDNN")
    }
    assert timing.count_launches(benchmark.variants["separate"]()).count == len(shapes)
    assert timing.count_launches(benchmark.variants["embedded"]()).count == 1


def test_without_onednn_means_during_the_call_alone():
    assert torch.backends.mkldnn.enabled
    call = embedding.without_onednn("cpu", lambda: torch.backends.mkldnn.enabled)
    assert call() is False
    assert torch.backends.mkldnn.enabled
    with pytest.raises(ZeroDivisionError):
        embedding.without_onednn("cpu", lambda: 1 / 0)()
    assert torch.backends.mkldnn.enabled
    with pytest.raises(Unavailable, match=r"^oneDNN is for CPUs$"):
        embedding.without_onednn("cuda", torch.ones)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64")
    or not torch.backends.mkldnn.is_available(),
    reason="other builds of PyTorch choose otherwise",
)
@pytest.mark.parametrize("channels", [4, 16, 32])
@pytest.mark.parametrize("window", [(3, 3), (1, 7), (7, 1), (5, 5), (7, 7)])
def test_onednn_gets_the_windows_that_chapter_12_says(channels, window):
    """Both sides above 3, or one image of more than 20,480 numbers."""
    x, weight = torch.empty(1, channels, 28, 28), torch.empty(1, channels, *window)
    padding = [side // 2 for side in window]
    found = torch._C._select_conv_backend(
        x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1
    )
    wanted = min(window) > 3 or x.numel() > 20480
    assert str(found).endswith("Mkldnn") == wanted


def test_the_cost_of_embedding_is_that_of_its_products():
    """Two images of 7 × 7 are 98 positions; a float16 has two bytes."""
    ways = embedding.ways("1×7, 7×1", 16, 7, 2, "float16")
    inside, biased = 16 * 98, 98  # numbers read; additions and results a channel
    alone = cost.Kernel(
        16 * (2 * 7 * inside + biased), 2 * (inside + 16 * 16 * 7 + 16 + 16 * 98)
    )
    whole = cost.Kernel(
        32 * (2 * 49 * inside + biased), 2 * (inside + 32 * 16 * 49 + 32 + 32 * 98)
    )
    assert ways == {"separate": [alone, alone], "embedded": [whole]}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections_are_products_without_a_bias(name, drawn, gpu, monkeypatch):
    features, sizes = 10, {"q, k, v": (6, 6, 6)}.get(name, (7, 2, 3))
    monkeypatch.setitem(MODULES["projections"].PROJECTIONS, name, (features, sizes))
    benchmark = MODULES["projections"].benchmark("cpu", name, 4, "float32")
    (x,) = drawn
    assert x.shape == (4, 10)
    for seed, size in enumerate(sizes):
        weight = models.randomise(nn.Linear(10, size, bias=False), seed).weight.double()
        timing.near(benchmark.expected[seed], x.double() @ weight.T, 1e-12)
    assert benchmark.tolerance == 1e-5
    assert check(benchmark) == {20}
    assert set(benchmark.variants) == {
        way for one in ("separate", "stacked", "copied") for way in (one, f"graph, {one}")
    }
    with torch.no_grad():
        dense = [part.is_contiguous() for part in benchmark.variants["copied"]()()]
        assert dense == [True] * 3
        assert not any(part.is_contiguous() for part in benchmark.variants["stacked"]()())
    assert timing.count_launches(benchmark.variants["stacked"]()).count == 1


COMPILED = {"as written", "folded", "folded, stacked, hoisted"}
AUTOTUNED = {
    f"{name}, {variant}"
    for name in ("max-autotune", "graph, max-autotune")
    for variant in ("folded", "folded, stacked, hoisted")
}


def test_the_ladder_of_a_module(drawn, gpu, uncompiled, monkeypatch):
    monkeypatch.setattr(streams, "on_streams", lambda folded, x: partial(folded, x))
    benchmark = MODULES["module_ladder"].benchmark("cpu", "tiny", 2, "float32", "NHWC")
    model = models.randomise(models.Inception((6, 5, 4, 3, 2, 3, 4))).eval().double()
    with torch.no_grad():
        (expected,), (x,) = benchmark.expected, drawn
        timing.near(expected, model(x.double()), 1e-12)
    assert lies(given_to_layers(benchmark.variants["as written"]())[0], "NHWC")
    assert check(benchmark) == {20}
    assert benchmark.tolerance == 2e-5
    ways = {*STEPS, *variants.OURS}
    compiled = {f"compile, {variant}" for variant in COMPILED} | AUTOTUNED
    graphs = {f"graph, {way}" for way in ways}
    graphs |= {"graph, streams"}
    assert set(benchmark.variants) == ways | graphs | compiled | {"streams"}
    assert set(benchmark.opaque) == compiled | graphs | set(variants.OURS)


@pytest.mark.parametrize(
    ("device", "dtype", "layout", "thorough"),
    [
        ("cpu", "float32", "NHWC", True),
        ("meta", "float16", "NHWC", True),
        ("meta", "float16", "NCHW", False),
        ("meta", "float32", "NHWC", False),
    ],
)
def test_a_ladder_is_autotuned_where_the_book_compares_it(
    device, dtype, layout, thorough, drawn, uncompiled
):
    benchmark = MODULES["module_ladder"].benchmark(device, "tiny", 2, dtype, layout)
    assert AUTOTUNED & set(benchmark.variants) == (AUTOTUNED if thorough else set())
    assert {f"compile, {variant}" for variant in COMPILED} < set(benchmark.variants)
    assert benchmark.expected[0].device.type == device
    assert benchmark.tolerance == 2 * SHARES[dtype]
    with pytest.raises(Unavailable):
        benchmark.variants["streams"]()


class Little(nn.Module):
    """In place of GoogLeNet: an Inception module on few pixels."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(56)
        self.inception = models.Inception((3, 2, 3, 4, 2, 3, 2))

    def forward(self, x):
        return self.inception(self.pool(x)).mean(dim=(2, 3))


RUNTIMES = {"one": lambda net, x: partial(net, x), "other": unavailable}


def test_the_ladder_of_a_network(drawn, gpu, uncompiled, monkeypatch):
    monkeypatch.setitem(network.NETWORKS, "GoogLeNet", Little)
    monkeypatch.setattr(peers, "RUNTIMES", RUNTIMES)
    benchmark = network.benchmark("cpu", "GoogLeNet", 1, "float32", "NHWC")
    model = models.randomise(Little()).eval().double()
    with torch.no_grad():
        (expected,), (x,) = benchmark.expected, drawn
        timing.near(expected, model(x.double()), 1e-12)
    others = [name for name in benchmark.variants if name.startswith("other")]
    for name in others:
        with pytest.raises(Unavailable, match="left out"):
            benchmark.variants.pop(name)()
    assert check(benchmark) == {1}
    ways, ends = {*STEPS, variants.TWO}, ("as written", "folded, stacked, hoisted")
    compiled = {f"compile, {variant}" for variant in COMPILED} | AUTOTUNED
    graphs, runtime = {f"graph, {way}" for way in ways}, {f"one, {end}" for end in ends}
    assert set(benchmark.variants) == ways | graphs | compiled | runtime
    assert others == [f"other, {end}" for end in ends]
    assert set(benchmark.opaque) == compiled | graphs | runtime | {variants.TWO, *others}
    assert benchmark.tolerance == pytest.approx(2e-4)
    hoisted = benchmark.variants["one, folded, stacked, hoisted"]()
    written = benchmark.variants["one, as written"]()
    launches = [timing.count_launches(variant).count for variant in (written, hoisted)]
    assert launches == [22, 12]  # a pool and a mean more than a module


@pytest.mark.parametrize(
    ("device", "batch", "dtype", "thorough"),
    [
        ("cpu", 1, "float32", True),
        ("cpu", 4, "float32", False),
        ("meta", 1, "float16", True),
        ("meta", 1, "float32", False),
        ("meta", 4, "float16", False),
    ],
)
def test_a_network_is_autotuned_for_one_image(
    device, batch, dtype, thorough, drawn, uncompiled, monkeypatch
):
    monkeypatch.setitem(network.NETWORKS, "GoogLeNet", Little)
    monkeypatch.setattr(peers, "RUNTIMES", RUNTIMES)
    benchmark = network.benchmark(device, "GoogLeNet", batch, dtype, "NCHW")
    assert [x.shape for x in drawn] == [(batch, 3, 224, 224)]
    assert AUTOTUNED & set(benchmark.variants) == (AUTOTUNED if thorough else set())
    assert {f"compile, {variant}" for variant in COMPILED} < set(benchmark.variants)
    assert benchmark.expected[0].device.type == device
    if device == "meta":
        with pytest.raises(Unavailable, match=r"^compared on CPUs only$"):
            benchmark.variants["one, as written"]()


def test_the_networks_are_googlenet_and_that_of_torchvision(monkeypatch):
    monkeypatch.setattr(models, "GoogLeNet", lambda: "ours")
    theirs = SimpleNamespace(googlenet=lambda **options: options)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=theirs))
    monkeypatch.setitem(sys.modules, "torchvision.models", theirs)
    assert network.NETWORKS["GoogLeNet"]() == "ours"
    assert network.NETWORKS["torchvision"]() == {
        "weights": None, "init_weights": False, "aux_logits": False
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(
        Unavailable, match=r"^torchvision cannot be imported: .*torchvision"
    ):
        network.NETWORKS["torchvision"]()


def test_what_each_system_leaves(drawn, monkeypatch):
    told = []

    def inductor(net, x, **options):
        told.append(options)
        return leftover.eager(net, x)

    monkeypatch.setattr(models, "GoogLeNet", Little)
    monkeypatch.setattr(peers, "inductor", inductor)
    monkeypatch.setattr(peers, "RUNTIMES", {"one": leftover.eager})
    benchmark = leftover.benchmark("cpu", "GoogLeNet", 2)
    assert [x.shape for x in drawn] == [(2, 3, 224, 224)]
    assert benchmark.tolerance == pytest.approx(2e-4)
    with torch.no_grad():
        timing.near(
            benchmark.expected[0],
            models.randomise(Little()).eval().double()(drawn[0].double()),
            1e-12,
        )
    timed = agreed(benchmark)
    assert {name: benchmark.count(variant) for name, variant in timed.items()} == {
        "as written": 6,
        "torch.compile": 6,
        "torch.compile, freezing": 6,
        "torch.compile, combo kernels": 6,
        "one": 6,
        "this book": 4,
    }
    assert told == [{}, {"freezing": True}, {"combo_kernels": True}]


LAYERS_OF_CHECKS = {
    "three linear": ((1, 16), [nn.Linear(16, 16)] * 3),
    "three 1×1": ((1, 16, 8, 8), [nn.Conv2d(16, 16, 1)] * 3),
    "siblings of 3a": ((1, 192, 28, 28), [nn.Conv2d(192, n, 1) for n in (64, 96, 16)]),
}


@pytest.mark.parametrize("name", LAYERS_OF_CHECKS)
def test_the_checks_of_three_siblings(name, drawn):
    shape, layers = LAYERS_OF_CHECKS[name]
    benchmark = checks.benchmark("cpu", name, 1)
    (x,) = drawn
    assert x.shape == shape
    assert benchmark.tolerance == pytest.approx(2e-5)
    wanted = siblings(*map(copy.deepcopy, layers))
    for found, (weight, bias) in zip(benchmark.expected, wanted, strict=True):
        product = torch.einsum("kc,nc...->nk...", weight.flatten(1), x.double())
        timing.near(found, product + bias.view(-1, *(1,) * (x.ndim - 2)), 1e-12)
    assert counts_of_checks(benchmark) == {"separate": 3, "fused": 1, "lowered": 1}


def counts_of_checks(benchmark):
    """How many layers each variant computes; that `fused` checks, and `lowered` does not:
    while gradients are recorded, the one computes separately. All have the same ReLUs."""
    timed = agreed(benchmark)
    assert list(timed) == ["separate", "fused", "lowered"]
    layers, relus = {}, set()
    for name, call in timed.items():
        for recorded, inside in ((False, call), (True, torch.enable_grad()(call))):
            names = timing.count_launches(inside).names
            layers[name, recorded] = sum(n in ("convolution", "addmm") for n in names)
            relus.add(sum(n.startswith("relu") for n in names))
    assert len(relus) == 1
    assert layers["fused", True] == layers["separate", True]
    assert layers["lowered", True] == layers["lowered", False]
    return {name: layers[name, False] for name in timed}


def test_the_checks_of_a_module_and_a_network(drawn, monkeypatch):
    monkeypatch.setattr(models, "GoogLeNet", Little)
    for name, shape, tolerance, layers in (
        ("3a", (1, 192, 28, 28), 2e-5, (6, 4, 4)),
        ("GoogLeNet", (1, 3, 224, 224), 2e-4, (6, 4, 4)),
    ):
        benchmark = checks.benchmark("cpu", name, 1)
        assert drawn[-1].shape == shape
        assert benchmark.tolerance == pytest.approx(tolerance)
        found = counts_of_checks(benchmark)
        assert tuple(found.values()) == layers


def test_the_checks_are_of_as_many_groups_as_the_case_says():
    with pytest.raises(ValueError, match=r"^groups: expected 2 to be fused, got members"):
        checks.benchmark("cpu", "three linear", 2)


def test_other_runtimes_are_no_rivals_on_a_gpu(drawn, monkeypatch):
    monkeypatch.setattr(models, "GoogLeNet", Little)
    monkeypatch.setattr(peers, "RUNTIMES", RUNTIMES)
    benchmark = leftover.benchmark("meta", "GoogLeNet", 1)
    assert benchmark.expected[0].device.type == "meta"
    assert benchmark.variants["as written"]()().device.type == "meta"
    with pytest.raises(Unavailable, match=r"^compared on CPUs only$"):
        benchmark.variants["one"]()


def given_to_layers(call):
    """The inputs and parameters of the layers in a call, in order."""
    seen = []
    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda layer, inputs: seen.extend([*layer.parameters(recurse=False), *inputs])
    )
    with torch.no_grad(), hook:
        call()
    return seen


def lies(t, layout):
    """Whether images or filters have the strides of a layout, whatever their sizes."""
    form = variants.FORMATS[layout] if t.ndim == 4 else torch.contiguous_format
    return t.stride() == torch.empty(t.shape, memory_format=form, device="meta").stride()


ON_META = (
    ("stage", ("tiny", 2, "bfloat16", "NHWC")),
    ("stage", ("tiny", 2, "float16", "NCHW")),
    ("embedding", ("3×3, 5×5", 3, 5, 2, "float16")),
    ("embedding", ("1×7, 7×1", 3, 9, 2, "float32")),
    ("projections", ("q, k, v, grouped", 4, "float16")),
)


@pytest.mark.parametrize(("name", "case"), ON_META)
def test_everything_is_in_the_place_and_of_the_kind_that_was_asked_for(name, case, drawn):
    (dtype,) = SHARES.keys() & case
    layout = (
        {"float16": "NHWC", "float32": "NCHW"}[dtype] if name == "embedding" else case[-1]
    )
    benchmark = MODULES[name].benchmark("meta", *case)
    assert benchmark.tolerance == SHARES[dtype]
    assert {(t.device.type, t.dtype) for t in benchmark.expected} == {
        ("meta", torch.float64)
    }
    seen = given_to_layers(benchmark.variants["separate"]())
    assert {(t.device.type, str(t.dtype)) for t in seen} == {("meta", f"torch.{dtype}")}
    assert all(lies(t, layout) for t in seen)
    with torch.no_grad():
        outputs = benchmark.variants["separate"]()()
    assert [y.shape for y in outputs] == [y.shape for y in benchmark.expected]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_module_of_the_table_and_its_images(layout, drawn):
    model, x = variants.inception("tiny", 3, "bfloat16", "meta", layout)
    assert x.shape == (3, 6, 4, 4)
    assert not model.training
    assert x.is_contiguous(memory_format=variants.FORMATS[layout])
    weight = model.b3.conv.weight
    assert weight.is_contiguous(memory_format=variants.FORMATS[layout])
    for t in (x, weight):
        assert (t.device.type, t.dtype) == ("meta", torch.bfloat16)


def test_a_module_lies_in_the_usual_layout_of_torch_and_has_random_values(drawn):
    model, x = variants.inception("tiny", 2, "float32", "cpu")
    assert x.is_contiguous()
    same = models.randomise(models.Inception((6, 5, 4, 3, 2, 3, 4))).eval()
    with torch.no_grad():
        timing.near(model(x), same(drawn[0]), 1e-6)


def test_a_copy_moves_as_many_bytes_as_it_says(drawn):
    benchmark = ceilings.benchmark("cpu", "copy", bytes=2**12)
    (x,) = drawn
    assert 2 * x.numel() * x.itemsize == 2**12
    timing.agree(benchmark.expected[0], x)
    assert list(benchmark.variants) == ["copy"]
    assert benchmark.tolerance == 0
    y = agreed(benchmark)["copy"]()
    assert y.data_ptr() != x.data_ptr()
    benchmark = ceilings.benchmark("meta", "copy", bytes=2**12)
    assert {benchmark.expected[0].device, benchmark.variants["copy"]()().device} == {
        drawn[1].device
    }
    assert drawn[1].device.type == "meta"


@pytest.mark.parametrize("dtype", SHARES)
def test_a_product_is_of_two_random_squares(dtype, drawn):
    benchmark = ceilings.benchmark("cpu", "matmul", dtype=dtype, side=8)
    a, b = drawn[0].to(getattr(torch, dtype)).double()
    assert a.shape == b.shape == (8, 8)
    timing.near(benchmark.expected[0], torch.einsum("ij,jk->ik", a, b), 1e-12)
    assert list(benchmark.variants) == ["matmul"]
    assert benchmark.tolerance == SHARES[dtype]
    assert str(agreed(benchmark)["matmul"]().dtype) == f"torch.{dtype}"
    benchmark = ceilings.benchmark("meta", "matmul", dtype=dtype, side=8)
    assert benchmark.variants["matmul"]()().device.type == "meta"


# Chains of what does next to nothing.


@pytest.mark.parametrize(
    ("operator", "links"), [("abs", 1), ("conv", 1), ("module", 0), ("abs of none", 1)]
)
def test_a_chain_has_as_many_links_as_its_name_says(operator, links, gpu):
    benchmark = ceilings.benchmark("cpu", "empty", operator=operator, way="eager")
    assert benchmark.expected[0].shape == (1, 1, 1, 1)
    assert benchmark.expected[0].item() == 1
    assert (benchmark.calls, benchmark.tolerance, benchmark.watches) == (10, 0, {})
    assert list(benchmark.variants) == ["1", "10", "100"]
    check(benchmark)
    for n in ("1", "10"):
        assert timing.count_launches(benchmark.variants[n]()).count == links * int(n)
    benchmark = ceilings.benchmark("meta", "empty", operator=operator, way="eager")
    assert benchmark.expected[0].device.type == "meta"


def test_a_chain_of_absolute_values_asks_for_no_memory():
    call = chains.chains("abs", "eager", (2,), "cpu")["variants"]["2"]()
    assert call() is call()


def test_chains_without_a_kernel_compute_nothing(monkeypatch):
    """Every operator's operands are empty; and a module's chain has no operator."""
    sizes, called, absolute = [], [], torch.abs
    monkeypatch.setattr(
        torch, "abs", lambda x, out: sizes.append((x.numel(), out.numel())) or absolute(x)
    )
    monkeypatch.setattr(nn.Identity, "forward", lambda self, x: called.append(x) or x)
    for operator in chains.NO_KERNEL:
        chains.chains(operator, "eager", (3,), "cpu")["variants"]["3"]()()
    assert sizes == [(0, 0)] * 3
    assert len(called) == 3


@pytest.mark.parametrize(("way", "watch"), [("host", timing.host), ("graph", None)])
def test_a_chain_on_a_gpu(way, watch, gpu):
    benchmark = MODULES["launch_overhead"].benchmark("cpu", "conv", way)
    lengths = ["1", "2", "5", "10", "20", "50", "100", "200", "500", "1000"]
    assert list(benchmark.variants) == lengths
    assert benchmark.watches == (dict.fromkeys(lengths, watch) if watch else {})
    assert benchmark.calls == 10
    variant = agreed(benchmark)["5"]
    assert hasattr(variant, "times") == (way == "graph")
    assert timing.count_launches(variant).count == 5


@pytest.mark.parametrize("operator", ["abs", "conv"])
def test_a_chain_is_where_it_was_asked_for(operator):
    made = chains.chains(operator, "eager", (1,), "meta")
    call = made["variants"]["1"]()
    found = [*made["expected"], call(), *given_to_layers(call)]
    assert {t.device.type for t in found} == {"meta"}
    for way, device in (("graph", "mps"), ("graph", "cpu"), ("host", "cpu")):
        with pytest.raises(Unavailable, match=r"^needs a CUDA device$"):
            chains.chains(operator, way, (1,), device)
    made = chains.chains(operator, "host", (1,), "meta")  # its host does not wait for it
    assert made["watches"] == {"1": timing.host}


# Who works when.


@pytest.mark.parametrize(
    ("device", "ends"), [("cpu", {"host": 1.0}), ("cuda", {"host": 1.0, "device": 12.1})]
)
def test_a_stopwatch_notes_when_a_call_returned_and_when_it_was_done(
    device, ends, drawn, monkeypatch
):
    """A look at this clock takes 1.04 µs, and waiting for the device 10 µs."""
    now = [5000]

    def clock():
        now[0] += 1040
        return now[0] - 1040

    def synchronise(place):
        assert place == device
        now[0] += 10_000

    def on_cpu(row, batch, dtype, place, make=variants.inception):
        assert place == device
        return make(row, batch, dtype, "cpu")

    stopwatches = MODULES["stopwatches"]
    monkeypatch.setattr(variants, "inception", on_cpu)
    monkeypatch.setattr(timing, "synchronise", synchronise)
    monkeypatch.setattr(stopwatches, "time", SimpleNamespace(perf_counter_ns=clock))
    benchmark = stopwatches.benchmark(device, "tiny", 3, 2)
    assert benchmark.events == tuple(
        (lane, "call", pytest.approx(start), pytest.approx(start + end, abs=0.11))
        for start in (11.0, 34.2)
        for lane, end in ends.items()
    )
    assert drawn[0].shape == (3, 6, 4, 4)
    assert list(benchmark.variants) == ["as written"]
    assert benchmark.tolerance == 1e-5
    assert agreed(benchmark, device)


@pytest.mark.parametrize(
    ("variant", "launches"), [(variants.WRITTEN, 20), (variants.HOISTED, 10)]
)
def test_a_timeline_is_that_of_the_step_measured(variant, launches, drawn, monkeypatch):
    seen, event = [], ("host", "conv2d", 0.0, 1.0)
    monkeypatch.setattr(timing, "timeline", lambda *given: seen.append(given) or [event])
    benchmark = MODULES["timeline"].benchmark("cpu", "tiny", variant)
    assert not seen  # only after the benchmark
    assert benchmark.timeline() == [event]
    assert benchmark.tolerance == 1e-5
    assert [x.shape for x in drawn] == [(1, 6, 4, 4)]
    ((call, device),) = seen
    assert device == "cpu"
    assert list(benchmark.variants) == [variant]
    assert benchmark.variants[variant]() is call
    assert agreed(benchmark)
    assert timing.count_launches(call).count == launches
    benchmark = MODULES["timeline"].benchmark("meta", "tiny", variant)
    benchmark.timeline()
    assert benchmark.expected[0].device.type == "meta"
    assert seen[1][1] == "meta"


# Variants and rivals one by one.


def test_the_variants_of_a_ladder_get_what_their_names_say(gpu, monkeypatch):
    two = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(
        variants, "compiled", lambda net, x, mode: partial(net, f"{x}, {mode}")
    )
    monkeypatch.setattr(
        variants,
        "in_two",
        lambda net, x, options: two.append(net(x)) or partial(net, f"{x}, in two"),
    )
    nets = {variant: (lambda x, variant=variant: (variant, x)) for variant in STEPS}
    monkeypatch.setattr(variants, "in_one_call", lambda net, x: partial(net, x))
    made = {
        name: make() for name, make in variants.every(nets, "x", "cpu", times=7).items()
    }
    plain = {variant: (variant, "x") for variant in STEPS} | {
        variants.TWO: ("folded", "x, in two")
    }
    graphs = {f"graph, {name}": result for name, result in plain.items()}
    assert {name: call() for name, call in made.items()} == {
        **plain,
        **graphs,
        **{f"compile, {variant}": (variant, "x, default") for variant in COMPILED},
        **{
            f"{name}, {variant}": (variant, f"x, {mode}")
            for name, mode in (
                ("max-autotune", "max-autotune"),
                ("graph, max-autotune", "max-autotune-no-cudagraphs"),
            )
            for variant in ("folded", "folded, stacked, hoisted")
        },
    }
    assert {name: call.times for name, call in made.items() if hasattr(call, "times")} == {
        name: 7 for name in made if name.startswith("graph")
    }
    assert two == [("folded", "x")]  # its tiles are chosen once


def test_a_graph_of_a_ladder_has_one_call_unless_told_otherwise(
    gpu, uncompiled, monkeypatch
):
    nets = dict.fromkeys(STEPS, torch.relu)
    monkeypatch.setattr(variants, "in_one_call", lambda net, x: partial(net, x))
    made = variants.every(nets, torch.ones(1), "cpu", modes=["default"])
    assert made["graph, folded"]().times == 1
    assert not AUTOTUNED & set(made)


def test_no_operator_is_counted_in_what_was_compiled_or_is_in_a_graph():
    plain = ["as written", "folded", "folded, stacked, one call", "streams"]
    others = ["two launches", "graph, folded", "compile, folded", "OpenVINO, as written"]
    assert variants.opaque([*plain, *others]) == tuple(others)


def test_what_needs_a_gpu_is_made_on_a_gpu_alone():
    assert guards.on_cuda("cuda", lambda *given: given, 1, 2) == (1, 2)
    with pytest.raises(Unavailable, match=r"^needs a CUDA device$"):
        guards.on_cuda("cpu", raising(AssertionError("made")))


def test_a_network_is_compiled_once_for_its_shape(monkeypatch):
    told, calls = [], []

    def compile_now(net, **options):
        told.append((net, options))
        return lambda x: calls.append(x) or net(x)

    monkeypatch.setattr(torch, "compile", compile_now)
    net, x = nn.ReLU(), torch.tensor([-1.0, 2.0])
    call = variants.compiled(net, x, "max-autotune")
    assert told == [(net, {"mode": "max-autotune", "dynamic": False})]
    assert len(calls) == 1
    assert call().tolist() == [0, 2]


class OnGPU:
    """A tensor that says it is on a GPU."""

    is_cuda = True

    def __init__(self, tensor):
        self.tensor = tensor


def test_one_call_has_the_settings_of_its_convolution(monkeypatch):
    def of_cudnn(x, weight, bias, *settings):
        return torch.conv2d(x.tensor, weight, bias, *settings).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", of_cudnn)
    settings = {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1), "groups": 2}
    conv = models.randomise(nn.Conv2d(4, 6, (2, 3), **settings))
    x = torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    call = one_call.ConvReLU(conv)
    with torch.no_grad():
        expected = conv.double()(x.double()).relu()
        conv.float()
        timing.near(call(x), expected, 1e-5)
        timing.near(call(OnGPU(x)), expected, 1e-5)


@pytest.mark.parametrize(("refuses", "note"), [(1, "one call in 2 of 3 layers"), (3, None)])
def test_a_layer_that_the_library_refuses_is_two_calls(monkeypatch, refuses, note):
    """As cuDNN does with an image of three channels; the other layers stay one call."""
    asked = []

    def called(self, x):
        asked.append(self)
        if len(asked) <= refuses:
            raise RuntimeError("GET was unable to find an engine\nand more")
        return self.conv(x).relu()

    monkeypatch.setattr(one_call.ConvReLU, "called", called)
    convs = [models.randomise(nn.Conv2d(2, 2, 1), seed) for seed in range(3)]
    x = torch.randn(1, 2, 3, 3)
    net = nn.Sequential(*map(one_call.ConvReLU, convs))
    if note is None:
        with pytest.raises(Unavailable, match="no layer"):
            one_call.in_one_call(net, x)
        return
    call = one_call.in_one_call(net, x)
    made = len(asked)
    assert call.note() == note
    with torch.no_grad():
        expected = x.double()
        for conv in convs:
            expected = copy.deepcopy(conv).double()(expected).relu()
        timing.near(call(), expected, 1e-5)
    assert len(asked) == made + 2  # the one that refused is not asked again


def test_without_memory_no_layer_is_two_calls(monkeypatch):
    def called(self, x):
        raise torch.OutOfMemoryError("3 GiB")

    monkeypatch.setattr(one_call.ConvReLU, "called", called)
    with pytest.raises(torch.OutOfMemoryError):
        one_call.in_one_call(one_call.ConvReLU(nn.Conv2d(2, 2, 1)), torch.zeros(1, 2, 3, 3))


class Shown(nn.Module):
    """Convolutions of which only the first has a ReLU, and no other reader."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(2, 2, 1) for _ in range(3))
        self.relu, self.again, self.tanh = nn.ReLU(), nn.ReLU(), nn.Tanh()

    def forward(self, x):
        shown = self.second(self.relu(self.first(x)))
        return self.tanh(self.third(x)) + shown + self.again(shown)


def test_one_call_only_where_nobody_else_reads_the_convolution():
    model = models.randomise(Shown()).eval()
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    net = one_call.one_call(torch.fx.symbolic_trace(model))
    found = {path for path, m in net.named_modules() if isinstance(m, one_call.ConvReLU)}
    assert found == {"first"}
    assert isinstance(net.relu, nn.Identity)
    with torch.no_grad():
        timing.near(net(x), model(x), 1e-5)


# Ceilings, from a record that is made up.


def test_limits_are_read_from_the_record():
    cases = (
        records.Case({"what": "copy", "bytes": 1000}, {"copy": (1.0,)}),
        records.Case({"what": "copy", "bytes": 8000}, {"copy": (4.0,)}),
        records.Case(
            {"what": "matmul", "dtype": "float32", "side": 100}, {"matmul": (2.0,)}
        ),
        records.Case(
            {"what": "matmul", "dtype": "bfloat16", "side": 100}, {"matmul": (1.0,)}
        ),
        chain("conv", "eager", {"100": (504.0,), "20": (200.0,), "1": (9.0,)}),
        chain("conv", "graph", {"1": (1.0,), "100": (2.0,)}),
        chain("abs", "eager", {"1": (1.0,), "100": (3.0,)}),
        chain("abs", "graph", {"1": (4.0,), "10": (13.0,), "100": (103.0,)}),
    )
    for kind, kernel_s, overlaps in (("cpu", 0, False), ("cuda", 1e-6, True)):
        machine = records.Machine("m", kind, "M", "M", 1, "3", "2")
        made = records.Record(
            "ceilings", "?", machine, "2026-11-22", "", "", "", {}, cases
        )  # fmt: skip
        found = ceilings.limits(made, "float32")
        assert found.flops_per_s == pytest.approx(2 * 100**3 / 2e-6, rel=1e-9)
        assert found.bytes_per_s == pytest.approx(8000 / 4e-6, rel=1e-9)
        assert found.launch_s == pytest.approx(5e-6, rel=1e-9)
        assert found.kernel_s == pytest.approx(kernel_s, rel=1e-9)
        assert found.overlaps is overlaps


def test_the_limit_of_a_module_is_read_from_the_record():
    """The arithmetic of this machine costs nothing; a copy of 8000 bytes takes 4 µs."""
    matmul = {"what": "matmul", "dtype": "float16", "side": 10**6}
    cases = (
        records.Case({"what": "copy", "bytes": 8000}, {"copy": (4.0,)}),
        records.Case(matmul, {"matmul": (1e-3,)}),
        chain("conv", "eager", {"1": (9.0,), "100": (504.0,)}),
        chain("abs", "graph", {"1": (4.0,), "100": (301.0,)}),
    )
    machine = records.Machine("m", "cuda", "M", "M", 1, "3", "2")
    made = records.Record("ceilings", "?", machine, "2026-11-22", "", "", "", {}, cases)
    module = models.Inception.from_table("3a", batch_norm=False)
    weights = sum(p.numel() for p in module.parameters())
    numbers = weights + 2 * 28 * 28 * (192 + 256)
    case = {"module": "3a", "batch": 2, "dtype": "float16", "layout": "NHWC"}
    assert ceilings.module_us(made, **case) == pytest.approx(6 + 2 * numbers / 8000 * 4)


def chain(operator, way, samples):
    return records.Case({"what": "empty", "operator": operator, "way": way}, samples)


# Results: records, or measured now.


MACHINE = records.Machine("m", "cpu", "M", "M", 1, "3", "2")
CASE = records.Case({"n": 1}, {"a": (1.0,)})
MADE = records.Record(
    "stage", "?", MACHINE, "2026-11-22", "unknown", "0", "operators", {}, (CASE,)
)


@pytest.fixture
def ran(monkeypatch):
    """What was run, in place of records."""
    calls = []
    monkeypatch.delenv("HFUSION_LIVE", raising=False)
    monkeypatch.delenv("HFUSION_MACHINE", raising=False)

    def run(*given, **_):
        calls.append(given)
        return MADE

    monkeypatch.setattr(live, "KNOWN", {})
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(experiments, "run", run)
    monkeypatch.setattr(experiments, "here", lambda: "cpu")
    return calls


def test_results_are_records_unless_live(tmp_path, monkeypatch, ran):
    with pytest.raises(records.NotRecorded, match="has no record of stage: `LIVE = True`"):
        experiments.results("stage", tmp_path)
    measured = {"m": live.Measured(**vars(MADE))}
    assert experiments.results("stage", tmp_path, live=True) == measured
    monkeypatch.setenv("HFUSION_LIVE", "1")
    assert experiments.results("stage", tmp_path) == measured
    assert ran == [("stage", "cpu", 180)]  # the second time it is known
    monkeypatch.setenv("HFUSION_LIVE", "0")
    records.save(MADE, tmp_path)
    found = experiments.results("stage", tmp_path)
    assert [record.experiment for record in found.values()] == ["stage"]


def test_a_page_reads_the_first_record(tmp_path, monkeypatch, ran):
    """GPUs first, then by name; the machine that a reader names before all."""

    def first(**more):
        return experiments.result("stage", tmp_path, **more).machine.name

    for name, kind in (("b", "cpu"), ("a", "cpu"), ("z", "cuda"), ("y", "cuda")):
        machine = dataclasses.replace(MACHINE, name=name, kind=kind)
        records.save(dataclasses.replace(MADE, machine=machine), tmp_path)
    assert list(experiments.results("stage", tmp_path)) == ["y", "z", "a", "b"]
    assert (first(), first(kind="cpu"), first(kind="cuda")) == ("y", "a", "y")
    monkeypatch.setenv("HFUSION_MACHINE", "b")
    assert list(experiments.results("stage", tmp_path)) == ["b", "y", "z", "a"]
    assert (first(), first(kind="cpu"), first(kind="cuda")) == ("b", "b", "y")
    assert first(live=True) == "m"


def test_a_machine_that_is_not_there_is_refused(tmp_path, monkeypatch, ran):
    records.save(MADE, tmp_path)
    monkeypatch.setenv("HFUSION_MACHINE", "n")
    with pytest.raises(records.RecordError, match=r"HFUSION_MACHINE: .* \(m\), got n$"):
        experiments.result("stage", tmp_path)
    (tmp_path / "n").mkdir()  # it has records, but none of this experiment
    assert experiments.result("stage", tmp_path).machine.name == "m"


def test_without_a_record_a_page_reads_one_of_nothing(tmp_path, ran):
    assert experiments.result("stage", tmp_path) == records.nothing("stage")
    records.save(MADE, tmp_path)
    assert experiments.result("stage", tmp_path, kind="cuda") == records.nothing("stage")


@pytest.mark.parametrize("kind", [*experiments.ACCELERATORS, "mtia", None])
def test_the_device_at_hand_is_a_gpu_if_there_is_one(kind, monkeypatch):
    """A made-up `torch.accelerator`: None is a build that has none; a device that was
    built for may not be there."""
    found = kind and torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: bool(kind))
    known = kind in experiments.ACCELERATORS
    assert experiments.here() == (kind if known else "cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert experiments.here() == "cpu"


@pytest.mark.slow  # the page about the field counts them in GoogLeNet
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
def test_convolutions_are_counted_in_what_a_compiler_made():
    net = models.randomise(models.Digits()).eval()
    x = torch.randn(1, 1, 8, 8)
    try:
        timed = [peers.inductor(net, x), leftover.eager(net, x)]
    except Unavailable as error:
        pytest.skip(str(error))
    assert [leftover.convolutions(variant) for variant in timed] == [13, 13]
    with torch.no_grad():
        timing.near(timed[0](), timed[1](), 1e-4)


@pytest.mark.parametrize("runtime", peers.RUNTIMES.values(), ids=peers.RUNTIMES)
def test_convolutions_are_counted_in_what_a_runtime_made(runtime):
    net = models.randomise(models.Digits()).eval()
    x = torch.randn(1, 1, 8, 8)
    try:
        variant = runtime(net, x)
    except Unavailable as error:
        pytest.skip(str(error))
    assert variant.convolutions == 13
    with torch.no_grad():
        timing.near(variant()[0], net(x), 1e-4)


def test_a_record_of_counts_says_what_it_counted(monkeypatch):
    monkeypatch.setattr(peers, "inductor", unavailable)
    monkeypatch.setattr(peers, "RUNTIMES", {})
    made = experiments.run("leftover", "cpu")
    (case,) = made.cases
    assert made.counted == "convolutions"
    assert case.launches == {leftover.WRITTEN: 57, leftover.OURS: 39}


# What other libraries are told, by stand-ins for them.


# Rivals at their best: TF32, caches that are cold.


@pytest.fixture
def with_tf32(monkeypatch):
    """cuDNN's setting, off as the recorder has it, and what it was at each convolution."""
    seen, conv2d = [], F.conv2d

    def noted(*given, **more):
        seen.append(torch.backends.cudnn.allow_tf32)
        return conv2d(*given, **more)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(F, "conv2d", noted)
    return seen


@pytest.fixture
def small_cache(monkeypatch):
    """A device whose cache holds 10,000 bytes."""
    facts = SimpleNamespace(L2_cache_size=10_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    return facts


def rivals_of(what, monkeypatch):
    monkeypatch.setattr(streams, "on_streams", lambda folded, x: partial(folded, x))
    return MODULES["rivals"].benchmark("cpu", what, "tiny", 2, "float32", "NHWC")


FIVE = {"as written", "folded", "folded, stacked, hoisted", "folded, stacked, one call",
        "two launches"}  # fmt: skip


def each(names):
    return {f"{graph}{name}" for name in names for graph in ("", "graph, ")}


def test_a_module_of_many_images_beside_its_branches_in_a_graph(
    drawn, gpu, uncompiled, monkeypatch
):
    benchmark = rivals_of("batch", monkeypatch)
    assert set(benchmark.variants) == each(FIVE) | {"graph, streams"}
    assert check(benchmark) == {20}
    assert benchmark.tolerances == {}


def test_with_tf32_and_without_are_told_apart(
    with_tf32, drawn, gpu, uncompiled, monkeypatch
):
    benchmark = rivals_of("tf32", monkeypatch)
    rounded = each(f"{name}, TF32" for name in FIVE)
    assert set(benchmark.variants) == each(FIVE) | rounded
    assert benchmark.tolerances == dict.fromkeys(rounded, 8e-3)
    check(benchmark)
    graphed = timing.graphed

    def capture(fn, times):
        fn()
        return graphed(fn, times)

    monkeypatch.setattr(timing, "graphed", capture)
    for name, make in benchmark.variants.items():
        with_tf32.clear()
        variant = make()
        if not name.startswith("graph"):
            variant()
        assert set(with_tf32) <= {name in rounded}
        assert with_tf32 or "one call" in name
        assert not torch.backends.cudnn.allow_tf32
    with pytest.raises(ZeroDivisionError), circumstances.tf32_on():
        raise ZeroDivisionError
    assert not torch.backends.cudnn.allow_tf32


def test_a_layer_refused_in_float32_may_go_with_tf32(drawn, gpu, uncompiled, monkeypatch):
    benchmark = rivals_of("tf32", monkeypatch)
    plain, rounded = (
        benchmark.variants[f"folded, stacked, one call{tail}"]() for tail in ("", ", TF32")
    )
    layers = [m for m in plain.func.modules() if isinstance(m, one_call.ConvReLU)]
    others = [m for m in rounded.fn.func.modules() if isinstance(m, one_call.ConvReLU)]
    assert layers
    assert others
    assert not {id(m) for m in layers} & {id(m) for m in others}


def test_a_graph_has_its_tf32_inside():
    def made():
        assert torch.backends.cudnn.allow_tf32
        variant = partial(int)
        variant.graph = "a graph"
        return variant

    assert circumstances.in_tf32(made).graph == "a graph"


def test_in_cold_caches_each_call_reads_others(
    small_cache, drawn, gpu, uncompiled, monkeypatch
):
    benchmark = rivals_of("cold", monkeypatch)
    colds = each(f"{name}, cold" for name in FIVE)
    assert set(benchmark.variants) == each(FIVE) | colds
    (x,) = drawn
    number = benchmark.repeats["graph, folded, cold"]
    assert number > 2
    small_cache.L2_cache_size = 10**6
    assert circumstances.copies(nn.ReLU(), x.expand(2, *x.shape), "cuda") == pytest.approx(
        2e6 / 2 / x.nbytes, abs=1
    )
    assert check(benchmark) == {20, number}
    for name in FIVE:
        variant = benchmark.variants[f"{name}, cold"]()
        assert variant.note().startswith(f"{number} copies in turn")
        reads, outputs = [], []
        for call in variant.calls:
            tensors = [*call.func.parameters(), *call.args]
            reads.append({t.untyped_storage().data_ptr(): t.nbytes for t in tensors})
            outputs.append(variant())
        assert len(set().union(*reads)) == sum(map(len, reads))
        assert sum(sum(read.values()) for read in reads) >= 2 * 10_000
        assert all(torch.equal(y, outputs[0]) for y in outputs)


def test_what_is_cold_takes_turns():
    made = circumstances.rotated(lambda: partial(nn.Identity(), torch.zeros(2)), 3)
    first = [made().data_ptr() for _ in range(3)]
    assert len(set(first)) == 3
    assert [made().data_ptr() for _ in range(3)] == first


def test_a_cache_of_unknown_size_is_none(small_cache):
    del small_cache.L2_cache_size
    with pytest.raises(Unavailable, match="does not say how large the cache is"):
        circumstances.copies(nn.ReLU(), torch.zeros(1), "cuda")


@pytest.mark.parametrize("what", ["tf32", "cold"])
def test_rivals_are_for_cuda(what):
    with pytest.raises(Unavailable, match=r"^needs a CUDA device$"):
        MODULES["rivals"].benchmark("cpu", what, "3a", 1, "float32", "NCHW")


def test_two_launches_in_cold_caches_are_tuned_once(tuned):
    model = models.randomise(models.Inception((6, 5, 4, 5, 3, 5, 5))).eval()
    x = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last)
    with torch.no_grad():
        variant = circumstances.rotated(partial(variants.in_two, model, x), 3)
        for _ in range(3):
            timing.near(variant(), variants.exact(model, x)[0], 1e-5)
    assert len(tuned) == 1
    assert variant.note().startswith("3 copies in turn, tiles ")


# Names and times of kernels.


@pytest.mark.parametrize("name", ["folded, stacked, hoisted", "two launches"])
def test_a_step_leaves_a_timeline_of_itself(name, drawn, gpu, uncompiled, monkeypatch):
    asked = []
    monkeypatch.setattr(
        timing, "timeline", lambda variant, device: asked.append(variant) or []
    )
    benchmark = MODULES["kernel_times"].benchmark("cpu", "tiny", name, "float32", "NHWC")
    (variant,) = agreed(benchmark).values()
    assert set(benchmark.variants) == {name}
    assert asked == []
    benchmark.timeline()
    assert asked == [variant]


def test_branches_wait_for_the_input_and_are_waited_for(monkeypatch):
    """In place of CUDA's streams: who waits for whom, and who computes what."""
    log, made, current = [], itertools.count(1), ["main"]

    class Stream:
        def __init__(self, name=None):
            self.name = name or next(made)

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def stream(side):
        current.append(side.name)
        yield
        current.pop()

    def branch(number, x):
        log.append(f"{current[-1]} computes {number}")
        return x + number

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(
        streams, "branches", lambda net: [partial(branch, net + n) for n in range(4)]
    )
    forward = streams.on_streams(10, torch.zeros(2, 1))
    assert forward().tolist() == [[10, 11, 12, 13]] * 2
    pairs = [(f"{n} waits for main", f"{n} computes {9 + n}") for n in (1, 2, 3, 4)]
    ends = [f"main waits for {n}" for n in (1, 2, 3, 4)]
    assert log == [*itertools.chain(*pairs), *ends]


def mallopt(monkeypatch, *answers):
    """What is told to a stand-in for glibc's mallopt, which answers so."""
    told, answers = [], list(answers)
    library = SimpleNamespace(
        mallopt=lambda *setting: told.append(setting) or answers.pop()
    )
    monkeypatch.setattr(ctypes, "CDLL", {"libc.so.6": library}.__getitem__)
    return told


def test_glibc_is_told_to_keep_memory(monkeypatch):
    """malloc.h: M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD -3."""
    told = mallopt(monkeypatch, 1, 1)
    memory.keep()
    assert sorted(told) == [(-3, 2**30), (-1, 2**30)]


@pytest.mark.parametrize("answers", [(0, 1), (1, 0)])
def test_a_setting_that_glibc_refuses_is_unavailable(answers, monkeypatch):
    mallopt(monkeypatch, *answers)
    with pytest.raises(Unavailable, match=r"^glibc refused the setting$"):
        memory.keep()


@pytest.mark.parametrize("library", [raising(OSError("no such file")), lambda name: None])
def test_memory_is_kept_with_glibc_alone(library, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", library)
    with pytest.raises(Unavailable, match=r"^needs glibc$"):
        memory.keep()


@pytest.mark.parametrize("how", ["as it comes", "kept"])
def test_memory_is_kept_where_the_case_says_so(how, drawn, monkeypatch):
    kept = []
    monkeypatch.setattr(memory, "keep", lambda: kept.append(True))
    benchmark = memory.benchmark("cpu", how, "tiny", 3, "NHWC")
    assert bool(kept) == (how == "kept")
    assert list(benchmark.variants) == ["separate", "stacked", "copied"]
    assert benchmark.tolerance == 1e-5
    assert [y.shape for y in benchmark.expected] == [
        (3, width, 4, 4) for width in (5, 4, 2)
    ]
    timed = agreed(benchmark)
    assert all(lies(t, "NHWC") for t in given_to_layers(timed["separate"]))
    launches = {
        name: timing.count_launches(variant).count for name, variant in timed.items()
    }
    assert launches == {"separate": 3, "stacked": 1, "copied": 3}
    with pytest.raises(Unavailable, match=r"^PyTorch keeps a GPU's memory itself$"):
        memory.benchmark("cuda", how, "3a", 1, "NCHW")


PICTURE = torch.tensor([-1.0, 2.0])


@pytest.fixture
def exported(monkeypatch):
    """In place of ONNX and its exporter; what the exporter was given."""
    given = []

    def export(*args, **options):
        warnings.warn("about itself", stacklevel=1)
        given.append((args, options))
        return SimpleNamespace(save=lambda file: file.write(b"in ONNX"))

    def load(path):
        assert Path(path).read_bytes() == b"optimised"
        kinds = ("Conv", "FusedConv", "Relu", "ConvTranspose")
        nodes = [SimpleNamespace(op_type=kind) for kind in kinds]
        return SimpleNamespace(graph=SimpleNamespace(node=nodes))

    monkeypatch.setitem(sys.modules, "onnx", SimpleNamespace(load=load))
    monkeypatch.setitem(sys.modules, "onnxscript", SimpleNamespace())
    monkeypatch.setattr(torch.onnx, "export", export)
    return given


def check_export(exported, net):
    ((args, options),) = exported
    assert args[0] is net
    assert args[1][0] is PICTURE
    assert len(args[1]) == 1
    assert options == {"dynamo": True, "verbose": False}


def test_onnx_runtime_gets_as_many_threads_and_lets_go_of_them(exported, monkeypatch):
    net, made = nn.ReLU(), []

    class Options(SimpleNamespace):
        def add_session_config_entry(self, name, value):
            setattr(self, name, value)

    class Session:
        def __init__(self, model, options, providers):
            assert (model, providers) == (b"in ONNX", ["CPUExecutionProvider"])
            Path(options.optimized_model_filepath).write_bytes(b"optimised")
            made.append(options)

        def get_inputs(self):
            return [SimpleNamespace(name="picture")]

        def run(self, outputs, inputs):
            assert outputs is None
            return [net(torch.from_numpy(inputs["picture"])).numpy()]

    runtime = SimpleNamespace(SessionOptions=Options, InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    variant = peers.onnx_runtime(net, PICTURE)
    assert [y.tolist() for y in variant()] == [[0, 2]]
    assert variant.convolutions == 2
    check_export(exported, net)
    (options,) = made
    folder = Path(vars(options).pop("optimized_model_filepath")).parent
    assert not folder.exists()
    assert vars(options) == {
        "intra_op_num_threads": 7,
        "session.intra_op.allow_spinning": "0",
        "log_severity_level": 3,  # errors
    }


def test_openvino_computes_in_float32_with_as_many_threads(exported, monkeypatch):
    net, told = nn.ReLU(), []
    kinds = [np.array(kind) for kind in ["Convolution"] * 2 + ["Reorder"] * 3]

    class Compiled:
        def __call__(self, array):
            return {"y": net(torch.from_numpy(array)).numpy()}

        def get_runtime_model(self):
            infos = [{"layerType": kind} for kind in kinds]
            nodes = [SimpleNamespace(get_rt_info=lambda info=info: info) for info in infos]
            return SimpleNamespace(get_ops=lambda: nodes)

    runtime = SimpleNamespace(
        Core=lambda: SimpleNamespace(read_model=lambda model: model.decode()),
        compile_model=lambda *given: told.append(given) or Compiled(),
    )
    monkeypatch.setitem(sys.modules, "openvino", runtime)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    variant = peers.openvino(net, PICTURE)
    assert [y.tolist() for y in variant()] == [[0, 2]]
    assert variant.convolutions == 2
    check_export(exported, net)
    settings = {
        "INFERENCE_NUM_THREADS": 7,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    assert told == [("in ONNX", "CPU", settings)]


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (peers.onnx_runtime, "onnxruntime"),
        (peers.openvino, "openvino"),
        (peers._onnx, "onnx"),
        (peers._onnx, "onnxscript"),
    ],
)
def test_a_runtime_that_is_not_installed_is_unavailable(
    make, missing, exported, monkeypatch
):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(Unavailable, match=rf"^{missing} is not installed$"):
        make(nn.ReLU(), PICTURE)
    assert not exported


GENERATED = """
# Topologically Sorted Source Nodes: [conv2d], Original ATen: [aten.convolution]
buf1 = extern_kernels.convolution(arg2_1, arg0_1, stride=(1, 1))
buf2 = torch.ops.mkldnn._convolution_pointwise(buf1, arg1_1, None)
buf3 = extern_kernels.addmm(buf2, arg3_1)
"""


@pytest.fixture
def generating(monkeypatch):
    """In place of Inductor, which takes seconds; what torch.compile was told."""
    told, programs = [], [GENERATED, GENERATED]

    def run_and_get_code(compiled, *args):
        assert not torch.is_grad_enabled()
        return compiled(*args), programs

    def compile_later(net, **options):
        told.append(options)
        return net

    helpers = SimpleNamespace(run_and_get_code=run_and_get_code)
    monkeypatch.setitem(sys.modules, "torch._inductor.utils", helpers)
    # Not as an attribute: looking for it would import it.
    monkeypatch.setitem(vars(torch), "_dynamo", SimpleNamespace(reset=lambda: None))
    monkeypatch.setattr(torch, "compile", compile_later)
    return told, programs


def test_convolutions_are_counted_in_generated_code(generating):
    told, _ = generating
    variant = peers.inductor(nn.ReLU(), PICTURE, freezing=True)
    assert told == [{"options": {"freezing": True}}]
    assert variant.convolutions == 4
    assert variant().tolist() == [0, 2]


def test_generated_code_without_a_known_convolution_is_not_counted(generating):
    _, programs = generating
    programs[:] = ["buf0 = extern_kernels.mm(arg0_1, arg1_1)"]
    with pytest.raises(Unavailable, match=r"^the code it generated has no conv"):
        peers.inductor(nn.ReLU(), PICTURE)
    with pytest.raises(Unavailable, match=r"^RuntimeError: no C\+\+$"):
        peers.inductor(raising(RuntimeError("no C++")), PICTURE)
