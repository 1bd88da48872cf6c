"""The catalogue: every format by name. A new format is one declaration in a module here and one entry below."""

import re

from qformat.errors import UsageError
from qformat.formats import (
    awq,
    bitnet,
    bitsandbytes,
    compressed_tensors,
    dense,
    fp8_block,
    gptq,
    hqq,
    integer,
    mlx,
    modelopt,
    mx,
    nf4,
    quanto,
    torchao,
)
from qformat.formats.form import Format
from qformat.formats.gguf_types import GGUF

PLANAR = (*mx.ALL, *nf4.ALL, *integer.ALL)
DIALECTS = (
    *gptq.DIALECT,
    *awq.DIALECT,
    *bitsandbytes.DIALECT,
    *compressed_tensors.DIALECT,
    *mx.DIALECT,
    *mlx.DIALECT,
    *fp8_block.DIALECT,
    *modelopt.DIALECT,
    *torchao.DIALECT,
    *bitnet.DIALECT,
    *quanto.DIALECT,
    *hqq.DIALECT,
)  # of formats with open sizes a few
DENSE = dense.ALL
ALL = (*GGUF, *PLANAR, *DIALECTS, *DENSE)

_INTEGER = re.compile(r"(u?)int([2-8])(_asym)?(?:_(g\d+|channel|tensor))?")
_NF4 = re.compile(r"nf4(?:_b(\d+))?")


def find(name: str) -> Format:
    """Find a planar format by name, sizes included: "mxfp4", "nf4", "nf4_b128", "int4_g128", "uint4-g64", "int8".

    Case does not matter and "-" is "_". Bare: nf4 has blocks of 64, int8 is per channel, other integers have groups of 128;
    `uintN` has an integer zero point.

    Raises UsageError for an unknown name.
    """
    wanted = name.lower().replace("-", "_")
    for form in PLANAR:
        if form.name == wanted:
            return form
    if match := _NF4.fullmatch(wanted):
        return nf4.nf4(int(match.group(1) or 64))
    if match := _INTEGER.fullmatch(wanted):
        unsigned, bits, asym, group = match.groups()
        group = group or (integer.CHANNEL if bits == "8" else "g128")
        size = int(group[1:]) if re.fullmatch(r"g\d+", group) else group
        return integer.integer(int(bits), size, signed=not unsigned, zero=bool(unsigned or asym))
    families = dict.fromkeys(form.name for form in PLANAR if not (_NF4.fullmatch(form.name) or _INTEGER.fullmatch(form.name)))
    expected = ", ".join([*families, "nf4[_bN]", "[u]intN[_asym][_gN|_channel|_tensor]"])
    raise UsageError(f"unknown format '{name}': expected {expected}")
