"""Tensors of one family made of those of the other: rows in another order, shares, stacks, values moved by a constant.

Reads what a declaration says of one pair of names, in both directions. Rows are moved and nothing is decoded, save what a
GGUF file holds as floats only. Must not know whole models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qconvert.architectures.architecture import EXPERT, Tensor
from qconvert.architectures.flipping import flip
from qconvert.roles import kept_because
from qconvert.verdict import ROUNDED, Verdict
from qformat.bits import DTYPES
from qformat.errors import UsageError
from qformat.formats.dense import dense
from qformat.gather import Gathered
from qformat.order import strides
from qformat.rows import rearrange
from qformat.scheme import Plain
from qformat.tensor import PackedTensor, assemble, from_array

Sizes = Mapping[str, object]
_KEY = re.compile(r"\{([^}]+)\}")
_SIZE = re.compile(r"=(\d+)")
MATRIX = 2  # axes
STACK_SIZE = "expert_count"
FLOAT32, WIDENED, DECODED = "float32", "widened to float32", "decoded to float32"


def to_gguf(tensor: Tensor, sources: Sequence[PackedTensor], part: int, name: str, sizes: Sizes) -> PackedTensor:
    """Make a tensor of a GGUF file.

    sources : those of the checkpoint that the declaration names
    part    : which of the declaration's tensors of a GGUF file
    name    : of that tensor
    sizes   : values of the file's keys

    Raises UsageError where the rows are not as many as the declaration says.
    """
    turned, shape = _seen(tensor, sources), check_there(tensor, sources, sizes)
    made = _moved(tensor, turned, part, len(tensor.known) or 1, shape, sizes, forward=True)
    if tensor.plus:
        return from_array(added(made, tensor.plus))
    return widened(made) if how_float(name, made, len(made.shape)) else made


def to_hf(
    tensor: Tensor, sources: Sequence[PackedTensor], part: int, n_parts: int, sizes: Sizes, decode: bool = False
) -> PackedTensor:
    """Make a tensor of a checkpoint.

    sources : those of the GGUF file that the declaration names
    part    : which of the `n_parts` tensors of a checkpoint
    decode  : whether packed tensors are to be dense

    Raises UsageError where the rows are not as many as the declaration says.
    """
    made = _moved(tensor, sources, part, n_parts, check_here(tensor, sources, n_parts, sizes), sizes, forward=False)
    if tensor.flipped and (decode or made.scheme.is_dense):
        made = flip(made)
    return from_array(added(made, -tensor.plus)) if tensor.plus else made


def check_there(tensor: Tensor, sources: Sequence[PackedTensor], sizes: Sizes) -> tuple[int, ...]:
    """Give the shape that tensors of a checkpoint have in a GGUF file; what `to_gguf` raises is raised here."""
    seen = _seen(tensor, sources)
    shape = _shape_there(tensor, seen, len(tensor.known) or 1)
    _sized(tensor, seen, sizes)
    return shape


def check_here(tensor: Tensor, sources: Sequence[PackedTensor], n_parts: int, sizes: Sizes) -> tuple[int, ...]:
    """Give the shape that tensors of a GGUF file have in a checkpoint; what `to_hf` raises is raised here."""
    if EXPERT in tensor.name and _first(sources).shape[:1] != (n_parts,):
        raise UsageError(f"shape {list(_first(sources).shape)}, expected a stack of {n_parts}", field="shape")
    shape = _shape_here(tensor, sources)
    _sized(tensor, sources, sizes)
    return shape


def added(tensor: PackedTensor, term: float) -> NDArray[np.float32]:
    """Give every value in float32 with a term added."""
    values: NDArray[np.float32] = tensor.dequantize()
    return values + np.float32(term)


def loss(tensor: PackedTensor, term: float) -> Verdict | None:
    """Say what is lost of values where a term is added in float32 and taken off again; None where nothing is."""
    values = tensor.dequantize().reshape(-1)
    back = (values + np.float32(term)) - np.float32(term)
    wrong = np.flatnonzero((back != values) & ~np.isnan(values))
    if not wrong.size:
        return None
    index = int(wrong[0])
    with np.errstate(all="ignore"):
        errors = np.abs(back[wrong].astype(np.float64) / values[wrong] - 1)
    reason = f"{term:+g} in float32 rounds"
    return Verdict(ROUNDED, reason, "values", index, float(values[index]), int(wrong.size), float(np.nanmax(errors)))


def describe(tensor: Tensor, part: int, n_sources: int, forward: bool) -> str:
    """Say in a few words what was done beside renaming; nothing if nothing was."""
    said = []
    if EXPERT in tensor.name:
        said.append(f"stack of {n_sources}" if forward else f"expert {part} of a stack")
    if len(tensor.known) > 1:
        said.append(f"rows {part}::{len(tensor.known)}" if forward else f"rows of {len(tensor.known)} interleaved")
    elif tensor.order:
        said.append("rows of each head " + ("paired" if forward else "in halves"))
    if tensor.plus:
        said.append(f"{tensor.plus if forward else -tensor.plus:+g}")
    return ", ".join(said)


def how_float(name: str, tensor: PackedTensor, n_axes: int) -> str:
    """Say how a tensor becomes float32, which holds the values of every shorter float; nothing where it stays as it is.

    name   : in a GGUF file, whose runtime wants some tensors, and all vectors, as float32
    n_axes : that it has there
    """
    alphabet = tensor.scheme.alphabet
    if kept_because(name) is None and n_axes >= MATRIX:
        return ""
    if not isinstance(alphabet, Plain):
        return DECODED
    return WIDENED if alphabet.dtype != FLOAT32 and DTYPES[alphabet.dtype].kind == "float" else ""


def widened(tensor: PackedTensor) -> PackedTensor:
    """Give a tensor as float32; nothing is read before the result is."""

    def rows(first: int, last: int) -> NDArray[np.uint8]:
        return tensor.dequantize(rows=slice(first, last)).view(np.uint8)

    picked, line_bytes = np.arange(tensor.n_rows), tensor.n_cols * DTYPES[FLOAT32].bits // 8
    source = Gathered((rows,), np.array([0, tensor.n_rows]), picked, line_bytes)
    form = dense(FLOAT32)
    return assemble(form, tensor.shape, {form.parts[0].role: source}, tensor.dtype)


def _moved(
    tensor: Tensor,
    sources: Sequence[PackedTensor],
    part: int,
    n_parts: int,
    shape: tuple[int, ...],
    sizes: Sizes,
    forward: bool,
) -> PackedTensor:
    """Take the share of all rows that a part has, in the order of the side that it is for."""
    if not tensor.order and len(sources) == 1 and n_parts == 1:
        return sources[0]
    n_rows = _n_rows(tensor, sources)
    where = _positions(_sized(tensor, sources, sizes), n_rows)
    if tensor.is_bias:
        sources = [_vector(source) for source in sources]
    rows = np.argsort(where) if forward else where
    share = n_rows // n_parts
    picked = rows[part * share : (part + 1) * share]
    if not tensor.is_bias:
        return rearrange(sources, picked, shape)
    return replace(rearrange(sources, picked, (share,)), shape=shape)


def _seen(tensor: Tensor, sources: Sequence[PackedTensor]) -> list[PackedTensor]:
    """See tensors of a checkpoint with their rows as rows."""
    return [flip(source) if tensor.flipped and source.scheme.is_dense else source for source in sources]


def _n_rows(tensor: Tensor, sources: Sequence[PackedTensor]) -> int:
    return sum(source.n_weights if tensor.is_bias else source.n_rows for source in sources)


def _sized(tensor: Tensor, sources: Sequence[PackedTensor], sizes: Sizes) -> str:
    """Give the order of rows with its sizes. Raises UsageError where the rows are not as many as these say."""
    n_rows = _n_rows(tensor, sources)
    if not tensor.order or not n_rows:
        return ""
    n_stacked = sizes[STACK_SIZE] if STACK_SIZE in _KEY.findall(tensor.order) else None
    if n_stacked is not None and _first(sources).shape[:1] != (n_stacked,):
        raise UsageError(f"shape {list(_first(sources).shape)}, expected a stack of {n_stacked}", field="shape")
    sized = _KEY.sub(lambda found: str(sizes[found[1]]), tensor.order)
    known = math.prod(map(int, _SIZE.findall(sized)))
    if not known or n_rows % known:
        said = ", ".join(f"{key} {sizes[key]}" for key in _KEY.findall(tensor.order))
        raise UsageError(f"{n_rows} rows, expected a multiple of {known} by {said}", field="shape")
    return sized.replace("{}", str(n_rows // known))


def _positions(order: str, n_rows: int) -> NDArray[np.int64]:
    """Give, for every row of a checkpoint, its number among those of a GGUF file."""
    found = strides(order, n_rows, 1)
    where = np.full((), found.base, np.int64)
    for size, step in zip(found.sizes, found.steps, strict=True):
        where = where[..., None] + np.arange(size, dtype=np.int64) * step
    return where.reshape(-1)


def _shape_there(tensor: Tensor, sources: Sequence[PackedTensor], n_parts: int) -> tuple[int, ...]:
    """Give the shape of a GGUF file's tensor."""
    shape = _first(sources).shape
    if EXPERT in tensor.name:
        return (len(sources), *shape)
    return _scaled(shape, 1 if tensor.is_bias else MATRIX, 1, n_parts)


