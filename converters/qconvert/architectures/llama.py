"""Llama and Mistral: rotary halves of queries and keys lie as neighbours in a GGUF file, which scales by a tensor.

Source: ggml-org/llama.cpp: conversion/llama.py (LlamaModel); huggingface/transformers 5.23.0: models/llama, models/mistral.
"""

from qconvert.architectures.architecture import (
    DECODER,
    EMBEDDING,
    EPSILON,
    HEAD,
    IN_LAYER,
    KEY_PAIRS,
    NORM,
    OUTPUT,
    QUERY_PAIRS,
    Architecture,
    Config,
    Fact,
    Tensor,
    rope_facts,
)


def doubts(config: Config) -> str:
    """Say that llama.cpp attends to all tokens where a Mistral does not."""
    window, length = config.get("sliding_window"), config.get("max_position_embeddings")
    if config.get("model_type") == "mistral" and isinstance(window, int) and (not isinstance(length, int) or window < length):
        return f"sliding window of {window} tokens: a gguf file of llama has no place for it, beyond it results differ"
    return ""


LLAMA = Architecture(
    "llama",
    {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"},
    (
        Tensor(EMBEDDING),
        Tensor(IN_LAYER + "input_layernorm.weight"),
        Tensor(IN_LAYER + "self_attn.q_proj.weight", order=QUERY_PAIRS),
        Tensor(IN_LAYER + "self_attn.q_proj.bias", order=QUERY_PAIRS, optional=True),
        Tensor(IN_LAYER + "self_attn.k_proj.weight", order=KEY_PAIRS),
        Tensor(IN_LAYER + "self_attn.k_proj.bias", order=KEY_PAIRS, optional=True),
        Tensor(IN_LAYER + "self_attn.v_proj.weight"),
        Tensor(IN_LAYER + "self_attn.v_proj.bias", optional=True),
        Tensor(IN_LAYER + "self_attn.o_proj.weight"),
        Tensor(IN_LAYER + "self_attn.o_proj.bias", optional=True),
        Tensor(IN_LAYER + "post_attention_layernorm.weight"),
        Tensor(IN_LAYER + "mlp.gate_proj.weight"),
        Tensor(IN_LAYER + "mlp.gate_proj.bias", optional=True),
        Tensor(IN_LAYER + "mlp.up_proj.weight"),
        Tensor(IN_LAYER + "mlp.up_proj.bias", optional=True),
        Tensor(IN_LAYER + "mlp.down_proj.weight"),
        Tensor(IN_LAYER + "mlp.down_proj.bias", optional=True),
        Tensor(NORM),
        Tensor(OUTPUT),
    ),
    (
        *DECODER,
        *rope_facts(),
        EPSILON,
        *HEAD,
        Fact("rope.dimension_count", ("head_dim",), over=("hidden_size", "num_attention_heads")),
    ),
    fixed={"hidden_act": "silu"},
    flags={
        "attention_bias": "model.layers.0.self_attn.q_proj.bias",
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias",
    },
    scalings=("default", "linear", "yarn", "llama3"),
    doubts=doubts,
)
