"""BitNet checkpoints: decoded, written back, and refused where their arrays do not fit one another.

Arrays are made by the formula of transformers' pack_weights, with which tests/oracles compares.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
from carried import written_again
from handmade_checkpoint import arrays, checkpoint, stored
from numpy.typing import NDArray

import qformat
from qformat import reference
from qformat.errors import FileError, NotExact, UsageError
from qformat.formats import Format, gguf_few
from qformat.tensor import from_values

RNG = np.random.default_rng(44)
SHAPE = (64, 512)
CODES = RNG.integers(-1, 2, SHAPE).astype(np.int8)
CLASSES = ["bitlinear", "autobitlinear"]
Arrays = dict[str, NDArray[Any]]

either_class = pytest.mark.parametrize("linear_class", CLASSES)


def module(scale: float = 0.75, dtype: Any = ml_dtypes.bfloat16) -> Arrays:
    """Pack the codes, a quarter of the rows over the next."""
    quarters = (CODES + 1).astype(np.uint8).reshape(4, -1, SHAPE[1])
    packed = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
    return {"m.weight": packed, "m.weight_scale": np.array([scale], dtype)}


def config(linear_class: str | None = None, **said: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "bitnet"} | ({"linear_class": linear_class} if linear_class else {}) | said}


def weights(linear_class: str, scale: float = 0.75) -> NDArray[np.float32]:
    codes = CODES.astype(np.float32)
    return codes / np.float32(scale) if linear_class == "bitlinear" else codes * np.float32(scale)


@either_class
def test_the_class_of_layer_says_which_way_the_scale_applies(linear_class: str, tmp_path: Path) -> None:
    with qconvert.open(checkpoint(tmp_path / "m", module(), config(linear_class))) as model:
        tensor = model["m.weight"]
        assert (model.dialects, tensor.shape, tensor.n_bytes) == (("bitnet",), SHAPE, SHAPE[0] * SHAPE[1] // 4 + 2)
        assert tensor.dequantize().tobytes() == weights(linear_class).tobytes()
        assert tensor.dequantize(rows=slice(14, 50)).tobytes() == weights(linear_class)[14:50].tobytes()
        assert reference.weight(tensor, 17, 5) == weights(linear_class)[17, 5]


def test_a_config_that_names_no_class_means_a_layer_that_divides(tmp_path: Path) -> None:
    with qconvert.open(checkpoint(tmp_path / "m", module(3.0), config())) as model:
        assert model["m.weight"].dequantize().tobytes() == weights("bitlinear", 3.0).tobytes()


def test_a_field_of_three_is_a_code_of_two(tmp_path: Path) -> None:
    made = module() | {"m.weight": np.full((1, 4), 0b11100100, np.uint8)}

    with qconvert.open(checkpoint(tmp_path / "m", made, config("autobitlinear"))) as model:
        assert model["m.weight"].codes()[:, 0].tolist() == [-1, 0, 1, 2]


@either_class
@pytest.mark.parametrize("through", ["bitnet", "qfmt"])
def test_a_checkpoint_is_written_again_array_for_array(linear_class: str, through: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", module() | {"lm_head.weight": np.ones((3, 4), np.float16)}, config(linear_class))

    made, counts = written_again(source, "bitnet", through, tmp_path)

    assert counts == {"same-bytes": 2}
    assert stored(made) == stored(source)
    assert json.loads((made / "config.json").read_text())["quantization_config"] == {
        "quant_method": "bitnet",
        "linear_class": linear_class,
        "quantization_mode": "offline",
        "modules_to_not_convert": ["lm_head"],
    }


@pytest.mark.parametrize("form", [gguf_few.TQ1_0, gguf_few.TQ2_0, gguf_few.Q2_0], ids=lambda form: form.name)
def test_ternary_blocks_of_one_scale_become_bitnet_and_come_back(form: Format, tmp_path: Path) -> None:
    block = form.parts[0].layout.n_weights
    scales = np.full((SHAPE[0], SHAPE[1] // block), 0.375, np.float16)
    source = from_values(form, SHAPE, {"codes": CODES, "scales": scales})
    qformat.save(tmp_path / "q.qfmt", {"m.weight": source})

    report = qconvert.convert(tmp_path / "q.qfmt", tmp_path / "made", to="bitnet")
    qconvert.convert(tmp_path / "made", tmp_path / "back.gguf", to=f"gguf:{form.name}")

    assert report.plan.counts() == {"exact": 1}
    made = arrays(tmp_path / "made" / "model.safetensors")
    assert made["m.weight"].tobytes() == module()["m.weight"].tobytes()
    assert made["m.weight_scale"].astype(np.float32).tolist() == [0.375]
    with qconvert.open(tmp_path / "back.gguf") as model:
        assert model["m.weight"].codes().tobytes() == CODES.tobytes()


def test_scales_that_differ_are_refused(tmp_path: Path) -> None:
    scales = np.full((SHAPE[0], SHAPE[1] // 256), 0.375, np.float16)
    scales[9, 1] = 0.5
    qformat.save(tmp_path / "q.qfmt", {"m.weight": from_values(gguf_few.TQ2_0, SHAPE, {"codes": CODES, "scales": scales})})

    with pytest.raises(NotExact, match=r"scale 0.5 at weight 4864"):
        qconvert.convert(tmp_path / "q.qfmt", tmp_path / "made", to="bitnet")


def test_scales_that_apply_both_ways_are_refused(tmp_path: Path) -> None:
    tensors = {}
    for linear_class in CLASSES:
        with qconvert.open(checkpoint(tmp_path / linear_class, module(), config(linear_class))) as model:
            qformat.save(tmp_path / f"{linear_class}.qfmt", {f"{linear_class}.weight": model["m.weight"]})
        tensors |= dict(qformat.open(tmp_path / f"{linear_class}.qfmt").items())
    qformat.save(tmp_path / "both.qfmt", tensors)

    with pytest.raises(UsageError, match=r"'bitlinear.weight'.*those of 'autobitlinear.weight' multiplied"):
        qconvert.convert(tmp_path / "both.qfmt", tmp_path / "made", to="bitnet")


WRONG: dict[str, tuple[Arrays, dict[str, Any], str]] = {
    "scales": ({"m.weight_scale": np.ones(2, np.float16)}, config(), r"found float16 2, expected .* 1 \(one scale\)"),
    "integer": ({"m.weight_scale": np.ones(1, np.int8)}, config(), r"found int8 1, expected bfloat16 or float16 or float32 1"),
    "rank": ({"m.weight": np.zeros(4, np.uint8)}, config(), r"found uint8 4, expected uint8 any x any"),
    "class": ({}, config("linear"), r"linear_class 'linear', expected 'bitlinear' or 'autobitlinear'"),
    "kind": ({}, {"quantization_config": {"quant_method": "bitnet", "linear_class": 7}}, r"linear_class 7, expected"),
    "online": ({}, config("autobitlinear", quantization_mode="online"), r"quantization_mode is 'online', expected 'offline'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    wrong, said, message = WRONG[case]

    with pytest.raises(FileError, match=message) as caught:
        qconvert.open(checkpoint(tmp_path / "m", module() | wrong, said))
    assert "\n" not in str(caught.value)


def test_rows_that_are_no_four_quarters_are_refused(tmp_path: Path) -> None:
    values = {"codes": CODES[:6, :256], "scales": np.ones((6, 1), np.float16)}
    qformat.save(tmp_path / "q.qfmt", {"m.weight": from_values(gguf_few.TQ2_0, (6, 256), values)})

    with pytest.raises(NotExact, match="bitnet holds no packed tq2_0"):
        qconvert.convert(tmp_path / "q.qfmt", tmp_path / "made", to="bitnet")
