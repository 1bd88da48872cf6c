"""What codes mean: alphabet, parameters with their groups, and the order of evaluation.

A scheme knows nothing of bytes. It names the parameters that a weight's value depends on, says over which weights each is
shared, and lists the operations from code to value. Every operation is one float32 operation rounded to nearest even,
never fused, so that a value is defined to the bit whoever computes it. Code that needs to know what a scheme can do looks
at these declarations; nothing looks at its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from qformat.bits import DTYPES, values
from qformat.errors import UsageError


class Op(Enum):
    """A float32 operation; `SUB` and `DIV` take the operand on the right."""

    MUL = "mul"
    ADD = "add"
    SUB = "sub"
    DIV = "div"


@dataclass(frozen=True, slots=True)
class Grid:
    """Groups of `rows` x `cols` neighbouring weights, the last of each axis possibly short; 0: the whole axis."""

    rows: int
    cols: int

    def counts(self, n_rows: int, n_cols: int) -> tuple[int, ...]:
        """Give the shape of the parameter array for a matrix."""
        return (_groups(n_rows, self.rows), _groups(n_cols, self.cols))


@dataclass(frozen=True, slots=True)
class Flat:
    """Groups of `n_weights` over the flattened tensor, crossing rows (bitsandbytes)."""

    n_weights: int

    def counts(self, n_rows: int, n_cols: int) -> tuple[int, ...]:
        """Give the shape of the parameter array for a matrix."""
        return (_groups(n_rows * n_cols, self.n_weights),)


@dataclass(frozen=True, slots=True)
class Strided:
    """Groups of `n_weights` that lie a whole number of groups apart in the flattened tensor (HQQ, axis 0)."""

    n_weights: int

    def counts(self, n_rows: int, n_cols: int) -> tuple[int, ...]:
        """Give the shape of the parameter array for a matrix."""
        return (_groups(n_rows * n_cols, self.n_weights),)


@dataclass(frozen=True, slots=True)
class Indexed:
    """Groups per row whose member columns the parameter `index` names, `n_groups` of them (GPTQ act-order)."""

    n_groups: int
    index: str

    def counts(self, n_rows: int, n_cols: int) -> tuple[int, ...]:
        """Give the shape of the parameter array for a matrix."""
        return (n_rows, self.n_groups)


@dataclass(frozen=True, slots=True)
class Table:
    """A parameter that is not shared over weights but looked up: `n_entries` values (a stored codebook)."""

    n_entries: int

    def counts(self, n_rows: int, n_cols: int) -> tuple[int, ...]:
        """Give the shape of the parameter array for a matrix."""
        return (self.n_entries,)


Group = Grid | Flat | Strided | Indexed | Table


@dataclass(frozen=True, slots=True)
class Param:
    """A stored parameter: its element type (of the value, however it is packed) and the weights that share one."""

    name: str
    dtype: str
    group: Group


@dataclass(frozen=True, slots=True)
class Const:
    """A constant of the format, given as a float32 value."""

    value: float


@dataclass(frozen=True, slots=True)
class Ref:
    """A parameter's value."""

    name: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """The entry of `table` that the parameter `index` names."""

    table: str
    index: str


@dataclass(frozen=True, slots=True)
class Apply:
    """One float32 operation on two operands that do not depend on the code."""

    op: Op
    left: Operand
    right: Operand


Operand = Const | Ref | Lookup | Apply


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on the running value of a weight."""

    op: Op
    operand: Operand


@dataclass(frozen=True, slots=True)
class Integers:
    """Codes that stand for themselves: the integers from `low` to `high`."""

    low: int
    high: int

    @property
    def are_bytes(self) -> bool:
        """Whether a byte holds every code, a signed one where any is negative."""
        return self.low >= -128 and self.high <= (127 if self.low < 0 else 255)


@dataclass(frozen=True, slots=True)
class Levels:
    """Codes 0, 1, ... that stand for the listed float32 values."""

    name: str
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        one_nan = tuple(math.nan if math.isnan(level) else level for level in self.levels)
        object.__setattr__(self, "levels", one_nan)  # so that alphabets with NaN can be equal


@dataclass(frozen=True, slots=True)
class Stored:
    """Codes that are indices into a parameter of the tensor itself, its codebook."""

    table: str


@dataclass(frozen=True, slots=True)
class Plain:
    """Codes that are the weights: a dense array of this element type."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """Codes that nothing here understands: blocks of a type that is known by its name alone."""

    name: str


Alphabet = Integers | Levels | Stored | Plain | Opaque


@dataclass(frozen=True, slots=True)
class Scheme:
    """What the codes of a tensor mean.

    name        : for people and messages; no code depends on it
    alphabet    : what a code stands for before the first step
    params      : stored parameters
    steps       : operations from the alphabet's value to the weight, in order
    input_scale : a parameter with one value per column, multiplied last; part of the effective weight, or empty
    """

    name: str
    alphabet: Alphabet
    params: tuple[Param, ...] = ()
    steps: tuple[Step, ...] = ()
    input_scale: str = ""

    def __post_init__(self) -> None:
        names = {param.name for param in self.params}
        used = {name for step in self.steps for name in refs(step.operand)}
        used |= {self.input_scale} - {""}
        used |= {self.alphabet.table} if isinstance(self.alphabet, Stored) else set()
        used |= {param.group.index for param in self.params if isinstance(param.group, Indexed)}
        if used != names or len(names) != len(self.params):
            raise UsageError(f"scheme '{self.name}': steps use {sorted(used)}, parameters are {sorted(names)}")
        for param in self.params:
            if param.dtype not in DTYPES:
                raise UsageError(f"scheme '{self.name}': '{param.name}' has unknown element type '{param.dtype}'")

    def param(self, name: str) -> Param:
        """Find a parameter by name. Raises UsageError where there is none."""
        for param in self.params:
            if param.name == name:
                return param
        raise UsageError(f"scheme '{self.name}' has no parameter '{name}', only {[p.name for p in self.params]}")

    @property
    def is_dense(self) -> bool:
        """Whether the codes are the weights themselves."""
        return isinstance(self.alphabet, Plain)


def refs(operand: Operand) -> set[str]:
    """Name the parameters that an operand depends on."""
    if isinstance(operand, Apply):
        return refs(operand.left) | refs(operand.right)
    if isinstance(operand, Lookup):
        return {operand.table, operand.index}
    return {operand.name} if isinstance(operand, Ref) else set()


def levels(dtype: str, times: int = 1) -> Levels:
    """Make the alphabet of a small float type, each value multiplied by `times`."""
    return Levels(dtype, tuple(value * times for value in values(dtype)))


def _groups(n: int, size: int) -> int:
    return 1 if size == 0 else -(-n // size)
