"""Which layers a model calls, and with which numbers: who could be whose sibling. torch.

    layer    call 1           call 2            the same value,
    q        value 7, v. 0    value 31, v. 0    written to as often:
    k        value 7, v. 0    value 31, v. 0    siblings
    o        value 9, v. 0    value 33, v. 0    nobody's sibling

How it is known differs: `reading` reads it from a graph, `running` sees it in a run. A
value is whatever the one or the other can compare: a node, or the number of a tensor.
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
    """One call of a layer: what it reads, how often that was written to, and when."""

    value: Hashable
    version: Hashable
    turn: int


@dataclasses.dataclass(frozen=True)
class Followers:
    """The activation that follows each of some siblings, and can be called once for all."""

    activation: nn.Module | None = None  # one that does the same, out of place
    modules: tuple[str, ...] = ()  # the paths of those that do it, one a sibling
    hoist: bool = False  # whether once also saves where the parts are strided


class Calls:
    """The calls of a model's layers, by path, in the order of each layer's first call.

    >>> pair = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 3)})
    >>> seen = {"a": [Call("x", 0, turn=0)], "b": [Call("x", 0, turn=1)]}
    >>> calls = Calls(pair, seen)
    >>> calls.families(), calls.kinds
    ([('a', 'b')], Counter({'Linear': 2}))
    """

    found = ""  # how they were found, in words
    advice = ""  # what else would help, where `asking` cannot be sure

    def __init__(self, model: nn.Module, seen: dict[str, list[Call]]):
        self.model, self.seen = model, seen
        self.kinds = Counter()
        for path, calls in seen.items():
            self.kinds[rules.kind_of(self.layer(path)).__name__] += len(calls)

    @functools.cached_property
    def owners(self) -> dict[int, set[tuple[int, str]]]:
        """Who owns a piece of the model's memory; only a plan asks."""
        return owners(self.model)

    def layer(self, path: str) -> nn.Module:
        """The layer at a path."""
        return self.model.get_submodule(path)

    def values(self, path: str) -> tuple:
        """What a layer reads, call by call."""
        return tuple(call.value for call in self.seen[path])

    def versions(self, path: str) -> tuple:
        """How often these values had been written to when it read them."""
        return tuple(call.version for call in self.seen[path])

    def families(self, paths: Iterable[str] = (), embed: bool = False) -> list[tuple]:
        """Layers that read the same values and have one geometry: two paths or more each.

        paths: all those with a call, unless they are given. embed: whether their windows
        may differ in size.
        """
        together = defaultdict(list)
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
        """Whether layers take turns: all of them with one value before any with the next.

        Else the first one, which computes for all, computes again before the others have
        fetched their parts.

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

    def asking(self, groups: Sequence[Sequence[str]]) -> dict[str, str]:
        """Which layers' outputs are read by something that may want them contiguous:
        {path: what that is called}. groups: paths of siblings, which will be cut apart."""
        raise NotImplementedError

    def followers(self, paths: Sequence[str]) -> Followers | None:
        """The activation that all of these siblings have, if it is known."""
        return None

    def change(self, paths: Sequence[str]) -> str:
        """What writes to the values of siblings between their calls, in words."""
        return f"their input is written to between {paths[0]} and {paths[-1]}"

    def unseen(self) -> dict[str, str]:
        """Layers that no call was seen of: {path: its kind}."""
        called = {id(self.layer(path)) for path in self.seen}
        named = self.model.named_modules()
        return {
            path: type(layer).__name__
            for path, layer in named
            if isinstance(layer, rules.KINDS) and id(layer) not in called
        }


def owners(model: nn.Module) -> dict[int, set[tuple[int, str]]]:
    """Who owns a piece of memory: {memory: {(id of a tensor, path of its module)}}."""
    found = defaultdict(set)
    for path, module in model.named_modules():
        for tensor in own_tensors(module):
            found[_memory.storage(tensor)].add((id(tensor), path))
    return found


def own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """A module's tensors, less those of its children: parameters, buffers, attributes."""
    tensors = [*module._parameters.values(), *module._buffers.values()]
    tensors += [value for value in vars(module).values() if torch.is_tensor(value)]
    return [t for t in tensors if t is not None and not nn.parameter.is_lazy(t)]
