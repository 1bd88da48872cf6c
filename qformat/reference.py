"""The slow, obvious reader: what every faster path must equal to the bit.

A block is one Python integer, a value is a few of its bits, a weight is looked up by its own row and column. It shares no
code with the kernels or the array reader, only the declarations, and is meant for tests and for reading.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.arrays import Part
from qformat.bits import DTYPES, values
from qformat.decode import find as decode_function
from qformat.errors import UsageError
from qformat.layout import CODES, Bits, Field, Layout
from qformat.scheme import (
    Apply,
    Const,
    Flat,
    Grid,
    Indexed,
    Integers,
    Levels,
    Lookup,
    Op,
    Operand,
    Plain,
    Ref,
    Stored,
    Strided,
)
from qformat.tensor import PackedTensor

Index = tuple[int, ...]


def unpack(block: bytes, layout: Layout) -> dict[str, list[int]]:
    """Read every field of a block.

    block  : layout.n_bytes bytes, least significant byte first
    returns: by field name: the values of packed fields, with what is subtracted from them; the bit patterns of whole values

    Raises UsageError for another number of bytes.
    """
    if len(block) != layout.n_bytes:
        raise UsageError(f"block of {len(block)} bytes, expected {layout.n_bytes} ({layout.name})")
    number = int.from_bytes(block, "little")
    return {part.name: [_read(number, part, i) for i in range(part.count)] for part in layout.parts}


def pack(fields: dict[str, list[int]], layout: Layout) -> bytes:
    """Write a block: the opposite of `unpack`.

    Raises UsageError for a value that its field cannot hold.
    """
    number = 0
    for part in layout.parts:
        for i, value in enumerate(fields[part.name]):
            places = _places(part, i)
            stored = value + (part.minus if isinstance(part, Bits) else 0)
            low = -(1 << (len(places) - 1)) if isinstance(part, Bits) and part.signed else 0
            if not 0 <= stored - low < 1 << len(places):
                raise UsageError(f"'{part.name}' has the value {value} at index {i}, which {len(places)} bits cannot hold")
            for k, bit in enumerate(places):
                number |= (stored >> k & 1) << bit  # of a negative number too: Python's shifts are two's complement
    return number.to_bytes(layout.n_bytes, "little")


def decode(tensor: PackedTensor, input_scale: bool = True) -> NDArray[np.float32]:
    """Give every weight as float32, one by one; shape `tensor.shape`.

    input_scale : apply a per-column input scale, part of the effective weight

    Raises UsageError for weights that are no floats, and for opaque codes.
    """
    out = np.empty((tensor.n_rows, tensor.n_cols), np.float32)
    with np.errstate(all="ignore"):
        for row in range(tensor.n_rows):
            for column in range(tensor.n_cols):
                out[row, column] = weight(tensor, row, column, input_scale)
    return out.reshape(tensor.shape)


def weight(tensor: PackedTensor, row: int, column: int, input_scale: bool = True) -> np.float32:
    """Give one weight by its row and column in the folded matrix.

    Raises UsageError for opaque codes.
    """
    scheme = tensor.scheme
    code = code_of(tensor, row, column)
    value: Any
    if isinstance(scheme.alphabet, Integers):
        value = np.float32(code)
    elif isinstance(scheme.alphabet, Levels):
        value = np.float32(scheme.alphabet.levels[code])
    elif isinstance(scheme.alphabet, Stored):
        value = param_value(tensor, scheme.alphabet.table, (code,))
    elif isinstance(scheme.alphabet, Plain):
        return element(code, scheme.alphabet.dtype)
    else:
        raise UsageError(f"the codes of scheme '{scheme.name}' are opaque, expected codes that its layout spells out")
    for step in scheme.steps:
        value = _apply(step.op, value, _operand(tensor, step.operand, row, column))
    if scheme.input_scale and input_scale:
        value = _apply(Op.MUL, value, _operand(tensor, Ref(scheme.input_scale), row, column))
    return np.float32(value)


def code_of(tensor: PackedTensor, row: int, column: int) -> int:
    """Give the code of one weight by its row and column in the folded matrix; the bits of a dense one."""
    part = tensor.part("codes")
    return _value(part, "codes", _digits(row * tensor.n_cols + column, part.bound.dims))


def group_index(tensor: PackedTensor, name: str, row: int, column: int) -> Index:
    """Find which value of a parameter a weight uses: its index in the logical array.

    Raises UsageError for a table, which weights do not share.
    """
    group = tensor.scheme.param(name).group
    number = row * tensor.n_cols + column  # of the weight in the flattened tensor
    if isinstance(group, Grid):
        return (row // group.rows if group.rows else 0, column // group.cols if group.cols else 0)
    if isinstance(group, Flat):
        return (number // group.n_weights,)
    if isinstance(group, Strided):
        return (number % math.ceil(tensor.n_weights / group.n_weights),)
    if isinstance(group, Indexed):
        return (row, int(param_value(tensor, group.index, (column,))))
    raise UsageError(f"'{name}' is a table, expected a parameter that weights share")


def param_value(tensor: PackedTensor, name: str, index: Index) -> np.float32:
    """Give the float32 value of a parameter at an index of its logical array."""
    param, part = tensor.scheme.param(name), tensor.part(name)
    if not part.form.layout.n_weights and len(part.bound.dims) != len(index):
        index = _digits(_number(index, param.group.counts(tensor.n_rows, tensor.n_cols)), part.bound.dims)
    stored = _value(part, name, index)
    field = part.form.layout.part(name)
    is_number = isinstance(field, Bits) and not field.dtype
    return np.float32(stored) if is_number else element(stored, param.dtype)


@lru_cache(maxsize=4096)
def codes(block: bytes, layout: Layout) -> tuple[int, ...]:
    """Give the codes of a block, those that the layout's decode function makes of its pieces among them.

    Raises UsageError for another number of bytes, and for a block without codes.
    """
    fields, field = _fields(block, layout), layout.part(CODES)
    return tuple(fields[field.name]) if field is not None else _made(block, layout)


def element(pattern: int, dtype: str) -> np.float32:
    """Give the float32 value of a stored element.

    pattern : its bits, or the value of a packed integer
    dtype   : element type; wider types round once
    """
    kind = DTYPES[dtype]
    if kind.kind in ("int", "uint"):
        high = 1 << (kind.bits - 1)
        return np.float32(pattern - 2 * high if kind.kind == "int" and pattern >= high else pattern)
    if kind.kind == "float" and kind.bits <= 8:
        return np.float32(values(dtype)[pattern])
    if dtype == "bfloat16":
        return element(pattern << 16, "float32")
    if kind.kind != "float":
        raise UsageError(f"elements are {dtype}, expected numbers that float32 can round")
    code = {16: ("H", "e"), 32: ("I", "f"), 64: ("Q", "d")}[kind.bits]
    return np.float32(struct.unpack(f"<{code[1]}", struct.pack(f"<{code[0]}", pattern))[0])


def _places(part: Field | Bits, i: int) -> list[int]:
    """List the bits of the block that hold value `i`, least significant first."""
    if isinstance(part, Field):
        width = 8 * part.n_bytes // part.count
        return list(range(8 * part.at + i * width, 8 * part.at + (i + 1) * width))
    places = {}
    for plane in part.planes:
        first = plane.strides(part.count).positions()[i]
        places.update({plane.shift + k: first + k for k in range(plane.bits)})
    return [places[k] for k in sorted(places)]


def _read(number: int, part: Field | Bits, i: int) -> int:
    places = _places(part, i)
    stored = sum((number >> bit & 1) << k for k, bit in enumerate(places))
    if isinstance(part, Field):
        return stored
    return stored - (part.signed and stored >> (len(places) - 1)) * (1 << len(places)) - part.minus


def _apply(op: Op, left: np.float32, right: np.float32) -> np.float32:
    if op is Op.MUL:
        return left * right
    if op is Op.DIV:
        return left / right
    return left + right if op is Op.ADD else left - right


def _operand(tensor: PackedTensor, operand: Operand, row: int, column: int) -> np.float32:
    if isinstance(operand, Const):
        return np.float32(operand.value)
    if isinstance(operand, Apply):
        left, right = (_operand(tensor, side, row, column) for side in (operand.left, operand.right))
        return _apply(operand.op, left, right)
    if isinstance(operand, Lookup):
        entry = int(param_value(tensor, operand.index, group_index(tensor, operand.index, row, column)))
        return param_value(tensor, operand.table, (entry,))
    return param_value(tensor, operand.name, group_index(tensor, operand.name, row, column))


def _value(part: Part, holds: str, index: Index) -> int:
    """Find the block that holds a value, and the value in it."""
    tiling, size = part.bound.tiling, dict(part.bound.size)
    layout = part.form.layout
    field = layout.part(holds)
    inner = [name for name, _, _ in tiling.inner]
    if field is not None and field.count != math.prod(size[name] for name in inner):
        size.update(dict.fromkeys(inner, 1) | {inner[-1]: field.count})
    at: dict[str, int] = {}
    for group, i in zip(tiling.logical, index, strict=True):
        at.update(zip(group, _digits(i, tuple(size[name] for name in group)), strict=True))
    block = _block(part, tuple(at.get(name, 0) for name, _, _ in tiling.stored))
    values = _made(block, layout) if field is None else _fields(block, layout)[field.name]
    return values[_number([at[name] for name in inner], [size[name] for name in inner])]


@lru_cache(maxsize=4096)
def _made(block: bytes, layout: Layout) -> tuple[int, ...]:
    """Give the values that the layout's decode function makes of its pieces."""
    fields = _fields(block, layout)
    pieces = {piece: np.array([fields[part.name]]) for piece, part in layout.pieces.items()}
    return tuple(int(value) for value in decode_function(layout.unpacker).unpack(pieces)[0])


