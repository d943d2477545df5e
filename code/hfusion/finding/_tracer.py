"""A tracer of torch.fx that also records x += 1 and x[0] = 1.

torch.fx takes the first for an addition, whose result is another tensor, and refuses the
second.
"""

import inspect
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn

from ..stacking import Stacked, rules

AUGMENTED = (
    *("add", "and", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow"),
    *("rshift", "sub", "truediv", "xor"),
)


class _Proxy(fx.Proxy):
    """A stand-in for a value, which records changes of it."""

    def __setitem__(self, key: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __getattr__(self, attribute: str) -> "_Attribute":
        found = _Attribute(self, attribute)
        # torch.fx makes a node where an attribute is used first. What is no method is read
        # here, because a later call, such as squeeze_, may change it.
        if inspect.isdatadescriptor(getattr(torch.Tensor, attribute, None)):
            _ = found.node
        return found

    def __setattr__(self, attribute: str, value: object) -> None:
        if hasattr(torch.Tensor, attribute):  # such as x.data = y
            raise ValueError(f"forward sets {attribute} of a tensor")
        super().__setattr__(attribute, value)


class _Attribute(_Proxy, fx.proxy.Attribute):
    """A stand-in for an attribute of a value, such as its shape."""


def _augmented(function: Callable) -> Callable:
    def record(self: _Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in AUGMENTED:
    setattr(_Proxy, f"__i{_name}__", _augmented(getattr(operator, f"i{_name}")))


class Tracer(fx.Tracer):
    """Follows all modules but torch's own, layers that can be stacked, and some given ones.

    torch.fx searches all names of the model for each tensor that forward mentions; here
    a dict has them, which makes the trace linear.

    exact: whether to refuse a change of autocast, which a graph would forget. whole:
    paths of modules that the graph calls as one.
    """

    def __init__(self, exact: bool = False, whole: Collection[str] = ()):
        super().__init__()
        self.exact, self.whole = exact, whole
        self.used: list[tuple[torch.Tensor, int | None]] = []

    def trace(self, root: nn.Module) -> fx.Graph:  # type: ignore[override]
        named = [*root.named_buffers(), *root.named_parameters()]
        self._paths = {id(tensor): path for path, tensor in named}
        self._casts = _casts()
        # A stand-in is neither None nor True nor False. So the graph follows the default
        # of such an argument, and asserts that it has this value.
        arguments = inspect.signature(root.forward).parameters.values()
        fixed = {a.name: a.default for a in arguments if _is_switch(a.default)}
        graph = super().trace(root, fixed or None)
        for node in graph.find_nodes(op="placeholder"):
            name, _, number = node.target.rpartition("_")
            if name in fixed and number == "1":  # torch.fx has numbered it
                node.target = name
        return graph

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if self.exact and kind.startswith("call_") and _casts() != self._casts:
            raise ValueError("autocast is switched")
        node = super().create_node(kind, *args, **kwargs)
        node.meta["counts"] = not torch.is_inference_mode_enabled()
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        ours = isinstance(module, (Stacked, *rules.KINDS))
        return ours or path in self.whole or super().is_leaf_module(module, path)

    def getattr(self, name: str, value: Any, proxies: dict[str, fx.Proxy]) -> Any:
        path = self._paths.get(id(value))
        if path is None:
            return value
        if path not in proxies:
            proxies[path] = self.create_proxy("get_attr", path, (), {})
        return proxies[path]

    def create_arg(self, value: Any) -> Any:
        path = self._paths.get(id(value))
        if path is not None:
            return self.create_node("get_attr", path, (), {})
        if isinstance(value, torch.Tensor):
            self.used.append((value, version(value)))
        return super().create_arg(value)


def _is_switch(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _casts() -> list[bool]:
    """Whether torch is autocasting, which a graph does not remember."""
    return [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]


def version(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written to, as far as autograd knows."""
    counts = isinstance(tensor, torch.Tensor) and not tensor.is_inference()
    return tensor._version if counts else None  # else, say, a stand-in
