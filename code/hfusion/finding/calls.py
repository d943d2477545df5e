"""The calls of a model's layers, and which layers could be siblings.

    layer    call 1           call 2            the same value,
    q        value 7, v. 0    value 31, v. 0    written to as often:
    k        value 7, v. 0    value 31, v. 0    siblings
    o        value 9, v. 0    value 33, v. 0    no sibling

`reading` takes the calls from a graph, `running` from a run. A value is a node of the
graph, or the number of a tensor in the run.
"""

import dataclasses
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import nn

from ..stacking import _memory, rules, windows


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer."""

    value: Hashable  # what it reads
    version: Hashable  # how often that had been written to; None where nobody counts
    turn: int  # when: calls are numbered in order


@dataclasses.dataclass(frozen=True)
class Followers:
    """The activation that follows each of some siblings, and may be called once for all."""

    activation: nn.Module  # a module that does the same, out of place
    modules: tuple[str, ...]  # paths of the modules that do it, one per sibling
    hoist: bool = False  # whether one call also saves launches where the parts are strided


class Calls:
    """The calls of a model's layers, by path, in the order of each layer's first call.

    Parameters
    ----------
    model : nn.Module
        The model that was called.
    seen : dict from str to list of Call
        The calls of each layer, by its path.

    Attributes
    ----------
    kinds : Counter
        How many calls layers of each kind have, such as {"Conv2d": 57}.

    Examples
    --------
    >>> pair = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 3)})
    >>> seen = {"a": [Call("x", 0, turn=0)], "b": [Call("x", 0, turn=1)]}
    >>> calls = Calls(pair, seen)
    >>> calls.families(), calls.kinds
    ([('a', 'b')], Counter({'Linear': 2}))
    """

    found = ""  # how they were found, in words
    advice = ""  # what to do where `layout_readers` cannot be sure

    def __init__(self, model: nn.Module, seen: dict[str, list[Call]]):
        self.model, self.seen = model, seen
        self.kinds: Counter[str] = Counter()
        for path, calls in seen.items():
            if kind := rules.kind_of(self.layer(path)):
                self.kinds[kind.__name__] += len(calls)

    @functools.cached_property
    def owners(self) -> dict[Hashable, set[tuple[int, str]]]:
        """See the function `owners`; computed only for a plan."""
        return owners(self.model)

    def layer(self, path: str) -> nn.Module:
        """The layer at a path."""
        return self.model.get_submodule(path)

    def values(self, path: str) -> tuple[Hashable, ...]:
        """What a layer reads, call by call."""
        return tuple(call.value for call in self.seen[path])

    def versions(self, path: str) -> tuple[Hashable, ...]:
        """How often these values had been written to, call by call."""
        return tuple(call.version for call in self.seen[path])

    def families(
        self, paths: Iterable[str] = (), embed: bool = False
    ) -> list[tuple[str, ...]]:
        """Layers that read the same values and have one geometry, at least two each.

        paths: the layers to look at, by default all with a call. embed: whether their
        windows may differ in size.
        """
        together: dict[Hashable, list[str]] = defaultdict(list)
        names = [name for name in rules.GEOMETRY if not (embed and name in rules.WINDOW)]
        read = getattr if embed else rules.in_effect
        for path in paths or self.seen:
            layer = self.layer(path)
            geometry = [str(read(layer, name, None)) for name in names]
            if embed and isinstance(layer, rules.KINDS):  # others only have its name
                geometry.append(str(windows.growth(layer)))
            kind = rules.kind_of(layer)
            together[self.values(path), kind, *geometry].append(path)
        return [tuple(found) for found in together.values() if len(found) > 1]

    def in_turn(self, paths: Sequence[str]) -> bool:
        """Whether all layers read one value before any of them reads the next.

        If not, the first layer, which computes for all, computes again before the others
        have fetched their parts.

        >>> two = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 3)})
        >>> a, b = ([Call("x", 0, t), Call("y", 0, t + 1)] for t in (0, 2))
        >>> Calls(two, {"a": a, "b": b}).in_turn(["a", "b"])
        False
        """
        rounds = list(
            zip(*([c.turn for c in self.seen[path]] for path in paths), strict=True)
        )
        first = all(turns[0] == min(turns) for turns in rounds)
        return first and all(max(a) < min(b) for a, b in itertools.pairwise(rounds))

    def layout_readers(self, groups: Sequence[Sequence[str]]) -> dict[str, str]:
        """Layers whose output has a reader that may need it contiguous: {path: reader}.

        groups: paths of siblings, whose outputs will be strided parts of one tensor.
        """
        raise NotImplementedError

    def followers(self, paths: Sequence[str]) -> Followers | None:
        """The activation that follows each of these siblings, if it is known."""
        return None

    def change(self, paths: Sequence[str]) -> str:
        """The call that writes to the input of siblings between their calls, in words."""
        return f"their input is written to between {paths[0]} and {paths[-1]}"

    def unseen(self) -> dict[str, str]:
        """Layers without a call: {path: its kind}."""
        called = {id(self.layer(path)) for path in self.seen}
        return {
            path: type(layer).__name__
            for path, layer in self.model.named_modules()
            if path and isinstance(layer, rules.KINDS) and id(layer) not in called
        }


def owners(model: nn.Module) -> dict[Hashable, set[tuple[int, str]]]:
    """The tensors in each piece of memory: {memory: {(id, its module's path)}}."""
    found: dict[Hashable, set[tuple[int, str]]] = defaultdict(set)
    for path, module in model.named_modules():
        for tensor in _own_tensors(module):
            found[_memory.storage(tensor)].add((id(tensor), path))
    return found


def _own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """A module's parameters, buffers and other tensors, without those of its children."""
    tensors = [*module._parameters.values(), *module._buffers.values()]
    tensors += [value for value in vars(module).values() if torch.is_tensor(value)]
    return [t for t in tensors if t is not None and not nn.parameter.is_lazy(t)]
