"""`qfmt check`: is a file sound, in structure and in values.

Decides what is an error (no reader can make sense of it) and what a warning (legal, but worth a look). It streams: of a
tensor no more than a tile is in memory. NaN and infinite parameters spoil whole groups and are errors; among dense weights
they are values like others (a mask's minus infinity) and are warnings. Scales of zero are fine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
import qconvert
from qconvert.containers.gguf_values import GGUFArray

from qfmt.options import source_options
from qfmt.text import print_json
from qformat.bits import DTYPES, values
from qformat.errors import QFormatError, show
from qformat.scheme import Levels, Plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qformat.arrays import Part
    from qformat.model import Model
    from qformat.tensor import PackedTensor

TILE_VALUES = 1 << 19
EXPONENTS = ("float8_e8m0fnu", "float8_e8m0half", "float8_e8m0inf")  # the byte 255 is to be NaN: OCP Microscaling v1.0, 5.4.1


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a check found.

    level : "error" or "warning"
    tensor, field : where, None where it concerns the whole file
    """

    level: str
    tensor: str | None
    field: str | None
    message: str

    def __str__(self) -> str:
        place = [f"tensor {show(self.tensor, quote=True)}"] if self.tensor is not None else []
        place += [f"field {show(self.field, quote=True)}"] if self.field is not None else []
        return ": ".join([self.level, *([" ".join(place)] if place else []), show(self.message)])


@click.command()
@click.argument("src")
@click.option("--strict", is_flag=True, help="Exit 1 on warnings too.")
@source_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, src: str, strict: bool, as_json: bool, said: dict[str, Any]) -> None:
    """Check that SRC is sound: structure, digests, and values such as scales that are NaN."""
    found = []
    for finding in check(src, said):
        found.append(finding)
        if not as_json:
            click.echo(str(finding))
    n_errors = sum(finding.level == "error" for finding in found)
    if as_json:
        print_json("check", {"findings": [asdict(finding) for finding in found]})
    verdict = f"errors: {n_errors}, warnings: {len(found) - n_errors}"
    if n_errors or (strict and found):
        click.echo(f"qfmt: {show(src)}: {verdict}", err=True)
        ctx.exit(1)
    if not as_json:
        click.echo(f"{show(src)}: sound, {verdict}")


def check(src: str, said: dict[str, Any]) -> Iterator[Finding]:
    """Find whatever is wrong or odd in a source; a source that cannot be opened is one error."""
    try:
        with qconvert.open(src, **said) as model:
            yield from _check_structure(model)
            yield from _check_metadata(model)
            for name in model:
                yield from _check_tensor(model, name)
    except QFormatError as err:
        yield _error(err)


def _check_structure(model: Model) -> Iterator[Finding]:
    for odd in model.oddities:
        yield Finding(odd.level, None, None, odd.message)
    if model.verify is not None:
        try:
            model.verify()
        except QFormatError as err:
            yield _error(err)


def _check_metadata(model: Model) -> Iterator[Finding]:
    for value in model.metadata.values():
        if isinstance(value, GGUFArray):
            try:
                value.values()
            except QFormatError as err:
                yield _error(err)


def _check_tensor(model: Model, name: str) -> Iterator[Finding]:
    try:
        tensor = model[name]
        alphabet = tensor.scheme.alphabet
        if isinstance(alphabet, Plain):
            level = "error" if alphabet.dtype in EXPONENTS else "warning"
            yield from _check_values(tensor, name, "codes", alphabet.dtype, level)
        if isinstance(alphabet, Levels):
            yield from _check_codes(tensor, name, alphabet)
        for param in tensor.scheme.params:
            yield from _check_values(tensor, name, param.name, param.dtype, "error")
    except QFormatError as err:
        err.tensor = err.tensor or name
        yield _error(err)


def _check_codes(tensor: PackedTensor, name: str, alphabet: Levels) -> Iterator[Finding]:
    """Report codes that stand for no finite number; few alphabets have any."""
    import numpy as np

    bad = [code for code, level in enumerate(alphabet.levels) if not math.isfinite(level)]
    n_bad, first = 0, 0
    for low, high in tensor.tiles() if bad else ():
        where = np.flatnonzero(np.isin(tensor.codes(slice(low, high)), bad))
        if n_bad == 0 and where.size:
            first = low * tensor.n_cols + int(where[0])
        n_bad += where.size
    if n_bad:
        message = f"{n_bad} codes ({alphabet.name}) are NaN or infinite, the first at weight {first}, expected finite numbers"
        yield Finding("warning", name, "codes", message)


def _check_values(tensor: PackedTensor, name: str, holds: str, dtype: str, level: str) -> Iterator[Finding]:
    """Report the values of a float array that are no finite numbers."""
    part = tensor.part(holds)
    if DTYPES[dtype].kind not in ("float", "complex") or DTYPES[dtype].bits < 8:
        return  # integers, and floats of less than a byte, are all finite
    n_bad, first = 0, 0
    for start, stored in _tiles(part, holds):
        bad = _bad(stored, dtype)
        if n_bad == 0 and bad.any():
            first = start + int(bad.argmax())
        n_bad += int(bad.sum())
    if n_bad:
        what = "weights" if holds == "codes" else holds
        where = f"the first at index {first} of the flattened array"
        yield Finding(level, name, what, f"{n_bad} {what} ({dtype}) are NaN or infinite, {where}, expected finite numbers")


def _tiles(part: Part, holds: str) -> Iterator[tuple[int, NDArray[Any]]]:
    """Give a stored array flat and tile by tile, each with the index of its first value."""
    field = part.form.layout.part(holds)
    n_lines, start = part.bound.dims[0], 0
    if not math.prod(part.bound.dims) or field is None:
        return
    step = max(1, TILE_VALUES * n_lines // math.prod(part.bound.dims))
    for low in range(0, n_lines, step):
        stored = part.read(holds, low, min(n_lines, low + step)).reshape(-1)
        yield start, stored
        start += stored.size


def _bad(stored: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Mark the values that are NaN or infinite."""
    import numpy as np

    if DTYPES[dtype].bits > 8:
        finite: NDArray[Any] = np.isfinite(stored)
        return ~finite
    codes = [code for code, value in enumerate(values(dtype)) if not math.isfinite(value)]
    bad: NDArray[Any] = np.isin(stored.view(np.uint8), [255] if dtype in EXPONENTS else codes)
    return bad


def _error(err: QFormatError) -> Finding:
    place = f"at {err.offset:#x}: " if err.offset is not None else ""
    return Finding("error", err.tensor, err.field, place + err.message)
