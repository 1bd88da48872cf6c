"""Work in pieces: the same bytes however small they are, rows of any length, and no more memory than is allowed."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import qconvert
from qconvert import cutting
from qconvert.compare import first_difference
from qconvert.cutting import LEAST_MEMORY, check_memory, row_ranges, slabs
from qconvert.digest import digest_tensor
from qconvert.planning import has_spare_bits
from qconvert.quantizing import quantize
from qconvert.run import peak_memory

from qformat import formats, store
from qformat.arrays import Memory
from qformat.errors import UsageError
from qformat.fold import narrower, refold, step_of
from qformat.formats import Format, find
from qformat.tensor import PackedTensor, assemble, from_array, from_values, pack_parts

RNG = np.random.default_rng(29)
SLABS = ("hqq:1", "hqq:2", "hqq:4", "hqq:8", "quanto:int2", "quanto:int4", "bitnet")


def ternary(rows: int, cols: int) -> PackedTensor:
    """Give codes -1, 0 and 1 under one scale for the whole, which every format of the dialects has codes for."""
    codes = RNG.integers(-1, 2, (rows, cols)).astype(np.int8)
    return from_values(find("int2_tensor"), codes.shape, {"codes": codes, "scales": np.full((1, 1), 0.5, np.float16)})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("to", ["hqq", "quanto:int4", "quanto:int2", "bitnet", "gptq:v2", "awq:gemm", "mlx:f32", "gguf:q4_0"])
@pytest.mark.parametrize("n_weights", [1, 40 * 256])
def test_files_do_not_depend_on_how_the_work_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, n_weights: int
) -> None:
    store.save(tmp_path / "a.qfmt", {"layer.weight": ternary(256, 256)})
    allow = "requantize"
    whole = qconvert.convert(tmp_path / "a.qfmt", tmp_path / "whole", to, allow)
    monkeypatch.setattr(cutting, "UNIT_WEIGHTS", n_weights)
    monkeypatch.setattr(cutting, "RELAID_WEIGHTS", n_weights)
    monkeypatch.setattr(cutting, "TORN_WEIGHTS", n_weights)

    report = qconvert.convert(tmp_path / "a.qfmt", tmp_path / "cut", to, allow)

    (item,) = report.plan.items
    assert len(list(row_ranges(item.tensor, item.form))) > 1
    if (tmp_path / "cut").is_dir():
        assert files(tmp_path / "cut") == files(tmp_path / "whole")
    else:
        assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert whole.plan.counts() == report.plan.counts()


@pytest.mark.parametrize("name", SLABS)
def test_slabs_of_rows_are_found(name: str) -> None:
    form = next(form for form in formats.DIALECTS if form.name == name)
    pieces = list(row_ranges(ternary(256, 256), form, LEAST_MEMORY))
    n_slabs = slabs(form, (256, 256))
    assert (len(pieces[0]), n_slabs > 1) == (n_slabs, name != "hqq:8")
    assert sorted(rows for piece in pieces for rows in piece) == sorted(
        (n * 256 // n_slabs + first, n * 256 // n_slabs + last)
        for n in range(n_slabs)
        for first, last in [(piece[0][0], piece[0][1]) for piece in pieces]
    )


def random_tensor(form: Format, shape: tuple[int, ...]) -> PackedTensor:
    data = {role: Memory(RNG.integers(0, 256, n, np.uint8)) for role, n in form.part_bytes(shape).items()}
    return assemble(form, shape, data)


@pytest.mark.parametrize("form", formats.ALL, ids=lambda form: form.name)
def test_shorter_rows_hold_the_same_weights(form: Format) -> None:
    tensor = random_tensor(form, (2, 2048))
    seen = narrower(tensor, n_weights=512)
    step = step_of(form, 2048)
    if not step or 2048 % step:
        assert seen is tensor
        return
    assert seen.shape == (4096 // max(512, step), max(512, step))
    if form.scheme.is_dense:
        assert seen.codes().tobytes() == tensor.codes().tobytes()
    else:
        assert seen.dequantize().tobytes() == tensor.dequantize().tobytes()


@pytest.mark.parametrize(
    ("name", "shape"), [("q4_0", (4, 960)), ("q6_k", (5, 768)), ("iq2_xs", (5, 768)), ("float32", (4, 960))]
)
def test_rows_of_whole_blocks_can_be_cut(name: str, shape: tuple[int, int]) -> None:
    form = next(form for form in (*formats.GGUF, *formats.DENSE) if form.name == name)
    assert narrower(random_tensor(form, (1, 3 * 5 * 256)), n_weights=1000).shape == shape


def test_rows_are_cut_between_blocks_of_both_formats() -> None:
    tensor = random_tensor(find("int4_g32"), (1, 1 << 20))
    q6_k = next(form for form in formats.GGUF if form.name == "q6_k")
    assert (narrower(tensor, n_weights=32).n_cols, narrower(tensor, q6_k, n_weights=32).n_cols) == (32, 256)


def test_a_row_of_no_whole_groups_is_not_cut() -> None:
    ragged = random_tensor(find("int4_g32"), (1, (1 << 20) + 16))
    assert narrower(ragged) is ragged


def test_bytes_in_another_shape_are_the_same_bytes() -> None:
    tensor = random_tensor(find("int4_g32"), (4, 256))
    assert refold(tensor, (8, 128)).codes().tobytes() == tensor.codes().tobytes()


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Save one row of four million weights, packed and dense: 32 bytes for each are eight times what is allowed below."""
    shape = (1, 1 << 22)
    packed = {"codes": RNG.integers(-8, 8, shape).astype(np.int8), "scales": np.full((1, shape[1] // 32), 0.5, np.float16)}
    dense = from_array(RNG.normal(0, 1, shape).astype(np.float16))
    store.save(tmp_path / "a.qfmt", {"a.weight": from_values(find("int4_g32"), shape, packed), "b.weight": dense})
    return tmp_path / "a.qfmt"


@pytest.mark.parametrize("to", ["gguf", "gguf:q8_0", "gguf:f32", "safetensors:f16", "mlx:f32"])
def test_a_row_of_any_length_is_worked_on_in_pieces(wide: Path, to: str) -> None:
    out = wide.with_name("out")
    qconvert.convert(wide, wide.with_name("warm"), to, "requantize", max_memory=LEAST_MEMORY)
    tracemalloc.start()
    report = qconvert.convert(wide, out, to, "requantize", max_memory=LEAST_MEMORY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LEAST_MEMORY
    if to not in ("gguf:q8_0",):
        with qconvert.open(wide) as source, qconvert.open(report.paths[0]) as written:
            assert digest_tensor(source["a.weight"]) == digest_tensor(written["a.weight"])


def test_the_digest_of_a_long_row_is_that_of_any_other(wide: Path) -> None:
    with qconvert.open(wide) as model:
        codes, scales = model["a.weight"].codes(), model["a.weight"].param("scales")
        short = from_values(find("int4_tensor"), codes.shape, {"codes": codes, "scales": scales[:, :1]})
        assert digest_tensor(model["a.weight"]) == digest_tensor(short)


def test_what_cannot_be_cut_says_how_much_it_needs(tmp_path: Path) -> None:
    store.save(tmp_path / "a.qfmt", {"a.weight": random_tensor(find("int4_g32"), (1, (1 << 20) + 16))})
    words = r"'a.weight': 1 rows of 1048592 weights are one piece of work: needs 33554944 bytes .* --max-memory 33MiB"
    with pytest.raises(UsageError, match=words):
        qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", "gguf:f32", max_memory=LEAST_MEMORY)
    assert not (tmp_path / "out").exists()
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", "gguf:f32", max_memory=33 << 20)


def test_rows_that_share_a_parameter_are_one_piece_of_work() -> None:
    form = next(form for form in formats.DIALECTS if form.name == "fp8-block:f32")
    with pytest.raises(UsageError, match=r"128 rows of 8192 weights .* needs 33554432 bytes .* --max-memory 32MiB"):
        check_memory(ternary(256, 8192), LEAST_MEMORY, form)
    check_memory(ternary(256, 8192), 1 << 25, form)


def test_less_memory_than_anything_takes_is_refused(wide: Path) -> None:
    with pytest.raises(UsageError, match=f"1000 bytes of memory to work in, expected at least {LEAST_MEMORY}"):
        qconvert.convert(wide, wide.with_name("out"), "gguf", max_memory=1000)


@pytest.mark.parametrize("to", ["gguf", "gguf:q8_0", "qfmt", "nf4"])
def test_a_plan_says_what_memory_writing_takes(wide: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QFORMAT_THREADS", "8")
    plan = qconvert.plan(wide, "bnb:nf4" if to == "nf4" else to)
    least, much = (peak_memory(plan.items, allowed) for allowed in (LEAST_MEMORY, 1 << 30))
    n_dense = 1 << 23  # bytes of the dense tensor of 4 Mi weights, which is copied
    relaid, derived = 1 << 24, 1 << 27  # at 4 and at 32 bytes for each weight
    expected = {"gguf": relaid, "gguf:q8_0": derived, "qfmt": n_dense, "nf4": n_dense}[to]
    assert (least, much) == (min(LEAST_MEMORY, expected), expected)


def test_a_difference_in_a_long_row_is_named_by_its_weight(tmp_path: Path) -> None:
    shape = (1, 1 << 20)
    codes, scales = RNG.integers(-8, 8, shape).astype(np.int8), np.full((1, shape[1] // 32), 0.5, np.float16)
    one = from_values(find("int4_g32"), shape, {"codes": codes, "scales": scales})
    other = from_array(one.dequantize().astype(np.float16))
    assert first_difference(one, other) is None
    values = other.codes().copy()
    values[0, 700_001] = 77
    assert "weight 700001 is" in str(first_difference(one, from_array(values)))


def test_the_error_of_a_long_row_is_that_of_the_same_weights_in_short_ones(tmp_path: Path) -> None:
    weights = RNG.normal(0, 1, (1, 1 << 20)).astype(np.float32)
    found = []
    for name, shape in (("long", (1, 1 << 20)), ("short", (1 << 10, 1 << 10))):
        store.save(tmp_path / f"{name}.qfmt", {"a.weight": from_array(weights.reshape(shape))})
        _, errors = quantize(tmp_path / f"{name}.qfmt", tmp_path / f"{name}.gguf", "gguf:q4_0", max_memory=LEAST_MEMORY)
        found.append(errors["a.weight"])
    assert found[0] == found[1]


@pytest.mark.parametrize("row", [None, 0, 12_345, 19_999])
def test_a_spare_bit_of_any_row_is_found(row: int | None) -> None:
    form, shape = find("int4_g32"), (20_000, 33)  # 17 bytes a row, of the last one half
    codes = RNG.integers(-8, 8, shape).astype(np.int8)
    packed = pack_parts(form, shape, {"codes": codes, "scales": np.ones((shape[0], 2), np.float16)})
    clear = packed["codes"].reshape(shape[0], 17)
    clear[:, -1] &= 15
    if row is not None:
        clear[row, -1] |= 16
    tensor = assemble(form, shape, {role: Memory(data) for role, data in packed.items()})
    tracemalloc.start()
    found = has_spare_bits(tensor)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found, peak < 4 * codes.size) == (row is not None, True)


@pytest.mark.parametrize("n_cols", [1 << 60, (1 << 61) - 1], ids=["a power of two", "a prime"])
def test_rows_that_are_long_by_a_claim_alone_are_cut_at_once(n_cols: int) -> None:
    form = next(form for form in formats.DENSE if form.name == "float32")
    seen = narrower(random_tensor(form, (0, n_cols)), n_weights=1000)
    assert seen.shape == (0, 512 if n_cols == 1 << 60 else 1)
