"""What a refusal says would work: tried on the tensor's own values, and true when it is done."""

from pathlib import Path

import numpy as np
import pytest
import qconvert
from qconvert.digest import digest_tensor
from qconvert.nearest import AS_IT_IS, LISTED
from qconvert.report import Refused, describe_item

from qformat import rules, store
from qformat.formats.mlx import affine
from qformat.tensor import PackedTensor, format_of, from_array, from_values

RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(0, 0.05, (6, 256)).astype(np.float32)


def saved(path: Path, *tensors: PackedTensor) -> Path:
    store.save(path, {f"layers.{n}.weight": tensor for n, tensor in enumerate(tensors)})
    return path


def zeros_apart(shift: int) -> PackedTensor:
    """Give four-bit codes with integer zeros, scales that float16 holds, and one row whose zeros are `shift`."""
    packed = rules.quantize(WEIGHTS, "uint4_g32")
    zeros = np.full(packed.param("zeros").shape, 8, packed.param("zeros").dtype)
    zeros[3] = shift
    values = {"codes": packed.codes(), "scales": packed.param("scales"), "zeros": zeros}
    return from_values(format_of(packed), packed.shape, values)


@pytest.mark.parametrize(
    ("to", "nearest"),
    [("gguf:q4_0", "exact as gguf:q5_0"), ("mlx:f16", "exact with mlx:f32"), ("gguf:f16", "exact as gguf:f32")],
)
def test_what_is_named_as_nearest_is_exact(tmp_path: Path, to: str, nearest: str) -> None:
    source = saved(tmp_path / "a.qfmt", zeros_apart(7))
    with pytest.raises(Refused) as caught:
        qconvert.convert(source, tmp_path / "out", to)
    (item,) = caught.value.report.refused
    assert (item.nearest, describe_item(item)["nearest"]) == (nearest, nearest)
    assert f"; nearest: {nearest}" in str(caught.value)
    done = qconvert.convert(source, tmp_path / "out", nearest.rpartition(" ")[2], names="own")
    with qconvert.open(source) as one, qconvert.open(done.paths[0]) as other:
        assert digest_tensor(one["layers.0.weight"]) == digest_tensor(other["layers.0.weight"])


def test_where_nothing_is_exact_the_one_that_rounds_is_named(tmp_path: Path) -> None:
    fine = RNG.uniform(0.001, 0.002, (6, 8)).astype(np.float32)  # of 24 bits
    codes = RNG.integers(0, 16, WEIGHTS.shape).astype(np.uint8)
    wide = from_values(affine(4, 32, "f32"), WEIGHTS.shape, {"codes": codes, "scales": fine, "biases": -fine / 3})
    source = saved(tmp_path / "a.qfmt", wide)
    (item,) = qconvert.plan(source, "gguf:q4_1").items
    assert item.nearest == "gguf:q4_1 with --allow rounded"


def test_where_no_codes_fit_quantizing_anew_is_named(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.qfmt", rules.quantize(WEIGHTS, "nf4"))
    (item,) = qconvert.plan(source, "gguf").items
    assert (item.verdict.verdict, item.nearest) == ("refused", "gguf:q8_0 with --allow requantize")
    report = qconvert.convert(source, tmp_path / "a.gguf", allow="requantize")
    assert (report.plan.items[0].target, report.plan.items[0].verdict.verdict) == ("gguf:q8_0", "requantize")


def test_what_nothing_else_holds_stays_as_it_is(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.qfmt", rules.quantize(WEIGHTS, "nf4"))
    (item,) = qconvert.plan(source, "gptq").items
    assert (item.target, item.nearest) == ("gptq", AS_IT_IS)


def test_only_tensors_that_need_it_are_quantized_anew(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.qfmt", rules.quantize(WEIGHTS, "nf4"), rules.quantize(WEIGHTS, "int4_g32"))
    report = qconvert.convert(source, tmp_path / "a.gguf", allow="requantize")
    assert [(item.target, item.verdict.verdict) for item in report.plan.items] == [
        ("gguf:q8_0", "requantize"),
        ("gguf:q4_0", "exact"),
    ]


def test_as_many_tensors_are_looked_at_as_a_report_prints(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.qfmt", *[rules.quantize(WEIGHTS[:1, :64], "nf4")] * (LISTED + 1))
    items = qconvert.plan(source, "gguf").items
    assert [bool(item.nearest) for item in items] == [True] * LISTED + [False]


def test_a_dense_tensor_is_named_by_the_container_that_it_lies_in(tmp_path: Path) -> None:
    store.save(tmp_path / "a.qfmt", {"a.weight": from_array(WEIGHTS)})
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "a.safetensors")
    (item,) = qconvert.plan(tmp_path / "a.safetensors", "gguf:q4_0").items
    assert item.source == "safetensors:f32"
