"""One line that says what is measured now, and how long it still takes. No torch.

A terminal and a notebook show the same line; the extra `record` has tqdm, which draws it.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

EVERY_S = 0.2  # the line is drawn anew at most so often
FORMAT = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} cases{postfix}"
PLAIN = {"what", "dtype", "layout"}  # their values say by themselves what they are


class Bar:
    """The line of one experiment; a context, at whose end it is closed.

    name: of the experiment. limit_s: the seconds that it may take. file: where it is
    drawn, on stderr by default.
    """

    def __init__(
        self, name: str, limit_s: float = math.inf, file: TextIO | None = None
    ) -> None:
        self.name, self.limit_s, self.file = name, limit_s, file or sys.stderr
        self.line: Any = None  # tqdm's, from the first case on
        self.case, self.words, self.drawn_s = "", "", -math.inf
        self.began = self.case_began = time.monotonic()
        self.done = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.line is not None:
            took = clock(time.monotonic() - self.began)
            self.line.set_postfix_str(f"in {took}")
            self.line.close()

    def cases(self, planned: list[dict]) -> Iterator[dict]:
        """Pass on the cases of an experiment, {parameter: value} each, one by one."""
        from tqdm import tqdm

        name = self.name.replace("_", " ")
        self.line = tqdm(total=len(planned), desc=name, bar_format=FORMAT, file=self.file)
        for parameters in planned:
            self.case, self.case_began = said(parameters), time.monotonic()
            self.say("")
            yield parameters
            self.done += 1
            self.line.update()

    def say(self, words: str | None = None, every_s: float = EVERY_S) -> None:
        """Draw the line, with what is done now; without words, with the same as before."""
        self.words = self.words if words is None else words
        now = time.monotonic()
        if self.line is not None and now - self.drawn_s >= every_s:
            self.drawn_s = now
            left = clock(self.left_s())
            parts = f"{left} left", self.case, self.words
            self.line.set_postfix_str(": ".join(filter(None, parts)))

    def left_s(self) -> float:
        """The seconds that are left: what the other cases take if they take as long as
        those before, and no more than the limit allows."""
        now = time.monotonic()
        allowed = max(0, self.limit_s - (now - self.began))
        if not self.done:
            return allowed
        each_s = (self.case_began - self.began) / self.done
        needed = each_s * (self.line.total - self.done) - (now - self.case_began)
        return min(allowed, max(0, needed))


def said(parameters: Mapping[str, object]) -> str:
    """A case in words.

    >>> said({"module": "3a", "batch": 1, "dtype": "float32", "layout": "NCHW"})
    'module 3a, batch 1, float32, NCHW'
    """
    return ", ".join(
        str(value) if name in PLAIN else f"{name} {value}"
        for name, value in parameters.items()
    )


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(59.6), clock(3 * 60 + 5), clock(math.inf)
    ('1:00', '3:05', '?')
    """
    if seconds == math.inf:
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"
