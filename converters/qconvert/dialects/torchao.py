"""torchao checkpoints: arrays `<module>._weight_<part>`, and in the file's metadata what class of tensor each weight is.

The metadata names the class, its blocks and its parts; arrays must fit it. Which class is which format is decided by
`torchao_classes`.

Source: pytorch/ao 0.18.0: torchao/prototype/safetensors/safetensors_support.py, safetensors_utils.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from qconvert.containers.strict_json import parse_json
from qconvert.dialects.dialect import METADATA, Array, Claim, Dialect, Json, Shelf, Written, bind, dense_modules
from qconvert.dialects.geometry import columns, integer_bits, scale_group
from qconvert.dialects.torchao_classes import FLOATS, PARTS, arrays_of, attributes, class_of, dtype_of, form_of, recipe
from qformat.errors import FileError, UsageError, show
from qformat.formats import torchao as made
from qformat.formats.form import Format
from qformat.scheme import Grid, Levels
from qformat.tensor import PackedTensor, format_of

NAME = "torchao"
KINDS = ("int8", "int4", "fp8", "mxfp4", "mxfp8", "nvfp4")
NAMES = "tensor_names"
DENSE = "Tensor"


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find the weights that the metadata lists. Raises FileError for classes and parts that are not read."""
    if NAMES not in shelf.metadata:
        return
    names = parse_json(shelf.metadata[NAMES].encode(), path="", what=NAMES)
    if not isinstance(names, list) or not all(isinstance(name, str) and name in shelf.metadata for name in names):
        raise FileError(f"{NAMES} in the metadata is no list of names that the metadata describes", field=NAMES)
    for name in names:
        said = parse_json(shelf.metadata[name].encode(), path="", what=show(name))
        kind = said.get("_type") if isinstance(said, Mapping) else None
        if not isinstance(said, Mapping) or kind == DENSE:
            continue
        if kind not in PARTS:
            message = f"is a torchao {show(str(kind))}, which is not read: expected one of {', '.join(PARTS)}"
            raise FileError(message, tensor=name, field="_type", found=kind, expected=tuple(PARTS))
        parts = said.get("_tensor_data_names")
        if not isinstance(parts, list) or not {"qdata", "scale"} <= set(map(str, parts)) <= set(PARTS[kind]):
            message = f"has the parts {parts}, expected qdata and scale, or all of {', '.join(PARTS[kind])} ({kind})"
            raise FileError(message, tensor=name, field="_tensor_data_names", found=parts, expected=tuple(PARTS[kind]))
        arrays = {part: array_name(name, part) for part in parts}
        missing = [array for array in arrays.values() if array not in shelf.infos]
        if missing:
            raise FileError(f"has no array '{show(missing[0])}', which the metadata names", tensor=name, field=missing[0])
        yield Claim(name, (arrays["qdata"], *(arrays[part] for part in parts if part != "qdata")),
                    partial(load, shelf, name, kind, said.get("_data"), arrays))  # fmt: skip


def load(shelf: Shelf, name: str, kind: str, facts: Any, arrays: Mapping[str, str]) -> PackedTensor:
    """Make a tensor of a class. Raises FileError where its arrays do not fit one another, or the metadata."""
    if not isinstance(facts, Mapping):
        raise FileError("has no attributes in the metadata", tensor=name, field="_data")
    shape = shelf.infos[arrays["qdata"]].shape
    if len(shape) < 2:
        raise FileError(f"found {len(shape)} dimensions, expected rows and columns", tensor=arrays["qdata"], found=shape)
    form = form_of(kind, facts, {part: shelf.infos[array].dtype for part, array in arrays.items()}, shape, name)
    weights = form.parts[0].layout.n_weights
    shape = (*shape[:-1], shape[-1] * weights)
    stored = {}
    for part, (dtype, sizes, role) in arrays_of(form, shape).items():
        shelf.expect(arrays[part], (dtype,), sizes, f"{part} of {' x '.join(map(str, shape))} weights, {kind}")
        stored[role] = arrays[part]
    key = "orig_dtype" if "orig_dtype" in facts else "dtype"
    before = dtype_of(facts, key, FLOATS, name) if key in facts else shelf.infos[arrays["scale"]].dtype
    return bind(form, shape, shelf, stored, before)


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor: its own groups, the narrowest element types first."""
    alphabet, own, run = tensor.scheme.alphabet, format_of(tensor), columns(tensor)
    over = scale_group(tensor.scheme)
    grid = over if isinstance(over, Grid) else None if run is None else Grid(1, run)
    bits = integer_bits(tensor.scheme)
    found: dict[str, list[Format]] = {one: [] for one in KINDS}
    for dtype in FLOATS:
        if grid is not None and bits is not None and bits <= 8:
            found["int8"] += [made.integer(8, grid, dtype, zeros, is_intx=False) for zeros in (False, True)]
            found["int4"] += [made.integer(4, grid, dtype)] if bits <= 4 else []
            kept = [made.integer(bits, grid, dtype, zeros) for zeros in (False, True)] + [made.int4(grid.cols, dtype)]
            found["int4" if bits == 4 else "int8"] += [form for form in kept if form.meaning == own.meaning]
        if grid is not None and isinstance(alphabet, Levels):
            found["fp8"] += [made.fp8(element, grid, dtype) for element in ("float8_e4m3fn", "float8_e5m2")]
    if isinstance(alphabet, Levels):
        found["mxfp4"].append(made.mx("float4_e2m1fn"))
        found["mxfp8"] += [made.mx("float8_e4m3fn"), made.mx("float8_e5m2")]
        found["nvfp4"] += [made.nvfp4(scaled, beside) for scaled in (True, False) for beside in (False, True)]
    return [form for one in ((kind,) if kind else KINDS) for form in found[one]]


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight. Raises UsageError for a shape that is no matrix, nor a stack of them."""
    if len(weight.shape) < 2 or "." not in weight.name:
        message = f"shape {list(weight.shape)}, torchao holds matrices named '<module>.weight'"
        raise UsageError(message, tensor=weight.name, field="shape", found=weight.shape)
    arrays = arrays_of(weight.form, weight.shape)
    return [Array(array_name(weight.name, part), *facts) for part, facts in arrays.items()]


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say in the metadata what every tensor is, and in the config how most of the weights were quantized."""
    packed = [weight for weight in weights if not weight.form.scheme.is_dense]
    if not packed:
        return {}
    said = {weight.name: json.dumps(describe(weight)) for weight in weights}
    said[NAMES] = json.dumps([weight.name for weight in weights])
    recipes = Counter(json.dumps(recipe(weight.form, weight.shape)) for weight in packed)
    skipped = dense_modules(weights)
    default = {"default": json.loads(recipes.most_common(1)[0][0])}
    rest: dict[str, Any] = {"modules_to_not_convert": skipped} if skipped else {}
    return {"config.json": {"quantization_config": {"quant_method": NAME, "quant_type": default} | rest}, METADATA: said}


def describe(weight: Written) -> dict[str, Any]:
    """Give what the metadata says of a weight."""
    if weight.form.scheme.is_dense:
        return {"_type": DENSE}
    facts = attributes(weight.form, weight.shape, weight.tensor.dtype)
    parts = list(arrays_of(weight.form, weight.shape))
    return {"_type": class_of(weight.form), "_data": facts, "_tensor_data_names": parts}


def array_name(name: str, part: str) -> str:
    """Name the array of a part: "m._weight_qdata" of "m.weight"."""
    module, _, last = name.rpartition(".")
    return f"{module}._{last}_{part}"


TORCHAO = Dialect(NAME, KINDS, claim, forms, unbind, config)
