"""What a conversion will do: for every tensor the format it takes and the verdict, before anything is written.

Decides among a target's formats by looking at the values. Writes nothing, and never turns packed weights into dense ones
unless the target names a dense type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from qconvert.dialects import ggml
from qconvert.dialects.dialect import Written
from qconvert.items import Item, Plan
from qconvert.naming import NO_RUNTIME
from qconvert.said import said_next
from qconvert.targets import WIDER, Target
from qconvert.verdict import (
    EXACT,
    REFUSED,
    REQUANTIZE,
    ROUNDED,
    SAME_BYTES,
    Verdict,
    disputed_exponent,
    judge,
    row_multiple,
    same_parts,
)
from qconvert.views import View
from qformat.bits import DTYPES
from qformat.errors import NotExact, UsageError, about, show
from qformat.fold import narrower
from qformat.formats import Format
from qformat.formats.dense import dense
from qformat.lines import line_bytes
from qformat.rows import rearrange
from qformat.scheme import Opaque, Plain
from qformat.tensor import PackedTensor, format_of

# Gives the verdict on a tensor in a format.
Judge = Callable[[PackedTensor, Format], Verdict]
MIN_MATRIX_RANK = 2
BIAS = ("_bias", ".bias")
NO_CONFIG = "the source has no config.json: what is written says how weights are packed, and nothing else of the model"


def make_plan(view: View, target: Target, progress: Callable[[int], None] | None = None, allow: str = "exact") -> Plan:
    """Decide what becomes of every tensor.

    view     : the model, by the names that its tensors are to have
    progress : told the stored bytes of each tensor once it is decided
    allow    : the worst verdict that will be let pass: where that is "requantize", what no format holds is quantized anew
    """
    items, model = [], view.model
    for name, tensor in model.items():
        with about(model.path, name):
            item = settle(name, tensor, target, model.packed_by.get(name, ""))
            if item.verdict.verdict == REFUSED and allow == REQUANTIZE and can_requantize(item):
                item = housed(requantized(item), target)
            items.append(traced(item, view))
        if progress is not None:
            progress(tensor.n_bytes)
    return Plan(target, tuple(items), view, *said_next(view, items))


def settle(name: str, tensor: PackedTensor, target: Target, dialect: str = "", ask: Judge = judge) -> Item:
    """Choose the format of one tensor, judge it, and see that the target has a place for it.

    dialect : that the tensor was read in, where it is known
    ask     : gives the verdict on a format
    """
    is_named = target.dialect is not None and target.dialect.name  # else each tensor stays in its own
    if is_named and not tensor.n_weights and not tensor.scheme.is_dense:
        reason = f"shape {list(tensor.shape)} holds no weights, expected at least one"
        refused = Verdict(REFUSED, reason, field="shape")
        return Item(name, tensor, format_of(tensor), refused, target.container, unheld=target.name)
    return housed(kept_apart(decide(name, tensor, target, ask), dialect, target), target)


def traced(item: Item, view: View) -> Item:
    """Say where an item's tensor comes from: what was done to it counts in its verdict."""
    home = "safetensors" if view.model.container == "folder" else view.model.container
    item, origin = replace(item, home=home), view.origins.get(item.name)
    if origin is None:
        return item
    verdict = item.verdict
    loss = origin.loss() if verdict.is_exact else None
    if loss is not None:
        verdict = loss
    elif origin.how:
        level = EXACT if verdict.verdict == SAME_BYTES else verdict.verdict
        verdict = replace(verdict, verdict=level, reason=f"{origin.how}; {verdict.reason}")
    return replace(item, verdict=verdict, origin=origin)


def kept_apart(item: Item, dialect: str, target: Target) -> Item:
    """Refuse what means the same by the same bytes in another dialect, and yet is read differently.

    dialect : that the tensor was read in, where it is known; a `.qfmt` knows the name of its format alone, which tells it
    """
    there = "" if target.dialect is None else target.dialect.name
    if item.verdict.verdict != SAME_BYTES or not there:
        return item
    if dialect == there or (not dialect and format_of(item.tensor).name == item.form.name):
        return item
    verdict = disputed_exponent(item.tensor)
    return item if verdict is None else replace(item, verdict=verdict)


