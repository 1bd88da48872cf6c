"""From float weights to codes: quantizers by named rules, and what the rounding cost."""

from qformat.rules.catalogue import describe, rules
from qformat.rules.encoding import encode, encode_parts, prepare, quantize, resolve
from qformat.rules.importance import importance_of_rows
from qformat.rules.report import ErrorReport, Sums, error, measure

__all__ = [
    "ErrorReport",
    "Sums",
    "describe",
    "encode",
    "encode_parts",
    "error",
    "importance_of_rows",
    "measure",
    "prepare",
    "quantize",
    "resolve",
    "rules",
]
