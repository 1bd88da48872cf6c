"""HQQ checkpoints: W_q, scale and zero of a module, and every fact of its meta data as an array of its own.

The arrays say everything: bits, axis, group and shape. Facts of how the codes were found, which no value depends on, are
written as the peer's defaults have them.

Source: mobiusml/hqq 0.2.8: hqq/core/quantize.py (HQQLinear.state_dict), hqq/core/utils.py (encode_safetensor_type).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from qconvert.dialects.dialect import WEIGHT, Array, Claim, Dialect, Json, Shelf, Written, bind, dense_modules, expect_matrix
from qconvert.dialects.geometry import code_bits, columns, integer_bits, scale_group
from qformat.bits import DTYPES
from qformat.errors import FileError, QFormatError
from qformat.formats.form import Format
from qformat.formats.hqq import BITS, hqq, slabs
from qformat.scheme import Flat, Strided
from qformat.tensor import PackedTensor, format_of

NAME = "hqq"
FLOATS = ("float16", "bfloat16", "float32")
REQUIRED = (".W_q", ".scale", ".zero", ".shape", ".nbits", ".axis")
META = (
    *(".group_size", ".packing", ".unpack_view_dtype", ".view_as_float", ".quant_scale", ".quant_zero", ".compute_dtype"),
    *(".offload_meta", ".encoded_state_dict", ".stores_quant_config", ".channel_wise", ".optimize", ".round_zero"),
)
PACKED_AS = {3: "3bit_32", 4: "4bit_u8", 2: "2bit_u8", 1: "1bit_u8"}
ROUNDED_ZEROS = 4  # bits at which the peer rounds zero points to integers


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find modules with codes, scales, zero points and the facts that say how they lie."""
    for module, arrays in shelf.modules(*REQUIRED):
        arrays |= {suffix: module + suffix for suffix in META if module + suffix in shelf.infos}
        yield Claim(module + WEIGHT, tuple(arrays.values()), partial(load, shelf, arrays))


def load(shelf: Shelf, arrays: Mapping[str, str]) -> PackedTensor:
    """Make the tensor of a module. Raises FileError where its arrays do not fit one another."""
    bits, axis = number(shelf, arrays[".nbits"], BITS), number(shelf, arrays[".axis"], (0, 1))
    for suffix in (".quant_scale", ".quant_zero"):
        if suffix in arrays:
            number(shelf, arrays[suffix], (0,), "scales and zero points as they are, not quantized again")
    shelf.expect(arrays[".shape"], ("int64",), (2,), "rows and columns")
    shape = tuple(int(n) for n in shelf.read(arrays[".shape"]))
    dtype = shelf.infos[arrays[".scale"]].dtype
    n_groups = max(shelf.infos[arrays[".scale"]].shape, default=0)
    n_weights = shape[0] * shape[1]
    if min(shape) < 1 or n_groups < 1 or n_weights % n_groups:
        message = f"{shape[0]} x {shape[1]} weights in {n_groups} groups, expected whole groups"
        raise FileError(message, tensor=arrays[".shape"], found=n_weights, expected=n_groups)
    group = n_weights // n_groups
    params = (n_groups, 1) if axis else (1, n_groups)
    for suffix in (".scale", ".zero"):
        shelf.expect(arrays[suffix], (dtype,) if dtype in FLOATS else FLOATS, params, f"{n_groups} groups along axis {axis}")
    if ".group_size" in arrays:
        number(shelf, arrays[".group_size"], (group,), f"{n_weights} weights in {n_groups} groups")
    word = check_codes(shelf, arrays[".W_q"], bits, (n_groups, group) if axis else (group, n_groups))
    stored = {"codes": arrays[".W_q"], "scales": arrays[".scale"], "zeros": arrays[".zero"]}
    return bind(hqq(bits, axis, group, n_groups, dtype, word), shape, shelf, stored, dtype)


