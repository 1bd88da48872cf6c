"""Statistics of inputs: sums worked out by hand, files of other software, merging, and each way in which a file is wrong."""

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import qformat
from qformat.errors import FileError, UsageError

# Sums by hand: 1 + 9 + 4 = 14, -2 + 0 - 2 = -4, 4 + 0 + 1 = 5, each twice; (1 + 3 + 2) / 3, (2 + 0 + 1) / 3.
INPUTS = [[1.0, -2.0], [3.0, 0.0], [-2.0, 1.0]]
HESSIAN = [[28.0, -8.0], [-8.0, 10.0]]
MEAN_ABS = [2.0, 1.0]
OTHER = [[0.0, 4.0]]


def statistics(hessian: Any = HESSIAN, mean_abs: Any = MEAN_ABS, n_samples: int = 3) -> qformat.Statistics:
    return qformat.Statistics(np.array(hessian, np.float64), np.array(mean_abs, np.float64), n_samples)


def facts(found: qformat.Statistics) -> tuple[Any, Any, int]:
    return found.hessian.tolist(), found.mean_abs.tolist(), found.n_samples


def file(path: Path, **arrays: NDArray[Any]) -> Path:
    save_file({name.replace("_of_", "."): array for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_sums_are_those_by_hand(dtype: str) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    batches = [{"w": np.array(INPUTS[:1], kind)}, {"w": np.array(INPUTS[1:], kind).reshape(1, 2, 2)}]

    assert facts(qformat.calibrate(batches)["w"]) == (HESSIAN, MEAN_ABS, 3)


def test_each_weight_has_the_samples_that_it_was_seen_with() -> None:
    found = qformat.calibrate([{"a": np.float32([[1, 1]])}, {"b": np.float32([[2]]), "a": np.float32([[1, 0]])}])

    assert {name: facts(one) for name, one in found.items()} == {
        "a": ([[4.0, 2.0], [2.0, 2.0]], [1.0, 0.5], 2),
        "b": ([[8.0]], [2.0], 1),
    }


def test_sums_are_float64() -> None:
    found = qformat.calibrate([{"w": np.float32([[1 + 2**-20]])}, {"w": np.float32([[2**-40]])}])["w"]

    assert found.hessian.tolist() == [[2 * (1 + 2**-19 + 2**-40 + 0.0)]]  # 2**-80 is beyond float64 here


def test_memory_is_that_of_a_piece_and_not_of_the_samples() -> None:
    inputs = np.ones((1 << 22, 4), np.float16)
    tracemalloc.start()
    found = qformat.calibrate([{"w": inputs}])["w"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (found.n_samples, found.hessian[0, 0]) == (1 << 22, float(1 << 23))
    assert peak < 3 * 8 * (1 << 20)  # a piece, its magnitudes and its mask; all samples are 128 MiB in float64


def test_merging_gives_the_sums_over_both() -> None:
    merged = statistics().merge(statistics([[0, 0], [0, 32]], [0, 4], 1))

    assert facts(merged) == ([[28.0, -8.0], [-8.0, 42.0]], [1.5, 1.75], 4)


def test_importance_is_the_diagonal_over_its_largest() -> None:
    assert statistics([[28, 0], [0, 7]]).importance.tolist() == [1.0, 0.25]
    assert statistics([[0, 0], [0, 0]]).importance.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.zeros((2, 3), np.float32), "tensor 'w' field 'inputs': shape (2, 3), expected 2 columns"),
        (np.zeros((2, 2), np.int32), "tensor 'w' field 'inputs': inputs are int32, expected one of float16"),
        (np.float32([[1, np.nan]]), "tensor 'w' field 'inputs': value 3 is nan, expected a finite number"),
        (np.float16([[np.inf, 0]]), "tensor 'w' field 'inputs': value 2 is inf, expected a finite number"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(inputs: NDArray[Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        qformat.calibrate([{"w": np.float32([[1, 2]])}, {"w": inputs}])

    assert str(caught.value).startswith(words)


def test_a_weight_without_samples_is_refused() -> None:
    with pytest.raises(UsageError, match="tensor 'w' field 'inputs': 0 samples, expected at least 1"):
        qformat.calibrate([{"w": np.zeros((0, 4), np.float32)}])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hessian": [[1, 0]]}, r"shape \(1, 2\), expected a square matrix"),
        ({"mean_abs": [1, 2, 3]}, r"shape \(3,\), expected \(2,\)"),
        ({"hessian": [[1, np.nan], [np.nan, 1]]}, "value 1 is nan, expected a finite number"),
        ({"hessian": [[1, 0], [0, -1]]}, "value 3 is -1.0, expected a sum of squares on the diagonal"),
        ({"hessian": [[1, 0.5], [0.25, 1]]}, r"hessian\[0, 1\] is 0.5 and hessian\[1, 0\] is 0.25, expected a symmetric"),
        ({"hessian": [[0, 0.5], [0, 1]]}, "expected a symmetric matrix"),
        ({"mean_abs": [1, -0.5]}, "value 1 is -0.5, expected a number of at least 0"),
        ({"mean_abs": [np.inf, 1]}, "value 0 is inf"),
        ({"n_samples": -1}, "-1 samples, expected 0 to 9223372036854775807"),
    ],
)
def test_statistics_that_are_not_sound_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        statistics(**change)


def test_statistics_of_other_columns_or_unknown_samples_do_not_merge() -> None:
    with pytest.raises(UsageError, match="statistics of 2 and of 1 columns"):
        statistics().merge(statistics([[1]], [1]))
    with pytest.raises(UsageError, match="number of samples is not known"):
        statistics().merge(statistics(n_samples=0))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_file_of_inputs_is_summed_up(tmp_path: Path, dtype: str) -> None:
    with qconvert.open_calibration(file(tmp_path / "a.safetensors", w_of_inputs=np.array(INPUTS, dtype))) as found:
        assert (list(found), dict(found.columns)) == (["w"], {"w": 2})
        assert facts(found["w"]) == (HESSIAN, MEAN_ABS, 3)
        assert found.get("v") is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_samples", [None, np.array(3), np.array([3])], ids=["unsaid", "scalar", "one"])
def test_a_file_of_sums_is_read(tmp_path: Path, dtype: str, n_samples: NDArray[Any] | None) -> None:
    arrays = {"m.weight_of_hessian": np.array(HESSIAN, dtype), "m.weight_of_mean_abs": np.array(MEAN_ABS, dtype)}
    if n_samples is not None:
        arrays["m.weight_of_n_samples"] = n_samples
    with qconvert.open_calibration(file(tmp_path / "a.safetensors", **arrays)) as found:
        assert facts(found["m.weight"]) == (HESSIAN, MEAN_ABS, 0 if n_samples is None else 3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_importance_of_recorded_inputs_takes_no_matrix(tmp_path: Path, dtype: str) -> None:
    n_cols = 1024
    inputs = np.random.default_rng(2).integers(-8, 9, (40, n_cols)).astype(dtype)  # whose squares add up exactly
    inputs[:, 3] = 0
    with qconvert.open_calibration(file(tmp_path / "a.safetensors", w_of_inputs=inputs)) as found:
        tracemalloc.start()
        importance = found.importance("w")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    squares = (inputs.astype(np.int64) ** 2).sum(axis=0)
    assert importance.tobytes() == (squares / squares.max()).astype(np.float32).tobytes()
    assert peak < 4 * n_cols * n_cols  # half a matrix


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_importance_of_sums_takes_no_matrix(tmp_path: Path, dtype: str) -> None:
    n_cols, inputs = 1024, np.random.default_rng(2).standard_normal((1100, 1024))
    arrays = {"w_of_hessian": (2 * inputs.T @ inputs).astype(dtype), "w_of_mean_abs": np.ones(n_cols, dtype)}
    with qconvert.open_calibration(file(tmp_path / "a.safetensors", **arrays)) as found:
        tracemalloc.start()
        importance = found.importance("w")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        diagonal = arrays["w_of_hessian"].diagonal().astype(np.float64)
        assert importance.tobytes() == (diagonal / diagonal.max()).astype(np.float32).tobytes()
        assert importance.tobytes() == found["w"].importance.tobytes()
    assert peak < 4 * n_cols * n_cols


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"w_of_inputs": np.float32([[1, np.nan]])}, "tensor 'w' field 'inputs': value 1 is nan"),
        ({"w_of_inputs": np.zeros((0, 2), np.float32)}, "tensor 'w' field 'inputs': 0 samples, expected at least 1"),
        ({"w_of_inputs": np.full((4, 2), 1e154)}, "tensor 'w' field 'hessian': value 0 is inf, expected a finite number"),
        (
            {"w_of_hessian": np.float32([[1, 2], [0, 1]]), "w_of_mean_abs": np.ones(2)},
            r"tensor 'w' field 'hessian': hessian\[0, 1\] is 2.0 and hessian\[1, 0\] is 0.0, expected a symmetric matrix",
        ),
        ({"w_of_hessian": np.eye(2), "w_of_mean_abs": np.array([1, -1.0])}, "tensor 'w' field 'mean_abs': value 1 is -1.0"),
    ],
    ids=["nan", "none", "beyond", "halves", "mean"],
)
def test_importance_of_values_that_are_not_sound_is_refused(
    tmp_path: Path, arrays: dict[str, NDArray[Any]], words: str
) -> None:
    with (
        qconvert.open_calibration(file(tmp_path / "a.safetensors", **arrays)) as found,
        pytest.raises(FileError, match=words),
    ):
        found.importance("w")


