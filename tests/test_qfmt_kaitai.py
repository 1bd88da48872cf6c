"""A reader compiled from spec/qfmt.ksy, which shares no code with the package, reads what the package wrote."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from qfmt_samples import BLOCKS, CODES, SCALES, write_sample

PARTS = {"ü.weight": {"blocks": BLOCKS}, "b": {"codes": CODES, "scales": SCALES}, "nothing": {"values": np.zeros(0)}}


@pytest.fixture(scope="module")
def kaitai(root: Path) -> ModuleType:
    """Give the compiled reader."""
    spec = importlib.util.spec_from_file_location("kaitai_qfmt", root / "spec" / "kaitai" / "qfmt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(kaitai: ModuleType, data: bytes) -> Any:
    """Read a file with the compiled reader."""
    return kaitai.Qfmt.from_bytes(data)


def read_part(file: Any, entry: Any, role: str) -> bytes:
    """Put a part together from its planes, by spec/qfmt.md alone."""
    plane_number, chunk_number = entry.first_plane, entry.first_chunk
    for part in entry.form.parts:
        columns = []
        for column in part.columns:
            body, at, pieces = file.index.planes[plane_number].body, 0, b""
            for record in file.chunk_table[chunk_number : chunk_number + part.n_stripes]:
                stored = body[at : at + record.stored_bytes]
                assert blake3(stored).digest() == record.digest
                at += record.stored_bytes
                pieces += decode(stored, record.encoding.name, column.element_bytes)
            columns.append(np.frombuffer(pieces, np.uint8).reshape(-1, column.end - column.begin))
            plane_number, chunk_number = plane_number + 1, chunk_number + part.n_stripes
        if part.role == role:
            return np.concatenate(columns, axis=1).tobytes()
    raise AssertionError(role)


def decode(stored: bytes, encoding: str, element_bytes: int) -> bytes:
    """Undo zstd and shuffle."""
    if encoding == "raw":
        return stored
    shuffled = zstandard.ZstdDecompressor().decompress(stored)
    n = len(shuffled) // element_bytes
    return bytes(shuffled[k * n + i] for i in range(n) for k in range(element_bytes))


@pytest.mark.parametrize("mode", ["none", "scales", "all"])
def test_the_compiled_reader_gives_the_bytes_of_every_part(mode: str, kaitai: ModuleType, tmp_path: Path) -> None:
    file = parse(kaitai, write_sample(tmp_path / "a.qfmt", mode))
    entries = file.index.entries[: file.index.head.n_tensors]
    found = {e.name: {part.role: read_part(file, e, part.role) for part in e.form.parts} for e in entries}
    assert found == {name: {role: a.tobytes() for role, a in parts.items()} for name, parts in PARTS.items()}


@pytest.mark.parametrize("mode", ["none", "scales", "all"])
def test_the_compiled_reader_gives_the_assets(mode: str, kaitai: ModuleType, tmp_path: Path) -> None:
    file = parse(kaitai, write_sample(tmp_path / "a.qfmt", mode))
    assets = file.index.entries[file.index.head.n_tensors :]
    found = {asset.name: read_part(file, asset, "asset") for asset in assets}
    assert found == {"config.json": b'{"a": 1}', "tokenizer/empty": b""}


def test_the_compiled_reader_gives_shapes_dtypes_and_descriptors(kaitai: ModuleType, tmp_path: Path) -> None:
    file = parse(kaitai, write_sample(tmp_path / "a.qfmt"))
    forms = [(e.form.shape, e.form.dtype, json.loads(e.form.descriptor)) for e in file.index.entries[:3]]
    assert forms == [
        ([8, 64], "float32", {"scheme": "q4_1"}),
        ([4, 20], "bfloat16", {"scheme": "int4"}),
        ([0, 3], "float32", {"scheme": "dense"}),
    ]
    parts = [(p.role, p.dtype, p.shape, p.row_bytes, p.n_bytes) for p in file.index.entries[1].form.parts]
    assert parts == [("codes", "uint8", [4, 10], 10, 40), ("scales", "float32", [8, 1], 4, 32)]


def test_the_compiled_reader_gives_metadata_and_recipe(kaitai: ModuleType, tmp_path: Path) -> None:
    documents = [json.loads(d.text) for d in parse(kaitai, write_sample(tmp_path / "a.qfmt")).index.documents[:2]]
    assert documents == [
        {"general.name": {"type": "string", "value": "x"}, "n": {"type": "uint64", "value": str(2**63)}},
        {"from": "gguf"},
    ]


@pytest.mark.parametrize("mode", ["none", "scales", "all"])
def test_the_digests_that_the_compiled_reader_gives_are_right(mode: str, kaitai: ModuleType, tmp_path: Path) -> None:
    data = write_sample(tmp_path / "a.qfmt", mode)
    file = parse(kaitai, data)
    header = file.header
    assert header.header_digest == blake3(data[:96]).digest()
    assert header.index_digest == blake3(data[header.index_offset :]).digest()
    for entry in file.index.entries:
        begin = header.table_offset + 40 * entry.first_chunk
        assert entry.digest == blake3(data[begin : begin + 40 * entry.n_chunks]).digest()


def test_a_wrong_magic_is_refused_by_the_compiled_reader(kaitai: ModuleType) -> None:
    with pytest.raises(kaitai.kaitaistruct.ValidationNotEqualError):
        parse(kaitai, b"\x89PNG\r\n\x1a\n" + bytes(120))
