"""A fused model gives what the model gives, whatever tool it is given to."""

import copy
import re
import warnings
from functools import partial

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed.checkpoint as checkpoints
from torch import distributed, nn
from torch._subclasses import FakeTensorMode
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from two_siblings import BETWEEN, MOVES, Net, conv, group, linear, pair, parameter, same

import hfusion
from hfusion.folding import fold
from hfusion.fusing import _checks

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

by_found = pytest.mark.parametrize("by_running", [False, True])

TOOLS = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight_norm": lambda layer: (weight_norm(layer), layer.weight_g.data.mul_(2)),
    "parametrized": lambda layer: (
        parametrizations.weight_norm(layer),
        layer.parametrizations.weight.original0.data.mul_(2),
    ),
    "spectral_norm": spectral_norm,
    "spectral": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools_that_change_a_weight(name):
    model, fused, x = pair()
    for each in (model, fused):
        torch.manual_seed(1)
        with warnings.catch_warnings(action="ignore"):
            TOOLS[name](each.train().b)
    with torch.no_grad():
        same(model, fused, *[x] * 9, rounds=0)
    assert fused.state_dict().keys() == model.state_dict().keys()


def test_functions_of_torch_func():
    model, fused, x = pair()
    twice = {key: value * 2 for key, value in model.named_parameters()}
    own_parameters = {key: nn.Parameter(value) for key, value in twice.items()}
    call, wanted = torch.func.functional_call, []
    for each in (model, fused):
        wanted.append(
            [
                call(each, twice, x),
                call(each, own_parameters, x),
                torch.func.vmap(each)(x[None].repeat(3, 1, 1)),
                torch.func.jvp(each, (x,), (x,)),
                torch.func.jacrev(each)(x),
                torch.func.grad(lambda p, each=each: call(each, p, x)[1].sum())(twice),
            ]
        )
        with forward_ad.dual_level():
            y = each(forward_ad.make_dual(x, x))[1]
            wanted[-1].append(forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*wanted)
    same(model, fused, x, rounds=1)


class Rows(TorchFunctionMode):
    """Sees how many rows the weights have."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        return y * len(args[1]) if function is nn.functional.linear else y


def test_modes_that_watch():
    model, fused, x = pair()
    with Rows():
        same(model, fused, x, rounds=0)
    with FlopCounterMode(display=False) as counter:
        same(model, fused, x, rounds=0)
    counts = counter.get_flop_counts()
    assert counts["Net.a"] == counts["Net.b"]
    with torch.inference_mode():
        same(model, fused, x, rounds=0)
    with torch.device("cpu"):
        same(model, fused, x, rounds=1)


def test_inference_mode_says_that_it_computes_separately_once(caplog):
    _checks._warn_of_inference_mode.cache_clear()
    model, fused, x = pair()
    with torch.inference_mode():
        same(model, fused, x, x, rounds=0)
    (record,) = caplog.records
    assert "use torch.no_grad() instead" in record.message
    with torch.no_grad():
        same(model, fused, x, rounds=1)


@by_found
@pytest.mark.parametrize("made", [False, True])
def test_planned_under_inference_mode(made, by_running):
    """2026-11-30: "Inference tensors do not track version counter.\""""
    with torch.inference_mode(made):
        model, x = linear()
    with torch.inference_mode():
        fused = hfusion.fuse(model.eval(), x.clone() if by_running else None)
        same(model, hfusion.unfuse(fused), x, tolerance=0)
    with torch.no_grad():
        same(model, fused, torch.ones(3, 4), rounds=1)


@by_found
def test_fake_tensors_are_refused_by_their_name(by_running):
    """2026-12-01: an AssertionError of torch's about its own random numbers."""
    model, x = linear()
    with FakeTensorMode(), pytest.raises(hfusion.FusionError, match="a FakeTensor; plan"):
        hfusion.plan(model, x if by_running else None)
    with torch.device("meta"):
        model, x = linear()
        assert hfusion.plan(model, x if by_running else None).groups[0].fused


class Quiet(Net):
    """It enters inference mode by itself."""

    forward = torch.inference_mode()(Net.forward)


@by_found
def test_a_forward_under_inference_mode_is_refused(by_running):
    """2026-11-30: by reading, the plan said that it is fused, and no call was."""
    model, x = Quiet(lambda: nn.Linear(4, 4)), torch.ones(2, 4)
    plan = hfusion.plan(model, x if by_running else None)
    said = "forward calls {} under torch.inference_mode, where writes are not counted; "
    said += "let it use torch.no_grad"
    assert [group.reason for group in plan.groups] == [said.format("a"), said.format("b")]
    same(model, plan.apply(), x, tolerance=0)


