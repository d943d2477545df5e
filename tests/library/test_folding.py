"""folding.py: batch norms folded into convolutions, against the network as it was."""

import copy
import logging

import copied
import fusing
import pytest
import torch
from torch import fx, nn

from hfusion import FusionError, fold_batchnorm, fuse, models, plan
from hfusion.folding.fold import Folded, unfolded
from hfusion.fusing.lowering import lower
from hfusion.timing import agree, differ

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


pytestmark = pytest.mark.usefixtures("in_float64")


def net(forward, **members):
    """A module with these members and random statistics, in eval mode."""
    return models.randomise(fusing.net(forward, **members)).eval()


def pair(dims=2, **options):
    """A convolution and the batch norm behind it."""
    settings = {"kernel_size": 3, "padding": 1} | options
    affine = settings.pop("affine", True)
    conv, bn = KINDS[dims - 1](4, 6, **settings), NORMS[dims - 1](6, affine=affine)
    return net(lambda self, x: self.bn(self.conv(x)), conv=conv, bn=bn)


def image(dims=2):
    return torch.randn(2, 4, *(5, 6, 3)[:dims])


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def state(model):
    """Everything of a model that must not change."""
    return {
        "tensors": {
            k: (id(v), v.clone()) for k, v in model.state_dict(keep_vars=True).items()
        },
        "flags": {path: (type(m), m.training) for path, m in model.named_modules()},
        "attributes": {path: set(vars(m)) for path, m in model.named_modules()},
    }


def check_untouched(model, before):
    after = state(model)
    assert after["flags"] == before["flags"]
    assert after["attributes"] == before["attributes"]
    assert list(after["tensors"]) == list(before["tensors"])
    for key, (place, value) in before["tensors"].items():
        assert after["tensors"][key][0] == place
        assert torch.equal(after["tensors"][key][1], value)


OPTIONS = {
    "no bias": {"bias": False},
    "bias": {},
    "affine=False": {"affine": False},
    "affine=False, no bias": {"affine": False, "bias": False},
    "grouped": {"groups": 2},
    "circular": {"padding_mode": "circular"},
    "strided": {"stride": 2, "dilation": 2},
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equal_within_rounding(options, dims):
    model, x = pair(dims, **options), image(dims)
    before = state(model)
    folded = fold_batchnorm(model)
    assert not norms(folded)
    agree(folded(x), model(x), 1e-12)
    check_untouched(model, before)


def test_depthwise():
    model = net(
        lambda self, x: self.bn(self.conv(x)),
        conv=nn.Conv2d(4, 4, 3, groups=4),
        bn=nn.BatchNorm2d(4),
    )
    folded, x = fold_batchnorm(model), image()
    assert not norms(folded)
    agree(folded(x), model(x), 1e-12)


def test_by_hand():
    model = net(
        lambda self, x: self.bn(self.conv(x)),
        conv=nn.Conv1d(1, 1, 1, bias=False),
        bn=nn.BatchNorm1d(1, eps=0),
    )
    tensors = {"conv.weight": 3.0, "bn.weight": 10.0, "bn.bias": 1.0}
    tensors |= {"bn.running_mean": 5.0, "bn.running_var": 4.0}
    with torch.no_grad():
        for name, value in tensors.items():
            model.state_dict()[name].fill_(value)
    folded = fold_batchnorm(model)
    # y = 10/2 (3 x - 5) + 1
    assert folded.state_dict()["conv.weight"].item() == 15
    assert folded.state_dict()["conv.bias"].item() == -24


def without_norms(model):
    """The mistake: batch norms deleted, not folded."""
    model = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Identity())
    return model


@pytest.mark.parametrize(
    "make", [pair, lambda: models.randomise(models.Digits()).eval()], ids=["pair", "Digits"]
)
def test_batch_norms_deleted_instead_of_folded_would_be_seen(make):
    model = make().double()
    x = torch.rand(2, *((4, 5, 6) if hasattr(model, "bn") else (1, 8, 8)))
    wrong, expected = without_norms(model), model(x)
    assert not norms(wrong)
    agree(fold_batchnorm(model)(x), expected, 1e-11 * expected.abs().max())
    assert "entries differ" in differ(wrong(x), expected, 1e-3)


