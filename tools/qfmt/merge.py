"""`qfmt merge`: parts in, one file out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qfmt.options import force_option, json_option, memory_option, progress_bars, source_options


@click.command("merge")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@source_options
@memory_option
@force_option
@json_option
def command(src: Path, dst: Path, max_memory: int, force: bool, as_json: bool, said: dict[str, Any]) -> None:
    """Join the parts of SRC, a part of a split GGUF or a folder of shards, to the one file DST."""
    from qconvert.repackaging import repackage

    from qfmt.verdicts import against, print_done

    with progress_bars() as progress:
        report = repackage(src, dst, force=force, max_memory=max_memory, progress=progress, **said)
    print_done("merge", report, "qfmt verify", as_json, against(report, src, said))
