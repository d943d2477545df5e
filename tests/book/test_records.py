"""records.py: what is written comes back, and what was edited is refused."""

import copy
import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
from made_up_record import CASES, MACHINE, RECORD

from sideways import records
from sideways.records import Case, Machine, NotRecorded, Record, RecordError

FOLDER = Path(__file__).resolve().parents[2] / "records"
SCHEMA = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
FILES = sorted(FOLDER.glob("*/*.json"))


@pytest.fixture
def path(tmp_path):
    return records.save(RECORD, tmp_path)


def as_lists(value):
    return json.loads(json.dumps(value))


def test_a_record_comes_back(path, tmp_path):
    assert path == tmp_path / "a-cpu" / "stage.json"
    loaded = records.load(path)
    assert as_lists(dataclasses.asdict(loaded)) == as_lists(dataclasses.asdict(RECORD))
    assert loaded.machine == MACHINE
    assert [type(case) for case in loaded.cases] == [Case, Case]
    assert records.save(loaded, tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_label_names_the_device_and_the_date():
    assert RECORD.label == "recorded on A CPU, 2 threads, 2026-11-22"


def test_select_gives_the_cases_with_these_parameters():
    assert RECORD.select(module="3a") == list(CASES)
    assert RECORD.select(module="3a", batch=2) == [CASES[1]]
    with pytest.raises(LookupError, match=r"stage \(recorded on .*\) has no case"):
        RECORD.select(module="3b")


def test_a_case_knows_its_median_and_its_gain():
    assert CASES[0].median("separate") == 4
    assert CASES[0].gain("stacked", "separate") == (3, 4, 4)  # ratios 2, 4, 4
    assert CASES[0].interval("stacked", "separate") == (2, 4)  # too few to cut any off
    assert CASES[0].more("separate", "stacked") == 3  # differences 2, 6, 3


# What is not in a record says so; nothing else does.


def test_measured_gives_the_cases_in_which_these_variants_ran():
    assert RECORD.measured() == RECORD.measured("stacked", module="3a") == [CASES[0]]
    record = dataclasses.replace(RECORD, cases=CASES[::-1])
    assert record.measured(module="3a") == [CASES[0]]


NOWHERE = {
    "case": (lambda r: r.select(module="3b"), "has no case module 3b"),
    "measured": (
        lambda r: r.measured(batch=2),
        r"no measured case batch 2 \(out of memory\)",
    ),
    "variant": (
        lambda r: r.measured("graph"),
        r"at all with 'graph' \(needs a CUDA device\)",
    ),
    "variant nobody knows": (lambda r: r.measured("x"), r"at all with 'x' \("),
    "median": (lambda r: CASES[0].median("graph"), r"'graph' .*\(needs a CUDA device\)"),
    "gain": (lambda r: CASES[0].gain("graph", "stacked"), "'graph' did not run"),
    "base": (lambda r: CASES[0].gain("stacked", "graph"), "'graph' did not run"),
    "skipped": (lambda r: CASES[1].median("stacked"), r"'stacked' .*\(out of memory\)"),
    "samples": (lambda r: CASES[0].samples["x"], r"'x' did not run \(no reason given\)"),
    "launches": (lambda r: CASES[0].launches["graph"], "'graph' did not run"),
    "faults": (lambda r: CASES[0].faults["stacked"], "'stacked' did not run"),
}


@pytest.mark.parametrize(("look", "message"), NOWHERE.values(), ids=NOWHERE)
def test_what_is_not_there_is_named_with_its_reason(path, look, message):
    for record in (RECORD, records.load(path)):
        with pytest.raises(NotRecorded, match=message) as caught:
            look(record)
        assert isinstance(caught.value, RecordError)
        assert isinstance(caught.value, LookupError)


def test_a_record_of_nothing_has_no_case():
    empty = records.nothing("stage")
    assert (empty.label, empty.cases, empty.machine.kind) == ("not recorded", (), "cpu")
    for look in (empty.select, empty.measured):
        with pytest.raises(NotRecorded, match=r"^there is no record of stage$"):
            look(batch=1)


def test_calls_may_be_one_number_or_one_for_each_variant(tmp_path):
    each = {"separate": 3, "stacked": 5}
    case = dataclasses.replace(CASES[0], calls=each)
    path = records.save(dataclasses.replace(RECORD, cases=(case,)), tmp_path)
    assert records.load(path).cases[0].calls == each
    content = json.loads(path.read_text(encoding="utf-8"))
    fits(content)
    for wrong in (0, {"separate": 0}, "3"):
        content["cases"][0]["calls"] = wrong
        with pytest.raises(jsonschema.ValidationError):
            fits(content)


# What is edited is refused. Each edit leaves the file well-formed.


def edited(path, edit):
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def a_sample(content):
    content["cases"][0]["samples"]["stacked"][1] = 1.9


def a_unit(content):
    content["cases"][0]["unit"] = "ms"


def a_label(content):
    content["machine"]["device"] = "A GPU"


def a_date(content):
    content["date"] = "2026-11-23"


def a_reason(content):
    content["cases"][1]["skipped"] = {}


def an_order(content):
    content["cases"].reverse()


def the_digest(content):
    content["digest"] = "0" * 64


def no_digest(content):
    del content["digest"]


EDITS = [a_sample, a_unit, a_label, a_date, a_reason, an_order, the_digest, no_digest]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_record_is_refused(path, edit):
    with pytest.raises(RecordError, match="was edited or damaged") as caught:
        records.load(edited(path, edit))
    assert str(path) in str(caught.value)


def test_another_layout_of_the_same_numbers_is_the_same_record(path):
    before = records.load(path)
    assert records.load(edited(path, lambda content: None)) == before


# What does not fit is refused even if its digest does.


def forged(path, edit):
    def edit_and_sign(content):
        edit(content)
        del content["digest"]
        content["digest"] = records.digest(content)

    return edited(path, edit_and_sign)


def lacks_the_date(content):
    del content["date"]


def adds_a_field(content):
    content["weather"] = "fine"


def lacks_threads(content):
    del content["machine"]["threads"]


def no_machine(content):
    content["machine"] = "mine"


def adds_to_a_case(content):
    content["cases"][0]["note"] = ""


def other_unit(content):
    content["cases"][0]["unit"] = "ms"


def fewer_samples(content):
    content["cases"][0]["samples"]["stacked"].pop()


def no_samples(content):
    content["cases"][0]["samples"] = {"separate": [], "stacked": []}


def below_zero(content):
    content["cases"][0]["samples"]["stacked"][0] = -1.0


def exactly_zero(content):
    content["cases"][0]["samples"]["stacked"][0] = 0


def a_word(content):
    content["cases"][0]["samples"]["stacked"][0] = "2"


def a_truth(content):
    content["cases"][0]["samples"]["stacked"][0] = True


FORGERIES = {
    lacks_the_date: "a Record lacks or adds date",
    adds_a_field: "a Record lacks or adds weather",
    lacks_threads: "a Machine lacks or adds threads",
    no_machine: "Machine: expected a dict, got 'mine'",
    adds_to_a_case: "a Case lacks or adds note",
    other_unit: "unit: expected 'us', got 'ms'",
    fewer_samples: "samples: expected as many of each variant",
    no_samples: "samples of separate: expected times above 0",
    below_zero: "samples of stacked: expected times above 0",
    exactly_zero: "samples of stacked: expected times above 0",
    a_word: "samples of stacked: expected times above 0",
    a_truth: "samples of stacked: expected times above 0",
}


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_record_that_does_not_fit_is_refused(path, forge):
    with pytest.raises(RecordError) as caught:
        records.load(forged(path, forge))
    assert FORGERIES[forge] in str(caught.value)
    assert str(path) in str(caught.value)


NO_RECORDS = {
    "cannot be read": b"{",
    "cannot be read: 'utf-8'": b"\xff",
    "is no record: it has no schema number": b"[1]",
    "is no record": b'{"cases": []}',
    "has schema 2, and this hfusion reads 1": b'{"schema": 2}',
}


@pytest.mark.parametrize("message", NO_RECORDS)
def test_a_foreign_file_is_named(tmp_path, message):
    path = tmp_path / "foreign.json"
    path.write_bytes(NO_RECORDS[message])
    with pytest.raises(RecordError) as caught:
        records.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"nowhere\.json cannot be read"):
        records.load(tmp_path / "nowhere.json")


