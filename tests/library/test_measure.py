"""measure.py: what agrees, what is refused, what is counted, whose turn it is.

Nothing here depends on how fast the machine is: the clock is a fake one.
"""

import contextlib
import gc
import io
import itertools
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hfusion import models
from hfusion.timing import measure, summary
from hfusion.timing.measure import Disagreement, agree, near

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)
FINITE = st.floats(-100, 100)


# agree


def test_agreement_says_what_was_compared():
    assert str(agree(np.ones((2, 3)), np.ones((2, 3)))) == "exactly equal: 6 entries"
    rounded = str(agree([1.0, 2.0], [1.25, 2.0], 0.25))
    assert rounded == "equal within rounding: 2 entries, bound 2.5e-01"
    assert agree([1.0, 2.0], [1.5, 2.0], [0.5, 0.25]).bound == 0.5  # the largest
    assert agree(3, 3).entries == 1
    assert str(agree(3, 3)) == "exactly equal: 1 entry"


def test_disagreement_says_how_many_where_and_what():
    with pytest.raises(Disagreement) as error:
        agree([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.5, 5.0]])
    assert str(error.value) == ("2 of 4 entries differ; at (1, 0) it is 3, not 3.5")


@pytest.mark.parametrize(
    ("actual", "expected", "shown"),
    [
        ([1.00001], [1.0], "1.00001, not 1.0"),
        ([1e-300], [0.0], "1e-300, not 0"),
        ([True], [False], "1, not 0"),
    ],
)
def test_the_digits_in_which_two_results_differ_are_shown(actual, expected, shown):
    with pytest.raises(Disagreement, match=f"{shown}$"):
        agree(actual, expected)


@given(st.lists(st.tuples(FINITE, FINITE, st.floats(0, 1)), min_size=1, max_size=5))
@PROPERTY
def test_agree_is_a_loop_over_entries(entries):
    actual, expected, bound = zip(*entries, strict=True)
    apart = [not abs(a - e) <= b for a, e, b in entries]
    if any(apart):
        with pytest.raises(Disagreement, match=rf"^{sum(apart)} of {len(apart)} entries"):
            agree(actual, expected, bound)
    else:
        assert agree(actual, expected, bound).entries == len(entries)


@given(st.integers(0, 23), st.sampled_from([1e-12, -1.0, np.nan, np.inf, -np.inf]))
@PROPERTY
def test_one_changed_entry_is_found_wherever_it_is(place, change):
    expected = np.linspace(1, 2, 24).reshape(2, 3, 4)
    actual = expected.copy()
    actual.flat[place] += change
    where = tuple(int(i) for i in np.unravel_index(place, actual.shape))
    with pytest.raises(Disagreement, match="1 of 24 entries differ") as error:
        agree(actual, expected, 1e-13)
    assert f" at {where} it is" in str(error.value)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([np.nan], [1.0]),
        ([1.0], [np.nan]),
        ([np.nan], [np.nan]),
        ([np.inf], [1.0]),
        ([1.0], [-np.inf]),
        ([np.inf], [np.inf]),
        ([np.inf], [-np.inf]),
    ],
)
def test_nan_and_infinity_never_pass(actual, expected):  # and give no RuntimeWarning
    for bound in (0, 1e300):
        with pytest.raises(Disagreement, match="1 of 1 entries differ"):
            agree(actual, expected, bound)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros((2, 1)), np.zeros((2, 2))),  # would broadcast
        (np.zeros(1), np.zeros(())),
        (np.zeros((0, 3)), np.zeros((3, 0))),
    ],
)
def test_shapes_must_be_the_same(actual, expected):
    with pytest.raises(Disagreement) as error:
        agree(actual, expected, 1e300)
    assert str(error.value) == (
        f"the shape is {list(actual.shape)}, not {list(expected.shape)}"
    )


def test_the_bound_holds_entry_by_entry():
    bound = np.array([[0.1, 1.0], [2.0, 0.0]])
    agree(bound, np.zeros((2, 2)), bound)  # at the bound passes
    with pytest.raises(Disagreement, match=r"1 of 4 entries differ; at \(0, 0\)"):
        agree(bound * [[2, 1], [1, 1]], np.zeros((2, 2)), bound)
    with pytest.raises(Disagreement, match="2 of 4 entries"):
        agree(bound.T, np.zeros((2, 2)), bound.T[::-1])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64]
)
def test_tensors_of_any_kind_and_gradients_are_taken(dtype):
    tensor = torch.arange(4).to(dtype)
    assert agree(tensor, np.arange(4)).entries == 4
    assert agree(torch.arange(4.0, requires_grad=True), tensor).bound == 0
    with pytest.raises(Disagreement, match=r"at \(3,\) it is 3, not 2$"):
        agree(tensor, [0, 1, 2, 2])


@pytest.mark.parametrize(
    "bound",
    [-1, np.nan, np.inf, [0, -1], [0, np.inf], torch.tensor([0.0, torch.nan]),
     [0], [0, 0, 0], [[0, 0]], [[0], [0]]],
)  # fmt: skip
def test_a_bound_that_is_none_is_refused(bound):
    with pytest.raises(ValueError, match=r"^bound .*finite"):
        agree([1.0, 2.0], [1.0, 2.0], bound)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_nothing_agrees_with_nothing(shape):
    with pytest.raises(ValueError, match="actual is empty; nothing would be compared"):
        agree(np.zeros(shape), np.zeros(shape))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_exactly_is_to_the_last_bit(dtype):
    ones = np.ones(3, dtype)
    for next_one in (np.nextafter(ones, dtype(2)), np.nextafter(ones, dtype(0))):
        with pytest.raises(Disagreement, match="3 of 3 entries differ"):
            agree(next_one, ones)


