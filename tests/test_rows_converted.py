"""Rows that were moved, on their way into files: kept as they are in `.qfmt`, said anew in what other ecosystems hold."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import qconvert
from numpy.typing import NDArray
from qconvert.verdict import EXACT, SAME_BYTES, judge
from test_rows import EVERY, K, N, make

from qformat import store
from qformat.formats import Format, find
from qformat.formats.awq import gemm
from qformat.formats.bitnet import bitnet
from qformat.formats.bitsandbytes import four_bit
from qformat.formats.gguf import Q4_0, Q4_1, Q8_0, nvfp4_scaled
from qformat.formats.gptq import gptq
from qformat.formats.hqq import hqq
from qformat.formats.mlx import affine
from qformat.formats.modelopt import w4a16
from qformat.rows import rearrange
from qformat.tensor import PackedTensor, format_of, from_values

ORDER = np.random.default_rng(8).permutation(N)


def sound(form: Format, seed: int = 0) -> PackedTensor:
    """Make a tensor whose scales are powers of two and zero points whole numbers: what other formats can hold."""
    rng, values = np.random.default_rng(seed), make(form, seed=seed)
    stored: dict[str, NDArray[Any]] = {"codes": values.codes()}
    for param in form.scheme.params:
        shape = values.param(param.name).shape
        numbers = np.ldexp(np.float32(1), rng.integers(-6, -2, shape)) if param.name == "scales" else rng.integers(1, 8, shape)
        stored[param.name] = numbers.astype(values.param(param.name).dtype)
    return from_values(form, (N, K), stored)


@pytest.mark.parametrize("form", EVERY, ids=lambda form: f"{form.name}-{EVERY.index(form)}")
def test_moved_rows_lie_in_a_qfmt_file(form: Format, tmp_path: Path) -> None:
    moved = rearrange([make(form)], ORDER, (N, K))
    store.save(tmp_path / "moved.qfmt", {"a": moved})
    with store.open(tmp_path / "moved.qfmt") as model:
        found = model["a"]
        assert format_of(found).meaning == format_of(moved).meaning
        assert found.codes().tobytes() == moved.codes().tobytes()
        if not form.scheme.is_dense:
            assert found.dequantize().tobytes() == moved.dequantize().tobytes()


PATHS = [
    (gptq("v2", 4, 32), Q4_1),
    (gptq("v1", 4, 64), gptq("v2", 4, 64)),
    (gptq("v1", 4, 64), affine(4, 64, "f32")),
    (gemm(64), Q4_1),
    (gemm(32), gptq("v2", 4, 32)),
    (w4a16(32), Q4_0),
    (w4a16(128), gptq("v2", 4, 128)),
    (hqq(4, 1, 64, 0), Q4_1),
    (hqq(4, 1, 64, 0), affine(4, 64, "f16")),
    (bitnet(), find("int8_tensor")),
    (find("int4_g32"), Q4_0),
    (find("uint4_g32"), gemm(32)),
    (Q4_0, affine(4, 32, "f16")),
    (Q4_0, gptq("v2", 4, 32)),
    (Q8_0, find("int8_g32")),
]


@pytest.mark.parametrize(("form", "target"), PATHS, ids=lambda form: form.name)
def test_moved_rows_are_said_in_other_formats(form: Format, target: Format) -> None:
    tensor = sound(form)
    before, after = judge(tensor, target), judge(rearrange([tensor], ORDER, (N, K)), target)
    assert before.verdict == EXACT, before
    assert (after.verdict, after.reason) == (before.verdict, before.reason)


def test_double_quantization_that_crossed_rows_is_spelled_out() -> None:
    form = four_bit("nf4", 64, nested=(256, 0.5))
    moved = rearrange([sound(form)], ORDER, (N, K))
    verdict = judge(moved, four_bit("nf4", 64))
    assert verdict.verdict == EXACT, verdict


def test_a_stack_of_nvfp4_goes_into_gguf_with_its_scales(tmp_path: Path) -> None:
    tensors = [make(nvfp4_scaled(0), seed=seed) for seed in range(2)]
    stack = rearrange(tensors, np.arange(2 * N), (2, N, K))
    assert judge(stack, nvfp4_scaled(N)).verdict == SAME_BYTES
    store.save(tmp_path / "stack.qfmt", {"blk.0.ffn_up_exps.weight": stack})
    qconvert.convert(tmp_path / "stack.qfmt", tmp_path / "stack.gguf", names="own")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "stack.gguf").tensors}
    scales = np.concatenate([tensor.param("global_scale").reshape(-1) for tensor in tensors])
    assert found["blk.0.ffn_up_exps.scale"].data.tobytes() == scales.tobytes()
    assert found["blk.0.ffn_up_exps.weight"].data.tobytes() == b"".join(
        tensor.part("codes").source.read(0, tensor.part("codes").source.n_bytes).tobytes() for tensor in tensors
    )


@pytest.mark.parametrize("to", ["gguf:q4_1", "mlx:f32", "gptq:v2", "awq:gemm", "compressed-tensors:pack"])
def test_moved_rows_are_written_and_proved(to: str, tmp_path: Path) -> None:
    tensor = sound(gptq("v1", 4, 32))
    moved = rearrange([tensor, tensor], np.concatenate([ORDER, ORDER + N]), (2 * N, K))
    store.save(tmp_path / "moved.qfmt", {"a.weight": moved})
    dst = tmp_path / ("out.gguf" if to.startswith("gguf") else "out")
    (item,) = qconvert.convert(tmp_path / "moved.qfmt", dst, to).plan.items
    assert item.verdict.verdict == EXACT
    with qconvert.open(dst) as written:
        expected = np.concatenate([tensor.dequantize()[ORDER]] * 2)
        assert np.array_equal(written["a.weight"].dequantize(), expected)
