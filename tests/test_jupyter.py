"""Chapters as JupyterLab shows them, opened by `make lab` and driven in a browser.

Slow. Each is looked at twice: as a fresh clone has it, which JupyterLab does not trust, so
scripts are stripped; and after Run All.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import chromium
import nbformat
import pytest
from firefox import free_port

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = [next(ROOT.glob(f"chapters/{number:02}-*.ipynb")) for number in (1, 3, 6, 9)]
WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")

# What only the build of the pages would understand, and what MathJax could not read.
RAW = re.compile(
    r"\{\w[\w:-]*\}|:::|```|<!--|\(eq-|\(at-|:label:|:class:|\\[a-zA-Z]{2,}|\*\*|\$[^$\n]*\$"
)
TEXTS = """[...document.querySelectorAll(".jp-Cell .jp-RenderedMarkdown")].map((cell) => {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll("code, pre, mjx-container").forEach((part) => part.remove());
  return copy.textContent;
})"""

# A cell below the heading of a solution that one can see.
BELOW_SOLUTIONS = (
    ".jp-MarkdownCell:has(h3:text-matches('^Solution')) + .jp-Cell:visible"
    ":not(:has(h3:text-matches('^Solution')))"
)
# Whether all of n cells have run: the last has its number, and none a star. (A cell whose
# source is folded has neither.)
RAN = """n => {
  const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
    .map(({ textContent }) => textContent);
  const status = document.querySelector(".jp-Notebook-ExecutionIndicator")?.dataset.status;
  return prompts.includes(`[${n}]:`) && !prompts.includes("[*]:") && status === "idle";
}"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("make"), reason="there is no make here"),
]


def command(book, *options):
    """What `make lab` runs, with options, and this environment's JupyterLab."""
    asked = ("make", "--no-print-directory", "-n", "-o", ".venv/lab.stamp", "lab")
    said = subprocess.run(
        [*asked, f"OPTIONS={' '.join(options)}"], cwd=book, capture_output=True, text=True
    ).stdout
    words = shlex.split(said.splitlines()[-1])
    return [sys.executable, "-m", "jupyterlab", *words[2:]]


@contextlib.contextmanager
def running(book, home):
    """The address of a JupyterLab of nobody's, which has a copy of the book."""
    port = free_port()
    options = ("--no-browser", f"--port={port}", "--IdentityProvider.token=")
    own = {"HOME": str(home), "PYTHONPATH": str(ROOT / "code"), "PATH": os.environ["PATH"]}
    process = subprocess.Popen(
        command(book, *options),
        cwd=book,
        env=own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api").close()
                break
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    pytest.importorskip("jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    book = folder / "book"
    skip = shutil.ignore_patterns("_build", ".venv", ".git", "__pycache__", ".hypothesis")
    shutil.copytree(ROOT, book, ignore=skip)
    with running(book, folder / "home") as address:
        yield address, book


@pytest.fixture(scope="module")
def browser():
    with chromium.launching(*WEBGPU) as launch:
        yield launch()


@pytest.fixture
def opened(lab, browser):
    """Opens a notebook of the book: all of its cells are there."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})

    def visit(path):
        page.goto(f"{lab[0]}/lab/tree/{path.relative_to(ROOT).as_posix()}?reset")
        cells = len(nbformat.read(path, as_version=4).cells)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        there = "n => document.querySelectorAll('.jp-Notebook .jp-Cell').length >= n"
        page.wait_for_function(there, arg=cells, timeout=60_000)
        page.wait_for_timeout(3000)  # mathematics is set
        return page

    yield visit
    page.close()


def run_all(page, path):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    count = sum(c.cell_type == "code" for c in nbformat.read(path, as_version=4).cells)
    page.wait_for_timeout(1000)  # it has begun
    page.wait_for_function(RAN, arg=count, timeout=200_000)


def faults(page):
    """What a reader would stumble over in the text."""
    found = [(text[:60], RAW.findall(text)) for text in page.evaluate(TEXTS)]
    found = [(text, raw) for text, raw in found if raw]
    wrong = page.locator("mjx-merror, [data-mjx-error], mjx-container [style*=red]").count()
    return found, wrong, page.locator(".jp-Dialog").count()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem[:2])
def test_a_chapter_reads_like_the_book_before_and_after_it_runs(opened, path):
    page = opened(path)
    assert faults(page) == ([], 0, 0)
    assert page.locator("script", has_text="fs-player").count() == 0  # not trusted
    last = (
        nbformat.read(path, as_version=4).cells[-1].source.split("\n", 2)[-1].strip()[:30]
    )
    assert not page.get_by_text(last).last.is_visible()
    run_all(page, path)
    assert faults(page) == ([], 0, 0)
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0


def test_a_solution_opens(opened):
    path = CHAPTERS[1]
    page = opened(path)
    hidden = page.locator(".jp-MarkdownCell", has_text="They must stay zeros in training")
    assert not hidden.is_visible()
    heading = page.locator(".jp-MarkdownCell", has_text="Solution 3.1").last
    heading.scroll_into_view_if_needed()
    heading.click()
    page.keyboard.press("ArrowRight")
    hidden.wait_for(state="visible")


def test_a_player_is_a_still_picture_and_then_moves(opened):
    path = CHAPTERS[1]
    page = opened(path)
    pictures = page.locator(".fs-sheet img")
    assert pictures.count() == 9
    assert pictures.first.evaluate("picture => picture.naturalWidth") > 0
    run_all(page, path)
    player = page.locator("fs-player").first
    player.scroll_into_view_if_needed()
    place = player.locator("output")
    assert place.inner_text().startswith("1 / 9")
    player.get_by_label("Next step").click()
    assert place.inner_text().startswith("2 / 9")
    player.get_by_label("Next step").press("ArrowRight")
    assert place.inner_text().startswith("3 / 9")
    assert player.locator(".fs-step:visible").count() == 1


def test_a_lab_runs_to_its_end(opened):
    path = CHAPTERS[0]
    page = opened(path)
    assert page.locator("[data-lab-run]").count() == 0  # nothing to press yet
    run_all(page, path)
    lab = page.locator("[data-lab]").first
    lab.scroll_into_view_if_needed()
    lab.locator("[data-lab-run]").click()
    lab.and_(page.locator("[data-lab-state=done]")).wait_for(timeout=120_000)


def test_a_link_opens_another_chapter(opened):
    page = opened(CHAPTERS[1])
    page.locator(".jp-RenderedMarkdown a", has_text="chapter 2").first.click()
    page.locator(".lm-TabBar-tab", has_text="02-a-1x1").wait_for()


PLANTED = {
    "a role": ("The {term}`launch` costs.", 0),
    "a directive": (":::{admonition} The question\n:class: opening\nWhy?\n:::", 0),
    "an unknown macro": ("$$\n\\nosuchmacro x\n$$", 1),
    "an equation's label": ("$$\nx\n$$ (eq-x)", 0),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_seen(lab, browser, fault):
    source, wrong = PLANTED[fault]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)])
    address, book = lab
    nbformat.write(notebook, book / "planted.ipynb")
    page = browser.new_page()
    page.goto(f"{address}/lab/tree/planted.ipynb?reset")
    page.wait_for_selector(".jp-RenderedMarkdown", timeout=60_000)
    page.wait_for_timeout(3000)
    found, errors, _ = faults(page)
    page.close()
    assert bool(found) or errors
    assert errors >= wrong
