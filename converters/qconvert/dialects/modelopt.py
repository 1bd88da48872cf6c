"""ModelOpt checkpoints: weight and weight_scale of a module, with weight_scale_2 (NVFP4) and pre_quant_scale (AWQ).

Element types of the two say which kind it is; the config is looked at only where its word could contradict them. Scales of
activations (input_scale) are arrays of their own.

Source: NVIDIA/Model-Optimizer 0.47.0: modelopt/torch/export/quant_utils.py (process_layer_quant_config),
modelopt/torch/export/convert_hf_config.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from qconvert.dialects.compressed_tensors_config import settings_of
from qconvert.dialects.dialect import WEIGHT, Array, Claim, Dialect, Json, Shelf, Written, bind, dense_modules, expect_matrix
from qconvert.dialects.geometry import columns, integer_bits
from qformat.errors import FileError, UsageError
from qformat.formats.form import Format
from qformat.formats.modelopt import MXFP4, fp8, nvfp4, w4a16
from qformat.scheme import Grid, Integers
from qformat.tensor import PackedTensor

NAME = "modelopt"
ALGORITHMS = {"nvfp4": "NVFP4", "mxfp4": "MXFP4", "fp8": "FP8", "w4a16-awq": "W4A16_AWQ"}
SIDE = "hf_quant_config.json"
FLOATS = ("float16", "bfloat16", "float32")
# Element types of weight and weight_scale, by which a kind is known.
KINDS_OF = {
    ("uint8", "float8_e4m3fn"): "nvfp4",
    ("uint8", "uint8"): "mxfp4",
    ("uint8", "float8_e8m0fnu"): "mxfp4",
    ("float8_e4m3fn", "float32"): "fp8",
    **{("uint8", dtype): "w4a16-awq" for dtype in FLOATS},
}
SCALE, SECOND, COLUMNS = ".weight_scale", ".weight_scale_2", ".pre_quant_scale"
RANK = 2
RANKS = {"fp8": 0}  # dimensions of a weight_scale that no other ecosystem has beside such a weight


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find modules with a weight and a weight_scale of element types that ModelOpt writes."""
    is_named = shelf.quantization.get("quant_method") == NAME or bool(shelf.side(SIDE))
    not_here = "fp8" if settings_of(shelf) else ""  # compressed-tensors claims all of these where a config names it
    for module, arrays in shelf.modules(WEIGHT, SCALE):
        weight, scale = (shelf.infos[arrays[suffix]] for suffix in (WEIGHT, SCALE))
        kind = KINDS_OF.get((weight.dtype, scale.dtype), "")
        if kind in ("", not_here) or (not is_named and len(scale.shape) != RANKS.get(kind, RANK)):
            continue  # another ecosystem's: BitNet has one scale for bytes, compressed-tensors [1] or [N, 1] for FP8
        for suffix in (SECOND, COLUMNS):
            if module + suffix in shelf.infos:
                arrays[suffix] = module + suffix
        yield Claim(module + WEIGHT, tuple(arrays.values()), partial(load, shelf, kind, arrays))


