"""sharding.py: parts that make the whole, and processes that always end."""

import datetime
import itertools
import locale
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from hfusion import FusionError, sharding, timing
from hfusion.sharding import _processes

HERE = Path(__file__).parent
# A machine that is busy takes long to start a process; a hang takes forever.
LIMIT_S = 100


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_the_rows_of_all_are_those_of_the_whole(shares, world, c_in):
    sizes = [share * world for share in shares]
    whole = numbers(sum(sizes), c_in)
    parts = [sharding.rows(whole, rank, world, sizes) for rank in range(world)]
    for block, start in zip(whole.split(sizes), offsets(shares), strict=True):
        share = len(block) // world
        together = torch.cat([part[start : start + share] for part in parts])
        timing.agree(together, block)


def offsets(shares):
    return [sum(shares[:i]) for i in range(len(shares))]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_the_columns_of_all_add_up_to_the_product(share, world, c_out):
    weight, x = numbers(c_out, share * world), numbers(share * world)
    parts = x.chunk(world)
    total = sum(
        sharding.columns(weight, rank, world) @ parts[rank] for rank in range(world)
    )
    timing.agree(total, weight @ x, 1e-12)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda w: sharding.rows(w, 0, 4),
            "whole: .* multiple of 4 rows .*, got 6",
        ),
        (
            lambda w: sharding.rows(w, 0, 2, (3, 3)),
            "whole: .* multiple of 2 .*, got 3",
        ),
        (
            lambda w: sharding.columns(w, 0, 2),
            "weight: .* of 2 columns .*, got 5",
        ),
        (lambda w: sharding.rows(w, 0, 0), "world: expected an int of at least 1, got 0"),
        (lambda w: sharding.rows(w, 2, 2), "rank: expected an int from 0 to 1, got 2"),
        (
            lambda w: sharding.run(main_function),
            "work: .* function at the top .* f of __main__",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(FusionError, match=said):
        call(torch.zeros(6, 5))


def main_function():
    """Stands for one that was defined in a notebook."""


main_function.__module__, main_function.__qualname__ = "__main__", "f"


@pytest.fixture
def mlp():
    x, gate_up, down = numbers(3, 4), numbers(12, 4), numbers(4, 6)
    gate, up = gate_up[:6] @ x.T, gate_up[6:] @ x.T
    return (x, gate_up, down), (down @ (gate / (1 + (-gate).exp()) * up)).T


@pytest.mark.parametrize(
    "work",
    [
        sharding.gated_mlp,
        sharding.gated_mlp_by_rows,
        pytest.param(sharding.gated_mlp_by_dtensor, marks=pytest.mark.slow),
    ],
)
def test_two_processes_compute_what_one_does(mlp, work):
    arguments, expected = mlp
    for result in sharding.run(work, *arguments, limit_s=LIMIT_S):
        timing.agree(result, expected, 1e-12)


@pytest.mark.slow
def test_cut_in_the_middle_a_stacked_layer_is_wrong(mlp):
    """PyTorch's plan does not know of the blocks; `rows` does."""
    arguments, expected = mlp
    for result in sharding.run(
        sharding.gated_mlp_by_dtensor, *arguments, True, limit_s=LIMIT_S
    ):
        timing.differ(result, expected, 1e-3)


def test_a_projection_has_nothing_to_send():
    x, weight, sizes = numbers(3, 4), numbers(12, 4), (8, 2, 2)
    parts = sharding.run(sharding.projection, x, weight, sizes, limit_s=LIMIT_S)
    for block, (start, share) in zip(
        weight.split(sizes), ((0, 4), (4, 1), (5, 1)), strict=True
    ):
        together = torch.cat([part[:, start : start + share] for part in parts], 1)
        timing.agree(together, x @ block.T, 1e-12)
    counted = sharding.run(
        sharding.projection, x, weight, sizes, count=True, limit_s=LIMIT_S
    )
    assert counted == [("cat", "mm")] * 2


def test_one_collective_or_two(mlp):
    for work, wanted in (
        (sharding.gated_mlp, ["allreduce_"]),
        (sharding.gated_mlp_by_rows, ["allgather_", "allgather_"]),
    ):
        for names in sharding.run(work, *mlp[0], count=True, limit_s=LIMIT_S):
            local = {"cat", "mm", "silu", "mul"}
            assert [name for name in names if name not in local] == wanted


@pytest.mark.slow
def test_pytorchs_own_way_sends_as_often(mlp):
    for names in sharding.run(
        sharding.gated_mlp_by_dtensor, *mlp[0], count=True, limit_s=LIMIT_S
    ):
        assert [name for name in names if name.startswith("all")] == ["all_reduce"]
        assert not {name for name in names if "gather" in name or "scatter" in name} - {
            "scatter_"  # within one process, where PyTorch hands out the parts
        }


# The same in this process, one rank after the other.


def test_by_hand_in_this_process_a_projection_is_shared_out():
    """Of four rows two each, of two one each; y = first column + 10 · second column."""
    x = torch.tensor([[1.0, 10.0]])
    weight = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0], [5, 1], [6, 1]])
    parts = [sharding.projection(rank, 2, x, weight, (4, 2)) for rank in range(2)]
    assert [part.tolist() for part in parts] == [[[1.0, 2.0, 15.0]], [[3.0, 4.0, 16.0]]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_in_this_process_the_summands_of_all_add_up(mlp, world, monkeypatch):
    arguments, expected = mlp
    reduced = []
    monkeypatch.setattr(dist, "all_reduce", reduced.append)
    parts = [sharding.gated_mlp(rank, world, *arguments) for rank in range(world)]
    timing.agree(sum(parts), expected, 1e-12)
    assert list(map(id, reduced)) == list(map(id, parts))


@pytest.mark.parametrize("world", [1, 2])
def test_in_this_process_what_is_gathered_is_the_whole(mlp, world, monkeypatch):
    """What another rank sends is known a pass later, so that the third has all."""
    arguments, expected = mlp
    sent = {}  # (rank, which all-gather of its two): part

    def ranked(rank):
        steps = itertools.count()

        def all_gather(places, part):
            step = next(steps)
            sent[rank, step] = part
            for other in range(world):
                places[other].copy_(sent.get((other, step), torch.nan * part))

        return all_gather

    for _ in range(3):
        results = []
        for rank in range(world):
            monkeypatch.setattr(dist, "all_gather", ranked(rank))
            results.append(sharding.gated_mlp_by_rows(rank, world, *arguments))
    assert len(sent) == 2 * world
    for result in results:
        timing.agree(result, expected, 1e-12)


@pytest.mark.parametrize(
    ("rank", "world", "ends"), [(0, 1, True), (0, 2, False), (1, 2, True), (0, 3, False)]
)
def test_in_this_process_only_the_last_leaves(rank, world, ends, monkeypatch):
    calls = []
    monkeypatch.setattr(_processes.os, "kill", lambda *args: calls.append(args))
    monkeypatch.setattr(dist, "barrier", lambda: calls.append("waits"))
    sharding.leaves(rank, world)
    assert calls == [(os.getpid(), signal.SIGTERM)] * ends + ["waits"]


# A process, without being one: what it does to itself and asks of others is noted.


@pytest.fixture
def noted(monkeypatch):
    noted, opened = [], set()

    class Thread:
        def __init__(self, *, target, daemon):
            self.start = lambda: noted.append(("watches", target, daemon))

    def silence(quiet, stream):
        os.write(quiet, b"nobody reads this")
        opened.add(quiet)
        noted.append(("silent", stream))

    def joins(backend, init_method, timeout, world_size, rank, store):
        noted.append((backend, init_method, timeout, f"{rank} of {world_size}", store))

    system = vars(os) | {
        "dup2": silence,
        "_exit": lambda status: noted.append(("ends", status)),
        "environ": {},
    }
    monkeypatch.setattr(_processes, "os", types.SimpleNamespace(**system))
    monkeypatch.setattr(_processes, "threading", types.SimpleNamespace(Thread=Thread))
    monkeypatch.setattr(dist, "FileStore", lambda *args: ("store", *args))
    monkeypatch.setattr(dist, "init_process_group", joins)
    monkeypatch.setattr(dist, "barrier", lambda: noted.append("waits"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: noted.append("parts"))
    threads = torch.get_num_threads()
    yield noted
    torch.set_num_threads(threads)
    for quiet in opened:
        os.close(quiet)


def powers(rank, world, x):
    for _ in range(world):
        x = x * rank
    return x


def begin(folder, work=powers, count=False):
    """Rank 2 of 3, which may take 7 seconds."""
    torch.save((torch.tensor([1.0, 5.0]),), folder / "args.pt")
    _processes._worker(2, 3, str(folder), 7, work.__module__, work.__name__, count)


def test_a_process_in_this_one_joins_works_and_parts(noted, tmp_path):
    torch.set_num_threads(4)
    begin(tmp_path)
    watches, *silent, joins, waits, parts = noted
    assert watches == ("watches", _processes._end_with_parent, True)
    assert silent == [("silent", 1), ("silent", 2)]
    store = ("store", str(tmp_path / "store"), 3)
    assert joins == ("gloo", None, datetime.timedelta(seconds=7), "2 of 3", store)
    assert (waits, parts) == ("waits", "parts")
    assert torch.get_num_threads() == 1
    assert torch.load(tmp_path / "2.pt").tolist() == [8.0, 40.0]
    assert {path.name for path in tmp_path.iterdir()} == {"args.pt", "2.pt"}


def test_a_process_in_this_one_leaves_names_where_it_counts(noted, tmp_path):
    begin(tmp_path, count=True)
    assert torch.load(tmp_path / "2.pt") == ("mul",) * 3
    assert noted[-1] == "parts"


@pytest.mark.parametrize(
    ("platform", "network"), [("linux", "lo"), ("darwin", "lo0"), ("win32", None)]
)
def test_a_process_in_this_one_talks_within_the_machine(
    noted, tmp_path, monkeypatch, platform, network
):
    monkeypatch.setattr(_processes, "sys", types.SimpleNamespace(platform=platform))
    begin(tmp_path)
    expected = {"GLOO_SOCKET_IFNAME": network} if network else {}
    assert _processes.os.environ == expected


def divides(rank, world, x):
    raise ZeroDivisionError("höchst absichtlich")


def exits(rank, world, x):
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("work", "said"),
    [(divides, "ZeroDivisionError: höchst absichtlich"), (exits, "SystemExit: 0")],
)
def test_a_process_in_this_one_leaves_word_of_its_error(noted, tmp_path, work, said):
    """In any language, whatever the locale."""
    language = locale.setlocale(locale.LC_CTYPE)
    before = time.monotonic_ns()
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        begin(tmp_path, work)
    finally:
        locale.setlocale(locale.LC_CTYPE, language)
    when, words = _processes._last_word(tmp_path, 2)
    assert words == said
    assert before <= when <= time.monotonic_ns()
    assert noted[-1] == ("ends", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"args.pt", "2.error"}


def test_a_process_in_this_one_ends_with_its_parent(noted, monkeypatch):
    parent = types.SimpleNamespace(join=lambda: noted.append("parent ended"))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    _processes._end_with_parent()
    assert noted == ["parent ended", ("ends", 1)]


# Processes that do not do what they should. Rank 0 waits for rank 1 in each.


def raises(rank, world):
    if rank == 1:
        raise ZeroDivisionError("on purpose")
    dist.barrier()


def leaves_nothing(rank, world):
    if rank == 1:
        os._exit(0)
    dist.barrier()


def changes(rank, world, x):
    x += rank + 1
    return x


def test_each_process_gets_a_copy():
    x = torch.zeros(3)
    results = sharding.run(changes, x, limit_s=LIMIT_S)
    assert [result.tolist() for result in results] == [[1.0] * 3, [2.0] * 3]
    assert x.tolist() == [0.0] * 3
    assert not x.is_shared()


@pytest.mark.slow
def test_one_or_three_processes():
    arguments = numbers(2, 5), numbers(12, 5), numbers(5, 6)
    one, three = (
        sharding.run(sharding.gated_mlp, *arguments, world=world, limit_s=LIMIT_S)
        for world in (1, 3)
    )
    assert (len(one), len(three)) == (1, 3)
    for result in three:
        timing.agree(result, one[0], 1e-12)


def test_the_first_to_fail_is_named(tmp_path):
    """Others fail because of it: who died without a word, or else who spoke first."""
    (tmp_path / "0.error").write_text("20 RuntimeError: connection closed: by peer")
    (tmp_path / "1.error").write_text("3 ZeroDivisionError: on purpose")
    assert _processes._last_word(tmp_path, 0) == (
        20,
        "RuntimeError: connection closed: by peer",
    )
    assert _processes._last_word(tmp_path, 1) == (3, "ZeroDivisionError: on purpose")
    assert _processes._last_word(tmp_path, 2) == (0, "")


def test_of_several_that_failed_the_cause_is_named(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=os._exit, args=(1,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    (tmp_path / "0.error").write_text("20 RuntimeError: connection closed")
    (tmp_path / "1.error").write_text("3 ZeroDivisionError: on purpose")
    with pytest.raises(sharding.WorkerError, match="rank 1 of 2: ZeroDivisionError"):
        _processes._wait(processes, tmp_path, 10)
    (tmp_path / "0.error").unlink()
    with pytest.raises(sharding.WorkerError, match="rank 0 of 2: ended without a word"):
        _processes._wait(processes, tmp_path, 10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"world": 0}, "world: expected an int of at least 1, got 0"),
        ({"world": 2.0}, "world: .* got 2.0"),
        ({"limit_s": 0}, "limit_s: expected seconds, above 0 and below 1e6, got 0"),
        ({"limit_s": None}, "limit_s: .* got None"),
        ({"limit_s": float("inf")}, "limit_s: .* got inf"),
    ],
)
def test_bad_numbers_are_refused(options, said):
    with pytest.raises(FusionError, match=said):
        sharding.run(leaves_nothing, **options)


