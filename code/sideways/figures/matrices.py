"""Drawings of matrices and of memory: what is multiplied, and where numbers lie."""

import itertools

from .style import BRANCHES, DASHED, INPUT, OTHERS, arrow, box, canvas

THIN = 40  # a block of so few rows has no room for a label inside


def neighbours(sizes):
    """Weights side by side in one memory, and which layer each part belongs to.

    sizes: {layer: output channels}; a part is as wide as its layer has channels.
    """
    total = sum(sizes.values())
    figure, axes = canvas(4.9, 1.55, (-1, total + 1), (-total * 0.13, total * 0.18))
    axes.text(
        total / 2, -total * 0.07, "one product reads it all", ha="center", fontsize=10
    )
    begin = 0
    for number, (layer, size) in enumerate(sizes.items()):
        colour = BRANCHES[number]
        box(axes, begin, -total * 0.03, size, total * 0.08, colour, str(size), fontsize=9.5)
        middle, side = begin + size / 2, number + 1 == len(sizes)
        y = total * (0.13 if number % 2 else 0.085)
        axes.text(begin + size if side else middle, y, f"{layer}.weight", va="center",
                  ha="right" if side else "center", fontsize=9.5, color=colour)  # fmt: skip
        begin += size
    return figure


def unroll():
    """An image of two channels and six pixels, as a tensor and as the matrix X."""
    figure, axes = canvas(5.2, 1.5, (-0.4, 14.4), (-0.6, 3.7))
    shades = (INPUT, OTHERS[3])
    for channel, colour in enumerate(shades):
        for pixel in range(6):
            row, column = divmod(pixel, 3)
            x, y = column + 0.6 * (1 - channel), row + 0.7 * channel
            box(axes, x, y, 1, 1, colour, str(6 * channel + pixel), zorder=1 + channel)
    axes.text(1.9, 3.2, "C = 2, H = 2, W = 3", ha="center", fontsize=9.5)
    arrow(axes, (4.3, 1.4), (6.3, 1.4))
    axes.text(5.3, 1.1, "reshape", ha="center", fontsize=9.5)
    for channel, colour in enumerate(shades):
        for pixel in range(6):
            box(axes, 7.2 + pixel, 0.4 + channel, 1, 1, colour, str(6 * channel + pixel))
    axes.text(10.2, 3.2, "X: C rows, P = 6 columns, one per pixel", ha="center",
              fontsize=9.5)  # fmt: skip
    return figure


def blocks(sizes, c_in, pixels, names, letter="P", cuts=None):
    """W · X = Y to scale: one unit of length a channel or a pixel.

    sizes: output channels of each branch; names: what becomes of each. letter: of the
    number of pixels. cuts: {row of Y to mark by dashes: what to call it}, to compare.
    """
    cuts, total, gap = cuts or {}, sum(sizes), 80
    x_left, y_left = c_in + gap, c_in + pixels + 2 * gap
    across, down = (-260, y_left + pixels + 265), (-10, max(c_in, total) + 50)
    width = 5.2
    height = width * (down[1] - down[0]) / (across[1] - across[0])
    figure, axes = canvas(width, height, across, down)
    top = 0
    for index, (size, name) in enumerate(zip(sizes, names, strict=True)):
        colour, middle, n = BRANCHES[index], top + size / 2, index + 1
        inside = weight, product = f"$\\mathbf{{W}}_{n}$", f"$Y_{n}$"
        own = f"$K_{n}$ = {size}"
        if size <= THIN:
            inside, own, name = ("", ""), f"{weight}: {own}", f"{product}: {name}"
        box(axes, 0, top, c_in, size, colour, inside[0], fontsize=10)
        box(axes, y_left, top, pixels, size, colour)
        axes.text(-15, middle, own, ha="right", va="center", fontsize=8.5)
        if any(abs(row - middle) < 40 for row in cuts):
            middle = top + size / 4
        axes.text(
            y_left + pixels / 2, middle, inside[1], ha="center", va="center", fontsize=10
        )
        axes.text(y_left + pixels + 15, middle, name, va="center", fontsize=8.5)
        top += size
    box(axes, x_left, 0, pixels, c_in, INPUT, "$X$", fontsize=10)
    for x, sign in ((c_in + gap / 2, "·"), (x_left + pixels + gap / 2, "=")):
        axes.text(x, total / 2, sign, ha="center", va="center", fontsize=16)
    space = " " if pixels > 2 * gap else "\n"
    for x, bottom, label in (
        (c_in / 2, total, f"$\\mathbf{{W}}$: K = {total}, C = {c_in}"),
        (x_left + pixels / 2, c_in, f"$X$: C = {c_in},{space}{letter} = {pixels}"),
    ):
        axes.text(x, bottom + 12, label, ha="center", va="top", fontsize=8.5)
    beside = sizes[-1] <= THIN  # then the last branch's label is beside that of Y
    x, ha = (y_left + pixels, "right") if beside else (y_left + pixels / 2, "center")
    axes.text(x, total + 12, f"$Y$: K = {total}", ha=ha, va="top", fontsize=8.5)
    for row, name in cuts.items():
        axes.plot([y_left - 15, y_left + pixels + 35], [row, row], **DASHED)
        axes.text(y_left + pixels + 45, row, name, va="center", fontsize=8.5)
    return figure


