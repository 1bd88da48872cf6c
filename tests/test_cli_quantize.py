"""`qfmt quantize` of models: mixes, overrides, importance, and what the written file says of itself."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from command import run, run_json
from safetensors.numpy import save_file

RNG = np.random.default_rng(11)
Arrays = Mapping[str, np.ndarray]


def written(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[dict[str, tuple[str, str]], str]:
    """Run `qfmt quantize`; give type and reason of each tensor, and what standard error says."""
    code, found, err = run_json(capsys, "quantize", *args)
    assert code == 0, err
    return {t["name"]: (t["to"], t["reason"]) for t in found["tensors"]}, err


def refused(capsys: pytest.CaptureFixture[str], dst: Path, *args: object) -> str:
    """Run a command that must fail; give its one line. Nothing may have been written."""
    code, _, err = run(capsys, *args)
    assert (code, err.count("\n"), dst.exists()) == (1, 1, False)
    return err


def write_model(path: Path, tensors: Arrays, general_type: str = "model", **keys: int) -> Path:
    """Write a GGUF by the gguf package, architecture llama."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(general_type)
    writer.add_file_type(0)
    for key, value in keys.items():
        writer.add_uint32(f"llama.{key}", value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_imatrix(path: Path, entries: Mapping[str, tuple[np.ndarray, list[float]]]) -> Path:
    """Write importances: sums by expert, and counts."""
    tensors = {}
    for name, (importance, counts) in entries.items():
        tensors[f"{name}.in_sum2"] = importance.astype(np.float32)
        tensors[f"{name}.counts"] = np.array(counts, np.float32)[:, None]
    return write_model(path, tensors, "imatrix")


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.02, shape).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two blocks of a model whose attention reads rows of 288, and its feed-forward network rows of 512."""
    tensors = {"token_embd.weight": weights(6, 288), "output_norm.weight": weights(288), "output.weight": weights(6, 512)}
    for block in ("blk.0.", "blk.1."):
        tensors |= {f"{block}attn_q.weight": weights(8, 288), f"{block}attn_v.weight": weights(4, 288)}
        tensors |= {f"{block}ffn_up.weight": weights(4, 512), f"{block}ffn_down.weight": weights(4, 512)}
        tensors |= {f"{block}attn_norm.weight": weights(288), f"{block}ffn_gate_inp.weight": weights(4, 512)}
    return write_model(tmp_path / "model.gguf", tensors, block_count=2)


def test_a_mix_gives_each_tensor_its_type_and_says_why(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, err = written(capsys, model, tmp_path / "a.gguf", "--to", "gguf:Q4-K-M")
    assert err == ""
    assert {name: found[name] for name in found if not name.startswith("blk.1.")} == {
        "token_embd.weight": ("gguf:q5_0", "token_embd, base of q4_k_m; rows of 288 no multiple of 256: q4_k -> q5_0"),
        "output_norm.weight": ("gguf:f32", "no float matrix; blocks copied"),
        "output.weight": ("gguf:q6_k", "output"),
        "blk.0.attn_q.weight": ("gguf:q5_0", "attn_q, base of q4_k_m; rows of 288 no multiple of 256: q4_k -> q5_0"),
        "blk.0.attn_v.weight": ("gguf:q5_0", "attn_v, base of q4_k_m; rows of 288 no multiple of 256: q4_k -> q5_0"),
        "blk.0.ffn_up.weight": ("gguf:q4_k", "ffn_up, base of q4_k_m"),
        "blk.0.ffn_down.weight": ("gguf:q4_k", "ffn_down, base of q4_k_m"),
        "blk.0.attn_norm.weight": ("gguf:f32", "no float matrix; blocks copied"),
        "blk.0.ffn_gate_inp.weight": ("gguf:f32", "ffn_gate_inp is kept; blocks copied"),
    }
    assert found["blk.1.ffn_down.weight"] == ("gguf:q6_k", "ffn_down, more bits for block 1 of 2")
    types = {t.name: f"gguf:{t.tensor_type.name.lower()}" for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert types == {name: kind for name, (kind, _) in found.items()}


def test_the_table_shows_types_errors_and_reasons(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "quantize", model, tmp_path / "a.gguf", "--to", "gguf:q4_k_m")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert lines["blk.1.attn_v.weight"].split()[1] == "gguf:q8_0"
    assert lines["blk.1.attn_v.weight"].endswith(
        "attn_v, more bits for block 1 of 2; rows of 288 no multiple of 256: q6_k -> q8_0"
    )
    assert lines["blk.0.ffn_gate_inp.weight"].split(maxsplit=2)[1:] == ["gguf:f32", "ffn_gate_inp is kept; blocks copied"]
    assert "output_norm.weight" not in lines
    assert "rule ggml; " in lines["rule"]


@pytest.mark.parametrize(
    ("target", "file_type"), [("q4_k_m", 15), ("q6_k_mix", 18), ("mxfp4_moe", 38), ("q8_0", 7), ("q5_0", 8)]
)
def test_the_file_says_how_it_was_quantized(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, file_type: int
) -> None:
    written(capsys, model, tmp_path / "a.gguf", "--to", f"gguf:{target}")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert [fields[f"general.{key}"].contents() for key in ("file_type", "quantization_version")] == [file_type, 2]
    assert fields["general.file_type"].types == [gguf.GGUFValueType.UINT32]
    assert fields["llama.block_count"].contents() == 2
    assert not any(key.startswith("quantize.") for key in fields)


def test_importances_are_recorded_by_name_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "blk.0.attn_q.weight"
    packed = struct.pack(f"<ii{len(name)}sii288f", 1, len(name), name.encode(), 2, 288, *range(288))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "some.dat").write_bytes(packed + struct.pack("<ii", 40, 8) + b"wiki.raw")
    written(capsys, model, tmp_path / "a.gguf", "--to", "gguf:q4_k_m", "--imatrix", tmp_path / "sub" / "some.dat")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    stated = {key.removeprefix("quantize.imatrix."): field for key, field in fields.items() if key.startswith("quantize.")}
    assert {key: (field.contents(), field.types[0].name) for key, field in stated.items()} == {
        "file": ("some.dat", "STRING"), "dataset": ("wiki.raw", "STRING"),
        "entries_count": (1, "UINT32"), "chunks_count": (40, "UINT32"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q5_0", "IQ4_XS"])
def test_importance_reaches_the_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], golden_ggml: Callable[[str], Arrays], kind: str
) -> None:
    golden = golden_ggml(kind)
    source = write_model(tmp_path / "model.gguf", {"blk.0.attn_q.weight": golden["x"]})
    imatrix = write_imatrix(tmp_path / "im.gguf", {"blk.0.attn_q.weight": (golden["imatrix"][None] * 4, [4])})
    target = f"gguf:{kind.lower()}"
    found, err = written(capsys, source, tmp_path / "a.gguf", "--to", target, "--imatrix", imatrix)
    assert (found, err) == ({"blk.0.attn_q.weight": (target, f"as {target} says; with importance")}, "")
    assert gguf.GGUFReader(tmp_path / "a.gguf").tensors[0].data.tobytes() == golden["packed_imatrix"].tobytes()


@pytest.mark.parametrize("expert", [0, 1])
def test_each_expert_has_its_own_importance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], golden_ggml: Callable[[str], Arrays], expert: int
) -> None:
    """The other expert's weights are zeros: their bytes do not depend on importance."""
    golden = golden_ggml("Q4_K")
    stack, sums = np.zeros((2, 8, 512), np.float32), np.ones((2, 512), np.float32)
    stack[expert], sums[expert] = golden["x"], golden["imatrix"] * 4
    source = write_model(tmp_path / "model.gguf", {"blk.0.ffn_up_exps.weight": stack})
    imatrix = write_imatrix(tmp_path / "im.gguf", {"blk.0.ffn_up_exps.weight": (sums, [4, 4])})
    written(capsys, source, tmp_path / "a.gguf", "--to", "gguf:q4_k", "--imatrix", imatrix)
    packed = gguf.GGUFReader(tmp_path / "a.gguf").tensors[0].data
    assert packed[expert].tobytes() == golden["packed_imatrix"].tobytes()


