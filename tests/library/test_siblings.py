"""siblings.py, reading.py, _group.py: which layers are fused, which not, and why."""

import copy
import operator
import re

import pytest
import torch
import torch.nn.functional as F
from fusing import (
    FOUND,
    Doubling,
    ab,
    abc,
    bn,
    by_found,
    by_levels,
    check,
    check_same,
    conv,
    copies,
    count,
    double_output,
    exact,
    fused_members,
    groups_of,
    image,
    linear,
    net,
    pair,
    parametrised,
    planned,
    rounds,
    run,
    same_state,
    three,
    together,
)
from torch import fx, nn
from torch.nn.utils import parametrizations, prune

from hfusion import FusionError, fuse, models, plan, stacking, unfuse
from hfusion.finding import _names, aliasing, reading
from hfusion.fusing import _checks, _members, siblings
from hfusion.timing import Disagreement

pytestmark = pytest.mark.usefixtures("in_float64")


# Forms: (the model, the shape of its input, the members of each fused group).
COPIES = "at least as many copies as saved launches"


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
    "an output unused": (lambda: net(unused_output, a=conv(4), b=conv(5)), PIXELS, ["ba"]),
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
    "Inception": (lambda: models.randomise(models.Inception((3, 4, 3, 2, 1, 3, 2))),
        (2, 3, 5, 6), [("b1.conv", "b3_reduce.conv", "b5_reduce.conv")]),
    "nothing to fuse": (lambda: nn.Sequential(conv(3), nn.ReLU(), conv(3)), PIXELS, []),
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
    members = [_members.member_of(layer) for layer in (fused.a, fused.b)]
    split = members[0].group._begin

    def swapped(x, mode, here):
        first, parts = split(x, mode, here), here.turn.parts
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
        assert group.reason.startswith(f"{COPIES}: `forward` may want ")
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
        monkeypatch.setattr(type(plan.found), "layout_readers", lambda *_: {})
        with pytest.raises((Disagreement, RuntimeError), match=seen):
            check(planned(model, x, found).apply(), model, x)


def test_as_many_copies_as_launches_are_refused():
    model = net(views_of_all, a=conv(4), b=conv(3))
    read, ran = [planned(model, image(), found).groups[0].reason for found in FOUND]
    assert ran == f"{COPIES}: `view` may want the output of a contiguous"
    assert read.startswith(f"{COPIES}: `view` (view) may want the output")
    assert read.endswith("; give example_inputs, and a run shows whether it does")


# Refusals. Each: the layer `a` of three siblings, the reason, and what would be seen if
# its weight were stacked with the others' all the same.


def pruned(model):
    with torch.no_grad():  # else it cannot be copied
        prune.random_unstructured(model.a, "weight", 0.5)


def quantised(model):
    model.a = torch.ao.nn.quantized.Conv2d(3, 4, 1)


def without_parameter(name):
    """A weight or bias that is a plain tensor, such as another network makes."""

    def change(model):
        tensor = getattr(model.a, name).detach().clone()
        delattr(model.a, name)
        setattr(model.a, name, tensor)

    return change


def by_halves(model):
    model.a.bias = nn.Parameter(model.a.bias.detach().half())