def test_a_class_whose_forward_is_replaced(monkeypatch):
    model, fused, x = pair()
    same(model, fused, x, rounds=1)
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: x * 2)
    same(model, fused, x, rounds=0)


def test_tracers():
    model, fused, x = pair()
    with torch.no_grad():
        traced = torch.jit.trace(fused, (x,))
    assert str(traced.inlined_graph).count("aten::linear") == 2
    for graph in (traced, torch.fx.symbolic_trace(fused)):
        torch.testing.assert_close(graph(x[:2]), model(x[:2]))
    for strict in (True, False):
        program = torch.export.export(fused, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), model(x))
        assert "hfusion" not in str(program.graph)
        assert program.state_dict.keys() == model.state_dict().keys()


def gradients(model, x, run):
    model.zero_grad()
    x = x.clone().requires_grad_()
    run(model, x)
    return [x.grad, *(p.grad for p in model.parameters())]


RUNS = {
    "both": lambda m, x: sum(y.square().sum() for y in m(x)).backward(),
    "one": lambda m, x: m(x)[1].sum().backward(),
    "one after the other": lambda m, x: [y.sum().backward(retain_graph=True) for y in m(x)],
    "reentrant": lambda m, x: checkpoint(m, x, use_reentrant=True)[1].sum().backward(),
    "checkpoint": lambda m, x: checkpoint(m, x, use_reentrant=False)[1].sum().backward(),
    "after a call without": lambda m, x: (quiet(m, x), m(x)[1].sum().backward()),
    "compiled": lambda m, x: torch.compile(m, backend="eager")(x)[1].sum().backward(),
}


@torch.no_grad()
def quiet(model, x):
    return model(x)


@pytest.mark.parametrize("name", RUNS)
def test_gradients_are_the_models_bit_for_bit(name):
    model, fused, x = pair(learns=True)
    model.a.bias.requires_grad_(False)
    fused.a.bias.requires_grad_(False)
    want, got = (gradients(each, x, RUNS[name]) for each in (model, fused))
    assert [g is None for g in got] == [g is None for g in want]
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True) if w is not None)


def test_training_and_validating_in_turn():
    model, fused, x = pair(learns=True)
    optimisers = []
    for each in (model, fused):
        groups = [{"params": each.a.parameters()}, {"params": each.b.parameters(), "lr": 1}]
        optimisers.append(torch.optim.AdamW(groups, 0.1))
    for _ in range(3):
        for each, optimiser in zip((model, fused), optimisers, strict=True):
            gradients(each, x, RUNS["both"])
            nn.utils.clip_grad_norm_(each.parameters(), 0.5)
            optimiser.step()
        with torch.no_grad():
            same(model, fused, x, rounds=1)
    optimisers[0].load_state_dict(optimisers[1].state_dict())


# Between the calls of two siblings, in code that is compiled.
COMPILED = {key: BETWEEN[key] for key in ("nothing", "x", "x by a view", "weight", "bias")}
COMPILED |= {
    "a break": lambda m, x: torch._dynamo.graph_break(),
    "x, break": lambda m, x: (x.add_(1), torch._dynamo.graph_break()),
    "break, x": lambda m, x: (torch._dynamo.graph_break(), x.add_(1)),
    "break, weight": lambda m, x: (torch._dynamo.graph_break(), m.b.weight.mul_(2)),
    "the first again": lambda m, x: m.a(x * 2),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name):
    torch._dynamo.reset()
    model, fused, x = pair()
    model.between = fused.between = COMPILED[name]
    compiled = torch.compile(fused, backend="eager")
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled(x), model(x))
    assert group(fused)._apart == (name != "nothing")
    assert group(fused)._traced is None


CHANGED = ("assigned", "data", "no bias", "one bias", "stride", "forward", "its forward")


class Doubled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return doubled(x, weight, bias)


def doubled(x, weight, bias):
    return nn.functional.conv2d(x, 2 * weight, bias)


@pytest.mark.parametrize("name", CHANGED)
def test_compiled_and_then_changed(name):
    torch._dynamo.reset()
    model, fused, x = pair(conv)
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    graphs = count_products(fused, x)
    assert graphs == 1
    torch.testing.assert_close(compiled(x), model(x))
    for each in (model, fused):
        {
            "no bias": lambda m: setattr(m.b, "bias", None),
            "one bias": lambda m: setattr(m.b, "bias", parameter(5)),
            "stride": lambda m: setattr(m.b, "stride", (2, 2)),
            "forward": lambda m: setattr(m.b, "_conv_forward", doubled),
            "its forward": lambda m: setattr(m.b, "__class__", Doubled),
        }.get(name, MOVES.get(name))(each)
    same(model, compiled, x)


