"""`hfusion.faster`: what it times is looked at, and all times are made up."""

import random
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import hfusion
from hfusion import FusionError, plan, timing
from hfusion.fusing import _checks, _group, _members, judging
from hfusion.timing import Disagreement, agree, count_launches


class Two(nn.Module):
    """Two groups of siblings, one behind the other; the second have an activation."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 5)
        self.c, self.d = nn.Linear(9, 6), nn.Linear(9, 7)

    def forward(self, x):
        y = torch.cat([self.a(x), self.b(x)], dim=-1)
        return self.c(input=y).relu(), self.d(y).relu()


class Convs(nn.Module):
    def __init__(self, dims=2):
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.a, self.b = kind(3, 4, 1), kind(3, 5, 1)

    def forward(self, x):
        return self.a(x), self.b(x)


class Viewed(Two):
    """Somebody reads b's output who cannot read a strided part."""

    def __init__(self):
        super().__init__()
        self.e = nn.Linear(3, 4)

    def forward(self, x):
        return self.a(x).sum() + self.b(x).view(-1).sum() + self.e(x).sum()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A made-up clock: no test waits, and a benchmark takes `clock.takes` seconds."""
    clock = SimpleNamespace(now=0.0, takes=0.01, pauses=[])

    def sleep(seconds):
        clock.pauses.append(seconds)
        clock.now += seconds

    made_up = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(judging, "time", made_up)
    return clock


@pytest.fixture
def timed(monkeypatch, clock):
    """timed.runs: what was timed; timed.gain(its number): what the clock says of it."""
    timed = SimpleNamespace(runs=[], gain=lambda number: 2.0)

    def benchmark(variants, device="cpu", rounds=30, warm_up=5, calls=10, watches=None,
                  late=None):  # fmt: skip
        gain = timed.gain(len(timed.runs))
        timed.runs.append(SimpleNamespace(**locals()))
        clock.now += clock.takes
        return {"separate": [gain] * 3, "fused": [1.0] * 3}

    monkeypatch.setattr(judging, "benchmark", benchmark)
    return timed


def judged(model, x, by_running=True, **options):
    judge = hfusion.faster(x, **{"whole": False} | options)
    return plan(model, x if by_running else None, accept=judge)


def counted(call):
    return count_launches(call).names


# The rule.


def test_all_bursts_but_one_of_eight():
    assert judging.verdict([1.1] * 8, 1.02) is True
    assert judging.verdict([1.1] * 7 + [0.1], 1.02) is True
    assert judging.verdict([1.1] * 6 + [1.02, 9], 1.02) is True
    assert judging.verdict([1.1] * 6 + [1.02] * 2, 1.02).startswith("undecided: 1.10 times")
    assert judging.verdict([1.1] * 2 + [1.0] * 6, 1.02).startswith("undecided: 1.00 times")
    assert judging.verdict([1.1] + [1.0] * 7, 1.02).startswith("not faster: 1.00 times")


@pytest.mark.parametrize("bursts", range(5, 30))
def test_a_coin_passes_the_rule_rarely(bursts):
    """Counted out: of all 2**bursts outcomes of fair coins, or of many at random."""
    misses = judging.allowed(bursts)
    rng = np.random.default_rng(bursts)
    heads = rng.binomial(bursts, 0.5, 400_000)
    assert (heads >= bursts - misses).mean() <= 0.05 + 0.002
    assert (heads >= bursts - misses - 1).mean() > 0.05 - 0.002  # no more can be allowed


def simulated(rng, gain, slow=0.03, noise=0.1, busy=0.3, bursts=8, rounds=25):
    """Gains of bursts on a made-up machine: in each burst a variant has luck of its own
    (its place in memory, what else runs), in each round more, and a share of the turns is
    interrupted, and takes two to ten times as long. No time is below what is needed."""
    gains = []
    for _ in range(bursts):
        lucky = 1 + slow * rng.standard_exponential(2)
        times = lucky * (1 + noise * rng.standard_exponential((rounds, 2)))
        interrupted = rng.random((rounds, 2)) < busy
        times *= np.where(interrupted, rng.uniform(2, 10, (rounds, 2)), 1)
        samples = {"separate": list(gain * times[:, 0]), "fused": list(times[:, 1])}
        gains.append(judging.gain_of(samples))
    return gains


def accepted(gain, times=1000, **machine):
    """In which share of simulated judgements a group is accepted."""
    rng = np.random.default_rng(0)
    verdicts = [
        judging.verdict(simulated(rng, gain, **machine), 1.02) for _ in range(times)
    ]
    return sum(answer is True for answer in verdicts) / times


def test_noise_alone_is_accepted_rarely():
    assert accepted(1.0) < 0.01
    assert accepted(1.0, slow=0, noise=0.02) == 0
    assert accepted(1.0, slow=0.5, noise=0.5) < 0.04  # whatever the noise: the coin's
    assert accepted(1.0, busy=0.7) < 0.04
    assert accepted(0.9) == 0


def test_ten_percent_are_accepted_mostly():
    assert accepted(1.1) > 0.9
    assert accepted(1.1, busy=0.5) > 0.6
    assert accepted(1.1, slow=0.05) > 0.6
    assert accepted(1.2, slow=0.05) > 0.9


def test_rounds_of_one_burst_would_not_do():
    """As many rounds, all in one burst: its luck decides, and half of that is good."""
    rng = np.random.default_rng(0)
    alone = [simulated(rng, 1.0, bursts=1, rounds=200)[0] > 1.02 for _ in range(1000)]
    assert sum(alone) / 1000 > 0.2
    assert accepted(1.0) < 0.01


def test_where_half_of_the_turns_are_interrupted_a_median_says_less():
    rng, right = np.random.default_rng(0), {"quartile": 0, "median": 0}
    for _ in range(1000):
        times = 1 + 0.1 * rng.standard_exponential((25, 2))
        times *= np.where(rng.random((25, 2)) < 0.5, rng.uniform(2, 10, (25, 2)), 1)
        samples = {"separate": list(1.1 * times[:, 0]), "fused": list(times[:, 1])}
        right["quartile"] += 1.02 < judging.gain_of(samples) < 1.25
        right["median"] += 1.02 < timing.gains(samples, "separate")["fused"][1] < 1.25
    assert right["quartile"] > 850 > 700 > right["median"]


def test_a_burst_of_something_slow_ends_early_but_not_before_three_rounds(clock):
    late = judging._late()
    assert not any(late() for _ in range(2 + 2 * 3))
    assert not late()
    clock.now += 0.6
    assert late()
    late = judging._late()
    clock.now += 60
    assert [late() for _ in range(9)] == [False] * 8 + [True]


def test_the_reason_has_the_numbers(timed):
    timed.gain = lambda number: [1.1, 0.9][number % 2]
    (group,) = judged(Convs(), torch.zeros(1, 3, 2, 2)).groups
    assert not group.fused
    wanted = (
        "undecided: 1.00 times as fast (8 bursts, 0.90 to 1.10), 4 above 1.02, 7 needed"
    )
    assert group.reason == wanted
    assert wanted in " ".join(str(judged(Convs(), torch.zeros(1, 3, 2, 2))).split())


@pytest.mark.parametrize(
    ("gain", "margin", "fused"),
    [(1.02, 0.02, False), (1.03, 0.02, True), (1.25, 0.25, False), (1.01, 0, True)],
)
def test_what_is_above_the_margin_is_accepted(timed, gain, margin, fused):
    timed.gain = lambda number: gain
    found = judged(Convs(), torch.zeros(1, 3, 2, 2), margin=margin)
    assert found.groups[0].fused is fused


# The bursts.


def test_bursts_of_all_groups_take_turns_and_are_apart_in_time(timed, clock):
    timed.gain = lambda number: [2.0, 0.5][number % 2]  # of the first group, of the second
    begun = []
    timed_by = judging.benchmark

    def noted(variants, *args, **kwargs):
        begun.append((clock.now, variants["fused"]()[0][0].shape[-1]))
        return timed_by(variants, *args, **kwargs)

    judging.benchmark = noted
    first, second = judged(Two(), torch.zeros(2, 3), bursts=6, apart=3).groups
    assert (first.fused, second.fused) == (True, False)
    assert [width for _, width in begun] == [4, 6] * 6
    assert [at for at, _ in begun[::2]] == pytest.approx([0, 3, 6, 9, 12, 15])


def test_nothing_waits_for_what_takes_long(timed, clock):
    clock.takes = 5
    judged(Convs(), torch.zeros(1, 3, 2, 2), apart=3)
    assert not any(clock.pauses)


def test_a_slow_second_hits_all_groups(timed):
    timed.gain = lambda number: 0.1 if number in (6, 7) else 1.5  # the fourth burst
    assert all(group.fused for group in judged(Two(), torch.zeros(2, 3)).groups)


def test_each_burst_has_layers_made_anew(timed):
    judged(Convs(), torch.zeros(1, 3, 2, 2))
    assert len({run.variants["fused"] for run in timed.runs}) == 8


def test_options_are_passed_on(timed):
    judged(Convs(), torch.zeros(1, 3, 2, 2), bursts=5, rounds=7, calls=3)
    assert len(timed.runs) == 5
    assert {(r.rounds, r.calls, r.device.type) for r in timed.runs} == {(7, 3, "cpu")}


def test_a_turn_ends_early_where_a_call_takes_long(monkeypatch):
    asked = []
    monkeypatch.setattr(judging, "wall", lambda call, calls, _: asked.append(calls) or call)
    assert judging._watch(10.0, 10, "cpu") == 10
    assert judging._watch(100.0, 10, "cpu") == 100
    assert judging._watch(5000.0, 10, "cpu") == 5000
    assert asked == [1, 9, 1, 2, 1]


# What is timed.


def test_layers_one_by_one_against_layers_side_by_side(timed):
    judged(Two(), torch.zeros(2, 3))
    first = timed.runs[0].variants
    assert counted(first["separate"]) == ("addmm", "addmm")
    assert counted(first["fused"]) == ("addmm",)  # parts are views
    for part, output in zip(*(first[name]()[0] for name in first), strict=True):
        agree(part, output, 1e-5)
        assert part.shape == output.shape


def test_a_part_is_copied_where_its_reader_needs_it(timed):
    (group,) = judged(Viewed(), torch.zeros(2, 3)).groups
    assert group.dense == (1,)
    ((_, second, _),) = timed.runs[0].variants["fused"]()
    assert second.is_contiguous()
    assert "copy_" in counted(timed.runs[0].variants["fused"])


class Activated(Two):
    """The siblings' activations are modules, which a fused model calls once for all."""

    def __init__(self):
        super().__init__()
        self.r, self.s = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.r(self.a(x)), self.s(self.b(x))


