"""ModelOpt: NVFP4 with a second scale that multiplies, MXFP4, FP8 with one scale for a tensor or a row, and 4-bit integers.

    w4a16   two rows share a byte, the even one in the low nibble; two's complement

NVFP4's table, unlike that of MXFP4, holds 0 for code 8, not minus 0. Where the product's input is scaled, its scale is part
of the weight: one value per column, multiplied last.

Source: NVIDIA/Model-Optimizer 0.47.0: modelopt/torch/quantization/qtensor/nvfp4_tensor.py, mxfp4_tensor.py,
modelopt/torch/export/quant_utils.py (pack_int4_in_uint8, to_quantized_weight).
"""

from dataclasses import replace

from qformat.bits import DTYPES
from qformat.formats.form import Format, PartForm, packed, parameter, with_input_scale
from qformat.formats.gguf import WITHOUT_MINUS_ZERO
from qformat.formats.mx import MXFP4 as MX
from qformat.layout import Bits, Layout, Plane
from qformat.scheme import Alphabet, Apply, Grid, Integers, Op, Param, Ref, Scheme, Step, levels
from qformat.tiling import Tiling

ROW_PAIRS = Layout("row_pairs", 2, 1, (Bits("codes", (Plane(0, 4),), 2, signed=True, holds="codes"),))
SCALED = Step(Op.MUL, Ref("scales"))


def nvfp4(columns: str = "") -> Format:
    """Make NVFP4: E2M1 codes, an E4M3 scale per 16 weights, times a float32 of the tensor.

    columns : element type of the input's scale; empty without one
    """
    scales, both = Param("scales", "float8_e4m3fn", Grid(1, 16)), Param("global_scale", "float32", Grid(0, 0))
    steps = (Step(Op.MUL, Apply(Op.MUL, Ref("scales"), Ref("global_scale"))),)
    codes = PartForm("codes", packed("nibbles", 4, "codes"))
    return _form("nvfp4", WITHOUT_MINUS_ZERO, steps, codes, {scales: 1, both: 4}, columns)


def fp8(group: Grid) -> Format:
    """Make FP8: E4M3 weights with a float32 scale, of the tensor or of each row."""
    codes = PartForm("codes", packed("bytes", 8, "codes"))
    return _form("fp8", levels("float8_e4m3fn"), (SCALED,), codes, {Param("scales", "float32", group): 4})


def w4a16(group: int, dtype: str = "float16", columns: str = "") -> Format:
    """Make W4A16-AWQ: signed 4-bit codes without a zero point.

    group   : columns that share a scale; 0: all
    dtype   : of the scales
    columns : element type of the input's scale; empty without one
    """
    codes = PartForm("codes", ROW_PAIRS, Tiling("nb k | n -> (nb n) k"))
    scales = Param("scales", dtype, Grid(1, group))
    return _form("w4a16-awq", Integers(-8, 7), (SCALED,), codes, {scales: DTYPES[dtype].bits // 8}, columns)


def _form(
    kind: str, alphabet: Alphabet, steps: tuple[Step, ...], codes: PartForm, stored: dict[Param, int], columns: str = ""
) -> Format:
    scheme = Scheme(f"modelopt:{kind}", alphabet, tuple(stored), steps)
    form = Format(scheme.name, scheme, (codes, *(parameter(param, n_bytes) for param, n_bytes in stored.items())))
    return with_input_scale(form, columns) if columns else form


MXFP4 = replace(MX, name="modelopt:mxfp4", scheme=replace(MX.scheme, name="modelopt:mxfp4"), rule="")

DIALECT = (nvfp4(), MXFP4, fp8(Grid(0, 0)), w4a16(128))
