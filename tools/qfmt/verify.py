"""`qfmt verify`: digests of one file, values of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qfmt.options import json_option, source_options


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="SRC", help="Decode both and compare every value.")
@source_options
@json_option
def command(file: Path, against: Path | None, as_json: bool, said: dict[str, Any]) -> None:
    """Check every byte of FILE that a digest covers; exits 1 at the first that is wrong.

    What is assumed is so of SRC where there is one, else of FILE.
    """
    from qconvert import opening
    from qconvert.compare import compare_values

    from qfmt.text import print_json
    from qformat.errors import FileError

    with opening.open(file, **(said if against is None else {"shapes": said["shapes"]})) as model:
        has_digests = model.verify()
        unsound = [odd for odd in model.oddities if odd.level == "error"]
        if unsound:
            raise FileError(unsound[0].message, path=file)
        facts: dict[str, object] = {"file": file.name, "n_tensors": len(model), "digests": has_digests}
        if against is not None:
            with opening.open(against, **said) as source:
                facts["n_equal"] = compare_values(model, source)
    if as_json:
        print_json("verify", facts)
    else:
        compared = f", {facts['n_equal']} tensors equal to {against}" if against is not None else ""
        found = "every digest right" if facts["digests"] else "structure sound; the format has no digests"
        click.echo(f"{file}: {facts['n_tensors']} tensors, {found}{compared}")
