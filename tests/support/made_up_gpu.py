"""A made-up GPU: every experiment gets the cases and the names that a GPU gets.

What is made up is how long everything takes, and it is slow to make: minutes for an
autotuned module. Some variants raise, are out of memory or give wrong results.
"""

import importlib
import signal
import time
import zlib

import torch
from stand_ins import Clock, raising

from hfusion import timing
from sideways import apart, command, experiments, recorder, records, runs
from sideways.experiments import ceilings, launch_overhead, rivals, variants
from sideways.recorder import machines, measuring

MACHINE = records.Machine(
    "made-up-gpu", "cuda", "A made-up GPU", "a CPU", 1, "3.12", "2.11.0", "13.0", 91000,
    "580", "3.6.0",
)  # fmt: skip
X = torch.ones(2)
EXPECTED = (X.double(),)
CALL_S = 200e-6
STEPS = (
    variants.WRITTEN,
    variants.FOLDED,
    variants.STACKED,
    variants.HOISTED,
    variants.ONE_CALL,
)
COMPILED = (variants.WRITTEN, variants.FOLDED, variants.HOISTED)
WAYS = ("separate", "stacked", "copied")


def eager_and_graph(names, make_s):
    return {f"{way}{name}": make_s for way in ("", "graph, ") for name in names}


def shown(ways, make_s=0.3, tuned_s=2):
    """{variant of `rivals`: seconds to make it}, in these ways."""
    eager = {f"{variant}{way}": make_s for variant in rivals.SHOWN for way in ways}
    eager |= {name: tuned_s for name in eager if name.startswith(variants.TWO)}
    return eager | {f"graph, {name}": make_s for name in eager}


def ladder(ours, make_s, tuned_s, compiled_s, autotuned_s):
    """{variant: seconds to make it}."""
    made = eager_and_graph(STEPS, make_s) | dict.fromkeys(ours, tuned_s)
    if len(ours) > 1:
        made |= {variants.STREAMS: make_s, variants.PARALLEL: make_s}
    made |= {f"graph, {name}": make_s for name in ours}  # their tiles are chosen by then
    made |= {f"compile, {variant}": compiled_s for variant in COMPILED}
    for name in ("max-autotune", "graph, max-autotune"):
        made |= {f"{name}, {variant}": autotuned_s for variant in COMPILED[1:]}
    return made


# {experiment: {variant: seconds to make it, the first call included}}, all slow.
ARMS = {
    "stopwatches": {"as written": 2},
    "launch_overhead": dict.fromkeys(map(str, launch_overhead.CHAINS), 0.1),
    "stage": eager_and_graph(WAYS, 0.2),
    "embedding": eager_and_graph(("separate", "embedded"), 0.3),
    "projections": eager_and_graph(WAYS, 0.2),
    "module_ladder": ladder(variants.OURS, 0.3, 2, 20, 110),
    "network": ladder((variants.TWO,), 1, 20, 60, 600),
    "checks": {"separate": 0.1, "fused": 0.5, "lowered": 0.5},
    "leftover": {"as written": 2, "this book": 2, "torch.compile": 90},
    "memory": dict.fromkeys(WAYS, 0.2),
}
RIVALS = {
    "batch": shown([""]) | {variants.PARALLEL: 0.3},
    "tf32": shown(["", ", TF32"]),
    "cold": shown(["", ", cold"], 1, 3),
}


def variants_of(name, parameters):
    if name in ("timeline", "kernel_times"):
        return {parameters["rung"]: 2}
    if name == "rivals":
        return RIVALS[parameters["what"]]
    if name == "ceilings":
        empty = dict.fromkeys(map(str, ceilings.CHAIN), 0.1)
        return empty if parameters["what"] == "empty" else {parameters["what"]: 0.5}
    return ARMS[name]


def bad_variants(clock):
    """What goes wrong in every benchmark, besides."""
    return {
        "raises": lambda: 1 / 0,
        "out of memory": raising(torch.OutOfMemoryError("3 GiB")),
        "disagrees": lambda: clock.variant(CALL_S, value=lambda: X + 1)(),
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
    monkeypatch.setattr(signal, "setitimer", clock.set)
    monkeypatch.setattr(signal, "signal", clock.handle)
    monkeypatch.setattr(machines, "machine", lambda device: MACHINE)
    monkeypatch.setattr(measuring, "_need", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    counted = timing.Launches("kernels", ("kernel",) * 20)
    monkeypatch.setattr(timing, "count_launches", lambda *_: counted)
    monkeypatch.setattr(experiments, "again", lambda name, _: name in experiments.AGAIN)
    for name in experiments.SHARES:
        module = importlib.import_module(f"sideways.experiments.{name}")
        monkeypatch.setattr(module, "benchmark", benchmark_of(name, clock))

    def run(name, device, *given):
        return experiments.run(name, device, *given[:-1])  # in this process, without a log

    monkeypatch.setattr(apart, "run", run)
    return clock


def call_s(name, parameters, variant):
    """How long one call takes, in seconds; nothing of it was ever measured."""
    if variant.isdigit():  # a chain
        each_s = {"graph": 1e-6}.get(parameters["way"], 3e-6)
        return 5e-6 + int(variant) * each_s * (1 + (parameters["operator"] == "conv"))
    if variant == "copy":
        return 2e-6 + parameters["bytes"] / 3e12
    if variant == "matmul":
        return parameters["side"] ** 3 / 1e14
    seed = zlib.crc32(f"{name} {parameters} {variant}".encode())
    return CALL_S * (0.5 + seed % 1000 / 1000)


def events(name):
    """A made-up timeline: the host hands over, the device works later."""
    number = {"stopwatches": 1000, "timeline": 14, "kernel_times": 8}.get(name, 0)
    for begin_us in range(0, 200 * number, 200):
        yield "host", "call", begin_us, begin_us + 50
        yield "device", "kernel", begin_us + 60, begin_us + 60 + 7 * (1 + begin_us % 3)


def benchmark_of(name, clock):
    def benchmark(device, **parameters):
        clock.spend(0.5)
        if name == "memory":
            raise recorder.Unavailable("PyTorch keeps a GPU's memory itself")
        made = bad_variants(clock)
        for variant, make_s in variants_of(name, parameters).items():
            made[variant] = clock.variant(
                call_s(name, parameters, variant), make_s, lambda: X
            )
        if parameters.get("layout") == "NCHW":
            ours = [n for n in made if variants.TWO in n]
            made |= dict.fromkeys(ours, raising(recorder.Unavailable("channels_last")))
        slow = variants.slow(made) if name in experiments.AGAIN else ()
        return recorder.Benchmark(
            made, EXPECTED, 1e-6, slow=slow, events=tuple(events(name))
        )

    return benchmark


def recorded(clock, folder, minutes, until_s=float("inf")):
    """(the Run, {need of a page: second at which its case was there})."""
    run, met = runs.Run(folder, MACHINE, list(experiments.SHARES)), {}
    so_far = run.so_far

    def watched(record):
        so_far(record)
        for needs in runs.READERS.values():
            for name, parameters, names in needs:
                key = name, str(parameters), names
                if (
                    name == record.experiment
                    and key not in met
                    and has(record, parameters, names)
                ):
                    met[key] = clock.now_s

    run.so_far = watched
    run.begin()
    command._measure(run, list(experiments.SHARES), "cuda", 60 * minutes)
    return run, met


def has(record, parameters, names):
    try:
        return bool(record.measured(*names, **parameters))
    except records.NotRecorded:
        return False
