"""The state of a stacked layer, in the keys of its branches. torch.

A stacked layer saves and loads the state_dict of the separate layers.
"""

import itertools

import torch


def places(stacked):
    """Where each branch lies in the stacked weight: its rows, and its window in theirs.

    >>> from torch import nn
    >>> from hfusion.stacking import stack
    >>> places(stack([nn.Linear(4, 2), nn.Linear(4, 3)]))
    [(slice(0, 2, None),), (slice(2, 5, None),)]
    """
    ends = itertools.accumulate(stacked.sizes)
    branches = zip(stacked.sizes, ends, stacked.inside, strict=True)
    return [(slice(end - size, end), *inside) for size, end, inside in branches]


def _pieces(stacked, prefix):
    """(parameter of the stacked layer, [(key of a branch's part, its place), …])."""
    branches = [*zip(stacked.names, places(stacked), stacked.has_bias, strict=True)]
    yield "weight", [(f"{prefix}{name}.weight", place) for name, place, _ in branches]
    biases = [(f"{prefix}{name}.bias", place[:1]) for name, place, has in branches if has]
    if biases:
        yield "bias", biases


def split_state(stacked, state, at, to):
    """In a state: the tensors of a Stacked, below `at`, become its branches', below `to`.

    state: a dict by key, changed in place; the branches' tensors are views. at, to:
    the beginning of the keys, with a dot at the end, or "".
    """
    parts = {}
    for parameter, pieces in _pieces(stacked, to):
        whole = state.pop(f"{at}layer.{parameter}")
        parts |= {key: whole[place] for key, place in pieces}
    for name in stacked.names:  # in the order of separate layers
        for key in (f"{to}{name}.weight", f"{to}{name}.bias"):
            if key in parts:
                state[key] = parts[key]


def stack_state(stacked, state, at, to, assign=False):
    """The way back: the branches' tensors below `to` become the stacked ones below `at`.

    assign: take dtype and device from the state, not from the layer. Returns
    (missing keys, sentences about tensors that do not fit); what is missing or does
    not fit stays as it is.
    """
    missing, errors = [], []
    for parameter, pieces in _pieces(stacked, to):
        now, found = getattr(stacked.layer, parameter).detach(), []
        for key, place in pieces:
            part, fits = state.pop(key, None), now[place].shape
            if part is None:
                missing.append(key)
            elif getattr(part, "shape", None) != fits:
                was = list(getattr(part, "shape", [])) or type(part).__name__
                errors.append(f"{key} was {was}; a tensor {list(fits)} fits")
            else:
                found.append((place, torch.as_tensor(part)))
        if len(found) == len(pieces):
            like = found[0][1] if assign else now
            whole = torch.zeros_like(now, dtype=like.dtype, device=like.device)
        else:
            whole = now.clone()
        for place, part in found:
            whole[place] = part
        state[f"{at}layer.{parameter}"] = whole
    # The masks are in no state, so after to_empty() they are still unset.
    stacked._set_masks(whole.device)
    return missing, errors


def after_state_dict(module, state_dict, prefix, metadata):
    """A hook of state_dict(): the branches' keys."""
    split_state(module, state_dict, prefix, prefix)


def before_load(module, state_dict, prefix, metadata, strict, missing, unexpected, errors):
    """A hook of load_state_dict(): the branches' keys are read."""
    branches = {key for _, pieces in _pieces(module, prefix) for key, _ in pieces}
    own = {f"{prefix}layer.weight", f"{prefix}layer.bias"} - branches
    unexpected += sorted(own & set(state_dict))
    assign = metadata.get("assign_to_params_buffers", False)
    lacking, unfitting = stack_state(module, state_dict, prefix, prefix, assign)
    missing += lacking
    errors += unfitting
