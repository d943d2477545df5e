"""A block of a page that reads records, and what stands there if they lack something."""

import contextlib

import matplotlib.pyplot as plt

from ..records import NotRecorded
from .glued import glue

LACKING: list[str] = []  # why blocks of this page were left before their end


class Missing:
    """Glued in place of a number; the page then reads "(not recorded)"."""

    def __repr__(self):
        return "nan"  # a text has "(not recorded)" for it

    def _repr_html_(self):
        return "<p>(not recorded)</p>"


@contextlib.contextmanager
def recorded(*names, figure=False):
    """A block that reads records; if they lack what it reads, one sentence says so.

    names: what the block glues at its end; glued as "(not recorded)" if it does not get
    there. figure: the block makes the cell's figure; the sentence becomes the figure.
    Only records.NotRecorded is caught; and NameError once a block before was left, since
    that block may have had the name to set.

    >>> from sideways import records
    >>> with recorded():
    ...     records.nothing("stage").select(batch=1)
    not recorded: there is no record of stage
    """
    try:
        yield
    except (NotRecorded, NameError) as error:
        if isinstance(error, NameError) and not LACKING:
            raise
        LACKING.append(LACKING[0] if isinstance(error, NameError) else str(error))
    else:
        return
    sentence = f"not recorded: {LACKING[-1]}"
    _drawn(sentence) if figure else print(sentence)
    for name in names:
        glue(name, Missing(), display=False)


def _drawn(sentence):
    """A sentence as a figure, so that its number and what refers to it remain."""
    _, axes = plt.subplots(figsize=(6.4, 0.7))  # without axes IPython shows no figure
    axes.axis("off")
    axes.text(0, 0.5, sentence, va="center", fontsize=9, wrap=True)
