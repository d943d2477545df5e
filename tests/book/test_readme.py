"""The README keeps its word: numbers from the records, and what cannot be done."""

import dataclasses
import json
import re
import statistics
from pathlib import Path

import pytest
import readme
import torch
import torch.nn.functional as F
from torch import nn

import hfusion
from hfusion.fusing import _members
from sideways import records
from sideways.experiments import variants

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")

# Its numbers


@pytest.mark.parametrize("path", readme.FILES, ids=lambda path: path.name)
def test_the_numbers_are_those_of_the_records_and_of_the_library(path):
    text = path.read_text(encoding="utf-8")
    written = readme.filled(text, names=readme.FILES[path])
    assert written == text, "make run, or python tools/readme.py, writes them"


def test_the_headline_is_worked_out_from_raw_samples():
    """By hand: medians of ratios per round, and the median of those over the modules."""
    (path,) = ROOT.glob("records/*/stage.json")
    usual = {"batch": 1, "dtype": "float32", "layout": "NCHW"}
    gains = []
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
        if usual.items() <= case["parameters"].items():
            pairs = zip(
                case["samples"]["separate"], case["samples"]["stacked"], strict=True
            )
            gains.append(statistics.median(before / after for before, after in pairs))
    said = " ".join(readme.headline(ROOT / "records").split())
    assert f"run {statistics.median(gains):.2f} times as fast" in said
    assert f"of {len(gains)} modules" in said


def test_the_headline_says_what_there_is(tmp_path):
    assert readme.headline(tmp_path) == readme.NO_GPU
    kept(tmp_path, [case(1), case(4, **fused(4.0, 4.0, 4.0))])
    assert readme.headline(tmp_path) == readme.NO_GPU
    kept(tmp_path, [case(1, **fused(4.0, 4.0, 4.0))], "cuda")
    said = " ".join(readme.headline(tmp_path).split())
    assert said.startswith("On a GPU, once its batch norms are merged")
    assert "runs 2.00 times as fast" in said
    assert "the three 1×1 convolutions" not in said


def test_a_number_changed_by_hand_is_noticed():
    blocks = re.findall(r"<!-- (?:headline|counted|measured) -->.*?<!-- /", TEXT, re.S)
    numbers = re.findall(r"\b\d\.\d\d\b|(?:as written|leaves) \d+", "".join(blocks))
    assert len(numbers) > 20
    for number in numbers:
        other = re.sub(r"\d$", lambda m: str((int(m[0]) + 1) % 10), number)
        assert readme.filled(TEXT.replace(number, other)) == TEXT


def test_a_readme_that_has_lost_a_block_is_refused():
    with pytest.raises(ValueError, match="expected one <!-- measured -->"):
        readme.filled(TEXT.replace("<!-- measured -->", ""))


def case(batch=1, network="GoogLeNet", **others):
    samples = {variants.FOLDED: (8.0, 8.0, 8.0)} | {
        name.replace("_", " "): times for name, times in others.items()
    }
    about = {"network": network, "batch": batch, "dtype": "float32", "layout": "NCHW"}
    return records.Case(about, samples if others else {})


def kept(folder, cases, kind="cpu"):
    """A record of these cases, saved in a folder."""
    machine = records.Machine(kind, kind, "a device", "", 1, "3.12", "2.13")
    record = records.Record("network", "?", machine, "2026-11-30", "0" * 40, "0" * 16,
                            "operators", {"rounds": 3}, tuple(cases))  # fmt: skip
    records.save(record, folder)
    return record


def fused(*times):
    return {variants.STACKED: times}


def test_gains_and_losses_are_told_alike(tmp_path):
    kept(tmp_path, [case(1, **fused(4.0, 4.0, 4.0)), case(2, **fused(16.0, 16.0, 16.0)),
                    case(4, **fused(4.0, 8.0, 16.0))])  # fmt: skip
    said = readme.measured(tmp_path)
    assert "| GoogLeNet, 1 image, float32 | 2.00 (2.00 to 2.00) |" in said
    assert "| GoogLeNet, 2 images, float32 | **0.50 (0.50 to 0.50)** |" in said
    assert "| GoogLeNet, 4 images, float32 | 1.00 (0.75 to 1.50) |" in said
    assert "Of 3 gains 1 are\nclearly above 1, 1 clearly below, and 1 are neither" in said
    assert said.endswith("No GPU has been recorded yet.")