def test_values_are_compared_and_nothing_else():
    agree(np.float16([0.0, -0.0, 0.5]), np.array([-0.0, 0.0, 0.5]))
    agree(torch.tensor([True]), [1.0])


def test_a_disagreement_is_an_assertion_error():
    assert issubclass(Disagreement, AssertionError)


# near: agree, for large results.

ONES = torch.ones(3)
TEN = torch.tensor([1.0, -10.0, 2.0])  # the largest, by its size, is the second


def test_near_is_an_agreement():
    assert near(TEN, TEN, 0.5) == measure.Agreement(entries=3, bound=5)
    assert str(near(TEN, TEN, 0.5)) == "equal within rounding: 3 entries, bound 5.0e+00"
    assert str(near(TEN, TEN, 0)) == "exactly equal: 3 entries"
    assert near(torch.tensor(3.0), torch.tensor(4.0), 0.25).entries == 1
    assert near(torch.zeros(2, 3), torch.zeros(2, 3), 0.5).bound == 0


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_near_allows_a_share_of_the_largest_expected_one(place, sign):
    actual = TEN.clone()
    actual[place] += sign * 2.5
    assert near(actual, TEN, 0.25).bound == 2.5  # at the bound passes
    actual[place] += sign * 2**-20
    with pytest.raises(Disagreement, match=rf"1 of 3 entries differ; at \({place},\)"):
        near(actual, TEN, 0.25)


def test_near_takes_no_share_of_the_actual_ones():
    with pytest.raises(Disagreement, match=r"it is 100, not 2$"):
        near(torch.tensor([1.0, -10.0, 100.0]), TEN, 0.95)
    with pytest.raises(Disagreement):
        near(TEN, torch.zeros(3), 0.5)  # of nothing


def test_near_allows_nothing_where_all_that_is_expected_is_zero():
    with pytest.raises(Disagreement):
        near(torch.tensor([0.005]), torch.tensor([0]), 0.01)
    with pytest.raises(Disagreement):
        near(torch.tensor([0.005]), torch.tensor([0.0]), 0.01)


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=5), st.floats(0, 1))
@PROPERTY
def test_near_is_a_loop_over_entries(entries, share):
    actual, expected = torch.tensor(entries, dtype=torch.float64).unbind(1)
    bound = share * max(abs(e) for _, e in entries)
    if any(abs(a - e) > bound for a, e in entries):
        with pytest.raises(Disagreement):
            near(actual, expected, share)
    else:
        assert near(actual, expected, share).bound == bound


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("share", [0, 0.5, 1e300])
def test_near_lets_neither_nan_nor_infinity_pass(bad, share):
    with_it = torch.tensor([1.0, bad, 1.0])
    with pytest.raises(Disagreement, match=r"1 of 3 entries differ; at \(1,\) it is"):
        near(with_it, ONES, share)
    for actual in (ONES, with_it):
        with pytest.raises(Disagreement):
            near(actual, with_it, share)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [((2, 3), (3, 2)), ((1, 2), (2, 2)), ((1,), ()), ((0, 3), (3,)), ((3,), (0,))],
)
def test_near_compares_one_shape_only(actual, expected):
    with pytest.raises(Disagreement) as error:
        near(torch.ones(actual), torch.ones(expected), 0.5)
    assert str(error.value) == f"the shape is {list(actual)}, not {list(expected)}"


def test_near_has_nothing_to_say_about_nothing():
    with pytest.raises(ValueError, match="actual is empty; nothing would be compared"):
        near(torch.ones(0, 2), torch.ones(0, 2), 0.5)


@pytest.mark.parametrize("share", [-0.5, np.nan, np.inf])
def test_near_refuses_what_is_no_share(share):
    with pytest.raises(ValueError, match=r"^share was .* a finite number from 0 fits"):
        near(TEN, TEN, share)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64]
)
def test_near_takes_real_numbers_of_any_kind_and_gradients(dtype):
    whole = torch.arange(4.0)
    assert near(whole.to(dtype), whole.double().requires_grad_(), 0).bound == 0
    assert near(whole.requires_grad_(), whole.to(dtype), 0).entries == 4
    with pytest.raises(Disagreement, match="1 of 4 entries differ"):
        near(whole.to(dtype), torch.tensor([0, 1, 2, 4]), 0.2)


def test_near_compares_in_float64():
    large = torch.tensor([2.0**24])  # in float32 one more is the same
    with pytest.raises(Disagreement):
        near(large, large.double() + 1, 0)
    with pytest.raises(Disagreement):
        near(torch.tensor([-128], dtype=torch.int8), torch.tensor([127]), 0.5)


def test_near_gives_no_entry_to_the_host_unless_it_refuses(monkeypatch):
    monkeypatch.setattr(measure, "agree", None)
    assert near(TEN, TEN + 1e-3, 1e-3).entries == 3


@pytest.mark.filterwarnings("ignore:Casting complex")
def test_near_refuses_complex_results_and_does_not_halve_them():
    with pytest.raises(ValueError, match="real numbers fit"):
        near(torch.tensor([1 + 2j]), torch.tensor([1 + 3j]), 0)


def test_near_refuses_whole_numbers_that_float64_cannot_hold():
    with pytest.raises(ValueError, match=r"up to 2\*\*53 fit"):
        near(torch.tensor([2**53 + 1]), torch.tensor([2**53]), 0)
    floats, whole = torch.tensor([2.0**53]), torch.tensor([2**53 + 1])  # alike in float64
    for actual, expected in ((floats, whole), (whole, floats)):
        with pytest.raises(ValueError, match=r"up to 2\*\*53 fit"):
            near(actual, expected, 0)


# refusal


