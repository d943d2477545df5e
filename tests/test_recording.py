"""recording.py: agreed before timed, skipped with a reason, nothing kept of a wrong run."""

import itertools
import math
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from hfusion import measure, recording, records
from hfusion.recording import Race, Unavailable

X = torch.arange(1.0, 5.0)
TWICE = ((2 * X).double(),)


def experiment(*races, **settings):
    """A module with these races, one a case; an exception is raised instead."""

    def race(device, number):
        found = races[number]
        if isinstance(found, BaseException):
            raise found
        return found

    return types.SimpleNamespace(
        __name__="hfusion.experiments.made_up",
        QUESTION="Which?",
        cases=lambda device: [{"number": number} for number in range(len(races))],
        race=race,
        **settings,
    )


def raising(error):
    def make(*args, **kwargs):
        raise error

    return make


def twice(share=1e-6, **more):
    arms = {"add": lambda: lambda: X + X, "multiply": lambda: lambda: 2 * X}
    return Race(arms | more, TWICE, share)


def test_a_record_has_what_was_raced():
    made = recording.record(experiment(twice(), twice()))
    assert (made.experiment, made.question) == ("made_up", "Which?")
    assert made.counted == "operators"
    assert [case.parameters for case in made.cases] == [{"number": 0}, {"number": 1}]
    for case in made.cases:
        assert {name: len(us) for name, us in case.samples.items()} == {
            "add": recording.ROUNDS,
            "multiply": recording.ROUNDS,
        }
        assert case.launches == {"add": 1, "multiply": 1}
        assert case.skipped == {}
    assert made.missing == {}


def test_a_record_can_be_saved_and_read(tmp_path):
    made = recording.record(experiment(twice()))
    assert records.load(records.save(made, tmp_path)).label == made.label


def test_an_experiment_may_want_other_rounds():
    made = recording.record(experiment(twice(), ROUNDS=3))
    assert len(made.cases[0].samples["add"]) == made.protocol["rounds"] == 3


# A wrong result stops everything before any timing.

WRONG = {
    "another number": lambda: X + X + 1,
    "one NaN": lambda: torch.tensor([2.0, float("nan"), 6.0, 8.0]),
    "infinity": lambda: torch.tensor([2.0, float("inf"), 6.0, 8.0]),
    "another shape": lambda: (X + X)[None],
    "two results": lambda: (X + X, X + X),
    "no result": lambda: (),
}


@pytest.fixture
def never_timed(monkeypatch):
    def no(*args, **kwargs):
        raise AssertionError("it was timed")

    monkeypatch.setattr(measure, "time_arms", no)
    monkeypatch.setattr(measure, "wall", no)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_result_stops_before_any_timing(never_timed, wrong):
    race = twice(wrong=lambda: WRONG[wrong])
    with pytest.raises(measure.Disagreement, match=r"^wrong: "):
        recording.record(experiment(race))


def test_a_result_within_its_share_passes_and_beyond_it_does_not():
    def off():
        return 2 * X + 0.7e-3 * 8  # of the largest, which is 8

    recording.record(experiment(twice(share=1e-3, off=lambda: off)))
    with pytest.raises(measure.Disagreement, match=r"^off: "):
        recording.record(experiment(twice(share=0.5e-3, off=lambda: off)))


def test_an_error_of_the_experiment_comes_out():
    with pytest.raises(ZeroDivisionError):
        recording.record(experiment(twice(broken=lambda: lambda: 1 / 0)))


# What cannot run is skipped, and the record says why.

NO_MEMORY = torch.OutOfMemoryError("tried to allocate 3 GiB")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Unavailable("needs a CUDA device"), "needs a CUDA device"),
     (NO_MEMORY, "out of memory")],
)  # fmt: skip
def test_an_arm_that_cannot_run_is_skipped(error, reason):
    made = recording.record(experiment(twice(), twice(other=raising(error))))
    assert made.cases[1].skipped == {"other": reason}
    assert set(made.cases[1].samples) == {"add", "multiply"}
    assert made.missing == {"other": reason}


