"""`qfmt extract`: a file of a few tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qfmt.options import force_option, json_option, memory_option, progress_bars, source_options


@click.command("extract")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--include", multiple=True, required=True, metavar="GLOB", help="Take tensors of these names.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="But leave those of these names.")
@source_options
@memory_option
@force_option
@json_option
def command(
    src: Path,
    dst: Path,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    max_memory: int,
    force: bool,
    as_json: bool,
    said: dict[str, Any],
) -> None:
    """Write the chosen tensors of SRC, with all metadata, to DST."""
    from qconvert.repackaging import repackage

    from qfmt.verdicts import print_done

    with progress_bars() as progress:
        report = repackage(src, dst, include, exclude, force=force, max_memory=max_memory, progress=progress, **said)
    print_done("extract", report, "qfmt inspect", as_json)
