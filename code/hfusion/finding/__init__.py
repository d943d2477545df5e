"""Which layers of a model read the same input: its calls, from its graph or from a run.

`calls`      the calls of each layer, and which layers could be siblings
`reading`    takes the calls from the model's graph
`running`    takes them from one run
`aliasing`   which values of a graph may share memory, and which calls write to it
`_tracing`   from a module to a graph; `_tracer` also records x += 1 and x[0] = 1
`_names`     what torch's functions, methods and modules do with memory
`_layout`    in a run, which readers of strided parts need them contiguous
`_aside`     a copy of a model to try, and random numbers left as they were
"""

from . import aliasing, calls, reading, running

__all__ = ["aliasing", "calls", "reading", "running"]
