"""Checkpoints seen as GGUF files and back: names, rows, key-values, and llama.cpp running what is written.

The models and all that is expected of them are written down by hand in `handmade_models`.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import handmade_models as made
import numpy as np
import pytest
import qconvert
from handmade_models import MODELS, Handmade
from qconvert import architectures
from qconvert.containers.gguf_types import VALUE_TYPES
from qconvert.conversion import dequantize
from qconvert.quantizing import quantize

# Activations are rounded to 8 bits where weights are packed: see test_llama.py.
EIGHT_BITS = 0.05

every_model = pytest.mark.parametrize("hand", MODELS.values(), ids=list(MODELS))


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch, root: Path) -> ModuleType:
    """Give tools/llama.py as a module."""
    monkeypatch.syspath_prepend(root / "tools")
    return importlib.import_module("llama")


def folder(hand: Handmade, tmp_path: Path) -> Path:
    return hand.folder(tmp_path / "model")


@every_model
def test_tensors_have_the_names_and_rows_that_llama_cpp_asks_for(hand: Handmade, tmp_path: Path) -> None:
    with qconvert.open(folder(hand, tmp_path)) as model:
        view = architectures.view(model, "gguf")
        found = {name: tensor.dequantize() for name, tensor in view.model.items()}

    assert view.missing == ""
    assert {name: array.shape for name, array in found.items()} == {name: array.shape for name, array in hand.gguf.items()}
    assert {name for name, array in found.items() if array.tobytes() != hand.gguf[name].tobytes()} == set()


@every_model
def test_vectors_norms_and_routers_are_float32_and_nothing_else_is_widened(hand: Handmade, tmp_path: Path) -> None:
    with qconvert.open(folder(hand, tmp_path)) as model:
        schemes = {name: tensor.scheme.name for name, tensor in architectures.view(model, "gguf").model.items()}

    wide = {name for name, array in hand.gguf.items() if array.ndim == 1 or name.endswith((".bias", "ffn_gate_inp.weight"))}
    assert {name for name, scheme in schemes.items() if scheme == "float32"} == wide


@every_model
def test_key_values_have_the_types_and_values_that_llama_cpps_converter_gives(hand: Handmade, tmp_path: Path) -> None:
    with qconvert.open(folder(hand, tmp_path)) as model:
        found = architectures.view(model, "gguf").key_values

    said = {pair.key: (VALUE_TYPES[pair.value_type].name.upper(), pair.value) for pair in found}
    assert said.pop("general.file_type") == ("UINT32", 0)
    assert said == hand.pairs


@pytest.mark.parametrize(("target", "dtype"), [("gguf:bf16", "bfloat16"), ("gguf:f32", "float32"), ("gguf", "bfloat16")])
def test_the_config_says_which_floats_matrices_are(target: str, dtype: str, tmp_path: Path) -> None:
    qconvert.convert(folder(MODELS["llama"], tmp_path), tmp_path / "a.gguf", target)
    with qconvert.open(tmp_path / "a.gguf") as file:
        config = json.loads(architectures.view(file, "hf").model.assets["config.json"]())

    assert config["torch_dtype"] == dtype


@pytest.mark.parametrize(("dtype", "expected"), [("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16")])
def test_the_config_says_which_floats_packed_matrices_become(dtype: str, expected: str, tmp_path: Path) -> None:
    qconvert.quantize(folder(MODELS["llama"], tmp_path), tmp_path / "a.gguf", "gguf:q8_0")
    dequantize(tmp_path / "a.gguf", tmp_path / "dense", dtype)
    qconvert.convert(tmp_path / "a.gguf", tmp_path / "packed", "mlx:f32")

    said = [json.loads((tmp_path / name / "config.json").read_text())["torch_dtype"] for name in ("dense", "packed")]
    assert said == [expected, "float32"]


def logits(llama: ModuleType, path: Path) -> Any:
    with llama.Llama(path, len(made.PROMPT), in_float32=True) as model:
        return model.logits(made.PROMPT)


@every_model
def test_llama_cpp_computes_from_a_converted_folder_what_it_does_from_the_packages_own_file(
    hand: Handmade, llama: ModuleType, tmp_path: Path
) -> None:
    qconvert.convert(folder(hand, tmp_path), tmp_path / "ours.gguf", "gguf:f32")

    found, expected = (logits(llama, path) for path in (tmp_path / "ours.gguf", hand.file(tmp_path / "theirs.gguf")))
    assert np.isfinite(expected).all()
    assert len({row.tobytes() for row in expected}) == len(made.PROMPT)
    assert np.array_equal(found, expected)


@every_model
def test_tensors_come_back_from_a_gguf_file_under_their_names(hand: Handmade, tmp_path: Path) -> None:
    with qconvert.open(folder(hand, tmp_path)) as source, qconvert.open(hand.file(tmp_path / "model.gguf")) as file:
        view = architectures.view(file, "hf")
        expected = {name: tensor.dequantize() for name, tensor in source.items()}
        found = {name: tensor.dequantize() for name, tensor in view.model.items()}

    if hand is MODELS["gpt-oss-packed"]:  # here the file holds floats, which lie transposed in a checkpoint
        expected = {name: a.swapaxes(1, 2) if name.endswith("_proj") else a for name, a in expected.items()}
    assert view.missing == ""
    assert {name: array.shape for name, array in found.items()} == {name: array.shape for name, array in expected.items()}
    assert {name for name, array in found.items() if array.tobytes() != expected[name].tobytes()} == set()


@every_model
def test_the_config_comes_back_from_a_gguf_file(hand: Handmade, tmp_path: Path) -> None:
    with qconvert.open(hand.file(tmp_path / "model.gguf")) as file:
        config = json.loads(architectures.view(file, "hf").model.assets["config.json"]())

    said = {field: value for field, value in hand.config.items() if field != "quantization_config"}
    assert config == said | {"torch_dtype": "float32"}


@every_model
def test_seen_there_and_back_a_model_is_the_same_signs_of_zeros_aside(hand: Handmade, tmp_path: Path) -> None:
    qconvert.convert(folder(hand, tmp_path), tmp_path / "there.gguf", "gguf")
    with qconvert.open(tmp_path / "model") as source, qconvert.open(tmp_path / "there.gguf") as file:
        back = architectures.view(file, "hf").model

        assert set(back) == set(source)
        assert {name for name in source if back[name].shape != source[name].shape} == set()
        assert {name for name in source if not np.array_equal(source[name].dequantize(), back[name].dequantize())} == set()


@pytest.mark.parametrize("decode", ["", "float32"], ids=["packed", "to be dense"])
def test_packed_experts_are_decoded_the_other_way_round_for_a_checkpoint_of_dense_ones(decode: str, tmp_path: Path) -> None:
    hand, name = MODELS["gpt-oss-packed"], "model.layers.1.mlp.experts.gate_up_proj"
    qconvert.convert(folder(hand, tmp_path), tmp_path / "packed.gguf")
    with qconvert.open(tmp_path / "packed.gguf") as file:
        view = architectures.view(file, "hf", decode)
        tensor = view.model[name]
        found = tensor.dequantize()

    gate, up = (hand.gguf[f"blk.1.ffn_{part}_exps.weight"] for part in ("gate", "up"))
    expected = np.stack([gate, up], axis=2).reshape(len(gate), -1, made.WIDTH)
    assert tensor.scheme.is_dense == bool(decode)
    assert np.array_equal(found, expected.swapaxes(1, 2) if decode else expected)


def test_packed_experts_of_a_folder_are_dense_as_a_folder_of_dense_ones_has_them(tmp_path: Path) -> None:
    hand = MODELS["gpt-oss-packed"]
    qconvert.convert(folder(hand, tmp_path), tmp_path / "dense", "safetensors:bf16")

    with qconvert.open(tmp_path / "dense") as found, qconvert.open(hand.file(tmp_path / "a.gguf")) as file:
        expected = architectures.view(file, "hf").model
        assert set(found) == set(expected)
        assert {name for name in found if not np.array_equal(found[name].dequantize(), expected[name].dequantize())} == set()


def test_dense_experts_of_a_folder_lie_as_they_did_when_they_are_widened(tmp_path: Path) -> None:
    qconvert.convert(folder(MODELS["gpt-oss"], tmp_path), tmp_path / "wide", "safetensors:f32")

    with qconvert.open(tmp_path / "model") as source, qconvert.open(tmp_path / "wide") as found:
        assert {name for name in source if not np.array_equal(source[name].dequantize(), found[name].dequantize())} == set()


def test_packed_experts_stay_packed_and_are_run(llama: ModuleType, tmp_path: Path) -> None:
    hand = MODELS["gpt-oss-packed"]
    qconvert.convert(folder(hand, tmp_path), tmp_path / "packed.gguf")
    qconvert.convert(tmp_path / "packed.gguf", tmp_path / "decoded.gguf", "gguf:f32")

    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "packed.gguf").tensors}
    assert {kind for name, kind in kinds.items() if name.endswith("_exps.weight")} == {"MXFP4"}
    packed, decoded = (logits(llama, tmp_path / f"{name}.gguf") for name in ("packed", "decoded"))
    assert np.linalg.norm(packed - decoded) < EIGHT_BITS * np.linalg.norm(decoded)


# Without qwen3moe, whose random router chooses other experts for activations that are rounded.
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
def test_every_architecture_is_run_packed(name: str, llama: ModuleType, tmp_path: Path) -> None:
    qconvert.convert(folder(MODELS[name], tmp_path), tmp_path / "dense.gguf")
    quantize(tmp_path / "dense.gguf", tmp_path / "packed.gguf", "gguf:q8_0")
    qconvert.convert(tmp_path / "packed.gguf", tmp_path / "decoded.gguf", "gguf:f32")

    packed, decoded = (logits(llama, tmp_path / f"{name}.gguf") for name in ("packed", "decoded"))
    assert np.linalg.norm(packed - decoded) < EIGHT_BITS * np.linalg.norm(decoded)


def test_rows_of_heads_move_as_bytes_where_weights_are_packed(tmp_path: Path) -> None:
    qconvert.convert(folder(MODELS["llama"], tmp_path), tmp_path / "dense.gguf")
    quantize(tmp_path / "dense.gguf", tmp_path / "packed.gguf", "gguf:q4_0")
    blocks = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "packed.gguf").tensors}

    with qconvert.open(tmp_path / "packed.gguf") as file:
        tensor = architectures.view(file, "hf").model["model.layers.1.self_attn.k_proj.weight"]
        (part,) = tensor.parts
        found = part.source.read(0, part.source.n_bytes).reshape(made.N_SHARED * made.HEAD, -1)

    neighbours = blocks["blk.1.attn_k.weight"].reshape(made.N_SHARED, made.HEAD // 2, 2, -1)
    assert tensor.scheme.name == "q4_0"
    assert np.array_equal(found, neighbours.swapaxes(1, 2).reshape(found.shape))


def test_a_real_model_is_described_as_it_was_published(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.syspath_prepend(root / "tools")
    installed = importlib.import_module("installed")
    with qconvert.open(installed.package_file(*installed.SMOLLM2)) as file:
        view = architectures.view(file, "hf")
        config = json.loads(view.model.assets["config.json"]())
        shape = view.model["model.layers.29.self_attn.k_proj.weight"].shape

    # HuggingFaceTB/SmolLM2-135M: config.json
    published = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "vocab_size": 49152,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
    }
    assert {field: config[field] for field in published} == published
    assert (len(view.model), shape) == (272, (192, 576))
