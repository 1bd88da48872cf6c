"""How facts are printed: sizes, tables, JSON. One home for the look of the output; it knows no format and no file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from qconvert.containers.strict_json import finite

from qformat.errors import show

CELL, SENTENCE = 100, 1000  # characters
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(n_bytes: int) -> str:
    """Say a number of bytes in a unit that leaves at most four digits.

    >>> size(98362432)
    '93.8 MiB'
    """
    value, unit = float(n_bytes), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{n_bytes} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def count(n: int) -> str:
    """Say a large number with a suffix: 134.5 M."""
    for limit, suffix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= limit:
            return f"{n / limit:.1f} {suffix}"
    return str(n)


def table(
    header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = (), whole: Sequence[int] = ()
) -> None:
    """Print aligned columns; `right` names those that are aligned to the right, `whole` those that are sentences."""
    limits = [SENTENCE if i in whole else CELL for i in range(len(header))]
    columns = [
        _align([show(str(cell), limit=limit) for cell in cells], i in right)
        for i, (limit, cells) in enumerate(zip(limits, zip(header, *rows, strict=True), strict=True))
    ]
    # At once: an unbuffered terminal takes as long for a line as for a thousand.
    click.echo("\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True)))


def _align(cells: Sequence[str], right: bool) -> list[str]:
    """Bring a column to one width."""
    width = max(map(len, cells))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]


def print_json(command: str, facts: dict[str, Any]) -> None:
    """Print facts as JSON with the command's schema; NaN and infinities as strings."""
    click.echo(json.dumps({"schema": f"qfmt.{command}/1", **finite(facts)}, indent=1, allow_nan=False))
