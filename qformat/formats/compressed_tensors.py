"""compressed-tensors: signed integers packed into words, or a byte for each weight, and the small floats of NVFP4 and MX.

    pack    integers of 1 to 8 bits, stored less their smallest, along the columns; zero points packed along the rows
    int     int8, zero points as they are
    float   float8 with scales for the tensor, a row, a group or a block of rows and columns
    nvfp4   E2M1; an E4M3 scale for 16 columns, divided by a float32 of the tensor
    mxfp4, mxfp6, mxfp8   E2M1, E2M3, E4M3; an E8M0 scale for 32 columns, 255 read as 2^128, which is infinite

Source: compressed-tensors 0.20.0: compressors/pack_quantized/helpers.py, compressors/nvfp4/helpers.py,
compressors/mxfp6/helpers.py, compressors/mx_utils.py, quantization/lifecycle/forward_helpers.py (_dequantize). Files of
2025 and before hold fields that do not cross words.
"""

from functools import cache
from math import gcd

from qformat.errors import UsageError
from qformat.formats.form import Format, PartForm, packed, parameter, scalar
from qformat.layout import Bits, Layout, Plane
from qformat.scheme import Apply, Grid, Group, Indexed, Integers, Levels, Op, Param, Ref, Scheme, Step, Table, levels
from qformat.tiling import FLAT, Tiling

KINDS = ("pack", "int", "float", "nvfp4", "mxfp4", "mxfp6", "mxfp8")
BITS = range(1, 9)
SPARSE_BITS = (3, 5, 6, 7)  # widths whose fields would cross words
SCALES = {"float16": 2, "bfloat16": 2, "float32": 4}
WORD = 32
DOWN = Tiling("nb w*4 g | n -> (nb n) g")
TENSOR, CHANNEL = Grid(0, 0), Grid(1, 0)
SCALED = (Step(Op.MUL, Ref("scales")),)
SHIFTED = (Step(Op.SUB, Ref("zeros")), *SCALED)


def n_words(n: int, bits: int, sparse: bool) -> int:
    """Count the words that hold a line of fields.

    sparse : no field crosses from word to word
    """
    return -(-n // (WORD // bits)) if sparse else -(-n * bits // WORD)


@cache
def pack(bits: int, over: Group, dtype: str, shape: tuple[int, int], zeros: str = "", sparse: bool = False) -> Format:
    """Make the format of packed integers.

    over   : weights that share a scale; where columns are out of order, `g_idx` names each column's group
    dtype  : of the scales
    shape  : rows and columns, for lines that end within a block of words
    zeros  : "packed" along the rows, "plain" as int8, or none
    sparse : no field crosses from word to word

    Raises UsageError for bits that there are not.
    """
    if bits not in (SPARSE_BITS if sparse else BITS):
        raise UsageError(f"compressed-tensors packs no {'sparse ' * sparse}{bits}-bit integers", found=bits)
    params = [Param("scales", dtype, over)]
    parts = [PartForm("codes", _words(bits, shape[1], "codes", sparse)), parameter(params[0], SCALES[dtype])]
    if zeros:
        params.append(Param("zeros", "int8", over))
        plain = PartForm("zeros", packed("int8_zeros", 8, "zeros", signed=True))
        parts.append(plain if zeros == "plain" else PartForm("zeros", _words(bits, shape[0], "zeros", sparse), DOWN))
    if isinstance(over, Indexed):
        params.append(Param("g_idx", "int32", Table(shape[1])))
        parts.append(PartForm("g_idx", scalar("int32", 4, "g_idx"), FLAT))
    half = 1 << bits - 1
    return _format("pack", Integers(-half, half - 1), tuple(params), SHIFTED if zeros else SCALED, tuple(parts))


@cache
def whole(kind: str, over: Grid, dtype: str, zeros: bool = False) -> Format:
    """Make the format of a byte for each weight: int8 ("int") or float8 E4M3 ("float").

    zeros : zero points of the weights' own type
    """
    signed, element = kind == "int", "int8" if kind == "int" else "float8_e4m3fn"
    alphabet = Integers(-128, 127) if signed else levels(element)
    params = (Param("scales", dtype, over), *(Param("zeros", element, over) for _ in range(zeros)))
    stored = tuple(parameter(param, {**SCALES, element: 1}[param.dtype]) for param in params)
    codes = packed("int8" if signed else "bytes", 8, "codes", signed=signed)
    return _format(kind, alphabet, params, SHIFTED if zeros else SCALED, (PartForm("codes", codes), *stored))


def _words(bits: int, n: int, holds: str, sparse: bool) -> Layout:
    """Declare the least words that hold whole fields; the whole line where it ends in the middle of such words."""
    words = 1 if sparse else bits // gcd(bits, WORD)
    count, name = words * WORD // bits, f"words_{bits}{'_sparse' * sparse}_{holds}"
    if -(-n // count) * words != n_words(n, bits, sparse):
        words, count, name = n_words(n, bits, sparse), n, f"{name}_of_{n}"
    used = count * bits
    spare = Bits("spare", (Plane(used // 8, 1, bit=used % 8, word=4),), words * WORD - used)
    fields = Bits("fields", (Plane(0, bits, word=4),), count, minus=1 << bits - 1, holds=holds)
    return Layout(name, count if holds == "codes" else 0, words * WORD // 8, (fields, *([spare] if spare.count else [])))


def _format(
    kind: str, alphabet: Integers | Levels, params: tuple[Param, ...], steps: tuple[Step, ...], parts: tuple[PartForm, ...]
) -> Format:
    scheme = Scheme(f"compressed-tensors:{kind}", alphabet, params, steps)
    return Format(scheme.name, scheme, parts)


def _mx(kind: str, element: str, bits: int, name: str) -> Format:
    scales = Param("scales", "float8_e8m0inf", Grid(1, 32))
    parts = (PartForm("codes", packed(name, bits, "codes")), parameter(scales, 1))
    return _format(kind, levels(element), (scales,), SCALED, parts)


_GROUPS, _DIVISOR = Param("scales", "float8_e4m3fn", Grid(1, 16)), Param("divisor", "float32", TENSOR)
NVFP4 = _format(
    "nvfp4",
    levels("float4_e2m1fn"),
    (_GROUPS, _DIVISOR),
    (Step(Op.MUL, Apply(Op.DIV, Ref("scales"), Ref("divisor"))),),
    (PartForm("codes", packed("nibbles", 4, "codes")), parameter(_GROUPS, 1), parameter(_DIVISOR, 4)),
)
MX = {
    "mxfp4": _mx("mxfp4", "float4_e2m1fn", 4, "nibbles"),
    "mxfp6": _mx("mxfp6", "float6_e2m3fn", 6, "sixes"),
    "mxfp8": _mx("mxfp8", "float8_e4m3fn", 8, "bytes"),
}
DIALECT = (
    pack(4, Grid(1, 128), "bfloat16", (4096, 4096), "packed"),
    whole("int", CHANNEL, "bfloat16"),
    whole("float", CHANNEL, "bfloat16"),
    NVFP4,
    *MX.values(),
)
