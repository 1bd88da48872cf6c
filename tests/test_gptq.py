"""GPTQ: the published algorithm written plainly beside it, its worked example by hand, and what is refused."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_inputs import F32, F64, correlated, of_hessian, output_error, statistics, weights

import qformat
from qformat.errors import NotExact, UsageError
from qformat.formats.gptq import gptq as gptq_format
from qformat.formats.integer import integer
from qformat.kernels.subtract import subtract_product
from qformat.methods import quantize, quantizing
from qformat.methods.gptq import gptq
from qformat.rules import quantize as by_rule
from qformat.tensor import PackedTensor

# From float64 weights (rows, columns of a group) to scale and zero point, (rows, 1) each, float64.
Parameters = Callable[[F64], tuple[F64, F64]]

N_ROWS = 24


def stored(tensor: PackedTensor) -> dict[str, bytes]:
    """Give the stored bytes of every part."""
    return {part.form.role: bytes(part.source.read(0, part.source.n_bytes)) for part in tensor.parts}


def symmetric(group: F64, top: int = 7) -> tuple[F64, F64]:
    scale = (np.abs(group.astype(np.float32)).max(axis=1, keepdims=True) / np.float32(top)).astype(np.float16)
    return scale.astype(np.float64), np.zeros_like(scale, np.float64)


def minmax(group: F64, top: int = 15) -> tuple[F64, F64]:
    low, high = (np.float32(f(group.astype(np.float32), axis=1, keepdims=True)) for f in (np.min, np.max))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = ((high - low) / np.float32(top)).astype(np.float16).astype(np.float32)
    return scale.astype(np.float64), np.clip(np.rint(-low / scale), 0, top).astype(np.float64)


def published(
    w: F32, hessian: F64, order: Sequence[int], members: Sequence[Sequence[int]], of: Parameters, low: int, high: int,
    is_static: bool, damping: float = 0.01,
) -> F64:  # fmt: skip
    """Give the values of the algorithm as published: one column at a time, the inverse of H updated by each, nothing blocked.

    members : columns of each group
    """
    left, values = w.astype(np.float64), np.zeros(w.shape)
    inverse = np.linalg.inv(hessian + damping * hessian.diagonal().mean() * np.eye(len(hessian)))
    group_of = {column: number for number, columns in enumerate(members) for column in columns}
    chosen = {number: of(left[:, list(columns)]) for number, columns in enumerate(members)} if is_static else {}
    for column in order:
        number = group_of[column]
        if number not in chosen:
            chosen[number] = of(left[:, list(members[number])])
        scale, zero = (array[:, 0] for array in chosen[number])
        codes = np.clip(np.rint(left[:, column] / scale) + zero, low, high)
        values[:, column] = (codes - zero) * scale
        error = (left[:, column] - values[:, column]) / inverse[column, column]
        left -= error[:, None] * inverse[column]
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return values


def in_groups(order: Sequence[int], size: int) -> list[list[int]]:
    """Cut columns into groups."""
    return [list(order[low : low + size]) for low in range(0, len(order), size)]


@pytest.mark.parametrize(
    ("target", "size", "of", "limits"),
    [
        ("int4_g32", 32, symmetric, (-7, 7)),
        ("int4_g64", 64, symmetric, (-7, 7)),
        ("int4_g150", 150, symmetric, (-7, 7)),  # longer than a block of columns
        ("int4_channel", 200, symmetric, (-7, 7)),
        ("uint4_g32", 32, minmax, (0, 15)),
    ],
)
@pytest.mark.parametrize("method", ["gptq", "gptq-ordered"])
def test_the_output_error_is_that_of_the_published_algorithm(
    target: str, size: int, of: Parameters, limits: tuple[int, int], method: str
) -> None:
    n_cols = 200  # no multiple of a block, nor of most groups
    inputs, w = correlated(600, n_cols), weights(N_ROWS, n_cols)
    known = statistics(inputs)
    is_ordered = method != "gptq"
    order = np.argsort(-known.hessian.diagonal(), kind="stable") if is_ordered else np.arange(n_cols)
    expected = published(w, known.hessian, order, in_groups(range(n_cols), size), of, *limits, is_ordered)

    found = quantize(w, target, method=method, calibration=known).dequantize()

    error = output_error(w - expected, known.hessian)
    assert output_error(w - found, known.hessian) == pytest.approx(error, rel=1e-5)
    assert np.abs(found - expected).max() < 1e-3  # a scale is 0.2: every code is the same


def test_groups_form_in_order_where_the_format_lists_their_columns() -> None:
    n_cols, size = 96, 32
    inputs, w = correlated(400, n_cols), weights(N_ROWS, n_cols)
    known = statistics(inputs)
    order = np.argsort(-known.hessian.diagonal(), kind="stable")
    expected = published(w, known.hessian, order, in_groups(order, size), minmax, 0, 15, is_static=False)
    index = np.empty(n_cols, np.int32)
    index[order] = np.repeat(np.arange(3), size)

    found = quantize(w, gptq_format("v2", 4, size, act_order=(3, n_cols)), method="gptq", calibration=known)

    assert found.param("g_idx").tolist() == index.tolist()
    assert np.abs(found.dequantize() - expected).max() < 1e-3


@pytest.mark.parametrize("method", ["gptq", "gptq-ordered"])
@pytest.mark.parametrize(
    "target", ["int2_g32", "int4_g128", "uint4_g64", "int8", "int8_asym", "int4_tensor", "nf4", "mxfp4", "gguf:mxfp4"]
)
def test_without_correlation_nothing_is_made_up_for(target: str, method: str) -> None:
    w, diagonal = weights(6, 256), np.random.default_rng(2).uniform(0.5, 2, 256)

    found = quantize(w, target, method=method, calibration=of_hessian(np.diag(diagonal)))

    assert np.array_equal(found.dequantize(), quantize(w, target).dequantize())


@pytest.mark.parametrize("target", ["int4_g128", "nf4", "mxfp4", "gguf:nvfp4", "gguf:q4_0", "gguf:q4_1", "gguf:iq4_nl"])
def test_much_less_is_lost_than_by_rounding_to_nearest(target: str) -> None:
    inputs, w = correlated(1000, 256), weights(16, 256)
    known = statistics(inputs)
    nearest = output_error(w - quantize(w, target).dequantize(), known.hessian)

    for method in ("gptq", "gptq-ordered"):
        found = quantize(w, target, method=method, calibration=known)
        assert output_error(w - found.dequantize(), known.hessian) < 0.6 * nearest


# The worked example: w, H^-1 and scale 1 as told. A fourth weight of 7, of an input by itself, makes the scale of int4 be 1.
W = (Fraction(13, 10), Fraction(27, 10), Fraction(22, 10))
INVERSE = ((4, 0, -2), (0, 1, 1), (-2, 1, 3))
HESSIAN = tuple(tuple(Fraction(entry, 2) for entry in row) for row in ((1, -1, 1), (-1, 4, -2), (1, -2, 2)))


def half_up(x: Fraction) -> int:
    return (x + Fraction(1, 2)).__floor__()


def steps(order: Sequence[int], nearest: Callable[[Fraction], int], is_updated: bool) -> tuple[list[int], list[Fraction]]:
    """Give codes, and each weight as it was when it was rounded, in exact arithmetic."""
    left, codes, seen = list(W), [0, 0, 0], [Fraction(0)] * 3
    inverse = [[Fraction(entry) for entry in row] for row in INVERSE]
    for j in order:
        seen[j], codes[j] = left[j], nearest(left[j])
        pivot, row = inverse[j][j], list(inverse[j])
        error = (left[j] - codes[j]) / pivot
        done = order[: order.index(j) + 1]
        for k in (k for k in range(3) if k not in done):
            left[k] -= error * row[k]
        if is_updated:
            inverse = [[inverse[m][k] - inverse[m][j] * row[k] / pivot for k in range(3)] for m in range(3)]
    return codes, seen


def lost(codes: Sequence[int]) -> Fraction:
    """Give e H e^T."""
    error = [w - q for w, q in zip(W, codes, strict=True)]
    return sum(error[i] * HESSIAN[i][j] * error[j] for i in range(3) for j in range(3))


def test_the_worked_example_step_by_step() -> None:
    product = [[sum(HESSIAN[i][k] * INVERSE[k][j] for k in range(3)) for j in range(3)] for i in range(3)]
    assert product == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    by_hessian, by_inverse = (1, 2, 0), (0, 2, 1)  # descending diagonals: (1/2, 2, 1), (4, 1, 3)

    assert steps(by_hessian, half_up, is_updated=True) == ([1, 3, 3], [Fraction(8, 10), W[1], Fraction(5, 2)])
    assert steps(by_hessian, half_up, is_updated=False) == ([1, 3, 3], [W[0] - Fraction(1, 3), W[1], Fraction(5, 2)])
    assert steps(by_hessian, round, is_updated=True)[0] == [2, 3, 2]
    assert steps(by_inverse, half_up, is_updated=True)[0] == [1, 3, 2]
    assert steps((0, 1, 2), half_up, is_updated=True) == ([1, 3, 3], [W[0], W[1], Fraction(265, 100)])
    assert [lost(codes) for codes in ([1, 3, 3], [2, 3, 2], [1, 3, 2])] == [
        Fraction(235, 1000), Fraction(235, 1000), Fraction(535, 1000),
    ]  # fmt: skip


@pytest.mark.parametrize(("by_diagonal", "expected"), [(False, [1, 3, 3, 7]), (True, [2, 3, 2, 7])])
def test_the_worked_example_comes_out_as_by_hand(by_diagonal: bool, expected: list[int]) -> None:
    hessian = np.zeros((4, 4))
    hessian[:3, :3], hessian[3, 3] = np.array(HESSIAN, np.float64), 1
    method = gptq("by hand", "", damping=0, by_diagonal=by_diagonal)

    found = quantize(np.float32([[1.3, 2.7, 2.2, 7]]), "int4_channel", method=method, calibration=of_hessian(hessian))

    assert found.scales().tolist() == [[1]]
    assert found.codes().tolist() == [expected]


@pytest.mark.parametrize("method", ["gptq", "gptq-ordered"])
def test_columns_without_inputs_are_rounded_to_nearest_and_change_no_other(method: str) -> None:
    dead, n_cols, size = [0, 17, 63, 100], 192, 32
    inputs, w = correlated(300, n_cols), weights(8, n_cols)
    inputs[:, dead] = 0
    w[:, dead] = np.clip(w[:, dead], -0.5, 0.5)  # which makes no scale larger
    without = w.copy()
    without[:, dead] = 0
    known = statistics(inputs)
    hessian = known.hessian.copy()
    hessian[dead, dead] = 1
    order = np.argsort(-hessian.diagonal(), kind="stable") if method == "gptq-ordered" else np.arange(n_cols)
    groups = in_groups(range(n_cols), size)
    expected = published(without, hessian, order, groups, symmetric, -7, 7, method == "gptq-ordered")

    found = quantize(w, "int4_g32", method=method, calibration=known)

    alive = np.setdiff1d(np.arange(n_cols), dead)
    assert np.abs(found.dequantize() - expected)[:, alive].max() < 1e-3
    scale = found.scales().astype(np.float32)[:, [column // size for column in dead]]
    assert found.codes()[:, dead].tolist() == np.clip(np.rint(w[:, dead] / scale), -7, 7).tolist()
    assert found.codes()[:, dead].any(axis=0).all()


def test_scales_cover_columns_without_inputs() -> None:
    inputs, w = correlated(300, 64), weights(8, 64)
    inputs[:, 17] = 0
    w[:, 17] *= 100

    found = quantize(w, "int4_g32", method="gptq", calibration=statistics(inputs))

    assert found.scales()[:, 0].tolist() == (np.abs(w[:, :32]).max(axis=1) / np.float32(7)).astype(np.float16).tolist()


@pytest.mark.parametrize("target", ["int4_g32", "uint4_g64", "int4_tensor", "nf4"])
def test_without_any_inputs_the_rule_is_all(target: str) -> None:
    w, known = weights(5, 192), of_hessian(np.zeros((192, 192)))

    for method in ("gptq", "gptq-ordered"):
        assert stored(quantize(w, target, method=method, calibration=known)) == stored(quantize(w, target))


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64)])
@pytest.mark.parametrize("target", ["int4_g32", "int4_tensor", "nf4", "gguf:q4_0"])
def test_no_rows_are_no_trouble(target: str, shape: tuple[int, ...]) -> None:
    w, known = np.zeros(shape, np.float32), of_hessian(np.eye(64))

    for method in ("gptq", "gptq-ordered"):
        found = quantize(w, target, method=method, calibration=known)
        assert found.shape == shape
        assert stored(found) == stored(quantize(w, target))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("method", "instead"), [("gptq", ", or more damping"), ("gptq-ordered", "")])
def test_weights_beyond_the_scales_of_the_format_are_refused(method: str, instead: str) -> None:
    w = weights(8, 64)
    w[:, 3] *= 1e6

    with pytest.raises(NotExact) as caught:
        quantize(w, "gguf:q4_0", method=method, calibration=statistics(correlated(300, 64)))

    value = caught.value.found
    assert value in (-np.inf, np.inf)
    message = f"field 'scales': scales of {value} in rows 0 to 7, expected weights that q4_0 can hold{instead}"
    assert str(caught.value) == message


def test_products_are_taken_off_arrays_in_c_order_only() -> None:
    arrays = [np.ones((4, 6)), np.ones((3, 4)), np.ones((5, 6))]
    subtract_product(*arrays, 1, 2)
    assert arrays[0].tolist() == [[1, 1, -2, -2, -2, -2]] * 4

    for number in range(3):
        given = [np.asfortranarray(array) if at == number else array for at, array in enumerate(arrays)]
        with pytest.raises(ValueError, match="an array that is not contiguous in C order"):
            subtract_product(*given, 1, 2)


@pytest.mark.parametrize("target", ["int4_g64", "nf4", "gguf:q4_1", "int4_tensor"])
def test_rows_do_not_depend_on_one_another(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known, w = statistics(correlated(500, 192)), weights(37, 192)
    whole = stored(quantize(w, target, method="gptq", calibration=known))
    assert w.size < quantizing.ROUNDED_WEIGHTS
    monkeypatch.setattr(quantizing, "ROUNDED_WEIGHTS", 5 * 192)

    try:
        for n_threads in (1, 2, 3):
            qformat.set_threads(n_threads)
            assert stored(quantize(w, target, method="gptq", calibration=known)) == whole
    finally:
        qformat.set_threads(None)


def test_a_stack_is_its_matrices() -> None:
    known, w = statistics(correlated(200, 64)), weights(3, 5, 64)

    found = quantize(w.astype(np.float16), "int4_g32", method="gptq", calibration=known)

    each = [quantize(one.astype(np.float16), "int4_g32", method="gptq", calibration=known) for one in w]
    assert found.shape == (3, 5, 64)
    assert found.dtype == "float16"
    assert found.dequantize().tobytes() == b"".join(one.dequantize().tobytes() for one in each)


def test_a_named_rule_gives_the_parameters() -> None:
    known, w = of_hessian(np.eye(64)), weights(4, 64)

    found = quantize(w, "int4_g32", "symmetric-full", method="gptq", calibration=known)

    assert found.rule == "symmetric-full"
    assert stored(found) == stored(quantize(w, "int4_g32", "symmetric-full"))


@pytest.mark.parametrize(
    ("hessian", "words"),
    [
        (np.eye(65), "calibration of 65 columns, the weight has 64"),
        (2 * np.ones((64, 64)) - np.eye(64), "not positive definite after damping by 0 of its mean diagonal; use more"),
        (np.ones((64, 64)) - np.eye(64), "not positive semi-definite: column 0 is 0 on the diagonal and not beside it"),
    ],
)
def test_a_hessian_that_does_not_fit_is_refused(hessian: F64, words: str) -> None:
    method = gptq("undamped", "", damping=0)
    with pytest.raises(UsageError, match=words) as caught:
        quantize(weights(2, 64), "int4_g32", method=method, calibration=of_hessian(hessian))

    assert "\n" not in str(caught.value)


NO_SEARCH = "int4_tensor", "mse"
INTEGERS = ("int2_g32", "int4_g64", "int8_channel", "uint4_g64", "int4_tensor")
ONE_LEVEL, TWO_LEVELS = ("gguf:q4_0", "gguf:q4_1", "gguf:q8_0", "gguf:iq4_nl", *INTEGERS), ("gguf:q4_k", "gguf:nvfp4")


@pytest.mark.parametrize(
    ("target", "method"),
    [(target, method) for target in ONE_LEVEL for method in ("rtn", "mse", "gptq", "awq") if (target, method) != NO_SEARCH]
    + [(target, method) for target in TWO_LEVELS for method in ("rtn", "awq")],
)
def test_weights_beyond_the_scales_of_a_format_are_refused_by_every_method(target: str, method: str) -> None:
    known = {"calibration": of_hessian(np.eye(256))} if method in ("gptq", "awq") else {}
    large = weights(3, 256)
    large[1] *= np.float32(1e35)

    if target == "gguf:nvfp4":  # whose second scale is float32
        assert np.isfinite(quantize(large, target, method=method, **known).dequantize()).all()
        return
    with pytest.raises(NotExact, match=f"expected weights that {target.removeprefix('gguf:')}.* can hold"):
        quantize(large, target, method=method, **known)


def test_the_largest_weights_that_scales_hold_are_quantized() -> None:
    most = np.full((1, 32), 8 * 65504, np.float32)  # q4_0's scale is the extreme over -8
    assert quantize(most, "gguf:q4_0").dequantize().tolist() == most.tolist()
    with pytest.raises(NotExact, match="scales of -inf in rows 0 to 0"):
        quantize(most * 1.01, "gguf:q4_0")


def test_a_scale_that_its_type_limits_is_not_believed() -> None:
    held = np.full((1, 32), 7 * 65472, np.float32)  # the float16 below the largest, 65504
    assert quantize(held, "int4_g32").dequantize().tolist() == held.tolist()
    with pytest.raises(
        NotExact, match=r"scales of 65504.0, the largest float16, in rows 0 to 0, expected weights that int4_g32 can"
    ):
        quantize(held * 2, "int4_g32")


@pytest.mark.parametrize("damping", [-0.1, np.nan, np.inf])
def test_a_damping_that_is_none_is_refused(damping: float) -> None:
    with pytest.raises(UsageError, match=r"damping .*expected a finite number of at least 0"):
        quantize(weights(2, 64), "int4_g32", method=gptq("x", "", damping), calibration=of_hessian(np.eye(64)))


@pytest.mark.parametrize(
    ("target", "n_cols", "words"),
    [
        ("gguf:q4_k", 256, "two levels of scales"),
        ("nf4", 96, "no scale for each group of a row of 96 weights"),
        ("gguf:iq2_xxs", 256, "unknown target"),
    ],
)
def test_a_target_that_is_not_simple_is_refused(target: str, n_cols: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        quantize(weights(2, n_cols), target, method="gptq", calibration=of_hessian(np.eye(n_cols)))


def test_what_a_method_asks_for_is_named() -> None:
    w, known = weights(2, 64), of_hessian(np.eye(64))

    with pytest.raises(UsageError, match="method gptq needs calibration"):
        quantize(w, "int4_g32", method="gptq")
    with pytest.raises(UsageError, match="method gptq takes calibration, not importance"):
        quantize(w, "int4_g32", importance=np.ones(64, np.float32), method="gptq", calibration=known)
    with pytest.raises(UsageError, match="method mse: calibration and importance, expected one of both"):
        quantize(w, "int4_g32", importance=np.ones(64, np.float32), method="mse", calibration=known)
    with pytest.raises(UsageError, match="method rtn has no use for calibration"):
        quantize(w, "int4_g32", calibration=known)
    with pytest.raises(UsageError, match="unknown method 'obq', expected one of rtn, mse, gptq"):
        quantize(w, "int4_g32", method="obq", calibration=known)
    with pytest.raises(UsageError, match=r"weight \[1, 3\] is nan"):
        quantize(
            np.where(np.arange(128).reshape(2, 64) == 67, np.float32(np.nan), w), "int4_g32", method="gptq", calibration=known
        )


@pytest.mark.parametrize("method", ["mse", "gptq", "awq"])
@pytest.mark.parametrize("calibration", [{"w": of_hessian(np.eye(64))}, Path("c.safetensors"), "c.safetensors"])
def test_statistics_of_one_tensor_are_asked_for(method: str, calibration: Any) -> None:
    words = rf"{type(calibration).__name__}, expected the statistics of one tensor, as calibration\[\"w\"\]"

    with pytest.raises(UsageError, match=words) as caught:
        quantize(weights(2, 64), "int4_g32", method=method, calibration=calibration)

    assert caught.value.field == "calibration"


def test_rtn_is_the_rule_alone() -> None:
    w = weights(4, 128)

    assert stored(quantize(w, integer(4, 32), method="rtn")) == stored(by_rule(w, integer(4, 32)))
