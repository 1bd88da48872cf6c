"""Packed weights times float activations: every format within the stated bound of exact sums, and what else must not matter."""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from made_tensors import made
from numpy.typing import NDArray
from test_kernels import random_bytes

import qformat
from qformat import formats, reference
from qformat.arrays import Memory
from qformat.bits import values
from qformat.formats import Format, PartForm, awq, fp8_block
from qformat.formats.form import parameter, with_input_scale
from qformat.formats.gptq import gptq
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Grid, Integers, Levels, Op, Param, Ref, Scheme, Step
from qformat.tensor import PackedTensor, assemble, from_array
from qformat.tiling import Tiling

RNG = np.random.default_rng(11)
ROUNDING = 2.0**-24
N_COLS = 512  # whole units of every format that has any
BY_NAME = {form.name: form for form in (*formats.PLANAR, *formats.GGUF)}
PLANAR = ("nf4_b64", "uint4_g128", "int5_g64", "uint6_g64", "uint8_g128")
SOME = ("q4_k", "mxfp4", "int4_g128", "int3_g64", "int8_channel")

IN_UNITS = (*formats.GGUF, *(BY_NAME[name] for name in (*PLANAR, *SOME[2:])))
IN_TILES = (*(form for form in formats.PLANAR if form not in IN_UNITS), *formats.DIALECTS)

DOWN = {
    "gptq 4 bits": gptq("v2", 4, 128),
    "gptq 8 bits": gptq("v2", 8, 128),
    "gptq 2 bits": gptq("v2", 2, 64, "bfloat16"),
    "gptq by row": gptq("v2", 4, 0),
    "gptq 3 bits": gptq("v2", 3, 128),
    "planar 7 bits": gptq("planar", 7, 128),
    "awq": awq.gemm(128),
    "awq by row": awq.gemm(0),
}
NAMED = gptq("v2", 4, 128, act_order=(8, 1024))

Decoded = tuple[PackedTensor, NDArray[np.float32]]  # by the slow reference, once

some_formats = pytest.mark.parametrize("name", SOME)


def filled(form: Format, shape: tuple[int, int]) -> PackedTensor:
    """Fill a format with random bytes, floats of two or four bytes with small numbers."""
    sources = {}
    for number, part in enumerate(form.parts):
        blocks = random_bytes(form.part_bytes(shape)[part.role], seed=number).reshape(-1, part.layout.n_bytes)
        for field in part.layout.parts:
            if isinstance(field, Field) and field.dtype in ("float16", "float32"):
                small = RNG.uniform(0.01, 0.1, (len(blocks), field.count)).astype(field.dtype)
                blocks[:, field.at : field.at + field.n_bytes] = small.view(np.uint8)
            elif isinstance(field, Field) and field.dtype.startswith("float8_e8m0"):
                blocks[:, field.at : field.at + field.n_bytes] = 120 + blocks[:, field.at : field.at + field.n_bytes] % 16
            elif isinstance(field, Bits) and field.dtype:
                blocks[...] &= 0x3F  # of a float16 whose bits lie apart: none is infinite
        sources[part.role] = Memory(blocks.reshape(-1))
    return assemble(form, shape, sources)


def activations(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def assert_within_the_bound(found: NDArray[np.float32], x: NDArray[Any], weights: NDArray[np.float32]) -> None:
    """Compare with float64, whose own rounding is a hundred-millionth of the bound."""
    n = weights.shape[1] / 8 + 8
    left, right = x.astype(np.float64), weights.astype(np.float64).T
    with np.errstate(all="ignore"):
        exact, sizes = left @ right, np.abs(left) @ np.abs(right)
    is_finite = np.isfinite(sizes)
    assert np.isfinite(found[is_finite]).all()
    assert is_finite.any()
    assert (np.abs(found - exact)[is_finite] <= n * ROUNDING / (1 - n * ROUNDING) * sizes[is_finite]).all()
    assert np.isnan(found[np.isnan(exact)]).all()


@pytest.fixture
def threads() -> Iterator[Callable[[int | None], None]]:
    yield qformat.set_threads
    qformat.set_threads(None)


@pytest.mark.parametrize("n_x", [1, 3])
@pytest.mark.parametrize("form", IN_UNITS, ids=lambda form: form.name)
def test_units_of_weights_are_multiplied_within_the_bound(form: Format, n_x: int) -> None:
    tensor, x = filled(form, (5, N_COLS)), activations(n_x, N_COLS)

    assert tensor.units is not None
    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize())


