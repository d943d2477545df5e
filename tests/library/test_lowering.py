"""lowering.py: a plan as one graph, against loops and against the layers one by one."""

import copy
import functools
import operator
from collections import Counter

import fusing
import pytest
import torch
import torch.nn.functional as F
from copied import saved
from fusing import ab
from torch import fx, nn

import hfusion
from hfusion import FusionError, models, stacking
from hfusion.fusing.lowering import lower
from hfusion.timing import agree, count_launches

pytestmark = pytest.mark.usefixtures("in_float64")


def net(forward, **members):
    """A model in eval mode, with this forward and these members."""
    return fusing.net(forward, **members).eval()


def pair(forward=ab, **others):
    """Two siblings, and a module or two that forward may want."""
    return net(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 5, 1), **others)


def check(model, x, **options):
    """The lowered network, after a check that it computes what the model does."""
    network = lower(hfusion.plan(model, **options))
    with torch.no_grad():
        returned, expected = network(x), model(x)
    several = isinstance(expected, tuple)
    pairs = zip(returned, expected, strict=True) if several else [(returned, expected)]
    for mine, theirs in pairs:
        agree(mine, theirs, 1e-12)
    return network


def stacked(network):
    """The stacked layers of a network, by path."""
    return {path: m for path, m in network.named_children() if type(m) is stacking.Stacked}


def image(batch=2, channels=3):
    return torch.randn(batch, channels, 4, 5)


def by_loops(conv, x):
    """What a 1×1 convolution computes, number by number."""
    y = torch.empty(len(x), conv.out_channels, *x.shape[2:])
    for n, k, i, j in torch.cartesian_prod(*map(torch.arange, y.shape)).tolist():
        row, pixel = conv.weight[k, :, 0, 0].tolist(), x[n, :, i, j].tolist()
        y[n, k, i, j] = sum(map(operator.mul, row, pixel)) + conv.bias[k].item()
    return y


def test_each_branch_is_what_loops_compute():
    model, x = pair(), image()
    network = lower(hfusion.plan(model))
    with torch.no_grad():
        for y, conv in zip(network(x), (model.a, model.b), strict=True):
            agree(y, by_loops(conv, x), 1e-12)
    assert [n.op for n in network.graph.nodes if n.op == "call_module"] == ["call_module"]


def test_a_known_answer():
    model = net(ab, a=nn.Linear(2, 1), b=nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model.a.weight[:], model.a.bias[:] = torch.tensor([[1.0, 2.0]]), 10
        model.b.weight[:] = torch.tensor([[3.0, -1.0]])
    a, b = lower(hfusion.plan(model))(torch.tensor([[5.0, 7.0]]))
    assert (a.item(), b.item()) == (29, 8)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 6)

    def forward(self, x):
        weights = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1)
        return weights @ self.v(x)


def late(self, x):  # the first call of a sibling stands after others' results are used
    y = self.a(x).relu()
    return y * 2, self.b(x).relu() + y.sum()


def two_families(self, x):
    y = torch.cat(ab(self, x), 1)
    return self.c(y), self.d(y)


