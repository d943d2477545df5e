"""Notebooks in a viewer that knows CommonMark, tables and mathematics, and nothing else."""

import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted([*ROOT.glob("chapters/*.ipynb"), *ROOT.glob("back/*.ipynb")])
MATHS = re.compile(r"\$\$.+?\$\$|(?<!\\)\$[^$]+\$", re.S)  # viewers take it out first
RAW = re.compile(
    r"\{\w[\w:-]*\}|:::|```|<!--|-->|\(eq-|:label:|:class:|\\[a-z]+|\*\*|\]\(|\$|^#+ |^\|",
    re.M,
)


def left(source):
    """What of a text is still markup when it is shown; code may hold anything."""
    shown = MarkdownIt("commonmark").enable("table").render(MATHS.sub("maths", source))
    page = BeautifulSoup(shown, "html.parser")
    for code in page.find_all(["code", "pre"]):
        code.decompose()
    return RAW.findall(page.get_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_markup_is_left_in_a_plain_viewer(path):
    cells = nbformat.read(path, as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert len(texts) >= 3
    assert [(text[:60], found) for text in texts if (found := left(text))] == []


@pytest.mark.parametrize(
    "fault",
    [
        "The {term}`launch` costs.",
        ":::{admonition} The question\n:class: opening\nWhy?\n:::",
        "$$\nx\n$$ (eq-x)",
        "It takes {glue:text}`t:.1f` µs, [as said] (there).",
        "**bold **and not",
        "a price of $5",
        "a table\n\n| a | b |\n| 1 | 2 |",
    ],
)
def test_markup_that_is_left_is_seen(fault):
    assert left(fault)
