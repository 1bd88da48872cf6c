"""Takes rows of a tensor from one packed form to another, codes and values as they are: no floats, and no code by itself.

Parts that run down the columns are seen row by row, and laid down from there. A packed parameter in a part of its own is laid
out as the codes of a smaller tensor are. What no unit holds (a parameter of a whole row) is packed by itself. Whether the
result means the same is the caller's to know.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from qformat.arrays import Part, aligned, read_all
from qformat.formats.form import Format, PartForm
from qformat.layout import CODES, Bits, Layout
from qformat.moves import Side, move_of
from qformat.scheme import Grid, Indexed, Integers, Scheme, Table
from qformat.streamed import row_bytes
from qformat.tensor import PackedTensor, pack_part
from qformat.units import Move
from qformat.upright import Turn, Upright, turn_of, upright

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.kernels.vector.transcode import Mover
else:
    from qformat.deferred import np


class Relay:
    """Takes rows of one tensor to one format; made by `relay_of`."""

    def __init__(self, tensor: PackedTensor, form: Format, move: Move, froms: tuple[str, ...], roles: tuple[str, ...]) -> None:
        self.tensor, self.form, self.move, self.roles = tensor, form, move, roles
        self.n_units = tensor.n_cols // move.n_weights
        self.steps, self.to_steps = (
            tuple(row_bytes(source, self.n_units) for source in sources) for sources in (move.sources, move.targets)
        )
        seen = upright(tensor)
        self.is_alike = _is_alike(move)
        self.turns = [turn_of(part) for part in form.parts]
        beside = ((part.role, _smaller(tensor, form, part)) for part in form.parts if part.role not in roles)
        self.beside = {role: relay for role, relay in beside if relay is not None}
        self.parts = tuple(next(part for part in seen.parts if part.form.role == role) for role in froms)

    def make(self, first: int, last: int) -> dict[str, NDArray[np.uint8]]:
        """Give the bytes of every part for rows [first, last), which begin and, but at the end, end blocks, by role."""
        from qformat.kernels.vector.decode import Bound, addresses

        found = [self._read(part, step, first, last) for part, step in zip(self.parts, self.steps, strict=True)]
        if not self.is_alike:
            sources, found = found, [aligned(((last - first) * step,), np.dtype(np.uint8)) for step in self.to_steps]
            bounds = Bound(addresses(sources), self.steps), Bound(addresses(found), self.to_steps)
            self.mover(*bounds, last - first, self.n_units)
        made, parts = dict(zip(self.roles, found, strict=True)), zip(self.form.parts, self.turns, strict=True)
        return {part.role: self._stored(part, turn, made, first, last) for part, turn in parts}

    def _read(self, part: Part, step: int, first: int, last: int) -> NDArray[np.uint8]:
        """Give the bytes of rows of a source."""
        if isinstance(part.source, Upright):
            return part.source.rows(first, last, self.is_alike).reshape(-1)
        return read_all(part.source, first * step, last * step)

    @cached_property
    def mover(self) -> Mover:
        """What takes rows of units over."""
        from qformat.kernels.vector.transcode import mover

        return mover(self.move)

    def _stored(
        self, part: PartForm, turn: Turn | None, made: dict[str, NDArray[np.uint8]], first: int, last: int
    ) -> NDArray[np.uint8]:
        """Give the bytes of a part as it is stored."""
        if part.role in made:
            data = made[part.role]
            return data if turn is None else turn.laid(data, last - first).reshape(-1)
        if part.role in self.beside:
            return self.beside[part.role].make(first, last)[part.role]
        shared = _is_shared(part, self.form.scheme)
        n_rows = self.tensor.n_rows if shared else last - first
        held = {name: self.tensor.param(name, *(() if shared else (first, last))) for name in part.layout.holds}
        return pack_part(self.form, part, (n_rows, self.tensor.n_cols), held)


def relay_of(tensor: PackedTensor, form: Format) -> Relay | None:
    """Bind a tensor to a format that has its parameters, in groups of the same weights.

    None where no unit holds the codes of both, or the format has bytes that nothing fills.
    """
    from qformat.kernels.cpu import has_vectors

    if not tensor.n_weights or any(part.swapped for part in tensor.parts) or not has_vectors():
        return None
    one: Side = (tensor.scheme, tuple(part.form for part in upright(tensor).parts))
    turns = [turn_of(part) for part in form.parts]
    other: Side = (form.scheme, tuple(turn.rows if turn else part for turn, part in zip(turns, form.parts, strict=True)))
    if any(turn and not turn.width and tensor.n_rows % turn.stored.layout.n_weights for turn in turns):
        return None
    found = move_of(one, other, tensor.n_cols)
    if found is None:
        return None
    beside = [part for part in form.parts if part.role not in found[2]]
    known = all(part.layout.holds and (_is_shared(part, form.scheme) or _has_rows(part, form.scheme)) for part in beside)
    return Relay(tensor, form, *found) if known else None


def _smaller(tensor: PackedTensor, form: Format, part: PartForm) -> Relay | None:
    """See a packed parameter as the codes of a tensor that has a column for each group of weights.

    None where rows share a value, groups differ, or a part of either holds something else than values in planes.
    """
    held = next((held for held in tensor.parts if held.form.layout.holds == part.layout.holds), None)
    groups = {scheme.param(name).group for scheme in (tensor.scheme, form.scheme) for name in part.layout.holds}
    group = groups.pop() if len(groups) == 1 else None
    if held is None or held.swapped or not isinstance(group, Grid) or group.rows != 1:
        return None
    one, other = _as_codes(held.form), _as_codes(part)
    if one is None or other is None:
        return None
    shape = tensor.n_rows, group.counts(tensor.n_rows, tensor.n_cols)[1]
    seen = PackedTensor(shape, one.scheme, (Part(one.parts[0], one.parts[0].bind(shape), held.source),))
    return relay_of(seen, other)


def _as_codes(part: PartForm) -> Format | None:
    """See a part that holds one field of packed integers, and nothing else, as codes by themselves."""
    layout = part.layout
    if len(layout.parts) != 1 or not isinstance(field := layout.parts[0], Bits) or field.dtype or layout.unpacker:
        return None
    codes = Layout(layout.name, field.count, layout.n_bytes, (replace(field, holds=CODES),))
    scheme = Scheme(layout.name, Integers(field.low, field.high))
    return Format(layout.name, scheme, (PartForm(part.role, codes, part.tiling),))


def _is_alike(move: Move) -> bool:
    """Tell whether the bytes of every target are those of the source of the same number."""
    pairs = [(move.codes, move.to), *move.copies]
    return move.sources == move.targets and all(one == other for one, other in pairs) and len(pairs) == len(move.sources)


def _is_shared(part: PartForm, scheme: Scheme) -> bool:
    """Tell whether all rows share what a part holds."""
    groups = [scheme.param(name).group for name in part.layout.holds]
    return all(isinstance(group, Table) or (isinstance(group, Grid) and group.rows == 0) for group in groups)


def _has_rows(part: PartForm, scheme: Scheme) -> bool:
    """Tell whether a part holds parameters of single rows, which its stored axes tell apart."""
    groups = [scheme.param(name).group for name in part.layout.holds]
    single = all(isinstance(group, Indexed) or (isinstance(group, Grid) and group.rows == 1) for group in groups)
    return bool(groups) and single and part.tiling.logical[0][0] in {name for name, _, _ in part.tiling.stored}
