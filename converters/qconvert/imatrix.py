"""Importance of columns, as llama-imatrix measured it: read from its GGUF files and its older `.dat` files.

Decides what a sound file is and what the importance of a column comes to. Must not know which rules use it. Values stay on
the mapped file until a tensor is quantized.

Source: ggml-org/llama.cpp at 0ce8cd114: common/imatrix-loader.cpp (both forms), tools/quantize/quantize.cpp (load_imatrix).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.containers.cursor import Cursor, text_of
from qconvert.containers.gguf import GGUFFile, open_gguf
from qconvert.containers.gguf_tensors import TensorInfo
from qconvert.containers.gguf_types import GGML_TYPES, MAGIC
from qconvert.containers.gguf_values import GGUFArray
from qconvert.containers.mapped import Mapped, explain_foreign, open_mapped
from qformat.errors import FileError, UsageError

F32 = NDArray[np.float32]

SUMS, COUNTS = ".in_sum2", ".counts"
MIN_ENTRY_BYTES = 12  # of a `.dat` file: length of the name, calls, values


@dataclass(frozen=True, slots=True)
class Entry:
    """The importance of one tensor's columns.

    sums   : (n_experts, columns) float32, sums of squared inputs; one row of all experts' columns in a `.dat` file
    counts : (n_experts,) float32, by which they are divided once rounded to whole numbers
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]

    def importance(self) -> F32:
        """Give the importance of the columns: (n_experts, columns) float32; 1 for an expert that was never called."""
        sums, counts = self.sums.astype(np.float32), np.floor(self.counts.astype(np.float32) + np.float32(0.5))[:, None]
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1))


@dataclass(frozen=True, slots=True)
class Imatrix:
    """An importance file.

    path     : where it lies
    entries  : by tensor name
    datasets : what it was measured on, as the file says
    n_chunks : pieces of text measured; 0 where the file does not say
    """

    path: Path
    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    n_chunks: int

    def get(self, name: str) -> F32 | None:
        """Give the importance of a tensor's columns, (n_experts, columns) float32; None without an entry."""
        entry = self.entries.get(name)
        return None if entry is None else entry.importance()

    def fit(self, entry: Entry, name: str, n_experts: int, n_cols: int) -> Entry:
        """Give an entry one row for each expert of a tensor. Raises UsageError when it has not the tensor's columns."""
        found, wanted = entry.sums.shape, (n_experts, n_cols)
        if found == wanted:
            return entry
        if found == (1, n_experts * n_cols):
            return Entry(entry.sums.reshape(wanted), np.repeat(entry.counts, n_experts))
        message = f"importance of {_sizes(*found)}, the tensor has {_sizes(*wanted)}"
        raise UsageError(message, path=self.path, tensor=name, field="importance", found=found, expected=wanted)


def read_imatrix(path: str | Path) -> Imatrix:
    """Read an importance file of either form.

    Raises FileError, one line, for what is no such file, counts that its bytes cannot hold, sums without counts, and
    values that are negative, infinite or NaN.
    """
    with open_mapped(path) as mapped:
        if mapped.data[: len(MAGIC)] != MAGIC:
            return _read_dat(mapped)
    with open_gguf(path) as file:
        return _read_gguf(file)


def _read_gguf(file: GGUFFile) -> Imatrix:
    kind = file.metadata.get("general.type", "imatrix")
    names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
    if kind != "imatrix" or not names:
        said = f" of type '{kind}'" if isinstance(kind, str) and "general.type" in file.metadata else ""
        found = f"a GGUF file{said} with {len(names)} tensors *{SUMS}"
        raise FileError(f"{found}, expected an imatrix file", path=file.path, field="general.type", found=kind)
    entries = {}
    for name in names:
        if name + COUNTS not in file.tensors:
            raise FileError(f"'{name}{SUMS}' without '{name}{COUNTS}'", path=file.path, tensor=name)
        sums, counts = _matrix(file, name + SUMS), _matrix(file, name + COUNTS)
        if counts.shape != (sums.shape[0], 1):
            message = f"{counts.shape[0]} x {counts.shape[1]} counts, expected {sums.shape[0]} x 1, one for each expert"
            raise FileError(message, path=file.path, tensor=name, field="counts", found=counts.size, expected=sums.shape[0])
        entries[name] = Entry(sums, counts[:, 0])
    datasets, chunks = file.metadata.get("imatrix.datasets"), file.metadata.get("imatrix.chunk_count", 0)
    if not isinstance(chunks, int) or not 0 <= chunks < 1 << 32:
        message = f"found {chunks}, expected a 32-bit count"
        raise FileError(message, path=file.path, field="imatrix.chunk_count", found=chunks)
    listed = datasets.values() if isinstance(datasets, GGUFArray) else []
    return Imatrix(file.path, entries, tuple(map(str, listed)), int(chunks))


