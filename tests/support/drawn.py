"""Random networks: a list of some ten to sixty steps for each seed, for the tests.

Groups of siblings, and between them whatever may come in their way: writes in place, views,
shared weights, layers called twice, functions that nobody can see into, and choices that
forward makes. Each step is carried out when it is drawn, and what torch refuses is left
out, so that the networks run. Half of them are modules, half are given as graphs.
"""

import copy
import dataclasses
import functools
import itertools
import operator
import random
import types

import torch
from torch import fx, nn
from torch.nn import functional as F

from hfusion import stacking

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# With what torch refuses a step, or a network whose gradients it cannot find.
FAILS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, UserWarning)


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


# What forward may decide: by a training flag, by a flag of its own, or by its numbers.

TURNED, NUMBERS = "turned", "numbers"


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


def either(on, x, layers):
    return layers[on](x)


def in_this_order(on, x, layers):
    """Which of two siblings is called first."""
    found = {at: layers[at](x) for at in ((0, 1) if on else (1, 0))}
    return found[0], found[1]


def second_if(on, x, layers):
    return layers[0](x), layers[1](x if on else x * 2)


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
    if step.op == "flag":
        by, x, *paths = args
        both = [[root.get_submodule(path) for path in paths]] if paths else []
        return called(decision(root, by, x), x, *both)
    if step.op == "module":
        called = root.get_submodule(called)
    elif step.op == "opaque":
        called = globals()[called]  # by name, since that is what fx.wrap replaces
    return called(*args, **kwargs)


def decision(root, by, x):
    """Which way forward goes: by TURNED, NUMBERS or the flag of the module at a path."""
    if by == TURNED:
        return root.turned
    return bool(x.sum() > 0) if by == NUMBERS else root.get_submodule(by).training


class Program(nn.Module):
    """A network that carries out its steps."""

    def __init__(self):
        super().__init__()
        self.steps, self.outputs, self.turned = [], (), False

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


def network_of(draw):
    """What is planned: the program itself, or the graph of it."""
    return as_graph(draw.root) if draw.is_graph else draw.root


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

    def hides_writes(self):
        """Whether it may write through .data, where autograd does not count."""
        return self.writes and any("data" in step.args for step in self.root.steps)

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
    form = "module" if draw.chance(0.4) else None
    for _ in range(draw.rng.randint(2, 4)):
        if odd and draw.chance(0.2):
            new = geometry(draw, draw.of(source))
        y = called(draw, draw.add(unusual(draw, new()) if odd else new()), source)
        if y is not None and follow and draw.chance(0.95 if form else 0.7):
            y = activate(draw, y, kind, form) or y
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


def activate(draw, y, kind, form=None):
    """A kind of activation on `y`, in one of its forms unless that is given."""
    settings = (draw.rng.choice(SETTINGS[kind]),) if kind in SETTINGS else ()
    settings = settings if draw.chance(0.3) else ()
    options = {}
    if draw.writes and kind in MAY_BE_IN_PLACE and draw.chance(0.4):
        options["inplace"] = True
    function, *methods = NAMES[kind]
    form = form or draw.rng.choice(["module", "again", "function", "method"])
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
    named = [(n, m) for n, m in draw.root.named_modules() if type(m) in stacking.KINDS]
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
    """Something that depends on the mode of a module, on a flag or on the numbers."""
    if not draw.is_graph:  # a graph has no flags
        use = [drop_if, double_if, shift_unless, same_if] + [write_if] * draw.writes
        draw.do("flag", draw.rng.choice(use), decided_by(draw), draw.tensor())


def decided_by(draw):
    """Seldom by numbers: there torch.fx stops."""
    if draw.chance(0.6):
        return NUMBERS if draw.chance(0.15) else TURNED
    return draw.rng.choice(["", *(path for path, _ in draw.root.named_modules())])


def draw_way(draw):
    """Two layers, of which forward decides what they are called with, and when."""
    x = draw.tensor(lambda t: t.ndim >= 1 and t.dtype == draw.dtype)
    if x is None or draw.is_graph:
        return
    new = geometry(draw, draw.of(x))
    way, paths = draw.rng.choice([either, in_this_order, second_if]), []
    for _ in range(2):
        paths.append(draw.add(new()))
    found = draw.do("flag", way, decided_by(draw), x, *paths)
    if found is not None and way is not either:
        for index in range(2):
            draw.do("function", operator.getitem, found, index)


def draw_mode(draw):
    """Gradients off and on again, as exported graphs have it."""
    if draw.is_graph:
        draw.do("function", torch._C._set_grad_enabled, False)
        while draw.chance(0.6):
            draw.something(BETWEEN)
        draw.do("function", torch._C._set_grad_enabled, True)


BETWEEN = {draw_write: 4, draw_view: 4, draw_activation: 1, draw_sum: 2, draw_reader: 1}
BETWEEN |= {draw_parameter: 0.4, draw_reuse: 0.6, draw_flag: 0.3}
KINDS_OF_STEPS = {**BETWEEN, draw_siblings: 9, draw_way: 1, draw_cast: 0.2, draw_mode: 0.2}