ACTIVE = {"ra": nn.ReLU(True), "rb": nn.ReLU(True)}
# name: (a model, its input, how many layers each stacked layer is made of).
FORMS = {
    "Inception": (lambda: models.randomise(models.Inception.from_table("3a")).eval(),
                  (1, 192, 7, 7), [3]),
    "attention": (lambda: Attention().eval(), (2, 3, 8), [3]),
    "modules of activations": (lambda: pair(
        lambda self, x: (self.ra(self.a(x)), self.rb(self.b(x))), **copy.deepcopy(ACTIVE)),
        (2, 3, 4, 5), [2]),
    "functions of activations": (lambda: pair(late), (2, 3, 4, 5), [2]),
    "unlike activations": (lambda: pair(
        lambda self, x: (self.a(x).relu(), self.b(x).sigmoid())), (2, 3, 4, 5), [2]),
    "two families": (lambda: pair(two_families, c=nn.Conv2d(9, 2, 1),
                                  d=nn.Conv2d(9, 3, 1)), (2, 3, 4, 5), [2, 2]),
    "views": (lambda: pair(
        lambda self, x: (self.a(x).view(2, -1), self.b(x), self.c(x)),
        c=nn.Conv2d(3, 2, 1)), (2, 3, 4, 5), [3]),
    "views by keyword": (lambda: pair(
        lambda self, x: (self.a(x), self.b(x), self.c(x).view(size=(2, -1))),
        c=nn.Conv2d(3, 2, 1)), (2, 3, 4, 5), [3]),
    "as many views as launches": (lambda: pair(
        lambda self, x: tuple(y.view(2, -1) for y in ab(self, x))), (2, 3, 4, 5), []),
    "views of activations": (lambda: pair(
        lambda self, x: tuple(y.relu().view(2, -1) for y in ab(self, x))),
        (2, 3, 4, 5), [2]),
    "some biases": (lambda: net(ab, a=nn.Conv1d(3, 2, 3), b=nn.Conv1d(3, 4, 3, bias=False)),
                    (2, 3, 6), [2]),
    "a keyword": (lambda: pair(lambda self, x: (self.a(input=x), self.b(x))),
                  (2, 3, 4, 5), [2]),
    "read tensors": (lambda: pair(
        lambda self, x: tuple(y * self.scale for y in ab(self, x)),
        scale=nn.Parameter(torch.tensor(3.0))), (2, 3, 4, 5), [2]),
    "nothing to fuse": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), (2, 3),
                        []),
}  # fmt: skip


@pytest.mark.parametrize(("make", "shape", "sizes"), FORMS.values(), ids=FORMS)
def test_networks_of_many_forms(make, shape, sizes):
    """They give what the model gives; so do they exported, and with the model spoilt."""
    model, x = make(), torch.randn(shape)
    state = copy.deepcopy(model.state_dict())
    network = check(model, x)
    assert [len(layer.names) for layer in stacked(network).values()] == sizes
    members = {name for layer in stacked(network).values() for name in layer.names}
    assert members.isdisjoint(node.target for node in network.graph.nodes)
    with torch.no_grad():
        expected = network(x)
        exported = torch.export.export(network, (x,)).module()(x)
        assert model.state_dict().keys() == state.keys()
        for key, tensor in model.state_dict().items():
            assert tensor.equal(state[key])
            tensor.zero_()  # the network has weights of its own
        for other in (exported, network(x)):
            for y, theirs in zip(listed(other), listed(expected), strict=True):
                agree(y, theirs, 1e-12)


def listed(returned):
    return returned if isinstance(returned, tuple | list) else [returned]


