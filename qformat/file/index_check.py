"""Whether an index is sound.

Decides rules 5 to 10 of spec/qfmt.md, "Ranges and illegal values", for all records at once: an index of 100 000
tensors is checked in milliseconds. Columns are widened to uint64 before arithmetic, and no number enters a sum or
product before a bound that keeps it from wrapping. Reads no payload, no JSON, and does not compare names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qformat.errors import FileError
from qformat.file.header import Header
from qformat.file.index import Index, Records
from qformat.file.records import (
    CHUNK,
    CODES,
    DTYPE_BITS,
    HEADER_BYTES,
    MAX_BYTES,
    MAX_DOCUMENT_BYTES,
    MAX_RANK,
    STRIPE_BYTES,
    TABLE_ALIGNMENT,
    ZSTD,
    align,
)

U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]


def check_index(index: Index, header: Header) -> None:
    """Refuse an index whose records contradict each other, or the header.

    Raises FileError that names the section, the record and the rule.
    """
    check_text(index)
    check_forms(index)
    check_parts(index)
    check_columns(index, header)
    column_chunks, column_bytes = measure_columns(index)
    column = check_entries(index, column_chunks)
    check_planes(index, header, column, column_bytes)


def check_text(index: Index) -> None:
    """Check names, symbols and documents: they follow each other, and text is UTF-8, name by name."""
    names, symbols, documents = index.entries, index.symbols, index.documents
    n_names = int(names["name_bytes"].sum(dtype=np.uint64))
    check_run(index, "entries", "name_offset", wide(names["name_bytes"]), n_names)
    if len(symbols) > 0xFFFF:
        raise FileError(f"{len(symbols)} symbols, expected at most 65535", field="n_symbols", offset=index.start)
    check_run(index, "symbols", "offset", wide(symbols["n_bytes"]), len(index.text), n_names)
    check_run(index, "documents", "offset", documents["n_bytes"], len(index.json))
    refuse(index, "documents", documents["n_bytes"] > MAX_DOCUMENT_BYTES, f"longer than {MAX_DOCUMENT_BYTES} bytes")
    if len(documents) < 2:
        raise FileError(
            f"{len(documents)} documents, expected at least 2: metadata and recipe",
            field="n_documents",
            offset=index.start,
            expected=2,
            found=len(documents),
        )
    try:
        is_ascii = len(str(index.text, "utf-8")) == len(index.text)
    except UnicodeDecodeError as error:
        offset = index.starts["text"] + error.start
        raise FileError("text is not UTF-8", field="text", offset=offset, expected="UTF-8") from error
    if is_ascii:
        return
    # Valid text whose pieces do not begin with a continuation byte is valid piece by piece.
    inside = np.append(np.frombuffer(index.text, np.uint8) & 0xC0 == 0x80, False)
    for section, offsets in (("entries", names["name_offset"]), ("symbols", symbols["offset"])):
        refuse(index, section, inside[offsets], "name begins inside a UTF-8 character")


def check_forms(index: Index) -> None:
    """Check what forms name, and the size of the tensors."""
    forms, counts = index.forms, index.counts
    refuse(index, "forms", forms["descriptor"] >= len(index.documents), "descriptor does not exist")
    refuse(index, "forms", forms["dtype"] >= len(index.symbols), "dtype does not exist")
    refuse(index, "forms", forms["n_parts"] == 0, "no parts")
    refuse(index, "forms", forms["rank"] > MAX_RANK, f"rank above {MAX_RANK}")
    refuse(index, "forms", forms["reserved"].max(axis=1) != 0, "reserved bytes are not zero")
    check_run(index, "forms", "first_part", wide(forms["n_parts"]), counts["parts"])
    n_dims = int(forms["rank"].sum(dtype=np.uint64))
    if n_dims > len(index.dims):
        raise FileError(
            f"forms ask for {n_dims} dimensions, the index has {len(index.dims)}",
            field="n_dims",
            offset=index.start,
            expected=n_dims,
            found=len(index.dims),
        )
    check_run(index, "forms", "first_dim", wide(forms["rank"]), n_dims)
    refuse(index, "dims", index.dims > MAX_BYTES, f"beyond {MAX_BYTES}")
    is_large: Bools = count_elements(index, forms) > MAX_BYTES
    refuse(index, "forms", is_large, f"more than {MAX_BYTES} elements")


def check_parts(index: Index) -> None:
    """Check what parts name, and that length, block, row, shape and dtype agree."""
    parts = index.parts
    n_bytes, row_bytes, block_bytes = parts["n_bytes"], parts["row_bytes"], wide(parts["block_bytes"])
    for field in ("role", "dtype"):
        refuse(index, "parts", parts[field] >= len(index.symbols), f"{field} does not exist")
    refuse(index, "parts", parts["rank"] > MAX_RANK, f"rank above {MAX_RANK}")
    refuse(index, "parts", parts["n_columns"] == 0, "no columns")
    refuse(index, "parts", n_bytes > MAX_BYTES, f"longer than {MAX_BYTES} bytes")
    refuse(index, "parts", block_bytes == 0, "block_bytes is 0")
    refuse(index, "parts", row_bytes == 0, "row_bytes is 0")
    refuse(index, "parts", n_bytes % block_bytes != 0, "n_bytes is not a multiple of block_bytes")
    refuse(index, "parts", n_bytes % row_bytes != 0, "n_bytes is not a multiple of row_bytes")
    check_run(index, "parts", "first_column", wide(parts["n_columns"]), len(index.columns))
    first_dim = int(index.forms["rank"].sum(dtype=np.uint64))
    check_run(index, "parts", "first_dim", wide(parts["rank"]), len(index.dims), first_dim)
    bits = np.array([DTYPE_BITS.get(index.symbol(k), 0) for k in range(len(index.symbols))], np.float64)
    width = bits[parts["dtype"]]
    # Exact in float64: n_bytes is at most 2**48, so any product that could be equal is below 2**53.
    differs: Bools = count_elements(index, parts) * width != n_bytes.astype(np.float64) * 8
    refuse(index, "parts", differs & (width > 0), "n_bytes is not shape times width of the dtype")


def check_columns(index: Index, header: Header) -> None:
    """Check that columns cut blocks without gaps, and that the required features say what is used."""
    columns, parts = index.columns, index.parts
    refuse(index, "columns", columns["begin"] >= columns["end"], "ends where it begins, or before")
    width, element_bytes = columns["end"] - columns["begin"], np.maximum(columns["element_bytes"], 1)
    refuse(index, "columns", columns["element_bytes"] == 0, "element_bytes is 0")
    refuse(index, "columns", width % element_bytes != 0, "element_bytes does not divide its width")
    refuse(index, "columns", columns["encoding"] > ZSTD, "unknown encoding")
    refuse(index, "columns", columns["flags"] > CODES, "unknown flag")
    refuse(index, "columns", columns["reserved"] != 0, "reserved byte is not zero")
    begin = np.zeros(len(columns), np.uint16)
    begin[1:] = columns["end"][:-1]
    begin[parts["first_column"]] = 0
    refuse(index, "columns", columns["begin"] != begin, "does not begin where the one before ends")
    last = wide(parts["first_column"]) + parts["n_columns"] - np.uint64(1)
    refuse(index, "parts", columns["end"][last] != parts["block_bytes"], "columns do not end where the block ends")
    used = int((columns["encoding"] == ZSTD).any()) | int((parts["n_columns"] > 1).any()) << 1
    if header.required != used:
        raise FileError(
            f"required features {header.required:#x}, the index uses {used:#x}",
            field="required",
            offset=16,
            expected=used,
            found=header.required,
        )


def measure_columns(index: Index) -> tuple[U64, U64]:
    """Give the number of chunks and the unencoded bytes of every column."""
    parts, columns = index.parts, index.columns
    block_bytes = wide(parts["block_bytes"])
    stripe_bytes = np.uint64(STRIPE_BYTES) // block_bytes * block_bytes
    n_stripes = (parts["n_bytes"] + stripe_bytes - np.uint64(1)) // stripe_bytes
    n_blocks = parts["n_bytes"] // block_bytes
    n_columns = parts["n_columns"]
    width = wide(columns["end"]) - columns["begin"]
    return np.repeat(n_stripes, n_columns), np.repeat(n_blocks, n_columns) * width


def check_entries(index: Index, column_chunks: U64) -> NDArray[np.int64]:
    """Check that entries own planes and chunks as their forms say; give the column of every plane."""
    entries, forms = index.entries, index.forms
    refuse(index, "entries", entries["form"] >= len(forms), "form does not exist")
    first_part = wide(forms["first_part"])
    first_column = wide(index.parts["first_column"])[first_part]
    last_column = np.append(first_column[1:], len(index.columns))[: len(forms)].astype(np.uint64)
    # At most 2**32 columns of at most 2**29 chunks each: the sum does not wrap.
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(column_chunks, dtype=np.uint64)])
    form = entries["form"]
    n_chunks = (before[last_column] - before[first_column])[form]
    refuse(index, "entries", entries["n_chunks"] != n_chunks, "n_chunks is not that of its form")
    n_planes = (last_column - first_column)[form]
    check_run(index, "entries", "first_chunk", n_chunks, index.counts["chunks"])
    check_run(index, "entries", "first_plane", n_planes, len(index.planes))
    shift = first_column[form].astype(np.int64) - entries["first_plane"]
    shifts: NDArray[np.int64] = np.repeat(shift, n_planes.astype(np.int64))
    return np.arange(len(index.planes), dtype=np.int64) + shifts


def check_planes(index: Index, header: Header, column: NDArray[np.int64], column_bytes: U64) -> None:
    """Check the size and place of every plane, and the places of chunk table and index."""
    offset = np.ascontiguousarray(index.planes["offset"])
    stored_bytes = np.ascontiguousarray(index.planes["stored_bytes"])
    raw_bytes = column_bytes[column]
    is_zstd = (index.columns["encoding"] == ZSTD)[column]
    refuse(index, "planes", stored_bytes > raw_bytes, "stored_bytes is more than its column holds")
    refuse(index, "planes", ~is_zstd & (stored_bytes != raw_bytes), "stored_bytes is not what its column holds")
    limit = np.uint64(header.table_offset)
    refuse(index, "planes", (offset > limit) | (stored_bytes > limit), "beyond the chunk table")
    order = np.concatenate([np.flatnonzero(~is_zstd), np.flatnonzero(is_zstd)]) if is_zstd.any() else slice(None)
    alignment = np.uint64(header.alignment)
    end = (offset + stored_bytes)[order]
    expected = np.full(len(end), align(HEADER_BYTES, header.alignment), np.uint64)
    expected[1:] = (end[:-1] + alignment - np.uint64(1)) // alignment * alignment
    misplaced = np.zeros(len(end), np.bool_)
    misplaced[order] = offset[order] != expected
    refuse(index, "planes", misplaced, "is not where the planes before it put it")
    table_offset = align(int(end[-1]), TABLE_ALIGNMENT) if len(end) else HEADER_BYTES
    index_offset = align(table_offset + index.counts["chunks"] * CHUNK.itemsize, TABLE_ALIGNMENT)
    for field, at, found, place in (
        ("table_offset", 40, header.table_offset, table_offset),
        ("index_offset", 48, header.index_offset, index_offset),
    ):
        if found != place:
            raise FileError(f"{found:#x}, expected {place:#x}", field=field, offset=at, expected=place, found=found)


def check_run(index: Index, section: str, field: str, lengths: U64, total: int, start: int = 0) -> None:
    """Check that records of a section own consecutive ranges that fill start..total."""
    first = wide(getattr(index, section)[field])
    bound = np.uint64(total)
    refuse(index, section, (first > bound) | (lengths > bound), f"{field} or its length is beyond {total}")
    expected = np.full(len(first), start, np.uint64)
    expected[1:] = first[:-1] + lengths[:-1]
    refuse(index, section, first != expected, f"{field} is not where the record before ends")
    end = int(first[-1]) + int(lengths[-1]) if len(first) else start
    if end != total:
        raise FileError(
            f"{section} end at {end} by their field {field!r}, expected {total}",
            field=field,
            offset=index.starts[section],
            expected=total,
            found=end,
        )


def count_elements(index: Index, records: Records) -> NDArray[np.float64]:
    """Multiply the dimensions of each record: exact up to 2**53, inexact beyond, and then above every legal count."""
    rank = records["rank"]
    product = np.ones(len(records), np.float64)
    for axis in range(int(rank.max(initial=0))):
        deep = rank > axis
        product[deep] *= index.dims[wide(records["first_dim"][deep]) + np.uint64(axis)]
    return product


def wide(values: Records) -> U64:
    """Widen to uint64."""
    return values.astype(np.uint64)


def refuse(index: Index, section: str, bad: Bools, why: str) -> None:
    """Raise FileError for the first bad record of a section."""
    if not bad.any():
        return
    number = int(bad.argmax())
    records = getattr(index, section)
    raise FileError(
        f"{section} record {number}: {why}", field=section, offset=index.starts[section] + number * records.itemsize
    )
