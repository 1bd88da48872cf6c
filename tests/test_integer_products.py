"""Products of packed activations with packed weights: their integers against NumPy's int64, their floats to the bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from made_tensors import made
from numpy.typing import NDArray

import qformat
from qformat import PackedTensor, UsageError, integer_matmul, integer_product
from qformat.fields import numpy_dtype
from qformat.formats import DIALECTS
from qformat.formats.form import Format, PartForm, packed, parameter
from qformat.formats.gptq import gptq
from qformat.formats.integer import integer
from qformat.formats.mx import MXFP4
from qformat.kernels.cpu import has_byte_products, has_vectors
from qformat.rules import resolve
from qformat.scheme import Grid, Integers, Op, Param, Ref, Scheme, Step
from qformat.tensor import from_array, from_values

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

E8M0 = numpy_dtype("float8_e8m0fnu")
HQQ = next(form for form in DIALECTS if form.name == "hqq:4")
DOUBLED_E2M1 = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]


def int8(zero: bool) -> Format:
    """Make int8 with one float32 scale for the tensor, so that worked numbers need no rounded ones."""
    params = Param("scales", "float32", Grid(0, 0)), Param("zeros", "int8", Grid(0, 0))
    steps = Step(Op.SUB, Ref("zeros")), Step(Op.MUL, Ref("scales"))
    parts = PartForm("codes", packed("bytes", 8, "codes", minus=128)), parameter(params[0], 4), parameter(params[1], 1)
    if not zero:
        params, steps, parts = params[:1], steps[1:], parts[:2]
    return Format("worked", Scheme("worked", Integers(-128, 127), params, steps), parts)


def weights(codes: object, zero: int) -> PackedTensor:
    """Give the matrix of the worked example: scale 1.2 / 255 over the whole tensor."""
    values = {
        "codes": np.array(codes, np.int8),
        "scales": np.array([[1.2 / 255]], np.float32),
        "zeros": np.array([[zero]], np.int8),
    }
    return from_values(int8(zero=True), (2, 2), values)


def activations(scale: float) -> PackedTensor:
    """Give the vector of the worked example."""
    values = {"codes": np.array([127, 95], np.int8), "scales": np.array([[scale]], np.float32)}
    return from_values(int8(zero=False), (2,), values)


@pytest.mark.parametrize(
    ("codes", "zero", "accumulators", "correction", "totals", "values"),
    [
        ([[127, -64], [-128, 0]], -21, [10049, -16256], 4662, [14711, -11594], [0.4361, -0.3437]),
        ([[127, -64], [-128, -1]], -22, [10049, -16351], 4884, [14933, -11467], [0.4427, -0.3399]),
    ],
    ids=["cut off to -21", "rounded to -22"],
)
def test_the_worked_example_in_int8(
    codes: list[list[int]], zero: int, accumulators: list[int], correction: int, totals: list[int], values: list[float]
) -> None:
    """127 * 127 - 64 * 95 = 16129 - 6080 = 10049; -128 * 127 = -16256, less 95 = -16351; 222 * 21 = 4662, 222 * 22 = 4884."""
    found = integer_product(activations(0.8 / 127), weights(codes, zero))

    assert found.accumulators.tolist() == [[total] for total in accumulators]
    assert found.corrections.tolist() == [[correction], [correction]]
    assert found.totals.tolist() == [[total] for total in totals]
    assert [round(float(value), 4) for value in found.values] == values


def test_the_worked_example_as_a_teaching_text_prints_it_has_another_scale_of_x() -> None:
    """0.434 and -0.342 are 14711 and -11594 times 1.2 / 255 * 1.6 / 255, the range of x over 255 steps instead of 254."""
    found = integer_product(activations(1.6 / 255), weights([[127, -64], [-128, 0]], -21))

    assert [round(float(value), 3) for value in found.values] == [0.434, -0.342]


def test_all_codes_of_the_teaching_text_are_quotients_cut_off_towards_zero() -> None:
    """In 255ths of 1.2 and 1.6: w / s = 148.75, -42.5, -106.25, 21.25, the zero point -128 + 106.25 = -21.75."""
    shifted = [148.75 - 21.75, -42.5 - 21.75, -106.25 - 21.75, 21.25 - 21.75]

    assert [w * 255 / 12 for w in (7, -2, -5, 1)] == [148.75, -42.5, -106.25, 21.25]
    assert [int(code) for code in shifted] == [127, -64, -128, 0]
    assert int(-21.75) == -21
    assert [int(8 * 255 / 16), int(6 * 255 / 16)] == [127, 95]


def test_the_worked_example_quantized_by_our_rules_has_zero_point_minus_22() -> None:
    """Scales are stored as float16 here: 1.2 / 255 becomes 0.004707, 0.8 / 127 becomes 0.006298; the integers stay."""
    w = qformat.quantize(np.array([[0.7, -0.2], [-0.5, 0.1]], np.float32), integer(8, "tensor", zero=True))
    x = qformat.quantize(np.array([0.8, 0.6], np.float32), "int8_channel")

    found = integer_product(x, w)

    assert (w.codes().tolist(), w.param("zeros").tolist()) == ([[127, -64], [-128, -1]], [[-22]])
    assert found.totals.tolist() == [[14933], [-11467]]
    assert [round(float(value), 3) for value in found.values] == [0.443, -0.34]


def mxfp4(codes: object, exponents: object) -> PackedTensor:
    """Give an MXFP4 tensor of codes and exponent bytes."""
    given = np.array(codes, np.uint8)
    scales = np.array(exponents, np.uint8).reshape(-1, -(-given.shape[-1] // 32)).view(E8M0)
    return from_values(MXFP4, given.shape, {"codes": given, "scales": scales})


@pytest.mark.parametrize(
    ("rule", "accumulators", "values"),
    [
        ("floor", [120, -80], [0.46875, -0.3125]),
        ("even", [120, -80], [0.46875, -0.3125]),
        ("ggml", [120, -80], [0.46875, -0.3125]),
        ("ceil", [60, -40], [0.46875, -0.3125]),
        ("mlx", [60, -40], [0.46875, -0.3125]),
        ("nearest", [120, -120], [0.46875, -0.234375]),
    ],
)
def test_the_worked_example_in_mxfp4(rule: str, accumulators: list[int], values: list[float]) -> None:
    """W at scale 1/8 is 6 -1.5 and -4 1; x at 1/8 is 6 4, at 1/4 3 2. Doubled: 12 * 12 - 3 * 8 = 120, -8 * 12 + 2 * 8 = -80.

    120 / 4 / 64 = 0.46875. `nearest` gives the second row 1/16: -8 saturates at -6, so -12 * 12 + 3 * 8 = -120, / 4 / 128.
    """
    w = qformat.quantize(np.array([[0.7, -0.2], [-0.5, 0.1]], np.float32), "mxfp4", rule)
    x = qformat.quantize(np.array([0.8, 0.6], np.float32), "mxfp4", rule)

    found = integer_product(x, w)

    assert found.accumulators.tolist() == [[total] for total in accumulators]
    assert found.values.tolist() == values
    assert not found.corrections.any()


def test_the_teaching_text_has_the_values_of_e2m1_but_a_scale_four_times_too_large() -> None:
    """With scale 0.5 = 2^floor(log2 0.7), without E2M1's - 2, it needs 0.375 and 0.25, which E2M1 lacks.

    (1.5 * 1.5 - 0.375 * 1) / 4 = 0.46875 and (-1 * 1.5 + 0.25 * 1) / 4 = -0.3125: printed 0.469 and -0.313. Four times these
    values, 6 -1.5 -4 1 and 6 4, are E2M1's at a scale of 1/8. At 0.5 E2M1 gives 1.5 -0.5 -1 0 and 1.5 1: 0.4375 and -0.375.
    """
    printed = [(1.5 * 1.5 - 0.375 * 1) * 0.5 * 0.5, (-1 * 1.5 + 0.25 * 1) * 0.5 * 0.5]
    eighth, half = mxfp4([[7, 11], [14, 2]], [[124], [124]]), mxfp4([[3, 9], [10, 0]], [[126], [126]])

    assert printed == [0.46875, -0.3125]
    assert integer_product(mxfp4([7, 6], [124]), eighth).values.tolist() == printed
    assert integer_product(mxfp4([3, 2], [126]), half).values.tolist() == [0.4375, -0.375]


def exact(x: I64, w: I64, run: int) -> I64:
    """Multiply integers in 64 bits: (rows of x, rows of w, groups)."""
    starts = np.arange(0, x.shape[1], run)
    return np.add.reduceat(x[:, None, :] * w[None, :, :], starts, axis=2)


def summed(totals: I64, left: F32, right: F32, step: float) -> F32:
    """Scale totals in float64, round each to float32, add groups up in float32; (rows of x, groups) and (rows of w, groups)."""
    out = np.zeros(totals.shape[:2], np.float32)
    for group in range(totals.shape[2]):
        scale = left[:, None, group].astype(np.float64) * right[None, :, group].astype(np.float64) * step
        out += (totals[:, :, group].astype(np.float64) * scale).astype(np.float32)
    return out


# A format and the columns that share a scale, 0: all.
X = {
    "signed": (integer(8, "channel"), 0),
    "signed by groups": (integer(8, 32), 32),
    "unsigned with zero points": (integer(8, 128, signed=False, zero=True), 128),
    "signed with zero points over the tensor": (integer(8, "tensor", zero=True), 0),
    "mxfp4": (MXFP4, 32),
}
W = {
    "int8 by channel": (integer(8, "channel"), 0),
    "int8 by groups, zero points": (integer(8, 64, zero=True), 64),
    "uint4 by groups, zero points": (integer(4, 128, signed=False, zero=True), 128),
    "int3 over the tensor": (integer(3, "tensor"), 0),
    "q8_0": (resolve("gguf:q8_0"), 32),
    "mxfp4": (MXFP4, 32),
    "gptq": (gptq("v2", 4, 128), 128),
}


@pytest.fixture(params=[True, False], ids=["vectors", "loops"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply by vector kernels, or by the plain loops."""
    if not request.param:
        monkeypatch.setattr("qformat.kernels.cpu.has_vectors", lambda: False)


