"""live.py and progress.py: a page that measures moves, ends in time, and can be stopped.

By clocks that are made up; once, slowly, in a kernel that is interrupted.
"""

import io
import sys
import time

import pytest

from hfusion import timing
from sideways import experiments, live, records
from sideways.progress import Bar
from sideways.recorder import STOPPED, silent

MACHINE = records.Machine("m", "cpu", "M", "M", 1, "3", "2")
PLANNED = [{"module": name, "batch": 1} for name in ("3a", "3b", "4a")]


class Runs:
    """In place of `experiments.run`: each case takes `each_s`, by a clock made up; the
    n-th case of all is interrupted if `stops` has n."""

    def __init__(self, each_s=10.0, stops=()):
        self.now_s, self.each_s, self.stops, self.count = 0.0, each_s, stops, 0
        self.calls = []

    def __call__(self, name, device, limit_s, progress=iter, keep=None, say=silent,
                 known=None):  # fmt: skip
        self.calls.append((name, device, limit_s))
        ends_s = self.now_s + limit_s
        there = known.cases if known else ()
        measured = {case.parameters["module"] for case in there if case.samples}
        todo = [p for p in PLANNED if p["module"] not in measured]
        for parameters in progress(todo):
            say("separate")
            self.count += 1
            if self.count in self.stops:
                raise KeyboardInterrupt
            if self.now_s + self.each_s <= ends_s:
                self.now_s += self.each_s
                measured.add(parameters["module"])
            keep(self.record(name, device, measured))
        return self.record(name, device, measured)

    def record(self, name, device, measured):
        cases = tuple(
            records.Case(p, {"a": (1.0,)})
            if p["module"] in measured
            else records.Case(p, {}, skipped={"every arm": STOPPED})
            for p in PLANNED
        )
        return records.Record(name, "?", MACHINE, "2026-11-22", "", "", "", {}, cases)


@pytest.fixture
def live_with(monkeypatch):
    """Makes Runs that `experiments` uses, with a fresh session and its clock."""

    def make(**settings):
        runs = Runs(**settings)
        monkeypatch.setattr(live, "KNOWN", {})
        monkeypatch.setattr(time, "monotonic", lambda: runs.now_s)
        monkeypatch.setattr(experiments, "run", runs)
        monkeypatch.setattr(experiments, "here", lambda: "cpu")
        monkeypatch.setattr(timing, "device_name", lambda device: "M")
        monkeypatch.delenv("HFUSION_LIVE", raising=False)
        monkeypatch.delenv("HFUSION_LIVE_MINUTES", raising=False)
        return runs

    return make


def measured(found):
    """{experiment: how many of its cases were measured}."""
    return {
        name: sum(bool(case.samples) for r in machines.values() for case in r.cases)
        for name, machines in found.items()
    }


def several(*names, minutes=4):
    return experiments.several(names, "nowhere", True, minutes)


def lines(capsys):
    """What stays to be read of what was printed, line by line."""
    out = capsys.readouterr().out.replace("█", "#").strip()
    return [line.rpartition("\r")[2].rstrip() for line in out.split("\n")]


def test_a_page_that_measures_says_on_what_and_how_long_at_most(live_with, capsys):
    live_with()
    assert measured(several("stage", "network")) == {"stage": 3, "network": 3}
    opening, *bars = lines(capsys)
    assert opening == (
        "Measuring on M, 4 minutes at most. The stop button ends it earlier and keeps "
        "what is measured."
    )
    assert bars == [
        f"{name}: 100%|##########| 3/3 cases, in 0:30" for name in ("stage", "network")
    ]


def test_what_was_measured_now_does_not_say_that_it_was_recorded(live_with, tmp_path):
    live_with(each_s=20.0)
    found = several("stage", "network", minutes=1)
    labels = [r.label for machines in found.values() for r in machines.values()]
    assert labels == 2 * ["measured on M, 2026-11-22"]
    with pytest.raises(records.NotRecorded, match=r"stage \(measured on M, .*not reached"):
        found["stage"]["m"].measured(module="4a")
    saved = records.load(records.save(found["stage"]["m"], tmp_path))
    assert saved.label == "recorded on M, 2026-11-22"


@pytest.mark.parametrize("minutes", [0.5, 1, 2, 40])
def test_it_takes_no_longer_than_it_says(live_with, minutes):
    """A case takes ten seconds, nine of them 90; none begins that could not end in time."""
    runs = live_with()
    found = several("stage", "network", "ceilings", minutes=minutes)
    assert runs.now_s <= 60 * minutes
    assert (sum(measured(found).values()) == 9) == (minutes >= 2)


def test_what_was_not_reached_in_time_is_said(live_with, capsys):
    live_with(each_s=20.0)
    found = several("stage", "network", minutes=1)
    assert measured(found) == {"stage": 1, "network": 2}
    assert lines(capsys)[-1] == (
        "The time is over. Measured: stage 1 of 3 cases, network 2 of 3 cases. The "
        "page goes on with that. Run this cell again to measure the rest, or set "
        "LIVE_MINUTES higher."
    )


