"""rewrite.py and siblings.py: models of many forms, fused and undone.

The reference is always the model as it was, in float64. Without gradients the siblings
compute together, which their groups count; with gradients each computes for itself, and
every bit is the model's.
"""

import collections
import copy
import dataclasses
import gc
import io
import operator
import pickle
import re

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
    followers,
    fuse,
    layers,
    models,
    packed,
    plan,
    reading,
    rewrite,
    siblings,
    unfuse,
)
from hfusion.measure import Disagreement, agree, count_launches

pytestmark = pytest.mark.usefixtures("in_float64")


# Models, and how they are compared.


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


def abc(self, x):
    return self.a(x), self.b(x), self.c(x)


def pair(**options):
    """Two siblings, a and b, and nothing else."""
    return net(ab, a=conv(4, **options), b=conv(5, **options))


def three(**others):
    """Three siblings, and what a forward may want besides."""
    return net(abc, a=conv(4), b=conv(4), c=conv(2), **others)


def image(*shape):
    return torch.randn(shape or (2, 3, 4, 5))


def run(model, *inputs):
    """What the model makes of its inputs, which it may change in place."""
    torch.manual_seed(0)
    return model(*copy.deepcopy(inputs))


def together(model, *inputs):
    """The same without gradients, so that siblings may compute together."""
    with torch.no_grad():
        return run(model, *inputs)


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


def gradients(model, *inputs):
    """Of the weights, by key, and of the first input."""
    model.zero_grad()
    torch.manual_seed(0)
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = _pytree.tree_leaves(model(*(x * 1 for x in inputs)))
    sum((y.double() ** 2).sum() for y in outputs if y.requires_grad).backward()
    found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return dict(sorted(found.items())) | {"x": inputs[0].grad}


def groups_of(model):
    """The groups that compute together in a fused model."""
    members = filter(None, map(packed.member_of, model.modules()))
    return list({id(member.group): member.group for member in members}.values())


def rounds(model):
    """How often each group has computed together."""
    return [group.rounds for group in groups_of(model)]


def fused_members(found):
    return [set(group.members) for group in found.groups if group.fused]


def check(fused, model, *inputs, rounds_each=1):
    """A fused model gives what the model gives, with gradients and without.

    rounds_each: how often each group has to compute together meanwhile.
    """
    before = rounds(fused)
    check_same(together(fused, *inputs), together(model, *inputs))
    assert [now - then for now, then in zip(rounds(fused), before, strict=True)] == [
        rounds_each
    ] * len(before)
    assert exact(run(fused, *inputs), run(model, *inputs))
    expected = [y for y in _pytree.tree_leaves(run(model, *inputs)) if y.requires_grad]
    if expected:
        assert exact(gradients(fused, *inputs), gradients(model, *inputs))


FOUND = ("reading", "running")
by_found = pytest.mark.parametrize("found", FOUND)


def planned(model, x, found, **options):
    return plan(model, *([x] if found == "running" else []), **options)


# Forms: (the model, the shape of its input, the members of each fused group).


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
    return self.a(x).view(2, -1), self.b(x).view(size=(2, -1))


def views_of_all(self, x):
    return self.a(x).view(-1), self.b(x).view(-1)


def one_view(self, x):
    return self.a(x).view(2, -1), self.b(x), self.c(x)


def views_of_activations(self, x):
    return [y.relu().view(-1) for y in ab(self, x)]


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


def taken(self, x):
    return self.group(x), self.names(self.rounds(x))


