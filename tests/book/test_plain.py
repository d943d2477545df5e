"""Plain notebooks become MyST; each form has its place, and what is no form stays."""

import json
import re

import plain
import pytest
import written

import chapters

LIN = "https://arxiv.org/abs/1312.4400"
SZEGEDY = "https://arxiv.org/abs/1409.4842"


def text(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source="", kind="image/png", name=None, figure="fig-it"):
    metadata = {"scrapbook": {"name": name}} if name else {}
    outputs = [{"output_type": "display_data", "data": {kind: "…"}, "metadata": metadata}]
    about = {"mystnb": {"figure": {"name": figure}}}
    return {"cell_type": "code", "metadata": about, "source": source, "outputs": outputs}


def myst(*cells, page="03-stack"):
    return plain.to_myst({"cells": list(cells), "nbformat": 4}, page)["cells"]


FORMS = {
    "> **Takeaway**\n>\n> One.\n> - two\n\nThree": (
        ":::{admonition} Takeaway\n:class: takeaway\nOne.\n- two\n:::\n\nThree"
    ),
    "> **Somebody** said": "> **Somebody** said",
    "> **Unknown**\n>\n> One.": "> **Unknown**\n>\n> One.",
    "$$\nx \\tag{3.2}\n$$": "$$\nx\n$$ (eq-3-2)",
    f"so [[Lin *et al.*, 2013]({LIN})]": "so {cite:p}`lin2013`",
    f"[[A, 2013]({LIN}),\n[B, 2014]({SZEGEDY})]": "{cite:p}`lin2013,szegedy2014`",
    f"by [Lin *et al.* [2013]]({LIN})": "by {cite:t}`lin2013`",
    f"[[3]({LIN})]": "{cite:labelpar}`lin2013`",
    "[[A](https://example.org)]": "[[A](https://example.org)]",
    f"[plainly]({LIN})": f"[plainly]({LIN})",
    "it is 1.06<!-- gain:.2f -->, or 3<!-- n -->": "it is 1.06, or 3",
}


@pytest.mark.parametrize("source", FORMS)
def test_a_form_becomes_its_role(source):
    (cell,) = myst(text(source))
    assert cell["source"].strip() == FORMS[source]


def test_references_to_equations_are_links_where_the_book_has_them():
    (cell,) = myst(text("By (3.2), not (99.9), `(3.2)` nor $(3.2)$."))
    assert cell["source"] == "By {eq}`eq-3-2`, not (99.9), `(3.2)` nor $(3.2)$."


def test_a_caption_goes_to_its_picture():
    (cell,) = myst(code(), text("**Figure 3.1.** It is $X$."))
    assert cell["metadata"]["mystnb"]["figure"] == {
        "name": "fig-it",
        "caption": "It is $X$.",
    }


def test_a_caption_of_a_drawing_becomes_a_figure_of_its_own():
    drawing, cell = myst(
        code(kind="text/html", name="walk"), text("**Figure 3.1.** It is.")
    )
    assert cell["source"] == "``````{glue:figure} walk\n:name: fig-it\nIt is.\n``````"
    assert "caption" not in drawing["metadata"]["mystnb"]["figure"]


def test_solutions_come_back_to_their_exercises_in_folds():
    cells = myst(
        text("### Exercise 3.1\n\nWhy?\n\n[Solution](#Solution-3.1)"),
        text("### Exercise 3.2\n\nAnd?\n\n[Solution](#Solution-3.2)"),
        text("## Summary"),
        text("## Solutions"),
        text("### Solution 3.1"),
        text("So."),
        code("answer()"),
        text("### Solution 3.2"),
        text("Thus."),
    )
    assert [cell["source"] for cell in cells] == [
        "``````{exercise}\n:label: ex-3-1\nWhy?\n``````",
        "``````{solution-start} ex-3-1\n:class: dropdown\n``````\n\nSo.",
        "answer()",
        "``````{solution-end}\n``````",
        "``````{exercise}\n:label: ex-3-2\nAnd?\n``````",
        "``````{solution} ex-3-2\n:class: dropdown\nThus.\n``````",
        "## Summary",
    ]


def test_a_solution_without_an_exercise_is_refused():
    with pytest.raises(ValueError, match=r"03-stack: no exercise for .*'3\.7'"):
        myst(text("## Solutions"), text("### Solution 3.7"), text("So."))


def test_links_within_a_notebook_lead_to_headings_and_exercises():
    cells = myst(
        text("[why](#It-is,-so) and [do](#Exercise-3.1)"),
        text("## It is, so\n\n## Else"),
        text("### Exercise 3.1\n\nWhy?"),
    )
    assert cells[0]["source"] == "{ref}`why <at-it-is-so>` and {ref}`do <ex-3-1>`"
    assert cells[1]["source"] == "(at-it-is-so)=\n## It is, so\n\n## Else"


