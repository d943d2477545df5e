"""A fused model is a good citizen: in all that it is and does, it is the model."""

import collections
import copy
import gc
import io

import pytest
import torch
import torch.nn.functional as F
from fusing import (
    ab,
    abc,
    by_found,
    check,
    check_same,
    conv,
    copies,
    exact,
    fused_members,
    gradients,
    groups_of,
    image,
    linear,
    net,
    planned,
    rounds,
    run,
    same_state,
    together,
)
from torch import fx, nn

import hfusion
from hfusion import fuse, models, unfuse

pytestmark = pytest.mark.usefixtures("in_float64")


# Training and evaluating, and who looks at the flag.


class Own(nn.Module):
    """Siblings behind a batch norm, and more in the subclasses."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.norm = linear(3), linear(3), nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.norm(x)
        return self.drop(self.q(x)) + self.k(x)


class Looks(Own):
    """Its forward asks for its flag, and for those of its modules."""

    def forward(self, x):
        x = super().forward(F.dropout(x, 0.5, training=self.training))
        awake = sum(module.training for module in self.modules())
        return x * (2 if self.training else 3) * (2 if self.k.training else 3) * awake


class Frozen(Own):
    """Keeps its batch norm in eval mode, whatever it is told."""

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


class Attribute(Own):
    """Decides by an attribute that train() sets."""

    deploy = False

    def train(self, mode=True):
        self.deploy = not mode
        return super().train(mode)

    def forward(self, x):
        return super().forward(x) * (2 if self.deploy else 1)


class Evaluates(Own):
    """The same, by eval()."""

    deploy = False

    def eval(self):
        self.deploy = True
        return super().eval()

    def forward(self, x):
        return super().forward(x) * (2 if self.deploy else 1)


class Swaps(Own):
    """One layer in eval mode, and two in training mode, as RepVGG has it."""

    def __init__(self):
        super().__init__()
        self.one = None

    def train(self, mode=True):
        super().train(mode)
        self.one = None if mode else linear(3)
        if self.one is not None:
            self.one.weight.data = self.q.weight.data + self.k.weight.data
            self.one.bias.data = self.q.bias.data * 2
        return self

    def forward(self, x):
        return super().forward(x) if self.one is None else self.one(x)


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


class Switches(Own):
    """Switches a layer while it runs."""

    def forward(self, x):
        self.drop.eval()
        q = self.q(self.drop(x))
        self.drop.train()
        return self.drop(q) + self.k(x)


class Awake(Own):
    """Its flag is a property, and the wrong way round."""

    @property
    def training(self):
        return self.awake

    @training.setter
    def training(self, mode):
        vars(self)["awake"] = not mode


class Dual(fx.GraphModule):
    """One graph for each mode, as torchvision's feature extraction makes it."""

    def __init__(self, model, graphs=None):
        graphs = graphs or [fx.Tracer().trace(model.train(m)) for m in (False, True)]
        super().__init__(model, graphs[1])
        self.graphs = graphs
        self.graph = graphs[self.training]

    def train(self, mode=True):
        self.graph = self.graphs[mode]
        return super().train(mode)

    def __deepcopy__(self, memo):  # torch's own would forget the graphs
        parts = nn.ModuleDict(self.named_children())
        graphs = [copy.deepcopy(graph) for graph in self.graphs]
        double = Dual(copy.deepcopy(parts, memo), graphs)
        vars(double)["training"] = self.training
        double.graph = graphs[self.training]
        return double


OWN = (Own, Looks, Frozen, Attribute, Evaluates, Swaps, Merges, Switches, Awake)
SWITCHES = (
    lambda model: model.eval(),
    lambda model: model.train(),
    lambda model: model.train(False),
    lambda model: model.norm.train(),
    lambda model: setattr(model, "training", not model.training),
    lambda model: setattr(model.k, "training", not model.k.training),
)


