"""Compiles, once, the kernels that the catalogue needs in common use, so that the disk cache holds them before they are wanted.

Does with zeros what kernels are for: decodes every format, quantizes to it where a rule does and multiplies with it then, takes
its fields apart and puts them together; makes up for errors as GPTQ does. Must not know which kernels that takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from qformat.arrays import Memory, aligned
from qformat.errors import UsageError
from qformat.formats import DIALECTS, GGUF, PLANAR, Format
from qformat.integer_products import integer_matmul
from qformat.layout import Bits
from qformat.products import matmul
from qformat.rules.encoding import encode, prepare, quantize
from qformat.tensor import assemble

N_COLS = 4096  # whole units and groups of every format
N_ROWS = 128  # as float32 too large for the caches
ACTIVATIONS = (1, 2, 4, 36)  # rows that kernels are made for: one, two, several, and many, with decoded weights
TYPES = ("float32", "float16", "bfloat16")


def warm(forms: Iterable[Format] = (*GGUF, *PLANAR, *DIALECTS)) -> int:
    """Compile the kernels of formats, or find them in the cache; give the number of kernels then in use."""
    from qformat.kernels.compiled import n_kernels
    from qformat.kernels.subtract import subtract_product

    subtract_product(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)), 0, 0)
    kept = aligned((N_ROWS, N_COLS), np.dtype(np.float32))
    for form in forms:
        for dtype in TYPES:
            _zeros(form, 1).dequantize(dtype)
        if form.rule:
            _zeros(form, N_ROWS).dequantize(out=kept)
            quantize(np.zeros((1, N_COLS), np.float32), form)
            encode(np.zeros((1, N_COLS), np.float32), form, state=prepare(form, [np.zeros((1, N_COLS), np.float32)]))
            _warm_products(form)
        for part in form.parts:
            for field in part.layout.parts:
                if isinstance(field, Bits):
                    _warm_planes(field, part.layout.n_bytes)
    return n_kernels()


def _zeros(form: Format, n_rows: int) -> Any:
    shape = n_rows, N_COLS
    return assemble(form, shape, {role: Memory(np.zeros(n, np.uint8)) for role, n in form.part_bytes(shape).items()})


def _warm_products(form: Format) -> None:
    weights = _zeros(form, 1)
    for n_rows in ACTIVATIONS:
        matmul(np.zeros((n_rows, N_COLS), np.float32), weights)
    with suppress(UsageError):  # of formats that are no integers times a scale
        for n_rows in ACTIVATIONS:
            integer_matmul(_zeros(form, n_rows), _zeros(form, N_ROWS))


def _warm_planes(field: Bits, n_bytes: int) -> None:
    from qformat.kernels.planes import pack, unpack

    blocks = np.zeros((1, n_bytes), np.uint8)
    values = np.empty((1, field.count), np.min_scalar_type(field.high if field.low >= 0 else min(field.low, ~field.high)))
    unpack(blocks[:, None, :], field, values)
    pack(values, field, blocks)
