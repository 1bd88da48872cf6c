"""What a checkpoint would cost in several formats: bits, error and size, compared before anything is written.

Plans as `quantizing` does, quantizes ranges of rows and throws them away once they are measured. Must not know how a plan is
carried out, nor how the comparison is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert import opening
from qconvert.calibrated import held_by_hessian, hessian_of, knows_none
from qconvert.calibration import Calibration, open_calibration
from qconvert.cutting import MAX_MEMORY, row_ranges
from qconvert.items import Item
from qconvert.naming import OWN, as_wanted
from qconvert.quantizing import check_measuring, plan_quantize
from qconvert.requantize import Requantizer
from qconvert.targets import find_mixed
from qconvert.verdict import REFUSED
from qconvert.wish import Wish
from qformat.arrays import Memory
from qformat.errors import about
from qformat.fold import narrower
from qformat.model import Model
from qformat.rules import ErrorReport, Sums, measure, rules
from qformat.tensor import assemble, from_values
from qformat.threads import spread

# One scale for a tensor, for a row, for a group; then tables of levels, and what runtimes read.
TARGETS = (
    *("qfmt:int8-tensor", "qfmt:int8-channel", "qfmt:int8-g128", "qfmt:int4-tensor", "qfmt:int4-channel"),
    *("qfmt:int4-g128", "qfmt:int4-g64", "qfmt:int4-g32", "qfmt:uint4-g64", "qfmt:nf4", "qfmt:mxfp4"),
    *("gguf:nvfp4", "gguf:q8_0", "gguf:q6_k", "gguf:q5_k", "gguf:q5_1", "gguf:q5_0", "gguf:q4_k", "gguf:q4_1"),
    *("gguf:q4_0", "gguf:iq4_nl", "gguf:q3_k", "gguf:q2_k"),
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a checkpoint comes to in one target.

    target      : in target spelling
    rule        : by which its tensors are quantized; several, joined by commas, in a mix
    error       : over the weights of all quantized tensors; its bits per weight are theirs as well; None where there is none
    worst       : the quantized tensor of the least signal-to-noise ratio; empty where there is none
    worst_error : its error
    n_quantized : tensors that are quantized
    n_known     : those of them whose inputs calibration tells
    unfit       : names of those that stay as they are because the format cannot take them
    n_bytes     : of all tensors, headers and padding aside
    """

    target: str
    rule: str
    error: ErrorReport | None
    worst: str
    worst_error: ErrorReport | None
    n_quantized: int
    n_known: int
    unfit: tuple[str, ...]
    n_bytes: int


def usual(rule: str | None) -> tuple[str, ...]:
    """Give the targets that are compared where none is named: those that have the rule."""
    if rule is None:
        return TARGETS
    return tuple(name for name in TARGETS if (form := find_mixed(name)[0].wanted) is not None and rule in rules(form))


def survey(
    src: str | Path,
    targets: Sequence[str] = (),
    rule: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_memory: int = MAX_MEMORY,
    progress: Progress = lambda what, done, total: None,
    assume: Sequence[str] = (),
    shapes: opening.Shapes = opening.NONE,
    calibration: str | Path | None = None,
) -> list[Cost]:
    """Measure what quantizing the float matrices of a checkpoint to each of several targets would cost; writes nothing.

    targets          : as of `quantize`: packed types and mixes of types; the usual ones that have the rule if empty
    rule             : how scales and codes are chosen; each format's default if absent
    include, exclude : globs of tensor names
    calibration      : file of what is known of inputs, by which errors of outputs are measured too; nothing is chosen by it
    returns          : one cost for each target, in their order

    Raises UsageError for targets, rules and globs as `quantize` does, FileError for an unsound source, and both for
    calibration that is unsound, of other columns, or of none of the tensors.
    """
    wishes = []
    for word in targets or usual(rule):
        target, mix = find_mixed(word)
        wishes.append(Wish(target, mix, rule, include, exclude))
    with (
        nullcontext() if calibration is None else open_calibration(calibration) as known,
        opening.open(src, True, assume, shapes) as model,
    ):
        model.verify()
        found = []
        for done, wish in enumerate(wishes):
            progress("compare", done, len(wishes))
            found.append(cost_of(model, wish, max_memory, known))
        progress("compare", len(wishes), len(wishes))
    errors = [cost.error for cost in found if cost.error is not None]
    if known is not None and errors and all(error.output_sqnr_db is None for error in errors):
        raise knows_none(known)
    return found


def cost_of(model: Model, wish: Wish, max_memory: int = MAX_MEMORY, calibration: Calibration | None = None) -> Cost:
    """Measure one target. Raises UsageError as `quantize` does, with the tensor's name, Hessians beyond the memory included."""
    made = plan_quantize(as_wanted(model, wish.target, names=OWN), wish)
    check_measuring(made, calibration, max_memory)
    total, n_bytes, errors = Sums(), 0, dict[str, ErrorReport]()
    for item in made.items:
        if item.rule:
            with about(model.path, item.name):
                sums = measured(item, max_memory, made.view.names_of(item.name), calibration)
            errors[item.name] = sums.report(item.n_bytes * 8 / max(1, item.tensor.n_weights))
            total += sums
            n_bytes += item.n_bytes
    unfit = [item for item in made.items if item.verdict.verdict == REFUSED]
    worst = min(errors, key=lambda name: errors[name].sqnr_db, default="")
    return Cost(
        wish.target.name,
        ", ".join(dict.fromkeys(item.rule for item in made.items if item.rule)),
        total.report(n_bytes * 8 / max(1, total.n_weights)) if errors else None,
        worst,
        errors.get(worst),
        len(errors),
        sum(error.output_sqnr_db is not None for error in errors.values()),
        tuple(item.name for item in unfit),
        made.n_bytes - sum(item.n_bytes - item.tensor.n_bytes for item in unfit),
    )


def measured(
    item: Item, max_memory: int = MAX_MEMORY, names: Sequence[str] = (), calibration: Calibration | None = None
) -> Sums:
    """Quantize a tensor of a plan, some rows at a time by all threads, and sum up its error.

    names : by which its inputs may be known
    """
    n_held = held_by_hessian(names, calibration, item.tensor)
    hessian = hessian_of(names, calibration, item.tensor)
    source = item.tensor if hessian is not None else narrower(item.tensor, item.form)
    work = partial(_measured_rows, Requantizer(source, item.form, item.rule, item.importance), hessian)
    ranges = (rows for unit in row_ranges(source, item.form, max_memory - n_held) for rows in unit)
    with closing(spread(work, ranges)) as sums:
        return reduce(add, sums, Sums())


def _measured_rows(by: Requantizer, hessian: NDArray[np.float64] | None, rows: tuple[int, int]) -> Sums:
    shape = (rows[1] - rows[0], by.tensor.n_cols)
    if by.fused is None:
        made = from_values(by.form, shape, by.values(*rows))
    else:
        parts: dict[str, Any] = {role: Memory(data) for role, data in by.parts(*rows).items()}
        made = assemble(by.form, shape, parts)
    return measure(by.tensor.dequantize(rows=slice(*rows)), made.dequantize(), hessian)
