"""`qfmt hash`: digests of values, equal for the same weights in any format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qfmt.options import json_option, source_options

if TYPE_CHECKING:
    from qformat.model import Model


@click.command("hash")
@click.argument("src", type=click.Path(path_type=Path))
@click.option(
    "--names", type=click.Choice(["own", "hf", "gguf"]), default="own", show_default=True,
    help="By whose names, and in whose order of rows, tensors are read.",
)  # fmt: skip
@source_options
@json_option
def command(src: Path, names: str, as_json: bool, said: dict[str, Any]) -> None:
    """Print the value digest of every tensor of SRC, and of the whole."""
    from qconvert import opening
    from qconvert.digest import digest_all, digest_named

    from qfmt.text import print_json
    from qformat.errors import show

    with opening.open(src, **said) as model:
        model.verify()
        digests = digest_named(_by_names(model, names).items(), src)
    whole = digest_all(digests).hex()
    if as_json:
        print_json("hash", {"tensors": {name: found.hex() for name, found in digests.items()}, "digest": whole})
        return
    for name, found in digests.items():
        click.echo(f"{found.hex()}  {show(name)}")
    click.echo(f"{whole}  (all)")


def _by_names(model: Model, family: str) -> Model:
    """See a model by the names of a family. Raises NotExact where it cannot be said by them."""
    if family == "own":
        return model
    from qconvert.architectures import whole_view  # here: it takes as long to import as all that hashing needs

    return whole_view(model, family, with_tokenizer=False).model
