"""Which layers of a model read the same input, found from its graph or from a run.

    calls      the calls of each layer, and which layers could be siblings
    reading    the calls that the graph of a model shows (torch.fx)
    running    the calls that one run of a model shows
    aliasing   which values of a graph may share memory, and which calls write to it
"""

from . import aliasing, calls, reading, running

__all__ = ["aliasing", "calls", "reading", "running"]
