"""What is written, read by the real readers: llama.cpp runs it, and the gguf package's reader opens it.

Two real models must come back from `.qfmt` as the same files and say the same tokens. A tiny random model goes through every
type: llama.cpp must compute from the packed file what it computes from the floats that we decode from it.
"""

import hashlib
import importlib
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import qconvert
import tiny_llama
from conftest import Arrays
from numpy.typing import NDArray
from qconvert import meta
from qconvert.containers.shards import Limits
from qconvert.mixes import MIXES
from qconvert.quantizing import quantize
from qconvert.repackaging import repackage

N_GREEDY = 32
BEGINNING = "The three laws of thermodynamics are"

DENSE = ("f32", "f16", "bf16")
PACKED = (
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"),
    *("tq1_0", "tq2_0", "mxfp4", "nvfp4", "q1_0", "q2_0"),
)
# Types that have no encoder here; one matrix of the model is put together from blocks that ggml packed.
GRIDS = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")
# The package's table ends before Q2_0, whose files its reader cannot open.
NAMED = [kind for kind in (*DENSE, *PACKED) if kind.upper() in gguf.GGMLQuantizationType.__members__]

# llama.cpp rounds activations to 8 bits before it multiplies, which moves the logits of this model by 1 to 3 %. A scale, an
# order or a code that is misread moves them by the size of a logit.
EIGHT_BITS = 0.05


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Let the scripts below tools/ be imported."""
    monkeypatch.syspath_prepend(root / "tools")


@pytest.fixture
def llama(tools: None) -> ModuleType:
    """Give tools/llama.py as a module."""
    return importlib.import_module("llama")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model in float32."""
    return tiny_llama.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder that is gone after the test: real models are large."""
    with tempfile.TemporaryDirectory(prefix="qfmt-llama-") as made:
        yield Path(made)


def place_smollm2(path: Path) -> None:
    installed = importlib.import_module("installed")
    path.symlink_to(installed.package_file(*installed.SMOLLM2))


def place_gemma(path: Path) -> None:
    digest = importlib.import_module("installed").join_gemma(path)
    with path.open("rb") as whole:
        assert hashlib.file_digest(whole, "sha256").hexdigest() == digest


def tokens_of(llama: ModuleType, path: Path) -> list[int]:
    with llama.Llama(path, 64, n_threads=2) as model:
        made: list[int] = model.greedy(model.tokenize(BEGINNING), N_GREEDY)
        return made


def logits_of(llama: ModuleType, path: Path) -> NDArray[np.float32]:
    with llama.Llama(path, len(tiny_llama.PROMPT)) as model:
        made: NDArray[np.float32] = model.logits(tiny_llama.PROMPT)
        return made


def difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def written(source: Path, folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.gguf"
    if kind in DENSE:
        qconvert.convert(source, path, f"gguf:{kind}", allow="rounded")
    else:
        quantize(source, path, f"gguf:{kind}")
    return path


@pytest.mark.parametrize("place", [place_smollm2, place_gemma], ids=["smollm2-q4_1", "gemma3-q4_k_m"])
def test_a_real_model_comes_back_from_qfmt_as_the_same_file_and_says_the_same_tokens(
    place: Any, llama: ModuleType, folder: Path
) -> None:
    source, packed, returned = (folder / name for name in ("source.gguf", "packed.qfmt", "returned.gguf"))
    place(source)

    qconvert.convert(source, packed)
    qconvert.convert(packed, returned)

    assert digest_of(returned) == digest_of(source)
    assert tokens_of(llama, returned) == tokens_of(llama, source)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_greedy_tokens_make_sense(llama: ModuleType, folder: Path) -> None:
    place_smollm2(folder / "model.gguf")
    with llama.Llama(folder / "model.gguf", 64) as model:
        prompt = model.tokenize(BEGINNING)
        made = model.greedy(prompt, N_GREEDY)
        again = model.logits([*prompt, *made])

    assert len(set(made)) > N_GREEDY // 2
    assert again[len(prompt) - 1 : -1].argmax(axis=1).tolist() == made


@pytest.mark.parametrize("kind", PACKED)
def test_llama_cpp_computes_from_packed_weights_what_it_computes_from_our_decode(
    kind: str, llama: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    packed, decoded = written(tiny, tmp_path, kind), tmp_path / "decoded.gguf"
    qconvert.convert(packed, decoded, "gguf:f32")

    assert difference(logits_of(llama, packed), logits_of(llama, decoded)) < EIGHT_BITS


@pytest.mark.parametrize("kind", DENSE)
def test_llama_cpp_computes_the_same_from_rounded_weights_and_their_float32(
    kind: str, llama: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    rounded, wide = written(tiny, tmp_path, kind), tmp_path / "wide.gguf"
    qconvert.convert(rounded, wide, "gguf:f32")

    assert difference(logits_of(llama, rounded), logits_of(llama, wide)) < EIGHT_BITS


@pytest.mark.parametrize("kind", GRIDS)
def test_llama_cpp_computes_from_grid_types_what_it_computes_from_our_decode(
    kind: str, golden_ggml: Callable[[str], Arrays], llama: ModuleType, tmp_path: Path
) -> None:
    type_id, name = gguf.GGMLQuantizationType[kind.upper()], "output.weight"
    normal = golden_ggml(kind.upper())["packed_imatrix"][:2]  # two rows of 512 weights
    blocks = np.tile(normal.reshape(4, -1), (tiny_llama.N_TOKENS // 4, 1))
    packed = tiny_llama.write(tmp_path / "packed.gguf", {name: (blocks, type_id)})
    qconvert.convert(packed, tmp_path / "packed.qfmt")
    qconvert.convert(tmp_path / "packed.qfmt", tmp_path / "returned.gguf")
    qconvert.convert(packed, tmp_path / "decoded.gguf", "gguf:f32")

    assert (tmp_path / "returned.gguf").read_bytes() == packed.read_bytes()
    assert difference(logits_of(llama, packed), logits_of(llama, tmp_path / "decoded.gguf")) < EIGHT_BITS


@pytest.mark.parametrize("kind", NAMED)
def test_the_gguf_packages_reader_opens_every_type_it_can_name(kind: str, tiny: Path, tmp_path: Path) -> None:
    found = gguf.GGUFReader(written(tiny, tmp_path, kind)).tensors

    assert {t.name: (t.tensor_type.name, t.shape.tolist()) for t in found} == {
        name: (kind.upper() if array.ndim > 1 else "F32", list(reversed(array.shape)))
        for name, array in tiny_llama.weights().items()
    }


@pytest.mark.parametrize("mix", [mix.name for mix in MIXES if not mix.wants_importance])
def test_every_mix_is_run_by_llama_cpp(mix: str, llama: ModuleType, tiny: Path, tmp_path: Path) -> None:
    packed, decoded = written(tiny, tmp_path, mix), tmp_path / "decoded.gguf"
    qconvert.convert(packed, decoded, "gguf:f32")

    assert difference(logits_of(llama, packed), logits_of(llama, decoded)) < EIGHT_BITS


def test_a_second_scale_of_nvfp4_counts_for_llama_cpp_as_it_does_for_us(llama: ModuleType, tmp_path: Path) -> None:
    name, type_id = "blk.0.ffn_down", gguf.GGMLQuantizationType.NVFP4
    blocks = importlib.import_module("ggml").quantize(tiny_llama.weights()[f"{name}.weight"], type_id)
    scale = np.array([0.375], np.float32), gguf.GGMLQuantizationType.F32
    packed = tiny_llama.write(tmp_path / "packed.gguf", {f"{name}.weight": (blocks, type_id), f"{name}.scale": scale})
    qconvert.convert(packed, tmp_path / "packed.qfmt")
    qconvert.convert(tmp_path / "packed.qfmt", tmp_path / "returned.gguf")
    qconvert.convert(packed, tmp_path / "decoded.gguf", "gguf:f32")

    assert (tmp_path / "returned.gguf").read_bytes() == packed.read_bytes()
    assert f"{name}.scale" not in {tensor.name for tensor in gguf.GGUFReader(tmp_path / "decoded.gguf").tensors}
    assert difference(logits_of(llama, packed), logits_of(llama, tmp_path / "decoded.gguf")) < EIGHT_BITS


def test_a_split_file_and_its_parts_joined_run_as_the_one_file_does(llama: ModuleType, tiny: Path, tmp_path: Path) -> None:
    parts = repackage(tiny, tmp_path / "parts.gguf", limits=Limits(n_tensors=5)).paths
    joined = repackage(parts[0], tmp_path / "joined.gguf").paths[0]

    read = [tensor.name for part in parts for tensor in gguf.GGUFReader(part).tensors]
    assert (len(parts), read) == (3, list(tiny_llama.weights()))
    assert np.array_equal(logits_of(llama, parts[0]), logits_of(llama, tiny))
    assert np.array_equal(logits_of(llama, joined), logits_of(llama, tiny))


def test_a_quantized_model_in_parts_is_run_as_in_one_file(llama: ModuleType, tiny: Path, tmp_path: Path) -> None:
    one = written(tiny, tmp_path, "q4_k_m")
    parts = quantize(tiny, tmp_path / "parts.gguf", "gguf:q4_k_m", limits=Limits(n_bytes=100_000))[0].paths

    assert len(parts) > 1
    assert np.array_equal(logits_of(llama, parts[0]), logits_of(llama, one))


def test_a_big_endian_file_runs_once_it_is_converted(llama: ModuleType, tiny: Path, tmp_path: Path) -> None:
    type_id, name = gguf.GGMLQuantizationType.Q4_K, "blk.0.ffn_down.weight"
    blocks = importlib.import_module("ggml").quantize(tiny_llama.weights()[name], type_id)
    little = tiny_llama.write(tmp_path / "little.gguf", {name: (blocks, type_id)})
    words = blocks.reshape(-1, 144).copy()
    words[:, :4] = words[:, [1, 0, 3, 2]]  # block_q4_K: two float16, then bytes
    swapped = words.reshape(blocks.shape)
    big = tiny_llama.write(tmp_path / "big.gguf", {name: (swapped, type_id)}, gguf.GGUFEndian.BIG)

    qconvert.convert(big, tmp_path / "converted.gguf", "gguf")

    assert np.array_equal(logits_of(llama, tmp_path / "converted.gguf"), logits_of(llama, little))


@pytest.mark.parametrize("name", ["x", "a name that needs more room than there was before the tensors " * 4])
def test_a_file_with_edited_metadata_runs_as_before(name: str, llama: ModuleType, tiny: Path, tmp_path: Path) -> None:
    meta.set_value(tiny, "general.name", name, "str", meta.Destination(tmp_path / "named.gguf"))
    meta.set_value(tmp_path / "named.gguf", "general.author", name, "str")

    fields = gguf.GGUFReader(tmp_path / "named.gguf").fields
    assert [fields[key].contents() for key in ("general.name", "general.author")] == [name, name]
    assert np.array_equal(logits_of(llama, tmp_path / "named.gguf"), logits_of(llama, tiny))


def test_a_file_of_a_few_tensors_is_opened_by_the_gguf_packages_reader(tiny: Path, tmp_path: Path) -> None:
    repackage(tiny, tmp_path / "few.gguf", include=("blk.0.ffn_*",), exclude=("*_norm.weight",))

    found = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "few.gguf").tensors}
    assert sorted(found) == ["blk.0.ffn_down.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"]
    assert all(np.array_equal(array, tiny_llama.weights()[name]) for name, array in found.items())


def test_what_llama_cpp_refuses_is_told_with_its_own_words(llama: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"NOPE" + bytes(60))

    with pytest.raises(llama.LlamaError, match=r"no\.gguf: .*invalid magic characters: 'NOPE', expected 'GGUF'"):
        llama.Llama(tmp_path / "no.gguf", 8)


def test_more_tokens_than_the_context_has_are_refused(llama: ModuleType, tiny: Path) -> None:
    with llama.Llama(tiny, 8) as model, pytest.raises(llama.LlamaError, match=r"9 tokens at once, expected 1 to 8"):
        model.logits(range(9))


def test_keys_and_values_are_kept_in_float32_where_that_is_asked_for(llama: ModuleType, tiny: Path) -> None:
    with llama.Llama(tiny, 64) as usual, llama.Llama(tiny, 64, in_float32=True) as wide:
        said = [[line for line in model.log if "flash_attn  " in line or " K (" in line] for model in (usual, wide)]
        found = [model.logits(tiny_llama.PROMPT) for model in (usual, wide)]

    assert [line.split("= ")[-1] for line, _ in said] == ["auto", "disabled"]
    assert [re.findall(r"[KV] \((\w+)\)", line) for _, line in said] == [["f16", "f16"], ["f32", "f32"]]
    assert 0 < difference(*found) < EIGHT_BITS


def test_a_library_whose_parameters_lie_elsewhere_is_refused(llama: ModuleType) -> None:
    defaults = llama.library().llama_context_default_params()
    moved = llama.ContextParams.from_buffer_copy(bytes(4) + bytes(defaults)[:-4])
    library = SimpleNamespace(llama_context_default_params=lambda: moved)

    with pytest.raises(llama.LlamaError, match=r"of another version of the library: n_ctx 0, expected 512; n_batch 512, exp"):
        llama.context_params(library)


def test_log_probabilities_are_those_of_the_logits(llama: ModuleType, tiny: Path) -> None:
    with llama.Llama(tiny, 64, in_float32=True) as model:
        found = model.log_probabilities(range(4))
        likeliest = [model.greedy(range(n), 1) for n in range(1, 5)]

    assert found.shape == (4, tiny_llama.N_TOKENS)
    assert np.abs(np.exp(found).sum(axis=1) - 1).max() < 1e-12  # 64 terms, each rounded to 2**-53 of itself
    assert found.argmax(axis=1).tolist() == [tokens[0] for tokens in likeliest]


def test_perplexity_is_counted_from_the_likelihood_of_each_token() -> None:
    surprise = importlib.import_module("perplexity").surprise
    logits = np.array([[90, 90, 90, 90], [-7, -7, -np.inf, -np.inf]], np.float32)

    assert surprise(logits, [2, 1]) == np.log(4) + np.log(2)


def test_the_twin_of_a_quantized_file_holds_ggmls_blocks(tmp_path: Path) -> None:
    type_id, rows = gguf.GGMLQuantizationType.Q4_1, tiny_llama.weights()
    blocks = importlib.import_module("ggml").quantize(rows["output.weight"], type_id)
    floats = tiny_llama.write(tmp_path / "floats.gguf")
    ours = tiny_llama.write(tmp_path / "ours.gguf", {"output.weight": (~blocks, type_id)})

    n_others = importlib.import_module("perplexity").write_twin(ours, tmp_path / "twin.gguf", floats)

    twin = tiny_llama.write(tmp_path / "expected.gguf", {"output.weight": (blocks, type_id)})
    assert (tmp_path / "twin.gguf").read_bytes() == twin.read_bytes()
    assert n_others == blocks.size
