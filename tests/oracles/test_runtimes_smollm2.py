"""A real model, SmolLM2 in Q4_1 with a Q8_0 embedding, leaves GGUF and comes back: every runtime says the same.

llama.cpp rounds activations to 8 bits before it multiplies packed weights: there only tokens are compared with other runtimes,
and logits, by their bits, where the packed weights are the same.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gguf_as_checkpoint
import mlx.core as mx
import numpy as np
import pytest
import qconvert
import runtimes
from gguf import GGUFReader, ReaderTensor
from qconvert.conversion import dequantize
from qfmt.__main__ import main
from transformers import AutoTokenizer, PreTrainedTokenizerBase

N_TOKENS = 16
# Continued with tokens that lead by 0.15 or more in log-probability, so that rounded activations do not change them.
PROMPTS = (
    "The three laws of thermodynamics are",
    "Water boils at 100 degrees",
    "The capital of France is",
    "1, 2, 3, 4, 5, 6,",
    "In 1969, Neil Armstrong became the first",
)
TEXTS = (
    "def fibonacci(n):\n    return n if n < 2 else",
    "Grüße, naïve café — 12345 déjà-vu 你好 🙂\t\tend  ",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "I'll say it's HER'S, we've\r\n\n  two   spaces",
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Convert the model to everything that is compared; the folder is gone afterwards."""
    installed = runtimes.tool("installed")
    with tempfile.TemporaryDirectory(prefix="qfmt-runtimes-") as name:
        made = Path(name)
        (made / "source.gguf").symlink_to(installed.package_file(*installed.SMOLLM2))
        qconvert.convert(made / "source.gguf", made / "f32.gguf", "gguf:f32")
        dequantize(made / "source.gguf", made / "dense", "f32")
        qconvert.convert(made / "source.gguf", made / "mlx", "mlx")
        qconvert.convert(made / "mlx", made / "back.gguf", "gguf")
        yield made


@pytest.fixture(scope="module")
def source(folder: Path) -> list[ReaderTensor]:
    """Give the tensors of the source, as the gguf package reads them."""
    return GGUFReader(folder / "source.gguf").tensors


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Give the tokenizer of the dense folder."""
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder / "dense")
    return made


@pytest.fixture(scope="module")
def tokenize(folder: Path) -> Iterator[Callable[[str], list[int]]]:
    """Give llama.cpp's tokenizer of the source, which reads the names of control tokens as these."""
    with runtimes.tool("llama").Llama(folder / "source.gguf", runtimes.N_CTX) as model:
        yield partial(model.tokenize, special=True)


@pytest.fixture(scope="module")
def prompts(tokenize: Callable[[str], list[int]]) -> list[list[int]]:
    """Give the token ids of the prompts."""
    return [tokenize(text) for text in PROMPTS]


def test_transformers_and_llama_cpp_say_the_same_of_decoded_weights(folder: Path, prompts: list[list[int]]) -> None:
    runtimes.check_same(folder / "dense", folder / "f32.gguf", prompts, N_TOKENS)


@pytest.mark.parametrize("text", [*PROMPTS, *TEXTS])
def test_the_written_tokenizer_makes_the_tokens_that_llama_cpp_makes(
    text: str, tokenizer: PreTrainedTokenizerBase, tokenize: Callable[[str], list[int]]
) -> None:
    assert tokenizer(text)["input_ids"] == tokenize(text)


def test_packed_weights_say_the_tokens_of_decoded_ones(folder: Path, prompts: list[list[int]]) -> None:
    packed, decoded = (runtimes.greedy(folder / name, prompts, N_TOKENS) for name in ("source.gguf", "f32.gguf"))

    assert packed == decoded


def test_mlx_decodes_what_ggml_decodes(folder: Path, source: list[ReaderTensor]) -> None:
    config = json.loads((folder / "mlx" / "config.json").read_text())
    arrays = {name: array for path in (folder / "mlx").glob("*.safetensors") for name, array in mx.load(str(path)).items()}
    said = config["quantization"]

    modules = [name.removesuffix(".scales") for name in arrays if name.endswith(".scales")]
    sizes = {module: said.get(module, said) for module in modules}
    expected = gguf_as_checkpoint.decode(source, config)
    assert Counter((one["bits"], one["group_size"]) for one in sizes.values()) == {(4, 32): 210, (8, 32): 1}
    for module in modules:
        # In float32 a code times a float16 scale is exact, and adding the bias rounds as it does in ggml.
        wide = [arrays[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases")]
        size = sizes[module]
        values = mx.dequantize(arrays[f"{module}.weight"], *wide, group_size=size["group_size"], bits=size["bits"])
        assert np.array_equal(np.array(values), expected[f"{module}.weight"]), module


def test_a_file_made_of_the_mlx_folder_runs_as_the_source_does(folder: Path, prompts: list[list[int]]) -> None:
    found = []
    for name in ("source.gguf", "back.gguf"):
        with runtimes.tool("llama").Llama(folder / name, runtimes.N_CTX) as model:
            assert [model.tokenize(text) for text in PROMPTS] == prompts
            found.append([model.logits(prompt) for prompt in prompts])

    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_a_file_made_of_the_mlx_folder_is_the_source_again(folder: Path, source: list[ReaderTensor]) -> None:
    back = {tensor.name: tensor for tensor in GGUFReader(folder / "back.gguf").tensors}

    assert {tensor.name: tensor.tensor_type for tensor in source} == {name: t.tensor_type for name, t in back.items()}
    assert [tensor.name for tensor in source if not np.array_equal(tensor.data, back[tensor.name].data)] == []


@pytest.mark.parametrize("name", ["back.gguf", "mlx", "dense"])
def test_diff_finds_no_other_value(name: str, folder: Path) -> None:
    assert main(["diff", "--values", str(folder / "source.gguf"), str(folder / name)]) == 0
