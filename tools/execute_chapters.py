"""Execute notebooks in place: python tools/execute_chapters.py [chapters/NN-….ipynb …]

Whole, in order, in a fresh kernel, with nothing of the moment written down: no
timings, and cell ids that count the cells. What cells have computed for the text is written
into it (`written.py`). A notebook that fails is left as it was.
The README's figure is written anew with the chapter that it is from, and at the end its
table, from the records.
"""

import base64
import runpy
import sys
from pathlib import Path

import first_cell
import nbformat
import notebooks
import readme
import written
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
README_FIGURE = ROOT / "_static" / "launches.png"


def left_out():
    """The notebooks that cannot run here, and why: {path: reason}."""
    reasons = runpy.run_path(ROOT / "conftest.py")["REASONS"]
    return {ROOT / name: reason for name, reason in reasons.items()}


def named_figure(notebook, name):
    """The PNG that the cell with the figure `name` has for output, or None."""
    for cell in notebook.cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            return base64.b64decode(cell.outputs[0].data["image/png"])
    return None


def metadata(notebook):
    """What programs keep of a notebook: its kernel; for Colab a GPU, and solutions closed.

    JupyterLab keeps what is closed in the cells of the headings; it is set here.
    """
    solutions = [cell for cell in notebook.cells if cell.source.startswith("### Solution ")]
    for cell in solutions:
        cell.metadata["jp-MarkdownHeadingCollapsed"] = True
    closed = [cell.id for cell in solutions]
    return {
        "accelerator": "GPU",
        "colab": {"collapsed_sections": closed, "gpuType": "T4", "provenance": []},
        "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }


def execute(path):
    notebook = nbformat.read(path, as_version=4)
    before = written.values(notebook)
    first_cell.put(notebook)
    notebooks.fold(notebook)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03}"
        cell.metadata.pop("execution", None)
    notebook.metadata = metadata(notebook)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,
        resources=resources,
    ).execute()
    for cell in notebook.cells:  # PyTorch's profiler writes its process id to stderr
        if "remove-stderr" in cell.metadata.get("tags", []):
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}  # less the exact version
    written.write(notebook, path.stem, before)
    nbformat.validate(notebook)
    whole = path.with_suffix(".tmp")
    nbformat.write(notebook, whole)
    whole.replace(path)
    if figure := named_figure(notebook, "fig-ladder"):
        README_FIGURE.write_bytes(figure)


if __name__ == "__main__":
    everything = [*sorted(ROOT.glob("chapters/*.ipynb")), *ROOT.glob("back/*.ipynb")]
    reasons = left_out()
    for path in (Path(name).resolve() for name in sys.argv[1:] or everything):
        if path in reasons:
            print(f"left as it was: {path.name}, {reasons[path]}")
            continue
        print(f"executing {path.name}", flush=True)
        execute(path)
    readme.write()
