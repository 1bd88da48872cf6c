"""The table that a person reads, and the JSON that holds all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench.goals import MISSED, OTHER, UNMEASURED, Mark
from bench.results import Result

SCHEMA = "qfmt.bench/1"
SIGNS = {"met": "+", MISSED: "MISSED", OTHER: "n/a"}


def text(machine: Mapping[str, Any], quiet: Mapping[str, float], results: Sequence[Result], marks: Sequence[Mark]) -> str:
    """Give the whole report: machine, table, goals."""
    lines = [*_machine(machine, quiet), ""]
    for section in dict.fromkeys(result.section for result in results):
        lines += [*_table([result for result in results if result.section == section], marks), ""]
    return "\n".join([*lines, *_summary(marks)])


def json(
    machine: Mapping[str, Any], quiet: Mapping[str, float], results: Sequence[Result], marks: Sequence[Mark], seconds: float
) -> dict[str, Any]:
    """Give everything that was measured."""
    return {
        "schema": SCHEMA,
        "machine": dict(machine),
        "noise": dict(quiet),
        "seconds": round(seconds, 1),
        "results": [asdict(result) for result in results],
        "goals": [
            {
                "goal": mark.goal.text,
                "name": mark.result.name if mark.result else None,
                "detail": mark.result.detail if mark.result else None,
                "value": mark.value,
                "state": mark.state,
            }
            for mark in marks
        ],
    }


def number(value: float) -> str:
    """Give a figure with three digits that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"


def _machine(machine: Mapping[str, Any], quiet: Mapping[str, float]) -> Iterator[str]:
    yield f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['features'])}; {machine['caches']}"
    yield f"{machine['memory_gb']} GB; {machine['system']}; Python {machine['python']}"
    yield ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    yield f"load {quiet['load']:.1f}, {quiet['stolen']:.1%} of the time stolen"
    if "memcpy_gb_per_s" in quiet:
        least, middle, most = (quiet[f"memcpy_{word}"] for word in ("least", "gb_per_s", "most"))
        yield f"memcpy of 268 MB, one thread, over the run: {least:.1f} to {most:.1f} GB/s, median {middle:.1f}"


def _table(results: Sequence[Result], marks: Sequence[Mark]) -> Iterator[str]:
    """Give the lines of one section: a column for every figure that occurs."""
    figures = list(dict.fromkeys(name for result in results for name in result.figures))
    rows = [(results[0].section, "", "threads", *figures, "goals")]
    for result in results:
        cells = [number(result.figures[name]) if name in result.figures else "" for name in figures]
        rows.append((result.name, result.detail, str(result.threads or ""), *cells, _marked(result, marks)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, detail, *numbers, goals in rows:
        aligned = [cell.rjust(width) for cell, width in zip(numbers, widths[2:], strict=False)]
        yield "  ".join([name.ljust(widths[0]), detail.ljust(widths[1]), *aligned, goals]).rstrip()


def _marked(result: Result, marks: Sequence[Mark]) -> str:
    """Say of one line which goals are met and which are missed."""
    found = []
    for mark in marks:
        if mark.result is result:
            sign = "<=" if mark.goal.at_most else ">="
            found.append(f"{SIGNS[mark.state]} {mark.goal.figure} {sign} {mark.goal.bound:g}")
    return "; ".join(found)


def _summary(marks: Sequence[Mark]) -> Iterator[str]:
    """Say of every goal how often it is met, and where it is missed."""
    yield "goals"
    for goal in dict.fromkeys(mark.goal for mark in marks):
        own = [mark for mark in marks if mark.goal is goal]
        counts = {state: sum(mark.state == state for mark in own) for state in dict.fromkeys(mark.state for mark in own)}
        yield f"  {goal.text}: {', '.join(f'{n} {state}' for state, n in counts.items())}"
        missed = [(mark.result.name, number(mark.value or 0)) for mark in own if mark.result and mark.state == MISSED]
        if missed:
            yield f"    missed: {', '.join(f'{name} {value}' for name, value in missed)}"
    total = {state: sum(mark.state == state for mark in marks) for state in ("met", MISSED, OTHER, UNMEASURED)}
    yield f"  in all: {', '.join(f'{n} {state}' for state, n in total.items())}"