CIRCULAR = {"padding": "same", "padding_mode": "circular", "dilation": 2}
PIXELS = (2, 3, 4, 5)
FORMS = {
    "widths": (lambda: net(abc, a=conv(4), b=conv(1), c=conv(7)), PIXELS, ["abc"]),
    "some biases": (lambda: net(abc, a=conv(4), b=conv(2, bias=False), c=conv(3)),
                    PIXELS, ["abc"]),
    "no biases": (lambda: pair(bias=False), PIXELS, ["ab"]),
    "3×3": (lambda: pair(kernel=3, stride=2), (2, 3, 7, 8), ["ab"]),
    "padded": (lambda: pair(kernel=3, **CIRCULAR), (2, 3, 7, 8), ["ab"]),
    "batch norms": (lambda: net(norms, a=conv(4), b=conv(2), a_bn=bn(4), b_bn=bn(2)),
                    PIXELS, ["ab"]),
    "chained": (lambda: net(chain, a=conv(4), b=conv(2), c=conv(3, c_in=6),
                            d=conv(3, c_in=6), e=conv(1), f=conv(2)),
                PIXELS, ["ab", "cd", "ef"]),
    "another kernel size among them": (
        lambda: net(abc, a=conv(4), b=conv(4, 3, padding=1), c=conv(2)), PIXELS, ["ac"]),
    "two kernel sizes": (
        lambda: net(lambda self, x: (*abc(self, x), self.d(x)),
                    a=conv(4), b=conv(4, 3), c=conv(2, 3), d=conv(5)),
        PIXELS, ["ad", "bc"]),
    "a pooling of the same input": (
        lambda: net(with_pool, a=conv(4), b=conv(2), proj=conv(3),
                    pool=nn.MaxPool2d(3, 1, padding=1)),
        PIXELS, ["ab"]),
    "outputs used several times": (
        lambda: net(several_uses, a=conv(4), b=conv(5)), PIXELS, ["ab"]),
    "an output unused": (
        lambda: net(unused_output, a=conv(4), b=conv(5)), PIXELS, ["ba"]),
    "a dict": (lambda: net(as_dict, a=conv(4), b=conv(5)), PIXELS, ["ab"]),
    "one number": (lambda: net(one_sum, a=conv(4), b=conv(5), c=conv(1)), PIXELS, ["abc"]),
    "bottleneck": (
        lambda: net(bottleneck, conv1=conv(2, c_in=8, bias=False),
                    conv2=conv(2, 3, c_in=2, padding=1), conv3=conv(6, c_in=2),
                    downsample=conv(6, c_in=8, bias=False)),
        (2, 8, 4, 5), [("conv1", "downsample")]),
    "attention": (
        lambda: net(attention, q=linear(6, 5), k=linear(6, 5), v=linear(6, 5),
                    out=linear(5, 6)),
        (2, 4, 5), ["qkv"]),
    "grouped queries": (
        lambda: net(grouped_query, q=linear(8, 5), k=linear(4, 5), v=linear(4, 5)),
        (2, 4, 5), ["qkv"]),
    "gate and up": (
        lambda: net(gate_up, gate=linear(7, 5), up=linear(7, 5), down=linear(5, 7)),
        (2, 4, 5), [("gate", "up")]),
    "a vector": (lambda: net(ab, a=linear(4), b=linear(2)), (3,), ["ab"]),
    "Conv1d": (lambda: pair(kind=nn.Conv1d), (2, 3, 5), ["ab"]),
    "Conv3d": (lambda: pair(kind=nn.Conv3d, kernel=2), (2, 3, 4, 5, 3), ["ab"]),
    "Conv2d and Linear": (
        lambda: net(kinds, a=conv(4), b=conv(2), q=linear(4, 5), k=linear(2, 5)),
        PIXELS, ["ab", "qk"]),
    "by keyword": (lambda: net(by_keyword, a=conv(4), b=conv(5), c=conv(1)),
                   PIXELS, ["abc"]),
    "changed in place afterwards": (
        lambda: net(in_place_after, a=conv(4), b=conv(4)), PIXELS, ["ab"]),
    "views": (lambda: net(views, a=conv(4), b=conv(3)), PIXELS, ["ab"]),
    "views of all": (lambda: net(views_of_all, a=conv(4), b=conv(3)), PIXELS, []),
    "one view": (lambda: net(one_view, a=conv(4), b=conv(3), c=conv(2)), PIXELS, ["abc"]),
    "views of activations": (
        lambda: net(views_of_activations, a=conv(4), b=conv(3)), PIXELS, ["ab"]),
    "lists of modules": (
        lambda: net(of_containers, branches=nn.ModuleList([conv(4), conv(5)]),
                    named=nn.ModuleDict({"one": conv(1), "two": conv(2)})),
        PIXELS, [("branches.0", "branches.1", "named.one", "named.two")]),
    "of different depth": (
        lambda: net(across, left=conv(4),
                    right=nn.ModuleDict({"conv": conv(2), "spare": conv(1)})),
        PIXELS, [("left", "right.conv")]),
    "names that fusion uses": (
        lambda: net(taken, group=conv(4), rounds=conv(2), names=nn.ReLU()),
        PIXELS, [("group", "rounds")]),
    "frozen": (lambda: pair().requires_grad_(False), PIXELS, ["ab"]),
    "partly frozen": (
        lambda: net(abc, a=conv(4), b=conv(2).requires_grad_(False), c=conv(3)),
        PIXELS, ["abc"]),
    "a parameter as the input": (
        lambda: net(parameter_input, a=linear(4), b=linear(4), seed=nn.Parameter(image(3))),
        (2,), ["ab"]),
    "Inception": (
        lambda: models.randomise(models.Inception((3, 4, 3, 2, 1, 3, 2))), (2, 3, 5, 6),
        [("b1.conv", "b3_reduce.conv", "b5_reduce.conv")]),
    "nothing to fuse": (
        lambda: nn.Sequential(conv(3), nn.ReLU(), conv(3)), PIXELS, []),
}  # fmt: skip
# Where reading and running differ: a view may refuse a strided part, and a run tries it.
BY_READING = {"attention": [], "grouped queries": [], "views": []}
# A Parameter as the input of siblings is left alone.
ROUNDS = {"a parameter as the input": 0}


