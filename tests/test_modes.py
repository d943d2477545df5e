"""modes.py: whatever is switched, and when: the model's result, or a FusionError."""

import contextlib
import copy
import inspect
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from forks import constant_decides, decides, drops, net, siblings
from torch import fx, nn

from hfusion import FusionError, fold_batchnorm, fuse, layers, modes, plan, unfuse
from hfusion.tracing import trace

X = torch.arange(6.0).reshape(2, 3)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def result(model):
    torch.manual_seed(0)
    return model(X)


def check_same(actual, expected):
    """Two results agree, and not because of zeros."""
    torch.testing.assert_close(result(actual), result(expected))
    assert result(expected)[0].abs().sum() > 0


def right_or_refused(fused, model, switch=lambda m: None):
    """Whether a fused network, switched as the model is, does as it does, or says no."""
    model = copy.deepcopy(model)  # the next switch shall find it as it was
    switch(model)
    try:
        switch(fused)
        actual = result(fused)
    except FusionError as error:
        assert "mode" in str(error)  # noqa: PT017
        return False
    torch.testing.assert_close(actual, result(model))
    return True


# Forwards that look at flags.


def asks_a_block(self, x):
    return self.q(x) * (2 if self.block.training else 3), self.k(x)


def asks_a_layer(self, x):
    return F.dropout(self.q(self.drop(x)), 0.5, training=self.drop.training), self.k(x)


def asks_a_sibling(self, x):
    return self.q(x) * (2 if self.k.training else 3), self.k(x)


def asks_both(self, x):
    """With all flags turned over, from a mixed state, it answers the same."""
    unlike = self.training != self.block.training
    return self.q(x) * (2 if unlike else 3), self.k(x)


def asks_one_after_the_other(self, x):
    if self.training and self.block.training:
        x = x * 2
    return self.q(x), self.k(x)


def asks_all(self, x):
    awake = sum(module.training for module in self.modules())
    return self.q(x) * (awake + 1), self.k(x)


def asks_the_dict(self, x):
    return self.q(x) * (2 if self.__dict__["training"] else 3), self.k(x)


def in_a_block(self, x):
    return self.q(self.block(x)[0]), self.k(x)


def other_siblings(self, x):
    return self.q(x), self.k(x if self.training else x.relu())


FORWARDS = (
    drops, decides, constant_decides, asks_a_block, asks_a_layer, asks_a_sibling, asks_both,
    asks_one_after_the_other, asks_all, asks_the_dict, in_a_block, other_siblings,
)  # fmt: skip


