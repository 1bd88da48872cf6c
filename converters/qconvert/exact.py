"""Whether and how a packed tensor can be said in another format without changing a value.

Looks at the declarations to find how codes and parameters would have to change, then at every value of the tensor to see
whether they can. It knows no format by name and no file: a source and a target are schemes with parameters in groups.

    value = ((code - zero) * scale) + bias        any of zero, scale, bias may be absent
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.affine import read_affine, whole, zero_of
from qconvert.alphabets import match, numbers_of
from qconvert.represent import represent
from qconvert.second import Second, new_number, read_second, same_number
from qformat.bits import DTYPES, values
from qformat.errors import NotExact
from qformat.evaluate import F32, Operands, common_run
from qformat.formats import Format
from qformat.layout import Bits
from qformat.scheme import Flat, Grid, Indexed, Integers, Op, Ref, Scheme, Table
from qformat.tensor import PackedTensor

Values = dict[str, NDArray[Any]]


@dataclass(slots=True)
class Derived:
    """The target's logical arrays for some rows, and what had to round on the way."""

    values: Values
    n_rounded: int = 0
    max_rel_error: float = 0.0
    first: tuple[str, int, float] | None = None
    reasons: list[str] = field(default_factory=list)


def indexed(scheme: Scheme) -> Indexed | None:
    """Give the groups of a scheme whose columns a parameter names; None where columns lie in runs."""
    return next((param.group for param in scheme.params if isinstance(param.group, Indexed)), None)


