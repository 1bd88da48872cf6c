"""compressed-tensors reads what is written for it, packs AWQ's weights as we do, and chooses exponents as torchao does."""

import json
from pathlib import Path
from typing import Any

import mxfp4
import numpy as np
import pytest
import qconvert
import torch
from carried import converted
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import generate_mx_scales
from compressed_tensors.utils.match import match_name
from exact_ways import Make, ways_to
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

HF = Path(__file__).parents[2] / "spec/vectors/hf"
VARIANTS = sorted((HF / "compressed-tensors").iterdir())
GPTQ = sorted(path for path in (HF / "gptq").iterdir() if "descact" not in path.name)  # an order is no longer read
TARGETS = ["qfmt:int4-g32", "qfmt:uint4-g32", "qfmt:int8", "qfmt:mxfp4"]
# The peer no longer reads columns in an order of their own, and no target offers float8 for integers.
LEFT_OUT = {"columns out of order with zeros that are the middle", "uint4 whose zeros leave few bits as e4m3"}
WAYS = {name: way for name, way in ways_to("compressed-tensors").items() if name not in LEFT_OUT}
Tensors = dict[str, torch.Tensor]


def schemes(folder: Path) -> QuantizationConfig:
    """Read a folder's config with the peer's own model of it."""
    return QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])


def scheme_of(config: QuantizationConfig, module: str) -> QuantizationScheme:
    groups = list(config.config_groups.values())
    named = [group for group in groups if any(match_name(module, target) for target in group.targets)]
    return (named or [group for group in groups if "Linear" in group.targets])[0]


def decompressed(folder: Path) -> Tensors:
    """Decode every module of a folder with the peer."""
    config, stored = schemes(folder), load_file(folder / "model.safetensors")
    found = {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in stored if name.endswith(".weight_scale")):
        scheme = scheme_of(config, module)
        held = {name.rpartition(".")[2]: tensor for name, tensor in stored.items() if name.rpartition(".")[0] == module}
        compressor = BaseCompressor.get_value_from_registry(scheme.format)
        found[f"{module}.weight"] = compressor.decompress(held, scheme)["weight"]
    return found


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.name)
def test_what_is_written_decodes_as_the_stored_checkpoint_does(path: Path, tmp_path: Path) -> None:
    qconvert.convert(path, tmp_path / "folder", to="compressed-tensors")

    found, expected = decompressed(tmp_path / "folder"), load_file(path / "expected.safetensors")

    assert found.keys() == {name for name in expected if not name.endswith(".float32")}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("path", GPTQ, ids=lambda path: path.name)
def test_weights_of_gptq_are_the_same_here(path: Path, tmp_path: Path) -> None:
    qconvert.convert(path, tmp_path / "folder", to="compressed-tensors:pack")

    with qconvert.open(path) as model:
        for name, tensor in decompressed(tmp_path / "folder").items():
            kind = str(tensor.dtype).removeprefix("torch.")
            assert torch.equal(tensor, torch.from_numpy(model[name].dequantize(kind)))


@pytest.mark.parametrize("variant", ["g32", "g128"])
def test_awq_weights_are_packed_as_its_converter_packs_them(variant: str, tmp_path: Path) -> None:
    path = next(path for path in sorted((HF / "awq").iterdir()) if variant in path.name and "gemv" not in path.name)
    said = json.loads((path / "config.json").read_text())["quantization_config"]
    expected = AutoAWQConverter.from_autoawq_config(said).process(load_file(path / "model.safetensors"))

    qconvert.convert(path, tmp_path / "folder", to="compressed-tensors:pack")

    found = load_file(tmp_path / "folder/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("target", TARGETS)
def test_a_whole_model_loads_with_the_same_weights(target: str, tmp_path: Path) -> None:
    source, sizes = tmp_path / "source", {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 64}
    torch.manual_seed(5)
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, num_attention_heads=4, **sizes)).save_pretrained(source)
    qconvert.quantize(source, tmp_path / "model.qfmt", to=target, exclude=("*embed*", "lm_head*"))
    qconvert.convert(tmp_path / "model.qfmt", tmp_path / "folder", to="compressed-tensors")

    model: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "folder", dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )

    found = model.state_dict()
    with qconvert.open(tmp_path / "model.qfmt") as packed:
        for name, tensor in packed.items():  # the peer multiplies in the type of the scales, of MXFP4 in bfloat16
            kind = "float32" if tensor.scheme.is_dense else "bfloat16" if "mxfp4" in target else "float16"
            assert np.array_equal(found[name].numpy(), tensor.dequantize(kind).astype(np.float32)), name


def test_the_exponents_of_groups_that_are_not_zero_are_those_of_mode_even() -> None:
    stored = np.load(mxfp4.STORED)
    maxima = np.abs(stored["x"]).max(axis=1)

    scales = generate_mx_scales(torch.from_numpy(maxima[maxima > 0])).numpy()

    assert scales.tolist() == stored["torchao_even.scales"][maxima > 0].tolist()


@pytest.mark.parametrize(("make", "target"), WAYS.values(), ids=WAYS)
def test_what_is_exact_has_the_values_of_its_source(make: Make, target: str, tmp_path: Path) -> None:
    """The peer decodes in the type of the scales, of small floats in bfloat16."""
    tensor = make()

    found = decompressed(converted(tensor, target, tmp_path))["m.weight"]

    expected = tensor.dequantize(str(found.dtype).removeprefix("torch."))
    assert np.array_equal(found.float().numpy(), expected.astype(np.float32))
