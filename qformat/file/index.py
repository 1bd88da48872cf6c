"""The index of a `.qfmt` file, as mapped records.

Decides where sections lie and what one record gives; `index_check` decides whether the index is sound. Reads no payload,
and builds an object only for what is asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
Column = tuple[int, int, int, str, bool]  # of a plane: begin, end, element_bytes, encoding, is_codes


class Form(NamedTuple):
    """What entries of one form share: all but name, place and digest.

    parts : each without planes, and what its columns say of those
    """

    shape: tuple[int, ...]
    dtype: str
    descriptor: dict[str, Any]
    parts: tuple[tuple[PartEntry, tuple[Column, ...]], ...]


class Index:
    """Sections of an index as read-only structured arrays over the mapped bytes.

    data    : the bytes of the index
    start   : where it lies in the file, for the offsets of errors

    Raises FileError when the sections do not fill the index exactly.
    """

    __slots__ = (
        "built",
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
        self.built: dict[int, Form] = {}

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
        _, _, number_of_form, plane, chunk, _, _ = self.entries[number].item()
        form = self.form(number_of_form, name)
        parts = []
        for part, columns in form.parts:
            stored, n_stripes = self.planes[plane : plane + len(columns)].tolist(), part.n_stripes
            planes = tuple(
                PlaneEntry(*column, offset, stored_bytes, chunk + k * n_stripes)
                for k, (column, (offset, stored_bytes)) in enumerate(zip(columns, stored, strict=True))
            )
            parts.append(PartEntry(part.role, part.dtype, part.shape, part.row_bytes, part.block_bytes, part.n_bytes, planes))
            plane += len(columns)
            chunk += len(columns) * n_stripes
        return TensorEntry(number, name, form.shape, form.dtype, form.descriptor, tuple(parts))

    def form(self, number: int, name: str) -> Form:
        """Build what entries of one form share; forms are built once.

        name : of the entry that asks, for errors
        """
        if number not in self.built:
            form = self.forms[number]
            descriptor = self.document(int(form["descriptor"]))
            if not isinstance(descriptor, dict):
                found = type(descriptor).__name__
                raise FileError(f"descriptor is {found}, expected an object", tensor=name, field="descriptor", found=found)
            first = int(form["first_part"])
            parts: dict[str, tuple[PartEntry, tuple[Column, ...]]] = {}
            for record in self.parts[first : first + int(form["n_parts"])]:
                part = self.part(record)
                if part[0].role in parts:
                    raise FileError("two parts of this role", tensor=name, field=part[0].role)
                parts[part[0].role] = part
            self.built[number] = Form(self.shape(form), self.symbol(form["dtype"]), descriptor, tuple(parts.values()))
        return self.built[number]

    def part(self, record: np.void) -> tuple[PartEntry, tuple[Column, ...]]:
        """Build the object for one part, its planes still open, and what its columns say of them."""
        columns = tuple(
            (begin, end, element_bytes, ENCODINGS[encoding], bool(flags & CODES))
            for begin, end, element_bytes, encoding, flags, _ in self.columns[int(record["first_column"]) :][
                : int(record["n_columns"])
            ].tolist()
        )
        role, dtype = self.symbol(record["role"]), self.symbol(record["dtype"])
        row_bytes, block_bytes, n_bytes = (int(record[field]) for field in ("row_bytes", "block_bytes", "n_bytes"))
        return PartEntry(role, dtype, self.shape(record), row_bytes, block_bytes, n_bytes, ()), columns

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
