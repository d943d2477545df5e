"""windows.py: small windows in larger ones, alone, stacked, and in a network."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hfusion
from hfusion import models, stacking, timing
from hfusion.stacking import windows
from hfusion.timing import one_window

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def reference(conv, x):
    """The convolution as its definition says, tap by tap, from slices of the input."""
    padding = conv.padding
    x = nn.functional.pad(x, [p for p in padding[::-1] for _ in range(2)])
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    places = [
        (size - span - 1) // s + 1
        for size, span, s in zip(x.shape[2:], spans, conv.stride, strict=True)
    ]
    y = 0
    for tap in itertools.product(*map(range, conv.kernel_size)):
        cut = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s)
            for t, d, s, n in zip(tap, conv.dilation, conv.stride, places, strict=True)
        )
        weight = conv.weight[(..., *tap)]  # [K, C]
        y = y + torch.einsum("kc,nc...->nk...", weight, x[(..., *cut)])
    return y if conv.bias is None else y + conv.bias.view(-1, *[1] * len(places))


@st.composite
def siblings(draw):
    """Convolutions of one stride whose outputs have one size, and an input for them."""
    axes = draw(st.integers(1, 3))
    parity = draw(st.integers(0, 1))
    steps = [draw(st.integers(1, 3)) for _ in range(axes)]
    stride = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    shrink = [draw(st.integers(0, 3)) for _ in range(axes)]
    c_in, members = draw(st.integers(1, 3)), []
    for _ in range(draw(st.integers(2, 4))):
        size = tuple(2 * draw(st.integers(0, 2)) + 1 + parity for _ in range(axes))
        dilation = tuple(d if k > 1 else 1 for d, k in zip(steps, size, strict=True))
        # With an even window, a margin that all of them can have.
        padding = tuple(
            max(0, (d * (k - 1) - (d if parity else 0)) // 2 - cut + 3)
            for d, k, cut in zip(steps, size, shrink, strict=True)
        )
        conv = CONVS[axes](
            c_in, draw(st.integers(1, 3)), size, stride, padding, dilation,
            bias=draw(st.booleans()),
        )  # fmt: skip
        members.append(models.randomise(conv, len(members)).double())
    x = torch.randn(2, c_in, *[13, 9, 8][:axes], dtype=torch.float64)
    return members, x


@settings(deadline=None, max_examples=150)
@given(siblings())
def test_siblings_in_one_window_compute_what_they_did(drawn):
    members, x = drawn
    stacked = stacking.stack(members, embed=True)
    for branch, conv in zip(stacked(x), members, strict=True):
        timing.agree(branch, reference(conv, x), 1e-11)
    for again, conv in zip(stacking.unstack(stacked).values(), members, strict=True):
        assert repr(again) == repr(conv)
        assert again.weight.is_contiguous() == conv.weight.is_contiguous()
        for a, b in zip(again.parameters(), conv.parameters(), strict=True):
            timing.agree(a, b)
    state, expected = stacked.state_dict(), nn.ModuleList(members).state_dict()
    assert set(state) == set(expected)
    for key, tensor in expected.items():
        timing.agree(state[key], tensor)


def pair(**options):
    """A 1×1 and a 3×3 with one size of output."""
    small = nn.Conv2d(3, 4, 1, **options)
    options = {"padding": 1} | options
    return [models.randomise(m) for m in (small, nn.Conv2d(3, 5, 3, **options))]


def test_without_being_asked_nothing_is_embedded():
    message = timing.refusal(stacking.stack, pair())
    assert message.startswith("kernel_size differs: layers[0] (1, 1), layers[1] (3, 3)")


# What cannot be embedded: (layers, the reason, why stacking anyway would be wrong).
REFUSED = {
    "padding not moved": ([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3)],
        r"growth differs: layers\[0\] \(0, 0\), layers\[1\] \(-2, -2\)"),
    "strides": ([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, stride=2, padding=1)],
        "stride differs"),
    "dilations": (
        [nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.Conv2d(3, 4, 5, padding=2)],
        r"dilation along axis 0 differs: layers\[0\] 2, layers\[1\] 1",
    ),
    "no middle": ([nn.Conv1d(3, 4, size, padding=size - 1, dilation=2) for size in (2, 3)],
        r"parity of kernel_size differs"),
    "border of something else": (
        [nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")],
        "padding_mode of .*: expected 'zeros', .*, got 'reflect'",
    ),
    "more on one side": (
        [nn.Conv2d(3, 4, 2, padding="same"), nn.Conv2d(3, 4, 4, padding="same")],
        "padding of .*: expected the same on both sides",
    ),
    "layouts": (
        [
            nn.Conv2d(3, 4, 1).to(memory_format=torch.channels_last),
            nn.Conv2d(3, 4, 3, padding=1),
        ],
        r"order of weight in memory differs: layers\[0\] \(1, 2, 0\)",
    ),
    "groups": ([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)],
        r"groups of layers\[1\]: expected 1, got 4"),
    "inputs": ([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)], "in_channels differs"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(name):
    members, reason = REFUSED[name]
    with pytest.raises(hfusion.FusionError, match=reason):
        stacking.stack(members, embed=True)
    assert stacking.unstackable(members, embed=True) != ""


def test_words_for_padding_are_understood_and_given_back():
    members = [nn.Conv2d(3, 4, 1, padding="valid"), nn.Conv2d(3, 4, 3, padding="same")]
    members = [models.randomise(conv) for conv in members]
    stacked, x = stacking.stack(members, embed=True), torch.randn(1, 3, 6, 6)
    for branch, conv in zip(stacked(x), members, strict=True):
        timing.agree(branch, conv(x), 1e-5)
    again = stacking.unstack(stacked).values()
    assert [conv.padding for conv in again] == ["valid", "same"]


def test_the_zeros_stay_zero_in_training():
    members = pair()
    stacked, x = stacking.stack(copy.deepcopy(members), embed=True), torch.randn(4, 3, 6, 6)
    separate = nn.ModuleList(members)
    for net in (stacked, separate):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            parts = stacked(x) if net is stacked else [conv(x) for conv in separate]
            sum(part.square().sum() for part in parts).backward()
            optimizer.step()
    for key, tensor in separate.state_dict().items():
        timing.agree(stacked.state_dict()[key], tensor, 1e-4)
    around = stacked.layer.weight[:4].clone()
    around[:, :, 1, 1] = 0
    assert not around.any()


def test_without_the_mask_they_would_not(monkeypatch):
    stacked, x = stacking.stack(pair(), embed=True), torch.randn(4, 3, 6, 6)
    stacked.margin_mask = None
    sum(part.square().sum() for part in stacked(x)).backward()
    assert stacked.layer.weight.grad[:4, :, 0, 0].any()


def test_without_gradients_nothing_is_launched_but_the_convolution():
    stacked, x = stacking.stack(pair(), embed=True), torch.randn(4, 3, 6, 6)
    assert timing.count_launches(lambda: stacked(x)).names == ("convolution",)


def test_a_state_is_loaded_into_the_windows():
    members, others = pair(), [models.randomise(conv, 7) for conv in pair()]
    stacked, x = stacking.stack(members, embed=True), torch.randn(4, 3, 6, 6)
    stacked.load_state_dict(nn.ModuleList(others).state_dict())
    for branch, conv in zip(stacked(x), others, strict=True):
        timing.agree(branch, conv(x), 1e-5)
    wrong = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)]).state_dict()
    with pytest.raises(
        RuntimeError, match=r"0.weight: expected a tensor \[4, 3, 1, 1\], got"
    ):
        stacked.load_state_dict(wrong)


def test_a_state_fills_what_was_never_set():
    stacked = stacking.stack(pair(), embed=True)
    state = {key: tensor.clone() for key, tensor in stacked.state_dict().items()}
    empty = copy.deepcopy(stacked).to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        for a, b in zip(empty(x), stacked(x), strict=True):
            timing.agree(a, b)
    timing.agree(empty.margin_mask.int(), stacked.margin_mask.int())


def test_channels_last_is_kept():
    members = [conv.to(memory_format=torch.channels_last) for conv in pair()]
    stacked = stacking.stack(members, embed=True)
    assert stacked.layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_is_not_finite_reaches_its_neighbours():
    """Where embedding is not the same, and why it has to be asked for."""
    members, x = pair(), torch.zeros(1, 3, 5, 5)
    x[0, 0, 2, 2] = float("inf")
    small, embedded = members[0](x), stacking.stack(members, embed=True)(x)[0]
    assert int(small.isfinite().logical_not().sum()) == 4
    assert int(embedded.isfinite().logical_not().sum()) == 4 * 9


class Naive(nn.Module):
    """Szegedy et al. 2014, figure 2a: windows of three sizes on one input."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(8, 4, 1)
        self.three = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.five = nn.Conv2d(8, 5, 5, padding=2)
        self.other = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        parts = (self.one(x), self.three(x), self.five(x), self.other(x))
        return torch.cat([part.relu() for part in parts], 1)


