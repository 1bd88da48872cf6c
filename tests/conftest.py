"""Shared fixtures: the stored vectors, read with software that is not ours."""

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


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
