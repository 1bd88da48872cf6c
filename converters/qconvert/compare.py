"""Comparing two checkpoints value by value, whatever they are kept in."""

from __future__ import annotations

import numpy as np

from qconvert.digest import RAW, canonical, plain_values
from qformat.errors import NotExact, about
from qformat.model import Model
from qformat.scheme import Plain
from qformat.tensor import PackedTensor


def compare_values(one: Model, other: Model) -> int:
    """Decode both models and compare every weight of every tensor.

    returns: tensors compared

    Raises NotExact naming the first tensor that only one has, or the first weight that differs.
    """
    for mine, theirs in ((one, other), (other, one)):
        missing = next((name for name in mine if name not in theirs), None)
        if missing is not None:
            raise NotExact(f"no such tensor in {theirs.path}", path=mine.path, tensor=missing)
    for name, tensor in one.items():
        with about(one.path, name):
            where = first_difference(tensor, other[name])
        if where is not None:
            raise NotExact(where, path=one.path, tensor=name)
    return len(one)


def first_difference(one: PackedTensor, other: PackedTensor) -> str | None:
    """Say where two tensors differ first; None where they are equal, signed zeros and NaN payloads aside."""
    if one.shape != other.shape:
        return f"shape {one.shape}, the other has {other.shape}"
    raw = [t.scheme.alphabet.dtype for t in (one, other) if isinstance(t.scheme.alphabet, Plain)]
    is_raw = len(raw) == 2 and raw[0] == raw[1] and raw[0] in RAW  # values that float32 does not contain
    for first, last in one.tiles():
        rows = slice(first, last)
        if is_raw:
            mine, theirs = one.codes(rows), other.codes(rows)
            differs = np.ascontiguousarray(mine).view(np.uint8) != np.ascontiguousarray(theirs).view(np.uint8)
            differs = differs.reshape(*mine.shape, -1).any(axis=-1)
        else:
            mine, theirs = canonical(plain_values(one, rows)), canonical(plain_values(other, rows))
            differs = mine.view(np.uint32) != theirs.view(np.uint32)
        if differs.any():
            at = int(np.argmax(differs))
            index = first * one.n_cols + at
            return f"weight {index} is {mine.reshape(-1)[at]!s}, the other has {theirs.reshape(-1)[at]!s}"
    return None
