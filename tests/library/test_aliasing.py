"""aliasing.py: who shares memory with whom, and who writes, on graphs of a few nodes."""

import math
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from hfusion import stacking
from hfusion.finding import _names, aliasing
from hfusion.finding.aliasing import Memory


class Built:
    """A graph made by hand: b = Built(a module…), then b.x, b.f(…), b.m(…), b.t(…)."""

    def __init__(self, **modules):
        self.graph, self.modules = fx.Graph(), {"": nn.Module(), **modules}
        self.x, self.z = self.graph.placeholder("x"), self.graph.placeholder("z")

    def f(self, function, *args, **kwargs):
        return self.graph.call_function(function, args, kwargs)

    def m(self, method, *args, **kwargs):
        return self.graph.call_method(method, args, kwargs)

    def t(self, path, *args):
        return self.graph.call_module(path, args)

    def written(self, node):
        return aliasing.written(node, self.modules)

    def memory(self):
        return Memory(self.graph, self.modules)


def shares(b, first, second):
    """Whether the two may share memory: a write to one counts as a write to the other."""
    write = b.m("add_", first, 1)
    return write in b.memory().writes(second)


# written: which inputs a call may write to.


def nothing(b, node):
    return []


def first(b, node):
    return [b.x]


def both(b, node):
    return [b.x, b.z]


def own(x):
    """A function of somebody else's."""
    return x


class Own(nn.Module):
    """A module of somebody else's."""

    def forward(self, x):
        return x


class OwnReLU(nn.ReLU):
    """Whose forward may do what it likes."""


def hooked(register):
    relu = nn.ReLU()
    getattr(relu, register)(lambda *args: None)
    return relu


def own_forward():
    relu = nn.ReLU()
    relu.forward = lambda x: x.add_(1)
    return relu


ADD_OUT = torch.ops.aten.add.out
FOREACH = torch.ops.aten._foreach_add_.Scalar

WRITTEN = {
    "placeholder": (lambda b: b.x, nothing),
    "get_attr": (lambda b: b.graph.create_node("get_attr", "", (), {}), nothing),
    "output": (lambda b: b.graph.output(b.x), nothing),
    "function": (lambda b: b.f(torch.add, b.x, b.z), nothing),
    "function_": (lambda b: b.f(torch.relu_, b.x), first),
    "F.relu": (lambda b: b.f(F.relu, b.x), nothing),
    "F.relu in place, by name": (lambda b: b.f(F.relu, b.x, inplace=True), first),
    "F.relu in place, by place": (lambda b: b.f(F.relu, b.x, True), first),
    "F.relu not in place, by place": (lambda b: b.f(F.relu, b.x, False), nothing),
    "F.leaky_relu by place": (lambda b: b.f(F.leaky_relu, b.x, 0.1, True), first),
    "F.dropout in place": (lambda b: b.f(F.dropout, b.x, 0.5, True, True), first),
    "F.dropout in training": (lambda b: b.f(F.dropout, b.x, 0.5, True, False), nothing),
    "out=": (lambda b: b.f(torch.add, b.x, 1, out=b.z), both),
    "out=None": (lambda b: b.f(torch.add, b.x, 1, out=None), nothing),
    "method": (lambda b: b.m("relu", b.x), nothing),
    "method_": (lambda b: b.m("copy_", b.x, b.z), first),
    "__and__": (lambda b: b.m("__and__", b.x, b.z), nothing),
    "__iadd__": (lambda b: b.m("__iadd__", b.x, b.z), first),
    "__setitem__": (lambda b: b.m("__setitem__", b.x, 0, b.z), first),
    "setitem": (lambda b: b.f(operator.setitem, b.x, 0, b.z), first),
    "getitem": (lambda b: b.f(operator.getitem, b.x, 0), nothing),
    "shape": (lambda b: b.f(getattr, b.x, "shape"), nothing),
    "math": (lambda b: b.f(math.sqrt, b.x), nothing),
    "foreach": (lambda b: b.f(torch._foreach_add_, [b.x, b.z], 1), both),
    "relu_.default": (lambda b: b.f(torch.ops.aten.relu_.default, b.x), first),
    "relu.default": (lambda b: b.f(torch.ops.aten.relu.default, b.x), nothing),
    "add_.Tensor": (lambda b: b.f(torch.ops.aten.add_.Tensor, b.x, b.z), first),
    "add_.Tensor by name": (
        lambda b: b.graph.call_function(
            torch.ops.aten.add_.Tensor, (), {"other": b.z, "self": b.x}
        ),
        first,
    ),
    "add.out": (lambda b: b.f(ADD_OUT, b.z, b.z, out=b.x), first),
    "aten foreach": (lambda b: b.f(FOREACH, [b.x, b.z], 1), both),
    "add_ of aten": (lambda b: b.f(torch.ops.aten.add_, b.x, b.z), first),
    "batch_norm": (lambda b: b.f(F.batch_norm, b.z, b.x, None, training=True), first),
    "function of somebody": (lambda b: b.f(own, b.x, b.z), both),
    "module": (lambda b: b.t("relu", b.x), nothing),
    "module in place": (lambda b: b.t("relu_", b.x), first),
    "module of somebody": (lambda b: b.t("own", b.x), first),
    "subclass": (lambda b: b.t("own_relu", b.x), first),
    "module with a hook": (lambda b: b.t("hooked", b.x), first),
    "module with a hook before": (lambda b: b.t("hooked_before", b.x), first),
    "module with its own forward": (lambda b: b.t("own_forward", b.x), first),
    "stacked layer": (lambda b: b.t("stacked", b.x), nothing),
}  # fmt: skip


