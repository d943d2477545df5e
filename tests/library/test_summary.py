"""Gains, quartiles and intervals by hand."""

import math
import random

import numpy as np
import pytest

from hfusion import FusionError, timing

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


def misses(n, cut):
    """How probable it is that `cut` samples, or fewer, lie on one side of the median."""
    return sum(math.comb(n, k) for k in range(cut + 1)) / 2**n


@pytest.mark.parametrize("n", [1, 5, 6, 15, 20, 30, 101])
@pytest.mark.parametrize("missed", [0.05, 0.5])
def test_an_interval_of_the_median_is_as_narrow_as_may_be(n, missed):
    low, high = timing.median_interval(range(n)[::-1], missed)
    assert high == n - 1 - low
    assert low == 0 or misses(n, low) <= missed / 2
    assert misses(n, low + 1) > missed / 2


def test_the_median_is_in_its_interval_about_as_often_as_it_should_be():
    draw = random.Random(0)
    found = 0
    for _ in range(2000):
        low, high = timing.median_interval([draw.gauss(0, 1) for _ in range(20)])
        found += low <= 0 <= high
    assert 0.94 < found / 2000 < 0.98  # the binomial tells 0.959


@pytest.mark.parametrize("missed", [0, 1, -1, float("nan")])
def test_a_wrong_probability_is_named(missed):
    with pytest.raises(FusionError, match=f"^missed: .*, got {missed}"):
        timing.median_interval([1.0], missed)
