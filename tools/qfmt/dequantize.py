"""`qfmt dequantize`: packed weights in, dense weights out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qfmt.options import force_option, json_option, memory_option, names_option, progress_bars, source_options


@click.command("dequantize")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["f32", "f16", "bf16"]), default="f32", show_default=True, help="Of the weights.")
@names_option
@source_options
@memory_option
@force_option
@json_option
def command(
    src: Path, dst: Path, dtype: str, names: str, max_memory: int, force: bool, as_json: bool, said: dict[str, Any]
) -> None:
    """Decode the packed tensors of SRC and write DST; dense tensors stay as they are."""
    from qconvert.conversion import dequantize

    from qfmt.verdicts import print_done

    with progress_bars() as progress:
        report = dequantize(src, dst, dtype, force, max_memory, progress=progress, names=names, **said)
    print_done("dequantize", report, "qfmt inspect", as_json)
