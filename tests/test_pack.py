"""The public pack and unpack: what they hand out, and what they refuse."""

import doctest

import numpy as np
import pytest

import qformat
import qformat.pack
from qformat import formats
from qformat.errors import UsageError
from qformat.kernels.compiled import n_kernels
from qformat.pack import pack, unpack
from qformat.warm import warm

NIBBLES = formats.find("int4_g128").parts[0].layout
Q5_1 = formats.GGUF[3].parts[0].layout


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(qformat.pack) == doctest.TestResults(failed=0, attempted=4)


def test_signed_codes_come_and_go_with_their_bias() -> None:
    codes = np.array([[-8, 7], [0, -1]])
    assert pack(codes, NIBBLES).tolist() == [[0xF0], [0x78]]
    assert unpack(pack(codes, NIBBLES), NIBBLES).tolist() == codes.tolist()


def test_high_bits_lie_in_a_plane_of_their_own() -> None:
    """Q5_1: codes 16 to 31 set every bit of the four bytes after d and m."""
    blocks = pack(np.resize(np.arange(16, 32), (1, 32)), Q5_1)
    nibbles = [value | value << 4 for value in range(16)]
    assert blocks.tolist() == [[0, 0, 0, 0, 255, 255, 255, 255, *nibbles]]


def test_an_array_given_is_the_one_returned() -> None:
    out = np.empty((1, 2), np.int16)
    assert unpack(np.array([[0x80]], np.uint8), NIBBLES, out) is out
    assert out.tolist() == [[-8, 0]]


@pytest.mark.parametrize(("value", "index"), [(8, (1, 0)), (-9, (0, 1))])
def test_a_code_out_of_range_is_refused_with_its_place(value: int, index: tuple[int, int]) -> None:
    codes = np.zeros((2, 2), np.int64)
    codes[index] = value
    with pytest.raises(
        UsageError, match=rf"'codes' has the value {value} at index \({index[0]}, {index[1]}\), expected -8 to 7"
    ):
        pack(codes, NIBBLES)


@pytest.mark.parametrize("codes", [np.zeros((2, 3), int), np.zeros(2, int), np.zeros((2, 2))], ids=["shape", "axes", "dtype"])
def test_codes_of_another_shape_or_kind_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"'codes' (has shape \(2(, 3)?,?\), expected \(2, 2\)|is float64, expected integers)"):
        pack(codes, NIBBLES)


@pytest.mark.parametrize("blocks", [np.zeros((2, 2), np.uint8), np.zeros((2, 1), np.int8), np.zeros(2, np.uint8)])
def test_blocks_of_another_shape_or_dtype_are_refused(blocks: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"blocks are u?int8 \(2.*\), expected uint8 \(n_blocks, 1\)"):
        unpack(blocks, NIBBLES)


def test_a_layout_without_bit_planes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"layout 'float16' holds no codes in bit planes"):
        unpack(np.zeros((1, 2), np.uint8), formats.dense.dense("float16").parts[0].layout)


def test_products_and_methods_are_warm() -> None:
    form, inputs = formats.find("int4_g128"), np.random.default_rng(1).standard_normal((300, 512))
    warm([form])
    before = n_kernels()

    weights = inputs[:40].astype(np.float32)
    known = qformat.calibrate([{"w": inputs}])["w"]
    packed = [qformat.quantize(weights, form, method=how, calibration=known) for how in ("gptq", "awq")]
    for n_rows in (1, 2, 3, 5, 16, 17):
        qformat.matmul(weights[:n_rows], packed[0])
        qformat.integer_matmul(qformat.quantize(weights[:n_rows], form), packed[0])

    assert n_kernels() == before


def test_warming_up_twice_makes_no_kernel_twice() -> None:
    some = formats.GGUF[:2]

    assert warm(some) == warm(some) >= 3 * len(some)
