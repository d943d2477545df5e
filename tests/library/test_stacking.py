"""The stacked layer against the separate layers, which are torch's own.

With small whole numbers every sum is exact, so the stacked layer and its gradients
equal the separate ones bit for bit. With random numbers they agree within rounding,
the separate layers computed in float64. Below the comparisons, deliberate mistakes
show that they can fail.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from copied import saved
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from hfusion import FusionError, algebra, models, stacking, timing
from hfusion.timing import Disagreement, agree

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


# Siblings, and an input for them.


def numbers(shape, generator, whole):
    """Random numbers; or -2 to 2, of which all sums here are exact."""
    if whole:
        return torch.randint(-2, 3, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def filled(module, generator, whole=False):
    """The module with all its parameters set, biases as well."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(numbers(parameter.shape, generator, whole))
    return module


@st.composite
def convolution_settings(draw):
    kernel = draw(st.integers(1, 3))
    padding, stride = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    if kernel != 2 and draw(st.booleans()):
        padding, stride = "same", 1
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    return {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "padding_mode": mode,
        "dilation": draw(st.integers(1, 2)),
    }


@st.composite
def cases(draw, whole=False, dtypes=(torch.float32,)):
    """(siblings, x): any kind, unequal widths, some biases missing, batched or not."""
    kind, c_in = draw(st.sampled_from((*CONVS, nn.Linear))), draw(st.integers(1, 3))
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    if kind is nn.Linear:
        options, shape = {}, (*draw(st.sampled_from([batch, (2, 3)])), c_in)
    else:
        options = draw(convolution_settings())
        sizes = [draw(st.integers(5, 6)) for _ in range(1 + CONVS.index(kind))]
        shape = (*batch, c_in, *sizes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    branches = draw(
        st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4)
    )
    dtype = draw(st.sampled_from(dtypes))
    siblings = [kind(c_in, K, bias=bias, dtype=dtype, **options) for K, bias in branches]
    siblings = [filled(layer, generator, whole) for layer in siblings]
    x = numbers(shape, generator, whole).to(dtype)
    return siblings, x.clamp(-1, 1) if whole else x  # so bfloat16 is exact too


WIDTHS = {"wide": 4, "bare": 3, "thin": 1}  # unequal, and "bare" has no bias


def siblings(kind=nn.Conv2d, seed=0, dtype=torch.float32, **options):
    """Three siblings by name, always the same for one seed."""
    generator = torch.Generator().manual_seed(seed)
    if kind is not nn.Linear:
        options = {"kernel_size": 1} | options
    return nn.ModuleDict(
        {
            name: filled(
                kind(3, width, bias=name != "bare", dtype=dtype, **options), generator
            )
            for name, width in WIDTHS.items()
        }
    )


def image(*shape, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (2, 3, 4, 5), generator=generator).to(dtype)


def exact(parts, expected):
    """Whether two lists of tensors are equal bit for bit, in shape and dtype too."""
    return len(parts) == len(expected) and all(
        a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(parts, expected, strict=True)
    )


def unstacked(stacked):
    """The separate layers again, as a module."""
    return nn.ModuleDict(stacking.unstack(stacked))


def same_state(a, b):
    """Whether two state dicts have the same keys in the same order and the same bits."""
    return list(a) == list(b) and exact(list(a.values()), list(b.values()))


# The same outputs.


def test_stacked_by_hand():
    double, swap = nn.Linear(2, 1, bias=False), nn.Linear(2, 2)
    double.weight.data = torch.tensor([[2.0, 0.0]])
    swap.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    swap.bias.data = torch.tensor([10.0, 20.0])
    a, b = stacking.stack([double, swap])(torch.tensor([[3.0, 5.0]]))
    assert a.tolist() == [[6.0]]
    assert b.tolist() == [[15.0, 23.0]]


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@given(cases(whole=True, dtypes=DTYPES))
@PROPERTY
def test_outputs_are_equal_bit_for_bit_on_whole_numbers(case):
    separate, x = case
    parts = stacking.stack(separate)(x)
    assert isinstance(parts, tuple)
    assert exact(parts, [layer(x) for layer in separate])


def double(layer, change=lambda tensor: tensor):
    """A copy of the layer in float64, its parameters changed."""
    layer = copy.deepcopy(layer).double()
    for parameter in layer.parameters():
        parameter.data = change(parameter.data)
    return layer


def rounding(terms):
    """2γ for a sum of `terms` products and a bias, out of `algebra.rounding_bound`."""
    ones = np.ones((1, terms, 1, 1))
    return algebra.rounding_bound(ones, np.eye(1, terms)).item()


def check_within_rounding(stacked, separate, x):
    """Hold a stacked layer to its separate layers in float64."""
    with torch.no_grad():
        for part, layer in zip(stacked(x), separate, strict=True):
            size = double(layer, torch.abs)(x.double().abs())  # |W||X| + |b|
            bound = rounding(layer.weight[0].numel()) * size
            agree(part, double(layer)(x.double()), bound)


@given(cases())
@PROPERTY
def test_outputs_are_equal_within_rounding(case):
    separate, x = case
    check_within_rounding(stacking.stack(separate), separate, x)


def edit(change):
    """A deliberate mistake: the stacked layer changed in place."""

    def changed(stacked):
        with torch.no_grad():
            change(stacked)
        return stacked

    return changed


