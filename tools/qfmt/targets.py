"""`qfmt targets`: which targets hold a checkpoint exactly, and its size in each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qfmt.options import json_option, progress_bars, source_options

if TYPE_CHECKING:
    from qconvert.holding import Held


@click.command("targets")
@click.argument("src", type=click.Path(path_type=Path))
@source_options
@json_option
def command(src: Path, as_json: bool, said: dict[str, Any]) -> None:
    """List the packed targets that hold every tensor of SRC exactly, the smallest first; then the others, and why not."""
    from dataclasses import asdict

    from qconvert import opening
    from qconvert.conversion import counted
    from qconvert.holding import targets_of
    from qconvert.targets import packed_targets

    from qfmt.text import print_json

    with opening.open(src, **said) as model, progress_bars() as progress:
        found = targets_of(model, counted("look", len(packed_targets()), progress))
        n_tensors = len(model)
    if as_json:
        print_json(
            "targets", {"n_tensors": n_tensors, "targets": [{**asdict(held), "is_exact": held.is_exact} for held in found]}
        )
    else:
        print_targets(found, n_tensors)


def print_targets(found: list[Held], n_tensors: int) -> None:
    """Print a line for every target, then how many are exact."""
    from qfmt.text import size, table

    rows = []
    for held in found:
        many = f"{held.n_refused} or more of {n_tensors} tensors"
        why = "every tensor" if held.is_exact else f"not {many}: '{held.tensor}': {held.reason}"
        rows.append((held.target, size(held.n_bytes) if held.is_exact else "", why))
    table(("target", "size", "holds exactly"), rows, right=(1,), whole=(2,))
    click.echo(f"\n{sum(held.is_exact for held in found)} of {len(found)} packed targets hold every tensor exactly")
