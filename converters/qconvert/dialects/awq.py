"""AWQ checkpoints: qweight, qzeros and scales of a module, in the order of one kernel, which `version` in the config names.

Arrays say the shape; of GEMV's, whose groups are filled up, the config says how many columns a group has.

Source: casper-hansen/AutoAWQ 0.2.9: awq/models/_config.py, awq/modules/linear/gemm.py, gemv.py, gemv_fast.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from qconvert.dialects.dialect import WEIGHT, Array, Claim, Dialect, Json, Shelf, Written, bind, expect_matrix
from qconvert.dialects.geometry import columns, integer_bits, scale_group
from qconvert.dialects.grouped import (
    GROUPS,
    SCALES,
    carry,
    check_bits,
    convention,
    dense_in_blocks,
    group_size,
    modules,
    numbers_of,
    settings,
)
from qformat.arrays import Memory
from qformat.errors import FileError, NotExact
from qformat.formats.awq import ACROSS, BITS, BLOCK_COLS, BLOCK_ROWS, BLOCKS, FIELDS, KINDS, gemm, gemv, gemv_fast
from qformat.formats.form import Format
from qformat.scheme import Grid, Indexed
from qformat.tensor import PackedTensor, assemble, format_of
from qformat.tiling import ROWS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from qformat.deferred import np

NAME = "awq"
FAST = "gemv_fast"
ROLES = {".qweight": "codes", ".qzeros": "zeros", ".scales": "scales"}
VERSION_KEYS = ("version", "checkpoint_format", "format")
VERSIONS = {"gemm": "gemm", "gemv": "gemv", "gemv_fast": FAST, "gemv-fast": FAST, "llm-awq": FAST}
TILINGS = {ACROSS: "gemm", ROWS: "gemv", BLOCKS: FAST}  # of the codes
RUNS = {32: 4, 64: 2}  # words that zero points are filled up to, by group size; 1 from 128 on
LARGE_GROUP = 128
RANK = 2


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find modules with a qweight, qzeros and scales, in a checkpoint whose config names this method, or none."""
    for module, arrays in modules(shelf, NAME):
        yield Claim(module + WEIGHT, tuple(arrays.values()), partial(load, shelf, arrays))


def load(shelf: Shelf, arrays: Mapping[str, str]) -> PackedTensor:
    """Make the tensor of a module. Raises FileError where its arrays do not fit one another, or the config."""
    check_bits(shelf, BITS, arrays[".qweight"])
    kind = kind_of(shelf)
    if kind == "gemm":
        return load_gemm(shelf, arrays)
    return load_gemv(shelf, arrays) if kind == "gemv" else load_fast(shelf, arrays)


def kind_of(shelf: Shelf) -> str:
    """Say for which kernel the arrays lie: as the user says, else the config, else GEMM. Raises FileError for others."""
    name, kind = convention(shelf)
    if name == NAME and kind:
        return kind
    said = settings(shelf)
    found = next((said[key] for key in VERSION_KEYS if key in said), "gemm")
    if not isinstance(found, str) or found.lower() not in VERSIONS:
        raise FileError(f"version {found!r}, expected one of {', '.join(VERSIONS)}", field="version", found=found)
    return VERSIONS[found.lower()]


def load_gemm(shelf: Shelf, arrays: Mapping[str, str]) -> PackedTensor:
    """Make a tensor of arrays for GEMM."""
    n_in, n_words = shelf.expect(arrays[".qweight"], ("int32",), (None, None), "columns by words of rows").shape
    n_out = n_words * FIELDS
    groups = shelf.expect(arrays[".scales"], SCALES, (None, n_out), f"a scale for each of {n_out} rows").shape[0]
    shelf.expect(arrays[".qzeros"], ("int32",), (groups, n_words), f"{groups} groups of zero points of {n_out} rows")
    _check_shape(arrays[".qweight"], n_out, n_in * groups)
    dtype = shelf.infos[arrays[".scales"]].dtype
    form = gemm(group_size(shelf, n_in, groups, arrays[".scales"]), dtype)
    return bind(form, (n_out, n_in), shelf, _by_role(arrays), dtype)


