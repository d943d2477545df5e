"""The built pages: complete, quiet, self-contained; seen in a browser if there is one."""

import copy
import importlib
import itertools
import json
import re
import subprocess
import sysconfig
import time
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import chromium
import pdf
import pypdf
import pytest
import terms
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright

from sideways import figures

ROOT = Path(__file__).resolve().parents[2]

six = importlib.import_module("sideways.show.case")  # it may show two siblings more
PAGES = ["index", *re.findall(r"file: (\S+)", (ROOT / "_toc.yml").read_text())]
LIBRARY = {"genindex", "search"}  # pages that Sphinx adds


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The book built anew, warnings as errors."""
    out = tmp_path_factory.mktemp("site")
    build = Path(sysconfig.get_path("scripts")) / "jupyter-book"
    options = ["--all", "-W", "-n", "--keep-going", "--path-output"]
    command = [build, "build", ROOT, *options, out]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return (out / "_build" / "html").resolve()


@pytest.fixture(scope="session")
def soups(site):
    """Each built page as a tree, by its name."""
    found = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {
        path.relative_to(site).with_suffix("").as_posix(): BeautifulSoup(
            path.read_text(encoding="utf-8"), "html.parser"
        )
        for path in found
    }


def test_every_page_of_the_contents_is_built_and_no_other(soups):
    assert set(soups) - LIBRARY == set(PAGES)


def test_no_page_loads_anything_from_elsewhere(soups):
    nearby = ("canonical", "index", "next", "prev")  # where one may go; nothing is loaded
    loads = [
        node.get("src") or node.get("href") or ""
        for soup in soups.values()
        for node in soup.select("link, script[src], img[src], iframe[src], source[src]")
        if not set(node.get("rel") or ()) & set(nearby)
    ]
    assert len(loads) > 500
    assert {load for load in loads if "//" in load} == set()


def test_every_image_says_what_it_shows(soups):
    alts = [node.get("alt") or "" for soup in soups.values() for node in soup.select("img")]
    assert [alt for alt in alts if not alt or "/" in alt[:12]] == []


def test_every_link_within_the_book_leads_somewhere(site, soups):
    ids = {
        name: {node["id"] for node in soup.select("[id]")} for name, soup in soups.items()
    }
    broken = []
    for name, soup in soups.items():
        for link in (node["href"] for node in soup.select("a[href]")):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = site / f"{name}.html"
            if parts.path:
                target = (target.parent / unquote(parts.path)).resolve()
            lost = not target.exists()
            if not lost and parts.fragment and target.suffix == ".html":
                there = target.relative_to(site).with_suffix("").as_posix()
                lost = unquote(parts.fragment) not in ids[there]
            if lost:
                broken.append(f"{name}: {link}")
    assert broken == []


def test_every_glued_number_is_there(site):
    for name in PAGES:
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        assert "pasted_" not in text, name
        assert "glue:text" not in text, name


def test_every_figure_equation_and_exercise_can_be_referred_to(soups):
    """It has a number and a link to itself."""
    bad, seen = [], 0
    wanted = {
        "figure": (".caption-number", "a.headerlink"),
        "div.math": (".eqno a.headerlink",),
        ".exercise": (".caption-number",),
    }
    for name, soup in soups.items():
        for what, parts in wanted.items():
            for node in soup.select(f"article {what}"):
                seen += 1
                if not node.get("id") or not all(map(node.select_one, parts)):
                    bad.append(f"{name}: {what} {node.get_text()[:40]!r}")
    assert seen > 100
    assert bad == []


def test_next_and_previous_follow_the_contents(soups):
    for before, after in itertools.pairwise(PAGES):
        onward = soups[before].select_one("a.right-next")["href"]
        back = soups[after].select_one("a.left-prev")["href"]
        assert onward.endswith(Path(after).name + ".html"), before
        assert back.endswith(Path(before).name + ".html"), after


def test_every_chapter_can_be_downloaded_from_its_page(site, soups):
    for name in PAGES:
        if (ROOT / f"{name}.ipynb").exists():
            link = soups[name].select_one("a.btn-download-source-button")["href"]
            copy = (site / name).parent / link
            assert copy.read_bytes() == (ROOT / f"{name}.ipynb").read_bytes()


# What the notebooks say, and what their pages make of it

NOTEBOOKS = [name for name in PAGES if (ROOT / f"{name}.ipynb").exists()]
CHAPTERS = [name for name in NOTEBOOKS if name.startswith("chapters/")]
NOT_PROSE = """h1, h2, h3, a, code, pre, .math, .eqno, script, style, svg, fs-player,
    fs-walk, .fs-lab, .fs-skip, .admonition-title, figcaption"""


def says(name):
    """The text of a notebook as its file has it."""
    cells = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return "\n\n".join(texts)


def numbers(soup, selector):
    """What has a number on a page, in order: "3.1"."""
    found = [node.get_text() for node in soup.select(f"article {selector}")]
    return [re.search(r"\d[\d.]*", text)[0] for text in found]


def leads(soup, page):
    """The fragments of an article's links to another page, in order."""
    links = [link["href"] for link in soup.select(f"article a[href*='{page}.html#']")]
    return [link.partition("#")[2] for link in links]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_numbers_all_that_its_notebook_numbers(soups, name):
    page, text = soups[name], says(name)
    captions = re.findall(r"^\*\*Figure ([\d.]+)\.\*\* \S", text, re.M)
    assert numbers(page, "figcaption .caption-number") == captions
    assert numbers(page, ".eqno") == re.findall(r"\\tag\{([\d.]+)\}", text)
    exercises = re.findall(r"^### Exercise ([\d.]+)$", text, re.M)
    assert numbers(page, ".exercise > .admonition-title") == exercises
    solutions = re.findall(r"^### Solution ([\d.]+)$", text, re.M)
    assert sorted(solutions) == sorted(exercises)
    assert numbers(page, ".exercise + .solution.dropdown > .admonition-title") == exercises


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_cites_all_that_its_notebook_cites(soups, name):
    """A link to an address of references.bib has become one to the bibliography.

    Or it has stayed a link, but then it does not say "[2014]" or "[…, 2014]".
    """
    entries = (ROOT / "references.bib").read_text(encoding="utf-8")
    known = set(re.findall(r"\burl = \{(.*?)\}", entries))
    links = re.findall(r"\]\((https?://[^\s)]*)\)", says(name))
    stayed = [a for a in soups[name].select("article a") if a.get("href") in known]
    cited = [link for link in links if link in known]
    assert len(leads(soups[name], "bibliography")) + len(stayed) == len(cited)
    assert len(cited) > 1 or "chapters/" not in name
    assert [a for a in stayed if re.search(r"\[|\b\d{4}$|n\.d\.", a.get_text())] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_page_links_each_of_its_terms_once(soups, name):
    """Terms, by their names: what the glossary's page calls them."""
    called = {dt["id"]: dt.get_text() for dt in soups["back/glossary"].select("dt[id]")}
    linked = [called[there].rstrip("#") for there in leads(soups[name], "glossary")]
    assert len(linked) == len(set(linked)) > 10
    article = copy.copy(soups[name].select_one("article.bd-article"))
    for node in article.select(NOT_PROSE):
        node.replace_with("~")
    prose = " ".join(article.get_text().replace("’", "'").split())
    used = [term for term, like in terms.TERMS.items() if re.search(like, prose, re.I)]
    assert sorted(set(used) - set(linked)) == []


