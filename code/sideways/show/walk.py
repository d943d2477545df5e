"""A timeline that can be walked, block by block; `steps.js` brings the controls."""

import dataclasses
import math

from ..figures import FAINT
from .steps import LONG, element
from .svg import drawing, text

WIDTH, LEFT, RIGHT = 520, 58, 496  # the time goes from LEFT to RIGHT
LANE = 34  # the height of one
FIRST = 6  # steps of a long walk that text has


@dataclasses.dataclass(frozen=True)
class Walk:
    """A drawing of blocks, each marked data-step, and a sentence for each, in order."""

    label: str
    svg: str
    steps: tuple

    def _repr_html_(self):
        return element("fs-walk", self.label, [self.svg], self.steps)

    def __repr__(self):
        """Of a long one the first steps, and how many there are more."""
        lines = [f"{n}. {step}" for n, step in enumerate(self.steps, start=1)]
        if len(lines) > LONG:
            lines[FIRST:] = [f"… and {len(lines) - FIRST} more steps"]
        return "\n".join([self.label, *lines])


def walk(label, panels, colours):
    """Who works when, as a `Walk`: a panel a program, a lane a worker, one axis for all.

    panels: {title: [(lane, name, begin, end), …]} in µs from 0, as in a record's events.
    colours: {name: its colours}, of which a block is drawn in equal parts; a block of
    another name is drawn faint. One walks a panel in the order in which its blocks begin.

    >>> events = [("host", "a", 0, 4), ("device", "a", 4, 5)]
    >>> walk("One launch", {"alone": events}, {"a": ("#0072B2",)})
    One launch
    1. alone: the host is at a from 0 µs to 4 µs, for 4 µs.
    2. alone: the device is at a from 4 µs to 5 µs, for 1 µs, after a gap of 4 µs.
    """
    until_us = max(event[3] for events in panels.values() for event in events)
    scale = (RIGHT - LEFT) / until_us
    parts, y = _legend(colours)
    steps: list = []
    for title, events in panels.items():
        events = sorted(events, key=lambda event: (event[2], event[3]))
        lanes = list(dict.fromkeys(lane for lane, *_ in events))
        parts.append(text(0, y + 16, title, text_anchor="start", font_weight="bold"))
        for row, lane in enumerate(lanes):
            parts.append(text(0, y + 44 + LANE * row, lane, text_anchor="start"))
        for step, (lane, name, begin, end) in enumerate(events, start=len(steps) + 1):
            place = LEFT + begin * scale, y + 26 + LANE * lanes.index(lane)
            parts += _block(
                step, *place, max((end - begin) * scale, 1), colours.get(name, (FAINT,))
            )
        steps += _sentences(title, events)
        y += 40 + LANE * len(lanes)
    parts += _axis(until_us, scale, y)
    return Walk(label, drawing(WIDTH, y + 30, parts, label), tuple(steps))


def _legend(colours):
    """A swatch and a name for each, in as many lines as it takes; and where they end."""
    parts, x, y = [], 0, 0
    for name, own in colours.items():
        width = 40 + 8 * len(name)
        if x + width > WIDTH:
            x, y = 0, y + 22
        height = 12 / len(own)
        for place, colour in enumerate(own):
            top = f"{y + 6 + place * height:g}"
            size = f'width="16" height="{height:g}"'
            parts.append(f'<rect x="{x}" y="{top}" {size} fill="{colour}"/>')
        parts.append(
            f'<path d="M{x} {y + 6}h16v12h-16z" fill="none" stroke="currentColor"/>'
        )
        parts.append(text(x + 22, y + 17, name, text_anchor="start"))
        x += width
    return parts, y + 30


def _block(step, x, y, width, colours):
    """A block of the timeline, one part of its height for each colour."""
    height = (LANE - 8) / len(colours)
    return [
        f'<rect x="{x:.1f}" y="{y + place * height:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" fill="{colour}" data-step="{step}"/>'
        for place, colour in enumerate(colours)
    ]


def _sentences(title, events):
    """What a step says: which block it is, when, how long, and after what gap."""
    free_since: dict[str, float] = {}
    sentences = []
    for lane, name, begin, end in events:
        gap = begin - free_since.get(lane, 0)
        after = f", after a gap of {_us(gap)}" if gap > 0 else ""
        shown = name if len(name) <= 40 else name[:39] + "…"  # a kernel's can be very long
        sentences.append(
            f"{title}: the {lane} is at {shown} from {_us(begin)} "
            f"to {_us(end)}, for {_us(end - begin)}{after}."
        )
        free_since[lane] = max(end, free_since.get(lane, 0))
    return sentences


def _axis(until_us, scale, y):
    """A line with marks at round times, three to seven of them, below the panels."""
    power = 10 ** math.floor(math.log10(until_us))
    between = next(f * power for f in (0.2, 0.5, 1, 2) if until_us / (f * power) < 7)
    parts = [f'<path d="M{LEFT} {y}H{RIGHT}" stroke="currentColor"/>']
    for mark in range(math.floor(until_us / between + 1e-9) + 1):
        x = f"{LEFT + mark * between * scale:.1f}"
        parts.append(f'<path d="M{x} {y}v5" stroke="currentColor"/>')
        parts.append(text(x, y + 20, f"{mark * between:,g}"))
    return [*parts, text(0, y + 20, "µs", text_anchor="start")]


def _us(us):
    """A time in µs, with three digits at least where it has them."""
    return f"{us:,.0f} µs" if us >= 100 else f"{us:.3g} µs"