@pytest.mark.parametrize("by_running", [True, False])
def test_activations_are_timed_where_they_are_called_once(timed, by_running, as_on_a_gpu):
    """With one row each part is in one piece; with two, each is activated by itself."""
    for rows, relus in ((1, 1), (2, 2)):
        judged(Activated(), torch.zeros(rows, 3), by_running)
        variants = timed.runs[-1].variants
        assert counted(variants["separate"]) == ("addmm", "relu", "addmm", "relu")
        assert counted(variants["fused"]) == ("addmm", *["relu"] * relus)
        (parts,), (outputs,) = (variants[name]() for name in ("fused", "separate"))
        for part, output in zip(parts, outputs, strict=True):
            agree(part, output, 1e-5)


def test_activations_are_timed_where_each_part_has_its_own(timed):
    """On a CPU, where calling one for all does not pay (the separate ones had it alone)."""
    (group,) = judged(Activated(), torch.zeros(1, 3)).groups
    assert group.activation is not None
    assert not group.followers
    variants = timed.runs[0].variants
    assert counted(variants["separate"]) == ("addmm", "relu", "addmm", "relu")
    assert counted(variants["fused"]) == ("addmm", "relu", "relu")


def test_activations_that_are_functions_are_left_out_of_the_benchmark(timed):
    judged(Two(), torch.zeros(2, 3), by_running=False)
    for run in timed.runs[:2]:
        assert counted(run.variants["separate"]) == ("addmm", "addmm")
        assert counted(run.variants["fused"]) == ("addmm",)


