"""Verdicts: decided by the values of a tensor, with the first offender named."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from qconvert.exact import Recast
from qconvert.verdict import EXACT, REFUSED, ROUNDED, SAME_BYTES, Verdict, judge

from qformat import formats
from qformat.formats import Format, find, gguf, mx
from qformat.formats.dense import dense
from qformat.formats.form import parameter
from qformat.formats.fp8_block import fp8_block
from qformat.formats.hqq import hqq
from qformat.tensor import PackedTensor, from_array, from_values

RNG = np.random.default_rng(20)
SHAPE = (6, 128)


def scales(groups: int, dtype: str = "float16") -> Any:
    return RNG.uniform(0.001, 0.1, (6, groups)).astype(dtype)


def symmetric(group: int = 32, low: int = -8) -> PackedTensor:
    codes = RNG.integers(low, 8, SHAPE).astype(np.int8)
    return from_values(find(f"int4_g{group}"), SHAPE, {"codes": codes, "scales": scales(128 // group)})


def asymmetric(zeros: Any = None) -> PackedTensor:
    codes = RNG.integers(0, 16, SHAPE).astype(np.uint8)
    zeros = RNG.integers(0, 16, (6, 4)).astype(np.uint8) if zeros is None else zeros
    return from_values(find("uint4_g32"), SHAPE, {"codes": codes, "scales": scales(4), "zeros": zeros})


def mxfp4(exponents: Any) -> PackedTensor:
    codes = RNG.integers(0, 16, SHAPE).astype(np.uint8)
    codes[:, :4] = [1, 7, 9, 15]
    return from_values(mx.MXFP4, SHAPE, {"codes": codes, "scales": exponents})


def exponents(low: int, high: int) -> Any:
    return RNG.integers(low, high, (6, 4)).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)


CASES: list[tuple[str, Any, Format, str, str]] = [
    ("int4_g32 copies its codes into q4_0", symmetric, gguf.Q4_0, EXACT, "codes copied"),
    ("int4_g128 repeats its scales in q4_0", lambda: symmetric(128), gguf.Q4_0, EXACT, "codes copied"),
    ("int4 widens into q8_0", symmetric, gguf.Q8_0, EXACT, "codes copied"),
    ("uint4 with zeros is q5_0 as code - zero", asymmetric, gguf.Q5_0, EXACT, "code - zero"),
    ("uint4 with zeros is q8_0 as code - zero", asymmetric, gguf.Q8_0, EXACT, "code - zero"),
    ("uint4 with zero 8 is q4_0", lambda: asymmetric(np.full((6, 4), 8, np.uint8)), gguf.Q4_0, EXACT, "code - zero"),
    ("uint4 with other zeros is not q4_0", asymmetric, gguf.Q4_0, REFUSED, "outside -8..7"),
    ("uint4 without offset is q4_1", lambda: asymmetric(np.zeros((6, 4), np.uint8)), gguf.Q4_1, EXACT, "bias = -zero * scale"),
    ("uint4 with unlucky zeros is not q4_1", asymmetric, gguf.Q4_1, ROUNDED, "biases rounds"),
    ("int4 is uint4 with zero 8", symmetric, find("uint4_g32"), EXACT, "code + 8"),
    ("mxfp4 is ggml's mxfp4", lambda: mxfp4(exponents(0, 255)), gguf.MXFP4, EXACT, "levels x 2"),
    ("an exponent of 255 stays where it is", lambda: mxfp4(exponents(255, 256)), gguf.MXFP4, REFUSED, "is the byte 255"),
    ("mxfp4 in range is q8_0", lambda: mxfp4(exponents(104, 143)), gguf.Q8_0, EXACT, "levels x 2"),
    ("mxfp4 out of range is not q8_0", lambda: mxfp4(exponents(150, 151)), gguf.Q8_0, REFUSED, "is not float16"),
    ("nf4 has levels of its own", lambda: nf4(), gguf.Q8_0, REFUSED, "same numbers"),
    ("groups of 32 that differ are no group of 128", symmetric, find("int4_g128"), REFUSED, "not that of its group"),
    ("zeros between integers are no integers, though scales may round", lambda: float_zeros(7.5), gguf.Q8_0, REFUSED, "7.5"),
    ("float zeros that are integers are", lambda: float_zeros(8), gguf.Q8_0, ROUNDED, "code - zero; scales rounds"),
    ("a zero that is no number is no integer", lambda: float_zeros(np.nan), gguf.Q8_0, REFUSED, "nan"),
    ("rows that agree share a scale", lambda: channels(), find("int8_tensor"), EXACT, "codes copied"),
    (
        "rows that differ share none",
        lambda: channels(40),
        find("int8_tensor"),
        REFUSED,
        "of row 40 is not that of its group of 48",
    ),
    ("rows of a block share a scale", lambda: blocks(), fp8_block("f32", 128, 128), EXACT, "levels matched"),
    ("rows of two blocks differ", lambda: blocks(), fp8_block("f32", 256, 128), REFUSED, "of row 128 is not that of its group"),
    ("a code that is NaN is NaN", lambda: blocks(0x7F), fp8_block("ue8m0", 128, 128, in_bytes=True), EXACT, "levels matched"),
    ("a format is itself", symmetric, find("int4_g32"), SAME_BYTES, "copied"),
    ("float32 is not float16", lambda: from_array(RNG.random((2, 8), np.float32)), dense("float16"), ROUNDED, "round"),
    ("float16 is float32", lambda: from_array(RNG.random((2, 8)).astype("f2")), dense("float32"), EXACT, "widened"),
    ("a large float32 has no float16", lambda: from_array(np.full(3, 1e6, np.float32)), dense("float16"), REFUSED, "1000000.0"),
    ("packed weights decode to float32", symmetric, dense("float32"), EXACT, "decoded"),
    (
        "rows are whole blocks",
        lambda: from_columns(48),
        gguf.Q4_0,
        REFUSED,
        "rows of 48 weights, expected a multiple of 32",
    ),
]


def nf4() -> PackedTensor:
    codes = RNG.integers(0, 16, SHAPE).astype(np.uint8)
    return from_values(find("nf4"), SHAPE, {"codes": codes, "scales": RNG.random(12).astype(np.float32)})


def channels(other: int | None = None) -> PackedTensor:
    """Make rows of 8192 weights, so that they are judged in two tiles; all under one scale, but for one row."""
    shape, scales = (48, 8192), np.full((48, 1), 0.5, np.float16)
    scales[other if other is not None else slice(0)] = 0.25
    return from_values(find("int8_channel"), shape, {"codes": RNG.integers(-128, 128, shape).astype(np.int8), "scales": scales})


def float_zeros(zero: float) -> PackedTensor:
    """Make codes under zero points of float32, and scales that float16 does not hold."""
    codes, params = RNG.integers(0, 16, SHAPE).astype(np.uint8), np.full(12, 0.1, np.float32)
    return from_values(
        hqq(4, 1, 64, 12, "float32"), SHAPE, {"codes": codes, "scales": params, "zeros": np.full(12, zero, np.float32)}
    )


def blocks(code: int = 1) -> PackedTensor:
    """Make E4M3 of 300 rows, each under scales of powers of two for 128 x 128 weights."""
    scales = np.repeat(np.float32([[0.5, 1], [2, 4], [8, 16]]), 128, axis=0)[:300]
    codes = np.full((300, 200), code, np.uint8)
    return from_values(fp8_block("f32", 1, 128), (300, 200), {"codes": codes, "scales": scales})


def from_columns(n: int) -> PackedTensor:
    codes = np.zeros((2, n), np.int8)
    return from_values(find("int4_g16"), (2, n), {"codes": codes, "scales": np.ones((2, n // 16), np.float16)})


@pytest.mark.parametrize(("make", "form", "verdict", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_verdict(make: Any, form: Format, verdict: str, words: str) -> None:
    found = judge(make(), form)
    assert (found.verdict, words in found.reason) == (verdict, True), found


def test_a_rounded_verdict_counts_and_names_the_first() -> None:
    codes = np.ones((1, 64), np.int8)
    tensor = from_values(find("int4_g32"), (1, 64), {"codes": codes, "scales": np.array([[0.5, 1.0]], np.float16)})
    wide = from_values(formats.find("nf4_b32"), (1, 64), {"codes": codes, "scales": np.array([0.5, 0.1], np.float32)})
    assert judge(tensor, gguf.Q4_0).verdict == EXACT
    assert judge(wide, formats.find("nf4_b64")).verdict == REFUSED
    found = judge(asymmetric_with_scale(0.1), gguf.Q4_1)
    expected = -3 * np.float32(np.float16(0.1))
    relative = abs(np.float64(np.float16(expected)) / expected - 1)
    assert found == Verdict(
        ROUNDED, "codes copied, bias = -zero * scale; biases rounds",
        "biases", 0, float(expected), 1, float(relative),
    )  # fmt: skip


def asymmetric_with_scale(scale: float) -> PackedTensor:
    codes = np.ones((1, 32), np.uint8)
    values = {"codes": codes, "scales": np.full((1, 1), scale, np.float16), "zeros": np.full((1, 1), 3, np.uint8)}
    return from_values(find("uint4_g32"), (1, 32), values)


@pytest.mark.parametrize("scale", [0.5, 1e-9, 1e9, np.nan, np.inf, -0.0])
@pytest.mark.parametrize("target", [gguf.Q4_0, gguf.Q8_0, find("int8_g32"), find("int4_g16")], ids=lambda form: form.name)
def test_a_verdict_by_parameters_alone_is_that_of_every_value(
    monkeypatch: pytest.MonkeyPatch, target: Format, scale: float
) -> None:
    codes, held = RNG.integers(-8, 8, SHAPE).astype(np.int8), scales(4, "float32").astype(np.float16).astype(np.float32)
    held[3, 1] = scale
    tensor = from_values(in_float32(find("int4_g32")), SHAPE, {"codes": codes, "scales": held})
    assert Recast(tensor, target).is_sure

    by_parameters = judge(tensor, target)
    monkeypatch.setattr(Recast, "is_sure", False)

    assert repr(by_parameters) == repr(judge(tensor, target))  # NaN is not equal to itself


@pytest.mark.parametrize("scale", [0.5, np.nan, np.inf, -0.0])
@pytest.mark.parametrize("target", [gguf.Q4_0, gguf.Q8_0, find("int8_g32")], ids=lambda form: form.name)
def test_a_verdict_by_declarations_alone_is_that_of_every_value(
    monkeypatch: pytest.MonkeyPatch, target: Format, scale: float
) -> None:
    codes, held = RNG.integers(-8, 8, SHAPE).astype(np.int8), scales(4)
    held[3, 1] = scale
    tensor = from_values(find("int4_g32"), SHAPE, {"codes": codes, "scales": held})
    monkeypatch.setattr("qconvert.verdict.SURE_WEIGHTS", SHAPE[1])  # the scale is not among the first to be looked at
    by_declarations, looked = judge(tensor, target), []
    monkeypatch.setattr(Recast, "is_unchanged", lambda *rows: looked.append(rows) is not None)

    assert repr(by_declarations) == repr(judge(tensor, target))
    assert looked  # at whatever came before the first refusal
    assert by_declarations.verdict == (REFUSED if np.isnan(scale) else EXACT)


def in_float32(form: Format) -> Format:
    """Give a format of integers with scales of that type."""
    param = replace(form.scheme.params[0], dtype="float32")
    return Format("wide", replace(form.scheme, params=(param,)), (form.parts[0], parameter(param, 4)))
