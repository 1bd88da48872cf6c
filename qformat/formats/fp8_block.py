"""Block FP8: E4M3 weights with one scale for each rectangle of rows and columns, the last of both axes possibly short.

    f32, bf16   float scales
    ue8m0       E8M0 scales; experts may be MXFP4 instead: E2M1, low nibble first, with a scale for 32 weights of a row

Source: huggingface/transformers 5.23.0: integrations/finegrained_fp8.py (Fp8Dequantize); deepseek-ai/DeepSeek-V3:
inference/kernel.py (weight_dequant_kernel).
"""

from dataclasses import replace

from qformat.formats.form import Format, PartForm, packed, parameter
from qformat.formats.mx import CODES as NIBBLES
from qformat.formats.mx import INFINITE, SCALES
from qformat.scheme import Grid, Levels, Op, Param, Ref, Scheme, Step, levels

DTYPES = {"f32": ("float32", 4), "bf16": ("bfloat16", 2), "ue8m0": ("float8_e8m0fnu", 1)}  # of scales, and their bytes
CODES, FLOAT4 = "codes", "float4"  # E2M1 in an array of bytes, or of its own type
E2M1, E4M3 = levels("float4_e2m1fn"), levels("float8_e4m3fn")
STEPS = (Step(Op.MUL, Ref("scales")),)


def fp8_block(kind: str, rows: int, cols: int, in_bytes: bool = False) -> Format:
    """Make a block FP8 format.

    kind       : one of DTYPES
    rows, cols : weights of a rectangle; 0, 0: the whole tensor
    in_bytes   : the array of scales is of bytes, whose reader knows no NaN
    """
    dtype, n_bytes = DTYPES[kind]
    scales = Param("scales", INFINITE.dtype if in_bytes else dtype, Grid(rows, cols))
    return _form(kind, E4M3, PartForm(CODES, packed("bytes", 8, "codes")), scales, n_bytes)


def fp4(is_float4: bool = False, in_bytes: bool = False) -> Format:
    """Make the format of MXFP4 experts.

    is_float4 : the array of codes is of E2M1, not of bytes
    in_bytes  : as of block FP8
    """
    codes = PartForm(FLOAT4 if is_float4 else CODES, NIBBLES)
    return _form("ue8m0", E2M1, codes, INFINITE if in_bytes else SCALES, 1)


def _form(kind: str, alphabet: Levels, codes: PartForm, scales: Param, n_bytes: int) -> Format:
    scheme = Scheme(f"fp8-block:{kind}", alphabet, (scales,), STEPS)
    return Format(scheme.name, scheme, (codes, replace(parameter(scales, n_bytes), role="scale_inv")))


DIALECT = tuple(fp8_block(kind, 128, 128) for kind in DTYPES)
