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

Where to look, from one layer to a whole network:

`algebra`     a 1×1 convolution as a matrix product, stacked and split, in NumPy
`stacking`    who may be stacked, and the stacked layer
`one_screen`  the smallest fuser of a network; read it first
`finding`     which layers read the same value, read from a graph or seen in a run
`fusing`      `plan`, `fuse`, `unfuse`, `faster`, `lower`
`folding`     batch norms into convolutions, which comes before fusing
`timing`      results agree, launches counted, variants timed; `cost` predicts
`kernels`     an Inception module in two launches (Triton); `webgpu` for any GPU
`sharding`    a stacked matrix cut across processes
`models`      Inception, GoogLeNet, a small network for digits

Import `kernels`, `webgpu` and `sharding` by name: `import hfusion` needs no Triton.
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
