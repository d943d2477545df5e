"""The library alone, then each notebook alone in an empty folder, both from the wheel.

Slow: the environment is made by pip, and every notebook runs (some five minutes).
"""

import os
import subprocess
import sys
from pathlib import Path

import execute_chapters
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted([*ROOT.glob("chapters/*.ipynb"), *ROOT.glob("back/*.ipynb")])
# Neither the checkout's code nor its records.
OURS = ("PYTHON", "HFUSION", "VIRTUAL_ENV")
ELSEWHERE = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}

pytestmark = pytest.mark.slow


def run(*command, cwd):
    done = subprocess.run(
        command, cwd=cwd, env=ELSEWHERE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


# What a user of the library does who never installs the extra "notebook".
ALONE = """
import importlib.util, torch, hfusion
unwanted = ("matplotlib", "IPython", "tqdm")
print([name for name in unwanted if importlib.util.find_spec(name)])
model, x = hfusion.models.GoogLeNet().eval(), torch.randn(1, 3, 64, 64)
plan = hfusion.plan(model)
print(plan.calls["Conv2d"])
with torch.no_grad():
    print(torch.allclose(plan.apply()(x), model(x), rtol=1e-3, atol=1e-4))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of an environment with the wheel and, after ALONE has spoken, the rest."""
    folder = tmp_path_factory.mktemp("alone")
    wheel = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    run(sys.executable, *wheel, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    install = ("-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    run(python, *install, wheel, cwd=folder)
    said = run(python, "-c", ALONE, cwd=folder)
    run(python, *install, f"{wheel}[notebook]", "nbval", cwd=folder)
    return python, said


@pytest.fixture
def python(installed):
    return installed[0]


def test_the_library_alone_fuses_a_network(installed):
    """With NumPy and torch only: no Matplotlib, no IPython."""
    assert installed[1].splitlines() == ["[]", "(57, 39)", "True"]


def test_the_library_is_the_wheel_s(python, tmp_path):
    where = run(python, "-c", "import hfusion; print(hfusion.__file__)", cwd=tmp_path)
    assert str(python.parent.parent) in where


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_alone_and_says_the_same(python, tmp_path, path):
    if path in (left_out := execute_chapters.left_out()):
        pytest.skip(left_out[path])
    (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "empty.ini").write_text("[pytest]\n")
    nbval = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "empty.ini", "--nbval")
    options = ("--nbval-current-env", "--nbval-sanitize-with", ROOT / "tests" / "nbval.cfg")
    run(python, *nbval, *options, path.name, cwd=tmp_path)
    assert {found.name for found in tmp_path.iterdir()} == {path.name, "empty.ini"}
