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
    from qconvert import opening
    from qconvert.conversion import counted
    from qconvert.naming import as_wanted
    from qconvert.nearest import advise
    from qconvert.planning import make_plan
    from qconvert.report import describe_item, totals
    from qconvert.run import peak_memory
    from qconvert.targets import find_target

    from qfmt.text import print_json
    from qfmt.verdicts import print_plan, refusals

    target = find_target(to)
    with opening.open(src, **said) as model, opening.opened(like, said["assume"]) as reference:
        with refusals("plan", as_json), progress_bars() as progress:
            view = as_wanted(model, target, names=names, like=reference)
            plan = advise(make_plan(view, target, counted("plan", model.n_bytes, progress)))
        if as_json:
            sums = {**totals(plan), "peak_memory": peak_memory(plan.items, max_memory)}
            print_json("plan", {"tensors": [describe_item(item) for item in plan.items], "totals": sums})
        else:
            print_plan(plan, peak_memory(plan.items, max_memory))
