"""What a page shows that is no plot: source, photographs, pictures in steps.

A `Player` needs no kernel and no network. In a notebook, on paper, or without
JavaScript its steps stand one below the other; on the book's pages
`_static/player.js` shows one at a time, with a slider and buttons. The drawings
are SVG, so they are the same text everywhere and nbval can compare them.
"""

import dataclasses
import inspect
import io
import re
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


def reference(module):
    """What a module offers, from its docstrings: public functions and classes, in order."""
    members = [
        thing
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", "") == module.__name__
    ]
    entries = [_documented(inspect.getdoc(module))]
    for thing in sorted(members, key=lambda thing: inspect.getsourcelines(thing)[1]):
        entries += _entry(thing.__name__, thing)
        for name, method in vars(thing).items() if inspect.isclass(thing) else ():
            shown = inspect.isroutine(method) or isinstance(method, property)
            if shown and not name.startswith("_") and method.__doc__:
                entries += _entry(f"{thing.__name__}.{name}", getattr(thing, name))
    return Markdown("\n\n".join(entries))


def _entry(name, thing):
    """A signature and a docstring, as Markdown."""
    bare = isinstance(thing, property) or (
        inspect.isclass(thing) and issubclass(thing, Exception)
    )
    signature = "" if bare else str(inspect.signature(thing))
    plain = re.sub(r" at 0x[0-9a-f]+|<class '|'>", "", signature)
    lines = textwrap.wrap(name + plain, 76, subsequent_indent="    ")
    return ["```python\n" + "\n".join(lines) + "\n```", _documented(inspect.getdoc(thing))]


def _documented(text):
    """A docstring as Markdown: examples and diagrams as they are, the rest as text."""
    blocks, text = [], re.sub(r"  # doctest: .*", "", text)
    for paragraph in text.split("\n\n"):
        if paragraph.startswith(">>>"):
            blocks.append(f"```pycon\n{paragraph}\n```")
        elif all(line.startswith("    ") for line in paragraph.splitlines()):
            # Blank lines within a diagram belong to it.
            joins = blocks and blocks[-1].startswith("```text")
            before = blocks.pop().removesuffix("\n```") + "\n\n" if joins else "```text\n"
            blocks.append(f"{before}{paragraph}\n```")
        else:
            text = re.sub(r"([*|<])", r"\\\1", paragraph)
            blocks.append("\n".join(textwrap.wrap(text, 76, break_on_hyphens=False)))
    return "\n\n".join(blocks)


def photographs(figure):
    """A figure of photographs as a JPEG, a tenth of the PNG's size; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 88})
    plt.close(figure)
    return Image(buffer.getvalue(), format="jpeg")


def race(case, base, missing=None, limit_us=None):
    """A recorded case as a table of text: launches, median time, gain over `base`.

    Launches are blank where they could not be counted. missing: {arm: why it did not
    run}, for the last lines. limit_us: adds a column, times as multiples of it.
    """
    limits = f" {'limits':>6}" if limit_us else ""
    lines = [f"{'':38} count        µs{limits}  gain (quartiles)"]
    for name in case.samples:
        low, middle, high = case.gain(name, base)
        count, us = case.launches.get(name, ""), case.median(name)
        gain = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        limits = f" {us / limit_us:6.2f}" if limit_us else ""
        digits = 2 if limit_us else 0  # a limit is a few µs
        lines.append(f"{name:38} {count:>5} {us:9,.{digits}f}{limits}  {gain}")
    lines += [f"{name:38} {reason}" for name, reason in (missing or {}).items()]
    return "\n".join(lines)


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
    frames = [  # caption, rows of Y known, W apart by, Y cut by, row being multiplied
        (
            "Three separate matrices, one for each branch, all for the same X.",
            0,
            26,
            0,
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
    steps = [(_product(weights, x, product, *frame), frame[0]) for frame in frames]
    return Player("Stacking three weight matrices, step by step", tuple(steps))


def _product(weights, x, product, caption, done, apart, cut, row_now):
    """One frame of `stacking`: W · X = Y."""
    c_in, pixels = len(x), len(x[0])
    left_x, left_y, top = 60 + 30 * c_in, 120 + 30 * (c_in + pixels), 34
    parts = [
        _text(15 * c_in, 20, "W"),
        _text(left_x + 15 * pixels, 20, "X"),
        _text(left_y + 15 * pixels, 20, "Y"),
        *_grid(left_x, top, x, INPUT),
    ]
    rows = [(block, row) for block, weight in enumerate(weights) for row in weight]
    for i, (block, row) in enumerate(rows):
        values = product[i] if i < done else [""] * pixels
        y = top + 30 * i
        parts += _grid(0, y + apart * block, [row], BRANCHES[block], i == row_now)
        parts += _grid(left_y, y + cut * block, [values], BRANCHES[block], i == row_now)
        if cut:
            label = f"branch {block + 1}"
            parts.append(_text(left_y + 30 * pixels + 45, y + cut * block + 20, label))
    width = left_y + 30 * pixels + 90
    height = top + 30 * len(rows) + 26 * (len(weights) - 1) + 10
    return _svg(width, height, parts, caption)


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
