"""`qfmt diff` as a person types it: exit codes, JSON, the few lines that are printed; a real model in other containers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qconvert
from command import run, run_json
from qconvert.repackaging import repackage
from safetensors.numpy import save_file

NUMBERS = ("n_different", "max_abs", "max_rel")
KEYS = {"name", "status", "equal", *NUMBERS}


def facts(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    code, found, err = run_json(capsys, "diff", *args)
    assert (code, err.count("\n")) == ((0, 0) if found["same"] else (1, 1))
    return found


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Write two files: one weight NaN, one from zero, one gone, one as it was."""
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    same = {"same": np.arange(4, dtype=np.float32)}
    save_file(
        {**same, "nan": np.array([1, 2], "float32"), "zero": np.array([0, 2], "float32"), "gone": np.array([1], "float32")}, a
    )
    save_file(
        {**same, "nan": np.array([1, np.nan], "float32"), "zero": np.array([0.5, 2], "float32"), "new": np.array([1], "int64")},
        b,
    )
    return a, b


def test_json_says_of_every_tensor_what_differs(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, *pair)

    assert found["schema"] == "qfmt.diff/1"
    assert all(tensor.keys() >= KEYS for tensor in found["tensors"])
    assert {
        t["name"]: [t[key] for key in ("status", "equal", "n_different", "max_abs", "max_rel")] for t in found["tensors"]
    } == {
        "gone": ["only_a", None, None, None, None],
        "nan": ["differs", False, 1, "NaN", "NaN"],
        "same": ["same", True, 0, 0.0, 0.0],
        "zero": ["differs", False, 1, 0.5, "Infinity"],
        "new": ["only_b", None, None, None, None],
    }
    assert found["totals"] == {
        "n_tensors": 5, "same": 1, "differs": 2, "only_a": 1, "only_b": 1, "n_other_shape": 0, "n_other_format": 0,
        "n_other_bytes": 2, "n_other_values": 2, "n_different": 2, "max_abs": "NaN", "max_rel": "NaN",
    }  # fmt: skip


