"""Batch norms folded into the convolutions before them, in a copy of a model."""

from .fold import fold_batchnorm, unfolded

__all__ = ["fold_batchnorm", "unfolded"]
