"""Pages that measure, with LIVE = True: whole, in time, and stopped in the middle."""

import asyncio
import os
import re
import threading
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.stem: path
    for part in ("chapters", "back")
    for path in (ROOT / part).glob("*.ipynb")
}
FLAGS = """\
# True: measure on this machine now, instead of reading records,
LIVE = False
LIVE_MINUTES = """
EXPLAINED = "how-measured.ipynb#Measure-in-a-page"
MEASURES = re.compile(r"experiments\.(?:several|results?)\(([^)]*)\)")


def source(path, kind):
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == kind)


def lacks(code, prose):
    """What a page that measures lacks: its flags, their use, or a link to what they do."""
    calls = [" ".join(call.split()) for call in MEASURES.findall(code)]
    if not calls:
        return []
    found = [call for call in calls if "LIVE, LIVE_MINUTES" not in call]
    found += [FLAGS] if code.count(FLAGS) != 1 else []
    return found if f"{EXPLAINED})" in prose else [*found, EXPLAINED]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_measures_has_its_flags_and_links_to_what_they_do(name):
    assert lacks(source(PAGES[name], "code"), source(PAGES[name], "markdown")) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIVE, LIVE_MINUTES", "LIVE"),
        ("LIVE = False", "LIVE = True"),
        ("LIVE_MINUTES = ", "MINUTES = "),
        (EXPLAINED, "how-measured.ipynb"),
    ],
)
def test_a_page_that_lacks_one_is_noticed(old, new):
    page = PAGES["13-the-same-trick-elsewhere"]
    whole = [source(page, kind) for kind in ("code", "markdown")]
    changed = [text.replace(old, new) for text in whole]
    assert changed != whole
    assert lacks(*changed)


def run(path, folder, minutes, stop=False):
    """A notebook run in `folder` with LIVE, and the seconds that its measuring took.

    stop: interrupt, as the stop button does, once a case is done.
    """
    notebook = nbformat.read(path, as_version=4)
    began, took = {}, {}

    def begins(cell, cell_index):
        began[cell_index] = time.monotonic()
        if stop and MEASURES.search(cell.source):
            threading.Thread(target=press, args=(cell,), daemon=True).start()

    def ends(cell, cell_index, execute_reply):
        if MEASURES.search(cell.source):
            took[cell_index] = time.monotonic() - began[cell_index]

    def press(cell):
        while not re.search(r"\| [1-9]\d*/", text(cell)):
            time.sleep(0.1)
        asyncio.run(client.km.interrupt_kernel())

    client = NotebookClient(
        notebook, timeout=None, resources={"metadata": {"path": str(folder)}},
        on_cell_execute=begins, on_cell_executed=ends,
    )  # fmt: skip
    lived = {"HFUSION_LIVE": "1", "HFUSION_LIVE_MINUTES": str(minutes)}
    client.execute(env=os.environ | lived)
    return notebook, took


def text(cell):
    """What a cell has printed."""
    streams = [out for out in cell.get("outputs", []) if out.output_type == "stream"]
    return "".join(out.text for out in streams)


def seen(cell):
    """What stays to be read of it: a line that was drawn anew is there once."""
    lines = text(cell).split("\n")
    return [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [False, True])
def test_a_page_measures_to_its_end_or_until_it_is_stopped(stop, tmp_path):
    minutes = 0.5
    page, took = run(PAGES["13-the-same-trick-elsewhere"], tmp_path, minutes, stop)
    (index, seconds), = took.items()  # fmt: skip
    assert seconds < 60 * minutes + 5
    opening, bar, *rest = seen(page.cells[index])
    assert re.fullmatch(
        r"Measuring on .*, 0\.5 minutes at most\. The stop button .*", opening
    )
    assert re.match(r"projections: +\d+%\|.*\| \d+/\d+ cases", bar)
    words = "\n".join(rest)
    stopped = re.search(r"Stopped\. Measured: projections (\d+) of (\d+)", words)
    assert bool(stopped) == stop
    assert not stopped or 1 <= int(stopped[1]) < int(stopped[2])
    assert re.search(r"^.*: [1-9]\d* of \d+ cases$", words, re.M)
    assert "gain over separate" in words
