"""The glossary: every term is defined once, and linked where a page uses it first."""

import json
import re

import plain
import pytest
import terms

from chapters import CHAPTERS, each_chapter


def linked(text):
    """The terms that a text in MyST links."""
    return [" ".join((found[2] or found[1]).split()) for found in terms.LINK.finditer(text)]


def in_myst(name):
    cells = plain.to_myst(CHAPTERS[name], name)["cells"]
    return "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")


def test_what_is_defined_is_what_is_looked_for():
    defined = terms.defined()
    assert defined == sorted(defined, key=str.casefold)
    assert set(defined) == set(terms.TERMS)


@each_chapter
def test_a_chapter_writes_words_and_the_build_makes_each_a_link_once(name):
    assert "{term}" not in "".join(cell.source for cell in CHAPTERS[name].cells)
    found = linked(in_myst(name))
    assert len(found) == len(set(found)) > 10


def test_every_term_is_used_in_some_chapter():
    in_code = {
        "alias",
        "rank",
        "state_dict",
        "torch.compile",
        "torch.fx",
    }  # how they are set
    assert set(terms.TERMS) - set(linked("".join(map(in_myst, CHAPTERS)))) <= in_code


def test_every_occurrence_that_the_patterns_see_comes_after_the_link():
    """By another way than the build's: the links' words taken out, nothing comes before."""
    text = in_myst("08-what-a-launch-costs")
    for found in terms.LINK.finditer(text):
        before = terms.prose(text[: found.start()])
        assert not re.search(terms.TERMS[linked(found[0])[0]], before, re.IGNORECASE), (
            found[0]
        )


@pytest.mark.parametrize(
    "text",
    [
        "# A launch",
        "`launch` and ``launch``",
        "$launch$ and $$\nlaunch\n$$",
        "[a launch](08-what-a-launch-costs) and {cite:p}`launch`",
        "```python\nlaunch\n```",
        ":label: ex-launch",
        "(at-the-launch)=",
        "relaunching",
    ],
)
def test_what_is_no_prose_is_no_use(text):
    cells = [{"source": text}]
    terms.link(cells)
    assert cells == [{"source": text}]


def test_the_first_use_is_linked_and_longer_terms_come_first():
    cells = [
        {"source": "The *launches* of a\nCUDA\ngraph"},
        {"source": "a launch, a graph"},
        {"source": "a hidden reorder"},
    ]
    terms.link(cells)
    assert [cell["source"] for cell in cells] == [
        "The *{term}`launches <launch>`* of a\n{term}`CUDA graph`",
        "a launch, a {term}`graph`",
        "a {term}`hidden reorder <hidden copy>`",
    ]


def test_links_within_the_glossary_lead_to_terms():
    text = terms.GLOSSARY.read_text(encoding="utf-8")
    assert set(linked(text)) - set(terms.TERMS) == set()
    assert len(re.findall(r"\{term\}", text)) > len(terms.TERMS)


# Where its entries lead

TO_SECTION = re.compile(r"\]\(([^\s()#]*\.ipynb)#([^\s()]+)\)")


def entries():
    """{term: what the glossary says of it}"""
    text = terms.GLOSSARY.read_text(encoding="utf-8").partition("```{glossary}\n")[2]
    blocks = text.removesuffix("```\n").strip().split("\n\n")
    return dict(block.split("\n", 1) for block in blocks)


def anchors(notebook):
    """What links call the headings of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return {plain.anchor(head) for text in texts for head in plain.HEADING.findall(text)}


@pytest.mark.parametrize("term", terms.defined())
def test_an_entry_is_short_and_leads_to_the_section_that_explains_it(term):
    *said, link = entries()[term].splitlines()
    assert len(terms.LINK.sub(r"\1", " ".join(said)).split()) <= 40
    assert TO_SECTION.search(link)


PAGES = [
    path
    for pattern in ("chapters/*.ipynb", "back/*.ipynb", "back/*.md")
    for path in sorted(plain.ROOT.glob(pattern))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_sections_of_other_pages_lead_to_headings(page):
    found = TO_SECTION.findall(page.read_text(encoding="utf-8"))
    wrong = [
        f"{to}#{name}"
        for to, name in found
        if name not in anchors((page.parent / to).resolve())
    ]
    assert wrong == []
