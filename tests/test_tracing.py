"""tracing.py: what a graph would forget is refused by name, all else is kept."""

import contextlib
import copy
import inspect
import linecache
import operator
import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forks import constant_decides, decides, drops, net, siblings
from torch import fx, nn

from hfusion import FusionError, fuse, layers, models, plan, tracing
from hfusion.tracing import Network, trace


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network(model):
    """The model as a Network: traced, and nothing else done to it."""
    found, double = trace(model), copy.deepcopy(model)
    graph = copy.deepcopy(found.graph)
    return Network(double, graph, found.constants, found.traced_in)


def fuse_unless(model, reason):
    """The fused network; None if it is refused, and for this reason."""
    try:
        return fuse(model)
    except FusionError as error:
        assert reason in str(error)  # noqa: PT017
        return None


X = torch.arange(6.0).reshape(2, 3)


def same(actual, expected):
    actual, expected = (torch.utils._pytree.tree_flatten(v) for v in (actual, expected))
    return actual[1] == expected[1] and all(map(torch.equal, actual[0], expected[0]))


# What stops a trace.


def control_flow(self, x):
    if x.sum() > 0:
        return self.q(x)
    return self.k(x)


def iteration(self, x):
    return [self.q(row) for row in x]


def length(self, x):
    return self.q(x) * len(x)


def whole_number(self, x):
    return self.q(x)[: int(x[0, 0])]


def a_range(self, x):
    return sum(self.q(x[i]) for i in range(x.shape[0]))


def a_float(self, x):
    return self.q(x) * float(x.sum())


def own_error(self, x):
    raise KeyError("the cupboard")


def deeper(self, x):
    return control_flow(self, self.q(x))


STOPS = {
    "control flow": (control_flow, "if x.sum() > 0:", "let torch.where decide"),
    "iteration": (iteration, "return [self.q(row) for row in x]", "part = x[0]"),
    "len": (length, "return self.q(x) * len(x)", "use x.shape[0] or x.size(0)"),
    "int": (whole_number, "return self.q(x)[: int(x[0, 0])]", ""),
    "range": (a_range, "return sum(self.q(x[i])", "without int() or range()"),
    "float": (a_float, "return self.q(x) * float(x.sum())", "without float() or math"),
    "error": (own_error, 'raise KeyError("the cupboard")', "is_leaf_module"),
    "in a function": (deeper, "if x.sum() > 0:", "let torch.where decide"),
}


@pytest.mark.parametrize(("forward", "line", "advice"), STOPS.values(), ids=STOPS)
def test_the_line_that_stops_a_trace_is_quoted(forward, line, advice):
    with pytest.raises(FusionError) as error:
        plan(net(forward))
    message = str(error.value)
    found = re.search(
        r"^model cannot be traced: it stops at (\S+?):(\d+), `(.*?)`", message
    )
    assert found, message
    assert found[1] == Path(__file__).name
    assert found[3].startswith(line)
    assert Path(__file__).read_text().splitlines()[int(found[2]) - 1].strip() == found[3]
    assert advice in message
    assert "\n" not in message


def test_where_no_line_is_to_blame_the_message_still_says_what():
    class Net(nn.Module):
        pass

    with pytest.raises(FusionError, match=r"^model cannot be traced: it stops.*; move"):
        plan(Net())
    assert tracing._explain(ValueError("Nobody was it.")).startswith(
        "model cannot be traced: it stops (Nobody was it); move the line"
    )


def in_two_lines(self, x):
    raise ValueError("No way past X.\nAnd no way back.")


def in_no_file(self, x):
    return eval("1 if x else 2")


def explained(forward):
    """What is said of a forward that stops, less the place: (…, file, line, …)."""
    with pytest.raises(FusionError) as error:
        plan(net(forward))
    return re.sub(r":\d+, ", ":n, ", str(error.value))


def test_of_a_message_the_first_sentence_is_quoted():
    assert explained(in_two_lines).startswith(
        f"model cannot be traced: it stops at {Path(__file__).name}:n, `raise ValueError("
        '"No way past X.\\nAnd no way back.")` (No way past X); move the line into'
    )


def test_a_line_that_is_in_no_file_is_not_to_blame():
    assert f'{Path(__file__).name}:n, `return eval("1 if x else 2")`' in explained(
        in_no_file
    )


