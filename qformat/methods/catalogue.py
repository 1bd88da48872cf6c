"""Which methods there are, by name. Every line is one; what differs between two of a kind is a setting."""

from __future__ import annotations

from qformat.errors import UsageError
from qformat.methods.awq import awq
from qformat.methods.gptq import gptq
from qformat.methods.method import Method

RTN = Method("rtn", "each weight to the nearest code, scales by the rule alone")
ALL = (
    RTN,
    Method("mse", "scales searched, rule mse; an error counts by the Hessian's diagonal", rule="mse", weighs=True),
    gptq("gptq", "columns one after the other, later ones make up for errors; scales when a group has its turn"),
    gptq(
        "gptq-ordered", "the same, large inputs first; groups where they are, scales of the original weights", by_diagonal=True
    ),
    awq("awq", "columns of large inputs scaled up by mean|x|^a, ranges cut; the scales are stored"),
    awq("awq-weights", "the same with mean|x|^a / mean|w|^(1-a)", by_weights=True),
)
METHODS = {method.name: method for method in ALL}


def find(name: str) -> Method:
    """Find a method. Raises UsageError for an unknown name, with those there are."""
    if name not in METHODS:
        message = f"unknown method '{name}', expected one of {', '.join(METHODS)}"
        raise UsageError(message, field="method", found=name, expected=tuple(METHODS))
    return METHODS[name]
