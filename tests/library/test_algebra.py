"""algebra.py against the definition: sums by hand, plain loops, torch in float64.

Where entries are small whole numbers every sum is exact, whatever its order, and
the comparison is bit for bit. Random entries agree within `rounding_bound`, which
is itself held to a bound worked by hand and to sums without rounding. Below each
comparison, deliberate mistakes show that it can fail.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hfusion import algebra
from hfusion.timing import Disagreement, agree

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 4)


def whole(rng, *shape):
    """Small whole numbers, as floats: their products and sums are exact."""
    return rng.integers(-4, 5, shape).astype(np.float64)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def torch_conv(x, weight, bias, stride=1, padding=0):
    """torch's own convolution, in float64."""
    x, weight = torch.from_numpy(x).double(), torch.from_numpy(weight).double()
    bias = None if bias is None else torch.from_numpy(bias).double()
    return F.conv2d(x, weight, bias, stride=stride, padding=padding).numpy()


# The convolution: by hand, as torch has it, and as a matrix product.

IMAGE = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)  # 1 2 3 / 4 5 6 / 7 8 9
KERNEL = np.array([[[[1.0, 2.0], [0.0, -1.0]]]])


@pytest.mark.parametrize(
    ("stride", "padding", "expected"),
    [
        # 1 + 2·2 − 5, 2 + 2·3 − 6, 4 + 2·5 − 8, 5 + 2·6 − 9, and a bias of 10
        (1, 0, [[10, 12], [16, 18]]),
        (2, 0, [[10]]),
        # a corner sees −1, the next −3, then 0 + 2·4 − 7 and 5 + 2·6 − 9
        (2, 1, [[9, 7], [11, 18]]),
    ],
)
def test_conv_loops_by_hand(stride, padding, expected):
    y = algebra.conv_loops(IMAGE, KERNEL, [10.0], stride, padding)
    agree(y[0, 0], expected)


@st.composite
def convolutions(draw, square=False):
    """x, weight, bias or None, stride, padding: whatever fits together."""
    rng = np.random.default_rng(draw(SEEDS))
    N, K, C, kh, kw = (draw(SIZES) for _ in range(5))
    kw = kh if square else kw
    H, W = draw(st.integers(kh, 6)), draw(st.integers(kw, 6))
    bias = whole(rng, K) if draw(st.booleans()) else None
    settings = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    return whole(rng, N, C, H, W), whole(rng, K, C, kh, kw), bias, *settings


@given(convolutions())
@PROPERTY
def test_conv_loops_is_torchs_convolution(case):
    agree(algebra.conv_loops(*case), torch_conv(*case))


@given(convolutions(square=True))
@PROPERTY
def test_a_convolution_is_a_product_with_im2col(case):
    x, weight, bias, stride, padding = case
    K, _, k, _ = weight.shape
    columns = algebra.im2col(x, k, stride, padding)
    agree(columns, F.unfold(torch.from_numpy(x), k, padding=padding, stride=stride))
    y = weight.reshape(K, -1) @ columns + (0 if bias is None else bias[:, None])
    expected = torch_conv(*case)
    agree(y.reshape(expected.shape), expected)


