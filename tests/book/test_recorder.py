"""recorder: agreed before timed, skipped with a reason, in time within a case too."""

import dataclasses
import itertools
import math
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from stand_ins import Clock, X, raising

from hfusion import timing
from sideways import recorder, records
from sideways.recorder import Benchmark, Unavailable, deadlines, machines, measuring

TWICE = ((2 * X).double(),)


def experiment(*benchmarks, **settings):
    """A module with these benchmarks, one a case; an exception is raised instead."""

    def benchmark(device, number):
        found = benchmarks[number]
        if isinstance(found, BaseException):
            raise found
        return found

    return types.SimpleNamespace(
        __name__="sideways.experiments.made_up",
        QUESTION="Which?",
        cases=lambda device: [{"number": number} for number in range(len(benchmarks))],
        benchmark=benchmark,
        **settings,
    )


def twice(tolerance=1e-6, **more):
    variants = {"add": lambda: lambda: X + X, "multiply": lambda: lambda: 2 * X}
    return Benchmark(variants | more, TWICE, tolerance)


def test_a_record_has_what_was_measured():
    made = recorder.run(experiment(twice(), twice()))
    assert (made.experiment, made.question) == ("made_up", "Which?")
    assert made.counted == "operators"
    assert [case.parameters for case in made.cases] == [{"number": 0}, {"number": 1}]
    for case in made.cases:
        assert {name: len(us) for name, us in case.samples.items()} == {
            "add": measuring.ROUNDS,
            "multiply": measuring.ROUNDS,
        }
        assert case.launches == {"add": 1, "multiply": 1}
        assert case.skipped == {}
    assert made.missing == {}


def test_an_experiment_may_want_other_rounds():
    made = recorder.run(experiment(twice(), ROUNDS=3))
    assert len(made.cases[0].samples["add"]) == made.protocol["rounds"] == 3


# A wrong result is not timed, and stops no other variant.

