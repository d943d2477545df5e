"""Plots of numbers that one is given; see `recorded` for those of records."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from .style import DASHED, FAINT, OTHERS, labelled, tint

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