LAYOUTS = [
    (1, torch.contiguous_format), (2, torch.contiguous_format), (2, torch.channels_last),
    (3, torch.contiguous_format), (3, torch.channels_last_3d),
]  # fmt: skip


@pytest.mark.parametrize("by_running", [True, False])
@pytest.mark.parametrize(("dims", "layout"), LAYOUTS)
def test_a_copied_part_lies_as_the_layers_own_output(timed, dims, layout, by_running):
    """A reader that asks gets it contiguous, in the format that the layer chooses."""

    class Asked(Convs):
        def __init__(self):
            super().__init__(dims)
            self.c = type(self.a)(3, 6, 1)

        def forward(self, x):
            a, b, c = self.a(x), self.b(x), self.c(x)
            b.is_contiguous()
            return a, b, c

    x = torch.zeros(2, 3, *[4] * dims).contiguous(memory_format=layout)
    (group,) = judged(Asked(), x, by_running).groups
    assert group.dense == (1,)
    part, output = (timed.runs[0].variants[name]()[0][1] for name in ("fused", "separate"))
    assert part.stride() == output.stride()


@pytest.mark.parametrize("by_running", [True, False])
@pytest.mark.parametrize(
    "x", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(2, 4, 3), torch.zeros(2, 4, 5, 3),
          torch.zeros(3, 2).t(), torch.zeros(2, 3, 4, 5).permute(0, 2, 3, 1),
          torch.zeros(2, 6)[:, ::2], torch.ones(2, 3, requires_grad=True),
          torch.zeros(1, 3).expand(2, 3)],
    ids=lambda x: f"{list(x.shape)} {x.stride()}",
)  # fmt: skip
def test_inputs_of_any_shape_and_strides_are_judged(timed, x, by_running):
    assert judged(Two(), x, by_running).groups[0].fused
    for name, variant in timed.runs[0].variants.items():
        shapes = [tuple(y.shape) for y in variant()[0]]
        assert shapes == [(*x.shape[:-1], 4), (*x.shape[:-1], 5)], name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_what_is_timed_is_in_the_numbers_of_the_model(timed, dtype):
    judged(Two().to(dtype), torch.zeros(2, 3, dtype=dtype))
    for variant in timed.runs[0].variants.values():
        assert all(y.dtype == dtype for y in variant()[0])