def load_gemv(shelf: Shelf, arrays: Mapping[str, str]) -> PackedTensor:
    """Make a tensor of arrays for GEMV."""
    n_out, n_words = shelf.expect(arrays[".qweight"], ("int32",), (None, None), "rows by words of columns").shape
    n_in = n_words * FIELDS
    _check_shape(arrays[".qweight"], n_out, n_in)
    size, run = said_group(shelf, n_in, arrays[".qzeros"])
    width = zeros_width(n_in, size, run)
    why = f"{n_in // size} groups of {n_out} rows, filled up to {width} words"
    shelf.expect(arrays[".qzeros"], ("int32",), (n_out, width), why)
    shelf.expect(arrays[".scales"], ("float16",), (n_out, width * FIELDS), why)
    return bind(gemv(size % n_in, run), (n_out, n_in), shelf, _by_role(arrays), "float16")


def load_fast(shelf: Shelf, arrays: Mapping[str, str]) -> PackedTensor:
    """Make a tensor of arrays for fast GEMV. Raises FileError where scaled zero points are of no integers."""
    n_lines, n_in = shelf.expect(arrays[".qweight"], ("int16",), (None, None), "rows by fours, columns").shape
    n_out = n_lines * BLOCK_ROWS
    _check_shape(arrays[".qweight"], n_out, n_in)
    if n_in % BLOCK_COLS:
        message = f"rows of {n_in} weights, expected a multiple of {BLOCK_COLS}"
        raise FileError(message, tensor=arrays[".qweight"], found=n_in, expected=BLOCK_COLS)
    size, run = said_group(shelf, n_in, arrays[".qzeros"])
    width = zeros_width(n_in, size, run)
    for suffix in (".qzeros", ".scales"):
        shelf.expect(arrays[suffix], ("float16",), (width * FIELDS, n_out), f"{n_in // size} groups of {n_out} rows, filled up")
    zeros = recover_zeros(shelf.read(arrays[".scales"]), shelf.read(arrays[".qzeros"]), n_in // size, arrays[".qzeros"])
    sources = {role: shelf.source(arrays[suffix]) for suffix, role in ROLES.items()}
    sources["zeros"] = Memory(np.ascontiguousarray(zeros.T).reshape(-1))
    return assemble(gemv_fast(size % n_in, run), (n_out, n_in), sources, "float16")


def recover_zeros(scales: NDArray[Any], scaled: NDArray[Any], groups: int, name: str) -> NDArray[np.uint8]:
    """Give the integer zero points whose products with minus the scales are stored.

    scales, scaled : (groups and what fills them up, rows) float16
    returns        : (groups, rows)

    Raises FileError for a product that no zero point from 0 to 15 gives.
    """
    with np.errstate(all="ignore"):
        ratio = np.rint(-scaled[:groups].astype(np.float32) / scales[:groups].astype(np.float32))
    zeros: NDArray[np.uint8] = np.clip(np.nan_to_num(ratio), 0, (1 << BITS) - 1).astype(np.uint8)
    wrong = scaled_zeros(scales, zeros) != scaled
    if wrong.any():
        group, row = (int(i) for i in np.argwhere(wrong)[0])
        found = float(scaled[group, row])
        message = f"{found!r} of group {group}, row {row} is minus its scale {float(scales[group, row])!r} times no zero point"
        raise FileError(f"{message} from 0 to {(1 << BITS) - 1}", tensor=name, field="zeros", found=found)
    return zeros


def scaled_zeros(scales: NDArray[Any], zeros: NDArray[np.uint8]) -> NDArray[Any]:
    """Give minus scale times zero point, rounded once; (groups and what fills them up, rows) float16."""
    found = np.zeros(scales.shape, "<f2")
    with np.errstate(all="ignore"):
        found[: len(zeros)] = -(scales[: len(zeros)].astype(np.float32) * zeros.astype(np.float32))
    return found


def said_group(shelf: Shelf, n_in: int, array: str) -> tuple[int, int]:
    """Give the columns of a group as the config says them, and the words that zero points are filled up to."""
    said = numbers_of(shelf, GROUPS)
    size = n_in if said[:1] == [-1] else said[0] if said else 0
    run = run_of(size)
    if not run or n_in % size:
        message = f"group_size {said[0] if said else 'missing'} for rows of {n_in}, expected a divisor: 32, 64, or from 128 on"
        raise FileError(message, tensor=array, field="group_size", found=said[0] if said else None)
    return size, run


def run_of(size: int) -> int:
    """Give the words that zero points of groups are filled up to; 0 where GEMV has no such groups."""
    return 1 if size >= LARGE_GROUP else RUNS.get(size, 0)


def zeros_width(n_in: int, size: int, run: int) -> int:
    """Give the words of a row's zero points."""
    return -(-(n_in // size) // (FIELDS * run)) * run


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor, GEMM's first; its own where it lies for fast GEMV."""
    bits, group, over = integer_bits(tensor.scheme), columns(tensor), scale_group(tensor.scheme)
    if group is None and isinstance(over, Indexed):
        group = -(-tensor.n_cols // over.n_groups)  # so that the refusal names the index
    if bits is None or bits > BITS or len(tensor.shape) != RANK or group is None or tensor.n_cols % (group or 1):
        return ()
    tiling, run, (n_out, n_in) = tensor.part("codes").form.tiling, run_of(group or tensor.n_cols), tensor.shape
    found = [format_of(tensor)] if tiling == BLOCKS and kind == "" else []
    if kind in ("", "gemm") and n_out % FIELDS == 0:
        own = tensor.scheme.param("scales").dtype if tiling == ACROSS else "float16"
        found += [gemm(group, dtype) for dtype in dict.fromkeys(("float16", own))]
    if kind in ("", "gemv") and n_in % FIELDS == 0 and run:
        found.append(gemv(group, run))
    return found


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight."""
    n_out, n_in = expect_matrix(weight, NAME)
    kind, scales = kind_of_form(weight.form), weight.form.scheme.param("scales")
    groups = scales.group.counts(n_out, n_in)[-1]
    names = [f"{weight.module}{suffix}" for suffix in (".qweight", ".qzeros", ".scales")]
    if kind == "gemm":
        shapes = ((n_in, n_out // FIELDS), (groups, n_out // FIELDS), (groups, n_out))
    else:
        width = zeros_width(n_in, n_in // groups, run_of(n_in // groups))
        shapes = ((n_out, n_in // FIELDS), (n_out, width), (n_out, width * FIELDS))
    if kind != FAST:
        dtypes = ("int32", "int32", scales.dtype)
        return [Array(*facts) for facts in zip(names, dtypes, shapes, ("codes", "zeros", "scales"), strict=True)]
    stored = np.zeros((width * FIELDS, n_out), "<f2")
    stored[:groups] = weight.tensor.param("scales").T
    data = scaled_zeros(stored, weight.tensor.param("zeros").T).tobytes()
    return [
        Array(names[0], "int16", (n_out // BLOCK_ROWS, n_in), "codes"),
        Array(names[1], "float16", stored.shape, data=data),
        Array(names[2], "float16", stored.shape, "scales"),
    ]


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say what the packed weights have in common. Raises NotExact where they differ: the config has no place for that."""
    packed = [weight for weight in weights if not weight.form.scheme.is_dense]
    if not packed:
        return {}
    sizes = {weight.name: group_of(weight) for weight in packed}
    size = next((size for size in sizes.values() if size != -1), -1)
    kinds = {weight.name: kind_of_form(weight.form) for weight in packed}
    for weight in packed:
        fits = sizes[weight.name] == size or (sizes[weight.name] == -1 and weight.shape[-1] == size)
        if not fits or kinds[weight.name] != kinds[packed[0].name]:
            mine = f"awq:{kinds[weight.name]} in groups of {sizes[weight.name]}"
            message = f"{mine}, but '{packed[0].name}' is awq:{kinds[packed[0].name]}, groups of {size}: a config says one"
            raise NotExact(message, tensor=weight.name, field="group_size", found=sizes[weight.name], expected=size)
    said = {"quant_method": NAME, "bits": BITS, "group_size": size, "zero_point": True, "version": kinds[packed[0].name]}
    return {"config.json": {"quantization_config": said | {"modules_to_not_convert": dense_in_blocks(weights) or None}}}


def group_of(weight: Written) -> int:
    """Give the columns of a group; -1 for all."""
    over = weight.form.scheme.param("scales").group
    return over.cols if isinstance(over, Grid) and 0 < over.cols < weight.shape[-1] else -1


def kind_of_form(form: Format) -> str:
    """Say for which kernel a format lies."""
    return TILINGS[next(part.tiling for part in form.parts if part.role == "codes")]


def _by_role(arrays: Mapping[str, str]) -> dict[str, str]:
    return {role: arrays[suffix] for suffix, role in ROLES.items()}


def _check_shape(name: str, n_out: int, n_in: int) -> None:
    if not n_out or not n_in:
        raise FileError(f"{n_out} rows of {n_in} weights, expected some", tensor=name, found=n_out * n_in)


AWQ = Dialect(NAME, KINDS, claim, forms, unbind, config, open=KINDS, carry=partial(carry, NAME))
