"""How many of GoogLeNet's convolutions does each system leave?

As written, compiled by torch.compile in three ways, run by ONNX Runtime and OpenVINO where
they are installed, and with siblings stacked by this book. All compute the same.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from hfusion import models
from hfusion.fusing.lowering import lower
from hfusion.fusing.planning import plan

from ..recorder import Benchmark, noting
from . import peers, variants
from .network import on_cpu

QUESTION = "How many of GoogLeNet's convolutions does each system leave?"
COUNTED, ROUNDS = "convolutions", 5
WRITTEN, OURS = variants.WRITTEN, "this book"
# What torch.compile is told.
INDUCTOR = {
    "torch.compile": {},
    "torch.compile, freezing": {"freezing": True},
    "torch.compile, combo kernels": {"combo_kernels": True},
}


def cases(device):
    return [{"network": "GoogLeNet", "batch": 1}]


def benchmark(device, network, batch):
    model = models.randomise(models.GoogLeNet()).eval().to(device)
    x = torch.randn(batch, 3, 224, 224).to(device)
    makers: dict[str, Callable] = {WRITTEN: partial(eager, model, x)}
    for name, options in INDUCTOR.items():
        makers[name] = partial(peers.inductor, model, x, **options)
    for name, runtime in peers.RUNTIMES.items():
        makers[name] = partial(on_cpu, device, runtime, model, x)
    makers[OURS] = lambda: eager(lower(plan(model)), x)
    expected = variants.exact(model, x)
    return Benchmark(
        makers, expected, 20 * variants.TOLERANCE["float32"], count=convolutions
    )


def eager(net, x):
    """A variant that calls a network as it is."""

    def call():
        return net(x)

    count = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    return noting(call, convolutions=count)


def convolutions(variant):
    """How many a variant has."""
    return variant.convolutions
