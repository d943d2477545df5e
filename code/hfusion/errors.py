"""The errors of the library.

A message is `argument: expected …, got …`, and then what to do, if there is something to
do. Why siblings stay apart is no error but a reason, in words: `Group.reason`.
"""


class FusionError(ValueError):
    """An argument, model or state that does not fit: what was expected and what came."""


class Disagreement(AssertionError):
    """Two results that had to be equal are not."""


class WorkerError(RuntimeError):
    """A process of `sharding` failed, died, or took too long."""
