"""The book's figures: what is drawn is what was looked at, as far as words can say it.

A description differs from the stored one: look at the picture. If the change is meant,
`python tests/support/pictures.py` writes the descriptions anew.
"""

import difflib
import inspect

import matplotlib
import matplotlib.pyplot as plt
import pictures
import pytest
from matplotlib.patches import Ellipse

from sideways import figures

STORED = {path.stem: path for path in pictures.FOLDER.glob("*.txt")}
HINT = "look at the picture; if the change is meant: python tests/support/pictures.py"


def test_every_case_has_a_description_and_every_description_a_case():
    assert set(STORED) == set(pictures.CASES)


def test_every_public_function_has_a_case():
    functions = {n for n in figures.__all__ if inspect.isfunction(getattr(figures, n))}
    assert {name.partition("-")[0] for name in pictures.CASES} == functions


@pytest.mark.parametrize("name", pictures.CASES)
def test_a_figure_is_drawn_as_described(name):
    stored = STORED[name].read_text(encoding="utf-8").splitlines()
    found = pictures.described(name).splitlines()
    changed = list(difflib.unified_diff(stored, found, "stored", "found", n=0, lineterm=""))
    assert not changed, "\n".join([f"{name}: {HINT}", *changed])


# A change on a figure changes its description.


def a_place_of_a_line(figure, axes):
    axes.lines[1].set_ydata([1.11, 1.25])


def a_colour(figure, axes):
    axes.lines[1].set_color(figures.OTHERS[1])


def a_line_width(figure, axes):
    axes.lines[0].set_linewidth(1)


def the_dashes(figure, axes):
    axes.lines[0].set_linestyle((0, (3, 4)))


def a_marker(figure, axes):
    axes.lines[1].set_marker("s")


def a_marker_size(figure, axes):
    axes.lines[1].set_markersize(4.5)


def an_alpha(figure, axes):
    axes.collections[0].set_alpha(0.6)


def an_order(figure, axes):
    axes.collections[0].set_zorder(3)


def a_font_size(figure, axes):
    figure.texts[0].set_fontsize(8)


def a_place_of_a_text(figure, axes):
    figure.texts[0].set_x(0.99)


def an_alignment(figure, axes):
    figure.texts[0].set_va("bottom")


def a_label(figure, axes):
    axes.set_xlabel("gain")


def a_limit(figure, axes):
    axes.set_ylim(top=1.66)


def a_scale(figure, axes):
    axes.set_yscale("log")


def the_ticks(figure, axes):
    axes.set_xticks([1])


def the_anchor_of_the_legend(figure, axes):
    axes.get_legend().set_bbox_to_anchor((1.03, 1))


def a_colour_in_the_legend(figure, axes):
    axes.get_legend().legend_handles[0].set_color("red")


def the_size(figure, axes):
    figure.set_figheight(3.9)


def one_more_text(figure, axes):
    axes.text(1, 1, "more")


CHANGES = [
    a_place_of_a_line, a_colour, a_line_width, the_dashes, a_marker, a_marker_size,
    an_alpha, an_order, a_font_size, a_place_of_a_text, an_alignment, a_label, a_limit,
    a_scale, the_ticks, the_anchor_of_the_legend, a_colour_in_the_legend, the_size,
    one_more_text,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_noticed(change):
    with pictures.drawn("predicted") as figure:
        before = pictures.describe(figure)
        change(figure, figure.axes[0])
        assert pictures.describe(figure) != before


def test_what_depends_on_fonts_is_not_described():
    with pictures.drawn("predicted") as figure:
        before = pictures.describe(figure)
        for text in [*figure.texts, figure.axes[0].xaxis.label, figure.axes[0].title]:
            text.set_fontfamily("monospace")
        figure.tight_layout()
        figure.draw_without_rendering()
        assert pictures.describe(figure) == before


def test_an_artist_of_an_unknown_kind_is_refused():
    with pictures.drawn("predicted") as figure:
        figure.axes[0].add_patch(Ellipse((1, 1), 1, 1))
        with pytest.raises(TypeError, match="say in KINDS what it shows"):
            pictures.describe(figure)


def test_a_case_leaves_matplotlib_as_it_was():
    before = matplotlib.rcParams.copy(), plt.get_fignums()
    pictures.described("predicted")
    assert (matplotlib.rcParams.copy(), plt.get_fignums()) == before
