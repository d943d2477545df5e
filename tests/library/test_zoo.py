"""Models of torchvision, timm, transformers and diffusers, written by others: make zoo.

First the networks that torch.fx can trace; the counts are those of convolutions before
and after, as the networks' papers give them. Then many that it cannot, by a run of each
(the rows are in `zoo`), and a table of them. Without the packages these tests are skipped.
"""

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
import zoo
from torch import nn

import hfusion
from hfusion import models
from hfusion.folding import fold as folding
from hfusion.fusing import lowering

# (package, network, pixels of its input, convolutions before and after)
NETWORKS = (
    ("torchvision", "googlenet", 224, 57, 39),
    ("torchvision", "inception_v3", 299, 94, 75),
    ("timm", "inception_v4", 299, 149, 119),
    ("timm", "inception_resnet_v2", 299, 244, 190),
    ("torchvision", "resnet50", 224, 53, 52),
    ("timm", "resnet50", 224, 53, 52),
    ("torchvision", "densenet121", 224, 120, 120),
    ("torchvision", "squeezenet1_1", 224, 26, 26),
    ("torchvision", "mobilenet_v3_small", 224, 52, 52),
    ("torchvision", "shufflenet_v2_x1_0", 224, 56, 56),
)


STORED = Path(__file__).resolve().parents[2] / "records" / "zoo.json"


def package(name):
    try:
        return zoo.package(name)
    except ImportError:
        pytest.skip(f"{name} is not installed; `make zoo` installs it")


def network(name, of):
    if of == "timm":
        return package(of).create_model(name)
    own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return package(of).models.get_model(name, weights=None, **own)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("of", "name", "pixels", "before", "after"), NETWORKS)
def test_a_network_of_others(of, name, pixels, before, after):
    """The counts, the outputs, the keys, and the way back.

    In float64, so that a bound far below any mistake can be far above the rounding:
    2**-53 a step, through hundreds of layers that may each amplify it a little.
    """
    model = models.randomise(network(name, of)).eval().double()
    plan = hfusion.plan(model)
    assert plan.calls["Conv2d"] == (before, after)
    assert all(group.fused for group in plan.groups)
    fused = plan.apply()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, pixels, pixels, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(
            fused(x), expected, rtol=0, atol=1e-9 * expected.abs().max().item()
        )
    state = model.state_dict()
    assert list(fused.state_dict()) == list(state)
    assert type(fused) is type(model)
    if not plan.groups:
        with pytest.raises(hfusion.FusionError, match="without fused layers"):
            hfusion.unfuse(fused)
        return
    back = hfusion.unfuse(fused).state_dict()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


# (package, network, how it gets its norms, norms, those that are folded)
FOLDED = (
    ("timm", "tf_efficientnet_b0", "own", 49, 49),
    ("timm", "tf_efficientnet_b0", "synchronised", 49, 49),
    ("timm", "inception_v4", "own", 149, 149),
    ("timm", "resnetv2_50", "own", 49, 32),
    ("torchvision", "googlenet", "own", 59, 57),
    ("torchvision", "densenet121", "own", 121, 59),
    ("torchvision", "resnet18", "frozen", 20, 20),
    ("torchvision", "resnet18", "synchronised", 20, 20),
)


def with_norms(name, of, kind):
    if kind == "frozen":
        frozen = package(of).ops.FrozenBatchNorm2d
        return package(of).models.get_model(name, weights=None, norm_layer=frozen)
    model = network(name, of)
    if kind == "own":
        return model
    there = package(of).layers.norm_act if of == "timm" else nn.SyncBatchNorm
    return there.convert_sync_batchnorm(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("of", "name", "kind", "count", "folded"), FOLDED)
def test_norms_of_others_are_folded(of, name, kind, count, folded):
    """As many as a convolution has before it, and the same outputs, in the same class."""
    model = models.randomise(with_norms(name, of, kind)).eval().double()
    found = hfusion.fold_batchnorm(model)
    assert type(found) is type(model)
    assert sum(isinstance(m, folding.Folded) for m in found.modules()) == folded
    assert len(folding.unfolded(model)) == count - folded
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 128, 128, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(
            found(x), expected, rtol=0, atol=1e-9 * expected.abs().max().item()
        )


