"""Importance files: both forms as llama-imatrix writes them, and each way in which one can be wrong."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from handmade_gguf import ARCH, STR, kv_array
from handmade_gguf import gguf as gguf_of
from qconvert.imatrix import read_imatrix

from qformat.errors import FileError, UsageError

DOWN = np.arange(8, dtype=np.float32)
EXPERTS = np.arange(12, dtype=np.float32).reshape(3, 4) * 6


def entry(name: bytes, calls: int, values: list[float]) -> bytes:
    return struct.pack(f"<i{len(name)}sii{len(values)}f", len(name), name, calls, len(values), *values)


def dat(*entries: bytes, tail: bytes = b"") -> bytes:
    return struct.pack("<i", len(entries)) + b"".join(entries) + tail


def gguf_imatrix(path: Path, change: Callable[[gguf.GGUFWriter], None] = lambda writer: None, kind: str = "imatrix") -> Path:
    """Write an importance file by the gguf package; `change` adds what a test is about."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", kind)
    writer.add_array("imatrix.datasets", ["wiki.train.raw", "code.txt"])
    writer.add_uint32("imatrix.chunk_count", 40)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.ffn_down.weight.in_sum2", DOWN.reshape(1, 8))
    writer.add_tensor("blk.0.ffn_down.weight.counts", np.array([[4]], np.float32))
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_experts(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", EXPERTS)
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[2], [0], [3]], np.float32))


def test_gguf_importance_is_the_sum_divided_by_the_count(tmp_path: Path) -> None:
    found = read_imatrix(gguf_imatrix(tmp_path / "a.gguf"))
    weights = found.get("blk.0.ffn_down.weight")
    assert weights is not None
    assert (weights.dtype, weights.tolist()) == (np.float32, [[0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]])
    assert (found.datasets, found.n_chunks, list(found.entries)) == (
        ("wiki.train.raw", "code.txt"), 40, ["blk.0.ffn_down.weight"],
    )  # fmt: skip


def test_each_expert_has_its_own_count_and_one_never_called_weighs_all_columns_alike(tmp_path: Path) -> None:
    weights = read_imatrix(gguf_imatrix(tmp_path / "a.gguf", add_experts)).get("blk.0.ffn_up_exps.weight")
    assert weights is not None
    assert weights.tolist() == [[0, 3, 6, 9], [1, 1, 1, 1], [16, 18, 20, 22]]


