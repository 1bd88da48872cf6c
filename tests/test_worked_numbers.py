"""Worked numbers of the teaching of quantization, done again in float32 with ties to even; the arithmetic is in the docstrings.

Where a number commonly printed does not follow from its own formula, or is none that the format can hold, the test says so.
"""

from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from qformat.bits import NF4, values
from qformat.formats.dense import dense
from qformat.rules import affine, encode, microscale, quantize, resolve
from qformat.rules.groups import Extremes, extremes
from qformat.scheme import Integers

F32 = NDArray[np.float32]

INT4 = Integers(-8, 7)
UINT4 = Integers(0, 15)
INT8 = Integers(-128, 127)

FOUR = [0.18, -0.91, 1.62, 2.94]
FIVE = [0.5, -1.2, 3.7, -0.3, 2.1]
MATRIX = [[0.7, -0.2], [-0.5, 0.1]]


def one_group(weights: list[float]) -> F32:
    """Give weights as the only group of the only row."""
    return np.array(weights, np.float32).reshape(1, 1, -1)


def flat(codes: F32) -> list[int]:
    """Give codes as Python integers."""
    return [int(code) for code in codes.reshape(-1)]


def test_symmetric_int4_of_four_weights() -> None:
    """Scale 2.94 / 7 = 0.42; x / 0.42 = 0.43, -2.17, 3.86, 7 -> codes 0 -2 4 7.

    In float32 the quotient is the number next above float32(0.42), 2^-25 more; the codes do not notice.
    """
    group = one_group(FOUR)

    scale = affine.symmetric(extremes(group), INT4)

    assert scale.item() == np.nextafter(np.float32(0.42), np.float32(1))
    assert flat(affine.round_codes(group, scale, Integers(-7, 7))) == [0, -2, 4, 7]


def test_symmetric_int4_of_four_weights_with_the_stored_scale() -> None:
    """The stored scale is float16(0.42) = 1720 / 4096 = 0.419921875; 2.94 / 0.419921875 = 7.0013 still gives 7."""
    packed = quantize(np.array([FOUR], np.float32), "int4_channel", "symmetric")

    assert packed.codes().tolist() == [[0, -2, 4, 7]]
    assert packed.param("scales").tolist() == [[1720 / 4096]]


def test_signed_4_bit_with_max_over_8_clips_the_largest_weight() -> None:
    """Scale 3.7 / 8 = 0.4625; x / scale = 1.08, -2.59, 8, -0.65, 4.54 -> 1 -3 8 -1 5, and 8 is clipped to 7."""
    group = one_group(FIVE)

    scale = affine.symmetric_full(extremes(group), INT4)

    assert scale.item() == np.float32(3.7) / np.float32(8)
    assert flat(np.rint(group / scale[..., None])) == [1, -3, 8, -1, 5]
    assert flat(affine.round_codes(group, scale, INT4)) == [1, -3, 7, -1, 5]


def test_signed_4_bit_with_max_over_8_as_a_packed_tensor() -> None:
    """The same codes with the scale stored as float16: 0.46240234375 for 0.4625."""
    packed = quantize(np.array([FIVE], np.float32), "int4_channel", "symmetric-full")

    assert packed.codes().tolist() == [[1, -3, 7, -1, 5]]
    assert packed.param("scales").tolist() == [[0.46240234375]]


def test_signed_4_bit_with_max_over_minus_8_clips_nothing_at_the_extreme() -> None:
    """Scale 3.7 / -8 = -0.4625; x / scale = -1.08, 2.59, -8, 0.65, -4.54 -> -1 3 -8 1 -5: the extreme keeps its value."""
    group = one_group(FIVE)

    scale = affine.signed_extreme(extremes(group), INT4)
    codes = affine.round_codes(group, scale, INT4)

    assert scale.item() == -np.float32(3.7) / np.float32(8)
    assert flat(codes) == [-1, 3, -8, 1, -5]
    assert (codes * scale[..., None])[0, 0, 2] == np.float32(3.7)


def test_unsigned_4_bit_with_a_float_minimum() -> None:
    """Scale (3.7 + 1.2) / 15 = 0.32667; (x + 1.2) / scale = 5.20, 0, 15, 2.76, 10.10 -> 5 0 15 3 10."""
    group = one_group(FIVE)

    scale, low = affine.minimum(group, UINT4)

    assert scale.item() == (np.float32(3.7) - np.float32(-1.2)) / np.float32(15)
    assert low.item() == np.float32(-1.2)
    assert flat(affine.round_codes(group - low[..., None], scale, UINT4)) == [5, 0, 15, 3, 10]


