"""A checkpoint by the names of a GGUF file, with the key-values that llama.cpp asks for.

Source: ggml-org/llama.cpp: conversion/base.py (prepare_tensors, prepare_metadata).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from qconvert.architectures import rewriting
from qconvert.architectures.architecture import EMBEDDING, EXPERT, OUTPUT, Architecture, Config
from qconvert.architectures.catalogue import ARCHITECTURE, config_of, of_config
from qconvert.architectures.config import MAX_COUNT, TOKEN_IDS, key_values, plain_config, read_facts
from qconvert.architectures.made import Made, check_names, unwrapped, view_of
from qconvert.architectures.names import SUFFIXES, Pair, pairs_of, skipped_names
from qconvert.architectures.rope import TENSOR as ROPE_FREQS
from qconvert.architectures.rope import rope_factors
from qconvert.architectures.tokenizer import to_gguf
from qconvert.compare import same_bytes, same_format
from qconvert.containers.gguf_types import STRING, UINT32
from qconvert.containers.gguf_values import GGUFArray, KeyValue, Scalar, key_value
from qconvert.views import Origin, View
from qformat.errors import QFormatError, UsageError, about
from qformat.model import Model
from qformat.tensor import PackedTensor, from_array

QUANTIZATION_VERSION = 2  # of ggml's blocks
WEIGHT, BIAS = SUFFIXES
TOKENIZER, VOCABULARY = "tokenizer.ggml.model", "vocab_size"
MAX_LAYERS, MAX_EXPERTS = 512, 512  # in llama.cpp
THETA = 10000.0  # where a config says none


def as_gguf(model: Model, with_tokenizer: bool) -> View:
    """See a checkpoint as a GGUF file.

    Raises FileError, UsageError where its config or its tensors are not those of an architecture that is known.
    """
    config = plain_config(config_of(model))
    arch = of_config(config)
    if arch is None:
        kind = config.get("model_type")
        raise UsageError(f"architecture {kind!r} is not known" if kind else "no config.json says what architecture it is")
    facts = read_facts(arch, config)
    model, own = unwrapped(model, arch.wrapped)
    pairs, skipped = expected(model, arch, facts)
    is_tied = bool(config.get("tie_word_embeddings", arch.tied))
    groups = [(pair.hf, pair.tensor.optional or (is_tied and pair.tensor.name == OUTPUT)) for pair in pairs]
    zeros = zero_biases(model, pairs)
    skipped |= zeros
    check_names(model, arch.name, groups, skipped)
    notices = [doubt] if (doubt := arch.doubts(config)) else []
    if zeros:
        notices.append(f"left out: {len(zeros)} biases that are zeros, as '{min(zeros)}', for which {arch.name} has no place")
    if is_tied and OUTPUT in model:
        if is_copy(model[OUTPUT], model[EMBEDDING]):
            skipped.add(OUTPUT)
        else:
            notices.append(f"'{OUTPUT}' is kept: the config says that it is the embedding, its values say otherwise")
    made = rotary(arch, config, facts)
    for pair in pairs:
        if all(name in model and name not in skipped for name in pair.hf):
            if pair.is_cut:
                with about(model.path, pair.hf[0]):
                    rewriting.check_there(pair.tensor, [model[name] for name in pair.hf], facts)
            made |= tensors_of(model, pair, facts)
    tokens = vocabulary(model if with_tokenizer else replace(model, assets={}), arch, config, notices)
    said = (*general(model, arch), *key_values(arch, facts), *tokens)
    plain = {each.key: each.value for each in said if not isinstance(each.value, GGUFArray)}
    left_out = frozenset(own[name] for name in skipped if name in model)
    return replace(view_of(model, made, plain, {}, own), key_values=said, notices=tuple(notices), left_out=left_out)


def expected(model: Model, arch: Architecture, facts: Mapping[str, Scalar]) -> tuple[list[Pair], set[str]]:
    """List the tensors that a model has by what is said of it, and those that do not matter.

    Raises UsageError for more layers or experts than there can be.
    """
    n_layers, n_experts = int(facts["block_count"]), int(facts["expert_count"]) if arch.is_stacked else 1
    for what, count, most in (("layers", n_layers, min(len(model), MAX_LAYERS)), ("experts", n_experts, MAX_EXPERTS)):
        if not 0 < count <= most:
            raise UsageError(f"{count} {what}, expected 1 to {most}")
    return pairs_of(arch, n_layers, n_experts), skipped_names(arch, n_layers)


def is_copy(one: PackedTensor, other: PackedTensor) -> bool:
    """Tell whether two tensors are stored alike, byte for byte."""
    return one.shape == other.shape and same_format(one, other) and same_bytes(one, other)


def zero_biases(model: Model, pairs: Sequence[Pair]) -> set[str]:
    """List biases that an architecture has no place for and that add nothing: GPTQ's tools write them for every module."""
    known = {name for pair in pairs for name in pair.hf}
    others = [name for name in model if name.endswith(BIAS) and name not in known and name.removesuffix(BIAS) + WEIGHT in known]
    return {name for name in others if not model[name].dequantize().any()}


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

    def how(part: int) -> str:
        first, said = model[pair.hf[0]], rewriting.describe(pair.tensor, part, len(pair.hf), forward=True)
        n_axes = len(first.shape) + (EXPERT in pair.tensor.name)
        as_float = "" if plus else rewriting.how_float(pair.gguf[part], first, n_axes)
        return ", ".join(filter(None, (said, as_float)))

    plus = pair.tensor.plus
    lost = (lambda: rewriting.loss(sources()[0], plus)) if plus else (lambda: None)
    return {name: Made(partial(load, part), Origin(pair.hf, how(part), lost)) for part, name in enumerate(pair.gguf)}


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


def vocabulary(model: Model, arch: Architecture, config: Config, notices: list[str]) -> list[KeyValue]:
    """Say how many tokens there are, and what they are if files tell; a tokenizer that cannot be said is left out."""
    n_tokens = model[EMBEDDING].n_rows
    none = key_value(TOKENIZER, STRING, "none")
    try:
        said = to_gguf(model.assets, config, n_tokens)
    except QFormatError as err:
        notices.append(f"the tokenizer is left out: {err}")
        said = (none,)
    ids = token_ids(config) if said == (none,) else []
    return [key_value(f"{arch.name}.{VOCABULARY}", UINT32, n_tokens), *said, *ids]


def token_ids(config: Config) -> list[KeyValue]:
    """Give the ids of the tokens that a config names, for a file without a tokenizer; of several the first."""
    found = []
    for field, key in TOKEN_IDS.items():
        value = config.get(field)
        first = next(iter(value), None) if isinstance(value, list) else value
        if isinstance(first, int) and not isinstance(first, bool) and 0 <= first <= MAX_COUNT:
            found.append(key_value(key, UINT32, first))
    return found
