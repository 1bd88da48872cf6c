"""How facts are printed: sizes, tables, JSON. One home for the look of the output; it knows no format and no file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii as quoted
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


def decibels(value: float | None) -> str:
    """Say a ratio in decibels; nothing where it is not known."""
    return "" if value is None else f"{value:.2f}"


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


def print_json(command: str, facts: Mapping[str, Any]) -> None:
    """Print facts as JSON with the command's schema; NaN and infinities as strings."""
    click.echo(_json({"schema": f"qfmt.{command}/1", **facts}))


def print_listing(
    command: str, facts: Mapping[str, Any], key: str, names: Sequence[str], kinds: Sequence[tuple[Sequence[str], Any]]
) -> None:
    """Print facts as `print_json` does, the last of them, under a key, a list of objects: a name, and what is said of it.

    Each kind is put into words once: there may be a hundred thousand names.

    names : of all kinds, in the order of the list
    kinds : names, and the facts, an object, that are said of each of them
    """
    before, after = "[\n [\n", "\n ]\n]"  # of a list in a list: objects lie as deep as in the one that is printed
    ends: dict[str, str] = {}
    for members, said in kinds:
        item = _json([[{"name": "", **said}]]).removeprefix(before).removesuffix(after)
        begin, _, end = item.partition('""')
        ends.update(dict.fromkeys(members, end))
    whole = _json({"schema": f"qfmt.{command}/1", **facts, key: []})
    if names:
        items = ",\n".join([f"{begin}{quoted(name)}{ends[name]}" for name in names])
        whole = whole.removesuffix("[]\n}") + f"[\n{items}\n ]\n}}"
    click.echo(whole, color=True)  # as it is: looking for colours takes as long as the listing, and JSON has none


def _json(facts: object) -> str:
    return json.dumps(finite(facts), indent=1, allow_nan=False)
