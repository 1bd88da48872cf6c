"""transformers loads whole models that this project wrote, and gives the stored logits.

Peers were run on other threads, or sum in another order: float32 logits are compared within the bounds below, those of the
same weights in the same process by their bits.
"""

import json
from pathlib import Path

import bitsandbytes.functional as peer
import pytest
import qconvert
import torch
from conftest import VECTORS
from qconvert.conversion import dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

FOLDER = VECTORS / "hf" / "tiny-llama"
PACKED = FOLDER / "bnb-nf4-dq"
STORED = load_file(FOLDER / "bnb-nf4-dq-logits.safetensors")
# Sums of at most 512 products in another order, logits of at most 2.6: 2.2e-6 is found.
OTHER_ORDER = 1e-5
# Each weight rounded to 8 bits, by at most 2**-9 of it, through four layers: 0.0101 is found.
ROUNDED_WEIGHTS = 2.0**-6


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(STORED["input_ids"]).logits
    return logits


def decoded_by_the_peer(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Decode every packed weight of the stored model with bitsandbytes."""
    arrays = {name: array for path in sorted(PACKED.glob("*.safetensors")) for name, array in load_file(path).items()}
    found = {}
    for name in [name.partition(".quant_state.")[0] for name in arrays if ".quant_state." in name]:
        parts = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
        state = peer.QuantState.from_dict(parts, device=torch.device("cpu"))
        state.dtype = dtype
        found[name] = peer.dequantize_4bit(arrays[name], state)
    return found


@pytest.mark.parametrize(
    ("name", "dtype", "bound"), [("f32", torch.float32, OTHER_ORDER), ("bf16", torch.bfloat16, ROUNDED_WEIGHTS)]
)
def test_dequantized_weights_are_those_of_the_peer_and_give_the_stored_logits(
    name: str, dtype: torch.dtype, bound: float, tmp_path: Path
) -> None:
    dequantize(PACKED, tmp_path / "dense", name)

    model = load(tmp_path / "dense", dtype)
    for weight, values in decoded_by_the_peer(dtype).items():
        assert torch.equal(model.get_parameter(weight), values)
    difference = (logits_of(model.float()) - STORED["logits.dense_float32"]).abs().max()
    assert difference <= bound


@pytest.mark.parametrize("to", ["bnb", "bnb:nf4"])
def test_a_packed_model_gives_the_logits_of_the_stored_one(to: str, tmp_path: Path) -> None:
    qconvert.convert(PACKED, tmp_path / "a.qfmt", to="qfmt")
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", to=to)

    written, stored = load(tmp_path / "out", torch.bfloat16), load(PACKED, torch.bfloat16)

    said = written.config.quantization_config
    assert isinstance(said, BitsAndBytesConfig)
    assert said.bnb_4bit_use_double_quant == (to == "bnb")
    assert said.llm_int8_skip_modules is None
    assert torch.equal(logits_of(written), logits_of(stored))


@pytest.mark.parametrize("variant", ["int8", "nf4-b64", "fp4-b128-dq"])
def test_a_config_that_is_derived_is_the_one_that_the_peer_makes_of_it(variant: str, tmp_path: Path) -> None:
    stored = load_file(VECTORS / "hf" / "bitsandbytes" / variant / "model.safetensors")
    save_file(stored, tmp_path / "lone.safetensors")  # without a config

    qconvert.convert(tmp_path / "lone.safetensors", tmp_path / "out", to="bnb")

    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert BitsAndBytesConfig.from_dict(said).to_dict() == said