def test_the_inputs_are_random_and_not_the_example(timed):
    judged(Convs(), torch.zeros(1, 3, 4, 4))
    first, _ = timed.runs[0].variants["separate"]()[0]
    assert len(first[0, 0].unique()) > 1


def test_a_group_that_is_called_several_times_is_timed_so(timed):
    class Head(Two):
        def forward(self, x):
            return [self.a(y) @ self.b(y)[:4] for y in (x, x[:5], x + 1)]

    model = Head()
    model.b = nn.Linear(3, 4)
    judged(model, torch.zeros(7, 3))
    assert [len(parts[0]) for parts in timed.runs[0].variants["fused"]()] == [7, 5, 7]


def test_a_model_that_no_graph_can_hold_and_a_dict_of_inputs(timed):
    class Flow(Two):
        def forward(self, *, x, deep=True):
            return super().forward(x) if deep and x.sum() >= 0 else x

    assert judged(Flow(), {"x": torch.zeros(2, 3)}).groups[0].fused


def test_a_group_that_is_refused_already_is_not_judged(timed):
    x = torch.zeros(2, 3)
    refused = plan(Two(), x, min_siblings=3, accept=hfusion.faster(x))
    assert not any(group.fused for group in refused.groups)
    assert timed.runs == []


@pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.zeros(2, 3)])
def test_a_group_that_the_inputs_do_not_reach_is_refused(timed, x):
    class Shy(Two):
        def forward(self, x):
            return super().forward(x) if torch.is_grad_enabled() or not len(x) else x

    first, _ = judged(Shy(), x, by_running=False).groups
    assert (first.fused, first.reason) == (False, "a gets no number from example_inputs")
    assert timed.runs == []


