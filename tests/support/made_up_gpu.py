"""A made-up GPU: every experiment gets the cases and the names that a GPU gets.

What is made up is how long everything takes, and it is slow to make: minutes for an
autotuned module. Some arms raise, are out of memory or give wrong results.
"""

import importlib
import time
import zlib

import torch
from stand_ins import Clock, raising

from hfusion import __main__ as command
from hfusion import timing
from sideways import apart, experiments, recording, records, runs
from sideways.experiments import ceilings, launch_overhead, rivals, rungs

MACHINE = records.Machine(
    "made-up-gpu", "cuda", "A made-up GPU", "a CPU", 1, "3.12", "2.11.0", "13.0", 91000,
    "580", "3.6.0",
)  # fmt: skip
X = torch.ones(2)
EXPECTED = (X.double(),)
CALL_S = 200e-6
RUNGS = (rungs.WRITTEN, rungs.FOLDED, rungs.STACKED, rungs.HOISTED, rungs.ONE_CALL)
COMPILED = (rungs.WRITTEN, rungs.FOLDED, rungs.HOISTED)
WAYS = ("separate", "stacked", "copied")


def eager_and_graph(names, make_s):
    return {f"{way}{name}": make_s for way in ("", "graph, ") for name in names}


def shown(ways, make_s=0.3, tuned_s=2):
    """{arm of `rivals`: seconds to make it}, in these ways."""
    eager = {f"{rung}{way}": make_s for rung in rivals.SHOWN for way in ways}
    eager |= {name: tuned_s for name in eager if name.startswith(rungs.TWO)}
    return eager | {f"graph, {name}": make_s for name in eager}


def ladder(ours, make_s, tuned_s, compiled_s, autotuned_s):
    """{arm: seconds to make it}."""
    arms = eager_and_graph(RUNGS, make_s) | dict.fromkeys(ours, tuned_s)
    if len(ours) > 1:
        arms |= {rungs.STREAMS: make_s, rungs.PARALLEL: make_s}
    arms |= {f"graph, {name}": make_s for name in ours}  # their tiles are chosen by then
    arms |= {f"compile, {rung}": compiled_s for rung in COMPILED}
    for name in ("max-autotune", "graph, max-autotune"):
        arms |= {f"{name}, {rung}": autotuned_s for rung in COMPILED[1:]}
    return arms


# {experiment: {arm: seconds to make it, the first call included}}, all slow.
ARMS = {
    "stopwatches": {"as written": 2},
    "launch_overhead": dict.fromkeys(map(str, launch_overhead.CHAINS), 0.1),
    "stage": eager_and_graph(WAYS, 0.2),
    "embedding": eager_and_graph(("separate", "embedded"), 0.3),
    "projections": eager_and_graph(WAYS, 0.2),
    "module_ladder": ladder(rungs.OURS, 0.3, 2, 20, 110),
    "network": ladder((rungs.TWO,), 1, 20, 60, 600),
    "leftover": {"as written": 2, "this book": 2, "torch.compile": 90},
    "memory": dict.fromkeys(WAYS, 0.2),
}
RIVALS = {
    "batch": shown([""]) | {rungs.PARALLEL: 0.3},
    "tf32": shown(["", ", TF32"]),
    "cold": shown(["", ", cold"], 1, 3),
}


def arms_of(name, parameters):
    if name in ("timeline", "kernel_times"):
        return {parameters["rung"]: 2}
    if name == "rivals":
        return RIVALS[parameters["what"]]
    if name == "ceilings":
        empty = dict.fromkeys(map(str, ceilings.CHAIN), 0.1)
        return empty if parameters["what"] == "empty" else {parameters["what"]: 0.5}
    return ARMS[name]


def bad_arms(clock):
    """What goes wrong in every race, besides."""
    return {
        "raises": lambda: 1 / 0,
        "out of memory": raising(torch.OutOfMemoryError("3 GiB")),
        "disagrees": lambda: clock.arm(CALL_S, value=lambda: X + 1)(),
        "raises later": raising_in_a_race(clock),
    }