def test_a_function_that_others_cannot_find_is_refused():
    with pytest.raises(FusionError, match=r"work: expected .*<lambda> of test_"):
        sharding.run(lambda rank, world: None)


def sleeps(rank, world, path=None):
    if rank == 1:
        if path:
            Path(path).write_text(str(os.getpid()))
        time.sleep(1000)
    dist.barrier()


@pytest.mark.parametrize(
    ("work", "limit_s", "said"),
    [
        (raises, LIMIT_S, "rank 1 of 2: ZeroDivisionError: on purpose"),
        (sharding.leaves, LIMIT_S, "rank 1 of 2: ended without a word, exit status -15"),
        (leaves_nothing, LIMIT_S, "rank 1 of 2: ended without a word, exit status 0"),
        (sleeps, 10, r"rank .*1 of 2: not done in 10 s"),
    ],
)
def test_who_fails_is_named_and_nobody_is_left(work, limit_s, said):
    with pytest.raises(sharding.WorkerError, match=said):
        sharding.run(work, limit_s=limit_s)
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform == "win32", reason="asks for a process by a signal")
def test_processes_end_with_the_one_that_started_them(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import test_sharding
from hfusion import sharding
if __name__ == "__main__":
    sharding.run(test_sharding.sleeps, {str(tmp_path / "pid")!r})
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script])
    try:
        pid = int(wait_for(lambda: (tmp_path / "pid").exists() and read(tmp_path / "pid")))
    finally:
        parent.kill()
        parent.wait()
    assert wait_for(lambda: not is_alive(pid))


def read(path):
    return path.read_text()


def wait_for(condition):
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError("it did not happen")


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")  # one that nobody has asked after is dead as well
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")
