"""Random networks, fused, against the same networks as they were.

A case is one integer seed. From it comes a network of some ten to sixty steps: groups
of siblings, and between them whatever may come in their way, such as writes in place,
views, shared weights, layers called twice and functions that nobody can see into. Each
step is carried out when it is drawn, and what torch refuses is left out, so that the
networks run. Half of them are traced, half are given as graphs. Fused and original
must agree in their outputs, in what two calls leave in inputs and state, also with
other weights loaded, and for some cases in gradients; states have the same keys and
bits. What unfuse gives agrees bit for bit. Modes are switched, of the network or of a part
of it, between planning and fusing and afterwards: then they agree too, or there is a
FusionError. Below, deliberate mistakes are noticed.

Where a run finds the siblings, seeds 0 to 3999 gave no disagreement either. HFUSION_CASES
says how many networks are drawn, 300 if nothing does. Seeds 0 to 3999
were run on 2026-11-30: 3986 networks compared, of which 2985 had a fused group and 2587 a
refused one, 313 groups with windows of several sizes, gradients compared for 1246, 14470
comparisons after modes may have been switched, and 441 FusionErrors instead; no
disagreement. 9 of the originals raise an error when they run, 5 are refused by the trace.
"""

import collections
import copy
import dataclasses
import functools
import itertools
import operator
import os
import random
import types

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import hfusion
from hfusion import effects, embedding, layers, packed, rewrite, siblings, tracing

