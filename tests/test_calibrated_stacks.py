"""Calibration of experts that a GGUF stacks: a stack is no matrix that one of its experts' inputs speak of."""

from pathlib import Path

import numpy as np
import pytest
import qconvert
from handmade_models import qwen3
from qconvert.quantizing import quantize
from safetensors.numpy import save_file

import qformat
from qformat import Statistics, UsageError

STACK, MATRIX = "blk.0.ffn_gate_exps.weight", "model.layers.0.mlp.experts.{}.gate_proj.weight"
QUERIES = "model.layers.0.self_attn.q_proj.weight"
N_EXPERTS = 4
SHAPES = {"a.weight": (4, 96), "b.weight": (4, 64)}  # one of them no whole blocks of NF4


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Give a folder of a model with experts."""
    return qwen3(True).folder(tmp_path / "src")


def known(n_cols: int, numbers: range) -> dict[str, Statistics]:
    """Make statistics of some experts' inputs, each large in other columns."""
    rng, found = np.random.default_rng(0), {}
    for number in numbers:
        inputs = rng.standard_normal((50, n_cols))
        inputs[:, number::N_EXPERTS] *= 30
        found |= qformat.calibrate([{MATRIX.format(number): inputs}])
    return found


def weights(src: Path) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Give the experts' matrices."""
    with qconvert.open(src) as model:
        return [model[MATRIX.format(number)].dequantize() for number in range(N_EXPERTS)]


@pytest.mark.parametrize("method", ["gptq", "mse"])
@pytest.mark.parametrize("numbers", [range(2, 3), range(N_EXPERTS - 1)], ids=["one", "all but one"])
def test_inputs_of_some_experts_are_not_those_of_the_stack(src: Path, tmp_path: Path, method: str, numbers: range) -> None:
    file = tmp_path / "calibration.safetensors"
    with qconvert.open(src) as model:
        n_cols = model[QUERIES].n_cols
    made = known(weights(src)[0].shape[1], numbers)
    qconvert.write_calibration(file, made | {QUERIES: known(n_cols, range(1))[MATRIX.format(0)]})

    with pytest.raises(UsageError, match="has no calibration for it: --exclude it") as caught:
        quantize(src, tmp_path / "a.gguf", "gguf:q4_0", method=method, include=[STACK, "blk.0.attn_q.weight"], calibration=file)

    assert caught.value.tensor == STACK
    assert not (tmp_path / "a.gguf").exists()


def test_a_stack_takes_the_importance_of_each_of_its_experts(src: Path, tmp_path: Path) -> None:
    file, matrices = tmp_path / "calibration.safetensors", weights(src)
    made = known(matrices[0].shape[1], range(N_EXPERTS))
    qconvert.write_calibration(file, made)

    quantize(src, tmp_path / "a.gguf", "gguf:q4_0", method="mse", include=[STACK], calibration=file)

    each = [
        qformat.quantize(matrix, "gguf:q4_0", method="mse", calibration=made[MATRIX.format(number)]).dequantize()
        for number, matrix in enumerate(matrices)
    ]
    with qconvert.open(tmp_path / "a.gguf") as written:
        assert written[STACK].dequantize().tobytes() == np.stack(each).tobytes()
    plain = qformat.quantize(matrices[0], "gguf:q4_0", method="mse").dequantize()
    assert each[0].tobytes() != plain.tobytes()


def test_a_stack_is_not_rounded_by_the_inputs_of_one_expert(src: Path, tmp_path: Path) -> None:
    file = tmp_path / "calibration.safetensors"
    qconvert.write_calibration(file, known(weights(src)[0].shape[1], range(N_EXPERTS)))

    with pytest.raises(UsageError, match="stack of 4 matrices, each with calibration of its own, where gptq takes one for all"):
        quantize(src, tmp_path / "a.gguf", "gguf:q4_0", method="gptq", include=[STACK], calibration=file)


def test_a_weight_that_is_there_by_two_names_is_refused(src: Path, tmp_path: Path) -> None:
    file, names = tmp_path / "calibration.safetensors", ("blk.0.attn_q.weight", QUERIES)
    with qconvert.open(src) as model:
        statistics = known(model[names[1]].n_cols, range(1))[MATRIX.format(0)]
    qconvert.write_calibration(file, dict.fromkeys(names, statistics))

    with pytest.raises(UsageError, match="calibration of one weight by 2 names, 'blk") as caught:
        quantize(src, tmp_path / "a.gguf", "gguf:q4_0", method="gptq", include=[names[0]], calibration=file)

    assert caught.value.tensor == names[1]


def test_what_is_not_known_is_rounded_to_nearest_by_a_method_that_cannot_make_the_type(tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "calibration.safetensors"
    src = tmp_path / "model.safetensors"
    save_file({name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}, src)
    qconvert.write_calibration(file, qformat.calibrate([{"b.weight": rng.standard_normal((50, 64))}]))

    report, _ = quantize(src, tmp_path / "a.qfmt", "qfmt:nf4", method="gptq", calibration=file, allow_uncalibrated=True)

    assert {item.name: "not calibrated" in item.verdict.reason for item in report.plan.items} == {
        "a.weight": True,
        "b.weight": False,
    }
