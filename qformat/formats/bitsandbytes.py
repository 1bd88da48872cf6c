"""bitsandbytes: 4-bit levels in blocks of the flattened tensor, and int8 by rows.

    nf4, fp4         a float32 scale for each block
    nf4-dq, fp4-dq   an 8-bit scale for each block: the entry of a table, times the float32 of many blocks, plus an offset
    int8             the largest magnitude of each row; 1/127 is a constant of the format

The 16 levels are a table of the format, or a part of the tensor where it stores another one.

Source: bitsandbytes-foundation/bitsandbytes 0.50.2: bitsandbytes/functional.py (QuantState, get_4bit_type,
int8_vectorwise_dequant), bitsandbytes/backends/utils.py.
"""

from dataclasses import replace

from qformat.bits import NF4
from qformat.formats.form import Format, PartForm, packed, parameter
from qformat.formats.nf4 import CODES, nf4
from qformat.scheme import Apply, Const, Flat, Grid, Integers, Levels, Lookup, Op, Param, Ref, Scheme, Step, Stored, Table
from qformat.tiling import FLAT

KINDS = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8")
FP4 = (
    0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
    0.0, -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25,
)  # fmt: skip
TABLES = {"nf4": Levels("nf4", NF4), "fp4": Levels("fp4", FP4)}
N_LEVELS = 16
N_SCALES = 256  # entries of the table of 8-bit scales
NESTED_BLOCK = 256  # scales that share a float32, as bitsandbytes makes them
ONE_127TH = 0.007874015718698502  # float32(1/127), by which decoding multiplies

QUANT_MAP = Param("quant_map", "float32", Table(N_LEVELS))
NESTED_MAP = Param("nested_quant_map", "float32", Table(N_SCALES))


def four_bit(table: str, block: int = 64, stored: bool = False, nested: tuple[int, float] | None = None) -> Format:
    """Make a 4-bit format.

    table  : "nf4" or "fp4"
    block  : weights of the flat tensor that share a scale
    stored : the levels are a part of the tensor
    nested : of 8-bit scales, how many share a float32, and the offset of all

    Raises UsageError for a block size that bitsandbytes does not have.
    """
    plain = nf4(block)
    params, scale = plain.scheme.params, plain.scheme.steps[0].operand
    if nested is not None:
        absmax, of_many = Param("absmax", "uint8", Flat(block)), Param("nested_absmax", "float32", Flat(block * nested[0]))
        params = (absmax, of_many, NESTED_MAP)
        product = Apply(Op.MUL, Lookup(NESTED_MAP.name, absmax.name), Ref(of_many.name))
        scale = Apply(Op.ADD, product, Const(nested[1]))
    params += (QUANT_MAP,) if stored else ()
    name = f"bnb:{table}{'-dq' if nested else ''}"
    scheme = Scheme(name, Stored(QUANT_MAP.name) if stored else TABLES[table], params, (Step(Op.MUL, scale),))
    parts = [parameter(param, 1 if param.dtype == "uint8" else 4) for param in params]
    return replace(plain, name=name, scheme=scheme, parts=(PartForm("codes", CODES, FLAT), *parts), rule="")


def int8() -> Format:
    """Make the int8 format."""
    scales = Param("scales", "float32", Grid(1, 0))
    steps = (Step(Op.MUL, Ref("scales")), Step(Op.MUL, Const(ONE_127TH)))
    scheme = Scheme("bnb:int8", Integers(-128, 127), (scales,), steps)
    return Format(scheme.name, scheme, (PartForm("codes", packed("int8", 8, "codes", signed=True)), parameter(scales, 4)))


def nested_of(scheme: Scheme) -> tuple[int, float] | None:
    """Give how many 8-bit scales share a float32, and their offset; None where scales are as they are."""
    match scheme.steps:
        case (Step(Op.MUL, Apply(Op.ADD, Apply(Op.MUL, Lookup(_, index), Ref(of_many)), Const(offset))),):
            fine, coarse = scheme.param(index).group, scheme.param(of_many).group
            if isinstance(fine, Flat) and isinstance(coarse, Flat):
                return coarse.n_weights // fine.n_weights, offset
    return None


DIALECT = (
    four_bit("nf4"), four_bit("nf4", nested=(NESTED_BLOCK, 0.0)), four_bit("fp4"), four_bit("fp4", nested=(NESTED_BLOCK, 0.0)),
    int8(),
)  # fmt: skip
