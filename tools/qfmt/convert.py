"""`qfmt convert`: convert exactly, or refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qfmt.options import (
    compress_option,
    force_option,
    json_option,
    like_option,
    memory_option,
    names_option,
    progress_bars,
    source_options,
    split_options,
    target_type,
)


@click.command("convert")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--to", type=target_type, metavar="TARGET", help="What to convert to; by default what DST's suffix says.")
@click.option("--allow", type=click.Choice(["exact", "rounded", "requantize"]), default="exact", help="Worst verdict let pass.")
@click.option("--receipt", type=click.Path(path_type=Path), help="Write verdicts and value digests to this JSON file.")
@names_option
@like_option
@source_options
@split_options
@compress_option
@memory_option
@force_option
@json_option
def command(
    src: Path,
    dst: Path,
    to: str | None,
    allow: str,
    receipt: Path | None,
    names: str,
    like: Path | None,
    split_max_size: int | None,
    split_max_tensors: int | None,
    compress: str,
    max_memory: int,
    force: bool,
    as_json: bool,
    said: dict[str, Any],
) -> None:
    """Convert SRC to DST, every tensor exactly, or write nothing."""
    from qconvert.containers.shards import Limits
    from qconvert.conversion import convert

    from qfmt.verdicts import against, print_done, refusals

    limits = Limits(split_max_size, split_max_tensors)
    if receipt is not None and receipt.resolve() == dst.resolve():
        raise click.UsageError("the receipt has the name of the destination")
    with refusals("convert", as_json), progress_bars() as progress:
        report = convert(
            src, dst, to, allow, compress, force, max_memory, progress=progress, limits=limits,
            receipt=receipt, names=names, like=like, **said,
        )  # fmt: skip
    options = against(report, src, said) if like is None else ()
    if receipt is not None:
        options = ("--against", str(src), "--receipt", str(receipt), *(() if like is None else ("--like", str(like))))
    print_done("convert", report, "qfmt verify", as_json, options)