MISTAKES = {
    "the kernel flipped": lambda x, w, b: (x, w[:, :, ::-1, ::-1].copy(), b),
    "rows for columns": lambda x, w, b: (x, w.transpose(0, 1, 3, 2).copy(), b),
    "the bias left out": lambda x, w, b: (x, w, None),
    "the filters exchanged": lambda x, w, b: (x, w[::-1].copy(), b),
    "the channels exchanged": lambda x, w, b: (x[:, ::-1].copy(), w, b),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_convolution_is_noticed(mistake):
    rng = np.random.default_rng(1)
    case = whole(rng, 2, 3, 4, 5), whole(rng, 2, 3, 2, 2), np.array([1.0, 2.0])
    expected = torch_conv(*case)
    agree(algebra.conv_loops(*case), expected)
    with pytest.raises(Disagreement, match="entries differ"):
        agree(algebra.conv_loops(*mistake(*case)), expected)


def test_conv_loops_computes_in_float64():
    tiny = np.float32(2.0**-30)  # 1 + 2^-30 is no float32
    x, weight = np.ones((1, 2, 1, 1), np.float32), np.array([1, tiny], np.float32)
    assert algebra.conv_loops(x, weight.reshape(1, 2, 1, 1)).item() == 1 + 2.0**-30


def test_im2col_by_hand():
    columns = algebra.im2col(IMAGE, 2)
    agree(columns[0], [[1, 2, 4, 5], [2, 3, 5, 6], [4, 5, 7, 8], [5, 6, 8, 9]])


def test_im2col_of_a_1x1_kernel_is_a_reshape():
    x = normal(np.random.default_rng(0), 2, 3, 4, 5)
    agree(algebra.im2col(x, 1), x.reshape(2, 3, 20))


@pytest.mark.parametrize("kernel_size", [1, 2])
def test_im2col_copies(kernel_size):
    x = np.ones((1, 2, 3, 3))
    algebra.im2col(x, kernel_size)[:] = 0  # and may be written to
    assert x.all()


# The 1×1 convolution as a matrix product.


@st.composite
def products(draw, entries):
    """x [N, C, H, W], weight [K, C], bias [K] or None."""
    rng = np.random.default_rng(draw(SEEDS))
    N, C, H, W, K = (draw(SIZES) for _ in range(5))
    bias = entries(rng, K) if draw(st.booleans()) else None
    return entries(rng, N, C, H, W), entries(rng, K, C), bias


def loops(x, weight, bias=None):
    """The reference of `pointwise`: conv_loops with a 1×1 kernel."""
    return algebra.conv_loops(x, np.asarray(weight)[:, :, None, None], bias)


def test_pointwise_by_hand():
    x = np.array([[[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]]])  # two channels, three pixels
    y = algebra.pointwise(x, [[1.0, 0.0], [2.0, -1.0]], [0.5, 100.0])
    agree(y, [[[[1.5, 2.5, 3.5]], [[98, 99, 100]]]])


@given(products(whole))
@PROPERTY
def test_pointwise_is_the_convolution_exactly_on_whole_numbers(case):
    agree(algebra.pointwise(*case), loops(*case))


@given(products(normal))
@PROPERTY
def test_pointwise_is_the_convolution_within_rounding(case):
    y = algebra.pointwise(*case)
    assert y.dtype == np.float32
    agree(y, loops(*case), algebra.rounding_bound(*case))


def test_pointwise_with_reshape_for_transpose_is_noticed():
    x = normal(np.random.default_rng(0), 1, 3, 4, 5)
    weight = normal(np.random.default_rng(1), 2, 3)
    scrambled = x.reshape(1, 20, 3).transpose(0, 2, 1).reshape(x.shape)
    bound = algebra.rounding_bound(x, weight)
    with pytest.raises(Disagreement, match="entries differ"):
        agree(algebra.pointwise(scrambled, weight), loops(x, weight), bound)


def test_an_empty_batch_gives_the_empty_result():
    x, weight = np.zeros((0, 3, 2, 5)), np.ones((4, 3))
    assert algebra.pointwise(x, weight, np.ones(4)).shape == (0, 4, 2, 5)
    assert loops(x, weight, np.ones(4)).shape == (0, 4, 2, 5)


def test_pointwise_keeps_whole_numbers_and_promotes_like_numpy():
    x = np.ones((1, 1, 1, 1), np.int64)
    assert algebra.pointwise(x, np.array([[3]])).dtype == np.int64
    assert algebra.pointwise(x, np.array([[3]], np.float32)).dtype == np.float64


# Stack and split.


@st.composite
def branches(draw, entries):
    """An input, and the weights and biases (or None each) of the branches on it."""
    rng = np.random.default_rng(draw(SEEDS))
    N, C, H, W = (draw(SIZES) for _ in range(4))
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    weights = [entries(rng, K, C) for K in widths]
    biases = [entries(rng, K) if draw(st.booleans()) else None for K in widths]
    return entries(rng, N, C, H, W), weights, biases


def test_stack_by_hand():
    weights = [[[1, 2]], [[3, 4], [5, 6]], [[7, 8]]]
    weight, bias, sizes = algebra.stack(weights, [[10], None, [20]])
    agree(weight, [[1, 2], [3, 4], [5, 6], [7, 8]])
    agree(bias, [10, 0, 0, 20])
    assert sizes == (1, 2, 1)


def test_stack_without_any_bias_has_none():
    assert algebra.stack([[[1, 2]], [[3, 4]]])[1] is None
    assert algebra.stack([[[1, 2]], [[3, 4]]], [None, None])[1] is None


def test_stack_makes_zeros_of_the_weights_dtype():
    weight = np.ones((2, 3), np.float32)
    _, bias, _ = algebra.stack([weight, weight], [None, np.ones(2, np.float32)])
    assert bias.dtype == np.float32


def test_stack_takes_any_iterable():
    weights, biases = [[[1, 2]], [[3, 4]]], [None, [5]]
    for kind in (iter, tuple, np.array):
        weight, bias, sizes = algebra.stack(kind(weights), iter(biases))
        agree(weight, [[1, 2], [3, 4]])
        agree(bias, [0, 5])
        assert sizes == (1, 1)


def test_stack_cuts_no_digits_off_a_bias():
    agree(algebra.stack([[[1, 2]], [[3, 4]]], [[0.5], None])[1], [0.5, 0])


def test_stack_copies():
    weight = np.ones((2, 3))
    stacked, _, _ = algebra.stack([weight])
    assert not np.shares_memory(stacked, weight)


def stacked_product(x, weights, biases, mistake=lambda *stacked: stacked):
    weight, bias, sizes = mistake(*algebra.stack(weights, biases))
    y = algebra.pointwise(x, weight, bias)  # [N, K, H, W]
    return algebra.split(y, sizes, axis=1)


@given(branches(whole))
@PROPERTY
def test_stack_multiply_split_gives_each_branch_exactly_on_whole_numbers(case):
    x, weights, biases = case
    parts = stacked_product(*case)
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        agree(part, loops(x, weight, bias))


@given(branches(normal))
@PROPERTY
def test_stack_multiply_split_gives_each_branch_within_rounding(case):
    x, weights, biases = case
    parts = stacked_product(*case)
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        agree(part, loops(x, weight, bias), algebra.rounding_bound(x, weight, bias))


STACKING_MISTAKES = {
    "split in the wrong order": lambda w, b, sizes: (w, b, sizes[::-1]),
    "split into equal chunks": lambda w, b, sizes: (w, b, (2, 2, 2)),
    "rows shuffled": lambda w, b, sizes: (w[[1, 0, 2, 3, 4, 5]], b, sizes),
    "biases left out": lambda w, b, sizes: (w, None, sizes),
    "biases of the neighbour": lambda w, b, sizes: (w, np.roll(b, 1), sizes),
    "one weight off by 1%": lambda w, b, sizes: (w * [[1, 1, 1.01]], b, sizes),
}


@pytest.mark.parametrize("mistake", STACKING_MISTAKES.values(), ids=STACKING_MISTAKES)
def test_a_wrong_stack_or_split_is_noticed(mistake):
    rng = np.random.default_rng(2)
    x, widths = normal(rng, 2, 3, 4, 5), (1, 3, 2)
    weights, biases = [normal(rng, K, 3) for K in widths], [normal(rng, K) for K in widths]
    expected = [loops(x, w, b) for w, b in zip(weights, biases, strict=True)]
    bounds = [algebra.rounding_bound(x, w, b) for w, b in zip(weights, biases, strict=True)]

    def check(*mistakes):
        parts = stacked_product(x, weights, biases, *mistakes)
        for part, want, bound in zip(parts, expected, bounds, strict=True):
            agree(part, want, bound)

    check()
    with pytest.raises(Disagreement, match=r"entries differ|shape"):
        check(mistake)


def test_stacking_along_the_input_channels_does_not_fit():
    x, wrong = np.ones((1, 2, 3, 3)), np.concatenate([np.ones((2, 2))] * 2, axis=1)
    with pytest.raises(ValueError, match=r"weight: expected shape \[K, 2\], got \[2, 4\]"):
        algebra.pointwise(x, wrong)


@given(st.data(), SEEDS)
@PROPERTY
def test_split_undoes_concatenation_along_any_axis(data, seed):
    rng = np.random.default_rng(seed)
    axis = data.draw(st.integers(-3, 2))
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    shapes = [[2, 3, 4] for _ in sizes]
    for shape, size in zip(shapes, sizes, strict=True):
        shape[axis] = size
    parts = [normal(rng, *shape) for shape in shapes]
    y = np.concatenate(parts, axis)
    cut = algebra.split(y, sizes, axis)
    assert len(cut) == len(parts)
    assert all(np.array_equal(a, b) for a, b in zip(cut, parts, strict=True))


def test_split_gives_views():
    y = np.zeros((2, 5, 3))
    algebra.split(y, (2, 3), axis=1)[1][:] = 1
    agree(y.sum(axis=(0, 2)), [0, 0, 6, 6, 6])


# Fold.


def batch_norm(rng, K, entries):
    """Random statistics: mean, var, gamma, beta, and an eps; none as in a fresh layer."""
    var = rng.choice([0.25, 1.0, 4.0, 16.0], K) - 2.0**-4  # var + eps is a square
    return entries(rng, K), var, entries(rng, K), entries(rng, K), 2.0**-4


def normed(y, mean, var, gamma, beta, eps):
    """A batch norm in eval mode, by torch, in float64."""
    rows = [torch.from_numpy(a).double() for a in (mean, var, gamma, beta)]
    return F.batch_norm(torch.from_numpy(y).double(), *rows, eps=eps).numpy()


def test_fold_by_hand():
    # scale 6/√(3.5 + 0.5) = 3: the weight 2·3, the bias (4 − 1)·3 + 5
    stats = {"mean": [1.0], "var": [3.5], "gamma": [6.0], "beta": [5.0], "eps": 0.5}
    weight, bias = algebra.fold([[2.0]], [4.0], **stats)
    agree(weight, [[6]])
    agree(bias, [14])


def test_a_channel_that_never_varies_is_folded():
    # scale 6/√(0 + 0.25) = 12: the weight 2·12, the bias (4 − 1)·12 + 5
    stats = {"mean": [1.0], "var": [0.0], "gamma": [6.0], "beta": [5.0], "eps": 0.25}
    weight, bias = algebra.fold([[2.0]], [4.0], **stats)
    agree(weight, [[24]])
    agree(bias, [41])


@given(products(whole), SEEDS)
@PROPERTY
def test_fold_is_convolution_then_batch_norm_exactly_on_squares(case, seed):
    x, weight, bias = case
    stats = batch_norm(np.random.default_rng(seed), len(weight), whole)
    folded = algebra.fold(weight, bias, *stats)
    agree(algebra.pointwise(x, *folded), normed(loops(x, weight, bias), *stats))


def random_fold():
    """An input, a convolution and a batch norm with nothing special about them."""
    rng = np.random.default_rng(3)
    conv, bn = nn.Conv2d(4, 5, 1).double().eval(), nn.BatchNorm2d(5).double().eval()
    for tensor in (conv.weight, conv.bias, bn.weight, bn.bias, bn.running_mean):
        tensor.data.copy_(torch.from_numpy(rng.standard_normal(tensor.shape)))
    bn.running_var.copy_(torch.from_numpy(rng.uniform(0.25, 4, 5)))
    x = rng.standard_normal((2, 4, 3, 3))
    return x, conv, bn


def arrays(conv, bn):
    """What `fold` takes: weight, bias, [mean, var, gamma, beta], eps."""
    weight, bias = conv.weight.detach()[:, :, 0, 0].numpy(), conv.bias.detach().numpy()
    rows = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    return weight, bias, [row.detach().numpy() for row in rows], bn.eps


def test_fold_is_torchs_fuse_conv_bn_eval_within_rounding():
    x, conv, bn = random_fold()
    weight, bias, rows, eps = arrays(conv, bn)
    folded = algebra.fold(weight, bias, *rows, eps)
    mean, var, gamma, beta = rows
    scale = np.abs(gamma) / np.sqrt(var + eps)
    size = (np.abs(bias) + np.abs(mean)) * scale + np.abs(beta)
    # Folding adds six roundings or so to the C + 1 of the product: 4 (C + 1) is enough.
    bound = 4 * algebra.rounding_bound(x, folded[0], size, np.float64)
    y = algebra.pointwise(x, *folded)
    with torch.no_grad():
        agree(y, fuse_conv_bn_eval(conv, bn)(torch.from_numpy(x)), bound)
        agree(y, bn(conv(torch.from_numpy(x))), bound)


FOLDING_MISTAKES = {
    "a fresh norm": lambda mean, var, gamma, beta: (0 * mean, 0 * var + 1, gamma, beta),
    "no mean": lambda mean, var, gamma, beta: (0 * mean, var, gamma, beta),
    "var for its root": lambda mean, var, gamma, beta: (mean, var**2, gamma, beta),
    "no gamma": lambda mean, var, gamma, beta: (mean, var, 0 * gamma + 1, beta),
    "no beta": lambda mean, var, gamma, beta: (mean, var, gamma, 0 * beta),
}


@pytest.mark.parametrize("mistake", FOLDING_MISTAKES.values(), ids=FOLDING_MISTAKES)
def test_a_wrong_fold_is_noticed(mistake):
    x, conv, bn = random_fold()
    weight, bias, rows, eps = arrays(conv, bn)
    expected = normed(loops(x, weight, bias), *rows, eps)
    agree(algebra.pointwise(x, *algebra.fold(weight, bias, *rows, eps)), expected, 1e-12)
    wrong = algebra.fold(weight, bias, *mistake(*rows), eps)
    with pytest.raises(Disagreement, match="entries differ"):
        agree(algebra.pointwise(x, *wrong), expected, 1e-12)


# The rounding bound.


def test_rounding_bound_by_hand():
    # |2·(−3)| + |4| = 10 and n = 2, so 2·2u/(1 − 2u)·10 with u = 2^-24
    bound = algebra.rounding_bound([[[[2.0]]]], [[-3.0]], [4.0])
    unit = 2.0**-24
    assert bound.shape == (1, 1, 1, 1)
    assert bound.item() == pytest.approx(40 * unit / (1 - 2 * unit), rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [(np.float16, 2.0**-11), (np.float32, 2.0**-24), (np.float64, 2.0**-53)],
)
def test_rounding_bound_follows_the_dtype(dtype, unit):
    bound = algebra.rounding_bound([[[[1.0]]]], [[1.0]], dtype=dtype).item()
    assert bound == pytest.approx(4 * unit / (1 - 2 * unit), rel=1e-12)


def test_rounding_bound_takes_whole_numbers_of_any_width():
    x, weight = np.array([[[[-128]]]], np.int8), np.array([[-128]], np.int8)
    bound = algebra.rounding_bound(x, weight, weight[0]).item()  # abs(int8(-128)) is -128
    assert bound == algebra.rounding_bound([[[[128]]]], [[128]], [128]).item() > 0


def test_rounding_bound_ends_where_rounding_may_reach_the_sum():
    # n u < 1 holds up to n = C + 1 = 2047 terms, u = 2^-11
    x, weight = np.ones((1, 2047, 1, 1)), np.ones((1, 2047))
    bound = algebra.rounding_bound(x[:, 1:], weight[:, 1:], dtype=np.float16)
    assert bound.item() == pytest.approx(2 * 2047 * 2046, rel=1e-12)
    with pytest.raises(ValueError, match=r"dtype: .* 2048 terms, got float16"):
        algebra.rounding_bound(x, weight, dtype=np.float16)


@given(st.integers(1, 200), SEEDS)
@PROPERTY
def test_sums_in_any_order_are_within_the_bound(C, seed):
    rng = np.random.default_rng(seed)
    x, weight, bias = normal(rng, 1, C, 1, 1), normal(rng, 1, C), normal(rng, 1)
    bound = algebra.rounding_bound(x, weight, bias).item()
    terms = [*(weight[0] * x[0, :, 0, 0]), bias[0]]  # rounded to float32
    exact = math.fsum([*np.multiply(weight[0], x[0, :, 0, 0], dtype=np.float64), bias[0]])
    sums = []
    for order in (terms, terms[::-1], rng.permutation(terms)):
        total = np.float32(0)
        for term in order:
            total = np.float32(total + term)
        sums.append(float(total))
        assert abs(total - exact) <= bound / 2
    assert max(sums) - min(sums) <= bound


# What the bound needs: each of these goes beyond it, by about as much as is said.


def summed(x, weight, dtype):
    """W X for one pixel, each product and each sum rounded to `dtype`."""
    total = dtype(0)
    for w, value in zip(weight, x, strict=True):
        total = dtype(total + dtype(dtype(w) * dtype(value)))
    return float(total)


def excess(y, x, weight, dtype=np.float32):
    """The largest error of a product, over its bound."""
    exact = algebra.pointwise(x.astype(np.float64), weight.astype(np.float64))
    return np.max(np.abs(y - exact) / algebra.rounding_bound(x, weight, dtype=dtype))


def cut_to_tf32(array):
    """float32 rounded to the 10 explicit bits of a TF32 significand, to even."""
    bits = array.view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) >> 13 << 13).view(np.float32)


