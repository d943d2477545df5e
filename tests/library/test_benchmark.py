"""Whose turn it is, and what the stopwatches count. The clock is a fake one."""

from types import SimpleNamespace

import pytest
import torch

from hfusion import timing
from hfusion.timing import _benchmark

# benchmark


class Clocked:
    """Variants that write down their calls and move the only clock there is."""

    def __init__(self):
        self.events, self.now_ns = [], 0

    def look(self):
        self.events.append("clock")
        return self.now_ns

    def wait(self, device):
        self.events.append(f"wait for {device}")

    def variant(self, name, cost_ns=1000):
        def call():
            self.events.append(name)
            self.now_ns += cost_ns

        return call


@pytest.fixture
def clocked(monkeypatch):
    clocked = Clocked()
    monkeypatch.setattr(_benchmark, "time", SimpleNamespace(perf_counter_ns=clocked.look))
    monkeypatch.setattr(_benchmark, "synchronise", clocked.wait)
    return clocked


def test_variants_take_turns_and_every_round_starts_with_another(clocked):
    variants = {name: clocked.variant(name) for name in "abc"}
    timing.benchmark(variants, rounds=4, warm_up=1, calls=2)
    calls = "".join(event for event in clocked.events if event in variants)
    turns = "abcbcacababc"  # each: one call that is not timed, then two
    assert calls == "abc" + "".join(3 * name for name in turns)


def test_a_turn_lies_between_two_synchronisations(clocked):
    timing.benchmark({"a": clocked.variant("a")}, "cuda:1", rounds=1, warm_up=1, calls=2)
    warm, untimed, *turn = clocked.events
    assert (warm, untimed) == ("a", "a")
    assert turn == ["wait for cuda:1", "clock", "a", "a", "wait for cuda:1", "clock"]


def test_samples_are_microseconds_a_call(clocked):
    variants = {
        "slow": clocked.variant("slow", 5000),
        "fast": clocked.variant("fast", 1250),
    }
    samples = timing.benchmark(variants, rounds=3, calls=4)
    assert samples == {"slow": [5.0] * 3, "fast": [1.25] * 3}


def test_what_the_device_still_does_is_waited_for(clocked, monkeypatch):
    def wait(device):  # the work of a launch is done when one waits for it
        clocked.now_ns += 2000 * clocked.events.count("launch")
        clocked.events.clear()

    monkeypatch.setattr(_benchmark, "synchronise", wait)
    variants = {"a": lambda: clocked.events.append("launch")}
    assert timing.benchmark(variants, rounds=2, warm_up=3, calls=5) == {"a": [2.0, 2.0]}


def test_samples_are_in_the_order_of_rounds(clocked):
    costs_us = iter([50, 1, 60, 4, 70, 2])  # the first call of a turn is not timed

    def uneven():
        clocked.now_ns += 1000 * next(costs_us)

    samples = timing.benchmark({"a": uneven}, rounds=3, warm_up=0, calls=1)
    assert samples == {"a": [1.0, 4.0, 2.0]}


def test_variants_record_no_gradients():
    recording = []
    variants = {"a": lambda: recording.append(torch.is_grad_enabled())}
    timing.benchmark(variants, rounds=1, warm_up=1, calls=1)
    assert recording == [False, False, False]
    assert torch.is_grad_enabled()


def test_an_error_in_a_variant_comes_out():
    with pytest.raises(ZeroDivisionError):
        timing.benchmark({"a": lambda: 1 / 0}, rounds=1)


def test_who_raised_it_is_said():
    """At every place where a variant is called: warming up, untimed, timed."""
    for calls in range(5):
        left = iter(range(calls))

        def fails(left=left):
            next(left)

        with pytest.raises(StopIteration) as caught:
            timing.benchmark({"a": int, "b": fails}, rounds=2, warm_up=1, calls=1)
        assert caught.value.variant == "b"


def test_each_variant_may_have_its_own_calls(clocked):
    variants = {
        "slow": clocked.variant("slow", 5000),
        "fast": clocked.variant("fast", 1250),
    }
    each = {"slow": 1, "fast": 4}
    samples = timing.benchmark(variants, rounds=2, warm_up=0, calls=each)
    assert samples == {"slow": [5.0] * 2, "fast": [1.25] * 2}
    assert clocked.events.count("slow") == 2 * (1 + 1)
    assert clocked.events.count("fast") == 2 * (1 + 4)


@pytest.mark.parametrize("calls", [{"a": 1}, {"a": 1, "b": 2, "c": 3}])
def test_calls_are_for_each_variant(clocked, calls):
    with pytest.raises(
        ValueError, match=r"^calls: expected a number for each variant, got"
    ):
        timing.benchmark(
            {"a": clocked.variant("a"), "b": clocked.variant("b")}, calls=calls
        )
    with pytest.raises(ValueError, match="calls: expected an int of at least 1, got 0"):
        timing.benchmark({"a": clocked.variant("a")}, calls={"a": 0})
    assert clocked.events == []


