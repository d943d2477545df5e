"""Players and walks in a page of nothing else: stepped, printed, and without scripts."""

import chromium
import pytest

from sideways import show

THEME = (
    "<style>[hidden] { display: none !important; }</style>"  # as the book's theme has it
)
LOST = """() => { // as JupyterLab and GitHub do with outputs that they do not trust
    for (const node of document.querySelectorAll("script, style, svg")) node.remove();
    for (const node of document.querySelectorAll("fs-player, fs-walk")) {
        node.replaceWith(...node.childNodes);
    }
}"""
# As JupyterLab shows an output: it is parsed first, and its scripts are run then.
LATER = """(html) => {
    const output = document.createElement("div");
    output.innerHTML = html;
    document.body.append(output);
    for (const old of output.querySelectorAll("script")) {
        const script = document.createElement("script");
        script.textContent = old.textContent;
        old.replaceWith(script);
    }
}"""


def moving():
    """Two players and a walk, as a chapter could have them."""
    blocks = [("host", "a", 0, 4), ("device", "a", 4, 5), ("host", "b", 4, 8)]
    colours = {"a": ("#0072B2",), "b": ("#D55E00", "#009E73")}
    return (
        show.stacking([[[1, 2]], [[3, 4]]], [[5], [6]]),
        show.splitting((2, 1), 2, batch=2),
        show.walk("A walk", {"p": blocks}, colours),
    )