@pytest.mark.parametrize("kind", [Disagreement, AssertionError, ValueError, RuntimeError])
def test_refusal_is_the_message(kind):
    def refuse(what, *, fits):
        raise kind(f"{what} was bad; {fits} fits")

    assert measure.refusal(refuse, "x", fits="y") == "x was bad; y fits"


def test_refusal_raises_when_the_call_goes_through():
    said = r"^the call went through, and should have been refused$"
    with pytest.raises(Disagreement, match=said):
        measure.refusal(agree, [1.0], [1.0])


def test_refusal_lets_other_errors_pass():
    with pytest.raises(ZeroDivisionError):
        measure.refusal(lambda: 1 / 0)


# differ


def test_differ_is_the_message_of_the_disagreement():
    assert measure.differ([1.0, 2.0], [1.0, 2.5], 0.25) == (
        "1 of 2 entries differ; at (1,) it is 2, not 2.5"
    )
    assert measure.differ([1.0], [[1.0]]) == "the shape is [1], not [1, 1]"
    assert measure.differ([True], [False]) == (
        "1 of 1 entries differ; at (0,) it is 1, not 0"  # if nobody says, exactly equal
    )


@pytest.mark.parametrize("bound", [0, 0.5])
def test_differ_raises_when_the_results_are_equal(bound):
    with pytest.raises(Disagreement, match=r"^the results are equal, and should differ$"):
        measure.differ([1.0, 2.0], [1.0, 2.0 + bound], bound)


def test_differ_takes_no_bad_argument_for_a_difference():
    with pytest.raises(ValueError, match="bound was nan"):
        measure.differ([1.0], [2.0], float("nan"))


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_whole_numbers_that_float64_cannot_hold_are_refused(make):
    assert agree(make([2**53]), make([2**53])).bound == 0
    for large in (2**53 + 1, -(2**53) - 1):
        with pytest.raises(ValueError, match=r"up to 2\*\*53 fit"):
            agree(make([large]), make([2**53]))


def test_small_integers_do_not_overflow_into_agreement():
    with pytest.raises(Disagreement):
        agree(np.array([-128], np.int8), np.array([0], np.int8), 1)


def test_complex_results_are_refused_and_not_halved():
    with pytest.raises(ValueError, match="complex128; real numbers fit"):
        agree([1 + 2j], [1 + 3j])


# count_launches

A = torch.arange(16.0).reshape(4, 4)


def counted(fn):
    return measure.count_launches(fn).names


OPERATORS = {
    "none": (lambda: None, ()),
    "two": (lambda: (A + A).relu(), ("add", "relu")),
    "the same twice": (lambda: (A + A, A + A), ("add", "add")),
    "in place": (lambda: A.clone().add_(1).relu_(), ("clone", "add_", "relu_")),
    "into a given tensor": (lambda: torch.add(A, A, out=torch.empty(4, 4)), ("add",)),
    "a copy": (lambda: A.t().contiguous(), ("clone",)),
    "no copy needed": (lambda: A.contiguous(), ()),
    "a concatenation": (lambda: torch.cat([A, A]), ("cat",)),
    "a convolution": (lambda: F.conv1d(A, A[:, :, None]), ("convolution",)),
    "a Linear": (lambda: F.linear(A, A, A[0]), ("addmm",)),
    "a Linear on three axes": (lambda: F.linear(A[None], A), ("mm",)),
    "memory": (lambda: (torch.empty(3), torch.empty_like(A), A.new_empty(2)), ()),
    "memory with strides": (lambda: torch.empty_strided((2, 2), (1, 2)), ()),
    "a fill": (lambda: torch.zeros(3), ("zeros",)),
}


@pytest.mark.parametrize(("fn", "names"), OPERATORS.values(), ids=OPERATORS)
def test_operators_that_compute_are_counted_in_order(fn, names):
    assert counted(fn) == names


