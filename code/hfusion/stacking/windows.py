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

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Window:
    """The window of a convolution: an entry for each axis (padding may be a word)."""

    kernel_size: tuple
    padding: tuple
    dilation: tuple

    def __str__(self):
        return "×".join(str(side) for side in self.kernel_size)

    def margins(self, layer):
        """How many zeros stand on either side of the layer's window, for each axis."""
        pairs = zip(self.kernel_size, layer.kernel_size, strict=True)
        return tuple((large - small) // 2 for large, small in pairs)

    def embed(self, layer):
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

    def place(self, layer):
        """Where the layer's own window lies in a weight of this one: a slice an axis."""
        pairs = zip(self.margins(layer), layer.kernel_size, strict=True)
        return tuple(slice(margin, margin + side) for margin, side in pairs)


def room(layers, window):
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


def window(layer):
    """The Window of a convolution, None of a layer without one.

    >>> from torch import nn
    >>> print(window(nn.Conv2d(4, 8, (1, 7), padding=(0, 3))))
    1×7
    """
    if not hasattr(layer, "kernel_size"):
        return None
    return Window(layer.kernel_size, layer.padding, layer.dilation)


def mixed(layers):
    """Whether layers have windows of different sizes."""
    return len({getattr(layer, "kernel_size", None) for layer in layers}) > 1


def common(layers):
    """The smallest Window for all of these layers, which must fit (`unfit`, TOGETHER).

    >>> from torch import nn
    >>> common([nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 5, padding=2)])
    Window(kernel_size=(5, 5), padding=(2, 2), dilation=(1, 1))
    """
    sizes = tuple(map(max, zip(*(layer.kernel_size for layer in layers), strict=True)))
    axes = range(len(sizes))
    steps = tuple(max(dilation(layer, axis) or 1 for layer in layers) for axis in axes)
    grown = growth(layers[0])
    padding = tuple((grown[axis] + steps[axis] * (sizes[axis] - 1)) // 2 for axis in axes)
    return Window(sizes, padding, steps)


def growth(layer):
    """How many numbers an axis has more behind the layer than before, at stride 1.

    A tuple with an entry for each axis; None for a layer without a window.

    >>> from torch import nn
    >>> growth(nn.Conv2d(4, 8, (1, 3), padding=(0, 1)))
    (0, 0)
    """
    if not hasattr(layer, "kernel_size"):
        return None
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same":
        return tuple(0 for _ in spans)
    padding = layer.padding if layer.padding != "valid" else [0] * len(spans)
    return tuple(2 * p - span for p, span in zip(padding, spans, strict=True))


def dilation(layer, axis):
    """A layer's dilation along an axis; None where a window of 1 makes it meaningless."""
    size = getattr(layer, "kernel_size", ())
    return layer.dilation[axis] if len(size) > axis and size[axis] > 1 else None


def even(layer):
    """Whether the layer's padding is the same on both sides: not always for "same"."""
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return layer.padding != "same" or all(span % 2 == 0 for span in spans)


def order(layer):
    """The axes of a filter [C, *window] from the slowest to the fastest in memory.

    A convolution looks at it to choose the layout of its output.

    >>> import torch
    >>> conv = torch.nn.Conv2d(4, 8, 3)
    >>> order(conv), order(conv.to(memory_format=torch.channels_last))
    ((0, 1, 2), (1, 2, 0))
    """
    strides = layer.weight.stride()[1:]
    return tuple(sorted(range(len(strides)), key=lambda axis: -strides[axis]))


# What an embedding needs of each layer beside `rules.ALONE`, in the same form …
ALONE = (
    ("padding_mode", lambda m: repr(m.padding_mode), lambda m: m.padding_mode == "zeros",
     "'zeros', for a larger window,"),
    ("padding", lambda m: "uneven", even, "as much on both sides, for a larger window,"),
)  # fmt: skip

# … and what siblings must have in common in place of one window.
TOGETHER = (
    ("growth", growth),
    *((f"dilation along axis {axis}", lambda m, axis=axis: dilation(m, axis))
      for axis in range(3)),
    ("parity of kernel_size", lambda m: tuple(side % 2 for side in m.kernel_size)),
    ("order of weight in memory", order),
)  # fmt: skip
