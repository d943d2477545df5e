"""Execute chapters in place: python tests/execute_chapters.py [chapters/NN-….ipynb …]

Whole, in order, in a fresh kernel, with nothing of the moment written down: no
timings, and cell ids that count the cells. A notebook that fails is left as it was.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

CHAPTERS = Path(__file__).resolve().parent.parent / "chapters"


def execute(path):
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03}"
        cell.metadata.pop("execution", None)
    notebook.metadata = {
        "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, timeout=300, record_timing=False, resources=resources
    ).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # less the exact version
    nbformat.validate(notebook)
    whole = path.with_suffix(".tmp")
    nbformat.write(notebook, whole)
    whole.replace(path)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(CHAPTERS.glob("*.ipynb")):
        print(f"executing {Path(name).name}", flush=True)
        execute(Path(name).resolve())
