"""The index of a file to be written.

Decides numbering: forms, symbols and documents in order of first use, planes and chunks in order of entries
(spec/qfmt.md, "Encoding"). Knows neither payload nor file: the caller fills in where planes lie and what digests are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.file import json_text
from qformat.file.records import (
    CODES,
    COLUMN,
    DIM,
    DOCUMENT,
    FORM,
    HEAD,
    PART,
    PLANE,
    SECTIONS,
    SYMBOL,
    ZSTD,
    Column,
    PartSpec,
    TensorSpec,
    align,
)
from qformat.file.specs import cut_columns


class IndexBuilder:
    """Collects forms, symbols and documents; gives the bytes of the index.

    tensors, assets: what the file holds, checked
    compress       : "none", "scales" or "all"
    """

    def __init__(self, tensors: Sequence[TensorSpec], assets: Sequence[TensorSpec], compress: str) -> None:
        self.tensors, self.assets, self.compress = tensors, assets, compress
        self.documents: dict[bytes, int] = {}
        self.symbols: dict[str, int] = {}
        self.forms: dict[tuple[Any, ...], int] = {}
        self.form_of = [self.add_form(spec) for spec in chain(tensors, assets)]

    def add_form(self, spec: TensorSpec) -> int:
        """Give the number of the form of a tensor."""
        descriptor = json_text.dump(spec.descriptor, "descriptor")
        number = self.documents.setdefault(descriptor, len(self.documents))
        key = (number, spec.shape, spec.dtype, spec.parts)
        if key not in self.forms:
            for symbol in (spec.dtype, *chain.from_iterable((part.role, part.dtype) for part in spec.parts)):
                self.symbols.setdefault(symbol, len(self.symbols))
            self.forms[key] = len(self.forms)
        return self.forms[key]

    def build(
        self, metadata: bytes, recipe: bytes, entries: NDArray[Any], planes: Sequence[tuple[int, int]], n_chunks: int
    ) -> bytes:
        """Give the bytes of the index.

        metadata, recipe: JSON text
        entries         : ENTRY records whose planes, chunks and digests are filled in; the rest is written here
        planes          : (offset, stored_bytes) of every plane
        """
        names = [spec.name.encode() for spec in chain(self.tensors, self.assets)]
        symbols = [symbol.encode() for symbol in self.symbols]
        text = b"".join(names + symbols)
        if len(text) >= 1 << 32:
            raise UsageError(f"{len(text)} bytes of names, expected less than 2**32", found=len(text))
        spans = np.zeros(len(names) + len(symbols), SYMBOL)
        spans["n_bytes"] = [len(piece) for piece in names + symbols]
        spans["offset"] = firsts(spans["n_bytes"])
        entries["name_offset"], entries["name_bytes"] = spans["offset"][: len(names)], spans["n_bytes"][: len(names)]
        entries["form"] = self.form_of
        documents = [metadata, recipe, *self.documents]
        document_records = np.zeros(len(documents), DOCUMENT)
        document_records["n_bytes"] = [len(document) for document in documents]
        document_records["offset"] = firsts(document_records["n_bytes"])
        forms, parts, columns, dims = self.form_records()
        plane_records = np.array(planes, "<u8").reshape(-1, 2).view(PLANE)
        sections = (entries, plane_records, forms, parts, columns, dims, spans[len(names) :], document_records)
        counts: Mapping[str, int] = {
            "tensors": len(self.tensors),
            "assets": len(self.assets),
            "planes": len(planes),
            "chunks": n_chunks,
            "forms": len(forms),
            "parts": len(parts),
            "columns": len(columns),
            "dims": len(dims),
            "symbols": len(symbols),
            "documents": len(documents),
        }
        head = np.array([tuple(counts[name] for name in SECTIONS)], HEAD)
        records = b"".join(section.tobytes() for section in (head, *sections))
        return records + text.ljust(align(len(text), 8), b"\0") + b"".join(documents)

    def form_records(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Give the records of forms, parts, columns and dims."""
        forms, parts = np.zeros(len(self.forms), FORM), []
        for record, (descriptor, shape, dtype, form_parts) in zip(forms, self.forms, strict=True):
            record["descriptor"] = 2 + descriptor
            record["n_parts"], record["dtype"] = len(form_parts), self.symbols[dtype]
            record["rank"] = len(shape)
            parts += form_parts
        forms["first_part"] = firsts(forms["n_parts"])
        forms["first_dim"] = firsts(forms["rank"])
        part_records, columns = self.part_records(parts, int(forms["rank"].sum(dtype=np.int64)))
        shapes = [shape for _, shape, _, _ in self.forms] + [part.shape for part in parts]
        return forms, part_records, columns, np.array(list(chain.from_iterable(shapes)), DIM)

    def part_records(self, parts: Sequence[PartSpec], first_dim: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Give the records of parts and columns."""
        records, columns = np.zeros(len(parts), PART), []
        for record, part in zip(records, parts, strict=True):
            cuts = cut_columns(part, self.compress)
            record["n_bytes"], record["row_bytes"] = part.n_bytes, part.row_bytes
            record["role"], record["dtype"] = self.symbols[part.role], self.symbols[part.dtype]
            record["block_bytes"] = part.block_bytes
            record["rank"], record["n_columns"] = len(part.shape), len(cuts)
            columns += [column_record(column, encoding) for column, encoding in cuts]
        records["first_column"] = firsts(records["n_columns"])
        records["first_dim"] = firsts(records["rank"]) + np.uint64(first_dim)
        return records, np.array(columns, COLUMN)

    @property
    def required(self) -> int:
        """Give the required feature bits."""
        cuts = [cut_columns(part, self.compress) for *_, parts in self.forms for part in parts]
        uses_zstd = any(encoding == ZSTD for columns in cuts for _, encoding in columns)
        return int(uses_zstd) | int(any(len(columns) > 1 for columns in cuts)) << 1


def column_record(column: Column, encoding: int) -> tuple[int, ...]:
    """Give the fields of a column record."""
    flags = CODES if column.is_codes else 0
    return (column.begin, column.end, column.element_bytes, encoding, flags, 0)


def firsts(lengths: NDArray[Any]) -> NDArray[np.uint64]:
    """Give where consecutive ranges of these lengths begin."""
    ends: NDArray[np.uint64] = np.cumsum(lengths, dtype=np.uint64)
    return ends - lengths.astype(np.uint64)
