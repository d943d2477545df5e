"""What an H200 should show, worked out before any CUDA device had been measured.

Four experiments, each case with the time of its variants, with gains, and with kernels. The
kernels are counted by `eager`, ours are as `compiled` knows them, the rest is `arithmetic`.

    programs    a program as numbers
    works       the programs of each experiment's cases
    times       how long they take, of one value for each input
    ranges      what is predicted of a case: `predicted`
    lanes       who works when: `timeline`

`python -m sideways.predictions FILE` writes them all; it replaces no file.
"""

from .lanes import timeline
from .ranges import predicted
from .works import ladder

__all__ = ["ladder", "predicted", "timeline"]
