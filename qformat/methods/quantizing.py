"""Quantizing an array by a method: who chooses the rule, which rows go together, where their codes are joined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.calibration import Statistics
from qformat.errors import UsageError
from qformat.formats.form import Format, matrix
from qformat.methods.catalogue import find
from qformat.methods.indexed import neighbours
from qformat.methods.method import ROUNDED_WEIGHTS, Method, check_columns, row_tiles, task_of
from qformat.rules import encoding
from qformat.rules.catalogue import find as find_rule
from qformat.rules.reused import arrays_of, rewritten
from qformat.rules.rule import Rule
from qformat.rules.soundness import check_parameters
from qformat.scheme import Grid, Table
from qformat.tensor import PackedTensor, from_values
from qformat.threads import spread

F32 = NDArray[np.float32]


def quantize(
    array: NDArray[Any],
    target: str | Format,
    rule: str | None = None,
    importance: F32 | None = None,
    method: str | Method = "rtn",
    calibration: Statistics | None = None,
    out: PackedTensor | None = None,
) -> PackedTensor:
    """Quantize float weights to a packed format.

    array      : float32, float16 or bfloat16, any shape [..., K], the contraction axis last
    target     : format, or its name: "mxfp4", "nf4", "int4_g128", "uint4_g64", "int8_tensor", "gguf:q4_k"
    rule       : one of `rules(format)`; the format's default if absent
    importance : float32 [K], how much an error in each column counts; [E, K] for a stack of E matrices; for methods "rtn" and
                 "mse"; what a rule has no use for is ignored
    method     : "rtn", "mse", "gptq", "gptq-ordered", "awq", "awq-weights", or one made with other settings
    calibration: what is known of the inputs; methods from "gptq" on need it, "mse" counts errors by it and then takes no
                 importance, "rtn" takes none
    out        : what this gave for weights of the same shape, by the same target and method: its memory is written anew, and it
                 is worth nothing where this raises an error; saves the system clearing new memory
    returns    : tensor of the same shape, the rule's name in `rule`; by "awq" in the format with a `pre_quant_scale` beside

    Raises UsageError for an unknown target, rule or method, another dtype, columns that do not fill the target's blocks,
    importance or calibration of another width, calibration that is not of one tensor, a method without the calibration it
    needs, with what it has no use for or that the target is not for, a Hessian that is not positive definite, an `out` of
    another shape or format, and a weight that is NaN or infinite; NotExact for weights too large for the parameters of the
    target, at their limit or beyond, but for NVFP4, whose rule cuts at 2688.

    >>> quantize(np.array([[0.5, -1.2, 3.7, -0.3, 2.1]], np.float32), "int4_channel", "symmetric-full").codes().tolist()
    [[1, -3, 7, -1, 5]]
    """
    form = encoding.resolve(target) if isinstance(target, str) else target
    how = find(method) if isinstance(method, str) else method
    chosen = rule_of(how, form, rule)
    if how.prepare is None:
        if calibration is not None:
            if not how.weighs:
                raise UsageError(f"method {how.name} has no use for calibration", field="calibration")
            if importance is not None:
                raise UsageError(f"method {how.name}: calibration and importance, expected one of both", field="calibration")
            check_columns(calibration, array.shape[-1] if array.ndim else 1)
            importance = calibration.importance
        return encoding.quantize(array, form, chosen.name, importance, must_hold=True, out=out)
    if calibration is None:
        raise UsageError(f"method {how.name} needs calibration, none was given", field="calibration")
    if importance is not None:
        raise UsageError(f"method {how.name} takes calibration, not importance", field="importance")
    n_cols = array.shape[-1] if array.ndim else 1
    given = None if out is None else arrays_of(out, how.stored(form, n_cols), array)
    return rewritten(_by_rows(array, form, chosen, how, calibration), given)


def rule_of(method: Method, form: Format, name: str | None = None) -> Rule:
    """Find the rule by which a method rounds to a format.

    name : as it was asked for; None: the method's, else the format's default

    Raises UsageError for a rule that the format has not, or that the method does not round by.
    """
    check_rule(method, name)
    return find_rule(replace(form, scheme=neighbours(form.scheme)), name or method.rule or None)


def check_rule(method: Method, name: str | None) -> None:
    """Raise UsageError for a rule that a method does not round by, whatever the format."""
    if method.rule and name not in (None, method.rule):
        message = f"method {method.name} rounds by rule '{method.rule}', not by '{name}'"
        raise UsageError(message, field="rule", found=name, expected=method.rule)


def _by_rows(array: NDArray[Any], form: Format, rule: Rule, how: Method, calibration: Statistics) -> PackedTensor:
    assert how.prepare is not None  # who calls has looked
    task = task_of(array, form, rule, calibration)
    n_rows, n_cols = matrix(task.shape)
    rows, stored = array.reshape(n_rows, n_cols), how.stored(form, n_cols)
    encode = how.prepare(task)

    def encode_tile(part: slice) -> dict[str, NDArray[Any]]:
        return encode(rows[part].astype(np.float32), part.start)

    made = list(spread(encode_tile, row_tiles(n_rows, n_cols, ROUNDED_WEIGHTS)))
    values = {"codes": np.concatenate([tile["codes"] for tile in made]).reshape(array.shape)}
    for param in stored.scheme.params:
        is_shared = isinstance(param.group, Table) or (isinstance(param.group, Grid) and param.group.rows == 0)
        each = [tile[param.name] for tile in made]
        values[param.name] = each[0] if is_shared else np.concatenate(each)
    packed = from_values(stored, tuple(map(int, array.shape)), values, array.dtype.name, rule.name)
    return check_parameters(packed, stored, rule.limited)
