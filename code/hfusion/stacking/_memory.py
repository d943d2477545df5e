"""Where numbers lie: several weights side by side, and parts without gaps. torch.

Each weight becomes a part of one memory, with a storage of its own that ends where it does:

    memory     [ weight 0 | weight 1 | weight 2 ]
    storages    └───────┘ └────────┘ └────────┘      and one more for the whole
"""

from collections.abc import Hashable, Sequence

import torch

Tensors = Sequence[torch.Tensor]


def dense(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The part without gaps in memory, its axes in the order of those of the whole."""
    if is_dense(part):
        return part
    strides = whole.stride()
    order = sorted(range(whole.ndim), key=lambda axis: -strides[axis])
    empty = torch.empty_permuted(part.shape, order, dtype=part.dtype, device=part.device)
    return empty.copy_(part)


def is_dense(part: torch.Tensor) -> bool:
    """Whether the numbers of a tensor lie side by side, whatever the order of its axes.

    >>> is_dense(torch.zeros(2, 3).t()), is_dense(torch.zeros(2, 3)[:, :2])
    (True, False)
    """
    axes = sorted(zip(part.stride(), part.shape, strict=True))
    expected = 1
    for stride, size in axes:
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor of this shape, also where a size is 1.

    There they have no effect, but torch compares them when it writes to one of two views.

    >>> strides((1, 3, 2)) == torch.zeros(1, 3, 2).stride()
    True
    """
    found, step = [], 1
    for size in reversed(shape):
        found.append(step)
        step *= max(size, 1)
    return tuple(reversed(found))


def cut(y: torch.Tensor, sizes: Sequence[int], dim: int) -> list[torch.Tensor]:
    """The parts of a tensor without other references, each as if it were a tensor itself.

    Not split: autograd and versions would count a write to one part as one to all.

    >>> [part.stride() for part in cut(torch.zeros(1, 5), (2, 3), -1)]
    [(2, 1), (3, 1)]
    """
    parts = list(y.unsafe_split_with_sizes(sizes, dim))
    if parts[0].is_contiguous():  # there is one row, or one image
        for part in parts:
            part.as_strided_(part.shape, strides(part.shape))
    return parts


def storage(tensor: torch.Tensor) -> Hashable:
    """A key that is equal for two tensors that share memory, as views do."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return id(tensor)


def room(weights: Tensors) -> torch.Tensor:
    """A tensor for the numbers of all weights, in the layout of the first."""
    first = weights[0]
    shape = (sum(map(len, weights)), *first.shape[1:])
    if first.stride(0) != first[:1].numel():  # rows do not lie one after the other
        return first.new_empty(shape)
    return first.new_empty_strided(shape, first.stride())


def move(weights: Tensors, places: Tensors) -> None:
    """Copy each weight to a place in another tensor, and let the weight lie there."""
    for weight, place in zip(weights, places, strict=True):
        _move(weight, place)


def close(weight: torch.Tensor) -> None:
    """Give a weight memory of its own, without gaps, and its gradient the same layout."""
    weight.data = weight.data.clone()
    grad = weight.grad
    if grad is not None and grad.stride() != weight.stride():
        grad.data = torch.empty_like(weight).copy_(grad)


def whole_bias(
    biases: Sequence[torch.Tensor | None], sizes: Sequence[int], whole: torch.Tensor
) -> torch.Tensor | None:
    """One tensor with all biases, zeros for missing ones; None if all are missing."""
    if not any(bias is not None for bias in biases):
        return None
    together = whole.new_zeros(len(whole))
    for bias, part in zip(biases, together.split(sizes), strict=True):
        if bias is not None:
            _move(bias, part)
    return together


def _move(parameter: torch.Tensor, place: torch.Tensor) -> None:
    place.copy_(parameter)
    parameter.data = _alone(place) if place.is_contiguous() else place


def _alone(place: torch.Tensor) -> torch.Tensor:
    """The same numbers, in the same memory, as a tensor that seems to have it to itself.

    Its storage ends where the tensor does, so that whatever saves or counts storages need
    not know of the neighbours. DLPack makes such a tensor; not on "meta", for instance.
    """
    try:
        alone = torch.from_dlpack(place)
    except (BufferError, RuntimeError, TypeError, ValueError):
        return place
    return (
        alone
        if alone.stride() == place.stride()
        else alone.as_strided(place.shape, place.stride())
    )
