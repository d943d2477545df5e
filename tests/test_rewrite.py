"""rewrite.py and siblings.py: networks of many forms, fused and undone.

The reference is always the network as it was, in float64. Where a rule refuses a
group, the rule is also switched off, to show that fusing anyway would be wrong.
"""

import copy
import gc
import io
import operator
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils import _pytree

import hfusion
from hfusion import FusionError, effects, fuse, layers, models, plan, siblings, unfuse
from hfusion.measure import Disagreement, agree, count_launches, differ


@pytest.fixture(autouse=True)
def _in_float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Networks, and how they are compared.


def conv(c_out=4, kernel=1, c_in=3, kind=nn.Conv2d, **options):
    return kind(c_in, c_out, kernel, **options)


def linear(c_out=4, c_in=3, **options):
    return nn.Linear(c_in, c_out, **options)


def bn(channels):
    return models.randomise(nn.BatchNorm2d(channels))


def net(forward, **members):
    """A module with this forward and these members."""
    model = type("Net", (nn.Module,), {"forward": forward})()
    for name, member in members.items():
        setattr(model, name, member)
    return model


def ab(self, x):
    return self.a(x), self.b(x)


def pair(**options):
    """Two siblings, a and b, and nothing else."""
    return net(ab, a=conv(4, **options), b=conv(5, **options))


def abc(self, x):
    return self.a(x), self.b(x), self.c(x)


def image(*shape):
    return torch.randn(shape or (2, 3, 4, 5))


def run(model, *inputs):
    """What the model makes of its inputs, which it may change in place."""
    return model(*copy.deepcopy(inputs))


def check_same(actual, expected, bound=1e-12):
    """Hold two results, tensors in whatever tuples and dicts, to each other."""
    actual, expected = _pytree.tree_flatten(actual), _pytree.tree_flatten(expected)
    assert actual[1] == expected[1]
    assert expected[0]
    for a, e in zip(actual[0], expected[0], strict=True):
        assert a.dtype == e.dtype
        agree(a, e, bound * (1 + e.detach().abs().max().item()))


def exact(actual, expected):
    """Whether two results are equal bit for bit."""
    actual, expected = _pytree.tree_flatten(actual), _pytree.tree_flatten(expected)
    return actual[1] == expected[1] and all(
        a.dtype == e.dtype and torch.equal(a, e)
        for a, e in zip(actual[0], expected[0], strict=True)
    )


def same_state(a, b):
    """Whether two states have the same keys in the same order, and the same bits."""
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and exact(list(a.values()), list(b.values()))


def fused_members(found):
    return [set(group.members) for group in found.groups if group.fused]


def stacked_layers(model):
    return [m for m in model.modules() if isinstance(m, layers.Stacked)]


# Forms: (the network, the shape of its input, the members of each fused group).


def norms(self, x):
    return self.a_bn(self.a(x)).relu(), F.relu(self.b_bn(self.b(x)))


def chain(self, x):
    x = torch.cat([self.a(x), self.b(x)], dim=1).relu()
    x = self.c(x) + self.d(x)
    return torch.cat([self.e(x), self.f(x)], dim=1)


def with_pool(self, x):
    return torch.cat([self.a(x), self.b(x), self.proj(self.pool(x))], dim=1)


def several_uses(self, x):
    y = self.a(x)
    return y + y, y.sum() * self.b(x), y


def as_dict(self, x):
    return {"a": self.a(x), "rest": [self.b(x), {"x": x}]}


def bottleneck(self, x):
    y = self.conv2(self.conv1(x).relu()).relu()
    return (self.conv3(y) + self.downsample(x)).relu()


def heads(y, count):
    b, t = y.shape[0], y.shape[1]
    return y.view(b, t, count, 2).transpose(1, 2)


def attention(self, x):
    q, k, v = heads(self.q(x), 3), heads(self.k(x), 3), heads(self.v(x), 3)
    y = F.scaled_dot_product_attention(q, k, v)
    return self.out(y.transpose(1, 2).flatten(2))


def grouped_query(self, x):
    """Each head of k and v serves several of q."""
    q, k, v = heads(self.q(x), 4), heads(self.k(x), 2), heads(self.v(x), 2)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(q, k, v)


def gate_up(self, x):
    return self.down(F.silu(self.gate(x)) * self.up(x))


def by_keyword(self, x):
    return self.a(input=x), self.b(x), self.c(input=x)


