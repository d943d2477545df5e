"""apart.py: what hangs, crashes or loses its device costs its own variant, and no other.

Real processes; what is measured in them is made up.
"""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from sideways import apart, recorder
from sideways.recorder import measuring

X = torch.arange(1.0, 5.0)
GOOD = {"add": lambda: lambda: X + X, "multiply": lambda: lambda: 2 * X}


def hangs():
    time.sleep(1000)


def hangs_deaf():
    """As what waits in a library for a device: no alarm is heard."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(1000)


def crashes():
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(10)


def loses_the_device():
    measuring._answers = lambda: False
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def leaves():
    raise SystemExit(3)


def only_raises():
    raise ValueError("no")


BAD = {fn.__name__: fn for fn in (
    hangs_deaf, crashes, loses_the_device, leaves, only_raises,
)}  # fmt: skip
WHERE = ("made", "called", "measured", "prepared", "counted")


class Experiment:
    """Three cases; in the second one variant, or the whole case, does what it must not."""

    __name__, QUESTION, ROUNDS = "sideways.experiments.made_up", "Which?", 2

    def __init__(self, bad, where):
        self.bad, self.where = BAD.get(bad), where

    def cases(self, device):
        return [{"number": number} for number in range(3)]

    def benchmark(self, device, number):
        if number != 1 or not self.bad:
            return recorder.Benchmark(GOOD, ((2 * X).double(),), 1e-6)
        if self.where == "prepared":
            self.bad()
        calls = []

        def variant():
            calls.append(1)
            if self.where == "called" or (self.where == "measured" and len(calls) > 8):
                self.bad()
            return X + X

        def make():
            return self.bad() if self.where == "made" else variant

        def count(variant):
            if self.where == "counted":
                self.bad()
            return 1

        variants = {"add": GOOD["add"], "bad": make, "multiply": GOOD["multiply"]}
        return recorder.Benchmark(variants, ((2 * X).double(),), 1e-6, count=count)


def measure(name, device, limit_s, progress, keep, say, known, again, lost):
    """In the place of `experiments.run`, in the other process; name: what goes wrong."""
    bad, _, where = name.partition(" ")
    given = limit_s, progress, keep, say, known, again, lost
    return recorder.run(Experiment(bad, where), device, *given)


def ran(name, limit_s=120, **more):
    return apart.run(name, "cpu", limit_s, measure=measure, **more)


REASONS = {
    "hangs_deaf": "failed: it hangs",
    "crashes": "failed: its process ended with status -11",
    "leaves": "failed: its process ended with status 3",
    "loses_the_device": "failed: RuntimeError: CUDA error: an illegal memory access was "
    "encountered",
    "only_raises": "failed: ValueError: no",
}
# Who is skipped: the variant, if it is known who was at it; else the case.
BLAMED = {"made": "bad", "called": "bad", "measured": "every arm", "prepared": "every arm"}


def test_what_goes_well_is_as_if_it_were_not_apart():
    told, kept, said = [], [], []

    def progress(cases):
        for case in cases:
            told.append(case["number"])
            yield case

    made = ran("well", progress=progress, keep=kept.append, say=lambda *g: said.append(g))
    assert told == [0, 1, 2]
    assert kept[-1] == made
    assert all(set(case.samples) == {"add", "multiply"} for case in made.cases)
    assert {"add", "multiply", "2 in turns", "counting"} <= {words for words, _ in said}


@pytest.mark.parametrize("where", BLAMED)
@pytest.mark.parametrize("bad", sorted({*REASONS} - {"hangs_deaf"}))
def test_what_goes_wrong_costs_its_own(bad, where):
    costs_its_own(bad, where)


@pytest.mark.slow
@pytest.mark.parametrize("where", BLAMED)
def test_what_hangs_costs_its_own(where, monkeypatch):
    """Nothing is heard of it, even when much else runs here."""
    monkeypatch.setattr(apart, "STILL_S", 20)
    monkeypatch.setattr(apart, "PREPARES_S", 30)
    costs_its_own("hangs_deaf", where)


def silent_for_a_while():
    """As a long product in float64 on a busy CPU."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(13)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})


BAD["silent_for_a_while"] = silent_for_a_while


@pytest.mark.slow
def test_what_prepares_a_case_may_be_silent_for_longer(monkeypatch):
    monkeypatch.setattr(apart, "STILL_S", 10)
    made = ran("silent_for_a_while prepared")
    assert all(set(case.samples) == {"add", "multiply"} for case in made.cases[::2])
    assert "bad" in made.cases[1].samples


def test_on_cuda_float64_is_no_reason_to_be_silent():
    assert apart._still_s("", "cuda") == apart._still_s("a variant", "cpu") == apart.STILL_S
    assert apart._still_s("", "cpu") == apart._still_s("", "mps") == apart.PREPARES_S
    assert apart.STILL_S < apart.PREPARES_S


def costs_its_own(bad, where):
    made = ran(f"{bad} {where}")
    first, second, third = made.cases
    assert set(first.samples) == set(third.samples) == {"add", "multiply"}
    who = BLAMED[where]
    if bad in ("only_raises", "loses_the_device") and where == "measured":
        who = "bad"  # it was caught, and it is known who it was
    assert second.skipped == {who: REASONS[bad]}
    assert set(second.samples) == ({"add", "multiply"} if who == "bad" else set())


def test_a_record_that_never_comes_is_an_error():
    with pytest.raises(RuntimeError, match=r"^ValueError: there is none$"):
        apart.run("x", "cpu", 20, measure=no_measure)


def no_measure(*given):
    raise ValueError("there is none")


def test_at_its_limit_it_is_ended_with_what_there_is(monkeypatch):
    """Here as soon as a case is known."""
    monkeypatch.setattr(apart, "LATE_S", 0)
    clock = [0.0]
    monkeypatch.setattr(apart, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    made = ran(
        "hangs_deaf called",
        limit_s=100,
        keep=lambda record: clock.append(clock.pop() + 150),
    )
    assert made.cases[0].samples
    assert made.cases[2].skipped == {"every arm": recorder.STOPPED}


def test_it_is_ended_when_this_process_is_interrupted(monkeypatch):
    pids = []
    end = apart._end
    monkeypatch.setattr(apart, "_end", lambda p: pids.append(p) or end(p))

    def say(words, every_s):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ran("well", say=say)
    assert pids[0].exitcode is not None


def test_what_it_writes_goes_into_a_file(tmp_path):
    made = apart.run("well", "cpu", 20, measure=talks, log=tmp_path / "log")
    assert made.experiment == "made_up"
    assert "words of a compiler" in (tmp_path / "log").read_text()


def talks(*given):
    os.write(1, b"words of a compiler\n")
    return measure(*given)