def _shape_here(tensor: Tensor, sources: Sequence[PackedTensor]) -> tuple[int, ...]:
    """Give the shape of a checkpoint's tensor."""
    shape = _first(sources).shape
    if EXPERT in tensor.name:
        return shape[1:]
    return _scaled(shape, 1 if tensor.is_bias else MATRIX, len(sources), 1)


def _scaled(shape: tuple[int, ...], axis: int, times: int, over: int) -> tuple[int, ...]:
    """Multiply and divide the axis that is this far from the end."""
    if times == over:
        return shape
    if len(shape) < axis or shape[-axis] * times % over:
        raise UsageError(f"shape {list(shape)} is not to be cut into {over} along its rows", field="shape")
    return (*shape[:-axis], shape[-axis] * times // over, *shape[len(shape) - axis + 1 :])


def _first(sources: Sequence[PackedTensor]) -> PackedTensor:
    if any(source.shape != sources[0].shape for source in sources):
        shapes = ", ".join(str(list(shape)) for shape in dict.fromkeys(source.shape for source in sources))
        raise UsageError(f"tensors that belong together have shapes {shapes}", field="shape")
    return sources[0]


def _vector(source: PackedTensor) -> PackedTensor:
    """See a dense tensor of any shape as a vector."""
    if not source.scheme.is_dense:
        raise UsageError(f"a bias is {source.scheme.name}, expected an array", field="scheme")
    return replace(source, shape=(source.n_weights,))
