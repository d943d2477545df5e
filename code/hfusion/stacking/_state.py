"""The state of a stacked layer, in the keys of its branches. torch.

A stacked layer saves and loads the state_dict of the separate layers: hooks on
state_dict() and load_state_dict() cut the stacked tensors apart and put them together.
Below, `stacked` is a `Stacked`, and prefix the beginning of its keys in the state.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch

Place = tuple[slice, ...]
State = dict[str, Any]


def places(stacked: Any) -> list[Place]:
    """Where each branch lies in the stacked weight: its rows, and its window in theirs.

    >>> from torch import nn
    >>> from hfusion.stacking import stack
    >>> places(stack([nn.Linear(4, 2), nn.Linear(4, 3)]))
    [(slice(0, 2, None),), (slice(2, 5, None),)]
    """
    ends = itertools.accumulate(stacked.sizes)
    branches = zip(stacked.sizes, ends, stacked.places_in_window, strict=True)
    return [(slice(end - size, end), *place) for size, end, place in branches]


def _pieces(stacked: Any, prefix: str) -> Iterator[tuple[str, list[tuple[str, Place]]]]:
    """(parameter of the stacked layer, [(key of a branch's part, its place), …])."""
    branches = [*zip(stacked.names, places(stacked), stacked.has_bias, strict=True)]
    yield "weight", [(f"{prefix}{name}.weight", place) for name, place, _ in branches]
    biases = [(f"{prefix}{name}.bias", place[:1]) for name, place, has in branches if has]
    if biases:
        yield "bias", biases


def split_state(stacked: Any, state: State, prefix: str) -> None:
    """Replace the stacked tensors in a state by those of the branches, which are views."""
    parts: State = {}
    for parameter, pieces in _pieces(stacked, prefix):
        whole = state.pop(f"{prefix}layer.{parameter}")
        parts |= {key: whole[place] for key, place in pieces}
    for name in stacked.names:  # in the order of separate layers
        for key in (f"{prefix}{name}.weight", f"{prefix}{name}.bias"):
            if key in parts:
                state[key] = parts[key]


def stack_state(
    stacked: Any, state: State, prefix: str, assign: bool = False
) -> tuple[list[str], list[str]]:
    """Replace the tensors of the branches in a state by the stacked ones.

    assign: take dtype and device from the state, not from the layer. Returns (missing keys,
    sentences about tensors that do not fit); both keep their current values.
    """
    missing, errors = [], []
    for parameter, pieces in _pieces(stacked, prefix):
        now, found = getattr(stacked.layer, parameter).detach(), []
        for key, place in pieces:
            part, expected = state.pop(key, None), now[place].shape
            if part is None:
                missing.append(key)
            elif getattr(part, "shape", None) != expected:
                got = list(getattr(part, "shape", [])) or type(part).__name__
                errors.append(f"{key}: expected a tensor {list(expected)}, got {got}")
            else:
                found.append((place, torch.as_tensor(part)))
        if len(found) == len(pieces):
            like = found[0][1] if assign else now
            whole = torch.zeros_like(now, dtype=like.dtype, device=like.device)
        else:
            whole = now.clone()
        for place, part in found:
            whole[place] = part
        state[f"{prefix}layer.{parameter}"] = whole
    # The masks are in no state, so after to_empty() they are still unset.
    stacked.set_masks(whole.device)
    return missing, errors


def after_state_dict(module: Any, state: State, prefix: str, metadata: Any) -> None:
    """A hook of state_dict(): the keys become those of the branches."""
    split_state(module, state, prefix)


def before_load(
    module: Any,
    state: State,
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """A hook of load_state_dict(): the keys are those of the branches."""
    branches = {key for _, pieces in _pieces(module, prefix) for key, _ in pieces}
    own = {f"{prefix}layer.weight", f"{prefix}layer.bias"} - branches
    unexpected += sorted(own & set(state))
    assign = metadata.get("assign_to_params_buffers", False)
    lacking, unfitting = stack_state(module, state, prefix, assign)
    missing += lacking
    errors += unfitting
