"""A module.

    with   a drawing

And a sentence.
"""

from inspect import getsource  # noqa: F401


def first(a, b=2):
    """Adds *two* numbers.

    >>> first(1)  # doctest: +ELLIPSIS
    3
    """
    return a + b


def _hidden():
    """Not shown."""


class Thing:
    """Has a size."""

    def __init__(self, size):
        self.size = size

    def half(self):
        """Half of it."""
        return self.size / 2

    def undocumented(self):
        return None


def last(n: int, x: float = 0) -> float:
    """Has sections.

    Parameters
    ----------
    n : int
        How many *times*.
    x : float
        A number.

    Returns
    -------
    float

    Examples
    --------
    >>> last(2)
    2
    """
    return n + x