MISTAKES = {
    "split in the wrong order": edit(lambda s: setattr(s, "sizes", s.sizes[::-1])),
    "split into other chunks": edit(lambda s: setattr(s, "sizes", (3, 3, 2))),
    "rows shuffled": edit(lambda s: s.layer.weight.copy_(s.layer.weight.roll(1, 0))),
    "biases left out": edit(lambda s: s.layer.bias.zero_()),
    "biases of a neighbour": edit(lambda s: s.layer.bias.copy_(s.layer.bias.roll(1))),
    "kernel flipped": edit(lambda s: s.layer.weight.copy_(s.layer.weight.flip(-1))),
    "one weight off by 1%": edit(lambda s: s.layer.weight[-1, -1].mul_(1.01)),
    "another stride": edit(lambda s: setattr(s.layer, "stride", (2, 2))),
    "outputs exchanged": lambda s: lambda x: s(x)[::-1],
    "a branch forgotten": lambda s: lambda x: s(x)[:2],
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_stacked_layer_is_noticed(mistake):
    separate = siblings(kernel_size=3)
    stacked, x = stacking.stack(separate), image()
    check_within_rounding(stacked, separate.values(), x)
    with pytest.raises((Disagreement, ValueError), match=r"differ|shape|zip"):
        check_within_rounding(mistake(stacked), separate.values(), x)


@given(cases())
@PROPERTY
def test_outputs_are_views_of_one_tensor(case):
    separate, x = case
    parts = stacking.stack(separate)(x)
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1


@pytest.mark.parametrize(
    ("names", "operators"),
    [
        (["wide", "thin"], ["convolution"]),
        (["bare"], ["convolution"]),
        (["wide", "bare"], ["masked_fill", "convolution"]),  # to keep a zero a zero
    ],
)
def test_one_convolution_whatever_the_branches(names, operators):
    separate = siblings()
    stacked, x = stacking.stack({name: separate[name] for name in names}), image()
    assert list(timing.count_launches(lambda: stacked(x)).names) == operators


PIXELS = {nn.Conv1d: (4,), nn.Conv2d: (4, 5), nn.Conv3d: (4, 5, 6), nn.Linear: ()}


@pytest.mark.parametrize("kind", PIXELS)
def test_an_empty_batch_passes(kind):
    separate, x = siblings(kind), torch.zeros(0, 3, *PIXELS[kind])
    assert exact(stacking.stack(separate)(x), [layer(x) for layer in separate.values()])


def test_nan_stays_in_its_own_branch():
    separate, x = siblings(), image()
    separate["thin"].weight.data.fill_(torch.nan)
    wide, bare, thin = stacking.stack(separate)(x)
    assert thin.isnan().all()
    check_within_rounding(lambda x: (wide, bare), [separate["wide"], separate["bare"]], x)


CONTAINERS = (list, tuple, iter, nn.ModuleList, nn.Sequential)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_lists_names_are_its_indices(container):
    separate = siblings().values()
    pack = (lambda s: container(*s)) if container is nn.Sequential else container
    assert stacking.unstackable(pack(separate)) == ""
    assert stacking.stack(pack(separate)).names == ("0", "1", "2")


@pytest.mark.parametrize("container", [dict, nn.ModuleDict])
def test_a_dicts_names_keep_their_order(container):
    stacked = stacking.stack(container(siblings()))
    assert stacked.names == tuple(stacking.unstack(stacked)) == ("wide", "bare", "thin")
    assert "wide: 4, bare: 3, thin: 1" in str(stacked)


@pytest.mark.parametrize("name", ["a.b", "layer", "keys", "forward", "absent", "0"])
def test_a_branch_may_have_any_name(name):
    separate = siblings()
    separate = {name: separate["thin"], "other": separate["bare"]}
    stacked, expected = stacking.stack(separate), {}
    for branch, layer in separate.items():
        expected |= {f"{branch}.{key}": t for key, t in layer.state_dict().items()}
    filled(stacked.layer, torch.Generator().manual_seed(5))
    stacked.load_state_dict(expected)
    assert same_state(stacked.state_dict(), expected)
    back = stacking.unstack(stacked)
    assert list(back) == [name, "other"]
    assert all(same_state(back[n].state_dict(), separate[n].state_dict()) for n in back)


# stack_parameters: the same on tensors.


def test_stack_parameters_by_hand():
    weights = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])]
    weight, bias = stacking.stack_parameters(weights, [None, torch.tensor([7.0, 8.0])])
    assert weight.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert bias.tolist() == [0, 7, 8]


ROW, ROWS, LONG = torch.ones(1, 2), torch.ones(3, 2), torch.ones(3, 4)
ONE, THREE = torch.ones(1), torch.ones(3)

UNFIT_PARAMETERS = [
    (r"biases: expected .*, got 0 for 0", [], []),
    (r"biases: expected .*, got 1 for 2", [ROW, ROWS], [ONE]),
    (r"biases: expected .*, got 2 for 1", [ROW], [ONE, THREE]),
    (r"weights: .*, got .*\(2,\).*\(4,\)", [ROW, LONG], [ONE, THREE]),
    (r"weights: .*, got .*\(2,\).*\(2, 1\)", [ROW, ROWS[:, :, None]], [None, None]),
    (r"weights: .*, got .*float32.*float64", [ROW, ROWS.double()], [None, None]),
    (r"biases\[1\]: .*, got torch.float32 \[1\]", [ROW, ROWS], [ONE, ONE]),
    (r"biases\[0\]: .*, got torch.float32 \[1, 2\]", [ROW], [ROW]),
    (r"biases\[1\]: .*, got torch.float64 \[3\]", [ROW, ROWS], [None, THREE.double()]),
]


@pytest.mark.parametrize(("message", "weights", "biases"), UNFIT_PARAMETERS)
def test_parameters_that_do_not_fit_are_refused_by_name(message, weights, biases):
    with pytest.raises(ValueError, match=f"^{message}"):
        stacking.stack_parameters(weights, biases)


@pytest.mark.parametrize("of_weight", [True, False])
@pytest.mark.parametrize("of_bias", [True, False])
def test_stack_parameters_keeps_dtype_and_who_learns(of_weight, of_bias):
    weights = [torch.ones(K, 2).double().requires_grad_(of_weight) for K in (1, 3)]
    biases = [None, torch.ones(3).double().requires_grad_(of_bias)]
    weight, bias = stacking.stack_parameters(weights, biases)
    assert (weight.dtype, bias.dtype) == (torch.float64, torch.float64)
    assert (weight.requires_grad, bias.requires_grad) == (of_weight, of_bias)
    assert weight.is_leaf
    assert bias.is_leaf