def test_an_arm_that_runs_out_of_memory_when_called_is_skipped():
    made = recording.record(experiment(twice(other=lambda: raising(NO_MEMORY))))
    assert made.cases[0].skipped == {"other": "out of memory"}


def test_an_arm_that_ran_once_is_not_missing():
    with_it = twice(other=lambda: lambda: X + X)
    without = twice(other=raising(NO_MEMORY))
    made = recording.record(experiment(with_it, without))
    assert made.missing == {}
    assert made.cases[1].skipped == {"other": "out of memory"}


@pytest.mark.parametrize(
    ("error", "reason"), [(Unavailable("no such network"), "no such network"),
                          (NO_MEMORY, "out of memory")],
)  # fmt: skip
def test_a_case_that_cannot_be_built_is_skipped_whole(error, reason):
    made = recording.record(experiment(error, twice()))
    assert made.cases[0].samples == {}
    assert made.cases[0].skipped == {"every arm": reason}
    assert made.cases[1].samples
    assert made.missing == {}


def test_a_race_that_runs_out_of_memory_is_skipped_whole(monkeypatch):
    monkeypatch.setattr(measure, "time_arms", raising(NO_MEMORY))
    (case,) = recording.record(experiment(twice())).cases
    assert (case.samples, case.skipped) == ({}, {"every arm": "out of memory"})


def test_no_arm_at_all_is_no_race():
    only = Race({"other": raising(Unavailable("not here"))}, TWICE, 0)
    (case,) = recording.record(experiment(only)).cases
    assert (case.samples, case.skipped) == ({}, {"other": "not here"})


# A limit of time.


@pytest.fixture
def clock(monkeypatch):
    """Time passes as told; each race of time_arms takes no time."""
    now = [0.0]
    monkeypatch.setattr(recording.time, "monotonic", lambda: now[0])
    return now


def test_what_begins_too_late_is_skipped(clock):
    def slow():
        clock[0] += 10
        return lambda: X + X

    races = [twice(slow=slow, late=lambda: lambda: X + X), twice()]
    made = recording.record(experiment(*races), limit_s=9)
    reason = "not reached within 9 s"
    assert made.cases[0].skipped == {"late": reason}
    assert set(made.cases[0].samples) == {"add", "multiply", "slow"}
    assert made.cases[1].skipped == {"every arm": reason}


def test_what_begins_just_in_time_is_not_skipped(clock):
    deadline = recording.Deadline(9)
    clock[0] = 9.0
    deadline.check()
    clock[0] = math.nextafter(9.0, 10.0)
    with pytest.raises(Unavailable, match="not reached within 9 s"):
        deadline.check()


def test_progress_sees_every_case():
    seen = []

    def progress(cases):
        for case in cases:
            seen.append(case)
            yield case

    recording.record(experiment(twice(), twice()), progress=progress)
    assert seen == [{"number": 0}, {"number": 1}]


# How it is timed.


def test_a_turn_has_as_many_calls_as_the_fastest_arm_needs(monkeypatch):
    times_us = {"add": 40.0, "multiply": 400.0}
    monkeypatch.setattr(measure, "wall", lambda arm, calls, device: times_us[arm])
    arms = {name: name for name in times_us}
    assert recording._calls(arms, "cpu") == recording.TURN_US / 40
    times_us["add"] = 1.0
    assert recording._calls(arms, "cpu") == 100
    times_us |= {"add": 1e6, "multiply": 1e7}
    assert recording._calls(arms, "cpu") == 1


def test_a_race_may_say_how_many_calls_and_with_which_watch(monkeypatch):
    given = {}

    def time_arms(arms, device, rounds, warm_up, calls, watches):
        given.update(calls=calls, watches=watches)
        return {name: [1.0] for name in arms}

    monkeypatch.setattr(measure, "time_arms", time_arms)
    arms = {"add": lambda: lambda: X + X, "gone": raising(Unavailable("not here"))}
    watches = {"add": measure.host, "gone": measure.host}
    recording.record(experiment(Race(arms, TWICE, 0, watches, calls=7)))
    assert given == {"calls": 7, "watches": {"add": measure.host}}