@by_found
@pytest.mark.parametrize("make", [*OWN, lambda: Dual(Own())])
@pytest.mark.parametrize("early", SWITCHES[:2])
def test_modes_are_switched_as_in_the_model(make, early, found):
    """Before and after apply(), in the fused model, in copies and unfused."""
    model, x = models.randomise(make()).double(), image(4, 3)
    plan = planned(model, x, found)
    early(model)
    fused = plan.apply()
    again = [copy.deepcopy(fused), *map(unfuse, [fused] if groups_of(fused) else [])]
    for switch in SWITCHES:
        for one in (model, fused, *again):
            switch(one)
        expected = run(copy.deepcopy(model), x)
        for one in (fused, *again):
            assert exact(run(copy.deepcopy(one), x), expected)
            check_same(together(one, x), together(copy.deepcopy(model), x))
        together(model, x)  # statistics have moved on
        assert same_state(fused, model)
        flags = [[m.training for m in one.modules()] for one in (model, fused)]
        assert flags[0] == flags[1]


@by_found
def test_a_model_of_two_graphs_computes_together_in_both(found):
    model, x = Dual(Own()), image(4, 3)
    fused = planned(model, x, found).apply()
    for mode in (True, False):
        check(fused.train(mode), model.train(mode), x)
    (group,) = planned(model.eval(), x, found).groups
    assert group.fused


def other_siblings(self, x):
    return self.a(x), self.b(x if self.training else x.relu())


@by_found
def test_siblings_in_one_mode_only(found):
    model, x = net(other_siblings, a=conv(4), b=conv(2)), image()
    fused = planned(model, x, found).apply()
    check(fused, model, x)
    check(fused.eval(), model.eval(), x, rounds_each=0)
    assert planned(model, x, found).groups == ()


# What a model is, its fused copy is.


class Output(collections.OrderedDict):
    """As the libraries of models return it: entries that are attributes, too."""

    def __init__(self, **entries):
        super().__init__(entries)
        vars(self).update(entries)


class Several(list):
    """A list of one's own."""


class Model(nn.Sequential):
    """Two siblings in a container of its own, with much that is no forward."""

    scale = 2
    returns = staticmethod(lambda a, b: (a, b))

    @property
    def width(self):
        return self.scale * len(self)

    def embed(self, x):
        return self[0](x), self[1](x)

    def forward(self, x):
        return self.returns(*self.embed(x))


NAMED = collections.namedtuple("Named", "a b")
RETURNS = {
    "a dict with attributes": lambda a, b: Output(a=a, b=b),
    "an ordered dict": lambda a, b: collections.OrderedDict(a=a, b=b),
    "a list of one's own": lambda a, b: Several([a, b]),
    "a named tuple": NAMED,
    "a list": lambda a, b: [a, {"b": b}],
}


@by_found
@pytest.mark.parametrize("name", RETURNS)
def test_what_is_returned_is_what_the_model_returns(name, found):
    model, x = Model(conv(4), conv(2)), image()
    model.returns = RETURNS[name]
    fused = planned(model, x, found).apply()
    got, wanted = together(fused, x), together(model, x)
    assert type(got) is type(wanted)
    # What a class that torch.fx does not know does with its arguments is not read.
    unread = found == "reading" and name == "a named tuple"
    assert rounds(fused) == ([] if unread else [1])
    leaves = [list(y.values()) if isinstance(y, dict) else list(y) for y in (got, wanted)]
    check_same(*leaves)
    if name == "a dict with attributes":
        assert got.a is got["a"]


@by_found
def test_methods_properties_and_containers(found):
    model, x = Model(conv(4), conv(2), nn.ReLU()), image()
    model.note = {"a": 1}
    fused = planned(model, x, found).apply()
    assert type(fused) is Model
    assert (fused.width, fused.scale, fused.note, len(fused)) == (6, 2, {"a": 1}, 3)
    assert [type(m) for m in fused] == [nn.Conv2d, nn.Conv2d, nn.ReLU]
    assert type(fused[:2]) is Model
    assert repr(fused) == repr(model)
    names = [[name for name, _ in m.named_modules()] for m in (fused, model)]
    assert names[0] == names[1]
    check_same(together(lambda x: fused.embed(x), x), together(model, x))
    assert rounds(fused) == [1]
    for layer, own in zip(fused[:2], model[:2], strict=True):
        assert exact(together(layer, x), together(own, x))  # on its own
    fused[1] = own = conv(7)  # another one takes a sibling's place
    check_same(together(fused, x)[1], together(own, x))


# Models inside others, fused again, and unfused.


