"""rewrite.py and siblings.py: networks of many forms, fused and undone.

The reference is always the network as it was, in float64. Where a rule refuses a
group, the rule is also switched off, to show that fusing anyway would be wrong.
"""

import copy
import dataclasses
import gc
import io
import operator
import pickle
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils import _pytree

import hfusion
from hfusion import (
    FusionError,
    effects,
    fuse,
    layers,
    models,
    plan,
    rewrite,
    siblings,
    unfuse,
)
from hfusion.measure import Disagreement, agree, count_launches, differ

pytestmark = pytest.mark.usefixtures("in_float64")


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
        if e.is_floating_point():
            agree(a, e, bound * (1 + e.detach().abs().max().item()))
        else:
            assert torch.equal(a, e)


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
    "views of activations": (
        lambda: net(
            lambda self, x: [y.relu().view(-1) for y in ab(self, x)],
            a=conv(4),
            b=conv(3),
        ),
        (2, 3, 4, 5),
        ["ab"],
    ),
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


@pytest.mark.parametrize("flat", [torch.flatten, lambda y: y.view(2, -1)])
def test_a_view_of_an_activation_in_place(flat):
    """Fused or refused, the answer is the same."""
    model = net(
        lambda self, x: [flat(y.relu_()) for y in ab(self, x)], a=conv(4), b=conv(3)
    )
    x = image()
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
    x, fused = image(1, 3, 4, 5), fuse(model)
    assert count_launches(lambda: model(x)).count == 6
    assert list(count_launches(lambda: fused(x)).names) == ["convolution", "relu"]
    (group,) = plan(model).groups
    assert (group.launches_saved, group.saved_in_one_piece) == (2, 2)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("activation", [False, True])
def test_launches_saved_are_the_launches_saved(activation, batch):
    """Also where a missing bias costs an operator."""

    def forward(self, x):
        return tuple(y.relu() if activation else y for y in abc(self, x))

    model = net(forward, a=conv(), b=conv(2, bias=False), c=conv(1))
    x, found = image(batch, 3, 4, 5), plan(model)
    fused, (group,) = found.apply(), found.groups
    saved = count_launches(lambda: model(x)).count - count_launches(lambda: fused(x)).count
    in_one_piece = group.saved_in_one_piece * (batch == 1)
    assert saved == group.launches_saved + in_one_piece
    assert group.saved_in_one_piece == 2 * activation


def test_split_bytes_are_what_copies_of_the_branches_move():
    (group,) = plan(net(ab, a=conv(4), b=conv(2))).groups
    assert group.split_bytes == 2 * 6 * 8  # read and written, six channels of float64
    (group,) = plan(net(ab, a=conv(4), b=conv(2)).half()).groups
    assert group.split_bytes == 2 * 6 * 2


# The activation that follows every member.

FOLLOWERS = {
    "module": (lambda self, y: self.relu(y), nn.ReLU),
    "module by keyword": (lambda self, y: self.relu(input=y), nn.ReLU),
    "module in place": (lambda self, y: self.relu_(y), nn.ReLU),
    "function": (lambda self, y: F.relu(y), nn.ReLU),
    "function by keyword": (lambda self, y: F.relu(input=y), nn.ReLU),
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
    "with a backward hook": (lambda self, y: self.hooked_backward(y), None),
    "a subclass": (lambda self, y: self.own(y), nn.ReLU),
    "clamp": (lambda self, y: y.clamp(0), None),
    "with weights": (lambda self, y: self.prelu(y), None),
}


class OwnReLU(nn.ReLU):
    """A ReLU that doubles."""

    def forward(self, x):
        return 2 * super().forward(x)


def triple_output(module, args, output):
    return 3 * output


def triple_gradient(module, gradients, _):
    return (3 * gradients[0],)


def followed(follow):
    """Three siblings, each with something behind it."""
    hooked, backward = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(triple_output)
    backward.register_full_backward_hook(triple_gradient)
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
    found = {k: g for k, g in (named | separate).items() if "stacked" not in k}
    return dict(sorted(found.items()))


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


def test_an_activation_with_a_hook_may_do_anything():
    model, x = followed(lambda self, y: self.hooked(y)), image()
    groups = plan(model).groups
    assert not any(group.fused for group in groups)
    assert "the output of a goes to `ReLU` (hooked)" in groups[0].reason
    assert exact(run(fuse(model), x), run(model, x))


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
    assert calls[1].kwargs == {"inplace": True}
    assert exact(run(undone, x), run(model, x))


def test_one_slope_for_all_would_be_wrong():
    model, x = net(unlike_slopes, a=conv(4), b=conv(4)), image()
    fused = fuse(model)
    (stacked,) = stacked_layers(fused)
    y = nn.LeakyReLU(0.1)(stacked.product(x))
    assert "entries differ" in differ(y[:, 4:], model(x)[1], 1e-6)


def relu_then_write(self, x):
    a, b = F.relu(self.a(x)), F.relu(self.b(x))
    return a.add_(1), b


def test_autograd_still_notices_that_a_result_it_needs_was_changed():
    """The separate layers would fail, and so must the stacked ones: not answer wrongly."""
    model = net(relu_then_write, a=conv(4), b=conv(4))
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


def pruned(model):
    with torch.no_grad():  # else it cannot be copied
        prune.random_unstructured(model.a, "weight", 0.5)


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
    return y.as_strided((2, 20), (80, 1))


fx.wrap("odd_function")


def consumed(consume):
    """Three siblings, and something that reads the output of the first."""
    return lambda: net(
        lambda self, x: (consume(self.a(x)), self.b(x), self.c(x)),
        a=conv(4),
        b=conv(4),
        c=conv(2),
    )


def strided(y):
    return y * y.stride(0)