def test_a_line_of_a_notebook_is_in_the_cell(monkeypatch):
    name, source = "/tmp/ipykernel_12/345.py", "def forward(self, x):\n    len(x)\n"
    # As IPython does it, so that Python finds the lines.
    cell = len(source), None, source.splitlines(keepends=True), name
    monkeypatch.setitem(linecache.cache, name, cell)
    defined = {}
    exec(compile(source, name, "exec"), defined)
    with pytest.raises(FusionError, match=r": it stops at the cell:2, `len\(x\)` \("):
        plan(net(defined["forward"]))


@pytest.mark.parametrize("model", [None, "model", nn.Linear, {}], ids=str)
def test_only_a_module_can_be_traced(model):
    with pytest.raises(FusionError, match=r"^model was a \w+; an nn.Module fits"):
        trace(model)


def test_a_model_that_cannot_be_copied():
    model = net(siblings)
    model.product = model.q.weight * 2  # no leaf: torch refuses to copy it
    with pytest.raises(FusionError, match=r"^model cannot be copied: Only Tensors created"):
        plan(model)


def test_whatever_needs_a_copy_says_so():
    """A lock can be copied by nobody; a GraphModule's attributes are not looked at."""
    import threading

    model = net(siblings)
    model.lock = threading.Lock()
    with pytest.raises(FusionError, match=r"^model cannot be copied: cannot pickle"):
        plan(model)


# What a graph would forget.

HOOKS = {
    "register_forward_hook": "forward hooks",
    "register_forward_pre_hook": "forward pre hooks",
    "register_full_backward_hook": "backward hooks",
    "register_full_backward_pre_hook": "backward pre hooks",
}
STATE_HOOKS = {
    "register_state_dict_post_hook": "state dict hooks",
    "register_state_dict_pre_hook": "state dict pre hooks",
    "register_load_state_dict_pre_hook": "load state dict pre hooks",
    "register_load_state_dict_post_hook": "load state dict post hooks",
}


def in_block(self, x):
    return self.block(x), self.q(x)


def blocks():
    block = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    return net(in_block, block=block)


@pytest.mark.parametrize(("register", "kind"), HOOKS.items())
@pytest.mark.parametrize("path", ["", "block"])
def test_hooks_of_containers_and_of_the_model_are_refused(path, register, kind):
    model = blocks()
    getattr(model.get_submodule(path), register)(lambda *args: None)
    with pytest.raises(FusionError, match=f"^{path or 'model'} has {kind}, which a graph"):
        plan(model)


@pytest.mark.parametrize(("register", "kind"), STATE_HOOKS.items())
def test_state_hooks_of_the_model_are_refused_those_of_containers_kept(register, kind):
    model = blocks()
    called = []
    getattr(model.block, register)(lambda *args: called.append(args))
    fused = fuse(model)
    called.clear()
    fused.load_state_dict(fused.state_dict())
    assert called
    getattr(model, register)(lambda *args: None)
    with pytest.raises(FusionError, match=f"^model has {kind}, which a graph"):
        plan(model)


@pytest.mark.parametrize("register", [*HOOKS, *STATE_HOOKS])
def test_hooks_of_a_graph_module_are_refused_at_the_root(register):
    model = fx.symbolic_trace(blocks())
    getattr(model, register)(lambda *args: None)
    with pytest.raises(FusionError, match=r"^model has .*hooks"):
        plan(model)


def test_hooks_of_torchs_own_modules_are_called():
    model = blocks()
    called = []
    model.block[1].register_forward_hook(lambda *args: called.append(args))
    fused = fuse(model)
    assert not called
    assert same(fused(X), model(X))
    assert len(called) == 2


def with_counter(forward):
    model = net(forward)
    model.register_buffer("count", torch.zeros(1))
    return model


def counts_in_place(self, x):
    self.count += 1
    return self.q(x)


def counts_anew(self, x):
    self.count = self.count + 1
    return self.q(x)


def counts_by_name(self, x):
    self._buffers["count"].add_(1)
    return self.q(x)


def counts_in_a_block(self, x):
    return self.block(x)


