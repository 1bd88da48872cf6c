"""AWQ: its search beside a plain one, what it never does worse, scales that are carried and scales that are folded."""

import weakref
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from made_inputs import F32, F64, correlated, of_hessian, output_error, statistics, weights

import qformat
from qformat import reference
from qformat.calibration import Statistics
from qformat.errors import UsageError
from qformat.formats import find
from qformat.formats.form import with_input_scale
from qformat.methods import Task, fold, quantize
from qformat.rules.catalogue import find as rule_of
from qformat.tensor import PackedTensor

TARGETS = ("int2_g32", "int4_g128", "uint4_g64", "int8", "int4_tensor", "nf4", "mxfp4", "gguf:nvfp4", "gguf:q4_0", "gguf:q4_k")


def stored(tensor: PackedTensor) -> dict[str, bytes]:
    """Give the stored bytes of every part."""
    return {part.form.role: bytes(part.source.read(0, part.source.n_bytes)) for part in tensor.parts}


def nearest(w: F32, size: int) -> F64:
    """Round to 4 bits, one float16 scale for `size` columns, by hand; give the values."""
    groups = w.reshape(len(w), -1, size)
    scale = (np.abs(groups).max(axis=2, keepdims=True) / np.float32(7)).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(groups / scale), -7, 7)
    return (codes * scale).reshape(w.shape).astype(np.float64)


def grid(means: F64) -> list[F64]:
    """Give the scales of the twenty exponents, the product of the least and the largest 1."""
    powers = [means ** (step / 20) for step in range(20)]
    return [power / np.sqrt(power.max() * power.min()) for power in powers]


@pytest.mark.parametrize("method", ["awq", "awq-weights"])
@pytest.mark.parametrize("target", TARGETS)
def test_never_more_is_lost_than_without_scales(target: str, method: str) -> None:
    for seed in (1, 2):
        inputs, w = correlated(500, 256, seed), weights(16, 256, seed=seed)
        known = statistics(inputs)
        without = output_error(w - quantize(w, target).dequantize(), known.hessian)

        found = quantize(w, target, method=method, calibration=known)

        assert output_error(w - found.dequantize(), known.hessian) <= without


def test_of_many_rows_those_that_are_seen_are_spread_over_all_and_alone_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    w, made, alive = weights(1500, 32), list[weakref.ref[F32]](), list[int]()
    known, form = statistics(correlated(300, 32)), find("int4_g32")

    def tiles() -> Iterator[F32]:
        for first in range(0, len(w), 100):
            tile = w[first : first + 100].copy()
            made.append(weakref.ref(tile))
            yield tile

    def lost(task: Task, how: object, rows: F32) -> F64:
        alive.append(sum(tile() is not None for tile in made))
        assert rows.tobytes() == w[::3].tobytes()
        return np.zeros(rows.shape)

    module = import_module("qformat.methods.awq")  # its package names a function so
    monkeypatch.setattr(module, "lost", lost)
    module.seen_error(Task(form, rule_of(form), w.shape, tiles, known), [np.ones(32), np.full(32, 2.0)])

    assert len(made) == 15
    assert max(alive) <= 1  # the last, that the loop still names


@pytest.mark.parametrize("method", ["awq", "awq-weights"])
def test_weights_that_are_not_finite_are_refused_without_a_warning(method: str) -> None:
    w = weights(4, 64)
    w[2, 3] = np.inf

    with pytest.raises(UsageError, match=r"weight \[2, 3\] is inf"):
        quantize(w, "int4_g32", method=method, calibration=statistics(correlated(100, 64)))


