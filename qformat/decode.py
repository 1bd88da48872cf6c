"""Values that planes cannot say: base-3 digits, runs of weights that are entries of a grid, zero points that borrow.

A layout names an entry of `UNPACKERS` by string, and declares where its pieces lie: indices, signs, digits. An entry makes
codes of the pieces and pieces of the codes; which bits are a piece is the layout's business, what a code is worth the
scheme's. The grids are those of the `gguf` package, imported on use.

Source: ggml-org/ggml at d99724f2: src/ggml-quants.c (dequantize_row_iq*, dequantize_row_tq1_0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import NotExact, UsageError

Ints = NDArray[Any]
Pieces = dict[str, Ints]

SIGN_RUN = 8  # weights whose signs are stored together
IQ1_GRID = "IQ1_S"  # of IQ1_M too
WORD_BITS = 32
EIGHTH = 8  # IQ1's codes are eighths: a grid value and a shift of one eighth


@dataclass(frozen=True, slots=True)
class Trits:
    """Codes -1..1 as base-3 digits, a fraction of 256, most significant digit first.

    runs : (piece, first byte, bytes, digits per byte); within a run digit n of byte m is weight m + n * bytes
    """

    runs: tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Signed:
    """Codes that are entries of a grid, by "index", negated where a bit of "signs" is set.

    grid : type whose grid it is, in the `gguf` package's spelling
    even : 7 sign bits per 8 weights, the eighth making the number of negative weights even; else 8
    """

    grid: str
    even: bool


@dataclass(frozen=True, slots=True)
class Shifted:
    """Codes in eighths: entries of a grid, by "index", an eighth up or, where the bit of "shift" is set, down.

    grid : type whose grid it is, in the `gguf` package's spelling
    run  : weights that share a bit of "shift"
    """

    grid: str
    run: int


@dataclass(frozen=True, slots=True)
class AsStored:
    """Codes that are the one piece."""


@dataclass(frozen=True, slots=True)
class LessOne:
    """Fields of so many bits of words, least significant first, each stored less one; see `unpack_less_one`."""

    bits: int

    @property
    def ones(self) -> int:
        """What is added to a word to give the fields of it; 0 where fields reach over words, and each is added to by itself."""
        return sum(1 << i for i in range(0, WORD_BITS, self.bits)) if WORD_BITS % self.bits == 0 else 0


@dataclass(frozen=True, slots=True)
class Unpacker:
    """A pair of opposites; arrays are (..., values of a block), or those of several blocks together.

    unpack : pieces by name -> int8 codes
    pack   : int8 codes -> pieces. Raises NotExact for codes that the pieces cannot say
    how    : the same as data, for those that make values in other ways
    whole  : values depend on every bit of the pieces, and are different for different bits
    """

    unpack: Callable[[Pieces], Ints]
    pack: Callable[[Ints], Pieces]
    how: Trits | Signed | Shifted | AsStored | LessOne
    whole: bool = False

    @property
    def grid(self) -> str:
        """Type whose grid it reads, in the `gguf` package's spelling; empty: none."""
        return self.how.grid if isinstance(self.how, Signed | Shifted) else ""


def find(name: str) -> Unpacker:
    """Find an entry by the name that a layout gives. Raises UsageError for one that is not known here."""
    if name not in UNPACKERS:
        raise UsageError(f"codes need the decode function '{name}', expected one of {', '.join(UNPACKERS)}", found=name)
    return UNPACKERS[name]


def unpack_trits(how: Trits, pieces: Pieces) -> Ints:
    """Give the codes of bytes that hold five or four digits."""
    runs = []
    for piece, first, n_bytes, n_digits in how.runs:
        block = _runs(pieces[piece].astype(np.uint8), 48 if piece == "fives" else 4)
        data = block[..., first : first + n_bytes]
        digits = [(data * np.uint8(3**n)).astype(np.uint16) * 3 >> 8 for n in range(n_digits)]
        runs.append(np.concatenate(digits, axis=-1))
    return _flat(np.concatenate(runs, axis=-1).astype(np.int8) - np.int8(1))