class Recast:
    """One tensor on its way to one format: derives the target's arrays for ranges of rows.

    Raises NotExact at once where the declarations leave no way.
    """

    def __init__(self, tensor: PackedTensor, form: Format) -> None:
        source, target = read_affine(tensor.scheme), read_affine(form.scheme)
        if source is None or target is None:
            raise NotExact(f"{tensor.scheme.name} and {form.name} share no form of code, scale and zero", field="scheme")
        zero, scale, bias = target.names()
        second = read_second(form.scheme, target.scale)
        scale = second.group if second else scale
        if not scale or bool(target.zero) != bool(zero) or bool(target.bias) != bool(bias):
            raise NotExact(f"{form.name} has two-level parameters", field="scheme")
        self.tensor, self.form, self.source, self.second = tensor, form, source, second
        self.zero, self.scale, self.bias = zero, scale, bias
        self.is_subtracted = target.bias is not None and target.bias[0] is Op.SUB
        self.index, self.width, scheme = indexed(tensor.scheme), tensor.n_cols, tensor.scheme
        self.by_index = self.index is not None and indexed(form.scheme) == self.index
        if self.by_index and self.index is not None:  # groups meet as they are, whatever their columns
            params = [param for param in scheme.params if param.name != self.index.index]
            by_group = tuple(replace(p, group=Grid(1, 1)) if p.group == self.index else p for p in params)
            self.width, scheme = self.index.n_groups, replace(scheme, params=by_group)
        self.block = self._crossing()
        self.width = self.block or self.width  # of groups that cross rows, each is a line by itself
        self.operands = Operands(scheme, self.width, tensor.param)
        self.heads: dict[str, F32] = {}  # of parameters that all rows share
        self.rows, self.run = self._target_groups()
        self.source_second = read_second(tensor.scheme, source.scale) if second else None
        self.number = self._number(second) if second else np.float32(1)

    def derive(self, first: int, last: int, rounding: bool = False) -> Derived:
        """Give the target's codes and parameters for rows [first, last), which begin and, but at the end, end a group.

        rounding : let a parameter that the target cannot hold round, and count it

        Raises NotExact with field, index and value where the target cannot hold a code or, unless rounding, a parameter.
        """
        codes = self.tensor.codes(slice(first, last))
        if self.block:
            first, last = first * self.tensor.n_cols // self.block, -(-last * self.tensor.n_cols // self.block)
        scale, zero, bias = self._source(first, last)
        self._check_exponents(first, last)
        found = Derived({})
        if bias is not None and not self.bias:
            zero, bias = zero_of(bias, scale), None
            found.reasons.append("bias is -zero * scale for integer zeros")
        moved, zero, factor = self._codes(codes, zero, found)
        found.values["codes"] = moved
        if self.bias:
            if bias is None:
                offset = self._offset()
                with np.errstate(all="ignore"):
                    bias = -((0.0 if zero is None else zero) + np.float32(offset)) * scale
                bias = np.where(bias == 0, np.float32(0), bias)
                found.reasons.append("bias = -zero * scale")
            self._store(self.bias, np.float32(0) - bias if self.is_subtracted else bias, first, found, rounding)
        if self.zero:
            offset = self._offset()
            shifted = np.full(scale.shape, np.float32(offset)) if zero is None else zero + np.float32(offset)
            self._store(self.zero, shifted, first, found, rounding=False)
        if self.second:
            scale = self._beside(scale, self.second, first, last)
            self._store(self.second.tensor, np.full((1, 1), self.number), 0, found, rounding)
            found.reasons.append(f"scale of the tensor {self.number:g}")
        with np.errstate(all="ignore"):
            self._store(self.scale, scale / np.float32(factor), first, found, rounding)
        if self.by_index and self.index is not None:
            found.values[self.index.index] = self.tensor.param(self.index.index)
        return found

    @property
    def together(self) -> int:
        """Rows that begin a group, or all of a tensor's, are this many apart."""
        return self.block // math.gcd(self.block, self.tensor.n_cols) if self.block else self.rows or 1

    def _crossing(self) -> int:
        """Give the size of the target's groups where they cross rows, as those of the source do; 0 where they do not."""
        sizes = {param.group.n_weights for param in self.form.scheme.params if isinstance(param.group, Flat)}
        groups = [param.group for param in self.tensor.scheme.params if not isinstance(param.group, Table)]
        block = sizes.pop() if len(sizes) == 1 else 0
        cross = block and self.tensor.n_cols % block
        return block if cross and all(isinstance(g, Flat) and g.n_weights % block == 0 for g in groups) else 0

    def _number(self, second: Second) -> np.float32:
        """Choose the scale of the whole tensor."""
        if self.source_second:
            return same_number(second, self.source_second, self.tensor)
        dtype = self.form.scheme.param(second.group).dtype
        return new_number(second, dtype, (self._source(*tile)[0] for tile in self.tensor.tiles()))

    def _beside(self, scale: F32, second: Second, first: int, last: int) -> F32:
        """Give the scales of groups beside that of the tensor: the source's own, where it has the two."""
        if self.source_second:
            return self._regroup("scale", *self.operands.operand(Ref(self.source_second.group), first, last), first)
        return second.part_of(scale, self.number)

    def _source(self, first: int, last: int) -> tuple[F32, F32 | None, F32 | None]:
        """Give the source's effective scale, zero and bias over the target's groups, checked equal within each."""
        operands, affine = self.operands, self.source
        scale, run = np.ones((last - first, 1), np.float32), self.width
        for op, operand in affine.scale:
            right, narrow = operands.operand(operand, first, last)
            both = common_run(run, narrow)
            left, right = operands.spread(scale, run, both), operands.spread(right, narrow, both)
            with np.errstate(all="ignore"):
                scale, run = (left * right if op is Op.MUL else left / right), both
        regrouped = self._regroup("scale", scale, run, first)
        zero = None if affine.zero is None else self._regroup("zero", *operands.operand(affine.zero, first, last), first)
        bias = None
        if affine.bias is not None:
            bias = self._regroup("bias", *operands.operand(affine.bias[1], first, last), first)
            bias = -bias if affine.bias[0] is Op.SUB else bias
        return regrouped, zero, bias

    def _regroup(self, name: str, array: F32, run: int, first: int) -> F32:
        """Give one value per target group; refuse groups that hold different ones."""
        both = common_run(run, self.run)
        fine = self.operands.spread(array, run, both)
        starts = np.arange(0, self.width, self.run) // both
        coarse = fine[:, starts]
        back = self.operands.spread(coarse, self.run, both)
        differs = ~((back == fine) | (np.isnan(back) & np.isnan(fine)))
        if differs.any():
            row, column = (int(i) for i in np.argwhere(differs)[0])
            index = (first + row) * self.tensor.n_cols + column * both
            value, by = float(fine[row, column]), "" if self.index is None else self.index.index
            order = f"; columns are grouped by {by}, which {self.form.name} does not hold" if by else ""
            message = f"{name} {value!r} at weight {index} is not that of its group of {self.run}{order}"
            raise NotExact(message, field=by or name, found=value, expected=float(back[row, column]))
        self._check_rows(name, coarse, first)
        return coarse

    def _check_exponents(self, first: int, last: int) -> None:
        """Refuse the exponent byte 255, for which readers have different values."""
        exponents = [p for p in self.tensor.scheme.params if DTYPES[p.dtype].kind == "float" and not DTYPES[p.dtype].mantissa]
        for param in exponents:
            array = self.operands.operand(Ref(param.name), first, last)[0]
            bad = ~np.isfinite(array) | (array == values(param.dtype)[255])
            if bad.any():
                row = first + int(np.argwhere(bad)[0, 0])
                message = f"a scale of row {row} is the byte 255, which readers disagree on, and {self.form.name} cannot hold"
                raise NotExact(message, field=param.name, found=255, expected=254)

    def _check_rows(self, name: str, array: F32, first: int) -> None:
        """Refuse rows of one target group that hold different values."""
        if self.rows == 1:
            return
        heads = self.heads.setdefault(name, array[:1]) if not self.rows else array[:: self.rows]
        of_group = np.repeat(heads, self.rows or len(array), axis=0)[: len(array)]
        differs = ~((of_group == array) | (np.isnan(of_group) & np.isnan(array)))
        if differs.any():
            row, column = (int(i) for i in np.argwhere(differs)[0])
            found, expected = float(array[row, column]), float(of_group[row, column])
            group = f"its group of {self.rows or self.tensor.n_rows} rows"
            raise NotExact(
                f"{name} {found!r} of row {first + row} is not that of {group}", field=name, found=found, expected=expected
            )

    def _codes(self, codes: NDArray[Any], zero: F32 | None, found: Derived) -> tuple[NDArray[Any], F32 | None, float]:
        """Give the target's codes, the zero still to be stored, and by what the alphabets' numbers differ."""
        source, target = self.tensor.scheme.alphabet, self.form.scheme.alphabet
        if isinstance(source, Integers) and isinstance(target, Integers):
            wide = codes.astype(np.int32)
            if self.zero or self.bias:
                offset = self._offset()
                wide += offset
                found.reasons.append(f"code + {offset}" if offset else "codes copied")
            elif zero is not None:
                wide -= self._by_column(whole(zero), codes.shape).astype(np.int32)
                zero = None
                found.reasons.append("code - zero")
            else:
                found.reasons.append("codes copied")
            self._check_range(wide, target)
            return wide.astype(np.int8 if target.low < 0 else np.uint8), zero, 1.0
        if zero is not None or self.zero or self.bias:
            raise NotExact("levels that are no integers have no zero point", field="codes")
        factor, table = match(numbers_of(source), numbers_of(target))
        low = source.low if isinstance(source, Integers) else 0
        moved = table[codes.astype(np.int32) - low]
        if (moved < -(1 << 20)).any():
            where = int(np.argmax(moved.reshape(-1) < -(1 << 20)))
            raise NotExact(f"code {int(codes.reshape(-1)[where])} has no equal level", field="codes", found=where)
        found.reasons.append("levels matched" if factor == 1 else f"levels x {factor:g}")
        return moved.astype(np.int8 if isinstance(target, Integers) and target.low < 0 else np.uint8), None, factor

    def _by_column(self, array: F32, shape: tuple[int, ...]) -> F32:
        """Give each column the value of its group in the target."""
        if self.by_index and self.index is not None:
            return array[:, self.tensor.param(self.index.index).reshape(-1)]
        return np.repeat(array, self.run, axis=1)[:, : self.width].reshape(-1)[: math.prod(shape)].reshape(shape)

    def _check_range(self, codes: NDArray[np.int32], target: Integers) -> None:
        if codes.size == 0 or (int(codes.min()) >= target.low and int(codes.max()) <= target.high):
            return
        where = int(np.argmax((codes < target.low) | (codes > target.high)))
        value = int(codes.reshape(-1)[where])
        raise NotExact(
            f"code {value} at weight {where} of the rows is outside {target.low}..{target.high}",
            field="codes", found=value, expected=f"{target.low}..{target.high}",
        )  # fmt: skip

    def _offset(self) -> int:
        source, target = self.tensor.scheme.alphabet, self.form.scheme.alphabet
        assert isinstance(source, Integers)  # levels were refused before
        assert isinstance(target, Integers)
        return target.low - source.low

    def _store(self, name: str, array: F32, first: int, found: Derived, rounding: bool) -> None:
        """Put a parameter's values into the target's element type."""
        param, array = self.form.scheme.param(name), array[:: self.rows or max(1, len(array))]
        part = next(p.layout.part(name) for p in self.form.parts if name in p.layout.holds)
        bounds = (part.low, part.high) if isinstance(part, Bits) else None
        stored, back = represent(array, param.dtype, bounds)
        wrong = ~(back == array)  # a NaN is never equal: it stays within its own format
        n_wrong = int(np.count_nonzero(wrong))
        if n_wrong:
            where = int(np.argmax(wrong))
            value = float(array.reshape(-1)[where])
            index = (first // self.rows if self.rows else 0) * array.shape[1] + where
            usable = rounding and bool(np.isfinite(back[wrong]).all() and np.isfinite(array[wrong]).all())
            if not usable:
                message = f"{name}[{index}] is {value!r}, which {param.dtype} cannot hold"
                raise NotExact(message, field=name, found=value, expected=param.dtype)
            with np.errstate(all="ignore"):
                error = np.abs(back[wrong].astype(np.float64) / array[wrong] - 1)
            found.n_rounded += n_wrong
            found.max_rel_error = max(found.max_rel_error, float(error.max()))
            found.first = found.first or (name, index, value)
        found.values[name] = stored.reshape(-1) if isinstance(param.group, Flat) else stored

    def _target_groups(self) -> tuple[int, int]:
        """Give the rows (0: all) and columns that share a parameter in the target; refuse what they cannot say."""
        groups = set()
        if self.by_index:
            return 1, 1
        for param in self.form.scheme.params:
            group = param.group
            if self.second and param.name == self.second.tensor:
                continue
            if isinstance(group, Flat) and self.width % group.n_weights == 0:
                groups.add((1, group.n_weights))
            elif isinstance(group, Grid):
                groups.add((1 if self.tensor.n_rows == 1 else group.rows, group.cols or self.tensor.n_cols))
            else:
                raise NotExact(f"groups of {self.form.name} do not lie in rows of {self.tensor.n_cols}", field="group")
        if len(groups) != 1:
            raise NotExact(f"parameters of {self.form.name} have different groups", field="group")
        return groups.pop()
