"""NF4 with one float32 absmax per block of the flattened tensor, high nibble first.

Source: bitsandbytes-foundation/bitsandbytes 0.50.2: bitsandbytes/functional.py (quantize_4bit, get_4bit_type).
"""

from qformat.bits import NF4 as LEVELS
from qformat.errors import UsageError
from qformat.formats.form import Format, PartForm, packed, parameter
from qformat.scheme import Flat, Levels, Op, Param, Ref, Scheme, Step
from qformat.tiling import FLAT

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
CODES = packed("nibbles_high_first", 4, "codes", high_first=True)


def nf4(block: int = 64) -> Format:
    """Make the NF4 format with this block size. Raises UsageError for a size that bitsandbytes does not have."""
    if block not in BLOCK_SIZES:
        raise UsageError(f"nf4 block size {block}, expected one of {', '.join(map(str, BLOCK_SIZES))}")
    scales = Param("scales", "float32", Flat(block))
    scheme = Scheme(f"nf4_b{block}", Levels("nf4", LEVELS), (scales,), (Step(Op.MUL, Ref("scales")),))
    return Format(scheme.name, scheme, (PartForm("codes", CODES, FLAT), parameter(scales, 4)), rule="absmax")


ALL = tuple(nf4(block) for block in BLOCK_SIZES)
