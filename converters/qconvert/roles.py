"""What a tensor is in a language model, by its name: which block, which matrix of it, and whether quantizing is for it.

Knows llama.cpp's names, and those of Hugging Face checkpoints by a small table. Must not know block types nor values.

Source: ggml-org/llama.cpp at 007dbbf3: src/llama-quant.cpp (tensor_get_category, tensor_allows_quantization).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from qconvert.containers.gguf_values import GGUFArray

Shape = tuple[int, ...]

# First match counts. A compressed key-value projection stands for the values it holds.
CATEGORIES = (
    ("attn_qkv.weight", "attn_qkv"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
WHOLE = {
    "output.weight": "output",
    "token_embd.weight": "token_embd",
    "per_layer_token_embd.weight": "token_embd",
}
# Small, or read by runtimes as floats only.
KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight",
    *(f"time_mix_{part}.weight" for part in (
        "first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2", "decay_w1", "decay_w2", "lerp_fused",
    )),
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
KEPT_WHOLE = ("position_embd.weight", "token_types.weight")

MAX_NAME = 255  # a longer one is no name of these, and searching it costs the square of its length
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")  # more digits are no number of a block, and too many are no int
_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d{1,9})\.(.+?)(\.weight|\.bias)?")
_EXPERT = re.compile(r"\.experts\.(\d{1,9})\.")
# Modules of a layer, and of a whole model, as Hugging Face checkpoints call them.
_MODULES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"self_attn\.([qkv])_proj", r"attn_\1"),
        (r"self_attn\.o_proj", "attn_output"),
        (r"self_attn\.(?:qkv_proj|query_key_value)", "attn_qkv"),
        (r"self_attn\.kv_b_proj", "attn_kv_b"),
        (r"(?:mlp|block_sparse_moe)\.(?:gate|router)", "ffn_gate_inp"),
        (r"mlp\.(gate|up|down)_proj", r"ffn_\1"),
        (r"mlp\.gate_up_proj", "ffn_up"),
        (r"mlp\.experts\.(?:\d+\.)?(gate|up|down)_proj", r"ffn_\1_exps"),
        (r"mlp\.shared_experts?\.(gate|up|down)_proj", r"ffn_\1_shexp"),
        (r"block_sparse_moe\.experts\.\d+\.w1", "ffn_gate_exps"),
        (r"block_sparse_moe\.experts\.\d+\.w2", "ffn_down_exps"),
        (r"block_sparse_moe\.experts\.\d+\.w3", "ffn_up_exps"),
        (r"(?:.*\.)?conv1d", "ssm_conv1d"),
    )
)
_MODEL = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings)\.weight", "token_embd.weight"),
        (r"(?:.*\.)?lm_head\.weight", "output.weight"),
        (r"(?:.*\.)?(?:position_embeddings|wpe)\.weight", "position_embd.weight"),
        (r"(?:.*\.)?token_type_embeddings\.weight", "token_types.weight"),
    )
)
# Models in which eight heads share one value projection of 80 layers or so, which therefore weighs little.
_SEVENTY = {("llama", 80), ("qwen2", 80), ("deci", 80), ("jais2", 68)}


@dataclass(frozen=True, slots=True)
class Traits:
    """What of a model decides how its tensors are quantized.

    n_blocks  : blocks, or layers
    gqa       : query heads for each key-value head
    n_experts : experts in a block; 0 or 1 where there are none
    is_70b    : whether llama.cpp counts it as a model of 70B
    is_tied   : whether the token embedding is the output matrix as well
    """

    n_blocks: int
    gqa: int
    n_experts: int
    is_70b: bool
    is_tied: bool


@cache
def runtime_name(name: str) -> str:
    """Give the name by which llama.cpp would call a tensor; the same name where it is not known.

    >>> runtime_name("model.layers.3.self_attn.v_proj.weight")
    'blk.3.attn_v.weight'
    """
    if len(name) > MAX_NAME or _BLOCK.search(name):
        return name
    if layer := _LAYER.fullmatch(name):
        number, module, suffix = layer.groups()
        for pattern, found in _MODULES:
            if match := pattern.fullmatch(module):
                return f"blk.{number}.{match.expand(found)}{suffix or '.weight'}"
    return next((found for pattern, found in _MODEL if pattern.fullmatch(name)), name)


def category(name: str) -> str:
    """Say which matrix of a model a runtime name is: "attn_v", "ffn_down", ..., "output", "token_embd", or "other"."""
    return WHOLE.get(name) or next((found for part, found in CATEGORIES if part in name), "other")


def block_of(name: str) -> int | None:
    """Give the number of the block that a runtime name says."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else None


def expert_of(name: str) -> int | None:
    """Give the number of the expert that a checkpoint's name says, where each has matrices of its own."""
    found = _EXPERT.search(name)
    return int(found[1]) if found else None


def kept_because(name: str) -> str | None:
    """Say why quantizing is not for a tensor of this runtime name; None where it is."""
    if part := next((part for part in KEPT if part in name), name if name in KEPT_WHOLE else None):
        return part.removesuffix(".weight").strip("._")
    if (block_of(name) is not None and not name.endswith("weight")) or name.endswith(".bias"):
        return "no weight by its name"
    return None


def traits_of(metadata: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Traits:
    """Find what decides a mix: from the metadata of a GGUF, else from names and shapes.

    shapes : of all tensors, by their own names
    """
    arch = metadata.get("general.architecture")
    named = {runtime_name(name): shape for name, shape in shapes.items()}
    blocks = _number(metadata.get(f"{arch}.block_count")) or _last(block_of(name) for name in named)
    heads, shared = (_number(metadata.get(f"{arch}.attention.head_count{kind}")) for kind in ("", "_kv"))
    if heads is None:
        heads, shared = _rows(named, "attn_q"), _rows(named, "attn_k")
    gqa = heads // shared if heads and shared else 1
    experts = _number(metadata.get(f"{arch}.expert_count"))
    if experts is None:
        stacks = [shape[0] for name, shape in named.items() if "_exps" in name and len(shape) > 2]
        numbered = _last(map(expert_of, shapes))
        experts = max(stacks, default=numbered)
    is_70b = gqa > 1 and (arch if isinstance(arch, str) else "llama", blocks) in _SEVENTY
    return Traits(blocks, gqa, experts, is_70b, "output.weight" not in named)


def _number(value: Any) -> int | None:
    """Read a count, or the first of those that are given block by block."""
    if isinstance(value, GGUFArray):
        value = next(iter(value.values()), None)
    return value if isinstance(value, int) else None


def _last(numbers: Any) -> int:
    return 1 + max((number for number in numbers if number is not None), default=-1)


def _rows(named: Mapping[str, Shape], matrix: str) -> int:
    return next((shape[0] for name, shape in named.items() if name.endswith(f".{matrix}.weight") and len(shape) > 1), 0)