def test_a_group_that_does_not_compute_together_is_not_timed(timed, monkeypatch):
    monkeypatch.setattr(_checks, "plain", lambda x: False)
    (group,) = judged(Convs(), torch.zeros(1, 3, 2, 2)).groups
    assert group.reason == "a, b do not compute together here"
    assert timed.runs == []


@pytest.mark.parametrize("by_running", [True, False])
@pytest.mark.parametrize("factor", [1.001, 0, -1, float("nan"), float("inf")])
def test_siblings_that_compute_something_wrong_are_never_timed(
    timed, monkeypatch, factor, by_running
):
    right = _group.FusedGroup._product

    def wrong(*given):
        y = right(*given)
        y[:, -1] *= factor
        return y

    monkeypatch.setattr(_group.FusedGroup, "_product", wrong)
    with pytest.raises(Disagreement, match="entries differ"):
        judged(Convs(), torch.zeros(2, 3, 4, 4), by_running)
    assert timed.runs == []


def test_a_mistake_is_held_to_the_terms_of_one_output(timed, monkeypatch):
    """A layer of 1,000 outputs adds no more terms for each than a layer of one."""
    right = _group.FusedGroup._product
    model = Convs()
    model.a, model.b = nn.Linear(4, 1), nn.Linear(4, 1000)
    for layer in (model.a, model.b):
        nn.init.ones_(layer.weight)
    monkeypatch.setattr(_group.FusedGroup, "_product", lambda *g: right(*g) + 1e-5)
    with pytest.raises(Disagreement, match="entries differ"):
        judged(model, torch.ones(1, 4), by_running=True)
    assert timed.runs == []


def test_an_output_whose_terms_cancel_is_not_taken_for_a_wrong_one(timed):
    torch.manual_seed(0)
    for by_running in (True, False) * 20:
        model = Convs()  # a head with one output, and one with several
        model.a, model.b = nn.Linear(2048, 1), nn.Linear(2048, 18)
        assert judged(model, torch.zeros(1, 2048), by_running).groups[0].fused


# At the last, the whole model.


def whole(monkeypatch, gain, model=None, by_running=True, **options):
    """A plan whose groups are 1.5 times as fast each; the whole is `gain(burst)` times."""
    timed = []

    def benchmark(variants, device, rounds, **_):
        end_to_end = isinstance(getattr(variants["separate"], "func", None), nn.Module)
        timed.append((end_to_end, variants))
        for variant in variants.values():
            variant()
        times = gain(sum(e for e, _ in timed) - 1) if end_to_end else 1.5
        return {"separate": [times], "fused": [1.0]}

    monkeypatch.setattr(judging, "benchmark", benchmark)
    x = torch.zeros(2, 3)
    judge = hfusion.faster(x, **options)
    found = plan(model or Two(), x if by_running else None, accept=judge)
    return found, [variants for end_to_end, variants in timed if end_to_end]


@pytest.mark.parametrize("by_running", [True, False])
def test_where_the_whole_is_faster_the_groups_are_fused(monkeypatch, by_running):
    found, timed = whole(monkeypatch, lambda burst: 1.001, by_running=by_running)
    assert [group.fused for group in found.groups] == [True, True]
    assert len(timed) == 8
    assert found.apply()(torch.zeros(2, 3))[0].shape == (2, 6)


@pytest.mark.parametrize(
    ("gain", "word"),
    [(lambda burst: 0.9, "not faster: 0.90"), (lambda burst: 1.0, "not faster: 1.00"),
     (lambda burst: 1.1 - 0.2 * (burst % 2), "undecided: 1.00")],
)  # fmt: skip
def test_where_it_is_not_all_groups_are_left_alone(monkeypatch, gain, word):
    found, _ = whole(monkeypatch, gain)
    for group in found.groups:
        assert not group.fused
        assert group.reason.startswith(f"the whole model: {word} times as fast (8 bursts")
    assert found.apply().a.forward.__self__ is not None
    assert not any(map(_members.member_of, found.apply().modules()))


