"""Variants with TF32, and with cold caches. No experiment itself."""

import contextlib
import copy
import itertools
import math
from functools import partial

import torch
from torch import nn

from hfusion import timing

from ..recorder import Unavailable, noting

FILLS = 2  # so many times what the cache holds is read before anything is read again


@contextlib.contextmanager
def tf32_on():
    """Convolutions may round what they multiply to TF32, whose digits are float16's."""
    cudnn = torch.backends.cudnn
    before = timing.tf32(cudnn)
    cudnn.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def in_tf32(make):
    """What `make` makes, made and called with TF32; a graph has it inside."""
    with tf32_on():
        variant = make()
    if hasattr(variant, "graph"):
        return variant

    def call():
        with tf32_on():
            return variant()

    return noting(call, fn=variant)


def copies(model, x, device):
    """How many copies of the weights and x fill the cache FILLS times."""
    facts = torch.cuda.get_device_properties(device)
    cache_bytes = getattr(facts, "L2_cache_size", None)
    if not cache_bytes:
        raise Unavailable("torch does not say how large the cache is")
    read = [x, *(m.weight for m in model.modules() if isinstance(m, nn.Conv2d))]
    return math.ceil(FILLS * cache_bytes / sum(tensor.nbytes for tensor in read))


def rotated(make, number):
    """Each call has another copy of the network that `make` calls, and of its input."""
    variant = make()
    net, (x,) = variant.func, variant.args
    calls = [partial(copy.deepcopy(net), x.clone()) for _ in range(number)]
    turns, note = itertools.cycle(calls), getattr(variant, "note", str)

    def call():
        return next(turns)()

    def said():
        return f"{number} copies in turn, {note()}".removesuffix(", ")

    return noting(call, calls=calls, note=said)
