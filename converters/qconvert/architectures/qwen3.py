"""Qwen3, dense and with experts: norms of queries and keys; heads of a size of their own; each expert a module by itself.

Source: ggml-org/llama.cpp: conversion/qwen.py (Qwen3Model, Qwen2MoeModel), src/models/qwen3.cpp, src/models/qwen3moe.cpp;
huggingface/transformers 5.23.0: models/qwen3, models/qwen3_moe.
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
    Fact,
    Tensor,
    rope_facts,
)
from qconvert.architectures.qwen2 import doubts

_ATTENTION = (
    Tensor(EMBEDDING),
    Tensor(IN_LAYER + "input_layernorm.weight"),
    Tensor(IN_LAYER + "self_attn.q_proj.weight"),
    Tensor(IN_LAYER + "self_attn.q_norm.weight"),
    Tensor(IN_LAYER + "self_attn.k_proj.weight"),
    Tensor(IN_LAYER + "self_attn.k_norm.weight"),
    Tensor(IN_LAYER + "self_attn.v_proj.weight"),
    Tensor(IN_LAYER + "self_attn.o_proj.weight"),
    Tensor(IN_LAYER + "post_attention_layernorm.weight"),
)
_END = (Tensor(NORM), Tensor(OUTPUT))
_EXPERTS = "mlp.experts."
_FACTS = (*DECODER, *rope_facts(), EPSILON, *(Fact(fact.key, fact.fields, required=True) for fact in HEAD))
_FIXED = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}


def doubts_of_experts(config: Config) -> str:
    """Say that llama.cpp lets the weights of chosen experts sum to 1 where a config does not."""
    if not config.get("norm_topk_prob", False):
        return "norm_topk_prob is false: a gguf file has no place for it, llama.cpp takes true, results differ"
    return doubts(config)


QWEN3 = Architecture(
    "qwen3",
    {"qwen3": "Qwen3ForCausalLM"},
    (
        *_ATTENTION,
        Tensor(IN_LAYER + "mlp.gate_proj.weight"),
        Tensor(IN_LAYER + "mlp.up_proj.weight"),
        Tensor(IN_LAYER + "mlp.down_proj.weight"),
        *_END,
    ),
    _FACTS,
    fixed=_FIXED,
    doubts=doubts,
)
QWEN3_MOE = Architecture(
    "qwen3moe",
    {"qwen3_moe": "Qwen3MoeForCausalLM"},
    (
        *_ATTENTION,
        Tensor(IN_LAYER + "mlp.gate.weight"),
        *(
            Tensor(f"{IN_LAYER}{_EXPERTS}{{expert}}.{matrix}.weight", (f"{IN_LAYER}{_EXPERTS}{matrix}.weight",))
            for matrix in ("gate_proj", "up_proj", "down_proj")
        ),
        *_END,
    ),
    (
        *_FACTS,
        Fact("expert_count", ("num_experts", "num_local_experts"), required=True),
        Fact("expert_used_count", ("num_experts_per_tok",), required=True),
        Fact("expert_feed_forward_length", ("moe_intermediate_size",), required=True),
    ),
    fixed={**_FIXED, "decoder_sparse_step": 1, "mlp_only_layers": (), "norm_topk_prob": True},
    doubts=doubts_of_experts,
)
