"""A GGUF file, mapped: its typed key-values, its tensors, and what it takes to write the same file again.

Decides what a caller sees of a file and which of its bytes a header and its tensors do not determine. Must not know how
blocks are decoded, nor what keys mean to a runtime. Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress, starmap
from types import MappingProxyType
from typing import Any

from qconvert.containers.gguf_header import PREAMBLE_BYTES, Header, Oddity, parse_header
from qconvert.containers.gguf_tensors import TensorInfo
from qconvert.containers.gguf_values import ByteOrder, GGUFArray, KeyValue, Scalar
from qconvert.containers.mapped import Mapped, open_mapped
from qformat.closing import Closing


@dataclass(frozen=True, slots=True)
class Padding:
    """A run of bytes that belongs to no tensor."""

    byte_offset: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Recipe:
    """What gives a GGUF file back byte for byte around its tensors' bytes; see `plan_from_recipe`.

    facts: for JSON: container, version, byte_order, n_bytes (of the file), header_n_bytes,
           paddings [[byte_offset, n_bytes], ...]
    blob : the header, then the paddings that are not zeros, back to back
    """

    facts: dict[str, Any]
    blob: bytes


class GGUFFile(Closing):
    """An open GGUF file; a context manager. Nothing of the data is read until asked for.

    tensors   : by name, in file order
    key_values: by key, in file order, with their types
    metadata  : by key, the plain values; arrays are GGUFArray, decoded on demand
    """

    def __init__(self, mapped: Mapped, header: Header) -> None:
        self._mapped = mapped
        self._header = header
        self._oddities: tuple[Oddity, ...] | None = None
        self.path = mapped.path
        self.n_bytes = header.n_bytes
        self.version = header.version
        self.byte_order: ByteOrder = header.byte_order
        self.alignment = header.alignment
        self.data_start = header.data_start
        self.tensors: Mapping[str, TensorInfo] = header.tensors
        self.key_values: Mapping[str, KeyValue] = header.key_values
        self.metadata: Mapping[str, Scalar | GGUFArray] = MappingProxyType(
            {key: pair.value for key, pair in header.key_values.items()}
        )

    @property
    def header_bytes(self) -> memoryview:
        """Everything before the data, padding included; of a file without tensors, everything up to the last pair."""
        return self._view(0, self.data_start)

    @property
    def key_value_bytes(self) -> memoryview:
        """The key-values as they stand, without their count."""
        return self._view(PREAMBLE_BYTES, self._header.key_values_end)

    @property
    def oddities(self) -> tuple[Oddity, ...]:
        """What is legal but unusual. The first call looks at the padding bytes; a tensor's own bytes are not read."""
        if self._oddities is None:
            self._oddities = (*self._header.oddities, *self._padding_oddities())
        return self._oddities

    def data(self, info: TensorInfo) -> memoryview:
        """View one tensor's bytes, read-only, without padding.

        Raises UsageError after `close`.
        """
        return self._view(info.byte_offset, info.byte_offset + info.n_bytes)

    def paddings(self) -> tuple[Padding, ...]:
        """List the runs of padding that are not all zeros, in file order."""
        data = self._view(0, self.n_bytes)
        starts, stops = self._header.gaps()
        views = list(map(data.__getitem__, map(slice, starts, stops)))  # in few calls, as there may be one for each tensor
        return tuple(starmap(Padding, compress(zip(starts, views, strict=True), map(any, views))))

    def recipe(self) -> Recipe:
        """Give what is needed, beside the tensors' bytes, to write this very file again."""
        header, paddings = self.header_bytes, self.paddings()
        facts = {
            "container": "gguf",
            "version": self.version,
            "byte_order": self.byte_order,
            "n_bytes": self.n_bytes,
            "header_n_bytes": len(header),
            "paddings": [[p.byte_offset, len(p.data)] for p in paddings],
        }
        return Recipe(facts, b"".join([header, *(p.data for p in paddings)]))

    def close(self) -> None:
        """Release the mapping; views handed out stay valid. May be called again."""
        self._mapped.close()

    def _view(self, start: int, stop: int) -> memoryview:
        return self._mapped.view(start, stop)

    def _padding_oddities(self) -> list[Oddity]:
        header, found = self._header, []
        if any(self._view(header.end, self.data_start)):
            found.append(Oddity("warning", "padding after the header is not zero", header.end))
        found += [Oddity("warning", f"{len(p.data)} bytes of padding are not all zero", p.byte_offset) for p in self.paddings()]
        missing = header.padded_end() - self.n_bytes
        if missing > 0:
            found.append(Oddity("warning", f"{missing} bytes of padding are missing at the end", self.n_bytes))
        return found


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file of version 2 or 3, of either byte order, and check its header.

    Raises FileError, in time and memory bounded by the bytes of the header, for whatever is not such a file.
    """
    mapped = open_mapped(path)
    try:
        return GGUFFile(mapped, parse_header(mapped.data, mapped.n_bytes, str(mapped.path)))
    except BaseException:
        mapped.close()
        raise
