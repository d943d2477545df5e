"""arithmetic.py and predictions: by hand, against other counts, and the frozen file."""

import hashlib
import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from hfusion import models
from hfusion.timing import cost, eager
from sideways import arithmetic
from sideways.arithmetic import INPUTS, LEFT_OUT, Input
from sideways.experiments import chains, network, stage, variants
from sideways.predictions import __main__ as writing
from sideways.predictions import lanes, programs, ranges
from sideways.predictions.times import ladder_us, siblings_us, variants_us
from sideways.predictions.works import ladder, siblings, whole

HALF = {"batch": 1, "dtype": "float16", "layout": "NHWC"}
MIDDLE = SimpleNamespace(**{name: given.middle for name, given in INPUTS.items()})


def at(**changed):
    return SimpleNamespace(**vars(MIDDLE) | changed)


# Inputs.


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_has_a_range_and_a_source(name):
    given = INPUTS[name]
    assert given.low <= given.middle <= given.high
    assert given.what
    assert given.source.endswith("judgement") or given.low == given.middle == given.high
    assert given.source.startswith(("judgement", "https://"))


@pytest.fixture(scope="module")
def small():
    """A case of each experiment: [(experiment, parameters, its programs)]."""
    chosen = [
        ("module_ladder", {"module": "3a"} | HALF),
        (
            "module_ladder",
            {"module": "5b", "batch": 1, "dtype": "float32", "layout": "NCHW"},
        ),
        ("module_ladder", {"module": "3a"} | HALF | {"batch": 32}),
        ("stage", {"module": "3a", "batch": 128, "dtype": "float32", "layout": "NCHW"}),
        *(("launch_overhead", {"operator": "abs", "way": w}) for w in chains.WAYS),
    ]
    return [(e, p, ranges.EXPERIMENTS[e][0](p)) for e, p in chosen]


def times(small, values):
    """Every time of these cases, for one value of each input."""
    found = {}
    for experiment, parameters, works in small:
        _, us = ranges.EXPERIMENTS[experiment]
        for variant, time in us(parameters, works, values).items():
            found[experiment, json.dumps(parameters), variant] = time
    return found


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_matters_and_more_of_it_goes_one_way(small, name):
    given = INPUTS[name]
    ends = [given.low, given.high] if given.low < given.high else [0.5, 2]
    if given.low == given.high:
        ends = [end * given.middle for end in ends]
    low, high = (times(small, at(**{name: end})) for end in ends)
    changed = {key for key in low if low[key] != high[key]}
    assert changed
    if given.low < given.high:
        assert len({low[key] < high[key] for key in changed}) == 1


# Formulas, by hand.


def test_a_product_that_waits():
    """One pixel: one program, whatever the tile, with 10 steps of 64, by itself."""
    own = {"cudnn_step": 1.0, "node": 0, "fill": 0, "start": 0, "cudnn_start": 0}
    us = arithmetic.product_us((1, 1, 640, 0), "float16", at(**own))
    assert us == pytest.approx(10 * 0.75)


def test_a_product_that_keeps_the_gpu_busy():
    """132 · 100 tiles of 256 × 128 leave no multiprocessor idle: FLOPs over rate."""
    own = {"cudnn_step": 0, "node": 1, "fill": 2, "start": 3, "cudnn_start": 4}
    shape = 132 * 100 * 256, 128, 640
    us = arithmetic.product_us((*shape, 0), "float16", at(**own))
    assert us == pytest.approx(10 + 1e6 * 2 * math.prod(shape) / (989e12 * 0.55))


def test_a_product_that_moves_more_than_it_computes():
    own = {"node": 0, "fill": 0, "start": 0, "cudnn_start": 0}
    us = arithmetic.product_us((1, 1, 1, 1e9), "float32", at(**own))
    assert us == pytest.approx(1e6 * 1e9 / (4.8e12 * 0.85))


