r"""Notebooks are written in what every viewer shows; the build makes MyST of it.

A notebook's text is CommonMark, tables and mathematics. Some of its forms mean more, and
become directives and roles, which on the pages have numbers, links and folds:

    > **Takeaway**                     a box; BOXES has the titles
    $$ … \tag{3.2} $$, and (3.2)       an equation with its number, and a reference to it
    **Figure 3.2.** A caption.         a cell of its own, below the cell of the figure
    ### Exercise 3.1                   a cell of its own
    ### Solution 3.1                   a cell of its own; those that follow, at the end
    [[Lin *et al.*, 2013](https://…)]  a citation, by the address in references.bib
    [Lin *et al.* [2013]](https://…)   the same within a sentence
    1.06<!-- gain:.2f -->              a number that a cell has glued, by this name
    [why](#A-heading)                  a link within the notebook
    [why](03-stack.ipynb#A-heading)    a link to a section of another

Words of the glossary stay words: `terms.py` links the first use of each.

The first page, index.md, is written so too; `front` has its forms.
"""

import json
import re
from functools import cache
from pathlib import Path

import subjects
import terms

ROOT = Path(__file__).resolve().parent.parent
BOXES = {"The question": "opening", "Takeaway": "takeaway"}  # title: class
SOLUTIONS = "## Solutions"
FENCE = "``````"

