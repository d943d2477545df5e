"""Find siblings by running a model once, whatever its forward does. torch.

torch.fx stops at control flow on shapes, and looks into no compiled code; a run goes
through both. Each layer notes what it is called with:

    layer    call 1           call 2            the same tensor,
    q        tensor 7, v. 0   tensor 31, v. 0   written to as often:
    k        tensor 7, v. 0   tensor 31, v. 0   siblings
    o        tensor 9, v. 0   tensor 33, v. 0   nobody's sibling

A run is one example: another input may go another way. So nothing that is found here is
relied on; `fusing` looks again at each call. A second run hands on strided parts, as the
fused model will, and notes who cannot read them.
"""

import contextlib
import copy
import functools
import itertools
from collections import defaultdict

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import FusionError
from ..stacking import _memory, rules
from . import _names
from ._aside import double, undisturbed
from .calls import Call, Calls, Followers

# Who asks how memory is laid out: they get a contiguous part …
_ASKS = _names.LAYOUT | {"is_contiguous"}
# … but not where these share the part's memory: the others copy, or fail.
_TRIES = _names.MAY_COPY | {"view_as_complex"}


class Run(Calls):
    """The calls that one run of a model has shown.

    model: an nn.Module, left as it was: a copy runs that shares its parameters, no gradient
    is recorded, and random numbers go on as if nothing had run. example_inputs: a tensor, a
    tuple of positional arguments or a dict of keywords. Raises FusionError where the model
    cannot be copied or run.

    inputs: what each layer got at each call, by path, as (a tensor like it on "meta", its
    device); double: what ran.

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

    def __init__(self, model, example_inputs):
        self._given = arguments(example_inputs)
        if not isinstance(model, nn.Module):
            raise FusionError(f"model: expected an nn.Module, got {type(model).__name__}")
        try:
            seen = self._seen(model, {id(p): p for p in model.parameters()})
        except _Written:  # forward changes its parameters, which are the model's
            seen = self._seen(model, {})
        super().__init__(model, seen)

    def _seen(self, model, shared):
        """What `_called` returns, of a copy of the model that has shared[id(p)] for p."""
        self.double = double(model, shared)
        named = self.double.named_modules()
        self._paths = {module: path for path, module in named if rules.kind_of(module)}
        try:
            with _Watched(shared.values()):
                return self._called()
        except _Written:
            raise
        except Exception as error:
            raise FusionError(
                f"model cannot be run with example_inputs: {type(error).__name__}: {error}"
            ) from error

    def _called(self):
        """{path: [Call, …]}, with a number for each tensor."""
        seen, numbers = defaultdict(list), WeakIdKeyDictionary()
        count, turns = itertools.count(), itertools.count()
        self.inputs, self._outputs, self._then = defaultdict(list), defaultdict(list), {}

        def number(x):
            if x not in numbers:
                numbers[x] = next(count)
            return numbers[x]

        def note(layer, given, keywords):
            values = [*given, *keywords.values()]
            if len(values) == 1 and torch.is_tensor(values[0]):
                x, path = values[0], self._paths[layer]
                seen[path].append(Call(number(x), x._version, next(turns)))
                like = torch.empty_like(x, device="meta", requires_grad=False)
                self.inputs[path].append((like, x.device))

        def note_output(layer, given, y):
            if torch.is_tensor(y):
                self._outputs[self._paths[layer]].append(number(y))

        def note_activation(path, module, given, keywords):
            values = [*given, *keywords.values()]
            if len(values) == 1 and torch.is_tensor(values[0]):
                self._then[number(values[0])] = path

        hooks = []
        for layer in self._paths:
            hooks.append(layer.register_forward_pre_hook(note, with_kwargs=True))
            hooks.append(layer.register_forward_hook(note_output))
        for path, module in self.double.named_modules():
            if type(module) in rules.POINTWISE and not getattr(module, "inplace", False):
                hook = functools.partial(note_activation, path)
                hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            _run(self.double, *self._given)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def followers(self, paths):
        """See `Calls`. Who else reads what a sibling returns does not matter here."""
        modules = []
        for path in paths:
            after = {self._then.get(output) for output in self._outputs[path]}
            if len(after) != 1 or None in after:
                return None
            modules += after
        activations = [self.double.get_submodule(path) for path in modules]
        if len({repr(activation) for activation in activations}) > 1:
            return None
        return Followers(copy.deepcopy(activations[0]), tuple(modules))

    def asking(self, groups):
        """See `Calls`. The model runs again, and these layers hand on strided parts."""
        if not groups:
            return {}
        watch, hooks = _Watch(), []
        for paths in groups:
            members = [self.double.get_submodule(path) for path in paths]
            sizes = [len(layer.weight) for layer in members]
            for index, layer in enumerate(members):
                hand_on = _strided(watch, paths[index], layer, sizes, index)
                hooks.append(layer.register_forward_hook(hand_on))
        try:
            with watch:
                _run(self.double, *self._given)
        except Exception:  # somebody cannot read one, and it is not known who
            return {path: "`forward`" for paths in groups for path in paths}
        finally:
            for hook in hooks:
                hook.remove()
        return watch.asking | watch.written()


def arguments(example_inputs):
    """(args, kwargs) of a call: from a tensor, a tuple or a dict.

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
    """Somebody is about to write to a tensor that is watched."""