def test_fresh_statistics_would_not_tell():
    """Why everything here is drawn at random: a fresh batch norm is nearly nothing."""
    model = pair()
    model.bn = nn.BatchNorm2d(6, eps=0).eval()
    x = image()
    agree(without_norms(model)(x), model(x), 1e-12)


def test_googlenet_and_what_it_keeps():
    model = models.randomise(models.GoogLeNet(classes=10)).double().eval()
    before, x = state(model), torch.randn(1, 3, 32, 32)
    folded = fold_batchnorm(model)
    assert len(norms(model)) == 57
    assert not norms(folded)
    assert type(folded) is models.GoogLeNet
    assert vars(folded).keys() - vars(model).keys() == {"train"}
    for path, module in model.named_modules():
        there = folded.get_submodule(path)
        assert type(there) is (Folded if isinstance(module, NORMS) else type(module))
    expected = model(x)
    agree(folded(x), expected, 1e-10 * expected.abs().max())
    kept = [key for key in model.state_dict() if ".bn." not in key]
    biases = [key.replace("weight", "bias") for key in kept if key.endswith("conv.weight")]
    assert set(folded.state_dict()) == {*kept, *biases}
    check_untouched(model, before)


def chain(self, x):
    return self.bn(self.conv(x))


def twice(self, x):
    y = self.conv(x)
    return self.bn(y) + y


def read_by_three(self, x):
    y = self.conv(x)
    return self.bn(y) + y - y


def conv_again(self, x):
    return self.bn(self.conv(x)) + self.conv(x * 2)


def bn_again(self, x):
    return self.bn(self.conv(x)) + self.bn(self.other(x))


def bn_first(self, x):
    return self.conv(self.bn(x))


def something_between(self, x):
    return self.bn(self.conv(x).relu())


def weight_read(self, x):
    return self.bn(self.conv(x)) * self.conv.weight.sum()


def statistics_read(self, x):
    return self.bn(self.conv(x)) * torch.sin(self.bn.running_mean).sum()


def with_hook(member, register="register_forward_hook"):
    def change(model):
        hook = lambda *args: None
        getattr(getattr(model, member), register)(hook)

    return change


def tied(model):
    model.other.weight = model.conv.weight


def own_forward(model):
    forward = model.bn.forward
    model.bn.forward = lambda x: forward(x) * 2


def mixed_dtype(model):
    model.bn.float()


class OwnNorm(nn.BatchNorm2d):
    """A batch norm that does something else besides."""

    def _check_input_dim(self, x):
        """Nothing, since torch.fx looks into this class."""

    def forward(self, x):
        return super().forward(x) * 2


class OwnConv(nn.Conv2d):
    """A convolution that does something else besides."""

    def forward(self, x):
        return super().forward(x) * 2


