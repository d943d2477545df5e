"""What a page shows that is no plot: source, tables, photographs, things to play with.

`stacking`, `splitting` and `walk` need no kernel and no network. They are text and SVG, so
they are the same everywhere, and nbval can compare them. What moves brings its script and
style along in the cell's output: it moves on the book's pages and in a notebook that is
trusted, and is a still picture on GitHub and on paper. A `case` calculates with sizes that
the reader sets, a `lab` runs on the reader's own GPU.
"""

from .accepted import accepted
from .case import Case, case
from .glued import glue
from .judged import predicted
from .lab import Lab, kernel, lab
from .missing import recorded
from .others import others
from .player import Player, splitting, stacking
from .text import benchmark, beside, not_measured, photographs, reference, source
from .walk import Walk, walk

__all__ = [
    "Case",
    "Lab",
    "Player",
    "Walk",
    "accepted",
    "benchmark",
    "beside",
    "case",
    "glue",
    "kernel",
    "lab",
    "not_measured",
    "others",
    "photographs",
    "predicted",
    "recorded",
    "reference",
    "source",
    "splitting",
    "stacking",
    "walk",
]