@pytest.fixture
def b():
    return Built(
        relu=nn.ReLU(),
        relu_=nn.ReLU(inplace=True),
        own=Own(),
        own_relu=OwnReLU(),
        hooked=hooked("register_forward_hook"),
        hooked_before=hooked("register_forward_pre_hook"),
        own_forward=own_forward(),
        stacked=stacking.stack([nn.Linear(2, 2), nn.Linear(2, 1)]),
        dropout=nn.Dropout(),
        conv=nn.Conv2d(3, 2, 1),
        identity=nn.Identity(),
        flatten=nn.Flatten(),
        bn=nn.BatchNorm1d(2),
        bn_eval=nn.BatchNorm1d(2).eval(),
        bn_no_track=nn.BatchNorm1d(2, track_running_stats=False),
        table=nn.Embedding(3, 2),
        table_max=nn.Embedding(3, 2, max_norm=1.0),
        own_conv=nn.Sequential(Own(), nn.Conv2d(3, 2, 1)),
    )


@pytest.mark.parametrize(("make", "expected"), WRITTEN.values(), ids=WRITTEN)
def test_written(b, make, expected):
    node = make(b)
    assert b.written(node) == expected(b, node)


OPERATORS = "iadd iand iconcat ifloordiv ilshift imatmul imod imul ior ipow irshift isub"


@pytest.mark.parametrize("name", [*OPERATORS.split(), "itruediv", "ixor"])
def test_operators_in_place_write_to_their_first_operand(b, name):
    assert b.written(b.f(getattr(operator, name), b.x, b.z)) == [b.x]
    if name not in ("iand", "ior"):  # and_ and or_ look as if they wrote; so be it
        assert b.written(b.f(getattr(operator, name[1:]), b.x, b.z)) == []


@pytest.fixture(scope="module")
def someones():
    """An operator that somebody registered, which says that it writes to nothing."""
    library = torch.library.Library("hfusion_test", "DEF")
    library.define("strange(Tensor x) -> Tensor")
    library.impl("strange", lambda x: x.clone(), "CPU")
    yield torch.ops.hfusion_test.strange
    library._destroy()


def test_operators_that_others_registered_are_unknown(b, someones):
    for target in (someones, someones.default):
        node = b.f(target, b.x)
        assert not aliasing.known(node, b.modules)
        assert shares(b, b.x, node)
    assert b.written(b.f(someones, b.x)) == [b.x]
    assert aliasing.known(b.f(torch.ops.aten.relu.default, b.x), b.modules)


# Memory: what may be a part of what.

