"""What a program costs, before it runs: launches, FLOPs, bytes. Pure functions.

A kernel can be no faster than its arithmetic at the machine's rate, its data at the
machine's bandwidth where they lie in no cache, and a kernel that does nothing: the roofline
of Williams, Waterman and Patterson (2009), with a floor. A program can be no faster than
the host launches its kernels. No device is asked here; a machine's ceilings come from its
record.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import FusionError
from . import eager

if TYPE_CHECKING:
    from torch import nn

PARTS = ("input", "weight", "output")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A piece of work.

    Attributes
    ----------
    flops : int
        How many operations it computes.
    bytes : int
        How many bytes it reads and writes.
    launches : int
        0 if it runs inside an operator that has been launched already.
    """

    flops: int
    bytes: int
    launches: int = 1

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What one machine can do at most, in one dtype.

    Attributes
    ----------
    flops_per_s, bytes_per_s : float
        The rate of arithmetic, and the memory's bandwidth.
    launch_s : float
        What a call of nn.Conv2d costs the host, from Python to the driver, in seconds.
    kernel_s : float
        What the device needs for a kernel that does nothing, in seconds.
    overlaps : bool
        True if launching, moving data and arithmetic go on at the same time, as on a GPU,
        so that the slowest decides; False if they follow one another and times add up.
    """

    flops_per_s: float
    bytes_per_s: float
    launch_s: float
    kernel_s: float
    overlaps: bool


# {machine: {dtype: Ceilings}} of machines that nobody has recorded: peaks of a data sheet;
# launch and kernel of a published program, in another language, on a GPU that it does not
# name. PyTorch's operators cost the host more than that, so times from these are limits and
# no forecasts: those are `back/predictions.ipynb`. `back/constants.md` has the sources.
SHEETS = {
    "NVIDIA H200 SXM": {
        "bfloat16": Ceilings(
            989e12, 4.8e12, launch_s=260e-6 / 80, kernel_s=70e-6 / 80, overlaps=True
        )
    }
}


def product(
    c_out: int, c_in: int, positions: int, item_bytes: int, window: Sequence[int] = (1, 1)
) -> Kernel:
    """A convolution with bias, a window of (height, width) and stride 1.

    For a 1×1: [c_out, c_in] times [c_in, positions]. Each number is read or written once,
    and the window is counted whole at the border too.

    Parameters
    ----------
    c_out, c_in : int
        Channels.
    positions : int
        Pixels of all images together.
    item_bytes : int
        Of one number.
    window : (int, int)
        Height and width.

    Returns
    -------
    Kernel

    Examples
    --------
    >>> product(64, 192, 28 * 28, item_bytes=4)
    Kernel(flops=19317760, bytes=852224, launches=1)
    """
    depth = math.prod(window) * c_in
    flops = 2 * c_out * depth * positions + c_out * positions
    numbers = c_in * positions + c_out * depth + c_out + c_out * positions
    return Kernel(flops, numbers * item_bytes)


def add_bias(c_out: int, positions: int, item_bytes: int) -> Kernel:
    """The bias of a convolution in a kernel of its own, as eager CUDA adds it.

    >>> add_bias(64, 28 * 28, item_bytes=4)
    Kernel(flops=50176, bytes=401664, launches=1)
    """
    numbers = 2 * c_out * positions + c_out  # the output is read and written again
    return Kernel(c_out * positions, numbers * item_bytes)


def reorder(
    c_out: int, c_in: int, positions: int, item_bytes: int, parts: Iterable[str]
) -> Kernel:
    """What a library moves inside a 1×1 convolution, before and after the product.

    parts: which of PARTS it copies into an order of its own, or back from it.

    >>> reorder(64, 192, 28 * 28, item_bytes=4, parts=("weight",))
    Kernel(flops=0, bytes=98304, launches=0)
    """
    if strange := set(parts) - set(PARTS):
        raise FusionError(f"parts: expected some of {PARTS}, got {sorted(strange)}")
    sizes = (c_in * positions, c_out * c_in, c_out * positions)
    numbers = dict(zip(PARTS, sizes, strict=True))
    return Kernel(0, 2 * sum(numbers[part] for part in parts) * item_bytes, launches=0)


def copy(channels: int, positions: int, item_bytes: int) -> Kernel:
    """A branch copied to a place of its own: each number is read and written.

    >>> copy(64, 28 * 28, item_bytes=4)
    Kernel(flops=0, bytes=401408, launches=1)
    """
    return Kernel(0, 2 * channels * positions * item_bytes)


def stage(
    sizes: Sequence[int], c_in: int, positions: int, item_bytes: int,
    reordered: Sequence[str] = (), copied: Sequence[int] = (), bias_apart: bool = False,
) -> dict[str, list[Kernel]]:  # fmt: skip
    """Siblings three ways.

    Parameters
    ----------
    sizes : sequence of int
        Output channels of each sibling.
    c_in, positions, item_bytes
        As for `product`.
    reordered : sequence of str
        Which of `PARTS` the library copies in each convolution.
    copied : sequence of int
        The sizes of those branches that a consumer copies out of the stacked product.
    bias_apart : bool
        Each bias is a kernel of its own (`add_bias`), as in eager CUDA; the numbers of
        kernels are then those of `kernels`.

    Returns
    -------
    dict
        {"separate", "stacked" or "copied": list of Kernel}.

    Examples
    --------
    >>> ways = stage((64, 96, 16), 192, 784, item_bytes=4)
    >>> {way: len(kernels) for way, kernels in ways.items()}
    {'separate': 3, 'stacked': 1, 'copied': 1}
    """

    def convolution(c_out: int) -> list[Kernel]:
        whole = product(c_out, c_in, positions, item_bytes)
        moved_inside = reorder(c_out, c_in, positions, item_bytes, reordered)
        inside = [moved_inside] if reordered else []
        if not bias_apart:
            return [whole, *inside]
        bias = add_bias(c_out, positions, item_bytes)
        flops, moved = whole.flops - bias.flops, whole.bytes - c_out * item_bytes
        return [Kernel(flops, moved), *inside, bias]

    stacked = convolution(sum(sizes))
    return {
        "separate": [kernel for size in sizes for kernel in convolution(size)],
        "stacked": stacked,
        "copied": stacked + [copy(size, positions, item_bytes) for size in copied],
    }


def kernels(
    module: "nn.Module", dtype: str, layout: str, batch: int,
    image: tuple[int, int, int] | None = None,
) -> int:  # fmt: skip
    """How many kernels, at least, eager CUDA PyTorch launches for a call in eval mode.

    Read from PyTorch's source (2.6 to 2.13), not measured: a model of eager CUDA and of
    nothing else, neither of a CUDA graph's compiler nor of a CPU. A convolution is one
    kernel of cuDNN, whatever cuDNN launches inside, one more for its bias
    (native/Convolution.cpp), and a copy of each of its tensors that does not lie as cuDNN
    takes it (native/ConvUtils.h). A batch norm is one, and three where input and weights
    are half, or one is bfloat16 (native/Normalization.cpp). A concatenation is one, and a
    copy for each input where a part of a larger channels_last tensor is among them
    (native/cuda/Shape.cu). Views are none. `eager.launches` names the kernels.

    Parameters
    ----------
    module : nn.Module
        Anything that takes images [batch, C, H, W]; it is left as it was.
    dtype : str
        "float32", "float16" or "bfloat16", for all of its parameters, as module.half()
        does.
    layout : str
        "NCHW" or "NHWC".
    batch : int
        Images.
    image : (int, int, int), optional
        (C, H, W); without it C is what the first convolution reads.

    Returns
    -------
    int

    Raises
    ------
    FusionError
        For an operator whose kernels are not known here.

    Examples
    --------
    >>> from hfusion import models
    >>> module = models.Inception.from_table("3a")
    >>> kernels(module, "float32", "NCHW", 1)
    20
    >>> kernels(module, "float16", "NHWC", 1)
    32
    """
    return eager.launches(module, dtype, layout, batch, image).count


def merged(*kernels: Kernel) -> Kernel:
    """Kernels as one launch that does and moves what they did and moved together."""
    return Kernel(sum(k.flops for k in kernels), sum(k.bytes for k in kernels))


def limit(work: Kernel, ceilings: Ceilings, launches: int) -> float:
    """A limit for `work` in so many launches.

    As many kernels that do nothing, and then the longer of its arithmetic and its bytes.

    Parameters
    ----------
    work : Kernel
        All that is computed and moved.
    ceilings : Ceilings
        Of the machine.
    launches : int
        How many kernels do it.

    Returns
    -------
    float
        In seconds.

    Examples
    --------
    >>> machine = Ceilings(1e3, 1e3, launch_s=0, kernel_s=1, overlaps=True)
    >>> limit(Kernel(flops=3000, bytes=1000), machine, launches=2)
    5.0
    """
    flops_s = work.flops / ceilings.flops_per_s
    bytes_s = work.bytes / ceilings.bytes_per_s
    return launches * ceilings.kernel_s + max(flops_s, bytes_s)


def seconds(kernels: Iterable[Kernel], ceilings: Ceilings, graph: bool = False) -> float:
    """How long a program takes at least, called again and again.

    Where things overlap, the host launches while the device works, and the slower of
    the two decides; as a CUDA graph all is launched at once, and the device decides. Where
    they do not, everything adds up.

    Parameters
    ----------
    kernels : iterable of Kernel
        Of one call.
    ceilings : Ceilings
        Of the machine.
    graph : bool
        Whether the program is launched as a CUDA graph.

    Returns
    -------
    float
        In seconds.

    Examples
    --------
    >>> machine = Ceilings(1e3, 1e3, launch_s=2.0, kernel_s=1, overlaps=True)
    >>> two = [Kernel(flops=1000, bytes=1000), Kernel(flops=1500, bytes=0)]
    >>> seconds(two, machine), seconds(two, machine, graph=True)
    (4.0, 2.5)
    """
    kernels = list(kernels)
    together = max if ceilings.overlaps else lambda *times_s: sum(times_s)
    device_s = 0.0
    for kernel in kernels:
        flops_s = kernel.flops / ceilings.flops_per_s
        bytes_s = kernel.bytes / ceilings.bytes_per_s
        device_s += max(ceilings.kernel_s, together(flops_s, bytes_s))
    host_s = sum(kernel.launches for kernel in kernels) * ceilings.launch_s
    return device_s if graph else together(host_s, device_s)


def gain(
    before: Iterable[Kernel], after: Iterable[Kernel], ceilings: Ceilings,
    graph: bool = False,
) -> float:  # fmt: skip
    """How many times faster `after` is than `before`; above 1 it wins.

    Parameters
    ----------
    before, after : iterable of Kernel
        Two programs.
    ceilings, graph
        As for `seconds`, which gives the time of each.

    Returns
    -------
    float

    Examples
    --------
    >>> launches_only = Ceilings(1e15, 1e15, 4e-6, 0, overlaps=False)
    >>> ways = stage((64, 96, 16), 192, 784, 2)
    >>> round(gain(ways["separate"], ways["stacked"], launches_only), 2)
    2.97
    """
    return seconds(before, ceilings, graph) / seconds(after, ceilings, graph)