def test_waves_and_the_busiest_multiprocessor():
    one = SimpleNamespace(multiprocessors=10)
    # 25 programs of 2 steps; 10 multiprocessors, each holding one: 3 waves.
    assert arithmetic.tiled([(25, 1, 8)], (1, 1, 4), 1, one) == (6, 6)
    # Each holding three: one wave, in which five have three programs.
    assert arithmetic.tiled([(25, 1, 8)], (1, 1, 4), 3, one) == (2, 6)
    # Five that do nothing count as programs: 3 each of 30, 50 steps in all.
    assert arithmetic.tiled([(25, 1, 8)], (1, 1, 4), 3, one, idle=5) == (2, 5)
    # Sums in two parts: twice the programs, half the steps.
    assert arithmetic.tiled([(25, 1, 8)], (1, 1, 4), 10, one, parts=2) == (1, 5)


def test_a_launch_of_ours_by_hand():
    """3a's second launch in tiles of 32 × 32 × 128: 25 · (4 + 1 + 1) programs, 7 steps in
    the longest, each as long as its instructions and what is left of the wait."""
    tile = (32, 32, 128, 4, 3)
    code = arithmetic.CODE["_second", "float16", tile]
    widths = (192, 64, 96, 128, 16, 32, 32)
    own = {"node": 0, "fill": 0, "start": 0, "stall": 2, "clock": 1000, "arrive": 5}
    us = arithmetic.launch_us(1, tile, widths, 784, at(**own))
    alone = 2 * code.issued / 1000
    assert us == pytest.approx(7 * (alone + 5 - (code.buffers - 1) * alone))
    busy = own | {"stall": 0, "arrive": 0, "issue": 100}
    us = arithmetic.launch_us(1, tile, widths, 784, at(**busy))
    steps = 25 * (4 * 7 + 4 + 2) / 150
    assert us == pytest.approx(2 * steps * code.issued * 100 / 1000)


def test_a_split_and_a_dependent_launch():
    widths = (832, 384, 192, 384, 48, 128, 128)
    plain = arithmetic.two_us(widths, 49, MIDDLE)
    split = arithmetic.two_us(widths, 49, at(reduce=0), splits="natural")
    assert split < plain
    dependent = arithmetic.two_us(widths, 49, MIDDLE, dependent=True)
    assert dependent == pytest.approx(plain - MIDDLE.dependent)


def test_what_a_split_saves_by_hand():
    """5a's deepest sum has 12 steps of 128; in 6 parts, two."""
    tile, widths = (32, 32, 128, 4, 3), (832, 256, 160, 320, 32, 128, 128)
    own = at(node=0, fill=0, start=0, reduce=0)
    plain, split = (
        arithmetic.launch_us(1, tile, widths, 49, own, splits) for splits in (1, "natural")
    )
    assert split == pytest.approx(plain / 6)


def test_the_hinge():
    values = SimpleNamespace(replay=6, between=3, node=1)
    assert [arithmetic.hinge_us(n, values) for n in (1, 3, 4)] == [6, 6, 7]


# Ranges.


def ranges_of(evaluate, **inputs):
    given = {k: Input(*ends, "", "") for k, ends in inputs.items()}
    return arithmetic.ranges(evaluate, given)


def test_independent_errors_add_up_as_squares():
    left_out = math.log(LEFT_OUT["us"])
    low, middle, high = ranges_of(
        lambda v: {("us", "x"): v.a * v.b / v.c}, a=(1, 2, 6), b=(5, 5, 10), c=(1, 1, 4)
    )["us", "x"]
    assert middle == 10
    up = math.hypot(math.log(3), math.log(2), left_out)
    down = math.hypot(math.log(2), math.log(4), left_out)
    assert (low, high) == pytest.approx((10 / math.exp(down), 10 * math.exp(up)))


def test_a_ratio_is_not_less_certain_than_what_cancels_in_it():
    found = ranges_of(
        lambda v: {("us", "x"): v.a, ("gains", "x / y"): 3 * v.a / v.a}, a=(1, 10, 100)
    )
    assert found["gains", "x / y"] == pytest.approx((3 / 1.07, 3, 3 * 1.07))
    assert found["us", "x"][0] < 1


# Against other counts.


@pytest.mark.parametrize("dtype", variants.USUAL)
def test_as_many_kernels_as_cost_counts(dtype):
    layout = variants.USUAL[dtype]
    parameters = {"module": "4c", "batch": 1, "dtype": dtype, "layout": layout}
    nets = variants.eager(models.Inception.from_table("4c").eval())
    works = ladder(parameters)
    counted = ranges.counts(works, "module_ladder", parameters)
    for name, net in nets.items():
        n = cost.kernels(net, dtype, layout, 1)
        assert works[name]["kernels"] == n
        assert works[name]["small"] + len(works[name]["products"]) == n
        assert counted[name][:2] == counted[f"graph, {name}"][:2] == [n, n]


