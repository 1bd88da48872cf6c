"""HQQ: the flat weight seen as groups, the groups cut into slabs that share a byte, the first slab in its highest bits.

    axis 1   a group is a row of the view (groups, weights of a group): neighbours in the flat weight
    axis 0   a group is a column of the view (weights of a group, groups): weights that lie `groups` apart

Zero points are floats, subtracted from the code. Three bits lie ten to a 32-bit word, the rows of the view filled up to a
multiple of ten; 5 and 6 bits take a byte each. Seen as floats, bytes lie in words of that float.

Source: mobiusml/hqq 0.2.8: hqq/core/bitpack.py, hqq/core/quantize.py (Quantizer.quantize, Quantizer.dequantize).
"""

from dataclasses import replace

from qformat.bits import DTYPES
from qformat.errors import UsageError
from qformat.formats.form import Format, PartForm, parameter
from qformat.layout import Bits, Layout, Plane
from qformat.scheme import Flat, Integers, Op, Param, Ref, Scheme, Step, Strided
from qformat.tiling import Tiling

BITS = (1, 2, 3, 4, 5, 6, 8)
WORD = 32  # bits of a word of three-bit codes
STEPS = (Step(Op.SUB, Ref("zeros")), Step(Op.MUL, Ref("scales")))


def slabs(bits: int) -> int:
    """Give how many codes share a byte, or a word of three-bit codes."""
    return WORD // bits if bits == 3 else 8 // bits


def hqq(bits: int, axis: int, group: int, n_groups: int, dtype: str = "float16", word: int = 1) -> Format:
    """Make an HQQ format.

    bits     : one of BITS
    axis     : 1 or 0
    group    : weights that share a scale
    n_groups : groups of the weight
    dtype    : of scales and zero points
    word     : bytes of the float that the bytes of codes are seen as; 1: as bytes

    Raises UsageError for other bits, and for groups that words do not divide.
    """
    columns = group if axis else n_groups
    if bits not in BITS or columns % word:
        message = f"hqq of {bits} bits in {columns} columns, expected {', '.join(map(str, BITS))} bits in words of {word} bytes"
        raise UsageError(message, found=bits, expected=BITS)
    over = Flat(group) if axis else Strided(group)
    params = (Param("scales", dtype, over), Param("zeros", dtype, over))
    n_slabs, stored = slabs(bits), columns // word
    rows = "r" if axis else f"r={-(-group // n_slabs)}"
    tiling = Tiling(f"{rows} c={stored} | w={n_slabs} j={word} -> (w r c j)")
    n_bytes = DTYPES[dtype].bits // 8
    scheme = Scheme("hqq", Integers(0, (1 << bits) - 1), params, STEPS)
    parts = (PartForm("codes", _codes(bits, word), tiling), *(parameter(param, n_bytes) for param in params))
    return Format(scheme.name, scheme, parts)


def _codes(bits: int, word: int) -> Layout:
    """Declare a byte of codes for each byte of a word, or a word of three-bit codes."""
    n_slabs = slabs(bits)
    if bits == 3:
        words = (_bits("codes", Plane(0, 3, "w=10 -> ~w", word=4), 10), _bits("spare", Plane(0, 2, bit=30, word=4), 1))
        return Layout("hqq_3", n_slabs, WORD // 8, words)
    codes = _bits("codes", Plane(0, bits, f"w={n_slabs} j={word} -> j*8 ~w", word=word), n_slabs * word)
    rest = 8 - bits * n_slabs
    spare = (_bits("spare", Plane(0, rest, f"j={word} -> j*8", bit=bits, word=word), word),) if rest else ()
    return Layout(f"hqq_{bits}" + (f"_word{word}" if word > 1 else ""), n_slabs * word, word, (codes, *spare))


def _bits(name: str, plane: Plane, count: int) -> Bits:
    return Bits(name, (plane,), count, holds=name if name == "codes" else "")


# A few, whose names say the bits; groups along axis 0 lie as many apart as the weight has groups.
DIALECT = tuple(replace(hqq(bits, 1, 64, 0), name=f"hqq:{bits}") for bits in BITS)