@by_found
@pytest.mark.parametrize("given_as", ["module", "graph"])
@pytest.mark.parametrize("name", FORMS)
def test_forms(name, given_as, found):
    make, shape, groups = FORMS[name]
    original, x = make().eval(), image(*shape)
    model = fx.symbolic_trace(original) if given_as == "graph" else original
    before, expected = copy.deepcopy(model), run(original, x)
    plan = planned(model, x, found)
    wanted = BY_READING.get(name, groups) if found == "reading" else groups
    assert fused_members(plan) == [set(group) for group in wanted]
    assert {group.found for group in plan.groups} <= {found}
    fused = plan.apply()
    assert type(fused) is type(model) or isinstance(fused, fx.GraphModule)
    assert [list(group.names) for group in groups_of(fused)] == [*map(list, wanted)]
    check(fused, original, x, rounds_each=ROUNDS.get(name, 1))
    for other in (fused, before, *separate(fused)):
        assert same_state(other, model)
        assert exact(run(other, x), expected)
    assert exact(run(model, x), expected)


def separate(fused):
    """The unfused model in a list, which is empty where nothing was fused."""
    undone = [unfuse(fused)] if groups_of(fused) else []
    assert not any(map(groups_of, undone))
    return undone


@pytest.mark.parametrize("name", FORMS)
def test_forms_copied_pickled_and_loaded(name):
    make, shape, _ = FORMS[name]
    model, other, x = make().eval(), make().eval(), image(*shape)
    fused, expected = fuse(model, x), run(model, x)
    for again in copies(fused):
        assert exact(together(again, x), together(fused, x))
        assert same_state(again, model)
        again.load_state_dict(other.state_dict())
        check(again, other, x, rounds_each=ROUNDS.get(name, 1))
        for undone in separate(again):
            assert exact(run(undone, x), run(other, x))
    check(fused, model, x, rounds_each=ROUNDS.get(name, 1))  # the copies were copies
    other.load_state_dict(fused.state_dict())
    assert exact(run(other, x), expected)


