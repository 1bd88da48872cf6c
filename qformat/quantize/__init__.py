"""From float weights to codes: quantizers by named rules, and what the rounding cost."""

from qformat.quantize.catalogue import describe, rules
from qformat.quantize.encoding import encode, prepare, quantize, resolve
from qformat.quantize.report import ErrorReport, Sums, error, measure

__all__ = [
    "ErrorReport",
    "Sums",
    "describe",
    "encode",
    "error",
    "measure",
    "prepare",
    "quantize",
    "resolve",
    "rules",
]
