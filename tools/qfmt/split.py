"""`qfmt split`: one file in, parts out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qfmt.options import force_option, json_option, memory_option, progress_bars, source_options, split_options


@click.command("split")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@split_options
@source_options
@memory_option
@force_option
@json_option
def command(
    src: Path,
    dst: Path,
    split_max_size: int | None,
    split_max_tensors: int | None,
    max_memory: int,
    force: bool,
    as_json: bool,
    said: dict[str, Any],
) -> None:
    """Divide the tensors of SRC, in order, over parts that are named after DST.

    A tensor that is larger than the limit gets a part of its own. What fits in one file becomes DST itself.
    """
    from qconvert.containers.shards import Limits
    from qconvert.repackaging import repackage

    from qfmt.verdicts import against, print_done

    limits = Limits(split_max_size, split_max_tensors)
    if not limits.are_set:
        raise click.UsageError("give --split-max-size or --split-max-tensors")
    with progress_bars() as progress:
        report = repackage(src, dst, limits=limits, force=force, max_memory=max_memory, progress=progress, **said)
    print_done("split", report, "qfmt verify", as_json, against(report, src, said))
