"""bitsandbytes makes the stored NF4 vectors again, byte for byte, decodes the stored values, and loads what is written."""

from collections.abc import Callable, Mapping
from pathlib import Path

import bitsandbytes.functional as peer
import numpy as np
import pytest
import qconvert
import torch
from bitsandbytes.nn import Linear8bitLt, Params4bit
from conftest import VECTORS
from exact_ways import EXACTLY, Make
from numpy.typing import NDArray
from safetensors.torch import load_file

import qformat
from qformat.formats.nf4 import nf4

Arrays = Mapping[str, NDArray]
Read = Callable[[str], Arrays]

# variant, block size, dtype of the state, module, key of the source tensor; the last three as golden.json names them
STATES = [
    ("nf4-b64", 64, torch.bfloat16, "model.layers.0.self_attn.q_proj", "seed101"),
    ("nf4-b128", 128, torch.bfloat16, "model.layers.0.self_attn.q_proj", "seed101"),
    ("nf4-b64-f32", 64, torch.float32, "model.layers.0.mlp.down_proj", "seed102"),
    ("nf4-b64-odd", 64, torch.bfloat16, "odd.even_cols", "seed201"),
    ("nf4-b64-odd", 64, torch.bfloat16, "odd.odd_numel", "seed202"),
    ("nf4-b64-odd", 64, torch.bfloat16, "odd.one_row", "seed203"),
]
every_state = pytest.mark.parametrize(
    ("variant", "block", "dtype", "module", "source"), STATES, ids=[f"{s[0]}:{s[3]}" for s in STATES]
)


WAYS = {name: make for name, (make, form) in EXACTLY.items() if form in (nf4(64), nf4(128))}
FOUR_BIT = sorted(path.parent for path in (VECTORS / "hf" / "bitsandbytes").glob("?[fp]4-*/model.safetensors"))


@every_state
def test_quantizing_the_source_gives_the_stored_codes_and_scales(
    golden_hf: Read, variant: str, block: int, dtype: torch.dtype, module: str, source: str
) -> None:
    stored = golden_hf(f"bitsandbytes/{variant}/model")
    weight = torch.from_numpy(golden_hf("source")[source].astype(np.float32)).to(dtype)

    packed, state = peer.quantize_4bit(weight, blocksize=block, quant_type="nf4", compress_statistics=False)

    assert packed.numpy().tobytes() == stored[f"{module}.weight"].tobytes()
    assert state.absmax.numpy().tobytes() == stored[f"{module}.weight.absmax"].tobytes()
    assert state.code.numpy().tobytes() == stored[f"{module}.weight.quant_map"].tobytes()


@every_state
def test_decoding_the_stored_codes_in_float32_gives_the_stored_values(
    golden_hf: Read, variant: str, block: int, dtype: torch.dtype, module: str, source: str
) -> None:
    stored = golden_hf(f"bitsandbytes/{variant}/model")
    expected = golden_hf(f"bitsandbytes/{variant}/expected")[f"{module}.weight.float32"]
    state = peer.QuantState(
        absmax=torch.from_numpy(stored[f"{module}.weight.absmax"].copy()),
        shape=torch.Size(expected.shape),
        code=torch.from_numpy(stored[f"{module}.weight.quant_map"].copy()),
        blocksize=block,
        quant_type="nf4",
        dtype=torch.float32,
    )

    values = peer.dequantize_4bit(torch.from_numpy(stored[f"{module}.weight"].copy()), state)

    assert values.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_the_stored_tables_are_those_of_the_peer(golden_hf: Read, name: str) -> None:
    table = peer.get_4bit_type(name, device="cpu")

    assert table.numpy().tobytes() == golden_hf("bitsandbytes/tables/tables")[name].tobytes()


@pytest.mark.parametrize("kind", ["own", "float32 scales"])
@pytest.mark.parametrize("folder", FOUR_BIT, ids=lambda folder: folder.name)
def test_a_written_weight_is_read_by_the_peer_and_has_the_same_values(folder: Path, kind: str, tmp_path: Path) -> None:
    qconvert.convert(folder, tmp_path / "a.qfmt", to="qfmt")
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", to="bnb" if kind == "own" else f"bnb:{folder.name[:3]}")

    arrays, expected = load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "expected.safetensors")
    for name in [key.removesuffix(".float32") for key in expected if key.endswith(".float32")]:
        parts = {key: array for key, array in arrays.items() if key.startswith(f"{name}.")}
        weight = Params4bit.from_prequantized(arrays[name], parts, device="cpu")
        assert weight.quant_state.nested == (kind == "own" and "-dq" in folder.name)
        assert weight.quant_state.dtype == expected[name].dtype
        weight.quant_state.dtype = torch.float32
        assert torch.equal(peer.dequantize_4bit(weight.data, weight.quant_state), expected[f"{name}.float32"])


def test_written_int8_rows_are_read_by_the_peer_and_have_the_same_values(tmp_path: Path) -> None:
    folder = VECTORS / "hf" / "bitsandbytes" / "int8"
    qconvert.convert(folder, tmp_path / "a.qfmt", to="qfmt")
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", to="bnb:int8")

    arrays, expected = load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "expected.safetensors")
    for name in [key.removesuffix(".weight.float32") for key in expected if key.endswith(".float32")]:
        n_out, n_in = arrays[f"{name}.weight"].shape
        module = Linear8bitLt(n_in, n_out, bias=False, has_fp16_weights=False).to("cpu")  # quantizes it
        held = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
        assert not any(module.load_state_dict(held))  # no key is missing, none is unexpected
        values = peer.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
        assert torch.equal(values, expected[f"{name}.weight.float32"])


@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
def test_what_is_exact_has_the_values_of_its_source(make: Make, tmp_path: Path) -> None:
    """Said in NF4 of another block size first, which the peer then reads."""
    tensor = make()
    qformat.save(tmp_path / "a.qfmt", {"m.weight": tensor})
    to = next(form.name for name, (_, form) in EXACTLY.items() if WAYS.get(name) is make)
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "b.qfmt", to=f"qfmt:{to}")
    qconvert.convert(tmp_path / "b.qfmt", tmp_path / "out", to="bnb:nf4")

    arrays = load_file(tmp_path / "out" / "model.safetensors")
    parts = {key: array for key, array in arrays.items() if key.startswith("m.weight.")}
    weight = Params4bit.from_prequantized(arrays["m.weight"], parts, device="cpu")
    weight.quant_state.dtype = torch.float32
    expected = torch.from_numpy(tensor.dequantize()).reshape(1, -1)
    weight.quant_state.shape = expected.shape  # with AVX-512 the peer begins a block with every row, against its own quantizer
    assert torch.equal(peer.dequantize_4bit(weight.data, weight.quant_state), expected)
