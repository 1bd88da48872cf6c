"""BitNet: ternary codes plus one, four rows to a byte, the first quarter of the rows in its lowest bits; one scale.

A layer of class "bitlinear" divides its output by the scale, one of class "autobitlinear" multiplies with it. A field of 3
is a code of 2: no packer makes it, and readers take it as it is.

Source: huggingface/transformers 5.23.0: src/transformers/integrations/bitnet.py (pack_weights, unpack_weights,
BitLinear.post_quant_process, AutoBitLinear.forward).
"""

from dataclasses import replace

from qformat.bits import DTYPES
from qformat.formats.form import Format, PartForm, parameter
from qformat.layout import Bits, Layout, Plane
from qformat.scheme import Grid, Integers, Op, Param, Ref, Scheme, Step
from qformat.tiling import Tiling

SLABS = 4
CODES = Layout("bitnet", SLABS, 1, (Bits("codes", (Plane(0, 2),), SLABS, minus=1, holds="codes"),))
QUARTERS = Tiling("r k | w -> (w r) k")


def bitnet(dtype: str = "bfloat16", divides: bool = False) -> Format:
    """Make a BitNet format.

    dtype   : of the scale
    divides : whether codes are divided by the scale, instead of multiplied
    """
    scale = Param("scales", dtype, Grid(0, 0))
    scheme = Scheme("bitnet", Integers(-1, 2), (scale,), (Step(Op.DIV if divides else Op.MUL, Ref("scales")),))
    return Format(scheme.name, scheme, (PartForm("codes", CODES, QUARTERS), parameter(scale, DTYPES[dtype].bits // 8)))


DIALECT = (bitnet(), replace(bitnet(divides=True), name="bitnet:divided"))