def test_who_stops_it_keeps_what_is_done_and_measures_only_the_rest(live_with, capsys):
    runs = live_with(stops=[2])
    found = several("stage", "network")
    assert measured(found) == {"stage": 1, "network": 0}
    assert found["network"] == {}
    *_, last = lines(capsys)
    assert last == (
        "Stopped. Measured: stage 1 of 3 cases, network no case. The page goes on with "
        "that. Run this cell again to measure the rest."
    )
    with pytest.raises(records.NotRecorded, match="not reached before the run was stopped"):
        experiments.first(found, "stage").measured(module="4a")
    with pytest.raises(records.NotRecorded, match="there is no record of network"):
        experiments.first(found, "network").select()
    before = runs.count
    assert measured(several("stage", "network")) == {"stage": 3, "network": 3}
    assert runs.count == before + 2 + 3
    capsys.readouterr()
    several("stage", "network")  # all is there: nothing runs, and nothing is said
    assert runs.count == before + 5
    assert capsys.readouterr().out == ""


def test_a_second_interrupt_is_not_caught(live_with, monkeypatch):
    live_with(stops=[1])

    def again(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "_has", again)  # it comes while the first is dealt with
    with pytest.raises(KeyboardInterrupt):
        several("stage")


def test_one_experiment_of_which_nothing_was_measured_is_not_recorded(live_with):
    live_with(stops=[1])
    with pytest.raises(records.NotRecorded, match="no case of stage was measured"):
        experiments.results("stage", "nowhere", True)
    assert experiments.result("network", "nowhere", True).machine == MACHINE


def test_without_tqdm_it_measures_without_a_bar(live_with, capsys, monkeypatch):
    live_with()
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert measured(several("stage")) == {"stage": 3}
    (opening,) = lines(capsys)
    assert "(pip install tqdm shows a bar.)" in opening


def test_what_a_device_lacks_is_said(live_with, monkeypatch, capsys):
    live_with()
    for device in ("mps", "xpu"):
        monkeypatch.setattr(experiments, "here", lambda device=device: device)
        several("stage")
        assert "no CUDA graphs, and kernels cannot be counted" in lines(capsys)[0]


def test_a_page_about_one_kind_of_device_measures_no_other(live_with, monkeypatch, capsys):
    runs = live_with()
    names = ("stage", "network")
    assert experiments.several(names, "nowhere", True, kind="cuda") == {
        n: {} for n in names
    }
    assert lines(capsys) == [
        "Nothing is measured: that takes a cuda device, and torch finds none."
    ]
    monkeypatch.setattr(experiments, "here", lambda: "cuda")
    for kind in ("cuda", "cpu", None):
        experiments.several(names[:1], "nowhere", True, kind=kind)
    assert [device for _, device, _ in runs.calls] == ["cuda", "cpu"]  # then it is known


def test_minutes_may_be_said_from_outside(live_with, monkeypatch):
    runs = live_with()
    monkeypatch.setenv("HFUSION_LIVE", "1")
    monkeypatch.setenv("HFUSION_LIVE_MINUTES", "0.5")
    experiments.results("stage", "nowhere")
    assert runs.calls == [("stage", "cpu", 30)]


@pytest.mark.parametrize("given", [0, -1, "x", float("nan"), float("inf"), None])
def test_minutes_are_a_number_above_0(given, live_with, monkeypatch):
    live_with()
    expected = r"^{}: expected a number above 0, got "
    with pytest.raises(ValueError, match=expected.format("minutes")):
        several("stage", minutes=given)
    monkeypatch.setenv("HFUSION_LIVE_MINUTES", str(given))
    with pytest.raises(ValueError, match=expected.format("HFUSION_LIVE_MINUTES")):
        several("stage")


# The bar.


@pytest.fixture
def clock(monkeypatch):
    """[seconds since some moment], to be set."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_bar_says_case_variant_and_time_left(clock):
    file, seen = io.StringIO(), []
    with Bar("module_ladder", 100, file) as bar:
        for number, _ in enumerate(bar.cases(PLANNED)):
            for variant in ("folded", "streams"):
                clock[0] += 5
                bar.say(variant)
                seen.append(file.getvalue().rpartition("\r")[2].strip())
            assert bar.done == number
    starts = [line.partition("cases, ")[2] for line in seen]
    assert starts == [
        "1:35 left: module 3a, batch 1: folded",  # nothing is done: what the limit allows
        "1:30 left: module 3a, batch 1: streams",
        "0:15 left: module 3b, batch 1: folded",  # 10 s a case, and 5 s into the second
        "0:10 left: module 3b, batch 1: streams",
        "0:05 left: module 4a, batch 1: folded",
        "0:00 left: module 4a, batch 1: streams",
    ]
    last = file.getvalue().rstrip("\n").rpartition("\r")[2].rstrip()
    assert last == "module ladder: 100%|##########| 3/3 cases, in 0:30"


def test_time_left_is_no_more_than_the_limit_allows(clock):
    with Bar("stage", 25, io.StringIO()) as bar:
        cases = bar.cases(PLANNED)
        next(cases)
        clock[0] = 20.0
        next(cases)
        assert bar.left_s() == 5
        clock[0] = 60.0
        assert bar.left_s() == 0


def test_the_bar_is_drawn_seldom(clock):
    file = io.StringIO()
    with Bar("stage", 100, file) as bar:
        next(bar.cases(PLANNED))
        before = file.getvalue()
        bar.say("at once")
        assert file.getvalue() == before
        clock[0] = 0.5
        bar.say(every_s=1)
        assert file.getvalue() == before
        clock[0] = 1
        bar.say(every_s=1)
        assert "at once" in file.getvalue()[len(before) :]