WRONG = {
    "another number": lambda: X + X + 1,
    "one NaN": lambda: torch.tensor([2.0, float("nan"), 6.0, 8.0]),
    "infinity": lambda: torch.tensor([2.0, float("inf"), 6.0, 8.0]),
    "another shape": lambda: (X + X)[None],
    "two results": lambda: (X + X, X + X),
    "no result": lambda: (),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_result_is_skipped_before_any_timing(wrong, monkeypatch):
    timed = []
    wall = timing.wall
    monkeypatch.setattr(
        timing, "wall", lambda variant, *more: timed.append(variant) or wall(variant, *more)
    )
    benchmark = twice(wrong=lambda: WRONG[wrong])
    made = recorder.run(experiment(benchmark, twice()))
    first, second = made.cases
    assert set(first.samples) == set(second.samples) == {"add", "multiply"}
    assert set(first.skipped) == set(made.missing) == {"wrong"}
    assert first.skipped["wrong"].startswith("wrong result: ")
    assert WRONG[wrong] not in timed


def test_a_result_within_its_share_passes_and_beyond_it_does_not():
    def off():
        return 2 * X + 0.7e-3 * 8  # of the largest, which is 8

    (case,) = recorder.run(experiment(twice(tolerance=1e-3, off=lambda: off))).cases
    assert case.skipped == {}
    (case,) = recorder.run(experiment(twice(tolerance=0.5e-3, off=lambda: off))).cases
    assert list(case.skipped) == ["off"]


def test_a_variant_may_have_a_share_of_its_own():
    off = {name: lambda: lambda: 2 * X + 0.7e-3 * 8 for name in ("rounded", "wrong")}
    benchmark = dataclasses.replace(twice(**off), tolerances={"rounded": 1e-3})
    (case,) = recorder.run(experiment(benchmark)).cases
    assert set(case.samples) == {"add", "multiply", "rounded"}
    assert list(case.skipped) == ["wrong"]


# What fails is skipped, whenever it does; the others go on.


def failing(calls):
    """A variant that computes what it must so often, and then raises."""
    left = [calls]

    def variant():
        left[0] -= 1
        if left[0] < 0:
            raise ZeroDivisionError("ours\nand more")
        return X + X

    return variant


# The check calls it once, the search for `calls` three times, the warm-up three times.
@pytest.mark.parametrize("calls", [0, 1, 3, 4, 6, 7, 8, 60, 300])
def test_a_variant_that_fails_stops_no_other(calls):
    benchmark = twice(other=lambda: failing(calls))
    first, second = recorder.run(experiment(benchmark, twice(), ROUNDS=6)).cases
    for case in (first, second):
        assert {n: len(us) for n, us in case.samples.items()} == {"add": 6, "multiply": 6}
        assert case.launches == {"add": 1, "multiply": 1}
    assert first.skipped == {"other": "failed: ZeroDivisionError: ours"}


def test_what_makes_a_variant_or_a_case_may_fail():
    broken = raising(KeyError("x"))
    made = recorder.run(experiment(twice(other=broken), ValueError("no"), twice()))
    first, second, third = made.cases
    assert first.skipped == {"other": "failed: KeyError: 'x'"}
    assert second.skipped == {"every arm": "failed: ValueError: no"}
    assert set(first.samples) == set(third.samples) == {"add", "multiply"}


def test_a_variant_is_named_by_its_own_name_whatever_it_times_itself():
    """The kernels benchmark their tiles while a variant is made."""

    def tuned():
        timing.benchmark({"add": raising(ValueError("of a tile"))})

    (case,) = recorder.run(experiment(twice(tuned=tuned))).cases
    assert case.skipped == {"tuned": "failed: ValueError: of a tile"}
    assert set(case.samples) == {"add", "multiply"}


def test_what_cannot_be_counted_is_timed_all_the_same():
    def count(variant):
        raise RuntimeError("no profiler")

    benchmark = Benchmark(twice().variants, TWICE, 0, count=count)
    (case,) = recorder.run(experiment(benchmark)).cases
    assert set(case.samples) == set(case.faults) == {"add", "multiply"}
    assert case.launches == {}
    assert set(case.skipped) == {"add, counting", "multiply, counting"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_program_stops_it(stop):
    with pytest.raises(stop):
        recorder.run(experiment(twice(other=raising(stop()))))


def test_a_benchmark_that_fails_for_no_variant_is_skipped_whole(monkeypatch):
    monkeypatch.setattr(timing, "benchmark", raising(RuntimeError("the device is lost")))
    (case,) = recorder.run(experiment(twice())).cases
    assert case.skipped == {"every arm": "failed: RuntimeError: the device is lost"}
    assert case.samples == {}


def test_launches_are_counted_after_the_benchmark(monkeypatch):
    """A profiler that has run once makes what comes after it slower."""
    order = []
    benchmark, count = timing.benchmark, timing.count_launches
    monkeypatch.setattr(
        timing, "benchmark", lambda *given: order.append("benchmark") or benchmark(*given)
    )
    monkeypatch.setattr(
        timing, "count_launches", lambda *given: order.append("count") or count(*given)
    )
    recorder.run(experiment(twice(), ROUNDS=2))
    assert order == ["benchmark", "count", "count"]


# What cannot run is skipped, and the record says why.

NO_MEMORY = torch.OutOfMemoryError("tried to allocate 3 GiB")
ON_A_CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Unavailable("needs a CUDA device"), "needs a CUDA device"),
     (NO_MEMORY, "out of memory"), (ON_A_CPU, "out of memory"),
     (MemoryError(), "out of memory")],
)  # fmt: skip
def test_a_variant_that_cannot_run_is_skipped(error, reason):
    made = recorder.run(experiment(twice(), twice(other=raising(error))))
    assert made.cases[1].skipped == {"other": reason}
    assert set(made.cases[1].samples) == {"add", "multiply"}
    assert made.missing == {"other": reason}


