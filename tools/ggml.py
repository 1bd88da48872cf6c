"""ggml's own quantization, as llama-quantize calls it, out of the library that tools/llama.py reads models with.

Knows nothing of qformat: rows of floats go in, rows of blocks come out.

Source: ggml-org/ggml: include/ggml.h (ggml_quantize_chunk, ggml_row_size).
"""

from __future__ import annotations

import ctypes

import numpy as np
from llama import library
from numpy.typing import NDArray

Floats = ctypes.POINTER(ctypes.c_float)


def quantize(rows: NDArray[np.float32], type_id: int, importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """Quantize rows to a type that has an encoder; the library ends the process for any other.

    rows       : (n_rows, K) float32, K a multiple of the type's block
    type_id    : ggml's number of the type
    importance : (K,) float32
    returns    : (n_rows, bytes of a row) uint8
    """
    row_size, chunk = library().ggml_row_size, library().ggml_quantize_chunk
    row_size.restype, row_size.argtypes = ctypes.c_size_t, (ctypes.c_int, ctypes.c_int64)
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = (ctypes.c_int, Floats, ctypes.c_void_p, *[ctypes.c_int64] * 3, Floats)
    n_rows, n_columns = rows.shape
    rows = np.ascontiguousarray(rows, np.float32)
    blocks = np.zeros((n_rows, int(row_size(type_id, n_columns))), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32).ctypes.data_as(Floats)
    chunk(type_id, rows.ctypes.data_as(Floats), blocks.ctypes.data, 0, n_rows, n_columns, weights)
    return blocks
