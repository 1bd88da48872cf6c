"""Big-endian GGUF files: read, decoded, and turned into the little-endian files that hold the same.

Where the words of a block lie is written down here once more, by hand, from ggml-org/ggml: src/ggml-common.h and from how
src/ggml-quants.c loads them; the twin of a file is made from that alone. Files made by llama.cpp's own script are compared
for the types that it knows.
"""

import builtins
import io
import struct
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf as peer
import handmade_gguf as made
import numpy as np
import pytest
import qconvert
from gguf.scripts.gguf_convert_endian import convert_byteorder
from handmade_gguf import ARR, BOOL, F32, F64, I8, I16, I32, I64, STR, U8, U16, U32, U64
from numpy.typing import NDArray
from qconvert.containers.gguf_types import GGML_TYPES

from qformat.errors import NotExact

Bytes = NDArray[np.uint8]
Golden = Callable[[str], Mapping[str, NDArray[Any]]]


def every(n_bytes: int, start: int, step: int, count: int) -> list[tuple[int, int]]:
    """List `count` words of `n_bytes`, `step` bytes apart."""
    return [(start + step * i, n_bytes) for i in range(count)]


# Type: id, weights of a block, its bytes, and the (byte offset, n_bytes) of every word of more than one byte in it.
WORDS: dict[str, tuple[int, int, int, list[tuple[int, int]]]] = {
    "f32": (0, 1, 4, [(0, 4)]),
    "f16": (1, 1, 2, [(0, 2)]),
    "q4_0": (2, 32, 18, [(0, 2)]),
    "q4_1": (3, 32, 20, [(0, 2), (2, 2)]),
    "q5_0": (6, 32, 22, [(0, 2), (2, 4)]),
    "q5_1": (7, 32, 24, [(0, 2), (2, 2), (4, 4)]),
    "q8_0": (8, 32, 34, [(0, 2)]),
    "q8_1": (9, 32, 36, [(0, 2), (2, 2)]),
    "q2_k": (10, 256, 84, [(80, 2), (82, 2)]),
    "q3_k": (11, 256, 110, [(108, 2)]),
    "q4_k": (12, 256, 144, [(0, 2), (2, 2)]),
    "q5_k": (13, 256, 176, [(0, 2), (2, 2)]),
    "q6_k": (14, 256, 210, [(208, 2)]),
    "q8_k": (15, 256, 292, [(0, 4), *every(2, 260, 2, 16)]),
    "iq2_xxs": (16, 256, 66, [(0, 2), *every(4, 6, 8, 8)]),
    "iq2_xs": (17, 256, 74, [(0, 2), *every(2, 2, 2, 32)]),
    "iq3_xxs": (18, 256, 98, [(0, 2), *every(4, 66, 4, 8)]),
    "iq1_s": (19, 256, 50, [(0, 2), *every(2, 34, 2, 8)]),
    "iq4_nl": (20, 32, 18, [(0, 2)]),
    "iq3_s": (21, 256, 110, [(0, 2)]),
    "iq2_s": (22, 256, 82, [(0, 2)]),
    "iq4_xs": (23, 256, 136, [(0, 2), (2, 2)]),
    "i8": (24, 1, 1, []),
    "i16": (25, 1, 2, [(0, 2)]),
    "i32": (26, 1, 4, [(0, 4)]),
    "i64": (27, 1, 8, [(0, 8)]),
    "f64": (28, 1, 8, [(0, 8)]),
    "iq1_m": (29, 256, 56, every(2, 48, 2, 4)),
    "bf16": (30, 1, 2, [(0, 2)]),
    "tq1_0": (34, 256, 54, [(52, 2)]),
    "tq2_0": (35, 256, 66, [(64, 2)]),
    "mxfp4": (39, 32, 17, []),
    "nvfp4": (40, 64, 36, []),
    "q1_0": (41, 128, 18, [(0, 2)]),
    "q2_0": (42, 64, 18, [(0, 2)]),
}
PACKED = [name for name, (_, n_weights, *_) in WORDS.items() if n_weights > 1]
DECODED = [name for name in PACKED if name != "q8_1"]  # ggml has no decoder for it
every_type = pytest.mark.parametrize("name", WORDS)

