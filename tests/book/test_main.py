"""python -m hfusion: the table, and one line for whatever does not fit."""

import dataclasses
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from made_up_record import RECORD

import hfusion
from hfusion import __main__ as command
from hfusion import models, named
from sideways import apart, experiments, records, runs
from sideways.experiments import launch_overhead
from sideways.recorder import machines

ROOT = Path(__file__).resolve().parents[2]
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

class Branches(Pair):
    def forward(self, x):
        return (self.a(x), self.b(x)) if x.shape[0] > 1 else self.a(x)

class Tokens(Pair):
    def forward(self, tokens, scale, mask):
        assert (tokens.dtype, scale.dtype, mask.dtype) == (
            torch.int64, torch.float64, torch.bool)
        x = torch.eye(3)[tokens] * scale.float() * mask[:, None, None]
        return self.a(x), self.b(x)

class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x):
        return self.a(x), self.b(x)

class Names:
    pair = Pair

ready = Pair()
number = 5

def fails():
    raise RuntimeError("no weights\\nin the cupboard")

def gives_text():
    return "a model"

def wants(size, kind, *, depth=1):
    return Pair()

def forgets():
    return wants(1)

class Sized(Pair):
    def __init__(self, size, **more):
        super().__init__()

def chatty():
    print("making it", flush=True)
    return Pair()

def waits():
    raise KeyboardInterrupt

