"""A llama's GGUF file by the names and rows of its checkpoint, with the gguf package and numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

# Of a layer, and of the whole.
LAYER = (
    *("input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
)
WHOLE = ("model.embed_tokens", "model.norm", "lm_head")


def decode(tensors: Iterable[gguf.ReaderTensor], config: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Decode every tensor.

    tensors : as the package's reader gives them
    config  : of the checkpoint
    returns : values by the names of the checkpoint, rows of q and k as transformers has them
    """
    n_layers = config["num_hidden_layers"]
    modules = [*(f"model.layers.{layer}.{part}" for layer in range(n_layers) for part in LAYER), *WHOLE]
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, n_layers)
    names = {table.get_name(module): module for module in modules}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for tensor in tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        stem = tensor.name.removesuffix(".weight")
        if n_heads := heads.get(stem.rpartition(".")[2]):
            values = split_halves(values, n_heads)
        found[f"{names[stem]}.weight"] = values
    return found


def split_halves(rows: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Put rows that are turned in pairs of neighbours, as llama.cpp has them, into two halves of each head."""
    return rows.reshape(n_heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
