"""Gains and quartiles by hand."""

import numpy as np
import pytest

from hfusion import timing

# gains


def test_gains_by_hand():
    samples = {
        "old": [8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0],
        "new": [8.0, 1.0, 2.0, 16.0, 4.0, 2.0, 8.0],  # ratios 1 8 4 ½ 2 4 1
    }
    assert timing.gains(samples, "old") == {"old": (1, 1, 1), "new": (1, 2, 4)}


def test_a_gain_is_the_median_of_ratios_and_not_the_ratio_of_medians():
    samples = {"old": [1.0, 10.0, 100.0], "new": [5.0, 50.0, 2.0]}  # ratios 0.2, 0.2, 50
    assert timing.gains(samples, "old")["new"][1] == 0.2  # the medians are 10 and 5


def test_a_machine_that_slows_down_changes_no_gain():
    slowing = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    samples = {"old": [*(3 * slowing)], "new": [*(2 * slowing)]}
    assert timing.gains(samples, "old")["new"] == (1.5, 1.5, 1.5)
    assert timing.gains(samples, "new")["old"] == pytest.approx((2 / 3,) * 3, rel=1e-15)


def test_one_round_is_its_own_quartiles():
    assert timing.gains({"a": [3.0], "b": [2.0]}, "a")["b"] == (1.5, 1.5, 1.5)


def test_two_rounds_stay_within_their_ratios():
    samples = {"a": [4.0, 4.0], "b": [1.0, 2.0]}  # ratios 4 and 2
    assert timing.gains(samples, "a")["b"] == (2.5, 3, 3.5)


NO_GAINS = [
    ("base: expected one of a, b, got 'c'", {"a": [1.0], "b": [1.0]}, "c"),
    ("samples: expected as many rounds of each, got {'a': 2, 'b': 1}",
     {"a": [1.0, 2.0], "b": [1.0]}, "a"),
    ("samples: expected as many rounds of each, got {'a': 0, 'b': 0}", {"a": [], "b": []},
     "a"),
    ("samples: expected times above 0, got ", {"a": [1.0], "b": [0.0]}, "a"),
    ("samples: expected times above 0, got ", {"a": [0.0], "b": [1.0]}, "a"),
    ("samples: expected times above 0, got ", {"a": [1.0], "b": [np.nan]}, "a"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "samples", "base"), NO_GAINS)
def test_samples_that_are_no_benchmark_are_refused(message, samples, base):
    with pytest.raises(ValueError, match=f"^{message}"):
        timing.gains(samples, base)
