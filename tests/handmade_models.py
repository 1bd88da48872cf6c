"""Tiny random models of every architecture, by the names of a checkpoint and by those of a GGUF file.

Both sides are written down by hand: the names as llama.cpp's own files have them, the rows moved by NumPy, the key-values with
the types that its converter gives them. Norms are such that adding 1 rounds nothing.

Source: ggml-org/llama.cpp: conversion/llama.py, qwen.py, gemma.py, gpt_oss.py (names, order of rows), base.py (key-values).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from handmade_checkpoint import checkpoint
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]
Pairs = dict[str, tuple[str, Any]]

N_TOKENS, WIDTH, N_HEADS, N_SHARED, HEAD, HIDDEN, N_LAYERS, N_EXPERTS = 48, 64, 4, 2, 16, 96, 2, 4
PROMPT = range(24)
CONFIG = {
    "vocab_size": N_TOKENS,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": N_SHARED,
    "head_dim": HEAD,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Handmade:
    """A model on both sides.

    hf, config  : of a checkpoint
    gguf, pairs : of a GGUF file: arrays in float32, key-values with the name of their type
    """

    arch: str
    hf: Arrays
    config: dict[str, Any]
    gguf: Arrays
    pairs: Pairs

    def folder(self, path: Path) -> Path:
        """Write the checkpoint."""
        return checkpoint(path, self.hf, self.config)

    def file(self, path: Path) -> Path:
        """Write the GGUF file with the gguf package's own writer."""
        writer = gguf.GGUFWriter(path, self.arch)
        for key, (kind, value) in self.pairs.items():
            if key != "general.architecture":
                writer.add_key_value(key, value, gguf.GGUFValueType[kind])
        for name, array in self.gguf.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


@dataclass
class Maker:
    """Draws arrays, and keeps those of both sides."""

    rng: np.random.Generator
    hf: Arrays = field(default_factory=dict)
    gguf: Arrays = field(default_factory=dict)

    def add(
        self, name: str, there: str, shape: tuple[int, ...], change: Callable[[Array], Array] = np.asarray, norm: bool = False
    ) -> None:
        """Draw an array of a checkpoint in bfloat16; what becomes of it stands in the GGUF file."""
        drawn = self.rng.integers(-24, 25, shape) / 128 if norm else self.rng.standard_normal(shape) * 0.3
        self.put(name, there, drawn.astype(np.float32).astype(ml_dtypes.bfloat16), change)

    def put(self, name: str, there: str, array: Array, change: Callable[[Array], Array] = np.asarray) -> None:
        """Keep an array, and what becomes of it."""
        self.hf[name] = array
        self.gguf[there] = np.ascontiguousarray(change(array.astype(np.float32)))