def integers(tensor: PackedTensor) -> I64:
    """Give what the codes of a tensor stand for, E2M1's doubled."""
    codes = tensor.codes().reshape(tensor.n_rows, tensor.n_cols).astype(np.int64)
    return np.array(DOUBLED_E2M1, np.int64)[codes] if tensor.scheme == MXFP4.scheme else codes


def of_columns(tensor: PackedTensor, name: str, run: int) -> NDArray[Any]:
    """Give a parameter for every weight, from one value for each `run` columns; 0 where there is none."""
    shape = tensor.n_rows, tensor.n_cols
    if name not in {param.name for param in tensor.scheme.params}:
        return np.zeros(shape, np.int64)
    return np.broadcast_to(np.repeat(tensor.param(name), run, axis=1)[:, : tensor.n_cols], shape)


def check(x: PackedTensor, w: PackedTensor, x_run: int, w_run: int) -> None:
    """Compare a product with integers of 64 bits, and floats added up in the stated order; runs are 0 for all columns."""
    n_cols = w.n_cols
    run = min(x_run or n_cols, w_run or n_cols)
    left, right = integers(x), integers(w)
    zeros = [of_columns(x, "zeros", x_run or n_cols).astype(np.int64), of_columns(w, "zeros", w_run or n_cols).astype(np.int64)]
    scales = [of_columns(x, "scales", x_run or n_cols), of_columns(w, "scales", w_run or n_cols)]
    step = np.prod([0.5 if tensor.scheme == MXFP4.scheme else 1 for tensor in (x, w)])
    totals = exact(left - zeros[0], right - zeros[1], run)

    found = integer_product(x, w)

    lead = (*x.shape[:-1], w.n_rows)
    assert found.accumulators.tobytes() == exact(left, right, run).astype(np.int32).tobytes()
    assert found.totals.tobytes() == totals.tobytes()
    assert (found.accumulators.shape, found.values.shape) == ((*lead, totals.shape[2]), lead)
    wanted = summed(totals, *(scale[:, ::run].astype(np.float32) for scale in scales), float(step))
    assert found.values.tobytes() == wanted.tobytes()
    assert integer_matmul(x, w).tobytes() == wanted.tobytes()


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("of_w", W)
@pytest.mark.parametrize("of_x", X)
def test_integers_are_exact_and_floats_follow_the_stated_order(of_x: str, of_w: str) -> None:
    (x_form, x_run), (w_form, w_run) = X[of_x], W[of_w]

    check(made(x_form, (1, 512), 3), made(w_form, (8, 512), 4), x_run, w_run)


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("lead", [(), (3,), (2, 2), (1, 7), (0,)], ids=str)
def test_activations_have_any_number_of_rows(lead: tuple[int, ...]) -> None:
    x, w = made(integer(8, "channel", signed=False, zero=True), (*lead, 64)), made(integer(8, "channel"), (5, 64), 2)

    check(x, w, 0, 0)


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("n_cols", [1, 31, 33, 100, 160])
def test_columns_need_fill_no_vectors_and_no_groups(n_cols: int) -> None:
    x, w = made(integer(8, 64, zero=True), (2, n_cols)), made(integer(8, 32, signed=False, zero=True), (3, n_cols), 2)

    check(x, w, 64, 32)


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("of_w", W)
@pytest.mark.parametrize("zero", [-1000, -128, 0, 127, 1000])
def test_zero_points_of_activations_may_be_far_from_their_codes(zero: int, of_w: str) -> None:
    params = Param("scales", "float32", Grid(1, 0)), Param("zeros", "int16", Grid(1, 0))
    scheme = Scheme("far", Integers(-128, 127), params, (Step(Op.SUB, Ref("zeros")), Step(Op.MUL, Ref("scales"))))
    parts = PartForm("codes", packed("bytes", 8, "codes", minus=128)), parameter(params[0], 4), parameter(params[1], 2)
    rng = np.random.default_rng(5)
    values = {
        "codes": rng.integers(-128, 128, (2, 512)).astype(np.int8),
        "scales": np.array([[0.5], [0.25]], np.float32),
        "zeros": np.array([[zero], [3]], np.int16),
    }
    form, run = W[of_w]

    check(from_values(Format("far", scheme, parts), (2, 512), values), made(form, (8, 512), 4), 0, run)


