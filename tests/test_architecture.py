"""Who may import whom, and what must not exist."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "code" / "hfusion"

# module: what it may import, of the package and of third parties.
ALLOWED = {
    "__init__": {
        *("accept", "algebra", "folding", "layers", "lowering", "measure", "models"),
        *("rewrite", "siblings"),
    },
    "__main__": {"hfusion"},
    "accept": {
        *("arms", "aside", "layers", "measure", "observe", "records", "siblings"),
        "torch",
    },
    "aside": {"layers", "numpy", "torch"},
    "calls": {"embedding", "layers", "placing", "torch"},
    "followers": {"checks", "layers", "placing", "torch"},
    "reading": {"calls", "effects", "layers", "torch", "tracing"},
    "algebra": {"numpy"},
    "apart": {"experiments", "recording", "records"},
    "arms": {"followers", "measure", "packed", "siblings", "torch"},
    "arithmetic": {"compiled", "cost", "kernels"},
    "checks": {"FORWARD", "layers", "operators", "placing", "torch"},
    "compiled": {"cooperative", "kernels", "models", "occupancy", "triton"},
    "cooperative": {"kernels"},
    "cost": {"eager"},
    "eager": {"measure", "torch"},
    "estimates": {"cost", "experiments", "models", "records", "torch"},
    "effects": {"layers", "torch"},
    "embedding": {"torch"},
    "figures/__init__": {"drawings", "plots", "style"},
    "figures/drawings": {"matplotlib", "style"},
    "figures/plots": {"matplotlib", "style"},
    "figures/style": {"matplotlib"},
    "folding": {
        *("aside", "effects", "guards", "layers", "norms", "placing", "reading"),
        "torch",
    },
    "guards": {"layers", "torch"},
    "kernels": {"layers", "measure", "models", "torch", "triton"},
    "layers": {"embedding", "torch"},
    "live": {"measure", "progress", "recording", "records"},
    "lowering": {"layers", "reading", "rewrite", "torch"},
    "measure": {"cuda", "numpy", "records", "torch"},
    "models": {"numpy", "torch"},
    "named": {"torch", "tracing"},
    "norms": {"torch"},
    "occupancy": set(),
    "predictions": {
        *("arithmetic", "compiled", "eager", "estimates", "experiments", "kernels"),
        *("models", "torch"),
    },
    "observe": {"aside", "calls", "effects", "layers", "placing", "torch"},
    "outcomes": {"records"},
    "operators": {"layers", "torch"},
    "packed": {"checks", "embedding", "layers", "operators", "placing", "torch"},
    "placing": {"torch"},
    "progress": {"tqdm"},
    "records": {"shipped"},
    "recording": {"measure", "records", "torch", "triton"},
    "rewrite": {
        *("aside", "calls", "followers", "layers", "observe", "packed", "reading"),
        *("siblings", "torch"),
    },
    "runs": {"records"},
    "sharding": {"measure", "torch"},
    "shipped": set(),
    "show/__init__": {
        *("case", "glued", "judged", "lab", "missing", "others", "player", "text"),
        "walk",
    },
    "show/case": {
        *("cost", "eager", "estimates", "experiments", "figures", "lab", "models"),
        *("records", "svg"),
    },
    "show/glued": {"IPython"},
    "show/judged": {"records", "shipped"},
    "show/lab": {"IPython", "models", "records", "text", "webgpu"},
    "show/missing": {"glued", "matplotlib", "records"},
    "show/others": {"shipped"},
    "show/player": {"figures", "steps", "svg"},
    "show/steps": {"svg"},
    "show/svg": set(),
    "show/text": {"IPython", "matplotlib"},
    "show/walk": {"figures", "steps", "svg"},
    "siblings": {"calls", "embedding", "layers", "packed", "placing", "torch"},
    "tracing": {"aside", "layers", "numpy", "torch"},
    "webgpu/__init__": {"generator"},
    "webgpu/generator": {"models", "numpy", "torch"},
}
PACKAGES = {"__init__", "figures/__init__", "show/__init__", "webgpu/__init__"}

# An experiment may import whatever it measures; none imports another's race, but `memory`.
EXPERIMENTS = PACKAGE / "experiments"


def imports(path):
    """The names of the modules that a file imports, less the standard library's."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found - sys.stdlib_module_names


def test_every_module_has_its_rule():
    files = [
        *PACKAGE.glob("*.py"),
        *PACKAGE.glob("figures/*.py"),
        *PACKAGE.glob("show/*.py"),
        *PACKAGE.glob("webgpu/*.py"),
    ]
    found = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in files}
    assert found == set(ALLOWED)


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_a_module_imports_only_what_it_may(module):
    assert imports(PACKAGE / f"{module}.py") <= ALLOWED[module]


def test_a_forbidden_import_would_be_seen(tmp_path):
    stray = tmp_path / "algebra.py"
    stray.write_text("import numpy\nfrom . import layers\nfrom .measure import agree\n")
    assert imports(stray) - ALLOWED["algebra"] == {"layers", "measure"}


@pytest.mark.parametrize("module", ["show", "experiments.rungs"])
def test_triton_is_not_imported_before_a_kernel_is_wanted(module):
    """Else a page could not ask for Triton's interpreter after importing what it shows."""
    code = f"import sys, hfusion.{module}; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_code_is_no_package():
    """`code` names a module of the standard library, which pdb and IPython import."""
    assert not (ROOT / "code" / "__init__.py").exists()


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_functions_are_short(module):
    long = {f.name for f in functions(PACKAGE / f"{module}.py") if length(f) > 40}
    assert long == set()


def length(function):
    """Lines of code, the docstring not counted."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = first.end_lineno if documented else function.lineno
    return function.end_lineno - start


@pytest.mark.parametrize("module", sorted(set(ALLOWED) - PACKAGES))
def test_public_functions_are_documented(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
    ]
    assert public
    assert [node.name for node in public if not ast.get_docstring(node)] == []
