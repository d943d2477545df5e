"""Plots: numbers in, axes out. What comes from a record carries the record's label."""

import statistics
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

from .style import DASHED, FAINT, INK, INPUT, OTHERS, labelled, tint

# How an interval is drawn: a line of matplotlib's ends half its width further out.
INTERVAL: dict[str, Any] = {"solid_capstyle": "butt"}


def gallery(images, columns=3, width=7.4):
    """Photographs side by side: {title: array [H, W] or [H, W, 3] in 0..1}."""
    rows = -(-len(images) // columns)
    height = width / columns * 0.67 * rows + 0.3 * rows
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, image) in zip(axes.flat, images.items(), strict=False):
        axis.imshow(image.clip(0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9.5)
    figure.tight_layout(pad=0.4)
    return figure


def curves(lines, xlabel, ylabel):
    """Lines over 1, 2, 3, …: {label: (values, style)}; a style is plot's keywords."""
    figure, axis = plt.subplots(figsize=(7.4, 2.9))
    for label, (values, style) in lines.items():
        axis.plot(range(1, len(values) + 1), values, label=label, **style)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=9)
    figure.tight_layout()
    return figure


def stacked_bars(rows, colours, xlabel):
    """Horizontal bars made of named parts: {row: {part: number}}, totals at the end."""
    figure, axis = plt.subplots(figsize=(5.2, 0.32 * len(rows) + 1.1))
    for place, parts in enumerate(rows.values()):
        left = 0
        for name, value in parts.items():
            axis.barh(place, value, left=left, height=0.66, color=colours[name],
                      edgecolor="white", label=name if place == 0 else None)  # fmt: skip
            left += value
        axis.text(left, place, f" {left:g}", va="center", weight="bold")
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(xlabel)
    figure.tight_layout()
    columns, corner = min(3, len(colours)), (0, 0.97)
    figure.legend(ncols=columns, loc="lower left", bbox_to_anchor=corner, columnspacing=1.2)
    return figure


def spread(panels, multiprocessors):
    """How many programs run on each multiprocessor, a strip for each grid: {panel: {row:
    programs}}. They are dealt out evenly; a multiprocessor without one is left white.
    """
    count = [len(rows) for rows in panels.values()]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(5.2, 0.27 * sum(count) + 0.75 * len(count)), sharex=True,
        gridspec_kw={"height_ratios": count}, squeeze=False,
    )  # fmt: skip
    for axis, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
        for place, programs in enumerate(rows.values()):
            each, more = divmod(programs, multiprocessors)
            for left, width, held in ((0, more, each + 1), (more, multiprocessors, each)):
                _strip(axis, place, left, width, held)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set(title=title, xlim=(0, multiprocessors), ylim=(len(rows) - 0.5, -0.5))
        axis.tick_params(axis="y", length=0)
    axes[-1, 0].set(xlabel=f"{multiprocessors} multiprocessors, and programs on each")
    figure.tight_layout()
    return figure


def _strip(axis, place, left, right, held):
    """Multiprocessors from left to right that hold so many programs each."""
    strength = min(1, 0.15 + 0.17 * held) if held else 0
    colour = tint(OTHERS[1], strength)
    axis.barh(place, right - left, left=left, height=0.8, color=colour, edgecolor=FAINT)
    if right - left > (5 if held else 11):  # "idle" is wider than a digit
        axis.text((left + right) / 2, place, held or "idle", ha="center", va="center")


def bars(panels, marks=None, label=""):
    """Horizontal bars side by side, with the same rows: {quantity: {row: number}}.

    marks: {quantity: (word, number)}, a dashed line to compare with. label: of the record,
    if the numbers are from one.
    """
    count = max(len(rows) for rows in panels.values())
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2, 0.36 * count + 0.9), sharey=True, squeeze=False
    )
    for axis, (quantity, rows) in zip(axes[0], panels.items(), strict=True):
        axis.barh(list(rows), list(rows.values()), color=OTHERS[1], height=0.62)
        for place, value in enumerate(rows.values()):
            axis.text(value, place, f" {value:.3g}", va="center")
        if quantity in (marks or {}):
            word, where = marks[quantity]
            axis.axvline(where, **DASHED)
            axis.text(where, -0.55, word, ha="center", va="bottom")
        axis.set(xlabel=quantity, xlim=(0, 1.3 * max(rows.values())))
        axis.tick_params(axis="y", length=0)
    axes[0, 0].invert_yaxis()
    return labelled(figure, label)