REFUSED = {
    "pruned": (pruned, r"extras of a: .*, got \['weight_orig', ", "keys"),
    "own forward": (lambda m: setattr(m.a, "forward", torch.sin),
                    r"extras of a: .*, got \['forward'\]", "outputs"),
    "subclass": (lambda m: setattr(m, "a", Doubling(3, 4, 1)),
                 "type of a: .*, got Doubling", "outputs"),
    "parametrization": (parametrised, "type of a: .*, got ParametrizedConv2d", "keys"),
    "weight_norm": (lambda m: parametrizations.weight_norm(m.a),
                    "type of a: .*, got ParametrizedConv2d", "keys"),
    "a buffer of its own": (lambda m: m.a.register_buffer("seen", torch.ones(1)),
                            r"extras of a: .*, got \['seen'\]", "keys"),
    "quantised": (quantised, r"type of a: .* itself, .*, got torch.*\.Conv2d", "fails"),
    "weight that is no parameter": (without_parameter("weight"),
                                    "parameters of a: .*'weight': 'Tensor'", "keys"),
    "bias that is no parameter": (without_parameter("bias"),
                                  "parameters of a: .*'bias': 'Tensor'", "keys"),
    "groups": (lambda m: setattr(m, "a", conv(3, groups=3)),
               "groups of a: expected 1, got 3", "fails"),
    "two dtypes": (by_halves, r"dtype of a: .*, got \['torch.float16', 'torch.float64'\]",
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
            stacking.Stacked(members)(x)
        return
    stacked = stacking.Stacked(members)
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
        if self.shares:
            share(double)
        return double

    model = three(other=conv(4))
    type(model).forward, type(model).__deepcopy__ = with_other, copied
    model.shares = False
    return model


@by_found
@pytest.mark.parametrize("name", SHARED)
def test_weights_that_share_memory_stay_where_they_are(name, found, monkeypatch):
    """Else who writes to one would not write to the other any more."""
    share, which = SHARED[name]
    model, x = sharing(share), image()
    before = planned(model, x, found)
    model.shares = True
    share(model)

    def written(model):
        with torch.no_grad():
            getattr(model.a, which).add_(1)
        return together(model, x)

    def fuse():
        return planned(model, x, found).apply()

    groups = planned(model, x, found).groups
    reasons = {group.members: group.reason for group in groups}
    assert reasons == {
        ("a",): f"{which} of a shares memory with other; give it a copy",
        ("b", "c"): "",
    }
    with pytest.raises(FusionError, match=f"since it was planned: {which} of a shares mem"):
        before.apply()
    check(fuse(), model, x)
    expected = written(copy.deepcopy(model))
    check_same(written(fuse()), expected)
    monkeypatch.setattr(siblings, "memory_of_others", lambda *_: "")
    with pytest.raises(Disagreement, match=r"entries differ|it is \S+, not "):
        check_same(written(fuse()), expected)


def test_weights_of_one_layer_that_share_memory():
    model = pair()
    model.a.bias = nn.Parameter(model.a.weight.detach()[:, 0, 0, 0])
    first, _ = plan(model).groups
    said = "weight of a shares memory with another tensor of it; give it a copy"
    assert first.reason == said


def test_lazy_layers_are_refused():
    """Their weights are not there yet; nor is the number of their input channels."""
    model = net(ab, a=nn.LazyConv2d(4, 1), b=nn.LazyConv2d(5, 1))
    for group, name in zip(plan(model).groups, "ab", strict=True):
        assert group.members == (name,)
        assert re.match(f"type of {name}: .*, got LazyConv2d", group.reason)
    assert [group.c_out for group in plan(model).groups] == [(4,), (5,)]
    with pytest.raises((ValueError, RuntimeError)):
        stacking.Stacked({"a": model.a, "b": model.b})
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
    "strides": (lambda: pair(kernel=3), other_strides, "strides of weight differs: a"),
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


# What once had to be refused, and need not be, since each call looks for itself.


def hook(register, function):
    return lambda model: getattr(model.a, register)(function)


def triple_gradient(module, gradients, _):
    return tuple(3 * gradient for gradient in gradients)


def called_twice(self, x):
    return *abc(self, x), self.a(x * 2)


def also_other(self, x):
    return *abc(self, x), self.other(x.flip(1))


def weight_read(self, x):
    return *abc(self, x), self.a.weight.sum(), x + self.a.bias[:3, None, None]


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
        holder=Holder(), b=conv(4), c=conv(2),
    )  # fmt: skip

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, path):
            return isinstance(module, Holder) or super().is_leaf_module(module, path)

    return fx.GraphModule(model, Tracer().trace(model))


def changed(change, forward=abc, **others):
    """Three siblings with this forward, of which `a` is changed."""

    def make():
        model = three(**copy.deepcopy(others))
        type(model).forward = forward
        change(model)
        return model.double()

    return make


def as_it_is(model):
    pass


