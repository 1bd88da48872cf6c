"""Rounding a tensor whose columns are scaled first, the ranges of its groups cut: the error that remains, and the best cuts.

Must not know where scales come from. Errors are those of decoded values, so that whatever storing rounds counts too. Threads
round and decode; the products with the whole Hessian are made by one, of the same rows each time, so that a search that is
made again ends alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qformat.calibration import finite_errors, output_errors
from qformat.formats.form import matrix
from qformat.kernels.subtract import subtract_product
from qformat.methods.method import Task, columns_of
from qformat.rules import encoding
from qformat.rules.groups import Extremes
from qformat.rules.rule import Values
from qformat.tensor import from_values
from qformat.threads import spread

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Numbers = NDArray[np.uint8]

CUTS = tuple(1 - step / 20 for step in range(10))  # of a group's largest magnitude; the first cuts nothing


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a tensor is rounded.

    scale : (K,) float32 that columns are multiplied by
    back  : (K,) float32 that decoded columns are multiplied by
    state : extremes of the whole scaled tensor, where one scale covers it
    cuts  : (rows, groups) which of `CUTS` limits each group; None for no limits
    """

    scale: F32
    back: F32
    state: Extremes | None
    cuts: Numbers | None = None


def scaling(task: Task, scale: F64) -> Scaling:
    """Round scales to float32, and find what the format has to know of the whole scaled tensor."""
    narrow = scale.astype(np.float32)
    state = encoding.prepare(task.form, (_scaled(tile, narrow) for tile in task.tiles()))
    return Scaling(narrow, (1 / scale).astype(np.float32), state)


def rounded(task: Task, how: Scaling, rows: F32, cuts: Numbers | None) -> Values:
    """Encode rows of a tensor times their scales, cut where there are cuts, those of these rows."""
    scaled = _scaled(rows, how.scale)
    if cuts is not None:
        for group, part in enumerate(_groups(task)):
            most = np.abs(scaled[:, part]).max(axis=1) * np.array(CUTS, np.float32)[cuts[:, group]]
            np.clip(scaled[:, part], -most[:, None], most[:, None], out=scaled[:, part])
    return encoding.encode(scaled, task.form, task.rule.name, how.state)


def lost(task: Task, how: Scaling, rows: F32, cuts: Numbers | None = None) -> F64:
    """Give rows less what is stored for them."""
    stored = from_values(task.form, rows.shape, rounded(task, how, rows, cuts))
    with np.errstate(all="ignore"):  # what a scale beyond its type decodes to is a loss like any other
        return rows.astype(np.float64) - stored.dequantize() * how.back


def best_cuts(task: Task, how: Scaling) -> tuple[Scaling, float]:
    """Cut each group of a tensor so that its own part of the error is least, and give tr(E H E^T) as well.

    A row whose whole error would not get less is left uncut, and so is a tensor whose parameters are of different groups.
    """
    hessian, cuts, errors = task.statistics.hessian, list[Numbers](), list[F64]()
    for best, uncut, cut in spread(lambda tile: _cut_rows(task, how, tile), task.tiles()):
        before, after = output_errors(uncut, hessian), output_errors(cut, hessian)
        is_better = after < before
        cuts.append(np.where(is_better[:, None], best, np.uint8(0)))
        errors.append(np.where(is_better, after, before))
    error = float(np.concatenate(errors).sum())
    return (replace(how, cuts=np.concatenate(cuts)) if _groups(task) else how), error


def _scaled(rows: F32, scale: F32) -> F32:
    """Multiply columns; what leaves float32 becomes its largest number, and loses what it loses."""
    with np.errstate(over="ignore"):
        found = rows * scale
    if not np.isinf(found).any():
        return found
    most = np.finfo(np.float32).max
    return np.where(np.isinf(rows), rows, np.clip(found, -most, most))


def _cut_rows(task: Task, how: Scaling, rows: F32) -> tuple[Numbers, F64, F64]:
    """Give the best cut of each group of some rows by its own part of the error, and what rows lose without and with them."""
    parts, uncut = _groups(task), lost(task, how, rows)
    best = np.zeros((len(rows), len(parts)), np.uint8)
    if not parts:
        return best, uncut, uncut
    least = np.full(best.shape, np.inf)
    blocks = [np.ascontiguousarray(task.statistics.hessian[part, part]) for part in parts]
    for number in range(len(CUTS)):
        loss = lost(task, how, rows, np.full(best.shape, number, np.uint8)) if number else uncut
        for group, part in enumerate(parts):
            found = _group_errors(loss[:, part], blocks[group])
            is_less = found < least[:, group]
            best[is_less, group], least[is_less, group] = number, found[is_less]
    return best, uncut, lost(task, how, rows, best)


def _groups(task: Task) -> Sequence[slice]:
    """Give the columns of each group, where all parameters are of such groups; else none."""
    n_cols = matrix(task.shape)[1]
    sizes = {columns_of(param.group, n_cols) for param in task.form.scheme.params}
    size = sizes.pop() if len(sizes) == 1 else 0
    return [slice(low, min(low + size, n_cols)) for low in range(0, n_cols, size)] if size > 0 else []


def _group_errors(loss: F64, hessian: F64) -> F64:
    """Give e H e^T of each row e, by the thread that asks."""
    products = np.zeros(loss.shape)
    subtract_product(products, np.ascontiguousarray(loss.T), hessian, 0, 0)
    with np.errstate(all="ignore"):
        return finite_errors(-(products * loss).sum(axis=1))