# Colours

# How people see who lack one kind of cone, for linear RGB (Machado, Oliveira and Fernandes
# 2009, severity 1).
SEEN = {
    "any": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
                   (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
                     (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
                   (0.004733, 0.691367, 0.303900)),
}  # fmt: skip


def lab(colour, seen):
    """A "#RRGGBB" in CIELAB, as somebody sees it."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    r, g, b = (
        min(max(sum(m * c for m, c in zip(row, linear, strict=True)), 0), 1) for row in seen
    )
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def nearest(colours, seen):
    """The least distance of two of these colours in CIELAB."""
    points = [lab(colour, seen) for colour in colours]
    pairs = [(p, q) for i, p in enumerate(points) for q in points[:i]]
    return min(
        sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) ** 0.5 for p, q in pairs
    )


@pytest.mark.parametrize("eyes", SEEN)
def test_the_branches_can_be_told_apart_whatever_one_sees(eyes):
    assert six.COLOURS[:4] == figures.BRANCHES
    assert nearest(six.COLOURS, SEEN[eyes]) > 15


def test_colours_that_look_alike_would_be_noticed():
    green_and_brown = ("#00A000", "#B07000")
    assert (
        nearest(green_and_brown, SEEN["any"])
        > 15
        > nearest(green_and_brown, SEEN["protanopia"])
    )


def test_a_branch_has_its_colour_on_the_pages_too():
    css = (ROOT / "_static/book.css").read_text(encoding="utf-8")
    assert tuple(re.findall(r"--fs-b\d: (#\w+);", css)) == tuple(
        colour.lower() for colour in figures.BRANCHES
    )
    for picture in ("cover", "logo", "favicon"):
        svg = (ROOT / f"_static/{picture}.svg").read_text(encoding="utf-8").lower()
        assert [c.lower() for c in figures.BRANCHES[:3] if c.lower() not in svg] == []


# Words


@pytest.mark.parametrize("picture", ["cover", "logo"])
def test_words_of_a_picture_are_outlines_whatever_fonts_there_are(browser, picture):
    """Drawn as text they took the reader's font, and a wider one was cut off."""
    svg = (ROOT / f"_static/{picture}.svg").read_text(encoding="utf-8")
    assert "<text" not in svg
    assert "font-" not in svg
    assert "<title>Fusing Sideways" in svg  # what a screen reader says instead
    page = browser.new_page()
    page.set_content(svg)
    left, right = page.evaluate(
        """() => {
            const words = [...document.querySelectorAll("use")];
            const boxes = words.map((word) => word.getBoundingClientRect());
            const whole = document.querySelector("svg").getBoundingClientRect();
            const least = Math.min(...boxes.map((box) => box.left)) - whole.left;
            const most = whole.right - Math.max(...boxes.map((box) => box.right));
            return [least / whole.width, most / whole.width];
        }"""
    )
    page.close()
    assert min(left, right) > 0.02


# In a browser


@pytest.fixture(scope="module")  # two at a time Playwright does not allow
def browser():
    with sync_playwright() as playwright:
        found = pdf.launched(playwright)
        if found is None:
            pytest.skip("no Chromium found; 'apt-get install chromium' or install Chrome")
        yield found


@pytest.fixture(scope="session")
def server(site):
    """The address of the site, served on this machine."""
    with chromium.served(site) as address:
        yield address


@pytest.fixture
def visit(browser):
    """Opens a page, and notes the requests it makes and the complaints it has."""
    contexts = []

    def opened(url, width=1280, scheme="light", **options):
        size = {"width": width, "height": 900}
        context = browser.new_context(
            viewport=size, color_scheme=scheme, reduced_motion="reduce", **options
        )
        contexts.append(context)
        page = context.new_page()
        page.requests_made, page.complaints = [], []
        page.on("request", lambda request: page.requests_made.append(request.url))
        page.on("requestfailed", lambda request: page.complaints.append(request.url))
        page.on("response", lambda r: r.status >= 400 and page.complaints.append(r.url))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda m: m.type == "error" and page.complaints.append(m.text))
        page.goto(url)
        page.wait_for_load_state("networkidle")
        return page

    yield opened
    for context in contexts:
        context.close()