@pytest.mark.parametrize("layout", variants.FORMATS)
def test_a_stage_has_the_flops_and_bytes_that_cost_counts(layout):
    parameters = {"module": "3b", "batch": 8, "dtype": "float32", "layout": layout}
    works = siblings(parameters)
    c_in, size, w1, r3, _, r5, *_ = models.TABLE["3b"]
    sizes = (w1, r3, r5)
    ways = cost.stage(sizes, c_in, 8 * size**2, 4, (), (r3, r5), bias_apart=True)
    for way, kernels in ways.items():
        whole = cost.merged(*kernels)
        found = works[way]
        flops = sum(2 * p * k * d for p, k, d, _ in found["products"])
        moved = found["moved"] + sum(product[-1] for product in found["products"])
        biases = 8 * size**2 * sum(sizes)  # one addition each
        assert flops + biases == whole.flops
        # The bias is read by the kernel that adds it; here it is a part of the product.
        assert moved == whole.bytes
        assert found["kernels"] == len(kernels)


def test_what_is_outside_of_the_modules():
    """GoogLeNet has three convolutions outside of its modules, two poolings between them,
    two further ones, and a head of two kernels."""
    case = {"network": "GoogLeNet", "batch": 1, "dtype": "float32", "layout": "NCHW"}
    works = whole(case)
    outside = works["outside"]
    assert len(outside["products"]) == 3
    assert outside["products"][0][:3] == [112 * 112, 64, 3 * 7 * 7]
    assert (outside["kernels"], outside["others"]) == (3 * 3 + 4 + 2, 3 + 4 + 2)
    assert len(works[variants.WRITTEN]["products"]) == 57
    assert len(works[variants.HOISTED]["products"]) == 39


def test_a_pooling_writes_indices_too():
    pool = eager.operators(nn.MaxPool2d(3, 1, 1), "float16", "NHWC", 1, (8, 5, 5))
    found = programs.work(pool, 2)
    assert (found["pools"], found["small"]) == (1, 1)
    assert found["moved"] == 200 * (2 + 2 + 8)
    waits = arithmetic.device_us(found, "float16", at(node=1, fill=2, pool=10))
    assert waits == pytest.approx(13 + arithmetic.bytes_us(found["moved"], MIDDLE))


def test_half_in_nchw_is_turned_round_inside():
    conv = {"x": nn.Conv2d(8, 4, 1)}
    given = {"batch": 1, "dtype": "float16", "layout": "NCHW"}
    (turned,) = programs.of(conv, given, (8, 5, 5)).values()
    (plain,) = programs.of(conv, given | {"layout": "NHWC"}, (8, 5, 5)).values()
    assert turned["kernels"] == plain["kernels"] == 2
    assert turned["small"] == plain["small"] + 2
    assert turned["moved"] > plain["moved"]


def test_a_convolution_says_what_it_reads_and_writes():
    (conv,) = eager.operators(
        nn.Conv2d(8, 4, 3, padding=1), "float32", "NCHW", 2, (8, 5, 7)
    )
    assert conv.product == (2 * 5 * 7, 4, 8 * 9)
    assert conv.read == 2 * 8 * 35 + 4 * 8 * 9 + 4
    assert conv.written == 2 * 4 * 35


# The variants are those of the experiments.


def test_the_variants_of_a_ladder_are_those_that_are_measured(small):
    _, parameters, works = small[0]
    found = ranges.predicted("module_ladder", parameters, works)
    model, x = variants.inception("3a", 1, "float32", "cpu")
    measured = variants.every(
        variants.eager(model), x, "cuda", variants.MODES, variants.TIMES, variants.OURS
    )
    assert set(found["us"]) == set(measured) | {"streams"}
    assert set(found["kernels"]) == set(measured)


def test_a_gain_is_how_much_faster_a_variant_is(small):
    _, parameters, works = small[0]
    found = ranges.predicted("module_ladder", parameters, works)
    us = found["us"]
    for name, (_, middle, _) in found["gains"].items():
        variant, base = name.split(" / ")
        assert middle == pytest.approx(us[base][1] / us[variant][1], rel=0.01)
    assert found["gains"][f"{ranges.LAST} / graph, as written"][1] > 1


