"""runs.py, places.py: no committed record is replaced; records are replaced together."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import zipfile
from pathlib import Path

import nbformat
import pytest
from cuts import machines
from made_up_record import CASES, MACHINE, RECORD
from stand_ins import raising

from sideways import experiments, places, records, runs
from sideways.records import Case

ROOT = Path(__file__).resolve().parents[2]
OLD = "2026-01-01"


def made(name, **more):
    return dataclasses.replace(RECORD, experiment=name, **more)


def git(folder, *arguments):
    named = ("-c", "user.name=n", "-c", "user.email=e")
    command = ("git", *named, *arguments)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "records").mkdir()
    return tmp_path / "records"


def chosen(folder, *names, machine=MACHINE):
    place, passed = places.choose(folder, machine, names or ["stage", "network"])
    assert place.parent == folder
    return place.name, passed


def commit(folder):
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "records")


# Which folder.


def test_the_first_folder_is_the_machine_s_own(repository, tmp_path):
    assert chosen(repository) == ("a-cpu", [])
    assert chosen(tmp_path / "new") == ("a-cpu", [])


def test_what_is_committed_is_not_replaced(repository):
    records.save(made("stage"), repository)
    assert chosen(repository) == ("a-cpu", [])  # not committed yet
    commit(repository)
    name, passed = chosen(repository)
    assert name == "a-cpu-2"
    assert passed == [f"{repository / 'a-cpu'}: stage.json is committed"]
    assert chosen(repository, "network", "ceilings") == ("a-cpu", [])  # others are not


def test_what_is_committed_and_was_deleted_is_not_replaced(repository):
    path = records.save(made("stage"), repository)
    commit(repository)
    path.unlink()
    path.parent.rmdir()
    assert chosen(repository)[0] == "a-cpu-2"


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(MACHINE)])
def test_a_record_of_another_machine_is_not_replaced(repository, field):
    """Not even beside it: a folder is of one machine."""
    other = {"kind": "cuda", "threads": 4, "cudnn": 91000}.get(field, "other")
    machine = dataclasses.replace(MACHINE, **{field: other})
    records.write(made("ceilings", machine=machine), repository / "a-cpu")
    name, passed = chosen(repository)
    if field == "name":  # what it was called says nothing
        assert (name, passed) == ("a-cpu", [])
    else:
        assert name == "a-cpu-2"
        assert "ceilings.json is from another machine" in passed[0]
        assert f"({field} {other}, not {getattr(MACHINE, field)})" in passed[0]


def test_a_record_that_cannot_be_read_is_not_replaced(repository):
    path = records.save(made("ceilings"), repository)
    path.write_text("{}")
    name, (why,) = chosen(repository)
    assert name == "a-cpu-2"
    assert why.endswith("ceilings.json cannot be read")


def test_the_first_that_fits_is_taken(repository):
    records.save(made("stage"), repository)
    second = dataclasses.replace(MACHINE, name="a-cpu-2", torch="2.14.0")
    records.save(made("stage", machine=second), repository)
    commit(repository)
    name, passed = chosen(repository)
    assert (name, len(passed)) == ("a-cpu-3", 2)
    third = dataclasses.replace(MACHINE, name="a-cpu-3")
    records.save(made("stage", machine=third), repository)  # by a run before
    assert chosen(repository)[0] == "a-cpu-3"


@pytest.mark.parametrize("without", ["a repository", "git"])
def test_without_git_nothing_is_replaced(tmp_path, monkeypatch, without):
    folder = tmp_path / "records"
    records.save(made("stage"), folder)
    if without == "git":
        git(tmp_path, "init", "-q")
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    name, (why,) = chosen(folder)
    assert name == "a-cpu-2"
    assert why.endswith("stage.json exists, and there is no git to bring it back")
    assert chosen(folder, "network") == ("a-cpu", [])


def test_a_record_is_of_the_folder_that_it_is_in(repository):
    records.save(made("stage"), repository)
    commit(repository)
    run = runs.Run(repository, MACHINE, ["stage"])
    run.begin()
    run.keep(made("stage"))
    run.finish()
    assert records.load(repository / "a-cpu-2" / "stage.json").machine.name == "a-cpu-2"
    assert "a-cpu: stage.json is committed" in run.report()
    assert "make run MACHINE=a-cpu-2" in run.report()
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=repository, capture_output=True, text=True
    )
    assert status.stdout == "?? a-cpu-2/\n" or status.stdout == "?? records/a-cpu-2/\n"


# Together or not at all.

NAMES = ("ceilings", "network", "stage")


@pytest.fixture
def half(repository):
    """A run that has measured two of three experiments anew, and a note of its owner."""
    for name in NAMES:
        records.save(made(name, date=OLD), repository)
    (repository / "a-cpu" / "notes.txt").write_text("mine")
    run = runs.Run(repository, MACHINE, NAMES)
    run.begin()
    for name in ("network", "stage"):
        run.keep(made(name))
    return run


def dates(place):
    """{file: the date of its record} of all files in a folder."""
    return {
        path.name: json.loads(path.read_text())["date"] if path.suffix == ".json" else ""
        for path in sorted(Path(place).iterdir())
    }


BEFORE = {f"{name}.json": OLD for name in NAMES} | {"notes.txt": ""}
AFTER = BEFORE | dict.fromkeys(("network.json", "stage.json"), RECORD.date)


def test_they_are_replaced_together(half):
    assert dates(half.place) == BEFORE
    half.finish()
    assert dates(half.place) == AFTER
    assert [path.name for path in half.place.parent.iterdir()] == ["a-cpu"]


class Killed(BaseException):
    """In place of a kill: nothing of this process is done any more."""


@pytest.mark.parametrize("in_one_step", [True, False])
def test_whoever_looks_sees_all_old_ones_or_all_new_ones(half, monkeypatch, in_one_step):
    """Before and after every step that changes a file; stopped at each of them once."""
    if not in_one_step:
        monkeypatch.setattr(places.ctypes, "CDLL", raising(OSError()))
    seen = []

    def watched(owner, name):
        call = getattr(owner, name)

        def look(*given, **more):
            if half.place.exists():
                seen.append(dates(half.place))
            return call(*given, **more)

        monkeypatch.setattr(owner, name, look)

    for owner, name in ((os, "rename"), (os, "replace"), (os, "unlink"),
                        (runs.shutil, "copy2"), (runs.shutil, "rmtree")):  # fmt: skip
        watched(owner, name)
    half.finish()
    seen.append(dates(half.place))
    assert all(found in (BEFORE, AFTER) for found in seen)
    assert seen[0] == BEFORE
    assert seen[-1] == AFTER


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt(), Killed()])
@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("where", ["copy2", "rename"])
def test_who_is_stopped_while_they_are_put_in_place_has_the_old_ones(
    half, monkeypatch, where, step, error
):
    """Without a swap in one step: by an error at each of its steps."""
    owner = runs.shutil if where == "copy2" else os
    monkeypatch.setattr(places.ctypes, "CDLL", raising(OSError()))
    call, left = getattr(owner, where), [step]

    def fails(*given, **more):
        left[0] -= 1
        if left[0] == -1:
            raise error
        return call(*given, **more)

    monkeypatch.setattr(owner, where, fails)
    steps = {"copy2": 2, "rename": 3}[where]
    if step >= steps:
        half.finish()
        return
    with pytest.raises((runs.NotSaved, KeyboardInterrupt, Killed)):
        half.finish()
    assert dates(half.place) == (AFTER if (where, step) == ("rename", 2) else BEFORE)


def test_a_swap_needs_one_step_where_the_system_has_it(half, monkeypatch):
    try:
        assert places.ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        pytest.skip("this system has none")
    monkeypatch.setattr(os, "rename", raising(AssertionError("two steps")))
    half.finish()
    assert dates(half.place) == AFTER


def test_a_run_that_was_killed_leaves_what_it_had(half):
    """No page reads it; the next run clears it when it begins, not before."""
    os.close(half.handle)  # as the system does when a process ends
    assert dates(half.staging) == {"network.json": RECORD.date, "stage.json": RECORD.date}
    folder = half.place.parent
    assert list(records.load_all(folder, "stage")) == ["a-cpu"]
    again = runs.Run(folder, MACHINE, NAMES)
    assert again.staging == half.staging
    assert len(dates(again.staging)) == 2
    again.begin()
    assert dates(again.staging) == {}
    again.finish()
    assert dates(half.place) == BEFORE


def test_the_repository_does_not_see_a_run_that_did_not_end():
    path = "records/.a-cpu.unfinished/stage.json"
    found = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
    if found.returncode > 1:
        pytest.skip("no repository here")
    assert found.returncode == 0


def test_what_there_is_so_far_is_written_seldom(half, monkeypatch):
    now_s, cost_s, written = [100.0], 0.5, []

    def write(record, folder):
        written.append(now_s[0])
        now_s[0] += cost_s

    monkeypatch.setattr(runs, "write", write)
    monkeypatch.setattr(runs.time, "monotonic", lambda: now_s[0])
    for _ in range(60):
        half.so_far(made("stage"))
        now_s[0] += 1
    assert len(written) == 60 // 10  # it may take a twentieth of the time
    half.keep(made("stage"))
    assert len(written) == 60 // 10 + 1


LATE, LACKS = "not reached within 3 s", "needs a CUDA device"


LOST = "not reached in time"


@pytest.mark.parametrize(
    ("skipped", "why", "worth_keeping"),
    [
        ([{"every arm": LATE}], LOST, False),
        ([{"a": LATE}, {"every arm": LATE}], LOST, False),
        ([{"a": LATE, "graph": LACKS}], LOST, False),
        ([{"every arm": LACKS}], LACKS, True),  # this is what there is to know here
        ([{"every arm": "out of memory"}], "out of memory", True),
        ([{"every arm": "failed: ValueError: no"}], "failed: ValueError: no", True),
    ],
)
def test_a_record_of_no_benchmark_replaces_none(half, skipped, why, worth_keeping):
    cases = tuple(Case({"n": n}, {}, skipped=each) for n, each in enumerate(skipped))
    nothing = made("ceilings", cases=cases)
    half.keep(nothing)
    assert not (half.staging / "ceilings.json").exists()
    assert half.broken == {"ceilings": why}
    (half.place / "ceilings.json").unlink()
    half.keep(nothing)  # and now there is no older one
    assert (half.staging / "ceilings.json").exists() is worth_keeping


def test_who_is_stopped_after_they_are_in_place_is_told_so(half, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            half.finish()
    assert half.left() == f"all records are in {half.place}"
    assert dates(half.place) == AFTER
    assert not half.staging.exists()


@pytest.mark.parametrize("between", [True, False])
def test_what_a_killed_swap_had_put_away_comes_back(half, between):
    """Where the system has no swap in one step: killed between two renames, or after."""
    places.let_go(half.handle)
    away = half.place.with_name(".a-cpu.before")
    half.place.rename(away)
    if not between:
        half.staging.rename(half.place)
    again = runs.Run(half.place.parent, MACHINE, NAMES)
    again.begin()
    assert not away.exists()
    assert set(dates(again.place)) == (
        {*BEFORE} if between else {"network.json", "stage.json"}
    )
    again.keep(made("ceilings"))
    again.finish()
    assert dates(again.place)["ceilings.json"] == RECORD.date


# One file for all, and back.


def packed(folder, *made, pack):
    run = runs.Run(folder, MACHINE, NAMES, pack)
    run.begin()
    for record in made:
        run.so_far(record)
    return run


def test_a_pack_has_what_there_is_after_each_case(tmp_path):
    """Whoever ends the run, with whatever signal, has it."""
    pack = tmp_path / "taken.zip"
    run = packed(tmp_path / "r", made("stage"), pack=pack)
    run.log.write_text("words")
    assert zipfile.ZipFile(pack).namelist() == ["stage.json"]
    run.keep(made("network"))
    assert zipfile.ZipFile(pack).namelist() == ["network.json", "stage.json", "log.txt"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["taken.zip"]


def test_what_a_pack_brings_home_is_put_in_place_like_a_run(tmp_path, repository):
    records.save(made("stage"), repository)
    commit(repository)
    pack = tmp_path / "taken.zip"
    packed(tmp_path / "r", pack=pack).keep(made("stage"))
    run = runs.unpack(pack, repository)
    run.finish()
    assert run.place.name == "a-cpu-2"  # what is committed stays
    cases = records.load(run.place / "stage.json").cases
    assert cases == records.load(repository / "a-cpu" / "stage.json").cases
    assert "to see it in the book: make run MACHINE=a-cpu-2" in run.report()


@pytest.mark.parametrize("wrong", ["edited", "renamed", "two machines", "cut", "nothing"])
def test_a_pack_that_was_changed_is_refused(tmp_path, wrong):
    pack, place = tmp_path / "taken.zip", tmp_path / "x"
    other = dataclasses.replace(MACHINE, torch="1.0")
    text = records.write(made("stage"), place).read_text()
    parts = {"stage.json": text.replace("1", "2", 1) if wrong == "edited" else text}
    if wrong == "renamed":
        parts = {"network.json": text}
    if wrong == "two machines":
        more = records.write(made("network", machine=other), place).read_text()
        parts["network.json"] = more
    with zipfile.ZipFile(pack, "w") as archive:
        for name, content in ({} if wrong == "nothing" else parts).items():
            archive.writestr(name, content)
    if wrong == "cut":
        pack.write_bytes(pack.read_bytes()[:-30])
    with pytest.raises(records.RecordError):
        runs.unpack(pack, tmp_path / "r")
    assert not (tmp_path / "r").exists()


# The report.

REPORT = """
measured                  cases  variants
  network                2 of 2         2
  stage                  1 of 4         2

