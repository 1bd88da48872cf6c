"""Whether and how a packed tensor can be said in another format without changing a value.

Looks at the declarations to find how codes and parameters would have to change, then at every value of the tensor to see
whether they can. It knows no format by name and no file: a source and a target are schemes with parameters in groups.
Which weights share a value is `grouping`'s, what becomes of codes `recoding`'s, how parameters are stored `keeping`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.grouping import Grouping
from qconvert.keeping import Derived, Keeper
from qconvert.recoding import Recoding
from qconvert.relaid import is_kept
from qconvert.represent import represent
from qconvert.tensor_scale import TensorScale
from qformat.affine import Affine, not_whole, read_affine, zero_of
from qformat.errors import NotExact
from qformat.evaluate import F32, as_float32
from qformat.formats import Format
from qformat.layout import CODES, Bits
from qformat.scheme import Integers, Levels, Op, Ref, Scheme, Stored
from qformat.tensor import PackedTensor


class Recast:
    """One tensor on its way to one format: derives the target's arrays for ranges of rows.

    Raises NotExact at once where the declarations leave no way.
    """

    def __init__(self, tensor: PackedTensor, form: Format) -> None:
        """Find the way from the declarations; numbers of whole tensors from the values."""
        self.columns = _scale_of_columns(tensor, form)
        is_scaled = bool(self.columns)
        source, target = _affine(tensor.scheme, is_scaled), _affine(form.scheme, is_scaled)
        zero = source.zero or source.scale  # what a parameter is made of that the source has not
        self.tensor, self.form, self.source = tensor, form, source
        self.scale = Keeper("scale", form, target.scale, source.scale)
        self.zero = Keeper("zero", form, target.zero, zero) if target.zero else None
        self.bias = Keeper("bias", form, target.bias[1], source.bias[1] if source.bias else zero) if target.bias else None
        self.is_subtracted = target.bias is not None and target.bias[0] is Op.SUB
        shared = {keeper.shared for keeper in (self.scale, self.zero, self.bias) if keeper is not None}
        self.groups = Grouping(tensor, form, frozenset(shared.union(self.columns) - {""}))
        self.recoding = Recoding(_alphabet(tensor), form.scheme.alphabet, form.name, bool(self.zero or self.bias))
        self.of_tensor = None
        if self.scale.shared and not self.scale.is_integer:
            self.of_tensor = TensorScale(tensor, self.scale, self.groups, source.scale, self._scale)

    @property
    def together(self) -> int:
        """Rows that begin a group, or all of a tensor's, are this many apart."""
        return self.groups.together if self.of_tensor is None else self.of_tensor.together

    @property
    def is_sure(self) -> bool:
        """Whether parameters that are kept make all values equal: any stored code is the same number there, times one scale."""
        target = self.recoding.target
        if not isinstance(self.recoding.source, Integers) or not isinstance(target, Integers) or self.of_tensor is not None:
            return False
        held = self.tensor.part(CODES).form.layout.part(CODES)  # its bits may hold more than the alphabet has
        fits = isinstance(held, Bits) and target.low <= held.low and held.high <= target.high and not self.recoding.offset
        steps = (*self.tensor.scheme.steps, *self.form.scheme.steps)
        return fits and len(steps) == 2 and all(step.op is Op.MUL and isinstance(step.operand, Ref) for step in steps)

    def is_unchanged(self, first: int, last: int) -> bool:
        """Tell whether rows [first, last) surely mean there what they mean as they are stored, by a look for NaN."""
        if not self.is_sure or not is_kept(self.tensor.scheme, self.form.scheme):
            return False
        low, high = self.groups.lines(first, last)
        return not any(
            np.isnan(self.groups.operands.by_row(param.name, low, high)[0]).any() for param in self.tensor.scheme.params
        )

    def derive(self, first: int, last: int, rounding: bool = False, codes: bool = True) -> Derived:
        """Give the target's codes and parameters for rows [first, last), which begin and, but at the end, end a group.

        rounding : let a scale or bias that the target cannot hold round, and count it
        codes    : whether they are wanted, and looked at

        Raises NotExact with field, index and value where the target cannot hold a code or, unless rounding, a parameter.
        """
        found, groups = Derived({}), self.groups
        low, high = groups.lines(first, last)
        scale, zero, bias = self._read(low, high, found)
        beside = scale
        if self.of_tensor is not None:
            beside = self.of_tensor.put(found, scale, self.recoding.factor, low, high, rounding)
        self.scale.put(found, groups, beside, low, rounding)
        if self.bias is not None:
            self.bias.put(found, groups, self._bias(scale, zero, bias, found), low, rounding)
        elif self.zero is not None:
            offset = np.float32(self.recoding.offset)
            self.zero.put(found, groups, np.full(scale.shape, offset) if zero is None else zero + offset, low)
        subtracted = zero if self.bias is None and self.zero is None else None
        if codes:
            held = self.tensor.codes(slice(first, last))
            by_weight = None if subtracted is None else groups.by_weight(subtracted, held.shape)
            found.values["codes"] = self.recoding.apply(held, by_weight, first * self.tensor.n_cols)
        found.reasons.insert(0, self.recoding.reason(subtracted is not None))
        found.values |= self.columns
        if groups.by_index and groups.index is not None:
            found.values[groups.index.index] = self.tensor.param(groups.index.index)
        return found

    def _read(self, first: int, last: int, found: Derived) -> tuple[F32, F32 | None, F32 | None]:
        """Give scale, zero and bias of the source, for numbers as the target's codes have them, over the target's groups.

        Where the target holds neither zeros nor biases, zeros are whole; where it holds no biases, there are none.
        """
        scale, zero, bias = self._scale(first, last), None, None
        source, groups = self.source, self.groups
        if source.zero is not None:
            zero = groups.read("zero", source.zero, first, last)
            self._check_zero(zero, first)
            zero = zero * np.float32(self.recoding.unit)
        if source.bias is not None:
            op, operand = source.bias
            bias = groups.read("bias", operand, first, last)
            bias = -bias if op is Op.SUB else bias
            if self.bias is None:
                zero, wrong = zero_of(bias, scale)
                if wrong.any():
                    raise groups.refusal("bias", operand, wrong, bias, first, "is no integer multiple of its scale")
                bias = None
                found.reasons.append("bias is -zero * scale for integer zeros")
        return scale, zero, bias

    def _scale(self, first: int, last: int) -> F32:
        with np.errstate(all="ignore"):
            return self.groups.read("scale", self.source.scale, first, last) / np.float32(self.recoding.factor)

    def _check_zero(self, zero: F32, first: int) -> None:
        """Refuse zero points that the target holds as integers alone, or not at all."""
        operand = self.source.zero
        assert operand is not None  # it is what was read
        if self.bias is not None or (self.zero is not None and not self.zero.is_integer):
            return
        wrong = not_whole(zero)
        if wrong.any():
            raise self.groups.refusal("zero", operand, wrong, zero, first, "is no integer")
        if self.zero is None and isinstance(self.recoding.source, Levels) and self.recoding.places.size and zero.any():
            raise self.groups.refusal("zero", operand, zero != 0, zero, first, f"has no place in {self.form.name}")

    def _bias(self, scale: F32, zero: F32 | None, bias: F32 | None, found: Derived) -> F32:
        """Give what the target adds to, or subtracts from, scaled codes."""
        offset = np.float32(self.recoding.offset)
        with np.errstate(all="ignore"):
            if bias is None:
                bias = -((0 if zero is None else zero) + offset) * scale
                found.reasons.append("bias = -zero * scale")
            elif offset:
                bias = bias - offset * scale
                found.reasons.append(f"bias - {offset:g} * scale")
            bias = np.where(bias == 0, np.float32(0), bias)
        return np.float32(0) - bias if self.is_subtracted else bias