@pytest.mark.parametrize("n_x", [2, 5, 32])
@pytest.mark.parametrize("shape", [(1, 1280), (26, 1792), (50, 512)], ids=str)
@pytest.mark.parametrize("name", ["mxfp4", "q4_k"])
def test_runs_of_columns_and_panels_of_rows_are_multiplied_within_the_bound(
    name: str, shape: tuple[int, int], n_x: int
) -> None:
    tensor, x = made(BY_NAME[name], shape), activations(n_x, shape[1])

    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize())


@pytest.mark.parametrize("n_x", [1, 3])
@pytest.mark.parametrize("n_cols", [64, 192, 320])
@pytest.mark.parametrize("name", ["int3_g64", "int5_g64", "int4_g32", "q5_0", "q5_1"])
def test_units_of_few_weights_are_multiplied_within_the_bound(name: str, n_cols: int, n_x: int) -> None:
    tensor, x = made(BY_NAME[name], (4, n_cols)), activations(n_x, n_cols)

    assert tensor.units is not None
    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize())


@pytest.mark.parametrize("form", IN_TILES, ids=lambda form: form.name)
def test_tiles_of_weights_are_multiplied_within_the_bound(form: Format) -> None:
    tensor, x = made(form, (5, N_COLS)), activations(33, N_COLS)

    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize())


@pytest.mark.parametrize("n_x", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("form", DOWN.values(), ids=DOWN)
def test_words_that_run_over_rows_are_multiplied_within_the_bound(form: Format, n_x: int) -> None:
    tensor, x = made(form, (128, 1024)), activations(n_x, 1024)

    assert tensor.columns is not None
    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize())


@pytest.mark.parametrize("n_x", [1, 4])
@pytest.mark.parametrize("form", DOWN.values(), ids=DOWN)
def test_some_rows_of_words_that_run_over_rows_are_those_of_all(form: Format, n_x: int) -> None:
    tensor, x = made(form, (192, 1024)), activations(n_x, 1024)
    whole = qformat.matmul(x, tensor)

    for first, last in ((0, 1), (63, 130), (64, 128), (191, 192)):
        assert qformat.matmul(x, tensor, rows=slice(first, last)).tobytes() == whole[:, first:last].tobytes()


