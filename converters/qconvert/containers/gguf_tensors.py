"""Tensor infos of a GGUF header: read, checked, and placed in the file.

Decides whether names, dimensions, types and offsets keep ggml's rules, and which bytes are whose. Offsets must be the
running sum of padded sizes: no gap, no overlap, no other order. Must not know key-values, nor what a block's bytes
mean. Standard library alone.

Source: ggml-org/ggml: src/gguf.cpp (gguf_init_from_file_impl), 0.26.0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from qconvert.containers.cursor import Cursor
from qconvert.containers.gguf_types import GGML_TYPES, OPAQUE_TYPES, REMOVED_TYPES, type_name
from qformat.errors import FileError

MAX_NAME_BYTES = 63  # ggml keeps names in 64 bytes with a terminator
MAX_DIMS = 4
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # an empty name, no dimensions, type, offset
MAX_TENSOR_BYTES = MIN_TENSOR_BYTES + MAX_NAME_BYTES + 8 * MAX_DIMS
WINDOW = 4096  # tensor infos looked at together
I64_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: looked up for every tensor
class Kind:
    """What tensors have in common that differ in name and place alone.

    dims    : in file order, dims[0] fastest
    type_id : of the blocks
    """

    dims: tuple[int, ...]
    type_id: int


# A tensor info as read: name, kind, offset from the data start, position of the record.
Record: TypeAlias = tuple[str, Kind, int, int]
Cut: TypeAlias = Callable[[bytes, int], tuple[Any, ...]]


class TensorInfo(NamedTuple):  # a tuple: files hold a hundred thousand, and it is made in a sixth of a dataclass's time
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
    """Read `count` tensor infos at the cursor, in one loop with few calls: files of 100 000 tensors exist.

    A record whose lengths and whose kind stood in another before is cut at once, any other field by field.

    Raises FileError for long, repeated or undecodable names, more than four dimensions, and a file that ends too early.
    """
    data, order = cursor.data, cursor.order
    low_of_name, low_of_rank = (0, 8) if order == "<" else (7, 11)  # where the lowest bytes of the two lengths are
    records: list[Record] = []
    cuts: dict[int, tuple[Cut, int]] = {}  # by the two lengths: what cuts such a record, and its bytes
    kinds: dict[bytes, Kind] = {}
    for first in range(0, count, WINDOW):
        base = cursor.pos
        # Copied: bytes are cut faster than a view is, and a window is a bounded share of them.
        window, pos = bytes(data[base : base + WINDOW * MAX_TENSOR_BYTES]), 0
        for index in range(first, min(count, first + WINDOW)):
            try:
                n_name = window[pos + low_of_name]
                cut, n_bytes = cuts[n_name << 8 | window[pos + n_name + low_of_rank]]
                length, raw, stored, relative = cut(window, pos)
                name, kind = raw.decode(), kinds[stored]
                is_cut = length == n_name
            except (LookupError, UnicodeDecodeError, struct.error):
                is_cut = False
            if not is_cut:
                try:
                    name, raw, stored, relative = _read_info(cursor, window, pos, index)
                except FileError:
                    _check_names(records, cursor.path)  # of two errors the first is told
                    raise
                n_name, n_kind = len(raw), len(stored)
                n_bytes = 16 + n_name + n_kind
                cut = struct.Struct(f"{order}Q{n_name}s{n_kind}sQ").unpack_from
                cuts[n_name << 8 | (n_kind // 8 - 1)] = cut, n_bytes
                *dims, type_id = struct.unpack(f"{order}4x{n_kind // 8 - 1}QI", stored)
                kind = kinds.setdefault(stored, Kind(tuple(dims), type_id))
            records.append((name, kind, relative, base + pos))
            pos += n_bytes
        cursor.pos = base + pos
    _check_names(records, cursor.path)
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
    sizes: dict[Kind, tuple[int, int | None]] = {}  # weights, and bytes where the type says them
    make = partial(tuple.__new__, TensorInfo)
    expected = 0
    for index, (name, kind, relative, start) in enumerate(records):
        found = sizes.get(kind)
        if found is None:
            n_weights = _check_type_and_dims(name, kind.dims, kind.type_id, start, path)
            known = GGML_TYPES.get(kind.type_id)
            found = sizes[kind] = (n_weights, None if known is None else n_weights // known.n_weights * known.n_bytes)
        if relative != expected:
            message = f"offset {relative:#x} from the data start, expected {expected:#x}, where the tensor before ends"
            raise _at(path, name, start, message, "offset", expected, relative)
        n_weights, n_known = found
        n_tensor = _opaque_bytes(records, index, n_weights, n_bytes - data_start, path) if n_known is None else n_known
        start_of_data = data_start + relative
        stop = start_of_data + n_tensor
        if stop > n_bytes and n_tensor:
            message = f"{n_tensor} bytes of data end at {stop:#x}, past the end of the file at {n_bytes:#x}"
            raise _at(path, name, start_of_data, message, "data", stop, n_bytes)
        tensors[name] = make((name, kind.dims, kind.type_id, start_of_data, n_tensor))
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


def _read_info(cursor: Cursor, window: bytes, pos: int, index: int) -> tuple[str, bytes, bytes, int]:
    """Read a tensor info field by field: its name, that as it is stored, rank, dimensions and type as stored, and its offset.

    window : bytes from the cursor on
    index  : of the tensor, for errors
    """
    order, start = cursor.order, cursor.pos + pos
    try:
        (n_name,) = struct.unpack_from(f"{order}Q", window, pos)
        if n_name > MAX_NAME_BYTES:
            message = f"a name of {n_name} bytes, expected at most {MAX_NAME_BYTES}"
            raise cursor.error(message, f"tensor info {index}", start)
        end = pos + 8 + n_name
        raw = window[pos + 8 : end]
        name = raw.decode()
        (rank,) = struct.unpack_from(f"{order}I", window, end)
        if rank > MAX_DIMS:
            message = f"{rank} dimensions, expected at most {MAX_DIMS}"
            raise _at(cursor.path, name, start, message, "n_dims")
        stored = window[end : end + 8 + 8 * rank]
        (relative,) = struct.unpack_from(f"{order}Q", window, end + 8 + 8 * rank)
    except struct.error as err:
        message = f"the file ends inside the record, {len(cursor.data) - start} bytes after its start"
        raise cursor.error(message, f"tensor info {index}", start) from err
    except UnicodeDecodeError as err:
        message = "the name is not UTF-8, expected UTF-8 text"
        raise cursor.error(message, f"tensor info {index}", start + 8 + err.start) from err
    return name, raw, stored, relative


def _check_names(records: list[Record], path: str | None) -> None:
    """Refuse a name that stands twice."""
    if len(set(map(itemgetter(0), records))) == len(records):
        return
    names: set[str] = set()
    for name, _, _, start in records:
        if name in names:
            raise _at(path, name, start, "the name stands twice, expected unique names", "name")
        names.add(name)


def _opaque_bytes(records: list[Record], index: int, n_weights: int, n_data: int, path: str | None) -> int:
    """Give the bytes of a tensor whose type does not say them: up to the next one, or the end of the file."""
    name, _, relative, start = records[index]
    following = records[index + 1][2] if index + 1 < len(records) else n_data
    n_tensor = following - relative if n_weights else 0
    if n_weights and n_tensor <= 0:
        message = f"{max(n_tensor, 0)} bytes up to what follows, expected some for {n_weights} weights"
        raise _at(path, name, start, message, "offset", found=n_tensor)
    return n_tensor


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
