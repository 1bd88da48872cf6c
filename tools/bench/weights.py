"""Weights to measure on: floats, and the same packed, in memory or mapped from a file.

A few hundred distinct rows are repeated until there are enough: packing as many anew would take some formats minutes.
"""

from __future__ import annotations

from pathlib import Path

import ggml
import numpy as np
import qconvert
from bench.checkpoints import write_packed
from bench.roofline import paged
from numpy.typing import NDArray
from qconvert.containers.gguf_types import GGML_TYPES

import qformat
from qformat import formats
from qformat.arrays import Memory
from qformat.bits import DTYPES
from qformat.fields import numpy_dtype
from qformat.layout import Field
from qformat.tensor import assemble

DISTINCT, DISTINCT_PACKED = 256, 16
SIGMA = np.float32(0.02)


def floats(n_rows: int, n_cols: int) -> NDArray[np.float32]:
    """Make weights as they are in models: (n_rows, n_cols) float32, the array beginning at a page."""
    made: NDArray[np.float32] = paged((n_rows, n_cols), np.float32)
    n_distinct = min(n_rows, DISTINCT)
    made[:n_distinct] = np.random.default_rng(0).standard_normal((n_distinct, n_cols), np.float32) * SIGMA
    for first in range(n_distinct, n_rows, n_distinct):
        made[first : first + n_distinct] = made[: min(n_distinct, n_rows - first)]
    return made


def repeated(rows: NDArray[np.generic], n_rows: int) -> NDArray[np.generic]:
    """Repeat whole rows until there are so many."""
    return np.tile(rows, (-(-n_rows // len(rows)), 1))[:n_rows]


def type_id(target: str) -> int:
    """Give ggml's number of a type, from a target: "gguf:q4_k"."""
    return next(number for number, kind in GGML_TYPES.items() if kind.name == target.partition(":")[2])


def ggml_blocks(target: str, weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Let ggml pack weights, every column as important as the others: (n_rows, bytes of a row) uint8."""
    some = weights[:DISTINCT_PACKED]
    return repeated(ggml.quantize(some, type_id(target), np.ones(some.shape[1], np.float32)), len(weights))


def filled(form: formats.Format, n_rows: int, n_cols: int) -> qformat.PackedTensor:
    """Give weights of any codes and zero points, all floats alike: to be measured, not to be compared."""
    rng, made = np.random.default_rng(2), {}
    for part in form.parts:
        n_bytes = form.part_bytes((n_rows, n_cols))[part.role]
        (field,) = part.layout.parts
        if isinstance(field, Field) and DTYPES[field.dtype].kind == "float":
            dtype = numpy_dtype(field.dtype)
            made[part.role] = np.full(n_bytes // dtype.itemsize, SIGMA, dtype).view(np.uint8)
        else:
            made[part.role] = rng.integers(0, 256, n_bytes, np.uint8)
    return assemble(form, (n_rows, n_cols), {role: Memory(data) for role, data in made.items()})


def packed(target: str, weights: NDArray[np.float32], folder: Path) -> qformat.PackedTensor:
    """Give weights in a format.

    GGUF's are as ggml packs them, mapped from a file in the folder, in the place of the one before; those of a dialect, which
    nothing is quantized to, hold anything.
    """
    form = next((form for form in formats.DIALECTS if form.name == target), None)
    if form is not None and not form.rule:
        return filled(form, *weights.shape)
    if not target.startswith("gguf:"):
        return qformat.quantize(weights, target)
    path = folder / "packed.gguf"
    path.unlink(missing_ok=True)  # what is mapped of the one before lives on without its name
    write_packed(path, weights.shape[1], type_id(target), ggml_blocks(target, weights))
    ((_, tensor),) = qconvert.open(path).items()
    return tensor