def test_a_variant_that_ran_once_is_not_missing():
    with_it = twice(other=lambda: lambda: X + X)
    without = twice(other=raising(NO_MEMORY))
    made = recorder.run(experiment(with_it, without))
    assert made.missing == {}
    assert made.cases[1].skipped == {"other": "out of memory"}


@pytest.mark.parametrize(
    ("error", "reason"), [(Unavailable("no such network"), "no such network"),
                          (NO_MEMORY, "out of memory")],
)  # fmt: skip
def test_a_case_that_cannot_be_built_is_skipped_whole(error, reason):
    made = recorder.run(experiment(error, twice()))
    assert made.cases[0].samples == {}
    assert made.cases[0].skipped == {"every arm": reason}
    assert made.cases[1].samples
    assert made.missing == {}


def test_no_variant_at_all_is_no_benchmark():
    only = Benchmark({"other": raising(Unavailable("not here"))}, TWICE, 0)
    (case,) = recorder.run(experiment(only)).cases
    assert (case.samples, case.skipped) == ({}, {"other": "not here"})


# A limit of time, by a clock that is made up.


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now_s)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: round(1e9 * clock.now_s))
    monkeypatch.setattr(signal, "setitimer", clock.set)
    monkeypatch.setattr(signal, "signal", clock.handle)
    return clock


def timed(clock, limit_s, *variants, **settings):
    """(the cases of a record, the seconds it took)."""
    benchmarks = [Benchmark(each, TWICE, 1e-6) for each in variants]
    began = clock.now_s
    made = recorder.run(experiment(*benchmarks, **settings), limit_s=limit_s)
    return made.cases, clock.now_s - began


def test_what_begins_too_late_is_skipped(clock):
    variants = {"a": clock.variant(0.01), "b": clock.variant(0.01)}
    (first, second), _ = timed(clock, 9, {"a": clock.variant(0.1, 2)}, variants)
    assert (len(first.samples["a"]), first.skipped) == (20, {})
    assert (len(second.samples["a"]), second.skipped) == (20, {})
    (first, second), took_s = timed(clock, 2.5, {"a": clock.variant(0.1)}, variants)
    assert len(first.samples["a"]) < 20
    assert second.skipped == {"every arm": "not reached within 2.5 s"}
    assert took_s < 2.5 + 0.7  # a turn, and four calls for counting


def test_what_begins_just_in_time_is_not_skipped(clock):
    deadline = recorder.Deadline(9)
    clock.now_s = 9.0
    deadline.check()
    assert not deadline.late()
    clock.now_s = math.nextafter(9.0, 10.0)
    assert deadline.late()
    with pytest.raises(Unavailable, match="not reached within 9 s"):
        deadline.check()


def test_the_limit_is_looked_at_within_a_benchmark(clock):
    """Two variants of a second each: a round takes four."""
    variants = {"a": clock.variant(1), "b": clock.variant(1)}
    (case,), _ = timed(clock, math.inf, variants)
    assert {len(us) for us in case.samples.values()} == {20}
    (case,), took_s = timed(clock, 60, variants)
    (rounds,) = {len(us) for us in case.samples.values()}
    assert measuring.LEAST_ROUNDS <= rounds < 20
    assert 60 <= took_s < 60 + 12  # a turn, and four calls of each for counting
    assert case.skipped == {}


def test_fewer_rounds_than_the_least_are_not_kept(clock, monkeypatch):
    monkeypatch.setattr(
        measuring, "_benchmark_s", lambda call_s: 0
    )  # it hopes for the best
    (case,), took_s = timed(clock, 30, {"a": clock.variant(1), "b": clock.variant(1)})
    assert case.skipped == {"every arm": "not reached within 30 s"}
    assert (case.samples, case.launches, case.calls) == ({}, {}, {})
    assert took_s <= 30 + 2


