"""Small `.qfmt` files, and ways to damage them so that every digest is right again.

Offsets and widths are those of spec/qfmt.md, written down a second time: nothing here comes from the package except the
writer that makes the samples.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from blake3 import blake3

from qformat.file import Column, PartSpec, TensorSpec, Typed, Writer

HEAD = ("tensors", "assets", "planes", "chunks", "forms", "parts", "columns", "dims", "symbols", "documents")
WIDTHS = {
    "entries": 56,
    "planes": 16,
    "forms": 24,
    "parts": 32,
    "columns": 8,
    "dims": 8,
    "symbols": 8,
    "documents": 16,
}
BLOCKS = np.random.default_rng(seed=1).integers(0, 256, (16, 20), np.uint8)  # (n_blocks, block_bytes)
BLOCKS[:, :4] = [7, 0x3C, 9, 0xBC]
CODES = np.random.default_rng(seed=2).integers(0, 256, (4, 10), np.uint8)
SCALES = np.float32([[1.5], [1.5], [1.5], [-2.5], [1.5], [1.5], [1.5], [1.5]])
BLOCK_COLUMNS = (Column(0, 2, 2), Column(2, 4, 2), Column(4, 20, is_codes=True))


def dense_spec(name: str, shape: tuple[int, ...]) -> TensorSpec:
    """A float32 tensor stored as it is."""
    row_bytes = 4 * (shape[-1] if shape and shape[-1] else 1)
    return TensorSpec(name, shape, "float32", {"scheme": "dense"}, (PartSpec("values", "float32", shape, row_bytes),))


def sample_specs() -> list[TensorSpec]:
    """Blocks in three columns; codes and scales; an empty tensor."""
    blocks = PartSpec("blocks", "uint8", (8, 40), 40, block_bytes=20, columns=BLOCK_COLUMNS)
    codes = PartSpec("codes", "uint8", (4, 10), 10, is_codes=True)
    scales = PartSpec("scales", "float32", (8, 1), 4)
    return [
        TensorSpec("ü.weight", (8, 64), "float32", {"scheme": "q4_1"}, (blocks,)),
        TensorSpec("b", (4, 20), "bfloat16", {"scheme": "int4"}, (codes, scales)),
        dense_spec("nothing", (0, 3)),
    ]


def write_sample(path: Path, compress: str = "none", alignment: int = 64) -> bytes:
    """Write the sample and give its bytes."""
    metadata = {"general.name": Typed("string", "x"), "n": Typed("uint64", 2**63)}
    assets = {"config.json": b'{"a": 1}', "tokenizer/empty": b""}
    with Writer(
        path,
        sample_specs(),
        metadata=metadata,
        assets=assets,
        recipe={"from": "gguf"},
        compress=compress,
        alignment=alignment,
    ) as writer:
        writer.write("ü.weight", "blocks", 0, BLOCKS)
        writer.write("b", "codes", 0, CODES)
        writer.write("b", "scales", 0, SCALES)
    return path.read_bytes()


def place(data: bytes | bytearray, section: str, number: int = 0, byte: int = 0) -> int:
    """Give the offset of a byte of a record in the file."""
    (start,) = struct.unpack_from("<Q", data, 48)
    counts = dict(zip(HEAD, struct.unpack_from("<10Q", data, start), strict=True))
    counts["entries"] = counts["tensors"] + counts["assets"]
    if section == "header":
        return byte
    if section == "head":
        return start + byte
    if section == "table":
        return int(struct.unpack_from("<Q", data, 40)[0]) + 40 * number + byte
    position = start + 80
    for name, width in WIDTHS.items():
        if name == section:
            return position + width * number + byte
        position += width * counts[name]
    assert section == "text"
    return position + byte


def patch(data: bytes, section: str, number: int, byte: int, form: str, value: int | bytes) -> bytes:
    """Change a field, and make the digests of index and header right again."""
    damaged = bytearray(data)
    struct.pack_into("<" + form, damaged, place(data, section, number, byte), value)
    return seal(damaged)


def seal(data: bytes | bytearray) -> bytes:
    """Make the digests of index and header right."""
    sealed = bytearray(data)
    (start,) = struct.unpack_from("<Q", sealed, 48)
    sealed[64:96] = blake3(bytes(sealed[start:])).digest()
    sealed[96:128] = blake3(bytes(sealed[:96])).digest()
    return bytes(sealed)


def seal_entry(data: bytes | bytearray, entry: int) -> bytes:
    """Make the digest of the chunk records of an entry right, then those above it."""
    sealed = bytearray(data)
    first, n_chunks = struct.unpack_from("<2I", sealed, place(sealed, "entries", entry, 16))
    begin = place(sealed, "table", first)
    digest = place(sealed, "entries", entry, 24)
    sealed[digest : digest + 32] = blake3(bytes(sealed[begin : begin + 40 * n_chunks])).digest()
    return seal(sealed)


def hand_built() -> bytes:
    """Give the worked file of spec/qfmt.md, field by field."""
    values = struct.pack("<2f", 1.0, -2.0)
    record = struct.pack("<IB3x", 8, 0) + blake3(values).digest()
    text, documents = b"wfloat32values", [b"{}", b"null", b'{"scheme":"dense"}']
    index = struct.pack("<10Q", 1, 0, 1, 1, 1, 1, 1, 2, 2, 3)
    index += struct.pack("<6I", 0, 1, 0, 0, 0, 1) + blake3(record).digest()  # entry
    index += struct.pack("<2Q", 128, 8)  # plane
    index += struct.pack("<3I2HB7x", 2, 0, 0, 1, 0, 1)  # form
    index += struct.pack("<2Q2I3H2B", 8, 8, 1, 0, 1, 0, 4, 1, 1)  # part
    index += struct.pack("<2H4B", 0, 4, 4, 0, 0, 0)  # column
    index += struct.pack("<2Q", 2, 2)  # dims
    index += struct.pack("<4I", 1, 7, 8, 6)  # symbols
    index += struct.pack("<6Q", 0, 2, 2, 4, 6, 18)  # documents
    index += text.ljust(16, b"\0") + b"".join(documents)
    payload = values.ljust(64, b"\0") + record.ljust(64, b"\0")
    header = struct.pack("<8s2HI6Q", b"\x89QFMT\r\n\x1a", 1, 0, 64, 0, 0, 256 + len(index), 192, 256, len(index))
    header += blake3(index).digest()
    return header + blake3(header).digest() + payload + index
