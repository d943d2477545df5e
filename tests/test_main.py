"""python -m hfusion: the table, and one line for whatever does not fit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hfusion
from hfusion import __main__ as command
from hfusion import models

FACTORIES = """
import torch
from torch import nn
from hfusion import models

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 5)

    def forward(self, x):
        return self.a(x), self.b(x)

class Loop(Pair):
    def forward(self, x):
        return [self.a(row) for row in x]

class Held(Pair):
    def forward(self, x):
        return (self.a(x), self.b(x)) if self.training else self.a(x)

class Names:
    pair = Pair

ready = Pair()
number = 5

def fails():
    raise RuntimeError("no weights\\nin the cupboard")

def gives_text():
    return "a model"

def wants(size):
    return Pair()

def folded():
    return models.Inception((3, 2, 2, 2, 2, 2, 2))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a module of somebody else's, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "somebodys.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    yield tmp_path
    for name in ("somebodys", "broken"):
        sys.modules.pop(name, None)


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of the command."""
    try:
        status = command.main(list(arguments))
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out, err


def test_the_table_is_that_of_the_plan(capsys):
    status, out, err = run(capsys, "plan", "hfusion.models:GoogLeNet")
    assert (status, err) == (0, "")
    assert out == f"{hfusion.plan(models.GoogLeNet())}\n"
    assert (
        out.splitlines()[-1]
        == "9 of 9 groups fused; Conv2d 57 -> 39 calls; Linear 1 -> 1 calls"
    )


def test_fold_first(capsys):
    _, plain, _ = run(capsys, "plan", "somebodys:folded")
    status, out, err = run(capsys, "plan", "somebodys:folded", "--fold")
    assert (status, err) == (0, "")
    assert "ReLU" in out
    assert "ReLU" not in plain
    model = hfusion.fold_batchnorm(models.Inception((3, 2, 2, 2, 2, 2, 2)).eval())
    assert out == f"{hfusion.plan(model)}\n"


def test_eval(capsys):
    _, training, _ = run(capsys, "plan", "somebodys:Held")
    status, out, _ = run(capsys, "plan", "somebodys:Held", "--eval")
    assert status == 0
    assert "Linear 2 -> 1 calls" in training
    assert out == "no siblings; Linear 1 -> 1 calls\n"


@pytest.mark.parametrize(("least", "fused"), [("2", True), ("3", False)])
def test_min_siblings(capsys, least, fused):
    status, out, _ = run(capsys, "plan", "somebodys:Pair", "--min-siblings", least)
    assert status == 0
    assert ("Linear 2 -> 1 calls" in out) is fused
    assert (f"min_siblings is {least}" in out) is not fused


@pytest.mark.parametrize("name", ["Pair", "ready", "Names.pair"])
def test_what_stands_behind_the_colon(capsys, name):
    status, out, _ = run(capsys, "plan", f"somebodys:{name}")
    assert status == 0
    assert out.splitlines()[-1] == "1 of 1 groups fused; Linear 2 -> 1 calls"


MODEL = "somebodys:Pair"
WRONG = {
    "no command": ([], "plan"),
    "another command": (["record"], "record"),
    "no model": (["plan"], "package.module:factory"),
    "no colon": (
        ["plan", "somebodys"],
        "model was 'somebodys'; package.module:factory fits",
    ),
    "no module": (["plan", ":Pair"], "model was ':Pair'; package.module:factory fits"),
    "no factory": (
        ["plan", "somebodys:"],
        "model was 'somebodys:'; package.module:factory fits",
    ),
    "unknown module": (
        ["plan", "nowhere:f"],
        "nowhere:f cannot be made: ModuleNotFoundError",
    ),
    "unknown factory": (["plan", "somebodys:none"], "AttributeError: .*'none'"),
    "broken module": (["plan", "broken:f"], "No module named 'nowhere_to_be_found'"),
    "raises": (["plan", "somebodys:fails"], "RuntimeError: no weights in the cupboard$"),
    "no module made": (["plan", "somebodys:gives_text"], "makes a str; an nn.Module fits"),
    "wants arguments": (["plan", "somebodys:wants"], "TypeError: .*'size'"),
    "not callable": (["plan", "somebodys:number"], "TypeError: 'int' object"),
    "unknown option": (["plan", MODEL, "--fast"], "--fast"),
    "no number": (["plan", MODEL, "--min-siblings", "few"], "--min-siblings: .*few"),
    "no whole number": (["plan", MODEL, "--min-siblings", "2.5"], "--min-siblings: .*2.5"),
    "one": (
        ["plan", MODEL, "--min-siblings", "1"],
        "--min-siblings: .*1; a whole number from 2",
    ),
    "negative": (["plan", MODEL, "--min-siblings", "-3"], "min-siblings.*-3"),
    "number missing": (["plan", MODEL, "--min-siblings"], "--min-siblings: expected one"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_arguments_that_do_not_fit(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("python -m hfusion")
    assert re.search(message, err.strip()), err


@pytest.mark.parametrize("options", [[], ["--fold"], ["--eval"]])
def test_a_model_that_cannot_be_planned(capsys, options):
    status, out, err = run(capsys, "plan", "somebodys:Loop", *options)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(
        "python -m hfusion: model cannot be traced: it stops at somebodys.py:"
    )
    assert "`return [self.a(row) for row in x]`" in err


def test_a_factory_that_leaves_the_program_is_not_stopped(capsys, here):
    (here / "leaves.py").write_text("def f():\n    raise SystemExit(7)\n")
    status, _, _ = run(capsys, "plan", "leaves:f")
    assert status == 7


def test_help_is_printed(capsys):
    status, out, err = run(capsys, "plan", "--help")
    assert (status, err) == (0, "")
    for word in ("--eval", "--fold", "--min-siblings", "package.module:factory"):
        assert word in out


def test_as_a_program(here):
    """Once as people call it; what lies in the current folder is found."""
    source = str(Path(hfusion.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": source, "PYTHONSAFEPATH": ""}
    call = [sys.executable, "-m", "hfusion", "plan", "somebodys:Pair"]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "1 of 1 groups fused; Linear 2 -> 1 calls"
    wrong = subprocess.run(
        [*call, "--min-siblings", "few"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=here,
    )
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
