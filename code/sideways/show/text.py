"""Source, documentation, tables of records and photographs, as a page shows them."""

import functools
import inspect
import io
import re
import textwrap
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import Image, Markdown

NO_GPU = "needs a CUDA device"  # as the records have it, from `experiments.variants`


def source(function, begin="", end=None):
    """The code of a function, less its docstring, as a code block; or a part of it, as
    `excerpt` cuts it.

    >>> source(not_measured, "kinds =", "kinds =").data
    Traceback (most recent call last):
    ValueError: end: expected a part of a later line, got 'kinds ='
    """
    code = textwrap.dedent(inspect.getsource(function))
    if function.__doc__:
        before, _, after = code.partition('"""')
        code = before.rstrip() + "\n" + after.partition('"""')[2].lstrip("\n")
    return Markdown(f"```python\n{excerpt(code, begin, end)}\n```")


def excerpt(code, begin="", end=None):
    """The lines of a code from the one that has `begin` to the one that has `end`, which is
    left out; moved to the left margin. Raises ValueError where there is no such line.

    >>> excerpt("if a:\\n    b = 1\\n    c = 2\\n    d = 3", "b =", "d =")
    'b = 1\\nc = 2'
    """
    lines = code.splitlines()
    first = _line(lines, begin, "begin: expected a part of a line")
    rest, last = lines[first:], None
    if end is not None:
        last = 1 + _line(rest[1:], end, "end: expected a part of a later line")
    return textwrap.dedent("\n".join(rest[:last]))


def _line(lines, text, expected):
    for number, line in enumerate(lines):
        if text in line:
            return number
    raise ValueError(f"{expected}, got {text!r}")


def beside(**blocks):
    """Code blocks side by side, each below its name; on a narrow page, and in a notebook,
    one below the other.

    blocks: what `source` and `kernel` return.

    >>> both = beside(One=source(excerpt, "return"), Two=source(_line, "raise"))
    >>> both.data.count("<div>"), both.data.count("```python")
    (2, 2)
    """
    columns = "\n\n</div><div>\n\n".join(
        f"**{name}**\n\n{block.data}" for name, block in blocks.items()
    )
    return Markdown(f'<div class="fs-beside full-width"><div>\n\n{columns}\n\n</div></div>')


def reference(module):
    """What a module offers, from its docstrings: public functions and classes, in order.

    A package offers what is in its `__all__`, file by file.
    """
    members = [
        thing
        for thing in _offered(module)
        if inspect.isroutine(thing) or inspect.isclass(thing)
    ]
    entries = [_documented(inspect.getdoc(module))]
    for thing in sorted(members, key=_place):
        entries += _entry(thing.__name__, thing)
        for name, method in vars(thing).items() if inspect.isclass(thing) else ():
            shown = inspect.isroutine(method) or isinstance(method, _PROPERTIES)
            if shown and not name.startswith("_") and method.__doc__:
                entries += _entry(f"{thing.__name__}.{name}", getattr(thing, name))
    return Markdown("\n\n".join(entries))


def _offered(module):
    """The values of its `__all__`, or else of the public names that it defines itself."""
    if hasattr(module, "__all__"):
        return [getattr(module, name) for name in module.__all__]
    members = vars(module).items()
    own = {
        name: v for name, v in members if getattr(v, "__module__", "") == module.__name__
    }
    return [thing for name, thing in own.items() if not name.startswith("_")]


def _place(thing):
    """Where it is written: its file and line, of what a decorator wraps too."""
    written = inspect.unwrap(thing)
    return inspect.getsourcefile(written), inspect.getsourcelines(written)[1]


_PROPERTIES = (property, functools.cached_property)  # which are called by no signature


def _entry(name, thing):
    """A signature and a docstring, as Markdown."""
    bare = isinstance(thing, _PROPERTIES) or (
        inspect.isclass(thing) and issubclass(thing, Exception)
    )
    signature = "" if bare else str(_untyped(inspect.signature(thing)))
    plain = re.sub(r" at 0x[0-9a-f]+|<class '|'>", "", signature)
    lines = textwrap.wrap(name + plain, 76, subsequent_indent="    ")
    return ["```python\n" + "\n".join(lines) + "\n```", _documented(inspect.getdoc(thing))]