CASES = int(os.environ.get("HFUSION_CASES", "300"))
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# With what torch refuses a step, or a network whose gradients it cannot find.
FAILS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, UserWarning)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small are not worth a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    """A module of somebody's, which a graph may call whole."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


# What forward may do with a training flag.


def drop_if(on, x):
    return F.dropout(x, 0.5, on)


def double_if(on, x):
    return x * 2 if on else x


def shift_unless(on, x):
    return x if on else x + 1


def write_if(on, x):
    return x.mul_(0.5) if on else x


def same_if(on, x):
    """It looks at the flag, and nothing comes of it."""
    return F.relu(x) if on else F.relu(x)  # noqa: RUF034


# A network as a list of steps, which can be carried out, traced, or made a graph.


@dataclasses.dataclass(frozen=True)
class Value:
    """An argument that an earlier step has computed; 0 and 1 are the inputs."""

    index: int

    def __repr__(self):
        return f"v{self.index}"


@dataclasses.dataclass(frozen=True)
class Step:
    op: str  # "module", "function", "opaque", "method", "tensor" or "flag"
    target: object
    args: tuple = ()
    kwargs: dict = dataclasses.field(default_factory=dict)

    def __repr__(self):
        target = getattr(self.target, "__name__", self.target)
        given = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.kwargs.items())]
        return f"{self.op} {target}({', '.join(given)})"

    def __deepcopy__(self, memo):
        return self


def put_in(given, values):
    """Arguments with the values that they name."""
    if isinstance(given, Value):
        return values[given.index]
    if isinstance(given, dict):
        return {name: put_in(one, values) for name, one in given.items()}
    if type(given) in (tuple, list):
        return type(given)(put_in(one, values) for one in given)
    return given


def flat(given):
    """The values that arguments name."""
    if type(given) in (tuple, list):
        return [one for part in given for one in flat(part)]
    return [given] if isinstance(given, Value) else []


def perform(step, root, values):
    args, kwargs = put_in(step.args, values), put_in(step.kwargs, values)
    if step.op == "method":
        return getattr(args[0], step.target)(*args[1:], **kwargs)
    if step.op == "tensor":
        return functools.reduce(getattr, step.target.split("."), root)
    called = step.target
    if step.op == "flag":  # the first argument is a path
        return called(root.get_submodule(args[0]).training, *args[1:])
    if step.op == "module":
        called = root.get_submodule(called)
    elif step.op == "opaque":
        called = globals()[called]  # by name, since that is what fx.wrap replaces
    return called(*args, **kwargs)


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

    def __str__(self):
        named = [f"{n}: {m}" for n, m in self.named_modules() if n and not m._modules]
        steps = [f"v{index} = {step!r}" for index, step in enumerate(self.steps, 2)]
        returned = ", ".join(f"v{index}" for index in self.outputs)
        return "\n".join([*named, *steps, f"return {returned}"])


def as_graph(program):
    """The same network as a GraphModule that nobody has traced."""
    graph = fx.Graph()
    values = [graph.placeholder("x"), graph.placeholder("z")]
    for step in program.steps:
        op = {"module": "call_module", "method": "call_method", "tensor": "get_attr"}
        target = globals()[step.target] if step.op == "opaque" else step.target
        given = put_in(step.args, values), put_in(step.kwargs, values)
        values.append(graph.create_node(op.get(step.op, "call_function"), target, *given))
    graph.output(tuple(values[index] for index in program.outputs))
    return fx.GraphModule(program, graph)


# What there is to draw. X is the value that a step is about, Z another one of its
# shape if there is one; a function of X stands for what depends on its shape.

X, Z = Value(0), Value(1)
NAMES = {  # activations: function, methods
    nn.ReLU: (F.relu, "relu", "relu_"),
    nn.Sigmoid: (torch.sigmoid, "sigmoid", "sigmoid_"),
    nn.Tanh: (torch.tanh, "tanh", "tanh_"),
    nn.LeakyReLU: (F.leaky_relu,), nn.ELU: (F.elu,), nn.SiLU: (F.silu,),
    nn.Softplus: (F.softplus,), nn.Hardswish: (F.hardswish,), nn.GELU: (F.gelu,),
    nn.ReLU6: (F.relu6,),
}  # fmt: skip
SETTINGS = {nn.LeakyReLU: (0.01, 0.2), nn.ELU: (1.0, 0.5), nn.Softplus: (1.0, 2.0)}
MAY_BE_IN_PLACE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.ReLU6)


def rows(x):
    return x.shape[0] if x.ndim else 1


def shape(x):
    return tuple(x.shape)


WRITES = [
    ("method", "mul_", X, 0.5), ("method", "add_", X, Z), ("method", "copy_", X, Z),
    ("method", "clamp_", X, -1.0, 1.0), ("method", "zero_", X), ("method", "detach_", X),
    ("method", "squeeze_", X), ("method", "transpose_", X, 0, -1),
    ("method", "__iadd__", X, 0.1), ("method", "__setitem__", X, 0, 0.1),
    ("function", operator.iadd, X, Z), ("function", operator.iadd, X, Z),
    ("function", operator.imul, X, 0.5), ("function", operator.isub, X, 0.25),
    ("function", operator.setitem, X, 0, 0.5),
    ("function", operator.setitem, X, (slice(None), 0), 0.5),
    ("function", operator.setitem, X, slice(None), Z),
    ("function", F.relu, X, {"inplace": True}), ("function", F.relu, X, True),
    ("function", F.hardswish, X, {"inplace": True}), ("function", F.elu, X, 1.0, True),
    ("function", torch.relu_, X), ("function", F.dropout, X, 0.5, False, True),
    ("function", F.elu_, X, 1.0, 2.0), ("function", F.threshold, X, 0.1, 0.0, True),
    ("function", nn.init.constant_, X, 0.3),
    ("function", torch.add, X, 1.0, {"out": X}), ("function", torch.mul, Z, 2, {"out": X}),
    ("function", torch._foreach_add_, [Z, X], 0.5),
    ("function", torch.ops.aten._foreach_add_.Scalar, [Z, X], 0.5),
    ("function", torch.ops.aten.add_.Tensor, X, Z),
    ("function", torch.ops.aten.mul.out, X, Z, {"out": X}),
    ("opaque", "opaque_write", X), ("opaque", "opaque_write", X),
    ("module", lambda: nn.ReLU(inplace=True), X),
    ("module", lambda: nn.Dropout(inplace=True).eval(), X),
    ("module", lambda: nn.Sequential(nn.ReLU(inplace=True)), X),
    ("module", lambda: nn.Sequential(nn.Flatten(0), nn.ReLU(inplace=True)), X),
    ("module", lambda: Leaf(nn.ReLU(inplace=True)), X),
]  # fmt: skip
VIEWS = [
    ("method", "view", X, -1), ("method", "view", X, rows, -1),
    ("method", "view", X, {"size": (-1,)}), ("method", "view_as", X, Z),
    ("method", "reshape", X, rows, -1), ("method", "reshape", X, {"shape": (-1,)}),
    ("method", "ravel", X), ("method", "reshape_as", X, Z),
    ("method", "contiguous", X), ("method", "clone", X),
    ("method", "contiguous", X, {"memory_format": torch.channels_last}),
    ("method", "to", X, {"memory_format": torch.channels_last}),
    ("method", "to", X, torch.float64), ("method", "double", X),
    ("method", "transpose", X, 0, -1), ("method", "unsqueeze", X, -1),
    ("method", "squeeze", X), ("method", "movedim", X, 0, -1), ("method", "diagonal", X),
    ("method", "unflatten", X, 0, (1, -1)), ("method", "unfold", X, 0, 1, 1),
    ("method", "select", X, -1, 0), ("method", "narrow", X, -1, 0, 1),
    ("method", "expand", X, shape), ("method", "as_strided", X, (1, 2), (2, 1)),
    ("method", "type_as", X, Z), ("method", "detach", X), ("method", "stride", X),
    ("method", "is_contiguous", X),
    ("function", getattr, X, "mT"), ("function", getattr, X, "data"),
    ("function", getattr, X, "shape"),
    ("function", operator.getitem, X, (slice(None), slice(0, 1))),
    ("function", operator.getitem, X, 0), ("function", operator.getitem, X, Ellipsis),
    ("function", torch.flatten, X, 1), ("function", torch.reshape, X, (-1,)),
    ("function", torch.ops.aten.view.default, X, [-1]),
    ("function", torch.ops.aten.view, X, [-1]),
    ("function", torch.ops.aten.reshape.default, X, [-1]),
    ("function", F.dropout, X, 0.5, False), ("function", F.dropout, X, 0.5, True),
    ("function", torch.zeros, shape, {"dtype": torch.float64}),
    ("function", torch.zeros_like, X), ("method", "new_zeros", X, shape),
    ("opaque", "opaque_same", X), ("opaque", "opaque_layout", X),
    ("module", nn.Flatten, X), ("module", lambda: nn.Flatten(0), X),
    ("module", nn.Identity, X), ("module", lambda: nn.Dropout().eval(), X),
    ("module", nn.Dropout, X), ("module", lambda: nn.Unflatten(0, (1, -1)), X),
    ("module", lambda: nn.PixelShuffle(1), X), ("module", lambda: nn.ZeroPad2d(0), X),
]  # fmt: skip
SUMS = [
    ("function", operator.add, X, Z), ("function", operator.add, X, Z),
    ("function", operator.sub, X, Z), ("function", torch.mul, X, Z),
    ("method", "add", X, Z), ("function", torch.maximum, X, Z),
    ("function", torch.cat, [X, Z], 0), ("function", torch.cat, [X, Z], -1),
    ("function", torch.stack, [X, Z]), ("function", torch.matmul, X, Z),
    ("function", F.softmax, X, {"dim": -1}), ("method", "mean", X, 0, {"keepdim": True}),
    ("method", "sum", X, -1), ("function", F.adaptive_avg_pool2d, X, 1),
    ("function", F.avg_pool2d, X, 1), ("function", F.max_pool1d, X, 1),
]  # fmt: skip
CUTS = [
    ("method", "chunk", X, 2), ("method", "chunk", X, 2, -1), ("method", "unbind", X),
    ("method", "tensor_split", X, 2, 1), ("method", "hsplit", X, 1),
    ("function", torch.split, X, 1, 1),
]  # fmt: skip


# Drawing.


class Draw:
    """Draws a network, and carries out its steps meanwhile."""

    def __init__(self, seed):
        self.rng, self.root = random.Random(seed), Program()
        torch.default_generator.manual_seed(seed)
        self.is_graph, self.writes = self.chance(0.5), self.chance(0.7)
        self.base, self.inputs = self.start()
        self.values, self.dtype = [*self.inputs(self.base)], torch.float64
        self.names = (f"m{count}" for count in itertools.count(1))
        for _ in range(self.rng.randint(3, 8)):
            self.something(KINDS_OF_STEPS)
        self.root.outputs = tuple(self.returned())

    def chance(self, probability):
        return self.rng.random() < probability

    def start(self):
        """(numbers, the inputs made of them: two tensors, or one twice, or a part)."""
        pixels = self.rng.choice([(), (3,), (2, 3), (3, 2), (2, 2), (1, 1), (2, 1, 2)])
        size = (2, self.rng.randint(1, 3), self.rng.randint(1, 5), *pixels)
        kind = self.rng.choice(["two"] * 5 + ["twice", "part", "strided", "channels last"])

        def inputs(base):
            x, z = base[0].clone(), base[1].clone()
            if kind == "strided":
                turned = x.transpose(0, -1).clone(memory_format=torch.contiguous_format)
                x = turned.transpose(0, -1)
            if kind == "channels last" and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            return x, {"twice": x, "part": x[:1]}.get(kind, z)

        return torch.randn(size, dtype=torch.float64), inputs

    def do(self, op, target, *args, **kwargs):
        """Carry out a step and keep it: its Value, or None if torch refuses."""
        step = Step(op, target, args, kwargs)
        if None in [*args, *kwargs.values()]:  # what it is about was refused
            return None
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

    def one_of(self, table, x):
        """Carry out a step of a table about a value."""
        z = self.tensor(lambda t: t.shape == self.of(x).shape)
        op, target, *args = self.rng.choice(table)
        kwargs = args.pop() if args and isinstance(args[-1], dict) else {}
        known = [a(self.of(x)) if isinstance(a, types.FunctionType) else a for a in args]
        if op == "module":
            target = self.add(target())
        return self.do(op, target, *put_in(known, [x, z]), **put_in(kwargs, [x, z]))

    def of(self, value):
        return self.values[value.index]

    def is_tensor(self, value):
        found = self.of(value) if value else None
        return isinstance(found, torch.Tensor) and found.is_floating_point()

    def tensor(self, fits=lambda t: True):
        """A tensor that fits, rather a late one or an input; None if there is none."""
        every = filter(self.is_tensor, map(Value, range(len(self.values))))
        found = [value for value in every if fits(self.of(value))]
        return self.rng.choice([*found, *found[-4:], *found[:1]]) if found else None

    def add(self, module):
        """Give a module random weights and a path: the path."""
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                numbers = torch.randn(tensor.shape) * (1 if tensor.ndim < 2 else 0.6)
                kept = tensor.data.to(self.dtype)  # and how it lies in memory
                tensor.data = kept.copy_(numbers)
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.abs_().add_(0.5)
        return self.name(module)

    def name(self, module):
        """A path for a module, which may have another one already."""
        parent, start = self.root, ""
        if self.chance(0.3):
            parent, start = self.root._modules.setdefault("block", nn.Module()), "block."
        name = next(self.names)
        parent.add_module(name, module)
        return start + name

    def something(self, among):
        self.rng.choices(list(among), among.values())[0](self)

    def returned(self):
        """Which values the network returns: what nobody reads, and some others."""
        steps = self.root.steps
        used = {value for s in steps for value in flat([*s.args, *s.kwargs.values()])}
        used |= {Value(0), Value(1)}
        tensors = [*filter(self.is_tensor, map(Value, range(len(self.values))))]
        found = [v.index for v in tensors if self.chance(0.15 if v in used else 0.9)]
        return found or [tensors[-1].index]


def draw_siblings(draw):
    """Layers that read one value, with something in between, and what follows them."""
    source = draw.tensor(lambda t: t.ndim >= 1 and t.dtype == draw.dtype)
    if source is None:
        return
    new, odd = geometry(draw, draw.of(source)), draw.chance(0.4)
    follow, kind, branches = draw.chance(0.6), draw.rng.choice(list(NAMES)), []
    for _ in range(draw.rng.randint(2, 4)):
        if odd and draw.chance(0.2):
            new = geometry(draw, draw.of(source))
        y = called(draw, draw.add(unusual(draw, new()) if odd else new()), source)
        if y is not None and follow and draw.chance(0.7):
            y = activate(draw, y, kind) or y
        branches.append(y)
        if y is not None and draw.chance(0.15):
            draw.one_of(VIEWS[:6], y)
        while draw.chance(0.25):
            draw.something(BETWEEN)
    for y in branches if follow and draw.chance(0.4) else ():
        if y is not None:
            activate(draw, y, kind)
    if None not in branches and draw.chance(0.3):
        draw.do("function", torch.cat, branches, draw.rng.choice([0, 1, -1]))


def called(draw, path, x):
    """The result of a module, which is given its input by place or by name."""
    by_name = {"input": x} if draw.chance(0.05) else {}
    return draw.do("module", path, *(() if by_name else (x,)), **by_name)


def geometry(draw, x):
    """A function that makes layers which read `x`, batched or not."""
    rng, batched = draw.rng, x.ndim == 5 or (x.ndim > 2 and draw.chance(0.85))
    if not 2 <= x.ndim <= 5 or draw.chance(0.8 if x.ndim == 2 else 0.2):
        return lambda: nn.Linear(x.shape[-1], rng.randint(1, 4), draw.chance(0.7))
    kernel = rng.choice([1, 1, 1, 2, 3, 3, 5])
    options = {"kernel_size": kernel, "padding": kernel // 2}
    if draw.chance(0.15):
        options |= {"stride": 2, "dilation": rng.choice([1, 2])}
    elif kernel == 3 and draw.chance(0.2):
        options["padding"] = "same"
    if kernel == 3 and draw.chance(0.2):
        options["padding_mode"] = rng.choice(["circular", "reflect", "replicate"])
    conv, c_in = CONVS[x.ndim - 2 - batched], x.shape[int(batched)]
    if kernel % 2 and options["padding"] == kernel // 2 and draw.chance(0.4):
        return lambda: of_any_size(draw, conv, c_in, options)
    return lambda: conv(c_in, rng.randint(1, 4), bias=draw.chance(0.7), **options)


def of_any_size(draw, conv, c_in, options):
    """A convolution with another window, and mostly the same size of output."""
    kernel, step = draw.rng.choice([1, 3, 5]), options.get("dilation", 1)
    grown = 2 * options["padding"] - step * (options["kernel_size"] - 1)
    padding = max(0, (grown + step * (kernel - 1)) // 2)
    options = options | {"kernel_size": kernel, "padding": padding}
    return conv(c_in, draw.rng.randint(1, 4), bias=draw.chance(0.7), **options)


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
    if layer.weight.ndim > 2 and draw.chance(0.1):
        c, options = layer.in_channels, (layer.kernel_size, layer.stride, layer.padding)
        return type(layer)(c, c, *options, layer.dilation, groups=c)
    if layer.weight.ndim == 4 and draw.chance(0.3):
        layer.to(memory_format=torch.channels_last)
    return Leaf(layer) if draw.is_graph and draw.chance(0.1) else layer


def activate(draw, y, kind):
    """A kind of activation on `y`, in one of its forms."""
    settings = (draw.rng.choice(SETTINGS[kind]),) if kind in SETTINGS else ()
    settings = settings if draw.chance(0.3) else ()
    options = {}
    if draw.writes and kind in MAY_BE_IN_PLACE and draw.chance(0.4):
        options["inplace"] = True
    function, *methods = NAMES[kind]
    form = draw.rng.choice(["module", "again", "function", "method"])
    modules = draw.root.named_modules()
    paths = [path for path, module in modules if type(module) is kind]
    if form == "module" or (form == "again" and not paths):
        return called(draw, draw.add(kind(*settings, **options)), y)
    if form == "again":
        return called(draw, draw.rng.choice(paths), y)
    if form == "method" and methods:
        return draw.do("method", methods[draw.writes and draw.chance(0.5)], y)
    return draw.do("function", function, y, *settings, **options)


def draw_activation(draw):
    activate(draw, draw.tensor(), draw.rng.choice(list(NAMES)))


def draw_write(draw):
    """A write in place, to a value or a part of one."""
    x = draw.tensor()
    if draw.chance(0.4):
        part = draw_view(draw)
        x = part if draw.is_tensor(part) else x
    if draw.writes:
        draw.one_of(WRITES, x)


def draw_view(draw):
    """A value that shares memory with another, or may do so."""
    cut = draw.chance(0.15)
    return pieces(draw) if cut else draw.one_of(VIEWS, draw.tensor())


def pieces(draw):
    """One of the pieces of a value, perhaps of several tuples of pieces put together."""
    parts = draw.one_of(CUTS, draw.tensor())
    while parts is not None and draw.chance(0.3):
        put = draw.rng.choice([operator.add, operator.iadd])
        parts = draw.do("function", put, parts, draw.one_of(CUTS, draw.tensor()))
    if parts is not None and draw.chance(0.2):
        parts = draw.do("function", operator.getitem, parts, slice(0, 2))
    if parts is None:
        return None
    index = draw.rng.randrange(len(draw.of(parts)))
    return draw.do("function", operator.getitem, parts, index)


def draw_sum(draw):
    """Two values together: a residual, a gate, or one beside the other."""
    draw.one_of(SUMS, draw.tensor())


def draw_reader(draw):
    """What else reads a value: pooling, a batch norm, or a depthwise convolution."""
    x = draw.tensor(lambda t: t.ndim == 4 and t.dtype == draw.dtype)
    if x is None:
        return
    c = draw.of(x).shape[1]
    norm = nn.BatchNorm2d(c).train(draw.chance(0.2))
    pooling = [nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(1), nn.Softmax(1)]
    depthwise = nn.Conv2d(c, c, 1, groups=c)
    module = draw.rng.choice([*pooling, norm, norm, depthwise])
    called(draw, draw.add(module), x)


def draw_cast(draw):
    """From here on the other precision, for a value and for the layers to come."""
    draw.dtype = torch.float32 if draw.dtype == torch.float64 else torch.float64
    change = "float" if draw.dtype == torch.float32 else "double"
    draw.do("method", change, draw.tensor())


def draw_parameter(draw):
    """A parameter or buffer that forward reads itself, and perhaps writes to."""
    named = [*draw.root.named_parameters(), *draw.root.named_buffers()]
    paths = [path for path, tensor in named if tensor.is_floating_point()]
    if paths:
        read = draw.do("tensor", draw.rng.choice(paths))
        if draw.writes and draw.chance(0.3):
            draw.do("method", "mul_", read, 0.5)
        draw.do("function", operator.mul, read, draw.tensor())


def draw_reuse(draw):
    """A layer once more: called again, under a second name, or its weights only."""
    named = [(n, m) for n, m in draw.root.named_modules() if type(m) in layers.KINDS]
    if not named:
        return
    inner = [one for one in named if one[0].endswith(".inner")]
    path, module = draw.rng.choice([*named, *inner * 4])
    how = draw.rng.choice(["again", "named", "block", "weight", "bias", "memory"])
    if how == "block" and "block" in draw.root._modules:
        draw.root.add_module("twin", draw.root.block)
    elif how == "named":
        path = draw.name(module)
    elif how != "again":
        other, tensor = copy.deepcopy(module), "bias" if how == "bias" else "weight"
        shared = getattr(module, tensor)
        if how == "memory":
            shared = nn.Parameter(shared.detach(), shared.requires_grad)
        setattr(other, tensor, shared)
        path = draw.name(other)
    calls = [s for s in draw.root.steps if s.op == "module" and s.args]
    called_so = {id(module), id(draw.root.get_submodule(path.removesuffix(".inner")))}
    earlier = [
        s.args[0] for s in calls if id(draw.root.get_submodule(s.target)) in called_so
    ]
    if draw.chance(0.8):
        called(draw, path, draw.rng.choice(earlier) if earlier else draw.tensor())


def draw_flag(draw):
    """Something that depends on the training flag of the network, or of a part of it."""
    if not draw.is_graph:  # a graph has no flags
        paths = [path for path, _ in draw.root.named_modules()]
        use = [drop_if, double_if, shift_unless, same_if] + [write_if] * draw.writes
        path = draw.rng.choice(["", *paths])
        draw.do("flag", draw.rng.choice(use), path, draw.tensor())


def draw_mode(draw):
    """Gradients off and on again, as exported graphs have it."""
    if draw.is_graph:
        draw.do("function", torch._C._set_grad_enabled, False)
        while draw.chance(0.6):
            draw.something(BETWEEN)
        draw.do("function", torch._C._set_grad_enabled, True)


BETWEEN = {draw_write: 4, draw_view: 4, draw_activation: 1, draw_sum: 2, draw_reader: 1}
BETWEEN |= {draw_parameter: 0.4, draw_reuse: 0.6, draw_flag: 0.3}
KINDS_OF_STEPS = {**BETWEEN, draw_siblings: 9, draw_cast: 0.2, draw_mode: 0.2}


# Comparing.


def close(what, actual, expected, bound):
    """Hold tensors to tensors, within a bound relative to the largest of each."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if (a.shape, a.dtype) != (e.shape, e.dtype):
            was, wanted = (tuple(a.shape), a.dtype), (tuple(e.shape), e.dtype)
            raise Mismatch(f"{what} {index} was {was}, not {wanted}")
        a, e = a.detach().double(), e.detach().double()
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


