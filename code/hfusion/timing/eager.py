"""How many kernels eager CUDA PyTorch launches, read from PyTorch's source. torch.

A model is called once on the "meta" device, where a tensor has a shape and strides and no
numbers, and each operator that PyTorch dispatches is looked up in a table. The rows say
what that operator does on a CUDA device in PyTorch 2.6 to 2.13, and where its source says
so. An operator without a row is an error, never a guess.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import FusionError, check_int
from ._launches import Launches, computes

DTYPES = ("float32", "float16", "bfloat16")
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
Names = tuple[str, ...] | None  # of kernels, if they are known
SIDE = 28  # of the image where none is given; no rule depends on it


def _copies(tensor: torch.Tensor, form: torch.memory_format) -> tuple[str, ...]:
    """`tensor.contiguous(memory_format=form)`: a kernel, unless it is so already."""
    return () if tensor.is_contiguous(memory_format=form) else ("copy",)


def _cudnn_format(x: torch.Tensor, weight: torch.Tensor) -> torch.memory_format:
    """In which layout cuDNN convolves: native/ConvUtils.h."""
    formats = suggest_memory_format(x), suggest_memory_format(weight)
    last = torch.channels_last in formats
    return torch.channels_last if last else torch.contiguous_format


def _convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    stride: Any, padding: Any, dilation: Any,
    transposed: bool, offset: Any, groups: int,
) -> Names:  # fmt: skip
    """native/Convolution.cpp: the bias is added by an add_ of its own."""
    if x.ndim != 4 or groups != 1 or transposed:
        return None
    form = _cudnn_format(x, weight)
    after = () if bias is None else ("add_ (bias)",)
    return (*_copies(x, form), *_copies(weight, form), "convolution", *after)


def _convolution_relu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    stride: Any, padding: Any, dilation: Any,
    groups: int,
) -> Names:  # fmt: skip
    """native/cudnn/ConvShared.cpp: bias and ReLU inside; without a bias zeros are made."""
    if x.ndim != 4 or groups != 1:
        return None
    form = _cudnn_format(x, weight)
    before = ("zeros (bias)",) if bias is None else ()
    return (*_copies(x, form), *_copies(weight, form), *before, "convolution with ReLU")


def _batch_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: Any, training: bool, momentum: float, eps: float,
) -> Names:  # fmt: skip
    """native/Normalization.cpp: cuDNN takes bfloat16 never, and half only with weights in
    float32; otherwise there are three kernels (native/cuda/Normalization.cu).
    """
    if training or mean is None:
        return None
    dtypes = {x.dtype, None if weight is None else weight.dtype}
    odd = {torch.bfloat16, None} & dtypes or dtypes == {torch.float16}
    if odd or bias is None or x.ndim < 3:
        return ("copy (mean)", "invstd", "batch_norm")
    return (*_copies(x, suggest_memory_format(x)), "batch_norm")


def _pool(x: torch.Tensor, *_: Any, **__: Any) -> Names:
    """native/cuda/DilatedMaxPool2d.cu and AveragePool2d.cu."""
    return (*_copies(x, suggest_memory_format(x)), "pool")


def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> Names:
    """native/cuda/Shape.cu: one kernel for all (up to 64 inputs), but a copy for each input
    where the result is channels_last and some input is a strided part."""
    if len(tensors) > 64:
        return None
    forms = {suggest_memory_format(tensor) for tensor in tensors}
    form = forms.pop() if len(forms) == 1 else torch.contiguous_format
    dense = not any(_copies(tensor, form) for tensor in tensors)
    together = dense or form is torch.contiguous_format
    if len(tensors) > 1 and tensors[0].ndim <= 4 and together:
        return ("cat",)
    return ("copy (cat)",) * len(tensors)


# Elementwise operators are one kernel of TensorIterator, whatever the strides; a result
# that is not in place is dense, also where the input is a strided part.
POINTWISE = """
    relu sigmoid tanh silu gelu mish elu leaky_relu hardtanh hardswish hardsigmoid softplus
    add sub mul div clone _to_copy
"""
RULES: dict[str, Callable] = {
    "convolution": _convolution,
    "cudnn_convolution_relu": _convolution_relu,
    "native_batch_norm": _batch_norm,
    "max_pool2d_with_indices": _pool,
    "avg_pool2d": _pool,
    "cat": _cat,
    # native/TensorAdvancedIndexing.cpp: cloned, then filled.
    "masked_fill": lambda *_, **__: ("clone", "masked_fill_"),
}
for _name in POINTWISE.split():
    RULES[_name] = RULES[f"{_name}_"] = lambda *_, name=_name, **__: (name,)


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator and the kernels that it launches.

    Attributes
    ----------
    name : str
    kernels : tuple of str
        In the order of their launches.
    read, written : int
        How many numbers go in and come out.
    product : tuple of int
        Of a convolution (positions, c_out, depth), the sizes of its implicit GEMM; else ().
    """

    name: str
    kernels: tuple[str, ...]
    read: int
    written: int
    product: tuple[int, ...] = ()


