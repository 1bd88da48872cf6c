"""Rule `mse`: never worse than the rule it searches among, equal to trying each number plainly, alike however rows are cut."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qformat import formats, quantize, reference
from qformat.errors import UsageError
from qformat.formats import Format
from qformat.rules import encode, resolve, rules
from qformat.rules import quantize as by_rule
from qformat.rules.catalogue import find
from qformat.tensor import PackedTensor

F32 = NDArray[np.float32]

FORMS = [form for form in (*formats.GGUF, *formats.PLANAR) if "mse" in rules(form)]
NAMES = [f"{'gguf:' * (form in formats.GGUF)}{form.name}" for form in FORMS]
every_form = pytest.mark.parametrize("form", FORMS, ids=NAMES)
weighting = pytest.mark.parametrize("is_weighted", [False, True], ids=["plain", "weighted"])


def weights(n_rows: int = 6, n_cols: int = 256) -> F32:
    """Give weights with heavy tails, some zeros, and a group of zeros."""
    found = (np.random.default_rng(3).standard_t(3, (n_rows, n_cols)) * 0.02).astype(np.float32)
    found[1, :64] = 0
    found[:, 7] = 0
    return found


def importance(n_cols: int = 256) -> F32:
    """Give importances of columns, some of them 0."""
    found = np.random.default_rng(4).gamma(1, 1, n_cols).astype(np.float32)
    found[::9] = 0
    return found


def stored(tensor: PackedTensor) -> list[bytes]:
    return [bytes(part.source.read(0, part.source.n_bytes)) for part in tensor.parts]


def error(tensor: PackedTensor, of: F32, counts: F32 | None) -> float:
    squares = np.square(tensor.dequantize().astype(np.float64) - of)
    return float((squares if counts is None else squares * counts).sum())


def test_formats_of_simple_scales_have_the_rule_and_no_others() -> None:
    wanted = {"gguf:" + name for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4", "nvfp4")}
    wanted |= {"mxfp4", "nf4_b64", "int4_g128", "uint4_g128", "int8_channel", "int8_asym_channel", "int3_g64"}

    assert wanted - set(NAMES) == set()
    assert {"gguf:q4_k", "gguf:q6_k", "gguf:iq4_xs", "int4_tensor", "int8_asym_tensor"} & set(NAMES) == set()


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_the_rule_comes_last_and_says_what_it_searches_among(form: Format) -> None:
    assert rules(form)[-1] == "mse"
    assert f"'{form.rule}'" in find(form, "mse").formula


@every_form
@weighting
def test_no_error_is_larger_than_that_of_the_default_rule(form: Format, is_weighted: bool) -> None:
    counts = importance() if is_weighted else None
    found = error(quantize(weights(), form, "mse", counts), weights(), counts)

    assert found <= error(quantize(weights(), form), weights(), counts)


@pytest.mark.parametrize(
    "target", ["int4_g64", "uint4_g64", "int2_g32", "nf4", "mxfp4", "gguf:q4_0", "gguf:nvfp4", "gguf:iq4_nl"]
)
@weighting
def test_the_search_gains(target: str, is_weighted: bool) -> None:
    counts = importance() if is_weighted else None
    found = error(quantize(weights(), target, "mse", counts), weights(), counts)

    assert found < 0.99 * error(quantize(weights(), target), weights(), counts)


def plain_search(groups: F32, low: int, high: int, counts: NDArray[Any]) -> tuple[F32, NDArray[Any]]:
    """Try every number for each group of symmetric int4, one by one, in float64."""
    scales, codes = np.zeros((len(groups), 1), np.float16), np.zeros(groups.shape, np.int8)
    for row, group in enumerate(groups):
        least = np.inf
        for k in (0, *range(-20, 0), *range(1, 11)):
            scale = np.float16(np.abs(group * np.float32(2 ** (k / 16))).max() / np.float32(high))
            tried = np.rint(group / np.float32(scale or 1)).clip(low, high)
            found = (np.square(tried.astype(np.float64) * np.float64(scale) - group) * counts).sum()
            if found < least:
                least, scales[row], codes[row] = found, scale, tried
    return scales, codes


@weighting
def test_scales_and_codes_are_those_of_trying_each_number_plainly(is_weighted: bool) -> None:
    groups, counts = weights(48, 64), importance(64) if is_weighted else np.ones(64, np.float32)
    scales, codes = plain_search(groups, -7, 7, counts)
    found = quantize(groups, "int4_g64", "mse", importance(64) if is_weighted else None)

    assert found.scales().tobytes() == scales.tobytes()
    assert found.codes().tobytes() == codes.tobytes()


def test_mxfp4_takes_the_best_of_three_exponents() -> None:
    # 7 saturates at 6 under scale 1, and is between 6 and 8 under 2; 4.1 alone under scale 1; small ones under half of it.
    rows = np.zeros((3, 32), np.float32)
    rows[0, :2], rows[1, :1], rows[2, :] = (7.9, 2), 4.1, 0.26
    rows[2, 0] = 4
    found = quantize(rows, "mxfp4", "mse")

    assert found.scales().view(np.uint8).ravel().tolist() == [128, 127, 126]
    assert found.dequantize()[:, :2].tolist() == [[8.0, 2.0], [4.0, 0.0], [3.0, 0.25]]


@pytest.mark.parametrize("target", ["int4_g64", "nf4", "mxfp4", "gguf:q4_1"])
def test_rows_by_themselves_give_the_same_codes(target: str) -> None:
    form, rows, counts = resolve(target), weights(9, 256), importance()
    whole = encode(rows, form, "mse", importance=counts[None])
    apart = [encode(rows[row : row + 1], form, "mse", importance=counts[None]) for row in range(len(rows))]

    for name, array in whole.items():
        assert np.concatenate([one[name] for one in apart]).tobytes() == array.tobytes()


def test_pieces_of_a_large_tensor_are_those_of_small_ones() -> None:
    rows, counts = weights(700, 128), importance(128)
    for target in ("int4_g64", "nf4_b64"):
        large = quantize(rows, target, "mse", counts)
        small = [quantize(rows[first : first + 70], target, "mse", counts) for first in range(0, 700, 70)]
        assert large.codes().tobytes() == b"".join(one.codes().tobytes() for one in small)
        assert large.scales().tobytes() == b"".join(one.scales().tobytes() for one in small)


def test_importance_of_flat_groups_is_that_of_their_columns() -> None:
    """Blocks of 64 over rows of 100 begin in the middle of rows."""
    rows, counts = weights(16, 100), importance(100)
    blocks, of_each = rows.reshape(25, 1, 64), np.tile(counts, 16).reshape(25, 1, 64)
    found = quantize(rows, "nf4", "mse", counts)
    apart = [encode(block, resolve("nf4"), "mse", importance=own) for block, own in zip(blocks, of_each, strict=True)]

    assert found.scales().tobytes() == b"".join(one["scales"].tobytes() for one in apart)
    assert found.codes().tobytes() == b"".join(one["codes"].tobytes() for one in apart)


@pytest.mark.parametrize(("target", "of_half"), [("int4_g64", "int4_g32"), ("nf4_b64", "nf4_b32"), ("uint4_g64", "uint4_g32")])
def test_what_a_short_group_is_filled_up_with_does_not_count(target: str, of_half: str) -> None:
    rows = weights()[2:3, :96]
    found, last = quantize(rows, target, "mse"), quantize(rows[:, 64:], of_half, "mse")

    assert found.scales().reshape(-1)[-1:].tobytes() == last.scales().tobytes()
    assert found.codes()[:, 64:].tobytes() == last.codes().tobytes()


@pytest.mark.parametrize("target", NAMES)
def test_ends_of_the_number_range_make_no_weight_nan(target: str) -> None:
    rows = np.zeros((4, 256), np.float32)
    rows[0], rows[1, ::2], rows[2, 3], rows[3] = 1e-42, 3e38, 6e4, -1e-7
    with np.errstate(all="ignore"):
        base, found = (reference.decode(by_rule(rows, target, rule)) for rule in (None, "mse"))

    assert not (np.isnan(found) & ~np.isnan(base)).any()


def test_one_scale_for_a_tensor_is_not_searched() -> None:
    with pytest.raises(UsageError, match="unknown rule 'mse' for 'int4_tensor'"):
        quantize(weights(), "int4_tensor", "mse")


@pytest.mark.parametrize("shape", [(3, 0), (0, 64), (0, 0)])
@pytest.mark.parametrize("target", ["int8_channel", "nf4", "gguf:q4_0"])
def test_a_tensor_without_weights_is_as_the_default_rule_makes_it(shape: tuple[int, int], target: str) -> None:
    weights = np.zeros(shape, np.float32)
    made, usual = quantize(weights, target, "mse"), quantize(weights, target)
    assert made.codes().tobytes() == usual.codes().tobytes() == b""
    assert made.scales().tobytes() == usual.scales().tobytes()
