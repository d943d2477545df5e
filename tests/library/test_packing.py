"""A fused model gives what the model gives, whatever happens before, between and around."""

import copy
import gc
import logging
import pickle
import re
import threading
import weakref

import copied
import pytest
import torch
from fusing import net
from torch import nn
from two_siblings import (
    BETWEEN,
    MOVES,
    Doubling,
    Net,
    answer,
    conv,
    group,
    in_threads,
    infer,
    later,
    linear,
    own,
    pair,
    parameter,
    same,
    set_data,
)

import hfusion
from hfusion.fusing import _gate, _group, _members, _packing

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

CONV = {"stride": (2, 2), "padding": (0, 0), "dilation": (2, 2), "padding_mode": "reflect"}


TOGETHER = ("nothing", "a hook", "called with another", "a failure", "called twice")
TOGETHER += ("x learns", "weight learns")  # which nobody records here


@pytest.mark.parametrize("name", BETWEEN)
def test_whatever_happens_between_two_siblings(name):
    model, fused, x = pair()
    for each in (model, fused):
        own(each, between=BETWEEN[name], later=lambda c, each=each: later(each, c))
    with torch.no_grad():
        same(model, fused, x, rounds=int(name in TOGETHER))
        same(model, fused, x, x * 2)


CONJUGATES = {
    "first weight": lambda m, x: set_data(m.a.weight, torch.conj),
    "weight": lambda m, x: set_data(m.b.weight, torch.conj),
    "bias": lambda m, x: set_data(m.b.bias, torch.conj),
}


@pytest.mark.parametrize("name", CONJUGATES)
def test_numbers_that_are_conjugated_only_when_they_are_read(name):
    """2026-11-30: the conjugate has the same address, and was not noticed."""
    kind = torch.complex64
    layer = lambda: nn.Linear(4, 4, dtype=kind)
    model, fused, x = pair(lambda: (Net(layer), torch.randn(4, 4, dtype=kind)))
    same(model, fused, x, rounds=1)
    for each in (model, fused):
        own(each, between=CONJUGATES[name])
        answer(each, x)
        own(each, between=None)
    same(model, fused, x, x)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_filter_that_is_turned(name):
    """2026-11-30: a column that becomes a row has the same address, size and strides."""
    column = lambda: nn.Conv2d(3, 5, (3, 1))
    model, fused, x = pair(lambda: (Net(column), torch.randn(2, 3, 9, 9)))
    for each in (model, fused):
        set_data(getattr(each, name).weight, lambda t: t.transpose(2, 3))
    same(model, fused, x, x)


def test_a_class_whose_convolution_is_replaced(monkeypatch):
    model, fused, x = pair(conv)
    usual = nn.Conv2d._conv_forward
    monkeypatch.setattr(
        nn.Conv2d, "_conv_forward", lambda m, x, w, b: usual(m, x, w / w.norm(), b)
    )
    same(model, fused, x, rounds=0)


class Scaled(nn.Linear):
    def forward(self, x, scale=2):
        return scale * super().forward(x)


def test_a_class_whose_forward_takes_more():
    model, fused, x = pair()
    for each in (model, fused):
        each.b.__class__ = Scaled
    assert torch.equal(fused.b(x, scale=3), model.b(x, scale=3))
    assert torch.equal(fused.b(x, 4), model.b(x, 4))
    same(model, fused, x)


def test_a_weight_that_learns_only_now_gets_its_gradient():
    for name in ("x learns", "weight learns"):
        model, fused, x = pair()
        model.between = fused.between = BETWEEN[name]
        same(model, fused, x, rounds=0)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("name", [*CONV, "_reversed_padding_repeated_twice", "forward"])
def test_a_convolution_that_is_set_anew(name, mode, both):
    model, fused, x = pair(lambda: conv(padding_mode=mode))
    same(model, fused, x, rounds=1)
    value = CONV.get(name, (2, 2, 2, 2))
    value, name = (value, name) if name != "forward" else (twice, "_conv_forward")
    for each in (model, fused):
        for layer in (each.a, each.b) if both else (each.b,):
            setattr(layer, name, value)
    same(model, fused, x, x)
    if name != "_conv_forward":
        same(model, hfusion.fuse(model, x), x)  # planned as it is now


