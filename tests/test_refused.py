"""Packed weights that are refused by name, and arrays that are parts of something that nothing here reads."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qconvert
from handmade_checkpoint import checkpoint, stored
from numpy.typing import NDArray
from qfmt.__main__ import main

from qformat.errors import FileError

WORDS = np.zeros((2, 2), np.int32)
HALVES = np.zeros((2, 2), np.float16)


def refused(folder: Path) -> str:
    """Open a folder, which must be refused in one line, and give it."""
    with pytest.raises(FileError) as caught:
        qconvert.open(folder)
    line = str(caught.value)
    assert line.startswith(str(folder))
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("suffix", "name", "why"),
    [
        ("q_weight", "EXL2", "mixed widths"),
        ("q_invperm", "EXL2", "mixed widths"),
        ("trellis", "EXL3", "Hadamard"),
        ("suh", "EXL3", "Hadamard"),
        ("codebooks", "AQLM", "learned codebooks"),
        ("Qidxs", "QuIP#", "lattice"),
        ("centroids.weight", "VPTQ", "learned codebooks"),
        ("dense_weights", "SpQR", "outliers"),
        ("tables2", "HIGGS", "Hadamard"),
        ("bitmask", "sparse compressed-tensors", "left out"),
        ("weights_block_scaling_factor_interleaved", "swizzled scales", "order of one kernel"),
        ("weight_scale_swizzled", "swizzled scales", "order of one kernel"),
        ("weights_scaling_factor", "TensorRT-LLM", "laid out for one engine"),
    ],
)
def test_an_array_that_only_one_format_has_is_refused_by_its_name(suffix: str, name: str, why: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", {"norm.weight": HALVES, f"layer.proj.{suffix}": WORDS})

    line = refused(folder)

    assert f"tensor 'layer.proj.{suffix}': is {name}, which is not read: " in line
    assert why in line


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"quant_method": "exl2"}, "EXL2"),
        ({"quant_method": "exl3"}, "EXL3"),
        ({"quant_method": "aqlm"}, "AQLM"),
        ({"quant_method": "vptq"}, "VPTQ"),
        ({"quant_method": "spqr"}, "SpQR"),
        ({"quant_method": "higgs"}, "HIGGS"),
        ({"quant_method": "fp_quant"}, "FP-Quant"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "sparse compressed-tensors"),
        (
            {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparse compressed-tensors",
        ),
    ],
)
def test_a_config_that_names_a_refused_format_is_enough(said: dict[str, Any], name: str, tmp_path: Path) -> None:
    line = refused(checkpoint(tmp_path / "a", {"w": HALVES}, {"quantization_config": said}))

    assert f"is {name}, which is not read: " in line


def test_a_checkpoint_for_an_engine_is_refused(tmp_path: Path) -> None:
    config = {"quantization": {"quant_algo": "FP8"}, "mapping": {"world_size": 1}}

    assert "is TensorRT-LLM, which is not read" in refused(checkpoint(tmp_path / "a", {"w": HALVES}, config))


def test_a_folder_of_engines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rank0.engine").write_bytes(b"ftrt" + bytes(60))

    assert "'rank0.engine': a compiled TensorRT engine, which no other program reads" in refused(tmp_path)


def test_an_engine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rank0.engine").write_bytes(b"ftrt" + bytes(60))

    assert "found a compiled TensorRT engine, which no other program reads" in refused(tmp_path / "rank0.engine")


@pytest.mark.parametrize("name", ["qmodel.pt", "pytorch_model.bin"])
def test_pickles_are_refused_unread(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"w": 1}))

    assert f"only '{name}': pickled weights run code when they are read" in refused(tmp_path)
    assert "pickle" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("said", "found"),
    [("evil", "quant_method 'evil'"), (4, "quant_method a number"), (["gptq"], "quant_method a list")],
)
def test_an_unknown_method_is_refused_with_those_that_are_known(said: object, found: str, tmp_path: Path) -> None:
    line = refused(checkpoint(tmp_path / "a", {"w": HALVES}, {"quantization_config": {"quant_method": said}}))

    assert f"{found}, expected one of gptq, " in line
    assert "--assume dense opens the arrays as they lie" in line


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    line = refused(checkpoint(tmp_path / "a", {"w": HALVES}, {"quantization_config": [4]}))

    assert "quantization_config is a list, expected an object" in line


@pytest.mark.parametrize("suffix", ["qweight", "g_idx", "weight_scale", "absmax", "SCB", "W_q"])
def test_a_part_without_the_others_is_refused(suffix: str, tmp_path: Path) -> None:
    line = refused(checkpoint(tmp_path / "a", {f"m.{suffix}": WORDS}))

    assert f"tensor 'm.{suffix}': is a part of a packed weight whose other arrays are missing or not understood" in line


def test_arrays_that_the_config_calls_something_else_are_refused(tmp_path: Path) -> None:
    said = {"quantization_config": {"quant_method": "mxfp4"}}
    arrays: dict[str, NDArray[Any]] = {"m.qweight": WORDS, "m.qzeros": WORDS, "m.scales": HALVES}

    assert "and the config says 'mxfp4'" in refused(checkpoint(tmp_path / "a", arrays, said))


def test_dense_arrays_may_have_any_config_of_a_known_method(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", {"m.weight": HALVES}, {"quantization_config": {"quant_method": "gptq"}})

    with qconvert.open(folder) as model:
        assert (model.dialects, model.dialect_of("m.weight")) == (("dense",), "dense")


def test_what_is_refused_can_be_seen_as_the_arrays_that_it_is(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", {"m.trellis": WORDS}, {"quantization_config": {"quant_method": "exl3"}})

    with qconvert.open(folder, assume=["dense"]) as model:
        assert list(model) == ["m.trellis"]
        assert model["m.trellis"].shape == (2, 2)


def test_inspect_of_a_refused_folder_is_one_line_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(tmp_path / "a", {"m.trellis": WORDS})

    code = main(["inspect", str(folder)])

    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"qfmt: {folder}: tensor 'm.trellis': is EXL3, which is not read")


def test_inspect_assuming_arrays_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(tmp_path / "a", {"m.trellis": WORDS})

    assert main(["inspect", str(folder), "--assume", "dense", "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert [(t["name"], t["dialect"], t["bits"], t["group_size"]) for t in facts["tensors"]] == [
        ("m.trellis", "dense", 32, None)
    ]


def test_what_is_refused_can_be_divided_and_joined_as_arrays(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {"m.trellis": WORDS, "m.suh": HALVES}
    folder = checkpoint(tmp_path / "a", arrays, {"quantization_config": {"quant_method": "exl3"}})

    assert main(["split", str(folder), str(tmp_path / "b"), "--split-max-tensors", "1", "--assume", "dense"]) == 0
    assert main(["merge", str(tmp_path / "b"), str(tmp_path / "c"), "--assume", "dense"]) == 0

    assert stored(tmp_path / "c") == stored(folder)
    assert (tmp_path / "c" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