def bc(self, x):
    return self.b(x), self.c(x)


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
        "outputs by hand",
    ),
    "hook before": (
        lambda: with_member(hook("register_forward_pre_hook", lambda m, a: a[0] * 2)),
        "unfit",
        r"hooks of a was \['forward_pre'\]",
        "outputs by hand",
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
        lambda: with_member(pruned),
        "unfit",
        r"hooks of a was \['forward_pre'\]",
        "keys by hand",
    ),
    "own forward": (
        lambda: with_member(lambda m: setattr(m.a, "forward", torch.sin)),
        "unfit",
        r"extras of a was \['forward'\]",
        "outputs by hand",
    ),
    "subclass": (
        lambda: with_member(lambda m: setattr(m, "a", Doubling(3, 4, 1))),
        "unfit",
        "type of a was Doubling",
        "outputs by hand",
    ),
    "parametrization": (
        lambda: with_member(parametrised),
        "unfit",
        "type of a was ParametrizedConv2d",
        "keys by hand",
    ),
    "weight_norm": (
        lambda: with_member(lambda m: parametrizations.weight_norm(m.a)),
        "unfit",
        "type of a was ParametrizedConv2d",
        "keys by hand",
    ),
    "quantised": (
        lambda: with_member(quantised),
        "unfit",
        "type of a was Conv2d; .* itself",
        "fails by hand",
    ),
    "groups": (
        lambda: with_member(lambda m: setattr(m, "a", conv(3, groups=3))),
        "unfit",
        "groups of a was 3; 1 fits",
        "fails by hand",
    ),
    "called again": (
        lambda: net(called_twice, a=conv(4), b=conv(4), c=conv(2)),
        "called_again",
        "a is called 2 times; 1 fits",
        "fails: not callable|was fused with its siblings",
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
        "fails: not callable|was fused with its siblings",
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
        "fails: has no attribute|was fused",
    ),
    "bias read": (
        lambda: net(bias_read, a=conv(4), b=conv(4), c=conv(2)),
        "shared_tensors",
        "bias of a is read by the graph",
        "fails: has no attribute|was fused",
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
        "fails: view size is not compatible",
    ),
    "stride": (
        consumed(lambda y: y * y.stride(0)),
        "layout_matters",
        "the output of a goes to `stride`",
        "outputs",
    ),
    "stride of the activation": (
        lambda: net(
            lambda self, x: [strided(self.a(x).relu()), *(y.relu() for y in bc(self, x))],
            a=conv(4),
            b=conv(4),
            c=conv(2),
        ),
        "layout_matters",
        "the output of a goes to `stride`",
        "outputs of one image",  # of several each branch has an activation of its own
    ),
    "unknown function": (
        consumed(lambda y: odd_function(y)),
        "layout_matters",
        r"the output of a goes to `odd_function`",
        "outputs",
    ),
    "view as another dtype": (
        consumed(lambda y: y.transpose(1, 2).transpose(1, 2).view(torch.int64)),
        "layout_matters",
        "the output of a goes to `view`",
        "fails: reshape",
    ),
    "view as another dtype by name": (
        consumed(lambda y: y.view(dtype=torch.int64)),
        "layout_matters",
        "the output of a goes to `view`",
        "fails: reshape",
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
        monkeypatch.setattr(layers, "refusal", lambda members, embed: "")
    if rule == "shared_tensors":  # whoever owns what is read may also write to it
        monkeypatch.setattr(effects, "_tensors_read", lambda graph, modules: {})


def step(model, x):
    """Outputs after a step of gradient descent, and the weights."""
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    sum((y**2).sum() for y in run(model, x)).backward()
    optimiser.step()
    return *run(model, x), *model.state_dict().values()


def input_gradient(model, x):
    x = x.clone().requires_grad_()
    sum((y**2).sum() for y in model(x)).backward()
    return x.grad


LOOKS = {
    "outputs": run,
    "outputs of one image": lambda model, x: run(model, x[:1]),
    "a step": step,
    "gradient of the input": input_gradient,
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", RULE_CASES)
def test_a_layer_that_cannot_be_fused_is_refused_by_name(name):
    model, x = made(name), image()
    found = plan(model)
    (refused,) = [group for group in found.groups if not group.fused]
    (member,) = refused.members
    assert member in refused.reason
    assert re.search(RULE_CASES[name][2], refused.reason), refused.reason
    assert fused_members(found) == [{"b", "c"}]
    fused = found.apply()
    if name != "quantised":  # which takes quantised inputs only
        check_same(run(fused, x), run(model, x))
    assert list(fused.state_dict()) == list(model.state_dict())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", RULE_CASES)
def test_fusing_it_anyway_would_change_the_result(name, monkeypatch):
    _, rule, _, seen = RULE_CASES[name]
    model, x = made(name), image()
    if seen.endswith("by hand"):
        check_by_hand(model, x, seen)
        return
    switch_off(monkeypatch, rule)
    if seen in LOOKS:
        assert fused_members(plan(model)) == [{"a", "b", "c"}]
        with pytest.raises((Disagreement, FusionError), match=r"differ|shape|state_dict"):
            check_look(LOOKS[seen], fuse(model), model, x)
    else:
        with pytest.raises(FAILURES, match=seen.removeprefix("fails: ")):
            run(fuse(model), x)


def check_look(look, fused, model, x):
    """Hold what one sees of a fused network to what one sees of the model."""
    actual = _pytree.tree_leaves(look(fused, x))
    check_same(actual, _pytree.tree_leaves(look(model, x)), 1e-6)


FAILURES = (TypeError, RuntimeError, AttributeError, FusionError)


def check_by_hand(model, x, seen):
    """That the three layers, stacked as they are, are not the three layers."""
    members = {name: getattr(model, name) for name in "abc"}
    if seen == "fails by hand":
        with pytest.raises((TypeError, AttributeError, ValueError)):
            layers.Stacked(members)
        return
    stacked = layers.Stacked(members)
    if seen == "keys by hand":
        assert set(stacked.state_dict()) != set(model.state_dict())
    else:
        with pytest.raises(Disagreement, match=r"entries differ|shape"):
            check_same(run(stacked, x), run(model, x), 1e-6)


def test_lazy_layers_are_refused():
    """Their weights are not there yet; nor is the number of their input channels."""
    model = net(ab, a=nn.LazyConv2d(4, 1), b=nn.LazyConv2d(5, 1))
    found = plan(model)
    assert [group.members for group in found.groups] == [("a",), ("b",)]
    assert [group.c_out for group in found.groups] == [(4,), (5,)]
    for group, name in zip(found.groups, "ab", strict=True):
        assert group.reason.startswith(f"type of {name} was LazyConv2d; ")
    with pytest.raises((ValueError, RuntimeError)):
        layers.Stacked({"a": model.a, "b": model.b})
    fused, x = found.apply(), image()
    torch.manual_seed(0)
    actual = fused(x)
    torch.manual_seed(0)
    assert exact(actual, model(x))


# A change between the siblings.


def add_1(x):
    return x.add_(1)


def adds_1(self, x):
    x += 1


def written_to(change):
    """The input of two siblings changes between them."""

    def forward(self, x):
        x = x * 1  # not the caller's
        a = self.a(x)
        change(self, x)
        return a, self.b(x)

    return lambda: net(
        forward,
        a=conv(4),
        b=conv(2),
        relu=nn.ReLU(inplace=True),
        norm=nn.BatchNorm2d(3, affine=False),
    )


def hand_made(change):
    """The same, as a graph: what torch.fx does not write down itself."""

    def make():
        model, graph = pair(), fx.Graph()
        x = graph.call_function(torch.mul, (graph.placeholder("x"), 1))
        a = graph.call_module("a", (x,))
        change(graph, x)
        graph.output((a, graph.call_module("b", (x,))))
        return fx.GraphModule(model, graph)

    return make


fx.wrap("add_1")

CHANGES = {
    "method": (written_to(lambda self, x: x.relu_()), "relu_"),
    "module": (written_to(lambda self, x: self.relu(x)), "ReLU"),
    "function": (written_to(lambda self, x: F.relu(x, inplace=True)), "relu"),
    "augmented": (written_to(adds_1), "iadd"),
    "out=": (written_to(lambda self, x: torch.neg(x, out=x)), "neg"),
    "through a view": (written_to(lambda self, x: x[:, 0].mul_(2)), "mul_"),
    "through chunk": (written_to(lambda self, x: x.chunk(3, 1)[1].zero_()), "zero_"),
    "through a transposed view": (
        written_to(lambda self, x: x.transpose(2, 3)[:, 1:].exp_()),
        "exp_",
    ),
    "unknown function": (written_to(lambda self, x: add_1(x)), "add_1"),
    "foreach": (
        written_to(lambda self, x: torch._foreach_add_([x * 1, x], 1)),
        "_foreach_add_",
    ),
    "operator": (
        hand_made(lambda graph, x: graph.call_function(operator.iadd, (x, 1))),
        "iadd",
    ),
    "setitem": (
        hand_made(lambda graph, x: graph.call_function(operator.setitem, (x, 0, 7.0))),
        "setitem",
    ),
    "aten": (
        hand_made(lambda graph, x: graph.call_function(torch.ops.aten.neg_.default, (x,))),
        "neg_",
    ),
}


@pytest.mark.parametrize(("make", "called"), CHANGES.values(), ids=CHANGES)
def test_an_input_changed_between_siblings(make, called, monkeypatch):
    model, x = make(), image()
    found = plan(model)
    assert fused_members(found) == []
    (group,) = found.groups
    assert group.members == ("a", "b")
    assert re.search(
        rf"^`{called}.*` \(\w+\) may change their input between a and b", group.reason
    ), group.reason
    check_same(run(found.apply(), x), run(model, x))
    monkeypatch.setattr(effects, "written", lambda *_: [])
    fused = fuse(model)
    assert len(stacked_layers(fused)) == 1
    with pytest.raises(Disagreement, match="entries differ"):
        check_same(run(fused, x), run(model, x), 1e-6)


def two_before_two_after(self, x):
    x = x * 1
    a, b = self.a(x), self.b(x)
    x.relu_()
    return a, b, self.c(x), self.d(x)


def test_siblings_on_either_side_of_a_change_are_two_groups():
    model = net(two_before_two_after, a=conv(4), b=conv(2), c=conv(3), d=conv(1))
    found, x = plan(model), image()
    assert fused_members(found) == [{"a", "b"}, {"c", "d"}]
    check_same(run(found.apply(), x), run(model, x))
    assert exact(run(unfuse(found.apply()), x), run(model, x))


def test_a_follower_may_change_an_output_in_place_between_siblings():
    model = net(
        lambda self, x: (self.relu(self.a(x)), self.relu(self.b(x))),
        a=conv(4),
        b=conv(2),
        relu=nn.ReLU(inplace=True),
    )
    x = image()
    assert fused_members(plan(model)) == [{"a", "b"}]
    check_same(run(fuse(model), x), run(model, x))


# A mode between the siblings.


def under_modes(*switches):
    """a, then the switches, then b, in a graph made by hand."""

    def make():
        model, graph = pair(), fx.Graph()
        x = graph.placeholder("x")
        results = [graph.call_module("a", (x,)), None]
        last = None
        for function, args in switches:
            last = graph.call_function(function, args or (last,))
        results[1] = graph.call_module("b", (x,))
        if len(switches) == 1 and last is not None and "autocast" in str(last.target):
            graph.call_function(torch.amp.autocast_mode._exit_autocast, (last,))
        elif last is not None and "grad" in str(last.target):
            graph.call_function(torch._C._set_grad_enabled, (True,))
        graph.output(tuple(results))
        return fx.GraphModule(model, graph)

    return make


AUTOCAST = (
    torch.amp.autocast_mode._enter_autocast,
    ("cpu", torch.bfloat16, True, None),
)
MODES = {
    "no_grad": (under_modes((torch._C._set_grad_enabled, (False,))), "_set_grad_enabled"),
    "autocast": (under_modes(AUTOCAST), "_enter_autocast"),
}


@pytest.mark.parametrize(("make", "called"), MODES.values(), ids=MODES)
def test_a_mode_switched_between_siblings(make, called, monkeypatch):
    model, x = make().float(), image().float()
    found = plan(model)
    (group,) = found.groups
    assert not group.fused
    assert group.reason.startswith(f"`{called}` ({called}")
    assert group.reason.endswith("may change their input between a and b")

    def look(model):
        return [(y.dtype, y.requires_grad) for y in run(model, x)]

    assert look(found.apply()) == look(model)
    monkeypatch.setattr(effects, "MODES", frozenset())
    fused = fuse(model)
    assert len(stacked_layers(fused)) == 1
    assert look(fused) != look(model)


def test_an_activation_under_another_mode_is_not_moved(monkeypatch):
    def make():
        model, graph = pair(), fx.Graph()
        x = graph.placeholder("x")
        results = [graph.call_module(name, (x,)) for name in "ab"]
        graph.call_function(torch._C._set_grad_enabled, (False,))
        results = [graph.call_function(F.relu, (y,)) for y in results]
        graph.call_function(torch._C._set_grad_enabled, (True,))
        graph.output(tuple(results))
        return fx.GraphModule(model, graph)

    model, x = make(), image()
    (group,) = plan(model).groups
    assert group.fused
    assert group.activation is None
    assert not any(y.requires_grad for y in run(model, x))
    assert not any(y.requires_grad for y in run(fuse(model), x))
    monkeypatch.setattr(effects, "MODES", frozenset())
    assert all(y.requires_grad for y in run(fuse(model), x))


# What siblings must have in common.


def frozen_weight(model):
    model.a.requires_grad_(False)


def frozen_bias(model):
    model.a.bias.requires_grad_(False)


def in_eval(model):
    model.a.eval()


DIFFER = {
    "weight frozen": (frozen_weight, "requires_grad of weight differs: a False, b True; "),
    "bias frozen": (frozen_bias, "requires_grad of bias differs: a False, b True; "),
    "flag": (in_eval, "training differs: a False, b True; "),
}


@pytest.mark.parametrize(("change", "reason"), DIFFER.values(), ids=DIFFER)
def test_siblings_that_differ_are_refused(change, reason):
    model, x = pair(), image()
    change(model)
    found = plan(model)
    (group,) = found.groups
    assert not group.fused
    assert group.members == ("a", "b")
    assert group.reason.startswith(reason)
    fused = found.apply()
    assert exact(run(fused, x), run(model, x))
    flags = [m.training for m in (fused.a, fused.b)]
    assert flags == [model.a.training, model.b.training]
    wanted = {k: p.requires_grad for k, p in model.named_parameters()}
    assert {k: p.requires_grad for k, p in fused.named_parameters()} == wanted
    # Stacked anyway, both would be like the first.
    undone = layers.Stacked({"a": model.a, "b": model.b}).unstack()
    changed = {f"{n}.{k}": p for n, m in undone.items() for k, p in m.named_parameters()}
    assert (
        wanted != {k: p.requires_grad for k, p in changed.items()}
        or [m.training for m in undone.values()] != flags
    )


def test_two_frozen_and_two_not_are_two_groups():
    model = net(
        lambda self, x: (*abc(self, x), self.d(x)),
        a=conv(4),
        b=conv(2).requires_grad_(False),
        c=conv(3),
        d=conv(1).requires_grad_(False),
    )
    found, x = plan(model), image()
    assert fused_members(found) == [{"a", "c"}, {"b", "d"}]
    fused = found.apply()
    check_same(gradients(fused, x), gradients(model, x))
    assert set(gradients(model, x)) == {"a.weight", "a.bias", "c.weight", "c.bias"}


def test_one_left_alone_is_told_what_the_others_have():
    model = net(abc, a=conv(4), b=conv(2), c=conv(3).requires_grad_(False))
    found = plan(model)
    assert fused_members(found) == [{"a", "b"}]
    (refused,) = [group for group in found.groups if not group.fused]
    assert refused.members == ("c",)
    assert refused.reason.startswith(
        "requires_grad of weight differs: a True, b True, c Fal"
    )


def test_the_last_that_could_be_fused_is_told_that_it_is_alone():
    model = pair()
    model.a.register_forward_hook(double_output)
    reasons = {group.members: group.reason for group in plan(model).groups}
    assert reasons["b",] == "no other layer that reads its input can be fused"


@pytest.mark.parametrize("least", [2, 3, 4])
def test_smaller_groups_than_min_siblings_are_refused(least):
    """The answer would be right, too: this is a matter of taste."""
    model, x = net(abc, a=conv(4), b=conv(2), c=conv(1)), image()
    found = plan(model, min_siblings=least)
    (group,) = found.groups
    assert group.fused is (least < 4)
    assert group.reason == ("" if least < 4 else "3 siblings; min_siblings is 4")
    check_same(run(found.apply(), x), run(model, x))


def test_one_sibling_that_feeds_another_does_not_read_the_same_input():
    model, x = net(lambda self, x: self.b(self.a(x)), a=conv(3), b=conv(3)), image()
    assert plan(model).groups == ()
    assert exact(run(fuse(model), x), run(model, x))


# Arguments.


@pytest.mark.parametrize("least", [1, 0, -2, 2.0, "2", True, None, [2]], ids=repr)
def test_wrong_min_siblings(least):
    with pytest.raises(
        FusionError, match=r"^min_siblings was .*; a whole number from 2 fits"
    ):
        plan(pair(), min_siblings=least)


@pytest.mark.parametrize("accept", [1, "yes", True, []], ids=repr)
def test_wrong_accept(accept):
    with pytest.raises(FusionError, match=r"^accept was .*; a function of a group fits"):
        plan(pair(), accept=accept)


@pytest.mark.parametrize(
    "answer", [None, False, 1, "", ["no"], torch.tensor(True)], ids=repr
)
def test_wrong_answers_of_accept(answer):
    with pytest.raises(
        FusionError, match=r"^accept returned .*; True or a reason, a string"
    ):
        plan(pair(), accept=lambda group: answer)


@pytest.mark.parametrize("model", [None, 5, "model", nn.Linear], ids=str)
@pytest.mark.parametrize("call", [plan, fuse])
def test_wrong_models(call, model):
    with pytest.raises(FusionError, match=r"^model was a \w+; an nn.Module fits"):
        call(model)


@pytest.mark.parametrize("other", [None, 5, pair(), nn.Linear(1, 1)], ids=type)
def test_only_what_fuse_returned_can_be_unfused(other):
    with pytest.raises(FusionError, match=r"^fused was a \w+; what fuse\(\) returned fits"):
        unfuse(other)


def test_what_was_unfused_cannot_be_unfused_again():
    with pytest.raises(FusionError, match=r"^fused was a \w+; "):
        unfuse(unfuse(fuse(pair())))


def test_accept_is_asked_about_each_group_that_could_be_fused():
    model = net(
        lambda self, x: (*abc(self, x), self.d(x), self.e(x)),
        a=conv(4),
        b=conv(2),
        c=conv(3, 3),
        d=conv(1, 3),
        e=conv(2),
    )
    model.e.register_forward_hook(double_output)
    asked = []

    def accept(group):
        asked.append(group)
        assert group.fused
        assert list(group.layers) == list(group.members)
        assert group.layers[group.members[0]] is getattr(model, group.members[0])
        return True if group.members == ("a", "b") else "not worth it"

    found, x = plan(model, accept=accept), image()
    assert [group.members for group in asked] == [("a", "b"), ("c", "d")]
    answers = {group.members: (group.fused, group.reason) for group in found.groups}
    assert answers["a", "b"] == (True, "")
    assert answers["c", "d"] == (False, "not worth it")
    assert len(answers) == 3
    assert "refused: not worth it" in str(found)
    fused = found.apply()
    assert [set(s.names) for s in stacked_layers(fused)] == [{"a", "b"}]
    check_same(run(fused, x), run(model, x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "a", nn.ReLU()), "{a,b} are no siblings any more; plan it"),
        (lambda m: setattr(m, "a", conv(4, 3)), "{a,b} are no siblings any more; plan it"),
        (lambda m: delattr(m, "a"), "has no attribute 'a'"),
        (lambda m: m.a.register_forward_hook(double_output), "hooks of a was ['forward']"),
        (
            lambda m: m.register_forward_hook(double_output),
            "model has forward hooks, which",
        ),
        (lambda m: m.a.half(), "dtype differs: a torch.float16, b torch.float64"),
        (lambda m: setattr(m.a, "weight", m.spare.weight), "shares memory with spare"),
        (lambda m: setattr(m, "b", m.a), "a is called 2 times; 1 fits"),
        (lambda m: setattr(m, "relu", Doubled(m)), "a is also relu.model.a"),
        (lambda m: setattr(m, "stop", True), "model cannot be traced: it stops at"),
    ],
)
def test_a_model_that_changed_since_it_was_planned(change, message):
    model = changing()
    found = plan(model)
    assert len(stacked_layers(found.apply())) == 1
    change(model)
    with pytest.raises(
        FusionError, match=r"^model has changed since it was planned: "
    ) as e:
        found.apply()
    assert message in str(e.value)