# There and back.


@given(cases(dtypes=DTYPES))
@PROPERTY
def test_unstack_gives_the_layers_back_bit_for_bit(case):
    separate, _ = case
    back = unstacked(stacking.stack(separate))
    assert same_state(back.state_dict(), nn.ModuleList(separate).state_dict())
    assert [str(m) for m in back.values()] == [str(m) for m in separate]


def test_unstack_gives_the_current_weights():
    stacked, other = stacking.stack(siblings(seed=0)), siblings(seed=1)
    stacked.load_state_dict(other.state_dict())
    assert same_state(unstacked(stacked).state_dict(), other.state_dict())
    assert not same_state(siblings(seed=0).state_dict(), other.state_dict())


@pytest.mark.parametrize("names", [["wide", "bare", "thin"], ["wide"]])
def test_the_layers_are_left_as_they_were(names):
    every = siblings(kernel_size=3)
    separate = nn.ModuleDict({name: every[name] for name in names})
    before, parameters = copy.deepcopy(separate), list(separate.parameters())
    stacked = stacking.stack(separate)
    sum(part.sum() for part in stacked(image())).backward()
    with torch.no_grad():
        for parameter in stacked.parameters():
            parameter.add_(1)
    assert same_state(separate.state_dict(), before.state_dict())
    assert str(separate) == str(before)
    assert all(a is b for a, b in zip(separate.parameters(), parameters, strict=True))
    assert all(parameter.grad is None for parameter in parameters)