def test_an_arm_that_does_it_many_times_is_recorded_for_once(monkeypatch):
    def time_arms(arms, *_):
        return {"once": [30.0], "five times": [20.0]}

    monkeypatch.setattr(measure, "time_arms", time_arms)

    def five():
        for _ in range(5):
            y = X + X
        return y

    arms = {"once": lambda: lambda: X + X, "five times": lambda: five}
    race = Race(arms, TWICE, 0, repeats={"five times": 5})
    (case,) = recording.record(experiment(race)).cases
    assert case.samples == {"once": [30.0], "five times": [4.0]}
    assert case.launches == {"once": 1, "five times": 1}


def test_operators_of_an_opaque_arm_are_not_counted():
    arms = {"seen": lambda: lambda: X + X, "compiled": lambda: lambda: X + X}
    race = Race(arms, TWICE, 0, opaque=("compiled",))
    (case,) = recording.record(experiment(race)).cases
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

    recording.record(experiment(Race({"add": lambda: add}, TWICE, 0)))
    assert set(during) == {(False, True)}
    assert (cudnn.allow_tf32, cudnn.benchmark) == (True, False)
    with pytest.raises(ZeroDivisionError):
        recording.record(experiment(twice(broken=lambda: lambda: 1 / 0)))
    assert (cudnn.allow_tf32, cudnn.benchmark) == (True, False)


# Where it comes from.


def test_the_machine_is_named_after_its_device(monkeypatch):
    monkeypatch.setattr(
        measure, "device_name", lambda device: "Intel(R) Xeon(R), 2 threads"
    )
    assert recording.machine().name == "intel-r-xeon-r-2-threads"
    assert recording.machine().kind == "cpu"
    assert recording.machine().driver is None


def test_a_gpu_has_versions_of_its_own(monkeypatch):
    monkeypatch.setattr(measure, "device_name", lambda device: f"A GPU ({device})")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    monkeypatch.setattr(recording, "_output", lambda *command: f"by {command[0]}")
    monkeypatch.setattr(recording, "_triton", lambda: "3.6.0")
    found = recording.machine("cuda")
    assert (found.name, found.kind) == ("a-gpu-cuda", "cuda")
    assert (found.cuda, found.cudnn) == ("13.0", 91000)
    assert (found.driver, found.triton) == ("by nvidia-smi", "3.6.0")


def test_the_hash_of_the_sources_changes_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "PACKAGE", tmp_path)
    texts = [{"a.py": "1"}, {"a.py": "2"}, {"b.py": "1"}, {"a.py": "1", "c.py": ""}]
    hashes = []
    for files in texts:
        for path in tmp_path.glob("*.py"):
            path.unlink()
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        hashes.append(recording.sources.__wrapped__())
    assert all(a != b for a, b in itertools.combinations(hashes, 2))


def test_a_commit_is_marked_where_files_were_changed(monkeypatch):
    answers = {"rev-parse": "0" * 40, "status": None}
    monkeypatch.setattr(recording, "_output", lambda git, verb, *more: answers[verb])
    assert recording.commit.__wrapped__() == "0" * 40
    answers["status"] = " M layers.py"
    assert recording.commit.__wrapped__() == "0" * 40 + "+"
    answers["rev-parse"] = None
    assert recording.commit.__wrapped__() is None


def test_a_program_that_fails_or_is_missing_says_nothing():
    assert recording._output("git", "no-such-verb") is None
    assert recording._output("no-such-program-anywhere") is None


def python(code):
    return recording._output(sys.executable, "-I", "-S", "-c", code)


def test_of_what_a_program_says_the_first_line_is_kept():
    assert python("print(' one '); print('two')") == "one"
    assert python("print()") is None


def test_what_a_program_says_before_it_fails_is_not_kept():
    assert python("print('one'); raise SystemExit(3)") is None


def test_a_program_is_asked_about_the_sources_wherever_this_one_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "PACKAGE", tmp_path)
    assert Path(python("import os; print(os.getcwd())")).samefile(tmp_path)


def test_a_program_that_does_not_answer_is_given_up(monkeypatch):
    def waits(command, *, timeout, **more):
        assert timeout < 60
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", waits)
    assert recording._output("git", "status") is None
