"""Which layers of a model read the same input: its calls, from its graph or from a run.

`calls` has the calls of each layer, and says which layers could be siblings. `reading`
takes the calls from the model's graph, `running` from one run. `aliasing` says which values
of a graph may share memory, and which calls write to it.
"""

from . import aliasing, calls, reading, running

__all__ = ["aliasing", "calls", "reading", "running"]
