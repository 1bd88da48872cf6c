"""GPTQ: codes down the columns of the weight, zero points along its rows, each a stream of fields in 32-bit words.

    v1      zero points less one, subtracted from the whole word: a field of zero borrows from the next
    v2      zero points as they are
    planar  the fields cut into planes of 4, 2 and 1 bits, each plane in words of its own; zero points as they are

Source: ModelCloud/GPTQModel 7.7.0: gptqmodel/nn_modules/qlinear/__init__.py (pack), gptqmodel/utils/model.py
(convert_gptq_v1_to_v2_format).
"""

from math import gcd

from qformat.bits import DTYPES
from qformat.errors import UsageError
from qformat.formats.form import Format, PartForm, scalar
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Grid, Indexed, Integers, Op, Param, Ref, Scheme, Step, Table
from qformat.tiling import FLAT, Tiling

KINDS = ("v1", "v2", "planar")
BITS = {"v1": (2, 3, 4, 8), "v2": (2, 3, 4, 8), "planar": (2, 3, 4, 5, 6, 7, 8)}
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}  # bits of each plane, lowest first
WORD = 32
DOWN = Tiling("kb w*4 n | k -> n (kb k)")
ALONG = Tiling("g nb | n -> (nb n) g")
BY_GROUP = Tiling("g n | i -> n (g i)")
STEPS = (Step(Op.SUB, Ref("zeros")), Step(Op.MUL, Ref("scales")))


def gptq(kind: str, bits: int, group: int, dtype: str = "float16", act_order: tuple[int, int] | None = None) -> Format:
    """Make a GPTQ format.

    kind      : one of KINDS
    group     : columns that share a scale; 0: all
    dtype     : of the scales
    act_order : groups of a row and columns, where `g_idx` names each column's group

    Raises UsageError for bits that the kind does not have.
    """
    if bits not in BITS[kind]:
        raise UsageError(f"gptq:{kind} of {bits} bits, expected one of {', '.join(map(str, BITS[kind]))}", found=bits)
    over = Indexed(act_order[0], "g_idx") if act_order else Grid(1, group)
    index = (Param("g_idx", "int32", Table(act_order[1])),) if act_order else ()
    params = (Param("scales", dtype, over), Param("zeros", "uint8", over), *index)
    scheme = Scheme(f"gptq:{kind}", Integers(0, (1 << bits) - 1), params, STEPS)
    parts = (
        PartForm("codes", _words(kind, bits, "codes"), DOWN),
        PartForm("zeros", _words(kind, bits, "zeros"), ALONG),
        PartForm("scales", scalar(dtype, DTYPES[dtype].bits // 8, "scales"), BY_GROUP),
        *(PartForm("g_idx", scalar("int32", 4, "g_idx"), FLAT) for _ in index),
    )
    return Format(scheme.name, scheme, parts)


def _words(kind: str, bits: int, holds: str) -> Layout:
    """Declare the least whole number of words that holds whole fields."""
    n_words = bits // gcd(bits, WORD)
    planes: tuple[Plane, ...] = (Plane(0, bits, word=4),)
    if kind == "planar" and bits in PLANES:
        n_words, widths = bits, PLANES[bits]
        planes = tuple(Plane(4 * sum(widths[:i]), width, shift=sum(widths[:i]), word=4) for i, width in enumerate(widths))
    count, n_weights = n_words * WORD // bits, 0 if holds == "zeros" else n_words * WORD // bits
    name = f"gptq_{kind}_{bits}_{holds}"
    if kind == "v1" and holds == "zeros":
        words = Field("words", 0, "uint32", n_words, holds="zeros.words")
        return Layout(name, 0, 4 * n_words, (words,), f"less_one_{bits}", count)
    return Layout(name, n_weights, 4 * n_words, (Bits("fields", planes, count, holds=holds),))


DIALECT = (gptq("v1", 4, 128), gptq("v2", 4, 128), gptq("planar", 3, 128))