def nested_counter():
    return net(counts_in_a_block, block=with_counter(counts_by_name))


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_counter(counts_in_place),
        lambda: with_counter(counts_anew),
        lambda: with_counter(counts_by_name),
        nested_counter,
    ],
    ids=["in place", "anew", "by name", "nested"],
)
def test_a_buffer_changed_on_the_side_is_counted_or_refused(make):
    model = make()
    try:
        fused = fuse(model)
    except FusionError as error:
        assert "model cannot be traced: " in str(error)  # noqa: PT017
        assert "count" in str(error)  # noqa: PT017
    else:
        for _ in range(2):
            assert same(fused(X), model(X))
        assert same(dict(fused.state_dict()), dict(model.state_dict()))
    assert not hasattr(model, "_tensor_constant0")


def augmented(self, x):
    old = x
    x *= 2
    n = x.shape[0]
    n += 1
    return self.q(old) * n, self.k(x)


def items(self, x):
    x[0] = 7
    y = self.q(x)
    y[:, 1] = 0
    return y, self.k(x)


def both_in_place(self, x):
    q = self.q(x)
    x -= 1
    k = self.k(x)
    x[:, 0] /= 2
    return q, k, self.k(x)


@pytest.mark.parametrize("forward", [augmented, items, both_in_place])
def test_what_python_does_in_place_is_done_in_place_or_refused(forward):
    """torch.fx itself takes x += 1 for x = x + 1."""
    model = net(forward)
    fused = fuse_unless(model, "model cannot be traced")
    if fused is None:
        return
    expected, actual = X.clone(), X.clone()
    with torch.no_grad():
        assert same(fused(actual), model(expected))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", tracing.AUGMENTED)
def test_an_operator_in_place_is_in_the_graph_as_itself(name):
    function = getattr(operator, f"i{name}")
    graph = trace(net(lambda self, x: function(x, 2))).graph
    x, node, output = graph.nodes
    assert (node.op, node.target) == ("call_function", function)
    assert (node.args, node.kwargs, output.args) == ((x, 2), {}, (node,))


def averages(self, x):
    self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return self.q(x) + self.mean.sum(), self.k(x)


def test_a_buffer_changed_with_the_input_is_changed_or_refused():
    model = net(averages)
    model.register_buffer("mean", torch.ones(3))
    try:
        fused = fuse(model)
    except FusionError as error:
        assert "forward changes mean on the side" in str(error)  # noqa: PT017
        assert torch.equal(model.mean, torch.ones(3))
        return
    assert torch.equal(model.mean, torch.ones(3))
    for _ in range(2):
        torch.testing.assert_close(fused(X), model(X))
    assert torch.equal(fused.state_dict()["mean"], model.mean)


def under_no_grad(self, x):
    with torch.no_grad():
        q = self.q(x)
    return q, self.k(x)


def under_autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = self.q(x)
    return q, self.k(x)


@torch.no_grad()
def decorated(self, x):
    return self.q(x), self.k(x)


@pytest.mark.parametrize("forward", [under_no_grad, under_autocast, decorated])
def test_a_mode_that_forward_switches_is_kept_or_refused(forward):
    """torch.fx does not write down `with torch.no_grad():`."""
    model = net(forward)
    fused = fuse_unless(model, "model cannot be traced")
    if fused is None:
        return
    for actual, expected in zip(fused(X), model(X), strict=True):
        assert actual.dtype == expected.dtype
        assert actual.requires_grad == expected.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_mode_of_the_caller_is_not_the_models(mode):
    model = net(siblings)
    with mode():
        fused = fuse(model)
    assert all(p.requires_grad for p in fused.parameters())
    assert same(fused(X), model(X))


def adds_noise(self, x):
    return self.q(x) + torch.rand(4), self.k(x)


def test_chance_in_forward_is_drawn_anew_or_refused():
    """torch.fx keeps what was drawn while it traced."""
    fused = fuse_unless(net(adds_noise), "model cannot be traced")
    if fused is None:
        return
    assert not torch.equal(fused(X)[0], fused(X)[0])


def draws_everywhere(self, x):
    return self.q(x) + torch.rand(4) * random.random() * np.random.rand(), self.k(x)


