"""GGUF's tensors and our formats: which type id a format is, which format a type id is, which tensors are one weight.

Types younger than the catalogue are opaque: their blocks are listed and copied. The second scale of an NVFP4 weight is a
tensor of its own in the file: of `<module>.weight` it is `<module>.scale`, one F32, or one for each expert of a stack.

Source: ggml-org/llama.cpp: the conversion of checkpoints, _write_scale_tensor and _write_scales_tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

from qconvert.containers.gguf_plan import PlannedTensor
from qconvert.containers.gguf_tensors import MAX_NAME_BYTES, TensorInfo
from qconvert.containers.gguf_types import GGML_TYPES, GGUF_DENSE, type_name
from qformat.errors import NotExact
from qformat.formats.dense import dense
from qformat.formats.form import Format, PartForm, matrix
from qformat.formats.gguf import NVFP4, nvfp4_scaled
from qformat.formats.gguf_types import GGUF
from qformat.layout import Field, Layout
from qformat.scheme import Grid, Levels, Opaque, Scheme
from qformat.tensor import PackedTensor
from qformat.tiling import FLAT

BLOCKS = "blocks"
WEIGHT, SCALE = ".weight", ".scale"
RANK_OF_STACK = 3
MAX_RANK = 4


def bind(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Find the weights that have a second scale, and the tensor that it is: by name of the weight.

    Whatever is no second scale of an NVFP4 weight stands by itself.
    """
    nvfp4, float32 = _ids()[NVFP4.name], _ids()["f32"]
    found = {}
    for info in (info for info in tensors.values() if info.type_id == nvfp4 and info.name.endswith(WEIGHT)):
        scale = tensors.get(_scale_name(info.name))
        if scale is not None and scale.type_id == float32 and scale.dims == _scale_dims(info.shape):
            found[info.name] = scale
    return found


def unbind(name: str, form: Format, shape: tuple[int, ...], n_bytes: Mapping[str, int]) -> dict[str, PlannedTensor]:
    """Give the tensors of a file that hold a weight, by the role of the part that each is.

    n_bytes: of each part, by role

    Raises NotExact where GGUF has no tensor type for the format, no place for a second scale, or none for the name or shape.
    """
    type_id = type_of(form)
    if type_id is None:
        raise NotExact(f"gguf has no type for {form.name}", tensor=name, field="type")
    params, found = {param.name for param in form.scheme.params}, dict[str, PlannedTensor]()
    for role in (part.role for part in form.parts):
        if role not in params:
            found[role] = (name, shape[::-1], type_id, n_bytes[role])
            continue
        dims = _scale_dims(shape)
        if dims is None or form.meaning != _with_scale(shape).meaning:
            counts = form.scheme.param(role).group.counts(*matrix(shape))
            message = f"{math.prod(counts)} values for shape {list(shape)}, gguf holds one for a matrix, or for each of a stack"
            raise NotExact(message, tensor=name, field=role)
        if not name.endswith(WEIGHT):
            raise NotExact(f"gguf holds it in '<module>{SCALE}' beside '<module>{WEIGHT}' alone", tensor=name, field=role)
        found[role] = (_scale_name(name), dims, _ids()["f32"], n_bytes[role])
    n_name = max(len(held.encode()) for held, *_ in found.values())
    if n_name > MAX_NAME_BYTES:
        raise NotExact(f"name of {n_name} bytes, gguf holds at most {MAX_NAME_BYTES}", tensor=name, field="name")
    if len(shape) > MAX_RANK:
        raise NotExact(f"{len(shape)} dimensions, gguf holds at most {MAX_RANK}", tensor=name, field="shape")
    return found


def format_of(infos: tuple[TensorInfo, ...]) -> Format:
    """Give the format of a weight that is made of these tensors."""
    weight, *scale = infos
    return _with_scale(weight.shape) if scale else format_of_type(weight.type_id)


@cache
def format_of_type(type_id: int) -> Format:
    """Give the format of a tensor type; an opaque one for types without a layout of their own."""
    name = type_name(type_id)
    if name in GGUF_DENSE:
        return dense(GGUF_DENSE[name])
    for form in GGUF:
        if form.name == name:
            return form
    layout = Layout(name, 0, 1, (Field("block", 0, "uint8", holds="codes"),))
    return Format(name, Scheme(name, Opaque(name)), (PartForm(BLOCKS, layout, FLAT),))


def type_of(form: Format) -> int | None:
    """Give the tensor type of a format, of its blocks where it has a second scale; None where GGUF has none.

    A format is what its declarations say, whatever it is called; of an opaque one the name is all that is known.
    """
    if isinstance(form.scheme.alphabet, Opaque):
        return _ids().get(form.parts[0].layout.name) if [part.role for part in form.parts] == [BLOCKS] else None
    group = form.scheme.params[-1].group if len(form.parts) > 1 else None
    if isinstance(group, Grid) and form.meaning == nvfp4_scaled(group.rows).meaning:
        return _ids()[NVFP4.name]
    return _known().get(form.meaning)


def fitted(form: Format, tensor: PackedTensor) -> tuple[Format, ...]:
    """Give the formats that a type is for packed weights: NVFP4 by itself, and with a second scale where it has a place."""
    takes_second = form is NVFP4 and isinstance(tensor.scheme.alphabet, Levels) and _scale_dims(tensor.shape) is not None
    return (form, _with_scale(tensor.shape)) if takes_second else (form,)


def _with_scale(shape: tuple[int, ...]) -> Format:
    """Give NVFP4 with a second scale for a matrix, or for each of a stack."""
    return nvfp4_scaled(shape[1] if len(shape) == RANK_OF_STACK else 0)


def _scale_dims(shape: tuple[int, ...]) -> tuple[int] | None:
    """Give the dimensions of the second scale's tensor; None for a shape that can have none."""
    if len(shape) > RANK_OF_STACK or not all(shape):
        return None
    return (shape[0],) if len(shape) == RANK_OF_STACK else (1,)


def _scale_name(weight: str) -> str:
    return weight.removesuffix(WEIGHT) + SCALE


@cache
def _known() -> dict[tuple[object, ...], int]:
    return {format_of_type(type_id).meaning: type_id for type_id in GGML_TYPES}


@cache
def _ids() -> dict[str, int]:
    ids = {known.name: type_id for type_id, known in GGML_TYPES.items()}
    return ids | {type_name(type_id): type_id for type_id in range(256) if type_id not in GGML_TYPES}
