"""Peak memory of converting 1 GB of Q8_0 weights from GGUF to `.qfmt` and back, beyond what starting up takes.

Counts anonymous memory alone (RssAnon of /proc/PID/status, sampled while the command runs): pages of mapped files are the
system's to take back, and are no growth. Start-up is the same command over a file of the same kind that holds one row.
Knows of the library only its command line.

    python tools/bench/memory.py [GIGABYTES]

Exits 1 when a command fails, when the GGUF does not come back byte for byte, or when memory grows by LIMIT or more.
"""

from __future__ import annotations

import filecmp
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

LIMIT = 100_000_000
SAMPLE_SECONDS = 0.002
ROWS, COLS = 4096, 4096
LARGE = 8  # the first tensor is this many times as large as the others: memory must not follow it

Q8_0 = np.dtype([("scale", "<f2"), ("codes", "i1", 32)])
Q8_0_ID = 8  # ggml-org/ggml: include/ggml.h, GGML_TYPE_Q8_0
ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Run:
    """One command that ran to its end.

    n_bytes : peak of its anonymous memory; 0 on a system that does not tell
    """

    code: int
    out: str
    err: str
    seconds: float
    n_bytes: int


def run(args: Sequence[str | Path], folder: Path | None = None) -> Run:
    """Run `qfmt` in a process of its own, in a folder if one is given, and watch its memory until it ends."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started, peak = time.monotonic(), 0
        command = [sys.executable, "-m", "qfmt", *map(str, args)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder) as child:
            while child.poll() is None:
                peak = max(peak, anonymous_bytes(child.pid))
                time.sleep(SAMPLE_SECONDS)
            seconds = time.monotonic() - started
        return Run(child.returncode, text_of(out), text_of(err), seconds, peak)


def anonymous_bytes(pid: int) -> int:
    """Read how much anonymous memory a process holds now; 0 once it has ended, or where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    kib = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(kib[0]) * 1024 if kib else 0


def text_of(stream: BinaryIO) -> str:
    """Read all that was written to a stream."""
    stream.seek(0)
    return stream.read().decode("utf-8", errors="replace")


def write_gguf(path: Path, shapes: Sequence[tuple[int, int]]) -> None:
    """Write a GGUF file of random Q8_0 tensors, a tile of rows at a time.

    shapes : (rows, columns) of each tensor; columns a multiple of 32
    """
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), 1)
    header += text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    byte_offset = 0
    for number, (rows, cols) in enumerate(shapes):
        header += text(b"blk.%d.ffn_up.weight" % number) + struct.pack("<IQQIQ", 2, cols, rows, Q8_0_ID, byte_offset)
        byte_offset += padded(rows * cols // 32 * Q8_0.itemsize)
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(header.ljust(padded(len(header)), b"\0"))
        for rows, cols in shapes:
            for first in range(0, rows, ROWS):
                n_blocks = min(ROWS, rows - first) * cols // 32
                blocks = np.empty(n_blocks, Q8_0)
                blocks["scale"] = rng.uniform(0.001, 0.02, n_blocks)
                blocks["codes"] = rng.integers(-127, 128, (n_blocks, 32), np.int8)
                file.write(blocks.tobytes())
            file.write(bytes(-file.tell() % ALIGNMENT))


def text(value: bytes) -> bytes:
    """Give a GGUF string."""
    return struct.pack("<Q", len(value)) + value


def padded(n_bytes: int) -> int:
    """Round up to the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def there_and_back(source: Path) -> tuple[Run, Run]:
    """Convert a GGUF to `.qfmt` and back beside it. Exits where a command fails or a byte differs."""
    packed, returned = source.with_suffix(".qfmt"), source.with_name(f"{source.stem}-returned.gguf")
    runs = []
    for src, dst in ((source, packed), (packed, returned)):
        done = run(["convert", src, dst, "--force"])
        if done.code:
            sys.exit(f"memory: convert {src.name} {dst.name} ended with {done.code}: {done.err.strip()}")
        runs.append(done)
    if not filecmp.cmp(source, returned, shallow=False):
        sys.exit(f"memory: {returned.name} is not {source.name} byte for byte")
    return runs[0], runs[1]


def main(gigabytes: float = 1.0) -> int:
    """Measure and print; returns the exit code."""
    n_tensor = ROWS * COLS // 32 * Q8_0.itemsize
    n_small = max(1, round(gigabytes * 1e9 / n_tensor) - LARGE)
    grew = 0
    with tempfile.TemporaryDirectory(prefix="qfmt-memory-") as folder:
        little, big = Path(folder, "little.gguf"), Path(folder, "big.gguf")
        write_gguf(little, [(1, COLS)])
        write_gguf(big, [(LARGE * ROWS, COLS), *[(ROWS, COLS)] * n_small])
        n_bytes = big.stat().st_size
        there_and_back(little)  # what is made once, a cache of compiled kernels say, is no part of start-up
        start = there_and_back(little)
        print(
            f"{n_bytes / 1e9:.2f} GB of Q8_0; its largest tensor {LARGE * n_tensor / 1e6:.0f} MB; anonymous memory at its peak:"
        )
        for title, small, large in zip(("GGUF to .qfmt", ".qfmt to GGUF"), start, there_and_back(big), strict=True):
            growth = large.n_bytes - small.n_bytes
            grew = max(grew, growth)
            speed = n_bytes / 1e6 / large.seconds
            print(
                f"{title}  start-up {small.n_bytes / 1e6:6.1f} MB  peak {large.n_bytes / 1e6:6.1f} MB"
                f"  growth {growth / 1e6:6.1f} MB  {large.seconds:6.1f} s  {speed:6.0f} MB/s"
            )
    print(f"growth {grew / 1e6:.1f} MB, limit {LIMIT / 1e6:.0f} MB; returned byte for byte")
    return int(grew >= LIMIT)


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:2])))
