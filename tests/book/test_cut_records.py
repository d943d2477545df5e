"""Each page that reads records runs on whatever record is there, and says what is missing.

Of each page the cells that read records are run, and those that these need: on records
that end after some case, that lack one variant, or that are not there: those of the
book, and those that a made-up GPU would give. HFUSION_ALL_CUTS=1 cuts after every case and
takes away every variant (minutes).
"""

import dataclasses
import dis
import functools
import json
import re
import runpy
import shutil
import traceback
import types
from pathlib import Path

import made_up_gpu
import matplotlib.figure
import matplotlib.pyplot as plt
import nbformat
import pytest
from cuts import cuts, machines

from sideways import records, show
from sideways.experiments import ceilings, launch_overhead, variants
from sideways.show import missing

ROOT = Path(__file__).resolve().parents[2]
RECORDS, *OTHERS = machines()
LEFT_OUT = runpy.run_path(ROOT / "conftest.py")["REASONS"]  # what cannot run here
READS = ("experiments.result", "experiments.several", "records.first", "records.load_all")

LOAD = records.load
pytestmark = pytest.mark.slow
SAID = r"not recorded|in two launches yet|not reached within 1 s"


def code(path):
    """The code cells of a notebook: [(number, source), …]."""
    cells = nbformat.read(path, as_version=4).cells
    return [(n, c.source) for n, c in enumerate(cells) if c.cell_type == "code"]


PAGES = [
    path
    for folder in ("chapters", "back")
    for path in sorted((ROOT / folder).glob("*.ipynb"))
    if any(word in source for _, source in code(path) for word in READS)
    and path.relative_to(ROOT).as_posix() not in LEFT_OUT
]


def names(source):
    """(names that a cell sets, names that it reads without having set them before)."""
    sets, reads = set(), set()
    whole = compile(source, "a cell", "exec")
    for step in dis.get_instructions(whole):
        if step.opname == "STORE_NAME":
            sets.add(step.argval)
        elif step.opname == "LOAD_NAME" and step.argval not in sets:
            reads.add(step.argval)
    return sets, reads | (inner(whole) - sets)


def inner(whole):
    """The global names that functions in a piece of code read."""
    found = set()
    for part in whole.co_consts:
        if isinstance(part, types.CodeType):
            steps = dis.get_instructions(part)
            found |= {step.argval for step in steps if step.opname == "LOAD_GLOBAL"}
            found |= inner(part)
    return found


def split(cells):
    """(cells that are needed before, cells that read records or what was read)."""
    reading, tainted = [], set()
    for cell in cells:
        sets, reads = names(cell[1])
        if any(word in cell[1] for word in READS) or reads & tainted:
            reading.append(cell)
            tainted |= sets
        else:
            tainted -= sets
    last = reading[-1][0]
    wanted = set().union(*(names(source)[1] for _, source in reading))
    before = [cell for cell in cells if cell[0] < last and cell not in reading]
    needed = []
    while found := [c for c in before if c not in needed and names(c[1])[0] & wanted]:
        needed += found
        wanted = wanted.union(*(names(source)[1] for _, source in found))
    return sorted(needed), reading


def test_what_needs_what():
    cells = [
        (0, "import a, b.c as d"),
        (1, "slow = a.x()"),
        (2, "def f(x):\n    return base + x"),
        (3, "base = d.y"),
        (4, "r = experiments.result('x')"),
        (5, "print(f(r))"),
        (6, "print(slow)"),
        (7, "for r in range(3):\n    print(r)"),
        (8, "print([r for r in [1]], (lambda: 3)())"),
        (9, "def g():\n    return r\nprint(slow)"),
    ]
    needed, reading = split(cells)
    assert [number for number, _ in needed] == [0, 2, 3]
    assert [number for number, _ in reading] == [4, 5]
    assert names("x = x + 1\ny = [x for x in z]") == ({"x", "y"}, {"x", "z"})