class Counts(nn.BatchNorm2d):
    """A batch norm that changes something on the side."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Narrows(nn.BatchNorm2d):
    """A batch norm that rounds to float32, whatever it is given."""

    def forward(self, x):
        return super().forward(x).float().to(x.dtype)


class Fails(nn.BatchNorm2d):
    """A batch norm that cannot be run alone."""

    def forward(self, x):
        raise RuntimeError("needs a GPU")


class Gain(nn.BatchNorm2d):
    """A batch norm with one number more."""

    def __init__(self, channels):
        super().__init__(channels)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.gain


def norm(kind, *options, **more):
    return {"bn": lambda: kind(6, *options, **more)}


def last_but_one(self, x):
    return self.bn(self.other(x)), self.conv(x)


TRIED = "were tried beside a folded convolution, and gave something else"
STAYS = {
    "output used twice": (twice, {}, None, "the output of conv is also read by add"),
    "output used by three": (
        read_by_three, {}, None, "the output of conv is also read by add, sub"),
    "convolution called twice": (conv_again, {}, None, "conv is called 2 times"),
    "batch norm called twice": (bn_again, {}, None, "bn is called 2 times"),
    "batch norm first": (*(bn_first, {"bn": lambda: nn.BatchNorm2d(4)}, None),
        "it follows x, not a convolution"),
    "something between": (something_between, {}, None,
        "it follows relu (`relu`), not a convolution"),
    "not called": (lambda self, x: self.conv(x), {}, None, "forward() does not call it"),
    "weight read": (weight_read, {}, None, "forward reads conv.weight itself"),
    "statistics read": (statistics_read, {}, None, "forward reads bn.running_mean itself"),
    "hook on the convolution": (chain, {}, with_hook("conv"), "conv has hooks, or a for"),
    "hook before the batch norm": (chain, {}, with_hook("bn", "register_forward_pre_hook"),
        "it has hooks, or a for"),
    "state hook": (chain, {}, with_hook("bn", "register_state_dict_post_hook"), "it has h"),
    "tied weight": (chain, {}, tied, "conv.weight shares memory with another"),
    "two names": (chain, {}, lambda m: setattr(m, "again", m.conv), "conv is also again"),
    "another forward": (chain, {}, own_forward, "it has hooks, or a forward() on the ins"),
    "subclass of a batch norm": (chain, norm(OwnNorm), None, f"Conv2d and OwnNorm {TRIED}"),
    "counts": (chain, norm(Counts), None, f"Conv2d and Counts {TRIED}"),
    "narrows": (chain, norm(Narrows), None, f"Conv2d and Narrows {TRIED}"),
    "one number more": (chain, norm(Gain), None, "it has gain of its own, which folding"),
    "subclass of a convolution": (*(chain, {"conv": lambda: OwnConv(4, 6, 1)}, None),
        f"OwnConv and BatchNorm2d {TRIED}"),
    "no running statistics": (
        *(chain, norm(nn.BatchNorm2d, track_running_stats=False), None),
        "it has no running statistics, and normalises by those of its input",
    ),
    "instance norm": (chain, norm(nn.InstanceNorm2d), None, "it has no running statistics"),
    "of another size": (*(last_but_one, {"other": lambda: nn.Conv2d(4, 3, 1)}, None),
        "it is not for the 3 channels of other"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("forward", "members", "change", "reason"), STAYS.values(), ids=STAYS
)
def test_what_stays(forward, members, change, reason, caplog):
    parts = {"conv": lambda: nn.Conv2d(4, 6, 1), "bn": lambda: nn.BatchNorm2d(6)}
    parts |= {"other": lambda: nn.Conv2d(4, 6, 1)} | members
    model = net(forward, **{name: make() for name, make in parts.items()})
    if change:
        change(model)
    folded = fold_batchnorm(model)
    assert type(folded.bn) is type(model.bn)
    assert list(folded.state_dict()) == list(model.state_dict())
    assert list(unfolded(model)) == ["bn"]
    assert unfolded(model)["bn"].startswith(reason)
    (record,) = [r for r in caplog.records if r.name == "hfusion"]
    assert record.levelno == logging.WARNING
    assert record.message == f"folded 0 of 1 batch norms\nbn: {unfolded(model)['bn']}"
    if forward is not last_but_one:
        x = image()
        assert torch.equal(folded(x), model(x))
    folded.train()


class Whole(fx.Tracer):
    """Calls a Deep as one module."""

    def is_leaf_module(self, module, path):
        return isinstance(module, Deep) or super().is_leaf_module(module, path)


def test_what_a_module_that_is_called_whole_may_call_stays():
    deep = models.randomise(Deep()).eval()
    parent = net(lambda self, x: (self.deep(x), self.deep.layer1[1](x)), deep=deep)
    for forward, why in (
        (type(parent).forward, "deep.layer1.1.0 may be called by deep, which the graph "),
        (lambda self, x: self.deep.layer1[1](x), None),
    ):
        type(parent).forward = forward
        model = fx.GraphModule(parent, Whole().trace(parent))
        reasons = unfolded(model)
        assert list(reasons) == ["deep.layer1.1.1"] * bool(why)
        assert all(reason.startswith(why) for reason in reasons.values())


def test_what_is_torchs_own_is_folded_without_a_trial():
    """On "meta" nothing can be tried."""
    with torch.device("meta"):
        model, other = pair().to("meta"), pair().to("meta")
    assert unfolded(model) == {}
    assert not norms(fold_batchnorm(model))
    other.bn = Plain(6).to("meta").eval()
    assert unfolded(other) == {"bn": f"Conv2d and Plain {TRIED}"}


def test_what_cannot_be_run_alone_stays():
    model = net(chain, conv=nn.Conv2d(4, 6, 1), bn=Fails(6))
    assert unfolded(model) == {"bn": f"Conv2d and Fails {TRIED}"}


def test_what_was_folded_is_logged(caplog):
    model = net(
        lambda self, x: self.late(self.bn(self.conv(self.early(x)))),
        early=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6),
        late=nn.BatchNorm2d(6),
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "hfusion"):
        fold_batchnorm(model)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.message == (
        "folded 1 of 3 batch norms\n"
        "early: it follows x, not a convolution\n"
        "late: it follows bn (`BatchNorm2d`), not a convolution"
    )


def test_a_model_without_batch_norms_is_warned_about(caplog):
    fold_batchnorm(nn.ReLU())
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("hfusion", logging.WARNING)
    assert record.message == "folded 0 of 0 batch norms"


# Norms and convolutions of others.


class Plain(nn.BatchNorm2d):
    """A batch norm of another name."""


class Gated(Plain):
    """A batch norm that takes more than one tensor, or none."""

    def forward(self, x=0, gate=1):
        return super().forward(x) * gate


@pytest.mark.parametrize("given", [2, 0])
def test_a_norm_that_is_not_called_with_one_tensor(given):
    model = net(
        lambda self, x: self.bn(*[self.conv(x)] * given),
        conv=nn.Conv2d(4, 6, 1), bn=Gated(6),
    )  # fmt: skip
    assert unfolded(model) == {"bn": "it is not called with exactly one tensor"}


def test_a_norm_of_two_paths_with_hooks_is_told_not_refused():
    model = net(chain, conv=nn.Conv2d(4, 6, 1), bn=Plain(6))
    model.again = model.bn
    model.bn.register_forward_hook(lambda *_: None)
    assert unfolded(model)["bn"].startswith("it has hooks")


class Rewritten(nn.BatchNorm2d):
    """A batch norm with a forward of its own that does the same."""

    def forward(self, x):
        scale = self.weight / (self.running_var + self.eps).sqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Acts(nn.BatchNorm2d):
    """As timm's: with what follows."""

    def __init__(self, channels, act=None):
        super().__init__(channels)
        self.act, self.drop = act or nn.SiLU(inplace=True), nn.Hardtanh(-0.5, 0.5)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Swapped(Acts):
    """The other way round: what remains would be wrong."""

    def forward(self, x):
        return self.drop(self.act(nn.BatchNorm2d.forward(self, x)))