OTHER = {"other": conv(4)}
ALL, TWO = ({"a", "b", "c"}, 1), ({"b", "c"}, 1)
# Name: (a model, who is fused and how often they compute together, by the way of finding).
SAME = {
    "forward hook": (
        changed(hook("register_forward_hook", double_output)), TWO, ALL),
    "hook before": (
        changed(hook("register_forward_pre_hook", lambda m, given: given[0] * 2)),
        TWO, TWO),
    "backward hook": (
        changed(hook("register_full_backward_hook", triple_gradient)), ALL, ALL),
    "hook on a state": (
        changed(hook("register_state_dict_post_hook", lambda *_: None)), ALL, ALL),
    "called again": (changed(as_it_is, called_twice), TWO, TWO),
    "called in turn": (changed(as_it_is, by_levels), (ALL[0], 2), (ALL[0], 2)),
    "two names": (changed(lambda m: setattr(m, "alias", m.a)), ALL, ALL),
    "in a leaf": (leaf_inside, ({"holder.inner", "b", "c"}, 1), TWO),
    "tied weights": (
        changed(lambda m: setattr(m.other, "weight", m.a.weight), also_other, **OTHER),
        ALL, ALL),
    "tied biases": (
        changed(lambda m: setattr(m.other, "bias", m.a.bias), also_other, **OTHER),
        ALL, ALL),
    "weights read": (changed(as_it_is, weight_read), ALL, ALL),
    "weight frozen": (changed(lambda m: m.a.weight.requires_grad_(False)), ALL, ALL),
    "bias frozen": (changed(lambda m: m.a.bias.requires_grad_(False)), ALL, ALL),
    "one in eval mode": (changed(lambda m: m.a.eval()), ALL, ALL),
}  # fmt: skip


@by_found
@pytest.mark.parametrize("name", SAME)
def test_what_each_call_looks_at_need_not_be_refused(name, found):
    make, *expected = SAME[name]
    members, times = expected[FOUND.index(found)]
    model, x = make(), image()
    fused = planned(model, x, found).apply()
    assert [{*group.names} for group in groups_of(fused)] == [members]
    for one in (fused, unfuse(fused), *copies(fused)):
        assert same_state(one, model)
        if one is not fused:
            check_same(together(one, x), together(model, x))
    check(fused, model, x, rounds_each=times)
    for key in ("requires_grad", "is_leaf"):
        flags = [[getattr(p, key) for p in m.parameters()] for m in (fused, model)]
        assert flags[0] == flags[1]
    assert [m.training for m in fused.modules()] == [m.training for m in model.modules()]
    check_same(stepped(fused, x), stepped(model, x))  # what is tied stays tied


def stepped(model, x):
    """What a model makes of x after two steps of gradient descent, and its weights."""
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimiser.zero_grad()
        y = run(model, x.clone().requires_grad_())
        sum((y**2).mean() for y in y).backward()
        optimiser.step()
    return *together(model, x), *model.state_dict().values()


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

    others = {"relu": nn.ReLU(inplace=True)}
    return lambda: net(forward, a=conv(4), b=conv(2), **others)


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
NEG_ = torch.ops.aten.neg_.default

CHANGES = {
    "method": (written_to(lambda self, x: x.relu_()), "relu_"),
    "module": (written_to(lambda self, x: self.relu(x)), "ReLU"),
    "function": (written_to(lambda self, x: F.relu(x, inplace=True)), "relu"),
    "augmented": (written_to(adds_1), "iadd"),
    "out=": (written_to(lambda self, x: torch.neg(x, out=x)), "neg"),
    "through a view": (written_to(lambda self, x: x[:, 0].mul_(2)), "mul_"),
    "through chunk": (written_to(lambda self, x: x.chunk(3, 1)[1].zero_()), "zero_"),
    "through a transposed view": (
        written_to(lambda self, x: x.transpose(2, 3)[:, 1:].exp_()), "exp_"),
    "unknown function": (written_to(lambda self, x: add_1(x)), "add_1"),
    "foreach": (
        written_to(lambda self, x: torch._foreach_add_([x * 1, x], 1)), "_foreach_add_"),
    "operator": (
        hand_made(lambda graph, x: graph.call_function(operator.iadd, (x, 1))), "iadd"),
    "setitem": (
        hand_made(lambda graph, x: graph.call_function(operator.setitem, (x, 0, 7.0))),
        "setitem"),
    "aten": (hand_made(lambda graph, x: graph.call_function(NEG_, (x,))), "neg_"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "called"), CHANGES.values(), ids=CHANGES)
def test_an_input_changed_between_siblings(make, called, monkeypatch):
    """It is refused by name, and if nobody had seen it, the answer would be right."""
    model, x = make(), image()
    (group,) = plan(model).groups
    assert (group.members, group.fused) == (("a", "b"), False)
    why = rf"^`{called}.*` \(\w+\) may change their input between a and b$"
    assert re.search(why, group.reason), group.reason
    if called != "_foreach_add_":  # whose writes are not counted under a dispatch mode
        (group,) = plan(model, x).groups
        assert group.reason == "their input is written to between a and b"
    for found in FOUND:
        check(planned(model, x, found).apply(), model, x, rounds_each=0)
    monkeypatch.setattr(aliasing, "written", lambda *_: [])
    fused = fuse(model)
    assert len(groups_of(fused)) == 1
    check(fused, model, x, rounds_each=0)
    # The part that is left over is the answer for the input as it was.
    (group,) = groups_of(fused)
    monkeypatch.setattr(_checks.Round, "take", lambda turn, i, x, mode: turn.parts[i])
    with pytest.raises(Disagreement, match="entries differ"):
        check_same(together(fused, x), together(model, x), 1e-6)


