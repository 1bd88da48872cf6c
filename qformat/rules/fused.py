"""Rules in one pass: where a rule says itself as a coding and a tensor is whole groups, a kernel writes the bytes at once.

Decides for which formats and widths that is so, and which address belongs to which weight. The rule's own function defines the
result, and serves wherever this does not reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import lcm, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat import decode
from qformat.coding import SOURCES, Coding, Integer, Kept, Rounded
from qformat.fields import numpy_dtype, unpacker_of
from qformat.formats.form import Format, PartForm
from qformat.kernels.cpu import has_vectors
from qformat.kernels.vector.encode import encode, encodes
from qformat.kernels.vector.groups import MOST, Job, Place
from qformat.layout import CODES, Field, Layout
from qformat.readings import digits, packed
from qformat.rules.rule import Rule, Values
from qformat.scheme import Flat, Grid, Group, Integers, Scheme
from qformat.tensor import pack_part
from qformat.tiling import FLAT, ROWS
from qformat.units import LEAST, Packed, Places, Trits

BYTE = 8  # bits
FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class Target:
    """An array that a kernel writes: the bytes of a part, by its role, or the values of a parameter, by its name."""

    name: str
    is_part: bool


@dataclass(frozen=True, slots=True)
class Fused:
    """A kernel, and the arrays that it writes.

    group  : weights of a group
    codes  : where the codes go
    params : where the parameters go that the rule keeps, in its order
    """

    form: Format
    job: Job
    group: int
    codes: Target
    params: tuple[Target, ...]

    @property
    def n_least(self) -> int:
        """Weights that can be encoded by themselves: whole groups, whole units."""
        return lcm(self.group, self.job.n_weights)

    def room(self, shape: tuple[int, ...], given: Mapping[str, NDArray[np.uint8]] | None = None) -> dict[Target, NDArray[Any]]:
        """Allocate the arrays of a tensor, but for those of parts that are given, by role."""
        found: dict[Target, NDArray[Any]] = {}
        sizes = self.form.part_bytes(shape)
        for part in self.form.parts:
            target = Target(part.role, is_part=True)
            if target in (self.codes, *self.params):
                found[target] = np.empty(sizes[part.role], np.uint8) if given is None else given[part.role]
                if any(not field.holds for field in part.layout.parts):
                    found[target][:] = 0
        for target in (self.codes, *self.params):
            if target.name == CODES and not target.is_part:
                found[target] = np.empty(prod(shape), np.int8 if self.job.codes.low < 0 else np.uint8)
            elif not target.is_part:
                dtype = numpy_dtype(self.form.scheme.param(target.name).dtype)
                found[target] = np.empty(-(-prod(shape) // self.group), dtype)
        return found

    def encode(self, weights: NDArray[Any], first: int, arrays: Mapping[Target, NDArray[Any]]) -> float:
        """Encode weights that lie one after the other.

        weights : of the job's element type, C order, a multiple of `n_least`
        first   : number of the first in the tensor, likewise
        arrays  : of `room`
        returns : as `kernels.vector.encode.encode` does
        """
        starts = [arrays[self.codes].ctypes.data + first // self.job.n_weights * self.job.n_bytes]
        for target, place in zip(self.params, self.job.places, strict=True):
            starts.append(arrays[target].ctypes.data + first // self.group // place.count * place.n_bytes)
        return encode(self.job, weights, self.group, tuple(starts))

    def values(self, shape: tuple[int, ...], arrays: Mapping[Target, NDArray[Any]]) -> Values:
        """Give those arrays that hold codes or parameters by themselves, as logical ones."""
        counts = self.form.scheme.param("scales").group.counts(prod(shape[:-1]), shape[-1])
        apart = {target.name: array for target, array in arrays.items() if not target.is_part}
        return {name: array.reshape(shape if name == CODES else counts) for name, array in apart.items()}

    def parts(
        self,
        shape: tuple[int, ...],
        arrays: Mapping[Target, NDArray[Any]],
        given: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> dict[str, NDArray[np.uint8]]:
        """Give the stored bytes of every part; values that lie by themselves are packed now, to arrays as in `room`."""
        found, values = dict[str, NDArray[np.uint8]](), self.values(shape, arrays)
        for part in self.form.parts:
            written = arrays.get(Target(part.role, is_part=True))
            found[part.role] = pack_part(self.form, part, shape, values) if written is None else written
            if given is not None and written is None:
                given[part.role][:] = found[part.role]
                found[part.role] = given[part.role]
        return found


@lru_cache(maxsize=256)
def fuse(form: Format, rule: Rule, n_cols: int, dtype: str, in_place: bool, is_whole: bool = False) -> Fused | None:
    """Find the kernel of a rule for rows of so many columns; None where there is none.

    dtype    : element type of the weights
    in_place : write the stored bytes of parts; else a byte for each code, and parameters by themselves
    is_whole : the tensor is one such row
    """
    scheme = form.scheme
    if rule.coded is None or dtype not in SOURCES or not has_vectors() or not encodes(coding := rule.coded(scheme)):
        return None
    group = _group_size(scheme.param("scales").group, n_cols, is_whole)
    if not group or group % (LEAST // 2) or not _fits(coding, scheme):
        return None
    part = next(part for part in form.parts if CODES in part.layout.holds)
    block = part.layout.n_weights if in_place else 1
    n_weights = lcm(block, LEAST)
    if group % n_weights and n_weights % group:
        n_weights = lcm(n_weights, group)
    is_flat = isinstance(scheme.param("scales").group, Flat)
    if n_weights > MOST or (group > MOST and group % n_weights) or n_cols % (block if is_flat else lcm(group, n_weights)):
        return None
    codes: Packed | Trits = _apart(scheme, n_weights)
    n_bytes = n_weights
    if in_place:
        stored = _stored(part.layout, n_weights // block) if part.tiling in (ROWS, FLAT) else None
        if stored is None:
            return None
        codes, n_bytes = stored, n_weights // block * part.layout.n_bytes
    targets, places = [], []
    for kept in coding.kept:
        held = next(part for part in form.parts if kept.name in part.layout.holds)
        place = _place(held, kept.name, group) if in_place else None
        if in_place and place is None and held is part:
            return None
        width = numpy_dtype(scheme.param(kept.name).dtype).itemsize
        targets.append(Target(held.role if place else kept.name, place is not None))
        places.append(place or Place(0, width))
    job = Job(coding, dtype, group if group <= MOST else 0, n_weights, codes, n_bytes, tuple(places))
    return Fused(form, job, group, Target(part.role if in_place else CODES, in_place), tuple(targets))


def _group_size(group: Group, n_cols: int, is_whole: bool) -> int:
    """Give the weights of a group; 0 where groups are no runs of weights in rows."""
    if isinstance(group, Flat):
        return group.n_weights
    return (group.cols or n_cols) if isinstance(group, Grid) and (group.rows == 1 or (is_whole and group.rows == 0)) else 0


def _fits(coding: Coding, scheme: Scheme) -> bool:
    """Tell whether a coding keeps all parameters, for one group, as the types that they are declared of."""
    params = {param.name: param for param in scheme.params}
    if {kept.name for kept in coding.kept} != set(params) or len({param.group for param in scheme.params}) != 1:
        return False
    return all(_is_kept_as(kept, params[kept.name].dtype) for kept in coding.kept)


def _is_kept_as(kept: Kept, dtype: str) -> bool:
    if isinstance(kept.stored, Rounded):
        return dtype == kept.stored.dtype and dtype in FLOATS
    return dtype in ("int8", "uint8") if isinstance(kept.stored, Integer) else numpy_dtype(dtype).itemsize == 1


def _stored(layout: Layout, n_blocks: int) -> Packed | Trits | None:
    """Place codes as blocks hold them; None where these are no planes of a byte at most, nor digits."""
    if layout.codes is not None:
        return packed(0, layout.codes, n_blocks, layout.n_bytes) if layout.codes.width <= BYTE else None
    how = unpacker_of(layout).how if layout.unpacker else None
    return digits(0, layout, how, n_blocks) if isinstance(how, decode.Trits) else None


def _apart(scheme: Scheme, n_weights: int) -> Packed:
    """Place codes in a byte each."""
    signed = isinstance(scheme.alphabet, Integers) and scheme.alphabet.low < 0
    return Packed(0, (Places(BYTE, 0, tuple(range(0, BYTE * n_weights, BYTE))),), BYTE, signed)


def _place(part: PartForm, name: str, group: int) -> Place | None:
    """Place a parameter where it is stored; None where that is in no whole bytes, one value for each group in turn."""
    layout, field = part.layout, part.layout.part(name)
    if not isinstance(field, Field) or part.tiling not in (ROWS, FLAT):
        return None
    count = layout.n_weights // group if layout.n_weights else 1
    whole = layout.n_weights == count * group if layout.n_weights else len(layout.parts) == 1
    return Place(field.at, layout.n_bytes, count) if whole and field.count == count else None
