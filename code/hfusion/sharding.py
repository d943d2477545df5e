"""The reverse of stacking: one matrix cut across processes. torch.distributed, gloo.

    by rows, the outputs             by columns, the inputs

    [W_0]     [W_0 x]  process 0               [x_0]   W_0 x_0  process 0
    [W_1] x = [W_1 x]  process 1     [W_0 W_1] [x_1] =    +
                                                       W_1 x_1  process 1

    all of x in, part of y out       part of x in, a summand of y out

What is cut by rows and then by columns fits together, with one sum at the end. Shoeybi et
al. 2019 (Megatron-LM) call the first column-parallel, since their matrix is the transpose.
`run` starts the processes, and ends them whatever happens.
"""

import datetime
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from multiprocessing import connection
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from . import timing
from .errors import WorkerError


def rows(whole, rank, world, sizes=None):
    """One process's rows of a stacked matrix or bias: of each block its share.

    whole: [K, …]; sizes: rows of each block, with the sum K; one block if not given.
    Raises ValueError where a block cannot be cut into equal shares.

    >>> whole = torch.tensor([1, 2, 3, 4, 10, 20])
    >>> rows(whole, rank=0, world=2, sizes=(4, 2)).tolist()
    [1, 2, 10]
    """
    blocks = whole.split(list(sizes or [len(whole)]))
    return torch.cat([_share("rows", block, rank, world, 0) for block in blocks])


def columns(weight, rank, world):
    """One process's columns of a matrix [K, C]: [K, C / world].

    >>> columns(torch.tensor([[1, 2, 3, 4]]), rank=1, world=2).tolist()
    [[3, 4]]
    """
    return _share("columns", weight, rank, world, 1)


