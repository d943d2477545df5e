"""A fused model is a good citizen: in all that it is and does, it is the model."""

import collections
import copy

import pytest
import torch.nn.functional as F
from fusing import (
    by_found,
    check,
    check_same,
    conv,
    exact,
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

from hfusion import (
    models,
    unfuse,
)

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
