"""The README keeps its word: numbers from the records, and what cannot be done."""

import dataclasses
import json
import re
import statistics
import threading
from pathlib import Path

import pytest
import readme
import torch
import torch.nn.functional as F
from torch import nn

import hfusion
from hfusion import timing
from hfusion.fusing import _members, siblings
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
    (block,) = re.findall(r"^```bat\n(.*?)^```", TEXT, re.M | re.S)
    lines = block.replace("\\Scripts\\", "/bin/").splitlines()
    assert [line for line in lines if line not in made] == []
    assert len(lines) == 8


# What happens, row by row of its table; each test names its rows


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


def test_control_flow_is_run():
    assert row("control flow on a tensor's shape or values")

    def forward(self, x):
        return (self.a(x), self.b(x)) if len(x.shape) > 1 and x.sum() > 0 else (x, x)

    model = changed(forward)
    with pytest.raises(hfusion.FusionError, match=r"cannot be traced.*give example_inputs"):
        hfusion.plan(model)
    fused, (group,) = fused_with_groups(model, X)
    assert same(fused, model, X)
    assert same(fused, model, -X)
    assert group.rounds == 1


@by_both
def test_a_fused_model_stays_itself(given):
    assert row("attributes and methods of its class, a `train()` of its own, a forward")

    def forward(self, x):
        y = x * 2 if self.training else x
        return self.a(y), self.b(y)

    def train(self, mode=True):
        self.trained = mode
        return nn.Module.train(self, mode)

    model = changed(forward)
    type(model).train = train
    fused, (group,) = fused_with_groups(model, given)
    assert type(fused) is type(model)
    assert fused.tag == "mine"
    for mode in (True, False, True):
        assert same(fused.train(mode), model.train(mode), X)
        assert fused.trained is mode
    assert group.rounds == 3


@by_both
def test_names_and_states_are_the_models(given):
    assert row("`named_parameters()`, `state_dict()`, an optimiser's state")
    model = Two()
    fused, _ = fused_with_groups(model, given)
    assert list(dict(fused.named_parameters())) == list(dict(model.named_parameters()))
    assert list(fused.state_dict()) == list(model.state_dict())
    model.load_state_dict(fused.state_dict())
    fused.load_state_dict(Two().state_dict())
    assert not same(fused, model, X)
    for one, other in ((model, fused), (fused, model)):
        old, new = (torch.optim.Adam(network.parameters()) for network in (one, other))
        sum(y.sum() for y in one(X)).backward()
        old.step()
        new.load_state_dict(old.state_dict())
        assert new.state_dict()["state"].keys() == old.state_dict()["state"].keys()


@by_both
def test_layers_called_several_times(given):
    assert row("a layer called several times")
    model = changed(lambda self, x: (*Two.forward(self, x), *Two.forward(self, x + 1)))
    fused, (group,) = fused_with_groups(model, given)
    assert same(fused, model, X)
    assert group.rounds == 2
    apart = changed(lambda self, x: (*Two.forward(self, x), self.a(x + 1)))
    assert fused_with_groups(apart, given)[1] == []


def test_layers_with_hooks():
    assert row("a layer with a hook")
    model = Two()
    model.a.register_forward_hook(lambda module, given, y: y + 1)
    (group,) = hfusion.plan(model).groups
    assert "a hook of a may change their input between a and b" in group.reason
    fused, (group,) = fused_with_groups(model, X)
    assert same(fused, model, X)
    expected = nn.functional.linear(X, *model.a.parameters())
    assert torch.allclose(fused(X)[0] - 1, expected, atol=1e-6)
    assert group.rounds == 1


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
def test_activations(given, monkeypatch):
    assert row("an activation")

    def relus(model, x):
        fused, (_,) = fused_with_groups(model, given)
        with torch.no_grad():
            return timing.count_launches(lambda: fused(x)).names.count("relu")

    def forward(self, x):
        return self.c(self.a(x)), self.d(self.b(x))

    modules = changed(forward, c=nn.ReLU(), d=nn.ReLU())
    assert (relus(modules, X[:1]), relus(modules, X)) == (2, 2)
    monkeypatch.setattr(siblings, "_pays", lambda device: True)  # as on a GPU
    assert (relus(modules, X[:1]), relus(modules, X)) == (1, 2)
    assert (
        relus(changed(lambda self, x: [y.relu() for y in Two.forward(self, x)]), X[:1]) == 2
    )


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


