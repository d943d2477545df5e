"""Plots of what records hold; each prints its record's label on the figure."""

import statistics
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, LogLocator

from .plots import INTERVAL
from .style import DASHED, FAINT, INK, INPUT, OTHERS, labelled


def calls(times_us, label):
    """One and the same call, again and again: each a dot, the median a dashed line."""
    figure, axis = plt.subplots(figsize=(5.2, 2.9))
    numbers = range(1, len(times_us) + 1)
    axis.plot(numbers, times_us, "o", markersize=2, color=OTHERS[1])
    axis.plot(1, times_us[0], "o", markersize=5, color=OTHERS[3])
    axis.annotate("the first call", (1, times_us[0]), xytext=(12, -3),
                  textcoords="offset points", fontsize=9)  # fmt: skip
    axis.axhline(statistics.median(times_us), **DASHED)
    axis.set(yscale="log", xlabel="call", ylabel="time, µs")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 4)))
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.minorticks_off()
    return labelled(figure, label)


def fitted(ns, points, lines, off, label):
    """Chains of n: {way: medians in µs} and {way: (a, b)}; below, how far off the line.

    lines: (a, b) of a line a + b n, or (a, c, b) of a hinge, max(a, c + b n).
    off: {way: [(low, median, high), …]} in %, one for each n.
    """
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=(5.2, 4), sharex=True, height_ratios=(3, 1)
    )
    for colour, (way, times_us) in zip(OTHERS[::2], points.items(), strict=False):
        *least, a, b = lines[way]
        line = [max(*least, a + b * n) if least else a + b * n for n in ns]
        name = f"{a:.2f} + {b:.3f} n"
        name = f"{way}: max({least[0]:.2f}, {name})" if least else f"{way}: {name}"
        axis.plot(ns, line, color=colour, linewidth=1, label=name)
        axis.plot(ns, times_us, "o", color=colour, markersize=5)
        low, middle, high = zip(*off[way], strict=True)
        below.vlines(ns, low, high, color=colour, linewidth=1.2, capstyle="butt")
        below.plot(ns, middle, "o", color=colour, markersize=4)
    below.axhline(0, **DASHED)
    axis.set(xscale="log", yscale="log", ylabel="time, µs")
    axis.legend(fontsize=9)
    below.set(xlabel="operators in the chain, n", ylabel="off the\nline, %")
    return labelled(figure, label)


def predicted(groups, label):
    """Gains predicted and recorded: {group: [(predicted, recorded), …]}.

    In the shaded quarters the sign of the gain is called wrong. The axes have scales of
    their own; on the dashed line both agree.
    """
    figure, axis = plt.subplots(figsize=(5, 3.8))
    said, was = zip(*(pair for pairs in groups.values() for pair in pairs), strict=True)
    left, right = min(0.95, *said) - 0.02, max(said) + 0.02
    low, high = min(was) - 0.05, max(was) + 0.05
    axis.fill_between([left, 1], 1, high, color=FAINT, alpha=0.5, linewidth=0)
    axis.fill_between([1, right], low, 1, color=FAINT, alpha=0.5, linewidth=0)
    axis.plot([left, right], [left, right], **DASHED)
    markers = zip((OTHERS[0], OTHERS[3], OTHERS[1], OTHERS[4]), "osDv", strict=True)
    for (group, pairs), (colour, marker) in zip(groups.items(), markers, strict=False):
        axis.plot(*zip(*pairs, strict=True), marker, markersize=4, color=colour,
                  alpha=0.8, linestyle="", label=group)  # fmt: skip
    axis.set(xlim=(left, right), ylim=(low, high))
    axis.set(xlabel="estimated gain", ylabel="recorded gain")
    axis.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return labelled(figure, label)


