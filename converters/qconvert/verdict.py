"""The verdict on one tensor: decided by its values, before anything is written.

Five verdicts, from a copy of bytes to a refusal. A verdict is a fact about a tensor and a format; what is then done about
it is decided by `conversion`.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from qconvert.cutting import LEAST_MEMORY, UNIT_WEIGHTS, WORK_BYTES
from qconvert.digest import canonical, plain_values
from qconvert.exact import Recast
from qconvert.keeping import Derived
from qformat.bits import DTYPES
from qformat.errors import NotExact, UsageError
from qformat.fold import narrower
from qformat.formats import Format
from qformat.scheme import Opaque, Plain
from qformat.tensor import PackedTensor, format_of, from_values
from qformat.threads import spread

SAME_BYTES = "same-bytes"
EXACT = "exact"
ROUNDED = "rounded"
REQUANTIZE = "requantize"
REFUSED = "refused"
NO_EXPONENT = 255
SURE_WEIGHTS = 1 << 21  # of a piece of which parameters alone are read, a byte or less for each weight
WORK_MEMORY = LEAST_MEMORY * 3 // 4  # for all threads together, whatever is allowed: judging has no use for more
ORDER = (SAME_BYTES, EXACT, ROUNDED, REQUANTIZE, REFUSED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a format can do for a tensor.

    verdict       : one of `ORDER`
    reason        : how the values are kept, or why they cannot be
    field         : parameter at fault: of the target where it cannot hold a value, else of the source; "codes" or "value"
    index         : flat index of the first offender within that parameter, or of the weight for a code or value
    value         : its value
    n_rounded     : parameters (or dense weights) that had to round
    max_rel_error : largest relative error among them
    """

    verdict: str
    reason: str
    field: str | None = None
    index: int | None = None
    value: float | None = None
    n_rounded: int = 0
    max_rel_error: float = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether every value is kept."""
        return self.verdict in (SAME_BYTES, EXACT)


def judge(tensor: PackedTensor, form: Format) -> Verdict:
    """Decide what a format can do for a tensor, short of quantizing it anew, by looking at every value.

    returns: same-bytes, exact, rounded, or refused with the first offender
    """
    if same_parts(tensor, form):
        if not any(part.swapped for part in tensor.parts):
            return Verdict(SAME_BYTES, "blocks copied")
        if not isinstance(form.scheme.alphabet, Opaque):
            return Verdict(EXACT, "blocks copied, byte order changed")
        return Verdict(REFUSED, f"the words of a {form.name} block are not known, so their byte order stays", field="scheme")
    if isinstance(form.scheme.alphabet, Plain):
        return _judge_dense(narrower(tensor), form.scheme.alphabet.dtype)
    if isinstance(tensor.scheme.alphabet, Plain | Opaque) or isinstance(form.scheme.alphabet, Opaque):
        name = tensor.scheme.alphabet.name if isinstance(tensor.scheme.alphabet, Opaque) else tensor.scheme.name
        return Verdict(REFUSED, f"{name} has no codes that {form.name} could hold", field="scheme")
    if tensor.n_cols % row_multiple(form):
        found = f"rows of {tensor.n_cols} weights, expected a multiple of {row_multiple(form)} ({form.name} block)"
        return Verdict(REFUSED, found, field="shape", value=float(tensor.n_cols))
    try:
        return disputed_exponent(tensor) or _judge_codes(narrower(tensor, form), form)
    except NotExact as err:
        value = float(err.found) if isinstance(err.found, int | float) else None
        return Verdict(REFUSED, err.message, err.field, err.index, value)


def same_parts(tensor: PackedTensor, form: Format) -> bool:
    """Tell whether a tensor already lies in a format's byte arrays, meaning the same, in whatever byte order."""
    return format_of(tensor).meaning == form.meaning


def disputed_exponent(tensor: PackedTensor) -> Verdict | None:
    """Refuse a tensor that holds the exponent byte 255, on which readers disagree; None where it does not."""
    for param in tensor.scheme.params:
        if DTYPES[param.dtype].kind == "float" and not DTYPES[param.dtype].mantissa:
            wrong = tensor.param(param.name).view(np.uint8) == NO_EXPONENT
            if wrong.any():
                where = int(np.argmax(wrong))
                reason = f"{param.name}[{where}] is the byte 255, which readers disagree on: it stays in its own dialect"
                return Verdict(REFUSED, reason, param.name, where, float(NO_EXPONENT))
    return None


def row_multiple(form: Format) -> int:
    """Give what the contraction axis must be a multiple of: the block, where parameters lie inside blocks."""
    blocks = [part.layout.n_weights for part in form.parts if len(part.layout.holds) > 1]
    return max(blocks, default=1)