VIEWS = {
    "split": lambda: A.split([1, 3]),
    "chunk": lambda: A.chunk(2),
    "reshape": lambda: A.reshape(2, 8),
    "view": lambda: A.view(16),
    "transpose": lambda: A.transpose(0, 1),
    "permute": lambda: A.permute(1, 0),
    "index": lambda: A[1:, None],
    "narrow": lambda: A.narrow(0, 1, 2),
    "expand": lambda: A.unsqueeze(0).expand(3, 4, 4),
    "unbind": lambda: A.unbind(),
    "diagonal": lambda: A.diagonal(),
    "detach": lambda: A.detach(),
    "unfold": lambda: A.unfold(0, 2, 1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_count_nothing(view):
    assert counted(view) == ()
    assert counted(lambda: (view(), A + 1)) == ("add",)


def test_an_inception_module_counts_twenty_operators():
    module = models.randomise(models.Inception.from_table("3a")).eval()
    x = torch.zeros(1, 192, 28, 28)
    names = counted(lambda: module(x))
    assert len(names) == 20
    expected = {"convolution": 6, "batch_norm": 6, "relu": 6, "max_pool2d": 1, "cat": 1}
    for part, count in expected.items():
        assert sum(part in name for name in names) == count, part


def test_launches_print_as_a_tally():
    launches = measure.count_launches(lambda: (A + A).relu() + A)
    assert launches.count == 3
    assert launches.kind == "operators"
    assert str(launches).split() == ["3", "operators:", "2", "add", "1", "relu"]


def test_counting_warms_up_once_and_records_no_gradients():
    recording = []
    layer = nn.Linear(4, 4)
    measure.count_launches(lambda: recording.append(layer(A).requires_grad))
    assert recording == [False, False]


def test_an_error_in_what_is_counted_comes_out():
    with pytest.raises(ZeroDivisionError):
        measure.count_launches(lambda: 1 / 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_are_counted_on_a_gpu():
    a = torch.ones(64, 64, device="cuda")
    launches = measure.count_launches(lambda: (a + a).relu().split([1, 63]), "cuda")
    assert launches.kind == "kernels"
    assert launches.count == 2
    assert measure.count_launches(lambda: a.view(-1), "cuda").count == 0
    assert measure.count_launches(lambda: a.clone(), "cuda").count == 1


# count_bytes


BYTES = {  # float32, and views that cost nothing
    "a copy": (lambda a: a.clone(), 2 * 4 * 64),
    "in place": (lambda a: a.add_(1), 2 * 4 * 64),
    "an operand twice": (lambda a: a + a, 3 * 4 * 64),
    "a product": (lambda a: a.view(8, 8) @ a.view(8, 8)[:, :2], 4 * (64 + 16 + 16)),
    "a list": (lambda a: torch.cat([a, a[:16]]), 2 * 4 * 80),
    "two outputs": (lambda a: a.view(8, 8).max(dim=1), 4 * (64 + 8) + 8 * 8),
    "half": (lambda a: a.half(), 4 * 64 + 2 * 64),
    "nothing": (lambda a: a.view(8, 8).T, 0),
}


@pytest.mark.parametrize("what", BYTES)
def test_bytes_are_those_of_inputs_and_outputs(what):
    fn, expected = BYTES[what]
    assert measure.count_bytes(lambda: fn(torch.empty(64))) == expected


# count_faults


@pytest.fixture
def faults(monkeypatch):
    """The only counter there is: {"soft": page faults, "hard": those with a disk}."""
    counters = {"soft": 1000, "hard": 50}

    def getrusage(who):
        assert who == "myself"
        return SimpleNamespace(ru_minflt=counters["soft"], ru_majflt=counters["hard"])

    fake = SimpleNamespace(RUSAGE_SELF="myself", getrusage=getrusage)
    monkeypatch.setattr(measure, "resource", fake)
    return counters


def test_faults_of_the_second_call_are_counted(faults):
    costs, recording = iter([300, 7]), []

    def fn():
        faults["soft"] += next(costs)
        faults["hard"] += 2
        recording.append(torch.is_grad_enabled())

    assert measure.count_faults(fn) == 7
    assert recording == [False, False]
    assert torch.is_grad_enabled()


def test_without_faults_there_are_none_to_count(faults):
    assert measure.count_faults(lambda: None) == 0


def test_a_system_that_does_not_say_is_not_asked(monkeypatch):
    monkeypatch.setattr(measure, "resource", None)
    assert measure.count_faults(lambda: 1 / 0) is None


@pytest.mark.skipif(measure.resource is None, reason="this system does not say")
def test_the_system_is_asked_for_faults():
    assert measure.count_faults(lambda: A + A) >= 0


# time_arms


class Race:
    """Arms that write down their calls and move the only clock there is."""

    def __init__(self):
        self.events, self.now_ns = [], 0

    def look(self):
        self.events.append("clock")
        return self.now_ns

    def wait(self, device):
        self.events.append(f"wait for {device}")

    def arm(self, name, cost_ns=1000):
        def call():
            self.events.append(name)
            self.now_ns += cost_ns

        return call


@pytest.fixture
def race(monkeypatch):
    race = Race()
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter_ns=race.look))
    monkeypatch.setattr(measure, "synchronise", race.wait)
    return race


def test_arms_take_turns_and_every_round_starts_with_another(race):
    arms = {name: race.arm(name) for name in "abc"}
    measure.time_arms(arms, rounds=4, warm_up=1, calls=2)
    calls = "".join(event for event in race.events if event in arms)
    turns = "abcbcacababc"  # each: one call that is not timed, then two
    assert calls == "abc" + "".join(3 * name for name in turns)


def test_a_turn_lies_between_two_synchronisations(race):
    measure.time_arms({"a": race.arm("a")}, "cuda:1", rounds=1, warm_up=1, calls=2)
    warm, untimed, *turn = race.events
    assert (warm, untimed) == ("a", "a")
    assert turn == ["wait for cuda:1", "clock", "a", "a", "wait for cuda:1", "clock"]


def test_samples_are_microseconds_a_call(race):
    arms = {"slow": race.arm("slow", 5000), "fast": race.arm("fast", 1250)}
    samples = measure.time_arms(arms, rounds=3, calls=4)
    assert samples == {"slow": [5.0] * 3, "fast": [1.25] * 3}


def test_what_the_device_still_does_is_waited_for(race, monkeypatch):
    def wait(device):  # the work of a launch is done when one waits for it
        race.now_ns += 2000 * race.events.count("launch")
        race.events.clear()

    monkeypatch.setattr(measure, "synchronise", wait)
    arms = {"a": lambda: race.events.append("launch")}
    assert measure.time_arms(arms, rounds=2, warm_up=3, calls=5) == {"a": [2.0, 2.0]}


def test_samples_are_in_the_order_of_rounds(race):
    costs_us = iter([50, 1, 60, 4, 70, 2])  # the first call of a turn is not timed

    def uneven():
        race.now_ns += 1000 * next(costs_us)

    samples = measure.time_arms({"a": uneven}, rounds=3, warm_up=0, calls=1)
    assert samples == {"a": [1.0, 4.0, 2.0]}


def test_arms_record_no_gradients():
    recording = []
    arms = {"a": lambda: recording.append(torch.is_grad_enabled())}
    measure.time_arms(arms, rounds=1, warm_up=1, calls=1)
    assert recording == [False, False, False]
    assert torch.is_grad_enabled()


def test_an_error_in_an_arm_comes_out():
    with pytest.raises(ZeroDivisionError):
        measure.time_arms({"a": lambda: 1 / 0}, rounds=1)


def test_who_raised_it_is_said():
    """At every place where an arm is called: warming up, untimed, timed."""
    for calls in range(5):
        left = iter(range(calls))

        def fails(left=left):
            next(left)

        with pytest.raises(StopIteration) as caught:
            measure.time_arms({"a": int, "b": fails}, rounds=2, warm_up=1, calls=1)
        assert caught.value.arm == "b"


def test_each_arm_may_have_its_own_calls(race):
    arms = {"slow": race.arm("slow", 5000), "fast": race.arm("fast", 1250)}
    each = {"slow": 1, "fast": 4}
    samples = measure.time_arms(arms, rounds=2, warm_up=0, calls=each)
    assert samples == {"slow": [5.0] * 2, "fast": [1.25] * 2}
    assert race.events.count("slow") == 2 * (1 + 1)
    assert race.events.count("fast") == 2 * (1 + 4)


@pytest.mark.parametrize("calls", [{"a": 1}, {"a": 1, "b": 2, "c": 3}])
def test_calls_are_for_each_arm(race, calls):
    with pytest.raises(ValueError, match=r"^calls: expected a number for each arm, got"):
        measure.time_arms({"a": race.arm("a"), "b": race.arm("b")}, calls=calls)
    with pytest.raises(ValueError, match="calls was 0; a whole number from 1 fits"):
        measure.time_arms({"a": race.arm("a")}, calls={"a": 0})
    assert race.events == []


@pytest.mark.parametrize(
    ("turns", "rounds"),
    [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 2), (7, 2), (8, 3), (99, 3)],
)
def test_who_is_late_keeps_whole_rounds(race, turns, rounds):
    """Two arms: each is asked for once to warm up, and once in each of three rounds."""
    left = iter([False] * turns)
    arms = {name: race.arm(name) for name in "ab"}
    samples = measure.time_arms(
        arms, rounds=3, warm_up=1, calls=1, late=lambda: next(left, True)
    )
    assert samples == {name: [1.0] * rounds for name in "ab"}
    called = len([event for event in race.events if event in arms])
    warm = min(turns, 2)
    assert called == warm + 2 * (min(turns, 8) - warm)  # nothing was called after that


