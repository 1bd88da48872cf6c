"""A config and the key-values of a GGUF file, each made of the other by the facts of an architecture.

Both spellings of rotary positions are read, the older is written, which every version understands. Must not know tensors.

Source: ggml-org/llama.cpp: conversion/base.py (set_gguf_parameters); huggingface/transformers 5.23.0: modeling_rope_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qconvert.architectures.architecture import FLOAT32, Architecture, Config, Fact
from qconvert.containers.gguf_types import STRING
from qconvert.containers.gguf_values import KeyValue, Scalar, key_value
from qformat.errors import FileError

SCALING, THETA, LOCAL_THETA = "rope_scaling", "rope_theta", "rope_local_base_freq"
FULL, SLIDING = "full_attention", "sliding_attention"
DEFAULT, LINEAR, LLAMA3, NONE = "default", "linear", "llama3", "none"
MAX_COUNT, MAX_FLOAT32 = (1 << 32) - 1, float(np.finfo(np.float32).max)
_TOKENS = (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))  # as a config calls them, and as a GGUF file does
TOKEN_IDS = {f"{name}_token_id": f"tokenizer.ggml.{key}_token_id" for name, key in _TOKENS}


def plain_config(config: Config) -> dict[str, Any]:
    """Give a config in one spelling: the text model's fields on top, rotary positions as older versions say them."""
    text = config.get("text_config")
    found = {**config, **text} if isinstance(text, Mapping) else dict(config)
    rope = _mapping(found.pop("rope_parameters", None)) or _mapping(found.get(SCALING))
    local = _mapping(rope.get(SLIDING))
    rope = dict(_mapping(rope.get(FULL)) if FULL in rope or SLIDING in rope else rope)
    kind = rope.pop("type", DEFAULT)
    rope = {"rope_type": kind, **rope}
    for field, value in ((THETA, rope.pop(THETA, None)), (LOCAL_THETA, local.get(THETA))):
        if value is not None:
            found[field] = value
    found[SCALING] = rope if rope["rope_type"] != DEFAULT else None
    return {field: value for field, value in found.items() if value is not None}


def scaling_of(config: Config) -> str:
    """Give the kind of rotary scaling that a plain config says."""
    return str(_mapping(config.get(SCALING)).get("rope_type", DEFAULT))


def read_facts(arch: Architecture, config: Config) -> dict[str, Scalar]:
    """Read what a plain config says, by the keys of a GGUF file without the architecture before them.

    Raises FileError where a field is missing without which there is no model, or holds no number where one belongs.
    """
    if scaling_of(config) not in arch.scalings:
        message = f"rotary scaling '{scaling_of(config)}' has no place in a gguf file of {arch.name}"
        raise FileError(message, field=SCALING)
    if scaling_of(config) == LLAMA3:  # a tensor says it
        config = {**config, SCALING: {}}
    found: dict[str, Scalar] = {}
    for fact in arch.facts:
        value = _read(fact, config)
        if value is not None:
            found[fact.key] = value
        elif fact.required:
            raise FileError(f"says nothing of {' or '.join(fact.fields)}", field=fact.fields[0])
    return found


def key_values(arch: Architecture, facts: Mapping[str, Scalar]) -> list[KeyValue]:
    """Give facts as typed key-values."""
    kinds = {fact.key: fact.kind for fact in arch.facts}
    return [key_value(f"{arch.name}.{key}", kinds[key], value) for key, value in facts.items()]


def write_config(arch: Architecture, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Give the config that says what a GGUF file's metadata says.

    Raises FileError where that holds no number where one belongs.
    """
    kind = next(iter(arch.classes))
    config: dict[str, Any] = {"architectures": [arch.classes[kind]], "model_type": kind}
    for fact in arch.facts:
        key = f"{arch.name}.{fact.key}"
        value = metadata.get(key)
        if value is None:
            if fact.default is not None or fact.required:
                raise FileError("the key is missing", field=key)
            continue
        if fact.words is not None:
            value = next((word for word, theirs in fact.words.items() if theirs == value), NONE if value == NONE else value)
        _put(config, fact.fields[0], _checked(fact, value, key))
    scaling = config.get(SCALING)
    if scaling is not None:
        scaling.setdefault("rope_type", LINEAR)
        if scaling["rope_type"] == NONE or (scaling["rope_type"] == LINEAR and "factor" not in scaling):
            del config[SCALING]
    return _merged({**config, **arch.derived(config)}, arch.fixed)


def float_of(value: float) -> float:
    """Give the shortest decimal number that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _read(fact: Fact, config: Config) -> Scalar | None:
    for field in fact.fields:
        value = _get(config, field)
        if value is not None:
            value = fact.words.get(value) if fact.words is not None and isinstance(value, str) else value
            return None if value is None else _checked(fact, value, field)
    if fact.over is not None:
        above, below = (_get(config, field) for field in fact.over)
        if isinstance(above, int) and isinstance(below, int) and below > 0:
            return above // below
    return fact.default


def _checked(fact: Fact, value: Any, field: str) -> Scalar:
    """Give a value as its key holds it. Raises FileError for one of another kind."""
    if fact.kind == STRING:
        if isinstance(value, str):
            return value
        raise FileError("no text", field=field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_FLOAT32:
        raise FileError(f"no number, but {value!r}"[:100], field=field)
    if fact.kind == FLOAT32:
        return float_of(value)
    if value != int(value) or not 0 <= value <= MAX_COUNT:
        raise FileError(f"{value}, expected a whole number below 2**32", field=field)
    return int(value)


def _get(config: Config, field: str) -> Any:
    found: Any = config
    for part in field.split("."):
        found = _mapping(found).get(part)
    return found


def _put(config: dict[str, Any], field: str, value: Scalar) -> None:
    first, dot, rest = field.partition(".")
    if dot:
        _put(config.setdefault(first, {}), rest, value)
    else:
        config[first] = value


def _merged(config: dict[str, Any], fixed: Config) -> dict[str, Any]:
    """Add fixed fields, one level down only where that level is there."""
    for field, value in fixed.items():
        if isinstance(value, Mapping):
            if field in config:
                config[field] = {**value, **config[field]}
        else:
            config.setdefault(field, value)
    return config


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
