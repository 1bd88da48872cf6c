"""A llama of one layer and rows of 256, which every type fits: random numbers, written by the gguf package's own writer."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

WIDTH, N_TOKENS, N_HEADS = 256, 64, 4
LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
MATRICES = {
    "token_embd.weight": N_TOKENS,
    "output.weight": N_TOKENS,
    **{
        f"blk.0.{part}.weight": WIDTH
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    },
}
NORMS = ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")
PROMPT = range(32)  # token ids: the model has no texts for them


def weights() -> dict[str, NDArray[np.float32]]:
    """Make the tensors, the same on every call."""
    rng = np.random.default_rng(20)
    made = {name: (rng.standard_normal((rows, WIDTH)) * 0.1).astype(np.float32) for name, rows in MATRICES.items()}
    return made | {name: np.ones(WIDTH, np.float32) for name in NORMS}


def write(
    path: Path, packed: dict[str, tuple[NDArray[Any], int]] | None = None, order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE
) -> Path:
    """Write the model.

    packed : rows of blocks and ggml's number of their type, for tensors that are not to be float32, or are added
    order  : of the bytes in header and floats; blocks are written as they are given
    """
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(N_TOKENS)
    writer.add_context_length(len(PROMPT))
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(N_HEADS)
    writer.add_rope_dimension_count(WIDTH // N_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    floats = {name: (array, int(gguf.GGMLQuantizationType.F32)) for name, array in weights().items()}
    for name, (array, type_id) in (floats | (packed or {})).items():
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType(type_id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