def in_place_after(self, x):
    a, b = self.a(x), self.b(x)
    return a.relu_(), b.mul_(2).add_(a)


def views(self, x):
    y = self.a(x)
    return y.view(2, -1), y.view([2, 4, 20]), self.b(x).view(-1, 5)


def views_by_keyword(self, x):
    return self.a(x).view(size=(2, -1)), self.b(x)


def of_containers(self, x):
    outputs = [branch(x) for branch in self.branches]
    return [*outputs, self.named["one"](x), self.named["two"](x)]


def across(self, x):
    return self.left(x), self.right.conv(x)


def one_sum(self, x):
    return sum(branch(x).mean() for branch in (self.a, self.b, self.c))


def unused_output(self, x):
    self.b(x)
    return self.a(x)


def kinds(self, x):
    return self.a(x), self.b(x), self.q(x), self.k(x)


def parameter_input(self, x):
    return self.a(self.seed) + self.b(self.seed) * x.sum()


FORMS = {
    "widths": (lambda: net(abc, a=conv(4), b=conv(1), c=conv(7)), (2, 3, 4, 5), ["abc"]),
    "some biases": (
        lambda: net(abc, a=conv(4), b=conv(2, bias=False), c=conv(3)),
        (2, 3, 4, 5),
        ["abc"],
    ),
    "no biases": (
        lambda: net(ab, a=conv(4, bias=False), b=conv(2, bias=False)),
        (2, 3, 4, 5),
        ["ab"],
    ),
    "3×3": (
        lambda: net(ab, a=conv(4, 3, stride=2), b=conv(2, 3, stride=2)),
        (2, 3, 7, 8),
        ["ab"],
    ),
    "padded": (
        lambda: net(
            ab,
            a=conv(4, 3, padding="same", padding_mode="circular", dilation=2),
            b=conv(2, 3, padding="same", padding_mode="circular", dilation=2),
        ),
        (2, 3, 7, 8),
        ["ab"],
    ),
    "batch norms": (
        lambda: net(norms, a=conv(4), b=conv(2), a_bn=bn(4), b_bn=bn(2)),
        (2, 3, 4, 5),
        ["ab"],
    ),
    "chained": (
        lambda: net(
            chain,
            a=conv(4),
            b=conv(2),
            c=conv(3, c_in=6),
            d=conv(3, c_in=6),
            e=conv(1),
            f=conv(2),
        ),
        (2, 3, 4, 5),
        ["ab", "cd", "ef"],
    ),
    "another kernel size among them": (
        lambda: net(abc, a=conv(4), b=conv(4, 3, padding=1), c=conv(2)),
        (2, 3, 4, 5),
        ["ac"],
    ),
    "two kernel sizes": (
        lambda: net(
            lambda self, x: (*ab(self, x), self.c(x), self.d(x)),
            a=conv(4),
            b=conv(4, 3),
            c=conv(2, 3),
            d=conv(5),
        ),
        (2, 3, 4, 5),
        ["ad", "bc"],
    ),
    "a pooling of the same input": (
        lambda: net(
            with_pool,
            a=conv(4),
            b=conv(2),
            proj=conv(3),
            pool=nn.MaxPool2d(3, 1, padding=1),
        ),
        (2, 3, 4, 5),
        ["ab"],
    ),
    "outputs used several times": (
        lambda: net(several_uses, a=conv(4), b=conv(5)),
        (2, 3, 4, 5),
        ["ab"],
    ),
    "an output unused": (
        lambda: net(unused_output, a=conv(4), b=conv(5)),
        (2, 3, 4, 5),
        ["ab"],
    ),
    "a dict": (lambda: net(as_dict, a=conv(4), b=conv(5)), (2, 3, 4, 5), ["ab"]),
    "one number": (
        lambda: net(one_sum, a=conv(4), b=conv(5), c=conv(1)),
        (2, 3, 4, 5),
        ["abc"],
    ),
    "bottleneck": (
        lambda: net(
            bottleneck,
            conv1=conv(2, c_in=8, bias=False),
            conv2=conv(2, 3, c_in=2, padding=1),
            conv3=conv(6, c_in=2),
            downsample=conv(6, c_in=8, bias=False),
        ),
        (2, 8, 4, 5),
        [("conv1", "downsample")],
    ),
    "attention": (
        lambda: net(
            attention, q=linear(6, 5), k=linear(6, 5), v=linear(6, 5), out=linear(5, 6)
        ),
        (2, 4, 5),
        ["qkv"],
    ),
    "grouped queries": (
        lambda: net(grouped_query, q=linear(8, 5), k=linear(4, 5), v=linear(4, 5)),
        (2, 4, 5),
        ["qkv"],
    ),
    "gate and up": (
        lambda: net(gate_up, gate=linear(7, 5), up=linear(7, 5), down=linear(5, 7)),
        (2, 4, 5),
        [("gate", "up")],
    ),
    "a vector": (lambda: net(ab, a=linear(4), b=linear(2)), (3,), ["ab"]),
    "Conv1d": (
        lambda: net(ab, a=conv(4, kind=nn.Conv1d), b=conv(2, kind=nn.Conv1d)),
        (2, 3, 5),
        ["ab"],
    ),
    "Conv3d": (
        lambda: net(ab, a=conv(4, 2, kind=nn.Conv3d), b=conv(2, 2, kind=nn.Conv3d)),
        (2, 3, 4, 5, 3),
        ["ab"],
    ),
    "Conv2d and Linear": (
        lambda: net(kinds, a=conv(4), b=conv(2), q=linear(4, 5), k=linear(2, 5)),
        (2, 3, 4, 5),
        ["ab", "qk"],
    ),
    "by keyword": (
        lambda: net(by_keyword, a=conv(4), b=conv(5), c=conv(1)),
        (2, 3, 4, 5),
        ["abc"],
    ),
    "changed in place afterwards": (
        lambda: net(in_place_after, a=conv(4), b=conv(4)),
        (2, 3, 4, 5),
        ["ab"],
    ),
    "views": (lambda: net(views, a=conv(4), b=conv(3)), (2, 3, 4, 5), ["ab"]),
    "lists of modules": (
        lambda: net(
            of_containers,
            branches=nn.ModuleList([conv(4), conv(5)]),
            named=nn.ModuleDict({"one": conv(1), "two": conv(2)}),
        ),
        (2, 3, 4, 5),
        [("branches.0", "branches.1", "named.one", "named.two")],
    ),
    "of different depth": (
        lambda: net(
            across,
            left=conv(4),
            right=nn.ModuleDict({"conv": conv(2), "spare": conv(1)}),
        ),
        (2, 3, 4, 5),
        [("left", "right.conv")],
    ),
    "names that fusion uses": (
        lambda: net(
            lambda self, x: (self.stacked(x), self.keys(x), self.followers(x)),
            stacked=conv(4),
            keys=conv(2),
            followers=nn.ReLU(),
        ),
        (2, 3, 4, 5),
        [("stacked", "keys")],
    ),
    "frozen": (
        lambda: pair().requires_grad_(False),
        (2, 3, 4, 5),
        ["ab"],
    ),
    "a parameter as the input": (
        lambda: net(parameter_input, a=linear(4), b=linear(4), seed=nn.Parameter(image(3))),
        (2,),
        ["ab"],
    ),
    "Inception": (
        lambda: models.randomise(models.Inception((3, 4, 3, 2, 1, 3, 2))),
        (2, 3, 5, 6),
        [("b1.conv", "b3_reduce.conv", "b5_reduce.conv")],
    ),
    "nothing to fuse": (
        lambda: nn.Sequential(conv(3), nn.ReLU(), conv(3)),
        (2, 3, 4, 5),
        [],
    ),
}


