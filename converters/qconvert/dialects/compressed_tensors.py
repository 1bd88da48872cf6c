"""compressed-tensors checkpoints: weight_packed or a weight of one byte each, weight_scale, and what goes with them.

Decides which arrays are one weight, which formats could hold a tensor, and which arrays a format is written as. Scales of
activations (input_scale, input_global_scale) are tensors of their own.

Source: compressed-tensors 0.20.0: compressors/format.py, compressors/pack_quantized/base.py, compressors/nvfp4/base.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from qconvert.dialects.compressed_tensors_config import NAME, kind_of, level_bits, read_groups, settings_of, write
from qconvert.dialects.compressed_tensors_load import BYTES, RANK, ROLES, Module, load
from qconvert.dialects.dialect import WEIGHT, Array, Claim, Dialect, Json, Shelf, Written, expect_matrix
from qconvert.dialects.geometry import coarser, code_bits, columns, integer_bits, scale_group
from qformat.bits import DTYPES
from qformat.formats.compressed_tensors import BITS, KINDS, MX, NVFP4, SCALES, SPARSE_BITS, TENSOR, pack, whole
from qformat.formats.form import Format, PartForm
from qformat.scheme import Grid, Indexed, Levels
from qformat.tensor import PackedTensor, format_of

if TYPE_CHECKING:
    import numpy as np
else:
    from qformat.deferred import np

WIDER = (64, 128, 0)  # groups that finer ones become where they agree; 0: whole rows
LEVEL_BITS = {"nvfp4": 4, "mxfp4": 4, "mxfp6": 6, "mxfp8": 8, "float": 8}
ONE_BYTE = {"int": "int8", "float": "float8_e4m3fn", "mxfp8": "float8_e4m3fn"}


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find modules with packed weights, and, where the config names compressed-tensors, with int8 or float8 weights."""
    settings = settings_of(shelf)
    if not settings and "quant_method" in shelf.quantization:
        return
    groups = read_groups(settings)
    if not settings and not shelf.may_end(".weight_packed"):
        return
    for name, info in shelf.infos.items():
        module, _, word = name.rpartition(".")
        is_whole = word == "weight" and settings and info.dtype in BYTES and f"{module}.weight_scale" in shelf.infos
        if word == "weight_packed" or (is_whole and f"{module}.weight_packed" not in shelf.infos):
            found = Module(shelf, module, groups)
            yield Claim(module + WEIGHT, tuple(found.arrays.values()), partial(load, found))


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor: its own bits, and its own groups where rows have them."""
    if len(tensor.shape) != RANK:
        return ()
    bits = level_bits(tensor.scheme)  # of wider levels all hold these too
    kinds = [one for one in KINDS if one == kind or (not kind and LEVEL_BITS.get(one, bits) >= bits)]
    found = [form for one in kinds for form in _forms(one, tensor)]
    own = format_of(tensor)
    if kind or any(form.meaning == own.meaning for form in found):
        return found
    return [*found, *(form for form in _older(tensor) if form.meaning == own.meaning)]


def _forms(kind: str, tensor: PackedTensor) -> Iterator[Format]:
    bits, shape = integer_bits(tensor.scheme), (tensor.n_rows, tensor.n_cols)
    if isinstance(tensor.scheme.alphabet, Levels) and kind in LEVEL_BITS:
        if kind == "nvfp4":
            yield NVFP4
        elif kind in MX:
            yield MX[kind]
        elif kind == "float":
            yield from (whole(kind, grid, dtype) for grid in _grids(tensor) for dtype in SCALES)
    elif bits in BITS and kind in ("pack", "int"):
        for over in (*_grids(tensor), *_ordered(tensor)):
            for zeros in ("", "plain" if over == TENSOR or kind == "int" else "packed"):
                for dtype in SCALES:
                    if kind == "pack":
                        yield pack(bits, over, dtype, shape, zeros)
                    elif isinstance(over, Grid):
                        yield whole(kind, over, dtype, bool(zeros))


def _older(tensor: PackedTensor) -> Iterator[Format]:
    """Give the formats that are read, and written where a tensor lies in them already."""
    bits = code_bits(tensor.scheme)
    if bits not in BITS:
        return
    for over in (*_grids(tensor), *_ordered(tensor)):
        for sparse in (False, True)[: 1 + (bits in SPARSE_BITS)]:
            for zeros in ("", "packed", "plain"):
                if zeros != "packed" or over != TENSOR:
                    yield from (pack(bits, over, dtype, (tensor.n_rows, tensor.n_cols), zeros, sparse) for dtype in SCALES)


def _grids(tensor: PackedTensor) -> Iterator[Grid]:
    """Give the groups that a tensor has, and rows of them where it has others."""
    own, size = scale_group(tensor.scheme), columns(tensor)
    if isinstance(own, Grid) and own.rows != 1:
        yield own
    if size is not None:
        yield from (Grid(1, one) for one in dict.fromkeys((size, *coarser(tensor, WIDER))))


def _ordered(tensor: PackedTensor) -> Iterator[Indexed]:
    """Give the groups of columns that lie out of order."""
    own = scale_group(tensor.scheme)
    if isinstance(own, Indexed):
        yield own


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight."""
    expect_matrix(weight, NAME)
    kind = kind_of(weight.form)
    arrays = [_array(weight, kind, part) for part in weight.form.parts]
    if kind != "pack":
        return arrays
    data = np.array(weight.shape, "<i8").tobytes()
    return [*arrays, Array(f"{weight.module}.weight_shape", "int64", (RANK,), data=data)]


def _array(weight: Written, kind: str, part: PartForm) -> Array:
    """Give the array of a part."""
    n_out, n_in = weight.shape
    n_bytes = weight.form.part_bytes(weight.shape)[part.role]
    word = next(word for word, role in ROLES.items() if role == part.role)
    if part.role == "codes":
        word = "weight" if kind in ONE_BYTE else word
        dtype = ONE_BYTE.get(kind, "int32" if kind == "pack" else "uint8")
        shape: tuple[int, ...] = (n_out, n_bytes // (n_out * DTYPES[dtype].bits // 8))
    elif part.role == "g_idx":
        dtype, shape = "int32", (n_in,)
    else:
        param = weight.form.scheme.param(part.role)
        counts = param.group.counts(n_out, n_in)
        dtype = "uint8" if not DTYPES[param.dtype].mantissa and DTYPES[param.dtype].kind == "float" else param.dtype
        shape = (1,) if param.group == TENSOR else counts
        if part.role == "zeros" and part.layout.n_bytes > 1:
            dtype, shape = "int32", (n_bytes // (4 * counts[-1]), counts[-1])
    return Array(f"{weight.module}.{word}", dtype, shape, part.role)


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say how the packed weights are stored."""
    return carry(weights, {}, {})


def carry(weights: Sequence[Written], old: Json, said: Mapping[str, Json]) -> Mapping[str, Json]:
    """Say it with what a source of the same dialect says of activations and caches."""
    if all(weight.form.scheme.is_dense for weight in weights):
        return {}
    settings = old.get("quantization_config")
    known = settings if isinstance(settings, Mapping) and settings.get("quant_method") == NAME else {}
    return {"config.json": {"quantization_config": write(weights, known)}}


COMPRESSED_TENSORS = Dialect(NAME, KINDS, claim, forms, unbind, config, carry=carry)
