"""Who may import whom, and what must not exist."""

import ast
import functools
import graphlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "code"

# A folder, or a module of its own: the parts of the house that it may import, and packages.
ALLOWED = {
    "hfusion.errors": "",
    "hfusion.algebra": "errors numpy",
    "hfusion.models": "errors numpy torch",
    "hfusion.one_screen": "torch",
    "hfusion.stacking": "errors torch",
    "hfusion.timing": "errors numpy torch cuda",
    "hfusion.finding": "errors stacking numpy torch",
    "hfusion.fusing": "errors stacking finding timing torch",
    "hfusion.folding": "errors stacking finding torch",
    "hfusion.sharding": "errors timing torch",
    "hfusion.kernels": "errors models timing torch triton",
    "hfusion.webgpu": "errors models numpy torch",
    "hfusion.named": "errors finding torch",
    "hfusion": "errors algebra models stacking timing fusing folding",
    "hfusion.__main__": "hfusion named command torch",
    "sideways.shipped": "",
    "sideways.records": "shipped timing",
    "sideways.progress": "tqdm",
    "sideways.outcomes": "records",
    "sideways.places": "records",
    "sideways.runs": "places records",
    "sideways.recorder": "records timing torch triton",
    "sideways.live": "records recorder progress timing",
    # Whatever it measures, and on what.
    "sideways.experiments": "records recorder live shipped hfusion torch *",
    "sideways.apart": "experiments recorder records",
    "sideways.command": "apart experiments progress recorder records runs named",
    "sideways.estimates": "experiments records models timing torch",
    "sideways.arithmetic": "kernels timing",
    "sideways.predictions": "arithmetic estimates experiments kernels timing models torch",
    "sideways.figures": "matplotlib",
    "sideways.show": "figures experiments estimates records shipped webgpu models timing"
    " IPython matplotlib",
    "sideways": "",
}
FILES = {
    ".".join(path.relative_to(CODE).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("hfusion", "sideways")
    for path in (CODE / package).rglob("*.py")
}


def part(module):
    """The row of ALLOWED that a module belongs to."""
    named = ".".join(module.split(".")[:2])
    return named if named in ALLOWED else module.split(".")[0]


@functools.cache
def imports(module, source):
    """The modules that a source imports, by whole names, less the standard library's."""
    package = module if FILES.get(module, Path()).name == "__init__.py" else parent(module)
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else base for name in names}
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def parent(module):
    return module.rpartition(".")[0]


def parts(module, source):
    """What it imports beyond its own part, in the words of ALLOWED."""
    found = {part(n) if n in FILES else n.split(".")[0] for n in imports(module, source)}
    return found - {part(module)}


def forbidden(module, source):
    """What a module imports although its row of ALLOWED does not name it."""
    allowed = set(ALLOWED[part(module)].split())
    if "*" in allowed:
        return set()
    return {name for name in parts(module, source) if name.split(".")[-1] not in allowed}


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_imports_only_what_its_row_allows(module):
    assert forbidden(module, FILES[module].read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("hfusion.algebra", "import numpy, torch", {"torch"}),
        ("hfusion.timing.cost", "from ..stacking import rules", {"hfusion.stacking"}),
        (
            "hfusion.fusing._packing",
            "from sideways.records import load",
            {"sideways.records"},
        ),
        ("hfusion.stacking.rules", "import matplotlib.pyplot", {"matplotlib"}),
    ],
)
def test_a_forbidden_import_would_be_seen(module, source, wrong):
    assert forbidden(module, source) == wrong


def test_no_row_is_left_over():
    assert {part(module) for module in FILES} == set(ALLOWED)


def test_imports_run_in_one_direction():
    """Of modules among one another; what is imported inside of a function counts too."""
    graph = {
        module: {name for name in imports(module, path.read_text("utf-8")) if name in FILES}
        for module, path in FILES.items()
    }
    order = [*graphlib.TopologicalSorter(graph).static_order()]  # else raises CycleError
    assert order.index("hfusion.errors") < order.index("hfusion.stacking.rules")


def misplaced(text):
    """Names in CONTRIBUTING's list of the house that stand above what they import.

    Also names that the list lacks, or that the table does.
    """
    lines = re.search(r"```\n(hfusion .*?)```", text, re.S)[1].splitlines()
    outside = {"hfusion", "sideways", "__main__"}
    rows = {name: n for n, line in enumerate(lines) for name in {*line.split()} - outside}
    wrong = rows.keys() ^ {p.split(".")[-1] for p in ALLOWED} - outside
    for module, path in FILES.items():
        name = part(module).split(".")[-1]
        above = {p.split(".")[-1] for p in parts(module, path.read_text(encoding="utf-8"))}
        if name in rows and any(rows[name] <= rows[n] for n in above & rows.keys()):
            wrong.add(name)
    return wrong


def test_the_list_of_the_house_is_in_the_order_of_imports():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert misplaced(text) == set()
    swapped = {"finding": "stacking", "stacking": "finding"}
    wrong = re.sub("finding|stacking", lambda found: swapped[found[0]], text)
    assert misplaced(wrong) == {"finding"}
    assert misplaced(text.replace("  live\n", "  gone\n")) == {"live", "gone"}


def test_a_circle_would_be_seen():
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


@pytest.mark.parametrize("module", ["show", "experiments.variants"])
def test_triton_is_not_imported_before_a_kernel_is_wanted(module):
    """Else a page could not ask for Triton's interpreter after importing what it shows."""
    code = f"import sys, sideways.{module}; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_library_alone_draws_nothing():
    """Nor does it bring a notebook's packages or the book's machinery."""
    code = "import sys, hfusion; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    unwanted = {"matplotlib", "IPython", "triton", "sideways", "jsonschema"}
    assert done.returncode == 0
    assert unwanted & set(done.stdout.split()) == set()


TESTS = {path.stem: path for path in (ROOT / "tests").rglob("*.py")}


def imported_tests(source):
    """The files of tests that a source imports."""
    names = imports("", source)
    return {name.split(".")[-1] for name in names if "test_" in name and name in TESTS}


@pytest.mark.parametrize("name", sorted(TESTS))
def test_no_file_of_tests_is_imported(name):
    """What two share lies in tests/support."""
    assert imported_tests(TESTS[name].read_text(encoding="utf-8")) == set()


def test_an_import_of_tests_would_be_seen():
    assert imported_tests("def f():\n    import test_plan") == {"test_plan"}
    assert imported_tests("from test_plan import x") == {"test_plan"}


def test_code_is_no_package():
    """`code` names a module of the standard library, which pdb and IPython import."""
    assert not (CODE / "__init__.py").exists()


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]


@pytest.mark.parametrize("module", sorted(FILES))
def test_functions_are_short(module):
    long = {f.name for f in functions(FILES[module]) if length(f) > 40}
    assert long == set()


def length(function):
    """Lines of code, the docstring not counted."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = first.end_lineno if documented else function.lineno
    return function.end_lineno - start


@pytest.mark.parametrize("module", sorted(FILES))
def test_what_is_public_is_documented(module):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
    ]
    if "experiments." not in module:  # where the file's docstring says it
        assert [node.name for node in public if not ast.get_docstring(node)] == []