def test_it_is_a_plain_graph_in_eval_mode(tmp_path):
    model, x = models.Inception.from_table("3a").eval(), image(1, 192)
    network = check(models.randomise(model), x)
    assert type(network).__mro__[1] is fx.GraphModule
    assert not any(module.training for module in network.modules())
    assert type(network).__name__ == "Inception"
    for other in (saved(network), copy.deepcopy(network)):
        agree(other(x), network(x))
    assert not any("b3_reduce.conv" in path for path, _ in network.named_modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_sees_one_convolution():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    torch.set_default_dtype(torch.float32)
    model, x = pair(), image().float()
    program = torch.onnx.export(lower(hfusion.plan(model)), (x,), dynamo=True)
    assert Counter(node.op_type for node in program.model.graph)["Conv"] == 1


def activated(read):
    """Two siblings with an activation each, whose outputs are then read so."""
    return pair(lambda self, x: [read(y.relu()) for y in ab(self, x)])


# once: (images, relus that are launched where readers copy nothing, and where they copy).
@pytest.mark.parametrize(
    ("once", "images", "counts"),
    [(None, 2, (1, 2)), (True, 2, (1, 1)), (False, 2, (2, 2)),
     (None, 1, (1, 1)), (True, 1, (1, 1)), (False, 1, (2, 2))],
)  # fmt: skip
def test_an_activation_is_applied_once_or_to_each(once, images, counts):
    """None decides by what readers may copy; one image is in one piece, and needs none."""
    x = image(images)
    for read, count in zip((torch.neg, lambda y: y.reshape(-1)), counts, strict=True):
        model = activated(read)
        network = lower(hfusion.plan(model), once=once)
        names = count_launches(lambda n=network: n(x)).names
        assert sum("relu" in str(name) for name in names) == count
        methods = [n for n in network.graph.nodes if n.target == "relu"]
        assert len(methods) == (2 if once is False else 0)
        for mine, theirs in zip(network(x), model(x), strict=True):
            agree(mine, theirs, 1e-12)


def twice(self, x):
    return *ab(self, x), *ab(self, x + 1)


# What a fused model does, and one layer in a graph cannot.
APART = {
    "several calls": lambda: pair(twice),
    "a hook": lambda: _hooked(pair(lambda self, x: (*ab(self, x), self.c(x)),
                                   c=nn.Conv2d(3, 2, 1))),
}  # fmt: skip


def _hooked(model):
    last = [*model.children()][-1]
    last.register_forward_hook(lambda module, given, y: y + 1)
    return model


@pytest.mark.parametrize("make", APART.values(), ids=APART)
def test_what_cannot_be_one_layer_stays_separate(make):
    model, x = make(), image()
    plan = hfusion.plan(model)
    assert [group.fused for group in plan.groups] == [True]
    assert stacked(check(model, x)) == {}
    with torch.no_grad():
        for mine, theirs in zip(plan.apply()(x), model(x), strict=True):
            agree(mine, theirs, 1e-12)


def test_planned_in_training_and_lowered_in_eval_mode():
    """A plan holds for both modes; the graph is read when it is made."""
    model, x = pair(lambda self, x: self.d(self.a(x)) + self.d(self.c(x)),
                    c=nn.Conv2d(3, 4, 1), d=nn.Dropout()), image()  # fmt: skip
    plan = hfusion.plan(model.train())
    model.eval()
    agree(lower(plan)(x), model(x), 1e-12)


def test_a_hook_since_it_was_planned_is_called():
    model, x = pair(), image()
    plan = hfusion.plan(model)
    _hooked(model)
    network = lower(plan)
    assert stacked(network) == {}
    for mine, theirs in zip(network(x), model(x), strict=True):
        agree(mine, theirs, 1e-12)


def test_unlike_windows_are_embedded():
    model = net(ab, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 5, 3, padding=1))
    assert stacked(check(model, image())) == {}
    (layer,) = stacked(check(model, image(), embed=True)).values()
    assert tuple(layer.layer.weight.shape) == (9, 3, 3, 3)


def test_a_refused_group_stays():
    model = pair()
    assert stacked(check(model, image(), accept=lambda group: "not this one")) == {}


def test_a_tensor_that_forward_makes_is_a_buffer_in_no_state():
    def forward(self, x):
        offset = torch.ones(3, 1, 1) * 2
        return ab(self, x * offset + self.kept + self.loose)

    model = pair(forward, loose=torch.tensor(5.0))
    model.register_buffer("kept", torch.tensor(7.0))
    network = check(model, image())
    buffers = dict(network.named_buffers())
    assert sorted(buffers[name].sum().item() for name in buffers) == [5, 6, 7]
    assert [key for key in network.state_dict() if "stacked" not in key] == ["kept"]
    half = network.half()(image().half())
    assert [y.dtype for y in half] == [torch.float16] * 2  # constants went along


def test_what_two_calls_share_is_shared():
    model = pair(lambda self, x: (self.d(self.c(self.c(self.a(x)))), self.b(x)),
                 c=nn.Conv2d(4, 4, 1), d=nn.Conv2d(4, 4, 1))  # fmt: skip
    model.d.weight = model.c.weight
    network = check(model, image())
    assert network.d.weight is network.c.weight
    assert network.c.weight is not model.c.weight