def test_what_was_not_measured_is_named(tmp_path):
    compiled = {"compile, folded": (6.0,) * 3, f"compile, {variants.HOISTED}": (3.0,) * 3}
    kept(tmp_path, [case(1, **fused(4.0, 4.0, 4.0), **compiled), case(8, **compiled),
                    case(1, "torchvision"), case(64)], "cuda")  # fmt: skip
    said = readme.measured(tmp_path)
    assert "|  | eager | torch.compile |\n" in said
    assert "| GoogLeNet, 8 images, float32 | – | 2.00 (2.00 to 2.00) |" in said
    assert (
        "Not measured there: torchvision's GoogLeNet, 1 image, float32; GoogLeNet, "
        "64 images, float32." in said
    )
    assert "No GPU" not in said


def test_a_table_of_nothing_is_none(tmp_path):
    assert readme.measured(tmp_path) == "No network has been recorded yet."
    record = kept(tmp_path, [case(1), case(4)])
    assert readme.measured(tmp_path) == "No network has been recorded yet."
    records.save(dataclasses.replace(record, cases=()), tmp_path)
    assert readme.measured(tmp_path) == "No network has been recorded yet."


# Its commands


def test_make_has_every_target_that_is_named():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+)(?: [a-z]+)*:", makefile, re.M)
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", TEXT, re.M))
    assert {"book", "test", "record", "run"} <= named <= set(targets)


def expanded(makefile):
    """What make runs: lines joined, variables and the extras of a stamp put in."""
    text = makefile.replace("\\\n", " ").replace("--quiet ", "")
    values = dict(re.findall(r"^([A-Z_]+) *\??:?= (.*)$", text, re.M))
    values |= {"PYTHON": "python", "BIN": ".venv/bin"}
    values |= {"AS_THE_BOOK": "", "OPTIONS": ""}  # how Lab looks
    for _ in range(2):  # a value may name another
        text = re.sub(r"\$\(([A-Z_]+)\)", lambda m: values.get(m[1], m[0]), text)
    return [" ".join(line.split()) for line in text.replace("$*", "test,lab").splitlines()]


def test_what_stands_for_make_is_what_make_does():
    """Each line for Windows is in the Makefile, with the same options."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = {line.partition(" || ")[0] for line in expanded(makefile)}
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bat\n(.*?)^```", guide, re.M | re.S)
    lines = block.replace("\\Scripts\\", "/bin/").splitlines()
    assert [line for line in lines if line not in made] == []
    assert len(lines) == 8


# What happens, row by row of its table: what tests of the library hold, and here the rest

HELD = {
    "control flow on a tensor's shape": "plan.test_a_model_that_cannot_be_read_may_be_run",
    "attributes and methods": "citizen.test_modes_are_switched_as_in_the_model",
    "`named_parameters()`": "citizen.test_states_are_loaded_or_refused_as_by_the_model",
    "a layer called several times":
        "siblings.test_what_each_call_looks_at_need_not_be_refused",
    "a layer with a hook": "siblings.test_what_each_call_looks_at_need_not_be_refused",
    "a weight that is not a plain `Parameter`":
        "packing_tools.test_weights_that_are_quantised_before",
    "an activation": "plan.test_an_activation_is_applied_once_where_that_is_sure_to_save",
    "branches with unlike windows": "windows.test_a_plan_embeds_only_when_asked",
    "training": "packing_tools.test_gradients_are_the_models_bit_for_bit",
    "`torch.inference_mode`": "packing_tools.test_modes_that_watch",
    "`torch.func.functional_call`": "packing_tools.test_functions_of_torch_func",
    "`torch.compile`": "packing_tools.test_compiled",
    "`torch.export`, `torch.jit.trace`": "packing_tools.test_tracers",
    "several threads": "packing.test_threads",
}  # fmt: skip


@pytest.mark.parametrize("words", HELD)
def test_a_test_of_the_library_holds_a_row(words):
    assert row(words)
    file, _, name = HELD[words].partition(".")
    source = (ROOT / f"tests/library/test_{file}.py").read_text(encoding="utf-8")
    assert f"\ndef {name}(" in source


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tag = "mine"

    def forward(self, x):
        return self.a(x), self.b(x)


X = torch.ones(4, 8)
WAYS = [None, X]  # by reading, by running
by_both = pytest.mark.parametrize("given", WAYS, ids=["read", "run"])


def changed(forward, make=Two, **members):
    """A model of Two's layers with another forward, and perhaps others."""
    model = type("Changed", (make,), {"forward": forward})()
    for name, member in members.items():
        setattr(model, name, member)
    return model


