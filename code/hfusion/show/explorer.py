"""Recorded cases to choose from; `_static/explorer.js` brings the choices."""

import dataclasses
import json
from html import escape


@dataclasses.dataclass(frozen=True)
class Explorer:
    """One case at a time, of many: a table with a bar for each row.

    label: what it is. choices: names of what one chooses. columns: the table's heads.
    cases: (values, summary, rows): a value for each choice, a sentence, and rows of (cells,
    bar): a text for each column, and (lower quartile, median, upper quartile, predicted).

    >>> case = ((8,), "Stacked is faster.", [(("stacked", "5 µs"), (4, 5, 6, 3))])
    >>> Explorer("Ways", ("batch",), ("way", "time"), (case,))
    Ways: 1 case, of which the first is batch 8. Stacked is faster.
    """

    label: str
    choices: tuple
    columns: tuple
    cases: tuple

    def __post_init__(self):
        if not self.cases:
            raise ValueError("cases was empty; at least one fits")
        for values, _, rows in self.cases:
            _check(values, "values", len(self.choices))
            for cells, bar in rows:
                _check(cells, "cells", len(self.columns))
                _check(bar, "a bar", 4)

    def _repr_html_(self):
        content = dataclasses.asdict(self)
        data = json.dumps(
            content, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        # A "<" could end the script that holds it.
        data = data.replace("<", "\\u003c")
        return (
            f'<fs-explorer role="group" aria-label="{escape(self.label)}">\n'
            f'<script type="application/json">{data}</script>\n'
            f"<p>{escape(self._first())}</p>\n{self._table()}\n</fs-explorer>"
        )

    def _table(self):
        """The first case, for where no script runs."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.columns)
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + "</tr>"
            for (name, *cells), _ in self.cases[0][2]
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def _first(self):
        values, summary, _ = self.cases[0]
        pairs = zip(self.choices, values, strict=True)
        chosen = ", ".join(f"{name} {value}" for name, value in pairs)
        number = f"{len(self.cases)} case{'s' if len(self.cases) > 1 else ''}"
        return f"{self.label}: {number}, of which the first is {chosen}. {summary}"

    def __repr__(self):
        return self._first()


def _check(given, name, number):
    if len(given) != number:
        raise ValueError(f"cases: {name} was {given!r}; {number} entries fit")