def copies(model):
    """A model copied, pickled, and saved by torch."""
    file = io.BytesIO()
    # Classes that are made here cannot be pickled, so their instances are copied.
    try:
        torch.save(model, file)
    except (pickle.PicklingError, AttributeError):
        return [copy.deepcopy(model), copy.deepcopy(copy.deepcopy(model))]
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    return [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded]


def test_a_form_with_the_weights_of_another_would_be_seen():
    model, x = pair(), image()
    fused = fuse(model)
    with torch.no_grad():
        fused.state_dict()["a.weight"][0].mul_(1.001)
    with pytest.raises(Disagreement, match="entries differ"):
        check(fused, model, x)


def test_the_parts_in_another_order_would_be_seen():
    model, x = net(ab, a=conv(4), b=conv(4)), image()
    fused = fuse(model)
    members = [packed.member_of(layer) for layer in (fused.a, fused.b)]
    split = members[0].group._begin

    def swapped(x, here):
        first, parts = split(x, here), here.turn.parts
        first, parts[1] = parts[1], first
        return first

    members[0].group._begin = swapped
    with pytest.raises(Disagreement, match="entries differ"):
        check(fused, model, x)


def test_siblings_that_compute_apart_would_be_seen():
    model, x = pair(), image()
    fused = fuse(model)
    groups_of(fused)[0].off = "for a test"
    with pytest.raises(AssertionError):
        check(fused, model, x)


# What a plan saves, held to what an operator count says.


def count(model, x):
    with torch.no_grad():
        return count_launches(lambda: model(x))


class OwnReLU(nn.ReLU):
    """A ReLU that doubles."""

    def forward(self, x):
        return 2 * super().forward(x)


def double_output(module, args, output):
    return 2 * output


def with_hook(module):
    module.register_forward_hook(double_output)
    return module


def one_without(self, x):
    return self.relu(self.a(x)), self.b(x), self.relu(self.c(x))


def then(follow):
    return lambda self, x: tuple(follow(self, y) for y in abc(self, x))


def one_each(self, x):
    return self.r1(self.a(x)), self.r2(self.b(x)), self.r3(self.c(x))


# Name: (the forward, modules that it calls, the activation that is applied once).
FOLLOWERS = {
    "nothing": (abc, {}, None),
    "a module": (then(lambda self, y: self.relu(y)), {"relu": nn.ReLU()}, nn.ReLU),
    "a module by keyword": (
        then(lambda self, y: self.relu(input=y)), {"relu": nn.ReLU()}, nn.ReLU),
    "one each": (one_each, {f"r{i}": nn.SiLU() for i in (1, 2, 3)}, nn.SiLU),
    "one each, unlike": (
        one_each, {f"r{i}": nn.LeakyReLU(i / 10) for i in (1, 2, 3)}, None),
    "one each, of two kinds": (
        one_each, {"r1": nn.ReLU(), "r2": nn.ReLU(), "r3": nn.GELU()}, None),
    "gelu tanh": (
        then(lambda self, y: self.act(y)), {"act": nn.GELU("tanh")}, nn.GELU),
    "in place": (then(lambda self, y: self.relu(y)), {"relu": nn.ReLU(True)}, None),
    "a function": (then(lambda self, y: F.relu(y)), {}, None),
    "a method": (then(lambda self, y: y.relu()), {}, None),
    "a subclass": (then(lambda self, y: self.own(y)), {"own": OwnReLU()}, None),
    "with weights": (then(lambda self, y: self.prelu(y)), {"prelu": nn.PReLU()}, None),
    "not pointwise": (then(lambda self, y: self.soft(y)), {"soft": nn.Softmax(1)}, None),
    "one without": (one_without, {"relu": nn.ReLU()}, None),
}  # fmt: skip


def followed(name, **options):
    """Three siblings, of which one has no bias, and what follows them."""
    forward, modules, kind = FOLLOWERS[name]
    siblings = {"a": conv(4), "b": conv(1, bias=False), "c": conv(2)}
    model = net(forward, **siblings, **copy.deepcopy(modules))
    return model.eval().double(), kind