def test_the_limit_is_looked_at_while_warming_up(clock, monkeypatch):
    monkeypatch.setattr(measuring, "_benchmark_s", lambda call_s: 0)
    monkeypatch.setattr(measuring, "SLACK", 0)
    variants = {name: clock.variant(5) for name in "abcdef"}
    (case,), took_s = timed(clock, 31, variants)
    assert case.skipped == {"every arm": "not reached within 31 s"}
    assert took_s < 31 + 15  # once `wall` has begun it is called three times


def test_fewer_rounds_are_enough_if_no_more_were_planned(clock):
    (case,), _ = timed(clock, 60, {"a": clock.variant(0.01)}, ROUNDS=2)
    assert len(case.samples["a"]) == 2


def test_what_takes_long_to_make_is_interrupted(clock, monkeypatch):
    """A compiler cannot look at the clock. What was ready is measured."""
    monkeypatch.setattr(measuring, "SLACK", 0)
    variants = {
        "a": clock.variant(0.01),
        "slow": clock.variant(0.01, 1000),
        "late": clock.variant(0.01),
    }
    (case, after), took_s = timed(clock, 20, variants, {"a": clock.variant(0.01)})
    reason = "not reached within 20 s"
    assert case.skipped == {"slow": reason, "late": reason}
    assert len(case.samples["a"]) >= measuring.LEAST_ROUNDS
    assert took_s < 20 + 2
    assert after.skipped == {"every arm": reason}


def test_what_is_interrupted_may_take_a_while_to_end_and_the_others_benchmark(clock):
    """As a compiler does that first waits for its processes."""

    def make():
        try:
            clock.spend(1000)
        finally:
            clock.spend(0.04 * 20)

    (case,), took_s = timed(clock, 20, {"a": clock.variant(0.001), "slow": make})
    assert list(case.skipped) == ["slow"]
    assert len(case.samples["a"]) >= measuring.LEAST_ROUNDS
    assert took_s < 20 + 0.1


def test_once_the_time_is_over_no_further_case_begins(clock):
    """So a bar does not say that it is done."""
    begun = []

    def progress(cases):
        for case in cases:
            begun.append(case)
            yield case

    benchmarks = [Benchmark({"a": clock.variant(5)}, TWICE, 1e-6) for _ in range(5)]
    made = recorder.run(experiment(*benchmarks, ROUNDS=2), limit_s=20, progress=progress)
    assert len(begun) < 4
    reasons = [case.skipped for case in made.cases[len(begun) :]]
    assert reasons == [{"every arm": "not reached within 20 s"}] * len(reasons)


def test_what_an_interrupted_compiler_makes_of_it_is_the_limit_s(clock):
    def make():
        try:
            clock.spend(100)
        except BaseException as error:
            raise RuntimeError("the compiler has crashed") from error

    (case,), _ = timed(clock, 9, {"slow": make})
    assert case.skipped == {"slow": "not reached within 9 s"}


@pytest.mark.parametrize("seconds", [100, 0])
def test_only_an_alarm_that_rings_in_a_finalizer_is_lost_in_silence(
    clock, monkeypatch, seconds
):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    hook = sys.unraisablehook

    class Held:
        def __del__(self):
            clock.spend(seconds)
            raise ValueError("another fault")

    def make():
        Held()
        return lambda: X + X

    timed(clock, 9, {"slow": make})
    assert [lost.exc_type for lost in heard] == [ValueError] * (seconds == 0)
    assert sys.unraisablehook is hook


def test_an_alarm_is_taken_back(clock):
    deadline = recorder.Deadline(9)
    with deadline.alarm():
        clock.spend(1)
    clock.spend(100)
    assert clock.ring is None


def test_an_alarm_of_the_system_interrupts():
    """Once by the real one; it is set to ring at once."""
    deadline = recorder.Deadline(0)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(recorder.TooLate), deadline.alarm():
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) == before