def _matrix(file: GGUFFile, name: str) -> NDArray[Any]:
    """View a tensor of float32 numbers as (experts, columns)."""
    info: TensorInfo = file.tensors[name]
    if GGML_TYPES.get(info.type_id) is not GGML_TYPES[0] or not 1 <= len(info.dims) <= 2 or not math.prod(info.dims):
        found = f"{info.type_name} of {' x '.join(map(str, info.shape))}"
        raise FileError(f"{found}, expected f32 of experts x columns", path=file.path, tensor=name, found=info.type_name)
    values = np.frombuffer(file.data(info), f"{file.byte_order}f4").reshape(-1, info.dims[0])
    _check(values, name, file.path, info.byte_offset)
    return values


def _read_dat(mapped: Mapped) -> Imatrix:
    """Read the older form: entries with the means times the calls; then, in younger files, chunks and the data set's name."""
    cursor = Cursor(mapped.data, "<", str(mapped.path))
    n_entries = _count(cursor, "entries", 1)
    if n_entries * MIN_ENTRY_BYTES > cursor.left():
        needed = f"{n_entries} entries, which need at least {n_entries * MIN_ENTRY_BYTES} bytes, {cursor.left()} left"
        message = f"found {explain_foreign(mapped.data) or needed}, expected an imatrix file"
        raise cursor.error(message, "entries", 0, n_entries * MIN_ENTRY_BYTES, cursor.left())
    entries: dict[str, Entry] = {}
    for _ in range(n_entries):
        start = cursor.pos
        name = _text(cursor, "name")
        if name in entries:
            raise cursor.error(f"'{name}' stands twice, expected unique names", "name", start)
        calls, n_values = _count(cursor, "calls", 0), _count(cursor, "values", 1)
        start = cursor.pos
        values = np.frombuffer(cursor.take(4 * n_values, name), "<f4").reshape(1, -1)
        _check(values, name, mapped.path, start)
        # An entry of no calls is taken as it stands, as llama-quantize does.
        entries[name] = Entry(values, np.array([max(calls, 1)], np.float32))
    n_chunks = _count(cursor, "chunks", 0) if cursor.left() else 0
    datasets = (_text(cursor, "dataset"),) if cursor.left() else ()
    if cursor.left():
        raise cursor.error(f"{cursor.left()} bytes after the end, expected none", "dataset", cursor.pos, 0, cursor.left())
    return Imatrix(mapped.path, entries, datasets, n_chunks)


def _count(cursor: Cursor, field: str, low: int) -> int:
    """Read a 32-bit integer that counts something."""
    start = cursor.pos
    value: int = struct.unpack("<i", cursor.take(4, field))[0]
    if value < low:
        raise cursor.error(f"{value} {field}, expected at least {low}", field, start, low, value)
    return value


def _text(cursor: Cursor, field: str) -> str:
    start = cursor.pos
    raw = cursor.take(_count(cursor, field, 0), field)
    try:
        return text_of(raw)
    except UnicodeDecodeError as err:
        raise cursor.error(f"byte {raw[err.start]:#04x} is not UTF-8", field, start + 4 + err.start) from err


def _check(values: NDArray[Any], name: str, path: Path, byte_offset: int) -> None:
    wrong = ~(np.isfinite(values) & (values >= 0)).reshape(-1)
    if wrong.any():
        at = int(np.argmax(wrong))
        value = float(values.reshape(-1)[at])
        message = f"value {at} is {value}, expected a finite number of at least 0"
        raise FileError(message, path=path, tensor=name, offset=byte_offset + 4 * at, found=value, expected="finite, >= 0")


def _sizes(n_experts: int, n_cols: int) -> str:
    return f"{n_cols} columns" if n_experts == 1 else f"{n_experts} x {n_cols} columns"
