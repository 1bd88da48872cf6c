"""GGUF super-blocks of 256 weights with two levels of scales: the K-quants, IQ4_XS, and Q8_K, which has one.

Source: ggml-org/ggml at d99724f2: src/ggml-common.h (block_q2_K ... block_iq4_xs), src/ggml-quants.c (dequantize_row_*).
"""

from qformat.formats.form import Format, PartForm
from qformat.formats.gguf import KVALUES, SCALED
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Alphabet, Apply, Grid, Integers, Levels, Op, Param, Ref, Scheme, Step

N = 256
SUPER = Grid(1, N)
TWO_LEVELS = (Step(Op.MUL, Apply(Op.MUL, Ref("scales"), Ref("sub_scales"))),)
WITH_MINS = (*TWO_LEVELS, Step(Op.SUB, Apply(Op.MUL, Ref("mins"), Ref("sub_mins"))))
RUNS = "c=4 h=2 j=32 -> c j h"  # byte j of run c holds weights 64c + j and 64c + 32 + j
PAIRS = "r=2 k=4 l=32 -> r l k"  # byte l of run r holds weights 128r + 32k + l, two bits each
BY_BIT = "b=8 l=32 -> l b"  # bit b of byte l belongs to weight 32b + l


def _format(name: str, n_bytes: int, group: int, dtype: str, alphabet: Alphabet, *fields: Field | Bits) -> Format:
    params = [Param("scales", "float16", SUPER), Param("sub_scales", dtype, Grid(1, group))]
    has_mins = any(field.holds == "mins" for field in fields)
    if has_mins:
        params += [Param("mins", "float16", SUPER), Param("sub_mins", dtype, Grid(1, group))]
    scheme = Scheme(name, alphabet, tuple(params), WITH_MINS if has_mins else TWO_LEVELS)
    layout = Layout(name, N, n_bytes, fields, source="ggml-org/ggml: src/ggml-common.h")
    return Format(name, scheme, (PartForm("blocks", layout),), rule="ggml")


def _codes(*planes: Plane, minus: int = 0) -> Bits:
    return Bits("qs", planes, N, minus=minus, holds="codes")


def _sub_scales(count: int, *planes: Plane, minus: int = 0) -> Bits:
    return Bits("scales", planes, count, minus=minus, holds="sub_scales")


def _d(at: int) -> Field:
    return Field("d", at, "float16", holds="scales")


def _dmin(at: int) -> Field:
    return Field("dmin", at, "float16", holds="mins")


# Eight 6-bit scales and minima in 12 bytes: the first four whole, the others in nibbles with two bits on top of the first.
SIX_BITS = (
    _sub_scales(8, Plane(4, 4, "p=2 i=4 -> p*64 i*8"), Plane(4, 2, "p=2 i=4 -> i*8 p*2", shift=4, bit=4)),
    Bits("mins", (Plane(8, 4, "p=2 i=4 -> p*36 i*8"), Plane(8, 2, "p=2 i=4 -> i*8 p*2", shift=4, bit=4)), 8, holds="sub_mins"),
)  # fmt: skip

Q2_K = _format(
    "q2_k", 84, 16, "uint8", Integers(0, 3),
    _sub_scales(16, Plane(0, 4, "i=16 -> i*8")),
    Bits("mins", (Plane(0, 4, "i=16 -> i*8", bit=4),), 16, holds="sub_mins"),
    _codes(Plane(16, 2, PAIRS)), _d(80), _dmin(82),
)  # fmt: skip
Q3_K = _format(
    "q3_k", 110, 16, "int8", Integers(-4, 3),
    _codes(Plane(32, 2, PAIRS), Plane(0, 1, BY_BIT, shift=2), minus=4),
    _sub_scales(16, Plane(96, 4, "p=2 j=8 -> j p"), Plane(104, 2, "q=4 i=4 -> i q", shift=4), minus=32),
    _d(108),
)  # fmt: skip
Q4_K = _format("q4_k", 144, 32, "uint8", Integers(0, 15), _d(0), _dmin(2), *SIX_BITS, _codes(Plane(16, 4, RUNS)))
Q5_K = _format(
    "q5_k", 176, 32, "uint8", Integers(0, 31),
    _d(0), _dmin(2), *SIX_BITS, _codes(Plane(48, 4, RUNS), Plane(16, 1, BY_BIT, shift=4)),
)  # fmt: skip
Q6_K = _format(
    "q6_k", 210, 16, "int8", Integers(-32, 31),
    _codes(Plane(0, 4, "h=2 a=2 b=2 l=32 -> h b l a"), Plane(128, 2, "h=2 k=4 l=32 -> h l k", shift=4), minus=32),
    Field("scales", 192, "int8", 16, holds="sub_scales"), _d(208),
)  # fmt: skip
IQ4_XS = _format(
    "iq4_xs", 136, 32, "int8", Levels("iq4_nl", KVALUES),
    _d(0), _sub_scales(8, Plane(4, 4), Plane(2, 2, shift=4, word=2), minus=32),
    _codes(Plane(8, 4, "b=8 h=2 j=16 -> b j h")),
)  # fmt: skip
# Made at run time for products; `bsums` are the sums of 16 codes each, which no value depends on.
Q8_K = Format(
    "q8_k",
    Scheme("q8_k", Integers(-128, 127), (Param("scales", "float32", SUPER),), SCALED),
    (
        PartForm(
            "blocks",
            Layout(
                "q8_k", N, 292,
                (
                    Field("d", 0, "float32", holds="scales"),
                    Bits("qs", (Plane(4, 8),), N, signed=True, holds="codes"),
                    Field("bsums", 260, "int16", 16),
                ),
                source="ggml-org/ggml: src/ggml-common.h",
            ),
        ),
    ),
    rule="ggml",
)  # fmt: skip

ALL = (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ4_XS)
