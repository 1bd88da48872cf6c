"""Every way from a packed format to another that keeps all values: taken where its condition holds, and refused with the first
offender where it does not.

Values are compared all, and some of them as the reference decodes them, which shares no code with what derives and judges.
"""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
from exact_ways import (
    ASYM,
    COLS,
    CT3,
    CT6,
    EXACTLY,
    F16,
    INT4,
    INT8,
    INT8_32,
    MLX4,
    MLX8,
    PACK_32,
    ROWS,
    TENTH,
    UINT4_32,
    UINT4_CHANNEL,
    Make,
    agreeing,
    e8m0,
    f32,
    indexed,
    mxfp4,
    nvfp4,
    said,
    ternary,
    whole_zeros,
    with_one_zero,
)
from made_tensors import made
from numpy.typing import NDArray
from qconvert.verdict import EXACT, REFUSED, ROUNDED, judge

import qformat
from qformat import reference
from qformat.formats import Format, bitnet, gguf, gguf_few, gguf_k, gptq, modelopt, mx, nf4
from qformat.formats import bitsandbytes as bnb
from qformat.formats import compressed_tensors as ct
from qformat.formats.hqq import hqq
from qformat.formats.integer import integer
from qformat.formats.mlx import FLOATS, affine
from qformat.scheme import Grid
from qformat.tensor import PackedTensor, from_values


def some_of(tensor: PackedTensor) -> NDArray[np.float32]:
    """Decode every 29th weight by the reference."""
    places = [divmod(number, tensor.n_cols) for number in range(0, tensor.n_weights, 29)]
    with np.errstate(over="ignore"):
        return with_one_zero([reference.weight(tensor, row, column) for row, column in places])


def assert_exact(tensor: PackedTensor, form: Format) -> PackedTensor:
    """Judge a way, take it, and compare every bit."""
    verdict = judge(tensor, form)
    assert verdict.verdict == EXACT, verdict
    found = said(tensor, form)
    assert with_one_zero(found.dequantize()).tobytes() == with_one_zero(tensor.dequantize()).tobytes()
    assert some_of(found).tobytes() == some_of(tensor).tobytes()
    return found


@pytest.mark.parametrize(("make", "form"), EXACTLY.values(), ids=EXACTLY)
def test_a_way_keeps_every_value_where_its_condition_holds(make: Make, form: Format) -> None:
    assert_exact(make(), form)


def planted(tensor: PackedTensor, form: Format, name: str, index: int, value: Any) -> PackedTensor:
    """Put one value into a parameter, or a code into the codes."""
    held = {param.name: tensor.param(param.name).copy() for param in form.scheme.params} | {"codes": tensor.codes().copy()}
    held[name].reshape(-1)[index] = value
    return from_values(form, tensor.shape, held)


def lone(form: Format, name: str, index: int, value: Any, **given: Any) -> PackedTensor:
    """Make a tensor that keeps a condition everywhere but at one place."""
    return planted(made(form, **given), form, name, index, value)


def lone_of(tensor: PackedTensor, form: Format, name: str, index: int, value: Any) -> PackedTensor:
    """Say a tensor in a format, and change one value there."""
    return planted(said(tensor, form), form, name, index, value)


HALVES = 0.5 * np.ones((ROWS, 16))
TOP = np.uint8(255).view(ml_dtypes.float8_e8m0fnu)


def top() -> PackedTensor:
    return planted(mxfp4(), mx.MXFP4, "scales", 21, TOP)


def out_of_order() -> PackedTensor:
    """Make four groups of 128 columns, of which columns 40 and 200 change places."""
    columns = np.arange(COLS) // 128
    columns[[40, 200]] = columns[[200, 40]]
    return indexed(columns, 4)


def true_float32() -> tuple[int, float]:
    """Find the first weight that codes less zero points, times float32 scales, are not as MLX says them."""
    tensor = made(ASYM["float32"])
    codes, spread = tensor.codes().astype(np.float32), [np.repeat(tensor.param(name), 32, 1) for name in ("scales", "zeros")]
    scales, zeros = spread[0].astype(np.float32), spread[1].astype(np.float32)
    wanted, biases = (codes - zeros) * scales, -(zeros + 8) * scales
    where = int(np.argmax(wanted + np.float32(0) != ((codes + 8) * scales + biases) + np.float32(0)))
    return where, float(wanted.flat[where])