# Contrast is what takes the time, and code has thousands of spans of a few kinds. Blocks of
# code with no kind that is new are left out of it, and of nothing else.
MARK_THE_SAME = """() => {
    const seen = new Set();
    for (const block of document.querySelectorAll("article pre")) {
        const kinds = [...block.querySelectorAll("span")].map((span) => span.className);
        if (kinds.every((kind) => seen.has(kind))) block.dataset.same = "";
        kinds.forEach((kind) => seen.add(kind));
    }
}"""
RUN_AXE = """async (wanted) => {
    const quick = { resultTypes: ["violations"], preload: false };
    const colours = { ...quick, runOnly: ["color-contrast"] };
    const others = { ...quick, rules: { "color-contrast": { enabled: false } } };
    const runs = [];
    const fresh = { exclude: ["pre[data-same]"] };
    if (wanted !== "others") runs.push(await axe.run(fresh, colours));
    if (wanted !== "colours") runs.push(await axe.run(document, others));
    return runs.flatMap((run) => run.violations).map((v) => [v.id, v.nodes[0].html]);
}"""


# Of what captions are set in; at the theme's 300 some fonts fall to their thinnest.
WEIGHTS = """() =>
    [...document.querySelectorAll("figcaption .caption-text, caption, .code-block-caption")]
        .map((caption) => getComputedStyle(caption).fontWeight)
"""


