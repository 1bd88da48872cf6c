"""Quantizing: targets and rules by name, what is refused, tiles, ends of the number range, and what the error keeps to."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from qformat import formats
from qformat.errors import UsageError
from qformat.formats import Format
from qformat.rules import ErrorReport, Sums, describe, encode, error, measure, prepare, quantize, resolve, rules
from qformat.scheme import Grid, Integers, Levels
from qformat.tensor import PackedTensor

F32 = NDArray[np.float32]

TARGETS = tuple(f"gguf:{form.name}" for form in formats.GGUF if form.rule) + tuple(form.name for form in formats.PLANAR)
PAIRS = tuple((target, rule) for target in TARGETS for rule in rules(resolve(target)))
every_target = pytest.mark.parametrize("target", TARGETS)
every_rule = pytest.mark.parametrize(("target", "rule"), PAIRS, ids=lambda value: value)
planar_rule = pytest.mark.parametrize(
    ("target", "rule"), [pair for pair in PAIRS if not pair[0].startswith("gguf:")], ids=lambda value: value
)
quick = settings(max_examples=25, deadline=None, derandomize=True)

# Weights of any magnitude that float16 scales can follow, zeros of both signs, and a few far out.
WEIGHTS = st.one_of(
    st.floats(-4, 4, width=32),
    st.sampled_from([0.0, -0.0, 0.5, -0.5, 1e-7, -1e-9, 1e-20]),
    st.floats(-60000, 60000, width=32),
)
MATRICES = arrays(np.float32, st.sampled_from([(1, 256), (3, 256), (2, 512)]), elements=WEIGHTS)


def normal(*shape: int, seed: int = 11) -> F32:
    """Give normal weights."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(tensor: PackedTensor) -> list[bytes]:
    """Give the stored bytes of every part."""
    return [bytes(part.source.read(0, part.source.n_bytes)) for part in tensor.parts]


def spread(tensor: PackedTensor, name: str = "scales") -> NDArray[np.float64]:
    """Give the parameter of every weight of an affine tensor, shape of the weights."""
    group = tensor.scheme.param(name).group
    assert isinstance(group, Grid)
    wide = np.repeat(np.asarray(tensor.param(name), np.float64), group.cols or tensor.n_cols, axis=1)
    return np.broadcast_to(wide[:, : tensor.n_cols], (tensor.n_rows, tensor.n_cols)).reshape(tensor.shape)


def spans(weights: NDArray[np.float64], tensor: PackedTensor) -> NDArray[np.float64]:
    """Give, for every weight, the range of its group with 0 in it."""
    group = tensor.scheme.param("scales").group
    assert isinstance(group, Grid)
    size = weights.size if group.rows == 0 else min(group.cols or tensor.n_cols, tensor.n_cols)
    cut = weights.reshape(-1, size)
    span = np.maximum(cut.max(axis=1), 0) - np.minimum(cut.min(axis=1), 0)
    return np.repeat(span, size).reshape(weights.shape)


@pytest.mark.parametrize("form", formats.GGUF + formats.PLANAR, ids=lambda form: form.name)
def test_the_first_rule_of_a_format_is_its_default(form: Format) -> None:
    assert rules(form)[:1] == ((form.rule,) if form.rule else ())


@pytest.mark.parametrize("form", formats.DENSE, ids=lambda form: form.name)
def test_nothing_quantizes_to_a_dense_format(form: Format) -> None:
    assert rules(form) == ()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("int4_g128", ("symmetric", "symmetric-full", "signed-extreme", "mse")),
        ("uint4_g64", ("minmax", "mse")),
        ("int8_asym", ("minmax", "mse")),
        ("nf4", ("absmax", "mse")),
        ("mxfp4", ("floor", "ceil", "even", "nearest", "mlx", "ggml", "mse")),
        ("gguf:mxfp4", ("ggml", "floor", "ceil", "even", "nearest", "mlx", "mse")),
        ("gguf:q4_0", ("ggml", "symmetric", "symmetric-full", "signed-extreme", "mse")),
        ("gguf:q4_1", ("ggml", "minmax", "mse")),
        ("int4_tensor", ("symmetric", "symmetric-full", "signed-extreme")),
        ("gguf:q4_k", ("ggml",)),
    ],
)
def test_a_format_has_these_rules(target: str, expected: tuple[str, ...]) -> None:
    assert rules(resolve(target)) == expected