def changing():
    """Two siblings with an activation, and much that can be changed."""

    def forward(self, x):
        if self.stop and x.sum() > 0:
            return x
        x = x * self.factor + torch.full((1,), self.shift)
        a, b = self.relu(self.a(x)), self.relu(self.b(x))
        return (a, b) if self.plain else (a * 2, b, torch.ones(2))

    model = net(forward, a=conv(4), b=conv(5), relu=nn.LeakyReLU(0.1))
    model.spare = conv(4)
    for name, value in {"stop": False, "factor": 2, "shift": 1.0, "plain": True}.items():
        setattr(model, name, value)
    return model


class Doubled(nn.Module):
    """An activation that knows the model."""

    def __init__(self, model):
        super().__init__()
        self.model = nn.ModuleDict({"a": model.a})

    def forward(self, x):
        return x.relu()


CHANGES = {
    "attribute": lambda m: setattr(m, "factor", 3),
    "constant": lambda m: setattr(m, "shift", 3.0),
    "control flow": lambda m: setattr(m, "plain", False),
    "slope": lambda m: setattr(m.relu, "negative_slope", 0.5),
    "activation": lambda m: setattr(m, "relu", nn.Sigmoid()),
    "activation with weights": lambda m: setattr(m, "relu", nn.PReLU()),
    "width": lambda m: setattr(m, "a", conv(7)),
    "bias added": lambda m: setattr(m.a, "bias", nn.Parameter(torch.randn(4))),
    "bias deleted": lambda m: setattr(m.a, "bias", None),
    "stride": lambda m: [setattr(layer, "stride", (2, 2)) for layer in (m.a, m.b)],
    "dtype": lambda m: m.float().double(),
    "frozen": lambda m: m.requires_grad_(False),
    "weights": lambda m: m.load_state_dict(changing().state_dict(), assign=True),
    "new parameter": lambda m: setattr(
        m.a, "weight", nn.Parameter(torch.randn(4, 3, 1, 1))
    ),
    "forward of its class": lambda m: setattr(type(m), "forward", ab),
    "mode": lambda m: m.eval(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_fused_is_the_model_as_it_is_now(change):
    model, x = changing(), image()
    found = plan(model)
    change(model)
    fused = found.apply()
    assert len(stacked_layers(fused)) == 1
    check_same(run(fused, x), run(model, x))
    assert exact(run(unfuse(fused), x), run(model, x))


def test_a_plan_that_was_copied_or_edited():
    model, x = changing(), image()
    found = plan(model)
    check_same(run(copy.deepcopy(found).apply(), x), run(model, x))
    (group,) = found.groups
    bare = dataclasses.replace(group, activation=None, ends=group.nodes)
    none = dataclasses.replace(group, fused=False)
    for edited, stacked in ((bare, 1), (none, 0)):
        fused = dataclasses.replace(found, groups=(edited,)).apply()
        assert len(stacked_layers(fused)) == stacked
        assert not any(layer.activation for layer in stacked_layers(fused))
        check_same(run(fused, x), run(model, x))


def test_accept_is_not_asked_again():
    asked = []
    found = plan(changing(), accept=lambda group: asked.append(group) or True)
    assert len(stacked_layers(found.apply())) == len(asked) == 1


def test_weights_that_changed_since_are_the_ones_that_are_fused():
    model, x = pair(), image()
    found = plan(model)
    with torch.no_grad():
        model.a.weight.mul_(2)
    first, second = found.apply(), found.apply()
    check_same(run(first, x), run(model, x))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    check_same(run(second, x), run(model, x))


def test_networks_of_one_plan_share_nothing():
    model = net(lambda self, x: [y.relu() for y in ab(self, x)], a=conv(4), b=conv(5))
    found = plan(model)
    first, second = found.apply(), found.apply()
    assert {*map(id, first.modules())}.isdisjoint(map(id, second.modules()))
    assert of_model(first) + of_model(second) == storages(
        [*first.parameters(), *second.parameters()]
    )
    assert first.graph is not second.graph


def test_stacked_layers_of_one_group_share_no_hooks():
    model = net(lambda self, x: [y.relu() for y in ab(self, x)], a=conv(4), b=conv(5))
    (group,) = plan(model).groups
    first, second = group.stacked(), group.stacked()
    first.activation.register_forward_hook(double_output)
    x = image()
    check_same(list(second(x)), run(model, x))
    assert not exact(first(x), second(x))


def test_a_layer_that_was_fused_says_so_when_it_is_called():
    with pytest.raises(FusionError) as error:
        fuse(pair()).a(image())
    assert str(error.value) == (
        "this layer was fused with its siblings; call unfuse() first"
    )


class OwnState(nn.Module):
    """A model with a state_dict() of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(), conv()

    forward = ab

    def state_dict(self, *args, **kwargs):
        return {f"model.{k}": v for k, v in super().state_dict(*args, **kwargs).items()}


def test_a_state_of_its_own_making_is_refused():
    with pytest.raises(FusionError, match=r"state_dict\(\) of its own making, with "):
        fuse(OwnState())


# The table.


def test_the_table_by_hand():
    model = net(
        lambda self, x: (
            *(y.relu() for y in abc(self, x)),
            self.q(x),
            self.k(x),
            self.d(x),
        ),
        a=conv(40),
        b=conv(5, bias=False),
        c=conv(6),
        q=linear(4, 5),
        k=linear(4, 5).requires_grad_(False),
        d=conv(1),
    )
    model.d.register_forward_hook(double_output)
    lines = str(plan(model)).splitlines()
    assert lines[0].split() == ["members", "c_out", "then", "saved", "B/px"]
    assert lines[1].split() == ["{a,b,c}", "40+5+6", "ReLU", "1", "to", "3", "0"]
    assert lines[2].split() == ["{q,k}", "4+4", "0"]
    assert lines[3].startswith("    refused: requires_grad of weight differs")
    assert lines[-1] == "1 of 3 groups fused; Conv2d 4 -> 2 calls; Linear 2 -> 2 calls"
    assert all(len(line) <= 80 for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_a_reason_that_is_long_goes_on_below_where_it_began():
    """76 columns, of which "    refused: " takes 13."""
    for last, shown in ((31, " {}"), (32, "\n    {}")):
        words = "x" * 31, "y" * last
        text = str(plan(pair(), accept=lambda group, words=words: " ".join(words)))
        assert f"\n    refused: {words[0]}{shown.format(words[1])}\n0 of 1" in text


SHORT = {
    "{b1,b3}.conv": ["b1.conv", "b3.conv"],
    "{a,b,c}": ["a", "b", "c"],
    "net.layer.{q,k}": ["net.layer.q", "net.layer.k"],
    "net.{a,b}.p.conv.inner": ["net.a.p.conv.inner", "net.b.p.conv.inner"],
    "net.{a.conv,b}.p": ["net.a.conv.p", "net.b.p"],
    "net.only.one": ["net.only.one"],
}


@pytest.mark.parametrize("short", SHORT)
def test_what_paths_have_in_common_is_written_once(short):
    assert rewrite._short(SHORT[short]) == short


def test_a_table_without_siblings():
    assert str(plan(nn.Sequential(nn.ReLU()))) == "no siblings"


def test_plans_cannot_be_changed():
    found = plan(pair())
    with pytest.raises(AttributeError):
        found.groups = ()
    with pytest.raises(AttributeError):
        found.groups[0].fused = False
    assert "model=" not in repr(found)


# Whole networks.


def test_googlenet_in_float64():
    model = models.randomise(models.GoogLeNet(classes=10)).eval()
    found, x = plan(model), image(1, 3, 32, 32)
    assert found.calls["Conv2d"] == (57, 39)
    fused = found.apply()
    convolutions = [m for m in fused.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 39
    assert sum(n == "convolution" for n in count_launches(lambda: fused(x)).names) == 39
    check_same(run(fused, x), run(model, x), 1e-10)
    assert same_state(fused, model)
    assert same_state(unfuse(fused), model)
    folded = hfusion.fold_batchnorm(model)
    both = plan(folded)
    assert both.calls["Conv2d"] == (57, 39)
    assert all(type(g.activation) is nn.ReLU for g in both.groups)
    check_same(run(both.apply(), x), run(model, x), 1e-10)


def test_a_network_of_other_weights_would_be_seen():
    model = models.randomise(models.GoogLeNet(classes=10)).eval()
    other = models.randomise(models.GoogLeNet(classes=10), seed=1).eval()
    x = image(1, 3, 32, 32)
    with pytest.raises(Disagreement, match="entries differ"):
        check_same(run(fuse(other), x), run(model, x), 1e-3)


def test_trained_digits_give_the_same_answer_on_every_test_image():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = torch.from_numpy(digits.images[:, None] / 16).float()
    y = torch.from_numpy(digits.target)
    _, x, _, y = (
        torch.as_tensor(part)
        for part in train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    )
    torch.set_default_dtype(torch.float32)
    model = models.Digits.trained()
    fused = fuse(hfusion.fold_batchnorm(model))
    with torch.no_grad():
        expected, actual = model(x).argmax(1), fused(x).argmax(1)
        wrong = fuse(hfusion.fold_batchnorm(models.randomise(models.Digits()).eval()))
        assert not torch.equal(wrong(x).argmax(1), expected)
    assert len(x) == 450
    assert torch.equal(actual, expected)
    assert (actual == y).double().mean() > 0.95


# A good citizen: the original.


def everything(model):
    """What fusing must leave alone."""
    return {
        "tensors": [
            (key, id(t), t.clone(), t.requires_grad, t.grad)
            for key, t in model.state_dict(keep_vars=True).items()
        ],
        "modules": [(path, id(m), m.training) for path, m in model.named_modules()],
        "attributes": {path: set(vars(m)) for path, m in model.named_modules()},
        "tables": {path: list(m._modules) for path, m in model.named_modules()},
    }


@pytest.mark.parametrize("given_as", ["module", "graph"])
@pytest.mark.parametrize("name", ["Inception", "attention", "views", "chained"])
def test_the_original_is_untouched(name, given_as):
    make, shape, _ = FORMS[name]
    model = fx.symbolic_trace(make()) if given_as == "graph" else make()
    list(model.modules())[1].eval()
    before, code = everything(model), getattr(model, "code", None)
    fused = fuse(model)
    run(fused, image(*shape))
    with torch.no_grad():
        for tensor in (*fused.parameters(), *fused.buffers()):
            tensor.zero_()
    unfuse(fused)
    after = everything(model)
    assert getattr(model, "code", None) == code
    for key in ("modules", "attributes", "tables"):
        assert after[key] == before[key]
    for old, new in zip(before["tensors"], after["tensors"], strict=True):
        assert old[:2] == new[:2]
        assert torch.equal(old[2], new[2])
        assert old[3:] == new[3:]


def storages(tensors):
    """Bytes of the distinct storages of tensors."""
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def of_model(model):
    return storages([*model.parameters(), *model.buffers()])


def alive():
    gc.collect()
    return storages(
        [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)]
    )


def big_inception():
    return models.Inception((48, 64, 32, 16, 16, 16, 16))


class Listed(nn.Module):
    """A container that knows its layers by a plain list, too."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(64, 32), nn.Linear(64, 16)
        self.order = [self.q, self.k]

    def forward(self, x):
        return [layer(x) for layer in self.order]


def listed():
    return net(lambda self, x: self.block(x), block=Listed())


@pytest.mark.parametrize("make", [big_inception, listed])
def test_no_weight_is_stored_twice(make):
    before = alive()
    model = make()
    size, total = of_model(model), alive() - before
    assert size == total > 0
    fused = fuse(model)
    assert len(stacked_layers(fused)) == 1
    assert of_model(fused) == size
    del model
    assert alive() - before == total
    undone = unfuse(fused)
    assert of_model(undone) == size
    del fused
    assert alive() - before == total
    assert undone is not None


def test_a_weight_stored_twice_would_be_seen():
    before = alive()
    model = big_inception()
    fused, total = fuse(model), of_model(model)
    assert alive() - before >= 2 * total
    assert fused is not None


# A good citizen: states.


class Three(nn.Module):
    """A class of its own, so that it can be pickled."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(4), conv(2, bias=False), conv(1)

    forward = abc


def three():
    """Three siblings below a container, one without a bias, and others."""
    norm = nn.BatchNorm2d(3)
    model = net(lambda self, x: (*self.block(x), self.norm(x)), block=Three(), norm=norm)
    return models.randomise(model)


def inside(model):
    """In a bigger module of one's own."""
    return net(
        lambda self, x: self.head(self.body(x)[0].mean((2, 3))),
        body=model,
        head=linear(2, 4),
    )


def test_a_fused_network_inside_a_bigger_one():
    model, other, x = inside(three()), inside(three()), image()
    outer = inside(fuse(model.body))
    outer.head.load_state_dict(model.head.state_dict())
    assert same_state(outer, model)
    assert not any("stacked" in key for key in outer.state_dict())
    check_same(run(outer, x), run(model, x))
    outer.load_state_dict(other.state_dict())
    check_same(run(outer, x), run(other, x))
    model.load_state_dict(outer.state_dict())
    assert exact(run(model, x), run(other, x))
    check_same(run(copy.deepcopy(outer), x), run(other, x))
    prefixed = outer.body.state_dict(prefix="some.where.")
    assert list(prefixed) == [f"some.where.{key}" for key in model.body.state_dict()]


def test_fused_twice():
    model, x = inside(three()).eval(), image()
    outer = inside(fuse(model.body)).eval()
    outer.head.load_state_dict(model.head.state_dict())
    for again in (fuse(outer), fuse(fuse(model)), fuse(fuse(fuse(model)))):
        check_same(run(again, x), run(model, x))
        assert same_state(again, model)
        assert len(stacked_layers(again)) == 1
        check_same(run(copy.deepcopy(again), x), run(model, x))
        other = inside(three()).eval()
        again.load_state_dict(other.state_dict())
        check_same(run(again, x), run(other, x))
    undone = unfuse(fuse(fuse(model)))
    assert exact(run(undone, x), run(model, x))
    assert same_state(undone, model)
    assert fused_members(plan(undone)) == fused_members(plan(model))


def test_what_one_plan_left_the_next_may_fuse():
    model, x = net(abc, a=conv(4), b=conv(2), c=conv(1)), image()
    first = plan(model, accept=lambda group: "not now").apply()
    assert not stacked_layers(first)
    second = fuse(first)
    assert len(stacked_layers(second)) == 1
    check_same(run(second, x), run(model, x))
    assert same_state(unfuse(second), model)


def broken(change):
    state = three().state_dict()
    change(state)
    return state


STATES = {
    "missing weight": (lambda s: s.pop("block.a.weight"), "Missing key.*block.a.weight"),
    "missing bias": (lambda s: s.pop("block.c.bias"), "Missing key.*block.c.bias"),
    "missing elsewhere": (lambda s: s.pop("norm.bias"), "Missing key.*norm.bias"),
    "unexpected": (lambda s: s.update(other=torch.ones(1)), "Unexpected key.*other"),
    "unexpected in a container": (
        lambda s: s.update({"block.d.weight": torch.ones(1)}),
        "Unexpected key.*block.d.weight",
    ),
    "a bias that is not there": (
        lambda s: s.update({"block.b.bias": torch.ones(2)}),
        "Unexpected key.*block.b.bias",
    ),
    "something in a member": (
        lambda s: s.update({"block.a.scale": torch.ones(2)}),
        "Unexpected key.*block.a.scale",
    ),
    "another shape": (
        lambda s: s.update({"block.a.weight": torch.ones(5, 3, 1, 1)}),
        r"block.a.weight was \[5, 3, 1, 1\]; a tensor \[4, 3, 1, 1\] fits",
    ),
    "no tensor": (
        lambda s: s.update({"block.a.bias": "none"}),
        r"block.a.bias was str; a tensor \[4\] fits",
    ),
}


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(("change", "message"), STATES.values(), ids=STATES)
def test_a_state_that_does_not_fit_is_refused_with_the_users_own_keys(
    change, message, inner
):
    model, state = three(), broken(change)
    with pytest.raises(RuntimeError):
        model.load_state_dict(state)
    fused = fuse(model)
    if inner:
        fused = net(lambda self, x: self.m(x), m=fused)
        state = {f"m.{key}": value for key, value in state.items()}
    with pytest.raises(RuntimeError, match=message) as error:
        fused.load_state_dict(state)
    assert "stacked" not in str(error.value)
    assert "layer" not in str(error.value)


def test_not_strict_takes_what_there_is():
    model, other, x = three(), three(), image()
    fused = fuse(model)
    state = other.state_dict()
    del state["block.a.weight"], state["norm.weight"]
    state["extra"] = torch.ones(1)
    expected = model.load_state_dict(state, strict=False)
    result = fused.load_state_dict(state, strict=False)
    assert sorted(result.missing_keys) == sorted(expected.missing_keys)
    assert result.unexpected_keys == expected.unexpected_keys == ["extra"]
    assert same_state(fused, model)
    check_same(run(fused, x), run(model, x))


def test_states_are_not_changed_by_loading():
    state = three().state_dict()
    keys, values = list(state), [value.clone() for value in state.values()]
    fuse(three()).load_state_dict(state)
    assert list(state) == keys
    assert exact(list(state.values()), values)


def test_assign_takes_the_dtype_of_the_state():
    model, other, x = three(), three().float(), image()
    fused = fuse(model)
    fused.load_state_dict(other.state_dict(), assign=True)
    assert {p.dtype for p in fused.parameters()} == {torch.float32}
    check_same(run(fused, x.float()), run(other, x.float()), 1e-5)
    empty = fuse(three()).to("meta")
    empty.load_state_dict(model.state_dict(), assign=True)
    assert {p.device.type for p in empty.parameters()} == {"cpu"}
    check_same(run(empty, x), run(model, x))


def test_values_are_views_of_the_weights_as_everywhere_in_torch():
    fused, x = fuse(three()), image()
    with torch.no_grad():
        fused.state_dict()["block.a.weight"].zero_()
        fused.state_dict()["block.a.bias"].zero_()
    assert not run(fused, x)[0].any()
    kept = fused.state_dict(keep_vars=True)
    assert kept["block.a.weight"].requires_grad
    into = {}
    assert fused.state_dict(destination=into) is into
    assert list(into) == list(fused.state_dict())


def test_states_on_disk_without_running_code():
    model, other, x = three(), three(), image()
    for source, target in ((fuse(model), other), (model, fuse(other))):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        check_same(run(target, x), run(model, x))


def test_the_whole_network_on_disk():
    model, x = three(), image()
    fused = fuse(model)
    fused.block.eval()
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert exact(run(again, x)[:3], run(fused, x)[:3])
    assert same_state(again, fused)
    assert exact(run(unfuse(again), x)[:3], run(model, x)[:3])
    flags = {path: m.training for path, m in fused.named_modules()}
    assert {path: m.training for path, m in again.named_modules()} == flags


def spare():
    model = three()
    model.spare = nn.Linear(2, 2)
    model.register_buffer("hidden", torch.rand(2), persistent=False)
    model.scale = nn.Parameter(torch.rand(2))
    return model


def test_copies_are_whole_and_apart():
    model, x = spare(), image()
    fused = fuse(model)
    double = copy.deepcopy(fused)
    assert type(double).__mro__[1] is type(fused).__mro__[1]
    assert same_state(double, model)
    assert torch.equal(double.hidden, model.hidden)
    with torch.no_grad():
        for parameter in double.parameters():
            parameter.zero_()
    check_same(run(fused, x), run(model, x))
    assert same_state(fused, model)
    third = copy.deepcopy(copy.deepcopy(fused))
    assert same_state(third, model)
    assert same_state(unfuse(third), model)


def test_hooks_on_the_result_are_called():
    fused, called = fuse(three()), []
    fused.register_forward_hook(lambda *args: called.append("forward"))
    fused.register_state_dict_post_hook(lambda *args: called.append("state"))
    run(fused, image())
    fused.state_dict()
    assert called == ["forward", "state"]


# A good citizen: what torch does to modules.


def test_other_dtypes_and_devices():
    model, x = three().eval(), image()
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        fused = fuse(model).to(dtype)
        assert {p.dtype for p in fused.parameters()} == {dtype}
        assert fused.state_dict()["block.a.weight"].dtype == dtype
        expected = run(copy.deepcopy(model).to(dtype), x.to(dtype))
        check_same(run(fused, x.to(dtype)), expected, bound)
    half = fuse(model).half()
    check_same(run(half, x.half()), run(copy.deepcopy(model).half(), x.half()), 0.01)
    meta = fuse(model).to("meta")
    shapes = [y.shape for y in run(model, x)]
    assert [y.shape for y in meta(x.to("meta"))] == shapes
    assert (
        fuse(copy.deepcopy(model).to("meta")).state_dict().keys()
        == meta.state_dict().keys()
    )
    empty = fuse(copy.deepcopy(model).to("meta")).to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    check_same(run(empty, x), run(model, x))


def test_train_and_eval():
    model, x = three(), image()
    fused = fuse(model)
    for mode in (True, False, True):
        model.train(mode)
        fused.train(mode)
        assert {m.training for m in fused.modules()} == {mode}
        check_same(run(fused, x), run(model, x))
        assert exact(
            dict(fused.named_buffers())["norm.running_mean"], model.norm.running_mean
        )
    undone = unfuse(fused.eval())
    assert not any(m.training for m in undone.modules())


@pytest.mark.parametrize("training", [False, True])
def test_a_held_flag_stays_held(training):
    def forward(self, x):
        return F.dropout(self.a(x), training=self.training), self.b(x)

    model = net(forward, a=conv(), b=conv()).train(training)
    fused = fuse(model)
    for one in (fused, unfuse(fused), hfusion.fold_batchnorm(fused), copy.deepcopy(fused)):
        assert one.train(training) is one
        with pytest.raises(FusionError, match=f"^mode was {not training}; "):
            one.train(not training)
        assert one.training is training


@pytest.mark.parametrize("name", ["some biases", "attention", "chained", "Inception"])
def test_gradients_are_those_of_the_separate_layers(name):
    make, shape, _ = FORMS[name]
    model, x = make(), image(*shape)
    expected = gradients(model, x)
    assert {key for key, p in model.named_parameters() if p.requires_grad} == set(expected)
    check_same(gradients(fuse(model), x), expected, 1e-11)


def test_gradients_of_the_input_and_none_of_frozen_layers():
    model, x = pair(), image()
    check_same(input_gradient(fuse(model), x), input_gradient(model, x), 1e-11)
    fused = fuse(model.requires_grad_(False))
    check_same(input_gradient(fused, x), input_gradient(model, x), 1e-11)
    assert all(p.grad is None for p in fused.parameters())


OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
def test_steps_of_an_optimiser_are_those_of_the_separate_layers(optimiser):
    model, x = three(), image()
    fused, before = fuse(model), copy.deepcopy(model)
    for one in (model, fused):
        steps = optimiser(one.parameters())
        for _ in range(3):
            steps.zero_grad()
            sum(((y - 1) ** 2).mean() for y in run(one, x)).backward()
            steps.step()
    for key, expected in model.state_dict().items():
        agree(fused.state_dict()[key], expected, 1e-9)
    with pytest.raises(Disagreement):
        agree(
            before.state_dict()["block.a.weight"],
            model.state_dict()["block.a.weight"],
            1e-3,
        )
    unfused, y = unfuse(fused), run(model, x)
    check_same(run(unfused, x), y, 1e-8)


# A good citizen: compilers and exporters.

COMPILED = ("Inception", "some biases", "attention", "grouped queries", "gate and up")


@pytest.mark.parametrize("name", COMPILED)
def test_torch_compile_in_one_piece(name):
    make, shape, _ = FORMS[name]
    model, x = make().eval(), image(*shape)
    fused = fuse(model)
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    check_same(run(compiled, x), run(model, x))


@pytest.mark.parametrize("name", COMPILED)
def test_torch_export(name):
    make, shape, _ = FORMS[name]
    model, x = make().eval(), image(*shape)
    program = torch.export.export(fuse(model), (x,))
    check_same(run(program.module(), x), run(model, x))


@pytest.mark.skipif(
    " " in torch.__file__, reason="Inductor does not quote the path of torch's headers"
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_inductor():
    model, x = FORMS["Inception"][0]().eval(), image(2, 3, 5, 6)
    fused = fuse(hfusion.fold_batchnorm(model))
    torch._dynamo.reset()
    with torch.no_grad():
        check_same(run(torch.compile(fused), x), run(model, x), 1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["Inception", "some biases"])
def test_onnx(name):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    make, shape, groups = FORMS[name]
    torch.set_default_dtype(torch.float32)
    model, x = make().eval(), image(*shape).float()
    program = torch.onnx.export(fuse(model), (x,), dynamo=True, verbose=False)
    called = Counter(node.op_type for node in program.model.graph)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert called["Conv"] == convolutions - sum(len(group) - 1 for group in groups)


def test_traced_by_torch_fx_again():
    for make in (three, pair, small):
        model, x = make().eval(), image(2, 4, 5, 6) if make is small else image()
        check_same(run(fx.symbolic_trace(fuse(model)), x), run(model, x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("batch", [1, 2])
def test_traced_by_torch_jit(batch):
    """With one batch and run with another; a TracerWarning would be an error here."""
    model = small().eval()
    with torch.no_grad():
        traced = torch.jit.trace(fuse(model), (image(batch, 4, 5, 6),))
        x = image(3 - batch, 4, 5, 6)
        check_same(run(traced, x), run(model, x))


# Where an activation is applied once, and where to each branch.


def small():
    """An Inception module without norms."""
    model = models.randomise(models.Inception((4, 5, 6, 3, 2, 7, 1)))
    return hfusion.fold_batchnorm(model.eval())


LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def hoisted(model):
    """Fused, with every activation applied once, come what may."""
    found = plan(model)
    groups = tuple(dataclasses.replace(group, hoist=True) for group in found.groups)
    return dataclasses.replace(found, groups=groups).apply()


def read_by(network, path, x):
    """What a layer of a network gets."""
    seen = []
    hook = network.get_submodule(path).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    network(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_what_consumers_get_need_not_be_copied(layout, batch):
    form = LAYOUTS[layout]
    model, x = small().to(memory_format=form), image(batch, 4, 5, 6).to(memory_format=form)
    for path in ("b3.conv", "b5.conv"):
        for network in (model, fuse(model)):
            assert read_by(network, path, x).is_contiguous(memory_format=form)
        strided = not read_by(hoisted(model), path, x).is_contiguous(memory_format=form)
        assert strided == ((layout, batch) != ("NCHW", 1))


@pytest.mark.parametrize("make", [fuse, hoisted])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_and_gradients_are_the_same_either_way(make, layout, batch):
    form = LAYOUTS[layout]
    model, x = small().to(memory_format=form), image(batch, 4, 5, 6).to(memory_format=form)
    fused = make(model)
    check_same(run(fused, x), run(model, x))
    grads = []
    for network in (fused, model):
        pixels = x.clone().requires_grad_()
        (network(pixels) ** 2).sum().backward()
        grads.append(pixels.grad)
    convs = [unit.conv for unit in (model.b1, model.b3_reduce, model.b5_reduce)]
    whole = torch.cat([conv.weight.grad for conv in convs])
    check_same((grads[0], fused.stacked.layer.weight.grad), (grads[1], whole))


READERS = {
    "nobody copies": (lambda a, b, c: a * b + c, True),
    "one may copy": (lambda a, b, c: (a * b).sum() + c.flatten(1).sum(), True),
    "two may copy": (lambda a, b, c: a.sum() + b.sum() + c, False),
    "one is copied twice": (lambda a, b, c: a.sum() + a.mean() + b * c, False),
    "returned": (lambda a, b, c: (a, b, c), False),
    "facts are no numbers": (lambda a, b, c: a * b.shape[0] + b * c.size(1), True),
    "concatenated": (lambda a, b, c: torch.cat([a, b, c], 1), False),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_an_activation_is_applied_once_where_that_is_sure_to_save(name, batch):
    read, once = READERS[name]

    def forward(self, x):
        return read(*(y.relu() for y in abc(self, x)))

    model = net(forward, a=conv(4), b=conv(4), c=conv(4))
    found = plan(model)
    (group,) = found.groups
    assert group.hoist is once
    assert (group.launches_saved, group.saved_in_one_piece) == ((4, 0) if once else (2, 2))
    assert group.split_bytes == 2 * 12 * 8 * once
    x, fused = image(batch, 3, 4, 5), found.apply()
    check_same(run(fused, x), run(model, x))
    relus = count_launches(lambda: fused(x)).names.count("relu")
    assert relus == (1 if once or batch == 1 else 3)
    shown = str(found).splitlines()[1].split()
    assert shown[3:] == (["4", "192"] if once else ["2", "to", "4", "0"])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("make", [fuse, hoisted])
def test_where_it_is_applied_survives_copies_and_compilation(make, batch):
    model, x = small().eval(), image(batch, 4, 5, 6)
    fused = make(model)
    copies = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))]
    for double in copies:
        assert double.stacked.hoist is (make is hoisted)
        assert torch.equal(double(x), fused(x))
    torch._dynamo.reset()
    whole = torch.compile(fused, backend="eager", fullgraph=True)  # an error at a break
    assert torch.equal(whole(x), fused(x))
    check_same(run(hfusion.unfuse(fused), x), run(model, x))


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (nn.DataParallel, "got a DataParallel; give model.module"),
        (torch.compile, "got a OptimizedModule; give model._orig_mod"),
        (torch.jit.script, "got a ScriptModule; give the module that it was made from"),
    ],
)
@pytest.mark.parametrize("inputs", [None, torch.ones(1, 2)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_holds_a_model_is_named(wrap, says, inputs):
    with pytest.raises(FusionError, match=re.escape(says)):
        plan(wrap(nn.Linear(2, 2)), inputs)


def test_a_module_that_only_has_such_a_name_is_planned():
    assert plan(type("DataParallel", (nn.Sequential,), {})(nn.Linear(2, 2))).groups == ()
