"""The calls that one run of a model shows, whatever its forward does.

torch.fx stops at control flow on shapes, and cannot follow compiled code; a run passes
through both. Each layer notes the tensor that it is called with. A second run gives
readers strided parts, as the fused model will, and notes which need them contiguous.

A run is one example: another input may take another path. So nothing that is found here
is relied on; the fused model checks each call.
"""

import copy
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import FusionError
from ..stacking import _memory, rules
from ._aside import copy_model, counts, undisturbed
from ._layout import Watch, strided
from .calls import Call, Calls, Followers


class Run(Calls):
    """The calls that one run of a model shows.

    A copy runs, which shares the model's parameters, without recording gradients. Random
    numbers continue as if nothing had run.

    Parameters
    ----------
    model : nn.Module
        Any model that can be copied; it is left as it was.
    example_inputs : torch.Tensor, tuple or dict
        A tensor, positional arguments or keyword arguments of forward.

    Attributes
    ----------
    copy : nn.Module
        The copy that ran.
    inputs : dict from str to list of (torch.Tensor, torch.device)
        For each call of a layer, by its path, its input as a tensor on "meta" and the
        device that it was on.

    Raises
    ------
    FusionError
        If the model cannot be copied or run.

    Examples
    --------
    >>> class Cell(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 3)
    ...     def forward(self, x):
    ...         return self.a(x), self.b(x) if x.sum() > 0 else None
    >>> run = Run(Cell(), torch.ones(1, 4))
    >>> run.families(), dict(run.kinds)
    ([('a', 'b')], {'Linear': 2})
    """

    found = "running"

    def __init__(self, model: nn.Module, example_inputs: object):
        self._given = arguments(example_inputs)
        if not isinstance(model, nn.Module):
            raise FusionError(f"model: expected an nn.Module, got {type(model).__name__}")
        self.inputs: dict[str, list[tuple[torch.Tensor, torch.device]]] = defaultdict(list)
        self._outputs: dict[str, list[int]] = defaultdict(list)
        self._readers: dict[int, str] = {}  # of outputs: paths of activations
        try:
            seen = self._seen(model, {id(p): p for p in model.parameters()})
        except _Written:  # forward changes its parameters, which are the model's
            seen = self._seen(model, {})
        super().__init__(model, seen)

    def _seen(
        self, model: nn.Module, common: dict[int, torch.Tensor]
    ) -> dict[str, list[Call]]:
        """The calls of a copy of the model that has these tensors in common with it."""
        self.copy = copy_model(model, common)
        named = self.copy.named_modules()
        self._paths = {module: path for path, module in named if rules.kind_of(module)}
        try:
            with _Watched(common.values()):
                return self._called()
        except _Written:
            raise
        except Exception as error:
            raise FusionError(
                f"model cannot be run with example_inputs: {type(error).__name__}: {error}"
            ) from error

    def _called(self) -> dict[str, list[Call]]:
        """Run the copy: the calls of its layers, with a number for each tensor."""
        seen: dict[str, list[Call]] = defaultdict(list)
        numbers, count, turns = WeakIdKeyDictionary(), itertools.count(), itertools.count()
        for found in (self.inputs, self._outputs, self._readers):
            found.clear()

        def number(x: torch.Tensor) -> int:
            if x not in numbers:
                numbers[x] = next(count)
            return numbers[x]

        def note(layer: nn.Module, given: tuple, keywords: dict[str, Any]) -> None:
            if (x := _only_tensor(given, keywords)) is not None:
                path = self._paths[layer]
                version = x._version if counts(x) else None
                seen[path].append(Call(number(x), version, next(turns)))
                like = torch.empty_like(x, device="meta", requires_grad=False)
                self.inputs[path].append((like, x.device))

        def note_output(layer: nn.Module, given: tuple, y: object) -> None:
            if torch.is_tensor(y):
                self._outputs[self._paths[layer]].append(number(y))

        def note_activation(
            path: str, module: nn.Module, given: tuple, keywords: dict[str, Any]
        ) -> None:
            if (x := _only_tensor(given, keywords)) is not None:
                self._readers[number(x)] = path

        hooks = []
        for layer in self._paths:
            hooks.append(layer.register_forward_pre_hook(note, with_kwargs=True))
            hooks.append(layer.register_forward_hook(note_output))
        for path, module in self.copy.named_modules():
            if type(module) in rules.POINTWISE and not getattr(module, "inplace", False):
                hook = functools.partial(note_activation, path)
                hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        self._run(hooks)
        return seen

    def _run(self, hooks: Sequence[RemovableHandle]) -> None:
        """Call the copy without recording gradients; then remove the hooks."""
        args, kwargs = self._given
        try:
            with undisturbed(self.copy), torch.no_grad():
                self.copy(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        finally:
            for hook in hooks:
                hook.remove()

    def followers(self, paths: Sequence[str]) -> Followers | None:
        """See `Calls`. Other readers of a sibling's output do not matter here."""
        modules = []
        for path in paths:
            after = {self._readers.get(output) for output in self._outputs[path]}
            activation = after.pop() if len(after) == 1 else None
            if activation is None:
                return None
            modules.append(activation)
        activations = [self.copy.get_submodule(path) for path in modules]
        if len({repr(activation) for activation in activations}) > 1:
            return None
        return Followers(copy.deepcopy(activations[0]), tuple(modules))

    def layout_readers(self, groups: Sequence[Sequence[str]]) -> dict[str, str]:
        """See `Calls`. The model runs again, and these layers return strided parts."""
        if not groups:
            return {}
        watch, hooks = Watch(), []
        for paths in groups:
            weights = [self.copy.get_parameter(f"{path}.weight") for path in paths]
            sizes, dim = [len(weight) for weight in weights], 1 - weights[0].ndim
            for index, path in enumerate(paths):
                layer = self.copy.get_submodule(path)
                hand_on = strided(watch, path, sizes, index, dim)
                hooks.append(layer.register_forward_hook(hand_on))
        try:
            with watch:
                self._run(hooks)
        except Exception:  # something cannot read one, and it is not known what
            return {path: "`forward`" for paths in groups for path in paths}
        return watch.asking | watch.written()


def _only_tensor(given: tuple, keywords: dict[str, Any]) -> torch.Tensor | None:
    """The only argument of a call, if it is a tensor."""
    values = [*given, *keywords.values()]
    return values[0] if len(values) == 1 and torch.is_tensor(values[0]) else None


def arguments(example_inputs: object) -> tuple[tuple, dict[str, Any]]:
    """The positional and keyword arguments of a call.

    Parameters
    ----------
    example_inputs : torch.Tensor, tuple or dict
        A tensor, positional arguments or keyword arguments.

    Raises
    ------
    FusionError
        If it is none of these.

    Examples
    --------
    >>> arguments({"x": 1})
    ((), {'x': 1})
    """
    if torch.is_tensor(example_inputs):
        return (example_inputs,), {}
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    if isinstance(example_inputs, dict):
        return (), example_inputs
    raise FusionError(
        "example_inputs: expected a tensor, a tuple or a dict, got "
        f"{type(example_inputs).__name__}"
    )


class _Written(Exception):
    """A call is about to write to a tensor that is watched."""


class _Watched(TorchDispatchMode):
    """Stops a call that is about to write to the memory of one of these tensors."""

    def __init__(self, tensors: Iterable[torch.Tensor]):
        super().__init__()
        self.memory = {_memory.storage(tensor) for tensor in tensors}

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        given = dict(zip((a.name for a in function._schema.arguments), args, strict=False))
        given |= kwargs or {}
        for argument in function._schema.arguments:
            if argument.alias_info and argument.alias_info.is_write:
                value = given.get(argument.name)
                for tensor in value if isinstance(value, list | tuple) else [value]:
                    if torch.is_tensor(tensor) and _memory.storage(tensor) in self.memory:
                        raise _Written
        return function(*args, **kwargs or {})