class Frozen(nn.Module):
    """As torchvision's: buffers, and no mode."""

    def __init__(self, channels):
        super().__init__()
        self.eps = 1e-3
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels))

    forward = Rewritten.forward


class Same(nn.Conv2d):
    """As timm's: padded as TensorFlow does."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, 1, 1, 0)))


OTHERS = {
    "subclass": (nn.Conv2d, Plain),
    "forward of its own": (nn.Conv2d, Rewritten),
    "with an activation": (nn.Conv2d, Acts),
    "synchronised": (nn.Conv2d, nn.SyncBatchNorm),
    "frozen": (nn.Conv2d, Frozen),
    "padded otherwise": (Same, nn.BatchNorm2d),
    "both": (Same, Acts),
    "instance norm": (nn.Conv2d, lambda n: nn.InstanceNorm2d(n, track_running_stats=True)),
}


@pytest.mark.parametrize(("conv", "bn"), OTHERS.values(), ids=OTHERS)
def test_those_that_do_the_same_are_folded(conv, bn):
    model = net(chain, conv=conv(4, 6, 3, stride=2, bias=False), bn=bn(6))
    before = state(model)
    folded, x = fold_batchnorm(model), image()
    assert unfolded(model) == {}
    assert type(folded.bn) is Folded
    assert type(folded.conv) is conv
    agree(folded(x), model(x), 1e-12)
    check_untouched(model, before)


def test_an_activation_remains_under_its_path():
    model = net(chain, conv=nn.Conv2d(4, 6, 1), bn=Acts(6, nn.PReLU(6)))
    folded = fold_batchnorm(model)
    assert list(folded.state_dict()) == ["conv.weight", "conv.bias", "bn.act.weight"]
    assert [type(m) for m in folded.bn.children()] == [nn.Hardtanh, nn.PReLU]


def test_steps_in_another_order_stay():
    model = net(chain, conv=nn.Conv2d(4, 6, 1), bn=Swapped(6))
    assert unfolded(model) == {"bn": f"Conv2d and Swapped {TRIED}"}


def test_a_frozen_norm_leaves_a_model_that_trains():
    model = net(chain, conv=nn.Conv2d(4, 6, 1), bn=Frozen(6)).train()
    folded, x = fold_batchnorm(model), image()
    assert type(folded.bn) is Folded
    assert folded.bn.training
    for mode in (True, False, True):
        agree(folded.train(mode)(x), model.train(mode)(x), 1e-12)
        assert all(module.training is mode for module in folded.modules())
    assert "train" not in vars(folded)


# What a folded model keeps, and what it refuses.


COPIES = {"itself": lambda model: model, **copied.TOOLS}


class Deep(nn.Module):
    """A norm in a container in a container, and other layers around it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Dropout(), nn.Dropout()
        self.layer1 = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(4, 6, 1)))
        self.layer1[1].append(nn.BatchNorm2d(6))
        self.names = ["a list"]

    def forward(self, x):
        return self.last(self.layer1(self.first(x)))

    def other(self):
        return self.names


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_train_is_refused_before_any_flag_is_changed(make):
    model = models.randomise(Deep()).eval()
    folded, x = make(fold_batchnorm(model)), image()
    folded.layer1[0].train()
    flags = [module.training for module in folded.modules()]
    for path in ("", "layer1", "layer1.1", "layer1.1.1"):
        with pytest.raises(FusionError, match=r"^mode: expected False, got True; batch n"):
            folded.get_submodule(path).train()
    assert [module.training for module in folded.modules()] == flags
    assert folded.eval() is folded
    assert not any(module.training for module in folded.modules())
    agree(folded(x), model(x), 1e-12)


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_the_class_its_methods_and_hooks_are_kept(make):
    model = models.randomise(Deep()).eval()
    model.last.register_forward_hook(double_it)
    folded, x = make(fold_batchnorm(model)), image()
    assert type(folded) is Deep
    assert folded.other() == ["a list"]
    assert folded.names is not model.names
    assert type(folded.layer1[1]) is nn.Sequential
    assert not torch.allclose(folded(x), folded.layer1(x))
    agree(folded(x), model(x), 1e-12)


