"""Writing a safetensors file: the header first, then bytes of any tensor in any order.

It decides the header's spelling and order, which are the reference writer's, and where each tensor goes. A header kept
from a file is written as it was instead, so that odd but legal files come back byte for byte.
It must not know where bytes come from, nor how they reach the file.

Source: huggingface/safetensors 0.8.0: safetensors/src/tensor.rs, `prepare` and `serialize`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path

from qconvert.containers.places import PlacedWriter
from qconvert.containers.safetensors_header import (
    BITS,
    CODE_OF,
    MAX_HEADER_BYTES,
    METADATA,
    RANK_OF,
    TensorInfo,
    header_length,
    parse_header,
    tensor_n_bytes,
)
from qconvert.containers.strict_json import json_kind, parse_json
from qformat.errors import FileError, UsageError


def write_safetensors(
    path: str | Path,
    tensors: Iterable[tuple[str, str, Sequence[int]]] | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    header: bytes | None = None,
) -> PlacedWriter[str, TensorInfo]:
    """Begin a safetensors file; its tensors are called by name, and stand in the header's order.

    path    : must not exist
    tensors : (name, dtype in our spelling, shape) in any order
    metadata: strings; None writes none
    header  : in place of both, a header taken verbatim from a file

    Raises UsageError when the format cannot hold a tensor or the file cannot be made.
    """
    if (tensors is None) == (header is None):
        raise UsageError("a header is planned from tensors or taken verbatim: give one of the two", path=path)
    header = plan_header(tensors or (), metadata) if header is None else header
    if header_length(header, len(header), Path(path)) != len(header):
        raise UsageError("bytes follow the header, expected the header alone", path=path)
    infos, _ = parse_header(header, None, Path(path))
    n_bytes = len(header) + sum(info.n_bytes for info in infos.values())
    return PlacedWriter(path, infos, n_bytes, [(0, header)])


def plan_header(tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Make the header the reference writer makes for these tensors: length field, text, spaces to a multiple of 8.

    tensors : (name, dtype in our spelling, shape) in any order; the header's order is dtype descending, then name
    metadata: written in its own order, and also when it is empty; None writes none

    Raises UsageError when the format cannot hold one of them.
    """
    members: dict[str, object] = {}
    if metadata is not None:
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise UsageError("the metadata must map strings to strings", field=METADATA)
        members[METADATA] = dict(metadata)
    begin = 0
    checked = [(name, dtype, *_planned_shape(name, dtype, shape)) for name, dtype, shape in tensors]
    for name, dtype, shape, n_bytes in sorted(checked, key=lambda t: (-RANK_OF[t[1]], t[0])):
        if name in members or name == METADATA:
            found = "is the metadata's name" if name == METADATA else "is given twice"
            raise UsageError(f"the name {found}, expected a name of its own", tensor=name)
        end = begin + n_bytes
        members[name] = {"dtype": CODE_OF[dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return _spell(members)


def replace_metadata(header: bytes, metadata: Mapping[str, str], path: str | Path) -> bytes:
    """Make the header of the same tensors with other metadata.

    header  : a legal one, verbatim
    metadata: all of it, in its order; none at all when empty
    returns : as long as `header` where the text fits in it, filled up with spaces; else padded to a multiple of 8

    Raises UsageError when the format cannot hold the metadata.
    """
    members = parse_json(header[8:], path=path, what="header", byte_offset=8)
    if not isinstance(members, dict):
        raise FileError(f"the header is {json_kind(members)}, expected an object", path=path, offset=8)
    first: dict[str, object] = {} if METADATA in members else {METADATA: {}}
    changed = {**first, **members, METADATA: dict(metadata)}
    if not metadata:
        del changed[METADATA]
    return _spell(changed, len(header) - 8)


def _spell(members: Mapping[str, object], n_wanted: int = 0) -> bytes:
    """Write the header's text as the reference writer does, at least as long as wanted, and its length before it."""
    try:
        text = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as err:
        raise UsageError("a name or the metadata holds an unpaired surrogate, which UTF-8 cannot hold") from err
    text = text.ljust(n_wanted) if len(text) <= n_wanted else text + b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise UsageError(f"the header would be {len(text)} bytes long, expected at most {MAX_HEADER_BYTES}; use shards")
    return struct.pack("<Q", len(text)) + text


def _planned_shape(name: str, dtype: str, shape: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Check a tensor to be written: its shape in Python integers, its bytes."""
    if dtype not in BITS:
        raise UsageError(f"safetensors cannot hold dtype '{dtype}': expected one of {', '.join(BITS)}", tensor=name)
    dims = tuple(map(index, shape))
    n_bytes = "the shape holds a negative dimension" if min(dims, default=0) < 0 else tensor_n_bytes(dtype, dims)
    if isinstance(n_bytes, str):
        raise UsageError(n_bytes, tensor=name, field="shape", found=dims)
    return dims, n_bytes