@pytest.fixture
def opened(browser):
    """Opens a page that holds this HTML; what goes wrong in it fails the test."""
    contexts, wrong = [], []

    def open_page(html, **options):
        contexts.append(browser.new_context(reduced_motion="reduce", **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.set_content(
            f"<!doctype html><html><head>{THEME}</head><body>{html}</body></html>"
        )
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(params=["parsed", "later"])
def page(opened, request):
    """All that moves: in a page as it is parsed, and put into one that is there already."""
    outputs = [one._repr_html_() for one in moving()]
    if request.param == "parsed":
        return opened("\n".join(f"<div>{output}</div>" for output in outputs))
    page = opened("<h1>A notebook</h1>")
    for output in outputs:
        page.evaluate(LATER, output)
    return page


def place(element):
    """The step that the bar says one is at."""
    return element.locator("output").inner_text().split(" / ")[0]


def test_each_shows_its_first_step_whenever_its_script_runs(page):
    assert page.locator("[data-fs-state=ready]").count() == 3
    assert page.locator(".fs-controls").count() == 3
    first = page.locator("fs-player").first
    assert first.locator(".fs-step").count() == 5
    assert first.locator(".fs-step:visible p").inner_text().startswith("Three separate")
    assert page.locator("fs-player .fs-step:visible").count() == 2
    assert page.locator(".fs-sheet, ol:visible").count() == 0
    assert page.locator("fs-walk .fs-says").inner_text().startswith("p: the host is at a")


def test_a_drawing_has_the_colour_of_the_page_around_it(page):
    page.evaluate("document.body.style.color = 'rgb(1, 2, 3)'")
    text = page.locator("fs-player .fs-step:visible svg text").first
    assert text.evaluate("(node) => getComputedStyle(node).fill") == "rgb(1, 2, 3)"
    assert page.locator("fs-player svg").first.get_attribute("style") is None


@pytest.mark.parametrize(
    "control", [".fs-play", "[aria-label^=Prev]", "input", "[aria-label^=Next]"]
)
def test_keys_step_from_every_control(page, control):
    for element in page.locator("fs-player, fs-walk").all():
        last = element.locator("input").get_attribute("max")
        element.locator(control).focus()
        seen = []
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home", "ArrowLeft"):
            page.keyboard.press(key)
            seen.append(place(element))
        assert seen == ["2", "3", "2", last, "1", "1"]
        if control != "input":  # of which it is the browser's matter
            page.keyboard.press("Alt+ArrowRight")
            assert place(element) == "1"


def test_a_step_by_hand_stops_what_plays(page):
    player = page.locator("fs-player").first
    player.locator(".fs-play").focus()
    page.keyboard.press("Space")
    assert player.locator(".fs-play").inner_text() == "Pause"
    page.keyboard.press("ArrowRight")
    assert player.locator(".fs-play").inner_text() == "Play"


def test_no_key_reaches_a_notebooks_shortcuts(page):
    """JupyterLab's look from what has the focus upwards, and stop at this attribute."""
    controls = page.locator(".fs-controls :is(button, input)")
    assert controls.count() == 12
    for control in controls.all():
        assert control.get_attribute("data-lm-suppress-shortcuts") == "true"


def test_a_step_survives_being_taken_out_and_put_back(page):
    player = page.locator("fs-player").first
    player.get_by_label("Next step").click()
    page.evaluate("""() => {
        const player = document.querySelector("fs-player"), home = player.parentNode;
        player.remove();
        home.append(player);
    }""")
    assert place(player) == "2"
    player.get_by_label("Next step").click()
    assert place(player) == "3"
    assert player.locator(".fs-controls").count() == 1


def test_a_click_on_a_block_goes_there(page):
    walk = page.locator("fs-walk")
    walk.locator('rect[data-step="3"]').last.click()
    assert "the host is at b" in walk.locator(".fs-says").inner_text()
    block = walk.locator('rect[data-step="3"]').first.bounding_box()
    pointer = walk.locator(".fs-here").bounding_box()
    middle = pointer["x"] + pointer["width"] / 2
    assert middle == pytest.approx(block["x"] + block["width"] / 2, abs=1)


def boxes(locator):
    return [one.bounding_box() for one in locator.all()]


def reading_order(found):
    """Whether boxes stand in rows, side by side, from left to right."""
    rows = [(round(box["y"]), round(box["x"])) for box in found]
    return rows == sorted(rows) and len({y for y, _ in rows}) < len(rows)


def test_a_long_list_is_folded_where_no_script_runs_and_left_out_on_paper(opened):
    blocks = [("host", "a", n, n + 1) for n in range(30)]
    html = show.walk("Long", {"p": blocks}, {})._repr_html_()
    page = opened(html)
    assert "from 0 µs to 1 µs" in page.locator(".fs-says").inner_text()
    assert not page.locator("details").is_visible()
    page.emulate_media(media="print")
    assert page.locator("svg").is_visible()
    assert not page.locator("details").is_visible()
    still = opened(html, java_script_enabled=False)
    assert still.locator("summary").inner_text() == "30 steps"
    assert not still.locator("li").first.is_visible()


def test_on_paper_all_steps_stand_in_reading_order_without_controls(page):
    page.emulate_media(media="print")
    player, walk = page.locator("fs-player").first, page.locator("fs-walk")
    steps = player.locator(".fs-step")
    assert all(step.is_visible() for step in steps.all())
    assert reading_order(boxes(steps))
    numbers = steps.locator("svg > text:first-child").all_text_contents()
    assert numbers == ["1", "2", "3", "4", "5"]
    assert (
        page.locator(".fs-controls:visible, .fs-says:visible, .fs-here:visible").count()
        == 0
    )
    assert walk.locator("svg").is_visible()
    assert all(item.is_visible() for item in walk.locator("li").all())


@pytest.mark.parametrize("way", ["no script", "stripped"])
def test_a_still_picture_is_a_numbered_sheet_and_a_list(opened, way):
    html = "\n".join(one._repr_html_() for one in moving())
    page = opened(html, java_script_enabled=way == "stripped")
    if way == "stripped":
        page.close()
        page = opened("")
        page.evaluate("(html) => { document.body.innerHTML = html; }", html)
        page.evaluate(LOST)
    sheets, lists = page.locator(".fs-sheet"), page.locator("ol")
    assert [sheet.locator("img").count() for sheet in sheets.all()] == [5, 4, 1]
    assert [one.locator("li").count() for one in lists.all()] == [5, 4, 3]
    assert page.locator("button, input, svg").count() == 0
    for sheet in sheets.all()[:2]:
        assert reading_order(boxes(sheet.locator("img")))
        assert sheet.bounding_box()["height"] < 450
    if way == "stripped":
        sizes = "() => [...document.images].map((image) => image.naturalWidth > 0)"
        page.wait_for_function(
            "() => [...document.images].every((image) => image.complete)"
        )
        assert page.evaluate(sizes) == [True] * 10


def test_all_of_it_is_accessible(page):
    rules = {rule for rule, _ in chromium.violations(page)}
    # Of a page that is nothing else.
    assert rules <= {
        "document-title",
        "html-has-lang",
        "landmark-one-main",
        "page-has-heading-one",
        "region",
    }
