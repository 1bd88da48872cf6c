"""Writing a safetensors file: the header first, then bytes of any tensor in any order.

It decides the header's spelling and order, which are the reference writer's, and where each tensor goes. A header kept
from a file is written as it was instead, so that odd but legal files come back byte for byte.
It must not know where bytes come from, nor rename or sync files: the caller gives a path that does not exist yet and
moves the finished file.

Source: huggingface/safetensors 0.8.0: safetensors/src/tensor.rs, `prepare` and `serialize`.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from qconvert.containers.safetensors_header import (
    BITS,
    CODE_OF,
    MAX_HEADER_BYTES,
    METADATA,
    RANK_OF,
    header_length,
    parse_header,
    tensor_n_bytes,
)
from qformat.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class SafetensorsWriter:
    """A file being written; a context manager that ends with `close` unless an error left it.

    path    : must not exist; created with the modes the umask leaves of 0o666
    tensors : (name, dtype in our spelling, shape) in any order
    metadata: strings; None writes none
    header  : in place of both, a header taken verbatim from a file

    `tensors` maps each name to its place, in the header's order; `n_bytes` is the length of the whole file.

    Raises UsageError when the format cannot hold a tensor or the file cannot be made.
    """

    def __init__(
        self,
        path: str | Path,
        tensors: Iterable[tuple[str, str, Sequence[int]]] | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        header: bytes | None = None,
    ) -> None:
        if (tensors is None) == (header is None):
            raise UsageError("a header is planned from tensors or taken verbatim: give one of the two", path=path)
        header = plan_header(tensors or (), metadata) if header is None else header
        self.path = Path(path)
        if header_length(header, len(header), self.path) != len(header):
            raise UsageError("bytes follow the header, expected the header alone", path=self.path)
        self.tensors, _ = parse_header(header, None, self.path)
        self.n_bytes = len(header) + sum(info.n_bytes for info in self.tensors.values())
        self._n_left = self.n_bytes
        self._count = threading.Lock()
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except (OSError, ValueError) as err:
            raise UsageError(f"cannot be created: {_reason(err)}", path=path) from err
        self._put(header, 0)

    def write(self, name: str, byte_offset: int, data: ReadableBuffer) -> None:
        """Write bytes of one tensor; from any thread, in any order, each byte once.

        byte_offset: from the start of the tensor
        data       : contiguous; arrays of ml_dtypes types are passed as `array.view("uint8")`

        Raises UsageError when there is no such tensor, the bytes do not fit in it, or the disk refuses them.
        """
        info = self.tensors.get(name)
        if info is None:
            raise UsageError("there is no such tensor in the file being written", path=self.path, tensor=name)
        try:
            view = memoryview(data)
            if not view.c_contiguous:
                raise BufferError("its bytes are not contiguous")
            view = view.cast("B") if view.nbytes else memoryview(b"")
        except (BufferError, TypeError, ValueError) as err:
            raise UsageError(f"the data cannot be read as bytes: {err}", path=self.path, tensor=name) from err
        if byte_offset < 0 or byte_offset + len(view) > info.n_bytes:
            message = f"bytes {byte_offset} to {byte_offset + len(view)} were given, expected 0 to {info.n_bytes} at most"
            raise UsageError(message, path=self.path, tensor=name, expected=info.n_bytes)
        self._put(view, info.byte_offset + byte_offset)

    def close(self) -> None:
        """Close the file, which is whole.

        Raises UsageError when the bytes written are not as many as the tensors hold.
        """
        if self._fd < 0:
            return
        self._release()
        if self._n_left:
            message = f"{self.n_bytes - self._n_left} bytes were written, expected {self.n_bytes}"
            raise UsageError(message, path=self.path, expected=self.n_bytes, found=self.n_bytes - self._n_left)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _put(self, data: ReadableBuffer, at: int) -> None:
        rest = memoryview(data)
        n_put = len(rest)
        while rest:
            try:
                n = os.pwrite(self._fd, rest, at)
            except OSError as err:
                self._release()
                raise UsageError(f"cannot be written: {_reason(err)}", path=self.path, offset=at) from err
            rest, at = rest[n:], at + n
        with self._count:
            self._n_left -= n_put


def plan_header(tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Make the header the reference writer makes for these tensors: length field, text, spaces to a multiple of 8.

    tensors : (name, dtype in our spelling, shape) in any order; the header's order is dtype descending, then name
    metadata: written in its own order, and also when it is empty; None writes none

    Raises UsageError when the format cannot hold one of them.
    """
    members: dict[str, object] = {}
    if metadata is not None:
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise UsageError("the metadata must map strings to strings", field=METADATA)
        members[METADATA] = dict(metadata)
    begin = 0
    checked = [(name, dtype, *_planned_shape(name, dtype, shape)) for name, dtype, shape in tensors]
    for name, dtype, shape, n_bytes in sorted(checked, key=lambda t: (-RANK_OF[t[1]], t[0])):
        if name in members or name == METADATA:
            found = "is the metadata's name" if name == METADATA else "is given twice"
            raise UsageError(f"the name {found}, expected a name of its own", tensor=name)
        end = begin + n_bytes
        members[name] = {"dtype": CODE_OF[dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    try:
        text = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as err:
        raise UsageError("a name or the metadata holds an unpaired surrogate, which UTF-8 cannot hold") from err
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise UsageError(f"the header would be {len(text)} bytes long, expected at most {MAX_HEADER_BYTES}; use shards")
    return struct.pack("<Q", len(text)) + text


def _planned_shape(name: str, dtype: str, shape: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Check a tensor to be written: its shape in Python integers, its bytes."""
    if dtype not in BITS:
        raise UsageError(f"safetensors cannot hold dtype '{dtype}': expected one of {', '.join(BITS)}", tensor=name)
    dims = tuple(map(index, shape))
    n_bytes = "the shape holds a negative dimension" if min(dims, default=0) < 0 else tensor_n_bytes(dtype, dims)
    if isinstance(n_bytes, str):
        raise UsageError(n_bytes, tensor=name, field="shape", found=dims)
    return dims, n_bytes


def _reason(err: OSError | ValueError) -> str:
    reason = err.strerror if isinstance(err, OSError) else None
    return (reason or str(err)).lower()