def _share(name, tensor, rank, world, dim):
    size = tensor.shape[dim]
    if world < 1 or not 0 <= rank < world:
        raise ValueError(f"rank was {rank} of {world}; 0 to {world - 1} fits")
    if size % world:
        raise ValueError(f"{name} were {size}; a multiple of {world} processes fits")
    return tensor.narrow(dim, rank * (size // world), size // world)


# What a process does: each of these is called with its rank and how many there are.


def projection(rank, world, x, weight, sizes):
    """Its rows of a stacked projection: a part of each branch, and nothing to send."""
    return F.linear(x, rows(weight, rank, world, sizes))


def gated_mlp(rank, world, x, gate_up, down):
    """A gated MLP, cut by rows and then by columns: one all-reduce.

    x [T, C]; gate_up [2 F, C], two blocks stacked; down [C, F] -> [T, C], on each.
    """
    blocks = [len(gate_up) // 2] * 2
    both = F.linear(x, rows(gate_up, rank, world, blocks))
    gate, up = both.chunk(2, dim=-1)  # [T, F / world] each
    hidden = F.silu(gate) * up
    y = F.linear(hidden, columns(down, rank, world))  # a summand of [T, C]
    dist.all_reduce(y)
    return y


def gated_mlp_by_rows(rank, world, x, gate_up, down):
    """The same with both matrices cut by rows: two all-gathers."""
    blocks = [len(gate_up) // 2] * 2
    both = F.linear(x, rows(gate_up, rank, world, blocks))
    gate, up = both.chunk(2, dim=-1)
    hidden = _gathered(F.silu(gate) * up, world)  # [T, F], for each row
    return _gathered(F.linear(hidden, rows(down, rank, world)), world)


def _gathered(part, world):
    """The parts of all processes next to each other."""
    parts = [torch.empty_like(part) for _ in range(world)]
    dist.all_gather(parts, part)
    return torch.cat(parts, dim=-1)


def gated_mlp_by_dtensor(rank, world, x, gate_up, down, stacked=False):
    """The same by PyTorch's own means: layers, and a plan that cuts them.

    stacked: gate and up as one layer, which is cut in the middle: wrong.
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
    return mlp(x).clone()  # which waits until the sum is there


class _GatedMLP(nn.Module):
    def __init__(self, first, down):
        super().__init__()
        self.first = nn.ModuleList(map(_linear, first))
        self.down = _linear(down)

    def forward(self, x):
        both = torch.cat([layer(x) for layer in self.first], dim=-1)
        gate, up = both.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def _linear(weight):
    layer = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def leaves(rank, world):
    """For trying out what `run` does: the last process dies, the others wait for it."""
    if rank == world - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    dist.barrier()


def run(work, *args, world=2, limit_s=120, count=False):
    """Call work(rank, world, *args) in `world` new processes: [result of rank 0, …].

    work: a function at the top of a module, so that another process finds it. args and
    results: tensors, numbers, strings, or lists, tuples and dicts of them; each process
    gets copies. count: return the names of the operators that a call launches,
    collectives among them, and not its result. The processes can talk with
    torch.distributed; what they print is lost. If one raises or dies, the others are ended
    too; after limit_s seconds all are. Either way WorkerError says which one it was.

    >>> run(projection, torch.ones(1, 2), torch.eye(2), (2,))  # doctest: +SKIP
    [tensor([[1.]]), tensor([[1.]])]
    """
    _refuse_bad(work, world, limit_s)
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # In a file: a process that dies early would never read a large argument.
        torch.save(args, Path(folder, "args.pt"))
        called = (work.__module__, work.__name__, count)
        processes = [
            context.Process(
                target=_worker, args=(rank, world, folder, limit_s, *called), daemon=True
            )
            for rank in range(world)
        ]
        try:
            for process in processes:
                process.start()
            _wait(processes, folder, limit_s)
        finally:
            started = [process for process in processes if process.pid is not None]
            for process in started:
                process.kill()
            for process in started:
                process.join()
        return [_load(folder, rank) for rank in range(world)]


def _load(folder, name):
    """What a process has left: tensors and what they lie in, nothing that is run."""
    return torch.load(Path(folder, f"{name}.pt"), weights_only=True)


def _refuse_bad(work, world, limit_s):
    name = getattr(work, "__qualname__", repr(work))
    module = getattr(work, "__module__", None)
    if module in (None, "__main__") or not name.isidentifier():
        raise ValueError(f"work was {name} of {module}; a function of a module fits")
    if type(world) is not int or world < 1:
        raise ValueError(f"world was {world!r}; a whole number from 1 fits")
    if not isinstance(limit_s, int | float) or not 0 < limit_s < 1e6:
        raise ValueError(f"limit_s was {limit_s!r}; a number of seconds above 0 fits")


def _wait(processes, folder, limit_s):
    """Return when all have left results; raise WorkerError as soon as one has not."""
    deadline = time.monotonic() + limit_s
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    while running:
        ended = connection.wait(running, max(0, deadline - time.monotonic()))
        if not ended:
            ranks = ", ".join(map(str, running.values()))
            raise WorkerError(f"rank {ranks} of {len(processes)}: not done in {limit_s} s")
        ranks = [running.pop(sentinel) for sentinel in ended]
        failed = [rank for rank in ranks if not Path(folder, f"{rank}.pt").exists()]
        if failed:
            rank = min(failed, key=lambda rank: _last_word(folder, rank)[0])
            processes[rank].join()
            status, said = processes[rank].exitcode, _last_word(folder, rank)[1]
            said = said or f"ended without a word, exit status {status}"
            raise WorkerError(f"rank {rank} of {len(processes)}: {said}")


def _last_word(folder, rank):
    """When and with what a process ended that failed; who died is the cause of the rest."""
    path = Path(folder, f"{rank}.error")
    if not path.exists():
        return 0, ""
    when, _, said = path.read_text(encoding="utf-8").partition(" ")
    return int(when), said


def _worker(rank, world, folder, limit_s, module, name, count):
    """One process: joins the others, works, and leaves its result in `folder`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # gloo tells of its connections
        os.dup2(quiet, stream)
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if loopback:  # else gloo asks for this machine's name in the network
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder, "store")), world)
    limit = datetime.timedelta(seconds=limit_s)
    try:
        work = getattr(importlib.import_module(module), name)
        args = _load(folder, "args")
        dist.init_process_group("gloo", None, limit, world, rank, store)
        dist.barrier()  # nobody leaves before all are connected
        if count:
            result = timing.count_launches(lambda: work(rank, world, *args)).names
        else:
            result = work(rank, world, *args)
        torch.save(result, Path(folder, f"{rank}.pt"))
        dist.destroy_process_group()
    except BaseException as error:
        said = f"{time.monotonic_ns()} {type(error).__name__}: {error}"
        Path(folder, f"{rank}.error").write_text(said, encoding="utf-8")
        os._exit(1)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
