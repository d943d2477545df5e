"""What stacking should bring, by `cost`, held against a record of the experiment `stage`.

How kernels are counted depends on the kind of machine; how their times combine, on its
ceilings. The appendix "What the model misses" tries the alternatives on a CPU.
"""

import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any

import torch

from hfusion import models
from hfusion.timing import cost

from .experiments.ceilings import limits
from .records import Case, Record

GRAPH = "graph, "  # how the names of variants begin that ran as a CUDA graph


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the kernels of a 1×1 convolution are counted on a kind of machine.

    reordered: {layout: which of cost.PARTS the library copies in each convolution}.
    bias_apart: each bias is a kernel of its own. overlaps: as in cost.Ceilings; None to
    leave that to the machine's ceilings.
    """

    reordered: dict
    bias_apart: bool
    overlaps: bool | None = None


RULES = {
    "cpu": Rule({"NCHW": cost.PARTS, "NHWC": ("weight",)}, bias_apart=False),  # oneDNN
    "cuda": Rule({}, bias_apart=True),  # eager PyTorch
    "mps": Rule({}, bias_apart=False),  # these two untried: no such GPU has a record
    "xpu": Rule({}, bias_apart=False),
    "webgpu": Rule({}, bias_apart=False),  # the labs' kernels
}


@dataclasses.dataclass(frozen=True)
class Siblings:
    """1×1 convolutions that read the same images.

    c_in: channels of the input. sizes: output channels of each sibling. height, width: of
    an image, in pixels. layout: "NCHW" or "NHWC". copied: places, from 0, of the siblings
    whose consumer copies its part unless it is contiguous.
    """

    c_in: int
    sizes: tuple
    height: int
    width: int
    batch: int = 1
    dtype: str = "float32"
    layout: str = "NCHW"
    copied: tuple = ()

    @property
    def contiguous(self) -> bool:
        """Whether each part lies in one piece, as those of one image in NCHW do."""
        return self.batch == 1 and self.layout == "NCHW"

    @property
    def copies(self) -> tuple[int, ...]:
        """The sizes of the parts that are copied: none where all are contiguous.

        >>> Siblings(192, (64, 96, 16), 28, 28, batch=2, copied=(1, 2)).copies
        (96, 16)
        >>> Siblings(192, (64, 96, 16), 28, 28, batch=1, copied=(1, 2)).copies
        ()
        """
        places = () if self.contiguous else self.copied
        return tuple(self.sizes[place] for place in places)

    def kernels(self, rule: Rule) -> dict[str, list[cost.Kernel]]:
        """What they launch, {way: kernels}, counted by a Rule: `cost.stage`.

        >>> ways = Siblings(192, (64, 96, 16), 28, 28).kernels(RULES["cuda"])
        >>> {way: len(kernels) for way, kernels in ways.items()}
        {'separate': 6, 'stacked': 2, 'copied': 2}
        """
        return cost.stage(
            self.sizes,
            self.c_in,
            self.batch * self.height * self.width,
            getattr(torch, self.dtype).itemsize,
            reordered=rule.reordered.get(self.layout, ()),
            copied=self.copies,
            bias_apart=rule.bias_apart,
        )


def siblings(module: str, **others: Any) -> Siblings:
    """The siblings of a case of the experiment `stage`, by its parameters.

    module: a row of models.TABLE. others: batch, dtype and layout, as for Siblings.

    >>> siblings("3a", batch=8).copies
    (96, 16)
    """
    c_in, size, w1, r3, _, r5, *_ = models.TABLE[module]
    return Siblings(c_in, (w1, r3, r5), size, size, copied=(1, 2), **others)


def base(way: str) -> str:
    """The variant of `stage` that a way is compared with.

    >>> base("stacked"), base("graph, copied")
    ('separate', 'graph, separate')
    """
    return GRAPH * way.startswith(GRAPH) + "separate"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One estimated gain over separate, and the recorded one.

    case: of the record. way: as its variant is called, "stacked" or "graph, copied". said:
    the estimated gain. was: the quartiles of the recorded one.
    """

    case: Case | None
    way: str
    said: float
    was: tuple

    @property
    def graph(self) -> bool:
        """Whether it ran as a CUDA graph, and is compared with separate as one."""
        return self.way.startswith(GRAPH)


def made(stage: Record, ceilings: Record, rule: Rule | None = None) -> list[Estimate]:
    """An Estimate of each measured way of each case, in the record's order.

    stage, ceilings: records of these experiments on one machine. rule: a Rule; without
    one, that of RULES for the machine's kind. Raises records.NotRecorded where the
    ceilings of a dtype were not recorded.

    >>> from sideways import records
    >>> made(records.nothing("stage"), records.nothing("ceilings"))
    []
    """
    rule = rule or RULES[stage.machine.kind]
    found = []
    for case in stage.cases:
        if not case.samples:
            continue
        kernels = siblings(**case.parameters).kernels(rule)
        at = limits(ceilings, case.parameters["dtype"])
        if rule.overlaps is not None:
            at = dataclasses.replace(at, overlaps=rule.overlaps)
        for way in case.samples:
            graph, plain = way.startswith(GRAPH), way.removeprefix(GRAPH)
            if way != base(way) and base(way) in case.samples:
                said = cost.gain(kernels["separate"], kernels[plain], at, graph)
                found.append(Estimate(case, way, said, case.gain(way, base(way))))
    return found


@dataclasses.dataclass(frozen=True)
class Error:
    """How far off estimates were. off: of the ratio, in the median, as a share. right: in
    how many of so many cases the sign was right; an estimate of exactly 1 never is. gained:
    in how many the record shows a gain, so a guess that always says so is right in these.
    """

    off: float
    right: int
    cases: int
    gained: int


def error(estimates: Iterable[Estimate]) -> Error | None:
    """The Error of estimates; None if there are none.

    >>> near = Estimate(None, "stacked", said=1.5, was=(1.1, 1.2, 1.3))
    >>> no_call = Estimate(None, "copied", said=1.0, was=(1.9, 2.0, 2.1))
    >>> error([near, no_call])
    Error(off=0.375, right=1, cases=2, gained=2)
    """
    estimates = list(estimates)
    if not estimates:
        return None
    off = statistics.median(abs(e.said / e.was[1] - 1) for e in estimates)
    right = sum(
        abs(e.said - 1) > 1e-6 and (e.said > 1) == (e.was[1] > 1) for e in estimates
    )
    gained = sum(e.was[1] > 1 for e in estimates)
    return Error(off, right, len(estimates), gained)