def test_after_each_case_the_record_so_far_is_handed_over(tmp_path):
    kept = []
    made = recorder.run(experiment(twice(), twice(), ROUNDS=2), keep=kept.append)
    first, last = kept
    assert last == made
    assert first.cases[0] == made.cases[0]
    stopped = "not reached before the run was stopped"
    assert first.cases[1].skipped == {"every arm": stopped}
    assert first.cases[1].parameters == {"number": 1}
    assert records.load(records.save(first, tmp_path)).cases[1].samples == {}


def test_while_something_is_made_it_is_said_each_second(clock):
    """What, before each variant; then without words, so that a line can move."""
    heard = []

    def say(words=None, every_s=0):
        heard.append((round(clock.now_s, 3), words))

    benchmark = Benchmark(
        {"a": clock.variant(0.1), "slow": clock.variant(0.1, 3.5)}, TWICE, 1e-6
    )
    recorder.run(experiment(benchmark, ROUNDS=1), limit_s=60, say=say)
    making = heard[: next(n for n, (_, words) in enumerate(heard) if words == "2 in turns")]
    assert making == [
        (0, "a"), (0.1, "slow"), (1.1, None), (2.1, None), (3.1, None)
    ]  # fmt: skip
    assert [words for _, words in heard if words] == ["a", "slow", "2 in turns", "counting"]


def test_in_a_benchmark_every_turn_may_say_that_it_lives_once_a_second(clock):
    asked = []
    benchmark = Benchmark({"a": clock.variant(0.1)}, TWICE, 1e-6)
    say = lambda words=None, every_s=0: asked.append((words, every_s))
    recorder.run(experiment(benchmark, ROUNDS=4), say=say)
    assert asked.count((None, deadlines.TICK_S)) == measuring.WARM_UP + 4


def test_what_a_record_has_is_not_measured_again():
    benchmarks = [twice(), twice(), twice()]
    kept = []
    recorder.run(experiment(*benchmarks, ROUNDS=2), keep=kept.append)
    known, measured = kept[0], []

    def progress(cases):
        measured.extend(cases)
        return iter(cases)

    made = recorder.run(experiment(*benchmarks, ROUNDS=2), progress=progress, known=known)
    assert measured == [{"number": 1}, {"number": 2}]
    assert [case.parameters["number"] for case in made.cases] == [0, 1, 2]
    assert made.cases[0] is known.cases[0]
    assert all(case.samples for case in made.cases)


LACKS = records.Case({"n": 1}, {}, skipped={"every arm": "needs a CUDA device"})
LATER = records.Case({"n": 1}, {}, skipped={"every arm": recorder.STOPPED})
OTHERS = records.Case({"n": 1}, {"a": (1.0,)}, skipped={"b": "not reached within 3 s"})


@pytest.mark.parametrize(
    ("case", "lacks"), [(LACKS, False), (LATER, True), (OTHERS, False)]
)
def test_only_for_want_of_time_a_case_is_unfinished(case, lacks):
    assert recorder.unfinished(case) == lacks


# What is slow comes again, at the end.


def with_slow(slow, **settings):
    """Two cases, the second with a variant that takes long to make."""
    made = experiment(twice(), twice(slow=slow), ROUNDS=2, **settings)
    benchmark = made.benchmark
    made.benchmark = lambda device, number: dataclasses.replace(
        benchmark(device, number), slow=("slow",) if number else ()
    )
    made.again = lambda device: [{"number": 1}]
    return made


def slow():
    return lambda: X + X