def folded():
    return models.Inception((3, 2, 2, 2, 2, 2, 2))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a module of somebody else's, as the current one. Nothing is run."""
    monkeypatch.setattr(apart, "run", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "somebodys.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    (tmp_path / "syntax.py").write_text("def f(:")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "numbers.py").write_text(FACTORIES)  # one of Python's names
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
        out.splitlines()[-2]
        == "9 of 9 groups fused; Conv2d 57 -> 39 calls; Linear 1 -> 1 calls; found by "
        "reading"
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
    assert out == f"{hfusion.plan(sys.modules['somebodys'].Held().eval())}\n".replace(
        "example_inputs", "--input"
    )
    assert out.startswith("not called: b (")
    assert out.endswith("no siblings; Linear 1 -> 1 calls; found by reading\n")


def test_embed(capsys):
    _, apart, _ = run(capsys, "plan", "somebodys:Windows")
    status, out, _ = run(capsys, "plan", "somebodys:Windows", "--embed")
    assert status == 0
    assert "Conv2d 2 -> 2 calls" in apart
    assert "Conv2d 2 -> 1 calls" in out


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
    assert (
        out.splitlines()[-2] == "1 of 1 groups fused; Linear 2 -> 1 calls; found by reading"
    )


def test_what_lies_in_the_current_folder_goes_first(capsys, here):
    (here / "other").mkdir()
    (here / "other" / "somebodys.py").write_text("")
    sys.path.insert(0, str(here / "other"))
    assert run(capsys, "plan", "somebodys:Pair")[0] == 0


MODEL = "somebodys:Pair"
WRONG = {
    "another command": (
        ["measure"],
        "expected a command, plan or record, got 'measure'; .* --help lists what fits$",
    ),
    "almost a command": (["plna", MODEL], r"got 'plna' \(did you mean plan\?\); "),
    "from and an experiment": (
        ["record", "stage", "--from", "f"],
        "--from: expected no experiments beside it, got stage$",
    ),
    "no model": (["plan"], "package.module:factory"),
    "no colon": (
        ["plan", "somebodys"],
        "model: expected package.module:factory or file.py:factory, got 'somebodys'; "
        "for example somebodys:factory$",
    ),
    "a dot for the colon": (
        ["plan", "hfusion.models.GoogLeNet"],
        "for example hfusion.models:GoogLeNet$",
    ),
    "a file": (["plan", "./somebodys.py"], "for example ./somebodys.py:factory$"),
    "no such file": (["plan", "nets/mine.py:Pair"], "there is no file nets/mine.py in /"),
    "a file that Python hides": (
        ["plan", "below/numbers.py:Pair"],
        "Python has another module numbers; rename below/numbers.py$",
    ),
    "nothing": (["plan", ""], "got ''; for example file.py:factory$"),
    "no module": (["plan", ":Pair"], "got ':Pair'; for example Pair:factory$"),
    "no factory": (["plan", "somebodys:"], "'somebodys:'; for example somebodys:factory$"),
    "unknown module": (
        ["plan", "nowhere:f"],
        "model: there is no module 'nowhere' in .* or among the packages of .*; for a file "
        "that is elsewhere: path/to/file.py:factory$",
    ),
    "unknown module of a package": (
        ["plan", "hfusion.nowhere:f"],
        "there is no module 'hfusion.nowhere' in ",
    ),
    "unknown factory": (
        ["plan", "somebodys:none"],
        "model: somebodys has no 'none'; it has Pair, Loop, Held, Branches, ",
    ),
    **{
        f"input {text!r}": (
            ["plan", MODEL, "--input", text],
            "argument --input: expected sizes and perhaps a dtype, like 1,3,224,224 or "
            f"2,7:int64, got '{text}'; .* plan --help lists what fits$",
        )
        for text in (
            "",
            "2x7",
            "2,",
            "2,-1",
            "2.5",
            "2,3:",
            "2,3:integer",
            "2,3:Tensor",
            "2:complex64",
            "2, 3",
            "two",
        )
    },
    "almost a factory": (["plan", "somebodys:Piar"], r"'Piar' \(did you mean Pair\?\)$"),
    "broken module": (
        ["plan", "broken:f"],
        "broken cannot be imported: ModuleNotFoundError: No module named "
        r"'nowhere_to_be_found' \(at broken.py:1, `import nowhere_to_be_found`\)$",
    ),
    "no Python": (["plan", "syntax.py:f"], r"SyntaxError: .* \(syntax.py, line 1\)$"),
    "raises": (
        ["plan", "somebodys:fails"],
        r"somebodys:fails cannot be made: RuntimeError: no weights in the cupboard \(at "
        r"somebodys.py:\d+, `raise RuntimeError\(.*`\)$",
    ),
    "no module made": (
        ["plan", "somebodys:gives_text"],
        "model: expected an nn.Module; somebodys:gives_text returns type str$",
    ),
    "wants arguments": (
        ["plan", "somebodys:wants"],
        "model: somebodys:wants needs size, kind; expected a factory without arguments, ",
    ),
    "class wants arguments": (["plan", "somebodys:Sized"], "somebodys:Sized needs size;"),
    "lacks arguments inside": (["plan", "somebodys:forgets"], r"TypeError: wants\(\) miss"),
    "not callable": (
        ["plan", "somebodys:number"],
        "expected an nn.Module or a factory of one; somebodys:number has type int$",
    ),
    "no number": (["plan", MODEL, "--min-siblings", "few"], "--min-siblings: .*few"),
    "one": (
        ["plan", MODEL, "--min-siblings", "1"],
        "--min-siblings: expected an int of at least 2, got '1'",
    ),
    "unknown experiment": (
        ["record", "stage", "stag"],
        "experiment: expected one of ceilings, .*stage, .*rivals, got 'stag' "
        r"\(did you mean stage\?\)$",
    ),
    "another device": (["record", "--device", "tpu"], "--device: .*'tpu'"),
    **{
        f"minutes {text!r}": (
            ["record", "--minutes", text],
            f"--minutes: expected a number above 0, got '{text}'; .* record --help lists",
        )
        for text in ("few", "", "0", "0.0", "-1", "-0.5", "inf", "nan", "1e999", "3 min")
    },
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
        "python -m hfusion: model cannot be traced: tracing stops at somebodys.py:"
    )
    assert "`return [self.a(row) for row in x]`" in err


@pytest.mark.parametrize("code", ["0", "7", "", "None", "'no weights'"])
@pytest.mark.parametrize("name", ["made", "imported", "Read", "Ran"])
def test_a_model_that_ends_the_program(capsys, here, name, code):
    """Else the status would be whatever it likes, 0 for example, and nothing printed."""
    (here / "leaves.py").write_text(
        f"import sys\nimport somebodys\ndef made():\n    sys.exit({code})\n"
        "class Read(somebodys.Pair):\n    def forward(self, x):\n        made()\n"
        "Ran = Read\n" + ("made()" if name == "imported" else "")
    )
    options = ["--input", "2,3"] if name == "Ran" else []
    status, out, err = run(capsys, "plan", f"leaves:{name}", *options)
    sys.modules.pop("leaves", None)
    who = "forward" if name in ("Read", "Ran") else f"leaves:{name}"
    said = f"{who} ends the program: sys.exit({code or None})\n"
    assert (status, out, err) == (1, "", f"python -m hfusion: {said}")


@pytest.mark.parametrize("options", [[], ["--eval"], ["--fold"], ["--embed"]])
@pytest.mark.parametrize("name", ["Child", "Grandchild"])
def test_a_module_that_holds_itself(capsys, here, name, options):
    (here / "rings.py").write_text(RINGS)
    status, out, err = run(capsys, "plan", f"rings:{name}", *options)
    sys.modules.pop("rings", None)
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert "hold" in err
    assert "itself" in err


RINGS = """
from torch import nn
from somebodys import Pair

class Child(Pair):
    def __init__(self):
        super().__init__()
        self.me = self

class Grandchild(Pair):
    def __init__(self):
        super().__init__()
        self.s = nn.Module()
        self.s.up = self
"""

# What is run, and on which inputs.


def test_a_model_that_cannot_be_read_is_run(capsys):
    status, out, err = run(capsys, "plan", "somebodys:Branches", "--input", "2,3")
    assert (status, err) == (0, "")
    assert out.splitlines()[-2:] == [
        "1 of 1 groups fused; Linear 2 -> 1 calls; found by running",
        "    seen in one run; checked at each call",
    ]
    status, _, err = run(capsys, "plan", "somebodys:Branches")
    assert status == 1
    assert err.endswith("; or give --input, and the model is run instead\n")


def test_several_inputs_of_several_dtypes(capsys):
    given = ["--input", "2,7:int64", "--input", "2,1,3:float64", "--input", "2:bool"]
    status, out, _ = run(capsys, "plan", "somebodys:Tokens", *given, "--eval")
    assert status == 0
    assert "Linear 2 -> 1 calls; found by running" in out


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [("1,3,4", (1, 3, 4), "float32"), ("5", (5,), "float32"), (":int64", (), "int64"),
     ("2,0:float16", (2, 0), "float16"), ("3,50:uint8", (3, 50), "uint8"),
     ("9,9:bool", (9, 9), "bool"), ("2,2:bfloat16", (2, 2), "bfloat16")],
)  # fmt: skip
def test_an_input_by_its_shape(text, shape, dtype):
    x = named.example(text)
    assert (tuple(x.shape), x.dtype) == (shape, getattr(torch, dtype))
    assert x.equal(named.example(text))  # so a plan is the same each time
    if not x.is_floating_point() and x.numel() > 50:
        assert sorted(x.unique().tolist()) == [0, 1]


@pytest.mark.parametrize("sizes", ["9" * 30, "999999999,999999999"])
def test_an_input_that_no_memory_holds(capsys, sizes):
    status, out, err = run(capsys, "plan", MODEL, "--input", sizes)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "argument --input: " in err


def test_an_input_that_does_not_fit_the_model_is_named(capsys):
    status, out, err = run(capsys, "plan", MODEL, "--input", "2,4")
    assert (status, out) == (1, "")
    assert err.startswith("python -m hfusion: model cannot be run with --input: ")
    assert len(err.splitlines()) == 1


def test_help_is_printed(capsys):
    status, out, err = run(capsys, "plan", "--help")
    assert (status, err) == (0, "")
    for word in ("--eval", "--fold", "--min-siblings", "package.module:factory"):
        assert word in out
    status, out, err = run(capsys, "record", "--help")
    assert (status, err) == (0, "")
    for word in ("experiment", "--folder", "--device", "--minutes"):
        assert word in out


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (
        0,
        f"hfusion {hfusion.__version__}\n",
    )


def test_a_torchvision_of_another_torch_is_called_so(capsys, here):
    (here / "old.py").write_text(
        "def f():\n    raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    status, _, err = run(capsys, "plan", "old:f")
    assert status == 2
    assert "does not exist (at old.py:2, " in err
    assert err.endswith("; this torchvision was built for another torch\n")


def test_without_a_command_help_is_an_error(capsys):
    status, out, err = run(capsys)
    assert (status, out) == (2, "")
    _, helped, _ = run(capsys, "--help")
    assert err == helped
    assert {"plan", "record", "--version"} <= set(helped.split())


@pytest.mark.parametrize("arguments", [[], ["plan"], ["record"]])
def test_help_is_a_command(capsys, arguments):
    assert run(capsys, "help", *arguments) == run(capsys, *arguments, "--help")


FILED = ["somebodys.py:Pair", "./somebodys.py:Pair", "{here}/somebodys.py:ready"]


@pytest.mark.parametrize("name", FILED)
def test_a_file_is_a_module(capsys, here, name):
    status, out, err = run(capsys, "plan", name.format(here=here))
    assert (status, err) == (0, "")
    assert (
        out.splitlines()[-2] == "1 of 1 groups fused; Linear 2 -> 1 calls; found by reading"
    )


def test_a_file_finds_what_lies_beside_it_and_in_its_package(capsys, here):
    (here / "nets" / "deep").mkdir(parents=True)
    (here / "nets" / "beside.py").write_text(FACTORIES)
    (here / "nets" / "alone net.py").write_text("from beside import Pair")
    assert run(capsys, "plan", "nets/alone net.py:Pair")[0] == 0
    for folder in (here / "nets", here / "nets" / "deep"):
        (folder / "__init__.py").write_text("")
    (here / "nets" / "deep" / "inner.py").write_text("from ..beside import Pair")
    assert run(capsys, "plan", "nets/deep/inner.py:Pair")[0] == 0
    for name in ("alone net", "beside", "nets", "nets.beside", "nets.deep"):
        sys.modules.pop(name, None)


def test_ctrl_c_while_a_model_is_made(capsys):
    status, out, err = run(capsys, "plan", "somebodys:waits")
    assert (status, out, err) == (130, "", "python -m hfusion: interrupted\n")


# As a program


def program(here, *arguments, **more):
    """The finished process of the command, in a folder."""
    source = str(Path(hfusion.__file__).parent.parent)
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    environment = kept | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    environment |= more.pop("environment", {})
    call = [sys.executable, "-m", "hfusion", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.run(call, text=True, env=environment, cwd=here, **streams)


@pytest.mark.slow
def test_the_command_for_a_machine_without_git_brings_one_file_home(tmp_path):
    """As CONTRIBUTING has it, with less time, where nothing else lies but the code."""
    (said,) = re.findall(r"`(HFUSION_COMMIT=.*)`", (ROOT / "CONTRIBUTING.md").read_text())
    said = said.replace("python3", sys.executable).replace("--minutes 7", "--minutes 0.2")
    bare, home = tmp_path / "bare", tmp_path / "home"
    shutil.copytree(ROOT / "code", bare / "code")
    environment = {"COMMIT": "1" * 40, "PATH": "/nowhere", "HOME": str(bare)}
    done = subprocess.run(
        ["/bin/sh", "-c", said], cwd=bare, env=environment, text=True, capture_output=True
    )
    assert done.returncode in (0, 3), done.stderr
    assert [path.name for path in (bare / "OUT").iterdir()] == ["records.zip"]
    pack = str(bare / "OUT" / "records.zip")
    assert command.main(["record", "--from", pack, "--folder", str(home)]) == 3
    (place,) = home.glob("*/")
    made = [records.load(path) for path in place.glob("*.json")]
    assert {record.commit for record in made} == {"1" * 40}
    assert "ceilings" in {record.experiment for record in made}


def test_where_a_pack_cannot_lie_nothing_is_measured(here, capsys):
    (here / "file").touch()
    assert command.main(["record", "stage", "--pack", "file/records.zip"]) == 2
    assert "--pack: expected a folder, got 'file': " in capsys.readouterr().err


PIPED = {
    "a table": ["plan", "somebodys:Pair"],
    "what a factory prints": ["plan", "somebodys:chatty"],
    "help": ["record", "--help"],
    "the version": ["--version"],
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", PIPED.values(), ids=PIPED)
def test_who_reads_may_stop_reading(here, arguments):
    """As in `python -m hfusion plan … | head -1`."""
    reads, writes = os.pipe()
    os.close(reads)
    done = program(here, *arguments, stdout=writes)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_who_reads_errors_may_stop_reading(here):
    """As in `python -m hfusion … 2>&1 | head -1`."""
    reads, writes = os.pipe()
    os.close(reads)
    done = program(here, "plan", "nowhere:f", stdout=writes, stderr=writes)
    os.close(writes)
    assert done.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_called_so(here):
    with open("/dev/full", "w") as full:
        done = program(here, "plan", "somebodys:Pair", stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "python -m hfusion: the output cannot be written: No space left on device\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="wants a shell")
def test_nobody_listens(here):
    """Both streams closed; the status is still true."""
    closed = 'exec "$@" >&- 2>&-'
    source = str(Path(hfusion.__file__).parent.parent)
    for name, status in (("Pair", 0), ("nothing", 2)):
        call = [sys.executable, "-m", "hfusion", "plan", f"somebodys:{name}"]
        environment = os.environ | {"PYTHONPATH": source, "PYTHONSAFEPATH": ""}
        done = subprocess.run(["sh", "-c", closed, "sh", *call], env=environment, cwd=here)
        assert done.returncode == status


@pytest.mark.slow
def test_a_terminal_without_the_signs(here):
    """ASCII only, and narrow; a ? stands for what it lacks. There is no HOME either."""
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ascii_only |= {"PYTHONIOENCODING": "ascii", "COLUMNS": "20", "NO_COLOR": "1"}
    done = program(here, "record", "--help", environment=ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1?1" in done.stdout
    table = program(here, "plan", "somebodys:Pair", environment=ascii_only)
    assert (table.returncode, table.stderr) == (0, "")


def test_as_a_program(here):
    """Once as people call it; what lies in the current folder is found."""
    done = program(here, "plan", "somebodys:Pair")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.splitlines()[-2]
        == "1 of 1 groups fused; Linear 2 -> 1 calls; found by reading"
    )
    wrong = program(here, "plan", "somebodys:Pair", "--min-siblings", "few")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1


# record: each experiment is a made-up one, which writes down how it was called.

RUN = apart.run  # before the fixture takes it away
TERM = object()  # told to end, in place of an error
ERRORS = {
    "broken": ValueError("no such case\nat all"),
    "interrupted": KeyboardInterrupt(),
    "terminated": TERM,
}
SKIPS = {
    "wrong": "wrong result: 1 of 4 entries differ",
    "fails": "failed: ValueError: no",
    "late": "not reached within 3 s",
    "lacks": "needs a CUDA device",
    "memory": "out of memory",
}


@pytest.fixture
def ran(monkeypatch):
    """[(experiment, device, seconds it may have, files there were before), …]."""
    subprocess.run(["git", "init", "-q"], check=True)
    shares = {"first": 0.1, "second": 0.3, "third": 0.2, "never": 0.1}
    shares |= dict.fromkeys([*ERRORS, *SKIPS], 0.1)
    monkeypatch.setattr(experiments, "SHARES", shares)
    monkeypatch.setattr(experiments, "here", lambda: "cpu")
    monkeypatch.setattr(machines, "machine", lambda device: RECORD.machine)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    calls = []

    def fake(name, device, limit_s, progress, keep, say, known, again, log):
        calls.append((name, device, limit_s, files()))
        cases = [{"number": 0}, {"number": 1}]
        bar = iter(progress(cases))  # as long as this frame is known, it is not closed
        for case in bar:
            say("a variant")
            if case["number"] == 1 and name in ERRORS:
                if ERRORS[name] is TERM:
                    os.kill(os.getpid(), signal.SIGTERM)
                raise ERRORS[name]
            keep(made(name))
        return made(name)

    monkeypatch.setattr(apart, "run", fake)
    return calls


def made(name, **more):
    case = RECORD.cases[0]
    if name in SKIPS:
        more["cases"] = (dataclasses.replace(case, skipped={"variant 7": SKIPS[name]}),)
    if name == "never":
        late = dataclasses.replace(RECORD.cases[1], skipped={"every arm": "not reached"})
        more["cases"] = (late,)
    return dataclasses.replace(RECORD, experiment=name, **more)


def files(folder="."):
    """What there is, less Python's and git's."""
    found = sorted(path for path in Path(folder).glob("**/*.*") if path.is_file())
    return [
        path.as_posix()
        for path in found
        if path.suffix != ".py" and ".git" not in path.parts
    ]


def test_records_are_below_the_folder_and_the_report_says_where(capsys, ran):
    status, out, _ = run(capsys, "record", "second", "first", "--folder", "a/b")
    assert status == 0
    assert f"written: {Path('a/b/a-cpu')}" in out.splitlines()
    assert files() == ["a/b/a-cpu/first.json", "a/b/a-cpu/second.json"]
    assert records.load("a/b/a-cpu/first.json").experiment == "first"


def test_records_come_together_at_the_end(capsys, ran):
    """Until then they are in a folder that no page reads."""
    run(capsys, "record", "first", "third", "second", "--folder", "r")
    away = "r/.a-cpu.unfinished"
    assert [(name, there) for name, _, _, there in ran] == [
        ("first", []),
        ("third", [f"{away}/first.json"]),
        ("second", [f"{away}/first.json", f"{away}/third.json"]),
    ]
    assert files() == [f"r/a-cpu/{name}.json" for name in ("first", "second", "third")]
    assert [path.name for path in Path("r").iterdir()] == ["a-cpu"]


def test_without_names_all_experiments_are_run_in_order_into_records(
    capsys, ran, monkeypatch
):
    monkeypatch.setattr(experiments, "SHARES", {"second": 0.5, "first": 0.5})
    status, _, _ = run(capsys, "record")
    assert status == 0
    assert [name for name, *_ in ran] == ["second", "first"]
    assert files() == ["records/a-cpu/first.json", "records/a-cpu/second.json"]


def test_a_name_given_twice_is_run_once(capsys, ran):
    run(capsys, "record", "second", "first", "second")
    assert [name for name, *_ in ran] == ["second", "first"]


# The time is split over the chosen experiments; by hand, with the shares above.


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        (["first"], [480]),  # alone it has all the time, 8 minutes if nobody says
        (["first", "--minutes", "0.5"], [30]),
        (["first", "second", "--minutes", "6"], [90, 270]),
        (["third", "second", "--minutes", "1e1"], [240, 360]),
        (["first", "third", "second", "--minutes", "1"], [10, 20, 30]),
    ],
)
def test_the_time_is_split_by_the_shares(capsys, ran, monkeypatch, options, seconds):
    """Each takes all that it may have."""
    monkeypatch.setattr(time, "monotonic", lambda: sum(limit_s for _, _, limit_s, _ in ran))
    status, _, _ = run(capsys, "record", *options)
    assert status == 0
    assert [limit_s for _, _, limit_s, _ in ran] == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("takes_s", "seconds"),
    [
        (0, [10, 24, 60]),  # what is left, 60, is shared by those to come
        (30, [10, 12, 0]),  # what is over is taken from those to come: 30 of 60 left
    ],
)
def test_the_time_of_all_is_kept_to(capsys, ran, monkeypatch, takes_s, seconds):
    monkeypatch.setattr(time, "monotonic", lambda: takes_s * len(ran))
    run(capsys, "record", "first", "third", "second", "--minutes", "1")
    assert [limit_s for _, _, limit_s, _ in ran] == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("options", "has_gpu", "device"),
    [
        ([], False, "cpu"),
        ([], True, "cuda"),
        (["--device", "cpu"], False, "cpu"),
        (["--device", "cpu"], True, "cpu"),
        (["--device", "cuda"], True, "cuda"),
    ],
)
def test_the_device_is_a_gpu_if_there_is_one(
    capsys, ran, monkeypatch, options, has_gpu, device
):
    monkeypatch.setattr(experiments, "here", lambda: "cuda" if has_gpu else "cpu")
    status, _, _ = run(capsys, "record", "first", *options)
    assert (status, ran[0][1]) == (0, device)


@pytest.mark.parametrize("device", experiments.ACCELERATORS)
def test_no_gpu_where_there_is_none(capsys, ran, device):
    status, out, err = run(capsys, "record", "first", "--device", device)
    assert (status, out, ran) == (2, "", [])
    assert err == (
        f"python -m hfusion: --device: expected cpu, which torch finds, got {device}\n"
    )


@pytest.mark.parametrize("tqdm", [True, False])
def test_one_unknown_name_and_nothing_is_run(capsys, ran, monkeypatch, tqdm):
    if not tqdm:  # nobody is told to install something for a name that does not exist
        monkeypatch.setitem(sys.modules, "tqdm", None)
    status, out, err = run(capsys, "record", "first", "fourth", "second")
    assert (status, out, ran, files()) == (2, "", [], [])
    assert "experiment: expected one of first, second, third, " in err
    assert "got 'fourth'" in err
    assert "install" not in err
    assert "tqdm" not in err


# What stops it changes no record, and what was complete stays aside.


def stopped(capsys, name, staged):
    """(status, last line of stderr) of three experiments, the second of which stops."""
    old = {
        records.save(made(one, date="2026-01-01"), "r") for one in ("first", "second", name)
    }
    before = {path: path.read_bytes() for path in old}
    status, out, err = run(capsys, "record", "first", name, "second", "--folder", "r")
    assert out == ""
    assert {path: path.read_bytes() for path in old} == before
    assert set(files("r")) == {path.as_posix() for path in old} | {
        f"r/.a-cpu.unfinished/{one}.json" for one in staged
    }
    assert "Traceback" not in err
    return status, err


@pytest.mark.parametrize(("name", "status"), [("interrupted", 130), ("terminated", 143)])
def test_who_is_stopped_changes_no_record(capsys, ran, name, status):
    found, err = stopped(capsys, name, ["first", name])
    assert found == status
    assert err.splitlines()[-1] == (
        f"python -m hfusion: {name}; no record was changed; what is new, 1 whole, stays in "
        f"{Path('r/.a-cpu.unfinished')} until the next run"
    )
    assert [name for name, *_ in ran] == ["first", name]
    assert records.load("r/.a-cpu.unfinished/first.json").date == RECORD.date
    # The next run begins anew.
    assert run(capsys, "record", "third", "--folder", "r")[0] == 0
    assert files("r") == sorted(
        f"r/a-cpu/{one}.json" for one in ("first", "second", "third", name)
    )
    assert records.load("r/a-cpu/first.json").date == "2026-01-01"


def test_who_is_stopped_at_once_leaves_nothing(capsys, ran, monkeypatch):
    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(apart, "run", stops)
    status, out, err = run(capsys, "record", "first", "--folder", "r")
    assert (status, out, files(), list(Path("r").iterdir())) == (130, "", [], [])
    said = "interrupted; no record was changed, and nothing new was complete"
    assert err == f"python -m hfusion: {said}\n"


def test_to_be_told_to_end_means_afterwards_what_it_meant_before(capsys, ran):
    before = signal.getsignal(signal.SIGTERM)
    run(capsys, "record", "first", "terminated")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4, 5])
