"""What `make run` writes into a text is there, and a number that has parted is noticed."""

import copy
import re

import nbformat
import pytest
import written
from execute_chapters import execute

from chapters import NOTEBOOKS

GAIN = "It is 1.06<!-- gain:.2f --> on Some CPU, 2 threads<!-- where -->."


def glued(name, shown):
    data = {"application/papermill.record/text/plain": shown}
    metadata = {"scrapbook": {"name": name, "mime_prefix": "…"}}
    return nbformat.v4.new_output("display_data", data, metadata=metadata)


def page(*texts, **values):
    cells = [nbformat.v4.new_markdown_cell(text) for text in texts]
    outputs = [glued(name, repr(value)) for name, value in values.items()]
    return nbformat.v4.new_notebook(
        cells=[*cells, nbformat.v4.new_code_cell(outputs=outputs)]
    )


def sources(notebook):
    return [cell.source for cell in written.texts(notebook)]


@pytest.mark.parametrize("name", list(NOTEBOOKS))
def test_a_notebook_says_what_its_cells_have_computed(name):
    notebook = copy.deepcopy(NOTEBOOKS[name])
    written.write(notebook, name)
    assert sources(notebook) == sources(NOTEBOOKS[name])


@pytest.mark.parametrize("name", list(NOTEBOOKS))
def test_a_number_that_has_parted_is_noticed(name):
    """Each computed number in turn, with another last digit."""
    for place, cell in enumerate(written.texts(NOTEBOOKS[name])):
        for found in re.finditer(r"\d(?=\D?<!-- \w)", cell.source):
            notebook = copy.deepcopy(NOTEBOOKS[name])
            digit = str((int(found[0]) + 1) % 10)
            changed = cell.source[: found.start()] + digit + cell.source[found.end() :]
            written.texts(notebook)[place].source = changed
            written.write(notebook, name)
            assert written.texts(notebook)[place].source != changed


def test_numbers_are_written():
    notebook = page(GAIN, gain=1.137, where="Another, 4 threads")
    written.write(notebook, "03-x", {"gain": 1.0561, "where": "Some CPU, 2 threads"})
    (text,) = sources(notebook)
    assert text == "It is 1.14<!-- gain:.2f --> on Another, 4 threads<!-- where -->."


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a ?<!-- n:, --> b", "a 1,234<!-- n:, --> b"),
        ("(1,233<!-- n:, -->)", "(1,234<!-- n:, -->)"),
        ("**9<!-- n:, -->**", "**1,234<!-- n:, -->**"),
        ("| 9<!-- n:, --> |", "| 1,234<!-- n:, --> |"),
        ("(not recorded)<!-- n:, --> b", "1,234<!-- n:, --> b"),
        ("1<!-- lost:.2f --> µs", "(not recorded)<!-- lost:.2f --> µs"),
    ],
)
def test_a_number_ends_where_its_comment_begins(before, after):
    notebook = page(before, n=1234)
    notebook.cells[-1].outputs.append(glued("lost", "nan"))
    written.write(notebook, "03-x")
    assert sources(notebook) == [after]


def test_a_name_that_no_cell_has_glued_is_named():
    with pytest.raises(ValueError, match=r"gain:\.2f.*no cell has glued gain"):
        written.write(page("1<!-- gain:.2f -->"), "03-x")


def test_a_notebook_that_is_executed_says_what_it_has_computed(tmp_path):
    code = "from sideways.show import glue\nglue('n', 1234, display=False)"
    notebook = page("It is ?<!-- n:, -->.")
    notebook.cells[-1] = nbformat.v4.new_code_cell(code)
    nbformat.write(notebook, tmp_path / "03-x.ipynb")
    execute(tmp_path / "03-x.ipynb")
    (text,) = sources(nbformat.read(tmp_path / "03-x.ipynb", as_version=4))
    assert text == "It is 1,234<!-- n:, -->."


def test_what_has_a_number_is_counted_and_references_follow():
    notebook = page(
        "**Figure ?.** New.",
        "**Figure 3.1.** Old.",
        "$$ x \\tag{?} $$ and $$ y \\tag{3.1} $$",
        "By (3.1), Figure 3.1 and [this](#Exercise-3.1); not (9.9).",
        "### Exercise ?\n\nNew.\n\n[Solution](#Solution-?)",
        "### Exercise 3.1\n\nOld.\n\n[Solution](#Solution-3.1)",
        "### Solution ?\n\nNew.",
        "### Solution 3.1\n\nOld.",
    )
    written.write(notebook, "03-x")
    assert sources(notebook) == [
        "**Figure 3.1.** New.",
        "**Figure 3.2.** Old.",
        "$$ x \\tag{3.1} $$ and $$ y \\tag{3.2} $$",
        "By (3.2), Figure 3.2 and [this](#Exercise-3.2); not (9.9).",
        "### Exercise 3.1\n\nNew.\n\n[Solution](#Solution-3.1)",
        "### Exercise 3.2\n\nOld.\n\n[Solution](#Solution-3.2)",
        "### Solution 3.1\n\nNew.",
        "### Solution 3.2\n\nOld.",
    ]


def test_a_page_that_is_no_chapter_counts_without_one():
    notebook = page("**Figure ?.** One.", "**Figure ?.** Two.")
    written.write(notebook, "predictions")
    assert sources(notebook) == ["**Figure 1.** One.", "**Figure 2.** Two."]
