"""The 1×1 convolution as a matrix product, and what follows from it. NumPy only.

These functions are the book's reference: short enough to check by eye, slow
where slow is clearer. Letters as in the book: N batch, C input channels,
P = H·W pixels, K output channels, K_i those of branch i.

    x  [N, C, H, W] ──reshape──► X  [N, C, P]
                                 W  [K, C]   a row for each output channel
                                 Y = W X + b 1ᵀ   [N, K, P] ──reshape──► y

Every function refuses input of the wrong rank or of sizes that do not fit, and every
function that computes refuses input that is not finite. It raises a FusionError, which is
a ValueError; the message names the argument, what was expected and what came.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .errors import FusionError

Array = np.ndarray[Any, Any]


def _array(name: str, value: ArrayLike, *shape: int | str) -> Array:
    """`value` as a finite array that fits `shape`, a list of sizes or letters."""
    wanted = "[" + ", ".join(str(size) for size in shape) + "]"
    try:
        array = np.asarray(value)
    except ValueError:  # NumPy's word for it is "inhomogeneous"
        raise FusionError(f"{name}: expected an array {wanted}, got ragged rows") from None
    if array.dtype.kind not in "biuf":
        raise FusionError(f"{name}: expected real numbers, got dtype {array.dtype}")
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == have
        for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise FusionError(f"{name}: expected shape {wanted}, got {list(array.shape)}")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise FusionError(
            f"{name}: expected finite numbers, got {bad} NaN or infinite ones"
        )
    return array


def _whole(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int, of at least `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise FusionError(f"{name}: expected an int{bound}, got {value!r}")
    return int(value)


def _listed(name: str, value: Iterable[Any]) -> list[Any]:
    """`value` as a list."""
    try:
        return list(value)
    except TypeError:
        raise FusionError(f"{name}: expected a list, got {value!r}") from None


def _pad(x: Array, padding: int) -> Array:
    """Images [N, C, H, W] with a border of `padding` zeros."""
    border = (padding, padding)
    return np.pad(x, ((0, 0), (0, 0), border, border))


def _padded(x: Array, padding: int, kh: int, kw: int) -> Array:
    """Images [N, C, H, W] with a border, in which a window fits at least once."""
    x = _pad(x, _whole("padding", padding, 0))
    H, W = x.shape[2:]
    if kh > H or kw > W:
        raise FusionError(
            f"x: expected at least {kh} by {kw} pixels after padding, got {H} by {W}"
        )
    return x


def conv_loops(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, stride: int = 1,
    padding: int = 0,
) -> Array:  # fmt: skip
    """A 2-d convolution as its definition says: one loop per index, in float64.

    What deep learning calls convolution is cross-correlation: the window is
    not flipped (Chetlur et al. 2014).

    Parameters
    ----------
    x : array [N, C, H, W]
        The images.
    weight : array [K, C, kh, kw]
        A window of weights for each output and input channel.
    bias : array [K], optional
        Zeros without it.
    stride, padding : int
        In pixels, along both axes; the border is of zeros.

    Returns
    -------
    array [N, K, H', W'], float64

    Examples
    --------
    >>> conv_loops([[[[1.0, 2.0]], [[3.0, 4.0]]]], [[[[10.0]], [[1.0]]]])
    array([[[[13., 24.]]]])
    """
    x = _array("x", x, "N", "C", "H", "W").astype(np.float64)
    weight = _array("weight", weight, "K", x.shape[1], "kh", "kw").astype(np.float64)
    K, C, kh, kw = weight.shape
    bias = np.zeros(K) if bias is None else _array("bias", bias, K).astype(np.float64)
    stride, x = _whole("stride", stride, 1), _padded(x, padding, kh, kw)
    N, _, H, W = x.shape
    y = np.zeros((N, K, (H - kh) // stride + 1, (W - kw) // stride + 1))
    for n, k, row, col in np.ndindex(*y.shape):
        total = bias[k]
        for c, i, j in np.ndindex(C, kh, kw):
            total += weight[k, c, i, j] * x[n, c, row * stride + i, col * stride + j]
        y[n, k, row, col] = total
    return y


def pointwise(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
) -> Array:
    """A 1×1 convolution as one matrix product.

    Parameters
    ----------
    x : array [N, C, H, W]
        The images.
    weight : array [K, C]
        One row for each output channel.
    bias : array [K], optional
        One number for each output channel.

    Returns
    -------
    array [N, K, H, W]
        In the dtype that NumPy's promotion gives.

    Examples
    --------
    >>> pointwise([[[[1.0, 2.0]], [[3.0, 4.0]]]], [[10.0, 1.0]])
    array([[[[13., 24.]]]])
    """
    x = _array("x", x, "N", "C", "H", "W")
    N, C, H, W = x.shape
    weight = _array("weight", weight, "K", C)
    X = x.reshape(N, C, H * W)  # [N, C, P]
    Y = weight @ X  # [N, K, P]
    if bias is not None:
        bias = _array("bias", bias, weight.shape[0])
        Y = Y + bias[:, None]  # [N, K, P] + [K, 1]
    return Y.reshape(N, len(weight), H, W)  # [N, K, H, W]


def im2col(x: ArrayLike, kernel_size: int, stride: int = 1, padding: int = 0) -> Array:
    """The patches that a window visits, one patch per column.

    With it a convolution is weight.reshape(K, -1) @ im2col(x, k) (Chetlur et al.
    2014). For k = 1 and stride 1 it is the reshape of `pointwise`.

    Parameters
    ----------
    x : array [N, C, H, W]
        The images.
    kernel_size : int
        The side k of the square window.
    stride, padding : int
        In pixels, along both axes; the border is of zeros.

    Returns
    -------
    array [N, C·k·k, P']
        A copy, in the dtype of x.

    Examples
    --------
    >>> im2col([[[[1, 2], [3, 4]]]], 2)
    array([[[1],
            [2],
            [3],
            [4]]])
    """
    x = _array("x", x, "N", "C", "H", "W")
    k, stride = _whole("kernel_size", kernel_size, 1), _whole("stride", stride, 1)
    x = _padded(x, padding, k, k)
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]  # [N, C, H', W', k, k]
    N, C, H, W = windows.shape[:4]
    patches = np.array(windows.transpose(0, 1, 4, 5, 2, 3), order="C")  # a copy
    return patches.reshape(N, C * k * k, H * W)


def embed(weight: ArrayLike, side: int) -> Array:
    """A convolution's weights in a larger window: zeros around them, the same sums.

    The window begins (side − k)/2 pixels earlier, so the padding has to grow by as much.

    Parameters
    ----------
    weight : array [K, C, k, k]
        A window of weights for each output and input channel.
    side : int
        Of the larger window; side − k is even.

    Returns
    -------
    array [K, C, side, side]

    Examples
    --------
    >>> embed([[[[7]]]], 3)
    array([[[[0, 0, 0],
             [0, 7, 0],
             [0, 0, 0]]]])
    """
    weight = _array("weight", weight, "K", "C", "k", "k")
    k, side = weight.shape[-1], _whole("side", side, 1)
    if weight.shape[2] != k:
        raise FusionError(
            f"weight: expected a square window, got shape {list(weight.shape)}"
        )
    if side < k or (side - k) % 2:
        raise FusionError(
            f"side: expected {k}, {k + 2}, {k + 4}, …, for a middle, got {side}"
        )
    return _pad(weight, (side - k) // 2)


def stack(
    weights: Iterable[ArrayLike], biases: Iterable[ArrayLike | None] | None = None
) -> tuple[Array, Array | None, tuple[int, ...]]:
    """Stack the branches' matrices along their rows, the output channels.

        W = [W_1; W_2; …; W_B]  [K, C],   K = ΣK_i

    Parameters
    ----------
    weights : arrays [K_i, C]
        One for each branch, all with the same C.
    biases : arrays [K_i] or None, optional
        One for each branch; a missing one becomes zeros, which changes no output.

    Returns
    -------
    weight : array [K, C]
    bias : array [K], or None where no branch has one
    sizes : tuple of int
        The K_i, in order.

    Examples
    --------
    >>> stack([[[1, 2]], [[3, 4], [5, 6]]])
    (array([[1, 2],
           [3, 4],
           [5, 6]]), None, (1, 2))
    """
    listed = _listed("weights", weights)
    if not listed:
        raise FusionError("weights: expected [K_i, C] for each branch, got none")
    matrices = [
        _array(f"weights[{i}]", w, "K_i", "C")  # [K_i, C]
        for i, w in enumerate(listed)
    ]
    widths = sorted({w.shape[1] for w in matrices})
    if len(widths) > 1:
        raise FusionError(f"weights: expected one C, got {widths}")
    sizes = tuple(w.shape[0] for w in matrices)
    weight = np.concatenate(matrices)  # [K, C]
    biases = [None] * len(matrices) if biases is None else _listed("biases", biases)
    if len(biases) != len(matrices):
        raise FusionError(f"biases: expected {len(matrices)}, got {len(biases)}")
    if all(b is None for b in biases):
        return weight, None, sizes
    parts = []
    for i, (b, size) in enumerate(zip(biases, sizes, strict=True)):
        bias = np.zeros(size, weight.dtype) if b is None else b
        parts.append(_array(f"biases[{i}]", bias, size))
    return weight, np.concatenate(parts), sizes  # [K, C], [K]


def split(y: ArrayLike, sizes: Iterable[int], axis: int) -> list[Array]:
    """Cut `y` along `axis` into the branches' parts, in order: views, no copies.

    Parameters
    ----------
    y : array
        What is cut.
    sizes : ints
        The branches' output channels K_i; their sum is the length of the axis.
    axis : int
        The axis of the output channels.

    Returns
    -------
    list of arrays
        One for each branch, in the memory of y.

    Examples
    --------
    >>> [part.tolist() for part in split(np.arange(5), (2, 3), axis=0)]
    [[0, 1], [2, 3, 4]]
    """
    y = np.asarray(y)
    sizes = [_whole("sizes", size, 0) for size in _listed("sizes", sizes)]
    if not -y.ndim <= _whole("axis", axis) < y.ndim:
        raise FusionError(f"axis: expected one of the {y.ndim} axes of y, got {axis}")
    if not sizes:
        raise FusionError("sizes: expected one for each branch, got none")
    if sum(sizes) != y.shape[axis]:
        raise FusionError(
            f"sizes: expected the sum {y.shape[axis]} of axis {axis} of y, got {sizes}"
        )
    return np.split(y, np.cumsum(sizes)[:-1], axis=axis)


def fold(
    weight: ArrayLike,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    eps: float,
) -> tuple[Array, Array]:
    """Fold a batch norm in eval mode into the matrix in front of it.

        γ (Wx + b − μ) / √(σ² + ε) + β  =  (s W) x + (s (b − μ) + β)
        with s = γ / √(σ² + ε)

    The norm is that of Ioffe and Szegedy 2015, section 3.1.

    Parameters
    ----------
    weight : array [K, C]
        One row for each output channel.
    bias : array [K] or None
        One number for each output channel.
    mean, var : arrays [K]
        The statistics μ and σ².
    gamma, beta : arrays [K]
        The gain γ and the shift β.
    eps : float
        ε, at least 0.

    Returns
    -------
    weight : array [K, C]
    bias : array [K]

    Examples
    --------
    >>> fold([[2.0]], None, mean=[1], var=[4], gamma=[6], beta=[5], eps=0)
    (array([[6.]]), array([2.]))
    """
    weight = _array("weight", weight, "K", "C")
    K = weight.shape[0]
    bias = np.zeros(K, weight.dtype) if bias is None else bias
    bias = _array("bias", bias, K)
    mean, var = _array("mean", mean, K), _array("var", var, K)
    gamma, beta = _array("gamma", gamma, K), _array("beta", beta, K)
    if not 0 <= eps < np.inf:
        raise FusionError(f"eps: expected a finite number ≥ 0, got {eps}")
    if np.any(var + eps <= 0):
        low = var.min()
        raise FusionError(f"var: expected var + eps > 0, got {low} + {eps}")
    scale = gamma / np.sqrt(var + eps)  # [K]
    return weight * scale[:, None], (bias - mean) * scale + beta


# The dtypes whose sums `rounding_bound` knows: NumPy's, and no other library's.
ROUNDED = (np.float16, np.float32, np.float64)


def rounding_bound(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None,
    dtype: DTypeLike = np.float32,
) -> Array:  # fmt: skip
    """How far apart two evaluations of W X + b 1ᵀ may lie, entry by entry.

    A sum of n rounded products, in whatever order, is within
    γ_n (|W||X| + |b|) of the exact one, γ_n = n u / (1 − n u), u the unit
    roundoff (Higham 2002, section 3.1; fused multiply-adds only do better).
    Two evaluations are within 2 γ_n of each other. Here n = C + 1: C products, one bias.

    It holds where every product and every sum is rounded to `dtype` or to more digits,
    and the terms are added as they are. So not where a product underflows or a sum
    overflows; not where the inputs are rounded to fewer digits first, as TF32 does to
    float32; and not for Winograd's algorithm, which adds other terms.

    Parameters
    ----------
    x, weight, bias
        As for `pointwise`.
    dtype : dtype
        NumPy's float16, float32 or float64, in which products and sums are rounded.

    Returns
    -------
    array [N, K, H, W], float64
        In units of y.

    Raises
    ------
    FusionError
        For another dtype, or if n u is 1 or more.

    Examples
    --------
    >>> rounding_bound([[[[1.0]], [[1.0]]]], [[1.0, 1.0]]) < 1e-6
    array([[[[ True]]]])
    """
    x = np.abs(_array("x", x, "N", "C", "H", "W"), dtype=np.float64)
    weight = np.abs(_array("weight", weight, "K", x.shape[1]), dtype=np.float64)
    if bias is not None:
        bias = np.abs(_array("bias", bias, len(weight)), dtype=np.float64)
    unit = _unit_roundoff(dtype)
    n = weight.shape[1] + 1
    if n * unit >= 1:
        raise FusionError(
            f"dtype: expected more digits for sums of {n} terms, got {np.dtype(dtype)}"
        )
    return 2 * n * unit / (1 - n * unit) * pointwise(x, weight, bias)


def _unit_roundoff(dtype: DTypeLike) -> float:
    """Half the distance from 1 to the next number of a dtype of ROUNDED."""
    try:
        known = dtype is not None and np.dtype(dtype).type in ROUNDED
    except TypeError:  # another library's, such as torch.bfloat16
        known = False
    if not known:
        names = ", ".join(kind.__name__ for kind in ROUNDED)
        raise FusionError(f"dtype: expected one of NumPy's {names}, got {dtype!r}")
    return float(np.finfo(dtype).eps) / 2
