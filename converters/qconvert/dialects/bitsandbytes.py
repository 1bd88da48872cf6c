"""bitsandbytes checkpoints: a flat weight with its quant state beside it, or an int8 matrix with SCB.

Arrays and the state's JSON say everything of a weight, whatever the config does. The JSON and the table of levels are made
anew when a weight is written; a table that is not the format's own is a part of the tensor. Bytes of codes may come as a
wider element type (bnb_4bit_quant_storage); they are written as uint8.

Source: bitsandbytes-foundation/bitsandbytes 0.50.2: bitsandbytes/functional.py (QuantState.as_dict, from_dict),
bitsandbytes/nn/modules.py (Linear8bitLt), bitsandbytes/utils.py (LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING); huggingface/transformers
5.23.0: src/transformers/utils/quantization_config.py (BitsAndBytesConfig), src/transformers/quantizers/base.py.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from qconvert.dialects.bitsandbytes_state import DTYPES_OF_STATE, STATE, dtype_of, read_state, write_state
from qconvert.dialects.dialect import WEIGHT, Array, Claim, Dialect, Json, Shelf, Written, bind, dense_modules, expect_matrix
from qconvert.dialects.geometry import columns, scale_group
from qconvert.roles import category, runtime_name
from qformat.bits import DTYPES
from qformat.errors import FileError, show
from qformat.formats import Format, matrix
from qformat.formats.bitsandbytes import KINDS, N_LEVELS, N_SCALES, NESTED_BLOCK, TABLES, four_bit, int8, nested_of
from qformat.formats.nf4 import BLOCK_SIZES
from qformat.model import Oddity
from qformat.scheme import Flat, Integers, Scheme, Stored
from qformat.tensor import PackedTensor, format_of

NAME = "bitsandbytes"
SCB, WEIGHT_FORMAT = ".SCB", ".weight_format"
ROW = 0
OUTPUT, EMBEDDING = "output", "token_embd"
CARRIED = {
    "bnb_4bit_compute_dtype": str,
    "llm_int8_threshold": float,
    "llm_int8_enable_fp32_cpu_offload": bool,
    "llm_int8_has_fp16_weight": bool,
}
# What follows the weight's name, by the role of the part.
SUFFIXES = {
    "codes": "",
    "scales": ".absmax",
    "absmax": ".absmax",
    "quant_map": ".quant_map",
    "nested_absmax": ".nested_absmax",
    "nested_quant_map": ".nested_quant_map",
}


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find weights with a quant state, and modules with a weight and SCB."""
    for state in (name for name in shelf.infos if STATE in name):
        name = state.partition(STATE)[0]
        present = [name + suffix for suffix in dict.fromkeys(SUFFIXES.values()) if name + suffix in shelf.infos]
        yield Claim(name, (*present, state), partial(load_four_bit, shelf, name, state))
    for module, arrays in shelf.modules(WEIGHT, SCB):
        extra = [module + WEIGHT_FORMAT] if module + WEIGHT_FORMAT in shelf.infos else []
        yield Claim(module + WEIGHT, (*arrays.values(), *extra), partial(load_int8, shelf, module))


