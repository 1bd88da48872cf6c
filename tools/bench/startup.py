"""Starting up: commands over what users have, and over more tensors than anyone has; the first kernel; opening a large file.

Each is a process of its own, several times over. Seconds are of the whole process, but for the opening, which a process
measures inside, with the most memory that it held, interpreter and NumPy included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import qconvert
from bench.checkpoints import BLOCK, Q4_0, write_gguf, write_small_safetensors
from bench.commands import Ran, python, qfmt
from bench.results import Result
from bench.rounds import spread
from installed import SMOLLM2, join_gemma, package_file

import qformat

TIMES, LEAST, BUDGET = 10, 3, 5.0  # runs at most and at least, and seconds after which no further one begins
MANY = 100_000
LARGE_BYTES = 1 << 30
ROWS, COLS = 4096, 4096
OPEN = """
import sys, time, qformat
from qformat import store
began = time.perf_counter()
with qformat.open(sys.argv[1]) as model:
    n_tensors = len(list(model))
seconds = time.perf_counter() - began
with open("/proc/self/status") as status:  # what the system tells a parent of it counts the parent's own memory too
    (kib,) = (line.split()[1] for line in status if line.startswith("VmHWM:"))
print(seconds, int(kib) * 1024)
"""
FIRST_KERNEL = """
import sys, qformat
with qformat.open(sys.argv[1]) as model:
    for name in model:
        model[name].dequantize()
"""


def start_up() -> Iterator[Result]:
    """Measure starting up."""
    with TemporaryDirectory(prefix="qformat-bench-") as name:
        folder = Path(name)
        yield _measured("qfmt --help", "", lambda: qfmt("--help"))
        for path in _many(folder):
            yield _measured("qfmt inspect", f"{MANY} tensors{path.suffix}", lambda path=path: qfmt("inspect", path))
            path.unlink()
        smollm2, gemma = package_file(*SMOLLM2), folder / "gemma.gguf"
        join_gemma(gemma)
        yield _measured("qfmt inspect", "SmolLM2", lambda: qfmt("inspect", smollm2))
        yield _measured("qfmt inspect", "Gemma 3", lambda: qfmt("inspect", gemma))
        yield from _kernels(folder)
        yield _opening(folder)


def _many(folder: Path) -> Iterator[Path]:
    """Write files of many small tensors, each when it is asked for: GGUF, safetensors and `.qfmt`."""
    gguf, arrays, packed = (folder / f"many{suffix}" for suffix in (".gguf", ".safetensors", ".qfmt"))
    write_gguf(gguf, [(1, BLOCK)] * MANY, Q4_0)
    yield gguf
    write_small_safetensors(arrays, MANY)
    yield arrays
    row = qformat.quantize(np.ones((1, BLOCK), np.float32), "gguf:q4_0")
    qformat.save(packed, {f"blk.{number}.ffn_up.weight": row for number in range(MANY)})
    yield packed


def _kernels(folder: Path) -> Iterator[Result]:
    """Measure a process that opens a small file and decodes it, with and without compiled kernels on the disk."""
    source, small = folder / "small.gguf", folder / "small.qfmt"
    write_gguf(source, [(32, 32)], Q4_0)
    qconvert.convert(source, small)
    warm = folder / "warm"
    python(FIRST_KERNEL, small, NUMBA_CACHE_DIR=str(warm))
    yield _measured("first kernel", "warm", lambda: python(FIRST_KERNEL, small, NUMBA_CACHE_DIR=str(warm)))
    colds = (str(folder / f"cold-{number}") for number in range(1 + TIMES))
    yield _measured("first kernel", "cold", lambda: python(FIRST_KERNEL, small, NUMBA_CACHE_DIR=next(colds)))


def _opening(folder: Path) -> Result:
    """Measure `qformat.open` of a large file, in a process that has imported the library."""
    source, large = folder / "large.gguf", folder / "large.qfmt"
    write_gguf(source, [(ROWS, COLS)] * (LARGE_BYTES // (ROWS * COLS // 32 * 18) + 1), Q4_0)
    qconvert.convert(source, large)
    source.unlink()
    runs = [python(OPEN, large) for _ in range(1 + TIMES)][1:]
    seconds, n_bytes = zip(*((float(word) for word in run.out.split()) for run in runs), strict=True)
    figures = {"s": median(seconds), "MB": median(n_bytes) / 1e6}
    return Result("start-up", "open .qfmt", f"{large.stat().st_size / 1e9:.1f} GB", 1, figures, {"qformat": spread(seconds)})


def _measured(name: str, detail: str, run: Callable[[], Ran]) -> Result:
    """Run a command once, then several times, and give the medians of those."""
    run()
    started, runs = time.monotonic(), list[Ran]()
    while len(runs) < LEAST or (len(runs) < TIMES and time.monotonic() - started < BUDGET):
        runs.append(run())
    figures = {
        "s": median(ran.seconds for ran in runs),
        "cpu s": median(ran.cpu_seconds for ran in runs),
    }
    return Result("start-up", name, detail, 1, figures, {"qformat": spread([ran.seconds for ran in runs])})
