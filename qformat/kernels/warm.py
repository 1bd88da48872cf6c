"""Compiles, once, every kernel that the catalogue needs, so that the disk cache holds them before they are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np

from qformat.formats import ALL, Format
from qformat.formats.gguf import KVALUES
from qformat.kernels import search
from qformat.kernels.evaluate import evaluate, n_evaluators
from qformat.kernels.planes import n_plane_kernels, pack, unpack
from qformat.kernels.rounding import n_roundings
from qformat.layout import Bits
from qformat.scheme import Levels, Plain


def warm() -> int:
    """Compile the kernels of all formats for blocks that lie without gaps; give the number of kernels then in use."""
    for form in ALL:
        for part in form.parts:
            for field in part.layout.parts:
                if isinstance(field, Bits):
                    _warm_planes(field, part.layout.n_bytes)
        if not isinstance(form.scheme.alphabet, Plain):
            _warm_chain(form)
    return n_plane_kernels() + n_evaluators() + n_roundings() + _warm_searches()


def _warm_planes(field: Bits, n_bytes: int) -> None:
    blocks = np.zeros((1, n_bytes), np.uint8)
    values = np.empty((1, field.count), _dtype(field))
    unpack(blocks[:, None, :], field, values)
    pack(values, field, blocks)


def _warm_chain(form: Format) -> None:
    import ml_dtypes

    alphabet = form.scheme.alphabet
    codes = next((_dtype(part.layout.codes) for part in form.parts if part.layout.codes), np.dtype(np.int8))
    table = np.array(alphabet.levels, np.float32) if isinstance(alphabet, Levels) else None
    chain = tuple((step.op, np.ones((1, 1), np.float32)) for step in form.scheme.steps)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        evaluate(np.zeros((1, 8), codes), table, chain, 8, np.empty((1, 8), dtype))


def _warm_searches() -> int:
    ones = np.ones((1, 8), np.float32)
    codes, scales, mins = search.fit_affine(ones, ones, 15, ones[0], False)
    search.recode(ones, scales, mins, -8, 7, codes)
    others = (
        search.fit_signed(ones, ones, -8, 7, ones[0]),
        search.fit_stepwise(ones, ones, -8, 7, ones[0], 0),
        search.fit_levels(ones, ones, KVALUES, ones[0]),
        search.nearest_levels(ones, ones[0, :1], KVALUES),
        search.running_sums(ones),
    )
    return 2 + len(others)


def _dtype(field: Bits) -> np.dtype[Any]:
    """Give the smallest integer type that holds a field; kernels differ by it."""
    return np.min_scalar_type(field.high if field.low >= 0 else min(field.low, ~field.high))
