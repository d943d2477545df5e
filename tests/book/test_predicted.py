"""show.predicted: predictions beside a record. Both are made up here, and say so."""

import dataclasses
import json
import math
import re

import pytest
from cuts import cuts

from sideways import records, show
from sideways.show import judged as judge

MADE_UP = "MADE UP IN A TEST"
CASE = {"module": "3a", "batch": 1}
OTHER = {"module": "3b", "batch": 1}
CONTENT = {
    "format": 1,
    "device": MADE_UP,
    "date": "2001-02-03",
    "commit": "0" * 40,
    "inputs": {
        name: {"low": 1, "middle": 2, "high": 4} for name in ("replay", "between", "node")
    },
    "experiments": {
        "module_ladder": [
            {
                "parameters": parameters,
                "us": {"slow": [80.0, 100.0, 120.0], "fast": [8.0, 10.0, 12.0]},
                "gains": {"fast / slow": [9.0, 10.0, 11.0]},
                "kernels": {"slow": [20, 20, 24], "fast": [2, 2, 2]},
            }
            for parameters in (CASE, OTHER)
        ],
        "launch_overhead": [
            {"parameters": {"way": "graph"}, "us": {"1": [1, 2, 4]}, "gains": {}}
            | {"kernels": {}}
        ],
        "stage": [
            {"parameters": {"batch": batch}, "us": {}, "kernels": {}}
            | {"gains": {"copied / separate": gains}}
            for batch, gains in (
                (1, [1.1, 1.2, 1.3]),
                (2, [0.5, 0.6, 0.7]),
                (4, [0.9, 0.95, 1.1]),
                (8, [0.6, 0.7, 0.8]),
            )
        ],
    },
}
MACHINE = records.Machine("made-up", "cuda", MADE_UP, "a CPU", 1, "3.11", "2.13.0")
# 3a is as predicted, but for its kernels; in 3b "fast" is twice as slow as its range.
RECORD = records.Record(
    experiment="module_ladder",
    question="Is this made up?",
    machine=MACHINE,
    date="2001-02-04",
    commit="0" * 40,
    sources="0" * 16,
    counted="kernels",
    protocol={"rounds": 1},
    cases=(
        records.Case(
            CASE,
            {"slow": (100.0,), "fast": (10.0,)},
            launches={"slow": 25, "fast": 2},
        ),
        records.Case(
            OTHER,
            {"slow": (90.0,), "fast": (24.0,)},
            launches={"slow": 20, "fast": 2},
        ),
    ),
)


@pytest.fixture
def root(tmp_path):
    """A book with predictions and no record."""
    path = tmp_path / judge.FILE
    path.parent.mkdir()
    path.write_text(json.dumps(CONTENT), encoding="utf-8")
    return tmp_path


@pytest.fixture
def recorded(root):
    """The same with a record."""
    records.save(RECORD, root / "records")
    return root


def ladder(root, **options):
    return show.predicted("module_ladder", root, **options)


def test_without_a_record_the_numbers_are_called_predicted(root):
    lines = ladder(root, module="3a").splitlines()
    assert lines[0] == f"predicted on 2001-02-03 for an {MADE_UP}, not recorded yet:"
    assert "  100 µs (80 to 120)             slow" in lines
    assert lines[-3:] == ["  fast:", "    10 times (9 to 11) as fast as", "    'slow'"]
    assert "was" not in " ".join(lines)


def test_a_record_of_another_machine_is_none(root):
    other = dataclasses.replace(MACHINE, device=f"{MADE_UP} NVL")
    records.save(dataclasses.replace(RECORD, machine=other), root / "records")
    assert "not recorded yet" in ladder(root)


def test_without_a_file_nothing_is_said(tmp_path):
    assert ladder(tmp_path) == "predicted: nothing yet"


def test_misses_come_first_the_farthest_before_the_others(recorded):
    lines = ladder(recorded).splitlines()
    assert lines[1] == f"recorded on {MADE_UP}, 2001-02-04"
    misses, hits = lines.index("misses:"), lines.index("in their range:")
    assert misses < hits
    said = lines[misses + 1 : hits]
    # 90 / 24 = 3.75 is a factor of 2.4 below 9; 24 is twice 12; 25 is little above 24.
    assert said == [
        "  3b, batch 1: fast / slow",
        "      predicted 10 (9 to 11), was 3.75 times",
        "  3b, batch 1: fast",
        "      predicted 10 (8 to 12), was 24 µs",
        "  3a, batch 1: slow",
        "      predicted 20 (20 to 24), was 25 kernels",
    ]