class _Kernels(TorchDispatchMode):
    """Notes each operator, and gives it the result that CUDA would give."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not computes(operator):
            return operator(*args, **kwargs)
        name = operator.overloadpacket.__name__
        kernels = RULES[name](*args, **kwargs) if name in RULES else None
        if kernels is None:
            raise FusionError(
                f"module: expected operators whose kernels are known, got {operator} of "
                f"{_shapes(args)}; hfusion.timing.eager.RULES lists the known ones"
            )
        convolves = "convolution" in name
        y = _convolved(*args[:6]) if convolves else operator(*args, **kwargs)
        self.operators.append(_noted(name, kernels, args, y, convolves))
        return y


def _noted(
    name: str, kernels: tuple[str, ...], args: Any, y: Any, convolves: bool
) -> Operator:
    """An Operator, with what it read and wrote."""
    results = y if isinstance(y, list | tuple) else (y,)
    sizes = [each.numel() for each in _tensors(args)]
    written = max(result.numel() for result in results)
    if not convolves:
        return Operator(name, kernels, sum(sizes), written)
    c_out, *window = args[1].shape
    product = written // c_out, c_out, math.prod(window)
    return Operator(name, kernels, sum(sizes), written, product)


def _tensors(args: Sequence) -> Iterator[torch.Tensor]:
    """The tensors among arguments, those in lists too."""
    for each in args:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _tensors(each)


def _shapes(args: Sequence) -> list:
    return [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in args]


def _convolved(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    stride: Any, padding: Any, dilation: Any,
) -> torch.Tensor:  # fmt: skip
    """The result in cuDNN's layout, which is not the one that torch takes on "meta"."""
    y = nn.functional.conv2d(x, weight, bias, stride, padding, dilation)
    return torch.empty_like(y, memory_format=_cudnn_format(x, weight))


class _Found(Exception):
    """How many channels the first convolution reads."""


class _Channels(TorchDispatchMode):
    """Stops a call at its first convolution."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if "convolution" in operator.overloadpacket.__name__:
            raise _Found(args[1].shape[1])
        return operator(*args, **(kwargs or {}))


def _image(module: nn.Module, images: Callable[..., torch.Tensor]) -> tuple[int, int, int]:
    """(channels, height, width) of images for a module that begins with a convolution."""
    x = images(1, SIDE, SIDE)
    try:
        with torch.no_grad(), _Channels():
            module(x)
    except _Found as found:
        return (found.args[0], SIDE, SIDE)
    except Exception as error:
        raise FusionError(
            "image: expected (channels, height, width) for this module, got None "
            f"({type(error).__name__}: {error})"
        ) from error
    raise FusionError("image: expected (channels, height, width) for this module, got None")


def launches(
    module: nn.Module, dtype: str, layout: str, batch: int, image: tuple | None = None
) -> Launches:
    """What eager CUDA PyTorch launches for one call in eval mode.

    Parameters
    ----------
    module, dtype, layout, batch, image
        As for `cost.kernels`, which gives the number of kernels.

    Returns
    -------
    timing.Launches
        Print it for a table.

    Raises
    ------
    FusionError
        For an operator whose kernels are not known here.

    Examples
    --------
    >>> print(launches(nn.Conv2d(3, 4, 1), "float32", "NCHW", batch=1))
       2 kernels:
       1 convolution
       1 add_ (bias)
    """
    found = operators(module, dtype, layout, batch, image)
    names = (kernel for operator in found for kernel in operator.kernels)
    return Launches("kernels", tuple(names))


def operators(
    module: nn.Module, dtype: str, layout: str, batch: int, image: tuple | None = None
) -> list[Operator]:
    """The operators of one call in eval mode, in order, with their kernels.

    Parameters
    ----------
    module, dtype, layout, batch, image
        As for `launches`, which also says what is refused.

    Returns
    -------
    list of Operator

    Examples
    --------
    >>> (conv,) = operators(nn.Conv2d(3, 4, 1), "float32", "NCHW", batch=1)
    >>> conv.kernels, conv.product  # 28 by 28 pixels
    (('convolution', 'add_ (bias)'), (784, 4, 3))
    >>> conv.read, conv.written  # input, weights and biases; output
    (2368, 3136)
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise FusionError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype}")
    if layout not in FORMATS:
        raise FusionError(f"layout: expected NCHW or NHWC, got {layout!r}")
    check_int("batch", batch, least=1)
    kind, form = getattr(torch, dtype), FORMATS[layout]

    def images(*shape: int) -> torch.Tensor:
        return torch.empty((batch, *shape), dtype=kind, device="meta", memory_format=form)

    double = _on_meta(module).eval()
    double.to(kind, memory_format=form)  # type: ignore[call-overload]  # torch lacks it
    x = images(*(_image(double, images) if image is None else image))
    with torch.no_grad(), _Kernels() as counter:
        double(x)
    return counter.operators


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module without its numbers; they are not copied on the way either."""
    named = [*module.named_parameters(), *module.named_buffers()]
    memo = {id(tensor): torch.empty_like(tensor, device="meta") for _, tensor in named}
    for _, parameter in module.named_parameters():
        empty = memo[id(parameter)]
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    return copy.deepcopy(module, memo)
