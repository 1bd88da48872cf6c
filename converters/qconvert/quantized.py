"""What becomes of one tensor where a checkpoint is quantized: kept, rounded to an element type, or quantized, by what.

Must not know which type a mix gives it, nor how a plan is carried out.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from qconvert.calibrated import Calibrated, find_weights
from qconvert.calibration import Calibration
from qconvert.imatrix import Entry, Imatrix
from qconvert.items import Item
from qconvert.mixes import mix_of
from qconvert.planning import MIN_MATRIX_RANK, decide, is_chosen, is_float_matrix
from qconvert.roles import category, expert_of, kept_because, runtime_name
from qconvert.verdict import REFUSED, REQUANTIZE, Verdict, judge, row_multiple
from qconvert.wish import Wish
from qformat.errors import UsageError
from qformat.formats import Format
from qformat.methods.quantizing import rule_of
from qformat.tensor import PackedTensor

NOT_CALIBRATED = "not calibrated, rounded to nearest"


def kept_by_name(name: str, wish: Wish) -> str | None:
    """Say why a tensor of this name stays as it is in a GGUF; None where it does not, and for other containers."""
    return kept_because(runtime_name(name)) if wish.target.container == "gguf" else None


def kept(names: tuple[str, ...], tensor: PackedTensor, wish: Wish) -> str:
    """Say why a tensor of these names, its own first, stays as it is; nothing where it is to be quantized."""
    if not is_chosen(names, wish.include, wish.exclude):
        return "not chosen"
    if not tensor.scheme.is_dense:
        return f"already {tensor.scheme.name}"
    if not is_float_matrix(names[0], tensor):
        return "no float matrix"
    why = kept_by_name(names[0], wish)
    return f"{why} is kept" if why else ""


def keep(name: str, tensor: PackedTensor, wish: Wish, reason: str) -> Item:
    """Plan to leave a tensor as it is, in an element type that the target holds."""
    item = decide(name, tensor, replace(wish.target, wanted=None))
    return replace(item, verdict=replace(item.verdict, reason=f"{reason}; {item.verdict.reason}"))


def quantized(names: tuple[str, ...], tensor: PackedTensor, form: Format, reason: str, wish: Wish) -> Item:
    """Plan to quantize a tensor to a format, or to round it to an element type.

    names : by which the tensor is known, its own first
    """
    name, container = names[0], wish.target.container
    if form.scheme.is_dense:
        verdict = judge(tensor, form)
        return Item(name, tensor, form, replace(verdict, reason=f"{reason}; {verdict.reason}"), container)
    rule = rule_of(wish.method, form, wish.rule)
    plain, form = form, replace(form, rule=rule.name)
    if tensor.n_cols % row_multiple(form):
        found = f"rows of {tensor.n_cols} weights, expected a multiple of {row_multiple(form)} ({form.name} block)"
        mix = mix_of(form.name) if container == "gguf" else None
        way_out = f"; use gguf:{mix.name}, which falls back" if mix else ""
        return Item(name, tensor, form, Verdict(REFUSED, found + way_out, "shape", value=float(tensor.n_cols)), container)
    item = Item(name, tensor, form, Verdict(REQUANTIZE, reason), container, rule=rule.name)
    if wish.calibration is not None:
        return calibrated(item, plain, names, wish.calibration, wish)
    if wish.imatrix is None:
        return item
    if rule.weighted is None:
        return _noted(item, f"{form.name} has no use for importance")
    entry = find_entry(name, tensor, wish.imatrix)
    return _noted(replace(item, importance=entry), "with importance" if entry else "no importance is known")


def calibrated(item: Item, form: Format, names: tuple[str, ...], calibration: Calibration, wish: Wish) -> Item:
    """Have a tensor quantized by what is known of its inputs.

    form : of the item, as the target has it

    Rounded to nearest where nothing is known. Raises UsageError for a format that the method cannot make, or GGUF not hold, and
    for statistics of other columns.
    """
    method, tensor = wish.method, item.tensor
    weights = find_weights(names, calibration, tensor)
    if not weights and wish.allow_uncalibrated:
        return _noted(item, NOT_CALIBRATED)
    stored = method.stored(form, tensor.n_cols)
    beside = [part.role for part in stored.parts[len(form.parts) :]]
    if beside and wish.target.container == "gguf":
        message = f"GGUF has no place for the {beside[0]} of {method.name}: quantize to .qfmt, or by gptq"
        raise UsageError(message, field=beside[0])
    if not weights:
        return _noted(item, NOT_CALIBRATED)
    if method.prepare is None:
        importance = np.stack([calibration.importance(weight) for weight in weights])
        entry = Entry(importance, np.ones(len(importance), np.float32))
        return _noted(replace(item, importance=entry), f"by {method.name}, calibrated")
    if len(weights) > 1:
        message = f"stack of {len(weights)} matrices, each with calibration of its own, where {method.name} takes one for all"
        way_out = "quantize to .qfmt, where each is a tensor, or by mse"
        raise UsageError(f"{message}: {way_out}", field="calibration", found=len(weights))
    by = Calibrated(method, form, item.rule, calibration, weights[0])
    return _noted(replace(item, form=replace(stored, rule=item.rule), by=by), f"by {method.name}")


def _noted(item: Item, note: str) -> Item:
    return replace(item, verdict=replace(item.verdict, reason=f"{item.verdict.reason}; {note}"))


def find_entry(name: str, tensor: PackedTensor, imatrix: Imatrix) -> Entry | None:
    """Find the importance of a tensor's columns; of one expert's matrix, its row.

    Raises UsageError for an entry of other columns, but for the token embedding, which is no matrix product.

    Source of the exception: ggml-org/llama.cpp at 007dbbf3: src/llama-quant.cpp (llama_model_quantize_impl).
    """
    known = runtime_name(name)
    entry, expert = imatrix.entries.get(name), None
    if entry is None:
        entry, expert = imatrix.entries.get(known), expert_of(name)
    if entry is not None and expert is not None and len(tensor.shape) == MIN_MATRIX_RANK:
        n_experts = len(entry.sums) if len(entry.sums) > 1 else entry.sums.size // max(1, tensor.n_cols)
        entry = imatrix.fit(entry, name, n_experts, tensor.n_cols)
        entry = Entry(entry.sums[expert : expert + 1], entry.counts[expert : expert + 1])
    if entry is None or not len(entry.sums):
        return None
    try:
        return imatrix.fit(entry, name, prod(tensor.shape[:-2]), tensor.n_cols)
    except UsageError:
        if category(known) == "token_embd":
            return None
        raise