@every_rule
def test_a_rule_describes_itself_in_one_line_and_is_recorded(target: str, rule: str) -> None:
    text = describe(resolve(target), rule)

    assert text.startswith(f"{rule}: ")
    assert "\n" not in text
    assert quantize(normal(2, 256), target, rule).rule == rule


@pytest.mark.parametrize("spelling", ["MXFP4", "qfmt:mxfp4", "QFMT:MxFp4"])
def test_a_target_is_found_whatever_its_case_and_prefix(spelling: str) -> None:
    assert resolve(spelling) is resolve("mxfp4")


@pytest.mark.parametrize("spelling", ["gguf:Q4-0", "GGUF:q4_0"])
def test_a_gguf_target_is_a_block_type(spelling: str) -> None:
    assert resolve(spelling).parts[0].layout.name == "q4_0"


@pytest.mark.parametrize(
    ("target", "words"), [("mxfp5", ["mxfp5"]), ("gguf:q4_9", ["gguf:q4_9", "q4_0", "q8_0"]), ("awq:nf4", ["awq:nf4"])]
)
def test_an_unknown_target_is_refused(target: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        quantize(normal(1, 32), target)

    assert all(word in str(caught.value) for word in words)


def test_an_unknown_rule_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"'round-up'.*'mxfp4'.*floor, ceil, even, nearest, mlx, ggml"):
        quantize(normal(1, 32), "mxfp4", "round-up")


def test_a_dense_format_is_refused_for_want_of_a_rule() -> None:
    with pytest.raises(UsageError, match="nothing quantizes to 'float16'"):
        quantize(normal(1, 32), formats.DENSE[[form.name for form in formats.DENSE].index("float16")])


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.complex64])
def test_weights_that_are_not_small_floats_are_refused(dtype: type) -> None:
    with pytest.raises(UsageError, match=f"{np.dtype(dtype).name}, expected float32, float16 or bfloat16"):
        quantize(np.zeros((1, 32), dtype), "mxfp4")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("target", ["int4_g32", "int4_tensor", "nf4", "mxfp4", "gguf:q4_0"])
def test_a_weight_that_is_not_finite_is_refused_by_index(target: str, value: float) -> None:
    weights = normal(3, 700, 64)
    weights[2, 650, 7] = value

    with pytest.raises(UsageError) as caught:
        quantize(weights, target)

    assert f"[2, 650, 7] is {value}" in str(caught.value)


@pytest.mark.parametrize("target", ["gguf:q4_0", "gguf:mxfp4"])
def test_rows_that_are_no_whole_blocks_are_refused(target: str) -> None:
    with pytest.raises(UsageError, match=r"4090 columns, expected a multiple of 32"):
        quantize(normal(1, 4090), target)


@every_target
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_weights_quantize_as_their_float32_values(target: str, dtype: Any) -> None:
    weights = normal(3, 256).astype(dtype)

    packed = quantize(weights, target)

    assert stored(packed) == stored(quantize(weights.astype(np.float32), target))
    assert packed.dtype == np.dtype(dtype).name


@every_target
@pytest.mark.parametrize("shape", [(256,), (2, 3, 256), (0, 256), (3, 0), (1, 512)], ids=str)
def test_the_shape_is_kept(target: str, shape: tuple[int, ...]) -> None:
    packed = quantize(normal(*shape), target)

    assert packed.shape == packed.codes().shape == packed.dequantize().shape == shape
    assert sum(map(len, stored(packed))) == resolve(target).n_bytes(shape)


