"""models.py against the paper's table and a forward pass written by hand."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hfusion import algebra, models
from hfusion.timing import Disagreement, agree

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)


# The table: Szegedy et al. 2014, table 1, read by column where models.TABLE goes by row.

COLUMNS = {
    "output channels": (256, 480, 512, 512, 512, 528, 832, 832, 1024),
    "#1×1": (64, 128, 192, 160, 128, 112, 256, 256, 384),
    "#3×3 reduce": (96, 128, 96, 112, 128, 144, 160, 160, 192),
    "#3×3": (128, 192, 208, 224, 256, 288, 320, 320, 384),
    "#5×5 reduce": (16, 32, 16, 24, 24, 32, 32, 32, 48),
    "#5×5": (32, 96, 48, 64, 64, 64, 128, 128, 128),
    "pool proj": (32, 64, 64, 64, 64, 64, 128, 128, 128),
}


def test_the_rows_are_the_papers():
    assert list(models.TABLE) == ["3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]
    assert [row[1] for row in models.TABLE.values()] == [28] * 2 + [14] * 5 + [7] * 2


def test_the_widths_are_the_papers():
    _, *columns = COLUMNS.values()
    assert [row[2:] for row in models.TABLE.values()] == list(zip(*columns, strict=True))


def test_the_branches_add_up_to_the_published_output_channels():
    sums = [row[2] + row[4] + row[6] + row[7] for row in models.TABLE.values()]
    assert tuple(sums) == COLUMNS["output channels"]


def test_each_module_reads_what_the_one_before_it_gives():
    inputs = [row[0] for row in models.TABLE.values()]
    assert inputs == [192, *COLUMNS["output channels"][:-1]]


@pytest.mark.parametrize("row", models.TABLE)
def test_from_table_builds_the_row(row):
    c_in, _, *widths = models.TABLE[row]
    with torch.device("meta"):  # shapes alone
        module = models.Inception.from_table(row)
        y = module(torch.empty(2, c_in, 7, 7))
    units = [unit for unit in module.children() if isinstance(unit, models.ConvUnit)]
    assert [unit.conv.out_channels for unit in units] == widths
    out = COLUMNS["output channels"][list(models.TABLE).index(row)]
    assert y.shape == (2, out, 7, 7)


def test_the_weights_of_3a_counted_by_hand():
    one, three, five = 192 * (64 + 96 + 16 + 32), 9 * 96 * 128, 25 * 16 * 32
    outputs = 64 + 96 + 128 + 16 + 32 + 32
    assert one + three + five == 163_328
    for batch_norm, a_channel in ((False, 1), (True, 2)):  # a bias; or γ and β
        module = models.Inception.from_table("3a", batch_norm)
        count = sum(parameter.numel() for parameter in module.parameters())
        assert count == 163_328 + a_channel * outputs


# The forward pass.


def filled(module, seed=0):
    """The module in float64, all its parameters and statistics drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.double().eval().state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(values.abs() + 0.25 if name.endswith("var") else values)
    return module