def test_compiled_with_its_own_geometry():
    torch._dynamo.reset()
    model, fused, x = pair(partial(conv, stride=2, padding=(0, 2), dilation=2))
    assert count_products(fused, x) == 1
    torch._dynamo.reset()
    same(model, torch.compile(fused, backend="eager", fullgraph=True), x)


def count_products(fused, x):
    """How many products of siblings there are in a compiled model."""
    graphs = []
    torch.compile(fused, backend=lambda graph, _: graphs.append(graph) or graph)(x)
    return sum("hfusion.product" in str(graph.code) for graph in graphs)


def test_compiled_in_other_modes():
    torch._dynamo.reset()
    model, fused, x = pair()
    with torch.autocast("cpu"):
        assert count_products(fused, x) == 0
    torch._dynamo.reset()
    got = torch.compile(torch.vmap(fused), backend="eager")(x[None])
    torch.testing.assert_close(got, torch.vmap(model)(x[None]))
    torch._dynamo.reset()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        got = torch.compile(fused, backend="eager")(dual)[1]
        tangents = [forward_ad.unpack_dual(y).tangent for y in (got, model(dual)[1])]
    torch.testing.assert_close(*tangents)


class Rounded(torch.Tensor):
    """A weight in int8, as torchao has it: it knows a product, and can be copied."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["numbers"], inner["scale"])

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, weight, *bias = args
            with torch._C.DisableTorchFunctionSubclass():
                return function(x, weight.numbers * weight.scale, *bias)
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function not in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            raise NotImplementedError(function)
        return cls(function(args[0].numbers), function(args[0].scale))


def rounded(layer):
    weight = layer.weight.detach()
    scale = weight.abs().amax(1, keepdim=True) / 127
    numbers = (weight / scale).round().to(torch.int8)
    layer.weight = nn.Parameter(Rounded(numbers, scale), requires_grad=False)


def by_torchao(config, layer):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(layer, getattr(quantization, config)())


QUANTISED = {
    "as torchao does": rounded,
    "weight only": partial(by_torchao, "Int8WeightOnlyConfig"),
    "dynamic": partial(by_torchao, "Int8DynamicActivationInt8WeightConfig"),
}
by_quantised = pytest.mark.parametrize("name", QUANTISED)
some = pytest.mark.parametrize("paths", ["a", "b", "ab"])


def quantise(model, name, paths):
    for path in paths:
        QUANTISED[name](model.get_submodule(path))


@by_quantised
@some
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_quantised_later(name, paths, caplog):
    model, fused, x = pair()
    same(model, fused, x, rounds=1)
    for each in (model, fused):
        quantise(each, name, paths)
    with torch.no_grad():
        same(model, fused, *[x] * 9, rounds=0, tolerance=0)
        same(model, hfusion.unfuse(fused), x, tolerance=0)
        same(model, copy.deepcopy(fused), x, tolerance=0)
    kind = type(model.get_submodule(paths[0]).weight).__name__
    assert f"{paths[0]} has no plain Parameters, but {{'weight': '{kind}'}}" in caplog.text
    assert fused.state_dict().keys() == model.state_dict().keys()
    fused.load_state_dict(model.state_dict(), assign=True)
    same(model, fused, x, rounds=0, tolerance=0)


@by_quantised
@some
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_quantised_later_and_compiled(name, paths):
    """2026-11-30: an operator of the fused model was given weights that do not know it."""
    torch._dynamo.reset()
    model, fused, x = pair()
    early = torch.compile(copy.deepcopy(fused), backend="eager")
    same(model, early, x)
    for each in (model, fused, early):
        quantise(each, name, paths)
    late = torch.compile(fused, backend="eager", fullgraph=True)
    for compiled in (early, late):
        same(model, compiled, x)


@by_quantised
@some
@by_found
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_quantised_before(name, paths, by_running):
    """2026-11-30: the plan said that they are fused, and no call was."""
    model, _, x = pair()
    quantise(model, name, paths)
    judge = hfusion.faster(x, bursts=5, rounds=1, calls=1, apart=0)
    plan = hfusion.plan(model, x if by_running else None, accept=judge)
    kind = type(model.get_submodule(paths[0]).weight).__name__
    reasons = [group.reason for group in plan.groups]
    assert (
        f"parameters of {paths[0]}: expected a plain nn.Parameter each, or no bias, got "
        f"{{'weight': '{kind}'}}" in reasons
    )
    assert not any(group.fused for group in plan.groups)
    same(model, plan.apply(), x, tolerance=0)
    if not by_running:
        same(model, hfusion.lower(plan), x, tolerance=0)
    with pytest.raises(hfusion.FusionError, match=r"parameters of .*'weight': "):
        hfusion.stack([model.a, model.b])


def test_a_norm_after_quantised_weights_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    rounded(model[0])
    assert fold.unfolded(model) == {
        "1": "0 has no plain Parameters, but {'weight': 'Rounded'}"
    }


@by_found
@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_layers_that_are_quantised_dynamically(by_running):
    """Another layer takes the place of each."""
    model, fused, x = pair()
    quantised = [
        torch.ao.quantization.quantize_dynamic(each, {nn.Linear}) for each in (model, fused)
    ]
    same(*quantised, x, tolerance=0)
    same(model, fused, x, rounds=1)
    assert quantised[1].state_dict().keys() == quantised[0].state_dict().keys()
    plan = hfusion.plan(quantised[0], x if by_running else None)
    said = "type of a: expected .*, got torch.ao.nn.quantized.dynamic.*Linear"
    assert re.match(said, plan.groups[0].reason)
    same(quantised[0], plan.apply(), x, tolerance=0)


class Adapted(nn.Module):
    """A layer with LoRA: two small products are added to its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.down, self.up = layer, nn.Linear(4, 1), nn.Linear(1, 4)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def test_layers_that_are_wrapped():
    model, fused, x = pair()
    shared = group(fused)
    for each in (model, fused):
        torch.manual_seed(1)
        each.a, each.b = Adapted(each.a), Adapted(each.b)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
        assert shared.rounds == 1
        again = hfusion.fuse(model, x)
        torch.testing.assert_close(again(x), model(x))
    (found,) = hfusion.plan(model, x).groups
    assert found.members == ("a.layer", "a.down", "b.layer", "b.down")


