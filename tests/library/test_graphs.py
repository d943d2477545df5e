"""CUDA graphs, on a device that is made up."""

import contextlib
import gc
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch

from hfusion import timing
from hfusion.timing import Disagreement, agree

# graphed, with a GPU that is made up. What a graph is given, it does when replayed.


class FakeCuda:
    """Streams and a graph that write down what happens to them."""

    def __init__(self):
        self.events, self.stack, self.captured = [], ["main"], []

    def launch(self, work):
        """What a kernel does; in a graph, nothing yet."""
        self.events.append(f"launch on {self.stack[-1]}")
        if self.stack[-1] == "graph":
            self.captured.append(work)
        else:
            work()

    def stream_called(self, name):
        def wait(other):
            self.events.append(f"{name} waits for {other.name}")

        return SimpleNamespace(name=name, wait_stream=wait)

    @contextlib.contextmanager
    def inside(self, name):
        self.stack.append(name)
        yield
        self.stack.pop()

    def replay(self):
        self.events.append("replay")
        for work in self.captured:
            work()


@pytest.fixture
def cuda(monkeypatch):
    cuda = FakeCuda()
    graph = SimpleNamespace(replay=cuda.replay, name="graph")
    fakes = {
        "Stream": lambda: cuda.stream_called("side"),
        "current_stream": lambda: cuda.stream_called(cuda.stack[-1]),
        "stream": lambda stream: cuda.inside(stream.name),
        "CUDAGraph": lambda: graph,
        "graph": lambda given: cuda.inside(given.name),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return cuda


def adding_one(cuda, x, count):
    """A function that gives `count` tensors: x + 1, x + 2, …"""

    def fn():
        outputs = tuple(torch.zeros_like(x) for _ in range(count))
        for i, y in enumerate(outputs, start=1):
            cuda.launch(lambda y=y, i=i: y.copy_(x + i))
        return outputs[0] if count == 1 else outputs

    return fn


def test_a_graph_is_captured_after_a_warm_up_on_a_stream_of_its_own(cuda):
    timing.graphed(adding_one(cuda, torch.ones(2), 1))
    first, *warm, last, captured = cuda.events
    assert (first, last) == ("side waits for main", "main waits for side")
    assert len(warm) >= 1
    assert set(warm) == {"launch on side"}
    assert captured == "launch on graph"


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_graph_gives_is_wrong_until_it_is_replayed(cuda, monkeypatch, count):
    x = torch.ones(2)
    replay = timing.graphed(adding_one(cuda, x, count))
    unplayed = cuda.captured.copy()
    cuda.captured.clear()  # a replay that does nothing
    for y in timing.tensors(replay()):
        assert torch.equal(y, torch.full_like(y, timing.UNPLAYED))
        with pytest.raises(Disagreement):
            timing.near(y, x, 1)
    cuda.captured += unplayed
    for change in (0, 10):  # it reads x where it lies, as it is now
        x += change
        outputs = timing.tensors(replay())
        assert len(outputs) == count
        for i, y in enumerate(outputs, start=1):
            agree(y, x + i)


def test_a_replay_gives_the_same_tensors_and_calls_nothing(cuda):
    calls = []

    def fn():
        calls.append(torch.is_grad_enabled())
        return torch.zeros(2)

    replay = timing.graphed(fn)
    made = len(calls)
    assert calls == [False] * made
    assert torch.is_grad_enabled()
    first = replay()
    assert replay() is first
    assert len(calls) == made
    assert cuda.events[-2:] == ["replay", "replay"]


def test_a_graph_may_have_it_many_times(cuda):
    x = torch.ones(2)
    replay = timing.graphed(adding_one(cuda, x, 1), times=3)
    assert len(cuda.captured) == 3
    agree(replay(), x + 1)


def test_a_graph_keeps_alive_what_it_was_made_of(cuda):
    class Weights:
        pass

    weights = Weights()
    alive = weakref.ref(weights)
    replay = timing.graphed(lambda weights=weights: torch.zeros(2))
    del weights
    gc.collect()
    assert alive() is not None
    assert replay() is not None


def test_an_error_in_what_is_graphed_comes_out(cuda):
    with pytest.raises(ZeroDivisionError):
        timing.graphed(lambda: 1 / 0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("seen_as", [torch.float16, torch.bfloat16, torch.float32])
def test_what_lies_there_before_is_finite_whoever_reads_it(kind, seen_as):
    """A kernel may multiply by zero what lies where it will write."""
    lies = torch.full((8,), timing.UNPLAYED, dtype=kind).view(seen_as)
    assert torch.equal(lies * 0, torch.zeros_like(lies))


# Launches counted as the nodes of a graph, by CUDA's functions, made up.

KERNEL, COPY, FILL, HOST, GRAPH = range(5)


class FakeRuntime:
    """Of cuda.bindings: graphs are numbers, and have these nodes."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaGraphNodeType = SimpleNamespace(
        cudaGraphNodeTypeKernel=KERNEL,
        cudaGraphNodeTypeMemcpy=COPY,
        cudaGraphNodeTypeMemset=FILL,
        cudaGraphNodeTypeGraph=GRAPH,
    )
    cudaGraph_t = int

    def cudaGraphGetNodes(self, graph, number=0):
        inner = [(KERNEL, 0), (FILL, 0)]
        nodes = inner if graph == 8 else [(KERNEL, 0), (COPY, 0), (HOST, 0), (GRAPH, 8)]
        return 0, [*nodes, None][: number + 1] if number else [], len(nodes)

    def cudaGraphNodeGetType(self, node):
        return 0, node[0]

    def cudaGraphChildGraphNodeGetGraph(self, node):
        return 0, node[1]


@pytest.fixture
def runtime(cuda, monkeypatch):
    def profile(**_):
        raise AssertionError("the profiler was asked")

    made = FakeRuntime()
    for name, module in {
        "cuda": SimpleNamespace(),
        "cuda.bindings": SimpleNamespace(runtime=made),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)

    class Graph:
        name = "graph"

        def __init__(self, keep_graph=False):
            self.kept, self.replay = keep_graph, cuda.replay

        def raw_cuda_graph(self):
            assert self.kept
            return 7

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.profiler, "profile", profile)
    return made


NODES = ("kernel", "copy", "kernel", "fill")


def test_launches_are_nodes_of_a_graph(runtime, cuda):
    fn = adding_one(cuda, torch.ones(2), 1)
    assert timing.count_launches(fn, "cuda").names == NODES
    made = cuda.events.count("launch on graph")
    assert made == 1
    replay = timing.graphed(fn, times=3)
    cuda.events.clear()
    assert timing.count_launches(replay, "cuda").names == NODES
    assert cuda.events == ["replay"]  # its own graph: none is made of a graph


@pytest.mark.parametrize("lacks", ["bindings", "keeping", "capture", "an answer"])
def test_else_launches_are_what_the_profiler_saw(runtime, cuda, monkeypatch, lacks):
    def captured(graph):
        raise RuntimeError("operation not permitted when stream is capturing")

    if lacks == "bindings":
        monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    elif lacks == "keeping":
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(name="graph"))
    elif lacks == "capture":
        monkeypatch.setattr(torch.cuda, "graph", captured)
    else:
        runtime.cudaGraphGetNodes = lambda *_: (700, [], 0)
        runtime.cudaGraphGetNodes.__name__ = "cudaGraphGetNodes"
    with pytest.raises(AssertionError, match="the profiler was asked"):
        timing.count_launches(adding_one(cuda, torch.ones(2), 1), "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_on_a_gpu():
    x = torch.ones(64, device="cuda")
    replay = timing.graphed(lambda: (x + 1).relu())
    assert replay() is replay()
    x.fill_(5)
    agree(replay(), torch.full((64,), 6.0))
    assert timing.count_launches(replay, "cuda").count == 2
