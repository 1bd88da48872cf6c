"""Small random models of every architecture that is written for a runtime, made and saved by transformers.

Every parameter is drawn, norms and biases among them, which transformers would begin as ones and zeros: what is left out,
permuted or added twice must show in the logits. Windows of attention are shorter than the prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

N_TOKENS = 320
SIZES: dict[str, Any] = {
    "vocab_size": N_TOKENS,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "head_dim": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e6}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 0.517583,  # ends at frequency 3.99999: llama.cpp, which rounds this up, computes the same
    "original_max_position_embeddings": 64,
    "truncate": False,
}
# What each has that others have not: biases, norms of heads, ties, windows, experts, other frequencies.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama-biased": {"model_type": "llama", "attention_bias": True},
    "llama3-rope": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE},
    "mistral": {"sliding_window": None, "rope_parameters": PLAIN_ROPE},
    "qwen2": {"head_dim": 16, "rope_parameters": PLAIN_ROPE},
    "qwen3": {"tie_word_embeddings": True, "rope_parameters": PLAIN_ROPE},
    "gemma3_text": {"num_hidden_layers": 7, "query_pre_attn_scalar": 32, "sliding_window": 8},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "intermediate_size": 96,
        "rope_parameters": YARN_ROPE,
    },
}
# A matrix's deviation times the root of its columns. llama.cpp reads GELU from a table in float16, which moves the logits of
# random weights by 2e-4 of their size: with smaller embeddings these are smaller.
SPREAD, SMALL_SPREAD = 2.0, 0.25
NORM_STEP = 2.0**-7  # of a norm's values: small enough to differ, so large that adding 1 rounds nothing


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Make a model, the same on every call, and let transformers save it; returns the folder."""
    given = {"model_type": name} | SIZES | CONFIGS[name]
    config = AutoConfig.for_model(**given)
    torch.manual_seed(sorted(CONFIGS).index(name))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                drawn = torch.randint(-24, 25, parameter.shape) * NORM_STEP
                parameter.copy_(drawn if "gemma" in name else 1 + drawn)
            else:
                spread = SMALL_SPREAD if "gemma" in name and "embed" in key else SPREAD
                parameter.normal_(std=0.3 if parameter.ndim == 1 else spread * parameter.shape[-1] ** -0.5)
    model.to(dtype).save_pretrained(folder)
    return folder
