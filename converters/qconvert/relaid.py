"""Whether a tensor's codes and parameters mean in another format what they mean in their own, as they are stored.

Where they do, and the values were found to be exact there, its bytes are laid out anew and nothing is derived. Looks at
declarations alone. How bytes are laid out is `qformat.relaying`'s.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from qconvert.alphabets import match, numbers_of
from qformat.affine import read_affine
from qformat.bits import DTYPES, values
from qformat.formats import Format
from qformat.relaying import Relay, relay_of
from qformat.scheme import Integers, Levels, Op, Ref, Scheme, Step
from qformat.tensor import PackedTensor

BYTE = 8


def relaid(tensor: PackedTensor, form: Format) -> Relay | None:
    """Give what lays a tensor out in a format that holds it exactly; None where something must be derived for that."""
    return relay_of(tensor, form) if is_kept(tensor.scheme, form.scheme) else None


@lru_cache(maxsize=256)
def is_kept(source: Scheme, target: Scheme) -> bool:
    """Tell whether steps and groups are the same, and so every code and parameter that both can hold."""
    if source.steps != target.steps or source.input_scale or target.input_scale or read_affine(target) is None:
        return False
    theirs = {param.name: param for param in target.params}
    if theirs.keys() != {param.name for param in source.params}:
        return False
    factor = _factor(source, target)
    if factor is None or any(param.group != theirs[param.name].group for param in source.params):
        return False
    scale = next((step.operand.name for step in target.steps if step.op is Op.MUL and isinstance(step.operand, Ref)), "")
    return all(
        _is_same(param.dtype, theirs[param.name].dtype, factor if param.name == scale else 1.0) for param in source.params
    )


def _factor(source: Scheme, target: Scheme) -> float | None:
    """Give what numbers of the same codes are multiplied with, and scales divided by; None where codes change."""
    one, other = source.alphabet, target.alphabet
    if isinstance(one, Integers) and isinstance(other, Integers):
        only_scaled = all(step.op is Op.MUL for step in target.steps)
        return 1.0 if only_scaled or one.low == other.low else None
    if not isinstance(one, Levels) or not isinstance(other, Levels):
        return None
    factor, places = match(numbers_of(one), numbers_of(other))
    stays = np.array_equal(places, np.arange(places.size))
    return factor if stays and (factor == 1 or target.steps == (Step(Op.MUL, Ref(target.params[0].name)),)) else None


def _is_same(source: str, target: str, factor: float) -> bool:
    """Tell whether stored elements of one type, divided by a factor, are elements of another with the same bits."""
    if source == target:
        return factor == 1
    if DTYPES[source].bits != BYTE or DTYPES[target].bits != BYTE or "float" not in (DTYPES[source].kind, DTYPES[target].kind):
        return False
    one, other = (np.array(values(dtype), np.float64) for dtype in (source, target))
    return bool(((one / factor == other) | ~np.isfinite(one) | ~np.isfinite(other)).all())