def test_slow_variants_come_at_the_end_with_the_others_once_more():
    seen = []

    def progress(cases):
        seen.extend(cases)
        return iter(cases)

    first = recorder.run(with_slow(slow), again=False)
    assert set(first.cases[1].samples) == {"add", "multiply"}
    assert first.cases[1].skipped == {"slow": recorder.AGAIN}
    assert not recorder.unfinished(first.cases[1])
    last = recorder.run(with_slow(slow), progress=progress, known=first, again=True)
    assert seen == [{"number": 1}]
    assert last.cases[0] is first.cases[0]
    assert set(last.cases[1].samples) == {"add", "multiply", "slow"}
    assert last.cases[1].skipped == last.missing == {}
    seen.clear()
    whole = recorder.run(with_slow(slow), progress=progress)
    assert seen == [{"number": 0}, {"number": 1}, {"number": 1}]
    assert set(whole.cases[1].samples) == {"add", "multiply", "slow"}


def test_a_slow_variant_that_fails_leaves_what_there_was(monkeypatch):
    first = recorder.run(with_slow(slow), again=False)
    monkeypatch.setattr(timing, "benchmark", raising(ValueError("no")))
    last = recorder.run(with_slow(slow), known=first, again=True)
    assert last.cases[1].samples == first.cases[1].samples
    assert last.cases[1].skipped["slow"] == recorder.AGAIN
    assert last.cases[1].skipped["every arm"] == "failed: ValueError: no"


def test_what_a_variant_says_of_itself_is_kept():
    def variant():
        return X + X

    def graph():
        return X + X

    graph.fn = variant  # as `timing.graphed` has it
    variant.note = lambda: "tiles 1×1"
    benchmark = twice(chosen=lambda: variant, graph=lambda: graph)
    (case,) = recorder.run(experiment(benchmark, ROUNDS=2)).cases
    assert case.notes == {"chosen": "tiles 1×1", "graph": "tiles 1×1"}


def test_a_timeline_is_taken_after_the_benchmark(monkeypatch):
    order, benchmark = [], timing.benchmark
    monkeypatch.setattr(
        timing, "benchmark", lambda *given: order.append("benchmark") or benchmark(*given)
    )
    event = ("device", "conv", 0.0, 1.0)
    timeline = lambda: order.append("timeline") or [event]
    one = dataclasses.replace(twice(), timeline=timeline)
    (case,) = recorder.run(experiment(one, ROUNDS=2)).cases
    assert (order, case.events) == (["benchmark", "timeline"], (event,))
    one = dataclasses.replace(twice(), timeline=raising(RuntimeError("no profiler")))
    (case,) = recorder.run(experiment(one, ROUNDS=2)).cases
    assert case.skipped == {"timeline": "failed: RuntimeError: no profiler"}
    assert set(case.samples) == {"add", "multiply"}


def test_a_device_that_is_lost_ends_the_measuring(monkeypatch):
    monkeypatch.setattr(measuring, "_answers", lambda: False)
    broken = twice(bad=raising(RuntimeError("CUDA error: illegal address")))
    with pytest.raises(recorder.Lost) as lost:
        recorder.run(experiment(broken, twice()))
    assert (lost.value.variant, lost.value.reason) == (
        "bad", "failed: RuntimeError: CUDA error: illegal address",
    )  # fmt: skip


@pytest.mark.parametrize("answers", [True, False])
def test_a_device_is_asked_whether_it_answers(monkeypatch, answers):
    asked = (lambda: None) if answers else raising(NO_MEMORY)
    monkeypatch.setattr(torch.cuda, "synchronize", asked)
    assert measuring._answers()  # it was not used
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert measuring._answers() is answers


@pytest.mark.parametrize(("variant", "skipped"), [("add", "add"), ("", "every arm"),
                                              ("2 in turns", "every arm")])  # fmt: skip
def test_what_was_lost_is_left_out(variant, skipped):
    lost = (({"number": 1}, variant, "failed: it hangs"),)
    made = recorder.run(experiment(twice(), twice(), ROUNDS=2), lost=lost)
    first, second = made.cases
    assert first.skipped == {}
    assert second.skipped == {skipped: "failed: it hangs"}
    assert set(second.samples) == ({"multiply"} if variant == "add" else set())


