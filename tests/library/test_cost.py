"""cost.py: bytes and FLOPs counted by hand, times that must hold whatever the numbers."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hfusion import models, stacking
from hfusion.folding.fold import fold_batchnorm
from hfusion.timing import cost, one_window, traffic
from hfusion.timing.cost import Ceilings, Kernel

GPU = Ceilings(1e15, 5e12, 3e-6, 1e-6, overlaps=True)
CPU = Ceilings(2e11, 3e10, 7e-6, 0, overlaps=False)
MACHINES = pytest.mark.parametrize("machine", [GPU, CPU], ids=["gpu", "cpu"])

small = st.integers(1, 300)
shapes = st.tuples(st.lists(small, min_size=2, max_size=4), small, st.integers(1, 10**6))


def test_a_product_by_hand():
    # 2 outputs of 3 inputs at 5 pixels: 2·5 sums of 3 products, 2·5 biases added.
    kernel = cost.product(2, 3, 5, item_bytes=4)
    assert kernel.flops == 2 * 2 * 3 * 5 + 2 * 5
    assert kernel.bytes == 4 * (3 * 5 + 2 * 3 + 2 + 2 * 5)
    assert kernel.intensity == 70 / 132


def test_the_flops_of_a_product_are_those_that_torch_counts():
    conv, x = torch.nn.Conv2d(192, 64, 1), torch.zeros(2, 192, 28, 28)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        conv(x)
    without_bias = cost.product(64, 192, 2 * 28 * 28, 4).flops - 64 * 2 * 28 * 28
    assert without_bias == counter.get_total_flops()


def test_the_bytes_of_a_product_are_those_of_its_tensors():
    conv, x = torch.nn.Conv2d(192, 64, 1).double(), torch.zeros(2, 192, 28, 28).double()
    tensors = [x, conv(x), *conv.parameters()]
    moved = sum(t.numel() * t.element_size() for t in tensors)
    assert cost.product(64, 192, 2 * 28 * 28, 8).bytes == moved


NUMBERS = {"input": 15, "weight": 6, "output": 10}  # of 2 outputs, 3 inputs, 5 pixels


@pytest.mark.parametrize("part", NUMBERS)
def test_what_is_reordered_is_read_and_written_once(part):
    inside = cost.reorder(2, 3, 5, 4, (part,))
    assert inside == Kernel(0, 2 * 4 * NUMBERS[part], launches=0)
    both = cost.reorder(2, 3, 5, 4, (part, "input"))
    assert both.bytes == sum(2 * 4 * NUMBERS[p] for p in (part, "input"))


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match=r"^parts: expected .*, got \['bias'\]$"):
        cost.reorder(2, 3, 5, 4, ("input", "bias"))


def test_a_reorder_is_no_launch():
    plain, inside = (
        cost.stage((2, 2), 3, 5, 4, reordered=parts) for parts in ((), cost.PARTS)
    )
    free = Ceilings(1e30, 1e30, 1e-6, 0, overlaps=False)
    for way in ("separate", "stacked"):
        times = [cost.seconds(ways[way], free) for ways in (plain, inside)]
        assert times[0] == pytest.approx(times[1])
    slow = Ceilings(1e30, 1e6, 0, 0, overlaps=False)
    saved = cost.seconds(inside["separate"], slow) - cost.seconds(inside["stacked"], slow)
    # The input is read once less, and not reordered a second time.
    assert saved == pytest.approx((1 + 2) * 3 * 5 * 4 / 1e6)


def test_a_copy_reads_and_writes_every_number():
    x = torch.zeros(16, 100, dtype=torch.float16)
    assert cost.copy(16, 100, 2) == Kernel(0, 2 * x.numel() * x.element_size())


def total(kernels, field):
    return sum(getattr(kernel, field) for kernel in kernels)


@given(shapes)
def test_stacking_saves_readings_of_the_input_and_nothing_else(shape):
    sizes, c_in, positions = shape
    ways = cost.stage(sizes, c_in, positions, 4)
    assert len(ways["separate"]) == len(sizes)
    assert len(ways["stacked"]) == 1
    assert total(ways["separate"], "flops") == total(ways["stacked"], "flops")
    saved = total(ways["separate"], "bytes") - total(ways["stacked"], "bytes")
    assert saved == 4 * (len(sizes) - 1) * c_in * positions


@given(shapes)
def test_copies_come_on_top(shape):
    sizes, c_in, positions = shape
    ways = cost.stage(sizes, c_in, positions, 2, copied=sizes[1:])
    assert len(ways["copied"]) == len(sizes)
    paid = total(ways["copied"], "bytes") - total(ways["stacked"], "bytes")
    assert paid == 2 * 2 * sum(sizes[1:]) * positions


def test_a_kernel_takes_the_longest_of_its_times_where_they_overlap():
    for flops, moved, wanted_s in (
        (10**12, 10, 1e-3),  # arithmetic
        (10, 5 * 10**9, 1e-3),  # memory
        (10, 10, 3e-6),  # the launch
    ):
        assert cost.seconds([Kernel(flops, moved)], GPU) == pytest.approx(wanted_s)


def test_in_a_graph_the_least_kernel_is_the_floor():
    assert cost.seconds([Kernel(10, 10)] * 5, GPU, graph=True) == pytest.approx(5e-6)
    assert cost.seconds([Kernel(10, 10)] * 5, GPU) == pytest.approx(15e-6)


def test_a_graph_may_turn_a_gain_into_a_loss():
    # Five launches of 3 µs against one kernel of 10 µs; on the device five take 5 µs.
    before, after = [Kernel(10, 10)] * 5, [Kernel(10, 5 * 10**7)]
    assert cost.gain(before, after, GPU) == pytest.approx(1.5)
    assert cost.gain(before, after, GPU, graph=True) == pytest.approx(0.5)


def test_where_nothing_overlaps_times_add_up():
    kernels = [Kernel(2 * 10**8, 3 * 10**7)] * 2
    assert cost.seconds(kernels, CPU) == pytest.approx(2 * (1e-3 + 1e-3 + 7e-6))


@MACHINES
@given(shape=shapes)
def test_stacking_without_copies_never_loses_in_the_model(machine, shape):
    sizes, c_in, positions = shape
    ways = cost.stage(sizes, c_in, positions, 4)
    for graph in (False, True):
        gain = cost.gain(ways["separate"], ways["stacked"], machine, graph)
        assert gain >= 1 - 1e-9


@given(shape=shapes)
def test_with_copies_the_widths_decide_where_all_adds_up(shape):
    """Chapter 9: two of three copied, K_c = C is the break-even."""
    sizes, c_in, positions = shape
    three = (sizes[0], *sizes[:2])
    copied = three[1:]
    ways = cost.stage(three, c_in, positions, 4, copied=copied)
    gain = cost.gain(ways["separate"], ways["copied"], CPU)
    saved = 2 * c_in - 2 * sum(copied)
    if saved == 0:
        assert gain == pytest.approx(1)
    else:
        assert (gain > 1) == (saved > 0)


@MACHINES
def test_a_faster_machine_is_not_slower(machine):
    ways = cost.stage((64, 96, 16), 192, 784, 4, copied=(96, 16))
    for field in ("flops_per_s", "bytes_per_s"):
        faster = dataclasses.replace(machine, **{field: 2 * getattr(machine, field)})
        for kernels in ways.values():
            assert cost.seconds(kernels, faster) <= cost.seconds(kernels, machine)


# An Inception module, and the least it could cost.


@pytest.mark.parametrize("row", models.TABLE)
def test_two_launches_compute_and_move_what_torch_counts(row):
    c_in, side, *widths = models.TABLE[row]
    module = fold_batchnorm(models.Inception.from_table(row).eval())
    x = torch.zeros(2, c_in, side, side)
    seen = {}
    for name, conv in module.named_modules():
        if isinstance(conv, torch.nn.Conv2d):
            conv.register_forward_hook(lambda conv, x, y, name=name: seen.update({name: y}))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = module(x)
        pooled = module.pool(x)
    positions = 2 * side * side
    kernels = traffic.in_two((c_in, *widths), positions, 4)
    biases = sum(y.numel() for y in seen.values())
    assert sum(k.flops for k in kernels) == counter.get_total_flops() + biases
    weights = [p.numel() for p in module.parameters()]
    passed_on = [seen["b3_reduce.conv"].numel(), seen["b5_reduce.conv"].numel()]
    passed_on.append(pooled.numel())
    least = x.numel() + sum(weights) + y.numel()
    assert traffic.least((c_in, *widths), positions, 4).bytes == 4 * least
    assert sum(k.bytes for k in kernels) == 4 * (least + 2 * sum(passed_on))
    written_first = sum(passed_on) + seen["b1.conv"].numel()
    first = ("b1.", "b3_reduce.", "b5_reduce.")
    read_first = x.numel() + sum(
        p.numel() for name, p in module.named_parameters() if name.startswith(first)
    )
    assert kernels[0].bytes == 4 * (read_first + written_first)


def test_the_limit_is_the_empty_chain_and_the_longer_of_two_times():
    # 1000 FLOPs at 1e9 a second are 1 µs; so are 2000 bytes at 2e9 a second.
    ceilings = Ceilings(1e9, 2e9, launch_s=9, kernel_s=1.5e-6, overlaps=True)
    assert cost.limit(Kernel(1000, 500), ceilings, 2) == pytest.approx(4e-6)
    assert cost.limit(Kernel(1000, 8000), ceilings, 2) == pytest.approx(7e-6)


def test_merged_is_one_launch():
    assert cost.merged(Kernel(1, 2), Kernel(3, 4), Kernel(0, 1, 0)) == Kernel(4, 7, 1)


windows = st.tuples(st.integers(1, 7), st.integers(1, 7))
siblings = st.lists(st.tuples(st.integers(1, 40), windows), min_size=2, max_size=4)


def test_inflation_by_hand():
    # GoogLeNet's first module in its naive form: 1×1, 3×3 and 5×5 side by side.
    separate = 64 * 1 + 128 * 9 + 32 * 25
    by_hand = 25 * (64 + 128 + 32) / separate
    assert one_window.inflation((64, 128, 32), ((1, 1), (3, 3), (5, 5))) == by_hand
    assert one_window.inflation((5,), ((1, 1),)) == 1
    assert one_window.common(((1, 7), (7, 1), (3, 3))) == (7, 7)


@given(siblings, small)
def test_inflation_is_what_torch_counts_more(members, c_in):
    sizes, sides = zip(*members, strict=True)
    counted = []
    for shapes in (members, [(sum(sizes), one_window.common(sides))]):
        with FlopCounterMode(display=False) as counter:
            for size, (height, width) in shapes:
                x = torch.empty(1, c_in, height + 2, width + 1, device="meta")
                torch.nn.functional.conv2d(
                    x, torch.empty(size, c_in, height, width, device="meta")
                )
        counted.append(counter.get_total_flops())
    assert one_window.inflation(sizes, sides) == pytest.approx(counted[1] / counted[0])


@given(siblings, small, st.integers(1, 10**6))
def test_embedding_never_computes_less_and_reads_the_input_once(members, c_in, positions):
    sizes, sides = zip(*members, strict=True)
    ways = one_window.embedded(sizes, sides, c_in, positions, 4)
    flops, moved = (
        {way: sum(getattr(k, what) for k in ways[way]) for way in ways}
        for what in ("flops", "bytes")
    )
    assert flops["embedded"] >= flops["separate"]
    larger = sum(sizes) * one_window.inflation(sizes, sides) * c_in * 4
    read_again = (len(sizes) - 1) * c_in * positions * 4
    assert moved["embedded"] <= moved["separate"] - read_again + larger * 49
    if len(set(sides)) == 1:
        assert moved["embedded"] == moved["separate"] - read_again


@given(siblings, small)
def test_at_the_break_even_both_ways_take_as_long(members, c_in):
    sizes, sides = zip(*members, strict=True)
    positions = one_window.break_even(sizes, sides, c_in, CPU)
    no_bytes = dataclasses.replace(CPU, bytes_per_s=float("inf"))
    if positions == float("inf"):
        assert len(set(sides)) == 1
        return
    ways = one_window.embedded(sizes, sides, c_in, positions, 4)
    assert cost.gain(ways["separate"], ways["embedded"], no_bytes) == pytest.approx(1)
    for times, wins in ((0.5, True), (2, False)):
        ways = one_window.embedded(sizes, sides, c_in, times * positions, 4)
        gain = cost.gain(ways["separate"], ways["embedded"], no_bytes)
        assert (gain > 1) == wins


@pytest.mark.parametrize("sides", [(), ((1, 1),), ((1, 1), (3, 3), (5, 5))])
def test_a_window_for_each_sibling(sides):
    for count in (one_window.inflation, lambda *a: one_window.embedded(*a, 1, 1, 1)):
        with pytest.raises(ValueError, match=rf"windows: .* 2 sizes, got {len(sides)}"):
            count((4, 4), sides)


def test_where_times_overlap_there_is_no_such_break_even():
    with pytest.raises(ValueError, match=r"^ceilings: .* add up, got overlaps$"):
        one_window.break_even((4, 4), ((1, 1), (3, 3)), 8, GPU)


def test_windows_of_different_rank_have_none_in_common():
    with pytest.raises(ValueError, match="shorter"):
        one_window.common(((1, 7), (7,)))


class Stage(torch.nn.Module):
    """Siblings one of three ways, as the experiment `stage` times them."""

    def __init__(self, way, sizes, c_in):
        super().__init__()
        convs = [torch.nn.Conv2d(c_in, size, 1) for size in sizes]
        self.way, self.convs = way, torch.nn.ModuleList(convs)
        self.stacked = stacking.stack(convs)

    def forward(self, x):
        if self.way == "separate":
            return [conv(x) for conv in self.convs]
        parts = self.stacked(x)
        return parts if self.way == "stacked" else [parts[0], *(p + 0 for p in parts[1:])]


@pytest.mark.parametrize("way", ["separate", "stacked", "copied"])
def test_a_bias_apart_makes_the_kernels_of_eager_cuda(way):
    sizes = (64, 96, 16)
    ways = cost.stage(sizes, 192, 8 * 784, 2, copied=sizes[1:], bias_apart=True)
    module = Stage(way, sizes, 192)
    assert len(ways[way]) == cost.kernels(module, "bfloat16", "NHWC", 8)
    assert len(ways[way]) == {"separate": 6, "stacked": 2, "copied": 4}[way]


def test_a_bias_apart_is_the_same_arithmetic_and_the_output_once_more():
    whole = cost.stage((2,), 3, 5, 4)["separate"]
    apart = cost.stage((2,), 3, 5, 4, bias_apart=True)["separate"]
    assert sum(k.flops for k in apart) == whole[0].flops
    more = sum(k.bytes for k in apart) - whole[0].bytes
    assert more == 4 * 2 * (2 * 5)  # read and written: two channels of five pixels
    assert apart[1] == cost.add_bias(2, 5, 4) == Kernel(10, 4 * (2 * 10 + 2))
    inside = cost.stage((2,), 3, 5, 4, reordered=("input",), bias_apart=True)["separate"]
    assert [kernel.launches for kernel in inside] == [1, 0, 1]
