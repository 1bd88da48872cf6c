"""No bit of a `.qfmt` file can be flipped unseen, and no byte be missing."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from qfmt_samples import place, write_sample

from qformat.errors import FileError
from qformat.file import File

MODES = ("none", "scales", "all")


def opens(data: bytes) -> bool:
    """Tell whether the bytes open as a file."""
    try:
        File("flipped.qfmt", memoryview(data))
    except FileError:
        return False
    return True


def reads(data: bytes, name: str, role: str) -> bool:
    """Tell whether a part can be read."""
    try:
        file = File("flipped.qfmt", memoryview(data))
        file.read(file.tensors[name], role)
    except FileError:
        return False
    return True


def flips(data: bytes, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Give the bytes once for each bit of a range, that bit flipped."""
    for bit in range(8 * begin, 8 * end):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(flipped)


@pytest.mark.parametrize("mode", MODES)
def test_no_flip_in_header_or_index_opens(mode: str, tmp_path: Path) -> None:
    data = write_sample(tmp_path / "a.qfmt", mode)
    index_offset = place(data, "head")
    assert opens(data)
    every = chain(flips(data, 0, 128), flips(data, index_offset, len(data)))
    assert [bit for bit, flipped in every if opens(flipped)] == []


@pytest.mark.parametrize("mode", MODES)
def test_no_flip_after_the_header_verifies(mode: str, tmp_path: Path) -> None:
    data = bytearray(write_sample(tmp_path / "a.qfmt", mode))
    file = File("a.qfmt", memoryview(data))
    file.verify()
    survivors = []
    for bit in range(8 * 128, 8 * place(data, "head")):
        data[bit // 8] ^= 1 << bit % 8
        try:
            file.verify()
            survivors.append(bit)
        except FileError:
            data[bit // 8] ^= 1 << bit % 8
    assert survivors == []


@pytest.mark.parametrize(("byte", "field"), [(16, "header_digest"), (70, "header_digest"), (-1, "index_digest")])
def test_a_flip_after_opening_is_refused_by_verify(byte: int, field: str, tmp_path: Path) -> None:
    data = bytearray(write_sample(tmp_path / "a.qfmt"))
    file = File("a.qfmt", memoryview(data))
    data[byte] ^= 1
    with pytest.raises(FileError, match=field):
        file.verify()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("number", "name", "role"), [(0, "ü.weight", "blocks"), (1, "b", "codes"), (1, "b", "scales")])
def test_no_flip_in_its_own_chunks_can_be_read(mode: str, number: int, name: str, role: str, tmp_path: Path) -> None:
    data = write_sample(tmp_path / "a.qfmt", mode)
    whole = File("a.qfmt", memoryview(data))
    part = next(part for part in whole.tensors[name].parts if part.role == role)
    spans = [(plane.byte_offset, plane.byte_offset + plane.stored_bytes) for plane in part.planes]
    first, n_chunks = struct.unpack_from("<2I", data, place(data, "entries", number, 16))
    spans.append((place(data, "table", first), place(data, "table", first + n_chunks)))
    assert reads(data, name, role)
    survivors = [bit for span in spans for bit, flipped in flips(data, *span) if reads(flipped, name, role)]
    assert survivors == []


def test_a_flip_in_another_tensor_does_not_hinder_reading(tmp_path: Path) -> None:
    data = bytearray(write_sample(tmp_path / "a.qfmt"))
    data[File("a.qfmt", memoryview(bytes(data))).tensors["b"].parts[0].planes[0].byte_offset] ^= 1
    assert reads(bytes(data), "ü.weight", "blocks")
    assert reads(bytes(data), "b", "scales")
    assert not reads(bytes(data), "b", "codes")


@pytest.mark.parametrize("mode", MODES)
def test_no_truncated_file_opens(mode: str, tmp_path: Path) -> None:
    data = write_sample(tmp_path / "a.qfmt", mode)
    assert [n for n in range(len(data)) if opens(data[:n])] == []


def test_a_file_followed_by_a_byte_is_refused(tmp_path: Path) -> None:
    data = write_sample(tmp_path / "a.qfmt")
    with pytest.raises(FileError, match=r"file_bytes.*followed by other bytes"):
        File("a.qfmt", memoryview(data + b"\0"))
