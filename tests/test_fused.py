"""Rules in one pass: every stored byte as the rule's own function gives it, wherever kernels are made of rules."""

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import qformat
from qformat import formats
from qformat.decoding import TILE_WEIGHTS
from qformat.errors import UsageError
from qformat.formats import Format, nf4
from qformat.formats.integer import integer
from qformat.kernels import cpu
from qformat.rules import encode, quantize, resolve, rules
from qformat.rules.catalogue import find
from qformat.rules.fused import fuse
from qformat.scheme import Flat
from qformat.tensor import PackedTensor, pack_parts

F32 = NDArray[np.float32]

N_COLS = 512
GUARD, MARK = 256, 0xA5
TARGETS = tuple(f"gguf:{form.name}" for form in formats.GGUF if form.rule) + tuple(form.name for form in formats.PLANAR)
PAIRS = tuple((target, rule) for target in TARGETS for rule in rules(resolve(target)))
FUSED = tuple(
    (target, rule)
    for target, rule in PAIRS
    if fuse(resolve(target), find(resolve(target), rule), N_COLS, "float32", in_place=True) is not None
)
SOME = ("int4_g128", "uint4_g32", "mxfp4", "nf4_b64", "int8_channel", "gguf:q4_0", "gguf:q4_1", "gguf:q8_0", "gguf:nvfp4")
SOME += ("gguf:q1_0", "gguf:tq1_0")
every_fused = pytest.mark.parametrize(("target", "rule"), FUSED, ids=lambda value: value)
some = pytest.mark.parametrize("target", SOME)

pytestmark = pytest.mark.skipif(not cpu.has_vectors(), reason="kernels are not compiled")


