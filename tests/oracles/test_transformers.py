"""transformers decodes the stored gpt-oss and FP8 weights to the stored values, and loads models that are written for it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
import torch
from handmade_checkpoint import arrays, checkpoint
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

Read = Callable[[str], Mapping[str, NDArray[Any]]]
RNG = np.random.default_rng(44)
LLAMA = LlamaConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, vocab_size=32
)
GPT_OSS = GptOssConfig(
    hidden_size=64, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    num_local_experts=2, num_experts_per_tok=1, vocab_size=32,
)  # fmt: skip


def dense(model: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """Give a fresh model's parameters in bfloat16."""
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    return {name: value.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) for name, value in state.items()}


def load(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Let transformers load a folder, decoding what is packed, and give its parameters."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: value.detach().float().numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["down_proj", "gate_up_proj"])
def test_decoding_the_stored_blocks_gives_the_stored_values(golden_hf: Read, name: str) -> None:
    module = f"model.layers.0.mlp.experts.{name}"
    stored = golden_hf("gpt-oss-mxfp4/experts/model")
    blocks = torch.from_numpy(stored[f"{module}_blocks"].copy())
    scales = torch.from_numpy(stored[f"{module}_scales"].copy())

    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)

    expected = golden_hf("gpt-oss-mxfp4/experts/expected")[f"{module}.float32"]
    assert values.contiguous().numpy().tobytes() == expected.tobytes()


def test_scale_byte_255_is_2_to_the_128(tmp_path: Path) -> None:
    held = {
        "experts.down_proj_blocks": np.arange(16, dtype=np.uint8).reshape(1, 1, 1, 16) * 17,
        "experts.down_proj_scales": np.full((1, 1, 1), 255, np.uint8),
    }
    with qconvert.open(checkpoint(tmp_path / "source", held)) as model:
        mine = model["experts.down_proj"].dequantize()

    blocks, scales = (torch.from_numpy(held[f"experts.down_proj_{what}"]) for what in ("blocks", "scales"))
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).swapaxes(1, 2).numpy()

    assert np.array_equal(mine, theirs)


def test_a_gpt_oss_model_that_was_made_from_mlx_loads_with_its_values(tmp_path: Path) -> None:
    experts = "model.layers.0.mlp.experts."
    held = {name: value for name, value in dense(GptOssForCausalLM(GPT_OSS)).items() if not name.endswith("_proj")}
    for name, n_rows, n_cols in (("gate_up_proj", 64, 64), ("down_proj", 64, 32)):
        held[f"{experts}{name}.weight"] = RNG.integers(0, 1 << 32, (2, n_rows, n_cols // 8), dtype=np.uint32)
        held[f"{experts}{name}.scales"] = RNG.integers(110, 130, (2, n_rows, n_cols // 32), dtype=np.uint8)
    source = checkpoint(tmp_path / "source", held, GPT_OSS.to_dict())

    qconvert.convert(source, tmp_path / "made", to="gpt-oss")

    found = load(tmp_path / "made")
    with qconvert.open(tmp_path / "made") as model:
        assert model.dialects[0] == "gpt-oss"
        for name in ("gate_up_proj", "down_proj"):
            mine = model[f"{experts}{name}"].dequantize("bfloat16").astype(np.float32)
            assert np.array_equal(found[f"{experts}{name}"].swapaxes(1, 2), mine)


@pytest.mark.parametrize("kind", ["f32", "ue8m0"])
def test_a_model_in_fp8_blocks_loads_with_its_values(kind: str, tmp_path: Path) -> None:
    held = dense(LlamaForCausalLM(LLAMA))
    packed = [name for name, value in held.items() if ".layers." in name and value.ndim == 2]
    for name in packed:
        n_rows, n_cols = held[name].shape
        held[name] = RNG.integers(0, 0x70, (n_rows, n_cols), dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
        exponents = RNG.integers(115, 125, (n_rows // 128, n_cols // 128), dtype=np.uint8)
        held[f"{name}_scale_inv"] = exponents.view(ml_dtypes.float8_e8m0fnu)
    said = {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}
    source = checkpoint(tmp_path / "source", held, {**LLAMA.to_dict(), "quantization_config": said})

    qconvert.convert(source, tmp_path / "made", to=f"fp8-block:{kind}")

    found = load(tmp_path / "made")
    with qconvert.open(tmp_path / "made") as model:
        assert {model[name].scheme.name for name in packed} == {f"fp8-block:{kind}"}
        for name in model:
            assert np.array_equal(found[name], model[name].dequantize()), name


def test_experts_of_two_codes_in_a_byte_decode_as_transformers_decodes_them(tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes = RNG.integers(-128, 128, (4, 32), dtype=np.int8)
    scales = RNG.integers(110, 130, (4, 2), dtype=np.uint8)
    with qconvert.open(checkpoint(tmp_path / "m", {"m.weight": codes, "m.weight_scale_inv": scales})) as model:
        mine = model["m.weight"].dequantize()

    peer = Fp8Dequantize(None)
    theirs = peer.convert({"weight": torch.from_numpy(codes), "weight_scale_inv": torch.from_numpy(scales)})["weight"]

    assert np.array_equal(mine, theirs.float().numpy())


def test_stored_fp8_blocks_are_what_transformers_decodes() -> None:
    expected = Path(__file__).parents[2] / "spec/vectors/hf/fp8-block"
    for folder in sorted(expected.iterdir()):
        with qconvert.open(folder) as model:
            for name in model:
                stored = arrays(folder / "expected.safetensors")[f"{name}.float32"]
                assert model[name].dequantize().tobytes() == stored.tobytes()
