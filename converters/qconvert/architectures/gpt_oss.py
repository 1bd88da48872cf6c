"""gpt-oss: stacks of experts, gate and up rows in turn in a checkpoint; biases, sinks, windows in every other layer.

Packed experts lie as they are multiplied, [experts, out, in]; dense ones the other way round in a checkpoint.

Source: ggml-org/llama.cpp: conversion/gpt_oss.py, src/models/openai-moe.cpp; huggingface/transformers 5.23.0: models/gpt_oss.
"""

from qconvert.architectures.architecture import (
    DECODER,
    EMBEDDING,
    EPSILON,
    EXPERTS,
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

_EXPERTS = IN_LAYER + "mlp.experts."
_GATE_UP = "expert={expert_count} row={} part=2 -> part expert row"


def doubts(config: Config) -> str:
    """Say that llama.cpp rounds the bounds between which frequencies are scaled, as published models do not."""
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("truncate") is False:
        return "rope_scaling.truncate is false: llama.cpp rounds the bounds of the scaling, results differ a little"
    return ""


GPT_OSS = Architecture(
    "gpt-oss",
    {"gpt_oss": "GptOssForCausalLM"},
    (
        Tensor(EMBEDDING),
        Tensor(IN_LAYER + "input_layernorm.weight"),
        *(
            Tensor(f"{IN_LAYER}self_attn.{matrix}_proj.{kind}")
            for matrix in ("q", "k", "v", "o")
            for kind in ("weight", "bias")
        ),
        Tensor(IN_LAYER + "self_attn.sinks"),
        Tensor(IN_LAYER + "post_attention_layernorm.weight"),
        Tensor(IN_LAYER + "mlp.router.weight"),
        Tensor(IN_LAYER + "mlp.router.bias"),
        Tensor(_EXPERTS + "gate_up_proj", (_EXPERTS + "gate_proj.weight", _EXPERTS + "up_proj.weight"), _GATE_UP, flipped=True),
        Tensor(_EXPERTS + "gate_up_proj_bias", (_EXPERTS + "gate_proj.bias", _EXPERTS + "up_proj.bias"), _GATE_UP),
        Tensor(_EXPERTS + "down_proj", (_EXPERTS + "down_proj.weight",), flipped=True),
        Tensor(_EXPERTS + "down_proj_bias", (_EXPERTS + "down_proj.bias",)),
        Tensor(NORM),
        Tensor(OUTPUT),
    ),
    (
        *DECODER,
        *rope_facts(),
        EPSILON,
        *(Fact(fact.key, fact.fields, required=True) for fact in HEAD),
        Fact("attention.sliding_window", ("sliding_window",), required=True),
        *EXPERTS,
        Fact("expert_feed_forward_length", ("intermediate_size",), required=True),
    ),
    fixed={"hidden_act": "silu", "attention_bias": True, "rope_scaling": {"truncate": False}},
    doubts=doubts,
)
