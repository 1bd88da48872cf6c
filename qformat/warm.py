"""Compiles, once, the kernels that the catalogue needs in common use, so that the disk cache holds them before they are wanted.

Does with zeros what kernels are for: decodes every format, quantizes to it where a rule does, takes its fields apart and puts
them together. Must not know which kernels that takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from qformat.arrays import Memory, aligned
from qformat.formats import DIALECTS, GGUF, PLANAR, Format
from qformat.layout import Bits
from qformat.rules.encoding import quantize
from qformat.tensor import assemble

N_COLS = 4096  # whole units and groups of every format
N_ROWS = 128  # as float32 too large for the caches
TYPES = ("float32", "float16", "bfloat16")


def warm(forms: Iterable[Format] = (*GGUF, *PLANAR, *DIALECTS)) -> int:
    """Compile the kernels of formats, or find them in the cache; give the number of kernels then in use."""
    from qformat.kernels.compiled import n_kernels

    kept = aligned((N_ROWS, N_COLS), np.dtype(np.float32))
    for form in forms:
        for dtype in TYPES:
            _zeros(form, 1).dequantize(dtype)
        if form.rule:
            _zeros(form, N_ROWS).dequantize(out=kept)
            quantize(np.zeros((1, N_COLS), np.float32), form)
        for part in form.parts:
            for field in part.layout.parts:
                if isinstance(field, Bits):
                    _warm_planes(field, part.layout.n_bytes)
    return n_kernels()


def _zeros(form: Format, n_rows: int) -> Any:
    shape = n_rows, N_COLS
    return assemble(form, shape, {role: Memory(np.zeros(n, np.uint8)) for role, n in form.part_bytes(shape).items()})


def _warm_planes(field: Bits, n_bytes: int) -> None:
    from qformat.kernels.planes import pack, unpack

    blocks = np.zeros((1, n_bytes), np.uint8)
    values = np.empty((1, field.count), np.min_scalar_type(field.high if field.low >= 0 else min(field.low, ~field.high)))
    unpack(blocks[:, None, :], field, values)
    pack(values, field, blocks)
