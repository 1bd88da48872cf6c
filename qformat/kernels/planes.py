"""Reads and writes the bits of packed fields with kernels derived from their declarations.

It knows blocks, fields and bits: neither what a code is worth nor how blocks are arranged over a tensor.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.flat import flat, is_regular
from qformat.kernels.nest import Nest, nest, reach
from qformat.layout import Bits

LEADS = 3  # stored axes that a kernel loops over; further ones are looped over here


def unpack(blocks: NDArray[np.uint8], field: Bits, out: NDArray[Any]) -> None:
    """Read a packed field of every block.

    blocks : (stored axes..., words, bytes of a word) uint8; any strides, may be read-only
    out    : (stored axes..., field.count) int8, uint8, int16 or int32, any strides, written in full;
             field.low <= value <= field.high

    Raises UsageError when the shapes disagree or `out` cannot hold the values.
    """
    _check(blocks.shape[:-2], blocks.shape[-2] * blocks.shape[-1], field, out)
    info = np.iinfo(out.dtype)
    if field.low < info.min or info.max < field.high:
        raise UsageError(f"'{field.name}' holds {field.low} to {field.high}, which {out.dtype} cannot hold")
    if not out.size:
        return
    if not is_regular(out):
        values = np.empty(out.shape, out.dtype.newbyteorder("="))
        unpack(blocks, field, values)
        out[...] = values
        return
    while out.ndim <= LEADS:
        blocks, out = blocks[None], out[None]
    if out.ndim > LEADS + 1:
        for i in range(out.shape[0]):
            unpack(blocks[i], field, out[i])
        return
    n_bytes = blocks.shape[-2] * blocks.shape[-1]
    word = blocks.shape[-1]
    if blocks.shape[-2] == 1 or blocks.strides[-2] == word:  # the words of a block follow one another
        word = 0
    if blocks.shape[-1] > 1 and blocks.strides[-1] != 1:
        blocks, word = np.ascontiguousarray(blocks), 0
    data, at, steps = flat(blocks)
    values, to, out_steps = flat(out.view(f"u{out.itemsize}"), writeable=True)  # one kernel for both signs
    dense = not word and steps[LEADS - 1] == n_bytes and out_steps[LEADS - 1] == field.count and out_steps[LEADS] == 1
    kernel = _unpacker(nest(field), n_bytes if dense else 0, field.count, word)
    half = 1 << (field.width - 1) if field.signed else 0
    kernel(data, at, steps, out.shape, values, to, out_steps, half, half + field.minus)


def pack(values: NDArray[Any], field: Bits, blocks: NDArray[np.uint8]) -> None:
    """Write a packed field of every block.

    values : (stored axes..., field.count) integers, field.low <= value <= field.high, which is not checked
    blocks : (stored axes..., bytes of a block) uint8, C order; the field's bits are zero before

    Raises UsageError when the shapes disagree or `blocks` is not in C order.
    """
    _check(blocks.shape[:-1], blocks.shape[-1], field, values)
    if not blocks.flags.c_contiguous or not blocks.flags.writeable:
        raise UsageError("blocks to pack into are not a writeable array in C order")
    if not values.size:
        return
    stored = np.ascontiguousarray(values).astype(np.int32, copy=False).reshape(-1, field.count)
    _packer(nest(field))(stored, field.minus, blocks.reshape(-1, blocks.shape[-1]))


def check_codes(values: NDArray[Any], field: Bits) -> None:
    """Refuse values that a field cannot hold.

    Raises UsageError that names the first one and its index.
    """
    if not values.size or (field.low <= int(values.min()) and int(values.max()) <= field.high):
        return
    index = np.unravel_index(np.argmax((values < field.low) | (values > field.high)), values.shape)
    place, value = tuple(int(i) for i in index), int(values[index])
    message = f"'{field.name}' has the value {value} at index {place}, expected {field.low} to {field.high}"
    raise UsageError(message, field=field.name, found=value, expected=(field.low, field.high))


def _check(stored: tuple[int, ...], n_bytes: int, field: Bits, values: NDArray[Any]) -> None:
    if n_bytes < reach(field):
        raise UsageError(f"blocks of {n_bytes} bytes, expected at least {reach(field)} for '{field.name}'")
    if values.shape != (*stored, field.count):
        raise UsageError(f"'{field.name}' has shape {values.shape}, expected {(*stored, field.count)}")
    if values.dtype.kind not in "iu":
        raise UsageError(f"'{field.name}' is {values.dtype}, expected integers")


Ints = NDArray[np.int64]


def _tables(nest: Nest) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Lay a nest out in arrays: loop sizes, steps, bytes per step (loop, plane); items (lane); pieces (lane, plane, i, 4)."""
    return (
        np.array([loop.size for loop in nest.loops]),
        np.array([loop.step for loop in nest.loops]),
        np.array([loop.bytes for loop in nest.loops]),
        np.array([lane.item for lane in nest.lanes]),
        np.array([[[(p.byte, p.right, p.mask, p.up) for p in plane] for plane in lane.pieces] for lane in nest.lanes]),
    )


