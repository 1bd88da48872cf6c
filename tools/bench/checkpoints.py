"""Checkpoints made to be measured: of any size, of random weights, written a tile at a time.

Knows the two containers' headers as their specifications have them, and nothing of the library that is measured.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

# ggml-org/ggml: include/ggml.h, GGML_TYPE_Q4_0 and GGML_TYPE_Q8_0; src/ggml-common.h, block_q4_0 and block_q8_0
Q4_0, Q8_0 = (2, np.dtype([("scale", "<f2"), ("codes", "u1", 16)])), (8, np.dtype([("scale", "<f2"), ("codes", "i1", 32)]))
BLOCK = 32  # weights of either
ALIGNMENT = 32
TILE_BLOCKS = 1 << 20
HIDDEN, FEED_FORWARD, HEADS, VOCABULARY = 2048, 8192, 16, 1024
LAYER = {
    "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FEED_FORWARD, HIDDEN), "mlp.up_proj": (FEED_FORWARD, HIDDEN), "mlp.down_proj": (HIDDEN, FEED_FORWARD),
}  # fmt: skip
ENDS = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,), "lm_head": (VOCABULARY, HIDDEN)}
LAYER_BYTES = 2 * sum(int(np.prod(shape)) for shape in LAYER.values())
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def write_gguf(path: Path, shapes: Sequence[tuple[int, int]], kind: tuple[int, np.dtype[np.void]] = Q8_0) -> None:
    """Write a GGUF file of random tensors of one type.

    shapes : (rows, columns) of each tensor; columns a multiple of 32
    """
    type_id, block = kind
    with path.open("wb") as file:
        file.write(gguf_header(shapes, type_id, [rows * cols // BLOCK * block.itemsize for rows, cols in shapes]))
        for rows, cols in shapes:
            for n_blocks in tiles(rows * cols // BLOCK):
                file.write(random_blocks(n_blocks, block))
            file.write(bytes(-file.tell() % ALIGNMENT))


@lru_cache(maxsize=2)
def random_blocks(n_blocks: int, block: np.dtype[np.void]) -> bytes:
    """Make blocks of random codes and scales; always the same for a number: writing is faster than making."""
    rng = np.random.default_rng(n_blocks)
    blocks = np.empty(n_blocks, block)
    blocks["scale"] = rng.uniform(0.001, 0.02, n_blocks)
    blocks["codes"] = rng.integers(0, 256, blocks["codes"].shape, np.uint8).view(blocks["codes"].dtype)
    return blocks.tobytes()


def write_packed(path: Path, n_cols: int, type_id: int, blocks: NDArray[np.uint8]) -> None:
    """Write a GGUF file of one tensor whose blocks are given.

    blocks : (n_rows, bytes of a row) uint8
    """
    with path.open("wb") as file:
        file.write(gguf_header([(len(blocks), n_cols)], type_id, [blocks.nbytes]))
        file.write(blocks.tobytes())
        file.write(bytes(-file.tell() % ALIGNMENT))


def write_small_safetensors(path: Path, n_tensors: int) -> None:
    """Write a safetensors file of many tensors of one row."""
    with path.open("wb") as file:
        write_shard(file, {f"blk.{number}.ffn_up.weight": (1, BLOCK) for number in range(n_tensors)}, np.random.default_rng(0))


def gguf_header(shapes: Sequence[tuple[int, int]], type_id: int, sizes: Sequence[int]) -> bytes:
    """Give the header of a GGUF file, padded: tensors of one type in the order in which they lie.

    sizes : bytes of each
    """
    header = [struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), 1)]
    header += [text(b"general.architecture"), struct.pack("<I", 8), text(b"llama")]
    byte_offset = 0
    for number, ((rows, cols), n_bytes) in enumerate(zip(shapes, sizes, strict=True)):
        header += [text(b"blk.%d.ffn_up.weight" % number), struct.pack("<IQQIQ", 2, cols, rows, type_id, byte_offset)]
        byte_offset += padded(n_bytes)
    found = b"".join(header)
    return found.ljust(padded(len(found)), b"\0")


def write_llama(folder: Path, n_layers: int) -> None:
    """Write a llama without a tokenizer: a shard of bfloat16 for every layer, one for what is not in layers, their index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": n_layers}))
    shards = [{f"{name}.weight": shape for name, shape in ENDS.items()}]
    shards += [{f"model.layers.{n}.{name}.weight": shape for name, shape in LAYER.items()} for n in range(n_layers)]
    rng, index = np.random.default_rng(0), {}
    for number, tensors in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        index |= dict.fromkeys(tensors, name)
        with (folder / name).open("wb") as file:
            write_shard(file, tensors, rng)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_shard(file: BinaryIO, tensors: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """Write one safetensors file of random bfloat16, none larger than one."""
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for n_weights in tiles(end // 2):
        bits: NDArray[np.uint16] = rng.integers(0x3C00, 0x3F80, n_weights, np.uint16)
        file.write(bits.tobytes())


def tiles(n: int) -> Iterator[int]:
    """Cut a number of blocks into tiles."""
    for first in range(0, n, TILE_BLOCKS):
        yield min(TILE_BLOCKS, n - first)


def text(value: bytes) -> bytes:
    """Give a GGUF string."""
    return struct.pack("<Q", len(value)) + value


def padded(n_bytes: int) -> int:
    """Round up to the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