def _block(part: Part, at: Index) -> bytes:
    """Gather the bytes of the block at these stored coordinates, the axis of its words at 0."""
    names = [name for name, _, _ in part.bound.tiling.stored]
    shape = part.bound.stored_shape
    words = range(part.bound.size[part.bound.tiling.word_axis]) if part.bound.tiling.word_axis else range(1)
    block = b""
    for word in words:
        place = [word if name == part.bound.tiling.word_axis else i for name, i in zip(names, at, strict=True)]
        start = _number(place, shape[:-1]) * shape[-1]
        block += part.source.read(start, start + shape[-1]).tobytes()
    return bytes(block[i] for i in part.form.layout.swap) if part.swapped else block


@lru_cache(maxsize=4096)
def _fields(block: bytes, layout: Layout) -> dict[str, list[int]]:
    return unpack(block, layout)


def _number(digits: Index | list[int], sizes: Index | list[int]) -> int:
    """Give the number that mixed-radix digits, most significant first, spell."""
    number = 0
    for digit, size in zip(digits, sizes, strict=True):
        number = number * size + digit
    return number


def _digits(number: int, sizes: Index) -> Index:
    """Spell a number in mixed-radix digits, most significant first."""
    digits = []
    for size in reversed(sizes):
        number, digit = divmod(number, size)
        digits.append(digit)
    return tuple(reversed(digits))
