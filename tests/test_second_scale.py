"""The second scale of NVFP4, which GGUF keeps in a tensor of its own, belongs to its weight, and goes back to its place."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import qconvert
from handmade_gguf import I32, U16, info, kv
from handmade_gguf import gguf as make
from numpy.typing import NDArray
from qconvert.containers.shards import Limits
from qconvert.dialects import ggml

import qformat
from qformat.errors import NotExact
from qformat.formats import GGUF
from qformat.formats.gguf import nvfp4_scaled
from qformat.scheme import Op, Ref, Step
from qformat.tensor import PackedTensor, from_values

F32, F16, Q4_0, Q8_0, NVFP4 = 0, 1, 2, 8, 40
BLOCK = 36
WEIGHT, SCALE = "blk.0.ffn_down.weight", "blk.0.ffn_down.scale"
LEVELS = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)
TENTH = struct.pack("<f", 0.1)

# Name, dims fastest first, type, bytes.
Tensor = tuple[str, Sequence[int], int, bytes]


def blocks(n: int, seed: int = 5) -> bytes:
    """Give NVFP4 blocks with any codes and scales; not the two bytes that stand apart, 7f and ff."""
    found = np.random.default_rng(seed).integers(0, 256, (n, BLOCK), dtype=np.uint8)
    found[:, :4] = np.random.default_rng(seed).integers(0, 0x7F, (n, 4))
    return found.tobytes()


def write(path: Path, tensors: Sequence[Tensor], order: str = "<", pairs: Sequence[bytes] = ()) -> Path:
    """Write a file of these tensors."""
    infos, data = [], b""
    for name, dims, type_id, content in tensors:
        infos.append(info(name, dims, type_id, len(data), order=order))
        data += content + bytes(-len(content) % 32)
    path.write_bytes(make(pairs, infos, data, order=order))
    return path


def expected(stored: bytes, seconds: Sequence[float]) -> NDArray[np.float32]:
    """Decode blocks of 64 weights with a second scale for each equal share of them: e2m1 * f32(first * second)."""
    values, n = [], len(stored) // BLOCK
    for number in range(n):
        block = stored[BLOCK * number : BLOCK * (number + 1)]
        second = np.float32(seconds[number * len(seconds) // n])
        for run in range(4):
            exponent, mantissa = block[run] >> 3, block[run] & 7
            first = (1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa * 2.0**-9
            scale = np.float32(first) * second
            held = block[4 + 8 * run : 12 + 8 * run]
            values += [np.float32(LEVELS[byte & 15]) * scale for byte in held]
            values += [np.float32(LEVELS[byte >> 4]) * scale for byte in held]
    return np.array(values, np.float32)


def test_the_scale_is_no_tensor_and_its_weight_decodes_with_it(tmp_path: Path) -> None:
    stored = blocks(6)
    path = write(tmp_path / "a.gguf", [(WEIGHT, [128, 3], NVFP4, stored), (SCALE, [1], F32, TENTH)])

    with qconvert.open(path) as model:
        tensor = model[WEIGHT]

        assert model.keys() == (WEIGHT,)
        assert tensor.shape == (3, 128)
        assert tensor.param("global_scale").tobytes() == TENTH
        assert tensor.dequantize().tobytes() == expected(stored, [0.1]).tobytes()


def test_a_stack_has_a_second_scale_for_each_expert(tmp_path: Path) -> None:
    stored, seconds = blocks(12), [0.1, -3.0, 0.7]
    tensors = [(WEIGHT, [64, 4, 3], NVFP4, stored), (SCALE, [3], F32, struct.pack("<3f", *seconds))]

    with qconvert.open(write(tmp_path / "a.gguf", tensors)) as model:
        assert model[WEIGHT].dequantize().tobytes() == expected(stored, seconds).tobytes()
        assert model[WEIGHT].dequantize(rows=slice(5, 9)).tobytes() == expected(stored, seconds)[5 * 64 : 9 * 64].tobytes()


def test_a_big_endian_file_has_the_second_scale_of_its_twin(tmp_path: Path) -> None:
    """No field of an NVFP4 block is longer than a byte."""
    stored = blocks(2)
    tensors = [(WEIGHT, [64, 2], NVFP4, stored), (SCALE, [1], F32, TENTH[::-1])]

    with qconvert.open(write(tmp_path / "a.gguf", tensors, order=">")) as model:
        assert model[WEIGHT].dequantize().tobytes() == expected(stored, [0.1]).tobytes()


def test_a_big_endian_file_becomes_the_tensors_of_its_twin(tmp_path: Path) -> None:
    stored = blocks(2)
    source = write(tmp_path / "a.gguf", [(WEIGHT, [64, 2], NVFP4, stored), (SCALE, [1], F32, TENTH[::-1])], order=">")

    qconvert.convert(source, tmp_path / "b.gguf", to="gguf")

    assert as_read(tmp_path / "b.gguf") == {WEIGHT: stored, SCALE: TENTH}


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param([(WEIGHT, [64, 2], Q8_0, bytes(136)), (SCALE, [1], F32, TENTH)], id="beside another type"),
        pytest.param([(WEIGHT, [64, 2], NVFP4, blocks(2)), (SCALE, [2], F32, 2 * TENTH)], id="two values for a matrix"),
        pytest.param([(WEIGHT, [64, 2], NVFP4, blocks(2)), (SCALE, [1, 1], F32, TENTH)], id="of rank two"),
        pytest.param([(WEIGHT, [64, 2], NVFP4, blocks(2)), (SCALE, [1], F16, TENTH[:2])], id="of float16"),
        pytest.param([(WEIGHT, [64, 1, 2], NVFP4, blocks(2)), (SCALE, [1], F32, TENTH)], id="one value for two experts"),
        pytest.param([(WEIGHT, [64, 1, 1, 2], NVFP4, blocks(2)), (SCALE, [1], F32, TENTH)], id="of four dimensions"),
        pytest.param([(WEIGHT, [64, 0, 2], NVFP4, b""), (SCALE, [2], F32, 2 * TENTH)], id="of no weights"),
        pytest.param([("down", [64, 2], NVFP4, blocks(2)), ("down.scale", [1], F32, TENTH)], id="not named as a weight"),
        pytest.param([(WEIGHT, [64, 2], NVFP4, blocks(2)), ("blk.0.ffn_down.input_scale", [1], F32, TENTH)], id="of inputs"),
        pytest.param([(SCALE, [1], F32, TENTH)], id="without a weight"),
    ],
)
def test_what_is_no_second_scale_stays_a_tensor_of_its_own(tmp_path: Path, tensors: list[Tensor]) -> None:
    with qconvert.open(write(tmp_path / "a.gguf", tensors)) as model:
        assert model.keys() == tuple(name for name, *_ in tensors)
        assert [len(tensor.parts) for _, tensor in model.items()] == [1] * len(tensors)


OTHER = ("output_norm.weight", [8], F32, struct.pack("<8f", *range(8)))
PLACES = {
    "after": [(WEIGHT, [64, 2], NVFP4, blocks(2)), (SCALE, [1], F32, TENTH), OTHER],
    "before": [(SCALE, [1], F32, TENTH), (WEIGHT, [64, 2], NVFP4, blocks(2)), OTHER],
    "apart": [(WEIGHT, [64, 2], NVFP4, blocks(2)), OTHER, (SCALE, [1], F32, TENTH)],
    "stacked": [(WEIGHT, [64, 2, 2], NVFP4, blocks(4)), OTHER, (SCALE, [2], F32, TENTH + struct.pack("<f", 7))],
}


@pytest.mark.parametrize("compress", ["none", "all"])
@pytest.mark.parametrize("tensors", PLACES.values(), ids=PLACES)
def test_the_file_comes_back_byte_for_byte_wherever_the_scale_stands(
    tmp_path: Path, tensors: list[Tensor], compress: str
) -> None:
    source = write(tmp_path / "a.gguf", tensors)

    qconvert.convert(source, tmp_path / "a.qfmt", compress=compress)
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "b.gguf")

    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()
    with qformat.open(tmp_path / "a.qfmt") as model:
        assert set(model.keys()) == {WEIGHT, OTHER[0]}


@pytest.mark.parametrize("tensors", PLACES.values(), ids=PLACES)
def test_a_target_of_the_type_copies_both(tmp_path: Path, tensors: list[Tensor]) -> None:
    source = write(tmp_path / "a.gguf", tensors)

    report = qconvert.convert(source, tmp_path / "b.gguf", to="gguf:nvfp4")

    assert report.plan.counts() == {"same-bytes": 2}
    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()


def scaled(shape: tuple[int, ...], rows: int, n_scales: int) -> PackedTensor:
    """Make an NVFP4 tensor of ones with this many second scales."""
    n_rows = int(np.prod(shape[:-1]))
    values = {
        "codes": np.full(shape, 2, np.uint8),
        "scales": np.full((n_rows, shape[-1] // 16), 0x38, np.uint8),
        "global_scale": np.arange(1, n_scales + 1, dtype=np.float32)[:, None],
    }
    return from_values(nvfp4_scaled(rows), shape, values)


def as_read(path: Path) -> dict[str, bytes]:
    """Give the tensors of a file in its order, as gguf reads them."""
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


def test_in_a_new_file_the_scale_follows_its_weight(tmp_path: Path) -> None:
    """A block of ones: first scales 1.0 are the byte 38, code 2 is 1.0."""
    tensors = {WEIGHT: scaled((2, 64), 0, 1), "b.weight": scaled((2, 1, 64), 1, 2)}
    qformat.save(tmp_path / "a.qfmt", tensors)

    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "a.gguf")

    ones = b"\x38" * 4 + b"\x22" * 32
    one, two = struct.pack("<2f", 1, 2)[:4], struct.pack("<2f", 1, 2)
    assert list(as_read(tmp_path / "a.gguf").items()) == [
        (WEIGHT, 2 * ones), (SCALE, one), ("b.weight", 2 * ones), ("b.scale", two),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("down", scaled((2, 64), 0, 1), "'<module>.scale' beside '<module>.weight'"),
        ("a.weight", scaled((2, 64), 1, 2), "2 values for shape [2, 64]"),
        ("a.weight", scaled((2, 2, 64), 0, 1), "1 values for shape [2, 2, 64]"),
        ("a.weight", scaled((2, 1, 1, 64), 0, 1), "1 values for shape [2, 1, 1, 64]"),
    ],
)
def test_a_second_scale_without_a_place_is_refused(tmp_path: Path, name: str, tensor: PackedTensor, words: str) -> None:
    qformat.save(tmp_path / "a.qfmt", {name: tensor})

    with pytest.raises(NotExact) as caught:
        qconvert.convert(tmp_path / "a.qfmt", tmp_path / "a.gguf")

    assert (caught.value.tensor, caught.value.field) == (name, "global_scale")
    assert words in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.qfmt"]


def test_a_type_is_what_a_format_says_not_what_it_is_called() -> None:
    form, q4_0 = nvfp4_scaled(0), GGUF[0]
    other_steps = replace(form, scheme=replace(form.scheme, steps=(Step(Op.DIV, form.scheme.steps[0].operand),)))
    divided = replace(q4_0, scheme=replace(q4_0.scheme, steps=(Step(Op.DIV, Ref("scales")),)))

    assert [ggml.type_of(one) for one in (form, replace(form, name="of another name"), q4_0)] == [NVFP4, NVFP4, Q4_0]
    assert [ggml.type_of(one) for one in (other_steps, divided)] == [None, None]


def test_a_weight_and_its_scale_stay_in_one_part(tmp_path: Path) -> None:
    source = write(tmp_path / "a.gguf", PLACES["apart"])

    qconvert.convert(source, tmp_path / "b.gguf", limits=Limits(n_tensors=1))

    parts = [f"b-0000{number}-of-00002.gguf" for number in (1, 2)]
    assert [list(as_read(tmp_path / part)) for part in parts] == [[WEIGHT, SCALE], [OTHER[0]]]


def test_parts_that_tear_them_apart_are_read_as_one(tmp_path: Path) -> None:
    stored = blocks(2)
    for number, tensor in enumerate([(WEIGHT, [64, 2], NVFP4, stored), (SCALE, [1], F32, TENTH)]):
        pairs = [kv("split.no", U16, number), kv("split.count", U16, 2), kv("split.tensors.count", I32, 2)]
        write(tmp_path / f"a-0000{number + 1}-of-00002.gguf", [tensor], pairs=pairs)

    with qconvert.open(tmp_path / "a-00001-of-00002.gguf") as model:
        assert model.keys() == (WEIGHT,)
        assert model[WEIGHT].dequantize().tobytes() == expected(stored, [0.1]).tobytes()
