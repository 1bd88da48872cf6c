"""Weights in slabs that share bytes, and groups that go down them: read as they lie, with the values of the reference."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from made_tensors import made
from test_products import activations, assert_within_the_bound

import qformat
from qformat import reference
from qformat.arrays import Memory
from qformat.formats import Format
from qformat.formats.bitnet import bitnet
from qformat.formats.hqq import hqq
from qformat.formats.quanto import quanto
from qformat.layout import Bits, Layout, Plane
from qformat.slabs import Repeated, slabs_of
from qformat.tensor import PackedTensor
from qformat.tiling import Tiling

N_ROWS, N_COLS = 24, 256
EVEN, ODD = (N_ROWS, N_COLS), (13, 160)  # rows that slabs divide, and rows that they cut

# By the shape, for HQQ counts groups.
MADE: dict[str, Callable[[int, int], Format]] = {
    "bitnet": lambda n, k: bitnet(),
    "bitnet divided": lambda n, k: bitnet(divides=True),
    "quanto 2 bits": lambda n, k: quanto("int2", "bfloat16", 32),
    "quanto 4 bits": lambda n, k: quanto("int4", "float16", 32, "int8"),
    "quanto by row": lambda n, k: quanto("int4", "float32", k),
    "hqq 1 bit": lambda n, k: hqq(1, 1, 32, n * k // 32),
    "hqq 3 bits": lambda n, k: hqq(3, 1, 32, n * k // 32),
    "hqq 4 bits": lambda n, k: hqq(4, 1, 32, n * k // 32),
    "hqq 4 bits short": lambda n, k: hqq(4, 1, 8, n * k // 8),
    "hqq 4 bits as float16": lambda n, k: hqq(4, 1, 32, n * k // 32, word=2),
    "hqq 5 bits": lambda n, k: hqq(5, 1, 32, n * k // 32),
    "hqq 8 bits": lambda n, k: hqq(8, 1, 32, n * k // 32),
    "hqq 2 bits down": lambda n, k: hqq(2, 0, n // 3, 3 * k) if n % 3 == 0 else hqq(2, 0, n, k),
    "hqq 3 bits down": lambda n, k: hqq(3, 0, n, k),
    "hqq 4 bits down": lambda n, k: hqq(4, 0, n, k),
    "hqq 8 bits down": lambda n, k: hqq(8, 0, n, k, "float32"),
}
FEW = ("bitnet", "quanto 4 bits", "hqq 3 bits", "hqq 4 bits down")
every_format = pytest.mark.parametrize("name", MADE)
few_formats = pytest.mark.parametrize("name", FEW)
both_shapes = pytest.mark.parametrize("shape", [EVEN, ODD], ids=str)


def tensor_of(name: str, shape: tuple[int, int]) -> PackedTensor:
    return made(MADE[name](*shape), shape)


@both_shapes
@every_format
def test_slabs_are_decoded_as_the_reference_decodes_them(name: str, shape: tuple[int, int]) -> None:
    tensor = tensor_of(name, shape)
    wanted = reference.decode(tensor)

    assert tensor.dequantize().tobytes() == wanted.tobytes()
    for first in range(shape[0]):
        for last in (first + 1, first + 5):
            found = tensor.dequantize(rows=slice(first, min(last, shape[0])))
            assert found.tobytes() == wanted[first:last].tobytes()


@pytest.mark.parametrize("n_x", [1, 4])
@both_shapes
@every_format
def test_slabs_are_multiplied_within_the_bound(name: str, shape: tuple[int, int], n_x: int) -> None:
    tensor, x = tensor_of(name, shape), activations(n_x, shape[1])
    whole = qformat.matmul(x, tensor)

    assert tensor.units is not None
    assert_within_the_bound(whole, x, reference.decode(tensor))
    for first, last in ((0, 1), (5, 9), (shape[0] // 2 - 1, shape[0]), (3, 3)):
        assert qformat.matmul(x, tensor, rows=slice(first, last)).tobytes() == whole[:, first:last].tobytes()


@few_formats
def test_the_number_of_threads_changes_no_bit_of_slabs(name: str) -> None:
    shape = 4104, 512
    tensor, x = tensor_of(name, shape), activations(1, shape[1])
    try:
        qformat.set_threads(1)
        alone = qformat.matmul(x, tensor).tobytes(), tensor.dequantize().tobytes()
        qformat.set_threads(2)
        assert (qformat.matmul(x, tensor).tobytes(), tensor.dequantize().tobytes()) == alone
    finally:
        qformat.set_threads(None)


@every_format
def test_rows_of_one_slab_are_read_in_place(name: str) -> None:
    shape = 120, N_COLS
    slabs = slabs_of(tensor_of(name, shape))
    rows = [row for slab in slabs for row in range(slab.first, slab.last)]
    tensor = tensor_of(name, shape)

    assert rows == [*range(shape[0])]
    assert tensor.units is not None
    assert tensor.units.rows.in_place
    single = [slab.last - slab.first for slab in slabs if slab.tensor.parts[0].form == tensor.parts[0].form]
    assert single == []  # 120 rows are whole rows of 2, 4, 8 and 10 slabs


def test_a_row_between_slabs_is_read_by_itself() -> None:
    tensor = tensor_of("hqq 4 bits", ODD)

    assert [(slab.first, slab.last) for slab in slabs_of(tensor)] == [(0, 6), (6, 7), (7, 13)]


@few_formats
def test_slabs_never_stand_in_memory_as_a_whole(name: str) -> None:
    shape = 4096, 1024
    tensor, x = tensor_of(name, shape), activations(1, shape[1])
    qformat.matmul(x, tensor)

    tracemalloc.start()
    qformat.matmul(x, tensor)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < tensor.n_weights / 4  # bytes


@pytest.mark.parametrize("group", [5, 40, 2080], ids=str)
def test_groups_that_do_not_begin_anew_with_a_row_are_spread_over_the_weights(group: int) -> None:
    form = hqq(4, 0, group, 13 * 160 // group)
    tensor, x = made(form, ODD), activations(2, 160)
    wanted = reference.decode(tensor)

    assert tensor.dequantize().tobytes() == wanted.tobytes()
    assert tensor.dequantize(rows=slice(4, 9)).tobytes() == wanted[4:9].tobytes()
    assert_within_the_bound(qformat.matmul(x, tensor), x, wanted)


def test_bytes_that_come_again_are_those_of_one_array() -> None:
    data = np.arange(10, dtype=np.uint8)
    repeated = Repeated(Memory(data), 35)

    for start in range(35):
        for stop in range(start, 36):
            assert repeated.read(start, stop).tolist() == [i % 10 for i in range(start, stop)]
    assert np.shares_memory(repeated.read(12, 20), data)


ORDERS = {
    "rows first": ("r k | w -> (r w) k", "w=4 -> w"),  # neighbours share a byte: no slabs
    "backwards": ("r k | w=4 -> (w r) k", "w=4 -> ~w"),
    "two axes": ("r k | w=2 v=2 -> (w v r) k", "w=2 v=2 -> v w"),
}


@pytest.mark.parametrize(("order", "bits"), ORDERS.values(), ids=ORDERS)
def test_other_orders_of_rows_in_a_byte_are_decoded_too(order: str, bits: str) -> None:
    form = bitnet()
    layout = Layout("other", 4, 1, (Bits("codes", (Plane(0, 2, bits),), 4, minus=1, holds="codes"),))
    form = replace(form, parts=(replace(form.parts[0], layout=layout, tiling=Tiling(order)), *form.parts[1:]))
    tensor, x = made(form, EVEN), activations(1, N_COLS)

    assert tensor.dequantize().tobytes() == reference.decode(tensor).tobytes()
    assert_within_the_bound(qformat.matmul(x, tensor), x, reference.decode(tensor))
