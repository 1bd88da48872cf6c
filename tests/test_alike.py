"""Listing a file makes one tensor of each kind, however many there are; what is printed is that of every tensor."""

import json
from pathlib import Path

import handmade_gguf as made
import numpy as np
import pytest
import qconvert
from qfmt.__main__ import main

import qformat

N_ALIKE = 40


def gguf(folder: Path) -> Path:
    """Write as many Q4_0 tensors of one shape, then one of another shape, one of another type, one of unknown type."""
    path = folder / "a.gguf"
    alike = [made.info(f"q{number}", [32], 2, 32 * number) for number in range(N_ALIKE)]
    end = 32 * N_ALIKE
    infos = [*alike, made.info("wide", [64], 2, end), made.info("f", [8], 0, end + 64), made.info("odd", [8], 99, end + 96)]
    path.write_bytes(made.gguf([made.ARCH], infos, bytes(end + 128)))
    return path


def qfmt(folder: Path) -> Path:
    """Write the same as a .qfmt file."""
    qconvert.convert(gguf(folder), folder / "a.qfmt")
    return folder / "a.qfmt"


def safetensors(folder: Path) -> Path:
    """Write dense arrays: as many of one shape and type, one of another shape, one of another type."""
    path = folder / "a.safetensors"
    alike = {f"q{number}": ("BF16", [2], 4) for number in range(N_ALIKE)}
    header, end = {}, 0
    for name, (dtype, shape, n_bytes) in {**alike, "wide": ("BF16", [4], 8), "f": ("F32", [1], 4)}.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return path


FILES = [(gguf, 4), (qfmt, 4), (safetensors, 3)]


@pytest.mark.parametrize(("write", "n_kinds"), FILES, ids=["gguf", "qfmt", "safetensors"])
def test_one_tensor_of_each_kind_is_made(write, n_kinds: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with qconvert.open(write(tmp_path)) as model:
        load, loaded = model.load, []
        model.load = lambda name: loaded.append(name) or load(name)  # type: ignore[func-returns-value]

        found = model.alike(model)

    assert len(loaded) == len(found) == n_kinds
    assert [name for _, names in found for name in names] == list(model)
    assert loaded == [names[0] for _, names in found]


@pytest.mark.parametrize(("write", "n_kinds"), FILES, ids=["gguf", "qfmt", "safetensors"])
def test_what_is_listed_of_a_tensor_is_its_own(  # type: ignore[no-untyped-def]
    write, n_kinds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)

    assert main(["inspect", str(path), "--json"]) == 0

    listed = json.loads(capsys.readouterr().out)["tensors"]
    with qconvert.open(path) as model:
        own = [(name, list(t.shape), t.scheme.name, t.layout, t.n_bytes) for name, t in model.items()]
    assert [(t["name"], t["shape"], t["scheme"], t["layout"], t["n_bytes"]) for t in listed] == own


def test_weights_with_and_without_a_second_scale_are_not_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    infos = [made.info("a.weight", [64], 40, 0), made.info("a.scale", [1], 0, 64), made.info("b.weight", [64], 40, 96)]
    path.write_bytes(made.gguf([made.ARCH], infos, bytes(160)))

    with qconvert.open(path) as model:
        found = [(names, len(tensor.parts)) for tensor, names in model.alike(model)]

    assert found == [(["a.weight"], 2), (["b.weight"], 1)]


def test_where_nothing_tells_kinds_each_tensor_is_its_own(tmp_path: Path) -> None:
    qformat.save(tmp_path / "a.qfmt", {name: np.zeros(4, np.float32) for name in "ab"})

    with qformat.open(tmp_path / "a.qfmt") as model:
        model.kind_of = str
        found = model.alike("ab")

    assert [names for _, names in found] == [["a"], ["b"]]


NAMES = ['"', '""', "a\nb", "\\", "é", "\U0001f600", ""]


def test_a_listing_is_spelled_as_json_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qformat.save(tmp_path / "a.qfmt", {name: np.zeros(len(name) % 2, np.float32) for name in NAMES})

    assert main(["inspect", str(tmp_path / "a.qfmt"), "--json"]) == 0

    printed = capsys.readouterr().out
    facts = json.loads(printed)
    assert printed == json.dumps(facts, indent=1) + "\n"
    assert [tensor["name"] for tensor in facts["tensors"]] == NAMES


def test_a_listing_of_nothing_is_an_empty_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qformat.save(tmp_path / "a.qfmt", {"a": np.zeros(1, np.float32)})

    assert main(["inspect", str(tmp_path / "a.qfmt"), "--json", "--include", "b"]) == 0

    printed = capsys.readouterr().out
    assert printed == json.dumps(json.loads(printed), indent=1) + "\n"
    assert printed.endswith('"tensors": []\n}\n')