@pytest.mark.parametrize("target", ["int4_g32", "uint4_g32", "int3_g64", "nf4", "mxfp4", "int8_tensor", "int8"])
@pytest.mark.parametrize("n_cols", [1, 31, 33, 65])
def test_a_short_last_group_quantizes_as_if_filled_up_with_zeros(target: str, n_cols: int) -> None:
    weights = normal(1, n_cols)
    filled = np.zeros((1, 128), np.float32)
    filled[:, :n_cols] = weights

    packed, whole = quantize(weights, target), quantize(filled, target)

    assert packed.codes().tolist() == whole.codes()[:, :n_cols].tolist()
    assert (
        packed.param("scales").reshape(-1).tolist() == whole.param("scales").reshape(-1)[: packed.param("scales").size].tolist()
    )


@every_target
def test_strided_read_only_and_big_endian_weights_give_the_same_bytes(target: str) -> None:
    weights = normal(4, 256)
    wide = np.zeros((8, 512), np.float32)
    wide[::2, ::2] = weights
    frozen = wide[::2, ::2]
    frozen.flags.writeable = False

    expected = stored(quantize(weights, target))

    assert stored(quantize(frozen, target)) == expected
    assert stored(quantize(weights.astype(">f4"), target)) == expected
    assert weights.tobytes() == normal(4, 256).tobytes()


@every_rule
def test_tiles_give_the_same_values_as_the_whole(target: str, rule: str) -> None:
    """Ranges of rows, or of whole blocks where blocks cross rows: 4096 weights are a whole block of every size."""
    form, weights = resolve(target), normal(48, 256) * np.linspace(0.1, 2, 48, dtype=np.float32)[:, None]
    tiles = [weights[first : first + 16] for first in range(0, 48, 16)]

    state = prepare(form, iter(tiles))
    made = [encode(tile, form, rule, state, first=16 * 256 * i) for i, tile in enumerate(tiles)]

    whole = quantize(weights, target, rule)
    shared = state is not None
    assert np.concatenate([tile["codes"] for tile in made]).tobytes() == whole.codes().tobytes()
    for name in [param.name for param in form.scheme.params]:
        together = made[0][name] if shared else np.concatenate([tile[name] for tile in made])
        assert together.tobytes() == whole.param(name).tobytes()


def test_many_tiles_of_one_tensor_give_the_same_bytes_as_its_rows_alone() -> None:
    weights = normal(700, 256)

    packed = quantize(weights, "mxfp4")

    assert packed.codes(slice(650, 651)).tobytes() == quantize(weights[650:651], "mxfp4").codes().tobytes()


def test_flat_blocks_cross_rows_and_tiles() -> None:
    weights = normal(1001, 67)

    packed = quantize(weights, "nf4")

    assert packed.codes().tobytes() == quantize(weights.reshape(-1), "nf4").codes().tobytes()
    assert packed.param("scales")[1] == np.abs(weights.reshape(-1)[64:128]).max()


def test_encoding_with_one_scale_for_the_tensor_needs_the_first_pass() -> None:
    with pytest.raises(UsageError, match=r"int4_tensor.*prepare"):
        encode(normal(2, 32), resolve("int4_tensor"))


def test_the_first_pass_is_not_taken_where_rows_stand_alone() -> None:
    def untouchable() -> Any:
        raise AssertionError
        yield

    assert prepare(resolve("int4_g128"), untouchable()) is None


def test_a_bad_weight_of_a_tile_is_named_by_its_place_in_the_tensor() -> None:
    rows = normal(2, 64)
    rows[1, 3] = math.nan

    with pytest.raises(UsageError, match=r"\[5, 9, 3\] is nan"):
        encode(rows, resolve("mxfp4"), first=(5 * 10 + 8) * 64, shape=(6, 10, 64))


@every_rule
@pytest.mark.parametrize("zero", [0.0, -0.0], ids=["plus", "minus"])
def test_zeros_decode_to_zeros(target: str, rule: str, zero: float) -> None:
    assert not quantize(np.full((2, 256), zero, np.float32), target, rule).dequantize().any()


