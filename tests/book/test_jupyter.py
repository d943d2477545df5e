"""Chapters as JupyterLab shows them, opened by `make lab` and driven in a browser.

Slow. Each is looked at twice: as a fresh clone has it, which JupyterLab does not trust, so
scripts are stripped; and after Run All.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import chromium
import nbformat
import pytest
from firefox import free_port

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted([*ROOT.glob("chapters/*.ipynb"), *ROOT.glob("back/*.ipynb")])
ONE, THREE, SIX, NINE = (next(ROOT.glob(f"chapters/{n:02}-*.ipynb")) for n in (1, 3, 6, 9))
WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
# What the reader has set; JupyterLab keeps it by user.
THEMES = Path(".jupyter/lab/user-settings/@jupyterlab/apputils-extension")
HELD = {"theme-scrollbars": True, "adaptive-theme": False}

# What only the build of the pages would understand, and what MathJax could not read.
RAW = re.compile(
    r"\{\w[\w:-]*\}|:::|```|<!--|\(eq-|\(at-|:label:|:class:|\\[a-zA-Z]{2,}|\*\*|\$[^$\n]*\$"
)
TEXTS = """[...document.querySelectorAll(".jp-RenderedMarkdown")].map((cell) => {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll("code, pre, mjx-container").forEach((part) => part.remove());
  return copy.textContent;
})"""
WRONG = (
    "mjx-merror, [data-mjx-error], mjx-container [color=red], mjx-container [mathcolor=red]"
)

# The solutions that one can read, by their headings.
OPEN = """(() => {
  const seen = (cell) => cell.getBoundingClientRect().height > 0;
  const cells = [...document.querySelectorAll(".jp-Notebook .jp-Cell")].filter(seen);
  const title = (cell) => cell?.querySelector("h2, h3")?.textContent ?? "";
  return cells.map(title).filter((text, n) =>
    text.startsWith("Solution ") && n + 1 < cells.length && !title(cells[n + 1]));
})()"""

# Whether all cells have run: each prompt is a number, and nothing waits. (That of a cell
# whose source is folded is empty.)
RAN = """() => {
  const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
    .map(({ textContent }) => textContent)
    .filter((text) => text);
  const status = document.querySelector(".jp-Notebook-ExecutionIndicator")?.dataset.status;
  return prompts.every((prompt) => /^\\[\\d+\\]:$/.test(prompt)) && status === "idle";
}"""

ALL = os.environ.get("HFUSION_TESTS") == "all"  # as `make test-all` sets it
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("make"), reason="there is no make here"),
    pytest.mark.skipif(
        not (ALL or importlib.util.find_spec("jupyterlab")),
        reason="JupyterLab is not installed; `make test-all` installs it",
    ),
]


@contextlib.contextmanager
def running(book, home):
    """The address of what `make lab` starts for a reader with this home."""
    port = free_port()
    options = f"OPTIONS=--no-browser --port={port}"
    own = ("HOME", "JUPYTER", "PYTHON", "IPYTHON", "XDG", "MAKE", "MFLAGS")
    env = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    env |= {"HOME": str(home), "PYTHONPATH": str(book / "code")}
    made = ("make", "-o", ".venv/lab.stamp", f"BIN={Path(sys.executable).parent}", "lab")
    with (home / "said").open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [*made, options],
            cwd=book,
            env=env,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/api", process, home / "said")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def wait_for(address, process, said):
    until = time.monotonic() + 90
    while True:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(address).close()
        assert process.poll() is None, said.read_text(encoding="utf-8")
        assert time.monotonic() < until, said.read_text(encoding="utf-8")
        time.sleep(0.5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Of a reader who needs no token, and has set something in JupyterLab."""
    home = tmp_path_factory.mktemp("home")
    (home / THEMES).mkdir(parents=True)
    (home / THEMES / "themes.jupyterlab-settings").write_text(json.dumps(HELD))
    config = {"IdentityProvider": {"token": ""}}
    (home / ".jupyter" / "jupyter_server_config.json").write_text(json.dumps(config))
    return home


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A copy of the book, in a path with a space."""
    book = tmp_path_factory.mktemp("lab") / "a book"
    skip = shutil.ignore_patterns("_build", ".venv", ".git", "__pycache__", ".hypothesis")
    shutil.copytree(ROOT, book, ignore=skip)
    return book


@pytest.fixture(scope="module")
def lab(book, home):
    with running(book, home) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium.launching(*WEBGPU) as launch:
        yield launch()


@pytest.fixture
def opened(lab, browser):
    """Opens a notebook of the book: all of its cells are there."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    elsewhere = []

    def note(request):
        if not request.url.startswith((lab, "data:", "blob:")):
            elsewhere.append(request.url)

    page.on("request", note)

    def visit(path):
        path = ROOT / path
        page.goto(f"{lab}/lab/tree/{path.relative_to(ROOT).as_posix()}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        if path.exists():
            cells = len(nbformat.read(path, as_version=4).cells)
            there = "n => document.querySelectorAll('.jp-Notebook .jp-Cell').length >= n"
            page.wait_for_function(there, arg=cells, timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=60_000)  # the kernel
        page.wait_for_timeout(2000)  # mathematics is set
        return page

    yield visit
    end_kernels(lab, page)
    page.close()
    assert elsewhere == []


def end_kernels(lab, page):
    """So that the same notebook's next cells are numbered from 1."""
    (cookie,) = (c for c in page.context.cookies() if c["name"] == "_xsrf")
    for kernel in page.request.get(f"{lab}/api/kernels").json():
        address = f"{lab}/api/kernels/{kernel['id']}"
        page.request.delete(address, headers={"X-XSRFToken": cookie["value"]})


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_timeout(1000)  # it has begun
    page.wait_for_function(RAN, timeout=200_000)


def faults(page):
    """What a reader would stumble over in the text, by kind."""
    found = {text[:60]: RAW.findall(text) for text in page.evaluate(TEXTS)}
    return {
        "raw": {text: raw for text, raw in found.items() if raw},
        "equations": page.locator(WRONG).all_inner_texts(),
        "asked": page.locator(".jp-Dialog, .Toastify__toast").all_inner_texts(),
        "open": page.evaluate(OPEN),
    }


NONE = {"raw": {}, "equations": [], "asked": [], "open": []}


def changed(page):
    """Whether JupyterLab marks the notebook as changed."""
    return page.locator(".lm-TabBar-tab.jp-mod-dirty").count() > 0


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


# What a reader sees


@each(NOTEBOOKS)
def test_a_fresh_notebook_reads_like_the_book(opened, path):
    page = opened(path)
    assert faults(page) == NONE
    assert not changed(page)
    assert page.locator(".jp-OutputArea script, .jp-OutputArea fs-player").count() == 0


@each([ONE, THREE, SIX, NINE])
def test_a_notebook_that_has_run_does_too(opened, path):
    page = opened(path)
    run_all(page)
    found = faults(page)
    # JupyterLab ends at the last cell, and opens the heading that it is below.
    assert len(found.pop("open")) <= 1
    assert found | {"open": []} == NONE
    for kind in ("error", "stderr"):
        shown = page.locator(f"[data-mime-type='application/vnd.jupyter.{kind}']")
        assert shown.all_inner_texts() == []


def test_a_solution_is_found_from_its_exercise_and_opens(opened):
    page = opened(THREE)
    hidden = page.locator(".jp-MarkdownCell", has_text="Training must not change them")
    exercise = page.locator(".jp-MarkdownCell", has_text="Exercise 3.1").last
    exercise.get_by_role("link", name="Solution").click()
    heading = page.locator(".jp-MarkdownCell", has_text="Solution 3.1").last
    page.wait_for_timeout(1000)
    top = heading.bounding_box()["y"]
    assert 0 <= top <= 900
    assert page.evaluate(OPEN) == []
    heading.get_by_role("button", name="2 cells hidden").click()
    hidden.wait_for(state="visible")
    assert page.evaluate(OPEN) == ["Solution 3.1¶"]


def test_the_first_page_does_too_and_opens_a_chapter(lab, browser):
    page = browser.new_page()
    page.goto(f"{lab}/lab/tree/index.md?reset")
    page.wait_for_selector(".jp-MarkdownViewer table", timeout=60_000)
    (text,) = page.evaluate(TEXTS)
    assert "Three ways in" in text
    assert RAW.findall(text) == []
    for picture in page.locator(".jp-MarkdownViewer img").all():
        assert picture.evaluate("one => one.naturalWidth") > 0
    page.get_by_role("link", name="Stack the weights").first.click()
    page.locator(".lm-TabBar-tab", has_text="03-stack").wait_for()
    page.close()


# What moves


def test_a_player_is_a_still_picture_and_then_moves(opened):
    page = opened(THREE)
    pictures = page.locator(".fs-sheet img")
    assert pictures.count() == 9
    assert pictures.first.evaluate("picture => picture.naturalWidth") > 0
    run_all(page)
    player = page.locator("fs-player").first
    player.scroll_into_view_if_needed()
    place = player.locator("output")
    assert place.inner_text().startswith("1 / 9")
    player.get_by_label("Next step").click()
    assert place.inner_text().startswith("2 / 9")
    player.get_by_label("Next step").press("ArrowRight")
    assert place.inner_text().startswith("3 / 9")
    player.get_by_label("Next step").press("End")
    assert place.inner_text().startswith("9 / 9")
    assert player.locator(".fs-step:visible").count() == 1
    assert page.locator(".jp-Notebook.jp-mod-editMode").count() == 0


def test_a_lab_runs_to_its_end_and_a_walk_walks(opened):
    page = opened(ONE)
    assert page.locator("[data-lab-run]").count() == 0  # nothing to press yet
    run_all(page)
    walk = page.locator("fs-walk").first
    before = walk.locator(".fs-says").inner_text()
    walk.get_by_label("Next").first.press("ArrowRight")
    assert walk.locator(".fs-says").inner_text() != before
    lab = page.locator("[data-lab]").first
    lab.scroll_into_view_if_needed()
    lab.locator("[data-lab-run]").click()
    lab.and_(page.locator("[data-lab-state=done]")).wait_for(timeout=120_000)


# What stays as it was


def test_saving_a_notebook_that_has_run_leaves_its_file_as_it_was(opened, book):
    path = book / THREE.relative_to(ROOT)
    page = opened(THREE)
    run_all(page)
    assert changed(page)
    page.keyboard.press("Control+s")
    page.locator(".lm-TabBar-tab.jp-mod-dirty").wait_for(state="detached")
    assert path.stat().st_mtime_ns > THREE.stat().st_mtime_ns
    assert path.read_bytes() == THREE.read_bytes()


def test_the_readers_settings_are_in_force_and_the_books_where_there_are_none(lab):
    with urllib.request.urlopen(f"{lab}/lab/api/settings") as answer:
        settings = {one["id"]: one for one in json.load(answer)["settings"]}
    themes = settings["@jupyterlab/apputils-extension:themes"]
    assert themes["settings"] == HELD
    assert themes["schema"]["properties"]["adaptive-theme"]["default"] is True
    notes = settings["@jupyterlab/apputils-extension:notification"]
    assert notes["schema"]["properties"]["fetchNews"]["default"] == "false"


def test_the_whole_book_is_there_in_its_look(lab, home):
    with urllib.request.urlopen(f"{lab}/api/contents/back?content=0") as answer:
        assert json.load(answer)["type"] == "directory"
    with urllib.request.urlopen(f"{lab}/custom/custom.css") as answer:
        assert answer.read() == (ROOT / "tools" / "lab" / "custom.css").read_bytes()
    said = (home / "said").read_text(encoding="utf-8")
    assert "git checkout chapters back" in said
    assert ("You are root" in said) == (os.geteuid() == 0)


# That a fault would be seen

text = nbformat.v4.new_markdown_cell
PLANTED = {
    "raw: a role": [text("The {term}`launch` costs.")],
    "raw: a directive": [text(":::{admonition} The question\n:class: opening\nWhy?\n:::")],
    "raw: a label": [text("$$\nx\n$$ (eq-x)")],
    "equations: an unknown macro": [text("$$\n\\nosuchmacro x\n$$")],
    "open: a solution": [text("### Solution 1.1"), text("So.")],
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_seen(opened, book, fault):
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=PLANTED[fault], metadata=metadata)
    nbformat.write(notebook, book / "planted.ipynb")
    found = faults(opened("planted.ipynb"))
    kind = fault.partition(":")[0]
    assert found[kind]
    assert {**found, kind: NONE[kind]} == NONE
