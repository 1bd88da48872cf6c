"""What a user asked for where tensors are quantized, as data. Must not know models, nor what becomes of any tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qconvert.calibration import Calibration
from qconvert.imatrix import Imatrix
from qconvert.mixes import Mix
from qconvert.targets import Target
from qformat.errors import UsageError
from qformat.formats import Format
from qformat.methods import RTN, Method, find
from qformat.methods.quantizing import check_rule


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user asked for.

    target             : container, and the one format of a pure target
    mix                : in place of one format
    rule               : by which all is quantized; each format's default if absent
    overrides          : globs of tensor names and the format of what they match; the first that matches counts
    imatrix            : importances
    method             : that chooses codes with more than a rule
    calibration        : what is known of inputs
    allow_uncalibrated : whether tensors of which nothing is known are rounded by the rule alone
    """

    target: Target
    mix: Mix | None = None
    rule: str | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    overrides: Sequence[tuple[str, Format]] = ()
    imatrix: Imatrix | None = None
    method: Method = RTN
    calibration: Calibration | None = None
    allow_uncalibrated: bool = False


def check_method(
    method: str,
    rule: str | None,
    has_calibration: bool,
    has_imatrix: bool,
    allow_uncalibrated: bool,
    damping: float | None = None,
) -> Method:
    """Find a method and see that what is given goes with it.

    Raises UsageError for an unknown method, a rule that is not its own, calibration, importance or a damping that it has no use
    for, and where it cannot be without calibration.
    """
    found = find(method, damping)
    check_rule(found, rule)
    if found.prepare is not None and not has_calibration:
        raise UsageError(f"method {method} needs a file of calibration", field="calibration")
    if has_calibration and found.prepare is None and not found.weighs:
        raise UsageError(f"method {method} has no use for calibration", field="calibration")
    if has_calibration and has_imatrix:
        raise UsageError("a file of calibration and one of importance, expected one of both", field="calibration")
    if has_imatrix and found.prepare is not None:
        raise UsageError(f"method {method} has no use for importance, only for calibration", field="importance")
    if allow_uncalibrated and not has_calibration:
        raise UsageError("tensors may go without calibration, but no file of calibration is given", field="calibration")
    return found
