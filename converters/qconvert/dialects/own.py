"""The dialect of weights that stay as they are: each packed tensor keeps the arrays of the ecosystem that it came from.

Decides which dialect writes a tensor whose target names none: the one that it was read in, else the first whose formats mean
the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from qconvert.dialects import DIALECTS, find
from qconvert.dialects.dialect import Array, Dialect, Json, Written
from qformat.errors import NotExact
from qformat.formats import Format
from qformat.tensor import PackedTensor, format_of


def own(packed_by: Mapping[str, str]) -> Dialect:
    """Make the dialect that leaves each tensor in its own.

    packed_by : dialect that a tensor was read in, by the tensor's name, as far as it is known
    """
    named = {name: dialect for name, dialect in packed_by.items() if any(known.name == dialect for known in DIALECTS)}
    unbind, carry = partial(_unbind, named), partial(_carry, named)
    return Dialect("", (), lambda shelf: iter(()), _forms, unbind, lambda weights: carry(weights, {}, {}), carry=carry)


def holder(tensor: PackedTensor) -> Dialect | None:
    """Find the first dialect that has a tensor's format; None where none does."""
    mine = format_of(tensor).meaning
    return next((d for d in DIALECTS if any(form.meaning == mine for form in d.forms("", tensor))), None)


def _forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    return [] if holder(tensor) is None else [format_of(tensor)]


def _owner(named: Mapping[str, str], weight: Written) -> Dialect:
    found = find(named[weight.name]) if weight.name in named else holder(weight.tensor)
    if found is None:
        raise NotExact(f"no dialect of safetensors has {weight.form.name}", tensor=weight.name, field="scheme")
    return found


def _unbind(named: Mapping[str, str], weight: Written) -> Sequence[Array]:
    return _owner(named, weight).unbind(weight)


def _carry(
    named: Mapping[str, str], weights: Sequence[Written], source: Json, already: Mapping[str, Json]
) -> Mapping[str, Json]:
    """Let each dialect speak of its own weights.

    Where they speak of the same key, the one does whose method the source's config names, else the one with the most weights.
    """
    owners = {weight.name: _owner(named, weight).name for weight in weights if not weight.form.scheme.is_dense}
    found = []
    for name, _ in Counter(owners.values()).most_common():
        held = [weight for weight in weights if owners.get(weight.name, name) == name]
        dialect = find(name)
        found.append(dialect.carry(held, source, dialect.config(held)))
    found.sort(key=lambda files: _method(files.get("config.json", {})) != _method(source))
    said: dict[str, dict[str, Any]] = {}
    for files in found:
        for file, changes in files.items():
            said[file] = {**changes, **said.get(file, {})}
    return said


def _method(config: Json) -> object:
    packing = config.get("quantization_config")
    return packing.get("quant_method") if isinstance(packing, Mapping) else None
