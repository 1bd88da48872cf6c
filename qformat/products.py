"""Multiplies packed weights with float activations: which kernel, how much at a time, over how many threads.

A few rows of activations are multiplied with weights as these are decoded, in registers or next to them: row by row, or down
the columns where stored words run over rows. For more of them, and for weights that vector kernels do not read, a tile of rows
is decoded to float32, which stays in the cache. The whole matrix never exists. Must not know what any format looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qformat.arrays import aligned
from qformat.asked import asked_out, asked_rows
from qformat.decoding import SHARED_WEIGHTS, TILE_WEIGHTS, decoder
from qformat.errors import UsageError
from qformat.threads import n_threads, spread
from qformat.units import LEAST, Unit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.streamed import Pieces
    from qformat.tensor import PackedTensor

    F32 = NDArray[np.float32]
else:
    from qformat.deferred import np

# Adds the products of rows [first, last) to an array (rows of activations, rows of weights).
Multiply = Callable[[int, int, "F32"], None]

FLOATS = ("float32", "float16", "bfloat16")
TOGETHER = 4  # rows of activations that are multiplied at a time
FEW_ROWS = 32  # of them: with more, a few columns of all of them leave the nearest cache, and larger tiles cost less
WIDE = 128  # weights of a unit, where rows are whole ones: registers are full of codes, and loops cost less
MOST_WEIGHTS = 1 << 25  # that are bound at a time: of some, the bytes are turned first


@dataclass(frozen=True, slots=True)
class Units:
    """What a tensor is multiplied in, piece by piece.

    units    : of each piece
    orders   : number of the column, of those of a unit, that each activation is of
    multiply : by piece and rows of activations, at most `TOGETHER`
    """

    rows: Pieces
    units: tuple[Unit, ...]
    orders: tuple[tuple[int, ...], ...]
    multiply: dict[tuple[int, int], Any] = field(default_factory=dict)


def matmul(x: NDArray[Any], packed: PackedTensor, out: F32 | None = None, rows: slice | None = None) -> F32:
    """Multiply activations with the transpose of packed weights: y[..., o] = sum over k of x[..., k] * w[o, k].

    x      : (..., K) float32, float16 or bfloat16
    packed : (N, K), or (K,), in any scheme that can be decoded; `w` are its float32 values as `dequantize` gives them, input
             scale included
    out    : (..., N) float32, written in full; any strides; allocated if absent
    rows   : rows of the folded matrix, step 1, instead of all: N of them. Of a stack of experts (E, N, K), those of expert e
             are slice(e * N, (e + 1) * N)
    returns: out; (...) where packed is (K,)

    Sums are float32: with u = 2**-24 and n = K / 8 + 8, |y - exact| <= n * u / (1 - n * u) * sum |x| |w|, as long as no product
    and no sum leaves the normal numbers, for at most n roundings lie between a product and the result. Infinities and NaN are
    multiplied and added as any other value. Bits depend neither on the number of threads nor on which rows of the weights are
    asked for; they may on how many rows x has, and on whether the processor rounds a product and its sum at once. Where
    kernels are not compiled NumPy multiplies, with n = K and the order of its BLAS.

    Raises UsageError where shapes or element types do not fit, for a stack without `rows`, and for weights that float32 does
    not contain or nothing decodes.
    """
    if isinstance(packed, np.ndarray):  # the other way round, as with @
        raise UsageError("weights are an array, expected a PackedTensor: matmul(x, packed)", field="packed", found="ndarray")
    if len(packed.shape) > 2 and rows is None:
        message = (
            f"weights of shape {packed.shape} are a stack: matmul(x, packed, rows=slice(i * N, (i + 1) * N)) takes one of it"
        )
        raise UsageError(message, field="rows", found=packed.shape)
    if not packed.shape:
        raise UsageError("weights of shape () have no columns to multiply with", field="packed", found=())
    first, last = asked_rows(rows, packed.n_rows)
    _check(x, packed)
    of_rows = packed.shape[:-1] if rows is None else (last - first,)
    out = asked_out(out, (*x.shape[:-1], *of_rows), np.dtype(np.float32))
    if x.size and out.size:
        out[...] = _multiply(x.reshape(-1, packed.n_cols), packed, first, last).reshape(out.shape)
    else:
        out[...] = 0
    return out


def _check(x: Any, packed: PackedTensor) -> None:
    """Raise UsageError for activations that cannot be multiplied with the weights."""
    wanted = f"(..., {packed.n_cols}) of {', '.join(FLOATS)}"
    is_array = isinstance(x, np.ndarray)
    if is_array and x.ndim and x.shape[-1] == packed.n_cols and x.dtype.name in FLOATS:
        return
    found = f"{x.dtype} {x.shape}" if is_array else type(x).__name__
    raise UsageError(f"activations are {found}, expected an array {wanted}", field="x", found=found, expected=wanted)


def _multiply(x: NDArray[Any], packed: PackedTensor, first: int, last: int) -> F32:
    """Give the products of activations (rows, columns) with rows [first, last) of the weights, neither empty."""
    n_x = len(x) if len(x) < TOGETHER - 1 else -(-len(x) // TOGETHER) * TOGETHER
    found = np.zeros((n_x, last - first), np.float32)
    multiply, n_weights = _multiplier(x, n_x, packed)
    n_all, workers = (last - first) * packed.n_cols, n_threads()
    if n_all * n_x < 2 * SHARED_WEIGHTS:
        workers = 1
    if workers > 1:
        n_weights = min(n_weights, max(SHARED_WEIGHTS // n_x, -(-n_all // (2 * workers))))

    def work(rows: tuple[int, int]) -> None:
        multiply(*rows, found[:, rows[0] - first : rows[1] - first])

    for _ in spread(work, packed.tiles(first, last, n_weights), threads=workers):
        pass
    return found[: len(x)]


def _multiplier(x: NDArray[Any], n_x: int, packed: PackedTensor) -> tuple[Multiply, int]:
    """Choose how rows are multiplied with activations, filled up with zeros to `n_x` rows, and how many weights at a time."""
    from qformat.kernels.cpu import has_vectors

    if not has_vectors():
        return _by_numpy(_padded(x, n_x, packed.n_cols), packed), TILE_WEIGHTS
    columns = packed.columns
    if columns is not None and n_x <= columns.most:
        factors = _padded(x, n_x, packed.n_cols)
        return lambda first, last, out: columns.multiply(factors, first, last, out), MOST_WEIGHTS
    units = packed.units if n_x <= FEW_ROWS else None
    if units is None:
        return _of_tiles(_padded(x, n_x, -(-packed.n_cols // LEAST) * LEAST), packed), TILE_WEIGHTS
    return _of_units(x, n_x, units), MOST_WEIGHTS if units.rows.in_place else TILE_WEIGHTS


def units_of(packed: PackedTensor) -> Units | None:
    """Find the units that a tensor is multiplied in; None where there are none."""
    from qformat.kernels.vector.product import order_of
    from qformat.kernels.vector.unordered import has_operands_of_each, looked_up
    from qformat.streamed import rows_of

    for least in (WIDE, LEAST):
        rows = rows_of(packed, True, least)
        units = tuple(looked_up(piece.rows.reading.unit) for piece in rows.pieces) if rows is not None else ()
        if rows is not None and (least == LEAST or not any(map(has_operands_of_each, units))):
            return Units(rows, units, tuple(order_of(unit) for unit in units))
    return None


def _of_units(x: NDArray[Any], n_x: int, units: Units) -> Multiply:
    """Multiply with units of weights."""
    from qformat.kernels.vector.product import multiplier, together

    made: dict[tuple[tuple[int, ...], int], F32] = {}
    of_pieces, size = [], min(n_x, TOGETHER)
    for number, (unit, order) in enumerate(zip(units.units, units.orders, strict=True)):
        n_together = together(unit, n_x, x.shape[1])
        if (order, n_together) not in made:
            made[order, n_together] = _side_by_side(x, n_x, order, n_together)
        if (number, size) not in units.multiply:
            units.multiply[number, size] = multiplier(unit, size)
        of_pieces.append((units.multiply[number, size], units.rows.pieces[number].rows.n_units, made[order, n_together]))

    def run(first: int, last: int, out: F32) -> None:
        for part in units.rows.bind(first, last):
            multiply, n_units, factors = of_pieces[part.piece]
            multiply(part.bound, part.at, n_units, factors, out[:, part.first - first : part.last - first])

    return run


def _side_by_side(x: NDArray[Any], n_x: int, order: tuple[int, ...], n_together: int) -> F32:
    """Lay activations in the order of a unit's weights: (runs of columns, rows, columns of a run)."""
    n_cols = x.shape[1]
    ordered = np.asarray(x, np.float32).reshape(len(x), -1, len(order))[:, :, order]
    padded = _padded(ordered.reshape(x.shape), n_x, -(-n_cols // n_together) * n_together)
    found: F32 = aligned((padded.shape[1] // n_together, n_x, n_together), np.dtype(np.float32))
    found[...] = padded.reshape(n_x, -1, n_together).swapaxes(0, 1)
    return found


def _of_tiles(factors: F32, packed: PackedTensor) -> Multiply:
    """Multiply with tiles of decoded weights."""
    from qformat.kernels.vector.product import multiply_floats

    decode, n_cols = decoder(packed), packed.n_cols
    spare: list[F32] = []

    def run(first: int, last: int, out: F32) -> None:
        n_rows = last - first
        try:
            tile = spare.pop()  # taken out by one thread alone
        except IndexError:
            tile = np.zeros((0, 0), np.float32)
        if len(tile) < n_rows:
            tile = _padded(np.zeros((0, 0), np.float32), n_rows, factors.shape[1])
        decode(first, last, tile[:n_rows, :n_cols])
        multiply_floats(tile[:n_rows], factors, out)
        spare.append(tile)

    return run


def _by_numpy(factors: F32, packed: PackedTensor) -> Multiply:
    """Multiply with tiles of decoded weights, where kernels are not compiled."""
    decode = decoder(packed)

    def run(first: int, last: int, out: F32) -> None:
        tile = np.empty((last - first, packed.n_cols), np.float32)
        decode(first, last, tile)
        with np.errstate(all="ignore"):  # infinities and NaN are values like any other
            np.matmul(factors, tile.T, out=out)

    return run


def _padded(x: NDArray[Any], n_rows: int, n_cols: int) -> F32:
    """Copy activations to float32, zeros behind rows and columns, each row beginning a line of the cache where it can."""
    found = aligned((n_rows, n_cols), np.dtype(np.float32))
    found[: len(x), : x.shape[1]] = x
    found[len(x) :] = 0
    found[:, x.shape[1] :] = 0
    return found
