"""MLX checkpoints: decoded, written back, and refused where their arrays do not fit one another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qconvert
from carried import written_again
from conftest import VECTORS
from handmade_checkpoint import arrays, checkpoint, same_floats, stored
from numpy.typing import NDArray
from qfmt.__main__ import main

import qformat
from qformat.errors import FileError, NotExact
from qformat.formats import gguf, gguf_k
from qformat.tensor import from_values

FOLDER = VECTORS / "hf" / "mlx"
VARIANTS = sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))
GOLDEN = [
    (variant, name)
    for variant in VARIANTS
    for name in sorted(arrays(FOLDER / variant / "expected.safetensors"))
    if not name.endswith(".float32")
]
BITS_PER_WEIGHT = {"mxfp4": 4.25, "nvfp4": 4.5, "mxfp8": 8.25}
RNG = np.random.default_rng(41)
AFFINE = {"group_size": 64, "bits": 4, "mode": "affine"}
Arrays = dict[str, NDArray[Any]]

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_weight = pytest.mark.parametrize(("variant", "name"), GOLDEN)


def module(
    bits: int = 4, group: int = 64, shape: tuple[int, ...] = (6, 128), dtype: Any = np.float16, name: str = "m."
) -> Arrays:
    """Make the arrays of an affine module."""
    *rows, n_cols = shape
    params = RNG.standard_normal((2, *rows, n_cols // group)).astype(dtype)
    words = RNG.integers(0, 1 << 32, (*rows, n_cols * bits // 32), dtype=np.uint32)
    return {f"{name}weight": words, f"{name}scales": params[0], f"{name}biases": params[1]}


def decode(found: Arrays, bits: int, name: str = "m.") -> NDArray[np.float32]:
    """Decode an affine module by plain NumPy."""
    words = found[f"{name}weight"]
    stream = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").reshape(*words.shape[:-1], -1, bits)
    codes = (stream @ (1 << np.arange(bits))).astype(np.float32)
    per = codes.shape[-1] // found[f"{name}scales"].shape[-1]
    scales, biases = (np.repeat(found[name + key].astype(np.float32), per, axis=-1) for key in ("scales", "biases"))
    return codes * scales + biases


@every_weight
def test_a_stored_weight_decodes_as_mlx_decodes_it(variant: str, name: str) -> None:
    expected = arrays(FOLDER / variant / "expected.safetensors")[f"{name}.float32"]

    with qconvert.open(FOLDER / variant) as model:
        assert model.dialects == ("mlx",)
        assert model[name].dequantize().tobytes() == expected.tobytes()


@every_weight
def test_a_stored_weight_rounded_as_mlx_rounds_is_what_mlx_gives(variant: str, name: str) -> None:
    expected = arrays(FOLDER / variant / "expected.safetensors")[name]

    with qconvert.open(FOLDER / variant) as model:
        tensor = model[name]
    values = tensor.dequantize(expected.dtype.name)
    if variant.startswith("affine"):  # one rounding after the product, one after the sum
        scales, biases = tensor.scales(), tensor.biases()
        assert scales is not None
        assert biases is not None
        per = tensor.n_cols // scales.shape[1]
        products = tensor.codes().astype(np.float32) * np.repeat(scales.astype(np.float32), per, axis=1)
        sums = products.astype(expected.dtype).astype(np.float32) + np.repeat(biases.astype(np.float32), per, axis=1)
        values = sums.astype(expected.dtype)
    assert values.tobytes() == expected.tobytes()


@every_variant
@pytest.mark.parametrize("through", ["mlx", "qfmt"])
def test_a_stored_checkpoint_is_written_again_array_for_array(variant: str, through: str, tmp_path: Path) -> None:
    made, counts = written_again(FOLDER / variant, "mlx", through, tmp_path)

    assert set(counts) == {"same-bytes"}
    assert stored(made) == stored(FOLDER / variant)
    assert json.loads((made / "config.json").read_text()) == json.loads((FOLDER / variant / "config.json").read_text())


@every_variant
def test_inspect_says_bits_group_and_logical_weights(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads((FOLDER / variant / "config.json").read_text())["quantization"]
    width = 32 if said["group_size"] == 128 else 16
    expected = {
        "dialect": "mlx",
        "bits": said["bits"],
        "group_size": said["group_size"],
        "bits_per_weight": BITS_PER_WEIGHT.get(said["mode"], said["bits"] + 2 * width / said["group_size"]),
    }

    assert main(["inspect", str(FOLDER / variant), "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["dialects"] == ["mlx"]
    assert (
        facts["n_weights"] == len(facts["tensors"]) * 32 * 256 + sum(t["shape"] == [24, 384] for t in facts["tensors"]) * 1024
    )
    for tensor in facts["tensors"]:
        assert {key: tensor[key] for key in expected} == expected


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_every_code_under_every_scale_byte_decodes_as_mlx_decodes_it(mode: str, tmp_path: Path) -> None:
    sweep = arrays(FOLDER / f"{mode}-sweep" / "sweep.safetensors")
    held = {"m.weight": sweep["weight"], "m.scales": sweep["scales"]}

    with qconvert.open(checkpoint(tmp_path / "sweep", held)) as model:
        tensor = model["m.weight"]
        assert (tensor.scheme.name, tensor.shape) == (f"mlx:{mode}", sweep["expected_f32"].shape)
        assert same_floats(tensor.dequantize(), sweep["expected_f32"])


def test_a_module_without_a_name_may_have_a_global_scale(tmp_path: Path) -> None:
    golden = arrays(FOLDER / "nvfp4-global-scale" / "golden.safetensors")
    expected = golden.pop("expected_f32")
    source = checkpoint(tmp_path / "source", golden)

    with qconvert.open(source) as model:
        assert model.keys() == ("weight",)
        assert model["weight"].dequantize().tobytes() == expected.tobytes()
    qconvert.convert(source, tmp_path / "again", to="mlx:nvfp4")
    assert stored(tmp_path / "again") == stored(source)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_any_bits_and_group_decode_as_plain_numpy_does(bits: int, group: int, tmp_path: Path) -> None:
    held = module(bits, group, (5, 256), np.float32)

    with qconvert.open(checkpoint(tmp_path / "m", held, {"quantization": {"bits": bits, "group_size": group}})) as model:
        assert model["m.weight"].dequantize().tobytes() == decode(held, bits).tobytes()


def test_experts_are_one_weight_with_an_axis_for_them(tmp_path: Path) -> None:
    held = module(shape=(3, 6, 128), name="model.layers.0.mlp.switch_mlp.up_proj.")
    held |= module(shape=(2, 6, 128), name="model.layers.0.mlp.experts.down_proj.")
    source = checkpoint(tmp_path / "source", held, {"quantization": AFFINE})

    with qconvert.open(source) as model:
        shapes = {name: model[name].shape for name in model}
    assert shapes == {
        "model.layers.0.mlp.switch_mlp.up_proj.weight": (3, 6, 128),
        "model.layers.0.mlp.experts.down_proj": (2, 6, 128),
    }
    qconvert.convert(source, tmp_path / "again", to="mlx")
    assert stored(tmp_path / "again") == stored(source)


def test_modules_of_other_kinds_are_said_one_by_one(tmp_path: Path) -> None:
    held = module(name="a.") | module(name="b.") | module(8, 32, name="c.")
    held |= {"d.weight": RNG.integers(0, 1 << 32, (6, 16), dtype=np.uint32), "d.scales": np.full((6, 4), 120, np.uint8)}
    held |= {"e.weight": np.ones((6, 128), np.float16), "norm.weight": np.ones(6, np.float16)}
    said = {**AFFINE, "c": {"group_size": 32, "bits": 8}, "d": {"group_size": 32, "bits": 4, "mode": "mxfp4"}, "e": False}
    source = checkpoint(tmp_path / "source", held, {"model_type": "x", "quantization": said, "quantization_config": said})

    with qconvert.open(source) as model:
        schemes = {name: model[name].scheme.name for name in model}
    assert schemes == {
        "a.weight": "mlx:f16", "b.weight": "mlx:f16", "c.weight": "mlx:f16", "d.weight": "mlx:mxfp4",
        "e.weight": "float16", "norm.weight": "float16",
    }  # fmt: skip
    qconvert.convert(source, tmp_path / "again", to="mlx")
    assert stored(tmp_path / "again") == stored(source)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    expected = {
        **AFFINE,
        "c": {"group_size": 32, "bits": 8, "mode": "affine"},
        "d": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    }
    assert written == {"model_type": "x", "quantization": expected, "quantization_config": expected}


def test_a_config_is_not_needed_where_sizes_leave_one_way(tmp_path: Path) -> None:
    held = module(5, 32)

    with qconvert.open(checkpoint(tmp_path / "m", held)) as model:
        assert model["m.weight"].dequantize().tobytes() == decode(held, 5).tobytes()


def test_the_file_says_that_it_is_of_mlx_whatever_its_source_says(tmp_path: Path) -> None:
    qconvert.convert(VECTORS / "hf" / "gpt-oss-mxfp4" / "experts", tmp_path / "mlx", to="mlx")

    with qconvert.open(tmp_path / "mlx") as model:
        assert model.metadata["format"] == "mlx"


BYTES = np.zeros((6, 4), np.uint8)
NONE = dict[str, Any]()
FP = {"m.biases": None}  # a mode of small floats has none
Change = Callable[[Arrays], dict[str, Any]]
BROKEN: list[tuple[str, Change, Any, str]] = [
    (
        "fewer rows of scales", lambda m: {"m.scales": m["m.scales"][:5]}, AFFINE,
        "found float16 5 x 2, expected float16 or bfloat16 or float32 6 x any (groups of each row of 'm.weight')",
    ),
    (
        "fewer rows of biases", lambda m: {"m.biases": m["m.biases"][:5]}, AFFINE,
        "found float16 5 x 2, expected float16 6 x 2 (a bias for each scale)",
    ),
    (
        "biases of another type", lambda m: {"m.biases": np.zeros((6, 2), np.float32)}, AFFINE,
        "found float32 6 x 2, expected float16 6 x 2",
    ),
    (
        "fewer words", lambda m: {"m.weight": m["m.weight"][:, :15]}, AFFINE,
        "15 words and 2 scales in a row, expected those of 4 bits in groups of 64, as the config says",
    ),
    ("other bits", lambda m: NONE, {**AFFINE, "bits": 8}, "expected those of 8 bits in groups of 64, as the config says"),
    ("unknown bits", lambda m: NONE, {**AFFINE, "bits": 7}, "expected those of 7 bits in groups of 64, as the config says"),
    ("bits as text", lambda m: NONE, {**AFFINE, "bits": "4"}, "'bits' of the config's quantization is '4', expected an"),
    ("bits that are true", lambda m: NONE, {**AFFINE, "bits": True}, "is True, expected an integer"),
    (
        "several ways", lambda m: NONE, None,
        "which are 2 bits in groups of 128 or 4 bits in groups of 64 or 8 bits in groups of 32: expected 'quantization' of",
    ),
    ("no way", lambda m: {"m.weight": m["m.weight"][:, :13]}, None, "13 words and 2 scales in a row fit no format"),
    ("no columns", lambda m: {name: array[:, :0] for name, array in m.items()}, AFFINE, "found 6 x 0, expected a matrix"),
    ("no scales", lambda m: dict.fromkeys(("m.scales", "m.biases"), m["m.scales"][:, :0]), AFFINE, "16 words and 0 scales"),
    ("no axes", lambda m: {name: array[0, 0] for name, array in m.items()}, AFFINE, "found scalar, expected a matrix of"),
    ("one axis", lambda m: {name: array[0] for name, array in m.items()}, AFFINE, "found 16, expected a matrix of at least"),
    (
        "bytes that are no mode", lambda m: {"m.scales": BYTES[:, :3], **FP}, None,
        "3 scales for 16 words in a row, expected 4 (mxfp4), 8 (nvfp4), 2 (mxfp8)",
    ),
    (
        "another mode", lambda m: {"m.scales": BYTES, **FP}, {"mode": "nvfp4"},
        "16 words and 4 scales in a row are mxfp4, expected 'nvfp4', as the config says",
    ),
    (
        "a global scale of mxfp4", lambda m: {"m.scales": BYTES, "m.global_scale": np.ones(1, np.float32), **FP}, None,
        "belongs to 'm.weight', which is mlx:mxfp4, expected mlx:nvfp4",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_arrays_that_do_not_fit_are_refused(change: Change, said: Any, message: str, tmp_path: Path) -> None:
    whole = module()
    held = {name: array for name, array in {**whole, **change(whole)}.items() if array is not None}
    source = checkpoint(tmp_path / "m", held, None if said is None else {"quantization": said})

    with pytest.raises(FileError) as caught, qconvert.open(source) as model:
        model["m.weight"]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scales_without_biases_are_refused(tmp_path: Path) -> None:
    held = {name: array for name, array in module().items() if name != "m.biases"}

    with pytest.raises(FileError, match=r"tensor 'm.scales': is a part of a packed weight whose other arrays are missing"):
        qconvert.open(checkpoint(tmp_path / "m", held, {"quantization": AFFINE}))


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
def test_q4_0_is_affine_and_comes_back_block_for_block(kind: str, tmp_path: Path) -> None:
    codes = RNG.integers(-8, 8, (6, 128)).astype(np.int8)
    scales = (RNG.integers(1, 1 << 7, (6, 4)) / 4096).astype(np.float16)  # 7 bits, and 10 of 8 * s: bfloat16 holds both
    source = from_values(gguf.Q4_0, (6, 128), {"codes": codes, "scales": scales})
    qformat.save(tmp_path / "q4_0.qfmt", {"m.weight": source})

    made = qconvert.convert(tmp_path / "q4_0.qfmt", tmp_path / "mlx", to=f"mlx:{kind}")
    qconvert.convert(tmp_path / "mlx", tmp_path / "back.gguf", to="gguf:q4_0")

    assert [(item.target, item.verdict.verdict) for item in made.plan.items] == [(f"mlx:{kind}", "exact")]
    with qconvert.open(tmp_path / "back.gguf") as back:
        assert bytes(back["m.weight"].parts[0].source.read(0, 6 * 72)) == bytes(source.parts[0].source.read(0, 6 * 72))


def test_q4_k_is_affine_with_float32_scales_in_groups_of_32(tmp_path: Path) -> None:
    values = {
        "codes": RNG.integers(0, 16, (2, 256)).astype(np.uint8),
        "scales": np.array([[0.01], [0.02]], np.float16),
        "mins": np.array([[0.03], [0.01]], np.float16),
        "sub_scales": RNG.integers(1, 64, (2, 8)).astype(np.uint8),
        "sub_mins": RNG.integers(0, 64, (2, 8)).astype(np.uint8),
    }
    source = from_values(gguf_k.Q4_K, (2, 256), values)
    qformat.save(tmp_path / "q4_k.qfmt", {"m.weight": source})

    qconvert.convert(tmp_path / "q4_k.qfmt", tmp_path / "mlx", to="mlx")

    with qconvert.open(tmp_path / "mlx") as model:
        assert (model["m.weight"].scheme.name, model["m.weight"].bits_per_weight) == ("mlx:f32", 6.0)
        assert model["m.weight"].dequantize().tobytes() == source.dequantize().tobytes()


def test_scales_of_bfloat16_widen_to_float32_and_do_not_shrink(tmp_path: Path) -> None:
    source = FOLDER / "affine-4bit-g64"

    report = qconvert.convert(source, tmp_path / "wide", to="mlx:f32")

    assert report.plan.counts() == {"exact": 1}
    with pytest.raises(NotExact, match=r"scales rounds \(15, .*nearest: exact with mlx:bf16; use --allow rounded"):
        qconvert.convert(source, tmp_path / "narrow", to="mlx:f16")


def test_a_name_that_no_module_could_have_is_refused(tmp_path: Path) -> None:
    tensor = from_values(gguf.Q4_0, (2, 32), {"codes": np.zeros((2, 32), np.int8), "scales": np.ones((2, 1), np.float16)})
    qformat.save(tmp_path / "odd.qfmt", {"odd": tensor})

    with pytest.raises(NotExact, match=r"tensor 'odd'.*mlx names weights '<module>.weight'"):
        qconvert.convert(tmp_path / "odd.qfmt", tmp_path / "mlx", to="mlx")
    assert not (tmp_path / "mlx").exists()