def run(network, draw):
    """What two calls return, and what they leave in their inputs and in the state."""
    inputs = [*draw.inputs(draw.base), *draw.inputs(draw.base)]
    torch.default_generator.manual_seed(0)
    with torch.no_grad():
        outputs = [*network(*inputs[:2]), *network(*inputs[2:])]
    state = network.state_dict()  # a copied GraphModule has another order
    return [*outputs, *inputs, *(state[key] for key in sorted(state))]


def stacked_of(network):
    return {n: m for n, m in network.named_children() if isinstance(m, rewrite.Siblings)}


def gradients(network, draw):
    """Gradients by name, "" for the input; and which outputs require one."""
    base = draw.base.clone().requires_grad_()
    torch.default_generator.manual_seed(0)
    with torch.enable_grad():
        outputs = network(*draw.inputs(base))
        require = [y.requires_grad for y in outputs]
        learned = [y for y in outputs if y.requires_grad]
        weights = [torch.arange(1, y.numel() + 1).reshape(y.shape) for y in learned]
        terms = [(y * w).sum() for y, w in zip(learned, weights, strict=True)]
        sum(terms, base.sum()).backward()
    named = {"": base, **dict(network.named_parameters(remove_duplicate=False))}
    grads = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in named.items()}
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
    switches: tuple = ()  # what became of switches of the mode: "right" or "refused"


