"""What no target can hold is refused in one line that names tensor, field, index, value and what would work.

Nothing is written. Where the first offender lies is computed here, from the arrays that other software stored.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors
from conftest import VECTORS
from numpy.typing import NDArray
from qfmt.__main__ import main

HF = VECTORS / "hf"
NAMES = {"I32": np.int32, "F16": np.float16, "F32": np.float32, "U8": np.uint8}


class Refusal(NamedTuple):
    """A source, a target, and what must be said of the first offender."""

    source: Path
    target: str
    tensor: str
    field: str
    offender: str
    nearest: str


def arrays(folder: Path) -> dict[str, NDArray[Any]]:
    stored = safetensors.deserialize((folder / "model.safetensors").read_bytes())
    known = [(name, each) for name, each in stored if each["dtype"] in NAMES]
    return {name: np.frombuffer(bytes(each["data"]), NAMES[each["dtype"]]).reshape(each["shape"]) for name, each in known}


def act_order(target: str, nearest: str) -> Callable[[Path], Refusal]:
    """GPTQ whose columns are grouped in any order: the first one that is not in the group of its neighbours."""

    def make(folder: Path) -> Refusal:
        source = HF / "gptq" / "v2-4bit-g32-asym-descact"
        ((name, index),) = ((name, array) for name, array in arrays(source).items() if name.endswith(".g_idx"))
        column = int(np.flatnonzero(index != np.repeat(index[::32], 32))[0])
        tensor = name.replace(".g_idx", ".weight")
        return Refusal(source, target, tensor, "g_idx", rf"g_idx\[{column}\] is {index[column]}\b", nearest)

    return make


def nf4(folder: Path) -> Refusal:
    """NF4: the first weight, whose level is not a whole number of anything."""
    source = HF / "bitsandbytes" / "nf4-b64"
    stored = arrays(source)
    tensor = next(name for name in stored if name.endswith(".weight"))
    level = stored[f"{tensor}.quant_map"][stored[tensor].reshape(-1)[0] >> 4]
    return Refusal(source, "gguf", tensor, "codes", rf"level {level:g} at weight 0\b", "gguf:q8_0 with --allow requantize")


def unlucky_zeros(folder: Path) -> Refusal:
    """4-bit GPTQ with zero points: the first group of 32 in which -zero times scale is no float16."""
    source = HF / "gptq" / "v2-4bit-g64-asym"
    stored = arrays(source)
    module = next(name for name in stored if name.endswith(".scales")).removesuffix(".scales")
    scales, words = stored[f"{module}.scales"], stored[f"{module}.qzeros"]
    zeros = (words[..., None] >> np.arange(0, 32, 4) & 15).reshape(scales.shape)
    biases = np.repeat(-zeros.astype(np.float32) * scales, 2, axis=0).T.reshape(-1)  # by row, two groups of 32 in one of 64
    first = int(np.flatnonzero(biases.astype(np.float16) != biases)[0])
    offender = rf"biases\[{first}\] = {re.escape(str(float(biases[first])))}"
    return Refusal(source, "gguf:q4_1", f"{module}.weight", "biases", offender, "exact as gguf:q5_0")


def exponent_255(target: str, nearest: str) -> Callable[[Path], Refusal]:
    """MXFP4 with the scale byte that means NaN to some."""

    def make(folder: Path) -> Refusal:
        given = HF / "gpt-oss-mxfp4" / "experts"
        raw = bytearray((given / "model.safetensors").read_bytes())
        n_header = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + n_header])
        name = next(name for name in header if name.endswith("gate_up_proj_scales"))
        raw[8 + n_header + header[name]["data_offsets"][0] + 5] = 255
        (folder / "experts").mkdir()
        (folder / "experts" / "model.safetensors").write_bytes(raw)
        (folder / "experts" / "config.json").write_bytes((given / "config.json").read_bytes())
        tensor = name.removesuffix("_scales")
        return Refusal(folder / "experts", target, tensor, "scales", r"scales\[5\] is the byte 255\b", nearest)

    return make


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(act_order("gguf", "gguf:q8_0 with --allow requantize"), id="act-order-gguf"),
        pytest.param(act_order("awq", "exact as qfmt"), id="act-order-awq"),
        pytest.param(act_order("mlx", "exact as qfmt"), id="act-order-mlx"),
        pytest.param(act_order("hqq", "exact as qfmt"), id="act-order-hqq"),
        pytest.param(nf4, id="nf4"),
        pytest.param(unlucky_zeros, id="unlucky-zeros"),
        pytest.param(exponent_255("gguf", "exact as qfmt"), id="exponent-255-gguf"),
        pytest.param(exponent_255("mlx", "exact as qfmt"), id="exponent-255-mlx"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_its_first_offender(
    make: Callable[[Path], Refusal], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = make(tmp_path)
    before = listing(tmp_path)

    dst = tmp_path / ("out.gguf" if refusal.target.startswith("gguf") else "out")
    code = main(["convert", str(refusal.source), str(dst), "--to", refusal.target])
    said = capsys.readouterr().err

    assert (code, said.count("\n")) == (1, 1)
    assert f"tensor '{refusal.tensor}' field '{refusal.field}': " in said
    assert re.search(refusal.offender, said)
    assert f"nearest: {refusal.nearest}" in said
    assert listing(tmp_path) == before


def listing(folder: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_size) for path in folder.rglob("*"))