def test_a_weight_that_is_not_there_is_named(tmp_path: Path) -> None:
    with qconvert.open_calibration(file(tmp_path / "a.safetensors", w_of_inputs=np.array(INPUTS))) as found:
        with pytest.raises(qformat.Missing) as caught:
            found["nope"]
        with pytest.raises(qformat.Missing):
            found.importance("nope")
        assert "nope" not in found
        assert found.get("nope") is None

    assert (
        str(caught.value)
        == f"{tmp_path}/a.safetensors: tensor 'nope' field 'calibration': there is none for it among 1 weights"
    )
    assert isinstance(caught.value, UsageError)
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"import os\n" * 9, "found another kind of file, expected a safetensors file of calibration"),
        (b"GGUF" + bytes(60), "found a GGUF file, expected a safetensors file of calibration"),
        (b"abc", "found another kind of file, expected a safetensors file of calibration"),
        (b"\xe8\3\0\0\0\0\0\0{}", "the header is 1000 bytes long by its length field, but the file holds 2 after it"),
        (b"", "empty file"),
    ],
    ids=["text", "gguf", "short", "cut", "empty"],
)
def test_a_file_that_is_no_safetensors_is_called_what_it_is(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.py").write_bytes(data)
    with pytest.raises(FileError, match=words) as caught:
        qconvert.open_calibration(tmp_path / "a.py")

    assert str(caught.value).startswith(f"{tmp_path}/a.py: ")


def test_statistics_and_files_of_them_are_shown_in_a_line(tmp_path: Path) -> None:
    path = file(tmp_path / "a.safetensors", w_of_inputs=np.array(INPUTS))
    with qconvert.open_calibration(path) as found:
        assert repr(found) == f"Calibration('{path}', 1 weights)"
        assert repr(found["w"]) == "Statistics(2 columns, 3 samples, 48 bytes)"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_written_is_read_by_the_reference_reader(tmp_path: Path, dtype: str) -> None:
    qconvert.write_calibration(tmp_path / "a.safetensors", {"w": statistics()}, dtype)
    found = load_file(tmp_path / "a.safetensors")

    assert {name: (array.dtype.name, array.tolist()) for name, array in found.items()} == {
        "w.hessian": (dtype, HESSIAN), "w.mean_abs": (dtype, MEAN_ABS), "w.n_samples": ("int64", [3]),
    }  # fmt: skip


def test_files_merge_to_the_sums_over_all(tmp_path: Path) -> None:
    one = file(tmp_path / "a.safetensors", w_of_inputs=np.float32(INPUTS), v_of_inputs=np.float32([[2]]))
    other = file(tmp_path / "b.safetensors", w_of_inputs=np.float32(OTHER), u_of_inputs=np.float32([[1]]))
    qconvert.merge_calibration([one, other], tmp_path / "c.safetensors")
    with qconvert.open_calibration(tmp_path / "c.safetensors") as found:
        assert {name: facts(found[name]) for name in found} == {
            "w": ([[28.0, -8.0], [-8.0, 42.0]], [1.5, 1.75], 4),
            "v": ([[8.0]], [2.0], 1),
            "u": ([[2.0]], [1.0], 1),
        }


def test_merging_names_what_does_not_fit_and_leaves_no_file(tmp_path: Path) -> None:
    one = file(tmp_path / "a.safetensors", w_of_inputs=np.float32(INPUTS))
    wide = file(tmp_path / "b.safetensors", w_of_inputs=np.float32([[1, 2, 3]]))
    unsaid = file(tmp_path / "c.safetensors", w_of_hessian=np.array(HESSIAN), w_of_mean_abs=np.array(MEAN_ABS))
    with pytest.raises(UsageError, match=r"b\.safetensors: tensor 'w': 3 columns, expected 2"):
        qconvert.merge_calibration([one, wide], tmp_path / "d.safetensors")
    with pytest.raises(UsageError, match=r"c\.safetensors: tensor 'w' field 'n_samples': the number of samples is not known"):
        qconvert.merge_calibration([one, unsaid], tmp_path / "d.safetensors")
    with pytest.raises(UsageError, match="destination exists"):
        qconvert.merge_calibration([one], wide)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "c.safetensors"]