# What llama.cpp's script turns; NVFP4 and MXFP4 have no words.
SCRIPTED = ["f32", "f16", "bf16", "q4_0", "q8_0", "q4_k", "q6_k", "mxfp4", "nvfp4"]


def twin(name: str, data: Bytes) -> Bytes:
    """Reverse the bytes of every word in every block."""
    _, _, n_bytes, words = WORDS[name]
    blocks = data.reshape(-1, n_bytes).copy()
    for start, width in words:
        blocks[:, start : start + width] = blocks[:, start : start + width][:, ::-1].copy()
    return blocks.reshape(-1)


def pairs(order: str) -> list[bytes]:
    """Make key-values of every type."""
    plain = [(U8, 200), (I8, -5), (U16, 258), (I16, -2), (U32, 1), (I32, -3), (F32, 0.1), (BOOL, 1), (STR, "é"), (U64, 2**63)]
    scalars = [made.kv(f"k.{kind}", kind, value, order) for kind, value in [*plain, (I64, -(2**63)), (F64, 0.1)]]
    lists = [(U16, [1, 258]), (STR, ["a", "", "bé"]), (F32, [0.5, -1]), (BOOL, [0, 1])]
    nested = made.text("k.nested", order=order) + struct.pack(order + "IIQ", ARR, ARR, 1)
    nested += struct.pack(order + "IQ2H", U16, 2, 1, 258)
    return [*scalars, *(made.kv_array(f"l.{kind}", kind, values, order=order) for kind, values in lists), nested]


