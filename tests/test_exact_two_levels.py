"""Two levels of a scale: integers of a range, times one float for some groups. Found wherever there are any, and only there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qconvert.second import multiples
from qconvert.tensor_scale import new_numbers, other_way

from qformat.scheme import Op

PER = 8
FIELDS = [(0, 15), (0, 63), (-32, 31), (-128, 127)]
HALVES = st.integers(0, 0x7BFF).map(lambda bits: float(np.uint16(bits).view(np.float16)))
ALL_HALVES = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)


@pytest.mark.parametrize(("low", "high"), FIELDS)
@given(data=st.data())
def test_whatever_is_made_of_a_float_and_integers_is_found(data: st.DataObject, low: int, high: int) -> None:
    one = np.float32(data.draw(HALVES) * data.draw(st.sampled_from((1, -1))))
    integers = np.array(data.draw(st.lists(st.integers(low, high), min_size=PER, max_size=PER)), np.float32)
    array = (one * integers).reshape(1, PER)

    floats, found, unsolved = multiples(array, PER, "float16", low, high)

    assert not unsolved.any()
    assert low <= found.min() <= found.max() <= high
    assert np.float16(floats[0, 0]) == floats[0, 0]
    assert np.array_equal(floats * found, array)


@pytest.mark.parametrize(("low", "high"), [(0, 15), (-8, 7)])
@given(data=st.data())
def test_what_is_not_found_no_float_gives(data: st.DataObject, low: int, high: int) -> None:
    """Values of few bits, so that about half can be said; every float16 is tried on both sides of zero."""
    numbers = data.draw(st.lists(st.integers(-40, 40), min_size=4, max_size=4))
    array = np.array([numbers], np.float32) * np.float32(data.draw(st.sampled_from((1.0, 1 / 1024, 2.0**-24, 2.0**14, 0.1))))

    unsolved = bool(multiples(array, 4, "float16", low, high)[2][0, 0])

    halves = np.concatenate([ALL_HALVES[1:], -ALL_HALVES[1:]])
    wanted = array[0].astype(np.float64) / halves[:, None]
    some = ((np.rint(wanted) == wanted) & (wanted >= low) & (wanted <= high)).all(axis=1).any()
    assert unsolved == (not some and array.any())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e-30])
def test_a_value_that_no_float_reaches_is_left_over(value: float) -> None:
    array = np.full((2, 16), 0.5, np.float32)
    array[1, 9] = value

    assert multiples(array, 8, "float16", 0, 63)[2].tolist() == [[False, False], [False, True]]


def test_zeros_are_found() -> None:
    floats, integers, unsolved = multiples(np.zeros((1, 8), np.float32), 8, "float16", 0, 63)

    assert (floats.tolist(), integers.tolist(), unsolved.tolist()) == ([[0]], [[0] * 8], [[False]])


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_one_over_a_number_serves_where_some_float_does(number: float) -> None:
    """E4M3 scales 1 to 1.875 have every mantissa that others have; the floats around one over the number are all tried."""
    scales, stored = np.arange(8, 16, dtype=np.float32) / 8, np.array([[number]], np.float32)
    wanted = scales / stored[0]
    near = (np.float32(1) / stored).view(np.int32)
    some = any(np.array_equal(scales * (near + off).view(np.float32)[0], wanted) for off in range(-3, 4))

    found, errors = other_way(Op.MUL, Op.DIV, stored, scales)

    assert (errors == 0).all() == some
    assert np.array_equal(scales * found[0], wanted) == some


@pytest.mark.parametrize(
    ("scale", "rows", "expected"), [(1.0, 0, [[1]]), (2.0**20, 0, [[2.0**12]]), (2.0**-20, 0, [[2.0**-28]])]
)
def test_a_new_number_brings_the_largest_scale_to_the_top(scale: float, rows: int, expected: list[list[float]]) -> None:
    scales = np.full((4, 2), scale, np.float32)

    assert new_numbers(Op.MUL, "float8_e4m3fn", [scales], rows).tolist() == expected
    assert new_numbers(Op.DIV, "float8_e4m3fn", [scales], rows).tolist() == [[1 / expected[0][0]]]


def test_every_tensor_of_a_stack_has_a_number_of_its_own() -> None:
    scales = np.repeat(np.float32([[1], [2.0**20], [2.0**-20]]), 2, axis=0)

    found = new_numbers(Op.MUL, "float8_e4m3fn", [scales[:4], scales[4:]], 2)

    assert found.tolist() == [[1], [2.0**12], [2.0**-28]]
