"""experiments: each gives cases and races in which all arms agree."""

import importlib
import inspect
import io
import tokenize

import pytest
import torch
from test_architecture import PACKAGE
from test_recording import raising

from hfusion import experiments, kernels, measure, models, recording, records
from hfusion.experiments import ceilings, leftover, peers, rungs, stage
from hfusion.recording import Unavailable

MODULES = {
    name: importlib.import_module(f"hfusion.experiments.{name}")
    for name in experiments.SHARES
}
HELPERS = {"__init__", "peers", "rungs"}


def test_every_experiment_has_a_share_of_the_time():
    files = {path.stem for path in (PACKAGE / "experiments").glob("*.py")}
    assert files - HELPERS == set(experiments.SHARES)
    assert sum(experiments.SHARES.values()) == pytest.approx(1)


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
def test_cases_are_parameters_of_the_race(name, device):
    cases = MODULES[name].cases(device)
    assert len({str(case) for case in cases}) == len(cases) > 0
    for case in cases:
        inspect.signature(MODULES[name].race).bind(device, **case)
        assert all(isinstance(value, str | int) for value in case.values())


# One small case of each experiment, run whole; what takes long is left out.
# fmt: off
SMALL = {
    "ceilings": {"what": "copy", "bytes": 2**16},
    "stopwatches": {"module": "5b", "batch": 1, "calls": 3},
    "launch_overhead": {"operator": "abs", "way": "eager"},
    "timeline": {"module": "5b", "rung": rungs.HOISTED},
    "stage": {"module": "5b", "batch": 2, "dtype": "float32", "layout": "NHWC"},
    "embedding": {"windows": "1×7, 7×1", "channels": 4, "side": 7, "batch": 1,
                  "dtype": "float32"},
    "projections": {"projections": "layer, four adapters", "tokens": 3,
                    "dtype": "float32"},
    "module_ladder": {"module": "5b", "batch": 1, "dtype": "float32", "layout": "NCHW"},
    "leftover": {"network": "GoogLeNet", "batch": 1},
    "memory": {"memory": "as it comes", "module": "5b", "batch": 1, "layout": "NCHW"},
}
# fmt: on


@pytest.mark.parametrize("name", SMALL)
def test_a_small_case_makes_a_record(name, tmp_path, monkeypatch):
    module = MODULES[name]
    monkeypatch.setattr(module, "cases", lambda device: [SMALL[name]])
    monkeypatch.setattr(module, "ROUNDS", 2, raising=False)
    monkeypatch.setattr(rungs, "compiled", unavailable)
    monkeypatch.setattr(peers, "inductor", unavailable)
    made = experiments.run(name, "cpu")
    assert made.cases[0].samples
    again = records.load(records.save(made, tmp_path))
    assert again.cases[0].parameters == SMALL[name]


def unavailable(*args, **options):
    raise Unavailable("left out")


def test_the_whole_network_agrees_on_every_rung():
    race = MODULES["network"].race("cpu", "GoogLeNet", 1, "float32", "NCHW")
    with torch.no_grad():
        for name in race.arms:
            if name in RUNGS:
                recording._checked(race.arms[name], race, name)


RUNGS = [rungs.WRITTEN, rungs.FOLDED, rungs.STACKED, rungs.HOISTED, rungs.ONE_CALL]


@pytest.fixture(scope="module")
def ladder():
    model = models.randomise(models.Inception.from_table("3a")).eval()
    x = torch.randn(2, 192, 28, 28, generator=torch.Generator().manual_seed(0))
    return rungs.eager(model), x, rungs.exact(model, x)[0]


def test_each_rung_has_fewer_operators_and_the_same_result(ladder):
    nets, x, exact = ladder
    assert list(nets) == RUNGS
    counts = [measure.count_launches(lambda net=net: net(x)).count for net in nets.values()]
    assert counts == [20, 14, 12, 10, 6]
    with torch.no_grad():
        for net in nets.values():
            measure.near(net(x), exact, 1e-5)


def test_the_last_rung_leaves_no_relu_of_its_own(ladder):
    nets, x, _ = ladder
    names = measure.count_launches(lambda: nets[rungs.ONE_CALL](x)).names
    assert "relu" not in names


