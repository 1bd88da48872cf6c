"""Digests of values: equal for the same weights in whatever format or file they are kept.

BLAKE3 over the shape and the float32 decode with -0 as +0 and every NaN as 0x7fc00000; types that float32 does not contain
are digested as their own bytes under their name. Defined in spec/qfmt.md, "Value digest".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from qformat.bits import DTYPES
from qformat.fold import narrower
from qformat.scheme import Plain
from qformat.tensor import PackedTensor

CONTEXT = b"qfmt-value/1\0"
RAW = ("float64", "complex64", "int32", "int64", "uint32", "uint64")


def digest_tensor(tensor: PackedTensor) -> bytes:
    """Give the value digest of a tensor: 32 bytes. Decodes tile by tile."""
    hasher = blake3(CONTEXT + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
    alphabet = tensor.scheme.alphabet
    raw = isinstance(alphabet, Plain) and alphabet.dtype in RAW
    if isinstance(alphabet, Plain) and raw:
        hasher.update(alphabet.dtype.encode() + b"\0")
    tensor = narrower(tensor)
    for first, last in tensor.tiles():
        rows = slice(first, last)
        values = tensor.codes(rows) if raw else canonical(plain_values(tensor, rows))
        hasher.update(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
    return hasher.digest()


def digest_all(digests: Mapping[str, bytes]) -> bytes:
    """Give the digest of a checkpoint from those of its tensors by name: 32 bytes."""
    hasher = blake3()
    for name in sorted(digests):
        encoded = name.encode()
        hasher.update(struct.pack("<I", len(encoded)) + encoded + digests[name])
    return hasher.digest()


def plain_values(tensor: PackedTensor, rows: slice | None = None) -> NDArray[np.float32]:
    """Give the float32 values of rows; small integers and booleans, which a decode refuses, by their number."""
    alphabet = tensor.scheme.alphabet
    if isinstance(alphabet, Plain) and DTYPES[alphabet.dtype].kind in ("int", "uint", "bool"):
        return tensor.codes(rows).astype(np.float32)
    return tensor.dequantize(rows=rows)


def canonical(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give values with one zero and one NaN, so that bytes are equal where values are."""
    with np.errstate(invalid="ignore"):  # a signaling NaN
        found = values + np.float32(0)  # -0 + 0 is +0
    found[np.isnan(found)] = np.float32(np.nan)
    return found
