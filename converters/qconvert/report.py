"""What a conversion did, or would not do: the report, the refusal, and a tensor's line of either.

Only says; nothing is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.items import Item, Plan
from qconvert.naming import runtime_of
from qconvert.verdict import EXACT, ORDER, REQUANTIZE, ROUNDED
from qformat.errors import NotExact, UsageError

ALLOW = (EXACT, ROUNDED, REQUANTIZE)


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion did, or would have done.

    plan     : every tensor's verdict
    refused  : tensors that stand in the way; nothing was written if there are any
    n_bytes  : size of the written file, 0 if none
    seconds  : time taken
    notices  : what a user should hear although nothing was lost
    paths    : the files or the folder that were written, the one to open first
    """

    plan: Plan
    refused: tuple[Item, ...]
    n_bytes: int
    seconds: float
    notices: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()


class Refused(NotExact):
    """A conversion that was not allowed; carries the report. Its text is the first refusal."""

    def __init__(self, report: Report, path: Path) -> None:
        self.report = report
        first = report.refused[0]
        verdict = first.verdict
        more = f" (and {len(report.refused) - 1} more)" if len(report.refused) > 1 else ""
        is_said = f"{first.target} with --allow {verdict.verdict}" == first.nearest
        hint = "" if is_said or verdict.verdict == ORDER[-1] else f"; use --allow {verdict.verdict}"
        message = f"{first.source} to {first.target}: {explain(first)}{hint}{more}"
        super().__init__(message, path=path, tensor=first.name, field=verdict.field, found=verdict.value)


def explain(item: Item) -> str:
    """Say why a tensor has its verdict: with what rounds, what else would be exact, and what would work instead."""
    verdict, found = item.verdict, item.verdict.reason
    if verdict.n_rounded:
        first = f"first {verdict.field}[{verdict.index}] = {verdict.value!r}"
        found += f" ({verdict.n_rounded}, at most {verdict.max_rel_error:.2g} relative; {first})"
    found += f"; also exact as {', '.join(item.others)}" if item.others else ""
    return found + (f"; nearest: {item.nearest}" if item.nearest else "")


def describe_item(item: Item) -> dict[str, Any]:
    """Give one tensor's line of a report, as `plan --json` and `convert --json` print it."""
    verdict, origin = item.verdict, item.origin
    return {
        "name": item.name,
        "source_names": [item.name] if origin is None else list(origin.names),
        "how": "" if origin is None else origin.how,
        "shape": list(item.tensor.shape),
        "from": item.source,
        "to": item.target,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "field": verdict.field,
        "index": verdict.index,
        "value": verdict.value,
        "n_rounded": verdict.n_rounded,
        "max_rel_error": verdict.max_rel_error,
        "others": list(item.others),
        "nearest": item.nearest,
    }


def totals(plan: Plan) -> dict[str, Any]:
    """Give the sums of a plan, and who will load what it makes: the runtime's name, or why there is none."""
    runtime, reason = runtime_of(plan.target, plan.view)
    sums = {"n_tensors": len(plan.items), "n_bytes": plan.n_bytes, "verdicts": plan.counts()}
    return {**sums, "runtime": runtime, "no_runtime": reason}


def worse(verdict: str, allow: str) -> bool:
    """Tell whether a verdict is worse than the worst that is allowed. Raises UsageError for an unknown `allow`."""
    if allow not in ALLOW:
        raise UsageError(f"allow '{allow}', expected one of {', '.join(ALLOW)}")
    return ORDER.index(verdict) > ORDER.index(allow)
