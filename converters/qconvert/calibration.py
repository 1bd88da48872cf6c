"""Files of calibration: what was recorded of the inputs of weights, in safetensors; `docs/calibration.md` describes them.

Decides what a sound file is and how several become one. Must not know which methods use it. Arrays stay on the mapped file
until a weight is asked for, and inputs are summed up some rows at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.containers.mapped import explain_foreign, open_mapped
from qconvert.containers.safetensors import SafetensorsFile, open_safetensors
from qconvert.containers.safetensors_header import TensorInfo
from qconvert.containers.safetensors_write import write_safetensors
from qconvert.destination import check_paths
from qformat.calibration import SOURCES, Accumulator, Statistics, check_sums, diagonal_of, importance_of
from qformat.closing import Closing
from qformat.errors import FileError, Missing, UsageError, about, show
from qformat.file.hidden import Hidden, explain, sync

INPUTS, HESSIAN, MEAN_ABS, SAMPLES = "inputs", "hessian", "mean_abs", "n_samples"
FLOATS = ("float32", "float64")
DTYPES = {INPUTS: SOURCES, HESSIAN: FLOATS, MEAN_ABS: FLOATS, SAMPLES: ("int64",)}
RANKS = {INPUTS: (2,), HESSIAN: (2,), MEAN_ABS: (1,), SAMPLES: (0, 1)}
COMPLETE = ({INPUTS}, {HESSIAN, MEAN_ABS}, {HESSIAN, MEAN_ABS, SAMPLES})  # what a weight may have

SUMMED_MATRICES = 2  # of K x K float64 while recorded inputs are summed up: the sums, and those of a piece or twice themselves

Arrays = Mapping[str, TensorInfo]


class Calibration(Closing, Mapping[str, Statistics]):
    """An open file, by the names of its weights; a context manager. Each look-up reads, and sums up, anew.

    path    : where it lies
    columns : of each weight, from the header alone

    Raises FileError on opening for a file that is no safetensors, and for arrays that are none of calibration or do not fit one
    another; on look-up for values that are not sound. Missing on look-up for a weight that is not there, UsageError once it is
    closed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: SafetensorsFile = _open_arrays(self.path)
        try:
            self._arrays = _group(self._file.tensors, self.path)
            self.columns = {name: _n_cols(name, arrays, self.path) for name, arrays in self._arrays.items()}
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Statistics:
        """Give the statistics of a weight."""
        arrays = self._look_up(name)
        with self._sound(name):
            if INPUTS in arrays:
                accumulator = Accumulator(self.columns[name])
                accumulator.add(arrays[INPUTS])
                return accumulator.statistics()
            wide = [arrays[kind].astype(np.float64, copy=False) for kind in (HESSIAN, MEAN_ABS)]
            return Statistics(wide[0], wide[1], _n_samples(arrays))

    def importance(self, name: str) -> NDArray[np.float32]:
        """Give the importance of a weight's columns, as its statistics do, without a matrix; of inputs but for last digits.

        Raises as a look-up does.
        """
        arrays = self._look_up(name)
        with self._sound(name):
            if INPUTS in arrays:
                return importance_of(diagonal_of(arrays[INPUTS]))
            check_sums(arrays[HESSIAN], arrays[MEAN_ABS], _n_samples(arrays))
            return importance_of(arrays[HESSIAN].diagonal())

    def n_held(self, name: str) -> int:
        """Bytes that the sums of a weight take at most while they are looked up and used, beside the mapped file."""
        kinds, n_cols = self._arrays[name], self.columns[name]
        n_bytes = n_cols * n_cols * np.dtype(np.float64).itemsize
        if INPUTS in kinds:
            return SUMMED_MATRICES * n_bytes
        hessian = kinds[HESSIAN]
        return 0 if hessian.dtype == "float64" and hessian.byte_offset % np.dtype(np.float64).alignment == 0 else n_bytes

    def __repr__(self) -> str:
        return f"Calibration({show(str(self.path), quote=True)}, {len(self)} weights)"

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _look_up(self, name: str) -> dict[str, NDArray[Any]]:
        if name not in self._arrays:
            message = f"there is none for it among {len(self)} weights"
            raise Missing(message, path=self.path, tensor=name, field="calibration")
        return {kind: self._file.array(info) for kind, info in self._arrays[name].items()}

    @contextmanager
    def _sound(self, name: str) -> Iterator[None]:
        """Have what is wrong with a weight's values be said of the file."""
        try:
            with about(self.path, name):
                yield
        except UsageError as err:
            facts = {key: getattr(err, key) for key in ("path", "tensor", "field", "index", "expected", "found")}
            raise FileError(err.message, **facts) from err


