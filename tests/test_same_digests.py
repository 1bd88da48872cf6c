"""One model in six packed forms says the same values: the digests of `qfmt hash` are equal, tensor by tensor.

The model is tiny-llama in symmetric 4-bit integers, groups of 32, float16 scales. What is expected is computed apart: the
gguf package decodes the Q4_0 file, its table gives the names back, numpy puts rows in their order, and the digest is put
together as spec/qfmt.md says.
"""

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import gguf_as_checkpoint
import numpy as np
import pytest
from blake3 import blake3
from command import run_json
from conftest import VECTORS
from numpy.typing import NDArray
from qfmt.__main__ import main

SOURCE = VECTORS / "hf" / "tiny-llama" / "bf16"
CONFIG = json.loads((SOURCE / "config.json").read_text())
N_PACKED = 4 * 7 + 2  # matrices of four layers, the embedding and the output
# target: what it writes
TARGETS = {
    "gptq:v2": "gptq",
    "awq": "awq",
    "compressed-tensors": "compressed-tensors",
    "mlx": "mlx",
    "gguf:q4_0": "q4_0.gguf",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantize the model, and convert it to every form."""
    made = tmp_path_factory.mktemp("forms")
    assert main(["quantize", str(SOURCE), str(made / "int4.qfmt"), "--to", "qfmt:int4-g32"]) == 0
    for target, name in TARGETS.items():
        assert main(["convert", str(made / "int4.qfmt"), str(made / name), "--to", target]) == 0
    return made


def facts(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    code, found, err = run_json(capsys, *args)
    assert code == 0, err
    return found


def digest_of(values: NDArray[np.float32]) -> str:
    header = struct.pack(f"<I{values.ndim}Q", values.ndim, *values.shape)
    words = np.where(np.isnan(values), np.float32(np.nan), values + np.float32(0))  # +0 takes the sign from -0
    return blake3(b"qfmt-value/1\0" + header + words.astype("<f4").tobytes()).hexdigest()


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, str]:
    """Digest what the gguf package decodes, by the names of the checkpoint."""
    values = gguf_as_checkpoint.decode(gguf.GGUFReader(folder / "q4_0.gguf").tensors, CONFIG)
    found = {name: digest_of(matrix) for name, matrix in values.items() if matrix.ndim == 2}
    assert len(found) == N_PACKED
    return found


@pytest.mark.parametrize("form", ["int4.qfmt", *TARGETS.values()])
def test_every_form_of_a_model_has_the_same_digests(
    form: str, folder: Path, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("--names", "hf") if form.endswith(".gguf") else ()
    found = facts(capsys, "hash", folder / form, *names)["tensors"]

    assert {name: digest for name, digest in found.items() if name in expected} == expected


@pytest.mark.parametrize("form", ["int4.qfmt", *TARGETS.values()])
def test_in_every_form_the_matrices_are_packed(form: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = facts(capsys, "inspect", folder / form)["tensors"]

    assert [tensor["bits"] for tensor in listed if len(tensor["shape"]) == 2] == [4] * N_PACKED


def test_the_rows_of_q_and_k_lie_otherwise_in_a_gguf_file(
    folder: Path, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = facts(capsys, "hash", folder / "q4_0.gguf")["tensors"]

    assert own["blk.0.attn_v.weight"] == expected["model.layers.0.self_attn.v_proj.weight"]
    assert own["blk.0.attn_q.weight"] != expected["model.layers.0.self_attn.q_proj.weight"]
    assert own["blk.0.attn_k.weight"] != expected["model.layers.0.self_attn.k_proj.weight"]


@pytest.mark.parametrize("target", [target for target in TARGETS if not target.startswith("gguf")])
def test_a_folder_made_of_the_gguf_file_has_them_too(
    target: str, folder: Path, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts(capsys, "convert", folder / "q4_0.gguf", tmp_path / "back", "--to", target)
    found = facts(capsys, "hash", tmp_path / "back")["tensors"]

    assert {name: digest for name, digest in found.items() if name in expected} == expected
    assert len(found) == N_PACKED + 9


@pytest.mark.parametrize("target", [target for target in TARGETS if not target.startswith("gguf")])
def test_the_gguf_file_is_the_same_whatever_it_is_made_of(
    target: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts(capsys, "convert", folder / TARGETS[target], tmp_path / "made.gguf", "--to", "gguf:q4_0")

    made, expected = (gguf.GGUFReader(path).tensors for path in (tmp_path / "made.gguf", folder / "q4_0.gguf"))
    assert {t.name: t.data.tobytes() for t in made} == {t.name: t.data.tobytes() for t in expected}
