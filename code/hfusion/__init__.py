"""Horizontal fusion of sibling layers: stack the weights, multiply once, split.

>>> import torch
>>> from torch import nn
>>> import hfusion
>>> siblings = [nn.Conv2d(192, 64, 1), nn.Conv2d(192, 96, 1), nn.Conv2d(192, 16, 1)]
>>> stacked = hfusion.stack(siblings)                 # one launch, not three
>>> a, b, c = stacked(torch.zeros(1, 192, 28, 28))    # each branch's output

Or a whole network, which stays itself: same class, same weights at the same paths.

>>> network = hfusion.models.GoogLeNet()
>>> fused = hfusion.fuse(network)
>>> type(fused).__name__, hfusion.plan(network).calls["Conv2d"]   # calls before, after
('GoogLeNet', (57, 39))

The modules, in the order in which the book needs them: `algebra` (NumPy), `timing`
(agree, count, time), `stacking` (the stacked layer), `models` (Inception, GoogLeNet);
then whole networks: `calls` (who reads what: read from a graph by `reading`, with
`aliasing`, or seen in a run by `running`), `siblings` (judged), `planning`
(plan, fuse, unfuse), `_group` (what a fused model does at a call, with `placing`,
`_checks`, `_followers` and `_operators`), `folding`; for
exporters and compilers: `lowering` (a plan as one graph); then time: `judging` (faster, or
left alone, with `_variants`), `recording`, `apart`, `records`, `experiments`, `cost`,
`estimates`; at last `kernels`, an Inception module in two launches, `embedding`, unlike
windows as one, and `sharding`, a stacked matrix cut across processes. `figures` and `show`
draw. What needs matplotlib or Triton is imported by name, so that
`import hfusion` needs neither.
"""

from . import algebra, models, stacking, timing
from .errors import FusionError
from .folding.fold import fold_batchnorm
from .fusing.judging import faster
from .fusing.lowering import lower
from .fusing.planning import FusionPlan, fuse, plan, unfuse
from .fusing.siblings import Group
from .stacking import stack

__version__ = "0.1.0"
__all__ = ["FusionError", "FusionPlan", "Group", "algebra", "faster", "fold_batchnorm"]
__all__ += ["fuse", "lower", "models", "plan", "stack", "stacking", "timing"]
__all__ += ["unfuse"]