def test_time_is_shared_and_what_is_left_goes_on(clock):
    given = []
    for name, limit_s in recorder.shared({"a": 1, "b": 2, "c": 1}, 40):
        given.append((name, limit_s))
        clock.spend(4 if name == "a" else limit_s)
    assert given == [("a", 10), ("b", 24), ("c", 12)]
    assert clock.now_s == 40


# How it is timed.


def test_each_variant_has_as_many_calls_as_its_turn_needs(clock):
    """A variant a thousand times slower than another does not make a turn longer."""
    variants = {
        "fast": clock.variant(40e-6),
        "slow": clock.variant(0.04),
        "fastest": clock.variant(1e-6),
    }
    (case,), took_s = timed(clock, math.inf, variants)
    assert case.calls == {"fast": measuring.TURN_US / 40, "slow": 1, "fastest": 100}
    assert case.samples["slow"] == [40_000] * 20
    # 20 rounds of two calls, one not timed; ten more to find that out and to count.
    assert took_s < 50 * 0.04 + 20 * 2 * 0.003 + 0.1


def test_a_benchmark_may_say_how_many_calls_and_with_which_watch(monkeypatch):
    given = {}

    def benchmark(variants, device, rounds, warm_up, calls, watches, late):
        given.update(calls=calls, watches=watches)
        return {name: [1.0] for name in variants}

    monkeypatch.setattr(timing, "benchmark", benchmark)
    variants = {"add": lambda: lambda: X + X, "gone": raising(Unavailable("not here"))}
    watches = {"add": timing.host, "gone": timing.host}
    benchmark = Benchmark(variants, TWICE, 0, watches, calls=7)
    (case,) = recorder.run(experiment(benchmark, ROUNDS=1)).cases
    assert given == {"calls": {"add": 7}, "watches": {"add": timing.host}}
    assert case.calls == {"add": 7}


def test_a_variant_that_does_it_many_times_is_recorded_for_once(monkeypatch):
    def benchmark(variants, *_):
        return {"once": [30.0], "five times": [20.0]}

    monkeypatch.setattr(timing, "benchmark", benchmark)

    def five():
        for _ in range(5):
            y = X + X
        return y

    variants = {"once": lambda: lambda: X + X, "five times": lambda: five}
    benchmark = Benchmark(variants, TWICE, 0, repeats={"five times": 5})
    (case,) = recorder.run(experiment(benchmark, ROUNDS=1)).cases
    assert case.samples == {"once": [30.0], "five times": [4.0]}
    assert case.launches == {"once": 1, "five times": 1}


def test_operators_of_an_opaque_variant_are_not_counted():
    variants = {"seen": lambda: lambda: X + X, "compiled": lambda: lambda: X + X}
    benchmark = Benchmark(variants, TWICE, 0, opaque=("compiled",))
    (case,) = recorder.run(experiment(benchmark)).cases
    assert case.launches == {"seen": 1}
    assert set(case.samples) == {"seen", "compiled"}


