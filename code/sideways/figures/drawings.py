"""Drawings of networks and of programs: what is made of what, and what runs when."""

from matplotlib.patches import Rectangle

from .style import BRANCHES, INK, INPUT, OTHERS, arrow, box, canvas, node


def inception(fused=False):
    """The Inception module as a graph; fused=True stacks its three siblings."""
    figure, axes = canvas(5.2, 2.45, (-0.45, 12.4), (-0.7, 5.2))
    one, three, five, pool = BRANCHES
    rows = {"1×1": (0.3, one), "3×3": (1.6, three), "5×5": (2.9, five), "pool": (4.4, pool)}
    node(axes, 0.45, 2.2, 1.7, "input x", INPUT)
    node(axes, 11.4, 2.2, 1.7, "concat", INPUT)
    labels = ("1×1", "1×1 reduce", "1×1 reduce")
    for (name, (y, colour)), label in zip(rows.items(), (*labels, "max pool"), strict=True):
        if fused and name != "pool":
            continue
        node(axes, 3.7, y, 2.6, label, colour)
        arrow(axes, (1.3, 2.2), (2.4, y))
    if fused:
        for name, label in zip(("1×1", "3×3", "5×5"), labels, strict=True):
            y, colour = rows[name]
            box(axes, 2.4, y - 0.65, 2.6, 1.3, colour, label)
        arrow(axes, (1.3, 2.2), (2.4, 1.6))
        axes.text(3.7, -0.55, "one stacked 1×1", ha="center", va="bottom", fontsize=9)
    else:
        axes.plot([2.15, 2.15, 5.25, 5.25, 2.15], [-0.3, 3.45, 3.45, -0.3, -0.3],
                  color=INK, linestyle=(0, (4, 3)), linewidth=1)  # fmt: skip
        axes.text(5.45, -0.3, "siblings: same window, same input", fontsize=9, va="top")
    for name, label in (("3×3", "3×3"), ("5×5", "5×5"), ("pool", "1×1")):
        y, colour = rows[name]
        node(axes, 7.6, y, 1.8, label, colour)
        arrow(axes, (5.0, y), (6.7, y), colour)
        arrow(axes, (8.5, y), (10.55, 2.2), colour)
    axes.plot([5.0, 8.5], [0.3, 0.3], color=one, linewidth=1.1)
    arrow(axes, (8.5, 0.3), (10.55, 2.2), one)
    return figure


def graph(nodes, together=()):
    """A graph, inputs on top: {name: (label, lane, colour, names of its inputs)}.

    A node stands below all its inputs, in its lane. together: names to draw a frame around.
    """
    row: dict[str, int] = {}
    place: dict[str, tuple[float, float]] = {}
    for name, (_, lane, _, inputs) in nodes.items():
        row[name] = 1 + max((row[source] for source in inputs), default=-1)
        place[name] = (lane * 2.3, row[name] * 1.4)
    left, right = min(x for x, _ in place.values()), max(x for x, _ in place.values())
    bottom = max(y for _, y in place.values()) + 0.45
    wide = right - left + 2.6
    figure, axes = canvas(
        0.53 * wide, 0.53 * (bottom + 0.45), (left - 1.3, right + 1.3), (-0.45, bottom)
    )
    for name, (label, _, colour, inputs) in nodes.items():
        x, y = place[name]
        node(axes, x, y, 2.0, label, colour, fontsize=9.5)
        for source in inputs:
            x_0, y_0 = place[source]
            ink = nodes[source][2] if nodes[source][2] != INPUT else colour
            bend = y - 0.85  # past other rows down its own lane
            axes.plot([x_0, x_0], [y_0 + 0.32, bend], color=ink, linewidth=1.1, zorder=0)
            arrow(axes, (x_0, bend), (x, y - 0.32), ink)
    if together:
        xs, ys = zip(*(place[name] for name in together), strict=True)
        corner, size = (min(xs) - 1.15, min(ys) - 0.5), (max(xs) - min(xs) + 2.3, 1)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=INK, linewidth=1,
                                 linestyle=(0, (4, 3))))  # fmt: skip
    return figure