# Where a condition does not hold: the source, the target, and what is said: verdict, field, index, value, words of the reason.
OTHERWISE: dict[str, tuple[Make, Format, str, str, int, float, str]] = {
    "a zero point that takes codes out of range": (
        lambda: planted(whole_zeros(17), hqq(4, 1, 64, 64), "codes", 3 * 64, 0), gguf.Q5_0,
        REFUSED, "codes", 192, -17, "code 0 - zero 17 = -17 at weight 192 is outside -16..15",
    ),
    "an unlucky zero point": (
        lambda: lone(UINT4_32, "zeros", 37, 3, zeros=8, scales=np.float16(0.1) * HALVES), gguf.Q4_1,
        ROUNDED, "biases", 37, -3 * float(F16(0.05)), "biases rounds",
    ),
    "float32 scales in mlx": (
        lambda: made(ASYM["float32"]), MLX4,
        REFUSED, "value", *true_float32(), "in mlx:f32 it would be",
    ),
    "a bias that is no multiple of its scale": (
        lambda: lone_of(made(gguf.Q8_0), MLX8, "biases", 70, 0.123), gguf.Q8_0,
        REFUSED, "biases", 70, float(np.float32(0.123)), "bias 0.123 of group 70 is no integer multiple of its scale",
    ),
    "a group that does not agree": (
        lambda: lone(INT4[32], "scales", 18, 0.25, scales=0.5), INT4[128],
        REFUSED, "scales", 18, 0.25, "scale 0.25 at weight 576 (group 18) is not that of its group of 128",
    ),
    "a row that does not agree": (
        lambda: lone(INT8["channel"], "scales", 5, 0.25, scales=0.5), INT8["tensor"],
        REFUSED, "scales", 5, 0.25, "scale 0.25 of row 5",
    ),
    "a scale that float16 rounds": (
        lambda: lone(INT8_32, "scales", 90, 0.1, scales=0.5), gguf.Q8_0,
        ROUNDED, "scales", 90, TENTH, "scales rounds",
    ),
    "a scale that float16 has no room for": (
        lambda: lone(INT8_32, "scales", 90, 1e6, scales=0.5), gguf.Q8_0,
        REFUSED, "scales", 90, 1e6, "scale 1e+06 of group 90 is not float16",
    ),
    "a group by itself among those of a block": (
        lambda: lone_of(made(gguf_k.Q4_K), MLX4, "scales", 27, 0.1), gguf_k.Q4_K,
        REFUSED, "sub_scales", 24, float(said(made(gguf_k.Q4_K), MLX4).param("scales").flat[24]), "are no 0..63 times",
    ),
    "a scale below the range of a block": (
        lambda: lone(PACK_32, "scales", 33, 2.0**-10, scales=0.5), gguf_k.Q4_K,
        REFUSED, "sub_scales", 32, 0.5, "scale 0.5 of group 32 and the 7 after it are no 0..63 times one float16",
    ),
    "a scale between the steps of a block": (
        lambda: lone(CT6, "scales", 19, 0.1, scales=0.5), gguf_k.Q6_K,
        REFUSED, "sub_scales", 16, 0.5, "the 15 after it are no -128..127 times one float16",
    ),
    "a scale between the steps of a block of 3 bits": (
        lambda: lone(CT3, "scales", 35, 0.1, scales=0.5), gguf_k.Q3_K,
        REFUSED, "sub_scales", 32, 0.5, "the 15 after it are no -32..31 times one float16",
    ),
    "iq4_nl finer than iq4_xs": (
        lambda: lone(gguf.IQ4_NL, "scales", 12, 0.1, scales=0.5), gguf_k.IQ4_XS,
        REFUSED, "sub_scales", 8, 0.5, "are no -32..31 times one float16",
    ),
    "iq4_xs finer than iq4_nl": (
        lambda: lone(gguf_k.IQ4_XS, "sub_scales", 9, 31, scales=F16(0.1), sub_scales=1), gguf.IQ4_NL,
        ROUNDED, "scales", 9, float(np.float32(F16(0.1)) * np.float32(31)), "scales rounds",
    ),
    "groups of 16 that do not agree": (
        lambda: planted(agreeing(gguf_k.Q6_K), gguf_k.Q6_K, "sub_scales", 45, 0), affine(6, 32, "f32"),
        REFUSED, "sub_scales", 45, 0, "at weight 720 (group 45) is not that of its group of 32",
    ),
    "a level that the others lack": (
        lambda: lone(gguf.Q8_0, "codes", 700, 7, codes=13), gguf.IQ4_NL,
        REFUSED, "codes", 700, 7, "code 7 at weight 700 is outside the levels of iq4_nl",
    ),
    "mxfp4 above the range of q8_0": (
        lambda: planted(mxfp4(104, 142), mx.MXFP4, "scales", 50, np.uint8(150).view(TOP.dtype)), gguf.Q8_0,
        REFUSED, "scales", 50, 2.0**22, "is not float16",
    ),
    "mxfp4 below the range of q8_0": (
        lambda: planted(mxfp4(104, 142), mx.MXFP4, "scales", 50, np.uint8(103).view(TOP.dtype)), gguf.Q8_0,
        ROUNDED, "scales", 50, 2.0**-25, "scales rounds",
    ),
    "nf4 in gguf": (
        lambda: lone(nf4.nf4(64), "codes", 300, 3, codes=15, scales=0.5), gguf.Q8_0,
        REFUSED, "codes", 300, float(np.float32(bnb.NF4[3])), "the alphabets do not hold the same numbers",
    ),
    "an exponent of 255 in gguf": (top, gguf.MXFP4, REFUSED, "scales", 21, 255, "scales[21] is the byte 255"),
    "an exponent of 255 in mlx": (top, FLOATS["mxfp4"], REFUSED, "scales", 21, 255, "scales[21] is the byte 255"),
    "exponents further apart than those of nvfp4": (
        lambda: planted(mxfp4(30, 47), mx.MXFP4, "scales", 60, np.uint8(29).view(TOP.dtype)), modelopt.nvfp4(),
        ROUNDED, "scales", 120, 2.0**-10, "scales rounds",
    ),
    "a multiplier that is not one over a divisor": (
        lambda: nvfp4(0.0123), ct.NVFP4,
        ROUNDED, "divisor", 0, float(np.float32(0.0123)), "divisor rounds",
    ),
    "a second scale that does not fold": (
        lambda: made(modelopt.nvfp4(), global_scale=0.3, scales=np.uint8(0x38).view(ml_dtypes.float8_e4m3fn)), gguf.NVFP4,
        ROUNDED, "scales", 0, float(np.float32(0.3)), "scales rounds",
    ),
    "nf4 blocks that do not agree": (
        lambda: lone(nf4.nf4(64), "scales", 7, 0.25, scales=0.5), nf4.nf4(128),
        REFUSED, "scales", 7, 0.25, "(group 7) is not that of its group of 128",
    ),
    "a zero point between integers in gptq": (
        lambda: whole_zeros(7.5), gptq.gptq("v2", 4, 64), REFUSED, "zeros", 3, 7.5, "zero 7.5 of group 3 is no integer",
    ),
    "a zero point between integers in gguf": (
        lambda: whole_zeros(7.5), gguf.Q5_0, REFUSED, "zeros", 3, 7.5, "zero 7.5 of group 3 is no integer",
    ),
    "a zero point beyond those of the target": (
        lambda: whole_zeros(16), gptq.gptq("v2", 4, 64), REFUSED, "zeros", 3, 16, "zero 16.0 of group 3 is outside 0..15",
    ),
    "code 2 among ternary ones": (
        lambda: planted(ternary(gguf_few.TQ2_0), gguf_few.TQ2_0, "codes", 1000, 2), gguf_few.TQ1_0,
        REFUSED, "codes", 1000, 2, "code 2 at weight 1000 is outside -1..1",
    ),
    "ternary scales that do not agree": (
        lambda: planted(ternary(gguf_few.TQ2_0, scales=0.5), gguf_few.TQ2_0, "scales", 9, 0.25), bitnet.bitnet(),
        REFUSED, "scales", 9, 0.25, "(group 9)",
    ),
    "int2 with code -2": (
        lambda: lone(integer(2, 128), "codes", 77, -2, codes=1), gguf_few.Q2_0,
        REFUSED, "codes", 77, -2, "code -2 at weight 77 is outside -1..2",
    ),
    "a zero point of 0 in gptq v1": (
        lambda: lone(gptq.gptq("v2", 4, 128), "zeros", 9, 0, zeros=8), gptq.gptq("v1", 4, 128),
        REFUSED, "zeros", 9, 0, "1 zero points of 0",
    ),
    "columns out of order": (
        out_of_order, gguf.Q4_0,
        REFUSED, "g_idx", 40, 1, "g_idx[40] is 1: columns are grouped by g_idx, which q4_0 does not hold",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERWISE.values(), ids=OTHERWISE)
def test_the_first_offender_is_named_where_a_condition_does_not_hold(
    case: tuple[Make, Format, str, str, int, float, str],
) -> None:
    make, form, verdict, field, index, value, words = case

    found = judge(make(), form)

    assert (found.verdict, found.field, found.index, found.value) == (verdict, field, index, value), found
    assert words in found.reason


LARGE, LINES, STACK = (1100, 512), (5000, 96), (3, 400, 512)  # of several tiles, and units of work
IN_TILES: dict[str, tuple[Make, str]] = {
    "integers times a float": (lambda: made(UINT4_CHANNEL, LARGE), "gguf:q4_k"),
    "a scale of the tensor": (lambda: made(mx.MXFP4, LARGE, scales=e8m0(30, 47, (1100, 16))), "modelopt:nvfp4"),
    "a scale for each of a stack": (lambda: made(gguf.nvfp4_scaled(400), STACK), "fp8-block:f32"),
    "a second scale for each of a stack": (lambda: made(mx.MXFP4, STACK, scales=e8m0(30, 47, (1200, 16))), "gguf:nvfp4"),
    "blocks across rows that agree": (lambda: made(nf4.nf4(64), LINES, scales=np.repeat(f32(3750), 2)), "qfmt:nf4-b128"),
    "blocks across rows in parts": (lambda: made(nf4.nf4(256), LINES), "qfmt:nf4-b64"),
}


@pytest.mark.parametrize(("make", "target"), IN_TILES.values(), ids=IN_TILES)
def test_a_tensor_of_several_tiles_is_written_with_its_values(make: Make, target: str, tmp_path: Path) -> None:
    tensor, end = make(), ".gguf" if target.startswith("gguf") else ".qfmt" if target.startswith("qfmt") else ""
    qformat.save(tmp_path / "a.qfmt", {"m.experts.down.weight": tensor})

    report = qconvert.convert(tmp_path / "a.qfmt", tmp_path / f"b{end}", to=target)

    assert report.plan.counts() == {EXACT: 1}
    with qconvert.open(tmp_path / f"b{end}") as model:
        (found,) = (model[name] for name in model)
        assert with_one_zero(found.dequantize()).tobytes() == with_one_zero(tensor.dequantize()).tobytes()


@pytest.mark.parametrize(
    ("form", "target", "name", "index", "value", "field", "found"),
    [
        (INT8["channel"], INT8["tensor"], "scales", 1000, 0.25, "scales", 1000),
        (gguf.Q8_0, gguf.Q4_0, "codes", 1000 * 512 + 7, 100, "codes", 1000 * 512 + 7),
        (INT8_32, gguf.Q8_0, "scales", 1000 * 16 + 3, 1e6, "scales", 1000 * 16 + 3),
        (ct.pack(4, Grid(1, 32), "float32", LARGE), gguf_k.Q4_K, "scales", 1000 * 16 + 9, 0.1, "sub_scales", 1000 * 16 + 8),
    ],
    ids=["rows", "codes", "scales", "two levels"],
)
def test_an_offender_is_counted_from_the_beginning_of_the_tensor(
    form: Format, target: Format, name: str, index: int, value: float, field: str, found: int
) -> None:
    tensor = planted(made(form, LARGE, codes=1, scales=0.5), form, name, index, value)

    verdict = judge(tensor, target)

    assert (verdict.verdict, verdict.field, verdict.index) == (REFUSED, field, found), verdict
