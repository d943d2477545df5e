"""The rows and columns of one process, and layers that compute with them."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FusionError, check_int


def rows(
    whole: Tensor, rank: int, world: int, sizes: Sequence[int] | None = None
) -> Tensor:
    """One process's rows of a stacked matrix or bias: an equal part of each block.

    Parameters
    ----------
    whole : Tensor
        [K, …].
    rank, world : int
        Which process, and how many there are: so everywhere below.
    sizes : sequence of int, optional
        Rows of each block, with the sum K; without it there is one block.

    Returns
    -------
    Tensor
        [K / world, …].

    Raises
    ------
    FusionError
        Where a block cannot be cut into equal parts.

    Examples
    --------
    >>> whole = torch.tensor([1, 2, 3, 4, 10, 20])
    >>> rows(whole, rank=0, world=2, sizes=(4, 2)).tolist()
    [1, 2, 10]
    """
    blocks = whole.split(list(sizes or [len(whole)]))
    return torch.cat([_part("whole", "rows", block, rank, world, 0) for block in blocks])


def columns(weight: Tensor, rank: int, world: int) -> Tensor:
    """One process's columns of a matrix: [K, C] -> [K, C / world].

    The other arguments, and what is refused, are as for `rows`.

    >>> columns(torch.tensor([[1, 2, 3, 4]]), rank=1, world=2).tolist()
    [[3, 4]]
    """
    return _part("weight", "columns", weight, rank, world, 1)


def _part(name: str, what: str, tensor: Tensor, rank: int, world: int, dim: int) -> Tensor:
    size = tensor.shape[dim]
    check_int("world", world, least=1)
    if not 0 <= rank < world:
        raise FusionError(f"rank: expected an int from 0 to {world - 1}, got {rank}")
    if size % world:
        raise FusionError(
            f"{name}: expected a multiple of {world} {what} in each block, got {size}"
        )
    return tensor.narrow(dim, rank * (size // world), size // world)


# What a process does: each of these is called with its rank and how many there are.
# Chapter 14 shows them, in lines of 76 columns.


def projection(
    rank: int, world: int, x: Tensor, weight: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Compute one process's rows of a stacked projection, with nothing to send.

    x [T, C] and weight [K, C], the branches stacked, of these sizes -> [T, K / world], a
    part of each branch.
    """
    return F.linear(x, rows(weight, rank, world, sizes))


def gated_mlp(
    rank: int,
    world: int,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> Tensor:
    """Compute a gated MLP, cut by rows and then by columns: one all-reduce.

    x [T, C], gate_up [2 F, C], two blocks stacked, and down [C, F] -> [T, C] on each
    process.
    """
    blocks = [len(gate_up) // 2] * 2
    both = F.linear(x, rows(gate_up, rank, world, blocks))
    gate, up = both.chunk(2, dim=-1)  # [T, F / world] each
    hidden = F.silu(gate) * up
    y = F.linear(hidden, columns(down, rank, world))  # a summand of [T, C]
    dist.all_reduce(y)
    return y


def gated_mlp_by_rows(
    rank: int,
    world: int,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> Tensor:
    """Compute `gated_mlp` with both matrices cut by rows: two all-gathers."""
    blocks = [len(gate_up) // 2] * 2
    both = F.linear(x, rows(gate_up, rank, world, blocks))
    gate, up = both.chunk(2, dim=-1)
    hidden = _gathered(F.silu(gate) * up, world)  # [T, F], for each row
    return _gathered(F.linear(hidden, rows(down, rank, world)), world)


def _gathered(part: Tensor, world: int) -> Tensor:
    """The parts of all processes next to each other."""
    parts = [torch.empty_like(part) for _ in range(world)]
    dist.all_gather(parts, part)
    return torch.cat(parts, dim=-1)


def gated_mlp_by_dtensor(
    rank: int,
    world: int,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    stacked: bool = False,
) -> Tensor:
    """Compute `gated_mlp` by PyTorch's own means: layers, and a plan that cuts them.

    With `stacked`, gate and up are one layer, which the plan cuts in the middle: wrong.
    """
    # Only here, since importing it takes a second.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import parallel

    mlp = _GatedMLP([gate_up] if stacked else gate_up.chunk(2), down)
    cuts = {
        "first.*": parallel.ColwiseParallel(),
        "down": parallel.RowwiseParallel(),
    }
    processes = init_device_mesh("cpu", (world,))
    parallel.parallelize_module(mlp, processes, cuts)
    return mlp(x).clone()  # copying waits for the sum


class _GatedMLP(nn.Module):
    def __init__(self, first: Sequence[Tensor], down: Tensor) -> None:
        super().__init__()
        self.first = nn.ModuleList(map(_linear, first))
        self.down = _linear(down)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([layer(x) for layer in self.first], dim=-1)
        gate, up = both.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def _linear(weight: Tensor) -> nn.Linear:
    c_out, c_in = weight.shape
    layer = nn.Linear(c_in, c_out, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