@pytest.mark.parametrize("given_as", ["module", "graph"])
@pytest.mark.parametrize(("make", "shape", "groups"), FORMS.values(), ids=FORMS)
def test_forms(make, shape, groups, given_as):
    original, x = make().eval(), image(*shape)
    model = fx.symbolic_trace(original) if given_as == "graph" else original
    before = copy.deepcopy(model)
    found = plan(model)
    assert fused_members(found) == [set(group) for group in groups]
    fused, expected = found.apply(), run(original, x)
    assert len(stacked_layers(fused)) == len(groups)
    check_same(run(fused, x), expected)
    undone = unfuse(fused)
    assert exact(run(undone, x), expected)
    assert not stacked_layers(undone)
    assert same_state(fused, model)
    assert same_state(undone, model)
    assert same_state(model, before)
    assert exact(run(model, x), expected)


@pytest.mark.parametrize(("make", "shape", "groups"), FORMS.values(), ids=FORMS)
def test_forms_copied_pickled_and_loaded(make, shape, groups):
    model, other, x = make().eval(), make().eval(), image(*shape)
    fused, expected = fuse(model), run(model, x)
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert exact(run(again, x), run(fused, x))
        assert same_state(again, model)
        again.load_state_dict(other.state_dict())
        check_same(run(again, x), run(other, x))
        assert exact(run(unfuse(again), x), run(other, x))
    check_same(run(fused, x), expected)  # the copies were copies
    other.load_state_dict(fused.state_dict())
    assert exact(run(other, x), expected)