def violations(page, wanted="all"):
    """What axe has to say about a page: [[rule, the first element], …].

    wanted: "all" rules, those on "colours" alone, or the "others".
    """
    page.evaluate(chromium.AXE)
    page.evaluate(MARK_THE_SAME)
    return page.evaluate(RUN_AXE, wanted)


@pytest.mark.parametrize("name", [*PAGES, "search", "genindex"])
def test_a_page_is_quiet_accessible_and_fits(visit, site, name):
    page = visit((site / f"{name}.html").as_uri())
    if page.locator(".math").count():
        page.wait_for_selector("mjx-container", state="attached")
        assert page.locator("mjx-merror").count() == 0
        assert "\\(" not in page.locator("article").inner_text()
    assert violations(page) == []
    assert set(page.evaluate(WEIGHTS)) <= {"400"}
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-theme=dark]")
    assert violations(page, "colours") == []  # nothing else differs
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(600)  # the theme's script looks which boxes scroll now
    # Colours do not depend on the width; the few things that only a phone shows are on all.
    assert violations(page, "all" if name == "index" else "others") == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [u for u in page.requests_made if not u.startswith(("file:", "data:"))] == []
    assert page.complaints == []


@pytest.mark.parametrize("name", PAGES)
def test_a_served_page_asks_nobody_else_and_weighs_little(visit, site, server, name):
    page = visit(f"{server}/{name}.html", scheme="dark")
    elsewhere = [u for u in page.requests_made if not u.startswith((server, "data:"))]
    assert elsewhere == []
    assert page.complaints == []
    paths = {unquote(urlsplit(url).path).lstrip("/") for url in page.requests_made}
    shared = {path for path in paths if path.startswith("_static/")}
    own = paths - {path for path in shared if not (ROOT / path).exists()}
    assert f"{name}.html" in own
    assert sum((site / path).stat().st_size for path in own) <= 1_000_000


def test_axe_would_notice_a_fault(visit, site):
    page = visit((site / f"{PAGES[1]}.html").as_uri())
    page.evaluate("document.querySelector('article img').removeAttribute('alt')")
    page.evaluate("document.querySelector('pre .k').style.color = '#aaa'")
    assert [rule for rule, _ in violations(page)] == ["color-contrast", "image-alt"]


@pytest.mark.parametrize("served", [False, True])
def test_the_search_finds_a_term_on_its_page(visit, site, server, served):
    start = f"{server}/index.html" if served else (site / "index.html").as_uri()
    page = visit(start)
    page.keyboard.press("Control+k")
    page.keyboard.type("ridge")
    page.keyboard.press("Enter")
    found = page.locator("#search-results li a", has_text="When fusion pays").first
    found.wait_for()
    page.locator("#search-results .context", has_text="ridge").first.wait_for()
    page.wait_for_load_state("networkidle")
    assert page.complaints == []
    found.click()
    page.wait_for_url("**/09-when-fusion-pays.html*")
    page.wait_for_function("CSS.highlights.size")
    assert set(page.evaluate(MARKED)) == {"ridge"}
    assert page.evaluate("scrollY") > 0
    assert page.evaluate(FIRST_IS_SEEN)
    page.keyboard.press("Escape")
    assert page.evaluate("CSS.highlights.size") == 0
    assert "?" not in page.url


MARKED = "[...CSS.highlights.get('found')].map(String).map((word) => word.toLowerCase())"
FIRST_IS_SEEN = """(() => {
  const { top, bottom } = [...CSS.highlights.get("found")]
    .map((range) => range.getBoundingClientRect()).find((box) => box.height);
  return top > 0 && bottom < innerHeight;
})()"""

# What readers type, a page that it must find, and what is marked there.
TYPED = {
    "QKV": ("3. Stack the weights", "query, key and value"),
    "q,k,v": ("13. The same trick elsewhere", "queries, keys and values"),
    "1x1": ("12. Beyond 1×1", "1×1"),
    "batchnorm": ("5. Fold, then stack", "batch norm"),
    "cudagraph": ("8. What a launch costs", "cuda graph"),
    "cuda graph": ("8. What a launch costs", "cuda graph"),
    "torch.compile": ("6. An Inception module on GPU", "torch.compile"),
    "state dict": ("3. Stack the weights", "state_dict"),
    "im2col": ("12. Beyond 1×1", "im2col"),
    "LoRA": ("13. The same trick elsewhere", "lora"),
    "h200": ("Predictions for an H200", "h200"),
    "gate up": ("13. The same trick elsewhere", "gate and up"),
}


