"""Parameters of a format: how values are stored in them, and what happens to those that do not fit.

Takes values over the target's groups and puts stored forms into what is derived for some rows. Where a value has no stored
form, it is named in the source's terms, or rounds where that is allowed and counts. Knows nothing of codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.grouping import Grouping
from qconvert.represent import integer_range, represent
from qconvert.second import multiples, read_held
from qformat.bits import DTYPES
from qformat.errors import NotExact
from qformat.evaluate import F32
from qformat.formats import Format
from qformat.layout import Bits
from qformat.scheme import Flat, Grid, Operand, Ref

INTEGERS = ("int", "uint")


@dataclass(slots=True)
class Derived:
    """The target's logical arrays for some rows, and what had to round on the way.

    first : the first parameter that did: its name, the index there, the value
    """

    values: dict[str, NDArray[Any]]
    n_rounded: int = 0
    max_rel_error: float = 0.0
    first: tuple[str, int, float] | None = None
    reasons: list[str] = field(default_factory=list)


class Keeper:
    """One parameter of a format.

    role  : "scale", "zero" or "bias", for messages
    form  : the format
    held  : how it keeps the parameter
    of    : what the source's values are made of

    Raises NotExact where the format makes the parameter of other numbers than one level, or two: integers and a float for
    some groups of a row, small floats and a number of the tensor.
    """

    def __init__(self, role: str, form: Format, wanted: Operand, of: Operand) -> None:
        """Read how a format keeps `wanted`, an operand of its scheme."""
        held = read_held(form.scheme, wanted)
        if held is None or (held.coarse is not None and not isinstance(held.coarse, Ref)):
            raise NotExact(f"{form.name} makes its {role}s of parameters that are not worked out backwards", field=role)
        self.role, self.form, self.held, self.of = role, form, held, of
        self.param = form.scheme.param(held.name)
        part = next(part.layout.part(held.name) for part in form.parts if held.name in part.layout.holds)
        self.bounds = (part.low, part.high) if isinstance(part, Bits) else None
        over = form.scheme.param(self.shared).group if self.shared else Grid(1, 1)
        in_row, in_tensor = isinstance(over, Grid) and over.rows == 1, isinstance(over, Grid) and over.cols == 0
        if not (in_row if self.is_integer else in_tensor or not self.shared):
            raise NotExact(f"{form.name} shares a {role} over weights that are not looked at together", field=role)

    @property
    def shared(self) -> str:
        """The parameter that many groups share beside this one's values; empty without."""
        return self.held.coarse.name if isinstance(self.held.coarse, Ref) else ""

    @property
    def is_integer(self) -> bool:
        """Whether values are integers."""
        return DTYPES[self.param.dtype].kind in INTEGERS

    def put(self, found: Derived, groups: Grouping, array: F32, first: int, rounding: bool = False, note: str = "") -> None:
        """Store values.

        array    : (lines, groups); those of lines of one group are equal
        first    : the first line
        rounding : let a value round to a finite one, and count it
        note     : for messages: what was done with a value on its way

        Raises NotExact that names the first value without a stored form.
        """
        with np.errstate(all="ignore"):
            array = groups.one_each(np.float32(1) / array if self.held.inverse else array)
        if self.shared and self.is_integer:
            self._put_multiples(found, groups, array, first)
            return
        stored, back = represent(array, self.param.dtype, self.bounds)
        wrong = ~(back == array)  # a NaN is never equal: it stays within its own format
        if wrong.any():
            if not (rounding and np.isfinite(back[wrong]).all() and np.isfinite(array[wrong]).all()):
                problem = f"{note} {self._problem(array[wrong][0])}".lstrip()
                raise self._refusal(groups, array, wrong, first, problem, self.param.dtype)
            with np.errstate(all="ignore"):
                error = np.abs(back[wrong].astype(np.float64) / array[wrong] - 1)
            found.n_rounded += int(np.count_nonzero(wrong))
            found.max_rel_error = max(found.max_rel_error, float(error.max()))
            where = int(np.argmax(wrong))
            found.first = found.first or (self.param.name, self._index(groups, array, first, where), float(array.flat[where]))
        found.values[self.param.name] = stored.reshape(-1) if isinstance(self.param.group, Flat) else stored

    def _put_multiples(self, found: Derived, groups: Grouping, array: F32, first: int) -> None:
        """Store values as integers and the floats that they are multiples of."""
        coarse = self.form.scheme.param(self.shared)
        assert isinstance(coarse.group, Grid)  # of one row, as the reader checks
        per, (low, high) = coarse.group.cols // groups.run, self.bounds or integer_range(self.param.dtype)
        floats, integers, unsolved = multiples(array, per, coarse.dtype, low, high)
        if unsolved.any():
            problem = f"and the {per - 1} after it are no {low}..{high} times one {coarse.dtype}"
            raise self._refusal(groups, array, np.repeat(unsolved, per, axis=1), first, problem, f"{low}..{high}")
        found.values[coarse.name] = represent(floats, coarse.dtype)[0]
        found.values[self.param.name] = represent(integers, self.param.dtype, self.bounds)[0]
        found.reasons.append(f"{self.role} as {low}..{high} times {coarse.dtype}")

    def _refusal(
        self, groups: Grouping, array: F32, wrong: NDArray[np.bool_], first: int, problem: str, expected: str
    ) -> NotExact:
        where = int(np.argmax(wrong))
        row, group = divmod(where, array.shape[1])
        words = groups.called(self.role, array.flat[where], self.of, first + row * (groups.rows or 1), group)
        index, value = self._index(groups, array, first, where), float(array.flat[where])
        return NotExact(f"{words} {problem}", field=self.param.name, index=index, found=value, expected=expected)

    def _index(self, groups: Grouping, array: F32, first: int, where: int) -> int:
        """Give the flat index in the target's parameter of an element of lines from `first` on."""
        before = first // groups.rows if groups.rows else 0
        return int(before * array.shape[1] + where)

    def _problem(self, value: np.float32) -> str:
        if not self.is_integer:
            return f"is not {self.param.dtype}"
        low, high = self.bounds or integer_range(self.param.dtype)
        return f"is outside {low}..{high}" if np.rint(value) == value else "is no integer"
