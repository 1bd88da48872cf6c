"""What makes it doubtful that a GPTQ checkpoint's zero points are what its config says: the little that arrays can tell.

Symmetric weights have one zero point, so that a config that says `sym`, or nothing, can be contradicted by every field.
AutoGPTQ's packer writes a zero point of 0, less one, over all fields of the word that follow. Reads zero points only, by words.

Source: AutoGPTQ/AutoGPTQ 0.7.1: auto_gptq/nn_modules/qlinear/qlinear_cuda.py (pack).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import TYPE_CHECKING, Any

from qconvert.dialects.dialect import Shelf
from qconvert.dialects.grouped import modules as find_modules
from qconvert.dialects.grouped import settings
from qformat.formats.gptq import WORD
from qformat.model import Oddity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from qformat.deferred import np

OTHER = {"v1": "v2", "v2": "v1"}


def doubts(shelf: Shelf, kind: str) -> Iterator[Oddity]:
    """Report zero points of another convention than `kind`, and those that a packer has spoilt.

    Nothing is reported where the user has decided.
    """
    if any(word.startswith("gptq:") for word in shelf.assume):
        return
    arrays = [found for _, found in find_modules(shelf, "gptq")]
    if kind not in OTHER or not arrays:
        return
    is_symmetric, other = settings(shelf).get("sym"), OTHER[kind]
    if is_symmetric in (True, None) and all(_is_symmetric(shelf, found, other) for found in arrays):
        said = "sym is true, but" if is_symmetric else "nothing says the kind of zero points, and"
        message = f"{said} as gptq:{kind} no zero point is in the middle; as gptq:{other} each is"
        yield Oddity("error", f"{message}: --assume gptq:{other}, or gptq:{kind} if the config is right")
    elif is_symmetric is not True and kind == "v1":
        n_spoilt = _count_spoilt(shelf, arrays)
        if n_spoilt:
            message = f"{n_spoilt} words of zero points end in fields of ones, as AutoGPTQ leaves them after a zero point of 0"
            yield Oddity("warning", f"{message}: the zero points of these fields are lost")


def _bits(shelf: Shelf, arrays: dict[str, str]) -> int:
    return shelf.infos[arrays[".qzeros"]].shape[1] * WORD // shelf.infos[arrays[".scales"]].shape[1]


def _is_symmetric(shelf: Shelf, arrays: dict[str, str], kind: str) -> bool:
    """Tell whether every field is the middle of the codes as a kind stores it."""
    bits = _bits(shelf, arrays)
    field, n_words = (1 << (bits - 1)) - (kind == "v1"), bits // gcd(bits, WORD)
    stream = sum(field << at for at in range(0, n_words * WORD, bits))
    words = np.frombuffer(stream.to_bytes(4 * n_words, "little"), "<u4")
    return bool((_words(shelf, arrays[".qzeros"]).reshape(-1, n_words) == words).all())


def _count_spoilt(shelf: Shelf, modules: list[dict[str, str]]) -> int:
    """Count words whose last fields, from some field on, are all ones; none where any field of ones ends before its word."""
    n_spoilt = 0
    for arrays in modules:
        words, bits = _words(shelf, arrays[".qzeros"]), _bits(shelf, arrays)
        if WORD % bits:
            continue
        mask = np.uint32((1 << bits) - 1)
        ones = np.stack([words >> np.uint32(at) & mask == mask for at in range(0, WORD, bits)])
        if (ones[:-1] & ~ones[1:]).any():
            return 0
        n_spoilt += int(np.count_nonzero(ones[-2] & ones[-1]))
    return n_spoilt


def _words(shelf: Shelf, name: str) -> NDArray[Any]:
    return shelf.read(name).reshape(-1).view("<u4")
