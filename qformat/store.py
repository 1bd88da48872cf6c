"""Tensors in `.qfmt` files: which records a tensor becomes, and a tensor from its records.

Joins the meaning (`tensor`, `describe`) to the bytes (`file`). Both directions are here so that they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.arrays import ByteSource
from qformat.describe import describe, read_format
from qformat.errors import FileError, QFormatError
from qformat.file.metadata import Typed
from qformat.file.read import File, open_file
from qformat.file.records import Column, PartSpec, TensorEntry, TensorSpec
from qformat.file.write import Writer
from qformat.formats import Format, matrix
from qformat.layout import Field, Layout
from qformat.model import Model, Recipe
from qformat.tensor import PackedTensor, assemble, format_of, from_array

COPY_BYTES = 1 << 22
HEADER_ASSET = "source/header"


class PlaneBytes:
    """The bytes of one part of a tensor in an open file, verified as they are read."""

    def __init__(self, file: File, entry: TensorEntry, role: str, n_bytes: int) -> None:
        self.file, self.entry, self.role, self.n_bytes = file, entry, role, n_bytes

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give bytes [start, stop) of the part."""
        return self.file.read(self.entry, self.role, start, stop)


def open(path: str | Path, verify: bool = True) -> Model:
    """Open a `.qfmt` file.

    verify  : check every chunk when it is first read; False reads without looking
    returns : a mapping of names to tensors, with metadata; use it as a context manager

    Raises FileError where header or index break spec/qfmt.md.
    """
    file = open_file(path, verify=verify)
    formats: dict[int, Format] = {}
    return Model(
        path=Path(path),
        container="qfmt",
        names=file.tensors,
        load=lambda name: read_tensor(file, file.tensors[name], formats),
        read_metadata=lambda: {key: plain(value) for key, value in file.metadata.items()},
        dialects=("qfmt",),
        n_bytes=Path(path).stat().st_size,
        close=file.close,
        assets={name: partial(file.asset, name) for name in file.assets if name != HEADER_ASSET},
        read_recipe=lambda: read_recipe(file),
        check_digests=lambda anew: file.verify(anew=anew),
        kind_of=file.form_of,
    )


def save(
    path: str | Path,
    tensors: Mapping[str, PackedTensor | NDArray[Any]],
    metadata: Mapping[str, Any] | None = None,
    compress: str = "none",
) -> None:
    """Write tensors to a `.qfmt` file; it appears under its name only when it is whole.

    tensors  : packed tensors or arrays by name, in the order in which the file lists them
    metadata : strings, numbers, booleans or lists of one of these, by key
    compress : "none", "scales" or "all"

    Raises UsageError for values that the file cannot hold, FileError where the file system refuses.
    """
    found = {name: t if isinstance(t, PackedTensor) else from_array(np.asarray(t)) for name, t in tensors.items()}
    specs = [
        tensor_spec(name, format_of(tensor), tensor.shape, tensor.dtype, part_bytes(tensor)) for name, tensor in found.items()
    ]
    with Writer(path, specs, metadata={k: typed(v) for k, v in (metadata or {}).items()}, compress=compress) as writer:
        for name, tensor in found.items():
            for part in tensor.parts:
                for start in range(0, part.source.n_bytes, COPY_BYTES):
                    stop = min(start + COPY_BYTES, part.source.n_bytes)
                    writer.write(name, part.form.role, start, part.source.read(start, stop))


def tensor_spec(name: str, form: Format, shape: tuple[int, ...], dtype: str, sizes: Mapping[str, int]) -> TensorSpec:
    """Give the records of a tensor that is stored in a format; `sizes` are the bytes of each part by role."""
    n_rows = matrix(shape)[0]
    parts = []
    for part in form.parts:
        block, n_bytes = part.layout.n_bytes, sizes[part.role]
        per_row = n_bytes // n_rows if n_rows and n_bytes % n_rows == 0 else 0
        row_bytes = per_row if per_row and per_row % block == 0 else block
        parts.append(PartSpec(part.role, "uint8", (n_bytes,), row_bytes, block, columns(part.layout)))
    return TensorSpec(name, shape, dtype or "float32", _described(form), tuple(parts))


def part_bytes(tensor: PackedTensor) -> dict[str, int]:
    """Give the bytes of each part by role."""
    return {part.form.role: part.source.n_bytes for part in tensor.parts}


@lru_cache(maxsize=1024)
def columns(layout: Layout) -> tuple[Column, ...]:
    """Cut a block where its owner changes, so that parameters compress apart from codes."""
    codes = {part.name for part in layout.parts if part.holds.partition(".")[0] == "codes"}
    widths = {part.name: part.n_bytes // part.count for part in layout.parts if isinstance(part, Field)}
    owners = [layout.owners[8 * byte] or "" for byte in range(layout.n_bytes)]
    cuts = [byte for byte in range(layout.n_bytes) if byte == 0 or owners[byte] != owners[byte - 1]]
    found = []
    for begin, end in zip(cuts, [*cuts[1:], layout.n_bytes], strict=True):
        width = widths.get(owners[begin], 1)
        found.append(Column(begin, end, width if (end - begin) % width == 0 else 1, owners[begin] in codes))
    return tuple(found)


def read_tensor(file: File, entry: TensorEntry, formats: dict[int, Format]) -> PackedTensor:
    """Make a tensor from its records.

    formats : those of descriptors that were read, by their ids: tensors share descriptors, which live as long as the file

    Raises FileError where the records and the descriptor disagree.
    """
    try:
        form = formats.get(id(entry.descriptor)) or formats.setdefault(id(entry.descriptor), read_format(entry.descriptor))
        lengths = {part.role: part.n_bytes for part in entry.parts}
        if set(lengths) != {part.role for part in form.parts}:
            raise FileError(f"stores {sorted(lengths)}, its descriptor says {sorted(p.role for p in form.parts)}")
        sources: dict[str, ByteSource] = {role: PlaneBytes(file, entry, role, n_bytes) for role, n_bytes in lengths.items()}
        return assemble(form, entry.shape, sources, entry.dtype, rule=form.rule)
    except QFormatError as err:
        raise FileError(err.message, path=file.path, tensor=entry.name, field=err.field) from err


def read_recipe(file: File) -> Recipe | None:
    """Give what an open file says of the file that it was made from."""
    facts = file.recipe
    if facts is None:
        return None
    if not isinstance(facts, dict) or not isinstance(facts.get("container"), str):
        raise FileError("recipe names no container", path=file.path, field="recipe")
    return Recipe(facts, bytes(file.asset(HEADER_ASSET)) if HEADER_ASSET in file.assets else b"")


def typed(value: Any) -> Typed:
    """Give a plain value its type: int64, float64, bool, string, or an array of one of these."""
    if isinstance(value, list | tuple):
        items = [typed(item) for item in value]
        kinds = {item.type for item in items} or {"string"}
        if len(kinds) != 1:
            raise FileError(f"metadata list of {sorted(kinds)}, expected one type")
        return Typed("array", tuple(item.value for item in items), kinds.pop())
    for kind, name in ((bool, "bool"), (int, "int64"), (float, "float64"), (str, "string")):
        if isinstance(value, kind):
            return Typed(name, value)
    raise FileError(f"metadata value of type {type(value).__name__}, expected a string, number, boolean or list")


def plain(value: Typed) -> Any:
    """Give a typed value as plain Python; arrays as lists."""
    if value.type != "array":
        return value.value
    return [plain(item) if isinstance(item, Typed) else item for item in value.value]


@lru_cache(maxsize=1024)
def _described(form: Format) -> dict[str, Any]:
    return describe(form)