@pytest.mark.parametrize("typed", TYPED)
def test_the_search_finds_what_readers_type_and_marks_it(visit, site, typed):
    """From a file, where a page may not open another."""
    title, words = TYPED[typed]
    page = visit((site / "search.html").as_uri() + f"?q={quote(typed)}")
    item = page.locator("#search-results li").filter(
        has=page.get_by_text(title, exact=True)
    )
    item.first.locator(".context").wait_for()
    assert words in item.first.locator(".context").inner_text().lower()
    item.first.locator("a").click()
    page.wait_for_url("**found=*")
    page.wait_for_function("CSS.highlights.size")
    assert any(words in marked for marked in page.evaluate(MARKED))
    assert page.evaluate(FIRST_IS_SEEN)
    assert page.complaints == []


def test_a_hit_in_a_fold_is_unfolded(visit, site):
    """`_conv_forward` stands in the first solution of chapter 3, and nowhere else."""
    page = visit(
        (site / "chapters/03-stack-the-weights.html").as_uri() + "?found=_conv_forward"
    )
    page.wait_for_function("CSS.highlights.get('found')?.size")
    assert page.locator("code", has_text="_conv_forward").first.is_visible()


def test_a_search_without_a_result_marks_nothing(visit, site):
    page = visit((site / "search.html").as_uri() + "?q=zzzz")
    page.get_by_text("did not match any documents").wait_for()
    assert page.locator("#search-results li").count() == 0
    page = visit((site / "index.html").as_uri() + "?found=zzzz")
    assert page.locator(".fs-found").count() == 0


def test_the_search_quotes_and_marks_in_firefox_from_a_file(fox, site):
    fox.go((site / "search.html").as_uri() + "?q=QKV")
    quoted = "return document.querySelectorAll('.context').length"
    wait_for(lambda: fox.run(quoted) > 3)
    href = fox.run("return document.querySelector('#search-results li a').href")
    fox.go(href)
    wait_for(lambda: fox.run("return CSS.highlights.size") == 1)
    assert fox.run("return scrollY") > 0


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def focus_by_tab(page, selector):
    """Press Tab until an element that the selector names has the focus."""
    for _ in range(400):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"the keyboard does not reach {selector}")


@pytest.mark.parametrize(
    ("control", "hidden"),
    [
        (".solution .toggle-button", ".solution > section"),
        ("details > summary", "details > .cell_input"),
    ],
)
def test_folds_open_by_keyboard(visit, site, control, hidden):
    page = visit((site / "chapters/08-what-a-launch-costs.html").as_uri())
    assert not page.locator(hidden).first.is_visible()
    focus_by_tab(page, control)
    page.keyboard.press("Enter")
    assert page.locator(hidden).first.is_visible()


def test_the_first_thing_that_moves_is_a_few_keys_away(visit, site):
    """By two links at the page's beginning; without them there are 70 stops before it."""
    page = visit((site / "chapters/03-stack-the-weights.html").as_uri())
    pressed = 0
    for link in ("Skip to main content", "Skip to what moves"):
        while link not in (page.locator("a:focus").all_inner_texts() or [""])[0]:
            page.keyboard.press("Tab")
            pressed += 1
            assert pressed < 20
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        page.keyboard.press("Enter")
        page.wait_for_timeout(300)  # the browser moves the focus when it likes
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('fs-player') !== null")
    assert pressed <= 10


# What can be played with


@pytest.fixture
def player(visit, site):
    page = visit((site / "chapters" / "03-stack-the-weights.html").as_uri())
    return page.locator("fs-player")


def test_a_player_is_stepped_by_mouse_and_keyboard(player):
    shown = player.locator(".fs-step:visible p")
    assert shown.count() == 1
    first = shown.inner_text()
    player.get_by_label("Next step").click()
    assert shown.inner_text() != first
    slider = player.get_by_label("Step", exact=True)
    focus_by_tab(player.page, "fs-player input")
    player.page.keyboard.press("ArrowLeft")
    assert shown.inner_text() == first
    player.page.keyboard.press("End")
    assert player.get_by_label("Next step").get_attribute("aria-disabled") == "true"
    assert "Split" in shown.inner_text()
    assert slider.get_attribute("aria-valuetext") == f"9: {shown.inner_text()}"


