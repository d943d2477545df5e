"""folding.py: batch norms folded into convolutions, against the network as it was."""

import copy

import pytest
import torch
from torch import fx, nn

from hfusion import FusionError, fold_batchnorm, models
from hfusion.measure import agree, differ

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


pytestmark = pytest.mark.usefixtures("in_float64")


def net(forward, **members):
    """A module with these members and random statistics, in eval mode."""
    model = type("Net", (nn.Module,), {"forward": forward})()
    for name, member in members.items():
        setattr(model, name, member)
    return models.randomise(model).eval()


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
    assert isinstance(folded, fx.GraphModule)
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


STAYS = {
    "output used twice": (twice, {}, None),
    "convolution called twice": (conv_again, {}, None),
    "batch norm called twice": (bn_again, {}, None),
    "batch norm first": (bn_first, {"bn": lambda: nn.BatchNorm2d(4)}, None),
    "something between": (something_between, {}, None),
    "weight read": (weight_read, {}, None),
    "statistics read": (statistics_read, {}, None),
    "hook on the convolution": (chain, {}, with_hook("conv")),
    "hook before the batch norm": (chain, {}, with_hook("bn", "register_forward_pre_hook")),
    "state hook": (chain, {}, with_hook("bn", "register_state_dict_post_hook")),
    "tied weight": (chain, {}, tied),
    "another forward": (chain, {}, own_forward),
    "subclass of a batch norm": (chain, {"bn": lambda: OwnNorm(6)}, None),
    "subclass of a convolution": (chain, {"conv": lambda: OwnConv(4, 6, 1)}, None),
    "no running statistics": (
        chain,
        {"bn": lambda: nn.BatchNorm2d(6, track_running_stats=False)},
        None,
    ),
    "instance norm": (chain, {"bn": lambda: nn.InstanceNorm2d(6)}, None),
}


@pytest.mark.parametrize(("forward", "members", "change"), STAYS.values(), ids=STAYS)
def test_what_stays(forward, members, change):
    parts = {"conv": lambda: nn.Conv2d(4, 6, 1), "bn": lambda: nn.BatchNorm2d(6)} | members
    made = {name: make() for name, make in parts.items()}
    model = net(forward, **made, other=nn.Conv2d(4, 6, 1))
    if change:
        change(model)
    folded, x = fold_batchnorm(model), image()
    assert torch.equal(folded(x), model(x))
    assert type(folded.bn) is type(model.bn)
    assert list(folded.state_dict()) == list(model.state_dict())


def test_mixed_dtypes_stay():
    """float16 statistics between float32 layers: torch computes that, a fold would not."""
    model = pair().float()
    model.conv.to(torch.bfloat16)
    folded = fold_batchnorm(model)
    assert isinstance(folded.bn, nn.BatchNorm2d)
    x = image().to(torch.bfloat16)
    assert torch.equal(folded(x), model(x))


def test_a_convolution_in_training_mode_stays():
    model = pair()
    model.conv.train()
    assert norms(fold_batchnorm(model))


@pytest.mark.parametrize("name", ["bn", "other"])
def test_a_batch_norm_in_training_mode_is_refused(name):
    model = net(chain, conv=nn.Conv2d(4, 6, 1), bn=nn.BatchNorm2d(6), other=NORMS[0](3))
    getattr(model, name).train()
    with pytest.raises(
        FusionError, match=rf"^{name} was in training mode; call model.eval"
    ):
        fold_batchnorm(model)


def test_folding_with_statistics_of_the_batch_would_be_wrong():
    model, x = pair(), image()
    expected = copy.deepcopy(model).train()(x)
    assert "entries differ" in differ(fold_batchnorm(model)(x), expected, 1e-3)


@pytest.mark.parametrize("model", [None, "model", nn.Module], ids=str)
def test_only_a_module_can_be_folded(model):
    with pytest.raises(FusionError, match=r"model was a .*; an nn.Module fits"):
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