class Page:
    """A notebook whose cells are run on one folder of records after the other."""

    def __init__(self, path, place):
        needed, self.reading = split(code(path))
        self.glued, self.before = [], {"__name__": "__main__", "display": print}
        for number, source in needed:
            exec(compile(source, f"{path.name}, cell {number}", "exec"), self.before)
        self.path, self.place = path, place
        source = "\n".join(source for _, source in self.reading)
        self.experiments = [
            path.stem
            for path in sorted(place.glob("*.json"))
            if f'"{path.stem}"' in source or "experiments.SHARES" in source
        ]

    def run(self):
        """(what it printed last that is missing, the names that it glued)."""
        self.glued.clear()
        missing.LACKING.clear()
        scope = dict(self.before)
        for number, source in self.reading:
            exec(compile(source, f"{self.path.name}, cell {number}", "exec"), scope)
        plt.close("all")
        return list(missing.LACKING), sorted(self.glued)


@pytest.fixture
def page(request, tmp_path, monkeypatch):
    """A page, in a folder beside a copy of the book's records."""
    made = beside(RECORDS, request.param, tmp_path, monkeypatch)
    for other in OTHERS:
        shutil.copytree(other, made.place.parent / other.name)
    return made


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    """The records of a run of seven minutes on a made-up GPU."""
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        run, _ = made_up_gpu.recorded(made_up_gpu.made_up(patch), folder, 7)
        run.finish()
    return run.place


@pytest.fixture
def page_on_a_gpu(gpu, request, tmp_path, monkeypatch):
    """A page, in a folder beside the made-up GPU's records, and no others."""
    return beside(gpu, request.param, tmp_path, monkeypatch)


def beside(place, path, tmp_path, monkeypatch):
    monkeypatch.delenv("HFUSION_LIVE", raising=False)
    monkeypatch.delenv("HFUSION_MACHINE", raising=False)
    glued = []
    for module in (show, missing):
        monkeypatch.setattr(module, "glue", lambda name, *_, **__: glued.append(name))
    shutil.copytree(place, tmp_path / "records" / place.name)
    (tmp_path / "chapters").mkdir()
    monkeypatch.chdir(tmp_path / "chapters")
    # Only for the sake of time: neither what is read nor what is drawn is looked at.
    read = functools.cache(lambda path, content: LOAD(path))
    monkeypatch.setattr(records, "load", lambda path: read(path, Path(path).read_bytes()))
    monkeypatch.setattr(matplotlib.figure.Figure, "tight_layout", lambda *_, **__: None)
    made = Page(path, Path("../records") / place.name)
    made.glued = glued
    return made


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem, indirect=True)
def test_a_page_runs_on_whatever_record_is_there(page, capsys):
    lacking, glued = page.run()
    assert (lacking, len(set(glued))) == ([], len(glued))
    problems = [problem for name in page.experiments for problem in cut(page, name, capsys)]
    assert problems == []


def cut(page, name, capsys):
    """What goes wrong when the record of an experiment is cut."""
    path = page.place / f"{name}.json"
    record, glued = records.load(path), page.run()[1]
    for what, left in cuts(record):
        path.unlink() if left is None else records.write(left, path.parent)
        capsys.readouterr()
        try:
            found = page.run()[1]
        except Exception:
            where = re.findall(r'"([^"]*, cell \d+)"', traceback.format_exc())[-1:]
            error = traceback.format_exc().splitlines()[-1]
            yield f"{name} {what}: {''.join(where)}: {error}"
            continue
        if found != glued:
            yield f"{name} {what}: glued {set(found) ^ set(glued)}"
        nothing = left is None or not any(case.samples for case in left.cases)
        if nothing and not re.search(SAID, capsys.readouterr().out + said_in_figures()):
            yield f"{name} {what}: nobody says so"
    records.write(record, path.parent)


# What a page does not find in the records of a GPU alone: it is about CPUs.
ON_A_GPU_ALONE = {
    "09-when-fusion-pays": r"OpenVINO|^memory ",
    "12-beyond-1x1": r"no oneDNN|channels [48], |not reached within",
    "what-the-model-misses": r"^there is no record of|^no case of stage",
}

