"""The slow reader by hand-made blocks, and what a layout and a loop nest promise for any declaration."""

import math
import struct
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qformat import reference
from qformat.errors import UsageError
from qformat.formats import gguf
from qformat.kernels.nest import Nest, nest
from qformat.layout import Bits, Field, Layout, Plane

PAIR = Layout("pair", 2, 1, (Bits("q", (Plane(0, 4),), 2, holds="codes"),))
SIGNED = Layout("signed", 2, 1, (Bits("q", (Plane(0, 4, "i=2 -> ~i"),), 2, signed=True, holds="codes"),))
SPLIT = Layout("split", 8, 3, (Bits("q", (Plane(1, 2), Plane(0, 1, shift=2)), 8, minus=4, holds="codes"),))
STREAM = Layout("stream", 8, 3, (Bits("q", (Plane(0, 3),), 8, holds="codes"),))


@pytest.mark.parametrize(
    ("layout", "block", "codes"),
    [
        (PAIR, "21", [1, 2]),
        (SIGNED, "8f", [-8, -1]),
        (SPLIT, "80e400", [-4, -3, -2, -1, -4, -4, -4, 0]),
        (STREAM, "88c6fa", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_blocks_written_by_hand_read_and_write_alike(layout: Layout, block: str, codes: list[int]) -> None:
    assert reference.unpack(bytes.fromhex(block), layout) == {"q": codes}
    assert reference.pack({"q": codes}, layout) == bytes.fromhex(block)


def test_a_block_with_a_scale_keeps_its_pattern() -> None:
    """Q4_0: a signaling NaN as scale, then the nibbles of elements j and j + 16 in byte j."""
    block = struct.pack("<H", 0x7C01) + bytes(range(0x10, 0x20))
    fields = reference.unpack(block, gguf.Q4_0.parts[0].layout)
    assert fields == {"d": [0x7C01], "qs": [*range(-8, 8), *[-7] * 16]}
    assert reference.pack(fields, gguf.Q4_0.parts[0].layout) == block


@pytest.mark.parametrize("n_bytes", [0, 17, 19])
def test_a_block_of_another_length_is_refused(n_bytes: int) -> None:
    with pytest.raises(UsageError, match=rf"block of {n_bytes} bytes, expected 18 \(q4_0\)"):
        reference.unpack(bytes(n_bytes), gguf.Q4_0.parts[0].layout)


@pytest.mark.parametrize("value", [-9, 8])
def test_a_value_that_its_field_cannot_hold_is_refused(value: int) -> None:
    with pytest.raises(UsageError, match=rf"'q' has the value {value} at index 1, which 4 bits cannot hold"):
        reference.pack({"q": [0, value]}, SIGNED)


@pytest.mark.parametrize(
    ("pattern", "dtype", "value"),
    [
        (0x8000, "float16", -0.0),
        (0x0001, "float16", 2.0**-24),
        (0x7C00, "float16", math.inf),
        (0x3F81, "bfloat16", 1.0078125),
        (0x00000001, "float32", 2.0**-149),
        (0x3FF0000010000000, "float64", 1.0),
        (0xFE, "float8_e8m0fnu", 2.0**127),
        (0x00, "float8_e8m0half", 2.0**-128),
        (0x7E, "float8_e4m3fn", 448.0),
        (0x9, "float4_e2m1fn", -0.5),
        (0xFF, "int8", -1.0),
        (-3, "int8", -3.0),
        (200, "uint8", 200.0),
    ],
)
def test_stored_elements_have_their_values(pattern: int, dtype: str, value: float) -> None:
    assert reference.element(pattern, dtype).tobytes() == np.float32(value).tobytes()


ORDERS = ["", "a=2 b=12 -> b a", "a=3 b=8 -> b a", "a=4 b=6 -> a b", "a=2 b=3 c=4 -> c ~a b", "a=24 -> ~a", "a=6 b=4 -> ~b a"]
WIDTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@st.composite
def fields(draw: st.DrawFn) -> Bits:
    """Planes of 24 items, each in an order of its own, one after the other."""
    planes, at, shift = [], draw(st.integers(0, 3)), 0
    for width in draw(WIDTHS):
        planes.append(Plane(at, width, draw(st.sampled_from(ORDERS)), shift))
        at, shift = at + 3 * width, shift + width
    return Bits("q", tuple(planes), 24)


def bits_in(found: Nest) -> dict[int, dict[int, int]]:
    """List, for every value that a nest visits, the bit of the block that each of its bits comes from."""
    values: dict[int, dict[int, int]] = {}
    for at in product(*(range(loop.size) for loop in found.loops)):
        for lane in found.lanes:
            item = lane.item + sum(i * loop.step for i, loop in zip(at, found.loops, strict=True))
            assert item not in values, f"value {item} is visited twice"
            values[item] = {}
            for number, pieces in enumerate(lane.pieces):
                moved = sum(i * loop.bytes[number] for i, loop in zip(at, found.loops, strict=True))
                for piece in pieces:
                    for k in range(piece.mask.bit_length()):
                        values[item][piece.up + k] = 8 * (piece.byte + moved) + piece.right + k
    return values


@given(fields())
@settings(max_examples=200)
def test_a_nest_visits_every_value_once_and_takes_its_bits_from_where_the_planes_put_them(field: Bits) -> None:
    expected: dict[int, dict[int, int]] = {i: {} for i in range(24)}
    for plane in field.planes:
        for i, first in enumerate(plane.strides(24).positions()):
            expected[i] |= {plane.shift + k: first + k for k in range(plane.bits)}
    assert bits_in(nest(field)) == expected


@given(fields(), st.data())
@settings(max_examples=100)
def test_a_layout_accepts_exactly_one_owner_for_every_bit(field: Bits, data: st.DataObject) -> None:
    first = field.planes[0].at
    n_bytes = first + 3 * field.width
    head = (Field("head", 0, "uint8", first),) if first else ()
    layout = Layout("whole", 0, n_bytes, (*head, field))
    assert layout.owners.count("q") == 24 * field.width
    with pytest.raises(UsageError, match=rf"bit {8 * n_bytes} of the block belongs to no field"):
        Layout("gap", 0, n_bytes + 1, (*head, field))
    at = data.draw(st.integers(0, n_bytes - 1))
    with pytest.raises(UsageError, match=r"layout 'twice': bit \d+ belongs to '(q|head)' and 'more'"):
        Layout("twice", 0, n_bytes, (*head, field, Field("more", at, "uint8")))
    with pytest.raises(UsageError, match=rf"layout 'over': '(q|head)' reaches bit \d+ of {8 * (n_bytes - 1)}"):
        Layout("over", 0, n_bytes - 1, (*head, field))