def test_rounding_bound_needs_products_that_do_not_underflow():
    x, weight = np.full((1, 4, 1, 1), 1e-22, np.float32), np.full((1, 4), 1e-20, np.float32)
    assert excess(algebra.pointwise(x, weight), x, weight) > 100
    x, weight = x * np.float32(2.0**60), weight * np.float32(2.0**60)
    assert excess(algebra.pointwise(x, weight), x, weight) <= 1
    rng = np.random.default_rng(0)
    x = (normal(rng, 1, 2, 16, 1) * 1e-2).astype(np.float16)
    weight = (normal(rng, 32, 2) * 1e-3).astype(np.float16)
    y = [[summed(x[0, :, p, 0], row, np.float16) for p in range(16)] for row in weight]
    exact = algebra.pointwise(x.astype(np.float64), weight.astype(np.float64))
    bound = algebra.rounding_bound(x, weight, dtype=np.float16)
    outside = np.count_nonzero(np.abs(np.array(y)[None, :, :, None] - exact) > bound)
    assert 100 < outside < 512


@pytest.mark.parametrize(("C", "least"), [(5, 100), (192, 2)])
def test_rounding_bound_needs_float32_that_is_not_tf32(C, least):
    rng = np.random.default_rng(0)
    x, weight = normal(rng, 1, C, 8, 8), normal(rng, 32, C)
    assert excess(algebra.pointwise(x, weight), x, weight) <= 1
    assert cut_to_tf32(np.float32([1 + 2.0**-11, 1 + 2.0**-10]))[0] == 1
    tf32 = algebra.pointwise(cut_to_tf32(x), cut_to_tf32(weight))
    assert excess(tf32, x, weight) > least


