"""Faults planted in the book: nbval and the build fail, and name them.

The faults that other checks find are planted in their own tests."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("_config.yml", "_ext", "_static", "_toc.yml", "back", "chapters",
         "code", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "constraints.txt",
         "index.md", "Makefile", "pyproject.toml", "README.md", "records", "references.bib",
         "tests", "tools", ".github")  # fmt: skip


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A copy of what the book is made of."""
    copy = tmp_path_factory.mktemp("book")
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def chapter(book, number):
    (path,) = (book / "chapters").glob(f"{number:02}-*.ipynb")
    return path


def run(book, *command):
    done = subprocess.run(command, cwd=book, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


# nbval


def nbval(path):
    """Run nbval over one notebook, with none of this project's pytest settings."""
    empty = path.with_name("empty.ini")
    empty.write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval"]
    command += ["--nbval-current-env", "-c", empty, "--rootdir", path.parent]
    command += ["--nbval-sanitize-with", ROOT / "tests" / "nbval.cfg", path]
    return run(path.parent, *command)


def test_a_changed_digit_and_a_wrong_solution_fail_nbval(tmp_path):
    """The first cells of a chapter, and one solution; as stored, then with both faults."""
    path = tmp_path / "chapter.ipynb"
    notebook = nbformat.read(chapter(ROOT, 8), as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    fit = next(i for i, cell in enumerate(cells) if "def fit(" in cell.source)
    (solution,) = (
        i for i, cell in enumerate(cells) if "fit([10, 100], [12, 84])" in cell.source
    )
    notebook.cells = [cells[1], cells[fit], cells[solution]]
    nbformat.write(notebook, path)
    assert nbval(path)[0] == 0
    digits, right = cells[solution].outputs[-1], cells[solution].source
    digits.text = digits.text.replace("3 entries", "4 entries")
    wrong = right.replace("a + 1000 * b", "a + 100 * b")
    notebook.cells += [nbformat.v4.new_code_cell(wrong, outputs=[digits])]
    assert (digits.text, wrong) != (cells[solution].outputs, right)
    nbformat.write(notebook, path)
    status, output = nbval(path)
    assert status == 1
    assert "4 entries" in output
    assert "1 of 3 entries differ" in output


# The book's build

PAGE = """# A page

{cite:p}`tillet2019` and {numref}`fig-here`.

```{figure} _static/logo.svg
:name: fig-here
A figure.
```
"""
BROKEN = {
    "{cite:p}`nobody1999`": "could not find bibtex key",
    "[a page](nowhere.md)": "cross-reference target not found",
    "[a place](#no-such-place)": "cross-reference target not found",
    "{numref}`fig-nowhere`": "undefined label",
    "{term}`nonsense`": "term not in glossary",
    "![](_static/no-picture.png)": "image file not readable",
}


def build(book, text):
    """The book's own configuration, with this page in front of two others."""
    (book / "page.md").write_text(text, encoding="utf-8")
    contents = {"format": "jb-book", "root": "page",
                "chapters": [{"file": "back/bibliography"}]}  # fmt: skip
    (book / "_toc.yml").write_text(yaml.safe_dump(contents), encoding="utf-8")
    program = Path(sysconfig.get_path("scripts")) / "jupyter-book"
    return run(book, program, "build", ".", "--all", "-W", "-n", "--keep-going")


def test_what_leads_nowhere_fails_the_build(book):
    status, output = build(book, PAGE)
    assert status == 0, output[-3000:]
    status, output = build(book, PAGE + "\n\n".join(BROKEN))
    assert status != 0
    assert [fault for fault, words in BROKEN.items() if words not in output] == []
