"""Where the book's parts come from: packages, actions, data; and what must not leave."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import first_cell
import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".binder", "_ext", "_static", "back", "chapters", "code",
           "records", "tests", "tools", ".github")  # fmt: skip
FILES = [
    *(path for path in ROOT.glob("*.*") if path.is_file()),
    *(path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()),
]
FILES = [p for p in FILES if not {"__pycache__", ".ipynb_checkpoints"} & {*p.parts}]
WORKFLOWS = {path.name: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def read(path):
    """A file's text, less the pictures in a notebook."""
    text = path.read_text(encoding="utf-8", errors="ignore")
    return re.sub(r'"image/\w+": "[^"]*"', "", text)


# Data that would run code when it is loaded.

SAFE = {"allow_pickle": False, "weights_only": True}  # for load(…): one of them, so


def unsafe(source):
    """The calls in Python code that may run what is in a file."""
    source = "\n".join(re.sub(r"^\s*[%!].*", "", line) for line in source.splitlines())
    for call in (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
    ):
        called = ast.unparse(call.func)
        given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
        safe = any(given.get(name) is value for name, value in SAFE.items())
        loads = re.fullmatch(r"(np|numpy|torch|pickle|joblib|dill|marshal)\.loads?", called)
        if (loads and not safe) or called in (
            "eval",
            "exec",
            "yaml.load",
            "pd.read_pickle",
        ):
            yield ast.unparse(call)


def code_of(path):
    if path.suffix == ".py":
        return read(path)
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def test_nothing_that_is_loaded_can_run_code():
    """Tests may: what they read they have written themselves."""
    programs = [
        p for p in FILES if p.suffix in (".py", ".ipynb") and "tests" not in p.parts
    ]
    assert len(programs) > 50
    found = [f"{p.name}: {call}" for p in programs for call in unsafe(code_of(p))]
    assert found == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("np.load(f, allow_pickle=True)", 1),
        ("np.load(f)", 1),
        ("torch.load(f, weights_only=False)", 1),
        ("%matplotlib inline\npickle.loads(b)", 1),
        ("eval(text)", 1),
        ("np.load(f, allow_pickle=False)\ntorch.load(f, weights_only=True)", 0),
        ("model.eval()", 0),
        ("yaml.safe_load(f)\njson.load(f)", 0),
    ],
)
def test_what_could_run_code_is_seen(source, expected):
    assert len(list(unsafe(source))) == expected


# Secrets

SECRETS = re.compile(
    r"gh[pousr]_\w{36}|github_pat_\w{22}|AKIA[0-9A-Z]{16}|hf_\w{34}|sk-[\w-]{32,}"
    r"|xox[abp]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY|://[^\s/@:]+:[^\s/@]+@"
)


def test_no_secret_is_in_any_file():
    assert len(FILES) > 150
    found = [f"{p.name}: {s}" for p in FILES for s in SECRETS.findall(read(p))]
    assert found == []


def test_a_secret_would_be_seen():
    """Put together here, so that this file has none."""
    for secret in (
        "gh" + "p_" + 36 * "a",
        "-----BEGIN RSA " + "PRIVATE KEY",
        "://me" + ":x@y",
    ):
        assert SECRETS.search(secret)


# Packages


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements):
    """The packages that requirements name, less the project itself."""
    names = {canonical(re.match(r"[\w.-]+", line)[0]) for line in requirements}
    return names - {"hfusion", "sideways"}


