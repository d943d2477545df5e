"""The pictures in steps, the source shown, and the figures' data."""

import inspect
import itertools
import json
import re
from base64 import b64decode
from pathlib import Path
from xml.etree import ElementTree

import example
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from IPython.core.pylabtools import print_figure

import hfusion
from hfusion import algebra, timing, webgpu
from sideways import figures, recorder, records, show
from sideways.experiments import guards
from sideways.show import missing
from sideways.show.text import excerpt

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def walk_of_two_programs():
    """Blocks that overlap, last no time, or have no colour; a legend of two lines."""
    first = [
        *(("host", "first", 0, 3), ("host", "second", 3, 4.5), ("host", "first", 6, 6)),
        *(("device", "a_kernel", 3.5, 5), ("device", "second", 4, 5.2)),
        *(("copies", "second", 5.2, 6),),
    ]
    second = [("host", "both", 0, 1.5), ("device", "both", 1.5, 5)]
    colours = {"first": ("#111111",), "second": ("#222222",)}
    colours |= {"both": ("#111111", "#222222", "#333333"), "never " * 7: ("#444444",)}
    return show.walk("Two <programs>", {"as written": first, "<one>": second}, colours)


def still(moving):
    """What a player or a walk is without its style and script, its pictures as SVG."""
    html = moving._repr_html_().split("<style>")[0]
    picture = re.compile(
        r'<img (width="\d+") alt="(.*?)" src="data:image/svg\+xml;base64,(.*?)">'
    )
    return picture.sub(lambda m: f"<{m[1]}>{b64decode(m[3]).decode()}", html)


