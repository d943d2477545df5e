"""Figures in words: what matplotlib was told to draw, a line an artist.

    python tests/support/pictures.py     writes tests/book/pictures/*.txt anew

No pixels, and nothing that follows from the size of a text: fonts differ.
"""

import contextlib
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import category, ticker
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text

from sideways import figures
from sideways.figures.style import STYLE

FOLDER = Path(__file__).resolve().parents[1] / "book" / "pictures"

# What is said of each kind of artist.
FACES = "facecolor edgecolor linewidth linestyle hatch alpha zorder within"
FONT = "fontsize fontweight fontstyle color ha va rotation alpha zorder"
KINDS = {
    "line": (matplotlib.lines.Line2D, "xydata color linewidth linestyle dashes marks "
             "label alpha zorder within"),
    "rounded": (matplotlib.patches.FancyBboxPatch, f"bounds boxstyle fill {FACES}"),
    "rectangle": (matplotlib.patches.Rectangle, f"bounds angle fill {FACES}"),
    "area": (matplotlib.collections.PolyCollection, f"vertices {FACES}"),
    "image": (matplotlib.image.AxesImage, "array colours clim extent alpha zorder"),
    "note": (Annotation, f"text xy xycoords position anncoords arrowprops {FONT}"),
    "text": (Text, f"text position {FONT} within"),
    "legend": (Legend, "loc anchor columns frame_on zorder entries"),
}  # fmt: skip
QUIET = {"angle=0", "fill=True", "fontstyle=normal", "fontweight=normal", "rotation=0"}


class Pen(RendererBase):
    """Draws nothing, and keeps the dashes that it was to draw with."""

    def draw_path(self, gc, *_):
        self.dashes = gc.get_dashes()


def dashes(line):
    """Lengths of dashes and gaps in points, which a line tells its renderer alone."""
    if line.is_dashed():
        line.draw(pen := Pen())
        return pen.dashes


def marks(line):
    """The marker, its size and its colours."""
    if line.get_marker() != "None":
        colours = to_rgba_array([line.get_markerfacecolor(), line.get_markeredgecolor()])
        return [line.get_marker(), line.get_markersize(), *map(to_hex, colours)]


def within(artist):
    """Of what the coordinates are shares; nothing for data."""
    axes, patch = artist.axes, isinstance(artist, Patch)
    found = artist.get_data_transform() if patch else artist.get_transform()
    known = {"figure": artist.get_figure().transFigure}
    if axes:
        known = {None: axes.transData, "axes": axes.transAxes} | known
        known["y axes"] = axes.get_xaxis_transform("grid")
        known["x axes"] = axes.get_yaxis_transform("grid")
    return next((name for name, transform in known.items() if transform == found), "other")


def position(text):
    """Where a text was put; matplotlib itself places a title, above what is there."""
    return "title" if text.axes and text not in text.axes.texts else text.get_position()


def anchor(legend):
    """What a legend is placed by, in shares of its axes."""
    to_axes = legend.axes.transAxes.inverted()
    return np.round(legend.get_bbox_to_anchor().transformed(to_axes).bounds, 6)


def entries(legend):
    """The texts of a legend, their size and colour, and the colour of their signs."""
    pairs = zip(legend.get_texts(), legend.legend_handles, strict=True)
    face = lambda sign: "get_facecolor" if isinstance(sign, Patch) else "get_color"
    return [[text.get_text(), text.get_fontsize(), to_hex(text.get_color()),
             to_hex(getattr(sign, face(sign))())] for text, sign in pairs]  # fmt: skip


def columns(legend):
    """In how many columns the entries stand, below the legend's title."""
    _, below = legend.get_children()[0].get_children()
    return len(below.get_children())


DERIVED = {f.__name__: f for f in (dashes, marks, within, position, anchor, entries)} | {
    "columns": columns,
    "bounds": lambda patch: patch.get_bbox().bounds,
    "boxstyle": lambda patch: [type(patch.get_boxstyle()), vars(patch.get_boxstyle())],
    "vertices": lambda area: [path.vertices for path in area.get_paths()],
    "colours": lambda image: image.get_cmap().name,
    # matplotlib has a public setter for this place, and no getter.
    "loc": lambda legend: {code: name for name, code in Legend.codes.items()}[legend._loc],
}


