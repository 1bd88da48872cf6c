"""Decodes rows of a tensor to floats: which form of kernel, how much at a time, over how many threads.

Vector kernels read stored bytes where they lie and take a tensor in large pieces. What they cannot read goes through the plain
loops, a tile that fits the cache at a time, as do machines without them. Results are the same to the bit, whoever decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qformat.bits import DTYPES
from qformat.errors import UsageError
from qformat.evaluate import F32, Operands, alphabet_table, as_float32, common_run
from qformat.scheme import Levels, Opaque, Plain, Stored
from qformat.threads import n_threads, spread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.tensor import PackedTensor
else:
    from qformat.deferred import np

# Decodes rows [first, last) into an array of them.
Decode = Callable[[int, int, "NDArray[Any]"], None]

TILE_WEIGHTS = 1 << 18  # a float32 tile of 1 MiB: small enough for cache, large enough that a tile's fixed cost is little
PIECE_WEIGHTS = 1 << 22  # where nothing is held in between: a hundred times a call's fixed cost
SHARED_WEIGHTS = 1 << 19  # from twice as many on, threads are worth their start


def decode_rows(tensor: PackedTensor, first: int, last: int, out: NDArray[Any], input_scale: bool, is_kept: bool) -> None:
    """Decode rows [first, last).

    out     : (last - first, n_cols), any float type that `PackedTensor.dequantize` gives, written in full
    is_kept : the caller's own array, whose pages are there already: large ones are written past the caches
    """
    decode, n_weights = _decoder(tensor, out, input_scale, is_kept)
    n_all, workers = (last - first) * tensor.n_cols, n_threads()
    if n_all < 2 * SHARED_WEIGHTS:
        workers = 1
    else:
        n_weights = min(n_weights, max(SHARED_WEIGHTS, -(-n_all // (2 * workers))))

    def work(rows: tuple[int, int]) -> None:
        decode(*rows, out[rows[0] - first : rows[1] - first])

    for _ in spread(work, tensor.tiles(first, last, n_weights), threads=workers):
        pass


def decoder(tensor: PackedTensor) -> Decode:
    """Bind a tensor once, for those who take it tile by tile in work that is spread over threads already.

    returns: decodes rows [first, last) into (last - first, n_cols) float32, C order, written in full, on the calling thread

    Raises UsageError where there is no decode; for dense weights that float32 does not contain, when rows are asked for.
    """
    return _decoder(tensor, np.empty((1, 1), np.float32), input_scale=True, is_kept=False)[0]


def _decoder(tensor: PackedTensor, out: NDArray[Any], input_scale: bool, is_kept: bool) -> tuple[Decode, int]:
    """Choose how rows are decoded, and how many weights at a time, into arrays of the type and strides of `out`."""
    alphabet = tensor.scheme.alphabet
    if isinstance(alphabet, Opaque):
        raise UsageError(f"type '{alphabet.name}' can be listed and copied, but not decoded", field="scheme")
    if isinstance(alphabet, Plain):
        return lambda low, high, tile: _plain(tensor, alphabet, low, high, tile), TILE_WEIGHTS
    rows = _in_vectors(tensor, input_scale)
    if rows is None:
        return lambda low, high, tile: _by_loops(tensor, low, high, tile, input_scale), TILE_WEIGHTS
    from qformat.kernels.rounding import put
    from qformat.kernels.vector.decode import writes

    if writes(out):
        return lambda low, high, tile: rows.decode(low, high, tile, is_kept), PIECE_WEIGHTS if rows.in_place else TILE_WEIGHTS

    def through_float32(low: int, high: int, tile: NDArray[Any]) -> None:
        found = np.empty(tile.shape, np.float32)
        rows.decode(low, high, found, False)
        put(found, tile)

    return through_float32, TILE_WEIGHTS


def _in_vectors(tensor: PackedTensor, input_scale: bool) -> Any:
    """Give what decodes rows by vector kernels; None where there is nothing to decode or they cannot."""
    from qformat.kernels.cpu import has_vectors
    from qformat.streamed import rows_of

    return rows_of(tensor, input_scale) if has_vectors() and tensor.n_weights else None


def _by_loops(tensor: PackedTensor, first: int, last: int, out: NDArray[Any], input_scale: bool) -> None:
    from qformat.kernels.evaluate import evaluate

    operands = Operands(tensor.scheme, tensor.n_cols, tensor.param)
    steps = operands.steps(first, last, input_scale)
    run = tensor.n_cols
    for _, _, columns in steps:
        run = common_run(run, columns, tensor.n_cols)
    chain = tuple((op, operands.spread(array, columns, run)) for op, array, columns in steps)
    evaluate(tensor.codes(slice(first, last)), _table(tensor), chain, run, out)


def _plain(tensor: PackedTensor, alphabet: Plain, first: int, last: int, out: NDArray[Any]) -> None:
    stored = tensor.codes(slice(first, last))
    if stored.dtype == out.dtype:
        out[...] = stored
        return
    if DTYPES[alphabet.dtype].kind != "float" or alphabet.dtype == "float64":
        raise UsageError(f"weights are {alphabet.dtype}, which {out.dtype} cannot hold; read them as {alphabet.dtype}")
    with np.errstate(all="ignore"):
        out[...] = as_float32(stored, alphabet.dtype)


def _table(tensor: PackedTensor) -> F32 | None:
    """Give the value of every code, or None where codes are integers that stand for themselves."""
    alphabet = tensor.scheme.alphabet
    if isinstance(alphabet, Levels):
        return alphabet_table(alphabet.levels)
    if isinstance(alphabet, Stored):
        return as_float32(tensor.param(alphabet.table), tensor.scheme.param(alphabet.table).dtype).reshape(-1)
    return None
