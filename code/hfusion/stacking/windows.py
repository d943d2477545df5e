"""A small window inside a larger one: zeros around it, padding moved. torch.

Siblings with windows of different sizes do not stack. Give them all one window:

    1×1, padding 0          3×3, padding 1

                            0 0 0
         w           =      0 w 0           and stack.
                            0 0 0

With padding p, dilation d and stride s, a window of k along an axis of H numbers stands
at  (H + 2p − d(k−1) − 1) // s + 1  places, and its middle begins at  d(k−1)/2 − p.  Both
are the same for layers of one stride if  2p − d(k−1)  is: their `growth`. The numbers
under the zeros are multiplied too: the work grows, and a NaN or an infinity in the input
reaches its neighbours (0 · ∞ is NaN).
Source: RepVGG (Ding et al. 2021) puts a 1×1 into a 3×3; IOS (Ding et al. 2020) and TASO
(Jia et al. 2019) enlarge windows so that convolutions merge.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

# Convolutions, or what has their attributes: quantised ones are no subclass.
Convolution = Any


@dataclasses.dataclass(frozen=True)
class Window:
    """The window of a convolution: an entry for each axis (padding may be a word)."""

    kernel_size: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]

    def __str__(self) -> str:
        return "×".join(str(side) for side in self.kernel_size)

    def margins(self, layer: Convolution) -> tuple[int, ...]:
        """How many zeros stand on either side of the layer's window, for each axis."""
        pairs = zip(self.kernel_size, layer.kernel_size, strict=True)
        return tuple((large - small) // 2 for large, small in pairs)

    def embed(self, layer: Convolution) -> torch.Tensor:
        """The layer's weight with zeros around: [K, C, *window], a copy.

        >>> from torch import nn
        >>> conv = nn.Conv2d(1, 1, 1, bias=False)
        >>> nn.init.constant_(conv.weight, 7.0).item()
        7.0
        >>> Window((3, 3), (1, 1), (1, 1)).embed(conv)[0, 0].tolist()
        [[0.0, 0.0, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 0.0]]
        """
        sides = [(margin, margin) for margin in self.margins(layer)]
        # F.pad wants the last axis first.
        return F.pad(layer.weight.detach(), [*itertools.chain.from_iterable(sides[::-1])])

    def place(self, layer: Convolution) -> tuple[slice, ...]:
        """Where the layer's own window lies in a weight of this one: one slice per axis."""
        pairs = zip(self.margins(layer), layer.kernel_size, strict=True)
        return tuple(slice(margin, margin + side) for margin, side in pairs)


def room(
    layers: Sequence[Convolution], window: Window
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(zeros for the weights of all these layers, the place of each of them there).

    The zeros are [ΣK, C, *window], in memory as the first one's weight is.

    >>> from torch import nn
    >>> one, three = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 4, 3, padding=1)
    >>> zeros, places = room([one, three], common([one, three]))
    >>> zeros.shape, [tuple(place.shape) for place in places]
    (torch.Size([6, 1, 3, 3]), [(2, 1, 1, 1), (4, 1, 3, 3)])
    """
    first, sizes = layers[0].weight, [len(layer.weight) for layer in layers]
    axes = (0, *(axis + 1 for axis in order(layers[0])))
    shape = (sum(sizes), first.shape[1], *window.kernel_size)
    zeros = torch.empty_permuted(
        shape, axes, dtype=first.dtype, device=first.device
    ).zero_()
    rows = zip(zeros.split(sizes), layers, strict=True)
    return zeros, [part[:, :, *window.place(layer)] for part, layer in rows]


def window(layer: Convolution) -> Window | None:
    """The Window of a convolution, None of a layer without one.

    >>> from torch import nn
    >>> print(window(nn.Conv2d(4, 8, (1, 7), padding=(0, 3))))
    1×7
    """
    if not hasattr(layer, "kernel_size"):
        return None
    return Window(layer.kernel_size, layer.padding, layer.dilation)


def mixed(layers: Iterable[Any]) -> bool:
    """Whether layers have windows of different sizes."""
    return len({getattr(layer, "kernel_size", None) for layer in layers}) > 1


def common(layers: Sequence[Convolution]) -> Window:
    """The smallest Window for all of these layers, which must satisfy `rules.EMBEDDED`.

    >>> from torch import nn
    >>> common([nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 5, padding=2)])
    Window(kernel_size=(5, 5), padding=(2, 2), dilation=(1, 1))
    """
    sizes = tuple(map(max, zip(*(layer.kernel_size for layer in layers), strict=True)))
    axes = range(len(sizes))
    steps = tuple(max(dilation(layer, axis) or 1 for layer in layers) for axis in axes)
    grown = growth(layers[0]) or ()
    padding = tuple((grown[axis] + steps[axis] * (sizes[axis] - 1)) // 2 for axis in axes)
    return Window(sizes, padding, steps)


def growth(layer: Convolution) -> tuple[int, ...] | None:
    """By how many numbers an axis grows through the layer, at stride 1.

    A tuple with an entry for each axis; None for a layer without a window.

    >>> from torch import nn
    >>> growth(nn.Conv2d(4, 8, (1, 3), padding=(0, 1)))
    (0, 0)
    """
    if not hasattr(layer, "kernel_size"):
        return None
    whole = spans(layer)
    if layer.padding == "same":
        return (0,) * len(whole)
    padding = (0,) * len(whole) if isinstance(layer.padding, str) else layer.padding
    return tuple(2 * p - span for p, span in zip(padding, whole, strict=True))


def spans(layer: Convolution) -> tuple[int, ...]:
    """d(k−1) for each axis: from a window's first number to its last.

    >>> from torch import nn
    >>> spans(nn.Conv2d(4, 8, (1, 3), dilation=2))
    (0, 4)
    """
    pairs = zip(layer.dilation, layer.kernel_size, strict=True)
    return tuple(step * (side - 1) for step, side in pairs)


def dilation(layer: Convolution, axis: int) -> int | None:
    """A layer's dilation along an axis; None where a window of 1 makes it meaningless."""
    size = getattr(layer, "kernel_size", ())
    return layer.dilation[axis] if len(size) > axis and size[axis] > 1 else None


def even(layer: Convolution) -> bool:
    """Whether the layer's padding is the same on both sides: not always for "same"."""
    return layer.padding != "same" or all(span % 2 == 0 for span in spans(layer))


def order(layer: Convolution) -> tuple[int, ...]:
    """The axes of a filter [C, *window] from the slowest to the fastest in memory.

    A convolution looks at it to choose the layout of its output.

    >>> import torch
    >>> conv = torch.nn.Conv2d(4, 8, 3)
    >>> order(conv), order(conv.to(memory_format=torch.channels_last))
    ((0, 1, 2), (1, 2, 0))
    """
    strides = layer.weight.stride()[1:]
    return tuple(sorted(range(len(strides)), key=lambda axis: -strides[axis]))
