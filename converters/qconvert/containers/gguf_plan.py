"""Plan a GGUF file: the bytes of its header, and where each tensor goes.

Decides what a new header says and how an old one is taken over. A planned header is read back by the reader's own
rules, so nothing is written that would not be opened. Must not know where tensors' bytes come from, nor touch a file.

Source: ggml-org/ggml: src/gguf.cpp (gguf_write_to_buf), 0.26.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from qconvert.containers.gguf import Recipe
from qconvert.containers.gguf_header import Header, parse_header
from qconvert.containers.gguf_tensors import TensorInfo, align, tensor_bytes
from qconvert.containers.gguf_types import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GGML_TYPES, MAGIC, UINT32
from qconvert.containers.gguf_values import ByteOrder, KeyValue, key_value
from qformat.errors import FileError, UsageError

# Name, dims in file order (fastest first), type id, bytes without padding.
PlannedTensor: TypeAlias = tuple[str, Sequence[int], int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """All bytes of a GGUF file but its tensors'.

    tensors : each one's place, in file order
    n_bytes : of the whole file
    parts   : (byte offset, bytes) of the header and of padding that is not zeros
    """

    tensors: tuple[TensorInfo, ...]
    n_bytes: int
    parts: tuple[tuple[int, bytes], ...]


def plan_gguf(
    key_values: Iterable[KeyValue],
    tensors: Iterable[PlannedTensor],
    alignment: int | None = None,
    version: int = 3,
    byte_order: ByteOrder = "<",
) -> Plan:
    """Make the header of a new file and place its tensors as ggml does; the last one is padded too.

    key_values: written in this order; those read from a file as the bytes they were
    tensors   : (name, dims fastest first, type id, n_bytes) in the order of the file
    alignment : by default what `general.alignment` says, else 32; another value adds that key
    byte_order: of the header; the tensors' bytes are the caller's

    Raises UsageError when GGUF cannot hold what was asked for.
    """
    pairs, planned = list(key_values), list(tensors)
    alignment = _settle_alignment(pairs, alignment, byte_order)
    header, n_file = _encode_header(pairs, planned, alignment, version, byte_order)
    try:
        parsed = parse_header(memoryview(header), n_file)
    except FileError as err:
        raise UsageError(err.message, tensor=err.tensor, field=err.field, expected=err.expected, found=err.found) from err
    infos = tuple(parsed.tensors.values())
    for info, (name, _, _, n_bytes) in zip(infos, planned, strict=True):
        if info.n_bytes != n_bytes:
            message = f"{n_bytes} bytes were planned, expected {info.n_bytes} ({info.type_name})"
            raise UsageError(message, tensor=name, expected=info.n_bytes, found=n_bytes)
    return Plan(infos, n_file, ((0, header),))


def plan_from_recipe(recipe: Recipe) -> Plan:
    """Take header and padding from what `GGUFFile.recipe` kept, so that the same file comes back byte for byte.

    Raises FileError when the recipe contradicts itself.
    """
    n_file, n_header = (_count(recipe.facts.get(field), field) for field in ("n_bytes", "header_n_bytes"))
    header = parse_header(memoryview(recipe.blob)[:n_header], n_file)
    if n_header != min(header.data_start, n_file):
        message = f"{n_header} bytes of header, expected {min(header.data_start, n_file)}"
        raise FileError(message, field="header_n_bytes", expected=header.data_start, found=n_header)
    parts = [(0, bytes(recipe.blob[:n_header]))]
    pos = n_header
    for start, n_bytes in _paddings(recipe, header):
        parts.append((start, recipe.blob[pos : pos + n_bytes]))
        pos += n_bytes
    if pos != len(recipe.blob):
        message = f"header and paddings take {pos} bytes, the recipe holds {len(recipe.blob)}"
        raise FileError(message, field="paddings", expected=pos, found=len(recipe.blob))
    return Plan(tuple(header.tensors.values()), n_file, tuple(parts))


def _encode_header(
    pairs: list[KeyValue], planned: list[PlannedTensor], alignment: int, version: int, byte_order: ByteOrder
) -> tuple[bytes, int]:
    """Give the header, padded if tensors follow, and the length of the whole file."""
    parts: list[bytes | memoryview] = [MAGIC, _pack(f"{byte_order}IQQ", "counts", version, len(planned), len(pairs))]
    for pair in pairs:
        parts += pair.encode(byte_order)
    stop = end = 0
    for name, dims, type_id, n_bytes in planned:
        parts.append(_encode_info(name, dims, type_id, end, byte_order))
        stop = end + (tensor_bytes(tuple(dims), type_id) if type_id in GGML_TYPES else n_bytes)
        end = align(stop, alignment)
    if planned and planned[-1][2] not in GGML_TYPES:
        end = stop  # an opaque tensor reaches up to the end of the file, which therefore is not padded
    header = b"".join(parts)
    if planned:
        header += bytes(-len(header) % alignment)
    return header, len(header) + end


def _settle_alignment(pairs: list[KeyValue], alignment: int | None, byte_order: ByteOrder) -> int:
    """Give the alignment that both the argument and the pairs ask for, adding a pair if none says it."""
    stated = next((pair.value for pair in pairs if pair.key == ALIGNMENT_KEY), None)
    value = alignment if stated is None or alignment is not None else stated
    value = DEFAULT_ALIGNMENT if value is None else value
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise UsageError(f"alignment {value}, expected a power of two", field=ALIGNMENT_KEY, found=value)
    if stated is not None and value != stated:
        message = f"alignment {value}, expected {stated} as the key-value says"
        raise UsageError(message, field=ALIGNMENT_KEY, expected=stated, found=value)
    if stated is None and value != DEFAULT_ALIGNMENT:
        pairs.append(key_value(ALIGNMENT_KEY, UINT32, value, byte_order=byte_order))
    return value


def _encode_info(name: str, dims: Sequence[int], type_id: int, relative: int, byte_order: ByteOrder) -> bytes:
    try:
        text = name.encode()
    except UnicodeEncodeError as err:
        raise UsageError("the name holds an unpaired surrogate, which UTF-8 cannot hold", tensor=name) from err
    numbers = (len(dims), *dims, type_id, relative)
    return struct.pack(f"{byte_order}Q", len(text)) + text + _pack(f"{byte_order}I{len(dims)}QIQ", name, *numbers)


def _pack(layout: str, owner: str, *numbers: int) -> bytes:
    try:
        return struct.pack(layout, *numbers)
    except struct.error as err:
        raise UsageError(f"{owner}: {', '.join(map(str, numbers))} do not fit in a header: {err}") from err


def _paddings(recipe: Recipe, header: Header) -> list[tuple[int, int]]:
    """Check that the recipe's paddings are ranges that the header leaves to nobody, in the order of the file."""
    found, gaps = recipe.facts.get("paddings"), dict(zip(*header.gaps(), strict=True))
    if not isinstance(found, list):
        raise FileError(f"found {type(found).__name__}, expected a list", field="paddings", found=found)
    paddings: list[tuple[int, int]] = []
    for item in found:
        if not (isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(part, int) for part in item)):
            raise FileError("found something else, expected [byte offset, n_bytes]", field="paddings", found=item)
        start, n_bytes = item
        if gaps.get(start) != start + n_bytes or (paddings and start <= paddings[-1][0]):
            message = f"{n_bytes} bytes, expected a gap between tensors, each once and in order"
            raise FileError(message, field="paddings", offset=start, found=item)
        paddings.append((start, n_bytes))
    return paddings


def _count(value: object, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FileError(f"found {value!r}, expected a number of bytes", field=field, found=value)
    return value