def test_a_file_that_is_named_twice_is_not_counted_twice(tmp_path: Path) -> None:
    one = file(tmp_path / "a.safetensors", w_of_inputs=np.float32(INPUTS))
    (tmp_path / "link.safetensors").symlink_to(one)
    for other in (one, str(one), tmp_path / "." / "a.safetensors", tmp_path / "link.safetensors"):
        with pytest.raises(UsageError, match=r"\.safetensors: field 'paths': named twice, and its samples would count twice"):
            qconvert.merge_calibration([one, other], tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


@pytest.mark.parametrize(
    ("paths", "words"), [([], "no files"), ("a.safetensors", "'a.safetensors'"), (Path("a.safetensors"), "'a.safetensors'")]
)
def test_what_is_no_list_of_files_does_not_merge(tmp_path: Path, paths: Any, words: str) -> None:
    with pytest.raises(UsageError, match=f"{words}, expected a list of files of calibration"):
        qconvert.merge_calibration(paths, tmp_path / "d.safetensors")


def test_a_closed_file_gives_no_statistics(tmp_path: Path) -> None:
    qconvert.write_calibration(tmp_path / "sums.safetensors", {"w": statistics()})
    for path in (tmp_path / "sums.safetensors", file(tmp_path / "inputs.safetensors", w_of_inputs=np.float32(INPUTS))):
        with qconvert.open_calibration(path) as found:
            pass
        with pytest.raises(UsageError, match=rf"{path.name}: the file is closed"):
            found["w"]


def test_a_column_whose_squares_vanish_in_float32_is_one_that_is_never_used(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).standard_normal((50, 4))
    inputs[:, 2] *= 1e-25  # squares of 1e-48, products of 1e-24

    qconvert.write_calibration(tmp_path / "a.safetensors", qformat.calibrate([{"w": inputs}]), "float32")

    with qconvert.open_calibration(tmp_path / "a.safetensors") as file_of_sums:
        found = file_of_sums["w"]
    assert not found.hessian[2].any()
    assert not found.hessian[:, 2].any()
    left = [0, 1, 3]
    wanted = (2 * inputs.T @ inputs)[np.ix_(left, left)]
    np.testing.assert_allclose(found.hessian[np.ix_(left, left)], wanted, rtol=2**-23)
    qformat.quantize(np.ones((2, 4), np.float32), "int4_channel", method="gptq", calibration=found)


def test_more_samples_than_files_count_do_not_merge(tmp_path: Path) -> None:
    many = qformat.Statistics(np.eye(2), np.ones(2), (1 << 63) - 1)
    for name in ("a", "b"):
        qconvert.write_calibration(tmp_path / name, {"w": many})

    with pytest.raises(UsageError, match="18446744073709551614 samples, expected 0 to 9223372036854775807"):
        qconvert.merge_calibration([tmp_path / "a", tmp_path / "b"], tmp_path / "c")

    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ({"w": 3}, "int for 'w', expected Statistics"),
        ({"": qformat.Statistics(np.eye(1), np.ones(1), 1)}, "Statistics for '', expected"),
    ],
)
def test_what_is_no_statistics_by_name_is_not_written(tmp_path: Path, statistics: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        qconvert.write_calibration(tmp_path / "a", statistics)


def test_sums_beyond_float32_are_not_written_as_float32(tmp_path: Path) -> None:
    huge = statistics([[1e39, 0], [0, 1]])
    with pytest.raises(UsageError, match="tensor 'w' field 'hessian': numbers beyond float32, use float64"):
        qconvert.write_calibration(tmp_path / "a.safetensors", {"w": huge}, "float32")
    assert list(tmp_path.iterdir()) == []
    qconvert.write_calibration(tmp_path / "a.safetensors", {"w": huge})
    with qconvert.open_calibration(tmp_path / "a.safetensors") as found:
        assert found["w"].hessian[0, 0] == 1e39


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"w_of_weight": np.zeros((2, 2))}, "tensor 'w.weight': an array that is none of calibration, expected names that end"),
        ({"inputs": np.zeros((2, 2))}, "tensor 'inputs': an array that is none of calibration"),
        ({"w_of_hessian": np.eye(2)}, "tensor 'w': hessian, expected either inputs, or hessian and mean_abs"),
        ({"w_of_inputs": np.eye(2), "w_of_hessian": np.eye(2)}, "tensor 'w': hessian and inputs, expected either"),
        ({"w_of_inputs": np.ones(2)}, "tensor 'w' field 'inputs': float64 of 1 axes, expected .* of 2"),
        ({"w_of_inputs": np.ones((2, 2), np.int8)}, "tensor 'w' field 'inputs': int8 of 2 axes, expected float16 or"),
        ({"w_of_inputs": np.ones((2, 0))}, r"field 'inputs': shape \(2, 0\), expected at least one column"),
        ({"w_of_hessian": np.ones((2, 3)), "w_of_mean_abs": np.ones(3)}, r"'hessian': shape \(2, 3\), expected \(3, 3\)"),
        ({"w_of_hessian": np.eye(2), "w_of_mean_abs": np.ones(3)}, r"'mean_abs': shape \(3,\), expected \(2,\)"),
        (
            {"w_of_hessian": np.float16(np.eye(2)), "w_of_mean_abs": np.ones(2)},
            "'hessian': float16 of 2 axes, expected float32",
        ),
        (
            {"w_of_hessian": np.eye(2), "w_of_mean_abs": np.ones(2), "w_of_n_samples": np.ones(2, np.int64)},
            r"'n_samples': shape \(2,\), expected",
        ),
    ],
)
def test_a_header_of_something_else_is_refused_on_opening(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(FileError, match=words):
        qconvert.open_calibration(file(tmp_path / "a.safetensors", **arrays))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"w_of_inputs": np.float32([[1, np.nan]])}, "tensor 'w' field 'inputs': value 1 is nan, expected a finite number"),
        ({"w_of_inputs": np.zeros((0, 2))}, "tensor 'w' field 'inputs': 0 samples, expected at least 1"),
        (
            {"w_of_hessian": np.array([[1, 2], [3, 9.0]]), "w_of_mean_abs": np.ones(2)},
            r"field 'hessian': hessian\[0, 1\] is 2.0 and hessian\[1, 0\] is 3.0, expected a symmetric matrix",
        ),
        (
            {"w_of_hessian": np.float32([[np.inf, 0], [0, 1]]), "w_of_mean_abs": np.ones(2)},
            "field 'hessian': value 0 is inf, expected a finite number",
        ),
    ],
)
def test_values_that_are_not_sound_are_refused_when_they_are_read(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with qconvert.open_calibration(file(tmp_path / "a.safetensors", **arrays)) as found:
        with pytest.raises(FileError, match=words) as caught:
            found["w"]
        assert caught.value.path == str(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ({"w": np.ones((2, 3), np.float32)}, r"a batch is str, expected inputs by name"),
        ([{"w": [[1.0, 2.0]]}], "inputs are list, expected an array"),
        ([{"w": np.ones((2, 0), np.float32)}], r"expected at least 1 column"),
        ([{"w": np.float32(1)}], "inputs are float32, expected an array"),
    ],
    ids=["no list", "no array", "no columns", "a number"],
)
def test_what_are_no_inputs_by_name_is_refused(batches: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        qformat.calibrate(batches)
