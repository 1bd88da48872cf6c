"""The quant state of a bitsandbytes weight: JSON in an array of bytes, read strictly, written as bitsandbytes writes it.

Decides what the JSON may say. Must not know which arrays lie beside it.

Source: bitsandbytes-foundation/bitsandbytes 0.50.2: bitsandbytes/functional.py (QuantState.as_dict, from_dict).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from qconvert.containers.strict_json import json_kind, parse_json
from qconvert.dialects.dialect import Shelf, Written
from qconvert.dialects.geometry import scale_group
from qformat.errors import FileError, show
from qformat.formats.bitsandbytes import TABLES, nested_of
from qformat.formats.nf4 import BLOCK_SIZES
from qformat.scheme import Flat

STATE = ".quant_state.bitsandbytes__"  # follows the weight's name; the table follows
DTYPES_OF_STATE = ("bfloat16", "float16", "float32")
MAX_RANK = 8
FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True, slots=True)
class State:
    """What the JSON of a weight says.

    table  : "nf4" or "fp4"
    block  : weights that share a scale
    dtype  : of the weights before they were packed
    shape  : of the weight
    nested : 8-bit scales that share a float32, and their offset; None where scales are float32
    """

    table: str
    block: int
    dtype: str
    shape: tuple[int, ...]
    nested: tuple[int, float] | None


def read_state(shelf: Shelf, name: str) -> State:
    """Read the JSON of a weight. Raises FileError naming the key that says what cannot be."""
    shelf.expect(name, ("uint8",), (None,), "bytes of JSON")
    try:
        said = parse_json(bytes(shelf.data(name)), path="", what="quant state")
    except FileError as err:
        raise FileError(err.message, tensor=name) from err
    if not isinstance(said, dict):
        raise FileError(f"quant state is {json_kind(said)}, expected an object", tensor=name, found=json_kind(said))
    table, shape = name.partition(STATE)[2], said.get("shape")
    _one_of(name, said, "quant_type", TABLES)
    if said["quant_type"] != table:
        _refuse(name, said, "quant_type", f"'{show(table)}' as the array's name says")
    _one_of(name, said, "blocksize", BLOCK_SIZES)
    _one_of(name, said, "dtype", DTYPES_OF_STATE)
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_RANK or not all(type(n) is int and n > 0 for n in shape):
        _refuse(name, said, "shape", f"1 to {MAX_RANK} positive sizes")
    if "nested_blocksize" not in said:
        return State(table, said["blocksize"], said["dtype"], tuple(shape), None)
    _one_of(name, said, "nested_blocksize", BLOCK_SIZES)
    _one_of(name, said, "nested_dtype", ("float32",))
    offset = said.get("nested_offset")
    if not isinstance(offset, int | float) or isinstance(offset, bool) or not abs(offset) <= FLOAT32_MAX:
        _refuse(name, said, "nested_offset", "a finite float32")
    nested = said["nested_blocksize"], struct.unpack("<f", struct.pack("<f", offset))[0]
    return State(table, said["blocksize"], said["dtype"], tuple(shape), nested)


def write_state(weight: Written, table: str) -> bytes:
    """Say of a weight what its arrays do not hold, in the very bytes in which bitsandbytes does."""
    group, nested = scale_group(weight.form.scheme), nested_of(weight.form.scheme)
    block = group.n_weights if isinstance(group, Flat) else 0
    said: dict[str, Any] = {"quant_type": table, "blocksize": block, "dtype": dtype_of(weight), "shape": weight.shape}
    if nested is not None:
        said |= {"nested_blocksize": nested[0], "nested_dtype": "float32", "nested_offset": nested[1]}
    return json.dumps(said).encode()


def dtype_of(weight: Written) -> str:
    """Name the element type that a weight is decoded to; float32, which loses nothing, where its own is not known."""
    return weight.tensor.dtype if weight.tensor.dtype in DTYPES_OF_STATE else "float32"


def _one_of(name: str, said: Mapping[str, Any], key: str, expected: Sequence[object] | Mapping[str, object]) -> None:
    """Refuse a value that is none of these, in type as well: true is not 1."""
    if not any(type(said.get(key)) is type(one) and said.get(key) == one for one in expected):
        _refuse(name, said, key, f"one of {', '.join(map(str, expected))}")


def _refuse(name: str, said: Mapping[str, Any], key: str, expected: str) -> NoReturn:
    found = show(json.dumps(said[key]), limit=60) if key in said else "nothing"
    raise FileError(f"{key} is {found}, expected {expected}", tensor=name, field=key, found=found, expected=expected)
