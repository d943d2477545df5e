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


def check_int(name: str, value: object, least: int) -> None:
    """Refuse an argument that is no int of at least `least`.

    >>> check_int("rounds", 0, least=1)
    Traceback (most recent call last):
    hfusion.errors.FusionError: rounds: expected an int of at least 1, got 0
    """
    if type(value) is not int or value < least:
        raise FusionError(f"{name}: expected an int of at least {least}, got {value!r}")
