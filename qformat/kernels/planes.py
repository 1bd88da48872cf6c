"""Reads and writes the bits of packed fields, as their declarations say where they lie.

It knows blocks, fields and bits: neither what a code is worth nor how blocks are arranged over a tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.layout import Bits


def unpack(blocks: NDArray[np.uint8], field: Bits, out: NDArray[Any]) -> None:
    """Read a packed field of every block.

    blocks : (stored axes..., words, bytes of a word) uint8; any strides, may be read-only
    out    : (stored axes..., field.count), written in full; field.low <= value <= field.high
    """
    data = blocks.reshape(*blocks.shape[:-2], -1)
    found = np.zeros(out.shape, np.int64)
    for plane in field.planes:
        first = np.array(plane.strides(field.count).positions())
        for bit in range(plane.bits):
            found |= (data[..., (first + bit) // 8] >> ((first + bit) % 8).astype(np.uint8) & 1).astype(np.int64) << (
                plane.shift + bit
            )
    if field.signed:
        found -= (found >> (field.width - 1)) << field.width
    out[...] = found - field.minus


def pack(values: NDArray[Any], field: Bits, blocks: NDArray[np.uint8]) -> None:
    """Write a packed field of every block.

    values : (stored axes..., field.count) integers, field.low <= value <= field.high
    blocks : (stored axes..., bytes of a block) uint8, contiguous; the field's bits are zero before
    """
    stored = values.astype(np.int64) + field.minus
    for plane in field.planes:
        first = np.array(plane.strides(field.count).positions())
        for bit in range(plane.bits):
            part = (stored >> (plane.shift + bit) & 1).astype(np.uint8) << ((first + bit) % 8).astype(np.uint8)
            for item in range(field.count):
                blocks[..., (first[item] + bit) // 8] |= part[..., item]
