"""The vector kernels: element types and alignments of the output, ranges of rows, threads, no byte read beside the source.

That they give the reference's values is tests/test_kernels.py's; that plain loops and vectors agree on any processor is
tests/test_cpus.py's.
"""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from made_tensors import made
from numpy.typing import NDArray

import qformat
from qformat import formats
from qformat.formats import Format, fp8_block, nf4
from qformat.kernels.vector import decode as vector_decode
from qformat.streamed import rows_of
from qformat.tensor import PackedTensor

HERE = Path(__file__).parent
SHAPE = (24, 4096)
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
IN_PLACE = [
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "q8_1",
    "q2_k",
    "q3_k",
    "q4_k",
    "q5_k",
    "q6_k",
    "q8_k",
    "iq4_nl",
    "iq4_xs",
    "mxfp4",
    "nvfp4",
    "q1_0",
    "q2_0",
    "tq2_0",
    "nf4_b64",
    "int4_g128",
    "int4_g32",
    "int4_channel",
    "int8_channel",
    "int8_tensor",
    "int8_g128",
    "int3_g64",
    "int5_g64",
]
BY_NAME = {form.name: form for form in (*formats.PLANAR, *formats.GGUF)}
SOME = ("q4_0", "q6_k", "nf4_b64", "int4_g128", "mxfp4", "int3_g64")


def tensor(name: str, shape: tuple[int, int] = SHAPE) -> PackedTensor:
    return made(BY_NAME[name], shape)


@pytest.mark.parametrize("name", IN_PLACE)
def test_formats_in_use_are_read_where_they_lie(name: str) -> None:
    rows = rows_of(tensor(name), input_scale=True)

    assert rows is not None
    assert rows.in_place


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", TYPES[1:], ids=lambda dtype: np.dtype(dtype).name)
def test_narrower_floats_are_the_float32_values_rounded_once(name: str, dtype: type) -> None:
    wide = tensor(name).dequantize()

    with np.errstate(over="ignore"):
        expected = wide.astype(dtype)
    assert tensor(name).dequantize(dtype).tobytes() == expected.tobytes()


def test_any_float32_is_rounded_to_bfloat16() -> None:
    """Subnormal values are among those of a group, or are all of it: processors' own conversions take them for zero."""
    form, shape = BY_NAME["nf4_b64"], (64, 8192)
    patterns = np.random.default_rng(5).integers(0, 1 << 32, 64 * 128, dtype=np.uint32)
    patterns[::4] &= 0x80FFFFFF  # a few powers of two above zero, and below
    patterns[::8] = patterns[::8] & 0xFFFF0000 | 0x8000  # half-way between two bfloat16
    scales = np.where(np.isnan(patterns.view(np.float32)), np.float32(np.nan), patterns.view(np.float32))
    made_of_any = made(form, shape, scales=scales)
    wide = made_of_any.dequantize()

    found = made_of_any.dequantize(ml_dtypes.bfloat16)

    is_subnormal = (wide != 0) & (np.abs(wide) < np.finfo(np.float32).tiny)
    is_mixed = is_subnormal.reshape(-1, 32).any(1) & ~is_subnormal.reshape(-1, 32).all(1)
    is_tie = wide.view(np.uint32) & 0xFFFF == 0x8000
    assert np.count_nonzero(is_mixed) > 500
    assert np.count_nonzero(is_tie.reshape(-1, 32)[is_mixed] & ~is_subnormal.reshape(-1, 32)[is_mixed]) > 100
    assert np.isnan(wide).any()
    assert found.tobytes() == wide.astype(ml_dtypes.bfloat16).tobytes()


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("offset", [0, 16, 32, 48, 1, 2, 4, 7])
def test_any_alignment_gives_the_same_bits_and_nothing_beside_them(dtype: type, offset: int) -> None:
    source = tensor("q4_0", (640, 4096))
    n_bytes = source.n_weights * np.dtype(dtype).itemsize
    assert n_bytes > vector_decode.CACHED  # so that stores may go past the caches
    memory = np.full(n_bytes + 192, 0xA5, np.uint8)
    start = -memory.ctypes.data % 64 + 64 + offset
    out: NDArray[np.generic] = np.frombuffer(memory.data, dtype, source.n_weights, start).reshape(source.shape)

    source.dequantize(dtype, out=out)

    assert out.tobytes() == source.dequantize(dtype).tobytes()
    assert set(memory[:start]) | set(memory[start + n_bytes :]) == {0xA5}


def test_rows_that_lie_apart_or_backwards_are_written_where_they_are() -> None:
    source = tensor("q4_0")
    wanted = source.dequantize()
    memory = np.zeros((SHAPE[0] * 2, SHAPE[1] + 32), np.float32)

    source.dequantize(out=memory[::2, 32:])

    assert memory[::2, 32:].tobytes() == wanted.tobytes()
    assert not memory[1::2].any()
    assert not memory[:, :32].any()
    source.dequantize(out=memory[::-2, :-32])
    assert memory[::-2, :-32].tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", SOME)
def test_ranges_of_rows_are_the_rows_of_the_whole(name: str) -> None:
    source = tensor(name)
    whole = source.dequantize()

    for first, last in ((0, 1), (5, 6), (7, 24), (23, 24), (4, 4)):
        assert source.dequantize(rows=slice(first, last)).tobytes() == whole[first:last].tobytes()


def test_rows_that_share_a_scale_find_theirs() -> None:
    form = fp8_block.DIALECT[0]
    source = made(form, (300, 256))
    whole = source.dequantize()
    codes, scales = source.codes(), source.scales()
    assert scales is not None

    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.kron(scales, np.ones((128, 128), np.float32))[:300]

    assert whole.tobytes() == expected.tobytes()
    for first, last in ((0, 300), (100, 130), (127, 129), (256, 300)):
        assert source.dequantize(rows=slice(first, last)).tobytes() == whole[first:last].tobytes()


@pytest.mark.parametrize("form", [BY_NAME["q4_k"], nf4.nf4(4096), BY_NAME["uint4_g128"]], ids=lambda form: form.name)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(form: Format, n: int) -> None:
    source = made(form, (1024, 4096))
    qformat.set_threads(1)
    try:
        wanted = source.dequantize("float16").tobytes()
        qformat.set_threads(n)
        assert source.dequantize("float16").tobytes() == wanted
    finally:
        qformat.set_threads(None)


def test_levels_that_differ_by_the_sign_of_a_zero_have_kernels_of_their_own() -> None:
    """Zero and minus zero are equal as numbers, and as keys of a cache."""
    codes = np.full((1, 64), 8, np.uint8)
    with_minus = next(form for form in formats.PLANAR if form.name == "mxfp4")
    without = formats.modelopt.nvfp4()

    signs = [
        np.signbit(made(form, (1, 64), codes=codes, scales=np.full(1, 0x38, np.uint8)).dequantize())
        for form in (with_minus, without)
    ]

    assert signs[0].all()
    assert not signs[1].any()


def test_no_byte_is_read_beside_the_source() -> None:
    """Every format with its arrays at the very end of a page before one that cannot be read, and at the very start of one."""
    found = subprocess.run([sys.executable, str(HERE / "between_pages.py")], capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stderr[-2000:]
    assert int(found.stdout) > 40  # formats that were decoded
