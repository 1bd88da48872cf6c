"""Decoding GGUF blocks gives ggml's own floats, bit for bit, the sign of zero included (spec/vectors/ggml/README.md)."""

from collections.abc import Callable

import numpy as np
import pytest
from conftest import VECTORS, Arrays
from numpy.typing import NDArray

from qformat import formats, reference
from qformat.arrays import Memory
from qformat.errors import NotExact, UsageError
from qformat.formats import Format
from qformat.tensor import PackedTensor, assemble, pack_parts

Golden = Callable[[str], Arrays]

TYPES = {form.name.upper(): form for form in formats.GGUF}
STORED = {name: np.load(VECTORS / "ggml" / f"{name}.npz", allow_pickle=False).files for name in TYPES}
PAIRS = (("packed", "y"), ("packed_imatrix", "y_imatrix"), ("fuzz_packed", "fuzz_y"))
# What ggml packed, and what it decodes that to.
CASES = [(name, packed, y) for name, fields in STORED.items() for packed, y in PAIRS if packed in fields and y in fields]
FUZZED = [name for name, fields in STORED.items() if "fuzz_packed" in fields]
BLOCKS = [(name, packed) for name, fields in STORED.items() for packed, _ in PAIRS if packed in fields]
GRIDS = [name for name, form in TYPES.items() if "index" in form.parts[0].layout.pieces]
DENSE = pytest.mark.parametrize("name", ["F16", "BF16"])
DTYPES = {"F16": "float16", "BF16": "bfloat16"}


def tensor_of(form: Format, packed: NDArray[np.uint8], shape: tuple[int, ...]) -> PackedTensor:
    return assemble(form, shape, {form.parts[0].role: Memory(packed.reshape(-1))})


def rows_of(form: Format, packed: NDArray[np.uint8]) -> PackedTensor:
    layout = form.parts[0].layout
    return tensor_of(form, packed, (len(packed), packed.shape[1] // layout.n_bytes * layout.n_weights))


def values_of(form: Format, tensor: PackedTensor) -> dict[str, NDArray[np.generic]]:
    return {"codes": tensor.codes()} | {param.name: tensor.param(param.name) for param in form.scheme.params}


def test_every_type_but_one_has_ggmls_decode_and_random_blocks() -> None:
    assert {name for name, _, _ in CASES} == set(FUZZED) == set(TYPES) - {"Q8_1"}


@pytest.mark.parametrize(("name", "packed", "y"), CASES)
def test_blocks_decode_as_ggml_decodes_them(name: str, packed: str, y: str, golden_ggml: Golden) -> None:
    golden = golden_ggml(name)
    decoded = tensor_of(TYPES[name], golden[packed], golden[y].shape).dequantize()
    assert decoded.tobytes() == golden[y].tobytes()


@pytest.mark.parametrize("name", FUZZED)
def test_the_reference_decodes_random_blocks_as_ggml_does(name: str, golden_ggml: Golden) -> None:
    golden = golden_ggml(name)
    decoded = reference.decode(tensor_of(TYPES[name], golden["fuzz_packed"], golden["fuzz_y"].shape))
    assert decoded.tobytes() == golden["fuzz_y"].tobytes()


@pytest.mark.parametrize(("name", "packed"), BLOCKS)
def test_values_and_residue_give_any_block_back(name: str, packed: str, golden_ggml: Golden) -> None:
    form, blocks = TYPES[name], golden_ggml(name)[packed]
    tensor = rows_of(form, blocks)
    made = pack_parts(form, tensor.shape, values_of(form, tensor))["blocks"]
    residue = tensor.residue().get("blocks", np.zeros_like(made))
    assert (made ^ residue).tobytes() == blocks.tobytes()


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K", "TQ1_0"])
def test_bits_that_no_value_depends_on_are_residue(name: str) -> None:
    blocks = np.random.default_rng(5).integers(0, 256, (4, TYPES[name].parts[0].layout.n_bytes), dtype=np.uint8)
    assert rows_of(TYPES[name], blocks).residue()


def test_q8_1_codes_and_scale_are_its_bytes(golden_ggml: Golden) -> None:
    packed = golden_ggml("Q8_1")["packed"]
    blocks = packed.reshape(-1, 36)
    tensor = rows_of(TYPES["Q8_1"], packed)
    assert tensor.codes().tobytes() == blocks[:, 4:].tobytes()
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    assert tensor.dequantize().tobytes() == (blocks[:, 4:].view(np.int8) * scales).astype(np.float32).tobytes()


@pytest.mark.parametrize("name", TYPES)
def test_block_sizes_are_ggmls(name: str, golden_ggml: Golden) -> None:
    golden, layout = golden_ggml(name), TYPES[name].parts[0].layout
    assert (layout.n_weights, layout.n_bytes) == (int(golden["block"]), int(golden["bytes"]))


@pytest.mark.parametrize("name", GRIDS)
def test_codes_outside_a_grid_are_refused(name: str, golden_ggml: Golden) -> None:
    tensor = rows_of(TYPES[name], golden_ggml(name)["fuzz_packed"])
    values = values_of(TYPES[name], tensor)
    values["codes"] = np.full_like(values["codes"], 5)
    with pytest.raises(NotExact, match=r"run of|grid value"):
        pack_parts(TYPES[name], tensor.shape, values)


def test_a_decode_function_that_nobody_knows_is_named() -> None:
    from qformat import decode

    with pytest.raises(UsageError, match="'iq9_z', expected one of trits, "):
        decode.find("iq9_z")


@DENSE
def test_half_precision_rows_decode_as_ggml_decodes_them(name: str, golden_ggml: Golden) -> None:
    golden = golden_ggml(name)
    form = formats.dense.dense(DTYPES[name])
    decoded = tensor_of(form, golden["packed"], golden["y"].shape).dequantize()
    assert decoded.tobytes() == golden["y"].tobytes()