def twice(x, weight, bias):
    return 2 * x


@pytest.mark.parametrize("first", [True, False])
def test_a_padding_mode_that_pads_nothing(first):
    """2026-11-30: planned, and then computed separately without a word."""
    modes = ["reflect", "zeros"] if first else ["zeros", "reflect"]
    layer = lambda: nn.Conv2d(3, 5, 3, padding_mode=modes.pop())
    model, fused, x = pair(lambda: (Net(layer), torch.randn(2, 3, 9, 9)))
    same(model, fused, x, rounds=1)


SIZES = {  # of a bias or a weight that somebody has put there, and what the plan says
    "bias of one number": ("bias", (1,), r"size of b\w* of b: .*, got \(1,\)"),
    "bias of three": ("bias", (3,), r"size of bias of b: .*, got \(3,\)"),
    "bias with an axis": ("bias", (4, 1), r"size of bias of b: .*, got \(4, 1\)"),
    "weight of one row": ("weight", (4,), r"size of weight of b: .*, got \(4,\)"),
}


@pytest.mark.parametrize(("name", "shape", "said"), SIZES.values(), ids=SIZES)
def test_sizes_that_do_not_fit_are_refused_when_it_is_planned(name, shape, said):
    """2026-11-30: a plain RuntimeError when it was applied, or a bias of another size."""
    model, _ = linear()
    plan = hfusion.plan(model)
    setattr(model.b, name, parameter(*shape))
    with pytest.raises(hfusion.FusionError, match=f"model has changed .*{name}"):
        plan.apply()
    groups = hfusion.plan(model).groups
    assert not any(group.fused for group in groups)
    assert any(re.match(said, group.reason) for group in groups)


def test_fuse_says_once_what_it_did(caplog):
    """A warning where that is nothing; refused groups are named with the reason."""
    caplog.set_level(logging.INFO, "hfusion")
    model, x = linear()
    alone, other = nn.Sequential(nn.Linear(4, 4)), Net(lambda: Doubling(4, 4))
    both = net(lambda self, x: (self.a(x), self.b(x)), a=model, b=other)
    for given, inputs, level, said in (
        (both, x, "INFO", "fused"),
        (other, x, "WARNING", "nothing is fused"),
        (alone, None, "WARNING", "nothing is fused"),
        (alone, x, "WARNING", "nothing is fused"),
    ):
        caplog.clear()
        hfusion.fuse(given, inputs)
        (record,) = caplog.records
        table = str(hfusion.plan(given, inputs))
        assert (record.name, record.levelname) == ("hfusion", level)
        assert record.getMessage() == f"{said}:\n{table}"
        assert ("refused: type of " in table) is (given is not alone)


def test_margins_that_differ_when_it_is_planned():
    torch.manual_seed(0)
    model, x = conv(padding_mode="circular")
    model.eval().requires_grad_(False).b._reversed_padding_repeated_twice = (2, 2, 2, 2)
    same(model, hfusion.fuse(model, x), x)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("name", MOVES)
def test_weights_that_move_are_packed_again(name, make):
    model, fused, x = pair(make)
    same(model, fused, x, rounds=1)
    for each in (model, fused):
        MOVES[name](each)
    x = x.to(model.a.weight.dtype)
    tolerance = 0.1 if x.dtype.itemsize == 2 else 1e-5
    # Of the first one's weight it is asked before the product, of the others' after it.
    same(model, fused, x, x, rounds=1 if name == "data" else 2, tolerance=tolerance)


def test_to_keeps_no_memory_that_the_weights_have_left():
    _, fused, _ = pair()
    fused.cpu()
    assert group(fused).packing.together is not None
    fused.double()
    assert group(fused).packing.together is None


def test_load_state_dict_keeps_no_memory_that_the_weights_have_left():
    _, fused, _ = pair()
    state = copy.deepcopy(fused.state_dict())
    fused.load_state_dict(state)
    assert group(fused).packing.together is not None
    fused.load_state_dict(state, assign=True)
    assert group(fused).packing.together is None


def test_without_memory_for_it_weights_stay_where_they_are(monkeypatch, caplog):
    def full(weights):
        raise torch.OutOfMemoryError("no memory left")

    model, fused, x = pair()
    for each in (model, fused):
        each.double()
    monkeypatch.setattr(_packing._memory, "room", full)
    same(model, fused, *[x.double()] * _group.WASTED, rounds=0)
    assert "cannot be moved: no memory left" in caplog.text