@pytest.mark.parametrize("target", ["int4_g32", "uint4_g32", "int8_asym", "int8_tensor"])
def test_a_group_of_zeros_has_scale_plus_zero(target: str) -> None:
    packed = quantize(np.full((1, 32), -0.0, np.float32), target)

    assert packed.param("scales").tobytes() == bytes(2)
    assert not np.signbit(packed.dequantize()).any()


@pytest.mark.parametrize(
    ("rule", "byte", "codes"),
    [
        ("floor", 0, [0, 8]),
        ("ceil", 0, [8, 8]),
        ("even", 0, [0, 0]),
        ("nearest", 127, [0, 0]),
        ("mlx", 127, [0, 0]),
        ("ggml", 0, [0, 0]),
    ],
)
def test_an_mxfp4_group_of_plus_and_minus_zero_has_this_byte_and_these_codes(rule: str, byte: int, codes: list[int]) -> None:
    packed = quantize(np.array([[0.0, -0.0] * 16], np.float32), "mxfp4", rule)

    assert packed.param("scales").view(np.uint8).tolist() == [[byte]]
    assert packed.codes()[0, :2].tolist() == codes


@pytest.mark.parametrize(
    ("rule", "largest", "byte"),
    [
        ("floor", 2.0**-149, 0),  # -151 + 127, limited
        ("nearest", 2.0**-140, 0),
        ("nearest", 2.0**-149, 127),  # a sixth of it is 0 in float32
        ("mlx", 2.0**-149, 0),
        ("ceil", 2.0**-149, 0),
        ("even", 2.0**-149, 0),
        ("ggml", 2.0**-126, 0),  # ggml's own block has 255 here, NaN in OCP MX
        ("floor", 2.0**-124, 1),
        ("floor", 3.4e38, 252),  # floor(log2) = 127; 127 + 127 - 2
        ("even", 2.9e38, 252),  # mantissa 1.705
        ("even", 3.4e38, 252),  # mantissa 1.998: one more than floor's, where 4 * 2^126 is infinite
        ("ceil", 2.5e38, 252),  # log2(2.5e38 / 6) = 124.97
        ("ceil", 3.4e38, 252),  # log2(3.4e38 / 6) = 125.4
        ("mlx", 3.4e38, 252),
        ("nearest", 3.4e38, 252),
    ],
)
def test_an_mxfp4_exponent_stays_within_the_finite_bytes(rule: str, largest: float, byte: int) -> None:
    weights = np.zeros((1, 32), np.float32)
    weights[0, 4] = largest

    packed = quantize(weights, "mxfp4", rule)

    assert packed.param("scales").view(np.uint8).tolist() == [[byte]]
    assert np.isfinite(packed.dequantize()).all()


def test_weights_below_the_smallest_scale_are_rounded_against_it() -> None:
    """Byte 0 is 2^-127: 2^-127 is 1 (code 2), 1.5 * 2^-127 code 3, 2^-129 = 0.25 a tie that goes to 0."""
    weights = np.zeros((1, 32), np.float32)
    weights[0, :3] = [2.0**-127, -1.5 * 2.0**-127, 2.0**-129]

    packed = quantize(weights, "mxfp4", "floor")

    assert packed.codes()[0, :3].tolist() == [2, 11, 0]
    assert packed.dequantize()[0, :3].tolist() == [2.0**-127, -1.5 * 2.0**-127, 0]


@planar_rule
@pytest.mark.parametrize("largest", [1e-45, 1e-30, 3e-8, 6e4, 1e6, 3.4e38])
def test_no_scale_makes_a_decode_infinite_or_nan(target: str, rule: str, largest: float) -> None:
    weights = (normal(2, 256).clip(-1, 1) * np.float32(largest)).astype(np.float32)

    assert np.isfinite(quantize(weights, target, rule).dequantize()).all()


