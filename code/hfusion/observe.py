"""Find siblings by running a model once, whatever its forward does. torch.

torch.fx stops at control flow on shapes, and looks into no compiled code; a run goes
through both. Each layer notes what it is called with:

    layer    call 1           call 2            the same tensor,
    q        tensor 7, v. 0   tensor 31, v. 0   written to as often:
    k        tensor 7, v. 0   tensor 31, v. 0   siblings
    o        tensor 9, v. 0   tensor 33, v. 0   nobody's sibling

A run is one example: another input may go another way. So nothing that is found here is
relied on; `packed` looks again at each call. A second run hands on strided parts, as the
fused model will, and notes who cannot read them.
"""

import contextlib
import copy
import itertools
import random
from collections import Counter, defaultdict

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from . import effects, layers, placing
from .layers import FusionError

# Who asks how memory is laid out: they get a contiguous part …
_ASKS = effects.LAYOUT | {"is_contiguous"}
# … but not where these share the part's memory: the others copy, or fail.
_TRIES = effects.MAY_COPY | {"view_as_complex"}


class Run:
    """What one run of a model has shown.

    model: an nn.Module, left as it was: a copy runs that shares its parameters, no gradient
    is recorded, and random numbers go on as if nothing had run. example_inputs: a tensor, a
    tuple of positional arguments or a dict of keywords. Raises FusionError where the model
    cannot be copied or run.

    families: the paths of layers that were called with the same tensors and have the same
    geometry, two or more each, in the order of their calls; calls: how often each layer was
    called, by path; kinds: how often layers of each kind were; inputs: what each layer got
    at each call, by path, as (a tensor like it on "meta", its device); double: what ran.

    >>> class Cell(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 3)
    ...     def forward(self, x):
    ...         return self.a(x), self.b(x) if x.sum() > 0 else None
    >>> run = Run(Cell(), torch.ones(1, 4))
    >>> run.families, dict(run.kinds)
    ([('a', 'b')], {'Linear': 2})
    """

    def __init__(self, model, example_inputs):
        self._given = arguments(example_inputs)
        if not isinstance(model, nn.Module):
            raise FusionError(f"model: expected an nn.Module, got {type(model).__name__}")
        try:
            seen = self._seen(model, {id(p): p for p in model.parameters()})
        except _Written:  # forward changes its parameters, which are the model's
            seen = self._seen(model, {})
        self.calls = {self._paths[layer]: len(calls) for layer, calls in seen.items()}
        self._turns = {self._paths[m]: [turn for *_, turn in seen[m]] for m in seen}
        self.kinds, together = Counter(), defaultdict(list)
        for layer, calls in seen.items():
            kind, inputs = layers.kind_of(layer).__name__, [call[:2] for call in calls]
            self.kinds[kind] += len(inputs)
            geometry = (str(layers.in_effect(layer, name)) for name in layers.GEOMETRY)
            together[tuple(inputs), kind, *geometry].append(self._paths[layer])
        self.families = [tuple(paths) for paths in together.values() if len(paths) > 1]

    def _seen(self, model, shared):
        """What `_called` returns, of a copy of the model that has shared[id(p)] for p."""
        try:
            self.double = copy.deepcopy(model, dict(shared))
        except Exception as error:
            raise FusionError(f"model cannot be copied: {error}") from error
        named = self.double.named_modules()
        self._paths = {module: path for path, module in named if layers.kind_of(module)}
        try:
            with _Watched(shared.values()):
                return self._called()
        except _Written:
            raise
        except Exception as error:
            raise FusionError(
                f"model cannot be run with example_inputs: {type(error).__name__}: {error}"
            ) from error

    def in_turn(self, paths):
        """Whether layers take turns: all of them with one input before any with the next.

        Else the first one, which computes for all, computes again before the others have
        fetched their parts.

        >>> class Levels(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 3)
        ...     def forward(self, x, y):
        ...         return [self.a(x), self.a(y)], [self.b(x), self.b(y)]
        >>> Run(Levels(), (torch.ones(1, 4), torch.ones(2, 4))).in_turn(["a", "b"])
        False
        """
        rounds = list(zip(*(self._turns[path] for path in paths), strict=True))
        first = all(turns[0] == min(turns) for turns in rounds)
        return first and all(max(a) < min(b) for a, b in itertools.pairwise(rounds))

    def _called(self):
        """{layer: [(number of its input, how often that was written to, turn), …]}."""
        seen, numbers = defaultdict(list), WeakIdKeyDictionary()
        count, turns = itertools.count(), itertools.count()
        self.inputs = defaultdict(list)

        def note(layer, given, keywords):
            values = [*given, *keywords.values()]
            if len(values) == 1 and torch.is_tensor(values[0]):
                x = values[0]
                if x not in numbers:
                    numbers[x] = next(count)
                seen[layer].append((numbers[x], x._version, next(turns)))
                like = torch.empty_like(x, device="meta", requires_grad=False)
                self.inputs[self._paths[layer]].append((like, x.device))

        hooks = [
            layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self._paths
        ]
        try:
            _run(self.double, *self._given)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def asking(self, groups):
        """Which layers' output somebody reads who cannot read a strided part: paths.

        groups: of paths. The model runs again, and these layers hand on strided parts.
        """
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
            return {path for paths in groups for path in paths}
        finally:
            for hook in hooks:
                hook.remove()
        return watch.asking


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
        self.memory = {placing.memory(tensor) for tensor in tensors}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = dict(zip((a.name for a in function._schema.arguments), args, strict=False))
        given |= kwargs or {}
        for argument in function._schema.arguments:
            if argument.alias_info and argument.alias_info.is_write:
                value = given.get(argument.name)
                for tensor in value if isinstance(value, list | tuple) else [value]:
                    if torch.is_tensor(tensor) and placing.memory(tensor) in self.memory:
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
        watch.parts[placing.memory(part)] = path, part.shape[:dim], whole
        return part

    return hand_on