on_a_gpu = pytest.mark.parametrize(
    "page_on_a_gpu", PAGES, ids=lambda path: path.stem, indirect=True
)


@on_a_gpu
def test_a_page_runs_on_the_records_of_a_gpu(page_on_a_gpu):
    page = page_on_a_gpu
    lacking, glued = page.run()
    assert len(set(glued)) == len(glued)
    why = ON_A_GPU_ALONE.get(page.path.stem)
    assert bool(lacking) == bool(why)
    assert [sentence for sentence in lacking if not re.search(why, sentence)] == []
    shutil.copytree(RECORDS, Path("../records") / RECORDS.name)
    assert page.run() == ([], glued)


@pytest.mark.parametrize(
    "page_on_a_gpu",
    [path for path in PAGES if path.stem == "how-measured"],
    indirect=True,
)
def test_no_two_things_are_taken_for_one(page_on_a_gpu, capsys):
    """Of a thousand calls the host's times or the device's; of a module one layout."""
    page_on_a_gpu.run()
    said = capsys.readouterr().out
    assert re.search(r"each call by itself .* \(median of 1000\)", said)
    assert re.search(r"chapter 6, in turns .* \(median of 20\)", said)


@on_a_gpu
def test_a_page_runs_on_whatever_record_of_a_gpu_is_there(page_on_a_gpu, capsys):
    page = page_on_a_gpu
    assert [p for name in page.experiments for p in cut(page, name, capsys)] == []


def test_the_made_up_gpu_is_called_so(gpu):
    assert "made-up" in made_up_gpu.MACHINE.name == gpu.name
    assert not list((ROOT / "records").rglob("*made-up*"))


def said_in_figures():
    """What `show.recorded` drew instead of printing it."""
    return f"not recorded: {missing.LACKING}" if missing.LACKING else ""


def test_the_records_that_are_cut_are_those_of_the_book():
    assert len(list(RECORDS.glob("*.json"))) == 11
    assert json.loads((RECORDS / "stage.json").read_text())["experiment"] == "stage"


# Chapter 8 on the record of a GPU, which is made up.


def made_up(name, record):
    """A record as it could be of a GPU: times that one can work out by hand, in µs."""

    def chain(ns, us):
        return {str(n): (us(n),) * 5 for n in ns}

    ways = {
        "eager": lambda n: 2 + 3.5 * n,
        "host": lambda n: 1 + 3.5 * n,
        "graph": lambda n: max(6, 3 + 1.2 * n),
    }
    slopes = {"module": 0.5, "abs of none": 1.0, "abs": 3.5, "conv": 20.0}
    cases = list(record.cases)
    for n, case in enumerate(cases):
        given = case.parameters
        samples, events = case.samples, case.events
        if name == "launch_overhead":
            samples = chain(launch_overhead.CHAINS, ways[given["way"]])
        elif given.get("what") == "empty" and given["way"] == "eager":
            slope = slopes[given["operator"]]
            samples = chain(ceilings.CHAIN, lambda n, slope=slope: 2 + slope * n)
        elif name == "timeline":
            events = (*case.events, ("device", "a_kernel", 2.0, 3.0))
        cases[n] = dataclasses.replace(case, samples=samples, events=events, skipped={})
    machine = dataclasses.replace(record.machine, kind="cuda")
    return dataclasses.replace(record, machine=machine, cases=tuple(cases))


def chapter_8_on_a_gpu(page, monkeypatch, capsys):
    """(what it prints, the panels of its walks)."""
    panels = []
    walk = show.walk
    monkeypatch.setattr(show, "walk", lambda *a: panels.append(a[1]) or walk(*a))
    for name in ("ceilings", "launch_overhead", "timeline"):
        path = Path("../records") / RECORDS.name / f"{name}.json"
        record = records.load(path)
        if name == "ceilings":
            lacking = [case for case in ceilings.cases("cuda") if case["what"] == "empty"]
            known = [case.parameters for case in record.cases]
            more = tuple(records.Case(c, {}) for c in lacking if c not in known)
            record = dataclasses.replace(record, cases=(*record.cases, *more))
        records.write(made_up(name, record), path.parent)
    capsys.readouterr()
    assert page.run()[0] == ["there is no record of kernel_times"]
    return capsys.readouterr().out, panels


