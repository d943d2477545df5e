"""Batch norms folded into the convolutions before them, in a copy of a model.

`fold` has the two functions and the module that takes the place of a norm.
"""

from .fold import fold_batchnorm, unfolded

__all__ = ["fold_batchnorm", "unfolded"]