def test_scales_are_those_of_the_best_exponent() -> None:
    inputs, w = correlated(500, 128, mix=0.0), weights(16, 128)
    known = statistics(inputs)
    tried = grid(known.mean_abs)
    errors = [output_error(w - nearest((w * s).astype(np.float32), 32) / s, known.hessian) for s in tried]
    best = int(np.argmin(errors))
    assert best > 0

    found = quantize(w, "int4_g32", method="awq", calibration=known)

    assert np.allclose(found.param("pre_quant_scale")[0], 1 / tried[best], rtol=1e-6, atol=0)
    assert output_error(w - found.dequantize(), known.hessian) <= errors[best] * (1 + 1e-6)


def test_a_group_is_cut_where_an_outlier_costs_more_than_it_is_worth() -> None:
    w = weights(4, 64)
    w[:, 5] = 9  # of an input that is hardly ever there
    hessian = np.eye(64)
    hessian[5, 5] = 1e-4

    found = quantize(w, "int4_g32", method="awq", calibration=of_hessian(hessian))

    assert (found.param("pre_quant_scale") == 1).all()
    assert found.scales()[:, 0].astype(np.float64).max() < 0.95 * 9 / 7
    assert found.scales()[:, 1].astype(np.float64).tolist() == pytest.approx(np.abs(w[:, 32:]).max(axis=1) / 7, rel=0.6)


def test_scales_are_stored_and_are_part_of_the_weight(tmp_path: Path) -> None:
    w = weights(6, 96)
    found = quantize(w, "int4_g32", method="awq", calibration=statistics(correlated(300, 96)))
    assert found.scheme.input_scale == "pre_quant_scale"
    assert found.scheme.name == "int4_g32_input_scaled"

    qformat.save(tmp_path / "a.qfmt", {"w": found})
    with qformat.open(tmp_path / "a.qfmt") as model:
        again = model["w"]
        assert stored(again) == stored(found)
        assert again.scheme == found.scheme
        assert again.dequantize().tobytes() == found.dequantize().tobytes() == reference.decode(found).tobytes()
        inner = again.dequantize(input_scale=False)
    assert (inner * found.param("pre_quant_scale")).tobytes() == found.dequantize().tobytes()


@pytest.mark.parametrize("name", ["int4_g128", "int4_tensor", "nf4", "mxfp4"])
def test_any_format_can_have_an_input_scale(name: str) -> None:
    form = with_input_scale(find(name), "float16")

    assert form.n_bytes((4, 256)) == find(name).n_bytes((4, 256)) + 2 * 256
    with pytest.raises(UsageError, match="has an input scale already: 'pre_quant_scale'"):
        with_input_scale(form, "float16")


def test_columns_without_inputs_are_no_trouble() -> None:
    inputs, w = correlated(300, 64), weights(4, 64)
    inputs[:, 7] = 0

    for known in (statistics(inputs), statistics(inputs * 0)):
        found = quantize(w, "int4_g32", method="awq", calibration=known)
        assert np.isfinite(found.dequantize()).all()


