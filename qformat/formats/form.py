"""A format: which byte arrays a tensor is stored in, and the scheme of its codes.

A format joins layouts, tilings and a scheme. It is still data: the arrays' sizes follow from the tensor's shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from qformat.bits import DTYPES
from qformat.errors import UsageError
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Grid, Integers, Opaque, Param, Scheme
from qformat.tiling import FLAT, ROWS, Bound, Tiling


@dataclass(frozen=True, slots=True)
class PartForm:
    """One stored byte array of a tensor: its role in the file, its blocks and their arrangement."""

    role: str
    layout: Layout
    tiling: Tiling = ROWS

    def dims(self, scheme: Scheme, n_rows: int, n_cols: int, n_bytes: int = 0) -> tuple[int, ...]:
        """Give the logical sizes that the array covers, from those of the matrix; `n_bytes` stands in for unknown blocks."""
        if self.layout.n_weights:
            return (n_rows * n_cols,) if len(self.tiling.logical) == 1 else (n_rows, n_cols)
        if not self.layout.holds:  # one block of bits that no value depends on
            return (self.layout.n_items,)
        if isinstance(scheme.alphabet, Opaque) and "codes" in self.layout.holds:
            return (n_bytes,)
        return scheme.param(self.layout.holds[0]).group.counts(n_rows, n_cols)

    def bind(self, dims: tuple[int, ...]) -> Bound:
        """Fix the sizes of the array."""
        return self.tiling.bind(dims, self.layout.n_items, self.layout.n_bytes)


@dataclass(frozen=True)
class Format:
    """A way to store a tensor.

    name   : catalogue name, lower case with underscores: "mxfp4", "int4_g128", "q4_0"
    scheme : what the codes mean
    parts  : the byte arrays
    rule   : name of the default quantization rule; empty where nothing quantizes to it

    Raises UsageError where a field is declared of another type or range than the scheme says.
    """

    name: str
    scheme: Scheme
    parts: tuple[PartForm, ...]
    rule: str = ""

    def __post_init__(self) -> None:
        params = {param.name: param.dtype for param in self.scheme.params}
        alphabet = self.scheme.alphabet
        codes = (alphabet.low, alphabet.high) if isinstance(alphabet, Integers) else None
        for field in (field for part in self.parts for field in part.layout.parts):
            if isinstance(field, Field) or field.dtype:
                found, expected = field.dtype, params.get(field.holds, field.dtype)
            else:
                found = f"{field.low}..{field.high}"
                expected = f"{codes[0]}..{codes[1]}" if codes and field.holds == "codes" else found
            if found != expected:
                raise UsageError(f"format '{self.name}': '{field.holds}' is stored as {found}, expected {expected}")

    @cached_property
    def bounds(self) -> dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Bound, ...]]:
        """Sizes of the parts that are known to fit, by shape of the tensor and bytes of each: many tensors share theirs."""
        return {}

    @cached_property
    def meaning(self) -> tuple[object, ...]:
        """What is equal for formats that lie in the same byte arrays and mean the same, whatever they are called."""
        scheme = self.scheme
        layouts = [(part.role, part.layout, part.tiling) for part in self.parts]
        arrays = frozenset((role, tiling, of.n_weights, of.n_bytes, of.parts, of.unpacker) for role, of, tiling in layouts)
        return arrays, scheme.alphabet, scheme.params, scheme.steps, scheme.input_scale

    def n_bytes(self, shape: tuple[int, ...]) -> int:
        """Give the stored bytes of a tensor of this shape."""
        return sum(self.part_bytes(shape).values())

    def part_bytes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Give the stored bytes of each part of a tensor of this shape, by role."""
        rows, cols = matrix(shape)
        return {part.role: part.bind(part.dims(self.scheme, rows, cols)).total_bytes for part in self.parts}


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Fold a shape into rows and columns: the contraction axis is last, everything before it is rows."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def packed(
    name: str, bits: int, holds: str, minus: int = 0, signed: bool = False, high_first: bool = False, word: int = 1
) -> Layout:
    """Declare the shortest run of `bits`-wide fields that fills whole words, least significant bits first.

    high_first : the first field lies in the most significant bits of its byte instead
    word       : bytes of a word
    """
    n = 8 * word // math.gcd(bits, 8 * word)
    plane = Plane(0, bits, f"i={n} -> ~i" if high_first else "", word=word)
    field = Bits(holds, (plane,), n, minus=minus, signed=signed, holds=holds)
    return Layout(name, n if holds == "codes" else 0, n * bits // 8, (field,))


def scalar(dtype: str, n_bytes: int, holds: str) -> Layout:
    """Declare one whole value by itself: a parameter array of its own, or a dense weight."""
    return Layout(dtype, int(holds == "codes"), n_bytes, (Field(holds, 0, dtype, holds=holds),))


def parameter(param: Param, n_bytes: int) -> PartForm:
    """Declare an array of whole values for a parameter."""
    two_axes = len(param.group.counts(1, 1)) == 2
    return PartForm(param.name, scalar(param.dtype, n_bytes, param.name), ROWS if two_axes else FLAT)


def with_input_scale(form: Format, dtype: str) -> Format:
    """Give a format with one scale for each column beside, `pre_quant_scale` of this type, multiplied last.

    Whatever the format stores stays as it is. Raises UsageError where it has an input scale already.
    """
    scheme = form.scheme
    if scheme.input_scale:
        raise UsageError(f"format '{form.name}' has an input scale already: '{scheme.input_scale}'", field=scheme.input_scale)
    scale = Param("pre_quant_scale", dtype, Grid(0, 1))
    scaled = replace(scheme, params=(*scheme.params, scale), input_scale=scale.name)
    return replace(form, scheme=scaled, parts=(*form.parts, parameter(scale, DTYPES[dtype].bits // 8)))