@pytest.mark.parametrize("forward", [views_by_keyword])
def test_a_view_by_keyword(forward):
    model, x = net(forward, a=conv(4), b=conv(3)), image()
    check_same(run(fuse(model), x), run(model, x))


def test_a_form_with_the_weights_of_another_would_be_seen():
    model, x = pair(), image()
    fused = fuse(model)
    with torch.no_grad():
        fused.state_dict()["a.weight"][0].mul_(1.001)  # a view of the stacked weight
    with pytest.raises(Disagreement, match="entries differ"):
        check_same(run(fused, x), run(model, x))


def test_the_parts_in_another_order_would_be_seen():
    model, x = net(ab, a=conv(4), b=conv(4)), image()
    fused = fuse(model)
    indices = [n for n in fused.graph.nodes if n.target is operator.getitem]
    for node in indices:
        node.args = (node.args[0], 1 - node.args[1])
    fused.recompile()
    with pytest.raises(Disagreement, match="entries differ"):
        check_same(run(fused, x), run(model, x))


def test_one_launch_in_place_of_three():
    model = net(lambda self, x: tuple(y.relu() for y in abc(self, x)), a=conv(), b=conv(2))
    model.c = conv(7)
    x, fused = image(), fuse(model)
    assert count_launches(lambda: model(x)).count == 6
    assert list(count_launches(lambda: fused(x)).names) == ["convolution", "relu"]
    (group,) = plan(model).groups
    assert group.launches_saved == 4


@pytest.mark.parametrize("activation", [False, True])
def test_launches_saved_are_the_launches_saved(activation):
    """Also where a missing bias costs an operator."""

    def forward(self, x):
        return tuple(y.relu() if activation else y for y in abc(self, x))

    model = net(forward, a=conv(), b=conv(2, bias=False), c=conv(1))
    x, found = image(), plan(model)
    fused = found.apply()
    saved = count_launches(lambda: model(x)).count - count_launches(lambda: fused(x)).count
    assert found.groups[0].launches_saved == saved


def test_split_bytes_are_what_copies_of_the_branches_move():
    (group,) = plan(net(ab, a=conv(4), b=conv(2))).groups
    assert group.split_bytes == 2 * 6 * 8  # read and written, six channels of float64
    (group,) = plan(net(ab, a=conv(4), b=conv(2)).half()).groups
    assert group.split_bytes == 2 * 6 * 2


# The activation that follows every member.

FOLLOWERS = {
    "module": (lambda self, y: self.relu(y), nn.ReLU),
    "module by keyword": (lambda self, y: self.relu(input=y), None),
    "module in place": (lambda self, y: self.relu_(y), nn.ReLU),
    "function": (lambda self, y: F.relu(y), nn.ReLU),
    "function by keyword": (lambda self, y: F.relu(input=y), None),
    "torch.relu": (lambda self, y: torch.relu(y), nn.ReLU),
    "method": (lambda self, y: y.relu(), nn.ReLU),
    "method in place": (lambda self, y: y.relu_(), nn.ReLU),
    "torch.relu_": (lambda self, y: torch.relu_(y), nn.ReLU),
    "F in place": (lambda self, y: F.relu(y, inplace=True), nn.ReLU),
    "F in place by place": (lambda self, y: F.relu(y, True), nn.ReLU),
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
    "with a hook": (lambda self, y: self.hooked(y), None),
    "with a backward hook": (lambda self, y: self.hooked_backward(y), None),
    "a subclass": (lambda self, y: self.own(y), None),
    "clamp": (lambda self, y: y.clamp(0), None),
    "rrelu": (lambda self, y: self.prelu(y), None),
}


class OwnReLU(nn.ReLU):
    """A ReLU that doubles."""

    def forward(self, x):
        return 2 * super().forward(x)