def test_a_player_plays_to_its_end_and_can_be_stopped(player):
    page = player.page
    page.clock.install()
    where = player.locator("output")
    player.get_by_role("button", name="Play").click()
    page.clock.run_for(3_500)
    assert where.inner_text().startswith("3 / 9")
    player.get_by_role("button", name="Pause").click()
    page.clock.run_for(10_000)
    assert where.inner_text().startswith("3 / 9")
    player.get_by_role("button", name="Play").click()
    page.clock.run_for(60_000)
    assert where.inner_text().startswith("9 / 9")
    assert player.get_by_role("button", name="Play").is_visible()


@pytest.mark.parametrize("element", ["fs-player", "fs-walk", ".fs-case", "[data-lab]"])
def test_it_stands_on_the_page_in_the_dark(visit, site, element):
    """The theme puts HTML output on a light card, on which it could not be read."""
    page_of = {"fs-player": "03-stack-the-weights", "fs-walk": "08-what-a-launch-costs",
               ".fs-case": "09-when-fusion-pays",
               "[data-lab]": "06-an-inception-module-on-gpu"}  # fmt: skip
    page = visit((site / f"chapters/{page_of[element]}.html").as_uri(), scheme="dark")
    cards = page.locator(f"article :has({element})")
    colours = cards.evaluate_all(
        "nodes => nodes.map((n) => getComputedStyle(n).backgroundColor)"
    )
    assert len(colours) >= 3
    assert set(colours) == {"rgba(0, 0, 0, 0)"}


def test_a_walk_goes_from_block_to_block(visit, site):
    page = visit((site / "chapters/01-why-fuse-sideways.html").as_uri())
    walk = page.locator("fs-walk")
    says, here = walk.locator(".fs-says"), walk.locator(".fs-here")
    assert "the host is at 1×1 from 0 µs to 4 µs" in says.inner_text()
    focus_by_tab(page, "fs-walk input")
    page.keyboard.press("ArrowRight")
    assert "the device is at 1×1 from 4 µs to 5 µs" in says.inner_text()
    block = walk.locator('rect[data-step="8"]')
    assert block.count() == 3  # in the colours of all branches
    block.first.click()
    assert "the device is at all three from 4 µs to 7 µs, for 3 µs" in says.inner_text()
    assert says.inner_text() in walk.locator("output").text_content()  # what is heard
    pointed, pointer = block.first.bounding_box(), here.bounding_box()
    middle = pointer["x"] + pointer["width"] / 2
    assert middle == pytest.approx(pointed["x"] + pointed["width"] / 2, abs=1)
    assert pointer["y"] < pointed["y"]
    assert not walk.locator("ol").is_visible()


def test_without_javascript_nothing_is_hidden(visit, site):
    url = (site / "chapters" / "03-stack-the-weights.html").as_uri()
    page = visit(url, java_script_enabled=False)
    pictures, captions = page.locator("fs-player img"), page.locator("fs-player li")
    assert pictures.count() == captions.count() == 9
    assert all(node.is_visible() for node in [*pictures.all(), *captions.all()])
    page.goto((site / "chapters/01-why-fuse-sideways.html").as_uri())
    assert page.locator("fs-walk li").last.is_visible()
    page.goto((site / "chapters/09-when-fusion-pays.html").as_uri())
    assert page.locator("[data-case] tbody tr").count() >= 6


@pytest.fixture
def case(visit, site):
    page = visit((site / "chapters/09-when-fusion-pays.html").as_uri())
    return page.locator("[data-case]")


def test_the_readers_case_is_calculated_on_its_page(case):
    """In its figure; what it says is tests/book/test_case.py's matter."""
    assert case.get_attribute("data-case-state") == "ready"
    before = case.get_by_role("status").inner_text()
    focus_by_tab(case.page, "[data-case] input[name=batch]")
    case.page.keyboard.type("128")
    assert case.get_by_role("status").inner_text() != before
    focus_by_tab(case.page, "[data-case] .fs-lab-wide")
    assert case.locator("xpath=ancestor::figure").count() == 1


# On paper

