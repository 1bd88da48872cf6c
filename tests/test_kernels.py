"""The kernels against the slow reference, over the whole catalogue. Also run with NUMBA_DISABLE_JIT=1, as plain Python."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from qformat import formats, reference
from qformat.arrays import Memory
from qformat.bits import DTYPES
from qformat.errors import UsageError
from qformat.fields import numpy_dtype, value_dtype
from qformat.formats import Format
from qformat.kernels.evaluate import evaluate
from qformat.kernels.planes import check_codes, pack, unpack
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Op
from qformat.tensor import PackedTensor, assemble

PACKED = (*formats.GGUF, *formats.PLANAR)
FLOATS = tuple(form for form in formats.DENSE if DTYPES[form.name].kind == "float" and form.name != "float64")
LAYOUTS = {
    part.layout.name: part.layout
    for form in (*PACKED, *FLOATS)
    for part in form.parts
    if any(isinstance(field, Bits) for field in part.layout.parts)
}
SPECIAL = {  # the patterns that go wrong first: zeros of both signs, subnormals, the largest, infinities, NaN
    "float16": (0x3C00, 0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0xC900),
    "float32": (0x3F800000, 0x00000000, 0x80000000, 0x00000001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000),
    "float8_e8m0fnu": (0, 1, 127, 128, 254, 255),
    "float8_e8m0half": (0, 1, 127, 128, 254, 255),
}
SHAPES = [(1, 32), (3, 96), (5, 50), (2, 1), (4, 129), (0, 64), (3, 0), (2, 2, 40)]

every_format = pytest.mark.parametrize("form", [*PACKED, *FLOATS], ids=lambda form: f"{form.name}-{form.parts[0].role}")
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_bytes(n_bytes: int, seed: int = 7) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, n_bytes, dtype=np.uint8)


def tensor_of(form: Format, shape: tuple[int, ...]) -> PackedTensor:
    """Fill a format with random bytes, the special patterns in every second of its whole values."""
    sources = {}
    for n, part in enumerate(form.parts):
        data = random_bytes(form.part_bytes(shape)[part.role], seed=n)
        blocks = data.reshape(-1, part.layout.n_bytes)
        for field in part.layout.parts:
            if isinstance(field, Field) and field.dtype in SPECIAL:
                patterns = np.resize(np.array(SPECIAL[field.dtype], f"<u{field.n_bytes}"), (len(blocks) + 1) // 2)
                blocks[::2, field.at : field.at + field.n_bytes] = patterns.view(np.uint8).reshape(-1, field.n_bytes)
        data.flags.writeable = False
        sources[part.role] = Memory(data)
    return assemble(form, shape, sources)


def one_nan(array: NDArray[Any]) -> bytes:
    """Give the bytes of an array with every NaN alike: which one comes out of two NaN operands is up to the processor."""
    quiet = array.copy()
    quiet[np.isnan(array.astype(np.float32))] = np.nan
    return quiet.tobytes()


def rounded(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return array.astype(numpy_dtype(dtype))


def one_block_fields(layout: Layout, blocks: NDArray[np.uint8], field: Bits) -> list[list[int]]:
    return [reference.unpack(block.tobytes(), layout)[field.name] for block in blocks]


def integer_dtype(field: Bits) -> np.dtype[Any]:
    return np.dtype(np.int32) if field.dtype else value_dtype(field)  # a pattern is read as an integer first


def packed_fields(layout: Layout) -> list[Bits]:
    return [field for field in layout.parts if isinstance(field, Bits)]


@every_layout
def test_unpacking_random_blocks_equals_the_reference(layout: Layout) -> None:
    blocks = random_bytes(24 * layout.n_bytes).reshape(24, layout.n_bytes)
    for field in packed_fields(layout):
        out = np.empty((24, field.count), integer_dtype(field))
        unpack(blocks[:, None, :], field, out)
        assert out.tolist() == one_block_fields(layout, blocks, field)


@every_layout
def test_packing_what_was_unpacked_returns_every_byte(layout: Layout) -> None:
    blocks = random_bytes(24 * layout.n_bytes).reshape(24, layout.n_bytes)
    again = np.zeros_like(blocks)
    for field in layout.parts:
        if isinstance(field, Bits):
            values = np.empty((24, field.count), integer_dtype(field))
            unpack(blocks[:, None, :], field, values)
            pack(values, field, again)
        else:
            again[:, field.at : field.at + field.n_bytes] = blocks[:, field.at : field.at + field.n_bytes]
    assert again.tobytes() == blocks.tobytes()


@every_layout
def test_every_code_survives_packing(layout: Layout) -> None:
    for field in packed_fields(layout):
        codes = np.arange(field.low, field.high + 1, 251 if field.width > 11 else 1)  # of a float16 pattern some
        values = np.resize(codes, (-(-codes.size // field.count), field.count)).astype(np.int32)
        blocks = np.zeros((len(values), layout.n_bytes), np.uint8)
        pack(values, field, blocks)
        assert one_block_fields(layout, blocks, field) == values.tolist()


@every_shape
@every_format
def test_decoding_equals_the_reference(form: Format, shape: tuple[int, ...]) -> None:
    tensor = tensor_of(form, shape)
    decoded = tensor.dequantize()
    assert decoded.shape == shape
    assert one_nan(decoded) == one_nan(reference.decode(tensor))


@every_format
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_decoding_to_a_smaller_float_rounds_the_float32_value_once(form: Format, dtype: str) -> None:
    tensor = tensor_of(form, (6, 96))
    if form.name == dtype:
        assert tensor.dequantize(dtype).tobytes() == tensor.part("codes").source.read(0, tensor.n_bytes).tobytes()
    else:
        assert one_nan(tensor.dequantize(dtype)) == one_nan(rounded(reference.decode(tensor), dtype))


@pytest.mark.parametrize("form", PACKED, ids=lambda form: f"{form.name}-{form.parts[0].role}")
@pytest.mark.parametrize("last", range(6))
@pytest.mark.parametrize("first", range(6))
def test_a_range_of_rows_equals_those_rows_of_the_whole(form: Format, first: int, last: int) -> None:
    tensor = tensor_of(form, (5, 50))
    assert tensor.dequantize(rows=slice(first, last)).tobytes() == tensor.dequantize()[first:last].tobytes()


OUTS: dict[str, Callable[[tuple[int, int], Any], NDArray[Any]]] = {
    "every second column": lambda shape, dtype: np.zeros((shape[0], 2 * shape[1]), dtype)[:, ::2],
    "every second row": lambda shape, dtype: np.zeros((2 * shape[0], shape[1]), dtype)[::2],
    "column order": lambda shape, dtype: np.zeros(shape[::-1], dtype).T,
    "backwards": lambda shape, dtype: np.zeros(shape, dtype)[::-1, ::-1],
    "unaligned": lambda shape, dtype: (
        np.zeros(shape[0] * shape[1] * np.dtype(dtype).itemsize + 1, np.uint8)[1:].view(dtype).reshape(shape)
    ),
}


@pytest.mark.parametrize("form", PACKED, ids=lambda form: f"{form.name}-{form.parts[0].role}")
@pytest.mark.parametrize("out", OUTS.values(), ids=OUTS.keys())
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_any_strides_of_out_hold_the_same_values(form: Format, out: Callable[..., NDArray[Any]], dtype: type) -> None:
    tensor = tensor_of(form, (3, 70))
    given = out((3, 70), dtype)
    name = np.dtype(dtype).name
    assert tensor.dequantize(name, out=given) is given
    assert given.tobytes() == tensor.dequantize(name).tobytes()


STRIDED_BLOCKS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "read-only": lambda blocks: np.frombuffer(blocks.tobytes(), np.uint8).reshape(blocks.shape),
    "backwards": lambda blocks: blocks[::-1].copy()[::-1],
    "apart": lambda blocks: np.repeat(blocks, 3, axis=1)[:, ::3],
    "bytes apart": lambda blocks: np.repeat(blocks, 2, axis=-1)[..., ::2],
    "words apart": lambda blocks: np.moveaxis(np.moveaxis(blocks, -2, 0).copy(), 0, -2),
}
FIVE = Bits("q", (Plane(0, 4, "h=2 j=16 -> j h"), Plane(16, 1, shift=4)), 32, minus=16, holds="codes")
FIVE_BITS = Layout("five", 32, 20, (FIVE,))


@pytest.mark.parametrize("strided", STRIDED_BLOCKS.values(), ids=STRIDED_BLOCKS.keys())
def test_any_strides_of_blocks_unpack_alike(strided: Callable[..., NDArray[np.uint8]]) -> None:
    blocks = strided(random_bytes(2 * 3 * 20).reshape(2, 3, 5, 4))
    out = np.empty((2, 3, 32), np.int8)
    unpack(blocks, FIVE, out)
    assert out.reshape(6, 32).tolist() == one_block_fields(FIVE_BITS, blocks.reshape(6, 20), FIVE)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
@pytest.mark.parametrize("lead", [(6,), (2, 3), (1, 2, 3), (1, 3, 1, 2)], ids=str)
def test_any_number_of_stored_axes_and_any_wide_enough_integer_unpack_alike(lead: tuple[int, ...], dtype: type) -> None:
    blocks = random_bytes(6 * 20)
    out = np.empty((32, *lead), dtype)
    unpack(blocks.reshape(*lead, 1, 20), FIVE, np.moveaxis(out, 0, -1))
    assert np.moveaxis(out, 0, -1).reshape(6, 32).tolist() == one_block_fields(FIVE_BITS, blocks.reshape(6, 20), FIVE)


def test_no_blocks_unpack_to_no_codes() -> None:
    unpack(np.empty((0, 1, 20), np.uint8), FIVE, np.empty((0, 32), np.int8))


def test_an_output_that_cannot_hold_the_codes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'q' holds -16 to 15, which uint8 cannot hold"):
        unpack(np.zeros((1, 1, 20), np.uint8), FIVE, np.empty((1, 32), np.uint8))


def test_an_output_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'q' has shape \(1, 31\), expected \(1, 32\)"):
        unpack(np.zeros((1, 1, 20), np.uint8), FIVE, np.empty((1, 31), np.int8))


def test_blocks_shorter_than_a_field_are_refused() -> None:
    with pytest.raises(UsageError, match=r"blocks of 19 bytes, expected at least 20 for 'q'"):
        unpack(np.zeros((1, 1, 19), np.uint8), FIVE, np.empty((1, 32), np.int8))


def test_a_code_out_of_range_is_refused_with_its_place() -> None:
    values = np.zeros((2, 32), np.int64)
    values[1, 5] = 16
    with pytest.raises(UsageError, match=r"'q' has the value 16 at index \(1, 5\), expected -16 to 15"):
        check_codes(values, FIVE)


def chain_of(*steps: tuple[Op, float]) -> tuple[tuple[Op, NDArray[np.float32]], ...]:
    return tuple((op, np.full((1, 1), operand, np.float32)) for op, operand in steps)


@pytest.mark.parametrize("n_steps", range(10))
def test_a_chain_of_any_length_rounds_after_every_step(n_steps: int) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(-128, 128, (4, 21)).astype(np.int8)
    operands = rng.standard_normal((n_steps, 4, 3)).astype(np.float32)
    ops = [(Op.SUB, np.subtract), (Op.MUL, np.multiply), (Op.DIV, np.divide), (Op.ADD, np.add)]
    expected = codes.astype(np.float32)
    for step, operand in enumerate(operands):
        expected = ops[step % 4][1](expected, np.repeat(operand, 8, axis=1)[:, :21])
    out = np.empty((4, 21), np.float32)
    evaluate(codes, None, tuple((ops[i % 4][0], operand) for i, operand in enumerate(operands)), 8, out)
    assert out.tobytes() == expected.tobytes()


def test_a_product_and_a_sum_are_never_fused() -> None:
    """15 * (1 + 2**-23) is 15 + 15 * 2**-23, which needs a rounding: fused with -15 it would leave 15 * 2**-23."""
    codes = np.full((1, 64), 15, np.uint8)
    out = np.empty((1, 64), np.float32)
    evaluate(codes, None, chain_of((Op.MUL, 1 + 2.0**-23), (Op.ADD, -15.0)), 64, out)
    assert out.tolist() == [[2.0**-19] * 64]


def test_dividing_by_zero_is_infinity() -> None:
    out = np.empty((1, 2), np.float32)
    evaluate(np.array([[3, -3]], np.int8), None, chain_of((Op.DIV, 0.0)), 2, out)
    assert out.tolist() == [[np.inf, -np.inf]]


@pytest.mark.parametrize("code", [5, -1])
def test_a_code_outside_its_table_is_refused(code: int) -> None:
    with pytest.raises(UsageError, match=rf"code {code} is outside the table of 5 values"):
        evaluate(np.array([[0, code]], np.int8), np.zeros(5, np.float32), (), 2, np.empty((1, 2), np.float32))


def test_an_operand_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"operand of 'mul' has shape \(1, 1\), expected \(1, 2\)"):
        evaluate(np.zeros((1, 9), np.int8), None, chain_of((Op.MUL, 1.0)), 8, np.empty((1, 9), np.float32))


def test_smaller_floats_are_rounded_to_nearest_even_with_infinities_and_signs_kept() -> None:
    table = np.array([1.00048828125, 1.00146484375, 65519.0, 65520.0, -0.0, 2.0**-25, np.nan, -np.inf], np.float32)
    codes = np.arange(8, dtype=np.uint8)[None]
    half, brain = np.empty((1, 8), np.float16), np.empty((1, 8), ml_dtypes.bfloat16)
    evaluate(codes, table, (), 8, half)
    evaluate(codes, table, (), 8, brain)
    assert half.view(np.uint16)[0, [0, 1, 2, 3, 4, 5, 7]].tolist() == [0x3C00, 0x3C02, 0x7BFF, 0x7C00, 0x8000, 0, 0xFC00]
    assert brain.view(np.uint16)[0, [0, 1, 2, 3, 4, 5, 7]].tolist() == [0x3F80, 0x3F80, 0x4780, 0x4780, 0x8000, 0x3300, 0xFF80]
    assert np.isnan(half[0, 6])
    assert np.isnan(brain[0, 6])


def test_threads_decode_the_same_bytes() -> None:
    tensor = tensor_of(formats.find("int5_g64"), (64, 96))
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda low: tensor.dequantize(rows=slice(low, low + 1)), range(64)))
    assert b"".join(part.tobytes() for part in parts) == tensor.dequantize().tobytes()