# Bad input: the message names the argument, what was expected and what came.

X, HOLE = np.ones((1, 2, 3, 3)), np.full((1, 2, 3, 3), np.nan)
W, W3, W4 = np.ones((4, 2)), np.ones((4, 3)), np.ones((4, 2, 3, 3))
Y = np.arange(5)


def fold(weight, bias=None, **changed):
    rows = {"mean": [1], "var": [1], "gamma": [1], "beta": [1], "eps": 0.1}
    return algebra.fold(weight, bias, **rows | changed)


REFUSED = [
    (r"x: expected shape \[N, C, H, W\], got \[3, 3\]",
     lambda: algebra.conv_loops(X[0, 0], W4)),
    (r"x: expected finite numbers, got 18 NaN or infinite",
     lambda: algebra.conv_loops(HOLE, W4)),
    (r"weight: expected shape \[K, 2, kh, kw\], got \[4, 2\]",
     lambda: algebra.conv_loops(X, W)),
    (r"weight: expected shape \[K, 2, kh, kw\], got .*3, 1",
     lambda: algebra.conv_loops(X, W3[:, :, None, None])),
    (r"weight: expected finite numbers, got 72 NaN",
     lambda: algebra.conv_loops(X, W4 * np.nan)),
    (r"bias: expected shape \[4\], got \[2\]",
     lambda: algebra.conv_loops(X, W4, [1.0, 2.0])),
    (r"bias: expected finite numbers, got 4 NaN",
     lambda: algebra.conv_loops(X, W4, [np.inf] * 4)),
    (r"stride: expected an int.*, got 0", lambda: algebra.conv_loops(X, W4, stride=0)),
    (r"stride: expected an int.*, got 1.5", lambda: algebra.conv_loops(X, W4, stride=1.5)),
    (r"stride: expected an int.*, got True",
     lambda: algebra.conv_loops(X, W4, stride=True)),
    (r"padding: expected an int.*, got -1", lambda: algebra.conv_loops(X, W4, padding=-1)),
    (r"padding: expected an int.*, got '1'",
     lambda: algebra.conv_loops(X, W4, padding="1")),
    (r"x: expected at least 3 by 3 .*, got 2 by 3",
     lambda: algebra.conv_loops(X[:, :, 1:], W4)),
    (r"x: expected at least 3 by 3 .*, got 3 by 2",
     lambda: algebra.conv_loops(X[:, :, :, 1:], W4)),
    (r"x: expected shape \[N, C, H, W\], got \[2, 3, 3\]",
     lambda: algebra.pointwise(X[0], W)),
    (r"x: expected finite numbers, got 18 NaN", lambda: algebra.pointwise(HOLE, W)),
    (r"x: expected real numbers, got dtype complex128",
     lambda: algebra.pointwise(X * 1j, W)),
    (r"weight: expected shape \[K, 2\], got \[4, 3\]", lambda: algebra.pointwise(X, W3)),
    (r"weight: expected shape \[K, 2\], got \[4, 2, 3, 3\]",
     lambda: algebra.pointwise(X, W4)),
    (r"weight: expected finite numbers, got 8 NaN",
     lambda: algebra.pointwise(X, W * np.inf)),
    (r"bias: expected shape \[4\], got \[4, 1\]",
     lambda: algebra.pointwise(X, W, np.ones((4, 1)))),
    (r"bias: expected finite numbers, got 1 NaN",
     lambda: algebra.pointwise(X, W, [1, 2, np.nan, 3])),
    (r"x: expected shape \[N, C, H, W\], got \[3\]", lambda: algebra.im2col([1, 2, 3], 1)),
    (r"x: expected finite numbers, got 18 NaN", lambda: algebra.im2col(HOLE, 1)),
    (r"kernel_size: expected an int.*, got 0", lambda: algebra.im2col(X, 0)),
    (r"kernel_size: expected an int.*, got 2.0", lambda: algebra.im2col(X, 2.0)),
    (r"kernel_size: expected an int.*, got \(3, 3\)", lambda: algebra.im2col(X, (3, 3))),
    (r"stride: expected an int.*, got 0", lambda: algebra.im2col(X, 1, stride=0)),
    (r"padding: expected an int.*, got False", lambda: algebra.im2col(X, 1, padding=False)),
    (r"padding: expected an int of at least 0, got -1",
     lambda: algebra.im2col(X, 1, padding=-1)),
    (r"x: expected at least 4 by 4 .*, got 3 by 3", lambda: algebra.im2col(X, 4)),
    (r"x: expected at least 3 by 3 .*, got 3 by 2",
     lambda: algebra.im2col(X[:, :, :, 1:], 3)),
    (r"x: expected at least 3 by 3 .*, got 2 by 3", lambda: algebra.im2col(X[:, :, 1:], 3)),
    (r"weights: expected \[K_i, C\] for each branch, got none", lambda: algebra.stack([])),
    (r"weights: .* got none", lambda: algebra.stack(iter(()))),
    (r"weights\[1\]: expected shape \[K_i, C\], got \[2\]",
     lambda: algebra.stack([W, [1, 2]])),
    (r"weights\[1\]: expected finite numbers, got 8 NaN",
     lambda: algebra.stack([W, W * np.nan])),
    (r"weights\[1\]: expected an array .*ragged",
     lambda: algebra.stack([W, [[1, 2], [3]]])),
    (r"weights\[0\]: expected real numbers, got dtype <U2",
     lambda: algebra.stack(["ab", W])),
    (r"weights: expected one C, got \[2, 3\]", lambda: algebra.stack([W, W3])),
    (r"biases: expected 2, got 1", lambda: algebra.stack([W, W], [np.ones(4)])),
    (r"biases: expected 2, got 3", lambda: algebra.stack([W, W], [None] * 3)),
    (r"biases: expected 1, got 0", lambda: algebra.stack([W], [])),
    (r"biases\[1\]: expected shape \[4\], got .*\[3\]",
     lambda: algebra.stack([W, W], [None, np.ones(3)])),
    (r"biases\[0\]: expected finite numbers, got 4 NaN",
     lambda: algebra.stack([W], [np.full(4, np.nan)])),
    (r"biases\[0\]: expected an array .*ragged",
     lambda: algebra.stack([W], [[1, [2], 3, 4]])),
    (r"biases\[0\]: expected real numbers, got dtype <U4",
     lambda: algebra.stack([W], ["bias"])),
    (r"sizes: expected an int.*, got -1", lambda: algebra.split(Y, (-1, 6), 0)),
    (r"sizes: expected an int.*, got 2.0", lambda: algebra.split(Y, (2.0, 3.0), 0)),
    (r"sizes: expected an int.*, got True", lambda: algebra.split(Y, (True, 4), 0)),
    (r"sizes: .* got none", lambda: algebra.split(Y[:0], (), 0)),
    (r"sizes: expected the sum 5 of axis 0 .*, got \[2, 2\]",
     lambda: algebra.split(Y, (2, 2), 0)),
    (r"axis: expected an int, got 0.0", lambda: algebra.split(Y, (2, 3), 0.0)),
    (r"axis: expected one of the 1 axes of y, got 1", lambda: algebra.split(Y, (2, 3), 1)),
    (r"axis: expected one of the 1 axes of y, got -2",
     lambda: algebra.split(Y, (2, 3), -2)),
    (r"weight: expected shape \[K, C\], got \[1\]", lambda: fold([1])),
    (r"weight: expected finite numbers, got 1 NaN", lambda: fold([[np.nan]])),
    (r"bias: expected shape \[1\], got \[2\]", lambda: fold([[1]], [1, 2])),
    (r"mean: expected shape \[1\], got .*\[2\]", lambda: fold([[1]], mean=[1, 2])),
    (r"var: expected finite numbers, got 1 NaN", lambda: fold([[1]], var=[np.nan])),
    (r"gamma: expected shape \[1\], got .*\[\]", lambda: fold([[1]], gamma=1)),
    (r"beta: expected finite numbers, got 1 NaN", lambda: fold([[1]], beta=[np.inf])),
    (r"eps: expected a finite .*, got -0.1", lambda: fold([[1]], eps=-0.1)),
    (r"eps: expected a finite .*, got nan", lambda: fold([[1]], eps=np.nan)),
    (r"eps: expected a finite .*, got inf", lambda: fold([[1]], eps=np.inf)),
    (r"var: expected var \+ eps > 0, got -2.* 0.1", lambda: fold([[1]], var=[-2])),
    (r"var: expected var \+ eps > 0, got 0.* 0", lambda: fold([[1]], var=[0], eps=0)),
    (r"x: expected shape \[N, C, H, W\], got .*3\]",
     lambda: algebra.rounding_bound(X[0], W)),
    (r"x: expected finite numbers, got 18 NaN", lambda: algebra.rounding_bound(HOLE, W)),
    (r"weight: expected shape \[K, 2\], got .*3\]", lambda: algebra.rounding_bound(X, W3)),
    (r"weight: expected shape \[K, 2\], got \[4, 2, 3, 3\]",
     lambda: algebra.rounding_bound(X, W4)),
    (r"bias: expected shape \[4\], got \[3\]",
     lambda: algebra.rounding_bound(X, W, np.ones(3))),
    (r"bias: expected shape \[4\], got \[4, 2\]", lambda: algebra.rounding_bound(X, W, W)),
    *(
        (rf"dtype: expected one of NumPy's float16, float32, float64, got .*{name}",
         lambda dtype=dtype: algebra.rounding_bound(X, W, dtype=dtype))
        for name, dtype in [
            ("int64", np.int64), ("bool", bool), ("bfloat16", torch.bfloat16),
            ("bfloat16", "bfloat16"), ("torch.float32", torch.float32), ("None", None),
            ("longdouble", np.longdouble), ("complex64", np.complex64),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), REFUSED)
def test_bad_input_is_refused_by_name(message, call):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_fold_keeps_float32():
    ones = np.ones(2, np.float32)
    weight, bias = algebra.fold(
        np.ones((2, 3), np.float32), None, ones, ones, ones, ones, 0.0
    )
    assert (weight.dtype, bias.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("bad", [5, True, 2.5])
def test_what_is_no_list_is_refused_by_name(bad):
    with pytest.raises(ValueError, match=r"^sizes: expected a list, got"):
        algebra.split(np.arange(5), bad, axis=0)
    with pytest.raises(ValueError, match=r"^biases: expected a list, got"):
        algebra.stack([[[1, 2]]], bad)
    with pytest.raises(ValueError, match=r"^weights: expected a list, got"):
        algebra.stack(bad)


@given(st.integers(0, 2), st.integers(1, 2), st.sampled_from([1, 2, 3]), st.integers(0, 3))
def test_an_embedded_kernel_computes_the_same_with_more_padding(grow, stride, k, padding):
    rng = np.random.default_rng(k)
    x, weight = rng.standard_normal((2, 3, 6, 5)), rng.standard_normal((2, 3, k, k))
    larger = algebra.embed(weight, k + 2 * grow)
    expected = algebra.conv_loops(x, weight, stride=stride, padding=padding)
    actual = algebra.conv_loops(x, larger, stride=stride, padding=padding + grow)
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual, expected)
    if grow:  # the wrong way: the padding left as it was
        try:
            wrong = algebra.conv_loops(x, larger, stride=stride, padding=padding)
        except ValueError:
            return
        assert wrong.shape != expected.shape


@pytest.mark.parametrize(
    ("shape", "side", "said"),
    [
        ((2, 3, 3, 3), 4, "side: expected 3, 5, 7, .* got 4"),
        ((2, 3, 3, 3), 1, "side: expected 3, 5, 7, .* got 1"),
        ((2, 3, 1, 3), 3, r"weight: expected a square window, got shape \[2, 3, 1, 3\]"),
        ((2, 3), 3, r"weight: expected shape \[K, C, k, k\], got \[2, 3\]"),
        ((1, 1, 1, 1), 2.0, "side: expected an int of at least 1, got 2.0"),
        ((1, 1, 0, 0), 0, "side: expected an int of at least 1, got 0"),
    ],
)
def test_what_cannot_be_embedded_is_refused(shape, side, said):
    with pytest.raises(ValueError, match=said):
        algebra.embed(np.ones(shape), side)