def file_of(order: str, tensors: Mapping[str, Bytes], rows: int = 2) -> bytes:
    """Make a file whose tensors are called by their types; the data is given as little-endian files hold it."""
    infos, data = [], b""
    for name, little in tensors.items():
        type_id, n_weights, n_bytes, _ = WORDS[name]
        infos.append(made.info(name, [little.size // n_bytes // rows * n_weights, rows], type_id, len(data), order=order))
        data += (little if order == "<" else twin(name, little)).tobytes()
        data += bytes(-len(data) % 32)
    return made.gguf([made.kv("general.architecture", STR, "llama", order), *pairs(order)], infos, data, order=order)


def random_blocks(name: str, n_blocks: int = 6) -> Bytes:
    return np.random.default_rng(len(name) + WORDS[name][0]).integers(0, 256, n_blocks * WORDS[name][2], dtype=np.uint8)


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def bits(values: NDArray[Any]) -> bytes:
    return values.astype(np.float32).view(np.uint32).tobytes()


def test_every_type_has_its_words_here() -> None:
    sizes = {name: (type_id, n_weights, n_bytes) for name, (type_id, n_weights, n_bytes, _) in WORDS.items()}
    assert sizes == {kind.name: (type_id, kind.n_weights, kind.n_bytes) for type_id, kind in GGML_TYPES.items()}


@every_type
def test_the_twin_of_a_twin_is_the_original(name: str) -> None:
    data = random_blocks(name)
    assert twin(name, twin(name, data)).tobytes() == data.tobytes()


@every_type
def test_any_bytes_come_out_as_the_little_endian_file(tmp_path: Path, name: str) -> None:
    data = random_blocks(name)
    big, out = save(tmp_path / "big.gguf", file_of(">", {name: data})), tmp_path / "little.gguf"
    report = qconvert.convert(big, out, to="gguf")
    assert out.read_bytes() == file_of("<", {name: data})
    assert [(item.verdict.verdict, item.verdict.reason) for item in report.plan.items] == [
        ("exact", "blocks copied, byte order changed")
    ]


def test_a_file_of_all_types_comes_out_as_the_little_endian_one(tmp_path: Path) -> None:
    tensors = {name: random_blocks(name) for name in WORDS}
    big, out = save(tmp_path / "big.gguf", file_of(">", tensors)), tmp_path / "little.gguf"
    qconvert.convert(big, out, to="gguf")
    assert out.read_bytes() == file_of("<", tensors)


@pytest.mark.parametrize("compress", ["none", "all"])
def test_a_file_of_all_types_comes_out_of_qfmt_as_the_little_endian_one(tmp_path: Path, compress: str) -> None:
    tensors = {name: random_blocks(name) for name in WORDS}
    big, packed, out = save(tmp_path / "big.gguf", file_of(">", tensors)), tmp_path / "a.qfmt", tmp_path / "back.gguf"
    qconvert.convert(big, packed, compress=compress)
    qconvert.convert(packed, out)
    assert out.read_bytes() == file_of("<", tensors)


@pytest.mark.parametrize("name", ["q4_0", "q5_0", "iq4_nl"])
def test_another_format_is_made_of_either_twin_alike(tmp_path: Path, golden_ggml: Golden, name: str) -> None:
    data = {name: golden_ggml(name.upper())["packed"].reshape(-1)}
    little, big = save(tmp_path / "little.gguf", file_of("<", data)), save(tmp_path / "big.gguf", file_of(">", data))
    qconvert.convert(little, tmp_path / "one.gguf", to="gguf:q8_0")
    qconvert.convert(big, tmp_path / "other.gguf", to="gguf:q8_0")
    assert (tmp_path / "other.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()


def test_a_type_whose_words_nobody_knows_is_listed_and_not_turned(tmp_path: Path) -> None:
    infos = [made.info("w", [8], 77, 0, order=">")]
    big = save(tmp_path / "big.gguf", made.gguf([made.kv("a", U8, 1, ">")], infos, bytes(32), order=">"))
    with qconvert.open(big) as model:
        assert model["w"].n_bytes == 32
    with pytest.raises(NotExact, match="words of a type_77 block are not known"):
        qconvert.convert(big, tmp_path / "little.gguf", to="gguf")
    assert not (tmp_path / "little.gguf").exists()


@pytest.mark.parametrize("name", DECODED)
def test_a_big_endian_tensor_decodes_to_the_values_of_ggml(tmp_path: Path, golden_ggml: Golden, name: str) -> None:
    golden = golden_ggml(name.upper())
    data = golden["fuzz_packed"].reshape(-1)
    with qconvert.open(save(tmp_path / "big.gguf", file_of(">", {name: data}))) as model:
        assert bits(model[name].dequantize()) == bits(golden["fuzz_y"])


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_a_big_endian_dense_tensor_decodes_to_the_values_of_ggml(tmp_path: Path, golden_ggml: Golden, name: str) -> None:
    golden = golden_ggml(name.upper())
    with qconvert.open(save(tmp_path / "big.gguf", file_of(">", {name: golden["packed"].reshape(-1)}))) as model:
        assert bits(model[name].dequantize()) == bits(golden["y"])


@pytest.mark.parametrize("name", PACKED)
def test_codes_and_parameters_are_those_of_the_little_endian_tensor(tmp_path: Path, golden_ggml: Golden, name: str) -> None:
    golden = golden_ggml(name.upper())
    data = golden["fuzz_packed" if "fuzz_packed" in golden else "packed"].reshape(-1)
    little, big = (save(tmp_path / f"{order == '<'}.gguf", file_of(order, {name: data})) for order in "<>")
    with qconvert.open(little) as one, qconvert.open(big) as other:
        mine, theirs = one[name], other[name]
        assert theirs.codes().tobytes() == mine.codes().tobytes()
        names = [param.name for param in mine.scheme.params]
        assert [theirs.param(p).tobytes() for p in names] == [mine.param(p).tobytes() for p in names]


def test_key_values_of_every_type_are_read_alike(tmp_path: Path) -> None:
    little, big = (save(tmp_path / f"{order == '<'}.gguf", file_of(order, {})) for order in "<>")
    with qconvert.open(little) as one, qconvert.open(big) as other:
        plain = [{key: getattr(v, "values", lambda v=v: v)() for key, v in model.metadata.items()} for model in (one, other)]
        assert plain[0] == plain[1]
        assert plain[1]["k.nested"] == [[1, 258]]


@pytest.mark.parametrize("name", SCRIPTED)
def test_the_file_that_the_gguf_script_turns_is_the_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = random_blocks(name)
    path = save(tmp_path / "a.gguf", file_of("<", {name: data}))
    turn_with_script(path, monkeypatch)
    assert path.read_bytes() == file_of(">", {name: data})
    qconvert.convert(path, tmp_path / "back.gguf", to="gguf")
    assert (tmp_path / "back.gguf").read_bytes() == file_of("<", {name: data})


def turn_with_script(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn a little-endian file in place with the gguf package's own script."""
    monkeypatch.setattr(builtins, "input", lambda prompt: "YES")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    convert_byteorder(peer.GGUFReader(path, "r+"), Namespace(order="big", dry_run=False))