# The text that an A4 sheet has room for, in pixels.
SHEET = {"width": 680, "height": 1000}
PRESSED = "button, input, select, summary, nav, header, .bd-sidebar, .headerlink, .fs-skip"
CUT = """() => [
    ...document.querySelectorAll("article *:not(.math, .math *, svg *, .fs-heard)")
].filter(
    (node) => node.clientWidth > 1 && (node.getBoundingClientRect().right > innerWidth + 1
        || node.scrollWidth > node.clientWidth + 2)
).map((node) => `${node.tagName} ${node.className}`)"""


@pytest.fixture(scope="module")
def sheet(browser):
    page = browser.new_page(viewport=SHEET, color_scheme="dark")
    yield page
    page.close()


def laid_on(sheet, site, name):
    sheet.set_viewport_size(SHEET)
    sheet.emulate_media(media="screen")
    sheet.goto((site / f"{name}.html").as_uri())
    sheet.wait_for_load_state("networkidle")
    assert sheet.evaluate("document.documentElement.dataset.theme") == "dark"
    sheet.emulate_media(media="print")
    sheet.wait_for_function("document.documentElement.dataset.theme === 'light'")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_on_paper_and_has_no_controls(sheet, site, soups, name):
    laid_on(sheet, site, name)
    assert sheet.locator(PRESSED).locator("visible=true").count() == 0
    assert sheet.evaluate(CUT) == []
    title = sheet.locator("h1").locator("visible=true")
    said = soups[name].select_one("article h1").get_text().removesuffix("#")
    assert title.all_text_contents() == [said + "#"]
    solutions = sheet.locator(".solution > section")
    assert all(one.is_visible() for one in solutions.all())
    assert solutions.count() == len(soups[name].select(".solution"))


def test_what_does_not_fit_on_paper_would_be_noticed(sheet, site):
    laid_on(sheet, site, "chapters/03-stack-the-weights")
    sheet.add_style_tag(
        content="article pre { white-space: pre !important; width: 1000px; }"
    )
    assert {line.split()[0] for line in sheet.evaluate(CUT)} >= {"PRE"}
    sheet.emulate_media(media="screen")
    sheet.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    assert not sheet.locator(".solution > section").first.is_visible()


def words_of(path):
    """The words of a PDF, with a space between any two."""
    text = "".join(sheet.extract_text() for sheet in pypdf.PdfReader(path).pages)
    return " ".join(text.split())


def in_order(text, steps):
    """Whether a text has all steps with their numbers, one after the other."""
    places = [text.find(f"{number}. {step[:20]}") for number, step in enumerate(steps, 1)]
    return min(places) > 0 and places == sorted(places)


def test_a_printed_page_has_what_moves_in_order_and_its_solutions(visit, site, tmp_path):
    """As the browser prints it, and not only as it would style it."""
    page = visit((site / "chapters/03-stack-the-weights.html").as_uri(), scheme="dark")
    path = tmp_path / "page.pdf"
    page.pdf(path=path, format="A4")
    text = words_of(path)
    steps = page.locator("fs-player .fs-step p").all_text_contents()
    assert len(steps) == 9
    assert in_order(text, steps)
    for solution in page.locator(".solution > section > p:first-child").all():
        assert solution.text_content()[:30] in text
    assert not page.locator(".solution > section").first.is_visible()  # folded again
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


# Copies of what says `words`, each on a new sheet and a little lower than the one before.
LOWER = """([what, words]) => {
    const copies = [], found = [...document.querySelectorAll(what)].find(
        (one) => one.textContent.includes(words));
    for (let above = 600; above < 1040; above += 20) {
        const copy = document.createElement("section");
        copy.style.breakBefore = "page";
        copy.innerHTML = `<div style="height: ${above}px"></div><p>Before it.</p>`;
        copy.append(found.cloneNode(true));
        copies.push(copy);
    }
    document.querySelector("article").replaceChildren(...copies);
}"""


@pytest.mark.parametrize(
    ("what", "begin", "end", "breaks"),
    [
        ("div.cell", "first = calls_us", "times the median", False),
        ("div.cell", "random = np", "of B: 0 2", True),
        (".fs-lab", "What a launch costs", "run the cells first", False),
        (".solution", "Solution to", "equal within rounding", True),
    ],
)
def test_only_what_is_short_stays_on_one_sheet(
    visit, site, tmp_path, what, begin, end, breaks
):
    page = visit((site / "chapters/08-what-a-launch-costs.html").as_uri())
    page.evaluate(LOWER, [what, begin])
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    sheets = [s.extract_text() for s in pypdf.PdfReader(tmp_path / "page.pdf").pages]
    assert any(begin in sheet for sheet in sheets)
    assert any(begin in sheet and end not in sheet for sheet in sheets) == breaks