def followed(follow):
    """Three siblings, each with something behind it."""
    hooked, backward = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(lambda module, args, y: 3 * y)
    backward.register_full_backward_hook(lambda module, grads, _: (3 * grads[0],))
    model = net(
        lambda self, x: tuple(follow(self, y) for y in abc(self, x)),
        a=conv(4),
        b=conv(1, bias=False),
        c=conv(2),
        relu=nn.ReLU(),
        relu_=nn.ReLU(inplace=True),
        hooked=hooked,
        hooked_backward=backward,
        own=OwnReLU(),
        prelu=nn.PReLU(),
    )
    return model


def gradients(model, x):
    """Of the weights, by key, as the separate layers have them."""
    model.zero_grad()
    outputs = _pytree.tree_leaves(run(model, x))
    sum((y.double() ** 2).sum() for y in outputs if y.requires_grad).backward()
    separate = unfuse_gradients(model) if stacked_layers(model) else {}
    named = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return {k: g for k, g in (named | separate).items() if "stacked" not in k}


def unfuse_gradients(fused):
    """The gradients of the stacked layers, split by hand."""
    found = {}
    for stacked in stacked_layers(fused):
        weight, bias = stacked.layer.weight.grad, stacked.layer.bias
        start = 0
        for name, size, has in zip(
            stacked.names, stacked.sizes, stacked.has_bias, strict=True
        ):
            if weight is not None:
                found[f"{name}.weight"] = weight[start : start + size]
            if has and bias.grad is not None:
                found[f"{name}.bias"] = bias.grad[start : start + size]
            start += size
    return found


@pytest.mark.parametrize(("follow", "kind"), FOLLOWERS.values(), ids=FOLLOWERS)
def test_an_activation_of_all_members_is_applied_once(follow, kind):
    model, x = followed(follow), image()
    found = plan(model)
    (group,) = found.groups
    assert group.members == ("a", "b", "c")
    assert group.fused
    assert type(group.activation) is (kind or type(None))
    assert not getattr(group.activation, "inplace", False)
    fused = found.apply()
    check_same(run(fused, x), run(model, x))
    check_same(gradients(fused, x), gradients(model, x))
    again = pickle.loads(pickle.dumps(fused))
    for undone in (unfuse(fused), unfuse(copy.deepcopy(fused)), unfuse(again)):
        assert exact(run(undone, x), run(model, x))
        assert exact(gradients(undone, x), gradients(model, x))


def unlike_slopes(self, x):
    return F.leaky_relu(self.a(x), 0.1), F.leaky_relu(self.b(x), 0.2)


def unlike_kinds(self, x):
    return self.a(x).relu(), self.b(x).sigmoid()


def one_without(self, x):
    return self.a(x).relu(), self.b(x)


def one_used_twice(self, x):
    a = self.a(x)
    return a.relu(), a, self.b(x).relu()


def one_returned_too(self, x):
    a = self.a(x)
    return a.relu() + a, self.b(x).relu()


def two_inputs(self, x):
    a, b = self.a(x), self.b(x)
    return F.leaky_relu(a, 0.1) * b.mean(), F.leaky_relu(b, 0.1)


@pytest.mark.parametrize(
    "forward",
    [
        unlike_slopes,
        unlike_kinds,
        one_without,
        one_used_twice,
        one_returned_too,
        two_inputs,
    ],
)
def test_unlike_activations_stay_where_they_are(forward):
    model, x = net(forward, a=conv(4), b=conv(4)), image()
    (group,) = plan(model).groups
    assert group.fused
    assert group.activation is None
    check_same(run(fuse(model), x), run(model, x))


def test_activations_spelt_in_several_ways_are_one():
    model = net(
        lambda self, x: (self.relu(self.a(x)), F.relu(self.b(x), True), self.c(x).relu()),
        a=conv(4),
        b=conv(2),
        c=conv(1),
        relu=nn.ReLU(inplace=True),
    )
    x, found = image(), plan(model)
    assert repr(found.groups[0].activation) == "ReLU()"
    fused = found.apply()
    check_same(run(fused, x), run(model, x))
    undone = unfuse(fused)
    calls = [n for n in undone.graph.nodes if "relu" in str(n.target)]
    assert [n.op for n in calls] == ["call_module", "call_function", "call_method"]
    assert calls[1].args[1:] == (True,)
    assert exact(run(undone, x), run(model, x))


