"""What a plan says is what a conversion does: what it would refuse, `plan` refuses, with the same words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qconvert
from command import run_json
from conftest import VECTORS
from qfmt.__main__ import main
from safetensors.numpy import save_file

HF = VECTORS / "hf"
REFUSED = [
    ("mlx/nvfp4-global-scale", "gguf", "exact", "rounded", "scales rounds"),  # `weight` has no module for a second scale
    ("compressed-tensors/w2a16-g64-asym", "gptq:v1", "rounded", "refused", "10 zero points of 0, which readers that add"),
    ("compressed-tensors/w4a16-g128-asym", "gptq:v1", "requantize", "refused", "5 zero points of 0, which readers that add"),
    ("quanto/qfloat8", "gguf:q8_0", "requantize", "refused", "weight 2560 is nan, which nothing quantizes anew"),
    ("torchao/float8wo", "gguf:mxfp4", "requantize", "refused", "is nan, which nothing quantizes anew"),
    ("gpt-oss-mxfp4/experts", "gguf:q8_0", "requantize", "refused", "is inf, which nothing quantizes anew"),
]


def lines(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, list[dict[str, Any]]]:
    code, facts, _ = run_json(capsys, *args)
    return code, facts["tensors"]


@pytest.mark.parametrize(("source", "target", "allow", "verdict", "reason"), REFUSED)
def test_what_convert_refuses_the_plan_says(
    source: str, target: str, allow: str, verdict: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("out.gguf" if target.startswith("gguf") else "out")
    planned, plan = lines(capsys, "plan", str(HF / source), "--to", target)
    converted, report = lines(capsys, "convert", str(HF / source), str(out), "--to", target, "--allow", allow)
    assert [(line["name"], line["verdict"]) for line in report] == [(line["name"], line["verdict"]) for line in plan]
    wrong = [line for line in report if line["verdict"] == verdict and reason in line["reason"]]
    assert wrong
    assert not any("requantize" in line["nearest"] for line in wrong)
    assert (planned, converted, list(tmp_path.iterdir())) == (0, 1, [])


def test_without_a_place_for_its_second_scale_a_weight_takes_the_plain_type(tmp_path: Path) -> None:
    source, out = HF / "mlx" / "nvfp4-global-scale", tmp_path / "out.gguf"
    assert main(["convert", str(source), str(out), "--to", "gguf", "--allow", "rounded"]) == 0
    with qconvert.open(out) as written:
        assert written["weight"].scheme.name == "nvfp4"
        assert [param.name for param in written["weight"].scheme.params] == ["scales"]


def test_a_name_too_long_for_the_file_is_refused_by_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a" * 64: np.ones((2, 32), np.float32)}, tmp_path / "a.safetensors")
    _, (line,) = lines(capsys, "plan", str(tmp_path / "a.safetensors"), "--to", "gguf")
    assert (line["verdict"], line["field"]) == ("refused", "name")
    assert line["reason"].startswith("name of 64 bytes, gguf holds at most 63")
