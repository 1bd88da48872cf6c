"""torchao: integers and small floats by rows, each kind a tensor class of its own.

    int8    Int8Tensor: a byte for each code, zero points or none
    intx    IntxUnpackedToInt8Tensor: a byte for each code of 1 to 8 bits, zero points
    int4    Int4Tensor: two's complement, the even column in the low nibble; scales and biases one row per group
    fp8     Float8Tensor: E4M3 or E5M2 with scales for rows, blocks or the tensor
    mx      MXTensor: E2M1, E4M3 or E5M2 with an E8M0 scale for 32 columns
    nvfp4   NVFP4Tensor: E2M1 with an E4M3 scale for 16 columns, times a float32 of the tensor or none

Source: pytorch/ao 0.18.0: torchao/quantization/quantize_/workflows, torchao/quantization/quant_primitives.py
(_dequantize_affine_no_dtype_check), torchao/prototype/mx_formats; of int4 pytorch/FBGEMM: fbgemm_gpu/experimental/gen_ai/
gen_ai/quantize.py (int4_row_quantize_zp, pack_int4).
"""

from dataclasses import replace

from qformat.bits import DTYPES
from qformat.formats.form import Format, PartForm, packed, parameter, scalar
from qformat.formats.gptq import BY_GROUP
from qformat.formats.mx import MXFP4, SCALES
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Alphabet, Apply, Grid, Integers, Op, Param, Ref, Scheme, Step, levels
from qformat.tiling import FLAT

SCALED = (Step(Op.MUL, Ref("scales")),)
SHIFTED = (Step(Op.SUB, Ref("zeros")), *SCALED)
ACTIVATION = "act_per_tensor_scale"
BYTES = PartForm("codes", packed("bytes", 8, "codes"))
SIGNED_BYTES = PartForm("codes", packed("int8", 8, "codes", signed=True))


def integer(bits: int, over: Grid, dtype: str, zeros: bool = True, is_intx: bool = True) -> Format:
    """Make a format of a byte for each integer.

    bits    : of the codes; 8 where they are an Int8Tensor
    over    : weights that share a scale and a zero point
    dtype   : of the scales
    zeros   : whether there are zero points
    is_intx : of the class for any number of bits
    """
    field = Bits("qdata", (Plane(0, 8),), 1, signed=True, holds="codes.bytes")
    codes = PartForm("codes", Layout("intx", 1, 1, (field,), "bytes"))
    half, stored = 1 << bits - 1, PartForm("zeros", packed("int8_zeros", 8, "zeros", signed=True))
    params = (Param("scales", dtype, over), *(Param("zeros", "int8", over) for _ in range(zeros)))
    parts = (codes if is_intx else SIGNED_BYTES, _parameter(params[0]), *(stored for _ in range(zeros)))
    name = "int4" if is_intx and bits == 4 else "int8"
    return _format(name, Integers(-half, half - 1), params, SHIFTED if zeros else SCALED, parts)


def int4(group: int, dtype: str = "bfloat16") -> Format:
    """Make the format of two integers in a byte, with a float bias; `group` columns share it."""
    params = tuple(Param(name, dtype, Grid(1, group)) for name in ("scales", "biases"))
    stored = (PartForm(param.name, scalar(dtype, DTYPES[dtype].bits // 8, param.name), BY_GROUP) for param in params)
    codes = PartForm("codes", packed("signed_nibbles", 4, "codes", signed=True))
    return _format("int4", Integers(-8, 7), params, (*SCALED, Step(Op.ADD, Ref("biases"))), (codes, *stored))


def fp8(element: str, over: Grid, dtype: str = "float32") -> Format:
    """Make the format of float8 weights: their element type, the weights that share a scale, and its type."""
    scales = Param("scales", dtype, over)
    return _format("fp8", levels(element), (scales,), SCALED, (BYTES, _parameter(scales)))


def mx(element: str) -> Format:
    """Make the MX format of an element type: "float4_e2m1fn", "float8_e4m3fn" or "float8_e5m2"."""
    if element == "float4_e2m1fn":
        return replace(MXFP4, name="torchao:mxfp4", scheme=replace(MXFP4.scheme, name="torchao:mxfp4"), rule="")
    return _format("mxfp8", levels(element), (SCALES,), SCALED, (BYTES, _parameter(SCALES)))


def nvfp4(is_scaled: bool = True, with_activation: bool = False) -> Format:
    """Make NVFP4.

    is_scaled       : whether a float32 of the tensor multiplies the scales
    with_activation : whether a scale of the activations lies beside
    """
    scales, both = Param("scales", "float8_e4m3fn", Grid(1, 16)), Param("global_scale", "float32", Grid(0, 0))
    params = (scales, both) if is_scaled else (scales,)
    steps = (Step(Op.MUL, Apply(Op.MUL, Ref("scales"), Ref("global_scale"))),) if is_scaled else SCALED
    beside = PartForm(ACTIVATION, Layout("float32", 0, 4, (Field(ACTIVATION, 0, "float32"),)), FLAT)
    parts = (MXFP4.parts[0], *map(_parameter, params), *(beside for _ in range(with_activation)))
    return _format("nvfp4", MXFP4.scheme.alphabet, params, steps, parts)


def _format(
    kind: str, alphabet: Alphabet, params: tuple[Param, ...], steps: tuple[Step, ...], parts: tuple[PartForm, ...]
) -> Format:
    scheme = Scheme(f"torchao:{kind}", alphabet, params, steps)
    return Format(scheme.name, scheme, parts)


def _parameter(param: Param) -> PartForm:
    return parameter(param, DTYPES[param.dtype].bits // 8)


DIALECT = (
    integer(8, Grid(1, 0), "float32", is_intx=False),
    integer(4, Grid(1, 32), "bfloat16"),
    replace(int4(128), name="torchao:int4-plain"),
    fp8("float8_e4m3fn", Grid(1, 0)),
    mx("float4_e2m1fn"),
    mx("float8_e4m3fn"),
    nvfp4(),
)
