"""Which changes of the code would its unit tests not notice?

mutmut changes `code/` in one place at a time, ten thousand times, and runs the tests
that reach the place. A mutant that no test fails for has survived. run.py lays a copy of
code and tests into _build/mutants, has mutmut run there, and counts. What it knows
already it keeps; survivors are tried again, since the tests may have changed. First, all
tests run once, so that mutmut knows which of them reach what.

    make mutants                                all, about an hour on two cores
    make mutants SAMPLE=500                     five hundred, the same ones each time
    make mutants MUTANTS='hfusion.algebra*' TESTS=tests/library/test_algebra.py
                                                some of them, by some tests: a minute
"""

import argparse
import fnmatch
import json
import os
import random
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


def lay_out(tests):
    """A copy of the code, its tests and what they read, as mutmut wants them."""
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
    settings = (HERE / "pyproject.toml").read_text(encoding="utf-8")
    chosen = "".join(f'    "{path}",\n' for path in tests)
    settings = settings.replace('    "tests",\n', chosen or '    "tests",\n')
    (STAGE / "pyproject.toml").write_text(settings, encoding="utf-8")
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
            name = file.relative_to(STAGE / "mutants" / "src").with_suffix("")
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


def sampled(names, count, seed):
    """So many of the mutants with these names, or of all."""
    known = sorted(name for statuses in results().values() for name in statuses)
    named = [n for n in known if any(fnmatch.fnmatch(n, name) for name in names or "*")]
    return random.Random(seed).sample(named, min(count, len(named)))


def mutmut(*arguments, **options):
    """Run mutmut where everything is laid out: a CompletedProcess."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",  # two processes at a time, one thread each
        "MKL_NUM_THREADS": "1",
        "HFUSION_CASES": "40",  # random networks for each mutant
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # quicker to start
    }
    program = Path(sys.executable).with_name("mutmut")
    command = [program, "run", "--max-children", os.environ.get("JOBS", "2"), *arguments]
    return subprocess.run(command, cwd=STAGE, env=environment, check=False, **options)


def main(arguments):
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("names", nargs="*", help="patterns of mutants; else all")
    options.add_argument("--sample", type=int, help="try so many of them")
    options.add_argument("--seed", type=int, default=0, help="of the sample")
    options.add_argument("--tests", nargs="+", default=[], help="only by these files")
    given = options.parse_args(arguments)
    lay_out(given.tests)
    forget_survivors()
    names = given.names
    if given.sample:
        # No name matches, so that it makes all mutants and tries none, and then complains.
        mutmut("none", capture_output=True)
        names = sampled(names, given.sample, given.seed)
    status = mutmut(*names).returncode
    report()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