BLOCKS = {"int4": integer(4, 32), "q4_0": resolve("gguf:q4_0"), "mxfp4": MXFP4}


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("of_w", BLOCKS)
@pytest.mark.parametrize("of_x", ["signed", "signed by groups", "unsigned with zero points", "mxfp4"])
@pytest.mark.parametrize(
    ("n_x", "shape"), [(1, (9, 256)), (2, (3, 768)), (3, (4, 512)), (4, (1, 1024)), (7, (5, 256))], ids=str
)
def test_any_number_of_rows_is_multiplied_with_blocks(n_x: int, shape: tuple[int, int], of_x: str, of_w: str) -> None:
    form, run = X[of_x]

    check(made(form, (n_x, shape[1]), 3), made(BLOCKS[of_w], shape, 4), run, 32)


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("code", [-128, 127])
@pytest.mark.parametrize(("form", "codes"), [("int4", (-8, 7)), ("q4_0", (-8, 7)), ("mxfp4", (7, 15))])
def test_the_greatest_products_of_blocks_are_exact(form: str, codes: tuple[int, int], code: int) -> None:
    x = made(integer(8, "channel"), (3, 512), codes=code)
    for each in codes:
        check(x, made(BLOCKS[form], (3, 512), codes=each), 0, 32)


@pytest.mark.skipif(not (has_vectors() and has_byte_products()), reason="a kernel for AVX2")
@pytest.mark.parametrize("form", BLOCKS)
def test_blocks_of_four_bits_are_multiplied_as_they_lie(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qformat.kernels.dots.add_up", None)

    assert np.isfinite(integer_matmul(made(MXFP4, (2, 512), 3), made(BLOCKS[form], (3, 512), 4))).all()


def test_nothing_times_nothing_is_nothing() -> None:
    x, w = made(integer(8, "channel"), (2, 0)), made(integer(8, "channel"), (3, 0))

    assert integer_matmul(x, w).tobytes() == np.zeros((2, 3), np.float32).tobytes()
    assert integer_product(x, w).accumulators.shape == (2, 3, 0)
    assert integer_matmul(made(integer(8, "channel"), (0, 64)), made(integer(8, "channel"), (3, 64))).shape == (0, 3)


@pytest.mark.usefixtures("by")
def test_the_widest_group_of_int8_fills_31_bits() -> None:
    """131 071 * 128 * 128 = 2 147 467 264, 16 383 below 2^31 - 1."""
    lowest = made(integer(8, "channel"), (1, 131_071), codes=-128, scales=1)

    found = integer_product(lowest, lowest)

    assert found.accumulators.tolist() == [[[2_147_467_264]]]
    assert found.values.tolist() == [[2.0**31 - 2**14]]


def test_a_wider_group_of_int8_is_refused() -> None:
    x = made(integer(8, "channel"), (1, 131_072))

    with pytest.raises(UsageError, match=r"groups of 131072 columns, of which 32 bits hold 131071 products"):
        integer_matmul(x, x)


def test_a_wider_row_is_added_up_by_groups() -> None:
    """4096 groups of 32 columns: each -128 * -128 * 32 = 524 288 = 2^19, together 2^31, which float32 holds."""
    x = made(integer(8, "channel"), (1, 131_072), codes=-128, scales=1)
    w = made(integer(8, 32), (1, 131_072), codes=-128, scales=1)

    assert integer_matmul(x, w).tolist() == [[2.0**31]]


def test_the_number_of_threads_changes_no_bit() -> None:
    x, w = made(integer(8, 128, signed=False, zero=True), (9, 1024)), made(integer(8, "channel", zero=True), (1024, 1024), 2)
    found = []

    for n_threads in (1, 2, 3):
        qformat.set_threads(n_threads)
        try:
            found.append(integer_matmul(x, w).tobytes())
        finally:
            qformat.set_threads(None)

    assert found[1:] == found[:1] * 2
    assert found[0] == integer_product(x, w).values.tobytes()


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("n_blocks", [1, 8])
@pytest.mark.parametrize(
    ("left", "right", "value"),
    [(0, 127, 2.0**-127), (0, 0, 0.0), (254, 254, np.inf), (1, 254, 2.0), (254, 0, 1.0), (255, 127, np.nan), (0, 255, np.nan)],
)
def test_exponents_of_mxfp4_are_added_without_leaving_the_range_in_between(
    left: int, right: int, value: float, n_blocks: int
) -> None:
    """One product 1 * 1 at 2^(left - 127) * 2^(right - 127): 2^-254 rounds to 0, 2^254 is infinite, as float32."""
    one, rest = [2] + [0] * (32 * n_blocks - 1), [127] * (n_blocks - 1)

    found = integer_matmul(mxfp4(one, [left, *rest]), mxfp4([one], [[right, *rest]]))

    assert str(found.tolist()) == str([value])  # the sign of 0 as well, and NaN


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("n", [4, 6, 14])
def test_blocks_of_mxfp4_are_added_up_in_float32_from_the_first(n: int) -> None:
    """2^24 + 1 + 1 + ... stays 2^24: each 1 is half of float32's step there, a tie to even; the other way round they count."""
    ones, large = ([2] + [0] * 31) * (n + 1), [127 + 24]
    pad = [0] * (-len(ones) % 256)
    x = mxfp4([ones + pad], [[127] * ((len(ones) + len(pad)) // 32)])
    scales = [large + [127] * n, [127] * n + large]
    w = mxfp4([ones + pad] * 2, [some + [127] * (len(pad) // 32) for some in scales])

    assert integer_matmul(x, w).tolist() == [[2.0**24, 2.0**24 + n]]


@pytest.mark.parametrize("form", ["int8_channel", "uint8_g128", "mxfp4", "gguf:nvfp4", "gguf:q8_0", "int4_g32"])
def test_floats_are_within_the_stated_bound_of_decoding_and_multiplying(form: str) -> None:
    x, w = made(integer(8, 64, zero=True), (4, 512)), made(resolve(form), (16, 512), 2)
    left, right = x.dequantize().astype(np.float64), w.dequantize().astype(np.float64)

    found = integer_product(x, w)

    n_groups = found.accumulators.shape[-1]
    bound = (n_groups + 8) * 2.0**-24 * (np.abs(left) @ np.abs(right).T)
    assert (np.abs(found.values - left @ right.T) <= bound).all()


def test_a_code_beyond_the_levels_is_refused() -> None:
    shape, codes = (1, 33), packed("bytes", 8, "codes")
    form = Format("wide", MXFP4.scheme, (PartForm("codes", codes), MXFP4.parts[1]))
    scales = np.full((1, 2), 127, np.uint8).view(E8M0)
    w = from_values(form, shape, {"codes": np.full(shape, 16, np.uint8), "scales": scales})

    with pytest.raises(UsageError, match="code 16 is outside its 16 levels"):
        integer_matmul(made(integer(8, "channel"), shape), w)


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("gguf:q4_1", "a bias is added"),
        ("nf4", "no small integers times a power of two"),
        ("float32", "no small integers"),
        ("hqq:4", "not all of its zero points are integers"),
        ("act-order", "weights that share a scale lie apart"),
        ("awq scales", "every column has a scale of its own"),
    ],
)
def test_a_scheme_without_integers_is_refused(form: str, why: str) -> None:
    x = made(integer(8, "channel"), (1, 512))
    others: dict[str, Callable[[], PackedTensor]] = {
        "float32": lambda: from_array(np.ones((8, 512), np.float32)),
        "act-order": lambda: made(gptq("v2", 4, 128, act_order=(4, 512)), (8, 512), g_idx=np.arange(512) % 4),
        "awq scales": lambda: made(per_column(), (8, 512)),
    }
    w = others.get(form, lambda: made(HQQ if form == "hqq:4" else resolve(form), (8, 512)))()

    with pytest.raises(UsageError, match=f"weights in '.*' have no integer product: .*{why}"):
        integer_matmul(x, w)


def per_column() -> Format:
    """Give int8 whose columns have a scale each beside that of the row."""
    scales, columns = Param("scales", "float32", Grid(1, 0)), Param("columns", "float32", Grid(0, 1))
    scheme = Scheme("smooth", Integers(-128, 127), (scales, columns), (Step(Op.MUL, Ref("scales")),), "columns")
    parts = (PartForm("codes", packed("bytes", 8, "codes", minus=128)), parameter(scales, 4), parameter(columns, 4))
    return Format("smooth", scheme, parts)


@pytest.mark.parametrize(("x", "w"), [((2, 64), (3, 32)), ((2, 64), (1, 3, 64)), ((2, 64), (64,))], ids=str)
def test_shapes_that_do_not_match_are_refused(x: tuple[int, ...], w: tuple[int, ...]) -> None:
    form = integer(8, "channel")

    with pytest.raises(UsageError, match=r"expected \[\.\.\., K\] and \[out, K\]"):
        integer_matmul(made(form, x), made(form, w))


def test_an_array_of_floats_is_no_side_of_a_product() -> None:
    w = qformat.quantize(np.ones((2, 32), np.float32), "int8_channel")
    with pytest.raises(UsageError, match="activations are ndarray, expected a PackedTensor"):
        integer_matmul(np.ones((1, 32), np.float32), w)  # type: ignore[arg-type]


@pytest.mark.parametrize(("group", "n_cols"), [(128, 192), (128, 64), (64, 160), (256, 384), (128, 576)])
@pytest.mark.parametrize("is_of_x", [False, True])
def test_a_last_group_may_be_short(group: int, n_cols: int, is_of_x: bool) -> None:
    x_group = group if is_of_x else "channel"
    x, w = made(integer(8, x_group, zero=True), (3, n_cols), 3), made(integer(8, group, zero=True), (11, n_cols), 4)

    check(x, w, group if is_of_x else 0, group)
    check(x, made(integer(4, group, signed=False, zero=True), (11, n_cols), 5), group if is_of_x else 0, group)
