"""GGUF's grid types of 256 weights, IQ1 to IQ3: runs of 4 or 8 weights are entries of a fixed grid, with signs or a shift.

The pieces lie in bit planes, and `qformat.decode` makes codes of them: signed grid values, for IQ1 in eighths.

Source: ggml-org/ggml at d99724f2: src/ggml-common.h (block_iq2_xxs ... block_iq1_m), src/ggml-quants.c (dequantize_row_*).
"""

from qformat.formats.form import Format, PartForm
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Apply, Const, Grid, Integers, Op, Operand, Param, Ref, Scheme, Step

N = 256
IQ1_CODES, IQ2_CODES, IQ3_CODES = Integers(-9, 9), Integers(-43, 43), Integers(-62, 62)
IQ3_S_CODES = Integers(-15, 15)
D = Field("d", 0, "float16", holds="scales")
SUB_SCALE = Ref("sub_scales")


def _scaled(factor: Operand, by: float = 1.0) -> tuple[Step, ...]:
    """Multiply by d * factor * by."""
    scale = Apply(Op.MUL, Ref("scales"), factor)
    return (Step(Op.MUL, scale if by == 1 else Apply(Op.MUL, scale, Const(by))),)


HALF_MORE = Apply(Op.ADD, SUB_SCALE, Const(0.5))
ODD = Apply(Op.ADD, Apply(Op.MUL, SUB_SCALE, Const(2.0)), Const(1.0))


def _format(name: str, n_bytes: int, group: int, alphabet: Integers, steps: tuple[Step, ...], *fields: Field | Bits) -> Format:
    params = (Param("scales", "float16", Grid(1, N)), Param("sub_scales", "uint8", Grid(1, group)))
    layout = Layout(name, N, n_bytes, fields, unpacker=name, source="ggml-org/ggml: src/ggml-common.h")
    return Format(name, Scheme(name, alphabet, params, steps), (PartForm("blocks", layout),))


def _index(count: int, *planes: Plane) -> Bits:
    return Bits("index", planes, count, holds="codes.index")


def _signs(plane: Plane) -> Bits:
    return Bits("signs", (plane,), 32, holds="codes.signs")


def _shift(count: int, plane: Plane) -> Bits:
    return Bits("shift", (plane,), count, holds="codes.shift")


def _sub_scales(count: int, plane: Plane) -> Bits:
    return Bits("scales", (plane,), count, holds="sub_scales")


IQ2_XXS = _format(
    "iq2_xxs", 66, 32, IQ2_CODES, _scaled(HALF_MORE, 0.25),
    D, _index(32, Plane(2, 8, "b=8 l=4 -> b*64 l*8")), _signs(Plane(6, 7, "b=8 l=4 -> b*64 l*7", word=4)),
    _sub_scales(8, Plane(6, 4, "b=8 -> b*64", bit=28, word=4)),
)  # fmt: skip
IQ2_XS = _format(
    "iq2_xs", 74, 16, IQ2_CODES, _scaled(HALF_MORE, 0.25),
    D, _index(32, Plane(2, 9, "i=32 -> i*16", word=2)), _signs(Plane(2, 7, "i=32 -> i*16", bit=9, word=2)),
    _sub_scales(16, Plane(66, 4)),
)  # fmt: skip
IQ2_S = _format(
    "iq2_s", 82, 16, IQ2_CODES, _scaled(HALF_MORE, 0.25),
    D, _index(32, Plane(2, 8), Plane(66, 2, shift=8)), _signs(Plane(34, 8)), _sub_scales(16, Plane(74, 4)),
)  # fmt: skip
IQ3_XXS = _format(
    "iq3_xxs", 98, 32, IQ3_CODES, _scaled(HALF_MORE, 0.5),
    D, _index(64, Plane(2, 8)), _signs(Plane(66, 7, "b=8 l=4 -> b*32 l*7", word=4)),
    _sub_scales(8, Plane(66, 4, "b=8 -> b*32", bit=28, word=4)),
)  # fmt: skip
IQ3_S = _format(
    "iq3_s", 110, 32, IQ3_S_CODES, _scaled(ODD),
    D, _index(64, Plane(2, 8), Plane(66, 1, shift=8)), _signs(Plane(74, 8)), _sub_scales(8, Plane(106, 4)),
)  # fmt: skip
IQ1_S = _format(
    "iq1_s", 50, 32, IQ1_CODES, _scaled(ODD, 0.125),
    D, _index(32, Plane(2, 8), Plane(34, 3, "b=8 l=4 -> b*16 l*3", shift=8, word=2)),
    _sub_scales(8, Plane(34, 3, "b=8 -> b*16", bit=12, word=2)), _shift(8, Plane(34, 1, "b=8 -> b*16", bit=15, word=2)),
)  # fmt: skip
# The float16 scale lies in the top nibbles of the four words of sub-scales.
IQ1_M = _format(
    "iq1_m", 56, 16, IQ1_CODES, _scaled(ODD, 0.125),
    _index(32, Plane(0, 8), Plane(32, 3, "i=32 -> i*4", shift=8)), _shift(32, Plane(32, 1, "i=32 -> i*4", bit=3)),
    _sub_scales(16, Plane(48, 3, "w=4 j=4 -> w*16 j*3", word=2)),
    Bits("d", tuple(Plane(48 + 2 * w, 4, shift=4 * w, bit=12, word=2) for w in range(4)), 1, holds="scales", dtype="float16"),
)  # fmt: skip

ALL = (IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S)