def test_weights_do_not_move_while_another_thread_computes_with_them(monkeypatch):
    """2026-11-30: it read memory that was freed, one call of 400 in a loop."""
    monkeypatch.setattr(_gate, "PATIENCE", 2)
    model, fused, x = pair()
    for each in (model, fused):
        state = {key: value * 2 for key, value in each.state_dict().items()}
        each.load_state_dict(state, assign=True)
        del state
    group(fused).packing.gate.inside["one"] = "another thread"
    same(model, fused, x, rounds=0)
    del group(fused).packing.gate.inside["one"]
    same(model, fused, x, rounds=1)
    assert not group(fused).packing.gate.inside


def test_threads_wait_while_weights_move():
    _, fused, x = pair()
    thread = threading.Thread(target=infer, args=[lambda: fused.b(x)])
    with group(fused).packing.gate.lock, group(fused).packing.gate.closed() as alone:
        thread.start()
        thread.join(0.05)
        assert alone
        assert thread.is_alive()
        assert not group(fused).packing.gate.inside
    thread.join()


def test_a_thread_that_moves_a_weight_while_it_is_packed(monkeypatch):
    """Its new place is not the one that the product reads."""
    model, fused, x = pair()
    whole_bias = _packing._memory.whole_bias

    def meanwhile(*given):
        set_data(fused.b.weight, torch.clone)
        return whole_bias(*given)

    for each in (model, fused):
        each.double()
    with monkeypatch.context() as patch:
        patch.setattr(_packing._memory, "whole_bias", meanwhile)
        same(model, fused, x.double())
    for each in (model, fused):
        each.b.weight.mul_(2)
    same(model, fused, x.double(), x.double())


def test_memory_that_others_know_stays_where_it_is(caplog):
    model, fused, x = pair()
    state = {key: value * 2 for key, value in model.state_dict().items()}
    for each in (model, fused):
        each.load_state_dict(state, assign=True)
    same(model, fused, x, rounds=0)
    for value in state.values():
        value.mul_(3)
    same(model, fused, *[x] * _group.WASTED, rounds=0)
    assert "the memory of" in caplog.text


def test_shared_with_other_processes():
    model, fused, x = pair()
    fused.share_memory()
    same(model, fused, x, rounds=0)
    assert all(p.is_shared() for p in fused.parameters())


def test_each_parameter_is_stored_once():
    _, fused, _ = pair()
    ends = [p.untyped_storage().nbytes() == p.nbytes for p in fused.parameters()]
    assert ends == [True] * 4
    assert group(fused).packing.together[1].nbytes == 2 * fused.a.weight.nbytes
    places = [fused.a.weight.data_ptr(), fused.b.weight.data_ptr()]
    assert places[1] - places[0] == fused.a.weight.nbytes


@pytest.mark.parametrize("tool", copied.TOOLS.values(), ids=copied.TOOLS)
def test_copies(tool):
    model, fused, x = pair()
    double = tool(fused)
    assert group(double) is not group(fused)
    same(model, double, x, rounds=1)
    double.b.weight.data.zero_()
    same(model, fused, x, rounds=1)
    alone = tool(fused.b)
    torch.testing.assert_close(alone(x), model.b(x))
    assert len(pickle.dumps(fused.b)) < len(pickle.dumps(model.b)) + 500


def test_what_is_deleted_is_gone(caplog):
    model, fused, x = pair()
    weight = weakref.ref(group(fused).packing.together[1])
    gc.disable()
    try:
        sibling = weakref.ref(fused.b)
        del fused.b
        assert sibling() is None
        for _ in range(2):  # the first call is in vain, the second asks why
            torch.testing.assert_close(fused.a(x), model.a(x))
        assert weight() is None
        assert "a, b compute separately from now on: one of them is gone" in caplog.text
        _, fused, _ = pair()
        gone = weakref.ref(fused)
        del fused
        assert gone() is None
    finally:
        gc.enable()


def test_an_unfinished_round_goes_with_its_input():
    _, fused, x = pair()
    fused.a(x)
    parts = group(fused)._here.turn.parts
    assert len(parts) == 2
    del x
    assert parts == []


