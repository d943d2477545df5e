"""What do the checks of a fused model cost, at every call?

`separate` is the model. `fused` is what `hfusion.fuse` makes of it: each layer is called,
and checks that the plan still holds. `lowered` is the same plan as a graph, in which each
group is one layer, called once, and nothing is checked; every ReLU stays where it was. So
`fused` - `lowered` is the checks, and the calls of all layers instead of one. From three
siblings that do next to nothing to a whole network, folded, for one image or one row in
float32.
"""

from functools import partial

import torch
from torch import nn

from hfusion import models, timing
from hfusion.folding.fold import fold_batchnorm
from hfusion.fusing.lowering import lower
from hfusion.fusing.planning import plan

from ..recorder import Benchmark
from . import variants

QUESTION = "What do the checks of a fused model cost, at every call?"
ROUNDS = 30


class Siblings(nn.Module):
    """Layers of one input, and nothing else."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(
            models.randomise(layer, seed) for seed, layer in enumerate(layers)
        )

    def forward(self, x):
        return [layer(x) for layer in self.layers]


def linears():
    return Siblings(nn.Linear(16, 16) for _ in range(3)), (1, 16)


def convolutions():
    return Siblings(nn.Conv2d(16, 16, 1) for _ in range(3)), (1, 16, 8, 8)


def stage(row="3a"):
    c_in, size, w1, r3, _, r5, *_ = models.TABLE[row]
    layers = (nn.Conv2d(c_in, width, 1) for width in (w1, r3, r5))
    return Siblings(layers), (1, c_in, size, size)


def module(row="3a"):
    c_in, size, *_ = models.TABLE[row]
    return folded(models.Inception.from_table(row)), (1, c_in, size, size)


def network():
    return folded(models.GoogLeNet()), (1, 3, 224, 224)


def folded(model):
    return fold_batchnorm(models.randomise(model).eval())


# {network: (what makes it and says what its input is like, how many groups it has)}
NETWORKS = {
    "three linear": (linears, 1),
    "three 1×1": (convolutions, 1),
    "siblings of 3a": (stage, 1),
    "3a": (module, 1),
    "GoogLeNet": (network, 9),
}


def cases(device):
    return [{"network": name, "groups": n} for name, (_, n) in NETWORKS.items()]


def benchmark(device, network, groups):
    model, shape = NETWORKS[network][0]()
    x = torch.randn(shape)
    model, x = variants.placed(model.eval(), x, "float32", device, "NCHW")
    planned = plan(model)
    if sum(group.fused for group in planned.groups) != groups:
        raise ValueError(f"groups: expected {groups} to be fused, got {planned}")
    with torch.no_grad():
        expected = variants.doubled(model)(variants.doubled(x))
    makers = {
        "separate": lambda: partial(model, x),
        "fused": lambda: partial(planned.apply(), x),
        "lowered": lambda: partial(lower(planned, once=False), x),
    }
    many = 20 if network == "GoogLeNet" else 2  # its layers add up their rounding
    tolerance = many * variants.TOLERANCE["float32"]
    return Benchmark(makers, timing.tensors(expected), tolerance)