def raising_in_a_race(clock):
    calls = []

    def call():
        clock.spend(CALL_S)
        calls.append(1)
        return X if len(calls) < 6 else 1 / 0

    return lambda: call


def made_up(monkeypatch):
    """The Clock of a made-up GPU, on which no time passes but what is said here."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now_s)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: round(1e9 * clock.now_s))
    monkeypatch.setattr(recording.signal, "setitimer", clock.set)
    monkeypatch.setattr(recording.signal, "signal", clock.handle)
    monkeypatch.setattr(recording, "machine", lambda device: MACHINE)
    monkeypatch.setattr(recording, "_need", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    counted = timing.Launches("kernels", ("kernel",) * 20)
    monkeypatch.setattr(timing, "count_launches", lambda *_: counted)
    monkeypatch.setattr(experiments, "again", lambda name, _: name in experiments.AGAIN)
    for name in experiments.SHARES:
        module = importlib.import_module(f"sideways.experiments.{name}")
        monkeypatch.setattr(module, "race", race_of(name, clock))

    def run(name, device, *given):
        return experiments.run(name, device, *given[:-1])  # in this process, without a log

    monkeypatch.setattr(apart, "run", run)
    return clock


def call_s(name, parameters, arm):
    """How long one call takes, in seconds; nothing of it was ever measured."""
    if arm.isdigit():  # a chain
        each_s = {"graph": 1e-6}.get(parameters["way"], 3e-6)
        return 5e-6 + int(arm) * each_s * (1 + (parameters["operator"] == "conv"))
    if arm == "copy":
        return 2e-6 + parameters["bytes"] / 3e12
    if arm == "matmul":
        return parameters["side"] ** 3 / 1e14
    seed = zlib.crc32(f"{name} {parameters} {arm}".encode())
    return CALL_S * (0.5 + seed % 1000 / 1000)


def events(name):
    """A made-up timeline: the host hands over, the device works later."""
    number = {"stopwatches": 1000, "timeline": 14, "kernel_times": 8}.get(name, 0)
    for begin_us in range(0, 200 * number, 200):
        yield "host", "call", begin_us, begin_us + 50
        yield "device", "kernel", begin_us + 60, begin_us + 60 + 7 * (1 + begin_us % 3)


def race_of(name, clock):
    def race(device, **parameters):
        clock.spend(0.5)
        if name == "memory":
            raise recording.Unavailable("PyTorch keeps a GPU's memory itself")
        arms = bad_arms(clock)
        for arm, make_s in arms_of(name, parameters).items():
            arms[arm] = clock.arm(call_s(name, parameters, arm), make_s, lambda: X)
        if parameters.get("layout") == "NCHW":
            ours = [n for n in arms if rungs.TWO in n]
            arms |= dict.fromkeys(ours, raising(recording.Unavailable("channels_last")))
        slow = rungs.slow(arms) if name in experiments.AGAIN else ()
        return recording.Race(arms, EXPECTED, 1e-6, slow=slow, events=tuple(events(name)))

    return race


def recorded(clock, folder, minutes, until_s=float("inf")):
    """(the Run, {need of a page: second at which its case was there})."""
    run, met = runs.Run(folder, MACHINE, list(experiments.SHARES)), {}
    so_far = run.so_far

    def watched(record):
        so_far(record)
        for needs in runs.READERS.values():
            for name, parameters, arms in needs:
                key = name, str(parameters), arms
                if (
                    name == record.experiment
                    and key not in met
                    and has(record, parameters, arms)
                ):
                    met[key] = clock.now_s

    run.so_far = watched
    run.begin()
    command._measure(run, list(experiments.SHARES), "cuda", 60 * minutes)
    return run, met


def has(record, parameters, arms):
    try:
        return bool(record.raced(*arms, **parameters))
    except records.NotRecorded:
        return False