class Three(nn.Module):
    """A class of its own, so that it can be pickled."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(4), conv(2, bias=False), conv(1)

    forward = abc


class Outer(nn.Module):
    """Three siblings below a container, one without a bias, and others."""

    def __init__(self, block=None):
        super().__init__()
        self.block, self.norm = block or Three(), nn.BatchNorm2d(3)
        self.spare = nn.Linear(2, 2)
        self.register_buffer("hidden", torch.rand(2), persistent=False)
        self.scale = nn.Parameter(torch.rand(()))

    def forward(self, x):
        return *self.block(x), self.norm(x) * self.scale


def outer(seed=0):
    return models.randomise(Outer(), seed).double()


@by_found
def test_a_fused_model_inside_a_bigger_one(found):
    model, other, x = outer().eval(), outer(1).eval(), image()
    bigger = copy.deepcopy(model)
    bigger.block = planned(model.block, x, found).apply()
    check(bigger, model, x)
    assert same_state(bigger, model)
    bigger.load_state_dict(other.state_dict())
    check(bigger, other, x)
    model.load_state_dict(bigger.state_dict())
    assert exact(run(model, x), run(other, x))
    check(copy.deepcopy(bigger), other, x)
    prefixed = bigger.block.state_dict(prefix="some.where.")
    assert list(prefixed) == [f"some.where.{key}" for key in model.block.state_dict()]


@by_found
def test_fused_twice(found):
    model, other, x = outer().eval(), outer(1).eval(), image()
    fused = planned(model, x, found).apply()
    plan = planned(fused, x, found)
    reasons = [f"block.{name} is fused already" for name in "abc"]
    assert [group.reason for group in plan.groups] == reasons
    for again in (plan.apply(), fuse(fuse(fused), x)):
        assert same_state(again, model)
        check(again, model, x)
        check(copy.deepcopy(again), model, x)
        again.load_state_dict(other.state_dict())
        check(again, other, x)
    undone = unfuse(plan.apply())
    assert exact(run(undone, x), run(model, x))
    assert same_state(undone, model)
    assert fused_members(planned(undone, x, found)) == [{f"block.{name}" for name in "abc"}]
    check(fuse(undone), model, x)
    with torch.no_grad():
        undone.block.a.weight.zero_()
    check(fused, model, x)  # it is a copy


def test_what_one_plan_left_the_next_may_fuse():
    model, x = outer().eval(), image()
    first = hfusion.plan(model, accept=lambda group: "not now").apply()
    assert not groups_of(first)
    second = fuse(first)
    check(second, model, x)
    assert same_state(unfuse(second), model)


# The original, and memory.


def everything(model):
    """What fusing must leave alone."""
    return {
        "tensors": [
            (key, id(t), t.data_ptr(), t.requires_grad, t.grad, t._version)
            for key, t in model.state_dict(keep_vars=True).items()
        ],
        "numbers": [t.tolist() for t in model.state_dict().values()],
        "modules": [(path, id(m), m.training) for path, m in model.named_modules()],
        "attributes": {path: set(vars(m)) for path, m in model.named_modules()},
        "hooks": {path: len(m._forward_pre_hooks) for path, m in model.named_modules()},
        "chance": torch.get_rng_state().tolist(),
    }


@by_found
@pytest.mark.parametrize("given_as", ["module", "graph"])
def test_the_original_is_untouched(given_as, found):
    model, x = outer(), image()
    model.block.eval()
    model = fx.symbolic_trace(model) if given_as == "graph" else model
    before, code = everything(model), getattr(model, "code", None)
    fused = planned(model, x, found).apply()
    state = torch.get_rng_state()
    together(fused, x)
    with torch.no_grad():
        for tensor in (*fused.parameters(), *fused.buffers()):
            tensor.zero_()
    unfuse(fused)
    torch.set_rng_state(state)
    assert everything(model) == before
    assert getattr(model, "code", None) == code


def storages(tensors):
    """Bytes that these tensors take, each counted once."""
    parts, total, end = set(), 0, 0
    for tensor in tensors:
        memory = tensor.untyped_storage()
        parts.add((memory.data_ptr(), memory.data_ptr() + memory.nbytes()))
    for first, last in sorted(parts):
        total, end = total + max(0, last - max(first, end)), max(end, last)
    return total


def of_model(model):
    return storages([*model.parameters(), *model.buffers()])


def alive():
    gc.collect()
    return storages(
        [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)]
    )


class Listed(nn.Module):
    """A container that knows its layers by a plain list, too."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(64, 32), nn.Linear(64, 16)
        self.order = [self.q, self.k]

    def forward(self, x):
        return [layer(x) for layer in self.order]


