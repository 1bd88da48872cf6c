"""The software that is compared with: what decodes, or packs, the first rows of the same weights, by peer.

Every peer is asked by the fastest function that it offers for the purpose, on one thread. Each function here makes ready all
that is not to be measured, and gives a maker: from a number of rows to what is run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from bench.cases import Case
from bench.weights import DISTINCT, DISTINCT_PACKED, ggml_blocks, repeated, type_id
from llama import library
from numpy.typing import NDArray

import qformat

Maker = Callable[[int], Callable[[], object]]
NF4_BLOCK = 64
# ggml-org/ggml: include/ggml.h (ggml_quantize_chunk); of single rows src/ggml-quants.h and src/ggml-cpu/quants.h.
CHUNK = ctypes.CFUNCTYPE(
    ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p
)
ROWS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


def decoder(peer: str, case: Case, weights: NDArray[np.float32], out: NDArray[np.float32]) -> Maker:
    """Give what decodes a case's weights with a peer; ggml writes to `out`, others make their own."""
    return DECODERS[peer](case, weights, out)


def encoder(peer: str, case: Case, weights: NDArray[np.float32]) -> Maker:
    """Give what packs weights with a peer, as `ggml_quantize_chunk` or by the quantizer of single rows where it is ggml's."""
    return ENCODERS[peer](case, weights)


def multiplier(peer: str, case: Case, weights: NDArray[np.float32], x: NDArray[np.float32]) -> Maker:
    """Give what multiplies rows of activations with a case's weights with a peer."""
    return MULTIPLIERS[peer](case, weights, x)


def _ggml_decoder(case: Case, weights: NDArray[np.float32], out: NDArray[np.float32]) -> Maker:
    decode = _row_function(f"dequantize_row_{_ggml_name(case)}")
    blocks = ggml_blocks(case.target, weights)
    return lambda n_rows: lambda: decode(blocks.ctypes.data, out.ctypes.data, n_rows * weights.shape[1])


def _gguf_py_decoder(case: Case, weights: NDArray[np.float32], out: NDArray[np.float32]) -> Maker:
    from gguf import GGMLQuantizationType, quants

    blocks, kind = ggml_blocks(case.target, weights), GGMLQuantizationType(type_id(case.target))
    return lambda n_rows: lambda: quants.dequantize(blocks[:n_rows], kind)


