"""What would work instead, for a tensor that a target does not hold exactly.

Tries the other types of the same container, or kinds of the same dialect, on the tensor's own values; says nothing that was
not tried.
"""

from __future__ import annotations

from dataclasses import replace

from qconvert.items import Item, Plan
from qconvert.planning import can_requantize, not_finite, settle, traced
from qconvert.report import worse
from qconvert.targets import Target, find_target, siblings
from qconvert.verdict import EXACT, REQUANTIZE, ROUNDED
from qconvert.views import View
from qformat.errors import QFormatError

LISTED = 20  # of the tensors in the way are looked at: as many as a report prints
AS_IT_IS = "exact as qfmt"


def advise(plan: Plan, allow: str = EXACT) -> Plan:
    """Say for the first tensors of a plan that are worse than what is allowed what would work instead."""
    in_the_way = [number for number, item in enumerate(plan.items) if worse(item.verdict.verdict, allow)]
    items, found = list(plan.items), dict[tuple[str, str], str]()
    for number in in_the_way[:LISTED]:
        item = items[number]
        kind = (item.source, item.target)
        found[kind] = nearest(item, plan.target, found.get(kind, ""), plan.view)
        items[number] = replace(item, nearest=found[kind])
    return replace(plan, items=tuple(items))


def nearest(item: Item, target: Target, first: str, view: View) -> str:
    """Say what would hold a tensor: exactly, else with a parameter rounded, else quantized anew, else as it is.

    first   : what was found for a tensor of the same format, tried before all else
    view    : that the tensor is of
    returns : empty where nothing would
    """
    dialect = view.model.packed_by.get(item.name, "")
    rounded: tuple[float, str] | None = None
    anew = item.target if can_requantize(item) else ""
    tried = sorted(siblings(target), key=lambda one: not first.endswith(f" {one.name}"))
    for other in tried:
        try:
            found = traced(settle(item.name, item.tensor, other, dialect), view)
        except QFormatError:
            continue
        verdict = found.verdict
        if verdict.is_exact:
            return f"exact {'with' if other.dialect else 'as'} {other.name}"
        if verdict.verdict == ROUNDED and (rounded is None or verdict.max_rel_error < rounded[0]):
            rounded = verdict.max_rel_error, f"{other.name} with --allow rounded"
        if item.verdict.verdict != REQUANTIZE and can_requantize(found):
            anew = other.name
    if rounded is not None:
        return rounded[1]
    if anew and not_finite(item.tensor) is None:
        return f"{anew} with --allow {REQUANTIZE}"
    return AS_IT_IS if settle(item.name, item.tensor, find_target("qfmt"), dialect).verdict.is_exact else ""
