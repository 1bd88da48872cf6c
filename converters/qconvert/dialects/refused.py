"""What is refused by name: packed weights that no code and scale describes, and arrays that nothing here claims.

A checkpoint that is not understood must not be taken for the dense integers that it looks like. Signs are names of arrays,
words of the config and names of files; what a sign means is decided here alone. Must not read any array.

Source: turboderp-org/exllamav2: exllamav2/ext.py; turboderp-org/exllamav3: exllamav3/modules/quant/exl3.py; huggingface/
transformers 5.23.0: src/transformers/integrations; NVIDIA/TensorRT-LLM: tensorrt_llm/quantization/layers.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qconvert.containers.strict_json import json_kind
from qconvert.dialects.dialect import Shelf
from qformat.errors import FileError, show

AS_ARRAYS = "dense"  # what a user assumes to see arrays as they lie
HINT = f"--assume {AS_ARRAYS} opens the arrays as they lie"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A format that is refused.

    name    : what people call it
    why     : why it has no codes and scales
    methods : quant_method of its config
    arrays  : ends of array names that only it has
    formats : of compressed-tensors, its `format`
    """

    name: str
    why: str
    methods: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()


REFUSED = (
    Refusal("EXL3", "trellis codes behind a Hadamard transform have no alphabet", ("exl3",), (".trellis", ".suh", ".svh")),
    Refusal(
        "EXL2", "rows of mixed widths, permuted, with squared 4-bit scales, are held by nothing else", ("exl2",),
        (".q_weight", ".q_scale_max", ".q_invperm", ".q_groups"),
    ),
    Refusal("AQLM", "sums of vectors from learned codebooks have no code per weight", ("aqlm",), (".codebooks",)),
    Refusal("QuIP#", "lattice codes behind a Hadamard transform have no alphabet", ("quip", "quip_sharp"), (".Qidxs",)),
    Refusal(
        "VPTQ", "vectors from learned codebooks, permuted, have no code per weight", ("vptq",),
        (".centroids.weight", ".res_centroids.weight", ".centroids"),
    ),
    Refusal(
        "SpQR", "quantized statistics and sparse outliers are no grid of codes", ("spqr",), (".dense_weights", ".row_offsets")
    ),
    Refusal("HIGGS", "grid codes behind a Hadamard transform have no alphabet", ("higgs",), (".tables2",)),
    Refusal(
        "FP-Quant", "codes behind a Hadamard transform are not those of the weight", ("fp_quant",),
        (".forward_hadamard_matrix",),
    ),
    Refusal(
        "sparse compressed-tensors", "weights are left out and their places packed", (), (".bitmask", ".weight_bitmask"),
        ("marlin-24", "sparse-24-bitmask", "sparse-bitmask"),
    ),
    Refusal(
        "swizzled scales", "they lie in the order of one kernel; store them by rows", (),
        ("_scaling_factor_interleaved", "_scale_interleaved", "_scale_swizzled"),
    ),
    Refusal(
        "TensorRT-LLM", "its files are laid out for one engine; use the checkpoint that they were made from", (),
        (".weights_scaling_factor", ".weights_block_scaling_factor", ".activation_scaling_factor"),
    ),
)  # fmt: skip
# Ends of names that arrays have only as parts of a packed weight.
PARTS = (
    *(".qweight", ".qzeros", ".g_idx", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight_scale_2"),
    *(".weight_zero_point", ".weight_shape", ".weight_g_idx", ".weight_global_scale", ".absmax", ".nested_absmax"),
    *(".quant_map", ".SCB", ".W_q", "._data", ".weight_qdata", "._weight_qdata", "_blocks"),
)
# Ends that are names like others but where the config speaks of packed weights.
PARTS_IF_PACKED = (".scales", ".biases", ".qbiases")
METHODS = (
    *("gptq", "auto-round", "awq", "bitsandbytes", "compressed-tensors", "mxfp4", "metal", "mlx", "hqq", "modelopt", "fp8"),
    *("torchao", "quanto", "bitnet", "intel/auto-round"),
)


def refuse(shelf: Shelf) -> None:
    """Refuse a checkpoint that is known to be none of the dialects' own. Raises FileError saying what it is, and why."""
    said = shelf.config.get("quantization_config", {})
    if not isinstance(said, Mapping | None):
        message = f"quantization_config is {json_kind(said)}, expected an object"
        raise FileError(message, field="quantization_config", found=json_kind(said))
    method = shelf.quantization.get("quant_method")
    sparsity = shelf.quantization.get("sparsity_config")
    words = {_word(shelf.quantization, "format"), _word(sparsity, "format")}
    for refusal in REFUSED:
        if method in refusal.methods or words & set(refusal.formats):
            raise FileError(_say(refusal), field="quantization_config", found=method)
    engine = shelf.config.get("quantization")
    if _word(engine, "quant_algo") and "mapping" in shelf.config:
        raise FileError(_say(REFUSED[-1]), field="quantization")
    ends = tuple(end for refusal in REFUSED for end in refusal.arrays if shelf.may_end(end))
    for name in (name for name in shelf.infos if name.endswith(ends)) if ends else ():
        refusal = next(refusal for refusal in REFUSED if name.endswith(refusal.arrays))
        raise FileError(_say(refusal), tensor=name, found=refusal.name)
    if method is not None and method not in METHODS:
        found = show(method, quote=True, limit=60) if isinstance(method, str) else json_kind(method)
        message = f"quant_method {found}, expected one of {', '.join(METHODS)}; {HINT}"
        raise FileError(message, field="quant_method", found=found, expected=METHODS)


def refuse_orphans(shelf: Shelf, claimed: Collection[str]) -> None:
    """Refuse arrays that are parts of a packed weight and that no dialect has claimed. Raises FileError naming the first."""
    parts = PARTS + (PARTS_IF_PACKED if shelf.quantization or shelf.config.get("quantization") else ())
    parts = tuple(part for part in parts if shelf.may_end(part))
    for name, info in shelf.infos.items() if parts else ():
        if name in claimed or not name.endswith(parts) or (name.endswith("_blocks") and info.dtype != "uint8"):
            continue
        method = shelf.quantization.get("quant_method")
        says = "" if method is None else f", and the config says {show(str(method), quote=True, limit=60)}"
        message = f"is a part of a packed weight whose other arrays are missing or not understood{says}; {HINT}"
        raise FileError(message, tensor=name)


def _say(refusal: Refusal) -> str:
    return f"is {refusal.name}, which is not read: {refusal.why}; {HINT}"


def _word(said: Any, key: str) -> Any:
    found = said.get(key) if isinstance(said, Mapping) else None
    return found if isinstance(found, str) else None