def test_a_count_below_one_half_is_none(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("w.in_sum2", np.full((2, 2), 6, np.float32))
        writer.add_tensor("w.counts", np.array([[1e-40], [2.5]], np.float32))

    weights = read_imatrix(gguf_imatrix(tmp_path / "a.gguf", change)).get("w")
    assert weights is not None
    assert weights.tolist() == [[1, 1], [2, 2]]


def test_a_tensor_without_entry_has_no_importance(tmp_path: Path) -> None:
    assert read_imatrix(gguf_imatrix(tmp_path / "a.gguf")).get("output.weight") is None


def test_a_big_endian_file_holds_the_same_importance(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "", endianess=gguf.GGUFEndian.BIG)
    writer.kv_data[0].clear()
    writer.add_tensor("w.in_sum2", DOWN.reshape(1, 8))
    writer.add_tensor("w.counts", np.array([[2]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = read_imatrix(tmp_path / "a.gguf").get("w")
    assert weights is not None
    assert weights.tobytes() == (DOWN / 2).tobytes()


@pytest.mark.parametrize(
    ("tail", "n_chunks", "datasets"),
    [
        (b"", 0, ()),
        (struct.pack("<i", 7), 7, ()),
        (struct.pack("<ii", 7, 8) + b"wiki.raw", 7, ("wiki.raw",)),
    ],
)
def test_an_older_file_holds_means_times_calls(tmp_path: Path, tail: bytes, n_chunks: int, datasets: tuple[str, ...]) -> None:
    (tmp_path / "a.dat").write_bytes(dat(entry(b"w", 4, [1, 2, 3]), entry(b"v", 0, [5, 6]), tail=tail))
    found = read_imatrix(tmp_path / "a.dat")
    assert (found.n_chunks, found.datasets) == (n_chunks, datasets)
    assert [None if (row := found.get(name)) is None else row.tolist() for name in ("w", "v")] == [
        [[0.25, 0.5, 0.75]],
        [[5, 6]],
    ]


def test_640_entries_are_no_pickle(tmp_path: Path) -> None:
    """640 is 80 02 in bytes, as a pickle begins."""
    (tmp_path / "a.dat").write_bytes(dat(*(entry(b"%d" % number, 1, [1]) for number in range(640))))
    assert len(read_imatrix(tmp_path / "a.dat").entries) == 640


def test_an_older_file_keeps_the_columns_of_all_experts_in_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(dat(entry(b"w", 2, [2, 4, 6, 8])))
    fitted = (read := read_imatrix(tmp_path / "a.dat")).fit(read.entries["w"], "w", 2, 2)
    assert fitted.importance().tolist() == [[1, 2], [3, 4]]


def test_importance_of_the_wrong_width_is_refused_with_both_numbers(tmp_path: Path) -> None:
    found = read_imatrix(gguf_imatrix(tmp_path / "a.gguf", add_experts))
    with pytest.raises(UsageError, match=r"'blk.0.ffn_down.weight'.*importance of 8 columns, the tensor has 16 columns"):
        found.fit(found.entries["blk.0.ffn_down.weight"], "blk.0.ffn_down.weight", 1, 16)
    with pytest.raises(UsageError, match="importance of 3 x 4 columns, the tensor has 4 x 3 columns"):
        found.fit(found.entries["blk.0.ffn_up_exps.weight"], "w", 4, 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (dat(), "0 entries, expected at least 1"),
        (dat(entry(b"w", 1, [1])) [:-1], "4 bytes needed, 3 left"),
        (dat(entry(b"w", 1, [1]), tail=b"\1\0"), "4 bytes needed, 2 left"),
        (dat(entry(b"w", 1, [1]), tail=struct.pack("<ii", 1, 9) + b"short"), "9 bytes needed, 5 left"),
        (dat(entry(b"w", 1, [1]), tail=struct.pack("<ii", 1, 1) + b"ab"), "1 bytes after the end"),
        (dat(entry(b"w", 1, [])), "0 values, expected at least 1"),
        (dat(entry(b"w", -1, [1])), "-1 calls, expected at least 0"),
        (dat(entry(b"w", 1, [1]), entry(b"w", 1, [1])), "'w' stands twice"),
        (dat(entry(b"\xff", 1, [1])), "byte 0xff is not UTF-8"),
        (dat(entry(b"w", 1, [1, float("nan")])), "value 1 is nan"),
        (dat(entry(b"w", 1, [float("inf")])), "value 0 is inf"),
        (dat(entry(b"w", 1, [1, -2])), "value 1 is -2.0, expected a finite number of at least 0"),
        (struct.pack("<ii", 1, 1 << 30) + b"w" * 20, "1073741824 bytes needed, 20 left"),
        (struct.pack("<i", 1 << 30), "1073741824 entries, which need at least 12884901888 bytes, 0 left"),
        (b"PK\3\4 and more", "found a ZIP archive"),
    ],
)  # fmt: skip
def test_an_older_file_that_lies_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.dat").write_bytes(data)
    with pytest.raises(FileError, match=words) as caught:
        read_imatrix(tmp_path / "a.dat")
    assert (str(caught.value).count("\n"), caught.value.path) == (0, str(tmp_path / "a.dat"))


@pytest.mark.parametrize("n_bytes", range(1, 42))
def test_an_older_file_cut_anywhere_is_refused(tmp_path: Path, n_bytes: int) -> None:
    whole = dat(entry(b"w", 1, [1, 2]), entry(b"v", 1, [3]))
    assert len(whole) == 42
    (tmp_path / "a.dat").write_bytes(whole[:n_bytes])
    with pytest.raises(FileError, match=r" left"):
        read_imatrix(tmp_path / "a.dat")


def test_sums_without_counts_are_refused(tmp_path: Path) -> None:
    path = gguf_imatrix(tmp_path / "a.gguf", lambda writer: writer.add_tensor("w.in_sum2", np.ones((1, 4), np.float32)))
    with pytest.raises(FileError, match=r"'w.in_sum2' without 'w.counts'"):
        read_imatrix(path)


@pytest.mark.parametrize(
    ("sums", "counts", "words"),
    [
        (np.ones((1, 4), np.float16), np.ones((1, 1), np.float32), "f16 of 1 x 4, expected f32"),
        (np.ones((1, 1, 4), np.float32), np.ones((1, 1), np.float32), "f32 of 1 x 1 x 4, expected f32 of experts x columns"),
        (np.ones((3, 4), np.float32), np.ones((2, 1), np.float32), "2 x 1 counts, expected 3 x 1, one for each expert"),
        (np.full((1, 4), -1, np.float32), np.ones((1, 1), np.float32), "value 0 is -1.0"),
        (np.ones((1, 4), np.float32), np.full((1, 1), np.nan, np.float32), "value 0 is nan"),
    ],
)
def test_a_gguf_file_that_lies_is_refused(tmp_path: Path, sums: np.ndarray, counts: np.ndarray, words: str) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("w.in_sum2", sums)
        writer.add_tensor("w.counts", counts)

    with pytest.raises(FileError, match=words) as caught:
        read_imatrix(gguf_imatrix(tmp_path / "a.gguf", change))
    assert "tensor 'w" in str(caught.value)


def test_a_model_is_no_importance_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="a GGUF file of type 'model' with 1 tensors"):
        read_imatrix(gguf_imatrix(tmp_path / "a.gguf", kind="model"))


def test_what_says_nothing_of_its_type_is_not_said_to_be_of_one(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_of([ARCH]))
    with pytest.raises(FileError, match=r"a GGUF file with 0 tensors \*\.in_sum2, expected an imatrix file"):
        read_imatrix(path)


def test_a_type_that_is_no_text_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_of([kv_array("general.type", STR, ["imatrix"])]))
    with pytest.raises(FileError, match=r"a GGUF file with 0 tensors \*\.in_sum2, expected an imatrix file"):
        read_imatrix(path)
