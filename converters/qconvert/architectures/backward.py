"""A GGUF file by the names of a checkpoint, with the config that transformers asks for.

Source: huggingface/transformers 5.23.0: configuration_utils.py, models/*/configuration_*.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from qconvert.architectures import rewriting
from qconvert.architectures.architecture import EMBEDDING, OUTPUT
from qconvert.architectures.catalogue import ARCHITECTURE, CONFIG, of_metadata
from qconvert.architectures.config import LLAMA3, SCALING, TOKEN_IDS, plain_config, read_facts, write_config
from qconvert.architectures.forward import THETA, expected
from qconvert.architectures.made import Made, check_names, view_of
from qconvert.architectures.names import Pair
from qconvert.architectures.rope import TENSOR as ROPE_FREQS
from qconvert.architectures.rope import scaling_from
from qconvert.architectures.tokenizer import to_hf
from qconvert.containers.gguf_values import Scalar
from qconvert.views import Origin, View
from qformat.errors import QFormatError, UsageError, about
from qformat.model import Model
from qformat.tensor import PackedTensor

DTYPES = ("float32", "float16", "bfloat16")
MATRIX = 2  # axes
# Of the file and of how it was made, not of the model.
OF_FILE = ("general.architecture", "general.type", "general.file_type", "general.quantization_version", "general.alignment")


def as_hf(model: Model, decode: str, with_tokenizer: bool) -> View:
    """See a GGUF file as a checkpoint.

    decode, with_tokenizer : see `seeing.view`

    Raises FileError, UsageError where its metadata or its tensors are not those of an architecture that is known.
    """
    metadata = model.metadata
    arch = of_metadata(metadata)
    if arch is None:
        name = metadata.get(ARCHITECTURE)
        raise UsageError(f"architecture {name!r} is not known" if name else f"no '{ARCHITECTURE}' says what it is")
    config = write_config(arch, metadata)
    facts = read_facts(arch, plain_config(config))
    pairs, _ = expected(model, arch, facts)
    groups = [(pair.gguf, pair.tensor.optional or pair.tensor.name == OUTPUT) for pair in pairs]
    check_names(model, arch.name, groups, {ROPE_FREQS} if LLAMA3 in arch.scalings else set())
    made: dict[str, Made] = {}
    for pair in pairs:
        if all(name in model for name in pair.gguf):
            if pair.is_cut:
                with about(model.path, pair.gguf[0]):
                    rewriting.check_here(pair.tensor, [model[name] for name in pair.gguf], len(pair.hf), facts)
            made |= tensors_of(model, pair, facts, bool(decode))
    notices = []
    if ROPE_FREQS in model:
        scaling = scaling_from(model[ROPE_FREQS].dequantize().reshape(-1), float(facts.get("rope.freq_base", THETA)))
        if scaling is None:
            notices.append(f"'{ROPE_FREQS}' scales frequencies as no usual rope_scaling does: the config does not say so")
        else:
            config[SCALING] = dict(scaling)
    config |= {flag: name in made for flag, name in arch.flags.items()}
    config |= of_tensors(model, made, decode)
    config |= {field: int(metadata[key]) for field, key in TOKEN_IDS.items() if isinstance(metadata.get(key), int)}
    if dropped := [key for key in metadata if key.startswith("general.") and key not in OF_FILE]:
        notices.append(f"a checkpoint has no place for {', '.join(dropped)}")
    view = view_of(model, made, {"format": "pt"}, assets(config, metadata if with_tokenizer else {}, notices), {})
    return replace(view, notices=tuple(notices))


def tensors_of(model: Model, pair: Pair, facts: Mapping[str, Scalar], decode: bool) -> dict[str, Made]:
    """Give the tensors of a checkpoint that a pair names."""

    def sources() -> list[PackedTensor]:
        return [model[name] for name in pair.gguf]

    def load(part: int) -> PackedTensor:
        return rewriting.to_hf(pair.tensor, sources(), part, len(pair.hf), facts, decode)

    plus = pair.tensor.plus
    lost = (lambda: rewriting.loss(sources()[0], -plus)) if plus else (lambda: None)
    return {
        name: Made(
            partial(load, part), Origin(pair.gguf, rewriting.describe(pair.tensor, part, len(pair.gguf), forward=False), lost)
        )
        for part, name in enumerate(pair.hf)
    }


def of_tensors(model: Model, made: Mapping[str, Made], decode: str) -> dict[str, Any]:
    """Say what the tensors tell: whether there is an output, how many tokens there are, and which floats weights are.

    decode : floats that packed weights are to be; empty where they stay packed, and what is computed with them is float32
    """
    schemes = [tensor.scheme for _, tensor in model.items() if len(tensor.shape) >= MATRIX]
    floats = Counter(scheme.name if scheme.is_dense else decode for scheme in schemes)
    commonest = next((name for name, _ in floats.most_common() if name in DTYPES), DTYPES[0])
    return {
        "tie_word_embeddings": OUTPUT not in made,
        "vocab_size": made[EMBEDDING].load().n_rows,
        "torch_dtype": DTYPES[0] if "" in floats else commonest,
    }


def assets(config: Mapping[str, Any], metadata: Mapping[str, Any], notices: list[str]) -> dict[str, Callable[[], bytes]]:
    """Give the files of a folder: the config, and those of a tokenizer if there is one that can be said."""
    files = {CONFIG: json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"}
    try:
        files |= to_hf(metadata)
    except QFormatError as err:
        notices.append(f"the tokenizer is left out: {err}")
    return {name: partial(bytes, data) for name, data in files.items()}