# Written whole or not at all.


def test_a_record_cut_short_leaves_the_old_one(path, tmp_path, monkeypatch):
    before = path.read_bytes()

    def full_disk(self, text, encoding):
        self.write_bytes(text[: len(text) // 2].encode())
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        records.save(dataclasses.replace(RECORD, date="2026-11-23"), tmp_path)
    assert path.read_bytes() == before


def test_nothing_is_written_of_a_record_that_does_not_fit(tmp_path):
    wrong = dataclasses.replace(CASES[0], samples={"a": (1.0,), "b": (float("nan"),)})
    with pytest.raises(RecordError, match="samples of b: expected times above 0"):
        records.save(dataclasses.replace(RECORD, cases=(wrong,)), tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_records_with_a_gpu_come_first(path, tmp_path):
    gpu = dataclasses.replace(MACHINE, name="z-gpu", kind="cuda")
    records.save(dataclasses.replace(RECORD, machine=gpu), tmp_path)
    assert list(records.load_all(tmp_path, "stage")) == ["z-gpu", "a-cpu"]
    assert records.first(tmp_path, "stage").machine == gpu
    assert records.load_all(tmp_path, "network") == {}
    assert records.first(tmp_path, "network").label == "not recorded"


def test_a_run_that_did_not_end_is_no_machine(tmp_path):
    records.write(RECORD, tmp_path / ".a-cpu.unfinished")
    assert records.load_all(tmp_path, "stage") == {}


# The schema.


def fits(content):
    jsonschema.validate(content, SCHEMA)


def test_the_schema_fits_what_is_saved(path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    fits(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (Record, SCHEMA),
        (Machine, SCHEMA["$defs"]["machine"]),
        (Case, SCHEMA["$defs"]["case"]),
    ],
    ids=["Record", "Machine", "Case"],
)
def test_the_schema_has_every_field_and_no_other(kind, schema):
    fields = {field.name for field in dataclasses.fields(kind)}
    more = {"schema", "digest"} if kind is Record else set()
    assert set(schema["properties"]) == fields | more
    assert set(schema["required"]) == (fields | more) - records.LATER
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_the_schema_refuses_too(path, forge):
    if forge is fewer_samples:
        pytest.skip("JSON Schema cannot compare the lengths of two lists")
    content = json.loads(path.read_text(encoding="utf-8"))
    forge(content)
    with pytest.raises(jsonschema.ValidationError):
        fits(content)


# The records of the book.


def test_there_are_records():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_record_of_the_book_is_whole(path):
    fits(json.loads(path.read_text(encoding="utf-8")))
    record = records.load(path)
    assert (path.parent.name, path.stem) == (record.machine.name, record.experiment)
    assert not record.commit.endswith("+")
    for case in record.cases:
        assert case.samples or case.skipped
        rounds = {len(samples) for samples in case.samples.values()}
        most = record.protocol["rounds"]
        assert all(record.protocol.get("least_rounds", most) <= n <= most for n in rounds)
        named = set(case.launches) | set(case.faults)
        assert named <= set(case.samples)
        assert not set(case.skipped) & set(case.samples)


def test_a_digit_changed_in_a_record_of_the_book_is_noticed(tmp_path):
    content = json.loads(FILES[0].read_text(encoding="utf-8"))
    case = next(case for case in content["cases"] if case["samples"])
    name = next(iter(case["samples"]))
    changed = copy.deepcopy(case["samples"][name])
    changed[0] = round(changed[0] + 0.001, 3)
    case["samples"][name] = changed
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RecordError, match="edited or damaged"):
        records.load(path)