def test_the_score_by_hand(recorded):
    cases = judge.chosen(CONTENT, "module_ladder")
    rows, lacking = judge.judged(cases, RECORD)
    assert (len(rows), lacking) == (10, 0)
    times = judge.score([row for row in rows if row.kind == "us"])
    # Recorded 100, 10, 90, 24: the middle is off by 0, 0, 1/9, 14/24. Their median, 57, is
    # off by 0.43, 4.7, 0.367, 1.375.
    assert (times.count, times.inside) == (4, 3)
    assert times.off == pytest.approx((0 + 1 / 9) / 2)
    assert times.constant == pytest.approx((0.43 + 1.375) / 2)
    # By variant: the medians of 100 and 90 and of 10 and 24 are 95 and 17; they are off by
    # 0.05, 0.7, 0.056, 0.292.
    assert times.of_variants == pytest.approx((5 / 90 + 7 / 24) / 2)
    said = ladder(recorded)
    assert "times: 3 of 4 in their range; off by 6%, always the median by" in said
    assert "kernels: 3 of 4" in said
    assert "gains: 1 of 2" in said


def test_the_scores_of_all_experiments(recorded):
    lines = judge.scored(recorded).splitlines()
    assert lines[0] == f"module_ladder, recorded on {MADE_UP}, 2001-02-04"
    assert "    gains: 1 of 2" in lines[3]
    assert lines[-2:] == [
        "launch_overhead: 1 cases predicted, not recorded yet",
        "stage: 4 cases predicted, not recorded yet",
    ]


def test_at_the_ends_of_a_range_it_is_a_hit():
    at_the_ends = [judge.Judged("us", "x", (1.0, 2.0, 4.0), was) for was in (1.0, 4.0)]
    assert [row.missed for row in at_the_ends] == [0, 0]
    outside = judge.Judged("us", "x", (1.0, 2.0, 4.0), 8.0)
    assert outside.missed == pytest.approx(math.log(2))


def test_only_the_variants_that_are_asked_for(recorded):
    said = ladder(recorded, variants=("slow",), module="3b")
    assert "fast" not in said
    assert "3a" not in said
    assert "slow" in said


@pytest.mark.parametrize(
    ("variants", "gains"), [(("fast",), set()), (("slow", "fast"), {"fast / slow"})]
)
def test_a_gain_is_kept_with_both_of_its_variants(variants, gains):
    cases = judge.chosen(CONTENT, "module_ladder", variants)
    assert [set(case["gains"]) for case in cases] == [gains] * 2


def test_a_variant_that_did_not_run_is_counted(root):
    case = RECORD.cases[0]
    short = dataclasses.replace(
        case, samples={"slow": (100.0,)}, launches={}, skipped={"fast": "failed: no"}
    )
    records.save(dataclasses.replace(RECORD, cases=(short,)), root / "records")
    said = ladder(root)
    assert said.splitlines()[-1] == "predicted, and not in the record: 9"
    assert "times: 1 of 1" in said


def test_it_runs_on_whatever_record_is_there(root):
    for what, cut in cuts(RECORD):
        if cut is None:
            continue
        records.save(cut, root / "records")
        said = ladder(root)
        assert re.search("misses|not in the record", said), what


def test_few_hits_are_listed(recorded):
    said = ladder(recorded, most=2).splitlines()
    assert said[-1] == "  and 5 more"


def test_cases_that_lose_are_counted(root):
    said = show.predicted("stage", root)
    assert "copied / separate: 3 of 4 cases lose, 2 of them surely" in said
    assert "the least: 0.6 times (0.5 to 0.7), batch 2" in said


def test_the_hinge(root):
    said = show.predicted("launch_overhead", root)
    assert "max(a, c + b n)" in said
    assert said.count("2 µs (1 to 4)") == 3


def test_a_case_that_is_not_predicted_is_an_error(root):
    with pytest.raises(ValueError, match="parameters: nothing is predicted of"):
        ladder(root, module="6a")