def test_one_slope_for_all_would_be_wrong():
    model, x = net(unlike_slopes, a=conv(4), b=conv(4)), image()
    fused = fuse(model)
    (stacked,) = stacked_layers(fused)
    y = nn.LeakyReLU(0.1)(stacked.product(x))
    assert "entries differ" in differ(y[:, 4:], model(x)[1], 1e-6)


def relu_then_write(self, x):
    a, b = F.relu(self.a(x)), F.relu(self.b(x))
    a += 1
    return a, b


def test_autograd_still_notices_that_a_result_it_needs_was_changed():
    """The separate layers would fail, and so must the stacked ones: not answer wrongly."""
    for model in (net(relu_then_write, a=conv(4), b=conv(4)),):
        for one in (model, fuse(model)):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                sum(y.sum() for y in one(image())).backward()


# Refusals. Each: the network, its inputs, who is refused, the reason, and what would
# happen without the rule.


class Doubling(nn.Conv2d):
    """A convolution, doubled."""

    def forward(self, x):
        return 2 * super().forward(x)


class Double(nn.Module):
    """For parametrize: twice the tensor."""

    def forward(self, weight):
        return 2 * weight


def with_member(change, **others):
    """Three siblings, of which `a` is changed, so that only b and c can be fused."""
    model = net(abc, a=conv(4), b=conv(4), c=conv(2), **others)
    change(model)
    return model


def hook(register, function=lambda *args: None):
    return lambda model: getattr(model.a, register)(function)


def double_output(module, args, output):
    return 2 * output


def parametrised(model):
    parametrize.register_parametrization(model.a, "weight", Double())


def quantised(model):
    model.a = torch.ao.nn.quantized.Conv2d(3, 4, 1)


def called_twice(self, x):
    return *abc(self, x), self.a(x * 2)


def two_names(model):
    model.alias = model.a


def tied(model):
    model.decoder.weight = model.a.weight


def tied_bias(model):
    model.decoder.bias = model.a.bias


def overlapping(model):
    memory = torch.randn(12 + 6)
    model.a.weight = nn.Parameter(memory[:12].view(4, 3, 1, 1))
    model.decoder.weight = nn.Parameter(memory[6:].view(4, 3, 1, 1))


def overlapping_siblings(model):
    memory = torch.randn(12 + 6)
    model.a.weight = nn.Parameter(memory[:12].view(4, 3, 1, 1))
    model.b.weight = nn.Parameter(memory[6:].view(4, 3, 1, 1))


def also_decoder(self, x):
    return *abc(self, x), self.decoder(x.flip(1))


def weight_read(self, x):
    return *abc(self, x), self.a.weight.sum()


def bias_read(self, x):
    return *abc(self, x), x + self.a.bias[:3, None, None]


class Holder(nn.Module):
    """A module that torch.fx is told not to look into."""

    def __init__(self):
        super().__init__()
        self.inner = conv(4)

    def forward(self, x):
        return 2 * self.inner(x)


def leaf_inside():
    """A member is also called by a module that the graph calls whole."""
    model = net(
        lambda self, x: (self.holder.inner(x), self.b(x), self.c(x), self.holder(x)),
        holder=Holder(),
        b=conv(4),
        c=conv(2),
    )

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, path):
            return isinstance(module, Holder) or super().is_leaf_module(module, path)

    return fx.GraphModule(model, Tracer().trace(model))


def odd_function(y):
    """What torch.fx cannot see into: it may do anything."""
    return y.as_strided((4,), (1,))


fx.wrap("odd_function")


def consumed(consume):
    """Three siblings, and something that reads the output of the first."""
    return lambda: net(
        lambda self, x: (consume(self.a(x)), self.b(x), self.c(x)),
        a=conv(4),
        b=conv(4),
        c=conv(2),
    )


def reshaped_and_written(y):
    y.reshape(-1).add_(1)
    return y


def flattened_and_written(y):
    F.relu(torch.flatten(y), inplace=True)
    return y