def check(seed):
    """Draw a network, fuse it, compare, in one mode and in others: an Outcome.

    Raises Mismatch.
    """
    draw = Draw(seed)
    outcome = compare(
        draw,
        with_gradients=seed % 2 == 0,
        with_loading=seed % 5 == 1,
        embed=seed % 3 == 0,
    )
    if outcome.status != "compared":
        return outcome
    switches = check_modes(draw, random.Random(seed))
    return dataclasses.replace(outcome, switches=tuple(switches))


def compare(draw, with_gradients, with_loading, embed):
    model = as_graph(draw.root) if draw.is_graph else draw.root
    try:
        expected = run(copy.deepcopy(model), draw)
    except FAILS:
        return Outcome("raised")
    try:
        plan = hfusion.plan(model, embed=embed)
    except hfusion.FusionError:
        return Outcome("untraceable")
    fused = attempt("apply", plan.apply)
    check_structure(plan, fused)
    same_state("fused", fused.state_dict(), model.state_dict())
    check_unfused(draw, model, fused, expected)
    learned = with_gradients and check_gradients(draw, model, fused)
    if with_loading:
        check_loading(draw, model, fused)
    close("fused: tensor", attempt("fused", run, fused, draw), expected, bound_of(draw))
    return Outcome(groups=plan.groups, learned=learned)


