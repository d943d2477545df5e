"""A small record that no machine has made."""

from sideways.records import Case, Machine, Record

MACHINE = Machine("a-cpu", "cpu", "A CPU, 2 threads", "A CPU", 2, "3.11.7", "2.13.0")
CASES = (
    Case(
        {"module": "3a", "batch": 1},
        {"separate": (4.0, 8.0, 4.0), "stacked": (2.0, 2.0, 1.0)},
        calls=3,
        launches={"separate": 3, "stacked": 1},
        faults={"separate": 0},
        skipped={"graph": "needs a CUDA device"},
        events=(("host", "conv2d", 0.0, 1.5),),
    ),
    Case({"module": "3a", "batch": 2}, {}, skipped={"every arm": "out of memory"}),
)
PROTOCOL = {"order": "turns", "turn": "one, then some", "rounds": 3, "warm_up": 1}
PROTOCOL |= {"turn_us": 2000, "inputs": "random", "checked": "float64"}
RECORD = Record(
    experiment="stage",
    question="Which is faster?",
    machine=MACHINE,
    date="2026-11-22",
    commit="0" * 40,
    sources="0" * 16,
    counted="operators",
    protocol=PROTOCOL,
    cases=CASES,
    missing={"graph": "needs a CUDA device"},
)
