"""Digests of values: equal for the same weights in whatever format or file they are kept.

BLAKE3 over the shape and the float32 decode with -0 as +0 and every NaN as 0x7fc00000; types that float32 does not contain
are digested as their own bytes under their name. Defined in spec/qfmt.md, "Value digest".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import TypeAlias

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from qformat.bits import DTYPES
from qformat.fold import narrower
from qformat.scheme import Plain
from qformat.tensor import PackedTensor
from qformat.threads import n_threads, spread

CONTEXT = b"qfmt-value/1\0"
RAW = ("float64", "complex64", "int32", "int64", "uint32", "uint64")


def digest_tensor(tensor: PackedTensor) -> bytes:
    """Give the value digest of a tensor: 32 bytes. Decodes tile by tile."""
    (found,) = digest_tensors([tensor])
    return found


def digest_tensors(tensors: Iterable[PackedTensor]) -> Iterator[bytes]:
    """Give the value digests of tensors, in order; several threads decode the tiles, of whichever tensor they are."""
    with closing(spread(_call, (job for tensor in tensors for job in _pieces(tensor)))) as pieces:
        hasher = blake3(max_threads=n_threads())
        for piece in pieces:
            if piece is None:
                yield hasher.digest()
                hasher = blake3(max_threads=n_threads())
            else:
                hasher.update(piece)


# Gives bytes to be hashed; None at the end of a tensor.
Job: TypeAlias = Callable[[], bytes | memoryview | None]


def _pieces(tensor: PackedTensor) -> Iterator[Job]:
    """Give what makes the bytes that are hashed of a tensor, in order."""
    alphabet = tensor.scheme.alphabet
    raw = alphabet.dtype if isinstance(alphabet, Plain) and alphabet.dtype in RAW else ""
    head = CONTEXT + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
    yield partial(bytes, head + (raw.encode() + b"\0" if raw else b""))
    narrow = narrower(tensor)
    yield from (partial(_tile, narrow, slice(*tile), bool(raw)) for tile in narrow.tiles())
    yield lambda: None


def _tile(tensor: PackedTensor, rows: slice, raw: bool) -> bytes | memoryview:
    values = tensor.codes(rows) if raw else canonical(plain_values(tensor, rows))
    return np.ascontiguousarray(values).data.cast("B") if values.size else b""


def _call(job: Job) -> bytes | memoryview | None:
    return job()


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
        if found.size and np.isnan(found.max()):  # NaN is the largest: most tiles hold none
            found[np.isnan(found)] = np.float32(np.nan)
    return found
