"""Digests of values: equal for the same weights in whatever format or file they are kept.

BLAKE3 over the shape and the float32 decode with -0 as +0 and every NaN as 0x7fc00000; types that float32 does not contain
are digested as their own bytes under their name. Defined in spec/qfmt.md, "Value digest".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from qformat.bits import DTYPES
from qformat.decoding import TILE_WEIGHTS, Decode, decoder
from qformat.errors import about
from qformat.fold import narrower
from qformat.scheme import Plain
from qformat.tensor import PackedTensor
from qformat.threads import n_threads, spread

CONTEXT = b"qfmt-value/1\0"
RAW = ("float64", "complex64", "int32", "int64", "uint32", "uint64")
SHARED_WEIGHTS = 1 << 25  # above, a tensor is the work of all threads; below, of one, beside others
TILES_AT_ONCE = 4  # that a thread decodes of a shared tensor before all of them are digested


def digest_tensor(tensor: PackedTensor) -> bytes:
    """Give the value digest of a tensor: 32 bytes. Decodes tile by tile, on all threads."""
    return _digest(n_threads(), tensor)


def digest_named(tensors: Iterable[tuple[str, PackedTensor]], path: Path) -> dict[str, bytes]:
    """Give the value digests of tensors by name, in order: of several at a time, of large ones each on all threads.

    path : what they are of, for errors

    Raises QFormatError that names the first tensor whose values cannot be read.
    """
    digests = dict[str, bytes]()
    for is_shared, run in groupby(tensors, lambda named: named[1].n_weights > SHARED_WEIGHTS):
        work = partial(_digest_one, path, n_threads() if is_shared else 1)
        with closing(spread(work, run, threads=1 if is_shared else 0)) as found:
            digests.update(found)
    return digests


def digest_all(digests: Mapping[str, bytes]) -> bytes:
    """Give the digest of a checkpoint from those of its tensors by name: 32 bytes."""
    hasher = blake3()
    for name in sorted(digests):
        encoded = name.encode()
        hasher.update(struct.pack("<I", len(encoded)) + encoded + digests[name])
    return hasher.digest()


def digest_file(path: Path) -> str:
    """Give the BLAKE3 of a file's bytes, in hexadecimal."""
    hasher = blake3()
    hasher.update_mmap(path)
    return hasher.hexdigest()


def element_of(tensor: PackedTensor) -> str:
    """Name the element type in which the values of a tensor are defined: one of `RAW`, else float32."""
    alphabet = tensor.scheme.alphabet
    return alphabet.dtype if isinstance(alphabet, Plain) and alphabet.dtype in RAW else "float32"


def reader(tensor: PackedTensor) -> Decode:
    """Bind a tensor to what reads its values, on the calling thread: small integers and booleans by their number.

    returns: reads rows [first, last) into (last - first, n_cols) of the type that `element_of` names, C order, written in full

    Raises UsageError for a tensor whose values nothing here understands.
    """
    return partial(_read_codes, tensor) if _is_its_codes(tensor) else decoder(tensor)


def plain_values(tensor: PackedTensor, rows: slice | None = None) -> NDArray[np.float32]:
    """Give the float32 values of rows; small integers and booleans, which a decode refuses, by their number."""
    return tensor.codes(rows).astype(np.float32) if _is_its_codes(tensor) else tensor.dequantize(rows=rows)


def canonical(values: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Give values with one zero and one NaN, so that bytes are equal where values are.

    out : as large, may be `values`; allocated if absent
    """
    with np.errstate(invalid="ignore"):  # a signaling NaN
        found = np.add(values, np.float32(0), out=out)  # -0 + 0 is +0
        if found.size and np.isnan(found.max()):  # NaN is the largest: most tiles hold none
            found[np.isnan(found)] = np.float32(np.nan)
    return found


def _digest_one(path: Path, threads: int, named: tuple[str, PackedTensor]) -> tuple[str, bytes]:
    name, tensor = named
    with about(path, name):
        return name, _digest(threads, tensor)


def _digest(threads: int, tensor: PackedTensor) -> bytes:
    """Digest a tensor through one buffer, which threads fill together."""
    hasher = blake3(CONTEXT + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape), max_threads=threads)
    element = element_of(tensor)
    if element in RAW:
        hasher.update(element.encode() + b"\0")
    tensor, n_weights = narrower(tensor), TILE_WEIGHTS if threads == 1 else TILES_AT_ONCE * threads * TILE_WEIGHTS
    read = reader(tensor)
    buffer = np.empty((min(tensor.n_rows, max(1, n_weights // max(1, tensor.n_cols))), tensor.n_cols), element)
    for first, last in tensor.tiles(n_weights=n_weights) if tensor.n_weights else ():
        for _ in spread(partial(_fill, read, first, buffer), tensor.tiles(first, last), threads=threads):
            pass
        hasher.update(buffer[: last - first].data.cast("B"))
    return hasher.digest()


def _fill(read: Decode, begin: int, buffer: NDArray[Any], rows: tuple[int, int]) -> None:
    """Put the bytes that are digested of some rows to their place in a buffer, which starts with row `begin`."""
    tile = buffer[rows[0] - begin : rows[1] - begin]
    read(*rows, tile)
    if tile.dtype == np.float32:
        canonical(tile, tile)


def _is_its_codes(tensor: PackedTensor) -> bool:
    """Tell whether the values of a tensor are what it stores, by their number."""
    alphabet = tensor.scheme.alphabet
    if not isinstance(alphabet, Plain):
        return False
    return alphabet.dtype in RAW or DTYPES[alphabet.dtype].kind in ("int", "uint", "bool")


def _read_codes(tensor: PackedTensor, first: int, last: int, out: NDArray[np.generic]) -> None:
    out[...] = tensor.codes(slice(first, last))
