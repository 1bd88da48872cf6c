"""transformers packs ternary codes as they are written here, and unpacks them to the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import qconvert
import torch
from carried import converted
from safetensors.torch import load_file, save_file
from transformers import BitNetQuantConfig
from transformers.integrations.bitnet import pack_weights, unpack_weights

from qformat.formats import gguf_few
from qformat.tensor import from_values

CODES = np.random.default_rng(10).integers(-1, 2, (16, 256)).astype(np.int8)


def test_ternary_blocks_of_gguf_are_packed_as_the_peer_packs_them(tmp_path: Path) -> None:
    source = from_values(gguf_few.TQ2_0, CODES.shape, {"codes": CODES, "scales": np.full((16, 1), 0.375, np.float16)})

    folder = converted(source, "bitnet", tmp_path)

    made = load_file(folder / "model.safetensors")
    codes = unpack_weights._torchdynamo_orig_callable(made["m.weight"], torch.float32)  # not compiled
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert torch.equal(made["m.weight"], pack_weights(torch.from_numpy(CODES.copy())))
    assert torch.equal(codes * made["m.weight_scale"].float(), torch.from_numpy(source.dequantize()))
    assert BitNetQuantConfig.from_dict(said).linear_class == "autobitlinear"


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_what_the_peer_packs_is_read(linear_class: str, tmp_path: Path) -> None:
    packed = {"m.weight": pack_weights(torch.from_numpy(CODES.copy())), "m.weight_scale": torch.tensor([3.0])}
    save_file(packed, tmp_path / "model.safetensors")
    config = BitNetQuantConfig(linear_class=linear_class).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}, default=str))

    with qconvert.open(tmp_path) as model:
        found = model["m.weight"].dequantize()

    codes, scale = CODES.astype(np.float32), np.float32(3)
    assert found.tobytes() == (codes / scale if linear_class == "bitlinear" else codes * scale).tobytes()