def test_a_link_leads_to_an_exercise_of_a_page_that_is_no_chapter():
    cells = [text("[Do](#Exercise-1)"), text("### Exercise 1\n\nWhy?")]
    link, exercise = plain.to_myst({"cells": cells}, "appendix")["cells"]
    assert link["source"] == "{ref}`Do <ex-appendix-1>`"
    assert ":label: ex-appendix-1" in exercise["source"]


@pytest.mark.parametrize("name", list(chapters.NOTEBOOKS))
def test_a_notebook_holds_no_markup_that_only_the_build_knows(name):
    """Roles, directives, their options, targets, labels of equations, own macros."""
    wrong = r"\{[\w:]+\}`|^\s*(?:`{3,}|:{3,})\{|^:\w+:|^\([\w-]+\)=$|\$\$ \(|\\W\b|\\ones\b"
    for cell in written.texts(chapters.NOTEBOOKS[name]):
        assert not re.search(wrong, cell.source, re.M), cell.source[:80]


@pytest.mark.parametrize("name", list(chapters.NOTEBOOKS))
def test_the_build_turns_all_of_a_notebook(name):
    notebook = json.loads(json.dumps(chapters.NOTEBOOKS[name]))
    cells = [
        c for c in plain.to_myst(notebook, name)["cells"] if c["cell_type"] == "markdown"
    ]
    left = r"<!-- \w|\\tag|\*\*Figure [\d.]+\*\*|### (?:Exercise|Solution)|> \*\*"
    for cell in cells:
        assert not re.search(left, cell["source"]), cell["source"][:80]


# What links of citations say, held to references.bib


def named(key):
    """How a source is cited: ("Lin *et al.*", "2013"); "n.d." if it has no year."""
    bibliography = (plain.ROOT / "references.bib").read_text(encoding="utf-8")
    entry = re.search(rf"^@\w+\{{{key},(.*?)(?=^@|\Z)", bibliography, re.M | re.S)[1]
    author = re.search(r"\bauthor = \{(.*?)\},\s+title", entry, re.S)[1]
    names = [one.strip() for one in re.split(r"\s+and\s+", author)]
    last = [one.split(",")[0].replace("{", "").replace("}", "") for one in names]
    year = re.search(r"\byear = \{(\d+)\}", entry)
    people = {1: last[0], 2: " and ".join(last)}.get(len(last), f"{last[0]} *et al.*")
    return people, year[1] if year else "n.d."


def citations(text):
    """What a text cites: [(what it says, what it should say)]."""
    known = plain.entries()
    for links in plain.PARENTHETICAL.finditer(text):
        for words, address in re.findall(plain.LINK, links[1]):
            if address in known and not words.isdigit():
                yield words, ", ".join(named(known[address]))
    for link in plain.TEXTUAL.finditer(text):
        if link[1] in known:
            yield link[0].partition("](http")[0], "[{} [{}]".format(*named(known[link[1]]))


@pytest.mark.parametrize("name", list(chapters.CHAPTERS))
def test_a_citation_names_its_source(name):
    text = "\n".join(cell.source for cell in written.texts(chapters.CHAPTERS[name]))
    found = list(citations(" ".join(text.replace("\n> ", " ").split())))
    assert len(found) > 1
    assert [said for said, named_so in found if said != named_so] == []


# The first page

FIRST = """# A book

![A drawing](cover.svg)

A [launch](back/glossary.md#term) costs,
see the [glossary](back/glossary.md).

## Ways

### One

*Why?* So.

- 1 [a](a.ipynb)

### Two

How?

- 2 [b](b.ipynb)
- [c](c.md)

Or [a](a.ipynb)
"""


def test_the_first_page_has_its_lead_and_its_cards():
    assert (
        plain.front(FIRST).replace(plain.FENCE, "FENCE")
        == """# A book

FENCE{image} cover.svg
:alt: A drawing
:class: fs-picture
FENCE

FENCE{div} fs-lead
A {term}`launch` costs,
see the [glossary](back/glossary.md).
FENCE

## Ways

::::::{grid} 1 1 3 3
:gutter: 3

FENCE{grid-item-card} One
:class-card: fs-way-1
*Why?* So.

- 1 [a](a.ipynb)
FENCE

FENCE{grid-item-card} Two
:class-card: fs-way-2
How?

- 2 [b](b.ipynb)
- [c](c.md)
FENCE

::::::

Or [a](a.ipynb)
"""
    )


def test_the_first_page_of_the_book_has_every_form_and_is_plain():
    source = (plain.ROOT / "index.md").read_text(encoding="utf-8")
    assert re.findall(r":::|\{[\w-]+\}", source) == []
    page = plain.front(source)
    found = [page.count(part) for part in ("{image}", "{div} fs-lead", "{grid}", "{term}")]
    assert (found, page.count("{grid-item-card}")) == ([2, 1, 1, 3], 3)