def load(shelf: Shelf, kind: str, arrays: Mapping[str, str]) -> PackedTensor:
    """Make the tensor of a module. Raises FileError where its arrays do not fit one another, or the config."""
    weight, scale = arrays[WEIGHT], arrays[SCALE]
    n_stored, n_bytes = shelf.expect(weight, (shelf.infos[weight].dtype,), (None, None), "rows by columns").shape
    shape = (2 * n_stored, n_bytes) if kind == "w4a16-awq" else (n_stored, n_bytes if kind == "fp8" else 2 * n_bytes)
    n_out, n_in = shape
    if not n_out or not n_in:
        raise FileError(f"{n_out} x {n_in} weights, expected some", tensor=weight, found=shape)
    if (SECOND in arrays) != (kind == "nvfp4"):
        found = "without" if kind == "nvfp4" else "with"
        message = f"weight_scale of {shelf.infos[scale].dtype} {found} a weight_scale_2 is not one of {', '.join(ALGORITHMS)}"
        raise FileError(message, tensor=scale, field="weight_scale_2", found=found)
    dtype = shelf.infos[scale].dtype
    over = f"scales of {n_out} x {n_in} weights"
    roles = {WEIGHT: "codes", SCALE: "scales"}
    input_scale = ""
    if COLUMNS in arrays:
        input_scale = shelf.expect(arrays[COLUMNS], FLOATS, (n_in,), f"a scale for each of {n_in} columns").dtype
        roles[COLUMNS] = "pre_quant_scale"
    if kind == "nvfp4":
        shelf.expect(scale, (dtype,), (n_out, -(-n_in // 16)), f"{over} by 16")
        if shelf.infos[arrays[SECOND]].shape != (1,):
            shelf.expect(arrays[SECOND], ("float32",), (), "one for the tensor")
        form, roles[SECOND] = nvfp4(input_scale), "global_scale"
    elif kind == "mxfp4":
        shelf.expect(scale, (dtype,), (n_out, -(-n_in // 32)), f"{over} by 32")
        form = MXFP4
    elif kind == "fp8":
        per_row = len(shelf.infos[scale].shape) == 1 and shelf.infos[scale].shape != (1,)
        if shelf.infos[scale].shape != (1,):
            shelf.expect(scale, (dtype,), (n_out,) if per_row else (), f"one for {n_out} rows, or for each")
        form = fp8(Grid(1 if per_row else 0, 0))
    else:
        n_groups = shelf.expect(scale, (dtype,), (n_out, None), f"{over} by groups").shape[1]
        if not 0 < n_groups <= n_in or n_in % n_groups:
            message = f"{n_groups} scales for a row of {n_in} weights, expected whole groups"
            raise FileError(message, tensor=scale, found=n_groups, expected=n_in)
        form = w4a16(0 if n_groups == 1 else n_in // n_groups, dtype, input_scale)
    if input_scale and not form.scheme.input_scale:
        raise FileError(f"pre_quant_scale beside {ALGORITHMS[kind]} weights, expected none", tensor=arrays[COLUMNS])
    tensor = bind(form, shape, shelf, {role: arrays[suffix] for suffix, role in roles.items()})
    check_group(shelf, scale, kind, tensor)
    return tensor


def check_group(shelf: Shelf, scale: str, kind: str, tensor: PackedTensor) -> None:
    """Raise FileError where the config says another group size than the arrays have."""
    of = shelf.quantization or shelf.side(SIDE).get("quantization")
    if not isinstance(of, Mapping):
        return
    said, found = of.get("group_size"), columns(tensor)
    if kind != "fp8" and of.get("quant_algo") == ALGORITHMS[kind] and said not in (None, found or tensor.n_cols):
        message = f"groups of {found or tensor.n_cols} weights, expected {said!r} as the config says"
        raise FileError(message, tensor=scale, field="group_size", found=found, expected=said)


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor, a matrix."""
    if len(tensor.shape) != RANK:
        return []
    scaled = tensor.scheme.input_scale
    input_scale = tensor.scheme.param(scaled).dtype if scaled else ""
    found = {
        "nvfp4": [] if tensor.n_cols % 2 else [nvfp4(input_scale)],
        "mxfp4": [] if tensor.n_cols % 2 else [MXFP4],
        "fp8": [fp8(Grid(0, 0)), fp8(Grid(1, 0))],
        "w4a16-awq": [],
    }
    group = columns(tensor)
    if integer_bits(tensor.scheme) is not None and tensor.n_rows % 2 == 0 and group is not None:
        fits = group == 0 or tensor.n_cols % group == 0
        found["w4a16-awq"] = [w4a16(group, dtype, input_scale) for dtype in FLOATS if fits and input_scale in ("", *FLOATS)]
    return found[kind] if kind else [form for forms in found.values() for form in forms]


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight. Raises UsageError for a shape that they cannot have."""
    kind, (n_out, n_in) = kind_of(weight), expect_matrix(weight, NAME)
    if n_in % 2 and kind in ("nvfp4", "mxfp4"):
        message = f"rows of {n_in} weights, expected whole bytes of two"
        raise UsageError(message, tensor=weight.name, field="shape", found=n_in)
    stored = {"w4a16-awq": (n_out // 2, n_in), "fp8": (n_out, n_in)}.get(kind, (n_out, n_in // 2))
    scheme = weight.form.scheme
    scales = scheme.param("scales")
    counts = scales.group.counts(n_out, n_in)
    if kind == "fp8":
        counts = () if scales.group == Grid(0, 0) else counts[:1]
    dtype = "uint8" if kind == "mxfp4" else scales.dtype
    arrays = [
        Array(weight.module + WEIGHT, "float8_e4m3fn" if kind == "fp8" else "uint8", stored, "codes"),
        Array(weight.module + SCALE, dtype, counts, "scales"),
    ]
    if kind == "nvfp4":
        arrays.append(Array(weight.module + SECOND, "float32", (), "global_scale"))
    if scheme.input_scale:
        arrays.append(Array(weight.module + COLUMNS, scheme.param(scheme.input_scale).dtype, (n_in,), "pre_quant_scale"))
    return arrays


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say which algorithm packed the weights, and which matrices are not packed; both where old and where new readers look."""
    facts = {weight.module: facts_of(weight) for weight in weights if not weight.form.scheme.is_dense}
    if not facts:
        return {}
    dense = dense_modules(weights)
    kinds = Counter(tuple(said.items()) for said in facts.values())
    said: dict[str, Any] = dict(next(iter(kinds)))
    if len(kinds) > 1:
        said = {"quant_algo": "MIXED_PRECISION", "quantized_layers": facts}
    shared = {"producer": {"name": NAME}}
    return {
        "config.json": {"quantization_config": {"quant_method": NAME, **said, "ignore": dense, **shared}},
        SIDE: {**shared, "quantization": {**said, "kv_cache_quant_algo": None, "exclude_modules": dense}},
    }


def facts_of(weight: Written) -> dict[str, Any]:
    """Give what a config says of a weight."""
    kind, scheme = kind_of(weight), weight.form.scheme
    if kind == "fp8":
        per_row = scheme.param("scales").group != Grid(0, 0)
        return {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN" if per_row else "FP8"}
    group = columns(weight.tensor) or weight.shape[-1]
    said = {"quant_algo": ALGORITHMS[kind], "group_size": {"nvfp4": 16, "mxfp4": 32}.get(kind, group)}
    scaled = bool(scheme.input_scale)
    if kind == "w4a16-awq":
        return {**said, "has_zero_point": False, "pre_quant_scale": scaled}
    return {**said, "quant_algo": "NVFP4_AWQ", "has_zero_point": False, "pre_quant_scale": True} if scaled else said


def kind_of(weight: Written) -> str:
    """Tell a format's kind by what its codes and scales are."""
    scheme = weight.form.scheme
    if isinstance(scheme.alphabet, Integers):
        return "w4a16-awq"
    widths = {"float8_e4m3fn": "nvfp4", "float8_e8m0fnu": "mxfp4"}
    return widths.get(scheme.param("scales").dtype, "fp8")


MODELOPT = Dialect(NAME, tuple(ALGORITHMS), claim, forms, unbind, config)