def double_it(module, args, result):
    return result * 2


class Switched(nn.Module):
    """Which way it goes depends on arguments."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x, mask=None, raw=False, size=3, *, late=True):
        y = self.conv(x)
        if mask is not None:
            return y * mask
        return y if raw or not late else self.bn(y)


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_another_way_through_forward_is_refused(make):
    model, x = models.randomise(Switched()).eval(), image()
    folded = make(fold_batchnorm(model))
    for args, kwargs in (
        ((), {}),
        ((None, False, 4), {}),
        ((), {"mask": None, "late": True}),
    ):
        agree(folded(x, *args, **kwargs), model(x, *args, **kwargs), 1e-12)
    for args, kwargs, said in (
        ((x,), {}, "mask: expected None, with which .* got a Tensor; "),
        ((None, True), {}, "raw: expected False, with which .* got True; "),
        ((), {"raw": True}, "raw: expected False, with which .* got True; "),
        ((), {"late": False}, "late: expected True, with which .* got False; "),
        ((), {"late": None}, "late: expected True, with which .* got None; "),
    ):
        with pytest.raises(FusionError, match=f"^{said}"):
            folded(x, *args, **kwargs)


def test_without_the_check_another_way_would_be_wrong():
    model, x = models.randomise(Switched()).eval(), image()
    folded = fold_batchnorm(model)
    folded._forward_pre_hooks.clear()
    assert "entries differ" in differ(folded(x, raw=True), model(x, raw=True), 1e-3)


def test_the_check_stands_only_where_something_was_folded():
    model = models.randomise(Switched()).eval()
    model.bn = nn.ReLU()
    assert not fold_batchnorm(model)._forward_pre_hooks
    assert not fold_batchnorm(pair())._forward_pre_hooks


def test_a_checked_model_is_planned_and_folded_again():
    class Siblings(Switched):
        def forward(self, x, raw=False):
            y = self.bn(self.conv(x))
            return y, self.other(x)

    model = Siblings()
    model.other = nn.Conv2d(4, 5, 1)
    model = models.randomise(model).eval()
    folded, x = fold_batchnorm(fold_batchnorm(model)), image()
    assert [group.members for group in plan(folded).groups] == [("conv", "other")]
    for one in (folded, fuse(folded)):
        for found, wanted in zip(one(x), model(x), strict=True):
            agree(found, wanted, 1e-12)


def test_a_checked_model_in_another_is_not_lowered():
    """Its graph would not check what the other one gives it."""
    model = nn.Sequential(fold_batchnorm(models.randomise(Switched()).eval())).eval()
    found = plan(model)
    with pytest.raises(FusionError, match=r"^0: expected no forward pre hooks, got some"):
        lower(found)


ASKS = {
    "eps": lambda self, x: self.bn(self.conv(x)) * self.bn.eps,
    "class": lambda self, x: (
        self.bn(self.conv(x)) if isinstance(self.bn, nn.BatchNorm2d) else self.conv(x)
    ),
    "how many": lambda self, x: self.bn(self.conv(x)) * len(list(self.parameters())),
    "in a list": lambda self, x: self.both[1](self.both[0](x)),
}


@pytest.mark.parametrize("forward", ASKS.values(), ids=ASKS)
def test_a_forward_that_asks_for_more_of_a_norm_is_refused(forward):
    model = net(forward, conv=nn.Conv2d(4, 6, 1, bias=False), bn=nn.BatchNorm2d(6))
    model.both = [model.conv, model.bn]
    with pytest.raises(FusionError, match=r"^model cannot be folded: forward goes another"):
        fold_batchnorm(model)


def test_a_graph_module_stays_one():
    model = fx.symbolic_trace(pair()).eval()
    folded, x = fold_batchnorm(model), image()
    assert isinstance(folded, fx.GraphModule)
    assert not norms(folded)
    agree(folded(x), model(x), 1e-12)
    assert norms(model)


# Precision.

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("kept", ["its norm in float32", "all"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_folded_weights_are_rounded_once(dtype, kept):
    """Against float64: half a unit in the last place. Folded in half it is several."""
    model = pair(bias=True).to(dtype)
    if kept != "all":
        model.bn.float()
    exact = fold_batchnorm(copy.deepcopy(model).double()).conv
    folded = fold_batchnorm(model)
    assert not norms(folded)
    for name in ("weight", "bias"):
        found, wanted = getattr(folded.conv, name), getattr(exact, name)
        assert found.dtype == dtype
        unit = torch.finfo(dtype).eps / 2
        slack = 1e-6 * wanted.abs().max()
        assert ((found.double() - wanted).abs() <= unit * wanted.abs() + slack).all()


def test_folded_weights_that_overflow_stay():
    model = pair().half()
    model.bn.running_var.fill_(1e-7)
    model.bn.eps = 0.0
    model.bn.weight.data.fill_(3e4)
    reason = "the folded weights of conv are not finite in float16"
    assert unfolded(model) == {"bn": reason}


MIXED = {
    "norm in bfloat16": (torch.float32, torch.bfloat16, nn.BatchNorm2d),
    "norm in float64": (torch.float32, torch.float64, nn.BatchNorm2d),
    "halves": (torch.bfloat16, torch.float16, nn.BatchNorm2d),
}


@pytest.mark.parametrize(("conv", "bn", "kind"), MIXED.values(), ids=MIXED)
def test_other_dtypes_stay(conv, bn, kind):
    model = net(chain, conv=nn.Conv2d(4, 6, 1).to(conv), bn=kind(6).to(bn))
    reason = "it has another dtype than conv, and is not in float32"
    assert unfolded(model) == {"bn": reason}


def test_a_norm_that_widens_stays():
    """In float32 after bfloat16, it returns float32; torch's own returns bfloat16."""
    model = net(chain, conv=nn.Conv2d(4, 6, 1).bfloat16(), bn=Rewritten(6).float())
    assert model(image().bfloat16()).dtype == torch.float32
    assert unfolded(model) == {"bn": f"Conv2d and Rewritten {TRIED}"}


