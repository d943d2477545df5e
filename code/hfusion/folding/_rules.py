"""Why a batch norm stays: a table of rules."""

import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..finding import aliasing
from ..finding.reading import Reading
from ..stacking import _memory, rules
from . import _norms


@dataclasses.dataclass(frozen=True)
class Pair:
    """A batch norm, its call, and the convolution whose output it reads."""

    reading: Reading
    path: str
    norm: nn.Module
    node: fx.Node  # the call of the norm
    before: fx.Node  # the call of the convolution
    conv: _ConvNd

    @functools.cached_property
    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight and bias of the folded convolution."""
        return _norms.weights(self.conv, self.norm)

    @property
    def eval_only(self) -> bool:
        """Whether the norm does something else in training mode."""
        depends = _norms.depends_on_mode(self.norm)
        return depends or not _norms.proven(self.conv, self.norm, training=True)

    @property
    def ends(self) -> Iterator[tuple[str, nn.Module]]:
        """The convolution and the norm, with the paths by which the graph calls them."""
        for node in (self.before, self.node):
            yield str(node.target), aliasing.module_of(node, self.reading.modules)


def judge(reading: Reading, path: str, norm: nn.Module, node: fx.Node | None) -> Pair | str:
    """A norm with its convolution, or why it stays. node: the call of the norm, if any."""
    if reason := _unfit(norm):
        return f"it {reason}"
    if node is None:
        return "forward() does not call it"
    given = [*node.args, *node.kwargs.values()]
    before = given[0] if len(given) == 1 else None
    if not isinstance(before, fx.Node):
        return "it is not called with exactly one tensor"
    if before.op == "placeholder":
        return f"it follows {before.target}, not a convolution"
    called = before.op == "call_module"
    conv = aliasing.module_of(before, reading.modules) if called else None
    if not isinstance(conv, _norms.CONVS):
        name = aliasing.name(before, reading.modules)
        return f"it follows {before} (`{name}`), not a convolution"
    pair = Pair(reading, path, norm, node, before, conv)
    reason = next(filter(None, (rule(pair) for rule in RULES)), "")
    return reason or pair


def _unfit(norm: nn.Module) -> str:
    if held := _holds_more(norm):
        return f"{held}, which folding would lose"
    if any(getattr(norm, name) is None for name in ("running_mean", "running_var")):
        return "has no running statistics, and normalises by those of its input"
    lazy = any(map(nn.parameter.is_lazy, _norms.numbers(norm)))
    return "has no statistics yet; run the model once" if lazy else ""


def _holds_more(module: nn.Module) -> str:
    if rules.hooks(module) or "forward" in vars(module):
        return "has hooks, or a forward() on the instance"
    own = _norms.strange(module)
    return f"has {', '.join(own)} of its own" if own else ""


# Each rule: pair -> the reason why its norm stays, or "".


def _convolution_holds_more(pair: Pair) -> str:
    held = _holds_more(pair.conv)
    return held and f"{pair.before.target} {held}, which folding would not respect"


def _odd_parameters(pair: Pair) -> str:
    odd = {name: kind for name, kind in rules.odd(pair.conv).items() if kind != "Tensor"}
    return f"{pair.before.target} has no plain Parameters, but {odd}" if odd else ""


def _called_again(pair: Pair) -> str:
    for path, module in pair.ends:
        if (count := pair.reading.calls_of(module)) > 1:
            return f"{path} is called {count} times"
    return ""


def _known_to_others(pair: Pair) -> str:
    """A module with two paths, or within a module that the graph calls as one."""
    calls = pair.reading.graph.find_nodes(op="call_module")
    called = {str(node.target) for node in calls}
    for path, module in pair.ends:
        names = [name for name, one in pair.reading.modules.items() if one is module]
        if len(names) > 1:
            return f"{names[0]} is also {names[1]}"
        above = {path[:at] for at, letter in enumerate(path) if letter == "."}
        if whole := next(iter(above & called), ""):
            return f"{path} may be called by {whole}, which the graph calls whole"
    return ""


def _shared_tensors(pair: Pair) -> str:
    read = {node.target for node in pair.reading.graph.find_nodes(op="get_attr")}
    for path, module in pair.ends:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if f"{path}.{name}" in read:
                return f"forward reads {path}.{name} itself"
            if len(pair.reading.owners[_memory.storage(tensor)]) > 1:
                return f"{path}.{name} shares memory with another tensor"
    return ""


def _read_by_others(pair: Pair) -> str:
    others = ", ".join(str(node) for node in pair.before.users if node is not pair.node)
    return others and f"the output of {pair.before.target} is also read by {others}"


def _another_mode(pair: Pair) -> str:
    mode = pair.reading.memory.mode
    if mode(pair.before) == mode(pair.node):
        return ""
    return f"a mode, such as no_grad, changes after {pair.before.target}"


def _unlike_tensors(pair: Pair) -> str:
    conv, norm = _norms.numbers(pair.conv), _norms.numbers(pair.norm)
    if len({tensor.device for tensor in conv + norm}) > 1:
        return f"it is not on the device of {pair.before.target}"
    (kind, *others), kinds = {t.dtype for t in conv}, {t.dtype for t in norm}
    half = kind in (torch.float16, torch.bfloat16) and kinds == {torch.float32}
    if others or not (half or kinds == {kind}):
        return f"it has another dtype than {pair.before.target}, and is not in float32"
    channels = pair.conv.out_channels
    if any(tensor.shape != (channels,) for tensor in norm):
        return f"it is not for the {channels} channels of {pair.before.target}"
    return ""


def _does_something_else(pair: Pair) -> str:
    known = _norms.PAIRS.get(type(pair.norm)) is type(pair.conv)
    if known or _norms.proven(pair.conv, pair.norm):
        return ""
    what = f"{type(pair.conv).__name__} and {type(pair.norm).__name__}"
    return f"{what} were tried beside a folded convolution, and gave something else"


def _overflows(pair: Pair) -> str:
    if pair.weights[0].is_meta or all(t.isfinite().all() for t in pair.weights):
        return ""
    dtype = str(pair.conv.weight.dtype).removeprefix("torch.")
    return f"the folded weights of {pair.before.target} are not finite in {dtype}"


RULES = (
    *(_convolution_holds_more, _odd_parameters, _called_again, _known_to_others),
    *(_shared_tensors, _read_by_others, _another_mode),
    *(_unlike_tensors, _does_something_else, _overflows),
)
