"""measure.py: what agrees, what is refused, what is counted, whose turn it is.

Nothing here depends on how fast the machine is: the clock is a fake one.
"""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hfusion import measure, models
from hfusion.measure import Disagreement, agree

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)
FINITE = st.floats(-100, 100)


# agree


def test_agreement_says_what_was_compared():
    assert str(agree(np.ones((2, 3)), np.ones((2, 3)))).startswith(
        "exactly equal: 6 entries"
    )
    rounded = str(agree([1.0, 2.0], [1.25, 2.0], 0.25))
    assert rounded.startswith("equal within rounding: 2 entries")
    assert rounded.endswith("2.5e-01")
    assert agree([1.0, 2.0], [1.5, 2.0], [0.5, 0.25]).bound == 0.5  # the largest
    assert agree(3, 3).entries == 1


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


def test_a_disagreement_is_an_assertion_error():
    assert issubclass(Disagreement, AssertionError)


# refusal


@pytest.mark.parametrize("kind", [Disagreement, AssertionError, ValueError, RuntimeError])
def test_refusal_is_the_message(kind):
    def refuse(what, *, fits):
        raise kind(f"{what} was bad; {fits} fits")

    assert measure.refusal(refuse, "x", fits="y") == "x was bad; y fits"


def test_refusal_raises_when_the_call_goes_through():
    with pytest.raises(Disagreement, match="went through, and should have been refused"):
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


@pytest.mark.parametrize("bound", [0, 0.5])
def test_differ_raises_when_the_results_are_equal(bound):
    with pytest.raises(Disagreement, match="should differ"):
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
    assert calls == "abcaabbccbbccaaccaabbaabbcc"


def test_a_turn_lies_between_two_synchronisations(race):
    measure.time_arms({"a": race.arm("a")}, "cuda:1", rounds=1, warm_up=1, calls=2)
    warm, *turn = race.events
    assert warm == "a"
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
    costs_us = iter([1, 4, 2])

    def uneven():
        race.now_ns += 1000 * next(costs_us)

    samples = measure.time_arms({"a": uneven}, rounds=3, warm_up=0, calls=1)
    assert samples == {"a": [1.0, 4.0, 2.0]}


def test_arms_record_no_gradients():
    recording = []
    arms = {"a": lambda: recording.append(torch.is_grad_enabled())}
    measure.time_arms(arms, rounds=1, warm_up=1, calls=1)
    assert recording == [False, False]
    assert torch.is_grad_enabled()


def test_an_error_in_an_arm_comes_out():
    with pytest.raises(ZeroDivisionError):
        measure.time_arms({"a": lambda: 1 / 0}, rounds=1)


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


# gains


def test_gains_by_hand():
    samples = {
        "old": [8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0],
        "new": [8.0, 1.0, 2.0, 16.0, 4.0, 2.0, 8.0],  # ratios 1 8 4 ½ 2 4 1
    }
    assert measure.gains(samples, "old") == {"old": (1, 1, 1), "new": (1, 2, 4)}


def test_a_gain_is_the_median_of_ratios_and_not_the_ratio_of_medians():
    samples = {"old": [1.0, 10.0, 100.0], "new": [5.0, 50.0, 2.0]}  # ratios 0.2, 0.2, 50
    assert measure.gains(samples, "old")["new"][1] == 0.2  # the medians are 10 and 5


def test_a_machine_that_slows_down_changes_no_gain():
    slowing = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    samples = {"old": [*(3 * slowing)], "new": [*(2 * slowing)]}
    assert measure.gains(samples, "old")["new"] == (1.5, 1.5, 1.5)
    assert measure.gains(samples, "new")["old"] == pytest.approx((2 / 3,) * 3, rel=1e-15)


def test_one_round_is_its_own_quartiles():
    assert measure.gains({"a": [3.0], "b": [2.0]}, "a")["b"] == (1.5, 1.5, 1.5)


def test_two_rounds_stay_within_their_ratios():
    samples = {"a": [4.0, 4.0], "b": [1.0, 2.0]}  # ratios 4 and 2
    assert measure.gains(samples, "a")["b"] == (2.5, 3, 3.5)


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
        measure.gains(samples, base)


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
