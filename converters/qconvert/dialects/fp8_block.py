"""Block FP8 checkpoints, as DeepSeek names them: a weight, and beside it `<weight>_scale_inv`, which is multiplied.

The config says how large a block is; arrays only how many there are, the last of each axis possibly short.

Source: huggingface/transformers 5.23.0: integrations/finegrained_fp8.py, utils/quantization_config.py
(FineGrainedFP8Config); deepseek-ai/DeepSeek-V3: inference/fp8_cast_bf16.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from qconvert.dialects.dialect import METADATA, Array, Claim, Dialect, Json, Shelf, Written, bind, dense_modules
from qformat.errors import FileError, UsageError
from qformat.formats.form import Format
from qformat.formats.fp8_block import DTYPES, E2M1, E4M3, FLOAT4, fp4, fp8_block
from qformat.scheme import Grid, Levels
from qformat.tensor import PackedTensor

NAME = "fp8-block"
METHOD = "fp8"
SUFFIX = "_scale_inv"
BLOCK = (128, 128)
TENSOR = (0, 0)
FP4_COLUMNS = 32
CODE_DTYPES = {"float8_e4m3fn": 1, "int8": 2, "float4_e2m1fn": 1}  # weights of an element
SCALE_DTYPES = {dtype: kind for kind, (dtype, _) in DTYPES.items()} | {"uint8": "ue8m0"}
IN_BYTES = {"float8_e8m0inf": "uint8"}
EXPONENTS = ("float8_e8m0fnu", *IN_BYTES)
ACTIVATION = (".activation_scale", ".input_scale")


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find arrays of small floats that have a scale beside them."""
    for name, arrays in shelf.modules("", SUFFIX):
        if shelf.infos[name].dtype in CODE_DTYPES:
            yield Claim(name, tuple(arrays.values()), partial(load, shelf, name, name + SUFFIX))


def load(shelf: Shelf, name: str, scale: str) -> PackedTensor:
    """Make the tensor of a weight. Raises FileError where its scales do not fit it, or the config's block."""
    info, found = shelf.infos[name], shelf.infos[scale]
    if len(info.shape) < len(BLOCK):
        message = f"found {len(info.shape)} dimensions, expected a matrix or a stack of them"
        raise FileError(message, tensor=name, found=info.shape)
    shape = (*info.shape[:-1], info.shape[-1] * CODE_DTYPES[info.dtype])
    is_fp4 = info.dtype != "float8_e4m3fn"
    block = (1, FP4_COLUMNS) if is_fp4 else block_of(shelf, found.shape)
    why = f"a scale for each {block[0]} x {block[1]} weights of '{name}'" if any(block) else f"a scale for '{name}'"
    dtypes = [dtype for dtype, kind in SCALE_DTYPES.items() if kind == "ue8m0" or not is_fp4]
    shelf.expect(scale, dtypes, grid_shape(shape, block), why)
    in_bytes = found.dtype == "uint8"
    if is_fp4:
        form = fp4(info.dtype == "float4_e2m1fn", in_bytes)
    elif is_cut(shape, block):
        message = f"stacked matrices of {shape[-2]} rows, expected a multiple of {block[0]}: a block would reach over two"
        raise FileError(message, tensor=name, found=shape[-2], expected=block[0])
    else:
        form = fp8_block(SCALE_DTYPES[found.dtype], *block, in_bytes)
    arrays = dict(zip((part.role for part in form.parts), (name, scale), strict=True))
    return bind(form, shape, shelf, arrays)


