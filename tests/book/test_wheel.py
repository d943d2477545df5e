"""The wheel: the library and the data of the book, all of it, twice the same.

Slow: pip fetches what builds it.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"code": "", "records": "sideways/book/records/"}

pytestmark = pytest.mark.slow


def build(book, folder):
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir")
    done = subprocess.run([*command, folder, book], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_has_the_library_and_the_data_and_is_the_same_again(tmp_path):
    book = tmp_path / "book"
    skip = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    for name in PLACES:
        shutil.copytree(ROOT / name, book / name, ignore=skip)
    for name in (".gitignore", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, book)
    expected = {
        place + path.relative_to(book / name).as_posix()
        for name, place in PLACES.items()
        for path in (book / name).rglob("*")
        if path.is_file()
    }
    unfinished = book / "records" / ".a-machine.unfinished"  # of a run that did not end
    unfinished.mkdir()
    (unfinished / "stage.json").write_text("{}")
    first, second = build(book, tmp_path / "1"), build(book, tmp_path / "2")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as content:
        found = {name for name in content.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert len([name for name in found if name.startswith(PLACES["records"])]) > 10