def test_a_full_disk_changes_no_record(capsys, ran, monkeypatch, fails_at):
    write_text, writes = Path.write_text, []

    def full(self, text, encoding):
        writes.append(self)
        if len(writes) >= fails_at:
            raise OSError(28, "No space left on device")
        return write_text(self, text, encoding=encoding)

    old = records.save(made("first", date="2026-01-01"), "r")
    before = old.read_bytes()
    monkeypatch.setattr(Path, "write_text", full)
    status, out, err = run(capsys, "record", "first", "second", "--folder", "r")
    assert (status, out) == (1, "")
    assert "cannot be saved: [Errno 28] No space left on device; no record" in err
    assert old.read_bytes() == before
    assert [path for path in files("r") if "/." not in path] == ["r/a-cpu/first.json"]


def test_a_folder_that_is_a_file_is_refused_before_anything_is_measured(capsys, ran):
    Path("taken").write_text("")
    status, out, err = run(capsys, "record", "first", "second", "--folder", "taken")
    assert (status, out, ran) == (2, "", [])
    assert "--folder: expected a folder, got 'taken': " in err


def test_a_run_beside_another_is_refused_before_anything_is_measured(capsys, ran):
    pytest.importorskip("fcntl")
    other = runs.Run("r", RECORD.machine, ["first"])
    other.begin()
    status, out, err = run(capsys, "record", "first", "--folder", "r")
    assert (status, out, ran) == (1, "", [])
    assert err.startswith("python -m hfusion: another run is at work in ")
    other.finish()
    assert run(capsys, "record", "first", "--folder", "r")[0] == 0