def ranges(rows, xlabel):
    """Medians with their quartiles: {row: (lower, median, upper)}; a line at 1."""
    figure, axis = plt.subplots(figsize=(5.4, 0.42 * len(rows) + 0.9))
    axis.axvline(1, **DASHED)
    for place, (low, middle, high) in enumerate(rows.values()):
        axis.plot([low, high], [place, place], color=OTHERS[2], linewidth=7, **INTERVAL)
        axis.plot(middle, place, "o", color=OTHERS[0], markersize=3.5)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xlim=(0, None), ylim=(len(rows) - 0.4, -0.6))
    axis.set_xlabel(xlabel, loc="right", multialignment="right")
    figure.tight_layout()
    return figure


def errors(groups, bound, ylabel, bound_name="rounding bound"):
    """Errors on a logarithmic scale against a bound: {group: {name: error}}, each a dot.

    An error of exactly 0 has no logarithm: it is drawn at the bottom, marked 0.
    """
    figure, axis = plt.subplots(figsize=(5.4, 2.9))
    floor = bound / 1e12
    names = list(next(iter(groups.values())))
    for index, (group, found) in enumerate(groups.items()):
        for place, name in enumerate(names):
            value = found[name]
            x = index * (len(names) + 1) + place
            axis.plot(x, max(value, floor), "os^Dv"[place], markersize=6, linestyle="",
                      color=OTHERS[place], label=name if index == 0 else None)  # fmt: skip
            if value == 0:
                axis.text(x, floor * 2, "0", ha="center")
        centre = index * (len(names) + 1) + (len(names) - 1) / 2
        axis.text(centre, floor / 20, group, ha="center", va="top")
    axis.axhline(bound, **DASHED)
    axis.text(len(names) - 0.4, bound * 2, bound_name)
    axis.set_yscale("log")
    axis.set(ylabel=ylabel, xticks=[])
    axis.set_ylim(bottom=floor)
    axis.set_xlim(-0.8, len(groups) * (len(names) + 1) - 1.2)
    axis.legend(ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1))
    figure.tight_layout()
    return figure


# What records hold. Each of these takes the record's label, and prints it on the figure.


def calls(times_us, label):
    """One and the same call, again and again: each a dot, the median a dashed line."""
    figure, axis = plt.subplots(figsize=(7.4, 2.9))
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


def fitted(ns, points, lines, label):
    """Chains of n: {way: medians in µs} and {way: (a, b)}; below, their distance in %.

    (a, b) of a line a + b n, or (a, c, b) of a hinge, max(a, c + b n).
    """
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=(7.4, 4.4), sharex=True, height_ratios=(3, 1)
    )
    for colour, (way, times_us) in zip(OTHERS[::2], points.items(), strict=False):
        *least, a, b = lines[way]
        line = [max(*least, a + b * n) if least else a + b * n for n in ns]
        name = f"{a:.2f} + {b:.3f} n"
        name = f"{way}: max({least[0]:.2f}, {name})" if least else f"{way}: {name}"
        axis.plot(ns, line, color=colour, linewidth=1, label=name)
        axis.plot(ns, times_us, "o", color=colour, markersize=5)
        off = [100 * (t / fit - 1) for t, fit in zip(times_us, line, strict=True)]
        below.plot(ns, off, "o-", color=colour, markersize=4, linewidth=0.8)
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
    figure, axis = plt.subplots(figsize=(7.4, 3.8))
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
    axis.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1.02, 1))
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
    """Recorded gains: {title: {row: {way: [(lower quartile, median, upper quartile), …]}}}.

    A dot for each, with its quartiles, on a logarithmic scale. What is slower lies in the
    shaded half; a dot has a ring if both of its quartiles do.
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
    gains = [gain for row in rows for gains in row.values() for gain in gains]
    left, right = min(0.9, *(low for low, *_ in gains)), max(1.1, *(g[2] for g in gains))
    axis.set(xscale="log", xlim=(0.97 * left, 1.03 * right), xlabel="gain")
    axis.xaxis.set_major_locator(FixedLocator([0.25, 0.35, 0.5, 0.7, 1, 1.4, 2, 2.8, 4]))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
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
        dots = [(styles[way], gain) for way, gains in row.items() for gain in gains]
        step = 0.8 * _tall(row) / len(dots)
        for n, ((colour, marker), (low, median, high)) in enumerate(dots):
            height = top + 0.1 * _tall(row) + (n + 0.5) * step
            span = {"color": OTHERS[colour], "alpha": 0.5, "lw": 1}
            axis.plot([low, high], [height] * 2, **span, **INTERVAL)
            axis.plot(median, height, marker, color=OTHERS[colour], markersize=3.8)
            if high < 1:  # apart from the dot, which may be as dark
                axis.plot(median, height, "o", mec=INK, mfc="none", mew=0.9, markersize=7.5)
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