def test_branches_by_hand_are_the_module(ladder):
    nets, x, exact = ladder
    with torch.no_grad():
        parts = [branch(x) for branch in rungs.branches(nets[rungs.FOLDED])]
        measure.near(torch.cat(parts, dim=1), exact, 1e-5)
        swapped = torch.cat([parts[1], parts[0], *parts[2:]], dim=1)
    with pytest.raises(measure.Disagreement):
        measure.near(swapped, exact, 1e-5)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_the_shares_are_wide_enough_for_small_numbers_and_not_for_mistakes(kind):
    dtype = getattr(torch, kind)
    model = models.randomise(models.Inception.from_table("5b")).eval().to(dtype)
    x = torch.randn(1, 832, 7, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    (exact,) = rungs.exact(model, x)
    share = 2 * rungs.SHARE[kind]
    with torch.no_grad():
        nets = rungs.eager(model)
        for rung in (rungs.WRITTEN, rungs.FOLDED, rungs.HOISTED):
            measure.near(nets[rung](x), exact, share)
        wrong = model(x).roll(1, dims=1)
    with pytest.raises(measure.Disagreement):
        measure.near(wrong, exact, share)


def test_arms_in_a_graph_say_how_often_they_repeat(ladder):
    nets, x, _ = ladder
    names = rungs.arms(nets, x, "cpu", times=rungs.TIMES)
    in_graphs = {name for name in names if name.startswith("graph")}
    assert rungs.repeats(names) == dict.fromkeys(in_graphs, rungs.TIMES)
    assert {f"graph, {rung}" for rung in (*nets, rungs.TWO)} < in_graphs
    assert f"graph, max-autotune, {rungs.FOLDED}" in in_graphs


# In two launches; the choice of tiles is tested in test_kernels.py.


@pytest.fixture
def tuned(monkeypatch):
    """Which modules had their tiles chosen, and for which shapes; nothing is raced."""
    pytest.importorskip("triton")
    chosen = []
    monkeypatch.setattr(kernels, "tune", lambda two, x: chosen.append((two, x.shape)))
    return chosen


def test_in_two_launches_a_network_computes_the_same(tuned):
    model = models.Digits.trained()
    x = torch.randn(2, 1, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        call = rungs.in_two(model, x)
        for _ in range(2):
            measure.near(call(), rungs.exact(model, x)[0], 1e-5)
    assert [list(shape) for _, shape in tuned] == [[2, 16, 8, 8], [2, 64, 4, 4]]
    assert all(isinstance(two, kernels.TwoLaunches) for two, _ in tuned)
    assert not any(isinstance(m, kernels.TwoLaunches) for m in model.modules())


def test_in_two_launches_a_module_computes_the_same(tuned):
    model = models.randomise(models.Inception((6, 5, 4, 5, 3, 5, 5))).eval()
    x = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last)
    with torch.no_grad():
        measure.near(rungs.in_two(model, x)(), rungs.exact(model, x)[0], 1e-5)
    assert len(tuned) == 1


def test_what_cannot_be_in_two_launches_is_unavailable(monkeypatch):
    model, x = models.Digits.trained(), torch.randn(2, 1, 8, 8)
    rows = x.new_empty(2, 3, 8, 8)
    with pytest.raises(Unavailable, match="want channels_last"):
        rungs.in_two(model, rows)
    with pytest.raises(Unavailable, match="no Inception module"):
        rungs.in_two(torch.nn.ReLU(), x)
    monkeypatch.setattr(kernels, "triton", None)
    with pytest.raises(Unavailable, match="Triton is not installed"):
        rungs.in_two(model, x)


@pytest.mark.parametrize("way", ["host", "graph"])
def test_what_only_a_gpu_can_is_unavailable_elsewhere(way):
    with pytest.raises(Unavailable, match="needs a CUDA device"):
        rungs.chains("abs", way, (1,), "cpu")


def test_a_library_that_cannot_do_it_makes_an_arm_unavailable():
    def refuses():
        raise RuntimeError("cuDNN says no\nand a long trace")

    with pytest.raises(Unavailable, match=r"^cuDNN says no$"):
        rungs.tried(refuses)
    with pytest.raises(torch.OutOfMemoryError):
        rungs.tried(raising(torch.OutOfMemoryError("full")))
    with pytest.raises(TypeError):  # a mistake of ours is no lack of the machine's
        rungs.tried(raising(TypeError("oops")))


def test_a_compiler_that_is_missing_makes_an_arm_unavailable(monkeypatch):
    def compile_later(net, mode, dynamic):
        return raising(RuntimeError("no C++ compiler\nlong advice"))

    monkeypatch.setattr(torch, "compile", compile_later)
    with pytest.raises(Unavailable, match=r"^RuntimeError: no C\+\+ compiler$"):
        rungs.compiled(torch.nn.ReLU(), torch.ones(1), "default")


def test_the_stage_copies_what_its_consumers_would():
    race = stage.race("cpu", "5b", 2, "float32", "NCHW")
    arms = {name: race.arms[name]() for name in ("separate", "stacked", "copied")}
    with torch.no_grad():
        first, *others = arms["copied"]()
        assert not first.is_contiguous()
        assert all(part.is_contiguous() for part in others)
        assert not any(part.is_contiguous() for part in arms["stacked"]())


# Ceilings, from a record that is made up.


def test_limits_are_read_from_the_record():
    cases = (
        records.Case({"what": "copy", "bytes": 1000}, {"copy": (1.0,)}),
        records.Case({"what": "copy", "bytes": 8000}, {"copy": (4.0,)}),
        records.Case(
            {"what": "matmul", "dtype": "float32", "side": 100}, {"matmul": (2.0,)}
        ),
        chain("conv", "eager", {"1": (9.0,), "10": (54.0,), "100": (504.0,)}),
        chain("abs", "graph", {"1": (4.0,), "10": (13.0,), "100": (103.0,)}),
    )
    for kind, kernel_s, overlaps in (("cpu", 0, False), ("cuda", 1e-6, True)):
        machine = records.Machine("m", kind, "M", "M", 1, "3", "2")
        made = records.Record(
            "ceilings", "?", machine, "2026-11-22", "", "", "", {}, cases
        )  # fmt: skip
        found = ceilings.limits(made, "float32")
        assert found.flops_per_s == pytest.approx(2 * 100**3 / 2e-6)
        assert found.bytes_per_s == pytest.approx(8000 / 4e-6)
        assert found.launch_s == pytest.approx(5e-6)
        assert found.kernel_s == pytest.approx(kernel_s)
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


def test_results_are_records_unless_live(tmp_path, monkeypatch):
    monkeypatch.delenv("HFUSION_LIVE", raising=False)
    monkeypatch.setattr(experiments, "run", lambda name, device: made)
    machine = records.Machine("m", "cpu", "M", "M", 1, "3", "2")
    case = records.Case({"n": 1}, {"a": (1.0,)})
    made = records.Record(
        "stage", "?", machine, "2026-11-22", "unknown", "0", "operators", {}, (case,)
    )
    with pytest.raises(records.RecordError, match="has no record of stage; `make record`"):
        experiments.results("stage", tmp_path)
    assert experiments.results("stage", tmp_path, live=True) == {"m": made}
    monkeypatch.setenv("HFUSION_LIVE", "1")
    assert experiments.results("stage", tmp_path) == {"m": made}
    monkeypatch.setenv("HFUSION_LIVE", "0")
    records.save(made, tmp_path)
    found = experiments.results("stage", tmp_path)
    assert [record.experiment for record in found.values()] == ["stage"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
def test_convolutions_are_counted_in_what_a_compiler_made():
    net = models.randomise(models.Digits()).eval()
    x = torch.randn(1, 1, 8, 8)
    try:
        arms = [peers.inductor(net, x), leftover.eager(net, x)]
    except Unavailable as error:
        pytest.skip(str(error))
    assert [leftover.convolutions(arm) for arm in arms] == [13, 13]
    with torch.no_grad():
        measure.near(arms[0](), arms[1](), 1e-4)


@pytest.mark.parametrize("runtime", peers.RUNTIMES.values(), ids=peers.RUNTIMES)
def test_convolutions_are_counted_in_what_a_runtime_made(runtime):
    net = models.randomise(models.Digits()).eval()
    x = torch.randn(1, 1, 8, 8)
    try:
        arm = runtime(net, x)
    except Unavailable as error:
        pytest.skip(str(error))
    assert arm.convolutions == 13
    with torch.no_grad():
        measure.near(arm()[0], net(x), 1e-4)


def test_a_record_of_counts_says_what_it_counted(monkeypatch):
    monkeypatch.setattr(peers, "inductor", unavailable)
    monkeypatch.setattr(peers, "RUNTIMES", {})
    made = experiments.run("leftover", "cpu")
    (case,) = made.cases
    assert made.counted == "convolutions"
    assert case.launches == {leftover.WRITTEN: 57, leftover.OURS: 39}