def block_of(shelf: Shelf, scales: tuple[int, ...]) -> tuple[int, int]:
    """Read the rows and columns of a block, 128 x 128 where the config does not say; of a lone scale, the whole tensor.

    Raises FileError for a config that says anything but two positive numbers.
    """
    said = shelf.quantization.get("weight_block_size")
    if not scales:
        return TENSOR
    if said is None:
        return BLOCK
    if not isinstance(said, list) or len(said) != len(BLOCK) or any(type(n) is not int or n < 1 for n in said):
        message = f"{said!r}, expected two positive integers"
        raise FileError(message, field="weight_block_size", found=said, expected=BLOCK)
    return said[0], said[1]


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor: in blocks as they are, or of 128 x 128."""
    alphabet, found = tensor.scheme.alphabet, list[Format]()
    if not isinstance(alphabet, Levels):
        return ()
    if len(alphabet.levels) == len(E2M1.levels) and kind in ("", "ue8m0") and tensor.n_cols % FP4_COLUMNS == 0:
        found += [fp4(is_float4, in_bytes) for is_float4 in (False, True) for in_bytes in (False, True)]
    own = [param.group for param in tensor.scheme.params if isinstance(param.group, Grid)]
    blocks = dict.fromkeys([(group.rows, group.cols) for group in own if group == Grid(0, 0) or (group.rows and group.cols)])
    for block in (*blocks, BLOCK):
        if not is_cut(tensor.shape, block):
            found += [fp8_block(one, *block) for one in DTYPES if kind in ("", one)]
            found += [fp8_block("ue8m0", *block, in_bytes=True)] if kind in ("", "ue8m0") else []
    return found


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight. Raises UsageError for a shape that is no matrix or stack."""
    form, shape = weight.form, weight.shape
    codes, scales = (part.role for part in form.parts)
    scale_dtype = form.scheme.param("scales").dtype
    if len(shape) < len(BLOCK):
        message = f"shape {list(shape)}, expected a matrix or a stack of them"
        raise UsageError(message, tensor=weight.name, field="shape", found=shape)
    dtype = "float8_e4m3fn" if form.scheme.alphabet == E4M3 else "float4_e2m1fn" if codes == FLOAT4 else "int8"
    n_codes = shape[-1] // CODE_DTYPES[dtype]
    return (
        Array(weight.name, dtype, (*shape[:-1], n_codes), codes),
        Array(weight.name + SUFFIX, IN_BYTES.get(scale_dtype, scale_dtype), grid_shape(shape, block_in(form)), scales),
    )


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say how large blocks are, what scales are, and which modules are dense. Raises UsageError for blocks of several sizes."""
    packed = [weight for weight in weights if not weight.form.scheme.is_dense]
    if not packed:
        return {}
    fp8 = [weight for weight in packed if weight.form.scheme.alphabet == E4M3]
    blocks = dict.fromkeys(block_in(weight.form) for weight in fp8) or {BLOCK: None}
    if len(blocks) > 1:
        found = " and ".join(f"{rows} x {cols}" for rows, cols in blocks)
        message = f"blocks of {found} weights, expected one size: the config of fp8-block has room for one"
        raise UsageError(message, field="weight_block_size", found=found)
    is_static = any(weight.name.endswith(ACTIVATION) for weight in weights)
    block = next(iter(blocks))
    said: dict[str, Any] = {
        "quant_method": METHOD,
        "activation_scheme": "static" if is_static else "dynamic",
        "fmt": "e4m3",
        "weight_block_size": list(block) if any(block) else None,
    }
    if all(weight.form.scheme.param("scales").dtype in EXPONENTS for weight in packed):
        said["scale_fmt"] = "ue8m0"
    if len(fp8) < len(packed):
        said["expert_dtype"] = "fp4"
    if dense := dense_modules(weights):
        said["modules_to_not_convert"] = dense
    return {"config.json": {"quantization_config": said}, METADATA: {"format": "pt"}}


def carry(weights: Sequence[Written], source: Json, said: Mapping[str, Json]) -> Mapping[str, Json]:
    """Keep what the source's config says besides, where all weights stay as they are: what activations are scaled by."""
    old = source.get("quantization_config")
    stays = all(weight.form.scheme == weight.tensor.scheme for weight in weights)
    if not said or not stays or not isinstance(old, Mapping) or old.get("quant_method") != METHOD:
        return said
    return {**said, "config.json": {"quantization_config": {**old, **said["config.json"]["quantization_config"]}}}


def block_in(form: Format) -> tuple[int, int]:
    """Give the rows and columns of a format's blocks; 0, 0: the whole tensor."""
    group = form.scheme.param("scales").group
    assert isinstance(group, Grid)  # of every format here
    return group.rows, group.cols


def grid_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Give the shape of an array of scales."""
    if block == TENSOR:
        return ()
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def is_cut(shape: tuple[int, ...], block: tuple[int, int]) -> bool:
    """Tell whether a block would reach from one matrix of a stack into the next."""
    return len(shape) > len(BLOCK) and block[0] > 0 and shape[-2] % block[0] != 0


FP8_BLOCK = Dialect(NAME, tuple(DTYPES), claim, forms, unbind, config, carry=carry)
