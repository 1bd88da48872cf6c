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


def find(name: str, damping: float | None = None) -> Method:
    """Find a method, with another damping than its own where one is given.

    Raises UsageError for an unknown name, with those there are, for a damping where the method has none, and for one that is no
    finite number of 0 or more.
    """
    if name not in METHODS:
        message = f"unknown method '{name}', expected one of {', '.join(METHODS)}"
        raise UsageError(message, field="method", found=name, expected=tuple(METHODS))
    found = METHODS[name]
    if damping is None:
        return found
    if found.damped is None:
        takers = " and ".join(method.name for method in ALL if method.damped is not None)
        raise UsageError(f"method {name} takes no damping, only {takers}", field="damping", found=damping)
    return found.damped(damping)