def open_calibration(path: str | Path) -> Calibration:
    """Open a file of calibration and check its header. Raises FileError as `Calibration` does."""
    return Calibration(path)


def holds_calibration(path: str | Path) -> bool:
    """Tell whether a file is one of calibration, by its header."""
    try:
        with open_calibration(path) as found:
            return bool(found)
    except FileError:
        return False


def write_calibration(
    path: str | Path, statistics: Mapping[str, Statistics], dtype: str = "float64", force: bool = False
) -> None:
    """Write statistics of weights to a file.

    statistics : by name; each is looked up twice, first for its columns; one is held at a time
    dtype      : of the sums: "float64", which keeps every bit, or "float32", half the size
    force      : replace a file that exists

    Raises UsageError for another dtype, for what is no statistics, and where the file cannot be made or exists.
    """
    if isinstance(statistics, Calibration):
        merge_calibration([statistics.path], path, dtype, force)
        return
    check_paths((), Path(path), force)
    columns = dict[str, int]()
    for name in statistics:
        found = statistics[name]
        if not name or not isinstance(found, Statistics):
            message = f"{type(found).__name__} for {show(name, quote=True)}, expected Statistics by the names of weights"
            raise UsageError(message, field="statistics", found=type(found).__name__)
        columns[name] = found.n_cols
    _write(Path(path), columns, statistics.__getitem__, dtype)


def merge_calibration(paths: Iterable[str | Path], dst: str | Path, dtype: str = "float64", force: bool = False) -> None:
    """Write a file of the sums over all samples of several; a weight need not be in all of them.

    dtype, force : as `write_calibration` has them

    Memory is that of two weights' statistics. Raises FileError for a file that is not sound; UsageError for no files, one that
    is named twice, a weight with other columns in another file, one of which only some files say the number of samples, and as
    `write_calibration` does.
    """
    sources = _check_files(paths)
    check_paths(map(Path, sources), Path(dst), force)
    with ExitStack() as stack:
        files = [stack.enter_context(open_calibration(path)) for path in sources]
        columns: dict[str, int] = {}
        for file in files:
            for name, n_cols in file.columns.items():
                if columns.setdefault(name, n_cols) != n_cols:
                    message = f"{n_cols} columns, expected {columns[name]} as in the files before"
                    raise UsageError(message, path=file.path, tensor=name, found=n_cols, expected=columns[name])
        _write(Path(dst), columns, partial(_merged, files), dtype)


def _check_files(paths: Iterable[str | Path]) -> list[str | Path]:
    """Give the files of a list; refuse what is none, and one of which samples would count twice."""
    found = f"'{paths}'" if isinstance(paths, str | Path) else "no files"
    sources = [] if isinstance(paths, str | Path) else list(paths)
    if not sources:
        message = f"{found}, expected a list of files of calibration"
        raise UsageError(message, field="paths", found=found)
    for number, path in enumerate(sources):
        if any(_is_one_file(path, other) for other in sources[:number]):
            raise UsageError("named twice, and its samples would count twice", path=path, field="paths")
    return sources


def _is_one_file(one: str | Path, other: str | Path) -> bool:
    """Tell whether two paths lead to one file, by whatever links; what is not there is refused when it is opened."""
    return os.path.samefile(one, other) if os.path.exists(one) and os.path.exists(other) else Path(one) == Path(other)


def _merged(files: Sequence[Calibration], name: str) -> Statistics:
    """Give the statistics of a weight over all files that have it."""
    first, *rest = (file for file in files if name in file.columns)
    total = first[name]
    for file in rest:
        with about(file.path, name):
            total = total.merge(file[name])
    return total