@pytest.mark.parametrize("way", WAYS, ids=["read", "run"])
def test_unlike_windows_are_embedded_only_when_asked(way):
    assert row("branches with unlike windows")
    model, x = Two(), torch.ones(1, 8, 4, 4)
    model.a, model.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
    given = None if way is None else x
    assert not any(group.fused for group in hfusion.plan(model, given).groups)
    plan = hfusion.plan(model, given, embed=True)
    assert plan.groups[0].extra_macs == 8 * 8 * 8
    fused = plan.apply()
    assert same(fused, model, x)
    x[0, 0, 0, 0] = float("inf")
    with torch.no_grad():
        assert model(x)[0].isfinite().sum() == 15 * 8
        assert fused(x)[0].isfinite().sum() == 12 * 8


@by_both
def test_training_is_as_before(given):
    assert row("training")
    assert row("`torch.inference_mode`")
    model = Two()
    fused, (group,) = fused_with_groups(model, given)
    for network in (model, fused):
        network(X)[0].sum().backward()
    assert torch.equal(fused.a.weight.grad, model.a.weight.grad)
    assert fused.b.weight.grad is None
    with torch.inference_mode():
        assert torch.equal(fused(X)[1], model(X)[1])
    assert group.rounds == 0


@by_both
def test_functions_of_states(given):
    assert row("`torch.func.functional_call`, `torch.func.vmap`")
    model = Two()
    fused, (group,) = fused_with_groups(model, given)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    with torch.no_grad():
        assert not any(y.any() for y in torch.func.functional_call(fused, state, X))
        for one, other in zip(torch.func.vmap(fused)(X), model(X), strict=True):
            assert torch.allclose(one, other)
    assert group.rounds == 0


@by_both
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own parts
def test_compilers(given):
    assert row("`torch.compile`")
    assert row("`torch.export`, `torch.jit.trace`")
    model = Two().eval()
    fused, _ = fused_with_groups(model, given)
    compiled = torch.compile(fused, fullgraph=True)
    assert same(compiled, model, X)

    def linears(exported):
        return len([n for n in exported.graph.nodes if "linear" in str(n.target)])

    assert linears(torch.export.export(fused, (X,))) == 2
    lowered = hfusion.lower(hfusion.plan(model))
    assert linears(torch.export.export(lowered, (X,))) == 1
    traced = torch.jit.trace(fused, X)
    assert same(traced, model, X + 1)
    assert str(traced.inlined_graph).count("aten::linear") == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own parts
def test_scripts():
    assert row("`torch.jit.script`")
    model = Two().eval()
    fused = hfusion.fuse(model)
    with pytest.raises((RuntimeError, torch.jit.frontend.NotSupportedError)):
        torch.jit.script(fused.a)
    script = torch.jit.script(hfusion.unfuse(fused).a)
    assert torch.equal(script(X), model.a(X))


def test_threads():
    """`test_packing` has them wait while weights move."""
    assert row("several threads")
    model, found = Two(), []
    fused, _ = fused_with_groups(model)
    call = lambda: found.append(same(fused, model, X))
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True, True]


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
    """Of each there is a test above; the last says that nothing is promised."""
    table = TEXT.partition("| model or use |")[2].partition("## What next")[0]
    rows = re.findall(r"^\| (.*?) \|", table, re.M)
    source = Path(__file__).read_text(encoding="utf-8")
    named = re.findall(r'assert row\("(.*)"\)', source)
    assert [r for r in rows if not any(r.startswith(name) for name in named)] == [
        "the same bits"
    ]
