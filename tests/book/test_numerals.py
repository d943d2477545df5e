"""No number with a unit, and no ratio, is typed into a sentence without its source."""

import re

import pytest
from numerals import (
    CITING,
    CONSTANTS,
    PAGES,
    ROOT,
    constants,
    found,
    name,
    numerals,
    prose,
    typed_by_hand,
)

TEXTS = {name(path): prose(path) for path in PAGES if path != CONSTANTS}
KNOWN = constants(CONSTANTS.read_text(encoding="utf-8"))
CHAPTERS = [page for page in TEXTS if page.startswith("chapters/")]


def test_every_number_in_prose_is_glued_or_a_constant():
    assert len(CHAPTERS) == 14
    assert typed_by_hand(TEXTS, KNOWN) == []


def test_every_constant_has_a_source_and_stands_where_it_says():
    assert len(KNOWN) > 10
    for numbers, source, pages in KNOWN:
        assert re.search(r"\{cite:t\}`\w+`|^chosen", source), numbers
        for page in pages:
            assert set(numbers) <= set(numerals(TEXTS[page])) | cited(TEXTS[page]), page


def cited(text):
    """The numbers in rows of a table that cite their source."""
    rows = [row for row in text.splitlines() if re.match(CITING, row)]
    return {n for row in rows for n in found(row)}


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("It takes 3.5 µs, or 20 % of it.", ["3.5 µs", "20 %"]),
        ("Between 1.2 and 1.6 times as fast", ["1.2", "1.6 times"]),
        ("A gain of 1.7× in 12\xa0MB", ["1.7 ×", "12 MB"]),
        ("a gain of $3\\times$", ["3 ×"]),
        ("```{exercise}\nIn 9 ms.\n```\nand 8 ms.", ["9 ms", "8 ms"]),
        ("```python\nx = '9 ms'\n```\n`7 ms`", []),
        ("$$ x \\tag{3.2} $$, by (3.2) and (99.5)", ["99.5"]),
        ("### Exercise 3.1\n\n**Figure 3.2.** In 9 ms.", ["9 ms"]),
        ("| IOS [[A, 2020](https://x.org)] | 6.5 ms |", []),
        ("a 3×3 beside a 1×1, in chapter 5, [here](2 s), section 3.1", []),
        ("| IOS {cite:p}`ios` | 6.5 ms |", []),
        ("| mine | 6.5 ms |", ["6.5 ms"]),
    ],
)
def test_a_number_is_seen_where_it_is_one(sentence, expected):
    assert numerals(sentence) == expected


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_number_typed_into_a_chapter_is_noticed(page):
    planted = {page: TEXTS[page] + "\n\nFused, it takes 0.7 µs, and is 1.9 times as fast."}
    assert typed_by_hand(planted, KNOWN) == [(page, "0.7 µs"), (page, "1.9 times")]


def test_a_constant_of_another_page_is_none():
    (page,) = (page for page in CHAPTERS if "/02-" in page)
    assert typed_by_hand({page: "4.8 TB/s"}, KNOWN) == [(page, "4.8 TB/s")]


def test_the_minutes_of_a_chapter_are_those_of_the_contents():
    index = (ROOT / "index.md").read_text(encoding="utf-8")
    for page in CHAPTERS:
        (minutes,) = re.findall(r"\*\*Time\*\* (\d+) minutes", TEXTS[page])
        assert re.search(rf"\({re.escape(page)}.ipynb\) \| {minutes} \|", index), page
