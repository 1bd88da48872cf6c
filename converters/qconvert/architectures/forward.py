"""A checkpoint by the names of a GGUF file, with the key-values that llama.cpp asks for.

Source: ggml-org/llama.cpp: conversion/base.py (prepare_tensors, prepare_metadata).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from qconvert.architectures import rewriting
from qconvert.architectures.architecture import EMBEDDING, OUTPUT, Architecture, Config
from qconvert.architectures.catalogue import ARCHITECTURE, config_of, of_config
from qconvert.architectures.config import key_values, plain_config, read_facts
from qconvert.architectures.made import Made, check_names, same_bytes, view_of
from qconvert.architectures.names import Pair, pairs_of, skipped_names
from qconvert.architectures.rope import TENSOR as ROPE_FREQS
from qconvert.architectures.rope import rope_factors
from qconvert.containers.gguf_types import STRING, UINT32
from qconvert.containers.gguf_values import GGUFArray, KeyValue, Scalar, key_value
from qconvert.views import Origin, View
from qformat.errors import UsageError
from qformat.model import Model
from qformat.tensor import PackedTensor, from_array

QUANTIZATION_VERSION = 2  # of ggml's blocks
TOKENIZER, VOCABULARY = "tokenizer.ggml.model", "vocab_size"
THETA = 10000.0  # where a config says none


def as_gguf(model: Model) -> View:
    """See a checkpoint as a GGUF file.

    Raises FileError, UsageError where its config or its tensors are not those of an architecture that is known.
    """
    config = plain_config(config_of(model))
    arch = of_config(config)
    if arch is None:
        raise UsageError(f"architecture {config.get('model_type')!r} is not known")
    facts = read_facts(arch, config)
    pairs, skipped = expected(model, arch, facts)
    is_tied = bool(config.get("tie_word_embeddings", arch.tied))
    groups = [(pair.hf, pair.tensor.optional or (is_tied and pair.tensor.name == OUTPUT)) for pair in pairs]
    check_names(model, arch.name, groups, skipped)
    notices = [doubt] if (doubt := arch.doubts(config)) else []
    if is_tied and OUTPUT in model:
        if same_bytes(model[OUTPUT], model[EMBEDDING]):
            skipped.add(OUTPUT)
        else:
            notices.append(f"'{OUTPUT}' is kept: the config says that it is the embedding, its values say otherwise")
    made = rotary(arch, config, facts)
    for pair in pairs:
        if all(name in model and name not in skipped for name in pair.hf):
            made |= tensors_of(model, pair, facts)
    said = {pair.key: pair for pair in (*general(model, arch), *key_values(arch, facts), *vocabulary(model, arch, config))}
    plain = {key: pair.value for key, pair in said.items() if not isinstance(pair.value, GGUFArray)}
    return replace(view_of(model, made, plain, {}), key_values=tuple(said.values()), notices=tuple(notices))


def expected(model: Model, arch: Architecture, facts: Mapping[str, Scalar]) -> tuple[list[Pair], set[str]]:
    """List the tensors that a model has by what is said of it, and those that do not matter.

    Raises UsageError for more layers or experts than there are tensors.
    """
    counts = {"layers": int(facts["block_count"]), "experts": int(facts.get("expert_count", 0)) if arch.is_stacked else 0}
    for what, count in counts.items():
        if count > len(model):
            raise UsageError(f"{count} {what}, but {len(model)} tensors")
    return pairs_of(arch, *counts.values()), skipped_names(arch, counts["layers"])


def rotary(arch: Architecture, config: Config, facts: Mapping[str, Scalar]) -> dict[str, Made]:
    """Give the tensor that says how frequencies are scaled, if one does."""
    theta, dim = float(facts.get("rope.freq_base", THETA)), int(facts.get("rope.dimension_count", 0))
    factors = rope_factors(config, theta, dim)
    if factors is None:
        return {}
    tensor = from_array(factors)
    return {ROPE_FREQS: Made(lambda: tensor, Origin((), "made of the config's rope_scaling"))}


def tensors_of(model: Model, pair: Pair, facts: Mapping[str, Scalar]) -> dict[str, Made]:
    """Give the tensors of a GGUF file that a pair names."""

    def sources() -> list[PackedTensor]:
        return [model[name] for name in pair.hf]

    def load(part: int) -> PackedTensor:
        return rewriting.to_gguf(pair.tensor, sources(), part, pair.gguf[part], facts)

    plus = pair.tensor.plus
    lost = (lambda: rewriting.loss(sources()[0], plus)) if plus else (lambda: None)
    return {
        name: Made(
            partial(load, part), Origin(pair.hf, rewriting.describe(pair.tensor, part, len(pair.hf), forward=True), lost)
        )
        for part, name in enumerate(pair.gguf)
    }


def general(model: Model, arch: Architecture) -> list[KeyValue]:
    """Say what every GGUF file of a model says; the type of its tensors is not known before they are planned."""
    path = model.path.resolve()
    return [
        key_value(ARCHITECTURE, STRING, arch.name),
        key_value("general.type", STRING, "model"),
        key_value("general.name", STRING, path.name if path.is_dir() else path.stem),
        key_value("general.file_type", UINT32, 0),
        key_value("general.quantization_version", UINT32, QUANTIZATION_VERSION),
    ]


def vocabulary(model: Model, arch: Architecture, config: Config) -> list[KeyValue]:
    """Say how many tokens there are, and what they are if files tell."""
    n_tokens = model[EMBEDDING].shape[0]
    said: list[KeyValue] = []
    return [
        key_value(f"{arch.name}.{VOCABULARY}", UINT32, n_tokens),
        *(said or [key_value(TOKENIZER, STRING, "none")]),
    ]
