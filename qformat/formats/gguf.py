"""GGUF block types of 32 weights (Q4_0 to Q8_1, IQ4_NL, the 17-byte MXFP4), and NVFP4 of 64.

Source: ggml-org/ggml at d99724f2: src/ggml-common.h (block_q4_0 ... block_nvfp4), src/ggml-quants.c (dequantize_row_*).
"""

from qformat.formats.form import Format, PartForm, parameter
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Apply, Grid, Integers, Levels, Op, Param, Ref, Scheme, Step, levels

HALVES = "h=2 j=16 -> j h"  # byte j holds element j in its low nibble and element j + 16 in its high one
GROUP = Grid(1, 32)
SCALES = Param("scales", "float16", GROUP)
BIASES = Param("biases", "float16", GROUP)
SCALED = (Step(Op.MUL, Ref("scales")),)
AFFINE = (*SCALED, Step(Op.ADD, Ref("biases")))
D = Field("d", 0, "float16", holds="scales")
M = Field("m", 2, "float16", holds="biases")


def _format(layout: Layout, scheme: Scheme) -> Format:
    return Format(layout.name, scheme, (PartForm("blocks", layout),), rule="ggml")


def _block(name: str, n_bytes: int, *fields: Field | Bits, n_weights: int = 32) -> Layout:
    return Layout(name, n_weights, n_bytes, fields, source="ggml-org/ggml: src/ggml-common.h")


def _codes(*planes: Plane, minus: int = 0, signed: bool = False, n_weights: int = 32) -> Bits:
    return Bits("qs", planes, n_weights, minus=minus, signed=signed, holds="codes")


Q4_0 = _format(
    _block("q4_0", 18, D, _codes(Plane(2, 4, HALVES), minus=8)),
    Scheme("q4_0", Integers(-8, 7), (SCALES,), SCALED),
)
Q4_1 = _format(
    _block("q4_1", 20, D, M, _codes(Plane(4, 4, HALVES))),
    Scheme("q4_1", Integers(0, 15), (SCALES, BIASES), AFFINE),
)
Q5_0 = _format(
    _block("q5_0", 22, D, _codes(Plane(6, 4, HALVES), Plane(2, 1, shift=4, word=4), minus=16)),
    Scheme("q5_0", Integers(-16, 15), (SCALES,), SCALED),
)
Q5_1 = _format(
    _block("q5_1", 24, D, M, _codes(Plane(8, 4, HALVES), Plane(4, 1, shift=4, word=4))),
    Scheme("q5_1", Integers(0, 31), (SCALES, BIASES), AFFINE),
)
Q8_0 = _format(
    _block("q8_0", 34, D, _codes(Plane(2, 8), signed=True)),
    Scheme("q8_0", Integers(-128, 127), (SCALES,), SCALED),
)
# Made at run time for products; `s`, the scale times the sum of the codes, is nothing that a value depends on.
Q8_1 = _format(
    _block("q8_1", 36, D, Field("s", 2, "float16"), _codes(Plane(4, 8), signed=True)),
    Scheme("q8_1", Integers(-128, 127), (SCALES,), SCALED),
)
KVALUES = (
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0,
    1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
)  # fmt: skip
IQ4_NL = _format(
    _block("iq4_nl", 18, D, _codes(Plane(2, 4, HALVES))),
    Scheme("iq4_nl", Levels("iq4_nl", KVALUES), (SCALES,), SCALED),
)
# ggml keeps E2M1 doubled, as integers, and the exponent one lower: code 8, minus zero in OCP, decodes to +0.
DOUBLED, WITHOUT_MINUS_ZERO = (
    Levels("float4_e2m1fn", tuple(level + 0.0 for level in levels("float4_e2m1fn", times).levels)) for times in (2, 1)
)
MXFP4 = _format(
    _block("mxfp4", 17, Field("e", 0, "float8_e8m0half", holds="scales"), _codes(Plane(1, 4, HALVES))),
    Scheme("mxfp4", DOUBLED, (Param("scales", "float8_e8m0half", GROUP),), SCALED),
)
# Here the scale is halved instead of the levels, which is the same.
NVFP4 = _format(
    _block(
        "nvfp4", 36,
        Field("d", 0, "float8_ue4m3", 4, holds="scales"), _codes(Plane(4, 4, "r=4 h=2 j=8 -> r j h"), n_weights=64),
        n_weights=64,
    ),
    Scheme("nvfp4", WITHOUT_MINUS_ZERO, (Param("scales", "float8_ue4m3", Grid(1, 16)),), SCALED),
)  # fmt: skip


def nvfp4_scaled(rows: int) -> Format:
    """Make NVFP4 with a second scale, multiplied into the first: one float32 for every `rows` rows, for all where 0."""
    both = Param("global_scale", "float32", Grid(rows, 0))
    product = Apply(Op.MUL, Ref("scales"), Ref(both.name))
    scheme = Scheme("nvfp4", WITHOUT_MINUS_ZERO, (*NVFP4.scheme.params, both), (Step(Op.MUL, product),))
    return Format("nvfp4", scheme, (*NVFP4.parts, parameter(both, 4)))


ALL = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, IQ4_NL, MXFP4, NVFP4)