def bound_of(draw):
    tensors = [*draw.values, *draw.root.parameters()]
    single = any(getattr(tensor, "dtype", None) == torch.float32 for tensor in tensors)
    return 1e-3 if single else 1e-9


def check_structure(plan, fused):
    """The members of fused groups are called no more, and one layer is in their place."""
    nodes = [node.target for node in fused.graph.nodes if node.op == "call_module"]
    groups = [group for group in plan.groups if group.fused]
    left = [path for group in groups for path in group.members if path in nodes]
    if left or sum(path in stacked_of(fused) for path in nodes) != len(groups):
        raise Mismatch(f"{left} are still called; {fused.graph}")


def check_unfused(draw, model, fused, expected):
    """Separate layers again compute what they did, but for where memory begins."""
    separate = attempt("unfuse", hfusion.unfuse, fused)
    states = separate.state_dict(), model.state_dict()
    if draw.is_graph:  # a copied GraphModule has another order
        states = (dict(sorted(state.items())) for state in states)
    same_state("unfused", *states)
    actual = attempt("unfused", run, separate, draw)
    close("unfused: tensor", actual, expected, bound_of(draw) / 100)


def check_gradients(draw, model, fused):
    """Whether the original has gradients; raises if those of the fused differ."""
    try:
        expected, require = gradients(copy.deepcopy(model), draw)
    except FAILS:
        return False
    actual, requires = attempt("gradient", gradients, copy.deepcopy(fused), draw)
    if requires != require or set(actual) != set(expected):
        keys = set(actual) ^ set(expected)
        raise Mismatch(f"outputs require gradients: {requires}, not {require}; {keys}")
    for name, grad in expected.items():
        bound = 10 * bound_of(draw)
        close(f"gradient of {name or 'the input'}", [actual[name]], [grad], bound)
    return True


