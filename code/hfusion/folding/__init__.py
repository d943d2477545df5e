"""Batch norms folded into the convolutions before them, in a copy of a model.

`fold`      the two functions, and the module that takes the place of a norm
`_rules`    why a norm stays
`_norms`    what counts as a batch norm, and its weights
`_guards`   a folded model stays in eval mode
"""

from .fold import fold_batchnorm, unfolded

__all__ = ["fold_batchnorm", "unfolded"]