def test_no_race_without_arms():
    with pytest.raises(ValueError, match="arms is empty; at least one function fits"):
        measure.time_arms({})


@pytest.mark.parametrize(
    ("name", "value"),
    [("rounds", 0), ("calls", 0), ("warm_up", -1)]
    + [(name, bad) for name in ("rounds", "calls", "warm_up") for bad in (True, 2.5, "3")],
)
def test_numbers_that_are_not_whole_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} was {value!r}; a whole number"):
        measure.time_arms({"a": int}, **{name: value})


# Stopwatches.


class Device:
    """It has a clock and a queue: works on its own, and refuses no more than two."""

    def __init__(self, launch_us, work_us):
        self.launch_ns, self.work_ns = 1000 * launch_us, 1000 * work_us
        self.now_ns, self.ends_ns, self.events = 0, [], []

    def launch(self):
        self.events.append("launch")
        if len(self.ends_ns) >= 2:  # the queue is full
            self.now_ns = max(self.now_ns, self.ends_ns[-2])
        self.now_ns += self.launch_ns
        begin = max([self.now_ns, *self.ends_ns[-1:]])
        self.ends_ns.append(begin + self.work_ns)

    def wait(self, device):
        self.events.append(f"wait for {device}")
        self.now_ns = max([self.now_ns, *self.ends_ns[-1:]])


@pytest.fixture
def device(monkeypatch):
    """Makes a Device, which brings the only clock there is."""

    def make(launch_us, work_us):
        device = Device(launch_us, work_us)
        clock = SimpleNamespace(perf_counter_ns=lambda: device.now_ns)
        monkeypatch.setattr(measure, "time", clock)
        monkeypatch.setattr(measure, "synchronise", device.wait)
        return device

    return make


@pytest.mark.parametrize(
    ("launch_us", "work_us", "calls", "wall", "host"),
    [
        (1, 0, 4, 1, 1),  # a CPU: done when it returns
        (2, 5, 1, 7, 2),
        (2, 5, 4, 5.5, 2),  # the first launch, then work without a gap: (2 + 20) / 4
        (2, 5, 100, 5.02, 2),  # the queue is full at times, and `host` does not see it
        (5, 2, 4, 5.5, 5),  # the last work: (20 + 2) / 4
    ],
)
def test_wall_counts_the_wait_and_host_does_not(
    device, launch_us, work_us, calls, wall, host
):
    gpu = device(launch_us, work_us)
    assert measure.wall(gpu.launch, calls, "cuda") == wall
    assert gpu.events == ["wait for cuda", *calls * ["launch"], "wait for cuda"]
    gpu = device(launch_us, work_us)
    assert measure.host(gpu.launch, calls, "cuda") == host


def test_host_waits_between_calls_and_leaves_nothing_behind(device):
    gpu = device(2, 5)
    measure.host(gpu.launch, 3, "cuda:1")
    assert gpu.events == [*3 * ["wait for cuda:1", "launch"], "wait for cuda:1"]


@pytest.mark.parametrize("watch", ["wall", "host"])
def test_a_stopwatch_does_not_charge_what_was_launched_before(device, watch):
    gpu = device(1, 100)
    gpu.launch()
    gpu.launch()
    assert getattr(measure, watch)(gpu.launch, 1, "cuda") == {"wall": 101, "host": 1}[watch]


