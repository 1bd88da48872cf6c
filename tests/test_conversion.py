"""Conversions from file to file: exact and proved, or nothing at all."""

import threading
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import qconvert
from blake3 import blake3
from qconvert import conversion, destination, sinks
from qconvert.conversion import dequantize
from qconvert.digest import digest_tensor
from qconvert.quantizing import quantize
from qconvert.report import Refused
from safetensors import safe_open
from safetensors.numpy import save_file

import qformat
from qformat import rules, store
from qformat.arrays import Memory
from qformat.errors import FileError, NotExact, UsageError
from qformat.formats import find
from qformat.tensor import assemble

RNG = np.random.default_rng(7)
KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "F32")


def gguf_file(path: Path, kinds: tuple[str, ...] = KINDS, rows: int = 5) -> Path:
    """Write a GGUF by the gguf package: one matrix of every type, a vector, metadata of several types."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    for kind in kinds:
        kind_id = gguf.GGMLQuantizationType[kind]
        weights = RNG.normal(0, 0.02, (rows, 64)).astype(np.float32)
        writer.add_tensor(f"{kind.lower()}.weight", gguf.quants.quantize(weights, kind_id), raw_dtype=kind_id)
    writer.add_tensor("norm.weight", np.linspace(0, 1, 7, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dense_file(path: Path) -> dict[str, Any]:
    tensors = {"a.weight": RNG.normal(0, 0.05, (6, 128)).astype(np.float32), "a.bias": np.arange(6, dtype=np.float32)}
    save_file(tensors, path, metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("compress", ["none", "scales", "all"])
def test_gguf_returns_byte_for_byte(tmp_path: Path, compress: str) -> None:
    source = gguf_file(tmp_path / "a.gguf")
    qconvert.convert(source, tmp_path / "a.qfmt", compress=compress)
    report = qconvert.convert(tmp_path / "a.qfmt", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()
    assert report.plan.counts() == {"same-bytes": len(KINDS) + 1}


def test_safetensors_returns_byte_for_byte(tmp_path: Path) -> None:
    dense_file(tmp_path / "a.safetensors")
    qconvert.convert(tmp_path / "a.safetensors", tmp_path / "a.qfmt")
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_gguf_decodes_to_what_the_gguf_package_decodes(tmp_path: Path) -> None:
    source = gguf_file(tmp_path / "a.gguf")
    dequantize(source, tmp_path / "a.safetensors")
    expected = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(source).tensors}
    with safe_open(tmp_path / "a.safetensors", "np") as reader:
        found = {name: reader.get_tensor(name).astype(np.float32).tobytes() for name in reader.keys()}  # noqa: SIM118
    assert found == {name: values.astype(np.float32).tobytes() for name, values in expected.items()}


def test_a_written_gguf_is_read_by_the_gguf_package(tmp_path: Path) -> None:
    arrays = dense_file(tmp_path / "a.safetensors")
    quantize(tmp_path / "a.safetensors", tmp_path / "a.qfmt", "qfmt:int4-g32")
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "a.gguf")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    packed = rules.quantize(arrays["a.weight"], "int4_g32")
    assert tensors["a.weight"].tensor_type == gguf.GGMLQuantizationType.Q4_0
    decoded = gguf.quants.dequantize(tensors["a.weight"].data, gguf.GGMLQuantizationType.Q4_0)
    scales = np.repeat(packed.param("scales").astype(np.float32), 32, axis=1)
    assert np.array_equal(decoded, packed.codes() * scales)


def test_quantized_ggml_blocks_are_the_gguf_packages(tmp_path: Path) -> None:
    arrays = dense_file(tmp_path / "a.safetensors")
    quantize(tmp_path / "a.safetensors", tmp_path / "a.gguf", "gguf:q8_0")
    found = next(t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors if t.name == "a.weight")
    expected = gguf.quants.quantize(arrays["a.weight"], gguf.GGMLQuantizationType.Q8_0)
    assert found.data.tobytes() == expected.tobytes()


def test_the_same_weights_have_the_same_digest_in_any_file(tmp_path: Path) -> None:
    dense_file(tmp_path / "a.safetensors")
    quantize(tmp_path / "a.safetensors", tmp_path / "a.qfmt", "qfmt:mxfp4")
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "a.gguf")
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "d.safetensors", to="safetensors")
    digests = set()
    for name in ("a.qfmt", "a.gguf", "d.safetensors"):
        with qconvert.open(tmp_path / name) as model:
            digests.add(digest_tensor(model["a.weight"]))
    assert len(digests) == 1


def test_a_refusal_writes_nothing_and_names_the_first_tensor(tmp_path: Path) -> None:
    dense_file(tmp_path / "a.safetensors")
    quantize(tmp_path / "a.safetensors", tmp_path / "a.qfmt", "qfmt:nf4")
    with pytest.raises(Refused, match=r"'a.weight'.*same numbers"):
        qconvert.convert(tmp_path / "a.qfmt", tmp_path / "a.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.qfmt", "a.safetensors"]


def test_packed_weights_never_become_dense_by_a_suffix(tmp_path: Path) -> None:
    source = gguf_file(tmp_path / "a.gguf")
    with pytest.raises(NotExact, match="qfmt dequantize"):
        qconvert.convert(source, tmp_path / "a.safetensors")


def test_requantizing_is_done_when_it_is_allowed(tmp_path: Path) -> None:
    source = gguf_file(tmp_path / "a.gguf", ("Q4_1",))
    with pytest.raises(Refused, match="--allow requantize"):
        qconvert.convert(source, tmp_path / "b.gguf", to="gguf:q8_0")
    report = qconvert.convert(source, tmp_path / "b.gguf", to="gguf:q8_0", allow="requantize")
    assert report.plan.counts() == {"same-bytes": 1, "requantize": 1}
    found = next(t for t in gguf.GGUFReader(tmp_path / "b.gguf").tensors if t.name == "q4_1.weight")
    old = next(t for t in gguf.GGUFReader(source).tensors if t.name == "q4_1.weight")
    decoded = gguf.quants.dequantize(old.data, old.tensor_type)
    assert found.data.tobytes() == gguf.quants.quantize(decoded, gguf.GGMLQuantizationType.Q8_0).tobytes()


@pytest.mark.parametrize("target", ["qfmt", "gguf:q8_0", "safetensors"])
def test_a_byte_that_the_writer_gets_wrong_is_found_by_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    source = gguf_file(tmp_path / "a.gguf", ("Q4_0",))
    real = sinks.open_sink

    class Wrong:
        def __init__(self, sink: Any) -> None:
            self.sink = sink

        def write(self, tensor: int, role: str, byte_offset: int, data: Any, encoded: Any = None) -> None:
            data = np.array(data)
            data[-1] ^= 0x10
            self.sink.write(tensor, role, byte_offset, data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sink, name)

    monkeypatch.setattr(conversion, "open_sink", lambda *args: Wrong(real(*args)))
    with pytest.raises(NotExact, match="is not"):
        qconvert.convert(source, tmp_path / "b.out", to=target)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize(
    ("name", "to", "compress"),
    [
        ("b.qfmt", "qfmt", "none"),
        ("b.qfmt", "qfmt", "all"),
        ("b.gguf", "gguf:q8_0", "none"),
        ("b.safetensors", "safetensors", "none"),
    ],
)
def test_neither_a_file_nor_its_receipt_depends_on_the_number_of_threads(
    tmp_path: Path, name: str, to: str, compress: str
) -> None:
    source, made = gguf_file(tmp_path / "a.gguf", ("Q4_0",), rows=9000), set()
    for workers in (1, 2, 5):
        qformat.set_threads(workers)
        try:
            qconvert.convert(source, tmp_path / name, to, compress=compress, receipt=tmp_path / "r.json", force=True)
        finally:
            qformat.set_threads(None)
        made.add(((tmp_path / name).read_bytes(), (tmp_path / "r.json").read_bytes()))
    assert len(made) == 1


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_quantized_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, workers: int) -> None:
    weights = RNG.normal(0, 1, (900, 640)).astype(np.float32)
    save_file({"w": weights}, tmp_path / "a.safetensors")
    quantize(tmp_path / "a.safetensors", tmp_path / "a.qfmt", "qfmt:nf4", workers=workers)
    with store.open(tmp_path / "a.qfmt") as model:
        assert model["w"].codes().tobytes() == rules.quantize(weights, "nf4").codes().tobytes()


def test_an_unreadable_chunk_ends_all_threads_in_one_error(tmp_path: Path) -> None:
    source = gguf_file(tmp_path / "a.gguf", ("Q4_0",), rows=9000)
    qconvert.convert(source, tmp_path / "a.qfmt")
    with store.open(tmp_path / "a.qfmt") as model:
        place = model["q4_0.weight"].n_bytes // 2
    data = bytearray((tmp_path / "a.qfmt").read_bytes())
    data[place] ^= 1
    (tmp_path / "a.qfmt").write_bytes(data)
    before, n_alive = sorted(tmp_path.iterdir()), threading.active_count()
    with pytest.raises(FileError, match="BLAKE3 is"):
        qconvert.convert(tmp_path / "a.qfmt", tmp_path / "b.gguf", workers=5)
    assert sorted(tmp_path.iterdir()) == before
    assert threading.active_count() <= n_alive + 5  # those that all share, idle


@pytest.mark.parametrize("target", ["qfmt:nf4", "qfmt:int8-tensor", "qfmt:int8-asym-tensor", "qfmt:uint4-g48", "qfmt:int3-g16"])
def test_quantizing_by_tiles_gives_the_bytes_of_the_whole(tmp_path: Path, target: str) -> None:
    weights = RNG.normal(0, 1, (2100, 129)).astype(np.float32)
    save_file({"w": weights}, tmp_path / "a.safetensors")
    quantize(tmp_path / "a.safetensors", tmp_path / "a.qfmt", target)
    whole = rules.quantize(weights, target)
    with store.open(tmp_path / "a.qfmt") as model:
        parts = {p.form.role: p.source.read(0, p.source.n_bytes).tobytes() for p in model["w"].parts}
        assert parts == {p.form.role: p.source.read(0, p.source.n_bytes).tobytes() for p in whole.parts}
        assert model["w"].rule == whole.rule


def test_every_flipped_bit_is_refused_by_convert_and_dequantize(tmp_path: Path) -> None:
    save_file({"w": RNG.normal(0, 1, (1, 32)).astype(np.float32)}, tmp_path / "a.safetensors")
    quantize(tmp_path / "a.safetensors", tmp_path / "a.qfmt", "qfmt:mxfp4")
    good = (tmp_path / "a.qfmt").read_bytes()
    accepted = []
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "b.qfmt").write_bytes(flipped)
        for attempt in (
            lambda: qconvert.convert(tmp_path / "b.qfmt", tmp_path / "c.gguf"),
            lambda: dequantize(tmp_path / "b.qfmt", tmp_path / "c.safetensors"),
        ):
            try:
                attempt()
            except FileError:
                continue
            accepted.append(bit)
    assert accepted == []
    assert not (tmp_path / "c.gguf").exists()


def test_source_and_destination_must_differ(tmp_path: Path) -> None:
    source = gguf_file(tmp_path / "a.gguf", ("Q4_0",))
    with pytest.raises(UsageError, match="destination is the source"):
        qconvert.convert(source, source, to="gguf", force=True)
    with pytest.raises(UsageError, match="--force"):
        qconvert.convert(source, gguf_file(tmp_path / "b.gguf", ("Q4_0",)))


def test_a_full_disk_is_known_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = gguf_file(tmp_path / "a.gguf", ("Q4_0",))
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(UsageError, match="10 free"):
        qconvert.convert(source, tmp_path / "a.qfmt")


def test_a_folder_returns_with_the_files_beside_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    dense_file(folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    qconvert.convert(folder, tmp_path / "a.qfmt")
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "back", to="safetensors")
    found = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    assert found == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.qfmt", "back", "model"]


def test_an_unwritable_destination_leaves_nothing(tmp_path: Path) -> None:
    source = gguf_file(tmp_path / "a.gguf", ("Q4_0",))
    with pytest.raises(UsageError, match="does not exist"):
        qconvert.convert(source, tmp_path / "no" / "a.qfmt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        qconvert.convert(source, tmp_path / "folder", to="qfmt", force=True)


def test_bits_that_no_value_depends_on_are_kept_or_said_to_go(tmp_path: Path) -> None:
    """Three weights of four bits leave the high nibble of the second byte spare."""
    form = find("int4_channel")
    scales = Memory(np.array([0x00, 0x3C], np.uint8))
    tensor = assemble(form, (1, 3), {"codes": Memory(np.array([0x21, 0xF3], np.uint8)), "scales": scales})
    assert {role: spare.tolist() for role, spare in tensor.residue().items()} == {"codes": [0, 0xF0]}
    qformat.save(tmp_path / "a.qfmt", {"w": tensor})
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "b.qfmt")
    with qformat.open(tmp_path / "b.qfmt") as model:
        assert model["w"].residue()["codes"].tolist() == [0, 0xF0]
    report = qconvert.convert(tmp_path / "a.qfmt", tmp_path / "c.qfmt", to="qfmt:int8-channel")
    assert (report.plan.counts(), report.notices) == (
        {"exact": 1},
        ("'w': bits that no value depends on are not kept",),
    )


def test_what_is_read_of_a_source_is_digested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(3).standard_normal((512, 2048)).astype(np.float32)
    qformat.save(tmp_path / "a.qfmt", {"m.weight": qformat.quantize(weights, "gguf:q8_0")})
    digested = list[int]()
    monkeypatch.setattr("qformat.file.table.blake3", lambda data: digested.append(len(data)) or blake3(data))

    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "a.gguf")

    n_bytes = weights.size // 32 * 34
    assert n_bytes < sum(digested) < n_bytes + 4096  # the chunks, and their records
    digested.clear()
    with qformat.open(tmp_path / "a.qfmt") as model:
        model["m.weight"].dequantize()
        model.verify()
    assert sum(digested) > 2 * n_bytes


def test_what_was_said_of_quantizing_goes_where_weights_are_quantized_anew(tmp_path: Path) -> None:
    weights = np.random.default_rng(4).standard_normal((8, 256)).astype(np.float32)
    said = {"quantize.method": "gptq", "general.name": "m"}
    qformat.save(tmp_path / "a.qfmt", {"m.weight": qformat.quantize(weights, "int4_g32")}, metadata=said)
    for to, left in ((None, said), ("gguf:q2_k", {"general.name": "m"})):
        dst = tmp_path / ("again.qfmt" if to is None else "again.gguf")
        qconvert.convert(tmp_path / "a.qfmt", dst, to, allow="requantize")
        with qconvert.open(dst) as model:
            assert {key: value for key, value in model.metadata.items() if key in said} == left
