"""What a method of quantizing is: more than a rule for a group, it looks at what the inputs of a weight are like.

Must not know which methods there are. A method rounds by a rule of the target, so that all of them make the same kind of codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.calibration import Statistics
from qformat.errors import UsageError
from qformat.formats.form import Format, matrix
from qformat.rules.rule import Rule, Values
from qformat.rules.soundness import check_dtype
from qformat.scheme import Flat, Grid, Group

F32 = NDArray[np.float32]

SEEN_WEIGHTS = 1 << 18  # that a search looks at together; results depend on it in their last bits, so it is fixed
ROUNDED_WEIGHTS = 1 << 21  # that are rounded together: enough that what a column costs by itself is little

# Of K x K float64, for the inputs of K columns: what units in work hold; and what is held while a tensor is made ready, by the
# units before as well: the Hessian, a copy in order, LAPACK's own, the factor.
KEPT_MATRICES, HELD_MATRICES = 1, 5

# From rows of the tensor, (n, K) float32, and the number of the first, to codes and parameters of these rows. A pure function,
# by any thread: the same rows give the same bits, whatever rows come with them.
Encode = Callable[[F32, int], Values]


@dataclass(frozen=True, slots=True)
class Task:
    """One tensor to be quantized.

    form       : the target
    rule       : by which groups are rounded
    shape      : of the tensor, [..., K]
    tiles      : gives the rows of the whole tensor, (n, K) float32 at a time, in order; each call anew
    statistics : of its inputs
    """

    form: Format
    rule: Rule
    shape: tuple[int, ...]
    tiles: Callable[[], Iterable[F32]]
    statistics: Statistics


def as_it_is(form: Format, n_cols: int) -> Format:
    """Give the format itself: what a method stores that takes every format and adds nothing."""
    return form


@dataclass(frozen=True, slots=True)
class Method:
    """A way to quantize a tensor.

    name     : as it is asked for and recorded
    summary  : one line
    rule     : the rule by which it always rounds; empty: the one that is asked for, else the target's own
    weighs   : whether an error counts by the diagonal of the Hessian, where the rule has a use for importance
    stored   : from the target and the columns of a tensor to the format that it is stored in; raises UsageError for a target
               that the method cannot make
    prepare  : what it does before any row is encoded; None for a rule alone, for which calibration may be missing
    damping  : share of the mean diagonal of the Hessian that is added to it; None where that is no setting of the method
    damped   : gives the same method with another damping
    """

    name: str
    summary: str
    rule: str = ""
    weighs: bool = False
    stored: Callable[[Format, int], Format] = as_it_is
    prepare: Callable[[Task], Encode] | None = None
    damping: float | None = None
    damped: Callable[[float], Method] | None = None


def columns_of(group: Group, n_cols: int) -> int:
    """Give the neighbours in a row that share a parameter; 0 where the whole tensor shares one, -1 otherwise."""
    if isinstance(group, Grid) and group.rows == 1:
        return group.cols or n_cols
    if isinstance(group, Flat) and n_cols % group.n_weights == 0:
        return group.n_weights
    return 0 if group == Grid(0, 0) else -1


def check_columns(statistics: Statistics, n_cols: int) -> None:
    """Raise UsageError for what are not the statistics of one tensor, and for those of another width than the tensor."""
    if not isinstance(statistics, Statistics):
        message = f'{type(statistics).__name__}, expected the statistics of one tensor, as calibration["w"]'
        raise UsageError(message, field="calibration", found=type(statistics).__name__, expected="Statistics")
    if statistics.n_cols != n_cols:
        message = f"calibration of {statistics.n_cols} columns, the weight has {n_cols}"
        raise UsageError(message, field="calibration", found=statistics.n_cols, expected=n_cols)


def task_of(array: NDArray[Any], form: Format, rule: Rule, statistics: Statistics) -> Task:
    """Make the task of an array, [..., K]. Raises UsageError for one that is no float32, float16 or bfloat16."""
    check_dtype(array)
    shape = tuple(int(n) for n in array.shape) or (1,)
    n_rows, n_cols = matrix(shape)
    rows = array.reshape(n_rows, n_cols)

    def tiles() -> Iterator[F32]:
        return (rows[part].astype(np.float32) for part in row_tiles(n_rows, n_cols, SEEN_WEIGHTS))

    return Task(form, rule, shape, tiles, statistics)


def row_tiles(n_rows: int, n_cols: int, n_weights: int) -> Iterator[slice]:
    """Cut rows into ranges of about as many weights, one at least."""
    step = max(1, n_weights // max(1, n_cols))
    return (slice(first, min(first + step, n_rows)) for first in range(0, max(1, n_rows), step))