ALIASES = {
    "view": lambda b, y: b.m("view", y, -1),
    "transpose": lambda b, y: b.m("transpose", y, 0, 1),
    "reshape": lambda b, y: b.f(torch.reshape, y, (-1,)),
    "flatten": lambda b, y: b.t("flatten", y),
    "getitem": lambda b, y: b.f(operator.getitem, y, 0),
    "a part of chunk": lambda b, y: b.f(operator.getitem, b.m("chunk", y, 2), 0),
    "split, then added": lambda b, y: b.f(
        operator.getitem, b.f(operator.add, b.m("split", y, 1), b.m("split", y, 1)), 3
    ),
    "split, then concatenated": lambda b, y: b.f(
        operator.getitem, b.f(operator.concat, b.m("split", y, 1), ()), 0
    ),
    "split, doubled": lambda b, y: b.f(
        operator.getitem, b.f(operator.mul, b.f(torch.split, y, 1), 2), 0
    ),
    "unbind of a view": lambda b, y: b.f(
        operator.getitem, b.f(torch.unbind, b.m("t", y)), 1
    ),
    "T": lambda b, y: b.f(getattr, y, "T"),
    "data": lambda b, y: b.f(getattr, y, "data"),
    "detach": lambda b, y: b.m("detach", y),
    "relu_": lambda b, y: b.m("relu_", y),
    "F.relu in place": lambda b, y: b.f(F.relu, y, inplace=True),
    "F.dropout": lambda b, y: b.f(F.dropout, y, 0.5, False),
    "dropout": lambda b, y: b.t("dropout", y),
    "identity": lambda b, y: b.t("identity", y),
    "module in place": lambda b, y: b.t("relu_", y),
    "out=": lambda b, y: b.f(torch.add, b.z, 1, out=y),
    "aten view": lambda b, y: b.f(torch.ops.aten.view.default, y, [-1]),
    "function of somebody": lambda b, y: b.f(own, y),
    "module of somebody": lambda b, y: b.t("own", y),
}

APART = {
    "add": lambda b, y: b.f(torch.add, y, 1),
    "operator.add": lambda b, y: b.f(operator.add, y, y),
    "convolution": lambda b, y: b.t("conv", y),
    "relu": lambda b, y: b.t("relu", y),
    "F.relu": lambda b, y: b.f(F.relu, y),
    "clone": lambda b, y: b.m("clone", y),
    "cat": lambda b, y: b.f(torch.cat, [y, y]),
    "softmax": lambda b, y: b.f(F.softmax, y, dim=0),
    "batch_norm": lambda b, y: b.f(F.batch_norm, y, None, None, training=True),
    "shape": lambda b, y: b.f(getattr, y, "shape"),
    "size": lambda b, y: b.m("size", y, 0),
    "view of a clone": lambda b, y: b.m("view", b.m("clone", y), -1),
}


@pytest.mark.parametrize("make", ALIASES.values(), ids=ALIASES)
def test_what_may_share_memory(b, make):
    y = b.m("clone", b.x)
    assert shares(b, y, make(b, y))


@pytest.mark.parametrize("make", APART.values(), ids=APART)
def test_what_has_memory_of_its_own(b, make):
    y = b.m("clone", b.x)
    result = make(b, y)
    assert not shares(b, y, result)
    assert not shares(b, y, b.m("view", result, -1))


def test_weights_put_together_are_new(b):
    weight = b.graph.get_attr("weight")
    assert not shares(b, weight, b.f(operator.add, weight, weight))


def test_a_tuple_taken_several_times_has_its_old_parts(b):
    """As x may be one: (y, z) * len(y) is (y, z, y, z, …)."""
    assert shares(b, b.x, b.f(operator.mul, b.x, b.m("size", b.z, 0)))


def test_results_that_torch_calls_new_are_new():
    """What `NEW` and `NEW_MODULES` claim, asked of torch itself."""
    x = torch.rand(2, 4, 8)
    calls = {
        "clamp": lambda: x.clamp(-9, 9),
        "cat": lambda: torch.cat([x]),
        "pow": lambda: x.pow(1),
        "abs": lambda: x.abs(),
        "relu": lambda: F.relu(x),
        "mean": lambda: x[:1].mean(0),
        "sum": lambda: x[:1].sum(0),
        "avg_pool1d": lambda: F.avg_pool1d(x, 1),
        "max_pool1d": lambda: F.max_pool1d(x, 1),
        "adaptive_avg_pool1d": lambda: F.adaptive_avg_pool1d(x, 8),
        "adaptive_avg_pool2d": lambda: F.adaptive_avg_pool2d(x, (4, 8)),
        "adaptive_avg_pool3d": lambda: F.adaptive_avg_pool3d(x[None], (2, 4, 8)),
        "max_pool2d": lambda: F.max_pool2d(x, 1),
        "softplus": lambda: F.softplus(x),
        "stack": lambda: torch.stack([x]),
        "layer_norm": lambda: F.layer_norm(x, (8,)),
    }
    assert set(calls) <= _names.NEW
    for name, call in calls.items():
        for mode in (torch.no_grad, torch.enable_grad):
            with mode():
                assert call().untyped_storage()._cdata != x.untyped_storage()._cdata, name


