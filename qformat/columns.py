"""Products with weights whose stored words run over the rows of the matrix, as GPTQ's and AWQ's do, without turning them.

A line of words holds one column, or a few neighbouring ones, of all rows. Derived from layout, tiling and scheme alone; what
operands are for the rows at hand is worked out, and laid as the kernel's lanes lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qformat.arrays import Part, count_of, read_all
from qformat.evaluate import Operands, as_float32, operand_run
from qformat.fields import numpy_dtype, read_field, read_made, value_dtype
from qformat.layout import CODES, Field
from qformat.readings import packed
from qformat.scheme import Grid, Indexed, Integers, Operand, Ref, Scheme
from qformat.upright import turn_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.kernels.vector.columns import Word
    from qformat.tensor import PackedTensor

    F32 = NDArray[np.float32]
else:
    from qformat.deferred import np

WORD = 4  # bytes
# Rows of activations, at most, and lines that are added up by themselves, at most.
ONE = 4, 16  # where a line is one column: sums are soon added to those before
SEVERAL = 16, 8  # lines may all fall into one set of a first-level cache, which has as many ways


@dataclass(frozen=True, slots=True)
class Columns:
    """What multiplies a tensor line by line of its words.

    part     : its codes
    together : lines that are added up by themselves
    most     : rows of activations, up to which that takes less time than turning its bytes
    """

    tensor: PackedTensor
    part: Part
    word: Word
    together: int
    most: int

    def multiply(self, x: F32, first: int, last: int, out: F32) -> None:
        """Add products with rows [first, last) to an array.

        x   : (1, 2 or a multiple of 4, columns), contiguous
        out : (rows of x, last - first)
        """
        from qformat.kernels.vector.columns import Each, in_order, laid, multiply

        n, per = self.word.together, self.word.n_rows
        low, high = first // n * n, -(-last // n) * n
        n_stored = self.tensor.n_cols // self.word.n_cols * self.word.n_lines
        data = read_all(self.part.source, 0, self.part.source.n_bytes).reshape(n_stored, -1)
        found = []
        for step in self.tensor.scheme.steps:
            index = _index(self.tensor.scheme, step.operand)
            if index is None:
                values, run = self.operand(step.operand, low, high)
                found.append(Each(step.op, laid(values, self.word), run // self.word.n_cols))
            else:
                values, runs = self.runs(step.operand, index, low, high)
                found.append(Each(step.op, laid(values, self.word), 0, runs))
        sums = np.zeros((len(x), high - low), np.float32)
        multiply(self.word, data[:, low // per * WORD : high // per * WORD], found, self.together, x, sums)
        out += in_order(sums, self.word)[:, first - low : last - low]

    def operand(self, operand: Operand, first: int, last: int) -> tuple[F32, int]:
        """Give an operand for rows [first, last): (runs, rows) float32, and the columns of a run."""
        tensor, n_cols = self.tensor, self.tensor.n_cols
        part = next(
            (part for part in tensor.parts if isinstance(operand, Ref) and operand.name in part.form.layout.holds), None
        )
        if isinstance(operand, Ref) and part is not None and not part.swapped:
            turn, layout, group = turn_of(part.form), part.form.layout, tensor.scheme.param(operand.name).group
            field = layout.part(operand.name)
            if turn and turn.width == layout.n_bytes and isinstance(field, Field) and isinstance(group, Grid):
                dtype = numpy_dtype(field.dtype)
                if group.rows == 1 and dtype.itemsize == layout.n_bytes:  # and nothing lies beside it
                    data = read_all(part.source, 0, part.source.n_bytes).view(dtype)
                    stored = data.reshape(-1, part.bound.padded[0])[:, first:last]  # as lanes lie: turning twice takes longer
                    return as_float32(stored, field.dtype), group.cols or n_cols
            if (
                isinstance(group, Grid)
                and group.rows == 1
                and (values := _as_stored(part, operand.name, first, last)) is not None
            ):
                return as_float32(values, tensor.scheme.param(operand.name).dtype), group.cols or n_cols
        values, run = Operands(tensor.scheme, n_cols, tensor.param).operand(operand, first, last)
        return np.broadcast_to(values, (last - first, values.shape[1])).T, min(run, n_cols)

    def runs(self, operand: Operand, index: Indexed, first: int, last: int) -> tuple[F32, NDArray[np.int64]]:
        """Give an operand whose columns' groups are named: (groups, rows) float32, and the number of each column's."""
        assert isinstance(operand, Ref)  # to a parameter of named groups
        tensor = self.tensor
        groups = np.arange(index.n_groups)[tensor.param(index.index).reshape(-1)]  # checked, and counted from the end as well
        stored = as_float32(tensor.param(operand.name, first, last), tensor.scheme.param(operand.name).dtype)
        return stored.T, np.ascontiguousarray(groups, np.int64)


def columns_of(tensor: PackedTensor) -> Columns | None:
    """Find how a tensor is multiplied line by line; None where its words do not lie so, or sums would not be within bounds."""
    part = next((part for part in tensor.parts if CODES in part.form.layout.holds), None)
    alphabet, steps, n_cols = tensor.scheme.alphabet, tensor.scheme.steps, tensor.n_cols
    if part is None or part.swapped or not isinstance(alphabet, Integers) or not steps or tensor.scheme.input_scale:
        return None
    word = word_of(part)
    if word is None or not tensor.n_weights or tensor.n_rows % word.together or n_cols % word.n_cols:
        return None
    plain = [step.operand for step in steps if _index(tensor.scheme, step.operand) is None]
    runs = [min(n_cols, operand_run(tensor.scheme, operand, n_cols)) for operand in plain]
    if any(run % word.n_cols for run in runs):
        return None
    most, lines = SEVERAL if word.n_cols > 1 else ONE
    together = math.gcd(max(1, lines // word.n_lines), *(run // word.n_cols for run in runs if run < n_cols))
    while together % 2 == 0 and not _is_within(together * word.n_cols, n_cols):
        together //= 2
    return Columns(tensor, part, word, together, most) if _is_within(together * word.n_cols, n_cols) else None


def _is_within(n_together: int, n_cols: int) -> bool:
    """Tell whether sums of so many columns, added up then, have no more roundings than a product may."""
    return n_together + n_cols // n_together + 2 <= n_cols // 8 + 8


def _index(scheme: Scheme, operand: Operand) -> Indexed | None:
    """Give how the columns' groups are named, where they are."""
    group = scheme.param(operand.name).group if isinstance(operand, Ref) else None
    return group if isinstance(group, Indexed) else None