@pytest.fixture(scope="module")
def named_columns() -> Decoded:
    tensor = made(NAMED, (64, 1024), g_idx=np.arange(1024) * 5 % 1024 // 128)  # neighbours are of different groups
    return tensor, reference.decode(tensor)


@pytest.mark.parametrize("n_x", [1, 2, 8])
def test_columns_whose_groups_are_named_are_multiplied_where_they_are(named_columns: Decoded, n_x: int) -> None:
    (tensor, weights), x = named_columns, activations(n_x, 1024)

    assert tensor.columns is not None
    assert_within_the_bound(qformat.matmul(x, tensor), x, weights)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_less_one_are_multiplied_with_their_borrows(bits: int) -> None:
    tensor, x = filled(gptq("v1", bits, 128), (64, 1024)), activations(2, 1024)

    weights = reference.decode(tensor)
    assert tensor.columns is not None
    assert tensor.dequantize().tobytes() == weights.tobytes()
    assert_within_the_bound(qformat.matmul(x, tensor), x, weights)


@pytest.mark.parametrize("wrong", [8, -9])
def test_a_group_that_is_not_there_is_an_error(wrong: int) -> None:
    tensor = made(NAMED, (64, 1024), g_idx=np.where(np.arange(1024) == 700, wrong, 3))

    with pytest.raises(IndexError):
        qformat.matmul(activations(1, 1024), tensor)


LEFT_OVER = {"gptq by row": 536, "gptq 4 bits": 1000, "awq": 1003, "awq by row": 1003}  # columns


@pytest.fixture(scope="module", params=LEFT_OVER)
def left_over(request: pytest.FixtureRequest) -> Decoded:
    tensor = made(DOWN[request.param], (128, LEFT_OVER[request.param]))
    return tensor, reference.decode(tensor)


@pytest.mark.parametrize("n_x", [1, 4])
def test_lines_that_are_left_over_are_added_up_by_themselves(left_over: Decoded, n_x: int) -> None:
    (tensor, weights), x = left_over, activations(n_x, left_over[0].shape[1])

    assert tensor.columns is not None
    assert tensor.shape[1] // tensor.columns.word.n_cols % tensor.columns.together
    assert_within_the_bound(qformat.matmul(x, tensor), x, weights)


@pytest.mark.parametrize("shape", [(24, 1024), (128, 256), (120, 1024)], ids=str)
@pytest.mark.parametrize("form", DOWN.values(), ids=DOWN)
def test_words_that_fill_no_vectors_are_turned(form: Format, shape: tuple[int, int]) -> None:
    tensor, x = made(form, shape), activations(3, shape[1])

    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize())


def test_infinite_scales_of_words_that_run_over_rows_meet_the_sum() -> None:
    scales = np.full((64, 8), 0.5, np.float16)
    scales[1, 0], scales[2, 7] = np.inf, np.nan
    tensor = made(DOWN["gptq 4 bits"], (64, 1024), codes=9, zeros=8, scales=scales)
    x = np.ones((2, 1024), np.float32)
    x[1, 5] = 0

    found = qformat.matmul(x, tensor)

    assert found[:, 0].tolist() == [512, 511.5]
    assert found[0, 1] == np.inf
    assert np.isnan([found[1, 1], found[0, 2], found[1, 2]]).all()


NARROW = [form for form in formats.DIALECTS if len(getattr(form.scheme.alphabet, "levels", ())) > 16]


@pytest.mark.parametrize("form", NARROW, ids=lambda form: form.name)
def test_every_code_of_narrow_floats_is_multiplied_as_it_is_decoded(form: Format) -> None:
    levels = np.array(form.scheme.alphabet.levels)
    codes = np.arange(3 * N_COLS).reshape(3, N_COLS) % len(levels)
    codes[:2] = np.where(np.isfinite(levels[codes[:2]]), codes[:2], 5)  # NaN in the last row alone
    tensor = made(form, codes.shape, codes=codes.astype(np.uint8))
    weights, one = tensor.dequantize(), np.zeros((1, N_COLS), np.float32)

    is_finite = np.isfinite(weights).all(axis=1)
    for column in range(256):
        one[:] = 0
        one[0, column] = 1
        found = qformat.matmul(one, tensor)[0]

        assert is_finite[:2].all()
        assert (found[is_finite] == weights[is_finite, column]).all()
        assert np.isnan(found[~is_finite]).all()  # NaN times 0


def narrow_floats(exponent: int, has_infinities: bool = True) -> NDArray[np.float32]:
    """List a float of a byte as IEEE 754 would have it: the largest exponent is of infinity and NaN, or of numbers."""
    mantissa = 7 - exponent
    codes, bias = np.arange(128), (1 << (exponent - 1)) - 1
    high, low = codes >> mantissa, codes & ((1 << mantissa) - 1)
    normal = (1 + low / 2**mantissa) * 2.0 ** (high - bias)
    found = np.where(high == 0, low / 2**mantissa * 2.0 ** (1 - bias), normal)
    if has_infinities:
        found = np.where(high == (1 << exponent) - 1, np.where(low == 0, np.inf, np.nan), found)
    return np.concatenate([found, -found]).astype(np.float32)


