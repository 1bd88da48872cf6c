"""Value digests: the same bytes whoever decodes them, in however many pieces, on however many threads."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3
from numpy.typing import NDArray
from qconvert import digest
from qconvert.digest import digest_named, digest_tensor

import qformat
from qformat.arrays import Memory
from qformat.errors import UsageError
from qformat.formats.form import Format, PartForm
from qformat.formats.gguf import Q4_0
from qformat.layout import Field, Layout
from qformat.scheme import Opaque, Scheme
from qformat.tensor import assemble, from_array, from_values
from qformat.tiling import FLAT

N_ROWS, N_COLS = 96, 64
ODD = {0: 0x80000000, 5: 0x7F800001, 6: 0xFFC00000, 7: 0x7FFFFFFF, 8: 0x00000001, 9: 0x80000001, 10: 0xFF800000}


def expected(shape: tuple[int, ...], values: bytes, name: bytes = b"") -> bytes:
    """Give a value digest by spec/qfmt.md alone."""
    head = b"qfmt-value/1\0" + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return blake3(head + name + values).digest()


@pytest.fixture(params=[(1, 1), (3, 1), (3, 1 << 25)], ids=["one thread", "shared by three", "one of three"])
def many_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Digest in tiles of two rows, by so many threads."""
    n_threads, most = request.param
    monkeypatch.setattr(digest, "TILE_WEIGHTS", 2 * N_COLS)
    monkeypatch.setattr(digest, "SHARED_WEIGHTS", most)
    qformat.set_threads(n_threads)
    yield
    qformat.set_threads(None)


def floats(dtype: np.dtype[np.generic]) -> NDArray[np.float32]:
    """Give values of every size, odd ones at the beginning, at the end and where tiles meet, that an element type holds."""
    bits = np.random.default_rng(7).integers(0, 1 << 32, N_ROWS * N_COLS, np.uint64).astype(np.uint32)
    for start in (0, 2 * N_COLS - 6, bits.size - 11):
        for place, word in ODD.items():
            bits[start + place] = word
    with np.errstate(all="ignore"):
        return bits.view(np.float32).reshape(N_ROWS, N_COLS).astype(dtype).astype(np.float32)


def canonical_bytes(values: NDArray[np.float32]) -> bytes:
    """Give the bytes that are digested, by integers alone."""
    bits = values.view(np.uint32).copy()
    bits[bits == 0x80000000] = 0
    bits[bits & 0x7FFFFFFF > 0x7F800000] = 0x7FC00000
    return bits.astype("<u4").tobytes()


@pytest.mark.usefixtures("many_tiles")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_zeros_and_nans_of_dense_floats_are_one_each(dtype: str) -> None:
    element = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    values = floats(element)
    with np.errstate(all="ignore"):
        stored = values.astype(element)
    found = dict(digest_named([("a", from_array(stored)), ("b", from_array(stored[:1]))], Path("x")))
    assert found == {
        "a": expected(values.shape, canonical_bytes(values)),
        "b": expected((1, N_COLS), canonical_bytes(values[:1])),
    }


@pytest.mark.usefixtures("many_tiles")
def test_packed_zeros_and_nans_are_one_each() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(-8, 8, (N_ROWS, N_COLS), np.int8)
    scales = rng.standard_normal((N_ROWS, N_COLS // 32)).astype(np.float16)
    scales[0, 0], scales[1, 1], scales[2, 0], scales[-1, -1] = -1, np.inf, np.nan, -0.0
    with np.errstate(all="ignore"):
        values = codes.astype(np.float32) * np.repeat(scales.astype(np.float32), 32, axis=1)
    tensor = from_values(Q4_0, codes.shape, {"codes": codes, "scales": scales})
    assert digest_tensor(tensor) == expected(codes.shape, canonical_bytes(values))
    assert digest_named([("a", tensor)], Path("x")) == {"a": expected(codes.shape, canonical_bytes(values))}


@pytest.mark.usefixtures("many_tiles")
@pytest.mark.parametrize("dtype", ["float64", "int64", "uint32", "complex64"])
def test_wide_types_are_digested_as_they_lie(dtype: str) -> None:
    stored = np.random.default_rng(5).integers(0, 255, (N_ROWS, N_COLS * np.dtype(dtype).itemsize), np.uint8).view(dtype)
    wanted = expected(stored.shape, stored.tobytes(), dtype.encode() + b"\0")
    assert digest_named([("a", from_array(stored))], Path("x")) == {"a": wanted}


@pytest.mark.usefixtures("many_tiles")
@pytest.mark.parametrize("dtype", ["int8", "uint16", "bool"])
def test_narrow_integers_are_digested_by_their_number(dtype: str) -> None:
    stored = np.random.default_rng(5).integers(0, 2, (N_ROWS, N_COLS)).astype(dtype)
    wanted = expected(stored.shape, stored.astype("<f4").tobytes())
    assert digest_named([("a", from_array(stored))], Path("x")) == {"a": wanted}


@pytest.mark.usefixtures("many_tiles")
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 5), (2, 3, 4)])
def test_tensors_of_any_rank_and_of_no_weights_are_digested(shape: tuple[int, ...]) -> None:
    stored = np.ones(shape, np.float32)
    assert digest_tensor(from_array(stored)) == expected(shape, stored.astype("<f4").tobytes())


@pytest.mark.usefixtures("many_tiles")
def test_the_tensor_that_cannot_be_read_is_named() -> None:
    layout = Layout("q9_z", 0, 1, (Field("block", 0, "uint8", holds="codes"),))
    form = Format("q9_z", Scheme("q9_z", Opaque("q9_z")), (PartForm("blocks", layout, FLAT),))
    opaque = assemble(form, (1, 4), {"blocks": Memory(np.zeros(4, np.uint8))})
    fine = from_array(np.ones((N_ROWS, N_COLS), np.float32))
    with pytest.raises(UsageError, match="not decoded") as caught:
        digest_named([("a", fine), ("b", opaque), ("c", fine), ("d", opaque)], Path("x.gguf"))
    assert (caught.value.path, caught.value.tensor) == ("x.gguf", "b")
