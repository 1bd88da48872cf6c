"""Dense arrays: each element type as a format of its own, the codes being the weights."""

from functools import cache

from qformat.bits import DTYPES, OWN
from qformat.errors import UsageError
from qformat.formats.form import Format, PartForm, packed, scalar
from qformat.scheme import Plain, Scheme
from qformat.tiling import FLAT


@cache  # asked for by every dense tensor
def dense(dtype: str) -> Format:
    """Make the dense format of an element type; sub-byte types lie low bits first. Raises UsageError for an unknown one."""
    if dtype not in DTYPES:
        raise UsageError(f"unknown element type '{dtype}'")
    bits = DTYPES[dtype].bits
    layout = packed(dtype, bits, "codes") if bits % 8 else scalar(dtype, bits // 8, "codes")
    return Format(dtype, Scheme(dtype, Plain(dtype)), (PartForm("values", layout, FLAT),))


ALL = tuple(dense(name) for name in DTYPES if name not in OWN)
