"""`qfmt verify`: digests of one file, values of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qfmt.options import json_option, source_options


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="SRC", help="Decode both and compare every value.")
@click.option("--receipt", type=click.Path(path_type=Path), help="With --against: derive anew what this says, and compare.")
@click.option("--like", type=click.Path(path_type=Path), metavar="REF", help="With --receipt: the reference that it names.")
@source_options
@json_option
def command(
    file: Path, against: Path | None, receipt: Path | None, like: Path | None, as_json: bool, said: dict[str, Any]
) -> None:
    """Check every byte of FILE that a digest covers; exits 1 at the first that is wrong.

    What is assumed is so of SRC where there is one, else of FILE.
    """
    from qconvert.receipt import check_receipt

    from qfmt.text import print_json

    if receipt is not None and against is None:
        raise click.UsageError("--receipt needs --against: the source that it was made from")
    if like is not None and receipt is None:
        raise click.UsageError("--like needs --receipt: what was made with the reference")
    if receipt is not None and against is not None:
        n_tensors, has_digests = check_receipt(receipt, file, against, like)
        facts = {"file": file.name, "n_tensors": n_tensors, "digests": has_digests, "n_equal": n_tensors}
    else:
        facts = compare(file, against, said)
    if as_json:
        print_json("verify", facts)
    else:
        equal = "as the receipt says of" if receipt is not None else "equal to"
        compared = f", {facts['n_equal']} tensors {equal} {against}" if against is not None else ""
        found = "every digest right" if facts["digests"] else "structure sound; the format has no digests"
        click.echo(f"{file}: {facts['n_tensors']} tensors, {found}{compared}")


def compare(file: Path, against: Path | None, said: dict[str, Any]) -> dict[str, Any]:
    """Check the digests of a file and, where there is a source, its values under names that both know."""
    from qconvert import opening
    from qconvert.compare import compare_values
    from qconvert.pairing import facing

    from qformat.errors import FileError

    with opening.open(file, **(said if against is None else {"shapes": said["shapes"]})) as model:
        has_digests = model.verify()
        unsound = [odd for odd in model.oddities if odd.level == "error"]
        if unsound:
            raise FileError(unsound[0].message, path=file)
        facts: dict[str, Any] = {"file": file.name, "n_tensors": len(model), "digests": has_digests}
        if against is not None:
            with opening.open(against, **said) as source:
                sides = facing(model, source)
                for notice in sides.notices:
                    click.echo(f"qfmt: note: {notice}", err=True)
                facts["n_equal"] = compare_values(sides.one, sides.other)
    return facts