@pytest.fixture
def naive():
    return models.randomise(Naive()).double()


@pytest.fixture
def x():
    return torch.randn(2, 8, 9, 7, dtype=torch.float64)


def test_a_plan_embeds_only_when_asked(naive, x):
    (group,) = hfusion.plan(naive).groups
    assert group.members == ("one", "other")
    assert (group.window, group.extra_macs) == (None, 0)
    planned = hfusion.plan(naive, embed=True)
    (group,) = planned.groups
    assert group.members == ("one", "three", "five", "other")
    sizes, sides = (4, 6, 5, 3), ((1, 1), (3, 3), (5, 5), (1, 1))
    before = 8 * (4 + 6 * 9 + 5 * 25 + 3)
    assert group.extra_macs == round(before * (one_window.inflation(sizes, sides) - 1))
    assert "embedded in 5×5: 1,488 -> 3,600 multiply-adds a pixel" in str(planned)
    assert planned.calls == {"Conv2d": (4, 1)}
    fused = planned.apply()
    timing.agree(fused(x), naive(x), 1e-10)
    state, expected = fused.state_dict(), naive.state_dict()
    assert list(state) == list(expected)
    again = hfusion.unfuse(fused)
    for key, tensor in expected.items():
        timing.agree(state[key], tensor)
        timing.agree(again.state_dict()[key], tensor)
    timing.agree(again(x), naive(x))