OWN = {
    "float8_e4m3": narrow_floats(4),
    "float8_e3m4": narrow_floats(3),
    "float8_e5m2 of numbers": narrow_floats(5, has_infinities=False),
    "float8_e4m3, small": narrow_floats(4) * np.float32(2**-30),
    "float8_e2m5, large": narrow_floats(2, has_infinities=False) * np.float32(2**12),
}
STORED = ("float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float6_e3m2fn", "float6_e2m3fn")


@pytest.mark.parametrize("dtype", [*STORED, *OWN])
def test_one_column_of_narrow_floats_gives_every_one_of_them(dtype: str) -> None:
    levels = OWN[dtype] if dtype in OWN else np.array(values(dtype), np.float32)
    form = next(form for form in NARROW if len(form.scheme.alphabet.levels) == len(levels))
    form = replace(form, scheme=replace(form.scheme, alphabet=Levels(dtype, tuple(map(float, levels)))))
    codes = np.full((len(levels), N_COLS), 1, np.uint8)
    codes[:, 37] = np.arange(len(levels))
    tensor = made(form, codes.shape, codes=codes)
    column = tensor.dequantize()[:, 37]
    one = np.eye(1, N_COLS, 37, dtype=np.float32)

    found = qformat.matmul(one, tensor)[0]

    assert np.array_equal(found, column, equal_nan=True)
    assert np.array_equal(np.isnan(levels), np.isnan(found))


@pytest.mark.parametrize("n_codes", [64, 256])
def test_levels_that_are_no_narrow_floats_are_looked_up(n_codes: int) -> None:
    levels = RNG.standard_normal(n_codes).astype(np.float32)
    form = next(form for form in NARROW if len(form.scheme.alphabet.levels) == n_codes)
    form = replace(form, scheme=replace(form.scheme, alphabet=Levels("any", tuple(map(float, levels)))))
    tensor, x = made(form, (3, N_COLS)), activations(2, N_COLS)

    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize())


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float8_e4m3fn"])
def test_dense_weights_are_multiplied_too(name: str) -> None:
    tensor = from_array(activations(9, 77).astype(getattr(ml_dtypes, name, name)))
    x = activations(2, 77)

    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize())


@pytest.mark.parametrize("n_x", [1, 2, 3, 4, 5, 16, 32, 33, 39])
@some_formats
def test_any_number_of_rows_of_activations_fits(name: str, n_x: int) -> None:
    tensor, x = made(BY_NAME[name], (7, N_COLS)), activations(n_x, N_COLS)

    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize())


@pytest.mark.parametrize("n_x", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 1), (2, 31), (5, 33), (4, 1056), (3, 2080), (1, 4129)], ids=str)
def test_columns_that_fill_no_unit_are_multiplied(shape: tuple[int, int], n_x: int) -> None:
    tensor, x = made(BY_NAME["mxfp4"], shape), activations(n_x, shape[1])

    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize())


def test_sums_of_few_integers_are_exact() -> None:
    tensor = made(BY_NAME["int4_g128"], (6, 256), scales=np.float16(0.5))
    x = RNG.integers(-9, 10, (3, 256)).astype(np.float32)

    expected = (x.astype(np.int64) @ tensor.codes().astype(np.int64).T) / 2

    assert qformat.matmul(x, tensor).tobytes() == expected.astype(np.float32).tobytes()
    assert qformat.matmul(np.repeat(x, 6, axis=0), tensor)[::6].tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ">f4"], ids=str)
@pytest.mark.parametrize("n_x", [1, 18, 34])
def test_other_activations_are_their_float32_values(dtype: Any, n_x: int) -> None:
    tensor, x = made(BY_NAME["q4_k"], (5, N_COLS)), activations(n_x, N_COLS).astype(dtype)

    assert qformat.matmul(x, tensor).tobytes() == qformat.matmul(x.astype(np.float32), tensor).tobytes()