def pack_trits(how: Trits, codes: Ints) -> Pieces:
    """Give the bytes of codes -1..1: the least byte above the fraction; a fifth digit that is not there is 0."""
    digits = _runs(codes, 256).astype(np.int32) + 1
    packed: dict[str, list[Ints]] = {"fives": [], "fours": []}
    at = 0
    for piece, _, n_bytes, n_digits in how.runs:
        number = np.zeros((*digits.shape[:-1], n_bytes), np.int32)
        for n in range(5):
            number *= 3
            if n < n_digits:
                number += digits[..., at + n * n_bytes : at + (n + 1) * n_bytes]
        packed[piece].append(((number * 256 + 242) // 243).astype(np.uint8))
        at += n_bytes * n_digits
    return {name: _flat(np.concatenate(runs, axis=-1)) for name, runs in packed.items()}


def unpack_signed(how: Signed, pieces: Pieces) -> Ints:
    """Give codes of indices into a grid and of sign bits."""
    vectors = _flat(table_of(how)[pieces["index"]])
    signs = pieces["signs"].astype(np.uint8)
    if how.even:
        signs = signs | (_parity(signs) << np.uint8(7))
    negative = np.unpackbits(signs[..., None], axis=-1, bitorder="little").reshape(vectors.shape)
    return np.where(negative, -vectors, vectors)


def pack_signed(how: Signed, codes: Ints) -> Pieces:
    """Give the indices and sign bits of codes. Raises NotExact for codes that are not in the grid."""
    index = _index_in(how.grid, np.abs(codes))
    signs = np.packbits(_runs(codes < 0, SIGN_RUN), axis=-1, bitorder="little")[..., 0]
    if how.even:
        _refuse(_parity(signs), "weights of a run of 8 are negative in odd number")
        signs = signs & np.uint8(127)
    return {"index": index, "signs": signs}


def unpack_shifted(how: Shifted, pieces: Pieces) -> Ints:
    """Give codes in eighths of indices into a grid and of shift bits."""
    vectors = _flat(table_of(how)[pieces["index"]])
    down = np.repeat(pieces["shift"].astype(np.int8), how.run, axis=-1)
    shifted: Ints = vectors + (np.int8(1) - np.int8(2) * down)
    return shifted


def pack_shifted(how: Shifted, codes: Ints) -> Pieces:
    """Give the indices and shift bits of codes in eighths. Raises NotExact for codes that are not in the grid."""
    down = _runs(codes & 7 == 7, how.run)
    _refuse(down.any(axis=-1) != down.all(axis=-1), f"weights of a run of {how.run} are shifted both ways")
    values = codes - np.where(down, np.int8(-1), np.int8(1)).reshape(codes.shape)
    _refuse(values % EIGHTH != 0, "code is no grid value and an eighth")
    return {"index": _index_in(how.grid, values // EIGHTH), "shift": down[..., 0].astype(np.uint8)}


def unpack_less_one(how: LessOne, pieces: Pieces) -> Ints:
    """Give zero points that are stored less one, the one of every field subtracted from the word as a whole.

    A field of 0 so borrowed from its neighbour, and adding to the word gives it back. Fields of 3 bits reach over words and
    were subtracted one by one.
    """
    words = pieces["words"].astype(np.uint32)
    if how.ones:
        return _fields(words + np.uint32(how.ones), how.bits)
    return (_fields(words, how.bits) + np.uint8(1)) & np.uint8((1 << how.bits) - 1)


def pack_less_one(how: LessOne, zeros: Ints) -> Pieces:
    """Give the words of zero points 1 and up. Raises NotExact for a 0, which readers that add field by field make 2^bits of."""
    bits, n_wrong = how.bits, int(np.count_nonzero(zeros < 1))
    if n_wrong:
        message = f"{n_wrong} zero points of 0, which readers that add field by field take for {1 << bits}; use gptq:v2"
        raise NotExact(message, field="zeros", found=0, expected=1)
    bit_list = np.unpackbits((zeros.astype(np.uint8) - np.uint8(1))[..., None], axis=-1, bitorder="little")[..., :bits]
    packed = np.packbits(bit_list.reshape(*zeros.shape[:-1], zeros.shape[-1] * bits), axis=-1, bitorder="little")
    return {"words": np.ascontiguousarray(packed).view(np.uint32)}


def unpack_bytes(pieces: Pieces) -> Ints:
    """Give codes that have a byte each, though they need fewer bits."""
    return pieces["bytes"]


def pack_bytes(codes: Ints) -> Pieces:
    """Give the bytes of codes, which are the codes."""
    return {"bytes": codes}


@cache
def grid_of(name: str) -> Ints:
    """Give a grid of the `gguf` package: (vectors, weights of a vector) int8."""
    import gguf.quants

    kind = getattr(gguf.quants, name)
    kind.init_grid()
    grid: Ints = kind.grid.reshape(kind.grid_shape).astype(np.int8)
    grid.flags.writeable = False
    return grid


@cache
def table_of(how: Signed | Shifted) -> Ints:
    """Give what indices stand for before signs or shifts: (entries, weights of an entry) int8."""
    table: Ints = grid_of(how.grid) * np.int8(EIGHTH if isinstance(how, Shifted) else 1)
    table.flags.writeable = False
    return table


def _index_in(grid: str, values: Ints) -> Ints:
    """Find the entry of a grid that each run of values is."""
    table = grid_of(grid)
    keys, wanted = _keys(table), _keys(_runs(values.astype(np.int8), table.shape[1]))
    order = np.argsort(keys)
    found = order[np.minimum(np.searchsorted(keys[order], wanted), len(order) - 1)]
    _refuse(keys[found] != wanted, f"weights of a run of {table.shape[1]} are not in the grid of {grid.lower()}")
    return found.astype(np.int32)


def _runs(values: Ints, n: int) -> Ints:
    """Cut the last axis into runs of `n`."""
    return values.reshape(*values.shape[:-1], values.shape[-1] // n, n)


def _flat(runs: Ints) -> Ints:
    """Undo `_runs`."""
    return runs.reshape(*runs.shape[:-2], runs.shape[-2] * runs.shape[-1])


def _keys(vectors: Ints) -> Ints:
    """See vectors of int8, the last axis, as unsigned integers."""
    return np.ascontiguousarray(vectors).view(f"u{vectors.shape[-1]}")[..., 0]


def _parity(signs: Ints) -> Ints:
    bits: Ints = np.unpackbits(signs[..., None], axis=-1).sum(axis=-1).astype(np.uint8) & np.uint8(1)
    return bits


def _fields(words: Ints, bits: int) -> Ints:
    """Read words as one stream of fields, least significant bits first."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    fields = stream.reshape(*words.shape[:-1], words.shape[-1] * WORD_BITS // bits, bits)
    return np.packbits(fields, axis=-1, bitorder="little")[..., 0]


def _refuse(wrong: Ints, what: str, field: str = "codes") -> None:
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise NotExact(f"{what}, at {where}", field=field, found=where)


def _trits(*runs: tuple[str, int, int, int]) -> Unpacker:
    how = Trits(runs)
    return Unpacker(partial(unpack_trits, how), partial(pack_trits, how), how)


def _signed(grid: str, even: bool) -> Unpacker:
    how = Signed(grid, even)
    return Unpacker(partial(unpack_signed, how), partial(pack_signed, how), how)


def _shifted(run: int) -> Unpacker:
    how = Shifted(IQ1_GRID, run)
    return Unpacker(partial(unpack_shifted, how), partial(pack_shifted, how), how)


UNPACKERS = {
    "trits": _trits(("fives", 0, 32, 5), ("fives", 32, 16, 5), ("fours", 0, 4, 4)),
    "bytes": Unpacker(unpack_bytes, pack_bytes, AsStored()),
    "iq2_xxs": _signed("IQ2_XXS", even=True),
    "iq2_xs": _signed("IQ2_XS", even=True),
    "iq2_s": _signed("IQ2_S", even=False),
    "iq3_xxs": _signed("IQ3_XXS", even=True),
    "iq3_s": _signed("IQ3_S", even=False),
    "iq1_s": _shifted(run=32),
    "iq1_m": _shifted(run=8),
    **{
        f"less_one_{how.bits}": Unpacker(partial(unpack_less_one, how), partial(pack_less_one, how), how, whole=True)
        for how in map(LessOne, (2, 3, 4, 8))
    },
}