def test_a_path_that_is_taken_is_not_taken_again():
    """Neither by a module, nor by a tensor, nor by another stacked layer."""

    def forward(self, x):
        y = torch.cat(ab(self, self.stacked(x)), 1) + self.stacked_1
        return self.c(y), self.d(y)

    others = {"c": nn.Conv2d(9, 2, 1), "d": nn.Conv2d(9, 3, 1)}
    taken = {"stacked": nn.Sequential(nn.Tanh()), "stacked_1": nn.Parameter(torch.ones(1))}
    model = pair(forward, **others, **taken)
    network = check(model, image())
    assert sorted(stacked(network)) == ["stacked_2", "stacked_3"]
    deep = nn.Sequential(pair(), nn.Identity()).eval()
    assert list(stacked(check(deep, image()))) == ["0_stacked"]


# What is refused.


def in_training_mode():
    return hfusion.plan(pair().train())


def partly_in_training_mode():
    model = nn.Sequential(pair(), nn.Dropout()).eval()
    model[0].b.train()
    return hfusion.plan(model)


def trained_since():
    plan = hfusion.plan(pair())
    plan.model.train()
    return plan


def another_way_since():
    plan = hfusion.plan(
        pair(lambda self, x: ab(self, x) if self.both else self.a(x), both=1)
    )
    plan.model.both = 0
    return plan


def another_layer_since():
    plan = hfusion.plan(pair())
    plan.model.b = nn.Conv2d(3, 5, 1, stride=2).eval()
    return plan


def uncopied():  # a graph, which is read without a copy
    model = pair(lambda self, x: ab(self, self.c(x)), c=nn.Identity())
    plan = hfusion.plan(fx.symbolic_trace(model).eval())
    plan.model.c.register_buffer("grown", torch.ones(1, requires_grad=True) * 2)
    return plan


