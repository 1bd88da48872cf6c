"""ModelOpt makes the stored MXFP4 groups again, byte for byte, and decodes what is written for it to the same values."""

from pathlib import Path

import mxfp4
import numpy as np
import pytest
import qconvert
import torch
from carried import converted
from exact_ways import Make, ways_to, with_one_zero
from modelopt.torch.export.quant_utils import pack_int4_in_uint8
from modelopt.torch.quantization.qtensor import MXFP4QTensor, NVFP4QTensor
from safetensors.torch import load_file

HF = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "hf"
WAYS = {name: way for name, way in ways_to("modelopt").items() if way[1] in ("modelopt:nvfp4", "modelopt:mxfp4")}


def test_quantizing_the_stored_input_gives_the_stored_groups() -> None:
    stored = np.load(mxfp4.STORED)

    scales, codes = mxfp4.modelopt(stored["x"])

    assert scales.tobytes() == stored["modelopt.scales"].tobytes()
    assert codes.tobytes() == stored["modelopt.codes"].tobytes()


def test_nvfp4_that_comes_from_elsewhere_decodes_in_modelopt_to_the_same_values(tmp_path: Path) -> None:
    qconvert.convert(HF / "mlx" / "nvfp4", tmp_path / "a", to="modelopt:nvfp4")

    arrays = load_file(tmp_path / "a" / "model.safetensors")
    with qconvert.open(tmp_path / "a") as model:
        for name in model:
            packed, scale = arrays[name], arrays[f"{name}_scale"]
            theirs = NVFP4QTensor(torch.Size(model[name].shape), torch.float32, packed).dequantize(
                torch.float32, scale=scale, double_scale=arrays[f"{name}_scale_2"], block_sizes={-1: 16}
            )
            assert np.array_equal(theirs.numpy(), model[name].dequantize())


def test_mxfp4_that_comes_from_elsewhere_decodes_in_modelopt_to_the_same_values(tmp_path: Path) -> None:
    qconvert.convert(HF / "mlx" / "mxfp4", tmp_path / "a", to="modelopt:mxfp4")

    arrays = load_file(tmp_path / "a" / "model.safetensors")
    with qconvert.open(tmp_path / "a") as model:
        for name in model:
            packed, scale = arrays[name], arrays[f"{name}_scale"]
            theirs = MXFP4QTensor(torch.Size(model[name].shape), torch.float32, packed).dequantize(
                torch.float32, scale=scale, block_sizes={-1: 32}
            )
            assert np.array_equal(theirs.numpy(), model[name].dequantize())


def test_row_pairs_are_those_that_modelopt_packs(tmp_path: Path) -> None:
    source = HF / "gptq" / "v1-4bit-g64-sym"
    qconvert.convert(source, tmp_path / "a", to="modelopt:w4a16-awq")

    arrays = load_file(tmp_path / "a" / "model.safetensors")
    with qconvert.open(source) as model:
        for name in model:
            scale = arrays[f"{name}_scale"].float()
            weights = torch.from_numpy(model[name].dequantize())
            assert torch.equal(pack_int4_in_uint8(weights, scale, 64), arrays[name])


@pytest.mark.parametrize(("make", "target"), WAYS.values(), ids=WAYS)
def test_what_is_exact_has_the_values_of_its_source(make: Make, target: str, tmp_path: Path) -> None:
    tensor = make()

    arrays = load_file(converted(tensor, target, tmp_path) / "model.safetensors")
    packed, shape = arrays["m.weight"], torch.Size(tensor.shape)
    if target == "modelopt:nvfp4":
        theirs = NVFP4QTensor(shape, torch.float32, packed).dequantize(
            torch.float32, scale=arrays["m.weight_scale"], double_scale=arrays["m.weight_scale_2"], block_sizes={-1: 16}
        )
    else:
        theirs = MXFP4QTensor(shape, torch.float32, packed).dequantize(
            torch.float32, scale=arrays["m.weight_scale"], block_sizes={-1: 32}
        )
    assert with_one_zero(theirs.numpy()).tobytes() == with_one_zero(tensor.dequantize()).tobytes()