def test_axes_before_the_last_stay() -> None:
    tensor, x = made(BY_NAME["q4_k"], (5, N_COLS)), activations(2, 3, N_COLS)

    assert qformat.matmul(x, tensor).shape == (2, 3, 5)
    assert qformat.matmul(x, tensor).tobytes() == qformat.matmul(x.reshape(6, N_COLS), tensor).tobytes()
    assert qformat.matmul(x[0, 0], tensor).shape == (5,)
    assert qformat.matmul(x, made(BY_NAME["q4_k"], (N_COLS,))).shape == (2, 3)


@pytest.mark.parametrize("n_x", [3, 33])
def test_activations_and_results_may_lie_anywhere(n_x: int) -> None:
    tensor, memory = made(BY_NAME["mxfp4"], (6, N_COLS)), activations(2 * n_x, 2 * N_COLS)
    x, wide = memory[::-2, ::2], np.full((2 * n_x, 14), 7, np.float32)
    out = wide[::2, 1:-1:2]

    assert qformat.matmul(x, tensor, out) is out
    assert out.tobytes() == qformat.matmul(x.copy(), tensor).tobytes()
    out[...] = 7
    assert (wide == 7).all()


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("n_x", [1, 4, 35])
@pytest.mark.parametrize("form", [BY_NAME["q4_k"], fp8_block.DIALECT[0], DOWN["awq"]], ids=lambda form: form.name)
def test_the_number_of_threads_changes_no_bit(form: Format, n_x: int, n: int, threads: Callable[[int | None], None]) -> None:
    tensor, x = made(form, (2624, N_COLS)), activations(n_x, N_COLS)
    threads(1)
    expected = qformat.matmul(x, tensor)
    threads(n)

    assert qformat.matmul(x, tensor).tobytes() == expected.tobytes()


@pytest.mark.parametrize("n_x", [1, 2, 3, 35])
@pytest.mark.parametrize("form", [BY_NAME["q4_k"], fp8_block.DIALECT[0]], ids=lambda form: form.name)
def test_some_rows_are_those_of_all(form: Format, n_x: int) -> None:
    tensor, x = made(form, (300, 3 * N_COLS)), activations(n_x, 3 * N_COLS)
    whole = qformat.matmul(x, tensor)

    for first, last in ((0, 1), (99, 131), (127, 129), (299, 300), (7, 7)):
        assert qformat.matmul(x, tensor, rows=slice(first, last)).tobytes() == whole[:, first:last].tobytes()


def test_an_expert_of_a_stack_is_multiplied_by_its_rows() -> None:
    stack, x = made(BY_NAME["mxfp4"], (3, 5, N_COLS)), activations(2, N_COLS)

    found = qformat.matmul(x, stack, rows=slice(5, 10))

    assert_within_the_bound(found, x, stack.dequantize()[1])
    with pytest.raises(qformat.UsageError, match=r"are a stack: matmul\(x, packed, rows=slice\(i \* N,"):
        qformat.matmul(x, stack)


@pytest.mark.parametrize("n_x", [1, 2, 4, 33])
def test_an_input_scale_is_part_of_the_weights(n_x: int) -> None:
    form = with_input_scale(BY_NAME["int4_g128"], "float16")
    tensor, x = made(form, (4, N_COLS)), activations(n_x, N_COLS)
    columns = tensor.param(form.scheme.input_scale).reshape(-1).astype(np.float32)

    assert_within_the_bound(qformat.matmul(x, tensor), x, tensor.dequantize(input_scale=False) * columns)


