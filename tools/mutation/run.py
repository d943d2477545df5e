"""Which changes of the library would its unit tests not notice?

mutmut changes `code/hfusion` in one place at a time, ten thousand times, and runs the tests
that reach the place. A mutant that no test fails for has survived. run.py lays a copy of
library and tests into _build/mutants, has mutmut run there, and counts. What it knows
already it keeps; survivors are tried again, since the tests may have changed.

    make mutants                                all, about an hour on two cores
    make mutants MUTANTS='hfusion.algebra*'     some of them
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STAGE = Path(os.environ.get("HFUSION_STAGE", ROOT / "_build" / "mutants"))
VERDICTS = {1: "killed", 3: "killed", 0: "survived", 33: "no test"}  # of exit statuses
COLUMNS = ("killed", "timeout", "survived", "no test", "not tried")


def lay_out():
    """A copy of the library, its tests and what they read, as mutmut wants them."""
    for old in (STAGE / "tests", STAGE / "mutants" / "tests"):
        shutil.rmtree(old, ignore_errors=True)
    skip = shutil.ignore_patterns("__pycache__", "mutation")
    for source, place in (
        ("code/hfusion", "src/hfusion"),
        ("code/sideways", "src/sideways"),
        ("tests", "tests"),
        ("records", "records"),
        ("tools", "tools"),
    ):
        shutil.copytree(ROOT / source, STAGE / place, ignore=skip, dirs_exist_ok=True)
    shutil.copy(HERE / "pyproject.toml", STAGE)
    # Only there a conftest: here it would be one of all tests.
    shutil.copy(HERE / "quick.py", STAGE / "conftest.py")


def results():
    """The exit status of each mutant's tests, None before: {file: {mutant: status}}."""
    files = sorted((STAGE / "mutants" / "src").rglob("*.meta"))
    return {file: json.loads(file.read_text())["exit_code_by_key"] for file in files}


def forget_survivors():
    """So that mutmut, which keeps what it knows, tries them again."""
    for file in results():
        content = json.loads(file.read_text())
        statuses = content["exit_code_by_key"]
        content["exit_code_by_key"] = {
            name: status if VERDICTS.get(status) == "killed" else None
            for name, status in statuses.items()
        }
        file.write_text(json.dumps(content))


def verdict(status):
    """In a word what became of a mutant."""
    return "not tried" if status is None else VERDICTS.get(status, "timeout")


def report():
    """Print a table by module, and write the survivors' names to survivors.txt."""
    total, known = Counter(), results()
    print(f"{'':30}{'mutants':>9}" + "".join(f"{column:>11}" for column in COLUMNS))
    for file, statuses in known.items():
        found = Counter(map(verdict, statuses.values()))
        total += found
        if statuses:
            name = file.relative_to(STAGE / "mutants" / "src" / "hfusion").with_suffix("")
            print(row(name.as_posix(), found))
    print(row("together", total))
    tried = total.total() - total["not tried"]
    print(f"noticed: {(total['killed'] + total['timeout']) / max(tried, 1):.1%} of {tried}")
    unnoticed = [
        f"{name} {verdict(status)}"
        for statuses in known.values()
        for name, status in statuses.items()
        if verdict(status) in ("survived", "no test")
    ]
    (STAGE / "survivors.txt").write_text("\n".join(unnoticed) + "\n", encoding="utf-8")


def row(name, found):
    counts = "".join(f"{found[column]:>11}" for column in COLUMNS)
    return f"{name:30}{found.total():>9}{counts}"


def main(names):
    lay_out()
    forget_survivors()
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",  # two processes at a time, one thread each
        "MKL_NUM_THREADS": "1",
        "HFUSION_CASES": "40",  # random networks for each mutant
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # quicker to start
    }
    mutmut = Path(sys.executable).with_name("mutmut")
    command = [mutmut, "run", "--max-children", os.environ.get("JOBS", "2"), *names]
    status = subprocess.run(command, cwd=STAGE, env=environment, check=False).returncode
    report()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