def big_inception():
    return models.Inception((48, 64, 32, 16, 16, 16, 16))


@pytest.mark.parametrize("make", [big_inception, lambda: nn.Sequential(Listed())])
def test_no_weight_is_stored_twice(make):
    before = alive()
    model = make()
    size, total = of_model(model), alive() - before
    assert size == total > 0
    fused = fuse(model)
    assert len(groups_of(fused)) == 1
    assert of_model(fused) == size
    del model
    assert alive() - before == total
    undone = unfuse(fused)
    assert of_model(undone) == size
    del fused
    assert alive() - before == total
    assert undone is not None


def test_a_weight_stored_twice_would_be_seen():
    before = alive()
    model = big_inception()
    fused, total = fuse(model), of_model(model)
    assert alive() - before >= 2 * total
    assert fused is not None


# States.


STATES = {
    "whole": lambda s: None,
    "missing weight": lambda s: s.pop("block.a.weight"),
    "missing bias": lambda s: s.pop("block.c.bias"),
    "missing elsewhere": lambda s: s.pop("norm.bias"),
    "unexpected": lambda s: s.update(other=torch.ones(1)),
    "a bias that is not there": lambda s: s.update({"block.b.bias": torch.ones(2)}),
    "something in a member": lambda s: s.update({"block.a.scale": torch.ones(2)}),
    "another shape": lambda s: s.update({"block.a.weight": torch.ones(5, 3, 1, 1)}),
    "no tensor": lambda s: s.update({"block.a.bias": "none"}),
    "float32": lambda s: s.update({k: v.float() for k, v in s.items()}),
}


@by_found
@pytest.mark.parametrize("options", [{}, {"strict": False}, {"assign": True}], ids=str)
@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_states_are_loaded_or_refused_as_by_the_model(change, options, found):
    model, x = outer().eval(), image()
    fused, said = planned(model, x, found).apply(), []
    given = outer(1).state_dict()
    change(given)
    for one in (model, fused):
        state = copy.deepcopy(given)
        keys, values = list(state), [copy.deepcopy(value) for value in state.values()]
        try:
            said.append(tuple(map(sorted, one.load_state_dict(state, **options))))
        except (RuntimeError, AttributeError) as error:
            said.append(str(error))
        assert list(state) == keys
        for value, old in zip(state.values(), values, strict=True):
            assert torch.equal(value, old) if torch.is_tensor(value) else value == old
    assert said[0] == said[1]
    assert same_state(fused, model)
    x = x.to(model.scale.dtype)
    check_same(together(fused, x), together(model, x), 1e-5)


def test_a_state_that_is_assigned_computes_together():
    model, x = outer().eval(), image()
    empty = fuse(outer().eval()).to("meta")
    assert [y.shape for y in together(empty, x.to("meta"))] == [
        y.shape for y in together(model, x)
    ]
    for key, value in model.state_dict().items():
        empty.load_state_dict({key: value.clone()}, assign=True, strict=False)
    empty.hidden = model.hidden
    check(empty, model, x)


def test_values_are_views_of_the_weights_as_everywhere_in_torch():
    fused, x = fuse(outer().eval()), image()
    with torch.no_grad():
        fused.state_dict()["block.a.weight"].zero_()
        fused.state_dict()["block.a.bias"].zero_()
    assert not together(fused, x)[0].any()
    assert rounds(fused) == [1]
    assert fused.state_dict(keep_vars=True)["block.a.weight"] is fused.block.a.weight
    into = {}
    assert fused.state_dict(destination=into) is into
    assert list(into) == list(fused.state_dict())


def test_states_on_disk_without_running_code():
    model, other, x = outer().eval(), outer(1).eval(), image()
    for source, target in ((fuse(model), other), (model, fuse(other))):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        assert file.tell() < 6000  # neither the siblings' nor the model's are written twice
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        check_same(together(target, x), together(model, x))


def test_the_whole_model_on_disk():
    model, x = outer(), image()
    model.block.a.eval()
    fused = fuse(model)
    for again in copies(fused):
        assert type(again) is Outer
        assert torch.equal(again.hidden, model.hidden)
        assert [m.training for m in again.modules()] == [
            m.training for m in model.modules()
        ]
        check(again.eval(), copy.deepcopy(model).eval(), x)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
    check(fused.eval(), model.eval(), x)
    assert len(copies(fused)) == 3


