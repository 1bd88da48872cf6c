"""GGUF files made by hand with struct alone; counts, lengths, offsets and types can be made to lie."""

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def text(value: str | bytes, n_bytes: int | None = None, order: str = "<") -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(order + "Q", len(raw) if n_bytes is None else n_bytes) + raw


def plain(kind: int, value: object, order: str = "<") -> bytes:
    return text(value, order=order) if isinstance(value, (str, bytes)) else struct.pack(order + CODES[kind], value)


def kv(key: str | bytes, kind: int, value: object, order: str = "<") -> bytes:
    return text(key, order=order) + struct.pack(order + "I", kind) + plain(kind, value, order)


def kv_array(key: str, kind: int, values: Sequence[object], count: int | None = None, order: str = "<") -> bytes:
    head = struct.pack(order + "IIQ", ARR, kind, len(values) if count is None else count)
    return text(key, order=order) + head + b"".join(plain(kind, value, order) for value in values)


def info(name: str | bytes, dims: Sequence[int], type_id: int, offset: int, rank: int | None = None, order: str = "<") -> bytes:
    numbers = (len(dims) if rank is None else rank, *dims, type_id, offset)
    return text(name, order=order) + struct.pack(f"{order}I{len(dims)}QIQ", *numbers)


def gguf(
    pairs: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_infos: int | None = None,
    n_pairs: int | None = None,
    alignment: int = 32,
    fill: bytes = b"\0",
    order: str = "<",
) -> bytes:
    n_infos = len(infos) if n_infos is None else n_infos
    head = b"GGUF" + struct.pack(order + "IQQ", version, n_infos, len(pairs) if n_pairs is None else n_pairs)
    head += b"".join(pairs) + b"".join(infos)
    return head + (fill * (-len(head) % alignment) if infos else b"") + data


ARCH = kv("general.architecture", STR, "llama")
EIGHT = struct.pack("<8f", *range(8))  # exactly one unit of the default alignment


def one(dims: Sequence[int], type_id: int = 0, data: bytes = EIGHT, offset: int = 0, rank: int | None = None) -> bytes:
    """Make a file of one tensor "w", whose record stands at 0x45."""
    return gguf([ARCH], [info("w", dims, type_id, offset, rank)], data)