def memory(rows, columns):
    """Memory as it lies: {title: [branch of cell 0, branch of cell 1, …]}.

    One strip a layout, wrapped after `columns` cells; a cell is one number.
    """
    lines = {title: -(-len(cells) // columns) for title, cells in rows.items()}
    height = sum(lines.values()) * 1.0 + len(rows) * 1.3
    figure, axes = canvas(5, 5 * height / columns, (-0.2, columns + 0.2), (-0.2, height))
    y = 0
    for title, cells in rows.items():
        axes.text(0, y + 0.65, title, fontsize=8.5, va="center")
        for cell, branch in enumerate(cells):
            line, column = divmod(cell, columns)
            colour = BRANCHES[branch]
            box(axes, column, y + 1.1 + line, 1, 0.85, colour, str(branch + 1),
                 strength=0.45, fontsize=7.5)  # fmt: skip
        y += lines[title] + 1.3
    return figure


def gemm(rows, columns, depth, program):
    """X · W = Y in tiles, and what one program reads and writes.

    rows, columns, depth: tiles of Y downwards and across, and steps along the channels.
    program: (row, column) of the tile of Y that is drawn strong.
    """
    figure, axes = canvas(5.2, 3, (-2.4, depth + columns + 3), (-depth - 0.6, rows + 0.1))
    left, above = depth + 0.5, -depth - 0.5

    def tile(x, y, colour, mine, label):
        strength = 0.6 if mine else 0.12
        box(axes, x, y, 1, 1, colour, label, strength=strength, fontsize=9.7)

    for step in range(depth):
        for row in range(rows):
            mine = row == program[0]
            tile(step, row, INPUT, mine, f"step\n{step}" if mine else "")
        for column in range(columns):
            mine = column == program[1]
            label = f"step\n{step}" if mine else ""
            tile(left + column, above + step, BRANCHES[0], mine, label)
    for row in range(rows):
        for column in range(columns):
            here = row, column
            tile(left + column, row, BRANCHES[0], here == program, f"{row}, {column}")
    text = {"va": "center", "fontsize": 10}
    axes.text(-0.2, rows / 2, "x\npixels ×\nchannels in", ha="right", **text)
    right, middle = left + columns + 0.2, above + depth / 2
    axes.text(right, middle, "weight\nchannels in ×\nchannels out", **text)
    axes.text(right, rows / 2, "y\npixels ×\nchannels out", **text)
    return figure


def taps(height, wide, shown):
    """Which pixel each pixel reads under some taps (dy, dx) of a window."""
    apart = wide + 1.4
    figure, axes = canvas(5.2, 1.7, (-0.2, len(shown) * apart - 1.2), (-0.9, height + 0.9))
    text = {"ha": "center", "va": "center", "fontsize": 10}
    for place, (dy, dx) in enumerate(shown):
        left, further = place * apart, dy * wide + dx
        axes.text(left + wide / 2, -0.45, f"tap ({dy}, {dx})".replace("-", "−"), **text)
        for line in range(height):
            for column in range(wide):
                inside = 0 <= line + dy < height and 0 <= column + dx < wide
                colour, strength = (BRANCHES[1], 0.3) if inside else (INPUT, 0.05)
                label = str(line * wide + column + further) if inside else ""
                box(
                    axes,
                    left + column,
                    line,
                    1,
                    1,
                    colour,
                    label,
                    strength=strength,
                    fontsize=10,
                )
        shift = f"row {'−' if further < 0 else '+'} {abs(further)}"
        axes.text(left + wide / 2, height + 0.45, shift, **text)
    return figure


def windows(sides):
    """Square windows of these sides, each in the largest. White is zero."""
    whole = max(sides)
    figure, axes = canvas(
        6.2, 2.2, (-0.2, len(sides) * (whole + 2) - 1.8), (-1.4, whole + 1.4)
    )
    text = {"ha": "center", "va": "center", "fontsize": 10}
    for place, own in enumerate(sides):
        x, margin = place * (whole + 2), (whole - own) // 2
        axes.text(x + whole / 2, -0.8, f"{own}×{own}", **text)
        for row, column in itertools.product(range(whole), repeat=2):
            inside = all(margin <= at < margin + own for at in (row, column))
            colour, strength = (BRANCHES[place], 0.6) if inside else (INPUT, 0.0)
            box(axes, x + column, row, 1, 1, colour, strength=strength, linewidth=0.5)
        axes.text(
            x + whole / 2, whole + 0.8, f"{own * own} of {whole * whole} taps", **text
        )
    return figure
