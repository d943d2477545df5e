"""Convolution, bias and ReLU in one call of cuDNN or oneDNN, layer by layer."""

from functools import partial

import torch
from torch import nn

from hfusion import stacking

from ..recorder import Unavailable
from .guards import tried


class ConvReLU(nn.Module):
    """A convolution with its bias and ReLU, in one call of cuDNN or oneDNN."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.refused = conv, False

    def forward(self, x):
        """Where the library refuses this layer, in two calls, from then on."""
        if not self.refused:
            try:
                return self.called(x)
            except torch.OutOfMemoryError:
                raise
            except (NotImplementedError, RuntimeError):
                self.refused = True
        return self.conv(x).relu()

    def called(self, x):
        c = self.conv
        if x.is_cuda or x.is_meta:  # on "meta" as on CUDA: `cost.kernels` counts there
            return torch.cudnn_convolution_relu(
                x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups
            )
        return torch.ops.mkldnn._convolution_pointwise(
            x, c.weight, c.bias, c.padding, c.stride, c.dilation, c.groups, "relu", [], ""
        )


def one_call(network):
    """In a lowered network, in place: each convolution and its ReLU as a ConvReLU."""
    modules = dict(network.named_modules())
    for node in list(network.graph.nodes):
        module = modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, stacking.Stacked) and isinstance(module.activation, nn.ReLU):
            module.layer, module.activation = ConvReLU(module.layer), None
        elif isinstance(module, nn.Conv2d) and len(node.users) == 1:
            (user,) = node.users
            if user.op == "call_module" and isinstance(modules[user.target], nn.ReLU):
                network.set_submodule(node.target, ConvReLU(module))
                network.set_submodule(user.target, nn.Identity())
    return network


def in_one_call(net, x):
    """A variant of `one_call`; its note says in how many layers it is one call.

    Unavailable where it is in none.
    """
    call = tried(partial(net, x))
    layers = [m for m in net.modules() if isinstance(m, ConvReLU)]
    done = sum(not layer.refused for layer in layers)
    if not done:
        raise Unavailable("no layer could be convolution, bias and ReLU in one call")
    call.note = lambda: f"one call in {done} of {len(layers)} layers"
    return call
