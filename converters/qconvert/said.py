"""What a file says of how its tensors were quantized, and what of it stays true of the next one.

    quantize.*             by which method, rule, calibration, importance, as far as that is said
    quantize.tensors       names of the tensors that it is said of, one in a line; all packed ones if absent
    quantize.uncalibrated  those of them that were rounded to nearest, of a method that knows inputs
    quantize.earlier.N.*   the same of the N-th time before, by which other tensors were quantized

Decides on key-values and names alone. Must not know how anything is quantized, nor how a file is written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from qconvert.containers.gguf_types import STRING
from qconvert.containers.gguf_values import KeyValue, key_value
from qconvert.items import Item
from qconvert.pairs import pairs_of
from qconvert.views import View

BEGIN = "quantize."
TENSORS, UNCALIBRATED = "tensors", "uncalibrated"
# How keys begin that say how a file's tensors were quantized, and nothing of the model.
# Source: ggml-org/llama.cpp: tools/quantize/quantize.cpp (LLM_KV_QUANTIZE_IMATRIX_*); gguf-py/gguf/constants.py.
OF_QUANTIZING = (BEGIN, "general.quantized_by")

_ESCAPED = re.compile(r"\\[n\\]")
_KEY = re.compile(r"quantize\.(?:earlier\.([1-9]\d{0,3})\.)?(.+)", re.DOTALL)

# One time that tensors were quantized: key-values by what follows `quantize.` in their keys.
Record = dict[str, KeyValue]


def said_next(view: View, items: Sequence[Item], new: Sequence[KeyValue] = ()) -> tuple[tuple[KeyValue, ...], tuple[str, ...]]:
    """Give the key-values that a file is to have of quantizing, and how the source's keys begin that they stand in for.

    new : what is to be said of the items that are quantized, those of a rule, each key with `quantize.`

    Both are empty where what the source says stays as it is.
    """
    packed = [item.name for item in items if not item.form.scheme.is_dense]
    stays = [item for item in items if not (item.rule or item.tensor.scheme.is_dense or item.form.scheme.is_dense)]
    here, old = ({pair.key: pair for pair in pairs_of(model, BEGIN)} for model in (view.model, view.source or view.model))
    records = (
        [({pair.key.removeprefix(BEGIN): pair for pair in new}, [item.name for item in items if item.rule])] if new else []
    )
    records += [(record, names) for record, names in _of_these(_records(old), stays, view) if names]
    found: dict[str, KeyValue] = {}
    for number, (record, names) in enumerate(records):
        said = record if len(names) == len(packed) else {**record, TENSORS: _listed(names)}
        begin = f"{BEGIN}earlier.{number}." if number else BEGIN
        found |= {begin + key: replace(pair, key=begin + key) for key, pair in said.items()}
    is_changed = len(stays) < sum(bool(item.rule) or not item.tensor.scheme.is_dense for item in items)
    is_same = {key: pair.value for key, pair in found.items()} == {key: pair.value for key, pair in here.items()}
    return ((), ()) if is_same and not is_changed else (tuple(found.values()), OF_QUANTIZING)


def _records(pairs: Mapping[str, KeyValue]) -> list[Record]:
    """Sort key-values by the time that they speak of, the last first."""
    records: dict[int, Record] = {}
    for key, pair in pairs.items():
        if match := _KEY.fullmatch(key):
            records.setdefault(int(match.group(1) or 0), {})[match.group(2)] = pair
    return [records[number] for number in sorted(records)]


def _of_these(records: Iterable[Record], stays: Sequence[Item], view: View) -> Iterator[tuple[Record, list[str]]]:
    """Give each record without its names of tensors that do not stay as they are, and the names of those that do."""
    for record in records:
        known, uncalibrated = _names(record, TENSORS), _names(record, UNCALIBRATED)
        left = [item.name for item in stays if TENSORS not in record or _is_one_of(known, *view.names_of(item.name))]
        rounded = [name for name in left if uncalibrated.intersection(view.names_of(name))]
        kept = {key: pair for key, pair in record.items() if key not in (TENSORS, UNCALIBRATED)}
        yield kept | ({UNCALIBRATED: _listed(rounded)} if rounded else {}), left


def _is_one_of(known: Collection[str], own: str, *sources: str) -> bool:
    """Tell whether a tensor is one of these by its name, or all that it is made of are."""
    return own in known or (bool(sources) and all(name in known for name in sources))


def _names(record: Record, key: str) -> set[str]:
    lines = str(record[key].value).split("\n") if key in record else []
    return {_ESCAPED.sub(lambda found: "\n" if found[0] == "\\n" else "\\", line) for line in lines}


def listed(names: Iterable[str]) -> str:
    """Write names one in a line: a line's end in a name as \\n, a backslash twice."""
    return "\n".join(name.replace("\\", "\\\\").replace("\n", "\\n") for name in names)


def _listed(names: Sequence[str]) -> KeyValue:
    return key_value(TENSORS, STRING, listed(names))
