"""How many of GoogLeNet's convolutions does each system leave?

As written, compiled by torch.compile in three ways, run by ONNX Runtime and OpenVINO where
they are installed, and with siblings stacked by this book. All compute the same.
"""

from functools import partial

import torch
from torch import nn

from hfusion import models
from hfusion.fusing.lowering import lower
from hfusion.fusing.planning import plan

from ..recording import Race
from . import peers, rungs
from .network import on_cpu

QUESTION = "How many of GoogLeNet's convolutions does each system leave?"
COUNTED, ROUNDS = "convolutions", 5
WRITTEN, OURS = "as written", "this book"
# What torch.compile is told.
INDUCTOR = {
    "torch.compile": {},
    "torch.compile, freezing": {"freezing": True},
    "torch.compile, combo kernels": {"combo_kernels": True},
}


def cases(device):
    return [{"network": "GoogLeNet", "batch": 1}]


def race(device, network, batch):
    model = models.randomise(models.GoogLeNet()).eval().to(device)
    x = torch.randn(batch, 3, 224, 224).to(device)
    arms = {WRITTEN: partial(eager, model, x)}
    for name, options in INDUCTOR.items():
        arms[name] = partial(peers.inductor, model, x, **options)
    for name, runtime in peers.RUNTIMES.items():
        arms[name] = partial(on_cpu, device, runtime, model, x)
    arms[OURS] = lambda: eager(lower(plan(model)), x)
    expected = rungs.exact(model, x)
    return Race(arms, expected, 20 * rungs.SHARE["float32"], count=convolutions)


def eager(net, x):
    """An arm that calls a network as it is."""

    def call():
        return net(x)

    call.convolutions = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    return call


def convolutions(arm):
    """How many an arm has."""
    return arm.convolutions
