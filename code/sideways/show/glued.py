"""Values that a cell keeps for the text, and drawings that it keeps for the pages."""

PREFIX = "application/papermill.record/"  # a kind of output that no viewer shows


def glue(name: str, value: object, display: bool = True) -> None:
    """Keep what a value looks like with the cell's output, under a name.

    The text has the value, and behind it a comment that no viewer shows and that says which
    one it is: `1.06<!-- name:.2f -->`. `make run` writes it anew.

    name: what the text calls it. value: anything that IPython can display.
    display: whether the cell shows it too.
    As stored by MyST-NB, whose pages find it there.

    >>> glue("gain", 1.06)
    1.06
    """
    from IPython.core.formatters import format_display_data  # only in a notebook
    from IPython.display import display as show

    data, metadata = format_display_data(value)
    prefix = "" if display else PREFIX
    metadata["scrapbook"] = {"name": name, "mime_prefix": prefix}
    show({prefix + kind: text for kind, text in data.items()}, raw=True, metadata=metadata)