def _as_stored(part: Part, name: str, first: int, last: int) -> NDArray[Any] | None:
    """Give a parameter of rows [first, last) as (groups, rows), where blocks of several rows lie so: they need no turning."""
    tiling, layout = part.form.tiling, part.form.layout
    stored, inner = ([axis for axis, _, _ in axes] for axes in (tiling.stored, tiling.inner))
    if layout.n_weights or tiling.word_axis or len(stored) != 2 or len(tiling.logical) != 2:
        return None
    if tiling.logical != ((stored[1], *inner), (stored[0],)) or len(inner) != 1:
        return None
    count, field = count_of(layout, name), layout.part(name)
    low, high = first // count, -(-last // count)
    blocks = part.blocks(stored[1], low, high)
    if layout.made == name:
        found = read_made(blocks, layout)
    else:
        assert field is not None  # the part holds it
        found = np.empty((*blocks.shape[:-2], count), value_dtype(field))
        read_field(blocks, layout, field, found)
    return found.reshape(len(found), -1)[: part.bound.dims[1], first - low * count : last - low * count]


def word_of(part: Part) -> Word | None:
    """Read off a part what its words hold, where they are of one row or of one column; None elsewhere."""
    from qformat.kernels.vector.columns import Word

    turn, layout = turn_of(part.form), part.form.layout
    if turn is None or part.bound.padded != part.bound.dims or layout.codes is None:
        return None
    n_lines, rest = divmod(layout.n_bytes, WORD)
    if rest or turn.width not in (0, WORD) or (n_lines > 1 and not part.form.tiling.word_axis):
        return None
    codes, numbers = packed(0, layout.codes, 1, layout.n_bytes), tuple(range(layout.n_weights))
    nothing = (0,) * layout.n_weights
    return Word(codes, numbers, nothing, n_lines) if turn.width else Word(codes, nothing, numbers)
