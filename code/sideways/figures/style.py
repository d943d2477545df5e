"""One style, one palette, and what all drawings are made of."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch, Rectangle

# Okabe and Ito's palette, told apart by readers with any colour vision.
BRANCHES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # 1×1, 3×3, 5×5, pool
INPUT = "#7A828E"
INK = "#1F2733"
FAINT = "#D5DAE1"
# What is no branch is drawn in slate and ochre: kinds of operator, ways, machines.
OTHERS = ("#2F3E56", "#6B7F9E", "#A9B6C8", "#B08900", "#DCC682")

# A line to compare with.
DASHED: dict[str, Any] = {
    "color": INK,
    "linewidth": 0.9,
    "linestyle": (0, (3, 3)),
}  # where to compare

STYLE: dict[str, Any] = {
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
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]


def tint(colour, strength=0.3):
    """`colour` mixed with white: 0 is white, 1 the colour itself."""
    return tuple(1 - strength * (1 - channel) for channel in to_rgb(colour))


def canvas(width, height, xlim, ylim):
    """A figure to draw on: no axes, units of equal length, y downwards."""
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=xlim, ylim=ylim[::-1], aspect="equal")
    axes.axis("off")
    return figure, axes


def box(axes, x, y, width, height, colour, label="", strength=0.3, linewidth=1, **text):
    """A rectangle with its top left corner at (x, y) and a label inside."""
    style = {"ha": "center", "va": "center", "fontsize": 9, "zorder": 1} | text
    axes.add_patch(
        Rectangle(
            (x, y), width, height, facecolor=tint(colour, strength), edgecolor=colour,
            linewidth=linewidth, zorder=style["zorder"],
        )
    )  # fmt: skip
    axes.text(x + width / 2, y + height / 2, label, **style)


def node(axes, x, y, width, label, colour, fontsize=9):
    """A rounded box centred at (x, y)."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.32), width, 0.64, linewidth=1.4, edgecolor=colour,
            facecolor=tint(colour), boxstyle="round,pad=0,rounding_size=0.12",
        )
    )  # fmt: skip
    axes.text(x, y, label, ha="center", va="center", fontsize=fontsize)


def arrow(axes, start, end, colour=INK):
    """An arrow from a point (x, y) to another."""
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0,
                                    "shrinkB": 1, "linewidth": 1.1},
    )  # fmt: skip


def labelled(figure, label):
    """Say on a figure of times where and when they were taken."""
    figure.tight_layout()
    figure.text(0.995, 0.0, label, ha="right", va="top", fontsize=7.5, color=INPUT)
    return figure
