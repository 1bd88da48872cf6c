"""Peak memory, and peak bytes on the disk, of converting checkpoints of any size, beyond what starting up takes.

    copied        Q8_0 weights from GGUF to `.qfmt`, and back to the byte
    re-expressed  Q4_0 weights of GGUF as Q8_0: every code and scale is derived, every value proved
    renamed       bfloat16 shards of a llama as one GGUF file by a runtime's names, rows of heads permuted

Counts anonymous memory alone (RssAnon of /proc/PID/status, sampled while the command runs): pages of mapped files are the
system's to take back, and are no growth. Start-up is the same command over a checkpoint of the same kind that is as small as
can be. What lies in the destination's folder meanwhile, temporary files included, is never more than what is there in the end.
Knows of the library only its command line.

    cd tools && python -m bench.memory [GIGABYTES] [copied|re-expressed|renamed ...] [--max-memory=SIZE]

Exits 1 when a command fails, when a GGUF does not come back byte for byte, when memory grows by LIMIT or more, or when more
than SLACK bytes lay on the disk beyond those of the result.
"""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bench.checkpoints import LAYER_BYTES, Q4_0, write_gguf, write_llama

LIMIT = 100_000_000
SLACK = 1_000_000  # bytes on the disk beyond those of the result: none, but for what a folder itself may count
SAMPLE_SECONDS = 0.005
DISK_SAMPLES = 10  # of memory, for one of the disk
ROWS, COLS = 4096, 4096
LARGE = 8  # the first tensor is this many times as large as the others: memory must not follow it
TENSOR_BYTES = {"copied": ROWS * COLS // 32 * 34, "re-expressed": ROWS * COLS // 32 * 18}


@dataclass(frozen=True, slots=True)
class Run:
    """One command that ran to its end.

    n_bytes : peak of its anonymous memory; 0 on a system that does not tell
    n_disk  : most bytes that lay in the watched folder meanwhile
    """

    code: int
    out: str
    err: str
    seconds: float
    n_bytes: int
    n_disk: int = 0


def run(args: Sequence[str | Path], folder: Path | None = None, watched: Path | None = None) -> Run:
    """Run `qfmt` in a process of its own, in a folder if one is given, and watch its memory until it ends.

    watched : a folder whose bytes are watched as well, and where temporary files are to lie
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started, peak, on_disk = time.monotonic(), 0, 0
        command = [sys.executable, "-m", "qfmt", *map(str, args)]
        env = None if watched is None else {**os.environ, "TMPDIR": str(watched)}
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, env=env) as child:
            samples = 0
            while child.poll() is None:
                peak = max(peak, anonymous_bytes(child.pid))
                if samples % DISK_SAMPLES == 0:
                    on_disk = max(on_disk, disk_bytes(watched))
                samples += 1
                time.sleep(SAMPLE_SECONDS)
            seconds = time.monotonic() - started
        return Run(child.returncode, text_of(out), text_of(err), seconds, peak, on_disk)


def anonymous_bytes(pid: int) -> int:
    """Read how much anonymous memory a process holds now; 0 once it has ended, or where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    kib = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(kib[0]) * 1024 if kib else 0


def disk_bytes(folder: Path | None) -> int:
    """Sum up what the files below a folder take on the disk now; what vanishes meanwhile is not there."""
    found = 0
    for path in () if folder is None else folder.rglob("*"):
        with suppress(OSError):
            found += 0 if path.is_dir() else path.stat().st_blocks * 512
    return found


def text_of(stream: BinaryIO) -> str:
    """Read all that was written to a stream."""
    stream.seek(0)
    return stream.read().decode("utf-8", errors="replace")


def convert(src: Path, dst: Path, *more: str) -> Run:
    """Convert in a process of its own, watching the destination's folder. Exits where the command fails."""
    done = run(["convert", src, dst, "--force", *more], watched=dst.parent)
    if done.code:
        sys.exit(f"memory: convert {src.name} {dst.name} ended with {done.code}: {done.err.strip()}")
    return done


def there_and_back(source: Path, *more: str) -> tuple[Run, ...]:
    """Convert a GGUF to `.qfmt` and back beside it. Exits where a command fails or a byte differs."""
    packed, returned = source.with_suffix(".qfmt"), source.with_name(f"{source.stem}-returned.gguf")
    runs = tuple(convert(src, dst, *more) for src, dst in ((source, packed), (packed, returned)))
    if not filecmp.cmp(source, returned, shallow=False):
        sys.exit(f"memory: {returned.name} is not {source.name} byte for byte")
    return runs


def made_to(to: str) -> Callable[..., tuple[Run, ...]]:
    """Give what converts a checkpoint to a target, into a folder of its own, and exits where more lay there than the result."""

    def into(source: Path, *more: str) -> tuple[Run, ...]:
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            done = convert(source, Path(folder, "made.gguf"), "--to", to, *more)
            beyond = done.n_disk - disk_bytes(Path(folder))
        if beyond > SLACK:
            sys.exit(f"memory: {beyond} bytes lay on the disk beyond those of the result")
        return (done,)

    return into


def gguf_of(case: str) -> Callable[[Path, float], None]:
    """Give what writes the GGUF of a case, the first tensor much larger than the others; of no bytes one row."""

    def write(path: Path, n_bytes: float) -> None:
        n_small = max(1, round(n_bytes / TENSOR_BYTES[case]) - LARGE)
        shapes = [(LARGE * ROWS, COLS), *[(ROWS, COLS)] * n_small] if n_bytes else [(1, COLS)]
        write_gguf(path, shapes, *([Q4_0] if case == "re-expressed" else []))

    return write


def llama_of(path: Path, n_bytes: float) -> None:
    """Write the llama of a case; of no bytes one layer."""
    write_llama(path, max(1, round(n_bytes / LAYER_BYTES)))


# Of every case: what it is of, the steps that are measured, what writes the source of so many bytes, what converts it.
CASES = {
    "copied": ("Q8_0", ("GGUF to .qfmt", ".qfmt to GGUF"), gguf_of("copied"), there_and_back),
    "re-expressed": ("Q4_0", ("Q4_0 to Q8_0",), gguf_of("re-expressed"), made_to("gguf:q8_0")),
    "renamed": ("bfloat16", ("shards to GGUF",), llama_of, made_to("gguf")),
}


def measure(case: str, gigabytes: float, more: Sequence[str]) -> int:
    """Measure one case and print; returns by how much memory grew."""
    kind, titles, write, work = CASES[case]
    grew = 0
    with tempfile.TemporaryDirectory(prefix="qfmt-memory-") as folder:
        little, big = Path(folder, "little.gguf"), Path(folder, "big.gguf")
        write(little, 0)
        write(big, gigabytes * 1e9)
        n_bytes = sum(path.stat().st_size for path in (big, *big.glob("*")) if path.is_file())
        work(little, *more)  # what is made once, a cache of compiled kernels say, is no part of start-up
        start = work(little, *more)
        print(f"{case}: {n_bytes / 1e9:.2f} GB of {kind}; anonymous memory at its peak:")
        for title, small, large in zip(titles, start, work(big, *more), strict=True):
            growth = large.n_bytes - small.n_bytes
            grew = max(grew, growth)
            speed = n_bytes / 1e6 / large.seconds
            print(
                f"{title:14}  start-up {small.n_bytes / 1e6:6.1f} MB  peak {large.n_bytes / 1e6:6.1f} MB"
                f"  growth {growth / 1e6:6.1f} MB  {large.seconds:6.1f} s  {speed:6.0f} MB/s",
                flush=True,
            )
    return grew


def main(*words: str) -> int:
    """Measure and print; returns the exit code."""
    sizes = [float(word) for word in words if word[:1].isdigit()]
    more = [word for word in words if word.startswith("--")]
    grew = max(measure(case, (sizes or [1.0])[0], more) for case in [w for w in words if w in CASES] or CASES)
    print(f"growth {grew / 1e6:.1f} MB, limit {LIMIT / 1e6:.0f} MB; nothing on the disk beyond the results")
    return int(grew >= LIMIT)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
