"""What is timed of a group of siblings: its layers, and what is to run for them. torch."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..timing import agree, unit
from . import _followers, _group
from .siblings import Group

Parts = Callable[[torch.Tensor], list[torch.Tensor]]


def inputs_like(likes: Iterable[tuple[torch.Tensor, torch.device]]) -> list[torch.Tensor]:
    """Random tensors like those that a layer got, one for each call; equal ones once."""
    made, inputs = {}, []
    for like, device in likes:
        key = like.shape, like.stride(), like.dtype, device
        if key not in made and like.numel():
            made[key] = torch.empty_like(like, device=device)
            made[key].normal_(generator=torch.Generator(device).manual_seed(0))
        inputs += [made[key]] if like.numel() else []
    return inputs


def together(group: Group, inputs: list[torch.Tensor]) -> bool | str:
    """Whether a group can be timed: it computes together, and the same; or why not."""
    if not inputs:
        return f"{group.members[0]} gets no number from example_inputs"
    call, side_by_side = _fused(group)
    with torch.no_grad():
        # Rounding is a share of the terms that are added, and they may cancel.
        terms = max(m.weight.abs().flatten(1).sum(1).max() for m in group.layers.values())
        for x in {id(x): x for x in inputs}.values():
            bound = 2 * unit(x) * (terms * x.abs().max()).item()
            for part, output in zip(call(x), _separate(group)(x), strict=True):
                agree(part, output, bound)
    if not side_by_side.rounds:
        return f"{', '.join(group.members)} do not compute together here"
    return True


def variants(group: Group, inputs: Sequence[torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The variants of a group, each with layers made anew."""
    separate, (fused, _) = _separate(group), _fused(group)
    return {
        "separate": lambda: [separate(x) for x in inputs],
        "fused": lambda: [fused(x) for x in inputs],
    }


def _separate(group: Group) -> Parts:
    """The layers as they are, each with the activation that all have. No hooks run."""
    calls = [layer.forward for layer in group.layers.values()]
    activation: Any = group.activation
    if activation is None:
        return lambda x: [call(x) for call in calls]
    return lambda x: [activation(call(x)) for call in calls]


def _fused(group: Group) -> tuple[Parts, _group.FusedGroup]:
    """What runs in their place, on copies of the weights, and the group that it is."""
    doubles = [copy.copy(layer) for layer in group.layers.values()]
    for double in doubles:  # `route` moves their numbers, and leaves those of the model
        mine = double._parameters.items()
        double._parameters = {
            k: p if p is None else nn.Parameter(p, p.requires_grad) for k, p in mine
        }
    side_by_side = _group.route(doubles, group.members, group.dense)
    after: list[Any] = []
    if group.activation is not None:
        after = [copy.copy(group.activation) for _ in doubles]
    if group.followers:
        _followers.route(side_by_side, after, group.hoist)
    calls = [double.forward for double in doubles]
    pairs = [*zip(calls, after, strict=False)]

    # The doubles go with these functions: their group only has weak references.
    def layers(x: torch.Tensor, keep: list = doubles) -> list[torch.Tensor]:
        return [call(x) for call in calls]

    def with_activations(x: torch.Tensor, keep: list = doubles) -> list[torch.Tensor]:
        return [after(call(x)) for call, after in pairs]

    return with_activations if after else layers, side_by_side