class Block(nn.Module):
    """A class of its own, so that it can be pickled."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(3, 3), nn.Linear(3, 3)

    forward = drops


def asking(forward):
    """A model with this forward; its block looks at its own flag."""
    model = net(forward, block=Block(), drop=nn.Dropout(0.5))
    type(model).__reduce__ = lambda self: (asking, (forward,), self.__dict__)
    return model


def set_flags(*paths):
    def switch(model):
        for path in paths:
            module = model.get_submodule(path)
            module.training = not module.training

    return switch


def set_all(model):
    for module in model.modules():
        module.training = False


SWITCHES = {
    "eval": lambda model: model.eval(),
    "train": lambda model: model.train(),
    "train(False)": lambda model: model.train(False),
    "block": lambda model: model.block.train(not model.block.training),
    "layer": lambda model: model.drop.train(not model.drop.training),
    "sibling": lambda model: model.k.train(not model.k.training),
    "flag": set_flags(""),
    "flag of the block": set_flags("block"),
    "flags of both": set_flags("", "block"),
    "flag of a layer": set_flags("drop"),
    "all flags": set_all,
}
STARTS = {
    "training": lambda model: model.train(),
    "eval": lambda model: model.eval(),
    "block frozen": lambda model: model.block.eval(),
    "block awake": lambda model: model.eval().block.train(),
}
by_forward = pytest.mark.parametrize("forward", FORWARDS)
by_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
by_switch = pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)


@by_forward
@by_start
def test_a_mode_that_is_switched_before_apply(forward, start):
    refused = []
    for name, switch in SWITCHES.items():
        model = asking(forward)
        start(model)
        found = plan(model)
        switch(model)
        try:
            fused = found.apply()
        except FusionError as error:
            assert str(error).endswith("; plan it again")  # noqa: PT017
            refused.append(name)
            continue
        check_same(fused, model)
        for later in SWITCHES.values():
            right_or_refused(copy.deepcopy(fused), model, later)
    if forward is not other_siblings:
        assert {*refused} <= {"block", "sibling"}  # siblings of two modes


def again(fused):
    return pickle.loads(pickle.dumps(fused))


def within(fused):
    """In a bigger network that is fused as well."""
    return fuse(nn.Sequential(fused))[0]


MADE = {
    "itself": lambda fused: fused,
    "deepcopy": copy.deepcopy,
    "deepcopies": lambda fused: copy.deepcopy(copy.deepcopy(fused)),
    "copy": copy.copy,
    "pickle": again,
    "fused twice": fuse,
    "planned again": lambda fused: plan(fused).apply(),
    "unfused": unfuse,
    "fused anew": lambda fused: fuse(unfuse(fused)),
    "folded": fold_batchnorm,
    "recompiled": lambda fused: (fused.recompile(), fused)[1],
    "edited": lambda fused: (setattr(fused, "graph", fused.graph), fused)[1],
}


@by_forward
@by_start
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_network_that_is_switched(forward, start, make):
    model = asking(forward)
    start(model)
    made = make(fuse(model))
    check_same(made, model)
    kept = []
    for name, switch in SWITCHES.items():
        if right_or_refused(copy.deepcopy(made), model, switch):
            kept.append(name)
    # Never refused: what does not switch anything.
    same = "train" if all(m.training for m in model.modules()) else "eval"
    if len({m.training for m in model.modules()}) == 1:
        assert same in kept


@pytest.mark.parametrize("full", [False, True])
def test_a_compiled_network_that_is_switched(full):
    fused = fuse(asking(in_a_block).eval())
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="eager", fullgraph=full)
    torch.testing.assert_close(compiled(X), fused(X))
    fused.block.train()
    # Dynamo has an error of its own where it may not break the graph.
    error = torch._dynamo.exc.Unsupported if full else FusionError
    with pytest.raises(error, match=r"block was in eval mode|Observed exception"):
        compiled(X)
    with pytest.raises(FusionError, match=r"^mode was True; "):
        compiled.train()
    fused.block.eval()
    torch.testing.assert_close(compiled(X), fused(X))


def test_part_of_a_larger_network_that_is_switched():
    outer = nn.Sequential(asking(drops).eval())
    for fused in (fuse(outer), fuse(nn.Sequential(fuse(outer[0])))):
        check_same(fused, outer)
        fused.get_submodule("0").training = True
        with pytest.raises(FusionError, match=r"^0 was in eval mode when this graph was "):
            fused(X)


def test_what_is_said_when_a_module_is_switched():
    fused = fuse(asking(in_a_block).eval())
    fused.block.train()
    for refused in (lambda: fused(X), lambda: fused.forward(X), lambda: fuse(fused)):
        with pytest.raises(FusionError) as error:
            refused()
        assert str(error.value) == (
            "block was in eval mode when this graph was traced, and is in training mode "
            "now, where forward may do something else: switch it back, or switch the "
            "original, and fuse it again"
        )


def test_what_is_said_when_other_layers_are_siblings_in_the_new_mode():
    model = net(other_siblings)
    found = plan(model)
    model.eval()
    with pytest.raises(FusionError) as error:
        found.apply()
    assert str(error.value) == (
        "model was planned in training mode and is in eval mode now: {q,k} are no "
        "siblings any more; plan it again"
    )


@by_forward
def test_the_readmes_order(forward):
    """A new model is in training mode."""
    model = asking(forward)
    found = plan(model)
    model.eval()
    if forward is other_siblings:
        return
    fused = found.apply()
    assert not any(module.training for module in fused.modules())
    check_same(fused, model)
    assert fused.eval() is fused


def test_only_networks_that_depend_on_flags_check_them():
    indifferent = fuse(net(siblings))
    assert trace(net(siblings)).traced_in is None
    assert not hasattr(type(indifferent).forward, "__wrapped__")
    assert hasattr(type(fuse(net(drops))).forward, "__wrapped__")


def never(self, x):
    """It looks at its flag, and nothing comes of it."""
    return F.dropout(self.q(x), 0.0, self.training and False), self.k(x)


def test_a_flag_that_makes_no_difference_can_be_switched():
    model = net(never)
    fused = fuse(model)
    for mode in (False, True, False):
        check_same(fused.train(mode), model)
    assert trace(model).traced_in == ({"": True}, {"": True}, {"": False})


# What a graph could not know.


def switches_a_layer(self, x):
    self.drop.eval()
    q = self.q(self.drop(x))
    self.drop.train()
    return q, self.k(x)


def keeps_it_switched(self, x):
    self.drop.eval()
    return self.q(self.drop(x)), self.k(x)


def sets_a_flag(self, x):
    self.drop.training = True
    return self.q(self.drop(x)), self.k(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("forward", [switches_a_layer, keeps_it_switched, sets_a_flag])
def test_a_forward_that_switches_is_refused(forward, training):
    with pytest.raises(FusionError, match=r"forward sets a training flag.*; switch"):
        fuse(asking(forward).train(training))


def asks_a_stranger(self, x):
    return self.q(x) * (2 if self.hidden[0].training else 3), self.k(x)


def test_the_flag_of_a_module_that_is_no_part_of_the_model():
    model = net(asks_a_stranger)
    model.hidden = [nn.Dropout()]
    with pytest.raises(FusionError, match="looks at the training flag of a module that is"):
        fuse(model)
    model.hidden = [model.q]
    assert trace(model).traced_in == ({"q": True},)


def test_a_forward_or_call_that_torch_fx_does_not_look_at():
    model = net(siblings)
    model.forward = lambda x: (model.q(x) * 2, model.k(x))
    with pytest.raises(FusionError, match=r"^model has a forward\(\) on the instance"):
        fuse(model)
    other = type("Net", (type(net(siblings)),), {"__call__": lambda self, x: x})()
    with pytest.raises(FusionError, match=r"or a __call__\(\) of its own"):
        fuse(other)
    graph = fx.symbolic_trace(net(siblings))
    graph.forward = lambda x: x
    with pytest.raises(FusionError, match=r"^model has a forward\(\) on the instance"):
        fuse(graph)


def test_nothing_is_left_in_torchs_module():
    for forward in (drops, sets_a_flag):
        with contextlib.suppress(FusionError):
            plan(asking(forward))
        assert inspect.getattr_static(nn.Module, "training", None) is None
    with pytest.raises(AttributeError), modes.noted():
        nn.Module.__new__(nn.Linear).training  # noqa: B018


# A train() of somebody's own.


class Own(nn.Module):
    """Siblings, and more in the subclasses."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        x = self.norm(x)
        return self.q(x) + self.k(x)


