"""What is wrong with a notebook: python tools/notebooks.py chapters/NN-….ipynb …

What nbval does not look at: that every cell has run, in order, without an error or a
warning; alternative texts and captions; width; folds; paths of somebody's machine.
"""

import itertools
import re
import sys

import nbformat

WIDTH = 76  # columns of code that fit a page at 1280 px
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}  # on the pages


def is_hidden(cell):
    """Whether a page shows the code of this cell only when asked, or not at all."""
    return bool(HIDDEN & set(cell.metadata.get("tags", [])))


def fold(notebook):
    """Close in JupyterLab, VS Code and Colab what the pages hide; open the rest."""
    for cell in code_cells(notebook):
        cell.metadata.pop("jupyter", None)
        cell.metadata.pop("cellView", None)
        if is_hidden(cell):
            cell.metadata |= {"jupyter": {"source_hidden": True}, "cellView": "form"}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def faults(notebook):
    """What is wrong with a notebook, in words."""
    cells = code_cells(notebook)
    yield from without_caption(notebook)
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "not executed whole and in order"
    for cell in cells:
        first = cell.source.splitlines()[0] if cell.source else "an empty cell"
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"an error: {first}"
        if any(output.get("name") == "stderr" for output in cell.outputs):
            yield f"a warning: {first}"
        wide = any(len(line) > WIDTH for line in cell.source.splitlines())
        if wide and "remove-cell" not in cell.metadata.get("tags", []):
            yield f"wider than {WIDTH} columns: {first}"
        shown = "\n".join(o.get("data", {}).get("text/markdown", "") for o in cell.outputs)
        if any(len(line) > WIDTH for line in shown.splitlines()):
            yield f"shows source wider than {WIDTH} columns: {first}"
        closed = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        if closed != is_hidden(cell):
            yield f"folded otherwise than on the page: {first}"
        pictures = [o for o in cell.outputs if is_picture(o)]
        about = cell.metadata.get("mystnb", {})
        if pictures and len(about.get("image", {}).get("alt", "")) < 60:
            yield f"a picture without alt text: {first}"
        if re.search(r"/(home|root|work|Users|tmp)/", str(cell.outputs) + cell.source):
            yield f"a path of somebody's machine: {first}"


def without_caption(notebook):
    """The cells of a figure that no caption follows."""
    for cell, below in itertools.pairwise([*notebook.cells, {"source": ""}]):
        drawn = "figure" in cell.metadata.get("mystnb", {})
        drawn |= any(map(is_picture, cell.get("outputs", ())))
        if drawn and not re.match(r"\*\*Figure [\d.]+\.\*\* ", below["source"]):
            yield f"a picture without a caption: {cell.source.splitlines()[0]}"


def is_picture(output):
    return any(kind.startswith("image/") for kind in output.get("data", {}))


if __name__ == "__main__":
    found = [
        f"{path}: {fault}"
        for path in sys.argv[1:]
        for fault in faults(nbformat.read(path, as_version=4))
    ]
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))