def _judge_codes(tensor: PackedTensor, form: Format) -> Verdict:
    """Derive every row, and compare the decodes until something had to round."""
    recast = Recast(tensor, form)
    n_rounded, worst, offender, reasons = 0, 0.0, None, dict[str, None]()
    n_weights, n_each = (SURE_WEIGHTS, 1) if recast.is_sure else (UNIT_WEIGHTS // 2, WORK_BYTES)
    tiles = tensor.tiles(n_weights=n_weights, together=recast.together)
    n_held = max(n_weights, tensor.n_cols) * n_each
    with closing(spread(partial(_look, recast), tiles, cost=lambda tile: n_held, most=WORK_MEMORY)) as looked:
        for derived, wrong in looked:
            reasons.update(dict.fromkeys(derived.reasons))
            n_rounded += derived.n_rounded
            worst = max(worst, derived.max_rel_error)
            offender = offender or derived.first
            if wrong is not None and not n_rounded:
                raise wrong
    reason = ", ".join(reasons) or "no weights"
    if n_rounded == 0:
        return Verdict(EXACT, reason)
    assert offender is not None  # the first of the n_rounded
    return Verdict(ROUNDED, f"{reason}; {offender[0]} rounds", *offender, n_rounded, worst)


def _look(recast: Recast, tile: tuple[int, int]) -> tuple[Derived, NotExact | None]:
    """Derive some rows, and compare their decodes where nothing had to round and it is not sure what they are.

    returns: what was derived, its values aside, and the first weight that differs
    """
    tensor, form, wrong = recast.tensor, recast.form, None
    if tile[0] and recast.is_unchanged(*tile):
        return Derived({}), None  # as the rows before, which say how values are kept
    derived = recast.derive(*tile, rounding=True, codes=not recast.is_sure)
    if not recast.is_sure:
        made = _packed(tensor, form, *tile, derived.values)
        if not derived.n_rounded:
            try:
                _check_values(tensor, form, made, *tile)
            except NotExact as err:
                wrong = err
    derived.values = {}
    return derived, wrong


def _packed(tensor: PackedTensor, form: Format, first: int, last: int, values: dict[str, np.ndarray]) -> PackedTensor:
    """Pack what was derived for some rows. Raises NotExact that names a value that the layout has no bits for."""
    try:
        return from_values(form, (last - first, tensor.n_cols), values)
    except NotExact as err:
        for param in (param for param in form.scheme.params if param.name == err.field):
            before = math.prod(param.group.counts(first, tensor.n_cols)) if first else 0
            err.index = before + int(np.argmax(values[param.name].reshape(-1) == err.found))
        raise


def _check_values(tensor: PackedTensor, form: Format, made: PackedTensor, first: int, last: int) -> None:
    """Decode some rows, and what was packed of them, and compare every bit."""
    mine, theirs = tensor.dequantize(rows=slice(first, last)), made.dequantize().reshape(last - first, tensor.n_cols)
    if np.array_equal(mine.view(np.uint32), theirs.view(np.uint32)):
        return
    mine, theirs = canonical(mine), canonical(theirs)
    differs = mine.view(np.uint32) != theirs.view(np.uint32)
    if differs.any():
        where = int(np.argmax(differs))
        value = float(mine.reshape(-1)[where])
        index = first * tensor.n_cols + where
        message = f"weight {index} is {value!r}, in {form.name} it would be {float(theirs.reshape(-1)[where])!r}"
        raise NotExact(message, field="value", index=index, found=value)


def _judge_dense(tensor: PackedTensor, dtype: str) -> Verdict:
    """Compare the decode with itself in a dense element type."""
    alphabet = tensor.scheme.alphabet
    n_rounded, worst, offender = 0, 0.0, None
    try:
        for first, last in tensor.tiles():
            exact = canonical(plain_values(tensor, slice(first, last)))
            with np.errstate(all="ignore"):
                held = canonical(tensor.dequantize(dtype, slice(first, last)).astype(np.float32))
            wrong = exact.view(np.uint32) != held.view(np.uint32)
            if wrong.any():
                where = int(np.argmax(wrong))
                offender = offender or ("values", first * tensor.n_cols + where, float(exact.reshape(-1)[where]))
                n_rounded += int(np.count_nonzero(wrong))
                with np.errstate(all="ignore"):
                    error = np.abs(held[wrong].astype(np.float64) / exact[wrong] - 1)
                worst = max(worst, float(np.nan_to_num(error, posinf=np.inf).max()))
    except (NotExact, UsageError) as err:
        return Verdict(REFUSED, err.message, field="scheme")
    if offender is None:
        return Verdict(EXACT, "widened" if isinstance(alphabet, Plain) else f"decoded to {dtype}")
    if worst == np.inf or not np.isfinite(worst):
        return Verdict(REFUSED, f"{dtype} cannot hold {offender[2]!r}", *offender)
    return Verdict(ROUNDED, f"values round to {dtype}", *offender, n_rounded, worst)