def fused_with_groups(model, given=None, **options):
    """(the fused model, the groups that it has)."""
    fused = hfusion.plan(model, given, **options).apply()
    members = [_members.member_of(module) for module in fused.modules()]
    return fused, [*dict.fromkeys(member.group for member in members if member)]


def same(fused, model, *inputs):
    with torch.no_grad():
        pairs = zip(fused(*inputs), model(*inputs), strict=True)
        return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)


def row(words):
    """Whether the table has a row that begins so."""
    return re.search(rf"^\| {re.escape(words)}", TEXT, re.M)


def test_views():
    assert row("a branch that is read with `.view`")
    views = changed(lambda self, x: (self.a(x).view(-1, 2, 4), self.b(x)))
    whole = changed(lambda self, x: (self.a(x).view(-1), self.b(x)))
    for model in (views, whole):
        (group,) = hfusion.plan(model).groups
        assert group.reason.startswith(
            "at least as many copies as saved launches: `view` (view) "
        )
    assert [hfusion.plan(model, X).groups[0].fused for model in (views, whole)] == [1, 0]
    three = changed(lambda self, x: (self.a(x).view(-1), self.b(x), self.c(x)),
                    c=nn.Linear(8, 8))  # fmt: skip
    for given in WAYS:
        fused, (group,) = fused_with_groups(three, given)
        assert group.dense == {0}
        assert same(fused, three, X)
        assert group.rounds == 1


@by_both
def test_layers_that_are_not_fused_have_a_reason(given):
    assert row("a layer with `groups` other than 1, layers that share a weight")
    shared, grouped = Two(), Two()
    shared.b.weight = shared.a.weight
    grouped.a, grouped.b = (nn.Conv1d(4, 8, 1, groups=2) for _ in range(2))
    for model, word in (
        (shared, "a and b share a parameter"),
        (grouped, "groups of a: expected 1, got 2"),
    ):
        groups = hfusion.plan(model, given).groups
        assert not any(group.fused for group in groups)
        assert word in groups[0].reason


@by_both
def test_weights_that_are_read_and_layers_of_pytorchs_own_are_not_found(given):
    assert row("a weight read directly")
    read = changed(lambda self, x: (F.linear(x, self.a.weight), F.linear(x, self.b.weight)))
    encoder = nn.Sequential(nn.TransformerEncoderLayer(8, 2)).eval()
    for model, unseen in ((read, "a, b"), (encoder, "0.self_attn.out_proj")):
        plan = hfusion.plan(model, given)
        assert plan.groups == ()
        assert f"not called: {unseen}" in str(plan)
    assert hfusion.plan(nn.Sequential(nn.LSTM(8, 8)), given).groups == ()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own parts
def test_scripts():
    assert row("`torch.jit.script`")
    model = Two().eval()
    fused = hfusion.fuse(model)
    with pytest.raises((RuntimeError, torch.jit.frontend.NotSupportedError)):
        torch.jit.script(fused.a)
    script = torch.jit.script(hfusion.unfuse(fused).a)
    assert torch.equal(script(X), model.a(X))


def test_what_is_not_noticed():
    assert row("an input or a weight written to between two siblings")

    def forward(self, x):
        x = x * 1
        first = self.a(x)
        x.data.mul_(2)
        return first, self.b(x)

    model = changed(forward)
    assert not fused_with_groups(model)[1]  # reading it shows the write
    fused, _ = fused_with_groups(model, X)
    with torch.no_grad():
        assert torch.allclose(fused(X)[1], model.b(X), atol=1e-6)  # not of 2 · X


def test_a_path_that_was_not_planned():
    assert row("a path that was neither read nor run")

    def forward(self, x):
        first, second = self.a(x), self.b(x)
        if len(x) > 1:
            first.reshape(-1).zero_()
            second.view(-1)
        return first, second

    model = changed(forward)
    fused, _ = fused_with_groups(model, X[:1])
    with torch.no_grad():
        assert same(fused, model, X[:1])
        assert not model(X)[0].any()
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            fused(X)


def test_the_table_has_no_other_rows():
    """Of each there is a test; the last says that nothing is promised."""
    table = TEXT.partition("| model or use |")[2].partition("## What next")[0]
    rows = re.findall(r"^\| (.*?) \|", table, re.M)
    source = Path(__file__).read_text(encoding="utf-8")
    named = [*HELD, *re.findall(r'assert row\("(.*)"\)', source)]
    assert [r for r in rows if not any(r.startswith(name) for name in named)] == [
        "the same bits"
    ]