TRAINING = "model: expected eval mode, got {} in training mode; call model.eval() and plan"
READ = "plan: expected one found by reading, without example_inputs, got "
CHANGED = "model has changed since it was planned"
REFUSED = {
    "training": (in_training_mode, TRAINING.format("model")),
    "a layer in training": (partly_in_training_mode, TRAINING.format("0.b")),
    "trained since": (trained_since, TRAINING.format("model")),
    "another way": (another_way_since, f"{CHANGED}; plan it again"),
    "another layer": (another_layer_since, f"{CHANGED}: stride differs"),
    "no copy": (uncopied, "model cannot be copied: "),
    "found by running": (
        lambda: hfusion.plan(pair(), image()), f"{READ}one found by running"),
    "a model": (pair, f"{READ}a Net"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(make, said):
    plan = make()
    with pytest.raises(FusionError) as raised:
        lower(plan)
    assert str(raised.value).startswith(said)


# The activation that follows every member, however it is spelt.

SPELT = {
    "a module": (lambda self, y: self.relu(y), nn.ReLU),
    "a module in place": (lambda self, y: self.relu_(y), nn.ReLU),
    "a function": (lambda self, y: F.relu(y), nn.ReLU),
    "a function by keyword": (lambda self, y: F.relu(input=y), nn.ReLU),
    "torch.relu_": (lambda self, y: torch.relu_(y), nn.ReLU),
    "a method": (lambda self, y: y.relu(), nn.ReLU),
    "a method in place": (lambda self, y: y.relu_(), nn.ReLU),
    "in place by keyword": (lambda self, y: F.relu(y, inplace=True), nn.ReLU),
    "in place by place": (lambda self, y: F.relu(y, True), nn.ReLU),
    "relu6": (lambda self, y: F.relu6(y), nn.ReLU6),
    "leaky": (lambda self, y: F.leaky_relu(y, 0.2), nn.LeakyReLU),
    "leaky by name": (lambda self, y: F.leaky_relu(y, negative_slope=0.2), nn.LeakyReLU),
    "elu": (lambda self, y: F.elu(y, 0.7), nn.ELU),
    "gelu": (lambda self, y: F.gelu(y), nn.GELU),
    "gelu tanh": (lambda self, y: F.gelu(y, approximate="tanh"), nn.GELU),
    "silu": (lambda self, y: F.silu(y), nn.SiLU),
    "mish": (lambda self, y: F.mish(y), nn.Mish),
    "sigmoid": (lambda self, y: y.sigmoid(), nn.Sigmoid),
    "tanh": (lambda self, y: torch.tanh(y), nn.Tanh),
    "softplus": (lambda self, y: F.softplus(y, 2.0, 10.0), nn.Softplus),
    "hardswish": (lambda self, y: F.hardswish(y), nn.Hardswish),
    "hardsigmoid": (lambda self, y: F.hardsigmoid(y), nn.Hardsigmoid),
    "softmax": (lambda self, y: y.softmax(1), None),
    "none": (lambda self, y: y, None),
    "times two": (lambda self, y: y * 2, None),
    "clamp": (lambda self, y: y.clamp(0), None),
    "with weights": (lambda self, y: self.prelu(y), None),
}
UNLIKE = {
    "slopes": lambda self, x: (F.leaky_relu(self.a(x), 0.1), F.leaky_relu(self.b(x), 0.2)),
    "kinds": lambda self, x: (self.a(x).relu(), self.b(x).sigmoid()),
    "one without": lambda self, x: (self.a(x).relu(), self.b(x)),
    "one used twice": lambda self, x: (lambda a: (a.relu() + a, self.b(x).relu()))(
        self.a(x)
    ),
}


def spelt(follow):
    others = {"relu": nn.ReLU(), "relu_": nn.ReLU(True), "prelu": nn.PReLU().double()}
    return pair(lambda self, x: tuple(follow(self, y) for y in ab(self, x)), **others)


@pytest.mark.parametrize(("follow", "kind"), SPELT.values(), ids=SPELT)
def test_an_activation_is_found_however_it_is_spelt(follow, kind):
    """Once for all branches, and its module is a new one, out of place."""
    for once in (True, False, None):
        network = lower(hfusion.plan(model := spelt(follow)), once)
        (layer,) = stacked(network).values()
        assert type(layer.activation) is (
            kind if kind and once is not False else type(None)
        )
        assert not getattr(layer.activation, "inplace", False)
        for batch in (1, 2):
            x = image(batch)
            for mine, theirs in zip(network(x), model(x), strict=True):
                agree(mine, theirs, 1e-12)


@pytest.mark.parametrize("forward", UNLIKE.values(), ids=UNLIKE)
def test_unlike_activations_stay_where_they_are(forward):
    (layer,) = stacked(check(pair(forward), image())).values()
    assert layer.activation is None


def test_activations_spelt_in_several_ways_are_one():
    model = pair(lambda self, x: (F.relu(self.a(x), True), self.b(x).relu()))
    (layer,) = stacked(check(model, image())).values()
    assert repr(layer.activation) == "ReLU()"


def first_seen(seen, path, layer, given):
    seen.setdefault(path, given[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("once", [None, True, False])
def test_layouts_and_gradients(once, batch, layout):
    """What consumers get need not be copied, unless the activation is applied once."""
    model = models.randomise(models.Inception((4, 5, 6, 3, 2, 7, 1))).eval()
    model = hfusion.fold_batchnorm(model).to(memory_format=layout)
    x = image(batch, 4).to(memory_format=layout)
    network, seen = lower(hfusion.plan(model), once), {}
    grads = []
    for one in (network, model):
        for path in ("b3.conv", "b5.conv"):
            layer = one.get_submodule(path)
            note = functools.partial(first_seen, seen, path)
            layer.register_forward_pre_hook(note)
        pixels = x.clone().requires_grad_()
        (one(pixels) ** 2).sum().backward()
        grads.append(pixels.grad)
    agree(*grads, 1e-9)
    agree(network(x), model(x), 1e-12)
    convs = [unit.conv for unit in (model.b1, model.b3_reduce, model.b5_reduce)]
    whole = torch.cat([conv.weight.grad for conv in convs])
    agree(network.stacked.layer.weight.grad, whole, 1e-9)
    strided = [not part.is_contiguous(memory_format=layout) for part in seen.values()]
    in_pieces = (layout, batch) != (torch.contiguous_format, 1)
    assert strided == [once is True and in_pieces] * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("batch", [1, 2])
def test_traced_with_one_batch_and_run_with_another(batch):
    model = hfusion.fold_batchnorm(models.Inception((4, 5, 6, 3, 2, 7, 1)).eval())
    network = lower(hfusion.plan(model))
    with torch.no_grad():
        traced = torch.jit.trace(network, (image(batch, 4),))
        x = image(3 - batch, 4)
        for other in (traced, torch.fx.symbolic_trace(network)):
            agree(other(x), model(x), 1e-12)


def test_compiled_in_one_piece():
    for name in ("Inception", "attention", "some biases"):
        make, shape, _ = FORMS[name]
        model, x = make(), torch.randn(shape)
        torch._dynamo.reset()
        network = lower(hfusion.plan(model))
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        for mine, theirs in zip(listed(compiled(x)), listed(model(x)), strict=True):
            agree(mine, theirs, 1e-12)


@pytest.mark.skipif(
    " " in torch.__file__, reason="Inductor does not quote the path of torch's headers"
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_inductor():
    model = hfusion.fold_batchnorm(models.Inception((3, 4, 3, 2, 1, 3, 2)).eval())
    network, x = lower(hfusion.plan(model)), image(2, 3)
    torch._dynamo.reset()
    with torch.no_grad():
        agree(torch.compile(network)(x), model(x), 1e-10)


def test_who_counts_on_the_layout_keeps_its_siblings_separate():
    model = pair(lambda self, x: (self.a(x).as_strided((2, 20), (80, 1)), self.b(x)))
    assert stacked(check(model, image())) == {}


@pytest.mark.parametrize("called", ["view", "reshape", "flatten"])
def test_a_view_under_no_grad_keeps_its_siblings_separate(called):
    """It still requires gradients, and a copy would not."""
    members, graph = pair(c=nn.Conv2d(3, 2, 1)), fx.Graph()
    x = graph.placeholder("x")
    a, b, c = (graph.call_module(path, (x,)) for path in "abc")
    graph.call_function(torch._C._set_grad_enabled, (False,))
    y = graph.call_method(called, (a,) if called == "flatten" else (a, (-1,)))
    graph.call_function(torch._C._set_grad_enabled, (True,))
    graph.output((y, b, c))
    model = fx.GraphModule(members, graph).eval()
    assert hfusion.plan(model).groups[0].fused
    network = check(model, image())
    assert stacked(network) == {}
    assert [y.requires_grad for net in (network, model) for y in net(image())] == [True] * 6


def one_view(self, x):
    return self.a(x).view(2, -1), self.b(x), self.c(x).view(size=(2, -1)), self.d(x)


def test_a_view_of_a_branch_becomes_a_reshape():
    """A part may be strided, and `.view` cannot copy."""
    model = pair(one_view, c=nn.Conv2d(3, 2, 1), d=nn.Conv2d(3, 1, 1))
    network = check(model, image())
    assert [len(layer.names) for layer in stacked(network).values()] == [4]
    assert _methods(network) == ["reshape"] * 2


def view_of_a_convolution_of_a_part(self, x):
    y = self.c(self.a(x).relu())
    return y.view(3, -1), self.b(x)


def view_that_is_written_to(self, x):
    y, z = x.relu(), self.a(x)
    y.view(-1).zero_()
    return z, self.b(x), y


def test_a_view_of_what_a_convolution_makes_of_a_part_becomes_a_reshape():
    """Of one channel of an image in channels_last it makes another order of axes."""
    c = nn.Conv2d(1, 2, 3, stride=2, padding=1)
    model = pair(view_of_a_convolution_of_a_part, c=c)
    model.a = nn.Conv2d(3, 1, 1).eval()
    x = torch.randn(3, 3, 2, 3).contiguous(memory_format=torch.channels_last)
    network = check(model, x)
    assert stacked(network)
    assert _methods(network) == ["relu", "reshape"]


def test_a_view_that_is_written_to_stays_a_view():
    """A copy would miss the write."""
    network = check(pair(view_that_is_written_to), image())
    assert stacked(network)
    assert _methods(network) == ["relu", "view", "zero_"]


def _methods(network):
    return [node.target for node in network.graph.nodes if node.op == "call_method"]
