"""CUDA graphs: a function captured once and replayed, and what one call of it launches."""

from collections.abc import Callable
from typing import Any

import torch

from ._agreement import tensors

# What lies in a graph's outputs before its first replay, as no right result does. Not NaN:
# cuDNN may multiply by zero what lies there.
UNPLAYED = -(2.0**14)


def graphed(fn: Callable[[], Any], times: int = 1) -> Callable[[], Any]:
    """A function that replays what `fn` launched, as one CUDA graph.

    Parameters
    ----------
    fn : function
        Without arguments. It must launch the same each time, and return tensors that it
        allocates itself.
    times : int
        How often `fn` is in the graph, one after the other: starting a replay takes the
        host some µs, and hides shorter work.

    Returns
    -------
    function
        Each call replays the graph and returns the same tensors. Where they are floating
        point they hold `UNPLAYED` until the first replay.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):  # whatever is chosen or set aside at first use
            fn()
    torch.cuda.current_stream().wait_stream(side)
    graph, outputs = _captured(fn, times)
    for tensor in tensors(outputs):
        if tensor.is_floating_point():
            tensor.fill_(UNPLAYED)

    def replay() -> Any:
        graph.replay()
        return outputs

    # The graph reads tensors that only fn may keep alive.
    vars(replay).update(fn=fn, graph=graph)
    return replay


def _captured(fn: Callable[[], Any], times: int = 1) -> tuple[torch.cuda.CUDAGraph, Any]:
    """(a CUDA graph of so many calls, what the last one returned)."""
    try:
        graph = torch.cuda.CUDAGraph(keep_graph=True)  # so that it can be looked at
    except TypeError:  # torch before 2.8
        graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        for _ in range(times):
            outputs = fn()
    return graph, outputs


def _nodes(graph: Any) -> list[str]:
    """What a CUDA graph launches, by CUDA's own functions: ["kernel", "copy", …]."""
    from cuda.bindings import runtime

    def ask(function: Callable, *given: object) -> list:
        error, *found = function(*given)
        if error != runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"{function.__name__}: {error}")
        return found

    kinds = runtime.cudaGraphNodeType
    names = {
        kinds.cudaGraphNodeTypeKernel: "kernel",
        kinds.cudaGraphNodeTypeMemcpy: "copy",
        kinds.cudaGraphNodeTypeMemset: "fill",
    }
    _, number = ask(runtime.cudaGraphGetNodes, graph)
    nodes, _ = ask(runtime.cudaGraphGetNodes, graph, number)
    found = []
    for node in nodes[:number]:
        (kind,) = ask(runtime.cudaGraphNodeGetType, node)
        if kind == kinds.cudaGraphNodeTypeGraph:
            found += _nodes(*ask(runtime.cudaGraphChildGraphNodeGetGraph, node))
        elif kind in names:
            found.append(names[kind])
    return found


def launched(fn: Callable[[], Any]) -> list[str] | None:
    """What one call of `fn` launches, as nodes of a CUDA graph; None if that cannot be
    said: no bindings of CUDA, a torch that keeps no graph, or work that fits into none.
    """
    try:
        from cuda.bindings import runtime

        graph = fn.graph if hasattr(fn, "graph") else _captured(fn)[0]
        return _nodes(runtime.cudaGraph_t(graph.raw_cuda_graph()))
    except torch.OutOfMemoryError:
        raise
    except (ImportError, AttributeError, RuntimeError):
        return None