def image(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def unit(state, name, x):
    """Convolution, batch norm in eval mode if there is one, ReLU: as formulas."""
    weight, bias = state[f"{name}conv.weight"], state.get(f"{name}conv.bias")
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    if f"{name}bn.weight" in state:
        rows = ("running_mean", "running_var", "weight", "bias")
        mean, var, gamma, beta = (state[f"{name}bn.{row}"][:, None, None] for row in rows)
        y = gamma * (y - mean) / torch.sqrt(var + 0.001) + beta
    return y * (y > 0)


def inception(state, x):
    """The paper's figure 2b, from a state dict."""
    y1 = unit(state, "b1.", x)
    y3 = unit(state, "b3.", unit(state, "b3_reduce.", x))
    y5 = unit(state, "b5.", unit(state, "b5_reduce.", x))
    padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
    pooled = padded.unfold(2, 3, 1).unfold(3, 3, 1).amax(dim=(4, 5))
    return torch.cat([y1, y3, y5, unit(state, "pool_proj.", pooled)], dim=1)


FLOAT64 = 1e-11  # the outputs are below 1000, and float64 carries 16 digits


def test_conv_unit_by_hand():
    unit = models.ConvUnit(1, 1).double().eval()
    unit.conv.weight.data.fill_(2)
    unit.bn.running_mean.fill_(1)
    unit.bn.running_var.fill_(4 - 0.001)  # eps fills up to 4
    unit.bn.weight.data.fill_(6)
    unit.bn.bias.data.fill_(5)
    y = unit(torch.tensor([[[[3.0, -3.0]]]], dtype=torch.float64))
    agree(y, [[[[6 * (2 * 3 - 1) / 2 + 5, 0]]]], 1e-14)  # 20, and −16 is cut off


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_conv_unit_without_a_norm_is_loops_then_relu(kernel_size):
    unit, x = (
        filled(models.ConvUnit(2, 3, kernel_size, batch_norm=False)),
        image(2, 2, 4, 5),
    )
    weight, bias = unit.conv.weight.detach(), unit.conv.bias.detach()
    y = algebra.conv_loops(x, weight, bias, padding=kernel_size // 2)
    agree(unit(x), np.maximum(y, 0), FLOAT64)


@given(
    st.lists(st.integers(1, 5), min_size=7, max_size=7), st.booleans(), st.integers(0, 99)
)
@PROPERTY
def test_inception_is_the_figure_as_formulas(widths, batch_norm, seed):
    module = filled(models.Inception(widths, batch_norm), seed)
    x = image(2, widths[0], 4, 5, seed=seed)
    agree(module(x), inception(module.state_dict(), x), FLOAT64)


def edited(key, change):
    return lambda state, x: inception(state | {key: change(state[key])}, x)


MISTAKES = {
    "a mean left out": edited("b3_reduce.bn.running_mean", torch.zeros_like),
    "a variance left out": edited("b5.bn.running_var", torch.ones_like),
    "a beta left out": edited("pool_proj.bn.bias", torch.zeros_like),
    "a gamma left out": edited("b1.bn.weight", torch.ones_like),
    "rows shuffled": edited("b5_reduce.conv.weight", lambda w: w.roll(1, 0)),
    "a kernel flipped": edited("b3.conv.weight", lambda w: w.flip(-1)),
    "branches in another order": lambda state, x: inception(state, x).roll(1, 1),
    "the pixels moved": lambda state, x: inception(state, x.roll(1, -1)),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_inception_is_noticed(mistake):
    module, x = filled(models.Inception((3, 2, 4, 3, 2, 5, 1))), image(2, 3, 4, 5)
    agree(module(x), inception(module.state_dict(), x), FLOAT64)
    with pytest.raises(Disagreement, match="entries differ"):
        agree(module(x), mistake(module.state_dict(), x), FLOAT64)


def test_batch_norm_takes_the_place_of_the_biases():
    with_norm, without = models.ConvUnit(2, 3), models.ConvUnit(2, 3, batch_norm=False)
    assert with_norm.conv.bias is None
    assert with_norm.bn.eps == 0.001
    assert without.conv.bias is not None
    assert not list(without.bn.parameters())


SEVEN = (
    r"seven ints of at least 1 \(c_in, b1, b3_reduce, b3, b5_reduce, b5, pool_proj\), got"
)

REFUSED = [
    (rf"widths: expected {SEVEN} \(\)", lambda: models.Inception(())),
    (rf"widths: expected {SEVEN} \(1, 1, 1, 1, 1, 1\)", lambda: models.Inception([1] * 6)),
    (
        rf"widths: expected {SEVEN} .*",
        lambda: models.Inception(models.TABLE["3a"]),
    ),  # the size
    (rf"widths: expected {SEVEN} \(1, 0, .*",
     lambda: models.Inception((1, 0, 1, 1, 1, 1, 1))),
    (rf"widths: expected {SEVEN} .* -1\)", lambda: models.Inception([1] * 6 + [-1])),
    (rf"widths: expected {SEVEN} \(1.0, .*", lambda: models.Inception([1.0] * 7)),
    (rf"widths: expected {SEVEN} .* True\)", lambda: models.Inception([1] * 6 + [True])),
    (rf"widths: expected {SEVEN} .*1234567.*", lambda: models.Inception("1234567")),
    (rf"widths: expected {SEVEN} .*5.*", lambda: models.Inception(5)),
    (r"row: expected one of 3a, 3b, .*, 5b.*, got '9z'",
     lambda: models.Inception.from_table("9z")),
    (r"row: expected one of 3a.*, got '3A'", lambda: models.Inception.from_table("3A")),
    (r"row: expected one of 3a.*, got 3", lambda: models.Inception.from_table(3)),
    (r"row: expected one of 3a.*, got \['3a'\]",
     lambda: models.Inception.from_table(["3a"])),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), REFUSED)
def test_bad_input_is_refused_by_name(message, call):
    with pytest.raises(ValueError, match=message):
        call()


# randomise: without it, checks pass by luck.


def small(batch_norm=True):
    return models.Inception((3, 2, 4, 3, 2, 5, 1), batch_norm)


def tensors(module):
    """All parameters and statistics, without the count of batches."""
    state = copy.deepcopy(module.state_dict())
    return {key: t for key, t in state.items() if not key.endswith("num_batches_tracked")}


def test_randomise_changes_the_model_in_place_and_returns_it():
    module = small()
    before = module.b1.conv.weight
    assert models.randomise(module) is module
    assert module.b1.conv.weight is before


def test_randomise_is_deterministic():
    a, b = tensors(models.randomise(small(), seed=4)), tensors(models.randomise(small(), 4))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_randomise_with_another_seed_changes_every_tensor():
    a, b = tensors(models.randomise(small(), seed=4)), tensors(models.randomise(small(), 5))
    assert not any(torch.equal(a[key], b[key]) for key in a)


def test_randomise_leaves_torchs_own_generator_alone():
    module, before = small(), torch.get_rng_state()
    models.randomise(module)
    assert torch.equal(torch.get_rng_state(), before)


MODULES = [  # what randomise fills, and how many tensors that are
    (small, 30),  # six units of 5
    (lambda: small(batch_norm=False), 12),  # six units of 2
    (lambda: nn.BatchNorm2d(3, affine=False), 2),
    (lambda: nn.BatchNorm2d(3, track_running_stats=False), 2),
    (lambda: nn.Embedding(4, 3), 1),
    (lambda: nn.Linear(4, 3, bias=False), 1),
]


@pytest.mark.parametrize(("build", "count"), MODULES)
def test_randomise_changes_every_entry_of_every_tensor(build, count):
    module = build()
    before = tensors(module)
    after = tensors(models.randomise(module))
    assert len(after) == count
    for key in after:
        assert (after[key] != before[key]).all(), key


def test_randomise_draws_within_the_ranges_it_states():
    for key, tensor in tensors(models.randomise(models.Inception.from_table("3a"))).items():
        if key.endswith("running_var"):
            low, high = 0.25, 4
        elif key.endswith("bn.weight"):
            low, high = 0.5, 2
        elif key.endswith("conv.weight"):
            high = (6 / tensor[0].numel()) ** 0.5
            low = -high
        else:
            low, high = -1, 1
        assert low <= tensor.min() < tensor.max() <= high, key
        assert tensor.max() - tensor.min() > 0.5 * (high - low), key


def test_randomise_keeps_the_size_of_activations():
    weight = models.randomise(models.Inception.from_table("3a")).b3.conv.weight
    variance = weight.var().item()  # He et al. 2015: 2 over the inputs of an output
    assert variance * 96 * 9 == pytest.approx(2, rel=0.02)


def test_randomise_draws_the_same_in_every_precision():
    single, double = tensors(models.randomise(small())), models.randomise(small().double())
    for key, tensor in tensors(double).items():
        assert torch.equal(tensor.float(), single[key]), key


# GoogLeNet and Digits

# The paper's column "output size": rows, channels; after the layer of that name.
PAPER_SIZES = {
    "conv1": (112, 64), "conv2": (56, 192),
    "inception.3a": (28, 256), "inception.3b": (28, 480), "inception.4a": (14, 512),
    "inception.4e": (14, 832), "inception.5a": (7, 832), "inception.5b": (7, 1024),
}  # fmt: skip


def test_googlenet_has_the_sizes_of_the_paper():
    model, seen = models.GoogLeNet().eval(), {}

    def note(name):
        return lambda module, args, y: seen.update({name: (y.shape[2], y.shape[1])})

    for name in PAPER_SIZES:
        model.get_submodule(name).register_forward_hook(note(name))
    with torch.no_grad():
        y = model(torch.zeros(1, 3, 224, 224))
    assert seen == PAPER_SIZES
    assert y.shape == (1, 1000)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_googlenet_has_57_convolutions_of_which_27_are_siblings(batch_norm):
    model = models.GoogLeNet(classes=10, batch_norm=batch_norm)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 57
    assert len(convolutions) - 9 * 2 == 39  # three siblings become one, nine times
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert norms == 57 * batch_norm


@pytest.fixture(scope="module")
def script():
    """tools/train_digits.py, as a module."""
    path = Path(__file__).resolve().parents[2] / "tools" / "train_digits.py"
    spec = importlib.util.spec_from_file_location("train_digits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_trained_network_reads_digits_that_it_has_not_seen(script):
    _, x, _, y = script.data()
    assert script.accuracy(models.Digits.trained(), x, y) >= 0.97
    untrained = models.Digits().eval()
    assert script.accuracy(untrained, x, y) < 0.5


def test_training_and_test_digits_do_not_overlap(script):
    x_train, x_test, y_train, y_test = script.data()
    assert (len(x_train), len(x_test)) == (1347, 450)
    assert (len(y_train), len(y_test)) == (1347, 450)
    seen = {image.numpy().tobytes() for image in x_train}
    assert not seen & {image.numpy().tobytes() for image in x_test}


def test_the_weights_are_small_and_hold_no_pickle():
    assert models.DIGITS_WEIGHTS.stat().st_size <= 2**20
    with np.load(models.DIGITS_WEIGHTS, allow_pickle=False) as arrays:
        assert set(arrays) == set(models.Digits().state_dict())
        assert all(arrays[name].dtype.kind in "fi" for name in arrays)
