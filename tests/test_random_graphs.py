"""Random networks, fused, against the same networks as they were.

A case is one integer seed. From it comes a network of up to some forty steps: groups
of siblings, and between them whatever may come in their way, such as writes in place,
views, shared weights, layers called twice and functions that nobody can see into. Each
step is carried out when it is drawn, and what torch refuses is left out, so that the
networks run. Half of them are traced, half are given as graphs. Fused and original
must agree in outputs, in what they leave in their inputs and in their state, for some
cases in gradients; states are the same bit for bit, and so is what unfuse gives.

HFUSION_CASES says how many networks are drawn, 300 if nothing does.
"""

import collections
import copy
import dataclasses
import functools
import operator
import os
import random

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import hfusion
from hfusion import effects, layers, rewrite, siblings

CASES = int(os.environ.get("HFUSION_CASES", "300"))
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Mismatch(AssertionError):
    """The fused network is not the original."""


# Functions that torch.fx does not look into: it is told so, and they are called by name.


@torch.fx.wrap
def opaque_write(x):
    x.mul_(0.5)
    return x.sum()


@torch.fx.wrap
def opaque_same(x):
    return x


@torch.fx.wrap
def opaque_layout(x):
    return x + 1 if x.is_contiguous() else x


class Leaf(nn.Module):
    """A module with a layer inside, which a graph may call whole."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


# A network as a list of steps, which can be carried out, traced, or made a graph.


@dataclasses.dataclass(frozen=True)
class Value:
    """An argument that an earlier step has computed; 0 and 1 are the inputs."""

    index: int

    def __repr__(self):
        return f"v{self.index}"


@dataclasses.dataclass(frozen=True)
class Step:
    op: str  # "module", "function", "opaque", "method" or "tensor"
    target: object
    args: tuple = ()
    kwargs: dict = dataclasses.field(default_factory=dict)

    def __repr__(self):
        target = getattr(self.target, "__name__", self.target)
        given = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.kwargs.items())]
        return f"{self.op} {target}({', '.join(given)})"


def put_in(given, values):
    """Arguments with the values that they name."""
    if isinstance(given, Value):
        return values[given.index]
    if isinstance(given, tuple | list):
        return type(given)(put_in(one, values) for one in given)
    return given


def perform(step, root, values):
    args = put_in(step.args, values)
    if step.op == "method":
        return getattr(args[0], step.target)(*args[1:], **step.kwargs)
    if step.op == "tensor":
        return functools.reduce(getattr, step.target.split("."), root)
    called = step.target
    if step.op == "module":
        called = root.get_submodule(called)
    elif step.op == "opaque":
        called = globals()[called]  # by name, since that is what fx.wrap replaces
    return called(*args, **step.kwargs)


class Program(nn.Module):
    """A network that carries out its steps."""

    def __init__(self):
        super().__init__()
        self.steps, self.outputs = [], ()

    def forward(self, x, z):
        values = [x, z]
        for step in self.steps:
            values.append(perform(step, self, values))
        return tuple(values[index] for index in self.outputs)

    def __repr__(self):
        lines = [f"v{i} = {step!r}" for i, step in enumerate(self.steps, 2)]
        named = [(n, m) for n, m in self.named_modules() if n and not m._modules]
        returned = ", ".join(f"v{index}" for index in self.outputs)
        return "\n".join([*(f"{n}: {m}" for n, m in named), *lines, f"return {returned}"])


def as_graph(program):
    """The same network as a GraphModule that nobody has traced."""
    graph = fx.Graph()
    values = [graph.placeholder("x"), graph.placeholder("z")]
    for step in program.steps:
        if step.op == "tensor":
            values.append(graph.get_attr(step.target))
            continue
        target = globals()[step.target] if step.op == "opaque" else step.target
        op = {"module": "call_module", "method": "call_method"}.get(step.op)
        args = put_in(step.args, values)
        values.append(graph.create_node(op or "call_function", target, args, step.kwargs))
    graph.output(tuple(values[index] for index in program.outputs))
    return fx.GraphModule(program, graph)


# Drawing: what there is to draw, by how often it is.

ACTIVATIONS = {
    nn.ReLU: ("relu", "relu_"), nn.Sigmoid: ("sigmoid", "sigmoid_"),
    nn.Tanh: ("tanh", "tanh_"), nn.LeakyReLU: (), nn.ELU: (), nn.SiLU: (),
    nn.Softplus: (), nn.Hardswish: (), nn.GELU: (), nn.ReLU6: (),
}  # fmt: skip
FUNCTIONS = {
    nn.ReLU: F.relu, nn.Sigmoid: torch.sigmoid, nn.Tanh: torch.tanh, nn.ELU: F.elu,
    nn.LeakyReLU: F.leaky_relu, nn.SiLU: F.silu, nn.Softplus: F.softplus,
    nn.Hardswish: F.hardswish, nn.GELU: F.gelu, nn.ReLU6: F.relu6,
}  # fmt: skip
SETTINGS = {nn.LeakyReLU: (0.01, 0.2), nn.ELU: (1.0, 0.5), nn.Softplus: (1.0, 2.0)}
MAY_BE_IN_PLACE = {nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.ReLU6}
FAILS = (RuntimeError, TypeError, ValueError, IndexError, UserWarning)


class Draw:
    """Draws a network, and carries out its steps meanwhile."""

    def __init__(self, seed):
        self.rng, self.root = random.Random(seed), Program()
        self.generator = torch.Generator().manual_seed(seed)
        self.wraps = self.rng.random() < 0.5  # a graph, so that more can be called
        self.base, self.inputs = self.start()
        self.values, self.names, self.dtype = [*self.inputs(self.base)], 0, torch.float64
        for _ in range(self.rng.randint(3, 9)):
            self.something()
        self.root.outputs = tuple(self.returned())

    def chance(self, probability):
        return self.rng.random() < probability

    def start(self):
        """(numbers, the inputs made of them: two tensors, or one twice, or a part)."""
        pixels = self.rng.choice([(), (3,), (2, 3), (3, 2), (2, 2), (1, 1), (2, 1, 2)])
        shape = (self.rng.randint(1, 3), self.rng.randint(1, 5), *pixels)
        base = torch.randn((2, *shape), generator=self.generator, dtype=torch.float64)
        kind = self.rng.choice(["two"] * 5 + ["twice", "part", "strided", "channels last"])

        def inputs(base):
            x, z = base[0].clone(), base[1].clone()
            if kind == "strided":
                x = base[0].transpose(0, -1).clone(memory_format=torch.contiguous_format)
                x = x.transpose(0, -1)
            if kind == "channels last" and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            return x, {"twice": x, "part": x[:1]}.get(kind, z)

        return base, inputs

    def do(self, op, target, *args, **kwargs):
        """Carry out a step and keep it: its Value, or None if torch refuses."""
        step = Step(op, target, args, kwargs)
        try:
            with torch.no_grad():
                value = perform(step, self.root, self.values)
        except FAILS:
            return None
        if isinstance(value, torch.Tensor) and not 0 < value.numel() <= 300:
            return None
        self.values.append(value)
        self.root.steps.append(step)
        return Value(len(self.values) - 1)

    def of(self, value):
        return self.values[value.index]

    def tensor(self, fits=lambda t: True):
        """A tensor that fits, rather a late one or an input; None if there is none."""
        found = [
            Value(index)
            for index, value in enumerate(self.values)
            if isinstance(value, torch.Tensor) and value.is_floating_point() and fits(value)
        ]
        if not found:
            return None
        return self.rng.choice([*found, *found[-4:], *found[:1]])

    def add(self, module):
        """Give a module random weights and a path: the path."""
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                numbers = torch.randn(tensor.shape, generator=self.generator)
                tensor.data = (numbers if tensor.ndim < 2 else numbers * 0.6).to(self.dtype)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.abs_().add_(0.5)
        self.names += 1
        name, parent = f"m{self.names}", self.root
        if self.chance(0.3):
            parent = self.root._modules.setdefault("block", nn.Module())
        parent.add_module(name, module)
        return name if parent is self.root else f"block.{name}"

    def something(self, among=None):
        among = among or KINDS_OF_STEPS
        kind = self.rng.choices(list(among), among.values())[0]
        return kind(self)

    def returned(self):
        """Which values the network returns: what nobody reads, and some others."""
        used = {a for step in self.root.steps for a in flat(step.args)}
        tensors = [i for i, v in enumerate(self.values) if isinstance(v, torch.Tensor)]
        found = [
            index
            for index in tensors
            if self.chance(0.15 if Value(index) in used or index < 2 else 0.9)
        ]
        return found or tensors[-1:]


def flat(given):
    if isinstance(given, tuple | list):
        return [one for part in given for one in flat(part)]
    return [given] if isinstance(given, Value) else []


def draw_siblings(draw):
    """Layers that read one value, with something in between, and what follows them."""
    source = draw.tensor(lambda t: t.ndim >= 2 and t.dtype == draw.dtype)
    if source is None:
        return
    new, follow = geometry(draw, draw.of(source)), draw.chance(0.6)
    odd = draw.chance(0.4)
    kind, branches = draw.rng.choice(list(ACTIVATIONS)), []
    for _ in range(draw.rng.randint(2, 4)):
        if odd and draw.chance(0.2):
            new = geometry(draw, draw.of(source))
        layer = unusual(draw, new()) if odd else new()
        y = draw.do("module", draw.add(layer), source)
        if y is not None and follow and draw.chance(0.7):
            branches.append(activate(draw, y, kind) or y)
        elif y is not None:
            branches.append(y)
        while draw.chance(0.25):
            draw.something(BETWEEN)
    for y in branches if follow and draw.chance(0.5) else ():
        activate(draw, y, kind)
    if len(branches) > 1 and draw.chance(0.3):
        draw.do("function", torch.cat, branches, draw.rng.choice([0, 1, -1]))


def geometry(draw, x):
    """A function that makes layers which read `x`."""
    rng = draw.rng
    if x.ndim < 3 or x.ndim > 5 or draw.chance(0.2):
        return lambda: nn.Linear(x.shape[-1], rng.randint(1, 4), draw.chance(0.7))
    kernel = rng.choice([1, 1, 1, 2, 3, 3])
    options = {"kernel_size": kernel, "padding": kernel // 2, "stride": 1}
    if draw.chance(0.15):
        options["stride"] = 2
    if kernel == 3 and draw.chance(0.2):
        options["padding_mode"] = "circular"
    conv = CONVS[x.ndim - 3]
    return lambda: conv(x.shape[1], rng.randint(1, 4), bias=draw.chance(0.7), **options)


def unusual(draw, layer):
    """A layer as it is, or with what siblings seldom have."""
    if draw.chance(0.15):
        layer.weight.requires_grad_(False)
    if layer.bias is not None and draw.chance(0.15):
        layer.bias.requires_grad_(False)
    if draw.chance(0.05):
        layer.eval()
    if draw.chance(0.05):
        layer.register_forward_hook(lambda module, args, y: y * 1.5)
    if layer.weight.ndim == 4 and draw.chance(0.2):
        layer.to(memory_format=torch.channels_last)
    if draw.wraps and draw.chance(0.1):
        return Leaf(layer)
    return layer


def activate(draw, y, kind):
    """A kind of activation on `y`, in one of its forms."""
    settings = draw.rng.choice([(), (), (draw.rng.choice(SETTINGS[kind]),)]) if (
        kind in SETTINGS
    ) else ()  # fmt: skip
    options = {}
    if kind in MAY_BE_IN_PLACE and draw.chance(0.4):
        options["inplace"] = True
    form = draw.rng.choice(["module", "function", "method"])
    if form == "module":
        return draw.do("module", draw.add(kind(*settings, **options)), y)
    if form == "method" and ACTIVATIONS[kind]:
        return draw.do("method", draw.rng.choice(ACTIVATIONS[kind]), y)
    return draw.do("function", FUNCTIONS[kind], y, *settings, **options)


def draw_activation(draw):
    activate(draw, draw.tensor(), draw.rng.choice(list(ACTIVATIONS)))


def draw_write(draw):
    """A write in place, to a value or a part of one."""
    x = draw.tensor()
    if draw.chance(0.4):
        x = draw_view(draw) or x
    if draw.of(x).ndim == 0:
        return
    z = draw.tensor(lambda t: t.shape == draw.of(x).shape)
    first = (slice(None), 0) if draw.chance(0.5) else 0
    draw.rng.choice(
        [
            lambda: draw.do("method", "mul_", x, 0.5),
            lambda: draw.do("method", "add_", x, z),
            lambda: draw.do("method", "clamp_", x, -1.0, 1.0),
            lambda: draw.do("method", "copy_", x, z),
            lambda: draw.do("function", operator.iadd, x, z),
            lambda: draw.do("function", operator.imul, x, 0.5),
            lambda: draw.do("function", operator.isub, x, 0.25),
            lambda: draw.do("function", operator.setitem, x, first, 0.5),
            lambda: draw.do("function", operator.setitem, x, slice(None), z),
            lambda: draw.do("function", F.relu, x, inplace=True),
            lambda: draw.do("function", F.relu, x, True),
            lambda: draw.do("function", torch.relu_, x),
            lambda: draw.do("function", F.dropout, x, 0.5, False, True),
            lambda: draw.do("function", torch.add, x, 1.0, out=x) if draw.wraps else None,
            lambda: draw.do("function", torch._foreach_add_, [z, x], 0.5),
            lambda: draw.do("method", "detach_", x),
            lambda: draw.do("opaque", "opaque_write", x),
            lambda: activate(draw, x, nn.ReLU),
        ]
    )()


def draw_view(draw):
    """A value that shares memory with another, or may do so."""
    x = draw.tensor(lambda t: t.ndim > 0)
    shape, last = list(draw.of(x).shape), draw.of(x).ndim - 1
    dim = draw.rng.randint(0, last)
    half = shape[dim] // 2
    return draw.rng.choice(
        [
            lambda: pieces(draw, x, dim),
            lambda: pieces(draw, x, dim),
            lambda: draw.do("method", "narrow", x, dim, half, shape[dim] - half),
            lambda: draw.do("method", "transpose", x, dim, last),
            lambda: draw.do("method", "view", x, -1),
            lambda: draw.do("method", "view", x, shape[0], -1),
            lambda: draw.do("method", "view", x, *shape, 1),
            lambda: draw.do("method", "reshape", x, -1, shape[-1]),
            lambda: draw.do("function", torch.reshape, x, (shape[0], -1)),
            lambda: draw.do("function", torch.flatten, x, 1),
            lambda: draw.do("module", draw.add(nn.Flatten()), x),
            lambda: draw.do("method", "contiguous", x),
            lambda: draw.do("method", "unsqueeze", x, -1),
            lambda: draw.do("method", "squeeze", x, -1),
            lambda: draw.do("method", "expand", x, *shape),
            lambda: draw.do("method", "detach", x),
            lambda: draw.do("method", "clone", x),
            lambda: draw.do("method", "double", x),
            lambda: draw.do("function", getattr, x, "mT"),
            lambda: draw.do("function", getattr, x, "data"),
            lambda: draw.do("function", operator.getitem, x, (slice(None), slice(0, 1))),
            lambda: draw.do("function", operator.getitem, x, 0),
            lambda: draw.do("module", draw.add(nn.Identity()), x),
            lambda: draw.do("module", draw.add(nn.Dropout().eval()), x),
            lambda: draw.do("function", F.dropout, x, 0.5, False),
            lambda: draw.do("opaque", "opaque_same", x),
            lambda: draw.do("opaque", "opaque_layout", x),
        ]
    )()


def pieces(draw, x, dim):
    """One of the pieces of a value, perhaps of several tuples of pieces put together."""
    cut = draw.rng.choice(["chunk", "tensor_split", "unbind", "split"])
    sizes = {"unbind": (), "split": (1,)}.get(cut, (2,))
    parts = draw.do("method", cut, x, *sizes, dim)
    if parts is None:
        return None
    while draw.chance(0.2):
        y = draw.tensor(lambda t: t.ndim > 0)
        others = draw.do("function", torch.chunk, y, 2)
        parts = draw.do("function", operator.add, parts, others) if others else parts
    if draw.chance(0.1):
        parts = draw.do("function", operator.getitem, parts, slice(0, 2))
    index = draw.rng.randrange(len(draw.of(parts)))
    return draw.do("function", operator.getitem, parts, index)


def draw_sum(draw):
    """Two values together: a residual, a gate, or one beside the other."""
    x = draw.tensor()
    z = draw.tensor(lambda t: t.shape == draw.of(x).shape)
    draw.rng.choice(
        [
            lambda: draw.do("function", operator.add, x, z),
            lambda: draw.do("method", "add", x, z),
            lambda: draw.do("function", torch.mul, x, z),
            lambda: draw.do("function", operator.sub, x, z),
            lambda: draw.do("function", torch.cat, [x, z], 0),
            lambda: draw.do("function", torch.maximum, x, z),
        ]
    )()


def draw_reader(draw):
    """What else reads a value: pooling, a batch norm, or a depthwise convolution."""
    x = draw.tensor(lambda t: t.ndim == 4 and t.dtype == draw.dtype)
    if x is None:
        return
    c = draw.of(x).shape[1]
    norm = nn.BatchNorm2d(c).eval() if draw.chance(0.8) else nn.BatchNorm2d(c)
    module = draw.rng.choice([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(1), norm, norm])
    if draw.chance(0.1):
        module = nn.Conv2d(c, c, 1, groups=c)
    draw.do("module", draw.add(module), x)


def draw_cast(draw):
    """From here on the other precision, for a value and for the layers to come."""
    draw.dtype = torch.float32 if draw.dtype == torch.float64 else torch.float64
    change = "float" if draw.dtype == torch.float32 else "double"
    draw.do("method", change, draw.tensor())


def draw_parameter(draw):
    """A parameter or buffer that forward reads itself, and perhaps writes to."""
    named = [*draw.root.named_parameters(), *draw.root.named_buffers()]
    if not named:
        return
    path, tensor = draw.rng.choice(named)
    if not tensor.is_floating_point():
        return
    read = draw.do("tensor", path)
    if draw.chance(0.3):
        draw.do("method", "mul_", read, 0.5)
    draw.do("function", operator.mul, read, draw.tensor())


def draw_reuse(draw):
    """A module once more: called again, under a second name, or its weights only."""
    named = [(n, m) for n, m in draw.root.named_modules() if type(m) in layers.KINDS]
    if not named:
        return
    path, module = draw.rng.choice(named)
    how = draw.rng.choice(["again", "named", "tied", "tied memory"])
    if how == "named":
        draw.names += 1
        path = f"m{draw.names}"
        draw.root.add_module(path, module)
    elif how != "again":
        other = copy.deepcopy(module)
        other.weight = module.weight
        if how == "tied memory":
            other.weight = nn.Parameter(module.weight.detach(), module.weight.requires_grad)
        draw.names += 1
        path = f"m{draw.names}"
        draw.root.add_module(path, other)
    calls = [s for s in draw.root.steps if s.op == "module"]
    earlier = [s.args[0] for s in calls if draw.root.get_submodule(s.target) is module]
    if draw.chance(0.8):
        draw.do("module", path, draw.rng.choice(earlier) if earlier else draw.tensor())


def draw_mode(draw):
    """Gradients off and on again, as exported graphs have it."""
    if draw.wraps:
        draw.do("function", torch._C._set_grad_enabled, False)
        while draw.chance(0.6):
            draw.something(BETWEEN)
        draw.do("function", torch._C._set_grad_enabled, True)


BETWEEN = {draw_write: 4, draw_view: 4, draw_activation: 1, draw_sum: 2, draw_reader: 1}
BETWEEN |= {draw_parameter: 0.4, draw_reuse: 0.6}
KINDS_OF_STEPS = {**BETWEEN, draw_siblings: 9, draw_cast: 0.2, draw_mode: 0.2}


# Comparing.


def close(what, actual, expected, bound):
    """Hold tensors to tensors, within a bound relative to the largest of each."""
    actual, expected = list(actual), list(expected)
    if len(actual) != len(expected):
        raise Mismatch(f"{what}: {len(actual)} tensors, not {len(expected)}")
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if (a.shape, a.dtype) != (e.shape, e.dtype):
            was, wanted = (tuple(a.shape), a.dtype), (tuple(e.shape), e.dtype)
            raise Mismatch(f"{what} {index} was {was}, not {wanted}")
        limit = bound * (1 + (e.abs().max().item() if e.numel() else 0))
        if not torch.allclose(a, e, rtol=0, atol=limit, equal_nan=True):
            raise Mismatch(f"{what} {index} differs by {(a - e).abs().max():.2e}")


def same_state(what, a, b):
    """Two state dicts have the same keys in the same order and the same bits."""
    if list(a) != list(b):
        raise Mismatch(f"{what} has the keys {list(a)}, not {list(b)}")
    for key in a:
        if a[key].dtype != b[key].dtype or not torch.equal(a[key], b[key]):
            raise Mismatch(f"{key} of {what} is not what it was")


def run(network, inputs):
    """(outputs, inputs and state after the call) without gradients."""
    with torch.no_grad():
        outputs = network(*inputs)
    state = network.state_dict()  # a copied GraphModule has another order
    return outputs, (*inputs, *(state[key] for key in sorted(state)))


def stacked_of(network):
    return {n: m for n, m in network.named_children() if isinstance(m, rewrite.Siblings)}


def gradients(network, base, inputs):
    """Gradients by name, "" for the input; and which outputs require one."""
    base = base.clone().requires_grad_()
    with torch.enable_grad():
        outputs = network(*inputs(base))
        require = [y.requires_grad for y in outputs]
        learned = [(y * torch.arange(1, y.numel() + 1).reshape(y.shape)).sum()
                   for y in outputs if y.requires_grad]  # fmt: skip
        sum(learned, torch.zeros((), requires_grad=True)).backward()
    grads = {"": base.grad} | {
        name: p.grad for name, p in network.named_parameters(remove_duplicate=False)
    }
    tensors = {"": base, **dict(network.named_parameters(remove_duplicate=False))}
    grads = {n: torch.zeros_like(tensors[n]) if g is None else g for n, g in grads.items()}
    for path, stacked in stacked_of(network).items():
        layers.split_state(stacked, grads, f"{path}.", "")
    return grads, require


def attempt(what, call, *args):
    """What a call returns; where it fails, the fused network alone does so."""
    try:
        return call(*args)
    except Exception as error:
        raise Mismatch(f"{what} raises {type(error).__name__}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    status: str = "compared"  # or "raised", the original; or "untraceable"
    groups: tuple = ()
    learned: bool = False  # whether gradients were compared


def check(seed):
    """Draw a network, fuse it, compare: an Outcome. Raises Mismatch."""
    draw = Draw(seed)
    return check_network(draw, with_gradients=seed % 2 == 0)


def check_network(draw, with_gradients):
    model, bound = draw.root, 1e-9
    if draw.wraps:
        model = as_graph(model)
    tensors = [*draw.values, *draw.root.parameters()]
    if any(isinstance(v, torch.Tensor) and v.dtype == torch.float32 for v in tensors):
        bound = 1e-3
    try:
        expected = run(copy.deepcopy(model), draw.inputs(draw.base))
    except FAILS:
        return Outcome("raised")
    try:
        plan = hfusion.plan(model)
    except hfusion.FusionError:
        return Outcome("untraceable")
    fused = attempt("apply", plan.apply)
    separate = attempt("unfuse", hfusion.unfuse, fused)
    check_structure(plan, fused)
    for what, network in (("fused", fused), ("unfused", separate)):
        same_state(what, network.state_dict(), model.state_dict())
        actual = attempt(what, run, copy.deepcopy(network), draw.inputs(draw.base))
        limit = bound if what == "fused" else 0
        close(f"output of {what}", actual[0], expected[0], limit)
        close(f"input or state after {what}", actual[1], expected[1], limit)
    learned = with_gradients and check_gradients(draw, model, fused, bound)
    return Outcome(groups=plan.groups, learned=learned)


def check_structure(plan, fused):
    """The members of fused groups are called no more, and one layer is in their place."""
    called = [node.target for node in fused.graph.nodes if node.op == "call_module"]
    groups = [group for group in plan.groups if group.fused]
    left = [path for group in groups for path in group.members if path in called]
    if left or len(set(called) & set(stacked_of(fused))) != len(groups):
        raise Mismatch(f"{left} are still called; {fused.graph}")


def check_gradients(draw, model, fused, bound):
    """Whether the original has gradients; raises if those of the fused differ."""
    try:
        expected = gradients(copy.deepcopy(model), draw.base, draw.inputs)
    except FAILS:
        return False
    actual = attempt("gradient", gradients, fused, draw.base, draw.inputs)
    if actual[1] != expected[1]:
        raise Mismatch(f"outputs require gradients: {actual[1]}, not {expected[1]}")
    if set(actual[0]) != set(expected[0]):
        raise Mismatch(f"gradients of {set(actual[0]) ^ set(expected[0])}")
    for name, grad in expected[0].items():
        close(f"gradient of {name or 'the input'}", [actual[0][name]], [grad], 10 * bound)
    return True


def described(seed, error):
    return f"seed {seed}: {error}\n{Draw(seed).root}"