def test_the_stacked_layer_and_its_unstacked_layers_stay_when_others_change():
    separate = siblings()
    stacked = stacking.stack(separate)
    back = unstacked(stacked)
    expected = copy.deepcopy(separate.state_dict())
    filled(separate, torch.Generator().manual_seed(5))
    assert same_state(stacked.state_dict(), expected)
    stacked.load_state_dict(separate.state_dict())
    assert same_state(back.state_dict(), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_settings_survive_there_and_back(training, requires_grad):
    separate = siblings().train(training).requires_grad_(requires_grad)
    stacked = stacking.stack(separate)
    for module in (stacked, stacked.layer, *stacking.unstack(stacked).values()):
        assert module.training is training
        assert {p.requires_grad for p in module.parameters()} == {requires_grad}


def test_a_frozen_bias_stays_frozen_beside_a_missing_one():
    separate = siblings()
    for name in ("wide", "thin"):
        separate[name].bias.requires_grad_(False)
    back = unstacked(stacking.stack(separate))
    frozen = {name for name, p in back.named_parameters() if not p.requires_grad}
    assert frozen == {"wide.bias", "thin.bias"}


def test_channels_last_weights_stay_so():
    separate = siblings(kernel_size=3).to(memory_format=torch.channels_last)
    stacked = stacking.stack(separate)
    x = image().to(memory_format=torch.channels_last)
    assert stacked.layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert not stacked.layer.weight.is_contiguous()
    for layer in stacking.unstack(stacked).values():
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    check_within_rounding(stacked, separate.values(), x)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("names", [["wide", "thin"], ["wide", "bare", "thin"], ["bare"]])
def test_no_weight_is_stored_twice(names):
    separate = nn.ModuleDict({name: siblings()[name] for name in names})
    stacked = stacking.stack(separate)
    zeros = WIDTHS["bare"] if {"wide", "bare"} <= set(names) else 0
    assert count(stacked) == count(separate) + zeros


# Checkpoints.


@given(cases(dtypes=DTYPES))
@PROPERTY
def test_state_dict_is_that_of_the_separate_layers(case):
    separate, _ = case
    state = stacking.stack(separate).state_dict()
    assert same_state(state, nn.ModuleList(separate).state_dict())


def parent(child):
    """A network with the layers two levels down: keys start with "1.heads."."""
    return nn.Sequential(
        nn.Linear(3, 3), nn.ModuleDict({"heads": child}), nn.BatchNorm1d(3)
    )


@pytest.mark.parametrize("wrap", [lambda child: child, parent], ids=["alone", "nested"])
def test_each_loads_the_others_checkpoint(wrap):
    donor, separate = wrap(siblings(seed=0)), wrap(siblings(seed=1))
    stacked = wrap(stacking.stack(siblings(seed=2)))
    assert not same_state(stacked.state_dict(), donor.state_dict())
    stacked.load_state_dict(donor.state_dict())
    assert same_state(stacked.state_dict(), donor.state_dict())
    separate.load_state_dict(stacked.state_dict())
    assert same_state(separate.state_dict(), donor.state_dict())


def test_loading_leaves_the_checkpoint_as_it_was():
    donor = siblings().state_dict()
    before = copy.deepcopy(donor)
    stacked = stacking.stack(siblings(seed=1))
    stacked.load_state_dict(donor)
    filled(stacked, torch.Generator().manual_seed(5))
    assert same_state(donor, before)


def test_state_dict_tensors_are_views_as_torchs_are():
    stacked = stacking.stack(siblings())
    stacked.state_dict()["thin.weight"].fill_(7)
    assert (stacking.unstack(stacked)["thin"].weight == 7).all()


def test_a_saved_state_loads_with_weights_only():
    stacked = stacking.stack(siblings())
    state = saved(stacked.state_dict(), weights_only=True)
    assert same_state(state, siblings().state_dict())
    for fresh in (siblings(seed=1), stacking.stack(siblings(seed=1))):
        fresh.load_state_dict(state)
        assert same_state(fresh.state_dict(), stacked.state_dict())


@pytest.mark.parametrize("order", [["wide", "bare"], ["bare", "wide"], ["wide", "thin"]])
def test_a_stacked_layer_that_was_emptied_loads_a_checkpoint(order):
    separate = siblings()
    source, x = parent(stacking.stack({name: separate[name] for name in order})), image()
    fresh = copy.deepcopy(source).to("meta").to_empty(device="cpu")
    for tensor in (*fresh.parameters(), *fresh.buffers()):  # memory holds anything
        tensor.data.fill_(1)
    fresh.load_state_dict(source.state_dict())
    source, fresh = source[1]["heads"], fresh[1]["heads"]
    assert exact(fresh(x), source(x))
    with torch.no_grad():
        assert exact(fresh(x), source(x))


def test_masks_are_made_where_the_weights_are():
    stacked = stacking.stack(siblings().to("meta"))
    assert stacked.missing_bias_mask.device.type == "meta"


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("order", [["wide", "thin"], ["wide", "bare"], ["bare", "wide"]])
def test_assigning_takes_dtype_and_device_from_the_checkpoint(order, device):
    donor, fresh = siblings(seed=1, dtype=torch.float64), siblings().to(device)
    donor = nn.ModuleDict({name: donor[name] for name in order})
    stacked = stacking.stack({name: fresh[name] for name in order})
    stacked.load_state_dict(donor.state_dict(), assign=True)
    assert same_state(stacked.state_dict(), donor.state_dict())
    check_within_rounding(stacked, donor.values(), image(dtype=torch.float64))
    assert {p.requires_grad for p in stacked.parameters()} == {True}


@pytest.mark.parametrize("change", [torch.Tensor.double, torch.Tensor.numpy])
def test_loading_keeps_the_dtype_of_the_module(change):
    stacked, donor = stacking.stack(siblings()), siblings(seed=1).state_dict()
    stacked.load_state_dict({key: change(tensor) for key, tensor in donor.items()})
    assert same_state(stacked.state_dict(), donor)


def test_loading_keeps_the_device_of_the_module():
    stacked = stacking.stack(siblings()).to("meta")
    stacked.load_state_dict(siblings().state_dict())
    tensors = *stacked.parameters(), *stacked.buffers()
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_a_key_missing_from_an_assigned_checkpoint_is_named():
    state = siblings().state_dict()
    del state["wide.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*wide\.weight"):
        stacking.stack(siblings()).to("meta").load_state_dict(state, assign=True)


# (what is wrong with a state dict, what the message says; {} is the prefix)
UNFIT = {
    "missing weight": (lambda s, at: s.pop(at + "thin.weight"), 'Missing.*"{}thin.weight"'),
    "missing bias": (lambda s, at: s.pop(at + "wide.bias"), 'Missing.*"{}wide.bias"'),
    "bias of a layer without": (lambda s, at: s.update({at + "bare.bias": torch.zeros(3)}),
        'Unexpected.*"{}bare.bias"'),
    "unknown branch": (lambda s, at: s.update({at + "new.weight": torch.zeros(3)}),
        'Unexpected.*"{}new.weight"'),
    "wrong rows": (lambda s, at: s.update({at + "wide.weight": torch.zeros(3, 3, 1, 1)}),
        r"{}wide.weight: .*\[4, 3, 1, 1\], got \[3, 3, 1, 1\]"),
    "shape that would broadcast": (
        lambda s, at: s.update({at + "wide.bias": torch.zeros(1)}),
        r"{}wide.bias: .*\[4\], got \[1\]",
    ),
    "a list": (lambda s, at: s.update({at + "wide.bias": [1.0]}),
        "{}wide.bias: .*, got list"),
    "an array of another shape": (lambda s, at: s.update({at + "thin.bias": np.ones(2)}),
        r"{}thin.bias: .*, got \[2\]"),
    "a key of the stacked layer": (
        lambda s, at: s.update({at + "layer.weight": torch.zeros(8, 3, 1, 1)}),
        'Unexpected.*"{}layer.weight"',
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize(
    ("wrap", "at"),
    [(lambda child: child, ""), (parent, "1.heads.")],
    ids=["alone", "nested"],
)
def test_strict_errors_name_the_users_own_keys(spoil, message, wrap, at):
    state = wrap(siblings()).state_dict()
    spoil(state, at)
    with pytest.raises(RuntimeError, match=message.format(at.replace(".", r"\."))) as error:
        wrap(stacking.stack(siblings())).load_state_dict(state)
    assert str(error.value).count("layer.") == message.count("layer.")


def test_strict_false_keeps_what_was_missing_and_names_it():
    stacked, state = stacking.stack(siblings(seed=0)), siblings(seed=1).state_dict()
    kept = siblings(seed=0)["wide"].bias
    del state["wide.bias"]
    state["bare.bias"] = torch.ones(3)
    report = stacked.load_state_dict(state, strict=False)
    assert report.missing_keys == ["wide.bias"]
    assert report.unexpected_keys == ["bare.bias"]
    expected = siblings(seed=1).state_dict() | {"wide.bias": kept}
    assert same_state(stacked.state_dict(), expected)


def test_strict_false_takes_no_wrong_shape():
    stacked, state = stacking.stack(siblings()), siblings(seed=1).state_dict()
    state["wide.bias"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"wide.bias: .*, got \[3\]"):
        stacked.load_state_dict(state, strict=False)


# Copies and casts.


def test_deepcopy_stands_alone():
    stacked = stacking.stack(siblings(seed=0))
    twin = copy.deepcopy(stacked)
    twin.load_state_dict(siblings(seed=1).state_dict())
    assert same_state(twin.state_dict(), siblings(seed=1).state_dict())
    assert same_state(stacked.state_dict(), siblings(seed=0).state_dict())


def test_pickle_keeps_outputs_and_checkpoints():
    stacked, x = stacking.stack(siblings()), image()
    again = pickle.loads(pickle.dumps(stacked))
    assert exact(again(x), stacked(x))
    again.load_state_dict(siblings(seed=1).state_dict())
    assert same_state(again.state_dict(), siblings(seed=1).state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@given(cases(whole=True))
@settings(PROPERTY, max_examples=10)
def test_casting_before_or_after_stacking_is_the_same(dtype, case):
    separate, x = case
    stacked = stacking.stack(separate).to(dtype)
    parts = stacked(x.to(dtype))
    assert exact(parts, [layer.to(dtype)(x.to(dtype)) for layer in separate])
    assert same_state(stacked.state_dict(), nn.ModuleList(separate).state_dict())


# Gradients and training.


def gradients(separate, x, run=None, change=lambda tensor: tensor):
    """d(Σ g·y) by the parameters of `separate` or of the module `run`, then by x."""
    generator, x = torch.Generator().manual_seed(3), x.detach().requires_grad_()
    parts = run(x) if run else [layer(x) for layer in separate]
    loss = sum((change(numbers(y.shape, generator, True)) * y).sum() for y in parts)
    owners = [run] if run else separate
    parameters = [p for owner in owners for p in owner.parameters()]
    *grads, to_x = torch.autograd.grad(loss, [*parameters, x])
    return [*(grads if run else joined(separate, grads)), to_x]


def joined(separate, grads):
    """Separate layers' gradients stacked by hand: [weight, bias], zeros if missing."""
    named = [name for layer in separate for name, _ in layer.named_parameters()]
    weights = [g for g, name in zip(grads, named, strict=True) if name == "weight"]
    biases = iter([g for g, name in zip(grads, named, strict=True) if name == "bias"])
    if "bias" not in named:
        return [torch.cat(weights)]
    rows = [
        g.new_zeros(len(g)) if layer.bias is None else next(biases)
        for g, layer in zip(weights, separate, strict=True)
    ]
    return [torch.cat(weights), torch.cat(rows)]


@given(cases(whole=True, dtypes=(torch.float32, torch.float64)))
@PROPERTY
def test_gradients_are_equal_bit_for_bit_on_whole_numbers(case):
    separate, x = case
    actual = gradients(separate, x, run=stacking.stack(separate))
    assert exact(actual, gradients(separate, x))


IN_PLACE = {
    "relu_": torch.Tensor.relu_,
    "ReLU": nn.ReLU(inplace=True),
    "mul_": lambda y: y.mul_(3),
}


@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Linear])
@pytest.mark.parametrize("names", [["wide"], ["bare"], ["thin"], ["wide", "bare", "thin"]])
def test_outputs_may_be_changed_in_place(change, kind, names):
    generator = torch.Generator().manual_seed(0)
    separate = filled(siblings(kind), generator, whole=True)
    stacked, x = stacking.stack(separate), numbers((2, 3, 4, 3), generator, True).float()
    for name in names:
        separate[name].register_forward_hook(lambda layer, args, y: change(y))

    def after(stacked, args, parts):
        named = zip(stacked.names, parts, strict=True)
        return tuple(change(y) if name in names else y for name, y in named)

    stacked.register_forward_hook(after)
    assert exact(stacked(x), [layer(x) for layer in separate.values()])
    actual = gradients(separate.values(), x, run=stacked)
    assert exact(actual, gradients(separate.values(), x))


def check_gradients(stacked, separate, x):
    """Hold a stacked layer's gradients to its separate layers' in float64."""

    def in_float64(change):
        changed = [double(layer, change) for layer in separate]
        return gradients(changed, change(x.double()), change=change)

    actual, expected = gradients(separate, x, run=stacked), in_float64(lambda t: t)
    # With absolute values the same sums give their size, with ones their terms.
    sizes, terms = in_float64(torch.abs), in_float64(torch.ones_like)
    bound = rounding(int(max(t.max() for t in terms)))
    for a, e, size in zip(actual, expected, sizes, strict=True):
        agree(a, e, bound * size)


@given(cases())
@PROPERTY
def test_gradients_are_equal_within_rounding(case):
    separate, x = case
    check_gradients(stacking.stack(separate), separate, x)


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_wrong_gradients_are_noticed(parameter):
    separate, x = list(siblings(kernel_size=3).values()), image()
    stacked = stacking.stack(separate)
    check_gradients(stacked, separate, x)
    getattr(stacked.layer, parameter).register_hook(lambda grad: grad.roll(1, 0))
    with pytest.raises(Disagreement, match="entries differ"):
        check_gradients(stacked, separate, x)


OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.1),
}


