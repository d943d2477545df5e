"""The errors of the library."""


class FusionError(ValueError):
    """An argument, model or state that does not fit: what was expected and what came."""


class Disagreement(AssertionError):
    """Two results that had to be equal are not."""


class WorkerError(RuntimeError):
    """A process of `sharding` failed, died, or took too long."""
