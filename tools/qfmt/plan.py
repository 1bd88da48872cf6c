"""`qfmt plan`: what a conversion would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qfmt.options import json_option, like_option, memory_option, names_option, progress_bars, source_options, target_type


@click.command("plan")
@click.argument("src", type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    type=target_type,
    metavar="TARGET",
    help="What to convert to, e.g. gguf, gguf:q8_0, qfmt, safetensors.",
)
@names_option
@like_option
@memory_option
@source_options
@json_option
def command(src: Path, to: str, names: str, like: Path | None, max_memory: int, as_json: bool, said: dict[str, Any]) -> None:
    """Say for every tensor of SRC what TARGET can do for it; writes nothing."""
    from qconvert.conversion import plan
    from qconvert.report import describe_item, totals
    from qconvert.run import peak_memory

    from qfmt.text import print_json
    from qfmt.verdicts import print_plan, refusals

    with refusals("plan", as_json), progress_bars() as progress:
        made = plan(src, to, names=names, like=like, progress=progress, **said)
    with made.view.model:
        memory = peak_memory(made.items, max_memory)
        if as_json:
            tensors = [describe_item(item) for item in made.items]
            print_json("plan", {"tensors": tensors, "totals": {**totals(made), "peak_memory": memory}})
        else:
            print_plan(made, memory)
