"""What a caller of the Python interface asks for is taken in its usual spellings, and refused in one line otherwise."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
from safetensors.numpy import save_file

import qformat
from qformat.errors import UsageError
from qformat.tensor import from_array

WEIGHTS = np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 64)
PACKED = qformat.quantize(WEIGHTS, "int4_g32")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(np.float32, "float32"), (np.dtype("f2"), "float16"), (ml_dtypes.bfloat16, "bfloat16"), (float, "float64")],
)
def test_an_element_type_may_be_an_object(dtype: Any, name: str) -> None:
    found = PACKED.dequantize(dtype=dtype)
    assert (found.dtype.name, found.tobytes()) == (name, PACKED.dequantize(name).tobytes())


@pytest.mark.parametrize("tensor", [PACKED, from_array(WEIGHTS)], ids=["packed", "dense"])
@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", np.int32, "bool", "int4", "foo", "", "sum", "finfo", 7, ["float32"], "complex64"]
)
def test_another_type_than_a_float_is_refused(tensor: qformat.PackedTensor, dtype: Any) -> None:
    with pytest.raises(UsageError, match="expected a"):
        tensor.dequantize(dtype=dtype)


def test_integers_are_read_as_what_they_are() -> None:
    stored = np.arange(-4, 4, dtype=np.int8).reshape(2, 4)
    assert from_array(stored).dequantize("int8").tobytes() == stored.tobytes()
    with pytest.raises(UsageError, match="read them as int8"):
        from_array(stored).dequantize("float32")


@pytest.mark.parametrize("rows", [3, [1, 2], slice("a", None), slice(0, 4, 2), "0:2"])
def test_rows_are_a_slice(rows: Any) -> None:
    with pytest.raises(UsageError, match="rows"):
        PACKED.dequantize(rows=rows)


@pytest.mark.parametrize(
    "out", [np.empty((4, 63), "f4"), np.empty((4, 64), "f2"), np.frombuffer(bytes(1024), "f4").reshape(4, 64), [0]]
)
def test_an_array_that_cannot_be_written_is_refused(out: Any) -> None:
    with pytest.raises(UsageError, match=r"out is .*, expected float32 \(4, 64\)"):
        PACKED.dequantize(out=out)


def test_memory_is_a_number(tmp_path: Path) -> None:
    save_file({"a.weight": WEIGHTS}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="'1GiB' bytes of memory to work in, expected at least"):
        qconvert.convert(tmp_path / "a.safetensors", tmp_path / "a.qfmt", max_memory="1GiB")  # type: ignore[arg-type]
