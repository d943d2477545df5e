"""Numbers with a unit, and ratios, in the book's prose: who has typed one by hand?

A number in a sentence is computed by a cell (`written.py`), or it stands on the page
of constants with its source. `python tools/numerals.py` prints what is neither.
"""

import re
import sys
from pathlib import Path

import nbformat
import written

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "_ext"))

import plain  # noqa: E402, the build's

WRITTEN = ("index.md", "README.md", "chapters/*.ipynb", "back/*.ipynb", "back/*.md")
PAGES = sorted(path for pattern in WRITTEN for path in ROOT.glob(pattern))
CONSTANTS = ROOT / "back" / "constants.md"

UNIT = (
    r"(?:[nµm]?s|seconds?|minutes?|hours?|days?|percent|bytes?|bits?|times|[kKMGT]i?B(?:/s)?"
    r"|(?:k|M|G|T|kilo|mega|giga|tera)?FLOPs?(?:/s)?|[kMG]Hz|W)(?![\w])|%|×(?!\s*[\dk])"
)
NUMBER = r"(?<![\w.,])\d[\d,]*(?:\.\d+)?"
# A number with a unit, or one with decimals: a ratio, mostly.
NUMERAL = re.compile(rf"({NUMBER})[\s~]*({UNIT})|(?<![\w.,])(\d+\.\d+)(?![\w.]*\d)")

# What is no prose: roles, code, where a link leads, names with a number; and the minutes
# that a chapter takes, and what `readme.py` writes, which have tests of their own.
CITING = r"\|.*(?:\{cite:|\]\(https?:)"  # a row of a table
LEFT_OUT = [
    r"(?s)<!-- (measured|counted|headline) -->.*?<!-- /\1 -->",
    r"\{\w[\w:-]*\}`[^`]*`",
    r"`[^`\n]*`",
    r"\]\([^)]*\)",
    r"https?://\S+",
    r"(?:[Ss]ection|Python|NumPy|Triton|CC BY) [\d.]+(?: to [\d.]+)?",
    r"\*\*Time\*\* \d+ minutes",
    r"(?m)^:\w[\w-]*:.*$",
    r"\\tag\{[^}]*\}",
    r"(?m)^### (?:Exercise|Solution) [\d.]+$|^\*\*Figure [\d.]+",
]


def numerals(text):
    """The numbers in a text that a reader would ask the source of: ["4.8 TB/s", "1.6"].

    Rows of a table that cite their source have one.
    """
    rows = (line for line in spoken(text) if not re.match(CITING, line))
    text = "\n".join(rows).replace("\\times", "×").replace("\xa0", " ")
    for pattern in LEFT_OUT:
        text = re.sub(pattern, " ", text)
    return found(
        plain.REFERENCE.sub(lambda n: " " if n[1] in plain.equations() else n[0], text)
    )


def found(text):
    """The numerals in a text, each with its unit."""
    return [
        f"{number} {unit}" if unit else bare for number, unit, bare in NUMERAL.findall(text)
    ]


def spoken(text):
    """The lines of a text less its blocks of code; what is in a directive is no code."""
    fences = []
    for line in text.splitlines():
        fence = re.match(r"(`{3,})(\S*)", line)
        if fence and fences and fence[1] == fences[-1][0] and not fence[2]:
            fences.pop()
        elif fence:
            fences.append((fence[1], fence[2].startswith("{")))
        elif all(directive for _, directive in fences):
            yield line


def prose(path):
    """What a page says in words, less what is computed; with alternative texts."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    about = [cell.metadata.get("mystnb", {}) for cell in notebook.cells]
    alternatives = [one["image"]["alt"] for one in about if "alt" in one.get("image", {})]
    return "\n\n".join([*written.typed(notebook), *alternatives])


def constants(text):
    """The page of constants: [(numbers, source, pages)], a row each."""
    rows = re.findall(r"^\| (.*?) \| .*? \| (.*?) \| (.*?) \|$", text, re.M)
    known = []
    for numbers, source, where in rows:
        if values := found(numbers):
            links = re.findall(r"\]\((\S+?)\)", where)
            pages = [name((CONSTANTS.parent / link).resolve()) for link in links]
            known.append((values, source, pages))
    return known


def name(path):
    """A page as links call it: "chapters/09-when-fusion-pays"."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


def typed_by_hand(texts, known):
    """Numbers without a source: [(page, number)], of texts {page: prose}."""
    allowed = {(page, n) for numbers, _, pages in known for n in numbers for page in pages}
    return [
        (page, number)
        for page, text in texts.items()
        for number in numerals(text)
        if (page, number) not in allowed
    ]


if __name__ == "__main__":
    texts = {name(path): prose(path) for path in PAGES if path != CONSTANTS}
    for page, number in typed_by_hand(texts, constants(CONSTANTS.read_text("utf-8"))):
        print(f"{page}: {number}")
