"""The index of a `.qfmt` file, as mapped records.

Decides where sections lie and what one record gives; `index_check` decides whether the index is sound. Reads no payload,
and builds an object only for what is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import FileError
from qformat.file import json_text
from qformat.file.records import (
    CODES,
    COLUMN,
    DIM,
    DOCUMENT,
    ENCODINGS,
    ENTRY,
    FORM,
    HEAD,
    PART,
    PLANE,
    SECTIONS,
    SYMBOL,
    PartEntry,
    PlaneEntry,
    TensorEntry,
    align,
)

Records = NDArray[Any]


class Index:
    """Sections of an index as read-only structured arrays over the mapped bytes.

    data    : the bytes of the index
    start   : where it lies in the file, for the offsets of errors

    Raises FileError when the sections do not fill the index exactly.
    """

    __slots__ = (
        "columns",
        "counts",
        "dims",
        "documents",
        "entries",
        "forms",
        "json",
        "parsed",
        "parts",
        "planes",
        "start",
        "starts",
        "symbol_names",
        "symbols",
        "text",
    )

    def __init__(self, data: memoryview, start: int) -> None:
        self.start = start
        if len(data) < HEAD.itemsize:
            raise FileError(f"index of {len(data)} bytes, expected at least {HEAD.itemsize}", field="index_bytes", offset=start)
        head = np.frombuffer(data, HEAD, 1)[0]
        self.counts = {name: int(head[name]) for name in SECTIONS}
        self.starts: dict[str, int] = {}
        n_entries = self.counts["tensors"] + self.counts["assets"]
        position = HEAD.itemsize
        sections = (
            ("entries", ENTRY, n_entries),
            ("planes", PLANE, self.counts["planes"]),
            ("forms", FORM, self.counts["forms"]),
            ("parts", PART, self.counts["parts"]),
            ("columns", COLUMN, self.counts["columns"]),
            ("dims", DIM, self.counts["dims"]),
            ("symbols", SYMBOL, self.counts["symbols"]),
            ("documents", DOCUMENT, self.counts["documents"]),
        )
        for name, record, count in sections:
            if count >= 1 << 32 or count * record.itemsize > len(data) - position:
                raise FileError(
                    f"{count} {name} of {record.itemsize} bytes, expected to fit the {len(data) - position} bytes left",
                    field=f"n_{name}",
                    offset=start,
                    expected=(len(data) - position) // record.itemsize,
                    found=count,
                )
            setattr(self, name, np.frombuffer(data, record, count, position))
            self.starts[name] = start + position
            position += count * record.itemsize
        self.take_heaps(data, position)
        self.symbol_names: list[str] = []
        self.parsed: dict[int, Any] = {}

    entries: Records
    planes: Records
    forms: Records
    parts: Records
    columns: Records
    dims: Records
    symbols: Records
    documents: Records
    text: memoryview
    json: memoryview

    def take_heaps(self, data: memoryview, position: int) -> None:
        """Cut text and JSON off the end of the index."""
        n_text = int(self.entries["name_bytes"].sum(dtype=np.uint64)) + int(self.symbols["n_bytes"].sum(dtype=np.uint64))
        json_start = position + align(n_text, 8)
        longest = int(self.documents["n_bytes"].max(initial=0))
        # Summed in Python once no summand is larger than the index: the sum of uint64 could wrap.
        n_json = sum(self.documents["n_bytes"].tolist()) if longest <= len(data) else longest
        if json_start + n_json != len(data):
            raise FileError(
                f"records ask for {json_start + n_json} bytes, the index has {len(data)}",
                field="index_bytes",
                offset=self.start,
                expected=json_start + n_json,
                found=len(data),
            )
        if any(data[position + n_text : json_start]):
            raise FileError("padding after text is not zero", field="text", offset=self.start + position + n_text)
        self.text = data[position : position + n_text]
        self.json = data[json_start:]
        self.starts |= {"text": self.start + position, "json": self.start + json_start}

    def document(self, number: int) -> Any:
        """Parse one document; documents are parsed once.

        Raises FileError when it is not strict JSON.
        """
        if number not in self.parsed:
            record = self.documents[number]
            first, n_bytes = int(record["offset"]), int(record["n_bytes"])
            self.parsed[number] = json_text.parse(bytes(self.json[first : first + n_bytes]), f"document {number}")
        return self.parsed[number]

    def names(self, begin: int, end: int) -> list[str]:
        """Give the names of entries `begin` to `end - 1`, in order."""
        records = self.entries[begin:end]
        return cut_text(self.text, records["name_offset"], records["name_bytes"])

    def entry(self, number: int, name: str) -> TensorEntry:
        """Build the object for one entry.

        Raises FileError when two of its parts have one role, or its descriptor is not a JSON object.
        """
        record = self.entries[number]
        form = self.forms[int(record["form"])]
        descriptor = self.document(int(form["descriptor"]))
        if not isinstance(descriptor, dict):
            found = type(descriptor).__name__
            raise FileError(f"descriptor is {found}, expected an object", tensor=name, field="descriptor", found=found)
        plane, chunk = int(record["first_plane"]), int(record["first_chunk"])
        parts: dict[str, PartEntry] = {}
        first_part = int(form["first_part"])
        for part_record in self.parts[first_part : first_part + int(form["n_parts"])]:
            part = self.part(part_record, plane, chunk)
            if part.role in parts:
                raise FileError("two parts of this role", tensor=name, field=part.role)
            parts[part.role] = part
            plane += len(part.planes)
            chunk += len(part.planes) * part.n_stripes
        shape = self.shape(form)
        return TensorEntry(number, name, shape, self.symbol(form["dtype"]), descriptor, tuple(parts.values()))

    def part(self, record: np.void, plane: int, chunk: int) -> PartEntry:
        """Build the object for one part, whose planes and chunks begin at these numbers."""
        n_bytes, block_bytes = int(record["n_bytes"]), int(record["block_bytes"])
        part = PartEntry(
            self.symbol(record["role"]),
            self.symbol(record["dtype"]),
            self.shape(record),
            int(record["row_bytes"]),
            block_bytes,
            n_bytes,
            (),
        )
        planes = []
        first = int(record["first_column"])
        for k, column in enumerate(self.columns[first : first + int(record["n_columns"])]):
            stored = self.planes[plane + k]
            planes.append(
                PlaneEntry(
                    int(column["begin"]),
                    int(column["end"]),
                    int(column["element_bytes"]),
                    ENCODINGS[int(column["encoding"])],
                    bool(column["flags"] & CODES),
                    int(stored["offset"]),
                    int(stored["stored_bytes"]),
                    chunk + k * part.n_stripes,
                )
            )
        return PartEntry(part.role, part.dtype, part.shape, part.row_bytes, block_bytes, n_bytes, tuple(planes))

    def shape(self, record: np.void) -> tuple[int, ...]:
        """Give the shape that a form or part names."""
        first = int(record["first_dim"])
        return tuple(self.dims[first : first + int(record["rank"])].tolist())

    def symbol(self, number: int) -> str:
        """Give a dtype name or role."""
        if not self.symbol_names:
            self.symbol_names = cut_text(self.text, self.symbols["offset"], self.symbols["n_bytes"])
        return self.symbol_names[int(number)]


def cut_text(text: memoryview, offsets: Records, lengths: Records) -> list[str]:
    """Cut spans out of UTF-8 text that was checked."""
    firsts = offsets.tolist()
    ends = (offsets.astype(np.int64) + lengths).tolist()
    whole = str(text, "utf-8")
    if len(whole) == len(text):
        return [whole[first:end] for first, end in zip(firsts, ends, strict=True)]
    return [str(text[first:end], "utf-8") for first, end in zip(firsts, ends, strict=True)]