_NOBODYS = (None, torch.Size(), None)


class _Watch(TorchFunctionMode):
    """Notes whose parts are asked for their layout."""

    def __init__(self):
        super().__init__()
        self.parts, self.asking = {}, set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        asks = name in _ASKS or name in _TRIES
        path, rows, _ = self._whose(args) if asks else _NOBODYS
        if path is None:
            return function(*args, **kwargs)
        if placing.is_dense(args[0]):
            result = function(*args, **kwargs)
            # One row or image is in one piece by chance: of more, such a view cannot be.
            if name == "view" and result.shape[: len(rows)] != rows and rows.numel() == 1:
                self.asking.add(path)
            return result
        # As the layer's own output would lie there, or a view of it.
        alone = placing.dense(args[0], args[0])
        if name in _TRIES:
            with contextlib.suppress(RuntimeError):  # a view that cannot be
                result = function(*args, **kwargs)
                if placing.memory(result) == placing.memory(args[0]):
                    return result
                if placing.memory(function(alone, *args[1:], **kwargs)) != placing.memory(
                    alone
                ):
                    return result  # it copies either way
        # A copy costs as much here as there, and then it is plain who shares memory.
        self.asking.add(path)
        return function(alone, *args[1:], **kwargs)

    def _whose(self, args):
        """Of the layer whose part is asked: its path, the sizes in front of the cut."""
        if not args or not torch.is_tensor(args[0]):
            return _NOBODYS
        return self.parts.get(placing.memory(args[0]), _NOBODYS)


def _run(double, args, kwargs):
    """Call a model without recording gradients, and without drawing random numbers."""
    with undisturbed(double), torch.no_grad():
        double(*copy.deepcopy(args), **copy.deepcopy(kwargs))


@contextlib.contextmanager
def undisturbed(model):
    """Random numbers go on after it as if nothing had been drawn."""
    chance = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_devices(model)):
            yield
    finally:
        random.setstate(chance[0])
        np.random.set_state(chance[1])


def _devices(model):
    return sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
