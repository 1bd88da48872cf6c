"""Tensor infos of a GGUF header: read, checked, and placed in the file.

Decides whether names, dimensions, types and offsets keep ggml's rules, and which bytes are whose. Offsets must be the
running sum of padded sizes: no gap, no overlap, no other order. Must not know key-values, nor what a block's bytes
mean. Standard library alone.

Source: ggml-org/ggml: src/gguf.cpp (gguf_init_from_file_impl), 0.26.0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

from qconvert.containers.cursor import Cursor, text_of
from qconvert.containers.gguf_types import GGML_TYPES, OPAQUE_TYPES, REMOVED_TYPES, type_name
from qformat.errors import FileError

MAX_NAME_BYTES = 63  # ggml keeps names in 64 bytes with a terminator
MAX_DIMS = 4
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # an empty name, no dimensions, type, offset
I64_MAX = (1 << 63) - 1

# A tensor info as read: name, dims, type id, offset from the data start, position of the record.
Record: TypeAlias = tuple[str, tuple[int, ...], int, int, int]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file.

    dims       : in file order, dims[0] fastest
    byte_offset: from the start of the file
    n_bytes    : without padding; of an opaque type, up to the next tensor or the end of the file
    """

    name: str
    dims: tuple[int, ...]
    type_id: int
    byte_offset: int
    n_bytes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical, row-major shape."""
        return self.dims[::-1]

    @property
    def type_name(self) -> str:
        """The type's lower-case name; "type_57" for an opaque id."""
        return type_name(self.type_id)


def read_records(cursor: Cursor, count: int) -> list[Record]:
    """Read `count` tensor infos at the cursor, in one loop without calls: files of 100 000 tensors exist.

    Raises FileError for long, repeated or undecodable names, more than four dimensions, and a file that ends too early.
    """
    data, pos, order = cursor.data, cursor.pos, cursor.order
    read_length = struct.Struct(order + "Q").unpack_from
    read_rank = struct.Struct(order + "I").unpack_from
    read_rest = [struct.Struct(f"{order}{rank}QIQ") for rank in range(MAX_DIMS + 1)]
    records: list[Record] = []
    names: set[str] = set()
    for index in range(count):
        start = pos
        try:
            (n_name,) = read_length(data, pos)
            if n_name > MAX_NAME_BYTES:
                message = f"a name of {n_name} bytes, expected at most {MAX_NAME_BYTES}"
                raise cursor.error(message, f"tensor info {index}", start)
            name = text_of(data[pos + 8 : pos + 8 + n_name])
            pos += 8 + n_name
            (rank,) = read_rank(data, pos)
            if rank > MAX_DIMS:
                raise _at(cursor.path, name, start, f"{rank} dimensions, expected at most {MAX_DIMS}", "n_dims")
            rest = read_rest[rank]
            *dims, type_id, relative = rest.unpack_from(data, pos + 4)
            pos += 4 + rest.size
        except struct.error as err:
            message = f"the file ends inside the record, {len(data) - start} bytes after its start"
            raise cursor.error(message, f"tensor info {index}", start) from err
        except UnicodeDecodeError as err:
            message = "the name is not UTF-8, expected UTF-8 text"
            raise cursor.error(message, f"tensor info {index}", start + 8 + err.start) from err
        if name in names:
            raise _at(cursor.path, name, start, "the name stands twice, expected unique names", "name")
        names.add(name)
        records.append((name, tuple(dims), type_id, relative, start))
    cursor.pos = pos
    return records


def place_tensors(
    records: list[Record], data_start: int, alignment: int, n_bytes: int, path: str | None
) -> dict[str, TensorInfo]:
    """Check types, dimensions and offsets, and give every tensor its place in the file.

    n_bytes: of the whole file
    Raises FileError for a type that does not exist, sizes that wrap, rows that are no multiple of the block, an offset
    other than the running sum, and data that the file does not hold.
    """
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for index, (name, dims, type_id, relative, start) in enumerate(records):
        n_weights = _check_type_and_dims(name, dims, type_id, start, path)
        if relative != expected:
            message = f"offset {relative:#x} from the data start, expected {expected:#x}, where the tensor before ends"
            raise _at(path, name, start, message, "offset", expected, relative)
        kind = GGML_TYPES.get(type_id)
        if kind is not None:
            n_tensor = n_weights // kind.n_weights * kind.n_bytes
        else:
            following = records[index + 1][3] if index + 1 < len(records) else n_bytes - data_start
            n_tensor = following - relative if n_weights else 0
            if n_weights and n_tensor <= 0:
                message = f"{max(n_tensor, 0)} bytes up to what follows, expected some for {n_weights} weights"
                raise _at(path, name, start, message, "offset", found=n_tensor)
        start_of_data = data_start + relative
        stop = start_of_data + n_tensor
        if n_tensor and stop > n_bytes:
            message = f"{n_tensor} bytes of data end at {stop:#x}, past the end of the file at {n_bytes:#x}"
            raise _at(path, name, start_of_data, message, "data", stop, n_bytes)
        tensors[name] = TensorInfo(name, dims, type_id, start_of_data, n_tensor)
        expected = -(-(relative + n_tensor) // alignment) * alignment
    return tensors


def align(byte_offset: int, alignment: int) -> int:
    """Round an offset up to a multiple of the alignment."""
    return -(-byte_offset // alignment) * alignment


def tensor_bytes(dims: tuple[int, ...], type_id: int) -> int:
    """Give the bytes of a tensor of a known type whose first dimension is a multiple of the block.

    >>> tensor_bytes((64, 3), 2)
    108
    """
    kind = GGML_TYPES[type_id]
    n_weights = 1
    for dim in dims:
        n_weights *= dim
    return n_weights // kind.n_weights * kind.n_bytes


def _check_type_and_dims(name: str, dims: tuple[int, ...], type_id: int, start: int, path: str | None) -> int:
    """Refuse types that do not exist and sizes that wrap; give the number of weights."""
    kind = GGML_TYPES.get(type_id)
    if kind is None and type_id not in OPAQUE_TYPES:
        removed = REMOVED_TYPES.get(type_id)
        what = f"was removed from the format ({removed})" if removed else "does not exist"
        raise _at(path, name, start, f"tensor type {type_id} {what}", "type", found=type_id)
    n_weights = 1
    for dim in dims:
        n_weights *= dim
        if dim > I64_MAX or n_weights > I64_MAX:
            message = f"dimensions {' x '.join(map(str, dims))}, expected a product below 2^63"
            raise _at(path, name, start, message, "dims", found=dims)
    if kind is not None and kind.n_weights > 1 and (row := dims[0] if dims else 1) % kind.n_weights:
        message = f"{row} weights per row, expected a multiple of {kind.n_weights} ({kind.name} block)"
        raise _at(path, name, start, message, "dims", kind.n_weights, row)
    return n_weights


def _at(
    path: str | None, tensor: str, offset: int, message: str, field: str, expected: object = None, found: object = None
) -> FileError:
    return FileError(message, path=path, tensor=tensor, field=field, offset=offset, expected=expected, found=found)
