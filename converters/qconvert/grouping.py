"""A tensor's parameters, read over the groups of another format.

Decides which weights share a parameter there, and gives each such group the one value that its weights have here; groups
that hold different values are refused. Says where in the source an offender is. Knows groups and values, neither codes nor
what becomes of a parameter.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import NotExact
from qformat.evaluate import F32, Operands, common_run
from qformat.formats import Format
from qformat.scheme import Flat, Grid, Group, Indexed, Operand, Param, Scheme, Strided, Table, refs
from qformat.tensor import PackedTensor

Mask = NDArray[np.bool_]


def indexed(scheme: Scheme) -> Indexed | None:
    """Give the groups of a scheme whose columns a parameter names; None where columns lie in runs."""
    return next((param.group for param in scheme.params if isinstance(param.group, Indexed)), None)


class Grouping:
    """One tensor seen in lines and groups of one format.

    A line is a row; where groups cross rows, a group; where a parameter names each column's group, a row of groups.

    rows, run : lines (0: all) and columns of a line that share a parameter in the target
    width     : columns of a line
    by_index  : groups stay as they are, whatever their columns

    Raises NotExact where the target's groups do not lie in lines.
    """

    def __init__(self, tensor: PackedTensor, form: Format, coarse: frozenset[str]) -> None:
        """See a tensor in a format's groups; `coarse` names parameters that many of its groups share."""
        self.tensor, self.name = tensor, form.name
        self.index, self.width, scheme = indexed(tensor.scheme), tensor.n_cols, tensor.scheme
        self.by_index = self.index is not None and indexed(form.scheme) == self.index
        if self.by_index and self.index is not None:
            params = [param for param in scheme.params if param.name != self.index.index]
            by_group = tuple(replace(p, group=Grid(1, 1)) if p.group == self.index else p for p in params)
            self.width, scheme = self.index.n_groups, replace(scheme, params=by_group)
        fine = [param for param in form.scheme.params if param.name not in coarse]
        self.block = self._crossing(fine)
        self.width = self.block or self.width
        self.operands = Operands(scheme, self.width, self._param)
        self.heads: dict[str, F32] = {}  # of parameters that all lines share
        self.rows, self.run = (1, 1) if self.by_index else self._target_groups(fine)

    @property
    def together(self) -> int:
        """Rows that begin a group, or all of a tensor's, are this many apart."""
        return self.block // math.gcd(self.block, self.tensor.n_cols) if self.block else self.rows or 1

    def lines(self, first: int, last: int) -> tuple[int, int]:
        """Give the lines that rows [first, last) are."""
        if not self.block:
            return first, last
        return first * self.tensor.n_cols // self.block, -(-last * self.tensor.n_cols // self.block)

    def read(self, role: str, operand: Operand, first: int, last: int) -> F32:
        """Give an operand's value for every group of lines [first, last).

        role    : "scale", "zero" or "bias", for messages
        returns : (lines, groups of a line)

        Raises NotExact for groups of the target whose weights have different ones.
        """
        array, run = self.operands.operand(operand, first, last)
        return self._agreed_rows(role, operand, self._agreed(role, operand, array, run, first), first)

    def by_weight(self, array: F32, shape: tuple[int, ...]) -> F32:
        """Give each weight of some rows, of this shape, the value of its group."""
        if self.by_index and self.index is not None:
            return array[:, self.tensor.param(self.index.index).reshape(-1)].reshape(shape)
        return np.repeat(array, self.run, axis=1)[:, : self.width].reshape(-1)[: math.prod(shape)].reshape(shape)

    def one_each(self, array: F32) -> F32:
        """Give one line for each of the target's groups of lines."""
        return array[:: self.rows or max(1, len(array))]

    def called(self, role: str, value: object, operand: Operand, line: int, group: int) -> str:
        """Name a value of a group of a line in the source's own terms: "scale 0.5 of group 12"."""
        return f"{role} {value!s} of group {self.place(operand, line, group * self.run)[1]}"

    def refusal(self, role: str, operand: Operand, wrong: Mask, array: F32, first: int, problem: str) -> NotExact:
        """Name the first offender among the source's own values.

        operand : what the values are made of
        wrong   : (lines, groups) which are
        array   : the values, of lines from `first` on
        """
        line, group = (int(n) for n in np.argwhere(wrong)[0])
        param, index = self.place(operand, first + line, group * self.run)
        message = f"{self.called(role, array[line, group], operand, first + line, group)} {problem}"
        return NotExact(message, field=param or role, index=index, found=float(array[line, group]))

    def place(self, operand: Operand, line: int, column: int) -> tuple[str, int]:
        """Say where a group's value comes from: the source's finest parameter in an operand, and the index there."""
        params = [self.tensor.scheme.param(name) for name in refs(operand)]
        shared = [param for param in params if not isinstance(param.group, Table)]
        if not shared:
            return "", 0
        counts = {param.name: math.prod(self._counts(param)) for param in shared}
        finest = max(shared, key=lambda param: (counts[param.name], param.name))
        row, col = divmod(line * self.width + column, self.tensor.n_cols) if self.block else (line, column)
        if self.by_index and self.index is not None:
            return finest.name, line * self.index.n_groups + column if finest.group == self.index else 0
        return finest.name, self._index(finest.group, row, col)

    def _index(self, group: Group, row: int, column: int) -> int:
        """Give the flat index of a weight's parameter."""
        n_cols = self.tensor.n_cols
        if isinstance(group, Grid):
            _, n_groups = group.counts(self.tensor.n_rows, n_cols)
            return (row // group.rows if group.rows else 0) * n_groups + (column // group.cols if group.cols else 0)
        if isinstance(group, Flat):
            return (row * n_cols + column) // group.n_weights
        if isinstance(group, Strided):
            return (row * n_cols + column) % group.counts(self.tensor.n_rows, n_cols)[0]
        assert isinstance(group, Indexed)  # tables are no groups
        return row * group.n_groups + int(self.tensor.param(group.index).reshape(-1)[column])

    def _counts(self, param: Param) -> tuple[int, ...]:
        return param.group.counts(self.tensor.n_rows, self.tensor.n_cols)

    def _param(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Read a parameter; the last of those that cross rows stands in for the rest of a last line that is not full."""
        n_stored = self._counts(self.tensor.scheme.param(name))[0]
        if last is None or last <= n_stored:
            return self.tensor.param(name, first, last)
        found = self.tensor.param(name, first, n_stored)
        return np.concatenate([found, np.repeat(found[-1:], last - n_stored, axis=0)])

    def _crossing(self, fine: list[Param]) -> int:
        """Give the size of the target's groups where they cross rows, as those of the source do; 0 where they do not."""
        sizes = {param.group.n_weights for param in fine if isinstance(param.group, Flat)}
        groups = [param.group for param in self.tensor.scheme.params if not isinstance(param.group, Table)]
        block = sizes.pop() if len(sizes) == 1 else 0
        cross = block and self.tensor.n_cols % block
        parts = [isinstance(g, Flat) and (g.n_weights % block == 0 or block % g.n_weights == 0) for g in groups if block]
        return block if cross and all(parts) else 0

    def _target_groups(self, fine: list[Param]) -> tuple[int, int]:
        """Give the rows (0: all) and columns that share a parameter in the target; refuse what they cannot say."""
        groups = set()
        for group in (param.group for param in fine):
            if isinstance(group, Flat) and self.width % group.n_weights == 0:
                groups.add((1, group.n_weights))
            elif isinstance(group, Grid):
                groups.add((1 if self.tensor.n_rows == 1 else group.rows, group.cols or self.width))
            else:
                raise NotExact(f"groups of {self.name} do not lie in rows of {self.tensor.n_cols}", field="group")
        if len(groups) != 1:
            raise NotExact(f"parameters of {self.name} have different groups", field="group")
        return groups.pop()

    def _agreed(self, role: str, operand: Operand, array: F32, run: int, first: int) -> F32:
        """Give one value per target group of a line; refuse groups that hold different ones."""
        if run % self.run == 0 or run >= self.width:
            return self.operands.spread(array, run, self.run)
        both = common_run(run, self.run)
        fine = self.operands.spread(array, run, both)
        coarse = fine[:, np.arange(0, self.width, self.run) // both]
        back = self.operands.spread(coarse, self.run, both)
        differs = ~((back == fine) | (np.isnan(back) & np.isnan(fine)))
        if differs.any():
            line, at = (int(n) for n in np.argwhere(differs)[0])
            if self.index is not None and not self.by_index:
                raise self._out_of_order(at * both)
            found, expected = fine[line, at], back[line, at]
            param, index = self.place(operand, first + line, at * both)
            place = f"weight {(first + line) * self.width + at * both} (group {index})"
            message = f"{role} {found!s} at {place} is not that of its group of {self.run} in {self.name}, {expected!s}"
            raise NotExact(message, field=param or role, index=index, found=float(found), expected=float(expected))
        return coarse

    def _out_of_order(self, column: int) -> NotExact:
        """Refuse columns that are grouped by an index."""
        assert self.index is not None  # it is what was asked
        name, group = self.index.index, int(self.tensor.param(self.index.index).reshape(-1)[column])
        message = f"{name}[{column}] is {group}: columns are grouped by {name}, which {self.name} does not hold"
        return NotExact(message, field=name, index=column, found=group, expected=column // self.run)

    def _agreed_rows(self, role: str, operand: Operand, array: F32, first: int) -> F32:
        """Give the values of groups; refuse lines of one target group that hold different ones."""
        if self.rows == 1:
            return array
        heads = self.heads.setdefault(role, array[:1]) if not self.rows else array[:: self.rows]
        of_group = np.repeat(heads, self.rows or len(array), axis=0)[: len(array)]
        differs = ~((of_group == array) | (np.isnan(of_group) & np.isnan(array)))
        if differs.any():
            line, at = (int(n) for n in np.argwhere(differs)[0])
            found, expected = array[line, at], of_group[line, at]
            param, index = self.place(operand, first + line, at * self.run)
            group = f"its group of {self.rows or self.tensor.n_rows} rows in {self.name}"
            message = f"{role} {found!s} of row {first + line} is not that of {group}, {expected!s}"
            raise NotExact(message, field=param or role, index=index, found=float(found), expected=float(expected))
        return array