@pytest.mark.parametrize(
    ("turns", "rounds"),
    [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 2), (7, 2), (8, 3), (99, 3)],
)
def test_who_is_late_keeps_whole_rounds(clocked, turns, rounds):
    """Two variants: each is asked for once to warm up, and once in each of three rounds."""
    left = iter([False] * turns)
    variants = {name: clocked.variant(name) for name in "ab"}
    samples = timing.benchmark(
        variants, rounds=3, warm_up=1, calls=1, late=lambda: next(left, True)
    )
    assert samples == {name: [1.0] * rounds for name in "ab"}
    called = len([event for event in clocked.events if event in variants])
    warm = min(turns, 2)
    assert called == warm + 2 * (min(turns, 8) - warm)  # nothing was called after that


def test_no_benchmark_without_variants():
    with pytest.raises(
        ValueError, match="variants: expected at least one function, got none"
    ):
        timing.benchmark({})


@pytest.mark.parametrize(
    ("name", "value"),
    [("rounds", 0), ("calls", 0), ("warm_up", -1)]
    + [(name, bad) for name in ("rounds", "calls", "warm_up") for bad in (True, 2.5, "3")],
)
def test_numbers_that_are_not_whole_are_refused(name, value):
    with pytest.raises(
        ValueError, match=rf"^{name}: expected an int of at least [01], got {value!r}$"
    ):
        timing.benchmark({"a": int}, **{name: value})


# Stopwatches.


class Device:
    """It has a clock and a queue: works on its own, and refuses no more than two."""

    def __init__(self, launch_us, work_us):
        self.launch_ns, self.work_ns = 1000 * launch_us, 1000 * work_us
        self.now_ns, self.ends_ns, self.events = 0, [], []

    def launch(self):
        self.events.append("launch")
        if len(self.ends_ns) >= 2:  # the queue is full
            self.now_ns = max(self.now_ns, self.ends_ns[-2])
        self.now_ns += self.launch_ns
        begin = max([self.now_ns, *self.ends_ns[-1:]])
        self.ends_ns.append(begin + self.work_ns)

    def wait(self, device):
        self.events.append(f"wait for {device}")
        self.now_ns = max([self.now_ns, *self.ends_ns[-1:]])


@pytest.fixture
def device(monkeypatch):
    """Makes a Device, which brings the only clock there is."""

    def make(launch_us, work_us):
        device = Device(launch_us, work_us)
        clock = SimpleNamespace(perf_counter_ns=lambda: device.now_ns)
        monkeypatch.setattr(_benchmark, "time", clock)
        monkeypatch.setattr(_benchmark, "synchronise", device.wait)
        return device

    return make


@pytest.mark.parametrize(
    ("launch_us", "work_us", "calls", "wall", "host"),
    [
        (1, 0, 4, 1, 1),  # a CPU: done when it returns
        (2, 5, 1, 7, 2),
        (2, 5, 4, 5.5, 2),  # the first launch, then work without a gap: (2 + 20) / 4
        (2, 5, 100, 5.02, 2),  # the queue is full at times, and `host` does not see it
        (5, 2, 4, 5.5, 5),  # the last work: (20 + 2) / 4
    ],
)
def test_wall_counts_the_wait_and_host_does_not(
    device, launch_us, work_us, calls, wall, host
):
    gpu = device(launch_us, work_us)
    assert timing.wall(gpu.launch, calls, "cuda") == wall
    assert gpu.events == ["wait for cuda", *calls * ["launch"], "wait for cuda"]
    gpu = device(launch_us, work_us)
    assert timing.host(gpu.launch, calls, "cuda") == host


def test_host_waits_between_calls_and_leaves_nothing_behind(device):
    gpu = device(2, 5)
    timing.host(gpu.launch, 3, "cuda:1")
    assert gpu.events == [*3 * ["wait for cuda:1", "launch"], "wait for cuda:1"]


@pytest.mark.parametrize("watch", ["wall", "host"])
def test_a_stopwatch_does_not_charge_what_was_launched_before(device, watch):
    gpu = device(1, 100)
    gpu.launch()
    gpu.launch()
    assert getattr(timing, watch)(gpu.launch, 1, "cuda") == {"wall": 101, "host": 1}[watch]


def test_a_variant_has_the_watch_that_is_given_for_it(clocked):
    seen = []

    def watch(call, calls, device):
        seen.append((calls, device))
        call()
        return 77.0

    variants = {name: clocked.variant(name) for name in "abc"}
    watches = {"b": watch}
    samples = timing.benchmark(variants, "cpu", 2, warm_up=0, calls=3, watches=watches)
    assert samples == {"a": [1.0, 1.0], "b": [77.0, 77.0], "c": [1.0, 1.0]}
    assert seen == [(3, "cpu")] * 2
    assert clocked.events.count("b") == 2 * (1 + 1)  # one not timed, one of the watch
    assert watches == {"b": watch}


def test_host_may_be_a_watch(device):
    gpu = device(2, 5)
    variants = {"wall": gpu.launch, "host": gpu.launch}
    found = timing.benchmark(variants, rounds=2, calls=1, watches={"host": timing.host})
    assert found == {"wall": [7.0, 7.0], "host": [2.0, 2.0]}


@pytest.mark.parametrize("watches", [{"c": min}, {"b": min, "d": min, "c": min}])
def test_watches_of_nobody_are_refused(clocked, watches):
    strange = sorted({*watches} - {"b"})
    with pytest.raises(ValueError) as error:  # noqa: PT011
        timing.benchmark(
            {"a": clocked.variant("a"), "b": clocked.variant("b")}, watches=watches
        )
    assert str(error.value) == f"watches: expected names of variants, got {strange}"
    assert clocked.events == []