def load_four_bit(shelf: Shelf, name: str, state: str) -> PackedTensor:
    """Make the tensor of a weight with a quant state. Raises FileError where its arrays do not fit one another."""
    said = read_state(shelf, state)
    n_weights = math.prod(said.shape)
    shape = " x ".join(map(str, said.shape))
    expected = {"codes", "quant_map", *(("absmax", "nested_absmax", "nested_quant_map") if said.nested else ("scales",))}
    for suffix in dict.fromkeys(SUFFIXES.values()):
        wanted = any(SUFFIXES[role] == suffix for role in expected)
        if wanted != (name + suffix in shelf.infos):
            message = f"is missing, expected beside '{show(state)}'" if wanted else f"is no part of what '{show(state)}' says"
            raise FileError(message, tensor=name + suffix)
    info = shelf.infos[name]
    n_bytes = math.prod(info.shape) * DTYPES[info.dtype].bits // 8
    if n_bytes != -(-n_weights // 2):
        message = f"{n_bytes} bytes of codes, expected {-(-n_weights // 2)} for {shape} weights"
        raise FileError(message, tensor=name, found=n_bytes, expected=-(-n_weights // 2))
    n_blocks = -(-n_weights // said.block)
    why = f"a scale for each {said.block} of {shape} weights"
    shelf.expect(name + SUFFIXES["absmax"], ("uint8" if said.nested else "float32",), (n_blocks,), why)
    shelf.expect(name + SUFFIXES["quant_map"], ("float32",), (N_LEVELS,), f"the levels of {N_LEVELS} codes")
    if said.nested is not None:
        n_nested = -(-n_blocks // said.nested[0])
        why = f"one for each {said.nested[0]} of {n_blocks} scales"
        shelf.expect(name + SUFFIXES["nested_absmax"], ("float32",), (n_nested,), why)
        shelf.expect(name + SUFFIXES["nested_quant_map"], ("float32",), (N_SCALES,), f"the values of {N_SCALES} scales")
    stored = bytes(shelf.data(name + SUFFIXES["quant_map"])) != levels_of(said.table)
    form = four_bit(said.table, said.block, stored, said.nested)
    return bind(form, said.shape, shelf, {part.role: name + SUFFIXES[part.role] for part in form.parts}, said.dtype)


def load_int8(shelf: Shelf, module: str) -> PackedTensor:
    """Make the tensor of an int8 module. Raises FileError where its arrays do not fit one another, or lie in tiles."""
    n_out, n_in = shelf.expect(module + WEIGHT, ("int8",), (None, None), "rows of int8 codes").shape
    shelf.expect(module + SCB, ("float32",), (n_out,), f"the largest magnitude of each of {n_out} rows")
    if module + WEIGHT_FORMAT in shelf.infos:
        shelf.expect(module + WEIGHT_FORMAT, ("uint8",), (), "the order of the codes")
        order = shelf.data(module + WEIGHT_FORMAT)[0]
        if order != ROW:
            message = f"order {order} of the codes, expected {ROW} (by rows); others are the tiles of one kernel"
            raise FileError(message, tensor=module + WEIGHT_FORMAT, found=order, expected=ROW)
    return bind(int8(), (n_out, n_in), shelf, {"codes": module + WEIGHT, "scales": module + SCB})


def doubts(shelf: Shelf) -> Iterator[Oddity]:
    """Report tables of levels that are not their type's: bitsandbytes decodes by its own, whatever a file stores."""
    tables = [(name, table) for name, found, table in (state.partition(STATE) for state in shelf.infos) if found]
    odd = [name for name, table in tables if bytes(shelf.data(name + SUFFIXES["quant_map"])) != levels_of(table)]
    if odd:
        which = f"{len(odd)} quant_map are not the levels of their type, the first that of {show(odd[0], quote=True)}"
        yield Oddity("warning", f"{which}: they are used here, but bitsandbytes decodes by its own")


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor: its own, else its blocks with float32 scales, as nothing makes others."""
    own = own_form(tensor)
    if own is not None and kind in ("", kind_of(own.scheme, tensor)):
        return (own,)
    if kind == "int8":
        return (int8(),)
    table = kind.partition("-")[0] or table_of(tensor.scheme)
    block = block_of(tensor)
    if not table or block is None:
        return ()
    return (four_bit(table, block, nested=(NESTED_BLOCK, 0.0) if kind.endswith("-dq") else None),)


def own_form(tensor: PackedTensor) -> Format | None:
    """Give the format of a tensor that is one of bitsandbytes', whatever it is called; else None."""
    scheme, block = tensor.scheme, block_of(tensor)
    known = [int8()]
    if block is not None:
        stored = isinstance(scheme.alphabet, Stored)
        known += [four_bit(table, block, stored, nested_of(scheme)) for table in TABLES]
    meaning = format_of(tensor).meaning
    same = [form for form in known if form.meaning == meaning]
    return same[is_fp4(tensor) if len(same) > 1 else 0] if same else None


def is_fp4(tensor: PackedTensor) -> bool:
    """Tell which of the two a table that a tensor stores is, as bitsandbytes tells them apart: by the sign of code 1."""
    return isinstance(tensor.scheme.alphabet, Stored) and bool(tensor.param(tensor.scheme.alphabet.table)[1] > 0)


def table_of(scheme: Scheme) -> str:
    """Name the table that an alphabet is; empty for others."""
    return next((name for name, levels in TABLES.items() if levels == scheme.alphabet), "")


def block_of(tensor: PackedTensor) -> int | None:
    """Give how many weights of the flat tensor share a scale; None where bitsandbytes has no such block."""
    group = scale_group(tensor.scheme)
    block = group.n_weights if isinstance(group, Flat) else columns(tensor)
    return block if block in BLOCK_SIZES else None


def kind_of(scheme: Scheme, tensor: PackedTensor) -> str:
    """Say which kind a scheme of bitsandbytes is, which a tensor takes."""
    if isinstance(scheme.alphabet, Integers):
        return "int8"
    table = ("fp4" if is_fp4(tensor) else "nf4") if isinstance(scheme.alphabet, Stored) else table_of(scheme)
    return table + ("-dq" if nested_of(scheme) else "")


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight. Raises UsageError for int8 codes that are no matrix, or no weight of a module."""
    form, shape, name = weight.form, weight.shape, weight.name
    if isinstance(form.scheme.alphabet, Integers):
        expect_matrix(weight, "bnb:int8")
        return [
            Array(name, "int8", shape, "codes"),
            Array(weight.module + SCB, "float32", shape[:-1], "scales"),
            Array(weight.module + WEIGHT_FORMAT, "uint8", (), data=bytes([ROW])),
        ]
    arrays = [Array(name, "uint8", (-(-math.prod(shape) // 2), 1), "codes")]
    for param in form.scheme.params:
        arrays.append(Array(name + SUFFIXES[param.name], param.dtype, param.group.counts(*matrix(shape)), param.name))
    table = kind_of(form.scheme, weight.tensor).partition("-")[0]
    if not isinstance(form.scheme.alphabet, Stored):
        arrays.append(Array(name + SUFFIXES["quant_map"], "float32", (N_LEVELS,), data=levels_of(table)))
    state = write_state(weight, table)
    return [*arrays, Array(f"{name}{STATE}{table}", "uint8", (len(state),), data=state)]


def levels_of(table: str) -> bytes:
    """Give the stored form of a table."""
    return struct.pack(f"<{N_LEVELS}f", *TABLES[table].levels)


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say what most packed weights are, and which matrices are not packed."""
    packed = [weight for weight in weights if not weight.form.scheme.is_dense]
    if not packed:
        return {}
    kinds = Counter(kind_of(weight.form.scheme, weight.tensor) for weight in packed)
    table, _, nested = kinds.most_common(1)[0][0].partition("-")
    four = table != "int8"
    dtype = Counter(dtype_of(weight) for weight in packed).most_common(1)[0][0]
    said = {
        "quant_method": NAME,
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "bnb_4bit_quant_type": table if four else "fp4",
        "bnb_4bit_use_double_quant": bool(nested),
        "bnb_4bit_compute_dtype": dtype if four else "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": skipped(weights),
        "llm_int8_threshold": 6.0,
    }
    return {"config.json": {"quantization_config": said}}


def carry(weights: Sequence[Written], source: Json, said: Mapping[str, Json]) -> Mapping[str, Json]:
    """Keep what a config says of how to compute, which no weight tells of."""
    old = source.get("quantization_config")
    if not said or not isinstance(old, Mapping) or old.get("quant_method") != NAME:
        return said
    kept = {key: old[key] for key, kind in CARRIED.items() if type(old.get(key)) is kind}
    if kept.get("bnb_4bit_compute_dtype", DTYPES_OF_STATE[0]) not in DTYPES_OF_STATE:
        del kept["bnb_4bit_compute_dtype"]
    return {"config.json": {"quantization_config": said["config.json"]["quantization_config"] | kept}}


def skipped(weights: Sequence[Written]) -> list[str] | None:
    """Name the modules that stay dense; None where they are those that a reader leaves out unasked: output and embedding."""
    roles = {module: category(runtime_name(module + WEIGHT)) for module in dense_modules(weights)}
    named = [module for module, role in roles.items() if role != EMBEDDING]
    is_packed = any(category(runtime_name(w.name)) == OUTPUT for w in weights if not w.form.scheme.is_dense)
    return named if is_packed or any(roles[module] != OUTPUT for module in named) else None


BITSANDBYTES = Dialect(NAME, KINDS, claim, forms, unbind, config, short="bnb", doubts=doubts, carry=carry)