def test_moving_averages_of_weights():
    averages, (model, fused, x) = [], pair(learns=True)
    for each in (model, fused):
        averages.append(torch.optim.swa_utils.AveragedModel(each))
        for _ in range(2):
            with torch.no_grad():
                each.a.weight.mul_(2)
            averages[-1].update_parameters(each)
    with torch.no_grad():
        torch.testing.assert_close(averages[1](x), averages[0](x))
    assert group(averages[1].module).rounds == 1
    assert averages[1].state_dict().keys() == averages[0].state_dict().keys()


@pytest.fixture
def one_process(tmp_path):
    where = f"file://{tmp_path / 'others'}"
    distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_of_several_processes(one_process, tmp_path):
    model, fused, x = pair()
    for source, target in ((fused, linear()[0]), (model, hfusion.fuse(linear()[0]))):
        states = [{"model": each.state_dict()} for each in (source, target.eval())]
        checkpoints.save(states[0], checkpoint_id=tmp_path / "saved")
        checkpoints.load(states[1], checkpoint_id=tmp_path / "saved")
        target.load_state_dict(states[1]["model"])
        with torch.no_grad():
            torch.testing.assert_close(target(x), model(x))


WRAPPERS = {  # and whether a fused model in it computes together
    "DDP": (nn.parallel.DistributedDataParallel, 3),
    "FSDP": (lambda m: fsdp.FullyShardedDataParallel(m, device_id=torch.device("cpu")), 0),
    "FSDP with parameters": (
        lambda m: fsdp.FullyShardedDataParallel(
            m, device_id=torch.device("cpu"), use_orig_params=True
        ),
        0,
    ),
    "FSDP 2": (lambda m: fsdp.fully_shard(m, mesh=init_device_mesh("cpu", (1,))) and m, 0),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRAPPERS)
def test_training_in_several_processes(name, one_process):
    wrap, rounds = WRAPPERS[name]
    model, fused, x = pair(learns=True)
    shared, wrapped = group(fused), [wrap(each) for each in (model, fused)]
    optimisers = [torch.optim.AdamW(each.parameters(), 0.1) for each in wrapped]
    for _ in range(3):
        for each, optimiser in zip(wrapped, optimisers, strict=True):
            optimiser.zero_grad()
            sum(y.square().sum() for y in each(x)).backward()
            optimiser.step()
        with torch.no_grad():
            torch.testing.assert_close(wrapped[1](x), wrapped[0](x))
    assert shared.rounds == rounds
