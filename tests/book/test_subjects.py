"""The index leads to sections, and those say something about what it names."""

import re

import pytest
import subjects


def test_entries_stand_below_the_heading_of_the_section_they_lead_to(monkeypatch):
    found = {"03-stack": {"The `rows`": ["Adam", "row"], "Other": ["im2col"]}}
    monkeypatch.setattr(subjects, "index", lambda: found)
    text = subjects.add("## The `rows`\n\nText.", "03-stack")
    entries = re.findall(r"```\{index\} (.+)\n```", text)
    assert entries == ["single: Adam; 03 · The rows", "single: row; 03 · The rows"]
    assert text.startswith("## The `rows`\n\n```{index}")
    assert text.endswith("\n\nText.")
    assert subjects.add("## Elsewhere\n", "03-stack") == "## Elsewhere\n"


def test_code_and_addresses_are_no_mentions():
    said = "ResNet, [a](https://x.org/ResNet) and\n```python\nResNet\n```\nof no ResNets\n"
    assert subjects.mentions(said) == {"ResNet": 1}


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("Adam", "03-stack-the-weights"),
        ("im2col", "02-a-1x1-convolution-is-a-matrix-multiply"),
        ("TensorRT", "the-field"),
        ("ResNet", "07-a-whole-network-automatically"),
    ],
)
def test_a_reader_finds(name, page):
    assert any(name in names for names in subjects.index()[page].values())


def test_no_name_is_listed_in_vain():
    """Each is somewhere in the book, and none has more than four places."""
    named = [
        name
        for headings in subjects.index().values()
        for names in headings.values()
        for name in names
    ]
    assert set(subjects.NAMES) - set(named) == set()
    assert max(named.count(name) for name in set(named)) == 1 + subjects.MOST


def test_the_exercises_of_a_chapter_are_one_section_and_its_solutions_none():
    texts = [
        "## Exercises",
        "### Exercise 3.1\n\nOne.",
        "## Solutions",
        "### Solution 3.1\n\nTwo.",
    ]
    cells = [{"cell_type": "markdown", "source": [text]} for text in texts]
    ((heading, text),) = subjects.sections({"cells": cells})
    assert heading == "Exercises"
    assert "One." in text
    assert "Two." not in text