def check_loading(draw, model, fused):
    """With other weights loaded into both they agree as well."""
    model, fused = copy.deepcopy(model), copy.deepcopy(fused)
    state = {k: t * 0.5 + 0.1 if t.is_floating_point() else t
             for k, t in model.state_dict().items()}  # fmt: skip
    for network in (model, fused):
        attempt("load_state_dict", network.load_state_dict, state)
    actual = attempt("loaded", run, fused, draw)
    close("loaded: tensor", actual, run(model, draw), bound_of(draw))


def random_switch(rng, network):
    """(the path of a module, what to do with its flag, and those below, the mode)."""
    path = rng.choice(["", "", *(path for path, _ in network.named_modules())])
    return path, rng.choice(["train", "flag", "all"]), rng.random() < 0.5


def switch(network, path, how, mode):
    module = network.get_submodule(path)
    if how == "train":
        module.train(mode)
    for one in {"train": (), "flag": (module,), "all": module.modules()}[how]:
        one.training = mode


def check_modes(draw, rng):
    """Switches before a plan is applied, and afterwards: what became of each."""
    model = copy.deepcopy(as_graph(draw.root) if draw.is_graph else draw.root)
    make = hfusion.plan(model).apply
    if rng.random() < 0.3:
        make = functools.partial(hfusion.fold_batchnorm, model)
    for _ in range(rng.randint(0, 2)):
        switch(model, *random_switch(rng, model))
    try:
        fused = make()
    except hfusion.FusionError:
        yield "refused"
        return
    yield from agree_in_this_mode(draw, model, fused, "planned")
    for _ in range(3):
        how = random_switch(rng, model)
        switch(model, *how)
        try:
            switch(fused, *how)
        except hfusion.FusionError:
            yield "refused"
            return
        yield from agree_in_this_mode(draw, model, fused, how)


