"""planning.py: what a plan says, and what becomes of it."""

import copy
import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F
from fusing import (
    FOUND,
    Doubling,
    ab,
    abc,
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
    together,
)
from torch import nn

import hfusion
from hfusion import FusionError, fuse, models, plan, unfuse
from hfusion.finding import reading
from hfusion.fusing import _followers, _group, _table
from hfusion.timing import Disagreement

pytestmark = pytest.mark.usefixtures("in_float64", "as_on_a_gpu")


# What a plan saves, held to what an operator count says.


class OwnReLU(nn.ReLU):
    """A ReLU that doubles."""

    def forward(self, x):
        return 2 * super().forward(x)


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
    monkeypatch.setattr(_followers, "unfit", lambda modules: "")
    (group,) = plan(model).groups
    assert group.followers
    check(fuse(model), model, x)  # each call looks at the settings again
    for name in ("r2", "r3"):
        monkeypatch.setattr(getattr(model, name), "negative_slope", 0.1)
    fused = fuse(model)
    monkeypatch.undo()
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


# Arguments.


@pytest.mark.parametrize("least", [1, 0, -2, 2.0, "2", True, None, [2]], ids=repr)
def test_wrong_min_siblings(least):
    with pytest.raises(FusionError, match=r"^min_siblings: expected an int of at least 2"):
        plan(pair(), min_siblings=least)


@pytest.mark.parametrize("accept", [1, "yes", True, []], ids=repr)
def test_wrong_accept(accept):
    with pytest.raises(FusionError, match=r"^accept: expected a function of a group, got"):
        plan(pair(), accept=accept)


ANSWERS = None, False, 1, "", ["no"], torch.tensor(True)


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_wrong_answers_of_accept(answer):
    with pytest.raises(FusionError, match=r"^accept: expected it to return True or a "):
        plan(pair(), accept=lambda group: answer)


@pytest.mark.parametrize("model", [None, 5, "model", nn.Linear], ids=str)
@pytest.mark.parametrize("call", [plan, fuse])
def test_wrong_models(call, model):
    kind = type(model).__name__
    with pytest.raises(FusionError, match=rf"^model: expected an nn.Module, got {kind}$"):
        call(model)
    with pytest.raises(FusionError, match=r"^model: expected an nn.Module, got \w+"):
        call(model, image())


def test_a_model_that_cannot_be_read_may_be_run():
    model = net(lambda self, x: ab(self, x) if x.sum() else x, a=conv(4), b=conv(5))
    with pytest.raises(FusionError, match=r"^model cannot be traced: ") as error:
        plan(model)
    said = "; or give example_inputs, and the model is run instead"
    assert str(error.value).count(said) == str(error.value).endswith(said) == 1
    assert fused_members(plan(model, image())) == [{"a", "b"}]


@pytest.mark.parametrize("inputs", [[image()], "x", 5], ids=lambda x: type(x).__name__)
def test_wrong_inputs(inputs):
    with pytest.raises(FusionError, match=r"^example_inputs: expected a tensor, "):
        plan(pair(), inputs)


@pytest.mark.parametrize("other", [None, 5, pair(), nn.Linear(1, 1)], ids=type)
def test_only_what_fuse_returned_can_be_unfused(other):
    why = r"^fused: expected a model that fuse\(\) .*, got a \w+ without fused layers$"
    with pytest.raises(FusionError, match=why):
        unfuse(other)
    with pytest.raises(FusionError, match=why):
        unfuse(unfuse(fuse(pair())))


WRAPPED = (
    (nn.DataParallel, "got a DataParallel; give model.module"),
    (torch.compile, "got a OptimizedModule; give model._orig_mod"),
    (torch.jit.script, "got a ScriptModule; give the module that it was made from"),
)