def _bitsandbytes_decoder(case: Case, weights: NDArray[np.float32], out: NDArray[np.float32]) -> Maker:
    torch, peer = _torch(), _bitsandbytes()
    codes, state = _bitsandbytes_encoder(case, weights)(DISTINCT)()

    def make(n_rows: int) -> Callable[[], object]:
        times = -(-n_rows // DISTINCT)
        n_weights = n_rows * weights.shape[1]
        held = codes.repeat(times, 1)[: n_weights // 2].contiguous()
        of = peer.QuantState(
            absmax=state.absmax.repeat(times)[: n_weights // NF4_BLOCK].contiguous(),
            shape=torch.Size((n_rows, weights.shape[1])),
            code=state.code,
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=torch.float32,
        )
        return lambda: peer.dequantize_4bit(held, of)

    return make


def _mlx_decoder(case: Case, weights: NDArray[np.float32], out: NDArray[np.float32]) -> Maker:
    mx, said, held = _mlx(), _mlx_kind(case), _mlx_arrays(case, weights)

    def make(n_rows: int) -> Callable[[], object]:
        arrays = held(n_rows)
        return lambda: mx.eval(mx.dequantize(*arrays, **said, dtype=mx.float32))

    return make


def _mlx_multiplier(case: Case, weights: NDArray[np.float32], x: NDArray[np.float32]) -> Maker:
    mx, said, held = _mlx(), _mlx_kind(case), _mlx_arrays(case, weights)
    left = mx.array(x)

    def make(n_rows: int) -> Callable[[], object]:
        arrays = held(n_rows)
        return lambda: mx.eval(mx.quantized_matmul(left, *arrays, transpose=True, **said))

    return make


def _mlx_arrays(case: Case, weights: NDArray[np.float32]) -> Callable[[int], list[Any]]:
    """Give what makes so many rows of packed arrays."""
    mx = _mlx()
    few = [np.array(array) for array in mx.quantize(mx.array(weights[:DISTINCT]), **_mlx_kind(case))]

    def make(n_rows: int) -> list[Any]:
        held = [mx.array(repeated(array, n_rows)) for array in few]
        mx.eval(*held)
        return held

    return make


def _compressed_tensors_decoder(case: Case, weights: NDArray[np.float32], out: NDArray[np.float32]) -> Maker:
    torch, (compressor, scheme) = _torch(), _compressed_tensors(case)
    few = qformat.quantize(weights[:DISTINCT], case.target)
    codes, scales = few.codes(), few.scales()

    def make(n_rows: int) -> Callable[[], object]:
        state = {
            "weight": torch.from_numpy(repeated(codes, n_rows).astype(np.int8)),
            "weight_scale": torch.from_numpy(repeated(np.asarray(scales).reshape(DISTINCT, -1), n_rows).astype(np.float32)),
        }
        if "pack" in scheme.format:
            from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

            state["weight_packed"] = pack_to_int32(state.pop("weight"), 4)
            state["weight_shape"] = torch.tensor([n_rows, weights.shape[1]])
        return lambda: compressor.decompress(dict(state), scheme)

    return make


def _ggml_encoder(case: Case, weights: NDArray[np.float32]) -> Maker:
    blocks = _room(case, weights)
    chunk = CHUNK(("ggml_quantize_chunk", library()))
    kind, n_cols = type_id(case.target), weights.shape[1]
    return lambda n_rows: lambda: chunk(kind, weights.ctypes.data, blocks.ctypes.data, 0, n_rows, n_cols, None)


def _ggml_row_encoder(case: Case, weights: NDArray[np.float32]) -> Maker:
    encode, blocks = _row_function(f"quantize_row_{_ggml_name(case)}"), _room(case, weights)
    return lambda n_rows: lambda: encode(weights.ctypes.data, blocks.ctypes.data, n_rows * weights.shape[1])


def _gguf_py_encoder(case: Case, weights: NDArray[np.float32]) -> Maker:
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType(type_id(case.target))
    return lambda n_rows: lambda: quants.quantize(weights[:n_rows], kind)


def _bitsandbytes_encoder(case: Case, weights: NDArray[np.float32]) -> Maker:
    torch, peer = _torch(), _bitsandbytes()
    floats = torch.from_numpy(weights)
    said = {"blocksize": NF4_BLOCK, "quant_type": "nf4", "compress_statistics": False}
    return lambda n_rows: lambda: peer.quantize_4bit(floats[:n_rows], **said)


def _mlx_encoder(case: Case, weights: NDArray[np.float32]) -> Maker:
    mx, said = _mlx(), _mlx_kind(case)

    def make(n_rows: int) -> Callable[[], object]:
        held = mx.array(weights[:n_rows])
        mx.eval(held)
        return lambda: mx.eval(*mx.quantize(held, **said))

    return make


def _compressed_tensors_encoder(case: Case, weights: NDArray[np.float32]) -> Maker:
    torch, (compressor, scheme) = _torch(), _compressed_tensors(case)
    floats = torch.from_numpy(weights)
    scales = np.asarray(qformat.quantize(weights[:DISTINCT], case.target).scales()).reshape(DISTINCT, -1)

    def make(n_rows: int) -> Callable[[], object]:
        of = torch.from_numpy(repeated(scales, n_rows).astype(np.float32))
        return lambda: compressor.compress({"weight": floats[:n_rows], "weight_scale": of}, scheme)

    return make


def _row_function(name: str) -> Callable[[int, int, int], None]:
    library().ggml_cpu_init()  # fills the table of half-precision numbers that some functions read
    return ROWS((name, library()))


def _ggml_name(case: Case) -> str:
    name = case.target.partition(":")[2]
    return name.removesuffix("_k") + "_K" if name.endswith("_k") else name


def _room(case: Case, weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    row_bytes = ggml_blocks(case.target, weights[:DISTINCT_PACKED]).shape[1]
    return np.ones((len(weights), row_bytes), np.uint8)


def _mlx_kind(case: Case) -> dict[str, Any]:
    if case.name == "mxfp4":
        return {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    return {"group_size": int(case.name.rpartition("_g")[2]), "bits": 4, "mode": "affine"}


@cache
def _mlx() -> Any:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    return mx


@cache
def _torch() -> Any:
    import torch

    torch.set_num_threads(1)
    return torch


@cache
def _bitsandbytes() -> Any:
    import bitsandbytes.functional as peer

    return peer


@cache
def _compressed_tensors(case: Case) -> tuple[Any, Any]:
    """Give the peer's compressor of a case, and the scheme that it is told."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    if case.name == "int8":
        args, kind = QuantizationArgs(num_bits=8, strategy="channel", symmetric=True), "int-quantized"
    else:
        group = int(case.name.rpartition("_g")[2])
        args, kind = QuantizationArgs(num_bits=4, strategy="group", group_size=group, symmetric=True), "pack-quantized"
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=kind)
    return BaseCompressor.get_value_from_registry(kind), scheme


DECODERS: dict[str, Callable[[Case, NDArray[np.float32], NDArray[np.float32]], Maker]] = {
    "ggml": _ggml_decoder,
    "gguf-py": _gguf_py_decoder,
    "bitsandbytes": _bitsandbytes_decoder,
    "mlx": _mlx_decoder,
    "compressed-tensors": _compressed_tensors_decoder,
}
ENCODERS: dict[str, Callable[[Case, NDArray[np.float32]], Maker]] = {
    "ggml": _ggml_encoder,
    "ggml rows": _ggml_row_encoder,
    "gguf-py": _gguf_py_encoder,
    "bitsandbytes": _bitsandbytes_encoder,
    "mlx": _mlx_encoder,
    "compressed-tensors": _compressed_tensors_encoder,
}
MULTIPLIERS: dict[str, Callable[[Case, NDArray[np.float32], NDArray[np.float32]], Maker]] = {"mlx": _mlx_multiplier}
