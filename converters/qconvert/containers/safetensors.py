"""A safetensors file, opened: its tensors as bytes and as arrays, straight from the map.

It decides how stored dtypes are handed out: NumPy's and ml_dtypes' own where they exist, bit patterns where an element
is less than a byte. It must not know what tensors mean or how several files belong together.

Source: huggingface/safetensors 0.8.0: README.md ("Format").
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.containers.mapped import Mapped, explain_foreign, open_mapped
from qconvert.containers.safetensors_header import BITS, TensorInfo, header_length, parse_header
from qconvert.containers.safetensors_write import plan_header
from qformat.closing import Closing
from qformat.errors import FileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMPY_DTYPES = {"bool", "float16", "float32", "float64", "complex64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


class SafetensorsFile(Closing):
    """An open file; a context manager.

    path        : as given
    tensors     : name -> TensorInfo, in the header's order
    metadata    : the strings of `__metadata__`, empty when there is none
    header_bytes: length field, text and padding, verbatim
    n_bytes     : length of the file

    Raises FileError when the file is not a safetensors file or its header breaks the format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map: Mapped = open_mapped(self.path)
        try:
            self.n_bytes = self._map.n_bytes
            self.header_bytes = bytes(self._map.data[: _header_end(self._map.data, self.path)])
            self.tensors, metadata = parse_header(self.header_bytes, self.n_bytes, self.path)
            self.metadata = metadata or {}
        except BaseException:
            self._map.close()
            raise

    def data(self, info: TensorInfo) -> memoryview:
        """Give the stored bytes of a tensor, read-only, as they lie in the file. Raises UsageError once it is closed."""
        return self._map.view(info.byte_offset, info.byte_offset + info.n_bytes)

    def array(self, info: TensorInfo) -> NDArray[Any]:
        """Give a tensor as a read-only array.

        returns: dtype and shape of `info`, a view of the map where the file aligns it, else a copy;
                 for elements of less than a byte their packed bytes instead, (n_bytes,) uint8
        """
        import numpy as np

        data = np.frombuffer(self.data(info), np.uint8) if info.n_bytes else np.empty(0, np.uint8)
        if BITS[info.dtype] < 8:
            return data
        if info.dtype in _NUMPY_DTYPES:
            dtype = np.dtype(info.dtype)
        else:
            import ml_dtypes

            dtype = np.dtype(getattr(ml_dtypes, info.dtype))
        if info.byte_offset % dtype.alignment:
            data = data.copy()
            data.flags.writeable = False
        return data.view(dtype).reshape(info.shape)

    def recipe(self) -> bytes | None:
        """Give the header a writer needs to make this very file, or None when planning one anew gives the same."""
        tensors = ((info.name, info.dtype, info.shape) for info in self.tensors.values())
        same = plan_header(tensors, self.metadata or None) == self.header_bytes
        return None if same else self.header_bytes

    def close(self) -> None:
        """Let go of the file; views handed out keep what they need of it."""
        self._map.close()


def open_safetensors(path: str | Path) -> SafetensorsFile:
    """Open a file and read its header; no payload is read.

    Raises FileError, see SafetensorsFile.
    """
    return SafetensorsFile(path)


def _header_end(data: memoryview, path: Path) -> int:
    """Find where the header ends, naming what else the file may be when it has none."""
    try:
        return header_length(data[:9], len(data), path)
    except FileError as err:
        foreign = None if data[8:9].tobytes() == b"{" else explain_foreign(data)
        if foreign is None:
            raise
        raise FileError(f"found {foreign}, expected a safetensors file", path=path, found=foreign) from err