def housed(item: Item, target: Target) -> Item:
    """Refuse what a dialect has a format for, but no arrays: a stack, another name than its weights have."""
    if target.dialect is None or item.form.scheme.is_dense or item.verdict.verdict == REFUSED:
        return item
    try:
        target.dialect.unbind(Written(item.name, item.form, item.tensor, target.kind))
    except (NotExact, UsageError) as err:
        return replace(item, verdict=Verdict(REFUSED, err.message, field=err.field))
    return item


def is_chosen(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Tell whether globs choose a tensor by one of its names; without any, every tensor is."""
    return (not include or any(matches(names, glob) for glob in include)) and not any(matches(names, glob) for glob in exclude)


def matches(names: Sequence[str], glob: str) -> bool:
    """Tell whether a glob covers one of the names."""
    return any(fnmatchcase(name, glob) for name in names)


def is_float_matrix(name: str, tensor: PackedTensor) -> bool:
    """Tell whether a tensor is a dense float matrix, or a stack of them, but no stack of biases: what quantizing is for."""
    alphabet = tensor.scheme.alphabet
    is_float = isinstance(alphabet, Plain) and DTYPES[alphabet.dtype].kind == "float"
    return is_float and len(tensor.shape) >= MIN_MATRIX_RANK and not name.endswith(BIAS)


def decide(name: str, tensor: PackedTensor, target: Target, ask: Judge = judge) -> Item:
    """Choose the format of one tensor and judge it."""
    stored = format_of(tensor)
    takes_wanted = not stored.scheme.is_dense or is_float_matrix(name, tensor)
    has_type = target.wanted is not None and target.container == "gguf" and ggml.type_of(stored) == ggml.type_of(target.wanted)
    keeps = has_type or (target.keeps and target.is_dense and stored.scheme.is_dense)
    if target.wanted is not None and takes_wanted and not keeps:
        forms = ggml.fitted(target.wanted, tensor) if target.container == "gguf" else (target.wanted,)
        item = _first(_judged(name, tensor, form, target, ask) for form in forms)
        return requantized(item) if item.verdict.verdict == REFUSED and can_requantize(item) else item
    if (own := held(target, stored, tensor)) is not None:
        return _judged(name, tensor, own, target, ask)
    if stored.scheme.is_dense:
        return _widen(name, tensor, target, ask)
    return _smallest(name, tensor, target, ask)


def held(target: Target, form: Format, tensor: PackedTensor) -> Format | None:
    """Give a tensor's format as a target that holds it as it is calls it; None where it does not hold it."""
    if target.container == "gguf":
        return None if ggml.type_of(form) is None else form
    if target.dialect is not None and not form.scheme.is_dense:
        return next((known for known in target.forms(tensor) if form.meaning == known.meaning), None)
    return form if (form.scheme.name in target.dense if form.scheme.is_dense else target.container == "qfmt") else None


def _judged(name: str, tensor: PackedTensor, form: Format, target: Target, ask: Judge) -> Item:
    item = Item(name, tensor, form, ask(tensor, form), target.container)
    problem = without_place(item) if item.verdict.verdict != REFUSED else None
    return item if problem is None else replace(item, verdict=problem)


def without_place(item: Item) -> Verdict | None:
    """Refuse what a GGUF file has a type for, but no place: a second scale beside another name than a module's, a long name."""
    if item.container != "gguf":
        return None
    try:
        ggml.unbind(item.name, item.form, item.tensor.shape, item.part_bytes())
    except NotExact as err:
        return Verdict(REFUSED, err.message, field=err.field)
    return None


def requantized(item: Item) -> Item:
    """Plan to quantize a tensor anew, by the default rule of the format that does not hold it as it is.

    Refused where a weight is not finite: no rule has codes for it.
    """
    if (found := not_finite(item.tensor)) is not None:
        where, value = found
        reason = f"{item.verdict.reason}; weight {where} is {value}, which nothing quantizes anew"
        return replace(item, verdict=Verdict(REFUSED, reason, "values", where, value))
    return replace(item, verdict=replace(item.verdict, verdict=REQUANTIZE), rule=item.form.rule)


def can_requantize(item: Item) -> bool:
    """Tell whether a format could hold a tensor quantized anew: it has values, and a rule, whole blocks in rows, a place."""
    form, has_values = item.form, not isinstance(item.tensor.scheme.alphabet, Opaque)
    fits = not item.unheld and not form.scheme.is_dense and item.tensor.n_cols % row_multiple(form) == 0
    return has_values and fits and bool(form.rule) and without_place(item) is None


def not_finite(tensor: PackedTensor) -> tuple[int, float] | None:
    """Give flat index and value of the first weight that is not finite; None where all are."""
    tensor = narrower(tensor)
    for first, last in tensor.tiles():
        values = tensor.dequantize(rows=slice(first, last)).reshape(-1)
        wrong = ~np.isfinite(values)
        if wrong.any():
            where = int(np.argmax(wrong))
            return first * tensor.n_cols + where, float(values[where])
    return None


def _widen(name: str, tensor: PackedTensor, target: Target, ask: Judge) -> Item:
    """Take the first element type of the target that holds every value of a dense tensor."""
    kinds = [dense(kind) for kind in WIDER if kind in target.dense]
    return _first(_judged(name, tensor, form, target, ask) for form in kinds)


def _smallest(name: str, tensor: PackedTensor, target: Target, ask: Judge) -> Item:
    """Take the smallest packed format that holds a tensor exactly; else the best verdict, with what was in the way."""
    fitting = [form for form in target.forms(tensor) if tensor.n_cols % row_multiple(form) == 0]
    by_size = sorted(fitting, key=lambda form: form.n_bytes(tensor.shape))
    items = [_judged(name, tensor, form, target, ask) for form in by_size]
    if not items:
        shape = " x ".join(map(str, tensor.shape))
        hint = f"{target.name} holds no packed {tensor.scheme.name} of shape {shape}; use qfmt dequantize"
        stored, verdict = format_of(tensor), Verdict(REFUSED, hint, field="shape")
        return Item(name, tensor, stored, verdict, target.container, unheld=target.name)
    best = _first(items)
    if best.verdict.verdict == REFUSED:
        return items[-1]  # the largest, and so the one with the least in the way
    exact = [item.target for item in items if item.verdict.is_exact and item is not best]
    return replace(best, others=tuple(dict.fromkeys(exact)))


def _first(items: Iterable[Item]) -> Item:
    """Take the first exact item, else the first rounded one, else the first; consumes no more than it needs."""
    rounded = fallback = None
    for item in items:
        if item.verdict.is_exact:
            return item
        if item.verdict.verdict == ROUNDED:
            rounded = rounded or item
        fallback = fallback or item
    found = rounded or fallback
    assert found is not None  # callers give at least one
    return found


def notices(plan: Plan) -> tuple[str, ...]:
    """Say what a user should hear although no value is lost: bits that no value depends on, and who can load the file."""
    model = plan.view.model
    changed = [item for item in plan.items if not same_parts(item.tensor, item.form)]
    spare = [item.name for item in changed if has_spare_bits(item.tensor)]
    found = [odd.message for odd in model.oddities] if model.packed_by else []
    found += [f"'{show(name)}': bits that no value depends on are not kept" for name in spare]
    is_packed = any(not item.form.scheme.is_dense for item in plan.items)
    if plan.target.dialect is not None and is_packed and "config.json" not in model.assets:
        found.append(NO_CONFIG)
    if plan.view.missing:
        found.append(f"{NO_RUNTIME}: {plan.view.missing}")
    return (*found, *plan.view.notices)


def has_spare_bits(tensor: PackedTensor) -> bool:
    """Tell whether any stored bit is set that no value depends on; where rows lie apart, a few of them at a time."""
    if not any(part.has_spare_bits for part in tensor.parts):
        return False
    if any(line_bytes(tensor, part) is None for part in tensor.parts):
        return bool(tensor.residue())
    pieces = (rearrange([tensor], np.arange(*tile), (tile[1] - tile[0], tensor.n_cols)) for tile in tensor.tiles())
    return any(piece.residue() for piece in pieces)