@pytest.mark.parametrize("forward", [draws_everywhere, siblings])
def test_a_trace_uses_up_no_chance(forward):
    def draw():
        return torch.rand(3).tolist(), random.random(), np.random.rand()

    def seed():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)

    model = net(forward)
    seed()
    expected = draw()
    seed()
    with contextlib.suppress(FusionError):
        plan(model)
    assert draw() == expected


def by_default_double(self, x, scale=None):
    q = self.q(x)
    if scale is None:
        q = q * 2
    return q, self.k(x)


def by_default_plain(self, x, scale=None):
    q = self.q(x)
    if scale is not None:
        q = q * scale
    return q, self.k(x)


@pytest.mark.parametrize("forward", [by_default_double, by_default_plain])
def test_an_argument_left_out_means_its_default_or_is_refused(forward):
    """torch.fx has a stand-in for every argument, and that is never None."""
    model = net(forward)
    fused = fuse_unless(model, "scale")
    if fused is None:
        return
    assert same(fused(X), model(X))


@pytest.mark.parametrize("forward", [by_default_double, by_default_plain])
@pytest.mark.parametrize("by_name", [False, True])
def test_an_argument_that_was_left_out_is_not_ignored_when_it_is_given(forward, by_name):
    model, scale = net(forward), torch.tensor(3.0)
    given = ((X,), {"scale": scale}) if by_name else ((X, scale), {})
    try:
        actual = fuse(model)(*given[0], **given[1])
    except (FusionError, AssertionError, RuntimeError, TypeError) as error:
        assert "scale" in str(error)  # noqa: PT017
        return
    assert same(actual, model(*given[0], **given[1]))


def clips_its_weights(self, x):
    for parameter in self.parameters():
        parameter.data.clamp_(-0.1, 0.1)
    return self.q(x), self.k(x)


def test_weights_that_forward_changes_behind_autograds_back():
    """Through .data the version of a tensor does not tell; the values do."""
    with pytest.raises(FusionError, match=r"forward changes q\.weight"):
        plan(net(clips_its_weights))


def counts_in_a_plain_tensor(self, x):
    self.count.add_(1)
    return self.q(x) * self.count, self.k(x)


def test_a_plain_tensor_that_forward_changes_is_changed_or_refused():
    model = net(counts_in_a_plain_tensor)
    model.count = torch.zeros(1)
    fused = fuse_unless(model, "count")
    if fused is None:
        return
    for _ in range(2):
        assert same(fused(X), model(X))


# What is kept.


def test_the_model_is_left_as_it_was():
    model = models.randomise(models.GoogLeNet(classes=3))
    model.head[2].eval()
    before = copy.deepcopy(model)
    places = {key: id(t) for key, t in model.state_dict(keep_vars=True).items()}
    names = {path: set(vars(m)) for path, m in model.named_modules()}
    plan(model)
    assert {key: id(t) for key, t in model.state_dict(keep_vars=True).items()} == places
    assert {path: set(vars(m)) for path, m in model.named_modules()} == names
    assert same(dict(model.state_dict()), dict(before.state_dict()))
    flags = [m.training for m in before.modules()]
    assert [m.training for m in model.modules()] == flags


def with_constant(self, x):
    return self.q(x) + torch.tensor([1.0, 2.0, 3.0, 4.0]), self.k(x) * torch.ones(2)


def test_constants_of_forward_are_kept_and_no_part_of_the_state():
    model = net(with_constant)
    names = set(vars(model))
    fused = fuse(model)
    assert set(vars(model)) == names
    assert not dict(model.named_buffers())
    assert list(fused.state_dict()) == list(model.state_dict())
    for one in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert same(one(X), model(X))


def test_two_plans_of_one_model_do_not_share_constants():
    model = net(with_constant)
    first, second = fuse(model), fuse(model)
    with torch.no_grad():
        for buffer in first.buffers():
            buffer.zero_()
    assert same(second(X), model(X))
    one_plan = plan(model)
    first, second = one_plan.apply(), one_plan.apply()
    with torch.no_grad():
        for buffer in first.buffers():
            buffer.zero_()
    assert same(second(X), model(X))


def with_plain_tensor(self, x):
    return self.q(x) * self.scale, self.k(x)