@pytest.mark.filterwarnings("ignore")
def test_a_network_of_others_is_exported_as_one_graph():
    """With fewer convolutions, and the same outputs."""
    model = models.randomise(network("googlenet", "torchvision")).eval().double()
    x = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    lowered = lowering.lower(hfusion.plan(model))
    exported = torch.export.export(lowered, (x,))
    convolutions = [n for n in exported.graph.nodes if "aten.conv" in str(n.target)]
    assert len(convolutions) == 39
    with torch.no_grad():
        expected = model(x)
        bound = 1e-9 * expected.abs().max().item()
        torch.testing.assert_close(exported.module()(x), expected, rtol=0, atol=bound)
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(lowered.float(), (x.float(),), dynamo=True)
    assert sum(node.op_type == "Conv" for node in program.model.graph) == 39


@pytest.fixture(scope="module")
def examined():
    """What the tests of the rows have found, for the table."""
    return []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", zoo.ROWS, ids=lambda row: f"{row.package}-{row.name}")
def test_a_model_of_others(row, examined):
    """A plan, the same outputs, states, tokens and gradients, and groups that compute."""
    package(row.package)
    one = zoo.examine(row)
    examined.append(one)
    assert not one.failed
    assert not one.wrong
    assert not one.switched_off
    assert not one.apart


def test_the_table_of_all(examined, capsys):
    """Printed; a group is fused in nearly all that have siblings."""
    if not examined:
        pytest.skip("no model was examined")
    with capsys.disabled():
        print("", zoo.table(examined), sep="\n")
    if os.environ.get("HFUSION_ZOO") and len(examined) == len(zoo.ROWS):
        STORED.write_text(zoo.stored(examined))
    related = [one for one in examined if one.fused or zoo.siblings(one)]
    assert sum(bool(one.fused) for one in related) >= 0.95 * len(related)


def test_what_the_book_shows_of_all():
    """Each row is in the file, in order, with what was compared, and nothing was wrong."""
    stored = json.loads(STORED.read_text())
    named = [(model["package"], model["name"]) for model in stored["models"]]
    assert named == [(row.package, row.name) for row in zoo.ROWS]
    assert set(stored["versions"]) == {"torch"} | {row.package for row in zoo.ROWS}
    for model in stored["models"]:
        assert {"state", "type", "layers", "batch"} <= set(model["compared"])
        assert not model["wrong"]


class Spoilt(nn.Module):
    """A model that is fused wrongly: its copy is another."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.a(x).tanh(), self.b(x)

    def __deepcopy__(self, memo):
        double = Spoilt().to(self.a.weight.dtype)
        return double.eval()


def test_a_wrong_model_is_told(monkeypatch):
    """The other tests could not pass for want of looking."""
    monkeypatch.setattr(zoo, "package", contextlib.nullcontext)
    monkeypatch.setattr(zoo, "make", lambda row: Spoilt().eval().double())
    one = zoo.examine(zoo.Row("", "", {}, lambda n: (torch.randn(n, 4),)))
    told = [what.split(":")[0] for what in one.wrong]
    assert told == ["state", "layers", "batch", "gradients", "outputs"]


def test_safetensors_saves_a_fused_model(tmp_path):
    """Side by side in memory, and yet no two weights in one storage."""
    safetensors = pytest.importorskip("safetensors.torch")
    model, x = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 2)}), torch.ones(1, 4)
    model.forward = lambda x: [layer(x) for layer in model.values()]
    fused = hfusion.fuse(model, x)
    safetensors.save_model(fused, tmp_path / "fused.safetensors")
    state = safetensors.load_file(tmp_path / "fused.safetensors")
    assert all(
        torch.equal(state[key], tensor) for key, tensor in model.state_dict().items()
    )
