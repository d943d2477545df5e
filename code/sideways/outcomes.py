"""What stacking brought on recorded machines: records in, one table out."""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Collection, Sequence

from .records import NotRecorded, Record

# What a variant's name ends in, after its mode: (the way, what it is compared with).
ENDINGS = {
    "folded, stacked, hoisted": ("stacked, hoisted", "folded"),
    "folded, stacked": ("stacked", "folded"),
    "stacked": ("stacked", "separate"),
    "copied": ("copied", "separate"),
}
FOLD_THEMSELVES = ("ONNX Runtime", "OpenVINO")  # compared with the network as written
SIBLINGS = "three siblings"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What stacking brought in cases that differ in nothing but the module.

    gains: {module or network: (lower quartile, median, upper quartile)}, above 1 faster.

    >>> gains = {"3a": (0.7, 0.8, 0.9), "3b": (1.0, 1.1, 1.2)}
    >>> one = Outcome("module", "eager", "stacked", "NCHW", "float32", 1, gains)
    >>> round(one.middle, 2), one.faster, one.slower
    (0.95, 0, 1)
    """

    what: str  # SIBLINGS, "module", or a network's name
    mode: str  # "eager", "graph", "compile", …
    way: str  # "stacked", "copied" or "stacked, hoisted"
    layout: str
    dtype: str
    batch: int
    gains: dict

    @property
    def middle(self) -> float:
        """The median of the medians."""
        return statistics.median(median for _, median, _ in self.gains.values())

    @property
    def faster(self) -> int:
        """How many are clearly faster: in three rounds of four, at least."""
        return clear(self.gains.values())[0]

    @property
    def slower(self) -> int:
        """How many are clearly slower: in three rounds of four, at least."""
        return clear(self.gains.values())[1]


def clear(gains: Collection[tuple[float, float, float]]) -> tuple[int, int]:
    """How many quartiles of gains are clearly above 1, and how many clearly below.

    >>> clear([(0.7, 0.8, 0.9), (1.0, 1.1, 1.2), (1.1, 1.2, 1.3)])
    (1, 1)
    """
    return sum(low > 1 for low, _, _ in gains), sum(high < 1 for _, _, high in gains)


def brought(*records: Record) -> list[Outcome]:
    """The Outcomes of records of `stage`, `module_ladder` and `network`, in their order.

    Stacked siblings are compared with separate ones, and a module or a network with
    itself, folded, in the same mode. What was not measured is left out. Raises NotRecorded
    if nothing was: a table of nothing would look like a result.
    """
    found: dict[tuple[str, str, str, str, str, int], dict] = defaultdict(dict)
    for record in records:
        for case in record.cases:
            p = case.parameters
            what = p.get("network", "module")
            name = p.get("module", what)
            if record.experiment == "stage":
                what = SIBLINGS
            for variant in case.samples:
                mode, way, base = _compared(variant)
                if base in case.samples:
                    key = (what, mode, way, p["layout"], p["dtype"], p["batch"])
                    found[key][name] = case.gain(variant, base)
    if not found:
        names = ", ".join(record.experiment for record in records)
        raise NotRecorded(f"no case of {names} was measured in two ways")
    return [Outcome(*key, gains) for key, gains in found.items()]


def _compared(variant):
    """(mode, way, the variant that it is compared with), or three times None."""
    for ending, (way, base) in ENDINGS.items():
        prefix = variant.removesuffix(ending)
        if prefix != variant and (not prefix or prefix.endswith(", ")):
            mode = prefix.removesuffix(", ") or "eager"
            base = "as written" if mode in FOLD_THEMSELVES else base
            return mode, way, prefix + base
    return None, None, None


def table(outcomes: Sequence[Outcome]) -> str:
    """Outcomes as text: a line for each mode and way, a column for each batch.

    An entry is the median of all modules, and how many are clearly faster : slower, with
    a mark where any is slower. What all lines of a block share stands in its head.

    >>> gains = {"3a": (0.7, 0.8, 0.9), "3b": (1.0, 1.1, 1.2)}
    >>> one = Outcome("module", "eager", "stacked", "NHWC", "float16", 8, gains)
    >>> print(table([one]))
    batch           8
    module, NHWC, float16, stacked
      eager 0.95 0:1▾
    """
    batches = sorted({outcome.batch for outcome in outcomes})
    blocks = defaultdict(list)
    for o in outcomes:
        blocks[o.what, o.layout, o.dtype].append(o)
    lines = [("batch", [str(batch) for batch in batches])]
    for block, found in blocks.items():
        shared, rows = _rows(found)
        lines.append((", ".join([*block, *shared]), []))
        lines += [(f"  {row}", [cells.get(b, "") for b in batches]) for row, cells in rows]
    wide = max(len(row) for row, cells in lines if cells)
    return "\n".join(
        f"{row:{wide}}{''.join(f'{cell:>10}' for cell in cells)}".rstrip()
        for row, cells in lines
    )


def _rows(block):
    """(what all lines of a block share, [(line, {batch: entry})])."""
    ways = {o.way for o in block}
    modes = {o.mode for o in block}
    rows: dict[str, dict[int, str]] = defaultdict(dict)
    for o in block:
        entry = f"{o.middle:.2f} {o.faster}:{o.slower}{'▾' if o.slower else ' '}"
        names = [o.mode, o.way]
        if len(ways) == 1:
            names = [o.mode]
        elif len(modes) == 1:
            names = [o.way]
        rows[": ".join(names)][o.batch] = entry
    shared = ways if len(ways) == 1 else modes if len(modes) == 1 else ()
    return shared, rows.items()


def panels(outcomes: Sequence[Outcome]) -> dict[str, dict]:
    """Outcomes without a compiler, as `figures.outcomes` draws them.

    >>> gains = {"3a": (0.7, 0.8, 0.9)}
    >>> one = Outcome("it", "eager", "stacked", "NHWC", "half", 8, gains)
    >>> panels([one])
    {'it, eager, NHWC, half': {'batch 8': {'stacked': {'3a': (0.7, 0.8, 0.9)}}}}
    """
    found: dict[str, dict] = {}
    for o in outcomes:
        if o.mode in ("eager", "graph"):
            panel = found.setdefault(f"{o.what}, {o.mode}, {o.layout}, {o.dtype}", {})
            panel.setdefault(f"batch {o.batch}", {})[o.way] = o.gains
    return found


def short(outcomes: Sequence[Outcome]) -> str:
    """Outcomes in words, a line for each: the gain with its range, and a verdict.

    Of one network these are the quartiles; of several modules the medians, from the least
    to the most, with the median of all.

    >>> gains = {"3a": (0.7, 0.8, 0.9), "3b": (1.0, 1.1, 1.2)}
    >>> one = Outcome(SIBLINGS, "eager", "stacked", "NHWC", "float16", 8, gains)
    >>> gain = {"a net": (0.9, 1.0, 2.0)}
    >>> net = Outcome("a net", "graph", "stacked", "NHWC", "float16", 1, gain)
    >>> print(short([one, net]))
    what is stacked      images runtime gain                verdict
    three siblings, NHWC      8 eager   0.95 (0.80 to 1.10) 1 of 2 slower
    a net, NHWC               1 graph   1.00 (0.90 to 2.00) undecided
    """
    several = len({o.dtype for o in outcomes}) > 1
    lines = [("what is stacked", "images", "runtime", "gain", "verdict")]
    for o in outcomes:
        what = f"{o.what}, {o.dtype}, {o.layout}" if several else f"{o.what}, {o.layout}"
        low, high = _ends(o)
        gain = f"{o.middle:.2f} ({low:.2f} to {high:.2f})"
        lines.append((what, str(o.batch), o.mode, gain, _verdict(o)))
    a, b, c, d, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        f"{what:{a}} {images:>{b}} {runtime:{c}} {gain:{d}} {verdict}"
        for what, images, runtime, gain, verdict in lines
    )


def _ends(outcome):
    """The range that `short` shows."""
    if len(outcome.gains) == 1:
        ((low, _, high),) = outcome.gains.values()
        return low, high
    middles = [middle for _, middle, _ in outcome.gains.values()]
    return min(middles), max(middles)


def _verdict(outcome):
    """The outcome in words: "8 of 9 faster, 1 slower"."""
    counts = {"faster": outcome.faster, "slower": outcome.slower}
    words = [word for word, count in counts.items() if count] or ["undecided"]
    if len(outcome.gains) > 1 and any(counts.values()):
        first, *others = words
        of = f"{counts[first]} of {len(outcome.gains)} {first}"
        return ", ".join([of, *(f"{counts[word]} {word}" for word in others)])
    return words[0]