@pytest.mark.parametrize("target", ["int4_g64", "nf4", "int4_tensor"])
def test_the_number_of_threads_changes_nothing(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qformat.methods.method.SEEN_WEIGHTS", 7 * 192)  # of thirteen tiles
    monkeypatch.setattr("qformat.methods.quantizing.ROUNDED_WEIGHTS", 7 * 192)
    known, w = statistics(correlated(300, 192)), weights(90, 192)
    found = []
    try:
        for n_threads in (1, 2, 3):
            qformat.set_threads(n_threads)
            found.append(stored(quantize(w, target, method="awq", calibration=known)))
    finally:
        qformat.set_threads(None)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("exact", [True, False])
def test_folding_loses_less_over_all_weights_that_share_an_input(exact: bool) -> None:
    known = statistics(correlated(400, 128))
    shared = [weights(8, 128, seed=1), weights(12, 128, seed=2)]

    found = fold(shared, "int4_g32", known, exact=exact)

    without = sum(output_error(w - quantize(w, "int4_g32").dequantize(), known.hessian) for w in shared)
    lost = 0.0
    for w, scaled in zip(shared, found.weights, strict=True):
        lost += output_error(w - quantize(scaled, "int4_g32").dequantize() * found.previous, known.hessian)
    assert lost < without
    assert [scaled.shape for scaled in found.weights] == [(8, 128), (12, 128)]


def test_folding_powers_of_two_is_exact() -> None:
    inputs = correlated(400, 64).astype(np.float32)
    w = weights(8, 64)

    found = fold([w], "int4_g32", statistics(inputs.astype(np.float64)), exact=True)

    assert len(set(found.scale.tolist())) > 1
    assert np.frexp(found.scale)[0].tolist() == [0.5] * 64
    assert (found.weights[0] * found.previous).tobytes() == w.tobytes()
    for x in inputs[:5]:  # each product, hence each output, is what it was
        assert (found.weights[0] * (x * found.previous)).tobytes() == (w * x).tobytes()


@pytest.mark.parametrize(
    ("hessian", "words"),
    [
        (1.5 * np.eye(256) - 0.5, "the Hessian is not positive definite after damping by 0.01 of its mean diagonal"),
        (1 - np.eye(256), "the Hessian is not positive semi-definite: column 0 is 0 on the diagonal and not beside it"),
    ],
)
def test_a_hessian_by_which_errors_would_be_negative_is_refused(hessian: F64, words: str) -> None:
    w, known = weights(2, 256), of_hessian(hessian)
    assert np.linalg.eigvalsh(hessian)[0] < -0.5

    for method in ("awq", "awq-weights"):
        with pytest.raises(UsageError, match=words) as caught:
            quantize(w, "int4_g32", method=method, calibration=known)
        assert caught.value.field == "hessian"
    with pytest.raises(UsageError, match=words):
        fold([w], "int4_g32", known)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["awq", "awq-weights"])
def test_the_size_of_inputs_does_not_matter(method: str) -> None:
    inputs, w = correlated(300, 64, mix=0.0), weights(8, 64)
    known = statistics(inputs)
    expected = quantize(w, "int4_g32", method=method, calibration=known).param("pre_quant_scale")
    assert len(set(expected[0].tolist())) > 1

    for size in (1e-250, 1e250):
        sized = Statistics(known.hessian, known.mean_abs * size, known.n_samples)
        found = quantize(w, "int4_g32", method=method, calibration=sized).param("pre_quant_scale")
        assert np.allclose(found, expected, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("target", ["nf4", "mxfp4"])  # whose scales reach as far as float32
def test_scales_that_take_weights_beyond_float32_are_not_taken(target: str) -> None:
    inputs, w = correlated(300, 64), weights(8, 64)
    w[:, 5] = 3e38
    inputs[:, 5] *= 1e4  # so that every scale would make it larger

    found = quantize(w, target, method="awq", calibration=statistics(inputs))

    assert (found.param("pre_quant_scale") == 1).all()


def test_what_does_not_fit_is_refused() -> None:
    w = weights(2, 96)

    with pytest.raises(UsageError, match="awq cannot round to 'nf4_b64': rows of 96 weights are no whole groups"):
        quantize(w, "nf4", method="awq", calibration=of_hessian(np.eye(96)))
    with pytest.raises(UsageError, match="calibration of 64 columns, the weight has 96"):
        quantize(w, "int4_g32", method="awq", calibration=of_hessian(np.eye(64)))
    with pytest.raises(UsageError, match="calibration of 64 columns, the weight has 96"):
        fold([w], "int4_g32", of_hessian(np.eye(64)))
    with pytest.raises(UsageError, match=r"dict, expected the statistics of one tensor, as calibration\[\"w\"\]"):
        fold([w], "int4_g32", {"w": of_hessian(np.eye(96))})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="int32, expected float32, float16 or bfloat16"):
        fold([w.astype(np.int32)], "int4_g32", of_hessian(np.eye(96)))
    with pytest.raises(UsageError, match="method awq needs calibration"):
        quantize(w, "int4_g32", method="awq")