def test_where_an_embedding_is_refused_those_of_one_size_are_fused(naive):
    asked = []

    def accept(group):
        asked.append(group.members)
        return "too much work" if group.extra_macs else True

    planned = hfusion.plan(naive, accept=accept, embed=True)
    assert [(g.members, g.reason) for g in planned.groups] == [
        (("one", "three", "five", "other"), "too much work"),
        (("one", "other"), ""),
    ]
    assert asked == [g.members for g in planned.groups]


def test_a_window_that_does_not_fit_leaves_the_others_their_groups(naive):
    naive.five = nn.Conv2d(8, 5, 5, padding=4, dilation=2).double()
    refused, small = hfusion.plan(naive, embed=True).groups
    assert refused.reason.startswith("dilation along axis 0 differs: three 1, five 2")
    assert (small.members, small.fused) == (("one", "other"), True)


def test_siblings_that_could_be_embedded_are_told_what_else_they_differ_in():
    """And not that their windows differ, which they may."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.three = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 3, padding=1)
            self.three.to(torch.float64)

        def forward(self, x):
            return self.one(x), self.three(x)

    (group,) = hfusion.plan(Net(), embed=True).groups
    assert group.reason == (
        "dtype differs: one torch.float32, three torch.float64; siblings have one dtype"
    )


def test_pairs_of_two_dilations_are_fused_apart():
    """Their outputs have one size and their windows too, and yet they are no family."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, step in (("a", 1), ("b", 2), ("c", 1), ("d", 2)):
                setattr(self, name, nn.Conv2d(3, 4, 3, padding=step, dilation=step))

        def forward(self, x):
            return self.a(x), self.b(x), self.c(x), self.d(x)

    refused, *pairs = hfusion.plan(Net(), embed=True).groups
    assert refused.reason.startswith("padding differs")
    assert [(pair.members, pair.fused) for pair in pairs] == [
        (("a", "c"), True),
        (("b", "d"), True),
    ]


def test_the_judge_times_what_would_be_embedded(naive, x):
    judge = hfusion.faster((x,), margin=1e6, bursts=5, rounds=1, calls=1, apart=0)
    planned = hfusion.plan(naive, accept=judge, embed=True)
    assert [len(group.members) for group in planned.groups] == [4, 2]
    assert all("not faster: " in group.reason for group in planned.groups)


@pytest.mark.parametrize("embed", [1, None, "3×3"])
def test_embed_is_yes_or_no(naive, embed):
    with pytest.raises(hfusion.FusionError, match=f"^embed: .* or False, got {embed!r}$"):
        hfusion.plan(naive, embed=embed)


def test_a_window_says_its_sides():
    assert str(windows.Window((3, 5), (1, 2), (1, 1))) == "3×5"
    assert windows.window(nn.Linear(2, 3)) is None


class Impostor(nn.Module):
    """Somebody else's layer, which only has the name of one."""

    def __init__(self, kernel_size):
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight


Impostor.__name__, Impostor.__module__ = "Conv2d", "torch.nn.impostor"  # not traced into


@pytest.mark.parametrize("kernel_size", [3, [3, 3], (3, 3), None])
@pytest.mark.parametrize("embed", [False, True])
def test_a_layer_that_only_has_the_name_is_refused(naive, x, kernel_size, embed):
    """2026-11-23: plan() failed on a kernel_size that is a list."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.net = Impostor(kernel_size), Impostor(kernel_size), naive

        def forward(self, x):
            return self.a(x) + self.b(x), self.net(x)

    a, b, fused = hfusion.plan(Net(), embed=embed).groups
    for group, name in ((a, "a"), (b, "b")):
        assert group.reason.startswith(f"type of {name}: expected Conv1d")
    assert fused.fused
