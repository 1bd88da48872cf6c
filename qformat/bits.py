"""Element types: their names, widths and the exact values of the small ones.

The one home of what a stored element is. Names are NumPy's and ml_dtypes' ("float16", "float8_e4m3fn"); element types of
our own end in a word that says what differs. Values are exact Python floats, so this needs the standard library alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Element:
    """A stored element type.

    name     : NumPy or ml_dtypes name
    bits     : stored width
    kind     : "int", "uint", "float", "bool", "complex"
    exponent : exponent bits of a small float, 0 otherwise
    mantissa : mantissa bits of a small float
    bias     : exponent bias
    specials : "ieee" (inf and NaN at the top exponent), "fn" (only the all-ones code is NaN), "none" (every code finite),
               "uz" (the code of minus zero is NaN), "ggml" (sign ignored, 0x7f is 0)
    """

    name: str
    bits: int
    kind: str
    exponent: int = 0
    mantissa: int = 0
    bias: int = 0
    specials: str = "ieee"


_ALL = (
    Element("bool", 8, "bool"),
    *(Element(f"{kind}{bits}", bits, kind) for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    Element("float16", 16, "float", 5, 10, 15),
    Element("bfloat16", 16, "float", 8, 7, 127),
    Element("float32", 32, "float", 8, 23, 127),
    Element("float64", 64, "float", 11, 52, 1023),
    Element("complex64", 64, "complex"),
    Element("float8_e4m3fn", 8, "float", 4, 3, 7, "fn"),
    Element("float8_e5m2", 8, "float", 5, 2, 15),
    Element("float8_e4m3fnuz", 8, "float", 4, 3, 8, "uz"),
    Element("float8_e5m2fnuz", 8, "float", 5, 2, 16, "uz"),
    Element("float8_e8m0fnu", 8, "float", 8, 0, 127, "fn"),
    Element("float4_e2m1fn", 4, "float", 2, 1, 1, "none"),
    Element("float6_e2m3fn", 6, "float", 2, 3, 1, "none"),
    Element("float6_e3m2fn", 6, "float", 3, 2, 3, "none"),
    # ggml reads an E8M0 byte e as 2^(e-128), for codes worth twice E2M1, and never as NaN: ggml-org/ggml,
    # src/ggml-impl.h, ggml_e8m0_to_fp32_half.
    Element("float8_e8m0half", 8, "float", 8, 0, 128, "none"),
    # Read without a NaN: 255 is 2^128, infinite as float32: ml-explore/mlx 0.32.4 on a CPU.
    Element("float8_e8m0inf", 8, "float", 8, 0, 127),
    # ggml's NVFP4 scale: the sign is ignored and 0x7f is 0, 0xff 480: ggml-org/ggml, src/ggml-impl.h, ggml_ue4m3_to_fp32.
    Element("float8_ue4m3", 8, "float", 4, 3, 7, "ggml"),
)
DTYPES = {element.name: element for element in _ALL}
OWN = ("float8_e8m0half", "float8_e8m0inf", "float8_ue4m3")  # that only this library names: no array has this type

# The 16 levels of bitsandbytes' two 4-bit tables, as float32 (bitsandbytes-foundation/bitsandbytes 0.50.2,
# bitsandbytes/functional.py, get_4bit_type and csrc/kernels.cu).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@cache
def values(name: str) -> tuple[float, ...]:
    """Give the value of every code of an element type of at most 8 bits.

    returns: 2**bits floats, exact; NaN and infinities where the type has them

    >>> values("float4_e2m1fn")[:8]
    (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """
    element = DTYPES[name]
    if element.kind != "float":
        low = 0 if element.kind != "int" else -(1 << (element.bits - 1))
        return tuple(float(low + (code - low) % (1 << element.bits)) for code in range(1 << element.bits))
    return tuple(_value(element, code) for code in range(1 << element.bits))


def largest_of(name: str) -> float:
    """Give the largest finite number of a float type of 16 bits or more, as IEEE 754 lays them out."""
    element = DTYPES[name]
    return (2 - 2.0**-element.mantissa) * 2.0**element.bias


def _value(element: Element, code: int) -> float:
    if element.mantissa == 0:  # an exponent alone: no sign, no zero
        top = {"fn": math.nan, "ieee": math.inf}.get(element.specials) if code == 255 else None
        return math.ldexp(1.0, code - element.bias) if top is None else top
    sign = code >> (element.exponent + element.mantissa)
    exponent = code >> element.mantissa & ((1 << element.exponent) - 1)
    mantissa = code & ((1 << element.mantissa) - 1)
    top = exponent == (1 << element.exponent) - 1
    full = top and mantissa == (1 << element.mantissa) - 1
    if element.specials == "ggml":
        if code == 0x7F:
            return 0.0
        sign = 0
    elif element.specials == "ieee" and top:
        return math.nan if mantissa else math.inf * (1 - 2 * sign)
    elif (element.specials == "fn" and full) or (element.specials == "uz" and sign and not exponent and not mantissa):
        return math.nan
    fraction = mantissa if exponent == 0 else mantissa + (1 << element.mantissa)
    magnitude = math.ldexp(float(fraction), max(exponent, 1) - element.bias - element.mantissa)
    return -magnitude if sign else magnitude
