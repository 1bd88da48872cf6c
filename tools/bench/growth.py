"""Growth: the time of commands against the number of tensors, and against bytes, and whether it is linear.

Memory is what a process holds of its own; pages of mapped files are the system's, and grow with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.checkpoints import BLOCK, Q4_0, write_gguf
from bench.commands import Failed
from bench.memory import Run, run
from bench.results import Result
from bench.slope import fit

COUNTS = (1, 10, 100, 1_000, 10_000, 100_000)
MEGABYTES = (1, 10, 100, 1_000)
LARGE_MEGABYTES = 8_000  # with source and result twice that on the disk, for `largest`
COLS, TENSOR_ROWS = 4096, 4096
TIMES, SHORT = 3, 1.0  # a command that takes no more seconds than that is run three times, any other once
PATIENCE = 30.0  # seconds that a command may be expected to take; larger sizes are left out

# What is run: a name, and the arguments, from a source and what it is converted to.
COMMANDS: tuple[tuple[str, Callable[[Path, Path], Sequence[str | Path]]], ...] = (
    ("inspect", lambda source, made: ("inspect", source)),
    ("plan", lambda source, made: ("plan", source, "--to", "qfmt")),
    ("convert", lambda source, made: ("convert", source, made, "--force")),
    ("verify", lambda source, made: ("verify", made)),
    ("hash", lambda source, made: ("hash", made)),
)
MADE = ("verify", "hash")  # read what `convert` made
OF_COUNTS, OF_BYTES = ("inspect", "plan", "convert", "hash"), ("convert", "verify", "hash")


def growth(largest: bool = False) -> Iterator[Result]:
    """Measure growth; `largest`: up to 8 GB, else up to 1 GB."""
    yield from _grown("tensors", COUNTS, lambda n: [(1, BLOCK)] * n, OF_COUNTS, 1)
    sizes = (*MEGABYTES, LARGE_MEGABYTES) if largest else MEGABYTES
    yield from _grown("bytes", sizes, shapes_of, OF_BYTES, 1_000)


def shapes_of(megabytes: int) -> list[tuple[int, int]]:
    """Give shapes of Q4_0 tensors of so many bytes in all, none larger than 9.4 MB."""
    row_bytes = COLS // BLOCK * Q4_0[1].itemsize
    n_rows = max(1, megabytes * 1_000_000 // row_bytes)
    whole, rest = divmod(n_rows, TENSOR_ROWS)
    return [(TENSOR_ROWS, COLS)] * whole + [(rest, COLS)] * bool(rest)


def _grown(
    of: str, sizes: Sequence[int], shapes: Callable[[int], list[tuple[int, int]]], names: Sequence[str], unit: int
) -> Iterator[Result]:
    """Measure commands over sizes; `unit` of sizes is what a slope is stated by: one tensor, or one GB of 1000 MB."""
    runs: dict[str, list[tuple[float, Run]]] = {name: [] for name in names}
    for n in sizes:
        with TemporaryDirectory(prefix="qformat-bench-") as folder:
            source, made = Path(folder, "source.gguf"), Path(folder, "made.qfmt")
            write_gguf(source, shapes(n), Q4_0)
            for name, args in COMMANDS:
                if name in names and _expected(runs[name], n / unit) <= PATIENCE and (name not in MADE or made.exists()):
                    runs[name].append((n / unit, _median([str(arg) for arg in args(source, made)])))
    for name, found in runs.items():
        points = tuple((size, ran.seconds) for size, ran in found)
        line = fit(points)
        slope = {"us a tensor": line.per_unit * 1e6} if of == "tensors" else {"s a GB": line.per_unit}
        figures = {**slope, "once s": line.once, "exponent": line.exponent, "at end": line.at_end}
        figures["growth MB"] = (max(ran.n_bytes for _, ran in found) - found[0][1].n_bytes) / 1e6
        yield Result("growth", f"qfmt {name}", f"by {of}", 0, figures, points=points)


def _expected(runs: Sequence[tuple[float, Run]], size: float) -> float:
    """Give the seconds that a size will take if all that the largest before took longer than the first grows with it."""
    once, last = (runs[0][1].seconds, runs[-1]) if runs else (0.0, None)
    return once + (last[1].seconds - once) * size / last[0] if last else 0.0


def _median(args: Sequence[str]) -> Run:
    """Run a command and give the run of median time. Raises Failed where it does not exit with 0."""
    done = [run(args)]
    while len(done) < TIMES and done[0].seconds <= SHORT:
        done.append(run(args))
    for each in done:
        if each.code:
            raise Failed(f"qfmt {args[0]}: exit code {each.code}: {each.err.strip()}")
    return sorted(done, key=lambda each: each.seconds)[len(done) // 2]