class Shouts(Outer):
    """A model with a state_dict() of its own."""

    def state_dict(self, *args, **kwargs):
        return {k.upper(): v for k, v in super().state_dict(*args, **kwargs).items()}


def test_a_state_of_its_own_making():
    model = Shouts()
    fused = fuse(model)
    assert "BLOCK.A.WEIGHT" in fused.state_dict()
    assert same_state(fused, model)


# What torch does to modules.


def test_hooks_on_the_result_are_called():
    fused, called = fuse(outer()), []
    fused.register_forward_hook(lambda *_: called.append("forward"))
    fused.register_state_dict_post_hook(lambda *_: called.append("state"))
    for layer in (fused.block.a, fused.block.b):
        layer.register_forward_hook(lambda *_: called.append("layer"))
    together(fused, image())
    fused.state_dict()
    assert called == ["layer", "layer", "forward", "state"]
    assert rounds(fused) == [1]


def test_hooks_on_a_parameter_stay_behind_as_in_any_copy():
    model, x = net(ab, a=conv(4), b=conv(4)), image()
    model.a.weight.register_hook(lambda gradient: 2 * gradient)
    check(fuse(model), copy.deepcopy(model), x)
    assert not exact(gradients(fuse(model), x), gradients(model, x))


MOVES = {
    "float": (lambda m: m.float(), 1e-5),
    "bfloat16": (lambda m: m.bfloat16(), 0.2),
    "half": (lambda m: m.half(), 0.02),
    "there and back": (lambda m: m.float().double(), 1e-12),
    "channels last": (lambda m: m.to(memory_format=torch.channels_last), 1e-12),
    "no gradients": (lambda m: m.requires_grad_(False), 1e-12),
}


@by_found
@pytest.mark.parametrize("name", MOVES)
def test_dtypes_layouts_and_devices(name, found):
    move, bound = MOVES[name]
    model, x = outer().eval(), image()
    fused = planned(model, x, found).apply()
    together(fused, x)
    for one in (model, fused):
        move(one)
    assert same_state(fused, model)
    x = x.to(model.scale.dtype)
    for _ in range(2):
        check_same(together(fused, x), together(model, x), bound)
    assert rounds(fused) == [3]
    if name != "no gradients":
        assert exact(run(fused, x), run(model, x))


def test_without_numbers():
    """On "meta" nothing is packed; filled again, it is."""
    model, x = outer().eval(), image()
    meta = fuse(copy.deepcopy(model).to("meta"))
    assert list(meta.state_dict()) == list(model.state_dict())
    meta.to_empty(device="cpu").load_state_dict(model.state_dict())
    check(meta, model, x)


OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "AdamW, one by one": lambda p: torch.optim.AdamW(p, 0.01, foreach=False),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
}


@by_found
@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps_of_an_optimiser_are_the_models_bit_for_bit(name, found):
    model, x = outer(), image()
    fused, before = planned(model, x, found).apply(), copy.deepcopy(model)
    for one in (model, fused):
        optimiser = OPTIMISERS[name](one.parameters())

        def loss(one=one, optimiser=optimiser):
            optimiser.zero_grad()
            value = sum(((y - 1) ** 2).mean() for y in run(one, x))
            value.backward()
            return value

        for _ in range(3):
            optimiser.step(loss)
            together(one.eval(), x)  # validating in between
            one.train()
    assert rounds(fused) == [3]
    assert same_state(fused, model)
    assert not same_state(before, model)
    check(fused.eval(), model.eval(), x)
    assert exact(run(unfuse(fused), x), run(model, x))


def test_unfused_weights_keep_the_order_of_their_axes():
    """2026-11-30: it decides how an output lies, and so where dropout drops."""
    model, x = net(ab, a=conv(4, 3), b=conv(5, 3)), image(2, 3, 5, 6)
    model = model.to(memory_format=torch.channels_last).requires_grad_(False)
    apart = unfuse(fuse(model))
    for name in ("a", "b"):
        mine, theirs = getattr(apart, name).weight, getattr(model, name).weight
        assert mine.stride() == theirs.stride()
        assert mine.untyped_storage().nbytes() == mine.nbytes
    for mine, theirs in zip(run(apart, x), run(model, x), strict=True):
        assert mine.stride() == theirs.stride()
