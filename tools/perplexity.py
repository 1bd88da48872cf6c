"""Quantizing a real model, judged by llama.cpp: perplexity beside that of ggml's own quantization of the same weights.

SmolLM2 is decoded to float32 and quantized by us to each of KINDS. A twin of each file holds ggml's own blocks of the same
floats, in the same types, tensor by tensor; llama.cpp reads both. Its rows have 576 weights, which most K-quants do not fit, so
these are also compared on random rows of 256 and 4096 weights, by their squared error, weighted where columns have importance.

    python tools/perplexity.py [KIND ...]

Exits 1 where a perplexity is more than PERPLEXITY_LIMIT from ggml's, or an error more than ERROR_LIMIT above it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import ggml
import gguf
import numpy as np
from demo import print_table
from installed import SMOLLM2, package_file
from llama import Llama, log_softmax
from numpy.typing import NDArray
from qconvert.conversion import dequantize
from qconvert.quantizing import quantize

import qformat

Array = NDArray[np.float32]
Draw = Callable[[tuple[int, int]], NDArray[np.float64]]

KINDS = ("q4_k_m", "q6_k_mix", "q8_0")
SEARCHED = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs")
ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("LICENSE", "spec/qfmt.md")
N_TOKENS, N_CHUNK = 4096, 512  # a chunk begins with no memory of the one before
SHAPES = ((256, 256), (64, 4096))
PERPLEXITY_LIMIT, ERROR_LIMIT = 0.01, 0.005


def perplexity(path: Path) -> float:
    """Give a model's perplexity on the fixed text: every token but the first of each chunk is scored."""
    with Llama(path, N_CHUNK, n_threads=2) as model:
        ids = tokens(model)
        chunks = [ids[first : first + N_CHUNK] for first in range(0, len(ids), N_CHUNK)]
        total = sum(surprise(model.logits(chunk)[:-1], chunk[1:]) for chunk in chunks)
        return math.exp(total / (len(ids) - len(chunks)))


def tokens(model: Llama) -> list[int]:
    """Give the ids of the fixed text."""
    return model.tokenize("\n".join((ROOT / name).read_text(encoding="utf-8") for name in TEXTS))[:N_TOKENS]


def surprise(logits: Array, ids: list[int]) -> float:
    """Sum the negative log-likelihoods of tokens, each under its row of logits."""
    return -float(sum(log_softmax(row)[token] for row, token in zip(logits, ids, strict=True)))


def write_twin(ours: Path, twin: Path, floats: Path) -> int:
    """Copy a quantized file, ggml's blocks in its packed tensors; returns the number of bytes that were others in ours."""
    shutil.copyfile(ours, twin)
    sources = {tensor.name: tensor for tensor in gguf.GGUFReader(floats).tensors}
    n_others = 0
    for tensor in gguf.GGUFReader(twin, "r+").tensors:
        if tensor.tensor_type not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            blocks = ggml.quantize(sources[tensor.name].data, tensor.tensor_type)
            n_others += int(np.count_nonzero(tensor.data != blocks))
            tensor.data[:] = blocks
    return n_others


def compare_model(folder: Path, kinds: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Give a line for each kind, and whether it is within the limit."""
    source, floats, ours, twin = (folder / f"{name}.gguf" for name in ("source", "floats", "ours", "ggml"))
    source.symlink_to(package_file(*SMOLLM2))
    dequantize(source, floats, "f32")
    with Llama(source, N_CHUNK) as model:
        ids = tokens(model)
    digest = hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()[:12]
    print(f"{len(ids)} tokens of {' and '.join(TEXTS)}, digest {digest}; the Q4_1 file itself: {perplexity(source):.4f}\n")
    for kind in kinds:
        quantize(floats, ours, f"gguf:{kind}", force=True)
        n_others = write_twin(ours, twin, floats)
        found, expected = perplexity(ours), perplexity(twin)
        ratio, n_bytes = found / expected, ours.stat().st_size
        cells = (kind, f"{found:.4f}", f"{expected:.4f}", f"{ratio:.5f}", str(n_others), str(n_bytes), types_of(ours))
        yield cells, abs(ratio - 1) <= PERPLEXITY_LIMIT


def types_of(path: Path) -> str:
    """Count the types of a file's tensors."""
    names = [tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors]
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))


def compare_errors() -> Iterator[tuple[tuple[str, ...], bool]]:
    """Give a line for each searched type, distribution, length of row and weighting; whether our error is within the limit."""
    rng = np.random.default_rng(7)
    draws: dict[str, Draw] = {"normal": rng.standard_normal, "student-t, 3": lambda shape: rng.standard_t(3, shape)}
    for kind, name, shape, weighted in itertools.product(SEARCHED, draws, SHAPES, (False, True)):
        type_id = gguf.GGMLQuantizationType[kind.upper()]
        rows = (draws[name](shape) * 0.02).astype(np.float32)
        importance = rng.gamma(1, 1, (1, shape[1])).astype(np.float32) if weighted else None
        theirs = ggml.quantize(rows, type_id, None if importance is None else importance[0])
        found = squared_error(qformat.quantize(rows, f"gguf:{kind}", importance=importance).dequantize(), rows, importance)
        expected = squared_error(gguf.quants.dequantize(theirs, type_id), rows, importance)
        columns = f"{shape[1]}", "imatrix" if weighted else "none"
        cells = (kind, name, *columns, f"{found:.6e}", f"{expected:.6e}", f"{found / expected:.6f}")
        yield cells, found <= expected * (1 + ERROR_LIMIT)


def squared_error(found: Array, expected: Array, importance: Array | None) -> float:
    """Sum the squares of the differences in float64, each times its column's importance."""
    squares = np.square(found.astype(np.float64) - expected)
    return float((squares if importance is None else squares * importance).sum())


def main(kinds: tuple[str, ...]) -> int:
    """Print both tables; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="qfmt-perplexity-") as folder:
        models = list(compare_model(Path(folder), kinds))
    print_table(("target", "ours", "ggml", "ratio", "other bytes", "bytes", "types"), [cells for cells, _ in models])
    print()
    errors = list(compare_errors())
    print_table(("type", "weights", "columns", "importance", "our error", "ggml's", "ratio"), [cells for cells, _ in errors])
    n_beyond = sum(not within for _, within in (*models, *errors))
    n_lines = len(models) + len(errors)
    print(f"\n{n_beyond} of {n_lines} beyond {PERPLEXITY_LIMIT:.1%} in perplexity or {ERROR_LIMIT:.1%} in error")
    return 1 if n_beyond else 0


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:]) or KINDS))
