"""What is predicted of a case: each number from the least to the most."""

from collections.abc import Callable

from .. import arithmetic
from ..experiments import variants
from .times import COMPILED, TUNED, TURNED, chains_us, ladder_us, siblings_us, whole_us
from .works import Case, chains, ladder, siblings, whole

# {experiment: (the programs of a case, how long its variants take)}

EXPERIMENTS: dict[str, tuple[Callable, Callable]] = {
    "module_ladder": (ladder, ladder_us),
    "stage": (siblings, siblings_us),
    "launch_overhead": (chains, chains_us),
    "network": (whole, whole_us),
}
STEPS = (variants.FOLDED, variants.STACKED, variants.HOISTED, variants.ONE_CALL)
LAST = f"graph, {variants.TWO}"
# Of which variants a gain is predicted, and over which.
GAINS = [
    *((name, variants.WRITTEN) for name in STEPS),
    *((f"graph, {name}", f"graph, {variants.WRITTEN}") for name in STEPS),
    (variants.HOISTED, variants.FOLDED),
    (f"graph, {variants.HOISTED}", f"graph, {variants.FOLDED}"),
    *((LAST, f"graph, {name}") for name in (variants.WRITTEN, variants.ONE_CALL)),
    *((LAST, f"graph, max-autotune, {name}") for name in TUNED),
    *((f"graph, {name}", LAST) for name in variants.OURS if name != variants.TWO),
    *(
        (f"{g}{way}", f"{g}separate")
        for g in ("", "graph, ")
        for way in ("stacked", "copied")
    ),
]


def predicted(
    experiment: str,
    parameters: Case,
    works: dict,
    inputs: dict[str, arithmetic.Input] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """What is predicted of a case: {"us": {variant: (low, middle, high)}, "gains":
    {"variant / base": …}, "kernels": {variant: …}}.

    works: its programs. inputs: in place of arithmetic.INPUTS.
    """
    _, times = EXPERIMENTS[experiment]

    def evaluate(at):
        us = times(parameters, works, at)
        gains = {
            ("gains", f"{variant} / {base}"): us[base] / us[variant]
            for variant, base in GAINS
            if {variant, base} <= set(us)
        }
        return {("us", variant): time for variant, time in us.items()} | gains

    found: dict[str, dict] = {"us": {}, "gains": {}, "kernels": {}}
    for (kind, name), numbers in arithmetic.ranges(evaluate, inputs).items():
        found[kind][name] = [float(f"{number:.3g}") for number in numbers]
    known = counts(works, experiment, parameters)
    found["kernels"] = {
        variant: known[variant] for variant in found["us"] if variant in known
    }
    return found


def counts(works: dict, experiment: str, parameters: Case) -> dict[str, list[int]]:
    """{variant: (least, expected, most)}: how many kernels. cuDNN may need one more for
    each convolution; Inductor one less, or one more for each.
    """
    if experiment == "launch_overhead":
        return {name: [n, n, n] for name, n in works.items()}
    found = {}

    def note(variant, least, expected, most):
        found[variant] = found[f"graph, {variant}"] = [least, expected, most]

    for name, program in works.items():
        n = program["kernels"]
        note(name, n, n, n + len(program["products"]))
    for table, way in ((COMPILED, "compile"), (TUNED, "max-autotune")):
        for name in table if experiment == "module_ladder" else ():
            convolutions, n = COMPILED[name]
            n = table[name] if way == "max-autotune" else n
            n += convolutions + TURNED * (parameters["dtype"] == "float32")
            note(f"{way}, {name}", n - 1, n, n + convolutions)
    for name in variants.OURS if experiment == "module_ladder" else ():
        note(name, 2, 2, 2)
    return found
