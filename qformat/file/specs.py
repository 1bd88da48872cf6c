"""Whether what a caller wants written can be written, and how its parts are cut.

Decides defaults and refusals for `TensorSpec`, and which columns and encodings a compression mode gives (spec/qfmt.md,
"Encoding"). Writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from qformat.errors import UsageError
from qformat.file.records import (
    ASSET_ROLE,
    DTYPE_BITS,
    MAX_BYTES,
    MAX_RANK,
    RAW,
    ZSTD,
    Column,
    PartSpec,
    TensorSpec,
)

COMPRESS = ("none", "scales", "all")


def check_tensors(tensors: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Give the tensors with defaults filled in.

    Raises UsageError when a name repeats, or a tensor contradicts itself or a limit.
    """
    seen: set[str] = set()
    checked = []
    for spec in tensors:
        if spec.name in seen:
            raise UsageError("name given twice", tensor=spec.name)
        seen.add(spec.name)
        checked.append(check_tensor(spec))
    return checked


def asset_spec(name: str, n_bytes: int) -> TensorSpec:
    """Describe an asset.

    Raises UsageError when its name is not a plain relative path.
    """
    if not is_asset_name(name):
        raise UsageError(f"asset name {name!r}, expected a relative path with '/' between plain names", found=name)
    part = PartSpec(ASSET_ROLE, "uint8", (n_bytes,), row_bytes=1)
    return check_tensor(TensorSpec(name, (n_bytes,), "uint8", {}, (part,)))


def is_asset_name(name: str) -> bool:
    """Tell whether a name is a relative path that stays below where it is unpacked."""
    if any(c in "\\:" or c < " " for c in name):
        return False
    return all(piece not in ("", ".", "..") for piece in name.split("/"))


def cut_columns(part: PartSpec, compress: str) -> tuple[tuple[Column, int], ...]:
    """Give the columns of a part with their encodings.

    part    : as `check_tensors` gives it
    compress: "none", "scales" or "all"
    """
    is_split = compress == "all" or (compress == "scales" and not all(column.is_codes for column in part.columns))
    if part.n_bytes == 0 or not is_split:
        return ((join(part), RAW),)
    return tuple((column, RAW if compress == "scales" and column.is_codes else ZSTD) for column in part.columns)


def join(part: PartSpec) -> Column:
    """Give the one column that stands for all columns of a part."""
    element_bytes = part.element_bytes if part.element_bytes == part.block_bytes else 1
    return Column(0, part.block_bytes, element_bytes, any(column.is_codes for column in part.columns))


def check_tensor(spec: TensorSpec) -> TensorSpec:
    """Give one tensor with defaults filled in, and plain tuples of int."""
    check_text(spec.name, "name", spec.name)
    check_text(spec.dtype, "dtype", spec.name)
    check_shape(spec.shape, spec.name, "shape")
    if not 1 <= len(spec.parts) <= 0xFFFF:
        raise UsageError(f"{len(spec.parts)} parts, expected 1 to 65535", tensor=spec.name, found=len(spec.parts))
    if len({part.role for part in spec.parts}) != len(spec.parts):
        raise UsageError(f"roles {[part.role for part in spec.parts]}, expected each once", tensor=spec.name)
    parts = tuple(check_part(part, spec.name) for part in spec.parts)
    return replace(spec, shape=tuple(map(int, spec.shape)), parts=parts)


def check_part(part: PartSpec, tensor: str) -> PartSpec:
    """Give one part with defaults filled in."""
    check_text(part.role, "role", tensor)
    if part.dtype not in DTYPE_BITS:
        known = ", ".join(DTYPE_BITS)
        raise UsageError(f"dtype {part.dtype!r}, expected one of {known}", tensor=tensor, field=part.role, found=part.dtype)
    check_shape(part.shape, tensor, part.role)
    n_bits = prod(part.shape) * DTYPE_BITS[part.dtype]
    if n_bits % 8 or n_bits // 8 > MAX_BYTES:
        raise UsageError(f"{n_bits} bits, expected whole bytes, at most 2**48", tensor=tensor, field=part.role, found=n_bits)
    block_bytes = part.block_bytes or part.element_bytes
    if not 1 <= block_bytes <= 0xFFFF or part.n_bytes % block_bytes:
        raise UsageError(
            f"{part.n_bytes} bytes, expected a multiple of block_bytes {block_bytes} (1 to 65535)",
            tensor=tensor,
            field=part.role,
            expected=block_bytes,
            found=part.n_bytes,
        )
    if part.row_bytes < 1 or part.n_bytes % part.row_bytes:
        raise UsageError(
            f"{part.n_bytes} bytes, expected a multiple of row_bytes {part.row_bytes}",
            tensor=tensor,
            field=part.role,
            expected=part.row_bytes,
            found=part.n_bytes,
        )
    element_bytes = part.element_bytes if part.element_bytes == block_bytes else 1
    columns = part.columns or (Column(0, block_bytes, element_bytes, part.is_codes),)
    check_columns(columns, block_bytes, tensor, part.role)
    shape = tuple(map(int, part.shape))
    return replace(part, shape=shape, row_bytes=int(part.row_bytes), block_bytes=int(block_bytes), columns=columns)


def check_columns(columns: Sequence[Column], block_bytes: int, tensor: str, role: str) -> None:
    """Refuse columns that do not cut a block from end to end."""
    begin = 0
    for column in columns:
        width = column.end - column.begin
        if column.begin != begin or width < 1 or not 1 <= column.element_bytes <= 255 or width % column.element_bytes:
            raise UsageError(
                f"column {column}, expected one from {begin}, of a width that element_bytes (1 to 255) divides",
                tensor=tensor,
                field=role,
                expected=begin,
                found=column.begin,
            )
        begin = column.end
    if begin != block_bytes or len(columns) > 255:
        raise UsageError(
            f"{len(columns)} columns end at {begin}, expected at most 255 that end at {block_bytes}",
            tensor=tensor,
            field=role,
            expected=block_bytes,
            found=begin,
        )


def check_shape(shape: Sequence[int], tensor: str, field: str) -> None:
    """Refuse a shape that is too deep, negative or too large."""
    if len(shape) > MAX_RANK or any(not 0 <= n <= MAX_BYTES for n in shape) or prod(map(int, shape)) > MAX_BYTES:
        raise UsageError(
            f"shape {list(shape)}, expected at most {MAX_RANK} dimensions and 2**48 elements",
            tensor=tensor,
            field=field,
            found=tuple(shape),
        )


def check_text(text: str, field: str, tensor: str) -> None:
    """Refuse text that UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError("holds a lone surrogate, expected Unicode text", tensor=tensor, field=field) from error
