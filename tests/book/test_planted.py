"""Faults planted in a copy of the book: each makes a check fail, and is named."""

import json
import re
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


def edit(path, change):
    """Change a notebook in place."""
    notebook = nbformat.read(path, as_version=4)
    change([cell for cell in notebook.cells if cell.cell_type == "code"], notebook)
    nbformat.write(notebook, path)


def chapter(book, number):
    (path,) = (book / "chapters").glob(f"{number:02}-*.ipynb")
    return path


def never_run(book):
    edit(chapter(book, 1), lambda cells, _: cells[-1].update(execution_count=None))


def an_error(book):
    error = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    edit(chapter(book, 2), lambda cells, _: cells[0].outputs.append(error))


def no_alternative_text(book):
    def change(cells, _):
        shown = next(cell for cell in cells if "image/png" in str(cell.outputs))
        shown.metadata["mystnb"]["image"]["alt"] = ""

    edit(chapter(book, 3), change)


def a_path(book):
    edit(chapter(book, 4), lambda cells, _: cells[2].update(source="open('/home/me/x')"))


def no_solution(book):
    def change(_, notebook):
        for cell in notebook.cells:
            cell.source = cell.source.replace("### Solution ", "### Note ")

    edit(chapter(book, 5), change)


def a_number_by_hand(book):
    def change(_, notebook):
        notebook.cells[0].source += "\n\nFused it is 1.9 times as fast."

    edit(chapter(book, 6), change)


def a_number_that_has_parted(book):
    def change(_, notebook):
        cell = next(cell for cell in notebook.cells if "67<!-- times" in cell.source)
        cell.source = cell.source.replace("67<!-- times", "57<!-- times")

    edit(chapter(book, 1), change)


def unpickled(book):
    path = book / "code" / "hfusion" / "models.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("allow_pickle=False", "allow_pickle=True"), "utf-8")


def a_record_edited(book):
    path = next((book / "records").glob("*/stage.json"))
    text = path.read_text(encoding="utf-8")
    case = next(case for case in json.loads(text)["cases"] if case["samples"])
    sample = next(iter(case["samples"].values()))[0]
    path.write_text(text.replace(f"[{sample},", f"[{sample / 2},", 1), encoding="utf-8")


def a_stray_package(book):
    (book / "code" / "__init__.py").touch()


def a_secret(book):
    (book / "chapters" / "note.md").write_text("token = 'ghp_" + 36 * "a" + "'")


def an_action_of_any_version(book):
    path = book / ".github" / "workflows" / "test.yml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("checkout@v4.2.2", "checkout@main"), encoding="utf-8")


def a_package_without_a_reason(book):
    path = book / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('["tqdm"]', '["tqdm", "leftpad"]'), encoding="utf-8")


# What pytest says of each, run over the copy.
PLANTED = {
    never_run: "01-why-fuse-sideways.* 'not executed whole and in order'",
    an_error: "02-a-1x1-convolution-is-a-matrix-multiply.* 'an error: ",
    no_alternative_text: "03-stack-the-weights.* 'a picture without alt text: ",
    a_path: "04-split-the-output.* \"?'?a path of somebody's machine: ",
    no_solution: r"test_a_chapter_has_the_form_of_a_chapter\[05-fold-then-stack\]",
    a_number_by_hand: r"'chapters/06-an-inception-module-on-gpu', '1\.9 times'",
    a_number_that_has_parted: "test_a_notebook_says_what_.*01-why-fuse-sideways",
    unpickled: r"models\.py: np\.load\(",
    a_record_edited: r"stage\.json was edited or damaged",
    a_stray_package: "test_code_is_no_package",
    a_secret: r"note\.md: ghp_",
    an_action_of_any_version: "actions/checkout@main",
    a_package_without_a_reason: "leftpad",
}
CHECKS = ("architecture", "chapters", "numerals", "records", "supply", "written")


def run(book, *command):
    done = subprocess.run(command, cwd=book, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def said(book):
    """What the checks say of a copy with all of these faults."""
    for plant in PLANTED:
        plant(book)
    files = [f"tests/book/test_{name}.py" for name in CHECKS]
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", "-k", "not readme_code"]
    # -P: from Python 3.13 on, the stray package would keep pytest from starting at all.
    return run(book, sys.executable, "-P", "-m", "pytest", *options, *files)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_fails_a_check(said, plant):
    status, output = said
    assert status == 1
    pattern = PLANTED[plant]
    assert re.search(pattern.replace(".* ", r"[\s\S]{0,900}?"), output), output[-3000:]


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