skipped
  ceilings: failed: ValueError: no
  network: needs a CUDA device: graph, a; graph, b and 1 more variants
  stage: out of memory: 1 of 4 cases
  stage: not reached within 3 s: 2 of 4 cases
  stage: needs a CUDA device: graph
"""


def test_the_report(repository):
    gpu = {f"graph, {name}": "needs a CUDA device" for name in "abc"}
    late = Case({"batch": 3}, {}, skipped={"every arm": "not reached within 3 s"})
    run = runs.Run(repository, MACHINE, NAMES)
    run.begin()
    run.lose("ceilings", "failed: ValueError: no")
    twice = (dataclasses.replace(CASES[0], skipped=gpu),) * 2
    run.keep(made("network", cases=twice))
    run.keep(made("stage", cases=(*CASES, late, late)))
    run.finish()
    report = run.report()
    assert report.startswith(REPORT.lstrip())
    assert f"delete {repository / 'a-cpu'}" in report
    assert "git checkout records chapters" in report
    assert report.endswith("\nto reach the rest: --minutes 30, or make record MINUTES=30")
    assert run.status() == 1


@pytest.mark.parametrize("reason", ["not reached in time", "needs a CUDA device"])
def test_the_report_of_nothing_says_so(repository, reason):
    """And offers more time only where that would help."""
    run = runs.Run(repository, MACHINE, NAMES)
    run.begin()
    run.lose("ceilings", reason)
    run.finish()
    last = run.report().split("\n\n")[-1].splitlines()
    assert last[0] == "no record was changed"
    assert (len(last) == 2) is ("not reached" in reason)


def test_long_reasons_are_cut():
    assert runs._short("x" * 100) == "x" * 100
    assert runs._short("x" * 101) == "x" * 99 + "…"


# Who reads what: the table against the records of the book, and against its pages.


def test_with_the_records_of_the_book_every_page_has_what_it_needs():
    """But chapter 11, which wants a GPU."""
    place, *_ = machines()
    lines = dict(map(_parted, runs.readers(place)))
    lacking = {page for page, said in lines.items() if said != "has what it needs"}
    assert lacking == {"chapter 11"}


def _parted(line):
    page, said = re.fullmatch(
        r"  (chapter \d+|The field|What the model misses) +(.*)", line
    ).groups()
    return page, said


def test_a_page_lacks_what_is_not_there(tmp_path):
    records.save(made("leftover"), tmp_path)
    lines = dict(map(_parted, runs.readers(tmp_path / "a-cpu")))
    assert lines["The field"] == "has what it needs"
    assert lines["chapter 12"] == "lacks embedding, ceilings"


PAGES = {
    "The field": "back/the-field.ipynb",
    "What the model misses": "back/what-the-model-misses.ipynb",
} | {
    f"chapter {int(path.name[:2])}": f"chapters/{path.name}"
    for path in sorted((ROOT / "chapters").glob("*.ipynb"))
}


@pytest.mark.parametrize("page", PAGES)
def test_the_table_names_what_a_page_reads(page):
    book = nbformat.read(ROOT / PAGES[page], as_version=4)
    code = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    if not re.search(r"experiments\.(result|several)", code):
        assert page not in runs.READERS
        return
    elsewhere = {"rivals", "kernel_times", "checks"}  # of GPUs only, or of a second CPU
    read = given_to("(results?|several)", code) - elsewhere
    assert {name for name, *_ in runs.READERS[page]} == read


def given_to(like, code):
    """The experiments that a page names in the first argument of functions named so."""
    nodes, found = [*ast.walk(ast.parse(code))], set()
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        if re.fullmatch(f"experiments.{like}", ast.unparse(call.func)):
            said = ast.unparse(call.args[0])
            given = [n.value for n in nodes if isinstance(n, ast.Assign)
                     and said in map(ast.unparse, n.targets)]  # fmt: skip
            parts = [part for node in (call.args[0], *given) for part in ast.walk(node)]
            found |= {part.value for part in parts if isinstance(part, ast.Constant)}
    return found & set(experiments.SHARES)
