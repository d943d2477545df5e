"""Recorded cases to choose from; `_static/explorer.js` brings the choices."""

import dataclasses
import json
from html import escape


@dataclasses.dataclass(frozen=True)
class Explorer:
    """One case at a time, of many: a table with a bar for each row.

    label: what it is. columns: the table's heads. cases: (choices, summary, rows), where
    choices is {"batch": 8, …} with the same keys in every case, summary is a sentence,
    and a row is (cells, bar): texts as many as columns, and (lower quartile, median,
    upper quartile, predicted), or () if there is nothing to draw.

    >>> case = ({"batch": 1}, "Stacked is faster.", [(("stacked", "5 µs"), (4, 5, 6, 3))])
    >>> Explorer("Ways", ("way", "time"), (case,))
    Ways: 1 case, of which the first is batch 1. Stacked is faster.
    """

    label: str
    columns: tuple
    cases: tuple

    def __post_init__(self):
        keys = {tuple(choices) for choices, *_ in self.cases}
        if len(keys) != 1:
            raise ValueError(f"cases have the choices {sorted(keys)}; one set for all fits")
        for choices, _, rows in self.cases:
            if any(len(cells) != len(self.columns) for cells, _ in rows):
                raise ValueError(f"case {choices}: a row needs {len(self.columns)} cells")

    def _repr_html_(self):
        content = {"columns": self.columns, "cases": self.cases}
        # "</" would end the script that holds it.
        data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        data = data.replace("</", "<\\/")
        return (
            f'<fs-explorer aria-label="{escape(self.label)}">\n'
            f'<script type="application/json">{data}</script>\n'
            f"<p>{escape(self._first())}</p>\n{self._table()}\n</fs-explorer>"
        )

    def _table(self):
        """The first case, for where no script runs."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
            for cells, _ in self.cases[0][2]
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def _first(self):
        choices, summary, _ = self.cases[0]
        chosen = ", ".join(f"{name} {value}" for name, value in choices.items())
        number = f"{len(self.cases)} case{'s' if len(self.cases) > 1 else ''}"
        return f"{self.label}: {number}, of which the first is {chosen}. {summary}"

    def __repr__(self):
        return self._first()
