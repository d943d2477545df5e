"""What a page shows that is no plot: source, tables, photographs, things to play with.

`stacking`, `splitting` and `walk` need no kernel and no network. They are text and SVG, so
they are the same everywhere, and nbval can compare them. In a notebook, on paper, or
without JavaScript they stand there whole; on the book's pages `_static/steps.js` gives
them their controls. A `case` and a `lab` bring their scripts along: the one calculates
with sizes that the reader sets, the other runs on the reader's own GPU.
"""

from .case import Case, case
from .glued import glue
from .judged import predicted
from .lab import Lab, kernel, lab
from .missing import recorded
from .player import Player, splitting, stacking
from .text import beside, not_raced, photographs, race, reference, source
from .walk import Walk, walk

__all__ = [
    "Case",
    "Lab",
    "Player",
    "Walk",
    "beside",
    "case",
    "glue",
    "kernel",
    "lab",
    "not_raced",
    "photographs",
    "predicted",
    "race",
    "recorded",
    "reference",
    "source",
    "splitting",
    "stacking",
    "walk",
]
