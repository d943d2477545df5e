"""The README keeps its word: numbers from the records, and what cannot be done."""

import dataclasses
import re
from pathlib import Path

import pytest
import readme
import torch
import torch.nn.functional as F
from torch import nn

import hfusion
from hfusion import packed, records
from hfusion.experiments import rungs

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")

# Its numbers


def test_the_numbers_are_those_of_the_records_and_of_the_library():
    assert readme.filled(TEXT) == TEXT, "make run, or python tests/readme.py, writes them"


def test_a_number_changed_by_hand_is_noticed():
    block = TEXT.partition("<!-- counted -->")[2]
    for number in re.findall(r"\d+\.\d\d|operators become \d+|as written \d+", block):
        other = re.sub(r"\d$", lambda m: str((int(m[0]) + 1) % 10), number)
        assert readme.filled(TEXT.replace(number, other)) == TEXT


def test_a_readme_that_has_lost_a_block_is_refused():
    with pytest.raises(ValueError, match="expected one <!-- measured -->"):
        readme.filled(TEXT.replace("<!-- measured -->", ""))


def case(batch=1, network="GoogLeNet", **samples):
    arms = {rungs.FOLDED: (8.0, 8.0, 8.0)} | {
        name.replace("_", " "): times for name, times in samples.items()
    }
    about = {"network": network, "batch": batch, "dtype": "float32", "layout": "NCHW"}
    return records.Case(about, arms if samples else {})


def kept(folder, cases, kind="cpu"):
    """A record of these cases, saved in a folder."""
    machine = records.Machine(kind, kind, "a device", "", 1, "3.12", "2.13")
    record = records.Record("network", "?", machine, "2026-11-30", "0" * 40, "0" * 16,
                            "operators", {"rounds": 3}, tuple(cases))  # fmt: skip
    records.save(record, folder)
    return record


def fused(*times):
    return {rungs.HOISTED: times}


def test_gains_and_losses_are_told_alike(tmp_path):
    kept(tmp_path, [case(1, **fused(4.0, 4.0, 4.0)), case(2, **fused(16.0, 16.0, 16.0)),
                    case(4, **fused(4.0, 8.0, 16.0))])  # fmt: skip
    said = readme.measured(tmp_path)
    assert "| GoogLeNet, 1 image, float32 | 2.00 (2.00 to 2.00) |" in said
    assert "| GoogLeNet, 2 images, float32 | **0.50 (0.50 to 0.50)** |" in said
    assert "| GoogLeNet, 4 images, float32 | 1.00 (0.75 to 1.50) |" in said
    assert "Of 3 gains 1 are\nclearly above 1, 1 clearly below, and 1 are neither" in said
    assert said.endswith("No GPU has been recorded yet.")


def test_what_was_not_raced_is_named(tmp_path):
    compiled = {"compile, folded": (6.0,) * 3, f"compile, {rungs.HOISTED}": (3.0,) * 3}
    kept(tmp_path, [case(1, **fused(4.0, 4.0, 4.0), **compiled), case(8, **compiled),
                    case(1, "torchvision"), case(64)], "cuda")  # fmt: skip
    said = readme.measured(tmp_path)
    assert "|  | eager | torch.compile |\n" in said
    assert "| GoogLeNet, 8 images, float32 | – | 2.00 (2.00 to 2.00) |" in said
    assert (
        "Not raced there: torchvision's GoogLeNet, 1 image, float32; GoogLeNet, 64 images, "
        "float32." in said
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


# What it says cannot be done: one case of each row of the table


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tag = "mine"

    def forward(self, x):
        return self.a(x), self.b(x)


X = torch.ones(4, 8)


def changed(forward, make=Two):
    """A model of Two's layers with another forward."""
    return type("Changed", (make,), {"forward": forward})()


def test_control_flow_cannot_be_traced():
    def forward(self, x):
        return (self.a(x), self.b(x)) if len(x.shape) > 1 and x.sum() > 0 else x

    with pytest.raises(hfusion.FusionError, match="cannot be traced"):
        hfusion.plan(changed(forward))


def test_layers_that_are_not_fused_have_a_reason():
    twice = changed(lambda self, x: (self.a(x), self.b(x), self.a(x + 1), self.b(x + 1)))
    hooked, shared, grouped = Two(), Two(), Two()
    hooked.a.register_forward_hook(lambda *_: None)
    shared.b.weight = shared.a.weight
    grouped.a, grouped.b = (nn.Conv1d(8, 8, 1, groups=2) for _ in range(2))
    for model in (twice, hooked, shared, grouped):
        groups = hfusion.plan(model).groups
        assert groups
        assert all(not group.fused and group.reason for group in groups)


def test_weights_that_are_read_and_layers_of_pytorchs_own_are_not_found():
    read = changed(lambda self, x: (F.linear(x, self.a.weight), F.linear(x, self.b.weight)))
    models = [read, *(nn.Sequential(layer) for layer in (
        nn.TransformerEncoderLayer(8, 2), nn.LSTM(8, 8)))]  # fmt: skip
    assert [hfusion.plan(model).groups for model in models] == [(), (), ()]


def test_unlike_windows_are_embedded_only_when_asked():
    model = Two()
    model.a, model.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
    assert not any(group.fused for group in hfusion.plan(model).groups)
    (group,) = hfusion.plan(model, embed=True).groups
    assert group.fused
    assert group.extra_macs > 0


def test_a_fused_model_is_a_graph_with_the_models_states_only():
    model = Two()
    fused = hfusion.fuse(model)
    assert isinstance(fused, torch.fx.GraphModule)
    assert not isinstance(fused, Two)
    assert not hasattr(fused, "tag")
    assert list(fused.state_dict()) == list(model.state_dict())
    assert [name for name, _ in fused.named_parameters()] != list(model.state_dict())
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    called = torch.func.functional_call(fused, state, X)
    assert all(map(torch.equal, called, fused(X)))  # the state was not heeded
    with pytest.raises(RuntimeError, match="unsafe_split"):
        torch.func.vmap(fused)(X)


def test_an_optimisers_state_does_not_load():
    old, new = (torch.optim.Adam(m.parameters()) for m in (Two(), hfusion.fuse(Two())))
    with pytest.raises(ValueError, match="doesn't match"):
        new.load_state_dict(old.state_dict())


def test_a_forward_that_depends_on_the_mode_keeps_the_planned_one():
    def forward(self, x):
        return F.dropout(self.a(x) + self.b(x), 0.5, self.training)

    fused = hfusion.fuse(changed(forward).eval())
    with pytest.raises(hfusion.FusionError, match="mode"):
        fused.train()(X)


def test_a_branch_outside_the_loss_is_moved_by_momentum():
    def steps(model):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for both in (True, False):
            optimiser.zero_grad()
            a, b = model(X)
            (a.sum() + b.sum() if both else a.sum()).backward()
            optimiser.step()
        return model.state_dict()["b.weight"]

    model = Two()
    apart, together = hfusion.unfuse(hfusion.fuse(model)), hfusion.fuse(model)
    assert not torch.allclose(steps(apart), steps(together))


# … and what can be done with a model that was run


def fused_by_running(model, x=X):
    """(the fused model, the groups that it has)."""
    fused = hfusion.fuse(model, x)
    members = [packed.member_of(module) for module in fused.modules()]
    return fused, {member.group for member in members if member}


def same(fused, model, *inputs):
    with torch.no_grad():
        pairs = zip(fused(*inputs), model(*inputs), strict=True)
        return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)