def test_float32_stays_float32_and_the_settings_come_back(monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    monkeypatch.setattr(cudnn, "benchmark", False)
    during = []

    def add():
        during.append((cudnn.allow_tf32, cudnn.benchmark))
        return X + X

    recorder.run(experiment(Benchmark({"add": lambda: add}, TWICE, 0)))
    assert set(during) == {(False, True)}
    assert (cudnn.allow_tf32, cudnn.benchmark) == (True, False)
    with pytest.raises(KeyboardInterrupt):
        recorder.run(experiment(twice(stops=raising(KeyboardInterrupt()))))
    assert (cudnn.allow_tf32, cudnn.benchmark) == (True, False)


# Where it comes from.


def test_the_machine_is_named_after_its_device(monkeypatch):
    monkeypatch.setattr(timing, "device_name", lambda device: "Intel(R) Xeon(R), 2 threads")
    assert machines.machine().name == "intel-r-xeon-r-2-threads"
    assert machines.machine().kind == "cpu"
    assert machines.machine().driver is None


def test_a_gpu_has_versions_of_its_own(monkeypatch):
    monkeypatch.setattr(timing, "device_name", lambda device: f"A GPU ({device})")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    monkeypatch.setattr(machines, "_output", lambda *command: f"by {command[0]}")
    monkeypatch.setattr(machines, "_triton", lambda: "3.6.0")
    found = machines.machine("cuda")
    assert (found.name, found.kind) == ("a-gpu-cuda", "cuda")
    assert (found.cuda, found.cudnn) == ("13.0", 91000)
    assert (found.driver, found.triton) == ("by nvidia-smi", "3.6.0")


def test_the_hash_of_the_sources_changes_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "CODE", tmp_path)
    texts = [{"a.py": "1"}, {"a.py": "2"}, {"b.py": "1"}, {"a.py": "1", "c.py": ""}]
    hashes = []
    for files in texts:
        package = tmp_path / "sideways"
        shutil.rmtree(package, ignore_errors=True)
        package.mkdir()
        for name, text in files.items():
            (package / name).write_text(text)
        hashes.append(machines.sources.__wrapped__())
    assert all(a != b for a, b in itertools.combinations(hashes, 2))


def test_a_commit_is_marked_where_files_were_changed(monkeypatch):
    answers = {"rev-parse": "0" * 40, "status": None}
    monkeypatch.setattr(machines, "_output", lambda git, verb, *more: answers[verb])
    assert machines.commit.__wrapped__() == "0" * 40
    answers["status"] = " M layers.py"
    assert machines.commit.__wrapped__() == "0" * 40 + "+"
    answers["rev-parse"] = None
    monkeypatch.delenv("HFUSION_COMMIT", raising=False)
    assert machines.commit.__wrapped__() is None
    monkeypatch.setenv("HFUSION_COMMIT", "1" * 40)  # where it is recorded without git
    assert machines.commit.__wrapped__() == "1" * 40 + "+"
    answers["status"] = None
    assert machines.commit.__wrapped__() == "1" * 40


def test_a_program_that_fails_or_is_missing_says_nothing():
    assert machines._output("git", "no-such-verb") is None
    assert machines._output("no-such-program-anywhere") is None


def python(code):
    return machines._output(sys.executable, "-I", "-S", "-c", code)


def test_of_what_a_program_says_the_first_line_is_kept():
    assert python("print(' one '); print('two')") == "one"
    assert python("print()") is None


def test_what_a_program_says_before_it_fails_is_not_kept():
    assert python("print('one'); raise SystemExit(3)") is None


def test_a_program_is_asked_about_the_sources_wherever_this_one_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "CODE", tmp_path)
    assert Path(python("import os; print(os.getcwd())")).samefile(tmp_path)


def test_a_program_that_does_not_answer_is_given_up(monkeypatch):
    def waits(command, *, timeout, **more):
        assert timeout < 60
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", waits)
    assert machines._output("git", "status") is None


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no alarm here")
def test_an_alarm_that_rings_while_it_is_set_is_taken_back(monkeypatch):
    before, variant = signal.getsignal(signal.SIGALRM), signal.setitimer

    def rings_at_once(which, seconds, again=0):
        variant(which, seconds, again)
        if seconds:
            signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(signal, "setitimer", rings_at_once)
    with pytest.raises(recorder.TooLate), recorder.Deadline(0).alarm():
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_where_nothing_was_measured_no_timeline_is_taken():
    variants = {"other": raising(Unavailable("not here"))}
    benchmark = Benchmark(variants, TWICE, 1e-6, timeline=raising(AssertionError("taken")))
    (case,) = recorder.run(experiment(benchmark)).cases
    assert case.skipped == {"other": "not here"}
