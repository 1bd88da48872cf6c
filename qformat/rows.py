"""Rows of packed tensors in another order: permuted, split, joined, stacked, interleaved, no value changed.

Decides which stored bytes are a row's, and moves these where there are such; where rows share bytes (codes packed across
rows or down columns, groups of several rows) the same codes and parameters are laid down row by row. Must not know what
rows mean in a model, nor what is to become of the result. Nothing is read at once but what whole tensors share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from qformat.arrays import ByteSource, Part
from qformat.bits import DTYPES
from qformat.errors import NotExact, UsageError
from qformat.formats.form import PartForm, matrix, parameter
from qformat.gather import Gathered
from qformat.layout import CODES
from qformat.lines import by_row, codes_layout, line_bytes, made_lines, rows_of_line, stored_lines
from qformat.scheme import Grid, Group, Indexed, Plain, Scheme, Strided, Table
from qformat.tensor import PackedTensor, assemble, format_of
from qformat.tiling import ROWS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from qformat.deferred import np

BYTE = 8  # bits


def rearrange(tensors: Sequence[PackedTensor], rows: NDArray[np.int64], shape: tuple[int, ...]) -> PackedTensor:
    """Make a tensor of rows of others.

    tensors : of one scheme and row length; at least one
    rows    : (n_rows,) of the result, each the number of a row when those of all tensors are counted through; a row may come
              again. Rows are those of the matrix that a shape folds into; where all shapes are vectors, their elements
    shape   : of the result
    returns : a tensor that reads the others when it is read: in their format where the bytes of a row lie together, else in
              the same scheme, laid down row by row. A parameter of a whole tensor stays one where all are equal, and is else
              one for as many rows as share it; in a stack it is one for each of the stack. Bits that no value depends on
              are kept where the bytes of a row lie together

    Raises UsageError for rows that there are not and shapes that do not fit; NotExact, naming what differs, for tensors that
    do not mean the same, and for rows that cannot be told apart.
    """
    if not tensors:
        raise UsageError("no tensors to take rows of", expected="at least one")
    if rows.dtype.kind not in "iu":
        raise UsageError(f"row numbers are {rows.dtype}, expected integers", found=str(rows.dtype), expected="int64")
    numbers = np.ascontiguousarray(rows, np.int64)
    if all(len(of) == 1 for of in (shape, *(tensor.shape for tensor in tensors))):
        columns = [_column(tensor) for tensor in tensors]
        return replace(rearrange(columns, numbers, (*shape, 1)), shape=shape)
    _check(tensors, numbers, shape)
    if len(tensors) == 1 and shape == tensors[0].shape and np.array_equal(numbers, np.arange(len(numbers))):
        return tensors[0]
    _agree(tensors)
    return _Selection(tuple(tensors), numbers, shape).make()


@dataclass(frozen=True)
class _Piece:
    """A part of the result, and the groups of the parameters that it holds."""

    form: PartForm
    source: ByteSource
    swapped: bool
    groups: dict[str, Group]


@dataclass(frozen=True)
class _Selection:
    """Rows, by number, of tensors that mean the same."""

    tensors: tuple[PackedTensor, ...]
    rows: NDArray[np.int64]
    shape: tuple[int, ...]

    def make(self) -> PackedTensor:
        """Make the tensor, part by part."""
        first = self.tensors[0]
        pieces = [piece for part in first.parts for piece in self._pieces(part)]
        groups = {name: group for piece in pieces for name, group in piece.groups.items()}
        params = tuple(replace(param, group=groups.get(param.name, param.group)) for param in first.scheme.params)
        scheme = replace(first.scheme, params=params)
        form = replace(format_of(first), scheme=scheme, parts=tuple(piece.form for piece in pieces))
        dtype = first.dtype if all(tensor.dtype == first.dtype for tensor in self.tensors) else ""
        made = assemble(form, self.shape, {piece.form.role: piece.source for piece in pieces}, dtype, rule=first.rule)
        as_stored = zip(made.parts, pieces, strict=True)
        return replace(made, parts=tuple(replace(part, swapped=piece.swapped) for part, piece in as_stored))

    def _pieces(self, part: Part) -> Iterator[_Piece]:
        """Give what becomes of a part: itself, its rows moved, or what it holds laid down row by row."""
        holds, scheme = part.form.layout.holds, self.tensors[0].scheme
        groups = {name: scheme.param(name).group for name in holds if name != CODES}
        if not holds or any(isinstance(group, Table) for group in groups.values()):
            if self._is_one(part):
                yield _Piece(part.form, part.source, part.swapped, {})
            return
        peers = [_peer(tensor, part) for tensor in self.tensors]
        lines = {line_bytes(tensor, peer) for tensor, peer in zip(self.tensors, peers, strict=True)}
        n_bytes = lines.pop() if len(lines) == 1 else None
        if n_bytes is not None:
            yield self._moved([peer for peer in peers if peer is not None], groups, n_bytes)
            return
        for name in holds:
            yield self._laid(part.form, name, part.form.role if len(holds) == 1 else name)

    def _is_one(self, part: Part) -> bool:
        """Tell whether what tensors share as a whole is one; where values depend on it, refuse what is not."""
        peers = [_peer(tensor, part) for tensor in self.tensors[1:]]
        whole = [None if peer is None else peer.ordered(0, peer.source.n_bytes) for peer in peers]
        if all(other is not None and np.array_equal(part.ordered(0, part.source.n_bytes), other) for other in whole):
            return True
        if holds := part.form.layout.holds:
            raise NotExact(f"'{holds[0]}' is not the same in all tensors whose rows are to be joined", field=holds[0])
        return False

    def _moved(self, parts: list[Part], groups: dict[str, Group], n_bytes: int) -> _Piece:
        """Move the bytes of rows, or of what a parameter's rows are."""
        of_line = rows_of_line([*groups.values()])
        runs = tuple(partial(stored_lines, part.source, n_bytes) for part in parts)
        if of_line == 1:
            source = Gathered(runs, self._begins, self.rows, n_bytes)
            return _Piece(parts[0].form, source, parts[0].swapped, {})
        (name,) = groups
        together, group = self._together(name), groups[name]
        lines, begins = self._lines(of_line)
        source = Gathered(runs, begins, lines[:: together or len(lines)], n_bytes)
        assert isinstance(group, Grid)  # others give each row a line
        return _Piece(parts[0].form, source, parts[0].swapped, {name: Grid(together, group.cols)})

    def _laid(self, form: PartForm, name: str, role: str) -> _Piece:
        """Lay codes or a parameter down row by row."""
        first = self.tensors[0]
        if name == CODES:
            made, groups, rows = PartForm(role, codes_layout(form, first), ROWS), dict[str, Group](), self.rows
        else:
            param, together = first.scheme.param(name), self._together(name)
            group = by_row(param.group, first.n_cols, together)
            made = replace(parameter(replace(param, group=group), DTYPES[param.dtype].bits // BYTE), role=role)
            groups, rows = {name: group}, self.rows[:: together or len(self.rows)]
        width = first.n_cols if name == CODES else groups[name].counts(1, first.n_cols)[-1]
        n_bytes = made.bind((1, width)).total_bytes
        runs = tuple(partial(made_lines, tensor, made, name, width) for tensor in self.tensors)
        return _Piece(made, Gathered(runs, self._begins, rows, n_bytes), False, groups)

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        """Number of each tensor's first row, and of all rows."""
        return _counted([tensor.n_rows for tensor in self.tensors])

    def _lines(self, n_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give, for each row, the number of the line of `n_rows` rows (0: of a tensor) that it is in, and where those begin."""
        tensor = np.searchsorted(self._begins, self.rows, "right") - 1
        begins = _counted([-(-one.n_rows // n_rows) if n_rows else 1 for one in self.tensors])
        within = (self.rows - self._begins[tensor]) // n_rows if n_rows else 0
        return begins[tensor] + within, begins

    def _together(self, name: str) -> int:
        """Give how many neighbouring rows of the result share a value of a parameter, 0: all."""
        group = self.tensors[0].scheme.param(name).group
        if not isinstance(group, Grid) or group.rows == 1 or not self.rows.size:
            return 1
        lines, _ = self._lines(group.rows)
        stacked = self.shape[-2] if len(self.shape) > 2 else 0
        if not group.rows:
            values: dict[bytes, int] = {}
            same = [values.setdefault(tensor.param(name).tobytes(), len(values)) for tensor in self.tensors]
            lines = np.array(same, np.int64)[lines]
        ends = np.flatnonzero(np.diff(lines)) + 1
        return math.gcd(0 if group.rows else stacked, *ends.tolist()) or stacked


def _counted(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *counts], dtype=np.int64)


def _peer(tensor: PackedTensor, part: Part) -> Part | None:
    """Find the part of a tensor that lies as another's does."""
    return next((peer for peer in tensor.parts if peer.form == part.form and peer.swapped == part.swapped), None)


def _column(tensor: PackedTensor) -> PackedTensor:
    """See a vector as a matrix of one column."""
    alphabet = tensor.scheme.alphabet
    if not isinstance(alphabet, Plain) or DTYPES[alphabet.dtype].bits % BYTE:
        raise NotExact(f"elements of a {tensor.scheme.name} vector do not lie in bytes of their own", field=CODES)
    return replace(tensor, shape=(*tensor.shape, 1))


def _check(tensors: Sequence[PackedTensor], rows: NDArray[np.int64], shape: tuple[int, ...]) -> None:
    """Refuse rows that there are not, and rows of different lengths."""
    n_rows, n_cols = matrix(shape)
    for tensor in tensors:
        if tensor.n_cols != n_cols:
            raise UsageError(f"rows of {tensor.n_cols} weights, expected {n_cols}", found=tensor.n_cols, expected=n_cols)
    if rows.shape != (n_rows,):
        raise UsageError(f"{rows.shape} row numbers, shape {list(shape)} has {n_rows} rows", found=rows.shape, expected=n_rows)
    total = sum(tensor.n_rows for tensor in tensors)
    wrong = (rows < 0) | (rows >= total)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UsageError(f"row {at} is to be row {int(rows[at])} of {total}", found=int(rows[at]), expected=total)


def _agree(tensors: Sequence[PackedTensor]) -> None:
    """Refuse tensors that do not mean the same."""
    mine = tensors[0].scheme
    for theirs in (tensor.scheme for tensor in tensors[1:]):
        if (mine.alphabet, mine.params, mine.steps, mine.input_scale) != (
            theirs.alphabet, theirs.params, theirs.steps, theirs.input_scale,
        ):  # fmt: skip
            field, one, other = _difference(mine, theirs)
            raise NotExact(f"{one} and {other} cannot stand in one tensor", field=field, found=other, expected=one)


def _difference(mine: Scheme, theirs: Scheme) -> tuple[str, str, str]:
    """Say in what two schemes differ: a field, and what it is in each of them."""
    others = {param.name: param for param in theirs.params}
    for param in mine.params if mine.name == theirs.name else ():
        other = others.get(param.name, param)
        if other.dtype != param.dtype:
            return param.name, f"{mine.name} with {param.dtype} {param.name}", f"{theirs.name} with {other.dtype}"
        if other.group != param.group:
            one, another = (f"for {_said(of.group)}" for of in (param, other))
            return param.name, f"{mine.name} with {param.name} {one}", f"{theirs.name} with {param.name} {another}"
    names = [", ".join(param.name for param in scheme.params) for scheme in (mine, theirs)]
    if mine.name == theirs.name and names[0] != names[1]:
        return "scheme", f"{mine.name} with {names[0] or 'no parameters'}", f"{theirs.name} with {names[1] or 'none'}"
    return "scheme", f"rows of {mine.name}", f"rows of {theirs.name}"


def _said(group: Group) -> str:
    """Say which weights share a parameter."""
    if isinstance(group, Grid):
        return f"{group.rows or 'all'} x {group.cols or 'all'} weights"
    if isinstance(group, Indexed):
        return f"{group.n_groups} groups by '{group.index}'"
    if isinstance(group, Table):
        return f"{group.n_entries} entries"
    return f"{group.n_weights} {'strided' if isinstance(group, Strided) else 'flat'} weights"
