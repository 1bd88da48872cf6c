"""`qfmt dump`: one block of a tensor, every byte named by the field that owns it.

Decides how a block is shown. What its bytes mean comes from the layout and from the slow reader, which shares no code with
the fast one.
"""

from __future__ import annotations

import math
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click
import qconvert

from qfmt.options import source_options
from qfmt.text import table
from qformat.errors import UsageError, about, show
from qformat.layout import CODES, Bits, Field, Layout
from qformat.scheme import Opaque, Plain, Table

if TYPE_CHECKING:
    from qformat.arrays import Part
    from qformat.tensor import PackedTensor

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
LINE_BYTES = 16
LINE_VALUES = 16

Place = tuple[int, int]  # row and column in the folded matrix


@click.command()
@click.argument("src")
@click.argument("tensor")
@click.option("--block", default=0, show_default=True, metavar="N", help="Number of the block, in stored order.")
@source_options
def command(src: str, tensor: str, block: int, said: dict[str, Any]) -> None:
    """Show the bytes of one block of TENSOR by the field that owns them, with codes and values."""
    with qconvert.open(src, **said) as model:
        found = model[tensor]
        part = found.part(CODES)
        with about(src, tensor):
            data, places = read_block(found, part, block)
        layout = part.form.layout
        rule = f", rule {found.rule}" if found.rule else ""
        click.echo(f"{show(tensor)}: scheme {found.scheme.name}, layout {layout.name}, shape {list(found.shape)}{rule}")
        order = ", stored byte-swapped" if part.swapped else ""
        click.echo(f"block {block} of {_n_blocks(part)} in '{part.form.role}': {len(data)} bytes{order}")
        click.echo()
        _print_bytes(data, layout)
        _print_fields(part, data)
        _print_parameters(found, part, places)
        _print_weights(found, part, data, places)


def read_block(tensor: PackedTensor, part: Part, number: int) -> tuple[bytes, list[Place | None]]:
    """Read one block.

    number  : counted in stored order
    returns : its bytes, least significant first, and the place of each of its weights; None where it only fills the block

    Raises UsageError for a number that the tensor does not have.
    """
    if not 0 <= number < _n_blocks(part):
        raise UsageError(f"block {number}, expected 0 to {_n_blocks(part) - 1}", field=part.form.role, found=number)
    tiling, size = part.bound.tiling, part.bound.size
    stored = [name for name, _, _ in tiling.stored if name != tiling.word_axis]
    at = dict(zip(stored, _digits(number, [size[name] for name in stored]), strict=True))
    lead = tiling.stored[0][0]
    if lead == tiling.word_axis:
        blocks = part.blocks()[tuple(at.values())]
    else:
        blocks = part.blocks(lead, at[lead], at[lead] + 1)[(0, *(at[name] for name in stored[1:]))]
    inner = [name for name, _, _ in tiling.inner]
    places: list[Place | None] = []
    for i in range(part.form.layout.n_weights):
        spot = at | dict(zip(inner, _digits(i, [size[name] for name in inner]), strict=True))
        index = [_number([spot[name] for name in axes], [size[name] for name in axes]) for axes in tiling.logical]
        inside = all(i < n for i, n in zip(index, part.bound.dims, strict=True))
        flat = _number(index, list(part.bound.dims)) if inside else 0
        places.append(divmod(flat, tensor.n_cols) if inside else None)
    return blocks.tobytes(), places


def _print_bytes(data: bytes, layout: Layout) -> None:
    """Print the bytes in hex, a new line where their owner changes."""
    names = [part.name for part in layout.parts]
    owners = ["+".join(dict.fromkeys(str(o) for o in layout.owners[8 * i : 8 * i + 8])) for i in range(len(data))]
    width = max(len(owner) for owner in owners)
    for owner, group in groupby(range(len(data)), key=owners.__getitem__):
        run = list(group)
        for start in range(run[0], run[-1] + 1, LINE_BYTES):
            piece = data[start : min(start + LINE_BYTES, run[-1] + 1)].hex(" ")
            if sys.stdout.isatty():
                piece = click.style(piece, fg=COLOURS[names.index(owner.split("+")[0]) % len(COLOURS)])
            click.echo(f"  {start:#06x}  {owner.ljust(width)}  {piece}")


def _print_fields(part: Part, data: bytes) -> None:
    """Print what a block holds beside codes: its own parameters, the pieces that codes are made of, residue."""
    from qformat.reference import element, unpack

    fields = unpack(data, part.form.layout)
    for owner in part.form.layout.parts:
        if owner.holds == CODES:
            continue
        kind = f"{owner.width}-bit" if isinstance(owner, Bits) and not owner.dtype else owner.dtype
        shown = [f"{element(value, owner.dtype):.9g}" if owner.dtype else str(value) for value in fields[owner.name]]
        head = f"  {owner.name}: {owner.holds or 'residue'} ({kind})"
        for start in range(0, len(shown), LINE_VALUES):
            click.echo(f"{head} {' '.join(shown[start : start + LINE_VALUES])}")
            head = " " * len(head)


def _print_parameters(tensor: PackedTensor, part: Part, places: list[Place | None]) -> None:
    """Print the parameters in other arrays that the block's weights use."""
    from qformat.reference import group_index, param_value

    for param in tensor.scheme.params:
        if param.name in part.form.layout.holds or isinstance(param.group, Table):
            continue
        used = dict.fromkeys(group_index(tensor, param.name, *place) for place in places if place is not None)
        for index in used:
            click.echo(f"  {param.name}{list(index)} ({param.dtype}): {param_value(tensor, param.name, index):.9g}")


def _print_weights(tensor: PackedTensor, part: Part, data: bytes, places: list[Place | None]) -> None:
    """Print code and value of every weight."""
    from qformat.reference import codes, weight

    alphabet, owner = tensor.scheme.alphabet, part.form.layout.part(CODES)
    if isinstance(alphabet, Opaque):
        click.echo("  codes are opaque: nothing here reads them")
        return
    if isinstance(alphabet, Plain) and isinstance(owner, Field):
        import numpy as np

        from qformat.fields import numpy_dtype

        values = [str(value) for value in np.frombuffer(data, numpy_dtype(owner.dtype))]
    else:
        values = ["-" if place is None else f"{weight(tensor, *place):.9g}" for place in places]
    spots = ["(fills the block)" if place is None else f"[{place[0]}, {place[1]}]" for place in places]
    click.echo()
    table(("weight", "code", "value"), list(zip(spots, codes(data, part.form.layout), values, strict=True)), right=(1, 2))


def _n_blocks(part: Part) -> int:
    return part.source.n_bytes // part.form.layout.n_bytes


def _digits(number: int, sizes: list[int]) -> list[int]:
    """Spell a number in mixed-radix digits, most significant first."""
    return [number // math.prod(sizes[k + 1 :]) % size for k, size in enumerate(sizes)]


def _number(digits: list[int], sizes: list[int]) -> int:
    """Give the number that mixed-radix digits, most significant first, spell."""
    number = 0
    for digit, size in zip(digits, sizes, strict=True):
        number = number * size + digit
    return number