@pytest.mark.parametrize("given_as", [nn.Module, fx.GraphModule])
def test_a_tensor_that_is_neither_parameter_nor_buffer(given_as):
    model = net(with_plain_tensor)
    model.scale = torch.tensor(3.0)
    given = fx.symbolic_trace(model) if given_as is fx.GraphModule else model
    fused = fuse(given)
    assert list(fused.state_dict()) == list(given.state_dict())
    for one in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert same(one(X), model(X))


def with_buffer(self, x):
    return self.q(x) * (self.scale + 1), self.k(x)


def test_what_is_computed_from_a_buffer_follows_the_buffer():
    model, other = net(with_buffer), net(with_buffer)
    model.register_buffer("scale", torch.tensor(3.0))
    other.register_buffer("scale", torch.tensor(5.0))
    fused = fuse(model)
    assert same(fused(X), model(X))
    fused.load_state_dict(other.state_dict())
    assert same(fused(X), other(X))


def reads_parameters(self, x):
    return self.q(x) * self.scale + self.block[0].weight.sum(), self.k(x) @ self.parts[1]


def test_parameters_read_directly():
    model = net(
        reads_parameters,
        scale=nn.Parameter(torch.rand(4)),
        block=nn.Sequential(nn.Linear(3, 3)),
        parts=nn.ParameterList([torch.rand(1), torch.rand(2, 2)]),
    )
    fused = fuse(model)
    assert same(fused(X), model(X))
    assert list(fused.state_dict()) == list(model.state_dict())
    assert plan(model).groups[0].fused
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})
    fused.load_state_dict(model.state_dict())
    assert same(fused(X), model(X))


def test_a_tensor_is_read_under_its_first_name():
    model = net(lambda self, x: self.q(x) * self.scale, scale=nn.Parameter(torch.rand(4)))
    reads = [n.target for n in trace(model).graph.nodes if n.op == "get_attr"]
    assert reads == ["scale"]


class Block(nn.Module):
    """A container of one's own, with something of its own."""

    kind = "own"

    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(3, 3), nn.Linear(2, 2)
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.note = "kept"

    def forward(self, x):
        return self.layer(x)

    def helper(self):
        return self.note


def in_a_block(self, x):
    return self.q(self.block(x)), self.k(self.block.layer(x))


def test_containers_and_what_is_not_called_are_kept():
    model = net(in_a_block, block=Block(), spare=nn.Conv2d(3, 2, 1))
    model.register_buffer("hidden", torch.ones(2), persistent=False)
    for one in (network(model), fuse(model), copy.deepcopy(network(model))):
        assert list(one.state_dict()) == list(model.state_dict())
        assert type(one.block) is Block
        assert one.block.helper() == "kept"
        assert same(dict(one.named_buffers()), dict(model.named_buffers()))
        assert one.spare is not model.spare
        assert same(one(X), model(X))
    revived = pickle.loads(pickle.dumps(network(model)))
    assert type(revived.block) is Block
    assert list(revived.state_dict()) == list(model.state_dict())
    assert same(revived(X), model(X))


def takes_dict(self, batch):
    x = batch["x"]
    return {"q": self.q(x), "more": [self.k(x), (x,)]}


def takes_more(self, x, *more):
    return self.q(x), self.k(x) * more[0]


def takes_named(self, x, *, factor):
    return self.q(x) * factor, self.k(x)


def takes_switches(self, x, scale=None, shift=None, twice=False, *, flat=None):
    q = self.q(x)
    if scale is not None:
        q = q * scale
    if shift is None:
        q = q + 1
    if twice:
        q = q * 2
    return (q if flat is None else q.flatten()), self.k(x)


def takes_default(self, x, factor=2.0):
    return self.q(x) * factor, self.k(x)


CALLS = {
    "dict": (takes_dict, ({"x": X},), {}),
    "*more": (takes_more, (X, torch.tensor(3.0)), {}),
    "named": (takes_named, (X,), {"factor": 2.0}),
    "by name": (siblings, (), {"x": X}),
    "switches": (takes_switches, (X,), {}),
    "switches by name": (takes_switches, (), {"x": X, "shift": None, "flat": None}),
    "default": (takes_default, (X,), {}),
    "instead of the default": (takes_default, (X, 3.0), {}),
}