def test_a_scale_beyond_float16_stops_at_its_largest_value_and_codes_saturate() -> None:
    """1e6 / 7 is beyond 65504: scale 65504, 1e6 has code 7, 131008 code 2."""
    packed = quantize(np.array([[1e6, 131008, -1e6]], np.float32), "int4_channel")

    assert packed.param("scales").tolist() == [[65504]]
    assert packed.codes().tolist() == [[7, 2, -7]]


def test_a_scale_below_float16_stops_at_its_smallest_value() -> None:
    """7e-8 / 7 = 1e-8 would round to 0 in float16: scale 2^-24 = 5.96e-8, codes round(1.17) = 1 and round(-0.84) = -1."""
    packed = quantize(np.array([[7e-8, -5e-8, 1e-8]], np.float32), "int4_channel")

    assert packed.param("scales").tolist() == [[2.0**-24]]
    assert packed.codes().tolist() == [[1, -1, 0]]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_signed_extreme_keeps_its_value_and_the_sign_of_the_scale(sign: int) -> None:
    """Scale m / -8: 4 / -8 = -0.5. Of 4 and -4 the first counts."""
    packed = quantize(np.array([[1, 4 * sign, -4 * sign]], np.float32), "int4_channel", "signed-extreme")

    assert packed.param("scales").tolist() == [[-0.5 * sign]]
    assert packed.codes().tolist() == [[-2 * sign, -8, 7]]


@pytest.mark.parametrize(("low", "high", "zero"), [(1, 3, 0), (-3, -1, 15), (-1.5, 0, 15), (-7, 8, 7)])
def test_the_range_of_minmax_holds_zero(low: float, high: float, zero: int) -> None:
    """All positive: zero point 0, all negative: 15; -7 and 8: scale 1, zero point 7."""
    packed = quantize(np.array([[low, high]], np.float32), "uint4_channel")

    assert packed.param("zeros").tolist() == [[zero]]


@every_rule
@quick
@given(weights=MATRICES)
def test_codes_are_within_the_alphabet(target: str, rule: str, weights: F32) -> None:
    packed = quantize(weights, target, rule)
    alphabet = packed.scheme.alphabet
    n_levels = len(alphabet.levels) if isinstance(alphabet, Levels) else 0
    low, high = (alphabet.low, alphabet.high) if isinstance(alphabet, Integers) else (0, n_levels - 1)

    assert packed.codes().min() >= low
    assert packed.codes().max() <= high


@pytest.mark.parametrize("target", ["int4_g32", "int3_g64", "int8", "int8_tensor", "gguf:q8_0"])
@quick
@given(weights=MATRICES)
def test_symmetric_error_is_at_most_half_a_step(target: str, weights: F32) -> None:
    """|x - x'| <= s/2 + what the rounding of the scale to float16 clips, max(0, |x| - q s), q the largest code.

    x' = code * s exactly, since 8 + 11 bits fit in float32; code = round(x / s) for |x / s| < q + 1/2. The quotient is
    rounded to float32 before it is rounded to an integer, which can move it over a tie by q * 2^-24 steps.
    """
    packed = quantize(weights, target, "symmetric")
    alphabet = packed.scheme.alphabet
    assert isinstance(alphabet, Integers)
    step, exact = spread(packed), weights.astype(np.float64)

    difference = np.abs(exact - packed.dequantize())

    clipped = np.maximum(0, np.abs(exact) - alphabet.high * step)
    assert (difference <= step * (0.5 + alphabet.high * 2.0**-23) + clipped).all()