def test_the_device_decides_where_the_host_is_faster(small):
    """128 images in float32: eager is as long as a graph, and a replay comes on top."""
    _, parameters, works = small[3]
    us = siblings_us(parameters, works, MIDDLE)
    assert us["separate"] == us["graph, separate"] > 100
    single = variants_us(works, "float32", MIDDLE, between=7)
    assert single["graph, separate"] == single["separate"] + 7


def test_the_variants_of_a_stage_are_those_that_are_measured(small):
    _, parameters, works = small[3]
    found = ranges.predicted("stage", parameters, works)
    benchmark = stage.benchmark("cpu", "3a", 1, "float32", "NCHW")
    assert set(found["us"]) == set(benchmark.variants)
    assert {name.split(" / ")[1] for name in found["gains"]} == {
        "separate",
        "graph, separate",
    }


def test_the_cases_are_cases_of_the_experiments():
    listed = writing.cases()
    assert {name: len(each) for name, each in listed.items()} == {
        "module_ladder": 20,
        "stage": 288,
        "launch_overhead": 3,
        "network": 6,
    }
    for name, each in listed.items():
        module = __import__(f"sideways.experiments.{name}", fromlist=["cases"])
        known = module.cases("cuda")
        assert all(case in known for case in each)
    assert {c["network"] for c in network.cases("cuda")} - {"GoogLeNet"} == {"torchvision"}


# Writing.


def test_a_file_is_never_replaced(tmp_path, capsys):
    path = tmp_path / "there.json"
    path.write_text("as it was", encoding="utf-8")
    assert writing.main([str(path)]) == 2
    assert path.read_text(encoding="utf-8") == "as it was"
    assert "made once" in capsys.readouterr().out


def test_what_is_written_comes_back():
    listed = {"launch_overhead": writing.cases()["launch_overhead"]}
    content = writing.made("0" * 40, listed)
    text = writing.text(content)
    assert json.loads(text) == json.loads(json.dumps(content))
    assert max(map(len, text.splitlines())) < 2000


# Who works when.


def module_3a(name):
    """The operators of module 3a as one variant, and the same as a program."""
    model = models.randomise(models.Inception.from_table("3a")).eval()
    net = variants.eager(model)[name]
    operators = eager.operators(net, "float32", "NCHW", 1, (192, 28, 28))
    return operators, programs.work(operators, 4)


@pytest.mark.parametrize("name", [variants.WRITTEN, variants.HOISTED])
@pytest.mark.parametrize("graph", [False, True])
def test_a_timeline_adds_up_to_what_host_and_device_take(name, graph):
    operators, program = module_3a(name)
    events = lanes.timeline(operators, "float32", graph)
    host, device = ([e for e in events if e[0] == lane] for lane in ("host", "device"))
    host_us = MIDDLE.replay if graph else arithmetic.host_us(program, MIDDLE)
    assert sum(end - begin for *_, begin, end in host) == pytest.approx(host_us)
    busy = sum(end - begin for *_, begin, end in device)
    assert busy == pytest.approx(arithmetic.device_us(program, "float32", MIDDLE))
    assert len(device) == program["kernels"]
    assert len(host) == (1 if graph else len(operators))


@pytest.mark.parametrize("graph", [False, True])
def test_a_kernel_waits_for_the_host_and_for_the_kernel_before_it(graph):
    operators, _ = module_3a(variants.HOISTED)
    slow = at(node=30)  # so that the device is the slower one
    for values in (MIDDLE, slow):
        events = lanes.timeline(operators, "float32", graph, values)
        host = [event for event in events if event[0] == "host"]
        assert [begin for _, _, begin, _ in host] == [0, *(e[3] for e in host[:-1])]
        handed = [values.replay] * len(events)
        if not graph:  # the last kernel of an operator when it returns, others earlier
            handed = [
                end - values.kernel * left
                for each, (*_, end) in zip(operators, host, strict=True)
                for left in reversed(range(len(each.kernels)))
            ]
        free = 0
        for ready, event in zip(handed, (e for e in events if e[0] == "device")):  # noqa: B905
            assert event[2] == pytest.approx(max(ready, free))
            free = event[3]