def test_what_has_no_importance_or_no_use_for_it_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imatrix = write_imatrix(tmp_path / "im.gguf", {"blk.0.attn_q.weight": (np.ones((1, 288)), [2])})
    args = ("--include", "blk.0.attn_*", "--tensor-type", "*attn_v*=q8_0", "--imatrix", imatrix)
    found, err = written(capsys, model, tmp_path / "a.gguf", "--to", "gguf:q5_0", *args)
    assert (found["blk.0.attn_q.weight"][1], err) == ("as gguf:q5_0 says; with importance", "")
    assert found["blk.0.attn_v.weight"] == ("gguf:q8_0", "as '*attn_v*' says; q8_0 has no use for importance")
    assert found["blk.0.ffn_up.weight"] == ("gguf:f32", "not chosen; blocks copied")
    found, err = written(capsys, model, tmp_path / "b.gguf", "--to", "gguf:q5_0", "--imatrix", imatrix)
    assert found["blk.0.ffn_up.weight"][1] == "as gguf:q5_0 says; no importance is known"
    assert err.startswith("qfmt: note: im.gguf has no importance for 9 of 10 tensors: 'token_embd.weight', 'output.weight', ")


def test_importance_of_the_wrong_width_is_refused_but_for_the_token_embedding(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = write_imatrix(tmp_path / "im.gguf", {"blk.0.ffn_up.weight": (np.ones((1, 288)), [2])})
    dst = tmp_path / "a.gguf"
    line = refused(capsys, dst, "quantize", model, dst, "--to", "gguf:q4_k_m", "--imatrix", wrong)
    assert "im.gguf: tensor 'blk.0.ffn_up.weight'" in line
    assert "importance of 288 columns, the tensor has 512 columns" in line
    embedding = write_imatrix(tmp_path / "em.gguf", {"token_embd.weight": (np.ones((1, 6)), [2])})
    found, _ = written(capsys, model, dst, "--to", "gguf:q4_k_m", "--imatrix", embedding)
    assert found["token_embd.weight"][1].endswith("; no importance is known")


def test_a_mix_that_is_meant_for_importance_says_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = written(capsys, model, tmp_path / "a.gguf", "--to", "gguf:q2_k_s")
    assert err == "qfmt: note: q2_k_s is meant for --imatrix: llama-quantize refuses to make it without\n"


def test_a_pure_type_stays_pure_or_refuses(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = tmp_path / "a.gguf"
    line = refused(capsys, dst, "quantize", model, dst, "--to", "gguf:q4_k")
    assert "rows of 288 weights, expected a multiple of 256 (q4_k block); use gguf:q4_k_m, which falls back" in line
    found, _ = written(capsys, model, dst, "--to", "gguf:q4_k", "--include", "*ffn*", "--include", "output.weight")
    assert {kind for kind, reason in found.values() if reason == "as gguf:q4_k says"} == {"gguf:q4_k"}
    assert found["blk.0.ffn_gate_inp.weight"] == ("gguf:f32", "ffn_gate_inp is kept; blocks copied")


def test_the_first_override_that_matches_counts(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("*.0.ffn_up*=bf16", "*ffn_up*=F16", "*ffn_down*=q3_k", "*attn_q*=q6_k", "output.weight=f32")
    args = [part for text in overrides for part in ("--tensor-type", text)]
    found, _ = written(capsys, model, tmp_path / "a.gguf", "--to", "gguf:q4_k_m", *args)
    assert found["blk.0.ffn_up.weight"] == ("gguf:bf16", "as '*.0.ffn_up*' says; values round to bfloat16")
    assert found["blk.1.ffn_up.weight"] == ("gguf:f16", "as '*ffn_up*' says; values round to float16")
    assert found["blk.1.ffn_down.weight"] == ("gguf:q3_k", "as '*ffn_down*' says")
    assert found["blk.1.attn_q.weight"] == ("gguf:q8_0", "as '*attn_q*' says; rows of 288 no multiple of 256: q6_k -> q8_0")
    assert found["output.weight"] == ("gguf:f32", "as 'output.weight' says; blocks copied")
    assert found["blk.0.ffn_gate_inp.weight"][0] == "gguf:f32"


def test_a_planar_target_takes_overrides_of_its_own(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--tensor-type", "*attn*=int8", "--tensor-type", "token*=f16")
    found, _ = written(capsys, model, tmp_path / "a.qfmt", "--to", "qfmt:int4-g32", *args)
    names = ("blk.0.attn_q.weight", "token_embd.weight", "blk.0.ffn_gate_inp.weight")
    assert [found[name][0] for name in names] == ["qfmt:int8-channel", "qfmt:f16", "qfmt:int4-g32"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--to", "gguf:q4_k_x"], "unknown target 'gguf:q4_k_x': expected q4_0, "),
        (["--to", "gguf:q4_k_x"], ", or a mix: q1_0_mix, q2_0_mix, tq1_0_mix, tq2_0_mix, q2_k_s, q2_k_mix, q3_k_s, "),
        (["--to", "gguf:q4_k_x"], ", q4_k_m, q5_k_s, q5_k_m, q6_k_mix, q4_0_mix, "),
        (["--to", "gguf:iq3_m"], "'gguf:iq3_m' is a mix of iq3_s, to which nothing quantizes"),
        (["--to", "gguf:q8_0", "--tensor-type", "q8_0"], "tensor type 'q8_0', expected GLOB=TYPE"),
        (["--to", "gguf:q8_0", "--tensor-type", "=q8_0"], "tensor type '=q8_0', expected GLOB=TYPE"),
        (["--to", "gguf:q8_0", "--tensor-type", "*=q9"], "unknown target 'gguf:q9'"),
        (["--to", "gguf:q8_0", "--tensor-type", "*=i8"], "'i8' is no type to quantize to"),
        (["--to", "gguf:q8_0", "--tensor-type", "*=q4_k_m"], "'q4_k_m' is a mix of types, expected one type"),
        (["--to", "gguf:q4_k_m", "--rule", "best"], "unknown rule 'best'"),
    ],
)
def test_a_word_that_means_nothing_is_wrong_use(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    code, out, err = run(capsys, "quantize", model, tmp_path / "a.gguf", *args)
    assert (code, out, words in err, "Traceback" in err, (tmp_path / "a.gguf").exists()) == (2, "", True, False, False)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--to", "gguf:f16"], "names no packed type"),
        (["--to", "gguf:iq2_xs"], "nothing quantizes to 'iq2_xs'"),
        (["--to", "gguf:q8_0", "--tensor-type", "*=iq1_s"], "nothing quantizes to 'iq1_s'"),
        (["--to", "gguf:q8_0", "--tensor-type", "*norm*=f16"], "no tensor to quantize matches '*norm*', of 10"),
        (["--to", "gguf:q8_0", "--include", "zzz"], "no tensor to quantize matches 'zzz', of 10"),
        (["--to", "gguf:q8_0", "--tensor-type", "*attn_q*=q4_k"], "rows of 288 weights, expected a multiple of 256"),
        (["--to", "gguf:q8_0", "--imatrix", "none.dat"], "none.dat: no such file"),
    ],
)
def test_wrong_use_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    assert words in refused(capsys, tmp_path / "a.gguf", "quantize", model, tmp_path / "a.gguf", *args)


@pytest.mark.parametrize("command", [["convert", "SRC", "DST"], ["plan", "SRC"]])
def test_a_mix_is_for_quantizing_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    dst = tmp_path / "a.gguf"
    args = [{"SRC": model, "DST": dst}.get(arg, arg) for arg in command]
    code, _, err = run(capsys, *args, "--to", "gguf:q4_k_m")
    assert (code, "'gguf:q4_k_m' is a mix, for qfmt quantize alone" in err, dst.exists()) == (2, True, False)


def test_what_is_packed_already_stays_as_it_is(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(capsys, model, tmp_path / "a.gguf", "--to", "gguf:q8_0", "--include", "*attn_q*")
    found, _ = written(capsys, tmp_path / "a.gguf", tmp_path / "b.gguf", "--to", "gguf:q5_k_m")
    assert found["blk.0.attn_q.weight"] == ("gguf:q8_0", "already q8_0; blocks copied")
    assert found["blk.0.attn_v.weight"][0] == "gguf:q5_1"
    before, after = (gguf.GGUFReader(tmp_path / name).tensors for name in ("a.gguf", "b.gguf"))
    assert before[3].name == "blk.0.attn_q.weight"
    assert before[3].data.tobytes() == after[3].data.tobytes()


def test_names_of_other_checkpoints_take_part_in_a_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {f"model.layers.{n}.self_attn.v_proj.weight": weights(4, 256) for n in range(8)}
    tensors = {**names, "lm_head.weight": weights(4, 256), "model.layers.0.mlp.gate.weight": weights(4, 256)}
    save_file(tensors, tmp_path / "model.safetensors")
    imatrix = write_imatrix(tmp_path / "im.gguf", {"blk.3.attn_v.weight": (np.ones((1, 256)), [2])})
    found, _ = written(capsys, tmp_path / "model.safetensors", tmp_path / "a.gguf", "--to", "gguf:q4_k_m", "--imatrix", imatrix)
    types = [found[f"model.layers.{n}.self_attn.v_proj.weight"][0].removeprefix("gguf:") for n in range(8)]
    assert types == ["q6_k", "q4_k", "q4_k", "q6_k", "q4_k", "q4_k", "q6_k", "q6_k"]
    assert found["model.layers.3.self_attn.v_proj.weight"][1] == "attn_v, more bits for block 3 of 8; with importance"
    assert found["lm_head.weight"][0] == "gguf:q6_k"
    assert found["model.layers.0.mlp.gate.weight"] == ("gguf:f32", "ffn_gate_inp is kept; blocks copied")


def test_a_split_file_is_quantized_to_parts(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--to", "gguf:q8_0", "--split-max-tensors", 10)
    code, found, _ = run_json(capsys, "quantize", model, tmp_path / "a.gguf", *options)
    parts = [tmp_path / f"a-0000{number}-of-00002.gguf" for number in (1, 2)]
    assert (code, found["files"], len(found["errors"])) == (0, [str(part) for part in parts], 10)
    assert [len(gguf.GGUFReader(part).tensors) for part in parts] == [10, 5]
    assert gguf.GGUFReader(parts[0]).fields["general.file_type"].contents() == 7


def test_each_experts_matrix_has_its_columns_of_an_older_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A `.dat` file holds the columns of all experts in one run."""
    names = [f"model.layers.0.mlp.experts.{expert}.up_proj.weight" for expert in range(3)]
    source = write_model(tmp_path / "model.gguf", {name: weights(4, 256) for name in names})
    entry = b"blk.0.ffn_up_exps.weight"
    sums = np.ones(2 * 256, "<f4").tobytes()
    imatrix = tmp_path / "im.dat"
    imatrix.write_bytes(struct.pack("<ii", 1, len(entry)) + entry + struct.pack("<ii", 1, 2 * 256) + sums)
    found, err = written(capsys, source, tmp_path / "a.gguf", "--to", "gguf:q4_k", "--imatrix", imatrix)
    assert [found[name][1].partition("; ")[2] for name in names] == [*["with importance"] * 2, "no importance is known"]
    assert "no importance for 1 of 3 tensors" in err


def test_names_with_numbers_that_are_no_blocks_are_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """5000 digits are more than an int is read from."""
    name = f"model.layers.{'9' * 5000}.mlp.experts.{'9' * 5000}.up_proj.weight"
    header = json.dumps({name: {"dtype": "F32", "shape": [2, 256], "data_offsets": [0, 2048]}}).encode()
    source = tmp_path / "model.safetensors"
    source.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2048))
    line = refused(capsys, tmp_path / "a.gguf", "quantize", source, tmp_path / "a.gguf", "--to", "gguf:q4_k_m")
    assert "bytes, gguf holds at most 63" in line


@pytest.mark.parametrize("target", ["gguf:q4_0", "gguf:q8_0", "gguf:q4_k", "gguf:q6_k", "gguf:iq4_xs"])
def test_weights_too_large_for_the_scales_of_a_type_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    large = np.where(np.arange(512) % 2, 1e9, -1e9).astype(np.float32).reshape(2, 256)
    source = write_model(tmp_path / "model.gguf", {"blk.0.attn_q.weight": large})
    line = refused(capsys, tmp_path / "a.gguf", "quantize", source, tmp_path / "a.gguf", "--to", target)
    assert "tensor 'blk.0.attn_q.weight' field 'scales'" in line
    assert f"in rows 0 to 1, expected weights that {target.removeprefix('gguf:')} can hold" in line


def test_a_weight_that_is_no_number_is_refused_by_the_name_of_its_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = np.ones((2, 256), np.float32)
    array[1, 7] = np.nan
    source = write_model(tmp_path / "model.gguf", {"blk.0.attn_q.weight": array})
    line = refused(capsys, tmp_path / "a.gguf", "quantize", source, tmp_path / "a.gguf", "--to", "gguf:q4_k")
    assert "tensor 'blk.0.attn_q.weight'" in line
    assert "weight [1, 7] is nan" in line


def test_the_importance_file_is_not_written_over(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imatrix = write_imatrix(tmp_path / "im.gguf", {"blk.0.attn_q.weight": (np.ones((1, 288)), [2])})
    before = imatrix.read_bytes()
    code, _, err = run(capsys, "quantize", model, imatrix, "--to", "gguf:q4_k_m", "--imatrix", imatrix, "--force")
    assert (code, imatrix.read_bytes() == before) == (1, True)
    assert "im.gguf: destination is the importance file" in err


def file_type(path: Path) -> int:
    return int(gguf.GGUFReader(path).fields["general.file_type"].contents())


def test_the_file_type_follows_what_most_matrices_are(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "quantize", model, tmp_path / "q.gguf", "--to", "gguf:q5_0")
    run(capsys, "dequantize", tmp_path / "q.gguf", tmp_path / "f.gguf")
    run(capsys, "convert", tmp_path / "q.gguf", tmp_path / "w.gguf", "--to", "gguf:q8_0", "--allow", "requantize")
    assert [file_type(tmp_path / name) for name in ("q.gguf", "f.gguf", "w.gguf")] == [8, 0, 7]


def test_a_copy_of_what_is_packed_already_is_called_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "quantize", model, tmp_path / "q.gguf", "--to", "gguf:q8_0")
    run(capsys, "extract", tmp_path / "q.gguf", tmp_path / "few.gguf", "--include", "*attn_v*")
    _, out, err = run(capsys, "quantize", tmp_path / "few.gguf", tmp_path / "x.gguf", "--to", "gguf:q4_k_m")
    assert "nothing was quantized: 2 matrices are packed already; use qfmt dequantize first" in err
    assert "rule ;" not in out
    assert file_type(tmp_path / "x.gguf") == 7


def test_a_suffix_that_names_another_container_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(capsys, tmp_path / "x.gguf", "quantize", model, tmp_path / "x.gguf", "--to", "qfmt:mxfp4")
    assert "destination ends in '.gguf', the target is qfmt:mxfp4" in err
