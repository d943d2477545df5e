"""Try a model without a trace: a copy of it, and random numbers left as they were."""

import contextlib
import copy
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ..errors import FusionError


def copy_model(model: nn.Module, common: Mapping[int, object] | None = None) -> nn.Module:
    """A copy of a model that has some objects in common with it: {id: object}.

    >>> layer = nn.Linear(2, 2)
    >>> other = copy_model(layer, {id(layer.weight): layer.weight})
    >>> other.weight is layer.weight, other.bias is layer.bias
    (True, False)
    """
    try:
        with counting():
            return copy.deepcopy(model, dict(common or {}))
    except Exception as error:
        raise FusionError(f"model cannot be copied: {error}") from error


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Leave torch.inference_mode, whose tensors do not count how often they are written to.

    >>> with torch.inference_mode(), counting():
    ...     torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    (False, False)
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def counts(x: torch.Tensor) -> bool:
    """Whether a tensor, as it is used now, counts how often it is written to."""
    return not (torch.is_inference_mode_enabled() or x.is_inference())


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
