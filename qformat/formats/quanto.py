"""optimum-quanto: integers of 2 and 4 bits in slabs of the grouped view, the first slab in the lowest bits; 8 bits by rows.

Weights of 2 and 4 bits have a float shift, subtracted after scaling, or an integer one, subtracted before. The row length
is not stored with them: without it the codes are listed, but nobody knows which row a group belongs to.

Source: huggingface/optimum-quanto 0.2.7: optimum/quanto/tensor/packed.py (pack_weights), tensor/qbits.py
(QBitsDequantizer), tensor/grouped.py, nn/qmodule.py (weight_group_size).
"""

from qformat.bits import DTYPES
from qformat.errors import UsageError
from qformat.formats.form import Format, PartForm, packed, parameter
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Alphabet, Flat, Grid, Integers, Op, Opaque, Param, Ref, Scheme, Step, levels
from qformat.tiling import FLAT, Tiling

FLOATS = {"float8_e4m3fn": "qfloat8_e4m3fn", "float8_e5m2": "qfloat8_e5m2", "float8_e4m3fnuz": "qfloat8_e4m3fnuz"}
QTYPES = {"int2": "qint2", "int4": "qint4", "int8": "qint8", **FLOATS}  # the peer's name of each element
FEW = {"int2": 2, "int4": 4}  # bits of codes that share a byte
GROUP, GROUP_STEP, MIN_GROUP = 128, 32, 32
UNKNOWN = "of unknown row length (give --shape NAME=ROWS,COLUMNS)"


def group_of(n_cols: int) -> int:
    """Give the weights of a group in rows of this length: all, where they are few or 32 does not divide them."""
    sizes = range(GROUP, MIN_GROUP - 1, -GROUP_STEP)
    return next((size for size in sizes if n_cols > GROUP and n_cols % size == 0), n_cols)


def quanto(
    element: str, dtype: str, group: int = 0, shift: str = "", extras: tuple[str, ...] = (), is_known: bool = True
) -> Format:
    """Make a quanto format.

    element  : one of QTYPES
    dtype    : of the scales
    group    : weights that share a scale and a shift, where bits are few
    shift    : element type of the shift; that of the scales if empty
    extras   : roles of scalars stored beside, of the type of the scales: scales of activations
    is_known : whether the row length is known

    Raises UsageError for another element.
    """
    if element not in QTYPES:
        raise UsageError(f"quanto element '{element}', expected one of {', '.join(QTYPES)}", found=element)
    bits, n_bytes = FEW.get(element, 8), DTYPES[dtype].bits // 8
    beside = tuple(PartForm(role, Layout(dtype, 0, n_bytes, (Field(role, 0, dtype),)), FLAT) for role in extras)
    name = f"quanto:{'fp8' if element in FLOATS else element}"
    if bits == 8:
        scales = Param("scales", dtype, Grid(1, 0))
        alphabet: Alphabet = levels(element) if element in FLOATS else Integers(-128, 127)
        codes = packed("bytes", 8, "codes", signed=element not in FLOATS)
        scheme = Scheme(name, alphabet, (scales,), (Step(Op.MUL, Ref("scales")),))
        return Format(name, scheme, (PartForm("codes", codes), parameter(scales, n_bytes), *beside))
    params = (Param("scales", dtype, Flat(group)), Param("biases", shift or dtype, Flat(group)))
    steps = (Step(Op.MUL, Ref("scales")), Step(Op.SUB, Ref("biases")))
    if DTYPES[shift or dtype].kind != "float":
        params = (params[0], Param("zeros", shift, Flat(group)))
        steps = (Step(Op.SUB, Ref("zeros")), steps[0])
    slabs = 8 // bits
    field = Bits("codes", (Plane(0, bits),), slabs, holds="codes")
    codes = Layout(f"quanto_{element}", slabs, 1, (field,))
    stored = (parameter(params[0], n_bytes), parameter(params[1], DTYPES[params[1].dtype].bits // 8))
    alphabet = Integers(0, (1 << bits) - 1) if is_known else Opaque(f"{name} {UNKNOWN}")
    parts = (PartForm("codes", codes, Tiling(f"r c={group} | w={slabs} -> (w r c)")), *stored, *beside)
    return Format(name, Scheme(name, alphabet, params, steps), parts)


DIALECT = (
    *(quanto(element, "bfloat16", 128) for element in FEW),
    *(quanto(element, "bfloat16") for element in ("int8", "float8_e4m3fn")),
)
