"""Bit planes written many at a time: the bytes of every packed field of every layout, against the slow packer."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from llvmlite import binding, ir

from qformat import formats, reference
from qformat.kernels.vector.ir import I8, I64, cut, load, store, vector
from qformat.kernels.vector.pack import pack_bytes, runs
from qformat.layout import Bits, Field, Layout
from qformat.readings import packed
from qformat.units import Packed, Places

WORD = 8  # bits
N_BLOCKS = 2


@dataclass(frozen=True)
class Case:
    """A packed field of a layout."""

    layout: Layout
    field: Bits


CASES = {
    f"{part.layout.name}.{field.name}": Case(part.layout, field)
    for form in (*formats.GGUF, *formats.PLANAR, *formats.DIALECTS)
    for part in form.parts
    for field in part.layout.parts
    if isinstance(field, Bits) and field.width <= WORD
}


def written(field: Packed, values: np.ndarray[Any, Any], pieces: int, first: int, last: int) -> bytes:
    """Compile the packing of bytes [first, last), and run it on one unit."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64]), "run")
    b = ir.IRBuilder(function.append_basic_block())
    codes = cut(b, load(b, function.args[0], vector(I8, values.size)), values.size // pieces)
    store(b, pack_bytes(b, field, codes, first, last), function.args[1], 1, False)
    b.ret_void()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(features=binding.get_host_cpu_features().flatten())
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
    engine.finalize_object()
    given, out = values.astype(np.uint8), np.full(last - first, 0xEE, np.uint8)
    ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(engine.get_function_address("run"))(
        given.ctypes.data, out.ctypes.data
    )
    return out.tobytes()


def fields_of(layout: Layout, field: Bits, values: list[int]) -> dict[str, list[int]]:
    """Give the fields of a block that is zero but for one of them."""
    found = {part.name: [0 if isinstance(part, Field) else -part.minus] * part.count for part in layout.parts}
    return found | {field.name: values}


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_a_field_is_packed_as_the_slow_packer_does(name: str, pieces: int) -> None:
    layout, field = CASES[name].layout, CASES[name].field
    values = np.random.default_rng(3).integers(field.low, field.high + 1, N_BLOCKS * field.count)
    values[: field.count : 2] = field.low
    values[field.count :: 2] = field.high
    place = packed(0, field, N_BLOCKS, layout.n_bytes)
    expected = b"".join(
        reference.pack(fields_of(layout, field, block.tolist()), layout) for block in values.reshape(N_BLOCKS, -1)
    )

    assert written(place, values, pieces, 0, len(expected)) == expected


@pytest.mark.parametrize("name", CASES)
def test_runs_put_together_are_the_whole(name: str) -> None:
    layout, field = CASES[name].layout, CASES[name].field
    values = np.random.default_rng(6).integers(field.low, field.high + 1, field.count)
    block = reference.pack(fields_of(layout, field, values.tolist()), layout)
    place, made = packed(0, field, 1, layout.n_bytes), bytearray(layout.n_bytes)
    for low, high in runs(place):
        made[low:high] = written(place, values, 1, low, high)

    assert bytes(made) == block


@pytest.mark.parametrize("name", CASES)
def test_runs_are_the_bytes_that_hold_bits_of_the_field(name: str) -> None:
    layout, field = CASES[name].layout, CASES[name].field
    block = reference.pack(fields_of(layout, field, [-field.minus - 1 if field.signed else field.high] * field.count), layout)

    assert [i for low, high in runs(packed(0, field, 1, layout.n_bytes)) for i in range(low, high)] == [
        i for i, byte in enumerate(block) if byte
    ]


def test_a_part_of_the_bytes_is_that_part_of_all() -> None:
    layout, field = CASES["q6_k.qs"].layout, CASES["q6_k.qs"].field
    values = np.random.default_rng(4).integers(field.low, field.high + 1, field.count)
    block = reference.pack(fields_of(layout, field, values.tolist()), layout)

    assert written(packed(0, field, 1, layout.n_bytes), values, 8, 100, 150) == block[100:150]


def test_bits_of_two_values_that_go_the_same_way_share_a_byte() -> None:
    """Value 0 gives its low bits, value 1 its high ones, neither shifted."""
    planes = (Places(2, 0, (0, 32)), Places(2, 4, (36, 4)))

    assert written(Packed(0, planes, 6), np.array([0x31, 0x22]), 1, 0, 5) == bytes([0x21, 0, 0, 0, 0x32])


def test_bytes_without_a_bit_of_the_field_are_zero() -> None:
    assert written(Packed(0, (Places(4, 0, (0, 4)),), 4), np.array([1, 2]), 1, 3, 5) == bytes(2)
