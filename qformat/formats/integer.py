"""Affine integers of 2 to 8 bits with float16 scales: per group along the contraction axis, per channel or per tensor.

    int4_g128        signed codes, no zero point
    uint4_g128       unsigned codes, integer zero point of the same width
    int8_asym_g128   signed codes, signed integer zero point

Codes and zero points lie least significant bits first; signed fields are stored with a bias of half their range.
"""

from qformat.errors import UsageError
from qformat.formats.form import Format, PartForm, packed, parameter
from qformat.scheme import Grid, Integers, Op, Param, Ref, Scheme, Step

CHANNEL = "channel"
TENSOR = "tensor"
MIN_GROUP = 16


def integer(bits: int, group: int | str = 128, signed: bool = True, zero: bool = False) -> Format:
    """Make an integer format.

    bits   : 2 to 8
    group  : weights that share a scale, at least 16, or "channel" or "tensor"
    signed : codes from -2**(bits-1), else from 0
    zero   : an integer zero point per group

    Raises UsageError outside these.
    """
    if not 2 <= bits <= 8:
        raise UsageError(f"{bits}-bit integers, expected 2 to 8 bits")
    if isinstance(group, int) and group < MIN_GROUP:
        raise UsageError(f"group of {group} weights, expected at least {MIN_GROUP}")
    kind = f"{'int' if signed else 'uint'}{bits}{'_asym' if signed and zero else ''}"
    name = f"{kind}_{group if isinstance(group, str) else f'g{group}'}"
    over = Grid(0, 0) if group == TENSOR else Grid(1, 0) if group == CHANNEL else Grid(1, int(group))
    half = 1 << (bits - 1) if signed else 0
    scales = Param("scales", "float16", over)
    zeros = (Param("zeros", "int8" if signed else "uint8", over),) if zero else ()
    steps = (*(Step(Op.SUB, Ref(param.name)) for param in zeros), Step(Op.MUL, Ref("scales")))
    scheme = Scheme(name, Integers(-half, (1 << bits) - 1 - half), (scales, *zeros), steps)
    width = f"uint{bits}" + (f"_minus{half}" if half else "")
    parts = (PartForm("codes", packed(width, bits, "codes", minus=half)), parameter(scales, 2))
    stored_zeros = tuple(PartForm("zeros", packed(f"{width}_zeros", bits, "zeros", minus=half)) for _ in zeros)
    return Format(name, scheme, parts + stored_zeros, rule="minmax" if zero else "symmetric")


ALL = (
    integer(4, 128), integer(4, 32), integer(4, CHANNEL), integer(4, TENSOR),
    integer(4, 128, signed=False, zero=True), integer(4, 32, signed=False, zero=True),
    integer(3, 64), integer(5, 64), integer(6, 64, signed=False, zero=True),
    integer(8, CHANNEL), integer(8, TENSOR), integer(8, 128),
    integer(8, CHANNEL, zero=True), integer(8, TENSOR, zero=True), integer(8, 128, signed=False, zero=True),
)  # fmt: skip
