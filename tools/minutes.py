"""How many minutes a chapter takes: 200 words and 15 lines of code a minute.

    python tools/minutes.py                    a table of all chapters

What a reader of the page sees is counted. Words: the text of Markdown cells and the
captions of figures, so headings, boxes, tables, exercises and the summary too; a formula
and a citation are a word each. Lines: those of cells whose input is not hidden, of
code blocks in the text, and of source that a cell shows, less blank ones. Not counted:
what is folded (hidden input, solutions of exercises), figures, labs, what a cell prints.
"""

import math
import re
import sys
from pathlib import Path

import nbformat
from notebooks import is_hidden

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_ext"))

import plain  # noqa: E402, the build's

WORDS, LINES = 200, 15  # a minute
STEP, MOST = 5, 45  # minutes: what a chapter says is rounded up, and is no more

CODE = re.compile(r"^(`{3,})[a-z]\w*\n(.*?)^\1$", re.M | re.S)
FOLDED = re.compile(
    r"^(`{3,})\{solution\}[^\n]*\n:class: dropdown\n.*?^\1$"
    r"|^`{3,}\{solution-start\}.*?^`{3,}\{solution-end\}$",
    re.M | re.S,
)
# In order: what is put in place of a part of a text, before its words are counted.
PLAIN = [
    (r"(?s)<!--.*?-->", " "),
    (r"(?s)\$\$.*?\$\$(?: \([\w-]+\))?", " formula "),
    (r"\$[^$]+\$", "formula"),
    (r"\{term\}`([^`<]*?)\s*(?:<[^`>]*>)?`", r"\1"),
    (r"\{[\w:]+\}`[^`]*`", "role"),
    (r"(?m)^(?:`{3,}|:{3,})(?:\{glue:figure\}.*|\{[\w-]+\})?", " "),
    (r"(?m)^:[\w-]+:.*$", " "),
    (r"!?\[([^\]]*)\]\([^)]*\)", r"\1"),
    (r"`[^`\n]*`", "code"),
]
WORD = re.compile(r"\w+(?:[-'’.,×/]\w+)*")


def seen(notebook):
    """A notebook as one text in MyST, less what is folded and what cells print."""
    parts = []
    for cell in nbformat.from_dict(plain.to_myst(notebook, "1")).cells:
        if cell.cell_type != "code":
            parts.append(cell.source)
            continue
        parts.append(cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", ""))
        if not is_hidden(cell):
            parts.append(f"``````python\n{cell.source}\n``````")
        parts += [out.get("data", {}).get("text/markdown", "") for out in cell.outputs]
    return FOLDED.sub(" ", "\n\n".join(parts))


def words(text):
    """How many words a text in Markdown has, less its blocks of code.

    >>> words("A {term}`1×1 convolution <x>` takes {glue:text}`n:.1f` µs, if $C = 3$.")
    8
    """
    text = CODE.sub(" ", text)
    for pattern, instead in PLAIN:
        text = re.sub(pattern, instead, text)
    return len(WORD.findall(text))


def lines(text):
    """How many lines a text's blocks of code have, less blank ones."""
    return sum(
        bool(line.strip()) for _, code in CODE.findall(text) for line in code.split("\n")
    )


def minutes(notebook):
    text = seen(notebook)
    return words(text) / WORDS + lines(text) / LINES


def to_say(notebook):
    """What a chapter's **Time** should be: its minutes, rounded up to the next 5."""
    return STEP * math.ceil(minutes(notebook) / STEP)


def said(notebook):
    (number,) = re.findall(r"\*\*Time\*\* (\d+) minutes", notebook.cells[0].source)
    return int(number)


if __name__ == "__main__":
    print(f"{'':42} words  lines  minutes  said")
    for path in sys.argv[1:] or sorted((ROOT / "chapters").glob("*.ipynb")):
        chapter = nbformat.read(path, as_version=4)
        text, name = seen(chapter), Path(path).stem
        print(
            f"{name:42} {words(text):5,} {lines(text):6,} {minutes(chapter):8.1f} "
            f"{said(chapter):5}"
        )