def test_a_model_that_was_run_stays_itself():
    def forward(self, x):  # control flow on values and on the mode
        y = x * 2 if self.training or x.sum() > 40 else x
        return self.a(y), self.b(y)

    model = changed(forward)
    fused, (group,) = fused_by_running(model)
    assert type(fused) is type(model)
    assert fused.tag == "mine"
    assert list(dict(fused.named_parameters())) == list(dict(model.named_parameters()))
    for mode, scale in ((True, 1), (False, 1), (False, 2)):
        assert same(fused.train(mode), model.train(mode), scale * X)
    assert group.rounds == 3


def test_layers_called_twice_and_hooks():
    model = changed(lambda self, x: (*Two.forward(self, x), *Two.forward(self, x + 1)))
    fused, (group,) = fused_by_running(model)
    fused.a.register_forward_hook(lambda module, given, y: y + 1)
    model.a.register_forward_hook(lambda module, given, y: y + 1)
    assert same(fused, model, X)
    assert group.rounds == 2


def test_a_run_fuses_no_groups_and_no_unlike_windows():
    for one, other in (
        (nn.Conv1d(4, 8, 1, groups=2), nn.Conv1d(4, 8, 1, groups=2)),
        (nn.Conv1d(4, 8, 1), nn.Conv1d(4, 8, 3, padding=1)),
    ):
        model = Two()
        model.a, model.b = one, other
        assert fused_by_running(model, torch.ones(2, 4, 8))[1] == set()


def test_states_of_functions_and_of_optimisers():
    model = Two()
    fused, _ = fused_by_running(model)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    with torch.no_grad():
        assert not any(y.any() for y in torch.func.functional_call(fused, state, X))
        for one, other in zip(torch.func.vmap(fused)(X), model(X), strict=True):
            assert torch.allclose(one, other)
    old, new = (torch.optim.Adam(m.parameters()) for m in (model, fused))
    sum(y.sum() for y in model(X)).backward()
    old.step()
    new.load_state_dict(old.state_dict())
    assert new.state_dict()["state"].keys() == old.state_dict()["state"].keys()


def test_training_is_as_before():
    model = Two()
    fused, (group,) = fused_by_running(model)
    for network in (model, fused):
        network(X)[0].sum().backward()
    assert torch.equal(fused.a.weight.grad, model.a.weight.grad)
    assert fused.b.weight.grad is None
    with torch.inference_mode():
        assert torch.equal(fused(X)[1], model(X)[1])
    assert group.rounds == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own parts
def test_compilers():
    model = Two().eval()
    fused, _ = fused_by_running(model)
    compiled = torch.compile(fused, fullgraph=True)
    assert same(compiled, model, X)
    exported = torch.export.export(fused, (X,))
    assert len([n for n in exported.graph.nodes if "linear" in str(n.target)]) == 2
    traced = torch.jit.trace(fused, X)
    assert same(traced, model, X + 1)
    assert str(traced.inlined_graph).count("aten::linear") == 2
