"""Printing plans and reports: a line per tensor, totals, and the next command to type."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from qconvert.items import Item, Plan
from qconvert.like import Unlike
from qconvert.report import Refused, Report, describe_item, explain, totals

from qfmt.text import print_json, size, table
from qformat.scheme import Opaque

MOST_REFUSED = 20


def print_plan(plan: Plan, peak_memory: int) -> None:
    """Print a line for every tensor, then the sums, the memory that writing takes, and who will load what is written."""
    rows = [(item.name, shape(item), item.source, item.target, item.verdict.verdict, explain(item)) for item in plan.items]
    table(("tensor", "shape", "from", "to", "verdict", "reason"), rows, whole=(5,))
    sums = totals(plan)
    loads = f"for {sums['runtime']}" if sums["runtime"] else f"no runtime will load it: {sums['no_runtime']}"
    click.echo(f"\n{counts(plan)}, {size(plan.n_bytes)}; at most {size(peak_memory)} of memory to work in; {loads}")


def print_report_json(command: str, report: Report, extra: Mapping[str, Any] | None = None) -> None:
    """Print what a conversion did as JSON."""
    sums = {**totals(report.plan), "n_bytes_written": report.n_bytes, "seconds": report.seconds}
    tensors, files = [describe_item(item) for item in report.plan.items], [str(path) for path in report.paths]
    print_json(command, {"tensors": tensors, "totals": sums, "files": files, **(extra or {})})


def print_done(command: str, report: Report, follow: str, as_json: bool, options: Sequence[str] = ()) -> None:
    """Print what was written, and on standard error what a user should hear.

    follow, options : the command to type next, to be given what was written, and its options
    """
    print_notices(report)
    if as_json:
        print_report_json(command, report)
    else:
        click.echo(closing_line(report, follow, options))


def against(report: Report, src: Path, said: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the options by which `qfmt verify` compares what was written with its source.

    said    : what a user knows of the source
    returns : nothing where a value has changed or nothing can decode it, or where shapes are by names of one side alone
    """
    items = report.plan.items
    is_kept = all(item.verdict.is_exact and not isinstance(item.tensor.scheme.alphabet, Opaque) for item in items)
    if said["shapes"] or not is_kept:
        return ()
    return ("--against", str(src), *(option for word in said["assume"] for option in ("--assume", word)))


@contextmanager
def refusals(command: str, as_json: bool) -> Iterator[None]:
    """Print the report of a conversion that is refused, and let its error go on."""
    try:
        yield
    except Unlike as err:
        if as_json:
            print_json(command, {"tensors": [], "totals": {}, "mismatches": list(err.mismatches)})
        else:
            print_mismatches(err.mismatches)
        raise
    except Refused as err:
        if as_json:
            print_report_json(command, err.report)
        else:
            print_refused(err.report)
        raise


def print_refused(report: Report) -> None:
    """Print the tensors that stand in the way, the first of them where there are many."""
    rows = [(i.name, shape(i), i.source, i.target, i.verdict.verdict, explain(i)) for i in report.refused[:MOST_REFUSED]]
    table(("tensor", "shape", "from", "to", "verdict", "reason"), rows, whole=(5,))
    print_more(len(report.refused))


def print_mismatches(lines: Sequence[str]) -> None:
    """Print what does not match a reference, the first of it where there is much."""
    for line in lines[:MOST_REFUSED]:
        click.echo(line)
    print_more(len(lines))


def print_more(count: int) -> None:
    """Say how many tensors were not printed."""
    if count > MOST_REFUSED:
        click.echo(f"and {count - MOST_REFUSED} more; --json lists them all")


def print_notices(report: Report) -> None:
    """Print on standard error what a user should hear although nothing was lost."""
    for notice in report.notices:
        click.echo(f"qfmt: note: {notice}", err=True)


def closing_line(report: Report, follow: str, options: Sequence[str] = ()) -> str:
    """Say in one line what was done, and what to type next."""
    files = f" in {len(report.paths)} files" if len(report.paths) > 1 else ""
    done = f"{counts(report.plan)}; {size(report.n_bytes)}{files} in {report.seconds:.1f} s"
    return f"{done}; next: {follow} {shlex.join((str(report.paths[0]), *options))}"


def counts(plan: Plan) -> str:
    """Say how many tensors have each verdict."""
    return ", ".join(f"{n} {verdict}" for verdict, n in plan.counts().items()) or "no tensors"


def shape(item: Item) -> str:
    """Write a shape as 576 x 1536."""
    return " x ".join(map(str, item.tensor.shape)) or "scalar"