class Moody(nn.Conv2d):
    """A convolution that does something else in training mode."""

    def forward(self, x):
        return super().forward(x).relu() if self.training else super().forward(x)


@pytest.mark.parametrize("training", [False, True])
def test_a_convolution_in_training_mode(training):
    """It does not matter where it changes nothing."""
    model = net(chain, conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6))
    model.conv.train(training)
    folded, x = fold_batchnorm(model), image()
    assert folded.conv.training is training
    agree(folded(x), model(x), 1e-12)
    model.conv = Moody(4, 6, 1).train(training)
    assert unfolded(model) == {"bn": f"Moody and BatchNorm2d {TRIED}"}


@pytest.mark.parametrize("name", ["bn", "other"])
def test_a_batch_norm_in_training_mode_is_refused(name):
    model = net(chain, conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6), other=NORMS[0](3))
    getattr(model, name).train()
    with pytest.raises(FusionError, match=rf"^{name}: expected eval mode, got training"):
        fold_batchnorm(model)


def test_folding_with_statistics_of_the_batch_would_be_wrong():
    model, x = pair(), image()
    expected = copy.deepcopy(model).train()(x)
    assert "entries differ" in differ(fold_batchnorm(model)(x), expected, 1e-3)


@pytest.mark.parametrize("model", [None, "model", nn.Module], ids=str)
def test_only_a_module_can_be_folded(model):
    with pytest.raises(FusionError, match=r"^model: expected an nn.Module, got \w+$"):
        fold_batchnorm(model)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_the_bias_requires_a_gradient_where_the_weight_does(wanted, bias):
    model = pair(bias=bias)
    model.conv.requires_grad_(wanted)
    folded = fold_batchnorm(model)
    assert folded.conv.weight.requires_grad is wanted
    assert folded.conv.bias.requires_grad is wanted