PROJECT = tomllib.loads(read(ROOT / "pyproject.toml"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
MADE = re.findall(r"^(?:BOOK|PDF)\s*:= (.*)$", read(ROOT / "Makefile"), re.M)
BY_MAKE = named(" ".join(MADE).split())
NEEDED = named(PROJECT["project"]["dependencies"]) | BY_MAKE


def reasons(text):
    """The names in the comments of a Makefile, and on lines that end in a comment."""
    lines = [line for line in text.splitlines() if re.search(r"# *\w", line)]
    said = [line if line.startswith("#") else line.partition("#")[0] for line in lines]
    return {
        canonical(name) for line in said for name in re.findall(r"[A-Za-z][\w-]+", line)
    }


def test_every_package_has_a_reason():
    """Beside it in pyproject.toml; above it in the Makefile."""
    wanted = NEEDED.union(*map(named, EXTRAS.values()))
    made = reasons(read(ROOT / "Makefile").partition("\nPDF")[0])
    assert sorted(wanted - reasons(read(ROOT / "pyproject.toml")) - made) == []


def test_a_package_without_a_reason_would_be_seen():
    text = (
        'x = [\n    "one",  # why\n    "two",\n]\n# three does this\nBOOK := three four\n'
    )
    assert reasons(text) & {"one", "two", "three", "four"} == {"one", "three"}


def imports(path):
    """The names of what a file imports from elsewhere, less the standard library's."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


def test_what_is_imported_is_named():
    """Not only there because something else has brought it along."""
    # What an extension of Sphinx imports, jupyter-book names; cuda.bindings comes with a
    # torch for CUDA, and is looked for there only; jupyterlab brings jupyter_server.
    known = {"docutils", "sphinx", "cuda", "jupyter-server"}
    wanted = NEEDED.union(known, *map(named, EXTRAS.values()))
    providers = importlib.metadata.packages_distributions()
    own = {n for p in FILES if p.suffix == ".py" for n in (p.stem, p.parent.name)}
    missing = {
        f"{path.name}: {name}"
        for path in (p for p in FILES if p.suffix == ".py")
        for name in imports(path) - own
        if not {canonical(package) for package in providers.get(name, [name])} & wanted
    }
    assert missing == set()


def test_every_package_of_the_tests_and_the_book_has_an_exact_version():
    """Triton comes with torch for a GPU; those of `zoo` and `peers` are not kept."""
    lines = read(ROOT / "constraints.txt").split()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pinned = {canonical(line.partition("==")[0]) for line in lines}
    kept = NEEDED.union(*(named(EXTRAS[e]) for e in EXTRAS if e not in ("zoo", "peers")))
    assert sorted(kept - pinned) == ["triton"]


def test_no_type_error_is_ignored_wholesale():
    """Missing types are of other packages only."""
    checker = PROJECT["tool"]["mypy"]
    assert checker["files"] == ["code/hfusion", "code/sideways"]
    assert not {"ignore_errors", "ignore_missing_imports", "exclude"} & set(checker)
    for rule in checker["overrides"]:
        assert "ignore_errors" not in rule
        if rule.get("ignore_missing_imports"):
            own = [n for n in rule["module"] if n.split(".")[0] in ("hfusion", "sideways")]
            assert own == []
    assert (ROOT / "code" / "hfusion" / "py.typed").exists()
    assert (ROOT / "code" / "sideways" / "py.typed").exists()


# Workflows


def test_actions_are_pinned_to_released_versions():
    used = [
        line for p in WORKFLOWS.values() for line in re.findall(r"uses: (\S+)", read(p))
    ]
    assert len(used) >= 8
    assert [
        use for use in used if not re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", use)
    ] == []


def test_workflows_have_no_more_rights_than_they_need():
    asked = {}
    for name, path in WORKFLOWS.items():
        content = yaml.safe_load(read(path))
        assert content["permissions"] == {"contents": "read"}, name
        for job, about in content["jobs"].items():
            assert about["timeout-minutes"] <= 90
            if "permissions" in about:
                asked[name, job] = about["permissions"]
    assert asked == {("publish.yml", "deploy"): {"pages": "write", "id-token": "write"}}


def test_every_python_that_is_tested_is_allowed_and_the_oldest_is_tested():
    content = yaml.safe_load(read(WORKFLOWS["test.yml"]))
    versions = content["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13"]
    assert PROJECT["project"]["requires-python"].startswith(f">={versions[0]},")


# Citing


def test_the_citation_is_complete_and_of_this_version():
    """As version 1.2.0 of the Citation File Format asks, and of the project's version."""
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert all(
        author.get("name") or author.get("family-names") for author in citation["authors"]
    )
    assert citation["version"] == first_cell.VERSION
    assert f"## {citation['version']} " in read(ROOT / "CHANGELOG.md")


# What `make` says where it cannot begin.

PYTHONS = {
    "exit 1": "expected Python 3.11 to 3.14 with its venv module",
    '[ "$1" = -c ]': ".venv could not be made there; the folder has to be writable",
}


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("script", PYTHONS)
def test_make_says_why_it_has_no_environment(tmp_path, script):
    """With a python that does not fit, and with one that cannot write here."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["make", ".venv/pip", f"PYTHON={python}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    said = [line for line in PYTHONS.values() if line in done.stdout]
    assert said == [PYTHONS[script]]
    assert not (tmp_path / ".venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("stamp", ["test", "book", "pdf"])
def test_make_says_what_to_do_where_pip_fails(tmp_path, stamp):
    """As it does without a network; and nothing then counts as installed."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "pip").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\necho no such host >&2\nexit 1\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["make", f".venv/{stamp}.stamp"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no such host" in done.stderr
    assert "Is there a network?" in done.stdout
    assert not (tmp_path / ".venv" / f"{stamp}.stamp").exists()


def test_help_names_every_target():
    """And its lines fit a terminal."""
    makefile = read(ROOT / "Makefile")
    targets = set(re.search(r"^\.PHONY: help (.*)$", makefile, re.M)[1].split())
    printed = re.findall(r'^\t@echo "(.*)"$', makefile.partition("help:")[2], re.M)
    said = [line.replace('\\"', '"') for line in printed]
    named = {name for line in said for name in re.findall(r"^  make ([a-z-]+) ", line)}
    assert named == targets - {"nbval", "units"}
    assert max(map(len, said)) <= 90