def test_an_arm_has_the_watch_that_is_given_for_it(race):
    seen = []

    def watch(call, calls, device):
        seen.append((calls, device))
        call()
        return 77.0

    arms = {name: race.arm(name) for name in "abc"}
    watches = {"b": watch}
    samples = measure.time_arms(arms, "cpu", 2, warm_up=0, calls=3, watches=watches)
    assert samples == {"a": [1.0, 1.0], "b": [77.0, 77.0], "c": [1.0, 1.0]}
    assert seen == [(3, "cpu")] * 2
    assert race.events.count("b") == 2 * (1 + 1)  # one not timed, one of the watch
    assert watches == {"b": watch}


def test_host_may_be_a_watch(device):
    gpu = device(2, 5)
    arms = {"wall": gpu.launch, "host": gpu.launch}
    found = measure.time_arms(arms, rounds=2, calls=1, watches={"host": measure.host})
    assert found == {"wall": [7.0, 7.0], "host": [2.0, 2.0]}


@pytest.mark.parametrize("watches", [{"c": min}, {"b": min, "d": min, "c": min}])
def test_watches_of_nobody_are_refused(race, watches):
    strange = sorted({*watches} - {"b"})
    with pytest.raises(ValueError) as error:  # noqa: PT011
        measure.time_arms({"a": race.arm("a"), "b": race.arm("b")}, watches=watches)
    assert str(error.value) == f"watches has {strange}; names of arms fit"
    assert race.events == []


# graphed, with a GPU that is made up. What a graph is given, it does when replayed.


class FakeCuda:
    """Streams and a graph that write down what happens to them."""

    def __init__(self):
        self.events, self.stack, self.captured = [], ["main"], []

    def launch(self, work):
        """What a kernel does; in a graph, nothing yet."""
        self.events.append(f"launch on {self.stack[-1]}")
        if self.stack[-1] == "graph":
            self.captured.append(work)
        else:
            work()

    def stream_called(self, name):
        def wait(other):
            self.events.append(f"{name} waits for {other.name}")

        return SimpleNamespace(name=name, wait_stream=wait)

    @contextlib.contextmanager
    def inside(self, name):
        self.stack.append(name)
        yield
        self.stack.pop()

    def replay(self):
        self.events.append("replay")
        for work in self.captured:
            work()