class _Watched(TorchDispatchMode):
    """Stops whoever is about to write to one of these tensors, or to its memory."""

    def __init__(self, tensors):
        super().__init__()
        self.memory = {_memory.storage(tensor) for tensor in tensors}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = dict(zip((a.name for a in function._schema.arguments), args, strict=False))
        given |= kwargs or {}
        for argument in function._schema.arguments:
            if argument.alias_info and argument.alias_info.is_write:
                value = given.get(argument.name)
                for tensor in value if isinstance(value, list | tuple) else [value]:
                    if torch.is_tensor(tensor) and _memory.storage(tensor) in self.memory:
                        raise _Written
        return function(*args, **kwargs or {})


def _strided(watch, path, layer, sizes, index):
    """A hook that returns a layer's output as the part of a tensor for all siblings."""
    dim = 1 - layer.weight.ndim

    def hand_on(module, given, y):
        order = sorted(range(y.ndim), key=lambda axis: -y.stride(axis))
        shape = list(y.shape)
        shape[dim] = sum(sizes)
        whole = torch.empty_permuted(shape, order, dtype=y.dtype, device=y.device)
        part = whole.unsafe_split_with_sizes(sizes, dim)[index].copy_(y)
        watch.parts[_memory.storage(part)] = path, part.shape[:dim], whole
        return part

    return hand_on


_NOBODYS = (None, torch.Size(), None)


class _Watch(TorchFunctionMode):
    """Notes whose parts are asked for their layout."""

    def __init__(self):
        super().__init__()
        self.parts, self.asking, self._shared = {}, {}, []

    def written(self):
        """Whose parts were written to after somebody had got a view, or else a copy."""
        changed = (one for one in self._shared if one[2]._version != one[3])
        return {path: f"`{name}`" for path, name, *_ in changed if path not in self.asking}

    def _keep(self, path, name, part, result):
        """A view of a part, which for another batch may be a copy, and miss a write."""
        shares = torch.is_tensor(result)
        shares = shares and _memory.storage(result) == _memory.storage(part)
        if name in _TRIES and shares and not result.is_inference():
            self._shared.append((path, name, result, result._version))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        function_of = getattr(function, "overloadpacket", function)  # aten.view.default
        kwargs, name = kwargs or {}, getattr(function_of, "__name__", "")
        asks = name in _ASKS or name in _TRIES
        path, rows, _ = self._whose(args) if asks else _NOBODYS
        if path is None:
            return function(*args, **kwargs)
        if _memory.is_dense(args[0]):
            result = function(*args, **kwargs)
            # One row or image is in one piece by chance: of more, such a view cannot be.
            if name == "view" and result.shape[: len(rows)] != rows and rows.numel() == 1:
                self.asking.setdefault(path, f"`{name}`")
            self._keep(path, name, args[0], result)
            return result
        # As the layer's own output would lie there, or a view of it.
        alone = _memory.dense(args[0], args[0])
        if name in _TRIES:
            with contextlib.suppress(RuntimeError):  # a view that cannot be
                result = function(*args, **kwargs)
                if _memory.storage(result) == _memory.storage(args[0]):
                    self._keep(path, name, args[0], result)
                    return result
                other = function(alone, *args[1:], **kwargs)
                if _memory.storage(other) != _memory.storage(alone):
                    return result  # it copies either way
        # A copy costs as much here as there, and then it is plain who shares memory.
        self.asking.setdefault(path, f"`{name}`")
        return function(alone, *args[1:], **kwargs)

    def _whose(self, args):
        """Of the layer whose part is asked: its path, the sizes in front of the cut."""
        if not args or not torch.is_tensor(args[0]):
            return _NOBODYS
        return self.parts.get(_memory.storage(args[0]), _NOBODYS)


def _run(double, args, kwargs):
    """Call a model without recording gradients, and without drawing random numbers."""
    with undisturbed(double), torch.no_grad():
        double(*copy.deepcopy(args), **copy.deepcopy(kwargs))