def agree_in_this_mode(draw, model, fused, how):
    try:
        expected = run(copy.deepcopy(model), draw)
    except FAILS:  # one number for a batch norm
        return
    try:
        actual = attempt(f"{how}: call", run, copy.deepcopy(fused), draw)
    except Mismatch as error:
        if not isinstance(error.__cause__, hfusion.FusionError):
            raise
        yield "refused"
        return
    count = 2 * len(draw.root.outputs) + 4  # where norms are folded, states differ
    close(f"{how}: tensor", actual[:count], expected[:count], bound_of(draw))
    if fused.state_dict().keys() == model.state_dict().keys():
        close(f"{how}: state", actual[count:], expected[count:], bound_of(draw))
    yield "right"


# Found by running: the model is still itself, and each call is checked.


@dataclasses.dataclass(frozen=True)
class Observed:
    """What became of one case."""

    status: str = "compared"
    groups: tuple = ()
    rounds: int = 0  # how often one product served a group
    compared: int = 0


def check_observed(seed):
    """Draw a network, run it to find siblings, fuse it, and switch what can be switched."""
    draw, rng = Draw(seed), random.Random(seed)
    model = as_graph(draw.root) if draw.is_graph else draw.root
    try:
        run(copy.deepcopy(model), draw)
    except FAILS:
        return Observed("raised")
    before = copy.deepcopy(model.state_dict())
    plan = attempt("plan", hfusion.plan, model, tuple(draw.inputs(draw.base)))
    same_state("planned", model.state_dict(), before)
    fused = attempt("apply", plan.apply)
    states = fused.state_dict(), model.state_dict()
    if draw.is_graph:  # a copied GraphModule has another order
        states = (dict(sorted(state.items())) for state in states)
    same_state("fused", *states)
    if not isinstance(fused, nn.Module) or type(fused).__name__ != type(model).__name__:
        raise Mismatch(f"a {type(model).__name__} became a {type(fused).__name__}")
    compared = agree_as_they_are(draw, model, fused, "fused")
    if seed % 2 == 0:
        check_same_gradients(draw, model, fused)
    for _ in range(3):
        how = random_switch(rng, model)
        for network in (model, fused):
            switch(network, *how)
        compared += agree_as_they_are(draw, model, fused, how)
    rounds = sum(group.rounds for group in groups_of(fused))
    if seed % 5 == 1 and runs(model, draw):
        check_loading(draw, model, fused)
    if groups_of(fused):
        separate = attempt("unfuse", hfusion.unfuse, fused)
        if groups_of(separate):
            raise Mismatch("unfused layers are still in groups")
        agree_as_they_are(draw, model, separate, "unfused", 0.01)
    return Observed(groups=plan.groups, rounds=rounds, compared=compared)


def runs(model, draw):
    """Whether the original runs in the mode that it is in now."""
    try:
        run(copy.deepcopy(model), draw)
    except FAILS:
        return False
    return True


def groups_of(network):
    members = [packed.member_of(module) for module in network.modules()]
    return {member.group for member in members if member}


def agree_as_they_are(draw, model, fused, how, exact=1):
    """Whether the original runs; raises where the fused network then does something else.

    The fused one is called itself, not a copy, so that its groups remember what they saw.
    """
    state = copy.deepcopy(model.state_dict())
    try:
        expected = run(copy.deepcopy(model), draw)
    except FAILS:
        return False
    actual = attempt(f"{how}: call", run, fused, draw)
    close(f"{how}: tensor", actual, expected, bound_of(draw) * exact)
    fused.load_state_dict(state)
    return True


def check_same_gradients(draw, model, fused):
    """While gradients are recorded nothing is fused: they have the same bits."""
    try:
        expected, require = gradients(copy.deepcopy(model), draw)
    except FAILS:
        return
    actual, requires = attempt("gradient", gradients, copy.deepcopy(fused), draw)
    if requires != require or set(actual) != set(expected):
        raise Mismatch(f"outputs require gradients: {requires}, not {require}")
    for name, grad in expected.items():
        close(f"gradient of {name or 'the input'}", [actual[name]], [grad], 0)


