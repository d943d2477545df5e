"""The book's plots: each number that one is given is drawn where it belongs."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sideways import figures

LOW, HIGH = (0.5, 0.6, 0.7), (0.8, 1.1, 1.3)
PARTS = {"as written": {"conv": 3, "norm": 2.5}, "fused": {"conv": 1, "norm": 0}}
BARS = {"µs": {"a": 4, "b": 1.2345}, "MB": {"a": 7, "b": 3}}
ERRORS = {"g": {"a": 0, "b": 1e-3}, "h": {"a": 1e-9, "b": 2}}
POINTS, FITS = {"a": (3, 12), "b": (5, 6)}, {"a": (2, 1), "b": (4, 0.5)}
HINGE = {"g": [(1, 2, 3), (-4, -3, -2)]}
OFF = {"a": [(-2, -1, 3), (4, 5, 6)], "b": [(0, 7, 8), (-9, 0, 2)]}
PAIRS = {"a": [(0.9, 1.1), (1.2, 1.25)], "b": [(1.3, 1)]}
PANELS = {
    "siblings": {
        "batch 1": {"stacked": dict.fromkeys("abc", HIGH), "copied": {"a": LOW, "b": LOW}}
    },
    "module": {"batch 1": {"stacked": {"a": HIGH}}, "batch 8": {"hoisted": {"a": LOW}}},
}
GAINS = {"a": [(1, HIGH), (9, LOW)]}


def at(x, ys):
    return {(x, y) for y in ys}


def beside(xs, y):
    return {(x, y) for x in xs}


# What is drawn, and points that must be among what is drawn; None is any place.
PLOTS = {
    "stacked_bars": (
        lambda: figures.stacked_bars(PARTS, {"conv": "red", "norm": "blue"}, "operators"),
        {(3, 0), (5.5, 0), (1, 1)},
    ),
    "spread": (  # 9 programs on 6: one each, and three have a second
        lambda: figures.spread({"p": {"a": 2, "b": 9}}, 6),
        {(2, 0), (6, 0), (3, 1), (6, 1)},
    ),
    "bars": (
        lambda: figures.bars(BARS, {"MB": ("least", 2)}, "on M"),
        {(4, 0), (1.2345, 1), (7, 0), (3, 1), (2, None)},
    ),
    "ranges": (
        lambda: figures.ranges({"a": LOW, "b": HIGH}, "gain"),
        beside(LOW, 0) | beside(HIGH, 1),
    ),
    "errors": (
        lambda: figures.errors(ERRORS, 0.1, "error"),
        {(0, 1e-13), (1, 1e-3), (3, 1e-9), (4, 2), (None, 0.1)},
    ),
    "calls": (
        lambda: figures.calls([900, 20, 30, 25], "on M"),
        {(1, 900), (2, 20), (3, 30), (4, 25), (None, 27.5)},
    ),
    "fitted": (
        lambda: figures.fitted((1, 10), POINTS, FITS, OFF, "on M"),
        {(1, 3), (10, 12), (1, 5), (10, 6), (1, 4.5), (10, 9)}
        | {(1, -1), (10, 5), (1, 7), (10, 0)},
    ),
    "fitted hinge": (
        lambda: figures.fitted((1, 9), {"g": (5, 9)}, {"g": (4, 1, 1)}, HINGE, "on M"),
        {(1, 4), (9, 10), (1, 2), (9, -3)},
    ),
    "predicted": (
        lambda: figures.predicted(PAIRS, "on M"),
        {point for pairs in PAIRS.values() for point in pairs},
    ),
    "tradeoff": (
        lambda: figures.tradeoff(GAINS, 3, ("yes", "no"), "FLOPs", "on M"),
        at(1, HIGH) | at(9, LOW) | {(3, None)},
    ),
    "outcomes": (
        lambda: figures.outcomes(PANELS, "on M"),
        beside(HIGH, None) | beside(LOW, None),
    ),
    "hinge": (
        lambda: figures.hinge({1: (2, 3, 5), 10: HIGH}, {1: 4}, "on M"),
        at(1, (2, 3, 5, 4)) | at(10, HIGH),
    ),
}  # fmt: skip
OTHER = {"gallery"}  # below
DRAWINGS = {"inception", "graph", "fusion_kinds", "unroll", "blocks", "memory", "gemm",
            "neighbours", "taps", "launches", "waves", "windows", "sharded", "tint",
            "use_style"}  # fmt: skip


def points(figure):
    """Where lines and areas have corners; where bars end."""
    for axes in figure.axes:
        for line in axes.lines:
            yield from line.get_xydata()
        for area in axes.collections:
            for path in area.get_paths():
                yield from path.vertices
        for bar in axes.patches:
            (left, bottom), (right, top) = bar.get_bbox().get_points()
            yield right, (bottom + top) / 2
            yield (left + right) / 2, top


def lacking(figure, wanted):
    """The points that are not drawn."""
    there = np.array([*points(figure)], dtype=float)
    plt.close(figure)
    return {point for point in wanted if not close(there, point).any()}


def close(there, point):
    like = [coordinate is None or np.isclose(there[:, axis], coordinate, 1e-6, 0)
            for axis, coordinate in enumerate(point)]  # fmt: skip
    return np.logical_and(*like)


@pytest.mark.parametrize("name", PLOTS)
def test_each_number_is_drawn(name):
    draw, wanted = PLOTS[name]
    assert lacking(draw(), wanted) == set()


def test_a_number_that_is_not_drawn_is_missed():
    draw, wanted = PLOTS["calls"]
    assert lacking(draw(), wanted | {(2, 20.1), (5, None)}) == {(2, 20.1), (5, None)}


INTERVALS = {  # what draws them, and how many points of them lie on one line of pixels
    "ranges": lambda: figures.ranges({"a": LOW, "b": HIGH}, "gain"),
    "tradeoff": lambda: figures.tradeoff(GAINS, 3, ("yes", "no"), "FLOPs", "on M"),
    "outcomes": lambda: figures.outcomes(PANELS, "on M"),
}


@pytest.mark.parametrize("name", INTERVALS)
def test_an_interval_is_drawn_from_end_to_end_and_no_further(name):
    figure = INTERVALS[name]()
    figure.set_dpi(300)
    lines = [line for axes in figure.axes for line in axes.lines if spans(line)]
    for artist in figure.findobj(lambda each: not each.get_children()):
        artist.set_visible(False)
    found = [(meant(line), inked(figure, line)) for line in lines]
    plt.close(figure)
    assert len(found) >= 2
    for long, seen in found:
        assert seen == pytest.approx(long, abs=2)  # pixels


def spans(line):
    """Is it an interval, and no dashed line across the axes?"""
    values = line.get_xydata()
    return len(values) == 2 and {*values.ravel()} & {LOW[0], HIGH[0]}


def meant(line):
    """How many pixels it should be long."""
    return np.ptp(line.get_transform().transform(line.get_xydata()), axis=0).max()


def inked(figure, line):
    """How many pixels it is long, drawn alone."""
    line.set(visible=True, color="black", alpha=1)
    figure.canvas.draw()
    line.set_visible(False)
    dark = np.argwhere(np.asarray(figure.canvas.buffer_rgba())[..., 0] < 128)
    return np.ptp(dark, axis=0).max() + 1


def test_every_function_is_held_to_numbers_or_draws_none():
    public = {n for n in figures.__all__ if inspect.isfunction(getattr(figures, n))}
    assert {name.partition(" ")[0] for name in PLOTS} | OTHER | DRAWINGS == public


def test_photographs_are_shown_as_they_are():
    """A number below 0 is black, one above 1 white."""
    figure = figures.gallery({"a": np.array([[-0.5, 0.25, 1.5]]), "b": np.eye(2)})
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    plt.close(figure)
    assert [image.tolist() for image in shown] == [[[0, 0.25, 1]], [[1, 0], [0, 1]]]


def test_memory_has_each_number_in_the_colour_of_its_branch():
    figure = figures.memory({"one": [0, 1, 2], "two": [3, 0, 1, 2, 3]}, columns=3)
    colours = [patch.get_facecolor() for patch in figure.axes[0].patches]
    plt.close(figure)
    order = list(dict.fromkeys(colours))
    assert [order.index(colour) for colour in colours] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_windows_have_their_weights_in_the_middle_and_zeros_around():
    figure = figures.windows([1, 3, 1])
    filled = [patch.get_facecolor()[:3] != (1, 1, 1) for patch in figure.axes[0].patches]
    plt.close(figure)
    middle = [tap == 4 for tap in range(9)]
    assert filled == middle + 9 * [True] + middle