@pytest.mark.parametrize("n_x", [1, 3, 33])
def test_infinities_and_nan_come_out_where_they_meet_the_sum(n_x: int) -> None:
    scales = np.full((4, N_COLS // 128), 0.5, np.float16)
    scales[1, 0], scales[2, 3] = np.inf, np.nan
    tensor = made(BY_NAME["int4_g128"], (4, N_COLS), codes=np.full((4, N_COLS), 3, np.int8), scales=scales)
    x = np.ones((n_x, N_COLS), np.float32)
    x[-1, 5] = 0

    found = qformat.matmul(x, tensor)

    assert np.isfinite(found[:, [0, 3]]).all()
    assert np.isnan(found[:, 2]).all()
    assert np.isnan(found[-1, 1])  # 0 times infinity
    assert (found[:-1, 1] == np.inf).all()
    x[0, 0] = np.nan
    assert np.isnan(qformat.matmul(x, tensor)[0]).all()
    assert np.isfinite(qformat.matmul(x, tensor)[1:, [0, 3]]).all()


@pytest.mark.parametrize("n_x", [1, 16, 48])
def test_weights_never_stand_in_memory_as_a_whole(n_x: int) -> None:
    tensor, x = made(BY_NAME["mxfp4"], (4096, 1024)), activations(n_x, 1024)
    qformat.matmul(x, tensor)

    tracemalloc.start()
    qformat.matmul(x, tensor)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < tensor.n_weights  # bytes: a quarter of the weights as float32


@pytest.mark.parametrize(("x_shape", "shape"), [((0, 64), (3, 64)), ((2, 64), (0, 64)), ((2, 0), (3, 0))], ids=str)
def test_sums_of_nothing_are_zero(x_shape: tuple[int, int], shape: tuple[int, int]) -> None:
    found = qformat.matmul(np.ones(x_shape, np.float32), made(BY_NAME["mxfp4"], shape))

    assert found.shape == (x_shape[0], shape[0])
    assert not found.any()


def test_weights_times_columns_are_the_rows_times_weights() -> None:
    tensor, x = made(BY_NAME["q4_k"], (5, N_COLS)), activations(N_COLS, 3)

    assert (tensor @ x).shape == (5, 3)
    assert (tensor @ x).tobytes() == np.ascontiguousarray(qformat.matmul(x.T, tensor).T).tobytes()
    assert (tensor @ x[:, 0]).tobytes() == qformat.matmul(x[:, 0], tensor).tobytes()


def test_weights_on_the_right_are_refused() -> None:
    with pytest.raises(qformat.UsageError, match=r"use qformat.matmul\(x, packed\)"):
        activations(2, 5) @ made(BY_NAME["q4_k"], (5, N_COLS))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 63), np.float32), r"activations are float32 \(2, 63\), expected an array \(\.\.\., 64\) of float32"),
        (np.zeros(64), r"activations are float64 \(64,\)"),
        (np.zeros(64, np.int8), r"activations are int8 \(64,\)"),
        (np.float32(1), r"activations are float32, expected"),
        (np.zeros((), np.float32), r"activations are float32 \(\)"),
        ([1.0] * 64, r"activations are list"),
    ],
    ids=["columns", "float64", "integers", "number", "no axes", "list"],
)
def test_other_activations_are_refused(x: Any, message: str) -> None:
    with pytest.raises(qformat.UsageError, match=message):
        qformat.matmul(x, made(BY_NAME["mxfp4"], (3, 64)))


def test_other_results_are_refused() -> None:
    tensor, x = made(BY_NAME["mxfp4"], (3, 64)), activations(2, 64)

    for out in (np.zeros((2, 3)), np.zeros((3, 2), np.float32), np.zeros(6, np.float32)):
        with pytest.raises(qformat.UsageError, match=r"expected float32 \(2, 3\)"):
            qformat.matmul(x, tensor, out)  # type: ignore[arg-type]  # on purpose


def test_weights_that_are_no_floats_are_refused() -> None:
    with pytest.raises(qformat.UsageError, match="weights are int32, which float32 cannot hold"):
        qformat.matmul(activations(1, 4), from_array(np.zeros((2, 4), np.int32)))
    with pytest.raises(qformat.UsageError, match="3 axes, expected 1 or 2"):
        made(BY_NAME["mxfp4"], (3, 64)) @ activations(64, 2, 2)


