"""Qwen2: biases of queries, keys and values; rotary halves stay as they are.

Source: ggml-org/llama.cpp: conversion/qwen.py (Qwen2Model), src/models/qwen2.cpp; huggingface/transformers 5.23.0:
models/qwen2.
"""

from qconvert.architectures.architecture import (
    DECODER,
    EMBEDDING,
    EPSILON,
    HEAD,
    IN_LAYER,
    NORM,
    OUTPUT,
    Architecture,
    Config,
    Tensor,
    rope_facts,
)


def doubts(config: Config) -> str:
    """Say that llama.cpp attends to all tokens where a Qwen is told not to."""
    if config.get("use_sliding_window"):
        window = config.get("sliding_window")
        return f"sliding window of {window} tokens: a gguf file has no place for it, beyond it results differ"
    return ""


QWEN2 = Architecture(
    "qwen2",
    {"qwen2": "Qwen2ForCausalLM"},
    (
        Tensor(EMBEDDING),
        Tensor(IN_LAYER + "input_layernorm.weight"),
        Tensor(IN_LAYER + "self_attn.q_proj.weight"),
        Tensor(IN_LAYER + "self_attn.q_proj.bias"),
        Tensor(IN_LAYER + "self_attn.k_proj.weight"),
        Tensor(IN_LAYER + "self_attn.k_proj.bias"),
        Tensor(IN_LAYER + "self_attn.v_proj.weight"),
        Tensor(IN_LAYER + "self_attn.v_proj.bias"),
        Tensor(IN_LAYER + "self_attn.o_proj.weight"),
        Tensor(IN_LAYER + "post_attention_layernorm.weight"),
        Tensor(IN_LAYER + "mlp.gate_proj.weight"),
        Tensor(IN_LAYER + "mlp.up_proj.weight"),
        Tensor(IN_LAYER + "mlp.down_proj.weight"),
        Tensor(NORM),
        Tensor(OUTPUT),
    ),
    (*DECODER, *rope_facts(), EPSILON, *HEAD),
    fixed={"hidden_act": "silu", "use_sliding_window": False},
    doubts=doubts,
)