def test_json_does_not_depend_on_tensors(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert facts(capsys, *pair, "--tensors") == facts(capsys, *pair)


def test_a_screen_has_a_line_for_each_depth_what_differs_and_the_verdict(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair[0].parent)

    code, out, err = run(capsys, "diff", "a.safetensors", "b.safetensors")

    assert (code, err) == (1, "qfmt: a.safetensors, b.safetensors: differ\n")
    assert [line.rstrip() for line in out.splitlines()][2:] == [
        "structure: 3 tensors in both, 1 in A alone, 1 in B alone",
        "bytes: 1 of 3 tensors of one format are equal",
        "values: 1 of 3 tensors are equal; 2 weights differ, by nan at most, relative nan",
        "",
        "tensor  status   shape  format           bytes   values  weights  max abs  max rel",
        "gone    only_a   1      safetensors:f32",
        "nan     differs  2      safetensors:f32  differ  differ        1      nan      nan",
        "zero    differs  2      safetensors:f32  differ  differ        1      0.5      inf",
        "new     only_b   1      safetensors:i64",
    ]


def test_the_same_file_is_the_same(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "diff", pair[0], pair[0])

    assert (code, err, out.splitlines()[-1]) == (0, "", f"{pair[0]}, {pair[0]}: same")


WRONG = [
    (["--values", "--depth", "bytes"], "--depth bytes does not"),
    (["--map", "x"], "expected OLD=NEW"),
    (["--depth", "all"], "'all' is not one of"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_what_cannot_be_meant_is_a_usage_error(
    options: list[str], words: str, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "diff", *pair, *options)

    assert (code, out, words in err) == (2, "", True)


def test_a_name_that_no_tensor_has_ends_in_one_line(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "diff", *pair, "--map", "x=y") == (1, "", "qfmt: --map 'x': there is no such tensor among 4\n")


def test_names_are_mapped(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, *pair, "--map", "gone=new")["tensors"]

    assert [(t["name"], t["name_b"], t["status"]) for t in found if t["name"] == "gone"] == [("gone", "new", "differs")]


@pytest.fixture(scope="module")
def layer(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give one layer of SmolLM2 as GGUF: Q4_1 and float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "tools")
        import installed

        source = installed.package_file(*installed.SMOLLM2)
    made = tmp_path_factory.mktemp("layer")
    repackage(source, made / "layer.gguf", ["blk.0.*"])
    yield made / "layer.gguf"
    shutil.rmtree(made)


TARGETS = {"qfmt": "layer.qfmt", "safetensors:f32": "layer.safetensors", "mlx:f32": "layer-mlx", "gguf:f32": "layer-f32.gguf"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_real_layer_keeps_its_values_in_every_container(
    target: str, layer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / TARGETS[target]
    qconvert.convert(layer, made, target)

    found = facts(capsys, layer, made, "--values")

    assert len(found["tensors"]) == 9
    assert {(t["status"], t["equal"], t["n_different"], t["max_abs"], t["max_rel"]) for t in found["tensors"]} == {
        ("same", True, 0, 0.0, 0.0)
    }
    assert facts(capsys, layer, made)["same"] == (target == "qfmt")


def test_one_flipped_bit_of_a_real_layer_is_found_in_any_container(
    layer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, flipped = "blk.0.ffn_up.weight", tmp_path / "flipped.gguf"
    with qconvert.open(layer) as model:
        blocks = model[name].parts[0].source.read(0, 200).tobytes()
    data = bytearray(layer.read_bytes())
    at = data.index(blocks) + 20  # the second block: float16 scale and bias, then 16 bytes of codes
    scale, bias = np.frombuffer(bytes(data[at : at + 4]), np.float16).astype(np.float32)
    codes = np.array([data[at + 4] & 15, data[at + 4] & 15 ^ 4], np.float32)
    data[at + 4] ^= 4  # of the low code: weight 32
    flipped.write_bytes(data)
    qconvert.convert(layer, tmp_path / "dense.safetensors", "safetensors:f32")
    before, after = (codes * scale + bias).astype(np.float64)

    for other in (layer, tmp_path / "dense.safetensors"):
        found = facts(capsys, other, flipped, "--values")
        wrong = {t["name"]: [t[key] for key in NUMBERS] for t in found["tensors"] if t["status"] != "same"}
        assert wrong == {name: [1, abs(after - before), abs(after - before) / abs(before)]}


def test_a_checkpoint_and_its_gguf_file_are_the_same_model(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, made = vectors / "hf" / "tiny-llama" / "bf16", tmp_path / "tiny.gguf"
    qconvert.convert(source, made)

    found = facts(capsys, source, made, "--values")

    with qconvert.open(source) as model:
        assert [t["name"] for t in found["tensors"]] == list(model)
    assert {(t["equal"], t["n_different"]) for t in found["tensors"]} == {(True, 0)}
    assert found["notices"][0] == f"{made} is seen under HF names"


def test_a_weight_of_a_query_is_found_in_the_row_that_a_checkpoint_has_it(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, name = vectors / "hf" / "tiny-llama" / "bf16", "model.layers.1.self_attn.q_proj.weight"
    shutil.copytree(source, tmp_path / "changed")
    with qconvert.open(source) as model:
        row = model[name].parts[0].source.read(5 * 512, 6 * 512).tobytes()  # of 256 weights of two bytes
    (shard,) = (path for path in (tmp_path / "changed").glob("*.safetensors") if row in path.read_bytes())
    data = bytearray(shard.read_bytes())
    data[data.index(row) + 1] ^= 0x80  # the sign of its first weight
    shard.write_bytes(data)
    qconvert.convert(source, tmp_path / "tiny.gguf")

    found = facts(capsys, tmp_path / "changed", tmp_path / "tiny.gguf", "--values")

    value = abs(float(np.frombuffer(bytes([0, 0, *row[:2]]), np.float32)[0]))
    wrong = {t["name"]: [t[key] for key in NUMBERS] for t in found["tensors"] if t["status"] != "same"}
    assert wrong == {name: [1, 2 * value, 2.0]}
