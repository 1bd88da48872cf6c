"""What `qfmt quantize --report` shows: a table, and facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click
from qconvert.survey import Cost

from qfmt.text import decibels, size, table


def print_costs(costs: Sequence[Cost]) -> None:
    """Print a line for each target, then which tensors do not fit; errors of outputs where any is known."""
    rows: list[tuple[object, ...]] = []
    outputs = [cost.error.output_sqnr_db if cost.error is not None else None for cost in costs]
    has_outputs = any(found is not None for found in outputs)
    for cost, output in zip(costs, outputs, strict=True):
        beside = (decibels(output),) if has_outputs else ()
        if cost.error is None or cost.worst_error is None:
            rows.append((cost.target, "", "", "", "", *beside, "nothing was quantized", cost.n_quantized, size(cost.n_bytes)))
            continue
        worst = f"{cost.worst} ({decibels(cost.worst_error.sqnr_db)} dB)"
        error = f"{cost.error.bits_per_weight:.3f}", f"{cost.error.rms:.3g}", decibels(cost.error.sqnr_db)
        rows.append((cost.target, cost.rule, *error, *beside, worst, cost.n_quantized, size(cost.n_bytes)))
    beside = ("output dB",) if has_outputs else ()
    header = ("target", "rule", "bits/weight", "RMS", "SQNR dB", *beside, "worst tensor", "tensors", "size")
    at = header.index("worst tensor")
    table(header, rows, right=(*range(2, at), at + 1, at + 2), whole=(at,))
    for cost in costs:
        if 0 < cost.n_known < cost.n_quantized:
            click.echo(
                f"{cost.target}: output dB is of the {cost.n_known} of {cost.n_quantized} tensors that calibration knows"
            )
        if cost.unfit:
            click.echo(
                f"{cost.target}: {len(cost.unfit)} tensors stay as they are, rows of '{cost.unfit[0]}' are no whole blocks"
            )


def facts(costs: Sequence[Cost]) -> dict[str, Any]:
    """Give what was measured as JSON can say it."""
    return {"targets": [asdict(cost) for cost in costs]}