@by_found
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", FOLLOWERS)
def test_launches_saved_are_the_launches_saved(name, batch, found):
    """Also where a missing bias costs an operator."""
    model, kind = followed(name)
    x = image(batch, 3, 4, 5)
    plan = planned(model, x, found)
    (group,) = plan.groups
    assert group.members == ("a", "b", "c")
    assert type(group.activation) is (kind or type(None))
    assert bool(group.followers) is (kind is not None)
    fused = plan.apply()
    saved = count(model, x).count - count(fused, x).count
    assert saved == group.launches_saved + group.saved_in_one_piece * (batch == 1)
    assert group.launches_saved + group.saved_in_one_piece == 2 + 2 * (kind is not None)
    for again in (fused, *copies(fused)):
        check(again, model, x)
        assert count(again, x).names == count(fused, x).names
    assert exact(together(unfuse(fused), x), together(model, x))


@by_found
def test_an_activation_with_a_hook_may_do_anything(found):
    model, _ = followed("a module")
    with_hook(model.relu)
    x = image(1, 3, 4, 5)
    check(planned(model, x, found).apply(), model, x)


# What reads three activations that each may or may not be copied by, and whether it is
# worth applying them once.
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
    """Sure are those who read the graph; a run does not see who reads what."""
    read, once = READERS[name]
    model = net(
        lambda self, x: read(*(self.relu(y) for y in abc(self, x))),
        a=conv(4), b=conv(4), c=conv(4), relu=nn.ReLU(),
    )  # fmt: skip
    x = image(batch, 3, 4, 5)
    for found in FOUND:
        plan, hoist = planned(model, x, found), once and found == "reading"
        (group,) = plan.groups
        assert group.hoist is hoist
        saved = group.launches_saved, group.saved_in_one_piece
        assert saved == ((4, 0) if hoist else (2, 2))
        assert group.split_bytes == 2 * 12 * 8 * hoist
        fused = plan.apply()
        check(fused, model, x)
        relus = count(fused, x).names.count("relu")
        assert relus == (1 if hoist or batch == 1 else 3)
        shown = str(plan).splitlines()[1].split()
        assert shown[3:] == (["4", "192"] if hoist else ["2", "to", "4", "0"])


def test_one_slope_for_all_would_be_wrong(monkeypatch):
    model, _ = followed("one each, unlike")
    x = image(1, 3, 4, 5)
    check(fuse(model), model, x)
    monkeypatch.setattr(reading, "repr", lambda activation: "alike", raising=False)
    monkeypatch.setattr(followers, "refusal", lambda modules: "")
    (group,) = plan(model).groups
    assert group.followers
    check(fuse(model), model, x)  # each call looks at the settings again
    unchanged = followers.Follower._unchanged
    for name in ("r2", "r3"):
        monkeypatch.setattr(getattr(model, name), "negative_slope", 0.1)
    fused = fuse(model)
    monkeypatch.undo()
    assert unchanged is followers.Follower._unchanged
    with pytest.raises(Disagreement, match="entries differ"):
        check(fused, model, x)


def relu_then_write(self, x):
    a, b = self.relu(self.a(x)), self.relu(self.b(x))
    return a.add_(1), b


