"""Packed weights laid out anew without their floats: by words, by columns, by blocks, as NumPy says that they must lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qconvert
from made_tensors import made
from qconvert.cutting import row_ranges
from qconvert.relaid import relaid
from qconvert.run import units

import qformat
from qformat import reference
from qformat.arrays import aligned
from qformat.formats import Format, PartForm, awq, gguf, gptq, hqq, integer, mx
from qformat.formats.form import parameter
from qformat.kernels import cpu
from qformat.kernels.vector.decode import CACHED
from qformat.kernels.vector.transpose import Way, transpose
from qformat.layout import Bits, Layout, Plane
from qformat.relaying import relay_of
from qformat.scheme import Grid, Integers, Op, Param, Ref, Scheme, Step
from qformat.tensor import PackedTensor
from qformat.tiling import Tiling
from qformat.upright import turn_of, upright

pytestmark = pytest.mark.skipif(not cpu.has_vectors(), reason="vector forms are compiled, or not at all")

UINT4, INT4, INT5, INT8 = integer.integer(4, 128, False, True), *(integer.integer(bits, 32) for bits in (4, 5, 8))
UINT3 = integer.integer(3, 128, False, True)
GPTQ4, GPTQ3, PLANAR3 = gptq.gptq("v2", 4, 128), gptq.gptq("v2", 3, 128), gptq.gptq("planar", 3, 128)
AWQ = awq.gemm(128)
WAYS = {
    "mxfp4 as blocks": (mx.MXFP4, gguf.MXFP4),
    "blocks as mxfp4": (gguf.MXFP4, mx.MXFP4),
    "q4_0 as rows": (gguf.Q4_0, INT4),
    "rows as q4_0": (INT4, gguf.Q4_0),
    "q5_0 as rows": (gguf.Q5_0, INT5),
    "rows as q5_0": (INT5, gguf.Q5_0),
    "q8_0 as rows": (gguf.Q8_0, INT8),
    "rows as q8_0": (INT8, gguf.Q8_0),
    "q4_0 wider": (gguf.Q4_0, gguf.Q5_0),
    "q4_1 wider": (gguf.Q4_1, gguf.Q5_1),
    "words as rows": (GPTQ4, UINT4),
    "rows as words": (UINT4, GPTQ4),
    "words of three bits as rows": (GPTQ3, UINT3),
    "rows as words of three bits": (UINT3, GPTQ3),
    "words of planes as rows": (PLANAR3, UINT3),
    "rows as words of planes": (UINT3, PLANAR3),
    "columns as rows": (AWQ, UINT4),
    "rows as columns": (UINT4, AWQ),
    "columns as words": (AWQ, GPTQ4),
}
every_way = pytest.mark.parametrize(("source", "target"), WAYS.values(), ids=WAYS)


def values_of(tensor: PackedTensor, first: int, last: int) -> dict[str, bytes]:
    """Give codes and parameters of rows by the slow readers, bytes by name."""
    found = {param.name: tensor.param(param.name, first, last).tobytes() for param in tensor.scheme.params}
    return {"codes": tensor.codes(slice(first, last)).astype(np.int16).tobytes(), **found}


def laid_out(tensor: PackedTensor, form: Format) -> PackedTensor:
    """Lay a tensor out in another format."""
    relay = relay_of(tensor, form)
    assert relay is not None
    sources = {role: qformat.arrays.Memory(data) for role, data in relay.make(0, tensor.n_rows).items()}
    return qformat.tensor.assemble(form, tensor.shape, sources)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(70, 100), (64, 64), (3, 5), (128, 33), (1, 200)])
def test_a_transpose_is_numpys(shape: tuple[int, int], width: int) -> None:
    elements = np.random.default_rng(1).integers(0, 256, (*shape, width), dtype=np.uint8)
    out = np.empty((shape[1], shape[0] * width), np.uint8)

    transpose([elements.reshape(shape[0], -1)], [out], Way(width), 0, shape[1], False)

    assert out.tobytes() == np.ascontiguousarray(elements.transpose(1, 0, 2)).tobytes()


@pytest.mark.parametrize("lines", [1024, 1023])  # the latter's results begin at no cache line
@pytest.mark.parametrize("width", [1, 4])
def test_a_large_transpose_is_numpys(lines: int, width: int) -> None:
    elements = np.random.default_rng(2).integers(0, 256, (lines, 2112 // width, width), dtype=np.uint8)
    out = aligned((2112 // width, lines * width), np.dtype(np.uint8))
    assert out.nbytes > CACHED

    transpose([elements.reshape(lines, -1)], [out], Way(width), 0, 2112 // width, True)

    assert out.tobytes() == np.ascontiguousarray(elements.transpose(1, 0, 2)).tobytes()


@pytest.mark.parametrize("past", [1, 8, 40])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_transpose_of_lines_that_begin_anywhere_is_numpys(width: int, past: int) -> None:
    room = aligned((past + 320 * 1024,), np.dtype(np.uint8))[past:]
    room[:] = np.random.default_rng(3).integers(0, 256, room.size, dtype=np.uint8)
    elements = room.reshape(320, -1, width)
    out = np.empty((elements.shape[1], 320 * width), np.uint8)

    transpose([room.reshape(320, -1)], [out], Way(width), 0, elements.shape[1], False)

    assert out.tobytes() == np.ascontiguousarray(elements.transpose(1, 0, 2)).tobytes()


@pytest.mark.parametrize("past", [8, 16, 40])
@pytest.mark.parametrize("way", ["words as rows", "rows as words", "columns as rows", "rows as columns"])
def test_parts_that_begin_anywhere_are_laid_out_as_others(way: str, past: int) -> None:
    source, target = WAYS[way]
    tensor = made(source, (1184, 1024))
    rooms = {part.form.role: np.zeros(past + part.source.n_bytes, np.uint8)[past:] for part in tensor.parts}
    for part in tensor.parts:
        rooms[part.form.role][:] = part.source.read(0, part.source.n_bytes)
    sources: dict[str, qformat.arrays.ByteSource] = {role: qformat.arrays.Memory(data) for role, data in rooms.items()}
    elsewhere = qformat.tensor.assemble(source, (1184, 1024), sources)

    found = laid_out(elsewhere, target)

    assert values_of(found, 0, 1184) == values_of(tensor, 0, 1184)


@pytest.mark.parametrize("way", ["words as rows", "rows as words", "columns as rows", "rows as columns"])
def test_what_is_written_past_the_caches_is_the_same(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QFORMAT_THREADS", "2")
    source, target = WAYS[way]
    tensor = made(source, (2208, 4096))  # for each thread more than a cache holds, and no whole tiles

    found = laid_out(tensor, target)

    assert values_of(found, 0, 2208) == values_of(tensor, 0, 2208)


@every_way
def test_codes_and_parameters_are_the_same_elsewhere(source: Format, target: Format) -> None:
    tensor = made(source, (96, 1024))

    found = laid_out(tensor, target)

    assert values_of(found, 0, 96) == values_of(tensor, 0, 96)


@pytest.mark.parametrize("way", ["words as rows", "rows as words", "columns as rows", "rows as columns", "columns as words"])
def test_packed_zero_points_are_laid_out_as_codes_are(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = WAYS[way]
    tensor = made(source, (96, 8192))  # 64 groups
    expected = values_of(tensor, 0, 96)

    monkeypatch.setattr("qformat.relaying.pack_part", None)  # which makes an array of them

    assert values_of(laid_out(tensor, target), 0, 96) == expected


@every_way
def test_rows_are_laid_out_by_themselves(source: Format, target: Format) -> None:
    tensor = made(source, (128, 1024))
    relay = relay_of(tensor, target)
    assert relay is not None

    some = {role: qformat.arrays.Memory(data) for role, data in relay.make(32, 96).items()}

    assert values_of(qformat.tensor.assemble(target, (64, 1024), some), 0, 64) == values_of(tensor, 32, 96)


@every_way
def test_a_converter_lays_out_what_means_the_same(source: Format, target: Format) -> None:
    assert relaid(made(source, (32, 256)), target) is not None


OTHERS: dict[str, tuple[Format, Format, dict[str, Any]]] = {
    "other groups": (INT4, integer.integer(4, 128), {}),
    "other steps": (gguf.Q4_0, gguf.Q4_1, {}),
    "zero points that move": (UINT4, integer.integer(4, 128, True, True), {}),
    "scales of another type": (gptq.gptq("v2", 4, 128, "bfloat16"), UINT4, {}),
    "other levels": (gguf.IQ4_NL, gguf.MXFP4, {}),
    "a scale of all": (integer.integer(8, "tensor"), integer.integer(8, "tensor", zero=True), {}),
    "bytes that nothing fills": (gguf.Q8_0, gguf.Q8_1, {}),
}


@pytest.mark.parametrize(("source", "target", "given"), OTHERS.values(), ids=OTHERS)
def test_what_means_something_else_is_not_laid_out(source: Format, target: Format, given: dict[str, Any]) -> None:
    assert relaid(made(source, (32, 256), **given), target) is None


@pytest.mark.parametrize("form", [GPTQ4, GPTQ3, PLANAR3, AWQ], ids=lambda form: form.name)
def test_columns_seen_as_rows_hold_the_same(form: Format) -> None:
    tensor = made(form, (64, 384))

    seen = upright(tensor)

    assert {part.form.tiling.order for part in seen.parts if "codes" in part.form.layout.holds} == {"n kb | k -> n (kb k)"}
    assert values_of(seen, 3, 50) == values_of(tensor, 3, 50)


@pytest.mark.parametrize("form", [GPTQ4, GPTQ3, PLANAR3, AWQ], ids=lambda form: form.name)
def test_columns_decode_to_what_the_reference_says(form: Format) -> None:
    tensor = made(form, (64, 384))

    assert tensor.dequantize(rows=slice(3, 50)).tobytes() == reference.decode(tensor)[3:50].tobytes()


def test_columns_are_read_once_for_all_rows() -> None:
    tensor = made(GPTQ4, (256, 16384))  # more than a unit of what lies row by row

    assert len(list(row_ranges(tensor, UINT4, is_relaid=True))) == 1


def test_slabs_and_shuffled_blocks_are_not_taken_for_columns() -> None:
    forms = [hqq.hqq(4, 1, 64, 0), awq.gemv_fast(128, 1), gguf.Q4_0]

    assert [turn_of(form.parts[0]) for form in forms] == [None, None, None]


def test_a_converted_file_is_read_as_its_source_is(tmp_path: Path) -> None:
    tensor = made(UINT4, (72, 384))  # rows and words that are no whole tiles
    qformat.save(tmp_path / "rows.qfmt", {"model.layers.0.mlp.up_proj.weight": tensor})

    qconvert.convert(tmp_path / "rows.qfmt", tmp_path / "awq", to="awq:gemm")
    qconvert.convert(tmp_path / "awq", tmp_path / "gptq", to="gptq:v2")

    ((_, found),) = qconvert.open(tmp_path / "gptq").items()
    assert found.dequantize().tobytes() == tensor.dequantize().tobytes()


def test_units_hold_what_is_packed_from_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    qformat.save(tmp_path / "rows.qfmt", {"w": made(INT4, (40, 512))})
    (item,) = qconvert.plan(tmp_path / "rows.qfmt", "gguf:q4_0").items
    made_anew = [piece.data.tobytes() for unit in units(0, item) for piece in unit.make()]

    monkeypatch.setattr("qconvert.run.relaid", lambda tensor, form: None)

    assert b"".join(made_anew) == b"".join(piece.data.tobytes() for unit in units(0, item) for piece in unit.make())


def test_words_of_24_codes_of_a_column_are_read_as_the_reference_reads_them() -> None:
    words = Layout("words", 24, 12, (Bits("q", (Plane(0, 4),), 24, holds="codes"),))
    scales = Param("scales", "float16", Grid(1, 128))
    scheme = Scheme("words", Integers(0, 15), (scales,), (Step(Op.MUL, Ref("scales")),))
    parts = (PartForm("codes", words, Tiling("k nb | n -> (nb n) k")), parameter(scales, 2))
    tensor = made(Format("words", scheme, parts), (768, 256))

    assert upright(tensor).dequantize().tobytes() == reference.decode(tensor).tobytes()
