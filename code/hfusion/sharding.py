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

from . import measure


class WorkerError(RuntimeError):
    """A process failed, died, or took too long."""


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
    both = F.linear(x, rows(gate_up, rank, world, [len(gate_up) // 2] * 2))
    gate, up = both.chunk(2, dim=-1)  # [T, F / world] each
    y = F.linear(F.silu(gate) * up, columns(down, rank, world))  # a summand of [T, C]
    dist.all_reduce(y)
    return y


def gated_mlp_by_rows(rank, world, x, gate_up, down):
    """The same with both matrices cut by rows: two all-gathers."""
    both = F.linear(x, rows(gate_up, rank, world, [len(gate_up) // 2] * 2))
    gate, up = both.chunk(2, dim=-1)
    hidden = _gathered(F.silu(gate) * up, world)  # [T, F]: each row needs all of it
    return _gathered(F.linear(hidden, rows(down, rank, world)), world)


def _gathered(part, world):
    """The parts of all processes next to each other."""
    parts = [torch.empty_like(part) for _ in range(world)]
    dist.all_gather(parts, part)
    return torch.cat(parts, dim=-1)


def counted(rank, world, work, *args):
    """The names of the operators that a call of `work` launches, collectives among them."""
    return measure.count_launches(lambda: work(rank, world, *args)).names


def leaves(rank, world):
    """For trying out what `run` does: the last process dies, the others wait for it."""
    if rank == world - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    dist.barrier()


def run(work, *args, world=2, limit_s=120):
    """Call work(rank, world, *args) in `world` new processes: [result of rank 0, …].

    work: a function of a module, so that another process finds it. Its result: tensors,
    numbers, strings, or lists, tuples and dicts of them. The processes can talk with
    torch.distributed. If one raises or dies, the others are ended too; after limit_s
    seconds all are. Either way WorkerError says which process, and what became of it.

    >>> run(projection, torch.ones(1, 2), torch.eye(2), (2,))  # doctest: +SKIP
    [tensor([[1.]]), tensor([[1.]])]
    """
    if work.__module__ == "__main__":
        name = work.__qualname__
        raise ValueError(f"work was {name} of __main__; a function of a module fits")
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        processes = [
            context.Process(
                target=_worker, args=(rank, world, folder, limit_s, work, args), daemon=True
            )
            for rank in range(world)
        ]
        try:
            for process in processes:
                process.start()
            _wait(processes, folder, limit_s)
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(world)]


def _wait(processes, folder, limit_s):
    """Return when all have ended well; raise WorkerError as soon as one has not."""
    deadline = time.monotonic() + limit_s
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    while running:
        ended = connection.wait(running, max(0, deadline - time.monotonic()))
        if not ended:
            ranks = ", ".join(map(str, running.values()))
            raise WorkerError(f"rank {ranks} of {len(processes)}: not done in {limit_s} s")
        ranks = [running.pop(sentinel) for sentinel in ended]
        for rank in ranks:
            processes[rank].join()
        failed = [rank for rank in ranks if processes[rank].exitcode]
        if failed:
            rank, said = min((_last_word(folder, rank), rank) for rank in failed)[::-1]
            raise WorkerError(f"rank {rank} of {len(processes)}: {said[1]}")


def _last_word(folder, rank):
    """When and with what a process ended that failed; who died is the cause of the rest."""
    path = Path(folder, f"{rank}.error")
    if not path.exists():
        return 0, "died without a word"
    return path.stat().st_mtime_ns, path.read_text(encoding="utf-8")


def _worker(rank, world, folder, limit_s, work, args):
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
        dist.init_process_group("gloo", None, limit, world, rank, store)
        torch.save(work(rank, world, *args), Path(folder, f"{rank}.pt"))
        dist.destroy_process_group()
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        Path(folder, f"{rank}.error").write_text(said, encoding="utf-8")
        os._exit(1)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