def test_unsigned_4_bit_with_an_integer_zero_point() -> None:
    """Zero point round(1.2 / 0.32667) = round(3.67) = 4; round(x / scale) = 2 -4 11 -1 6, plus 4 -> 6 0 15 3 10.

    The first code differs from the one with a float minimum: 0.5 lies 1.53 steps above zero, but 5.20 above the minimum,
    and the zero point is 0.33 of a step away from where the minimum would put it.
    """
    group = one_group(FIVE)
    found = extremes(group)

    scale = affine.minmax(found, UINT4)
    zero = affine.zero_point(found, scale, UINT4)

    assert zero.item() == 4
    assert flat(affine.round_codes(group, scale, UINT4, zero)) == [6, 0, 15, 3, 10]


def test_unsigned_4_bit_with_an_integer_zero_point_as_a_packed_tensor() -> None:
    """The same with the scale stored as float16."""
    packed = quantize(np.array([FIVE], np.float32), "uint4_channel")

    assert packed.codes().tolist() == [[6, 0, 15, 3, 10]]
    assert packed.param("zeros").tolist() == [[4]]


def test_asymmetric_int8_has_zero_point_minus_22_and_not_minus_21() -> None:
    """W = [[0.7, -0.2], [-0.5, 0.1]], scale (0.7 + 0.5) / 255 = 1.2 / 255.

    Zero point round(-128 - min / scale) = round(-128 + 0.5 * 255 / 1.2) = round(-128 + 106.25) = round(-21.75) = -22.
    A teaching text prints -21 beside this formula; that is -21.75 cut off, not rounded, and does not follow from it.
    Codes round(x / scale) + zero: 148.75 -> 149 - 22 = 127; -42.5 -> -42 - 22 = -64; -106.25 -> -106 - 22 = -128;
    21.25 -> 21 - 22 = -1.
    """
    weights = np.array(MATRIX, np.float32)
    found = extremes(weights.reshape(1, 1, -1))

    scale = affine.minmax(found, INT8)
    zero = affine.zero_point(found, scale, INT8)
    codes = affine.round_codes(weights.reshape(1, 1, -1), scale, INT8, zero)

    assert scale.item() == np.float32(1.2) / np.float32(255)
    assert zero.item() == -22
    assert codes.reshape(2, 2).tolist() == [[127, -64], [-128, -1]]


def test_zero_point_minus_21_would_clip_the_largest_weight() -> None:
    """With -21 the code of 0.7 is 149 - 21 = 128, which 8 bits do not have: it is clipped and 0.7 loses a step."""
    weights = one_group([0.7, -0.2, -0.5, 0.1])
    scale = affine.minmax(extremes(weights), INT8)

    codes = affine.round_codes(weights, scale, INT8, np.array([[-21]], np.float32))

    assert flat(np.rint(weights / scale[..., None]) - 21) == [128, -63, -127, 0]
    assert flat(codes) == [127, -63, -127, 0]


def test_code_minus_64_is_a_tie_that_float64_breaks_the_other_way() -> None:
    """-0.2 / (1.2 / 255) is -42.5 in the reals and in float32: a tie, to even -42, code -64.

    In float64 the quotient comes out as -42.50000000000001, beyond the tie: -43, code -65. Same formula, other precision.
    """
    single = np.float32(-0.2) / (np.float32(1.2) / np.float32(255))
    double = np.float64(-0.2) / (np.float64(1.2) / np.float64(255))

    assert single == np.float32(-42.5)
    assert double < -42.5
    assert (int(np.rint(single)) - 22, int(np.rint(double)) - 22) == (-64, -65)


def test_e2m1_of_the_same_weights_under_the_ocp_rule() -> None:
    """floor(log2 0.7) = -1, minus 2: scale 2^-3. x * 8 = 5.6, -1.6, -4, 0.8 -> 6, -1.5, -4, 1 -> 0.75, -0.1875, -0.5, 0.125.

    A teaching text prints 0.25 and 0.375 as E2M1 numbers; the magnitudes of E2M1 are 0, 0.5, 1, 1.5, 2, 3, 4, 6, so it can hold
    neither.
    """
    weights = np.array([[0.7, -0.2, -0.5, 0.1] + [0] * 28], np.float32)

    packed = quantize(weights, "mxfp4", "floor")

    assert packed.param("scales").view(np.uint8).tolist() == [[127 - 3]]
    assert packed.codes()[0, :4].tolist() == [7, 8 + 3, 8 + 6, 2]
    assert packed.dequantize()[0, :4].tolist() == [0.75, -0.1875, -0.5, 0.125]
    assert {abs(value) for value in values("float4_e2m1fn")} == {0, 0.5, 1, 1.5, 2, 3, 4, 6}
    assert not {0.25, 0.375} & set(values("float4_e2m1fn"))


@pytest.mark.parametrize(
    ("weight", "code"),
    [(0.25, 0), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6), (-0.25, 0), (7.0, 7)],
    ids=str,
)
def test_a_tie_between_two_e2m1_values_goes_to_the_even_code(weight: float, code: int) -> None:
    """0.25 lies between 0 (code 0) and 0.5 (code 1); 0.75 between 0.5 (1) and 1 (2); 5 between 4 (6) and 6 (7)."""
    assert int(microscale.round_even(np.array([weight], np.float32))[0]) == code