def _write(path: Path, columns: Mapping[str, int], look_up: Callable[[str], Statistics], dtype: str) -> None:
    if dtype not in FLOATS:
        raise UsageError(f"sums of {dtype}, expected float32 or float64", field="dtype", found=dtype, expected=FLOATS)
    tensors = [
        (f"{name}.{kind}", of, shape)
        for name, n in columns.items()
        for kind, of, shape in ((HESSIAN, dtype, (n, n)), (MEAN_ABS, dtype, (n,)), (SAMPLES, "int64", (1,)))
    ]
    hidden = Hidden(path)
    try:
        with write_safetensors(hidden.place, tensors) as writer:
            for name in columns:
                found = look_up(name)
                with about(path, name):
                    writer.write(f"{name}.{HESSIAN}", 0, _stored(found.hessian, HESSIAN, dtype))
                    writer.write(f"{name}.{MEAN_ABS}", 0, _stored(found.mean_abs, MEAN_ABS, dtype))
                writer.write(f"{name}.{SAMPLES}", 0, np.array([found.n_samples], "<i8").data)
        with explain(path):
            sync(hidden.place)
        hidden.commit()
    except BaseException:
        hidden.abort()
        raise


def _stored(array: NDArray[np.float64], field: str, dtype: str) -> memoryview:
    """Give the bytes of an array; of a column whose sum of squares becomes 0, all sums do.

    Raises UsageError where the type cannot hold its largest number.
    """
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<"))
    if np.isinf(made.min()) or np.isinf(made.max()):
        raise UsageError(f"numbers beyond {dtype}, use float64", field=field, expected=dtype)
    if field == HESSIAN:
        lost = (made.diagonal() == 0) & (array.diagonal() != 0)
        if lost.any():  # never of the caller's own array, which float64 is
            made[lost], made[:, lost] = 0, 0
    return made.data


def _n_samples(arrays: Mapping[str, NDArray[Any]]) -> int:
    return int(arrays[SAMPLES].reshape(-1)[0]) if SAMPLES in arrays else 0


def _open_arrays(path: Path) -> SafetensorsFile:
    """Open a safetensors file. Raises FileError, for any other file by what it is."""
    with open_mapped(path) as mapped:
        if bytes(mapped.data[8:9]) != b"{":  # where a header begins, after its length
            found = explain_foreign(mapped.data) or "another kind of file"
            raise FileError(f"found {found}, expected a safetensors file of calibration", path=path, found=found)
    return open_safetensors(path)


def _group(tensors: Mapping[str, TensorInfo], path: Path) -> dict[str, Arrays]:
    """Give the arrays of each weight, by kind. Raises FileError for one that is of no kind, or not as its kind is."""
    found: dict[str, dict[str, TensorInfo]] = {}
    for info in tensors.values():
        name, _, kind = info.name.rpartition(".")
        if not name or kind not in DTYPES:
            message = f"an array that is none of calibration, expected names that end in .{', .'.join(DTYPES)}"
            raise FileError(message, path=path, tensor=info.name, found=kind, expected=tuple(DTYPES))
        if info.dtype not in DTYPES[kind] or len(info.shape) not in RANKS[kind]:
            ranks, dtypes = " or ".join(map(str, RANKS[kind])), " or ".join(DTYPES[kind])
            message = f"{info.dtype} of {len(info.shape)} axes, expected {dtypes} of {ranks}"
            raise FileError(message, path=path, tensor=name, field=kind, found=info.dtype, expected=DTYPES[kind])
        found.setdefault(name, {})[kind] = info
    for name, arrays in found.items():
        if set(arrays) not in COMPLETE:
            message = f"{' and '.join(sorted(arrays))}, expected either {INPUTS}, or {HESSIAN} and {MEAN_ABS}"
            raise FileError(message, path=path, tensor=name, found=tuple(arrays), expected=(INPUTS, HESSIAN, MEAN_ABS))
    return dict(found)


def _n_cols(name: str, arrays: Arrays, path: Path) -> int:
    """Give the columns of a weight. Raises FileError where there are none, or its arrays do not agree on them."""
    n_cols = arrays[INPUTS if INPUTS in arrays else HESSIAN].shape[-1]
    expected = {HESSIAN: ((n_cols, n_cols),), MEAN_ABS: ((n_cols,),), SAMPLES: ((), (1,))}
    for kind, info in arrays.items():
        if not n_cols or info.shape not in expected.get(kind, (info.shape,)):
            wanted = f"{expected[kind][0]}" if n_cols and kind in expected else "at least one column"
            raise FileError(f"shape {info.shape}, expected {wanted}", path=path, tensor=name, field=kind, found=info.shape)
    return n_cols
