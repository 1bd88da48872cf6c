"""The header a file would have with other metadata, and where its data would go.

Decides what a changed key means for the bytes: a header of the same tensors in the same order, and the data behind it moved
as one piece, or tensor by tensor where the alignment changes. A planned header is read back by the reader's own rules. Must
not know which change was asked for, nor touch a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from qconvert.containers.checkpoint import sniff
from qconvert.containers.gguf import GGUFFile, open_gguf
from qconvert.containers.gguf_header import parse_header as parse_gguf
from qconvert.containers.gguf_plan import plan_gguf
from qconvert.containers.gguf_tensors import TensorInfo, align
from qconvert.containers.gguf_types import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, STRING
from qconvert.containers.gguf_values import ByteOrder, KeyValue, key_value
from qconvert.containers.safetensors import SafetensorsFile, open_safetensors
from qconvert.containers.safetensors_header import parse_header as parse_safetensors
from qconvert.containers.safetensors_write import replace_metadata
from qconvert.meta_values import short_name
from qconvert.rewrite import Rewrite
from qformat.errors import NotExact, UsageError

Pairs: TypeAlias = dict[str, KeyValue]
File: TypeAlias = GGUFFile | SafetensorsFile

MAX_ALIGNMENT = 1 << 20  # nobody maps weights by more; padding of that size is memory and disk


def open_one(path: Path) -> File:
    """Open one file whose metadata can be edited.

    Raises UsageError for a `.qfmt` file or an index of shards, FileError for whatever holds no weights.
    """
    kind = sniff(path)
    if kind == "gguf":
        return open_gguf(path)
    if kind == "safetensors":
        return open_safetensors(path)
    if kind == "index":
        raise UsageError("found an index, expected one file: name the shard", path=path, found=kind)
    message = "the metadata of a .qfmt file lies under its digests: edit its source and convert that again"
    raise UsageError(message, path=path, found=kind)


def pairs_of(file: File) -> Pairs:
    """Give the metadata of a file as typed pairs, by key in file order."""
    if isinstance(file, GGUFFile):
        return dict(file.key_values)
    return {key: key_value(key, STRING, text) for key, text in file.metadata.items()}


def plan_header(file: File, pairs: Pairs) -> Rewrite:
    """Make the header that holds these pairs, say where the data goes, and see that its reader agrees.

    Raises UsageError for pairs that the file cannot hold.
    """
    old = bytes(file.header_bytes)
    if isinstance(file, SafetensorsFile):
        strings = _strings(pairs, file.path)
        rewrite = _shifted(file, old, replace_metadata(old, strings, file.path))
        infos, metadata = parse_safetensors(rewrite.new, rewrite.n_bytes, file.path)
        agrees = (metadata or {}) == strings and _facts(infos, len(rewrite.new)) == _facts(file.tensors, len(old))
    else:
        rewrite = _plan_gguf(file, old, pairs)
        header = parse_gguf(memoryview(rewrite.new), rewrite.n_bytes)
        starts = (header.data_start, file.data_start) if header.alignment == file.alignment else (None, None)
        agrees = encoded(header.key_values, file.byte_order) == encoded(pairs, file.byte_order)
        agrees = agrees and _facts(header.tensors, starts[0]) == _facts(file.tensors, starts[1])
    if not agrees:
        raise NotExact("the header is not read back as it was planned", path=file.path, field="header")
    return rewrite


def encoded(pairs: Mapping[str, KeyValue], byte_order: ByteOrder) -> dict[str, bytes]:
    """Give each pair's bytes, key and type included, as a file of this byte order holds them."""
    return {key: b"".join(pair.encode(byte_order)) for key, pair in pairs.items()}


def order_of(file: File) -> ByteOrder:
    """Give the byte order of a file's numbers."""
    return file.byte_order if isinstance(file, GGUFFile) else "<"


def _plan_gguf(file: GGUFFile, old: bytes, pairs: Pairs) -> Rewrite:
    alignment = _alignment(pairs, max(MAX_ALIGNMENT, file.n_bytes))
    tensors = [(t.name, t.dims, t.type_id, t.n_bytes) for t in file.tensors.values()]
    plan = plan_gguf(pairs.values(), tensors, version=file.version, byte_order=file.byte_order)
    new = plan.parts[0][1]
    if tensors and alignment == file.alignment:
        return _shifted(file, old, new)
    if not tensors and file.n_bytes > len(old):  # padding that nothing asks for stays as legal as it was
        return Rewrite(old, new, (), file.n_bytes, align(len(new), alignment))
    places = zip(file.tensors.values(), plan.tensors, strict=True)
    pieces = tuple((was.byte_offset, now.byte_offset, now.n_bytes) for was, now in places)
    return Rewrite(old, new, pieces, file.n_bytes, plan.n_bytes)


def _alignment(pairs: Pairs, most: int) -> int:
    """Read the alignment asked for, before anything of its size is made."""
    pair = pairs.get(ALIGNMENT_KEY)
    if pair is None:
        return DEFAULT_ALIGNMENT
    if not isinstance(pair.value, int):
        kind = short_name(pair.value_type, pair.element_type)
        raise UsageError(f"is {kind}, expected u32", field=ALIGNMENT_KEY, expected="u32", found=kind)
    if pair.value > most:
        message = f"alignment {pair.value}, expected at most {most}"
        raise UsageError(message, field=ALIGNMENT_KEY, expected=most, found=pair.value)
    return pair.value


def _shifted(file: File, old: bytes, new: bytes) -> Rewrite:
    """Carry over everything behind the header as one piece."""
    n_rest = file.n_bytes - len(old)
    return Rewrite(old, new, ((len(old), len(new), n_rest),), file.n_bytes, len(new) + n_rest)


def _facts(tensors: Mapping[str, Any], data_start: int | None) -> list[tuple[Any, ...]]:
    """List what must not change of the tensors; with a start, also their places after it."""
    kinds = [t.type_id if isinstance(t, TensorInfo) else t.dtype for t in tensors.values()]
    places = [None if data_start is None else t.byte_offset - data_start for t in tensors.values()]
    rest = [(t.name, t.shape, t.n_bytes) for t in tensors.values()]
    return list(zip(kinds, places, rest, strict=True))


def _strings(pairs: Pairs, path: Path) -> dict[str, str]:
    for pair in pairs.values():
        if not isinstance(pair.value, str):
            kind = short_name(pair.value_type, pair.element_type)
            raise UsageError(f"is {kind}, expected str: safetensors holds strings alone", path=path, field=pair.key, found=kind)
    return {key: str(pair.value) for key, pair in pairs.items()}
