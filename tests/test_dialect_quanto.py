"""optimum-quanto checkpoints: decoded, written back, and refused where their arrays do not fit one another."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
from carried import written_again
from conftest import VECTORS
from handmade_checkpoint import arrays, checkpoint, same_floats, stored
from numpy.typing import NDArray

import qformat
from qformat import reference
from qformat.errors import FileError, NotExact, UsageError
from qformat.formats import gguf
from qformat.formats.quanto import group_of
from qformat.tensor import from_values

FOLDER = VECTORS / "hf" / "quanto"
VARIANTS = sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))
WHOLE, FEW = ["qfloat8", "qint8"], ["qint2", "qint4"]
SHAPES = {"proj0.weight": (32, 256), "proj1.weight": (48, 128)}
RNG = np.random.default_rng(45)
CONFIG = {"quantization_config": {"quant_method": "quanto", "weights": "int4"}}
BF16 = ml_dtypes.bfloat16
Arrays = dict[str, NDArray[Any]]

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_weight = pytest.mark.parametrize("name", SHAPES)
few = pytest.mark.parametrize("variant", FEW)


def module(bits: int = 4, shape: tuple[int, int] = (10, 256), name: str = "m.up_proj") -> tuple[Arrays, NDArray[np.float32]]:
    """Make the arrays of a module, and the weights that they are, by plain NumPy."""
    group = 128 if shape[1] > 128 else shape[1]
    n_groups, slabs = shape[0] * shape[1] // group, 8 // bits
    codes = RNG.integers(0, 1 << bits, (n_groups, group))
    filled = np.zeros((-(-n_groups // slabs) * slabs, group), np.int64)
    filled[:n_groups] = codes
    packed = sum(slab << bits * i for i, slab in enumerate(filled.reshape(slabs, -1, group)))
    scale, shift = RNG.standard_normal((2, n_groups, 1)).astype(np.float16)
    weights = codes.astype(np.float32) * scale.astype(np.float32) - shift.astype(np.float32)
    found = {
        f"{name}.weight._data._data": np.asarray(packed, np.uint8),
        f"{name}.weight._scale": scale,
        f"{name}.weight._shift": shift,
    }
    return found, weights.reshape(shape)


def rounded(tensor: qformat.PackedTensor) -> NDArray[Any]:
    """Decode as quanto does, rounding to the type of the scales after the product and after the difference."""
    scales, biases = tensor.scales(), tensor.biases()
    assert scales is not None
    codes = tensor.codes().reshape(scales.size, -1)
    values = codes.astype(scales.dtype) * scales.reshape(-1, 1)
    return (values if biases is None else values - biases.reshape(-1, 1)).reshape(tensor.shape)


@pytest.mark.parametrize("variant", WHOLE)
@every_weight
def test_a_stored_weight_of_eight_bits_decodes_as_quanto_decodes_it(variant: str, name: str) -> None:
    expected = arrays(FOLDER / variant / "expected.safetensors")[name]

    with qconvert.open(FOLDER / variant) as model:
        assert model.dialects == ("quanto",)
        made = model[name].dequantize("bfloat16")

    assert same_floats(made.astype(np.float32), expected.astype(np.float32))


@few
@every_weight
def test_a_stored_weight_of_few_bits_rounded_twice_is_what_quanto_gives(variant: str, name: str) -> None:
    expected = arrays(FOLDER / variant / "expected.safetensors")[name]

    with qconvert.open(FOLDER / variant, shapes=SHAPES) as model:
        tensor = model[name]
        assert tensor.shape == SHAPES[name]
        assert rounded(tensor).tobytes() == expected.tobytes()


@few
def test_without_a_row_length_a_weight_is_listed_and_not_decoded(variant: str) -> None:
    with qconvert.open(FOLDER / variant) as model:
        tensor = model["proj0.weight"]
        assert (tensor.shape, tensor.n_weights) == ((64, 128), 32 * 256)
        with pytest.raises(UsageError, match=r"of unknown row length \(give --shape NAME=ROWS,COLUMNS\)"):
            tensor.dequantize()


@few
def test_without_a_row_length_a_weight_goes_nowhere_else(variant: str, tmp_path: Path) -> None:
    with pytest.raises(NotExact, match=r"of unknown row length \(give --shape .*\) has no codes that") as caught:
        qconvert.convert(FOLDER / variant, tmp_path / "made", to="mlx")

    assert "--allow" not in str(caught.value)
    assert qconvert.convert(FOLDER / variant, tmp_path / "made", to="mlx:f32", shapes=SHAPES).n_bytes


@every_variant
@pytest.mark.parametrize("through", ["quanto", "qfmt"])
def test_a_stored_checkpoint_is_written_again_array_for_array(variant: str, through: str, tmp_path: Path) -> None:
    made, counts = written_again(FOLDER / variant, "quanto", through, tmp_path)

    assert counts == {"same-bytes": 2}
    assert stored(made) == stored(FOLDER / variant)


@every_variant
def test_config_and_map_say_what_the_peer_said(variant: str, tmp_path: Path) -> None:
    said = json.loads((FOLDER / variant / "config.json").read_text())["quantization_config"]
    types = json.loads((FOLDER / variant / "golden.json").read_text())["quantization_map"]

    qconvert.convert(FOLDER / variant, tmp_path / "made", to="quanto")

    assert json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"] == said
    assert json.loads((tmp_path / "made" / "quanto_qmap.json").read_text()) == types


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("shape", [(10, 256), (5, 384), (7, 100), (1, 33)])
def test_a_module_made_by_hand_decodes_and_comes_back(bits: int, shape: tuple[int, int], tmp_path: Path) -> None:
    made, weights = module(bits, shape)
    said = {"quantization_config": {"quant_method": "quanto", "weights": f"int{bits}"}, "hidden_size": shape[1]}

    with qconvert.open(checkpoint(tmp_path / "m", made, said)) as model:
        tensor = model["m.up_proj.weight"]
        assert tensor.shape == shape
        assert tensor.dequantize().tobytes() == weights.tobytes()
        assert reference.decode(tensor).tobytes() == weights.tobytes()
    qconvert.convert(tmp_path / "m", tmp_path / "again", to="quanto")
    assert stored(tmp_path / "again") == stored(tmp_path / "m")


@pytest.mark.parametrize("signed", [np.int8, np.uint8])
def test_an_integer_shift_is_subtracted_before_scaling(signed: type, tmp_path: Path) -> None:
    made, _ = module()
    shift = RNG.integers(0, 16, (20, 1)).astype(signed)
    made["m.up_proj.weight._shift"] = shift

    with qconvert.open(checkpoint(tmp_path / "m", made, CONFIG | {"hidden_size": 256})) as model:
        tensor = model["m.up_proj.weight"]
        scales = made["m.up_proj.weight._scale"].astype(np.float32)
        codes = tensor.codes().reshape(20, 128).astype(np.float32)
        assert tensor.dequantize().tobytes() == ((codes - shift) * scales).astype(np.float32).tobytes()
    qconvert.convert(tmp_path / "m", tmp_path / "again", to="quanto")
    assert stored(tmp_path / "again") == stored(tmp_path / "m")


def test_a_bias_says_the_number_of_rows(tmp_path: Path) -> None:
    made, weights = module(name="m.dense")

    with qconvert.open(checkpoint(tmp_path / "m", made | {"m.dense.bias": np.zeros(10, np.float16)}, CONFIG)) as model:
        assert model["m.dense.weight"].dequantize().tobytes() == weights.tobytes()


def test_scales_of_activations_belong_to_the_weight() -> None:
    with qconvert.open(FOLDER / "qint8") as model:
        assert list(model) == list(SHAPES) or sorted(model) == sorted(SHAPES)
        assert sum(tensor.n_weights for _, tensor in model.items()) == 32 * 256 + 48 * 128
        assert sorted(model["proj0.weight"].residue()) == ["input_scale", "output_scale"]


@pytest.mark.parametrize(("n_cols", "group"), [(64, 64), (128, 128), (256, 128), (288, 96), (320, 64), (352, 32), (1000, 1000)])
def test_groups_are_those_that_the_peer_makes_of_a_row(n_cols: int, group: int) -> None:
    assert group_of(n_cols) == group


@pytest.mark.parametrize("target", ["quanto:int4", "quanto:int8"])
def test_integers_of_one_scale_for_a_row_become_quanto(target: str, tmp_path: Path) -> None:
    values = {
        "codes": RNG.integers(-8, 8, (6, 128)).astype(np.int8),
        "scales": np.repeat((RNG.integers(1, 99, (6, 1)) / 1024).astype(np.float16), 4, axis=1),
    }
    source = from_values(gguf.Q4_0, (6, 128), values)
    qformat.save(tmp_path / "q.qfmt", {"m.up_proj.weight": source})

    report = qconvert.convert(tmp_path / "q.qfmt", tmp_path / "made", to=target)

    assert [(item.target, item.verdict.verdict) for item in report.plan.items] == [(target, "exact")]
    with qconvert.open(tmp_path / "made", shapes={"m.up_proj.weight": (6, 128)}) as model:
        assert model["m.up_proj.weight"].dequantize().tobytes() == source.dequantize().tobytes()


def test_scales_that_differ_within_a_group_are_refused(tmp_path: Path) -> None:
    values = {"codes": np.zeros((2, 128), np.int8), "scales": np.arange(8, dtype=np.float16).reshape(2, 4)}
    qformat.save(tmp_path / "q.qfmt", {"m.weight": from_values(gguf.Q4_0, (2, 128), values)})

    with pytest.raises(NotExact, match="is not that of its group of 128"):
        qconvert.convert(tmp_path / "q.qfmt", tmp_path / "made", to="quanto:int4")


WRONG: dict[str, tuple[Arrays, str]] = {
    "scale": ({"m.up_proj.weight._scale": np.ones((20, 2), np.float16)}, r"found float16 20 x 2, expected .* any x 1"),
    "shift": ({"m.up_proj.weight._shift": np.ones((19, 1), np.float16)}, r"found float16 19 x 1, expected .* 20 x 1"),
    "codes": ({"m.up_proj.weight._data._data": np.zeros((9, 128), np.uint8)}, r"9 x 128 bytes for 20 groups"),
    "element": ({"m.up_proj.weight._data._data": np.zeros((10, 128), np.int32)}, r"found int32 10 x 128, expected uint8"),
    "extra": ({"m.up_proj.input_scale": np.ones(2, np.float16)}, r"found float16 2, expected float16 scalar"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_do_not_fit_one_another_are_refused(case: str, tmp_path: Path) -> None:
    wrong, message = WRONG[case]

    with pytest.raises(FileError, match=message) as caught:
        qconvert.open(checkpoint(tmp_path / "m", module()[0] | wrong, CONFIG))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(10, 255), (20, 128, 1), (5, 512, 1), (2560, 1), (-10, -256), (20, 64)])
def test_a_shape_that_is_given_and_does_not_fit_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", module()[0], CONFIG)

    with pytest.raises(FileError, match=rf"shape \[{shape[0]}, .*, expected 2560 weights in rows of groups of 128"):
        qconvert.open(folder, shapes={"m.up_proj.weight": shape})


def test_bits_that_nothing_says_are_refused(tmp_path: Path) -> None:
    made, _ = module(4, (1, 33))

    with pytest.raises(FileError, match="1 groups in 1 rows of bytes are int2 or int4, and no config says which"):
        qconvert.open(checkpoint(tmp_path / "m", made, {"quantization_config": {"quant_method": "quanto"}}))