def test_inputs_are_one_memory():
    """A caller may pass one tensor twice."""
    b = Built()
    write = b.m("add_", b.z, 1)
    b.m("relu", b.x)
    assert b.memory().writes(b.x) == [write]


def test_inputs_and_the_models_own_tensors_are_one_memory():
    b = Built()
    b.modules[""].scale = nn.Parameter(torch.ones(2))
    own = b.graph.create_node("get_attr", "scale", (), {})
    write = b.m("add_", own, 1)
    assert b.memory().writes(b.x) == [write]


def test_a_new_value_is_not_touched_by_a_write_to_the_inputs():
    b = Built()
    y = b.m("clone", b.x)
    b.m("add_", b.x, 1)
    assert b.memory().writes(y) == []


@pytest.mark.parametrize("statistic", ["running_mean", "num_batches_tracked", "weight"])
def test_a_batch_norm_writes_to_what_the_graph_reads_of_it(b, statistic):
    own = b.graph.create_node("get_attr", f"bn.{statistic}", (), {})
    node = b.t("bn", b.m("clone", b.x))
    assert b.memory().writes(own) == [node]


OWN = [  # (a tensor that the graph reads, does the module that owns it write to it)
    ("bn_eval.running_mean", True),  # once it is switched to training mode
    ("bn_no_track.weight", False),
    ("conv.weight", False),
    ("table.weight", False),
    ("table_max.weight", True),  # it scales down the rows that it looks up
    ("own_conv.1.weight", True),  # who knows
]


@pytest.mark.parametrize(("tensor", "writes"), OWN)
def test_which_modules_write_to_tensors_of_their_own(b, tensor, writes):
    path = tensor.partition(".")[0]
    b.modules["own_conv.1"] = b.modules["own_conv"][1]
    own = b.graph.create_node("get_attr", tensor, (), {})
    node = b.t(path, b.m("clone", b.x))
    assert b.memory().writes(own) == [node] * writes


def test_an_embedding_with_a_largest_norm_does_write_to_its_table(b):
    for path, kept in (("table", True), ("table_max", False)):
        table = b.modules[path]
        nn.init.constant_(table.weight, 10)
        with torch.no_grad():
            table(torch.arange(3))
        assert bool((table.weight == 10).all()) == kept


def test_another_module_does_not_write_to_what_the_graph_reads(b):
    own = b.graph.create_node("get_attr", "bn.running_mean", (), {})
    b.t("conv", b.m("clone", b.x))
    assert b.memory().writes(own) == []


# Versions and modes.


def test_versions_count_the_writes_before_a_reader(b):
    y = b.m("clone", b.x)
    readers = [b.m("sin", y)]
    b.m("add_", b.m("view", y, -1), 1)
    readers += [b.m("sin", y), b.m("sin", y)]
    b.f(operator.setitem, y, 0, 1)
    readers += [b.m("sin", y)]
    memory = b.memory()
    versions = [memory.version(y, reader) for reader in readers]
    assert versions == [(0, 0), (1, 0), (1, 0), (2, 0)]


def test_a_writer_itself_reads_the_old_numbers(b):
    y = b.m("clone", b.x)
    write = b.m("relu_", y)
    memory = b.memory()
    assert memory.version(y, write) == (0, 0)


def test_between_names_the_first_change():
    b = Built()
    y = b.m("clone", b.x)
    before = b.m("add_", y, 1)
    first = b.m("sin", y)
    write = b.m("mul_", y, 2)
    b.f(torch._C._set_grad_enabled, False)
    last = b.m("sin", y)
    b.m("add_", y, 1)
    memory = b.memory()
    assert memory.between(y, first, last) is write
    assert memory.between(y, before, last) is before


