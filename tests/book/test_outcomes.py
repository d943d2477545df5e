"""The table of what stacking brought: every variant compared with the right other one."""

import doctest
import itertools
import re

import pytest

from sideways import experiments, outcomes
from sideways.records import Case, NotRecorded, nothing


def record(experiment, *cases):
    made = nothing(experiment)
    cases = tuple(
        Case(parameters, {variant: (us,) * 3 for variant, us in times.items()})
        for parameters, times in cases
    )
    return made.__class__(**{**vars(made), "cases": cases})


def case(batch=1, dtype="float32", layout="NCHW", **more):
    return more | {"batch": batch, "dtype": dtype, "layout": layout}


def middles(*records):
    return {(o.what, o.mode, o.way): o.middle for o in outcomes.brought(*records)}


def test_doctests():
    assert doctest.testmod(outcomes).failed == 0


# µs; no two quotients that are looked at are equal in one mode
STAGE = {
    "separate": 30,
    "stacked": 20,
    "copied": 24,
    "graph, separate": 14,
    "graph, stacked": 7,
}
LADDER = {
    "as written": 97,
    "folded": 60,
    "folded, stacked": 50,
    "folded, stacked, hoisted": 40,
    "folded, stacked, one call": 1,
    "two launches": 1,
    "graph, folded": 33,
    "graph, folded, stacked": 22,
    "compile, as written": 89,
    "compile, folded": 10,
    "compile, folded, stacked, hoisted": 20,
    "graph, max-autotune, folded": 9,
    "graph, max-autotune, folded, stacked, hoisted": 3,
    "ONNX Runtime, as written": 12,
    "ONNX Runtime, folded, stacked, hoisted": 15,
    "streams": 1,
}


def test_each_way_is_compared_in_its_own_mode():
    found = middles(
        record("stage", (case(module="3a"), STAGE)),
        record("module_ladder", (case(module="3a"), LADDER)),
        record("network", (case(network="GoogLeNet"), LADDER)),
    )
    ladder = {
        ("eager", "stacked"): 60 / 50,
        ("eager", "stacked, hoisted"): 60 / 40,
        ("graph", "stacked"): 33 / 22,
        ("compile", "stacked, hoisted"): 10 / 20,
        ("graph, max-autotune", "stacked, hoisted"): 9 / 3,
        ("ONNX Runtime", "stacked, hoisted"): 12 / 15,
    }
    stage = {("eager", "stacked"): 30 / 20, ("eager", "copied"): 30 / 24,
             ("graph", "stacked"): 14 / 7}  # fmt: skip
    assert found == {
        (what, *key): gain
        for what, gains in (
            ("three siblings", stage),
            ("module", ladder),
            ("GoogLeNet", ladder),
        )
        for key, gain in gains.items()
    }


@pytest.mark.parametrize("missing", STAGE)
def test_what_was_not_measured_is_left_out(missing):
    left = {variant: us for variant, us in STAGE.items() if variant != missing}
    found = middles(record("stage", (case(module="3a"), left)))
    assert len(found) == 3 - {"separate": 2}.get(missing, 1)


def test_only_modules_are_put_together():
    """Every other parameter makes an outcome of its own."""
    every = itertools.product((1, 8), ("float32", "float16"), ("NCHW", "NHWC"))
    cases = [
        (case(*parameters, module=module), {"separate": us, "stacked": 10})
        for parameters in every
        for module, us in (("3a", 9), ("3b", 30), ("4a", 20))
    ]
    found = outcomes.brought(record("stage", *cases))
    assert len(found) == 8
    for one in found:
        assert one.gains == {"3a": (0.9,) * 3, "3b": (3,) * 3, "4a": (2,) * 3}
        assert (one.middle, one.faster, one.slower) == (2, 2, 1)


def test_quartiles_that_hold_1_are_neither():
    gains = {"a": (1.0, 1.2, 1.3), "b": (0.8, 0.9, 1.0)}
    one = outcomes.Outcome("module", "eager", "stacked", "NCHW", "float32", 1, gains)
    assert (one.faster, one.slower) == (0, 0)


def test_the_table_has_every_outcome_and_marks_losses():
    records = [
        experiments.result(name, "records", kind="cpu")
        for name in ("stage", "module_ladder", "network")
    ]
    found = outcomes.brought(*records)
    text = outcomes.table(found)
    assert len(re.findall(r"\d:\d", text)) == len(found)
    assert text.count("▾") == sum(o.slower > 0 for o in found) > 0
    blocks = re.split(r"\n(?! )", text)[1:]
    wide = text.index("1.") - text.rindex("\n", 0, text.index("1.")) - 1
    for one in found:
        said = f"{one.what}, {one.layout}, {one.dtype}"
        (block,) = (block for block in blocks if block.startswith(said))
        head, *rows = block.split("\n")
        shared = {head.removeprefix(said).removeprefix(", ")} - {""}
        (row,) = (
            row
            for row in rows
            if {one.mode, one.way} == shared | set(row[:wide].strip().split(": "))
        )
        assert f"{one.middle:.2f} {one.faster}:{one.slower}" in row[wide:]


def test_a_line_of_the_table_names_what_its_block_does_not():
    gains = {"3a": (1.1, 1.2, 1.3)}

    def made(*rows):
        given = ((mode, way, "NHWC", "float16", 8, gains) for mode, way in rows)
        return outcomes.table([outcomes.Outcome("module", *one) for one in given])

    for rows, lines in (
        ((("eager", "a"), ("eager", "b")), [", eager", "a", "b"]),
        ((("eager", "a"), ("graph", "a")), [", a", "eager", "graph"]),
        ((("eager", "a"), ("graph", "b")), ["", "eager: a", "graph: b"]),
    ):
        head, *found = made(*rows).split("\n")[1:]
        assert head == "module, NHWC, float16" + lines[0]
        assert [row.removesuffix("1.20 1:0").strip() for row in found] == lines[1:]


def test_nothing_recorded_is_no_table():
    with pytest.raises(
        NotRecorded, match="no case of stage, network was measured in two ways"
    ):
        outcomes.brought(nothing("stage"), nothing("network"))


def test_panels_leave_compilers_out():
    ladder = record("module_ladder", (case(module="3a"), LADDER))
    found = outcomes.panels(outcomes.brought(ladder))
    assert list(found) == ["module, eager, NCHW, float32", "module, graph, NCHW, float32"]
    eager = found["module, eager, NCHW, float32"]
    stacked, hoisted = {"3a": (1.2,) * 3}, {"3a": (1.5,) * 3}
    assert eager == {"batch 1": {"stacked": stacked, "stacked, hoisted": hoisted}}