def fusion_kinds():
    """Three branches of three operators: what each kind of fusion makes one launch."""
    figure, axes = canvas(5.2, 4.3, (-0.1, 12.1), (-0.9, 9.1))
    operators, width, height = ("conv", "norm", "ReLU"), 1.6, 0.9
    for place, title in enumerate(("nothing fused", "vertical", "horizontal", "both")):
        left, top = 6.6 * (place % 2), 5 * (place // 2)
        wide, tall = title in ("horizontal", "both"), title in ("vertical", "both")
        step_x, step_y = width + 0.2 * (not wide), height + 0.15 * (not tall)
        middle = left + (2 * step_x + width) / 2
        axes.text(middle, top - 0.3, title, ha="center", fontsize=9.5, weight="bold")
        for branch in range(3):
            for row, name in enumerate(operators):
                x, y = left + branch * step_x, top + row * step_y
                box(axes, x, y, width, height, BRANCHES[branch], name, linewidth=0)
        across, down = 1 if wide else 3, 1 if tall else 3
        size = 3 * width / across, 3 * height / down
        for i in range(across):
            for j in range(down):
                corner = left + i * step_x, top + j * step_y
                axes.add_patch(
                    Rectangle(corner, *size, fill=False, edgecolor=INK, linewidth=1.3)
                )
        launches = across * down
        count = f"{launches} launch{'es' if launches > 1 else ''}"
        axes.text(middle, top + 3.7, count, ha="center", fontsize=9)
    return figure


def launches(grids, stores):
    """Which program writes where: grids of programs, and the memory that they write.

    grids: {title: [(name, branch, channels, (place, first channel), source), …]}, the
    problems of each launch; source: the place that it reads, "" for the module's input.
    stores: {title: {place: channels}}, where the launch writes. Channels are to scale,
    and a tile has 64. What an earlier launch has written is drawn faint.
    """
    figure, axes = canvas(6.4, 5, (-5, 750), (-45, 535))
    written: list[tuple] = []
    places: dict[str, float] = {}
    for number, (title, problems) in enumerate(grids.items()):
        top, before, places = 300 * number, places, {}
        axes.text(0, top - 30, title, fontsize=10.5, weight="bold", va="center")
        x = 0
        for name, channels in stores[title].items():
            places[name] = x
            box(axes, x, top + 185, channels, 22, INPUT, strength=0.02)
            axes.text(x, top + 221, f"{name}: {channels}", fontsize=10, va="center")
            x += max(channels, 45) + 45
        for branch, channels, (place, first) in written:
            if place in places:
                box(axes, places[place] + first, top + 185, channels, 22,
                    BRANCHES[branch], strength=0.15, linewidth=0)  # fmt: skip
        x = column = 0
        for name, branch, channels, (place, first), source in problems:
            across, colour = -(-channels // 64), BRANCHES[branch]
            _programs(axes, (x, top + 28), column, channels, colour)
            middle, at = x + 32 * across, places[place] + first
            axes.text(middle, top + 19, name, ha="center", fontsize=10)
            box(axes, at, top + 185, channels, 22, colour, strength=0.5, linewidth=0)
            arrow(axes, (middle, top + 125), (at + channels / 2, top + 183), colour)
            if source:
                start = before[source] + 8, top - 300 + 236
                arrow(axes, start, (middle, top - 3), colour)
            written.append((branch, channels, (place, first)))
            x, column = x + 64 * across + 48, column + across
    return figure


def _programs(axes, corner, column, channels, colour):
    """Three rows of tiles of 64 channels, numbered from `column`; what is used is dark."""
    for start in range(0, channels, 64):
        x, used = corner[0] + start, min(64, channels - start)
        for row in range(3):
            y = corner[1] + 26 * row
            box(axes, x, y, used, 26, colour, strength=0.4, linewidth=0)
            axes.add_patch(Rectangle((x, y), 64, 26, fill=False, edgecolor=colour,
                                     linewidth=0.6))  # fmt: skip
            text, at = f"{row}, {column + start // 64}", 32 if used > 24 else 40
            axes.text(x + at, y + 13, text, ha="center", va="center", fontsize=9.8)
    middle = corner[0] + 32 * -(-channels // 64)
    axes.text(middle, corner[1] + 84, "…", ha="center", va="center", fontsize=9)


def waves(programs, multiprocessors, rooms):
    """When each program of a launch runs, on which multiprocessor: a panel for each room.

    All programs are equally long. So many as there is room for run side by side on one
    multiprocessor, and are drawn as taking that many times as long.
    """
    long, apart = 2.2, 1.3  # a program, and from panel to panel
    ends = -(-programs // multiprocessors)  # of the busiest multiprocessor
    wide = long * ends + apart
    figure, axes = canvas(5.2, 2.6, (-1.5, len(rooms) * wide - apart + 0.4),
                          (-1.2, multiprocessors + 1.1))  # fmt: skip
    text = {"ha": "center", "va": "center", "fontsize": 10}
    for line in range(multiprocessors):
        label = f"multi-\nprocessor {line + 1}"
        axes.text(-0.15, line + 0.5, label, **text | {"ha": "right"})
    for panel, room in enumerate(rooms):
        left, several = panel * wide, -(-programs // (room * multiprocessors))
        title = f"room for {room}: {several} wave{'s' * (several > 1)}"
        axes.text(left, -0.5, title, **text | {"ha": "left", "weight": "bold"})
        for line in range(multiprocessors):
            mine = range(line + 1, programs + 1, multiprocessors)
            for first in range(0, len(mine), room):
                side = mine[first : first + room]
                for place, number in enumerate(side):
                    x, high = left + first * long, 0.84 / len(side)
                    y = line + 0.08 + place * high
                    box(axes, x, y, len(side) * long, high, OTHERS[1], str(number),
                        strength=0.45, fontsize=10)  # fmt: skip
            if len(mine) < ends:
                x, width = left + len(mine) * long, (ends - len(mine)) * long
                box(axes, x, line + 0.08, width, 0.84, INPUT, "idle", strength=0,
                    fontsize=10)  # fmt: skip
        for tick in range(ends + 1):
            axes.text(left + tick * long, multiprocessors + 0.3, str(tick), **text)
        axes.text(left + ends * long / 2, multiprocessors + 0.8, "time, in lengths", **text)
    return figure


def sharded():
    """A gated MLP cut across two processes: rows, then columns, and one sum."""
    figure, axes = canvas(6.3, 3.55, (-0.2, 18.2), (-2.2, 8))
    text = {"ha": "center", "va": "center", "fontsize": 10}
    titles = (
        ("all\nof x", 0.6), ("its rows of one\nstacked weight", 4.05), ("a\npart", 8.7),
        ("its\ncolumns", 12), ("a\nsummand", 14.9), ("all\nof Y", 17.5),
    )  # fmt: skip
    for title, x in titles:
        axes.text(x, -1.2, title, **text)
    for process, (top, colour) in enumerate(((0, OTHERS[0]), (4.7, OTHERS[3]))):
        middle = top + 1.2
        box(axes, 0, top, 1.2, 2.4, INPUT, "x", fontsize=10)
        for row, name in enumerate(("gate", "up")):
            y = top + 1.2 * row
            box(axes, 2.2, y, 3.7, 1.2, colour, f"half of {name}", fontsize=10)
            arrow(axes, (1.2, middle), (2.2, y + 0.6), INPUT)
            arrow(axes, (5.9, y + 0.6), (7.3, middle), colour)
        part = "F/2 to F" if process else "0 to F/2"
        box(axes, 7.3, top + 0.2, 2.8, 2, colour, f"hidden\n{part}", fontsize=10)
        box(axes, 10.9, top + 0.2, 2.2, 2, colour, "half of\ndown", fontsize=10)
        box(axes, 13.9, top, 2, 2.4, colour, f"$Y^{{({process})}}$", fontsize=10)
        arrow(axes, (10.1, middle), (10.9, middle), colour)
        arrow(axes, (13.1, middle), (13.9, middle), colour)
        near = (14.9, 3.05 if process == 0 else 4.05)  # the plus
        arrow(axes, (14.9, top + 2.4 if process == 0 else top), near, colour)
        box(axes, 16.9, top, 1.2, 2.4, INPUT, "Y", fontsize=10)
        arrow(axes, (15.3, 3.55), (16.9, middle), INPUT)
        axes.text(8.7, top + 2.9, f"process {process}", **text, color=colour)
    axes.text(14.9, 3.55, "+", fontsize=17, ha="center", va="center")
    axes.text(12.3, 3.55, "one all-reduce", **text)
    return figure
