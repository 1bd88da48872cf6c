"""AWQ: columns whose inputs are large are made larger before they are rounded, and smaller after, so that they lose less.

A column is multiplied by s = mean|x|^a and its input divided by it. Twenty exponents a, 0 first, are tried on up to `SEEN_ROWS`
rows, and that with the least output error tr(E H E^T) is kept. Then the range of each group is cut, by up to half, where that
makes the error less. For a = 0 the same is done, and of the two the one with the lesser error over all rows stays: it is never
more than without scales.

    carried : 1 / s is stored as `pre_quant_scale`, float32, part of the effective weight, whatever the format
    folded  : `fold` gives weights times s, and 1 / s for whatever makes the input; each product rounds once. With `exact` s are
              powers of two, so that none does, and the model of unrounded weights computes what it did; much less is won then

Source: Lin et al. 2023, arXiv 2306.00978; mit-han-lab/llm-awq: awq/quantize/auto_scale.py, auto_clip.py; the form with weights:
casper-hansen/AutoAWQ: awq/quantize/quantizer.py (_compute_best_scale).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.calibration import Statistics, output_errors
from qformat.errors import UsageError
from qformat.formats.form import Format, matrix, with_input_scale
from qformat.methods.hessian import check_definite
from qformat.methods.method import Encode, Method, Task, check_columns, columns_of, task_of
from qformat.methods.scaling import Scaling, best_cuts, lost, rounded, scaling
from qformat.rules import catalogue, encoding
from qformat.rules.rule import Values
from qformat.rules.soundness import check_finite
from qformat.scheme import Flat
from qformat.threads import spread

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

EXPONENTS = tuple(step / 20 for step in range(20))
SEEN_ROWS = 512  # by which an exponent is chosen
LEAST = 1e-4  # of the largest mean: smaller ones count as that
INPUT_SCALE = "float32"


def awq(name: str, summary: str, by_weights: bool = False) -> Method:
    """Make the method that carries its scales.

    by_weights : divide scales by mean|w|^(1-a), w relative to the largest of its group; no scales at all are tried first
    """
    return Method(name, summary, stored=carried, prepare=partial(prepare, by_weights))


def carried(form: Format, n_cols: int) -> Format:
    """Give the format with a scale for each column beside. Raises UsageError where groups of weights cross rows."""
    check(form, n_cols)
    scaled = with_input_scale(form, INPUT_SCALE)
    name = f"{form.name}_input_scaled"
    return replace(scaled, name=name, scheme=replace(scaled.scheme, name=name))


def prepare(by_weights: bool, task: Task) -> Encode:
    """Search scales and cuts for a tensor; give what encodes rows, `pre_quant_scale` among their parameters.

    Raises UsageError as `carried` does, for statistics of other columns, and as `check_definite` does.
    """
    n_cols = matrix(task.shape)[1]
    check(task.form, n_cols)
    check_columns(task.statistics, n_cols)
    check_definite(task.statistics.hessian)
    tries = [np.ones(n_cols), *(by_both(task) if by_weights else by_inputs(task.statistics))]
    best = tries[int(np.argmin(seen_error(task, tries)))]
    found = [best_cuts(task, scaling(task, scale)) for scale in (tries[0], best)[: 1 + (best is not tries[0])]]
    return partial(encode, task, min(found, key=lambda pair: pair[1])[0])  # of equal ones the first, without scales


def encode(task: Task, how: Scaling, rows: F32, first: int) -> Values:
    """Round rows of a tensor, (n, K) float32, the first of which has this number. Raises UsageError for one not finite."""
    check_finite(rows, first * rows.shape[1], task.shape)
    cuts = None if how.cuts is None else how.cuts[first : first + len(rows)]
    return {**rounded(task, how, rows, cuts), "pre_quant_scale": how.back[None]}


@dataclass(frozen=True, slots=True)
class Folded:
    """Weights that share an input, scaled for it.

    weights  : float32, w * scale, each of its own shape; to be quantized by a rule
    scale    : (K,) float32
    previous : (K,) float32, 1 / scale: what makes the input is to be multiplied by it, channel by channel
    """

    weights: tuple[F32, ...]
    scale: F32
    previous: F32


def fold(
    weights: Sequence[NDArray[Any]], target: str | Format, calibration: Statistics, rule: str | None = None, exact: bool = False
) -> Folded:
    """Find one scale for each column of weights that share an input, to be folded into what makes that input.

    weights     : float32, float16 or bfloat16, [..., K] each, as those of the query, key and value
    target      : that they will be quantized to, by `rule`
    calibration : of their common input
    exact       : only powers of two, whose products are exact in any float type, but where they leave its range

    The sum of tr(E H E^T) over all weights is what gets less; scales stay 1 where none are better over all rows. Nothing is
    cut: a rule that searches does that, if the weights are then quantized by it.

    Raises UsageError as `quantize` does.
    """
    form = encoding.resolve(target) if isinstance(target, str) else target
    tasks = [task_of(weight, form, catalogue.find(form, rule), calibration) for weight in weights]
    for task in tasks:
        check(form, matrix(task.shape)[1])
        check_columns(calibration, matrix(task.shape)[1])
    check_definite(calibration.hessian)
    tries = [np.ones(calibration.n_cols), *by_inputs(calibration)]
    if exact:
        tries = [np.exp2(np.rint(np.log2(scale))) for scale in tries]
    best = tries[int(np.argmin(sum(seen_error(task, tries) for task in tasks)))]
    none, some = (sum(whole_error(task, scale) for task in tasks) for scale in (tries[0], best))
    scale = best if some < none else tries[0]
    narrow = scale.astype(np.float32)
    return Folded(tuple(w.astype(np.float32) * narrow for w in weights), narrow, (1 / scale).astype(np.float32))


def by_inputs(statistics: Statistics) -> list[F64]:
    """Give mean|x|^a of every column, for each exponent but 0."""
    return [_normal(_bounded(statistics.mean_abs) ** a) for a in EXPONENTS if a]


def by_both(task: Task) -> list[F64]:
    """Give mean|x|^a / mean|w|^(1-a) of every column, for each exponent."""
    inputs, weights = _bounded(task.statistics.mean_abs), _bounded(_mean_share(task))
    return [_normal(inputs**a / weights ** (1 - a)) for a in EXPONENTS]


def seen_error(task: Task, tries: Sequence[F64]) -> F64:
    """Give the error of some rows, spread over the tensor, for each choice of scales: (tries,)."""
    step = -(-matrix(task.shape)[0] // SEEN_ROWS) or 1
    first, seen = 0, []
    for tile in task.tiles():
        seen.append(tile[-first % step :: step].copy())  # a view would hold the tile
        first += len(tile)
    rows = np.concatenate(seen)
    losses = spread(lambda how: lost(task, how, rows), (scaling(task, scale) for scale in tries))
    return np.array([output_errors(loss, task.statistics.hessian).sum() for loss in losses])


def whole_error(task: Task, scale: F64) -> float:
    """Give tr(E H E^T) over all rows, nothing cut."""
    how = scaling(task, scale)
    losses = spread(lambda tile: lost(task, how, tile), task.tiles())
    return float(np.concatenate([output_errors(loss, task.statistics.hessian) for loss in losses]).sum())


def check(form: Format, n_cols: int) -> None:
    """Raise UsageError where groups of weights cross rows."""
    if any(isinstance(param.group, Flat) and n_cols % param.group.n_weights for param in form.scheme.params):
        message = f"awq cannot round to '{form.name}': rows of {n_cols} weights are no whole groups"
        raise UsageError(message, field="method", found=form.name)


def _normal(scale: F64) -> F64:
    """Make the least and the largest multiply to 1."""
    near = np.ldexp(scale, -np.frexp(scale.max())[1])  # exact, and then no product leaves float64
    found: F64 = near / np.sqrt(near.max() * near.min())
    return found


def _bounded(means: F64) -> F64:
    """Give means of columns, none less than `LEAST` of the largest; all 1 where all are 0."""
    largest = means.max(initial=0)
    return np.maximum(means, LEAST * largest) if largest > 0 else np.ones_like(means)


def _mean_share(task: Task) -> F64:
    """Give the mean over rows of |w| relative to the largest of its group, or of its row where groups are none of a row."""
    n_rows, n_cols = matrix(task.shape)
    size = max(0, columns_of(task.form.scheme.param("scales").group, n_cols)) or n_cols
    total = np.zeros(n_cols)
    for tile in task.tiles():
        for low in range(0, n_cols, size):
            part = np.abs(tile[:, low : low + size].astype(np.float64))
            largest = part.max(axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):  # weights that are not finite are refused where rows are rounded
                total[low : low + size] += (part / np.where(largest > 0, largest, 1)).sum(axis=0)
    return total / max(1, n_rows)
