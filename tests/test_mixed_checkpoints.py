"""Checkpoints of several dialects and of several files, and what a person says of them at the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import qconvert
import safetensors
from command import facts, run
from conftest import VECTORS
from handmade_checkpoint import Stored, arrays, checkpoint, stored
from numpy.typing import NDArray

import qformat
from qformat.errors import FileError, UsageError

GPTQ = VECTORS / "hf" / "gptq" / "v1-4bit-g64-sym"
NVFP4 = VECTORS / "hf" / "modelopt" / "nvfp4"
MLX = VECTORS / "hf" / "mlx" / "affine-4bit-g64"
Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
RNG = np.random.default_rng(404)
Arrays = dict[str, NDArray[Any]]

COMMANDS = [
    "inspect",
    "plan",
    "convert",
    "quantize",
    "dequantize",
    "merge",
    "split",
    "extract",
    "check",
    "verify",
    "hash",
    "dump",
]


def moved(path: Path, prefix: str) -> Arrays:
    """Read the arrays of a stored checkpoint under other names."""
    return {prefix + name: array for name, array in arrays(path / "model.safetensors").items()}


def mixed(folder: Path) -> Path:
    """Write a folder of three dialects and a dense matrix."""
    dense: Arrays = {"lm_head.weight": RNG.standard_normal((4, 8)).astype(ml_dtypes.bfloat16)}
    said = json.loads((GPTQ / "config.json").read_text())
    return checkpoint(folder, {**moved(GPTQ, "a."), **moved(NVFP4, "b."), **moved(MLX, "c."), **dense}, said)


def sharded(folder: Path) -> Path:
    """Write a folder of three files, the arrays of one weight in different ones, with an index and files beside."""
    folder.mkdir()
    header = (NVFP4 / "config.json").read_bytes()
    (folder / "config.json").write_bytes(header)
    (folder / "tokenizer.json").write_text('{"odd": [1,   2]}')
    (folder / "generation_config.json").write_text("{}")
    weight_map = {}
    for k, (name, array) in enumerate(arrays(NVFP4 / "model.safetensors").items()):
        file = f"model-0000{k % 3 + 1}-of-00003.safetensors"
        weight_map[name] = file
        held = folder / file.replace(".safetensors", f".{k}")
        held.mkdir()
        checkpoint(held / "one", {name: array})
    for file in set(weight_map.values()):
        parts: Arrays = {}
        for one in sorted(folder.glob(file.replace(".safetensors", ".*"))):
            parts |= arrays(one / "one" / "model.safetensors")
            shutil.rmtree(one)
        checkpoint(folder / "made", parts)
        (folder / "made" / "model.safetensors").rename(folder / file)
        (folder / "made").rmdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def all_stored(folder: Path) -> Stored:
    """Read every array of all files of a folder."""
    found: Stored = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, array in safetensors.deserialize(path.read_bytes()):
            assert name not in found
            found[name] = array["dtype"], tuple(array["shape"]), bytes(array["data"])
    return found


def test_several_dialects_and_dense_arrays_lie_in_one_folder(tmp_path: Path) -> None:
    with qconvert.open(mixed(tmp_path / "m")) as model, qconvert.open(GPTQ) as gptq, qconvert.open(MLX) as mlx:
        assert set(model.dialects) == {"gptq", "modelopt", "mlx"}
        names = {name: model.dialect_of(name) for name in model}
        assert names[f"a.{Q}"] == "gptq"
        assert names[f"b.{Q}"] == names[f"b.{DOWN}"] == "modelopt"
        assert names[f"c.{Q}"] == "mlx"
        assert names["lm_head.weight"] == "dense"
        assert model[f"a.{Q}"].dequantize().tobytes() == gptq[Q].dequantize().tobytes()
        assert model[f"c.{Q}"].dequantize().tobytes() == mlx[Q].dequantize().tobytes()


def test_inspect_counts_logical_weights_and_says_each_tensors_dialect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = facts(capsys, "inspect", mixed(tmp_path / "m"))

    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    shapes = [tensor["shape"] for tensor in found["tensors"]]
    assert found["n_weights"] == sum(n * k for n, k in shapes)
    keys = ("dialect", "scheme", "bits", "group_size", "group", "shape")
    assert [by_name[f"a.{Q}"][key] for key in keys] == ["gptq", "gptq:v1", 4, 64, "64", [32, 256]]
    assert [by_name[f"b.{Q}"][key] for key in keys] == ["modelopt", "modelopt:nvfp4", 4, 16, "16", [32, 256]]
    assert [by_name["lm_head.weight"][key] for key in keys] == ["dense", "bfloat16", 16, None, "", [4, 8]]


@pytest.mark.parametrize(
    ("folder", "facts_of"),
    [
        ("gptq/v1-4bit-channel-sym", ("gptq", 4, 256, "channel")),
        ("gptq/v1-4bit-g128-sym-descact", ("gptq", 4, 128, "128 by g_idx")),
        ("gptq/p-3bit-g64-asym", ("gptq", 3, 64, "64")),
        ("mlx/affine-8bit-g32", ("mlx", 8, 32, "32")),
        ("mlx/mxfp8", ("mlx", 8, 32, "32")),
        ("modelopt/mxfp4", ("modelopt", 4, 32, "32")),
        ("modelopt/w4a16-awq-g128", ("modelopt", 4, 128, "128")),
        ("compressed-tensors/fp8-tensor", ("compressed-tensors", 8, 256, "tensor")),
        ("compressed-tensors/fp8-block128", ("compressed-tensors", 8, 128, "128 x 128")),
    ],
)
def test_inspect_says_bits_and_groups(folder: str, facts_of: tuple[object, ...], capsys: pytest.CaptureFixture[str]) -> None:
    tensors = facts(capsys, "inspect", VECTORS / "hf" / folder)["tensors"]

    tensor = tensors[0]
    assert tuple(tensor[key] for key in ("dialect", "bits", "group_size", "group")) == facts_of


def test_inspect_in_text_groups_by_scheme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "inspect", GPTQ, "--tensors")

    lines = [line.split() for line in out.splitlines()]
    assert ["gptq:v1", "gptq", "4", "64", "1", "8.2", "k", "4.3", "KiB", "4.312"] in lines
    assert any(line[:7] == [Q, "[32,", "256]", "gptq:v1", "gptq", "4", "64"] for line in lines)


def test_hash_is_of_logical_names_and_the_same_in_every_dialect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qconvert.convert(GPTQ, tmp_path / "v2", to="gptq:v2")
    qconvert.convert(GPTQ, tmp_path / "a.gguf", to="gguf:q4_0")

    found = [facts(capsys, "hash", path)["tensors"] for path in (GPTQ, tmp_path / "v2", tmp_path / "a.gguf")]

    assert found[0] == found[1] == found[2]
    assert list(found[0]) == [Q]


def test_a_weight_that_is_an_array_as_well_is_refused(tmp_path: Path) -> None:
    found = moved(GPTQ, "") | {Q: np.ones((32, 256), np.float32)}
    folder = checkpoint(tmp_path / "a", found, json.loads((GPTQ / "config.json").read_text()))

    with pytest.raises(FileError, match=r"is an array by itself, and the name of a weight in '.*q_proj\.qweight' \(gptq\)"):
        qconvert.open(folder)


def test_a_weight_that_two_dialects_claim_is_refused(tmp_path: Path) -> None:
    packed: Arrays = {
        f"{Q}_packed": np.zeros((32, 32), np.int32), f"{Q}_scale": np.ones((32, 4), np.float16),
        f"{Q}_shape": np.array([32, 256], np.int64),
    }  # fmt: skip

    with pytest.raises(FileError, match=rf"belongs to '{Q}' and to '{Q}' \(compressed-tensors\)"):
        qconvert.open(checkpoint(tmp_path / "a", {**moved(GPTQ, ""), **packed}))


def test_arrays_of_one_weight_may_lie_in_several_files(tmp_path: Path) -> None:
    with qconvert.open(sharded(tmp_path / "s")) as model, qconvert.open(NVFP4) as whole:
        assert set(model) == set(whole)
        assert all(model[name].dequantize().tobytes() == whole[name].dequantize().tobytes() for name in model)


def test_shards_are_joined_and_files_beside_them_carried_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sharded(tmp_path / "s")

    report = facts(capsys, "merge", source, tmp_path / "whole")

    assert report["totals"]["verdicts"] == {"same-bytes": 2}
    assert stored(tmp_path / "whole") == stored(NVFP4)
    assert (tmp_path / "whole" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert (tmp_path / "whole" / "generation_config.json").read_text() == "{}"


def test_parts_hold_whole_weights_and_the_index_every_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = mixed(tmp_path / "m")

    facts(capsys, "split", source, tmp_path / "parts", "--split-max-size", "6KB")

    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    found = all_stored(tmp_path / "parts")
    assert found == stored(source)
    assert set(index["weight_map"]) == set(found)
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in found.values())
    assert len(set(index["weight_map"].values())) > 2
    for module in {name.rpartition(".")[0] for name in found}:
        assert len({index["weight_map"][name] for name in found if name.rpartition(".")[0] == module}) == 1
    with qconvert.open(tmp_path / "parts") as model:
        assert set(model.dialects) == {"gptq", "modelopt", "mlx"}


def test_converting_to_a_dialect_writes_parts_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts(capsys, "convert", NVFP4, tmp_path / "parts", "--to", "modelopt", "--split-max-tensors", 1)

    assert all_stored(tmp_path / "parts") == stored(NVFP4)


def test_extract_takes_weights_with_all_their_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts(capsys, "extract", mixed(tmp_path / "m"), tmp_path / "few.safetensors", "--include", "a.*")

    with qconvert.open(tmp_path / "few.safetensors") as model, qconvert.open(GPTQ) as whole:
        assert list(model) == [f"a.{Q}"]
        assert model[f"a.{Q}"].dequantize().tobytes() == whole[Q].dequantize().tobytes()


def test_a_gguf_block_has_no_dialect_to_stay_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qconvert.convert(GPTQ, tmp_path / "a.gguf", to="gguf:q4_0")

    code, _, err = run(capsys, "merge", tmp_path / "a.gguf", tmp_path / "a.safetensors")

    assert (code, "q4_0 weights would become dense" in err) == (1, True)


def test_a_folder_made_without_a_config_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qconvert.convert(GPTQ, tmp_path / "a.gguf", to="gguf:q4_0")

    code, _, err = run(capsys, "convert", tmp_path / "a.gguf", tmp_path / "back", "--to", "gptq:v2")

    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (code, list(config)) == (0, ["quantization_config"])
    assert "note: the source has no config.json" in err


def test_dequantized_weights_have_no_config_of_packing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shutil.copytree(NVFP4, tmp_path / "source")
    (source / "hf_quant_config.json").write_text('{"producer": {"name": "modelopt"}}')

    qconvert.convert(source, tmp_path / "f32", to="safetensors:f32")

    config = json.loads((tmp_path / "f32" / "config.json").read_text())
    assert config == {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    assert not (tmp_path / "f32" / "hf_quant_config.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_opens_a_source_takes_what_is_said_of_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, command, "--help")

    assert "--assume" in out
    assert "--shape" in out


def test_what_is_assumed_decides_how_zero_points_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, assumed = (facts(capsys, "hash", GPTQ, *more)["digest"] for more in ([], ["--assume", "gptq:v2"]))
    run(capsys, "convert", GPTQ, tmp_path / "a.qfmt", "--assume", "gptq:v2")

    assert facts(capsys, "hash", tmp_path / "a.qfmt")["digest"] == assumed != plain
    assert run(capsys, "verify", tmp_path / "a.qfmt", "--against", GPTQ, "--assume", "gptq:v2")[0] == 0
    assert run(capsys, "verify", tmp_path / "a.qfmt", "--against", GPTQ)[0] == 1


@pytest.mark.parametrize(
    ("said", "exits", "error"),
    [
        (["--assume", "gptq:v3"], 2, "'gptq:v3' cannot be assumed: expected one of gptq:v1, gptq:v2, gptq:planar, awq:"),
        (["--assume", "evil"], 2, "'evil' cannot be assumed"),
        (["--shape", f"{Q}x=32,256"], 1, "a shape is given for it, but there is no such tensor"),
    ],
)
def test_what_cannot_be_assumed_is_refused(said: list[str], exits: int, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "inspect", GPTQ, *said)

    assert (code, error in err, "Traceback" in err) == (exits, True, False)


@pytest.mark.parametrize("shape", ["w", "w=", "=3", "w=0,4", "w=-1,4", "w=1.5", "w=" + "9" * 40])
def test_a_shape_that_is_none_is_wrong_use(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "inspect", GPTQ, "--shape", shape)

    assert (code, "is not a shape" in err) == (2, True)


def test_a_shape_for_a_gguf_names_its_tensor(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("w", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(UsageError, match="there is no such tensor"):
        qconvert.open(tmp_path / "a.gguf", shapes={"v": (2, 32)})


@pytest.mark.parametrize("dialect", ["modelopt/mxfp4", "mlx/mxfp4", "compressed-tensors/mxfp4a16"])
def test_check_counts_the_exponent_255(dialect: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = arrays(VECTORS / "hf" / dialect / "model.safetensors")
    name = next(name for name in found if "down_proj" in name and "scale" in name)
    found[name].reshape(-1)[[5, 7]] = 255
    config = json.loads((VECTORS / "hf" / dialect / "config.json").read_text())

    code, out, _ = run(capsys, "check", checkpoint(tmp_path / "a", found, config))

    assert code == 1
    assert f"error: tensor '{DOWN}' field 'scales': 2 scales" in out
    assert "the first at index 5 of the flattened array" in out


@pytest.mark.parametrize("dialect", ["gptq/v2-4bit-g64-asym", "compressed-tensors/w4a16-g128-sym", "bitsandbytes/nf4-b64"])
def test_a_single_file_comes_back_from_qfmt_with_all_that_it_says(dialect: str, tmp_path: Path) -> None:
    one, kept, back = (tmp_path / name for name in ("one.safetensors", "kept.qfmt", "back.safetensors"))
    target = {"gptq": "gptq", "bitsandbytes": "bnb"}.get(dialect.partition("/")[0], "compressed-tensors")
    qconvert.convert(VECTORS / "hf" / dialect, one, to=target)
    qconvert.convert(one, kept)
    qconvert.convert(kept, back, to=target)
    assert back.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("target", ["gptq", "awq", "compressed-tensors:pack"])
def test_a_plan_refuses_what_has_no_arrays_in_a_dialect(target: str, tmp_path: Path) -> None:
    weights = np.random.default_rng(3).standard_normal((16, 128)).astype(np.float32)
    qformat.save(tmp_path / "o.qfmt", {"token_embd": qformat.quantize(weights, "uint4_g128")})
    (item,) = qconvert.plan(tmp_path / "o.qfmt", target).items
    assert item.verdict.verdict == "refused"
    assert "holds matrices named '<module>.weight'" in item.verdict.reason


def test_a_weight_without_a_module_is_an_array_like_any_other(tmp_path: Path) -> None:
    held = {".weight": np.ones((4, 64), np.int8), ".weight_scale": np.ones((4, 1), np.float32)}
    config = json.loads((VECTORS / "hf" / "compressed-tensors" / "int-w8a8-channel" / "config.json").read_text())
    with pytest.raises(FileError, match=r"'\.weight_scale'"):
        qconvert.open(checkpoint(tmp_path / "a", held, config))


def test_what_an_older_config_says_is_kept(tmp_path: Path) -> None:
    folder = VECTORS / "hf" / "gptq" / "v1-4bit-g64-sym"
    config = json.loads((folder / "config.json").read_text())
    said = config.pop("quantization_config")
    source = checkpoint(tmp_path / "a", arrays(folder / "model.safetensors"), config)
    (source / "quantize_config.json").write_text(json.dumps(said))
    qconvert.convert(source, tmp_path / "out", to="gptq")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"] == said


def test_a_pattern_that_is_not_read_leaves_no_module_to_defaults(tmp_path: Path) -> None:
    folder = VECTORS / "hf" / "compressed-tensors" / "fp8-block128"
    config = json.loads((folder / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    group["targets"] = [r"re:(?=model).*_proj$"]
    with pytest.raises(FileError, match=r"pattern 're:\(\?=model\).*' may mean this module and is not read"):
        qconvert.open(checkpoint(tmp_path / "a", arrays(folder / "model.safetensors"), config))


def test_the_exponent_255_stays_in_its_dialect_even_where_another_has_the_same_bytes(tmp_path: Path) -> None:
    """Both read it as NaN."""
    folder = VECTORS / "hf" / "modelopt" / "mxfp4"
    found = arrays(folder / "model.safetensors")
    source = checkpoint(tmp_path / "a", found, json.loads((folder / "config.json").read_text()))
    assert set(qconvert.plan(source, "torchao:mxfp4").counts()) <= {"same-bytes", "exact"}

    name = next(name for name in found if "down_proj" in name and "scale" in name)
    found[name].reshape(-1)[5] = 255
    source = checkpoint(tmp_path / "b", found, json.loads((folder / "config.json").read_text()))

    item = next(item for item in qconvert.plan(source, "torchao:mxfp4").items if item.name == DOWN)
    assert (item.verdict.verdict, item.verdict.index) == ("refused", 5)
    assert "scales[5] is the byte 255, which readers disagree on" in item.verdict.reason
    assert qconvert.plan(source, "modelopt:mxfp4").counts() == {"same-bytes": 2}


@pytest.mark.parametrize("field", ["weight_scale", "weight_scale_2"])
def test_check_finds_scales_that_are_no_numbers(field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = arrays(NVFP4 / "model.safetensors")
    array = found[f"{DOWN.removesuffix('.weight')}.{field}"]
    array.reshape(-1)[0] = np.nan

    code, out, _ = run(capsys, "check", checkpoint(tmp_path / "a", found))

    assert code == 1
    assert f"error: tensor '{DOWN}'" in out


def test_check_warns_of_codes_that_are_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = np.zeros((4, 8), np.uint8)
    codes[2, 3] = 0x7F
    found: Arrays = {"m.weight": codes.view(ml_dtypes.float8_e4m3fn), "m.weight_scale": np.array(1, np.float32)}

    code, out, _ = run(capsys, "check", checkpoint(tmp_path / "a", found))

    assert code == 0
    assert (
        "warning: tensor 'm.weight' field 'codes': 1 codes (float8_e4m3fn) are NaN or infinite, the first at weight 19" in out
    )


def test_shards_of_a_dialect_come_back_out_of_qfmt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sharded(tmp_path / "s")

    facts(capsys, "convert", source, tmp_path / "a.qfmt")
    facts(capsys, "convert", tmp_path / "a.qfmt", tmp_path / "back", "--to", "modelopt")

    assert stored(tmp_path / "back") == stored(NVFP4)
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_file_of_a_dialect_says_in_itself_how_it_is_packed(tmp_path: Path) -> None:
    source = VECTORS / "hf" / "gptq" / "v2-4bit-g64-asym"

    qconvert.convert(source, tmp_path / "a.safetensors", to="gptq:v2")

    assert not (tmp_path / "config.json").exists()
    with qconvert.open(tmp_path / "a.safetensors") as model, qconvert.open(source) as whole:
        assert model[Q].scheme.name == "gptq:v2"
        assert model[Q].dequantize().tobytes() == whole[Q].dequantize().tobytes()


def test_a_file_that_says_how_it_is_packed_is_believed_before_a_config_beside_it(tmp_path: Path) -> None:
    source, said = tmp_path / "source", json.loads((GPTQ / "config.json").read_text())
    checkpoint(source, arrays(GPTQ / "model.safetensors"), said)

    qconvert.convert(source, source / "other.safetensors", to="gptq:v2")

    with qconvert.open(GPTQ) as expected, qconvert.open(source / "other.safetensors") as model:
        assert [odd.message for odd in model.oddities] == []
        assert model[Q].dequantize().tobytes() == expected[Q].dequantize().tobytes()
