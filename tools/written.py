"""What `make run` writes into the text of a notebook, and a test holds it to.

Numbers that a cell has glued, `1.06<!-- gain:.2f -->`, and the numbers of figures,
equations, exercises and solutions, in the order of the text. A new one is written as "?":
`?<!-- gain:.2f -->`, `**Figure ?.** …`, `\\tag{?}`, `### Exercise ?`.
"""

import ast
import itertools
import re

COMMENT = re.compile(r"<!-- (\w+)(?::(\S*))? -->")
TOKEN = re.compile(r"(?:\(not recorded\)|[^\s(*|]+)\Z")
GLUED = ("application/papermill.record/text/plain", "text/plain")

# What carries a number, one after the other, and what refers to it in the same notebook.
NUMBER = r"(\?|\d+(?:\.\d+)?)"
CARRIES = {
    "figure": rf"(?m)(?<=^\*\*Figure ){NUMBER}(?=\.\*\*)",
    "equation": rf"(?<=\\tag{{){NUMBER}(?=}})",
    "exercise": rf"(?m)(?<=^### Exercise ){NUMBER}$",
    "to a solution": rf"(?m)(?<=^\[Solution\]\(#Solution-){NUMBER}(?=\)$)",
    "solution": rf"(?m)(?<=^### Solution ){NUMBER}$",
}
REFERS = {
    "figure": rf"(?<=(?<!\*\*)Figure ){NUMBER}\b",
    "equation": rf"(?<=\(){NUMBER}(?=\))",
    "exercise": rf"(?<=#Exercise-){NUMBER}(?=\))",
}


def texts(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def values(notebook):
    """What the cells of a notebook have glued: {name: a number or a text}."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    found = {}
    for out in outputs:
        if scrap := out.get("metadata", {}).get("scrapbook"):
            shown = [out.data[kind] for kind in GLUED if kind in out.data]
            found[scrap["name"]] = value(shown[0]) if shown else None
    return found


def value(shown):
    """A value from what IPython shows of it."""
    if shown == "nan":
        return None  # what stands for a number that no record has
    try:
        return ast.literal_eval(shown)
    except (ValueError, SyntaxError):
        return shown


def said(comment, known):
    """The words for a computed number: "1.06".

    >>> said(COMMENT.search("1.1<!-- gain:.2f -->"), {"gain": 1.0561})
    '1.06'
    """
    name, form = comment.groups(default="")
    if name not in known:
        raise ValueError(f"{comment[0]}: no cell has glued {name}")
    return "(not recorded)" if known[name] is None else format(known[name], form)


def write(notebook, page, before=None):
    """Write numbers into a notebook's text, in place; `page` is its file's stem.

    before: what was glued when the text was last written. It says where a value of several
    words begins; without it a value is what the text has up to the last space.
    """
    known = values(notebook)
    for cell in texts(notebook):
        for comment in reversed(list(COMMENT.finditer(cell.source))):
            text, rest = cell.source[: comment.start()], cell.source[comment.start() :]
            glued = [one for one in (before, known) if one and comment[1] in one]
            olds = [said(comment, one) for one in glued]
            old = next(filter(text.endswith, olds), None) or TOKEN.search(text)[0]
            cell.source = text.removesuffix(old) + said(comment, known) + rest
    number(notebook, f"{int(page[:2])}." if page[:2].isdigit() else "")


def number(notebook, chapter):
    """Count figures, equations and exercises anew, and let references follow."""
    for kind, carries in CARRIES.items():
        new, counted = {}, itertools.count(1)

        def count(old, new=new, counted=counted):
            new[old[0]] = f"{chapter}{next(counted)}"
            return new[old[0]]

        everywhere(notebook, carries, count)
        if kind in REFERS:
            everywhere(notebook, REFERS[kind], lambda old, new=new: new.get(old[0], old[0]))


def everywhere(notebook, pattern, replace):
    for cell in texts(notebook):
        cell.source = re.sub(pattern, replace, cell.source)


def typed(notebook):
    """The cells' texts less what is computed."""
    known = values(notebook)
    for cell in texts(notebook):
        text = cell.source
        for comment in reversed(list(COMMENT.finditer(text))):
            before = text[: comment.start()].removesuffix(said(comment, known))
            text = before + " " + text[comment.end() :]
        yield text
