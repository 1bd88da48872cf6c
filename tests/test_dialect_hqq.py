"""HQQ checkpoints: decoded, written back, and refused where their arrays do not fit one another."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qconvert
from carried import written_again
from conftest import VECTORS
from handmade_checkpoint import arrays, checkpoint, stored
from numpy.typing import NDArray

import qformat
from qformat import reference
from qformat.arrays import Part
from qformat.errors import FileError, NotExact
from qformat.formats import gguf
from qformat.tensor import from_values

FOLDER = VECTORS / "hf" / "hqq"
VARIANTS = sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))
RNG = np.random.default_rng(43)
SHIFTS = {8: (0,), 4: (4, 0), 2: (6, 4, 2, 0), 1: (7, 6, 5, 4, 3, 2, 1, 0), 3: tuple(range(27, -1, -3))}
CONFIG = {"quantization_config": {"quant_method": "hqq"}}
Arrays = dict[str, NDArray[Any]]

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def module(
    bits: int = 4, axis: int = 1, shape: tuple[int, int] = (16, 96), group: int = 32, dtype: Any = np.float16
) -> tuple[Arrays, NDArray[np.float32]]:
    """Make the arrays of a module, and the weights that they are, by plain NumPy."""
    n_groups = shape[0] * shape[1] // group
    view, params = ((n_groups, group), (n_groups, 1)) if axis else ((group, n_groups), (1, n_groups))
    codes = RNG.integers(0, 1 << bits, view)
    slabs = SHIFTS[bits]
    filled = np.zeros((-(-view[0] // len(slabs)) * len(slabs), view[1]), np.int64)
    filled[: view[0]] = codes
    cut = filled.reshape(len(slabs), -1, view[1])
    packed = sum(slab << shift for slab, shift in zip(cut, slabs, strict=True))
    scale, zero = RNG.standard_normal((2, *params)).astype(dtype)
    weights = (codes.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
    found: Arrays = {
        "m.W_q": np.asarray(packed, np.int32 if bits == 3 else np.uint8),
        "m.scale": scale,
        "m.zero": zero,
        "m.shape": np.array(shape, np.int64),
        "m.nbits": np.array(bits, np.int32),
        "m.axis": np.array(axis, np.int32),
        "m.group_size": np.array(group, np.int32),
    }
    return found, weights.reshape(shape)


@every_variant
def test_a_stored_weight_decodes_as_hqq_decodes_it(variant: str) -> None:
    expected = arrays(FOLDER / variant / "expected.safetensors")

    with qconvert.open(FOLDER / variant) as model:
        (name,) = model
        tensor = model[name]
        assert (model.dialects, tensor.shape) == (("hqq",), expected[name].shape)
        assert tensor.dequantize().tobytes() == expected[f"{name}.float32"].tobytes()
        assert tensor.dequantize(rows=slice(5, 9)).tobytes() == expected[f"{name}.float32"][5:9].tobytes()


@every_variant
def test_a_stored_weight_rounded_after_each_step_is_what_hqq_gives(variant: str) -> None:
    (name, expected), *_ = arrays(FOLDER / variant / "expected.safetensors").items()
    with qconvert.open(FOLDER / variant) as model:
        tensor = model[name.removesuffix(".float32")]
    expected = arrays(FOLDER / variant / "expected.safetensors")[name.removesuffix(".float32")]
    scales, zeros = tensor.scales(), tensor.zeros()
    assert scales is not None
    assert zeros is not None
    is_strided = "axis0" in variant
    codes = tensor.codes().reshape(-1, scales.size) if is_strided else tensor.codes().reshape(scales.size, -1)
    shape = (1, -1) if is_strided else (-1, 1)

    values = (codes.astype(expected.dtype) - zeros.reshape(shape)) * scales.reshape(shape)

    assert values.tobytes() == expected.tobytes()


@every_variant
@pytest.mark.parametrize("through", ["hqq", "qfmt"])
def test_a_stored_checkpoint_is_written_again_array_for_array(variant: str, through: str, tmp_path: Path) -> None:
    made, counts = written_again(FOLDER / variant, "hqq", through, tmp_path)

    assert counts == {"same-bytes": 1}
    assert stored(made) == stored(FOLDER / variant)


@every_variant
def test_the_config_says_what_the_peer_said(variant: str, tmp_path: Path) -> None:
    said = json.loads((FOLDER / variant / "config.json").read_text())["quantization_config"]

    qconvert.convert(FOLDER / variant, tmp_path / "made", to="hqq")

    made = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    assert made["quant_method"] == "hqq"
    assert made["quant_config"] == said["quant_config"]


@pytest.mark.parametrize("bits", SHIFTS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_module_made_by_hand_decodes_and_comes_back(bits: int, axis: int, dtype: Any, tmp_path: Path) -> None:
    made, weights = module(bits, axis, dtype=dtype)

    with qconvert.open(checkpoint(tmp_path / "m", made, CONFIG)) as model:
        tensor = model["m.weight"]
        assert tensor.dequantize().tobytes() == weights.tobytes()
        assert reference.decode(tensor).tobytes() == weights.tobytes()
    qconvert.convert(tmp_path / "m", tmp_path / "again", to="hqq")
    again = stored(tmp_path / "again")
    assert {name: again[name] for name in made} == stored(tmp_path / "m")


@pytest.mark.parametrize(("bits", "byte"), [(5, 31), (6, 63)])
def test_codes_of_five_and_six_bits_take_a_byte_each(bits: int, byte: int, tmp_path: Path) -> None:
    made, _ = module(8, group=48)
    made |= {"m.W_q": made["m.W_q"] & byte, "m.nbits": np.array(bits, np.int32)}
    codes = made["m.W_q"].astype(np.float32)

    with qconvert.open(checkpoint(tmp_path / "m", made, CONFIG)) as model:
        weights = (codes - made["m.zero"].astype(np.float32)) * made["m.scale"].astype(np.float32)
        assert model["m.weight"].dequantize().tobytes() == weights.reshape(16, 96).tobytes()


def test_modules_of_different_kinds_are_told_apart_in_the_config(tmp_path: Path) -> None:
    one, _ = module(4)
    two, _ = module(8, group=96)
    both = one | {name.replace("m.", "n."): array for name, array in two.items()}

    qconvert.convert(
        checkpoint(tmp_path / "m", both | {"lm_head.weight": np.zeros((4, 8), np.float16)}, CONFIG), tmp_path / "o", to="hqq"
    )

    said = json.loads((tmp_path / "o" / "config.json").read_text())["quantization_config"]
    params = {name: facts["weight_quant_params"] for name, facts in said["quant_config"].items()}
    assert (params["m"]["nbits"], params["m"]["group_size"]) == (4, 32)
    assert (params["n"]["nbits"], params["n"]["group_size"]) == (8, None)
    assert said["skip_modules"] == ["lm_head"]


@pytest.mark.parametrize("target", ["gguf:q5_0", "mlx:f32", "gptq:v2"])
def test_integer_zero_points_go_to_formats_that_have_them(target: str, tmp_path: Path) -> None:
    made, _ = module(4, shape=(32, 128))
    made |= {
        "m.zero": RNG.integers(1, 16, made["m.zero"].shape).astype(np.float16),
        "m.scale": (RNG.integers(1, 99, made["m.scale"].shape) / 1024).astype(np.float16),
    }
    weights = qconvert.open(checkpoint(tmp_path / "m", made, CONFIG))["m.weight"].dequantize()
    dst = tmp_path / ("o.gguf" if "gguf" in target else "o")

    report = qconvert.convert(tmp_path / "m", dst, to=target)

    assert report.plan.counts() == {"exact": 1}
    with qconvert.open(dst) as model:
        assert (model["m.weight"].dequantize() == weights).all()


def test_q4_0_becomes_hqq_and_comes_back(tmp_path: Path) -> None:
    values = {
        "codes": RNG.integers(-8, 8, (6, 64)).astype(np.int8),
        "scales": RNG.standard_normal((6, 2)).astype(np.float16),
    }
    qformat.save(tmp_path / "q.qfmt", {"m.weight": from_values(gguf.Q4_0, (6, 64), values)})

    report = qconvert.convert(tmp_path / "q.qfmt", tmp_path / "hqq", to="hqq")
    qconvert.convert(tmp_path / "hqq", tmp_path / "q.gguf", to="gguf:q4_0")

    assert report.plan.counts() == {"exact": 1}
    with qconvert.open(tmp_path / "q.gguf") as model, qconvert.open(tmp_path / "q.qfmt") as source:
        assert model["m.weight"].codes().tobytes() == source["m.weight"].codes().tobytes()


WRONG: Mapping[str, tuple[Arrays, str]] = {
    "bits": ({"m.nbits": np.array(7, np.int32)}, r"tensor 'm.nbits'.* is 7, expected 1, 2, 3, 4, 5, 6, 8"),
    "axis": ({"m.axis": np.array(2, np.int32)}, r"tensor 'm.axis'.* is 2, expected 0, 1"),
    "group": ({"m.group_size": np.array(64, np.int32)}, r"is 64, expected 32 \(1536 weights in 48 groups\)"),
    "twice": ({"m.quant_zero": np.array(1, np.uint8)}, r"tensor 'm.quant_zero'.* is 1, expected 0 \(scales and zero points as"),
    "shape": ({"m.shape": np.array([16, 97], np.int64)}, "16 x 97 weights in 48 groups, expected whole groups"),
    "negative": ({"m.shape": np.array([-16, -96], np.int64)}, "-16 x -96 weights in 48 groups"),
    "huge": ({"m.shape": np.array([1 << 62, 48], np.int64)}, r"tensor 'm.group_size'.*is 32, expected 4611686018427387904"),
    "zero": ({"m.zero": np.zeros((47, 1), np.float16)}, r"found float16 47 x 1, expected float16 48 x 1"),
    "codes": ({"m.W_q": np.zeros((24, 31), np.uint8)}, r"tensor 'm.W_q'.*found uint8 24 x 31, expected uint8 .* 24 x 32"),
    "words": ({"m.W_q": np.zeros((24, 32), np.int32)}, r"found int32 24 x 32, expected uint8"),
    "rank": ({"m.shape": np.array([16], np.int64)}, r"found int64 1, expected int64 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_do_not_fit_one_another_are_refused(case: str, tmp_path: Path) -> None:
    wrong, message = WRONG[case]

    with pytest.raises(FileError, match=message) as caught:
        qconvert.open(checkpoint(tmp_path / "m", module()[0] | wrong, CONFIG))
    assert "\n" not in str(caught.value)


def test_codes_without_their_facts_are_refused(tmp_path: Path) -> None:
    made = {name: array for name, array in module()[0].items() if name != "m.axis"}

    with pytest.raises(FileError, match=r"tensor 'm.W_q'.*is a part of a packed weight whose other arrays are missing"):
        qconvert.open(checkpoint(tmp_path / "m", made, CONFIG))


def test_a_stack_of_matrices_is_refused(tmp_path: Path) -> None:
    values = {"codes": np.zeros((2, 4, 32), np.int8), "scales": np.ones((8, 1), np.float16)}
    qformat.save(tmp_path / "q.qfmt", {"m.weight": from_values(gguf.Q4_0, (2, 4, 32), values)})

    with pytest.raises(NotExact, match=r"shape \[2, 4, 32\], hqq holds matrices"):
        qconvert.convert(tmp_path / "q.qfmt", tmp_path / "made", to="hqq")
    assert not (tmp_path / "made").exists()


@dataclass
class Counted:
    """Bytes that count what is read of them."""

    data: NDArray[np.uint8]
    n_read: int = 0

    @property
    def n_bytes(self) -> int:
        return self.data.size

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        self.n_read += stop - start
        return self.data[start:stop]


@pytest.mark.parametrize(("first", "last", "n_read"), [(256, 512, 256), (4032, 4160, 128), (0, 8192, 4096), (8191, 8192, 64)])
def test_weights_within_a_slab_are_read_without_the_rest(first: int, last: int, n_read: int) -> None:
    with qconvert.open(FOLDER / "4bit-g64-axis1") as model:
        tensor = model[next(iter(model))]
        part, codes = tensor.parts[0], tensor.codes().reshape(-1)
        source = Counted(part.source.read(0, part.source.n_bytes).copy())

    found = Part(part.form, part.bound, source).read("codes", first, last)

    assert (found.tobytes(), source.n_read) == (codes[first:last].tobytes(), n_read)