def train(run, module, optimiser, x):
    """Five steps towards outputs of 1."""
    steps = optimiser(module.parameters())
    for _ in range(5):
        steps.zero_grad()
        sum((y - 1).square().mean() for y in run(x)).backward()
        steps.step()


@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.Conv2d, (2, 3, 4, 5)), (nn.Linear, (6, 3))]
)
def test_training_gives_the_weights_of_the_separate_layers(optimiser, kind, shape):
    separate = siblings(kind, dtype=torch.float64)
    x = image(*shape, dtype=torch.float64)
    before, stacked = copy.deepcopy(separate), stacking.stack(separate)
    train(stacked, stacked, optimiser, x)
    train(lambda x: [layer(x) for layer in separate.values()], separate, optimiser, x)
    trained = unstacked(stacked).state_dict()
    for key, expected in separate.state_dict().items():
        agree(trained[key], expected, 1e-12)
        with pytest.raises(Disagreement, match="entries differ"):
            agree(before.state_dict()[key], expected, 1e-12)


@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
def test_a_missing_bias_stays_exactly_zero(optimiser):
    stacked, x = stacking.stack(siblings()), image()
    train(stacked, stacked, optimiser, x)
    wide, bare, thin = stacked(torch.zeros_like(x))  # the biases, one in each channel
    assert not bare.any()
    assert wide.all()
    assert thin.all()
    with torch.no_grad():
        assert exact(stacked(torch.zeros_like(x)), [wide, bare, thin])


