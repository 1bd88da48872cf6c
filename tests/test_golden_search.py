"""Searched scales give ggml's blocks byte for byte: the stored ones, and those of ggml itself, with and without importance."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Arrays, Chunk
from numpy.typing import NDArray

from qformat import formats
from qformat.errors import UsageError
from qformat.rules import encode, quantize

F32 = NDArray[np.float32]
Golden = Callable[[str], Arrays]

# ggml's type id.
SEARCHED = {"q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14, "iq4_nl": 20, "iq4_xs": 23}
WEIGHTED = SEARCHED | {"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7}
searched = pytest.mark.parametrize("name", SEARCHED)
weighted = pytest.mark.parametrize("name", WEIGHTED)
GRIDS = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")
K = 512


def blocks_of(rows: F32, name: str, importance: F32 | None = None) -> bytes:
    """Give our blocks of rows."""
    source = quantize(rows, f"gguf:{name}", "ggml", importance).parts[0].source
    return bytes(source.read(0, source.n_bytes))


def blocks_of_ggml(chunk: Chunk, rows: F32, name: str, importance: F32 | None = None) -> bytes:
    layout = next(form for form in formats.GGUF if form.name == name).parts[0].layout
    return chunk(WEIGHTED[name], rows, rows.shape[1] // layout.n_weights * layout.n_bytes, importance)


def importance_of(seed: int) -> F32:
    """Give importance as it is found: mostly small, a few columns large, some never seen."""
    rng = np.random.default_rng(seed)
    return (rng.random(K) ** 4 * 100 * (rng.random(K) < 0.9)).astype(np.float32)


ROWS: dict[str, Callable[[np.random.Generator], NDArray[Any]]] = {
    "normal": lambda rng: rng.normal(0, 0.02, (32, K)),
    "heavy-tailed": lambda rng: rng.standard_t(2, (32, K)),
    "of many magnitudes": lambda rng: rng.normal(size=(32, K)) * np.exp2(rng.integers(-40, 10, (32, K // 32))).repeat(32, 1),
    "of few weights": lambda rng: rng.normal(size=(16, K)) * (rng.random((16, K)) < 0.2),
    "of zeros of both signs": lambda rng: rng.choice([0.0, -0.0], (4, K)),
    "of halves": lambda rng: rng.integers(-16, 17, (16, K)) / 2,
    "of ternary weights": lambda rng: rng.integers(-1, 2, (16, K)),
    "of constant groups": lambda rng: rng.normal(size=(16, K // 16)).repeat(16, 1),
    "far from zero": lambda rng: rng.normal(3, 0.01, (16, K)),
}
every_kind = pytest.mark.parametrize("kind", ROWS)
# From weights that are all subnormal over float16's subnormals to scales beyond float16.
every_magnitude = pytest.mark.parametrize("exponent", [-149, -140, -126, -100, -50, -48, -30, -24, -14, 0, 15, 18, 21, 30])


def rows_of(kind: str) -> F32:
    return ROWS[kind](np.random.default_rng(len(kind))).astype(np.float32)


def rows_near(exponent: int) -> F32:
    return np.ldexp(np.random.default_rng(200 + exponent).uniform(-1, 1, (8, K)), exponent + 1).astype(np.float32)


@searched
def test_blocks_equal_the_stored_ones_of_ggml(name: str, golden_ggml: Golden) -> None:
    stored = golden_ggml(name.upper())

    assert blocks_of(stored["x"], name) == stored["packed"].tobytes()


@weighted
def test_blocks_with_importance_equal_the_stored_ones_of_ggml(name: str, golden_ggml: Golden) -> None:
    stored = golden_ggml(name.upper())

    assert blocks_of(stored["x"], name, stored["imatrix"]) == stored["packed_imatrix"].tobytes()


@searched
@every_kind
def test_blocks_of_any_kind_of_rows_equal_those_of_ggml(name: str, kind: str, ggml_chunk: Chunk) -> None:
    rows = rows_of(kind)

    assert blocks_of(rows, name) == blocks_of_ggml(ggml_chunk, rows, name)


@weighted
@every_kind
def test_blocks_of_any_kind_of_rows_with_importance_equal_those_of_ggml(name: str, kind: str, ggml_chunk: Chunk) -> None:
    rows, importance = rows_of(kind), importance_of(7)

    assert blocks_of(rows, name, importance) == blocks_of_ggml(ggml_chunk, rows, name, importance)


@searched
@every_magnitude
def test_blocks_of_any_magnitude_equal_those_of_ggml(name: str, exponent: int, ggml_chunk: Chunk) -> None:
    rows = rows_near(exponent)

    assert blocks_of(rows, name) == blocks_of_ggml(ggml_chunk, rows, name)


@weighted
@every_magnitude
def test_blocks_of_any_magnitude_with_importance_equal_those_of_ggml(name: str, exponent: int, ggml_chunk: Chunk) -> None:
    rows, importance = rows_near(exponent), importance_of(8)

    assert blocks_of(rows, name, importance) == blocks_of_ggml(ggml_chunk, rows, name, importance)


@weighted
def test_importance_that_is_zero_everywhere_gives_the_blocks_of_ggml_and_finite_weights(name: str, ggml_chunk: Chunk) -> None:
    rows, nothing = rows_of("heavy-tailed"), np.zeros(K, np.float32)

    tensor = quantize(rows, f"gguf:{name}", "ggml", nothing)

    assert blocks_of(rows, name, nothing) == blocks_of_ggml(ggml_chunk, rows, name, nothing)
    assert np.isfinite(tensor.dequantize()).all()


@weighted
def test_importance_of_each_row_counts_for_that_row_alone(name: str) -> None:
    form = next(form for form in formats.GGUF if form.name == name)
    rows, importance = rows_of("normal")[:2], np.stack([importance_of(1), importance_of(2)])

    both = encode(rows, form, "ggml", importance=importance)
    alone = [encode(rows[i : i + 1], form, "ggml", importance=importance[i : i + 1]) for i in range(2)]

    assert {key: value.tobytes() for key, value in both.items()} == {
        key: alone[0][key].tobytes() + alone[1][key].tobytes() for key in both
    }


@weighted
def test_the_number_of_groups_at_a_time_does_not_show(name: str) -> None:
    """67 rows fill no whole number of lanes."""
    rows = np.random.default_rng(3).normal(size=(67, 256)).astype(np.float32)

    assert blocks_of(rows, name) == b"".join(blocks_of(rows[i : i + 1], name) for i in range(67))


@weighted
def test_no_rows_give_no_blocks(name: str) -> None:
    assert blocks_of(np.zeros((0, 256), np.float32), name, np.ones(256, np.float32)) == b""


@weighted
def test_arrays_that_are_read_only_and_strided_give_the_same_blocks(name: str) -> None:
    rows = rows_of("normal")
    wide = np.zeros((len(rows), 2 * K), np.float32)
    wide[:, ::2] = rows
    wide.flags.writeable = False

    assert blocks_of(wide[:, ::2], name, importance_of(5)) == blocks_of(rows, name, importance_of(5))


@pytest.mark.parametrize("name", GRIDS)
def test_a_type_of_grid_points_is_refused_as_its_search_is_not_built(name: str) -> None:
    form = next(form for form in formats.GGUF if form.name == name)

    with pytest.raises(UsageError, match=rf"'{name}'.*grid"):
        quantize(np.ones((1, 256), np.float32), form)
