"""Whether two results are equal: exactly, or within a bound."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..errors import Disagreement, FusionError

Values = torch.Tensor | ArrayLike


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What `agree` found: how many entries, and how far apart they may be."""

    entries: int
    bound: float

    def __str__(self) -> str:
        entries = "1 entry" if self.entries == 1 else f"{self.entries} entries"
        if self.bound == 0:
            return f"exactly equal: {entries}"
        return f"equal within rounding: {entries}, bound {self.bound:.1e}"


def _numbers(value: Values) -> np.ndarray:
    """As an array in float64, without loss."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise FusionError(f"results: expected real numbers, got {array.dtype}")
    if array.dtype.kind in "iu" and array.size:
        largest = max(int(array.max()), -int(array.min()))
        if largest > 2**53:
            raise FusionError(
                f"results: expected integers up to 2**53, for float64, got {largest}"
            )
    return array.astype(np.float64)


def agree(actual: Values, expected: Values, bound: Values = 0.0) -> Agreement:
    """Refuse to go on unless two results are equal.

    Values are compared, in float64: 0.0 and -0.0 are equal, and the dtypes may differ.
    NaN and infinity never pass.

    Parameters
    ----------
    actual, expected : tensor or array
        Two results of one shape, not empty.
    bound : float or array
        How far apart two entries may be; 0 means exactly equal. One number for all
        entries, or an array of the results' shape.

    Returns
    -------
    Agreement
        How many entries were compared, and the largest bound.

    Raises
    ------
    Disagreement
        How many entries differ, where the first one is, and what it was.
    FusionError
        For an empty or complex result, or a bound that is negative or not finite.

    Examples
    --------
    >>> print(agree(np.array([1.0, 2.0]), np.array([1.0, 2.0])))
    exactly equal: 2 entries
    >>> agree([0.0, 0.5], np.float16([-0.0, 0.5])).entries
    2
    """
    a, e, limit = _numbers(actual), _numbers(expected), _numbers(bound)
    if a.shape != e.shape:
        raise Disagreement(f"the shape is {list(a.shape)}, not {list(e.shape)}")
    if a.size == 0:
        raise FusionError("actual: expected at least one entry, got none")
    if limit.shape not in ((), a.shape) or not np.all((limit >= 0) & (limit < np.inf)):
        raise FusionError(
            "bound: expected a finite number of at least 0, or one for each entry, "
            f"got {bound!s:.40}"
        )
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and NaN is refused
        wrong = ~(np.abs(a - e) <= limit)
    if np.any(wrong):
        raise Disagreement(_difference(a, e, wrong))
    return Agreement(a.size, float(np.max(limit)))


def _difference(a: np.ndarray, e: np.ndarray, wrong: np.ndarray) -> str:
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    was, wanted = f"{a[where]:.4g}", f"{e[where]:.4g}"
    if was == wanted:  # they differ in a later digit: show them all
        was, wanted = f"{a[where]!s}", f"{e[where]!s}"
    if a.ndim == 0:
        return f"it is {was}, not {wanted}"
    count = f"{np.count_nonzero(wrong)} of {a.size} entries differ"
    return f"{count}; at {where} it is {was}, not {wanted}"


def near(actual: torch.Tensor, expected: torch.Tensor, rtol: float) -> Agreement:
    """`agree` for large results, compared on the device where `expected` lies.

    Parameters
    ----------
    actual, expected : torch.Tensor
        Two results of one shape.
    rtol : float
        How far apart two entries may be, as a fraction of the largest expected entry
        (`torch.allclose` takes a fraction of each entry instead).

    Returns
    -------
    Agreement
        As from `agree`; its errors are the same, and NaN and infinity never pass.

    Examples
    --------
    >>> print(near(torch.tensor([1.0, 99.9]), torch.tensor([1.0, 100.0]), 1e-2))
    equal within rounding: 2 entries, bound 1.0e+00
    """
    if not 0 <= rtol < float("inf"):
        raise FusionError(f"rtol: expected a finite number of at least 0, got {rtol!r}")
    numbers = actual.is_floating_point() and expected.is_floating_point()
    if not numbers or actual.shape != expected.shape or not expected.numel():
        largest = np.max(np.abs(_numbers(expected)), initial=0.0)
        return agree(actual, expected, rtol * largest)
    wanted = expected.detach().double()
    actual = actual.detach().to(wanted.device)  # which has float64, as not each GPU has
    bound = rtol * wanted.abs().max().item()
    if not bound < float("inf"):
        return agree(actual, expected)  # which refuses NaN and infinity by their place
    apart = (actual.double() - wanted).abs()
    if bool((apart <= bound).all()):  # NaN is not below anything
        return Agreement(apart.numel(), bound)
    return agree(actual, expected, bound)  # which says where they differ


def refusal(call: Callable, *args: object, **kwargs: object) -> str:
    """The message with which a call refuses its arguments.

    For showing that a check can fail. Raises Disagreement if the call goes through.

    Examples
    --------
    >>> refusal(agree, [1.0], [2.0])
    '1 of 1 entries differ; at (0,) it is 1, not 2'
    """
    try:
        call(*args, **kwargs)
    except (AssertionError, ValueError, RuntimeError) as error:
        return str(error)
    raise Disagreement("the call went through, and should have been refused")


def differ(actual: Values, expected: Values, bound: Values = 0.0) -> str:
    """The opposite of `agree`: how two results differ, in words.

    For showing that a check can fail. Raises Disagreement if they are equal.

    Examples
    --------
    >>> differ([1.0, 2.0], [1.0, 2.5])
    '1 of 2 entries differ; at (1,) it is 2, not 2.5'
    >>> differ(np.nextafter(1.0, 2.0), 1.0)  # the last bit
    'it is 1.0000000000000002, not 1.0'
    """
    try:
        agree(actual, expected, bound)
    except Disagreement as found:
        return str(found)
    raise Disagreement("the results are equal, and should differ")


def tensors(outputs: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What a function returned, one tensor or several, as a list.

    Examples
    --------
    >>> tensors((torch.ones(1), torch.zeros(1)))
    [tensor([1.]), tensor([0.])]
    """
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
