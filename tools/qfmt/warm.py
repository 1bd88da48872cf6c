"""`qfmt warm`: compile the kernels once."""

from __future__ import annotations

import time

import click


@click.command("warm")
def command() -> None:
    """Compile every kernel of the catalogue into the cache, so that later commands start at once."""
    from qformat.warm import warm

    started = time.monotonic()
    click.echo(f"{warm()} kernels compiled or found in the cache in {time.monotonic() - started:.1f} s")
