"""Models of every architecture that transformers saves run under llama.cpp, say the same, and come back to the bit."""

from pathlib import Path

import numpy as np
import pytest
import qconvert
import runtimes
import small_models
import torch
from gguf import GGMLQuantizationType, GGUFReader
from qconvert.conversion import dequantize
from qconvert.quantizing import quantize

# Longer than the windows of attention, each; the last tokens of some vocabularies are added ones.
PROMPTS = (range(3, 40), [1, 5, 9, 200, 17, 318, 4, 44, 271, 60, 7, 9], [319] * 9)
N_TOKENS = 16
# Of a model in bfloat16 llama.cpp rounds activations to bfloat16: 4 % is found, where a router chose another expert.
ROUNDED_ACTIVATIONS = 0.1


@pytest.fixture(scope="module", params=small_models.CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    """Give an architecture."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let transformers save a model, make a GGUF file of it in float32, and of that a folder."""
    made = tmp_path_factory.mktemp(name)
    small_models.save(name, made / "saved")
    qconvert.convert(made / "saved", made / "f32.gguf", "gguf:f32", names="runtime")
    qconvert.convert(made / "f32.gguf", made / "back", "safetensors", names="runtime")
    return made


def test_llama_cpp_says_what_transformers_says(folder: Path) -> None:
    runtimes.check_same(folder / "saved", folder / "f32.gguf", PROMPTS, N_TOKENS)


def test_a_folder_made_of_the_gguf_file_gives_the_same_bits(folder: Path) -> None:
    saved, back = (runtimes.load(folder / name) for name in ("saved", "back"))

    for ids in PROMPTS:
        assert np.array_equal(runtimes.logits(back, ids), runtimes.logits(saved, ids))


def test_a_quantized_file_says_the_same_once_it_is_decoded_for_each(folder: Path) -> None:
    packed = folder / "q8_0.gguf"
    quantize(folder / "saved", packed, "gguf:q8_0")
    qconvert.convert(packed, folder / "decoded.gguf", "gguf:f32")
    dequantize(packed, folder / "decoded", "f32")

    assert GGMLQuantizationType.Q8_0 in {tensor.tensor_type for tensor in GGUFReader(packed).tensors}
    runtimes.check_same(folder / "decoded", folder / "decoded.gguf", PROMPTS[:2], N_TOKENS)


def test_a_model_in_bfloat16_runs_and_comes_back(name: str, tmp_path: Path) -> None:
    saved, file, back = small_models.save(name, tmp_path / "saved", torch.bfloat16), tmp_path / "bf16.gguf", tmp_path / "back"
    qconvert.convert(saved, file, "gguf", names="runtime")
    qconvert.convert(file, back, "safetensors:bf16", names="runtime")

    expected = [runtimes.logits(runtimes.load(saved), ids) for ids in PROMPTS]
    with runtimes.tool("llama").Llama(file, runtimes.N_CTX, in_float32=True) as model:
        found = [model.logits(ids) for ids in PROMPTS]

    apart = np.linalg.norm(np.concatenate(found) - np.concatenate(expected))
    assert apart < ROUNDED_ACTIVATIONS * np.linalg.norm(np.concatenate(expected))
    for ids, logits in zip(PROMPTS, expected, strict=True):
        assert np.array_equal(runtimes.logits(runtimes.load(back), ids), logits)