@pytest.mark.parametrize("served", [0, 1])
def test_groups_that_keep_missing_switch_themselves_off(served, caplog):
    """After a round that served all, as often as in the beginning."""
    model, fused, x = pair()
    same(model, fused, *[x] * served, rounds=served)
    for _ in range(_group.WASTED):
        fused.a(x)
    assert not caplog.text
    fused.a(x)
    assert "a, b compute separately from now on: 8 times in a row" in caplog.text
    same(model, fused, x, rounds=0)


def test_groups_whose_weights_keep_moving_switch_themselves_off(caplog):
    model, fused, x = pair()
    for _ in range(_group.PACKED_AGAIN - 1):
        fused.b.weight.data = fused.b.weight.data.clone()
        same(model, fused, x, x, rounds=1)  # the first call notices, the second packs
    assert not group(fused).off
    fused.b.weight.data = fused.b.weight.data.clone()
    same(model, fused, x, x, rounds=0)
    assert "their weights keep moving in memory" in caplog.text
    _, fused, _ = pair()
    for _ in range(_group.PACKED_AGAIN + 1):
        fused.b.weight.data = fused.b.weight.data.clone()
        same(model, fused, *[x] * (1 + _group.SETTLED), rounds=_group.SETTLED)
    assert not group(fused).off


INPUTS = {
    "one row": lambda: torch.randn(1, 4),
    "none": lambda: torch.randn(0, 4),
    "unbatched": lambda: torch.randn(4),
    "more axes": lambda: torch.randn(2, 3, 4),
    "transposed": lambda: torch.randn(4, 7).t(),
    "double": lambda: torch.randn(4, 4).double(),
    "too wide": lambda: torch.randn(4, 5),
    "sparse": lambda: torch.randn(4, 4).to_sparse(),
    "inference": lambda: infer_tensor(),
    "no tensor": lambda: 3,
}


@torch.inference_mode()
def infer_tensor():
    return torch.randn(4, 4)


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name):
    model, fused, _ = pair()
    same(model, fused, INPUTS[name]())


def test_unbatched_images():
    model, fused, x = pair(conv)
    same(model, fused, x[0], x[:0], x.to(memory_format=torch.channels_last), rounds=3)


def test_a_view_of_a_part_that_was_in_one_piece_by_chance():
    class Flat(Net):
        def forward(self, x):
            return self.a(x).view(-1), self.b(x)

    torch.manual_seed(0)
    model = Flat(lambda: nn.Linear(4, 4)).eval().requires_grad_(False)
    fused = hfusion.fuse(model, torch.randn(1, 4))
    torch.testing.assert_close(fused(torch.ones(5, 4)), model(torch.ones(5, 4)))


def test_threads():
    model, fused, _ = pair()
    fused, failures = copy.deepcopy(fused), []

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(50):
            x = torch.randn(4, 4, generator=generator)
            if not torch.allclose(fused(x)[1], model(x)[1], atol=1e-5):
                failures.append(seed)

    in_threads(run)
    assert not failures
    assert group(fused)._packings == 1
    assert not group(fused).off


def test_for_data_parallel_a_replica_is_on_its_own():
    _, fused, _ = pair()
    replica = fused.a._replicate_for_data_parallel()
    assert not {*_members.ROUTED} & {*vars(replica)}
    assert _members.member_of(fused.a)


class Aliased(Net):
    def forward(self, x):
        y, other = self.a(x), self.b(x)
        view = y.view_as(y)
        view += y
        return y, other


@pytest.mark.parametrize("make", [linear, conv])
def test_one_row_in_one_piece_has_the_strides_of_a_tensor_of_its_own(make):
    """2026-11-30: torch refused to add a part to a view of it: their strides differed."""
    template, x = make()
    model = Aliased(lambda: copy.deepcopy(template.a)).eval().requires_grad_(False)
    fused = copy.deepcopy(model)
    _group.route([fused.a, fused.b], "ab")
    same(model, fused, x[:1], rounds=1)
    with torch.no_grad():
        parts, wanted = fused(x[:1]), model(x[:1])
    assert [y.stride() for y in parts] == [y.stride() for y in wanted]