NUMBER = r"\d+(?:\.\d+)?"
LINK = r"\[([^\[\]]*)\]\((https?://[^\s)]*)\)"
QUOTE = re.compile(r"^> \*\*(.+)\*\*\n((?:>.*(?:\n|\Z))*)", re.M)
TAG = re.compile(rf"\s*\\tag{{({NUMBER})}}\s*\$\$")
REFERENCE = re.compile(r"\((\d+\.\d+)\)")
CAPTION = re.compile(rf"\*\*Figure ({NUMBER})\.\*\* (.*)", re.S)
EXERCISE = re.compile(rf"### Exercise ({NUMBER})\n+(.*)", re.S)
SOLUTION = re.compile(rf"### Solution ({NUMBER})")
TO_SOLUTION = re.compile(rf"\n+\[Solution\]\(#Solution-{NUMBER}\)\s*\Z")
PARENTHETICAL = re.compile(rf"\[({LINK}(?:,\s+{LINK})*)\]")
TEXTUAL = re.compile(r"\[[^\[\]]*\[[^\[\]]*\]\]\((https?://[^\s)]*)\)")
COMPUTED = re.compile(r"<!-- \w+(?::\S*)? -->")
WITHIN = re.compile(r"\[([^\[\]]*)\]\(#([^\s)]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.M)
PICTURE = re.compile(r"^!\[(.*)\]\((\S+)\)$", re.M)
COVER = re.compile(r"^(!\[(.*)\]\((\S+)\))\n\n((?:.+\n)+)", re.M)
CARDS = re.compile(r"(?:^### .+\n\n(?:.+\n)+\n(?:- .+\n)+\n)+", re.M)
TERM = re.compile(r"\[([^\[\]]*)\]\(back/glossary\.md#term\)")


def read(app, docname, source):
    """Before Sphinx parses a notebook or index.md; for its event "source-read"."""
    if docname == "index":
        source[0] = front(source[0])
    elif Path(app.env.doc2path(docname)).suffix == ".ipynb":
        page = to_myst(json.loads(source[0]), Path(docname).name)
        source[0] = json.dumps(page)


def to_myst(notebook, page):
    """A notebook, as its file has it, with MyST for text; page: "03-stack-the-weights"."""
    cells = [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"]]
    cells = with_solutions(with_captions(cells), page)
    texts = [cell for cell in cells if is_text(cell)]
    for cell in texts:
        cell["source"] = in_myst(subjects.add(cell["source"], page), page)
    aim(texts, page)
    terms.link(texts)
    return notebook | {"cells": cells}


def front(text):
    """The first page: a cover with its lead, ways in as cards, and terms that it links."""

    def pictured(found):
        return directive("image", found[2], f":alt: {found[1]}\n:class: fs-picture", "")

    def covered(cover):
        return f"{cover[1]}\n\n{directive('div', 'fs-lead', '', cover[4])}\n"

    def in_cards(cards):
        _, *each = re.split(r"^### ", cards[0], flags=re.M)
        made = ["::::::{grid} 1 1 3 3\n:gutter: 3"]
        for n, card in enumerate(each, start=1):
            title, body = card.split("\n", 1)
            name = f":class-card: fs-way-{n}"
            made.append(directive("grid-item-card", title, name, body))
        return "\n\n".join([*made, "::::::\n\n"])

    text = CARDS.sub(in_cards, COVER.sub(covered, text, count=1))
    text = PICTURE.sub(pictured, text)
    return TERM.sub(r"{term}`\1`", text)


def is_text(cell, form=None):
    """Whether a cell is text, and of the form, if one is given."""
    of_form = form is None or form.fullmatch(cell["source"].strip())
    return of_form if cell["cell_type"] == "markdown" else None


def with_captions(cells):
    """Each caption with the figure above: a picture, or a drawing that was glued."""
    made = []
    for cell in cells:
        if not (caption := is_text(cell, CAPTION)):
            made.append(cell)
            continue
        outputs, about = made[-1]["outputs"], made[-1]["metadata"]["mystnb"]
        figure = about["figure"] | {"caption": caption[2]}
        if any(
            kind.startswith("image/") for out in outputs for kind in out.get("data", ())
        ):
            metadata = made[-1]["metadata"] | {"mystnb": about | {"figure": figure}}
            made[-1] = made[-1] | {"metadata": metadata}
        else:
            named = [out["metadata"].get("scrapbook", {}).get("name") for out in outputs]
            block = directive("glue:figure", *named, ":name: " + figure["name"], caption[2])
            made.append(cell | {"source": block})
    return made


def with_solutions(cells, page):
    """Each exercise with its solution, folded, below it; solutions stand at the end."""
    solutions, current = {}, (made := [])
    for cell in cells:
        if start := is_text(cell, SOLUTION):
            current = solutions[start[1]] = []
        elif cell["source"].strip() != SOLUTIONS:
            current.append(cell)
    both = []
    for cell in made:
        if not (exercise := is_text(cell, EXERCISE)):
            both.append(cell)
            continue
        name = label("ex", exercise[1], page)
        body = TO_SOLUTION.sub("", exercise[2])
        both.append(cell | {"source": directive("exercise", "", ":label: " + name, body)})
        both += folded(name, solutions.pop(exercise[1], []))
    if solutions:
        raise ValueError(f"{page}: no exercise for the solutions {[*solutions]}")
    return both


def folded(name, cells):
    """A solution as a fold; one that holds code begins and ends in cells of its own."""
    if len(cells) == 1:
        block = directive("solution", name, ":class: dropdown", cells[0]["source"])
        return [cells[0] | {"source": block}]
    if not cells:
        return []
    start = directive("solution-start", name, ":class: dropdown", "")
    end = directive("solution-end", "", "", "")
    first = cells[0] | {"source": f"{start}\n\n{cells[0]['source']}"}
    return [first, *cells[1:], {"cell_type": "markdown", "metadata": {}, "source": end}]


def directive(name, argument, option, body):
    lines = [f"{FENCE}{{{name}}} {argument}".strip(), option, body.strip(), FENCE]
    return "\n".join(line for line in lines if line)


def label(kind, number, page):
    """What an equation or exercise is called: in chapters by its number alone."""
    own = number.replace(".", "-") if "." in number else f"{page}-{number}"
    return f"{kind}-{own}"


def in_myst(text, page):
    """A cell's boxes, equations, citations and computed numbers."""
    text = QUOTE.sub(boxed, text)
    text = TAG.sub(lambda tag: f"\n$$ ({label('eq', tag[1], page)})", text)
    text = PARENTHETICAL.sub(cited, text)
    text = TEXTUAL.sub(lambda one: cite("cite:t", [one[1]]) or one[0], text)
    text = COMPUTED.sub("", text)
    return terms.in_prose(REFERENCE, referred, text)


def boxed(quote):
    title, body = quote.groups()
    if title not in BOXES:
        return quote[0]
    body = re.sub(r"^> ?", "", body, flags=re.M).strip()
    return f":::{{admonition}} {title}\n:class: {BOXES[title]}\n{body}\n:::\n"


def cited(links):
    """Links in brackets: to sources by their names, or by numbers, as tables have them."""
    found = re.findall(LINK, links[1])
    numbers = all(name.isdigit() for name, _ in found)
    role = "cite:labelpar" if numbers else "cite:p"
    return cite(role, [address for _, address in found]) or links[0]


def cite(role, addresses):
    """The role for entries of references.bib; nothing if one of them is no entry's."""
    keys = [entries().get(address) for address in addresses]
    return f"{{{role}}}`{','.join(keys)}`" if all(keys) else None


@cache
def entries():
    """The keys of references.bib by address."""
    text = (ROOT / "references.bib").read_text(encoding="utf-8")
    found = re.findall(r"^@\w+\{(.*?),(.*?)(?=^@|\Z)", text, re.M | re.S)
    return {re.search(r"\burl = \{(.*?)\}", entry)[1]: key for key, entry in found}


def referred(number):
    """(3.2), where the book has that equation."""
    return (
        f"{{eq}}`{label('eq', number[1], '')}`" if number[1] in equations() else number[0]
    )


@cache
def equations():
    """The numbers of all equations of the chapters."""
    texts = [path.read_text(encoding="utf-8") for path in ROOT.glob("chapters/*.ipynb")]
    return {number for text in texts for number in re.findall(r"\\\\tag\{([\d.]+)\}", text)}


def anchor(heading):
    """What a link calls a heading, as in JupyterLab."""
    return heading.replace(" ", "-")


def aim(texts, page):
    """Links within the notebook, to headings and exercises, in all its cells of text."""
    wanted = {name for cell in texts for _, name in WITHIN.findall(cell["source"])}
    names = {name: "at-" + re.sub(r"\W+", "-", name.lower()) for name in wanted}
    names |= {
        name: label("ex", name[9:], page) for name in wanted if name[:9] == "Exercise-"
    }

    def marked(heading):
        name = anchor(heading[1])
        return f"({names[name]})=\n{heading[0]}" if name in names else heading[0]

    for cell in texts:
        cell["source"] = HEADING.sub(marked, cell["source"])
        cell["source"] = WITHIN.sub(
            lambda to: f"{{ref}}`{to[1]} <{names[to[2]]}>`", cell["source"]
        )