def tradeoff(groups, even, sides, xlabel, label):
    """Gains over what comes on top: {group: [(x, (lower, median, upper)), …]}.

    even: the x at which a rule says that nothing is gained and nothing lost; sides: what
    it says to the left of it and to the right. What is slower lies in the shaded part. A
    dot is hollow if its quartiles lie on both sides of 1.
    """
    figure, axis = plt.subplots(figsize=(5, 3.4))
    points = [point for group in groups.values() for point in group]
    left, right = (f(x for x, _ in points) for f in (min, max))
    low, high = 0.9 * min(y[0] for _, y in points), 1.4 * max(y[2] for _, y in points)
    left, right = left / 2, right * 2
    axis.axhspan(low, 1, color=FAINT, alpha=0.5, linewidth=0)
    axis.axhline(1, **DASHED)
    axis.axvline(even, **DASHED)
    styles = (OTHERS[0], "o"), (OTHERS[3], "D"), (OTHERS[1], "s")
    for (group, found), (colour, marker) in zip(groups.items(), styles, strict=False):
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5}
        for x, (lower, median, upper) in found:
            axis.plot([x, x], [lower, upper], color=colour, alpha=0.4, **INTERVAL)
            fill = colour if lower > 1 or upper < 1 else "white"
            axis.plot(x, median, linestyle="", **style, mfc=fill)
        axis.plot([], [], linestyle="", **style, label=group)
    axis.plot([], [], "o", color=INPUT, mfc="white", markersize=4.5, label="undecided")
    for words, side, gap in zip(sides, ("right", "left"), (-6, 6), strict=True):
        axis.annotate(words, (even, high), (gap, -4), textcoords="offset points",
                      ha=side, va="top")  # fmt: skip
    axis.annotate("slower", (left, 1), (4, -4), textcoords="offset points", va="top")
    axis.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    axis.yaxis.set_major_locator(FixedLocator([0.1, 0.25, 0.5, 1, 2, 4, 10]))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set(xlabel=xlabel, ylabel="recorded gain")
    figure.legend(
        loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=len(groups) + 1,
        handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip
    return labelled(figure, label)


def outcomes(panels, label):
    """Recorded gains: {title: {row: {way: {name: (lower quartile, median, upper)}}}}.

    A dot for each, with its quartiles, on a logarithmic scale. What is slower lies in the
    shaded half; a dot has a ring and its name if both of its quartiles do.
    """
    rows = [row for panel in panels.values() for row in panel.values()]
    styles = dict.fromkeys(way for row in rows for way in row)
    styles = dict(zip(styles, ((0, "o"), (3, "D"), (1, "s")), strict=False))
    ratios = [sum(map(_tall, panel.values())) for panel in panels.values()]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(4.5, 0.4 * sum(ratios) + 0.42 * len(panels) + 0.8),
        sharex=True, squeeze=False, height_ratios=ratios,
    )  # fmt: skip
    for axis, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
        axis.axvspan(0.01, 1, color=FAINT, alpha=0.5, linewidth=0)
        axis.axvline(1, **DASHED)
        axis.set_title(title)
        _rows(axis, panel, styles)
    gains = [gain for row in rows for way in row.values() for gain in way.values()]
    left, right = min(0.9, *(low for low, *_ in gains)), max(1.1, *(g[2] for g in gains))
    axis.set(xscale="log", xlim=(0.85 * left, 1.03 * right), xlabel="gain")
    axis.xaxis.set_major_locator(FixedLocator([0.25, 0.35, 0.5, 0.7, 1, 1.4, 2, 2.8, 4]))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    if len(styles) > 1:
        for way, (colour, marker) in styles.items():
            axes[0, 0].plot([], [], marker, color=OTHERS[colour], markersize=5, label=way)
        axes[0, 0].legend(
            loc="lower center", bbox_to_anchor=(0.4, 1 + 0.8 / ratios[0]), ncols=3,
            columnspacing=1, handletextpad=0.2,
        )  # fmt: skip
    return labelled(figure, label)


def _rows(axis, panel, styles):
    """The rows of a panel of `outcomes`, from the top."""
    top, middles = 0, []
    for row in panel.values():
        dots = [(styles[way], *one) for way, gains in row.items() for one in gains.items()]
        step = 0.8 * _tall(row) / len(dots)
        for n, ((colour, marker), name, (low, median, high)) in enumerate(dots):
            height = top + 0.1 * _tall(row) + (n + 0.5) * step
            span = {"color": OTHERS[colour], "alpha": 0.5, "lw": 1}
            axis.plot([low, high], [height] * 2, **span, **INTERVAL)
            axis.plot(median, height, marker, color=OTHERS[colour], markersize=3.8)
            if high < 1:  # apart from the dot, which may be as dark
                axis.plot(median, height, "o", mec=INK, mfc="none", mew=0.9, markersize=7.5)
                axis.annotate(
                    name, (low, height), (-6, 0), textcoords="offset points",
                    ha="right", va="center", fontsize=8,
                )  # fmt: skip
        middles.append(top + _tall(row) / 2)
        top += _tall(row)
    axis.set_yticks(middles, list(panel))
    axis.set_ylim(top, 0)
    axis.tick_params(axis="y", length=0)


def _tall(row):
    """How tall a row is, in rows of many dots."""
    return 1 if sum(map(len, row.values())) > 4 else 0.55


def hinge(said, was, label):
    """A graph of n kernels, predicted: {n: (low, middle, high)} in µs, a band and a line.

    was: {n: recorded µs}, as dots; perhaps none.
    """
    figure, axis = plt.subplots(figsize=(5.2, 3))
    lows, middles, highs = zip(*said.values(), strict=True)
    axis.fill_between(list(said), lows, highs, color=FAINT, linewidth=0, label="range")
    axis.plot(list(said), middles, color=INK, linewidth=1.4, label="predicted")
    if was:
        axis.plot(list(was), list(was.values()), "o", color=OTHERS[3], label="recorded")
    axis.set(xscale="log", yscale="log", xlabel="kernels in the graph, n", ylabel="µs")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:,.0f}")
    axis.legend(loc="upper left")
    return labelled(figure, label)
