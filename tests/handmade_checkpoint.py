"""Checkpoint folders written by hand, and arrays read by software that is not ours."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from numpy.typing import NDArray

Stored = dict[str, tuple[str, tuple[int, ...], bytes]]
DTYPES: dict[str, Any] = {
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu, "I8": np.int8, "U8": np.uint8, "I16": np.int16, "I32": np.int32,
    "U32": np.uint32, "I64": np.int64,
}  # fmt: skip
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


def checkpoint(folder: Path, arrays: Mapping[str, NDArray[Any]], config: Mapping[str, Any] | None = None) -> Path:
    """Write a folder with one file of arrays and, if given, a config."""
    folder.mkdir()
    entries, data = {}, b""
    for name, array in arrays.items():
        held = np.ascontiguousarray(array).tobytes()
        entries[name] = {
            "dtype": CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(held)],
        }
        data += held
    header = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def stored(folder: Path) -> Stored:
    """Read element type, shape and bytes of every array of a folder."""
    found = safetensors.deserialize((folder / "model.safetensors").read_bytes())
    return {name: (array["dtype"], tuple(array["shape"]), bytes(array["data"])) for name, array in found}


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file."""
    found = safetensors.deserialize(path.read_bytes())
    return {name: np.frombuffer(bytes(t["data"]), DTYPES[t["dtype"]]).reshape(t["shape"]).copy() for name, t in found}


def same_floats(mine: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    """Tell whether floats are equal bit for bit, the payload of a NaN aside."""
    both = np.isnan(mine) & np.isnan(theirs)
    return mine.shape == theirs.shape and bool((both | (mine.view(np.uint32) == theirs.view(np.uint32))).all())
