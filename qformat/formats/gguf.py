"""GGUF block types of 32 weights: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and the 17-byte MXFP4.

Source: ggml-org/ggml at d99724f2: src/ggml-common.h (block_q4_0 ... block_mxfp4), src/ggml-quants.c (dequantize_row_*).
"""

from qformat.formats.form import Format, PartForm
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Grid, Integers, Levels, Op, Param, Ref, Scheme, Step, levels

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


def _block(name: str, n_bytes: int, *fields: Field | Bits) -> Layout:
    return Layout(name, 32, n_bytes, fields, source="ggml-org/ggml: src/ggml-common.h")


def _codes(*planes: Plane, minus: int = 0, signed: bool = False) -> Bits:
    return Bits("qs", planes, 32, minus=minus, signed=signed, holds="codes")


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
# ggml keeps E2M1 doubled, as integers, and the exponent one lower: code 8, minus zero in OCP, decodes to +0.
DOUBLED = Levels("float4_e2m1fn", tuple(level + 0.0 for level in levels("float4_e2m1fn", times=2).levels))
MXFP4 = _format(
    _block("mxfp4", 17, Field("e", 0, "float8_e8m0half", holds="scales"), _codes(Plane(1, 4, HALVES))),
    Scheme("mxfp4", DOUBLED, (Param("scales", "float8_e8m0half", GROUP),), SCALED),
)

ALL = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4)
