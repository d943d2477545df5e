"""Random networks, fused, compute what they did; and deliberate mistakes are noticed.

HFUSION_CASES says how many networks are drawn: 100 in `make test`, 300 in `make test-all`.
The seed that notices a mistake is stored; HFUSION_SEARCH=1 looks for one again, among five
hundred, as is done weekly.
"""

import contextlib
import dataclasses
import os

import pytest
import torch
import trial
from torch import nn
from trial import Tally, failure, with_one_thread

from hfusion import stacking
from hfusion.finding import aliasing, reading, running
from hfusion.fusing import _checks, _group, lowering, siblings
from hfusion.stacking import rules, windows
from hfusion.stacking import stacked as stacked_module

CASES = int(os.environ.get("HFUSION_CASES", "100"))
SEARCH = os.environ.get("HFUSION_SEARCH") == "1"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small are not worth a second one."""
    threads, pays = torch.get_num_threads(), siblings._pays
    with_one_thread()
    yield
    torch.set_num_threads(threads)
    siblings._pays = pays


def test_fused_networks_compute_what_the_originals_do():
    tally = Tally()
    for seed in range(CASES):
        tally.add(seed)
    print(tally)
    shown = "\n\n".join(failure(seed) for seed in tally.wrong[:3])
    assert not tally.wrong, f"{len(tally.wrong)} of {CASES}: {tally.wrong[:20]}\n{shown}"
    check_shares(tally.count)


def check_shares(count):
    """Not that all is refused, nor that all computes separately: a good share of each."""
    cases = count["cases"]
    assert count["raised"] < 0.05 * cases
    assert count["uncopied"] < 0.002 * cases
    assert count["planned by reading"] > 0.85 * cases
    assert count["gradients"] > 0.3 * cases
    assert count["lowered with stacked layers"] > 0.3 * cases
    for way in ("reading", "running"):
        fused, together = (
            count[f"{way}: networks fused"],
            count[f"{way}: networks computed together"],
        )
        assert fused > 0.4 * cases
        assert count[f"{way}: groups"] > 1.15 * count[f"{way}: groups fused"]
        assert together > 0.7 * fused
        assert count[f"{way}: layout matters elsewhere"] < 0.02 * cases
        assert count[f"{way}: order of axes seen"] < 0.002 * cases
        assert count[f"{way}: followed"] > 0.02 * cases
        assert count[f"{way}: windows of several sizes"] > 0.01 * cases


# Deliberate mistakes.


def although_written_to(self, index, x, mode):
    """A part is handed out although the input was written to."""
    self._version = x._version
    return take(self, index, x, mode)


def of_any_input(self, x):
    self._version, self._place = x._version, _checks._place(x)
    return True


def rolled(group, x, weight, bias):
    return product(group, x, weight, bias).roll(1, group.dim)


def wrong_order(stacked, x):
    y, sizes = stacked.product(x), stacked.sizes[::-1]
    return tuple(y.unsafe_split_with_sizes(sizes, stacked.dim))


def padding_left(layers):
    window = common(layers)
    return dataclasses.replace(window, padding=layers[0].padding)


def in_the_corner(window, layer):
    sides = zip(window.kernel_size, layer.kernel_size, strict=True)
    return tuple(large - small for large, small in sides)


def rows_shuffled(weights, biases):
    weight, bias = stack_parameters(weights, biases)
    return nn.Parameter(weight.detach().roll(1, 0), weight.requires_grad), bias


take = _checks.Round.take
product, common = _group.FusedGroup._product, windows.common
stack_parameters = stacking.stack_parameters
# {what is wrong: (a seed that notices it, what is patched)}
MISTAKES = {
    "writes to the input": (159, _checks.Round, "take", although_written_to),
    "another input": (159, _checks.Round, "of", of_any_input),
    "weights replaced": (1, _checks.Row, "same", lambda row: True),
    "gradients forgotten": (1, _group.FusedGroup, "_learns", lambda group, x: False),
    "parts of a product rolled": (1, _group.FusedGroup, "_product", rolled),
    "nobody asks for layout": (28, reading.Reading, "layout_readers",
        lambda self, groups: {}),
    "no run asks for layout": (28, running.Run, "layout_readers", lambda self, groups: {}),
    "lowered: no writes known": (21, aliasing, "written", lambda node, modules: []),
    "lowered: nothing shares memory": (21, aliasing, "_sources", lambda node, modules: []),
    "lowered: everything known": (36, aliasing, "known", lambda node, modules: True),
    "lowered: no function in place": (33, aliasing, "_asks_for_inplace",
        lambda node: False),
    "lowered: writes forgotten": (21, aliasing.Memory, "version", lambda *_: 0),
    "lowered: views stay": (27, lowering, "_let_views_copy", lambda now, where: None),
    "lowered: layout": (36, aliasing.Memory, "counts_on_layout", lambda memory, node: None),
    "lowered: all are one layer": (13, lowering, "_one_layer", lambda *_: True),
    "lowered: weights read": (13, lowering, "_read_by_graph", lambda *_: False),
    "lowered: in the wrong order": (1, stacking.Stacked, "forward", wrong_order),
    "lowered: rows shuffled": (1, stacked_module, "stack_parameters", rows_shuffled),
    "unlike layers": (12, rules, "unlike", lambda labelled, embed=False, kept=(): ""),
    "padding not moved": (21, windows, "common", padding_left),
    "embedded in the corner": (6, windows.Window, "margins", in_the_corner),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_noticed(mistake, monkeypatch):
    seed, *patched = mistake
    monkeypatch.setattr(*patched)
    assert any(failure(seed) for seed in (range(500) if SEARCH else [seed]))


def test_nothing_but_the_order_of_axes_is_excused(monkeypatch):
    """A network of which `as_strided` reads what a convolution makes of a part."""
    seed = 1181
    assert trial.check(seed).reordered == {"running"}
    with monkeypatch.context() as patched:
        patched.setattr(_group.FusedGroup, "_product", rolled)
        assert failure(seed)
    monkeypatch.setattr(trial, "with_axes_in_order", contextlib.nullcontext)
    assert "found by running" in failure(seed)


def test_only_a_network_that_differs_from_its_own_copy_is_left_out(monkeypatch):
    """Forward writes to a weight, and another layer's weight shares its memory."""
    seed = 9972
    assert trial.check(seed).status == "uncopied"
    monkeypatch.setattr(trial, "can_be_copied", lambda trial: True)
    assert failure(seed)