def _untyped(signature):
    """Without annotations: evaluated, they are long, and the docstring has the types."""
    plain = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return signature.replace(parameters=plain, return_annotation=signature.empty)


_TITLE = re.compile(r"^([\w ]+)\n-{4,}\n", re.M)  # of a section of numpydoc
_LISTS = ("Parameters", "Attributes", "Returns", "Yields", "Raises")
_WHOLE: dict[str, Any] = {"break_on_hyphens": False}


def _documented(text):
    """A docstring as Markdown: examples and diagrams as they are, the rest as text."""
    blocks, section = [], ""
    text = _TITLE.sub(r"**\1**\n\n", re.sub(r"  # doctest: .*", "", text))
    for paragraph in text.split("\n\n"):
        if title := re.fullmatch(r"\*\*([\w ]+)\*\*", paragraph):
            section = title[1]
            blocks.append(paragraph)
        elif paragraph.startswith(">>>"):
            blocks.append(f"```pycon\n{paragraph}\n```")
        elif all(line.startswith("    ") for line in paragraph.splitlines()):
            # Blank lines within a diagram belong to it.
            joins = blocks and blocks[-1].startswith("```text")
            before = blocks.pop().removesuffix("\n```") + "\n\n" if joins else "```text\n"
            blocks.append(f"{before}{paragraph}\n```")
        elif re.match(r"`\w+`  ", paragraph):  # a table of names
            rows = re.split(r"\n(?! )", paragraph)
            blocks.append("\n".join(_item(*row[1:].split("`", 1)) for row in rows))
        elif section in _LISTS:
            entries = re.split(r"\n(?! )", paragraph)
            blocks.append("\n".join(_item(*entry.split("\n", 1)) for entry in entries))
        else:
            blocks.append("\n".join(textwrap.wrap(_escaped(paragraph), 76, **_WHOLE)))
    return "\n\n".join(blocks)


def _escaped(text):
    return re.sub(r"([*|<])", r"\\\1", text)


def _item(head, text=""):
    """A parameter, a result or an error of numpydoc, as an item of a list."""
    lines = textwrap.wrap(_escaped(" ".join(text.split())), 74, **_WHOLE)
    return "\n  ".join([f"- `{head}`" + (":" if lines else ""), *lines])


def photographs(figure):
    """A figure of photographs as a JPEG, a tenth of the PNG's size; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 88})
    plt.close(figure)
    return Image(buffer.getvalue(), format="jpeg")


def benchmark(case, base, missing=None, limit_us=None):
    """A recorded case as a table of text: launches, median time, gain over `base`.

    Launches are blank where they could not be counted. missing: {variant: why it did not
    run}, for the last lines, as `not_measured` says it. limit_us: adds a column, times as
    multiples of it.
    """
    limits = f" {'limits':>6}" if limit_us else ""
    lines = [f"{'':38} count        µs{limits}  gain (quartiles)"]
    for name in case.samples:
        low, middle, high = case.gain(name, base)
        count, us = case.launches.get(name, ""), case.median(name)
        gain = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        limits = f" {us / limit_us:6.2f}" if limit_us else ""
        digits = 2 if limit_us else 0  # a limit is a few µs
        lines.append(f"{name:38} {count:>5} {us:9,.{digits}f}{limits}  {gain}")
    return "\n".join([*lines, *not_measured(missing or {})])


def not_measured(reasons):
    """Lines for {variant: why it did not run}; what only lacks a GPU is one line, by kinds.

    >>> not_measured({"graph, folded": NO_GPU, "slow": "took 9 s", "graph": NO_GPU})
    ['slow                                   took 9 s', 'on a GPU also: graph']
    """
    lines = [f"{variant:38} {why}" for variant, why in reasons.items() if why != NO_GPU]
    kinds = dict.fromkeys(a.split(", ")[0] for a, why in reasons.items() if why == NO_GPU)
    return lines + ([f"on a GPU also: {', '.join(kinds)}"] if kinds else [])
