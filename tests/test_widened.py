"""What becomes float32 on the way to a GGUF file says so, and is not said to be copied."""

from pathlib import Path

import numpy as np
import pytest
import qconvert
from conftest import VECTORS
from qconvert.architectures.rewriting import how_float, widened

from qformat import rules
from qformat.tensor import from_array

SOURCE = VECTORS / "hf/tiny-llama/bf16"


def test_norms_of_a_checkpoint_in_halves_are_said_to_be_widened(tmp_path: Path) -> None:
    report = qconvert.convert(SOURCE, tmp_path / "a.gguf")
    said = {item.name: (item.verdict.verdict, item.verdict.reason) for item in report.plan.items}
    norms = {name for name in said if "norm" in name}
    assert norms
    assert {said[name] for name in norms} == {("exact", "widened to float32; blocks copied")}
    assert not any("widened" in reason for name, (_, reason) in said.items() if name not in norms)


@pytest.mark.parametrize(
    ("name", "shape", "kind", "how"),
    [
        ("blk.0.attn_norm.weight", (64,), np.float16, "widened to float32"),
        ("blk.0.attn_norm.weight", (64,), np.float32, ""),
        ("blk.0.attn_q.weight", (4, 64), np.float16, ""),
        ("blk.0.ffn_gate_inp.weight", (4, 64), np.float16, "widened to float32"),
        ("blk.0.ffn_gate_inp.weight", (4, 64), None, "decoded to float32"),
    ],
)
def test_how_a_tensor_becomes_float32(name: str, shape: tuple[int, ...], kind: type | None, how: str) -> None:
    values = np.random.default_rng(3).normal(0, 1, shape).astype(kind or np.float32)
    tensor = rules.quantize(values, "int4_g32") if kind is None else from_array(values)
    assert how_float(name, tensor, len(shape)) == how
    if how:
        made = widened(tensor)
        assert (made.scheme.name, made.shape) == ("float32", shape)
        assert made.dequantize().tobytes() == tensor.dequantize().tobytes()