@pytest.mark.parametrize(
    ("name", "split"), [(variants.WRITTEN, None), (variants.HOISTED, 2)]
)
@pytest.mark.parametrize("graph", [False, True])
def test_calls_after_each_other_take_as_long_as_the_slower_lane_of_a_timeline(
    name, split, graph
):
    """Which is what is predicted of `module_ladder`."""
    case = {"module": "3a", "batch": 1, "dtype": "float32", "layout": "NCHW"}
    predicted = ladder_us(case, ladder(case), MIDDLE)
    operators, _ = module_3a(name)
    events = lanes.timeline(operators, "float32", graph, split=split)
    host = sum(end - begin for lane, _, begin, end in events if lane == "host")
    device = sum(end - begin for lane, _, begin, end in events if lane == "device")
    expected = predicted[f"graph, {name}" if graph else name]
    assert max(host, device) == pytest.approx(expected)
    views = [name for lane, name, *_ in events if name == "split"]
    assert len(views) == (split is not None and not graph)


def test_a_graph_leaves_the_device_no_gap():
    operators, _ = module_3a(variants.WRITTEN)
    events = lanes.timeline(operators, "float32", graph=True)
    ends = [end for lane, *_, end in events if lane == "device"]
    begins = [begin for lane, _, begin, _ in events if lane == "device"]
    gaps = [begin - end for begin, end in zip(begins[1:], ends, strict=False)]
    assert gaps == pytest.approx([0] * (len(ends) - 1))


# The file that was written once.

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "records" / "predicted-h200-sxm.json"
FROZEN = json.loads(FILE.read_text(encoding="utf-8"))
DIGEST = "a8707c984e88d96eb1e676e23a9f97e3379fb43989e4422e4318fd6aa827b683"


def test_the_predictions_have_not_been_edited():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == DIGEST


def git(*arguments):
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True).returncode


@pytest.mark.skipif(git("rev-parse", "HEAD") != 0, reason="there is no git history here")
def test_they_name_a_commit_of_this_history():
    commit = FROZEN["commit"]
    if git("cat-file", "-e", f"{commit}^{{commit}}"):
        pytest.skip("the history here is cut short")
    assert git("merge-base", "--is-ancestor", commit, "HEAD") == 0


def test_they_were_made_of_the_inputs_that_are_shown():
    given = {name: Input(**one) for name, one in FROZEN["inputs"].items()}
    assert given == INPUTS
    assert FROZEN["left_out"] == LEFT_OUT


@pytest.fixture
def as_compiled(monkeypatch):
    """Our kernels as they were when the predictions were made."""
    code = {
        (launch, "float16", tuple(tile)): SimpleNamespace(
            **dict(zip(FIELDS, row, strict=True))
        )
        for launch, tile, *row in FROZEN["code"]
    }
    monkeypatch.setattr(arithmetic, "CODE", code)
    tiles = tuple(dict.fromkeys(tile for *_, tile in code))
    monkeypatch.setattr(arithmetic.two_launches, "TILES", tiles)


FIELDS = ("issued", "multiplying", "buffers", "resident")
SAMPLED = [
    (experiment, case)
    for experiment, listed in FROZEN["experiments"].items()
    for case in listed[:: 48 if experiment == "stage" else 3]
]


@pytest.mark.parametrize(
    ("experiment", "case"),
    SAMPLED,
    ids=[" ".join(map(str, c["parameters"].values())) for _, c in SAMPLED],
)
def test_the_arithmetic_gives_these_numbers(experiment, case, as_compiled):
    """From programs and compiled code as the file has them, whatever they are today."""
    for kind, numbers in ranges.predicted(
        experiment, case["parameters"], case["works"]
    ).items():
        assert case[kind] == numbers


def test_a_changed_input_would_be_noticed():
    case = FROZEN["experiments"]["module_ladder"][0]
    more = INPUTS | {"node": Input(0.8, 1.3, 1.7, "µs", "")}
    found = ranges.predicted("module_ladder", case["parameters"], case["works"], more)
    same = {name for name in case["us"] if found["us"][name] == case["us"][name]}
    assert not any(name.startswith("graph") for name in same)
