"""Weights that were cut into slabs before they were packed, as HQQ, quanto and BitNet do, seen as if they lay row by row.

A block holds a code of each slab; of the rows of one slab it is a block of their codes, whose other bits mean nothing. Groups
that go down the slabs have parameters that come again after so many rows. Derived from tilings and groups alone; rows that
begin in one slab and end in another stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from qformat.arrays import ByteSource, Part
from qformat.formats.form import PartForm
from qformat.layout import CODES, Bits, Field, Layout, Plane
from qformat.scheme import Grid, Param, Strided
from qformat.tiling import FLAT, ROWS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.tensor import PackedTensor
else:
    from qformat.deferred import np

EACH = Grid(1, 1)


@dataclass(frozen=True, slots=True)
class Slab:
    """Rows [first, last) of a tensor, seen through one that has them, and nothing else, by the same numbers.

    together : rows that are best read at once, those after a multiple of it; all if 0
    """

    first: int
    last: int
    tensor: PackedTensor
    together: int


@dataclass(frozen=True, slots=True)
class Behind:
    """Bytes of a source as if it began at another place."""

    source: ByteSource
    start: int
    n_bytes: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give bytes [start, stop)."""
        return self.source.read(start - self.start, stop - self.start)


@dataclass(frozen=True, slots=True)
class Repeated:
    """Bytes of a source, time and again."""

    source: ByteSource
    n_bytes: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give bytes [start, stop): a view where they do not begin anew in between."""
        n = self.source.n_bytes
        low, high = start % n, start % n + stop - start
        if high <= n:
            return self.source.read(low, high)
        whole = self.source.read(0, n)
        return np.concatenate([whole[low:], *[whole] * (high // n - 1), whole[: high % n]])


def slabs_of(tensor: PackedTensor) -> tuple[Slab, ...]:
    """Cut a tensor into rows of one slab each; a single one of all rows where there are no slabs."""
    n_rows, n_cols = tensor.n_rows, tensor.n_cols
    if any(part.swapped for part in tensor.parts) or not tensor.n_weights:
        return (Slab(0, n_rows, tensor, 0),)
    plain, together = _repeated(tensor)
    codes = next((part for part in plain.parts if CODES in part.form.layout.holds), None)
    forms = _by_slab(codes.form) if codes is not None else ()
    if codes is None or not forms or n_cols % _count(forms[0]):
        return (Slab(0, n_rows, plain, together),)
    per = math.prod(codes.bound.padded) // len(forms)  # weights of a slab
    found, at = [], 0
    for number, form in enumerate(forms):
        first, last = -(-number * per // n_cols), min((number + 1) * per // n_cols, n_rows)
        if first >= last:
            continue
        if at < first:
            found.append(Slab(at, first, plain, together))
        found.append(Slab(first, last, _of_slab(plain, codes, form, number * per), together))
        at = last
    return (*found, Slab(at, n_rows, plain, together)) if at < n_rows else tuple(found)


def _of_slab(tensor: PackedTensor, codes: Part, form: PartForm, before: int) -> PackedTensor:
    """See codes behind so many of slabs before as those of all rows."""
    shape = tensor.n_rows, tensor.n_cols
    bound = form.bind(shape)
    source = Behind(codes.source, before // _count(form) * form.layout.n_bytes, bound.total_bytes)
    part = Part(form, bound, source)
    return replace(tensor, parts=tuple(part if other is codes else other for other in tensor.parts))


def _count(form: PartForm) -> int:
    """Give the codes of a block."""
    return form.layout.n_weights


@lru_cache(maxsize=256)
def _by_slab(form: PartForm) -> tuple[PartForm, ...]:
    """Give the codes of each slab row by row, where the first axis of a block counts slabs; none where it does not."""
    tiling, layout = form.tiling, form.layout
    if tiling in (ROWS, FLAT) or tiling.word_axis or not tiling.inner or layout.codes is None or layout.holds != (CODES,):
        return ()
    (slab, size, _), *inner = tiling.inner
    axes = [name for name, _, _ in (*tiling.stored, *inner)]
    if [slab, *axes] != [name for group in tiling.logical for name in group] or not all(n for _, n, _ in inner):
        return ()
    n_slabs = size or layout.n_weights // math.prod(n for _, n, _ in inner)
    if any(plane.strides(layout.n_weights).sizes[0] != n_slabs for plane in layout.codes.planes):
        return ()
    return tuple(PartForm(form.role, _layout(layout, layout.codes, n_slabs, number), ROWS) for number in range(n_slabs))


def _layout(layout: Layout, codes: Bits, n_slabs: int, number: int) -> Layout:
    """Declare a block of which the codes of one slab are read; those of others hold nothing."""
    count = codes.count // n_slabs
    fields = [
        replace(codes, name=f"{codes.name}_{i}", planes=_planes(codes, i), count=count, holds=CODES if i == number else "")
        for i in range(n_slabs)
    ]
    others: list[Field | Bits] = [part for part in layout.parts if part is not codes]
    return Layout(f"{layout.name}_slab_{number}", count, layout.n_bytes, (*fields, *others))


def _planes(codes: Bits, number: int) -> tuple[Plane, ...]:
    """Place the codes of one slab: what is left of the axes once the first is fixed."""
    found = []
    for plane in codes.planes:
        run = plane.strides(codes.count)
        axes = [(f"a{i}", n, step) for i, (n, step) in enumerate(zip(run.sizes[1:], run.steps[1:], strict=True))]
        stored = [f"{'~' * (step < 0)}{name}*{abs(step)}" for name, _, step in axes]
        order = f"{' '.join(f'{name}={n}' for name, n, _ in axes)} -> {' '.join(stored)}" if axes else ""
        first = run.base + number * run.steps[0] + sum((n - 1) * step for _, n, step in axes if step < 0)
        found.append(replace(plane, bit=first - 8 * plane.at, order=order))
    return tuple(found)


def _repeated(tensor: PackedTensor) -> tuple[PackedTensor, int]:
    """See parameters of groups that go down the slabs as one for each weight; and the rows after which they come again."""
    n_cols = tensor.n_cols
    views = {param.name: _each(tensor, param) for param in tensor.scheme.params if isinstance(param.group, Strided)}
    seen = {name: view for name, view in views.items() if view is not None}
    if not seen:
        return tensor, 0
    params = tuple(replace(param, group=EACH) if param.name in seen else param for param in tensor.scheme.params)
    parts = tuple(seen.get(next(iter(part.form.layout.holds), ""), part) for part in tensor.parts)
    again = math.lcm(*(tensor.part(name).bound.dims[0] // n_cols for name in seen))
    return replace(tensor, scheme=replace(tensor.scheme, params=params), parts=parts), again


def _each(tensor: PackedTensor, param: Param) -> Part | None:
    """See a parameter as one for each weight; None where it is no array of single values, or does not begin anew with a row."""
    part = tensor.part(param.name)
    layout = part.form.layout
    if part.form.tiling != FLAT or layout.n_items != 1 or layout.holds != (param.name,) or part.bound.dims[0] % tensor.n_cols:
        return None
    form = PartForm(part.form.role, layout, ROWS)
    bound = form.bind((tensor.n_rows, tensor.n_cols))
    return Part(form, bound, Repeated(part.source, bound.total_bytes))
