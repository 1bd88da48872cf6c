"""Files measured: conversions against the disk, `verify` and `hash` against BLAKE3.

A conversion is compared with writing the same bytes to a new file, made as long as it is to be, and waiting for the disk. Its
time without the proof ends where the library first reports progress of the proof, its files being durable by then.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import qconvert
from bench.cases import THREADS
from bench.checkpoints import Q4_0, write_gguf
from bench.commands import qfmt
from bench.results import Result
from bench.roofline import paged
from bench.rounds import Action, interleave, ratios
from blake3 import blake3

import qformat

COPIED_BYTES, DERIVED_BYTES, HASHED_BYTES = 256 << 20, 64 << 20, 256 << 20
Q4_0_TENSOR, ROWS, COLS = 4096 * 4096 // 32 * 18, 4096, 4096
PIECE = 4 << 20  # bytes that are written, or hashed, at a time
BUDGET = 4.0  # seconds for the rounds of one case
OURS, UNPROVED, DISK, ONE = "qformat", "qformat, unproved", "disk", "qformat, one tensor"


@dataclass(frozen=True, slots=True)
class Way:
    """A conversion: names of source and destination, and what `convert` is told besides."""

    name: str
    source: str
    destination: str
    to: str | None = None


WAYS = (
    Way("GGUF to .qfmt", "copied.gguf", "made.qfmt"),
    Way(".qfmt to GGUF", "copied.qfmt", "made.gguf"),
    Way("Q4_0 to Q8_0", "derived.gguf", "made.gguf", "gguf:q8_0"),
)


@dataclass(slots=True)
class Converting:
    """One conversion, run again and again; keeps when the proof began, of every run."""

    source: Path
    destination: Path
    to: str | None
    unproved: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        began, proving = time.perf_counter(), False

        def progress(what: str, done: int, total: int) -> None:
            nonlocal proving
            if what == "prove" and not proving:
                proving = True
                self.unproved.append(time.perf_counter() - began)

        qconvert.convert(self.source, self.destination, to=self.to, progress=progress)


def convert() -> Iterator[Result]:
    """Measure conversions to new files, `verify` and `hash`."""
    with TemporaryDirectory(prefix="qformat-bench-") as name:
        folder = Path(name)
        for source, n_bytes in (("copied", COPIED_BYTES), ("derived", DERIVED_BYTES)):
            write_gguf(folder / f"{source}.gguf", [(ROWS, COLS)] * (n_bytes // Q4_0_TENSOR), Q4_0)
        qconvert.convert(folder / "copied.gguf", folder / "copied.qfmt")
        for way in WAYS:
            yield from _converting(way, folder)
        yield from _verifying(folder / "copied.qfmt")
        yield from _hashing(folder)


def write_durably(path: Path, data: memoryview) -> None:
    """Write a new file as fast as the system can: its room first, then its bytes, then wait for the disk."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, len(data))
        for start in range(0, len(data), PIECE):
            os.pwrite(file.fileno(), data[start : start + PIECE], start)
        os.fsync(file.fileno())


def _converting(way: Way, folder: Path) -> Iterator[Result]:
    destination, beside = folder / way.destination, folder / "beside"
    qconvert.convert(folder / way.source, destination, to=way.to)
    data = memoryview(destination.read_bytes())
    for n_threads in reversed(THREADS):
        qformat.set_threads(n_threads)
        work = Converting(folder / way.source, destination, way.to)
        actions = [
            Action(DISK, lambda: write_durably(beside, data), len(data), _gone(beside)),
            Action(OURS, work, len(data), _gone(destination)),
        ]
        spreads = interleave(actions, BUDGET)
        unproved = len(data) / 1e9 / median(work.unproved[1:])
        figures = {"GB/s": spreads[OURS].gb_per_s, **ratios(spreads, {DISK: OURS})}
        figures |= {"unproved x disk": unproved / spreads[DISK].gb_per_s}
        yield Result("convert", way.name, f"{len(data) >> 20} MiB", n_threads, figures, spreads)
    qformat.set_threads(None)
    for path in (destination, beside):
        path.unlink(missing_ok=True)


def _verifying(path: Path) -> Iterator[Result]:
    """Measure checking every digest of a file, against one digest of it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for n_threads in THREADS:
            qformat.set_threads(n_threads)

            def verify() -> None:
                with qformat.open(path) as model:
                    model.verify()

            actions = [
                Action("BLAKE3", lambda n=n_threads: blake3(data, max_threads=n).digest(), len(data)),
                Action(OURS, verify, len(data)),
            ]
            spreads = interleave(actions, BUDGET / 2)
            figures = {"GB/s": spreads[OURS].gb_per_s, **ratios(spreads, {"BLAKE3": OURS})}
            yield Result("convert", "verify .qfmt", f"{len(data) >> 20} MiB", n_threads, figures, spreads)
    qformat.set_threads(None)


def _hashing(folder: Path) -> Iterator[Result]:
    """Measure `qfmt hash` against decoding all, then digesting what was decoded: what it cannot do without.

    What a file of one tensor takes as well is starting up, and left out on both sides.
    """
    path, small = folder / "hashed.gguf", folder / "one.gguf"
    write_gguf(path, [(ROWS, COLS)] * (1 + HASHED_BYTES // Q4_0_TENSOR), Q4_0)
    write_gguf(small, [(ROWS, COLS)], Q4_0)
    out = paged((ROWS, COLS), "float32")
    with qconvert.open(path) as model:
        tensors = [tensor for _, tensor in model.items()][1:]
        n_bytes = sum(4 * tensor.n_weights for tensor in tensors)
        for n_threads in THREADS:
            qformat.set_threads(n_threads)

            def digest(n_threads: int = n_threads) -> None:
                for _ in tensors:
                    blake3(out.data.cast("B"), max_threads=n_threads).digest()

            actions = [
                Action("decode", lambda: [tensor.dequantize(out=out) for tensor in tensors], n_bytes),
                Action("BLAKE3", digest, n_bytes),
                Action(OURS, lambda n=n_threads: qfmt("hash", path, QFORMAT_THREADS=str(n)), n_bytes),
                Action(ONE, lambda n=n_threads: qfmt("hash", small, QFORMAT_THREADS=str(n)), n_bytes // len(tensors)),
            ]
            spreads = interleave(actions, BUDGET)
            bound = spreads["decode"].median + spreads["BLAKE3"].median
            more = spreads[OURS].median - spreads[ONE].median
            figures = {"GB/s": n_bytes / 1e9 / more, "once s": spreads[ONE].median, "x decode + BLAKE3": bound / more}
            yield Result("convert", "qfmt hash", f"{n_bytes >> 20} MiB of float32", n_threads, figures, spreads)
    qformat.set_threads(None)


def _gone(path: Path) -> Callable[[], None]:
    return lambda: path.unlink(missing_ok=True)