# What the status says, and the report.


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (["first"], 0),
        (["first", "lacks", "memory"], 0),
        (["late", "first"], 3),
        (["never", "first"], 3),
        (["first", "wrong"], 1),
        (["fails", "second"], 1),
        (["broken", "first"], 1),
        (["late", "fails", "lacks"], 1),
        (["never", "broken", "first"], 1),
    ],
)
def test_the_status_says_what_went_wrong(capsys, ran, names, status):
    found, out, err = run(capsys, "record", *names)
    assert found == status
    assert [name for name, *_ in ran] == names  # one does not stop another
    kept = {name for name in names if name not in ("never", "broken")}
    assert {Path(path).stem for path in files()} == kept
    assert "Traceback" not in err
    for name in set(names) & set(SKIPS):
        assert f"  {name}: {SKIPS[name]}: variant 7" in out.splitlines()
    if "never" in names:
        assert "  never: not reached in time" in out.splitlines()
    if "broken" in names:
        assert "  broken: failed: ValueError: no such case at all" in out.splitlines()


def test_what_has_no_new_record_keeps_the_old_one(capsys, ran):
    old = [records.save(made(name, date="2026-01-01"), "r") for name in ("never", "broken")]
    before = [path.read_bytes() for path in old]
    run(capsys, "record", "never", "broken", "first", "--folder", "r")
    assert [path.read_bytes() for path in old] == before
    assert Path("r/a-cpu/first.json").exists()
    run(capsys, "record", "never", "broken", "--folder", "r")
    assert [path.read_bytes() for path in old] == before
    assert [path.name for path in Path("r").iterdir()] == ["a-cpu"]