def test_a_row_times_a_vector_is_a_number_either_way() -> None:
    packed, x = qformat.quantize(np.arange(32, dtype=np.float32), "int8_channel"), np.ones(32, np.float32)
    assert (packed @ x).shape == qformat.matmul(x, packed).shape == ()
    assert packed @ x == qformat.matmul(x, packed)


def test_the_sides_the_wrong_way_round_are_refused() -> None:
    packed = qformat.quantize(np.ones((2, 32), np.float32), "int8_channel")
    with pytest.raises(qformat.UsageError, match=r"matmul\(x, packed\)"):
        qformat.matmul(packed, np.ones(32, np.float32))  # type: ignore[arg-type]


WORDS_DOWN = Tiling("kb w*4 n | k -> n (kb k)")  # words of four bits down the columns, as GPTQ's
NIBBLES = PartForm("codes", Layout("nibbles", 8, 4, (Bits("q", (Plane(0, 4, word=4),), 8, holds="codes"),)), WORDS_DOWN)
SCALE, MINIMUM = Field("d", 0, "float16", holds="scales"), Field("m", 2, "float16", holds="minima")
GROUPS = {
    "padding behind": (Layout("two", 0, 4, (SCALE, Field("p", 2, "uint16"))), "g n | i -> n (g i)", Grid(1, 128)),
    "padding before": (
        Layout("two", 0, 4, (Field("p", 0, "uint16"), replace(SCALE, at=2))),
        "g n | i -> n (g i)",
        Grid(1, 128),
    ),
    "two of a row": (Layout("two", 0, 4, (replace(SCALE, count=2),)), "gb n | g -> n (gb g)", Grid(1, 128)),
    "two together": (Layout("two", 0, 4, (SCALE, MINIMUM)), "g n | i -> n (g i)", Grid(1, 128)),
    "of two rows": (Layout("one", 0, 2, (SCALE,)), "g n | i -> n (g i)", Grid(2, 128)),
    "of all rows": (Layout("one", 0, 2, (SCALE,)), "g n | i -> n (g i)", Grid(0, 128)),
}


@pytest.mark.parametrize(("layout", "order", "group"), GROUPS.values(), ids=GROUPS)
def test_scales_that_lie_otherwise_than_words_do_are_read_as_the_reference_reads_them(
    layout: Layout, order: str, group: Grid
) -> None:
    names = [field.holds for field in layout.parts if field.holds]
    steps = (Step(Op.MUL, Ref("scales")), *(Step(Op.ADD, Ref(name)) for name in names[1:]))
    scheme = Scheme("words", Integers(0, 15), tuple(Param(name, "float16", group) for name in names), steps)
    form = Format("words", scheme, (NIBBLES, PartForm("scales", layout, Tiling(order))))
    tensor = made(form, (32, 512))
    assert tensor.columns is not None
    for n_x in (1, 3, 33):
        x = activations(n_x, 512)
        assert_within_the_bound(qformat.matmul(x, tensor), x, reference.decode(tensor))


@pytest.mark.parametrize(("bits", "count", "n_bytes"), [(9, 8, 9), (12, 2, 3), (16, 2, 4)])
def test_codes_wider_than_a_byte_are_decoded_and_multiplied(bits: int, count: int, n_bytes: int) -> None:
    codes = PartForm("codes", Layout("wide", count, n_bytes, (Bits("q", (Plane(0, bits),), count, holds="codes"),)))
    scales = Param("scales", "float16", Grid(1, 128))
    scheme = Scheme("wide", Integers(0, (1 << bits) - 1), (scales,), (Step(Op.MUL, Ref("scales")),))
    tensor, x = made(Format("wide", scheme, (codes, parameter(scales, 2))), (8, 256)), activations(2, 256)

    assert tensor.dequantize().tobytes() == reference.decode(tensor).tobytes()
    assert_within_the_bound(qformat.matmul(x, tensor), x, reference.decode(tensor))