@pytest.mark.parametrize("target", ["uint4_g32", "int8_asym", "int8_asym_tensor", "uint8_g128"])
@quick
@given(weights=MATRICES)
def test_minmax_error_is_at_most_half_a_step(target: str, weights: F32) -> None:
    """|x - x'| <= s/2 + what the rounding of the scale clips, at most max(0, (max - min) - n s), n = 2^N - 1.

    Zero point and code are rounded apart, so their sum can leave the codes by one, but only where both were ties, and then
    the clipped code is the other neighbour. Quotients are rounded to float32 first: 2^8 * 2^-24 steps each.
    """
    packed = quantize(weights, target)
    alphabet = packed.scheme.alphabet
    assert isinstance(alphabet, Integers)
    step, exact = spread(packed), weights.astype(np.float64)

    difference = np.abs(exact - packed.dequantize())

    clipped = np.maximum(0, spans(exact, packed) - (alphabet.high - alphabet.low) * step)
    assert (difference <= step * (0.5 + 2.0**-15) + clipped).all()


def test_an_nf4_tie_goes_to_the_lower_level() -> None:
    """Levels 7 and 8 are 0 and 0.07958029955625534: their float32 midpoint is half of that, and absmax is 1."""
    midpoint = np.float32(0.07958029955625534) / np.float32(2)
    above = np.nextafter(midpoint, np.float32(1))

    codes = quantize(np.array([1, midpoint, above, -1] + [0] * 60, np.float32), "nf4").codes()

    assert codes[:5].tolist() == [15, 7, 8, 0, 7]


@quick
@given(weights=MATRICES)
def test_nf4_error_is_at_most_half_the_widest_gap(weights: F32) -> None:
    """The widest gap is -1 to -0.6962, so |x - x'| <= 0.1519035996 * absmax, and a little for four float32 roundings."""
    packed = quantize(weights, "nf4_b32")
    scales = np.repeat(packed.param("scales").astype(np.float64), 32).reshape(weights.shape)

    difference = np.abs(weights.astype(np.float64) - packed.dequantize())

    assert (difference <= scales * ((1 - 0.6961928009986877) / 2 + 2.0**-21) + 1e-38).all()


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        *[(target, rule) for target in ("int4_g32", "int8", "gguf:q5_0") for rule in ("symmetric", "signed-extreme")],
        *[("mxfp4", rule) for rule in ("floor", "ggml")],
        ("gguf:mxfp4", "ggml"),
        ("nf4_b32", "absmax"),
    ],
)
@quick
@given(weights=arrays(np.float32, (2, 64), elements=st.floats(-4, 4, width=32, allow_subnormal=False)))
def test_quantizing_the_decode_gives_the_same_bytes(target: str, rule: str, weights: F32) -> None:
    """The largest weight of a group takes an end code, from which the same scale follows.

    Not so for symmetric-full, which clips that weight, nor for the MXFP4 rules that round up: they give 3 s where the largest
    is 3.2 s, and 3 s alone would take the next smaller scale; nor for `even`, where a small negative weight takes code 8 but
    minus zero itself code 0, as in compressed-tensors; nor in GGUF for those that use code 8, which ggml reads as +0.
    Groups below 2^-10 are left out: their float16 scales may be
    subnormal, too coarse for the largest weight to take the end code.
    """
    weights = np.where(np.abs(weights) < 2.0**-10, np.float32(0), weights)
    once = quantize(weights, target, rule)

    again = quantize(once.dequantize(), target, rule)

    assert stored(again) == stored(once)


def test_the_decode_of_a_full_range_minmax_group_quantizes_to_the_same_bytes() -> None:
    """Where codes 0 and 15 are both used, min and max of the decode are exactly 15 steps apart and hold the zero point."""
    once = quantize(normal(64, 128), "uint4_g32")
    groups = once.codes().reshape(-1, 32)
    full = (groups.min(axis=1) == 0) & (groups.max(axis=1) == 15)

    again = quantize(once.dequantize(), "uint4_g32")

    assert full.mean() > 0.9
    assert again.codes().reshape(-1, 32)[full].tobytes() == groups[full].tobytes()