def test_help_lists_the_experiments(capsys, monkeypatch):
    """A line for each: its seconds of eight minutes, and its question."""
    monkeypatch.setenv("COLUMNS", "140")
    _, out, _ = run(capsys, "record", "--help")
    listed = re.findall(r"^  (\w+) +(\d+) s  (.*\?)$", out, re.M)
    assert [name for name, *_ in listed] == list(experiments.SHARES)
    for name, seconds, question in listed:
        module = importlib.import_module(f"sideways.experiments.{name}")
        assert question == module.QUESTION
        assert int(seconds) == pytest.approx(8 * 60 * experiments.SHARES[name], abs=0.5)


def test_without_a_progress_bar_nothing_is_run(capsys, ran, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)  # as if it were not installed
    status, out, err = run(capsys, "record", "first")
    assert (status, out, ran) == (1, "", [])
    assert err == "python -m hfusion: the progress bar needs tqdm: pip install tqdm\n"


def test_plans_need_no_progress_bar(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run(capsys, "plan", "somebodys:Pair")[0] == 0


def test_each_experiment_has_a_progress_bar_of_its_cases(capsys, ran, monkeypatch):
    _, _, err = run(capsys, "record", "first", "second")
    lines = err.splitlines()
    for name in ("first", "second"):
        bars = [line for line in lines if line.startswith(f"{name}: ")]
        assert re.search(r" 0/2 cases", bars[0])
        assert re.search(r"100%.* 2/2 cases, in 0:00", bars[-1])


def test_a_real_experiment_from_end_to_end(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "run", RUN)
    folder = str(tmp_path / "new")
    names = ["launch_overhead", "timeline"]
    status, out, err = run(capfd, "record", *names, "--device", "cpu", "--folder", folder)
    assert status == 0
    assert re.search(r"launch overhead: 100%.* 3/3 cases, in ", err)
    assert "USDT" not in err  # the profiler's own words
    (place,) = Path(folder).iterdir()
    assert f"written: {place}" in out.splitlines()
    assert "  launch_overhead: needs a CUDA device: 2 of 3 cases" in out.splitlines()
    found = records.load(place / "launch_overhead.json")
    assert (found.experiment, found.machine.kind) == ("launch_overhead", "cpu")
    assert found.machine.name == place.name
    (eager,) = found.select(way="eager")
    chains, rounds = launch_overhead.CHAINS, launch_overhead.ROUNDS
    assert {n: len(us) for n, us in eager.samples.items()} == {
        str(n): rounds for n in chains
    }
    assert eager.launches == {str(n): n for n in chains}


def test_no_option_is_guessed_from_its_first_letters(capsys):
    assert run(capsys, "record", "--fold", "x")[0] == 2
    assert run(capsys, "plan", "somebodys:Pair", "--fol")[0] == 2
