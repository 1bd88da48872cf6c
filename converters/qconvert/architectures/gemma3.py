"""Gemma 3, the text model: norms around both halves of a layer, whose weights are stored less 1; windows in five layers of six.

Source: ggml-org/llama.cpp: conversion/gemma.py (Gemma3Model), src/models/gemma3.cpp; huggingface/transformers 5.23.0:
models/gemma3.
"""

from qconvert.architectures.architecture import (
    DECODER,
    EMBEDDING,
    EPSILON,
    FLOAT32,
    HEAD,
    IN_LAYER,
    NORM,
    OUTPUT,
    Architecture,
    Config,
    Fact,
    Tensor,
    rope_facts,
)

PERIOD = 6  # every sixth layer attends to all tokens
LARGEST = 62  # layers of the one model whose queries are scaled otherwise
PATTERN, WINDOW, SCALAR = "sliding_window_pattern", "sliding_window", "query_pre_attn_scalar"
# Where a config leaves them out.
_DEFAULTS = {
    "context_length": 131072,
    "attention.head_count": 8,
    "attention.head_count_kv": 4,
    "attention.key_length": 256,
    "attention.value_length": 256,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.sliding_window": 4096,
}


def doubts(config: Config) -> str:
    """Say where llama.cpp, which knows the published models, would scale or look otherwise."""
    said, layers = config.get(PATTERN, config.get(f"_{PATTERN}")), config.get("layer_types")
    period = said if isinstance(said, int) and said > 0 else PERIOD
    n_layers = len(layers) if isinstance(layers, list) else 0
    if n_layers and layers != ["sliding_attention" if (n + 1) % period else "full_attention" for n in range(n_layers)]:
        return f"layer_types are not those of a full_attention in {period} layers: a gguf file says no other, results differ"
    scalar, usual = config.get(SCALAR), scaled_by(config).get(SCALAR)
    if scalar is not None and usual is not None and scalar != usual:
        return f"{SCALAR} is {scalar}: a gguf file has no place for it, llama.cpp takes {usual}, results differ"
    return ""


def scaled_by(config: Config) -> Config:
    """Give what queries are divided by the root of: a head's columns, in the largest model the mean of these."""
    width, heads, columns = config.get("hidden_size"), config.get("num_attention_heads"), config.get("head_dim")
    if config.get("num_hidden_layers") == LARGEST and isinstance(width, int) and isinstance(heads, int) and heads:
        return {SCALAR: width // heads}
    return {SCALAR: columns} if isinstance(columns, int) else {}


def _with_default(fact: Fact) -> Fact:
    return Fact(fact.key, fact.fields[:1], fact.kind, _DEFAULTS.get(fact.key), required=fact.required)


GEMMA3 = Architecture(
    "gemma3",
    {"gemma3_text": "Gemma3ForCausalLM"},
    (
        Tensor(EMBEDDING),
        Tensor(IN_LAYER + "input_layernorm.weight", plus=1),
        Tensor(IN_LAYER + "self_attn.q_proj.weight"),
        Tensor(IN_LAYER + "self_attn.q_norm.weight", plus=1),
        Tensor(IN_LAYER + "self_attn.k_proj.weight"),
        Tensor(IN_LAYER + "self_attn.k_norm.weight", plus=1),
        Tensor(IN_LAYER + "self_attn.v_proj.weight"),
        Tensor(IN_LAYER + "self_attn.o_proj.weight"),
        Tensor(IN_LAYER + "post_attention_layernorm.weight", plus=1),
        Tensor(IN_LAYER + "pre_feedforward_layernorm.weight", plus=1),
        Tensor(IN_LAYER + "mlp.gate_proj.weight"),
        Tensor(IN_LAYER + "mlp.up_proj.weight"),
        Tensor(IN_LAYER + "mlp.down_proj.weight"),
        Tensor(IN_LAYER + "post_feedforward_layernorm.weight", plus=1),
        Tensor(NORM, plus=1),
        Tensor(OUTPUT),
    ),
    (
        *map(_with_default, (*DECODER, EPSILON, *HEAD, Fact("attention.sliding_window", (WINDOW,)))),
        Fact(f"attention.{PATTERN}", (PATTERN, f"_{PATTERN}")),
        *rope_facts(1e6),
        Fact("rope.freq_base_swa", ("rope_local_base_freq",), FLOAT32),
        Fact("final_logit_softcapping", ("final_logit_softcapping",), FLOAT32),
    ),
    fixed={"hidden_activation": "gelu_pytorch_tanh"},
    wrapped={"language_model.model.": "model.", "language_model.lm_head.": "lm_head.", "model.language_model.": "model."},
    tied=True,
    doubts=doubts,
    derived=scaled_by,
)