def test_the_whole_is_timed_with_what_was_accepted_and_against_the_model(monkeypatch):
    model = Two()
    _, timed = whole(monkeypatch, lambda burst: 2, model)
    separate, fused = (timed[0][name] for name in ("separate", "fused"))
    assert counted(separate).count("addmm") == 4
    assert counted(fused).count("addmm") == 2
    for one, other in zip(separate(), fused(), strict=True):
        agree(one, other, 1e-6)


def test_nothing_is_timed_at_the_end_if_nothing_is_fused_or_nobody_wants_it(monkeypatch):
    _, timed = whole(monkeypatch, lambda burst: 2, margin=9)
    assert timed == []
    found, timed = whole(monkeypatch, lambda burst: 0.1, whole=False)
    assert timed == []
    assert all(group.fused for group in found.groups)


def test_a_model_in_training_is_left_alone(monkeypatch):
    class Trained(Two):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout()

        def forward(self, x):
            random.random()
            return super().forward(self.drop(self.norm(x)) + np.random.rand())

    model = Trained().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    places = {key: value.data_ptr() for key, value in model.state_dict().items()}
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    chance = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    found, timed = whole(monkeypatch, lambda burst: 2, model)
    assert all(group.fused for group in found.groups)
    assert timed
    for key, value in model.state_dict().items():
        agree(value, before[key])
        assert value.data_ptr() == places[key]
    assert model.norm.num_batches_tracked == 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert random.getstate() == chance[0]
    assert np.array_equal(np.random.get_state()[1], chance[1])
    assert torch.equal(torch.get_rng_state(), chance[2])


def test_inputs_that_the_model_writes_to_are_copied(monkeypatch):
    class Writes(Two):
        def forward(self, x):
            return super().forward(x.add_(1))

    x = torch.zeros(2, 3)

    def benchmark(variants, *_, **__):
        for variant in variants.values():
            variant()
        return {"separate": [2], "fused": [1]}

    monkeypatch.setattr(judging, "benchmark", benchmark)
    assert plan(Writes(), x, accept=hfusion.faster(x)).groups[0].fused
    agree(x, torch.zeros(2, 3))