@pytest.mark.parametrize(("wrap", "says"), WRAPPED)
@pytest.mark.parametrize("inputs", [None, torch.ones(1, 2)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_holds_a_model_is_named(wrap, says, inputs):
    with pytest.raises(FusionError, match=re.escape(says)):
        plan(wrap(nn.Linear(2, 2)), inputs)


def test_a_module_that_only_has_such_a_name_is_planned():
    assert plan(type("DataParallel", (nn.Sequential,), {})(nn.Linear(2, 2))).groups == ()


# Who has the last word.


def two_families():
    return net(
        lambda self, x: (*abc(self, x), self.d(x), self.e(x)),
        a=conv(4), b=conv(2), c=conv(3, 3), d=conv(1, 3), e=Doubling(3, 2, 1),
    )  # fmt: skip


@by_found
def test_accept_is_asked_about_each_group_that_could_be_fused(found):
    model, x, asked = two_families(), image(), []

    def accept(group):
        asked.append(group)
        assert group.fused
        assert list(group.layers) == list(group.members)
        assert group.layers[group.members[0]] is getattr(model, group.members[0])
        return True if group.members == ("a", "b") else "not worth it"

    plan = planned(model, x, found, accept=accept)
    assert [group.members for group in asked] == [("a", "b"), ("c", "d")]
    answers = {group.members: (group.fused, group.reason) for group in plan.groups}
    assert answers.pop(("e",))[0] is False
    assert answers == {("a", "b"): (True, ""), ("c", "d"): (False, "not worth it")}
    assert "refused: not worth it" in str(plan)
    fused = plan.apply()
    assert [group.names for group in groups_of(fused)] == [("a", "b")]
    check(fused, model, x)
    assert len(asked) == 2  # apply() asks nobody


# A model that changed since it was planned.


def changing():
    """Two siblings with an activation, and much that can be changed."""

    def forward(self, x):
        x = x * self.factor + torch.full((1,), self.shift)
        a, b = self.relu(self.a(x)), self.relu(self.b(x))
        return (a, b) if self.plain else (a * 2, b, torch.ones(2))

    model = net(forward, a=conv(4), b=conv(5), relu=nn.LeakyReLU(0.1))
    for name, value in {"factor": 2, "shift": 1.0, "plain": True}.items():
        setattr(model, name, value)
    return model


SINCE = {
    "another kind": (lambda m: setattr(m, "a", nn.ReLU()), "type of layers[a]: expected "),
    "another window": (lambda m: setattr(m, "a", conv(4, 3)), "kernel_size differs: "),
    "gone": (lambda m: delattr(m, "a"), "has no attribute `a`"),
    "half": (lambda m: m.a.half(), "dtype differs: layers[a] torch.float16, layers[b] "),
    "one layer": (lambda m: setattr(m, "b", m.a), "layers[a] and layers[b] share a "),
    "parametrised": (parametrised, "type of layers[a]: expected "),
    "fused": (lambda m: _group.route([m.a, m.b], "ab"), ""),
}


@by_found
@pytest.mark.parametrize("name", SINCE)
def test_what_cannot_be_fused_any_more(name, found):
    change, message = SINCE[name]
    model, x = changing(), image()
    plan = planned(model, x, found)
    assert len(groups_of(plan.apply())) == 1
    change(model)
    if not message:
        return check(plan.apply(), model, x)
    with pytest.raises(FusionError) as error:
        plan.apply()
    assert str(error.value).startswith("model has changed since it was planned: ")
    assert message in str(error.value)


def new_weight(model):
    model.a.weight = nn.Parameter(torch.randn(4, 3, 1, 1))


def no_bias(model):
    model.a.bias = None


def louder(model):
    with torch.no_grad():
        model.a.weight.mul_(2)


# Name: (a change, whether what was planned still computes together).
NOW = {
    "attribute": (lambda m: setattr(m, "factor", 3), 1),
    "constant": (lambda m: setattr(m, "shift", 3.0), 1),
    "control flow": (lambda m: setattr(m, "plain", False), 1),
    "slope": (lambda m: setattr(m.relu, "negative_slope", 0.5), 1),
    "width": (lambda m: setattr(m, "a", conv(7)), 1),
    "bias deleted": (no_bias, 1),
    "stride": (lambda m: [setattr(layer, "stride", (2, 2)) for layer in (m.a, m.b)], 1),
    "dtype": (lambda m: m.float().double(), 1),
    "frozen": (lambda m: m.requires_grad_(False), 1),
    "weights": (lambda m: m.load_state_dict(changing().state_dict(), assign=True), 1),
    "new parameter": (new_weight, 1),
    "new numbers": (louder, 1),
    "forward of its class": (lambda m: setattr(type(m), "forward", ab), 1),
    "mode": (lambda m: m.eval(), 1),
    "hook": (lambda m: m.a.register_forward_hook(double_output), 1),
    "hook of the model": (lambda m: m.register_forward_pre_hook(lambda *_: None), 1),
    "one of them only": (lambda m: setattr(type(m), "forward", lambda m, x: m.b(x)), 0),
}


@by_found
@pytest.mark.parametrize("name", NOW)
def test_what_is_fused_is_the_model_as_it_is_now(name, found):
    change, times = NOW[name]
    model, x = changing(), image()
    plan = planned(model, x, found)
    change(model)
    fused = plan.apply()
    check(fused, model, x, rounds_each=times)
    assert exact(run(unfuse(fused), x), run(model, x))


@pytest.mark.parametrize(
    "activation", [nn.Sigmoid(), nn.PReLU(), nn.LeakyReLU(0.1, inplace=True)]
)
def test_another_activation_than_was_planned(activation):
    model, x = changing(), image()
    found = plan(model)
    model.relu = activation.double()
    if isinstance(activation, nn.Sigmoid):
        check(found.apply(), model, x)
    else:
        with pytest.raises(FusionError, match="expected pointwise activations, not in pla"):
            found.apply()


def test_a_plan_that_was_copied_or_edited():
    model, x = changing(), image()
    found = plan(model)
    (group,) = found.groups
    bare = dataclasses.replace(group, activation=None, followers=())
    none = dataclasses.replace(group, fused=False)
    check(copy.deepcopy(found).apply(), model, x)
    for edited, several in ((bare, 1), (none, 0)):
        fused = dataclasses.replace(found, groups=(edited,)).apply()
        assert len(groups_of(fused)) == several
        assert not any(group.then for group in groups_of(fused))
        check(fused, model, x)


def test_plans_cannot_be_changed():
    found = plan(pair())
    with pytest.raises(AttributeError):
        found.groups = ()
    with pytest.raises(AttributeError):
        found.groups[0].fused = False
    assert "model=" not in repr(found)


def test_models_of_one_plan_share_nothing():
    model = changing()
    found, x = plan(model), image()
    first, second = found.apply(), found.apply()
    assert {*map(id, first.modules())}.isdisjoint(map(id, second.modules()))
    assert groups_of(first)[0] is not groups_of(second)[0]
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    check(second, model, x)


# The table.


def test_the_table_by_hand():
    model = net(
        lambda self, x: (
            *(self.relu(y) for y in abc(self, x)), self.q(x), self.k(x), self.d(x)
        ),
        a=conv(40), b=conv(5, bias=False), c=conv(6), q=linear(4, 5), k=linear(4, 5),
        d=Doubling(3, 1, 1), relu=nn.ReLU(),
    )  # fmt: skip
    model.k.bias = nn.Parameter(torch.ones(4).half())
    model.spare, model.more = conv(), nn.ModuleList([linear(), linear(), linear()])
    lines = str(plan(model)).splitlines()
    assert lines[0].split() == ["members", "c_out", "then", "saved", "B/px"]
    assert lines[1].split() == ["{a,b,c}", "40+5+6", "ReLU", "2", "to", "4", "0"]
    assert lines[2].split() == ["q", "4", "0"]
    assert lines[3] == "    refused: no other layer that reads its input can be fused"
    assert lines[4].split() == ["k", "4", "0"]
    assert lines[5].startswith(
        "    refused: dtype of k: expected the same for weight and bias, "
    )
    assert lines[7].split() == ["d", "1", "0"]
    assert lines[8].startswith("    refused: type of d: expected Conv1d, Conv2d, ")
    assert lines[-5].startswith("not called: spare, more.0, more.1, … (forward takes ")
    assert lines[-2:] == [
        "1 of 4 groups fused; Conv2d 4 -> 2 calls; Linear 2 -> 2 calls; found by reading",
        "    proved from the graph; checked again at each call",
    ]
    assert all(len(line) <= 80 for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_the_table_of_a_run_by_hand():
    model = net(by_levels, a=conv(40), b=conv(5), c=conv(6))
    assert str(plan(model, image())) == (
        "members                                           c_out   then  saved   B/px\n"
        "{a,b,c}                                          40+5+6             4    816\n"
        "1 of 1 groups fused; Conv2d 6 -> 2 calls; found by running\n"
        "    seen in one run; checked at each call"
    )


def weight_taken(self, x):
    return F.linear(x, self.a.weight), self.b(x), self.c(x)


def test_layers_that_are_not_called_are_named():
    """Their weights are taken by forward, or by a module of torch that is called whole."""
    model = net(weight_taken, a=linear(), b=linear(), c=linear())
    by = "example_inputs may show more", "or goes another way with these inputs"
    for found, why in zip(FOUND, by, strict=True):
        line = str(planned(model, image(2, 3), found)).replace("\n", " ")
        assert "not called: a (forward takes their weights, " in line
        assert f"{why})" in line
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).double()
    text = str(plan(nn.Sequential(block)))
    assert text.startswith("not called: 0.self_attn.out_proj, 0.linear1, 0.linear2 (forw")
    assert text.endswith("\nno siblings; found by reading")
    run = plan(nn.Sequential(block), image(1, 3, 4)).found.unseen()
    assert run == {"0.self_attn.out_proj": "NonDynamicallyQuantizableLinear"}


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
    assert _table.short(SHORT[short]) == short


def test_a_table_without_siblings():
    for alone in (nn.Sequential(nn.ReLU()), nn.Linear(2, 2)):
        assert str(plan(alone)) == "no siblings; found by reading"


# Whole networks.


def test_googlenet_in_float64():
    model = models.randomise(models.GoogLeNet(classes=10)).eval()
    found, x = plan(model), image(1, 3, 32, 32)
    assert found.calls["Conv2d"] == plan(model, x).calls["Conv2d"] == (57, 39)
    fused = found.apply()
    assert count(fused, x).names.count("convolution") == 39
    check_same(together(fused, x), together(model, x), 1e-10)
    assert rounds(fused) == [3] * 9  # two of them for counting
    assert same_state(fused, model)
    assert same_state(unfuse(fused), model)
    both = plan(hfusion.fold_batchnorm(model))
    assert both.calls["Conv2d"] == (57, 39)
    check_same(together(both.apply(), x), together(model, x), 1e-10)


def test_a_network_of_other_weights_would_be_seen():
    model = models.randomise(models.GoogLeNet(classes=10)).eval()
    other = models.randomise(models.GoogLeNet(classes=10), seed=1).eval()
    x = image(1, 3, 32, 32)
    with pytest.raises(Disagreement, match="entries differ"):
        check_same(together(fuse(other), x), together(model, x), 1e-3)


def test_trained_digits_give_the_same_answer_on_every_test_image():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = torch.from_numpy(digits.images[:, None] / 16).float()
    y = torch.from_numpy(digits.target)
    parts = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    _, x, _, y = map(torch.as_tensor, parts)
    torch.set_default_dtype(torch.float32)
    model = models.Digits.trained()
    fused = fuse(hfusion.fold_batchnorm(model))
    with torch.no_grad():
        expected, actual = model(x).argmax(1), fused(x).argmax(1)
        wrong = fuse(hfusion.fold_batchnorm(models.randomise(models.Digits()).eval()))
        assert not torch.equal(wrong(x).argmax(1), expected)
    assert rounds(fused) == [1] * len(groups_of(fused)) != []
    assert len(x) == 450
    assert torch.equal(actual, expected)
    assert (actual == y).double().mean() > 0.95
