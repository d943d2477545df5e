"""What a page shows that is no plot: source, tables, photographs, things to play with.

`stacking`, `splitting`, `walk` and `Explorer` need no kernel and no network. They are
text, SVG or a table, so they are the same everywhere, and nbval can compare them. In a
notebook, on paper, or without JavaScript they stand there whole; on the book's pages
`_static/steps.js` and `_static/explorer.js` give them their controls. A `lab` runs on
the reader's own GPU, and brings its script along.
"""

from .case import Case, case
from .explorer import Explorer
from .judged import predicted
from .lab import Lab, kernel, lab
from .missing import recorded
from .player import Player, splitting, stacking
from .text import beside, not_raced, photographs, race, reference, source
from .walk import Walk, walk

__all__ = [
    "Case",
    "Explorer",
    "Lab",
    "Player",
    "Walk",
    "beside",
    "case",
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