def _scale_of_columns(tensor: PackedTensor, form: Format) -> dict[str, NDArray[Any]]:
    """Give the scale of columns as a format keeps it, by its name; nothing where tensor and format have not both one.

    Raises NotExact for an element that its type there cannot hold: it is multiplied last, and none may round.
    """
    own, theirs = tensor.scheme.input_scale, form.scheme.input_scale
    if not own or not theirs:
        return {}
    values = as_float32(tensor.param(own), tensor.scheme.param(own).dtype)
    stored, back = represent(values, form.scheme.param(theirs).dtype)
    wrong = np.flatnonzero((back != values) & ~np.isnan(values))
    if wrong.size:
        at, dtype = int(wrong[0]), form.scheme.param(theirs).dtype
        value = float(values.reshape(-1)[at])
        raise NotExact(f"scale {value} of column {at} is no {dtype}", field=own, index=at, found=value, expected=dtype)
    return {theirs: stored}


def _affine(scheme: Scheme, is_scaled: bool) -> Affine:
    """Read a scheme as zero, scale and bias. Raises NotExact for one that is anything else."""
    found = read_affine(scheme, is_scaled)
    if found is None:
        why = f"scales columns by {scheme.input_scale}" if scheme.input_scale else "is no form of code, scale and zero"
        raise NotExact(f"{scheme.name} {why}", field=scheme.input_scale or "scheme")
    return found


def _alphabet(tensor: PackedTensor) -> Integers | Levels:
    """Give the alphabet of a tensor's codes, with the levels that it stores, where it does."""
    alphabet = tensor.scheme.alphabet
    if not isinstance(alphabet, Stored):
        assert isinstance(alphabet, Integers | Levels)  # others have no form of code, scale and zero
        return alphabet
    table = as_float32(tensor.param(alphabet.table), tensor.scheme.param(alphabet.table).dtype)
    return Levels(alphabet.table, tuple(float(level) for level in table.reshape(-1)))