RULE_CASES = {
    # name: (make, the rule, who and why, what is then seen)
    "forward hook": (
        lambda: with_member(hook("register_forward_hook", double_output)),
        "unfit",
        r"hooks of a was \['forward'\]",
        "outputs",
    ),
    "hook before": (
        lambda: with_member(hook("register_forward_pre_hook", lambda m, a: a[0] * 2)),
        "unfit",
        r"hooks of a was \['forward_pre'\]",
        "outputs",
    ),
    "backward hook": (
        lambda: with_member(
            hook("register_full_backward_hook", lambda m, i, o: tuple(g * 2 for g in i))
        ),
        "unfit",
        r"hooks of a was \['backward'\]",
        "gradient of the input",
    ),
    "pruned": (
        lambda: with_member(lambda m: prune.random_unstructured(m.a, "weight", 0.5)),
        "unfit",
        r"hooks of a was \['forward_pre'\]",
        "FusionError: .*weight_orig",
    ),
    "own forward": (
        lambda: with_member(lambda m: setattr(m.a, "forward", torch.sin)),
        "unfit",
        r"extras of a was \['forward'\]",
        "outputs",
    ),
    "subclass": (
        lambda: with_member(lambda m: setattr(m, "a", Doubling(3, 4, 1))),
        "unfit",
        "type of a was Doubling",
        "outputs",
    ),
    "parametrization": (
        lambda: with_member(parametrised),
        "unfit",
        "type of a was ParametrizedConv2d",
        "FusionError: .*parametrizations",
    ),
    "weight_norm": (
        lambda: with_member(lambda m: parametrizations.weight_norm(m.a)),
        "unfit",
        "type of a was ParametrizedConv2d",
        "FusionError: .*parametrizations",
    ),
    "quantised": (
        lambda: with_member(quantised),
        "unfit",
        "type of a was Conv2d; .* itself",
        "AttributeError: ",
    ),
    "lazy": (
        lambda: with_member(lambda m: setattr(m, "a", nn.LazyConv2d(4, 1))),
        "unfit",
        "type of a was LazyConv2d",
        "not the same family",
    ),
    "groups": (
        lambda: with_member(lambda m: setattr(m, "a", conv(3, groups=3))),
        "unfit",
        "groups of a was 3; 1 fits",
        "ValueError: weights are",
    ),
    "called again": (
        lambda: net(called_twice, a=conv(4), b=conv(4), c=conv(2)),
        "called_again",
        "a is called 2 times; 1 fits",
        "TypeError: 'NoneType' object is not callable",
    ),
    "two names": (
        lambda: with_member(two_names),
        "known_elsewhere",
        "a is also alias; a layer of its own fits",
        "a step",
    ),
    "in a leaf": (
        leaf_inside,
        "known_elsewhere",
        "holder.inner may be called by holder, which the graph calls whole",
        "TypeError: 'NoneType' object is not callable",
    ),
    "tied weights": (
        lambda: net(also_decoder, a=conv(4), b=conv(4), c=conv(2), decoder=conv(4, 3)),
        "shared_tensors",
        "weight of a shares memory.* decoder",
        "a step",
    ),
    "overlapping weights": (
        lambda: net(also_decoder, a=conv(4), b=conv(4), c=conv(2), decoder=conv(4, 3)),
        "shared_tensors",
        "weight of a shares memory.* decoder",
        "a step",
    ),
    "tied biases": (
        lambda: net(also_decoder, a=conv(4), b=conv(4), c=conv(2), decoder=conv(4, 3)),
        "shared_tensors",
        "bias of a shares memory.* decoder",
        "a step",
    ),
    "weight read": (
        lambda: net(weight_read, a=conv(4), b=conv(4), c=conv(2)),
        "shared_tensors",
        "weight of a is read by the graph",
        "AttributeError|RuntimeError: ",
    ),
    "bias read": (
        lambda: net(bias_read, a=conv(4), b=conv(4), c=conv(2)),
        "shared_tensors",
        "bias of a is read by the graph",
        "AttributeError|RuntimeError: ",
    ),
    "as_strided": (
        consumed(lambda y: torch.as_strided(y, (2, 20), (80, 1))),
        "layout_matters",
        r"the output of a goes to `as_strided` \(as_strided\)",
        "outputs",
    ),
    "as_strided of aten": (
        consumed(lambda y: torch.ops.aten.as_strided.default(y, (2, 20), (80, 1))),
        "layout_matters",
        "the output of a goes to `as_strided",
        "outputs",
    ),
    "view of aten": (
        consumed(lambda y: torch.ops.aten.view.default(y, [-1])),
        "layout_matters",
        "the output of a goes to `view",
        "RuntimeError: view size is not compatible",
    ),
    "stride": (
        consumed(lambda y: y * y.stride(0)),
        "layout_matters",
        "the output of a goes to `stride`",
        "outputs",
    ),
    "stride after the activation": (
        consumed(lambda y: y.relu() * 1 + torch.relu(y).stride(0)),
        "layout_matters",
        "the output of a goes to `stride`",
        "never refused",
    ),
    "unknown function": (
        consumed(odd_function),
        "layout_matters",
        r"the output of a goes to `odd_function`",
        "outputs",
    ),
    "view as another dtype": (
        consumed(lambda y: y.transpose(1, 2).transpose(1, 2).view(torch.int64)),
        "layout_matters",
        "the output of a goes to `view`",
        "TypeError: reshape",
    ),
    "view as another dtype by name": (
        consumed(lambda y: y.view(dtype=torch.int64)),
        "layout_matters",
        "the output of a goes to `view`",
        "TypeError: reshape",
    ),
    "reshape, then written": (
        consumed(reshaped_and_written),
        "layout_matters",
        "the output of a goes to `reshape`",
        "outputs",
    ),
    "flatten, then written": (
        consumed(flattened_and_written),
        "layout_matters",
        "the output of a goes to `flatten`",
        "outputs",
    ),
}
RULE_CASES.pop("stride after the activation")
SHARED = {
    "tied weights": tied,
    "tied biases": tied_bias,
    "overlapping weights": overlapping,
}