def test_the_nf4_table_comes_from_normal_quantiles_with_a_zero_kept() -> None:
    """Positive side: quantiles of 8 probabilities from 0.9677083 towards 0.5 in steps of (0.9677083 - 0.5) / 8.

    Negative side: 7 of them, in steps of (0.9677083 - 0.5) / 7, negated. A zero between; all divided by the largest,
    1.848. With the probabilities rounded to float32, as the published construction has them, and the quantiles rounded
    once, every level equals the stored one to the bit. 0.9677083 is the mean of 1 - 1/30 and 1 - 1/32.
    """
    positive = _quantiles(9)
    negative = [-quantile for quantile in _quantiles(8)]
    levels = np.array(sorted([*negative, 0.0, *positive]), np.float32)

    levels /= levels.max()

    assert levels.tobytes() == np.array(NF4, np.float32).tobytes()
    assert abs((1 - 1 / 30 + 1 - 1 / 32) / 2 - 0.9677083) < 5e-8  # printed to seven digits


def test_the_nf4_table_is_not_the_sixteen_plain_quantiles() -> None:
    """Quantiles at (2i + 1) / 32 cut the normal distribution into sixteen equal parts, but symmetrically.

    Their middle ones are +-Q(17/32) / Q(31/32) = +-0.0784 / 1.8627 = +-0.0421: no level is 0, so a zero weight (padding, a
    pruned one) could not stay zero. NF4 spends 8 levels below and 8 above with one of them 0, hence other steps on each side.
    """
    quantile = NormalDist().inv_cdf
    plain = [quantile((2 * i + 1) / 32) / quantile(31 / 32) for i in range(16)]

    assert [round(level, 4) for level in plain[7:9]] == [-0.0421, 0.0421]
    assert 0.0 in NF4
    assert sorted(NF4) != sorted(-level for level in NF4)
    assert max(abs(a - b) for a, b in zip(plain, NF4, strict=True)) == abs(plain[7])


@pytest.mark.parametrize(
    ("target", "bits", "megabytes"),
    [
        ("gguf:q8_0", 8 + 16 / 32, 7437.5),
        ("int8_g128", 8 + 16 / 128, 7109.375),
        ("gguf:q5_1", 5 + 32 / 32, 5250),
        ("gguf:q5_0", 5 + 16 / 32, 4812.5),
        ("gguf:q4_1", 4 + 32 / 32, 4375),
        ("gguf:q4_0", 4 + 16 / 32, 3937.5),
        ("nf4", 4 + 32 / 64, 3937.5),
        ("mxfp4", 4 + 8 / 32, 3718.75),
        ("gguf:mxfp4", 4 + 8 / 32, 3718.75),
        ("uint4_g128", 4 + 16 / 128 + 4 / 128, 3636.71875),
        ("int4_g128", 4 + 16 / 128, 3609.375),
    ],
)
def test_seven_billion_weights_take_this_much_room(target: str, bits: float, megabytes: float) -> None:
    """Bytes = 7e9 * bits / 8, bits = code + (scale + zero or minimum) / group; 14 GB as float16."""
    n_weights = 7_000_000_000

    n_bytes = resolve(target).n_bytes((n_weights // 256, 256))

    assert n_bytes == n_weights * bits / 8
    assert n_bytes == megabytes * 1e6


def test_int4_with_a_float16_scale_per_128_compresses_float16_by_3_88() -> None:
    """16 / (4 + 16 / 128) = 16 / 4.125 = 3.879, not 4: the scale costs an eighth of a bit."""
    shape = (4096, 4096)

    ratio = dense("float16").n_bytes(shape) / resolve("int4_g128").n_bytes(shape)

    assert ratio == 16 / 4.125
    assert round(ratio, 3) == 3.879


def test_a_scale_of_the_whole_tensor_comes_from_all_its_rows() -> None:
    """Per tensor: max |x| = 3.5 in the second row, scale 3.5 / 7 = 0.5, so the first row's 0.5 and -1 have codes 1 and -2."""
    form = resolve("int4_tensor")
    state = Extremes(*(np.array([[value]], np.float32) for value in (-1, 3.5, 3.5)))

    first = encode(np.array([[0.5, -1]], np.float32), form, "symmetric", state)

    assert first["codes"].tolist() == [[1, -2]]
    assert first["scales"].tolist() == [[0.5]]


def _quantiles(n: int) -> list[float]:
    """Give normal quantiles of n - 1 float32 probabilities, from 0.9677083 in n - 1 equal steps towards 0.5."""
    start, half = np.float32(0.9677083), np.float32(0.5)
    step = (half - start) / np.float32(n - 1)
    # The second half is counted from its own end, which rounds differently from counting on.
    rising = [start + step * np.float32(i) if i < n // 2 else half - step * np.float32(n - 1 - i) for i in range(n - 1)]
    return [NormalDist().inv_cdf(float(probability)) for probability in rising]
