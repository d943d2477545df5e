"""What a page shows that is no plot: source, photographs, pictures in steps.

A `Player` needs no kernel and no network. In a notebook, on paper, or without
JavaScript its steps stand one below the other; on the book's pages
`_static/player.js` shows one at a time, with a slider and buttons. The drawings
are SVG, so they are the same text everywhere and nbval can compare them.
"""

import dataclasses
import inspect
import io
import textwrap
from html import escape

import matplotlib.pyplot as plt
from IPython.display import Image, Markdown

from .figures import BRANCHES, INPUT


def source(function):
    """The code of a function of the library, less its docstring, as a code block."""
    code = textwrap.dedent(inspect.getsource(function))
    if function.__doc__:
        before, _, after = code.partition('"""')
        code = before.rstrip() + "\n" + after.partition('"""')[2].lstrip("\n")
    return Markdown(f"```python\n{code}```")


def photographs(figure):
    """A figure of photographs as a JPEG, a tenth of the PNG's size; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 88})
    plt.close(figure)
    return Image(buffer.getvalue(), format="jpeg")


@dataclasses.dataclass(frozen=True)
class Player:
    """Steps of a picture: `label` says what it is, each step is (svg, caption)."""

    label: str
    steps: tuple

    def _repr_html_(self):
        figures = "\n".join(
            f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
            for svg, caption in self.steps
        )
        return f'<fs-player aria-label="{escape(self.label)}">\n{figures}\n</fs-player>'

    def __repr__(self):
        lines = [f"{n}. {caption}" for n, (_, caption) in enumerate(self.steps, start=1)]
        return "\n".join([self.label, *lines])


def _svg(width, height, parts, caption):
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(caption)}" '
        'font-family="sans-serif" font-size="13" text-anchor="middle">'
        + "".join(parts)
        + "</svg>"
    )


def _cell(x, y, text, colour, size=30, strong=False):
    """A square with a number in it; `strong` cells are those of this step."""
    opacity, width = (0.55, 2.5) if strong else (0.22, 1)
    return (
        f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="{colour}" '
        f'fill-opacity="{opacity}" stroke="{colour}" stroke-width="{width}"/>'
        + _text(f"{x + size / 2:g}", f"{y + size / 2 + 5:g}", text)
    )


def _text(x, y, text):
    return f'<text x="{x}" y="{y}" fill="currentColor">{text}</text>'


def _grid(x, y, rows, colours, marked, size=30):
    """A matrix of cells: `colours` one a row, `marked` the set of strong (row, column)."""
    return [
        _cell(x + j * size, y + i * size, value, colours[i], size, (i, j) in marked)
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
    ]


def stacking(weights, x):
    """W_i stacked, multiplied by X a row at a time, and the product split.

    weights: matrices [K_i, C] and x [C, P], as nested lists of small integers.
    """
    pixels, c_in = len(x[0]), len(x)
    rows = [row for weight in weights for row in weight]
    colours = [BRANCHES[i] for i, weight in enumerate(weights) for _ in weight]
    product = [
        [sum(w * x[c][p] for c, w in enumerate(row)) for p in range(pixels)] for row in rows
    ]
    left_x, left_y, top = 60 + 30 * c_in, 120 + 30 * (c_in + pixels), 34
    width = left_y + 30 * pixels + 150
    height = top + 30 * len(rows) + 30 * (len(weights) - 1) + 20

    def frame(caption, done, gap, split=0, multiplied=None):
        """One step: `done` rows of Y known, blocks `gap` apart, Y `split` apart."""
        shown = [
            [f"{v}" if i < done else "" for v in values] for i, values in enumerate(product)
        ]
        parts = [_text(left_x + 15 * pixels, 20, "X")]
        parts += _grid(left_x, top, x, [INPUT] * c_in, set())
        parts += [_text(15 * c_in, 20, "W"), _text(left_y + 15 * pixels, 20, "Y")]
        for i, row in enumerate(rows):
            block = sum(
                i >= sum(len(w) for w in weights[:k]) for k in range(1, len(weights))
            )
            y_w, y_y = top + 30 * i + gap * block, top + 30 * i + split * block
            marked = (
                {(0, j) for j in range(max(c_in, pixels))} if i == multiplied else set()
            )
            parts += _grid(0, y_w, [row], [colours[i]], marked)
            parts += _grid(left_y, y_y, [shown[i]], [colours[i]], marked)
            if split:
                parts.append(
                    _text(left_y + 30 * pixels + 60, y_y + 20, f"branch {block + 1}")
                )
        return _svg(width, height, parts, caption), caption

    sizes = ", ".join(str(len(w)) for w in weights)
    steps = [
        frame("Three separate matrices, one for each branch, all for the same X.", 0, 26)
    ]
    steps.append(frame("Stacked: the rows of all branches, in order, as one W.", 0, 0))
    for i in range(len(rows)):
        caption = f"Row {i + 1} of W times X gives row {i + 1} of Y, and no other."
        steps.append(frame(caption, i + 1, 0, multiplied=i))
    caption = f"Split: cut the rows of Y by the branches' sizes, {sizes}."
    steps.append(frame(caption, len(rows), 0, split=26))
    return Player("Stacking three weight matrices, step by step", tuple(steps))


def splitting(sizes, pixels, batch):
    """Where one branch's numbers lie in the memory of Y, image by image.

    sizes: channels of each branch; pixels an image; batch the number of images.
    One step for each branch in NCHW, then the same in NHWC.
    """
    total = sum(sizes)
    owner = [i for i, size in enumerate(sizes) for _ in range(size)]
    layouts = {
        "NCHW": [
            owner[c] for _ in range(batch) for c in range(total) for _ in range(pixels)
        ],
        "NHWC": [
            owner[c] for _ in range(batch) for _ in range(pixels) for c in range(total)
        ],
    }
    size, columns = 26, total * pixels
    steps = []
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
                    parts.append(_text(34, y + 18, f"image {line + 1}"))
                parts.append(_cell(x, y, cell + 1, BRANCHES[cell], size, cell == branch))
            height = 20 + batch * (size + 8)
            steps.append((_svg(90 + columns * size, height, parts, caption), caption))
    return Player("The memory of a split, layout by layout", tuple(steps))
