"""The book's drawings and plots: data in, matplotlib figure out.

One style and one palette. A branch keeps its colour in every picture, and a
stacked thing is drawn in the colours of its branches. Nothing here computes a
result or measures a time: a figure shows what it is given.
"""

import statistics

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, told apart by readers with any colour vision.
BRANCHES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # 1×1, 3×3, 5×5, pool
INPUT = "#7A828E"
INK = "#1F2733"
FAINT = "#D5DAE1"
# What is no branch is drawn in slate and ochre: kinds of operator, ways, machines.
OTHERS = ("#2F3E56", "#6B7F9E", "#A9B6C8", "#B08900", "#DCC682")

DASHED = {"color": INK, "linewidth": 0.9, "linestyle": (0, (3, 3))}  # where to compare

STYLE = {
    "figure.dpi": 180,
    "savefig.dpi": 180,
    "savefig.bbox": "tight",
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def use_style():
    """Set the book's matplotlib style; a chapter calls it in its first cell."""
    plt.rcParams.update(STYLE)


def tint(colour, strength=0.3):
    """`colour` mixed with white: 0 is white, 1 the colour itself."""
    return tuple(1 - strength * (1 - channel) for channel in to_rgb(colour))


def _canvas(width, height, xlim, ylim):
    """A figure to draw on: no axes, units of equal length, y downwards."""
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=xlim, ylim=ylim[::-1], aspect="equal")
    axes.axis("off")
    return figure, axes


def _box(axes, x, y, width, height, colour, label="", strength=0.3, linewidth=1, **text):
    """A rectangle with its top left corner at (x, y) and a label inside."""
    style = {"ha": "center", "va": "center", "fontsize": 9, "zorder": 1} | text
    axes.add_patch(
        Rectangle(
            (x, y), width, height, facecolor=tint(colour, strength), edgecolor=colour,
            linewidth=linewidth, zorder=style["zorder"],
        )
    )  # fmt: skip
    axes.text(x + width / 2, y + height / 2, label, **style)


