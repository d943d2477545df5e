"""A fused model gives what the model gives, whatever tool it is given to."""

import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from two_siblings import BETWEEN, MOVES, conv, group, pair, parameter, same

from hfusion.fusing import _checks

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

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
    optimisers = [torch.optim.AdamW(each.parameters(), 0.1) for each in (model, fused)]
    for _ in range(3):
        for each, optimiser in zip((model, fused), optimisers, strict=True):
            gradients(each, x, RUNS["both"])
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


@pytest.mark.parametrize("name", ["assigned", "data", "no bias", "one bias", "stride"])
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
        }.get(name, MOVES.get(name))(each)
    same(model, compiled, x)


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