@pytest.mark.parametrize(("forward", "args", "kwargs"), CALLS.values(), ids=CALLS)
def test_inputs_and_outputs_keep_their_form(forward, args, kwargs):
    model = net(forward)
    found = plan(model)
    assert [group.members for group in found.groups if group.fused] == [("q", "k")]
    assert same(found.apply()(*args, **kwargs), model(*args, **kwargs))


def test_no_weight_is_copied_for_a_trace(monkeypatch):
    """A plan of a model that fills half the memory has to be possible."""
    model = models.Inception((3, 4, 3, 2, 1, 3, 2))

    def refuse(self, memo):
        raise MemoryError

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", refuse)
    assert plan(model).groups[0].fused


def test_a_stacked_layer_in_a_model_stays_one_call():
    model = net(
        lambda self, x: self.both(x), both=layers.stack([nn.Linear(3, 2), nn.Linear(3, 4)])
    )
    calls = [n.target for n in trace(model).graph.nodes if n.op == "call_module"]
    assert calls == ["both"]
    fused = fuse(model)
    assert same(fused(X), model(X))
    assert list(fused.state_dict()) == list(model.state_dict())


def test_a_graph_module_is_taken_as_it_is():
    model = fx.symbolic_trace(net(siblings))
    assert trace(model).graph is model.graph
    assert trace(model).traced_in is None


# The training flag.


def stops_in_training(self, x):
    if self.training:
        return iteration(self, x)
    return self.q(x), self.k(x)


def only_modules(self, x):
    return self.drop(self.q(x)), self.k(x)


HELD = (drops, decides, constant_decides)


def held(mode, was):
    """What is said when a flag that is held is to be `mode`."""
    return (
        f"mode was {mode}; this graph was traced in {was} mode, and forward does "
        "something else in another: switch the original, and fuse it again"
    )


@pytest.mark.parametrize("forward", HELD)
@pytest.mark.parametrize("training", [False, True])
def test_a_flag_that_forward_reads_is_held(training, forward):
    model = net(forward).train(training)
    fused = fuse(model)
    assert fused.training is training
    assert fused.train(training) is fused
    was = "training" if training else "eval"
    for one in (
        fused,
        copy.deepcopy(fused),
        pickle.loads(pickle.dumps(fused)),
        fuse(fused),
    ):
        with pytest.raises(FusionError) as error:
            one.train(not training)
        assert str(error.value) == held(not training, was)
        assert one.training is training
        torch.manual_seed(0)
        actual = one(X)
        torch.manual_seed(0)
        torch.testing.assert_close(actual, model(X))


def test_a_model_that_can_be_traced_in_one_mode_only():
    model = net(stops_in_training)
    with pytest.raises(FusionError, match="cannot be iterated"):
        fuse(model)
    fused = fuse(model.eval())
    assert same(fused(X), model(X))
    with pytest.raises(FusionError, match="mode was True"):
        fused.train()


def test_other_flags_can_be_switched():
    model = net(only_modules, drop=nn.Dropout(0.5))
    fused = fuse(model)
    assert not torch.equal(fused(X)[0], fused(X)[0])
    fused.eval()
    assert not any(m.training for m in fused.modules())
    assert same(fused(X), model.eval()(X))
    assert all(m.training for m in fused.train().modules())


def test_a_frozen_block_whose_flag_forward_reads_is_not_woken_unheard():
    """block.eval() in a model in training: train() would change what it computes."""
    model = net(lambda self, x: (self.block(x)[0], self.k(x)), block=net(drops).eval())
    fused = fuse(model)
    assert same(fused(X), model(X))
    model.train()
    try:
        fused.train()
    except FusionError as error:
        assert str(error) == held(True, "eval")  # noqa: PT017
        return
    torch.manual_seed(0)
    actual = fused(X)
    torch.manual_seed(0)
    assert same(actual, model(X))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_each_modules_flag(again):
    model = net(siblings, bn=nn.BatchNorm1d(3))
    model.bn.eval()
    fused = again(fuse(model))
    assert fused.training
    assert not fused.bn.training


def test_advice_is_given_for_each_of_torchs_messages():
    """That the texts in ADVICE are torch's own, so that they will be found."""
    source = inspect.getsource(fx.proxy) + inspect.getsource(fx._symbolic_trace)
    for part, then in tracing.ADVICE[:3]:
        assert part in source
        assert then