def test_a_hook_that_may_change_an_input_is_named():
    model = written_to(lambda self, x: self.relu(x))()
    model.relu = nn.Identity()
    model.relu.register_forward_hook(lambda module, given, y: None)
    (group,) = plan(model).groups
    assert group.reason == "a hook of relu may change their input between a and b"


def changed_in_the_second_round(self, x):
    """Until then they are siblings."""
    x = x * 1
    found = self.a(x), self.b(x), self.b(x)
    x.relu_()
    return *found, self.a(x)


def test_an_input_changed_in_a_later_round():
    model, x = net(changed_in_the_second_round, a=conv(4), b=conv(2)), image()
    (group,) = plan(model).groups
    assert group.members == ("a", "b")
    assert group.reason == "`relu_` (relu_) may change their input between b and a"
    assert not plan(model, x).groups[0].fused
    for found in FOUND:
        check(planned(model, x, found).apply(), model, x, rounds_each=0)


def goes_another_way(self, x):
    x = x * 1
    a = self.a(x)
    if self.another:
        x.relu_()
    return a, self.b(x)


@by_found
def test_another_path_than_was_planned(found):
    model, x = net(goes_another_way, a=conv(4), b=conv(2)), image()
    model.another = False
    fused = planned(model, x, found).apply()
    check(fused, model, x)
    model.another = fused.another = True
    check(fused, model, x, rounds_each=0)


def two_before_two_after(self, x):
    x = x * 1
    a, b = self.a(x), self.b(x)
    x.relu_()
    return a, b, self.c(x), self.d(x)


@by_found
def test_siblings_on_either_side_of_a_change_are_two_groups(found):
    model = net(two_before_two_after, a=conv(4), b=conv(2), c=conv(3), d=conv(1))
    x = image()
    plan = planned(model, x, found)
    assert fused_members(plan) == [{"a", "b"}, {"c", "d"}]
    check(plan.apply(), model, x)


def test_what_follows_may_change_an_output_in_place_between_siblings():
    model = net(
        lambda self, x: (self.relu(self.a(x)), self.relu(self.b(x))),
        a=conv(4), b=conv(2), relu=nn.ReLU(inplace=True),
    )  # fmt: skip
    for found in FOUND:
        check(planned(model, image(), found).apply(), model, image())


# A mode between the siblings.

AUTOCAST = torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16, True, None)
NO_GRAD = torch._C._set_grad_enabled, (False,)


def under_mode(function, given, after):
    """a, then the switch, then b, in a graph made by hand."""

    def make():
        model, graph = pair(), fx.Graph()
        x = graph.placeholder("x")
        a = graph.call_module("a", (x,))
        mode = graph.call_function(function, given)
        graph.output((a, graph.call_module("b", (x,))))
        with graph.inserting_before(next(iter(graph.find_nodes(op="output")))):
            after(graph, mode)
        return fx.GraphModule(model, graph)

    return make


EXIT = torch.amp.autocast_mode._exit_autocast
MODES = {
    "_set_grad_enabled": under_mode(
        *NO_GRAD, lambda graph, _: graph.call_function(NO_GRAD[0], (True,))),
    "_enter_autocast": under_mode(
        *AUTOCAST, lambda graph, mode: graph.call_function(EXIT, (mode,))),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_a_mode_switched_between_siblings(name, monkeypatch):
    model, x = MODES[name]().float(), image().float()
    (group,) = plan(model).groups
    assert not group.fused
    assert group.reason.startswith(f"`{name}` ({name}")
    assert group.reason.endswith("may change their input between a and b")

    def look(model, call=run):
        return [(y.dtype, y.requires_grad, y.tolist()) for y in call(model, x)]

    assert look(fuse(model)) == look(model)
    monkeypatch.setattr(_names, "MODES", frozenset())
    fused = fuse(model)
    assert look(fused) == look(model)
    with torch.no_grad():
        assert look(fused)[1] == look(model)[1]
        assert [y[0] for y in look(fused)] == [y[0] for y in look(model)]
    assert rounds(fused) == [0 if "autocast" in name else 1]
