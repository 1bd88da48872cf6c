"""tiny-llama, in bfloat16 and packed by GPTQ, runs under llama.cpp as it does under transformers.

It has no tokenizer: token ids go in, and the GGUF file says so.
"""

from pathlib import Path

import numpy as np
import pytest
import qconvert
import runtimes
import torch
from conftest import VECTORS
from gguf import GGUFReader
from qconvert.conversion import dequantize
from qconvert.quantizing import quantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

SOURCE = VECTORS / "hf" / "tiny-llama" / "bf16"
STORED = load_file(SOURCE.parent / "logits.safetensors")
PROMPTS = ([1, 5, 9], range(3, 40), [1, *[7] * 6], [400, 300, 200, 100], range(500, 460, -1))
N_TOKENS = 16
# llama.cpp rounds activations to 8 bits before it multiplies packed weights.
EIGHT_BITS = 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the model to GGUF, as it is and packed by GPTQ in between, and each to float32."""
    made = tmp_path_factory.mktemp("tiny-llama")
    quantize(SOURCE, made / "int4.qfmt", "qfmt:int4-g32")
    qconvert.convert(made / "int4.qfmt", made / "gptq", "gptq:v2")
    dequantize(made / "gptq", made / "gptq-dense", "f32")
    for name, source in (("bf16", SOURCE), ("gptq", made / "gptq")):
        qconvert.convert(source, made / f"{name}.gguf", "gguf", names="runtime")
        qconvert.convert(made / f"{name}.gguf", made / f"{name}-f32.gguf", "gguf:f32")
    return made


@pytest.mark.parametrize("name", ["bf16", "gptq"])
def test_in_float32_llama_cpp_says_what_transformers_says(name: str, folder: Path) -> None:
    dense = SOURCE if name == "bf16" else folder / "gptq-dense"

    runtimes.check_same(dense, folder / f"{name}-f32.gguf", PROMPTS, N_TOKENS)


def test_in_float32_llama_cpp_gives_the_stored_logits(folder: Path) -> None:
    with runtimes.tool("llama").Llama(folder / "bf16-f32.gguf", runtimes.N_CTX, in_float32=True) as model:
        found = [model.logits(ids) for ids in STORED["input_ids"].tolist()]

    assert np.abs(np.stack(found) - STORED["logits.float32"].numpy()).max() < runtimes.BOUND


@pytest.mark.parametrize(("name", "kind"), [("bf16", "BF16"), ("gptq", "Q4_0")])
def test_as_it_is_llama_cpp_loads_and_runs_it(name: str, kind: str, folder: Path) -> None:
    assert {t.tensor_type.name for t in GGUFReader(folder / f"{name}.gguf").tensors if len(t.shape) > 1} == {kind}
    found = []
    for path in (folder / f"{name}.gguf", folder / f"{name}-f32.gguf"):
        with runtimes.tool("llama").Llama(path, runtimes.N_CTX, in_float32=True) as model:
            found.append(np.concatenate([model.logits(prompt) for prompt in PROMPTS]))

    packed, decoded = found
    assert np.linalg.norm(packed - decoded) < EIGHT_BITS * np.linalg.norm(decoded)


def test_without_a_tokenizer_the_file_says_none(folder: Path) -> None:
    fields = GGUFReader(folder / "bf16.gguf").fields

    assert fields["tokenizer.ggml.model"].contents() == "none"
    assert fields["llama.vocab_size"].contents() == 512


def test_transformers_runs_a_packed_folder_made_of_a_gguf_file(tmp_path: Path) -> None:
    # The embedding and the output stay: transformers loads no packed embedding.
    quantize(SOURCE, tmp_path / "q4_0.gguf", "gguf:q4_0", exclude=("token_embd.weight", "output.weight"))
    qconvert.convert(tmp_path / "q4_0.gguf", tmp_path / "packed", "compressed-tensors", names="runtime")
    dequantize(tmp_path / "q4_0.gguf", tmp_path / "dense", "f32")

    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32, attn_implementation="eager")
    dense = runtimes.load(tmp_path / "dense")

    assert packed.config.quantization_config.quant_method == "compressed-tensors"
    for ids in PROMPTS:
        assert np.array_equal(runtimes.logits(packed, ids), runtimes.logits(dense, ids))