def said(value):
    """A value as text: numbers with four digits, nothing for None."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {said(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, np.ndarray | list | tuple):
        return "(" + " ".join(map(said, value)) + ")"
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return f"{value + 0:.4g}"  # + 0: no minus before a zero
    text = "" if value is None else getattr(value, "__name__", str(value))
    return repr(text) if " " in text or "\n" in text else text


def facts(artist, names):
    """The named properties, as far as there is something to say."""
    found = []
    for name in names.split():
        getter = getattr(artist, f"get_{name}", None)
        if name in DERIVED:
            value = DERIVED[name](artist)
        else:
            value = getter() if getter else getattr(artist, name)
        if name.endswith("color"):
            value = " ".join(to_hex(c, keep_alpha=c[3] < 1) for c in to_rgba_array(value))
        numbered = name == "label" and value.startswith("_")  # by matplotlib
        fact = f"{name}={said(value)}"
        if said(value) and not numbered and fact not in QUIET:
            found.append(fact)
    return " ".join(found)


def line_of(artist):
    """What is said of one artist."""
    for kind, (class_, names) in KINDS.items():
        if isinstance(artist, class_):
            return f"{kind} {facts(artist, names)}"
    raise TypeError(f"{artist} is none of {', '.join(KINDS)}: say in KINDS what it shows")


def ticks_of(axis, which):
    """Where ticks are if that was set, otherwise how they are found; and their labels."""
    locator = getattr(axis, f"get_{which}_locator")()
    formatter = getattr(axis, f"get_{which}_formatter")()
    found = {"by": type(locator)}
    if isinstance(locator, ticker.FixedLocator | category.StrCategoryLocator):
        found |= {"at": locator(), "labels": formatter.format_ticks(locator())}
    elif isinstance(locator, ticker.MaxNLocator):
        found["whole"] = all(place == int(place) for place in locator.tick_values(0, 1))
    if isinstance(formatter, ticker.StrMethodFormatter):
        found["sample"] = formatter(1234.56)
    style = axis.get_tick_params(which)
    found["written"] = style.get("labelbottom", style.get("labelleft"))
    found |= {n: style[n] for n in ("length", "labelsize", "labelcolor") if n in style}
    return "" if found["by"] is ticker.NullLocator else f"  {which} ticks {said(found)}"


def axis_of(axis, on):
    """Scale, limits, label and ticks of an axis."""
    label = axis.label.get_text() and facts(axis.label, "text fontsize fontweight color")
    limits = said(axis.get_view_interval())
    yield f"{axis.axis_name} {axis.get_scale()} {limits} {label}".rstrip()
    if on:
        yield from filter(None, (ticks_of(axis, which) for which in ("major", "minor")))


def axes_of(axes, every):
    """All of one axes: its place and scales, then its artists as they are drawn."""
    grid, place = axes.get_gridspec(), said(axes.get_subplotspec().get_geometry())
    yield f"place={place} {facts(grid, 'height_ratios width_ratios')}"
    for name in "xy":
        shared = getattr(axes, f"get_shared_{name}_axes")()
        if others := [n for n, other in enumerate(every) if shared.joined(axes, other)]:
            yield f"{name} shared by {said(others)}"
    spines = [name for name, spine in axes.spines.items() if spine.get_visible()]
    yield f"aspect={said(axes.get_aspect())} on={axes.axison} spines={said(spines)}"
    yield from axis_of(axes.xaxis, axes.axison)
    yield from axis_of(axes.yaxis, axes.axison)
    apart = (axes.patch, axes.xaxis, axes.yaxis, *axes.spines.values())
    for child in sorted(axes.get_children(), key=lambda child: child.get_zorder()):
        blank = type(child) is Text and not child.get_text()
        if not blank and child not in apart:
            yield line_of(child)


def describe(figure):
    """A figure in words."""
    untouched = figure.subplotpars.left == matplotlib.rcParams["figure.subplot.left"]
    lines = [f"figure {said(figure.get_size_inches())} {facts(figure, 'facecolor')} "
             f"margins {'untouched' if untouched else 'fitted'}"]  # fmt: skip
    for number, axes in enumerate(figure.axes):
        lines += [f"axes {number}", *(f"  {line}" for line in axes_of(axes, figure.axes))]
    apart = (figure.patch, *figure.axes)
    lines += [line_of(child) for child in figure.get_children() if child not in apart]
    return "\n".join(lines) + "\n"


# The figures. Small numbers, and each branch of the code is reached.


def sheet(lines):
    """What is no figure, written on one."""
    figure = plt.figure()
    for line in lines:
        figure.text(0, 0, line)
    return figure


NODES = {
    "x": ("input", 0.5, figures.INPUT, []),
    "a": ("conv", 0.2, figures.BRANCHES[0], ["x"]),
    "b": ("ReLU", 1, figures.BRANCHES[1], ["x"]),
    "c": ("cat", 0.5, figures.INPUT, ["a", "b"]),
}
LAUNCHES = {
    "launch 1": [("1×1", 0, 64, ("y", 5), ""), ("3×3", 1, 89, ("r", 0), "")],
    "launch 2": [("5×5", 2, 24, ("y", 64), "r"), ("pool", 3, 65, ("y", 88), "")],
}
STORES = {"launch 1": {"y": 153, "s": 30, "r": 89}, "launch 2": {"y": 153}}
IMAGES = {"a": np.array([[-0.5, 1.5]]), "b": np.eye(2) / 4 + 0.5, "c": np.eye(3)[None]}
CURVES = {"a": ((3, 2), {"color": "red", "linewidth": 6}), "b": ((2, 1, 1.5), {})}
PARTS = {"as written": {"conv": 3, "norm": 2.5}, "fused": {"conv": 1, "norm": 0}}
BARS = {"µs": {"a": 4, "b": 1.2345}, "MB": {"a": 7, "b": 3}}
LOW, HIGH = (0.5, 0.6, 0.7), (0.8, 1.1, 1.3)
ERRORS = {"g": {"a": 0, "b": 1e-3}, "h": {"a": 1e-9, "b": 2}}
FITTED = {"a": (3, 12), "b": (5, 6)}, {"a": (2, 1), "b": (4.123, 0.25)}
PAIRS = {"a": [(0.9, 1.1), (1.2, 1.25)], "b": [(1.3, 1)], "c": [(1.4, 1.6)], "d": [(1, 1)]}
OUTCOMES = {
    "siblings": {"batch 1": {"stacked": [HIGH] * 3, "copied": [LOW, (0.6, 0.7, 0.8)]}},
    "module": {"batch 1": {"stacked": [HIGH]}, "batch 8": {"hoisted": [LOW]}},
}
GAINS = {"a": [(1, HIGH), (9, LOW)], "b": [(4, (1, 2, 3))]}

CASES = {
    "use_style": lambda: sheet(f"{name} = {matplotlib.rcParams[name]}" for name in STYLE),
    "tint": lambda: sheet(said(figures.tint(figures.INK, *s)) for s in ((), (0.05,), (1,))),
    "inception": figures.inception,
    "inception-fused": lambda: figures.inception(fused=True),
    "graph": lambda: figures.graph(NODES),
    "graph-together": lambda: figures.graph(NODES, together=["a", "b"]),
    "fusion_kinds": figures.fusion_kinds,
    "unroll": figures.unroll,
    "blocks": lambda: figures.blocks((41, 40, 3), 90, 20, ("to a", "to b", "to c")),
    "memory": lambda: figures.memory({"one": [0, 1, 2], "two": [3, 0, 1, 2, 3]}, columns=3),
    "gemm": lambda: figures.gemm(rows=2, columns=3, depth=2, program=(1, 2)),
    "taps": lambda: figures.taps(2, 3, [(0, 1), (-1, -1), (0, 0)]),
    "launches": lambda: figures.launches(LAUNCHES, STORES),
    "windows": lambda: figures.windows({"a": (1, 4), "b": (3, 8), "c": (1, 2)}, side=3),
    "sharded": figures.sharded,
    "gallery": lambda: figures.gallery(IMAGES),
    "gallery-narrow": lambda: figures.gallery(IMAGES, columns=2, width=3),
    "margins": lambda: figures.margins(np.array([0.1, 3]), np.array([1e-6, 0.3])),
    "curves": lambda: figures.curves(CURVES, "step", "loss"),
    "stacked_bars": lambda: figures.stacked_bars(
        PARTS, {"conv": "red", "norm": "blue"}, "operators"),
    "spread": lambda: figures.spread({"one": {"a": 2, "b": 9}, "two": {"c": 40}}, 20),
    "bars": lambda: figures.bars({"µs": BARS["µs"]}),
    "bars-marks": lambda: figures.bars(BARS, {"MB": ("least", 2)}, "on M"),
    "ranges": lambda: figures.ranges({"a": LOW, "b": HIGH}, "gain"),
    "error_bars": lambda: figures.error_bars(ERRORS, 0.1, "error"),
    "error_bars-named": lambda: figures.error_bars(ERRORS, 0.1, "error", "tolerance"),
    "calls": lambda: figures.calls([900, 20, 30, 25], "on M"),
    "fitted": lambda: figures.fitted((1, 10), *FITTED, "on M"),
    "fitted-hinge": lambda: figures.fitted(
        (1, 2, 10), {"graph": (5, 5, 11)}, {"graph": (4.5, 1, 1)}, "on M"),
    "predicted": lambda: figures.predicted(PAIRS, "on M"),
    "predicted-gains": lambda: figures.predicted({"c": PAIRS["c"]}, "on M"),
    "outcomes": lambda: figures.outcomes(OUTCOMES, "on M"),
    "hinge": lambda: figures.hinge({1: (2, 3, 5), 10: HIGH}, {}, "predicted"),
    "hinge-recorded": lambda: figures.hinge({1: (2, 3, 5)}, {1: 4}, "predicted, on M"),
    "tradeoff": lambda: figures.tradeoff(GAINS, 3, "FLOPs", "on M"),
}  # fmt: skip


@contextlib.contextmanager
def drawn(name):
    """The figure of a case in the book's style; afterwards matplotlib is as it was."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a user's matplotlibrc says
        figures.use_style()
        figure = CASES[name]()
        try:
            yield figure
        finally:
            plt.close(figure)


def described(name):
    """A case in words."""
    with drawn(name) as figure:
        return describe(figure)


def main():
    """Write all descriptions anew, and leave none without a case."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.txt"):
        path.unlink()
    for name in CASES:
        path = FOLDER / f"{name}.txt"
        path.write_text(described(name), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
