"""Codes of single blocks, out of their bytes and back: the public door to a layout's planes.

Works on blocks that lie one after the other; how blocks are arranged over a tensor is `PackedTensor`'s business.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.fields import value_dtype
from qformat.layout import Bits, Layout


def unpack(blocks: NDArray[np.uint8], layout: Layout, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Read the integer codes of packed blocks.

    blocks : (n_blocks, layout.n_bytes) uint8, any strides, may be read-only and mapped from a file
    out    : (n_blocks, layout.n_weights) int8, uint8, int16 or int32, any strides, written in full; allocated if absent
    returns: out; codes in logical weight order, layout.codes.low <= code <= layout.codes.high

    Raises UsageError when a shape or dtype disagrees with the layout, or the layout's codes are not integers in bit planes.

    >>> from qformat.formats import find
    >>> unpack(np.array([[0x21]], np.uint8), find("mxfp4").parts[0].layout).tolist()
    [[1, 2]]
    """
    from qformat.kernels.planes import unpack as unpack_field

    codes = _codes(layout)
    if blocks.ndim != 2 or blocks.shape[1] != layout.n_bytes or blocks.dtype != np.uint8:
        raise UsageError(f"blocks are {blocks.dtype} {blocks.shape}, expected uint8 (n_blocks, {layout.n_bytes})")
    if out is None:
        out = np.empty((len(blocks), layout.n_weights), value_dtype(codes))
    unpack_field(blocks[:, None, :], codes, out)
    return out


def pack(codes: NDArray[Any], layout: Layout) -> NDArray[np.uint8]:
    """Write integer codes into blocks whose every other bit is zero.

    codes  : (n_blocks, layout.n_weights) integers, layout.codes.low <= code <= layout.codes.high
    returns: (n_blocks, layout.n_bytes) uint8

    Raises UsageError that names the index and value of a code out of range, or when the shape disagrees with the layout.

    >>> from qformat.formats import find
    >>> pack(np.array([[1, 2]]), find("mxfp4").parts[0].layout).tolist()
    [[33]]
    """
    from qformat.kernels.planes import check_codes
    from qformat.kernels.planes import pack as pack_field

    field = _codes(layout)
    blocks = np.zeros((*codes.shape[:1], layout.n_bytes), np.uint8)
    check_codes(codes, field)
    pack_field(codes, field, blocks)
    return blocks


def _codes(layout: Layout) -> Bits:
    if layout.codes is None:
        raise UsageError(f"layout '{layout.name}' holds no codes in bit planes", expected="packed integer codes")
    return layout.codes
