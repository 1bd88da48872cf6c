"""Shared fixtures: the stored vectors, read with software that is not ours."""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import settings
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
F32 = NDArray[np.float32]
Chunk = Callable[..., bytes]

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "spec" / "vectors"

# The dtype names of the safetensors header that the stored vectors use.
DTYPES = {"BF16": ml_dtypes.bfloat16, "F32": np.float32, "I16": np.int16, "U8": np.uint8}

# The same examples on every run, however slow the machine: a failure is one that anyone can see again.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


@pytest.fixture(scope="session")
def root() -> Path:
    """Give the root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Give the folder of the stored vectors."""
    return VECTORS


@pytest.fixture(scope="session")
def golden_ggml() -> Callable[[str], Arrays]:
    """Give the reader of ggml's vectors: "Q4_0" to the fields listed in spec/vectors/ggml/README.md, read-only."""

    def read(name: str) -> Arrays:
        with np.load(VECTORS / "ggml" / f"{name}.npz", allow_pickle=False) as stored:
            return {field: _frozen(stored[field]) for field in stored.files}

    return read


@pytest.fixture(scope="session")
def golden_hf() -> Callable[[str], Arrays]:
    """Give the reader of a safetensors vector: path below spec/vectors/hf without suffix to arrays, read-only."""

    def read(name: str) -> Arrays:
        stored = safetensors.deserialize((VECTORS / "hf" / f"{name}.safetensors").read_bytes())
        return {key: np.frombuffer(bytes(t["data"]), DTYPES[t["dtype"]]).reshape(t["shape"]) for key, t in stored}

    return read


@pytest.fixture(scope="session")
def ggml_library() -> ctypes.CDLL:
    """Give ggml itself."""
    import xllamacpp  # here: the environment of the oracles has none

    return ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("*.so"))))


@pytest.fixture(scope="session")
def ggml_chunk(ggml_library: ctypes.CDLL) -> Chunk:
    """Give what ggml's quantize tool calls: type id, rows, bytes of a row, importance of columns to packed bytes."""
    call = ggml_library.ggml_quantize_chunk
    call.restype = ctypes.c_size_t
    call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p)

    def pack(type_id: int, rows: F32, n_bytes: int, importance: F32 | None = None) -> bytes:
        given = np.ascontiguousarray(rows, np.float32)
        counts = None if importance is None else np.ascontiguousarray(importance, np.float32)
        out = np.empty(len(rows) * n_bytes, np.uint8)
        address = None if counts is None else counts.ctypes.data
        assert call(type_id, given.ctypes.data, out.ctypes.data, 0, *rows.shape, address) == out.size
        return out.tobytes()

    return pack


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
