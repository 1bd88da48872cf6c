"""gpt-oss checkpoints, and MXFP4 on its way between all that hold it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
from carried import written_again
from conftest import VECTORS
from handmade_checkpoint import arrays, checkpoint, stored
from numpy.typing import NDArray
from qfmt.__main__ import main

from qformat.bits import values
from qformat.errors import FileError, NotExact, UsageError

EXPERTS = VECTORS / "hf" / "gpt-oss-mxfp4" / "experts"
MLX = VECTORS / "hf" / "mlx" / "mxfp4"
PREFIX = "model.layers.0.mlp.experts."
NAMES = (f"{PREFIX}down_proj", f"{PREFIX}gate_up_proj")
RNG = np.random.default_rng(42)
Arrays = dict[str, NDArray[Any]]

every_weight = pytest.mark.parametrize("name", NAMES)


def stack(top: int = 255) -> Arrays:
    """Make one stack of experts; scale bytes below `top`."""
    return {
        f"{NAMES[0]}_blocks": RNG.integers(0, 256, (2, 3, 4, 16), dtype=np.uint8),
        f"{NAMES[0]}_scales": RNG.integers(0, top, (2, 3, 4), dtype=np.uint8),
    }


@every_weight
def test_a_stored_weight_decodes_as_transformers_decodes_it_but_for_its_transposition(name: str) -> None:
    expected = arrays(EXPERTS / "expected.safetensors")
    whole, rounded = (np.ascontiguousarray(expected[key].swapaxes(1, 2)) for key in (f"{name}.float32", name))

    with qconvert.open(EXPERTS) as model:
        tensor = model[name]
    assert tensor.shape == (2, 32, 128)
    assert tensor.dequantize().tobytes() == whole.tobytes()
    assert tensor.dequantize("bfloat16").tobytes() == rounded.tobytes()


def test_experts_are_named_as_gpt_oss_names_them_and_biases_stay_arrays() -> None:
    with qconvert.open(EXPERTS) as model:
        found = {name: (model[name].scheme.name, model[name].bits_per_weight) for name in model}

    packed, dense = ("gpt-oss", 4.25), ("bfloat16", 16)
    assert found == {NAMES[0]: packed, NAMES[1]: packed, f"{NAMES[0]}_bias": dense, f"{NAMES[1]}_bias": dense}


@pytest.mark.parametrize("through", ["gpt-oss", "qfmt"])
def test_stored_experts_are_written_again_array_for_array(through: str, tmp_path: Path) -> None:
    made, counts = written_again(EXPERTS, "gpt-oss", through, tmp_path)

    assert set(counts) == {"same-bytes"}
    assert stored(made) == stored(EXPERTS)


def test_the_config_lists_the_modules_that_stay_dense(tmp_path: Path) -> None:
    held = stack() | {
        "model.embed_tokens.weight": np.ones((4, 64), ml_dtypes.bfloat16),
        "model.norm.weight": np.ones(64, ml_dtypes.bfloat16),
        f"{NAMES[0]}_bias": np.ones((2, 3), ml_dtypes.bfloat16),
    }
    source = checkpoint(tmp_path / "source", held, {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}})

    qconvert.convert(source, tmp_path / "again", to="gpt-oss")

    written = json.loads((tmp_path / "again" / "config.json").read_text())
    said = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]}
    assert written == {"model_type": "gpt_oss", "quantization_config": said}


CHAINS = [
    ["mlx:mxfp4"], ["gguf:mxfp4"], ["qfmt:mxfp4"], ["mlx"], ["gguf"],
    ["mlx:mxfp4", "gguf:mxfp4", "qfmt:mxfp4", "mlx:mxfp4"], ["qfmt:mxfp4", "gguf:mxfp4"], ["gguf:mxfp4", "qfmt:mxfp4", "mlx"],
]  # fmt: skip


def walk(source: Path, chain: list[str], folder: Path) -> Path:
    """Convert from target to target, each exactly."""
    for step, target in enumerate(chain):
        container = target.partition(":")[0]
        made = folder / f"{step}{f'.{container}' if container in ('gguf', 'qfmt') else ''}"
        report = qconvert.convert(source, made, to=target)
        assert set(report.plan.counts()) <= {"exact", "same-bytes"}
        source = made
    return source


@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_experts_go_through_every_holder_of_mxfp4_and_back(chain: list[str], tmp_path: Path) -> None:
    back = walk(EXPERTS, [*chain, "gpt-oss"], tmp_path)

    assert stored(back) == stored(EXPERTS)


@pytest.mark.parametrize(
    "chain", [["gpt-oss"], ["gguf:mxfp4"], ["qfmt:mxfp4"], ["gpt-oss", "gguf", "qfmt:mxfp4"]], ids="-".join
)
def test_modules_of_mlx_go_through_every_holder_of_mxfp4_and_back(chain: list[str], tmp_path: Path) -> None:
    back = walk(MLX, [*chain, "mlx"], tmp_path)

    assert stored(back) == stored(MLX)


def test_scale_byte_255_is_2_to_the_128_and_is_copied(tmp_path: Path) -> None:
    held = stack()
    held[f"{NAMES[0]}_scales"][0, 0, 0] = 255
    source = checkpoint(tmp_path / "source", held)

    with qconvert.open(source) as model:
        row = model[NAMES[0]].dequantize(rows=slice(0, 1))[0, :32]
    nibbles = held[f"{NAMES[0]}_blocks"][0, 0, 0]
    levels = np.array(values("float4_e2m1fn"))[np.stack([nibbles & 15, nibbles >> 4], axis=-1).reshape(-1)]
    with np.errstate(over="ignore"):
        assert row.tobytes() == np.ldexp(levels, 128).astype(np.float32).tobytes()  # half of it is a number
    qconvert.convert(source, tmp_path / "again", to="gpt-oss")
    assert stored(tmp_path / "again") == stored(source)


@pytest.mark.parametrize("target", ["mlx:mxfp4", "gguf:mxfp4", "qfmt:mxfp4", "mlx:mxfp8", "fp8-block"])
@pytest.mark.parametrize("source", ["gpt-oss", "mlx"])
def test_scale_byte_255_is_refused_towards_others(source: str, target: str, tmp_path: Path) -> None:
    if source == "mlx":
        held: Arrays = {"m.weight": np.ones((2, 4), np.uint32), "m.scales": np.array([[127], [255]], np.uint8)}
        target = target.replace("mlx:mxfp4", "gpt-oss")
    else:
        held = stack() | {f"{NAMES[0]}_scales": np.full((2, 3, 4), 255, np.uint8)}
    made = tmp_path / "made.gguf" if target.startswith("gguf") else tmp_path / "made"

    with pytest.raises(NotExact, match="is the byte 255, which readers disagree on"):
        qconvert.convert(checkpoint(tmp_path / "source", held), made, to=target)
    assert not made.exists()


@pytest.mark.parametrize("source", ["gpt-oss", "mlx"])
def test_scale_byte_255_is_reported_by_check(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = stack()
    held[f"{NAMES[0]}_scales"][1, 2, 3] = 255
    if source == "mlx":
        held = {"m.weight": np.ones((2, 4), np.uint32), "m.scales": np.array([[127], [255]], np.uint8)}

    code = main(["check", str(checkpoint(tmp_path / "source", held))])

    assert code == 1
    element = "float8_e8m0inf" if source == "mlx" else "float8_e8m0half"
    assert f"field 'scales': 1 scales ({element}) are NaN or infinite" in capsys.readouterr().out


Change = Callable[[Arrays], dict[str, Any]]
BLOCKS, SCALES = (f"{NAMES[0]}_{what}" for what in ("blocks", "scales"))
BROKEN: list[tuple[str, Change, str]] = [
    (
        "fewer scales in a row",
        lambda m: {SCALES: m[SCALES][..., :3]},
        "found uint8 2 x 3 x 3, expected uint8 2 x 3 x 4 (a scale",
    ),
    ("fewer rows of scales", lambda m: {SCALES: m[SCALES][:, :2]}, "found uint8 2 x 2 x 4, expected uint8 2 x 3 x 4"),
    ("fewer experts", lambda m: {BLOCKS: m[BLOCKS][:1]}, "found uint8 2 x 3 x 4, expected uint8 1 x 3 x 4"),
    (
        "short blocks",
        lambda m: {BLOCKS: m[BLOCKS][..., :15]},
        "found 2 x 3 x 4 x 15, expected experts x rows x blocks x 16 bytes",
    ),
    (
        "flat blocks",
        lambda m: {BLOCKS: m[BLOCKS].reshape(-1, 16)},
        "found 24 x 16, expected experts x rows x blocks x 16 bytes",
    ),
    ("scales of another type", lambda m: {SCALES: m[SCALES].astype(np.int8)}, "found int8 2 x 3 x 4, expected uint8 2 x 3 x 4"),
    ("no scales", lambda m: {SCALES: None}, "is a part of a packed weight whose other arrays are missing"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_arrays_that_do_not_fit_are_refused(change: Change, message: str, tmp_path: Path) -> None:
    whole = stack()
    held = {name: array for name, array in {**whole, **change(whole)}.items() if array is not None}

    with pytest.raises(FileError) as caught, qconvert.open(checkpoint(tmp_path / "m", held)) as model:
        model[NAMES[0]]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    held = {"m.weight": np.ones((2, 2), np.uint32), "m.scales": np.ones((2, 1), np.uint8)}  # NVFP4 of 16 columns

    with pytest.raises((NotExact, UsageError), match="of shape 2 x 16"):
        qconvert.convert(checkpoint(tmp_path / "m", held), tmp_path / "made", to="gpt-oss")