# Arguments, and other judges.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1}, "margin: expected a number of at least 0, got -1"),
        ({"margin": float("nan")}, "margin: expected a number of at least 0, got nan"),
        ({"margin": float("inf")}, "margin: expected a number of at least 0, got inf"),
        ({"margin": "2%"}, "margin: expected a number of at least 0, got '2%'"),
        ({"margin": True}, "margin: expected a number of at least 0, got True"),
        ({"apart": -1}, "apart: expected a number of at least 0, got -1"),
        ({"bursts": 4}, "bursts: expected an int of at least 5, got 4"),
        ({"rounds": 0}, "rounds: expected an int of at least 1, got 0"),
        ({"calls": 1.5}, "calls: expected an int of at least 1, got 1.5"),
        ({"whole": 1}, "whole: expected True or False, got 1"),
        ({"graph": None}, "graph: expected True or False, got None"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(FusionError, match=f"^{re.escape(message)}$"):
        hfusion.faster(torch.zeros(1), **options)


@pytest.mark.parametrize("inputs", [None, 1, [torch.zeros(1)]])
def test_wrong_inputs(inputs):
    wanted = (
        f"example_inputs: expected a tensor, a tuple or a dict, got {type(inputs).__name__}"
    )
    with pytest.raises(FusionError, match=f"^{wanted}$"):
        hfusion.faster(inputs)


def test_elsewhere_than_on_cuda_there_is_no_graph(timed):
    wanted = "graph: expected False for layers on cpu, got True"
    with pytest.raises(FusionError, match=wanted):
        judged(Convs(), torch.zeros(1, 3, 2, 2), graph=True)
    assert timed.runs == []


def test_what_is_deployed_as_a_graph_is_timed_as_one(monkeypatch):
    graphs = []
    monkeypatch.setattr(judging, "graphed", lambda fn: graphs.append(fn) or fn)
    made = judging._as_graphs(
        {"a": lambda: {"y": [torch.ones(1)], "n": 2}}, torch.device("cuda")
    )
    assert list(made.values()) == graphs
    assert made["a"]() == [torch.ones(1)]


def test_one_group_can_be_judged_alone(timed):
    x = torch.zeros(1, 3, 2, 2)
    (group,) = plan(Convs(), x).groups
    assert hfusion.faster(x)(group) is True
    timed.gain = lambda number: 1.0
    assert hfusion.faster(x)(group).startswith("not faster: 1.00 times as fast")


def test_an_error_of_the_model_comes_out(timed):
    with pytest.raises(FusionError, match="shapes cannot be multiplied"):
        judged(Two(), torch.zeros(2, 8), by_running=False)


class Judge:
    """One of somebody else's: it has answers by members, and one for the whole."""

    def __init__(self, answers=(), whole=True):
        self.answers, self.answer, self.asked, self.seen = dict(answers), whole, [], []

    def __call__(self, group):
        raise AssertionError("it is asked about all together")

    def groups(self, groups):
        self.asked.append([group.members for group in groups])
        return [self.answers.get(group.members, True) for group in groups]

    def whole(self, model, fused):
        self.seen.append((model, fused))
        return self.answer


@pytest.mark.parametrize("inputs", [None, torch.zeros(2, 3)], ids=["read", "run"])
def test_a_judge_of_all_is_asked_once_and_then_about_the_whole(inputs):
    model, judge = Two(), Judge({("a", "b"): "no"})
    first, second = plan(model, inputs, accept=judge).groups
    assert (first.fused, first.reason, second.fused) == (False, "no", True)
    assert judge.asked == [[("a", "b"), ("c", "d")]]
    ((seen, fused),) = judge.seen
    assert seen is model
    assert counted(lambda: fused(torch.zeros(2, 3))).count("addmm") == 3
    no = {("a", "b"): "no"}
    for judge, reasons, asked in (
        (Judge(whole="slow"), ["slow", "slow"], 1),
        (Judge(no, "slow"), ["no", "slow"], 1),
        (Judge(no | {("c", "d"): "no"}, "slow"), ["no", "no"], 0),
    ):
        groups = plan(model, inputs, accept=judge).groups
        assert [group.reason for group in groups] == reasons
        assert len(judge.seen) == asked


def test_a_function_of_a_group_may_have_other_attributes():
    def accept(group):
        accept.groups.append(group.members)
        return True

    accept.groups = []
    assert all(group.fused for group in plan(Two(), accept=accept).groups)
    assert accept.groups == [("a", "b"), ("c", "d")]


def test_it_is_asked_again_about_parts_of_what_it_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.c = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.a(x), self.b(x), self.c(x)

    judge = Judge({("a", "b", "c"): "too many multiplications"})
    groups = plan(Net(), embed=True, accept=judge).groups
    assert [(group.members, group.fused) for group in groups] == [
        (("a", "b", "c"), False),
        (("a", "b"), True),
    ]
    assert judge.asked == [[("a", "b", "c")], [("a", "b")]]


@pytest.mark.parametrize("answer", [None, "", 1, False])
def test_wrong_answers_of_a_judge(answer):
    with pytest.raises(FusionError, match=r"^accept: expected it to return True or"):
        plan(Two(), accept=Judge({("a", "b"): answer}))
    with pytest.raises(FusionError, match=r"^accept: expected it to return True or"):
        plan(Two(), accept=Judge(whole=answer))


def test_a_real_benchmark_from_end_to_end(monkeypatch):
    """Nothing is said here about how fast anything is."""
    monkeypatch.setattr(judging, "time", time)
    x = torch.zeros(2, 3)
    options = {"bursts": 5, "rounds": 1, "calls": 1, "apart": 0}
    refused = judged(Two(), x, margin=1e9, **options)
    assert all(g.reason.startswith("not faster: ") for g in refused.groups)
    judge = hfusion.faster(x, **options)
    fused = hfusion.fuse(Two(), x)
    answer = judge.whole(Two(), fused)
    assert answer is True or answer.startswith("the whole model: ")
