"""Reading a module of a compressed-tensors checkpoint: arrays that fit one another become a packed tensor.

Element types and shapes say what a module is; the config says it where they leave it open: the bits of packed fields of
7 and 8 bits, the rows and columns of a block. Sizes are checked against one another before a format is made of them.

Source: compressed-tensors 0.20.0: compressors/pack_quantized/base.py, compressors/naive_quantized/base.py,
compressors/nvfp4/base.py, quantization/lifecycle/initialize.py (shapes of scales).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qconvert.containers.safetensors_header import TensorInfo
from qconvert.dialects.compressed_tensors_config import Groups
from qconvert.dialects.dialect import Json, Shelf, bind
from qconvert.dialects.gptq import order_of
from qformat.errors import FileError
from qformat.formats import compressed_tensors as ct
from qformat.formats.compressed_tensors import n_words
from qformat.formats.form import Format
from qformat.scheme import Grid, Group, Indexed
from qformat.tensor import PackedTensor

Shape = tuple[int, int]
RANK = 2
BLOCK = (128, 128)  # rows and columns that share a scale, where no config says
SCALES = tuple(ct.SCALES)
EXPONENTS = ("uint8", "float8_e8m0fnu")
BYTES = {"int8": "int", "float8_e4m3fn": "float"}
ROLES = {
    "weight_packed": "codes",
    "weight": "codes",
    "weight_scale": "scales",
    "weight_zero_point": "zeros",
    "weight_global_scale": "divisor",
    "weight_g_idx": "g_idx",
    "weight_shape": "",
}


@dataclass(frozen=True)
class Module:
    """The arrays of one module, and what the config says of its weights."""

    shelf: Shelf
    name: str
    groups: Groups

    @cached_property
    def arrays(self) -> dict[str, str]:
        """Names of the arrays by their last word."""
        names = {word: f"{self.name}.{word}" if self.name else word for word in ROLES}
        found = {word: name for word, name in names.items() if name in self.shelf.infos}
        return {word: name for word, name in found.items() if word != "weight" or "weight_packed" not in found}

    @cached_property
    def said(self) -> Json:
        """What the config says of the weights; empty where it says nothing."""
        weights = self.groups.find(self.name).get("weights")
        return weights if isinstance(weights, Mapping) else {}

    def number(self, key: str) -> int | None:
        """Give a positive whole number that the config says; None where it says none. Raises FileError for anything else."""
        found = self.said.get(key)
        if found is None or (key == "group_size" and found == -1):
            return None
        if type(found) is not int or found < 1:
            raise FileError(f"{key} {found!r}, expected a number above 0", field=key, found=found)
        return found

    def info(self, word: str) -> TensorInfo:
        """Find an array. Raises FileError naming the one that is missing."""
        if word not in self.arrays:
            held = ", ".join(self.arrays)
            raise FileError(f"{word} is missing beside {held}", tensor=self.name, field=word, found=held, expected=word)
        return self.shelf.infos[self.arrays[word]]

    def expect(self, word: str, dtypes: Sequence[str], shape: Sequence[int | None], why: str) -> TensorInfo:
        """Check an array; see `Shelf.expect`."""
        self.info(word)
        return self.shelf.expect(self.arrays[word], dtypes, shape, why)

    def bind(self, form: Format, shape: Shape, without: str = "", dtype: str = "") -> PackedTensor:
        """Make the tensor of the arrays that hold its parts. Raises FileError for one that would have no part in the values."""
        stored = {ROLES[word]: name for word, name in self.arrays.items() if ROLES[word] and word != without}
        roles = [part.role for part in form.parts]
        for role, name in stored.items():
            if role not in roles:
                raise FileError(f"found beside weights of {form.name}, which have none", tensor=name, field=role)
        return bind(form, shape, self.shelf, stored, dtype)


def load(module: Module) -> PackedTensor:
    """Make the tensor of a module. Raises FileError where its arrays do not fit one another, or the config."""
    if "weight_packed" not in module.arrays:
        return _load_whole(module)
    dtype = module.info("weight_packed").dtype
    if dtype == "int32":
        return _load_packed(module)
    n_out, width = _codes(module, "weight_packed", ("uint8",), "words of integers, or bytes of small floats")
    scale = module.info("weight_scale")
    if scale.dtype == "float8_e4m3fn":
        shape = n_out, 2 * width
        _scales(module, (scale.dtype,), shape, 16)
        _one(module, "weight_global_scale", ("float32",))
        return module.bind(ct.NVFP4, shape)
    six = _is_six(module, width, scale)
    shape = n_out, width * 4 // 3 if six else 2 * width
    _scales(module, EXPONENTS, shape, 32)
    return module.bind(ct.MX["mxfp6" if six else "mxfp4"], shape)


def _load_whole(module: Module) -> PackedTensor:
    """Make the tensor of weights that are a byte each."""
    shape = _codes(module, "weight", tuple(BYTES), "a byte for each weight")
    info, scale = module.info("weight"), module.info("weight_scale")
    if scale.dtype in EXPONENTS and info.dtype == "float8_e4m3fn":
        _scales(module, EXPONENTS, shape, 32)
        return module.bind(ct.MX["mxfp8"], shape)
    over = _grid(module, shape)
    zeros = _has_zeros(module)
    if zeros:
        module.expect("weight_zero_point", (info.dtype,), scale.shape, f"a zero point for each scale of {module.name}")
    return module.bind(ct.whole(BYTES[info.dtype], over, scale.dtype, zeros), shape, dtype=scale.dtype)


def _load_packed(module: Module) -> PackedTensor:
    """Make the tensor of integers in words."""
    n_out, n_in = shape = _shape(module)
    width = module.expect("weight_packed", ("int32",), (n_out, None), f"{n_out} rows by weight_shape").shape[1]
    bits, sparse = _fields(module, n_in, width)
    grid, scale = _grid(module, shape), module.info("weight_scale")
    zeros = _zeros(module, n_out, bits, sparse) if _has_zeros(module) else ""
    groups, order = scale.shape[-1] if scale.shape else 1, None
    if "weight_g_idx" in module.arrays:
        module.expect("weight_g_idx", ("int32",), (n_in,), f"the group of each of {n_in} columns")
        name = module.arrays["weight_g_idx"]
        if not (module.shelf.read(name) == -1).all():  # -1: written before an order was chosen
            order = order_of(module.shelf, name, -(-n_in // groups), groups)
    over: Group = Indexed(groups, "g_idx") if order else grid
    form = ct.pack(bits, over, scale.dtype, shape, zeros, sparse)
    return module.bind(form, shape, "" if order else "weight_g_idx", scale.dtype)


def _codes(module: Module, word: str, dtypes: Sequence[str], why: str) -> Shape:
    """Check the array of codes, and give its sizes. Raises FileError for one without weights."""
    n_out, width = module.expect(word, dtypes, (None, None), why).shape
    if not n_out or not width:
        raise FileError(f"holds {n_out} x {width}, expected sizes above 0", tensor=module.arrays[word], found=(n_out, width))
    return n_out, width


def _shape(module: Module) -> Shape:
    """Read weight_shape. Raises FileError for anything but two sizes."""
    module.expect("weight_shape", ("int64", "int32"), (RANK,), "rows and columns")
    name = module.arrays["weight_shape"]
    n_out, n_in = (int(size) for size in module.shelf.read(name))
    if n_out < 1 or n_in < 1:
        raise FileError(f"shape {n_out} x {n_in}, expected sizes above 0", tensor=name, found=(n_out, n_in))
    return n_out, n_in


def _fields(module: Module, n_in: int, width: int) -> tuple[int, bool]:
    """Find bits and packing by the words of a row: as the config says, else the only bits of that width."""
    said = module.number("num_bits")
    ways = [(bits, False) for bits in ct.BITS] + [(bits, True) for bits in ct.SPARSE_BITS]
    fitting = [(bits, sparse) for bits, sparse in ways if n_words(n_in, bits, sparse) == width and said in (None, bits)]
    dense = [way for way in fitting if not way[1]]
    if len(dense) == 1 or (fitting and said is not None):
        return (dense or fitting)[0]
    if len(fitting) == 1:
        return fitting[0]
    name = module.arrays["weight_packed"]
    if said is None:
        found = ", ".join(str(bits) for bits, _ in fitting) or "none"
        message = f"{width} words for {n_in} columns fit fields of {found} bits, and the config says none of the module"
    else:
        wanted = sorted({n_words(n_in, said, sparse) for sparse in (False, said in ct.SPARSE_BITS)})
        message = f"{width} words for {n_in} columns of {said} bits, expected {' or '.join(map(str, wanted))}"
    raise FileError(message, tensor=name, found=width, expected=said)


def _grid(module: Module, shape: Shape) -> Grid:
    """Find which weights share a scale: by the shape of the scales, blocks as the config says or of 128 by 128."""
    n_out, n_in = shape
    info = module.info("weight_scale")
    said = module.said.get("block_structure") if module.said.get("strategy") == "block" else None
    if info.shape in ((), (1,)):
        module.expect("weight_scale", SCALES, info.shape, "a scale of the tensor")
        return ct.TENSOR
    if said is not None or (len(info.shape) == RANK and info.shape[0] != n_out):
        rows, cols = _block(said) if said is not None else BLOCK
        grid = Grid(rows, cols)
        module.expect("weight_scale", SCALES, grid.counts(n_out, n_in), f"blocks of {rows} x {cols} in {n_out} x {n_in}")
        return grid
    groups = module.expect("weight_scale", SCALES, (n_out, None), f"scales of {n_out} rows").shape[1]
    size = module.number("group_size")
    if size is None and groups and n_in % groups:
        message = f"{n_in} columns in {groups} groups, expected a group_size in the config"
        raise FileError(message, tensor=module.arrays["weight_scale"], field="group_size", found=groups)
    size = size or n_in // max(1, groups)
    _scales(module, SCALES, shape, size)
    return ct.CHANNEL if groups == 1 else Grid(1, size)


def _block(said: Any) -> tuple[int, int]:
    if isinstance(said, list) and len(said) == RANK and all(type(n) is int and n > 0 for n in said):
        return said[0], said[1]
    raise FileError("block_structure is no pair of sizes above 0", field="block_structure")


def _scales(module: Module, dtypes: Sequence[str], shape: Shape, size: int) -> None:
    """Check that there is a scale for each group of columns of every row."""
    n_out, n_in = shape
    module.expect("weight_scale", dtypes, (n_out, -(-n_in // size)), f"{n_out} rows of {n_in} weights in groups of {size}")


def _one(module: Module, word: str, dtypes: Sequence[str]) -> None:
    """Check that an array holds one value, with an axis or without."""
    info = module.info(word)
    module.expect(word, dtypes, () if not info.shape else (1,), "one value for the tensor")


def _has_zeros(module: Module) -> bool:
    """Tell whether there are zero points. Raises FileError where the config says so and they are missing."""
    if module.said.get("symmetric") is False:
        module.info("weight_zero_point")
    return "weight_zero_point" in module.arrays


def _zeros(module: Module, n_out: int, bits: int, sparse: bool) -> str:
    """Tell how zero points lie: packed along the rows, or as they are."""
    scale, info = module.info("weight_scale").shape, module.info("weight_zero_point")
    if info.dtype == "int8" or len(scale) != RANK:
        module.expect("weight_zero_point", ("int8",), scale, "a zero point for each scale")
        return "plain"
    lines = n_words(n_out, bits, sparse)
    module.expect("weight_zero_point", ("int32",), (lines, scale[1]), f"zero points of {n_out} rows in fields of {bits} bits")
    return "packed"


def _is_six(module: Module, width: int, scale: TensorInfo) -> bool:
    """Tell E2M3 from E2M1, in rows of the same bytes, by the number of scales, else by the config."""
    if width % 3:
        return False
    by_scales = {bits: -(-(width * 8 // bits) // 32) == scale.shape[-1] for bits in (4, 6) if scale.shape}
    said = module.number("num_bits")
    return by_scales.get(6, False) and (not by_scales[4] or said == 6)
