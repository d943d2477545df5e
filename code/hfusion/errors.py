"""The error of the library."""


class FusionError(ValueError):
    """A model, an argument or a state that does not fit, with the reason in words."""


class Disagreement(AssertionError):
    """Two results that had to be equal are not."""
