"""Try a model without a trace: a copy of it, and random numbers left as they were."""

import contextlib
import copy
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ..errors import FusionError


def copy_model(model: nn.Module, common: dict[int, object] | None = None) -> nn.Module:
    """A copy of a model that has some objects in common with it: {id: object}.

    >>> layer = nn.Linear(2, 2)
    >>> other = copy_model(layer, {id(layer.weight): layer.weight})
    >>> other.weight is layer.weight, other.bias is layer.bias
    (True, False)
    """
    try:
        return copy.deepcopy(model, dict(common or {}))
    except Exception as error:
        raise FusionError(f"model cannot be copied: {error}") from error


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore Python's, NumPy's and torch's random states afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