def test_networks_whose_siblings_a_run_found_compute_what_the_originals_do():
    outcomes, wrong = [], []
    for seed in range(CASES):
        try:
            outcomes.append(check_observed(seed))
        except Mismatch as error:
            wrong.append(f"seed {seed}: {error}\n{Draw(seed).root}")
    assert not wrong, f"{len(wrong)} of {CASES}\n" + "\n\n".join(wrong[:3])
    groups = [group for outcome in outcomes for group in outcome.groups]
    fused = sum(any(g.fused for g in o.groups) for o in outcomes)
    served = sum(outcome.rounds > 0 for outcome in outcomes)
    print(f"fused {fused}, served {served} of {len(outcomes)}; {len(groups)} groups; "
          f"{sum(o.compared for o in outcomes)} comparisons")  # fmt: skip
    assert served > len(outcomes) / 3


def failure(seed):
    """What is wrong with a case, in words, and the network; "" if nothing is."""
    try:
        check(seed)
    except Mismatch as error:
        return f"seed {seed}: {error}\n{Draw(seed).root}"
    return ""


# Why groups are refused: a part of the reason.
REASONS = ("called 2 times", "is also", "which the graph calls whole", "read by the graph",
           "memory layout", "shares memory", "may change their input", "no other layer",
           "differs", "hooks", "groups")  # fmt: skip


def test_fused_networks_compute_what_the_originals_do():
    outcomes, wrong = [], []
    for seed in range(CASES):
        try:
            outcomes.append(check(seed))
        except Mismatch:
            wrong.append(seed)
    shown = "\n\n".join(failure(seed) for seed in wrong[:3])
    assert not wrong, f"{len(wrong)} of {CASES}: seeds {wrong[:20]}\n{shown}"
    check_shares(outcomes)


def check_shares(outcomes):
    """Not that all is refused, nor that all is fused: a good share of each."""
    status = collections.Counter(outcome.status for outcome in outcomes)
    groups = [group for outcome in outcomes for group in outcome.groups]
    reasons = collections.Counter(
        part for part in REASONS for g in groups if part in g.reason
    )
    fused = sum(any(g.fused for g in o.groups) for o in outcomes)
    refused = sum(any(not g.fused for g in o.groups) for o in outcomes)
    followed = sum(g.activation is not None for g in groups)
    embedded = sum(g.window is not None for g in groups)
    learned = sum(outcome.learned for outcome in outcomes)
    switches = collections.Counter(word for o in outcomes for word in o.switches)
    print(f"{dict(status)}; fused {fused}, refused {refused}, gradients {learned}; "
          f"{len(groups)} groups, {followed} with activation, {embedded} embedded; "
          f"{reasons}; {dict(switches)}")  # fmt: skip
    assert status["raised"] + status["untraceable"] < 0.1 * len(outcomes)
    assert min(fused, refused) > len(outcomes) / 3
    assert learned > len(outcomes) / 10
    assert switches["right"] > 2 * switches["refused"] > len(outcomes) / 5
    assert followed > len(outcomes) / 20
    assert embedded > len(outcomes) / 100
    assert len(outcomes) < 300 or len(reasons) > 7


# Deliberate mistakes: each is noticed within a few hundred cases.


def without(rule):
    rules = tuple(one for one in siblings.RULES if one is not rule)
    return siblings, "RULES", rules


def wrong_order(stacked, x):
    return tuple(
        stacked.product(x).unsafe_split_with_sizes(stacked.sizes[::-1], stacked.dim)
    )


def padding_left(layers):
    window = common(layers)
    return dataclasses.replace(window, padding=layers[0].padding)


def in_the_corner(window, layer):
    sides = zip(window.kernel_size, layer.kernel_size, strict=True)
    return tuple(large - small for large, small in sides)


def rows_shuffled(weights, biases):
    weight, bias = stack_parameters(weights, biases)
    return nn.Parameter(weight.detach().roll(1, 0), weight.requires_grad), bias


stack_parameters, common = layers.stack_parameters, embedding.common
MISTAKES = {
    "no writes known": (effects, "written", lambda node, modules: []),
    "nothing shares memory": (effects, "_sources", lambda node, modules: []),
    "everything known": (effects, "known", lambda node, modules: True),
    "no writes in place as functions": (effects, "_asks_for_inplace", lambda node: False),
    "writes forgotten": (effects.Memory, "version", lambda memory, node, reader: 0),
    "views stay": (effects.Memory, "views", lambda memory, node: []),
    "layers called twice": without(siblings.called_again),
    "layers known elsewhere": without(siblings.known_elsewhere),
    "shared tensors": without(siblings.shared_tensors),
    "layout": without(siblings.layout_matters),
    "unfit layers": without(siblings.unfit),
    "no flags known": (tracing, "_traced_in", lambda *_: None),
    "flags not looked at when called": (tracing.Network, "_check_first", lambda _: None),
    "both modes alike": (tracing, "_same", lambda found, other: True),
    "unlike layers": (layers, "unlike", lambda labelled, embed=False: ""),
    "split in the wrong order": (layers.Stacked, "forward", wrong_order),
    "rows shuffled": (layers, "stack_parameters", rows_shuffled),
    "padding not moved": (embedding, "common", padding_left),
    "embedded in the corner": (embedding.Window, "margins", in_the_corner),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_noticed(mistake, monkeypatch):
    monkeypatch.setattr(*mistake)
    assert any(failure(seed) for seed in range(500))
