"""The numbers GGUF stores for value types and tensor types, and what each takes on disk.

Decides names, block sizes and which ids are legal. Must not know how a header is laid out, nor what the codes in a
block mean. Pure data on the standard library.

Source: ggml-org/ggml: include/gguf.h (gguf_type), include/ggml.h (ggml_type), src/ggml.c (type_traits), 0.26.0.
"""

from __future__ import annotations

from dataclasses import dataclass

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"

BOOL, STRING, ARRAY = 7, 8, 9
UINT16, UINT32 = 2, 4


@dataclass(frozen=True, slots=True)
class ValueType:
    """A key-value's type: its name, and for fixed sizes the `struct` code and the bytes of one value."""

    name: str
    code: str = ""
    n_bytes: int = 0


VALUE_TYPES = {
    0: ValueType("uint8", "B", 1),
    1: ValueType("int8", "b", 1),
    UINT16: ValueType("uint16", "H", 2),
    3: ValueType("int16", "h", 2),
    UINT32: ValueType("uint32", "I", 4),
    5: ValueType("int32", "i", 4),
    6: ValueType("float32", "f", 4),
    BOOL: ValueType("bool", "B", 1),
    STRING: ValueType("string"),
    ARRAY: ValueType("array"),
    10: ValueType("uint64", "Q", 8),
    11: ValueType("int64", "q", 8),
    12: ValueType("float64", "d", 8),
}


@dataclass(frozen=True, slots=True)
class GGMLType:
    """A tensor type: its lower-case name, and the weights and bytes of one block."""

    name: str
    n_weights: int
    n_bytes: int


GGML_TYPES = {
    0: GGMLType("f32", 1, 4),
    1: GGMLType("f16", 1, 2),
    2: GGMLType("q4_0", 32, 18),
    3: GGMLType("q4_1", 32, 20),
    6: GGMLType("q5_0", 32, 22),
    7: GGMLType("q5_1", 32, 24),
    8: GGMLType("q8_0", 32, 34),
    9: GGMLType("q8_1", 32, 36),
    10: GGMLType("q2_k", 256, 84),
    11: GGMLType("q3_k", 256, 110),
    12: GGMLType("q4_k", 256, 144),
    13: GGMLType("q5_k", 256, 176),
    14: GGMLType("q6_k", 256, 210),
    15: GGMLType("q8_k", 256, 292),
    16: GGMLType("iq2_xxs", 256, 66),
    17: GGMLType("iq2_xs", 256, 74),
    18: GGMLType("iq3_xxs", 256, 98),
    19: GGMLType("iq1_s", 256, 50),
    20: GGMLType("iq4_nl", 32, 18),
    21: GGMLType("iq3_s", 256, 110),
    22: GGMLType("iq2_s", 256, 82),
    23: GGMLType("iq4_xs", 256, 136),
    24: GGMLType("i8", 1, 1),
    25: GGMLType("i16", 1, 2),
    26: GGMLType("i32", 1, 4),
    27: GGMLType("i64", 1, 8),
    28: GGMLType("f64", 1, 8),
    29: GGMLType("iq1_m", 256, 56),
    30: GGMLType("bf16", 1, 2),
    34: GGMLType("tq1_0", 256, 54),
    35: GGMLType("tq2_0", 256, 66),
    39: GGMLType("mxfp4", 32, 17),
    40: GGMLType("nvfp4", 64, 36),
    41: GGMLType("q1_0", 128, 18),
    42: GGMLType("q2_0", 64, 18),
}

# Element types, of one weight per block, by their names here.
GGUF_DENSE = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
}  # fmt: skip

REMOVED_TYPES = {
    4: "q4_2",
    5: "q4_3",
    31: "q4_0_4_4",
    32: "q4_0_4_8",
    33: "q4_0_8_8",
    36: "iq4_nl_4_4",
    37: "iq4_nl_4_8",
    38: "iq4_nl_8_8",
}

# ggml hands ids out in order and stands at 42. Those that follow may be types younger than this table: they are
# listed and copied as opaque bytes. An id of more than a byte is damage, not age.
OPAQUE_TYPES = range(43, 256)


def type_name(type_id: int) -> str:
    """Give a tensor type's name; "type_57" for an opaque id."""
    known = GGML_TYPES.get(type_id)
    return known.name if known else f"type_{type_id}"
