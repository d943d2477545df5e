"""Refuses uses of a folded model that were not followed. Pickled with the model."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import FusionError

REFUSAL = (
    "mode: expected False, got True; batch norms of this model were folded with the "
    "statistics of eval mode, and in training mode they would use those of the batch; "
    "train the original, and fold it again"
)


class EvalOnly:
    """The train() of a module in which a batch norm was folded: it refuses training mode.

    nn.Module's own train() would switch other modules before it reaches the folded norm.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        if mode:
            raise FusionError(REFUSAL)
        return type(self.module).train(self.module, mode)


class Checked:
    """A forward_pre_hook: refuses a call whose arguments forward was not followed with.

    switches: the arguments of forward that may decide which way it goes, as
    {name: (position, or None for a keyword, the value that it had)}.
    """

    keeps = True  # a trace ignores it: it is no hook of the user's

    def __init__(self, switches: Mapping[str, tuple[int | None, bool | None]]):
        self.switches = dict(switches)

    def __call__(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        for name, (place, default) in self.switches.items():
            by_place = place is not None and place < len(args)
            value = args[place or 0] if by_place else kwargs.get(name, default)
            if value is not default:
                raise FusionError(
                    f"{name}: expected {default}, with which batch norms of this model "
                    f"were folded, got {_shown(value)}; with another value forward may use "
                    "what was folded in another way: call the original"
                )


def _shown(value: object) -> str:
    plain = value is None or isinstance(value, (bool, int, float, str))
    return repr(value) if plain else f"a {type(value).__name__}"


def switches(model: nn.Module) -> dict[str, tuple[int | None, bool | None]]:
    """The arguments of a model's forward that are None or a bool unless given.

    >>> def forward(self, x, mask=None, *, twice=False): ...
    >>> switches(type("Net", (nn.Module,), {"forward": forward})())
    {'mask': (1, None), 'twice': (None, False)}
    """
    found: dict[str, tuple[int | None, bool | None]] = {}
    for place, (name, one) in enumerate(
        inspect.signature(model.forward).parameters.items()
    ):
        if one.default is None or isinstance(one.default, bool):
            by_name = one.kind is one.KEYWORD_ONLY
            found[name] = (None if by_name else place, one.default)
    return found


def hold(
    model: nn.Module,
    paths: list[str],
    switches: Mapping[str, tuple[int | None, bool | None]],
) -> None:
    """Guard a model. paths: of the norms whose folding holds in eval mode only."""
    steps = [path.split(".") for path in paths]
    above = {".".join(parts[:end]) for parts in steps for end in range(len(parts))}
    for path in sorted(above):
        module = model.get_submodule(path)
        vars(module)["train"] = EvalOnly(module)
    if switches:
        model.register_forward_pre_hook(Checked(switches), with_kwargs=True)
