"""Functions called in processes of their own, which always end."""

import datetime
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import timing
from ..errors import FusionError, WorkerError, check_int


def leaves(rank: int, world: int) -> None:
    """Die in the last process, while the others wait for it: to try out what `run` does."""
    if rank == world - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    dist.barrier()


def run(
    work: Callable[..., Any],
    *args: Any,
    world: int = 2,
    limit_s: float = 120,
    count: bool = False,
) -> list[Any]:
    """Call work(rank, world, *args) in `world` new processes.

    The processes can talk with torch.distributed; what they print is lost. If one raises or
    dies, the others are ended too; after limit_s seconds all are.

    Parameters
    ----------
    work : callable
        A function at the top of a module, so that another process finds it.
    *args
        Tensors, numbers, strings, or lists, tuples and dicts of them, as are the results;
        each process gets copies.
    world : int
        How many processes.
    limit_s : float
        Seconds until all are ended.
    count : bool
        Return the names of the operators that a call launches, collectives among them, and
        not its result.

    Returns
    -------
    list
        [result of rank 0, …].

    Raises
    ------
    WorkerError
        Where a process fails, dies or takes too long, with its rank.
    FusionError
        For a function that another process cannot find, or a number out of range.

    Examples
    --------
    >>> from hfusion.sharding import projection
    >>> run(projection, torch.ones(1, 2), torch.eye(2), (2,))  # doctest: +SKIP
    [tensor([[1.]]), tensor([[1.]])]
    """
    _check(work, world, limit_s)
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


def _load(folder: str, name: str | int) -> Any:
    """What a process has left: tensors and what they lie in, nothing that is run."""
    return torch.load(Path(folder, f"{name}.pt"), weights_only=True)


def _check(work: Callable, world: int, limit_s: float) -> None:
    name = getattr(work, "__qualname__", repr(work))
    module = getattr(work, "__module__", None)
    if module in (None, "__main__") or not name.isidentifier():
        raise FusionError(
            f"work: expected a function at the top of a module, got {name} of {module}"
        )
    check_int("world", world, least=1)
    if not isinstance(limit_s, int | float) or not 0 < limit_s < 1e6:
        raise FusionError(
            f"limit_s: expected seconds, above 0 and below 1e6, got {limit_s!r}"
        )


def _wait(processes: Sequence[BaseProcess], folder: str, limit_s: float) -> None:
    """Return when all have left results; raise WorkerError as soon as one has not."""
    deadline = time.monotonic() + limit_s
    running: dict[Any, int] = {
        process.sentinel: rank for rank, process in enumerate(processes)
    }
    while running:
        ended = connection.wait(list(running), max(0, deadline - time.monotonic()))
        if not ended:
            late = ", ".join(map(str, running.values()))
            raise WorkerError(f"rank {late} of {len(processes)}: not done in {limit_s} s")
        ranks = [running.pop(sentinel) for sentinel in ended]
        failed = [rank for rank in ranks if not Path(folder, f"{rank}.pt").exists()]
        if failed:
            rank = min(failed, key=lambda rank: _last_word(folder, rank)[0])
            processes[rank].join()
            status, said = processes[rank].exitcode, _last_word(folder, rank)[1]
            said = said or f"ended without a word, exit status {status}"
            raise WorkerError(f"rank {rank} of {len(processes)}: {said}")


def _last_word(folder: str, rank: int) -> tuple[int, str]:
    """When and with what a process ended that failed; who died is the cause of the rest."""
    path = Path(folder, f"{rank}.error")
    if not path.exists():
        return 0, ""
    when, _, said = path.read_text(encoding="utf-8").partition(" ")
    return int(when), said


def _worker(
    rank: int, world: int, folder: str, limit_s: float, module: str, name: str, count: bool
) -> None:
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


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a process that `run` has started
    parent.join()
    os._exit(1)
