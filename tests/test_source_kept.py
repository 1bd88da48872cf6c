"""No command writes over a file of its source, by whatever name it is reached and whatever is forced."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from handmade_checkpoint import checkpoint
from qfmt.__main__ import main
from safetensors.numpy import save_file

MATRIX = {"a.weight": np.arange(2048, dtype=np.float32).reshape(8, 256)}
SIDE = {"tokenizer.json": "{}", "generation_config.json": "{}", "vocab.txt": "a"}
BESIDE = ("config.json", *SIDE)
Ways = Mapping[str, Callable[[Path, Path], None]]
REACHED: Ways = {
    "itself": lambda file, other: None,
    "symlink": lambda file, other: other.symlink_to(file),
    "hard link": lambda file, other: os.link(file, other),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = checkpoint(tmp_path / "model", MATRIX, {"model_type": "unknown"})
    for name, text in SIDE.items():
        (made / name).write_text(text)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("way", REACHED)
@pytest.mark.parametrize("name", ["model.safetensors", *BESIDE])
@pytest.mark.parametrize(
    "args",
    [
        ("convert", "SRC", "FILE", "--to", "gguf", "--force"),
        ("convert", "SRC", "x.gguf", "--receipt", "FILE"),
        ("convert", "SRC", "x.gguf", "--receipt", "FILE", "--force"),
        (
            "convert",
            "other.safetensors",
            "x.safetensors",
            "--to",
            "safetensors",
            "--like",
            "SRC",
            "--receipt",
            "FILE",
            "--force",
        ),
        ("quantize", "SRC", "FILE", "--to", "qfmt:int8", "--force"),
        ("dequantize", "SRC", "FILE", "--force"),
        ("merge", "SRC", "FILE", "--force"),
        ("extract", "SRC", "FILE", "--include", "*", "--force"),
    ],
    ids=lambda args: f"{args[0]}-{'receipt' if '--receipt' in args else 'dst'}-{'like' if '--like' in args else len(args)}",
)
def test_a_file_of_the_source_is_never_written_over(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    name: str,
    way: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    save_file(MATRIX, "other.safetensors")
    before, file = contents(folder), folder / name
    if way != "itself":
        file = folder.parent / "reached"
        REACHED[way](folder / name, file)
    known = {"SRC": str(folder), "FILE": str(file)}
    assert main([known.get(arg, arg) for arg in args]) == 1
    assert "destination is the source" in capsys.readouterr().err
    assert (contents(folder), Path("x.gguf").exists(), Path("x.safetensors").exists()) == (before, False, False)


@pytest.mark.parametrize("name", ["config.json", "quant_config.json"])
def test_what_a_file_alone_is_read_by_is_never_written_over(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (folder / "quant_config.json").write_text("{}")
    before = contents(folder)
    assert main(["convert", str(folder / "model.safetensors"), str(folder / name), "--to", "gguf", "--force"]) == 1
    assert "destination is the source" in capsys.readouterr().err
    assert contents(folder) == before


def test_an_index_is_never_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, shard = folder / "model.safetensors.index.json", "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a.weight": shard}}))
    before = contents(folder)
    assert main(["convert", str(folder), str(folder.parent / "x.qfmt"), "--receipt", str(index), "--force"]) == 1
    assert "destination is the source" in capsys.readouterr().err
    assert contents(folder) == before