DRAWN = {
    "stacking": lambda: show.stacking(
        [[[1, 2, -1]], [[0, 4, 3]], [[1, 1, 1]]], [[1, 2], [3, 0], [0, -1]]
    ),
    "splitting": lambda: show.splitting((2, 1), 2, batch=2),
    "walk": walk_of_two_programs,
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_stays_within_its_frame(name):
    for drawing in re.findall("<svg.*?</svg>", still(DRAWN[name]())):
        svg = ElementTree.fromstring(drawing)
        left, top, width, height = map(float, svg.get("viewBox").split())
        assert (left, top) == (0, 0)
        below = {part for group in svg.iter(f"{SVG}g") for part in group.iter()}
        assert sum(1 for _ in svg.iter(f"{SVG}rect")) > 5
        for part in [*svg.iter(f"{SVG}rect"), *svg.iter(f"{SVG}text")]:
            x, y, wide, high = (
                float(part.get(key, 0)) for key in ("x", "y", "width", "height")
            )
            y += 20 * (part in below)  # of a numbered drawing
            assert 0 <= x <= x + wide <= width, ElementTree.tostring(part)
            assert 0 <= y <= y + high <= height, ElementTree.tostring(part)


# Players


def test_stacking_shows_the_product_worked_by_hand():
    player = show.stacking([[[1, 2]], [[3, 4]]], [[5], [6]])
    captions = [caption for _, caption in player.steps]
    assert len(captions) == 5  # apart, stacked, a row, a row, split
    assert captions[-1].endswith("1, 1.")
    last = re.findall(r">(-?\d+)</text>", player.steps[-1][0])
    assert {"17", "39"} <= set(last)  # 1·5 + 2·6 and 3·5 + 4·6
    first = re.findall(r">(-?\d+)</text>", player.steps[0][0])
    assert not {"17", "39"} & set(first)


def test_a_step_of_stacking_marks_the_row_that_it_multiplies_and_tells_of_known_rows():
    steps = show.stacking([[[1, 2]], [[3, 4]]], [[5], [6]]).steps
    strong = r'stroke-width="2.5"/><text[^>]*>(-?\d+)</text>'
    marked = [re.findall(strong, svg) for svg, _ in steps]
    assert marked == [[], [], ["1", "2", "17"], ["3", "4", "39"], []]
    known = [re.search('Y is (.*?)"', svg)[1] for svg, _ in steps]
    assert known == ["[]", "[]", "[[17]]", "[[17], [39]]", "[[17], [39]]"]


def test_splitting_tells_whose_each_number_in_memory_is():
    """Two channels and one, two pixels: NCHW goes through pixels first, NHWC last."""
    steps = show.splitting(sizes=(2, 1), pixels=2, batch=1).steps
    told = [re.search('by branch: (.*?)"', svg)[1] for svg, _ in steps]
    assert told == ["1, 1, 1, 1, 2, 2"] * 2 + ["1, 1, 2, 1, 1, 2"] * 2


@pytest.mark.parametrize(
    ("batch", "expected"), [(1, ["1 piece", "3 pieces"]), (2, ["2 pieces", "6 pieces"])]
)
def test_splitting_counts_pieces(batch, expected):
    """NCHW: a piece an image. NHWC: a piece a pixel, of three pixels here."""
    steps = show.splitting(sizes=(2, 1), pixels=3, batch=batch).steps
    first_branch = [steps[0][1], steps[2][1]]
    assert [re.search(r"\d+ pieces?", text)[0] for text in first_branch] == expected


def test_splitting_joins_what_touches():
    """A branch alone is one piece in any layout."""
    steps = show.splitting(sizes=(2,), pixels=3, batch=2).steps
    assert all("1 piece," in caption for _, caption in steps)


def test_a_player_is_the_same_text_every_time_and_escapes_its_label():
    player = show.Player('a "label" <b>', (("<svg></svg>", "x < y"),))
    assert player._repr_html_() == player._repr_html_()
    assert "&lt;b&gt;" in player._repr_html_()
    assert "<li>x &lt; y</li>" in player._repr_html_()
    assert repr(player).splitlines()[1] == "1. x < y"


def test_pictures_are_numbered_images_that_say_what_they_show():
    """Images are what a viewer keeps that drops scripts and inline SVG."""
    html = show.splitting((2, 1), 2, batch=1)._repr_html_()
    alts = re.findall('<img width="270" alt="(.*?)"', html)
    assert (
        alts
        == ["In memory, by branch: 1, 1, 1, 1, 2, 2"] * 2
        + ["In memory, by branch: 1, 1, 2, 1, 1, 2"] * 2
    )
    assert "<svg" not in html.split("<script>")[0]
    numbers = re.findall(
        r'font-weight="bold">(\d)</text>', still(show.splitting((2, 1), 2, 1))
    )
    assert numbers == ["1", "2", "3", "4"]


def test_what_an_output_brings_is_small_and_ends_no_script_early():
    for moving in (show.splitting((2, 1), 2, batch=1), walk_of_two_programs()):
        brought = moving._repr_html_().split("<style>")[1]
        assert len(brought.encode()) < 10_000
        assert brought.count("</script>") == brought.count("</style>") == 1
        assert not re.search(
            r"https?://(?!www\.w3\.org/2000/svg)|import\(|fetch\(", brought
        )


# Walks


def test_a_walk_says_of_each_block_who_when_and_after_what_gap():
    events = [("host", "b", 4, 8), ("device", "a", 4, 6), ("host", "a", 0, 4),
              ("device", "b", 8, 9)]  # fmt: skip
    walk = show.walk("w", {"p": events}, {"a": ("#111111",), "b": ("#222222",)})
    assert [step.split(": ")[1] for step in walk.steps] == [
        "the host is at a from 0 µs to 4 µs, for 4 µs.",
        "the device is at a from 4 µs to 6 µs, for 2 µs, after a gap of 4 µs.",
        "the host is at b from 4 µs to 8 µs, for 4 µs.",
        "the device is at b from 8 µs to 9 µs, for 1 µs, after a gap of 2 µs.",
    ]
    blocks = re.findall(r"<rect [^>]*data-step=[^>]*>", walk.svg)
    number = lambda block, name: float(re.search(rf' {name}="([\d.]+)"', block)[1])
    widths = {number(block, "data-step"): number(block, "width") for block in blocks}
    assert widths[1] == pytest.approx(2 * widths[2], abs=0.1)
    assert walk._repr_html_().count("<li>") == 4
    assert repr(walk).splitlines()[0] == "w"


@pytest.mark.parametrize(("steps", "folded"), [(24, False), (25, True)])
def test_the_steps_of_a_long_walk_are_folded_and_not_printed(steps, folded):
    walk = show.walk("w", {"p": [("host", "a", n, n + 1) for n in range(steps)]}, {})
    html = walk._repr_html_()
    assert html.count("<li>") == steps
    assert ("<summary>25 steps</summary>" in html) == folded
    assert ("@media print { .fs-long" in html) == folded
    lines = repr(walk).splitlines()
    assert len(lines) == (1 + 6 + 1 if folded else 1 + steps)
    assert (lines[-1] == "… and 19 more steps") == folded


def test_blocks_and_marks_lie_where_their_time_is():
    """From 58 to 496 are 3 µs, so half a µs, a mark's distance, is 73 wide."""
    walk = show.walk("w", {"p": [("host", "a", 0, 0.5), ("host", "a", 2, 3)]}, {})
    blocks = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', walk.svg)
    assert blocks == [("58.0", "73.0"), ("350.0", "146.0")]
    assert walk.steps[1].endswith("for 1 µs, after a gap of 1.5 µs.")
    marks = re.findall(r'<path d="M([\d.]+) [\d.]+v5"', walk.svg)
    assert marks == ["58.0", "131.0", "204.0", "277.0", "350.0", "423.0", "496.0"]


@pytest.mark.parametrize(
    ("until_us", "marks"),
    [
        (0.05, "0 0.01 0.02 0.03 0.04 0.05"),
        (3, "0 0.5 1 1.5 2 2.5 3"),
        (4.5, "0 1 2 3 4"),
        (6.9, "0 1 2 3 4 5 6"),
        (7, "0 2 4 6"),
        (9.9, "0 2 4 6 8"),
        (13, "0 2 4 6 8 10 12"),
        (14, "0 5 10"),
        (4200, "0 1,000 2,000 3,000 4,000"),
    ],
)
def test_an_axis_has_three_to_seven_marks_at_round_times(until_us, marks):
    svg = show.walk("w", {"p": [("host", "a", 0, until_us)]}, {}).svg
    assert re.findall(r">([\d,.]+)</text>", svg) == marks.split()


@pytest.mark.parametrize(
    ("us", "said"),
    [(0.12345, "0.123"), (2, "2"), (99.94, "99.9"), (100, "100"), (1234.4, "1,234")],
)
def test_a_walk_says_times_with_three_digits_and_large_ones_whole(us, said):
    walk = show.walk("w", {"p": [("host", "a", 0, us)]}, {})
    assert walk.steps[0].endswith(f"from 0 µs to {said} µs, for {said} µs.")


def test_a_walk_draws_what_it_has_no_colour_for_faint_and_shortens_its_name():
    """On a GPU an event has its kernel's name; and kernels may overlap."""
    events = [("device", "k" * 90, 0, 9), ("device", "a", 1, 3), ("device", "a", 10, 12)]
    walk = show.walk("w", {"p": events}, {"a": ("#111111",)})
    assert f'fill="{figures.FAINT}" data-step="1"' in walk.svg
    assert "k" * 41 not in walk.svg + walk.steps[0]
    assert walk.steps[1].endswith("for 2 µs.")
    assert walk.steps[2].endswith("after a gap of 1 µs.")


def test_a_walk_draws_a_stacked_block_in_all_its_colours():
    colours = {"stacked": ("#111111", "#222222", "#333333")}
    walk = show.walk("w", {"p": [("host", "stacked", 0, 1.2)]}, colours)
    assert walk.svg.count('data-step="1"') == 3
    marks = re.findall(r">([\d,.]+)</text>", walk.svg)
    assert marks == ["0", "0.2", "0.4", "0.6", "0.8", "1", "1.2"]


# Source and photographs


def test_source_is_the_code_without_its_docstring():
    shown = show.source(algebra.fold).data
    assert shown.startswith("```python\ndef fold(")
    assert '"""' not in shown
    assert "scale = gamma / np.sqrt(var + eps)" in shown


def test_an_excerpt_begins_at_the_margin():
    code = "def f():\n    for i in x:\n        a = i\n\n        b = i\n    return b"
    assert excerpt(code, "a =", "return") == "a = i\n\nb = i"
    assert excerpt(code, "return") == "return b"
    with pytest.raises(ValueError, match="begin: expected a part of a line, got 'c ='"):
        excerpt(code, "c =")


def test_blocks_stand_beside_each_other_as_they_are():
    one, two = show.source(example.first), show.kernel("tick", "fn tick", "}")
    both = show.beside(Triton=one, WGSL=two).data
    assert both.startswith(
        '<div class="fs-beside full-width"><div>\n\n**Triton**\n\n```python'
    )
    assert both.endswith("```\n\n</div></div>")
    assert one.data in both
    assert two.data in both
    assert both.count("<div") == both.count("</div>") == 3


def test_photographs_are_jpeg_and_closed():
    figure = figures.gallery({"a": np.zeros((4, 6))}, columns=1)
    other = plt.figure()
    image = show.photographs(figure)
    assert image.data[:2] == b"\xff\xd8"
    assert not plt.fignum_exists(figure.number)
    assert plt.fignum_exists(other.number)
    plt.close(other)


# Figures


def test_blocks_are_drawn_to_scale():
    figure = figures.blocks((3, 1), 8, 5, ("a", "b"))
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert heights == [3, 3, 1, 1, 8]
    plt.close(figure)


def test_labels_of_blocks_do_not_touch():
    """That of a branch too thin to hold one stands beside that of the whole output."""
    figure = figures.blocks((192, 96, 16), 480, 196, ("a", "b", "c"))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    pairs = itertools.combinations(boxes, 2)
    assert not any(one.overlaps(other) for one, other in pairs)
    plt.close(figure)


def words(figure):
    """What is written on a figure, and closes it."""
    plt.close(figure)
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_bars_show_their_numbers_and_what_to_compare_with():
    figure = figures.bars({"µs": {"a": 4.0, "b": 1.0}}, {"µs": ("limit", 0.5)}, "on M")
    assert [bar.get_width() for bar in figure.axes[0].patches] == [4, 1]
    assert [text.get_text() for text in figure.texts] == ["on M"]
    assert [word.strip() for word in words(figure)] == ["4", "1", "limit"]


def test_taps_are_the_rows_that_are_read():
    found = words(figures.taps(2, 3, [(0, 1), (-1, -1)]))
    right = ["tap (0, 1)", "1", "2", "", "4", "5", "", "row + 1"]
    above = ["tap (−1, −1)", "", "", "", "", "0", "1", "row − 4"]
    assert found == right + above


def test_one_program_of_a_gemm_has_its_row_of_x_and_its_column_of_weight():
    found = words(figures.gemm(rows=2, columns=3, depth=2, program=(1, 2)))
    assert [found.count(f"step\n{step}") for step in (0, 1, 2)] == [2, 2, 0]
    assert {"0, 0", "1, 2"} < set(found)
    assert "2, 0" not in found


def test_launches_number_their_programs_across_all_problems():
    grids = {
        "launch 1": [("a", 0, 64, ("y", 0), ""), ("b", 1, 80, ("r", 0), "")],
        "launch 2": [("c", 1, 16, ("y", 64), "r")],
    }
    stores = {"launch 1": {"y": 80, "r": 80}, "launch 2": {"y": 80}}
    found = words(figures.launches(grids, stores))
    numbers = [word for word in found if word[:1].isdigit()]
    across = lambda columns: [f"{row}, {c}" for c in columns for row in range(3)]
    assert numbers == across(range(3)) + across([0])
    assert {"y: 80", "r: 80", "launch 1", "launch 2", "a", "b", "c"} < set(found)


# Benchmarks


def wants_a_gpu():
    """Why a variant that wants a GPU did not run, in the recorder's own words."""
    with pytest.raises(recorder.Unavailable) as raised:
        guards.need_cuda("cpu")
    return str(raised.value)


def test_a_benchmark_is_a_table_with_what_is_missing():
    samples = {"as written": (40.0, 80.0, 4e3), "folded": (20.0, 40.0, 1e3)}
    case = records.Case({"module": "3a"}, samples, launches={"as written": 20})
    lacks = {"graph": wants_a_gpu(), "late": "took 9 s", "graph, folded": wants_a_gpu()}
    table = show.benchmark(case, "as written", lacks)
    assert [line.split() for line in table.splitlines()] == [
        ["count", "µs", "gain", "(quartiles)"],
        ["as", "written", "20", "80", "1.00", "(1.00", "to", "1.00)"],
        ["folded", "40", "2.00", "(2.00", "to", "3.00)"],
        ["late", "took", "9", "s"],
        ["on", "a", "GPU", "also:", "graph"],
    ]
    assert max(map(len, table.splitlines())) <= 76


def test_a_benchmark_may_have_times_as_multiples_of_a_limit():
    case = records.Case({"module": "3a"}, {"two launches": (3.0, 4.5, 6.0)})
    first, line = show.benchmark(case, "two launches", limit_us=3.0).splitlines()
    assert first.split()[:3] == ["count", "µs", "limits"]
    assert line.split()[:4] == ["two", "launches", "4.50", "1.50"]


def test_a_reference_has_every_public_name_and_no_other():
    text = show.reference(example).data
    assert text.startswith("A module.\n\n```text\n    with   a drawing\n```")
    assert "```python\nfirst(a, b=2)\n```\n\nAdds \\*two\\* numbers." in text
    assert "```pycon\n>>> first(1)\n3\n```" in text
    assert "```python\nThing(size)\n```" in text
    assert "```python\nThing.half(self)\n```\n\nHalf of it." in text
    for name in ("_hidden", "undocumented", "doctest", "getsource"):
        assert name not in text


def test_a_package_s_reference_has_what_is_in_its_all_from_whichever_file():
    text = show.reference(timing).data
    found = re.findall(r"```python\n(\w+)(?=[(\n])", text)
    wanted = {n for n in timing.__all__ if hasattr(getattr(timing, n), "__name__")}
    assert sorted(found) == sorted(wanted)
    assert {"agree", "Launches", "Disagreement"} < wanted
    assert found.index("agree") < found.index("near") < found.index("count_launches")
    # One that a decorator wraps stands in its own file, not in the decorator's.
    assert found.index("benchmark") < found.index("named") < found.index("device_name")
    assert "```python\ngenerator" not in show.reference(webgpu).data  # a module


def test_a_section_of_numpydoc_is_a_title_and_a_list():
    text = show.reference(example).data
    parameters = "- `n : int`:\n  How many \\*times\\*.\n- `x : float`:\n  A number."
    listed = f"**Parameters**\n\n{parameters}\n\n**Returns**\n\n- `float`\n\n**Examples**"
    assert f"{listed}\n\n```pycon\n>>> last(2)" in text
    assert "```python\nlast(n, x=0)\n```" in text  # its types are in the list


def test_the_reference_page_has_what_the_library_offers():
    path = ROOT / "back" / "api-reference.ipynb"
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(
        output.get("data", {}).get("text/markdown", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    for name in hfusion.__all__:
        thing = getattr(hfusion, name)
        if inspect.ismodule(thing):
            functions = {n: f for n, f in vars(thing).items() if inspect.isfunction(f)}
            own = [n for n, f in functions.items() if f.__module__ == thing.__name__]
            wanted = [n for n in getattr(thing, "__all__", own) if n in functions]
            wanted = [n for n in wanted if not n.startswith("_")]
        else:
            wanted = [name]
        assert wanted
        assert [n for n in wanted if not re.search(rf"```python\n{n}\b", text)] == []


# A block that reads records.


@pytest.fixture
def glued(monkeypatch):
    """[(name, value), …] as it is glued; no block of a page has been left yet."""
    found = []
    monkeypatch.setattr(missing, "LACKING", [])
    monkeypatch.setattr(
        missing, "glue", lambda name, value, display: found.append((name, value))
    )
    return found


def test_a_block_that_finds_everything_is_as_without(glued, capsys):
    with show.recorded("gain"):
        found = 3
    assert (found, glued, capsys.readouterr().out) == (3, [], "")


def test_a_block_that_lacks_something_says_so_and_glues_its_names(glued, capsys):
    with show.recorded("gain", "machine"):
        records.nothing("stage").select(batch=1)
        raise AssertionError("the block went on")
    assert capsys.readouterr().out == "not recorded: there is no record of stage\n"
    assert [name for name, _ in glued] == ["gain", "machine"]


def test_a_name_is_missing_only_after_a_block_that_was_left(glued, capsys):
    with pytest.raises(NameError), show.recorded():
        print(never_set)  # noqa: F821
    with show.recorded():
        records.nothing("stage").select(batch=1)
    with show.recorded("gain"):
        print(never_set)  # noqa: F821
    said = "not recorded: there is no record of stage\n"
    assert capsys.readouterr().out == 2 * said
    assert len(glued) == 1


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError(), records.RecordError("x")]
)
def test_no_other_error_is_taken_for_a_record_s(glued, error):
    missing.LACKING.append("something")
    with pytest.raises(type(error)), show.recorded("gain"):
        raise error
    assert glued == []


def test_a_figure_that_lacks_its_numbers_is_a_sentence(glued, capsys):
    before = set(plt.get_fignums())
    with show.recorded(figure=True):
        records.nothing("stage").select(batch=1)
    (number,) = set(plt.get_fignums()) - before
    figure = plt.figure(number)
    plt.close(number)
    assert print_figure(figure)  # as IPython shows it, which shows none without axes
    (axes,) = figure.axes
    (text,) = axes.texts
    assert text.get_text() == "not recorded: there is no record of stage"
    assert capsys.readouterr().out == ""


# What `hfusion.faster` accepted. Gains are a median, the lowest and the highest.
ABOUT = {"device": "AMD, 2 threads", "torch": "2.13", "date": "2026-12-01"}
ALL, KEPT, WORSE = [0.9, 0.8, 1], [1.1, 1, 1.2], [0.97, 0.9, 1]
JUDGED = [
    {
        "case": case,
        "groups": 3,
        "accepted": 2,
        "gains": {"all": ALL, "judged": judged, "same": [1, slowest, 1.03]},
    }
    for case, judged, slowest in (("kept", KEPT, 0.99), ("worse", WORSE, 0.98))
]


def test_accepted_groups_beside_the_noise_of_a_copy(tmp_path):
    assert "not measured yet" in show.accepted(tmp_path / "nothing")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "judging.json").write_text(
        json.dumps(ABOUT | {"cases": JUDGED})
    )
    _, kept, worse, *below = show.accepted(tmp_path).splitlines()
    assert kept.split("   ")[-1] == "0.90 (0.80 to 1.00) 1.10 (1.00 to 1.20)"
    assert worse.split()[:4] == ["worse", "2", "of", "3"]
    assert below == [
        "",
        "a copy of the same model: 0.98 to 1.03",
        "slower than the slowest copy: worse",
        "measured on AMD, 2 threads, 2026-12-01, PyTorch 2.13",
    ]
