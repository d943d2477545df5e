"""On the side: a model to try things on, and random numbers as if nobody had. torch."""

import contextlib
import copy
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ..errors import FusionError


def double(model: nn.Module, shared: dict | None = None) -> nn.Module:
    """A copy of a model. shared: what it has in common with it, {id: thing}.

    Raises FusionError where a model cannot be copied.

    >>> layer = nn.Linear(2, 2)
    >>> other = double(layer, {id(layer.weight): layer.weight})
    >>> other.weight is layer.weight, other.bias is layer.bias
    (True, False)
    """
    try:
        return copy.deepcopy(model, dict(shared or {}))
    except Exception as error:
        raise FusionError(f"model cannot be copied: {error}") from error


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Random numbers go on after it as if none had been drawn."""
    chance = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(chance[0])
        np.random.set_state(chance[1])
