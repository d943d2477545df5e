"""What agrees, what differs, what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfusion import timing
from hfusion.timing import Disagreement, _agreement, agree, near

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
    with pytest.raises(ValueError, match=r"^bound: expected a finite number of at least 0"):
        agree([1.0, 2.0], [1.0, 2.0], bound)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_nothing_agrees_with_nothing(shape):
    with pytest.raises(
        ValueError, match=r"^actual: expected at least one entry, got none$"
    ):
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
    assert near(TEN, TEN, 0.5) == timing.Agreement(entries=3, bound=5)
    assert str(near(TEN, TEN, 0.5)) == "equal within rounding: 3 entries, bound 5.0e+00"
    assert str(near(TEN, TEN, 0)) == "exactly equal: 3 entries"
    assert near(torch.tensor(3.0), torch.tensor(4.0), 0.25).entries == 1
    assert near(torch.zeros(2, 3), torch.zeros(2, 3), 0.5).bound == 0


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_near_allows_a_fraction_of_the_largest_expected_one(place, sign):
    actual = TEN.clone()
    actual[place] += sign * 2.5
    assert near(actual, TEN, 0.25).bound == 2.5  # at the bound passes
    actual[place] += sign * 2**-20
    with pytest.raises(Disagreement, match=rf"1 of 3 entries differ; at \({place},\)"):
        near(actual, TEN, 0.25)


def test_near_takes_no_fraction_of_the_actual_ones():
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
def test_near_is_a_loop_over_entries(entries, rtol):
    actual, expected = torch.tensor(entries, dtype=torch.float64).unbind(1)
    bound = rtol * max(abs(e) for _, e in entries)
    if any(abs(a - e) > bound for a, e in entries):
        with pytest.raises(Disagreement):
            near(actual, expected, rtol)
    else:
        assert near(actual, expected, rtol).bound == bound


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rtol", [0, 0.5, 1e300])
def test_near_lets_neither_nan_nor_infinity_pass(bad, rtol):
    with_it = torch.tensor([1.0, bad, 1.0])
    with pytest.raises(Disagreement, match=r"1 of 3 entries differ; at \(1,\) it is"):
        near(with_it, ONES, rtol)
    for actual in (ONES, with_it):
        with pytest.raises(Disagreement):
            near(actual, with_it, rtol)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [((2, 3), (3, 2)), ((1, 2), (2, 2)), ((1,), ()), ((0, 3), (3,)), ((3,), (0,))],
)
def test_near_compares_one_shape_only(actual, expected):
    with pytest.raises(Disagreement) as error:
        near(torch.ones(actual), torch.ones(expected), 0.5)
    assert str(error.value) == f"the shape is {list(actual)}, not {list(expected)}"


def test_near_has_nothing_to_say_about_nothing():
    with pytest.raises(
        ValueError, match=r"^actual: expected at least one entry, got none$"
    ):
        near(torch.ones(0, 2), torch.ones(0, 2), 0.5)


@pytest.mark.parametrize("rtol", [-0.5, np.nan, np.inf])
def test_near_refuses_what_is_no_fraction(rtol):
    with pytest.raises(
        ValueError, match=r"^rtol: expected a finite number of at least 0, got "
    ):
        near(TEN, TEN, rtol)


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
    monkeypatch.setattr(_agreement, "agree", None)
    assert near(TEN, TEN + 1e-3, 1e-3).entries == 3


@pytest.mark.filterwarnings("ignore:Casting complex")
def test_near_refuses_complex_results_and_does_not_halve_them():
    with pytest.raises(
        ValueError, match=r"^results: expected real numbers, got complex64$"
    ):
        near(torch.tensor([1 + 2j]), torch.tensor([1 + 3j]), 0)


def test_near_refuses_whole_numbers_that_float64_cannot_hold():
    with pytest.raises(ValueError, match=r"expected integers up to 2\*\*53"):
        near(torch.tensor([2**53 + 1]), torch.tensor([2**53]), 0)
    floats, whole = torch.tensor([2.0**53]), torch.tensor([2**53 + 1])  # alike in float64
    for actual, expected in ((floats, whole), (whole, floats)):
        with pytest.raises(ValueError, match=r"expected integers up to 2\*\*53"):
            near(actual, expected, 0)


# refusal


@pytest.mark.parametrize("kind", [Disagreement, AssertionError, ValueError, RuntimeError])
def test_refusal_is_the_message(kind):
    def refuse(what, *, fits):
        raise kind(f"{what} was bad; {fits} fits")

    assert timing.refusal(refuse, "x", fits="y") == "x was bad; y fits"


def test_refusal_raises_when_the_call_goes_through():
    said = r"^the call went through, and should have been refused$"
    with pytest.raises(Disagreement, match=said):
        timing.refusal(agree, [1.0], [1.0])


def test_refusal_lets_other_errors_pass():
    with pytest.raises(ZeroDivisionError):
        timing.refusal(lambda: 1 / 0)


# differ


def test_differ_is_the_message_of_the_disagreement():
    assert timing.differ([1.0, 2.0], [1.0, 2.5], 0.25) == (
        "1 of 2 entries differ; at (1,) it is 2, not 2.5"
    )
    assert timing.differ([1.0], [[1.0]]) == "the shape is [1], not [1, 1]"
    assert timing.differ([True], [False]) == (
        "1 of 1 entries differ; at (0,) it is 1, not 0"  # if nobody says, exactly equal
    )


@pytest.mark.parametrize("bound", [0, 0.5])
def test_differ_raises_when_the_results_are_equal(bound):
    with pytest.raises(Disagreement, match=r"^the results are equal, and should differ$"):
        timing.differ([1.0, 2.0], [1.0, 2.0 + bound], bound)


def test_differ_takes_no_bad_argument_for_a_difference():
    with pytest.raises(ValueError, match=r"bound: .*, got nan$"):
        timing.differ([1.0], [2.0], float("nan"))


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_whole_numbers_that_float64_cannot_hold_are_refused(make):
    assert agree(make([2**53]), make([2**53])).bound == 0
    for large in (2**53 + 1, -(2**53) - 1):
        with pytest.raises(ValueError, match=r"expected integers up to 2\*\*53"):
            agree(make([large]), make([2**53]))


def test_small_integers_do_not_overflow_into_agreement():
    with pytest.raises(Disagreement):
        agree(np.array([-128], np.int8), np.array([0], np.int8), 1)


def test_complex_results_are_refused_and_not_halved():
    with pytest.raises(
        ValueError, match=r"^results: expected real numbers, got complex128$"
    ):
        agree([1 + 2j], [1 + 3j])


# tensors


def test_outputs_are_a_list_of_tensors():
    x, y = torch.ones(2, 3), torch.zeros(1)
    assert [*map(id, timing.tensors(x))] == [id(x)]
    for several in ((x, y), [x, y]):
        found = timing.tensors(several)
        assert type(found) is list
        assert [*map(id, found)] == [id(x), id(y)]
    assert timing.tensors(()) == []
