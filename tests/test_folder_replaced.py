"""A folder is replaced as a whole, only where that is asked for, and only if it holds nothing but what is written anew."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qconvert
from handmade_checkpoint import checkpoint
from qfmt.__main__ import main

from qformat.errors import FileError, UsageError
from qformat.file import hidden

CONFIG = {"model_type": "unknown"}
ONES, TWOS = (np.full((8, 256), number, np.float32) for number in (1, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two checkpoints, and convert the first to a folder."""
    checkpoint(tmp_path / "ones", {"a.weight": ONES}, CONFIG)
    checkpoint(tmp_path / "twos", {"a.weight": TWOS}, CONFIG)
    convert("ones", tmp_path / "out")
    return tmp_path / "out"


def convert(name: str, dst: Path, **how: Any) -> None:
    qconvert.convert(dst.parent / name, dst, "safetensors:bf16", **how)


def contents(folder: Path) -> dict[str, bytes | None]:
    found = sorted(path for path in folder.rglob("*") if path.name != "pytest")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def test_an_empty_folder_is_taken(folder: Path) -> None:
    (folder.parent / "empty").mkdir()
    convert("ones", folder.parent / "empty")
    assert contents(folder.parent / "empty") == contents(folder)


def test_a_folder_is_replaced_only_by_force(folder: Path) -> None:
    before = contents(folder.parent)
    with pytest.raises(UsageError, match="destination exists; use --force"):
        convert("twos", folder)
    assert contents(folder.parent) == before
    convert("twos", folder, force=True)
    convert("twos", folder.with_name("fresh"))
    assert contents(folder) == contents(folder.with_name("fresh"))
    assert contents(folder)["model.safetensors"] != before["out/model.safetensors"]
    assert sorted(os.listdir(folder.parent)) == ["fresh", "ones", "out", "twos"]


@pytest.mark.parametrize("foreign", ["notes.md", "model-00001-of-00002.safetensors", ".hidden"])
def test_a_folder_that_holds_anything_else_stays(folder: Path, foreign: str) -> None:
    (folder / foreign).write_text("mine")
    before = contents(folder.parent)
    with pytest.raises(UsageError, match=f"destination holds '{foreign}', which is not written anew"):
        convert("twos", folder, force=True)
    assert contents(folder.parent) == before


def test_a_folder_in_the_place_of_a_file_is_anything_else(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(UsageError, match=r"destination holds 'config\.json'"):
        convert("twos", folder, force=True)
    assert (folder / "config.json").is_dir()


@pytest.mark.parametrize("source", ["twos", "twos/model.safetensors"])
def test_the_folder_of_the_source_is_never_replaced(folder: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, twos = contents(folder.parent), folder.with_name("twos")
    assert main(["convert", str(folder.parent / source), str(twos), "--to", "safetensors:bf16", "--force"]) == 1
    assert "destination is the" in capsys.readouterr().err
    assert contents(folder.parent) == before


@pytest.mark.parametrize("dst", [".", "..", "link"])
def test_a_folder_that_cannot_be_renamed_is_refused(
    folder: Path, dst: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.with_name("link").symlink_to(folder)
    monkeypatch.chdir(folder)
    before, place = contents(folder.parent), str(folder.with_name(dst)) if dst == "link" else dst
    assert main(["convert", str(folder.with_name("twos")), place, "--to", "safetensors:bf16", "--force"]) == 1
    assert "destination is a folder" in capsys.readouterr().err
    assert contents(folder.parent) == before


def test_a_file_is_not_replaced_by_a_folder(folder: Path) -> None:
    folder.with_name("file").write_text("mine")
    with pytest.raises(UsageError, match="destination is a file, and a folder is to be written"):
        convert("twos", folder.with_name("file"), force=True)
    assert folder.with_name("file").read_text() == "mine"


def test_what_comes_into_the_folder_meanwhile_stays(folder: Path) -> None:
    def put(what: str, done: int, total: int) -> None:
        if what == "prove":
            (folder / "late.txt").write_text("mine")

    with pytest.raises(FileError, match=r"the folder holds 'late\.txt', which is not written anew"):
        convert("twos", folder, force=True, progress=put)
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    assert sorted(os.listdir(folder)) == ["config.json", "late.txt", "model.safetensors"]
    assert sorted(os.listdir(folder.parent)) == ["ones", "out", "twos"]


def test_a_folder_is_there_again_where_its_place_cannot_be_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, replace = contents(folder.parent), os.replace

    def fail(source: Path, target: Path) -> None:
        if source.suffix == ".part":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(hidden.os, "replace", fail)
    with pytest.raises(FileError, match="input/output error"):
        convert("twos", folder, force=True)
    assert contents(folder.parent) == before