def check_codes(shelf: Shelf, name: str, bits: int, view: tuple[int, int]) -> int:
    """Check the array of codes of a grouped view; give the bytes of the float that it is seen as, 1 if it is not.

    Raises FileError where it does not fit.
    """
    rows, cols = view
    stored = shelf.infos[name].dtype
    held, n_bytes = ("int32", 4) if bits == 3 else ("uint8", 1)
    width = DTYPES[stored].bits // 8 if stored in FLOATS else n_bytes
    if bits != 3 and rows % slabs(bits):
        message = f"{rows} rows of the grouped view, expected a multiple of {slabs(bits)} ({bits} bits)"
        raise FileError(message, tensor=name, found=rows, expected=slabs(bits))
    why = f"{rows} x {cols} codes of {bits} bits"
    if cols * n_bytes % width:
        raise FileError(f"found {stored}, expected {held}, or a float of which {cols} bytes are some ({why})", tensor=name)
    shelf.expect(name, (held, *FLOATS), (-(-rows // slabs(bits)), cols * n_bytes // width), why)
    return width if stored in FLOATS and held == "uint8" else 1


def number(shelf: Shelf, name: str, expected: Sequence[int], why: str = "") -> int:
    """Read a number. Raises FileError where it is none of those that are expected."""
    shelf.expect(name, ("int32", "int64", "uint8", "bool"), (), why or "a number")
    found = int(shelf.read(name))
    if found not in expected:
        message = f"is {found}, expected {', '.join(map(str, expected))}" + (f" ({why})" if why else "")
        raise FileError(message, tensor=name, found=found, expected=expected)
    return found


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor: its own groups, along a row or strided, its bits or the next."""
    bits, over = integer_bits(tensor.scheme), scale_group(tensor.scheme)
    wide = next((n for n in BITS if bits is not None and n >= bits), None)
    run = columns(tensor)
    group = over.n_weights if isinstance(over, Flat | Strided) else tensor.n_cols if run == 0 else run
    if not wide or not group or tensor.n_weights % group:
        return ()
    n_groups, axis = tensor.n_weights // group, int(not isinstance(over, Strided))
    if wide != 3 and (n_groups if axis else group) % slabs(wide):
        return ()
    found = []
    for dtype in FLOATS:
        for word in dict.fromkeys((1, 1 if wide == 3 else word_of(format_of(tensor)))):
            try:
                found.append(hqq(wide, axis, group, n_groups, dtype, word))
            except QFormatError:
                continue
    return found


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight. Raises UsageError for what is no matrix of a module."""
    expect_matrix(weight, NAME)
    facts, dtype = facts_of(weight), weight.form.scheme.param("scales").dtype
    bits, axis, group = facts["nbits"], facts["axis"], facts["group_size"]
    n_groups = weight.tensor.n_weights // group
    rows, cols = (n_groups, group) if axis else (group, n_groups)
    held = "int32" if bits == 3 else dtype if facts["view_as_float"] else "uint8"
    width = DTYPES[held].bits // 8 if facts["view_as_float"] else 1
    params = (n_groups, 1) if axis else (1, n_groups)
    texts = {
        "packing": PACKED_AS.get(bits, "8bit_u8"),
        "unpack_view_dtype": "torch.int32" if held == "int32" else "torch.uint8",
        "compute_dtype": f"torch.{dtype}",
    }
    flags = {name: facts[name] for name in ("view_as_float", "channel_wise", "optimize", "round_zero")}
    flags |= {"quant_scale": False, "quant_zero": False, "offload_meta": False}
    flags |= {"encoded_state_dict": True, "stores_quant_config": True}

    def fact(name: str, kind: str, data: bytes, sizes: tuple[int, ...] = ()) -> Array:
        return Array(f"{weight.module}.{name}", kind, sizes, data=data)

    return [
        Array(f"{weight.module}.W_q", held, (-(-rows // slabs(bits)), cols // width), "codes"),
        Array(f"{weight.module}.scale", dtype, params, "scales"),
        Array(f"{weight.module}.zero", dtype, params, "zeros"),
        fact("shape", "int64", b"".join(n.to_bytes(8, "little") for n in weight.shape), (2,)),
        *(fact(name, "int32", facts[name].to_bytes(4, "little")) for name in ("nbits", "axis", "group_size")),
        *(fact(name, "uint8", text.encode(), (len(text),)) for name, text in texts.items()),
        *(fact(name, "uint8", bytes([flag])) for name, flag in flags.items()),
    ]


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say how the packed weights were quantized, each apart where they differ, and which matrices were not."""
    packed = {weight.module: params_of(weight) for weight in weights if not weight.form.scheme.is_dense}
    if not packed:
        return {}
    most = Counter(tuple(facts.items()) for facts in packed.values()).most_common()
    rest = {"scale_quant_params": None, "zero_quant_params": None, "offload_meta": False}
    said: Any = {"weight_quant_params": dict(most[0][0])} | rest
    if len(most) > 1:
        said = {module: {"weight_quant_params": facts} | rest for module, facts in packed.items()}
    skipped = dense_modules(weights)
    return {"config.json": {"quantization_config": {"quant_method": NAME, "quant_config": said, "skip_modules": skipped}}}


def params_of(weight: Written) -> dict[str, Any]:
    """Give what the config says of a weight: its facts, but for groups that are whole rows or columns."""
    facts = facts_of(weight)
    return facts | ({"group_size": None} if facts["group_size"] == weight.shape[-facts["axis"]] else {})


def facts_of(weight: Written) -> dict[str, Any]:
    """Give what the peer calls the parameters of a weight's quantization."""
    bits, over = code_bits(weight.form.scheme) or 0, weight.form.scheme.param("scales").group
    return {
        "nbits": bits,
        "group_size": over.n_weights if isinstance(over, Flat | Strided) else 0,
        "axis": int(isinstance(over, Flat)),
        "channel_wise": True,
        "optimize": True,
        "round_zero": bits == ROUNDED_ZEROS,
        "view_as_float": word_of(weight.form) > 1,
    }


def word_of(form: Format) -> int:
    """Give the bytes of the words in which codes lie, where slabs share them; 1 for bytes."""
    axes = {name: n for part in form.parts for name, n, _ in part.tiling.inner if part.role == "codes"}
    return axes.get("j", 1) if "w" in axes else 1


HQQ = Dialect(NAME, (), claim, forms, unbind, config)
