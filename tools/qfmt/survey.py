"""What `qfmt quantize --report` shows: a table, facts, and a plot of error against bits per weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from qconvert.destination import check_paths
from qconvert.survey import Cost

from qfmt.text import decibels, size, table
from qformat.errors import UsageError
from qformat.file.hidden import Hidden, explain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def check_plots(paths: Sequence[Path], src: Path, force: bool) -> None:
    """Refuse plots that would replace a file, and all where nothing can draw them, before work begins.

    Raises UsageError.
    """
    for path in paths:
        check_paths([src], path, force)
    if paths:
        _library()


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


def draw(costs: Sequence[Cost], paths: Sequence[Path]) -> None:
    """Draw relative error, RMS of the error over that of the weights, against bits per weight. Raises FileError."""
    library = _library()
    measured = [(cost, cost.error) for cost in costs if cost.error is not None and cost.error.sqnr_db < float("inf")]
    figure = library.figure.Figure(figsize=(9, 6), layout="constrained")
    axes: Axes = figure.add_subplot(
        title="Error against bits per weight", xlabel="bits per weight", ylabel="relative RMS error"
    )
    axes.set_yscale("log")
    axes.margins(x=0.1)
    axes.grid(True, which="both", alpha=0.3)
    families = list(dict.fromkeys(cost.target.partition(":")[0] for cost, _ in measured))
    for number, family in enumerate(families):
        axes.scatter([], [], color=f"C{number}", label=family)
    if any(cost.unfit for cost, _ in measured):
        axes.scatter([], [], facecolors="none", edgecolors="black", label="some tensors do not fit")
    for rank, (cost, error) in enumerate(sorted(measured, key=lambda pair: pair[1].sqnr_db)):
        family, _, name = cost.target.partition(":")
        colour, place = f"C{families.index(family)}", (error.bits_per_weight, 10 ** (-error.sqnr_db / 20))
        axes.scatter(*place, facecolors="none" if cost.unfit else colour, edgecolors=colour)
        side, shift = ("right", -5) if rank % 2 else ("left", 5)  # neighbours on different sides
        axes.annotate(name, place, xytext=(shift, 0), textcoords="offset points", fontsize=7, ha=side, va="center")
    if measured:
        axes.legend()
    for path in paths:
        hidden, kind = Hidden(path), path.suffix[1:].lower()
        metadata = {"Date": None} if kind == "svg" else None  # so that the same figures give the same file
        with explain(path), library.rc_context({"svg.fonttype": "none", "svg.hashsalt": "qfmt"}):
            figure.savefig(hidden.place, format=kind, dpi=150, metadata=metadata)
        hidden.commit()


def _library() -> Any:
    """Give the library that draws. Raises UsageError where it is not installed."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise UsageError("a plot takes matplotlib: pip install 'qfmt[plot]'", field="plot") from error
    return matplotlib