class Frozen(Own):
    """Keeps its batch norm in eval mode, whatever it is told."""

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


class Inherits(Frozen):
    """Has it from its base."""


class Attribute(Own):
    """Decides by an attribute that train() sets."""

    deploy = False

    def train(self, mode=True):
        self.deploy = not mode
        return super().train(mode)

    def forward(self, x):
        return super().forward(x) * (2 if self.deploy else 1)


class Evaluates(Attribute):
    """The same, by eval()."""

    def train(self, mode=True):
        return nn.Module.train(self, mode)

    def eval(self):
        self.deploy = True
        return nn.Module.eval(self)


class Swaps(Own):
    """One layer in eval mode, and two in training mode, as RepVGG has it."""

    def __init__(self):
        super().__init__()
        self.one = None

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.one = None
        elif self.one is None:
            self.one = nn.Linear(3, 3)
            self.one.weight.data = self.q.weight.data + self.k.weight.data
            self.one.bias.data = self.q.bias.data * 2
        return self

    def forward(self, x):
        x = self.norm(x)
        return self.q(x) + self.k(x) if self.one is None else self.one(x)


class Merges(Own):
    """Adds one weight to the other in eval mode, as LoRA does."""

    merged = False

    def train(self, mode=True):
        if self.merged == mode:
            self.q.weight.data += self.k.weight.data * (-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return self.q(x) if self.merged else self.q(x) + F.linear(x, self.k.weight)


class Awake(Own):
    """Its flag is a property."""

    @property
    def training(self):
        return self.awake

    @training.setter
    def training(self, mode):
        vars(self)["awake"] = not mode

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


class Hides(Own):
    """Its train() does not come to all of its modules."""

    def children(self):
        return iter([self.q, self.k])


class Reacts(Attribute):
    """Looks at what is set."""

    def train(self, mode=True):
        return nn.Module.train(self, mode)

    def __setattr__(self, name, value):
        if name == "training":
            vars(self)["deploy"] = not value
        super().__setattr__(name, value)


class Pretends(Own):
    """Says of its flag what it likes."""

    def __getattribute__(self, name):
        return name == "training" or super().__getattribute__(name)


def on_the_instance():
    model = Own()
    model.train = lambda mode=True: nn.Module.train(model, not mode)
    return model


def eval_on_the_instance():
    model = Own()
    model.eval = lambda: model
    return model


class Dual(fx.GraphModule):
    """One graph for each mode, as torchvision's feature extraction makes it."""

    def __init__(self, model):
        graphs = [fx.Tracer().trace(model.train(mode)) for mode in (False, True)]
        super().__init__(model, graphs[1])
        self.graphs = graphs
        self.train()

    def train(self, mode=True):
        self.graph = self.graphs[mode]
        return super().train(mode)


class Drops(Own):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


def dual():
    return Dual(Drops())


OWN = (Frozen, Inherits, Attribute, Evaluates, Swaps, Merges, Awake, Hides, Reacts,
       Pretends, on_the_instance, eval_on_the_instance, dual)  # fmt: skip


def graph_with(module):
    """A graph that calls the parts of a module, which is one of the network's own."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    q, k = (graph.call_module(f"block.{name}", (x,)) for name in "qk")
    graph.output((q, k))
    network = fx.GraphModule(nn.ModuleDict({"block": module}), graph)
    network.block = module
    return network


PLACES = {
    "root": lambda module: module,
    "Sequential": nn.Sequential,
    "child": lambda module: net(lambda self, x: (self.block(x), self.k(x)), block=module),
    "deep": lambda module: nn.Sequential(nn.ReLU(), nn.Sequential(nn.Sequential(module))),
    "in a list": lambda module: net(
        lambda self, x: (self.blocks[0](x), self.k(x)), blocks=nn.ModuleList([module])
    ),
    "in a graph": graph_with,
    "beside": lambda module: net(siblings, spare=module),
}


@pytest.mark.parametrize("make", OWN)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("training", [False, True])
def test_a_train_of_its_own_is_refused(make, place, training):
    model = place(make())
    model.train(training)
    for refused in (plan, fuse, fold_batchnorm) if training else (plan, fuse):
        if refused is fold_batchnorm:
            set_all(model)
        with pytest.raises(FusionError) as error:
            refused(model)
        assert "of its own, and a graph would not do what it does" in str(error.value)
        assert "torch.fx.symbolic_trace(model)" in str(error.value)


def test_what_is_said_of_a_train_of_its_own():
    with pytest.raises(FusionError) as error:
        plan(nn.Sequential(Frozen()))
    assert str(error.value) == (
        "0 has a train() of its own, and a graph would not do what it does; nn.Module's "
        "fits. To stay in one mode: switch the model to it, and give "
        "torch.fx.symbolic_trace(model)"
    )
    with pytest.raises(FusionError, match=r"^model has a training of its own, and"):
        plan(Awake())


@pytest.mark.parametrize("make", [Frozen, Attribute, Swaps, Merges, Hides, dual])
@pytest.mark.parametrize("training", [False, True])
def test_the_advice_is_good(make, training):
    model = nn.Sequential(make()).train(training)
    fused = fuse(fx.symbolic_trace(model))
    check_same(fused, copy.deepcopy(model))


class Gain(nn.Linear):
    """A layer that is called whole, with a train() of its own."""

    gain = 1

    def train(self, mode=True):
        self.gain = 1 if mode else 2
        return super().train(mode)

    def forward(self, x):
        return super().forward(x) * self.gain


class Whole(fx.Tracer):
    """Calls everything but the model whole."""

    def is_leaf_module(self, module, path):
        return True


def called_whole(make):
    def make_it():
        model = net(lambda self, x: (*siblings(self, x), self.block(x)), block=make())
        return fx.GraphModule(model, Whole().trace(model))

    return make_it


@pytest.mark.parametrize(
    "make",
    [
        lambda: net(lambda self, x: (*siblings(self, x), self.gain(x)), gain=Gain(3, 2)),
        *(called_whole(kind) for kind in (Frozen, Attribute, Evaluates, Swaps, Merges)),
        *(called_whole(kind) for kind in (Awake, Hides, Reacts, Pretends)),
        called_whole(lambda: nn.Sequential(Frozen())),
        lambda: net(siblings, spare=nn.LSTM(3, 3)),  # torch's own __setattr__
        lambda: net(siblings, spare=fuse(net(siblings))),
        lambda: net(siblings, spare=fold_batchnorm(net(siblings).eval())),
    ],
)
def test_what_a_graph_calls_whole_keeps_its_own_train(make):
    model = make()
    fused = fuse(model)
    assert [group.members for group in plan(model).groups if group.fused] == [("q", "k")]
    for mode in (True, False, True):
        right_or_refused(fused, model, lambda m, mode=mode: m.train(mode))
        check_same(fused.train(mode), model.train(mode))
        check_same(
            copy.deepcopy(fused).train(not mode), copy.deepcopy(model).train(not mode)
        )


def test_a_method_on_an_instance_is_refused_in_whatever_is_called_whole():
    """A copy would have the same function, which is about the original."""
    model = net(lambda self, x: (self.q(self.drop(x)), self.k(x)), drop=nn.Dropout())
    model.drop.train = lambda mode=True: nn.Module.train(model.drop, not mode)
    with pytest.raises(FusionError, match=r"^drop has a train\(\) of its own"):
        fuse(model)
    layer = nn.Linear(3, 2)
    layer.train = lambda mode=True: layer
    with pytest.raises(FusionError, match=r"^extras of layers\[0\] was \['train'\]"):
        layers.stack([layer, nn.Linear(3, 2)])


# Graphs that the user gives.


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("forward", [drops, decides, constant_decides, in_a_block])
def test_a_graph_of_the_users_does_in_any_mode_what_it_did(forward, training):
    """torch.fx has written the mode into it."""
    model = fx.symbolic_trace(asking(forward).train(training))
    for early, late in itertools.product([False, True], repeat=2):
        found = plan(model)
        model.train(early)
        fused = found.apply()
        check_same(fused, model)
        check_same(fused.train(late), model.train(late))


def test_a_graph_that_was_edited_since_it_was_planned():
    model = fx.symbolic_trace(net(siblings))
    found = plan(model)
    (output,) = model.graph.find_nodes(op="output")
    with model.graph.inserting_before(output):
        doubled = model.graph.call_function(torch.mul, (output.args[0][0], 2))
    output.args = ((doubled, output.args[0][1]),)
    model.recompile()
    check_same(found.apply(), model)


def reads_statistics(self, x):
    rate = self.norm.running_mean
    q = self.q(rate)
    self.norm(x)
    return q, self.k(rate)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.Sequential])
def test_statistics_that_are_written_in_training_mode_only(norm):
    """In eval mode nobody writes to them, but the fused network may be switched."""
    made = nn.BatchNorm1d(3)
    model = net(reads_statistics, norm=made)
    if norm is nn.Sequential:
        graph = fx.Graph()
        x, rate = graph.placeholder("x"), graph.get_attr("norm.0.running_mean")
        q = graph.call_module("q", (rate,))
        graph.call_module("norm", (x,))
        graph.output((q, graph.call_module("k", (rate,))))
        model = fx.GraphModule(net(siblings, norm=norm(made)), graph)
    model.eval()
    fused = fuse(model)
    check_same(fused.train(), model.train())
    (group,) = plan(model.eval()).groups
    assert "may change their input between q and k" in group.reason


# Batch norms that were folded.


class Folds(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
        self.block = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
        self.block[1].running_mean.uniform_()

    def forward(self, x):
        return self.block(self.q(x) + self.k(x))


FOLDED = {
    "train": lambda model: model.train(),
    "its container": lambda model: model.block.train(),
    "itself": lambda model: model.block[1].train(),
    "flag": set_flags("block.1"),
}
AFTER = {
    "itself": lambda folded: folded,
    "deepcopy": copy.deepcopy,
    "pickle": again,
    "fused": fuse,
    "fused and copied": lambda folded: copy.deepcopy(fuse(folded)),
    "unfused": lambda folded: unfuse(fuse(folded)),
}


@pytest.mark.parametrize("switch", FOLDED.values(), ids=FOLDED)
@pytest.mark.parametrize("make", AFTER.values(), ids=AFTER)
def test_a_folded_batch_norm_stays_in_eval_mode(make, switch):
    model, x = Folds().eval(), torch.randn(2, 3, 4, 4)
    folded = make(fold_batchnorm(model))
    torch.testing.assert_close(folded(x), model(x))
    with pytest.raises(FusionError, match=r"^mode: expected False, got True; batch"):
        switch(folded)
    assert not folded.block[1].training
    assert folded.eval() is folded
    torch.testing.assert_close(folded(x), model(x))


def test_a_folded_batch_norm_within_a_larger_network():
    model, x = nn.Sequential(Folds()).eval(), torch.randn(2, 3, 4, 4)
    fused = fuse(nn.Sequential(fold_batchnorm(model[0])))
    torch.testing.assert_close(fused(x), model(x))
    for switch in (fused.train, fused.get_submodule("0").train):
        with pytest.raises(FusionError, match=r"^mode: expected False, got True; batch"):
            switch()
    fused.get_submodule("0.block.2").train()
    model[0].block[2].train()
    torch.manual_seed(0)
    actual = fused(x)
    torch.manual_seed(0)
    torch.testing.assert_close(actual, model(x))


def test_other_layers_of_a_folded_network_can_be_switched():
    model, x = Folds().eval(), torch.randn(2, 3, 4, 4)
    folded = fold_batchnorm(model)
    for one in (model, folded):
        one.block[2].train()
        one.training = True
    torch.manual_seed(0)
    actual = folded(x)
    torch.manual_seed(0)
    torch.testing.assert_close(actual, model(x))
    torch.testing.assert_close(folded.block[:2](x[:, :2]), model.block[:2](x[:, :2]))


def asks_the_norm(self, x):
    y = self.block[1](self.block[0](self.q(x) + self.k(x)))
    return y * (2 if self.block[1].training else 3)


def test_the_flag_of_a_norm_that_was_folded_may_be_looked_at():
    model = type("Asks", (Folds,), {"forward": asks_the_norm})().eval()
    folded, x = fold_batchnorm(model), torch.randn(2, 3, 4, 4)
    for one in (folded, fuse(folded)):
        torch.testing.assert_close(one(x), model(x))
        with pytest.raises(FusionError, match=r"^mode: expected False, got True"):
            one.train()
