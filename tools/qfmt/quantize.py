"""`qfmt quantize`: float weights in, packed weights out."""

from __future__ import annotations

from pathlib import Path

import click

from qfmt.options import compress_option, force_option, json_option, memory_option, progress_bars


@click.command("quantize")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--to", required=True, metavar="TARGET", help="e.g. qfmt:mxfp4, qfmt:nf4, qfmt:int4-g128, gguf:q4_0.")
@click.option("--rule", metavar="NAME", help="How scales and codes are chosen; by default the target's own rule.")
@click.option("--include", multiple=True, metavar="GLOB", help="Quantize only tensors of these names.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave tensors of these names as they are.")
@compress_option
@memory_option
@force_option
@json_option
def command(
    src: Path,
    dst: Path,
    to: str,
    rule: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    compress: str,
    max_memory: int,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize the float matrices of SRC and write DST; reports the error of each."""
    from dataclasses import asdict

    from qconvert.quantizing import quantize

    from qfmt.text import table
    from qfmt.verdicts import closing_line, print_notices, print_report_json

    with progress_bars() as progress:
        report, errors = quantize(src, dst, to, rule, include, exclude, compress, force, max_memory, progress=progress)
    print_notices(report)
    chosen = next((item.form.rule for item in report.plan.items if item.name in errors), "")
    if as_json:
        facts = {"rule": chosen, "errors": [{"name": name, **asdict(found)} for name, found in errors.items()]}
        print_report_json("quantize", report, facts)
        return
    rows = [
        (name, f"{e.max_abs:.3g}", f"{e.rms:.3g}", f"{e.sqnr_db:.2f}", f"{e.bits_per_weight:.3f}") for name, e in errors.items()
    ]
    table(("tensor", "max abs", "rms", "SQNR dB", "bits/weight"), rows, right=(1, 2, 3, 4))
    click.echo(f"rule {chosen}; {closing_line(report, dst, 'qfmt inspect')}")