@cache
def weights() -> F32:
    """Give rows of what rules could trip over: ties, zeros, constants, one sign, every magnitude, steps of exponents."""
    rng = np.random.default_rng(17)
    shape = (24, N_COLS)
    normal = rng.standard_normal(shape)
    halves = rng.integers(-16, 17, shape) / 2
    few = rng.integers(-2, 3, shape) / 2
    zeros = rng.choice(np.array([0.0, -0.0]), shape)
    lonely = np.where(rng.random(shape) < 0.02, halves, zeros)
    runs = np.repeat(rng.standard_normal((24, N_COLS // 16)), 16, axis=1)
    equal = np.repeat(rng.standard_normal((24, 1)), N_COLS, axis=1)
    signs = rng.choice([-1, 1], shape)
    steps = np.ldexp(np.repeat([1, 1.25, 1.5, 1.75], 277), np.tile(np.arange(-149, 128), 4)).astype(np.float32)
    beside = np.concatenate([np.nextafter(steps, np.float32(0)), steps, np.nextafter(steps, np.float32(np.inf))])
    beside = beside[np.isfinite(beside)]
    largest = rng.integers(-12, 13, (beside.size, 64)) / 12 * beside[:, None].astype(np.float64)
    largest[:, ::16] = beside[:, None]
    largest[::2, ::16] *= -1
    padded = np.concatenate([largest.reshape(-1), np.zeros(-largest.size % N_COLS)]).reshape(-1, N_COLS)
    every = np.ldexp(rng.uniform(-1, 1, (277, N_COLS)), np.arange(-148, 129)[:, None])
    patterns = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    patterns = np.where(np.isfinite(patterns), patterns, np.float32(0))
    huge = np.finfo(np.float32).max * signs
    made = [normal, halves, few, zeros, lonely, runs, equal, equal * signs, abs(normal), -abs(normal), halves + 100, padded]
    made += [every, abs(every), -abs(every), patterns.astype(np.float64), huge, abs(huge), np.where(few > 0, huge, few)]
    made += [normal * 1e-45, np.ldexp(rng.integers(-3, 4, shape), -149), np.where(few == 1, 1e-40, zeros)]
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate([part.astype(np.float32) for part in made])


def stored(tensor: PackedTensor) -> dict[str, bytes]:
    """Give the stored bytes of every part."""
    return {part.form.role: bytes(part.source.read(0, part.source.n_bytes)) for part in tensor.parts}


def defined(array: NDArray[Any], form: Format, rule: str | None = None) -> dict[str, bytes]:
    """Give the bytes as the rule's own function and the packer of logical arrays do."""
    rows = array.astype(np.float32)
    given = rows.reshape(1, -1) if isinstance(form.scheme.param("scales").group, Flat) else rows
    with np.errstate(all="ignore"):
        values = find(form, rule).encode(given, form.scheme, None)
    return {role: data.tobytes() for role, data in pack_parts(form, rows.shape, values).items()}


def test_these_rules_are_computed_in_one_pass() -> None:
    apart = {target for target, rule in PAIRS} - {target for target, rule in FUSED}

    assert len(FUSED) > 60
    assert apart == {
        *("int4_tensor", "int8_tensor", "int8_asym_tensor"),
        *("gguf:iq4_nl", "gguf:iq4_xs"),
        *("gguf:q2_k", "gguf:q3_k", "gguf:q4_k", "gguf:q5_k", "gguf:q6_k"),
    }


@every_fused
def test_a_pass_gives_the_bytes_that_the_rule_defines(target: str, rule: str) -> None:
    form = resolve(target)

    assert stored(quantize(weights(), target, rule)) == defined(weights(), form, rule)


def guarded(array: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Give memory full of marks, and an array like this one in its middle."""
    memory = np.full(array.nbytes + 2 * GUARD, MARK, np.uint8)
    inner = memory[GUARD : GUARD + array.nbytes].view(array.dtype)
    inner[...] = array
    return memory, inner


@every_fused
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "apart"])
def test_no_byte_is_written_beside_the_arrays(target: str, rule: str, in_place: bool) -> None:
    form = resolve(target)
    fused = fuse(form, find(form, rule), N_COLS, "float32", in_place=in_place)
    assert fused is not None
    rows = weights()[:3]
    guards = {place: guarded(array) for place, array in fused.room(rows.shape).items()}

    fused.encode(rows, 0, {place: inner for place, (_, inner) in guards.items()})

    for memory, _ in guards.values():
        assert memory[:GUARD].tobytes() + memory[-GUARD:].tobytes() == bytes([MARK]) * 2 * GUARD


@every_fused
def test_rows_are_encoded_apart_as_the_rule_defines(target: str, rule: str) -> None:
    form = resolve(target)
    rows = weights()[:400].reshape(1, -1) if isinstance(form.scheme.param("scales").group, Flat) else weights()[:400]
    with np.errstate(all="ignore"):
        expected = find(form, rule).encode(rows, form.scheme, None)

    made = encode(rows, form, rule)

    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in made.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in expected.items()
    }


@some
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_weights_of_16_bits_give_what_they_give_as_float32(target: str, dtype: Any) -> None:
    with np.errstate(over="ignore"):
        rows = weights().astype(dtype)
    rows = np.where(np.isfinite(rows.astype(np.float32)), rows, dtype(1))

    assert stored(quantize(rows, target)) == defined(rows, resolve(target))


def around_middles() -> F32:
    """Give rows with E2M1's levels, the middles between them and what lies beside, at every scale of an E4M3 and more."""
    steps = np.float32([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 5.5, 6])
    scales = np.array([1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875]) * 2.0 ** np.arange(-20, 60)[:, None]
    exact = (steps * scales.reshape(-1, 1)).astype(np.float32)  # 16 weights a group, of which the last is the largest
    below, above = np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(np.inf))
    groups = np.stack([exact, below, above], axis=1)
    groups[..., -1] = exact[:, None, -1]
    signs = np.where(np.arange(groups.size).reshape(groups.shape) % 3 == 1, -1, 1)
    return (groups * signs).astype(np.float32).reshape(-1, N_COLS)


def beyond_scales() -> F32:
    """Give rows of which a weight is so large that differences to levels are rounded, or nearly so large."""
    rng = np.random.default_rng(3)
    shape = (200, N_COLS)
    large = np.ldexp(rng.uniform(1, 2, shape), rng.integers(6, 40, shape)) * rng.choice([-1, 1], shape)
    large[:, ::7] = np.ldexp(1.0, rng.integers(20, 25, large[:, ::7].shape))
    large[::2] = np.where(rng.random((100, N_COLS)) < 0.9, rng.integers(-12, 13, (100, N_COLS)) * 112, large[::2])
    return large.astype(np.float32)


@pytest.mark.parametrize("made", [around_middles, beyond_scales])
@pytest.mark.parametrize(("target", "rule"), [pair for pair in FUSED if pair[0] in ("gguf:nvfp4", "gguf:mxfp4", "mxfp4")])
def test_ties_between_levels_go_as_the_rule_defines(target: str, rule: str, made: Any) -> None:
    assert stored(quantize(made(), target, rule)) == defined(made(), resolve(target), rule)


@some
def test_bytes_do_not_depend_on_the_number_of_threads(target: str) -> None:
    rows = np.tile(weights(), (3, 1))
    made = []
    for n in (1, 2, 3):
        qformat.set_threads(n)
        try:
            made.append(stored(quantize(rows, target)))
        finally:
            qformat.set_threads(None)

    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("n_weights", [1, 63, 64, 65, 127, 64 * 1000 + 17])
def test_a_short_last_block_follows_whole_ones(n_weights: int) -> None:
    row = np.random.default_rng(5).standard_normal((1, n_weights)).astype(np.float32)

    assert stored(quantize(row, "nf4")) == defined(row, resolve("nf4"))


@pytest.mark.parametrize("n_cols", [16, 32, 48, 96, 100, 128, 320, 544, 1088])
@pytest.mark.parametrize(
    "form",
    [integer(4, 16), integer(4, 48), integer(4, 64), integer(5, "channel"), integer(3, 96, zero=True)],
    ids=lambda form: form.name,
)
def test_rows_of_any_length_give_what_the_rule_defines(n_cols: int, form: Format) -> None:
    rows = np.random.default_rng(n_cols).standard_normal((7, n_cols)).astype(np.float32)

    assert stored(quantize(rows, form)) == defined(rows, form)


@pytest.mark.parametrize("form", nf4.ALL, ids=lambda form: form.name)
def test_blocks_of_any_size_cross_rows(form: Format) -> None:
    rows = np.random.default_rng(8).standard_normal((33, 1000)).astype(np.float32)

    assert stored(quantize(rows, form)) == defined(rows, form)


@some
@pytest.mark.parametrize(
    "seen",
    [lambda a: a[::2], lambda a: a[:, ::-1], lambda a: np.asfortranarray(a), lambda a: a.astype(">f4"), lambda a: a[1:]],
    ids=["rows", "columns", "order", "bytes", "offset"],
)
def test_weights_may_lie_in_any_order(target: str, seen: Any) -> None:
    rows = seen(weights()[:96])

    assert stored(quantize(rows, target)) == defined(rows, resolve(target))


@some
def test_weights_that_begin_at_any_byte_are_read(target: str) -> None:
    rows = weights()[:16]
    for shift in (1, 2, 3):
        raw = np.zeros(rows.nbytes + 4, np.uint8)
        raw[shift : shift + rows.nbytes] = rows.reshape(-1).view(np.uint8)
        moved = raw[shift : shift + rows.nbytes].view(np.float32).reshape(rows.shape)

        assert stored(quantize(moved, target)) == defined(rows, resolve(target))


@some
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 511), (4999, 100)], ids=str)
def test_a_weight_that_is_not_finite_is_named(target: str, value: float, place: tuple[int, int]) -> None:
    rows = np.ones((5000, N_COLS), np.float32)
    rows[place] = value
    rows[-1, -1] = np.nan

    with pytest.raises(UsageError, match=rf"weight \[{place[0]}, {place[1]}\] is {value}".replace("-inf", "-inf")):
        quantize(rows, target)


@pytest.mark.parametrize("target", ["int4_tensor", "int8_tensor", "int8_asym_tensor"])
@pytest.mark.parametrize("shape", [(-1, N_COLS), (1, -1), (2, 3, -1, 64), (-1, 8)], ids=str)
def test_one_scale_over_a_tensor_is_what_the_rule_defines(target: str, shape: tuple[int, ...]) -> None:
    form = resolve(target)
    rows = weights()[:480].reshape(shape)

    assert fuse(form, find(form, None), rows.size, "float32", in_place=True, is_whole=True) is not None
    assert stored(quantize(rows, target)) == defined(rows.reshape(-1, rows.shape[-1]), form)


def test_blocks_packed_tile_by_tile_are_those_of_the_whole() -> None:
    rows = np.random.default_rng(9).standard_normal((1100, 256)).astype(np.float32)
    assert rows.size > TILE_WEIGHTS

    assert stored(quantize(rows, "gguf:q3_k")) == defined(rows, resolve("gguf:q3_k"))