def paired(n_heads: int) -> Callable[[Array], Array]:
    """Lay the rows of the two halves of each head beside one another."""

    def change(rows: Array) -> Array:
        columns = rows.reshape(len(rows), -1)
        return columns.reshape(n_heads, 2, -1, columns.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    return change


def plus_one(values: Array) -> Array:
    """Add 1."""
    return values + np.float32(1)


def attention(make: Maker, layer: int, biases: str, with_norms: bool, by_pairs: bool, shift: Callable[[Array], Array]) -> None:
    """Draw the attention of a layer; `biases` are the letters of the projections that have one."""
    sizes = {
        "q": (N_HEADS * HEAD, WIDTH),
        "k": (N_SHARED * HEAD, WIDTH),
        "v": (N_SHARED * HEAD, WIDTH),
        "o": (WIDTH, N_HEADS * HEAD),
    }
    for letter, (rows, columns) in sizes.items():
        change = paired({"q": N_HEADS, "k": N_SHARED}[letter]) if by_pairs and letter in "qk" else np.asarray
        here, there = (
            f"model.layers.{layer}.self_attn.{letter}_proj",
            f"blk.{layer}.attn_{'output' if letter == 'o' else letter}",
        )
        make.add(f"{here}.weight", f"{there}.weight", (rows, columns), change)
        if letter in biases:
            make.add(f"{here}.bias", f"{there}.bias", (rows,), change)
        if with_norms and letter in "qk":
            make.add(f"model.layers.{layer}.self_attn.{letter}_norm.weight", f"{there}_norm.weight", (HEAD,), shift, norm=True)


def feed_forward(make: Maker, layer: int) -> None:
    """Draw the matrices of a dense feed-forward network."""
    for matrix, shape in {"gate": (HIDDEN, WIDTH), "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN)}.items():
        make.add(f"model.layers.{layer}.mlp.{matrix}_proj.weight", f"blk.{layer}.ffn_{matrix}.weight", shape)


def norms(make: Maker, layer: int, names: Mapping[str, str], shift: Callable[[Array], Array] = np.asarray) -> None:
    """Draw the norms of a layer."""
    for here, there in names.items():
        make.add(f"model.layers.{layer}.{here}.weight", f"blk.{layer}.{there}.weight", (WIDTH,), shift, norm=True)


def ends(make: Maker, tied: bool, shift: Callable[[Array], Array] = np.asarray) -> None:
    """Draw what belongs to no layer."""
    make.add("model.embed_tokens.weight", "token_embd.weight", (N_TOKENS, WIDTH))
    make.add("model.norm.weight", "output_norm.weight", (WIDTH,), shift, norm=True)
    if not tied:
        make.add("lm_head.weight", "output.weight", (N_TOKENS, WIDTH))


def says(arch: str, **more: tuple[str, Any]) -> Pairs:
    """Give the key-values of a model without a tokenizer; keys in `more` have __ for a dot."""
    common = {
        "block_count": ("UINT32", N_LAYERS),
        "context_length": ("UINT32", 128),
        "embedding_length": ("UINT32", WIDTH),
        "feed_forward_length": ("UINT32", HIDDEN),
        "attention.head_count": ("UINT32", N_HEADS),
        "attention.head_count_kv": ("UINT32", N_SHARED),
        "attention.layer_norm_rms_epsilon": ("FLOAT32", float(np.float32(1e-5))),
        "attention.key_length": ("UINT32", HEAD),
        "attention.value_length": ("UINT32", HEAD),
        "vocab_size": ("UINT32", N_TOKENS),
    }
    own = common | {key.replace("__", "."): value for key, value in more.items()}
    return {
        "general.architecture": ("STRING", arch),
        "general.type": ("STRING", "model"),
        "general.name": ("STRING", "model"),
        "general.quantization_version": ("UINT32", 2),
        **{f"{arch}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": ("STRING", "none"),
        "tokenizer.ggml.bos_token_id": ("UINT32", 1),
        "tokenizer.ggml.eos_token_id": ("UINT32", 2),
        "tokenizer.ggml.padding_token_id": ("UINT32", 0),
    }


LAYER_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def one_plus(make: Maker) -> None:
    """Move the norms of a checkpoint to about 1, where nothing is added to them."""
    for names in (make.hf, make.gguf):
        for name in names:
            if "norm" in name:
                names[name] = (names[name].astype(np.float32) + 1).astype(names[name].dtype)


def llama(biased: bool = False, tied: bool = False) -> Handmade:
    """Make a llama."""
    make = Maker(np.random.default_rng(1))
    ends(make, tied)
    for layer in range(N_LAYERS):
        norms(make, layer, LAYER_NORMS)
        attention(make, layer, "qkvo" if biased else "", False, True, np.asarray)
        feed_forward(make, layer)
    one_plus(make)
    given = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 500000.0, "hidden_act": "silu"}
    config = CONFIG | given | {"attention_bias": biased, "mlp_bias": False, "tie_word_embeddings": tied}
    said = says("llama", rope__freq_base=("FLOAT32", 500000.0), rope__dimension_count=("UINT32", HEAD))
    return Handmade("llama", make.hf, config, make.gguf, said)


def qwen2() -> Handmade:
    """Make a Qwen2."""
    make = Maker(np.random.default_rng(2))
    ends(make, tied=True)
    for layer in range(N_LAYERS):
        norms(make, layer, LAYER_NORMS)
        attention(make, layer, "qkv", False, False, np.asarray)
        feed_forward(make, layer)
    one_plus(make)
    given = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_theta": 1e6, "hidden_act": "silu"}
    config = CONFIG | given | {"use_sliding_window": False, "tie_word_embeddings": True}
    return Handmade("qwen2", make.hf, config, make.gguf, says("qwen2", rope__freq_base=("FLOAT32", 1e6)))


def qwen3(with_experts: bool = False) -> Handmade:
    """Make a Qwen3."""
    make = Maker(np.random.default_rng(3))
    ends(make, tied=False)
    for layer in range(N_LAYERS):
        norms(make, layer, LAYER_NORMS)
        attention(make, layer, "", True, False, np.asarray)
        if not with_experts:
            feed_forward(make, layer)
            continue
        make.add(f"model.layers.{layer}.mlp.gate.weight", f"blk.{layer}.ffn_gate_inp.weight", (N_EXPERTS, WIDTH))
        for matrix, shape in {"gate": (32, WIDTH), "up": (32, WIDTH), "down": (WIDTH, 32)}.items():
            stack = (make.rng.standard_normal((N_EXPERTS, *shape)) * 0.3).astype(ml_dtypes.bfloat16)
            for number, one in enumerate(stack):
                make.hf[f"model.layers.{layer}.mlp.experts.{number}.{matrix}_proj.weight"] = one
            make.gguf[f"blk.{layer}.ffn_{matrix}_exps.weight"] = stack.astype(np.float32)
    one_plus(make)
    name, kind = ("qwen3moe", "qwen3_moe") if with_experts else ("qwen3", "qwen3")
    given = {"model_type": kind, "rope_theta": 1e6, "hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
    config = CONFIG | given | {"architectures": ["Qwen3MoeForCausalLM" if with_experts else "Qwen3ForCausalLM"]}
    said = says(name, rope__freq_base=("FLOAT32", 1e6))
    if with_experts:
        config |= {"num_experts": N_EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        config |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
        said |= {"qwen3moe.expert_count": ("UINT32", N_EXPERTS), "qwen3moe.expert_used_count": ("UINT32", 2)}
        said |= {"qwen3moe.expert_feed_forward_length": ("UINT32", 32)}
    return Handmade(name, make.hf, config, make.gguf, said)


def gemma3() -> Handmade:
    """Make a Gemma 3."""
    make = Maker(np.random.default_rng(4))
    ends(make, tied=True, shift=plus_one)
    four = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    for layer in range(N_LAYERS):
        norms(make, layer, four, plus_one)
        attention(make, layer, "", True, False, plus_one)
        feed_forward(make, layer)
    given = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_activation": "gelu_pytorch_tanh"}
    rope = {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "sliding_window": 8, "sliding_window_pattern": 6}
    config = CONFIG | given | rope | {"query_pre_attn_scalar": HEAD, "tie_word_embeddings": True}
    said = says(
        "gemma3",
        rope__freq_base=("FLOAT32", 1e6),
        rope__freq_base_swa=("FLOAT32", 10000.0),
        attention__sliding_window=("UINT32", 8),
        attention__sliding_window_pattern=("UINT32", 6),
    )
    return Handmade("gemma3", make.hf, config, make.gguf, said)


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def packed_stack(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Draw blocks and scales of a stack of experts, and what they are: [experts, rows, columns]."""
    codes = rng.integers(0, 16, shape, np.uint8)
    scales = rng.integers(120, 126, (*shape[:-1], shape[-1] // 32), np.uint8)
    blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).reshape(*scales.shape, 16)
    values = FP4[codes] * np.repeat(np.exp2(scales.astype(np.float32) - 127), 32, axis=-1)
    return blocks, scales, values


def gpt_oss(packed: bool = False) -> Handmade:
    """Make a gpt-oss; dense experts lie transposed in a checkpoint, packed ones do not."""
    make = Maker(np.random.default_rng(5))
    ends(make, tied=False)
    for layer in range(N_LAYERS):
        here, there = f"model.layers.{layer}", f"blk.{layer}"
        norms(make, layer, {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"})
        attention(make, layer, "qkvo", False, False, np.asarray)
        make.add(f"{here}.self_attn.sinks", f"{there}.attn_sinks.weight", (N_HEADS,))
        make.add(f"{here}.mlp.router.weight", f"{there}.ffn_gate_inp.weight", (N_EXPERTS, WIDTH))
        make.add(f"{here}.mlp.router.bias", f"{there}.ffn_gate_inp.bias", (N_EXPERTS,))
        for matrix, shape in {"gate_up": (N_EXPERTS, 2 * HIDDEN, WIDTH), "down": (N_EXPERTS, WIDTH, HIDDEN)}.items():
            name = f"{here}.mlp.experts.{matrix}_proj"
            if packed:
                make.hf[f"{name}_blocks"], make.hf[f"{name}_scales"], values = packed_stack(make.rng, shape)
            else:
                values = (make.rng.standard_normal(shape) * 0.3).astype(ml_dtypes.bfloat16).astype(np.float32)
                make.hf[name] = np.ascontiguousarray(values.swapaxes(1, 2)).astype(ml_dtypes.bfloat16)
            bias = (make.rng.standard_normal(shape[:2]) * 0.3).astype(ml_dtypes.bfloat16)
            make.hf[f"{name}_bias"] = bias
            parts = {"gate": 0, "up": 1} if matrix == "gate_up" else {"down": 0}
            for part, first in parts.items():
                make.gguf[f"{there}.ffn_{part}_exps.weight"] = np.ascontiguousarray(values[:, first :: len(parts)])
                make.gguf[f"{there}.ffn_{part}_exps.bias"] = bias[:, first :: len(parts)].astype(np.float32)
    one_plus(make)
    given = {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "hidden_act": "silu", "attention_bias": True}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0}
    config = CONFIG | given | {"rope_theta": 150000.0, "rope_scaling": {**yarn, "truncate": False}, "sliding_window": 8}
    config |= {"num_local_experts": N_EXPERTS, "num_experts_per_tok": 2}
    config |= {"quantization_config": {"quant_method": "mxfp4"}} if packed else {}
    said = says(
        "gpt-oss",
        rope__freq_base=("FLOAT32", 150000.0),
        rope__scaling__type=("STRING", "yarn"),
        rope__scaling__factor=("FLOAT32", 4.0),
        rope__scaling__original_context_length=("UINT32", 32),
        rope__scaling__yarn_beta_fast=("FLOAT32", 32.0),
        rope__scaling__yarn_beta_slow=("FLOAT32", 1.0),
        attention__sliding_window=("UINT32", 8),
        expert_count=("UINT32", N_EXPERTS),
        expert_used_count=("UINT32", 2),
        expert_feed_forward_length=("UINT32", HIDDEN),
    )
    return Handmade("gpt-oss", make.hf, config, make.gguf, said)


MODELS: dict[str, Handmade] = {
    "llama": llama(),
    "llama-tied": llama(tied=True),
    "llama-biased": llama(biased=True),
    "qwen2": qwen2(),
    "qwen3": qwen3(),
    "qwen3moe": qwen3(with_experts=True),
    "gemma3": gemma3(),
    "gpt-oss": gpt_oss(),
    "gpt-oss-packed": gpt_oss(packed=True),
}