def test_autograd_still_notices_that_a_result_it_needs_was_changed():
    model = net(relu_then_write, a=conv(4), b=conv(4), relu=nn.ReLU())
    for one in (model, fuse(model)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            sum(y.sum() for y in one(image())).backward()
    check_same(together(fuse(model), x := image()), together(model, x))


def test_split_bytes_are_what_copies_of_the_branches_move():
    (group,) = plan(net(ab, a=conv(4), b=conv(2))).groups
    assert group.split_bytes == 2 * 6 * 8  # read and written, six channels of float64
    (group,) = plan(net(ab, a=conv(4), b=conv(2)).half()).groups
    assert group.split_bytes == 2 * 6 * 2


# Whoever counts on the layout of a branch gets a copy of it, which the plan counts.


def odd_function(y):
    """What torch.fx cannot see into: it may do anything."""
    return y.as_strided((2, 20), (80, 1))


fx.wrap("odd_function")


def reshaped_and_written(y):
    y.reshape(-1).add_(1)
    return y


def flattened_and_written(y):
    F.relu(torch.flatten(y), inplace=True)
    return y


def there_and_back(y):
    return y.transpose(1, 2).transpose(1, 2).view(torch.int64)


VIEW, AS_STRIDED = torch.ops.aten.view.default, torch.ops.aten.as_strided.default
# Name: (what reads the first of three, what is then seen if it gets a strided part).
LAYOUTS = {
    "as_strided": (lambda y: torch.as_strided(y, (2, 20), (80, 1)), "differ"),
    "as_strided of aten": (lambda y: AS_STRIDED(y, (2, 20), (80, 1)), "differ"),
    "view of aten": (lambda y: VIEW(y, [-1]), "view size is not compatible"),
    "view": (lambda y: y.view(-1), "view size is not compatible"),
    "stride": (lambda y: y * y.stride(0), "differ"),
    "unknown function": (lambda y: odd_function(y), "differ"),
    "reshape, then written": (reshaped_and_written, "differ"),
    "flatten, then written": (flattened_and_written, "differ"),
    "view as another dtype": (there_and_back, ""),
    "view as another dtype by name": (lambda y: y.view(dtype=torch.int64), ""),
}


@by_found
@pytest.mark.parametrize("name", LAYOUTS)
def test_who_counts_on_the_layout_gets_a_copy(name, found, monkeypatch):
    consume, seen = LAYOUTS[name]
    model, x = three(), image()
    type(model).forward = lambda self, x: (consume(self.a(x)), self.b(x), self.c(x))
    plan = planned(model, x, found)
    (group,) = plan.groups
    if not group.fused:  # a run fails, and does not say where
        assert found == "running"
        assert group.reason.startswith("as many copies as launches: `forward` may want ")
        return
    if not group.dense:
        assert (found, seen) == ("running", "")
    else:
        assert group.dense == (0,)
        assert group.launches_saved == 1
    fused = plan.apply()
    saved = count(model, x).count - count(fused, x).count
    assert saved == group.launches_saved
    check(fused, model, x)
    if seen:
        monkeypatch.setattr(type(plan.found), "asking", lambda *_: {})
        with pytest.raises((Disagreement, RuntimeError), match=seen):
            check(planned(model, x, found).apply(), model, x)


def test_as_many_copies_as_launches_are_refused():
    model = net(views_of_all, a=conv(4), b=conv(3))
    reasons = [planned(model, image(), found).groups[0].reason for found in FOUND]
    assert reasons == [
        "as many copies as launches: `view` (view) may want the output of a contiguous",
        "as many copies as launches: `view` may want the output of a contiguous",
    ]


# Refusals. Each: the layer `a` of three siblings, the reason, and what would be seen if
# its weight were stacked with the others' all the same.


class Doubling(nn.Conv2d):
    """A convolution, doubled."""

    def forward(self, x):
        return 2 * super().forward(x)


class Double(nn.Module):
    """For parametrize: twice the tensor."""

    def forward(self, weight):
        return 2 * weight


def parametrised(model):
    parametrize.register_parametrization(model.a, "weight", Double())


def pruned(model):
    with torch.no_grad():  # else it cannot be copied
        prune.random_unstructured(model.a, "weight", 0.5)


def quantised(model):
    model.a = torch.ao.nn.quantized.Conv2d(3, 4, 1)


def by_halves(model):
    model.a.bias = nn.Parameter(model.a.bias.detach().half())


REFUSED = {
    "pruned": (pruned, r"extras of a was \['weight_orig', ", "keys"),
    "own forward": (lambda m: setattr(m.a, "forward", torch.sin),
                    r"extras of a was \['forward'\]", "outputs"),
    "subclass": (lambda m: setattr(m, "a", Doubling(3, 4, 1)),
                 "type of a was Doubling", "outputs"),
    "parametrization": (parametrised, "type of a was ParametrizedConv2d", "keys"),
    "weight_norm": (lambda m: parametrizations.weight_norm(m.a),
                    "type of a was ParametrizedConv2d", "keys"),
    "a buffer of its own": (lambda m: m.a.register_buffer("seen", torch.ones(1)),
                            r"extras of a was \['seen'\]", "keys"),
    "quantised": (quantised, "type of a was Conv2d; .* itself", "fails"),
    "groups": (lambda m: setattr(m, "a", conv(3, groups=3)), "groups of a was 3; 1 fits",
               "fails"),
    "two dtypes": (by_halves, r"dtype of a was \['torch.float16', 'torch.float64'\]",
                   "fails"),
}  # fmt: skip


@by_found
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_cannot_be_fused_is_refused_by_name(name, found):
    change, reason, _ = REFUSED[name]
    model, x = three(), image()
    change(model)
    runs = name not in ("quantised", "two dtypes")  # on images of float64
    if found == "running" and not runs:
        return
    plan = planned(model, x, found)
    (refused,) = [group for group in plan.groups if not group.fused]
    assert refused.members == ("a",)
    assert re.search(reason, refused.reason), refused.reason
    assert fused_members(plan) == [{"b", "c"}]
    fused = plan.apply()
    assert same_state(fused, model) or not runs
    if runs:
        check(fused, model, x)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", REFUSED)
def test_stacking_it_anyway_would_be_wrong(name):
    change, _, seen = REFUSED[name]
    model, x = three(), image()
    change(model)
    members = {name: getattr(model, name) for name in "abc"}
    if seen == "fails":
        with pytest.raises((TypeError, AttributeError, ValueError, RuntimeError)):
            layers.Stacked(members)(x)
        return
    stacked = layers.Stacked(members)
    if seen == "keys":
        assert set(stacked.state_dict()) != set(model.state_dict())
    else:
        with pytest.raises(Disagreement, match=r"entries differ|shape"):
            check_same(run(stacked, x), run(model, x), 1e-6)


# Weights in memory that another tensor of the model knows.


def overlapping(model):
    a, other = model.a.weight, model.other.weight
    memory = torch.cat([a.detach().flatten(), other.detach().flatten()[6:]])
    a.data, other.data = (t.view(4, 3, 1, 1) for t in (memory[:12], memory[6:]))


def data_alias(model):
    model.other.weight.data = model.a.weight.data


def flat_buffer(model):
    model.other.register_buffer("flat", model.a.weight.detach().view(-1))


def bias_attribute(model):
    model.other.kept = model.a.bias.detach()


def with_other(self, x):
    y = self.other(x.flip(1))
    more = [getattr(self.other, name, y).sum() for name in ("flat", "kept")]
    return *abc(self, x), y, *more


SHARED = {
    "overlapping": (overlapping, "weight"),
    "by .data": (data_alias, "weight"),
    "a buffer": (flat_buffer, "weight"),
    "an attribute": (bias_attribute, "bias"),
}


def sharing(share):
    """A model whose copies share memory, too: torch's own copies of Parameters do not."""

    def copied(self, memo):
        double = type(self).__new__(type(self))
        vars(double).update(copy.deepcopy(vars(self), memo))
        share(double)
        return double

    model = three(other=conv(4))
    type(model).forward, type(model).__deepcopy__ = with_other, copied
    share(model)
    return model


@by_found
@pytest.mark.parametrize("name", SHARED)
def test_weights_that_share_memory_stay_where_they_are(name, found, monkeypatch):
    """Else who writes to one would not write to the other any more."""
    share, which = SHARED[name]
    model, x = sharing(share), image()

    def written(model):
        with torch.no_grad():
            getattr(model.a, which).add_(1)
        return together(model, x)

    def fuse():
        return planned(model, x, found).apply()

    groups = planned(model, x, found).groups
    reasons = {group.members: group.reason for group in groups}
    assert reasons == {
        ("a",): f"{which} of a shares memory with other; its own fits",
        ("b", "c"): "",
    }
    check(fuse(), model, x)
    expected = written(copy.deepcopy(model))
    check_same(written(fuse()), expected)
    monkeypatch.setattr(siblings, "shared", lambda *_: "")
    with pytest.raises(Disagreement, match=r"entries differ|it is \S+, not "):
        check_same(written(fuse()), expected)


def test_lazy_layers_are_refused():
    """Their weights are not there yet; nor is the number of their input channels."""
    model = net(ab, a=nn.LazyConv2d(4, 1), b=nn.LazyConv2d(5, 1))
    for group, name in zip(plan(model).groups, "ab", strict=True):
        assert group.members == (name,)
        assert group.reason.startswith(f"type of {name} was LazyConv2d; ")
    assert [group.c_out for group in plan(model).groups] == [(4,), (5,)]
    with pytest.raises((ValueError, RuntimeError)):
        layers.Stacked({"a": model.a, "b": model.b})
    fused, x = plan(model).apply(), image()
    assert exact(run(fused, x), run(model, x))


# What siblings must have in common.


def in_half(model):
    model.a.half()


def other_strides(model):
    model.a.to(memory_format=torch.channels_last)


def level_by_level(self, x):
    levels = x, x * 2
    return [layer(level) for layer in (self.a, self.b) for level in levels]


UNLIKE = {
    "dtype": (pair, in_half, "dtype differs: a torch.float16, b torch.float64; "),
    "strides": (lambda: pair(kernel=3), other_strides, "strides of weight differs: layers[a] (1, "),
    "turns": (lambda: net(level_by_level, a=conv(), b=conv()), lambda model: None,
              "they do not take turns: one is called with several inputs before another"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_siblings_that_differ_are_refused(name):
    make, change, reason = UNLIKE[name]
    model, x = make(), image()
    change(model)
    for found in FOUND[: 1 if name == "dtype" else 2]:
        (group,) = planned(model, x, found).groups
        assert group.members == ("a", "b")
        assert group.reason.startswith(reason)
        if name != "dtype":
            check(planned(model, x, found).apply(), model, x)


def test_products_that_serve_nobody_would_be_wasted(monkeypatch):
    """This is why layers have to take turns."""
    model, x = net(level_by_level, a=conv(), b=conv()), image()
    monkeypatch.setattr(reading.Reading, "in_turn", lambda *_: True)
    fused = fuse(model)
    assert len(groups_of(fused)) == 1
    check(fused, model, x, rounds_each=1)  # of two


def test_one_left_alone_is_told_what_the_others_have():
    model = net(abc, a=conv(4), b=conv(2), c=conv(3).half())
    found = plan(model)
    assert fused_members(found) == [{"a", "b"}]
    (refused,) = [group for group in found.groups if not group.fused]
    assert refused.members == ("c",)
    start = "dtype differs: a torch.float64, b torch.float64, c torch.float16; "
    assert refused.reason.startswith(start)


def test_the_last_that_could_be_fused_is_told_that_it_is_alone():
    model = pair()
    model.a = Doubling(3, 4, 1)
    reasons = {group.members: group.reason for group in plan(model).groups}
    assert reasons["b",] == "no other layer that reads its input can be fused"


@by_found
@pytest.mark.parametrize("least", [2, 3, 4])
def test_smaller_groups_than_min_siblings_are_refused(least, found):
    """The answer would be right, too: this is a matter of taste."""
    model, x = three(), image()
    plan = planned(model, x, found, min_siblings=least)
    (group,) = plan.groups
    assert group.fused is (least < 4)
    assert group.reason == ("" if least < 4 else "3 siblings; min_siblings is 4")
    check(plan.apply(), model, x)


def test_one_sibling_that_feeds_another_does_not_read_the_same_input():
    model, x = net(lambda self, x: self.b(self.a(x)), a=conv(3), b=conv(3)), image()
    for found in FOUND:
        assert planned(model, x, found).groups == ()
    assert exact(run(fuse(model), x), run(model, x))


