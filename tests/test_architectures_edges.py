"""Where a model is not what its architecture says, or says it otherwise: ties, scalings, hostile numbers, odd values."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import qconvert
from handmade_checkpoint import checkpoint
from handmade_models import HEAD, MODELS, N_HEADS, N_LAYERS, Handmade
from numpy.typing import NDArray
from qconvert import architectures
from qconvert.architectures.config import float_of, plain_config
from qconvert.architectures.flipping import Flipped, flip
from qconvert.architectures.rope import rope_factors, scaling_from
from qconvert.views import View

from qformat.errors import FileError
from qformat.formats.dense import dense
from qformat.tensor import assemble, from_array

LLAMA, GEMMA = MODELS["llama"], MODELS["gemma3"]
Change = Callable[[dict[str, Any], dict[str, Any]], object]


def view_of(tmp_path: Path, hand: Handmade, change: Change = lambda hf, config: None) -> View:
    """See a model as a GGUF file once its arrays and its config were changed; the folder stays open."""
    hf, config = dict(hand.hf), dict(hand.config)
    change(hf, config)
    return architectures.view(qconvert.open(checkpoint(tmp_path / "model", hf, config)), "gguf")


def view_back(tmp_path: Path, hand: Handmade, change: Change = lambda tensors, pairs: None) -> View:
    """See a GGUF file as a checkpoint once its tensors and its key-values were changed."""
    tensors, pairs = dict(hand.gguf), dict(hand.pairs)
    change(tensors, pairs)
    return architectures.view(qconvert.open(replace(hand, gguf=tensors, pairs=pairs).file(tmp_path / "model.gguf")), "hf")


def config_of(view: View) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(view.model.assets["config.json"]())
    return found


Q1 = "model.layers.1.self_attn.q_proj.weight"
INCOMPLETE: dict[str, tuple[Change, str]] = {
    "tensor of a layer": (lambda hf, config: hf.pop(Q1), f"tensor '{Q1}' of llama is missing"),
    "layer": (
        lambda hf, config: config.update(num_hidden_layers=3),
        "'model.layers.2.input_layernorm.weight' of llama is missing",
    ),
    "output": (lambda hf, config: hf.pop("lm_head.weight"), "tensor 'lm_head.weight' of llama is missing"),
    "stranger": (lambda hf, config: hf.update(extra=np.zeros(3, np.float32)), "tensor 'extra' is none of llama"),
    "another layer's": (
        lambda hf, config: config.update(num_hidden_layers=1),
        "tensor 'model.layers.1.input_layernorm.weight' is none of llama",
    ),
    "norms of heads": (
        lambda hf, config: hf.update({"model.layers.0.self_attn.q_norm.weight": np.ones(HEAD, np.float32)}),
        "'model.layers.0.self_attn.q_norm.weight' is none of llama",
    ),
    "architecture": (lambda hf, config: config.update(model_type="mamba"), "architecture 'mamba' is not known"),
    "no architecture": (lambda hf, config: config.pop("model_type"), "no config.json says what architecture it is"),
    "architecture as a list": (
        lambda hf, config: config.update(model_type=["llama"]),
        "architecture ['llama'] is not known",
    ),
    "width": (lambda hf, config: config.pop("hidden_size"), "field 'hidden_size': says nothing of hidden_size"),
    "many layers": (lambda hf, config: config.update(num_hidden_layers=2**31), "2147483648 layers, expected 1 to 21"),
    "no layers": (lambda hf, config: config.update(num_hidden_layers=0), "0 layers, expected 1 to 21"),
    "layers in words": (
        lambda hf, config: config.update(num_hidden_layers="two"),
        "field 'num_hidden_layers': no number, but 'two'",
    ),
    "half a head": (
        lambda hf, config: config.update(num_attention_heads=4.5),
        "field 'num_attention_heads': 4.5, expected a whole",
    ),
    "true heads": (
        lambda hf, config: config.update(num_attention_heads=True),
        "field 'num_attention_heads': no number, but True",
    ),
    "heads below zero": (
        lambda hf, config: config.update(num_attention_heads=-4),
        "field 'num_attention_heads': -4, expected a whole",
    ),
    "an endless number": (
        lambda hf, config: config.update(rms_norm_eps=10**400),
        "field 'rms_norm_eps': no number, but 1000",
    ),
    "scaling": (
        lambda hf, config: config.update(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        "rotary scaling 'dynamic' has no place in a gguf file of llama",
    ),
    "llama3 without a factor": (
        lambda hf, config: config.update(rope_scaling={"rope_type": "llama3"}),
        "llama3 scaling by [None, 1.0, 4.0, 8192], expected four numbers above 0",
    ),
}


@pytest.mark.parametrize(("change", "message"), INCOMPLETE.values(), ids=list(INCOMPLETE))
def test_a_model_that_is_not_whole_stays_as_it_is_and_it_is_said_why(change: Change, message: str, tmp_path: Path) -> None:
    view = view_of(tmp_path, LLAMA, change)

    assert message in view.missing
    assert "\n" not in view.missing
    assert (view.origins, view.key_values) == ({}, ())
    assert view.model.container == "folder"


UNFIT: dict[str, tuple[Change, str]] = {
    "tensor": (lambda tensors, pairs: tensors.pop("blk.1.ffn_up.weight"), "tensor 'blk.1.ffn_up.weight' of llama is missing"),
    "stranger": (
        lambda tensors, pairs: tensors.update({"blk.0.attn_q_norm.weight": np.ones(HEAD, np.float32)}),
        "tensor 'blk.0.attn_q_norm.weight' is none of llama",
    ),
    "architecture": (lambda tensors, pairs: pairs.pop("llama.block_count"), "'llama.block_count': the key is missing"),
    "many layers": (
        lambda tensors, pairs: pairs.update({"llama.block_count": ("UINT32", 2**32 - 1)}),
        "4294967295 layers, expected 1 to 21",
    ),
    "text": (lambda tensors, pairs: pairs.update({"llama.block_count": ("STRING", "two")}), "no number, but 'two'"),
    "endless base": (
        lambda tensors, pairs: pairs.update({"llama.rope.freq_base": ("FLOAT32", float("inf"))}),
        "no number, but inf",
    ),
}


@pytest.mark.parametrize(("change", "message"), UNFIT.values(), ids=list(UNFIT))
def test_a_gguf_file_that_is_not_whole_stays_as_it_is_and_it_is_said_why(change: Change, message: str, tmp_path: Path) -> None:
    view = view_back(tmp_path, LLAMA, change)

    assert message in view.missing
    assert "token_embd.weight" in view.model


def test_a_gguf_file_with_heads_for_each_layer_stays_as_it_is(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, (kind, value) in LLAMA.pairs.items():
        if key != "general.architecture":
            several = [value] * N_LAYERS if key == "llama.attention.head_count" else None
            writer.add_array(key, several) if several else writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    for name, array in LLAMA.gguf.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with qconvert.open(tmp_path / "model.gguf") as file:
        assert "'llama.attention.head_count': " in architectures.view(file, "hf").missing


def test_a_model_that_has_the_names_already_is_given_as_it_is(tmp_path: Path) -> None:
    with qconvert.open(LLAMA.folder(tmp_path / "model")) as folder, qconvert.open(LLAMA.file(tmp_path / "a.gguf")) as file:
        assert architectures.view(folder, "hf") == View(folder)
        assert architectures.view(file, "gguf") == View(file)


def test_the_family_is_told_by_header_config_or_names(tmp_path: Path) -> None:
    folder, file = LLAMA.folder(tmp_path / "model"), LLAMA.file(tmp_path / "model.gguf")
    bare = checkpoint(tmp_path / "bare", LLAMA.hf)
    renamed = checkpoint(tmp_path / "renamed", LLAMA.gguf)
    other = checkpoint(tmp_path / "other", {"a": np.zeros(2, np.float32)})
    paths = [folder, file, bare, renamed, other]
    for source in (folder, file, bare):
        qconvert.convert(source, tmp_path / f"{source.name}.qfmt")
        paths.append(tmp_path / f"{source.name}.qfmt")

    found = []
    for path in paths:
        with qconvert.open(path) as model:
            found.append(architectures.family_of(model))

    assert found == ["hf", "gguf", "hf", "gguf", "", "hf", "gguf", "hf"]


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3moe", "gpt-oss-packed"])
def test_through_a_qfmt_file_the_view_is_the_same(name: str, tmp_path: Path) -> None:
    folder = MODELS[name].folder(tmp_path / "model")
    qconvert.convert(folder, tmp_path / "model.qfmt")
    with qconvert.open(folder) as direct, qconvert.open(tmp_path / "model.qfmt") as kept:
        one, other = (architectures.view(model, "gguf") for model in (direct, kept))

        assert other.missing == ""
        assert [pair.key for pair in other.key_values] == [pair.key for pair in one.key_values]
        assert list(other.model) == list(one.model)
        assert {n for n in one.model if one.model[n].dequantize().tobytes() != other.model[n].dequantize().tobytes()} == set()


def test_a_qfmt_file_made_of_a_gguf_file_is_seen_as_a_checkpoint(tmp_path: Path) -> None:
    qconvert.convert(GEMMA.file(tmp_path / "model.gguf"), tmp_path / "model.qfmt")
    with qconvert.open(tmp_path / "model.gguf") as direct, qconvert.open(tmp_path / "model.qfmt") as kept:
        one, other = (architectures.view(model, "hf") for model in (direct, kept))

        assert other.missing == ""
        assert config_of(other) == config_of(one)
        assert {n: t.dequantize().tobytes() for n, t in other.model.items()} == {
            n: t.dequantize().tobytes() for n, t in one.model.items()
        }


@pytest.mark.parametrize(("target", "number"), [("gguf", 32), ("gguf:f32", 0), ("gguf:bf16", 32)])
def test_a_written_file_says_of_what_type_most_matrices_are(target: str, number: int, tmp_path: Path) -> None:
    qconvert.convert(LLAMA.folder(tmp_path / "model"), tmp_path / "a.gguf", target)

    assert gguf.GGUFReader(tmp_path / "a.gguf").fields["general.file_type"].contents() == number


def test_columns_of_a_head_follow_from_the_width_where_a_config_leaves_them_out(tmp_path: Path) -> None:
    view = view_of(tmp_path, LLAMA, lambda hf, config: (config.pop("head_dim"), config.pop("num_key_value_heads")))
    said = {pair.key: pair.value for pair in view.key_values}

    assert said["llama.rope.dimension_count"] == HEAD
    assert said["llama.attention.head_count_kv"] == N_HEADS
    assert "llama.attention.key_length" not in said


def test_an_output_equal_to_the_embedding_is_left_out_where_the_config_ties_them(tmp_path: Path) -> None:
    view = view_of(
        tmp_path, MODELS["llama-tied"], lambda hf, config: hf.update({"lm_head.weight": hf["model.embed_tokens.weight"]})
    )

    assert (view.missing, view.notices, "output.weight" in view.model) == ("", (), False)


def test_an_output_that_is_not_the_embedding_is_kept_whatever_the_config_says(tmp_path: Path) -> None:
    view = view_of(tmp_path, LLAMA, lambda hf, config: config.update(tie_word_embeddings=True))

    assert "output.weight" in view.model
    assert view.notices == ("'lm_head.weight' is kept: the config says that it is the embedding, its values say otherwise",)


def test_frequencies_that_a_runtime_computes_are_left_out(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    view = view_of(tmp_path, LLAMA, lambda hf, config: hf.update({name: np.ones(HEAD // 2, np.float32)}))

    assert (view.missing, set(view.model)) == ("", set(LLAMA.gguf))


def test_biases_of_zeros_are_left_out_where_there_is_no_place_for_them(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.bias"
    view = view_of(tmp_path, MODELS["qwen2"], lambda hf, config: hf.update({name: np.zeros(64, np.float32)}))

    assert (view.missing, set(view.model)) == ("", set(MODELS["qwen2"].gguf))
    assert view.notices == (f"left out: 1 biases that are zeros, as '{name}', for which qwen2 has no place",)


def test_biases_that_add_something_are_never_left_out(tmp_path: Path) -> None:
    name, bias = "model.layers.1.self_attn.o_proj.bias", np.zeros(64, np.float32)
    bias[63] = 1e-30
    view = view_of(tmp_path, MODELS["qwen2"], lambda hf, config: hf.update({name: bias}))

    assert view.missing == f"tensor '{name}' is none of qwen2"


def test_every_tensor_says_where_it_comes_from(tmp_path: Path) -> None:
    origins = {
        name: view_of(tmp_path / name, MODELS[name]).origins
        for name in ("llama", "qwen3moe", "gemma3", "gpt-oss")
        if (tmp_path / name).mkdir() is None
    }

    assert {name: set(found) for name, found in origins.items()} == {name: set(MODELS[name].gguf) for name in origins}
    assert (origins["llama"]["blk.1.attn_q.weight"].names, origins["llama"]["blk.1.attn_v.weight"].how) == ((Q1,), "")
    assert origins["llama"]["blk.1.attn_q.weight"].how == "rows of each head paired"
    assert origins["qwen3moe"]["blk.0.ffn_up_exps.weight"].names[3] == "model.layers.0.mlp.experts.3.up_proj.weight"
    assert origins["qwen3moe"]["blk.0.ffn_up_exps.weight"].how == "stack of 4"
    assert origins["gemma3"]["output_norm.weight"].how == "+1"
    assert origins["gpt-oss"]["blk.0.ffn_up_exps.bias"].how == "rows 1::2, widened to float32"


def test_where_one_is_added_what_is_rounded_away_is_said(tmp_path: Path) -> None:
    norm = np.zeros(64, np.float32)
    norm[[5, 9]] = 2**-24, -1e-3  # 1 + 2**-24 is 1; the other is not a multiple of 2**-24

    loss = (
        view_of(tmp_path, GEMMA, lambda hf, config: hf.update({"model.norm.weight": norm})).origins["output_norm.weight"].loss()
    )

    assert loss is not None
    assert (loss.verdict, loss.field, loss.index, loss.value, loss.n_rounded) == ("rounded", "values", 5, 2**-24, 2)
    assert loss.max_rel_error == 1.0


def test_where_one_is_added_to_values_that_have_room_for_it_nothing_is_lost(tmp_path: Path) -> None:
    assert [origin.loss() for origin in view_of(tmp_path, GEMMA).origins.values()] == [None] * len(GEMMA.gguf)


def test_where_one_is_taken_off_what_is_rounded_away_is_said(tmp_path: Path) -> None:
    norm = np.ones(64, np.float32)
    norm[7] = 2**-30

    loss = (
        view_back(tmp_path, GEMMA, lambda tensors, pairs: tensors.update({"output_norm.weight": norm}))
        .origins["model.norm.weight"]
        .loss()
    )

    assert loss is not None
    assert (loss.index, loss.value, loss.n_rounded) == (7, 2**-30, 1)


def test_tensors_of_packed_modules_keep_their_dialect(tmp_path: Path) -> None:
    view = view_of(tmp_path, MODELS["gpt-oss-packed"])

    packed = {name for name in view.model if view.model.dialect_of(name) == "gpt-oss"}
    assert packed == {name for name in view.model if name.endswith("_exps.weight")}


def test_an_embedding_that_is_one_number_ends_in_no_traceback(tmp_path: Path) -> None:
    scalar = np.array(1, np.float32)

    view = view_of(tmp_path, LLAMA, lambda hf, config: hf.update({"model.embed_tokens.weight": scalar}))
    said = {pair.key: pair.value for pair in view.key_values}

    assert said["llama.vocab_size"] == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("theta", [0.0, -1.0, -0.0, 1e-320])
def test_a_base_that_gives_no_factors_is_refused_and_warns_of_nothing(theta: float) -> None:
    with pytest.raises(FileError, match=r"field 'rope_scaling': .* gives no factors in float32"):
        rope_factors(plain_config({"rope_scaling": llama3()}), theta, HEAD)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [1e-320, 1e-39])
def test_a_factor_too_small_for_float32_is_refused(factor: float) -> None:
    with pytest.raises(FileError, match=r"field 'rope_scaling': .* gives no factors in float32"):
        rope_factors(plain_config({"rope_scaling": llama3(factor=factor)}), 1e4, HEAD)


@pytest.mark.filterwarnings("error")
def test_a_large_base_warns_of_nothing() -> None:
    factors = rope_factors(plain_config({"rope_scaling": llama3()}), 3e38, HEAD)

    assert factors is not None
    assert factors.tolist() == [1] + [8] * (HEAD // 2 - 1)  # 64 is less than every wave length but the first, 2 pi


def llama3(length: int = 64, **more: Any) -> dict[str, Any]:
    given = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return given | {"original_max_position_embeddings": length} | more


def test_frequencies_are_scaled_by_a_tensor_as_llama_3_scales_them(tmp_path: Path) -> None:
    view = view_of(tmp_path, LLAMA, lambda hf, config: config.update(rope_scaling=llama3()))
    found = view.model["rope_freqs.weight"].dequantize()

    # Wave lengths are 2 pi * 500000 ** (i / 8): below 64 / 4 nothing is scaled, above 64 all of it, in between a part.
    waves = 2 * np.pi * 500000 ** (np.arange(8) / 8)
    smooth = (64 / waves[1] - 1) / 3
    assert [wave < 16 for wave in waves] == [True] + [False] * 7
    assert [wave > 64 for wave in waves] == [False] * 2 + [True] * 6
    assert found[[0, 2, 3, 4, 5, 6, 7]].tolist() == [1, 8, 8, 8, 8, 8, 8]
    assert abs(float(found[1]) * ((1 - smooth) / 8 + smooth) - 1) < 2**-20  # a dozen roundings in float32
    assert not [pair.key for pair in view.key_values if "scaling" in pair.key]


@pytest.mark.parametrize("length", [64, 8192, 131072])
def test_scaling_as_of_llama_3_comes_back_from_the_tensor(length: int, tmp_path: Path) -> None:
    qconvert.convert(
        replace(LLAMA, config=LLAMA.config | {"rope_scaling": llama3(length)}).folder(tmp_path / "model"), tmp_path / "a.gguf"
    )
    with qconvert.open(tmp_path / "a.gguf") as file:
        view = architectures.view(file, "hf")

    scaling = config_of(view)["rope_scaling"]
    factors = [rope_factors(plain_config({"rope_scaling": said}), 5e5, HEAD) for said in (scaling, llama3(length))]
    assert view.notices == ("a checkpoint has no place for general.name",)
    assert np.array_equal(*factors)  # lengths between which no wave length lies scale alike


def test_scaling_that_no_published_model_has_is_said_to_be_lost(tmp_path: Path) -> None:
    odd = np.array([1, 1, 1, 2, 3, 4, 5, 7], np.float32)
    view = view_back(tmp_path, LLAMA, lambda tensors, pairs: tensors.update({"rope_freqs.weight": odd}))

    assert "rope_scaling" not in config_of(view)
    assert any("'rope_freqs.weight' scales frequencies as no usual rope_scaling does" in notice for notice in view.notices)


@pytest.mark.parametrize("factors", [[], [0.0], [np.nan, np.nan], [np.inf, 1], [-1.0, -2.0]])
def test_no_scaling_is_found_in_factors_that_are_none(factors: list[float]) -> None:
    assert scaling_from(np.array(factors, np.float32), 1e4) is None


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "8", None, [8]])
def test_a_scaling_that_is_no_number_above_zero_is_refused(value: object) -> None:
    with pytest.raises(FileError, match="expected four numbers above 0"):
        rope_factors(plain_config({"rope_scaling": llama3() | {"factor": value}}), 1e4, HEAD)


SPELLINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"rope_theta": 5.0}, {"rope_theta": 5.0}),
    ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, {"rope_theta": 5.0}),
    (
        {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    (
        {"rope_parameters": {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    (
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 5.0, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_theta": 3.0, "rope_type": "default"},
            }
        },
        {"rope_theta": 5.0, "rope_local_base_freq": 3.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    ({"text_config": {"rope_theta": 5.0}, "rope_theta": 1.0}, {"text_config": {"rope_theta": 5.0}, "rope_theta": 5.0}),
    ({"rope_parameters": 7, "rope_scaling": None}, {}),
]


@pytest.mark.parametrize(("config", "expected"), SPELLINGS)
def test_every_spelling_of_rotary_positions_says_the_same(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert plain_config(config) == expected


@pytest.mark.parametrize("value", [1e-5, 1e-6, 500000.0, 0.1, 3.14159274, 2.0**-149, 3.4028235e38, 0.0])
def test_the_shortest_decimal_of_a_float32_is_the_same_float32(value: float) -> None:
    single = struct.unpack("<f", struct.pack("<f", value))[0]

    assert struct.pack("<f", float_of(single)) == struct.pack("<f", value)
    assert len(repr(float_of(single))) <= len(repr(value))


DOUBTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mistral": ("llama", {"model_type": "mistral", "sliding_window": 32}, "sliding window of 32 tokens"),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 32}, "sliding window of 32 tokens"),
    "experts": ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is false"),
    "layers": ("gemma3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types are not those of"),
    "scalar": ("gemma3", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar is 24"),
    "truncate": ("gpt-oss", {}, "rope_scaling.truncate is false"),
}


@pytest.mark.parametrize(("name", "more", "message"), DOUBTS.values(), ids=list(DOUBTS))
def test_what_a_runtime_does_otherwise_is_said(name: str, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    view = view_of(tmp_path, MODELS[name], lambda hf, config: config.update(more))

    assert view.missing == ""
    assert [message in notice for notice in view.notices] == [True]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "qwen3moe", "gemma3"])
def test_of_a_model_that_a_runtime_computes_as_it_says_nothing_is_said(name: str, tmp_path: Path) -> None:
    assert view_of(tmp_path, MODELS[name]).notices == ()


@pytest.mark.parametrize(
    ("begin", "head"), [("language_model.model.", "language_model.lm_head."), ("model.language_model.", "lm_head.")]
)
def test_the_text_model_of_a_larger_one_is_seen_by_itself(begin: str, head: str, tmp_path: Path) -> None:
    def wrap(hf: dict[str, Any], config: dict[str, Any]) -> None:
        arrays = {name.replace("model.", begin, 1).replace("lm_head.", head): array for name, array in hf.items()}
        text = dict(config)
        hf.clear()
        config.clear()
        hf.update(arrays)
        config.update(model_type="gemma3", text_config=text)

    view = view_of(tmp_path, GEMMA, wrap)

    assert (view.missing, set(view.model)) == ("", set(GEMMA.gguf))
    assert view.origins["output_norm.weight"].names == (f"{begin}norm.weight",)


def test_a_name_that_stands_for_two_tensors_is_not_taken_for_one(tmp_path: Path) -> None:
    twice = {"language_model.model.norm.weight": np.ones(64, np.float32)}

    view = view_of(tmp_path, GEMMA, lambda hf, config: hf.update(twice))

    assert "'model.norm.weight' and 'language_model.model.norm.weight' are both 'model.norm.weight'" in view.missing


def test_a_tokenizer_that_cannot_be_said_is_left_out(tmp_path: Path) -> None:
    folder = LLAMA.folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    with qconvert.open(folder) as model:
        view = architectures.view(model, "gguf")

    assert view.missing == ""
    assert [notice.startswith("the tokenizer is left out: ") for notice in view.notices] == [True]
    assert {pair.key: pair.value for pair in view.key_values}["tokenizer.ggml.model"] == "none"


ODD = (-1, 10**400, "x", [1], {}, {"full_attention": 3})
FIELDS = ("rope_scaling", "rope_parameters", "text_config", "layer_types", "sliding_window", "_sliding_window_pattern")


@pytest.mark.parametrize("name", ["llama", "qwen3moe", "gemma3", "gpt-oss"])
def test_whatever_a_field_or_a_key_holds_a_view_is_given(name: str, tmp_path: Path) -> None:
    hand = MODELS[name]
    with qconvert.open(hand.folder(tmp_path / "model")) as folder, qconvert.open(hand.file(tmp_path / "a.gguf")) as file:
        scaled = hand.config | {"rope_scaling": llama3()}
        configs = [hand.config | {field: value} for field in (*hand.config, *FIELDS) for value in ODD]
        configs += [
            scaled | {"rope_scaling": llama3(**{field: value})} for field in llama3() if field[0] != "o" for value in ODD
        ]
        texts = [json.dumps(config).encode() for config in configs]
        views = [architectures.view(replace(folder, assets={"config.json": partial(bytes, text)}), "gguf") for text in texts]
        metadata = [{**file.metadata, key: value} for key in hand.pairs for value in ODD]
        views += [architectures.view(replace(file, read_metadata=partial(dict, said)), "hf") for said in metadata]

    assert len({view.missing for view in views}) > len(hand.config)
    assert all(view.missing or view.origins for view in views)


HEADS: dict[str, tuple[str, dict[str, Any], str]] = {
    "heads": ("llama", {"num_attention_heads": 3}, "q_proj.weight' field 'shape': 64 rows, expected a multiple of 6 by"),
    "no heads": ("llama", {"num_attention_heads": 0}, "64 rows, expected a multiple of 0 by attention.head_count 0"),
    "shared heads": ("llama", {"num_key_value_heads": 3}, "32 rows, expected a multiple of 6 by attention.head_count_kv 3"),
    "experts": ("gpt-oss", {"num_local_experts": 3}, "gate_up_proj' field 'shape': shape [4, 192, 64], expected a stack of 3"),
}


@pytest.mark.parametrize(("name", "more", "message"), HEADS.values(), ids=list(HEADS))
def test_a_config_that_counts_otherwise_than_its_tensors_stays_as_it_is(
    name: str, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    view = view_of(tmp_path, MODELS[name], lambda hf, config: config.update(more))

    assert message in view.missing
    assert view.origins == {}


COUNTS = {
    "llama": ("attention.head_count", "64 rows, expected a multiple of 6 by attention.head_count 3"),
    "qwen3moe": ("expert_count", "shape [4, 32, 64], expected a stack of 3"),
    "gpt-oss": ("expert_count", "shape [4, 96, 64], expected a stack of 3"),
}


@pytest.mark.parametrize(("name", "key", "message"), [(name, *said) for name, said in COUNTS.items()], ids=list(COUNTS))
def test_a_gguf_file_that_counts_otherwise_than_its_tensors_stays_as_it_is(
    name: str, key: str, message: str, tmp_path: Path
) -> None:
    view = view_back(tmp_path, MODELS[name], lambda tensors, pairs: pairs.update({f"{name}.{key}": ("UINT32", 3)}))

    assert message in view.missing
    assert view.origins == {}


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (1, 1), (4, 1, 7)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
def test_exchanged_rows_and_columns_are_read_from_any_byte_to_any(shape: tuple[int, ...], dtype: Any) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    tensor = flip(from_array(array))
    expected = np.ascontiguousarray(array.swapaxes(-1, -2)).view(np.uint8).reshape(-1)
    (part,) = tensor.parts

    assert tensor.shape == (*shape[:-2], shape[-1], shape[-2])
    n = expected.size
    wrong = [
        (a, b) for a in range(n + 1) for b in range(a, n + 1) if part.source.read(a, b).tobytes() != expected[a:b].tobytes()
    ]
    assert wrong == []


class Counted:
    """Bytes of an array that note how many were read."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.data, self.n_read = array.reshape(-1).view(np.uint8), 0
        self.n_bytes = self.data.size

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        self.n_read += stop - start
        return self.data[start:stop]


def test_matrices_that_are_exchanged_piece_by_piece_are_read_once_and_not_kept() -> None:
    array = np.arange(3 * 64 * 32, dtype=np.float32).reshape(3, 64, 32)
    counted = Counted(array)
    (part,) = flip(assemble(dense("float32"), array.shape, {"values": counted})).parts
    assert isinstance(part.source, Flipped)
    step = 1000  # a matrix is 8192 bytes, so that pieces lie across two

    pieces = [part.source.read(at, min(at + step, part.source.n_bytes)) for at in range(0, part.source.n_bytes, step)]

    assert np.concatenate(pieces).tobytes() == array.swapaxes(1, 2).tobytes()
    assert counted.n_read == array.nbytes
    assert part.source.kept == {}
