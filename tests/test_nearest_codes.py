"""Codes against parameters as stored: the nearest of all, their values those of a decode, ties and odd scales."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qformat import formats, quantize, reference
from qformat.errors import UsageError
from qformat.formats import Format
from qformat.rules.catalogue import find, rules
from qformat.rules.groups import join, split
from qformat.rules.nearest import codes_of, values_of
from qformat.scheme import Const, Grid, Integers, Levels, Lookup, Op, Param, Ref, Scheme, Step, Table

F32 = NDArray[np.float32]

# Those whose parameters are all of one group.
SIMPLE = [form for form in (*formats.GGUF, *formats.PLANAR) if form.rule and len({p.group for p in form.scheme.params}) == 1]
every_simple = pytest.mark.parametrize("form", SIMPLE, ids=[f"{'gguf' * (f in formats.GGUF)}:{f.name}" for f in SIMPLE])


def sample(form: Format) -> tuple[F32, NDArray[Any], dict[str, NDArray[Any]], F32]:
    """Give weights cut into groups, their codes and parameters by the default rule, and what the reference decodes."""
    weights = np.random.default_rng(5).standard_normal((2, 256)).astype(np.float32)
    packed = quantize(weights, form)
    group = form.scheme.params[0].group
    cut = split(weights, group)
    params = {param.name: np.asarray(packed.param(param.name)).reshape(*cut.shape[:2], 1) for param in form.scheme.params}
    codes = np.zeros(cut.size, packed.codes().dtype)  # blocks of 4096 are longer than all weights
    codes[: weights.size] = packed.codes().reshape(-1)
    return cut, codes.reshape(cut.shape), params, reference.decode(packed)


@every_simple
def test_values_are_those_of_a_decode(form: Format) -> None:
    _, codes, params, expected = sample(form)

    assert join(values_of(codes, form.scheme, params), *expected.shape).tobytes() == expected.tobytes()


@every_simple
def test_no_other_code_is_nearer(form: Format) -> None:
    cut, _, params, _ = sample(form)
    scheme, chosen = form.scheme, find(form, rules(form)[0])
    low, high = chosen.limits(scheme) or (0, 15 if form.name != "q1_0" else 1)
    found = codes_of(cut, scheme, params, chosen.limits(scheme))
    every = [
        values_of(np.full(cut.shape, code, found.dtype), scheme, params).astype(np.float64) for code in range(low, high + 1)
    ]
    least = np.min([np.abs(cut - values) for values in every], axis=0)
    error = np.abs(cut - values_of(found, scheme, params).astype(np.float64))

    assert (low <= found.min(), found.max() <= high) == (True, True)
    # The steps are undone in float32: near the middle of two codes the other may be taken, as much farther as that rounds.
    assert (error <= least * (1 + 2.0**-20)).all()


def scaled(alphabet: Integers | Levels) -> Scheme:
    """Give a scheme of one scale for four weights."""
    return Scheme("s", alphabet, (Param("scales", "float32", Grid(1, 4)),), (Step(Op.MUL, Ref("scales")),))


@pytest.mark.parametrize(
    ("alphabet", "scale", "weights", "expected"),
    [
        (Integers(-8, 7), 2, [1, 3, -1, -3, 13, 15, -17, 99], [0, 2, 0, -2, 6, 7, -8, 7]),
        (Integers(0, 3), 1, [-5, 0.5, 1.5, 2.5], [0, 0, 2, 2]),
        (Integers(-2, 1), -1, [2, 1, -1, -2], [-2, -1, 1, 1]),
        # E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6, and the same below zero from code 8 on
        (
            formats.find("mxfp4").scheme.alphabet, 1,
            [0.25, 0.75, 2.5, 5, 7, -0.25, -0.75, -5, 0.0, -0.0], [0, 2, 4, 6, 7, 0, 10, 14, 0, 0],
        ),
        (Levels("three", (4.0, -4.0, 0.0)), 1, [2, 1.9, -2, -2.1, 9], [0, 2, 2, 1, 0]),
        (Levels("holes", (float("nan"), 1.0, float("inf"), 3.0)), 1, [-1, 1.9, 2.1, 1e9], [1, 1, 3, 3]),
    ],
)  # fmt: skip
def test_a_tie_goes_to_the_even_code(alphabet: Any, scale: float, weights: list[float], expected: list[int]) -> None:
    found = codes_of(np.float32([weights]), scaled(alphabet), {"scales": np.float32([[scale]])})

    assert found[0].tolist() == expected


def test_codes_stay_within_limits() -> None:
    found = codes_of(np.float32([[-9, 9, -2]]), scaled(Integers(-8, 7)), {"scales": np.float32([[1]])}, (-7, 3))

    assert found.tolist() == [[-7, 3, -2]]


@pytest.mark.parametrize("scale", [0.0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(("alphabet", "code"), [(Integers(-8, 7), 0), (Levels("ends", (-1.0, 1.0, 0.0)), 2)])
def test_a_scale_that_says_nothing_gives_the_code_of_zero(alphabet: Integers | Levels, code: int, scale: float) -> None:
    found = codes_of(np.float32([[3, -3, 0], [1, 2, 3]]), scaled(alphabet), {"scales": np.float32([[scale], [1]])})

    assert found[0].tolist() == [code] * 3


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Step(Op.ADD, Const(1.0)), [0, 1, 2]),  # (w - 1) / 2
        (Step(Op.SUB, Const(1.0)), [1, 2, 3]),
        (Step(Op.MUL, Const(0.5)), [1, 3, 5]),
        (Step(Op.DIV, Const(0.5)), [0, 1, 1]),  # w / 4: 0.25, 0.75, 1.25
        (Step(Op.ADD, Lookup("table", "index")), [-1, 0, 1]),
    ],
)
def test_each_step_is_undone(step: Step, expected: list[int]) -> None:
    table = (Param("table", "float32", Table(2)), Param("index", "uint8", Grid(1, 4)))
    params = (Param("scales", "float32", Grid(1, 4)), *(table if isinstance(step.operand, Lookup) else ()))
    scheme = Scheme("s", Integers(-8, 7), params, (Step(Op.MUL, Ref("scales")), step))
    stored = {"scales": np.float32([[2]]), "table": np.float32([7, 3]), "index": np.uint8([[1]])}

    assert codes_of(np.float32([[1, 3, 5]]), scheme, stored).tolist() == [expected]


def test_codes_that_are_no_numbers_have_no_nearest() -> None:
    with pytest.raises(UsageError, match="neither integer codes nor levels"):
        codes_of(np.zeros((1, 4), np.float32), formats.DENSE[0].scheme, {})