def test_the_one_page_for_paper_has_everything_in_order(site, soups):
    page = BeautifulSoup(pdf.one_page(site), "html.parser")
    ids = [node["id"] for node in page.select("article, article [id]")]
    links = [a["href"][1:] for a in page.select("a[href^='#']")]
    assert len(links) > 500
    assert sorted(set(links) - set(ids)) == []
    read = [soups[name] for name in PAGES]
    headings = [h.get_text().rstrip("#") for s in read for h in s.select("article h1")]
    order = [article.select_one("h1, h2").get_text() for article in page.select("article")]
    assert order == headings
    count = lambda what: sum(len(soup.select(what)) for soup in read)
    assert len(page.select("img")) == count("article.bd-article img")
    files = [node["src"] for node in page.select("img:not([src^='data:'])")]
    assert [path for path in files if not (site / path).exists()] == []
    assert len(page.select("div.math")) == count("article div.math")


def test_the_pdf_has_bookmarks_equations_and_figures(
    browser, site, soups, tmp_path, monkeypatch
):
    """Of the cover and one chapter: the whole book takes a minute."""
    chapter = "chapters/02-a-1x1-convolution-is-a-matrix-multiply"
    few = [("", ["index"]), ("The algebra", [chapter])]
    monkeypatch.setattr(pdf, "contents", lambda: few)
    path = tmp_path / "book.pdf"
    pdf.print_book(browser, site, path)
    assert list(tmp_path.iterdir()) == [path]
    reader = pypdf.PdfReader(path)
    cover, part = reader.outline[0], reader.outline[2]
    assert (cover.title, part.title) == ("Fusing Sideways", "The algebra")
    (title, sections), headings = reader.outline[3], soups[chapter].select("article h2")
    assert title.title == soups[chapter].select_one("article h1").get_text().rstrip("#")
    assert [s.title for s in sections] == [h.get_text().rstrip("#") for h in headings]
    text = "".join(page.extract_text() for page in reader.pages)
    figure_numbers = [
        node.get_text().strip() for node in soups[chapter].select("figure .caption-number")
    ]
    assert len(figure_numbers) == 3
    assert [number for number in figure_numbers if number not in text] == []
    pictures = {image.name for page in reader.pages for image in page.images}
    assert len(pictures) >= len(soups[chapter].select("article img"))
    assert "∑" in text
    assert "\\ones" not in text  # TeX that MathJax has not set
    assert "\\(" not in text


def test_the_pdf_has_what_moves_in_order_and_solutions(
    browser, site, soups, tmp_path, monkeypatch
):
    """The tool of chapter 9 as well: its case in words, and nothing about controls."""
    chapters = [
        f"chapters/{name}" for name in ("03-stack-the-weights", "09-when-fusion-pays")
    ]
    monkeypatch.setattr(pdf, "contents", lambda: [("", ["index"]), ("Two", chapters)])
    pdf.print_book(browser, site, tmp_path / "book.pdf")
    text = words_of(tmp_path / "book.pdf")
    player, case = (soups[name] for name in chapters)
    steps = [step.get_text() for step in player.select("fs-player li")]
    assert len(steps) == 9
    assert in_order(text, steps)
    for solution in player.select(".solution > section > p:first-child"):
        assert solution.get_text()[:30] in text
    assert case.select_one("[data-case] p").get_text()[:40] in text
    assert "Where scripts run" not in text
    assert "Show code cell" not in text


def test_a_bookmark_that_chromium_says_twice_is_said_once(tmp_path):
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    above = writer.add_outline_item(title="Part", page_number=0)
    for title in ("TwiceTwice", "Once", "aa b"):
        writer.add_outline_item(title=title, page_number=0, parent=above)
    writer.write(tmp_path / "b.pdf")
    pdf.mend(tmp_path / "b.pdf")
    _, inner = pypdf.PdfReader(tmp_path / "b.pdf").outline
    assert [item.title for item in inner] == ["Twice", "Once", "aa b"]