def _node(axes, x, y, width, label, colour, fontsize=9):
    """A rounded box centred at (x, y)."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.32), width, 0.64, linewidth=1.4, edgecolor=colour,
            facecolor=tint(colour), boxstyle="round,pad=0,rounding_size=0.12",
        )
    )  # fmt: skip
    axes.text(x, y, label, ha="center", va="center", fontsize=fontsize)


def _arrow(axes, start, end, colour=INK):
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0,
                                    "shrinkB": 1, "linewidth": 1.1},
    )  # fmt: skip


def inception(fused=False):
    """The Inception module as a graph; fused=True stacks its three siblings."""
    figure, axes = _canvas(7.4, 3.5, (-0.4, 12.4), (-0.5, 5.2))
    one, three, five, pool = BRANCHES
    rows = {"1×1": (0.3, one), "3×3": (1.6, three), "5×5": (2.9, five), "pool": (4.4, pool)}
    _node(axes, 0.6, 2.2, 1.4, "input x", INPUT)
    _node(axes, 11.4, 2.2, 1.5, "concat", INPUT)
    labels = ("1×1", "1×1 reduce", "1×1 reduce")
    for (name, (y, colour)), label in zip(rows.items(), (*labels, "max pool"), strict=True):
        if fused and name != "pool":
            continue
        _node(axes, 3.7, y, 2.0, label, colour)
        _arrow(axes, (1.3, 2.2), (2.7, y))
    if fused:
        for name, label in zip(("1×1", "3×3", "5×5"), labels, strict=True):
            y, colour = rows[name]
            _box(axes, 2.7, y - 0.65, 2.0, 1.3, colour, label)
        _arrow(axes, (1.3, 2.2), (2.7, 1.6))
        axes.text(3.7, -0.55, "one stacked 1×1", ha="center", va="bottom", fontsize=9)
    else:
        axes.plot([2.45, 2.45, 4.95, 4.95, 2.45], [-0.3, 3.45, 3.45, -0.3, -0.3],
                  color=INK, linestyle=(0, (4, 3)), linewidth=1)  # fmt: skip
        axes.text(5.1, -0.2, "siblings: same window, same input", fontsize=9, va="top")
    for name, label in (("3×3", "3×3"), ("5×5", "5×5"), ("pool", "1×1")):
        y, colour = rows[name]
        _node(axes, 7.6, y, 1.8, label, colour)
        _arrow(axes, (4.7, y), (6.7, y), colour)
        _arrow(axes, (8.5, y), (10.65, 2.2), colour)
    axes.plot([4.7, 8.5], [0.3, 0.3], color=one, linewidth=1.1)
    _arrow(axes, (8.5, 0.3), (10.65, 2.2), one)
    return figure


def graph(nodes, together=()):
    """A graph, inputs on the left: {name: (label, lane, colour, names of its inputs)}.

    A node stands to the right of all its inputs, in its lane. together: names to
    draw a frame around.
    """
    column, place = {}, {}
    for name, (_, lane, _, inputs) in nodes.items():
        column[name] = 1 + max((column[source] for source in inputs), default=-1)
        place[name] = (column[name] * 2.55, lane * 1.1)
    right = max(x for x, _ in place.values()) + 1
    bottom = max(y for _, y in place.values()) + 0.6
    figure, axes = _canvas(
        7.4, 7.4 * (bottom + 0.7) / (right + 1), (-1, right), (-0.7, bottom)
    )
    for name, (label, _, colour, inputs) in nodes.items():
        x, y = place[name]
        _node(axes, x, y, 1.95, label, colour, fontsize=8)
        for source in inputs:
            x_0, y_0 = place[source]
            ink = nodes[source][2] if nodes[source][2] != INPUT else colour
            bend = x - 1.6  # past other columns along its own lane
            axes.plot([x_0 + 0.98, bend], [y_0, y_0], color=ink, linewidth=1.1, zorder=0)
            _arrow(axes, (bend, y_0), (x - 0.98, y), ink)
    if together:
        xs, ys = zip(*(place[name] for name in together), strict=True)
        corner, size = (min(xs) - 1.15, min(ys) - 0.5), (2.3, max(ys) - min(ys) + 1)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=INK, linewidth=1,
                                 linestyle=(0, (4, 3))))  # fmt: skip
    return figure


def margins(margin, difference):
    """For each answer: how far ahead it was, and how far rounding moved a score.

    Both arrays [answers], on logarithmic scales. Below the line no answer can change:
    two scores would have to move by half the margin towards each other.
    """
    figure, axis = plt.subplots(figsize=(7.4, 3.3))
    axis.plot(margin, difference, "o", markersize=3.5, color=OTHERS[1], alpha=0.6)
    span = [min(margin) / 2, max(margin) * 2]
    line = [x / 2 for x in span]
    axis.plot(span, line, color=INK, linewidth=1)
    axis.fill_between(span, line, [10 * span[1]] * 2, color=FAINT, alpha=0.6, linewidth=0)
    axis.text(0.02, 0.93, "here an answer might change", transform=axis.transAxes,
              va="top", fontsize=9)  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=span, ylim=(None, 10 * span[1]))
    axis.set(xlabel="margin: the best score less the second best")
    axis.set(ylabel="largest difference\nof a score")
    figure.tight_layout()
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


def fusion_kinds():
    """Three branches of three operators: what each kind of fusion makes one launch."""
    figure, axes = _canvas(7.4, 2.3, (-0.3, 16.3), (-1.1, 3.9))
    operators = ("conv", "norm", "ReLU")
    for column, title in enumerate(("nothing fused", "vertical", "horizontal", "both")):
        left = column * 4.3
        wide, tall = title in ("horizontal", "both"), title in ("vertical", "both")
        step_x, step_y = 1.0 if wide else 1.15, 1.0 if tall else 1.15
        middle = left + (2 * step_x + 1) / 2
        axes.text(middle, -0.6, title, ha="center", fontsize=9.5, weight="bold")
        for branch in range(3):
            for row, name in enumerate(operators):
                x, y = left + branch * step_x, row * step_y
                _box(axes, x, y, 1, 1, BRANCHES[branch], name, fontsize=7.5, linewidth=0)
        for i in range(1 if wide else 3):
            for j in range(1 if tall else 3):
                axes.add_patch(
                    Rectangle((left + i * step_x, j * step_y), 3 if wide else 1,
                              3 if tall else 1, fill=False, edgecolor=INK, linewidth=1.3)
                )  # fmt: skip
        launches = (1 if wide else 3) * (1 if tall else 3)
        count = f"{launches} launch{'es' if launches > 1 else ''}"
        axes.text(middle, 3.75, count, ha="center", fontsize=9)
    return figure


def timeline(panels, until_us):
    """Who works when: host and device, one pair of lanes a panel.

    panels: {title: [(label, colours, (host start, host end, device start, device
    end)), …]}, all in µs; a kernel is drawn in equal parts of its colours. The gaps
    in the device's lane are the time it waits for launches.
    """
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(7.4, 1.55 * len(panels) + 0.3), sharex=True, squeeze=False
    )
    for axis, (title, launches) in zip(axes[:, 0], panels.items(), strict=True):
        for label, colours, (host_0, host_1, device_0, device_1) in launches:
            edge = colours[0] if len(colours) == 1 else INPUT
            axis.barh(1, host_1 - host_0, left=host_0, height=0.62, color=tint(edge),
                      edgecolor=edge, linewidth=0.9)  # fmt: skip
            axis.text(
                (host_0 + host_1) / 2, 1, label, ha="center", va="center", fontsize=7.5
            )
            part = (device_1 - device_0) / len(colours)
            for place, colour in enumerate(colours):
                axis.barh(0, part, left=device_0 + place * part, height=0.62, color=colour)
        end = max(times[3] for _, _, times in launches)
        axis.axvline(end, **DASHED)
        axis.text(end, 1.52, f" {end:.1f} µs", fontsize=9, va="center")
        axis.set_title(title)
        axis.set(xlim=(0, until_us), ylim=(-0.5, 1.75), yticks=[0, 1])
        axis.set_yticklabels(["device runs", "host launches"])
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    axes[-1, 0].set_xlabel("time, µs")
    figure.tight_layout()
    return figure


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


def unroll():
    """An image of two channels and six pixels, as a tensor and as the matrix X."""
    figure, axes = _canvas(7.4, 2.0, (-0.4, 14.4), (-0.6, 3.6))
    shades = (INPUT, OTHERS[3])
    for channel, colour in enumerate(shades):
        for pixel in range(6):
            row, column = divmod(pixel, 3)
            x, y = column + 0.6 * (1 - channel), row + 0.7 * channel
            _box(axes, x, y, 1, 1, colour, str(pixel), zorder=1 + channel)
    axes.text(1.9, 3.2, "C = 2, H = 2, W = 3", ha="center", fontsize=9.5)
    _arrow(axes, (4.3, 1.4), (6.3, 1.4))
    axes.text(5.3, 1.1, "reshape", ha="center", fontsize=9.5)
    for channel, colour in enumerate(shades):
        for pixel in range(6):
            _box(axes, 7.2 + pixel, 0.4 + channel, 1, 1, colour, str(pixel))
    axes.text(10.2, 3.2, "X: C rows, P = 6 columns, one pixel a column", ha="center",
              fontsize=9.5)  # fmt: skip
    return figure


def blocks(sizes, c_in, pixels, names):
    """W · X = Y to scale: one unit of length a channel or a pixel.

    sizes: output channels of each branch; names: what becomes of each.
    """
    total, gap = sum(sizes), 70
    x_left, y_left = c_in + gap, c_in + pixels + 2 * gap
    figure, axes = _canvas(7.4, 4.2, (-40, y_left + pixels + 190), (-15, c_in + 50))
    top = 0
    for index, (size, name) in enumerate(zip(sizes, names, strict=True)):
        colour, middle = BRANCHES[index], top + size / 2
        font = {"fontsize": 10 if size > 40 else 7}
        _box(axes, 0, top, c_in, size, colour, f"$\\mathbf{{W}}_{index + 1}$", **font)
        _box(axes, y_left, top, pixels, size, colour, f"$Y_{index + 1}$", **font)
        axes.text(-10, middle, size, ha="right", va="center", fontsize=9)
        axes.text(y_left + pixels + 10, middle, name, va="center", fontsize=9)
        top += size
    _box(axes, x_left, 0, pixels, c_in, INPUT, "$X$", fontsize=11)
    for x, sign in ((c_in + gap / 2, "·"), (x_left + pixels + gap / 2, "=")):
        axes.text(x, total / 2, sign, ha="center", va="center", fontsize=18)
    for x, bottom, label in (
        (c_in / 2, total, f"$\\mathbf{{W}}$: K = {total} rows, C = {c_in}"),
        (x_left + pixels / 2, c_in, f"C = {c_in} rows, P = {pixels}"),
        (y_left + pixels / 2, total, f"$Y$: K = {total} rows"),
    ):
        axes.text(x, bottom + 12, label, ha="center", va="top", fontsize=9)
    return figure


def memory(rows, columns):
    """Memory as it lies: {title: [branch of cell 0, branch of cell 1, …]}.

    One strip a layout, wrapped after `columns` cells; a cell is one number.
    """
    lines = {title: -(-len(cells) // columns) for title, cells in rows.items()}
    height = sum(lines.values()) * 1.0 + len(rows) * 1.3
    figure, axes = _canvas(
        7.4, 7.4 * height / columns, (-0.2, columns + 0.2), (-0.2, height)
    )
    y = 0
    for title, cells in rows.items():
        axes.text(0, y + 0.65, title, fontsize=9.5, va="center")
        for cell, branch in enumerate(cells):
            line, column = divmod(cell, columns)
            colour = BRANCHES[branch]
            _box(axes, column, y + 1.1 + line, 1, 0.85, colour, str(branch + 1),
                 strength=0.45, fontsize=7)  # fmt: skip
        y += lines[title] + 1.3
    return figure


def stacked_bars(rows, colours, xlabel):
    """Horizontal bars made of named parts: {row: {part: number}}, totals at the end."""
    figure, axis = plt.subplots(figsize=(7.4, 0.42 * len(rows) + 1.1))
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
    axis.legend(ncols=len(colours), loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    figure.tight_layout()
    return figure


def ranges(rows, xlabel):
    """Medians with their quartiles: {row: (lower, median, upper)}; a line at 1."""
    figure, axis = plt.subplots(figsize=(7.4, 0.42 * len(rows) + 0.9))
    axis.axvline(1, **DASHED)
    for place, (low, middle, high) in enumerate(rows.values()):
        axis.plot([low, high], [place, place], color=OTHERS[2], linewidth=4)
        axis.plot(middle, place, "o", color=OTHERS[0])
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xlim=(0, None), ylim=(len(rows) - 0.4, -0.6), xlabel=xlabel)
    figure.tight_layout()
    return figure


def error_bars(groups, bound, ylabel, bound_name="rounding bound"):
    """Errors on a logarithmic scale against a bound: {group: {bar: error}}.

    An error of exactly 0 has no logarithm: it is drawn at the bottom, marked 0.
    """
    figure, axis = plt.subplots(figsize=(7.4, 2.9))
    floor = bound / 1e12
    names = list(next(iter(groups.values())))
    for index, (group, bars) in enumerate(groups.items()):
        for place, name in enumerate(names):
            value = bars[name]
            x = index * (len(names) + 1) + place
            axis.bar(x, max(value, floor) - floor, bottom=floor, width=0.85,
                     color=OTHERS[place], label=name if index == 0 else None)  # fmt: skip
            if value == 0:
                axis.text(x, floor * 2, "0", ha="center")
        centre = index * (len(names) + 1) + (len(names) - 1) / 2
        axis.text(centre, floor / 20, group, ha="center", va="top")
    axis.axhline(bound, **DASHED)
    axis.text(len(names) - 0.4, bound * 2, bound_name, fontsize=8.5)
    axis.set_yscale("log")
    axis.set(ylabel=ylabel, xticks=[])
    axis.set_ylim(bottom=floor)
    axis.legend(ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    figure.tight_layout()
    return figure


# What records hold. Each of these takes the record's label, and prints it on the figure.


def _labelled(figure, label):
    """Say on a figure of times where and when they were taken."""
    figure.tight_layout()
    figure.text(0.995, 0.0, label, ha="right", va="top", fontsize=7.5, color=INPUT)
    return figure


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
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_minor_formatter("{x:,.0f}")
    axis.tick_params(axis="y", which="minor", labelsize=8)
    return _labelled(figure, label)


def fitted(ns, points, lines, label):
    """Chains of n: {way: medians in µs} and {way: (a, b)}; below, their distance in %."""
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=(7.4, 4.4), sharex=True, height_ratios=(3, 1)
    )
    for colour, (way, times_us) in zip(OTHERS[::2], points.items(), strict=False):
        a, b = lines[way]
        line = [a + b * n for n in ns]
        name = f"{way}: {a:.2f} + {b:.3f} n"
        axis.plot(ns, line, color=colour, linewidth=1, label=name)
        axis.plot(ns, times_us, "o", color=colour, markersize=5)
        off = [100 * (t / fit - 1) for t, fit in zip(times_us, line, strict=True)]
        below.plot(ns, off, "o-", color=colour, markersize=4, linewidth=0.8)
    below.axhline(0, **DASHED)
    axis.set(xscale="log", yscale="log", ylabel="time, µs")
    axis.legend(fontsize=9)
    below.set(xlabel="operators in the chain, n", ylabel="off the\nline, %")
    return _labelled(figure, label)


def lanes(panels, kinds, label):
    """Timelines: {title: [(lane, name, begin, end), …]}, on one axis in µs.

    kinds: {name: which of OTHERS is its colour}; what is not in it is drawn faint.
    """
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(7.4, 1.2 * len(panels) + 0.8), sharex=True, squeeze=False
    )
    for axis, (title, events) in zip(axes[:, 0], panels.items(), strict=True):
        rows = sorted({lane for lane, *_ in events}, reverse=True)
        for lane, name, begin, end in events:
            colour = OTHERS[kinds[name]] if name in kinds else FAINT
            axis.barh(rows.index(lane), end - begin, left=begin, height=0.6, color=colour)
        axis.set_title(title)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    axes[-1, 0].set_xlabel("time, µs")
    handles = [Rectangle((0, 0), 1, 1, color=OTHERS[place]) for place in kinds.values()]
    axes[0, 0].legend(handles, list(kinds), ncols=len(kinds), loc="lower right",
                      bbox_to_anchor=(1, 1), fontsize=8.5)  # fmt: skip
    return _labelled(figure, label)


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
    axis.set(xlabel="predicted gain", ylabel="recorded gain")
    axis.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1.02, 1))
    return _labelled(figure, label)


def by_batch(panels, label):
    """Gain over batch: {title: {way: [(batch, (lower, median, upper), predicted), …]}}.

    Recorded medians are dots with their quartiles, predictions a line.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(7.4, 3.1), sharey=True, squeeze=False
    )
    colours = (OTHERS[0], OTHERS[3])
    for axis, (title, ways) in zip(axes[0], panels.items(), strict=True):
        axis.axhline(1, **DASHED)
        for colour, (way, rows) in zip(colours, ways.items(), strict=False):
            for batch, (low, middle, high), _ in rows:
                axis.plot([batch, batch], [low, high], color=colour, alpha=0.4, linewidth=3)
                axis.plot(batch, middle, "o", color=colour, markersize=5)
            axis.plot([b for b, *_ in rows], [p for *_, p in rows], color=colour,
                      linewidth=1, label=way)  # fmt: skip
        axis.set(xscale="log", xlabel="batch")
        axis.set_xticks([b for b, *_ in rows], [f"{b}" for b, *_ in rows])
        axis.minorticks_off()
        axis.set_title(title)
    axes[0, 0].set_ylabel("gain over separate")
    axes[0, 0].legend(fontsize=8.5)
    return _labelled(figure, label)