@pytest.fixture
def cuda(monkeypatch):
    cuda = FakeCuda()
    graph = SimpleNamespace(replay=cuda.replay, name="graph")
    fakes = {
        "Stream": lambda: cuda.stream_called("side"),
        "current_stream": lambda: cuda.stream_called(cuda.stack[-1]),
        "stream": lambda stream: cuda.inside(stream.name),
        "CUDAGraph": lambda: graph,
        "graph": lambda given: cuda.inside(given.name),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return cuda


def adding_one(cuda, x, count):
    """A function that gives `count` tensors: x + 1, x + 2, …"""

    def fn():
        outputs = tuple(torch.zeros_like(x) for _ in range(count))
        for i, y in enumerate(outputs, start=1):
            cuda.launch(lambda y=y, i=i: y.copy_(x + i))
        return outputs[0] if count == 1 else outputs

    return fn


def test_a_graph_is_captured_after_a_warm_up_on_a_stream_of_its_own(cuda):
    measure.graphed(adding_one(cuda, torch.ones(2), 1))
    first, *warm, last, captured = cuda.events
    assert (first, last) == ("side waits for main", "main waits for side")
    assert len(warm) >= 1
    assert set(warm) == {"launch on side"}
    assert captured == "launch on graph"


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_graph_gives_is_wrong_until_it_is_replayed(cuda, monkeypatch, count):
    x = torch.ones(2)
    replay = measure.graphed(adding_one(cuda, x, count))
    unplayed = cuda.captured.copy()
    cuda.captured.clear()  # a replay that does nothing
    for y in measure.tensors(replay()):
        assert torch.equal(y, torch.full_like(y, measure.UNPLAYED))
        with pytest.raises(measure.Disagreement):
            measure.near(y, x, 1)
    cuda.captured += unplayed
    for change in (0, 10):  # it reads x where it lies, as it is now
        x += change
        outputs = measure.tensors(replay())
        assert len(outputs) == count
        for i, y in enumerate(outputs, start=1):
            agree(y, x + i)


def test_a_replay_gives_the_same_tensors_and_calls_nothing(cuda):
    calls = []

    def fn():
        calls.append(torch.is_grad_enabled())
        return torch.zeros(2)

    replay = measure.graphed(fn)
    made = len(calls)
    assert calls == [False] * made
    assert torch.is_grad_enabled()
    first = replay()
    assert replay() is first
    assert len(calls) == made
    assert cuda.events[-2:] == ["replay", "replay"]


def test_a_graph_may_have_it_many_times(cuda):
    x = torch.ones(2)
    replay = measure.graphed(adding_one(cuda, x, 1), times=3)
    assert len(cuda.captured) == 3
    agree(replay(), x + 1)


def test_a_graph_keeps_alive_what_it_was_made_of(cuda):
    class Weights:
        pass

    weights = Weights()
    alive = weakref.ref(weights)
    replay = measure.graphed(lambda weights=weights: torch.zeros(2))
    del weights
    gc.collect()
    assert alive() is not None
    assert replay() is not None


def test_an_error_in_what_is_graphed_comes_out(cuda):
    with pytest.raises(ZeroDivisionError):
        measure.graphed(lambda: 1 / 0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("seen_as", [torch.float16, torch.bfloat16, torch.float32])
def test_what_lies_there_before_is_finite_whoever_reads_it(kind, seen_as):
    """A kernel may multiply by zero what lies where it will write."""
    lies = torch.full((8,), measure.UNPLAYED, dtype=kind).view(seen_as)
    assert torch.equal(lies * 0, torch.zeros_like(lies))


# Launches counted as the nodes of a graph, by CUDA's functions, made up.

KERNEL, COPY, FILL, HOST, GRAPH = range(5)


class FakeRuntime:
    """Of cuda.bindings: graphs are numbers, and have these nodes."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaGraphNodeType = SimpleNamespace(
        cudaGraphNodeTypeKernel=KERNEL,
        cudaGraphNodeTypeMemcpy=COPY,
        cudaGraphNodeTypeMemset=FILL,
        cudaGraphNodeTypeGraph=GRAPH,
    )
    cudaGraph_t = int

    def cudaGraphGetNodes(self, graph, number=0):
        inner = [(KERNEL, 0), (FILL, 0)]
        nodes = inner if graph == 8 else [(KERNEL, 0), (COPY, 0), (HOST, 0), (GRAPH, 8)]
        return 0, [*nodes, None][: number + 1] if number else [], len(nodes)

    def cudaGraphNodeGetType(self, node):
        return 0, node[0]

    def cudaGraphChildGraphNodeGetGraph(self, node):
        return 0, node[1]


@pytest.fixture
def runtime(cuda, monkeypatch):
    def profile(**_):
        raise AssertionError("the profiler was asked")

    made = FakeRuntime()
    for name, module in {
        "cuda": SimpleNamespace(),
        "cuda.bindings": SimpleNamespace(runtime=made),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)

    class Graph:
        name = "graph"

        def __init__(self, keep_graph=False):
            self.kept, self.replay = keep_graph, cuda.replay

        def raw_cuda_graph(self):
            assert self.kept
            return 7

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.profiler, "profile", profile)
    return made


NODES = ("kernel", "copy", "kernel", "fill")


def test_launches_are_nodes_of_a_graph(runtime, cuda):
    fn = adding_one(cuda, torch.ones(2), 1)
    assert measure.count_launches(fn, "cuda").names == NODES
    made = cuda.events.count("launch on graph")
    assert made == 1
    replay = measure.graphed(fn, times=3)
    cuda.events.clear()
    assert measure.count_launches(replay, "cuda").names == NODES
    assert cuda.events == ["replay"]  # its own graph: none is made of a graph


@pytest.mark.parametrize("lacks", ["bindings", "keeping", "capture", "an answer"])
def test_else_launches_are_what_the_profiler_saw(runtime, cuda, monkeypatch, lacks):
    def captured(graph):
        raise RuntimeError("operation not permitted when stream is capturing")

    if lacks == "bindings":
        monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    elif lacks == "keeping":
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(name="graph"))
    elif lacks == "capture":
        monkeypatch.setattr(torch.cuda, "graph", captured)
    else:
        runtime.cudaGraphGetNodes = lambda *_: (700, [], 0)
        runtime.cudaGraphGetNodes.__name__ = "cudaGraphGetNodes"
    with pytest.raises(AssertionError, match="the profiler was asked"):
        measure.count_launches(adding_one(cuda, torch.ones(2), 1), "cuda")


def test_settings_that_cannot_be_read_may_be_tf32():
    class Mixed:
        @property
        def allow_tf32(self):
            raise RuntimeError("mixed")

    assert measure.tf32(Mixed())
    assert not measure.tf32(SimpleNamespace(allow_tf32=False))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_on_a_gpu():
    x = torch.ones(64, device="cuda")
    replay = measure.graphed(lambda: (x + 1).relu())
    assert replay() is replay()
    x.fill_(5)
    agree(replay(), torch.full((64,), 6.0))
    assert measure.count_launches(replay, "cuda").count == 2


# tensors


def test_outputs_are_a_list_of_tensors():
    x, y = torch.ones(2, 3), torch.zeros(1)
    assert [*map(id, measure.tensors(x))] == [id(x)]
    for several in ((x, y), [x, y]):
        found = measure.tensors(several)
        assert type(found) is list
        assert [*map(id, found)] == [id(x), id(y)]
    assert measure.tensors(()) == []


# timeline


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_the_timeline_of_a_small_module():
    model, x = Small().eval(), torch.zeros(1, 3, 8, 8)
    events = measure.timeline(lambda: model(x))
    names = [name for _, name, _, _ in events]
    # and not `convolution`, `addmm`, … which those call
    assert names == ["conv2d", "batch_norm", "relu", "mean", "linear"]
    assert {lane for lane, *_ in events} == {"host"}
    assert events[0][2] == 0
    for _, _, begin, end in events:
        assert 0 <= begin <= end
    for (_, _, _, end), (_, _, begin, _) in itertools.pairwise(events):
        assert end <= begin


def test_a_timeline_is_of_one_call_without_gradients():
    recording = []

    def fn():
        recording.append(torch.is_grad_enabled())
        for _ in recording:  # the fourth call is the one that is looked at
            A.abs()

    assert [name for _, name, _, _ in measure.timeline(fn)] == ["abs"] * 4
    assert recording == [False] * 4
    assert torch.is_grad_enabled()


def profiled(name, begin, end, kind="CPU", parent=None):
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=begin, end=end),
        device_type=getattr(torch.autograd.DeviceType, kind),
        cpu_parent=parent,
    )


@pytest.fixture
def profiler(monkeypatch):
    """A profiler that saw these events, and the order in which it was used."""
    conv = profiled("aten::conv2d", 107.0, 112.25)
    seen = SimpleNamespace(order=[], activities=None)
    seen.found = [
        profiled("a_kernel", 115.5, 120.0, "CUDA"),
        conv,
        profiled("aten::convolution", 108.0, 111.0, parent=conv),
        profiled("cudaLaunchKernel", 106.0, 107.0),
        profiled("Memset (Device)", 113.00049, 114.00049, "CUDA", conv),
        profiled("a_long_kernel", 109.0, 121.0, "CUDA"),  # on another stream
        profiled("aten::relu", 112.5, 113.0),
    ]

    @contextlib.contextmanager
    def profile(activities):
        seen.activities = {activity.name for activity in activities}
        seen.order.append("begin")
        yield SimpleNamespace(events=lambda: seen.found)
        seen.order.append("end")

    monkeypatch.setattr(torch.profiler, "profile", profile)
    wait = lambda device: seen.order.append(f"wait for {device}")
    monkeypatch.setattr(measure, "synchronise", wait)
    return seen


def test_lanes_start_at_zero_and_are_in_order(profiler):
    events = measure.timeline(lambda: profiler.order.append("call"), "cuda:1")
    assert events == [
        ("host", "conv2d", 0, 5.25),
        ("device", "a_long_kernel", 2, 14),
        ("host", "relu", 5.5, 6),
        ("device", "Memset (Device)", 6, 7),
        ("device", "a_kernel", 8.5, 13),
    ]
    wait = "wait for cuda:1"
    assert profiler.order == [*3 * ["call"], wait, "begin", "call", wait, "end"]
    assert profiler.activities == {"CPU", "CUDA"}


def test_where_nothing_was_launched_the_timeline_is_empty(profiler):
    profiler.found.clear()
    assert measure.timeline(lambda: None) == []


def test_on_a_cpu_only_the_host_is_looked_at(profiler):
    measure.timeline(lambda: None)
    assert profiler.activities == {"CPU"}


# gains


def test_gains_by_hand():
    samples = {
        "old": [8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0],
        "new": [8.0, 1.0, 2.0, 16.0, 4.0, 2.0, 8.0],  # ratios 1 8 4 ½ 2 4 1
    }
    assert summary.gains(samples, "old") == {"old": (1, 1, 1), "new": (1, 2, 4)}


def test_a_gain_is_the_median_of_ratios_and_not_the_ratio_of_medians():
    samples = {"old": [1.0, 10.0, 100.0], "new": [5.0, 50.0, 2.0]}  # ratios 0.2, 0.2, 50
    assert summary.gains(samples, "old")["new"][1] == 0.2  # the medians are 10 and 5


def test_a_machine_that_slows_down_changes_no_gain():
    slowing = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    samples = {"old": [*(3 * slowing)], "new": [*(2 * slowing)]}
    assert summary.gains(samples, "old")["new"] == (1.5, 1.5, 1.5)
    assert summary.gains(samples, "new")["old"] == pytest.approx((2 / 3,) * 3, rel=1e-15)


def test_one_round_is_its_own_quartiles():
    assert summary.gains({"a": [3.0], "b": [2.0]}, "a")["b"] == (1.5, 1.5, 1.5)


def test_two_rounds_stay_within_their_ratios():
    samples = {"a": [4.0, 4.0], "b": [1.0, 2.0]}  # ratios 4 and 2
    assert summary.gains(samples, "a")["b"] == (2.5, 3, 3.5)


NO_GAINS = [
    ("base was 'c'; one of a, b fits", {"a": [1.0], "b": [1.0]}, "c"),
    ("samples have {'a': 2, 'b': 1} rounds", {"a": [1.0, 2.0], "b": [1.0]}, "a"),
    ("samples have {'a': 0, 'b': 0} rounds", {"a": [], "b": []}, "a"),
    ("samples have a time that is not above 0", {"a": [1.0], "b": [0.0]}, "a"),
    ("samples have a time that is not above 0", {"a": [0.0], "b": [1.0]}, "a"),
    ("samples have a time that is not above 0", {"a": [1.0], "b": [np.nan]}, "a"),
]


@pytest.mark.parametrize(("message", "samples", "base"), NO_GAINS)
def test_samples_that_are_no_race_are_refused(message, samples, base):
    with pytest.raises(ValueError, match=f"^{message}"):
        summary.gains(samples, base)


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("products", [False, True])
def test_float32_may_round_as_tf32_does_on_a_gpu(monkeypatch, convolutions, products):
    backends = torch.backends
    monkeypatch.setattr(backends, "cudnn", SimpleNamespace(allow_tf32=convolutions))
    matmul = SimpleNamespace(allow_tf32=products)
    monkeypatch.setattr(backends, "cuda", SimpleNamespace(matmul=matmul))
    # IEEE's float32 and float64 keep 23 and 52 bits after the point, TF32 keeps 10.
    x = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    assert measure.unit(x) == 2.0 ** (-10 if convolutions or products else -23)
    x.dtype = torch.float64
    assert measure.unit(x) == 2.0**-52
    assert measure.unit(torch.ones(1)) == 2.0**-23


# The device.


def test_synchronise_waits_for_a_gpu_only(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    measure.synchronise("cpu")
    measure.synchronise(torch.device("cpu"))
    assert waited == []
    measure.synchronise("cuda:1")
    assert waited == ["cuda:1"]


CPUINFO = "processor : 0\nmodel name : Some CPU\nprocessor : 1\nmodel name : Some CPU\n"


def test_device_name_of_a_cpu_is_its_model_and_threads(monkeypatch):
    monkeypatch.setattr("builtins.open", lambda path: io.StringIO(CPUINFO))
    assert measure.device_name() == f"Some CPU, {torch.get_num_threads()} threads"


@pytest.mark.parametrize("cpuinfo", ["processor : 0\n", None])
def test_device_name_falls_back_to_the_architecture(monkeypatch, cpuinfo):
    def open_cpuinfo(path):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return io.StringIO(cpuinfo)

    monkeypatch.setattr("builtins.open", open_cpuinfo)
    monkeypatch.setattr(measure.platform, "machine", lambda: "riscv64")
    assert measure.device_name().startswith("riscv64, ")


def test_device_name_of_a_gpu_is_torchs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU at {device}")
    assert measure.device_name("cuda:1") == "GPU at cuda:1"
