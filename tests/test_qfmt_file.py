"""What goes into a `.qfmt` file comes out of it: bytes, names, shapes, descriptors, metadata, assets."""

from __future__ import annotations

import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qfmt_samples import BLOCK_COLUMNS, BLOCKS, CODES, SCALES, dense_spec, hand_built, sample_specs, write_sample

from qformat.errors import FileError, QFormatError, UsageError
from qformat.file import Column, File, PartSpec, TensorSpec, Typed, Writer, open_file

MODES = ("none", "scales", "all")
PARTS = [("ü.weight", "blocks", BLOCKS), ("b", "codes", CODES), ("b", "scales", SCALES)]
MIB = 1 << 20


def write_worked(path: Path) -> None:
    """Write the tensor of the worked file."""
    with Writer(path, [dense_spec("w", (2,))]) as writer:
        writer.write("w", "values", 0, np.float32([1, -2]))


def test_the_worked_file_is_written_byte_for_byte(tmp_path: Path) -> None:
    write_worked(tmp_path / "w.qfmt")
    assert (tmp_path / "w.qfmt").read_bytes() == hand_built()


def test_the_hexdump_in_the_spec_is_the_worked_file(root: Path) -> None:
    lines = re.findall(r"^[0-9a-f]{3}  ((?:[0-9a-f]{2} ?){16})", (root / "spec" / "qfmt.md").read_text(), re.MULTILINE)
    assert b"".join(bytes.fromhex(line) for line in lines) == hand_built()


def test_a_file_built_by_hand_is_read() -> None:
    file = File("hand.qfmt", memoryview(hand_built()))
    file.verify()
    entry = file.tensors["w"]
    assert (entry.shape, entry.dtype, entry.descriptor) == ((2,), "float32", {"scheme": "dense"})
    assert file.read(entry, "values").view("<f4").tolist() == [1.0, -2.0]


@pytest.mark.parametrize("mode", MODES)
def test_every_part_comes_back_byte_for_byte(mode: str, tmp_path: Path) -> None:
    write_sample(tmp_path / "a.qfmt", mode)
    with open_file(tmp_path / "a.qfmt") as file:
        found = [file.read(file.tensors[name], role).tobytes() for name, role, _ in PARTS]
        assert found == [array.tobytes() for _, _, array in PARTS]
        assert file.read(file.tensors["nothing"], "values").tobytes() == b""


