"""The built pages: complete, quiet, self-contained; seen in a browser if there is one."""

import re
import shutil
import subprocess
import sysconfig
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
PAGES = ["index", *re.findall(r"file: (\S+)", (ROOT / "_toc.yml").read_text())]
LIBRARY = {"genindex", "search"}  # pages that Sphinx adds


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The book built anew, warnings as errors."""
    out = tmp_path_factory.mktemp("site")
    build = Path(sysconfig.get_path("scripts")) / "jupyter-book"
    command = [
        build,
        "build",
        ROOT,
        "--all",
        "-W",
        "-n",
        "--keep-going",
        "--path-output",
        out,
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return (out / "_build" / "html").resolve()


class Page(HTMLParser):
    """What a page loads, links to, and defines; and its images."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.ids, self.images = [], [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids |= {values["id"]} if values.get("id") else set()
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") not in (
            "canonical",
            "index",
            "next",
            "prev",
        ):
            self.loads.append(values.get("href", ""))
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loads.append(values["src"])
        if tag == "img":
            self.images.append(values.get("alt") or "")


@pytest.fixture(scope="session")
def pages(site):
    found = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {path.relative_to(site): Page(path) for path in found}


def test_every_page_of_the_contents_is_built_and_no_other(site, pages):
    built = {path.with_suffix("").as_posix() for path in pages}
    assert built - LIBRARY == set(PAGES)


def test_no_page_loads_anything_from_elsewhere(pages):
    remote = {load for page in pages.values() for load in page.loads if "//" in load}
    assert remote == set()


def test_every_image_says_what_it_shows(pages):
    bad = [
        alt for page in pages.values() for alt in page.images if not alt or "/" in alt[:12]
    ]
    assert bad == []


def test_every_link_within_the_book_leads_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = site / path
            if parts.path:
                target = (target.parent / unquote(parts.path)).resolve()
            lost = not target.exists()
            if not lost and parts.fragment and target.suffix == ".html":
                lost = unquote(parts.fragment) not in pages[target.relative_to(site)].ids
            if lost:
                broken.append(f"{path}: {link}")
    assert broken == []


def test_every_glued_number_is_there(site):
    for name in PAGES:
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        assert "pasted_" not in text, name
        assert "glue:text" not in text, name


@pytest.fixture(scope="session")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium found; 'apt-get install chromium' or install Chrome")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        yield playwright.chromium.launch(executable_path=BROWSER, args=flags)


def visit(browser, url, width=1280, scheme="light"):
    """A page with the requests it made and the complaints it had."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page = context.new_page()
    page.requests_made, page.complaints = [], []
    page.on("request", lambda request: page.requests_made.append(request.url))
    page.on("requestfailed", lambda request: page.complaints.append(request.url))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "console",
        lambda message: message.type == "error" and page.complaints.append(message.text),
    )
    page.goto(url)
    page.wait_for_load_state("networkidle")
    return page


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_a_page_is_quiet_and_fits(browser, site, name, width, scheme):
    page = visit(browser, (site / f"{name}.html").as_uri(), width, scheme)
    assert [u for u in page.requests_made if not u.startswith(("file:", "data:"))] == []
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if page.locator(".math").count():
        page.wait_for_selector("mjx-container", state="attached")
        assert page.locator("mjx-merror").count() == 0
    page.context.close()


def test_a_player_is_stepped_by_mouse_and_keyboard(browser, site):
    page = visit(browser, (site / "chapters" / "03-stack-the-weights.html").as_uri())
    player = page.locator("fs-player")
    shown = player.locator("figure:visible figcaption")
    assert shown.count() == 1
    first = shown.inner_text()
    player.get_by_label("Next step").click()
    second = shown.inner_text()
    assert second != first
    player.get_by_label("Step", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    assert shown.inner_text() == first
    page.keyboard.press("End")
    assert player.get_by_label("Next step").is_disabled()
    assert "Split" in shown.inner_text()
    page.context.close()


def test_a_player_stands_on_the_page_in_the_dark(browser, site):
    """The theme puts HTML output on a light card, on which a player cannot be read."""
    page = visit(
        browser, (site / "chapters/03-stack-the-weights.html").as_uri(), 1280, "dark"
    )
    card = page.locator(".text_html:has(fs-player)")
    colour = card.evaluate("node => getComputedStyle(node).backgroundColor")
    assert colour == "rgba(0, 0, 0, 0)"
    page.context.close()


def test_without_javascript_a_player_shows_all_its_steps(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "chapters" / "03-stack-the-weights.html").as_uri())
    figures = page.locator("fs-player figure")
    assert figures.count() > 5
    assert all(figures.nth(i).is_visible() for i in range(figures.count()))
    context.close()
