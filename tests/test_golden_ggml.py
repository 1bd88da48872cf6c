"""Decoding GGUF blocks gives ggml's own floats, bit for bit, the sign of zero included (spec/vectors/ggml/README.md)."""

from collections.abc import Callable

import numpy as np
import pytest
from conftest import Arrays
from numpy.typing import NDArray

from qformat import formats, reference
from qformat.arrays import Memory
from qformat.formats import Format
from qformat.tensor import PackedTensor, assemble

Golden = Callable[[str], Arrays]

BLOCKS = pytest.mark.parametrize("form", formats.GGUF, ids=[form.name for form in formats.GGUF])
DENSE = pytest.mark.parametrize("name", ["F16", "BF16"])
DTYPES = {"F16": "float16", "BF16": "bfloat16"}


def tensor_of(form: Format, packed: NDArray[np.uint8], shape: tuple[int, ...]) -> PackedTensor:
    return assemble(form, shape, {form.parts[0].role: Memory(packed.reshape(-1))})


@BLOCKS
def test_blocks_packed_by_ggml_decode_as_ggml_decodes_them(form: Format, golden_ggml: Golden) -> None:
    golden = golden_ggml(form.name.upper())
    decoded = tensor_of(form, golden["packed"], golden["y"].shape).dequantize()
    assert decoded.tobytes() == golden["y"].tobytes()


@BLOCKS
def test_random_blocks_decode_as_ggml_decodes_them(form: Format, golden_ggml: Golden) -> None:
    golden = golden_ggml(form.name.upper())
    decoded = tensor_of(form, golden["fuzz_packed"], golden["fuzz_y"].shape).dequantize()
    assert decoded.tobytes() == golden["fuzz_y"].tobytes()


@BLOCKS
def test_the_reference_decodes_random_blocks_as_ggml_does(form: Format, golden_ggml: Golden) -> None:
    golden = golden_ggml(form.name.upper())
    decoded = reference.decode(tensor_of(form, golden["fuzz_packed"], golden["fuzz_y"].shape))
    assert decoded.tobytes() == golden["fuzz_y"].tobytes()


@BLOCKS
def test_block_sizes_are_ggmls(form: Format, golden_ggml: Golden) -> None:
    golden = golden_ggml(form.name.upper())
    layout = form.parts[0].layout
    assert (layout.n_weights, layout.n_bytes) == (int(golden["block"]), int(golden["bytes"]))


@DENSE
def test_half_precision_rows_decode_as_ggml_decodes_them(name: str, golden_ggml: Golden) -> None:
    golden = golden_ggml(name)
    form = formats.dense.dense(DTYPES[name])
    decoded = tensor_of(form, golden["packed"], golden["y"].shape).dequantize()
    assert decoded.tobytes() == golden["y"].tobytes()
