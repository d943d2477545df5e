"""Fold batch norms into the convolutions before them, in a whole network. torch.fx.

    x ──► conv W, b ──► bn γ, β, μ, σ² ──►     =     x ──► conv W', b' ──►

    W' = γ/σ · W          b' = γ/σ · (b - μ) + β          (chapter 5)

That is vertical fusion: it comes first, since a stacked convolution has batch
norms of several branches behind it, and nothing to fold them into.
"""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import layers, siblings
from .layers import FusionError
from .modes import Folded
from .tracing import Network, copied, put, trace

PAIRS = {nn.BatchNorm1d: nn.Conv1d, nn.BatchNorm2d: nn.Conv2d, nn.BatchNorm3d: nn.Conv3d}

# Nobody else may need the modules as they were.
ALONE = (siblings.called_again, siblings.known_elsewhere, siblings.shared_tensors)


def fold_batchnorm(model):
    """A network without the batch norms that follow a convolution, in eval mode.

    model: an nn.Module that torch.fx can trace, with its batch norms in eval mode;
    it is left as it was. Outputs are equal within rounding. A pair stays as it is if
    somebody else reads the convolution's output, calls or shares one of the two
    modules, or has hooks on them. The keys of the batch norms are gone from the
    state_dict(), and each folded convolution has a bias. Raises FusionError if a
    batch norm is in training mode, where its statistics are those of the batch; and so
    does train() of what it returns, if a batch norm was folded.
    Source: Ioffe and Szegedy 2015; torch.nn.utils.fusion.

    >>> from hfusion import models
    >>> folded = fold_batchnorm(models.GoogLeNet().eval())
    >>> sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    0
    """
    traced = trace(model)
    for path, module in traced.modules.items():
        if type(module) in PAIRS and module.training:
            raise FusionError(
                f"{path} was in training mode; call model.eval() before folding"
            )
    scene = siblings.Scene(model, traced)
    norms = [node for node in scene.graph.nodes if _folds(scene, node)]
    double = copy.deepcopy(model)
    graph, where = copied(scene.graph)
    for norm in map(where.get, norms):
        (conv,) = norm.all_input_nodes
        pair = [double.get_submodule(node.target) for node in (conv, norm)]
        folded = fuse_conv_bn_eval(*pair)
        # torch leaves a bias that was missing without a gradient.
        folded.bias.requires_grad_(folded.weight.requires_grad)
        put(double, conv.target, folded)
        put(double, norm.target, Folded())
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)
    return Network(double, graph, traced.constants, traced.traced_in)


def _folds(scene, norm):
    """Whether a node calls a batch norm that only scales one convolution's output."""
    module = scene.modules.get(norm.target) if norm.op == "call_module" else None
    if type(module) not in PAIRS or len(norm.all_input_nodes) != 1:
        return False
    (conv,) = norm.all_input_nodes
    before = scene.modules.get(conv.target) if conv.op == "call_module" else None
    return (
        type(before) is PAIRS[type(module)]
        and not before.training
        and module.running_mean is not None
        and list(conv.users) == [norm]
        and scene.memory.mode(conv) == scene.memory.mode(norm)
        and len({(t.dtype, t.device) for m in (before, module) for t in _floats(m)}) == 1
        and not any(layers.hooks(m) or "forward" in vars(m) for m in (before, module))
        and not any(rule(scene, node) for rule in ALONE for node in (conv, norm))
    )


def _floats(module):
    tensors = [*module.parameters(), *module.buffers()]
    return [tensor for tensor in tensors if tensor.is_floating_point()]