WRITES = {
    "randomise": models.randomise,
    "apply": lambda s: s.apply(lambda m: hasattr(m, "bias") and nn.init.ones_(m.bias)),
    "NaN": edit(lambda s: s.layer.bias[4:7].fill_(torch.nan)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_to_a_missing_bias_shows_nowhere(write):
    stacked, x = stacking.stack(siblings()), image()
    write(stacked)
    check_within_rounding(stacked, stacking.unstack(stacked).values(), x)
    recorded = stacked(x)
    with torch.no_grad():
        assert exact(stacked(x), recorded)


@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
def test_a_bias_of_zeros_would_not_have_stayed_zero(optimiser):
    layer, x = siblings()["thin"], image()
    layer.bias.data.zero_()
    train(lambda x: [layer(x)], layer, optimiser, x)
    assert layer.bias.all()


# Refusals: the sentence names the argument, what was expected and what came.


def conv(width=2, c_in=3, kernel=1, **options):
    return nn.Conv2d(c_in, width, kernel, **options)


def hooked(register):
    layer = conv()
    getattr(layer, register)(lambda *args: None)
    return layer


def with_its(parameter, change):
    """A convolution one of whose parameters is changed."""
    layer = conv()
    setattr(layer, parameter, nn.Parameter(*change(getattr(layer, parameter).detach())))
    return layer


def with_tensor_hook(parameter, register="register_hook"):
    layer = conv()
    getattr(getattr(layer, parameter), register)(lambda grad: None)
    return layer


def with_own(name, value):
    layer = conv()
    setattr(layer, name, value)
    return layer


def with_buffer(name):
    layer = conv()
    layer.register_buffer(name, torch.ones(1))
    return layer


def without(parameter):
    layer = conv()
    delattr(layer, parameter)
    return layer


def sharing(parameter, wrap=lambda p: p):
    a, b = conv(), conv()
    setattr(b, parameter, wrap(getattr(a, parameter)))
    return [a, b]


def again(parameter):
    """Another Parameter on the same memory."""
    return nn.Parameter(parameter.detach())


class Subclass(nn.Conv2d):
    pass


ITSELF = "expected Conv1d, Conv2d, Conv3d or Linear itself, no subclass, got"


def hooks(kind):
    return rf"hooks of layers\[1\]: expected none, .*, got \[.*'{kind}'.*\]"


def extras(name):
    return rf"extras of layers\[0\]: expected none, .*, got \['{name}'\]"


REFUSED = [
    ("layers: expected at least one, got none", list),
    ("layers: expected at least one, got none", dict),
    ("layers: expected at least one, got none", nn.ModuleList),
    (rf"type of layers\[1\]: {ITSELF} str", lambda: [conv(), "conv"]),
    (rf"type of layers\[0\]: {ITSELF} NoneType", lambda: [None, conv()]),
    (rf"type of layers\[1\]: {ITSELF} ReLU", lambda: [conv(), nn.ReLU()]),
    (rf"type of layers\[a\]: {ITSELF} Subclass", lambda: {"a": Subclass(3, 2, 1)}),
    (rf"{ITSELF} LazyConv2d", lambda: [nn.LazyConv2d(2, 1), conv()]),
    (rf"{ITSELF} ConvTranspose2d", lambda: [nn.ConvTranspose2d(3, 2, 1)]),
    (rf"{ITSELF} Bilinear", lambda: [nn.Bilinear(3, 3, 2)]),
    (rf"{ITSELF} Parametrized", lambda: [parametrizations.weight_norm(conv())]),
    (r"groups of layers\[0\]: expected 1, got 2",
     lambda: [conv(2, 4, groups=2), conv(2, 4)]),
    (hooks("forward"), lambda: [conv(), hooked("register_forward_hook")]),
    (hooks("forward_pre"), lambda: [conv(), hooked("register_forward_pre_hook")]),
    (hooks("backward"), lambda: [conv(), hooked("register_full_backward_hook")]),
    (hooks("backward_pre"), lambda: [conv(), hooked("register_full_backward_pre_hook")]),
    (hooks("state_dict"), lambda: [conv(), hooked("register_state_dict_post_hook")]),
    (hooks("load_state_dict_pre"),
     lambda: [conv(), hooked("register_load_state_dict_pre_hook")]),
    (hooks("load_state_dict_post"),
     lambda: [conv(), hooked("register_load_state_dict_post_hook")]),
    (hooks("tensor"), lambda: [conv(), with_tensor_hook("weight")]),
    (hooks("tensor"), lambda: [conv(), with_tensor_hook("bias")]),
    (hooks("forward_pre"), lambda: [conv(), nn.utils.spectral_norm(conv())]),
    (hooks("forward_pre"),
     lambda: [conv(), prune.random_unstructured(conv(), "weight", 1)]),
    (hooks("state_dict_pre"), lambda: [conv(), hooked("register_state_dict_pre_hook")]),
    (hooks("tensor"),
     lambda: [conv(), with_tensor_hook("weight", "register_post_accumulate_grad_hook")]),
    (extras("forward"), lambda: [with_own("forward", torch.relu), conv()]),
    (extras("_conv_forward"), lambda: [with_own("_conv_forward", torch.relu), conv()]),
    (extras("child"), lambda: [with_own("child", nn.ReLU()), conv()]),
    (extras("scale"), lambda: [with_buffer("scale"), conv()]),
    (r"parameters of .*1\]: .*'bias': 'missing'", lambda: [conv(), without("bias")]),
    (r"parameters of .*0\]: .*'weight': 'torch.sparse_coo'",
     lambda: [with_its("weight", lambda w: (w.to_sparse(),))]),
    (r"dtype of layers\[0\]: expected the same .*, got .*float32.*float64",
     lambda: [with_its("bias", lambda b: (b.double(),))]),
    (r"device of layers\[0\]: expected the same .*, got .*cpu.*meta",
     lambda: [with_its("bias", lambda b: (b.to("meta"),))]),
    (r"type differs: layers\[0\] Conv1d, layers\[1\] Linear; siblings have one type",
     lambda: [nn.Conv1d(3, 2, 1), nn.Linear(3, 2)]),
    (r"in_channels differs: layers\[a\] 3, layers\[b\] 4; siblings have one in_channels",
     lambda: {"a": conv(), "b": conv(2, 4)}),
    (r"in_features differs: layers\[0\] 3, layers\[1\] 4; siblings have one in_features",
     lambda: [nn.Linear(3, 2), nn.Linear(4, 2)]),
    (r"kernel_size differs: .*\(1, 1\).*\(3, 3\); ", lambda: [conv(), conv(kernel=3)]),
    (r"stride differs: .*\(1, 1\).*\(2, 2\); ", lambda: [conv(), conv(stride=2)]),
    (r"padding differs: .*\(0, 0\).*\(1, 1\); ", lambda: [conv(), conv(padding=1)]),
    (r"padding differs: .*\(0, 0\).*\(1, 1\); ",
     lambda: [conv(kernel=3), conv(kernel=3, padding="same")]),
    ("padding_mode differs: .*zeros.*circular; siblings have one padding_mode",
     lambda: [conv(padding=1), conv(padding=1, padding_mode="circular")]),
    (r"dilation differs: .*\(1, 1\).*\(2, 2\); ",
     lambda: [conv(kernel=3), conv(kernel=3, dilation=2)]),
    ("dtype differs: .*float32.*float64; ", lambda: [conv(), conv().double()]),
    ("device differs: .*cpu.*meta; ", lambda: [conv(), conv(device="meta")]),
    ("requires_grad of weight differs: .*True.*False; siblings have one requires_grad",
     lambda: [conv(), conv().requires_grad_(False)]),
    ("requires_grad of bias differs: .*True.*False; siblings have one requires_grad",
     lambda: [conv(), with_its("bias", lambda b: (b, False))]),
    ("training differs: .*True.*False; ", lambda: [conv(), conv().eval()]),
    (
        r"differs: layers\[0\] .*, layers\[1\] .*, layers\[2\] .*; ",  # the third alone
        lambda: [conv(), conv(), conv(stride=2)],
    ),
    ("share a parameter: expected separate", lambda: [conv()] * 2),
    ("share a parameter: ", lambda: sharing("weight")),
    ("share a parameter: ", lambda: sharing("bias")),
    ("share a parameter: ", lambda: sharing("weight", again)),
    ("share a parameter: ", lambda: sharing("bias", again)),
    ("share a parameter: ", lambda: [conv(device="meta")] * 2),
    ("layers: expected .*, got the name 1", lambda: {1: conv()}),
    ("layers: expected .*, got the name ''", lambda: {"a": conv(), "": conv()}),
    ("layers: .*, got type int", lambda: 5),
    ("layers: .*, got type NoneType", lambda: None),
    ("layers: .*, got type Conv2d", conv),
]  # fmt: skip


@pytest.mark.parametrize(("message", "build"), REFUSED)
def test_layers_that_do_not_fit_are_refused_by_name(message, build):
    unfit = build()
    with pytest.raises(FusionError, match=message) as error:
        stacking.stack(unfit)
    assert stacking.unstackable(unfit) == str(error.value)


def test_a_fusion_error_is_a_value_error():
    assert issubclass(FusionError, ValueError)


@pytest.mark.parametrize("other", [5, None, conv(), nn.ModuleList()])
def test_unstack_takes_a_stacked_layer_only(other):
    with pytest.raises(
        FusionError, match=rf"stacked: expected a Stacked, got type {type(other).__name__}"
    ):
        stacking.unstack(other)


# split


@given(st.data())
@PROPERTY
def test_split_cuts_in_order_along_any_dimension(data):
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    dim, shape = data.draw(st.integers(-3, 2)), [2, 3, 4]
    shape[dim] = sum(sizes)
    y = torch.arange(np.prod(shape)).reshape(shape)
    parts = stacking.split(y, tuple(sizes), dim)
    expected = np.split(y.numpy(), np.cumsum(sizes)[:-1], axis=dim)
    assert exact(parts, [torch.from_numpy(part) for part in expected])


def test_split_gives_views():
    y = torch.zeros(2, 5)
    stacking.split(y, (2, 3), dim=1)[1].fill_(1)
    assert y.tolist() == [[0, 0, 1, 1, 1]] * 2


Y = torch.zeros(2, 5)

UNSPLIT = [
    (r"dim: expected one of the 2 dim.*, got 2", lambda: stacking.split(Y, (2, 3), 2)),
    (r"dim: expected one of the 2 dim.*, got -3", lambda: stacking.split(Y, (2, 3), -3)),
    (r"dim: expected one of the 0 dim.*, got 0", lambda: stacking.split(Y[0, 0], (1,), 0)),
    ("dim: .*, got 1.0", lambda: stacking.split(Y, (2, 3), 1.0)),
    ("dim: .*, got True", lambda: stacking.split(Y, (2, 3), True)),
    (r"sizes: expected .* sum 5, got \[2, 2\]", lambda: stacking.split(Y, (2, 2), 1)),
    (r"sizes: expected .* sum 2, got \[2, 3\]", lambda: stacking.split(Y, (2, 3), 0)),
    (r"sizes: expected .*, got \[6, -1\]", lambda: stacking.split(Y, (6, -1), 1)),
    (r"sizes: expected .*, got \[\]", lambda: stacking.split(Y, (), 1)),
    (r"sizes: expected .*, got \[2.0, 3.0\]", lambda: stacking.split(Y, (2.0, 3.0), 1)),
    (r"sizes: expected .*, got \[True, 4\]", lambda: stacking.split(Y, (True, 4), 1)),
    (r"sizes: expected .*, got .*2.*", lambda: stacking.split(Y, 2, 1)),
    (r"sizes: expected .*, got .*5.0.*", lambda: stacking.split(Y, 5.0, 1)),
    (r"sizes: expected .*, got .*True.*", lambda: stacking.split(Y[:1], True, 0)),
]


@pytest.mark.parametrize(("message", "call"), UNSPLIT)
def test_split_refuses_by_name(message, call):
    with pytest.raises(ValueError, match=message):
        call()


# An activation: once where each branch lies in one piece, else to each branch.

FORMS = {  # how a layer is made, and the shapes of inputs: (in one piece, strided)
    "Conv1d": (nn.Conv1d, (1, 4, 7), (2, 4, 7)),
    "Conv2d": (nn.Conv2d, (1, 4, 3, 5), (2, 4, 3, 5)),
    "Conv3d": (nn.Conv3d, (1, 4, 3, 5, 2), (2, 4, 3, 5, 2)),
    "without a batch": (nn.Conv2d, (4, 3, 5), None),
    "Linear": (nn.Linear, (1, 4), (2, 4)),
    "a vector": (nn.Linear, (4,), None),
    "one token": (nn.Linear, (1, 1, 4), (1, 2, 4)),
}


def with_activation(kind, activation, **options):
    """Two layers, and the two stacked."""
    settings = {} if kind is nn.Linear else {"kernel_size": 1}
    separate = [kind(4, size, **settings).double() for size in (3, 2)]
    return separate, stacking.stack(separate, activation, **options)


def relus(call):
    return timing.count_launches(call).names.count("relu")


@pytest.mark.parametrize("name", FORMS)
def test_an_activation_is_applied_once_where_branches_lie_in_one_piece(name):
    kind, *shapes = FORMS[name]
    separate, stacked = with_activation(kind, nn.ReLU())
    _, forced = with_activation(kind, nn.ReLU(), hoist=True)
    for shape, calls in zip(shapes, (1, 2), strict=True):
        if shape:
            x = image(*shape, dtype=torch.float64)
            expected = [layer(x).relu() for layer in separate]
            for part, output in zip(stacked(x), expected, strict=True):
                agree(part, output, 1e-12)
                assert part.is_contiguous()
            assert relus(lambda x=x: stacked(x)) == calls
            assert relus(lambda x=x: forced(x)) == 1
            assert all(part.is_contiguous() for part in forced(x)) == (calls == 1)


class MyReLU(nn.ReLU):
    """Whose forward may do anything."""


UNFIT = [nn.Softmax(1), nn.Softmax2d(), nn.LayerNorm(3), nn.Dropout(), nn.GLU(1),
         nn.Sequential(nn.ReLU()), nn.PReLU(), MyReLU(), 3, "relu", False, nn.ReLU,
         torch.relu, nn.functional.gelu]  # fmt: skip


@pytest.mark.parametrize("activation", UNFIT, ids=range(len(UNFIT)))
def test_an_activation_that_mixes_numbers_or_is_none_is_refused(activation):
    with pytest.raises(FusionError) as raised:
        with_activation(nn.Conv2d, activation)
    said = str(raised.value)
    assert said.startswith("activation: expected a module that treats each number alone (R")
    assert said.endswith(f", got {activation!r}")


@pytest.mark.parametrize("kind", stacking.POINTWISE)
def test_each_pointwise_activation_of_torch_fits(kind):
    separate, stacked = with_activation(nn.Conv2d, kind())
    x = image(2, 4, 3, 5, dtype=torch.float64)
    for part, layer in zip(stacked(x), separate, strict=True):
        agree(part, kind()(layer(x)), 1e-12)


@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_has_no_branch_in_one_piece(batch):
    separate, stacked = with_activation(nn.Conv2d, nn.ReLU())
    last = {"memory_format": torch.channels_last}
    stacked, x = stacked.to(**last), image(batch, 4, 3, 5, dtype=torch.float64).to(**last)
    assert relus(lambda: stacked(x)) == 2
    for part, layer in zip(stacked(x), separate, strict=True):
        agree(part, layer(x).relu(), 1e-12)
        assert part.is_contiguous(**last)


@pytest.mark.parametrize("hoist", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_branches_with_an_activation_may_be_changed_in_place(batch, hoist):
    """Where autograd allows it of separate layers; where it refuses, it refuses here."""
    x = image(batch, 4, 3, 5, dtype=torch.float64)

    def gradients(layer, outputs):
        first, second = outputs
        first.mul_(second.detach().mean()).add_(1)
        return torch.autograd.grad((first**2).sum() + second.sum(), layer)

    separate, stacked = with_activation(nn.Conv2d, nn.GELU(), hoist=hoist)
    weights = [layer.weight for layer in separate]
    expected = gradients(weights, [nn.functional.gelu(layer(x)) for layer in separate])
    (found,) = gradients([stacked.layer.weight], stacked(x))
    agree(found, torch.cat(expected), 1e-11)
    separate, stacked = with_activation(nn.Conv2d, nn.ReLU(), hoist=hoist)
    for layer, outputs in (
        ([separate[0].weight], [layer(x).relu() for layer in separate]),
        ([stacked.layer.weight], stacked(x)),
    ):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(layer, outputs)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"kernel": 3, "padding": "same"}, {"kernel": 3, "padding": 1}),
        ({"kernel": 3, "padding": "valid"}, {"kernel": 3}),
        ({"padding": "same"}, {}),
        ({"dilation": 2}, {}),
        ({"kernel": (1, 3), "dilation": (2, 1)}, {"kernel": (1, 3)}),
        ({"kernel": 3, "padding_mode": "reflect"}, {"kernel": 3}),
        ({"kernel": 3, "padding": "valid", "padding_mode": "circular"}, {"kernel": 3}),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_geometry_is_compared_by_its_effect(one, other, turned):
    siblings = [conv(2, **one).double(), conv(5, **other).double()][:: -1 if turned else 1]
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    for layer, part in zip(siblings, stacking.stack(siblings)(x), strict=True):
        assert torch.allclose(layer(x), part, rtol=1e-12)
    again = stacking.unstack(stacking.stack(siblings))
    for layer, copied in zip(siblings, again.values(), strict=True):
        assert torch.equal(layer(x), copied(x))
