"""The notebooks of the book, read once."""

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "chapters").glob("*.ipynb"))
CHAPTERS = {path.stem: nbformat.read(path, as_version=4) for path in PATHS}
BACK = sorted((ROOT / "back").glob("*.ipynb"))
NOTEBOOKS = CHAPTERS | {path.stem: nbformat.read(path, as_version=4) for path in BACK}

each_chapter = pytest.mark.parametrize("name", list(CHAPTERS))