def test_the_error_report_of_two_weights() -> None:
    """[7, 3.5] with scale 1: codes 7 4, errors 0 and 0.5. RMS sqrt(0.25 / 2); SQNR 10 log10((49 + 12.25) / 0.25).

    One byte of codes and two of scale for two weights: 12 bits each.
    """
    weights = np.array([[7, 3.5]], np.float32)

    report = error(weights, quantize(weights, "int4_channel"))

    assert report == ErrorReport(0.5, math.sqrt(0.125), 10 * math.log10(61.25 / 0.25), 12.0)


def test_an_exact_decode_has_infinite_sqnr() -> None:
    weights = np.arange(-7, 8, dtype=np.float32).reshape(1, -1)

    report = error(weights, quantize(weights, "int4_channel"))

    assert (report.max_abs, report.rms, report.sqnr_db) == (0, 0, math.inf)


def test_a_decode_that_is_nan_is_reported_as_nan() -> None:
    """ggml's rule makes the scale infinite beyond float16, and infinity times code 0 is NaN."""
    weights = np.zeros((1, 32), np.float32)
    weights[0, 0] = 6e5

    report = error(weights, quantize(weights, "gguf:q4_0"))

    assert math.isnan(report.max_abs)
    assert math.isnan(report.rms)
    assert math.isnan(report.sqnr_db)


def test_zeros_that_decode_to_something_have_no_signal() -> None:
    assert Sums(4, 1.0, 0.0, 2.0).report(4.5).sqnr_db == -math.inf


def test_no_weights_have_no_error() -> None:
    weights = np.zeros((0, 64), np.float32)

    assert error(weights, quantize(weights, "nf4")) == ErrorReport(0, 0, math.inf, 0)


def test_sums_of_tiles_add_up() -> None:
    """[1, 2] against [1, 1] and [4] against [2]: 3 weights, worst 2, signal 1 + 4 + 16, noise 1 + 4."""
    one = measure(np.array([1, 2], np.float32), np.array([1, 1], np.float32))
    other = measure(np.array([4], np.float32), np.array([2], np.float32))

    assert one + other == Sums(3, 2.0, 21.0, 5.0)


def test_errors_of_outputs_count_by_the_hessian() -> None:
    hessian = np.array([[2.0, 1.0], [1.0, 4.0]])
    seen = measure(np.float32([[1, 2], [0, 1]]), np.float32([[1, 1], [1, 1]]), hessian)
    # By hand: (1, 2) H (1, 2)^T = 2 + 2 * 2 + 16 = 22 and (0, 1) H (0, 1)^T = 4; errors (0, 1): 4 and (-1, 0): 2.
    assert seen.outputs == (26.0, 6.0)
    assert seen.report(1.0).output_sqnr_db == 10 * math.log10(26 / 6)
    unknown = measure(np.float32([[3, 3]]), np.float32([[2, 3]]))
    assert (unknown.outputs, unknown.report(1.0).output_sqnr_db) == (None, None)
    assert (seen + unknown).outputs == (unknown + seen).outputs == (26.0, 6.0)
    assert (seen + seen).outputs == (52.0, 12.0)


def test_an_error_report_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(2, 32\).*\(1, 64\)"):
        error(normal(2, 32), quantize(normal(1, 64), "mxfp4"))


def test_the_float64_error_of_many_tiles_is_that_of_the_whole() -> None:
    """Computed here without tiles, on a tensor of three tiles whose values are few bits wide, so that every sum is exact."""
    weights = np.round(normal(600, 256) * 8) / 8
    packed = quantize(weights, "int8_g128")
    difference = weights.astype(np.float64) - packed.dequantize()

    report = error(weights, packed)

    assert report.max_abs == np.abs(difference).max()
    assert abs(report.rms - math.sqrt(float(np.mean(difference**2)))) <= 1e-15  # sums in another order


def test_levels_that_do_not_ascend_have_no_rule_of_midpoints() -> None:
    form = next(form for form in formats.DIALECTS if form.name == "bnb:fp4")
    with pytest.raises(UsageError, match="nothing quantizes to 'bnb:fp4'"):
        quantize(np.zeros((1, 64), np.float32), form)
