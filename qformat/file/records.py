"""The nouns of a `.qfmt` file: what a writer is given, what a reader hands out, and the fixed-width records between.

Decides names, limits and record layouts (spec/qfmt.md, "Layout"). Knows neither how records are checked nor what the
bytes of a tensor mean: descriptors are JSON that passes through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

MAGIC = b"\x89QFMT\r\n\x1a"
MAJOR, MINOR = 1, 0
HEADER_BYTES = 128
STRIPE_BYTES = 1 << 20
TABLE_ALIGNMENT = 64
MIN_ALIGNMENT, MAX_ALIGNMENT = 64, 1 << 16
MAX_RANK = 8
MAX_BYTES = 1 << 48
MAX_DOCUMENT_BYTES = 1 << 26
RAW, ZSTD = 0, 1
ENCODINGS = ("raw", "zstd")
CODES = 1
ASSET_ROLE = "asset"

#: Required features by bit.
REQUIRED = ("zstd", "columns")

#: Width of an element in bits. Other dtype names are legal; their width is unknown.
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("float4_e2m1fn", "int4", "uint4"), 4),
    **dict.fromkeys(("float6_e2m3fn", "float6_e3m2fn"), 6),
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e4m3fnuz"), 8),
    **dict.fromkeys(("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 8),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 16),
    **dict.fromkeys(("int32", "uint32", "float32"), 32),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 64),
}

SECTIONS = ("tensors", "assets", "planes", "chunks", "forms", "parts", "columns", "dims", "symbols", "documents")
HEAD = np.dtype([(name, "<u8") for name in SECTIONS])
ENTRY = np.dtype(
    [
        ("name_offset", "<u4"),
        ("name_bytes", "<u4"),
        ("form", "<u4"),
        ("first_plane", "<u4"),
        ("first_chunk", "<u4"),
        ("n_chunks", "<u4"),
        ("digest", "u1", 32),
    ]
)
PLANE = np.dtype([("offset", "<u8"), ("stored_bytes", "<u8")])
FORM = np.dtype(
    [
        ("descriptor", "<u4"),
        ("first_dim", "<u4"),
        ("first_part", "<u4"),
        ("n_parts", "<u2"),
        ("dtype", "<u2"),
        ("rank", "u1"),
        ("reserved", "u1", 7),
    ]
)
PART = np.dtype(
    [
        ("n_bytes", "<u8"),
        ("row_bytes", "<u8"),
        ("first_dim", "<u4"),
        ("first_column", "<u4"),
        ("role", "<u2"),
        ("dtype", "<u2"),
        ("block_bytes", "<u2"),
        ("rank", "u1"),
        ("n_columns", "u1"),
    ]
)
COLUMN = np.dtype(
    [
        ("begin", "<u2"),
        ("end", "<u2"),
        ("element_bytes", "u1"),
        ("encoding", "u1"),
        ("flags", "u1"),
        ("reserved", "u1"),
    ]
)
DIM = np.dtype("<u8")
SYMBOL = np.dtype([("offset", "<u4"), ("n_bytes", "<u4")])
DOCUMENT = np.dtype([("offset", "<u8"), ("n_bytes", "<u8")])
CHUNK = np.dtype([("stored_bytes", "<u4"), ("encoding", "u1"), ("reserved", "u1", 3), ("digest", "u1", 32)])


@dataclass(frozen=True, slots=True)
class Column:
    """Bytes `begin` to `end - 1` of every block of a part, and how they compress.

    element_bytes : width of the byte shuffle before compression; divides end - begin
    is_codes      : holds codes, which `compress="scales"` leaves raw
    """

    begin: int
    end: int
    element_bytes: int = 1
    is_codes: bool = False


@dataclass(frozen=True, slots=True)
class PartSpec:
    """One byte array of a tensor, to be written.

    role        : "blocks", "codes", "scales", "zeros", ...; unique within the tensor
    dtype, shape: of the array as stored; "uint8" for packed bytes
    row_bytes   : bytes of one row-addressable unit
    block_bytes : bytes that repeat with the same structure; 0 for the width of the dtype
    columns     : ranges of a block that compress apart; empty for one range
    is_codes    : holds codes, where `columns` is empty
    """

    role: str
    dtype: str
    shape: tuple[int, ...]
    row_bytes: int
    block_bytes: int = 0
    columns: tuple[Column, ...] = ()
    is_codes: bool = False

    @property
    def n_bytes(self) -> int:
        """Give the length of the part in bytes."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    @property
    def element_bytes(self) -> int:
        """Give the width of an element in bytes, 1 for narrower ones."""
        return max(1, DTYPE_BITS[self.dtype] // 8)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor, to be written.

    shape, dtype: logical shape, and the dtype that the tensor had in its source
    descriptor  : JSON object that says what the parts mean (layout, tiling, scheme)
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    descriptor: Mapping[str, Any]
    parts: tuple[PartSpec, ...]


@dataclass(frozen=True, slots=True)
class PlaneEntry:
    """Where one column of one part is stored: bytes `begin` to `end - 1` of every block."""

    begin: int
    end: int
    element_bytes: int
    encoding: str
    is_codes: bool
    byte_offset: int
    stored_bytes: int
    first_chunk: int


@dataclass(frozen=True, slots=True)
class PartEntry:
    """One byte array of a tensor in a file."""

    role: str
    dtype: str
    shape: tuple[int, ...]
    row_bytes: int
    block_bytes: int
    n_bytes: int
    planes: tuple[PlaneEntry, ...]

    @property
    def stripe_bytes(self) -> int:
        """Give the bytes of the part that one chunk of every plane covers."""
        return measure_stripe(self.block_bytes)

    @property
    def n_stripes(self) -> int:
        """Give the number of chunks of every plane."""
        return -(-self.n_bytes // self.stripe_bytes)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor, or asset, in a file. `descriptor` is shared between tensors: treat it as read-only."""

    number: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    descriptor: Mapping[str, Any]
    parts: tuple[PartEntry, ...]

    @property
    def n_bytes(self) -> int:
        """Give the bytes of all parts together, as a reader gets them."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def stored_bytes(self) -> int:
        """Give the bytes that all planes take in the file."""
        return sum(plane.stored_bytes for part in self.parts for plane in part.planes)


def measure_stripe(block_bytes: int) -> int:
    """Give the bytes of a full stripe.

    >>> measure_stripe(18)
    1048572
    """
    return STRIPE_BYTES // block_bytes * block_bytes


def align(byte_offset: int, alignment: int) -> int:
    """Give the least multiple of `alignment` that is not below `byte_offset`.

    >>> align(65, 64)
    128
    """
    return -(-byte_offset // alignment) * alignment
