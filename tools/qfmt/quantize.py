"""`qfmt quantize`: float weights in, packed weights out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qfmt.options import (
    Plot,
    compress_option,
    force_option,
    json_option,
    memory_option,
    mixed_type,
    names_option,
    progress_bars,
    source_options,
    split_options,
)
from qformat.errors import UsageError

if TYPE_CHECKING:
    from qconvert.report import Report

    from qformat.rules import ErrorReport


@click.command("quantize")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path), required=False)
@click.option(
    "--to", "targets", type=mixed_type, multiple=True, metavar="TARGET",
    help="e.g. qfmt:mxfp4, qfmt:int4-g128, gguf:q4_k, or a mix: gguf:q4_k_m. Several with --report.",
)  # fmt: skip
@click.option(
    "--rule", metavar="NAME", help="How scales and codes are chosen, by any --method: mse searches; else the target's own rule."
)
@click.option(
    "--include", multiple=True, metavar="GLOB", help="Quantize only tensors of these names, in SRC or DST (--report: SRC)."
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave tensors of these names as they are; likewise.")
@click.option(
    "--tensor-type", "tensor_types", multiple=True, metavar="GLOB=TYPE",
    help="Another type for tensors of these names; f32, f16, bf16 as well. The first that matches counts.",
)  # fmt: skip
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance of columns, as llama-imatrix writes it.")
@click.option(
    "--method", default="rtn", metavar="NAME", show_default=True,
    help="rtn, mse, gptq, gptq-ordered, awq, awq-weights: what chooses codes beside the rule.",
)  # fmt: skip
@click.option("--calibration", type=click.Path(path_type=Path), help="What is known of inputs: see docs/calibration.md.")
@click.option("--allow-uncalibrated", is_flag=True, help="Round tensors that the file does not know to nearest.")
@click.option(
    "--damping", type=float, metavar="SHARE", help="Of gptq: share of a Hessian's mean diagonal that is added to it, else 0.01."
)
@click.option("--report", "is_report", is_flag=True, help="Compare what targets would cost, and write no DST.")
@click.option("--plot", "plots", multiple=True, type=Plot(), metavar="FILE", help="Of --report: a .png or .svg. Repeatable.")
@names_option
@source_options
@split_options
@compress_option
@memory_option
@force_option
@json_option
def command(
    src: Path,
    dst: Path | None,
    targets: tuple[str, ...],
    rule: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    tensor_types: tuple[str, ...],
    imatrix: Path | None,
    method: str,
    calibration: Path | None,
    allow_uncalibrated: bool,
    damping: float | None,
    is_report: bool,
    plots: tuple[Path, ...],
    names: str,
    split_max_size: int | None,
    split_max_tensors: int | None,
    compress: str,
    max_memory: int,
    force: bool,
    as_json: bool,
    said: dict[str, Any],
) -> None:
    """Quantize the float matrices of SRC and write DST; reports type, error and reason of each.

    With --report: compare bits, error and size of several targets instead, of all usual ones if none is named.
    """
    from dataclasses import asdict

    from qconvert.containers.shards import Limits
    from qconvert.quantizing import quantize
    from qconvert.wish import check_method
    from qconvert.words import check_words

    from qfmt.verdicts import closing_line, print_notices, print_report_json, refusals

    if plots and not is_report:
        raise click.UsageError("--plot is of --report")
    if is_report:
        others = (dst, imatrix, damping, split_max_size, split_max_tensors)
        chosen = tensor_types or allow_uncalibrated or (method, names, compress) != ("rtn", "auto", "none")
        if chosen or any(other is not None for other in others):
            said_alone = "SRC, --to, --rule, --include, --exclude, --calibration, --plot and how to read and to show"
            raise click.UsageError(f"--report takes {said_alone} alone")
        compare(src, targets, rule, include, exclude, calibration, plots, force, as_json, max_memory, said)
        return
    if dst is None or len(targets) != 1:
        raise click.UsageError("DST and one --to TARGET are needed, or --report")
    (to,) = targets
    try:
        by = check_method(method, rule, calibration is not None, imatrix is not None, allow_uncalibrated, damping)
        check_words(to, by.rule or rule, tensor_types)
    except UsageError as err:
        raise click.UsageError(str(err)) from err
    limits = Limits(split_max_size, split_max_tensors)
    with refusals("quantize", as_json), progress_bars() as progress:
        report, errors = quantize(
            src, dst, to, rule, include, exclude, compress, force, max_memory,
            progress=progress, tensor_types=tensor_types, imatrix=imatrix, limits=limits, names=names,
            method=method, calibration=calibration, allow_uncalibrated=allow_uncalibrated, damping=damping, **said,
        )  # fmt: skip
    print_notices(report)
    rules = ", ".join(dict.fromkeys(item.rule for item in report.plan.items if item.rule))
    if as_json:
        facts = {"rule": rules, "method": method, "errors": [{"name": name, **asdict(found)} for name, found in errors.items()]}
        print_report_json("quantize", report, facts)
        return
    print_choices(report, errors)
    by_rule = f"rule {rules}; " if rules else ""
    by_rule += f"method {method}; " if rules and method != "rtn" else ""
    click.echo(f"{by_rule}{closing_line(report, 'qfmt inspect')}")


def compare(
    src: Path,
    targets: tuple[str, ...],
    rule: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    calibration: Path | None,
    plots: tuple[Path, ...],
    force: bool,
    as_json: bool,
    max_memory: int,
    said: dict[str, Any],
) -> None:
    """Measure what targets would cost, and show it."""
    from qconvert.survey import survey, usual
    from qconvert.words import check_words

    from qfmt.plot import check_plots, draw
    from qfmt.survey import facts, print_costs
    from qfmt.text import print_json

    try:
        for to in targets:
            check_words(to, rule, ())
        if not usual(rule):
            raise UsageError(f"unknown rule '{rule}'", field="rule", found=rule)
    except UsageError as err:
        raise click.UsageError(str(err)) from err
    check_plots(plots, src, force)
    with progress_bars() as progress:
        costs = survey(src, targets, rule, include, exclude, max_memory, progress, calibration=calibration, **said)
    draw(costs, plots)
    if as_json:
        print_json("quantize-report", facts(costs))
    else:
        print_costs(costs)


def print_choices(report: Report, errors: dict[str, ErrorReport]) -> None:
    """Print a line for every matrix: what it became, what that cost, and why."""
    from qconvert.report import explain

    from qfmt.text import decibels, table

    has_outputs = any(found.output_sqnr_db is not None for found in errors.values())
    header = ("max abs", "rms", "SQNR dB", *(("output dB",) if has_outputs else ()), "bits/weight")
    rows = []
    for item in report.plan.items:
        if found := errors.get(item.name):
            outputs = (decibels(found.output_sqnr_db),) if has_outputs else ()
            sizes = (f"{found.max_abs:.3g}", f"{found.rms:.3g}", decibels(found.sqnr_db))
            cost = (*sizes, *outputs, f"{found.bits_per_weight:.3f}")
        elif len(item.tensor.shape) < 2:
            continue
        else:
            cost = ("",) * len(header)
        rows.append((item.name, item.target, *cost, explain(item)))
    right = tuple(range(2, 2 + len(header)))
    table(("tensor", "to", *header, "reason"), rows, right=right, whole=(2 + len(header),))