def test_two_of_a_kind_among_other_things():
    model = net(
        lambda self, x: (self.b1(self.c1(x)).relu(), self.b2(self.c2(x)), self.b3(x)),
        c1=nn.Conv2d(4, 6, 1),
        b1=nn.BatchNorm2d(6),
        c2=nn.Conv2d(4, 5, 3, bias=False),
        b2=nn.BatchNorm2d(5),
        b3=nn.BatchNorm2d(4),
    )
    folded, x = fold_batchnorm(model), image()
    assert len(norms(folded)) == 1
    for actual, expected in zip(folded(x), model(x), strict=True):
        agree(actual, expected, 1e-12)


def test_a_batch_norm_under_another_mode_stays():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch._C._set_grad_enabled, (False,))
    y = graph.call_module("conv", (x,))
    graph.call_function(torch._C._set_grad_enabled, (True,))
    graph.output(graph.call_module("bn", (y,)))
    model = fx.GraphModule(pair(), graph).eval()
    folded = fold_batchnorm(model)
    assert norms(folded)
    assert folded.bn.weight.requires_grad
    folded(image()).sum().backward()
    assert folded.conv.weight.grad is None


def test_the_checkpoint_of_the_original_does_not_load_as_if_it_fitted():
    """Its batch norms would be left out without a word."""
    model = pair()  # the convolution has a bias, so no key is missing
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bn\.weight"):
        fold_batchnorm(model).load_state_dict(model.state_dict())


def test_the_folded_network_copies_and_keeps_what_it_does_not_call():
    model = pair()
    model.unused = nn.Linear(2, 2)
    folded, x = fold_batchnorm(model), image()
    double = copy.deepcopy(folded)
    assert torch.equal(double(x), folded(x))
    assert list(double.state_dict()) == list(folded.state_dict())
    assert "unused.weight" in double.state_dict()


def test_a_method_with_the_name_of_a_batch_norm_is_not_folded():
    model = net(
        lambda self, x: self.conv(x).sigmoid(),
        conv=nn.Conv2d(3, 4, 1),
        sigmoid=nn.BatchNorm2d(4),
    )
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(fold_batchnorm(model)(x), model(x))
