"""Quantizing into the memory of a tensor that was quantized before: every byte as in new memory, and no other memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_fused import defined, stored

import qformat
from qformat.arrays import Memory
from qformat.errors import UsageError
from qformat.rules import resolve
from qformat.rules.encoding import quantize

WEIGHTS = np.random.default_rng(23).standard_normal((12, 512)).astype(np.float32)
# Kernels that write every part, that leave a part to be packed, blocks with bytes of no meaning, blocks packed tile by tile,
# searches, a short last block, one scale over all.
TARGETS = ("gguf:q8_0", "mxfp4", "uint4_g128", "int3_g128", "gguf:q8_1", "gguf:tq1_0", "gguf:q3_k", "gguf:q1_0", "int4_tensor")


def arrays(tensor: qformat.PackedTensor) -> list[Any]:
    """Give the arrays that hold a tensor."""
    return [part.source.data for part in tensor.parts if hasattr(part.source, "data")]


@pytest.mark.parametrize("target", TARGETS)
def test_memory_is_written_anew_in_full(target: str) -> None:
    out = quantize(WEIGHTS, target)
    held = arrays(out)
    for array in held:
        array[:] = 0xA5

    made = quantize(-3 * WEIGHTS[::-1], target, out=out)

    assert stored(made) == stored(out) == defined(-3 * WEIGHTS[::-1], resolve(target))
    assert [id(array) for array in arrays(made)] == [id(array) for array in held]


def test_a_short_last_block_is_written_too() -> None:
    out = qformat.quantize(WEIGHTS[:1, :100], "nf4")

    made = qformat.quantize(WEIGHTS[1:2, :100], "nf4", out=out)

    assert stored(made) == stored(out) == defined(WEIGHTS[1:2, :100], resolve("nf4"))


@pytest.mark.parametrize("method", ["mse", "gptq"])
def test_methods_write_it_too(method: str) -> None:
    inputs = np.random.default_rng(4).standard_normal((64, 512)).astype(np.float32)
    known: dict[str, Any] = {"method": method, "calibration": qformat.calibrate(iter([{"w": inputs}]))["w"]}
    expected = stored(qformat.quantize(WEIGHTS, "int4_g128", **known))
    out = qformat.quantize(-WEIGHTS, "int4_g128", **known)

    made = qformat.quantize(WEIGHTS, "int4_g128", out=out, **known)

    assert stored(made) == stored(out) == expected


@pytest.mark.parametrize("other", [(WEIGHTS[:6], "int4_g128"), (WEIGHTS, "int4_g64"), (WEIGHTS, "uint4_g128")])
def test_a_tensor_of_another_shape_or_format_is_refused(other: Any) -> None:
    out = qformat.quantize(*other)

    with pytest.raises(UsageError, match=r"out is .*, expected int4_g128 \(12, 512\)"):
        qformat.quantize(WEIGHTS, "int4_g128", out=out)


def test_a_tensor_of_a_file_is_refused(tmp_path: Path) -> None:
    qformat.save(tmp_path / "a.qfmt", {"w": qformat.quantize(WEIGHTS, "int4_g128")})

    with qformat.open(tmp_path / "a.qfmt") as model, pytest.raises(UsageError, match="out cannot be written"):
        qformat.quantize(WEIGHTS, "int4_g128", out=model["w"])


def test_memory_of_the_weights_is_refused() -> None:
    memory = np.zeros(4 * 544, np.uint8)
    one = qformat.quantize(np.ones((1, 512), np.float32), "gguf:q8_0")
    out = replace(one, parts=(replace(one.parts[0], source=Memory(memory[:544])),))

    with pytest.raises(UsageError, match="out lies in the memory of the weights"):
        qformat.quantize(memory[:2048].view(np.float32).reshape(1, 512), "gguf:q8_0", out=out)
