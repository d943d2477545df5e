"""Pictures in steps; `steps.js` shows one step at a time."""

import dataclasses

from ..figures import BRANCHES, INPUT
from .steps import element
from .svg import drawing, text


@dataclasses.dataclass(frozen=True)
class Player:
    """Steps of a picture: `label` says what it is, each step is (svg, caption)."""

    label: str
    steps: tuple

    def _repr_html_(self):
        return element("fs-player", self.label, *zip(*self.steps, strict=True))

    def __repr__(self):
        lines = [f"{n}. {caption}" for n, (_, caption) in enumerate(self.steps, start=1)]
        return "\n".join([self.label, *lines])


def _cell(x, y, value, colour, size=30, strong=False):
    """A square with a number in it; `strong` cells are those of this step."""
    opacity, width = (0.55, 2.5) if strong else (0.22, 1)
    return (
        f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="{colour}" '
        f'fill-opacity="{opacity}" stroke="{colour}" stroke-width="{width}"/>'
        + text(f"{x + size / 2:g}", f"{y + size / 2 + 5:g}", value)
    )


def _grid(x, y, rows, colour, strong=False):
    """A matrix of cells with its top left corner at (x, y)."""
    return [
        _cell(x + 30 * j, y + 30 * i, value, colour, strong=strong)
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
    ]


def stacking(weights, x):
    """W_i stacked, multiplied by X a row at a time, and the product split.

    weights: matrices [K_i, C] and x [C, P], as nested lists of small integers.
    """
    product = [
        [sum(w * x[c][p] for c, w in enumerate(row)) for p in range(len(x[0]))]
        for weight in weights
        for row in weight
    ]
    frames: list[
        tuple
    ] = [  # caption, rows of Y known, W apart by, Y cut by, row being multiplied
        (
            "Three separate matrices, one for each branch, all for the same X.",
            0,
            26,
            26,
            None,
        ),
        ("Stacked: the rows of all branches, in order, as one W.", 0, 0, 0, None),
    ]
    for i in range(len(product)):
        caption = f"Row {i + 1} of W times X gives row {i + 1} of Y, and no other."
        frames.append((caption, i + 1, 0, 0, i))
    sizes = ", ".join(str(len(weight)) for weight in weights)
    caption = f"Split: cut the rows of Y by the branches' sizes, {sizes}."
    frames.append((caption, len(product), 0, 26, None))
    steps = [
        (_product(weights, x, product, number, *frame), caption)
        for number, (caption, *frame) in enumerate(frames, start=1)
    ]
    return Player("Stacking three weight matrices, step by step", tuple(steps))


def _product(weights, x, product, number, done, apart, cut, row_now):
    """One frame of `stacking`: W · X = Y."""
    c_in, pixels = len(x), len(x[0])
    left_x, left_y, top = 45 + 30 * c_in, 90 + 30 * (c_in + pixels), 34
    parts = [
        text(15 * c_in, 20, "W"),
        text(left_x + 15 * pixels, 20, "X"),
        text(left_y + 15 * pixels, 20, "Y"),
        *_grid(left_x, top, x, INPUT),
    ]
    rows = [(block, row) for block, weight in enumerate(weights) for row in weight]
    for i, (block, row) in enumerate(rows):
        values = product[i] if i < done else [""] * pixels
        y = top + 30 * i
        parts += _grid(0, y + apart * block, [row], BRANCHES[block], i == row_now)
        parts += _grid(left_y, y + cut * block, [values], BRANCHES[block], i == row_now)
    row = 0  # the first of a block
    for block, weight in enumerate(weights if cut else ()):
        middle = top + 30 * row + cut * block + 15 * len(weight) + 5
        parts.append(text(left_y + 30 * pixels + 38, middle, f"branch {block + 1}"))
        row += len(weight)
    width = left_y + 30 * pixels + 74
    height = top + 30 * len(rows) + 26 * (len(weights) - 1) + 10
    label = f"W is {weights}, X is {x}, Y is {product[:done]}"
    return drawing(width, height, parts, label, number)


def splitting(sizes, pixels, batch):
    """Where one branch's numbers lie in the memory of Y, image by image.

    sizes: channels of each branch; pixels an image; batch the number of images.
    One step for each branch in NCHW, then the same in NHWC.
    """
    total = sum(sizes)
    owner = [i for i, size in enumerate(sizes) for _ in range(size)]
    layouts = {
        "NCHW": [own for _ in range(batch) for own in owner for _ in range(pixels)],
        "NHWC": owner * pixels * batch,
    }
    size, columns = 26, total * pixels
    steps: list = []
    for layout, cells in layouts.items():
        for branch in range(len(sizes)):
            runs = sum(
                cell == branch and (i == 0 or cells[i - 1] != branch)
                for i, cell in enumerate(cells)
            )
            pieces = "1 piece" if runs == 1 else f"{runs} pieces"
            caption = (
                f"{layout}, batch {batch}: branch {branch + 1} lies in {pieces}, "
                f"{'contiguous' if runs == 1 else 'not contiguous'}."
            )
            parts = []
            for i, cell in enumerate(cells):
                line, column = divmod(i, columns)
                x, y = 80 + column * size, 10 + line * (size + 8)
                if column == 0:
                    parts.append(text(34, y + 18, f"image {line + 1}"))
                parts.append(_cell(x, y, cell + 1, BRANCHES[cell], size, cell == branch))
            height = 20 + batch * (size + 8)
            label = f"In memory, by branch: {', '.join(str(cell + 1) for cell in cells)}"
            picture = drawing(90 + columns * size, height, parts, label, len(steps) + 1)
            steps.append((picture, caption))
    return Player("The memory of a split, layout by layout", tuple(steps))
