"""What nbval does not look at: that cells have run, alt text, exercises, width."""

import copy
import re

import minutes
import nbformat
import plain
import pytest
import torch
from execute_chapters import README_FIGURE, named_figure
from notebooks import WIDTH, code_cells, faults, is_picture

import hfusion
from chapters import CHAPTERS, NOTEBOOKS, ROOT, each_chapter

# Cells whose output nbval does not compare: times of the reader's own machine. This
# number may only fall.
IGNORED = 2

# Chapters held to `minutes.py`: what they say is what they take, at most 45 minutes.
TIMED = ("10-two-launches", "11-how-far-from-the-limit")


def prose(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type != "code")


def is_ignored(cell):
    return {"nbval-ignore-output", "nbval-skip"} & set(cell.metadata.get("tags", []))


@pytest.mark.parametrize("name", list(NOTEBOOKS))
def test_a_notebook_has_no_faults(name):
    assert list(faults(NOTEBOOKS[name])) == []


def first_cell(notebook, wanted):
    return next(cell for cell in code_cells(notebook) if wanted(cell))


def has_picture(cell):
    return any(is_picture(output) for output in cell.outputs)


def not_run(notebook):
    code_cells(notebook)[-1].execution_count = None


def failed(notebook):
    error = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    code_cells(notebook)[0].outputs.append(error)


def without_alt(notebook):
    first_cell(notebook, has_picture).metadata["mystnb"]["image"]["alt"] = ""


def without_caption(notebook):
    """Of a picture that says nowhere that it is a figure."""
    cell = first_cell(notebook, has_picture)
    del cell.metadata["mystnb"]["figure"]
    del notebook.cells[notebook.cells.index(cell) + 1]


def too_wide(notebook):
    code_cells(notebook)[1].source += "\n#" + "-" * WIDTH


def with_path(notebook):
    code_cells(notebook)[1].source += "\nopen('/home/me/x')"


def unfolded(notebook):
    del code_cells(notebook)[0].metadata["jupyter"]


PLANTED = {
    unfolded: "folded otherwise",
    not_run: "not executed",
    failed: "an error",
    without_alt: "without alt text",
    without_caption: "without a caption",
    too_wide: "wider than",
    with_path: "a path",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant):
    notebook = copy.deepcopy(CHAPTERS["01-why-fuse-sideways"])
    plant(notebook)
    (found,) = faults(notebook)
    assert PLANTED[plant] in found


def test_few_cells_are_ignored_and_no_more_than_before():
    cells = [cell for notebook in NOTEBOOKS.values() for cell in code_cells(notebook)]
    ignored = sum(bool(is_ignored(cell)) for cell in cells)
    assert ignored == IGNORED
    assert 20 * ignored <= len(cells)


@each_chapter
def test_a_chapter_has_the_form_of_a_chapter(name):
    text = prose(CHAPTERS[name])
    assert text.count("> **The question**") == 1
    assert text.count("> **Takeaway**") >= 3
    exercises = re.findall(r"^### Exercise (.*)$", text, re.M)
    assert 3 <= len(exercises) <= 5
    assert exercises == re.findall(r"^### Solution (.*)$", text, re.M)
    assert exercises == re.findall(r"^\[Solution\]\(#Solution-(.*)\)$", text, re.M)
    assert re.search(r"^## Summary$.*^## Solutions$.*^### Solution", text, re.M | re.S)
    assert "**Sources**" in text
    assert plain.PARENTHETICAL.search(text) or plain.TEXTUAL.search(text)


@each_chapter
def test_a_chapter_shows_a_check_failing(name):
    code = "\n".join(cell.source for cell in code_cells(CHAPTERS[name]))
    assert "timing.agree" in code
    assert "timing.differ" in code


@pytest.mark.parametrize("name", TIMED)
def test_a_chapter_takes_as_long_as_it_says(name):
    assert minutes.said(CHAPTERS[name]) == minutes.to_say(CHAPTERS[name]) <= minutes.MOST


COUNTED = """# A heading of five words

> **Takeaway**
>
> A program of [a launch](10-two-launches.ipynb) has `one`,
> [[Lin *et al.*, 2013](https://arxiv.org/abs/1312.4400)].

$$
y = x + 1 . \\tag{1.1}
$$

| machine | µs |
|---|---|
| mine | 12.3<!-- us:.1f --> |

```sh
make record  # this is

# code
```"""
SOLVED = """None of this.
```python
nor_this
```
"""


def counted():
    """The cells of a small chapter."""
    exercise = "### Exercise 1.1\n\nWhat is $1 + 1$?\n\n[Solution](#Solution-1.1)"
    texts = [COUNTED, exercise, "## Summary", "## Solutions", "### Solution 1.1", SOLVED]
    return [nbformat.v4.new_markdown_cell(text) for text in texts]


def test_words_and_lines_are_counted_as_by_hand():
    """A heading, a title, a sentence, an equation, a table, an exercise, "Summary"."""
    text = minutes.seen(nbformat.v4.new_notebook(cells=counted()))
    assert minutes.words(text) == 5 + 1 + 8 + 1 + 4 + 3 + 1
    assert minutes.lines(text) == 2


def test_a_chapter_is_counted_as_its_reader_sees_it():
    new = nbformat.v4
    code = new.new_code_cell("one\n\ntwo  # words in code\n")
    hidden = new.new_code_cell("three", metadata={"tags": ["hide-input"]})
    source = {"text/markdown": "```python\nfour\nfive\n```"}
    shown = new.new_code_cell("six", outputs=[new.new_output("display_data", source)])
    drawn = new.new_code_cell(
        "", outputs=[new.new_output("display_data", {"image/png": ""})]
    )
    drawn.metadata.update(tags=["remove-input"], mystnb={"figure": {"name": "fig-one"}})
    caption = new.new_markdown_cell("**Figure 1.1.** Two words.")
    printed = new.new_code_cell(
        "seven", outputs=[new.new_output("stream", text="not this")]
    )
    cells = [code, hidden, shown, printed, drawn, caption, *counted()]
    text = minutes.seen(new.new_notebook(cells=cells))
    assert minutes.words(text) == 23 + 2
    assert minutes.lines(text) == 2 + 2 + 3 + 1


def test_the_readme_shows_the_figure_of_chapter_6():
    notebook = CHAPTERS["06-an-inception-module-on-gpu"]
    assert named_figure(notebook, "fig-ladder") == README_FIGURE.read_bytes()


class Llama(torch.nn.Module):
    """A small stand-in: what its forward does depends on sizes, as theirs does."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = torch.nn.Linear(4, 8), torch.nn.Linear(4, 8)

    def forward(self, input_ids):
        x = torch.ones(len(input_ids), 4) if len(input_ids) > 1 else torch.zeros(1, 4)
        return self.gate(x).relu() * self.up(x)

    def generate(self, tokens):
        self.generated = self(tokens)


def test_the_readme_code_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    read, run = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len([line for line in read.splitlines() if line.strip()]) == 11
    exec(read, {})
    names = {"hfusion": hfusion, "torch": torch, "llama": Llama(), "tokens": torch.ones(3)}
    exec(run, names)
    with torch.no_grad():
        expected = names["llama"](names["tokens"])
    assert torch.allclose(names["fused"].generated, expected)