EIGHT = pytest.mark.parametrize(
    "page", [path for path in PAGES if path.stem[:2] == "08"], ids=["08"], indirect=True
)


@EIGHT
def test_chapter_8_fits_a_graph_by_a_hinge(page, monkeypatch, capsys):
    said, (recorded, modelled) = chapter_8_on_a_gpu(page, monkeypatch, capsys)
    numbers = {line for line in said.splitlines() if re.match(r"  [acb] = ", line)}
    assert numbers >= {
        "  a = 6.000 µs (6.000 to 6.000)",
        "  c = 3.000 µs (3.000 to 3.000)",
        "  b = 1.200 µs (1.200 to 1.200)",
    }
    assert all("device" in {event[0] for event in events} for events in recorded.values())
    assert all(title.endswith(": from the model") for title in modelled)


EIGHT_ON_A_GPU = pytest.mark.parametrize(
    "page_on_a_gpu", [path for path in PAGES if path.stem[:2] == "08"], indirect=True
)


@EIGHT_ON_A_GPU
def test_chapter_8_shows_the_kernels_of_each_variant_on_a_gpu(page_on_a_gpu, capsys):
    page_on_a_gpu.run()
    said = capsys.readouterr().out
    rows = re.findall(r"(?m)^(.*), (float\d\d) +(\d+) +([\d.]+)  kernel$", said)
    case, *others = records.load(page_on_a_gpu.place / "kernel_times.json").measured()
    us = sum(end - begin for lane, _, begin, end in case.events if lane == "device")
    given = case.parameters
    assert rows[0] == (given["rung"], given["dtype"], "8", f"{us:.1f}")
    assert len(rows) == 1 + len(others) > 1


SIX_ON_A_GPU = pytest.mark.parametrize(
    "page_on_a_gpu", [path for path in PAGES if path.stem[:2] == "06"], indirect=True
)


@SIX_ON_A_GPU
def test_chapter_6_shows_the_rivals_of_a_gpu(page_on_a_gpu, capsys):
    """Times by which each gain can be told: over a hoisted module of 2 µs."""
    path, cases = page_on_a_gpu.place / "rivals.json", []
    for what, written_us in (
        ("batch", {"": 3, "graph, ": 4}),
        ("tf32", {"": 5, "graph, ": 6, ", TF32": 7, "graph, , TF32": 8}),
        ("cold", {"": 9, "graph, ": 10, ", cold": 11}),
    ):
        samples = {}
        for way, us in written_us.items():
            prefix = "graph, " if way.startswith("graph, ") else ""
            suffix = way.removeprefix(prefix)
            samples[f"{prefix}{variants.WRITTEN}{suffix}"] = (us,) * 3
            samples[f"{prefix}{variants.HOISTED}{suffix}"] = (2,) * 3
        given = {"module": "3a", "batch": 8, "dtype": "float32", "layout": "NCHW"}
        cases.append(records.Case({"what": what} | given, samples))
    record = dataclasses.replace(records.load(path), cases=tuple(cases))
    records.write(record, path.parent)
    page_on_a_gpu.run()
    said = capsys.readouterr().out
    rows = re.findall(r"(?m)^3a, batch 8, float32, NCHW(.*?) {2,}(.*)$", said)
    assert [(words, *gains.split()) for words, gains in rows] == [
        ("", "1.50", "2.00"),
        (", TF32 off", "2.50", "3.00"),
        (", TF32 on", "3.50", "4.00"),
        (", caches warm", "4.50", "5.00"),
        (", caches cold", "5.50"),
    ]
