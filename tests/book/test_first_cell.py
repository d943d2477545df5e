"""The first cell says what is missing, and installs it where that is the custom."""

import copy
import json
import subprocess
import sys

import first_cell
import nbformat
import pytest
from notebooks import code_cells

from chapters import NOTEBOOKS

each_notebook = pytest.mark.parametrize("name", list(NOTEBOOKS))
ADDRESS = "https://someone.github.io/book/hfusion-0.1.0-py3-none-any.whl"

# Runs a cell in a Python in which some packages cannot be found and pip is only noted.
RUN = """
import importlib.machinery, importlib.metadata, importlib.util, json, subprocess, sys
cell, blocked, brought, torch = json.loads(sys.argv[1])
ran = []

def find_spec(name):
    return None if name in blocked else importlib.machinery.ModuleSpec(name, None)

def run(command):
    ran.append(command[2:])
    blocked[:] = [name for name in blocked if name not in brought]

importlib.util.find_spec, subprocess.run = find_spec, run
importlib.metadata.version = lambda name: torch
before = set(sys.modules)
error = ""
try:
    exec(cell, {})
except ImportError as said:
    error = str(said)
loaded = sorted({"torch", "numpy", "hfusion"} & set(sys.modules) - before)
print(json.dumps([error, ran, loaded]))
"""


def run(
    wheel=ADDRESS,
    missing=(),
    brought=(),
    torch="2.13.0+cpu",
    name="02-a-1x1-convolution-is-a-matrix-multiply",
    **host,
):
    """(what the cell says, what it has pip do, what it imports)."""
    cell = first_cell.source(NOTEBOOKS[name], wheel)
    given = json.dumps([cell, list(missing), list(brought), torch])
    done = subprocess.run(
        [sys.executable, "-S", "-c", RUN, given],
        env=host,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


COLAB = {"COLAB_RELEASE_TAG": "release-colab"}
KAGGLE = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}


@each_notebook
def test_a_notebook_begins_with_it(name):
    first, *others = code_cells(NOTEBOOKS[name])
    assert first.source == first_cell.source(NOTEBOOKS[name])
    assert first.outputs == []
    assert first.metadata.tags == first_cell.METADATA["tags"]
    assert not any(cell.source.startswith(first_cell.TITLE) for cell in others)


def test_it_looks_for_what_the_notebook_imports():
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell("import os, PIL.Image as I\nfrom torch import nn"),
        nbformat.v4.new_code_cell("def f():\n    from sklearn import x"),
    ])  # fmt: skip
    assert first_cell.needed(notebook) == first_cell.ALWAYS | {"PIL", "sklearn"}


@each_notebook
def test_every_package_it_looks_for_comes_with_the_extra(name):
    project = first_cell.PROJECT
    extras = project["optional-dependencies"]
    listed = " ".join([*project["dependencies"], *extras["notebook"], *extras["kernels"]])
    for module in first_cell.needed(NOTEBOOKS[name]) - {"hfusion"}:
        assert first_cell.PACKAGES.get(module, module) in listed


def test_where_nothing_is_missing_it_does_nothing():
    assert run() == ["", [], []]
    assert run(**COLAB) == ["", [], []]


def test_elsewhere_it_says_what_to_do_and_installs_nothing():
    said, ran, _ = run(missing=["hfusion", "sklearn"])
    assert said.startswith(
        f'missing here: hfusion, sklearn. In a terminal, pip install "{ADDRESS}[notebook]";'
    )
    assert ran == []


def test_without_an_address_it_names_the_file():
    said, ran, _ = run("hfusion-0.1.0-py3-none-any.whl", ["hfusion"], **COLAB)
    assert 'pip install "hfusion-0.1.0-py3-none-any.whl[notebook]"' in said
    assert "The book's pages offer the wheel." in said
    assert ran == []


@pytest.mark.parametrize("host", [COLAB, KAGGLE])
def test_a_host_gets_what_is_missing_and_never_torch(host):
    missing = ["hfusion", "sklearn", "torch"]
    said, ran, loaded = run(missing=missing, brought=["hfusion", "sklearn"], **host)
    assert ran == [
        ["pip", "install", "--no-deps", ADDRESS],
        ["pip", "install", "scikit-learn"],
    ]
    assert said.startswith("missing here: torch.")
    assert loaded == []


@pytest.mark.parametrize("torch", ["2.5.1", "1.13.0"])
def test_a_torch_that_is_too_old_is_named(torch):
    assert run(torch=torch)[0] == f"torch: expected 2.6 or newer, got {torch}"


@pytest.mark.parametrize("torch", ["2.6.0", "2.10.0a0+git1", "3.0.1+cu130"])
def test_a_torch_that_is_new_enough_is_not(torch):
    assert run(torch=torch)[0] == ""


def test_what_pip_could_not_bring_is_said():
    assert run(missing=["hfusion"], **COLAB)[0].startswith("missing here: hfusion.")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", first_cell.WHEEL),
        ("https://github.com/someone/book", ADDRESS),
        ("https://gitlab.com/someone/book/", ADDRESS.replace("github", "gitlab")),
    ],
)
def test_the_address_is_set_in_one_place(url, expected):
    assert first_cell.address({"repository": {"url": url}}) == expected


def test_it_is_written_once_and_below_the_title():
    notebook = copy.deepcopy(NOTEBOOKS["03-stack-the-weights"])
    first_cell.put(notebook)
    first_cell.put(notebook)
    assert [cell.source for cell in notebook.cells] == [
        cell.source for cell in NOTEBOOKS["03-stack-the-weights"].cells
    ]