def test_every_switch_of_a_mode_counts():
    b = Built()
    y = b.m("clone", b.x)
    readers = [b.m("sin", y)]
    off = b.f(torch._C._set_grad_enabled, False)
    readers += [b.m("sin", y)]
    enter = b.f(torch.amp.autocast_mode._enter_autocast, "cpu", None, True, None)
    readers += [b.m("sin", y)]
    b.f(torch.amp.autocast_mode._exit_autocast, enter)
    readers += [b.m("sin", y)]
    memory = b.memory()
    assert [memory.mode(reader) for reader in readers] == [0, 1, 2, 3]
    assert memory.version(y, readers[2]) == (0, 2)
    assert memory.between(y, readers[0], readers[-1]) is off


def test_the_modes_are_what_torch_calls_them():
    functions = [
        torch._C._set_grad_enabled,
        torch.amp.autocast_mode._enter_autocast,
        torch.amp.autocast_mode._exit_autocast,
    ]
    assert {function.__name__ for function in functions} == _names.MODES


# Layout.

STRICT = {
    "as_strided": lambda b, y: b.f(torch.as_strided, y, (2,), (1,)),
    "stride": lambda b, y: b.m("stride", y, 0),
    "is_contiguous": lambda b, y: b.m("is_contiguous", y),
    "data_ptr": lambda b, y: b.m("data_ptr", y),
    "view_as": lambda b, y: b.m("view_as", y, b.z),
    "view(dtype)": lambda b, y: b.m("view", y, torch.int32),
    "view(dtype=)": lambda b, y: b.m("view", y, dtype=torch.int32),
    "numpy": lambda b, y: b.m("numpy", y),
    "function of somebody": lambda b, y: b.f(own, y),
    "module of somebody": lambda b, y: b.t("own", y),
    "aten as_strided": lambda b, y: b.f(torch.ops.aten.as_strided.default, y, [2], [1]),
    "aten view": lambda b, y: b.f(torch.ops.aten.view.default, y, [-1]),
}
LAX = {
    "view": lambda b, y: b.m("view", y, -1),
    "reshape": lambda b, y: b.m("reshape", y, -1),
    "contiguous": lambda b, y: b.m("contiguous", y),
    "convolution": lambda b, y: b.t("conv", y),
    "add": lambda b, y: b.f(operator.add, y, 1),
    "output": lambda b, y: b.graph.output(y),
}
COPIES = {
    "reshape": lambda b, y: b.m("reshape", y, -1),
    "torch.flatten": lambda b, y: b.f(torch.flatten, y),
    "contiguous": lambda b, y: b.m("contiguous", y),
    "view": lambda b, y: b.m("view", y, -1),
    "flatten": lambda b, y: b.t("flatten", y),
    "to": lambda b, y: b.m("to", y, memory_format=torch.contiguous_format),
}


@pytest.mark.parametrize("make", STRICT.values(), ids=STRICT)
def test_who_counts_on_the_layout(b, make):
    y = b.m("clone", b.x)
    reader = make(b, b.m("transpose", y, 0, 1))
    assert b.memory().counts_on_layout(y) is reader


@pytest.mark.parametrize("make", LAX.values(), ids=LAX)
def test_who_does_not_count_on_the_layout(b, make):
    y = b.m("clone", b.x)
    make(b, y)
    assert b.memory().counts_on_layout(y) is None


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_in_place_of_a_view_matters_once_somebody_writes(b, make):
    y = b.m("clone", b.x)
    part = make(b, y)
    assert b.memory().counts_on_layout(y) is None
    b.m("add_", y, 1)
    assert b.memory().counts_on_layout(y) is part


def test_views_are_the_calls_of_view_on_the_memory(b):
    y = b.m("clone", b.x)
    views = [b.m("view", y, -1)]
    views += [b.m("view", b.m("transpose", y, 0, 1), 2, 2)]
    b.m("reshape", y, -1)
    b.m("view", b.z, -1)
    assert b.memory().views(y) == views


def test_names():
    b = Built(relu=nn.ReLU())
    named = {
        "relu": b.f(F.relu, b.x),
        "shape": b.f(getattr, b.x, "shape"),
        "sum": b.m("sum", b.x),
        "ReLU": b.t("relu", b.x),
    }
    assert [aliasing.name(node, b.modules) for node in named.values()] == list(named)


def test_an_item_of_what_may_be_a_list_is_not_surely_a_tensor():
    graph = fx.Graph()
    x = graph.placeholder("x")
    parts = graph.call_function(torch.chunk, (x, 2))
    given, part = (graph.call_function(operator.getitem, (v, 0)) for v in (x, parts))
    assert not aliasing._is_tensor(given, {})
    assert aliasing._is_tensor(part, {})