def made(name):
    """The network of a case, in which one is refused and two are fused."""
    if name in SHARED:
        model = net(also_decoder, a=conv(4), b=conv(4), c=conv(2), decoder=conv(4))
        SHARED[name](model)
        return model
    return RULE_CASES[name][0]()


def switch_off(monkeypatch, rule):
    """Fuse as if this rule did not exist."""
    others = tuple(r for r in siblings.RULES if r.__name__ != rule)
    assert len(others) == len(siblings.RULES) - 1
    monkeypatch.setattr(siblings, "RULES", others)
    if rule == "unfit":  # apply() asks once more
        monkeypatch.setattr(layers, "refusal", lambda members: "")


def after_a_step(model, x):
    """Outputs after a step of gradient descent."""
    model = copy.deepcopy(model)
    torch.optim.SGD(model.parameters(), 0.1).zero_grad()
    sum((y**2).sum() for y in run(model, x)).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return *run(model, x), *model.state_dict().values()


def input_gradient(model, x):
    x = x.clone().requires_grad_()
    sum((y**2).sum() for y in model(x)).backward()
    return x.grad


SEEN = {"outputs": run, "a step": after_a_step, "gradient of the input": input_gradient}


@pytest.mark.parametrize("name", RULE_CASES)
def test_a_layer_that_cannot_be_fused_is_refused_by_name(name):
    _, _, reason, _ = RULE_CASES[name]
    model, x = made(name), image()
    found = plan(model)
    refused = [group for group in found.groups if not group.fused]
    assert [len(group.members) for group in refused] == [1]
    assert_reason(refused[0], reason)
    assert fused_members(found) == [{"b", "c"}]
    if name in ("lazy", "quantised"):
        return
    check_same(run(found.apply(), x), run(model, x))


def assert_reason(group, reason):
    import re

    assert re.search(reason, group.reason), group.reason
    assert any(member in group.reason for member in group.members)


@pytest.mark.parametrize("name", set(RULE_CASES) - {"lazy"})
def test_fusing_it_anyway_would_change_the_result(name, monkeypatch):
    _, rule, _, seen = RULE_CASES[name]
    model, x = made(name), image()
    switch_off(monkeypatch, rule)
    if seen in SEEN:
        fused, look = fuse(model), SEEN[seen]
        expected = _pytree.tree_leaves(look(model, x))
        actual = _pytree.tree_leaves(look(fused, x))
        with pytest.raises(Disagreement, match=r"entries differ|shape|it is"):
            check_same(actual, expected, 1e-6)
    else:
        kind, _, message = seen.rpartition(": ")
        kinds = {"FusionError": FusionError, "ValueError": ValueError}
        kinds |= {"TypeError": TypeError, "RuntimeError": RuntimeError}
        kinds |= {"AttributeError": AttributeError}
        with pytest.raises(tuple(kinds[k] for k in kind.split("|")), match=message or "."):
            run(fuse(model), x)
