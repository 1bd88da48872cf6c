"""torchao's tensor classes: which one a format is, which arrays and attributes it has, and the other way round.

A class is known by what a format declares, not by its name. Attributes that say how activations are treated or which
kernel runs have the peer's weight-only defaults.

Source: pytorch/ao 0.18.0: tensor_data_names and tensor_attribute_names of the classes in
torchao/quantization/quantize_/workflows and torchao/prototype/mx_formats; torchao/core/config.py (config_to_dict).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformat.errors import FileError
from qformat.formats import torchao as made
from qformat.formats.form import Format
from qformat.scheme import Grid, Integers, Levels

Json = dict[str, Any]
Shape = tuple[int, ...]
# The role of each part of a class, in the order in which the peer names them.
PARTS = {
    "Int8Tensor": {"zero_point": "zeros", "qdata": "codes", "scale": "scales"},
    "IntxUnpackedToInt8Tensor": {"qdata": "codes", "scale": "scales", "zero_point": "zeros"},
    "Int4Tensor": {"qdata": "codes", "scale": "scales", "zero_point": "biases"},
    "Float8Tensor": {"qdata": "codes", "scale": "scales"},
    "MXTensor": {"qdata": "codes", "scale": "scales"},
    "NVFP4Tensor": {
        "per_tensor_scale": "global_scale", made.ACTIVATION: made.ACTIVATION, "qdata": "codes", "scale": "scales",
    },
}  # fmt: skip
MX_BLOCK, NVFP4_BLOCK, NIBBLES = 32, 16, 16
MX_ELEMENTS = {"float4_e2m1fn_x2": "float4_e2m1fn", "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2"}
FLOATS = ("bfloat16", "float16", "float32")


def class_of(form: Format) -> str:
    """Name the class that a format is."""
    scheme, codes = form.scheme, form.parts[0].layout
    params = {param.name: param.dtype for param in scheme.params}
    if isinstance(scheme.alphabet, Integers):
        return "Int4Tensor" if "biases" in params else "IntxUnpackedToInt8Tensor" if codes.unpacker else "Int8Tensor"
    if params["scales"] == "float8_e8m0fnu":
        return "MXTensor"
    return "NVFP4Tensor" if params["scales"] == "float8_e4m3fn" else "Float8Tensor"


def arrays_of(form: Format, shape: Shape) -> dict[str, tuple[str, Shape, str]]:
    """Give the arrays of a weight by the part of its name: element type, shape and role."""
    kind, scales, alphabet = class_of(form), form.scheme.param("scales"), form.scheme.alphabet
    per_group: Shape = tuple(n // block for n, block in zip(shape, block_of(form, shape), strict=True))
    held = alphabet.name if isinstance(alphabet, Levels) and not is_nibbles(form) else "int8"
    rows = (*shape[:-1], shape[-1] // 2) if is_nibbles(form) else shape
    kept: dict[str, tuple[str, Shape]] = {
        "codes": ("uint8" if isinstance(alphabet, Levels) and is_nibbles(form) else held, rows),
        "scales": (scales.dtype, per_group[::-1] if kind == "Int4Tensor" else per_group),
        "zeros": ("int8", per_group),
        "biases": (scales.dtype, per_group[::-1]),
        "global_scale": ("float32", ()),
        made.ACTIVATION: ("float32", ()),
    }
    roles = {part.role for part in form.parts}
    return {name: (*kept[role], role) for name, role in PARTS[kind].items() if role in roles}


def is_nibbles(form: Format) -> bool:
    """Tell whether two codes share a byte."""
    return form.parts[0].layout.n_weights == 2


def block_of(form: Format, shape: Shape) -> Shape:
    """Give how many weights along each axis share a scale."""
    over = form.scheme.param("scales").group
    assert isinstance(over, Grid)  # all of these are
    leading = (1,) * (len(shape) - 2) if over.rows else shape[:-2]
    return (*leading, over.rows or shape[-2], over.cols or shape[-1])


def grid_of(block: Any, shape: Shape, name: str) -> Grid:
    """Read `block_size`. Raises FileError where it is none, or does not divide the shape."""
    sizes = tuple(block) if isinstance(block, list) and all(type(n) is int and n > 0 for n in block) else ()
    leading = sizes[:-2]
    fits = len(sizes) == len(shape) and all(n % size == 0 for n, size in zip(shape, sizes, strict=False))
    whole = fits and sizes[:-1] == shape[:-1] and sizes[-2] != 1
    if not fits or not (whole or leading == (1,) * len(leading)):
        message = f"block_size {block}, expected sizes that divide the shape {list(shape)}, of its last two axes"
        raise FileError(message, tensor=name, field="block_size", found=block, expected=shape)
    return Grid(0 if whole else sizes[-2], 0 if sizes[-1] == shape[-1] else sizes[-1])


def form_of(kind: str, facts: Mapping[str, Any], parts: Mapping[str, str], shape: Shape, name: str) -> Format:
    """Give the format that a class with these attributes is.

    facts : what the metadata says of the tensor
    parts : element type of each array, by the part of its name
    shape : of the array of codes

    Raises FileError where an attribute is not what a format could be.
    """
    scale = parts["scale"]
    if facts.get("is_swizzled_scales"):
        raise FileError(
            "has swizzled scales, which are not read: they lie in the order of one kernel; store them by rows", tensor=name
        )
    if kind == "MXTensor":
        element, block = dtype_of(facts, "elem_dtype", tuple(MX_ELEMENTS), name), facts.get("block_size")
        _expect(block, MX_BLOCK, "block_size", name)
        return made.mx(MX_ELEMENTS[element])
    if kind == "NVFP4Tensor":
        _expect(facts.get("block_size"), NVFP4_BLOCK, "block_size", name)
        return made.nvfp4("per_tensor_scale" in parts, made.ACTIVATION in parts)
    shape = (*shape[:-1], 2 * shape[-1]) if kind == "Int4Tensor" else shape
    over = grid_of(facts.get("block_size"), shape, name)
    if scale not in FLOATS:
        raise FileError(f"scales are {scale}, expected one of {', '.join(FLOATS)}", tensor=name, found=scale, expected=FLOATS)
    if kind == "Float8Tensor":
        if parts["qdata"] not in ("float8_e4m3fn", "float8_e5m2"):
            raise FileError(f"codes are {parts['qdata']}, expected float8_e4m3fn or float8_e5m2", tensor=name)
        return made.fp8(parts["qdata"], over, scale)
    if kind == "Int4Tensor":
        _expect(over.rows, 1, "rows that share a scale", name)
        return made.int4(over.cols, scale)
    bits = 8
    if kind == "IntxUnpackedToInt8Tensor":
        bits = int(dtype_of(facts, "target_dtype", tuple(f"int{n}" for n in range(1, 9)), name)[3:])
    return made.integer(bits, over, scale, "zero_point" in parts, kind != "Int8Tensor")


def dtype_of(facts: Mapping[str, Any], key: str, expected: tuple[str, ...], name: str) -> str:
    """Read an attribute that is an element type. Raises FileError where it is none of those expected."""
    said = facts.get(key)
    found = said.get("_data") if isinstance(said, Mapping) else said
    if not isinstance(found, str) or found not in expected:
        message = f"{key} is {found!r}, expected one of {', '.join(expected)}"
        raise FileError(message, tensor=name, field=key, found=found, expected=expected)
    return found


def attributes(form: Format, shape: Shape, dtype: str) -> Json:
    """Give what the metadata says of a weight; `dtype` is that of the weights before they were packed."""
    kind, block, before = class_of(form), list(block_of(form, shape)), _dtype(dtype if dtype in FLOATS else FLOATS[0])
    alphabet = form.scheme.alphabet
    if isinstance(alphabet, Levels) and kind == "MXTensor":
        element = next(name for name, level in MX_ELEMENTS.items() if level == alphabet.name)
        rest: Json = {"kernel_preference": _enum("EMULATED"), "act_quant_kwargs": None, "is_swizzled_scales": False}
        return {"elem_dtype": _dtype(element), "block_size": MX_BLOCK, "orig_dtype": before} | rest
    if kind == "NVFP4Tensor":
        rest = {"is_swizzled_scales": False, "use_triton_kernel": False, "act_quant_kwargs": None}
        return rest | {"block_size": NVFP4_BLOCK, "orig_dtype": before}
    if kind == "Float8Tensor":
        rest = {"mm_config": None, "act_quant_kwargs": None, "kernel_preference": _enum("AUTO"), "dtype": before}
        return {"block_size": block} | rest
    if kind == "Int4Tensor":
        return {"activation_dtype": _dtype("bfloat16"), "block_size": block, "shape": list(shape)}
    if kind == "Int8Tensor":
        return {"act_quant_kwargs": None, "reduce_range": False, "block_size": block, "dtype": before}
    assert isinstance(alphabet, Integers)  # the class that is left
    target = _dtype(f"int{(alphabet.high - alphabet.low).bit_length()}")
    return {"target_dtype": target, "block_size": block, "dtype": before, "activation_quantization": None}


def recipe(form: Format, shape: Shape) -> Json:
    """Give the peer's config by which it would quantize a weight in this way."""
    kind, block, facts = class_of(form), block_of(form, shape), attributes(form, shape, "")
    per_row = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
    if kind == "Int8Tensor":
        data: Json = {"group_size": None, "granularity": per_row, "set_inductor_config": True}
        return {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": data}
    if kind == "Float8Tensor":
        alphabet = form.scheme.alphabet
        element = alphabet.name if isinstance(alphabet, Levels) else ""
        data = {"weight_dtype": _dtype(element), "set_inductor_config": True, "granularity": per_row}
        return {"_type": "Float8WeightOnlyConfig", "_version": 2, "_data": data}
    if kind == "MXTensor":
        element = facts["elem_dtype"]
        data = {
            "block_size": MX_BLOCK,
            "activation_dtype": element,
            "weight_dtype": element,
            "kernel_preference": _enum("AUTO"),
        }
        data["scaling_mode"] = {"_type": "ScaleCalculationMode", "_data": "RCEIL"}
        return {"_type": "MXDynamicActivationMXWeightConfig", "_version": 1, "_data": data}
    if kind == "NVFP4Tensor":
        data = {"use_dynamic_per_tensor_scale": len(form.scheme.params) > 1}
        return {"_type": "NVFP4WeightOnlyConfig", "_version": 1, "_data": data}
    if kind == "Int4Tensor":
        data = {"group_size": block[-1], "set_inductor_config": True}
        data["int4_packing_format"] = {"_type": "Int4PackingFormat", "_data": "PLAIN"}
        return {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": data}
    per_group = {"_type": "PerGroup", "_version": 1, "_data": {"group_size": block[-1]}}
    data = {"weight_dtype": facts["target_dtype"], "granularity": per_group}
    data["mapping_type"] = {"_type": "MappingType", "_data": "ASYMMETRIC"}
    return {"_type": "IntxWeightOnlyConfig", "_version": 2, "_data": data}


def _dtype(name: str) -> Json:
    return {"_type": "torch.dtype", "_data": name}


def _enum(name: str) -> Json:
    return {"_type": "KernelPreference", "_data": name}


def _expect(found: Any, expected: int, field: str, name: str) -> None:
    if found != expected:
        message = f"{field} is {found!r}, expected {expected}"
        raise FileError(message, tensor=name, field=field, found=found, expected=expected)
