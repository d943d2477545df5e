"""The first code cell of each notebook: what is missing here, and what to do about it.

`make run` writes it, from this template and from what the notebook imports. It needs the
standard library only, and looks for packages without importing them. On Colab and Kaggle
it installs what is missing, the library from the address that `_config.yml` has; never
torch.
"""

import ast
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LIBRARY = (ROOT / "code" / "hfusion" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.*)"$', LIBRARY, re.M)[1]
WHEEL = f"hfusion-{VERSION}-py3-none-any.whl"
ALWAYS = {"hfusion", "matplotlib", "numpy", "torch"}  # what every notebook draws with
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}  # where names differ
TORCH = next(one for one in PROJECT["dependencies"] if one.startswith("torch>="))
OLDEST_SAID = TORCH.partition(">=")[2].partition(",")[0]
OLDEST = tuple(map(int, re.search(r"(\d+)\.(\d+)", TORCH).groups()))
METADATA = {"tags": ["remove-cell"]}

TITLE = "# @title What this notebook needs"
TEMPLATE = f"""{TITLE}
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

WHEEL = "{{wheel}}"
PACKAGES = "{{packages}}"
needs = dict(one.split("=") for one in PACKAGES.split())
missing = [name for name in needs if not find_spec(name)]
hosts = {{{{"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"}}}} & set(os.environ)
for name in missing if hosts and ":" in WHEEL else ():
    what = ["--no-deps", WHEEL] if name == "hfusion" else [needs[name]]
    if name != "torch":
        subprocess.run([sys.executable, "-m", "pip", "install", *what])
missing = [name for name in missing if not find_spec(name)]
if missing:
    raise ModuleNotFoundError(
        f"missing here: {{{{', '.join(missing)}}}}. In a terminal, "
        f'pip install "{{{{WHEEL}}}}[notebook]"; then restart the kernel. '
        "{{where}}"
    )
torch = version("torch")
if tuple(map(int, torch.split(".")[:2])) < {OLDEST}:
    raise ImportError(f"torch: expected {OLDEST_SAID} or newer, got {{{{torch}}}}")"""
WHERE = {
    True: "(Triton is there for Linux only.)",
    False: "The book's pages offer the wheel. (Triton is there for Linux only.)",
}


def address(config=None):
    """Where the wheel is: beside the pages of the repository; its bare name without one."""
    config = config or yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    found = re.fullmatch(
        r"https://(\w+)\.com/([^/]+)/([^/]+?)/?", config["repository"]["url"]
    )
    return f"https://{found[2]}.{found[1]}.io/{found[3]}/{WHEEL}" if found else WHEEL


def needed(notebook):
    """The packages that a notebook imports, as modules are called."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    trees = [ast.parse(source) for source in code if not source.startswith(TITLE)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    ]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    found = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    return ALWAYS | found - {"sideways"}  # which comes with hfusion


def source(notebook, wheel=None):
    """The first cell of a notebook."""
    wheel = wheel or address()
    packages = [f"{name}={PACKAGES.get(name, name)}" for name in sorted(needed(notebook))]
    where = WHERE[":" in wheel]
    return TEMPLATE.format(wheel=wheel, packages=" ".join(packages), where=where)


def put(notebook):
    """Write the first cell into a notebook, in place, below the cell of its title."""
    cells = [cell for cell in notebook.cells if not cell.source.startswith(TITLE)]
    first = nbformat.v4.new_code_cell(source(notebook), metadata=METADATA)
    notebook.cells = [cells[0], first, *cells[1:]]