def keeps_rows(self, x):
    return self.q(x) + self.rows.sum(), self.k(x)


def test_a_plain_tensor_that_is_a_part_of_a_weight():
    """A copy of the weight would part from it when the weights are loaded."""
    model = net(keeps_rows)
    model.rows = model.q.weight.detach()
    (refused,) = [group for group in plan(model).groups if "q" in group.members]
    assert refused.reason.startswith("weight of q shares memory")


def counts_its_calls(self, x):
    self.calls += 1
    return self.q(x) * self.calls, self.k(x)


def test_a_number_that_forward_changes():
    model = net(counts_its_calls)
    model.calls = 0
    with pytest.raises(FusionError, match="forward changes calls on the side"):
        plan(model)
    assert model.calls == 0


def both(self, x):
    return self.q(x), self.k(x)


def test_hooks_registered_on_the_result_are_copied():
    fused, seen = fuse(net(both)), []
    fused.register_forward_hook(lambda *_: seen.append(1))
    copy.deepcopy(fused)(X)
    copy.copy(fused)(X)
    assert seen == [1, 1]


def test_a_shallow_copy_has_the_same_keys_and_weights():
    fused = fuse(net(both))
    shallow = copy.copy(fused)
    assert list(shallow.state_dict()) == list(fused.state_dict())
    assert next(shallow.parameters()) is next(fused.parameters())
    assert same(shallow(X), fused(X))


def replaces_data(self, x):
    x = x * 1
    q = self.q(x)
    x.data = x * 2
    return q, self.k(x)


def adds_to_what_it_made(self, x):
    total = torch.zeros(2, 4)
    total += self.q(x)
    return total, self.k(x)


def changes_what_it_has_used(self, x):
    scale = torch.ones(1)
    q = self.q(x * scale)
    scale.mul_(2)
    return q, self.k(x * scale)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (replaces_data, "forward sets data of a tensor"),
        (adds_to_what_it_made, r"forward makes a tensor and writes to it"),
        (changes_what_it_has_used, "forward changes a tensor that it has used"),
    ],
)
def test_what_a_graph_would_forget_is_refused(forward, reason):
    """Found by random networks, 2026-11-22: the second call, or the first, was wrong."""
    with pytest.raises(FusionError, match=reason):
        plan(net(forward))


class Cache:
    """Somebody's object, whose method has a harmless name."""

    def update(self, x):
        x.mul_(2)


def test_a_method_of_somebodys_object_may_write():
    graph = torch.fx.Graph()
    x, cache = graph.placeholder("x"), graph.placeholder("cache")
    doubled = graph.call_function(torch.mul, (x, 1))
    q = graph.call_module("q", (doubled,))
    graph.call_method("update", (cache, doubled))
    graph.output((q, graph.call_module("k", (doubled,))))
    model = torch.fx.GraphModule(net(both), graph)
    (group,) = plan(model).groups
    assert group.reason.startswith("`update`")
    assert same(fuse(model)(X, Cache()), model(X, Cache()))


def test_siblings_that_differ_in_what_is_not_geometry():
    """Each would change something that the outputs alone do not show."""
    frozen = net(both)
    frozen.q = nn.Linear(3, 4, bias=False)
    frozen.q.weight.requires_grad_(False)
    frozen.k.weight.requires_grad_(False)
    (group,) = plan(frozen).groups
    assert group.reason.startswith("requires_grad of output differs: q False, k True")
    extra = net(both)
    extra.q.register_parameter("gain", nn.Parameter(torch.ones(1)))
    assert plan(extra).groups[0].reason.startswith("extras of q was ['gain']")
    assert not any(group.fused for group in plan(extra).groups)


def scaled_elu(self, x):
    return F.elu_(self.q(x), 1.0, 3.0), F.elu_(self.k(x), 1.0, 3.0)


def test_a_function_with_other_arguments_than_its_module():
    """The third is a scale, and nn.ELU's third is `inplace`."""
    model = net(scaled_elu)
    (group,) = plan(model).groups
    assert group.fused
    assert group.activation is None
    assert same(fuse(model)(X), model(X))
