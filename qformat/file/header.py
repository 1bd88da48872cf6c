"""The first 128 bytes of a `.qfmt` file.

Decides whether a file is a whole `.qfmt` file of a version and with features that this reader knows, and where its table
and index lie. Knows nothing of what the index says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blake3 import blake3

from qformat.errors import FileError
from qformat.file.records import (
    HEADER_BYTES,
    MAGIC,
    MAJOR,
    MAX_ALIGNMENT,
    MIN_ALIGNMENT,
    MINOR,
    REQUIRED,
    TABLE_ALIGNMENT,
)

FIELDS = struct.Struct("<8sHHIQQQQQQ32s")


@dataclass(frozen=True, slots=True)
class Header:
    """Fields of the header that are not constant (spec/qfmt.md, "Header")."""

    alignment: int
    required: int
    file_bytes: int
    table_offset: int
    index_offset: int
    index_bytes: int
    index_digest: bytes
    minor: int = MINOR
    optional: int = 0


def pack_header(header: Header) -> bytes:
    """Give the 128 bytes of a header, its own digest included."""
    body = FIELDS.pack(
        MAGIC,
        MAJOR,
        header.minor,
        header.alignment,
        header.required,
        header.optional,
        header.file_bytes,
        header.table_offset,
        header.index_offset,
        header.index_bytes,
        header.index_digest,
    )
    return body + blake3(body).digest()


def unpack_header(data: bytes, file_bytes: int) -> Header:
    """Read and check a header.

    data      : the first 128 bytes of the file, or fewer if it is shorter
    file_bytes: length of the file

    Raises FileError when the header breaks a rule of spec/qfmt.md, "Ranges and illegal values", 1 to 3.
    """
    if data[:8] != MAGIC[: len(data)]:
        if len(data) >= HEADER_BYTES and not any(data):
            raise FileError("unfinished .qfmt file: the header was never written", offset=0, expected=MAGIC, found=data[:8])
        raise FileError(
            f"begins with {data[:8].hex(' ')}, expected {MAGIC.hex(' ')} (.qfmt)",
            field="magic",
            offset=0,
            expected=MAGIC,
            found=data[:8],
        )
    if len(data) < HEADER_BYTES:
        raise FileError(
            f"{file_bytes} bytes, expected at least the {HEADER_BYTES} of a header", expected=HEADER_BYTES, found=file_bytes
        )
    _, major, minor, alignment, required, optional, n_bytes, *places = FIELDS.unpack(data[: FIELDS.size])
    if major != MAJOR:
        raise wrong("major", 8, major, f"{MAJOR}", "version")
    found = blake3(data[: FIELDS.size]).digest()
    if found != data[FIELDS.size :]:
        raise wrong("header_digest", 96, data[FIELDS.size :].hex(), found.hex(), "BLAKE3 of the header")
    table_offset, index_offset, index_bytes, index_digest = places
    header = Header(alignment, required, n_bytes, table_offset, index_offset, index_bytes, index_digest, minor, optional)
    check_features(required)
    check_geometry(header, file_bytes)
    return header


def check_features(required: int) -> None:
    """Refuse required features that this reader does not know."""
    unknown = [bit for bit in range(64) if required >> bit & 1 and bit >= len(REQUIRED)]
    if unknown:
        raise FileError(
            f"needs feature {', '.join(f'bit {bit}' for bit in unknown)}, this reader knows "
            + ", ".join(f"bit {bit} ({name})" for bit, name in enumerate(REQUIRED)),
            field="required",
            offset=16,
            expected=(1 << len(REQUIRED)) - 1,
            found=required,
        )


def check_geometry(header: Header, file_bytes: int) -> None:
    """Refuse an alignment, length or place that cannot be."""
    if header.file_bytes != file_bytes:
        state = "truncated" if header.file_bytes > file_bytes else "followed by other bytes"
        raise wrong("file_bytes", 32, header.file_bytes, file_bytes, f"length of the file, which is {state}")
    if not MIN_ALIGNMENT <= header.alignment <= MAX_ALIGNMENT or header.alignment & (header.alignment - 1):
        raise wrong("alignment", 12, header.alignment, f"a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}")
    if header.table_offset % TABLE_ALIGNMENT or not HEADER_BYTES <= header.table_offset <= header.index_offset:
        expected = f"a multiple of {TABLE_ALIGNMENT} from {HEADER_BYTES} to index_offset {header.index_offset:#x}"
        raise wrong("table_offset", 40, f"{header.table_offset:#x}", expected)
    if header.index_offset % TABLE_ALIGNMENT or header.index_offset > file_bytes:
        expected = f"a multiple of {TABLE_ALIGNMENT} within the file"
        raise wrong("index_offset", 48, f"{header.index_offset:#x}", expected)
    if header.index_bytes != file_bytes - header.index_offset:
        expected = f"{file_bytes - header.index_offset}, up to the end of the file"
        raise wrong("index_bytes", 56, header.index_bytes, expected)


def wrong(field: str, offset: int, found: object, expected: object, what: str = "") -> FileError:
    """Make the error for a header field."""
    text = f"{found}, expected {expected}" + (f" ({what})" if what else "")
    return FileError(text, field=field, offset=offset, expected=expected, found=found)
