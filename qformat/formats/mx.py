"""MXFP4 in two arrays: E2M1 codes, low nibble first, and one E8M0 exponent per 32 weights.

Source: OCP Microscaling Formats (MX) v1.0, sections 5.2 and 5.3. compressed-tensors 0.20.0 holds the same bytes; so does
gpt-oss, whose reader takes exponent 255 for 2^128 instead of NaN (huggingface/transformers 5.23.0: integrations/mxfp4.py).
"""

from qformat.formats.form import Format, PartForm, packed, parameter
from qformat.scheme import Grid, Op, Param, Ref, Scheme, Step, levels

SCALES = Param("scales", "float8_e8m0fnu", Grid(1, 32))
CODES = packed("nibbles", 4, "codes")

MXFP4 = Format(
    "mxfp4",
    Scheme("mxfp4", levels("float4_e2m1fn"), (SCALES,), (Step(Op.MUL, Ref("scales")),)),
    (PartForm("codes", CODES), parameter(SCALES, 1)),
    rule="floor",
)
INFINITE = Param("scales", "float8_e8m0inf", SCALES.group)  # as MLX and compressed-tensors read exponent 255
# Said as ggml says it, levels doubled and exponents one lower: half of 2^128 is a number, which no product with 2^128 gives.
HALVED = Param("scales", "float8_e8m0half", SCALES.group)
GPT_OSS = Format(
    "gpt-oss",
    Scheme("gpt-oss", levels("float4_e2m1fn", 2), (HALVED,), MXFP4.scheme.steps),
    (MXFP4.parts[0], parameter(HALVED, 1)),
)

ALL = (MXFP4,)
DIALECT = (GPT_OSS,)
