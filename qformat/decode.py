"""Decode functions for blocks that planes cannot say: base-3 digits and grids of vectors.

A layout names one of these by string. The tables and the arithmetic are those of the `gguf` package, imported on use; its
results equal ggml's to the bit for every type that it can decode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError


def decode(name: str, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decode rows of opaque blocks.

    name    : ggml's type name in lower case
    rows    : (n_rows, bytes of a row) uint8
    returns : (n_rows, n_cols) float32

    Raises UsageError for a type that cannot be decoded.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kinds: dict[str, Any] = {kind.name.lower(): kind for kind in GGMLQuantizationType}
    try:
        found: NDArray[np.float32] = dequantize(np.ascontiguousarray(rows), kinds[name])
    except (KeyError, NotImplementedError) as err:
        raise UsageError(f"type '{name}' can be listed and copied, but not decoded") from err
    return found