def test_names_shapes_and_descriptors_come_back_in_order(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.qfmt")
    with open_file(tmp_path / "a.qfmt") as file:
        assert list(file.tensors) == ["ü.weight", "b", "nothing"]
        assert len(file.tensors) == 3
        assert "b" in file.tensors
        assert "config.json" not in file.tensors
        found = [(e.name, e.shape, e.dtype, e.descriptor) for e in file.tensors.values()]
        assert found == [(s.name, s.shape, s.dtype, s.descriptor) for s in sample_specs()]
        parts = [[(p.role, p.dtype, p.shape, p.row_bytes, p.n_bytes) for p in e.parts] for e in file.tensors.values()]
        assert parts == [[(p.role, p.dtype, p.shape, p.row_bytes, p.n_bytes) for p in s.parts] for s in sample_specs()]


def test_metadata_recipe_and_assets_come_back(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.qfmt", "all")
    with open_file(tmp_path / "a.qfmt") as file:
        assert file.metadata == {"general.name": Typed("string", "x"), "n": Typed("uint64", 2**63)}
        assert list(file.metadata) == ["general.name", "n"]
        assert file.recipe == {"from": "gguf"}
        assert list(file.assets) == ["config.json", "tokenizer/empty"]
        assert [file.asset(name) for name in file.assets] == [b'{"a": 1}', b""]


@pytest.mark.parametrize(
    "value",
    [
        *[Typed(f"uint{bits}", 2**bits - 1) for bits in (8, 16, 32, 64)],
        *[Typed(f"int{bits}", -(2 ** (bits - 1))) for bits in (8, 16, 32, 64)],
        Typed("int64", 2**53 + 1),
        Typed("float32", 0.10000000149011612),
        Typed("float32", -0.0),
        Typed("float64", 5e-324),
        Typed("float64", float("inf")),
        Typed("float32", float("-inf")),
        Typed("bool", True),
        Typed("string", '\0"\\\u2028😀'),
        Typed("array", (), "float32"),
        Typed("array", (1, -1), "int8"),
        Typed("array", (1.5, float("inf")), "float32"),
        Typed("array", ("a", "ü"), "string"),
        Typed("array", (Typed("array", (2**63,), "uint64"), Typed("array", (), "string")), "array"),
    ],
    ids=str,
)
def test_metadata_keeps_value_and_type(value: Typed, tmp_path: Path) -> None:
    with Writer(tmp_path / "a.qfmt", [], metadata={"key": value}):
        pass
    with open_file(tmp_path / "a.qfmt") as file:
        assert repr(file.metadata) == repr({"key": value})


def test_nan_in_metadata_comes_back_as_nan(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.qfmt", [], metadata={"key": Typed("float32", float("nan"))}):
        pass
    assert np.isnan(open_file(tmp_path / "a.qfmt").metadata["key"].value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Typed("uint8", 256), "256 is not a uint8"),
        (Typed("float32", 0.1), "0.1 is not a float32"),
        (Typed("bool", 1), "1 is not a bool"),
        (Typed("string", "\ud800"), "not JSON"),
        (Typed("array", (1,), None), "type None, expected one of"),
        ("plain", "'plain' has no type, expected Typed"),
    ],
    ids=str,
)
def test_metadata_that_is_not_of_its_type_is_refused(value: Typed, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Writer(tmp_path / "a.qfmt", [], metadata={"key": value})
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [{1: 0, "1": 0}, float("nan"), {1, 2}, "\ud800"], ids=repr)
def test_a_recipe_that_is_not_json_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="field 'recipe': not JSON"):
        Writer(tmp_path / "a.qfmt", [], recipe=value)


