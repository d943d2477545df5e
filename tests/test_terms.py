"""The glossary: every term is defined once, and linked where a chapter uses it first."""

import copy
import re

import nbformat
import pytest
import terms
from test_chapters import CHAPTERS, each_chapter


def test_what_is_defined_is_what_is_looked_for():
    defined = terms.defined()
    assert defined == sorted(defined, key=str.casefold)
    assert set(defined) == set(terms.TERMS)


@each_chapter
def test_the_first_use_of_a_term_is_a_link(name):
    assert terms.missing(CHAPTERS[name]) == {}


def test_every_term_is_used_in_some_chapter():
    text = "\n".join(c.source for chapter in CHAPTERS.values() for c in chapter.cells)
    linked = {found[2] or found[1] for found in terms.LINK.finditer(text)}
    in_code = {
        "rank",
        "state_dict",
        "torch.compile",
        "torch.fx",
    }  # that is how they are set
    assert set(terms.TERMS) - linked == in_code


@each_chapter
def test_a_link_that_was_removed_is_missed_and_set_again(name):
    chapter = copy.deepcopy(CHAPTERS[name])
    before = [cell.source for cell in chapter.cells]
    cell = next(cell for cell in chapter.cells if terms.LINK.search(cell.source))
    found = terms.LINK.search(cell.source)
    term = found[2] or found[1]
    cell.source = terms.without_links(cell.source, term)
    assert term in terms.missing(chapter)
    terms.link(chapter)
    assert [cell.source for cell in chapter.cells] == before


@pytest.mark.parametrize(
    "text",
    [
        "# A launch",
        "`launch` and ``launch``",
        "$launch$ and $$\nlaunch\n$$",
        "[a launch](08-what-a-launch-costs) and {cite:p}`launch`",
        "```python\nlaunch\n```",
        ":label: ex-launch",
        "relaunching",
    ],
)
def test_what_is_no_prose_is_no_use(text):
    assert terms.missing(page(text)) == {}


def test_the_first_of_several_uses_is_linked_whatever_was_linked_before():
    chapter = page("The *launches* of a\nCUDA\ngraph", "one {term}`launch`, a CUDA graph")
    terms.link(chapter)
    assert [cell.source for cell in chapter.cells] == [
        "The *{term}`launches <launch>`* of a\n{term}`CUDA graph`",
        "one launch, a CUDA graph",
    ]


def page(*texts):
    cells = [nbformat.v4.new_markdown_cell(text) for text in texts]
    return nbformat.v4.new_notebook(cells=cells)


def test_links_within_the_glossary_lead_to_terms():
    text = terms.GLOSSARY.read_text(encoding="utf-8")
    linked = {
        " ".join((found[2] or found[1]).split()) for found in terms.LINK.finditer(text)
    }
    assert linked - set(terms.TERMS) == set()
    assert len(re.findall(r"\{term\}", text)) > len(terms.TERMS)