@lru_cache(maxsize=512)
def _unpacker(nest: Nest, n_bytes: int, count: int, word: int) -> Kernel:
    """Make the kernel of a nest.

    n_bytes : bytes of a block where blocks and their values follow one another without gaps, else 0
    word    : bytes of a word where the words of a block lie apart, else 0
    """
    sizes, item_steps, byte_steps, items, pieces = _tables(nest)
    n_lanes, n_planes, n_pieces = pieces.shape[:3]
    size_0, size_1, size_2 = (int(size) for size in sizes)

    def run(data, at, steps, shape, out, to, out_steps, half, minus):  # type: ignore[no-untyped-def]  # compiled
        step = n_bytes or steps[2]
        out_step = count if n_bytes else out_steps[2]
        item_step = 1 if n_bytes else out_steps[3]
        for a in range(shape[0]):
            for b in range(shape[1]):
                for c in range(shape[2]):
                    source = at + a * steps[0] + b * steps[1] + c * step
                    target = to + a * out_steps[0] + b * out_steps[1] + c * out_step
                    for i in range(size_0):
                        for j in range(size_1):
                            for k in range(size_2):
                                item = i * item_steps[0] + j * item_steps[1] + k * item_steps[2]
                                for lane in range(n_lanes):
                                    code = np.uint32(0)
                                    for p in range(n_planes):
                                        moved = i * byte_steps[0, p] + j * byte_steps[1, p] + k * byte_steps[2, p]
                                        for n in range(n_pieces):
                                            byte = moved + pieces[lane, p, n, 0]
                                            if word:
                                                byte = byte // word * steps[3] + byte % word
                                            bits = np.uint32(data[np.uintp(source + byte)])
                                            bits = bits >> np.uint32(pieces[lane, p, n, 1])
                                            bits = bits & np.uint32(pieces[lane, p, n, 2])
                                            code = code | (bits << np.uint32(pieces[lane, p, n, 3]))
                                    value = (np.int32(code) ^ np.int32(half)) - np.int32(minus)
                                    out[np.uintp(target + (item + items[lane]) * item_step)] = value

    return compiled(run)


@lru_cache(maxsize=512)
def _packer(nest: Nest) -> Kernel:
    """Make the kernel that writes the values of a nest."""
    sizes, item_steps, byte_steps, items, pieces = _tables(nest)
    n_lanes, n_planes, n_pieces = pieces.shape[:3]
    size_0, size_1, size_2 = (int(size) for size in sizes)

    def run(values, minus, blocks):  # type: ignore[no-untyped-def]  # compiled
        for block in range(blocks.shape[0]):
            for i in range(size_0):
                for j in range(size_1):
                    for k in range(size_2):
                        item = i * item_steps[0] + j * item_steps[1] + k * item_steps[2]
                        for lane in range(n_lanes):
                            code = np.uint32(values[block, item + items[lane]] + minus)
                            for p in range(n_planes):
                                moved = i * byte_steps[0, p] + j * byte_steps[1, p] + k * byte_steps[2, p]
                                for n in range(n_pieces):
                                    bits = code >> np.uint32(pieces[lane, p, n, 3]) & np.uint32(pieces[lane, p, n, 2])
                                    byte = moved + pieces[lane, p, n, 0]
                                    blocks[block, byte] |= np.uint8(bits << np.uint32(pieces[lane, p, n, 1]))

    return compiled(run)