def test_a_raw_part_is_a_read_only_view_of_the_mapped_file(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.qfmt")
    with open_file(tmp_path / "a.qfmt") as file:
        entry = file.tensors["b"]
        view = file.read(entry, "codes", 10, 30)
        assert np.shares_memory(view, np.frombuffer(file.data, np.uint8))
        assert not view.flags.writeable
    assert view.tobytes() == CODES.tobytes()[10:30]


@pytest.mark.parametrize("alignment", [64, 4096, 65536])
def test_planes_are_aligned_as_asked(alignment: int, tmp_path: Path) -> None:
    write_sample(tmp_path / "a.qfmt", "scales", alignment)
    with open_file(tmp_path / "a.qfmt") as file:
        file.verify()
        offsets = [plane.byte_offset for e in file.tensors.values() for part in e.parts for plane in part.planes]
        assert [offset % alignment for offset in offsets] == [0] * len(offsets)


def test_compress_scales_leaves_codes_raw_and_all_leaves_nothing_raw(tmp_path: Path) -> None:
    found = {}
    for mode in MODES:
        file = File("a.qfmt", memoryview(write_sample(tmp_path / "a.qfmt", mode)))
        parts = [part for entry in file.tensors.values() for part in entry.parts]
        found[mode] = [[(p.encoding, p.is_codes) for p in part.planes] for part in parts]
    assert found["none"] == [[("raw", True)], [("raw", True)], [("raw", False)], [("raw", False)]]
    blocks = [("zstd", False), ("zstd", False), ("raw", True)]
    assert found["scales"] == [blocks, [("raw", True)], [("zstd", False)], [("raw", False)]]
    blocks = [("zstd", False), ("zstd", False), ("zstd", True)]
    assert found["all"] == [blocks, [("zstd", True)], [("zstd", False)], [("raw", False)]]


def test_a_raw_column_of_codes_lies_in_the_file_as_it_is(tmp_path: Path) -> None:
    data = write_sample(tmp_path / "a.qfmt", "scales")
    plane = File("a.qfmt", memoryview(data)).tensors["ü.weight"].parts[0].planes[2]
    stored = data[plane.byte_offset : plane.byte_offset + plane.stored_bytes]
    assert stored == BLOCKS[:, 4:].tobytes()


def big_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Give blocks and codes of several stripes each, the last one short."""
    rng = np.random.default_rng(seed=5)
    blocks = rng.integers(0, 256, (130_000, 20), np.uint8)
    blocks[:, :4] = rng.integers(0, 3, (130_000, 4), np.uint8)
    return blocks, rng.integers(0, 16, (1001, 2100), np.uint8)


def write_big(path: Path, mode: str, piece_bytes: int, order: tuple[str, ...]) -> bytes:
    """Write two tensors in pieces, taking turns in an order."""
    blocks, codes = big_arrays()
    specs = [
        TensorSpec("a", (1, 1), "float32", {}, (PartSpec("blocks", "uint8", blocks.shape, 20, 20, BLOCK_COLUMNS),)),
        TensorSpec("b", (1, 1), "float32", {}, (PartSpec("codes", "uint8", codes.shape, 2100, is_codes=True),)),
    ]
    left = {"a": blocks.tobytes(), "b": codes.tobytes()}
    done = {"a": 0, "b": 0}
    with Writer(path, specs, compress=mode, assets={"x": bytes(3 * MIB)}) as writer:
        while any(done[name] < len(left[name]) for name in order):
            for name in order:
                piece = left[name][done[name] : done[name] + piece_bytes]
                writer.write(name, "blocks" if name == "a" else "codes", done[name], piece)
                done[name] += len(piece)
    return path.read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_bytes_do_not_depend_on_pieces_or_order(mode: str, tmp_path: Path) -> None:
    first = write_big(tmp_path / "a.qfmt", mode, 4 * MIB, ("a", "b"))
    assert write_big(tmp_path / "b.qfmt", mode, 333_333, ("b", "a")) == first
    File("a.qfmt", memoryview(first)).verify()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 0), (0, 1), (MIB - 17, MIB + 17), (MIB, 2 * MIB), (1_048_559, 1_048_561), (2_000_000, 2_100_100), (777, None)],
)
def test_any_range_of_bytes_can_be_read(mode: str, start: int, stop: int | None, tmp_path: Path) -> None:
    file = File("a.qfmt", memoryview(write_big(tmp_path / "a.qfmt", mode, MIB, ("a", "b"))))
    blocks, codes = big_arrays()
    assert file.read(file.tensors["a"], "blocks", start, stop).tobytes() == blocks.tobytes()[start:stop]
    assert file.read(file.tensors["b"], "codes", start, stop).tobytes() == codes.tobytes()[start:stop]


def test_reading_rows_checks_only_the_chunks_they_lie_in(tmp_path: Path) -> None:
    data = bytearray(write_big(tmp_path / "a.qfmt", "none", MIB, ("a", "b")))
    file = File("a.qfmt", memoryview(data))
    entry = file.tensors["b"]
    data[entry.parts[0].planes[0].byte_offset + MIB + 5] ^= 1
    _, codes = big_arrays()
    assert file.read(entry, "codes", 0, MIB).tobytes() == codes.tobytes()[:MIB]
    with pytest.raises(FileError, match=r"tensor 'b' field 'codes' at .*: chunk 1 of 3 \(1048576 bytes"):
        file.read(entry, "codes", MIB - 1, MIB + 1)


def test_verify_false_reads_unchecked_payload_but_checks_the_index(tmp_path: Path) -> None:
    data = bytearray(write_sample(tmp_path / "a.qfmt"))
    data[128] ^= 1
    (tmp_path / "b.qfmt").write_bytes(data)
    with open_file(tmp_path / "b.qfmt", verify=False) as file:
        assert file.read(file.tensors["ü.weight"], "blocks")[0] == BLOCKS[0, 0] ^ 1
        with pytest.raises(FileError, match="BLAKE3"):
            file.verify()
    data[-1] ^= 1
    (tmp_path / "b.qfmt").write_bytes(data)
    with pytest.raises(FileError, match="index_digest"):
        open_file(tmp_path / "b.qfmt", verify=False)


def test_verify_tells_how_far_it_is(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.qfmt")
    calls: list[tuple[int, int]] = []
    with open_file(tmp_path / "a.qfmt") as file:
        file.verify(lambda done, total: calls.append((done, total)))
    n_bytes = (tmp_path / "a.qfmt").stat().st_size
    assert calls == sorted(calls)
    assert calls[-1] == (n_bytes, n_bytes)


dtypes = st.sampled_from(["uint8", "float16", "float32", "int64", "bfloat16"])
WIDTHS = {"uint8": 1, "float16": 2, "float32": 4, "int64": 8, "bfloat16": 2}


@st.composite
def tensors(draw: st.DrawFn) -> list[tuple[TensorSpec, list[bytes]]]:
    """Give tensors of random parts with their bytes."""
    result = []
    for name in draw(st.lists(st.text(max_size=9), unique=True, max_size=4)):
        parts, payload = [], []
        for role in draw(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1, max_size=3)):
            dtype = draw(dtypes)
            shape = (draw(st.integers(0, 40)), draw(st.integers(1, 5)))
            row_bytes = shape[1] * WIDTHS[dtype]
            cut = draw(st.integers(1, row_bytes))
            columns = (Column(0, cut, is_codes=draw(st.booleans())), Column(cut, row_bytes))[: 2 if cut < row_bytes else 1]
            parts.append(PartSpec(role, dtype, shape, row_bytes, row_bytes, columns))
            n_bytes = shape[0] * row_bytes
            payload.append(draw(st.sampled_from([bytes(n_bytes), draw(st.binary(min_size=n_bytes, max_size=n_bytes))])))
        shape = tuple(draw(st.lists(st.integers(0, 2**20), max_size=2)))
        result.append((TensorSpec(name, shape, "float32", {"k": draw(st.integers(0, 2))}, tuple(parts)), payload))
    return result


@given(tensors(), st.sampled_from(MODES))
def test_random_tensors_come_back(tmp_path_factory: pytest.TempPathFactory, given: list, mode: str) -> None:
    path = tmp_path_factory.mktemp("random") / "a.qfmt"
    with Writer(path, [spec for spec, _ in given], compress=mode) as writer:
        for number, (spec, payload) in reversed(list(enumerate(given))):
            for part, data in zip(spec.parts, payload, strict=True):
                writer.write(number, part.role, 0, data)
    with open_file(path) as file:
        file.verify()
        assert list(file.tensors) == [spec.name for spec, _ in given]
        for spec, payload in given:
            entry = file.tensors[spec.name]
            assert (entry.shape, entry.descriptor) == (spec.shape, spec.descriptor)
            assert [file.read(entry, part.role).tobytes() for part in spec.parts] == payload


def test_arrays_of_any_dtype_and_order_are_taken(tmp_path: Path) -> None:
    values = np.arange(12, dtype=ml_dtypes.bfloat16).reshape(3, 4)
    spec = TensorSpec("t", (4, 3), "bfloat16", {}, (PartSpec("values", "bfloat16", (4, 3), 6),))
    with Writer(tmp_path / "a.qfmt", [spec]) as writer:
        writer.write(0, "values", 0, values.T)
    with open_file(tmp_path / "a.qfmt") as file:
        assert file.read(file.tensors["t"], "values").tobytes() == values.T.copy().tobytes()


def write_part_of_it(path: Path, mode: str, error: BaseException | None) -> None:
    """Write one part, then raise, or close too early."""
    with Writer(path, sample_specs(), compress=mode) as writer:
        writer.write("ü.weight", "blocks", 0, BLOCKS)
        writer.write("b", "codes", 0, CODES)
        if error:
            raise error


@pytest.mark.parametrize("mode", MODES)
def test_a_crash_while_writing_leaves_nothing(mode: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_part_of_it(tmp_path / "a.qfmt", mode, KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_part_that_lacks_bytes_is_refused_and_leaves_nothing(mode: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tensor 'b' field 'scales': 0 bytes written, expected 32"):
        write_part_of_it(tmp_path / "a.qfmt", mode, None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.qfmt"
    path.write_bytes(b"old")
    writer = Writer(path, [dense_spec("w", (2,))])
    writer.write("w", "values", 0, np.float32([1, -2]))
    hidden = writer.finish()
    assert path.read_bytes() == b"old"
    assert hidden.read_bytes() == hand_built()
    writer.commit()
    assert path.read_bytes() == hand_built()
    assert list(tmp_path.iterdir()) == [path]


def test_the_mode_of_the_file_is_that_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_worked(tmp_path / "w.qfmt")
    finally:
        os.umask(before)
    assert (tmp_path / "w.qfmt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("tensor", "role", "byte_offset", "n_bytes", "words"),
    [
        ("c", "codes", 0, 1, "tensor 'c' is not among the 3 planned"),
        (3, "asset", 0, 1, "tensor 3 is not among the 3 planned"),
        ("b", "zeros", 0, 1, "tensor 'b': role 'zeros', expected one of ['codes', 'scales']"),
        ("b", "codes", 1, 1, "tensor 'b' field 'codes': 1 bytes at 1, expected at most 40 at 0"),
        ("b", "codes", 0, 41, "tensor 'b' field 'codes': 41 bytes at 0, expected at most 40 at 0"),
    ],
)
def test_bytes_that_are_not_the_next_of_a_part_are_refused(
    tensor: str | int, role: str, byte_offset: int, n_bytes: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught, Writer(tmp_path / "a.qfmt", sample_specs(), assets={"x": b"y"}) as writer:
        writer.write(tensor, role, byte_offset, bytes(n_bytes))
    assert words in str(caught.value)


def part(**changes: object) -> PartSpec:
    """Give a part with changes."""
    facts: dict[str, object] = {"role": "codes", "dtype": "uint8", "shape": (4, 6), "row_bytes": 6, **changes}
    return PartSpec(**facts)  # type: ignore[arg-type]  # wrong values are the point


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (TensorSpec("t", (1,) * 9, "float32", {}, (part(),)), "expected at most 8 dimensions"),
        (TensorSpec("t", (-1,), "float32", {}, (part(),)), "shape [-1]"),
        (TensorSpec("t", (2**30, 2**30), "float32", {}, (part(),)), "2**48 elements"),
        (TensorSpec("t", (0, 2**70), "float32", {}, (part(),)), "2**48 elements"),
        (TensorSpec("t", (), "float32", {}, ()), "0 parts, expected 1 to 65535"),
        (TensorSpec("t", (), "float32", {}, (part(), part())), "roles ['codes', 'codes'], expected each once"),
        (TensorSpec("\ud800", (), "float32", {}, (part(),)), "lone surrogate"),
        (TensorSpec("t", (), "float32", {"x": float("inf")}, (part(),)), "not JSON"),
        (TensorSpec("t", (), "float32", {}, (part(dtype="f32"),)), "dtype 'f32', expected one of"),
        (TensorSpec("t", (), "float32", {}, (part(row_bytes=5),)), "24 bytes, expected a multiple of row_bytes 5"),
        (TensorSpec("t", (), "float32", {}, (part(row_bytes=0),)), "expected a multiple of row_bytes 0"),
        (TensorSpec("t", (), "float32", {}, (part(block_bytes=7),)), "expected a multiple of block_bytes 7"),
        (TensorSpec("t", (), "float32", {}, (part(block_bytes=65536),)), "block_bytes 65536 (1 to 65535)"),
        (TensorSpec("t", (), "float32", {}, (part(dtype="int4", shape=(3,)),)), "12 bits, expected whole bytes"),
        (TensorSpec("t", (), "float32", {}, (part(block_bytes=6, columns=(Column(0, 5),)),)), "end at 5, expected"),
        (TensorSpec("t", (), "float32", {}, (part(block_bytes=6, columns=(Column(1, 6),)),)), "expected one from 0"),
        (TensorSpec("t", (), "float32", {}, (part(block_bytes=6, columns=(Column(0, 6, 4),)),)), "element_bytes"),
    ],
)
def test_a_tensor_that_cannot_be_written_is_refused(spec: TensorSpec, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Writer(tmp_path / "a.qfmt", [spec])
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tensor 'x': name given twice"):
        Writer(tmp_path / "a.qfmt", [dense_spec("x", (1,)), dense_spec("x", (2,))])


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a\\b", "c:x", "a\nb", "./a", "a/"])
def test_an_asset_name_that_is_not_a_plain_relative_path_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a relative path"):
        Writer(tmp_path / "a.qfmt", [], assets={name: b""})


@pytest.mark.parametrize(("option", "value"), [("compress", "zip"), ("alignment", 32), ("alignment", 100)])
def test_an_unknown_option_is_refused(option: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{option} "):
        Writer(tmp_path / "a.qfmt", [], **{option: value})  # type: ignore[arg-type]  # wrong values are the point


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"missing/a\.qfmt: cannot be written: no such file or directory"):
        Writer(tmp_path / "missing" / "a.qfmt", [])


def test_a_folder_in_the_place_of_the_file_is_refused_and_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "a.qfmt").mkdir()
    with pytest.raises(FileError, match=r"a\.qfmt: cannot be written"):
        write_worked(tmp_path / "a.qfmt")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.qfmt"]


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (2, 1), (0, 41)])
def test_a_range_outside_a_part_is_refused(start: int, stop: int, tmp_path: Path) -> None:
    write_sample(tmp_path / "a.qfmt")
    with open_file(tmp_path / "a.qfmt") as file, pytest.raises(UsageError, match="expected a range within 40"):
        file.read(file.tensors["b"], "codes", start, stop)


def test_an_unknown_role_or_asset_is_refused(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.qfmt")
    with open_file(tmp_path / "a.qfmt") as file:
        with pytest.raises(UsageError, match="no part 'zeros', expected one of codes, scales"):
            file.read(file.tensors["b"], "zeros")
        with pytest.raises(UsageError, match=r"no asset 'x\.json'"):
            file.asset("x.json")
        with pytest.raises(KeyError):
            file.tensors["c"]


def test_a_closed_file_is_refused(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.qfmt")
    file = open_file(tmp_path / "a.qfmt")
    entry = file.tensors["b"]
    file.close()
    with pytest.raises(UsageError, match="the file is closed"):
        file.read(entry, "codes")


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    words = {
        "pipe": "not a regular file",
        "empty": "0 bytes, expected a .qfmt file",
        "loop": "too many levels of symbolic links",
        ".": "not a regular file",
        "missing": "no such file or directory",
        "a\0b": "embedded null byte",
    }
    found = {}
    for name in words:
        with pytest.raises(QFormatError) as caught:
            open_file(f"{tmp_path}/{name}")
        found[name] = str(caught.value)
    assert {name: word in found[name] for name, word in words.items()} == dict.fromkeys(words, True)


def test_opening_makes_nothing_for_each_tensor(tmp_path: Path) -> None:
    spec = (PartSpec("codes", "uint8", (4, 16), 16, is_codes=True),)
    names = [f"model.layers.{k}.weight" for k in range(200)]
    with Writer(tmp_path / "a.qfmt", [TensorSpec(name, (4, 32), "float32", {"k": 1}, spec) for name in names]) as writer:
        for k in range(len(names)):
            writer.write(k, "codes", 0, bytes(64))

    file = open_file(tmp_path / "a.qfmt")

    assert (file.tensors.found, file.index.built, file.index.parsed, file.tables) == (None, {}, {}, {})
    assert (len(file.tensors), list(file.tensors)) == (200, names)


def test_entries_of_one_form_share_what_it_says(tmp_path: Path) -> None:
    spec = (PartSpec("codes", "uint8", (4, 16), 16, is_codes=True),)
    with Writer(tmp_path / "a.qfmt", [TensorSpec(name, (4, 32), "float32", {"k": 1}, spec) for name in "ab"]) as writer:
        for k in range(2):
            writer.write(k, "codes", 0, bytes([k] * 64))

    file = open_file(tmp_path / "a.qfmt")
    entries = [file.tensors[name] for name in "ab"]

    assert len(file.index.built) == 1
    assert [file.read(entry, "codes").tobytes() for entry in entries] == [bytes(64), bytes([1] * 64)]
