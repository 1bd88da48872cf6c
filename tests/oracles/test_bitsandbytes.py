"""bitsandbytes makes the stored NF4 vectors again, byte for byte, and decodes them to the stored values."""

from collections.abc import Callable, Mapping

import bitsandbytes.functional as peer
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

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
