"""Whether two results are equal: exactly, or within a bound."""

import dataclasses

import numpy as np
import torch

from ..errors import Disagreement


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What `agree` found: how many entries, and how far apart they may be."""

    entries: int
    bound: float

    def __str__(self):
        entries = "1 entry" if self.entries == 1 else f"{self.entries} entries"
        if self.bound == 0:
            return f"exactly equal: {entries}"
        return f"equal within rounding: {entries}, bound {self.bound:.1e}"


def _numbers(value):
    """As an array in float64, without loss."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"a result has dtype {array.dtype}; real numbers fit")
    if array.dtype.kind in "iu" and array.size:
        largest = max(int(array.max()), -int(array.min()))
        if largest > 2**53:
            raise ValueError(f"a result has {largest}; whole numbers up to 2**53 fit")
    return array.astype(np.float64)


def agree(actual, expected, bound=0.0):
    """Refuse to go on unless two results are equal.

    actual, expected: tensors or arrays of one shape. bound: how far apart two
    entries may be, a number or an array of that shape; 0 means exactly equal.
    Values are compared, in float64: 0.0 and -0.0 are equal, and the dtype may differ.
    NaN and infinity never pass. Returns an Agreement; raises Disagreement, which
    says how many entries differ, where the first one is and what it was.

    >>> print(agree(np.array([1.0, 2.0]), np.array([1.0, 2.0])))
    exactly equal: 2 entries
    >>> agree([0.0, 0.5], np.float16([-0.0, 0.5])).entries
    2
    """
    a, e, limit = _numbers(actual), _numbers(expected), _numbers(bound)
    if a.shape != e.shape:
        raise Disagreement(f"the shape is {list(a.shape)}, not {list(e.shape)}")
    if a.size == 0:
        raise ValueError("actual is empty; nothing would be compared")
    if limit.shape not in ((), a.shape) or not np.all((limit >= 0) & (limit < np.inf)):
        raise ValueError(
            f"bound was {bound!s:.40}; one finite number from 0, or one an entry, fits"
        )
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and NaN is refused
        wrong = ~(np.abs(a - e) <= limit)
    if np.any(wrong):
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        was, wanted = f"{a[where]:.4g}", f"{e[where]:.4g}"
        if was == wanted:  # they differ in a later digit: show them all
            was, wanted = f"{a[where]!s}", f"{e[where]!s}"
        if a.ndim == 0:
            raise Disagreement(f"it is {was}, not {wanted}")
        raise Disagreement(
            f"{np.count_nonzero(wrong)} of {a.size} entries differ; "
            f"at {where} it is {was}, not {wanted}"
        )
    return Agreement(a.size, float(np.max(limit)))


def near(actual, expected, share):
    """`agree` for large results: compared on the device that they lie on.

    actual, expected: tensors of one shape. share: how far apart two entries may be, as
    a share of the largest expected one. NaN and infinity never pass.

    >>> print(near(torch.tensor([1.0, 99.9]), torch.tensor([1.0, 100.0]), 1e-2))
    equal within rounding: 2 entries, bound 1.0e+00
    """
    if not 0 <= share < float("inf"):
        raise ValueError(f"share was {share!r}; a finite number from 0 fits")
    numbers = actual.is_floating_point() and expected.is_floating_point()
    if not numbers or actual.shape != expected.shape or not expected.numel():
        largest = np.max(np.abs(_numbers(expected)), initial=0.0)
        return agree(actual, expected, share * largest)
    wanted = expected.detach().double()
    actual = actual.detach().to(wanted.device)  # which has float64, as not each GPU has
    bound = share * wanted.abs().max().item()
    if not bound < float("inf"):
        return agree(actual, expected)  # which refuses NaN and infinity by their place
    apart = (actual.double() - wanted).abs()
    if bool((apart <= bound).all()):  # NaN is not below anything
        return Agreement(apart.numel(), bound)
    return agree(actual, expected, bound)  # which says where they differ


def refusal(call, *args, **kwargs):
    """The message with which a call refuses its arguments.

    For showing that a check can fail: raises if the call goes through.

    >>> refusal(agree, [1.0], [2.0])
    '1 of 1 entries differ; at (0,) it is 1, not 2'
    """
    try:
        call(*args, **kwargs)
    except (AssertionError, ValueError, RuntimeError) as error:
        return str(error)
    raise Disagreement("the call went through, and should have been refused")


def differ(actual, expected, bound=0.0):
    """The opposite of `agree`: says how two results differ, raises if they do not.

    For showing that a check can fail.

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


def tensors(outputs):
    """What a function returned, a tensor or several, as a list.

    >>> tensors((torch.ones(1), torch.zeros(1)))
    [tensor([1.]), tensor([0.])]
    """
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
